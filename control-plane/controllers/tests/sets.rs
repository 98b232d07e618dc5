//! Stories of the planners whose pods are told apart: StatefulSets, DaemonSets, and the older ReplicationController.

mod world;

use coracle_manifests::view::{int, is_deleting, list, text};
use coracle_store::{Expect, Op};
use serde_json::{Value, json};
use world::{World, deployment, image, set, stateful};

const STS: &str = "statefulsets.apps";
const DS: &str = "daemonsets.apps";
const REVISIONS: &str = "controllerrevisions.apps";

/// Names of the pods, those that are ending with a `-` before them.
fn pods(world: &World) -> Vec<String> {
    let shown = |going: bool, name: &str| if going { format!("-{name}") } else { name.to_owned() };
    world.list("pods").iter().map(|pod| shown(is_deleting(pod.tree()), &pod.key.name)).collect()
}

fn ready(world: &mut World, name: &str) {
    let pod = world.get("pods", name).unwrap();
    world.report(&pod, true);
}

fn unready(world: &mut World, name: &str) {
    let pod = world.get("pods", name).unwrap();
    world.report(&pod, false);
}

/// The node of a pod confirms its end.
fn ended(world: &mut World, name: &str) {
    let pod = world.get("pods", name).unwrap();
    assert!(is_deleting(pod.tree()), "{name} was not asked to end");
    world.apply(Op::Delete { key: pod.key.clone(), expect: Expect::default() }).unwrap();
}

/// Image tags of the pods, in the order of their names.
fn tags(world: &World) -> String {
    let tag =
        |pod: &Value| text(&pod["spec"]["containers"][0]["image"]).rsplit(':').next().unwrap_or_default().to_owned();
    world.list("pods").iter().map(|pod| tag(pod.tree())).collect::<Vec<_>>().join(" ")
}

/// Name and number of each revision, by number.
fn revisions(world: &World) -> Vec<(i64, String)> {
    let mut all: Vec<(i64, String)> = world
        .list(REVISIONS)
        .iter()
        .map(|revision| (int(&revision.tree()["revision"], 0), revision.key.name.to_string()))
        .collect();
    all.sort();
    all
}

fn lost(world: &mut World, node: &str) {
    let beat = world.beats.get_mut(node).unwrap();
    (beat.age_ms, beat.granted_ms) = (60_000, 6_999);
    world.now += 60_000;
    world.settle();
    world.now += 3_000;
    world.settle();
}

mod statefulset {
    use super::*;

    #[test]
    fn pods_come_one_after_the_other_and_are_known_by_name() {
        let mut world = World::with_nodes(&["a", "b"]);
        world.create(stateful("web", 3, json!({})));
        world.settle();
        assert_eq!(pods(&world), ["web-0"]);
        ready(&mut world, "web-0");
        world.settle();
        assert_eq!(pods(&world), ["web-0", "web-1"]);
        // The second is ready, and the first no more: nothing goes on.
        ready(&mut world, "web-1");
        unready(&mut world, "web-0");
        world.settle();
        assert_eq!(pods(&world), ["web-0", "web-1"]);
        ready(&mut world, "web-0");
        world.run_to_rest();
        assert_eq!(pods(&world), ["web-0", "web-1", "web-2"]);
        let (pod, set) = (world.tree("pods", "web-1"), world.tree(STS, "web"));
        let revision = &set["status"]["updateRevision"];
        assert_eq!(
            pod["metadata"]["labels"],
            json!({
                "app": "web", "apps.kubernetes.io/pod-index": "1", "statefulset.kubernetes.io/pod-name": "web-1",
                "controller-revision-hash": revision,
            })
        );
        assert_eq!((&pod["spec"]["hostname"], &pod["spec"]["subdomain"]), (&json!("web-1"), &json!("db")));
        assert_eq!(
            set["status"],
            json!({
                "observedGeneration": 1, "replicas": 3, "readyReplicas": 3, "availableReplicas": 3, "currentReplicas": 3,
                "updatedReplicas": 3, "currentRevision": revision, "updateRevision": revision, "collisionCount": 0,
            })
        );
        let events: Vec<String> =
            world.list("events").iter().map(|event| text(&event.tree()["message"]).to_owned()).collect();
        assert!(events.contains(&"create Pod web-2 in StatefulSet web successful".to_owned()), "{events:?}");
        assert!(world.round().is_empty());
    }

