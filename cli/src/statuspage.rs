//! The node's status address: the page, the same as JSON, and the metrics. Fed from the memory of this server.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use coracle_control_plane::ServerStatus;
use coracle_control_plane::server::ServerHandle;
use coracle_daemon::DrainWatch;
use coracle_dashboard::{Cluster, Finding, Link, Server, Snapshot, Source, Trees};
use coracle_node_agent::{AgentHandle, NodeLink};
use serde_json::Value;
use tokio::sync::watch;

use crate::config::Settings;
use crate::failure::Failure;

/// A server that the leader has not heard of for so long is shown as away.
const SILENT: Duration = Duration::from_secs(3);

/// Starts serving; returns once it listens.
///
/// # Errors
/// The port is taken.
pub async fn start(
    settings: &Settings,
    server: &ServerHandle,
    agent: &AgentHandle,
    drain: DrainWatch,
) -> Result<(), Failure> {
    let source = Arc::new(Memory { settings: settings.clone(), server: server.clone(), agent: agent.clone() });
    coracle_dashboard::serve(settings.status_listen, source, drain)
        .await
        .map_err(|error| Failure::from_error(&error))?;
    Ok(())
}

/// The same on a machine that is no server: what its ledger holds.
///
/// # Errors
/// The port is taken.
pub async fn start_node(settings: &Settings, agent: &AgentHandle, drain: DrainWatch) -> Result<(), Failure> {
    let mut known = agent.known();
    let (sender, changes) = watch::channel(known.borrow_and_update().generation);
    let end = drain.token();
    drain.spawn(async move {
        loop {
            tokio::select! {
                // Cancel safe both.
                changed = known.changed() => if changed.is_err() { return },
                () = end.cancelled() => return,
            }
            sender.send_replace(known.borrow_and_update().generation);
        }
    });
    let source = Arc::new(Ledger { settings: settings.clone(), agent: agent.clone(), changes });
    coracle_dashboard::serve(settings.status_listen, source, drain)
        .await
        .map_err(|error| Failure::from_error(&error))?;
    Ok(())
}

/// What a node knows: the cluster's nodes, Services and endpoints, and its own pods.
struct Ledger {
    settings: Settings,
    agent: AgentHandle,
    changes: watch::Receiver<coracle_base::Generation>,
}

impl Source for Ledger {
    fn snapshot(&self) -> Snapshot {
        let state = self.agent.known().borrow().clone();
        let status = self.agent.status().borrow().clone();
        let of = |resource: &str| state.list(resource).map(|(_, held)| held.clone()).collect::<Vec<_>>();
        let held = [of("nodes"), of("pods"), of("services"), of("endpointslices.discovery.k8s.io")];
        let [nodes, pods, services, slices] =
            held.each_ref().map(|list| list.iter().map(|held| &held.tree).collect::<Vec<&Value>>());
        let trees =
            Trees { nodes: &nodes, workloads: &[], pods: &pods, services: &services, slices: &slices, events: &[] };
        let servers = state.settings.iter().flat_map(|settings| settings.servers.clone()).map(|address| {
            let here = status.server.as_ref() == Some(&address);
            Server {
                name: address.clone(),
                address,
                reachable: !here || status.connected,
                problem: if here { status.disconnected_because.clone().unwrap_or_default() } else { String::new() },
                ..Server::default()
            }
        });
        let snapshot = Snapshot {
            cluster: Cluster {
                name: "coracle".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                this_node: self.settings.node_name.clone(),
                api: String::new(),
                revision: state.generation.revision,
                level: None,
            },
            servers: servers.collect(),
            ..Snapshot::default()
        };
        snapshot.with(trees).with_links(links(&self.agent))
    }

    fn changes(&self) -> watch::Receiver<coracle_base::Generation> {
        self.changes.clone()
    }

    fn metrics(&self) -> String {
        let mut text = String::new();
        let used = coracle_daemon::metrics::process_use();
        let status = self.agent.status().borrow().clone();
        let mut sample = |name: &str, kind: &str, value: f64| {
            let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
        };
        #[allow(clippy::cast_precision_loss)]
        {
            sample("process_resident_memory_bytes", "gauge", used.rss_bytes as f64);
            sample("process_cpu_seconds_total", "counter", used.cpu_seconds);
            sample("process_threads", "gauge", used.threads as f64);
            sample("process_open_fds", "gauge", used.open_fds as f64);
            sample("coracle_agent_pods", "gauge", status.pods.len() as f64);
            sample("coracle_agent_connected", "gauge", f64::from(u8::from(status.connected)));
        }
        text
    }

    fn doctor(&self) -> Pin<Box<dyn Future<Output = Vec<Finding>> + Send + '_>> {
        Box::pin(async { shown(self.agent.doctor().await) })
    }
}

/// What this server's memory holds, as the pages show it.
struct Memory {
    settings: Settings,
    server: ServerHandle,
    agent: AgentHandle,
}

