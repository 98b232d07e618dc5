//! The parts of the page, each a piece of HTML from the snapshot. Every foreign text goes through `esc`.

use std::fmt::Write as _;

use crate::escape::esc;
use crate::page::Chosen;
use crate::snapshot::{Node, Pod, Service, Snapshot, Workload, format_bytes, format_cpu};

/// Long lists are cut: the page is for people. The JSON has all.
const ROWS: usize = 500;
/// So many backends of a Service are named.
const BACKENDS: usize = 6;
/// So many things that need attention are told one by one.
const TROUBLES: usize = 12;

/// A time as text the script can turn into an age.
fn time(at: &str) -> String {
    // Without the script the time of day is more use than the whole stamp.
    let short = at.get(11..19).unwrap_or(at);
    format!("<time datetime=\"{0}\" title=\"{0}\">{1}</time>", esc(at), esc(short))
}

fn heading(words: &str, count: usize) -> String {
    format!("<h2>{words} <span class=\"count\">{count}</span></h2>")
}

fn badge(kind: &str, words: &str) -> String {
    format!("<span class=\"badge {kind}\">{}</span>", esc(words))
}

/// The numbers at the top.
pub(crate) fn summary(snapshot: &Snapshot, chosen: &Chosen) -> String {
    let nodes = (snapshot.nodes.iter().filter(|node| node.ready).count(), snapshot.nodes.len());
    let workloads: Vec<&Workload> =
        snapshot.workloads.iter().filter(|workload| chosen.shows(&workload.namespace)).collect();
    let complete = workloads.iter().filter(|workload| workload.available >= workload.desired).count();
    let pods: Vec<&Pod> = snapshot.pods.iter().filter(|pod| chosen.shows(&pod.namespace)).collect();
    let well = pods.iter().filter(|pod| pod.healthy).count();
    let services: Vec<&Service> = snapshot.services.iter().filter(|service| chosen.shows(&service.namespace)).collect();
    let served = services.iter().filter(|service| service.endpoints > 0).count();
    let mut html = String::from("<h1 class=\"hidden\">Status</h1><div class=\"tiles\">");
    for (label, note, (good, all)) in [
        ("Nodes", "ready", nodes),
        ("Workloads", "complete", (complete, workloads.len())),
        ("Pods", "well", (well, pods.len())),
        ("Services", "served", (served, services.len())),
    ] {
        let state = if all == 0 {
            "none"
        } else if good == all {
            "good"
        } else {
            "bad"
        };
        let _ = write!(
            html,
            "<a class=\"tile {state}\" href=\"#{}\"><span class=\"label\">{label}</span>\
             <span class=\"number\">{good}<small>/{all}</small></span><span class=\"note\">{note}</span></a>",
            label.to_lowercase()
        );
    }
    html.push_str("</div>");
    html
}

