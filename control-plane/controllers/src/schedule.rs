//! Pods without a node meet the scheduler: the snapshot becomes its input, its plan becomes bindings, conditions and events.
//!
//! Cost: one walk over the pods that wait; only when there is one also one over the nodes and their pods.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_base::Millis;
use coracle_manifests::quantity::Quantity;
use coracle_manifests::service::protocol;
use coracle_manifests::time::rfc3339;
use coracle_manifests::view::{condition, controller_uid, is_deleting, is_finished, is_true, list, text};
use coracle_scheduler::{
    Affinity, Amounts, Effect, Explain, HostPort, NodeState, NodeTest, NodeWhat, PodRequest, Taint, Term, Toleration,
    TolerationOperator,
};
use coracle_store::{Mark, Object, Op, Transaction, Usage, View};
use serde_json::{Value, json};

use crate::Ids;
use crate::objects::{Note, event, millis, status};

/// Amounts in a hint change with every pod that comes or goes: a waiting pod's words are renewed no more often than this,
/// unless the reasons themselves change.
const RENEW_MS: Millis = 30_000;
/// Who speaks in conditions and events.
const COMPONENT: &str = "default-scheduler";

/// What should change now.
#[must_use]
pub fn plan(view: &View, now: Millis, ids: &mut dyn Ids) -> Vec<Transaction> {
    let mut waiting: Vec<&Arc<Object>> = view.marked(Mark::Waiting).collect();
    if waiting.is_empty() {
        return Vec::new();
    }
    // First come, first served; the key makes the order total.
    waiting.sort_by_cached_key(|pod| (millis(&pod.tree()["metadata"]["creationTimestamp"]), pod.key.clone()));
    let nodes: Vec<NodeState> = view.list("nodes", None).map(|node| node_state(view, node)).collect();
    let requests: Vec<PodRequest> = waiting.iter().map(|pod| request(pod)).collect();
    let plan = coracle_scheduler::plan(&nodes, &requests);
    let mut transactions = Vec::with_capacity(waiting.len());
    for binding in plan.bindings {
        transactions.push(bind(waiting[binding.pod], &nodes[binding.node].name, now, ids));
    }
    for pod in plan.unschedulable {
        transactions.extend(wait(waiting[pod.pod], &pod.explain, now, ids));
    }
    transactions
}

fn bind(pod: &Object, node: &str, now: Millis, ids: &mut dyn Ids) -> Transaction {
    let op = Op::Bind { key: pod.key.clone(), uid: pod.uid.clone(), node: node.into(), at: rfc3339(now).into() };
    let message = format!("Successfully assigned {}/{} to {node}", pod.key.namespace, pod.key.name);
    let note = Note { kind: "Normal", reason: "Scheduled", message, component: COMPONENT };
    Transaction { ops: vec![op, event(pod, note, now, ids)] }
}

/// Says why a pod waits, when that is news.
fn wait(pod: &Object, explain: &Explain, now: Millis, ids: &mut dyn Ids) -> Option<Transaction> {
    let tree = pod.tree();
    let (message, summary) = (explain.to_string(), explain.summary());
    let held = condition(tree, "PodScheduled").filter(|held| held["status"] == "False");
    let said = held.map(|held| text(&held["message"])).unwrap_or_default();
    let fresh = !said.starts_with(&summary);
    if !fresh {
        let since = held.and_then(|held| millis(&held["lastProbeTime"])).unwrap_or(0);
        if said == message || since + RENEW_MS > now {
            return None;
        }
    }
    let mut new = tree["status"].clone();
    let mut conditions = list(&new["conditions"]).to_vec();
    conditions.retain(|condition| condition["type"] != "PodScheduled");
    conditions.push(json!({
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": message,
        "lastProbeTime": rfc3339(now),
        "lastTransitionTime": held.map_or_else(|| json!(rfc3339(now)), |held| held["lastTransitionTime"].clone()),
    }));
    new["conditions"] = Value::Array(conditions);
    new["phase"] = json!("Pending");
    let mut ops: Vec<Op> = status(pod, new).into_iter().collect();
    if fresh {
        let note = Note { kind: "Warning", reason: "FailedScheduling", message, component: COMPONENT };
        ops.push(event(pod, note, now, ids));
    }
    Some(Transaction { ops })
}

/// A node as the scheduler sees it.
fn node_state(view: &View, node: &Object) -> NodeState {
    let tree = node.tree();
    let room = &tree["status"]["allocatable"];
    let usage = view.usage_on(&node.key.name);
    let mut owners: BTreeMap<Arc<str>, u32> = BTreeMap::new();
    let (mut ephemeral, mut ports) = (0_u64, Vec::new());
    for pod in view.pods_on(&node.key.name).filter(|pod| !is_finished(pod.tree())) {
        ports.extend(host_ports(&pod.tree()["spec"]));
        ephemeral = ephemeral.saturating_add(amount(ephemeral_storage(&pod.tree()["spec"])));
        if let Some(owner) = controller_uid(pod.tree()).filter(|_| !is_deleting(pod.tree())) {
            *owners.entry(owner.into()).or_default() += 1;
        }
    }
    NodeState {
        name: node.key.name.to_string(),
        labels: strings(&tree["metadata"]["labels"]),
        taints: list(&tree["spec"]["taints"]).iter().filter_map(taint).collect(),
        unschedulable: tree["spec"]["unschedulable"] == true,
        ready: is_true(tree, "Ready") && !is_deleting(tree),
        allocatable: Amounts {
            cpu_milli: amount(Quantity::of_json(&room["cpu"]).milli()),
            memory_bytes: amount(Quantity::of_json(&room["memory"]).value()),
            // What a node does not report is no limit, as where the binding is checked.
            ephemeral_bytes: limit(&room["ephemeral-storage"]),
            pods: limit(&room["pods"]),
        },
        used: Amounts {
            cpu_milli: amount(usage.cpu_milli),
            memory_bytes: amount(usage.memory_bytes),
            ephemeral_bytes: ephemeral,
            pods: amount(usage.pods),
        },
        owners,
        host_ports: ports,
    }
}

