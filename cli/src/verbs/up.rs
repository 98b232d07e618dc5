//! `coracle up`: a server and an agent in one process; the cluster of one machine, or its first.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use coracle_control_plane::cidr::Cidr;
use coracle_control_plane::join;
use coracle_control_plane::server::{self, JoinedCluster, ServerConfig, ServerHandle};
use coracle_control_plane::sessions::NetworkPlan;
use coracle_daemon::{Drain, Drained};
use coracle_node_agent::{Agent, AgentConfig, AgentHandle, Identity, NetworkNames, ServerEndpoint};

use crate::config::{self, Membership, Settings};
use crate::failure::Failure;
use crate::{output, preflight, statuspage};

/// How long the first join command is good for.
const FIRST_TOKEN_MS: u64 = 24 * 3600 * 1000;
/// How long everything gets to end when it is told to; pods are not ended.
const DRAIN: Duration = Duration::from_secs(5);
/// What is logged unless somebody asks for more. The library of the replicated log complains of channels that close when a start is cut
/// short; what it cannot go on from is said by whoever uses it.
const LOGGED: &str = "info,openraft=off";

/// Start this machine: server and agent in one process
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  coracle up\n  coracle up --data-dir /srv/coracle --api-listen 127.0.0.1:6443\n\nAnother machine becomes part of the cluster with `coracle join`; `coracle token create` prints what it needs.\nStopping it (Ctrl-C, SIGTERM, even SIGKILL) leaves the pods running; the next `up` takes them over.\n`coracle down` stops the pods too.\n\nExit codes: 0 stopped as asked, 1 could not start or failed, 2 wrong usage"
)]
pub struct Up {
    /// The block of pod addresses
    #[arg(long, env = "CORACLE_CLUSTER_CIDR", default_value = "10.42.0.0/16", value_name = "CIDR")]
    cluster_cidr: Cidr,
    /// The block of service addresses
    #[arg(long, env = "CORACLE_SERVICE_CIDR", default_value = "10.43.0.0/16", value_name = "CIDR")]
    service_cidr: Cidr,
    /// The domain of service names
    #[arg(long, env = "CORACLE_CLUSTER_DOMAIN", default_value = "cluster.local", value_name = "NAME")]
    cluster_domain: String,
    #[command(flatten)]
    machine: MachineArgs,
}

/// What concerns this machine alone.
#[derive(Debug, Args)]
pub struct MachineArgs {
    /// State of this boot: sockets, secrets
    #[arg(long, env = "CORACLE_RUN_DIR", default_value = config::RUN_DIR, value_name = "DIR")]
    pub run_dir: PathBuf,
    /// Where the API listens
    #[arg(long, env = "CORACLE_API_LISTEN", default_value = "0.0.0.0:6443", value_name = "ADDR")]
    pub api_listen: SocketAddr,
    /// Where agents and other servers connect
    #[arg(long, env = "CORACLE_PEER_LISTEN", default_value = "0.0.0.0:6444", value_name = "ADDR")]
    pub peer_listen: SocketAddr,
    /// Where other nodes fetch images
    #[arg(long, env = "CORACLE_IMAGE_LISTEN", default_value = "0.0.0.0:6445", value_name = "ADDR")]
    pub image_listen: SocketAddr,
    /// Where the status page and the metrics are: keep it on the loopback
    #[arg(long, env = "CORACLE_STATUS_LISTEN", default_value = "127.0.0.1:6480", value_name = "ADDR")]
    pub status_listen: SocketAddr,
    /// This machine's name in the cluster [default: its host name]
    #[arg(long, env = "CORACLE_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// The address others reach this machine at [default: that of the default route]
    #[arg(long, env = "CORACLE_NODE_IP", value_name = "IP")]
    pub node_ip: Option<Ipv4Addr>,
    /// The most pods this machine takes
    #[arg(long, env = "CORACLE_MAX_PODS", default_value_t = 250, value_name = "N")]
    pub max_pods: u32,
    /// Size of a segment of the log in MB; three are set aside on the disk of a server
    #[arg(long, env = "CORACLE_LOG_SEGMENT_MB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(16..=1024), value_name = "MB")]
    pub log_segment_mb: u64,
    /// The bridge the pods hang on
    #[arg(long, env = "CORACLE_BRIDGE", default_value = "coracle0", value_name = "NAME")]
    pub bridge: String,
    /// The nftables table
    #[arg(long, env = "CORACLE_TABLE", default_value = "coracle", value_name = "NAME")]
    pub table: String,
    /// The cgroup everything lives in
    #[arg(long, env = "CORACLE_CGROUP", default_value = "coracle", value_name = "NAME")]
    pub cgroup: String,
}

