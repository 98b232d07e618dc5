//! Which pods stand behind a Service: EndpointSlices driven by readiness (upstream: `pkg/controller/endpointslice`).
//!
//! A pod that is ending, not ready, or on a node that is not heard of is not `ready` at once. Pods that resolve a named
//! port differently stand in different slices. Slices change as little as possible: an endpoint stays where it is.
//!
//! Cost: one walk over the pods of each namespace with Services, times its Services.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use coracle_base::Millis;
use coracle_manifests::selector::Labels;
use coracle_manifests::service::has_cluster_ip;
use coracle_manifests::view::{is_deleting, is_finished, is_true, list, text};
use coracle_store::{Expect, Key, Object, Op, Transaction, View};
use serde_json::{Value, json};

use crate::Ids;
use crate::objects::{SLICES, controller_reference, create, update};
use crate::pods::silent_nodes;
use crate::replicaset::controlled;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Who keeps these slices; others may keep slices of their own for the same Service.
const MANAGER: &str = "endpointslice-controller.k8s.io";
/// Upstream's default `--max-endpoints-per-slice`.
const PER_SLICE: usize = 100;

/// What should change now.
#[must_use]
pub fn plan(view: &View, now: Millis, ids: &mut dyn Ids) -> Vec<Transaction> {
    let silent = silent_nodes(view);
    let mut pods: HashMap<Arc<str>, Vec<&Arc<Object>>> = HashMap::new();
    let mut transactions = Vec::new();
    for service in view.list("services", None) {
        let selector = Labels::from_map(&service.tree()["spec"]["selector"]);
        let selects = service.tree()["spec"]["selector"].as_object().is_some_and(|map| !map.is_empty());
        let alias = !has_cluster_ip(&service.tree()["spec"]);
        if !(selects || alias) || is_deleting(service.tree()) {
            continue;
        }
        let held: Vec<&Arc<Object>> = controlled(view, service, SLICES)
            .filter(|slice| slice.tree()["metadata"]["labels"][MANAGED_BY] == MANAGER)
            .collect();
        if alias {
            // What it had before it became another name for something else.
            let gone = held.iter().map(|slice| Op::Delete {
                key: slice.key.clone(),
                expect: Expect { uid: Some(slice.uid.clone()), revision: Some(slice.revision) },
            });
            let ops: Vec<Op> = gone.collect();
            transactions.extend((!ops.is_empty()).then_some(Transaction { ops }));
            continue;
        }
        let candidates = pods.entry(service.key.namespace.clone()).or_insert_with(|| addressed(view, service));
        let groups = wanted(service, &selector, candidates, &silent);
        let ops = reconcile(service, groups, &held, now, ids);
        if !ops.is_empty() {
            transactions.push(Transaction { ops });
        }
    }
    transactions
}

/// Pods of a Service's namespace that have an address and have not ended.
fn addressed<'a>(view: &'a View, service: &'a Object) -> Vec<&'a Arc<Object>> {
    view.list("pods", Some(&service.key.namespace))
        .filter(|pod| !text(&pod.tree()["status"]["podIP"]).is_empty() && !is_finished(pod.tree()))
        .collect()
}

/// Endpoints by their ports (as canonical text), then by their pod's uid.
type Groups = BTreeMap<String, (Value, BTreeMap<String, Value>)>;

fn wanted(service: &Object, selector: &Labels, pods: &[&Arc<Object>], silent: &HashSet<Arc<str>>) -> Groups {
    let mut groups = Groups::new();
    for pod in pods.iter().filter(|pod| selector.matches(&pod.tree()["metadata"]["labels"])) {
        let ports = ports(service.tree(), pod.tree());
        let group = groups.entry(ports.to_string()).or_insert_with(|| (ports, BTreeMap::new()));
        group.1.insert(pod.uid.to_string(), endpoint(service, pod, silent));
    }
    groups
}

fn endpoint(service: &Object, pod: &Object, silent: &HashSet<Arc<str>>) -> Value {
    let (tree, spec) = (pod.tree(), &service.tree()["spec"]);
    let node = text(&tree["spec"]["nodeName"]);
    let serving = is_true(tree, "Ready") && !silent.contains(node);
    let ending = is_deleting(tree);
    let published = spec["publishNotReadyAddresses"] == true;
    let mut endpoint = json!({
        "addresses": [text(&tree["status"]["podIP"])],
        "conditions": {
            "ready": published || (serving && !ending),
            "serving": serving,
            "terminating": ending,
        },
        "targetRef": {
            "kind": "Pod",
            "namespace": &*pod.key.namespace,
            "name": &*pod.key.name,
            "uid": &*pod.uid,
        },
    });
    if !node.is_empty() {
        endpoint["nodeName"] = json!(node);
    }
    let hostname = text(&tree["spec"]["hostname"]);
    if !hostname.is_empty() && tree["spec"]["subdomain"] == *service.key.name {
        endpoint["hostname"] = json!(hostname);
    }
    endpoint
}

