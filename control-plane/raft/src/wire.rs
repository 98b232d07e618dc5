//! What servers say to each other, in our own encoding: a frame is `format u16, cluster u128, from u64, to u64, the sender's
//! address, its name, its API port u16, kind u8, body`; an answer is `format u16, kind u8, body`.
//!
//! A frame says no more than its format has room for, and a server refuses a format it does not know. What a server can read it
//! states beside every frame (`peers::Message`): a newer frame goes only to one that has stated a level that has it.

use bytes::Bytes;
use coracle_store::Applied;
use coracle_store::codec::{CodecError, Reader, Writer, read_applied, write_applied};

use crate::batch::{ProposeError, Proposed};
use crate::identity::Identity;
use crate::members::{Member, Members};
use crate::wal::record::{read_ballot, read_entry, read_position, write_ballot, write_entry, write_position};
use crate::wal::{Ballot, Entry, Position};

/// The format this release speaks; it understands all before it.
pub(crate) const FORMAT: u16 = 1;

/// Who asks whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub cluster: u128,
    pub from: u64,
    /// 0: whoever is there.
    pub to: u64,
    /// The sender, as it wants to be known.
    pub sender: Member,
}

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    Append {
        vote: Ballot,
        prev: Option<Position>,
        commit: Option<Position>,
        entries: Vec<Entry>,
    },
    Vote {
        pre: bool,
        vote: Ballot,
        last: Option<Position>,
        transfer: bool,
    },
    Transfer {
        from: Ballot,
        to: u64,
        last: Option<Position>,
    },
    Snapshot {
        vote: Ballot,
        index: u64,
        total: u64,
        offset: u64,
        bytes: Bytes,
    },
    /// Transactions, as `coracle_store::codec::encode`.
    Propose {
        transactions: Bytes,
    },
    ReadIndex,
    /// Who are you?
    Hello,
    /// The sender wants to belong to the cluster: first as a learner.
    Join,
    /// This server leaves for good.
    Remove {
        server: u64,
    },
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    Appended,
    AppendedUpTo(Option<Position>),
    Conflict,
    Higher(Ballot),
    Vote {
        vote: Ballot,
        granted: bool,
        last: Option<Position>,
    },
    Transferred(Result<(), String>),
    Snapshot(Ballot),
    /// What came of each, and the entry that holds them all.
    Proposed {
        results: Vec<Proposed>,
        index: u64,
    },
    Read(u64),
    Hello {
        server: u64,
        leader: Option<u64>,
        members: Members,
    },
    Done,
    /// Another server lives here.
    Wrong {
        server: u64,
    },
    WrongCluster,
    NotLeader {
        leader: Option<u64>,
    },
    Failed(String),
}

const APPEND: u8 = 1;
const VOTE: u8 = 2;
const PRE_VOTE: u8 = 3;
const TRANSFER: u8 = 4;
const SNAPSHOT: u8 = 5;
const PROPOSE: u8 = 6;
const READ: u8 = 7;
const HELLO: u8 = 8;
const JOIN: u8 = 9;
const REMOVE: u8 = 10;
const APPENDED_UP_TO: u8 = 11;
const CONFLICT: u8 = 12;
const HIGHER: u8 = 13;
const DONE: u8 = 14;
const WRONG: u8 = 15;
const WRONG_CLUSTER: u8 = 16;
const NOT_LEADER: u8 = 17;
const FAILED: u8 = 18;

fn some_position(out: &mut Writer, at: Option<Position>) -> Result<(), CodecError> {
    out.option(at, |out, at| {
        write_position(out, at);
        Ok(())
    })
}

fn opt_position(input: &mut Reader<'_>) -> Result<Option<Position>, CodecError> {
    input.option("whether a position follows", read_position)
}

impl Header {
    pub fn of(identity: Identity, sender: Member, to: u64) -> Self {
        Self { cluster: identity.cluster, from: identity.node, to, sender }
    }

    fn write(&self, out: &mut Writer) -> Result<(), CodecError> {
        out.u16(FORMAT);
        out.u64(self.cluster as u64);
        out.u64((self.cluster >> 64) as u64);
        out.u64(self.from);
        out.u64(self.to);
        out.blob(self.sender.address.as_bytes(), "an address")?;
        out.blob(self.sender.name.as_bytes(), "a name")?;
        out.u16(self.sender.api_port);
        Ok(())
    }

