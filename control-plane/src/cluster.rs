//! This server as the API sees it: its memory, and logs through the agents' sessions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_api::{BoxFuture, Cluster, LogChunks, LogQuery, Memory, ProposeError, Proposed, ServerEntry};
use coracle_base::{Generation, Revision};
use coracle_protocol::v1::{LogRelay, LogRequest};
use coracle_raft::{Member, Members};
use coracle_store::{Event, Transaction, View};
use tokio::sync::{mpsc, watch};

use crate::join::{Gate, JoinRequest};
use crate::memory::{LogHandle, ServerStatus};
use crate::peers::ServerPeers;
use crate::sessions::{Sessions, TunnelChunks, TunnelError};

/// How long another server may take to say whether it has a node's session.
const KNOCK: Duration = Duration::from_secs(11);
/// How long a server that is to be taken out is asked for again: an election and a change of members.
const REMOVE_WITHIN: Duration = Duration::from_secs(10);
/// Between two such questions.
const REMOVE_AGAIN: Duration = Duration::from_millis(200);
/// Chunks of a log in flight between two servers.
const CHUNKS: usize = 16;

/// The memory and the sessions of this server, and the way to others.
pub(crate) struct LocalCluster {
    pub memory: Arc<dyn Memory>,
    pub sessions: Sessions,
    pub log: LogHandle,
    pub peers: ServerPeers,
    pub gate: Gate,
    /// A folder where a backup is made ready.
    pub scratch: std::path::PathBuf,
}

impl LocalCluster {
    /// A log from a node whose session some server of the cluster holds.
    async fn find_log(&self, node: &str, request: LogRequest) -> Result<TunnelChunks, String> {
        let away = match self.sessions.logs(node, request.clone()).await {
            Ok(chunks) => return Ok(chunks),
            Err(TunnelError::Away(_)) => TunnelError::Away(node.to_owned()).to_string(),
            Err(error) => return Err(error.to_string()),
        };
        for server in self.log.servers().into_iter().filter(|server| !server.here) {
            let relay = LogRelay { node: node.to_owned(), request: Some(request.clone()) };
            let found = tokio::time::timeout(KNOCK, self.peers.logs(&server.address, relay)).await;
            let Ok(Ok(Some(mut stream))) = found else { continue };
            let (sender, chunks) = mpsc::channel(CHUNKS);
            tokio::spawn(async move {
                loop {
                    let chunk = tokio::select! {
                        // Cancel safe: a chunk that has not come whole stays in the stream.
                        chunk = stream.message() => chunk,
                        () = sender.closed() => return,
                    };
                    let item = match chunk {
                        Ok(Some(chunk)) => Ok(chunk.data.into()),
                        Ok(None) => return,
                        Err(status) => Err(status.message().to_owned()),
                    };
                    let end = item.is_err();
                    if sender.send(item).await.is_err() || end {
                        return;
                    }
                }
            });
            return Ok(chunks);
        }
        Err(away)
    }

    async fn let_in(&self, body: &[u8]) -> Result<Vec<u8>, (u16, String)> {
        let asked: JoinRequest =
            serde_json::from_slice(body).map_err(|error| (400, format!("the request cannot be read: {error}")))?;
        // A token that was revoked a moment ago on another server lets nobody in.
        let view = self.memory.read_barrier().await.map_err(|error| (503, error.to_string()))?;
        let servers = self.log.servers().into_iter().map(|server| server.address).collect();
        let joined = self.gate.admit(&view, &asked, servers)?;
        serde_json::to_vec(&joined).map_err(|error| (500, error.to_string()))
    }

    async fn take_out(&self, id: u64) -> Result<(), (u16, String)> {
        let raft = self.log.raft();
        if !raft.members().servers.contains_key(&id) {
            return Err((404, format!("no server of this cluster has the number {id:016x}")));
        }
        let until = Instant::now() + REMOVE_WITHIN;
        loop {
            let members = raft.members();
            if let [voters] = members.voters.as_slice()
                && voters.len() == 1
                && voters.contains(&id)
            {
                return Err((409, only_voter(&members)));
            }
            let refused = match raft.remove(id).await {
                Ok(()) => return Ok(()),
                Err(reason) => (503, format!("the server could not be taken out: {reason}")),
            };
            // The answer may have been lost, not the change.
            if !raft.members().servers.contains_key(&id) {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(refused);
            }
            tokio::time::sleep(REMOVE_AGAIN).await;
        }
    }
}

