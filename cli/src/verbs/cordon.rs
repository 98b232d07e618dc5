//! `coracle cordon` and `uncordon`: whether a node takes new pods.

use clap::Args;
use coracle_manifests::view::{list, text};
use http::Method;
use serde_json::{Value, json};

use crate::client::{Client, JSON};
use crate::failure::Failure;
use crate::{output, resource};

/// Close nodes to new pods; those that run there stay
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  coracle cordon m2\n  coracle cordon m2 m3\n\n`coracle drain` moves the pods away too; `coracle uncordon` opens the node again.\n\nExit codes: 0 closed (also when it was already), 1 failed, 2 wrong usage, 3 no such node"
)]
pub struct Cordon {
    /// Names of nodes
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    /// `json`: a list of what was done
    #[arg(short, long, value_enum, default_value = "table")]
    output: output::Format,
}

/// Open nodes to new pods again
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  coracle uncordon m2\n\nPods that moved away do not come back by themselves: new ones are placed here again.\n\nExit codes: 0 open (also when it was already), 1 failed, 2 wrong usage, 3 no such node"
)]
pub struct Uncordon {
    /// Names of nodes
    #[arg(required = true, value_name = "NODE")]
    nodes: Vec<String>,
    /// `json`: a list of what was done
    #[arg(short, long, value_enum, default_value = "table")]
    output: output::Format,
}

/// Runs `cordon`.
///
/// # Errors
/// As documented in its help.
pub async fn cordon(client: &Client, verb: &Cordon) -> Result<(), Failure> {
    all(client, &verb.nodes, true, verb.output).await
}

/// Runs `uncordon`.
///
/// # Errors
/// As documented in its help.
pub async fn uncordon(client: &Client, verb: &Uncordon) -> Result<(), Failure> {
    all(client, &verb.nodes, false, verb.output).await
}

/// Every node gets its turn; the last failure is the verb's.
async fn all(client: &Client, nodes: &[String], closed: bool, format: output::Format) -> Result<(), Failure> {
    let mut worst = None;
    let mut done = Vec::new();
    for node in nodes {
        match set(client, node, closed).await {
            Ok(changed) => {
                if format != output::Format::Json {
                    output::line(&said(node, closed, changed));
                }
                done.push(json!({"node": node, "unschedulable": closed, "changed": changed}));
            }
            Err(failure) => {
                output::error(&failure.message);
                worst = Some(Failure { message: String::new(), ..failure });
            }
        }
    }
    if format == output::Format::Json {
        output::line(&output::json(&Value::Array(done)));
    }
    worst.map_or(Ok(()), Err)
}

/// What became of a node, in kubectl's words.
pub fn said(node: &str, closed: bool, changed: bool) -> String {
    let already = if changed { "" } else { "already " };
    let state = if closed { "cordoned" } else { "uncordoned" };
    format!("node/{node} {already}{state}")
}

/// The change that closes a node or opens it.
#[must_use]
pub fn patch(closed: bool) -> Value {
    json!({"spec": {"unschedulable": if closed { Value::Bool(true) } else { Value::Null }}})
}

/// The path of a node.
#[must_use]
pub fn path(node: &str) -> String {
    format!("/api/v1/nodes/{}", resource::encode(node))
}

/// Closes a node or opens it; whether that was a change.
///
/// # Errors
/// There is none of this name (code 3), or the API refuses.
pub async fn set(client: &Client, node: &str, closed: bool) -> Result<bool, Failure> {
    let there = find(client, node).await?;
    if (there["spec"]["unschedulable"] == true) == closed {
        return Ok(false);
    }
    client.json(Method::PATCH, &path(node), JSON, Some(("application/merge-patch+json", &patch(closed)))).await?;
    Ok(true)
}

/// A node's object.
///
/// # Errors
/// There is none of this name (code 3, with the nearest name that there is), or the API refuses.
pub async fn find(client: &Client, node: &str) -> Result<Value, Failure> {
    match client.get(&path(node)).await {
        Ok(found) => Ok(found),
        Err(error) if error.is_not_found() => {
            let nodes = client.get("/api/v1/nodes").await?;
            let names: Vec<&str> = list(&nodes["items"]).iter().map(|node| text(&node["metadata"]["name"])).collect();
            let hint = match coracle_base::nearest(node, names.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("there are {}", names.join(", ")),
            };
            Err(Failure { code: 3, message: format!("there is no node `{node}`\nhint: {hint}") })
        }
        Err(error) => Err(error.into()),
    }
}
