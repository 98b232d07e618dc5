//! `pods/log`: which container is meant, and its text as a stream.

use std::sync::Arc;

use bytes::Bytes;
use coracle_manifests::view::{list, text};
use http::StatusCode;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::answer;
use crate::facility::LogQuery;
use crate::list::key_of;
use crate::path::Place;
use crate::serve::Door;
use crate::status::Failure;
use crate::verbs::{Answer, Asked};

pub(crate) async fn logs(door: &Arc<Door>, place: &Place, asked: &Asked) -> Answer {
    let key = key_of(place);
    let view = door.cluster.view();
    let object = view.get(&key).ok_or_else(|| Failure::not_found(place.kind, &key.name))?;
    let pod = object.tree();
    let query = &asked.query;
    let number = |name: &str| -> Result<Option<u64>, Failure> {
        query
            .get(name)
            .map(|text| text.parse().map_err(|_| Failure::bad_request(format!("`{name}` is not a number"))))
            .transpose()
    };
    let since = match (number("sinceSeconds")?, query.get("sinceTime")) {
        (Some(seconds), _) => Some(door.now_ms().saturating_sub(seconds.saturating_mul(1000))),
        (None, Some(time)) => Some(
            coracle_manifests::time::parse(time)
                .ok_or_else(|| Failure::bad_request("`sinceTime` is not an RFC 3339 time"))?,
        ),
        (None, None) => None,
    };
    let wanted = LogQuery {
        node: text(&pod["spec"]["nodeName"]).to_owned(),
        namespace: key.namespace.to_string(),
        pod: key.name.to_string(),
        uid: object.uid.to_string(),
        container: container(pod, &key.name, query.get("container"))?,
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        tail_lines: number("tailLines")?,
        since_ms: since,
        limit_bytes: number("limitBytes")?,
    };
    if wanted.node.is_empty() {
        return Err(Failure::bad_request(format!("pod {} does not have a host assigned", key.name)));
    }
    waiting(pod, &wanted)?;
    let mut chunks = door.cluster.logs(wanted).await.map_err(|words| {
        Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", format!("the log cannot be read: {words}"))
    })?;
    // The first chunk decides between an answer and an error.
    let first = match chunks.recv().await {
        Some(Err(words)) => return Err(Failure::bad_request(words)),
        Some(Ok(bytes)) => bytes,
        None => Bytes::new(),
    };
    let (sink, out) = mpsc::channel(16);
    let drain = door.drain.clone();
    tokio::spawn(async move {
        let copy = async {
            let mut next = Some(first);
            while let Some(bytes) = next {
                if sink.send(bytes).await.is_err() {
                    return;
                }
                next = tokio::select! {
                    // Cancel safe: a chunk is taken whole or not at all.
                    chunk = chunks.recv() => match chunk {
                        Some(Ok(bytes)) => Some(bytes),
                        Some(Err(words)) => Some(format!("{words}\n").into()),
                        None => None,
                    },
                    () = sink.closed() => None,
                };
            }
        };
        tokio::select! {
            () = copy => {}
            () = drain.cancelled() => {}
        }
    });
    Ok(answer::stream("text/plain", out))
}

/// The container that is meant: the one that is named, the annotated default, or the only one.
fn container(pod: &Value, name: &str, asked: Option<&str>) -> Result<String, Failure> {
    let names: Vec<&str> = ["initContainers", "containers"]
        .iter()
        .flat_map(|part| list(&pod["spec"][*part]))
        .map(|container| text(&container["name"]))
        .collect();
    if let Some(asked) = asked {
        return if names.contains(&asked) {
            Ok(asked.to_owned())
        } else {
            Err(Failure::bad_request(format!(
                "container {asked} is not valid for pod {name}: there are {}",
                names.join(", ")
            )))
        };
    }
    let default = text(&pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"]);
    if names.contains(&default) {
        return Ok(default.to_owned());
    }
    match list(&pod["spec"]["containers"]) {
        [only] => Ok(text(&only["name"]).to_owned()),
        _ => Err(Failure::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            names.join(" ")
        ))),
    }
}

/// A container that has not run yet has no log to show.
fn waiting(pod: &Value, wanted: &LogQuery) -> Result<(), Failure> {
    let statuses = ["containerStatuses", "initContainerStatuses"];
    let status = statuses
        .iter()
        .flat_map(|part| list(&pod["status"][*part]))
        .find(|status| status["name"] == wanted.container.as_str());
    let refuse = |words: String| Err(Failure::bad_request(words));
    let Some(status) = status else {
        return refuse(format!(
            "container \"{}\" in pod \"{}\" is waiting to start: ContainerCreating",
            wanted.container, wanted.pod
        ));
    };
    let has_last = status["lastState"]["terminated"].is_object();
    if wanted.previous && !has_last && status["restartCount"].as_u64().unwrap_or(0) == 0 {
        return refuse(format!(
            "previous terminated container \"{}\" in pod \"{}\" not found",
            wanted.container, wanted.pod
        ));
    }
    let reason = text(&status["state"]["waiting"]["reason"]);
    if !reason.is_empty() && !has_last && !wanted.previous {
        return refuse(format!(
            "container \"{}\" in pod \"{}\" is waiting to start: {reason}",
            wanted.container, wanted.pod
        ));
    }
    Ok(())
}
