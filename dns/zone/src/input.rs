//! What a zone is built from, in plain values.

use std::net::Ipv4Addr;

/// Everything the zone knows. Names are as the cluster stores them (lower-case labels).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ZoneInput {
    /// The zone's name without a trailing dot, `cluster.local`.
    pub domain: String,
    /// Serial of the SOA record; any number that grows with changes.
    pub serial: u32,
    /// The name server's own address, answered for `ns.dns.<domain>`.
    pub nameserver: Option<Ipv4Addr>,
    /// Address blocks of the cluster (network, prefix length): a reverse question for an address in one of them that has
    /// no name is answered here, any other is not ours.
    pub reverse_blocks: Vec<(Ipv4Addr, u8)>,
    /// All services.
    pub services: Vec<ServiceRecord>,
    /// All pods that have an address (`a-b-c-d.ns.pod.<domain>`). Several may share one address (host network).
    pub pods: Vec<PodRecord>,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRecord {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What its name stands for.
    pub target: Target,
}

/// What a service's name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// One address that is the service's own.
    Cluster {
        /// The service's cluster address.
        address: Ipv4Addr,
        /// The service's ports; only named ones get SRV records.
        ports: Vec<Port>,
    },
    /// The addresses of its endpoints. With none the name does not exist.
    Headless {
        /// The endpoints that count (the feeder applies readiness and publishNotReadyAddresses).
        endpoints: Vec<Endpoint>,
    },
    /// Another name (ExternalName), inside or outside the zone.
    External {
        /// The name it is an alias of.
        name: String,
    },
}

/// A port of a service or of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The port's name; empty when it has none.
    pub name: String,
    /// `tcp`, `udp` or `sctp`, in any case.
    pub protocol: String,
    /// The number.
    pub port: u16,
}

/// One endpoint of a headless service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The endpoint's address.
    pub address: Ipv4Addr,
    /// The pod's hostname when it asked for one; otherwise the dashed address is used.
    pub hostname: Option<String>,
    /// The endpoint's ports.
    pub ports: Vec<Port>,
}

/// One pod's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRecord {
    /// The pod's namespace.
    pub namespace: String,
    /// Its address.
    pub address: Ipv4Addr,
}
