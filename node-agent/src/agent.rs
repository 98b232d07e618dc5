//! Assembly: opens what the agent stands on, starts its tasks, and hands out a handle. It only wires.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_base::Digest;
use coracle_daemon::DrainWatch;
use coracle_images::peers::PeerIdentity;
use coracle_images::{ImageError, ImageStore};
use coracle_netd::{Finding, NodeLink};
use coracle_protocol::v1::LogRequest;
use coracle_runtime::{Runtime, RuntimeConfig, RuntimeError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::AgentClock;
use crate::config::{AgentConfig, Identity};
use crate::ledger::{Ledger, LedgerError, make_dir};
use crate::node_status::{self, NodeFacts, Reporter};
use crate::outbox::Outbox;
use crate::peers;
use crate::pods::Pods;
use crate::pods::board::Board;
use crate::pods::node::{HostResolver, Node, Paths, remove_tree};
use crate::real::{NodeNetwork, RuntimeContainers, StoreImages};
use crate::session::{Leases, LetGo, Session, SessionState};
use crate::tunnels::Tunnels;

/// How often images that nobody needs are removed.
const COLLECT_EVERY: Duration = Duration::from_secs(300);
/// What the removal of links, cgroups and files may take after the pods have ended.
const REMOVAL: Duration = Duration::from_secs(5);

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A directory or file the agent stands on.
    #[error("the agent cannot {action} {path}")]
    File {
        /// `create`, `open`, `read`.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The runtime.
    #[error("the container runtime cannot be opened")]
    Runtime(#[from] RuntimeError),
    /// The image store.
    #[error("the image store cannot be opened")]
    Images(#[from] ImageError),
    /// The program is going down.
    #[error("the start was cut short by the end of the program")]
    Stopped,
}

/// The node's agent. `Agent::start` is all there is to it; the rest is the handle.
#[derive(Debug)]
pub struct Agent;

/// One pod, for the status page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSummary {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// `Running`, `Pending`, ...
    pub phase: String,
    /// The Ready condition.
    pub ready: bool,
    /// Its address, when it has one.
    pub ip: Option<Ipv4Addr>,
    /// Restarts of all its containers.
    pub restarts: u32,
    /// What it does or waits for, in words.
    pub step: String,
}

/// What the agent says of itself, for the status page and `coracle status`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentStatus {
    /// Whether a session with a server is open.
    pub connected: bool,
    /// Why not, when it is not.
    pub disconnected_because: Option<String>,
    /// The server talked to last.
    pub server: Option<String>,
    /// This node's block of pod addresses, once known.
    pub pod_cidr: Option<String>,
    /// Pods on this node.
    pub pods: Vec<PodSummary>,
}

/// How often the ways to other nodes are looked at, and how soon again after one that did not answer.
const LOOK_EVERY: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// A running agent. Cheap to clone. Dropping it changes nothing: the drain ends the agent.
#[derive(Clone)]
pub struct AgentHandle {
    status: watch::Receiver<Arc<AgentStatus>>,
    /// Also keeps it: pods that are being stopped read it when no session writes it any more.
    state: watch::Sender<crate::ledger::State>,
    images: ImageStore,
    pods: Pods,
    network: NodeNetwork,
    node_links: watch::Receiver<Arc<Vec<NodeLink>>>,
    runtime: Runtime,
    paths: Paths,
    /// Ends the session alone.
    session_end: CancellationToken,
    /// Ends what keeps the network as it should be.
    network_end: CancellationToken,
}

impl std::fmt::Debug for AgentHandle {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("AgentHandle").field("paths", &self.paths).finish_non_exhaustive()
    }
}

impl Agent {
    /// Opens the ledger, adopts running pods, applies what the ledger holds to the network and DNS, and dials the servers.
    /// Returns once everything local stands; it does not wait for a server. The drain ends the agent and leaves the pods
    /// running.
    ///
    /// # Errors
    /// What the machine lacks, or a directory that cannot be used.
    pub async fn start(config: AgentConfig, drain: DrainWatch) -> Result<AgentHandle, AgentError> {
        Self::begin(config, None, drain).await
    }

