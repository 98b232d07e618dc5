//! Stories of Deployments, told by the commands the planners give.

mod world;

use coracle_manifests::view::{condition, int, is_deleting, is_true, list, text};
use serde_json::{Value, json};
use world::{World, deployment, image};

fn sizes(world: &World) -> Vec<(String, i64)> {
    let mut sets: Vec<_> = world.list("replicasets.apps");
    sets.sort_by_key(|set| {
        text(&set.tree()["metadata"]["annotations"]["deployment.kubernetes.io/revision"]).to_owned()
    });
    sets.iter()
        .map(|set| {
            let revision = text(&set.tree()["metadata"]["annotations"]["deployment.kubernetes.io/revision"]).to_owned();
            (revision, int(&set.tree()["spec"]["replicas"], -1))
        })
        .collect()
}

fn owned(revision: &str, size: i64) -> (String, i64) {
    (revision.to_owned(), size)
}

fn progressing(world: &World) -> (String, String) {
    let tree = world.tree("deployments.apps", "web");
    let condition = condition(&tree, "Progressing").cloned().unwrap_or(Value::Null);
    (text(&condition["status"]).to_owned(), text(&condition["reason"]).to_owned())
}

#[test]
fn a_new_deployment_comes_up() {
    let mut world = World::with_nodes(&["a", "b"]);
    world.create(deployment("web", 3));
    let told = world.settle();
    insta::assert_snapshot!(told.join("\n"));
    world.run_to_rest();
    let tree = world.tree("deployments.apps", "web");
    insta::assert_snapshot!(serde_json::to_string_pretty(&tree["status"]).unwrap());
    assert_eq!(tree["metadata"]["generation"], 1, "annotations are no new generation");
    let set = &world.list("replicasets.apps")[0];
    insta::assert_snapshot!(serde_json::to_string_pretty(&**set.tree()).unwrap());
    let pod = &world.list("pods")[0];
    assert_eq!(pod.tree()["metadata"]["labels"], set.tree()["spec"]["selector"]["matchLabels"]);
    assert_eq!(pod.tree()["metadata"]["ownerReferences"][0]["uid"], *set.uid);
}

#[test]
fn a_rolling_update_step_by_step() {
    let mut world = World::with_nodes(&["a", "b"]);
    world.create(deployment("web", 4));
    world.run_to_rest();
    world.edit("deployments.apps", "web", image("2"));
    let mut seen = vec![sizes(&world)];
    for _ in 0..40 {
        world.round();
        if seen.last() != Some(&sizes(&world)) {
            seen.push(sizes(&world));
        }
        // One pod a round becomes ready.
        let next = world.list("pods").into_iter().find(|pod| {
            !is_deleting(pod.tree())
                && condition(pod.tree(), "Ready").is_none()
                && !text(&pod.tree()["spec"]["nodeName"]).is_empty()
        });
        if let Some(pod) = next {
            world.report(&pod, true);
        }
        for pod in world.list("pods").into_iter().filter(|pod| is_deleting(pod.tree())) {
            let op = coracle_store::Op::Delete { key: pod.key.clone(), expect: coracle_store::Expect::default() };
            world.apply(op).unwrap();
        }
    }
    insta::assert_snapshot!(seen.iter().map(|sizes| format!("{sizes:?}")).collect::<Vec<_>>().join("\n"));
    assert_eq!(progressing(&world), ("True".into(), "NewReplicaSetAvailable".into()));
}