/// What is not as it should be, worst first, or that all is well.
pub(crate) fn attention(snapshot: &Snapshot, chosen: &Chosen) -> String {
    let mut troubles: Vec<(String, String)> = Vec::new();
    for server in snapshot.servers.iter().filter(|server| !server.reachable) {
        troubles.push((format!("server {}", server.name), "is not heard of".to_owned()));
    }
    for server in snapshot.servers.iter().filter(|server| !server.problem.is_empty()) {
        troubles.push((format!("server {}", server.name), server.problem.clone()));
    }
    for node in snapshot.nodes.iter().filter(|node| !node.ready) {
        let ready = node.conditions.iter().find(|condition| condition.kind == "Ready");
        let words = ready.map_or("has not reported yet", |ready| ready.message.as_str());
        troubles.push((format!("node {}", node.name), format!("is not ready: {words}")));
    }
    // A node that is not ready is told of already.
    for node in snapshot.nodes.iter().filter(|node| node.ready) {
        let Some(link) = node.link.as_ref().filter(|link| link.answered_ms.is_none()) else { continue };
        let words = match link.problem.as_str() {
            "" => "its pods do not answer this node; `coracle doctor` looks for the cause".to_owned(),
            problem => format!("its pods cannot be reached from this node: {problem}"),
        };
        troubles.push((format!("link to {}", node.name), words));
    }
    for node in &snapshot.nodes {
        let bad = |kind: &str| kind.ends_with("Pressure") || kind.ends_with("Unavailable");
        for condition in node.conditions.iter().filter(|held| bad(&held.kind) && held.status == "True") {
            troubles.push((format!("node {}", node.name), format!("{}: {}", condition.kind, condition.message)));
        }
    }
    for one in snapshot.workloads.iter().filter(|workload| chosen.shows(&workload.namespace)) {
        if !one.problem.is_empty() {
            let what = format!("{} {}/{}", one.kind.to_lowercase(), one.namespace, one.name);
            troubles.push((what, one.problem.clone()));
        }
    }
    for pod in snapshot.pods.iter().filter(|pod| chosen.shows(&pod.namespace) && is_trouble(pod)) {
        let words = match (pod.reason.as_str(), pod.message.as_str()) {
            ("", _) => pod.phase.clone(),
            (reason, "") => reason.to_owned(),
            (reason, message) => format!("{reason}: {message}"),
        };
        troubles.push((format!("pod {}/{}", pod.namespace, pod.name), words));
    }
    if troubles.is_empty() {
        let quiet = if snapshot.nodes.is_empty() { "No node has joined yet." } else { "All is well." };
        return format!("<p class=\"calm\"><span class=\"dot\"></span>{quiet}</p>");
    }
    let mut html = format!("<h2>Needs attention <span class=\"count\">{}</span></h2><ul>", troubles.len());
    for (what, words) in troubles.iter().take(TROUBLES) {
        let _ = write!(html, "<li><b>{}</b> {}</li>", esc(what), esc(words));
    }
    html.push_str("</ul>");
    if troubles.len() > TROUBLES {
        let _ = write!(html, "<p class=\"more\">and {} more</p>", troubles.len() - TROUBLES);
    }
    html
}

/// A pod that is only starting is no trouble; one that says why it does not start, or that has failed, is.
fn is_trouble(pod: &Pod) -> bool {
    let starting = ["ContainerCreating", "PodInitializing", "Pulling"].contains(&pod.reason.as_str());
    !pod.healthy && (pod.phase == "Failed" || (!pod.reason.is_empty() && !starting))
}

fn meter(label: &str, used: u64, all: u64, words: &str) -> String {
    let share = (u128::from(used) * 100).checked_div(u128::from(all)).unwrap_or(0).min(100);
    let state = match share {
        0..75 => "",
        75..90 => " high",
        _ => " full",
    };
    // A progress element needs no inline style, which the content security policy forbids.
    format!(
        "<div class=\"meter{state}\"><span>{label}</span><progress max=\"100\" value=\"{share}\" aria-label=\"{label}\">\
         {share} %</progress><span class=\"figure\">{}</span></div>",
        esc(words)
    )
}

/// Machines, as cards.
pub(crate) fn nodes(snapshot: &Snapshot) -> String {
    let mut html = heading("Nodes", snapshot.nodes.len());
    if snapshot.nodes.is_empty() {
        html.push_str(
            "<p class=\"empty\">No node has joined yet. <code>coracle join</code> on another machine adds one.</p>",
        );
        return html;
    }
    html.push_str("<div class=\"cards\">");
    for one in snapshot.nodes.iter().take(ROWS) {
        html.push_str(&node(snapshot, one));
    }
    html.push_str("</div>");
    html
}

fn node(snapshot: &Snapshot, node: &Node) -> String {
    let mut state = if node.ready { badge("good", "Ready") } else { badge("bad", "Not ready") };
    if node.cordoned {
        state.push_str(&badge("warn", "Cordoned"));
    }
    if let Some(server) = snapshot.servers.iter().find(|server| server.name == node.name) {
        state.push_str(&badge("plain", if server.leader { "Server, leads" } else { "Server" }));
    }
    let facts: Vec<String> = [&node.address, &node.platform, &node.kernel, &node.version]
        .into_iter()
        .filter(|fact| !fact.is_empty())
        .map(|fact| format!("<span>{}</span>", esc(fact)))
        .collect();
    let link = node.link.as_ref().map(|link| format!("<span>link {}</span>", esc(&link.words())));
    let facts: Vec<String> = facts.into_iter().chain(link).collect();
    let cpu = format!("{} of {}", format_cpu(node.cpu_requested_milli), format_cpu(node.cpu_allocatable_milli));
    let memory =
        format!("{} of {}", format_bytes(node.memory_requested_bytes), format_bytes(node.memory_allocatable_bytes));
    let mut html = format!(
        "<article class=\"card\"><header><h3>{}</h3><span class=\"badges\">{state}</span></header>\
         <p class=\"facts\">{}</p>",
        esc(&node.name),
        facts.join("")
    );
    html.push_str(&meter("CPU", node.cpu_requested_milli, node.cpu_allocatable_milli, &cpu));
    html.push_str(&meter("Memory", node.memory_requested_bytes, node.memory_allocatable_bytes, &memory));
    html.push_str(&meter("Pods", node.pods, node.pods_max, &format!("{} of {}", node.pods, node.pods_max)));
    if !node.taints.is_empty() {
        html.push_str("<p class=\"taints\">");
        for taint in &node.taints {
            html.push_str(&badge("plain", taint));
        }
        html.push_str("</p>");
    }
    html.push_str("</article>");
    html
}

