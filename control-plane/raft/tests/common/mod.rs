//! Small objects to write.
#![allow(dead_code, missing_docs)] // each test binary uses its part

use std::sync::Arc;
use std::time::Duration;

use coracle_raft::{Raft, RaftConfig};
use coracle_store::{Expect, Key, Op, Transaction};
use serde_json::json;

pub fn key(name: &str) -> Key {
    Key::new("configmaps", "default", name)
}

pub fn create(name: &str, bytes: usize) -> Transaction {
    let value = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "data": {"filler": "x".repeat(bytes)},
    });
    Op::Create { key: key(name), value: Arc::new(value), claims: Vec::new() }.into()
}

pub fn delete(name: &str) -> Transaction {
    Op::Delete { key: key(name), expect: Expect::default() }.into()
}

pub fn small(dir: &std::path::Path) -> RaftConfig {
    RaftConfig { segment_bytes: 1 << 20, reserve_bytes: 1 << 20, snapshot_bytes: 1 << 19, ..RaftConfig::new(dir) }
}

/// Waits until something holds; panics with what it still misses.
pub async fn until(raft: &Raft, what: &str, holds: impl Fn(&Raft) -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let mut changes = tokio::time::interval(Duration::from_millis(5));
    while !holds(raft) {
        assert!(std::time::Instant::now() < deadline, "{what} did not come about: {:?}", raft.metrics());
        changes.tick().await;
    }
}
