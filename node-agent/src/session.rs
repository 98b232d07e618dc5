//! The stream to a server: dial, say hello, beat, report, take feeds; dial again when it breaks.
//!
//! Nothing on this node waits for it: with no server at all everything goes on from the ledger.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_base::Release;
use coracle_base::level::{LETS_GO, LEVEL};
use coracle_protocol::tls::{Papers, RENEW_BELOW, TlsError, Wallet, life_left};
use coracle_protocol::v1::agents_client::AgentsClient;
use coracle_protocol::v1::{
    Beat, FromAgent, FromServer, Generation, Hello, Item, Renewal, Settings, Settle, Settled, from_agent, from_server,
};
use coracle_protocol::{MAX_MESSAGE_BYTES, PROTOCOL, packed};
use rand::RngExt as _;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::config::{Identity, ServerEndpoint};
use crate::facilities::boottime_ms;
use crate::ledger::{Ledger, LedgerError, Refused, State};
use crate::outbox::Outbox;
use crate::tunnels::Tunnels;

/// A server that does not answer is left for the next.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// The stream is dead when for this long nothing has come, and again after a ping.
const KEEP_ALIVE: Duration = Duration::from_millis(1500);
/// First wait after a broken session, doubled to the last; a random half of it is left out, so that thousands of agents do
/// not come back in step.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);
/// A session that lasted so long was a good one.
const GOOD_AFTER: Duration = Duration::from_secs(10);
/// Between looks at the certificate's remaining life.
const LOOK_AT_PAPERS: Duration = Duration::from_secs(60);
/// How long a cluster that begins anew has to take over what runs here.
const ORPHANS_KEPT: Duration = Duration::from_secs(60);
/// Between reports.
const REPORT_EVERY: Duration = Duration::from_millis(100);
const BEAT_EVERY: Duration = Duration::from_secs(1);
const BEAT_FASTEST: Duration = Duration::from_millis(100);
const BEAT_SLOWEST: Duration = Duration::from_secs(60);
/// Messages on their way up: the stream's own window does the rest.
const UP_QUEUE: usize = 4;

/// Where the session stands, for the status page.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionState {
    /// Whether a session is open.
    pub connected: bool,
    /// Why not.
    pub because: Option<String>,
    /// The server talked to last.
    pub server: Option<String>,
}

/// Which fenced pods may run, and until when.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leases {
    /// On the clock that counts while the machine sleeps, in milliseconds.
    pub until_boottime_ms: u64,
    /// Uids.
    pub pods: std::collections::HashSet<String>,
}

/// Pods that are leaving and that no node sends anything new.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LetGo {
    /// A server that says so has been talked to: without one nobody is waited for.
    pub heard: bool,
    /// Uids.
    pub pods: Arc<std::collections::HashSet<String>>,
}

/// Endpoints that a server waits for in one round, at most.
const SETTLES: usize = 64;