/// A table; `labels` are also what a narrow screen shows before each value.
struct Table {
    html: String,
    labels: &'static [&'static str],
}

impl Table {
    fn new(labels: &'static [&'static str]) -> Self {
        let mut html = String::from("<div class=\"scroll\"><table><thead><tr>");
        for label in labels {
            let _ = write!(html, "<th scope=\"col\">{label}</th>");
        }
        html.push_str("</tr></thead><tbody>");
        Self { html, labels }
    }

    /// Cells are HTML already.
    fn row(&mut self, class: &str, cells: &[String]) {
        let _ = write!(self.html, "<tr class=\"{class}\">");
        for (label, cell) in self.labels.iter().zip(cells) {
            let _ = write!(self.html, "<td data-label=\"{label}\">{cell}</td>");
        }
        self.html.push_str("</tr>");
    }

    fn end(mut self, left_out: usize) -> String {
        self.html.push_str("</tbody></table></div>");
        if left_out > 0 {
            let _ = write!(
                self.html,
                "<p class=\"more\">{left_out} more are not shown; <a href=\"/status.json\">status.json</a> has all</p>"
            );
        }
        self.html
    }
}

/// A name with its namespace in front, when more than one is shown.
fn named(chosen: &Chosen, namespace: &str, name: &str) -> String {
    let space = if chosen.namespace.is_empty() {
        format!("<span class=\"space\">{}/</span>", esc(namespace))
    } else {
        String::new()
    };
    format!("<span class=\"name\">{space}{}</span>", esc(name))
}

/// Deployments and sets, with how far they are.
pub(crate) fn workloads(snapshot: &Snapshot, chosen: &Chosen) -> String {
    let shown: Vec<&Workload> = snapshot.workloads.iter().filter(|one| chosen.shows(&one.namespace)).collect();
    let mut html = heading("Workloads", shown.len());
    if shown.is_empty() {
        html.push_str("<p class=\"empty\">None yet. <code>coracle apply -f app.yaml</code> makes one.</p>");
        return html;
    }
    let mut table = Table::new(&["Name", "Kind", "State", "Ready", "Updated", "Available", "Image", "Age"]);
    for one in shown.iter().take(ROWS) {
        let (kind, words) = if !one.problem.is_empty() {
            ("bad", "Stuck")
        } else if one.paused {
            ("warn", "Paused")
        } else if one.updated < one.to_update || one.replicas > one.desired {
            ("busy", "Rolling out")
        } else if one.available < one.desired {
            ("busy", "Starting")
        } else {
            ("good", "Complete")
        };
        let images: Vec<String> = one.images.iter().map(|image| format!("<code>{}</code>", esc(image))).collect();
        table.row(
            kind,
            &[
                named(chosen, &one.namespace, &one.name),
                esc(&one.kind).to_string(),
                badge(kind, words),
                format!(
                    "<span class=\"progress\"><progress max=\"{0}\" value=\"{1}\" aria-label=\"ready\"></progress>\
                     <span class=\"figure\">{2}/{3}</span></span>",
                    one.desired.max(1),
                    // Nothing wanted and nothing there is all of it.
                    if one.desired == 0 { 1 } else { one.ready.min(one.desired) },
                    one.ready,
                    one.desired
                ),
                one.updated.to_string(),
                one.available.to_string(),
                images.join(" "),
                time(&one.created),
            ],
        );
    }
    html + &table.end(shown.len().saturating_sub(ROWS))
}

