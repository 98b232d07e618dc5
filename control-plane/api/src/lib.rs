//! The Kubernetes door: discovery, generic verbs, watch, tables, authentication.
//!
//! Nothing here is written per kind but the printer columns: verbs work from the table of kinds and the table of fields.
#![forbid(unsafe_code)]

mod answer;
mod delete;
mod discovery;
mod facility;
mod list;
mod logs;
mod metrics;
mod openapi;
mod path;
mod serve;
mod status;
mod table;
mod verbs;
mod watch;
mod who;
mod write;

pub use facility::{BoxFuture, Cluster, LogChunks, LogQuery, Memory, ProposeError, Proposed};
pub use metrics::ApiMetrics;
pub use serve::{ApiConfig, ServeError, ServiceAddresses, Tls, serve};
