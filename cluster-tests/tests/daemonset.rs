//! A DaemonSet with real pods on real machines: one on each, whoever joins, leaves or is closed.

use std::collections::BTreeSet;

use coracle_cluster_tests::machine::{Machine, workspace};
use coracle_cluster_tests::site::Site;

const EVERYWHERE: &str = "examples/everywhere.yaml";

/// The nodes that have a ready pod; none has two.
fn served(site: &Site) -> BTreeSet<String> {
    site.ready_pods(1).into_values().collect()
}

fn await_served(site: &Site, what: &str, nodes: &[&str]) {
    let wanted: BTreeSet<String> = nodes.iter().map(|node| (*node).to_owned()).collect();
    site.wait(what, |site| served(site) == wanted && site.ready_pods(1).len() == wanted.len());
}

#[test]
fn every_machine_has_its_pod() {
    let mut site = Site::new(4);
    site.form(1, 2);
    site.all().take(3).for_each(Machine::import_hello);
    let first = site.at(1).coracle(&["apply", "-f", EVERYWHERE]);
    assert!(first.contains("daemonset.apps/everywhere created"), "{first}");
    await_served(&site, "a pod on each of three machines", &["m1", "m2", "m3"]);
    let second = site.at(1).coracle(&["apply", "-f", EVERYWHERE]);
    assert!(second.contains("daemonset.apps/everywhere unchanged"), "{second}");
    let described = site.at(1).coracle(&["describe", "ds/everywhere"]);
    assert!(described.contains("3 eligible, 3 with a pod"), "{described}");

    // A fourth machine joins.
    let url = format!("https://{}:6443", site.address(1));
    let token = site.at(1).coracle(&["token", "create"]);
    site.at_mut(4).starts_with(&["join", &url, "--token", token.trim()]).start();
    site.at_mut(4).await_ready(0);
    site.at(4).import_hello();
    await_served(&site, "a pod on the machine that joined", &["m1", "m2", "m3", "m4"]);

    // One is drained: daemon pods stay, and come back to a closed node when they are deleted.
    let pod_of = |site: &Site, node: &str| {
        site.ready_pods(1).into_iter().find(|(_, on)| on == node).map(|(name, _)| name).unwrap_or_default()
    };
    let before = pod_of(&site, "m3");
    let _ = site.at(1).coracle(&["drain", "m3", "--ignore-daemonsets"]);
    assert_eq!(pod_of(&site, "m3"), before);
    let _ = site.at(1).coracle(&["delete", "pod", &before]);
    site.wait("another pod on the closed node", |site| ![before.as_str(), ""].contains(&pod_of(site, "m3").as_str()));

    // A new template, with the new pod of a node before the old one goes.
    let yaml = std::fs::read_to_string(workspace().join(EVERYWHERE)).expect("the example");
    let changed = yaml.replace("value: \"100\"", "value: \"200\"");
    assert_ne!(changed, yaml, "the example has changed: this test must too");
    site.at(1).apply(&changed);
    let mut least = 4;
    site.wait("the new template everywhere", |site| {
        least = least.min(served(site).len());
        let set = site.at(1).get(&["ds/everywhere"]);
        let status = &set["status"];
        status["observedGeneration"] == set["metadata"]["generation"]
            && status["updatedNumberScheduled"] == 4
            && status["numberAvailable"] == 4
    });
    assert_eq!(least, 4, "a machine was without a pod");
    await_served(&site, "the old pods to be gone", &["m1", "m2", "m3", "m4"]);

    // A machine leaves for good.
    site.at_mut(4).kill();
    let _ = site.at(1).coracle(&["delete", "node", "m4"]);
    site.wait("the pod of the machine that left to be forgotten", |site| {
        let pods = site.at(1).get(&["pods"]);
        pods["items"].as_array().is_some_and(|pods| pods.iter().all(|pod| pod["spec"]["nodeName"] != "m4"))
    });
    let status = site.at(1).get(&["ds/everywhere"])["status"].clone();
    assert_eq!(status["desiredNumberScheduled"], 3, "{status}");
}
