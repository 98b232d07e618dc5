//! Figures of single rooms: each runs the room's own bench and reads what it prints.

use std::process::{Command, Stdio};

use coracle_cluster_tests::machine::programs;

use crate::{Figure, say, spread};

/// What a room's bench printed; empty when it is not built or fails.
fn run(example: &str, arguments: &[&str]) -> String {
    let path = programs().join("examples").join(example);
    match Command::new(&path).args(arguments).output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
        Ok(output) => {
            println!("{example} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
            String::new()
        }
        Err(error) => {
            println!("{example} is not built: {error}");
            String::new()
        }
    }
}

/// The number after a word of the line that begins with `what`.
fn number(text: &str, what: &str, after: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with(what))?;
    line.split_once(after)?.1.split_whitespace().next()?.trim_end_matches(',').parse().ok()
}

/// The number before a word of the line that has it.
fn number_before(text: &str, words: &str) -> Option<f64> {
    text.lines().find_map(|line| line.split_once(words)?.0.split_whitespace().last()?.parse().ok())
}

fn shown(value: Option<f64>, digits: usize) -> String {
    value.map_or("?".to_owned(), |value| format!("{value:.digits$}"))
}

/// Start of a container: our runtime's own bench, then crun and runc with a bundle of the same content; three turns each, the
/// order changing, the median of the medians.
pub fn container_start() -> Vec<Figure> {
    let (mut p50s, mut p99s, mut wholes) = (Vec::new(), Vec::new(), Vec::new());
    let mut peers = [("crun", Vec::new()), ("runc", Vec::new())];
    for _ in 0..3 {
        let said = run("start_bench", &["100"]);
        let micros = |what: &str, field: &str| number(&said, what, field).map(|micros| micros / 1000.0);
        p50s.extend(micros("start -> program executed", " p50 "));
        p99s.extend(micros("start -> program executed", " p99 "));
        wholes.extend(micros("start -> exit heard", " p50 "));
        for (runtime, medians) in &mut peers {
            medians.extend(peer_starts(runtime).map(|mut times| spread(&mut times).1));
        }
    }
    let median = |values: &mut Vec<f64>| (!values.is_empty()).then(|| spread(values).1);
    let whole = median(&mut wholes);
    let mut said = Vec::new();
    let mut least = None;
    for (runtime, medians) in &mut peers {
        if let Some(theirs) = median(medians) {
            said.push(format!("{runtime} {theirs:.1} ms ({:.1}x)", theirs / whole.unwrap_or(f64::NAN)));
            least = Some(least.map_or(theirs, |least: f64| least.min(theirs)));
        }
    }
    let (p50, p99) = (median(&mut p50s), median(&mut p99s));
    vec![
        say(Figure {
            what: "container start, plan ready to exec, p50 / p99",
            promise: "<= 3 ms p50",
            peer: "-".to_owned(),
            ours: format!("{} / {} ms", shown(p50, 2), shown(p99, 2)),
            kept: p50.map(|p50| p50 <= 3.0),
        }),
        say(Figure {
            what: "container start to exit of `true`, p50",
            promise: "faster than crun",
            peer: if said.is_empty() { "crun, runc not installed".to_owned() } else { said.join(", ") },
            ours: format!("{} ms", shown(whole, 2)),
            kept: whole.zip(least).map(|(ours, theirs)| ours < theirs),
        }),
    ]
}

/// Times of `RUNTIME run` of a static `true`, milliseconds.
fn peer_starts(runtime: &str) -> Option<Vec<f64>> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| std::path::Path::new(path).exists())?;
    Command::new(runtime).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().ok()?;
    let dir = tempfile::tempdir().ok()?;
    std::fs::create_dir_all(dir.path().join("rootfs/bin")).ok()?;
    std::fs::copy(busybox, dir.path().join("rootfs/bin/true")).ok()?;
    for folder in ["proc", "dev", "sys"] {
        std::fs::create_dir_all(dir.path().join("rootfs").join(folder)).ok()?;
    }
    Command::new("runc").arg("spec").current_dir(dir.path()).status().ok()?;
    let path = dir.path().join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).ok()?).ok()?;
    spec["process"]["terminal"] = serde_json::json!(false);
    spec["process"]["args"] = serde_json::json!(["/bin/true"]);
    spec["process"]["rlimits"] = serde_json::json!([]);
    spec["ociVersion"] = serde_json::json!("1.0.2");
    std::fs::write(&path, spec.to_string()).ok()?;
    // crun refuses a hybrid cgroup layout: in a mount namespace of its own the empty v2 hierarchy is taken away for it.
    let script = format!(
        "umount /sys/fs/cgroup/unified 2>/dev/null; for i in $(seq 60); do s=$(date +%s%N); {runtime} --root {0}/state run -b {0} t$$ </dev/null >/dev/null 2>{0}/err || exit 1; e=$(date +%s%N); echo $((e-s)); done",
        dir.path().display()
    );
    let output = Command::new("unshare").args(["-m", "sh", "-c", &script]).output().ok()?;
    let times: Vec<f64> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.parse::<f64>().ok())
        .map(|nanos| nanos / 1e6)
        .collect();
    (!times.is_empty()).then_some(times)
}

