//! Assembly of a server: only wiring. Each part is built by its own function and ends with the drain.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_api::{ApiConfig, ApiMetrics, Cluster, Memory, ServeError, ServiceAddresses, Tls};
use coracle_daemon::DrainWatch;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Certificate, Identity, Server as Grpc, ServerTlsConfig};

use crate::cluster::LocalCluster;
use crate::leader::{self, Work};
use crate::memory::{MemoryError, open};
use crate::pki::{Authority, Credential, PkiError, Subject, write};
use crate::sessions::{NetworkPlan, Sessions};
use crate::{bootstrap, kubeconfig};

/// What a server must be told.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// State that must survive.
    pub data_dir: PathBuf,
    /// The API.
    pub api_listen: SocketAddr,
    /// Agents and servers.
    pub peer_listen: SocketAddr,
    /// This machine's name.
    pub node_name: String,
    /// The address others reach this machine at.
    pub node_ip: Ipv4Addr,
    /// The cluster's addresses.
    pub network: NetworkPlan,
    /// Size of a segment of the log; space for three of them is set aside.
    pub log_segment_bytes: u64,
}

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// Keys and certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The log or the snapshots.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The API's port.
    #[error(transparent)]
    Api(#[from] ServeError),
    /// The agents' port.
    #[error(
        "cannot listen on {address} for agents\nhint: another program has the port; `--peer-listen` takes another one"
    )]
    Listen {
        /// Address and port.
        address: SocketAddr,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// TLS for agents.
    #[error("the agents' port cannot use its certificate")]
    Tls(#[source] tonic::transport::Error),
    /// The block of services overlaps that of pods.
    #[error(
        "the service block {services} overlaps the cluster block {cluster}\nhint: choose blocks that share no address, with --cluster-cidr and --service-cidr"
    )]
    Overlap {
        /// Services.
        services: String,
        /// Pods.
        cluster: String,
    },
}

/// A running server.
#[derive(Clone)]
pub struct ServerHandle {
    /// Where the API listens.
    pub api_address: SocketAddr,
    /// Where agents dial.
    pub peer_address: SocketAddr,
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// The certificate an agent on this machine uses.
    pub node_credential: Credential,
    /// The authority's certificate, PEM.
    pub ca_pem: String,
    /// The memory.
    pub memory: Arc<dyn Memory>,
    /// Agents.
    pub sessions: Sessions,
    /// What the API counts.
    pub api_metrics: ApiMetrics,
    /// What the controllers did.
    pub work: Arc<Work>,
    log: crate::memory::LogHandle,
}

impl ServerHandle {
    /// What the log counts: name, value.
    #[must_use]
    pub fn log_metrics(&self) -> Vec<(&'static str, f64)> {
        self.log.metrics()
    }

    /// What keeps the log from taking all that is written, in words; `None` when nothing does.
    #[must_use]
    pub fn log_trouble(&self) -> Option<String> {
        self.log.trouble()
    }

    /// Closes the log: what is acknowledged is on disk anyway, this only stops the threads.
    pub async fn close(&self) {
        self.log.close().await;
    }
}

/// The node's certificate name among servers and agents.
const SERVER_NAME: &str = "coracle-server";

