//! One server's share in the replicated memory, as the rest of the server sees it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coracle_base::{Generation, Level, Release, Revision};
use coracle_store::codec::{self, Part};
use coracle_store::{Event, Gone, Limits, Transaction, View};
use openraft::{Config, ServerState, SnapshotPolicy};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::adapter::{Engine, LogStore, Machine, Network, Shared, Types, members_of};
use crate::batch::{self, ENTRY_TRANSACTIONS, Proposal, ProposeError, Proposed, is_frugal};
use crate::disk::{Disk, RealDisk};
use crate::forward::{Forward, Reader, forwards, readers};
use crate::identity::{self, Identity, IdentityError, Lock};
use crate::inbox::Receiving;
use crate::members::{Member, Members};
use crate::membership::Health;
use crate::peers::{Caller, NoPeers, PeerError, Peers};
use crate::snapshots::{SnapshotFileError, Snapshots};
use crate::vault::{KeyError, Vault};
use crate::wal::{Log, LogConfig, Pace, Space, WalError, Writer};
use crate::wire::{Answer, Request};

/// Proposals that wait at most; each is at most an object, and beyond this a client is told to come back.
const QUEUE: usize = 4096;

/// Each question of a server that joins or leaves.
const JOIN_WITHIN: Duration = Duration::from_secs(6);
/// A planned change of the leader takes a few round trips.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(2);
/// Who has acknowledged something this long ago can lead.
const LIVE: Duration = Duration::from_secs(1);
/// A disk that does not answer for so long hangs.
const HANGS: Duration = Duration::from_secs(1);
/// What it has not taken after so long, nobody waits for any more.
const STUCK: Duration = Duration::from_secs(2);
/// Whether a copy of this server runs where it was last.
const COPY_WITHIN: Duration = Duration::from_millis(700);

/// A snapshot that could not be written is tried again after this.
const SNAPSHOT_AGAIN: Duration = Duration::from_secs(5);

/// What a server needs to open its share of the memory.
#[derive(Debug, Clone)]
pub struct RaftConfig {
    /// The directory of log, snapshots and identity; made when missing.
    pub dir: PathBuf,
    /// Who this server must be; `None`: whoever the directory says, a new one when it is empty.
    pub identity: Option<Identity>,
    /// This server as its peers know it; the address may be empty while it is alone.
    pub member: Member,
    /// Addresses of servers of the cluster this one belongs to: an empty directory does not make a cluster of its own then.
    pub join: Option<Vec<String>>,
    /// What this server says it is, and goes by; anything but this release is for tests.
    pub release: Release,
    /// Bounds of the store.
    pub limits: Limits,
    /// Size of a log segment.
    pub segment_bytes: u64,
    /// Disk space set aside so that deletions work on a full disk.
    pub reserve_bytes: u64,
    /// A snapshot is taken after this many bytes of log, or twice the last snapshot's size when that is more.
    pub snapshot_bytes: u64,
    /// What seals log and snapshots; `None`: they are plain, for simulations.
    pub keys: Option<Arc<Vault>>,
    /// Where the log lies; `None`: below `dir`. For tests of what a failing disk does.
    pub log_disk: Option<Arc<dyn Disk>>,
    /// Where snapshots lie; `None`: below `dir`. For the same tests.
    pub snapshot_disk: Option<Arc<dyn Disk>>,
    /// The log is written by a task of this runtime at this pace, and nothing is done on other threads: for simulations in virtual
    /// time only. `None`: by a thread.
    pub pace: Option<Arc<dyn Pace>>,
}

impl RaftConfig {
    /// The defaults, in this directory.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            identity: None,
            member: Member::default(),
            join: None,
            release: Release::own(),
            limits: Limits::default(),
            segment_bytes: 64 << 20,
            reserve_bytes: 64 << 20,
            snapshot_bytes: 32 << 20,
            keys: None,
            log_disk: None,
            snapshot_disk: None,
            pace: None,
        }
    }
}