    /// Stops every pod an earlier agent left (within its grace, at most `within`), starts none, and removes all of them and of the
    /// node's network: `coracle down`. Returns what could not be removed, in words; empty = all is gone.
    ///
    /// # Errors
    /// A directory that cannot be used.
    pub async fn remove_leftovers(
        config: AgentConfig,
        within: Duration,
        drain: DrainWatch,
    ) -> Result<Vec<String>, AgentError> {
        let agent = Self::begin(config, Some(grace_ms(within)), drain).await?;
        Ok(agent.remove_everything(within).await)
    }

    async fn begin(config: AgentConfig, stopping: Option<u64>, drain: DrainWatch) -> Result<AgentHandle, AgentError> {
        let clock = AgentClock::start();
        let paths = Paths { data: config.data_dir.clone(), run: config.run_dir.clone() };
        let ledger = Ledger::open(&paths.data, &paths.run, &drain)?;
        for dir in [paths.run.join("agent"), paths.data.join("pods"), paths.logs()] {
            make_dir(&dir)?;
        }
        let images = open_images(paths.data.join("images")).await?;
        let runtime = Runtime::open(RuntimeConfig {
            run_dir: paths.run.join("runtime"),
            cgroup_name: config.cgroup_name.clone(),
        })
        .await?;
        let own = config.node_ip.unwrap_or_else(node_status::own_address);
        let network = NodeNetwork::new(config.network.clone(), config.dns_upstreams.clone(), clock, Some(own));
        let (session_end, network_end) = (drain.token().child_token(), drain.token().child_token());
        // Names and Services answer from the ledger before any server is reachable.
        let mut applied = None;
        // It has told what is wrong, and is brought again until it stands.
        let _ = network.bring(&ledger.state(), &mut applied).await;
        drain.spawn(network.clone().keep(ledger.watch(), applied, network_end.clone()));

        let facts = node_facts(&config);
        let outbox = Arc::new(Outbox::default());
        let board = Arc::new(Board::default());
        let leases = watch::Sender::<Leases>::default();
        let let_go = watch::Sender::<LetGo>::default();
        let node = Arc::new(Node {
            name: config.node_name.clone(),
            clock,
            paths: paths.clone(),
            containers: Arc::new(RuntimeContainers::new(runtime.clone())),
            images: Arc::new(StoreImages::new(images.clone())),
            network: Arc::new(network.clone()),
            state: ledger.watch(),
            serving: network.serving(),
            let_go: let_go.subscribe(),
            lease: leases.subscribe(),
            outbox: outbox.clone(),
            host_ip: facts.ip,
            cpu_milli: facts.cpu_milli,
            memory_bytes: facts.memory_bytes,
            resolver: HostResolver::parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        });
        let pods = Pods::start(node, board.clone(), stopping, &drain);
        let identity = watch::Sender::new(config.identity.clone());
        let blob_port = serve_images(&config, &identity, &images, stopping.is_none(), &ledger, &drain).await;
        let reporter = Reporter { facts, data_dir: paths.data.clone(), store: images.clone(), blob_port };
        drain.spawn(reporter.clone().run(outbox.clone(), drain.token()));
        drain.spawn(collect_images(images.clone(), board.clone(), drain.token()));

        let session_state = watch::Sender::new(SessionState::default());
        let status = status_page(board.clone(), session_state.subscribe(), ledger.watch(), &drain);
        let state = ledger.alive();
        let session = Session {
            node: config.node_name,
            identity,
            pki: paths.data.join("pki"),
            servers: config.servers,
            ledger,
            outbox,
            node_object: Arc::new(move || reporter.object()),
            tunnels: Tunnels::new(paths.logs(), running(board)),
            state: session_state,
            lease: leases,
            let_go,
            applied: network.applied(),
            orphans_until: None,
        };
        drain.spawn(session.run(session_end.clone()));
        let node_links = look_at_links(network.clone(), &drain);
        Ok(AgentHandle { status, state, images, pods, network, node_links, runtime, paths, session_end, network_end })
    }
}

