//! Links, addresses, Services and names on this node. There is no network until the cluster has said which addresses the node
//! has: from the ledger at a restart, from the first session on a new node.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use coracle_daemon::ports::Transport;
use coracle_dns::{DnsConfig, DnsServer, Upstreams, Zone};
use coracle_netd::{Cidr, Finding, Ipam, NetConfig, Netd, NodeLink, Peer, VNI, VXLAN_PORT};
use coracle_protocol::v1::Settings;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::AgentClock;
use crate::config::NetworkNames;
use crate::facilities::{Doing, Failure, Network};
use crate::feeds;
use crate::ledger::State;

const SANDBOX: &str = "FailedCreatePodSandBox";
/// The packet filter is tried again after this, doubled to the last.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LAST: Duration = Duration::from_secs(10);

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// What the cluster told makes no sense.
    #[error("the cluster's network settings cannot be used: {0}")]
    Settings(String),
    /// Links, routes, table.
    #[error("the node's network cannot be set up")]
    Netd(#[from] coracle_netd::NetError),
    /// The name server.
    #[error("the node's name server cannot be started")]
    Dns(#[from] coracle_dns::DnsError),
    /// The name server's port.
    #[error(
        "the node's name server cannot have port 53 of {gateway}: {holder} listens there\nhint: make that program listen on its own addresses only, not on all of the machine"
    )]
    PortTaken {
        /// The address pods ask.
        gateway: Ipv4Addr,
        /// Who.
        holder: String,
    },
}

fn dns_error(error: coracle_dns::DnsError, gateway: Ipv4Addr) -> NetworkError {
    let transport = match &error {
        coracle_dns::DnsError::Listen { protocol, source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
            if *protocol == "TCP" {
                Transport::Tcp
            } else {
                Transport::Udp
            }
        }
        _ => return error.into(),
    };
    let holder = coracle_daemon::ports::holder(transport, 53).unwrap_or_else(|| "another program".to_owned());
    NetworkError::PortTaken { gateway, holder }
}

struct Standing {
    netd: Netd,
    here: feeds::Here,
    ipam: Mutex<Ipam>,
    dns: Mutex<Option<DnsServer>>,
    zone: Arc<ArcSwapOption<Zone>>,
    settings: Settings,
    /// The other nodes, as of the last time that all of them were brought into the kernel.
    peers: Mutex<Option<Vec<Peer>>>,
}

/// The node's network. Cheap to clone.
#[derive(Clone)]
pub struct NodeNetwork {
    standing: Arc<OnceLock<Standing>>,
    clock: AgentClock,
    names: NetworkNames,
    underlay: Option<Ipv4Addr>,
    upstreams: Vec<SocketAddr>,
    serving: watch::Sender<Arc<HashSet<Ipv4Addr>>>,
    /// What the kernel's tables were last made of.
    applied: watch::Sender<State>,
    /// Why it is not as it should be, for the pods that wait for it.
    problem: Arc<Mutex<Option<String>>>,
    /// It has been said that no ports of this node can be served.
    told: Arc<AtomicBool>,
}

impl NodeNetwork {
    /// A network that does not stand yet. `underlay` is the address other machines reach this node at; with none, or one
    /// of the loopback, pods of other nodes cannot be reached.
    #[must_use]
    pub fn new(names: NetworkNames, upstreams: Vec<SocketAddr>, clock: AgentClock, underlay: Option<Ipv4Addr>) -> Self {
        let serving = watch::Sender::new(Arc::default());
        let applied = watch::Sender::new(State::default());
        let underlay = underlay.filter(|ip| !ip.is_loopback() && !ip.is_unspecified());
        let (standing, problem, told) = Default::default();
        Self { standing, clock, names, underlay, upstreams, serving, applied, problem, told }
    }

    /// Addresses that Services send new connections to, as the kernel knows them.
    #[must_use]
    pub fn serving(&self) -> watch::Receiver<Arc<HashSet<Ipv4Addr>>> {
        self.serving.subscribe()
    }

    /// What the kernel's tables were last made of.
    #[must_use]
    pub fn applied(&self) -> watch::Receiver<State> {
        self.applied.subscribe()
    }

