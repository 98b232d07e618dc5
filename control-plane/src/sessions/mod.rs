//! The door for agents: one gRPC stream each, over mTLS. Assignments and feeds go down, beats and reports come up.
//!
//! Beats stay in RAM (`beats`); everything else an agent reports becomes proposals (`report`). A session never decides
//! what an agent should run: it sends what the memory says (`feed`).

mod feed;
mod register;
mod report;
mod settle;
mod tunnels;

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coracle_base::Release;
use coracle_base::level::{LETS_GO, LEVEL};
use coracle_protocol::v1::agents_server::{Agents, AgentsServer};
use coracle_protocol::v1::{
    BeatsReport, FromAgent, FromServer, Lease, NodeBeat, Renewal, Renewed, Settings, TunnelDown, TunnelUp, Welcome,
    from_agent, from_server,
};
use coracle_protocol::{MAX_MESSAGE_BYTES, PROTOCOL};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::pki::{Authority, NODES};
use coracle_api::Memory;
pub use register::NetworkPlan;
pub(crate) use settle::{Leaving, LettingGo};
pub use tunnels::{TunnelChunks, TunnelError};

/// An agent that says nothing for so long after connecting is hung up on.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// What a report could not store is tried again after this, then at longer intervals.
const RETRY_AFTER: Duration = Duration::from_millis(100);
const RETRY_AT_MOST: Duration = Duration::from_secs(2);
/// Messages waiting for one agent: a feed is made only when the one before went out, so a handful is enough.
const DOWN_QUEUE: usize = 16;

/// What goes down to an agent.
pub type Down = Pin<Box<dyn Stream<Item = Result<FromServer, Status>> + Send>>;

/// How a node's last beat looks from here.
#[derive(Debug, Clone, Copy)]
pub struct BeatAge {
    /// Since the last beat, or since this server began to lead when there was none.
    pub age: Duration,
    /// Whether a session is open.
    pub connected: bool,
}

struct AgentEntry {
    /// Which session owns the entry: a reconnect replaces the older one.
    session: u64,
    last_beat: Instant,
    /// When the last beat was sent, on the agent's clock.
    sent_boottime_ms: u64,
    connected: bool,
    /// Its release says when its kernel has what it is asked for.
    settles: bool,
    down: mpsc::Sender<Result<FromServer, Status>>,
}

/// Leases, while this server leads.
#[derive(Default)]
struct Grants {
    /// When a node was last granted some.
    at: HashMap<String, Instant>,
    /// Nodes that count as dead: they get none.
    silent: std::collections::HashSet<String>,
}

/// What another server said of a node.
struct Heard {
    last_beat: Instant,
    connected: bool,
}

/// All sessions of this server. Cheap to clone.
#[derive(Clone)]
pub struct Sessions {
    inner: Arc<Inner>,
}

struct Inner {
    memory: Arc<dyn Memory>,
    cluster_id: String,
    plan: NetworkPlan,
    authority: Arc<Authority>,
    agents: Mutex<BTreeMap<String, AgentEntry>>,
    /// Nodes whose sessions other servers hold: while this one leads. Bounded by the nodes there are.
    heard: Mutex<HashMap<String, Heard>>,
    grants: Mutex<Grants>,
    /// Where the cluster's servers listen.
    servers: Mutex<Vec<String>>,
    /// Whether this server has heard of a leader lately: without one it knows nothing new.
    useful: std::sync::atomic::AtomicBool,
    tunnels: tunnels::Waiting,
    /// Rounds that wait for agents' kernels.
    rounds: settle::Rounds,
    /// Pods that are about to be ended, on their way to who asks all nodes.
    leaving: Mutex<Option<mpsc::Sender<Leaving>>>,
    next_session: std::sync::atomic::AtomicU64,
    feeds: Arc<feed::Feeds>,
    /// Which blocks of addresses new nodes may ask for.
    newcomers: register::Shared,
    /// Milliseconds between the beats of an agent.
    beat_every: std::sync::atomic::AtomicU32,
}

