//! `coracle up`: a server and an agent in one process; the cluster of one machine, or its first.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use coracle_control_plane::cidr::Cidr;
use coracle_control_plane::server::{self, ServerConfig, ServerHandle};
use coracle_control_plane::sessions::NetworkPlan;
use coracle_daemon::{Drain, Drained};
use coracle_node_agent::{Agent, AgentConfig, AgentHandle, Identity, NetworkNames, ServerEndpoint};

use crate::config::{self, Settings};
use crate::failure::Failure;
use crate::{output, preflight, statuspage};

/// How long everything gets to end when it is told to; pods are not ended.
const DRAIN: Duration = Duration::from_secs(5);

/// Start this machine: server and agent in one process
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  coracle up\n  coracle up --data-dir /srv/coracle --api-listen 127.0.0.1:6443\n\nStopping it (Ctrl-C, SIGTERM, even SIGKILL) leaves the pods running; the next `up` takes them over.\n`coracle down` stops the pods too.\n\nExit codes: 0 stopped as asked, 1 could not start or failed, 2 wrong usage"
)]
pub struct Up {
    /// State of this boot: sockets, secrets
    #[arg(long, env = "CORACLE_RUN_DIR", default_value = config::RUN_DIR, value_name = "DIR")]
    run_dir: PathBuf,
    /// Where the API listens
    #[arg(long, env = "CORACLE_API_LISTEN", default_value = "0.0.0.0:6443", value_name = "ADDR")]
    api_listen: SocketAddr,
    /// Where agents and other servers connect
    #[arg(long, env = "CORACLE_PEER_LISTEN", default_value = "0.0.0.0:6444", value_name = "ADDR")]
    peer_listen: SocketAddr,
    /// Where the status page and the metrics are: keep it on the loopback
    #[arg(long, env = "CORACLE_STATUS_LISTEN", default_value = "127.0.0.1:6480", value_name = "ADDR")]
    status_listen: SocketAddr,
    /// The block of pod addresses
    #[arg(long, env = "CORACLE_CLUSTER_CIDR", default_value = "10.42.0.0/16", value_name = "CIDR")]
    cluster_cidr: Cidr,
    /// The block of service addresses
    #[arg(long, env = "CORACLE_SERVICE_CIDR", default_value = "10.43.0.0/16", value_name = "CIDR")]
    service_cidr: Cidr,
    /// The domain of service names
    #[arg(long, env = "CORACLE_CLUSTER_DOMAIN", default_value = "cluster.local", value_name = "NAME")]
    cluster_domain: String,
    /// This machine's name in the cluster [default: its host name]
    #[arg(long, env = "CORACLE_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// The address others reach this machine at [default: that of the default route]
    #[arg(long, env = "CORACLE_NODE_IP", value_name = "IP")]
    node_ip: Option<Ipv4Addr>,
    /// The most pods this machine takes
    #[arg(long, env = "CORACLE_MAX_PODS", default_value_t = 250, value_name = "N")]
    max_pods: u32,
    /// Size of a segment of the log in MB; three are set aside on the disk
    #[arg(long, env = "CORACLE_LOG_SEGMENT_MB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(16..=1024), value_name = "MB")]
    log_segment_mb: u64,
    /// The bridge the pods hang on
    #[arg(long, env = "CORACLE_BRIDGE", default_value = "coracle0", value_name = "NAME")]
    bridge: String,
    /// The nftables table
    #[arg(long, env = "CORACLE_TABLE", default_value = "coracle", value_name = "NAME")]
    table: String,
    /// The cgroup everything lives in
    #[arg(long, env = "CORACLE_CGROUP", default_value = "coracle", value_name = "NAME")]
    cgroup: String,
}

