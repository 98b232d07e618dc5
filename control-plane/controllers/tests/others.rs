//! Stories of the other planners.

mod world;

use std::sync::Arc;

use coracle_manifests::time;
use coracle_manifests::view::{condition, int, is_deleting, is_true, list, text};
use coracle_store::Object;
use serde_json::{Value, json};
use world::{START, World, deployment, image};

const SLICES: &str = "endpointslices.discovery.k8s.io";

fn pod(name: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [{"name": "c", "image": "example/web:1"}]},
    })
}

fn replica_set(name: &str, replicas: i64) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c", "image": "example/web:1"}]}},
        },
    })
}

fn service(name: &str, port: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "clusterIP": "10.43.0.9", "ports": [port]},
    })
}

fn names(world: &World, resource: &str) -> Vec<String> {
    world.list(resource).iter().map(|object| object.key.name.to_string()).collect()
}

mod replicaset {
    use super::*;

    #[test]
    fn too_many_pods_go_in_upstreams_order() {
        let mut world = World::with_nodes(&["a", "b"]);
        world.create(replica_set("web", 6));
        world.settle();
        let pods = world.list("pods");
        // On a: 0, 2, 4; on b: 1, 3, 5. The first is older and has been ready longest.
        for (index, pod) in pods.iter().enumerate() {
            assert_eq!(pod.tree()["spec"]["nodeName"], ["a", "b"][index % 2]);
            world.now = START + 10_000 * index as u64;
            world.report(pod, index != 1);
        }
        let cheap = pods[2].key.name.to_string();
        world.edit("pods", &cheap, |value| {
            value["metadata"]["annotations"] = json!({"controller.kubernetes.io/pod-deletion-cost": "-5"});
        });
        let mut order = Vec::new();
        for replicas in (0..6).rev() {
            world.edit("replicasets.apps", "web", |value| value["spec"]["replicas"] = json!(replicas));
            world.settle();
            for pod in world.list("pods").iter().filter(|pod| is_deleting(pod.tree())) {
                let index = pods.iter().position(|old| old.uid == pod.uid).unwrap();
                if !order.contains(&index) {
                    order.push(index);
                }
            }
        }
        // Not ready; cheap; then the shortest ready of the more crowded node.
        assert_eq!(order, [1, 2, 5, 4, 3, 0]);
    }

    #[test]
    fn pods_are_adopted_and_let_go_by_their_labels() {
        let mut world = World::with_nodes(&["a"]);
        world.create(pod("stray", json!({"app": "web"})));
        world.create(replica_set("web", 2));
        world.run_to_rest();
        assert_eq!(world.list("pods").len(), 2, "the stray one counts");
        assert_eq!(world.tree("pods", "stray")["metadata"]["ownerReferences"][0]["name"], "web");
        // Taken out of the set to be looked at: it is replaced, not deleted.
        world.edit("pods", "stray", |value| value["metadata"]["labels"] = json!({"debug": "yes"}));
        world.run_to_rest();
        assert_eq!(world.list("pods").len(), 3);
        assert!(world.tree("pods", "stray")["metadata"].get("ownerReferences").is_none());
    }

    #[test]
    fn many_pods_are_few_commands() {
        let mut world = World::new();
        world.create(replica_set("web", 720));
        let view = world.view();
        let plan = coracle_controllers::replicaset::plan(&view, world.now, &mut world.ids);
        let sizes: Vec<usize> = plan.iter().map(|transaction| transaction.ops.len()).collect();
        assert_eq!(sizes.iter().sum::<usize>(), 1001, "500 pods, as many events, and a status");
        assert!(sizes.len() <= 11, "{sizes:?}");
        world.settle();
        assert_eq!(world.list("pods").len(), 720);
    }

    #[test]
    fn ended_pods_are_replaced() {
        let mut world = World::with_nodes(&["a"]);
        world.create(replica_set("web", 1));
        world.run_to_rest();
        let first = world.list("pods")[0].clone();
        world.status(&first, json!({"phase": "Failed", "reason": "Evicted"}));
        world.run_to_rest();
        assert_eq!(world.list("pods").len(), 2);
        assert_eq!(int(&world.tree("replicasets.apps", "web")["status"]["replicas"], 0), 1);
    }
}

