//! Whatever happens to pods and nodes: StatefulSets and DaemonSets keep their bounds, and arrive when all is well again.

mod world;

use std::collections::{BTreeMap, BTreeSet};

use coracle_manifests::view::{int, is_deleting, is_finished, is_true, text};
use coracle_store::{Expect, Op};
use proptest::prelude::*;
use serde_json::{Value, json};
use world::{World, image, set, stateful};

const NODES: [&str; 3] = ["a", "b", "c"];

#[derive(Debug, Clone)]
enum Step {
    /// The planners of this kind and the scheduler run.
    Plan,
    /// The n-th pod that can become ready does so.
    Ready(usize),
    /// The n-th pod is not ready any more.
    Unready(usize),
    /// The n-th pod that is ending ends.
    End(usize),
    /// The n-th pod fails for good.
    Fail(usize),
    /// Somebody deletes the n-th pod.
    Delete(usize),
    /// Another template.
    Image(u8),
    /// Another size; of nodes: one is cordoned or opened.
    Size(i64),
    /// Time passes.
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => Just(Step::Plan),
        6 => (0..8_usize).prop_map(Step::Ready),
        1 => (0..8_usize).prop_map(Step::Unready),
        4 => (0..8_usize).prop_map(Step::End),
        1 => (0..8_usize).prop_map(Step::Fail),
        1 => (0..8_usize).prop_map(Step::Delete),
        1 => (0..3_u8).prop_map(Step::Image),
        1 => (0..6_i64).prop_map(Step::Size),
        1 => Just(Step::Wait),
    ]
}

fn is_live(pod: &Value) -> bool {
    !is_deleting(pod) && !is_finished(pod)
}

fn is_well(pod: &Value) -> bool {
    is_live(pod) && is_true(pod, "Ready")
}

fn nth(world: &World, number: usize, wanted: impl Fn(&Value) -> bool) -> Option<std::sync::Arc<coracle_store::Object>> {
    world.list("pods").into_iter().filter(|pod| wanted(pod.tree())).nth(number)
}

/// Everything but the planners and the size.
fn take(world: &mut World, step: &Step, resource: &str) {
    let placed = |pod: &Value| !text(&pod["spec"]["nodeName"]).is_empty();
    match step {
        Step::Ready(number) => {
            if let Some(pod) = nth(world, *number, |pod| placed(pod) && is_live(pod) && !is_true(pod, "Ready")) {
                world.report(&pod, true);
            }
        }
        Step::Unready(number) => {
            if let Some(pod) = nth(world, *number, is_well) {
                world.report(&pod, false);
            }
        }
        Step::End(number) => {
            if let Some(pod) = nth(world, *number, is_deleting) {
                world.apply(Op::Delete { key: pod.key.clone(), expect: Expect::default() }).unwrap();
            }
        }
        Step::Fail(number) => {
            if let Some(pod) = nth(world, *number, |pod| is_live(pod) && !is_true(pod, "Ready")) {
                world.status(&pod, json!({"phase": "Failed"}));
            }
        }
        Step::Delete(number) => {
            if let Some(pod) = nth(world, *number, |pod| placed(pod) && is_live(pod)) {
                let at = json!("2026-11-26T12:00:00Z");
                world.edit("pods", &pod.key.name, |value| value["metadata"]["deletionTimestamp"] = at);
            }
        }
        Step::Image(tag) => world.edit(resource, "web", image(&tag.to_string())),
        Step::Wait => world.now += 7_000,
        Step::Plan | Step::Size(_) => {}
    }
}

/// What every pod carries of its identity is right, and no name is there twice (the store keeps that).
fn identities(world: &World) -> Result<(), TestCaseError> {
    for pod in world.list("pods") {
        let labels = &pod.tree()["metadata"]["labels"];
        prop_assert_eq!(&labels["statefulset.kubernetes.io/pod-name"], &json!(&*pod.key.name));
        prop_assert_eq!(&pod.tree()["spec"]["hostname"], &json!(&*pod.key.name));
    }
    Ok(())
}

