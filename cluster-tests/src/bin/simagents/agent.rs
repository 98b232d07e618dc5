//! A fake agent: the real wire and the real papers, and a runtime that only waits. It keeps what it must know of its pods, and of the
//! tables no more than their size.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use coracle_protocol::tls::Wallet;
use coracle_protocol::v1::agents_client::AgentsClient;
use coracle_protocol::v1::{
    Beat, Feed, FromAgent, Generation, Hello, PodGone, PodStatus, Report, from_agent, from_server,
};
use coracle_protocol::{MAX_MESSAGE_BYTES, PROTOCOL};
use rand::RngExt as _;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// As the real agent.
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
const KEEP_ALIVE: Duration = Duration::from_millis(1500);
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);
const REPORT_EVERY: Duration = Duration::from_millis(100);
/// How long a pod takes to start, and to end.
const START_MS: std::ops::Range<u64> = 50..500;
const END_MS: u64 = 20;
/// Handshakes of all agents at a time: both ends share the machine.
pub const DIALS: usize = 64;

/// What all agents tell.
#[derive(Default)]
pub struct Tally {
    /// Agents with a session and a whole feed in it.
    pub fed: AtomicUsize,
    /// Bytes of objects that came.
    pub bytes: AtomicU64,
    /// Sessions that broke or were refused.
    pub broken: AtomicU64,
    /// By the pod's uid: its app, when its agent first heard of it, when it was told that it is ready.
    pub pods: Mutex<HashMap<String, Seen>>,
    /// The last words of a session that ended.
    pub last_words: Mutex<String>,
}

/// What was seen of a pod.
#[derive(Clone)]
pub struct Seen {
    pub app: String,
    pub node: usize,
    pub assigned: Instant,
    pub ready: Option<Instant>,
    pub gone: bool,
}

/// One agent.
pub struct Agent {
    pub number: usize,
    pub wallet: Wallet,
    pub servers: Arc<Vec<String>>,
    pub tally: Arc<Tally>,
    pub dials: Arc<tokio::sync::Semaphore>,
    pods: BTreeMap<String, Pod>,
    have: Generation,
    tables: Vec<u8>,
}

struct Pod {
    namespace: String,
    name: String,
    /// When something has to be said of it, and whether it is its end.
    due: Option<(tokio::time::Instant, bool)>,
}

impl Agent {
    pub fn new(
        number: usize,
        wallet: Wallet,
        servers: Arc<Vec<String>>,
        tally: Arc<Tally>,
        dials: Arc<tokio::sync::Semaphore>,
    ) -> Self {
        Self {
            number,
            wallet,
            servers,
            tally,
            dials,
            pods: BTreeMap::new(),
            have: Generation::default(),
            tables: Vec::new(),
        }
    }

    /// The node's name.
    pub fn name(number: usize) -> String {
        format!("sim{number}")
    }

    /// Keeps a session open for good.
    pub async fn run(mut self) {
        let (mut wait, mut turn) = (RETRY_FIRST, self.number);
        loop {
            let server = self.servers[turn % self.servers.len()].clone();
            turn += 1;
            let mut fed = false;
            let ended = self.once(&server, &mut fed).await;
            if fed {
                self.tally.fed.fetch_sub(1, Ordering::Relaxed);
                wait = RETRY_FIRST;
            }
            self.tally.broken.fetch_add(1, Ordering::Relaxed);
            *self.tally.last_words.lock().unwrap_or_else(PoisonError::into_inner) = ended;
            let jitter = rand::rng().random_range(0.5..1.0);
            tokio::time::sleep(wait.mul_f64(jitter)).await;
            wait = (wait * 2).min(RETRY_LAST);
        }
    }