mod host_ports {
    use super::*;

    #[test]
    fn two_pods_with_one_port_of_the_node_are_on_two_nodes() {
        let mut world = World::with_nodes(&["a", "b"]);
        let mut web = deployment("web", 3);
        web["spec"]["template"]["spec"]["containers"][0]["ports"] = json!([{"containerPort": 8080, "hostPort": 80}]);
        world.create(web);
        world.run_to_rest();
        let nodes: Vec<String> =
            world.list("pods").iter().map(|pod| text(&pod.tree()["spec"]["nodeName"]).to_owned()).collect();
        assert_eq!(nodes.iter().filter(|node| node.is_empty()).count(), 1, "{nodes:?}");
        let waiting =
            world.list("pods").into_iter().find(|pod| text(&pod.tree()["spec"]["nodeName"]).is_empty()).unwrap();
        let said = condition(waiting.tree(), "PodScheduled").map(|held| text(&held["message"]).to_owned()).unwrap();
        assert!(
            said.starts_with("0/2 nodes are available: 2 node(s) didn't have free ports for the requested pod ports."),
            "{said}"
        );
        assert!(said.contains("another pod there has its hostPort 80/TCP"), "{said}");
        // A pod in the node's own network has its ports too.
        let mut host = pod("host", json!({}));
        host["spec"]["hostNetwork"] = json!(true);
        host["spec"]["containers"][0]["ports"] = json!([{"containerPort": 80}]);
        world.create(host);
        world.run_to_rest();
        assert_eq!(world.tree("pods", "host")["spec"].get("nodeName"), None);
        let gone = world.list("pods").into_iter().find(|pod| pod.tree()["spec"]["nodeName"] == "a").unwrap();
        world.edit("deployments.apps", "web", |value| value["spec"]["replicas"] = json!(2));
        world.delete("pods", &gone.key.name);
        world.run_to_rest();
        let on_a = world.list("pods").iter().filter(|pod| pod.tree()["spec"]["nodeName"] == "a").count();
        assert_eq!(on_a, 1, "whoever waited longest");
    }
}

mod balancer {
    use super::*;

    fn balancer(name: &str, port: u16) -> Value {
        let mut value = service(name, json!({"port": port, "targetPort": 8080}));
        value["spec"]["type"] = json!("LoadBalancer");
        value
    }

    fn world() -> World {
        let mut world = World::with_nodes(&["a", "b", "c"]);
        for (name, address) in [("a", "192.0.2.3"), ("b", "192.0.2.20"), ("c", "192.0.2.1")] {
            world.edit("nodes", name, |node| {
                node["status"]["addresses"] =
                    json!([{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address}]);
            });
        }
        world
    }