    #[test]
    fn it_shrinks_from_the_top_one_at_a_time() {
        let mut world = World::with_nodes(&["a"]);
        world.create(stateful("web", 4, json!({})));
        world.run_to_rest();
        world.edit(STS, "web", |value| value["spec"]["replicas"] = json!(1));
        world.settle();
        assert_eq!(pods(&world), ["web-0", "web-1", "web-2", "-web-3"]);
        ended(&mut world, "web-3");
        // One that is to stay is not ready: the others wait.
        unready(&mut world, "web-0");
        world.settle();
        assert_eq!(pods(&world), ["web-0", "web-1", "web-2"]);
        ready(&mut world, "web-0");
        world.settle();
        assert_eq!(pods(&world), ["web-0", "web-1", "-web-2"]);
        world.run_to_rest();
        assert_eq!(pods(&world), ["web-0"]);
    }

    #[test]
    fn in_parallel_all_come_and_go_at_once() {
        let mut world = World::with_nodes(&["a", "b"]);
        world.create(stateful("web", 3, json!({"podManagementPolicy": "Parallel", "ordinals": {"start": 5}})));
        world.settle();
        assert_eq!(pods(&world), ["web-5", "web-6", "web-7"]);
        world.run_to_rest();
        world.edit(STS, "web", |value| value["spec"]["replicas"] = json!(1));
        world.settle();
        assert_eq!(pods(&world), ["web-5", "-web-6", "-web-7"]);
        world.run_to_rest();
        world.edit(STS, "web", |value| value["spec"]["ordinals"]["start"] = json!(4));
        world.run_to_rest();
        assert_eq!(pods(&world), ["web-4"]);
    }

    #[test]
    fn one_broken_pod_holds_an_ordered_update() {
        let mut world = World::with_nodes(&["a"]);
        world.create(stateful("web", 3, json!({})));
        world.run_to_rest();
        world.edit(STS, "web", image("2"));
        world.settle();
        assert_eq!(pods(&world), ["web-0", "web-1", "-web-2"]);
        ended(&mut world, "web-2");
        world.settle();
        assert_eq!(
            (pods(&world), tags(&world)),
            (vec!["web-0".into(), "web-1".into(), "web-2".into()], "1 1 2".into())
        );
        unready(&mut world, "web-2");
        world.settle();
        assert_eq!(tags(&world), "1 1 2", "the new one is not ready: the others keep what works");
        let status = world.tree(STS, "web")["status"].clone();
        assert_eq!((&status["currentReplicas"], &status["updatedReplicas"]), (&json!(2), &json!(1)));
        assert_ne!(status["currentRevision"], status["updateRevision"]);
        ready(&mut world, "web-2");
        world.run_to_rest();
        assert_eq!(tags(&world), "2 2 2");
        let status = world.tree(STS, "web")["status"].clone();
        assert_eq!(status["currentRevision"], status["updateRevision"]);
    }

