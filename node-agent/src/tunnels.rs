//! Streams that a server asks for: the agent dials back on the session's connection, so no node needs an open port.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use coracle_protocol::v1::agents_client::AgentsClient;
use coracle_protocol::v1::{LogRequest, OpenTunnel, TunnelUp, open_tunnel};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::logs;

/// Tunnels open at once; more are refused with words.
const TUNNELS: usize = 64;
/// How long a server may take to read what is left of a tunnel.
const CLOSE_WITHIN: std::time::Duration = std::time::Duration::from_secs(60);
/// Chunks between a file and the stream.
const CHUNKS: usize = 8;

/// Whether a container runs, and which run; `Err` = why it waits.
pub type RunLookup = Arc<dyn Fn(&LogRequest) -> Result<Option<u32>, String> + Send + Sync>;

/// Opens tunnels. Cheap to clone.
#[derive(Clone)]
pub struct Tunnels {
    logs: PathBuf,
    running: RunLookup,
    permits: Arc<Semaphore>,
}

impl Tunnels {
    /// Over the directory of all logs.
    #[must_use]
    pub fn new(logs: PathBuf, running: RunLookup) -> Self {
        Self { logs, running, permits: Arc::new(Semaphore::new(TUNNELS)) }
    }

    /// Dials back and streams, in the background.
    pub fn open(&self, open: OpenTunnel, mut client: AgentsClient<Channel>) {
        let this = self.clone();
        tokio::spawn(async move {
            let (up, receiver) = mpsc::channel(CHUNKS);
            let first = TunnelUp { id: open.id.clone(), ..TunnelUp::default() };
            let _ = up.send(first).await;
            match client.tunnel(ReceiverStream::new(receiver)).await {
                Ok(answer) => {
                    this.serve(open, up).await;
                    // The server ends its side when it has read ours to the end; letting go earlier would reset the stream
                    // and lose what is still on its way.
                    let mut down = answer.into_inner();
                    let rest = async { while let Ok(Some(_)) = down.message().await {} };
                    let _ = tokio::time::timeout(CLOSE_WITHIN, rest).await;
                }
                Err(status) => tracing::debug!(tunnel = open.id, reason = status.message(), "a tunnel did not open"),
            }
        });
    }

    async fn serve(&self, open: OpenTunnel, up: mpsc::Sender<TunnelUp>) {
        let error = match (self.permits.try_acquire(), open.what) {
            (Err(_), _) => Some(format!("this node has {TUNNELS} streams open already")),
            (Ok(_), None) => Some("this agent is too old for what was asked".to_owned()),
            (Ok(_permit), Some(open_tunnel::What::Logs(request))) => {
                self.logs(&request, &up).await.err().map(|error| coracle_base::one_line(&error))
            }
        };
        if let Some(error) = error {
            let _ = up.send(TunnelUp { error, ..TunnelUp::default() }).await;
        }
    }

    async fn logs(&self, request: &LogRequest, up: &mpsc::Sender<TunnelUp>) -> Result<(), logs::LogError> {
        let named = [&request.namespace, &request.pod, &request.uid, &request.container];
        // Foreign words become a path: only what a pod's names can be.
        let fits = named.iter().all(|name| !name.contains('/') && !name.is_empty() && !name.starts_with('.'));
        let dir = logs::dir(&self.logs, &request.namespace, &request.pod, &request.uid, &request.container);
        let dir = if fits { dir } else { PathBuf::from("/nonexistent") };
        let running = || (self.running)(request);
        let (out, mut chunks) = mpsc::channel::<Bytes>(CHUNKS);
        let read = async move { logs::stream(request, &dir, &running, &out).await };
        let send = async move {
            while let Some(chunk) = chunks.recv().await {
                if up.send(TunnelUp { data: chunk.to_vec(), ..TunnelUp::default() }).await.is_err() {
                    // The reader hung up: the file is let go of when `chunks` is dropped.
                    return;
                }
            }
        };
        let hung_up = up.closed();
        tokio::select! {
            // Cancel safe: whoever asked is gone.
            (outcome, ()) = futures_util::future::join(read, send) => outcome,
            () = hung_up => Ok(()),
        }
    }
}