    /// Sets the network up with what the cluster told: bridge, table, addresses of pods that run. Once.
    ///
    /// # Errors
    /// Settings that make no sense, or what the kernel refuses.
    pub async fn start(&self, settings: &Settings) -> Result<(), NetworkError> {
        if self.standing.get().is_some() {
            return Ok(());
        }
        let cidr = |text: &str| text.parse::<Cidr>().map_err(|error| NetworkError::Settings(error.to_string()));
        let node_cidr = cidr(&settings.pod_cidr)?;
        let config = NetConfig {
            bridge: self.names.bridge.clone(),
            table: self.names.table.clone(),
            node_cidr,
            cluster_cidr: cidr(&settings.cluster_cidr)?,
            service_cidr: cidr(&settings.service_cidr)?,
            underlay: self.underlay,
            vni: VNI,
            vxlan_port: VXLAN_PORT,
            netns: None,
        };
        // It waits for its thread's first work: a few milliseconds.
        let netd = tokio::task::spawn_blocking(move || Netd::start(config))
            .await
            .map_err(|_| coracle_netd::NetError::Stopped)??;
        let mut ipam = Ipam::new(node_cidr);
        for link in netd.list().await? {
            if let Err(error) = ipam.claim(&link.pod, link.ip) {
                tracing::warn!(pod = link.pod, ip = %link.ip, %error, "a pod's address is not taken over");
            }
        }
        tracing::info!(block = settings.pod_cidr, gateway = %netd.gateway(), bridge = self.names.bridge, "the node's network stands");
        // Stored before there is a name server: what was made is taken down again also when there never is one.
        let _ = self.standing.set(Standing {
            netd,
            here: feeds::Here { pods: node_cidr, address: self.underlay },
            ipam: Mutex::new(ipam),
            dns: Mutex::default(),
            zone: Arc::default(),
            settings: settings.clone(),
            peers: Mutex::default(),
        });
        Ok(())
    }

