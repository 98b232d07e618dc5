//! `kill -9` of `coracle up` at random moments while others apply and delete: every acknowledged object is there, every
//! container keeps its process, nothing leaks.
//!
//! `CORACLE_KILLS=n` changes the number of kills, `CORACLE_KILL_SEED=n` replays their moments.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use coracle_cluster_tests::machine::{Machine, program};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Writers side by side.
const LANES: usize = 2;
/// Pods each writer leaves standing behind it.
const KEPT: usize = 3;

/// What the writers know to be stored: acknowledged, and not yet asked to go.
#[derive(Default)]
struct Load {
    standing: Mutex<BTreeSet<String>>,
    acknowledged: AtomicU64,
    stop: AtomicBool,
}

fn yaml(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{owner: {name}}}\n---\napiVersion: v1\nkind: Pod\n\
         metadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: c\n    image: coracle.local/hello:1\n    \
         imagePullPolicy: IfNotPresent\n    envFrom: [{{configMapRef: {{name: {name}}}}}]\n"
    )
}

/// Runs a verb until it is acknowledged; false when the load is told to stop before.
fn insist(load: &Load, command: &mut dyn FnMut() -> std::process::Command, input: &str, fine: &[i32]) -> bool {
    loop {
        let mut child = command()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the program starts");
        let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
        let code = child.wait().expect("the program ends").code().unwrap_or(-1);
        if fine.contains(&code) {
            load.acknowledged.fetch_add(1, Ordering::SeqCst);
            return true;
        }
        if load.stop.load(Ordering::SeqCst) {
            return false;
        }
        // Nobody is there to answer: no reason to keep the processor from the one that is starting.
        std::thread::sleep(Duration::from_millis(20)); // poll
    }
}

/// A writer: two objects come, and the oldest ones go.
fn lane(load: &Load, number: usize, mut command: impl FnMut(&[&str]) -> std::process::Command) {
    let mut mine: Vec<String> = Vec::new();
    let mut next = 0;
    while !load.stop.load(Ordering::SeqCst) {
        let name = format!("l{number}-{next}");
        next += 1;
        if !insist(load, &mut || command(&["apply", "-f", "-"]), &yaml(&name), &[0]) {
            return;
        }
        load.standing.lock().expect("a lock").insert(name.clone());
        mine.push(name);
        if mine.len() > KEPT {
            let old = mine.remove(0);
            load.standing.lock().expect("a lock").remove(&old);
            let (pod, settings) = (format!("pod/{old}"), format!("cm/{old}"));
            // 3: an attempt before this one was carried out, but its answer was lost.
            if !insist(load, &mut || command(&["delete", &pod]), "", &[0, 3])
                || !insist(load, &mut || command(&["delete", &settings]), "", &[0, 3])
            {
                return;
            }
        }
    }
}

/// Every `hello` process in the cgroups of the machine: (pid, start time) -> cgroup.
fn processes(machine: &Machine) -> BTreeMap<(u32, u64), String> {
    let mut found = BTreeMap::new();
    let subtree = format!("/{}/", machine.cgroup());
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let cgroups = read("cgroup");
        let Some(line) = cgroups.lines().find(|line| line.contains(&subtree)) else { continue };
        let stat = read("stat");
        let Some((name, rest)) = stat.rsplit_once(") ") else { continue };
        if name.ends_with("(hello") {
            let start = rest.split(' ').nth(19).and_then(|field| field.parse().ok()).unwrap_or(0);
            found.insert((pid, start), line.to_owned());
        }
    }
    found
}

/// Name and uid of the pods that run and are not going.
fn running(machine: &Machine) -> BTreeMap<String, String> {
    let pods = machine.get(&["pods"]);
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|pod| pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running")
        .map(|pod| (text(&pod["metadata"]["name"]), text(&pod["metadata"]["uid"])))
        .collect()
}

