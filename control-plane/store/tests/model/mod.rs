//! Random but meaningful commands: a few names, so that creates, updates, deletes and claims collide.
#![allow(dead_code, missing_docs)] // each test binary uses its part

use std::sync::Arc;

use coracle_store::{Expect, FENCED, Key, Op, Transaction};
use proptest::prelude::*;
use serde_json::{Value, json};

pub fn key(resource: &str, name: &str) -> Key {
    let namespace = if resource == "nodes" { "" } else { "default" };
    Key::new(resource, namespace, name)
}

pub fn tree(key: &Key, uid: &str, spec: Value) -> Value {
    let mut tree = json!({"metadata": {"name": &*key.name, "uid": uid}, "spec": spec});
    if !key.namespace.is_empty() {
        tree["metadata"]["namespace"] = json!(&*key.namespace);
    }
    tree
}

pub fn node(name: &str, cpu: &str, pods: u32) -> Op {
    let key = key("nodes", name);
    let mut value = tree(&key, &format!("uid-{name}"), json!({}));
    value["status"] = json!({"allocatable": {"cpu": cpu, "memory": "1Gi", "pods": pods.to_string()}});
    Op::Create { key, value: Arc::new(value), claims: Vec::new() }
}

pub fn pod(name: &str, cpu: &str) -> Op {
    let key = key("pods", name);
    let spec = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]});
    let value = Arc::new(tree(&key, &format!("uid-{name}"), spec));
    Op::Create { key, value, claims: Vec::new() }
}

fn any_name() -> impl Strategy<Value = String> {
    (0..6u8).prop_map(|n| format!("n{n}"))
}

fn any_key() -> impl Strategy<Value = Key> {
    (prop::sample::select(vec!["pods", "nodes", "services"]), any_name())
        .prop_map(|(resource, name)| key(resource, &name))
}

fn any_leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<f64>().prop_map(|float| json!(float)),
        any::<i64>().prop_map(|int| json!(int)),
        any::<u64>().prop_map(|int| json!(int)),
        "[ -~é]{0,6}".prop_map(|text| json!(text)),
        Just(Value::Null),
    ]
}

fn any_spec() -> impl Strategy<Value = Value> {
    let leaves = prop::collection::btree_map("[a-z]{1,3}", any_leaf(), 0..3);
    (leaves, 0..4u8, any_name()).prop_map(|(leaves, cpu, node)| {
        let mut spec = json!(leaves);
        spec["containers"] = json!([{"resources": {"requests": {"cpu": format!("{cpu}00m")}}}]);
        if cpu == 3 {
            spec["nodeName"] = json!(node);
        }
        spec
    })
}

fn any_tree(key: Key) -> impl Strategy<Value = (Key, Arc<Value>)> {
    (any_spec(), 0..3u8, any::<bool>(), 0..6u8).prop_map(move |(spec, uid, owned, kind)| {
        let mut value = tree(&key, &format!("u{uid}"), spec);
        if owned {
            value["metadata"]["ownerReferences"] = json!([{"uid": "u0"}, {"uid": "u9"}]);
        }
        match kind {
            0 => value["metadata"]["deletionTimestamp"] = json!("2026-11-26T12:00:00Z"),
            1 => value["metadata"]["annotations"] = json!({FENCED: "true"}),
            2 if owned => value["metadata"]["ownerReferences"][0]["controller"] = json!(true),
            _ => {}
        }
        if &*key.resource == "nodes" {
            value["status"] = json!({"allocatable": {"cpu": "500m", "memory": "1Gi", "pods": "3"}});
        }
        (key.clone(), Arc::new(value))
    })
}

fn any_claims() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec((0..4u8).prop_map(|n| format!("clusterip/10.43.0.{n}")), 0..3)
}

fn any_expect() -> impl Strategy<Value = Expect> {
    (prop::option::of(0..3u8), prop::option::weighted(0.1, 0..40u64))
        .prop_map(|(uid, revision)| Expect { uid: uid.map(|uid| format!("u{uid}").into()), revision })
}

pub fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (any_key().prop_flat_map(any_tree), any_claims())
            .prop_map(|((key, value), claims)| Op::Create { key, value, claims }),
        6 => (any_key().prop_flat_map(any_tree), any_expect(), prop::option::of(any_claims()))
            .prop_map(|((key, value), expect, claims)| Op::Update { key, expect, value, claims }),
        4 => (any_key(), 0..3u8, prop_oneof![any_leaf(), Just(json!("Succeeded"))]).prop_map(|(key, uid, leaf)| Op::Status {
            key,
            uid: format!("u{uid}").into(),
            status: Arc::new(json!({"phase": leaf})),
        }),
        6 => (any_name(), 0..3u8, any_name()).prop_map(|(pod, uid, node)| Op::Bind {
            key: key("pods", &pod),
            uid: format!("u{uid}").into(),
            node: node.into(),
            at: "2026-11-26T12:00:00Z".into(),
        }),
        3 => (any_key(), any_expect()).prop_map(|(key, expect)| Op::Delete { key, expect }),
        1 => Just(Op::RaiseEpoch),
        1 => (1..4_u32).prop_map(|level| Op::RaiseLevel { level }),
    ]
}

pub fn any_transactions(most: usize) -> impl Strategy<Value = Vec<Transaction>> {
    let transaction = prop::collection::vec(any_op(), 0..4).prop_map(|ops| Transaction { ops });
    prop::collection::vec(transaction, 0..most)
}