/// Why the memory cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory is not ours to use.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The log cannot be used.
    #[error(transparent)]
    Log(#[from] WalError),
    /// No snapshot can be used.
    #[error(transparent)]
    Snapshot(#[from] SnapshotFileError),
    /// The log begins behind the newest snapshot that is whole.
    #[error(
        "the log begins after entry {log}, the newest whole snapshot ends with entry {snapshot}: what lies between is lost\nhint: restore a backup into an empty data directory, or remove this server from the cluster and join it again"
    )]
    Hole {
        /// The last entry that is no more in the log.
        log: u64,
        /// The last entry of the snapshot; 0 when there is none.
        snapshot: u64,
    },
    /// A new log on a disk that is too small for it.
    #[error(
        "{path} has no room for the cluster's log: {needed_mb} MB are set aside for it, {free_mb} MB are free\nhint: free some, set less aside with --log-segment-mb, or put the data directory on another disk with --data-dir"
    )]
    NoRoom {
        /// The directory.
        path: PathBuf,
        /// What a log takes at its start.
        needed_mb: u64,
        /// What there is.
        free_mb: u64,
    },
    /// The directory or a thread could not be had.
    #[error("cannot {operation}")]
    System {
        /// What was to be done.
        operation: &'static str,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Keys cannot be read or written.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Another process uses the same identity.
    #[error(
        "the server of this data directory runs already, at {address}: the directory has been copied\nhint: a new server joins the cluster with an empty data directory; to move a server, stop it where it is first"
    )]
    Cloned {
        /// Where it runs.
        address: String,
    },
    /// The consensus library refused.
    #[error("cannot start the replicated log: {0}")]
    Engine(String),
    /// A newer release has worked in the directory.
    #[error(
        "the cluster of {path} has level {found}, this release knows levels up to {knows}\nhint: a cluster's level never falls: start the release that ran here before, or a newer one"
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// The cluster's level.
        found: Level,
        /// This release's.
        knows: Level,
    },
}

/// Figures for metrics and the status page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftMetrics {
    /// Half of the last 1,024 frames were durable after this.
    pub fsync_p50: Duration,
    /// 99 of 100 of them were.
    pub fsync_p99: Duration,
    /// Frames (group commits) written since the start.
    pub frames: u64,
    /// Bytes the log uses.
    pub log_bytes: u64,
    /// The last entry's index.
    pub last_index: u64,
    /// The term.
    pub term: u64,
    /// Size of the last snapshot, 0 before the first.
    pub snapshot_bytes: u64,
    /// What the watch history weighs.
    pub history_bytes: usize,
    /// Objects stored.
    pub objects: usize,
    /// Hash of the whole state, for comparison between servers.
    pub state_hash: u64,
    /// Whether the log's disk is full.
    pub disk: Space,
    /// Why nothing is acknowledged any more, when that is so.
    pub failure: Option<String>,
}

/// The handle; clones share one server.
#[derive(Clone)]
pub struct Raft {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    identity: Identity,
    pub(crate) engine: Engine,
    pub(crate) shared: Arc<Shared>,
    pub(crate) writer: Arc<Writer>,
    pub(crate) caller: Caller,
    pub(crate) snapshots: Snapshots,
    pub(crate) limits: Limits,
    pub(crate) receiving: tokio::sync::Mutex<Receiving>,
    /// Held while a server is let in, or the level raised: not both at once.
    pub(crate) levelling: tokio::sync::Mutex<()>,
    pub(crate) dir: PathBuf,
    pub(crate) readers: mpsc::Sender<Reader>,
    pub(crate) forwards: mpsc::Sender<Forward>,
    leader: watch::Receiver<Option<u64>>,
    heard: watch::Sender<Heard>,
    proposals: Mutex<Option<mpsc::Sender<Proposal>>>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    stop: watch::Sender<bool>,
    // Given back last.
    lock: Mutex<Option<Lock>>,
}

/// Who said last that it leads, and in which term.
pub(crate) type Heard = Option<(u64, u64)>;

impl Raft {
    /// Opens the memory in a directory: takes its lock, loads the newest snapshot, replays the log, and, when this server is
    /// alone, leads at once. On an empty directory it makes a cluster of one.
    ///
    /// # Errors
    /// The directory is in use or another server's; log or snapshot are damaged; the disk fails.
    pub async fn open(config: RaftConfig) -> Result<Self, OpenError> {
        Self::open_among(config, Arc::new(NoPeers)).await
    }