/// After a restart: what was acknowledged is there, and whoever ran before runs still, as the same process. How many objects
/// and processes were looked at.
fn check(machine: &Machine, load: &Load, before: &BTreeMap<(u32, u64), String>, context: &str) -> (usize, usize) {
    let standing = load.standing.lock().expect("a lock").clone();
    let there = |resource: &str| -> BTreeSet<String> {
        let list = machine.get(&[resource]);
        let items = list["items"].as_array().unwrap_or_else(|| panic!("{context}: no list of {resource}: {list}"));
        items.iter().filter_map(|item| item["metadata"]["name"].as_str().map(ToOwned::to_owned)).collect()
    };
    let (pods, settings) = (there("pods"), there("cm"));
    let pod_uids = running(machine);
    let now = processes(machine);
    // What the writers have let go since then may be gone.
    let standing: BTreeSet<String> = &standing & &*load.standing.lock().expect("a lock");
    for name in &standing {
        assert!(pods.contains(name), "{context}: pod {name} was acknowledged and is gone");
        assert!(settings.contains(name), "{context}: configmap {name} was acknowledged and is gone");
    }
    let mut kept = 0;
    for ((pid, start), cgroup) in before {
        let owner = pod_uids.iter().find(|(_, uid)| cgroup.contains(uid.as_str()));
        let Some((name, _)) = owner.filter(|(name, _)| standing.contains(*name) || name.starts_with("hello")) else {
            continue;
        };
        assert!(now.contains_key(&(*pid, *start)), "{context}: process {pid} of pod {name} is gone: {now:?}");
        kept += 1;
    }
    assert!(kept >= 3, "{context}: no process of a pod was recognised in {before:?}");
    (2 * standing.len(), kept)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn kills_at_random_moments_lose_nothing() {
    let kills = number("CORACLE_KILLS").unwrap_or(50);
    let seed = number("CORACLE_KILL_SEED").unwrap_or_else(|| rand::random_range(0..1 << 32));
    println!("CORACLE_KILL_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut machine = Machine::new();
    machine.up();
    machine.import_hello();
    let _ = machine.coracle(&["apply", "-f", "examples/hello.yaml"]);
    machine.wait_ready("hello", 3);
    let first = machine.container_ids();

    let load = Arc::new(Load::default());
    let writers: Vec<_> = (0..LANES)
        .map(|number| {
            let (load, base) = (load.clone(), machine.commands());
            std::thread::spawn(move || {
                lane(&load, number, |words| {
                    let mut command = base(&program("coracle"));
                    command.args(words);
                    command
                });
            })
        })
        .collect();
    let (mut starts_hit, mut objects, mut processes_kept) = (0, 0, 0);
    for round in 0..kills {
        let context = format!("CORACLE_KILL_SEED={seed} kill {round}");
        std::thread::sleep(Duration::from_millis(rng.random_range(0..600))); // random moment
        let before = processes(&machine);
        machine.kill();
        // One in three strikes again while the next start is still going on.
        if rng.random_range(0..3) == 0 {
            machine.start();
            std::thread::sleep(Duration::from_millis(rng.random_range(0..150))); // random moment
            machine.kill();
            starts_hit += 1;
        }
        machine.up();
        let (there, kept) = check(&machine, &load, &before, &context);
        objects += there;
        processes_kept += kept;
    }
    load.stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.join().expect("a writer");
    }
    settle(&mut machine, &load, &first);
    println!(
        "{kills} kills and {starts_hit} more during the start after one: {} acknowledged writes; looked at {objects} objects and {processes_kept} processes, 0 lost",
        load.acknowledged.load(Ordering::SeqCst)
    );
    machine.down();
}

/// When nobody writes any more: what was let go goes, the rest runs, and nothing was ever restarted.
fn settle(machine: &mut Machine, load: &Load, first: &BTreeMap<String, (String, u64)>) {
    let standing = load.standing.lock().expect("a lock").clone();
    machine.wait("the standing pods to run", |machine| {
        let running = running(machine);
        standing.iter().all(|name| running.contains_key(name))
    });
    let known = machine.container_ids();
    for (name, id) in first {
        assert_eq!(known.get(name), Some(id), "a container was restarted or replaced");
    }
    for (name, (id, restarts)) in &known {
        assert!(*restarts == 0 && !id.is_empty(), "{name} was restarted {restarts} times");
    }
    let _ = machine.coracle(&["delete", "-f", "examples/hello.yaml"]);
    for name in machine.get(&["pods"])["items"].as_array().into_iter().flatten() {
        let name = name["metadata"]["name"].as_str().unwrap_or_default();
        if name.starts_with('l') {
            let _ = machine.try_coracle(&["delete", &format!("pod/{name}")]);
        }
    }
    machine
        .wait("the pods to be gone", |machine| machine.get(&["pods"])["items"].as_array().is_some_and(Vec::is_empty));
    machine.wait("their processes to be gone", |machine| processes(machine).is_empty());
}
