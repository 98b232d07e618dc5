//! Most nodes fall silent at once: more likely that the server is cut off than that they died, and nothing is evicted until enough of
//! them are back. Whoever stays silent then loses its pods as ever.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use coracle_cluster_tests::site::{Site, hello};
use serde_json::Value;

/// Pods leave a silent node after three seconds: so long and as long again nothing must happen.
const UNDISTURBED: Duration = Duration::from_secs(6);

/// Name -> node of all pods, and how many of them are to go.
fn pods(site: &Site) -> (BTreeMap<String, String>, usize) {
    let pods = site.at(1).get(&["pods"]);
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let going = pods.iter().filter(|pod| !pod["metadata"]["deletionTimestamp"].is_null()).count();
    (pods.iter().map(|pod| (text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"]))).collect(), going)
}

/// Nodes that pods must leave.
fn emptied(site: &Site) -> Vec<String> {
    let nodes = site.at(1).get(&["nodes"]);
    let taints = |node: &Value| node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let items = nodes["items"].as_array().cloned().unwrap_or_default();
    let emptied = items.iter().filter(|node| taints(node).iter().any(|taint| taint["effect"] == "NoExecute"));
    emptied.map(|node| node["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn when_most_nodes_vanish_at_once_nothing_is_evicted() {
    let mut site = Site::new(4);
    site.form(1, 3);
    site.at(1).import_hello();
    let _ = site.at(1).coracle(&["cordon", "m1"]);
    site.at(1).apply(&hello(6));
    site.wait("six copies", |site| site.ready_pods(1).len() == 6);
    let before = pods(&site);
    assert_eq!(before.1, 0);
    for node in ["m2", "m3", "m4"] {
        assert!(before.0.values().any(|on| on == node), "{node} has copies");
    }
    let ids = site.at(1).container_ids();
    // There is somewhere to go.
    let _ = site.at(1).coracle(&["uncordon", "m1"]);

    for number in 2..=4 {
        site.cut(number);
    }
    site.wait("three of four nodes to be silent", |site| site.ready_nodes(1) == ["m1"]);
    let silent = Instant::now();
    site.wait("pods to have had time to leave", |site| {
        assert_eq!(pods(site), before, "pods were evicted");
        assert_eq!(emptied(site), [] as [&str; 0]);
        silent.elapsed() > UNDISTURBED
    });

    // Two come back: the third is a dead node like any other.
    let back = Instant::now();
    site.heal(2);
    site.heal(3);
    site.await_ready_nodes(1, 3);
    site.wait("the copies of m4 to run elsewhere", |site| {
        site.ready_pods(1).values().filter(|node| *node != "m4").count() == 6
    });
    println!("evicted {:?} after enough nodes were back", back.elapsed());
    let now = pods(&site).0;
    let there = |pod: &String| before.0[pod] != "m4";
    for pod in before.0.keys().filter(|pod| there(pod)) {
        assert_eq!(now.get(pod), before.0.get(pod), "{pod} was moved");
    }
    site.heal(4);
    site.await_ready_nodes(1, 4);
    site.wait("six copies and no more", |site| pods(site).0.len() == 6 && site.ready_pods(1).len() == 6);
    let after = site.at(1).container_ids();
    for (container, id) in &ids {
        let (pod, _) = container.split_once('/').expect("pod/container");
        if there(&pod.to_owned()) {
            assert_eq!(after.get(container), Some(id), "{container} was restarted");
        }
    }
}
