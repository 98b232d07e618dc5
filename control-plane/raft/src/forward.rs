//! Writes and reads on any server: what only the leader can do is asked of it.

use std::sync::Arc;
use std::time::Duration;

use coracle_store::{Transaction, View, codec};
use openraft::ReadPolicy;
use openraft::errors::RaftError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::batch::{ENTRY_BYTES, ENTRY_TRANSACTIONS, ProposeError, Proposed};
use crate::groups::Groups;
use crate::handle::Raft;
use crate::members::Member;
use crate::peers::PeerError;
use crate::wire::{Answer, Request};

/// How long a write waits for a leader: an election and some.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between looks at a leader that is not there.
const AGAIN: Duration = Duration::from_millis(30);
/// Between looks at a disk that may hang.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// A forwarded write is answered within this or counts as lost.
const FORWARD_WITHIN: Duration = Duration::from_secs(12);
const READ_WITHIN: Duration = Duration::from_secs(2);
/// Messages with writes under way at once, each of what becomes an entry: one is answered while the next is on its way, and what comes meanwhile goes together.
const FORWARDS: usize = 2;
/// Writes and readers that wait at most.
const WAITING: usize = 4096;

/// Writes of one caller that wait for the way to the leader. They go together: two messages may overtake one another.
#[derive(Debug)]
pub(crate) struct Forward {
    parts: Vec<codec::Part>,
    bytes: usize,
    since: Instant,
    answer: oneshot::Sender<Result<Vec<Proposed>, ProposeError>>,
}

pub(crate) fn forwards() -> (mpsc::Sender<Forward>, mpsc::Receiver<Forward>) {
    mpsc::channel(WAITING)
}

/// Whatever queued while messages before were under way goes to the leader in one.
pub(crate) async fn forward_rounds(raft: Raft, queue: mpsc::Receiver<Forward>) {
    let ways = Arc::new(Semaphore::new(FORWARDS));
    let mut queue = Groups::of(queue);
    while let Some(first) = queue.first().await {
        // Cancel safe: a way that was not had is not taken.
        let Ok(Ok(way)) = tokio::time::timeout_at(first.since + PATIENCE, ways.clone().acquire_owned()).await else {
            // Nothing was said to anybody: it did not happen.
            drop(first.answer.send(Err(ProposeError::NotLeader { leader: None })));
            continue;
        };
        let (mut bytes, mut count) = (first.bytes, first.parts.len());
        let mut taken = vec![first];
        while let Some(next) =
            queue.next_if(|next| bytes + next.bytes <= ENTRY_BYTES && count + next.parts.len() <= ENTRY_TRANSACTIONS)
        {
            (bytes, count) = (bytes + next.bytes, count + next.parts.len());
            taken.push(next);
        }
        // Whoever went away before it was sent wants nothing any more.
        taken.retain(|forward| !forward.answer.is_closed());
        if !taken.is_empty() {
            tokio::spawn(send(raft.clone(), taken, way));
        }
    }
}

async fn send(raft: Raft, taken: Vec<Forward>, way: OwnedSemaphorePermit) {
    let (mut parts, mut answers) = (Vec::new(), Vec::with_capacity(taken.len()));
    for forward in taken {
        answers.push((forward.parts.len(), forward.answer));
        parts.extend(forward.parts);
    }
    let asked = raft.ask_leader(&parts).await;
    drop(way);
    let mut results = match asked {
        Ok((results, index)) => {
            raft.await_applied(index).await;
            Ok(results.into_iter())
        }
        Err(error) => Err(error),
    };
    for (count, answer) in answers {
        // Whoever went away meanwhile reads the outcome from the state.
        drop(answer.send(match &mut results {
            Ok(results) => Ok(results.take(count).collect()),
            Err(error) => Err(error.clone()),
        }));
    }
}

/// Who waits for a round of reads.
pub(crate) type Reader = oneshot::Sender<Result<(), ProposeError>>;

pub(crate) fn readers() -> (mpsc::Sender<Reader>, mpsc::Receiver<Reader>) {
    mpsc::channel(WAITING)
}

