//! One server process: assembly, proposer, agent sessions and the tasks of the leader.
#![forbid(unsafe_code)]

pub mod backup;
mod beats;
pub mod bootstrap;
pub mod cidr;
mod cluster;
pub mod inside;
pub mod join;
pub mod kubeconfig;
mod leader;
mod memory;
mod now;
pub mod passphrase;
mod peers;
pub mod pki;
pub mod server;
mod servers;
pub mod sessions;

pub use coracle_protocol::PROTOCOL;
pub use coracle_raft::Member;
pub use coracle_raft::vault as storage;
pub use leader::Work;
pub use memory::ServerStatus;