    fn ways_in(world: &World, name: &str) -> String {
        let status = &world.tree("services", name)["status"];
        let ways = list(&status["loadBalancer"]["ingress"]).iter().map(|way| text(&way["ip"]));
        ways.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_balancer_is_at_every_ready_node() {
        let mut world = world();
        world.create(balancer("web", 80));
        world.create(service("inner", json!({"port": 80})));
        world.settle();
        assert_eq!(ways_in(&world, "web"), "192.0.2.1 192.0.2.3 192.0.2.20", "in the order of numbers");
        assert_eq!(ways_in(&world, "inner"), "");
        assert_eq!(world.run("balancer"), Vec::<String>::new(), "nothing is left to do");
        world.beats.get_mut("c").unwrap().age_ms = 5_000;
        world.edit("nodes", "a", |node| {
            node["metadata"]["labels"]["node.kubernetes.io/exclude-from-external-load-balancers"] = json!("");
        });
        world.settle();
        assert_eq!(ways_in(&world, "web"), "192.0.2.20");
        world.edit("services", "web", |value| value["spec"]["type"] = json!("NodePort"));
        world.settle();
        assert_eq!(world.tree("services", "web")["status"], json!({"loadBalancer": {}}));
    }

    #[test]
    fn a_port_is_the_oldest_one_s_and_the_others_say_whose() {
        let mut world = world();
        world.create(balancer("z", 80));
        world.now += 1_000;
        world.create(balancer("a", 80));
        world.create(balancer("ssh", 22));
        let mut other = balancer("udp", 80);
        other["spec"]["ports"][0]["protocol"] = json!("UDP");
        world.create(other);
        let lines = world.settle();
        let said: Vec<&String> = lines.iter().filter(|line| line.contains("event PortTaken")).collect();
        assert_eq!(
            said,
            [
                "event PortTaken: port 80/TCP of the nodes is held by the Service default/z",
                "event PortTaken: port 22/TCP of the nodes is the port of the node's SSH server: choose another `port`",
            ],
            "once each"
        );
        assert_eq!((ways_in(&world, "z").len(), ways_in(&world, "udp").len()), (30, 30));
        assert_eq!((ways_in(&world, "a"), ways_in(&world, "ssh")), (String::new(), String::new()));
        assert!(is_true(&world.tree("services", "a"), "LoadBalancerPortsError"));
        world.delete("services", "z");
        world.settle();
        assert_eq!(ways_in(&world, "a").len(), 30, "its turn has come");
        assert_eq!(condition(&world.tree("services", "a"), "LoadBalancerPortsError"), None);
    }

    #[test]
    fn local_ones_are_where_their_endpoints_are() {
        let mut world = world();
        let mut local = balancer("web", 80);
        local["spec"]["externalTrafficPolicy"] = json!("Local");
        world.create(local);
        world.settle();
        assert_eq!(ways_in(&world, "web"), "");
        let mut only = pod("one", json!({"app": "web"}));
        only["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "b"});
        world.create(only);
        world.run_to_rest();
        assert_eq!(ways_in(&world, "web"), "192.0.2.20");
        let one = world.list("pods")[0].clone();
        world.report(&one, false);
        world.settle();
        assert_eq!(ways_in(&world, "web"), "");
    }

    #[test]
    fn one_with_a_class_is_left_to_whoever_keeps_the_class() {
        let mut world = world();
        let mut foreign = balancer("web", 80);
        foreign["spec"]["loadBalancerClass"] = json!("example.com/lb");
        let made = world.create(foreign);
        let given = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}});
        world.status(&made, given.clone());
        world.create(balancer("own", 80));
        world.settle();
        assert_eq!(world.tree("services", "web")["status"], given);
        assert_eq!(ways_in(&world, "own").len(), 30, "their ports are not the nodes'");
    }

    #[test]
    fn an_alias_has_no_slices() {
        let mut world = world();
        world.create(service("web", json!({"port": 80})));
        world.settle();
        assert_eq!(world.list(SLICES).len(), 1);
        world.edit("services", "web", |value| {
            value["spec"] = json!({"type": "ExternalName", "externalName": "a.example", "selector": {"app": "web"}});
        });
        world.settle();
        assert!(world.list(SLICES).is_empty());
    }
}

mod endpoints {
    use super::*;

