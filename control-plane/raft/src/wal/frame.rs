//! The frame: what one group commit writes.

use coracle_store::codec::{CodecError, Reader, Writer};

use super::{Record, SECTOR};

/// Bytes before the payload.
pub(super) const HEADER: usize = 24;

/// Not UTF-8 and not ASCII, so that no object's JSON can pass for a frame.
const MAGIC: [u8; 4] = [0xfe, 0xc0, 0xac, 0xff];

/// Frames larger than this are not ours: a length field gone wild.
const MOST: u64 = 1 << 30;

/// A frame ready to be written, padded to whole sectors.
pub(super) struct Encoded {
    pub bytes: Vec<u8>,
    pub crc: u32,
    /// Where each record starts in `bytes`.
    pub starts: Vec<usize>,
}

pub(super) fn encode(number: u64, before: u32, records: &[Record]) -> Result<Encoded, CodecError> {
    let mut out = Writer::new();
    for byte in [0; HEADER] {
        out.u8(byte);
    }
    let mut starts = Vec::with_capacity(records.len());
    for record in records {
        starts.push(out.len());
        record.write(&mut out)?;
    }
    let mut bytes = out.into_bytes();
    let length = u32::try_from(bytes.len() - HEADER).map_err(|_| CodecError::TooLong("a frame"))?;
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes[16..20].copy_from_slice(&before.to_le_bytes());
    let crc = checksum(&bytes);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    bytes.resize(bytes.len().next_multiple_of(SECTOR as usize), 0);
    Ok(Encoded { bytes, crc, starts })
}

/// The first 24 bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub length: u32,
    pub number: u64,
    pub before: u32,
    pub crc: u32,
}

impl Head {
    /// `None`: no frame begins here.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut input = Reader::new(bytes);
        if input.take(4, "a magic").ok()? != MAGIC {
            return None;
        }
        let length = input.u32("a length").ok()?;
        let number = input.u64("a number").ok()?;
        let before = input.u32("a crc").ok()?;
        let crc = input.u32("a crc").ok()?;
        (u64::from(length) <= MOST).then_some(Self { length, number, before, crc })
    }

    /// Bytes on disk, with the padding.
    pub fn span(&self) -> u64 {
        (HEADER as u64 + u64::from(self.length)).next_multiple_of(SECTOR)
    }
}

/// Over everything but the checksum itself.
pub(super) fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&frame[..20]), &frame[HEADER..])
}

/// The records of a payload, each with its offset in the frame.
pub(super) fn records(frame: &[u8]) -> Result<Vec<(usize, Record)>, CodecError> {
    let mut input = Reader::new(&frame[HEADER..]);
    let mut records = Vec::new();
    while input.left() > 0 {
        let start = frame.len() - input.left();
        records.push((start, Record::read(&mut input)?));
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::{Ballot, Position};

    #[test]
    fn every_flipped_bit_is_noticed() {
        let records_in = vec![
            Record::Ballot(Ballot { term: 3, node: 7, committed: true }),
            Record::Committed(Position { term: 3, node: 7, index: 9 }),
            Record::Truncate(None),
            Record::Truncate(Some(4)),
        ];
        let encoded = encode(5, 77, &records_in).unwrap();
        let head = Head::read(&encoded.bytes).unwrap();
        let used = HEADER + head.length as usize;
        assert_eq!((head.number, head.before, head.span()), (5, 77, encoded.bytes.len() as u64));
        let read: Vec<_> = records(&encoded.bytes[..used]).unwrap().into_iter().map(|(_, record)| record).collect();
        assert_eq!(read, records_in);
        for bit in 0..used * 8 {
            let mut bad = encoded.bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let noticed = match Head::read(&bad) {
                None => true,
                Some(head) if HEADER + head.length as usize > bad.len() => true,
                Some(head) => checksum(&bad[..HEADER + head.length as usize]) != head.crc,
            };
            assert!(noticed, "bit {bit}");
        }
    }
}
