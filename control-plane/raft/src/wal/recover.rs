//! Opening a log: walk every frame, cut what a power cut tore, refuse what a disk lost.

use std::sync::{Arc, Mutex};

use super::frame::HEADER;
use super::index::{Index, Opened};
use super::log::{Held, Log, LogConfig};
use super::segment::{self, FIRST_FRAME, Found, NEXT, RESERVE, Segment, Start};
use super::{Record, WalError};
use crate::disk::Disk;
use crate::vault::Vault;

impl Log {
    /// Opens the plain log in this directory, making an empty one when there is none.
    ///
    /// # Errors
    /// The disk fails; the log is corrupt, foreign, sealed or of a newer format.
    pub fn open(disk: Arc<dyn Disk>, config: LogConfig) -> Result<Self, WalError> {
        Self::open_sealed(disk, config, None)
    }

    /// The same with keys: what is written from now on is sealed, and what was may be.
    ///
    /// # Errors
    /// As `open`; a key is missing or does not open what is sealed with it.
    pub fn open_sealed(disk: Arc<dyn Disk>, config: LogConfig, keys: Option<Arc<Vault>>) -> Result<Self, WalError> {
        let names = disk.list().map_err(WalError::io("list", disk.path().display().to_string()))?;
        let mut sequences: Vec<u64> = names.iter().filter_map(|name| segment::sequence_of(name)).collect();
        sequences.sort_unstable();
        // A crash may have left it half made.
        if names.iter().any(|name| name == NEXT) {
            disk.remove(NEXT).map_err(WalError::io("remove", NEXT))?;
        }
        let kept = names.iter().any(|name| name == RESERVE) && is_whole(&*disk, config.reserve_bytes);
        let reserved = kept || config.reserve_bytes == 0;
        if sequences.is_empty() {
            sequences.push(make_first(&*disk, &config, keys.as_deref())?);
        }
        let mut walk = Walk { config, index: Index::default(), expected: None, held: Vec::new(), first_entry: None };
        let mut segments = Vec::new();
        for (at, sequence) in sequences.iter().enumerate() {
            let mut segment = Segment::open(&*disk, *sequence)?;
            walk.segment(&mut segment, at + 1 == sequences.len(), keys.as_deref())?;
            let opened = Opened { file: segment.file.clone(), key: segment.key.clone() };
            walk.index.files.insert(*sequence, opened);
            segments.push(segment);
        }
        walk.check_start(&segments)?;
        let (number, chain) = walk.expected.map_or((1, 0), |expected| (expected.first_frame, expected.before));
        let Some(last) = segments.pop() else { return Err(WalError::Closed) };
        let mut log = Self {
            disk,
            config,
            index: Arc::new(Mutex::new(walk.index)),
            held: walk.held.into(),
            file: last.file.clone(),
            key: last.key.clone(),
            keys,
            roomy_until: last.size,
            chain,
            number,
            next: None,
            reserved,
            poison: None,
        };
        // A process that was killed may have written what no sync followed: it counts from now on, so it must be durable now.
        log.file.sync().map_err(WalError::io("sync", &last.name))?;
        log.disk.sync_names().map_err(WalError::io("sync the directory of", &last.name))?;
        log.drop_purged()?;
        log.prepare()?;
        Ok(log)
    }
}

fn is_whole(disk: &dyn Disk, bytes: u64) -> bool {
    disk.open(RESERVE).and_then(|file| file.size()).is_ok_and(|size| size == bytes)
}

fn make_first(disk: &dyn Disk, config: &LogConfig, keys: Option<&Vault>) -> Result<u64, WalError> {
    let start = Start { sequence: 1, first_frame: 1, before: 0 };
    let name = segment::name(1);
    let file = disk.create(NEXT).map_err(WalError::io("create", NEXT))?;
    file.allocate(config.segment_bytes).map_err(WalError::io("allocate", NEXT))?;
    let key = keys.map(Vault::data_key).transpose()?.map(|(_, wrapped)| wrapped);
    file.write_at(&start.encode(config, key.as_ref()), 0).map_err(WalError::io("write", NEXT))?;
    file.sync().map_err(WalError::io("sync", NEXT))?;
    disk.rename(NEXT, &name).map_err(WalError::io("rename", NEXT))?;
    disk.sync_names().map_err(WalError::io("sync the directory of", &name))?;
    Ok(1)
}

