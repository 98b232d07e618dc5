//! The consensus library behind our own types: nothing of it is stored, sent or shown outside this folder and `handle`.

mod machine;
mod network;
mod runtime;
mod storage;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use coracle_store::codec::{self, CodecError};
use coracle_store::{Applied, Transaction};
use openraft::vote::leader_id_adv::LeaderId;
use openraft::{LogId, Membership, StoredMembership, Vote};

pub(crate) use machine::{Machine, Shared, SnapshotHandle};
pub(crate) use network::Network;
pub use runtime::seed_elections;
pub(crate) use storage::{LogStore, from_entry};

use crate::members::{Member, Members};
use crate::wal::{Ballot, Position};

openraft::declare_raft_types!(
    /// The types our log is made of.
    pub(crate) Types:
        D = Batch,
        R = Vec<Applied>,
        NodeId = u64,
        Node = Member,
        Term = u64,
        AsyncRuntime = runtime::Runtime,
);

pub(crate) type Engine = openraft::Raft<Types, Machine>;
pub(crate) type CommittedLeader = LeaderId<u64, u64>;
pub(crate) type EngineLogId = LogId<CommittedLeader>;
pub(crate) type EngineMembers = StoredMembership<CommittedLeader, u64, Member>;

/// The commands of one entry, in the store's encoding. A proposer leaves them decoded as well, for the one that applies them
/// first: the log keeps entries for a while, and trees weigh ten times their bytes.
#[derive(Clone)]
pub(crate) struct Batch {
    pub bytes: Bytes,
    decoded: Arc<Mutex<Option<Vec<Transaction>>>>,
}

impl Batch {
    pub fn of(transactions: Vec<Transaction>, bytes: Vec<u8>) -> Self {
        Self { bytes: bytes.into(), decoded: Arc::new(Mutex::new(Some(transactions))) }
    }

    pub fn read(bytes: Bytes) -> Self {
        Self { bytes, decoded: Arc::default() }
    }

    pub fn transactions(&self) -> Result<Vec<Transaction>, CodecError> {
        let decoded = self.decoded.lock().unwrap_or_else(PoisonError::into_inner).take();
        decoded.map_or_else(|| codec::decode(&self.bytes), Ok)
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{self}")
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "commands of {} bytes", self.bytes.len())
    }
}

pub(crate) fn position(id: &EngineLogId) -> Position {
    Position { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub(crate) fn log_id(at: Position) -> EngineLogId {
    LogId { leader_id: LeaderId { term: at.term, node_id: at.node }, index: at.index }
}

pub(crate) fn ballot(vote: &Vote<CommittedLeader>) -> Ballot {
    Ballot { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub(crate) fn vote_of(ballot: Ballot) -> Vote<CommittedLeader> {
    Vote { leader_id: LeaderId { term: ballot.term, node_id: ballot.node }, committed: ballot.committed }
}

pub(crate) fn members_of(membership: &Membership<u64, Member>) -> Members {
    Members {
        voters: membership.get_joint_config().clone(),
        servers: membership.nodes().map(|(node, member)| (*node, member.clone())).collect(),
    }
}

/// A stored list of members is what the library accepted before; one it refuses now is damage.
pub(crate) fn membership_of(members: &Members) -> std::io::Result<Membership<u64, Member>> {
    if members.voters.is_empty() && members.servers.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(members.voters.clone(), members.servers.clone()).map_err(std::io::Error::other)
}