/// Milliseconds between the beats of an agent in a cluster of so many nodes. At the slowest a lease, which answers a beat and lasts
/// [`coracle_controllers::nodehealth::LEASE_MS`], is still renewed twice before it ends.
fn beat_every(nodes: usize) -> u32 {
    match nodes {
        0..=2000 => 1000,
        2001..=5000 => 1500,
        _ => 2000,
    }
}

impl Sessions {
    /// Sessions over a memory, with the network every agent is told of.
    pub fn new(memory: Arc<dyn Memory>, cluster_id: String, plan: NetworkPlan, authority: Arc<Authority>) -> Self {
        Self {
            inner: Arc::new(Inner {
                feeds: feed::Feeds::new(memory.clone()),
                memory,
                cluster_id,
                plan,
                authority,
                agents: Mutex::default(),
                heard: Mutex::default(),
                grants: Mutex::default(),
                servers: Mutex::default(),
                useful: std::sync::atomic::AtomicBool::new(true),
                tunnels: tunnels::Waiting::default(),
                rounds: settle::Rounds::default(),
                leaving: Mutex::default(),
                next_session: std::sync::atomic::AtomicU64::new(1),
                newcomers: register::Shared::default(),
                beat_every: beat_every(0).into(),
            }),
        }
    }

    /// The gRPC service.
    #[must_use]
    pub fn service(&self) -> AgentsServer<Self> {
        AgentsServer::new(self.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Age of each known node's last beat: of the sessions here, and of those that other servers told of.
    #[must_use]
    pub fn beats(&self) -> HashMap<String, BeatAge> {
        let now = Instant::now();
        let mut ages: HashMap<String, BeatAge> = self
            .agents()
            .iter()
            .map(|(node, entry)| (node.clone(), BeatAge { age: now - entry.last_beat, connected: entry.connected }))
            .collect();
        for (node, heard) in lock(&self.inner.heard).iter() {
            let told = BeatAge { age: now - heard.last_beat, connected: heard.connected };
            let known = ages.entry(node.clone()).or_insert(told);
            if told.age < known.age {
                *known = told;
            }
        }
        ages
    }

    /// What this server knows of its agents, for the leader.
    pub(crate) fn report(&self, server: u64) -> BeatsReport {
        let now = Instant::now();
        let agents = self.agents();
        let beats = agents.iter().map(|(node, entry)| NodeBeat {
            node: node.clone(),
            age_ms: u64::try_from((now - entry.last_beat).as_millis()).unwrap_or(u64::MAX),
            connected: entry.connected,
            sent_boottime_ms: entry.sent_boottime_ms,
        });
        BeatsReport { server, beats: beats.collect() }
    }

    /// Another server tells of its agents. Only nodes of the cluster are kept.
    pub(crate) fn hear_of(&self, report: BeatsReport) {
        let view = self.inner.memory.view();
        let now = Instant::now();
        let mut heard = lock(&self.inner.heard);
        for beat in report.beats {
            if view.find("nodes", "", &beat.node).is_none() {
                continue;
            }
            let last_beat = now.checked_sub(Duration::from_millis(beat.age_ms)).unwrap_or(now);
            let newer = heard.get(&beat.node).is_none_or(|known| known.last_beat <= last_beat);
            if newer {
                heard.insert(beat.node, Heard { last_beat, connected: beat.connected });
            }
        }
        heard.retain(|node, _| view.find("nodes", "", node).is_some());
    }

    /// Leases for nodes whose beats (node, when it was sent) have come to the leader, which has been confirmed since.
    pub(crate) fn grant(&self, nodes: &[(String, u64)]) -> Vec<Lease> {
        let view = self.inner.memory.view();
        let mut fenced: HashMap<&str, Vec<String>> = HashMap::new();
        for pod in view.marked(coracle_store::Mark::Fenced) {
            if let Some(node) = pod.tree()["spec"]["nodeName"].as_str() {
                fenced.entry(node).or_default().push(pod.uid.to_string());
            }
        }
        let mut grants = lock(&self.inner.grants);
        let mut leases = Vec::new();
        for (node, sent_boottime_ms) in nodes {
            let pods = fenced.get(node.as_str()).cloned().unwrap_or_default();
            if pods.is_empty() || *sent_boottime_ms == 0 || grants.silent.contains(node) {
                continue;
            }
            grants.at.insert(node.clone(), Instant::now());
            leases.push(Lease {
                node: node.clone(),
                sent_boottime_ms: *sent_boottime_ms,
                ttl_ms: coracle_controllers::nodehealth::LEASE_MS,
                pods,
            });
        }
        leases
    }

    /// Nodes that count as dead get no leases from now on. Returns how long ago each node was last granted some by this server: what
    /// is read after this call only grows.
    pub(crate) fn silence(&self, nodes: Vec<String>) -> HashMap<String, Duration> {
        let mut grants = lock(&self.inner.grants);
        grants.silent = nodes.into_iter().collect();
        grants.at.iter().map(|(node, at)| (node.clone(), at.elapsed())).collect()
    }

    /// A new leadership begins, or ends: what others said and what was granted before says nothing now.
    pub(crate) fn forget(&self) {
        lock(&self.inner.heard).clear();
        *lock(&self.inner.grants) = Grants::default();
    }

    /// Sends leases to the agents of this server.
    pub(crate) fn pass_on(&self, leases: Vec<Lease>) {
        for lease in leases {
            let down = self.agents().get(&lease.node).filter(|entry| entry.connected).map(|entry| entry.down.clone());
            // One that is lost comes again with the next beat.
            if let Some(down) = down {
                let _ = down.try_send(Ok(FromServer { message: Some(from_server::Message::Lease(lease)) }));
            }
        }
    }

    /// Milliseconds between the beats of an agent: what counts as silence stretches with it.
    pub(crate) fn beat_every(&self) -> u32 {
        self.inner.beat_every.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Where the cluster's servers listen now: agents are told, and how often they should beat in a cluster of this size.
    pub(crate) fn servers_are(&self, servers: Vec<String>) {
        {
            let every = beat_every(self.inner.memory.view().list("nodes", None).count());
            let before = self.inner.beat_every.swap(every, std::sync::atomic::Ordering::Relaxed);
            let mut known = lock(&self.inner.servers);
            if *known == servers && before == every {
                return;
            }
            *known = servers;
        }
        let agents: Vec<(String, mpsc::Sender<Result<FromServer, Status>>)> =
            self.agents().iter().map(|(node, entry)| (node.clone(), entry.down.clone())).collect();
        for (node, down) in agents {
            let view = self.inner.memory.view();
            let Some(stored) = view.find("nodes", "", &node) else { continue };
            let cidr = stored.tree()["spec"]["podCIDR"].as_str().unwrap_or_default().to_owned();
            let message = from_server::Message::Settings(self.settings(cidr));
            // One whose queue is full hears of it at its next session.
            let _ = down.try_send(Ok(FromServer { message: Some(message) }));
        }
    }

    /// Whether a leader is in reach. Without one the agents are sent away: another server may know more.
    pub(crate) fn is_useful(&self, useful: bool) {
        let before = self.inner.useful.swap(useful, std::sync::atomic::Ordering::Relaxed);
        if before && !useful {
            tracing::warn!("no leader is in reach: agents are asked to try another server");
            let mut agents = self.agents();
            for entry in agents.values_mut() {
                entry.connected = false;
                let _ = entry.down.try_send(Err(Status::unavailable("this server has lost the cluster's leader")));
                // The feed ends with the queue, and the listener with its session's number.
                entry.down = mpsc::channel(1).0;
                entry.session = 0;
            }
        }
    }

    /// Streams a container's log from the node it is on.
    ///
    /// # Errors
    /// The node has no session, or does not answer.
    pub async fn logs(
        &self,
        node: &str,
        request: coracle_protocol::v1::LogRequest,
    ) -> Result<TunnelChunks, TunnelError> {
        let down = self.agents().get(node).filter(|entry| entry.connected).map(|entry| entry.down.clone());
        let down = down.ok_or_else(|| TunnelError::Away(node.to_owned()))?;
        self.inner.tunnels.open_logs(node, &down, request).await
    }

    fn agents(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, AgentEntry>> {
        self.inner.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settings(&self, pod_cidr: String) -> Settings {
        Settings {
            pod_cidr,
            cluster_cidr: self.inner.plan.cluster_cidr.to_string(),
            service_cidr: self.inner.plan.service_cidr.to_string(),
            cluster_domain: self.inner.plan.domain.clone(),
            beat_interval_ms: self.beat_every(),
            servers: lock(&self.inner.servers).clone(),
        }
    }

    /// Opens an agent's session, whoever carries it: `node` has shown that it is who it says. What comes back goes down to it.
    pub(crate) async fn open(
        &self,
        node: String,
        mut up: impl Stream<Item = Result<FromAgent, Status>> + Unpin + Send + 'static,
    ) -> Result<Down, Status> {
        let first = tokio::time::timeout(HELLO_WITHIN, up.next())
            .await
            .map_err(|_| Status::deadline_exceeded("the agent said no hello"))?;
        let Some(Ok(FromAgent { message: Some(from_agent::Message::Hello(hello)) })) = first else {
            return Err(Status::invalid_argument("the first message of a session must be a hello"));
        };
        if hello.node != node {
            return Err(Status::permission_denied(format!(
                "the certificate is of node {node}, the hello of node {}",
                hello.node
            )));
        }
        if hello.protocol == 0 {
            return Err(Status::failed_precondition("the agent speaks protocol 0; this server speaks 1"));
        }
        let agent = Release::stated(hello.level, &hello.version);
        if let Some(reason) = Release::own().refuses(&agent) {
            return Err(Status::failed_precondition(format!("the agent of node {node} is refused: {reason}")));
        }
        if !self.inner.useful.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(Status::unavailable("this server has lost the cluster's leader"));
        }
        let (memory, plan) = (&*self.inner.memory, &self.inner.plan);
        let registered = register::register(memory, plan, &node, &hello.node_object, &self.inner.newcomers).await;
        let pod_cidr = registered.map_err(|error| Status::unavailable(coracle_base::one_line(&error)))?;
        let settles = agent.level >= LETS_GO;
        let (down, receiver) = mpsc::channel(DOWN_QUEUE);
        let session = self.inner.next_session.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let settings = self.settings(pod_cidr);
        let welcome = Welcome {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster_id: self.inner.cluster_id.clone(),
            settings: Some(settings),
            level: LEVEL,
        };
        down.send(Ok(FromServer { message: Some(from_server::Message::Welcome(welcome)) }))
            .await
            .map_err(|_| Status::cancelled("the agent went away"))?;
        let entry = AgentEntry {
            session,
            last_beat: Instant::now(),
            sent_boottime_ms: 0,
            connected: true,
            settles,
            down: down.clone(),
        };
        self.agents().insert(node.clone(), entry);
        tracing::info!(node, agent = hello.version, "an agent has connected");
        let (parts, feed) = mpsc::channel(feed::PARTS);
        let have = hello.have.unwrap_or_default();
        let have = coracle_base::Generation { epoch: have.epoch, revision: have.revision };
        let held = feed::Held { have, tables: hello.tables, unpacks: hello.unpacks };
        tokio::spawn(self.inner.feeds.clone().run(session, node.clone(), held, parts));
        tokio::spawn(self.clone().listen(node, session, up));
        // The welcome waits in the first and goes before any feed.
        let down = ReceiverStream::new(receiver).merge(ReceiverStream::new(feed).map(feed::Part::message));
        Ok(Box::pin(down))
    }

    /// Runs one session to its end: reads what the agent says until the stream breaks.
    async fn listen(self, node: String, session: u64, mut up: impl Stream<Item = Result<FromAgent, Status>> + Unpin) {
        // What is not stored yet; the agent does not say it again.
        let (mut waiting, mut at, mut pause) = (coracle_protocol::v1::Report::default(), Instant::now(), RETRY_AFTER);
        // A report may wait for the log for a while. The beats behind it must not: a node is not dead because the log is slow.
        let mut storing: Option<Pin<Box<dyn Future<Output = coracle_protocol::v1::Report> + Send>>> = None;
        loop {
            let message = tokio::select! {
                // Cancel safe: a message that has not come whole stays in the stream.
                message = up.next(), if report::len(&waiting) < report::MOST_WAITING => message,
                // Cancel safe: it stays where it is.
                left = async { storing.as_mut().expect("there is one").await }, if storing.is_some() => {
                    storing = None;
                    if !report::is_empty(&left) {
                        at = Instant::now() + pause;
                        pause = (pause * 2).min(RETRY_AT_MOST);
                    }
                    waiting = report::merged(left, std::mem::take(&mut waiting));
                    continue;
                }
                () = tokio::time::sleep_until(at), if storing.is_none() && !report::is_empty(&waiting) => {
                    let (memory, node, report) =
                        (self.inner.memory.clone(), node.clone(), std::mem::take(&mut waiting));
                    storing = Some(Box::pin(async move { report::apply(&*memory, &node, report).await }));
                    continue;
                }
            };
            match message {
                // Another session of the same node has begun: what is said here is of the past.
                Some(Ok(FromAgent { message: Some(message) })) if !self.beat(&node, session, &message) => break,
                Some(Ok(FromAgent { message: Some(message) })) => match message {
                    from_agent::Message::Beat(_) => {}
                    from_agent::Message::Settled(settled) => self.inner.rounds.settled(settled.ticket, &node),
                    from_agent::Message::Report(mut newer) => {
                        self.leave(&node, std::mem::take(&mut newer.leaving));
                        waiting = report::merged(std::mem::take(&mut waiting), newer);
                        (at, pause) = (Instant::now(), RETRY_AFTER);
                    }
                    from_agent::Message::Hello(_) => {
                        tracing::warn!(node, "a second hello in one session is ignored");
                    }
                },
                Some(Ok(FromAgent { message: None })) => {
                    tracing::debug!(node, "a message of a newer agent is ignored");
                }
                Some(Err(status)) => {
                    tracing::info!(node, reason = %status.message(), "the agent's session broke");
                    break;
                }
                None => break,
            }
        }
        let is_last = match self.agents().get_mut(&node).filter(|entry| entry.session == session) {
            Some(entry) => {
                entry.connected = false;
                self.inner.rounds.gone(&node);
                true
            }
            None => false,
        };
        let left = match storing {
            Some(storing) => storing.await,
            None => coracle_protocol::v1::Report::default(),
        };
        // The last words of an agent that stops come just before the end. One that has another session says all of it there.
        let left = report::merged(left, waiting);
        if is_last && !report::is_empty(&left) {
            report::apply(&*self.inner.memory, &node, left).await;
        }
    }

    /// Notes a sign of life; false when the node has another session by now.
    fn beat(&self, node: &str, session: u64, message: &from_agent::Message) -> bool {
        let mut agents = self.agents();
        let Some(entry) = agents.get_mut(node).filter(|entry| entry.session == session) else { return false };
        entry.last_beat = Instant::now();
        if let from_agent::Message::Beat(beat) = message {
            entry.sent_boottime_ms = beat.sent_boottime_ms;
        }
        true
    }
}

#[tonic::async_trait]
impl Agents for Sessions {
    type SessionStream = Down;
    type TunnelStream = Pin<Box<dyn Stream<Item = Result<TunnelDown, Status>> + Send>>;

    async fn session(&self, request: Request<Streaming<FromAgent>>) -> Result<Response<Self::SessionStream>, Status> {
        let node = node_of(&request)?;
        Ok(Response::new(self.open(node, request.into_inner()).await?))
    }

    async fn renew(&self, request: Request<Renewal>) -> Result<Response<Renewed>, Status> {
        let node = node_of(&request)?;
        if self.inner.memory.view().find("nodes", "", &node).is_none() {
            return Err(Status::permission_denied(format!("node {node} is not part of the cluster any more")));
        }
        let user = format!("system:node:{node}");
        let signed = self.inner.authority.sign_request(&request.into_inner().request, &user, NODES);
        let certificate = signed.map_err(|error| Status::invalid_argument(coracle_base::one_line(&error)))?;
        tracing::info!(node, "a node's certificate was renewed");
        Ok(Response::new(Renewed { certificate, authority: self.inner.authority.cert_pem().to_owned() }))
    }

    async fn tunnel(&self, request: Request<Streaming<TunnelUp>>) -> Result<Response<Self::TunnelStream>, Status> {
        let node = node_of(&request)?;
        let stream = self.inner.tunnels.attach(&node, request.into_inner()).await?;
        Ok(Response::new(stream))
    }
}

/// The holder of a connection's certificate: CN and O.
pub(crate) fn holder_of<T>(request: &Request<T>) -> Result<(String, String), Status> {
    let certs = request.peer_certs().ok_or_else(|| Status::unauthenticated("a certificate is needed"))?;
    let leaf = certs.first().ok_or_else(|| Status::unauthenticated("a certificate is needed"))?;
    let (_, cert) =
        X509Certificate::from_der(leaf).map_err(|_| Status::unauthenticated("the certificate cannot be read"))?;
    let text = |name: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>| {
        name.and_then(|name| name.as_str().ok()).unwrap_or_default().to_owned()
    };
    Ok((text(cert.subject().iter_common_name().next()), text(cert.subject().iter_organization().next())))
}

/// The node a connection belongs to: `system:node:NAME` in the certificate's CN and `system:nodes` in its O.
fn node_of<T>(request: &Request<T>) -> Result<String, Status> {
    let (user, group) = holder_of(request)?;
    match user.strip_prefix("system:node:") {
        Some(node) if !node.is_empty() && group == NODES => Ok(node.to_owned()),
        _ => Err(Status::permission_denied("this is not the certificate of a node")),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use coracle_api::{BoxFuture, ProposeError, Proposed};
    use coracle_protocol::v1::{Beat, PodStatus, Report};
    use coracle_store::{Event, Key, Limits, Op, Store, Transaction, View};
    use serde_json::json;

    use super::*;

    /// A log that takes nothing until it is told to.
    struct Slow {
        store: Mutex<Store>,
        flows: tokio::sync::watch::Sender<bool>,
    }

    impl Memory for Slow {
        fn view(&self) -> View {
            self.store.lock().unwrap().view()
        }

        fn events_after(&self, _: u64, _: Option<&str>) -> Option<Vec<Event>> {
            None
        }

        fn changes(&self) -> tokio::sync::watch::Receiver<coracle_base::Generation> {
            unreachable!("nobody is fed")
        }

        fn propose(&self, _: Transaction) -> BoxFuture<'_, Proposed> {
            unreachable!("reports go together")
        }

        fn propose_many(&self, transactions: Vec<Transaction>) -> BoxFuture<'_, Vec<Proposed>> {
            Box::pin(async move {
                let _ = self.flows.subscribe().wait_for(|flows| *flows).await;
                let rejected = |(index, rejection)| ProposeError::Rejected { index, rejection };
                self.store
                    .lock()
                    .unwrap()
                    .apply(&transactions)
                    .into_iter()
                    .map(|outcome| outcome.map_err(rejected))
                    .collect()
            })
        }

        fn read_barrier(&self) -> BoxFuture<'_, Result<View, ProposeError>> {
            unreachable!("nobody reads")
        }
    }

    fn sessions(memory: Arc<Slow>) -> Sessions {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open(dir.path(), "test").unwrap());
        let plan = NetworkPlan {
            cluster_cidr: "10.42.0.0/16".parse().unwrap(),
            service_cidr: "10.43.0.0/16".parse().unwrap(),
            node_prefix: 24,
            domain: "cluster.local".to_owned(),
        };
        Sessions::new(memory, "c".to_owned(), plan, authority)
    }

    fn status(phase: &str) -> from_agent::Message {
        let pod = PodStatus {
            namespace: "default".to_owned(),
            name: "p".to_owned(),
            uid: "u".to_owned(),
            status: json!({"phase": phase}).to_string().into_bytes(),
        };
        from_agent::Message::Report(Report { pods: vec![pod], ..Report::default() })
    }

    async fn until(what: &str, mut look: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(10);
        while !look() {
            assert!(Instant::now() < end, "{what}: not within 10 s");
            tokio::time::sleep(Duration::from_millis(5)).await; // poll
        }
    }

    #[tokio::test]
    async fn beats_are_heard_while_the_log_takes_no_report_and_the_newest_word_is_stored() {
        let memory = Arc::new(Slow {
            store: Mutex::new(Store::new(Limits::default())),
            flows: tokio::sync::watch::Sender::new(false),
        });
        let pod = json!({
            "metadata": {"name": "p", "namespace": "default", "uid": "u"}, "spec": {"nodeName": "n"},
        });
        let op = Op::Create { key: Key::new("pods", "default", "p"), value: Arc::new(pod), claims: Vec::new() };
        assert!(memory.store.lock().unwrap().apply(&[op.into()])[0].is_ok());
        let sessions = sessions(memory.clone());
        let entry = AgentEntry {
            session: 1,
            last_beat: Instant::now(),
            sent_boottime_ms: 0,
            connected: true,
            settles: false,
            down: mpsc::channel(1).0,
        };
        sessions.agents().insert("n".to_owned(), entry);
        let (up, received) = mpsc::channel(8);
        let listening = tokio::spawn(sessions.clone().listen("n".to_owned(), 1, ReceiverStream::new(received)));
        let say = async |message| up.send(Ok(FromAgent { message: Some(message) })).await.unwrap();
        let beat = |at| from_agent::Message::Beat(Beat { sent_boottime_ms: at });
        let phase = || memory.view().find("pods", "default", "p").map(|pod| pod.peek()["status"]["phase"].clone());

        say(status("Pending")).await;
        say(beat(1)).await;
        say(status("Running")).await;
        say(status("Failed")).await;
        say(beat(2)).await;
        until("the beat behind three reports is heard", || sessions.agents()["n"].sent_boottime_ms == 2).await;
        assert_eq!(phase(), Some(serde_json::Value::Null), "nothing was stored yet");
        memory.flows.send_replace(true);
        until("the newest word is stored", || phase() == Some(json!("Failed"))).await;

        // A session that ends is over at once, whatever the log does.
        memory.flows.send_replace(false);
        say(status("Succeeded")).await;
        say(beat(3)).await;
        until("the last beat is heard", || sessions.agents()["n"].sent_boottime_ms == 3).await;
        drop(up);
        until("the session is over", || !sessions.agents()["n"].connected).await;
        memory.flows.send_replace(true);
        listening.await.unwrap();
        assert_eq!(phase(), Some(json!("Succeeded")), "its last words are stored all the same");
    }
}
