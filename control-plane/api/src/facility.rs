//! What the door needs of the rest of a server, as traits: the memory, and the logs of containers.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use coracle_base::{Generation, Revision};
use coracle_store::{Event, Outcome, Rejection, Transaction, View};
use tokio::sync::{mpsc, watch};

use crate::who::Who;

/// A boxed future, for traits that are used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Why a proposal came to nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ProposeError {
    /// The store refused operation `index`.
    #[error("{rejection}")]
    Rejected {
        /// Which operation of the transaction.
        index: usize,
        /// Why.
        rejection: Rejection,
    },
    /// Too much is queued already.
    #[error("the server is busy: its queue of proposals is full")]
    Busy,
    /// The log's disk is full: only deletions and status are accepted.
    #[error(
        "the disk of the cluster's log is full\nhint: free space below the data directory, or delete objects (deletions still work)"
    )]
    DiskFull,
    /// Not every server knows the command yet.
    #[error("{0}")]
    Early(String),
    /// This server does not lead and cannot forward.
    #[error("there is no leader")]
    NoLeader,
    /// The leader was lost while the change was under way.
    #[error(
        "the leader was lost while the change was under way: it may have happened or not\nhint: look, then try again"
    )]
    Uncertain,
    /// The server's log failed or the server stops.
    #[error("the server is stopping: {0}")]
    Stopped(String),
}

/// Result of one transaction.
pub type Proposed = Result<Vec<Outcome>, ProposeError>;

/// The replicated memory.
pub trait Memory: Send + Sync {
    /// The local state, at once.
    fn view(&self) -> View;
    /// A state that is at least as new as every write acknowledged before the call.
    fn read_barrier(&self) -> BoxFuture<'_, Result<View, ProposeError>>;
    /// Proposes one transaction.
    fn propose(&self, transaction: Transaction) -> BoxFuture<'_, Proposed>;
    /// Proposes several; each succeeds or fails alone, in order.
    fn propose_many(&self, transactions: Vec<Transaction>) -> BoxFuture<'_, Vec<Proposed>>;
    /// Woken whenever something changed.
    fn changes(&self) -> watch::Receiver<Generation>;
    /// What changed after a revision, of one resource or of all; `None` when history no longer reaches back so far.
    fn events_after(&self, revision: Revision, resource: Option<&str>) -> Option<Vec<Event>>;
}

/// Which log, and how much of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// The node that has it.
    pub node: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub uid: String,
    /// The container's name.
    pub container: String,
    /// Go on as more is written.
    pub follow: bool,
    /// The run before this one.
    pub previous: bool,
    /// Start lines with their time.
    pub timestamps: bool,
    /// Only the last lines.
    pub tail_lines: Option<u64>,
    /// Only what is younger, milliseconds since 1970.
    pub since_ms: Option<u64>,
    /// At most so many bytes.
    pub limit_bytes: Option<u64>,
}

/// A server of the cluster, as administrators see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerEntry {
    /// Its number.
    pub id: u64,
    /// Its machine.
    pub name: String,
    /// Where agents and servers reach it: `host:port`; empty while it is alone on the loopback.
    pub address: String,
    /// Where its API is: `https://host:port`; empty when that is not known.
    pub api: String,
    /// Whether it leads.
    pub leader: bool,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it is the one that answers.
    pub here: bool,
}

/// Log text as it comes; an `Err` says why it ended.
pub type LogChunks = mpsc::Receiver<Result<Bytes, String>>;

/// Everything the door needs.
pub trait Cluster: Memory {
    /// Opens a container's log; the error is for people.
    fn logs(&self, query: LogQuery) -> BoxFuture<'_, Result<LogChunks, String>>;

    /// Whose a bearer token is; `None` when it is nobody's. No tokens are given out yet, so by default nobody has one.
    fn holder<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Option<Who>> {
        let _ = token;
        Box::pin(std::future::ready(None))
    }

    /// The whole state of this moment, as a backup file; the error is for people.
    fn backup(&self) -> BoxFuture<'_, Result<LogChunks, String>> {
        Box::pin(std::future::ready(Err("there is nothing to back up here".to_owned())))
    }

    /// The certificate of the cluster's authority, PEM: for a machine that is about to join. `None`: nobody can.
    fn authority(&self) -> Option<String> {
        None
    }

    /// Lets a machine in, or refuses with an HTTP status and words. Whoever asks has shown nothing but what is in the body.
    fn join<'a>(&'a self, body: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, (u16, String)>> {
        let _ = body;
        Box::pin(std::future::ready(Err((404, "nobody can join here".to_owned()))))
    }

    /// The cluster's servers.
    fn servers(&self) -> Vec<ServerEntry> {
        Vec::new()
    }

    /// Takes a server out of the cluster for good, or refuses with an HTTP status and words: 404 there is none of this number, 409
    /// it cannot go, 503 nobody could be asked.
    fn remove_server(&self, id: u64) -> BoxFuture<'_, Result<(), (u16, String)>> {
        Box::pin(std::future::ready(Err((404, format!("there is no server {id:016x}")))))
    }
}
