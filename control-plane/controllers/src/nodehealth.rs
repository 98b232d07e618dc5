//! Ready or not: what the beats of the agents say about their nodes, as condition and taint, and when pods leave a node
//! that is gone (upstream: `pkg/controller/nodelifecycle` and `tainteviction`).
//!
//! The taint is put on when a node falls silent. Pods that do not tolerate it leave a little later, and only when there is
//! somewhere to go: with no other node ready nothing is gained by ending them. When two or more nodes and more than 55 % of
//! all fall silent at once it is more likely that this server is cut off than that they died: then nothing is evicted. For
//! as long as nothing is evicted no node has the `NoExecute` taint: whoever is still silent when the first is back gets its
//! whole time from then on.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_base::Millis;
use coracle_manifests::time::rfc3339;
use coracle_manifests::view::{condition, is_deleting, is_finished, is_true, list, text};
use coracle_store::{Expect, Object, Op, Transaction, View};
use serde_json::{Value, json};

use crate::objects::{millis, remove, update};

/// How long a silent node keeps its pods: an agent that is only restarted is back by then.
pub const EVICT_AFTER_MS: Millis = 3_000;

/// How long a lease for fenced pods lasts, from the moment its node sent the beat that it answers.
pub const LEASE_MS: Millis = 5_000;

/// What is waited beyond the lease before a fenced pod counts as ended: clocks that run apart by up to a tenth, and a second to kill
/// it. The simulator's nodes use all of it (`cluster-tests/sim`).
pub const FENCE_MARGIN_MS: Millis = 2_000;

pub use coracle_store::FENCED;

/// Whether a pod runs only while its node holds a lease.
#[must_use]
pub fn is_fenced(pod: &Value) -> bool {
    pod["metadata"]["annotations"][FENCED] == "true"
}

const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const SILENT: &str = "NodeStatusUnknown";

/// How a node's last beat looks to the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Since the last beat, or since this server began to lead when there was none.
    pub age_ms: Millis,
    /// Since fenced pods of the node were last granted a lease, or since this server began to lead when it granted none. None is
    /// granted to a node that this leader holds for silent.
    pub granted_ms: Millis,
}

/// The nodes that are silent for so long that they count as dead. No lease is granted to them from now on.
#[must_use]
pub fn silent(beats: &BTreeMap<String, Beat>, dead_after_ms: Millis) -> Vec<String> {
    beats.iter().filter(|(_, beat)| beat.age_ms > dead_after_ms).map(|(node, _)| node.clone()).collect()
}

/// What should change now. A node that `beats` does not name is left as it is. `dead_after_ms` is how long a node may be
/// silent.
#[must_use]
pub fn plan(view: &View, now: Millis, beats: &BTreeMap<String, Beat>, dead_after_ms: Millis) -> Vec<Transaction> {
    let mut nodes: Vec<(&Arc<Object>, Cow<'_, Value>)> = view
        .list("nodes", None)
        .map(|node| (node, judged(node, beats.get(&*node.key.name).map(|beat| beat.age_ms), dead_after_ms, now)))
        .collect();
    let silent = nodes.iter().filter(|(_, wanted)| is_silent(wanted)).count();
    let nowhere_to_go = !nodes.iter().any(|(_, wanted)| is_true(wanted, "Ready"));
    let cut_off = silent >= 2 && silent * 100 > nodes.len() * 55;
    let evicting = !nowhere_to_go && !cut_off;
    let mut transactions = Vec::new();
    for (node, wanted) in &mut nodes {
        taint_as_ready(wanted, evicting, now);
        if let Cow::Owned(wanted) = wanted
            && *wanted != **node.tree()
        {
            transactions.push(update(node, wanted.clone()).into());
        }
    }
    if evicting {
        for (node, wanted) in &nodes {
            transactions.extend(evict(view, &node.key.name, wanted, now));
            if let Some(beat) = beats.get(&*node.key.name).filter(|_| is_silent(wanted)) {
                transactions.extend(fenced_out(view, &node.key.name, beat));
            }
        }
    }
    transactions
}

fn is_silent(node: &Value) -> bool {
    condition(node, "Ready").is_some_and(|ready| ready["reason"] == SILENT)
}

/// The node with the conditions its beats show; borrowed when all is well, as it is with nearly all of thousands each second.
fn judged(node: &Object, age: Option<Millis>, dead_after_ms: Millis, now: Millis) -> Cow<'_, Value> {
    let tree = &**node.tree();
    if !age.is_some_and(|age| age > dead_after_ms || is_silent(tree)) {
        return Cow::Borrowed(tree);
    }
    let mut value = tree.clone();
    match age {
        Some(age) if age > dead_after_ms => {
            for kind in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
                if kind == "Ready" || condition(&value, kind).is_some() {
                    let message = "The agent of the node has stopped sending beats.";
                    set_condition(&mut value, kind, "Unknown", SILENT, message, now);
                }
            }
        }
        // The agent may not know that it was given up: it says what it is only when that changes.
        Some(_) if is_silent(&value) => {
            let message = "The agent of the node sends beats again.";
            set_condition(&mut value, "Ready", "True", "AgentReady", message, now);
            for kind in ["MemoryPressure", "DiskPressure", "PIDPressure"] {
                if condition(&value, kind).is_some_and(|held| held["reason"] == SILENT) {
                    set_condition(&mut value, kind, "False", "AgentHasSufficient", message, now);
                }
            }
        }
        _ => {}
    }
    Cow::Owned(value)
}

