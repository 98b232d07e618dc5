//! One server process: assembly, proposer, agent sessions and the tasks of the leader.
#![forbid(unsafe_code)]

pub mod cidr;
pub mod kubeconfig;
pub mod memory;
mod now;
pub mod pki;
pub mod sessions;
