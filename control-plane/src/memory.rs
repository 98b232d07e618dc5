//! The replicated log as the rest of a server sees it, and its errors in the API's words.

use std::path::Path;
use std::sync::Arc;

use coracle_api::{BoxFuture, Memory, ProposeError, Proposed};
use coracle_base::{Generation, Revision};
use coracle_raft::{OpenError, Raft, RaftConfig};
use coracle_store::{Event, Transaction, View};
use tokio::sync::watch;

/// Why the memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The log, its lock or its snapshots.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The objects every cluster begins with.
    #[error("the first objects of the cluster cannot be stored")]
    FirstObjects(#[source] ProposeError),
}

/// The log itself, for metrics and an orderly end.
#[derive(Clone)]
pub struct LogHandle {
    raft: Raft,
}

impl LogHandle {
    /// The cluster's identity, hexadecimal.
    #[must_use]
    pub fn cluster_id(&self) -> String {
        format!("{:032x}", self.raft.identity().cluster)
    }

    /// Figures, name and value.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn metrics(&self) -> Vec<(&'static str, f64)> {
        let now = self.raft.metrics();
        vec![
            ("fsync_p50_seconds", now.fsync_p50.as_secs_f64()),
            ("fsync_p99_seconds", now.fsync_p99.as_secs_f64()),
            ("frames_total", now.frames as f64),
            ("bytes", now.log_bytes as f64),
            ("last_index", now.last_index as f64),
            ("term", now.term as f64),
            ("snapshot_bytes", now.snapshot_bytes as f64),
            ("history_bytes", now.history_bytes as f64),
            ("failed", f64::from(u8::from(now.failure.is_some()))),
        ]
    }

    /// What keeps the log from taking all that is written, in words; `None` when nothing does.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.raft.trouble()
    }

    /// Stops the log's threads. What was acknowledged is on disk already.
    pub async fn close(&self) {
        self.raft.shutdown().await;
    }
}

/// Whether nobody works in a folder at the moment. Makes nothing there.
///
/// # Errors
/// Another process has it.
pub fn check_unused(dir: &Path) -> Result<(), MemoryError> {
    if dir.join("lock").exists() {
        coracle_raft::Lock::take(dir).map_err(OpenError::Identity)?;
    }
    Ok(())
}

/// Opens the memory in a folder.
///
/// # Errors
/// The folder is in use, or what is in it is damaged.
pub async fn open(dir: &Path, segment_bytes: u64) -> Result<(Arc<dyn Memory>, LogHandle), MemoryError> {
    let raft = Raft::open(RaftConfig { segment_bytes, reserve_bytes: segment_bytes, ..RaftConfig::new(dir) }).await?;
    Ok((Arc::new(Logged { raft: raft.clone() }), LogHandle { raft }))
}

struct Logged {
    raft: Raft,
}

fn in_api_words(error: coracle_raft::ProposeError) -> ProposeError {
    match error {
        coracle_raft::ProposeError::Rejected { index, rejection } => ProposeError::Rejected { index, rejection },
        coracle_raft::ProposeError::Busy => ProposeError::Busy,
        coracle_raft::ProposeError::DiskFull => ProposeError::DiskFull,
        coracle_raft::ProposeError::NotLeader { .. } => ProposeError::NoLeader,
        other => ProposeError::Stopped(coracle_base::one_line(&other)),
    }
}

impl Memory for Logged {
    fn view(&self) -> View {
        self.raft.view()
    }

    fn read_barrier(&self) -> BoxFuture<'_, Result<View, ProposeError>> {
        Box::pin(async { self.raft.read_barrier().await.map_err(in_api_words) })
    }

    fn propose(&self, transaction: Transaction) -> BoxFuture<'_, Proposed> {
        Box::pin(async { self.raft.propose(transaction).await.map_err(in_api_words) })
    }

    fn propose_many(&self, transactions: Vec<Transaction>) -> BoxFuture<'_, Vec<Proposed>> {
        Box::pin(async {
            self.raft.propose_many(transactions).await.into_iter().map(|done| done.map_err(in_api_words)).collect()
        })
    }

    fn changes(&self) -> watch::Receiver<Generation> {
        self.raft.revision_changes()
    }

    fn events_after(&self, revision: Revision, resource: Option<&str>) -> Option<Vec<Event>> {
        self.raft.events_after(revision, resource).ok()
    }
}