    fn read(input: &mut Reader<'_>) -> Result<Self, CodecError> {
        format(input)?;
        let cluster = u128::from(input.u64("a cluster")?) | u128::from(input.u64("a cluster")?) << 64;
        Ok(Self {
            cluster,
            from: input.u64("a server")?,
            to: input.u64("a server")?,
            sender: Member {
                address: input.text("an address")?.to_owned(),
                name: input.text("a name")?.to_owned(),
                api_port: input.u16("a port")?,
            },
        })
    }
}

fn format(input: &mut Reader<'_>) -> Result<(), CodecError> {
    match input.u16("the format number")? {
        found if found == 0 || found > FORMAT => Err(CodecError::Format { found }),
        _ => Ok(()),
    }
}

impl Request {
    pub fn encode(&self, header: &Header) -> Result<Vec<u8>, CodecError> {
        let mut out = Writer::new();
        header.write(&mut out)?;
        match self {
            Self::Append { vote, prev, commit, entries } => {
                out.u8(APPEND);
                write_ballot(&mut out, *vote);
                some_position(&mut out, *prev)?;
                some_position(&mut out, *commit)?;
                out.count(entries.len(), "the entries")?;
                entries.iter().try_for_each(|entry| write_entry(&mut out, entry))?;
            }
            Self::Vote { pre, vote, last, transfer } => {
                out.u8(if *pre { PRE_VOTE } else { VOTE });
                write_ballot(&mut out, *vote);
                some_position(&mut out, *last)?;
                out.u8(u8::from(*transfer));
            }
            Self::Transfer { from, to, last } => {
                out.u8(TRANSFER);
                write_ballot(&mut out, *from);
                out.u64(*to);
                some_position(&mut out, *last)?;
            }
            Self::Snapshot { vote, index, total, offset, bytes } => {
                out.u8(SNAPSHOT);
                write_ballot(&mut out, *vote);
                out.u64(*index);
                out.u64(*total);
                out.u64(*offset);
                out.blob(bytes, "a part of a snapshot")?;
            }
            Self::Propose { transactions } => {
                out.u8(PROPOSE);
                out.blob(transactions, "transactions")?;
            }
            Self::ReadIndex => out.u8(READ),
            Self::Hello => out.u8(HELLO),
            Self::Join => out.u8(JOIN),
            Self::Remove { server } => {
                out.u8(REMOVE);
                out.u64(*server);
            }
        }
        Ok(out.into_bytes())
    }

    pub fn decode(bytes: &[u8]) -> Result<(Header, Self), CodecError> {
        let mut input = Reader::new(bytes);
        let header = Header::read(&mut input)?;
        let input = &mut input;
        let request = match input.u8("a request")? {
            APPEND => Self::Append {
                vote: read_ballot(input)?,
                prev: opt_position(input)?,
                commit: opt_position(input)?,
                entries: input.list("the entries", read_entry)?,
            },
            kind @ (VOTE | PRE_VOTE) => Self::Vote {
                pre: kind == PRE_VOTE,
                vote: read_ballot(input)?,
                last: opt_position(input)?,
                transfer: input.flag("whether leadership is handed over")?,
            },
            TRANSFER => {
                Self::Transfer { from: read_ballot(input)?, to: input.u64("a server")?, last: opt_position(input)? }
            }
            SNAPSHOT => Self::Snapshot {
                vote: read_ballot(input)?,
                index: input.u64("an index")?,
                total: input.u64("a length")?,
                offset: input.u64("an offset")?,
                bytes: Bytes::copy_from_slice(input.blob("a part of a snapshot")?),
            },
            PROPOSE => Self::Propose { transactions: Bytes::copy_from_slice(input.blob("transactions")?) },
            READ => Self::ReadIndex,
            HELLO => Self::Hello,
            JOIN => Self::Join,
            REMOVE => Self::Remove { server: input.u64("a server")? },
            unknown => return Err(CodecError::UnknownCommand(unknown)),
        };
        input.end("a request")?;
        Ok((header, request))
    }
}

