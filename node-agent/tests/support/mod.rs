//! A server that says what a test tells it to, over real mTLS, and a node in a network namespace of its own.
#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::print_stdout)] // SKIP lines

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coracle_daemon::Drain;
use coracle_images::builder::{Attributes, Compress, LayerBuilder, Layout, RunConfig};
use coracle_images::{ImageStore, Quiet};
use coracle_node_agent::{Agent, AgentConfig, AgentHandle, Identity, NetworkNames, ServerEndpoint};
use coracle_protocol::v1::agents_server::{Agents, AgentsServer};
use coracle_protocol::v1::{
    Feed, FromAgent, FromServer, Generation, Item, LogRequest, OpenTunnel, Settings, TunnelDown, TunnelUp, Welcome,
    from_agent, from_server, open_tunnel,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::{Certificate, Identity as TlsIdentity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

pub const NODE: &str = "n1";

/// An authority, a server's and a node's certificate.
pub struct Pki {
    pub ca_pem: String,
    pub server: (String, String),
    pub node: (String, String),
    issuer: Arc<Issuer<'static, KeyPair>>,
}

impl Pki {
    /// Certificate and key, PEM.
    pub fn leaf(&self, user: &str, group: &str, server: bool) -> (String, String) {
        leaf(&self.issuer, user, group, server)
    }

    /// The node's certificate, with so many days of its life left.
    pub fn node_ending_in(&self, days: i64) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, format!("system:node:{NODE}"));
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.not_after =
            std::time::SystemTime::now().checked_add(Duration::from_secs(days.unsigned_abs() * 86_400)).unwrap().into();
        (params.signed_by(&key, &*self.issuer).unwrap().pem(), key.serialize_pem())
    }

    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test-ca");
        let ca = params.self_signed(&key).unwrap();
        let issuer = Arc::new(Issuer::new(params, key));
        Self {
            ca_pem: ca.pem(),
            server: leaf(&issuer, "coracle-server", "x", true),
            node: leaf(&issuer, &format!("system:node:{NODE}"), "system:nodes", false),
            issuer,
        }
    }
}

