//! Disks on bad days: full, damaged, torn. What was acknowledged stays, what is wrong is said, what helps is said with it.

use coracle_cluster_tests::disk::Disk;
use coracle_cluster_tests::machine::Machine;

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: NAME}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers: [{name: main, image: \"coracle.local/hello:1\"}]\n---\n";

/// ConfigMaps of half a megabyte each: what they hold is kept twice, the second time in the annotation of `apply`.
fn bulk(first: usize, count: usize) -> String {
    let text = "x".repeat(250_000);
    let one = |number: usize| {
        format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"bulk{number}\"}},\"data\":{{\"text\":\"{text}\"}}}}"
        )
    };
    let all: Vec<String> = (first..first + count).map(one).collect();
    format!("{{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [{}]}}\n", all.join(","))
}

fn small(name: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{a: b}}\n")
}

fn is_running(machine: &Machine, pod: &str) -> bool {
    machine.get(&[&format!("pod/{pod}")])["status"]["phase"] == "Running"
}

/// The names in what `apply` said it has created, `kind/name`.
fn created(out: &str) -> Vec<String> {
    out.lines().filter_map(|line| line.strip_suffix(" created")).map(ToOwned::to_owned).collect()
}

#[test]
fn a_full_disk_takes_deletions_and_goes_on_once_it_has_room() {
    let disk = Disk::new(320);
    let mut machine = Machine::new().data_at(&disk.path().join("data"));
    machine.up();
    machine.import_hello();
    machine.apply(&["a", "b"].map(|name| POD.replace("NAME", name)).concat());
    machine.wait("the pods to run", |machine| is_running(machine, "a") && is_running(machine, "b"));
    disk.fill();
    // The log has room set aside for a while; then it says no, and keeps the last of it for deletions.
    let mut acknowledged = Vec::new();
    let mut refused = None;
    for round in 0..40 {
        let said = machine.try_apply(&bulk(round * 16, 16));
        acknowledged.extend(created(&said.out));
        if said.code != 0 {
            refused = Some(said);
            break;
        }
    }
    let refused = refused.expect("twenty times the log's room was taken");
    let full = "the disk of the cluster's log is full\nhint: free space below the data directory, or delete objects";
    assert!(refused.code == 1 && refused.err.contains(full), "{refused:?}");
    assert!(acknowledged.len() > 100, "{} objects went into 64 MB", acknowledged.len());
    let status = machine.try_coracle(&["status"]);
    assert!(status.code == 5 && status.err.contains("the disk of the cluster's log is full"), "{status:?}");
    let _ = machine.coracle(&["delete", "pod/a", "cm/bulk0"]);
    assert_eq!(machine.try_apply(&small("late")).code, 1);

    // A new start changes nothing of it, and is not kept from starting.
    machine.kill();
    machine.up();
    assert!(is_running(&machine, "b"));
    assert_eq!(machine.try_apply(&small("late")).code, 1);
    let _ = machine.coracle(&["delete", "pod/b", "cm/bulk1"]);

    disk.free();
    machine.wait("the log to take writes again", |machine| machine.try_apply(&small("more")).code == 0);
    let there = machine.get(&["cm"]);
    let names: Vec<String> = there["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|item| format!("configmap/{}", item["metadata"]["name"].as_str().unwrap_or_default()))
        .collect();
    for name in &acknowledged {
        let deleted = ["configmap/bulk0", "configmap/bulk1"].contains(&name.as_str());
        assert_eq!(names.contains(name), !deleted, "{name}, acknowledged");
    }
    assert!(names.contains(&"configmap/more".to_owned()) && !names.contains(&"configmap/late".to_owned()));
    machine.apply(&POD.replace("NAME", "c"));
    machine.wait("a new pod to run", |machine| is_running(machine, "c"));
    machine.wait("the machine to be well", |machine| machine.try_coracle(&["status"]).code == 0);
    let log = machine.log();
    for once in ["no snapshot is written until", "the ledger is not written until"] {
        assert!(log.matches(once).count() <= 2, "told more than once a start: {log}");
    }
    machine.wait("the ledger to be written", |machine| machine.log().contains("the ledger is written again"));
    machine.down();
}

#[test]
fn a_disk_too_small_for_the_log_is_told_at_the_start() {
    let disk = Disk::new(150);
    let mut machine = Machine::new().data_at(&disk.path().join("data"));
    machine.start();
    let code = machine.ended();
    let said = machine.log();
    assert!(code == 1 && said.matches("error: ").count() == 1, "{code}: {said}");
    assert!(said.contains("data/log/log has no room for the cluster's log: 192 MB are set aside for it"), "{said}");
    assert!(said.contains("\nhint: free some, or put the data directory on another disk with --data-dir"), "{said}");
    assert_eq!(machine.left_over(), Vec::<String>::new());
}