fn only_voter(members: &Members) -> String {
    if members.servers.len() == 1 {
        return "it is the cluster's only server: without it there is no cluster\nhint: `coracle down` stops it; who gives the cluster up removes the data folder too".to_owned();
    }
    "it is the only server that votes, and cannot leave: of two servers one votes, and holds what the cluster knows\nhint: join a third server first, then all vote and each may leave".to_owned()
}

/// Where a server's API is.
fn api_of(member: &Member) -> String {
    match member.address.parse::<SocketAddr>() {
        Ok(address) if member.api_port != 0 => format!("https://{}", SocketAddr::new(address.ip(), member.api_port)),
        _ => String::new(),
    }
}

impl Memory for LocalCluster {
    fn view(&self) -> View {
        self.memory.view()
    }

    fn read_barrier(&self) -> BoxFuture<'_, Result<View, ProposeError>> {
        self.memory.read_barrier()
    }

    fn propose(&self, transaction: Transaction) -> BoxFuture<'_, Proposed> {
        self.memory.propose(transaction)
    }

    fn propose_many(&self, transactions: Vec<Transaction>) -> BoxFuture<'_, Vec<Proposed>> {
        self.memory.propose_many(transactions)
    }

    fn changes(&self) -> watch::Receiver<Generation> {
        self.memory.changes()
    }

    fn events_after(&self, revision: Revision, resource: Option<&str>) -> Option<Vec<Event>> {
        self.memory.events_after(revision, resource)
    }
}

impl Cluster for LocalCluster {
    fn logs(&self, query: LogQuery) -> BoxFuture<'_, Result<LogChunks, String>> {
        Box::pin(async move {
            let request = LogRequest {
                namespace: query.namespace,
                pod: query.pod,
                uid: query.uid,
                container: query.container,
                follow: query.follow,
                previous: query.previous,
                timestamps: query.timestamps,
                tail_lines: query.tail_lines.and_then(|lines| i64::try_from(lines).ok()).unwrap_or(-1),
                since_ms: query.since_ms.unwrap_or(0),
                limit_bytes: query.limit_bytes.unwrap_or(0),
            };
            self.find_log(&query.node, request).await
        })
    }

    fn backup(&self) -> BoxFuture<'_, Result<LogChunks, String>> {
        Box::pin(async move {
            // Not older than what was acknowledged before.
            self.memory.read_barrier().await.map_err(|error| error.to_string())?;
            let (raft, authority) = (self.log.raft().clone(), self.gate.authority.clone());
            let folder = self.scratch.clone();
            let (sender, chunks) = mpsc::channel(CHUNKS);
            let made = tokio::task::spawn_blocking(move || crate::backup::begin(&raft, &authority, &folder)).await;
            let ready = made.map_err(|error| error.to_string())?.map_err(|error| coracle_base::one_line(&error))?;
            tokio::task::spawn_blocking(move || ready.send(&sender));
            Ok(chunks)
        })
    }

    fn authority(&self) -> Option<String> {
        Some(self.gate.authority.cert_pem().to_owned())
    }

    fn join<'a>(&'a self, body: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, (u16, String)>> {
        Box::pin(self.let_in(body))
    }

    fn servers(&self) -> Vec<ServerEntry> {
        let members = self.log.raft().members();
        let entry = |status: ServerStatus| ServerEntry {
            api: members.servers.get(&status.id).map(api_of).unwrap_or_default(),
            id: status.id,
            name: status.name,
            address: status.address,
            leader: status.leader,
            voter: status.voter,
            here: status.here,
        };
        self.log.servers().into_iter().map(entry).collect()
    }

    fn remove_server(&self, id: u64) -> BoxFuture<'_, Result<(), (u16, String)>> {
        Box::pin(self.take_out(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_is_where_its_server_is() {
        let member = |address: &str, api_port| Member { address: address.into(), name: String::new(), api_port };
        assert_eq!(api_of(&member("10.0.0.1:6444", 6443)), "https://10.0.0.1:6443");
        assert_eq!(api_of(&member("", 6443)), "");
        assert_eq!(api_of(&member("10.0.0.1:6444", 0)), "");
    }
}