fn leaf(issuer: &Issuer<'static, KeyPair>, user: &str, group: &str, server: bool) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    params.distinguished_name.push(DnType::OrganizationName, group);
    if server {
        params.subject_alt_names.push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
        params.subject_alt_names.push(SanType::DnsName(coracle_protocol::tls::SERVER_NAME.try_into().unwrap()));
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    } else {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

/// What agents have told.
#[derive(Debug, Default)]
pub struct Told {
    pub statuses: BTreeMap<String, Value>,
    pub events: Vec<String>,
    pub gone: Vec<String>,
    pub settled: Vec<u64>,
    pub node: Value,
    pub beats: u64,
    pub hellos: u64,
    pub reports: u64,
}

/// The revision, and objects by resource and name.
type Objects = (u64, BTreeMap<(String, String), Item>);
/// Chunks of a tunnel.
type Chunks = mpsc::Sender<Result<Vec<u8>, String>>;

struct Inner {
    objects: watch::Sender<Objects>,
    told: Mutex<Told>,
    tunnels: Mutex<HashMap<String, Chunks>>,
    down: Mutex<Option<mpsc::Sender<Result<FromServer, Status>>>>,
    settings: Settings,
    next_tunnel: AtomicU64,
    end: Mutex<tokio_util::sync::CancellationToken>,
    /// Signs new certificates for agents, when it does.
    signs: Mutex<Option<Arc<Issuer<'static, KeyPair>>>>,
}

/// The server. Clones are one.
#[derive(Clone)]
pub struct TestServer {
    inner: Arc<Inner>,
}

impl TestServer {
    /// From now on it signs new certificates for agents.
    pub fn sign_with(&self, pki: &Pki) {
        *self.inner.signs.lock().unwrap() = Some(pki.issuer.clone());
    }

    pub fn new() -> Self {
        let settings = Settings {
            pod_cidr: "10.42.7.0/24".into(),
            cluster_cidr: "10.42.0.0/16".into(),
            service_cidr: "10.43.0.0/16".into(),
            cluster_domain: "cluster.local".into(),
            beat_interval_ms: 1000,
            servers: Vec::new(),
        };
        Self {
            inner: Arc::new(Inner {
                objects: watch::Sender::new((1, BTreeMap::new())),
                told: Mutex::default(),
                tunnels: Mutex::default(),
                down: Mutex::default(),
                settings,
                next_tunnel: AtomicU64::new(1),
                end: Mutex::default(),
                signs: Mutex::default(),
            }),
        }
    }

    /// Serves until the token's end; returns the address.
    pub async fn serve(&self, pki: &Pki, port: u16, end: tokio_util::sync::CancellationToken) -> SocketAddr {
        let listener = loop {
            match tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
                Ok(listener) => break listener,
                // The server before it is about to let go of the port.
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                    tokio::time::sleep(Duration::from_millis(5)).await; // poll
                }
                Err(error) => panic!("{error}"),
            }
        };
        let address = listener.local_addr().unwrap();
        *self.inner.end.lock().unwrap() = end.clone();
        let tls = ServerTlsConfig::new()
            .identity(TlsIdentity::from_pem(&pki.server.0, &pki.server.1))
            .client_ca_root(Certificate::from_pem(&pki.ca_pem));
        let router = Server::builder().tls_config(tls).unwrap().add_service(AgentsServer::new(self.clone()));
        tokio::spawn(async move {
            tokio::select! {
                done = router.serve_with_incoming(TcpListenerStream::new(listener)) => done.unwrap(),
                () = end.cancelled() => {}
            }
        });
        address
    }

    pub fn told<T>(&self, look: impl FnOnce(&Told) -> T) -> T {
        look(&self.inner.told.lock().unwrap())
    }

    /// Says something to the agent that no feed says.
    pub async fn say(&self, message: from_server::Message) {
        let down = self.inner.down.lock().unwrap().clone().expect("a session");
        down.send(Ok(FromServer { message: Some(message) })).await.expect("a session");
    }

    /// Makes an object exist.
    pub fn put(&self, resource: &str, tree: Value) {
        self.inner.objects.send_modify(|(revision, objects)| {
            *revision += 1;
            let name = tree["metadata"]["name"].as_str().unwrap().to_owned();
            let item = Item {
                resource: resource.to_owned(),
                namespace: tree["metadata"]["namespace"].as_str().unwrap_or_default().to_owned(),
                name: name.clone(),
                uid: tree["metadata"]["uid"].as_str().unwrap_or("u").to_owned(),
                revision: *revision,
                object: serde_json::to_vec(&tree).unwrap(),
            };
            objects.insert((resource.to_owned(), name), item);
        });
    }

    pub fn remove(&self, resource: &str, name: &str) {
        self.inner.objects.send_modify(|(revision, objects)| {
            *revision += 1;
            objects.remove(&(resource.to_owned(), name.to_owned()));
        });
    }

    /// Deletes a pod as the API does: with a grace.
    pub fn delete(&self, pod: &str, grace_s: u64) {
        let item = self.inner.objects.borrow().1.get(&("pods".to_owned(), pod.to_owned())).cloned().unwrap();
        let mut tree: Value = serde_json::from_slice(&item.object).unwrap();
        tree["metadata"]["deletionTimestamp"] = json!("2026-11-26T12:00:00Z");
        tree["metadata"]["deletionGracePeriodSeconds"] = json!(grace_s);
        self.put("pods", tree);
    }

    /// Waits until what agents told fits.
    pub async fn until(&self, what: &str, fits: impl Fn(&Told) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.told(&fits) {
            assert!(Instant::now() < deadline, "still not {what}: {:#?}", self.inner.told.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(5)).await; // poll
        }
    }

    /// The log of a container; `Err` = the agent's words.
    pub async fn logs(&self, request: LogRequest) -> Result<mpsc::Receiver<Result<Vec<u8>, String>>, String> {
        let id = self.inner.next_tunnel.fetch_add(1, Ordering::Relaxed).to_string();
        let (sender, receiver) = mpsc::channel(64);
        self.inner.tunnels.lock().unwrap().insert(id.clone(), sender);
        let open = OpenTunnel { id, what: Some(open_tunnel::What::Logs(request)) };
        let down = self.inner.down.lock().unwrap().clone().ok_or("no session")?;
        let message = FromServer { message: Some(from_server::Message::OpenTunnel(open)) };
        down.send(Ok(message)).await.map_err(|_| "no session".to_owned())?;
        Ok(receiver)
    }

    pub async fn log_text(&self, pod: &str, container: &str) -> Result<String, String> {
        let request = LogRequest {
            namespace: "default".into(),
            pod: pod.into(),
            uid: format!("uid-{pod}"),
            container: container.into(),
            tail_lines: -1,
            ..LogRequest::default()
        };
        let mut chunks = self.logs(request).await?;
        let mut text = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            text.extend(chunk?);
        }
        Ok(String::from_utf8(text).unwrap())
    }

    fn feed(&self) -> FromServer {
        let state = self.inner.objects.borrow();
        let feed = Feed {
            generation: Some(Generation { epoch: 1, revision: state.0 }),
            full: true,
            items: state.1.values().cloned().collect(),
            ..Feed::default()
        };
        FromServer { message: Some(from_server::Message::Feed(feed)) }
    }

    async fn listen(self, mut up: Streaming<FromAgent>) {
        while let Some(Ok(FromAgent { message: Some(message) })) = up.next().await {
            let mut told = self.inner.told.lock().unwrap();
            match message {
                from_agent::Message::Beat(_) => told.beats += 1,
                from_agent::Message::Hello(_) => {}
                from_agent::Message::Settled(settled) => told.settled.push(settled.ticket),
                from_agent::Message::Report(report) => {
                    told.reports += 1;
                    for pod in report.pods {
                        told.statuses.insert(pod.name, serde_json::from_slice(&pod.status).unwrap());
                    }
                    told.events.extend(
                        report.events.iter().map(|event| {
                            format!("{} {} {}: {}", event.name, event.r#type, event.reason, event.message)
                        }),
                    );
                    told.gone.extend(report.gone.into_iter().map(|gone| gone.name));
                }
            }
        }
    }
}