/// Runs the verb until it is told to stop.
///
/// # Errors
/// What could not be started, in words.
pub async fn run(data_dir: &Path, up: &Up) -> Result<(), Failure> {
    preflight::root("sudo coracle up")?;
    if let Some(complaint) = coracle_daemon::logs::start("info,openraft=error", output::colorful()) {
        output::warn(&complaint);
    }
    let mut stop = Stop::listen().map_err(|error| Failure::failed(format!("cannot listen for signals: {error}")))?;
    let listeners = [
        (up.api_listen, "the API", "--api-listen"),
        (up.peer_listen, "the port of the agents", "--peer-listen"),
        (up.status_listen, "the status page", "--status-listen"),
    ];
    preflight::check(data_dir, &up.cgroup, &up.bridge, &listeners)?;
    let settings = settings(data_dir, up)?;
    let drain = Drain::new();
    let started = tokio::select! {
        // Not cancel safe, and need not be: a start that is cut short leaves nothing that the next start does not take over.
        started = start(&settings, up, &drain) => started,
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
    output::line("ready");
    stop.asked().await;
    tracing::info!("stopping; the pods run on");
    let drained = drain.finish(DRAIN).await;
    server.close().await;
    if let Drained::Late(tasks) = drained {
        tracing::warn!(tasks, "stopped without waiting for some tasks");
    }
    Ok(())
}

/// The two signals that ask to stop.
struct Stop {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Stop {
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            // Cancel safe both.
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn settings(data_dir: &Path, up: &Up) -> Result<Settings, Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    for dir in [data_dir, &up.run_dir] {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|error| Failure::failed(format!("cannot create {}: {error}", dir.display())))?;
    }
    let absolute = |path: &Path| {
        std::fs::canonicalize(path).map_err(|error| Failure::failed(format!("cannot use {}: {error}", path.display())))
    };
    let host = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let node_name = up.node_name.clone().unwrap_or(host);
    if !coracle_manifests::validate::is_subdomain(&node_name) {
        return Err(Failure::usage(format!(
            "`{node_name}` cannot be a node's name: lower-case letters, digits, `-` and `.` only\nhint: give one with --node-name"
        )));
    }
    Ok(Settings {
        data_dir: absolute(data_dir)?,
        run_dir: absolute(&up.run_dir)?,
        api_listen: up.api_listen,
        peer_listen: up.peer_listen,
        status_listen: up.status_listen,
        cluster_cidr: up.cluster_cidr.to_string(),
        service_cidr: up.service_cidr.to_string(),
        cluster_domain: up.cluster_domain.clone(),
        node_name,
        node_ip: IpAddr::V4(up.node_ip.unwrap_or_else(own_address)),
        bridge: up.bridge.clone(),
        table: up.table.clone(),
        cgroup: up.cgroup.clone(),
        max_pods: up.max_pods,
        pid: std::process::id(),
    })
}

/// The source address of the default route, found without sending anything; the loopback without one.
fn own_address() -> Ipv4Addr {
    let found = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| {
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        socket.local_addr()
    });
    match found.map(|address| address.ip()) {
        Ok(IpAddr::V4(address)) if !address.is_unspecified() => address,
        _ => Ipv4Addr::LOCALHOST,
    }
}

async fn start(settings: &Settings, up: &Up, drain: &Drain) -> Result<(ServerHandle, AgentHandle), Failure> {
    let IpAddr::V4(node_ip) = settings.node_ip else {
        return Err(Failure::usage("the node's address must be IPv4"));
    };
    // A node's block must hold its pods, the network, the gateway and the broadcast address.
    let needed = (settings.max_pods + 4).next_power_of_two().trailing_zeros();
    let node_prefix = 32 - u8::try_from(needed.clamp(4, 16)).unwrap_or(8);
    let network = NetworkPlan {
        cluster_cidr: up.cluster_cidr,
        service_cidr: up.service_cidr,
        node_prefix,
        domain: settings.cluster_domain.clone(),
    };
    if network.cluster_cidr.block(0, node_prefix).is_none() {
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
        log_segment_bytes: up.log_segment_mb << 20,
    };
    let server = server::start(config, drain.watch()).await.map_err(|error| Failure::from_error(&error))?;
    // The folder is ours now, and nothing is made outside it yet: from here on `down` finds what there is to take down.
    settings.save().map_err(|error| {
        Failure::failed(format!("cannot write {}: {error}", Settings::path(&settings.data_dir).display()))
    })?;
    let dial = if server.peer_address.ip().is_unspecified() {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), server.peer_address.port())
    } else {
        server.peer_address
    };
    let agent = AgentConfig {
        node_name: settings.node_name.clone(),
        data_dir: settings.data_dir.clone(),
        run_dir: settings.run_dir.clone(),
        servers: vec![ServerEndpoint { address: dial.to_string(), name: Some(server::server_name().to_owned()) }],
        identity: Identity {
            cert_pem: server.node_credential.cert_pem.clone(),
            key_pem: server.node_credential.key_pem.clone(),
            ca_pem: server.ca_pem.clone(),
        },
        network: NetworkNames { bridge: settings.bridge.clone(), table: settings.table.clone() },
        cgroup_name: settings.cgroup.clone(),
        node_ip: Some(node_ip),
        labels: std::iter::once(("node-role.kubernetes.io/control-plane".to_owned(), String::new())).collect(),
        max_pods: settings.max_pods,
        dns_upstreams: Vec::new(),
    };
    let agent = Agent::start(agent, drain.watch()).await.map_err(|error| Failure::from_error(&error))?;
    statuspage::start(settings, &server, drain.watch()).await?;
    Ok((server, agent))
}
