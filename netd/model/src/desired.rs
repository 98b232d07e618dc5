//! What the services of the cluster want from this node's packet filter, in plain values.

use std::fmt;
use std::net::Ipv4Addr;

use crate::Cidr;

/// Names and address blocks that the rules are made of. Two clusters on one machine differ in `table` and `bridge`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Name of the nftables table (family ip) that is ours alone.
    pub table: String,
    /// Name of the bridge the pods hang on.
    pub bridge: String,
    /// This node's pod addresses.
    pub node_cidr: Cidr,
    /// All pod addresses of the cluster.
    pub cluster_cidr: Cidr,
    /// All service addresses of the cluster.
    pub service_cidr: Cidr,
}

/// A transport protocol a service may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// Transmission control protocol.
    Tcp,
    /// User datagram protocol.
    Udp,
}

impl Protocol {
    /// The protocol's number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        }
    }

    /// The protocol of a number in the IP header.
    pub fn from_number(number: u8) -> Option<Protocol> {
        match number {
            6 => Some(Protocol::Tcp),
            17 => Some(Protocol::Udp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// One port of one service address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The service's cluster address.
    pub vip: Ipv4Addr,
    /// Its protocol.
    pub proto: Protocol,
    /// The service's port.
    pub port: u16,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.vip, self.port, self.proto)
    }
}

/// One port of a service and where its connections go. A service with three ports is three entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEntry {
    /// The service's cluster address.
    pub vip: Ipv4Addr,
    /// The service's port.
    pub port: u16,
    /// Its protocol.
    pub proto: Protocol,
    /// Ready endpoints (address and target port), in any order. None: connections are refused.
    pub backends: Vec<(Ipv4Addr, u16)>,
}

impl ServiceEntry {
    /// The key under which the entry stands in the kernel's maps.
    pub fn key(&self) -> ServiceKey {
        ServiceKey { vip: self.vip, proto: self.proto, port: self.port }
    }
}

/// Everything the packet filter should do for services. The whole truth each time: what is missing here is removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// All ports of all services with a cluster address, in any order.
    pub services: Vec<ServiceEntry>,
    /// Service addresses that this node answers itself (the name server's): they become addresses of the bridge and
    /// entries for them in `services` are skipped.
    pub local_vips: Vec<Ipv4Addr>,
}
