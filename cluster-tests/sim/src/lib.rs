//! The simulator of the replicated control plane: real servers (log, consensus, store) on one thread, in virtual time, over disks
//! that lose power and a network that loses messages. Each server has a paused runtime of its own: it is frozen by not running it,
//! and crashes by being dropped. A run is chosen by its seed.
//!
//! What a seed decides: delays, losses, cuts, crashes and what they leave on disk, freezes, what clients do. What it does not:
//! tokio's `select!` takes its branches in an order of its own, and the consensus library draws election timeouts from the system; a
//! replay has the same faults at the same moments and mostly, not always, the same leaders.
#![forbid(unsafe_code)]

mod clients;
pub mod disk;
pub mod invariants;
mod lease;
pub mod network;
mod oracle;
mod world;

pub use world::{Broken, Report, Settings, run};

/// A mistake that is made on purpose, to show that it is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The log's disk forgets to sync.
    SkipFsync,
    /// Votes are not written.
    SkipVotePersist,
    /// A watcher misses an event now and then.
    DropWatchEvent,
    /// A fenced pod is moved before the lease of its node is over.
    DoubleGrant,
}
