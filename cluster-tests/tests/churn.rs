//! Two hundred pods come and go; nothing stays of them: no link, mount, cgroup, namespace, descriptor, rule or address.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use coracle_cluster_tests::machine::Machine;

/// Pods that come and go together.
const BATCH: usize = 10;
const ROUNDS: usize = 20;

fn pods(round: usize) -> (String, Vec<String>) {
    let names: Vec<String> = (0..BATCH).map(|number| format!("p{round}-{number}")).collect();
    let one = |name: &String| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: churn}}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - name: main\n    image: coracle.local/hello:1\n    env: [{{name: DRAIN_MS, value: \"0\"}}]\n    volumeMounts: [{{name: scratch, mountPath: /scratch}}]\n  volumes: [{{name: scratch, emptyDir: {{medium: Memory}}}}]\n---\n"
        )
    };
    (names.iter().map(one).collect(), names)
}

/// What the machine's kernel and folders hold, by kind, as sorted lines.
fn traces(machine: &Machine) -> BTreeMap<&'static str, Vec<String>> {
    let mut traces = BTreeMap::new();
    let mut put = |kind, mut lines: Vec<String>| {
        lines.sort();
        traces.insert(kind, lines);
    };
    let lines = |text: String| -> Vec<String> { text.lines().map(|line| line.trim().to_owned()).collect() };
    let here = machine.folder().display().to_string();
    put("links", lines(machine.sh("ip -br link show | cut -d' ' -f1").out));
    // A bridge is down while nothing hangs on it; that may be a moment later.
    put("routes", lines(machine.sh("ip -4 route show table all").out.replace(" linkdown", "")));
    put("nft rules and elements", rules(&machine.sh("nft --stateless list ruleset").out));
    let mounts = std::fs::read_to_string(format!("/proc/{}/mounts", machine.pid())).unwrap_or_default();
    put("mounts", lines(mounts).into_iter().filter(|line| line.contains(&here)).collect());
    let find = format!("find /sys/fs/cgroup -type d -path '*{}*'", machine.cgroup());
    put("cgroups", lines(machine.sh(&find).out));
    put("folders", lines(machine.sh(&format!("find {here}/data {here}/run -type d")).out));
    put("descriptors", descriptors(machine.pid()));
    put("namespaces and processes", processes(&here));
    traces
}

/// The lines of a rule set, without the chains that spread over a number of endpoints: each number that ever was has one,
/// whatever the number of Services and pods.
fn rules(ruleset: &str) -> Vec<String> {
    let (mut rules, mut spreads) = (Vec::new(), false);
    for line in ruleset.lines().map(str::trim).filter(|line| !line.is_empty()) {
        spreads |= line.starts_with("chain lb-");
        if !spreads {
            rules.push(line.to_owned());
        }
        spreads &= line != "}";
    }
    rules
}

/// The open descriptors of a process, by what they are: numbers of sockets and the like say nothing.
fn descriptors(pid: u32) -> Vec<String> {
    let fds = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let kinds = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    kinds.map(|target| target.display().to_string().split(":[").next().unwrap_or_default().to_owned()).collect()
}

/// Processes that belong to this folder, each with its network namespace.
fn processes(folder: &str) -> Vec<String> {
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ours = all.filter_map(|entry| {
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let network = std::fs::read_link(entry.path().join("ns/net")).ok()?;
        command.contains(folder).then(|| format!("{} {} {command}", entry.file_name().display(), network.display()))
    });
    ours.collect()
}

/// What is in `now` and was not `before`.
fn more(before: &BTreeMap<&'static str, Vec<String>>, now: &BTreeMap<&'static str, Vec<String>>) -> Vec<String> {
    let mut more = Vec::new();
    for (kind, lines) in now {
        let mut known = before[kind].clone();
        for line in lines {
            match known.iter().position(|old| old == line) {
                Some(at) => drop(known.swap_remove(at)),
                None => more.push(format!("{kind}: {line}")),
            }
        }
    }
    more
}

#[test]
fn two_hundred_pods_leave_nothing_behind() {
    // A block of sixteen addresses: each is given out again and again.
    let mut machine = Machine::new().with(&["--max-pods", "11"]);
    machine.up();
    machine.import_hello();
    // A Service, so that rules and elements come and go with the pods.
    machine.apply("apiVersion: v1\nkind: Service\nmetadata: {name: churn}\nspec: {selector: {app: churn}, ports: [{port: 80, targetPort: 8080}]}\n");
    let mut before = None;
    for round in 0..=ROUNDS {
        let (yaml, names) = pods(round);
        machine.apply(&yaml);
        // Half of them are deleted in the middle of their start, half of them the hard way.
        if round % 2 == 0 {
            machine.wait("the pods to run", |machine| {
                let pods = machine.get(&["pods"]);
                let pods = pods["items"].as_array().cloned().unwrap_or_default();
                pods.len() == BATCH && pods.iter().all(|pod| pod["status"]["phase"] == "Running")
            });
        }
        let grace: &[&str] = if round % 4 < 2 { &["--grace-period", "0"] } else { &[] };
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let _ = machine.coracle(&[&["delete", "pod"], grace, names.as_slice()].concat());
        if round == 0 {
            machine.wait("the first pods to be gone", |machine| no_pod_is_left(&machine.data(), &machine.run()));
            before = Some(traces(&machine));
        }
    }
    let before = before.expect("the first round");
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let left = more(&before, &traces(&machine));
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < until, "more than before:\n{}", left.join("\n"));
        std::thread::sleep(Duration::from_millis(50)); // poll
    }
    machine.down();
}

/// Whether the folders hold nothing of any pod.
fn no_pod_is_left(data: &Path, run: &Path) -> bool {
    [data.join("pods"), run.join("agent"), run.join("runtime/pods"), data.join("logs")]
        .iter()
        .all(|folder| std::fs::read_dir(folder).map_or(true, |mut entries| entries.next().is_none()))
}
