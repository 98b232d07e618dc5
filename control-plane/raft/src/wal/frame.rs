//! The frame: what one group commit writes.

use coracle_store::codec::{CodecError, Reader, Writer};

use super::{Record, SECTOR};
use crate::vault::{DataKey, NONCE, TAG, random};

/// Bytes before the payload.
pub(super) const HEADER: usize = 24;

/// Not UTF-8 and not ASCII, so that no object's JSON can pass for a frame.
const MAGIC: [u8; 4] = [0xfe, 0xc0, 0xac, 0xff];

/// Frames larger than this are not ours: a length field gone wild.
const MOST: u64 = 1 << 30;

/// What of the header is bound to the records: the number, and the crc of the frame before.
const SEALED_WITH: std::ops::Range<usize> = 8..20;

/// Why there is no frame.
#[derive(Debug, thiserror::Error)]
pub(super) enum EncodeError {
    /// A record is too long.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Nothing can be sealed.
    #[error(transparent)]
    Key(#[from] crate::vault::KeyError),
}

/// A frame ready to be written, padded to whole sectors.
pub(super) struct Encoded {
    pub bytes: Vec<u8>,
    pub crc: u32,
    /// Where each record starts in `bytes`.
    pub starts: Vec<usize>,
}

/// With a key the records are sealed.
pub(super) fn encode(
    number: u64,
    before: u32,
    records: &[Record],
    key: Option<&DataKey>,
) -> Result<Encoded, EncodeError> {
    let mut out = Writer::new();
    out.raw(&[0; HEADER]);
    if key.is_some() {
        out.raw(&random::<NONCE>()?);
    }
    let mut starts = Vec::with_capacity(records.len());
    for record in records {
        starts.push(out.len());
        record.write(&mut out)?;
    }
    let mut bytes = out.into_bytes();
    let tag = if key.is_some() { TAG } else { 0 };
    let length = u32::try_from(bytes.len() + tag - HEADER).map_err(|_| CodecError::TooLong("a frame"))?;
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes[16..20].copy_from_slice(&before.to_le_bytes());
    if let Some(key) = key {
        let (head, payload) = bytes.split_at_mut(HEADER);
        let (nonce, message) = payload.split_at_mut(NONCE);
        let nonce = nonce.first_chunk().copied().unwrap_or_default();
        let tag = key.seal(nonce, &head[SEALED_WITH], message)?;
        bytes.extend_from_slice(&tag);
    }
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

/// Opens a whole frame where it lies: header and records are left. `None`: it is not what was sealed.
pub(super) fn open(frame: &mut Vec<u8>, key: &DataKey) -> Option<()> {
    let (head, payload) = frame.split_at_mut_checked(HEADER)?;
    let (nonce, sealed) = payload.split_at_mut_checked(NONCE)?;
    let length = key.open(*nonce.first_chunk()?, &head[SEALED_WITH], sealed)?;
    frame.copy_within(HEADER + NONCE..HEADER + NONCE + length, HEADER);
    frame.truncate(HEADER + length);
    Some(())
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
        let encoded = encode(5, 77, &records_in, None).unwrap();
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

    #[test]
    fn a_sealed_frame_opens_in_its_place_only() {
        let key = DataKey::new(&[3; 32]).unwrap();
        let records_in = vec![Record::Truncate(Some(4)), Record::Truncate(None)];
        let encoded = encode(5, 77, &records_in, Some(&key)).unwrap();
        let head = Head::read(&encoded.bytes).unwrap();
        let frame = encoded.bytes[..HEADER + head.length as usize].to_vec();
        assert_eq!(checksum(&frame), head.crc);
        let mut plain = frame.clone();
        open(&mut plain, &key).unwrap();
        let read: Vec<_> = records(&plain).unwrap().into_iter().map(|(_, record)| record).collect();
        assert_eq!(read, records_in);
        assert!(open(&mut frame.clone(), &DataKey::new(&[4; 32]).unwrap()).is_none());
        // Somebody who knows how checksums are made changes it, moves it, or puts it behind another one.
        for at in (8..20).chain(HEADER..frame.len()) {
            let mut changed = frame.clone();
            changed[at] ^= 1;
            assert!(open(&mut changed, &key).is_none(), "byte {at}");
        }
        assert_ne!(encode(5, 77, &records_in, Some(&key)).unwrap().bytes, encoded.bytes, "no nonce is used twice");
    }
}
