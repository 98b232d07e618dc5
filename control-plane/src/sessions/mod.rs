//! The door for agents: one gRPC stream each, over mTLS. Assignments and feeds go down, beats and reports come up.
//!
//! Beats stay in RAM (`beats`); everything else an agent reports becomes proposals (`report`). A session never decides
//! what an agent should run: it sends what the memory says (`feed`).

mod feed;
mod register;
mod report;
mod tunnels;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use coracle_protocol::v1::agents_server::{Agents, AgentsServer};
use coracle_protocol::v1::{FromAgent, FromServer, Settings, TunnelDown, TunnelUp, Welcome, from_agent, from_server};
use coracle_protocol::{MAX_MESSAGE_BYTES, PROTOCOL};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use coracle_api::Memory;
pub use register::NetworkPlan;
pub use tunnels::{TunnelChunks, TunnelError};

/// An agent that says nothing for so long after connecting is hung up on.
const HELLO_WITHIN: Duration = Duration::from_secs(10);
/// What a report could not store is tried again after this, then at longer intervals.
const RETRY_AFTER: Duration = Duration::from_millis(100);
const RETRY_AT_MOST: Duration = Duration::from_secs(2);
/// Messages waiting for one agent: a feed is made only when the one before went out, so a handful is enough.
const DOWN_QUEUE: usize = 16;

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
    connected: bool,
    down: mpsc::Sender<Result<FromServer, Status>>,
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
    agents: Mutex<HashMap<String, AgentEntry>>,
    tunnels: tunnels::Waiting,
    next_session: std::sync::atomic::AtomicU64,
}

impl Sessions {
    /// Sessions over a memory, with the network every agent is told of.
    pub fn new(memory: Arc<dyn Memory>, cluster_id: String, plan: NetworkPlan) -> Self {
        Self {
            inner: Arc::new(Inner {
                memory,
                cluster_id,
                plan,
                agents: Mutex::default(),
                tunnels: tunnels::Waiting::default(),
                next_session: std::sync::atomic::AtomicU64::new(1),
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

    /// Age of each known node's last beat.
    #[must_use]
    pub fn beats(&self) -> HashMap<String, BeatAge> {
        let now = Instant::now();
        self.agents()
            .iter()
            .map(|(node, entry)| (node.clone(), BeatAge { age: now - entry.last_beat, connected: entry.connected }))
            .collect()
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

    fn agents(&self) -> std::sync::MutexGuard<'_, HashMap<String, AgentEntry>> {
        self.inner.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settings(&self, pod_cidr: String) -> Settings {
        Settings {
            pod_cidr,
            cluster_cidr: self.inner.plan.cluster_cidr.to_string(),
            service_cidr: self.inner.plan.service_cidr.to_string(),
            cluster_domain: self.inner.plan.domain.clone(),
            beat_interval_ms: 1000,
        }
    }

    /// Runs one session to its end: reads what the agent says until the stream breaks.
    async fn listen(self, node: String, session: u64, mut up: Streaming<FromAgent>) {
        // What could not be stored; the agent does not say it again.
        let (mut unstored, mut pause) = (coracle_protocol::v1::Report::default(), RETRY_AFTER);
        loop {
            let message = tokio::select! {
                // Cancel safe: a message that has not come whole stays in the stream.
                message = up.next() => message,
                () = tokio::time::sleep(pause), if !report::is_empty(&unstored) => {
                    unstored = report::apply(&*self.inner.memory, &node, std::mem::take(&mut unstored)).await;
                    pause = (pause * 2).min(RETRY_AT_MOST);
                    continue;
                }
            };
            match message {
                // Another session of the same node has begun: what is said here is of the past.
                Some(Ok(FromAgent { message: Some(_) })) if !self.beat(&node, session) => break,
                Some(Ok(FromAgent { message: Some(message) })) => match message {
                    from_agent::Message::Beat(_) => {}
                    from_agent::Message::Report(newer) => {
                        let whole = report::merged(std::mem::take(&mut unstored), newer);
                        unstored = report::apply(&*self.inner.memory, &node, whole).await;
                        pause = RETRY_AFTER;
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
        let mut agents = self.agents();
        if let Some(entry) = agents.get_mut(&node)
            && entry.session == session
        {
            entry.connected = false;
        }
    }

    /// Notes a sign of life; false when the node has another session by now.
    fn beat(&self, node: &str, session: u64) -> bool {
        let mut agents = self.agents();
        let Some(entry) = agents.get_mut(node).filter(|entry| entry.session == session) else { return false };
        entry.last_beat = Instant::now();
        true
    }
}

#[tonic::async_trait]
impl Agents for Sessions {
    type SessionStream = ReceiverStream<Result<FromServer, Status>>;
    type TunnelStream = Pin<Box<dyn Stream<Item = Result<TunnelDown, Status>> + Send>>;

    async fn session(&self, request: Request<Streaming<FromAgent>>) -> Result<Response<Self::SessionStream>, Status> {
        let node = node_of(&request)?;
        let mut up = request.into_inner();
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
        let pod_cidr = register::register(&*self.inner.memory, &self.inner.plan, &node, &hello.node_object)
            .await
            .map_err(|error| Status::unavailable(coracle_base::one_line(&error)))?;
        let (down, receiver) = mpsc::channel(DOWN_QUEUE);
        let session = self.inner.next_session.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let settings = self.settings(pod_cidr);
        let welcome = Welcome {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cluster_id: self.inner.cluster_id.clone(),
            settings: Some(settings),
        };
        down.send(Ok(FromServer { message: Some(from_server::Message::Welcome(welcome)) }))
            .await
            .map_err(|_| Status::cancelled("the agent went away"))?;
        let entry = AgentEntry { session, last_beat: Instant::now(), connected: true, down: down.clone() };
        self.agents().insert(node.clone(), entry);
        tracing::info!(node, agent = hello.version, "an agent has connected");
        tokio::spawn(feed::run(self.inner.memory.clone(), node.clone(), down));
        tokio::spawn(self.clone().listen(node, session, up));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn tunnel(&self, request: Request<Streaming<TunnelUp>>) -> Result<Response<Self::TunnelStream>, Status> {
        let node = node_of(&request)?;
        let stream = self.inner.tunnels.attach(&node, request.into_inner()).await?;
        Ok(Response::new(stream))
    }
}

/// The node a connection belongs to: `system:node:NAME` in the certificate's CN and `system:nodes` in its O.
fn node_of<T>(request: &Request<T>) -> Result<String, Status> {
    let certs = request.peer_certs().ok_or_else(|| Status::unauthenticated("a node certificate is needed"))?;
    let leaf = certs.first().ok_or_else(|| Status::unauthenticated("a node certificate is needed"))?;
    let (_, cert) =
        X509Certificate::from_der(leaf).map_err(|_| Status::unauthenticated("the certificate cannot be read"))?;
    let group = cert.subject().iter_organization().next().and_then(|name| name.as_str().ok());
    let user = cert.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    match (user.and_then(|user| user.strip_prefix("system:node:")), group) {
        (Some(node), Some("system:nodes")) if !node.is_empty() => Ok(node.to_owned()),
        _ => Err(Status::permission_denied("this is not the certificate of a node")),
    }
}
