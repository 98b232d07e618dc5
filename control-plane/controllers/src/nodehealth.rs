//! Ready or not: what the beats of the agents say about their nodes, as condition and taint, and when pods leave a node
//! that is gone (upstream: `pkg/controller/nodelifecycle` and `tainteviction`).
//!
//! The taint is put on when a node falls silent. Pods that do not tolerate it leave a little later, and only when there is
//! somewhere to go: with no other node ready nothing is gained by ending them. When two or more nodes and more than 55 % of
//! all fall silent at once it is more likely that this server is cut off than that they died: then nothing is evicted.

use std::collections::BTreeMap;

use coracle_base::Millis;
use coracle_manifests::time::rfc3339;
use coracle_manifests::view::{condition, is_deleting, is_finished, is_true, list, text};
use coracle_store::{Object, Transaction, View};
use serde_json::{Value, json};

use crate::objects::{millis, remove, update};

/// How long a silent node keeps its pods: an agent that is only restarted is back by then.
pub const EVICT_AFTER_MS: Millis = 3_000;

const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const SILENT: &str = "NodeStatusUnknown";

/// How a node's last beat looks to the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Since the last beat, or since this server began to lead when there was none.
    pub age_ms: Millis,
}

/// What should change now. A node that `beats` does not name is left as it is. `dead_after_ms` is how long a node may be
/// silent.
#[must_use]
pub fn plan(view: &View, now: Millis, beats: &BTreeMap<String, Beat>, dead_after_ms: Millis) -> Vec<Transaction> {
    let mut transactions = Vec::new();
    let (mut nodes, mut silent, mut ready) = (0_usize, 0_usize, 0_usize);
    for node in view.list("nodes", None) {
        let age = beats.get(&*node.key.name).map(|beat| beat.age_ms);
        let wanted = judged(node, age, dead_after_ms, now);
        nodes += 1;
        silent += usize::from(is_silent(&wanted));
        ready += usize::from(is_true(&wanted, "Ready"));
        if wanted != **node.tree() {
            transactions.push(update(node, wanted).into());
        }
    }
    let cut_off = silent >= 2 && silent * 100 > nodes * 55;
    if ready > 0 && !cut_off {
        for node in view.list("nodes", None) {
            transactions.extend(evict(view, node, now));
        }
    }
    transactions
}

fn is_silent(node: &Value) -> bool {
    condition(node, "Ready").is_some_and(|ready| ready["reason"] == SILENT)
}

/// The node as its beats show it.
fn judged(node: &Object, age: Option<Millis>, dead_after_ms: Millis, now: Millis) -> Value {
    let mut value = (**node.tree()).clone();
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
    let ready = condition(&value, "Ready").map(|ready| text(&ready["status"]).to_owned());
    taint(&mut value, UNREACHABLE, ready.as_deref() == Some("Unknown"), now);
    taint(&mut value, NOT_READY, ready.as_deref() == Some("False"), now);
    value
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

/// Puts a taint on (for new pods, and for those that are there) or takes it off.
fn taint(node: &mut Value, key: &str, wanted: bool, now: Millis) {
    let mut taints = list(&node["spec"]["taints"]).to_vec();
    let held = taints.iter().any(|taint| taint["key"] == key);
    if held == wanted {
        return;
    }
    if wanted {
        for effect in ["NoSchedule", "NoExecute"] {
            taints.push(json!({"key": key, "effect": effect, "timeAdded": rfc3339(now)}));
        }
    } else {
        taints.retain(|taint| taint["key"] != key);
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
fn evict(view: &View, node: &Object, now: Millis) -> Vec<Transaction> {
    let taints: Vec<&Value> =
        list(&node.tree()["spec"]["taints"]).iter().filter(|taint| taint["effect"] == "NoExecute").collect();
    if taints.is_empty() {
        return Vec::new();
    }
    view.pods_on(&node.key.name)
        .filter(|pod| !is_deleting(pod.tree()) && !is_finished(pod.tree()))
        .filter(|pod| taints.iter().any(|taint| leaves(pod.tree(), taint, now)))
        .filter_map(|pod| remove(pod, now))
        .map(Transaction::from)
        .collect()
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