    async fn start_dns(&self, standing: &Standing) -> Result<(), NetworkError> {
        if standing.dns.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(());
        }
        let gateway = standing.netd.gateway();
        let upstreams = if self.upstreams.is_empty() {
            Upstreams::File(PathBuf::from("/etc/resolv.conf"))
        } else {
            Upstreams::Fixed(self.upstreams.clone())
        };
        let dns = DnsServer::start(DnsConfig {
            listen: vec![SocketAddr::from((gateway, 53))],
            upstreams,
            zone: standing.zone.clone(),
            domain: domain(&standing.settings),
            netns: None,
        })
        .await
        .map_err(|error| dns_error(error, gateway))?;
        *standing.dns.lock().unwrap_or_else(PoisonError::into_inner) = Some(dns);
        Ok(())
    }

    /// Keeps Services and names as the ledger says, until `end`. Sets the network up first, when the ledger has settings.
    pub async fn keep(
        self,
        mut state: watch::Receiver<State>,
        mut applied: Option<feeds::Tables>,
        end: CancellationToken,
    ) {
        let mut wait = RETRY_FIRST;
        loop {
            let now = state.borrow_and_update().clone();
            let outcome = self.bring(&now, &mut applied).await;
            let again = match outcome {
                Ok(()) => {
                    wait = RETRY_FIRST;
                    None
                }
                Err(_) => {
                    let again = wait;
                    wait = (wait * 2).min(RETRY_LAST);
                    Some(again)
                }
            };
            let pause = async {
                match again {
                    Some(again) => tokio::time::sleep(again).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                // All cancel safe.
                changed = state.changed() => if changed.is_err() { return },
                () = pause => {}
                () = end.cancelled() => return,
            }
        }
    }

    /// One look at the ledger. A failure is logged here.
    ///
    /// # Errors
    /// What the kernel refuses: it is to be tried again.
    pub async fn bring(&self, state: &State, applied: &mut Option<feeds::Tables>) -> Result<(), NetworkError> {
        let outcome = self.try_bring(state, applied).await;
        let problem = outcome.as_ref().err().map(|error| coracle_base::one_line(error));
        let mut before = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        // Told once, however often it is tried.
        if *before != problem {
            match &problem {
                Some(error) => tracing::error!(error, "the node's network is not as it should be"),
                None => tracing::info!("the node's network is as it should be again"),
            }
            *before = problem;
        }
        drop(before);
        outcome
    }

    async fn try_bring(&self, state: &State, applied: &mut Option<feeds::Tables>) -> Result<(), NetworkError> {
        if self.standing.get().is_none() {
            let Some(settings) = &state.settings else { return Ok(()) };
            self.start(settings).await?;
        }
        let Some(standing) = self.standing.get() else { return Ok(()) };
        // Services do not wait for names.
        let named = self.start_dns(standing).await;
        if let Some(settings) = &state.settings
            && settings.pod_cidr != standing.settings.pod_cidr
        {
            tracing::error!(
                ours = standing.settings.pod_cidr,
                cluster = settings.pod_cidr,
                "the cluster gave this node other addresses: restart the agent once its pods are gone"
            );
        }
        // Before anything was ever told, "no such name" would be a lie.
        if !state.confirmed && state.objects.is_empty() {
            return named;
        }
        let blocks = [&standing.settings.cluster_cidr, &standing.settings.service_cidr];
        let blocks = blocks.into_iter().filter_map(|text| text.parse::<Cidr>().ok());
        let blocks = blocks.map(|block| (block.network(), block.prefix())).collect();
        let (domain, gateway) = (domain(&standing.settings), Some(standing.netd.gateway()));
        let mut tables = feeds::tables(state, &standing.here, &domain, gateway, blocks);
        if self.underlay.is_none() && feeds::wants_node_ports(state) && !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "this node has no address but the loopback's: ports of nodes that Services ask for are not served here\nhint: start it with --node-ip"
            );
        }
        let serial = std::mem::take(&mut tables.zone.serial);
        // What goes wrong on the way to one node must not keep Services and names from being right.
        let routed = Self::tell_peers(standing, state.confirmed, &tables.peers).await;
        if applied.as_ref().is_none_or(|before| before.desired != tables.desired) {
            standing.netd.apply(tables.desired.clone()).await?;
            self.serving.send_replace(Arc::new(feeds::serving(&tables.desired)));
        }
        self.applied.send_replace(state.clone());
        if applied.as_ref().is_none_or(|before| before.zone != tables.zone) {
            let input = coracle_dns::ZoneInput { serial, ..tables.zone.clone() };
            match Zone::build(&input) {
                Ok(zone) => standing.zone.store(Some(Arc::new(zone))),
                Err(error) => tracing::error!(%error, "no table of names could be made"),
            }
        }
        *applied = Some(tables);
        named.and(routed)
    }

    /// Makes the pods of exactly these nodes reachable, this one left out.
    async fn tell_peers(standing: &Standing, confirmed: bool, nodes: &[Peer]) -> Result<(), NetworkError> {
        // A ledger without nodes, of an older agent: the routes that stand are worth more than none.
        if nodes.is_empty() && !confirmed {
            return Ok(());
        }
        let ours = standing.settings.pod_cidr.parse::<Cidr>().ok();
        let peers: Vec<Peer> = nodes.iter().filter(|peer| Some(peer.pod_cidr) != ours).cloned().collect();
        if standing.peers.lock().unwrap_or_else(PoisonError::into_inner).as_ref() == Some(&peers) {
            return Ok(());
        }
        standing.netd.peers(peers.clone()).await?;
        tracing::info!(nodes = peers.len(), "routes to the pods of other nodes stand");
        *standing.peers.lock().unwrap_or_else(PoisonError::into_inner) = Some(peers);
        Ok(())
    }

    /// No Service sends anybody new connections any more, as far as pods that end are concerned.
    pub fn release_all(&self) {
        self.serving.send_replace(Arc::default());
    }

    /// What stands in the network's way, on this machine and between it and the other nodes. Takes up to two seconds.
    pub async fn doctor(&self) -> Vec<Finding> {
        let mut found: Vec<Finding> = Vec::new();
        if let Some(problem) = self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            let (problem, hint) = problem.split_once("; hint: ").map_or((problem.as_str(), ""), |parts| parts);
            found.push(Finding { problem: problem.to_owned(), hint: hint.to_owned() });
        }
        if let Some(standing) = self.standing.get() {
            match standing.netd.doctor().await {
                Ok(more) => found.extend(more),
                Err(error) => found.push(Finding {
                    problem: format!("the network could not be examined: {}", coracle_base::one_line(&error)),
                    hint: "look into the log of `coracle`, or start it again: the pods go on".to_owned(),
                }),
            }
        }
        found
    }

    /// How each other node is reached, in order of names; empty while the network does not stand. Takes up to two seconds.
    pub async fn node_links(&self) -> Vec<NodeLink> {
        let Some(standing) = self.standing.get() else { return Vec::new() };
        standing.netd.node_links().await.unwrap_or_else(|error| {
            tracing::debug!(error = coracle_base::one_line(&error), "the ways to other nodes cannot be looked at");
            Vec::new()
        })
    }

    /// Takes everything down: names, links, routes, table.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub async fn remove_all(&self) -> Result<(), NetworkError> {
        let Some(standing) = self.standing.get() else { return Ok(()) };
        let dns = standing.dns.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(dns) = dns {
            dns.shutdown().await;
        }
        Ok(standing.netd.remove_all().await?)
    }
}

fn domain(settings: &Settings) -> String {
    if settings.cluster_domain.is_empty() { "cluster.local".to_owned() } else { settings.cluster_domain.clone() }
}

