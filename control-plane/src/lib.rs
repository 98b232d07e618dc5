//! One server process: assembly, proposer, agent sessions and the tasks of the leader.
#![forbid(unsafe_code)]

pub mod bootstrap;
pub mod cidr;
mod cluster;
pub mod kubeconfig;
mod leader;
mod memory;
mod now;
pub mod pki;
pub mod server;
pub mod sessions;

pub use coracle_protocol::PROTOCOL;
pub use leader::Work;
