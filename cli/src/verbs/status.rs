//! `coracle status`: how the cluster and this node are doing, from the node's own status address.

use std::path::Path;

use clap::Args;
use coracle_dashboard::Link;
use coracle_manifests::time::age;
use coracle_manifests::view::list;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::rt::TokioExecutor;
use serde::Deserialize as _;
use serde_json::Value;

use crate::config::Settings;
use crate::failure::Failure;
use crate::output::{self, columns, text};

/// Show how the cluster and this node are doing
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  coracle status\n  coracle status -o json | jq .pods\n\nExit codes: 0 all is well, 1 it cannot be told, 5 something is not as it should be"
)]
pub struct Status {
    /// Only the servers: who leads, who votes, who is behind, and how this one's disk does
    #[arg(long)]
    servers: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: output::Format,
}

/// Runs the verb.
///
/// # Errors
/// Nobody answers; something is wrong (code 5).
pub async fn run(data_dir: &Path, status: &Status) -> Result<(), Failure> {
    let answer = fetch(data_dir, "/status.json").await?;
    match output_of(status, &answer) {
        text if text.is_empty() => {}
        text => output::raw(text.as_bytes()),
    }
    let bad = wrong(&answer);
    if bad.is_empty() { Ok(()) } else { Err(Failure { code: 5, message: bad.join("\nerror: ") }) }
}

/// What this node's status address says at a path.
///
/// # Errors
/// Nothing was started here, or nobody answers.
pub async fn fetch(data_dir: &Path, path: &str) -> Result<Value, Failure> {
    let Some(settings) = Settings::load(data_dir)? else {
        return Err(Failure::failed(format!(
            "nothing has been started with the data folder {}\nhint: `coracle up` starts a cluster; another folder goes into --data-dir",
            data_dir.display()
        )));
    };
    let url = format!("http://{}{path}", settings.status_listen);
    let fetch = async {
        let client: HyperClient<_, Empty<bytes::Bytes>> = HyperClient::builder(TokioExecutor::new()).build_http();
        let uri = url.parse().map_err(|_| "the address is no URL".to_owned())?;
        let answer = client.get(uri).await.map_err(|error| coracle_base::one_line(&error))?;
        let bytes = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        serde_json::from_slice::<Value>(&bytes).map_err(|error| error.to_string())
    };
    fetch.await.map_err(|reason: String| {
        Failure::failed(format!(
            "nobody answers at {url}: {reason}\nhint: is `coracle up` running? Pods go on without it"
        ))
    })
}

fn output_of(status: &Status, answer: &Value) -> String {
    if status.servers {
        let servers = &answer["servers"];
        return match status.output {
            output::Format::Json => output::json(servers) + "\n",
            output::Format::Yaml => output::yaml(servers),
            _ => server_rows(servers),
        };
    }
    match status.output {
        output::Format::Json => output::json(answer) + "\n",
        output::Format::Yaml => output::yaml(answer),
        _ => words(answer),
    }
}

fn server_rows(servers: &Value) -> String {
    let header =
        ["NAME", "ADDRESS", "ROLE", "VERSION", "LEVEL", "TERM", "BEHIND", "FSYNC P99", "LOG"].map(ToOwned::to_owned);
    let rows: Vec<Vec<String>> = list(servers)
        .iter()
        .map(|server| {
            let role = match (server["leader"] == true, server["voter"] == true) {
                (true, _) => "leader",
                (_, true) => "voter",
                _ => "learner",
            };
            let role = if server["reachable"] == false { format!("{role}, silent") } else { role.to_owned() };
            let fsync = server["fsync_p99_ms"].as_f64().map_or_else(String::new, |ms| format!("{ms:.1} ms"));
            let log = server["log_bytes"].as_u64().map_or_else(String::new, |bytes| format!("{} MB", bytes >> 20));
            vec![
                text(&server["name"]),
                text(&server["address"]),
                role,
                text(&server["version"]),
                text(&server["level"]),
                text(&server["term"]),
                text(&server["lag"]),
                fsync,
                log,
            ]
        })
        .collect();
    columns(&header, &rows) + &level_words(servers)
}

