//! What other servers ask of this one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use coracle_base::Release;
use coracle_store::codec;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest};
use openraft::type_config::alias::SnapshotOf;
use openraft::{ChangeMembers, SnapshotMeta};

use crate::adapter::{SnapshotHandle, Types, ballot, from_entry, log_id, membership_of, position, vote_of};
use crate::batch::{ProposeError, Proposed};
use crate::handle::Raft;
use crate::members::Member;
use crate::peers::Message;
use crate::wire::{Answer, Header, Request};

/// A change of members that finds no majority in this time is given up.
const CHANGE_WITHIN: Duration = Duration::from_secs(5);

/// Who has acknowledged something this long ago lives.
const LIVE_WITHIN: Duration = Duration::from_secs(2);
const AGAIN: Duration = Duration::from_millis(50);

/// Whether the state says what became of it.
fn is_decided(result: &Proposed) -> bool {
    matches!(result, Ok(_) | Err(ProposeError::Rejected { .. }))
}

/// How much of a snapshot has come.
#[derive(Debug, Default)]
pub(crate) struct Receiving {
    index: u64,
    next: u64,
}

impl Raft {
    /// Answers another server's question. Who may ask is decided by whoever carries it: only servers of this cluster.
    pub async fn answer(&self, question: &Message) -> Message {
        let answer = match Request::decode(&question.words) {
            Ok((header, request)) => self.consider(&header, &question.release, request).await,
            Err(error) => Answer::Failed(format!("the question cannot be read: {error}")),
        };
        let words = answer.encode().unwrap_or_else(|error| {
            tracing::error!(%error, "an answer to another server cannot be written");
            Vec::new()
        });
        Message { words: words.into(), release: self.inner().caller.release().clone() }
    }

    async fn consider(&self, header: &Header, release: &Release, request: Request) -> Answer {
        let identity = self.identity();
        if header.cluster != identity.cluster {
            return Answer::WrongCluster;
        }
        // Also of one that looks for another server here: where it is itself, it knows.
        self.inner().caller.learn(header.from, &header.sender);
        if let Some(reason) = self.refuses(release, &request) {
            return Answer::Failed(reason);
        }
        if self.members().servers.contains_key(&header.from) {
            self.inner().caller.hear(header.from, release);
        }
        if header.to != 0 && header.to != identity.node {
            return Answer::Wrong { server: identity.node };
        }
        if let Some(reason) = self.failure() {
            return Answer::Failed(format!("its log has failed: {reason}"));
        }
        let engine = &self.inner().engine;
        let failed = |error: &dyn std::fmt::Display| Answer::Failed(error.to_string());
        match request {
            Request::Append { vote, prev, commit, entries } => {
                if vote.committed {
                    self.hear(vote.term, vote.node);
                }
                // The engine would queue one more answer with every try of the leader's.
                if !entries.is_empty() && self.inner().writer.stats().awaits_room() {
                    return Answer::Failed("its log's disk is full".to_owned());
                }
                let entries = match entries.into_iter().map(from_entry).collect::<std::io::Result<Vec<_>>>() {
                    Ok(entries) => entries,
                    Err(error) => return failed(&error),
                };
                let request = AppendEntriesRequest::<Types> {
                    vote: vote_of(vote),
                    prev_log_id: prev.map(log_id),
                    entries,
                    leader_commit: commit.map(log_id),
                };
                match engine.append_entries(request).await {
                    Ok(AppendEntriesResponse::Success) => Answer::Appended,
                    Ok(AppendEntriesResponse::PartialSuccess(at)) => Answer::AppendedUpTo(at.as_ref().map(position)),
                    Ok(AppendEntriesResponse::Conflict) => Answer::Conflict,
                    Ok(AppendEntriesResponse::HigherVote(vote)) => Answer::Higher(ballot(&vote)),
                    Err(error) => failed(&error),
                }
            }
            Request::Vote { pre, vote, last, transfer } => {
                let mut request = VoteRequest::<Types>::new(vote_of(vote), last.map(log_id));
                request.leadership_transfer = transfer;
                let answer = if pre { engine.pre_vote(request).await } else { engine.vote(request).await };
                match answer {
                    Ok(answer) => Answer::Vote {
                        vote: ballot(&answer.vote),
                        granted: answer.vote_granted,
                        last: answer.last_log_id.as_ref().map(position),
                    },
                    Err(error) => failed(&error),
                }
            }
            Request::Transfer { from, to, last } => {
                let request = TransferLeaderRequest::<Types>::new(vote_of(from), to, last.map(log_id));
                match engine.handle_transfer_leader(request).await {
                    Ok(result) => Answer::Transferred(result.map_err(|error| error.to_string())),
                    Err(error) => failed(&error),
                }
            }
            Request::Snapshot { vote, index, total, offset, bytes } => {
                self.take_part(vote, index, total, offset, bytes).await
            }
            Request::Propose { transactions } => match codec::decode_parts(&transactions) {
                _ if !self.is_leader() => self.elsewhere(),
                Ok(parts) => {
                    let parts = parts.into_iter().map(|(transaction, part)| (transaction, Some(part)));
                    let results = self.propose_in(None, parts).await;
                    // What was not decided is in no entry: with all of it turned away there is nothing to wait for.
                    let decided = results.iter().any(is_decided);
                    Answer::Proposed { results, index: if decided { self.inner().shared.applied() } else { 0 } }
                }
                Err(error) => failed(&error),
            },
            Request::ReadIndex if !self.is_leader() => self.elsewhere(),
            Request::ReadIndex => match self.read_index_here().await {
                Ok(index) => Answer::Read(index),
                Err(_) => Answer::NotLeader { leader: None },
            },
            Request::Hello => Answer::Hello {
                server: identity.node,
                leader: *self.leader_changes().borrow(),
                members: self.members_now(),
            },
            Request::Join | Request::Remove { .. } if !self.is_leader() => self.elsewhere(),
            Request::Join => match self.admit(header.from, &header.sender, release).await {
                Ok(()) => Answer::Done,
                Err(reason) => Answer::Failed(reason),
            },
            Request::Remove { server } => match self.expel(server).await {
                Ok(()) => Answer::Done,
                Err(reason) => Answer::Failed(reason),
            },
        }
    }

