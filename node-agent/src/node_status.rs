//! What the node says of itself: the Node object of the hello and `Node.status`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::{Value, json};

/// Memory below which the node says it is short.
const MEMORY_PRESSURE: u64 = 100 << 20;
/// Share of the disk, in hundredths, below which it says so.
const DISK_PRESSURE_PERCENT: u64 = 10;
/// What the node keeps for itself.
const MEMORY_RESERVE: u64 = 64 << 20;

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
pub fn object(facts: &NodeFacts, load: NodeLoad) -> Value {
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
        "status": status(facts, load),
    })
}

/// `Node.status`.
#[must_use]
pub fn status(facts: &NodeFacts, load: NodeLoad) -> Value {
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
            let object = object(&facts, load);
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
        let node = object(&facts, fine);
        assert_eq!(
            (&node["status"]["capacity"]["cpu"], &node["status"]["capacity"]["pods"]),
            (&json!("2"), &json!("250"))
        );
        assert_eq!(node["metadata"]["labels"]["a"], "b");
    }
}
