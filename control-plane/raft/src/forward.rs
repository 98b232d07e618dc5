//! Writes and reads on any server: what only the leader can do is asked of it.

use std::time::Duration;

use coracle_store::{Transaction, View, codec};
use openraft::ReadPolicy;
use openraft::errors::RaftError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::batch::{ProposeError, Proposed};
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
/// What one message carries.
const FORWARD_BYTES: usize = 4 << 20;
/// Readers that wait at most.
const READERS: usize = 4096;

/// Who waits for a round of reads.
pub(crate) type Reader = oneshot::Sender<Result<(), ProposeError>>;

pub(crate) fn readers() -> (mpsc::Sender<Reader>, mpsc::Receiver<Reader>) {
    mpsc::channel(READERS)
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
            for part in self.parts(&transactions, &left) {
                let batch: Vec<Transaction> = part.iter().map(|index| transactions[*index].clone()).collect();
                let results = self.propose_somewhere(batch).await;
                for (index, result) in part.into_iter().zip(results) {
                    if matches!(result, Err(ProposeError::NotLeader { .. })) {
                        again.push(index);
                    }
                    answers[index] = Some(result);
                }
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

    /// Parts that fit a message, as numbers of transactions.
    fn parts(&self, transactions: &[Transaction], left: &[usize]) -> Vec<Vec<usize>> {
        if self.is_leader() {
            return vec![left.to_vec()];
        }
        let mut parts: Vec<Vec<usize>> = Vec::new();
        let mut room = 0;
        for index in left {
            let size = codec::encode_part(&transactions[*index]).map_or(0, |part| part.size());
            if parts.is_empty() || size > room {
                parts.push(Vec::new());
                room = FORWARD_BYTES;
            }
            room = room.saturating_sub(size);
            if let Some(part) = parts.last_mut() {
                part.push(*index);
            }
        }
        parts
    }

    async fn propose_somewhere(&self, batch: Vec<Transaction>) -> Vec<Proposed> {
        let count = batch.len();
        let all = |error: ProposeError| (0..count).map(|_| Err(error.clone())).collect::<Vec<_>>();
        if self.is_leader() {
            return self.propose_here(batch).await;
        }
        let Some((leader, member)) = self.leader_member() else { return all(ProposeError::NotLeader { leader: None }) };
        let transactions = match codec::encode(&batch) {
            Ok(bytes) => bytes.into(),
            // One of them cannot be written: each alone says which.
            Err(_) if count > 1 => {
                let mut results = Vec::with_capacity(count);
                for transaction in batch {
                    results.extend(Box::pin(self.propose_somewhere(vec![transaction])).await);
                }
                return results;
            }
            Err(error) => return all(ProposeError::Unwritable(error)),
        };
        let mut changes = self.leader_changes();
        let question = Request::Propose { transactions };
        let asked = self.inner().caller.ask(leader, &member, &question, FORWARD_WITHIN);
        let answer = tokio::select! {
            // Not cancel safe: it may have happened, and that is said.
            answer = asked => answer,
            _ = changes.wait_for(|now| *now != Some(leader)) => return all(ProposeError::Uncertain),
        };
        match answer {
            Ok(Answer::Proposed { results, index }) if results.len() == count => {
                self.await_applied(index).await;
                results
            }
            Ok(Answer::NotLeader { leader }) => all(ProposeError::NotLeader { leader }),
            Ok(Answer::Failed(reason)) => all(ProposeError::Poisoned(reason)),
            Ok(_) | Err(PeerError::Lost { .. }) => all(ProposeError::Uncertain),
            Err(PeerError::Unreachable { .. }) => all(ProposeError::NotLeader { leader: Some(leader) }),
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
