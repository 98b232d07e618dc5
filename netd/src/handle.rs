//! The handle others hold: verbs that become commands in the owner thread's bounded queue.

use std::net::Ipv4Addr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use coracle_net_model::{Cidr, Desired};

use crate::NetError;

/// Names and blocks of one cluster's network on this node.
#[derive(Debug, Clone)]
pub struct NetConfig {
    /// Bridge name, at most 15 bytes, unique per cluster on a machine (`coracle0`).
    pub bridge: String,
    /// nftables table name, unique per cluster on a machine (`coracle`).
    pub table: String,
    /// This node's pod addresses; the first address becomes the bridge's (the pods' gateway).
    pub node_cidr: Cidr,
    /// All pod addresses of the cluster: traffic to others is masqueraded.
    pub cluster_cidr: Cidr,
    /// All service addresses of the cluster.
    pub service_cidr: Cidr,
    /// MTU of bridge and pods, in bytes (1,500 where there is no overlay).
    pub mtu: u32,
    /// The network namespace to work in; `None` is the caller's own.
    pub netns: Option<Arc<OwnedFd>>,
}

/// A pod's link as it stands in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodLink {
    /// The pod id given to [`Netd::attach`].
    pub pod: String,
    /// The pod's address.
    pub ip: Ipv4Addr,
    /// Name of the host's end.
    pub link: String,
}

/// What an [`Netd::apply`] changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Set elements added.
    pub added: usize,
    /// Set elements removed.
    pub removed: usize,
    /// The table was missing or not as we left it, and was made anew.
    pub rebuilt: bool,
}

/// Something `doctor` found: what is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub hint: String,
}

/// Handle to the thread that owns this node's links, routes and table. Cheap to clone. Dropping all handles stops the
/// thread and leaves the data plane as it is.
#[derive(Clone)]
pub struct Netd {}

impl Netd {
    /// Creates or repairs bridge, routes, settings and table, and starts the owner thread. Services already in the
    /// table stay as they are until the first [`Netd::apply`]. Blocks for a few milliseconds.
    pub fn start(config: NetConfig) -> Result<Netd, NetError> {
        let _ = config;
        Err(NetError::Stopped)
    }

    /// The pods' gateway: the bridge's address, where the name server listens.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::UNSPECIFIED
    }

    /// Gives the pod whose network namespace is `netns` the address `ip`: veth pair, `eth0`, `lo` up, routes.
    /// Idempotent: a finished link is kept, a half-made one is made anew.
    pub async fn attach(&self, netns: BorrowedFd<'_>, pod: &str, ip: Ipv4Addr) -> Result<PodLink, NetError> {
        let _ = (netns, pod, ip);
        Err(NetError::Stopped)
    }

    /// Removes the pod's link. No link is no error.
    pub async fn detach(&self, pod: &str) -> Result<(), NetError> {
        let _ = pod;
        Err(NetError::Stopped)
    }

    /// Links of pods found on the bridge, whoever made them: how a restarted agent finds its own.
    pub async fn list(&self) -> Result<Vec<PodLink>, NetError> {
        Err(NetError::Stopped)
    }

    /// Makes the table match `desired` in one transaction.
    pub async fn apply(&self, desired: Desired) -> Result<Report, NetError> {
        let _ = desired;
        Err(NetError::Stopped)
    }

    /// Looks at bridge, routes, settings and table and puts back what others took away. Also done every few seconds.
    pub async fn repair(&self) -> Result<Report, NetError> {
        Err(NetError::Stopped)
    }

    /// What on this node stands in the network's way.
    pub async fn doctor(&self) -> Result<Vec<Finding>, NetError> {
        Err(NetError::Stopped)
    }

    /// Removes every link, route and table of ours and stops the thread. Nothing is left behind.
    pub async fn remove_all(&self) -> Result<(), NetError> {
        Err(NetError::Stopped)
    }
}
