//! The log itself, synchronous and owned by one thread: commit a frame, start a segment, drop old ones.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use super::frame;
use super::index::{Index, Opened};
use super::record::Record;
use super::segment::{self, FIRST_FRAME, NEXT, RESERVE, Start};
use super::{SECTOR, WalError};
use crate::disk::{Disk, DiskFile};
use crate::vault::{DataKey, KeyError, Vault};

/// Whose log it is, and how large its parts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// The cluster's id, in every segment.
    pub cluster: u128,
    /// This server's id, in every segment.
    pub node: u64,
    /// The size of a segment file.
    pub segment_bytes: u64,
    /// Space set aside beyond the next segment, given up when the disk is full.
    pub reserve_bytes: u64,
}

/// Room on the disk, as the log sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Space {
    /// All space is set aside as it should be.
    Free,
    /// The reserve is being used: deletions and status only.
    Low,
    /// The reserve is used up: nothing more is accepted.
    Out,
}

/// A segment that holds frames.
#[derive(Debug)]
pub(super) struct Held {
    pub sequence: u64,
    /// The highest entry it holds; it may go once that is purged.
    pub last_index: Option<u64>,
    /// Bytes used by header and frames.
    pub used: u64,
    /// The name of the node key that its own is wrapped with.
    pub node_key: Option<u64>,
}

/// The log.
#[derive(Debug)]
pub struct Log {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) config: LogConfig,
    pub(super) index: Arc<Mutex<Index>>,
    /// Oldest first; the last one is written to.
    pub(super) held: VecDeque<Held>,
    pub(super) file: Arc<dyn DiskFile>,
    /// What seals the file written to; `None`: it is plain.
    pub(super) key: Option<Arc<DataKey>>,
    /// What seals new segments.
    pub(super) keys: Option<Arc<Vault>>,
    /// Up to where the file written to has space set aside.
    pub(super) roomy_until: u64,
    /// The crc of the last frame.
    pub(super) chain: u32,
    /// The number of the next frame.
    pub(super) number: u64,
    pub(super) next: Option<Arc<dyn DiskFile>>,
    pub(super) reserved: bool,
    pub(super) poison: Option<String>,
}

impl Log {
    /// Makes records durable, all or none, in one frame and one fdatasync.
    ///
    /// # Errors
    /// `Full`: there is no room, nothing happened, and the same records may be tried again. Anything else: the disk refused; the log
    /// accepts nothing more, because what a failed sync left on the disk is unknown.
    pub fn commit(&mut self, records: &[Record]) -> Result<(), WalError> {
        if let Some(reason) = &self.poison {
            return Err(WalError::Poisoned(reason.clone()));
        }
        self.locked().check(records).map_err(WalError::Order)?;
        let result = self.write(records);
        match &result {
            Ok(()) | Err(WalError::Full { .. }) => {}
            Err(error) => self.poison = Some(coracle_base::one_line(error)),
        }
        result
    }

    fn write(&mut self, records: &[Record]) -> Result<(), WalError> {
        if self.key.is_none() && self.keys.is_some() {
            // Written by a release that did not seal.
            self.start_segment()?;
        }
        let encoded = self.encode(records, self.key.as_deref())?;
        let fits = self.used() + encoded.bytes.len() as u64 <= self.config.segment_bytes;
        let encoded = if fits || self.used() <= FIRST_FRAME + SECTOR {
            encoded
        } else {
            self.start_segment()?;
            // The chain now runs through the new segment's first frame.
            self.encode(records, self.key.as_deref())?
        };
        let offset = self.used();
        self.set_tail_aside(offset + encoded.bytes.len() as u64)?;
        if let Err(error) = self.file.write_at(&encoded.bytes, offset) {
            return Err(self.cut_back(offset, error));
        }
        self.file.sync().map_err(WalError::io("sync", self.name()))?;
        self.took(records, &encoded, offset)
    }

    /// Space up to `end` in the file written to, and the rest of a segment when there is room for it.
    fn set_tail_aside(&mut self, end: u64) -> Result<(), WalError> {
        if end <= self.roomy_until {
            return Ok(());
        }
        let whole = self.config.segment_bytes.max(end);
        let made = match self.file.allocate(whole) {
            Err(error) if is_full(&error) && whole > end => self.file.allocate(end).map(|()| end),
            made => made.map(|()| whole),
        };
        // A part that was made is zeros, like all that is set aside.
        self.roomy_until = made.map_err(WalError::room("allocate", self.name()))?;
        Ok(())
    }