#[tonic::async_trait]
impl Agents for TestServer {
    type SessionStream = ReceiverStream<Result<FromServer, Status>>;
    type TunnelStream = Pin<Box<dyn Stream<Item = Result<TunnelDown, Status>> + Send>>;

    async fn session(&self, request: Request<Streaming<FromAgent>>) -> Result<Response<Self::SessionStream>, Status> {
        assert!(request.peer_certs().is_some(), "the agent must show its certificate");
        let mut up = request.into_inner();
        let Some(Ok(FromAgent { message: Some(from_agent::Message::Hello(hello)) })) = up.next().await else {
            return Err(Status::invalid_argument("no hello"));
        };
        assert_eq!(hello.node, NODE);
        {
            let mut told = self.inner.told.lock().unwrap();
            told.hellos += 1;
            told.node = serde_json::from_slice(&hello.node_object).unwrap();
        }
        let (down, receiver) = mpsc::channel(16);
        *self.inner.down.lock().unwrap() = Some(down.clone());
        let welcome = Welcome { protocol: 1, settings: Some(self.inner.settings.clone()), ..Welcome::default() };
        down.send(Ok(FromServer { message: Some(from_server::Message::Welcome(welcome)) })).await.unwrap();
        tokio::spawn(self.clone().listen(up));
        let this = self.clone();
        tokio::spawn(async move {
            let end = this.inner.end.lock().unwrap().clone();
            let mut changes = this.inner.objects.subscribe();
            loop {
                changes.borrow_and_update();
                if down.send(Ok(this.feed())).await.is_err() {
                    return;
                }
                tokio::select! {
                    changed = changes.changed() => changed.unwrap(),
                    () = end.cancelled() => break,
                }
            }
            *this.inner.down.lock().unwrap() = None;
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn renew(
        &self,
        request: Request<coracle_protocol::v1::Renewal>,
    ) -> Result<Response<coracle_protocol::v1::Renewed>, Status> {
        let signs = self.inner.signs.lock().unwrap();
        let pki = signs.as_ref().ok_or_else(|| Status::unimplemented("this server signs nothing"))?;
        let asked = rcgen::CertificateSigningRequestParams::from_pem(&request.into_inner().request).unwrap();
        let mut signed = asked;
        signed.params = CertificateParams::default();
        signed.params.distinguished_name = rcgen::DistinguishedName::new();
        signed.params.distinguished_name.push(DnType::CommonName, format!("system:node:{NODE}"));
        signed.params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        let certificate = signed.signed_by(&**pki).unwrap().pem();
        Ok(Response::new(coracle_protocol::v1::Renewed { certificate, authority: String::new() }))
    }

    async fn tunnel(&self, request: Request<Streaming<TunnelUp>>) -> Result<Response<Self::TunnelStream>, Status> {
        let mut up = request.into_inner();
        let Some(Ok(first)) = up.next().await else { return Err(Status::cancelled("closed")) };
        let sender =
            self.inner.tunnels.lock().unwrap().remove(&first.id).ok_or_else(|| Status::not_found("nobody waits"))?;
        let (closed, stream) = mpsc::channel::<Result<TunnelDown, Status>>(1);
        tokio::spawn(async move {
            loop {
                let message = tokio::select! {
                    message = up.next() => message,
                    () = sender.closed() => break,
                };
                let Some(Ok(message)) = message else { break };
                let item = if message.error.is_empty() { Ok(message.data) } else { Err(message.error) };
                if sender.send(item).await.is_err() {
                    break;
                }
            }
            drop(closed);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

pub fn container(extra: Value) -> Value {
    let mut container = json!({"name": "c", "image": "test/busybox:1", "imagePullPolicy": "IfNotPresent"});
    for (field, value) in extra.as_object().unwrap() {
        container[field] = value.clone();
    }
    container
}

pub fn pod(name: &str, containers: Value, extra: Value) -> Value {
    let mut spec = json!({"nodeName": NODE, "terminationGracePeriodSeconds": 5, "containers": containers});
    for (field, value) in extra.as_object().unwrap() {
        spec[field] = value.clone();
    }
    json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": {"app": name}}, "spec": spec})
}

pub fn sh(script: &str) -> Value {
    container(json!({"command": ["sh", "-c", script]}))
}

/// A node of its own network namespace, with a server beside it.
pub struct Lab {
    pub dir: tempfile::TempDir,
    pub pki: Pki,
    pub server: TestServer,
    pub server_end: tokio_util::sync::CancellationToken,
    pub address: SocketAddr,
    pub drain: Drain,
    pub agent: AgentHandle,
    pub name: String,
    sweep: Sweep,
}

/// What a failed test would leave behind: everything runs in cgroups of the lab's name.
struct Sweep(String);

impl Drop for Sweep {
    fn drop(&mut self) {
        // Several times: a parent goes when its children have gone.
        for _ in 0..50 {
            let roots = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
            let left = roots.map(|root| root.path().join(&self.0)).filter(|path| path.exists() && !sweep(path)).count();
            if left == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(20)); // poll
        }
    }
}

/// Kills what is in a cgroup and below, and removes it. `true` when it is gone.
fn sweep(dir: &Path) -> bool {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        sweep(&entry.path());
    }
    for pid in std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default().lines() {
        if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let _ = std::fs::remove_dir(dir);
    !dir.exists()
}

/// Runs a test in a network namespace of its own; `None` when the machine cannot.
pub fn in_own_network<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: needs root");
        return;
    }
    if busybox().is_none() {
        println!("SKIP: needs a static busybox");
        return;
    }
    let thread = std::thread::Builder::new().name("own-network".into()).spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
        if !up.is_ok_and(|status| status.success()) {
            println!("SKIP: needs ip (iproute2)");
            return;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(test());
        runtime.shutdown_timeout(Duration::from_secs(5));
    });
    thread.unwrap().join().unwrap();
}

pub fn busybox() -> Option<PathBuf> {
    ["/bin/busybox", "/usr/bin/busybox"].iter().map(PathBuf::from).find(|path| path.exists())
}

pub async fn import_busybox(store: &ImageStore, dir: &Path) {
    let layout = Layout::create(dir.join("oci")).unwrap();
    let mut layer = LayerBuilder::new();
    layer
        .file_from("bin/busybox", busybox().unwrap(), Attributes::mode(0o755))
        .directory("tmp", Attributes::mode(0o1777))
        .directory("proc", Attributes::mode(0o755))
        .directory("sys", Attributes::mode(0o755))
        .directory("dev", Attributes::mode(0o755))
        .file("etc/passwd", "root:x:0:0::/root:/bin/sh\napp:x:1234:1235::/home/app:/bin/sh\n", Attributes::mode(0o644))
        .file("etc/group", "root:x:0:\napp:x:1235:\n", Attributes::mode(0o644));
    for tool in [
        "sh", "cat", "sleep", "id", "ls", "echo", "httpd", "nslookup", "wget", "grep", "env", "touch", "test",
        "hostname", "seq", "head", "tail", "dd", "mount", "stat", "true", "false", "nc",
    ] {
        layer.symlink(format!("bin/{tool}"), "busybox");
    }
    let layer = layout.layer(&layer, Compress::None).unwrap();
    let run = RunConfig { cmd: vec!["/bin/sh".into()], env: vec!["PATH=/bin".into()], ..RunConfig::default() };
    layout.image("test/busybox:1", &run, &[layer]).unwrap();
    store.import(&dir.join("oci"), Arc::new(Quiet)).await.unwrap();
}

static LABS: AtomicU64 = AtomicU64::new(0);

impl Lab {
    pub async fn new() -> Self {
        let name = format!("ca{}x{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix("coracle-agent").tempdir().unwrap();
        let (pki, server, server_end) = (Pki::new(), TestServer::new(), tokio_util::sync::CancellationToken::new());
        let address = server.serve(&pki, 0, server_end.clone()).await;
        let drain = Drain::new();
        let agent = Agent::start(config(&name, dir.path(), &pki, address), drain.watch()).await.unwrap();
        import_busybox(agent.images(), dir.path()).await;
        Self { dir, pki, server, server_end, address, drain, agent, sweep: Sweep(name.clone()), name }
    }

    /// Ends the agent as a stop of the process would, `meanwhile`, and starts another.
    pub async fn restart(self, meanwhile: impl AsyncFnOnce(&TestServer)) -> Self {
        let Self { dir, pki, server, server_end, address, drain, agent, name, sweep } = self;
        drop(agent);
        drain.finish(Duration::from_secs(10)).await;
        meanwhile(&server).await;
        let drain = Drain::new();
        let agent = Agent::start(config(&name, dir.path(), &pki, address), drain.watch()).await.unwrap();
        Self { dir, pki, server, server_end, address, drain, agent, name, sweep }
    }

    /// Takes everything down and looks for what is left.
    pub async fn end(self) {
        let left = self.agent.remove_everything(Duration::from_secs(20)).await;
        assert!(left.is_empty(), "{left:?}");
        self.drain.finish(Duration::from_secs(10)).await;
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let ours = self.dir.path().display().to_string();
        assert!(!mounts.contains(&ours), "mounts are left:\n{mounts}");
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            let path = hierarchy.path().join(&self.name);
            assert!(!path.exists(), "{} is left", path.display());
        }
        let links = std::process::Command::new("ip").args(["-o", "link"]).output().unwrap();
        let links = String::from_utf8_lossy(&links.stdout).into_owned();
        let ours: Vec<_> = links.lines().filter(|line| !line.contains(": lo:")).collect();
        assert!(ours.is_empty(), "links are left: {ours:?}");
    }
}

fn config(name: &str, dir: &Path, pki: &Pki, address: SocketAddr) -> AgentConfig {
    AgentConfig {
        node_name: NODE.into(),
        data_dir: dir.join("data"),
        run_dir: dir.join("run"),
        servers: vec![ServerEndpoint { address: address.to_string() }],
        identity: Identity { cert_pem: pki.node.0.clone(), key_pem: pki.node.1.clone(), ca_pem: pki.ca_pem.clone() },
        network: NetworkNames { bridge: "coracle0".into(), table: "coracle".into() },
        cgroup_name: name.into(),
        node_ip: Some(Ipv4Addr::new(192, 0, 2, 10)),
        labels: BTreeMap::new(),
        max_pods: 250,
        blob_listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        dns_upstreams: vec![SocketAddr::from(([127, 0, 0, 1], 9))],
    }
}
