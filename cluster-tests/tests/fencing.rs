//! A pod that must be unique moves by itself when its node is lost, and never runs twice. The witness is the kernel that all
//! machines of the test share: it sees every process of the pod, whatever agents and servers believe.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use coracle_cluster_tests::site::Site;

const APP: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: only}
spec:
  replicas: 1
  strategy: {type: Recreate}
  selector: {matchLabels: {app: only}}
  template:
    metadata:
      labels: {app: only}
      annotations: {coracle.dev/fenced: "true"}
    spec:
      terminationGracePeriodSeconds: 2
      containers:
      - name: hello
        image: coracle.local/hello:1
        imagePullPolicy: IfNotPresent
        readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1}
"#;

/// Which cgroups of these have a live process of the app right now.
fn alive(cgroups: &[String]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let Some((name, rest)) = stat.rsplit_once(") ") else { continue };
        if !name.ends_with("(hello") || rest.starts_with('Z') || rest.starts_with('X') {
            continue;
        }
        let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        found.extend(cgroups.iter().filter(|cgroup| groups.contains(&format!("/{cgroup}/"))).cloned());
    }
    found
}

/// Looks without pause; remembers the worst it saw.
struct Witness {
    stop: Arc<AtomicBool>,
    worst: Arc<Mutex<BTreeSet<String>>>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Witness {
    fn of(site: &Site) -> Self {
        let cgroups: Vec<String> = site.all().map(coracle_cluster_tests::machine::Machine::cgroup).collect();
        let (stop, worst) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<BTreeSet<String>>>::default());
        let (ends, seen) = (stop.clone(), worst.clone());
        let thread = std::thread::spawn(move || {
            let mut looks = 0;
            while !ends.load(Ordering::SeqCst) {
                let now = alive(&cgroups);
                looks += 1;
                let mut worst = seen.lock().expect("a lock");
                if now.len() > worst.len() {
                    *worst = now;
                }
                drop(worst);
                std::thread::sleep(Duration::from_millis(5)); // poll
            }
            looks
        });
        Self { stop, worst, thread: Some(thread) }
    }

    fn ends(mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let looks = self.thread.take().expect("once").join().expect("the witness");
        let worst = self.worst.lock().expect("a lock");
        println!("the witness looked {looks} times and saw at most {} at once", worst.len());
        assert!(worst.len() <= 1, "it ran twice: on {worst:?}");
        assert!(looks > 100, "the witness slept");
    }
}

/// The machine whose node has the pod, ready, as one machine sees it.
fn place(site: &Site, seen_by: usize) -> Option<usize> {
    let pods = site.at(seen_by).get(&["pods"]);
    let ready = pods["items"].as_array()?.iter().find(|pod| {
        let conditions = pod["status"]["conditions"].as_array();
        conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True")
    })?;
    ready["spec"]["nodeName"].as_str()?.strip_prefix('m')?.parse().ok()
}

fn moves(site: &Site, from: usize, began: Instant, what: &str) -> usize {
    let seen_by = if from == 1 { 2 } else { 1 };
    let mut to = from;
    site.wait(&format!("{what}: the pod to move"), |site| {
        to = place(site, seen_by).unwrap_or(from);
        to != from
    });
    println!("{what}: runs on m{to} {:?} after m{from} was lost", began.elapsed());
    to
}

#[test]
fn a_fenced_pod_moves_by_itself_and_never_runs_twice() {
    let mut site = Site::new(3);
    site.form(3, 0);
    // On every machine: the only one that has it may be the one that dies.
    site.all().for_each(coracle_cluster_tests::machine::Machine::import_hello);
    site.at(1).apply(APP);
    let mut at = 0;
    site.wait("the pod to run", |site| {
        at = place(site, 1).unwrap_or(0);
        at != 0
    });

    // The agent (and the server beside it) is dead and stays so; the pod's monitor has nobody to renew its lease.
    let witness = Witness::of(&site);
    let began = Instant::now();
    site.at_mut(at).kill();
    let to = moves(&site, at, began, "agent killed");
    let before = site.at(at).readies();
    site.at_mut(at).start().await_ready(before);
    site.await_ready_nodes(to, 3);
    witness.ends();
    at = to;

    // The agent hangs: its process is stopped, its sockets stay open.
    let witness = Witness::of(&site);
    let began = Instant::now();
    site.at(at).freeze(true);
    let to = moves(&site, at, began, "agent stopped");
    site.at(at).freeze(false);
    site.await_ready_nodes(to, 3);
    witness.ends();
    at = to;

    // The machine is cut off: its agent goes on talking to the server beside it, which follows nobody any more.
    let witness = Witness::of(&site);
    let began = Instant::now();
    site.cut(at);
    let to = moves(&site, at, began, "machine cut off");
    site.heal(at);
    site.await_ready_nodes(to, 3);
    site.wait("one copy to be left", |site| {
        site.at(to).get(&["pods"])["items"].as_array().is_some_and(|items| items.len() == 1)
    });
    witness.ends();
}
