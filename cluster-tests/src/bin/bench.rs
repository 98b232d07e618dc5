//! `cargo xtask bench`: the numbers of PROMISES.md, measured on this machine, with the peer in the same run where there is one.
//!
//! Prints every figure as it comes and writes `PROMISES.md`. Medians and spread of several runs; ratios to the peer are what
//! counts on a machine that is shared.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

use std::fmt::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coracle_cluster_tests::machine::{Machine, program, programs, workspace};

/// One line of PROMISES.md.
struct Figure {
    what: &'static str,
    promise: &'static str,
    peer: String,
    ours: String,
    kept: Option<bool>,
}

fn main() {
    let mut figures = Vec::new();
    figures.extend(container_start());
    figures.push(first_pod());
    figures.extend(fifty_pods());
    figures.extend(writes());
    figures.push(binary());
    let text = render(&figures);
    let path = workspace().join("PROMISES.md");
    match std::fs::write(&path, &text) {
        Ok(()) => println!("\nwritten to PROMISES.md"),
        Err(error) => println!("\ncannot write {}: {error}", path.display()),
    }
}

fn render(figures: &[Figure]) -> String {
    let mut text = String::from(
        "# Promises\n\nWritten by `cargo xtask bench`; every number was measured, with the peer in the same run where one is named. The machine is\n\
         a shared virtual one with two cores: read the ratios, not the absolutes. Where we fall short of a promise it says so.\n\n\
         | What | Promise | Peer, same run | Ours | Kept |\n| --- | --- | --- | --- | --- |\n",
    );
    for figure in figures {
        let kept = figure.kept.map_or("not measured", |kept| if kept { "yes" } else { "**no**" });
        let _ = writeln!(text, "| {} | {} | {} | {} | {kept} |", figure.what, figure.promise, figure.peer, figure.ours);
    }
    text
}

fn say(figure: Figure) -> Figure {
    println!("{:<55} ours {:<40} peer {}", figure.what, figure.ours, figure.peer);
    figure
}

/// Minimum, median and 99th percentile, in the unit of the values.
fn spread(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| {
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let index = ((values.len() - 1) as f64 * share).round() as usize;
        values.get(index).copied().unwrap_or(f64::NAN)
    };
    (at(0.0), at(0.5), at(0.99))
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

/// Lines of the runtime's bench.
const SPEC_TO_EXEC: &str = "start -> program executed";
const START_TO_EXIT: &str = "start -> exit heard";

/// Start of a container: our runtime's own bench, then crun and runc with a bundle of the same content.
fn container_start() -> Vec<Figure> {
    let example = programs().join("examples/start_bench");
    let ours = Command::new(&example).arg("100").output();
    let ours = match ours {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Ok(output) => format!("failed: {}", String::from_utf8_lossy(&output.stderr).trim()),
        Err(error) => format!("not built ({error})"),
    };
    // `WHAT   min N us   p50 N us   p99 N us`
    let number = |what: &str, field: &str| {
        let line = ours.lines().find(|line| line.starts_with(what))?;
        let micros: f64 = line.split_once(&format!(" {field} "))?.1.split_whitespace().next()?.parse().ok()?;
        Some(micros / 1000.0)
    };
    let (p50, p99) = (number(SPEC_TO_EXEC, "p50"), number(SPEC_TO_EXEC, "p99"));
    let whole = number(START_TO_EXIT, "p50");
    let mut peers = Vec::new();
    for runtime in ["crun", "runc"] {
        if let Some(mut times) = peer_starts(runtime) {
            let (_, median, p99) = spread(&mut times);
            peers.push(format!("{runtime} {median:.1} / {p99:.1} ms"));
        }
    }
    let peers = if peers.is_empty() { "crun, runc not installed".to_owned() } else { peers.join(", ") };
    let shown = |value: Option<f64>| value.map_or("?".to_owned(), |value| format!("{value:.2}"));
    vec![
        say(Figure {
            what: "container start, plan ready to exec, p50 / p99",
            promise: "<= 3 ms p50",
            peer: "-".to_owned(),
            ours: format!("{} / {} ms", shown(p50), shown(p99)),
            kept: p50.map(|p50| p50 <= 3.0),
        }),
        say(Figure {
            what: "container start to exit of `true`, p50",
            promise: "faster than crun",
            peer: peers,
            ours: format!("{} ms", shown(whole)),
            kept: None,
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

const ONE: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: first}\nspec:\n  containers:\n  - name: c\n    image: coracle.local/hello:1\n    imagePullPolicy: IfNotPresent\n";

/// `coracle up` on an empty data folder whose image store has the image, until its first pod is ready.
fn first_pod() -> Figure {
    let mut times = Vec::new();
    for _ in 0..5 {
        let mut machine = Machine::new();
        machine.import_hello();
        let begun = Instant::now();
        machine.up();
        machine.apply(ONE);
        machine
            .wait("the first pod to be ready", |machine| machine.get(&["pod/first"])["status"]["phase"] == "Running");
        times.push(ms(begun));
        machine.down();
    }
    let (least, median, most) = spread(&mut times);
    say(Figure {
        what: "`coracle up` to the first pod ready, image local",
        promise: "< 1.5 s",
        peer: "-".to_owned(),
        ours: format!("{median:.0} ms ({least:.0} to {most:.0})"),
        kept: Some(median < 1500.0),
    })
}

/// Fifty pods at once; then what the machine costs when nothing happens.
fn fifty_pods() -> Vec<Figure> {
    let mut machine = Machine::new();
    machine.import_hello();
    machine.up();
    let idle = resident(machine.pid());
    let mut times = Vec::new();
    for round in 0..3 {
        let yaml = format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: many{round}}}\nspec:\n  replicas: 50\n  selector: {{matchLabels: {{app: many{round}}}}}\n  \
             template:\n    metadata: {{labels: {{app: many{round}}}}}\n    spec:\n      terminationGracePeriodSeconds: 1\n      containers:\n      - name: c\n        image: coracle.local/hello:1\n        imagePullPolicy: IfNotPresent\n"
        );
        let begun = Instant::now();
        machine.apply(&yaml);
        machine.wait("50 pods to run", |machine| {
            machine.get(&[&format!("deploy/many{round}")])["status"]["readyReplicas"] == 50
        });
        times.push(ms(begun));
        if round < 2 {
            let _ = machine.coracle(&["delete", &format!("deploy/many{round}")]);
            machine.wait("the pods to go", |machine| {
                machine.get(&["pods"])["items"].as_array().is_some_and(Vec::is_empty)
            });
        }
    }
    let (least, median, most) = spread(&mut times);
    let per_pod = podmon_private(&machine);
    let cpu = idle_cpu(machine.pid());
    let loaded = resident(machine.pid());
    machine.down();
    vec![
        say(Figure {
            what: "apply to 50 pods ready, one node",
            promise: "< 3 s",
            peer: "-".to_owned(),
            ours: format!("{median:.0} ms ({least:.0} to {most:.0})"),
            kept: Some(median < 3000.0),
        }),
        say(Figure {
            what: "server and agent in one process, resident: idle / with 50 pods",
            promise: "< 60 MB",
            peer: "-".to_owned(),
            ours: format!("{idle:.1} / {loaded:.1} MB"),
            kept: Some(idle < 60.0),
        }),
        say(Figure {
            what: "CPU of `coracle up` with 50 idle pods",
            promise: "-",
            peer: "-".to_owned(),
            ours: format!("{cpu:.2} % of a core"),
            kept: None,
        }),
        say(Figure {
            what: "private memory per pod beyond the application",
            promise: "<= 150 KB",
            peer: "-".to_owned(),
            ours: format!("{per_pod:.0} KB"),
            kept: Some(per_pod <= 150.0),
        }),
    ]
}

/// Resident set, MB.
fn resident(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kb = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().split(' ').next()?.parse::<f64>().ok());
    kb.unwrap_or(f64::NAN) / 1024.0
}