/// Everybody who waits shares one round, which begins after the last of them came.
pub(crate) async fn read_rounds(raft: Raft, mut queue: mpsc::Receiver<Reader>) {
    while let Some(first) = queue.recv().await {
        let mut waiting = vec![first];
        while let Ok(next) = queue.try_recv() {
            waiting.push(next);
        }
        let outcome = raft.read_round().await;
        for reader in waiting {
            // Whoever went away needs no answer.
            drop(reader.send(outcome.clone()));
        }
    }
}

impl Raft {
    /// Proposes several; each happens or not for itself, in this order. On a server that does not lead they go to the leader,
    /// and come back when this server has applied them too.
    pub async fn propose_many(&self, transactions: Vec<Transaction>) -> Vec<Proposed> {
        if self.is_alone() {
            return self.propose_here(transactions).await;
        }
        if let Some(reason) = self.failure() {
            return transactions.iter().map(|_| Err(ProposeError::Poisoned(reason.clone()))).collect();
        }
        let until = Instant::now() + PATIENCE;
        let mut answers: Vec<Option<Proposed>> = transactions.iter().map(|_| None).collect();
        let mut left: Vec<usize> = (0..transactions.len()).collect();
        loop {
            let mut again = Vec::new();
            let batch: Vec<Transaction> = left.iter().map(|index| transactions[*index].clone()).collect();
            let results = match self.is_leader() {
                true => self.propose_here(batch).await,
                false => self.propose_there(batch).await,
            };
            for (index, result) in left.into_iter().zip(results) {
                if matches!(result, Err(ProposeError::NotLeader { .. })) {
                    again.push(index);
                }
                answers[index] = Some(result);
            }
            if again.is_empty() || Instant::now() >= until {
                break;
            }
            left = again;
            if !self.await_leader(until).await {
                break;
            }
        }
        answers.into_iter().map(|answer| answer.unwrap_or(Err(ProposeError::Stopped))).collect()
    }

    /// By way of the leader, with whatever else is on the way there; in messages one after the other.
    async fn propose_there(&self, transactions: Vec<Transaction>) -> Vec<Proposed> {
        let mut answers = Vec::with_capacity(transactions.len());
        let mut transactions = transactions.iter().peekable();
        while transactions.peek().is_some() {
            let (mut parts, mut bytes) = (Vec::new(), 0);
            let mut unwritable = None;
            while let (None, Some(next)) = (&unwritable, transactions.peek()) {
                match codec::encode_part(next) {
                    Ok(part) if !parts.is_empty() && bytes + part.size() > ENTRY_BYTES => break,
                    Ok(part) => {
                        bytes += part.size();
                        parts.push(part);
                    }
                    Err(error) => unwritable = Some(error),
                }
                transactions.next();
            }
            let count = parts.len();
            match self.forward(parts, bytes).await {
                Ok(results) => answers.extend(results),
                Err(error) => answers.extend(std::iter::repeat_n(Err(error), count)),
            }
            answers.extend(unwritable.map(|error| Err(ProposeError::Unwritable(error))));
        }
        answers
    }