    /// One session; returns why it ended.
    async fn once(&mut self, server: &str, fed: &mut bool) -> String {
        let dialled = {
            let _permit = self.dials.acquire().await;
            self.wallet.dial(server, CONNECT_WITHIN, KEEP_ALIVE).await
        };
        let channel = match dialled {
            Ok(channel) => channel,
            Err(error) => return coracle_base::one_line(&error),
        };
        let mut client = AgentsClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let (up, receiver) = mpsc::channel(4);
        let hello = Hello {
            level: coracle_base::level::LEVEL,
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: Self::name(self.number),
            have: Some(self.have),
            node_object: node_object(self.number).to_string().into_bytes(),
            // As the real ledger: what it holds is all that its last feed said.
            tables: self.tables.clone(),
            unpacks: true,
        };
        let _ = up.send(message(from_agent::Message::Hello(hello))).await;
        let mut down = match client.session(ReceiverStream::new(receiver)).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return status.message().to_owned(),
        };
        let mut beat_every = Duration::from_secs(1);
        let mut next_beat = tokio::time::Instant::now();
        let mut quiet_until = tokio::time::Instant::now();
        loop {
            let due = self.pods.values().filter_map(|pod| pod.due).map(|(at, _)| at).min();
            let sent = tokio::select! {
                received = down.message() => match received {
                    Ok(Some(received)) => {
                        match received.message {
                            Some(from_server::Message::Welcome(welcome)) => {
                                let told = welcome.settings.map_or(0, |settings| settings.beat_interval_ms);
                                beat_every = Duration::from_millis(u64::from(told.max(100)));
                            }
                            Some(from_server::Message::Settings(settings)) => {
                                beat_every = Duration::from_millis(u64::from(settings.beat_interval_ms.max(100)));
                            }
                            Some(from_server::Message::Feed(feed)) => {
                                let whole = !feed.more;
                                self.take(feed);
                                if whole && !*fed {
                                    *fed = true;
                                    self.tally.fed.fetch_add(1, Ordering::Relaxed);
                                }
                            }
                            _ => {}
                        }
                        continue;
                    }
                    Ok(None) => return "the server closed the session".to_owned(),
                    Err(status) => return status.message().to_owned(),
                },
                () = tokio::time::sleep_until(next_beat) => {
                    next_beat = tokio::time::Instant::now() + beat_every;
                    up.send(message(from_agent::Message::Beat(Beat { sent_boottime_ms: 1 }))).await
                }
                () = async {
                    match due {
                        Some(due) => tokio::time::sleep_until(due.max(quiet_until)).await,
                        None => std::future::pending().await,
                    }
                } => {
                    quiet_until = tokio::time::Instant::now() + REPORT_EVERY;
                    up.send(message(from_agent::Message::Report(self.report()))).await
                }
            };
            if sent.is_err() {
                return "the server takes no more".to_owned();
            }
        }
    }

    fn take(&mut self, feed: Feed) {
        // What is packed are rows of the tables.
        let came = feed.packed.len() + feed.items.iter().map(|item| item.object.len()).sum::<usize>();
        self.tally.bytes.fetch_add(came as u64, Ordering::Relaxed);
        if !feed.more {
            (self.have, self.tables) = (feed.generation.unwrap_or_default(), feed.tables);
        }
        let now = tokio::time::Instant::now();
        // One without bytes stays as it is.
        for item in feed.items.into_iter().filter(|item| item.resource == "pods" && !item.object.is_empty()) {
            let Ok(tree) = serde_json::from_slice::<Value>(&item.object) else { continue };
            let deleting = !tree["metadata"]["deletionTimestamp"].is_null();
            let ready = tree["status"]["phase"] == "Running";
            self.note(&item.uid, &tree, ready);
            let pod = self.pods.entry(item.uid).or_insert_with(|| Pod {
                namespace: item.namespace,
                name: item.name,
                due: Some((now + Duration::from_millis(rand::rng().random_range(START_MS)), false)),
            });
            match pod.due {
                Some((_, true)) => {}
                _ if deleting => pod.due = Some((now + Duration::from_millis(END_MS), true)),
                _ => {}
            }
        }
        for reference in feed.removed.iter().filter(|reference| reference.resource == "pods") {
            let found =
                self.pods.iter().find(|(_, pod)| pod.name == reference.name && pod.namespace == reference.namespace);
            if let Some(uid) = found.map(|(uid, _)| uid.clone()) {
                self.pods.remove(&uid);
                if let Some(seen) = self.tally.pods.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&uid) {
                    seen.gone = true;
                }
            }
        }
    }

    fn note(&self, uid: &str, tree: &Value, ready: bool) {
        let now = Instant::now();
        let mut pods = self.tally.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = pods.entry(uid.to_owned()).or_insert_with(|| Seen {
            app: tree["metadata"]["labels"]["app"].as_str().unwrap_or_default().to_owned(),
            node: self.number,
            assigned: now,
            ready: None,
            gone: false,
        });
        if ready && seen.ready.is_none() {
            seen.ready = Some(now);
        }
    }

    /// What is due.
    fn report(&mut self) -> Report {
        let now = tokio::time::Instant::now();
        let mut report = Report::default();
        for (index, (uid, pod)) in self.pods.iter_mut().enumerate() {
            let Some((_, end)) = pod.due.take_if(|(at, _)| *at <= now) else { continue };
            let (namespace, name, uid) = (pod.namespace.clone(), pod.name.clone(), uid.clone());
            if end {
                report.gone.push(PodGone { namespace, name, uid });
            } else {
                let address = format!("10.{}.{}.{}", self.number >> 8, self.number & 0xff, index % 250 + 2);
                let status = status(&address).to_string().into_bytes();
                report.pods.push(PodStatus { namespace, name, uid, status });
            }
        }
        report
    }
}

fn message(message: from_agent::Message) -> FromAgent {
    FromAgent { message: Some(message) }
}

/// A pod that runs and is ready.
fn status(address: &str) -> Value {
    let at = "2026-01-01T00:00:00Z";
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": at});
    json!({
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": at,
        "conditions": [condition("PodScheduled"), condition("Initialized"), condition("ContainersReady"), condition("Ready")],
        "containerStatuses": [{
            "name": "app", "image": "example.com/app:1", "imageID": "", "ready": true, "started": true, "restartCount": 0,
            "state": {"running": {"startedAt": at}},
        }],
    })
}

/// The Node an agent wants to be, about as long as a real one.
fn node_object(number: usize) -> Value {
    let name = Agent::name(number);
    let room = json!({"cpu": "8", "memory": "16Gi", "pods": "110", "ephemeral-storage": "100Gi"});
    let condition =
        |kind: &str, status: &str| json!({"type": kind, "status": status, "reason": "Agent", "message": "simulated"});
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}},
        "status": {
            "capacity": room,
            "allocatable": room,
            "addresses": [
                {"type": "InternalIP", "address": format!("172.20.{}.{}", number >> 8, number & 0xff)},
                {"type": "Hostname", "address": name}],
            "conditions": [
                condition("Ready", "True"), condition("MemoryPressure", "False"), condition("DiskPressure", "False"),
                condition("PIDPressure", "False")],
            "nodeInfo": {
                "kubeletVersion": "v1.34.0-sim", "operatingSystem": "linux", "architecture": "amd64", "kernelVersion": "6.12.0",
                "osImage": "Simulated GNU/Linux", "containerRuntimeVersion": "sim://1"},
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 6445}},
        },
    })
}