/// What a plan may do to a StatefulSet of `size` pods, of which some were well before it: `before` and `after` by name.
fn check_plan(
    before: &BTreeMap<String, Value>,
    world: &World,
    (size, ordered, unavailable): (i64, bool, i64),
) -> Result<(), TestCaseError> {
    let after: BTreeMap<String, Value> =
        world.list("pods").iter().map(|pod| (pod.key.name.to_string(), (**pod.tree()).clone())).collect();
    let ordinal = |name: &str| name.rsplit('-').next().and_then(|digits| digits.parse::<i64>().ok()).unwrap();
    let made: BTreeSet<i64> =
        after.keys().filter(|name| !before.contains_key(*name)).map(|name| ordinal(name)).collect();
    let ended: BTreeSet<i64> = before
        .iter()
        .filter(|(name, pod)| is_live(pod) && after.get(*name).is_none_or(is_deleting))
        .map(|(name, _)| ordinal(name))
        .collect();
    let well = |number: i64| before.get(&format!("web-{number}")).is_some_and(is_well);
    prop_assert!(made.iter().all(|number| *number < size), "{:?} were made of {}", made, size);
    let rolled: Vec<i64> = ended.iter().copied().filter(|number| *number < size && well(*number)).collect();
    let missing = (0..size).filter(|number| !well(*number)).count() as i64;
    prop_assert!(
        rolled.is_empty() || missing + rolled.len() as i64 <= unavailable,
        "{:?} were ended while {} were missing",
        rolled,
        missing
    );
    if ordered {
        prop_assert!(made.len() <= 1, "{:?} were made at once", made);
        let highest = made.iter().copied().max().unwrap_or(0);
        prop_assert!((0..highest).all(well), "{:?} was made before its predecessors were well", made);
        let beyond: Vec<i64> = ended.iter().copied().filter(|number| *number >= size).collect();
        prop_assert!(beyond.len() <= 1, "{:?} went at once", beyond);
        prop_assert!(ended.is_empty() || (0..size).all(well), "{:?} went while a pod was not well", ended);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_stateful_set_keeps_its_order_and_arrives(
        replicas in 0..6_i64,
        parallel in any::<bool>(),
        unavailable in 1..4_i64,
        steps in proptest::collection::vec(step(), 0..80),
    ) {
        let mut world = World::with_nodes(&NODES);
        let policy = if parallel { "Parallel" } else { "OrderedReady" };
        world.create(stateful("web", replicas, json!({
            "podManagementPolicy": policy,
            "updateStrategy": {"rollingUpdate": {"maxUnavailable": unavailable}},
        })));
        let mut size = replicas;
        for step in &steps {
            match step {
                Step::Plan => {
                    let before = world.list("pods").iter().map(|pod| (pod.key.name.to_string(), (**pod.tree()).clone())).collect();
                    world.run("statefulset");
                    check_plan(&before, &world, (size, !parallel, unavailable))?;
                    world.run("schedule");
                }
                Step::Size(wanted) => {
                    size = *wanted;
                    world.edit("statefulsets.apps", "web", |value| value["spec"]["replicas"] = json!(size));
                }
                step => take(&mut world, step, "statefulsets.apps"),
            }
            identities(&world)?;
        }
        world.now += 10_000;
        world.run_to_rest();
        let tree = world.tree("statefulsets.apps", "web");
        let names: Vec<String> = world.list("pods").iter().map(|pod| pod.key.name.to_string()).collect();
        prop_assert_eq!(names, (0..size).map(|number| format!("web-{number}")).collect::<Vec<_>>());
        let image = &tree["spec"]["template"]["spec"]["containers"][0]["image"];
        prop_assert!(world.list("pods").iter().all(|pod| pod.tree()["spec"]["containers"][0]["image"] == *image));
        for field in ["readyReplicas", "updatedReplicas", "currentReplicas", "replicas", "availableReplicas"] {
            prop_assert_eq!(int(&tree["status"][field], 0), size, "{}", field);
        }
        prop_assert_eq!(&tree["status"]["currentRevision"], &tree["status"]["updateRevision"]);
        prop_assert!(world.list("controllerrevisions.apps").len() <= 11);
        prop_assert!(world.round().is_empty(), "at rest nothing is planned");
    }

    #[test]
    fn a_daemon_set_keeps_its_bounds_and_arrives(
        surge in 0..3_i64,
        unavailable in 1..4_i64,
        steps in proptest::collection::vec(step(), 0..80),
    ) {
        let mut world = World::with_nodes(&["a", "b", "c", "d"]);
        let unavailable = if surge > 0 { 0 } else { unavailable };
        world.create(set("DaemonSet", "web", json!({
            "updateStrategy": {"rollingUpdate": {"maxUnavailable": unavailable, "maxSurge": surge}},
        })));
        for step in &steps {
            match step {
                Step::Plan => {
                    let well = nodes_with(&world, is_well);
                    let doubled = doubled(&world);
                    world.run("daemonset");
                    world.run("schedule");
                    // What one plan takes from the nodes that were served, and how many it doubles.
                    let lost = well.difference(&nodes_with(&world, is_well)).count() as i64;
                    let missing = 4 - well.len() as i64;
                    prop_assert!(lost == 0 || lost + missing <= unavailable, "{} lost, {} missing", lost, missing);
                    let more = self::doubled(&world).difference(&doubled).filter(|node| well.contains(*node)).count() as i64;
                    prop_assert!(more <= surge, "{} nodes have two at once", more);
                    let most = if surge > 0 { 2 } else { 1 };
                    prop_assert!(each_has_at_most(&world, most), "a node has more than {} pods", most);
                }
                Step::Size(number) => {
                    let name = ["a", "b", "c", "d"][(number % 4) as usize];
                    world.edit("nodes", name, |value| {
                        value["spec"]["unschedulable"] = json!(value["spec"]["unschedulable"] != true);
                    });
                }
                step => take(&mut world, step, "daemonsets.apps"),
            }
        }
        world.now += 10_000;
        world.run_to_rest();
        let tree = world.tree("daemonsets.apps", "web");
        prop_assert_eq!(nodes_with(&world, is_well).len(), 4);
        prop_assert_eq!(world.list("pods").len(), 4);
        let image = &tree["spec"]["template"]["spec"]["containers"][0]["image"];
        prop_assert!(world.list("pods").iter().all(|pod| pod.tree()["spec"]["containers"][0]["image"] == *image));
        for field in ["desiredNumberScheduled", "currentNumberScheduled", "updatedNumberScheduled", "numberReady", "numberAvailable"] {
            prop_assert_eq!(int(&tree["status"][field], 0), 4, "{}", field);
        }
        prop_assert!(world.round().is_empty(), "at rest nothing is planned");
    }
}

fn nodes_with(world: &World, wanted: impl Fn(&Value) -> bool) -> BTreeSet<String> {
    let pods = world.list("pods");
    pods.iter().filter(|pod| wanted(pod.tree())).map(|pod| text(&pod.tree()["spec"]["nodeName"]).to_owned()).collect()
}

fn live(world: &World) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for pod in world.list("pods").iter().filter(|pod| is_live(pod.tree())) {
        *counts.entry(text(&pod.tree()["spec"]["nodeName"]).to_owned()).or_default() += 1;
    }
    counts
}

/// Nodes with more than one live pod.
fn doubled(world: &World) -> BTreeSet<String> {
    live(world).into_iter().filter(|(_, count)| *count > 1).map(|(node, _)| node).collect()
}

fn each_has_at_most(world: &World, most: usize) -> bool {
    live(world).values().all(|count| *count <= most)
}