struct Walk {
    config: LogConfig,
    index: Index,
    /// What the next segment, or the next frame, must begin with; `None` before the first.
    expected: Option<Start>,
    held: Vec<Held>,
    /// The first entry met.
    first_entry: Option<u64>,
}

impl Walk {
    // Segments before the first were removed because of a purge that a later segment tells of: by the end of the walk that
    // purge must cover everything before the first entry met.
    fn check_start(&self, segments: &[Segment]) -> Result<(), WalError> {
        let purged = self.index.purged.map(|at| at.index);
        match (segments.first(), self.first_entry) {
            (Some(first), Some(entry)) if first.sequence > 1 && purged.is_none_or(|purged| purged + 1 < entry) => {
                let purged = purged.map_or("none".to_owned(), |purged| purged.to_string());
                Err(first.corrupt(0, format!("the log begins with entry {entry}, the last purged entry is {purged}")))
            }
            _ => Ok(()),
        }
    }

    fn segment(&mut self, segment: &mut Segment, is_last: bool, keys: Option<&Vault>) -> Result<(), WalError> {
        let (start, wrapped) = Start::read(&*segment.file, &segment.name, &self.config)?;
        segment.key = segment::unwrap(wrapped.as_ref(), &segment.name, keys)?;
        if start.sequence != segment.sequence {
            return Err(segment.corrupt(0, format!("it says it is segment {}", start.sequence)));
        }
        if let Some(expected) = self.expected.filter(|expected| *expected != start) {
            let what = if expected.sequence == start.sequence {
                format!(
                    "it begins with frame {}, the segment before ends before frame {}",
                    start.first_frame, expected.first_frame
                )
            } else {
                format!("segment {} is missing", segment::name(expected.sequence))
            };
            return Err(segment.corrupt(0, what));
        }
        let mut next = start;
        let mut offset = FIRST_FRAME;
        let mut last_index = None;
        while let Found::Frame(head, bytes) = segment.frame_at(offset)? {
            if (head.number, head.before) != (next.first_frame, next.before) {
                let what = format!("frame {} stands where frame {} should", head.number, next.first_frame);
                return Err(segment.corrupt(offset, what));
            }
            self.frame(segment, offset, bytes, &mut last_index)?;
            next.first_frame += 1;
            next.before = head.crc;
            offset += head.span();
        }
        self.check_end(segment, offset, next.first_frame, is_last)?;
        let node_key = wrapped.map(|wrapped| wrapped.id);
        self.held.push(Held { sequence: segment.sequence, last_index, used: offset, node_key });
        next.sequence += 1;
        self.expected = Some(next);
        Ok(())
    }

    fn frame(
        &mut self,
        segment: &Segment,
        offset: u64,
        bytes: Vec<u8>,
        last_index: &mut Option<u64>,
    ) -> Result<(), WalError> {
        let end = bytes.len();
        let records = segment.records(offset, bytes)?;
        let ends = records.iter().skip(1).map(|(start, _)| *start).chain([end]);
        for ((start, record), end) in records.iter().zip(ends) {
            if let (Record::Entry(entry), None) = (record, self.first_entry) {
                self.first_entry = Some(entry.at.index);
                self.index.start = Some(entry.at.index);
            }
            self.index
                .apply(record, segment.sequence, offset, (end - start) as u32)
                .map_err(|what| segment.corrupt(offset + HEADER as u64, what))?;
            if let Record::Entry(entry) = record {
                *last_index = (*last_index).max(Some(entry.at.index));
            }
        }
        Ok(())
    }

    // What stands behind the last whole frame.
    fn check_end(&self, segment: &Segment, offset: u64, number: u64, is_last: bool) -> Result<(), WalError> {
        if let Some(later) = segment.later_frame(offset, number)? {
            let what = format!("frame {number} is damaged, and a later frame stands whole at byte {later}");
            return Err(segment.corrupt(offset, what));
        }
        if is_last {
            segment.clear_from(offset)?;
        }
        Ok(())
    }
}
