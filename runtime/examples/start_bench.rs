//! How long a container takes to start: `cargo run --release -p coracle-runtime --example start_bench -- 200`.
//!
//! Each round starts a static `true` with everything a pod gets (own root, default mounts, masks, capabilities, seccomp, device
//! filter, cgroup limits) in a pod that exists already. Told are the times from the ready spec to the executed program and to
//! its end, what the parts before cost, and the private memory of the pod's idle monitor. Needs root and a static busybox.
#![allow(clippy::print_stdout)] // It is a report.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_runtime::{ContainerLaunch, Limits, LogSpec, PodSpec, Runtime, RuntimeConfig, rootfs};
use oci_spec::runtime::Spec;
use serde_json::json;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let rounds: usize = std::env::args().nth(1).map_or(Ok(200), |text| text.parse())?;
    let Some(busybox) = ["/bin/busybox", "/usr/bin/busybox"].iter().map(PathBuf::from).find(|path| path.exists())
    else {
        println!("SKIP: busybox is not installed");
        return Ok(());
    };
    let dir = tempfile::Builder::new().prefix("coracle-bench").tempdir()?;
    let layer = dir.path().join("layer");
    std::fs::create_dir_all(layer.join("bin"))?;
    std::fs::copy(busybox, layer.join("bin/true"))?;
    let cgroup_name = format!("coracle-bench-{}", std::process::id());
    let runtime = Runtime::open(RuntimeConfig { run_dir: dir.path().join("run"), cgroup_name }).await?;
    let outcome = rounds_of(&runtime, dir.path(), &layer, rounds).await;
    runtime.cleanup_all().await?;
    outcome
}

async fn rounds_of(runtime: &Runtime, dir: &Path, layer: &Path, rounds: usize) -> Result<(), Box<dyn Error>> {
    // As on a machine with many pods: the monitors share their program's pages.
    let (mut pods, mut made) = (Vec::new(), Vec::new());
    for number in 0..20 {
        let began = Instant::now();
        let spec = PodSpec { id: format!("p{number}"), hostname: "bench".into(), ..PodSpec::default() };
        pods.push(runtime.create_pod(spec).await?);
        made.push(began.elapsed());
    }
    let pod = pods.pop().ok_or("no pod")?;
    let mut events = pod.events().ok_or("the pod's events are taken")?;
    let (mut roots, mut execs, mut exits) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let base = dir.join(format!("roots/{round}"));
        let began = Instant::now();
        let rootfs = rootfs::overlay(&[layer.to_owned()], &base.join("upper"), &base.join("work"))?;
        roots.push(began.elapsed());
        let log = LogSpec { path: dir.join(format!("logs/{round}.log")), max_bytes: 1 << 20, files: 2 };
        let limits = Limits { memory_bytes: Some(64 << 20), pids: Some(100), ..Limits::default() };
        let launch = ContainerLaunch { id: format!("c{round}"), attempt: 0, spec: spec()?, rootfs, log, limits };
        let began = Instant::now();
        pod.start(launch).await?;
        execs.push(began.elapsed());
        let event = events.recv().await.ok_or("the pod is lost")?;
        exits.push(began.elapsed());
        if event.state.exit_code != 0 {
            return Err(format!("true ended with {}", event.state.exit_code).into());
        }
        pod.forget(&format!("c{round}")).await?;
    }
    report("pod made", &mut made);
    report("root mounted", &mut roots);
    report("start -> program executed", &mut execs);
    report("start -> exit heard", &mut exits);
    for word in ["Private_Dirty", "Private_Clean", "Rss", "Pss"] {
        println!("monitor {word:<17} {:>8} kB", memory(pod.monitor_pid(), word).unwrap_or(0));
    }
    Ok(())
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |share: usize| times.get((times.len() * share / 100).min(times.len() - 1)).map_or(0, Duration::as_micros);
    println!("{what:<25} min {:>6} us   p50 {:>6} us   p99 {:>6} us", at(0), at(50), at(99));
}

/// A line of `/proc/PID/smaps_rollup`, kB.
fn memory(pid: u32, word: &str) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok())
}

fn spec() -> Result<Spec, serde_json::Error> {
    serde_json::from_value(json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "env": ["PATH=/bin"], "cwd": "/", "noNewPrivileges": true,
            "capabilities": {"bounding": ["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"]},
        },
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts", "/sys/firmware"],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }))
}