/// Everything a session needs.
pub struct Session {
    /// The node's name.
    pub node: String,
    /// Who we are; renewed here, long before it ends.
    pub identity: watch::Sender<Identity>,
    /// Where a renewed certificate and its key are kept: `node.crt`, `node.key`.
    pub pki: PathBuf,
    /// Servers to begin with; the cluster names the others.
    pub servers: Vec<ServerEndpoint>,
    /// What is held; the session is its only writer.
    pub ledger: Ledger,
    /// What is to be said.
    pub outbox: Arc<Outbox>,
    /// The Node object for the hello, made anew for each.
    pub node_object: Arc<dyn Fn() -> Vec<u8> + Send + Sync>,
    /// Streams a server asks for.
    pub tunnels: Tunnels,
    /// Where it stands.
    pub state: watch::Sender<SessionState>,
    /// What the cluster's leader has granted last.
    pub lease: watch::Sender<Leases>,
    /// Pods that may be ended.
    pub let_go: watch::Sender<LetGo>,
    /// What the kernel's tables were last made of.
    pub applied: watch::Receiver<State>,
    /// Until when pods of an older life of the cluster are kept for the new one; `None` at the start.
    pub orphans_until: Option<Instant>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("no connection to server {0}")]
    Connect(String, #[source] tonic::transport::Error),
    #[error("server {0} refuses the session: {1}")]
    Refused(String, String),
    #[error("the session with server {0} broke: {1}")]
    Broke(String, String),
    #[error("server {0} closed the session")]
    Closed(String),
    #[error("server {0} is behind what this node has seen")]
    Behind(String, #[source] Refused),
    #[error("server {0} sent a feed that cannot be unpacked: {1}")]
    Packed(String, String),
    #[error("the ledger")]
    Ledger(#[from] LedgerError),
}

impl Session {
    /// Keeps a session open until `end`.
    pub async fn run(mut self, end: CancellationToken) {
        let mut wait = RETRY_FIRST;
        let mut turn = 0;
        if self.servers.is_empty() {
            return;
        }
        let wallet = match self.wallet() {
            Ok(wallet) => wallet,
            Err(error) => {
                tracing::error!(%error, "the agent cannot talk to servers");
                self.state.send_modify(|state| state.because = Some(error.to_string()));
                return;
            }
        };
        loop {
            let servers = self.known_servers();
            let server = servers[turn % servers.len()].clone();
            turn += 1;
            let began = Instant::now();
            let outcome = tokio::select! {
                // Cancel safe: the ledger takes a feed whole or not at all, the outbox says it again.
                outcome = self.once(&server, &wallet) => outcome,
                () = end.cancelled() => return,
            };
            if let Err(error) = outcome {
                let words = coracle_base::one_line(&error);
                if self.state.borrow().because.as_ref() != Some(&words) {
                    tracing::warn!(
                        server = server.address,
                        reason = words,
                        "no session with a server; what runs goes on"
                    );
                }
                self.state.send_modify(|state| {
                    state.connected = false;
                    state.because = Some(words);
                });
            }
            if began.elapsed() > GOOD_AFTER {
                wait = RETRY_FIRST;
            }
            let jitter = rand::rng().random_range(0.5..1.0);
            tokio::select! {
                // Cancel safe.
                () = tokio::time::sleep(wait.mul_f64(jitter)) => {}
                () = end.cancelled() => return,
            }
            wait = (wait * 2).min(RETRY_LAST);
        }
    }

    fn wallet(&self) -> Result<Wallet, TlsError> {
        Wallet::new(&papers(&self.identity.borrow()))
    }

    /// A new certificate for a new key, when little of the old one's life is left.
    async fn renew(&self, client: &mut AgentsClient<Channel>, wallet: &Wallet) -> Result<(), String> {
        let now = self.identity.borrow().clone();
        if life_left(&now.cert_pem).map_err(|error| error.to_string())? > RENEW_BELOW {
            return Ok(());
        }
        let (request, key_pem) = request().map_err(|error| error.to_string())?;
        let renewed = client.renew(Renewal { request }).await;
        let renewed = renewed.map_err(|status| status.message().to_owned())?.into_inner();
        let new = Identity { cert_pem: renewed.certificate, key_pem, ca_pem: now.ca_pem };
        wallet.renew(&papers(&new)).map_err(|error| error.to_string())?;
        // The key first: a certificate whose key is lost is worth nothing, a key without its certificate is asked for again.
        for (name, text) in [("node.key", &new.key_pem), ("node.crt", &new.cert_pem)] {
            keep(&self.pki, name, text)
                .map_err(|error| format!("cannot write {}: {error}", self.pki.join(name).display()))?;
        }
        self.identity.send_replace(new);
        tracing::info!("the node's certificate was renewed");
        Ok(())
    }

    /// Those of the start, and those the cluster has named since.
    fn known_servers(&self) -> Vec<ServerEndpoint> {
        let mut servers = self.servers.clone();
        let state = self.ledger.state();
        let named = state.settings.iter().flat_map(|settings| settings.servers.clone());
        for address in named {
            if servers.iter().all(|known| known.address != address) {
                servers.push(ServerEndpoint { address });
            }
        }
        servers
    }

    /// One session, from dialling to its end.
    async fn once(&mut self, server: &ServerEndpoint, wallet: &Wallet) -> Result<(), SessionError> {
        let name = server.address.clone();
        let dialled = wallet.dial(&name, CONNECT_WITHIN, KEEP_ALIVE).await;
        let channel = dialled.map_err(|error| SessionError::Connect(name.clone(), error))?;
        let mut client = AgentsClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let (up, receiver) = mpsc::channel(UP_QUEUE);
        let state = self.ledger.state();
        let (have, tables) = (state.generation, state.tables.to_vec());
        let hello = Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node.clone(),
            have: Some(Generation { epoch: have.epoch, revision: have.revision }),
            node_object: (self.node_object)(),
            level: LEVEL,
            tables,
            unpacks: true,
        };
        self.ledger.begin_session();
        self.outbox.begin_session();
        self.orphans_until = None;
        // The queue is empty and holds more than one.
        let _ = up.send(message(from_agent::Message::Hello(hello))).await;
        let answer = client.session(ReceiverStream::new(receiver)).await;
        let mut down =
            answer.map_err(|status| SessionError::Refused(name.clone(), status.message().to_owned()))?.into_inner();
        let (settles, asked) = mpsc::channel(SETTLES);
        let talk =
            talk(self.outbox.clone(), up, self.ledger.watch(), Settling { asked, applied: self.applied.clone() });
        tokio::pin!(talk);
        let mut look = tokio::time::interval(LOOK_AT_PAPERS);
        loop {
            let orphans_until = self.orphans_until;
            let received = tokio::select! {
                // Cancel safe: tonic keeps a partly received message.
                received = down.message() => received,
                () = &mut talk => return Err(SessionError::Closed(name)),
                _ = look.tick() => {
                    // It is tried again at the next look, and there are months of them.
                    if let Err(reason) = self.renew(&mut client, wallet).await {
                        tracing::warn!(reason, "the node's certificate could not be renewed yet");
                    }
                    continue;
                }
                () = async {
                    match orphans_until {
                        Some(until) => tokio::time::sleep_until(until).await,
                        None => std::future::pending().await,
                    }
                } => {
                    self.orphans_until = None;
                    self.ledger.drop_orphans().await?;
                    continue;
                }
            };
            match received {
                Ok(Some(FromServer { message: Some(received) })) => {
                    self.take(&name, received, &client, &settles).await?
                }
                Ok(Some(FromServer { message: None })) => tracing::debug!("a message of a newer server is ignored"),
                Ok(None) => return Err(SessionError::Closed(name)),
                Err(status) => return Err(SessionError::Broke(name, status.message().to_owned())),
            }
        }
    }

    async fn take(
        &mut self,
        server: &str,
        received: from_server::Message,
        client: &AgentsClient<Channel>,
        settles: &mpsc::Sender<Settle>,
    ) -> Result<(), SessionError> {
        match received {
            from_server::Message::Welcome(welcome) => {
                let release = Release::stated(welcome.level, &welcome.version);
                if let Some(reason) = Release::own().refuses(&release) {
                    return Err(SessionError::Refused(server.to_owned(), reason));
                }
                tracing::info!(
                    server,
                    cluster = welcome.cluster_id,
                    version = welcome.version,
                    level = release.level,
                    "session with a server"
                );
                self.let_go.send_modify(|let_go| let_go.heard = release.level >= LETS_GO);
                self.state.send_replace(SessionState {
                    connected: true,
                    because: None,
                    server: Some(server.to_owned()),
                });
                if let Some(settings) = welcome.settings {
                    self.settle(settings).await?;
                }
            }
            from_server::Message::Settings(settings) => self.settle(settings).await?,
            from_server::Message::Feed(mut feed) => {
                packed::unpack(&mut feed).map_err(|reason| SessionError::Packed(server.to_owned(), reason))?;
                match self.ledger.apply(feed).await? {
                    Ok(()) => self.tell_orphans(),
                    // Another server may know more; this one may catch up.
                    Err(refused) => return Err(SessionError::Behind(server.to_owned(), refused)),
                }
            }
            from_server::Message::Lease(lease) => {
                let until = lease.sent_boottime_ms.saturating_add(lease.ttl_ms);
                self.lease.send_replace(Leases { until_boottime_ms: until, pods: lease.pods.into_iter().collect() });
            }
            // One that finds no room is not answered, and the server does not wait for ever.
            from_server::Message::Settle(settle) => drop(settles.try_send(settle)),
            from_server::Message::LetGone(gone) => self.let_go(gone.pods),
            from_server::Message::OpenTunnel(open) => self.tunnels.open(open, client.clone()),
        }
        Ok(())
    }

    /// Remembers them for as long as they are here.
    fn let_go(&mut self, gone: Vec<String>) {
        let state = self.ledger.state();
        let here: std::collections::HashSet<&str> = state.list("pods").map(|(_, held)| held.uid.as_str()).collect();
        self.let_go.send_modify(|let_go| {
            let known = let_go.pods.iter().cloned().chain(gone);
            let_go.pods = Arc::new(known.filter(|uid| here.contains(uid.as_str())).collect());
        });
    }

    /// Says what runs here and belongs to an older life of the cluster, once a session.
    fn tell_orphans(&mut self) {
        let state = self.ledger.state();
        if state.orphans.is_empty() {
            self.orphans_until = None;
            return;
        }
        if self.orphans_until.is_some() {
            return;
        }
        self.orphans_until = Some(Instant::now() + ORPHANS_KEPT);
        let items = state.orphans.iter().filter_map(|key| {
            let held = state.objects.get(key)?;
            Some(Item {
                resource: key.resource.to_string(),
                namespace: key.namespace.to_string(),
                name: key.name.to_string(),
                uid: held.uid.clone(),
                revision: held.revision,
                object: serde_json::to_vec(&held.tree).unwrap_or_default(),
            })
        });
        self.outbox.orphans(items.collect());
    }

    async fn settle(&mut self, settings: Settings) -> Result<(), SessionError> {
        Ok(self.ledger.settle(settings).await?)
    }
}

fn papers(identity: &Identity) -> Papers {
    let Identity { cert_pem, key_pem, ca_pem } = identity.clone();
    Papers { cert_pem, key_pem, ca_pem }
}

/// A new key and a request to have it signed, both PEM.
fn request() -> Result<(String, String), rcgen::Error> {
    let key = rcgen::KeyPair::generate()?;
    let request = rcgen::CertificateParams::default().serialize_request(&key)?;
    Ok((request.pem()?, key.serialize_pem()))
}

/// Writes a private file so that a crash leaves the old one or the new one.
fn keep(folder: &Path, name: &str, text: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let (path, temp) = (folder.join(name), folder.join(format!("{name}.new")));
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temp)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temp, &path)?;
    std::fs::File::open(folder)?.sync_all()
}

