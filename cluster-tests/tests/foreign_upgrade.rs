//! A running cluster is given a new release, machine by machine: the release before and this one work together, either leads, pods run
//! on, nothing acknowledged is lost, and what cannot be undone is refused in words.
//!
//! `CORACLE_KEEP_DATA=1 cargo xtask foreign the_data_of` writes the data that `previous_data` reads, once a release.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use coracle_cluster_tests::client::Crew;
use coracle_cluster_tests::machine::{Machine, workspace};
use coracle_cluster_tests::previous::{expect_data, keep_data, previous, write_data};
use coracle_cluster_tests::site::{Answered, Seen, Site, Where};
use serde_json::Value;

const SERVERS: [usize; 3] = [1, 2, 3];
/// Restarts after which the wanted server leads, all but surely.
const TURNS: usize = 12;

/// Two releases beside each other, on a machine that may be busy with other tests.
const PATIENCE: Duration = Duration::from_secs(180);

fn wait(site: &Site, what: &str, look: impl FnMut(&Site) -> bool) {
    site.wait_within(PATIENCE, what, look);
}

/// The demo app, and an app that is told a Secret.
fn app() -> String {
    let hello = std::fs::read_to_string(workspace().join("examples/hello.yaml")).expect("the example");
    let keeper = hello.split("\n---\n").next().expect("a Deployment").replace("hello", "keeper");
    let keeper =
        keeper.replace("coracle.local/keeper:1", "coracle.local/hello:1").replace("replicas: 3", "replicas: 1");
    let secret = "            - name: WORD\n              valueFrom: {secretKeyRef: {name: word, key: word}}\n";
    let keeper = keeper.replace("          readinessProbe:", &format!("{secret}          readinessProbe:"));
    let word = "apiVersion: v1\nkind: Secret\nmetadata: {name: word}\nstringData: {word: open}\n";
    format!("{word}---\n{hello}\n---\n{keeper}\n")
}

/// Containers by name, with their ids and restarts.
type Running = BTreeMap<String, (String, u64)>;

fn running(site: &Site, seen_by: usize) -> Running {
    site.at(seen_by).container_ids()
}

fn ready(site: &Site, seen_by: usize) -> usize {
    let pods = site.at(seen_by).get(&["pods"]);
    let ready = |pod: &&Value| {
        let conditions = pod["status"]["conditions"].as_array();
        let ready = conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True");
        ready && pod["metadata"]["deletionTimestamp"].is_null()
    };
    pods["items"].as_array().into_iter().flatten().filter(ready).count()
}

/// Stops a machine's program and starts another one with its data, or the same: `None` is this release.
fn restart(site: &mut Site, number: usize, program: Option<&Path>) {
    site.at_mut(number).stop();
    site.at_mut(number).runs(program).up();
}

fn leader(site: &Site, seen_by: usize) -> usize {
    let mut leader = None;
    wait(site, "a leader", |site| {
        leader = site.leader(seen_by);
        leader.is_some()
    });
    leader.expect("a leader")
}

/// Restarts who leads, until it is one of these. Each runs what it ran.
fn let_lead(site: &mut Site, wanted: &[usize], program: impl Fn(usize) -> Option<std::path::PathBuf>) {
    for _ in 0..TURNS {
        let leads = leader(site, 1);
        if wanted.contains(&leads) {
            return;
        }
        restart(site, leads, program(leads).as_deref());
    }
    panic!("none of {wanted:?} leads after {TURNS} restarts of others");
}

/// A field of each server as a new one sees it: name -> value.
fn shown(site: &Site, seen_by: usize, field: &str) -> BTreeMap<String, Value> {
    let status = site.at(seen_by).try_coracle(&["status", "--servers", "-o", "json"]);
    let servers: Value = serde_json::from_str(&status.out).unwrap_or_default();
    let servers = servers.as_array().cloned().unwrap_or_default();
    servers.iter().map(|one| (one["name"].as_str().unwrap_or_default().to_owned(), one[field].clone())).collect()
}

