//! What the status pages show, as plain data: also the shape of `/status.json`.

use serde::{Deserialize, Serialize};

/// Everything, at one moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Snapshot {
    /// The cluster as a whole.
    pub cluster: Cluster,
    /// Its servers.
    pub servers: Vec<Server>,
    /// Its machines.
    pub nodes: Vec<Node>,
    /// By namespace and name.
    pub workloads: Vec<Workload>,
    /// By namespace and name.
    pub pods: Vec<Pod>,
    /// By namespace and name.
    pub services: Vec<Service>,
    /// Youngest first.
    pub events: Vec<Event>,
    /// None yet.
    pub volumes: Vec<Volume>,
}

/// The cluster as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cluster {
    /// What people call it.
    pub name: String,
    /// Version of the program.
    pub version: String,
    /// Which node serves this page.
    pub this_node: String,
    /// Where the API is.
    pub api: String,
    /// Revision of the last change.
    pub revision: u64,
    /// What every server understands; only servers know.
    pub level: Option<u32>,
}

/// One server of the control plane.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Server {
    /// Its name.
    pub name: String,
    /// Where the others reach it.
    pub address: String,
    /// Whether it leads.
    pub leader: bool,
    /// Whether it votes; one that does not learns and stands by.
    pub voter: bool,
    /// Whether it is heard of.
    pub reachable: bool,
    /// Its release; empty when it has not said so: the first one did not, and one that is away does not.
    pub version: String,
    /// The level of its release; `None` when it has not been heard of lately.
    pub level: Option<u32>,
    /// What every server of the cluster understands; only servers know.
    pub cluster_level: Option<u32>,
    /// Entries of the log that it is behind, as the leader knows.
    pub lag: Option<u64>,
    /// The leader's term, as the server of this page knows it.
    pub term: u64,
    /// What its log waits for the disk, 99 of 100 times at most, in milliseconds; of the server of this page only.
    pub fsync_p99_ms: Option<f64>,
    /// What its log uses, in bytes; of the server of this page only.
    pub log_bytes: Option<u64>,
    /// What is not as it should be, and what to do; empty when all is well.
    pub problem: String,
}

/// One condition of a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Condition {
    /// `Ready`, `MemoryPressure`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// One machine. What is "requested" is what its pods ask for together, not what they use at the moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Whether it takes and keeps pods.
    pub ready: bool,
    /// Whether it is cordoned.
    pub cordoned: bool,
    /// Its address.
    pub address: String,
    /// Version of its agent.
    pub version: String,
    /// `linux/amd64`
    pub platform: String,
    /// Kernel release.
    pub kernel: String,
    /// How many pods it has.
    pub pods: u64,
    /// How many it may have.
    pub pods_max: u64,
    /// `1.25/4`: requested of allocatable cores.
    pub cpu: String,
    /// Requested, thousandths of a core.
    pub cpu_requested_milli: u64,
    /// Allocatable, thousandths of a core.
    pub cpu_allocatable_milli: u64,
    /// `1.2Gi/8.0Gi`: requested of allocatable memory.
    pub memory: String,
    /// Requested, bytes.
    pub memory_requested_bytes: u64,
    /// Allocatable, bytes.
    pub memory_allocatable_bytes: u64,
    /// All it reports.
    pub conditions: Vec<Condition>,
    /// `key=value:Effect`
    pub taints: Vec<String>,
    /// How the node of this page reaches its pods; `None` for that node itself, and before the first look.
    pub link: Option<Link>,
    /// RFC 3339.
    pub created: String,
}

/// The way from the node of this page to the pods of another one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// `direct`, `tunnel`, or `none`.
    pub way: String,
    /// How long a small packet took to go there and back, in milliseconds; `None` when none came back.
    pub answered_ms: Option<f64>,
    /// Why there is no way, and what to do.
    pub problem: String,
}

impl Link {
    /// `direct, 0.2 ms`
    #[must_use]
    pub fn words(&self) -> String {
        match self.answered_ms {
            Some(ms) => format!("{}, {ms:.1} ms", self.way),
            None if self.way == "none" => "no way".to_owned(),
            None => format!("{}, no answer", self.way),
        }
    }
}

/// One Deployment, StatefulSet, DaemonSet or ReplicationController.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Workload {
    /// `Deployment`
    pub kind: String,
    /// Where.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Replicas wanted; of a DaemonSet, nodes that should have one.
    pub desired: u64,
    /// Replicas there are, of any template.
    pub replicas: u64,
    /// Replicas that are ready.
    pub ready: u64,
    /// Replicas of the newest template.
    pub updated: u64,
    /// Replicas that are to be of the newest template: fewer while a partition keeps some, or when nobody moves them.
    pub to_update: u64,
    /// Replicas that have been ready long enough.
    pub available: u64,
    /// Whether it is paused.
    pub paused: bool,
    /// Images of its containers.
    pub images: Vec<String>,
    /// Why it does not get on, when it does not.
    pub problem: String,
    /// RFC 3339.
    pub created: String,
}

/// One pod.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Pod {
    /// Where.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its node, or empty.
    pub node: String,
    /// Its address, or empty.
    pub ip: String,
    /// `Pending`, `Running`, `Succeeded`, `Failed`, or `Terminating`.
    pub phase: String,
    /// `1/2`: ready containers of all.
    pub ready: String,
    /// Whether all is well with it.
    pub healthy: bool,
    /// Restarts of its containers together.
    pub restarts: u64,
    /// Why it is not running: `CrashLoopBackOff`, `Unschedulable`, ...
    pub reason: String,
    /// The same in a sentence.
    pub message: String,
    /// RFC 3339.
    pub created: String,
}

/// One address behind a Service.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Endpoint {
    /// Its address.
    pub address: String,
    /// The pod, or empty.
    pub pod: String,
    /// Whether it takes connections.
    pub ready: bool,
}

/// One Service.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Service {
    /// Where.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `ClusterIP`
    #[serde(rename = "type")]
    pub kind: String,
    /// Its virtual address; `None` for a headless one.
    pub cluster_ip: String,
    /// `80/TCP`, `443->8443/TCP`, separated by commas.
    pub ports: String,
    /// How many endpoints take connections.
    pub endpoints: u64,
    /// All that are known.
    pub backends: Vec<Endpoint>,
    /// RFC 3339.
    pub created: String,
}

/// One event.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Event {
    /// Where.
    pub namespace: String,
    /// `pod/web-x`
    pub object: String,
    /// `Normal` or `Warning`.
    #[serde(rename = "type")]
    pub kind: String,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
    /// How often it was said.
    pub count: u64,
    /// RFC 3339.
    pub last_seen: String,
}

/// One volume.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Volume {
    /// Its name.
    pub name: String,
}

/// Cores: `2`, `1.5`, `0.25`.
#[must_use]
pub fn format_cpu(milli: u64) -> String {
    let text = format!("{}.{:03}", milli / 1000, milli % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Bytes: `512Mi`, `1.5Gi`.
#[must_use]
pub fn format_bytes(bytes: u64) -> String {
    const KI: u64 = 1 << 10;
    const MI: u64 = 1 << 20;
    const GI: u64 = 1 << 30;
    match bytes {
        0 => "0".to_owned(),
        1..MI => format!("{}Ki", bytes.div_ceil(KI)),
        MI..GI => format!("{}Mi", bytes / MI),
        _ => format!("{}.{}Gi", bytes / GI, bytes % GI * 10 / GI),
    }
}