    fn endpoints(world: &World) -> Vec<String> {
        let mut lines: Vec<String> = world
            .list(SLICES)
            .iter()
            .flat_map(|slice| {
                let ports: Vec<String> = list(&slice.tree()["ports"])
                    .iter()
                    .map(|port| format!("{}:{}", text(&port["name"]), port["port"]))
                    .collect();
                let ports = ports.join("+");
                list(&slice.tree()["endpoints"])
                    .iter()
                    .map(|endpoint| {
                        let is = |word: &'static str| if endpoint["conditions"][word] == true { word } else { "-" };
                        let (pod, node) = (text(&endpoint["targetRef"]["name"]), text(&endpoint["nodeName"]));
                        format!("{pod} on {node} {ports} {} {} {}", is("ready"), is("serving"), is("terminating"))
                    })
                    .collect::<Vec<_>>()
            })
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn readiness_drives_them() {
        let mut world = World::with_nodes(&["a"]);
        world.create(service("web", json!({"name": "http", "port": 80, "targetPort": "http"})));
        world.settle();
        assert_eq!(world.list(SLICES).len(), 1, "an empty slice says that nothing is there");
        assert!(endpoints(&world).is_empty());
        world.create(deployment("web", 2));
        world.run_to_rest();
        let pods = names(&world, "pods");
        let line = |pod: &str, conditions: &str| format!("{pod} on a http:8080 {conditions}");
        assert_eq!(endpoints(&world), [line(&pods[0], "ready serving -"), line(&pods[1], "ready serving -")]);
        let first = world.list("pods")[0].clone();
        world.report(&first, false);
        world.settle();
        assert_eq!(endpoints(&world)[0], line(&pods[0], "- - -"));
        world.edit("services", "web", |value| value["spec"]["publishNotReadyAddresses"] = json!(true));
        world.settle();
        assert_eq!(endpoints(&world)[0], line(&pods[0], "ready - -"));
        world.edit("services", "web", |value| {
            drop(value["spec"].as_object_mut().unwrap().remove("publishNotReadyAddresses"))
        });
        world.report(&first, true);
        // One that is ending takes no new connections, though it still serves.
        world.edit("pods", &pods[1], |value| value["metadata"]["deletionTimestamp"] = json!(time::rfc3339(START)));
        world.run("endpoints");
        assert_eq!(endpoints(&world), [line(&pods[0], "ready serving -"), line(&pods[1], "- serving terminating")]);
        let slice = &world.list(SLICES)[0];
        let labels = &slice.tree()["metadata"]["labels"];
        assert_eq!(labels["kubernetes.io/service-name"], "web");
        assert_eq!(labels["endpointslice.kubernetes.io/managed-by"], "endpointslice-controller.k8s.io");
        world.delete("services", "web");
        world.settle();
        assert!(world.list(SLICES).is_empty(), "its owner is gone");
    }

    #[test]
    fn a_silent_node_takes_its_endpoints_along() {
        let mut world = World::with_nodes(&["a", "b"]);
        world.create(service("web", json!({"port": 80, "targetPort": 8080})));
        world.create(deployment("web", 2));
        world.run_to_rest();
        world.beats.get_mut("a").unwrap().age_ms = 5_000;
        world.settle();
        let ready: Vec<String> = endpoints(&world).into_iter().filter(|line| line.contains(" ready ")).collect();
        assert!(ready.len() == 1 && ready[0].contains("on b"), "{ready:?}");
        assert_eq!(int(&world.tree("deployments.apps", "web")["status"]["availableReplicas"], 0), 1);
    }

    #[test]
    fn a_name_may_mean_another_port_in_each_pod() {
        let mut world = World::with_nodes(&["a"]);
        world.create(service("web", json!({"name": "http", "port": 80, "targetPort": "http"})));
        for (name, port) in [("one", 8080), ("two", 9090)] {
            let mut value = pod(name, json!({"app": "web"}));
            value["spec"]["containers"][0]["ports"] = json!([{"name": "http", "containerPort": port}]);
            world.create(value);
        }
        // This one does not have the port at all: it is known, but takes nothing.
        world.create(pod("three", json!({"app": "web"})));
        world.run_to_rest();
        assert_eq!(
            endpoints(&world),
            ["one on a http:8080 ready serving -", "three on a  ready serving -", "two on a http:9090 ready serving -"]
        );
    }

    #[test]
    fn slices_hold_a_hundred_and_change_little() {
        let mut world = World::new();
        world.node("a", "64", "64Gi");
        world.edit("nodes", "a", |value| value["status"]["allocatable"]["pods"] = json!("500"));
        world.create(service("web", json!({"port": 80, "targetPort": 8080})));
        world.create(deployment("web", 250));
        world.run_to_rest();
        let sizes = |world: &World| -> Vec<usize> {
            let mut sizes: Vec<usize> =
                world.list(SLICES).iter().map(|slice| list(&slice.tree()["endpoints"]).len()).collect();
            sizes.sort_unstable();
            sizes
        };
        assert_eq!(sizes(&world), [50, 100, 100]);
        let before: Vec<u64> = world.list(SLICES).iter().map(|slice| slice.revision).collect();
        let gone = world.list("pods")[3].clone();
        world.report(&gone, false);
        world.run("endpoints");
        let after: Vec<u64> = world.list(SLICES).iter().map(|slice| slice.revision).collect();
        assert_eq!(before.iter().zip(&after).filter(|(before, after)| before != after).count(), 1);
    }

    #[test]
    fn what_others_keep_is_left_alone() {
        let mut world = World::new();
        let mut manual = service("api", json!({"port": 443}));
        manual["spec"]["selector"] = json!({});
        world.create(manual);
        world.create(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "api", "labels": {"kubernetes.io/service-name": "api"}},
            "addressType": "IPv4", "endpoints": [{"addresses": ["192.0.2.1"]}], "ports": [{"port": 6443}],
        }));
        world.settle();
        assert_eq!(names(&world, SLICES), ["api"]);
    }
}

