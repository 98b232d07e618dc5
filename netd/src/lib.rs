//! Makes this node's links, routes and nftables table match what is desired: observe, diff, apply, doctor.
//!
//! One owner thread does all netlink work, in the network namespace it was started for. [`Netd`] is a handle to it.
#![forbid(unsafe_code)]

mod doctor;
mod error;
mod firewall;
mod firewalld;
mod handle;
mod links;
mod namespace;
mod overlay;
mod owner;
mod pod_mtu;
mod probe;
mod reaper;
mod settings;
mod socket;
mod sweeper;
mod tunnel;

pub use coracle_net_model::{Cidr, Clients, Desired, Ipam, IpamError, Peer, Protocol, ServiceEntry};
pub use doctor::missing;
pub use error::NetError;
pub use handle::{Finding, NetConfig, Netd, NodeLink, PodLink, Report, VNI, VXLAN_PORT};
