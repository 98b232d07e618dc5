//! The simulator of the replicated control plane: real servers (log, consensus, store, sessions of agents, controllers, scheduler)
//! on one thread, in virtual time, over disks that lose power and a network that loses messages. Each server has a paused runtime
//! of its own: it is frozen by not running it, and crashes by being dropped. Agents are made here: they speak the real protocol over
//! connections that stall and break, their nodes' clocks run apart, and podmon is a deadline. A run is chosen by its seed.
//!
//! A seed decides all: delays, losses, cuts, crashes and what they leave on disk, freezes, what clients do, when servers call
//! elections. What tokio itself leaves to chance (whom of several it wakes first) takes a seed only when built with `--cfg
//! tokio_unstable`, as `cargo xtask sim` does; under plain `cargo test` a replay has the same faults at the same moments and
//! mostly, not always, the same leaders.
//!
//! ```text
//! cargo xtask sim                             1,000 seeds and the planted bugs, on all processors
//! cargo xtask sim 5000 1000                   seeds 1000 to 5999
//! CORACLE_SIM_SEED=42 cargo xtask sim         one seed again, the same in everything
//! ```
#![forbid(unsafe_code)]

mod agents;
mod clients;
pub mod disk;
pub mod invariants;
mod many;
pub mod network;
mod oracle;
mod server;
mod wires;
mod world;

pub use many::run_many;
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
    /// Whoever has an agent's session grants it leases, whether or not it leads.
    FollowerGrants,
}