    async fn forward(&self, parts: Vec<codec::Part>, bytes: usize) -> Result<Vec<Proposed>, ProposeError> {
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let (answer, waiting) = oneshot::channel();
        let forward = Forward { parts, bytes, since: Instant::now(), answer };
        self.inner().forwards.try_send(forward).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Busy,
            mpsc::error::TrySendError::Closed(_) => ProposeError::Stopped,
        })?;
        waiting.await.unwrap_or(Err(ProposeError::Stopped))
    }

    /// What became of each, and the entry that holds them.
    async fn ask_leader(&self, parts: &[codec::Part]) -> Result<(Vec<Proposed>, u64), ProposeError> {
        let Some((leader, member)) = self.leader_member() else {
            return Err(ProposeError::NotLeader { leader: None });
        };
        let transactions = codec::join(parts).map_err(ProposeError::Unwritable)?.into();
        let mut changes = self.leader_changes();
        let question = Request::Propose { transactions };
        let asked = self.inner().caller.ask(leader, &member, &question, FORWARD_WITHIN);
        let answer = tokio::select! {
            // Not cancel safe: it may have happened, and that is said.
            answer = asked => answer,
            _ = changes.wait_for(|now| *now != Some(leader)) => return Err(ProposeError::Uncertain),
        };
        match answer {
            Ok(Answer::Proposed { results, index }) if results.len() == parts.len() => Ok((results, index)),
            Ok(Answer::NotLeader { leader }) => Err(ProposeError::NotLeader { leader }),
            Ok(Answer::Failed(reason)) => Err(ProposeError::Poisoned(reason)),
            Ok(_) | Err(PeerError::Lost { .. }) => Err(ProposeError::Uncertain),
            Err(PeerError::Unreachable { .. }) => Err(ProposeError::NotLeader { leader: Some(leader) }),
        }
    }

    /// A state that holds everything acknowledged anywhere before this call.
    ///
    /// # Errors
    /// No majority is reachable from here, or this server has failed.
    pub async fn read_barrier(&self) -> Result<View, ProposeError> {
        if let Some(reason) = self.failure() {
            return Err(ProposeError::Poisoned(reason));
        }
        if self.is_alone() {
            self.read_round().await?;
            return Ok(self.view());
        }
        let until = Instant::now() + PATIENCE;
        loop {
            let (reader, answer) = oneshot::channel();
            self.inner().readers.send(reader).await.map_err(|_| ProposeError::Stopped)?;
            match answer.await.unwrap_or(Err(ProposeError::Stopped)) {
                Ok(()) => return Ok(self.view()),
                Err(ProposeError::NotLeader { .. }) if Instant::now() < until => {
                    if !self.await_leader(until).await {
                        return Err(ProposeError::Stopped);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn read_round(&self) -> Result<(), ProposeError> {
        let nobody = ProposeError::NotLeader { leader: None };
        if self.is_leader() {
            let index = self.read_index_here().await?;
            // A state that is not there yet is not read.
            return if self.await_applied(index).await { Ok(()) } else { Err(nobody) };
        }
        let Some((leader, member)) = self.leader_member() else { return Err(nobody) };
        let mut changes = self.leader_changes();
        let asked = self.inner().caller.ask(leader, &member, &Request::ReadIndex, READ_WITHIN);
        let answer = tokio::select! {
            // Cancel safe: a read changes nothing.
            answer = asked => answer,
            _ = changes.wait_for(|now| *now != Some(leader)) => return Err(nobody),
        };
        match answer {
            Ok(Answer::Read(index)) if self.await_applied(index).await => Ok(()),
            _ => Err(nobody),
        }
    }

    /// The last entry that a read of now must see; a majority has confirmed that this server leads.
    pub(crate) async fn read_index_here(&self) -> Result<u64, ProposeError> {
        match self.inner().engine.get_read_log_id(ReadPolicy::ReadIndex).await {
            Ok((read, _)) => Ok(read.index()),
            Err(RaftError::Fatal(_)) => Err(ProposeError::Stopped),
            Err(RaftError::APIError(_)) => Err(ProposeError::NotLeader { leader: None }),
        }
    }

    /// Whether a majority confirms, in a round begun after this call, that this server leads, and this server has applied all that was
    /// acknowledged before.
    pub async fn confirm_leading(&self) -> bool {
        match self.read_index_here().await {
            Ok(index) if self.is_leader() => self.await_applied(index).await,
            _ => false,
        }
    }

    /// Waits until this server has applied an entry; false when it takes too long, or its disk takes nothing for it.
    async fn await_applied(&self, index: u64) -> bool {
        let mut applied = self.inner().shared.applied_changes();
        let stuck = async {
            while !self.is_stuck() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
        };
        tokio::select! {
            biased;
            reached = applied.wait_for(|applied| *applied >= index) => reached.is_ok(),
            () = tokio::time::sleep(PATIENCE) => false,
            () = stuck => false,
        }
    }

    fn leader_member(&self) -> Option<(u64, Member)> {
        let leader = (*self.leader_changes().borrow())?;
        let member = self.members().servers.get(&leader).cloned().unwrap_or_default();
        Some((leader, member))
    }

    /// Waits until somebody leads, or for a moment when somebody does already; false when this server has stopped and will never know.
    async fn await_leader(&self, until: Instant) -> bool {
        let mut changes = self.leader_changes();
        if changes.borrow_and_update().is_some() {
            tokio::time::sleep(AGAIN).await;
            return changes.has_changed().is_ok();
        }
        !matches!(tokio::time::timeout_at(until, changes.wait_for(Option::is_some)).await, Ok(Err(_)))
    }
}