fn await_levels(site: &Site, seen_by: usize, levels: [u32; 3], cluster: u32) {
    let names = |values: [u32; 3]| -> BTreeMap<String, Value> {
        SERVERS.iter().zip(values).map(|(number, value)| (format!("m{number}"), value.into())).collect()
    };
    let (levels, cluster) = (names(levels), names([cluster; 3]));
    wait(site, &format!("m{seen_by} to show the levels {levels:?}"), |site| shown(site, seen_by, "level") == levels);
    wait(site, &format!("the cluster level to be {cluster:?} on m{seen_by}"), |site| {
        shown(site, seen_by, "cluster_level") == cluster
    });
}

fn three_vote(site: &Site, seen_by: usize) {
    wait(site, "three servers to vote", |site| {
        shown(site, seen_by, "voter").values().filter(|it| **it == true).count() == 3
    });
}

fn map(name: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\n")
}

/// Waits until the app answers on a machine by its Service and, through a pod, by its name.
fn answers(site: &Site, number: usize, address: &str) {
    wait(site, &format!("the app to answer on m{number}"), |site| {
        let said = site.at(number).http(&format!("{address}:80"), "/ask?host=hello");
        said.is_some_and(|said| said.contains("hello from hello-"))
    });
}

/// All servers lose their logs; the first, which has the release before, begins anew from a backup, the others join it. The agents have
/// seen what came after the backup.
fn restore(site: &mut Site, file: &str) {
    let before = running(site, 2);
    let listed = site.api(Where::At(2), 2).list();
    let version = listed.object().and_then(|list| list["metadata"]["resourceVersion"].as_str());
    let version = version.expect("a list's version").to_owned();
    for number in SERVERS {
        site.at_mut(number).kill();
        std::fs::remove_dir_all(site.at(number).data().join("log")).expect("the log goes");
    }
    let said = site.at(1).coracle(&["restore", file]);
    assert!(said.contains("restored"), "{said}");
    for number in SERVERS {
        site.at_mut(number).up();
    }
    site.await_ready_nodes(2, 4);
    wait(site, "as many copies as the backup says, and no more", |site| {
        let pods = site.at(2).get(&["pods"]);
        ready(site, 2) == 4 && pods["items"].as_array().is_some_and(|pods| pods.len() == 4)
    });
    three_vote(site, 2);
    for (name, id) in running(site, 2) {
        assert_eq!(before.get(&name), Some(&id), "{name} is the process of before");
    }
    // Whoever watches is told to begin anew, on old servers and new ones.
    for number in SERVERS {
        let gone = match site.api(Where::At(number), number).watch(&version) {
            Err(Answered::Refused { code, .. }) => code == 410,
            Ok(mut watch) => match watch.next(Duration::from_secs(5)) {
                Seen::Event(what, object) => what == "ERROR" && object["code"] == 410,
                _ => false,
            },
            Err(_) => false,
        };
        assert!(gone, "a watch of the old life on m{number} goes on");
        let maps = site.at(number).coracle(&["get", "configmaps"]);
        assert!(maps.contains("kept") && !maps.contains("later"), "{maps}");
    }
}

#[test]
fn the_data_of_the_release_before_is_read() {
    let Some(old) = previous() else { return };
    let mut machine = Machine::new().with(&["--log-segment-mb", "16"]);
    write_data(machine.runs(Some(&old)));
    if std::env::var_os("CORACLE_KEEP_DATA").is_some() {
        keep_data(&machine);
    }
    expect_data(&mut machine);
    let restarts: Vec<u64> = machine.container_ids().values().map(|(_, restarts)| *restarts).collect();
    assert_eq!(restarts, [0], "its pod runs on");
    machine.down();
}