impl Source for Memory {
    fn snapshot(&self) -> Snapshot {
        let view = self.server.memory.view();
        let of = |resource: &'static str| -> Vec<Arc<Value>> {
            view.list(resource, None).map(|object| object.tree().clone()).collect()
        };
        let kinds = ["deployments.apps", "statefulsets.apps", "daemonsets.apps", "replicationcontrollers"];
        let trees = [
            of("nodes"),
            kinds.into_iter().flat_map(of).collect(),
            of("pods"),
            of("services"),
            of("endpointslices.discovery.k8s.io"),
            of("events"),
        ];
        let [nodes, workloads, pods, services, slices, events] =
            trees.each_ref().map(|list| list.iter().map(|tree| &**tree).collect::<Vec<&Value>>());
        let trees = Trees {
            nodes: &nodes,
            workloads: &workloads,
            pods: &pods,
            services: &services,
            slices: &slices,
            events: &events,
        };
        let snapshot = Snapshot {
            cluster: Cluster {
                name: "coracle".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                this_node: self.settings.node_name.clone(),
                api: format!("https://{}", self.server.api_address),
                revision: view.revision(),
                level: Some(view.level()),
            },
            servers: servers(&self.server),
            ..Snapshot::default()
        };
        snapshot.with(trees).with_links(links(&self.agent))
    }

    fn changes(&self) -> watch::Receiver<coracle_base::Generation> {
        self.server.memory.changes()
    }

    fn metrics(&self) -> String {
        metrics(&self.server)
    }

    fn doctor(&self) -> Pin<Box<dyn Future<Output = Vec<Finding>> + Send + '_>> {
        Box::pin(async {
            let mut found = shown(self.agent.doctor().await);
            if let Some(trouble) = self.server.log_trouble() {
                let (problem, hint) = trouble.split_once("\nhint: ").unwrap_or((&trouble, ""));
                found.push(Finding { problem: problem.to_owned(), hint: hint.to_owned() });
            }
            let silent = servers(&self.server).into_iter().filter(|server| !server.reachable);
            found.extend(silent.map(|server| Finding {
                problem: format!("the leader does not hear of server {} at {}", server.name, server.address),
                hint: "look whether its machine and `coracle` run there, and whether port 6444 is open between the servers".to_owned(),
            }));
            found
        })
    }
}

/// The ways from this node to the others, by their names.
fn links(agent: &AgentHandle) -> HashMap<String, Link> {
    let shown = |link: &NodeLink| {
        let way = match (&link.refused, link.direct) {
            (Some(_), _) => "none",
            (None, true) => "direct",
            (None, false) => "tunnel",
        };
        Link {
            way: way.to_owned(),
            answered_ms: link.answered.map(|took| took.as_secs_f64() * 1000.0),
            problem: link.refused.clone().unwrap_or_default(),
        }
    };
    agent.node_links().iter().map(|link| (link.node.clone(), shown(link))).collect()
}

fn shown(found: Vec<coracle_node_agent::preflight::Finding>) -> Vec<Finding> {
    found.into_iter().map(|found| Finding { problem: found.problem, hint: found.hint }).collect()
}

/// The cluster's servers as this one knows them; what only the leader knows is empty on others.
fn servers(server: &ServerHandle) -> Vec<Server> {
    let own = server.log.figures();
    let cluster_level = Some(server.memory.view().level());
    let shown = |status: ServerStatus| {
        let mut problem = String::new();
        if status.here {
            problem = server.log_trouble().unwrap_or_default().replace("\nhint: ", "; hint: ");
        }
        let reachable = status.silent.is_none_or(|silent| silent < SILENT);
        if !reachable {
            problem = "the leader does not hear of it; hint: look whether its machine and `coracle` run there, and at the network between them".to_owned();
        }
        let (version, level) = match status.release {
            Some(release) => (release.version.to_string(), Some(release.level)),
            None => (String::new(), None),
        };
        Server {
            version,
            level,
            cluster_level,
            name: status.name,
            address: status.address,
            leader: status.leader,
            voter: status.voter,
            reachable,
            lag: status.lag,
            term: own.term,
            fsync_p99_ms: status.here.then_some(own.fsync_p99.as_secs_f64() * 1000.0),
            log_bytes: status.here.then_some(own.log_bytes),
            problem,
        }
    };
    server.log.servers().into_iter().map(shown).collect()
}

/// Everything this process counts, in the Prometheus text format.
fn metrics(server: &ServerHandle) -> String {
    let mut text = String::new();
    let used = coracle_daemon::metrics::process_use();
    let view = server.memory.view();
    let mut sample = |name: &str, kind: &str, value: f64| {
        let _ = writeln!(text, "# TYPE {name} {kind}\n{name} {value}");
    };
    #[allow(clippy::cast_precision_loss)]
    {
        sample("process_resident_memory_bytes", "gauge", used.rss_bytes as f64);
        sample("process_cpu_seconds_total", "counter", used.cpu_seconds);
        sample("process_threads", "gauge", used.threads as f64);
        sample("process_open_fds", "gauge", used.open_fds as f64);
        sample("coracle_store_objects", "gauge", view.len() as f64);
        sample("coracle_store_revision", "counter", view.revision() as f64);
    }
    for (name, value) in server.log_metrics() {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        sample(&format!("coracle_log_{name}"), kind, value);
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
