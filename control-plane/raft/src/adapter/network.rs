//! The library's way to other servers, in our own words on the wire.

use std::future::Future;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::type_config::alias::{SnapshotOf, VoteOf};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};

use super::machine::SnapshotHandle;
use super::storage::to_entry;
use super::{Types, ballot, position, vote_of};
use crate::members::Member;
use crate::peers::{Caller, PeerError};
use crate::snapshots::Snapshots;
use crate::wire::{Answer, Request};

/// A follower answers an append once it is durable: a slow disk is not a dead server.
const APPEND_WITHIN: Duration = Duration::from_secs(5);
const VOTE_WITHIN: Duration = Duration::from_millis(400);
const SNAPSHOT_PART: u64 = 1 << 20;
const PART_WITHIN: Duration = Duration::from_secs(30);

/// Makes clients.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub caller: Caller,
    pub snapshots: Snapshots,
}

/// The client of one server.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    caller: Caller,
    snapshots: Snapshots,
    target: u64,
    member: Member,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &Member) -> Client {
        Client { caller: self.caller.clone(), snapshots: self.snapshots.clone(), target, member: node.clone() }
    }
}

impl Client {
    async fn ask(&self, request: &Request, within: Duration) -> Result<Answer, RPCError<Types>> {
        self.caller.ask(self.target, &self.member, request, within).await.map_err(|error| match error {
            PeerError::Unreachable { .. } => Unreachable::new(&error).into(),
            PeerError::Lost { .. } => NetworkError::new(&error).into(),
        })
    }
}

fn odd(answer: &Answer) -> RPCError<Types> {
    let words = match answer {
        Answer::Failed(reason) => reason.clone(),
        other => format!("an answer to another question: {other:?}"),
    };
    Unreachable::new(&io::Error::other(words)).into()
}

impl RaftNetworkV2<Types> for Client {
    type SnapshotData = SnapshotHandle;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let entries = request.entries.iter().map(to_entry).collect::<io::Result<Vec<_>>>();
        let entries = entries.map_err(|error| NetworkError::new(&error))?;
        // A beat says only that the leader lives.
        let within = if entries.is_empty() { option.hard_ttl().max(VOTE_WITHIN) } else { APPEND_WITHIN };
        let question = Request::Append {
            vote: ballot(&request.vote),
            prev: request.prev_log_id.as_ref().map(position),
            commit: request.leader_commit.as_ref().map(position),
            entries,
        };
        Ok(match self.ask(&question, within).await? {
            Answer::Appended => AppendEntriesResponse::Success,
            Answer::AppendedUpTo(at) => AppendEntriesResponse::PartialSuccess(at.map(super::log_id)),
            Answer::Conflict => AppendEntriesResponse::Conflict,
            Answer::Higher(vote) => AppendEntriesResponse::HigherVote(vote_of(vote)),
            other => return Err(odd(&other)),
        })
    }

    async fn vote(&mut self, rpc: VoteRequest<Types>, _: RPCOption) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ballot(false, rpc).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        _: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ballot(true, rpc).await
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, SnapshotHandle>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let sending = self.send_snapshot(&vote, snapshot.snapshot);
        tokio::select! {
            // Not cancel safe: a transfer that is cut short begins anew.
            sent = sending => sent,
            closed = cancel => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        _: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let question = Request::Transfer {
            from: ballot(request.from_leader()),
            to: *request.to_node_id(),
            last: request.last_log_id().map(position),
        };
        match self.ask(&question, VOTE_WITHIN).await? {
            Answer::Transferred(Ok(())) => Ok(Ok(())),
            Answer::Transferred(Err(reason)) => Err(NetworkError::new(&io::Error::other(reason)).into()),
            other => Err(odd(&other)),
        }
    }
}

impl Client {
    async fn ballot(&self, pre: bool, rpc: VoteRequest<Types>) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let question = Request::Vote {
            pre,
            vote: ballot(&rpc.vote),
            last: rpc.last_log_id.as_ref().map(position),
            transfer: rpc.leadership_transfer,
        };
        match self.ask(&question, VOTE_WITHIN).await? {
            Answer::Vote { vote, granted, last } => {
                Ok(VoteResponse::new(vote_of(vote), last.map(super::log_id), granted))
            }
            other => Err(odd(&other)),
        }
    }

    async fn send_snapshot(
        &self,
        vote: &VoteOf<Types>,
        index: u64,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let unread = |error: &dyn std::fmt::Display| -> StreamingError<Types> {
            Unreachable::new(&io::Error::other(format!("snapshot {index} cannot be sent: {error}"))).into()
        };
        let total = self.snapshots.size(index).map_err(|error| unread(&error))?;
        let mut offset = 0;
        loop {
            let length = SNAPSHOT_PART.min(total - offset);
            let part = self.snapshots.aside(move |snapshots| snapshots.part(index, offset, length)).await;
            let bytes: Bytes = part.map_err(|error| unread(&error))?.map_err(|error| unread(&error))?.into();
            let question = Request::Snapshot { vote: ballot(vote), index, total, offset, bytes };
            let answer = self.caller.ask(self.target, &self.member, &question, PART_WITHIN).await;
            let answer = answer.map_err(|error| match error {
                PeerError::Unreachable { .. } => StreamingError::Unreachable(Unreachable::new(&error)),
                PeerError::Lost { .. } => StreamingError::Network(NetworkError::new(&error)),
            })?;
            offset += length;
            match answer {
                Answer::Done if offset < total => {}
                Answer::Snapshot(vote) => return Ok(SnapshotResponse::new(vote_of(vote))),
                other => return Err(unread(&format!("{other:?}"))),
            }
        }
    }
}
