//! A disk that is full, and one that fails: deletions still work on the first, nothing is acknowledged on the second.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::{create, delete, key, small, until};
use coracle_raft::{ProposeError, Raft, RaftConfig, Space};
use coracle_store::{Op, Transaction};
use serde_json::json;

struct Tiny(PathBuf);

impl Tiny {
    fn mount(at: &Path, size: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: a small file system needs root");
            return None;
        }
        let options = format!("size={size}");
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "coracle-test"]).arg(at).status().unwrap();
        assert!(done.success());
        Some(Self(at.to_owned()))
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let flag = if std::thread::panicking() { "-l" } else { "-n" };
        let done = Command::new("umount").arg(flag).arg(&self.0).status();
        if !done.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.0.display());
        }
    }
}

fn fill(at: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(at).unwrap();
    let block = vec![1; 1 << 16];
    while file.write_all(&block).is_ok() {}
}

fn config(at: &Path) -> RaftConfig {
    RaftConfig { snapshot_bytes: 1 << 30, ..small(&at.join("data")) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_takes_deletions_and_status_and_recovers() {
    let at = tempfile::tempdir().unwrap();
    let Some(_tiny) = Tiny::mount(at.path(), "12m") else { return };
    let raft = Raft::open(config(at.path())).await.unwrap();
    for number in 0..40 {
        raft.propose(create(&number.to_string(), 20_000)).await.unwrap();
    }
    assert_eq!(raft.metrics().disk, Space::Free);
    // Somebody else, a pod say, takes all that is left.
    fill(&at.path().join("junk"));
    let mut written = 0;
    let refused = loop {
        match raft.propose(create(&format!("more{written}"), 20_000)).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 1000, "the disk never got full");
    };
    assert_eq!(refused, ProposeError::DiskFull);
    assert!(refused.to_string().contains("only deletions and status are accepted"));
    assert_eq!(raft.metrics().disk, Space::Low);

    // Graceful deletion in its two steps, plain deletion, status.
    let mut going = (**raft.view().get(&key("0")).unwrap().tree()).clone();
    going["metadata"]["deletionTimestamp"] = json!("2026-11-26T12:00:00Z");
    let going = Op::Update { key: key("0"), expect: Default::default(), value: Arc::new(going), claims: None };
    raft.propose(going.into()).await.unwrap();
    for number in 0..30 {
        raft.propose(delete(&number.to_string())).await.unwrap();
    }
    let status = Op::Status { key: key("30"), uid: "uid-30".into(), status: Arc::new(json!({"phase": "Failed"})) };
    raft.propose(Transaction::from(status)).await.unwrap();
    let hash = raft.metrics().state_hash;
    raft.shutdown().await;

    // Still full at the next start: it comes up, knows everything, and goes on deleting.
    let raft = Raft::open(config(at.path())).await.unwrap();
    assert_eq!(raft.metrics().state_hash, hash);
    assert!(raft.view().get(&key("0")).is_none());
    raft.propose(delete("31")).await.unwrap();
    assert_eq!(raft.propose(create("new", 10)).await.unwrap_err(), ProposeError::DiskFull);

    std::fs::remove_file(at.path().join("junk")).unwrap();
    until(&raft, "room again", |raft| raft.metrics().disk == Space::Free).await;
    raft.propose(create("new", 10)).await.unwrap();
    raft.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_does_not_fit_is_postponed() {
    let at = tempfile::tempdir().unwrap();
    let Some(_tiny) = Tiny::mount(at.path(), "8m") else { return };
    let config = RaftConfig { snapshot_bytes: 1 << 18, ..small(&at.path().join("data")) };
    let raft = Raft::open(config.clone()).await.unwrap();
    fill(&at.path().join("junk"));
    for number in 0..40 {
        match raft.propose(create(&number.to_string(), 20_000)).await {
            Ok(_) | Err(ProposeError::DiskFull) => {}
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(raft.metrics().snapshot_bytes, 0);
    std::fs::remove_file(at.path().join("junk")).unwrap();
    until(&raft, "room again", |raft| raft.metrics().disk == Space::Free).await;
    raft.propose(create("last", 10)).await.unwrap();
    until(&raft, "the snapshot", |raft| raft.metrics().snapshot_bytes > 0).await;
    let left: Vec<_> =
        std::fs::read_dir(config.dir.join("snapshots")).unwrap().map(|found| found.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name.to_string_lossy().ends_with(".snapshot")), "{left:?}");
    raft.shutdown().await;
}
