//! What several planners ask of a pod.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use coracle_base::Millis;
use coracle_manifests::view::{condition, is_deleting, is_finished, is_true, text};
use coracle_store::{Mark, Object, View};
use serde_json::{Value, json};

use crate::Ids;
use crate::objects::{controller_reference, millis};

/// A pod that has ended is replaced no earlier than so long after it was made: one that ends at once would be made anew for ever.
const FAILED_REST_MS: Millis = 5_000;

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

/// Whether a pod that has ended has lived long enough to be replaced.
pub(crate) fn is_rested(pod: &Value, now: Millis) -> bool {
    millis(&pod["metadata"]["creationTimestamp"]).is_none_or(|at| at > now || at + FAILED_REST_MS <= now)
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

/// A number, or a share of the replicas.
pub(crate) fn share(value: &Value, replicas: i64, up: bool) -> i64 {
    if let Some(number) = value.as_i64() {
        return number.max(0);
    }
    let percent: i64 = text(value).strip_suffix('%').and_then(|number| number.parse().ok()).unwrap_or(0);
    let hundredths = percent.clamp(0, 1_000_000) * replicas;
    if up { (hundredths + 99) / 100 } else { hundredths / 100 }
}

/// Active pods that nobody controls, by namespace.
pub(crate) type Orphans<'a> = HashMap<Arc<str>, Vec<&'a Arc<Object>>>;

/// Looks them up once for all owners.
pub(crate) fn orphans(view: &View) -> Orphans<'_> {
    let mut orphans = Orphans::new();
    for pod in view.marked(Mark::Loose) {
        orphans.entry(pod.key.namespace.clone()).or_default().push(pod);
    }
    orphans
}

/// Takes those of a namespace that are `wanted` out of the orphans.
pub(crate) fn take<'a>(
    orphans: &mut Orphans<'a>,
    namespace: &str,
    wanted: impl Fn(&Object) -> bool,
) -> Vec<&'a Arc<Object>> {
    let Some(pods) = orphans.get_mut(namespace) else { return Vec::new() };
    let (taken, left) = pods.drain(..).partition(|pod| wanted(pod));
    *pods = left;
    taken
}

/// A pod of a template, without a name; its owner may change it before it is finished by `finish`.
pub(crate) fn of_template(owner: &Object, template: &Value) -> Value {
    let mut metadata = json!({"ownerReferences": [controller_reference(owner)]});
    for field in ["labels", "annotations", "finalizers"] {
        if let Some(value) = template["metadata"].get(field).filter(|value| !value.is_null()) {
            metadata[field] = value.clone();
        }
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": template["spec"],
        "status": {"phase": "Pending"},
    })
}

/// A pod has defaults that a template has not: requests from limits, service links.
pub(crate) fn finish(mut pod: Value) -> Value {
    if let Some(kind) = coracle_manifests::kinds::by_word("pods") {
        coracle_manifests::default::apply(kind, &mut pod);
    }
    pod
}

/// What the generated names of an owner's pods begin with: upstream's leave room for the five random characters in 63.
pub(crate) fn base_name(owner: &Object) -> String {
    let mut base: String = owner.key.name.chars().take(57).collect();
    base.push('-');
    base
}

/// A generated name that no pod of the namespace has, and none in `taken`, to which it is added.
pub(crate) fn new_name(view: &View, owner: &Object, taken: &mut HashSet<String>, ids: &mut dyn Ids) -> String {
    let base = base_name(owner);
    loop {
        let name = format!("{base}{}", ids.suffix());
        if view.find("pods", &owner.key.namespace, &name).is_none() && taken.insert(name.clone()) {
            return name;
        }
    }
}
