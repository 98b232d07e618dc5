//! What lies on the disk is sealed: nothing can be read without the key file, nothing can be changed, and no key seals for ever.

mod common;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use common::{create, delete, key, keys, small, until};
use coracle_raft::disk::RealDisk;
use coracle_raft::wal::{Entry, Log, LogConfig, Payload, Position, Record, WalError};
use coracle_raft::{Raft, RaftConfig, Vault, vault};
use coracle_store::{Op, Transaction};
use serde_json::json;

const MARKER: &str = "d0-n0t-l3t-th1s-be-f0und";

fn secret(number: usize) -> Transaction {
    let value = json!({
        "metadata": {"name": format!("s{number}"), "namespace": "default", "uid": format!("uid-{number}")},
        "data": {"password": MARKER.repeat(400)},
    });
    Op::Create { key: key(&format!("s{number}")), value: Arc::new(value), claims: Vec::new() }.into()
}

/// The files below a folder that hold these bytes anywhere.
fn holding(folder: &Path, wanted: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(holding(&path, wanted));
        // One that has gone meanwhile holds nothing.
        } else if std::fs::read(&path).unwrap_or_default().windows(wanted.len()).any(|bytes| bytes == wanted.as_bytes())
        {
            found.push(path.display().to_string());
        }
    }
    found
}

/// Objects there are at most: snapshots do not grow, and the next one is soon due.
const LIVE: usize = 40;

