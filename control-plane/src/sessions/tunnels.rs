//! Streams that a server asks an agent to open: logs today. The agent dials back on its connection, so that no node needs
//! an open port.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use coracle_protocol::v1::{FromServer, LogRequest, OpenTunnel, TunnelDown, TunnelUp, from_server, open_tunnel};
use tokio::sync::mpsc;
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Status, Streaming};

/// How long an agent may take to dial back.
const OPEN_WITHIN: Duration = Duration::from_secs(10);
/// Chunks in flight between an agent and a slow reader: back-pressure reaches the agent through the stream's window.
const CHUNKS: usize = 16;

/// Data of a tunnel, in order; an `Err` is the agent's word on why it ended.
pub type TunnelChunks = mpsc::Receiver<Result<Bytes, String>>;

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// No session with that node.
    #[error("node {0} is not connected")]
    Away(String),
    /// The agent did not dial back in time.
    #[error("node {0} does not answer")]
    Silent(String),
}

struct Waiter {
    node: String,
    chunks: mpsc::Sender<Result<Bytes, String>>,
    attached: tokio::sync::oneshot::Sender<()>,
}

/// Tunnels asked for and not yet dialled.
#[derive(Default)]
pub(super) struct Waiting {
    waiters: Mutex<HashMap<String, Waiter>>,
}

/// Takes one who waits off the list, however the waiting ends.
struct Forget<'a> {
    tunnels: &'a Waiting,
    id: &'a str,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.tunnels.waiters().remove(self.id);
    }
}

impl Waiting {
    fn waiters(&self) -> std::sync::MutexGuard<'_, HashMap<String, Waiter>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) async fn open_logs(
        &self,
        node: &str,
        down: &mpsc::Sender<Result<FromServer, Status>>,
        request: LogRequest,
    ) -> Result<TunnelChunks, TunnelError> {
        let id = uuid::Uuid::new_v4().to_string();
        let (chunks, receiver) = mpsc::channel(CHUNKS);
        let (attached, was_attached) = tokio::sync::oneshot::channel();
        self.waiters().insert(id.clone(), Waiter { node: node.to_owned(), chunks, attached });
        // Whoever asked may hang up while the node is silent.
        let _forget = Forget { tunnels: self, id: &id };
        let open = OpenTunnel { id: id.clone(), what: Some(open_tunnel::What::Logs(request)) };
        let asked = async {
            let message = FromServer { message: Some(from_server::Message::OpenTunnel(open)) };
            down.send(Ok(message)).await.map_err(|_| TunnelError::Away(node.to_owned()))?;
            was_attached.await.map_err(|_| TunnelError::Silent(node.to_owned()))
        };
        match tokio::time::timeout(OPEN_WITHIN, asked).await {
            Ok(Ok(())) => Ok(receiver),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(TunnelError::Silent(node.to_owned())),
        }
    }

    /// An agent has dialled: joins its stream to the one who waits.
    pub(super) async fn attach(
        &self,
        node: &str,
        mut up: Streaming<TunnelUp>,
    ) -> Result<Pin<Box<dyn Stream<Item = Result<TunnelDown, Status>> + Send>>, Status> {
        let first = tokio::time::timeout(OPEN_WITHIN, up.next())
            .await
            .map_err(|_| Status::deadline_exceeded("the tunnel said nothing"))?;
        let Some(Ok(first)) = first else { return Err(Status::cancelled("the tunnel closed")) };
        let waiter = self.waiters().remove(&first.id);
        // A tunnel may be answered only by the node it was asked of.
        let waiter = waiter.filter(|waiter| waiter.node == node);
        let Some(Waiter { chunks, attached, .. }) = waiter else {
            return Err(Status::not_found("nobody waits for this tunnel"));
        };
        let _ = attached.send(());
        let (closed, is_closed) = mpsc::channel::<Result<TunnelDown, Status>>(1);
        tokio::spawn(async move {
            let mut next = Some(first);
            while let Some(message) = next {
                let end = !message.error.is_empty();
                let item = if end { Err(message.error) } else { Ok(Bytes::from(message.data)) };
                if item.as_ref().map_or(true, |data| !data.is_empty()) && chunks.send(item).await.is_err() {
                    break;
                }
                if end {
                    break;
                }
                // The reader may hang up while the container is silent: notice it at once, so that the agent stops following.
                next = tokio::select! {
                    // Cancel safe: a message is taken whole or not at all.
                    message = up.next() => message.and_then(Result::ok),
                    () = chunks.closed() => None,
                };
            }
            drop(closed);
        });
        Ok(Box::pin(tokio_stream::wrappers::ReceiverStream::new(is_closed)))
    }
}
