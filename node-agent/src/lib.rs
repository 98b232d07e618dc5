//! One agent process: session with a server, assignment ledger, pod workers, feeds for the network and DNS, status.
#![forbid(unsafe_code)]

mod agent;
mod config;

pub use agent::{Agent, AgentError, AgentHandle, AgentStatus, PodSummary};
pub use config::{AgentConfig, Identity, NetworkNames, ServerEndpoint};