/// The cluster's level, and who keeps it there while servers of two releases run.
fn level_words(servers: &Value) -> String {
    let servers = list(servers);
    let Some(cluster) = servers.first().and_then(|server| server["cluster_level"].as_u64()) else {
        return String::new();
    };
    let level = |server: &Value| server["level"].as_u64();
    let highest = servers.iter().filter_map(level).max().unwrap_or(cluster);
    let mut words = format!("\ncluster level: {cluster}\n");
    if highest > cluster {
        let held: Vec<String> = servers
            .iter()
            .filter_map(|server| match level(server) {
                Some(level) if level >= highest => None,
                Some(level) => Some(format!("{} is at level {level}", text(&server["name"]))),
                None => Some(format!("{} is not heard of", text(&server["name"]))),
            })
            .collect();
        let why = if held.is_empty() { "it rises in a moment".to_owned() } else { held.join(", ") };
        words.push_str(&format!("it becomes {highest} when every server has the new release: {why}\n"));
    }
    words
}

/// What is not as it should be, in words.
fn wrong(answer: &Value) -> Vec<String> {
    let mut bad = Vec::new();
    for server in list(&answer["servers"]) {
        let problem = text(&server["problem"]);
        if !problem.is_empty() {
            bad.push(format!("server {}: {problem}", text(&server["name"])));
        }
    }
    for node in list(&answer["nodes"]) {
        if node["ready"] == false {
            bad.push(format!("node {} is not ready", text(&node["name"])));
        } else if node["link"].is_object() && node["link"]["answered_ms"].is_null() {
            bad.push(format!("pods of node {} cannot be reached from here\nhint: coracle doctor", text(&node["name"])));
        }
    }
    for workload in list(&answer["workloads"]) {
        let (ready, desired) = (workload["ready"].as_u64().unwrap_or(0), workload["desired"].as_u64().unwrap_or(0));
        if ready < desired {
            bad.push(format!(
                "{}/{} has {ready} of {desired} replicas ready",
                text(&workload["namespace"]),
                text(&workload["name"])
            ));
        }
    }
    bad
}

/// How this node reaches another one's pods, in words; nothing of itself.
fn link(link: &Value) -> String {
    Link::deserialize(link).map(|link| link.words()).unwrap_or_default()
}

fn words(answer: &Value) -> String {
    let now = crate::now_ms();
    let mut out = String::new();
    let sections: [(&str, &[&str]); 4] = [
        ("nodes", &["name", "ready", "address", "link", "pods", "cpu", "memory", "version"]),
        ("workloads", &["namespace", "name", "kind", "ready", "desired", "updated", "available"]),
        ("services", &["namespace", "name", "cluster_ip", "ports", "endpoints"]),
        ("pods", &["namespace", "name", "phase", "ready", "restarts", "ip", "node", "reason"]),
    ];
    for (section, fields) in sections {
        let items = list(&answer[section]);
        if items.is_empty() {
            continue;
        }
        let header: Vec<String> = fields.iter().map(|field| field.replace('_', " ").to_uppercase()).collect();
        let cell = |item: &Value, field: &str| match field {
            "link" => link(&item[field]),
            _ => text(&item[field]),
        };
        let rows: Vec<Vec<String>> =
            items.iter().map(|item| fields.iter().map(|field| cell(item, field)).collect()).collect();
        out.push_str(&format!("{}\n{}\n", section.to_uppercase(), columns(&header, &rows)));
    }
    let events = list(&answer["events"]);
    if !events.is_empty() {
        let header = ["AGE", "TYPE", "REASON", "OBJECT", "MESSAGE"].map(ToOwned::to_owned);
        let rows: Vec<Vec<String>> = events
            .iter()
            .take(10)
            .map(|event| {
                vec![
                    age(&text(&event["last_seen"]), now),
                    text(&event["type"]),
                    text(&event["reason"]),
                    text(&event["object"]),
                    text(&event["message"]),
                ]
            })
            .collect();
        out.push_str(&format!("EVENTS\n{}", columns(&header, &rows)));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_level_and_who_keeps_it_are_shown() {
        let server = |name: &str, level: Option<u32>| serde_json::json!({"name": name, "level": level, "cluster_level": 1, "voter": true});
        let shown = server_rows(&serde_json::json!([server("m1", Some(2)), server("m2", Some(1)), server("m3", None)]));
        assert!(shown.contains("cluster level: 1\n"), "{shown}");
        assert!(
            shown.contains("it becomes 2 when every server has the new release: m2 is at level 1, m3 is not heard of")
        );
        let all = server_rows(&serde_json::json!([server("m1", Some(1)), server("m2", Some(1))]));
        assert!(!all.contains("becomes"), "{all}");
    }
}
