//! What an agent must be told at start; everything else it learns from a server or from its ledger.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// The node's certificate (CN `system:node:NAME`, O `system:nodes`), its key, and whom it trusts. All PEM.
#[derive(Clone)]
pub struct Identity {
    /// Certificate chain, leaf first.
    pub cert_pem: String,
    /// PKCS #8 private key.
    pub key_pem: String,
    /// The cluster's authority.
    pub ca_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// Where a server listens for agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerEndpoint {
    /// Host name or address, and port: `127.0.0.1:6444`.
    pub address: String,
}

/// Names of kernel objects, unique per cluster instance on the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkNames {
    /// The bridge the pods hang on, at most 15 characters: `coracle0`.
    pub bridge: String,
    /// The nftables table: `coracle`.
    pub table: String,
}

/// Where an agent serves its images to other nodes by default.
pub const BLOB_LISTEN: SocketAddr = SocketAddr::V4(std::net::SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 6445));

/// Everything an agent must be told.
#[derive(Debug, Clone)]
pub struct AgentConfig {
    /// The node's name, as in its certificate.
    pub node_name: String,
    /// Survives a reboot: ledger, images, logs, emptyDir volumes.
    pub data_dir: PathBuf,
    /// On a tmpfs: podmons' sockets and journals, Secrets, tmpfs volumes.
    pub run_dir: PathBuf,
    /// Servers to dial, tried in turn.
    pub servers: Vec<ServerEndpoint>,
    /// Who we are.
    pub identity: Identity,
    /// Names of bridge and table.
    pub network: NetworkNames,
    /// The cgroup subtree the pods live in: `coracle`.
    pub cgroup_name: String,
    /// The address other machines reach this node at; `None` = the source address of the default route, else loopback.
    pub node_ip: Option<Ipv4Addr>,
    /// Labels the Node gets beside the well-known ones.
    pub labels: BTreeMap<String, String>,
    /// The most pods this node takes.
    pub max_pods: u32,
    /// Where other nodes fetch images: [`BLOB_LISTEN`] unless another cluster of this machine is there.
    pub blob_listen: SocketAddr,
    /// Where names outside the cluster are resolved; empty = the host's `/etc/resolv.conf`.
    pub dns_upstreams: Vec<SocketAddr>,
}
