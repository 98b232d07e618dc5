//! Where a Service of the type LoadBalancer is reached: at the addresses of the nodes, which serve its ports themselves (as k3s'
//! servicelb does; upstream leaves it to a cloud).
//!
//! A port is one Service's: the oldest has it, and the others wait and say for whom. Ports that the nodes listen on themselves are
//! nobody's. With `externalTrafficPolicy: Local` only nodes with a ready endpoint are named. A Service with a class is another's.
//!
//! Cost: one walk over the Services; over nodes and, for local ones, slices only when one of them is a load balancer.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use coracle_base::Millis;
use coracle_manifests::service::{NO_BALANCER, is_balanced_here, own_port, protocol, type_of};
use coracle_manifests::view::{is_deleting, is_true, list, text};
use coracle_store::{Object, Transaction, View};
use serde_json::{Value, json};

use crate::Ids;
use crate::objects::{Condition, Note, SLICES, event, millis, set_condition, status};

/// Upstream's name for "the ports could not be had".
const PORTS: &str = "LoadBalancerPortsError";
const COMPONENT: &str = "service-controller";

/// What should change now.
#[must_use]
pub fn plan(view: &View, now: Millis, ids: &mut dyn Ids) -> Vec<Transaction> {
    let mut transactions = Vec::new();
    let mut balancers: Vec<&Arc<Object>> = Vec::new();
    for service in view.list("services", None).filter(|service| !is_deleting(service.tree())) {
        let tree = service.tree();
        if is_balanced_here(&tree["spec"]) {
            balancers.push(service);
        } else if type_of(&tree["spec"]) != "LoadBalancer" && has_traces(&tree["status"]) {
            transactions.extend(status(service, json!({"loadBalancer": {}})).map(|op| Transaction { ops: vec![op] }));
        }
    }
    if balancers.is_empty() {
        return transactions;
    }
    balancers
        .sort_by_cached_key(|service| (millis(&service.tree()["metadata"]["creationTimestamp"]), service.key.clone()));
    let nodes = nodes(view);
    let mut taken: BTreeMap<(&str, i64), &Arc<Object>> = BTreeMap::new();
    for service in balancers {
        let ports: Vec<(&str, i64)> = list(&service.tree()["spec"]["ports"])
            .iter()
            .filter_map(|port| Some((protocol(port), port["port"].as_i64()?)))
            .collect();
        let problem = ports.iter().find_map(|port| problem(*port, &taken));
        if problem.is_none() {
            taken.extend(ports.into_iter().map(|port| (port, service)));
        }
        transactions.extend(one(view, service, &nodes, problem, now, ids));
    }
    transactions
}

/// Whether a status is that of a load balancer.
fn has_traces(status: &Value) -> bool {
    !list(&status["loadBalancer"]["ingress"]).is_empty()
        || list(&status["conditions"]).iter().any(|condition| condition["type"] == PORTS)
}

/// The nodes that take part, by name: ready, not kept out, with an address.
fn nodes(view: &View) -> BTreeMap<&str, Ipv4Addr> {
    let nodes = view.list("nodes", None).filter(|node| is_true(node.tree(), "Ready") && !is_deleting(node.tree()));
    let nodes = nodes.filter(|node| node.tree()["metadata"]["labels"].get(NO_BALANCER).is_none());
    let addressed = nodes.filter_map(|node| {
        let mut addresses = list(&node.tree()["status"]["addresses"]).iter();
        let own = addresses.find(|address| address["type"] == "InternalIP")?;
        Some((&*node.key.name, text(&own["address"]).parse().ok().filter(|address: &Ipv4Addr| !address.is_loopback())?))
    });
    addressed.collect()
}

/// Why a port cannot be had.
fn problem((protocol, port): (&str, i64), taken: &BTreeMap<(&str, i64), &Arc<Object>>) -> Option<String> {
    if let Some(own) = own_port(protocol, port) {
        return Some(format!("port {port}/{protocol} of the nodes is the port of {own}: choose another `port`"));
    }
    let holder = taken.get(&(protocol, port))?;
    let (namespace, name) = (&holder.key.namespace, &holder.key.name);
    Some(format!("port {port}/{protocol} of the nodes is held by the Service {namespace}/{name}"))
}

fn one(
    view: &View,
    service: &Arc<Object>,
    nodes: &BTreeMap<&str, Ipv4Addr>,
    problem: Option<String>,
    now: Millis,
    ids: &mut dyn Ids,
) -> Option<Transaction> {
    let before = &service.tree()["status"];
    let mut conditions = list(&before["conditions"]).to_vec();
    let held = conditions.iter().find(|condition| condition["type"] == PORTS);
    let news = problem.as_ref().filter(|problem| held.is_none_or(|held| text(&held["message"]) != **problem)).cloned();
    let mut addresses: BTreeSet<Ipv4Addr> = BTreeSet::new();
    match &problem {
        Some(message) => {
            let condition = Condition { kind: PORTS, status: "True", reason: "PortTaken", message };
            set_condition(&mut conditions, &condition, "lastTransitionTime", now);
        }
        None => {
            conditions.retain(|condition| condition["type"] != PORTS);
            let local = (service.tree()["spec"]["externalTrafficPolicy"] == "Local").then(|| serving(view, service));
            let part = nodes.iter().filter(|(name, _)| local.as_ref().is_none_or(|local| local.contains(**name)));
            addresses.extend(part.map(|(_, address)| *address));
        }
    }
    let ingress: Vec<Value> =
        addresses.iter().map(|address| json!({"ip": address.to_string(), "ipMode": "VIP"})).collect();
    let mut after = json!({"loadBalancer": {}});
    if !ingress.is_empty() {
        after["loadBalancer"]["ingress"] = Value::Array(ingress);
    }
    if !conditions.is_empty() {
        after["conditions"] = Value::Array(conditions);
    }
    let mut ops: Vec<_> = status(service, after).into_iter().collect();
    if let Some(message) = news {
        ops.push(event(
            service,
            Note { kind: "Warning", reason: "PortTaken", message, component: COMPONENT },
            now,
            ids,
        ));
    }
    (!ops.is_empty()).then_some(Transaction { ops })
}

/// Nodes with a ready endpoint of a Service.
fn serving(view: &View, service: &Object) -> HashSet<String> {
    let slices = view
        .list(SLICES, Some(&service.key.namespace))
        .filter(|slice| slice.tree()["metadata"]["labels"]["kubernetes.io/service-name"] == *service.key.name);
    let endpoints = slices.flat_map(|slice| {
        let ready = list(&slice.tree()["endpoints"]).iter().filter(|endpoint| endpoint["conditions"]["ready"] != false);
        ready.map(|endpoint| text(&endpoint["nodeName"]).to_owned()).collect::<Vec<_>>()
    });
    endpoints.collect()
}
