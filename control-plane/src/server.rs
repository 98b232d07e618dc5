//! Assembly of a server: only wiring. Each part is built by its own function and ends with the drain.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use coracle_api::{ApiConfig, ApiMetrics, Live, Memory, ServeError, ServiceAddresses, Tls};
use coracle_daemon::DrainWatch;
use coracle_protocol::tls::{self, Papers, SERVER_NAME, Wallet};
use coracle_raft::Member;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server as Grpc;

use crate::cluster::LocalCluster;
use crate::join::Gate;
use crate::leader::{Duties, Work};
use crate::memory::{LogHandle, LogPlan, MemoryError, open};
use crate::peers::ServerPeers;
use crate::pki::{Authority, Credential, NODES, PkiError, SERVERS, Subject, write};
use crate::servers::ServerDoor;
use crate::sessions::{LettingGo, NetworkPlan, Sessions};
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
    /// The cluster this server joins or has joined; `None` for one that makes its own, or made it.
    pub join: Option<JoinedCluster>,
}

/// A cluster that a server joins.
#[derive(Debug, Clone)]
pub struct JoinedCluster {
    /// Hexadecimal.
    pub cluster: String,
    /// Where its servers listen for others.
    pub servers: Vec<String>,
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
    /// Not taken in.
    #[error("the servers of the cluster did not take this one in: {0}")]
    Join(String),
    /// TLS between servers and agents.
    #[error(transparent)]
    Papers(#[from] tls::TlsError),
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
    /// What the log says of this server and the others.
    pub log: LogHandle,
    /// The memory.
    pub memory: Arc<dyn Memory>,
    /// Agents.
    pub sessions: Sessions,
    /// What the API counts.
    pub api_metrics: ApiMetrics,
    /// What the controllers did.
    pub work: Arc<Work>,
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

    /// Lets another server lead when this one does, and closes the log: what is acknowledged is on disk anyway.
    pub async fn close(&self) {
        self.log.hand_over().await;
        self.log.close().await;
    }
}

/// How often certificates are looked at: when a clock that stood in 1970 comes right, all that was signed meanwhile may have ended.
const RENEWAL_EVERY: Duration = Duration::from_secs(60);
/// How long a server that joins asks to be taken in.
const JOIN_WITHIN: Duration = Duration::from_secs(30);
/// TLS handshakes of agents and servers at a time, and how long one may take.
const HANDSHAKES: usize = 256;
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);

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
    let papers = OwnPapers::open(&config)?;
    let door = ServerDoor { raft: Arc::default(), sessions: Arc::default() };
    let listener = listen(config.peer_listen).await?;
    let peer_address =
        listener.local_addr().map_err(|source| ServerError::Listen { address: config.peer_listen, source })?;
    let peers = ServerPeers::new(papers.wallet.clone());
    let plan = LogPlan {
        dir: &config.data_dir.join("log"),
        segment_bytes: config.log_segment_bytes,
        keys: papers.authority.keys().clone(),
        member: member(&config, peer_address.port()),
        join: joins(&config)?,
    };
    let (memory, log) = open(plan, Arc::new(peers.clone())).await?;
    let sessions = Sessions::new(memory.clone(), log.cluster_id(), config.network.clone(), papers.authority.clone());
    let _ = door.raft.set(log.raft().clone());
    let _ = door.sessions.set(sessions.clone());
    serve_agents(listener, &papers.wallet, &door, &sessions, &drain);
    if let Some(join) = &config.join
        && !log.raft().is_member()
    {
        let joined = log.raft().join(&join.servers, JOIN_WITHIN).await;
        joined.map_err(ServerError::Join)?;
    }
    // On a cluster of one the API opens with everything in place; elsewhere the leader sees to it.
    if log.raft().is_leader() {
        first_objects(&*memory, &config).await?;
    }

    let api_metrics = ApiMetrics::default();
    let cluster = LocalCluster {
        memory: memory.clone(),
        sessions: sessions.clone(),
        log: log.clone(),
        peers: peers.clone(),
        gate: gate(&config, papers.authority.clone(), log.cluster_id()),
        scratch: config.data_dir.join("backup.tmp"),
    };
    let api = api_config(&config, &papers, api_metrics.clone())?;
    let api_address = coracle_api::serve(api, Arc::new(cluster), drain.token()).await?;
    let work = Arc::new(Work::default());
    let duties = Duties {
        log: log.clone(),
        sessions: sessions.clone(),
        work: work.clone(),
        services: config.network.service_cidr,
        api_port: api_address.port(),
    };
    let letting_go = LettingGo { raft: log.raft().clone(), peers: peers.clone(), sessions: sessions.clone() };
    drain.spawn(letting_go.run(drain.clone()));
    crate::inside::begin(duties, Arc::new(peers), Arc::new(log.raft().clone()), &drain);

    let kubeconfig = config.data_dir.join("admin.kubeconfig");
    let host = if api_address.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { api_address.ip() };
    let url = format!("https://{}", SocketAddr::new(host, api_address.port()));
    write(&kubeconfig, &kubeconfig::render(&url, &papers.ca_pem, &papers.admin))?;
    let OwnPapers { authority, node, ca_pem, wallet, .. } = papers;
    let renewal = Renewal { authority, server: server_subject(&config), wallet, kubeconfig: kubeconfig.clone(), url };
    drain.spawn(renewal.run(drain.clone()));
    Ok(ServerHandle {
        api_address,
        peer_address,
        kubeconfig,
        node_credential: node,
        ca_pem,
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
    Subject {
        file: "server",
        user: SERVER_NAME.to_owned(),
        group: SERVERS,
        names,
        addresses,
        server: true,
        client: true,
    }
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
    let api = [(config.node_ip, config.api_listen.port())];
    let missing = bootstrap::missing(&memory.view(), config.network.service_cidr, &api);
    for outcome in memory.propose_many(missing).await {
        outcome.map_err(MemoryError::FirstObjects)?;
    }
    Ok(())
}

/// The authority, and what it has signed for this machine.
struct OwnPapers {
    authority: Arc<Authority>,
    server: Credential,
    admin: Credential,
    node: Credential,
    ca_pem: String,
    wallet: Wallet,
}

impl OwnPapers {
    fn open(config: &ServerConfig) -> Result<Self, ServerError> {
        // The name tells authorities of several clusters apart where a person sees them.
        let name = format!("{:08x}", rand::random::<u32>());
        let authority = Arc::new(Authority::open(&config.data_dir.join("pki"), &name)?);
        let server = authority.leaf(&server_subject(config))?;
        let admin = authority.leaf(&admin_subject())?;
        let node = authority.leaf(&client_subject("node", &format!("system:node:{}", config.node_name), NODES))?;
        let ca_pem = authority.cert_pem().to_owned();
        let Credential { cert_pem, key_pem } = server.clone();
        let wallet = Wallet::new(&Papers { cert_pem, key_pem, ca_pem: ca_pem.clone() })?;
        Ok(Self { authority, server, admin, node, ca_pem, wallet })
    }
}

/// This server as others know it; one on the loopback has no address for them.
fn member(config: &ServerConfig, port: u16) -> Member {
    let address = SocketAddr::new(IpAddr::V4(config.node_ip), port).to_string();
    Member {
        address: if config.node_ip.is_loopback() { String::new() } else { address },
        name: config.node_name.clone(),
        api_port: config.api_listen.port(),
    }
}

/// The cluster a server joins, as its log needs it.
fn joins(config: &ServerConfig) -> Result<Option<(u128, Vec<String>)>, ServerError> {
    let Some(join) = &config.join else { return Ok(None) };
    let cluster = u128::from_str_radix(&join.cluster, 16);
    let cluster = cluster.map_err(|_| ServerError::Join("the cluster's name is no number".to_owned()))?;
    Ok(Some((cluster, join.servers.clone())))
}

fn gate(config: &ServerConfig, authority: Arc<Authority>, cluster: String) -> Gate {
    Gate {
        authority,
        cluster,
        cluster_cidr: config.network.cluster_cidr,
        service_cidr: config.network.service_cidr,
        domain: config.network.domain.clone(),
        node_prefix: config.network.node_prefix,
    }
}

fn api_config(config: &ServerConfig, papers: &OwnPapers, metrics: ApiMetrics) -> Result<ApiConfig, ServerError> {
    Ok(ApiConfig {
        listen: config.api_listen,
        tls: Tls {
            cert_pem: papers.server.cert_pem.clone(),
            key_pem: papers.server.key_pem.clone(),
            client_ca_pem: papers.ca_pem.clone(),
            live: Some(Live { shown: papers.wallet.shown(), clock: tls::clock(&papers.ca_pem)? }),
        },
        services: ServiceAddresses {
            base: config.network.service_cidr.address(0).unwrap_or(Ipv4Addr::UNSPECIFIED),
            prefix: config.network.service_cidr.prefix(),
        },
        metrics,
    })
}

/// Certificates of this server that are exchanged while it runs, long before they end. Its agent sees to its own.
struct Renewal {
    authority: Arc<Authority>,
    server: Subject,
    wallet: Wallet,
    kubeconfig: PathBuf,
    url: String,
}

impl Renewal {
    async fn run(self, drain: DrainWatch) {
        loop {
            tokio::select! {
                // Cancel safe both.
                () = tokio::time::sleep(RENEWAL_EVERY) => {}
                () = drain.signaled() => return,
            }
            if let Err(error) = self.look() {
                tracing::error!(error = coracle_base::one_line(&error), "this server's certificates are not renewed");
            }
        }
    }

    /// Signed anew when little of their life is left; the same otherwise.
    fn look(&self) -> Result<(), ServerError> {
        let Credential { cert_pem, key_pem } = self.authority.leaf(&self.server)?;
        self.wallet.renew(&Papers { cert_pem, key_pem, ca_pem: self.authority.cert_pem().to_owned() })?;
        let admin = self.authority.leaf(&admin_subject())?;
        Ok(write(&self.kubeconfig, &kubeconfig::render(&self.url, self.authority.cert_pem(), &admin))?)
    }
}

fn admin_subject() -> Subject {
    client_subject("admin", "kubernetes-admin", "system:masters")
}

async fn listen(address: SocketAddr) -> Result<TcpListener, ServerError> {
    TcpListener::bind(address).await.map_err(|source| ServerError::Listen { address, source })
}

fn serve_agents(listener: TcpListener, wallet: &Wallet, door: &ServerDoor, sessions: &Sessions, drain: &DrainWatch) {
    let mut grpc = Grpc::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)));
    let router = grpc.add_service(sessions.service()).add_service(door.service());
    let (connections, incoming) = mpsc::channel(HANDSHAKES);
    drain.spawn(accept(listener, wallet.acceptor(), connections, drain.clone()));
    let until = drain.clone();
    drain.spawn(async move {
        // A session never ends by itself: on drain the sessions are simply dropped, and the agents dial again.
        let served = router.serve_with_incoming(ReceiverStream::new(incoming));
        tokio::select! {
            outcome = served => if let Err(error) = outcome { tracing::error!(%error, "the agents' port has closed") },
            () = until.signaled() => {}
        }
    });
}

/// Handshakes, several at a time: a stranger that says nothing holds nobody up.
async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    connections: mpsc::Sender<std::io::Result<TlsStream<TcpStream>>>,
    drain: DrainWatch,
) {
    let places = Arc::new(tokio::sync::Semaphore::new(HANDSHAKES));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            // Cancel safe: a connection is taken whole or not at all.
            accepted = listener.accept() => accepted,
            () = drain.signaled() => return,
        };
        let (acceptor, connections) = (acceptor.clone(), connections.clone());
        match accepted {
            Ok((stream, _)) => drop(tokio::spawn(async move {
                let _ = stream.set_nodelay(true);
                let shaken = tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await;
                drop(place);
                if let Ok(Ok(stream)) = shaken {
                    // On drain nobody takes it any more.
                    let _ = connections.send(Ok(stream)).await;
                }
            })),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of an agent");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