/// Percent of a core over ten seconds.
fn idle_cpu(pid: u32) -> f64 {
    let used = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields: Vec<f64> = stat
            .rsplit_once(") ")
            .map_or(Vec::new(), |(_, rest)| rest.split(' ').map(|field| field.parse().unwrap_or(0.0)).collect());
        fields.get(11).unwrap_or(&0.0) + fields.get(12).unwrap_or(&0.0)
    };
    let before = used();
    std::thread::sleep(Duration::from_secs(10));
    (used() - before) / 10.0
}

/// Mean private memory of the machine's podmons, page tables included, KB.
fn podmon_private(machine: &Machine) -> f64 {
    let run = machine.run().display().to_string();
    let (mut sum, mut count) = (0.0, 0.0);
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        if !command.contains(&run) || command.contains("up\0") {
            continue;
        }
        let read = |file: &str, names: &[&str]| -> f64 {
            let text = std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            text.lines()
                .filter(|line| names.iter().any(|name| line.starts_with(name)))
                .filter_map(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok())
                .sum()
        };
        sum += read("smaps_rollup", &["Private_Clean:", "Private_Dirty:"]) + read("status", &["VmPTE:"]);
        count += 1.0;
    }
    sum / count
}

/// Committed writes a second, from the log's own bench: a line of JSON a measurement.
fn writes() -> Vec<Figure> {
    let output = Command::new(programs().join("examples/write_bench")).output();
    let said = match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => {
            println!("write_bench: {error}");
            String::new()
        }
    };
    let lines: Vec<serde_json::Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    [(1, "committed writes a second, 1 client"), (64, "committed writes a second, 64 clients")]
        .into_iter()
        .map(|(clients, what)| {
            let found =
                lines.iter().find(|line| line["clients"] == clients).map(|line| line["writes_per_second"].to_string());
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

fn binary() -> Figure {
    #[allow(clippy::cast_precision_loss)]
    let size = std::fs::metadata(program("coracle")).map_or(f64::NAN, |meta| meta.len() as f64 / 1e6);
    say(Figure {
        what: "the binary, stripped",
        promise: "< 25 MB",
        peer: "-".to_owned(),
        ours: format!("{size:.1} MB"),
        kept: Some(size < 25.0),
    })
}