/// Committed writes a second, from the log's own bench: a line of JSON a measurement.
pub fn log_writes() -> Vec<Figure> {
    let said = run("write_bench", &[]);
    let lines: Vec<serde_json::Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    [(1, "log: committed writes a second, 1 client"), (64, "log: committed writes a second, 64 clients")]
        .into_iter()
        .map(|(clients, what)| {
            let found = lines.iter().find(|line| line["clients"] == clients).map(|line| {
                let (writes, fsync) = (line["writes_per_second"].as_f64(), line["fsync_ms"]["p50"].as_f64());
                format!("{} (fsync p50 {} ms)", shown(writes, 0), shown(fsync, 2))
            });
            say(Figure {
                what,
                promise: "-",
                peer: "-".to_owned(),
                ours: found.unwrap_or_else(|| "?".to_owned()),
                kept: None,
            })
        })
        .collect()
}

/// A pod's network, and a service change in a large cluster.
pub fn network() -> Vec<Figure> {
    let said = run("network_bench", &["10000", "3"]);
    let both = |what: &str| (number(&said, what, " p50 "), number(&said, what, " p99 "));
    let attach = both("attach a pod");
    let (endpoint, service) = (both("remove an endpoint"), both("add a service"));
    vec![
        say(Figure {
            what: "network of a pod attached, p50 / p99",
            promise: "-",
            peer: "-".to_owned(),
            ours: format!("{} / {} ms", shown(attach.0, 2), shown(attach.1, 2)),
            kept: None,
        }),
        say(Figure {
            what: "at 10,000 services, p50 / p99: endpoint removed, service added",
            promise: "< 30 ms",
            peer: "-".to_owned(),
            ours: [endpoint, service].map(|(p50, p99)| format!("{} / {} ms", shown(p50, 1), shown(p99, 1))).join(", "),
            kept: endpoint.1.zip(service.1).map(|(endpoint, service)| endpoint.max(service) < 30.0),
        }),
    ]
}

/// Answers a CPU second of the DNS server.
pub fn dns() -> Figure {
    let answers = number_before(&run("dns_bench", &["5"]), " answers per CPU-second");
    say(Figure {
        what: "DNS answers a CPU second",
        promise: "> 100,000",
        peer: "-".to_owned(),
        ours: shown(answers, 0),
        kept: answers.map(|answers| answers > 100_000.0),
    })
}

/// Placements a second on 5,000 nodes: Deployments of fifteen, and of one, the harder case.
pub fn scheduler() -> Figure {
    let said = run("placements", &[]);
    let rate = |replicas: &str| {
        let line = said.lines().find(|line| line.contains(replicas))?;
        line.split_once("placements/s=")?.1.trim().parse::<f64>().ok()
    };
    let (one, fifteen) = (rate("replicas=1 "), rate("replicas=15 "));
    say(Figure {
        what: "placements a second, 5,000 nodes: Deployments of 15 / of 1",
        promise: "> 100,000",
        peer: "-".to_owned(),
        ours: format!("{} / {}", shown(fifteen, 0), shown(one, 0)),
        kept: fifteen.zip(one).map(|(fifteen, one)| fifteen.min(one) > 100_000.0),
    })
}

/// The whole import of a layer against inflating alone.
pub fn unpack() -> Figure {
    let ratio = number(&run("unpack", &[]), "import / inflate:", "inflate:");
    say(Figure {
        what: "unpack speed, as a share of what one core inflates",
        promise: ">= 0.9",
        peer: "-".to_owned(),
        ours: shown(ratio, 2),
        kept: ratio.map(|ratio| ratio >= 0.9),
    })
}
