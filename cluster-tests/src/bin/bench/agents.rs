//! Thousands of simulated agents against three real servers: what `simagents` says, as figures.

use std::process::Command;

use coracle_cluster_tests::machine::program;

use crate::{Figure, say};

/// 1,000 agents with 15,000 pods.
pub fn thousand() -> Vec<Figure> {
    run(
        "1000",
        "15000",
        [
            "1,000 agents, 15,000 pods, three servers: apply to assigned, p50 / p99",
            "1,000 agents, at rest: resident (each server), CPU of all three, frames of the logs a minute",
            "1,000 agents, all servers killed: up again / all agents back",
        ],
    )
}

/// 5,000 agents with 75,000 pods.
pub fn five_thousand() -> Vec<Figure> {
    run(
        "5000",
        "75000",
        [
            "5,000 agents, 75,000 pods, three servers: apply to assigned, p50 / p99",
            "5,000 agents, at rest: resident (each server), CPU of all three, frames of the logs a minute",
            "5,000 agents, all servers killed: up again / all agents back",
        ],
    )
}

/// 10,000 agents with 150,000 pods.
pub fn ten_thousand() -> Vec<Figure> {
    run(
        "10000",
        "150000",
        [
            "10,000 agents, 150,000 pods, three servers: apply to assigned, p50 / p99",
            "10,000 agents, at rest: resident (each server), CPU of all three, frames of the logs a minute",
            "10,000 agents, all servers killed: up again / all agents back",
        ],
    )
}

fn run(agents: &str, pods: &str, whats: [&'static str; 3]) -> Vec<Figure> {
    let mut command = Command::new(program("simagents"));
    command.args(["--agents", agents, "--pods", pods, "--servers", "3", "--idle", "60"]);
    let said = command.output().ok().filter(|said| said.status.success());
    let figures: serde_json::Value =
        said.and_then(|said| serde_json::from_slice(&said.stdout).ok()).unwrap_or_default();
    let number = |name: &str| figures[name].as_f64();
    let rss: Vec<String> = figures["rss_bytes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|bytes| format!("{:.0}", bytes.as_f64().unwrap_or(f64::NAN) / 1e6))
        .collect();
    let shown = |texts: Option<String>| texts.unwrap_or_else(|| "it did not come to an end".to_owned());
    let figure = |what: &'static str, promise: &'static str, ours: Option<String>, kept: Option<bool>| {
        say(Figure { what, promise, peer: "-".to_owned(), ours: shown(ours), kept })
    };
    let seconds = |name: &str| number(name).map(|seconds| format!("{seconds:.1}"));
    let assigned = seconds("assigned_p50_s").zip(seconds("assigned_p99_s")).zip(number("servers_cpu_s_for_pods"));
    let idle = number("idle_cores").zip(number("idle_frames_per_minute"));
    let back = seconds("servers_up_again_s").zip(seconds("reconnected_s"));
    let [first, second, third] = whats;
    vec![
        figure(
            first,
            "-",
            assigned.map(|((p50, p99), cpu)| {
                format!("{p50} / {p99} s ({cpu:.0} s of CPU of the servers until all are ready)")
            }),
            None,
        ),
        figure(
            second,
            "-",
            idle.map(|(cores, frames)| format!("{} MB, {:.0} % of a core, {frames:.0}", rss.join(" "), cores * 100.0)),
            None,
        ),
        figure(
            third,
            "< 10 s",
            back.map(|(up, back)| format!("{up} / {back} s")),
            number("reconnected_s").map(|seconds| seconds < 10.0),
        ),
    ]
}
