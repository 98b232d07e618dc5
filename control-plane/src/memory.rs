//! The replicated memory as the rest of a server sees it: a facility trait, so that sessions and leader tasks can be
//! tested over a plain store, and one place that turns its errors into ours.

use std::future::Future;
use std::pin::Pin;

use coracle_base::{Generation, Revision};
use coracle_store::{Event, Outcome, Rejection, Transaction, View};
use tokio::sync::watch;

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
    /// This server does not lead and cannot forward.
    #[error("there is no leader")]
    NoLeader,
    /// The server's log failed or the server stops.
    #[error("the server is stopping: {0}")]
    Stopped(String),
}

/// Result of one transaction.
pub type Proposed = Result<Vec<Outcome>, ProposeError>;

/// What sessions and leader tasks need of the memory.
pub trait Memory: Send + Sync {
    /// The local state, at once.
    fn view(&self) -> View;
    /// Proposes one transaction.
    fn propose(&self, transaction: Transaction) -> BoxFuture<'_, Proposed>;
    /// Proposes several; each succeeds or fails alone, in order.
    fn propose_many(&self, transactions: Vec<Transaction>) -> BoxFuture<'_, Vec<Proposed>>;
    /// Woken whenever something changed.
    fn changes(&self) -> watch::Receiver<Generation>;
    /// What changed after a revision; `None` when history no longer reaches back so far.
    fn events_after(&self, revision: Revision) -> Option<Vec<Event>>;
}
