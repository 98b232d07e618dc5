//! A disk that is full, and one that fails: deletions still work on the first, nothing is acknowledged on the second.

mod common;

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{Tiny, create, delete, fill, key, small, until};
use coracle_raft::disk::RealDisk;
use coracle_raft::wal::{Ballot, Entry, Log, LogConfig, Payload, Position, Record, Writer};
use coracle_raft::{ProposeError, Raft, RaftConfig, Space};
use coracle_store::{Op, Transaction};
use serde_json::json;

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

const CONFIG: LogConfig = LogConfig { cluster: 7, node: 1, segment_bytes: 1 << 20, reserve_bytes: 1 << 20 };

fn entry(index: u64) -> Record {
    let payload = Payload::Commands(Bytes::from(vec![7; 100_000]));
    Record::Entry(Entry { at: Position { term: 1, node: 1, index }, payload })
}

fn open_log(at: &Path) -> Log {
    Log::open(Arc::new(RealDisk::open(&at.join("log")).unwrap()), CONFIG).unwrap()
}

/// Commits entries until the disk has no room for one; gives the answers and how many there will be.
fn write_until_full(writer: &Writer) -> (mpsc::Receiver<Result<(), String>>, u64) {
    let end = Instant::now() + Duration::from_secs(20);
    // The disk holds fewer entries than this.
    let (answers, answered) = mpsc::sync_channel(1000);
    let mut asked = 0;
    while !writer.stats().awaits_room() {
        assert!(Instant::now() < end, "the disk never got full");
        let answers = answers.clone();
        let done = move |result: Result<(), Arc<_>>| {
            drop(answers.send(result.map_err(|error: Arc<coracle_raft::wal::WalError>| error.to_string())));
        };
        writer.commit(vec![entry(asked)], Box::new(done));
        asked += 1;
        while writer.stats().frames() < asked && !writer.stats().awaits_room() && Instant::now() < end {
            std::thread::yield_now();
        }
    }
    (answered, asked)
}

#[test]
fn what_finds_no_room_waits_for_it_and_is_written_then() {
    let at = tempfile::tempdir().unwrap();
    let Some(_tiny) = Tiny::mount(at.path(), "6m") else { return };
    let writer = Writer::start(open_log(at.path())).unwrap();
    fill(&at.path().join("junk"));
    let (answered, mut asked) = write_until_full(&writer);
    assert_eq!(writer.stats().space(), Space::Out);
    assert_eq!(writer.stats().failure(), None);
    // What comes later, a vote as well, stands in line.
    let (later, voted) = mpsc::sync_channel(1);
    let ballot = Ballot { term: 2, node: 9, committed: false };
    writer.commit(vec![Record::Ballot(ballot)], Box::new(move |result| later.send(result.is_ok()).unwrap()));
    writer.commit(vec![entry(asked)], Box::new(|_| ()));
    asked += 1;
    assert!(voted.recv_timeout(Duration::from_millis(300)).is_err(), "a full disk took a vote before its entries");
    assert!(writer.stats().waiting() > Duration::from_millis(200));
    let mut durable = 0;
    while let Ok(answer) = answered.try_recv() {
        answer.unwrap();
        durable += 1;
    }
    assert_eq!(durable, asked - 2, "one waits, and one behind it");

    std::fs::remove_file(at.path().join("junk")).unwrap();
    answered.recv_timeout(Duration::from_secs(20)).expect("it is written").unwrap();
    assert!(voted.recv_timeout(Duration::from_secs(20)).expect("the vote is written"));
    writer.stop();
    assert_eq!((writer.stats().awaits_room(), writer.stats().waiting()), (false, Duration::ZERO));

    let log = open_log(at.path());
    let index = log.index();
    let index = index.lock().unwrap();
    assert_eq!((index.next_index(), index.ballot), (asked, Some(ballot)));
    for number in 0..asked {
        assert_eq!(Record::Entry(index.locate(number).unwrap().read().unwrap()[0].clone()), entry(number));
    }
}

#[test]
fn a_log_that_waits_for_room_stops_when_told() {
    let at = tempfile::tempdir().unwrap();
    let Some(_tiny) = Tiny::mount(at.path(), "6m") else { return };
    let writer = Writer::start(open_log(at.path())).unwrap();
    fill(&at.path().join("junk"));
    let (answered, asked) = write_until_full(&writer);
    let began = Instant::now();
    writer.stop();
    let took = began.elapsed();
    // It looks for room every two seconds.
    assert!(took < Duration::from_millis(1500), "{took:?}");
    let answers: Vec<_> = answered.try_iter().collect();
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count() as u64, asked - 1);
    assert!(answers.last().unwrap().as_ref().unwrap_err().contains("full"), "{answers:?}");
    let log = open_log(at.path());
    assert_eq!(log.index().lock().unwrap().next_index(), asked - 1);
}
