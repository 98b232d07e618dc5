//! What is written: the records of the log and their bytes.

use bytes::Bytes;
use coracle_store::codec::{CodecError, Reader, Writer};

/// Where an entry stands: its index, and the leader (term and server) that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position {
    /// The leader's term.
    pub term: u64,
    /// The leader.
    pub node: u64,
    /// The index in the log.
    pub index: u64,
}

/// A vote: for whom, in which term, and whether a majority agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ballot {
    /// The term.
    pub term: u64,
    /// The candidate.
    pub node: u64,
    /// A majority granted it.
    pub committed: bool,
}

/// What an entry says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload {
    /// A new leader's first entry.
    Blank,
    /// Commands for the store, in the store's encoding.
    Commands(Bytes),
    /// Who belongs to the cluster, in the encoding of `members`.
    Members(Bytes),
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands.
    pub at: Position,
    /// What it says.
    pub payload: Payload,
}

impl Entry {
    /// About how many bytes of memory it takes.
    #[must_use]
    pub fn weight(&self) -> usize {
        let payload = match &self.payload {
            Payload::Blank => 0,
            Payload::Commands(bytes) | Payload::Members(bytes) => bytes.len(),
        };
        size_of::<Self>() + payload
    }
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// The next entry.
    Entry(Entry),
    /// The vote.
    Ballot(Ballot),
    /// Entries up to here are committed.
    Committed(Position),
    /// Entries behind this index are no more; `None`: all that are not purged.
    Truncate(Option<u64>),
    /// Entries up to here are in a snapshot and no more here.
    Purge(Position),
}

const ENTRY: u8 = 1;
const BALLOT: u8 = 2;
const COMMITTED: u8 = 3;
const TRUNCATE: u8 = 4;
const PURGE: u8 = 5;

const BLANK: u8 = 0;
const COMMANDS: u8 = 1;
const MEMBERS: u8 = 2;

impl Record {
    pub(super) fn write(&self, out: &mut Writer) -> Result<(), CodecError> {
        let mut body = Writer::new();
        let kind = match self {
            Self::Entry(entry) => {
                write_entry(&mut body, entry)?;
                ENTRY
            }
            Self::Ballot(ballot) => {
                write_ballot(&mut body, *ballot);
                BALLOT
            }
            Self::Committed(at) => {
                write_position(&mut body, *at);
                COMMITTED
            }
            Self::Truncate(keep) => {
                body.option(*keep, |body, keep| {
                    body.u64(keep);
                    Ok(())
                })?;
                TRUNCATE
            }
            Self::Purge(upto) => {
                write_position(&mut body, *upto);
                PURGE
            }
        };
        out.u8(kind);
        out.blob(&body.into_bytes(), "a record")
    }

    pub(super) fn read(input: &mut Reader<'_>) -> Result<Self, CodecError> {
        let kind = input.u8("a record's kind")?;
        let mut body = Reader::new(input.blob("a record")?);
        let record = match kind {
            ENTRY => Self::Entry(read_entry(&mut body)?),
            BALLOT => Self::Ballot(read_ballot(&mut body)?),
            COMMITTED => Self::Committed(read_position(&mut body)?),
            TRUNCATE => Self::Truncate(body.option("whether an index follows", |body| body.u64("an index"))?),
            PURGE => Self::Purge(read_position(&mut body)?),
            unknown => return Err(CodecError::UnknownCommand(unknown)),
        };
        body.end("a record")?;
        Ok(record)
    }
}

pub(crate) fn write_entry(body: &mut Writer, entry: &Entry) -> Result<(), CodecError> {
    write_position(body, entry.at);
    let (kind, bytes): (u8, &[u8]) = match &entry.payload {
        Payload::Blank => (BLANK, &[]),
        Payload::Commands(bytes) => (COMMANDS, bytes),
        Payload::Members(bytes) => (MEMBERS, bytes),
    };
    body.u8(kind);
    body.blob(bytes, "an entry")
}

pub(crate) fn write_ballot(body: &mut Writer, ballot: Ballot) {
    body.u64(ballot.term);
    body.u64(ballot.node);
    body.u8(u8::from(ballot.committed));
}

pub(crate) fn read_ballot(body: &mut Reader<'_>) -> Result<Ballot, CodecError> {
    Ok(Ballot {
        term: body.u64("a term")?,
        node: body.u64("a server")?,
        committed: body.flag("whether the vote is committed")?,
    })
}

pub(crate) fn read_entry(body: &mut Reader<'_>) -> Result<Entry, CodecError> {
    let at = read_position(body)?;
    let kind = body.u8("an entry's kind")?;
    let bytes = body.blob("an entry")?;
    let payload = match kind {
        BLANK => Payload::Blank,
        COMMANDS => Payload::Commands(Bytes::copy_from_slice(bytes)),
        MEMBERS => Payload::Members(Bytes::copy_from_slice(bytes)),
        value => return Err(CodecError::Value { what: "an entry's kind", value }),
    };
    Ok(Entry { at, payload })
}

pub(crate) fn write_position(out: &mut Writer, at: Position) {
    out.u64(at.term);
    out.u64(at.node);
    out.u64(at.index);
}

pub(crate) fn read_position(input: &mut Reader<'_>) -> Result<Position, CodecError> {
    Ok(Position { term: input.u64("a term")?, node: input.u64("a server")?, index: input.u64("an index")? })
}
