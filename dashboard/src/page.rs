//! The page: its frame, its parts in order, and which namespace it shows.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::escape::{esc, query};
use crate::sections;
use crate::snapshot::Snapshot;

/// A coracle: a round boat, seen from the side, and its paddle.
pub(crate) const LOGO: &str = concat!(
    r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" fill="none" stroke-linecap="round" aria-hidden="true">"##,
    r##"<path d="M22.5 3.5 13 19" stroke="#8a6a3b" stroke-width="2.4"/>"##,
    r##"<path d="M23.8 1.4c1.7 1 2 3.1.9 4.7l-1.6 2.2-2.6-1.7 1.2-2.6c.5-1.2 1.2-2 2.1-2.6Z" fill="#8a6a3b"/>"##,
    r##"<path d="M3.5 15.5h25c0 6.6-5.2 11-12.5 11s-12.5-4.4-12.5-11Z" fill="#1f7a6d"/>"##,
    r##"<path d="M3.5 15.5h25" stroke="#12564d" stroke-width="2.6"/>"##,
    r##"<path d="M2 29.5c2.3 0 2.3-1.4 4.7-1.4s2.3 1.4 4.6 1.4 2.4-1.4 4.7-1.4 2.3 1.4 4.7 1.4 2.3-1.4 4.6-1.4 2.4 1.4 4.7 1.4" stroke="#4aa3c7" stroke-width="2"/>"##,
    "</svg>"
);

/// What the reader chose to see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Chosen {
    /// One namespace, or all when empty.
    pub namespace: String,
}

impl Chosen {
    pub fn shows(&self, namespace: &str) -> bool {
        self.namespace.is_empty() || self.namespace == namespace
    }
}

/// The parts of the page by the ids of the elements that hold them.
pub(crate) fn parts(snapshot: &Snapshot, chosen: &Chosen) -> Vec<(&'static str, String)> {
    vec![
        ("summary", sections::summary(snapshot, chosen)),
        ("attention", sections::attention(snapshot, chosen)),
        ("namespaces", namespaces(snapshot, chosen)),
        ("nodes", sections::nodes(snapshot)),
        ("workloads", sections::workloads(snapshot, chosen)),
        ("pods", sections::pods(snapshot, chosen)),
        ("services", sections::services(snapshot, chosen)),
        ("events", sections::events(snapshot, chosen)),
    ]
}

/// The whole page, showing one namespace or all (empty).
#[must_use]
pub fn page(snapshot: &Snapshot, namespace: &str) -> String {
    let chosen = Chosen { namespace: namespace.to_owned() };
    let cluster = &snapshot.cluster;
    let name = if cluster.name.is_empty() { "cluster" } else { &cluster.name };
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{title} - Coracle</title>\n\
         <link rel=\"icon\" href=\"/favicon.svg\" type=\"image/svg+xml\">\n\
         <link rel=\"stylesheet\" href=\"/style.css\">\n\
         <noscript><meta http-equiv=\"refresh\" content=\"10\"></noscript>\n\
         <script src=\"/live.js\" defer></script>\n</head>\n\
         <body data-namespace=\"{chosen}\">\n\
         <header class=\"top\"><div class=\"wrap\">\
         <a class=\"brand\" href=\"/\">{LOGO}<span>Coracle</span></a>\
         <span class=\"cluster\">{title}</span>\
         <span class=\"live\" id=\"live\" role=\"status\">reloads every 10 s</span>\
         </div></header>\n<main class=\"wrap\">\n",
        title = esc(name),
        chosen = esc(namespace),
    );
    for (id, inner) in parts(snapshot, &chosen) {
        let tag = if id == "namespaces" { "nav" } else { "section" };
        let _ = writeln!(html, "<{tag} id=\"{id}\">{inner}</{tag}>");
    }
    let mut facts = Vec::new();
    for (label, value) in [("version", &cluster.version), ("node", &cluster.this_node), ("API", &cluster.api)] {
        if !value.is_empty() {
            facts.push(format!("{label} {}", esc(value)));
        }
    }
    let _ = write!(
        html,
        "</main>\n<footer class=\"wrap\"><span>{}</span><span><a href=\"/status.json\">status.json</a> \
         <a href=\"/metrics\">metrics</a></span></footer>\n</body>\n</html>\n",
        facts.join(" &middot; ")
    );
    html
}

/// Links that choose a namespace.
fn namespaces(snapshot: &Snapshot, chosen: &Chosen) -> String {
    let pods = snapshot.pods.iter().map(|pod| pod.namespace.as_str());
    let workloads = snapshot.workloads.iter().map(|workload| workload.namespace.as_str());
    let services = snapshot.services.iter().map(|service| service.namespace.as_str());
    let mut names: BTreeSet<&str> = pods.chain(workloads).chain(services).collect();
    if !chosen.namespace.is_empty() {
        names.insert(&chosen.namespace);
    }
    let link = |name: &str, words: &str, href: String| {
        let current = if chosen.namespace == name { " aria-current=\"page\"" } else { "" };
        format!("<a href=\"{href}\"{current}>{}</a>", esc(words))
    };
    let mut html = String::from("<span class=\"label\">Namespace</span>");
    html.push_str(&link("", "all", "/".to_owned()));
    for name in names {
        html.push_str(&link(name, name, format!("/?namespace={}", query(name))));
    }
    html
}
