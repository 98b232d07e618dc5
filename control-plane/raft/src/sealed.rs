//! A file that is written once, from its beginning, in sealed blocks; and read anywhere, as if it were plain.
//!
//! ```text
//! file   head (4096 bytes), blocks
//! head   magic (8 bytes), format u16, cluster u128, wrapped data key (76 bytes), bytes in a block u32, crc32c u32, zeros
//! block  up to so many bytes, sealed, and the tag (16 bytes); every block but the last is full
//! nonce  number of the block u64, 1 for the last one and 0 for others u8, zeros
//! ```
//!
//! The last block is sealed as the last: a file that was cut at the end of a block does not open.

use std::sync::Arc;

use coracle_store::codec::{CodecError, Reader, Writer};

use crate::disk::DiskFile;
use crate::vault::{DataKey, NONCE, TAG, Vault, Wrapped};
use crate::wal::WalError;

/// Bytes before the first block.
pub(crate) const HEAD: usize = 4096;
const BLOCK: usize = 256 << 10;
/// A block length beyond it is none of ours.
const MOST: u32 = 16 << 20;

/// What the head of a sealed file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub cluster: u128,
    pub key: Wrapped,
    block: u32,
}

impl Head {
    fn encode(&self, magic: [u8; 8], format: u16) -> Vec<u8> {
        let mut out = Writer::new();
        out.raw(&magic);
        out.u16(format);
        out.u64(self.cluster as u64);
        out.u64((self.cluster >> 64) as u64);
        self.key.write(&mut out);
        out.u32(self.block);
        let mut bytes = out.into_bytes();
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.resize(HEAD, 0);
        bytes
    }

    /// Behind magic and format, which the caller has read; `Ok(None)`: its checksum does not match.
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, CodecError> {
        let mut input = Reader::new(bytes);
        input.take(10, "a magic and a format")?;
        let cluster = u128::from(input.u64("a cluster")?);
        let cluster = cluster | u128::from(input.u64("a cluster")?) << 64;
        let head = Self { cluster, key: Wrapped::read(&mut input)?, block: input.u32("a length")? };
        let covered = bytes.len() - input.left();
        let whole = input.u32("a crc")? == crc32c::crc32c(&bytes[..covered]);
        Ok(Some(head).filter(|head| whole && (1..=MOST).contains(&head.block)))
    }
}

fn nonce(block: u64, last: bool) -> [u8; NONCE] {
    let mut nonce = [0; NONCE];
    nonce[..8].copy_from_slice(&block.to_le_bytes());
    nonce[8] = u8::from(last);
    nonce
}

/// A file being written, sealed or plain.
#[derive(Debug)]
pub(crate) struct Output {
    file: Arc<dyn DiskFile>,
    name: &'static str,
    /// Bytes taken so far.
    pub at: u64,
    sealing: Option<Sealing>,
}

#[derive(Debug)]
struct Sealing {
    key: DataKey,
    number: u64,
    /// Where the next block goes.
    offset: u64,
    block: Vec<u8>,
}

impl Output {
    /// Over a new file; with keys it is sealed.
    pub fn begin(
        file: Arc<dyn DiskFile>,
        name: &'static str,
        (magic, format): ([u8; 8], u16),
        cluster: u128,
        keys: Option<&Vault>,
    ) -> Result<Self, WalError> {
        let mut out = Self { file, name, at: 0, sealing: None };
        if let Some(keys) = keys {
            let (key, wrapped) = keys.data_key()?;
            let head = Head { cluster, key: wrapped, block: BLOCK as u32 };
            out.put(&head.encode(magic, format), 0)?;
            out.sealing = Some(Sealing { key, number: 0, offset: HEAD as u64, block: Vec::with_capacity(BLOCK + TAG) });
        }
        Ok(out)
    }

    fn put(&self, bytes: &[u8], offset: u64) -> Result<(), WalError> {
        self.file.write_at(bytes, offset).map_err(WalError::io("write", self.name))
    }

