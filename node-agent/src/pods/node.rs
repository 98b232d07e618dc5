//! What all pods of the node share: facilities, directories, facts, and where they report.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_base::Millis;
use coracle_lifecycle::env::NodeFacts;
use coracle_protocol::v1::NodeEvent;
use tokio::sync::watch;

use crate::clock::AgentClock;
use crate::facilities::{Containers, Images, Network};
use crate::ledger::State;
use crate::outbox::Outbox;
use crate::session::{Leases, LetGo};
use crate::volumes::VolumeDirs;

/// What must be left of a lease for a container to be started under it.
const START_MARGIN_MS: Millis = 1000;

/// The node's own resolver settings, read once at start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostResolver {
    /// Servers.
    pub nameservers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

impl HostResolver {
    /// Reads the text of a `resolv.conf`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => found.nameservers.extend(words.next().map(ToOwned::to_owned)),
                Some("search" | "domain") => found.searches = words.map(ToOwned::to_owned).collect(),
                Some("options") => found.options.extend(words.map(ToOwned::to_owned)),
                _ => {}
            }
        }
        found
    }
}

/// Directories of the agent.
#[derive(Debug, Clone)]
pub struct Paths {
    /// Survives a reboot.
    pub data: PathBuf,
    /// Of this boot only.
    pub run: PathBuf,
}

impl Paths {
    /// A pod's files that survive a reboot (nobody needs them then, they are made anew).
    #[must_use]
    pub fn pod_data(&self, uid: &str) -> PathBuf {
        self.data.join("pods").join(uid)
    }

    /// A pod's files of this boot: record, Secrets.
    #[must_use]
    pub fn pod_run(&self, uid: &str) -> PathBuf {
        self.run.join("agent").join(uid)
    }

    /// A pod's volumes.
    #[must_use]
    pub fn volumes(&self, uid: &str) -> VolumeDirs {
        VolumeDirs { disk: self.pod_data(uid).join("volumes"), memory: self.pod_run(uid).join("volumes") }
    }

    /// All logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    /// Where a run of a container leaves its last words.
    #[must_use]
    pub fn message(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.pod_data(uid).join("messages").join(format!("{container}.{attempt}"))
    }

    /// The writable layer of a run.
    #[must_use]
    pub fn writable(&self, uid: &str, container: &str, attempt: u32) -> PathBuf {
        self.pod_data(uid).join("rootfs").join(container).join(attempt.to_string())
    }

    /// How a command is run in a container.
    #[must_use]
    pub fn process(&self, uid: &str, container: &str) -> PathBuf {
        self.pod_run(uid).join(format!("{container}.process.json"))
    }

    /// `/etc/hosts` and its like.
    #[must_use]
    pub fn etc(&self, uid: &str) -> PathBuf {
        self.pod_data(uid).join("etc")
    }
}

/// What all pods share.
pub struct Node {
    /// Its name.
    pub name: String,
    /// The time.
    pub clock: AgentClock,
    /// Directories.
    pub paths: Paths,
    /// Sandboxes and containers.
    pub containers: Arc<dyn Containers>,
    /// Images.
    pub images: Arc<dyn Images>,
    /// Links and addresses.
    pub network: Arc<dyn Network>,
    /// What the servers have told.
    pub state: watch::Receiver<State>,
    /// Addresses that Services on this node send new connections to, as the kernel knows them.
    pub serving: watch::Receiver<Arc<HashSet<Ipv4Addr>>>,
    /// Pods that no node sends anything new, as the servers say.
    pub let_go: watch::Receiver<LetGo>,
    /// Which fenced pods may run here, and until when: the last the cluster's leader has granted, on the clock of
    /// `Containers::boottime_ms` and counted from the moment the beat was *sent* that it answers. The leader names pods that it
    /// holds assigned to this node, so that one moved away meanwhile is not started by a lease that comes before the feed.
    pub lease: watch::Receiver<Leases>,
    /// Where pods report.
    pub outbox: Arc<Outbox>,
    /// Its address.
    pub host_ip: Ipv4Addr,
    /// In thousandths of a core.
    pub cpu_milli: u64,
    /// In bytes.
    pub memory_bytes: u64,
    /// Its own resolver.
    pub resolver: HostResolver,
}

impl Node {
    /// The cluster's domain.
    #[must_use]
    pub fn domain(&self) -> String {
        let state = self.state.borrow();
        let domain = state.settings.as_ref().map(|settings| settings.cluster_domain.clone()).unwrap_or_default();
        if domain.is_empty() { "cluster.local".to_owned() } else { domain }
    }

    /// When a pod's lease ends, as far as this agent knows; 0 = it has had none.
    #[must_use]
    pub fn lease_until(&self, uid: &str) -> Millis {
        let leases = self.lease.borrow();
        if leases.pods.contains(uid) { leases.until_boottime_ms } else { 0 }
    }

    /// Whether something may be started in a fenced pod.
    #[must_use]
    pub fn leased(&self, uid: &str) -> bool {
        self.lease_until(uid) >= self.containers.boottime_ms().saturating_add(START_MARGIN_MS)
    }

    /// Facts for a pod's environment.
    #[must_use]
    pub fn facts(&self, pod_ip: Ipv4Addr) -> NodeFacts {
        NodeFacts { pod_ip, host_ip: self.host_ip, cpu_milli: self.cpu_milli, memory_bytes: self.memory_bytes }
    }

    /// An event about a pod.
    pub fn event(&self, pod: &coracle_lifecycle::pod::Pod, warning: bool, reason: &str, message: String) {
        self.outbox.event(NodeEvent {
            namespace: pod.namespace.clone(),
            kind: "Pod".to_owned(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            r#type: if warning { "Warning" } else { "Normal" }.to_owned(),
            reason: reason.to_owned(),
            message,
            at_ms: self.clock.now_ms(),
        });
    }
}

/// Writes a file so that a reader sees the old text or the new.
///
/// # Errors
/// The file system's word.
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let temp = path.with_extension("new");
    let _ = std::fs::remove_file(&temp);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temp)?;
    file.write_all(bytes)?;
    std::fs::rename(&temp, path)
}

/// Removes a directory that may not be there, however deep a container made it.
///
/// # Errors
/// The file system's word.
pub fn remove_tree(dir: &Path) -> std::io::Result<()> {
    coracle_images::tree::remove(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf() {
        let found = HostResolver::parse(
            "# c\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nsearch a.example b.example\noptions ndots:2 rotate\n",
        );
        assert_eq!(found.nameservers, ["192.0.2.1", "192.0.2.2"]);
        assert_eq!(found.searches, ["a.example", "b.example"]);
        assert_eq!(found.options, ["ndots:2", "rotate"]);
    }
}