/// Ports of the node that a pod has: those it names, and in the node's network all of its own.
fn host_ports(spec: &Value) -> Vec<HostPort> {
    let sidecars = list(&spec["initContainers"]).iter().filter(|init| init["restartPolicy"] == "Always");
    let ports = list(&spec["containers"]).iter().chain(sidecars).flat_map(|container| list(&container["ports"]));
    let in_host = spec["hostNetwork"] == true;
    let mut found: Vec<HostPort> = ports
        .filter_map(|port| {
            let number = if in_host { &port["containerPort"] } else { &port["hostPort"] };
            let address = text(&port["hostIP"]);
            Some(HostPort {
                address: Some(address).filter(|address| !matches!(*address, "" | "0.0.0.0")).map(Arc::from),
                protocol: protocol(port).into(),
                port: number.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0)?,
            })
        })
        .collect();
    found.sort_unstable();
    found
}

fn limit(value: &Value) -> u64 {
    if value.is_null() { u64::MAX } else { amount(Quantity::of_json(value).value()) }
}

fn amount(amount: i128) -> u64 {
    u64::try_from(amount.max(0)).unwrap_or(u64::MAX)
}

fn request(pod: &Object) -> PodRequest {
    let tree = pod.tree();
    let usage = Usage::of_pod(tree);
    PodRequest {
        amounts: Amounts {
            cpu_milli: amount(usage.cpu_milli),
            memory_bytes: amount(usage.memory_bytes),
            ephemeral_bytes: amount(ephemeral_storage(&tree["spec"])),
            pods: amount(usage.pods),
        },
        node_selector: strings(&tree["spec"]["nodeSelector"]),
        affinity: affinity(&tree["spec"]),
        tolerations: list(&tree["spec"]["tolerations"]).iter().map(toleration).collect(),
        host_ports: host_ports(&tree["spec"]),
        owner: controller_uid(tree).map(Arc::from),
    }
}

/// The disk a pod asks for, counted as the store counts cpu and memory.
fn ephemeral_storage(spec: &Value) -> i128 {
    let of = |container: &Value| {
        let resources = &container["resources"];
        let asked = &resources["requests"]["ephemeral-storage"];
        let asked = if asked.is_null() { &resources["limits"]["ephemeral-storage"] } else { asked };
        Quantity::of_json(asked).value().max(0)
    };
    let (mut running, mut sidecars, mut peak) = (list(&spec["containers"]).iter().map(of).sum::<i128>(), 0, 0);
    for init in list(&spec["initContainers"]) {
        if init["restartPolicy"] == "Always" {
            running += of(init);
            sidecars += of(init);
            peak = peak.max(sidecars);
        } else {
            peak = peak.max(sidecars + of(init));
        }
    }
    running.max(peak)
}

/// What a pod requires of its node's name and labels, beside `nodeSelector`.
pub(crate) fn affinity(spec: &Value) -> Option<Affinity> {
    let required = &spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let terms = required.as_object().map(|_| list(&required["nodeSelectorTerms"]))?;
    let test = |asked: &Value, of_label: bool| {
        let what = match text(&asked["operator"]) {
            "In" => NodeWhat::In,
            "NotIn" => NodeWhat::NotIn,
            "Exists" => NodeWhat::Exists,
            "DoesNotExist" => NodeWhat::DoesNotExist,
            "Gt" => NodeWhat::Gt,
            "Lt" => NodeWhat::Lt,
            // Whoever stored it could not be checked: it selects nothing.
            _ => return NodeTest { label: None, what: NodeWhat::In, values: Vec::new() },
        };
        let values = list(&asked["values"]).iter().map(|value| text(value).to_owned()).collect();
        NodeTest { label: of_label.then(|| text(&asked["key"]).to_owned()), what, values }
    };
    let term = |term: &Value| {
        let labels = list(&term["matchExpressions"]).iter().map(|asked| test(asked, true));
        Term(labels.chain(list(&term["matchFields"]).iter().map(|asked| test(asked, false))).collect())
    };
    Some(Affinity(terms.iter().map(term).collect()))
}

pub(crate) fn strings(map: &Value) -> BTreeMap<String, String> {
    map.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), text(value).to_owned())).collect()
}

fn effect(name: &Value) -> Option<Effect> {
    match text(name) {
        "NoSchedule" => Some(Effect::NoSchedule),
        "PreferNoSchedule" => Some(Effect::PreferNoSchedule),
        "NoExecute" => Some(Effect::NoExecute),
        _ => None,
    }
}

pub(crate) fn taint(taint: &Value) -> Option<Taint> {
    let (key, value) = (text(&taint["key"]).to_owned(), text(&taint["value"]).to_owned());
    Some(Taint { key, value, effect: effect(&taint["effect"])? })
}

pub(crate) fn toleration(toleration: &Value) -> Toleration {
    Toleration {
        key: text(&toleration["key"]).to_owned(),
        operator: if toleration["operator"] == "Exists" {
            TolerationOperator::Exists
        } else {
            TolerationOperator::Equal
        },
        value: text(&toleration["value"]).to_owned(),
        effect: effect(&toleration["effect"]),
    }
}
