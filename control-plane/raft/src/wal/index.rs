//! Where each entry stands on disk, shared between the log's thread and readers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::segment::{self, Found, Segment};
use super::{Ballot, Entry, Position, Record, WalError};
use crate::disk::DiskFile;
use crate::vault::DataKey;

/// Where one entry stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub at: Position,
    pub sequence: u64,
    pub frame: u64,
    pub length: u32,
}

/// A segment's file, and the key of what is in it.
#[derive(Debug, Clone)]
pub(super) struct Opened {
    pub file: Arc<dyn DiskFile>,
    pub key: Option<Arc<DataKey>>,
}

/// What the log holds, without the entries themselves.
#[derive(Debug, Clone, Default)]
pub struct Index {
    pub(super) places: VecDeque<Place>,
    pub(super) files: BTreeMap<u64, Opened>,
    /// The first entry of what is left of the log, which follows what is gone; recovery sets it.
    pub(super) start: Option<u64>,
    /// The last vote.
    pub ballot: Option<Ballot>,
    /// The last committed position written.
    pub committed: Option<Position>,
    /// Everything up to here is gone.
    pub purged: Option<Position>,
}

impl Index {
    /// The last entry, or the last purged one.
    #[must_use]
    pub fn last(&self) -> Option<Position> {
        self.places.back().map(|place| place.at).or(self.purged)
    }

    /// The first index held, or that the next entry will have.
    #[must_use]
    pub fn first_index(&self) -> u64 {
        self.places.front().map_or_else(|| self.next_index(), |place| place.at.index)
    }

    /// The index the next entry must have; a log that holds nothing takes any.
    #[must_use]
    pub fn next_index(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }

    /// Where an index was made, when the log holds it.
    #[must_use]
    pub fn position(&self, index: u64) -> Option<Position> {
        self.place(index).map(|place| place.at)
    }

    /// Bytes of the entries behind this index.
    #[must_use]
    pub fn bytes_after(&self, index: Option<u64>) -> u64 {
        let held = self.places.iter().rev().take_while(|place| index.is_none_or(|index| place.at.index > index));
        held.map(|place| u64::from(place.length)).sum()
    }

    pub(super) fn place(&self, index: u64) -> Option<Place> {
        let first = self.places.front()?.at.index;
        self.places.get(usize::try_from(index.checked_sub(first)?).ok()?).copied()
    }

    /// Whether these records may follow.
    pub(super) fn check(&self, records: &[Record]) -> Result<(), String> {
        let mut last = self.last().map(|at| at.index);
        for record in records {
            match record {
                Record::Entry(entry) => {
                    let index = entry.at.index;
                    if let Some(last) = last.filter(|last| last + 1 != index) {
                        return Err(format!("entry {index} cannot follow entry {last}"));
                    }
                    last = Some(index);
                }
                Record::Truncate(keep) => last = last.min(*keep).max(self.purged.map(|at| at.index)),
                Record::Purge(upto) => last = last.max(Some(upto.index)),
                Record::Ballot(_) | Record::Committed(_) => {}
            }
        }
        Ok(())
    }

    /// Takes up one record; `Err` says what is wrong with it.
    pub(super) fn apply(&mut self, record: &Record, sequence: u64, frame: u64, length: u32) -> Result<(), String> {
        match record {
            Record::Entry(entry) => {
                let at = entry.at;
                let begins = self.places.is_empty() && self.start.take() == Some(at.index);
                if self.last().is_some() && at.index != self.next_index() && !begins {
                    return Err(format!("entry {} follows entry {}", at.index, self.next_index().wrapping_sub(1)));
                }
                self.places.push_back(Place { at, sequence, frame, length });
            }
            Record::Ballot(ballot) => self.ballot = Some(*ballot),
            Record::Committed(at) => self.committed = Some(*at),
            Record::Truncate(keep) => {
                while self.places.back().is_some_and(|place| keep.is_none_or(|keep| place.at.index > keep)) {
                    self.places.pop_back();
                }
                // Recovery may meet this before the purge that explains why what was kept is not here.
                let purged = self.purged.map(|at| at.index);
                if self.places.is_empty() && *keep > purged {
                    self.start = keep.map(|keep| keep + 1);
                }
            }
            Record::Purge(upto) => {
                while self.places.front().is_some_and(|place| place.at.index <= upto.index) {
                    self.places.pop_front();
                }
                if self.purged.is_none_or(|purged| purged.index < upto.index) {
                    self.purged = Some(*upto);
                }
            }
        }
        Ok(())
    }

    /// A reader of one entry that holds no lock; `None` when the log does not hold it.
    #[must_use]
    pub fn locate(&self, index: u64) -> Option<Located> {
        let place = self.place(index)?;
        Some(Located { place, opened: self.files.get(&place.sequence)?.clone() })
    }
}

/// Where to read an entry.
#[derive(Debug, Clone)]
pub struct Located {
    place: Place,
    opened: Opened,
}

impl Located {
    /// The entries of the frame that holds it, the wanted one among them, checked against the frame's checksum.
    ///
    /// # Errors
    /// The disk fails, or gives back something else than was written.
    pub fn read(&self) -> Result<Vec<Entry>, WalError> {
        let name = segment::name(self.place.sequence);
        let Opened { file, key } = self.opened.clone();
        let size = file.size().map_err(WalError::io("measure", &name))?;
        let segment = Segment { name, sequence: self.place.sequence, file, size, key };
        let Found::Frame(_, bytes) = segment.frame_at(self.place.frame)? else {
            return Err(segment.corrupt(self.place.frame, "a frame that was whole no longer is"));
        };
        let records = segment.records(self.place.frame, bytes)?;
        let entries = records.into_iter().filter_map(|(_, record)| match record {
            Record::Entry(entry) => Some(entry),
            _ => None,
        });
        Ok(entries.collect())
    }
}
