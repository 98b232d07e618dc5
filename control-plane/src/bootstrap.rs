//! What a new cluster holds before anybody wrote anything: its namespaces and the Service of its own API.

use std::net::Ipv4Addr;
use std::sync::Arc;

use coracle_store::{Key, Op, Transaction, View};
use serde_json::json;

use crate::cidr::Cidr;
use crate::now;

const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// Transactions that make what is missing; none when all is there. `apis` is where the API listens, in order; all share the port of
/// the first, or are left out.
#[must_use]
pub fn missing(view: &View, services: Cidr, apis: &[(Ipv4Addr, u16)]) -> Vec<Transaction> {
    let Some(api) = apis.first() else { return Vec::new() };
    let endpoints: Vec<serde_json::Value> = apis
        .iter()
        .filter(|(_, port)| *port == api.1)
        .map(|(ip, _)| json!({"addresses": [ip.to_string()], "conditions": {"ready": true, "serving": true, "terminating": false}}))
        .collect();
    let mut transactions = Vec::new();
    for name in NAMESPACES {
        if view.find("namespaces", "", name).is_none() {
            transactions.push(Transaction::from(create(
                Key::new("namespaces", "", name),
                json!({
                    "apiVersion": "v1",
                    "kind": "Namespace",
                    "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
                    "spec": {"finalizers": ["kubernetes"]},
                    "status": {"phase": "Active"},
                }),
                Vec::new(),
            )));
        }
    }
    if view.find("services", "default", "kubernetes").is_none()
        && let Some(address) = services.address(1)
    {
        transactions.push(Transaction::from(create(
            Key::new("services", "default", "kubernetes"),
            json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {
                    "name": "kubernetes",
                    "namespace": "default",
                    "labels": {"component": "apiserver", "provider": "kubernetes"},
                },
                "spec": {
                    "type": "ClusterIP",
                    "clusterIP": address.to_string(),
                    "clusterIPs": [address.to_string()],
                    "ipFamilies": ["IPv4"],
                    "ipFamilyPolicy": "SingleStack",
                    "internalTrafficPolicy": "Cluster",
                    "sessionAffinity": "None",
                    "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": api.1}],
                },
                "status": {"loadBalancer": {}},
            }),
            vec![format!("clusterip/{address}")],
        )));
    }
    let slice = Key::new("endpointslices.discovery.k8s.io", "default", "kubernetes");
    let value = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "kubernetes",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "kubernetes"},
        },
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "https", "port": api.1, "protocol": "TCP"}],
    });
    match view.get(&slice) {
        None => transactions.push(create(slice, value, Vec::new()).into()),
        // The machine's address or the port may have changed since the last start.
        Some(stored)
            if stored.tree()["endpoints"] != value["endpoints"] || stored.tree()["ports"] != value["ports"] =>
        {
            let mut tree = (**stored.tree()).clone();
            tree["endpoints"] = value["endpoints"].clone();
            tree["ports"] = value["ports"].clone();
            transactions.push(
                Op::Update {
                    key: slice,
                    expect: coracle_store::Expect::default(),
                    value: Arc::new(tree),
                    claims: None,
                }
                .into(),
            );
        }
        Some(_) => {}
    }
    transactions
}

fn create(key: Key, mut value: serde_json::Value, claims: Vec<String>) -> Op {
    value["metadata"]["uid"] = json!(now::uuid().to_string());
    value["metadata"]["creationTimestamp"] = json!(now::rfc3339());
    Op::Create { key, value: Arc::new(value), claims }
}