fn taint_as_ready(node: &mut Cow<'_, Value>, evicting: bool, now: Millis) {
    let ready = condition(node, "Ready").map(|ready| text(&ready["status"]).to_owned());
    for (key, status) in [(UNREACHABLE, "Unknown"), (NOT_READY, "False")] {
        let wanted = ready.as_deref() == Some(status);
        taint(node, key, "NoSchedule", wanted, now);
        taint(node, key, "NoExecute", wanted && evicting, now);
    }
}

fn set_condition(node: &mut Value, kind: &str, status: &str, reason: &str, message: &str, now: Millis) {
    let mut conditions = list(&node["status"]["conditions"]).to_vec();
    let new = crate::objects::Condition { kind, status, reason, message };
    crate::objects::set_condition(&mut conditions, &new, "lastHeartbeatTime", now);
    if !node["status"].is_object() {
        node["status"] = json!({});
    }
    node["status"]["conditions"] = Value::Array(conditions);
}

/// Puts a taint on or takes it off. One from the future is put on anew: a clock was set back, in the worst case by decades, and pods
/// would not leave before it is there again.
fn taint(node: &mut Cow<'_, Value>, key: &str, effect: &str, wanted: bool, now: Millis) {
    let is_it = |taint: &Value| taint["key"] == key && taint["effect"] == effect;
    let is_past = |taint: &Value| millis(&taint["timeAdded"]).is_none_or(|at| at <= now);
    let mut held = list(&node["spec"]["taints"]).iter().filter(|taint| is_it(taint)).peekable();
    if held.peek().is_some() == wanted && held.all(is_past) {
        return;
    }
    let node = node.to_mut();
    let mut taints = list(&node["spec"]["taints"]).to_vec();
    taints.retain(|taint| !is_it(taint));
    if wanted {
        taints.push(json!({"key": key, "effect": effect, "timeAdded": rfc3339(now)}));
    }
    if !node["spec"].is_object() {
        node["spec"] = json!({});
    }
    if taints.is_empty() {
        drop(node["spec"].as_object_mut().and_then(|spec| spec.remove("taints")));
    } else {
        node["spec"]["taints"] = Value::Array(taints);
    }
}

/// Ends the pods that do not put up with the node's `NoExecute` taints any longer.
fn evict(view: &View, name: &str, node: &Value, now: Millis) -> Vec<Transaction> {
    let taints: Vec<&Value> =
        list(&node["spec"]["taints"]).iter().filter(|taint| taint["effect"] == "NoExecute").collect();
    if taints.is_empty() {
        return Vec::new();
    }
    view.pods_on(name)
        .filter(|pod| !is_deleting(pod.tree()) && !is_finished(pod.tree()))
        .filter(|pod| !is_fenced(pod.tree()))
        .filter(|pod| taints.iter().any(|taint| leaves(pod.tree(), taint, now)))
        .filter_map(|pod| remove(pod, now))
        .map(Transaction::from)
        .collect()
}

/// Fenced pods of a silent node whose lease has certainly run out: they have ended, whatever the node does, so their objects go without
/// its word, and others may take their place.
fn fenced_out(view: &View, name: &str, beat: &Beat) -> Vec<Transaction> {
    if beat.age_ms <= EVICT_AFTER_MS || beat.granted_ms <= LEASE_MS + FENCE_MARGIN_MS {
        return Vec::new();
    }
    let gone = |pod: &Arc<Object>| {
        let expect = Expect { uid: Some(pod.uid.clone()), revision: Some(pod.revision) };
        Transaction::from(Op::Delete { key: pod.key.clone(), expect })
    };
    view.pods_on(name).filter(|pod| is_fenced(pod.tree()) && !is_finished(pod.tree())).map(gone).collect()
}

fn leaves(pod: &Value, taint: &Value, now: Millis) -> bool {
    let automatic = [UNREACHABLE, NOT_READY].contains(&text(&taint["key"]));
    let since = millis(&taint["timeAdded"]).unwrap_or(0);
    let tolerations: Vec<&Value> =
        list(&pod["spec"]["tolerations"]).iter().filter(|toleration| tolerates(toleration, taint)).collect();
    if tolerations.is_empty() {
        return !automatic || since + EVICT_AFTER_MS <= now;
    }
    // Of several the shortest holds; one without a time holds for ever.
    let shortest = tolerations.iter().filter_map(|toleration| toleration["tolerationSeconds"].as_i64()).min();
    shortest.is_some_and(|seconds| since + u64::try_from(seconds).unwrap_or(0) * 1000 <= now)
}

fn tolerates(toleration: &Value, taint: &Value) -> bool {
    let effect = text(&toleration["effect"]);
    if !effect.is_empty() && effect != text(&taint["effect"]) {
        return false;
    }
    let (key, wanted) = (text(&toleration["key"]), text(&taint["key"]));
    if toleration["operator"] == "Exists" {
        return key.is_empty() || key == wanted;
    }
    key == wanted && text(&toleration["value"]) == text(&taint["value"])
}
