//! What the node says of itself: the Node object of the hello and `Node.status`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use coracle_images::{ImageRecord, ImageStore};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::outbox::Outbox;

/// Memory below which the node says it is short.
const MEMORY_PRESSURE: u64 = 100 << 20;
/// Share of the disk, in hundredths, below which it says so.
const DISK_PRESSURE_PERCENT: u64 = 10;
/// What the node keeps for itself.
const MEMORY_RESERVE: u64 = 64 << 20;
/// Names of images a Node tells: about 60 KB in each agent's ledger per node. Upstream tells the 50 largest images, but here
/// other nodes find an image by it: what was imported comes first, then what came last. An image beyond that is found only by
/// who happens to ask this node.
const IMAGE_NAMES: usize = 256;
/// How often the node's load is looked at.
const LOAD_EVERY: Duration = Duration::from_secs(10);
/// How often its images are: a look at one file. Other programs import images, too.
const IMAGES_EVERY: Duration = Duration::from_secs(1);

/// What does not change while the agent runs.
#[derive(Debug, Clone)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Cores, in thousandths.
    pub cpu_milli: u64,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// The most pods.
    pub max_pods: u32,
    /// Labels from the configuration.
    pub labels: BTreeMap<String, String>,
}

/// What does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeLoad {
    /// In bytes.
    pub memory_available: u64,
    /// Of the data directory's file system, in bytes.
    pub disk_total: u64,
    /// The same, free for us.
    pub disk_available: u64,
}

/// What other nodes want to know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeImages {
    /// The images that are here.
    pub records: Vec<ImageRecord>,
    /// Where they are served; `None` while they are not.
    pub blob_port: Option<u16>,
}

/// Says what this node is and has.
#[derive(Debug, Clone)]
pub struct Reporter {
    /// What does not change.
    pub facts: NodeFacts,
    /// Whose file system is watched.
    pub data_dir: PathBuf,
    /// The images.
    pub store: ImageStore,
    /// Where they are served.
    pub blob_port: watch::Receiver<Option<u16>>,
}

impl Reporter {
    fn images(&self) -> NodeImages {
        // A list that cannot be read is told by whoever needs an image.
        NodeImages { records: self.store.list().unwrap_or_default(), blob_port: *self.blob_port.borrow() }
    }

    /// The Node object, as JSON.
    #[must_use]
    pub fn object(&self) -> Vec<u8> {
        serde_json::to_vec(&object(&self.facts, load(&self.data_dir), &self.images())).unwrap_or_default()
    }

    /// Reports the status until `end`: within seconds after the images changed, and the load from time to time.
    pub async fn run(self, outbox: Arc<Outbox>, end: CancellationToken) {
        let (mut told, mut load_due) = (self.images(), Instant::now() + LOAD_EVERY);
        loop {
            tokio::select! {
                // Cancel safe.
                () = tokio::time::sleep(IMAGES_EVERY) => {}
                () = end.cancelled() => return,
            }
            let images = self.images();
            if images == told && Instant::now() < load_due {
                continue;
            }
            let status = status(&self.facts, load(&self.data_dir), &images);
            outbox.node_status(serde_json::to_vec(&status).unwrap_or_default());
            (told, load_due) = (images, Instant::now() + LOAD_EVERY);
        }
    }
}

/// `status.images`: by their manifest, each with its digests first, as upstream's agent tells them. The same for the same images.
#[must_use]
pub fn images(records: &[ImageRecord]) -> Value {
    let mut records: Vec<&ImageRecord> = records.iter().collect();
    // Imported here, imported elsewhere, pulled; the latest first.
    let rank = |record: &ImageRecord| (!record.imported, record.peer.is_some(), std::cmp::Reverse(record.created_ms));
    records.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.reference.cmp(&b.reference)));
    records.truncate(IMAGE_NAMES);
    let mut images: BTreeMap<&str, (Vec<String>, u64)> = BTreeMap::new();
    records.sort_by(|a, b| a.reference.cmp(&b.reference));
    for record in records {
        let (names, size) = images.entry(record.digest.as_str()).or_default();
        *size = record.size;
        let (repository, tag) = split(&record.reference);
        let digests = [Some(&record.digest), record.index.as_ref()].into_iter().flatten();
        let digests = digests.map(|digest| format!("{repository}@{digest}"));
        for name in digests.chain(tag.then(|| record.reference.clone())) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    let images = images.into_values().map(|(mut names, size)| {
        // The digests first, as upstream has it.
        names.sort_by_key(|name| !name.contains('@'));
        json!({"names": names, "sizeBytes": size})
    });
    Value::Array(images.collect())
}

