//! `cargo xtask bench`: the numbers of PROMISES.md, measured on this machine, with the peer in the same run where there is one.
//!
//! Prints every figure as it comes and writes `PROMISES.md`. Medians and spread of several runs; ratios to the peer are what
//! counts on a machine that is shared. With names of parts only these are measured, and the other rows stay as they are.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout)]

mod agents;
mod door;
mod rooms;

use std::fmt::Write as _;
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

/// Promises whose number is a test's, which fails when it is not kept.
const HELD_BY_TESTS: &[(&str, &str, &str)] = &[
    ("acknowledged writes lost in 20 power cuts", "0", "cluster-tests/tests/powercut.rs"),
    ("acknowledged writes lost, containers restarted in 50 kills under load", "0", "cluster-tests/tests/kills.rs"),
    ("failed requests in three rolling updates under load", "0", "cluster-tests/tests/rolling.rs"),
    (
        "acknowledged writes lost in 20 power cuts of one to three of three servers",
        "0",
        "cluster-tests/tests/site_powercuts.rs",
    ),
    (
        "leader killed / frozen, cut off, deaf, mute, its disk full, slow, hung: until writes are taken again (twice that is let pass on a machine that is busy)",
        "< 1.5 s / < 3 s",
        "cluster-tests/tests/failover.rs",
    ),
    (
        "acknowledged writes lost, reads that go back, events missed under these eight faults",
        "0",
        "cluster-tests/tests/failover.rs",
    ),
    ("requests lost, pods restarted while no server runs for a minute", "0", "cluster-tests/tests/outage.rs"),
];

/// Promises without a measurement that can be repeated.
const LATER: &[(&str, &str)] = &[
    ("agent alone, resident", "< 20 MB"),
    ("node death to replacement running", "< 10 s"),
    ("endpoint removed everywhere after a pod's death, p99", "< 500 ms"),
];

/// What can be measured alone: its name, and how.
type Measurement = (&'static str, fn() -> Vec<Figure>);

/// In the order of the table.
const PARTS: &[Measurement] = &[
    ("containers", rooms::container_start),
    ("first-pod", || vec![first_pod()]),
    ("pods", fifty_pods),
    ("log", rooms::log_writes),
    ("writes", door::writes),
    ("memory", || vec![door::memory()]),
    ("network", rooms::network),
    ("dns", || vec![rooms::dns()]),
    ("scheduler", || vec![rooms::scheduler()]),
    ("unpack", || vec![rooms::unpack()]),
    ("binary", || vec![binary()]),
    ("agents-1000", agents::thousand),
    ("agents-5000", agents::five_thousand),
    ("agents-10000", agents::ten_thousand),
];

/// Measured only when they are named, because they take many minutes and gigabytes; and how their rows begin, which stay.
const LARGE: &[(&str, &str)] = &[("agents-5000", "| 5,000 agents"), ("agents-10000", "| 10,000 agents")];

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    if let Some(unknown) = wanted.iter().find(|word| PARTS.iter().all(|(name, _)| name != word)) {
        let names: Vec<&str> = PARTS.iter().map(|(name, _)| *name).collect();
        println!("there is no part {unknown}; there are {}", names.join(" "));
        return;
    }
    let parts = PARTS.iter().filter(|(name, _)| match wanted.is_empty() {
        true => LARGE.iter().all(|(large, _)| large != name),
        false => wanted.iter().any(|word| word == name),
    });
    let figures: Vec<Figure> = parts.flat_map(|(_, measure)| measure()).collect();
    let path = workspace().join("PROMISES.md");
    let before = std::fs::read_to_string(&path).unwrap_or_default();
    let stays = |row: &str| !wanted.is_empty() || LARGE.iter().any(|(_, begins)| row.starts_with(begins));
    let text = render(&renewed(&before, stays, &figures));
    match std::fs::write(&path, &text) {
        Ok(()) => println!("\nwritten to PROMISES.md"),
        Err(error) => println!("\ncannot write {}: {error}", path.display()),
    }
}