fn message(message: from_agent::Message) -> FromAgent {
    FromAgent { message: Some(message) }
}

/// What servers wait for in this node's kernel.
struct Settling {
    asked: mpsc::Receiver<Settle>,
    applied: watch::Receiver<State>,
}

impl Settling {
    /// The next ticket whose slices the kernel has, of those that `wait`. Cancel safe.
    async fn next(&mut self, wait: &mut Vec<Settle>) -> u64 {
        loop {
            let state = self.applied.borrow_and_update().clone();
            if let Some(at) = wait.iter().position(|settle| has(&state, settle)) {
                return wait.swap_remove(at).ticket;
            }
            tokio::select! {
                // Cancel safe both.
                settle = self.asked.recv() => match settle {
                    Some(settle) if wait.len() < SETTLES => wait.push(settle),
                    Some(_) => {}
                    None => std::future::pending().await,
                },
                changed = self.applied.changed(), if !wait.is_empty() => if changed.is_err() { std::future::pending().await },
            }
        }
    }
}

/// Whether the tables were made of these slices or later ones. One that is not there sends nothing anywhere.
fn has(state: &State, settle: &Settle) -> bool {
    let slices = settle.slices.iter().flat_map(|slices| &slices.slices);
    slices.into_iter().all(|at| {
        let held = state.get("endpointslices.discovery.k8s.io", &at.namespace, &at.name);
        let generation = (state.generation.epoch, held.map_or(u64::MAX, |held| held.revision));
        generation >= (at.epoch, at.revision)
    })
}