/// A Service's ports as one pod has them; a named port the pod does not have is left out.
fn ports(service: &Value, pod: &Value) -> Value {
    let ports = list(&service["spec"]["ports"]).iter().filter_map(|port| {
        let protocol = port["protocol"].as_str().unwrap_or("TCP");
        let number = match &port["targetPort"] {
            Value::String(name) => match name.parse::<u16>() {
                Ok(number) => u64::from(number),
                Err(_) => container_port(pod, name, protocol)?,
            },
            Value::Number(number) if number.as_u64() != Some(0) => number.as_u64()?,
            _ => port["port"].as_u64()?,
        };
        let mut entry = json!({"name": text(&port["name"]), "port": number, "protocol": protocol});
        if let Some(application) = port.get("appProtocol") {
            entry["appProtocol"] = application.clone();
        }
        Some(entry)
    });
    Value::Array(ports.collect())
}

fn container_port(pod: &Value, name: &str, protocol: &str) -> Option<u64> {
    let sidecars = list(&pod["spec"]["initContainers"]).iter().filter(|init| init["restartPolicy"] == "Always");
    list(&pod["spec"]["containers"])
        .iter()
        .chain(sidecars)
        .flat_map(|container| list(&container["ports"]))
        .find(|port| port["name"] == name && port["protocol"].as_str().unwrap_or("TCP") == protocol)?["containerPort"]
        .as_u64()
}

/// The operations from the slices there are to those there should be.
fn reconcile(
    service: &Arc<Object>,
    mut groups: Groups,
    held: &[&Arc<Object>],
    now: Millis,
    ids: &mut dyn Ids,
) -> Vec<Op> {
    let mut kept: Vec<(&Arc<Object>, String, Vec<Value>)> = Vec::new();
    let mut ops = Vec::new();
    for slice in held {
        let ports = slice.tree()["ports"].to_string();
        let wanted = groups.get_mut(&ports);
        // Endpoints that are still wanted stay in their slice, in their place.
        let stay: Vec<Value> = wanted.map_or_else(Vec::new, |(_, wanted)| {
            let endpoints = list(&slice.tree()["endpoints"]).iter();
            endpoints.filter_map(|endpoint| wanted.remove(text(&endpoint["targetRef"]["uid"]))).collect()
        });
        kept.push((slice, ports, stay));
    }
    for (text, (ports, rest)) in groups {
        let mut rest: Vec<Value> = rest.into_values().collect();
        for (_, _, endpoints) in kept.iter_mut().filter(|(_, ports, _)| *ports == text) {
            let room = PER_SLICE.saturating_sub(endpoints.len()).min(rest.len());
            endpoints.extend(rest.drain(..room));
        }
        for endpoints in rest.chunks(PER_SLICE) {
            ops.push(new_slice(service, &ports, endpoints, now, ids));
        }
    }
    // One slice stays (or is made) for a Service without any endpoint, as upstream does: it says "known, and empty".
    let mut empty_may_stay = ops.is_empty() && kept.iter().all(|(_, _, endpoints)| endpoints.is_empty());
    if empty_may_stay && kept.is_empty() {
        ops.push(new_slice(service, &json!([]), &[], now, ids));
    }
    for (slice, _, endpoints) in kept {
        if endpoints.is_empty() && !std::mem::take(&mut empty_may_stay) {
            let expect = Expect { uid: Some(slice.uid.clone()), revision: Some(slice.revision) };
            ops.push(Op::Delete { key: slice.key.clone(), expect });
            continue;
        }
        let mut value = (**slice.tree()).clone();
        value["endpoints"] = Value::Array(endpoints);
        value["metadata"]["labels"] = labels(service);
        if value != **slice.tree() {
            ops.push(update(slice, value));
        }
    }
    ops
}

fn new_slice(service: &Arc<Object>, ports: &Value, endpoints: &[Value], now: Millis, ids: &mut dyn Ids) -> Op {
    let base: String = service.key.name.chars().take(57).collect();
    let name = format!("{base}-{}", ids.suffix());
    let value = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "generateName": format!("{base}-"),
            "labels": labels(service),
            "ownerReferences": [controller_reference(service)],
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": ports,
    });
    create(Key::new(SLICES, service.key.namespace.clone(), name), value, now, ids)
}

fn labels(service: &Object) -> Value {
    let tree = service.tree();
    let mut labels = tree["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), json!(&*service.key.name));
    labels.insert(MANAGED_BY.to_owned(), json!(MANAGER));
    if tree["spec"]["clusterIP"] == "None" {
        labels.insert(HEADLESS.to_owned(), json!(""));
    } else {
        labels.remove(HEADLESS);
    }
    Value::Object(labels)
}
