//! A segment file: its name, its header, and walking its frames.

use std::sync::Arc;

use coracle_store::codec::{Reader, Writer};

use super::frame::{self, HEADER, Head};
use super::{FORMAT, LogConfig, PLAIN, Record, SECTOR, WalError};
use crate::disk::{Disk, DiskFile};
use crate::vault::{DataKey, KeyError, Vault, Wrapped};

/// Where frames begin.
pub(super) const FIRST_FRAME: u64 = SECTOR;
/// The segment being made ready.
pub(super) const NEXT: &str = "next.wal";
/// Space set aside for deletions on a full disk.
pub(super) const RESERVE: &str = "reserve";

const MAGIC: &[u8; 8] = b"CORACLOG";

pub(super) fn name(sequence: u64) -> String {
    format!("{sequence:010}.wal")
}

pub(super) fn sequence_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal")?;
    if digits.len() < 10 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

/// What stands at the start of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Start {
    pub sequence: u64,
    pub first_frame: u64,
    /// The crc of the frame before the first.
    pub before: u32,
}

impl Start {
    /// One sector; with a key it is that of a sealed segment.
    pub fn encode(&self, config: &LogConfig, key: Option<&Wrapped>) -> Vec<u8> {
        let mut out = Writer::new();
        for byte in MAGIC {
            out.u8(*byte);
        }
        out.u16(if key.is_some() { FORMAT } else { PLAIN });
        out.u64(config.cluster as u64);
        out.u64((config.cluster >> 64) as u64);
        out.u64(config.node);
        out.u64(self.sequence);
        out.u64(self.first_frame);
        out.u32(self.before);
        let mut bytes = out.into_bytes();
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        if let Some(key) = key {
            let mut out = Writer::new();
            key.write(&mut out);
            bytes.extend_from_slice(&out.into_bytes());
            let crc = crc32c::crc32c(&bytes);
            bytes.extend_from_slice(&crc.to_le_bytes());
        }
        bytes.resize(SECTOR as usize, 0);
        bytes
    }

    /// With the key of a sealed one.
    pub fn read(file: &dyn DiskFile, name: &str, config: &LogConfig) -> Result<(Self, Option<Wrapped>), WalError> {
        let corrupt = |what: &str| WalError::Corrupt { file: name.to_owned(), offset: 0, what: what.to_owned() };
        let mut bytes = [0; SECTOR as usize];
        if file.size().map_err(WalError::io("measure", name))? < SECTOR {
            return Err(corrupt("the segment ends within its header"));
        }
        file.read_at(&mut bytes, 0).map_err(WalError::io("read", name))?;
        let bad = |_| corrupt("the segment's header ends early");
        let mut input = Reader::new(&bytes);
        if input.take(MAGIC.len(), "a magic").map_err(bad)? != MAGIC {
            return Err(corrupt("it does not begin like a segment"));
        }
        let found = input.u16("a format").map_err(bad)?;
        let cluster = u128::from(input.u64("a cluster").map_err(bad)?);
        let cluster = cluster | u128::from(input.u64("a cluster").map_err(bad)?) << 64;
        let node = input.u64("a server").map_err(bad)?;
        let start = Self {
            sequence: input.u64("a number").map_err(bad)?,
            first_frame: input.u64("a number").map_err(bad)?,
            before: input.u32("a crc").map_err(bad)?,
        };
        let covered = bytes.len() - input.left();
        if input.u32("a crc").map_err(bad)? != crc32c::crc32c(&bytes[..covered]) {
            return Err(corrupt("the checksum of the segment's header does not match"));
        }
        // After the checksum, which every later format keeps where it is: a flipped bit does not make a newer release.
        if found == 0 || found > FORMAT {
            return Err(WalError::Format { file: name.to_owned(), found });
        }
        if (cluster, node) != (config.cluster, config.node) {
            let what = format!(
                "server {node:016x} of cluster {cluster:032x}, this is server {:016x} of cluster {:032x}",
                config.node, config.cluster
            );
            return Err(WalError::Foreign { file: name.to_owned(), what });
        }
        if found == PLAIN {
            return Ok((start, None));
        }
        let key = Wrapped::read(&mut input).map_err(bad)?;
        let covered = bytes.len() - input.left();
        if input.u32("a crc").map_err(bad)? != crc32c::crc32c(&bytes[..covered]) {
            return Err(corrupt("the checksum of the segment's key does not match"));
        }
        Ok((start, Some(key)))
    }
}

/// The key of a segment's records; `None` for a plain one.
pub(super) fn unwrap(
    wrapped: Option<&Wrapped>,
    name: &str,
    keys: Option<&Vault>,
) -> Result<Option<Arc<DataKey>>, KeyError> {
    let Some(wrapped) = wrapped else { return Ok(None) };
    let what = format!("log segment {name}");
    match keys {
        Some(keys) => keys.unwrap(wrapped, &what).map(|key| Some(Arc::new(key))),
        None => Err(KeyError::NoKeys(what)),
    }
}

