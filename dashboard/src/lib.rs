//! The web status pages and the same data as JSON.
//!
//! One `Source` gives one `Snapshot`; the page, its fragments for live updates, `/status.json` and `/metrics` are all made
//! of it. The page is drawn on the server and complete without JavaScript; a few lines of script only swap in the parts
//! that changed. Nothing here shows an environment, a Secret or a ConfigMap: the snapshot has no place for them.
#![forbid(unsafe_code)]

mod escape;
mod gather;
mod page;
mod sections;
mod server;
mod snapshot;

pub use gather::Trees;
pub use page::page;
pub use server::{DashboardError, DashboardHandle, Finding, Source, router, serve};
pub use snapshot::{
    Cluster, Condition, Endpoint, Event, Link, Node, Pod, Server, Service, Snapshot, Volume, Workload, format_bytes,
    format_cpu,
};
