//! Proposals become entries: whatever queued while the append before was in flight goes into one.

use std::sync::Arc;
use std::time::Duration;

use coracle_store::{Applied, Op, Outcome, Rejection, Transaction, codec};
use openraft::errors::{ClientWriteError, Fatal, RaftError};
use openraft::impls::ProgressResponder;
use openraft::vote::leader_id_adv::LeaderId;
use tokio::sync::{mpsc, oneshot, watch};

use crate::adapter::{Batch, Engine, Types};
use crate::groups::Groups;
use crate::wal::WriterStats;

/// The most one entry carries, in bytes and in transactions.
pub(crate) const ENTRY_BYTES: usize = 1 << 20;
pub(crate) const ENTRY_TRANSACTIONS: usize = 1024;

/// A write that no majority has taken in this time may still happen; whoever waits for it is told so.
const WRITE_WITHIN: Duration = Duration::from_secs(10);

/// Once another server leads, the engine says within this what became of a write, or is stuck with its disk.
const TOLD_WITHIN: Duration = Duration::from_millis(500);

/// Why a proposal came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The store refused operation `index`; nothing of the transaction happened.
    #[error("{rejection}")]
    Rejected {
        /// Which operation.
        index: usize,
        /// Why.
        rejection: Rejection,
    },
    /// The transaction cannot be written down.
    #[error("the change cannot be stored")]
    Unwritable(#[source] codec::CodecError),
    /// Not every server knows the command yet.
    #[error(
        "the change needs cluster level {needs}, the cluster is at level {level}\nhint: give every server the new release: `coracle status --servers` shows which one has not"
    )]
    Early {
        /// From which level on it may be proposed.
        needs: coracle_base::Level,
        /// The cluster's.
        level: coracle_base::Level,
    },
    /// Another server leads, or none does at the moment.
    #[error("this server does not lead the cluster")]
    NotLeader {
        /// Who does, when that is known.
        leader: Option<u64>,
    },
    /// The leader changed meanwhile: it may have happened or not.
    #[error(
        "the leader was lost while the change was under way; it may have happened or not\nhint: look, then try again"
    )]
    Uncertain,
    /// A write to the log's disk failed; this server acknowledges nothing any more.
    #[error(
        "this server's log has failed: {0}\nhint: look at the disk of the data directory, then start the server again"
    )]
    Poisoned(String),
    /// The log's disk is full.
    #[error(
        "the disk of the cluster's log is full: only deletions and status are accepted\nhint: free space below the data directory, or delete objects"
    )]
    DiskFull,
    /// Too much is queued already.
    #[error("the server is busy: its queue of proposals is full")]
    Busy,
    /// The server is going down.
    #[error("the server is stopping")]
    Stopped,
}

/// The answer to one transaction.
pub type Proposed = Result<Vec<Outcome>, ProposeError>;

#[derive(Debug)]
pub(crate) struct Proposal {
    pub transaction: Transaction,
    pub part: codec::Part,
    /// Only in this term of this server's leadership.
    pub term: Option<u64>,
    pub answer: oneshot::Sender<Proposed>,
}

/// Who leads.
#[derive(Debug)]
pub(crate) struct Lead {
    pub own: u64,
    pub leader: watch::Receiver<Option<u64>>,
}

impl Lead {
    fn other(&self) -> Option<u64> {
        self.leader.borrow().filter(|leader| *leader != self.own)
    }

