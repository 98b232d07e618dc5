//! Single stories with exact answers.

mod model;

use std::sync::Arc;

use coracle_store::codec::{CodecError, MAX_DEPTH, decode, encode};
use coracle_store::{EPOCH_STEP, Expect, Gone, Key, Limits, Op, Outcome, Rejection, Restore, Store, Transaction};
use model::{key, node, pod, tree};
use serde_json::{Value, json};

fn apply(store: &mut Store, ops: impl IntoIterator<Item = Op>) -> Result<Vec<Outcome>, (usize, Rejection)> {
    store.apply(&[Transaction { ops: ops.into_iter().collect() }]).remove(0)
}

fn update(key: &Key, value: Value) -> Op {
    Op::Update { key: key.clone(), expect: Expect::default(), value: Arc::new(value), claims: None }
}

fn generation(store: &Store, key: &Key) -> u64 {
    store.view().get(key).unwrap().tree()["metadata"]["generation"].as_u64().unwrap()
}

#[test]
fn revisions_count_changed_objects_and_generations_count_changed_wishes() {
    let mut store = Store::new(Limits::default());
    let key = key("deployments.apps", "web");
    let value = tree(&key, "u", json!({"replicas": 1}));
    apply(&mut store, [Op::Create { key: key.clone(), value: Arc::new(value.clone()), claims: vec![] }]).unwrap();
    assert_eq!((store.view().revision(), generation(&store, &key)), (1, 1));

    assert!(matches!(apply(&mut store, [update(&key, value.clone())]).unwrap()[0], Outcome::Unchanged(_)));
    assert_eq!(store.view().revision(), 1, "an equal update takes no revision");

    let mut labelled = value.clone();
    labelled["metadata"]["labels"] = json!({"a": "b"});
    apply(&mut store, [update(&key, labelled.clone())]).unwrap();
    assert_eq!((store.view().revision(), generation(&store, &key)), (2, 1), "labels are no new wish");

    let status = Op::Status { key: key.clone(), uid: "u".into(), status: Arc::new(json!({"replicas": 1})) };
    apply(&mut store, [status.clone()]).unwrap();
    assert!(matches!(apply(&mut store, [status]).unwrap()[0], Outcome::Unchanged(_)));
    assert_eq!((store.view().revision(), generation(&store, &key)), (3, 1));

    labelled["spec"]["replicas"] = json!(2);
    apply(&mut store, [update(&key, labelled.clone())]).unwrap();
    assert_eq!(generation(&store, &key), 2);
    labelled["metadata"]["deletionTimestamp"] = json!("2026-11-26T12:00:00Z");
    apply(&mut store, [update(&key, labelled)]).unwrap();
    assert_eq!(generation(&store, &key), 3);

    let old = Expect { uid: None, revision: Some(1) };
    let refused = apply(&mut store, [Op::Delete { key: key.clone(), expect: old }]).unwrap_err();
    assert_eq!(refused, (0, Rejection::Conflict { key: key.clone(), expected: 1, actual: 5 }));
    apply(&mut store, [Op::Delete { key: key.clone(), expect: Expect { uid: Some("u".into()), revision: Some(5) } }])
        .unwrap();
    assert_eq!(store.view().revision(), 6);
    let last = store.events_after(5, Some("deployments.apps")).unwrap().remove(0);
    assert_eq!(last.object.tree()["metadata"]["resourceVersion"], "6");
}

#[test]
fn late_reports_are_skipped_and_strangers_are_refused() {
    let mut store = Store::new(Limits::default());
    apply(&mut store, [pod("a", "1m")]).unwrap();
    let late = Op::Status { key: key("pods", "a"), uid: "older".into(), status: Arc::new(json!({})) };
    assert!(matches!(apply(&mut store, [late]).unwrap()[0], Outcome::Skipped));
    let stranger = tree(&key("pods", "a"), "other", json!({}));
    assert!(matches!(apply(&mut store, [update(&key("pods", "a"), stranger)]), Err((0, Rejection::OtherUid { .. }))));
    let misnamed = tree(&key("pods", "b"), "uid-a", json!({}));
    assert!(matches!(apply(&mut store, [update(&key("pods", "a"), misnamed)]), Err((0, Rejection::Malformed { .. }))));
    for value in [
        json!(null),
        json!([]),
        json!("x"),
        json!({"metadata": 1}),
        json!({"metadata": {"name": "c", "namespace": "default"}}),
    ] {
        let op = Op::Create { key: key("pods", "c"), value: Arc::new(value), claims: vec![] };
        assert!(matches!(apply(&mut store, [op]), Err((0, Rejection::Malformed { .. }))));
    }
}