    fn elsewhere(&self) -> Answer {
        let leader = *self.leader_changes().borrow();
        Answer::NotLeader { leader: leader.filter(|leader| *leader != self.identity().node) }
    }

    async fn take_part(&self, vote: crate::wal::Ballot, index: u64, total: u64, offset: u64, bytes: Bytes) -> Answer {
        let inner = self.inner();
        // One transfer at a time; a second one that begins takes the place of the first.
        let mut receiving = inner.receiving.lock().await;
        if offset > 0 && (receiving.index, receiving.next) != (index, offset) {
            return Answer::Failed("another part of the snapshot was expected".to_owned());
        }
        let end = offset + bytes.len() as u64;
        let limits = inner.limits;
        let taken = inner.snapshots.aside(move |snapshots| {
            snapshots.receive(offset, &bytes)?;
            if end < total { Ok(None) } else { snapshots.received(index, limits).map(Some) }
        });
        let saved = match taken.await {
            Ok(Ok(saved)) => saved,
            Ok(Err(error)) => return Answer::Failed(coracle_base::one_line(&error)),
            Err(error) => return Answer::Failed(error.to_string()),
        };
        *receiving = Receiving { index, next: end };
        let Some(saved) = saved else { return Answer::Done };
        let meta = membership_of(&saved.reach.members).map(|members| SnapshotMeta {
            last_log_id: Some(log_id(saved.reach.last)),
            last_membership: openraft::StoredMembership::new(saved.reach.members_at.map(log_id), members),
        });
        let meta = match meta {
            Ok(meta) => meta,
            Err(error) => return Answer::Failed(error.to_string()),
        };
        let snapshot = SnapshotOf::<Types, SnapshotHandle> { meta, snapshot: index };
        match inner.engine.install_full_snapshot(vote_of(vote), snapshot).await {
            Ok(answer) => {
                tracing::info!(index, bytes = saved.bytes, "snapshot of another server installed");
                Answer::Snapshot(ballot(&answer.vote))
            }
            Err(error) => Answer::Failed(error.to_string()),
        }
    }

