//! The node's name server: answers for the cluster's names from the table it is given, forwards all others.
//!
//! Own bounded UDP and TCP loops; `hickory-proto` reads and writes the wire format and nothing else.
#![forbid(unsafe_code)]

mod cache;
mod config;
mod forward;
mod message;
mod metrics;
mod resolv;
mod server;
mod sockets;
mod upstream;

pub use config::{DnsConfig, DnsError, Upstreams};
pub use coracle_zone::{Endpoint, PodRecord, Port, ServiceRecord, Target, Zone, ZoneError, ZoneInput};
pub use metrics::MetricsSnapshot;
pub use resolv::nameservers;
pub use server::DnsServer;
