//! A cluster of several machines: an app runs on all of them, machines die and come back, all servers go away.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use coracle_cluster_tests::machine::workspace;
use coracle_cluster_tests::site::Site;

/// The demo app with so many replicas.
fn app(replicas: usize) -> String {
    let text = std::fs::read_to_string(workspace().join("examples/hello.yaml")).expect("the example");
    text.replace("replicas: 3", &format!("replicas: {replicas}"))
}

/// Name -> node of the pods that are ready and not going, as one machine sees it.
fn ready_pods(site: &Site, seen_by: usize) -> BTreeMap<String, String> {
    let pods = site.at(seen_by).get(&["pods"]);
    let ready = |pod: &&serde_json::Value| {
        let conditions = pod["status"]["conditions"].as_array();
        let ready = conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True");
        ready && pod["metadata"]["deletionTimestamp"].is_null()
    };
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let items = pods["items"].as_array().cloned().unwrap_or_default();
    items.iter().filter(ready).map(|pod| (text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"]))).collect()
}

fn virtual_address(site: &Site) -> String {
    let service = site.at(1).get(&["service", "hello"]);
    let item = if service["items"].is_array() { &service["items"][0] } else { &service };
    item["spec"]["clusterIP"].as_str().expect("a cluster address").to_owned()
}

/// Waits until the app answers on a machine, by its Service and, through a pod, by its name.
fn answers(site: &Site, number: usize, address: &str) {
    site.wait(&format!("the app to answer on m{number}"), |site| {
        let said = site.at(number).http(&format!("{address}:80"), "/ask?host=hello");
        said.is_some_and(|said| said.contains("hello from hello-"))
    });
}

#[test]
fn an_app_runs_on_every_machine_and_outlives_the_leader_a_node_and_all_servers() {
    let mut site = Site::new(4);
    site.form(3, 1);
    // On one machine only: the others fetch it from there.
    site.at_mut(1).import_hello();
    site.at(2).apply(&app(8));
    site.wait("eight copies to be ready", |site| ready_pods(site, 3).len() == 8);
    let nodes: BTreeSet<String> = ready_pods(&site, 1).into_values().collect();
    assert_eq!(nodes.len(), 4, "every node has copies");
    let address = virtual_address(&site);
    for number in 1..=4 {
        answers(&site, number, &address);
    }
    // Logs of a pod on a machine whose session another server may hold, through every server.
    let pods = ready_pods(&site, 1);
    for node in ["m1", "m4"] {
        let (pod, _) = pods.iter().find(|(_, on)| *on == node).expect("a pod there");
        for number in 1..=3 {
            assert!(site.at(number).coracle(&["logs", pod]).contains("/ready"), "logs of {pod} through m{number}");
        }
    }

    // A machine that is no server shows what it knows, and how it reaches the others.
    site.wait("m4 to show the others and the ways to them", |site| {
        let said = site.at(4).try_coracle(&["status", "-o", "json"]);
        let shown: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
        let list = |section: &str| shown[section].as_array().cloned().unwrap_or_default();
        let direct = |node: &serde_json::Value| node["link"]["way"] == "direct" && node["link"]["answered_ms"].is_f64();
        let reached = list("nodes").iter().filter(|node| direct(node)).count();
        (said.code, list("nodes").len(), list("servers").len(), reached) == (0, 4, 3, 3)
    });

    assert_eq!(site.at(4).coracle(&["doctor"]).trim(), "nothing stands in the way");

    // The leader's machine loses its program: pods there go on, but nobody hears of them.
    let leader = site.leader(1).expect("a leader");
    let other = if leader == 1 { 2 } else { 1 };
    let began = Instant::now();
    site.at_mut(leader).kill();
    while site.at(other).try_coracle(&["scale", "deploy/hello", "--replicas", "9"]).code != 0 {
        assert!(began.elapsed().as_secs() < 30, "nobody takes writes");
    }
    println!("written again {:?} after the leader died", began.elapsed());
    let dead = format!("m{leader}");
    site.wait("nine copies on the other nodes", |site| {
        ready_pods(site, other).values().filter(|node| **node != dead).count() == 9
    });
    println!("replaced {:?} after the leader's node died", began.elapsed());
    // It comes back and lets go of what was replaced; what is right elsewhere is not touched.
    let before = ready_pods(&site, other);
    let began = Instant::now();
    site.at_mut(leader).up();
    site.await_ready_nodes(other, 4);
    site.wait("the old copies to be gone", |site| {
        site.at(other).get(&["pods"])["items"].as_array().is_some_and(|items| items.len() == 9)
    });
    println!("converged {:?} after it came back", began.elapsed());
    assert_eq!(ready_pods(&site, other).into_keys().collect::<Vec<_>>(), before.into_keys().collect::<Vec<_>>());

    // Every server goes away, and with each the agent in the same process. The node that has its agent does not care: its Services
    // answer, and a pod of its own finds the others by name.
    let ids = site.at(other).container_ids();
    let pods = site.at(other).get(&["pods"]);
    let own = pods["items"].as_array().into_iter().flatten().find(|pod| pod["spec"]["nodeName"] == "m4");
    let own = own.and_then(|pod| pod["status"]["podIP"].as_str()).expect("a pod on m4").to_owned();
    for number in 1..=3 {
        site.at_mut(number).kill();
    }
    let goes_on = |site: &Site| {
        for _ in 0..20 {
            assert!(site.at(4).http(&format!("{address}:80"), "/ready").is_some(), "the Service does not answer");
            let said = site.at(4).http(&format!("{own}:8080"), "/ask?host=hello").unwrap_or_default();
            assert!(said.contains("hello from hello-"), "the name is not found: {said}");
        }
    };
    goes_on(&site);
    let found = site.at(4).try_coracle(&["doctor"]);
    assert!(found.code == 5 && found.out.contains("no session with a server"), "{}{}", found.out, found.err);
    // Also an agent that starts meanwhile.
    site.at_mut(4).kill();
    let before = site.at(4).readies();
    site.at_mut(4).start().await_ready(before);
    goes_on(&site);
    let before: Vec<usize> = (1..=3).map(|number| site.at(number).readies()).collect();
    for number in 1..=3 {
        site.at_mut(number).start();
    }
    for number in 1..=3 {
        site.at_mut(number).await_ready(before[number - 1]);
    }
    site.await_ready_nodes(1, 4);
    site.wait("every copy to be ready", |site| ready_pods(site, 2).len() == 9);
    assert_eq!(site.at(1).container_ids(), ids, "nothing was restarted");
    for machine in 1..=4 {
        answers(&site, machine, &address);
    }
}
