//! This server as the API sees it: its memory, and logs through the agents' sessions.

use std::sync::Arc;

use coracle_api::{BoxFuture, Cluster, LogChunks, LogQuery, Memory, ProposeError, Proposed};
use coracle_base::{Generation, Revision};
use coracle_protocol::v1::LogRequest;
use coracle_store::{Event, Transaction, View};
use tokio::sync::watch;

use crate::sessions::Sessions;

/// The memory and the sessions of this server.
pub(crate) struct LocalCluster {
    memory: Arc<dyn Memory>,
    sessions: Sessions,
}

impl LocalCluster {
    pub(crate) fn new(memory: Arc<dyn Memory>, sessions: Sessions) -> Self {
        Self { memory, sessions }
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
            self.sessions.logs(&query.node, request).await.map_err(|error| error.to_string())
        })
    }
}