mod gc {
    use super::*;

    #[test]
    fn what_a_deployment_made_goes_with_it() {
        let mut world = World::with_nodes(&["a"]);
        world.create(deployment("web", 2));
        world.run_to_rest();
        world.delete("deployments.apps", "web");
        let told = world.settle();
        assert!(world.list("replicasets.apps").is_empty(), "{told:#?}");
        assert!(world.list("pods").iter().all(|pod| is_deleting(pod.tree())), "pods end in their own time");
        world.run_to_rest();
        assert!(world.list("pods").is_empty());
    }

    #[test]
    fn orphans_stay() {
        let mut world = World::with_nodes(&["a"]);
        world.create(deployment("web", 2));
        world.run_to_rest();
        world.edit("deployments.apps", "web", |value| {
            value["metadata"]["finalizers"] = json!(["orphan"]);
            value["metadata"]["deletionTimestamp"] = json!(time::rfc3339(START));
        });
        world.run_to_rest();
        assert!(world.list("deployments.apps").is_empty());
        assert_eq!((world.list("replicasets.apps").len(), world.list("pods").len()), (1, 2));
        assert!(world.list("replicasets.apps")[0].tree()["metadata"].get("ownerReferences").is_none());
    }

    #[test]
    fn in_the_foreground_the_owner_goes_last() {
        let mut world = World::with_nodes(&["a"]);
        world.create(deployment("web", 2));
        world.run_to_rest();
        world.edit("deployments.apps", "web", |value| {
            value["metadata"]["finalizers"] = json!(["foregroundDeletion"]);
            value["metadata"]["deletionTimestamp"] = json!(time::rfc3339(START));
        });
        world.settle();
        assert_eq!((world.list("deployments.apps").len(), world.list("replicasets.apps").len()), (1, 1));
        assert!(world.list("pods").len() == 2 && world.list("pods").iter().all(|pod| is_deleting(pod.tree())));
        world.run_to_rest();
        let left = ["deployments.apps", "replicasets.apps", "pods"].map(|resource| world.list(resource).len());
        assert_eq!(left, [0, 0, 0]);
    }

    #[test]
    fn an_object_of_the_whole_cluster_is_not_ended_for_an_owner_that_cannot_be_looked_up() {
        let mut world = World::new();
        let web = world.create(replica_set("web", 0));
        let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": &*web.key.name, "uid": &*web.uid}]);
        world.create(
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kept", "ownerReferences": owner}}),
        );
        world.settle();
        assert!(world.list("namespaces").iter().any(|one| &*one.key.name == "kept" && !is_deleting(one.tree())));
    }

    #[test]
    fn one_owner_that_lives_is_enough() {
        let mut world = World::new();
        let first = world.create(replica_set("first", 0));
        let second = world.create(replica_set("second", 0));
        let reference = |owner: &Arc<Object>| json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": &*owner.key.name, "uid": &*owner.uid});
        let mut value = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shared"}});
        value["metadata"]["ownerReferences"] = json!([reference(&first), reference(&second)]);
        world.create(value);
        let mut foreign = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "foreign"}});
        foreign["metadata"]["ownerReferences"] =
            json!([{"apiVersion": "example.com/v1", "kind": "Thing", "name": "x", "uid": "unknown"}]);
        world.create(foreign);
        world.settle();
        world.delete("replicasets.apps", "first");
        world.settle();
        assert_eq!(list(&world.tree("configmaps", "shared")["metadata"]["ownerReferences"]).len(), 1);
        world.delete("replicasets.apps", "second");
        // Another object of the name is not the owner.
        world.create(replica_set("second", 0));
        world.settle();
        assert_eq!(names(&world, "configmaps"), ["foreign"], "an owner of an unknown kind may well be there");
    }
}

