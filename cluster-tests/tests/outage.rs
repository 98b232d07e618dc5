//! Every server is gone for a minute: on nodes without a server nothing changes, and nothing restarts when they come back.

use std::time::{Duration, Instant};

use coracle_cluster_tests::machine::have;
use coracle_cluster_tests::site::{Load, Site, hello};

const OUTAGE: Duration = Duration::from_secs(60);

#[test]
fn a_minute_without_any_server_changes_nothing_on_the_nodes() {
    if !have("bash") {
        return;
    }
    let mut site = Site::new(5);
    site.form(3, 2);
    for server in ["m1", "m2", "m3"] {
        let _ = site.at(1).coracle(&["cordon", server]);
    }
    site.at(4).import_hello();
    site.at(1).apply(&hello(4));
    site.wait("four copies", |site| site.ready_pods(1).len() == 4);
    let pods = site.ready_pods(1);
    assert!(pods.values().all(|node| node == "m4" || node == "m5"), "{pods:?}");
    assert!(pods.values().any(|node| node == "m4") && pods.values().any(|node| node == "m5"), "{pods:?}");
    let address = site.service_address(1, "hello");
    for number in [4, 5] {
        site.await_hello(number, &address);
    }
    let ids = site.at(1).container_ids();

    // The Service itself answers all the time, whatever becomes of the agents.
    let service = Load::asking(&site, &[4, 5], "stop-service", &address, "/");
    // Its name is found as long as there is an agent on the pod's node.
    let names = Load::asking(&site, &[4, 5], "stop-names", &address, "/ask?host=hello");
    let began = Instant::now();
    for number in 1..=3 {
        site.at_mut(number).kill();
    }
    site.wait("half of the outage", |_| began.elapsed() > OUTAGE / 2);
    names.end();
    // An agent that starts without any server takes over what it finds.
    let before = site.at(5).readies();
    site.at_mut(5).kill();
    site.at_mut(5).start().await_ready(before);
    let names = Load::asking(&site, &[4, 5], "stop-names-again", &address, "/ask?host=hello");
    site.wait("the rest of the outage", |_| began.elapsed() > OUTAGE);
    let before: Vec<usize> = (1..=3).map(|number| site.at(number).readies()).collect();
    for number in 1..=3 {
        site.at_mut(number).start();
    }
    for number in 1..=3 {
        site.at_mut(number).await_ready(before[number - 1]);
    }
    site.await_ready_nodes(1, 5);
    println!("back after {:?}", began.elapsed());
    // The cluster works: what is new is made, and what was there is not touched.
    let _ = site.at(2).coracle(&["scale", "deploy/hello", "--replicas", "5"]);
    site.wait("a fifth copy", |site| site.ready_pods(3).len() == 5);
    names.end();
    service.end();
    let now = site.at(2).container_ids();
    assert_eq!(now.len(), 5);
    for (container, id) in &ids {
        assert_eq!(now.get(container), Some(id), "{container} was restarted");
    }
}
