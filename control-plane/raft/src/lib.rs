//! The replicated log: segmented write-ahead log, consensus adapter, batching of proposals, snapshots.
//!
//! `Raft` is what a server holds. Below it: `batch` makes entries of proposals, `adapter` drives the consensus library,
//! `wal` makes entries and votes durable, `snapshots` keeps the state's files, `vault` seals both, `disk` is all any of them asks of the
//! system.
#![forbid(unsafe_code)]

mod adapter;
mod batch;
pub mod disk;
mod finder;
mod forward;
mod groups;
mod handle;
mod identity;
mod inbox;
mod levels;
mod members;
mod membership;
mod peers;
pub mod rescue;
mod sealed;
pub mod snapshots;
pub mod vault;
pub mod wal;
mod wire;

pub use adapter::seed_elections;
pub use batch::{ProposeError, Proposed};
pub use coracle_base::{Level, Release};
pub use handle::{OpenError, Raft, RaftConfig, RaftMetrics};
pub use identity::{Identity, IdentityError, Lock};
pub use members::{Member, Members};
pub use membership::Health;
pub use peers::{Carried, Message, NoPeers, PeerError, Peers};
pub use vault::{KeyError, Vault};
pub use wal::Space;