    #[test]
    fn a_partition_keeps_the_pods_below_it_as_they_are() {
        let mut world = World::with_nodes(&["a"]);
        let rolling = json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}});
        world.create(stateful("web", 4, rolling));
        world.run_to_rest();
        world.edit(STS, "web", image("2"));
        world.run_to_rest();
        assert_eq!(tags(&world), "1 1 2 2");
        // Also when they are made anew.
        let pod = world.get("pods", "web-0").unwrap();
        world.apply(Op::Delete { key: pod.key.clone(), expect: Expect::default() }).unwrap();
        world.run_to_rest();
        assert_eq!(tags(&world), "1 1 2 2");
        let status = world.tree(STS, "web")["status"].clone();
        assert_eq!((&status["currentReplicas"], &status["updatedReplicas"]), (&json!(2), &json!(2)));
        world.edit(STS, "web", |value| value["spec"]["updateStrategy"]["rollingUpdate"]["partition"] = json!(0));
        world.run_to_rest();
        assert_eq!(tags(&world), "2 2 2 2");
    }

    #[test]
    fn several_may_be_missing_where_that_is_said() {
        let mut world = World::with_nodes(&["a"]);
        let rolling =
            json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": "50%"}}, "podManagementPolicy": "Parallel"});
        world.create(stateful("web", 5, rolling));
        world.run_to_rest();
        world.edit(STS, "web", image("2"));
        world.settle();
        assert_eq!(pods(&world), ["web-0", "web-1", "web-2", "-web-3", "-web-4"], "half of five is two");
        // One of the old ones breaks: it goes too, for it is missing already.
        unready(&mut world, "web-0");
        world.settle();
        assert_eq!(pods(&world), ["-web-0", "web-1", "web-2", "-web-3", "-web-4"]);
        world.run_to_rest();
        assert_eq!(tags(&world), "2 2 2 2 2");
    }

    #[test]
    fn on_delete_waits_for_somebody_to_delete() {
        let mut world = World::with_nodes(&["a"]);
        world.create(stateful("web", 2, json!({"updateStrategy": {"type": "OnDelete"}})));
        world.run_to_rest();
        world.edit(STS, "web", image("2"));
        world.run_to_rest();
        assert_eq!(tags(&world), "1 1");
        let pod = world.get("pods", "web-1").unwrap();
        world.apply(Op::Delete { key: pod.key.clone(), expect: Expect::default() }).unwrap();
        world.run_to_rest();
        assert_eq!(tags(&world), "1 2");
    }

    #[test]
    fn ready_is_not_enough_while_it_must_last() {
        let mut world = World::with_nodes(&["a"]);
        world.create(stateful("web", 2, json!({"minReadySeconds": 10})));
        world.settle();
        ready(&mut world, "web-0");
        world.settle();
        assert_eq!(pods(&world), ["web-0"]);
        let status = world.tree(STS, "web")["status"].clone();
        assert_eq!((&status["readyReplicas"], &status["availableReplicas"]), (&json!(1), &json!(0)));
        world.now += 10_000;
        world.settle();
        assert_eq!(pods(&world), ["web-0", "web-1"]);
    }

    #[test]
    fn a_pod_that_has_run_to_its_end_is_made_anew() {
        let mut world = World::with_nodes(&["a"]);
        world.create(stateful("web", 1, json!({})));
        world.run_to_rest();
        let before = world.get("pods", "web-0").unwrap();
        world.status(&before, json!({"phase": "Failed"}));
        world.settle();
        assert_eq!(
            world.get("pods", "web-0").unwrap().uid,
            before.uid,
            "one that ends at once is not made anew for ever"
        );
        world.now += 5_000;
        world.run_to_rest();
        assert_ne!(world.get("pods", "web-0").unwrap().uid, before.uid);
        assert_eq!(world.tree(STS, "web")["status"]["readyReplicas"], 1);
    }

    #[test]
    fn the_same_template_is_the_same_revision() {
        let mut world = World::with_nodes(&["a"]);
        world.create(stateful("web", 1, json!({"revisionHistoryLimit": 2})));
        world.run_to_rest();
        let first = revisions(&world);
        assert_eq!(first.len(), 1);
        let held = world.tree(REVISIONS, &first[0].1);
        assert_eq!(held["metadata"]["labels"]["app"], "web", "by which kubectl finds it");
        assert_eq!(held["data"]["spec"]["template"]["$patch"], "replace");
        world.edit(STS, "web", |value| value["spec"]["replicas"] = json!(2));
        world.run_to_rest();
        assert_eq!(revisions(&world), first, "the size is no template");
        world.edit(STS, "web", image("2"));
        world.run_to_rest();
        assert_eq!(revisions(&world).iter().map(|(number, _)| *number).collect::<Vec<_>>(), [1, 2]);
        // Undone as kubectl does it: what the revision holds is merged into the object.
        let kind = coracle_manifests::kinds::by_word("sts").unwrap();
        world.edit(STS, "web", |value| {
            *value = coracle_manifests::patch::strategic(kind, value, &held["data"]).unwrap();
            coracle_manifests::default::apply(kind, value);
        });
        world.run_to_rest();
        assert_eq!((tags(&world), revisions(&world).len()), ("1 1".into(), 2));
        assert_eq!(revisions(&world)[1], (3, first[0].1.clone()), "the first is the newest again");
        for tag in ["3", "4", "5", "6"] {
            world.edit(STS, "web", image(tag));
            world.run_to_rest();
        }
        let numbers: Vec<i64> = revisions(&world).iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [5, 6, 7], "two beside the one that is used");
    }

    #[test]
    fn a_pod_of_a_lost_node_is_not_replaced_before_it_has_ended() {
        let mut world = World::with_nodes(&["a", "b"]);
        world.create(stateful("web", 1, json!({})));
        world.run_to_rest();
        let (uid, node) =
            (world.get("pods", "web-0").unwrap().uid.clone(), world.tree("pods", "web-0")["spec"]["nodeName"].clone());
        lost(&mut world, text(&node));
        assert_eq!(pods(&world), ["-web-0"], "it is asked to end");
        world.beats.get_mut(text(&node)).unwrap().granted_ms = 60_000;
        world.settle();
        assert_eq!(world.get("pods", "web-0").unwrap().uid, uid, "and holds its name until its node confirms");
        ended(&mut world, "web-0");
        world.run_to_rest();
        assert_ne!(world.tree("pods", "web-0")["spec"]["nodeName"], node);
    }

    #[test]
    fn a_fenced_pod_of_a_lost_node_moves_when_its_lease_has_run_out() {
        let mut world = World::with_nodes(&["a", "b"]);
        let mut value = stateful("web", 1, json!({}));
        value["spec"]["template"]["metadata"]["annotations"] = json!({"coracle.dev/fenced": "true"});
        world.create(value);
        world.run_to_rest();
        let (uid, node) =
            (world.get("pods", "web-0").unwrap().uid.clone(), world.tree("pods", "web-0")["spec"]["nodeName"].clone());
        lost(&mut world, text(&node));
        assert_eq!(world.get("pods", "web-0").unwrap().uid, uid, "its lease may still run");
        world.beats.get_mut(text(&node)).unwrap().granted_ms = 7_001;
        world.settle();
        assert_ne!(world.get("pods", "web-0").unwrap().uid, uid);
        assert_ne!(world.tree("pods", "web-0")["spec"]["nodeName"], node);
    }

    #[test]
    fn pods_and_revisions_of_another_life_are_taken_over() {
        let mut world = World::with_nodes(&["a"]);
        world.create(stateful("web", 2, json!({})));
        world.run_to_rest();
        let (uids, known) =
            (world.list("pods").iter().map(|pod| pod.uid.clone()).collect::<Vec<_>>(), revisions(&world));
        // Deleted with what it owns left behind.
        world.edit(STS, "web", |value| {
            value["metadata"]["deletionTimestamp"] = json!("2026-11-26T12:00:00Z");
            value["metadata"]["finalizers"] = json!(["orphan"]);
        });
        world.settle();
        assert!(world.get(STS, "web").is_none() && world.list("pods").len() == 2);
        assert!(world.tree("pods", "web-0")["metadata"].get("ownerReferences").is_none());
        world.create(stateful("web", 2, json!({})));
        world.run_to_rest();
        assert_eq!(world.list("pods").iter().map(|pod| pod.uid.clone()).collect::<Vec<_>>(), uids);
        assert_eq!(revisions(&world), known);
        let set = world.get(STS, "web").unwrap();
        for (resource, name) in [("pods", "web-1"), (REVISIONS, &*known[0].1)] {
            assert_eq!(world.tree(resource, name)["metadata"]["ownerReferences"][0]["uid"], *set.uid);
        }
        // One that does not match any more is let go, and its name is taken until it is away.
        world.edit("pods", "web-1", |value| value["metadata"]["labels"]["app"] = json!("other"));
        world.settle();
        let failure = world.tree(STS, "web")["status"]["conditions"][0].clone();
        assert_eq!((&failure["type"], &failure["reason"]), (&json!("ReplicaFailure"), &json!("FailedCreate")));
        assert!(text(&failure["message"]).contains("\"web-1\" already exists"), "{failure}");
        world.delete("pods", "web-1");
        world.run_to_rest();
        assert_eq!(pods(&world), ["web-0", "web-1"]);
        assert!(world.tree(STS, "web")["status"].get("conditions").is_none());
        // A label by which it is known is put right.
        world.edit("pods", "web-0", |value| value["metadata"]["labels"]["apps.kubernetes.io/pod-index"] = json!("7"));
        world.settle();
        assert_eq!(world.tree("pods", "web-0")["metadata"]["labels"]["apps.kubernetes.io/pod-index"], "0");
    }

    #[test]
    fn what_is_deleted_takes_its_own_along() {
        let mut world = World::with_nodes(&["a"]);
        world.create(stateful("web", 2, json!({})));
        world.run_to_rest();
        world.delete(STS, "web");
        world.run_to_rest();
        assert!(world.list("pods").is_empty() && world.list(REVISIONS).is_empty());
    }
}

