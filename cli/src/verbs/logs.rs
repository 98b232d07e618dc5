//! `coracle logs`: what containers wrote; of a pod, or of all pods of a workload or Service at once.

use clap::Args;
use coracle_manifests::kinds;
use coracle_manifests::selector::Labels;
use http::Method;
use http_body_util::BodyExt as _;

use super::get::Scope;
use crate::client::Client;
use crate::failure::Failure;
use crate::{output, resource};

/// Show what containers wrote
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  coracle logs hello-5d9c-x7k2p\n  coracle logs -f deploy/hello\n  coracle logs pod/db --previous --tail 50\n\nWith more than one pod, each line starts with its pod's name.\n\nExit codes: 0 shown, 1 failed, 2 wrong usage, 3 not found"
)]
pub struct Logs {
    /// POD, or TYPE/NAME of a pod, workload (deployment, statefulset, daemonset ...) or service
    target: String,
    #[command(flatten)]
    scope: Scope,
    /// Which container, when the pod has several
    #[arg(short, long)]
    container: Option<String>,
    /// Go on as more is written
    #[arg(short, long)]
    follow: bool,
    /// The container's run before this one
    #[arg(short, long)]
    previous: bool,
    /// Only the last lines
    #[arg(long)]
    tail: Option<u64>,
    /// Only what is younger than this, in seconds
    #[arg(long, value_name = "SECONDS")]
    since: Option<u64>,
    /// Start each line with its time
    #[arg(long)]
    timestamps: bool,
}

/// Runs the verb.
///
/// # Errors
/// As documented in its help.
pub async fn run(client: &Client, logs: &Logs) -> Result<(), Failure> {
    let pods = pods(client, logs).await?;
    if let [pod] = pods.as_slice() {
        return follow(client, logs, pod, "").await;
    }
    let width = pods.iter().map(String::len).max().unwrap_or(0);
    let streams = pods.iter().map(|pod| async move { follow(client, logs, pod, &format!("{pod:width$} | ")).await });
    for outcome in futures_util::future::join_all(streams).await {
        outcome?;
    }
    Ok(())
}

/// The pods that are meant.
async fn pods(client: &Client, logs: &Logs) -> Result<Vec<String>, Failure> {
    let Some((word, name)) = logs.target.split_once('/') else { return Ok(vec![logs.target.clone()]) };
    let words = [format!("{word}/{name}")];
    let kind = resource::targets(&words, "read")?.first().map(|target| target.kind);
    let Some(kind) = kind.filter(|kind| kind.kind != "Pod") else { return Ok(vec![name.to_owned()]) };
    let namespace = Some(logs.scope.namespace.as_str());
    let object = client.get(&resource::path(kind, namespace, Some(name))).await?;
    let labels = match kind.kind {
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "ReplicationController" => {
            Labels::of_pods(&object).map_err(|error| Failure::failed(error.to_string()))?
        }
        "Service" if object["spec"]["selector"].is_object() => Labels::from_map(&object["spec"]["selector"]),
        _ => return Err(Failure::usage(format!("a {} has no pods whose logs could be read", kind.kind))),
    };
    let Some(pod_kind) = kinds::by_word("pods") else { return Ok(Vec::new()) };
    let path = format!(
        "{}?labelSelector={}",
        resource::path(pod_kind, namespace, None),
        resource::encode(&labels.to_string())
    );
    let answer = client.get(&path).await?;
    let names: Vec<String> = answer["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|pod| pod["metadata"]["name"].as_str().map(ToOwned::to_owned))
        .collect();
    if names.is_empty() {
        return Err(Failure { code: 3, message: format!("{} has no pods", resource::shown(kind, name)) });
    }
    Ok(names)
}

async fn follow(client: &Client, logs: &Logs, pod: &str, prefix: &str) -> Result<(), Failure> {
    let Some(kind) = kinds::by_word("pods") else { return Ok(()) };
    let mut query = Vec::new();
    if let Some(container) = &logs.container {
        query.push(format!("container={}", resource::encode(container)));
    }
    for (set, name) in [(logs.follow, "follow"), (logs.previous, "previous"), (logs.timestamps, "timestamps")] {
        if set {
            query.push(format!("{name}=true"));
        }
    }
    query.extend(logs.tail.map(|lines| format!("tailLines={lines}")));
    query.extend(logs.since.map(|seconds| format!("sinceSeconds={seconds}")));
    let path = format!("{}/log?{}", resource::path(kind, Some(&logs.scope.namespace), Some(pod)), query.join("&"));
    let mut body = client.stream(Method::GET, &path, "*/*", None).await?.into_body();
    let mut rest: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::failed(format!("the log of {pod} broke off: {error}")))?;
        let Some(data) = frame.data_ref() else { continue };
        if prefix.is_empty() {
            output::raw(data);
            continue;
        }
        rest.extend_from_slice(data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            output::raw(&[prefix.as_bytes(), &line].concat());
        }
    }
    if !rest.is_empty() {
        output::raw(&[prefix.as_bytes(), &rest, b"\n"].concat());
    }
    Ok(())
}
