//! One server alone: what its handle promises.

mod common;

use std::time::{Duration, Instant};

use common::{create, delete, key, small, until};
use coracle_raft::{OpenError, ProposeError, Raft, RaftConfig};
use coracle_store::{Outcome, Rejection, Transaction};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let raft = Raft::open(small(dir.path())).await.unwrap();
    assert!(raft.is_leader());
    let outcomes = raft.propose(create("a", 10)).await.unwrap();
    assert!(matches!(&outcomes[0], Outcome::Stored(object) if object.revision == 1));
    let refused = raft.propose(create("a", 10)).await.unwrap_err();
    assert_eq!(refused, ProposeError::Rejected { index: 0, rejection: Rejection::Exists(key("a")) });
    let many = raft.propose_many(vec![create("b", 1), create("a", 1), create("c", 1)]).await;
    assert_eq!(many.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false, true]);
    let (hash, identity) = (raft.metrics().state_hash, raft.identity());
    raft.shutdown().await;
    assert_eq!(raft.propose(create("d", 1)).await.unwrap_err(), ProposeError::Stopped);

    let raft = Raft::open(small(dir.path())).await.unwrap();
    assert_eq!((raft.metrics().state_hash, raft.identity()), (hash, identity));
    assert_eq!(raft.view().revision(), 3);
    // A watcher that was there before goes on where it was.
    assert_eq!(raft.events_after(1, None).unwrap().len(), 2);
    raft.propose(delete("a")).await.unwrap();
    let view = raft.read_barrier().await.unwrap();
    assert!(view.get(&key("a")).is_none());
    raft.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_server_on_the_directory_is_refused_by_pid_and_path() {
    let dir = tempfile::tempdir().unwrap();
    let raft = Raft::open(small(dir.path())).await.unwrap();
    let refused = Raft::open(small(dir.path())).await.unwrap_err().to_string();
    assert!(refused.contains(&std::process::id().to_string()), "{refused}");
    assert!(refused.contains(dir.path().to_str().unwrap()), "{refused}");
    raft.shutdown().await;
    Raft::open(small(dir.path())).await.unwrap().shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_share_frames_and_watchers_see_every_revision() {
    let dir = tempfile::tempdir().unwrap();
    let raft = Raft::open(RaftConfig::new(dir.path())).await.unwrap();
    let frames = raft.metrics().frames;
    let writers = (0..32).map(|writer| {
        let raft = raft.clone();
        tokio::spawn(async move {
            for n in 0..10 {
                raft.propose(create(&format!("w{writer}-{n}"), 100)).await.unwrap();
            }
        })
    });
    let mut seen = 0;
    let mut changes = raft.revision_changes();
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    while seen < 320 {
        for event in raft.events_after(seen, None).unwrap() {
            assert_eq!(event.revision, seen + 1);
            seen = event.revision;
        }
        if seen < 320 {
            changes.changed().await.unwrap();
        }
    }
    let frames = raft.metrics().frames - frames;
    assert!(frames < 320, "320 writes of 32 writers took {frames} frames");
    raft.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_shorten_the_log_and_a_damaged_one_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let raft = Raft::open(small(dir.path())).await.unwrap();
    // The state stays small, the log grows to many segments.
    for n in 0..400 {
        raft.propose(create(&format!("n{n}"), 20_000)).await.unwrap();
        if n >= 5 {
            raft.propose(delete(&format!("n{}", n - 5))).await.unwrap();
        }
    }
    until(&raft, "a snapshot and a shorter log", |raft| {
        let metrics = raft.metrics();
        metrics.snapshot_bytes > 0 && metrics.log_bytes < 4 << 20
    })
    .await;
    let hash = raft.metrics().state_hash;
    raft.shutdown().await;

    let mut snapshots: Vec<_> =
        std::fs::read_dir(dir.path().join("snapshots")).unwrap().map(|found| found.unwrap().path()).collect();
    snapshots.sort();
    assert_eq!(snapshots.len(), 2, "{snapshots:?}");
    let newest = snapshots.pop().unwrap();
    let mut bytes = std::fs::read(&newest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&newest, bytes).unwrap();
    let raft = Raft::open(small(dir.path())).await.unwrap();
    assert_eq!(raft.metrics().state_hash, hash);
    raft.shutdown().await;

    // Without any snapshot, the log alone has a hole at its start: refused, not forgotten.
    for found in std::fs::read_dir(dir.path().join("snapshots")).unwrap() {
        std::fs::remove_file(found.unwrap().path()).unwrap();
    }
    assert!(matches!(Raft::open(small(dir.path())).await, Err(OpenError::Hole { snapshot: 0, .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_segment_is_refused_with_its_name_and_offset() {
    let dir = tempfile::tempdir().unwrap();
    let raft = Raft::open(small(dir.path())).await.unwrap();
    for n in 0..20 {
        raft.propose(create(&format!("n{n}"), 1000)).await.unwrap();
    }
    raft.shutdown().await;
    let segment = dir.path().join("log/0000000001.wal");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[4096] ^= 0x40;
    std::fs::write(&segment, bytes).unwrap();
    let refused = Raft::open(small(dir.path())).await.unwrap_err().to_string();
    assert!(refused.contains("0000000001.wal at byte ") && refused.contains("a later frame stands whole"), "{refused}");
    assert!(refused.contains("must not vote"), "{refused}");

    // A copied log is another server's.
    let other = tempfile::tempdir().unwrap();
    Raft::open(small(other.path())).await.unwrap().shutdown().await;
    std::fs::copy(&segment, other.path().join("log/0000000001.wal")).unwrap();
    let refused = Raft::open(small(other.path())).await.unwrap_err().to_string();
    assert!(refused.contains("belongs to server"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_written_down_is_refused_before_it_is_proposed() {
    let dir = tempfile::tempdir().unwrap();
    let raft = Raft::open(small(dir.path())).await.unwrap();
    let mut deep = serde_json::json!(1);
    for _ in 0..200 {
        deep = serde_json::json!([deep]);
    }
    let op = coracle_store::Op::Create { key: key("deep"), value: std::sync::Arc::new(deep), claims: vec![] };
    assert!(matches!(raft.propose(op.into()).await, Err(ProposeError::Unwritable(_))));
    assert_eq!(raft.propose(Transaction::default()).await.unwrap().len(), 0);
    raft.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn alone_it_leads_at_once_and_idles_without_waking() {
    let dir = tempfile::tempdir().unwrap();
    Raft::open(small(dir.path())).await.unwrap().shutdown().await;
    let begun = Instant::now();
    let raft = Raft::open(small(dir.path())).await.unwrap();
    let took = begun.elapsed();
    assert!(raft.is_leader());
    // The promise is 100 ms on a machine that does nothing else; other tests run beside this one.
    assert!(took < Duration::from_secs(2), "{took:?}");
    println!("open to leader: {took:?}");
    // A new cluster has one thing to write by itself: its level.
    while raft.view().level() < coracle_base::level::LEVEL {
        tokio::time::sleep(Duration::from_millis(10)).await; // poll
    }
    let (frames, term) = (raft.metrics().frames, raft.metrics().term);
    tokio::time::timeout(Duration::from_millis(1500), raft.leader_changes().changed()).await.unwrap_err();
    assert_eq!((raft.metrics().frames, raft.metrics().term), (frames, term), "an idle server writes nothing");
    raft.shutdown().await;
}