/// Starts a server; returns once it answers.
///
/// # Errors
/// What could not be opened, in words.
pub async fn start(config: ServerConfig, drain: DrainWatch) -> Result<ServerHandle, ServerError> {
    if config.network.cluster_cidr.overlaps(config.network.service_cidr) {
        return Err(ServerError::Overlap {
            services: config.network.service_cidr.to_string(),
            cluster: config.network.cluster_cidr.to_string(),
        });
    }
    let (memory, log) = open(&config.data_dir.join("log"), config.log_segment_bytes).await?;
    let authority = Authority::open(&config.data_dir.join("pki"), &log.cluster_id())?;
    let server = authority.leaf(&server_subject(&config))?;
    let admin = authority.leaf(&client_subject("admin", "kubernetes-admin", "system:masters"))?;
    let node = authority.leaf(&client_subject("node", &format!("system:node:{}", config.node_name), "system:nodes"))?;
    first_objects(&*memory, &config).await?;

    let sessions = Sessions::new(memory.clone(), log.cluster_id(), config.network.clone());
    let peer_address = serve_agents(&config, &authority, &server, &sessions, &drain).await?;
    let api_metrics = ApiMetrics::default();
    let cluster: Arc<dyn Cluster> = Arc::new(LocalCluster::new(memory.clone(), sessions.clone()));
    let api = ApiConfig {
        listen: config.api_listen,
        tls: Tls { cert_pem: server.cert_pem, key_pem: server.key_pem, client_ca_pem: authority.cert_pem().to_owned() },
        services: ServiceAddresses {
            base: config.network.service_cidr.address(0).unwrap_or(Ipv4Addr::UNSPECIFIED),
            prefix: config.network.service_cidr.prefix(),
        },
        metrics: api_metrics.clone(),
    };
    let api_address = coracle_api::serve(api, cluster, drain.token()).await?;
    let work = Arc::new(Work::default());
    drain.spawn(leader::run(memory.clone(), sessions.clone(), work.clone(), drain.clone()));

    let kubeconfig = config.data_dir.join("admin.kubeconfig");
    let host = if api_address.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { api_address.ip() };
    let url = format!("https://{}", SocketAddr::new(host, api_address.port()));
    write(&kubeconfig, &kubeconfig::render(&url, authority.cert_pem(), &admin))?;
    Ok(ServerHandle {
        api_address,
        peer_address,
        kubeconfig,
        node_credential: node,
        ca_pem: authority.cert_pem().to_owned(),
        memory,
        sessions,
        api_metrics,
        work,
        log,
    })
}

/// Whether no server works with a data folder at the moment. Makes nothing there.
///
/// # Errors
/// One does.
pub fn check_unused(data_dir: &std::path::Path) -> Result<(), ServerError> {
    Ok(crate::memory::check_unused(&data_dir.join("log"))?)
}

/// The name an agent expects of a server.
#[must_use]
pub fn server_name() -> &'static str {
    SERVER_NAME
}

fn server_subject(config: &ServerConfig) -> Subject {
    let mut names: Vec<String> =
        [SERVER_NAME, "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
            .iter()
            .map(|name| (*name).to_owned())
            .collect();
    names.push(format!("kubernetes.default.svc.{}", config.network.domain));
    // A host name may hold what a DNS name may not.
    if config.node_name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.') {
        names.push(config.node_name.clone());
    }
    let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V4(config.node_ip)];
    addresses.extend(config.network.service_cidr.address(1).map(IpAddr::V4));
    for listen in [config.api_listen.ip(), config.peer_listen.ip()] {
        if !listen.is_unspecified() {
            addresses.push(listen);
        }
    }
    addresses.sort();
    addresses.dedup();
    Subject { file: "server", user: SERVER_NAME.to_owned(), group: "", names, addresses, server: true, client: true }
}

fn client_subject(file: &'static str, user: &str, group: &'static str) -> Subject {
    Subject {
        file,
        user: user.to_owned(),
        group,
        names: Vec::new(),
        addresses: Vec::new(),
        server: false,
        client: true,
    }
}

/// Makes what a new cluster holds before anybody wrote anything.
async fn first_objects(memory: &dyn Memory, config: &ServerConfig) -> Result<(), MemoryError> {
    let api = (config.node_ip, config.api_listen.port());
    let missing = bootstrap::missing(&memory.view(), config.network.service_cidr, api);
    for outcome in memory.propose_many(missing).await {
        outcome.map_err(MemoryError::FirstObjects)?;
    }
    Ok(())
}

async fn serve_agents(
    config: &ServerConfig,
    authority: &Authority,
    server: &Credential,
    sessions: &Sessions,
    drain: &DrainWatch,
) -> Result<SocketAddr, ServerError> {
    let address = config.peer_listen;
    let listener = TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })?;
    let bound = listener.local_addr().map_err(|source| ServerError::Listen { address, source })?;
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(&server.cert_pem, &server.key_pem))
        .client_ca_root(Certificate::from_pem(authority.cert_pem()));
    let mut grpc = Grpc::builder()
        .tls_config(tls)
        .map_err(ServerError::Tls)?
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .tcp_nodelay(true);
    let router = grpc.add_service(sessions.service());
    let until = drain.clone();
    drain.spawn(async move {
        let incoming = TcpListenerStream::new(listener);
        // A session never ends by itself: on drain the sessions are simply dropped, and the agents dial again.
        let served = router.serve_with_incoming(incoming);
        tokio::select! {
            outcome = served => if let Err(error) = outcome { tracing::error!(%error, "the agents' port has closed") },
            () = until.signaled() => {}
        }
    });
    Ok(bound)
}
