//! What a cluster is worth comes back: from a backup an hour old under nodes that have gone on, and from one of three servers.

use std::collections::BTreeMap;

use coracle_cluster_tests::site::{Site, hello};

fn ids(site: &Site, seen_by: usize) -> BTreeMap<String, (String, u64)> {
    site.at(seen_by).container_ids()
}

#[test]
fn an_old_backup_takes_over_what_runs_and_one_server_of_three_is_enough_to_go_on() {
    let mut site = Site::new(4);
    site.form(3, 1);
    site.all().for_each(coracle_cluster_tests::machine::Machine::import_hello);
    site.at(1).apply(&hello(3));
    site.wait("three copies", |site| site.ready_pods(1).len() == 3);
    site.at(2).apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kept}\n");
    let file = site.at(1).folder().join("site.backup").display().to_string();
    let said = site.at(2).coracle(&["backup", &file]);
    assert!(said.contains("checked"), "{said}");
    assert!(site.at(1).coracle(&["restore", "--check", &file]).contains("whole"));

    // Life goes on: more copies, and one object that the backup does not know.
    let _ = site.at(1).coracle(&["scale", "deploy/hello", "--replicas", "6"]);
    site.wait("six copies", |site| site.ready_pods(1).len() == 6);
    site.at(1).apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: later}\n");
    let before = ids(&site, 1);

    // All servers lose their disks at once; the first begins anew from the backup.
    for number in 1..=3 {
        site.at_mut(number).kill();
    }
    for number in 1..=3 {
        let data = site.at(number).data();
        std::fs::remove_dir_all(data.join("log")).expect("the log goes");
        if number > 1 {
            std::fs::remove_file(data.join("ledger.redb")).expect("an agent that has forgotten too");
        }
    }
    let said = site.at(1).coracle(&["restore", &file]);
    assert!(said.contains("restored"), "{said}");
    let refused = site.at(1).try_coracle(&["restore", &file]);
    assert!(refused.code == 1 && refused.err.contains("holds a cluster already"), "{}", refused.err);
    site.at_mut(1).up();
    let readies: Vec<usize> = (2..=3).map(|number| site.at(number).readies()).collect();
    for number in 2..=3 {
        site.at_mut(number).start().await_ready(readies[number - 2]);
    }
    site.await_ready_nodes(1, 4);
    site.wait("three copies and no more, as the backup says", |site| {
        site.ready_pods(1).len() == 3
            && site.at(1).get(&["pods"])["items"].as_array().is_some_and(|pods| pods.len() == 3)
    });
    assert!(site.at(3).coracle(&["get", "configmaps"]).contains("kept"));
    assert!(!site.at(3).coracle(&["get", "configmaps"]).contains("later"));
    // What is left are processes of before: nothing was started for it.
    for (name, id) in ids(&site, 1) {
        if let Some(known) = before.get(&name) {
            assert_eq!(known, &id, "{name} is the process of before");
        }
    }
    let kept = ids(&site, 1).keys().filter(|name| before.contains_key(*name)).count();
    println!("{kept} of 3 copies are processes of before the restore");
    site.wait("three servers to vote again", |site| {
        let status = site.at(1).try_coracle(&["status", "--servers", "-o", "json"]);
        let servers: serde_json::Value = serde_json::from_str(&status.out).unwrap_or_default();
        servers.as_array().into_iter().flatten().filter(|server| server["voter"] == true).count() == 3
    });

    // Two of the three are lost for good.
    site.at(2).apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: second-life}\n");
    let before = ids(&site, 1);
    for number in 1..=3 {
        site.at_mut(number).kill();
    }
    let refused = site.at(3).try_coracle(&["recover"]);
    assert_eq!(refused.code, 2, "{}", refused.err);
    let said = site.at(3).coracle(&["recover", "--yes"]);
    assert!(said.contains("kept at"), "{said}");
    let before_start = site.at(3).readies();
    site.at_mut(3).start().await_ready(before_start);
    site.wait("the server alone to answer", |site| site.at(3).coracle(&["get", "configmaps"]).contains("second-life"));
    site.at(3).apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: third-life}\n");
    site.wait("the node that had no server to be ready", |site| site.ready_nodes(3).contains(&"m4".to_owned()));
    for (name, id) in ids(&site, 3) {
        if let Some(known) = before.get(&name) {
            assert_eq!(known.0, id.0, "{name} was not restarted");
        }
    }
}
