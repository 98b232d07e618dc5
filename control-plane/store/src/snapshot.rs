//! The whole state as a sequence of chunks, and back: taken in O(1), encoded at leisure by whoever writes files.
//!
//! A chunk is a run of records `tag u8, length u32, body`: one `head` first, then objects in key order, one `tail` last. Format 2 adds
//! the cluster level to the head; a state of level 1 is written in format 1, for servers of the release before.

use std::sync::Arc;

use bytes::Bytes;
use coracle_base::Generation;

use crate::codec::{CodecError, Reader, Writer};
use crate::store::{State, Words, to_names};
use crate::{Limits, Object, Store, View, codec, hash};

/// The newest format this release writes and reads.
const FORMAT: u16 = 2;

const HEAD: u8 = 1;
const OBJECT: u8 = 2;
const TAIL: u8 = 3;

/// Why a snapshot was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Bytes that are no snapshot of ours.
    #[error("the snapshot cannot be decoded")]
    Codec(#[from] CodecError),
    /// Records out of order, or after the end.
    #[error("the snapshot's records are out of order: {0}")]
    Order(&'static str),
    /// It ended before its tail.
    #[error("the snapshot is incomplete")]
    Incomplete,
    /// What was read is not what was written.
    #[error("the snapshot's state hash is {found:016x}, it was written with {expected:016x}")]
    Hash {
        /// As written.
        expected: u64,
        /// As read.
        found: u64,
    },
}

/// The state of one moment, held for a snapshot: O(1) to take, unaffected by what the store does next.
#[derive(Debug, Clone)]
pub struct Frozen {
    state: State,
    hash: u64,
}

impl Store {
    /// Holds the state of this moment.
    #[must_use]
    pub fn freeze(&self) -> Frozen {
        Frozen { state: self.state().clone(), hash: self.state_hash() }
    }
}

impl Frozen {
    /// The state as readers see it.
    #[must_use]
    pub fn view(&self) -> &View {
        &self.state.view
    }

    /// The state hash.
    #[must_use]
    pub fn state_hash(&self) -> u64 {
        self.hash
    }

    /// The encoding in chunks of about this many bytes (at least one record each).
    pub fn chunks(&self, chunk_bytes: usize) -> impl Iterator<Item = Result<Vec<u8>, CodecError>> + '_ {
        let records = std::iter::once_with(|| self.head())
            .chain(self.state.view.all().map(|object| self.object(object)))
            .chain(std::iter::once_with(|| self.tail()));
        let mut records = records.peekable();
        std::iter::from_fn(move || {
            records.peek()?;
            let mut chunk = Vec::new();
            while chunk.len() < chunk_bytes.max(1) {
                match records.next() {
                    Some(Ok(record)) => chunk.extend_from_slice(&record),
                    Some(Err(error)) => return Some(Err(error)),
                    None => break,
                }
            }
            Some(Ok(chunk))
        })
    }

    fn head(&self) -> Result<Vec<u8>, CodecError> {
        let Generation { epoch, revision } = self.state.view.generation();
        let level = self.state.view.level();
        let mut body = Writer::new();
        body.u16(if level > 1 { FORMAT } else { 1 });
        body.u64(epoch);
        body.u64(revision);
        if level > 1 {
            body.u32(level);
        }
        record(HEAD, body)
    }

    fn object(&self, object: &Object) -> Result<Vec<u8>, CodecError> {
        let mut body = Writer::new();
        codec_key(&mut body, object)?;
        body.blob(object.uid.as_bytes(), "a uid")?;
        body.u64(object.revision);
        let names = self.state.names.get(&object.key).cloned().unwrap_or_default();
        codec::write_claims(&mut body, &names)?;
        body.blob(&object.json, "an object")?;
        record(OBJECT, body)
    }

    fn tail(&self) -> Result<Vec<u8>, CodecError> {
        let mut body = Writer::new();
        body.u64(self.state.view.len() as u64);
        body.u64(self.hash);
        record(TAIL, body)
    }
}

fn codec_key(out: &mut Writer, object: &Object) -> Result<(), CodecError> {
    codec::write_key(out, &object.key)
}

fn record(tag: u8, body: Writer) -> Result<Vec<u8>, CodecError> {
    let mut out = Writer::new();
    out.u8(tag);
    out.blob(&body.into_bytes(), "a record")?;
    Ok(out.into_bytes())
}

/// Takes chunks in order and gives the store.
#[derive(Debug, Default)]
pub struct Restore {
    state: State,
    words: Words,
    started: bool,
    tail: Option<(u64, u64)>,
}

impl Restore {
    /// Nothing read yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next chunk.
    ///
    /// # Errors
    /// It is not the next chunk of a snapshot of ours.
    pub fn chunk(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let mut input = Reader::new(bytes);
        while input.left() > 0 {
            let tag = input.u8("a record's tag")?;
            let mut body = Reader::new(input.blob("a record")?);
            self.record(tag, &mut body)?;
            body.end("a record")?;
        }
        Ok(())
    }

    fn record(&mut self, tag: u8, body: &mut Reader<'_>) -> Result<(), SnapshotError> {
        if self.tail.is_some() {
            return Err(SnapshotError::Order("something follows the tail"));
        }
        if self.started != (tag != HEAD) {
            return Err(SnapshotError::Order("the head must come first, once"));
        }
        match tag {
            HEAD => self.head(body)?,
            OBJECT => self.object(body)?,
            TAIL => self.tail = Some((body.u64("the number of objects")?, body.u64("the state hash")?)),
            unknown => return Err(CodecError::UnknownCommand(unknown).into()),
        }
        Ok(())
    }

    fn head(&mut self, body: &mut Reader<'_>) -> Result<(), CodecError> {
        let found = body.u16("the format number")?;
        if found == 0 || found > FORMAT {
            return Err(CodecError::Format { found });
        }
        let (epoch, revision) = (body.u64("the epoch")?, body.u64("the revision")?);
        self.state.view.set_generation(Generation { epoch, revision });
        if found > 1 {
            self.state.view.raise_level(body.u32("the cluster level")?);
        }
        self.started = true;
        Ok(())
    }

    fn object(&mut self, body: &mut Reader<'_>) -> Result<(), SnapshotError> {
        let key = self.words.share(&codec::read_key(body)?);
        let uid: Arc<str> = body.shared("a uid")?;
        let revision = body.u64("a revision")?;
        let names = to_names(&codec::read_claims(body)?);
        let json = Bytes::copy_from_slice(body.blob("an object")?);
        if self.state.view.get(&key).is_some() {
            return Err(SnapshotError::Order("an object comes twice"));
        }
        let object = Arc::new(Object::new(key, uid, revision, json));
        self.state.sum = self.state.sum.wrapping_add(hash::of_object(&object, &names));
        self.state.view.insert(&object);
        for name in names.iter() {
            self.state.holders.insert(name.clone(), object.key.clone());
        }
        if !names.is_empty() {
            self.state.names.insert(object.key.clone(), names);
        }
        Ok(())
    }

    /// The store, once every chunk was given.
    ///
    /// # Errors
    /// Chunks are missing, or the state is not the one written.
    pub fn finish(self, limits: Limits) -> Result<Store, SnapshotError> {
        let (objects, expected) = self.tail.ok_or(SnapshotError::Incomplete)?;
        if objects != self.state.view.len() as u64 {
            return Err(SnapshotError::Incomplete);
        }
        let store = Store::from_state(self.state, self.words, limits);
        let found = store.state_hash();
        if found == expected { Ok(store) } else { Err(SnapshotError::Hash { expected, found }) }
    }
}