#[test]
fn an_object_too_large_is_refused_with_its_size() {
    let mut store = Store::new(Limits { object_bytes: 1000, ..Limits::default() });
    let key = key("configmaps", "big");
    let mut value = tree(&key, "u", json!({}));
    value["data"] = json!({"x": "y".repeat(1000)});
    let refused = apply(&mut store, [Op::Create { key, value: Arc::new(value), claims: vec![] }]).unwrap_err();
    assert!(refused.1.to_string().contains("at most 1000 are stored"), "{}", refused.1);
}

#[test]
fn a_unique_name_has_one_holder_until_it_goes() {
    let mut store = Store::new(Limits::default());
    let service = |name: &str, claims: &[&str]| {
        let key = key("services", name);
        let value = Arc::new(tree(&key, &format!("uid-{name}"), json!({})));
        Op::Create { key, value, claims: claims.iter().map(|&claim| claim.to_owned()).collect() }
    };
    apply(&mut store, [service("a", &["ip/1"])]).unwrap();
    let refused = apply(&mut store, [service("b", &["ip/2", "ip/1"])]).unwrap_err();
    assert_eq!(refused.1, Rejection::Claimed { claim: "ip/1".into(), holder: key("services", "a") });
    // In one transaction: freed and taken again.
    apply(&mut store, [Op::Delete { key: key("services", "a"), expect: Expect::default() }, service("b", &["ip/1"])])
        .unwrap();
    assert_eq!(store.holder("ip/1"), Some(&key("services", "b")));
    let mut value = tree(&key("services", "b"), "uid-b", json!({}));
    value["metadata"]["labels"] = json!({"kept": "yes"});
    apply(&mut store, [update(&key("services", "b"), value.clone())]).unwrap();
    assert_eq!(store.holder("ip/1"), Some(&key("services", "b")));
    let replaced = Op::Update {
        key: key("services", "b"),
        expect: Expect::default(),
        value: Arc::new(value),
        claims: Some(vec!["ip/3".into()]),
    };
    apply(&mut store, [replaced]).unwrap();
    assert_eq!((store.holder("ip/1"), store.holder("ip/3")), (None, Some(&key("services", "b"))));
}

#[test]
fn a_binding_is_checked_against_the_moment() {
    let mut store = Store::new(Limits::default());
    apply(&mut store, [node("n", "250m", 2), pod("a", "100m"), pod("b", "100m"), pod("c", "100m"), pod("d", "0")])
        .unwrap();
    let bind = |pod: &str, node: &str| Op::Bind {
        key: key("pods", pod),
        uid: format!("uid-{pod}").into(),
        node: node.into(),
        at: "2026-11-26T12:00:00Z".into(),
    };
    let reason = |answer: Result<Vec<Outcome>, (usize, Rejection)>| match answer {
        Err((_, Rejection::Unbindable { reason, .. })) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(apply(&mut store, [bind("a", "elsewhere")])), "there is no such node");
    apply(&mut store, [bind("a", "n"), bind("b", "n")]).unwrap();
    assert_eq!(reason(apply(&mut store, [bind("a", "n")])), "it is bound to n");
    assert_eq!(reason(apply(&mut store, [bind("c", "n")])), "it asks for 100m cpu, 50m of 250m are free");
    assert_eq!(reason(apply(&mut store, [bind("d", "n")])), "the node holds 2 pods of at most 2");
    let bound = store.view().get(&key("pods", "a")).unwrap().tree().clone();
    assert_eq!(bound["spec"]["nodeName"], "n");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    assert_eq!(bound["status"]["conditions"][0]["lastTransitionTime"], "2026-11-26T12:00:00Z");

    // A pod that ended gives its room back.
    let done =
        Op::Status { key: key("pods", "a"), uid: "uid-a".into(), status: Arc::new(json!({"phase": "Succeeded"})) };
    apply(&mut store, [done, bind("c", "n")]).unwrap();

    let mut cordoned = (**store.view().get(&key("nodes", "n")).unwrap().tree()).clone();
    cordoned["spec"]["unschedulable"] = json!(true);
    apply(&mut store, [update(&key("nodes", "n"), cordoned)]).unwrap();
    assert_eq!(reason(apply(&mut store, [bind("d", "n")])), "the node is cordoned");

    // What tolerates that comes all the same, when every server agrees.
    apply(&mut store, [Op::Delete { key: key("pods", "b"), expect: Expect::default() }]).unwrap();
    let tolerant = |toleration: Value| {
        let mut value = (**store.view().get(&key("pods", "d")).unwrap().tree()).clone();
        value["spec"]["tolerations"] = json!([toleration]);
        update(&key("pods", "d"), value)
    };
    let taint = "node.kubernetes.io/unschedulable";
    let ops = [
        json!({"key": taint, "operator": "Exists", "effect": "NoExecute"}),
        json!({"key": taint, "value": "x"}),
        json!({"key": "other", "operator": "Exists"}),
        json!({"key": taint, "operator": "Exists", "effect": "NoSchedule"}),
    ]
    .map(tolerant);
    apply(&mut store, [ops[3].clone()]).unwrap();
    assert_eq!(
        reason(apply(&mut store, [bind("d", "n")])),
        "the node is cordoned",
        "a server of level 1 does not know it"
    );
    apply(&mut store, [Op::RaiseLevel { level: 2 }]).unwrap();
    for op in &ops[..3] {
        apply(&mut store, [op.clone()]).unwrap();
        assert_eq!(reason(apply(&mut store, [bind("d", "n")])), "the node is cordoned");
    }
    apply(&mut store, [ops[3].clone(), bind("d", "n")]).unwrap();
}