/// Runs the verb until it is told to stop.
///
/// # Errors
/// What could not be started, in words.
pub async fn run(data_dir: &Path, up: &Up) -> Result<(), Failure> {
    let machine = &up.machine;
    begin("sudo coracle up")?;
    let mut stop = Stop::listen().map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")))?;
    // A machine that has joined a cluster goes on in it.
    if let Some(joined) = Membership::load(data_dir)? {
        output::note(&format!("this machine belongs to the cluster of {}", joined.servers.join(", ")));
        return crate::verbs::join::go_on(data_dir, machine, joined, &mut stop).await;
    }
    check(data_dir, machine, true)?;
    // A node's block must hold its pods, the network, the gateway and the broadcast address.
    let needed = (machine.max_pods + 4).next_power_of_two().trailing_zeros();
    let network = NetworkPlan {
        cluster_cidr: up.cluster_cidr,
        service_cidr: up.service_cidr,
        node_prefix: 32 - u8::try_from(needed.clamp(4, 16)).unwrap_or(8),
        domain: up.cluster_domain.clone(),
    };
    serve(data_dir, machine, network, None, &mut stop).await
}

/// Root, and logs.
///
/// # Errors
/// Somebody else.
pub fn begin(instead: &str) -> Result<(), Failure> {
    preflight::root(instead)?;
    if let Some(complaint) = coracle_daemon::logs::start(LOGGED, output::colorful()) {
        output::warn(&complaint);
    }
    Ok(())
}

/// What stands in the way of a server and an agent, or of an agent alone.
///
/// # Errors
/// Something does.
pub fn check(data_dir: &Path, machine: &MachineArgs, server: bool) -> Result<(), Failure> {
    let mut listeners = vec![
        (machine.image_listen, "the port for images", "--image-listen"),
        (machine.status_listen, "the status page", "--status-listen"),
    ];
    if server {
        listeners.extend([
            (machine.api_listen, "the API", "--api-listen"),
            (machine.peer_listen, "the port of the agents", "--peer-listen"),
        ]);
    }
    preflight::check(data_dir, &machine.cgroup, &machine.bridge, &listeners)
}

/// Runs a server and an agent until told to stop.
///
/// # Errors
/// What could not be started, in words.
pub async fn serve(
    data_dir: &Path,
    machine: &MachineArgs,
    network: NetworkPlan,
    join: Option<JoinedCluster>,
    stop: &mut Stop,
) -> Result<(), Failure> {
    let settings = settings(data_dir, machine, &network)?;
    let first = join.is_none() && !settings.data_dir.join("admin.kubeconfig").exists();
    let drain = Drain::new();
    let started = tokio::select! {
        // Not cancel safe, and need not be: a start that is cut short leaves nothing that the next start does not take over.
        started = start(&settings, machine, network, join, &drain) => started,
        () = stop.asked() => {
            drain.finish(DRAIN).await;
            output::note("stopped before everything was up");
            return Ok(());
        }
    };
    let (server, _agent) = match started {
        Ok(started) => started,
        Err(failure) => {
            drain.finish(DRAIN).await;
            return Err(failure);
        }
    };
    output::line(&format!("kubeconfig: {}", server.kubeconfig.display()));
    let mut api = server.api_address;
    if api.ip().is_unspecified() {
        api.set_ip(settings.node_ip);
    }
    output::line(&format!("API:        https://{api}"));
    output::line(&format!("status:     http://{}/", settings.status_listen));
    if first && !settings.node_ip.is_loopback() {
        match join::create(&*server.memory, &server.ca_pem, false, Some(FIRST_TOKEN_MS)).await {
            Ok(token) => {
                output::line(&format!("join:       coracle join https://{api} --token {}", token.text()));
            }
            Err(error) => output::warn(&format!("no join token was made: {error}")),
        }
    }
    output::line("ready");
    stop.asked().await;
    tracing::info!("stopping; the pods run on");
    // Before the sessions end: whoever leads next has the log already.
    server.log.hand_over().await;
    let drained = drain.finish(DRAIN).await;
    server.close().await;
    if let Drained::Late(tasks) = drained {
        tracing::warn!(tasks, "stopped without waiting for some tasks");
    }
    Ok(())
}