    /// The same, with a way to other servers. One that joins a cluster waits until it is taken in (`join`).
    ///
    /// # Errors
    /// As `open`; and a copy of this directory runs elsewhere.
    pub async fn open_among(config: RaftConfig, peers: Arc<dyn Peers>) -> Result<Self, OpenError> {
        let loaded = if config.pace.is_some() {
            load(config)?
        } else {
            let loading = tokio::task::spawn_blocking(move || load(config));
            loading.await.map_err(|error| system("load the log")(std::io::Error::other(error)))??
        };
        let Loaded { config, identity, lock, shared, writer, snapshots, is_new } = loaded;
        let machine = Machine::new(shared.clone(), snapshots.clone(), config.limits, config.release.level);
        let refused = |error: &dyn std::fmt::Display| OpenError::Engine(error.to_string());
        let engine_config = Arc::new(engine_config(identity).validate().map_err(|error| refused(&error))?);
        let store = LogStore::new(writer.clone());
        let caller = Caller::new(peers, identity, config.member.clone(), config.release.clone());
        let network = Network { caller: caller.clone(), snapshots: snapshots.clone() };
        let engine = Engine::new(identity.node, engine_config, network, store, machine)
            .await
            .map_err(|error| OpenError::Engine(stop_words(&shared, &error)))?;
        if is_new && config.join.is_none() {
            let alone = BTreeMap::from([(identity.node, config.member.clone())]);
            engine.initialize(alone).await.map_err(|error| refused(&error))?;
        }
        let members = engine
            .with_raft_state(|state| members_of(state.membership_state.effective().membership()))
            .await
            .map_err(|error| refused(&error))?;
        refuse_copies(&members, &caller, identity).await?;
        start_leading(&engine, &shared, identity.node, &members).await?;

        let (stop, stopped) = watch::channel(false);
        let (leader_out, leader) = watch::channel(engine.current_leader().await);
        let (proposals, queue) = mpsc::channel(QUEUE);
        let (reader, reading) = readers();
        let (forwards, forwarding) = forwards();
        let lead = batch::Lead { own: identity.node, leader: leader.clone() };
        let batching = tokio::spawn(batch::run(engine.clone(), writer.stats().clone(), lead, queue));
        let (heard, hearing) = watch::channel(None);
        let watching = tokio::spawn(watch_leader(engine.clone(), identity.node, hearing, leader_out));
        let snapping = tokio::spawn(take_snapshots(
            engine.clone(),
            shared.clone(),
            snapshots.clone(),
            writer.clone(),
            stopped.clone(),
        ));
        let raft = Self {
            inner: Arc::new(Inner {
                identity,
                engine,
                shared,
                writer,
                caller,
                snapshots,
                limits: config.limits,
                receiving: tokio::sync::Mutex::default(),
                levelling: tokio::sync::Mutex::default(),
                dir: config.dir.clone(),
                readers: reader,
                forwards,
                leader,
                heard,
                proposals: Mutex::new(Some(proposals)),
                tasks: Mutex::new(vec![batching, watching, snapping]),
                stop,
                lock: Mutex::new(Some(lock)),
            }),
        };
        // All three hold the handle: they end with `shutdown`, before the log is closed.
        let keeping = tokio::spawn(crate::membership::keep(raft.clone(), stopped.clone()));
        let asking = tokio::spawn(until(stopped.clone(), crate::levels::ask_around(raft.clone())));
        let noting = tokio::spawn(until(stopped.clone(), crate::levels::note(raft.clone())));
        let reading = tokio::spawn(until(stopped.clone(), crate::forward::read_rounds(raft.clone(), reading)));
        let forwarding = tokio::spawn(until(stopped, crate::forward::forward_rounds(raft.clone(), forwarding)));
        let finding = tokio::spawn(crate::finder::run(raft.clone(), raft.inner.stop.subscribe()));
        raft.inner
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend([keeping, asking, noting, reading, forwarding, finding]);
        Ok(raft)
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// The cluster's servers, as this one knows them.
    #[must_use]
    pub fn members(&self) -> Members {
        use openraft::async_runtime::watch::WatchReceiver;
        let metrics = self.inner.engine.server_metrics();
        let seen = metrics.borrow_watched();
        members_of(seen.membership_config.membership())
    }

    /// The same, each where it was last heard from.
    pub(crate) fn members_now(&self) -> Members {
        let mut members = self.members();
        for (server, member) in &mut members.servers {
            if let Some(known) = self.inner.caller.known(*server) {
                member.address = known.address;
            }
        }
        members
    }

    /// Where a server was last heard from, which may be newer than what the log says of it.
    #[must_use]
    pub fn address_of(&self, server: u64) -> Option<String> {
        let member = self.members().servers.get(&server).cloned();
        let address = self.inner.caller.known(server).or(member)?.address;
        Some(address).filter(|address| !address.is_empty())
    }

    /// Whether no other server belongs to the cluster.
    #[must_use]
    pub fn is_alone(&self) -> bool {
        let members = self.members();
        !members.servers.is_empty() && members.is_alone(self.inner.identity.node)
    }

    /// Whether this server belongs to the cluster.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.members().servers.contains_key(&self.inner.identity.node)
    }

    /// How the servers look to the leader; empty on others.
    #[must_use]
    pub fn health(&self) -> BTreeMap<u64, Health> {
        use openraft::async_runtime::watch::WatchReceiver;
        let metrics = self.inner.engine.metrics();
        let seen = metrics.borrow_watched();
        let (Some(matched), Some(beats)) = (&seen.replication, &seen.heartbeat) else { return BTreeMap::new() };
        let own = self.inner.identity.node;
        matched
            .iter()
            .map(|(server, matched)| {
                let silent = match beats.get(server).and_then(Option::as_ref) {
                    _ if *server == own => Some(Duration::ZERO),
                    Some(beat) => Some(openraft::Instant::elapsed(&**beat)),
                    None => None,
                };
                (*server, Health { silent, matched: matched.as_ref().map_or(0, |id| id.index) })
            })
            .collect()
    }