    /// Ends some time after another server has come to lead.
    async fn lost(&mut self) {
        let own = self.own;
        let seen = self.leader.wait_for(|leader| leader.is_some_and(|leader| leader != own)).await.is_ok();
        if !seen {
            // The server stops, and its engine says so.
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(TOLD_WITHIN).await;
    }
}

/// Takes proposals until every sender is gone; what is queued then is still proposed.
pub(crate) async fn run(engine: Engine, stats: Arc<WriterStats>, mut lead: Lead, queue: mpsc::Receiver<Proposal>) {
    let mut queue = Groups::of(queue);
    while let Some(first) = queue.first().await {
        let (mut bytes, mut term) = (first.part.size(), first.term);
        let mut taken = vec![first];
        while let Some(next) = queue.next_if(|next| {
            let other_term = next.term.is_some_and(|next| term.is_some_and(|term| term != next));
            !other_term && bytes + next.part.size() <= ENTRY_BYTES && taken.len() < ENTRY_TRANSACTIONS
        }) {
            bytes += next.part.size();
            // Those of any term go with the others: when the term is over they are told to find the leader, as they would be then.
            term = term.or(next.term);
            taken.push(next);
        }
        propose(&engine, &stats, &mut lead, term, taken).await;
    }
}

async fn propose(engine: &Engine, stats: &WriterStats, lead: &mut Lead, term: Option<u64>, taken: Vec<Proposal>) {
    if let Some(leader) = lead.other() {
        let elsewhere = ProposeError::NotLeader { leader: Some(leader) };
        return taken.into_iter().for_each(|proposal| drop(proposal.answer.send(Err(elsewhere.clone()))));
    }
    let mut transactions = Vec::with_capacity(taken.len());
    let mut parts = Vec::with_capacity(taken.len());
    let mut answers = Vec::with_capacity(taken.len());
    for proposal in taken {
        transactions.push(proposal.transaction);
        parts.push(proposal.part);
        answers.push(proposal.answer);
    }
    let results: Result<Vec<_>, ProposeError> = match codec::join(&parts) {
        Ok(bytes) => {
            let write = write(engine, lead.own, term, Batch::of(transactions, bytes));
            tokio::select! {
                // Not cancel safe: it may have happened, and that is said.
                written = write => written.map_err(|error| word(&error, stats)),
                () = tokio::time::sleep(WRITE_WITHIN) => Err(ProposeError::Uncertain),
                () = lead.lost() => Err(ProposeError::Uncertain),
            }
        }
        Err(error) => Err(ProposeError::Unwritable(error)),
    };
    match results {
        Ok(results) => {
            for (answer, result) in answers.into_iter().zip(results) {
                let result = result.map_err(|(index, rejection)| ProposeError::Rejected { index, rejection });
                // Whoever went away meanwhile reads the outcome from the state.
                drop(answer.send(result));
            }
        }
        Err(error) => answers.into_iter().for_each(|answer| drop(answer.send(Err(error.clone())))),
    }
}

async fn write(
    engine: &Engine,
    own: u64,
    term: Option<u64>,
    batch: Batch,
) -> Result<Vec<Applied>, RaftError<Types, ClientWriteError<Types>>> {
    let (responder, done) = ProgressResponder::complete_only();
    let mut write = engine.write(batch).responder(responder);
    if let Some(term) = term {
        write = write.with_leader(LeaderId { term, node_id: own });
    }
    write.await.map_err(RaftError::Fatal)?;
    let done = done.await.map_err(|_| RaftError::Fatal(Fatal::Stopped))?;
    done.map(|response| response.data).map_err(RaftError::APIError)
}

fn word(error: &RaftError<Types, ClientWriteError<Types>>, stats: &WriterStats) -> ProposeError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => ProposeError::NotLeader { leader: to.leader_id },
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => ProposeError::Uncertain,
        RaftError::APIError(_) => ProposeError::NotLeader { leader: None },
        RaftError::Fatal(fatal) => match stats.failure() {
            Some(reason) => ProposeError::Poisoned(reason.to_owned()),
            None if matches!(fatal, Fatal::Stopped) => ProposeError::Stopped,
            None => ProposeError::Poisoned(coracle_base::one_line(fatal)),
        },
    }
}

const SLICES: &str = "endpointslices.discovery.k8s.io";

/// Whether a transaction gives space back, or only reports: what a full disk still takes.
pub(crate) fn is_frugal(transaction: &Transaction) -> bool {
    transaction.ops.iter().all(|op| match op {
        Op::Delete { .. } | Op::Status { .. } => true,
        // The first half of a graceful deletion; what tells Services of pods that are gone, which grows with the pods only; and that a
        // node is dead.
        Op::Update { key, value, .. } => {
            !value["metadata"]["deletionTimestamp"].is_null() || *key.resource == *SLICES || &*key.resource == "nodes"
        }
        Op::Create { .. } | Op::Bind { .. } | Op::RaiseEpoch | Op::RaiseLevel { .. } => false,
    })
}
