//! What holds for every sequence of commands.

mod model;

use coracle_store::{EPOCH_STEP, EventKind, FENCED, Limits, Mark, Op, Restore, Store, Transaction, Usage, codec};
use model::any_transactions;
use proptest::prelude::*;
use serde_json::Value;
use std::collections::BTreeSet;

fn replica(history_bytes: usize) -> Store {
    // Few objects keep their trees, which nobody may notice.
    Store::new(Limits { history_bytes, tree_bytes: history_bytes, ..Limits::default() })
}

fn restored(store: &Store, chunk_bytes: usize) -> Store {
    let mut restore = Restore::new();
    for chunk in store.freeze().chunks(chunk_bytes) {
        restore.chunk(&chunk.unwrap()).unwrap();
    }
    restore.finish(Limits::default()).unwrap()
}

fn same(a: &Store, b: &Store) {
    let (left, right) = (a.view(), b.view());
    assert_eq!(left.generation(), right.generation());
    let texts = |view: &coracle_store::View| view.all().map(|object| object.json.clone()).collect::<Vec<_>>();
    assert_eq!(texts(&left), texts(&right));
    assert_eq!(a.state_hash(), b.state_hash());
}

fn indexes_hold(store: &Store) {
    let view = store.view();
    for n in 0..6 {
        let node = format!("n{n}");
        let scan: Vec<_> = view.list("pods", None).filter(|pod| pod.tree()["spec"]["nodeName"] == node).collect();
        assert_eq!(
            view.pods_on(&node).map(|pod| &pod.key).collect::<Vec<_>>(),
            scan.iter().map(|pod| &pod.key).collect::<Vec<_>>()
        );
        let mut usage = Usage::default();
        for pod in &scan {
            let one = Usage::of_pod(pod.tree());
            usage.cpu_milli += one.cpu_milli;
            usage.memory_bytes += one.memory_bytes;
            usage.pods += one.pods;
        }
        assert_eq!(view.usage_on(&node), usage);
    }
    let owned: Vec<_> = view.all().filter(|object| !object.tree()["metadata"]["ownerReferences"].is_null()).collect();
    for uid in ["u0", "u9"] {
        assert_eq!(
            view.owned_by(uid).map(|object| &object.key).collect::<Vec<_>>(),
            owned.iter().map(|object| &object.key).collect::<Vec<_>>()
        );
    }
    assert_eq!(view.owned_by("u1").count(), 0);
    let nodes: BTreeSet<String> = view.list("pods", None).filter_map(|pod| node_of(pod.tree())).collect();
    assert_eq!(view.nodes_with_pods().map(|node| node.to_string()).collect::<Vec<_>>(), Vec::from_iter(nodes));
    let going = |tree: &Value| !tree["metadata"]["deletionTimestamp"].is_null();
    let ended = |tree: &Value| tree["status"]["phase"] == "Succeeded" || tree["status"]["phase"] == "Failed";
    let live = |tree: &Value| !going(tree) && !ended(tree);
    let marked = |mark: Mark, resource: Option<&str>, stands: &dyn Fn(&Value) -> bool| {
        let found: Vec<_> = view.marked(mark).map(|object| (object.key.clone(), object.revision)).collect();
        let wanted = view
            .all()
            .filter(|object| resource.is_none_or(|resource| &*object.key.resource == resource) && stands(object.tree()))
            .map(|object| (object.key.clone(), object.revision));
        assert_eq!(found, wanted.collect::<Vec<_>>(), "{mark:?}");
    };
    marked(Mark::Going, None, &going);
    marked(Mark::Waiting, Some("pods"), &|tree| live(tree) && node_of(tree).is_none());
    marked(Mark::Ended, Some("pods"), &ended);
    marked(Mark::Loose, Some("pods"), &|tree| {
        live(tree) && tree["metadata"]["ownerReferences"][0]["controller"] != true
    });
    marked(Mark::Fenced, Some("pods"), &|tree| tree["metadata"]["annotations"][FENCED] == "true");
}

