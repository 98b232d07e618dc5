//! The Kubernetes door: discovery, generic verbs, watch, tables, authentication.
//!
//! Nothing here is written per kind but the printer columns: verbs work from the table of kinds and the table of fields.
#![forbid(unsafe_code)]

mod addresses;
mod allot;
mod answer;
mod change;
mod delete;
mod discovery;
mod facility;
mod guests;
mod list;
mod logs;
mod may;
mod metrics;
mod openapi;
mod path;
mod reviews;
mod serve;
mod servers;
mod status;
mod table;
mod verbs;
mod watch;
mod who;
mod wire;
mod write;

pub use addresses::ServiceAddresses;
pub use facility::{BoxFuture, Cluster, LogChunks, LogQuery, Memory, ProposeError, Proposed, ServerEntry};
pub use metrics::{ApiMetrics, Requests, TIME_BOUNDS_MICROS};
pub use serve::{ApiConfig, Live, Patience, ServeError, Tls, serve, serve_with};
pub use who::Who;