/// What is found where a frame should begin.
pub(super) enum Found {
    /// A whole frame: its head and its bytes without the padding.
    Frame(Head, Vec<u8>),
    /// Nothing that can be read as a frame.
    Nothing,
}

/// An open segment, for walking.
pub(super) struct Segment {
    pub name: String,
    pub sequence: u64,
    pub file: Arc<dyn DiskFile>,
    pub size: u64,
    /// Of its records, when it is sealed.
    pub key: Option<Arc<DataKey>>,
}

impl Segment {
    pub fn open(disk: &dyn Disk, sequence: u64) -> Result<Self, WalError> {
        let name = name(sequence);
        let file = disk.open(&name).map_err(WalError::io("open", &name))?;
        let size = file.size().map_err(WalError::io("measure", &name))?;
        Ok(Self { name, sequence, file, size, key: None })
    }

    pub fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), WalError> {
        self.file.read_at(buffer, offset).map_err(WalError::io("read", &self.name))
    }

    pub fn corrupt(&self, offset: u64, what: impl Into<String>) -> WalError {
        WalError::Corrupt { file: self.name.clone(), offset, what: what.into() }
    }

    pub fn frame_at(&self, offset: u64) -> Result<Found, WalError> {
        if offset + HEADER as u64 > self.size {
            return Ok(Found::Nothing);
        }
        let mut bytes = vec![0; HEADER];
        self.read(&mut bytes, offset)?;
        let Some(head) = Head::read(&bytes) else { return Ok(Found::Nothing) };
        let whole = HEADER as u64 + u64::from(head.length);
        if offset + whole > self.size {
            return Ok(Found::Nothing);
        }
        bytes.resize(whole as usize, 0);
        self.read(&mut bytes[HEADER..], offset + HEADER as u64)?;
        if frame::checksum(&bytes) != head.crc {
            return Ok(Found::Nothing);
        }
        Ok(Found::Frame(head, bytes))
    }

    /// The records of a whole frame, as `frame::records`.
    pub fn records(&self, offset: u64, mut bytes: Vec<u8>) -> Result<Vec<(usize, Record)>, WalError> {
        if let Some(key) = &self.key {
            let opened = frame::open(&mut bytes, key);
            opened
                .ok_or_else(|| self.corrupt(offset, "a frame does not open with the segment's key: it was changed"))?;
        }
        frame::records(&bytes).map_err(|error| self.corrupt(offset, error.to_string()))
    }

    /// The offset of the first valid frame behind `offset` whose number is `least` or higher.
    ///
    /// Reads a megabyte at a time and looks only at sectors that begin with something: a file system may tell of set-aside space
    /// as of data (it does for pages that were read once), and a call a sector over 64 MB of zeros would take a second.
    pub fn later_frame(&self, offset: u64, least: u64) -> Result<Option<u64>, WalError> {
        let mut at = offset + SECTOR;
        let mut buffer = vec![0; 1 << 20];
        while let Some(data) = self.file.next_data(at).map_err(WalError::io("search", &self.name))? {
            at = at.max(data - data % SECTOR);
            let length = self.size.saturating_sub(at).min(buffer.len() as u64) as usize;
            if length < HEADER {
                break;
            }
            let read = &mut buffer[..length];
            self.read(read, at)?;
            for (number, sector) in read.chunks(SECTOR as usize).enumerate() {
                let here = at + number as u64 * SECTOR;
                if sector.len() >= HEADER
                    && sector[..HEADER] != [0; HEADER]
                    && let Found::Frame(head, _) = self.frame_at(here)?
                    && head.number >= least
                {
                    return Ok(Some(here));
                }
            }
            at += (length as u64).next_multiple_of(SECTOR);
        }
        Ok(None)
    }

    /// Makes everything at and behind `offset` zeros: what a torn frame left. Overwriting keeps the space that is set aside,
    /// which a full disk would not give back after a cut.
    pub fn clear_from(&self, offset: u64) -> Result<(), WalError> {
        let mut at = offset;
        let mut buffer = vec![0; 1 << 16];
        let mut cleared = false;
        while let Some(data) = self.file.next_data(at).map_err(WalError::io("search", &self.name))? {
            at = at.max(data);
            let length = (self.size - at).min(buffer.len() as u64) as usize;
            self.read(&mut buffer[..length], at)?;
            if buffer[..length] != vec![0; length] {
                buffer[..length].fill(0);
                self.file.write_at(&buffer[..length], at).map_err(WalError::io("clear", &self.name))?;
                cleared = true;
            }
            at += length as u64;
        }
        if cleared {
            tracing::info!(
                file = self.name,
                offset,
                "the log's last frame was torn and is dropped: nobody was told of it"
            );
            self.file.sync().map_err(WalError::io("sync", &self.name))?;
        }
        Ok(())
    }
}