/// Writes until so many snapshots have been taken.
async fn snapshots(raft: &Raft, dir: &Path, from: usize, count: usize) -> usize {
    let taken = || {
        let names = std::fs::read_dir(dir.join("snapshots")).unwrap();
        let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".snapshot")).max()
    };
    let (mut number, mut last, mut left) = (from, taken(), count);
    while left > 0 {
        raft.propose(secret(number)).await.unwrap();
        if let Some(old) = number.checked_sub(LIVE) {
            raft.propose(delete(&format!("s{old}"))).await.unwrap();
        }
        number += 1;
        assert!(number < from + 5000, "no snapshot is taken: {:?}", raft.metrics());
        let now = taken();
        if now != last {
            (last, left) = (now, left - 1);
        }
    }
    number
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_written_can_be_found_on_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let raft = Raft::open(small(dir.path())).await.unwrap();
    let written = snapshots(&raft, dir.path(), 0, 2).await;
    raft.propose(secret(written)).await.unwrap();
    let hash = raft.metrics().state_hash;
    raft.shutdown().await;
    assert_eq!(holding(dir.path(), MARKER), Vec::<String>::new());
    let raft = Raft::open(small(dir.path())).await.unwrap();
    assert_eq!(raft.metrics().state_hash, hash);
    raft.propose(secret(written + 1)).await.unwrap();
    raft.shutdown().await;
    assert_eq!(holding(dir.path(), MARKER), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_directory_is_read_and_goes_on_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let plain = RaftConfig { keys: None, ..small(dir.path()) };
    let raft = Raft::open(plain.clone()).await.unwrap();
    let written = snapshots(&raft, dir.path(), 0, 1).await;
    let hash = raft.metrics().state_hash;
    raft.shutdown().await;
    let before = holding(dir.path(), MARKER);
    assert!(before.iter().any(|file| file.ends_with(".wal")) && before.iter().any(|file| file.ends_with(".snapshot")));

    let raft = Raft::open(small(dir.path())).await.unwrap();
    assert_eq!(raft.metrics().state_hash, hash);
    raft.propose(create("first", 10)).await.unwrap();
    raft.propose(secret(written)).await.unwrap();
    assert_eq!(holding(dir.path(), MARKER), before, "what is written from now on is sealed");
    // What was plain goes like everything that is old.
    snapshots(&raft, dir.path(), written + 1, 3).await;
    until(&raft, "the plain files go", |_| holding(dir.path(), MARKER).is_empty()).await;
    let hash = raft.metrics().state_hash;
    raft.shutdown().await;

    // A release, or a configuration, without keys does not take it for something else.
    let refused = Raft::open(plain).await.unwrap_err().to_string();
    assert!(refused.contains("is sealed"), "{refused}");
    let raft = Raft::open(small(dir.path())).await.unwrap();
    assert_eq!(raft.metrics().state_hash, hash);
    raft.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_key_file_a_server_does_not_start() {
    for snapshot in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("storage.key");
        let raft = Raft::open(small(dir.path())).await.unwrap();
        raft.propose(secret(0)).await.unwrap();
        if snapshot {
            snapshots(&raft, dir.path(), 1, 2).await;
        }
        let hash = raft.metrics().state_hash;
        raft.shutdown().await;
        let kept = std::fs::read_to_string(&file).unwrap();

        std::fs::remove_file(&file).unwrap();
        let missing = Raft::open(small(dir.path())).await.unwrap_err().to_string();
        assert!(
            missing.contains(&file.display().to_string()) && missing.contains("hint: put this server's"),
            "{missing}"
        );
        assert!(!file.exists(), "no new key is made where an old one is missing");
        // Another server's, and one that says it is the right one.
        keys(dir.path()).ready().unwrap();
        let other = Raft::open(small(dir.path())).await.unwrap_err().to_string();
        assert!(other.contains("which is not in"), "{other}");
        std::fs::write(&file, format!("{}{}\n", &kept[..kept.len() - 65], "0".repeat(64))).unwrap();
        let wrong = Raft::open(small(dir.path())).await.unwrap_err().to_string();
        assert!(wrong.contains("does not open with the key") && wrong.contains("storage.key"), "{wrong}");

        std::fs::write(&file, kept).unwrap();
        let raft = Raft::open(small(dir.path())).await.unwrap();
        assert_eq!(raft.metrics().state_hash, hash);
        raft.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_rotate_while_the_server_runs() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("storage.key");
    let ids = || -> Vec<String> {
        let text = std::fs::read_to_string(&file).unwrap();
        text.lines().skip(1).map(|line| line[..16].to_owned()).collect()
    };
    let raft = Raft::open(small(dir.path())).await.unwrap();
    let written = snapshots(&raft, dir.path(), 0, 2).await;
    let first = ids();
    let (id, count) = vault::rotate(&file).unwrap();
    assert_eq!((count, ids().last()), (2, Some(&format!("{id:016x}"))));
    raft.propose(secret(written)).await.unwrap();
    raft.shutdown().await;
    // Something is still sealed with the first.
    let raft = Raft::open(small(dir.path())).await.unwrap();
    assert_eq!(ids().len(), 2);
    snapshots(&raft, dir.path(), written + 1, 4).await;
    let hash = raft.metrics().state_hash;
    raft.shutdown().await;
    let raft = Raft::open(small(dir.path())).await.unwrap();
    assert_eq!(ids(), [format!("{id:016x}")], "{first:?} is not dropped");
    assert_eq!(raft.metrics().state_hash, hash);
    raft.shutdown().await;
}

#[test]
fn a_frame_that_was_changed_is_refused_though_its_checksum_is_right() {
    const CONFIG: LogConfig = LogConfig { cluster: 7, node: 1, segment_bytes: 1 << 16, reserve_bytes: 0 };
    let dir = tempfile::tempdir().unwrap();
    let keys = Some(Arc::new(Vault::ephemeral().unwrap()));
    let open = || Log::open_sealed(Arc::new(RealDisk::open(dir.path()).unwrap()), CONFIG, keys.clone());
    let mut log = open().unwrap();
    let payload = Payload::Commands(Bytes::from_static(b"delete everything"));
    log.commit(&[Record::Entry(Entry { at: Position { term: 1, node: 1, index: 0 }, payload })]).unwrap();
    drop(log);
    drop(open().unwrap());
    let file = dir.path().join("0000000001.wal");
    let mut bytes = std::fs::read(&file).unwrap();
    let frame = &mut bytes[512..];
    let length = u32::from_le_bytes(frame[4..8].try_into().unwrap()) as usize;
    frame[60] ^= 1;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&frame[..20]), &frame[24..24 + length]);
    frame[20..24].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    match open() {
        Err(WalError::Corrupt { file, offset: 512, what }) => {
            assert!(file == "0000000001.wal" && what.contains("it was changed"), "{what}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_changed_or_cut_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let raft = Raft::open(small(dir.path())).await.unwrap();
    snapshots(&raft, dir.path(), 0, 2).await;
    let hash = raft.metrics().state_hash;
    raft.shutdown().await;
    let folder = dir.path().join("snapshots");
    let newest = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).max().unwrap();
    let whole = std::fs::read(&newest).unwrap();
    let mut changed = whole.clone();
    changed[5000] ^= 1;
    let block = 4096 + (256 << 10) + 16;
    assert!(whole.len() > block, "the snapshot has one block only");
    for damaged in [changed, whole[..whole.len() - 1].to_vec(), whole[..block].to_vec(), whole[..4096].to_vec()] {
        std::fs::write(&newest, damaged).unwrap();
        // The one before and the log say the same.
        let raft = Raft::open(small(dir.path())).await.unwrap();
        assert_eq!(raft.metrics().state_hash, hash);
        raft.shutdown().await;
    }
}