/// The two signals that ask to stop.
pub struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Stop {
    /// From now on they are heard.
    ///
    /// # Errors
    /// The system refuses.
    pub fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for one.
    pub async fn asked(&mut self) {
        tokio::select! {
            // Cancel safe both.
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// The folders of this machine made, and everything it runs with.
///
/// # Errors
/// A folder or a name that cannot be used.
pub fn settings(data_dir: &Path, up: &MachineArgs, network: &NetworkPlan) -> Result<Settings, Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    for dir in [data_dir, up.run_dir.as_path()] {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|error| Failure::failed(format!("cannot create {}: {error}", dir.display())))?;
    }
    let absolute = |path: &Path| {
        std::fs::canonicalize(path).map_err(|error| Failure::failed(format!("cannot use {}: {error}", path.display())))
    };
    let node_name = node_name(up)?;
    Ok(Settings {
        data_dir: absolute(data_dir)?,
        run_dir: absolute(&up.run_dir)?,
        api_listen: up.api_listen,
        peer_listen: up.peer_listen,
        status_listen: up.status_listen,
        image_listen: up.image_listen,
        cluster_cidr: network.cluster_cidr.to_string(),
        service_cidr: network.service_cidr.to_string(),
        cluster_domain: network.domain.clone(),
        node_name,
        node_ip: IpAddr::V4(up.node_ip.unwrap_or_else(own_address)),
        bridge: up.bridge.clone(),
        table: up.table.clone(),
        cgroup: up.cgroup.clone(),
        max_pods: up.max_pods,
        pid: std::process::id(),
    })
}

/// This machine's name.
///
/// # Errors
/// It is none.
pub fn node_name(up: &MachineArgs) -> Result<String, Failure> {
    let host = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let node_name = up.node_name.clone().unwrap_or(host);
    if !coracle_manifests::validate::is_subdomain(&node_name) {
        return Err(Failure::usage(format!(
            "`{node_name}` cannot be a node's name: lower-case letters, digits, `-` and `.` only\nhint: give one with --node-name"
        )));
    }
    Ok(node_name)
}

/// The source address of the default route, found without sending anything; the loopback without one.
pub fn own_address() -> Ipv4Addr {
    let found = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    match found.map(|address| address.ip()) {
        Ok(IpAddr::V4(address)) if !address.is_unspecified() => address,
        _ => Ipv4Addr::LOCALHOST,
    }
}

async fn start(
    settings: &Settings,
    machine: &MachineArgs,
    network: NetworkPlan,
    join: Option<JoinedCluster>,
    drain: &Drain,
) -> Result<(ServerHandle, AgentHandle), Failure> {
    let IpAddr::V4(node_ip) = settings.node_ip else {
        return Err(Failure::usage("the node's address must be IPv4"));
    };
    if network.cluster_cidr.block(0, network.node_prefix).is_none() {
        return Err(Failure::usage(format!(
            "{} has no room for a node of {} pods",
            network.cluster_cidr, settings.max_pods
        )));
    }
    let config = ServerConfig {
        data_dir: settings.data_dir.clone(),
        api_listen: settings.api_listen,
        peer_listen: settings.peer_listen,
        node_name: settings.node_name.clone(),
        node_ip,
        network,
        log_segment_bytes: machine.log_segment_mb << 20,
        join,
    };
    let server = server::start(config, drain.watch()).await.map_err(|error| Failure::from_error(&error))?;
    // The folder is ours now, and nothing is made outside it yet: from here on `down` finds what there is to take down.
    save(settings)?;
    let dial = if server.peer_address.ip().is_unspecified() {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), server.peer_address.port())
    } else {
        server.peer_address
    };
    let identity = Identity {
        cert_pem: server.node_credential.cert_pem.clone(),
        key_pem: server.node_credential.key_pem.clone(),
        ca_pem: server.ca_pem.clone(),
    };
    let mut agent = agent_config(settings, vec![ServerEndpoint { address: dial.to_string() }], identity);
    agent.labels = std::iter::once(("node-role.kubernetes.io/control-plane".to_owned(), String::new())).collect();
    let agent = Agent::start(agent, drain.watch()).await.map_err(|error| Failure::from_error(&error))?;
    statuspage::start(settings, &server, &agent, drain.watch()).await?;
    Ok((server, agent))
}

/// Remembers what this machine runs with, for `down` and `status`.
///
/// # Errors
/// The file cannot be written.
pub fn save(settings: &Settings) -> Result<(), Failure> {
    settings.save().map_err(|error| {
        Failure::failed(format!("cannot write {}: {error}", Settings::path(&settings.data_dir).display()))
    })
}

/// What the agent of this machine must be told.
#[must_use]
pub fn agent_config(settings: &Settings, servers: Vec<ServerEndpoint>, identity: Identity) -> AgentConfig {
    AgentConfig {
        node_name: settings.node_name.clone(),
        data_dir: settings.data_dir.clone(),
        run_dir: settings.run_dir.clone(),
        servers,
        identity,
        network: NetworkNames { bridge: settings.bridge.clone(), table: settings.table.clone() },
        cgroup_name: settings.cgroup.clone(),
        node_ip: match settings.node_ip {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        },
        labels: std::collections::BTreeMap::new(),
        max_pods: settings.max_pods,
        blob_listen: settings.image_listen,
        dns_upstreams: Vec::new(),
    }
}
