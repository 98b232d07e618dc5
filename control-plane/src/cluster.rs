//! This server as the API sees it: its memory, and logs through the agents' sessions.

use std::sync::Arc;
use std::time::Duration;

use coracle_api::{BoxFuture, Cluster, LogChunks, LogQuery, Memory, ProposeError, Proposed};
use coracle_base::{Generation, Revision};
use coracle_protocol::v1::{LogRelay, LogRequest};
use coracle_store::{Event, Transaction, View};
use tokio::sync::{mpsc, watch};

use crate::join::{Gate, JoinRequest};
use crate::memory::LogHandle;
use crate::peers::ServerPeers;
use crate::sessions::{Sessions, TunnelChunks, TunnelError};

/// How long another server may take to say whether it has a node's session.
const KNOCK: Duration = Duration::from_secs(11);
/// Chunks of a log in flight between two servers.
const CHUNKS: usize = 16;

/// The memory and the sessions of this server, and the way to others.
pub(crate) struct LocalCluster {
    pub memory: Arc<dyn Memory>,
    pub sessions: Sessions,
    pub log: LogHandle,
    pub peers: ServerPeers,
    pub gate: Gate,
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

    fn authority(&self) -> Option<String> {
        Some(self.gate.authority.cert_pem().to_owned())
    }

    fn join<'a>(&'a self, body: &'a [u8]) -> BoxFuture<'a, Result<Vec<u8>, (u16, String)>> {
        Box::pin(self.let_in(body))
    }
}