    /// What a write that found no room left of its frame goes, and is known to be gone before the next one is written.
    fn cut_back(&mut self, offset: u64, error: io::Error) -> WalError {
        let error = WalError::room("write", self.name())(error);
        if !matches!(error, WalError::Full { .. }) {
            return error;
        }
        match self.file.set_size(offset).and_then(|()| self.file.sync()) {
            Ok(()) => {
                self.roomy_until = offset;
                error
            }
            Err(error) => WalError::io("cut", self.name())(error),
        }
    }

    fn encode(&self, records: &[Record], key: Option<&DataKey>) -> Result<frame::Encoded, WalError> {
        frame::encode(self.number, self.chain, records, key).map_err(|error| WalError::Io {
            operation: "encode a frame for",
            file: self.name(),
            source: io::Error::other(error),
        })
    }

    // The frame is durable.
    fn took(&mut self, records: &[Record], encoded: &frame::Encoded, offset: u64) -> Result<(), WalError> {
        let name = self.name();
        let Some(held) = self.held.back_mut() else { return Err(WalError::Closed) };
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        for (record, start, end) in spans(records, encoded) {
            index.apply(record, held.sequence, offset, (end - start) as u32).map_err(|what| WalError::Corrupt {
                file: name.clone(),
                offset,
                what,
            })?;
            if let Record::Entry(entry) = record {
                held.last_index = held.last_index.max(Some(entry.at.index));
            }
        }
        held.used = offset + encoded.bytes.len() as u64;
        self.chain = encoded.crc;
        self.number += 1;
        Ok(())
    }

    /// What the log holds; shared with readers.
    #[must_use]
    pub fn index(&self) -> Arc<Mutex<Index>> {
        self.index.clone()
    }

    /// The names of the node keys that segments are sealed with.
    pub fn node_keys(&self) -> impl Iterator<Item = u64> {
        self.held.iter().filter_map(|held| held.node_key)
    }

