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

/// Whose connections an entry is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Clients {
    /// Everybody's, but for those of pods and of this node where there is another entry for them.
    #[default]
    All,
    /// Pods' and this node's own.
    Inside,
}

/// One port of one address that a service is reached at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// The address: the service's own, or one of this node's or of the outside that is led here.
    pub vip: Ipv4Addr,
    /// Its protocol.
    pub proto: Protocol,
    /// The port at that address.
    pub port: u16,
    /// Whose connections are meant.
    pub clients: Clients,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.vip, self.port, self.proto)
    }
}

/// One port of one address that a service is reached at, and where its connections go. A service with three ports and two
/// addresses is six entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEntry {
    /// The address.
    pub vip: Ipv4Addr,
    /// The port at that address.
    pub port: u16,
    /// Its protocol.
    pub proto: Protocol,
    /// Whose connections are meant.
    pub clients: Clients,
    /// Ready endpoints (address and target port), in any order. None: connections are refused.
    pub backends: Vec<(Ipv4Addr, u16)>,
    /// A client comes to the same endpoint again until it has made no connection for so many seconds.
    pub affinity_s: Option<u32>,
    /// Only clients from these blocks may connect; the others hear nothing. `None`: everybody may.
    pub allowed: Option<Vec<Cidr>>,
}

impl ServiceEntry {
    /// An entry for everybody, whose every connection may go to another endpoint.
    pub fn new(vip: Ipv4Addr, port: u16, proto: Protocol, backends: Vec<(Ipv4Addr, u16)>) -> ServiceEntry {
        ServiceEntry { vip, port, proto, clients: Clients::All, backends, affinity_s: None, allowed: None }
    }

    /// The key under which the entry stands in the kernel's maps.
    pub fn key(&self) -> ServiceKey {
        ServiceKey { vip: self.vip, proto: self.proto, port: self.port, clients: self.clients }
    }
}

/// Everything the packet filter should do for services. The whole truth each time: what is missing here is removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// All ports of all addresses of services, in any order. Of two entries with one key the later counts.
    pub services: Vec<ServiceEntry>,
    /// Ports of this node that are pods' alone: they come before services'.
    pub host_ports: Vec<ServiceEntry>,
    /// Service addresses that this node answers itself (the name server's): they become addresses of the bridge and
    /// entries for them in `services` are skipped.
    pub local_vips: Vec<Ipv4Addr>,
}
