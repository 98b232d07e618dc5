//! The network a node should have, the difference to what is there, and the nftables messages that close it.
//!
//! Everything here is values in, values (or message bytes) out; `coracle-netd` talks to the kernel.
#![forbid(unsafe_code)]

mod cidr;
pub mod conntrack;
mod desired;
mod ipam;
pub mod nft;
pub mod overlay;
pub mod rules;
pub mod tables;

pub use cidr::{Cidr, CidrError};
pub use desired::{Clients, Desired, Layout, Protocol, ServiceEntry, ServiceKey};
pub use ipam::{Ipam, IpamError, REST_MS};
pub use overlay::Peer;
pub use tables::{Delta, Observed, Tables};