    /// Bytes in use on disk by frames.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.held.iter().map(|held| held.used).sum()
    }

    /// Room for more.
    #[must_use]
    pub fn space(&self) -> Space {
        if self.next.is_some() && self.reserved {
            return Space::Free;
        }
        let next = if self.next.is_some() { self.config.segment_bytes } else { 0 };
        let room = self.roomy_until.saturating_sub(self.used()) + next;
        // What was accepted before must still fit, and votes and leaders' blanks with it.
        if room > self.config.segment_bytes / 4 { Space::Low } else { Space::Out }
    }

    /// Sets space aside: the next segment first, then the reserve, which is given up for the next segment when the disk is full.
    ///
    /// # Errors
    /// The disk fails for another reason than being full.
    pub fn prepare(&mut self) -> Result<Space, WalError> {
        let made = self.next.is_none();
        if made {
            self.next = self.set_aside(NEXT, self.config.segment_bytes)?;
            if self.next.is_none() && self.reserved {
                self.reserved = false;
                self.disk.remove(RESERVE).map_err(WalError::io("remove", RESERVE))?;
                self.disk.sync_names().map_err(WalError::io("sync the directory of", RESERVE))?;
                self.next = self.set_aside(NEXT, self.config.segment_bytes)?;
            }
        }
        if made {
            // Before it is renamed: no crash may give the segment's name to a file that had this one's place before.
            self.disk.sync_names().map_err(WalError::io("sync the directory of", NEXT))?;
        }
        if self.next.is_some() && !self.reserved {
            self.reserved = self.set_aside(RESERVE, self.config.reserve_bytes)?.is_some();
        }
        Ok(self.space())
    }

    fn set_aside(&self, name: &str, bytes: u64) -> Result<Option<Arc<dyn DiskFile>>, WalError> {
        let made = self.disk.create(name).and_then(|file| file.allocate(bytes).map(|()| file));
        match made {
            Ok(file) => Ok(Some(file)),
            Err(error) if is_full(&error) => {
                // Whatever part of it exists is worth more to others.
                match self.disk.remove(name) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(WalError::io("remove", name)(error)),
                    _ => Ok(None),
                }
            }
            Err(error) => Err(WalError::io("allocate", name)(error)),
        }
    }

    /// Removes segments that hold purged entries only.
    ///
    /// # Errors
    /// The disk refused.
    pub fn drop_purged(&mut self) -> Result<(), WalError> {
        // Without a purge nothing later could say that what is gone may be: also a segment of votes alone stays.
        let Some(purged) = self.locked().purged.map(|at| at.index) else { return Ok(()) };
        while self.held.len() > 1 && self.held[0].last_index.is_none_or(|last| last <= purged) {
            let Some(old) = self.held.pop_front() else { break };
            self.locked().files.remove(&old.sequence);
            let name = segment::name(old.sequence);
            self.disk.remove(&name).map_err(WalError::io("remove", &name))?;
            // One at a time, so that no crash leaves a hole between segments.
            self.disk.sync_names().map_err(WalError::io("sync the directory of", &name))?;
        }
        Ok(())
    }

    // The new segment begins with all that must not be lost when older ones go.
    fn start_segment(&mut self) -> Result<(), WalError> {
        let file = match self.next.take() {
            Some(file) => file,
            None => {
                self.prepare()?;
                let full = || WalError::room("allocate", NEXT)(io::Error::from(io::ErrorKind::StorageFull));
                self.next.take().ok_or_else(full)?
            }
        };
        let sequence = self.held.back().map_or(1, |held| held.sequence + 1);
        let name = segment::name(sequence);
        let start = Start { sequence, first_frame: self.number, before: self.chain };
        let records = self.lasting();
        let made = match self.keys.as_ref().map(|keys| keys.data_key()).transpose() {
            Err(KeyError::Io { operation, file: keys, source }) if is_full(&source) => {
                self.next = Some(file);
                return Err(WalError::Full { operation, file: keys.display().to_string(), source });
            }
            made => made?,
        };
        let (key, wrapped) = made.map_or((None, None), |(key, wrapped)| (Some(Arc::new(key)), Some(wrapped)));
        let encoded = self.encode(&records, key.as_deref())?;
        let mut bytes = start.encode(&self.config, wrapped.as_ref());
        bytes.extend_from_slice(&encoded.bytes);
        let named = match file.write_at(&bytes, 0).map_err(WalError::room("write", NEXT)) {
            Ok(()) => {
                file.sync().map_err(WalError::io("sync", NEXT))?;
                self.disk.rename(NEXT, &name).map_err(WalError::room("rename", NEXT))
            }
            Err(error) => Err(error),
        };
        if let Err(error) = named {
            // Without its name it is no part of the log, and is written anew.
            self.next = Some(file);
            return Err(error);
        }
        self.disk.sync_names().map_err(WalError::io("sync the directory of", &name))?;
        // Gives the unused tail back; should the cut be lost, zeros follow, which is as good.
        match self.file.set_size(self.used()) {
            Err(error) if !is_full(&error) => return Err(WalError::io("cut", self.name())(error)),
            _ => {}
        }
        self.roomy_until = self.config.segment_bytes.max(bytes.len() as u64);
        self.locked().files.insert(sequence, Opened { file: file.clone(), key: key.clone() });
        self.file = file;
        self.key = key;
        let node_key = wrapped.map(|wrapped| wrapped.id);
        self.held.push_back(Held { sequence, last_index: None, used: FIRST_FRAME, node_key });
        self.took(&records, &encoded, FIRST_FRAME)
    }

    pub(super) fn lasting(&self) -> Vec<Record> {
        let index = self.locked();
        let ballot = index.ballot.map(Record::Ballot);
        let committed = index.committed.map(Record::Committed);
        let purged = index.purged.map(Record::Purge);
        ballot.into_iter().chain(committed).chain(purged).collect()
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn used(&self) -> u64 {
        self.held.back().map_or(FIRST_FRAME, |held| held.used)
    }

    fn name(&self) -> String {
        segment::name(self.held.back().map_or(0, |held| held.sequence))
    }
}

/// Each record with where it starts and ends in the frame.
fn spans<'a>(records: &'a [Record], encoded: &'a frame::Encoded) -> impl Iterator<Item = (&'a Record, usize, usize)> {
    let ends = encoded.starts.iter().skip(1).copied().chain([encoded.bytes.len()]);
    records.iter().zip(encoded.starts.iter().copied()).zip(ends).map(|((record, start), end)| (record, start, end))
}

pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