    /// Asks servers at these addresses, in turn, to take this one in; those they name as leader are asked too.
    ///
    /// # Errors
    /// Nobody could, in words.
    pub async fn join(&self, addresses: &[String], within: Duration) -> Result<(), String> {
        let until = tokio::time::Instant::now() + within;
        let mut last = "no server is known".to_owned();
        loop {
            for address in addresses {
                match self.ask_to_join(address).await {
                    Ok(()) => return Ok(()),
                    Err(reason) => last = reason,
                }
            }
            if tokio::time::Instant::now() >= until {
                return Err(last);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn ask_to_join(&self, address: &str) -> Result<(), String> {
        let caller = &self.inner.caller;
        let asked = |error: PeerError| error.to_string();
        let (hello, _) = caller.ask_at(address, 0, &Request::Hello, JOIN_WITHIN).await.map_err(asked)?;
        let Answer::Hello { leader, members, server } = hello else {
            return Err(format!("server {address} gave an odd answer: {hello:?}"));
        };
        let leader = leader.unwrap_or(server);
        let target = members.servers.get(&leader).cloned().unwrap_or_default();
        let target = if leader == server { Member { address: address.to_owned(), ..target } } else { target };
        match caller.ask(leader, &target, &Request::Join, JOIN_WITHIN).await.map_err(asked)? {
            Answer::Done => Ok(()),
            Answer::NotLeader { .. } => Err("the cluster has no leader at the moment".to_owned()),
            Answer::Failed(reason) => Err(reason),
            other => Err(format!("server {address} gave an odd answer: {other:?}")),
        }
    }

    /// Takes a server out of the cluster for good: this one, or another.
    ///
    /// # Errors
    /// It cannot go, or no majority agrees; in words.
    pub async fn remove(&self, server: u64) -> Result<(), String> {
        if self.is_leader() {
            if server != self.inner.identity.node {
                return self.expel(server).await;
            }
            // Somebody else leads first, and then takes this one out.
            self.hand_over().await?;
        }
        let leader = *self.inner.leader.borrow();
        let leader = leader.ok_or_else(|| "the cluster has no leader at the moment".to_owned())?;
        let member = self.members().servers.get(&leader).cloned().unwrap_or_default();
        match self.inner.caller.ask(leader, &member, &Request::Remove { server }, JOIN_WITHIN).await {
            Ok(Answer::Done) => Ok(()),
            Ok(Answer::Failed(reason)) => Err(reason),
            Ok(other) => Err(format!("the leader gave an odd answer: {other:?}")),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Lets another voter lead, the one that has the most of the log; returns once it does. Nothing to do when this server does
    /// not lead, or is alone.
    ///
    /// # Errors
    /// Nobody took over in time.
    pub async fn hand_over(&self) -> Result<(), String> {
        let own = self.inner.identity.node;
        let voters = self.members().all_voters();
        if !self.is_leader() || voters.len() < 2 {
            return Ok(());
        }
        let health = self.health();
        let fit = |server: &u64| health.get(server).filter(|health| health.silent.is_some_and(|silent| silent < LIVE));
        let best = voters.iter().filter(|voter| **voter != own).filter_map(|voter| Some((fit(voter)?.matched, *voter)));
        let Some((_, best)) = best.max() else { return Err("no other server that votes is reachable".to_owned()) };
        let moved = async {
            self.inner.engine.trigger().transfer_leader(best).await.map_err(|error| error.to_string())?;
            let mut leader = self.inner.leader.clone();
            let other = leader.wait_for(|leader| leader.is_some_and(|leader| leader != own)).await;
            other.map(|_| ()).map_err(|_| "this server has stopped".to_owned())
        };
        let within = tokio::time::timeout(HAND_OVER_WITHIN, moved).await;
        within.unwrap_or_else(|_| Err("no other server took over in time".to_owned()))
    }

    /// Proposes one transaction; the answer comes once it is durable and applied.
    ///
    /// # Errors
    /// It did not happen, but for `Uncertain`, and for `Poisoned` and `Stopped`, which may hide that it did.
    pub async fn propose(&self, transaction: Transaction) -> Proposed {
        self.propose_many(vec![transaction]).await.pop().unwrap_or(Err(ProposeError::Stopped))
    }

    /// Proposes several on this server alone, which must lead.
    pub async fn propose_here(&self, transactions: Vec<Transaction>) -> Vec<Proposed> {
        self.propose_in(None, transactions.into_iter().map(|transaction| (transaction, None))).await
    }

    /// The same, for what was decided under a leadership of this server: with its term over it comes to nothing, also when this
    /// server leads again.
    pub async fn propose_led(&self, term: u64, transactions: Vec<Transaction>) -> Vec<Proposed> {
        self.propose_in(Some(term), transactions.into_iter().map(|transaction| (transaction, None))).await
    }

    /// Each with its encoding, where somebody has made it.
    pub(crate) async fn propose_in(
        &self,
        term: Option<u64>,
        transactions: impl Iterator<Item = (Transaction, Option<Part>)>,
    ) -> Vec<Proposed> {
        let level = self.view().level();
        let queue = |(transaction, part): (Transaction, Option<Part>)| match transaction.level() {
            needs if needs > level => Err(ProposeError::Early { needs, level }),
            _ => self.queue(term, transaction, part),
        };
        let mut transactions = transactions.map(queue).peekable();
        let mut answers = Vec::new();
        // Who has more to say than the queue holds says it bit by bit, and leaves room for others.
        while transactions.peek().is_some() {
            let waiting: Vec<_> = transactions.by_ref().take(ENTRY_TRANSACTIONS).collect();
            for waiting in waiting {
                answers.push(match waiting {
                    Ok(waiting) => waiting.await.unwrap_or(Err(ProposeError::Stopped)),
                    Err(error) => Err(error),
                });
            }
        }
        answers
    }

    /// Whatever its level.
    pub(crate) fn queue(
        &self,
        term: Option<u64>,
        transaction: Transaction,
        part: Option<Part>,
    ) -> Result<oneshot::Receiver<Proposed>, ProposeError> {
        if let Some(reason) = self.failure() {
            return Err(ProposeError::Poisoned(reason));
        }
        let stats = self.inner.writer.stats();
        match stats.space() {
            Space::Free => {}
            Space::Low if is_frugal(&transaction) => {}
            Space::Low | Space::Out => return Err(ProposeError::DiskFull),
        }
        let part = part.map_or_else(|| codec::encode_part(&transaction), Ok).map_err(ProposeError::Unwritable)?;
        let (answer, waiting) = oneshot::channel();
        let proposals = self.inner.proposals.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = proposals.as_ref().ok_or(ProposeError::Stopped)?;
        queue.try_send(Proposal { transaction, part, term, answer }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Busy,
            mpsc::error::TrySendError::Closed(_) => ProposeError::Stopped,
        })?;
        Ok(waiting)
    }

    /// The term of this server's leadership, while it leads.
    #[must_use]
    pub fn led_term(&self) -> Option<u64> {
        use openraft::async_runtime::watch::WatchReceiver;
        let seen = self.inner.engine.server_metrics();
        let seen = seen.borrow_watched();
        (seen.state == ServerState::Leader && seen.vote.committed).then_some(seen.vote.leader_id.term)
    }

    /// The state as this server knows it.
    #[must_use]
    pub fn view(&self) -> View {
        self.inner.shared.view()
    }

    /// Woken with every change; slow readers see the latest only.
    #[must_use]
    pub fn revision_changes(&self) -> watch::Receiver<Generation> {
        self.inner.shared.changes()
    }

    /// The changes after a revision, of one resource or of all, oldest first.
    ///
    /// # Errors
    /// History no longer reaches back so far.
    pub fn events_after(&self, revision: Revision, resource: Option<&str>) -> Result<Vec<Event>, Gone> {
        self.inner.shared.with_store(|store| store.events_after(revision, resource))
    }

    /// The oldest revision a watcher can resume from.
    #[must_use]
    pub fn oldest_resumable(&self) -> Revision {
        self.inner.shared.with_store(coracle_store::Store::oldest_resumable)
    }

    /// Whether this server leads, as far as it knows.
    #[must_use]
    pub fn is_leader(&self) -> bool {
        *self.inner.leader.borrow() == Some(self.inner.identity.node)
    }

    /// Who leads, as far as this server knows.
    #[must_use]
    pub fn leader_changes(&self) -> watch::Receiver<Option<u64>> {
        self.inner.leader.clone()
    }

    /// Another server says that it leads.
    pub(crate) fn hear(&self, term: u64, leader: u64) {
        self.inner.heard.send_if_modified(|known| {
            let newer = known.is_none_or(|(known, _)| known < term);
            if newer {
                *known = Some((term, leader));
            }
            newer
        });
    }

    /// Whether this server's log takes nothing at the moment: what it must apply does not come.
    pub(crate) fn is_stuck(&self) -> bool {
        let stats = self.inner.writer.stats();
        stats.awaits_room() || stats.waiting() > STUCK
    }

    /// This server and its cluster.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.inner.identity
    }

    /// Figures of this moment.
    #[must_use]
    pub fn metrics(&self) -> RaftMetrics {
        let stats = self.inner.writer.stats();
        let view = self.view();
        let (history_bytes, state_hash) =
            self.inner.shared.with_store(|store| (store.history_bytes(), store.state_hash()));
        let last = self.inner.writer.index().lock().unwrap_or_else(PoisonError::into_inner).last();
        RaftMetrics {
            fsync_p50: stats.durable_after(0.5),
            fsync_p99: stats.durable_after(0.99),
            frames: stats.frames(),
            log_bytes: stats.bytes(),
            last_index: last.map_or(0, |last| last.index),
            term: last.map_or(0, |last| last.term),
            snapshot_bytes: self.inner.shared.saved().map_or(0, |saved| saved.bytes),
            history_bytes,
            objects: view.len(),
            state_hash,
            disk: stats.space(),
            failure: self.failure(),
        }
    }

    /// Why this server does nothing more: its disk failed, or its log holds what it does not understand.
    pub(crate) fn failure(&self) -> Option<String> {
        let stopped = self.inner.shared.stopped().or_else(|| self.inner.writer.stats().failure());
        stopped.map(str::to_owned)
    }

    /// Whether this server's own disk keeps a cluster that it leads from writing: it is full, or hangs.
    pub(crate) fn is_hindered(&self) -> bool {
        let stats = self.inner.writer.stats();
        stats.space() != Space::Free || stats.waiting() > HANGS
    }

    /// What keeps this server from taking all that is proposed, in words; `None` when nothing does.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        if let Some(reason) = self.inner.shared.stopped() {
            return Some(reason.to_owned());
        }
        let stats = self.inner.writer.stats();
        if let Some(reason) = stats.failure() {
            return Some(format!("{}", ProposeError::Poisoned(reason.to_owned())));
        }
        (stats.space() != Space::Free).then(|| ProposeError::DiskFull.to_string())
    }

    /// Takes nothing more, finishes what is queued, closes the log and gives the directory back. A second call does nothing.
    pub async fn shutdown(&self) {
        // The engine ends only after what it waits for.
        self.inner.writer.give_up_waiting();
        drop(self.inner.proposals.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.inner.stop.send_replace(true);
        let tasks = std::mem::take(&mut *self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let mut tasks = tasks.into_iter();
        if let Some(batching) = tasks.next() {
            report(batching.await);
        }
        if let Err(error) = self.inner.engine.shutdown().await {
            tracing::error!(%error, "the replicated log did not stop in order");
        }
        for task in tasks {
            report(task.await);
        }
        let writer = self.inner.writer.clone();
        report(tokio::task::spawn_blocking(move || writer.stop()).await);
        drop(self.inner.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl std::fmt::Debug for Raft {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Raft({:016x})", self.inner.identity.node)
    }
}

fn report(result: Result<(), tokio::task::JoinError>) {
    if let Err(error) = result {
        tracing::error!(%error, "a task of the replicated log panicked");
    }
}

pub(crate) fn system(operation: &'static str) -> impl FnOnce(std::io::Error) -> OpenError {
    move |source| OpenError::System { operation, source }
}

struct Loaded {
    config: RaftConfig,
    identity: Identity,
    lock: Lock,
    shared: Arc<Shared>,
    writer: Arc<Writer>,
    snapshots: Snapshots,
    is_new: bool,
}

// All that blocks.
fn load(config: RaftConfig) -> Result<Loaded, OpenError> {
    let lock = Lock::take(&config.dir)?;
    let identity = identity::load_or_make(&config.dir, config.identity)?;
    let refuse_newer = |found: Level| {
        let knows = config.release.level;
        if found <= knows { Ok(()) } else { Err(OpenError::Newer { path: config.dir.clone(), found, knows }) }
    };
    refuse_newer(identity::level(&config.dir)?)?;
    let disk = |name: &str| open_directory(&config.dir.join(name)).map(|disk| disk as Arc<dyn Disk>);
    let snapshot_disk = config.snapshot_disk.clone().map_or_else(|| disk("snapshots"), Ok)?;
    let snapshots = Snapshots::new(snapshot_disk, identity.cluster, config.keys.clone()).inline(config.pace.is_some());
    let loaded = snapshots.load(config.limits)?;
    if let Some((_, store)) = &loaded {
        refuse_newer(store.view().level())?;
    }
    let log_config = LogConfig {
        cluster: identity.cluster,
        node: identity.node,
        segment_bytes: config.segment_bytes,
        reserve_bytes: config.reserve_bytes,
    };
    let log_disk = match &config.log_disk {
        Some(given) => given.clone(),
        None => {
            let directory = disk("log")?;
            check_room(&config, &*directory)?;
            directory
        }
    };
    let log = Log::open_sealed(log_disk, log_config, config.keys.clone())
        .map_err(|error| error.below(&config.dir.join("log")))?;
    if let Some(keys) = &config.keys {
        keys.ready()?;
        let mut used = snapshots.node_keys()?;
        used.extend(log.node_keys());
        keys.keep(&used)?;
    }
    let reached = loaded.as_ref().map(|(saved, _)| saved.reach.last.index);
    let index = log.index();
    let index = index.lock().unwrap_or_else(PoisonError::into_inner);
    let is_new = index.last().is_none() && reached.is_none();
    if let Some(purged) = index.purged.filter(|purged| reached.is_none_or(|reached| reached < purged.index)) {
        return Err(OpenError::Hole { log: purged.index, snapshot: reached.unwrap_or(0) });
    }
    let log_bytes = index.bytes_after(reached);
    drop(index);
    let shared = Shared::new(loaded, config.limits, config.snapshot_bytes, log_bytes)
        .map_err(system("read the list of servers"))?;
    let writer = match &config.pace {
        None => Writer::start(log).map_err(system("start the log's thread"))?,
        Some(pace) => Writer::start_paced(log, pace.clone()),
    };
    Ok(Loaded { config, identity, lock, shared: Arc::new(shared), writer: Arc::new(writer), snapshots, is_new })
}

/// A new log is not begun where it would be full from the first day.
fn check_room(config: &RaftConfig, directory: &dyn Disk) -> Result<(), OpenError> {
    let path = directory.path();
    if !directory.list().map_err(system("list the log's directory"))?.is_empty() {
        return Ok(());
    }
    let found = rustix::fs::statvfs(&path).map_err(|error| system("measure the log's disk")(error.into()))?;
    let (free, needed) =
        (found.f_bavail.saturating_mul(found.f_frsize), 2 * config.segment_bytes + config.reserve_bytes);
    if free < needed {
        return Err(OpenError::NoRoom { path, needed_mb: needed >> 20, free_mb: free >> 20 });
    }
    Ok(())
}

fn open_directory(path: &Path) -> Result<Arc<RealDisk>, OpenError> {
    Ok(Arc::new(RealDisk::open(path).map_err(system("open the log's directory"))?))
}

fn engine_config(identity: Identity) -> Config {
    Config {
        cluster_name: format!("{:032x}", identity.cluster),
        heartbeat_interval: 100,
        // A follower waits for the leader's lease (the longer of the two) and then this: an election begins 0.9 to 1.2 s after the last
        // beat.
        election_timeout_min: 300,
        election_timeout_max: 600,
        backoff: "100ms".to_owned(),
        // Snapshots and purges are ours: by bytes, and only back to the last snapshot but one.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        replication_lag_threshold: 20_000,
        // A server alone has nobody to send beats to and elects itself by hand; it would wake fifty times a second for nothing.
        enable_tick: false,
        enable_pre_vote: Some(true),
        // A leader that restarts must not go on in its old leadership: entries that the others had from it, and may have committed
        // without it, need not have become durable here, and new ones would take their places. It is elected anew.
        enable_leader_restore: Some(false),
        ..Config::default()
    }
}

/// A server that has moved is no longer where it was; one that still is there is another process with a copy of this directory.
async fn refuse_copies(members: &Members, caller: &Caller, identity: Identity) -> Result<(), OpenError> {
    let recorded = members.servers.get(&identity.node).cloned().unwrap_or_default();
    if recorded.address.is_empty() || recorded.address == caller.own().address {
        return Ok(());
    }
    match caller.ask_at(&recorded.address, identity.node, &Request::Hello, COPY_WITHIN).await {
        Ok((Answer::Hello { server, .. }, _)) if server == identity.node => {
            Err(OpenError::Cloned { address: recorded.address })
        }
        _ => Ok(()),
    }
}

/// A task that ends when it is told.
async fn until(mut stop: watch::Receiver<bool>, task: impl Future<Output = ()>) {
    tokio::select! {
        // Whatever waits for it is answered by its channel's end.
        () = task => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

/// Why the library ended: what it could not apply, when it was that.
fn stop_words(shared: &Shared, error: &(dyn std::error::Error + 'static)) -> String {
    shared.stopped().map_or_else(|| coracle_base::one_line(error), str::to_owned)
}

/// Leads at once when nobody else could, and waits until all that was acknowledged before is applied.
async fn start_leading(engine: &Engine, shared: &Shared, node: u64, members: &Members) -> Result<(), OpenError> {
    if members.all_voters() != [node].into() {
        engine.runtime_config().tick(true);
        return Ok(());
    }
    let failed = |error: &dyn std::fmt::Display| OpenError::Engine(error.to_string());
    if !engine.is_leader() {
        engine.trigger().elect(false).await.map_err(|error| failed(&error))?;
    }
    let wait = engine.wait(Some(Duration::from_secs(60)));
    wait.metrics(
        |metrics| {
            let applied = metrics.last_applied.as_ref().map(|id| id.index);
            let leads = metrics.state == ServerState::Leader;
            // The leader's own blank entry is the last: with it everything before is committed.
            let caught_up = applied.is_some() && applied >= metrics.last_log_index;
            leads
                && caught_up
                && metrics.last_applied.as_ref().map(|id| id.leader_id.term) == Some(metrics.current_term)
        },
        "leads alone and has applied its log",
    )
    .await
    .map_err(|error| OpenError::Engine(stop_words(shared, &error)))?;
    Ok(())
}

/// Who leads is what the engine knows; but an engine that cannot store its vote, because the disk hangs or is full, learns of no new
/// leader, and this server's clients must find it nevertheless.
async fn watch_leader(engine: Engine, node: u64, mut heard: watch::Receiver<Heard>, out: watch::Sender<Option<u64>>) {
    use openraft::async_runtime::watch::WatchReceiver;
    let mut changes = engine.server_metrics();
    loop {
        let leader = {
            let seen = changes.borrow_watched();
            // Beats and elections are for servers that are not alone.
            let others = seen.membership_config.membership().nodes().any(|(server, _)| *server != node);
            engine.runtime_config().tick(others);
            match *heard.borrow_and_update() {
                _ if seen.state == ServerState::Shutdown => None,
                Some((term, leader)) if term > seen.vote.leader_id.term => Some(leader),
                _ => seen.current_leader,
            }
        };
        out.send_if_modified(|known| std::mem::replace(known, leader) != leader);
        // Both only wait; the handle, which holds the other end of `heard`, may be gone before the engine.
        let goes_on = tokio::select! {
            changed = changes.changed() => changed.is_ok(),
            Ok(()) = heard.changed() => true,
        };
        if !goes_on {
            out.send_replace(None);
            return;
        }
    }
}

/// Writes a snapshot whenever enough log has piled up, tells the library of it, and lets go of the log before the snapshot
/// before: if the newest file turns out damaged, the older one and the log since then still say everything.
async fn take_snapshots(
    engine: Engine,
    shared: Arc<Shared>,
    snapshots: Snapshots,
    writer: Arc<Writer>,
    mut stop: watch::Receiver<bool>,
) {
    let mut failed = false;
    loop {
        // All branches only wait; dropping any loses nothing.
        tokio::select! {
            () = shared.snapshot_due.notified(), if !failed => {}
            // Each try encodes the whole state: not with every change while the disk is full.
            () = tokio::time::sleep(SNAPSHOT_AGAIN), if failed => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let Some((reach, frozen)) = shared.due() else { continue };
        let last = reach.last;
        let saved = match snapshots.aside(move |snapshots| snapshots.write(&reach, &frozen)).await {
            Ok(Ok(saved)) => saved,
            Ok(Err(error)) => {
                if !failed {
                    tracing::warn!(error = %coracle_base::one_line(&error), "no snapshot is written until the disk takes it");
                }
                failed = true;
                continue;
            }
            Err(error) => {
                tracing::error!(%error, "writing a snapshot panicked");
                continue;
            }
        };
        failed = false;
        tracing::info!(index = last.index, bytes = saved.bytes, "snapshot written");
        let log_bytes = writer.index().lock().unwrap_or_else(PoisonError::into_inner).bytes_after(Some(last.index));
        let before = shared.took(saved, log_bytes);
        if let Err(error) = hand_over(&engine, last.index, before.map(|before| before.reach.last.index)).await {
            tracing::info!(%error, "the log is not shortened: it stops");
            return;
        }
    }
}

async fn hand_over(engine: &Engine, index: u64, purge: Option<u64>) -> Result<(), openraft::errors::Fatal<Types>> {
    engine.trigger().snapshot().await?;
    let Some(purge) = purge else { return Ok(()) };
    let wait = engine.wait(Some(Duration::from_secs(30)));
    let known = |metrics: &openraft::RaftMetrics<Types>| {
        metrics.snapshot.as_ref().is_some_and(|snapshot| snapshot.index >= index)
    };
    if let Err(error) = wait.metrics(known, "knows of the snapshot").await {
        tracing::warn!(%error, "the log is not shortened this time");
        return Ok(());
    }
    engine.trigger().purge_log(purge).await
}
