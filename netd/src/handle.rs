//! The handle others hold: verbs that become commands in the owner thread's bounded queue.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use coracle_net_model::{Cidr, Desired, Peer};
use tokio::sync::oneshot;

use crate::owner::{Command, Owner};
use crate::{NetError, namespace};

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
    /// This node's own address, at which other nodes reach it; `None`: it is alone. The link that has it gives pods
    /// and bridge their MTU: with an address 50 bytes less, so that every peer can be reached through VXLAN.
    pub underlay: Option<Ipv4Addr>,
    /// Number of the cluster's VXLAN network ([`VNI`]): the same on all its nodes.
    pub vni: u32,
    /// UDP port of the outer packets ([`VXLAN_PORT`]): the same on all its nodes.
    pub vxlan_port: u16,
    /// The network namespace to work in; `None` is the caller's own.
    pub netns: Option<Arc<OwnedFd>>,
}

/// The number of a cluster's VXLAN network, unless another is chosen.
pub const VNI: u32 = 1;
/// The UDP port of VXLAN, unless another is chosen. The number Linux uses, not IANA's 4789 that virtual networks of data
/// centers take for themselves.
pub const VXLAN_PORT: u16 = 8472;

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

/// What an [`Netd::apply`], [`Netd::peers`] or [`Netd::repair`] changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Set elements added (by `peers` and `repair`: links, addresses, routes, neighbours and settings).
    pub added: usize,
    /// Set elements removed (by `peers` and `repair`: the same things).
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

/// How this node reaches the pods of another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeLink {
    /// The other node.
    pub node: String,
    /// By its own address, not through the tunnel.
    pub direct: bool,
    /// How long a small packet to its pods' gateway took to come back; `None` when none did.
    pub answered: Option<Duration>,
    /// Why there is no way at all, with a hint.
    pub refused: Option<String>,
}

/// Handle to the thread that owns this node's links, routes and table. Cheap to clone. Dropping all handles stops the
/// thread and leaves the data plane as it is.
#[derive(Clone)]
pub struct Netd {
    commands: SyncSender<Command>,
    gateway: Ipv4Addr,
}

/// Commands that may wait. A burst of pod starts fits; beyond it callers are told [`NetError::Busy`].
const QUEUE: usize = 1024;

impl Netd {
    /// Creates or repairs bridge, routes, settings and table, and starts the owner thread. Services already in the
    /// table stay as they are until the first [`Netd::apply`]. Blocks for a few milliseconds.
    pub fn start(config: NetConfig) -> Result<Netd, NetError> {
        config.validate()?;
        let gateway = config.gateway();
        let (commands, queue) = sync_channel(QUEUE);
        let (started, ready) = sync_channel(1);
        std::thread::Builder::new()
            .name("netd".to_owned())
            .spawn(move || match enter_and_start(config) {
                Ok(owner) => {
                    if started.send(Ok(())).is_ok() {
                        owner.run(&queue);
                    }
                }
                Err(error) => drop(started.send(Err(error))),
            })
            .map_err(NetError::Thread)?;
        ready.recv().map_err(|_| NetError::Stopped)??;
        Ok(Netd { commands, gateway })
    }

    /// The pods' gateway: the bridge's address, where the name server listens.
    pub fn gateway(&self) -> Ipv4Addr {
        self.gateway
    }

    /// Gives the pod whose network namespace is `netns` the address `ip`: veth pair, `eth0`, `lo` up, routes.
    /// Idempotent: a finished link is kept, a half-made one is made anew.
    pub async fn attach(&self, netns: BorrowedFd<'_>, pod: &str, ip: Ipv4Addr) -> Result<PodLink, NetError> {
        let netns =
            netns.try_clone_to_owned().map_err(|source| NetError::Namespace { what: format!("pod {pod}"), source })?;
        let pod = pod.to_owned();
        self.ask(|answer| Command::Attach { netns, pod, ip, answer }).await
    }

    /// Removes the pod's link. No link is no error.
    pub async fn detach(&self, pod: &str) -> Result<(), NetError> {
        let pod = pod.to_owned();
        self.ask(|answer| Command::Detach { pod, answer }).await
    }

    /// Links of pods found on the node, whoever made them: how a restarted agent finds its own.
    pub async fn list(&self) -> Result<Vec<PodLink>, NetError> {
        self.ask(|answer| Command::List { answer }).await
    }

    /// Makes the table match `desired` in one transaction.
    pub async fn apply(&self, desired: Desired) -> Result<Report, NetError> {
        self.ask(|answer| Command::Apply { desired: Box::new(desired), answer }).await
    }

    /// Makes pods of exactly these nodes reachable: over the peer's own address where it is on a link of ours, else
    /// through VXLAN. Touches only what differs. Until this is first called, what an earlier run left stays as it is.
    /// A peer that cannot be used (no address of its own, a block that clashes) is logged and named by `doctor`; it is
    /// no error and does not keep the others from being reached.
    ///
    /// # Errors
    /// The first thing the kernel refused; everything else was done, and [`Netd::repair`] tries it again.
    pub async fn peers(&self, peers: Vec<Peer>) -> Result<Report, NetError> {
        self.ask(|answer| Command::Peers { peers, answer }).await
    }

    /// Looks at bridge, routes, settings and table and puts back what others took away. Also done every few seconds.
    pub async fn repair(&self) -> Result<Report, NetError> {
        self.ask(|answer| Command::Repair { answer }).await
    }

    /// What on this node, and between it and its peers, stands in the network's way. Sends each peer a few pings and
    /// waits for answers: at most two seconds, while the network thread goes on.
    pub async fn doctor(&self) -> Result<Vec<Finding>, NetError> {
        self.ask(|answer| Command::Doctor { answer }).await
    }

    /// How each peer is reached at the moment, in order of names: one ping each, and at most two seconds of waiting.
    pub async fn node_links(&self) -> Result<Vec<NodeLink>, NetError> {
        self.ask(|answer| Command::NodeLinks { answer }).await
    }

    /// Removes every link, route and table of ours and stops the thread. Nothing is left behind but `ip_forward`,
    /// which others may rely on by now.
    pub async fn remove_all(&self) -> Result<(), NetError> {
        self.ask(|answer| Command::RemoveAll { answer }).await
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, NetError>>) -> Command,
    ) -> Result<T, NetError> {
        let (answer, result) = oneshot::channel();
        self.commands.try_send(command(answer)).map_err(|error| match error {
            TrySendError::Full(_) => NetError::Busy,
            TrySendError::Disconnected(_) => NetError::Stopped,
        })?;
        result.await.map_err(|_| NetError::Stopped)?
    }
}

fn enter_and_start(config: NetConfig) -> Result<Owner, NetError> {
    if let Some(netns) = &config.netns {
        namespace::enter(netns.as_fd())
            .map_err(|source| NetError::Namespace { what: "this node".to_owned(), source })?;
    }
    Owner::start(config)
}
