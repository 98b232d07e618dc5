//! A cluster of several machines: an app runs on all of them, machines die and come back, all servers go away.

use std::collections::BTreeSet;
use std::time::Instant;

use coracle_cluster_tests::site::{Site, hello};

#[test]
fn an_app_runs_on_every_machine_and_outlives_the_leader_a_node_and_all_servers() {
    let mut site = Site::new(4);
    site.form(3, 1);
    // On one machine only: the others fetch it from there.
    site.at_mut(1).import_hello();
    site.at(2).apply(&hello(8));
    site.wait("eight copies to be ready", |site| site.ready_pods(3).len() == 8);
    let nodes: BTreeSet<String> = site.ready_pods(1).into_values().collect();
    assert_eq!(nodes.len(), 4, "every node has copies");
    let address = site.service_address(1, "hello");
    for number in 1..=4 {
        site.await_hello(number, &address);
    }
    // Logs of a pod on a machine whose session another server may hold, through every server.
    let pods = site.ready_pods(1);
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
        site.ready_pods(other).values().filter(|node| **node != dead).count() == 9
    });
    println!("replaced {:?} after the leader's node died", began.elapsed());
    // It comes back and lets go of what was replaced; what is right elsewhere is not touched.
    let before = site.ready_pods(other);
    let began = Instant::now();
    site.at_mut(leader).up();
    site.await_ready_nodes(other, 4);
    site.wait("the old copies to be gone", |site| {
        site.at(other).get(&["pods"])["items"].as_array().is_some_and(|items| items.len() == 9)
    });
    println!("converged {:?} after it came back", began.elapsed());
    assert_eq!(site.ready_pods(other).into_keys().collect::<Vec<_>>(), before.into_keys().collect::<Vec<_>>());

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
    site.wait("every copy to be ready", |site| site.ready_pods(2).len() == 9);
    assert_eq!(site.at(1).container_ids(), ids, "nothing was restarted");
    for machine in 1..=4 {
        site.await_hello(machine, &address);
    }
}