fn look_at_links(network: NodeNetwork, drain: &DrainWatch) -> watch::Receiver<Arc<Vec<NodeLink>>> {
    let (sender, shown) = watch::channel(Arc::default());
    let end = drain.token();
    drain.spawn(async move {
        let mut pause = LOOK_AGAIN;
        loop {
            tokio::select! {
                // Cancel safe both.
                () = tokio::time::sleep(pause) => {}
                () = end.cancelled() => return,
            }
            let links = network.node_links().await;
            pause = if links.iter().all(|link| link.answered.is_some()) { LOOK_EVERY } else { LOOK_AGAIN };
            sender.send_replace(Arc::new(links));
        }
    });
    shown
}

impl AgentHandle {
    /// What the agent says of itself; changes wake the receiver.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Arc<AgentStatus>> {
        self.status.clone()
    }

    /// What this node knows of the cluster: of its ledger, also while no server is in reach.
    #[must_use]
    pub fn known(&self) -> watch::Receiver<crate::ledger::State> {
        self.state.subscribe()
    }

    /// How this node reached the others when it last looked, in order of names.
    #[must_use]
    pub fn node_links(&self) -> Arc<Vec<NodeLink>> {
        self.node_links.borrow().clone()
    }

    /// What stands in this node's way: its network and that to other nodes, its session.
    pub async fn doctor(&self) -> Vec<Finding> {
        let mut found = self.network.doctor().await;
        let status = self.status.borrow().clone();
        if !status.connected {
            let why = status.disconnected_because.clone().unwrap_or_else(|| "it has not been tried yet".to_owned());
            found.push(Finding {
                problem: format!("this node has no session with a server: {why}"),
                hint: "what runs goes on; look whether `coracle` runs on the servers, and whether port 6444 of them is open from here"
                    .to_owned(),
            });
        }
        found
    }

    /// The images of this node.
    #[must_use]
    pub fn images(&self) -> &ImageStore {
        &self.images
    }

    /// Stops every pod (within its grace, at most `within`), then removes links, tables, mounts and cgroups: `coracle down`.
    /// Returns what could not be removed, in words; empty = all is gone.
    pub async fn remove_everything(&self, within: Duration) -> Vec<String> {
        // The servers must not take the end of a node for the end of its pods.
        self.session_end.cancel();
        self.network.release_all();
        let mut left = Vec::new();
        if tokio::time::timeout(within, self.pods.stop_all(grace_ms(within))).await.is_err() {
            left.push("some pods did not end in time".to_owned());
        }
        self.network_end.cancel();
        if let Err(error) = self.runtime.cleanup_all().await {
            left.push(coracle_base::one_line(&error));
        }
        if let Err(error) = self.network.remove_all().await {
            left.push(coracle_base::one_line(&error));
        }
        for dir in [self.paths.run.join("agent"), self.paths.run.join("runtime"), self.paths.data.join("pods")] {
            if let Err(error) = remove_tree(&dir) {
                left.push(format!("cannot remove {}: {error}", dir.display()));
            }
        }
        left
    }
}

/// What is left of a time for the pods' own grace, when their removal is taken off.
fn grace_ms(within: Duration) -> u64 {
    u64::try_from(within.saturating_sub(REMOVAL).as_millis()).unwrap_or(u64::MAX)
}

async fn open_images(dir: PathBuf) -> Result<ImageStore, AgentError> {
    let opened = tokio::task::spawn_blocking(move || ImageStore::open(dir)).await;
    Ok(opened.map_err(|_| AgentError::Stopped)??)
}

fn node_facts(config: &AgentConfig) -> NodeFacts {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    NodeFacts {
        name: config.node_name.clone(),
        ip: config.node_ip.unwrap_or_else(node_status::own_address),
        cpu_milli: u64::try_from(cores).unwrap_or(1) * 1000,
        memory_bytes: node_status::memory_bytes(),
        max_pods: config.max_pods,
        labels: config.labels.clone(),
    }
}