impl Network for NodeNetwork {
    fn attach(&self, pod: &str, netns: Option<OwnedFd>) -> Doing<'_, Result<Ipv4Addr, Failure>> {
        let pod = pod.to_owned();
        Box::pin(async move {
            let bad = |message: String| Failure::retry(SANDBOX, message);
            let named = |standing: &&Standing| standing.dns.lock().unwrap_or_else(PoisonError::into_inner).is_some();
            let standing = self.standing.get().filter(named).ok_or_else(|| {
                let problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
                bad(problem
                    .unwrap_or_else(|| "the node has no network yet: no server has told it its addresses".into()))
            })?;
            let netns = netns.ok_or_else(|| bad("the pod has no network namespace".to_owned()))?;
            let now = self.clock.now_ms();
            let ip = standing.ipam.lock().unwrap_or_else(PoisonError::into_inner).allocate(&pod, now);
            let ip = ip.map_err(|error| bad(error.to_string()))?;
            standing.netd.attach(netns.as_fd(), &pod, ip).await.map_err(|error| bad(coracle_base::one_line(&error)))?;
            Ok(ip)
        })
    }

    fn detach(&self, pod: &str) -> Doing<'_, Result<(), Failure>> {
        let pod = pod.to_owned();
        Box::pin(async move {
            let Some(standing) = self.standing.get() else { return Ok(()) };
            let done = standing.netd.detach(&pod).await;
            done.map_err(|error| Failure::retry("FailedKillPod", coracle_base::one_line(&error)))?;
            standing.ipam.lock().unwrap_or_else(PoisonError::into_inner).release(&pod, self.clock.now_ms());
            Ok(())
        })
    }

    fn nameserver(&self) -> Option<Ipv4Addr> {
        self.standing.get().map(|standing| standing.netd.gateway())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Held, Key};
    use serde_json::json;

    fn state(nodes: &[(&str, &str, &str)]) -> State {
        let settings = Settings {
            pod_cidr: "10.42.0.0/24".into(),
            cluster_cidr: "10.42.0.0/16".into(),
            service_cidr: "10.43.0.0/16".into(),
            ..Settings::default()
        };
        let mut state = State { settings: Some(settings), ..State::default() };
        for (name, block, address) in nodes {
            let tree = json!({
                "spec": {"podCIDR": block}, "status": {"addresses": [{"type": "InternalIP", "address": address}]},
            });
            let held = Held { uid: String::new(), revision: 1, tree };
            state.objects.insert(Key::new("nodes", "", name), Arc::new(held));
        }
        state
    }

    fn ip(arguments: &str) -> String {
        let output = std::process::Command::new("ip").args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Without any server: what the ledger says of other nodes is enough.
    #[test]
    fn other_nodes_of_the_ledger_are_reached() {
        // Threads of the runtime are born in this thread's namespace.
        let thread = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
            ip("link set lo up");
            ip("link add up0 type veth peer name up1");
            ip("addr add 192.0.2.1/24 dev up0");
            ip("link set up0 up");
            ip("link set up1 up");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(reach());
        });
        thread.join().unwrap();
    }

    async fn reach() {
        let names = NetworkNames { bridge: "coracle0".into(), table: "coracle".into() };
        let own = Some(Ipv4Addr::new(192, 0, 2, 1));
        let upstreams = vec![SocketAddr::from(([127, 0, 0, 1], 9))];
        let network = NodeNetwork::new(names, upstreams, AgentClock::start(), own);
        let (me, near) = (("a", "10.42.0.0/24", "192.0.2.1"), ("b", "10.42.1.0/24", "192.0.2.2"));
        let far = ("c", "10.42.2.0/24", "198.51.100.3");
        let mut applied = None;
        network.bring(&state(&[me, near, far]), &mut applied).await.unwrap();
        let routes = ip("route show proto 67");
        assert!(routes.contains("10.42.1.0/24 via 192.0.2.2 dev up0"), "{routes}");
        assert!(routes.contains("10.42.2.0/24 via 10.42.2.0 dev coracle0-vx"), "{routes}");
        assert_eq!(routes.lines().count(), 3, "the third is for services: {routes}");
        assert!(ip("link show coracle0").contains("mtu 1450"));
        network.bring(&state(&[me, far]), &mut applied).await.unwrap();
        assert!(!ip("route").contains("10.42.1.0"), "a node left");
        network.bring(&state(&[]), &mut applied).await.unwrap();
        assert!(ip("route").contains("10.42.2.0"), "no node at all is not to be believed before a server says so");
        network.remove_all().await.unwrap();
        assert_eq!(ip("route show proto 67"), "");
    }
}
