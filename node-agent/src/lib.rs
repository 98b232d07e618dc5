//! One agent process: session with a server, assignment ledger, pod workers, feeds for the network and DNS, status.
#![forbid(unsafe_code)]

mod agent;
mod clock;
mod config;
pub mod facilities;
pub mod fakes;
pub mod feeds;
pub mod ledger;
pub mod logs;
pub mod node_status;
pub mod outbox;
pub mod peers;
pub mod pods;
pub mod preflight;
mod probes;
pub mod real;
pub mod session;
pub mod tunnels;
pub mod volumes;

pub use agent::{Agent, AgentError, AgentHandle, AgentStatus, PodSummary, images_dir};
pub use clock::AgentClock;
pub use config::{AgentConfig, BLOB_LISTEN, Identity, NetworkNames, ServerEndpoint};
pub use coracle_netd::NodeLink;
