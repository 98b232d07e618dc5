//! The replicated log as the rest of a server sees it, and its errors in the API's words.

use std::path::Path;
use std::sync::Arc;

use coracle_api::{BoxFuture, Memory, ProposeError, Proposed};
use coracle_base::{Generation, Release, Revision};
use coracle_raft::{Member, OpenError, Peers, Raft, RaftConfig, Vault};
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

/// One server of the cluster, as this one knows it.
#[derive(Debug, Clone)]
pub struct ServerStatus {
    /// Its number.
    pub id: u64,
    /// Its machine.
    pub name: String,
    /// Where others reach it.
    pub address: String,
    /// Whether it leads.
    pub leader: bool,
    /// Whether it votes.
    pub voter: bool,
    /// Whether it is this one.
    pub here: bool,
    /// Since the leader last heard of it; only the leader knows.
    pub silent: Option<std::time::Duration>,
    /// Entries it is behind; only the leader knows.
    pub lag: Option<u64>,
    /// What it runs; `None`: it has not been heard of lately.
    pub release: Option<Release>,
}

/// The log itself, for metrics and an orderly end.
#[derive(Clone)]
pub struct LogHandle {
    raft: Raft,
}

impl LogHandle {
    /// The log.
    pub(crate) fn raft(&self) -> &Raft {
        &self.raft
    }

    /// The memory as the leader's own tasks see it: what they propose is for this server's log alone, and for this term of its
    /// leadership.
    pub(crate) fn led(&self, term: u64) -> Arc<dyn Memory> {
        Arc::new(Logged { raft: self.raft.clone(), term: Some(term) })
    }

    /// The cluster's servers.
    #[must_use]
    pub fn servers(&self) -> Vec<ServerStatus> {
        let members = self.raft.members();
        let (health, leader) = (self.raft.health(), *self.raft.leader_changes().borrow());
        let (voters, last) = (members.all_voters(), self.raft.metrics().last_index);
        let own = self.raft.identity().node;
        let status = |(id, member): (&u64, &Member)| ServerStatus {
            id: *id,
            name: member.name.clone(),
            address: member.address.clone(),
            leader: leader == Some(*id),
            voter: voters.contains(id),
            here: *id == own,
            silent: health.get(id).and_then(|health| health.silent),
            lag: health.get(id).map(|health| last.saturating_sub(health.matched)),
            release: self.raft.release_of(*id),
        };
        members.servers.iter().map(status).collect()
    }

    /// Figures of this server's log.
    #[must_use]
    pub fn figures(&self) -> coracle_raft::RaftMetrics {
        self.raft.metrics()
    }

    /// Lets another server lead, when this one does and another can.
    pub async fn hand_over(&self) {
        if let Err(reason) = self.raft.hand_over().await {
            tracing::warn!(reason, "leadership was not handed over; the others will notice");
        }
    }

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

/// What the log of this server needs to know.
pub(crate) struct LogPlan<'a> {
    pub dir: &'a Path,
    pub segment_bytes: u64,
    /// What seals it.
    pub keys: Arc<Vault>,
    /// This server, as others know it.
    pub member: Member,
    /// The cluster it belongs to, and where its servers are; `None` for one that makes a cluster, or made it.
    pub join: Option<(u128, Vec<String>)>,
}

/// Opens the memory in a folder.
///
/// # Errors
/// The folder is in use, or what is in it is damaged.
pub(crate) async fn open(
    plan: LogPlan<'_>,
    peers: Arc<dyn Peers>,
) -> Result<(Arc<dyn Memory>, LogHandle), MemoryError> {
    let LogPlan { dir, segment_bytes, keys, member, join } = plan;
    // Whoever looks at what was before a recovery needs the keys of then.
    if crate::backup::is_kept_beside(dir) {
        keys.hold_all();
    }
    let known = dir.join("identity").exists();
    let identity = join.as_ref().filter(|_| !known);
    let identity = identity.map(|(cluster, _)| coracle_raft::Identity { node: rand::random(), cluster: *cluster });
    let join = join.map(|(_, servers)| servers);
    let config = RaftConfig {
        segment_bytes,
        reserve_bytes: segment_bytes,
        keys: Some(keys),
        member,
        identity,
        join,
        ..RaftConfig::new(dir)
    };
    let raft = Raft::open_among(config, peers).await?;
    Ok(over(raft))
}

/// The memory over an open log.
pub(crate) fn over(raft: Raft) -> (Arc<dyn Memory>, LogHandle) {
    (Arc::new(Logged { raft: raft.clone(), term: None }), LogHandle { raft })
}

struct Logged {
    raft: Raft,
    /// Proposals are for this server's log alone while it leads in this term: those of a leadership that is over come to nothing.
    term: Option<u64>,
}

fn in_api_words(error: coracle_raft::ProposeError) -> ProposeError {
    match error {
        coracle_raft::ProposeError::Rejected { index, rejection } => ProposeError::Rejected { index, rejection },
        coracle_raft::ProposeError::Busy => ProposeError::Busy,
        coracle_raft::ProposeError::DiskFull => ProposeError::DiskFull,
        coracle_raft::ProposeError::NotLeader { .. } => ProposeError::NoLeader,
        coracle_raft::ProposeError::Uncertain => ProposeError::Uncertain,
        early @ coracle_raft::ProposeError::Early { .. } => ProposeError::Early(early.to_string()),
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
        Box::pin(async move {
            let answer = self.propose_many(vec![transaction]).await.pop();
            answer.unwrap_or_else(|| Err(ProposeError::Stopped("no answer came".to_owned())))
        })
    }

    fn propose_many(&self, transactions: Vec<Transaction>) -> BoxFuture<'_, Vec<Proposed>> {
        Box::pin(async move {
            let answers = match self.term {
                Some(term) => self.raft.propose_led(term, transactions).await,
                None => self.raft.propose_many(transactions).await,
            };
            answers.into_iter().map(|done| done.map_err(in_api_words)).collect()
        })
    }

    fn changes(&self) -> watch::Receiver<Generation> {
        self.raft.revision_changes()
    }

    fn events_after(&self, revision: Revision, resource: Option<&str>) -> Option<Vec<Event>> {
        self.raft.events_after(revision, resource).ok()
    }
}
