//! What objects weigh in memory, as the kernel counts it: keeps `Object::weight` honest, which bounds the watch history.

mod model;

use std::sync::Arc;

use coracle_store::{Key, Limits, Op, Restore, Store};
use serde_json::{Value, json};

const PODS: usize = 5000;

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

// A pod as the API stores it: about 2.5 KB.
fn pod(number: usize) -> Op {
    let name = format!("web-7d4b9c6f5-{number:05}");
    let key = Key::new("pods", "default", name.as_str());
    let env: Vec<Value> =
        (0..8).map(|n| json!({"name": format!("VARIABLE_{n}"), "value": format!("value {n} of {number}")})).collect();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-11-26T12:00:00Z"});
    let mut value = model::tree(
        &key,
        &format!("00000000-0000-4000-8000-{number:012}"),
        json!({
            "containers": [{
                "name": "web", "image": "registry.example/team/web@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
                "imagePullPolicy": "IfNotPresent", "env": env, "ports": [{"containerPort": 8080, "protocol": "TCP"}],
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
                "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10, "timeoutSeconds": 1},
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            }],
            "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "nodeName": format!("node-{}", number % 50),
            "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler", "securityContext": {},
        }),
    );
    value["metadata"]["labels"] = json!({"app": "web", "pod-template-hash": "7d4b9c6f5"});
    value["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d4b9c6f5", "uid": "u1", "controller": true}]);
    value["status"] = json!({
        "phase": "Running", "podIP": "10.42.0.7", "hostIP": "10.0.0.1", "startTime": "2026-11-26T12:00:00Z",
        "conditions": [condition("PodScheduled"), condition("Initialized"), condition("ContainersReady"), condition("Ready")],
    });
    Op::Create { key, value: Arc::new(value), claims: Vec::new() }
}

#[test]
fn an_object_weighs_what_it_says() {
    let mut store = Store::new(Limits { history_bytes: 0, tree_bytes: usize::MAX, ..Limits::default() });
    let before = resident_bytes();
    for number in 0..PODS {
        store.apply(&[pod(number).into()]).remove(0).unwrap();
    }
    let parsed = (resident_bytes() - before) / PODS;
    let view = store.view();
    let text = view.all().map(|object| object.json.len()).sum::<usize>() / PODS;
    let says = view.all().map(|object| object.weight()).sum::<usize>() / PODS;

    let chunks: Vec<_> = store.freeze().chunks(1 << 20).map(Result::unwrap).collect();
    let before = resident_bytes();
    let mut restore = Restore::new();
    for chunk in &chunks {
        restore.chunk(chunk).unwrap();
    }
    let restored = restore.finish(Limits::default()).unwrap();
    let unparsed = resident_bytes().saturating_sub(before) / PODS;
    println!("a pod of {text} bytes: {unparsed} bytes in memory, {parsed} with its tree; weight says {says}");
    assert_eq!(restored.view().len(), PODS);
    assert!(says > parsed / 2 && says < parsed * 2, "{says} said, {parsed} measured");
    assert!(unparsed < text + 2500, "{unparsed}");
}

#[test]
fn objects_written_long_ago_keep_their_text_only_and_are_read_as_before() {
    let mut store = Store::new(Limits { history_bytes: 0, tree_bytes: 1 << 20, ..Limits::default() });
    let mut all = Store::new(Limits { history_bytes: 0, tree_bytes: usize::MAX, ..Limits::default() });
    for number in 0..500 {
        for store in [&mut store, &mut all] {
            store.apply(&[pod(number).into()]).remove(0).unwrap();
        }
    }
    let (view, warm) = (store.view(), all.view());
    let trees = |view: &coracle_store::View| {
        view.all()
            .filter(|object| object.weight() > 5 * object.json.len())
            .map(|object| object.key.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(trees(&warm).len(), 500);
    let kept = trees(&view);
    assert!((10..100).contains(&kept.len()), "{}", kept.len());
    assert!(kept.iter().any(|key| key.name.ends_with("00499")), "the newest is among them");
    assert_eq!(store.state_hash(), all.state_hash());
    for node in ["node-0", "node-49"] {
        assert_eq!(view.usage_on(node), warm.usage_on(node));
        let on = |view: &coracle_store::View| view.pods_on(node).map(|pod| (**pod.tree()).clone()).collect::<Vec<_>>();
        assert_eq!(on(&view), on(&warm));
    }
    assert_eq!(view.owned_by("u1").count(), 500);
}