/// Beats, reports and what is settled, until the stream no longer takes them.
async fn talk(outbox: Arc<Outbox>, up: mpsc::Sender<FromAgent>, state: watch::Receiver<State>, mut settling: Settling) {
    let mut unsettled = Vec::new();
    let mut next_beat = Instant::now();
    let mut quiet_until = Instant::now();
    loop {
        let sent = tokio::select! {
            // Cancel safe: a report is taken only after the wait.
            () = tokio::time::sleep_until(next_beat) => {
                next_beat = Instant::now() + beat_interval(&state.borrow());
                up.send(message(from_agent::Message::Beat(Beat { sent_boottime_ms: boottime_ms() }))).await
            }
            () = async { outbox.ready().await; tokio::time::sleep_until(quiet_until).await } => {
                let Some(report) = outbox.take() else { continue };
                quiet_until = Instant::now() + REPORT_EVERY;
                up.send(message(from_agent::Message::Report(report))).await
            }
            ticket = settling.next(&mut unsettled) => up.send(message(from_agent::Message::Settled(Settled { ticket }))).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// As the cluster wants it: it stretches beats as the number of its agents grows.
fn beat_interval(state: &State) -> Duration {
    let told = state.settings.as_ref().map_or(0, |settings| settings.beat_interval_ms);
    if told == 0 { BEAT_EVERY } else { Duration::from_millis(u64::from(told)).clamp(BEAT_FASTEST, BEAT_SLOWEST) }
}
