//! What may be asked of the store, and what it answers.

use std::sync::Arc;

use coracle_base::{Level, Revision};
use serde_json::Value;

use crate::{Key, Object};

/// What must hold of the stored object for an operation to go ahead.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expect {
    /// `metadata.uid` must be this.
    pub uid: Option<Arc<str>>,
    /// `metadata.resourceVersion` must be this.
    pub revision: Option<Revision>,
}

/// One change to one object. Everything that differs between servers (time, uids, random names, addresses) is put in by
/// the proposer; apply invents nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// The object must not exist. `value` is complete but for `metadata.resourceVersion` and `metadata.generation`,
    /// which apply sets. `claims` are names only one object in the cluster may hold (`clusterip/10.43.0.7`); they
    /// are freed when the object goes.
    Create {
        /// Where.
        key: Key,
        /// The JSON tree, with `metadata.uid` and `metadata.creationTimestamp`.
        value: Arc<Value>,
        /// Cluster-wide unique names taken by this object.
        claims: Vec<String>,
    },
    /// Replaces the object. A value equal to what is stored changes nothing and takes no revision. When anything outside
    /// `metadata` and `status` differs (or `metadata.deletionTimestamp` appears), apply raises `metadata.generation`.
    Update {
        /// Where.
        key: Key,
        /// Preconditions.
        expect: Expect,
        /// The whole new tree.
        value: Arc<Value>,
        /// `Some` replaces the object's claims, `None` keeps them.
        claims: Option<Vec<String>>,
    },
    /// Replaces `.status` alone, whatever the revision: reports of agents and controllers. An equal status takes no
    /// revision. An object that is gone, or that has another uid, is answered with `Outcome::Skipped`, not an error.
    Status {
        /// Where.
        key: Key,
        /// Only an object with this uid.
        uid: Arc<str>,
        /// The whole new `.status`.
        status: Arc<Value>,
    },
    /// Binds a pod to a node, checked again against the state of the moment: the pod must be unbound and not being
    /// deleted, the node must exist, be schedulable and have the room. Sets `.spec.nodeName` and the
    /// `PodScheduled` condition (`lastTransitionTime` = `at`).
    Bind {
        /// The pod.
        key: Key,
        /// Only a pod with this uid.
        uid: Arc<str>,
        /// The node's name.
        node: Arc<str>,
        /// RFC 3339, seconds, UTC.
        at: Arc<str>,
    },
    /// Removes the object, for good (finalizers and graceful deletion are decided before this is proposed).
    Delete {
        /// Where.
        key: Key,
        /// Preconditions.
        expect: Expect,
    },
    /// Raises the cluster epoch: restore, forced recovery.
    RaiseEpoch,
    /// Raises the cluster level: from here on commands of this level may follow. It never falls; the leader alone proposes this, when
    /// every server is of that level. Takes no revision. Since level 2.
    RaiseLevel {
        /// The new one; one that is not higher changes nothing.
        level: Level,
    },
}

impl Op {
    /// The cluster level from which on this may be proposed.
    #[must_use]
    pub fn level(&self) -> Level {
        match self {
            Self::Create { .. }
            | Self::Update { .. }
            | Self::Status { .. }
            | Self::Bind { .. }
            | Self::Delete { .. }
            | Self::RaiseEpoch => 1,
            // What is reached already may be said again.
            Self::RaiseLevel { level } => *level.max(&2),
        }
    }
}

/// All of its operations happen, at consecutive revisions, or none.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Transaction {
    /// In this order.
    pub ops: Vec<Op>,
}

impl Transaction {
    /// The cluster level from which on this may be proposed.
    #[must_use]
    pub fn level(&self) -> Level {
        self.ops.iter().map(Op::level).max().unwrap_or(1)
    }
}

impl From<Op> for Transaction {
    fn from(op: Op) -> Self {
        Self { ops: vec![op] }
    }
}

/// What one operation did.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The object as it is now stored.
    Stored(Arc<Object>),
    /// Nothing differed; the object as it was.
    Unchanged(Arc<Object>),
    /// The object as it was before it went.
    Deleted(Arc<Object>),
    /// Not applicable any more, by design (a late status of a pod that is gone).
    Skipped,
    /// Done, with no object to show.
    Done,
}

/// Why a transaction was refused. The index says which of its operations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Create of what is there.
    #[error("{0} already exists")]
    Exists(Key),
    /// Update or delete of what is not there.
    #[error("{0} not found")]
    Missing(Key),
    /// The revision precondition failed.
    #[error("{key} has changed: it is at resourceVersion {actual}, the request was made for {expected}")]
    Conflict {
        /// Which object.
        key: Key,
        /// What the request was made for.
        expected: Revision,
        /// What is stored.
        actual: Revision,
    },
    /// The uid precondition failed: another object now bears the name.
    #[error("{key} is another object now: its uid is {actual}, the request was made for {expected}")]
    OtherUid {
        /// Which object.
        key: Key,
        /// What the request was made for.
        expected: Arc<str>,
        /// What is stored.
        actual: Arc<str>,
    },
    /// A unique name is taken.
    #[error("{claim} is taken by {holder}")]
    Claimed {
        /// The name.
        claim: String,
        /// Who has it.
        holder: Key,
    },
    /// A binding no longer holds (full, cordoned, gone, bound already).
    #[error("{pod} cannot be bound to {node}: {reason}")]
    Unbindable {
        /// The pod.
        pod: Key,
        /// The node.
        node: Arc<str>,
        /// In words.
        reason: String,
    },
    /// The value is not an object of its key (wrong name, no uid, not JSON object).
    #[error("{key}: {reason}")]
    Malformed {
        /// Which object.
        key: Key,
        /// In words.
        reason: String,
    },
}