impl Answer {
    pub fn encode(&self) -> Result<Vec<u8>, CodecError> {
        let mut out = Writer::new();
        out.u16(FORMAT);
        match self {
            Self::Appended => out.u8(APPEND),
            Self::AppendedUpTo(at) => {
                out.u8(APPENDED_UP_TO);
                some_position(&mut out, *at)?;
            }
            Self::Conflict => out.u8(CONFLICT),
            Self::Higher(vote) => {
                out.u8(HIGHER);
                write_ballot(&mut out, *vote);
            }
            Self::Vote { vote, granted, last } => {
                out.u8(VOTE);
                write_ballot(&mut out, *vote);
                out.u8(u8::from(*granted));
                some_position(&mut out, *last)?;
            }
            Self::Transferred(result) => {
                out.u8(TRANSFER);
                out.blob(result.as_ref().err().map_or("", String::as_str).as_bytes(), "a reason")?;
            }
            Self::Snapshot(vote) => {
                out.u8(SNAPSHOT);
                write_ballot(&mut out, *vote);
            }
            Self::Proposed { results, index } => {
                out.u8(PROPOSE);
                out.u64(*index);
                out.count(results.len(), "the results")?;
                results.iter().try_for_each(|result| write_proposed(&mut out, result))?;
            }
            Self::Read(index) => {
                out.u8(READ);
                out.u64(*index);
            }
            Self::Hello { server, leader, members } => {
                out.u8(HELLO);
                out.u64(*server);
                out.u64(leader.unwrap_or(0));
                out.blob(&members.encode()?, "the members")?;
            }
            Self::Done => out.u8(DONE),
            Self::Wrong { server } => {
                out.u8(WRONG);
                out.u64(*server);
            }
            Self::WrongCluster => out.u8(WRONG_CLUSTER),
            Self::NotLeader { leader } => {
                out.u8(NOT_LEADER);
                out.u64(leader.unwrap_or(0));
            }
            Self::Failed(reason) => {
                out.u8(FAILED);
                out.blob(reason.as_bytes(), "a reason")?;
            }
        }
        Ok(out.into_bytes())
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let mut whole = Reader::new(bytes);
        let input = &mut whole;
        format(input)?;
        let leader = |leader: u64| Some(leader).filter(|leader| *leader != 0);
        let answer = match input.u8("an answer")? {
            APPEND => Self::Appended,
            APPENDED_UP_TO => Self::AppendedUpTo(opt_position(input)?),
            CONFLICT => Self::Conflict,
            HIGHER => Self::Higher(read_ballot(input)?),
            VOTE => Self::Vote {
                vote: read_ballot(input)?,
                granted: input.flag("whether a vote is granted")?,
                last: opt_position(input)?,
            },
            TRANSFER => {
                let reason = input.text("a reason")?;
                Self::Transferred(if reason.is_empty() { Ok(()) } else { Err(reason.to_owned()) })
            }
            SNAPSHOT => Self::Snapshot(read_ballot(input)?),
            PROPOSE => {
                Self::Proposed { index: input.u64("an index")?, results: input.list("the results", read_proposed)? }
            }
            READ => Self::Read(input.u64("an index")?),
            HELLO => Self::Hello {
                server: input.u64("a server")?,
                leader: leader(input.u64("a server")?),
                members: Members::decode(input.blob("the members")?)?,
            },
            DONE => Self::Done,
            WRONG => Self::Wrong { server: input.u64("a server")? },
            WRONG_CLUSTER => Self::WrongCluster,
            NOT_LEADER => Self::NotLeader { leader: leader(input.u64("a server")?) },
            FAILED => Self::Failed(input.text("a reason")?.to_owned()),
            unknown => return Err(CodecError::UnknownCommand(unknown)),
        };
        input.end("an answer")?;
        Ok(answer)
    }
}

const APPLIED: u8 = 0;
const BUSY: u8 = 1;
const DISK_FULL: u8 = 2;
const UNCERTAIN: u8 = 3;
const POISONED: u8 = 4;
const STOPPED: u8 = 5;
const ELSEWHERE: u8 = 6;
// Since level 2; only a server of that level proposes what is answered so.
const EARLY: u8 = 7;

fn write_proposed(out: &mut Writer, result: &Proposed) -> Result<(), CodecError> {
    let (tag, reason) = match result {
        Ok(outcomes) => {
            out.u8(APPLIED);
            return write_applied(out, &Ok(outcomes.clone()));
        }
        Err(ProposeError::Rejected { index, rejection }) => {
            out.u8(APPLIED);
            return write_applied(out, &Err((*index, rejection.clone())));
        }
        Err(ProposeError::Early { needs, level }) => {
            out.u8(EARLY);
            out.u32(*needs);
            out.u32(*level);
            return Ok(());
        }
        Err(ProposeError::Busy) => (BUSY, ""),
        Err(ProposeError::DiskFull) => (DISK_FULL, ""),
        Err(ProposeError::Uncertain) => (UNCERTAIN, ""),
        Err(ProposeError::NotLeader { .. }) => (ELSEWHERE, ""),
        Err(ProposeError::Poisoned(reason)) => (POISONED, reason.as_str()),
        Err(ProposeError::Unwritable(_)) => (POISONED, "the change cannot be stored"),
        Err(ProposeError::Stopped) => (STOPPED, ""),
    };
    out.u8(tag);
    out.blob(reason.as_bytes(), "a reason")
}