    /// Takes the next bytes.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), WalError> {
        self.at += bytes.len() as u64;
        if self.sealing.is_none() {
            return self.put(bytes, self.at - bytes.len() as u64);
        }
        while !bytes.is_empty() {
            let held = self.sealing.as_ref().map_or(0, |sealing| sealing.block.len());
            if held == BLOCK {
                // More follows: it is not the last one.
                self.block(false)?;
                continue;
            }
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - held));
            if let Some(sealing) = &mut self.sealing {
                sealing.block.extend_from_slice(now);
            }
            bytes = later;
        }
        Ok(())
    }

    fn block(&mut self, last: bool) -> Result<(), WalError> {
        let Some(sealing) = &mut self.sealing else { return Ok(()) };
        let tag = sealing.key.seal(nonce(sealing.number, last), &[], &mut sealing.block)?;
        sealing.block.extend_from_slice(&tag);
        let offset = sealing.offset;
        self.file.write_at(&sealing.block, offset).map_err(WalError::io("write", self.name))?;
        sealing.offset += sealing.block.len() as u64;
        sealing.number += 1;
        sealing.block.clear();
        Ok(())
    }

    /// That was all: makes it durable. Gives how many bytes it took.
    pub fn finish(mut self) -> Result<u64, WalError> {
        self.block(true)?;
        self.file.sync().map_err(WalError::io("sync", self.name))?;
        Ok(self.at)
    }
}

/// A file being read, sealed or plain.
#[derive(Debug)]
pub(crate) struct Input {
    file: Arc<dyn DiskFile>,
    name: String,
    /// Its length in plain bytes.
    pub size: u64,
    opening: Option<Opening>,
}

#[derive(Debug)]
struct Opening {
    key: DataKey,
    block: u64,
    blocks: u64,
    /// The block opened last.
    opened: Option<(u64, Vec<u8>)>,
}

/// Why a part cannot be read.
pub(crate) enum Unreadable {
    Disk(WalError),
    /// A block that is not what was sealed.
    Damaged,
}

impl Input {
    /// A plain file.
    pub fn plain(file: Arc<dyn DiskFile>, name: String, size: u64) -> Self {
        Self { file, name, size, opening: None }
    }

    /// A sealed file of so many bytes; `None` when no sealed file is as long.
    pub fn sealed(file: Arc<dyn DiskFile>, name: String, size: u64, head: &Head, key: DataKey) -> Option<Self> {
        let (block, sealed) = (u64::from(head.block), u64::from(head.block) + TAG as u64);
        let body = size.checked_sub(HEAD as u64)?;
        let blocks = body.div_ceil(sealed);
        let plain = body.checked_sub(blocks * TAG as u64)?;
        // The last block holds its tag at least.
        if blocks == 0 || body - (blocks - 1) * sealed < TAG as u64 {
            return None;
        }
        Some(Self { file, name, size: plain, opening: Some(Opening { key, block, blocks, opened: None }) })
    }

    /// Fills the buffer from this plain offset; the caller keeps within the size.
    pub fn read_at(&mut self, buffer: &mut [u8], offset: u64) -> Result<(), Unreadable> {
        let disk = |error| Unreadable::Disk(WalError::io("read", &self.name)(error));
        let Some(opening) = &mut self.opening else { return self.file.read_at(buffer, offset).map_err(disk) };
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let number = at / opening.block;
            if opening.opened.as_ref().is_none_or(|(opened, _)| *opened != number) {
                let sealed = opening.block + TAG as u64;
                let last = number + 1 == opening.blocks;
                let length = if last { self.size - number * opening.block + TAG as u64 } else { sealed };
                let mut bytes = vec![0; length as usize];
                self.file.read_at(&mut bytes, HEAD as u64 + number * sealed).map_err(disk)?;
                let length = opening.key.open(nonce(number, last), &[], &mut bytes).ok_or(Unreadable::Damaged)?;
                bytes.truncate(length);
                opening.opened = Some((number, bytes));
            }
            let Some((_, block)) = &opening.opened else { return Err(Unreadable::Damaged) };
            let from = block.get((at % opening.block) as usize..).unwrap_or_default();
            let count = from.len().min(buffer.len() - done);
            if count == 0 {
                return Err(Unreadable::Damaged);
            }
            buffer[done..done + count].copy_from_slice(&from[..count]);
            done += count;
        }
        Ok(())
    }
}
