//! Machines that go on purpose: a node is emptied without a lost request, a node leaves, the leader's server leaves, a dead server is
//! taken out; and who left can come again.

use coracle_cluster_tests::machine::have;
use coracle_cluster_tests::site::{Load, Site, hello};
use serde_json::Value;

/// How many ready pods a node has.
fn on(site: &Site, seen_by: usize, node: &str) -> usize {
    site.ready_pods(seen_by).values().filter(|on| *on == node).count()
}

/// The names of the servers, in order, those that vote, and who leads.
fn servers(site: &Site, seen_by: usize) -> (Vec<String>, usize, Option<String>) {
    let status = site.at(seen_by).try_coracle(&["status", "--servers", "-o", "json"]);
    let all: Value = serde_json::from_str(&status.out).unwrap_or_default();
    let all = all.as_array().cloned().unwrap_or_default();
    let name = |server: &Value| server["name"].as_str().unwrap_or_default().to_owned();
    let mut names: Vec<String> = all.iter().map(name).collect();
    names.sort();
    let voters = all.iter().filter(|server| server["voter"] == true).count();
    (names, voters, all.iter().find(|server| server["leader"] == true).map(name))
}

/// What makes a machine a member is gone, and its images are not.
fn assert_left(site: &Site, number: usize) {
    let data = site.at(number).data();
    for name in ["cluster.json", "pki", "log", "admin.kubeconfig", "ledger.redb", "up.json"] {
        assert!(!data.join(name).exists(), "{name} is still there");
    }
    assert!(data.join("images").exists(), "the images are gone");
    let bridges = site.at(number).sh("ip -o link show type bridge").out;
    assert!(bridges.is_empty(), "{bridges}");
}

fn join_again(site: &mut Site, number: usize, through: usize, server: bool) {
    let mut make = vec!["token", "create"];
    make.extend(server.then_some("--server"));
    let token = site.at(through).coracle(&make).trim().to_owned();
    let url = format!("https://{}:6443", site.address(through));
    let mut words = vec!["join", url.as_str(), "--token", token.as_str()];
    words.extend(server.then_some("--server"));
    let before = site.at(number).readies();
    site.at_mut(number).starts_with(&words).start().await_ready(before);
}