fn rows(figures: &[Figure]) -> Vec<String> {
    let row = |Figure { what, promise, peer, ours, kept }: &Figure| {
        let kept = match (kept, *promise) {
            (Some(true), _) => "yes",
            (Some(false), _) => "**no**",
            (None, "-") => "-",
            (None, _) => "not measured",
        };
        format!("| {what} | {promise} | {peer} | {ours} | {kept} |")
    };
    figures.iter().map(row).collect()
}

/// The rows of the first table that stay, with those in their places that were measured now; new ones come last.
fn renewed(before: &str, stays: impl Fn(&str) -> bool, figures: &[Figure]) -> Vec<String> {
    let of = |row: &str| row.split(" | ").next().unwrap_or_default().to_owned();
    let new = rows(figures);
    let table = before.lines().skip_while(|line| !line.starts_with("| ---")).skip(1);
    let table = table.take_while(|line| line.starts_with('|')).map(str::to_owned);
    let mut table: Vec<String> =
        table.filter(|known| stays(known) || new.iter().any(|row| of(known) == of(row))).collect();
    for row in new {
        match table.iter_mut().find(|known| of(known) == of(&row)) {
            Some(known) => *known = row,
            None => table.push(row),
        }
    }
    table
}

fn render(rows: &[String]) -> String {
    let mut text = String::from(
        "# Promises\n\nWritten by `cargo xtask bench`; every number was measured, with the peer in the same run where one is named. The machine is\n\
         a shared virtual one with two cores: read the ratios, not the absolutes. Where we fall short of a promise it says so.\n\n\
         | What | Promise | Peer, same run | Ours | Kept |\n| --- | --- | --- | --- | --- |\n",
    );
    for row in rows {
        let _ = writeln!(text, "{row}");
    }
    text.push_str(
        "\nHeld by tests, in every run of `cargo xtask test`:\n\n| What | Promise | Test |\n| --- | --- | --- |\n",
    );
    for (what, promise, test) in HELD_BY_TESTS {
        let _ = writeln!(text, "| {what} | {promise} | {test} |");
    }
    text.push_str("\nNot measured yet:\n\n| What | Promise |\n| --- | --- |\n");
    for (what, promise) in LATER {
        let _ = writeln!(text, "| {what} | {promise} |");
    }
    text
}

fn say(figure: Figure) -> Figure {
    println!("{:<60} ours {:<45} peer {}", figure.what, figure.ours, figure.peer);
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

const ONE: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: first}\nspec:\n  containers:\n  - name: c\n    image: coracle.local/hello:1\n    imagePullPolicy: IfNotPresent\n";

fn is_ready(pod: &serde_json::Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// `coracle up` on an empty data folder whose image store has the image, until its first pod is ready.
fn first_pod() -> Figure {
    let mut times = Vec::new();
    for _ in 0..5 {
        let mut machine = Machine::new();
        machine.import_hello();
        let begun = Instant::now();
        machine.up();
        machine.apply(ONE);
        machine.wait("the first pod to be ready", |machine| is_ready(&machine.get(&["pod/first"])));
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

/// What is packaged: `cargo build --profile dist -p coracle`, which takes a quarter of an hour and is therefore not built here; the
/// ordinary release build without it.
fn binary() -> Figure {
    let size = |path: &std::path::Path| {
        #[allow(clippy::cast_precision_loss)]
        std::fs::metadata(path).ok().map(|meta| meta.len() as f64 / 1e6)
    };
    let release = size(&program("coracle"));
    let dist = programs().parent().and_then(|folder| size(&folder.join("dist/coracle")));
    let shown = |size: Option<f64>| size.map_or("not built".to_owned(), |size| format!("{size:.1} MB"));
    say(Figure {
        what: "the binary, stripped: `--profile dist` / `--release`",
        promise: "< 25 MB",
        peer: "-".to_owned(),
        ours: format!("{} / {}", shown(dist), shown(release)),
        kept: dist.or(release).map(|size| size < 25.0),
    })
}
