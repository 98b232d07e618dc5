//! What several planners ask of a pod.

use std::collections::HashSet;
use std::sync::Arc;

use coracle_base::Millis;
use coracle_manifests::view::{condition, is_deleting, is_finished, is_true, text};
use coracle_store::{Object, View};
use serde_json::Value;

use crate::objects::millis;

/// Nodes whose agents are not heard of: their pods count as not ready, whatever they last said.
pub(crate) fn silent_nodes(view: &View) -> HashSet<Arc<str>> {
    view.list("nodes", None)
        .filter(|node| condition(node.tree(), "Ready").is_some_and(|ready| ready["status"] == "Unknown"))
        .map(|node| node.key.name.clone())
        .collect()
}

/// Whether a pod counts as a replica: it has not ended and is not ending.
pub(crate) fn is_active(pod: &Value) -> bool {
    !is_finished(pod) && !is_deleting(pod)
}

/// Whether a pod says it is ready and its node is heard of.
pub(crate) fn is_ready(pod: &Value, silent: &HashSet<Arc<str>>) -> bool {
    is_true(pod, "Ready") && !silent.contains(text(&pod["spec"]["nodeName"]))
}

/// Whether a pod has been ready for so long.
pub(crate) fn is_available(pod: &Value, min_ready_s: u64, now: Millis, silent: &HashSet<Arc<str>>) -> bool {
    is_ready(pod, silent) && (min_ready_s == 0 || ready_since(pod).is_some_and(|at| at + min_ready_s * 1000 <= now))
}

/// Since when a pod is ready.
pub(crate) fn ready_since(pod: &Value) -> Option<Millis> {
    let ready = condition(pod, "Ready").filter(|ready| ready["status"] == "True")?;
    millis(&ready["lastTransitionTime"])
}

/// Replicas as their controllers count them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub replicas: i64,
    pub ready: i64,
    pub available: i64,
    pub fully_labelled: i64,
}

/// Counts active pods.
pub(crate) fn count<'a>(
    pods: impl IntoIterator<Item = &'a Arc<Object>>,
    set: &Value,
    now: Millis,
    silent: &HashSet<Arc<str>>,
) -> Counts {
    let min_ready_s = set["spec"]["minReadySeconds"].as_u64().unwrap_or(0);
    let wanted = set["spec"]["template"]["metadata"]["labels"].as_object();
    let mut counts = Counts::default();
    for pod in pods {
        let tree = pod.tree();
        let labels = &tree["metadata"]["labels"];
        counts.replicas += 1;
        counts.ready += i64::from(is_ready(tree, silent));
        counts.available += i64::from(is_available(tree, min_ready_s, now, silent));
        let full = wanted.is_none_or(|wanted| wanted.iter().all(|(key, value)| labels.get(key) == Some(value)));
        counts.fully_labelled += i64::from(full);
    }
    counts
}