/// Hands images to other nodes and takes them from there; not while a node is taken down.
async fn serve_images(
    config: &AgentConfig,
    identity: &watch::Sender<Identity>,
    images: &ImageStore,
    wanted: bool,
    ledger: &Ledger,
    drain: &DrainWatch,
) -> watch::Receiver<Option<u16>> {
    if !wanted {
        return watch::channel(None).1;
    }
    let mut changes = identity.subscribe();
    let shown = |identity: &Identity| {
        let Identity { cert_pem, key_pem, ca_pem } = identity.clone();
        PeerIdentity { cert_pem, key_pem, ca_pem }
    };
    let (sender, receiver) = watch::channel(shown(&changes.borrow_and_update()));
    let end = drain.token();
    // A renewed certificate is shown to other nodes too.
    drain.spawn(async move {
        loop {
            tokio::select! {
                // Cancel safe both.
                changed = changes.changed() => if changed.is_err() { return },
                () = end.cancelled() => return,
            }
            sender.send_replace(shown(&changes.borrow_and_update()));
        }
    });
    peers::start(images, &config.node_name, config.blob_listen, receiver, ledger.watch(), drain).await
}

async fn collect_images(images: ImageStore, board: Arc<Board>, end: CancellationToken) {
    loop {
        tokio::select! {
            // Cancel safe.
            () = tokio::time::sleep(COLLECT_EVERY) => {}
            () = end.cancelled() => return,
        }
        let in_use: HashSet<Digest> =
            board.all().values().flat_map(|glance| &glance.images).filter_map(|digest| digest.parse().ok()).collect();
        let store = images.clone();
        match tokio::task::spawn_blocking(move || store.gc(&in_use)).await {
            Ok(Ok(report)) if report.bytes > 0 => tracing::info!(?report, "images that nobody needs were removed"),
            Ok(Err(error)) => tracing::warn!(error = coracle_base::one_line(&error), "images were not collected"),
            _ => {}
        }
    }
}

/// Which run of a container goes on, for log streams.
fn running(board: Arc<Board>) -> crate::tunnels::RunLookup {
    Arc::new(move |request: &LogRequest| {
        let glance = board.get(&request.uid).ok_or_else(|| "the pod is not on this node".to_owned())?;
        glance.running.get(&request.container).map(|attempt| Some(*attempt)).ok_or(glance.step)
    })
}

fn status_page(
    board: Arc<Board>,
    mut session: watch::Receiver<SessionState>,
    state: watch::Receiver<crate::ledger::State>,
    drain: &DrainWatch,
) -> watch::Receiver<Arc<AgentStatus>> {
    let (sender, receiver) = watch::channel(Arc::default());
    let end = drain.token();
    drain.spawn(async move {
        let mut changes = board.changes();
        loop {
            changes.borrow_and_update();
            let now = agent_status(&board, &session.borrow_and_update(), &state);
            sender.send_if_modified(|before| {
                let changed = **before != now;
                if changed {
                    *before = Arc::new(now);
                }
                changed
            });
            tokio::select! {
                // All cancel safe.
                changed = changes.changed() => if changed.is_err() { return },
                changed = session.changed() => if changed.is_err() { return },
                () = end.cancelled() => return,
            }
        }
    });
    receiver
}

fn agent_status(board: &Board, session: &SessionState, state: &watch::Receiver<crate::ledger::State>) -> AgentStatus {
    let pods = board.all().into_iter().map(|(uid, glance)| PodSummary {
        namespace: glance.namespace,
        name: glance.name,
        uid,
        phase: glance.phase,
        ready: glance.ready,
        ip: glance.ip,
        restarts: glance.restarts,
        step: glance.step,
    });
    AgentStatus {
        connected: session.connected,
        disconnected_because: session.because.clone(),
        server: session.server.clone(),
        pod_cidr: state.borrow().settings.as_ref().map(|settings| settings.pod_cidr.clone()),
        pods: pods.collect(),
    }
}

/// Where an agent keeps its images, for a program that has no agent running.
#[must_use]
pub fn images_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("images")
}