/// Pods, those in trouble first.
pub(crate) fn pods(snapshot: &Snapshot, chosen: &Chosen) -> String {
    let mut shown: Vec<&Pod> = snapshot.pods.iter().filter(|pod| chosen.shows(&pod.namespace)).collect();
    shown.sort_by_key(|pod| (!is_trouble(pod), pod.healthy));
    let mut html = heading("Pods", shown.len());
    if shown.is_empty() {
        html.push_str("<p class=\"empty\">None.</p>");
        return html;
    }
    let mut table = Table::new(&["Name", "State", "Ready", "Restarts", "Node", "Address", "Age"]);
    for pod in shown.iter().take(ROWS) {
        let kind = match pod.phase.as_str() {
            _ if is_trouble(pod) => "bad",
            "Running" if pod.healthy => "good",
            "Succeeded" | "Terminating" => "plain",
            _ => "busy",
        };
        let words = if pod.reason.is_empty() || pod.phase == "Terminating" { &pod.phase } else { &pod.reason };
        let empty = |text: &str| if text.is_empty() { "&ndash;".to_owned() } else { esc(text).to_string() };
        table.row(
            kind,
            &[
                named(chosen, &pod.namespace, &pod.name),
                badge(kind, words),
                esc(&pod.ready).to_string(),
                pod.restarts.to_string(),
                empty(&pod.node),
                format!("<code>{}</code>", empty(&pod.ip)),
                time(&pod.created),
            ],
        );
    }
    html + &table.end(shown.len().saturating_sub(ROWS))
}

/// Services and what stands behind them.
pub(crate) fn services(snapshot: &Snapshot, chosen: &Chosen) -> String {
    let shown: Vec<&Service> = snapshot.services.iter().filter(|one| chosen.shows(&one.namespace)).collect();
    let mut html = heading("Services", shown.len());
    if shown.is_empty() {
        html.push_str("<p class=\"empty\">None.</p>");
        return html;
    }
    let mut table = Table::new(&["Name", "Address", "Ports", "Endpoints", "Age"]);
    for one in shown.iter().take(ROWS) {
        let address = if one.cluster_ip == "None" { "headless" } else { &one.cluster_ip };
        let mut backends = String::new();
        for backend in one.backends.iter().take(BACKENDS) {
            let state = if backend.ready { "up" } else { "down" };
            let title = if backend.pod.is_empty() { &backend.address } else { &backend.pod };
            let _ = write!(
                backends,
                "<span class=\"backend {state}\" title=\"{}\">{}</span>",
                esc(title),
                esc(&backend.address)
            );
        }
        if one.backends.len() > BACKENDS {
            let _ = write!(backends, "<span class=\"backend\">+{}</span>", one.backends.len() - BACKENDS);
        }
        if backends.is_empty() {
            backends = badge("warn", "none");
        }
        table.row(
            if one.endpoints > 0 { "good" } else { "warn" },
            &[
                named(chosen, &one.namespace, &one.name),
                format!("<code>{}</code>", esc(address)),
                format!("<code>{}</code>", esc(&one.ports)),
                format!("<span class=\"backends\">{backends}</span>"),
                time(&one.created),
            ],
        );
    }
    html + &table.end(shown.len().saturating_sub(ROWS))
}

/// What happened of late.
pub(crate) fn events(snapshot: &Snapshot, chosen: &Chosen) -> String {
    let shown: Vec<_> = snapshot.events.iter().filter(|event| chosen.shows(&event.namespace)).collect();
    let mut html = heading("Events", shown.len());
    if shown.is_empty() {
        html.push_str("<p class=\"empty\">Nothing happened within the last hour.</p>");
        return html;
    }
    html.push_str("<ol class=\"log\">");
    for event in shown {
        let kind = if event.kind == "Warning" { "warn" } else { "plain" };
        let times = if event.count > 1 {
            format!(" <span class=\"times\">&times;{}</span>", event.count)
        } else {
            String::new()
        };
        let _ = write!(
            html,
            "<li class=\"{kind}\">{}<span class=\"what\">{}</span><span class=\"about\">{}</span>\
             <span class=\"words\">{}{times}</span></li>",
            time(&event.last_seen),
            badge(kind, &event.reason),
            esc(&event.object),
            esc(&event.message),
        );
    }
    html.push_str("</ol>");
    html
}