mod namespaces {
    use super::*;

    #[test]
    fn a_namespace_takes_everything_along() {
        let mut world = World::with_nodes(&["a"]);
        world.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
        let mut value = deployment("web", 2);
        value["metadata"]["namespace"] = json!("shop");
        world.create(value);
        let mut held =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "held", "namespace": "shop"}});
        held["metadata"]["finalizers"] = json!(["example.com/backup"]);
        world.create(held);
        world.run_to_rest();
        assert!(world.view().find("serviceaccounts", "shop", "default").is_some());
        world.delete("namespaces", "shop");
        world.run_to_rest();
        let left: Vec<String> = world
            .view()
            .all()
            .filter(|object| &*object.key.namespace == "shop")
            .map(|object| object.key.to_string())
            .collect();
        assert_eq!(left, ["configmaps/shop/held"], "somebody's finalizer holds it");
        assert_eq!(world.tree("namespaces", "shop")["status"]["phase"], "Terminating");
        let object = world.view().find("configmaps", "shop", "held").unwrap().clone();
        world
            .apply(coracle_store::Op::Delete { key: object.key.clone(), expect: coracle_store::Expect::default() })
            .unwrap();
        world.run_to_rest();
        assert!(world.get("namespaces", "shop").is_none());
    }
}

mod nodes {
    use super::*;

    fn ready(world: &World, node: &str) -> String {
        let tree = world.tree("nodes", node);
        condition(&tree, "Ready").map(|ready| text(&ready["status"]).to_owned()).unwrap_or_default()
    }

    #[test]
    fn a_dead_node_loses_its_pods_and_a_returning_one_is_welcome() {
        let mut world = World::with_nodes(&["a", "b"]);
        world.create(deployment("web", 4));
        world.run_to_rest();
        world.beats.get_mut("a").unwrap().age_ms = 4_001;
        world.now += 4_001;
        world.settle();
        assert_eq!(ready(&world, "a"), "Unknown");
        let taints = world.tree("nodes", "a")["spec"]["taints"].clone();
        assert_eq!(taints[0]["key"], "node.kubernetes.io/unreachable");
        let on = |world: &World, node: &str| {
            world
                .list("pods")
                .iter()
                .filter(|pod| pod.tree()["spec"]["nodeName"] == node && !is_deleting(pod.tree()))
                .count()
        };
        assert_eq!(on(&world, "a"), 2, "it may only be restarting");
        world.now += 3_000;
        world.settle();
        assert_eq!((on(&world, "a"), on(&world, "b")), (0, 4));
        world.beats.get_mut("a").unwrap().age_ms = 100;
        world.settle();
        assert_eq!(ready(&world, "a"), "True");
        assert!(world.tree("nodes", "a")["spec"].get("taints").is_none());
    }

    #[test]
    fn a_clock_set_back_by_decades_does_not_keep_pods_on_a_dead_node() {
        let mut world = World::with_nodes(&["a", "b"]);
        world.create(deployment("web", 4));
        world.run_to_rest();
        world.beats.get_mut("a").unwrap().age_ms = 4_001;
        world.settle();
        // The power of the site goes, and all clocks stand at the beginning.
        world.now = 1_000;
        world.settle();
        let on_a = |world: &World| {
            let on_a = |pod: &Arc<Object>| pod.tree()["spec"]["nodeName"] == "a" && !is_deleting(pod.tree());
            world.list("pods").iter().filter(|pod| on_a(pod)).count()
        };
        assert_eq!(on_a(&world), 2, "it gets its time anew");
        world.now += 3_000;
        world.settle();
        assert_eq!(on_a(&world), 0);
    }