#[test]
fn an_upgrade_goes_machine_by_machine_through_a_running_cluster() {
    let Some(old) = previous() else { return };
    let mut site = Site::new(5);
    for number in 1..=5 {
        site.at_mut(number).runs(Some(&old));
    }
    site.form(3, 1);
    site.all().take(4).for_each(Machine::import_hello);
    site.at(1).apply(&app());
    site.at(1).apply(&map("kept"));
    wait(&site, "all copies", |site| ready(site, 1) == 4);
    let file = site.at(1).folder().join("site.backup").display().to_string();
    assert!(site.at(1).coracle(&["backup", &file]).contains("checked"));
    let pods = running(&site, 1);
    let address = site.at(1).get(&["service", "hello"])["spec"]["clusterIP"].as_str().expect("an address").to_owned();

    // Not the way it is told, but it works: a new agent with old servers, and back.
    restart(&mut site, 4, None);
    wait(&site, "the new agent to have a session with an old server", |site| site.at(4).log().contains("level=1"));
    site.at(1).apply(&map("seen"));
    assert_eq!(running(&site, 1), pods, "nothing was restarted");
    restart(&mut site, 4, Some(&old));

    // The old one leads while two others get the new release.
    let_lead(&mut site, &[1], |_| Some(old.clone()));
    let crew = Crew::start(&site, &SERVERS, "upgrade", rand::random());
    for number in [2, 3] {
        restart(&mut site, number, None);
        let since = Instant::now();
        wait(&site, "every server to take writes", |_| crew.served(&SERVERS, since, 5));
        assert_eq!(leader(&site, number), 1, "the old one leads");
        await_levels(&site, number, if number == 2 { [1, 2, 1] } else { [1, 2, 2] }, 1);
        assert_eq!(running(&site, number), pods, "nothing was restarted");
    }
    // A new one leads, and the old one follows.
    let_lead(&mut site, &[2, 3], |number| (number == 1).then(|| old.clone()));
    let since = Instant::now();
    wait(&site, "every server to take writes", |_| crew.served(&SERVERS, since, 5));
    let seal = crew.end(&site, &SERVERS);
    println!("{} writes, {} reads, watches {:?}, odd {:?}", seal.acks.len(), seal.reads, seal.watches, seal.odd);
    assert!(seal.complaints.is_empty() && seal.stale.is_empty(), "{:#?}{:#?}", seal.complaints, seal.stale);
    assert_ne!(leader(&site, 2), 1, "a new one leads");
    await_levels(&site, 2, [1, 2, 2], 1);
    let words = site.at(3).coracle(&["status", "--servers"]);
    assert!(words.contains("cluster level: 1") && words.contains("m1 is at level 1"), "{words}");
    assert_eq!(running(&site, 1), pods, "nothing was restarted");

    // In the middle of it all: what was written since the backup is lost, what runs is not.
    site.at(3).apply(&map("later"));
    let _ = site.at(3).coracle(&["scale", "deploy/hello", "--replicas", "6"]);
    wait(&site, "more copies", |site| ready(site, 1) == 7);
    restore(&mut site, &file);
    await_levels(&site, 2, [1, 2, 2], 1);
    let pods = running(&site, 2);

    // The last server; the level rises by itself.
    restart(&mut site, 1, None);
    for number in SERVERS {
        await_levels(&site, number, [2, 2, 2], 2);
    }
    // Then the agent, which until here was an old one with new servers.
    site.at(1).apply(&map("risen"));
    restart(&mut site, 4, None);
    site.await_ready_nodes(1, 4);
    assert_eq!(running(&site, 1), pods, "nothing was restarted");
    answers(&site, 4, &address);

    // There is no way back, and none for others either.
    site.at_mut(2).stop();
    site.at_mut(2).runs(Some(&old)).start();
    assert_ne!(site.at_mut(2).ended(), 0);
    // What it meets first is the sealed key of the authority; behind that stands the format of the log.
    let words = site.at(2).log();
    let refused =
        ["certificate authority in", "format 2 is newer than this release"].iter().any(|why| words.contains(why));
    assert!(refused, "{words}");
    answers(&site, 2, &address);
    let token = site.at(1).coracle(&["token", "create", "--server"]);
    let url = format!("https://{}:6443", site.address(1));
    site.at_mut(5).starts_with(&["join", &url, "--token", token.trim(), "--server"]).start();
    assert_ne!(site.at_mut(5).ended(), 0);
    let log = site.at(5).log();
    assert!(log.contains("a release of level 1, and the cluster is at level 2"), "{log}");
    site.at_mut(2).runs(None).up();
    site.at_mut(5).runs(None).up();
    site.await_ready_nodes(2, 5);
    assert_eq!(running(&site, 2), pods, "nothing was restarted");
}
