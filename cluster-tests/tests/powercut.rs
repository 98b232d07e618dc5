//! Power cuts on a real file system: a server writes to ext4 on a loop device, the device's file is copied under it, and the
//! copy must hold all that was acknowledged. This is the test that sled 0.34 fails (docs/decisions/0001).
//!
//! Lenient where the crash-point model (`control-plane/raft/tests/crashpoint`) is strict: what reached the block device
//! survives, only the page cache is lost; but file system, kernel and our code are the real ones.
//!
//! `CORACLE_POWER_CUTS=n` changes the number of cuts, `CORACLE_POWER_SEED=n` replays their times.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use coracle_raft::{Raft, RaftConfig, Vault};
use coracle_store::{Expect, Key, Op, View};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

/// Writers side by side.
const LANES: u64 = 8;
/// Objects each writer leaves standing behind it.
const KEPT: u64 = 20;

const DIRECTORY: &str = "CORACLE_POWERCUT_DIR";

fn config(dir: &Path) -> RaftConfig {
    let keys = Vault::open(&dir.join("storage.key")).expect("what seals the log");
    RaftConfig {
        segment_bytes: 1 << 20,
        reserve_bytes: 1 << 20,
        snapshot_bytes: 1 << 18,
        keys: Some(Arc::new(keys)),
        ..RaftConfig::new(dir)
    }
}

fn key(lane: u64, number: u64) -> Key {
    Key::new("configmaps", "default", format!("l{lane}-{number}"))
}

// A content that cannot be another object's.
fn content(lane: u64, number: u64) -> String {
    format!("{lane}/{number};").repeat(30 + (number % 60) as usize)
}

#[allow(clippy::print_stdout)] // its standard output is what the test reads
fn acknowledge(lane: u64, number: u64) {
    println!("acknowledged {lane} {number}");
}

/// Not a test but the process that is cut off: it writes until it is killed, and says what was acknowledged.
#[test]
fn writer_process() {
    let Ok(dir) = std::env::var(DIRECTORY) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let raft = Raft::open(config(Path::new(&dir))).await.unwrap();
        let lanes: Vec<_> = (0..LANES).map(|lane| tokio::spawn(write_lane(raft.clone(), lane))).collect();
        for lane in lanes {
            lane.await.unwrap();
        }
    });
}

async fn write_lane(raft: Raft, lane: u64) {
    let view = raft.view();
    let mut number = next_of(&view, lane);
    // The process before may have been cut off between a creation and the deletion that follows it.
    for old in numbers_of(&view, lane).into_iter().filter(|old| old + KEPT < number) {
        raft.propose(Op::Delete { key: key(lane, old), expect: Expect::default() }.into()).await.unwrap();
    }
    loop {
        let key_now = key(lane, number);
        let value = json!({
            "metadata": {"name": &*key_now.name, "namespace": "default", "uid": format!("u{number}")},
            "data": {"text": content(lane, number)},
        });
        raft.propose(Op::Create { key: key_now, value: Arc::new(value), claims: vec![] }.into()).await.unwrap();
        if number >= KEPT {
            let old = key(lane, number - KEPT);
            raft.propose(Op::Delete { key: old, expect: Expect::default() }.into()).await.unwrap();
        }
        acknowledge(lane, number);
        number += 1;
    }
}