#[test]
fn a_new_epoch_makes_every_watcher_list_again() {
    let mut store = Store::new(Limits::default());
    apply(&mut store, [pod("a", "1m")]).unwrap();
    assert!(store.events_after(0, None).is_ok());
    apply(&mut store, [Op::RaiseEpoch]).unwrap();
    assert_eq!((store.view().epoch(), store.view().revision()), (1, 1 + EPOCH_STEP));
    assert_eq!(store.events_after(1, None).unwrap_err(), Gone { oldest: 1 + EPOCH_STEP });
    assert!(store.events_after(1 + EPOCH_STEP, None).unwrap().is_empty());
}

#[test]
fn json_is_canonical_whatever_the_order_of_the_fields() {
    let value: Value = serde_json::from_str(r#"{"z":1,"a":{"y":2,"b":3},"m":0.1}"#).unwrap();
    assert_eq!(value.to_string(), r#"{"a":{"b":3,"y":2},"m":0.1,"z":1}"#, "a feature of serde_json breaks replication");
}

#[test]
fn what_cannot_be_read_back_is_not_encoded_and_the_unknown_is_not_skipped() {
    let key = key("pods", "deep");
    let mut deep = json!(1);
    for _ in 0..MAX_DEPTH + 1 {
        deep = json!([deep]);
    }
    let op = Op::Status { key, uid: "u".into(), status: Arc::new(deep) };
    assert_eq!(encode(&[op.into()]), Err(CodecError::TooDeep));

    let unknown = [1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 200, 0, 0, 0, 0];
    assert_eq!(decode(&unknown), Err(CodecError::UnknownCommand(200)));
    assert_eq!(decode(&[9, 0, 0, 0, 0, 0]), Err(CodecError::Format { found: 9 }));
}

#[test]
fn what_the_release_before_knows_is_written_as_it_reads_it() {
    let plain: Transaction = Op::RaiseEpoch.into();
    let newer: Transaction = Op::RaiseLevel { level: 2 }.into();
    assert_eq!(encode(std::slice::from_ref(&plain)).unwrap()[..2], [1, 0]);
    let both = [plain, newer];
    let bytes = encode(&both).unwrap();
    assert_eq!((bytes[0], bytes[1]), (2, 0));
    assert_eq!(decode(&bytes).unwrap(), both);
    // A format and a command of a later release.
    let mut later = bytes.clone();
    later[0] = 3;
    assert!(decode(&later).unwrap_err().to_string().contains("format 3 is newer"));
    let at = bytes.iter().rposition(|byte| *byte == 7).unwrap();
    let mut later = bytes;
    later[at] = 8;
    assert_eq!(decode(&later).unwrap_err(), CodecError::UnknownCommand(8));
}

#[test]
fn the_level_survives_a_snapshot_and_never_falls() {
    let head = |store: &Store| store.freeze().chunks(1).next().unwrap().unwrap();
    let mut store = Store::new(Limits::default());
    assert_eq!(store.view().level(), 1);
    assert_eq!(head(&store)[5..7], [1, 0], "the release before reads a snapshot of level 1");
    let (plain, revision) = (store.state_hash(), store.view().revision());
    for level in [2, 3, 2] {
        assert!(store.apply(&[Op::RaiseLevel { level }.into()])[0].is_ok());
    }
    assert_eq!((store.view().level(), store.view().revision()), (3, revision));
    assert_ne!(store.state_hash(), plain);
    assert_eq!(head(&store)[5..7], [2, 0]);
    let mut restore = Restore::new();
    for chunk in store.freeze().chunks(1 << 20) {
        restore.chunk(&chunk.unwrap()).unwrap();
    }
    let restored = restore.finish(Limits::default()).unwrap();
    assert_eq!((restored.view().level(), restored.state_hash()), (3, store.state_hash()));
}