fn node_of(pod: &Value) -> Option<String> {
    pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()).map(str::to_owned)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn replicas_agree_whatever_the_batches_and_however_they_got_the_commands(
        transactions in any_transactions(24), batch in 1..5usize, cut in 0..24usize,
    ) {
        let (mut whole, mut batched) = (replica(1 << 20), replica(0));
        let answers = whole.apply(&transactions);
        let mut other = Vec::new();
        for part in transactions.chunks(batch) {
            let copied = codec::decode(&codec::encode(part).unwrap()).unwrap();
            other.extend(batched.apply(&copied));
        }
        prop_assert!(answers.len() == transactions.len());
        let kinds = |answers: &[coracle_store::Applied]| answers.iter().map(|answer| answer.as_ref().map(Vec::len).map_err(Clone::clone)).collect::<Vec<_>>();
        prop_assert_eq!(kinds(&answers), kinds(&other));
        same(&whole, &batched);
        // A third one starts from a snapshot in the middle.
        let cut = cut.min(transactions.len());
        let mut early = replica(0);
        early.apply(&transactions[..cut]);
        let mut late = restored(&early, 700);
        same(&early, &late);
        late.apply(&transactions[cut..]);
        same(&whole, &late);
        indexes_hold(&whole);
        indexes_hold(&late);
    }

    #[test]
    fn a_refused_transaction_leaves_no_trace(transactions in any_transactions(24)) {
        let mut store = replica(1 << 20);
        for transaction in &transactions {
            let before = restored(&store, 1 << 16);
            let events = store.events_after(store.oldest_resumable(), None).unwrap().len();
            if store.apply(std::slice::from_ref(transaction))[0].is_err() {
                same(&before, &store);
                prop_assert_eq!(store.events_after(store.oldest_resumable(), None).unwrap().len(), events);
            }
        }
    }

    #[test]
    fn history_has_no_gaps_and_tells_the_whole_story(transactions in any_transactions(32), limit in 0..30_000usize) {
        let mut store = replica(limit);
        let mut known = std::collections::BTreeMap::new();
        let mut seen = 0;
        for transaction in &transactions {
            let epoch = store.view().epoch();
            store.apply(std::slice::from_ref(transaction));
            prop_assert!(store.history_bytes() <= limit);
            let view = store.view();
            if view.epoch() != epoch {
                prop_assert!(view.revision() >= EPOCH_STEP);
                prop_assert!(store.events_after(seen, None).is_err());
            }
            match store.events_after(seen, None) {
                Ok(events) => {
                    for event in events {
                        seen += 1;
                        prop_assert_eq!(event.revision, seen);
                        prop_assert_eq!(event.object.revision, seen);
                        let text = event.object.tree()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
                        prop_assert_eq!(text, seen.to_string());
                        let before = match event.kind {
                            EventKind::Deleted => known.remove(&event.object.key),
                            _ => known.insert(event.object.key.clone(), event.object.json.clone()),
                        };
                        prop_assert_eq!(before, event.prior.map(|prior| prior.json.clone()));
                    }
                }
                Err(gone) => prop_assert!(gone.oldest > seen && gone.oldest <= view.revision()),
            }
            if seen != view.revision() {
                seen = view.revision();
                known = view.all().map(|object| (object.key.clone(), object.json.clone())).collect();
            }
            prop_assert_eq!(known.len(), view.len());
            prop_assert!(view.all().all(|object| known[&object.key] == object.json));
        }
    }

    #[test]
    fn what_is_encoded_is_decoded(transactions in any_transactions(8)) {
        let bytes = codec::encode(&transactions).unwrap();
        let (again, parts): (Vec<_>, Vec<_>) = codec::decode_parts(&bytes).unwrap().into_iter().unzip();
        prop_assert_eq!(&again, &transactions);
        prop_assert_eq!(codec::join(&parts).unwrap(), &bytes[..]);
        prop_assert_eq!(codec::decode(&bytes).unwrap(), transactions);
        for end in 0..bytes.len() {
            prop_assert!(codec::decode(&bytes[..end]).is_err());
        }
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), transactions in any_transactions(4), at in any::<prop::sample::Index>(), with in any::<u8>()) {
        let _ = codec::decode(&bytes);
        let _ = Restore::new().chunk(&bytes);
        let mut near = codec::encode(&transactions).unwrap();
        let at = at.index(near.len());
        near[at] ^= with;
        let _ = codec::decode(&near);
        let mut store = replica(0);
        store.apply(&transactions);
        for chunk in store.freeze().chunks(1 << 16) {
            let mut chunk = chunk.unwrap();
            let at = at % chunk.len();
            chunk[at] ^= with;
            let mut restore = Restore::new();
            if restore.chunk(&chunk).is_ok() {
                let _ = restore.finish(Limits::default());
            }
        }
    }

    #[test]
    fn a_node_is_never_overbooked_by_bindings(transactions in any_transactions(40)) {
        let mut store = replica(0);
        for transaction in &transactions {
            // Only bindings place pods here: what comes with a node name in it was not placed by us.
            let ops: Vec<Op> = transaction.ops.iter().filter(|op| !places(op)).cloned().collect();
            store.apply(&[Transaction { ops }]);
        }
        let view = store.view();
        for node in view.list("nodes", None) {
            let usage = view.usage_on(&node.key.name);
            prop_assert!(usage.cpu_milli <= 500 && usage.pods <= 3, "{usage:?}");
        }
    }
}

fn places(op: &Op) -> bool {
    match op {
        Op::Create { value, .. } => !value["spec"]["nodeName"].is_null(),
        Op::Update { .. } | Op::Status { .. } => true,
        _ => false,
    }
}