fn numbers_of(view: &View, lane: u64) -> Vec<u64> {
    let prefix = format!("l{lane}-");
    let mut numbers: Vec<u64> = view
        .list("configmaps", None)
        .filter_map(|object| object.key.name.strip_prefix(&prefix)?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

fn next_of(view: &View, lane: u64) -> u64 {
    numbers_of(view, lane).last().map_or(0, |last| last + 1)
}

/// Unmounts when it goes.
struct Mounted(PathBuf);

impl Mounted {
    fn image(image: &Path, at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        run("mount", &["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()]);
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // After a failed check the server still has files open: then the mount goes with them.
        let lazily = if std::thread::panicking() { "-l" } else { "-n" };
        let done = Command::new("umount").arg(lazily).arg(&self.0).stdout(Stdio::null()).status();
        if !done.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.0.display());
        }
    }
}

fn run(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).stdout(Stdio::null()).output().unwrap();
    assert!(done.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
}

struct Writer {
    child: Child,
    acknowledged: Arc<Vec<AtomicU64>>,
    count: Arc<AtomicU64>,
    reader: std::thread::JoinHandle<()>,
}

impl Writer {
    // The numbers acknowledged are counted one up, so that 0 is none.
    fn start(dir: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer_process", "--nocapture"])
            .env(DIRECTORY, dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let acknowledged: Arc<Vec<AtomicU64>> = Arc::new((0..LANES).map(|_| AtomicU64::new(0)).collect());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let heard = acknowledged.clone();
        let count = Arc::new(AtomicU64::new(0));
        let counted = count.clone();
        let reader = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let mut words = line.split(' ');
                if words.next() == Some("acknowledged") {
                    let mut number = || words.next().and_then(|word| word.parse::<u64>().ok());
                    if let (Some(lane), Some(number)) = (number(), number()) {
                        heard[lane as usize].store(number + 1, Ordering::SeqCst);
                        counted.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }
        });
        Self { child, acknowledged, count, reader }
    }

    fn wait_for(&self, acknowledgements: u64) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let count = || self.count.load(Ordering::SeqCst);
        while count() < acknowledgements {
            assert!(Instant::now() < deadline, "the writer does not get on: {} acknowledged", count());
            std::thread::yield_now();
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    }

    fn freeze(&self) -> Vec<u64> {
        self.signal(rustix::process::Signal::STOP);
        while !self.is_stopped() {
            std::thread::yield_now();
        }
        self.acknowledged.iter().map(|number| number.load(Ordering::SeqCst)).collect()
    }

    fn end(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.reader.join().unwrap();
    }
}

fn verify(view: &View, acknowledged: &[u64]) -> Result<(), String> {
    for (lane, acknowledged) in acknowledged.iter().enumerate() {
        let lane = lane as u64;
        let found = numbers_of(view, lane);
        for object in found.iter().map(|number| (number, view.get(&key(lane, *number)).unwrap())) {
            if object.1.tree()["data"]["text"] != content(lane, *object.0) {
                return Err(format!("object {} of writer {lane} holds something else", object.0));
            }
        }
        // The writer may have been told of more than we have heard; but it creates and deletes in order, so what is there is
        // one of two things: after a creation, or after the deletion that follows it.
        let next = found.last().map_or(0, |last| last + 1);
        let whole = |kept: u64| found.iter().copied().eq(next.saturating_sub(kept)..next);
        if next < *acknowledged || !(whole(KEPT) || whole(KEPT + 1)) {
            return Err(format!("writer {lane}: {acknowledged} writes were acknowledged, found {found:?}"));
        }
    }
    Ok(())
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn no_power_cut_loses_what_was_acknowledged() {
    if std::env::var(DIRECTORY).is_ok() {
        return;
    }
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
        println!("SKIP: loop devices need root and /dev/loop-control");
        return;
    }
    let cuts = number("CORACLE_POWER_CUTS").unwrap_or(20);
    let seed = number("CORACLE_POWER_SEED").unwrap_or_else(|| rand::random_range(0..1 << 32));
    println!("CORACLE_POWER_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let work = tempfile::tempdir().unwrap();
    let image = work.path().join("disk.img");
    let copy = work.path().join("copy.img");
    run("truncate", &["-s", "96M", image.to_str().unwrap()]);
    run("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image.to_str().unwrap()]);
    let mounted = Mounted::image(&image, &work.path().join("mnt"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut snapshots = 0;
    let mut acknowledged = vec![0; LANES as usize];
    for cut in 0..cuts {
        let writer = Writer::start(&mounted.0.join("data"));
        writer.wait_for(rng.random_range(1..600));
        for (known, now) in acknowledged.iter_mut().zip(writer.freeze()) {
            *known = now.max(*known);
        }
        run("cp", &["--sparse=always", image.to_str().unwrap(), copy.to_str().unwrap()]);
        writer.end();
        let after = Mounted::image(&copy, &work.path().join("after"));
        runtime.block_on(async {
            let raft = Raft::open(config(&after.0.join("data")))
                .await
                .unwrap_or_else(|error| panic!("CORACLE_POWER_SEED={seed} cut {cut}: {}", coracle_base::chain(&error)));
            verify(&raft.view(), &acknowledged)
                .unwrap_or_else(|error| panic!("CORACLE_POWER_SEED={seed} cut {cut}: {error}"));
            snapshots += u64::from(raft.metrics().snapshot_bytes > 0);
            raft.shutdown().await;
        });
    }
    let total: u64 = acknowledged.iter().sum();
    println!("{cuts} power cuts, {total} writes acknowledged, 0 lost, {snapshots} restarts from a snapshot");
    assert!(total > 0);
}
