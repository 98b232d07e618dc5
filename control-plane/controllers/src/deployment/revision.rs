//! The ReplicaSet of the Deployment's template: found or made, with the revision numbers `kubectl rollout` works with.

use serde_json::{Value, json};

use super::sets::{Set, Sets};
use super::status;
use crate::Ids;
use crate::objects::controller_reference;
use crate::pods::Counts;

/// The annotations of a rollout, as kubectl reads them.
pub(super) mod annotations {
    use serde_json::{Value, json};

    pub const REVISION: &str = "deployment.kubernetes.io/revision";
    pub const HISTORY: &str = "deployment.kubernetes.io/revision-history";
    pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
    pub const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
    pub const HASH_LABEL: &str = "pod-template-hash";

    /// Which annotations of a Deployment its ReplicaSets do not take over.
    pub fn stays(name: &str) -> bool {
        const OWN: [&str; 6] = [
            REVISION,
            HISTORY,
            DESIRED,
            MAXIMUM,
            "kubectl.kubernetes.io/last-applied-configuration",
            "deprecated.deployment.rollback.to",
        ];
        OWN.contains(&name)
    }

    pub fn set(tree: &mut Value, name: &str, value: String) {
        if !tree["metadata"]["annotations"].is_object() {
            tree["metadata"]["annotations"] = json!({});
        }
        tree["metadata"]["annotations"][name] = json!(value);
    }

    /// Notes what the Deployment wanted: a later change of scale is told by it.
    pub fn remember_size(tree: &mut Value, desired: i64, maximum: i64) {
        set(tree, DESIRED, desired.to_string());
        set(tree, MAXIMUM, maximum.to_string());
    }
}

fn revision_of(set: &Set<'_>) -> u64 {
    set.annotation(annotations::REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Gives the current ReplicaSet its revision and annotations; makes it when `make` (upstream: `getNewReplicaSet`).
pub(super) fn sync(sets: &mut Sets<'_>, make: bool, ids: &mut dyn Ids) {
    let newest = sets.old().into_iter().map(|index| revision_of(&sets.all[index])).max().unwrap_or(0);
    let next = newest + 1;
    if let Some(index) = sets.current {
        refresh(sets, index, next);
        let revision = sets.all[index].annotation(annotations::REVISION).unwrap_or_default().to_owned();
        annotations::set(&mut sets.tree, annotations::REVISION, revision);
        let name = sets.all[index].name.clone();
        status::found(sets, &name);
    } else if make {
        let set = new_set(sets, next, ids);
        let name = set.name.clone();
        sets.all.push(set);
        sets.current = Some(sets.all.len() - 1);
        let size = new_size(sets);
        if size > 0 {
            sets.note("ScalingReplicaSet", format!("Scaled up replica set {name} from 0 to {size}"));
        }
        let maximum = sets.replicas + sets.surge();
        let desired = sets.replicas;
        if let Some(set) = sets.all.last_mut() {
            set.tree["spec"]["replicas"] = json!(size);
            annotations::remember_size(&mut set.tree, desired, maximum);
        }
        annotations::set(&mut sets.tree, annotations::REVISION, next.to_string());
        status::made(sets, &name);
    }
}

fn refresh(sets: &mut Sets<'_>, index: usize, next: u64) {
    let copied = own_annotations(&sets.tree);
    let min_ready = sets.tree["spec"].get("minReadySeconds").cloned();
    let set = &mut sets.all[index];
    for (name, value) in copied {
        annotations::set(&mut set.tree, &name, value);
    }
    match min_ready {
        Some(seconds) => set.tree["spec"]["minReadySeconds"] = seconds,
        None => drop(set.tree["spec"].as_object_mut().and_then(|spec| spec.remove("minReadySeconds"))),
    }
    let held = revision_of(set);
    if held < next {
        // An older template came back: its earlier number goes into its history.
        if held > 0 {
            let history = set.annotation(annotations::HISTORY).unwrap_or_default();
            let history = if history.is_empty() { held.to_string() } else { format!("{history},{held}") };
            annotations::set(&mut set.tree, annotations::HISTORY, history);
        }
        annotations::set(&mut set.tree, annotations::REVISION, next.to_string());
    }
}

fn own_annotations(deployment: &Value) -> Vec<(String, String)> {
    deployment["metadata"]["annotations"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| !annotations::stays(name))
        .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect()
}

/// How many replicas the current ReplicaSet may have now (upstream: `NewRSNewReplicas`).
pub(super) fn new_size(sets: &Sets<'_>) -> i64 {
    let size = sets.current().map_or(0, Set::size);
    if sets.recreate {
        return sets.replicas;
    }
    let room = sets.replicas + sets.surge() - sets.total();
    if room <= 0 { size } else { size + room.min(sets.replicas - size) }
}

fn new_set<'a>(sets: &mut Sets<'a>, revision: u64, _ids: &mut dyn Ids) -> Set<'a> {
    let template = sets.tree["spec"]["template"].clone();
    let (name, hash) = loop {
        let hash = crate::history::hash(&template, sets.collisions);
        let name = format!("{}-{hash}", sets.deployment.key.name);
        if sets.view.find(crate::objects::REPLICASETS, &sets.deployment.key.namespace, &name).is_none() {
            break (name, hash);
        }
        // Another template, or another owner, has the name.
        sets.collisions += 1;
    };
    let mut labelled = template;
    put(&mut labelled["metadata"]["labels"], annotations::HASH_LABEL, &hash);
    let mut selector = sets.tree["spec"]["selector"].clone();
    put(&mut selector["matchLabels"], annotations::HASH_LABEL, &hash);
    let mut tree = json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "name": name,
            "labels": labelled["metadata"]["labels"],
            "ownerReferences": [controller_reference(sets.deployment)],
        },
        "spec": {"replicas": 0, "selector": selector, "template": labelled},
        "status": {"replicas": 0},
    });
    if let Some(seconds) = sets.tree["spec"].get("minReadySeconds") {
        tree["spec"]["minReadySeconds"] = seconds.clone();
    }
    for (name, value) in own_annotations(&sets.tree) {
        annotations::set(&mut tree, &name, value);
    }
    annotations::set(&mut tree, annotations::REVISION, revision.to_string());
    Set { stored: None, name: name.into(), tree, pods: Vec::new(), counts: Counts::default(), gone: false }
}

fn put(map: &mut Value, name: &str, value: &str) {
    if !map.is_object() {
        *map = json!({});
    }
    map[name] = json!(value);
}