fn read_proposed(input: &mut Reader<'_>) -> Result<Proposed, CodecError> {
    let tag = input.u8("a result")?;
    if tag == APPLIED {
        let applied: Applied = read_applied(input)?;
        return Ok(applied.map_err(|(index, rejection)| ProposeError::Rejected { index, rejection }));
    }
    if tag == EARLY {
        let (needs, level) = (input.u32("a level")?, input.u32("a level")?);
        return Ok(Err(ProposeError::Early { needs, level }));
    }
    let reason = input.text("a reason")?.to_owned();
    Ok(Err(match tag {
        BUSY => ProposeError::Busy,
        DISK_FULL => ProposeError::DiskFull,
        UNCERTAIN => ProposeError::Uncertain,
        POISONED => ProposeError::Poisoned(reason),
        STOPPED => ProposeError::Stopped,
        ELSEWHERE => ProposeError::NotLeader { leader: None },
        value => return Err(CodecError::Value { what: "a result", value }),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::Payload;
    use std::collections::{BTreeMap, BTreeSet};

    fn at(index: u64) -> Position {
        Position { term: 3, node: 9, index }
    }

    fn ballot() -> Ballot {
        Ballot { term: 3, node: 9, committed: true }
    }

    #[test]
    fn requests_come_back_as_they_went() {
        let sender = Member { address: "a:1".to_owned(), name: "m1".to_owned(), api_port: 6443 };
        let header = Header { cluster: u128::MAX - 5, from: 1, to: 2, sender };
        let entries = vec![
            Entry { at: at(1), payload: Payload::Blank },
            Entry { at: at(2), payload: Payload::Commands(Bytes::from_static(b"xyz")) },
            Entry { at: at(3), payload: Payload::Members(Bytes::from_static(b"m")) },
        ];
        let bytes = Bytes::from_static(b"part");
        for request in [
            Request::Append { vote: ballot(), prev: Some(at(0)), commit: None, entries },
            Request::Vote { pre: true, vote: ballot(), last: Some(at(7)), transfer: false },
            Request::Vote { pre: false, vote: ballot(), last: None, transfer: true },
            Request::Transfer { from: ballot(), to: 3, last: Some(at(1)) },
            Request::Snapshot { vote: ballot(), index: 5, total: 10, offset: 4, bytes: bytes.clone() },
            Request::Propose { transactions: bytes },
            Request::ReadIndex,
            Request::Hello,
            Request::Join,
            Request::Remove { server: 4 },
        ] {
            let bytes = request.encode(&header).unwrap();
            assert_eq!(Request::decode(&bytes).unwrap(), (header.clone(), request));
            for end in 0..bytes.len() {
                assert!(Request::decode(&bytes[..end]).is_err());
            }
        }
    }

    #[test]
    fn answers_come_back_as_they_went() {
        let members = Members { voters: vec![BTreeSet::from([1])], servers: BTreeMap::from([(1, Member::default())]) };
        let results = vec![
            Ok(vec![coracle_store::Outcome::Done]),
            Err(ProposeError::Busy),
            Err(ProposeError::Uncertain),
            Err(ProposeError::Poisoned("io".to_owned())),
        ];
        for answer in [
            Answer::Appended,
            Answer::AppendedUpTo(Some(at(2))),
            Answer::Conflict,
            Answer::Higher(ballot()),
            Answer::Vote { vote: ballot(), granted: true, last: None },
            Answer::Transferred(Err("no".to_owned())),
            Answer::Transferred(Ok(())),
            Answer::Snapshot(ballot()),
            Answer::Proposed { results, index: 8 },
            Answer::Read(4),
            Answer::Hello { server: 1, leader: None, members },
            Answer::Done,
            Answer::Wrong { server: 2 },
            Answer::WrongCluster,
            Answer::NotLeader { leader: Some(3) },
            Answer::Failed("x".to_owned()),
        ] {
            let bytes = answer.encode().unwrap();
            assert_eq!(format!("{:?}", Answer::decode(&bytes).unwrap()), format!("{answer:?}"));
            for end in 0..bytes.len() {
                assert!(Answer::decode(&bytes[..end]).is_err());
            }
        }
    }
}