mod daemonset {
    use super::*;

    /// `node:tag` of every pod that is not ending, sorted; `?` for one without a node.
    fn placed(world: &World) -> Vec<String> {
        let mut all: Vec<String> = world
            .list("pods")
            .iter()
            .filter(|pod| !is_deleting(pod.tree()))
            .map(|pod| {
                let spec = &pod.tree()["spec"];
                let node = spec["nodeName"].as_str().unwrap_or("?");
                format!("{node}:{}", text(&spec["containers"][0]["image"]).rsplit(':').next().unwrap_or_default())
            })
            .collect();
        all.sort();
        all
    }

    fn taint(world: &mut World, node: &str, effect: &str) {
        world.edit("nodes", node, |value| value["spec"]["taints"] = json!([{"key": "own", "effect": effect}]));
    }

    fn going(world: &World) -> usize {
        world.list("pods").iter().filter(|pod| is_deleting(pod.tree())).count()
    }

    #[test]
    fn one_pod_on_each_node_that_is_eligible() {
        let mut world = World::with_nodes(&["a", "b"]);
        world.create(set("DaemonSet", "log", json!({})));
        world.run_to_rest();
        assert_eq!(placed(&world), ["a:1", "b:1"]);
        let pod = world.list("pods")[0].clone();
        let required =
            &pod.tree()["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        let name = json!({"key": "metadata.name", "operator": "In", "values": [pod.tree()["spec"]["nodeName"]]});
        assert_eq!(*required, json!({"nodeSelectorTerms": [{"matchFields": [name]}]}));
        let kind = coracle_manifests::kinds::by_word("pod").unwrap();
        assert!(coracle_manifests::check::all("Pod", pod.tree()).problems.is_empty(), "it can be labelled");
        assert!(coracle_manifests::validate::update(kind, pod.tree(), pod.tree()).is_empty());
        assert_eq!(
            world.tree(DS, "log")["status"],
            json!({
                "observedGeneration": 1, "desiredNumberScheduled": 2, "currentNumberScheduled": 2, "numberMisscheduled": 0,
                "numberReady": 2, "numberAvailable": 2, "updatedNumberScheduled": 2,
            })
        );
        // One joins, one is cordoned and joins all the same, one is tainted.
        for name in ["c", "d", "e"] {
            world.node(name, "4", "8Gi");
        }
        world.edit("nodes", "d", |value| value["spec"]["unschedulable"] = json!(true));
        taint(&mut world, "e", "NoSchedule");
        world.run_to_rest();
        assert_eq!(placed(&world), ["a:1", "b:1", "c:1", "d:1"]);
        // A taint that comes later ends what does not tolerate it only when it says so.
        taint(&mut world, "a", "NoSchedule");
        taint(&mut world, "b", "NoExecute");
        world.run_to_rest();
        assert_eq!(placed(&world), ["a:1", "c:1", "d:1"]);
        let status = world.tree(DS, "log")["status"].clone();
        assert_eq!((&status["desiredNumberScheduled"], &status["numberMisscheduled"]), (&json!(2), &json!(1)));
        world.delete("nodes", "c");
        world.run_to_rest();
        assert_eq!(placed(&world), ["a:1", "d:1"]);
        assert!(world.round().is_empty());
    }

    #[test]
    fn labels_and_affinity_choose_the_nodes() {
        let mut world = World::with_nodes(&["a", "b", "c"]);
        world.edit("nodes", "a", |value| value["metadata"]["labels"]["disk"] = json!("ssd"));
        let mut value = set("DaemonSet", "log", json!({}));
        value["spec"]["template"]["spec"]["nodeSelector"] = json!({"disk": "ssd"});
        world.create(value);
        let mut value = set("DaemonSet", "other", json!({}));
        let term = json!({"matchExpressions": [{"key": "disk", "operator": "DoesNotExist"}]});
        value["spec"]["template"]["spec"]["affinity"] =
            json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}});
        world.create(value);
        world.run_to_rest();
        let of = |world: &World, name: &str| {
            let of = |pod: &Value| pod["metadata"]["labels"]["app"] == name;
            let mut nodes: Vec<String> = world
                .list("pods")
                .iter()
                .filter(|pod| of(pod.tree()))
                .map(|pod| text(&pod.tree()["spec"]["nodeName"]).to_owned())
                .collect();
            nodes.sort();
            nodes.join(" ")
        };
        assert_eq!((of(&world, "log"), of(&world, "other")), ("a".into(), "b c".into()));
        world.edit("nodes", "b", |value| value["metadata"]["labels"]["disk"] = json!("ssd"));
        world.run_to_rest();
        assert_eq!((of(&world, "log"), of(&world, "other")), ("a b".into(), "c".into()));
    }

    #[test]
    fn a_lost_node_keeps_its_pod_and_does_not_hold_an_update() {
        let mut world = World::with_nodes(&["a", "b", "c"]);
        world.create(set("DaemonSet", "log", json!({})));
        world.run_to_rest();
        lost(&mut world, "a");
        assert_eq!(placed(&world), ["a:1", "b:1", "c:1"], "it may come back, and nothing replaces it elsewhere");
        world.edit(DS, "log", image("2"));
        for _ in 0..10 {
            world.settle();
            for pod in world.list("pods").iter().filter(|pod| pod.tree()["spec"]["nodeName"] != "a") {
                if is_deleting(pod.tree()) {
                    ended(&mut world, &pod.key.name);
                } else {
                    world.report(pod, true);
                }
            }
        }
        assert_eq!(placed(&world), ["a:1", "b:2", "c:2"]);
        let status = world.tree(DS, "log")["status"].clone();
        assert_eq!((&status["desiredNumberScheduled"], &status["updatedNumberScheduled"]), (&json!(2), &json!(2)));
        world.beats.get_mut("a").unwrap().age_ms = 100;
        world.run_to_rest();
        assert_eq!(placed(&world), ["a:2", "b:2", "c:2"]);
    }

    #[test]
    fn an_update_takes_one_node_at_a_time() {
        let mut world = World::with_nodes(&["a", "b", "c"]);
        world.create(set("DaemonSet", "log", json!({})));
        world.run_to_rest();
        world.edit(DS, "log", image("2"));
        world.settle();
        assert_eq!((placed(&world).len(), going(&world)), (2, 1));
        let name = pods(&world).into_iter().find_map(|name| name.strip_prefix('-').map(ToOwned::to_owned)).unwrap();
        ended(&mut world, &name);
        world.settle();
        assert_eq!((placed(&world), going(&world)), (vec!["a:2".into(), "b:1".into(), "c:1".into()], 0));
        // The new one is not ready: nothing goes on.
        assert!(world.round().is_empty());
        world.run_to_rest();
        assert_eq!(placed(&world), ["a:2", "b:2", "c:2"]);
        assert_eq!(revisions(&world).len(), 2);
        let mark =
            world.tree("pods", &world.list("pods")[0].key.name)["metadata"]["labels"]["controller-revision-hash"]
                .clone();
        assert_eq!(format!("log-{}", text(&mark)), revisions(&world)[1].1);
    }

    #[test]
    fn a_surge_starts_the_new_pod_before_the_old_one_goes() {
        let mut world = World::with_nodes(&["a", "b", "c"]);
        let rolling = json!({"updateStrategy": {"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 0}}});
        world.create(set("DaemonSet", "log", rolling));
        world.run_to_rest();
        world.edit(DS, "log", image("2"));
        world.settle();
        assert_eq!(placed(&world), ["a:1", "a:2", "b:1", "b:2", "c:1"]);
        for pod in world.list("pods").iter().filter(|pod| pod.tree()["spec"]["nodeName"] == "b") {
            world.report(pod, true);
        }
        world.settle();
        assert_eq!(
            (placed(&world), going(&world)),
            (["a:1", "a:2", "b:2", "c:1", "c:2"].map(String::from).to_vec(), 1)
        );
        world.run_to_rest();
        assert_eq!(placed(&world), ["a:2", "b:2", "c:2"]);
    }

    #[test]
    fn on_delete_and_pods_that_end_are_made_anew() {
        let mut world = World::with_nodes(&["a", "b"]);
        world.create(set("DaemonSet", "log", json!({"updateStrategy": {"type": "OnDelete"}})));
        world.run_to_rest();
        world.edit(DS, "log", image("2"));
        world.run_to_rest();
        assert_eq!(placed(&world), ["a:1", "b:1"]);
        let pod = world.list("pods").into_iter().find(|pod| pod.tree()["spec"]["nodeName"] == "a").unwrap();
        world.status(&pod, json!({"phase": "Failed"}));
        world.now += 5_000;
        world.run_to_rest();
        assert_eq!(placed(&world), ["a:2", "b:1"]);
        let said = |event: &Value| text(&event["reason"]) == "FailedDaemonPod";
        assert!(world.list("events").iter().any(|event| said(event.tree())));
    }

    #[test]
    fn a_pod_too_large_for_its_node_waits_for_that_node() {
        let mut world = World::with_nodes(&["a"]);
        world.node("b", "1", "1Gi");
        let mut value = set("DaemonSet", "log", json!({}));
        value["spec"]["template"]["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "2"}});
        world.create(value);
        world.run_to_rest();
        assert_eq!(placed(&world), ["?:1", "a:1"]);
        let waiting = world.list("pods").into_iter().find(|pod| pod.tree()["spec"]["nodeName"].is_null()).unwrap();
        let why = text(&list(&waiting.tree()["status"]["conditions"])[0]["message"]).to_owned();
        assert!(why.contains("1 Insufficient cpu") && why.contains("node affinity/selector"), "{why}");
        // Its node goes, and it with it.
        world.delete("nodes", "b");
        world.run_to_rest();
        assert_eq!(placed(&world), ["a:1"]);
    }
}

#[test]
fn a_replication_controller_keeps_its_number() {
    let mut world = World::with_nodes(&["a"]);
    let mut value = deployment("old", 2);
    value["apiVersion"] = json!("v1");
    value["kind"] = json!("ReplicationController");
    value["spec"].as_object_mut().unwrap().remove("selector");
    world.create(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stray", "labels": {"app": "old"}},
        "spec": {"containers": [{"name": "c", "image": "example/web:1"}]},
    }));
    world.create(value);
    world.run_to_rest();
    assert_eq!(world.list("pods").len(), 2, "the stray one is taken over");
    assert_eq!(world.tree("pods", "stray")["metadata"]["ownerReferences"][0]["kind"], "ReplicationController");
    let status = world.tree("replicationcontrollers", "old")["status"].clone();
    assert_eq!((&status["readyReplicas"], &status["fullyLabeledReplicas"]), (&json!(2), &json!(2)));
    world.edit("replicationcontrollers", "old", |value| value["spec"]["replicas"] = json!(1));
    world.run_to_rest();
    assert_eq!(world.list("pods").len(), 1);
    world.delete("replicationcontrollers", "old");
    world.run_to_rest();
    assert!(world.list("pods").is_empty());
}