    #[test]
    fn a_fenced_pod_moves_only_when_its_lease_has_certainly_run_out() {
        let mut world = World::with_nodes(&["a", "b", "c"]);
        let mut value = deployment("only", 1);
        value["spec"]["strategy"] = json!({"type": "Recreate"});
        value["spec"]["template"]["metadata"]["annotations"] = json!({"coracle.dev/fenced": "true"});
        world.create(value);
        world.run_to_rest();
        let on = |world: &World| {
            let pods = world.list("pods");
            pods.iter().map(|pod| text(&pod.tree()["spec"]["nodeName"]).to_owned()).collect::<Vec<_>>()
        };
        let [node] = <[String; 1]>::try_from(on(&world)).unwrap();
        // Silent for long, but granted a lease a moment ago by what this leader knows.
        let beat = world.beats.get_mut(&node).unwrap();
        (beat.age_ms, beat.granted_ms) = (60_000, 6_999);
        world.now += 60_000;
        world.settle();
        assert_eq!(on(&world), std::slice::from_ref(&node), "it may still run there");
        assert!(world.list("pods").iter().all(|pod| !is_deleting(pod.tree())), "nobody waits for its node's word");
        // A user deletes it: its successor waits for the same proof.
        let name = world.list("pods")[0].key.name.to_string();
        world.edit("pods", &name, |pod| {
            pod["metadata"]["deletionTimestamp"] = json!("2026-11-26T00:00:00Z");
            pod["metadata"]["deletionGracePeriodSeconds"] = json!(30);
        });
        world.settle();
        assert_eq!(on(&world).len(), 1, "no second one beside it");
        world.beats.get_mut(&node).unwrap().granted_ms = 7_001;
        world.settle();
        let [moved] = <[String; 1]>::try_from(on(&world)).unwrap();
        assert_ne!(moved, node);
    }

    #[test]
    fn nothing_is_evicted_when_there_is_nowhere_to_go_or_this_server_is_cut_off() {
        for nodes in [&["a"][..], &["a", "b", "c"][..]] {
            let mut world = World::with_nodes(nodes);
            world.create(deployment("web", 4));
            world.run_to_rest();
            for node in nodes.iter().take(2) {
                world.beats.get_mut(*node).unwrap().age_ms = 10_000;
            }
            for _ in 0..5 {
                world.now += 10_000;
                world.settle();
            }
            assert_eq!(ready(&world, "a"), "Unknown");
            let all_stay = |world: &World| world.list("pods").iter().all(|pod| !is_deleting(pod.tree()));
            assert!(all_stay(&world), "{nodes:?}");
            // The first that is back ends no pod, neither its own nor those of another that is about to be back.
            for node in nodes.iter().take(2) {
                world.beats.get_mut(*node).unwrap().age_ms = 100;
                world.settle();
                assert!(all_stay(&world), "{nodes:?}: {node} is back");
                world.now += 2_000;
            }
            world.settle();
            assert!(all_stay(&world), "{nodes:?}");
            assert!(world.tree("nodes", "a")["spec"].get("taints").is_none());
        }
    }

    #[test]
    fn tolerations_hold_a_pod_for_their_time() {
        let mut world = World::with_nodes(&["a", "b"]);
        let toleration = |seconds: Option<u64>| {
            let mut toleration = json!({"key": "maintenance", "operator": "Exists", "effect": "NoExecute"});
            if let Some(seconds) = seconds {
                toleration["tolerationSeconds"] = json!(seconds);
            }
            json!([toleration])
        };
        for (name, tolerations) in [("none", json!([])), ("ten", toleration(Some(10))), ("ever", toleration(None))] {
            let mut value = pod(name, json!({}));
            value["spec"]["tolerations"] = tolerations;
            value["spec"]["nodeName"] = json!("a");
            world.create(value);
        }
        let at = time::rfc3339(world.now);
        world.edit("nodes", "a", |value| {
            value["spec"]["taints"] = json!([{"key": "maintenance", "effect": "NoExecute", "timeAdded": at}]);
        });
        let going = |world: &World| -> Vec<String> {
            world
                .list("pods")
                .iter()
                .filter(|pod| is_deleting(pod.tree()))
                .map(|pod| pod.key.name.to_string())
                .collect()
        };
        world.settle();
        assert_eq!(going(&world), ["none"]);
        world.now += 10_000;
        world.settle();
        assert_eq!(going(&world), ["none", "ten"]);
    }
}