#[test]
fn a_node_is_emptied_without_a_lost_request_leaves_and_comes_again() {
    if !have("bash") {
        return;
    }
    let mut site = Site::new(4);
    site.form(3, 1);
    site.at_mut(1).import_hello();
    // Everything on the node that will be emptied: the last copy there is the last of all.
    let _ = site.at(1).coracle(&["cordon", "m1", "m2", "m3"]);
    site.at(1).apply(&hello(3));
    site.wait("three copies on m4", |site| on(site, 1, "m4") == 3);
    let _ = site.at(1).coracle(&["uncordon", "m1", "m2", "m3"]);

    // What nobody would make anew is refused by name, and nothing is changed.
    let bare = "apiVersion: v1\nkind: Pod\nmetadata: {name: bare}\nspec:\n  nodeSelector: {kubernetes.io/hostname: m4}\n  \
                containers: [{name: hello, image: example.com/hello:1}]\n";
    let image = hello(1);
    let image =
        image.lines().find_map(|line| line.trim().trim_start_matches("- ").strip_prefix("image: ")).expect("an image");
    site.at(1).apply(&bare.replace("example.com/hello:1", image));
    site.wait("the bare pod on m4", |site| site.ready_pods(1).get("bare").is_some_and(|node| node == "m4"));
    let refused = site.at(1).try_coracle(&["drain", "m4"]);
    assert!(refused.code == 4 && refused.err.contains("default/bare has no controller"), "{refused:?}");
    assert!(site.at(1).get(&["node/m4"])["spec"]["unschedulable"].is_null());
    let unknown = site.at(1).try_coracle(&["cordon", "m44", "m4"]);
    assert!(unknown.code == 3 && unknown.err.contains("did you mean `m4`?"), "{unknown:?}");
    assert_eq!(unknown.out, "node/m4 cordoned\n", "the others get their turn");
    assert_eq!(site.at(2).coracle(&["cordon", "m4"]), "node/m4 already cordoned\n");
    assert_eq!(site.at(3).coracle(&["uncordon", "m4"]), "node/m4 uncordoned\n");

    let load = Load::start(&site, &[1, 4], "stop-drain");
    let said = site.at(2).try_coracle(&["drain", "m4", "--force", "-o", "json"]);
    load.end();
    assert_eq!(said.code, 0, "{said:?}");
    println!("{}", said.err);
    let drained: Value = serde_json::from_str(&said.out).expect("JSON");
    assert!(
        drained["ended"].as_array().is_some_and(|ended| ended.iter().any(|name| name == "default/bare")),
        "{drained}"
    );
    let pods = site.ready_pods(2);
    assert_eq!((pods.len(), on(&site, 2, "m4")), (3, 0), "the drain ends when all have moved: {pods:?}");
    assert_eq!(site.at(1).coracle(&["drain", "m4"]), "node/m4 drained\n", "an empty node is drained");
    let _ = site.at(1).coracle(&["uncordon", "m4"]);
    let _ = site.at(1).coracle(&["scale", "deploy/hello", "--replicas", "12"]);
    site.wait("copies on m4 again", |site| site.ready_pods(1).len() == 12 && on(site, 1, "m4") >= 2);

    // It leaves as the node it is, with pods on it.
    let said = site.at(4).try_coracle(&["leave"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.contains("m4 has left the cluster") && said.err.contains("coracle drain m4"), "{said:?}");
    assert_eq!(site.at_mut(4).ended(), 0);
    assert_left(&site, 4);
    assert_eq!(site.ready_nodes(1), ["m1", "m2", "m3"]);
    assert!(site.at(1).get(&["node/m4"]).is_null());
    site.wait("twelve copies on three nodes", |site| {
        let pods = site.ready_pods(1);
        pods.len() == 12 && pods.values().all(|node| node != "m4")
    });
    assert_eq!(site.at(4).try_coracle(&["leave"]).code, 0, "who is nobody's leaves nobody");
    join_again(&mut site, 4, 2, false);
    site.await_ready_nodes(1, 4);
    let _ = site.at(1).coracle(&["scale", "deploy/hello", "--replicas", "16"]);
    site.wait("copies on m4 once more", |site| site.ready_pods(1).len() == 16 && on(site, 1, "m4") >= 1);

    // With every server gone a node stays what it is, unless it is told to go without a word; a server does not even then.
    for number in 1..=3 {
        site.at_mut(number).kill();
    }
    let refused = site.at(4).try_coracle(&["leave"]);
    assert!(refused.code == 1 && refused.err.contains("nothing was changed"), "{refused:?}");
    assert!(site.at(4).data().join("cluster.json").exists());
    let said = site.at(4).try_coracle(&["leave", "--force", "--grace", "10"]);
    assert!(said.code == 0 && said.err.contains("coracle delete node m4"), "{said:?}");
    assert_eq!(site.at_mut(4).ended(), 0);
    assert_left(&site, 4);
    let refused = site.at(1).try_coracle(&["leave", "--force"]);
    assert!(refused.code == 1 && refused.err.contains("no server of the cluster answers"), "{refused:?}");
    assert!(site.at(1).data().join("log").join("identity").exists());
}

#[test]
fn the_leaders_server_leaves_another_leads_and_it_comes_again() {
    if !have("bash") {
        return;
    }
    let mut site = Site::new(4);
    site.form(3, 1);
    site.at_mut(1).import_hello();
    site.at(1).apply(&hello(8));
    site.wait("eight copies", |site| site.ready_pods(1).len() == 8);
    let leader = site.leader(1).expect("a leader");
    let others: Vec<usize> = (1..=3).filter(|number| *number != leader).collect();
    let (gone, other) = (format!("m{leader}"), others[0]);
    let living = format!("m{}", others[1]);
    let refused = site.at(other).try_coracle(&["leave", "--server", &living]);
    assert!(refused.code == 4 && refused.err.contains("lives"), "{refused:?}");
    assert_eq!(site.at(other).try_coracle(&["leave", "--server", "m9"]).code, 3);

    let load = Load::start(&site, &[other, 4], "stop-leave");
    let said = site.at(leader).try_coracle(&["leave", "-o", "json"]);
    load.end();
    assert_eq!(said.code, 0, "{said:?}\n{}", site.at(leader).log());
    println!("{}", said.err);
    let left: Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!(left, serde_json::json!({"node": gone, "server": true, "drained": true, "nodeDeleted": true}));
    assert_eq!(site.at_mut(leader).ended(), 0);
    assert_left(&site, leader);
    site.wait("another leader of two servers", |site| {
        let (names, _, leads) = servers(site, other);
        names.len() == 2 && !names.contains(&gone) && leads.is_some_and(|name| name != gone)
    });
    assert_eq!(site.ready_pods(other).values().filter(|node| **node != gone).count(), 8, "all have moved");
    assert_eq!(site.ready_nodes(other).len(), 3);

    // With an empty log it is another server of the same name, and three vote again.
    join_again(&mut site, leader, other, true);
    site.wait("three servers to vote", |site| servers(site, other).1 == 3);
    site.await_ready_nodes(leader, 4);
    let _ = site.at(leader).coracle(&["scale", "deploy/hello", "--replicas", "10"]);
    site.wait("ten copies", |site| site.ready_pods(leader).len() == 10);

    // A server that does not lead goes too, here with its pods where they are.
    let follower =
        (1..=3).find(|number| Some(*number) != site.leader(other) && *number != other).expect("a third server");
    let said = site.at(follower).try_coracle(&["leave", "--no-drain", "--grace", "10"]);
    assert_eq!(said.code, 0, "{said:?}\n{}", site.at(follower).log());
    assert_eq!(site.at_mut(follower).ended(), 0);
    assert_left(&site, follower);
    site.wait("two servers", |site| servers(site, other).0.len() == 2);
    join_again(&mut site, follower, other, true);
    site.wait("three servers to vote", |site| servers(site, other).1 == 3);

    // A dead server is taken out from a living machine.
    let dead = (1..=3).find(|number| Some(*number) != site.leader(other) && *number != other).expect("a third server");
    let name = format!("m{dead}");
    site.at_mut(dead).kill();
    site.wait("the node of the dead server to be not ready", |site| site.ready_nodes(other).len() == 3);
    assert_eq!(
        site.at(other).coracle(&["leave", "--server", &name]),
        format!("server {name} removed from the cluster\n")
    );
    site.wait("two servers", |site| servers(site, other).0.len() == 2);
    assert!(site.at(other).get(&[&format!("node/{name}")]).is_null());
    site.wait("ten copies on three nodes", |site| {
        let pods = site.ready_pods(other);
        pods.len() == 10 && pods.values().all(|node| *node != name)
    });
    // The last that votes cannot go, and says so before anything is stopped.
    site.wait("one server to vote", |site| servers(site, other).1 == 1);
    let voter = site.leader(other).expect("a leader");
    let refused = site.at(voter).try_coracle(&["leave"]);
    assert!(refused.code == 1 && refused.err.contains("the only one that votes"), "{refused:?}");
    assert!(site.at(voter).get(&[&format!("node/m{voter}")])["spec"]["unschedulable"].is_null());
}
