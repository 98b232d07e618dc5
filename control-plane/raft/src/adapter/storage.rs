//! The library's log storage over our log.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::alias::{EntryOf, VoteOf};
use openraft::{Entry as EngineEntry, EntryPayload, LogState, OptionalSend, RaftLogReader};
use tokio::sync::oneshot;

use super::{Batch, EngineLogId, Types, log_id, members_of, membership_of, position};
use crate::members::Members;
use crate::wal::{Entry, Index, Payload, Position, Record, Writer};

/// Entries kept in memory after they are durable, in bytes: what is applied next, and what followers ask for.
const RECENT_BYTES: usize = 2 << 20;

/// About how many bytes of entries one message to a follower carries.
const MESSAGE_BYTES: usize = 2 << 20;

/// The log as the library sees it.
#[derive(Debug, Clone)]
pub(crate) struct LogStore {
    writer: Arc<Writer>,
    recent: Arc<Mutex<Recent>>,
}

#[derive(Debug, Default)]
struct Recent {
    entries: BTreeMap<u64, (usize, EntryOf<Types>)>,
    bytes: usize,
    /// The last index that is on disk.
    durable: Option<u64>,
}

impl Recent {
    fn insert(&mut self, weight: usize, entry: EntryOf<Types>) {
        self.bytes += weight;
        self.entries.insert(entry.log_id.index, (weight, entry));
    }

    fn became_durable(&mut self, index: u64) {
        self.durable = self.durable.max(Some(index));
        while self.bytes > RECENT_BYTES {
            let Some(first) = self.entries.first_entry() else { break };
            if self.durable.is_none_or(|durable| *first.key() > durable) {
                break;
            }
            self.bytes -= first.remove().0;
        }
    }

    fn retain(&mut self, wanted: impl Fn(u64) -> bool) {
        let bytes = &mut self.bytes;
        self.entries.retain(|index, (weight, _)| {
            let kept = wanted(*index);
            if !kept {
                *bytes -= *weight;
            }
            kept
        });
    }
}

impl LogStore {
    pub fn new(writer: Arc<Writer>) -> Self {
        Self { writer, recent: Arc::default() }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        self.writer.index().lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn commit(&self, records: Vec<Record>) -> io::Result<()> {
        let (done, durable) = oneshot::channel();
        // A caller that went away needs no answer.
        self.writer.commit(records, Box::new(move |result| drop(done.send(result))));
        let answer = durable.await.map_err(|_| io::Error::other("the log is closed"))?;
        answer.map_err(io::Error::other)
    }

    // The entry, from memory or from disk; a frame that is read gives its other entries to `read`.
    fn entry(&self, index: u64, read: &mut BTreeMap<u64, Entry>) -> io::Result<Option<EntryOf<Types>>> {
        if let Some((_, entry)) = self.recent().entries.get(&index) {
            return Ok(Some(entry.clone()));
        }
        let Some(at) = self.index().position(index) else { return Ok(None) };
        if read.get(&index).is_none_or(|entry| entry.at != at) {
            read.clear();
            let Some(located) = self.index().locate(index) else { return Ok(None) };
            let entries = located.read().map_err(io::Error::other)?;
            read.extend(entries.into_iter().map(|entry| (entry.at.index, entry)));
        }
        match read.remove(&index) {
            Some(entry) if entry.at == at => from_entry(entry).map(Some),
            _ => Err(io::Error::other(format!("entry {index} is not where the log's index says"))),
        }
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<EntryOf<Types>>> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let start = start.max(self.index().first_index());
        let mut entries = Vec::new();
        let mut read = BTreeMap::new();
        for index in start.. {
            if !range.contains(&index) {
                break;
            }
            let Some(entry) = self.entry(index, &mut read)? else { break };
            entries.push(entry);
        }
        Ok(entries)
    }

    // What one message to a follower carries: entries are up to a megabyte each.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<EntryOf<Types>>> {
        let mut entries = Vec::new();
        let (mut read, mut bytes) = (BTreeMap::new(), 0);
        for index in start..end {
            let Some(entry) = self.entry(index, &mut read)? else { break };
            bytes += match &entry.payload {
                EntryPayload::Normal(batch) => batch.bytes.len(),
                EntryPayload::Blank | EntryPayload::Membership(_) => 256,
            };
            entries.push(entry);
            if bytes >= MESSAGE_BYTES {
                break;
            }
        }
        if entries.is_empty() && start < end {
            return Err(io::Error::other(format!("entry {start} is not in the log")));
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<Types>>> {
        let ballot = self.index().ballot;
        Ok(ballot.map(super::vote_of))
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let index = self.index();
        Ok(LogState { last_purged_log_id: index.purged.map(log_id), last_log_id: index.last().map(log_id) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> io::Result<()> {
        self.commit(vec![Record::Ballot(super::ballot(vote))]).await
    }

    async fn save_committed(&mut self, committed: Option<EngineLogId>) -> io::Result<()> {
        if let Some(committed) = committed {
            self.writer.committed(position(&committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<EngineLogId>> {
        let index = self.index();
        // A committed index is written ahead of nothing: entries it names are before it in the log or purged. After a
        // truncation of what was never committed, it still is within the log.
        let within = |at: &Position| index.last().is_some_and(|last| at.index <= last.index);
        Ok(index.committed.filter(within).map(log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = EntryOf<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        let mut last = None;
        {
            let mut recent = self.recent();
            for entry in entries {
                let ours = to_entry(&entry)?;
                last = Some(ours.at.index);
                recent.insert(ours.weight(), entry);
                records.push(Record::Entry(ours));
            }
        }
        let recent = self.recent.clone();
        self.writer.commit(
            records,
            Box::new(move |result| {
                if let (Ok(()), Some(last)) = (&result, last) {
                    recent.lock().unwrap_or_else(PoisonError::into_inner).became_durable(last);
                }
                callback.io_completed(result.map_err(io::Error::other));
            }),
        );
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<EngineLogId>) -> io::Result<()> {
        let keep = last.map(|last| last.index);
        {
            let mut recent = self.recent();
            recent.retain(|index| keep.is_some_and(|keep| index <= keep));
            recent.durable = recent.durable.min(keep);
        }
        self.commit(vec![Record::Truncate(keep)]).await
    }

    async fn purge(&mut self, upto: EngineLogId) -> io::Result<()> {
        self.recent().retain(|index| index > upto.index);
        self.commit(vec![Record::Purge(position(&upto))]).await
    }
}

pub(super) fn to_entry(entry: &EntryOf<Types>) -> io::Result<Entry> {
    let at: Position = position(&entry.log_id);
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank,
        EntryPayload::Normal(batch) => Payload::Commands(batch.bytes.clone()),
        EntryPayload::Membership(members) => {
            Payload::Members(members_of(members).encode().map_err(io::Error::other)?.into())
        }
    };
    Ok(Entry { at, payload })
}

pub(crate) fn from_entry(entry: Entry) -> io::Result<EntryOf<Types>> {
    let payload = match entry.payload {
        Payload::Blank => EntryPayload::Blank,
        Payload::Commands(bytes) => EntryPayload::Normal(Batch::read(bytes)),
        Payload::Members(bytes) => {
            EntryPayload::Membership(membership_of(&Members::decode(&bytes).map_err(io::Error::other)?)?)
        }
    };
    Ok(EngineEntry { log_id: log_id(entry.at), payload })
}
