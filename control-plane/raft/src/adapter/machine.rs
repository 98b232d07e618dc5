//! The library's state machine over our store.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use coracle_base::{Generation, Level};
use coracle_store::{Frozen, Limits, Op, Store, Transaction, View};
use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, SnapshotMeta};
use tokio::sync::{Notify, watch};

use super::{EngineLogId, EngineMembers, Types, log_id, members_of, membership_of, position};
use crate::snapshots::{Reach, Saved, Snapshots};
use crate::wal::Position;

/// A snapshot that lies on our disk, by the index it reaches to.
pub(crate) type SnapshotHandle = u64;

/// The state, as the state machine writes it and everybody reads it.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    view: RwLock<View>,
    generation: watch::Sender<Generation>,
    /// The last entry that is in the state.
    applied: watch::Sender<u64>,
    /// Somebody should look whether a snapshot is due.
    pub snapshot_due: Notify,
    /// Why nothing is applied any more.
    stopped: OnceLock<String>,
}

#[derive(Debug)]
struct State {
    store: Store,
    last: Option<Position>,
    members: EngineMembers,
    saved: Option<Saved>,
    bytes_since_snapshot: u64,
    snapshot_after: u64,
}

impl Shared {
    pub fn new(
        loaded: Option<(Saved, Store)>,
        limits: Limits,
        snapshot_after: u64,
        log_bytes: u64,
    ) -> io::Result<Self> {
        let (saved, store) = match loaded {
            Some((saved, store)) => (Some(saved), store),
            None => (None, Store::new(limits)),
        };
        let members = saved.as_ref().map(|saved| stored_members(&saved.reach)).transpose()?.unwrap_or_default();
        let view = store.view();
        let state = State {
            last: saved.as_ref().map(|saved| saved.reach.last),
            store,
            members,
            saved,
            bytes_since_snapshot: log_bytes,
            snapshot_after,
        };
        let (generation, _) = watch::channel(view.generation());
        let (applied, _) = watch::channel(state.last.map_or(0, |last| last.index));
        let snapshot_due = Notify::new();
        let (state, view) = (Mutex::new(state), RwLock::new(view));
        Ok(Self { state, view, generation, applied, snapshot_due, stopped: OnceLock::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn view(&self) -> View {
        self.view.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn changes(&self) -> watch::Receiver<Generation> {
        self.generation.subscribe()
    }

    /// The last entry that is in the state.
    pub fn applied(&self) -> u64 {
        *self.applied.borrow()
    }

    pub fn applied_changes(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Why nothing is applied any more, with a hint; `None` when all is well.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.get().map(String::as_str)
    }

    /// Nothing is applied any more. The library ends with the error; people read the reason here.
    fn stop(&self, index: u64, error: &dyn std::fmt::Display) -> io::Error {
        let text = error.to_string();
        let (problem, hint) = text.split_once("\nhint: ").unwrap_or((&text, "start a newer release here"));
        let reason =
            format!("entry {index} of the log cannot be applied, and none is left out: {problem}\nhint: {hint}");
        tracing::error!(index, problem, "the log holds what this release does not understand: this server stops here");
        // The first one is the reason.
        let _ = self.stopped.set(reason.clone());
        io::Error::other(reason)
    }

    /// The store, for a short look.
    pub fn with_store<T>(&self, look: impl FnOnce(&Store) -> T) -> T {
        look(&self.state().store)
    }

    pub fn saved(&self) -> Option<Saved> {
        self.state().saved.clone()
    }

    /// What a snapshot of this moment would hold, when one is due.
    pub fn due(&self) -> Option<(Reach, Frozen)> {
        let state = self.state();
        let last = state.last?;
        let due = state.bytes_since_snapshot >= state.threshold();
        let newer = state.saved.as_ref().is_none_or(|saved| saved.reach.last < last);
        (due && newer).then(|| (state.reach(last), state.store.freeze()))
    }

    /// The same, due or not.
    pub fn snapshot_now(&self) -> Option<(Reach, Frozen)> {
        let state = self.state();
        state.last.map(|last| (state.reach(last), state.store.freeze()))
    }

    /// A snapshot was written; gives the one before it.
    pub fn took(&self, saved: Saved, log_bytes: u64) -> Option<Saved> {
        let mut state = self.state();
        state.bytes_since_snapshot = log_bytes;
        state.saved.replace(saved)
    }

    fn publish(&self, view: View, applied: u64) {
        let generation = view.generation();
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = view;
        self.generation.send_if_modified(|known| std::mem::replace(known, generation) != generation);
        // After the view: whoever waits for an entry then reads it.
        self.applied.send_replace(applied);
    }
}

impl State {
    // Twice the last snapshot, so that writing snapshots costs at most half of what the log costs.
    fn threshold(&self) -> u64 {
        let twice = self.saved.as_ref().map_or(0, |saved| saved.bytes.saturating_mul(2));
        self.snapshot_after.max(twice)
    }

    fn reach(&self, last: Position) -> Reach {
        Reach {
            last,
            members_at: self.members.log_id().as_ref().map(position),
            members: members_of(self.members.membership()),
        }
    }
}

fn stored_members(reach: &Reach) -> io::Result<EngineMembers> {
    Ok(EngineMembers::new(reach.members_at.map(log_id), membership_of(&reach.members)?))
}

fn meta_of(reach: &Reach) -> io::Result<SnapshotMetaOf<Types>> {
    Ok(SnapshotMeta { last_log_id: Some(log_id(reach.last)), last_membership: stored_members(reach)? })
}

/// The state machine the library drives.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    shared: Arc<Shared>,
    snapshots: Snapshots,
    limits: Limits,
    /// What this server knows.
    level: Level,
}

impl Machine {
    pub fn new(shared: Arc<Shared>, snapshots: Snapshots, limits: Limits, level: Level) -> Self {
        Self { shared, snapshots, limits, level }
    }

    /// What an entry holds, when all of it is known here.
    fn read(&self, batch: &super::Batch) -> Result<Vec<Transaction>, String> {
        let transactions = batch.transactions().map_err(|error| error.to_string())?;
        for op in transactions.iter().flat_map(|transaction| &transaction.ops) {
            if let Op::RaiseLevel { level } = op {
                self.check(*level)?;
            }
        }
        Ok(transactions)
    }

    fn check(&self, level: Level) -> Result<(), String> {
        if level <= self.level {
            return Ok(());
        }
        Err(format!(
            "the cluster has level {level}, this release knows levels up to {}\nhint: start the release that the other servers run",
            self.level
        ))
    }

    fn current(&self) -> io::Result<Option<SnapshotOf<Types, SnapshotHandle>>> {
        let Some(saved) = self.shared.saved() else { return Ok(None) };
        Ok(Some(SnapshotOf::<Types, SnapshotHandle> { meta: meta_of(&saved.reach)?, snapshot: saved.reach.last.index }))
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotHandle;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<EngineLogId>, EngineMembers)> {
        let state = self.shared.state();
        Ok((state.last.map(log_id), state.members.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let mut answers = Vec::new();
            let (view, due) = {
                let mut state = self.shared.state();
                match &entry.payload {
                    EntryPayload::Blank => {}
                    EntryPayload::Normal(batch) => {
                        // An entry that cannot be read stops this server: skipping it would make it differ from others.
                        let transactions =
                            self.read(batch).map_err(|error| self.shared.stop(entry.log_id.index, &error))?;
                        answers = state.store.apply(&transactions);
                        state.bytes_since_snapshot += batch.bytes.len() as u64;
                    }
                    EntryPayload::Membership(members) => {
                        state.members = EngineMembers::new(Some(entry.log_id), members.clone());
                    }
                }
                state.last = Some(position(&entry.log_id));
                (state.store.view(), state.bytes_since_snapshot >= state.threshold())
            };
            self.shared.publish(view, entry.log_id.index);
            if due {
                self.shared.snapshot_due.notify_one();
            }
            if let Some(responder) = responder {
                responder.send(answers);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<Types>, snapshot: SnapshotHandle) -> io::Result<()> {
        let (saved, store) = self.snapshots.read(snapshot, self.limits).map_err(io::Error::other)?;
        if meta.last_log_id.as_ref().map(position) != Some(saved.reach.last) {
            return Err(io::Error::other("the snapshot does not reach to where it should"));
        }
        let (view, reached) = (store.view(), saved.reach.last.index);
        self.check(view.level()).map_err(|error| self.shared.stop(reached, &error))?;
        {
            let mut state = self.shared.state();
            state.last = Some(saved.reach.last);
            state.members = stored_members(&saved.reach)?;
            state.store = store;
            state.saved = Some(saved);
            state.bytes_since_snapshot = 0;
        }
        self.shared.publish(view, reached);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Types, SnapshotHandle>>> {
        self.current()
    }
}

/// Snapshots are written before the library is told of them: a full disk then is a postponed snapshot and not, as an error
/// from here would be, the end of this server.
impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = SnapshotHandle;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Types, SnapshotHandle>> {
        if let Some(current) = self.current()? {
            return Ok(current);
        }
        let Some((reach, frozen)) = self.shared.snapshot_now() else {
            return Err(io::Error::other("there is nothing to take a snapshot of"));
        };
        let saved = self.snapshots.write(&reach, &frozen).map_err(io::Error::other)?;
        self.shared.took(saved, 0);
        self.current()?.ok_or_else(|| io::Error::other("the snapshot just written is gone"))
    }
}