#[test]
fn undo_brings_the_old_replica_set_back_under_a_new_revision() {
    let mut world = World::with_nodes(&["a"]);
    world.create(deployment("web", 2));
    world.run_to_rest();
    world.edit("deployments.apps", "web", image("2"));
    world.run_to_rest();
    assert_eq!(sizes(&world), [owned("1", 0), owned("2", 2)]);
    world.edit("deployments.apps", "web", image("1"));
    world.run_to_rest();
    assert_eq!(sizes(&world), [owned("2", 0), owned("3", 2)]);
    let tree = world.tree("deployments.apps", "web");
    assert_eq!(tree["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "3");
    let back = world.list("replicasets.apps").into_iter().find(|set| int(&set.tree()["spec"]["replicas"], 0) == 2);
    let annotations = back.unwrap().tree()["metadata"]["annotations"].clone();
    assert_eq!(annotations["deployment.kubernetes.io/revision-history"], "1");
}

#[test]
fn a_rollout_that_cannot_go_on_stops_and_says_so() {
    let mut world = World::with_nodes(&["a"]);
    let mut value = deployment("web", 4);
    value["spec"]["progressDeadlineSeconds"] = json!(60);
    world.create(value);
    world.run_to_rest();
    world.edit("deployments.apps", "web", image("broken"));
    world.settle();
    assert_eq!(sizes(&world), [owned("1", 3), owned("2", 2)], "a quarter may be missing, a quarter may be added");
    assert_eq!(progressing(&world).0, "True");
    world.now += 59_000;
    world.settle();
    assert_eq!(progressing(&world).0, "True");
    world.now += 3_000;
    world.settle();
    assert_eq!(progressing(&world), ("False".into(), "ProgressDeadlineExceeded".into()));
    // A repair goes on from there.
    world.edit("deployments.apps", "web", image("3"));
    world.run_to_rest();
    assert_eq!(progressing(&world), ("True".into(), "NewReplicaSetAvailable".into()));
    assert_eq!(sizes(&world), [owned("1", 0), owned("2", 0), owned("3", 4)]);
}

#[test]
fn scaling_during_a_rollout_is_shared_out() {
    let mut world = World::with_nodes(&["a", "b"]);
    let mut value = deployment("web", 10);
    value["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}});
    world.create(value);
    world.run_to_rest();
    world.edit("deployments.apps", "web", image("2"));
    world.settle();
    // Upstream's documentation has this example: 8 old and 5 new; to 15: 3 more for the old, 2 for the new.
    assert_eq!(sizes(&world), [owned("1", 8), owned("2", 5)]);
    world.edit("deployments.apps", "web", |value| value["spec"]["replicas"] = json!(15));
    world.run("deployment");
    assert_eq!(sizes(&world), [owned("1", 11), owned("2", 7)]);
    world.run_to_rest();
    assert_eq!(sizes(&world), [owned("1", 0), owned("2", 15)]);
    world.edit("deployments.apps", "web", |value| value["spec"]["replicas"] = json!(0));
    world.run_to_rest();
    assert!(world.list("pods").is_empty());
    let status = world.tree("deployments.apps", "web")["status"].clone();
    assert!(status.get("replicas").is_none() && status.get("availableReplicas").is_none(), "{status}");
}

#[test]
fn recreate_waits_for_the_last_old_pod() {
    let mut world = World::with_nodes(&["a"]);
    let mut value = deployment("web", 2);
    value["spec"]["strategy"] = json!({"type": "Recreate"});
    world.create(value);
    world.run_to_rest();
    world.edit("deployments.apps", "web", image("2"));
    world.settle();
    let pods = world.list("pods");
    assert!(pods.len() == 2 && pods.iter().all(|pod| is_deleting(pod.tree())), "the old ones end, no new one is made");
    world.run_to_rest();
    assert_eq!(sizes(&world), [owned("1", 0), owned("2", 2)]);
}

#[test]
fn a_rollout_that_hangs_goes_on_as_recreate_with_another_size() {
    let mut world = World::with_nodes(&["a"]);
    world.create(deployment("web", 4));
    world.run_to_rest();
    // It hangs half way: the new pods never get ready.
    world.edit("deployments.apps", "web", image("2"));
    world.settle();
    assert!(sizes(&world).iter().filter(|size| size.1 > 0).count() == 2, "{:?}", sizes(&world));
    world.edit("deployments.apps", "web", |value| {
        value["spec"]["strategy"] = json!({"type": "Recreate"});
        value["spec"]["replicas"] = json!(3);
    });
    world.run_to_rest();
    assert_eq!(sizes(&world), [owned("1", 0), owned("2", 3)]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = World::with_nodes(&["a"]);
    world.create(deployment("web", 2));
    world.run_to_rest();
    world.edit("deployments.apps", "web", |value| {
        value["spec"]["paused"] = json!(true);
        value["spec"]["replicas"] = json!(3);
        image("2")(value);
    });
    world.run_to_rest();
    assert_eq!(sizes(&world), [owned("1", 3)]);
    assert_eq!(progressing(&world), ("Unknown".into(), "DeploymentPaused".into()));
    world.edit("deployments.apps", "web", |value| value["spec"]["paused"] = json!(false));
    world.run_to_rest();
    assert_eq!(sizes(&world), [owned("1", 0), owned("2", 3)]);
    assert_eq!(progressing(&world), ("True".into(), "NewReplicaSetAvailable".into()));
}

#[test]
fn history_is_kept_as_long_as_asked() {
    let mut world = World::with_nodes(&["a"]);
    let mut value = deployment("web", 1);
    value["spec"]["revisionHistoryLimit"] = json!(2);
    world.create(value);
    for tag in ["1", "2", "3", "4", "5"] {
        world.edit("deployments.apps", "web", image(tag));
        world.run_to_rest();
    }
    assert_eq!(sizes(&world), [owned("3", 0), owned("4", 0), owned("5", 1)]);
}

#[test]
fn a_pod_counts_as_available_after_its_time() {
    let mut world = World::with_nodes(&["a"]);
    let mut value = deployment("web", 1);
    value["spec"]["minReadySeconds"] = json!(10);
    world.create(value);
    world.run_to_rest();
    let available = |world: &World| int(&world.tree("deployments.apps", "web")["status"]["availableReplicas"], 0);
    assert_eq!(available(&world), 0);
    world.now += 10_000;
    world.settle();
    assert_eq!(available(&world), 1);
    let set = &world.list("replicasets.apps")[0];
    assert_eq!(set.tree()["spec"]["minReadySeconds"], 10);
}

#[test]
fn a_taken_name_is_no_obstacle() {
    let mut world = World::with_nodes(&["a"]);
    world.create(deployment("web", 1));
    world.settle();
    let set = world.list("replicasets.apps")[0].clone();
    // Another cluster's set of the same name, with other labels.
    world.delete("deployments.apps", "web");
    world.settle();
    let mut other = (**set.tree()).clone();
    other["metadata"] = json!({"name": &*set.key.name, "labels": {"app": "other"}});
    other["spec"] = json!({
        "replicas": 0,
        "selector": {"matchLabels": {"app": "other"}},
        "template": {"metadata": {"labels": {"app": "other"}}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}},
    });
    world.create(other);
    world.create(deployment("web", 1));
    world.run_to_rest();
    let status = world.tree("deployments.apps", "web")["status"].clone();
    assert_eq!((&status["collisionCount"], &status["availableReplicas"]), (&json!(1), &json!(1)));
}

#[test]
fn a_replica_set_without_owner_is_adopted_with_its_pods() {
    let mut world = World::with_nodes(&["a"]);
    world.create(deployment("web", 2));
    world.run_to_rest();
    let pods: Vec<_> = world.list("pods").iter().map(|pod| pod.uid.clone()).collect();
    // `kubectl delete --cascade=orphan`, then the same file again.
    let set = world.list("replicasets.apps")[0].key.name.clone();
    world.edit("replicasets.apps", &set, |value| {
        drop(value["metadata"].as_object_mut().unwrap().remove("ownerReferences"))
    });
    world.delete("deployments.apps", "web");
    world.settle();
    world.create(deployment("web", 2));
    world.run_to_rest();
    assert_eq!(world.list("replicasets.apps").len(), 1);
    assert_eq!(world.list("pods").iter().map(|pod| pod.uid.clone()).collect::<Vec<_>>(), pods);
    assert_eq!(list(&world.tree("replicasets.apps", &set)["metadata"]["ownerReferences"]).len(), 1);
}

#[test]
fn broken_old_replicas_go_first_but_no_more_than_the_new_ones_leave_room_for() {
    let mut world = World::with_nodes(&["a"]);
    let mut value = deployment("web", 4);
    value["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}});
    world.create(value);
    world.run_to_rest();
    for pod in world.list("pods").iter().take(2) {
        world.report(pod, false);
    }
    world.edit("deployments.apps", "web", image("2"));
    world.settle();
    // The new ones are not available yet: with both broken ones gone there would be five pods to wait for, two of them good.
    assert_eq!(sizes(&world), [owned("1", 3), owned("2", 2)]);
    let good = world.list("pods").iter().filter(|pod| !is_deleting(pod.tree()) && is_true(pod.tree(), "Ready")).count();
    assert_eq!(good, 2, "none of the good ones went");
    world.run_to_rest();
    assert_eq!(sizes(&world), [owned("1", 0), owned("2", 4)]);
}