    /// Takes a server in, as a learner first. One of the same name has lost its disk: it is another server now, and the old one goes.
    async fn admit(&self, server: u64, member: &Member, release: &Release) -> Result<(), String> {
        // The level does not rise in between.
        let _levelling = self.inner().levelling.lock().await;
        self.check_level(release).await?;
        let members = self.members();
        let former: Vec<u64> = members
            .servers
            .iter()
            .filter(|(id, known)| **id != server && !known.name.is_empty() && known.name == member.name)
            .map(|(id, _)| *id)
            .collect();
        if former.contains(&self.identity().node) {
            return Err(format!("the server {} leads this cluster: two machines have the same name", member.name));
        }
        for former in former {
            tracing::warn!(name = member.name, server = format!("{former:016x}"), "a server comes back as a new one");
            self.expel(former).await?;
        }
        if members.servers.get(&server) == Some(member) {
            return Ok(());
        }
        tracing::info!(name = member.name, address = member.address, "a server joins");
        let nodes = BTreeMap::from([(server, member.clone())]);
        let change = if members.servers.contains_key(&server) {
            ChangeMembers::SetNodes(nodes)
        } else {
            ChangeMembers::AddNodes(nodes)
        };
        self.change(change).await
    }

    /// Takes a server out, voter or not.
    pub(crate) async fn expel(&self, server: u64) -> Result<(), String> {
        let members = self.members();
        if !members.servers.contains_key(&server) {
            return Ok(());
        }
        let voters = members.all_voters();
        if voters.contains(&server) {
            if voters.len() == 1 {
                return Err("the only server that votes cannot leave".to_owned());
            }
            // One that has just become a voter has not been heard of as such yet.
            let until = tokio::time::Instant::now() + LIVE_WITHIN;
            while let Err(reason) = self.check_majorities(&voters, server) {
                if tokio::time::Instant::now() >= until {
                    return Err(reason);
                }
                tokio::time::sleep(AGAIN).await;
            }
            self.change(ChangeMembers::RemoveVoters([server].into())).await?;
        }
        self.change(ChangeMembers::RemoveNodes([server].into())).await
    }

    /// A change of voters needs a majority of the old ones and of the new ones. Begun without, it could never end, and nothing could be
    /// written any more.
    fn check_majorities(&self, voters: &BTreeSet<u64>, leaves: u64) -> Result<(), String> {
        let health = self.health();
        let live = |server: &u64| {
            health.get(server).is_some_and(|health| health.silent.is_some_and(|silent| silent < LIVE_WITHIN))
        };
        let living: Vec<u64> = voters.iter().filter(|voter| live(voter)).copied().collect();
        let staying = living.iter().filter(|voter| **voter != leaves).count();
        if living.len() > voters.len() / 2 && staying > (voters.len() - 1) / 2 {
            return Ok(());
        }
        Err(format!(
            "{} of {} servers that vote are alive: without this one the others could write nothing any more\nhint: take the dead ones out first (`coracle leave --server NAME`), or let another server join",
            living.len(),
            voters.len()
        ))
    }

    /// One change of members, to its end; it waits for one that is under way.
    pub(crate) async fn change(&self, change: ChangeMembers<u64, Member>) -> Result<(), String> {
        let until = tokio::time::Instant::now() + CHANGE_WITHIN;
        loop {
            let changing = self.inner().engine.change_membership(change.clone(), true);
            let error = match tokio::time::timeout_at(until, changing).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(RaftError::Fatal(error))) => return Err(error.to_string()),
                Err(_) => return Err("no majority of the servers agreed in time".to_owned()),
                Ok(Err(RaftError::APIError(error))) => error,
            };
            let under_way = matches!(
                &error,
                ClientWriteError::ChangeMembershipError(openraft::errors::ChangeMembershipError::InProgress(_))
            );
            if !under_way || tokio::time::Instant::now() >= until {
                return Err(error.to_string());
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}
