//! Committed writes a second with 1 and with 64 clients, and what an fsync costs here: `cargo run --release -p coracle-raft
//! --example write_bench [directory]`. One line of JSON a measurement, for `cargo xtask bench`.
#![allow(clippy::print_stdout)] // its output is the measurement

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use coracle_raft::{Raft, RaftConfig, Vault};
use coracle_store::{Key, Op, Transaction};
use serde_json::json;

const RUN: Duration = Duration::from_secs(5);

fn pod(name: &str) -> Transaction {
    // About what a small pod weighs: 1 KiB.
    let value = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": {"app": "bench"}},
        "spec": {"containers": [{"name": "web", "image": "example/web:1", "env": [{"name": "FILLER", "value": "x".repeat(700)}],
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}}}]},
        "status": {"phase": "Pending"},
    });
    Op::Create { key: Key::new("pods", "default", name), value: Arc::new(value), claims: Vec::new() }.into()
}

async fn measure(raft: &Raft, clients: usize) -> Result<(), Box<dyn std::error::Error>> {
    let done = Arc::new(AtomicU64::new(0));
    let frames = raft.metrics().frames;
    let begun = Instant::now();
    let tasks: Vec<_> = (0..clients)
        .map(|client| {
            let (raft, done) = (raft.clone(), done.clone());
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                for number in 0.. {
                    let sent = Instant::now();
                    raft.propose(pod(&format!("c{clients}-{client}-{number}"))).await?;
                    latencies.push(sent.elapsed());
                    done.fetch_add(1, Ordering::Relaxed);
                    if begun.elapsed() > RUN {
                        break;
                    }
                }
                Ok::<_, coracle_raft::ProposeError>(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    let seconds = begun.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    let metrics = raft.metrics();
    let line = json!({
        "clients": clients,
        "writes_per_second": (latencies.len() as f64 / seconds).round(),
        "frames_per_second": ((metrics.frames - frames) as f64 / seconds).round(),
        "latency_ms": {"p50": at(0.5), "p99": at(0.99)},
        "fsync_ms": {"p50": metrics.fsync_p50.as_secs_f64() * 1e3, "p99": metrics.fsync_p99.as_secs_f64() * 1e3},
    });
    println!("{line}");
    Ok(())
}

// Processor time of this process, in ticks of 10 ms.
fn ticks() -> Result<u64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    fields.map(|field| field.parse::<u64>().map_err(Into::into)).sum()
}

async fn idle(raft: &Raft) -> Result<(), Box<dyn std::error::Error>> {
    let (ticks_before, frames) = (ticks()?, raft.metrics().frames);
    tokio::time::sleep(RUN).await;
    let cpu_ms = (ticks()? - ticks_before) * 10;
    println!("{}", json!({"idle_seconds": RUN.as_secs(), "cpu_ms": cpu_ms, "frames": raft.metrics().frames - frames}));
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).map_or_else(std::env::temp_dir, Into::into);
    let dir = dir.join(format!("coracle-write-bench-{}", std::process::id()));
    // Sealed, as a server's is.
    let config = || {
        let keys = Arc::new(Vault::open(&dir.join("storage.key"))?);
        Ok::<_, coracle_raft::KeyError>(RaftConfig { keys: Some(keys), ..RaftConfig::new(&dir) })
    };
    let raft = Raft::open(config()?).await?;
    idle(&raft).await?;
    for clients in [1, 64] {
        measure(&raft, clients).await?;
    }
    raft.shutdown().await;
    let begun = Instant::now();
    let raft = Raft::open(config()?).await?;
    println!("{}", json!({"reopen_ms": begun.elapsed().as_secs_f64() * 1e3, "objects": raft.metrics().objects}));
    raft.shutdown().await;
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