mod retention {
    use super::*;

    #[test]
    fn pods_of_a_node_that_is_gone_are_replaced() {
        let mut world = World::with_nodes(&["a", "b"]);
        world.create(deployment("web", 2));
        world.run_to_rest();
        world.beats.remove("a");
        world.delete("nodes", "a");
        world.run_to_rest();
        let on: Vec<Value> = world.list("pods").iter().map(|pod| pod.tree()["spec"]["nodeName"].clone()).collect();
        assert_eq!(on, ["b", "b"]);
    }

    #[test]
    fn a_thousand_ended_pods_are_enough() {
        let mut world = World::with_nodes(&["a"]);
        for number in 0..1_003 {
            world.now += 1_000;
            let mut value = pod(&format!("job-{number:04}"), json!({}));
            value["spec"]["nodeName"] = json!("a");
            value["status"] = json!({"phase": "Succeeded"});
            world.create(value);
        }
        world.run("podgc");
        assert_eq!(world.list("pods").len(), 1_000);
        assert_eq!(&*world.list("pods")[0].key.name, "job-0003", "the oldest went");
    }

    #[test]
    fn events_live_an_hour() {
        let mut world = World::with_nodes(&["a"]);
        world.create(deployment("web", 1));
        world.run_to_rest();
        let events = world.list("events").len();
        assert!(events > 0);
        world.now += 60 * 60 * 1000;
        world.settle();
        assert_eq!(world.list("events").len(), events);
        world.now += 2_000;
        world.settle();
        assert!(world.list("events").is_empty());
    }
}

mod schedule {
    use super::*;

    #[test]
    fn a_pod_that_fits_nowhere_says_why_and_goes_when_it_fits() {
        let mut world = World::with_nodes(&["a", "b"]);
        world.node("c", "16", "32Gi");
        world.edit("nodes", "c", |value| {
            value["spec"]["taints"] = json!([{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]);
        });
        let mut value = pod("big", json!({}));
        value["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "6"}});
        world.create(value);
        let told = world.settle();
        insta::assert_snapshot!(told.join("\n"));
        assert!(!is_true(&world.tree("pods", "big"), "PodScheduled"));
        // Amounts in the hint change: the words are renewed later, without another event.
        let mut other = pod("other", json!({}));
        other["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1"}});
        world.create(other);
        assert_eq!(world.settle().iter().filter(|line| line.contains("big")).count(), 0);
        world.now += 30_000;
        let told = world.settle();
        assert!(told.len() == 1 && told[0].starts_with("status pods/default/big"), "{told:#?}");
        world.edit("nodes", "c", |value| drop(value["spec"].as_object_mut().unwrap().remove("taints")));
        world.settle();
        assert_eq!(world.tree("pods", "big")["spec"]["nodeName"], "c");
        assert!(is_true(&world.tree("pods", "big"), "PodScheduled"));
    }

    #[test]
    fn replicas_are_spread_and_cordoned_nodes_left_alone() {
        let mut world = World::with_nodes(&["a", "b", "c"]);
        world.edit("nodes", "b", |value| value["spec"]["unschedulable"] = json!(true));
        world.create(deployment("web", 4));
        world.run_to_rest();
        let mut on: Vec<String> =
            world.list("pods").iter().map(|pod| text(&pod.tree()["spec"]["nodeName"]).to_owned()).collect();
        on.sort();
        assert_eq!(on, ["a", "a", "c", "c"]);
        // A rollout spreads the new ones as well.
        world.edit("deployments.apps", "web", image("2"));
        world.run_to_rest();
        let mut on: Vec<String> =
            world.list("pods").iter().map(|pod| text(&pod.tree()["spec"]["nodeName"]).to_owned()).collect();
        on.sort();
        assert_eq!(on, ["a", "a", "c", "c"]);
    }

    #[test]
    fn without_any_node_pods_wait() {
        let mut world = World::new();
        world.create(pod("lonely", json!({})));
        world.settle();
        let message = condition(&world.tree("pods", "lonely"), "PodScheduled").unwrap()["message"].clone();
        assert_eq!(message, "no nodes available to schedule pods. hint: no node has joined the cluster yet");
    }
}