/// The name without tag and digest, and whether it is a tag's.
fn split(reference: &str) -> (&str, bool) {
    if let Some((name, _)) = reference.split_once('@') {
        // With a tag beside the digest it is no name anybody else can use.
        return (name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')).map_or(name, |(name, _)| name), false);
    }
    let tag = reference.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'));
    (tag.map_or(reference, |(name, _)| name), tag.is_some())
}

/// The most memory a node has, from `/proc/meminfo`.
#[must_use]
pub fn memory_bytes() -> u64 {
    meminfo("MemTotal:")
}

fn meminfo(field: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Reads the load.
#[must_use]
pub fn load(data_dir: &Path) -> NodeLoad {
    let disk = rustix::fs::statvfs(data_dir).ok();
    NodeLoad {
        memory_available: meminfo("MemAvailable:"),
        disk_total: disk.as_ref().map_or(0, |disk| disk.f_blocks * disk.f_frsize),
        disk_available: disk.as_ref().map_or(0, |disk| disk.f_bavail * disk.f_frsize),
    }
}

/// The Node object.
#[must_use]
pub fn object(facts: &NodeFacts, load: NodeLoad, images: &NodeImages) -> Value {
    let mut labels = json!({
        "kubernetes.io/hostname": facts.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": architecture(),
    });
    for (name, value) in &facts.labels {
        labels[name] = json!(value);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": facts.name, "labels": labels},
        "status": status(facts, load, images),
    })
}

/// `Node.status`. `daemonEndpoints.kubeletEndpoint` is where the agent listens for other nodes: its blob server. Port 0 = it does not.
#[must_use]
pub fn status(facts: &NodeFacts, load: NodeLoad, images: &NodeImages) -> Value {
    let kibibytes = |bytes: u64| format!("{}Ki", bytes / 1024);
    let amounts = |memory: u64, disk: String| {
        json!({
            "cpu": if facts.cpu_milli.is_multiple_of(1000) { (facts.cpu_milli / 1000).to_string() } else { format!("{}m", facts.cpu_milli) },
            "memory": kibibytes(memory),
            "ephemeral-storage": disk,
            "pods": facts.max_pods.to_string(),
        })
    };
    let disk_short = load.disk_total > 0 && load.disk_available * 100 < load.disk_total * DISK_PRESSURE_PERCENT;
    let memory_short = load.memory_available > 0 && load.memory_available < MEMORY_PRESSURE;
    let pressure = |kind: &str, short: bool, reasons: [&str; 2], messages: [&str; 2]| {
        let at = usize::from(short);
        json!({"type": kind, "status": if short { "True" } else { "False" }, "reason": reasons[at], "message": messages[at]})
    };
    json!({
        "capacity": amounts(facts.memory_bytes, kibibytes(load.disk_total)),
        "allocatable": amounts(facts.memory_bytes.saturating_sub(MEMORY_RESERVE), (load.disk_total / 10 * 9).to_string()),
        "addresses": [
            {"type": "InternalIP", "address": facts.ip.to_string()},
            {"type": "Hostname", "address": facts.name},
        ],
        "conditions": [
            pressure("MemoryPressure", memory_short, ["KubeletHasSufficientMemory", "KubeletHasInsufficientMemory"],
                ["the agent has sufficient memory available", "the node is short of memory"]),
            pressure("DiskPressure", disk_short, ["KubeletHasNoDiskPressure", "KubeletHasDiskPressure"],
                ["the agent has no disk pressure", "the file system of the data directory is nearly full"]),
            pressure("PIDPressure", false, ["KubeletHasSufficientPID", ""], ["the agent has sufficient PID available", ""]),
            {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "the agent is posting ready status"},
        ],
        "nodeInfo": node_info(),
        "daemonEndpoints": {"kubeletEndpoint": {"Port": images.blob_port.unwrap_or(0)}},
        "images": self::images(&images.records),
    })
}

fn node_info() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let os = read("/etc/os-release");
    let os =
        os.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux").trim_matches('"').to_owned();
    json!({
        "machineID": read("/etc/machine-id"),
        "systemUUID": read("/etc/machine-id"),
        "bootID": read("/proc/sys/kernel/random/boot_id"),
        "kernelVersion": read("/proc/sys/kernel/osrelease"),
        "osImage": os,
        "containerRuntimeVersion": format!("coracle://{}", env!("CARGO_PKG_VERSION")),
        "kubeletVersion": format!("v1.31.0+coracle-{}", env!("CARGO_PKG_VERSION")),
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": architecture(),
    })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The address the default route leaves from; loopback when there is none. Nothing is sent.
#[must_use]
pub fn own_address() -> Ipv4Addr {
    let found = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    match found.map(|address| address.ip()) {
        Ok(std::net::IpAddr::V4(ip)) if !ip.is_unspecified() => ip,
        _ => Ipv4Addr::LOCALHOST,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_says_when_it_is_short() {
        let facts = NodeFacts {
            name: "n".into(),
            ip: Ipv4Addr::LOCALHOST,
            cpu_milli: 2000,
            memory_bytes: 8 << 30,
            max_pods: 250,
            labels: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
        };
        let condition = |load: NodeLoad, kind: &str| {
            let object = object(&facts, load, &NodeImages::default());
            let conditions = object["status"]["conditions"].as_array().unwrap().clone();
            conditions.into_iter().find(|condition| condition["type"] == kind).unwrap()["status"].clone()
        };
        let fine = NodeLoad { memory_available: 4 << 30, disk_total: 100 << 30, disk_available: 50 << 30 };
        assert_eq!(
            (condition(fine, "MemoryPressure"), condition(fine, "DiskPressure"), condition(fine, "Ready")),
            (json!("False"), json!("False"), json!("True"))
        );
        let short = NodeLoad { memory_available: 50 << 20, disk_available: 9 << 30, ..fine };
        assert_eq!(
            (condition(short, "MemoryPressure"), condition(short, "DiskPressure")),
            (json!("True"), json!("True"))
        );
        let images =
            NodeImages { records: vec![record("example.com/app:1", 'a', None, true, 1)], blob_port: Some(6445) };
        let node = object(&facts, fine, &images);
        assert_eq!(node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], 6445);
        assert_eq!(node["status"]["images"][0]["names"][1], "example.com/app:1");
        assert_eq!(
            (&node["status"]["capacity"]["cpu"], &node["status"]["capacity"]["pods"]),
            (&json!("2"), &json!("250"))
        );
        assert_eq!(node["metadata"]["labels"]["a"], "b");
    }

    fn digest(letter: char) -> coracle_base::Digest {
        format!("sha256:{}", letter.to_string().repeat(64)).parse().unwrap()
    }

    fn record(name: &str, manifest: char, index: Option<char>, imported: bool, created_ms: u64) -> ImageRecord {
        ImageRecord {
            reference: name.into(),
            digest: digest(manifest),
            index: index.map(digest),
            size: 7,
            layers: 1,
            created_ms,
            imported,
            imported_ms: imported.then_some(created_ms),
            peer: None,
        }
    }

    #[test]
    fn images_are_told_by_manifest_with_their_digests_first() {
        let records = [
            record("host:5000/app", 'a', None, false, 1),
            record("example.com/app:2", 'b', Some('c'), true, 1),
            record("example.com/app:1", 'b', Some('c'), true, 2),
            record(&format!("example.com/by@{}", digest('c')), 'd', Some('c'), false, 3),
        ];
        let at = |name: &str, letter| format!("{name}@{}", digest(letter));
        let expected = json!([
            {"names": [at("host:5000/app", 'a')], "sizeBytes": 7},
            {"names": [at("example.com/app", 'b'), at("example.com/app", 'c'), "example.com/app:1", "example.com/app:2"], "sizeBytes": 7},
            {"names": [at("example.com/by", 'd'), at("example.com/by", 'c')], "sizeBytes": 7},
        ]);
        assert_eq!(images(&records), expected);
        let mut turned = records.to_vec();
        turned.reverse();
        assert_eq!(images(&turned), expected, "in whatever order they come");
    }

    #[test]
    fn imported_images_are_told_before_pulled_ones() {
        let mut records: Vec<ImageRecord> =
            (0..IMAGE_NAMES as u64).map(|at| record(&format!("pulled/app:{at}"), 'a', None, false, 100 + at)).collect();
        records.push(record("imported/app:1", 'b', None, true, 1));
        let told = images(&records).to_string();
        assert!(told.contains("imported/app:1") && told.contains("pulled/app:1\""), "{told}");
        assert!(!told.contains("pulled/app:0\""), "the oldest of the pulled ones gives way");
    }
}
