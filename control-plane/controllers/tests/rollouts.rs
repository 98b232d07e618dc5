//! Whatever the parameters and however readiness comes: a rolling update keeps its bounds and arrives.

mod world;

use coracle_manifests::view::{int, is_deleting, is_finished, is_true, text};
use coracle_store::{Expect, Op};
use proptest::prelude::*;
use serde_json::{Value, json};
use world::{World, deployment, image};

#[derive(Debug, Clone)]
enum Step {
    /// One planner runs.
    Plan(usize),
    /// The n-th pod that can become ready does so.
    Ready(usize),
    /// The n-th pod that is ending ends.
    End(usize),
    /// The n-th pod that is not ready fails for good.
    Fail(usize),
    /// Another template.
    Image(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3_usize).prop_map(Step::Plan),
        4 => (0..8_usize).prop_map(Step::Ready),
        3 => (0..8_usize).prop_map(Step::End),
        1 => (0..8_usize).prop_map(Step::Fail),
        1 => (0..4_u8).prop_map(Step::Image),
    ]
}

fn amount() -> impl Strategy<Value = Value> {
    prop_oneof![(0..6_i64).prop_map(|number| json!(number)), (0..130_u32).prop_map(|share| json!(format!("{share}%")))]
}

/// The bounds as upstream rounds them, worked out anew.
fn bounds(replicas: i64, surge: &Value, unavailable: &Value) -> (i64, i64) {
    let exact = |value: &Value| match value.as_i64() {
        Some(number) => number as f64,
        None => text(value).trim_end_matches('%').parse::<f64>().unwrap() * replicas as f64 / 100.0,
    };
    let (surge, unavailable) = (exact(surge).ceil() as i64, exact(unavailable).floor() as i64);
    let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable };
    (replicas - unavailable.min(replicas), replicas + surge)
}

fn active(world: &World) -> i64 {
    world.list("pods").iter().filter(|pod| !is_deleting(pod.tree()) && !is_finished(pod.tree())).count() as i64
}

fn available(world: &World) -> i64 {
    let is = |pod: &Value| !is_deleting(pod) && !is_finished(pod) && is_true(pod, "Ready");
    world.list("pods").iter().filter(|pod| is(pod.tree())).count() as i64
}

fn take(world: &mut World, step: &Step) {
    let nth = |world: &World, number: usize, wanted: &dyn Fn(&Value) -> bool| {
        world.list("pods").into_iter().filter(|pod| wanted(pod.tree())).nth(number)
    };
    match step {
        Step::Plan(number) => drop(world.run(["deployment", "replicaset", "schedule"][*number])),
        Step::Ready(number) => {
            let can = |pod: &Value| {
                !text(&pod["spec"]["nodeName"]).is_empty()
                    && !is_true(pod, "Ready")
                    && !is_finished(pod)
                    && !is_deleting(pod)
            };
            if let Some(pod) = nth(world, *number, &can) {
                world.report(&pod, true);
            }
        }
        Step::End(number) => {
            if let Some(pod) = nth(world, *number, &is_deleting) {
                world.apply(Op::Delete { key: pod.key.clone(), expect: Expect::default() }).unwrap();
            }
        }
        Step::Fail(number) => {
            if let Some(pod) = nth(world, *number, &|pod| !is_true(pod, "Ready") && !is_finished(pod)) {
                world.status(&pod, json!({"phase": "Failed"}));
            }
        }
        Step::Image(tag) => world.edit("deployments.apps", "web", image(&tag.to_string())),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn a_rolling_update_keeps_its_bounds_and_arrives(
        replicas in 0..9_i64,
        surge in amount(),
        unavailable in amount(),
        steps in proptest::collection::vec(step(), 0..80),
    ) {
        let mut world = World::with_nodes(&["a", "b"]);
        let mut value = deployment("web", replicas);
        value["spec"]["strategy"] = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}});
        world.create(value);
        world.run_to_rest();
        let (least, most) = bounds(replicas, &surge, &unavailable);
        prop_assert_eq!(available(&world), replicas);
        world.edit("deployments.apps", "web", image("new"));
        for (index, step) in steps.iter().enumerate() {
            take(&mut world, step);
            prop_assert!(available(&world) >= least, "after step {}: {} available, at least {}", index, available(&world), least);
            prop_assert!(active(&world) <= most, "after step {}: {} pods, at most {}", index, active(&world), most);
        }
        // Then everything works: it arrives, and keeps its bounds on the way.
        for _ in 0..100 {
            world.round();
            prop_assert!(available(&world) >= least && active(&world) <= most);
            world.agents();
        }
        world.run_to_rest();
        let tree = world.tree("deployments.apps", "web");
        let image = &tree["spec"]["template"]["spec"]["containers"][0]["image"];
        let pods = world.list("pods");
        let running: Vec<_> = pods.iter().filter(|pod| !is_finished(pod.tree())).collect();
        prop_assert_eq!(running.len() as i64, replicas);
        prop_assert!(running.iter().all(|pod| pod.tree()["spec"]["containers"][0]["image"] == *image));
        prop_assert_eq!(int(&tree["status"]["availableReplicas"], 0), replicas);
        prop_assert!(is_true(&tree, "Available") && is_true(&tree, "Progressing"));
        prop_assert!(world.round().is_empty(), "at rest nothing is planned");
    }

    #[test]
    fn any_change_of_size_template_and_pause_arrives(
        changes in proptest::collection::vec((0..12_i64, 0..3_u8, any::<bool>(), 0..4_usize), 1..8),
    ) {
        let mut world = World::with_nodes(&["a", "b"]);
        world.create(deployment("web", 3));
        for (replicas, tag, paused, rounds) in changes {
            world.edit("deployments.apps", "web", |value| {
                value["spec"]["replicas"] = json!(replicas);
                value["spec"]["paused"] = json!(paused);
                image(&tag.to_string())(value);
            });
            for _ in 0..rounds {
                world.round();
                world.agents();
            }
        }
        world.edit("deployments.apps", "web", |value| value["spec"]["paused"] = json!(false));
        world.run_to_rest();
        let tree = world.tree("deployments.apps", "web");
        let replicas = int(&tree["spec"]["replicas"], 0);
        prop_assert_eq!(world.list("pods").len() as i64, replicas);
        prop_assert_eq!(int(&tree["status"]["updatedReplicas"], 0), replicas);
        prop_assert_eq!(int(&tree["status"]["observedGeneration"], 0), int(&tree["metadata"]["generation"], -1));
        prop_assert!(world.round().is_empty());
    }
}
