//! Requests to one other node: a connection each, since a handshake on a LAN is a millisecond and nothing has to be kept alive.

use std::io;

use bytes::Bytes;
use coracle_base::Digest;
use http::header::{CONTENT_RANGE, HOST, RANGE};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Peer, Peers, tls};
use crate::frames::Sender;
use crate::manifest::Descriptor;
use crate::reference::Reference;

/// What is read of an answer about a name.
const NAME_BYTES: u64 = 4096;

/// Why a node did not give what it was asked for. Shown behind the node's name.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    #[error(transparent)]
    Identity(#[from] super::IdentityError),
    #[error("no connection: {0}")]
    Connect(io::Error),
    #[error("no connection: it does not answer")]
    Deaf,
    #[error("it refuses us, or broke off: {0}")]
    Broke(hyper::Error),
    #[error("it went silent")]
    Silent,
    #[error("it does not have {0}")]
    Missing(String),
    #[error("it answers {0}")]
    Status(StatusCode),
    #[error("it broke off after {got} of {size} bytes")]
    Cut { got: u64, size: u64 },
    #[error("it gives more than {0} bytes")]
    TooMuch(u64),
    #[error("it answers another range than bytes {0}-")]
    Range(u64),
    #[error("its answer cannot be read")]
    Unreadable,
    #[error("what it gives as {expected} has the digest {got}")]
    Corrupt { expected: Digest, got: Digest },
}

impl PeerError {
    /// Whether there is no use in asking this node for anything else.
    pub fn is_lasting(&self) -> bool {
        !matches!(self, Self::Missing(_) | Self::Status(_) | Self::Cut { .. })
    }
}

/// What a name means on a node.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NameThere {
    /// Of an index or a manifest.
    digest: String,
    /// It came from a file there, or from one on a node before.
    pub imported: bool,
    /// When, milliseconds since 1970.
    #[serde(default)]
    pub imported_ms: Option<u64>,
}

impl NameThere {
    pub fn digest(&self) -> Option<Digest> {
        self.digest.parse().ok().filter(|digest: &Digest| digest.algorithm() == "sha256")
    }
}

/// An answer under way; its connection ends with it.
struct Answer {
    status: StatusCode,
    range: String,
    body: Incoming,
    _connection: Connection,
}

struct Connection(tokio::task::JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Peers {
    /// What a name means there; `None` when it means nothing.
    pub(super) async fn name(&self, peer: &Peer, reference: &Reference) -> Result<Option<NameThere>, PeerError> {
        let answer = self.get(peer, &format!("refs/{}", encode(&reference.to_string())), 0).await;
        let answer = match answer {
            Err(PeerError::Missing(_)) => return Ok(None),
            other => other?,
        };
        let bytes = self.small(answer, NAME_BYTES).await?;
        let there: NameThere = serde_json::from_slice(&bytes).map_err(|_| PeerError::Unreadable)?;
        if there.digest().is_none() {
            return Err(PeerError::Unreadable);
        }
        Ok(Some(there))
    }

    /// A whole small thing, below `manifests` or `blobs`; what comes has this digest.
    pub(super) async fn document(
        &self,
        peer: &Peer,
        kind: &str,
        digest: &Digest,
        limit: u64,
    ) -> Result<Vec<u8>, PeerError> {
        let answer = self.get(peer, &format!("{kind}/{digest}"), 0).await?;
        let bytes = self.small(answer, limit).await?;
        match crate::store::check("", digest, &bytes) {
            Err(crate::ImageError::Corrupt { expected, got, .. }) => Err(PeerError::Corrupt { expected, got }),
            _ => Ok(bytes),
        }
    }

    /// Sends on a blob's bytes from `done` on. `false`: nobody listens any more.
    pub(super) async fn blob(
        &self,
        peer: &Peer,
        layer: &Descriptor,
        done: &mut u64,
        sender: &Sender,
    ) -> Result<bool, PeerError> {
        let mut answer = self.get(peer, &format!("blobs/{}", layer.digest), *done).await?;
        let resumed = answer.status == StatusCode::PARTIAL_CONTENT;
        if *done > 0 && !(resumed && answer.range.starts_with(&format!("bytes {done}-"))) {
            return Err(PeerError::Range(*done));
        }
        loop {
            let frame = match self.frame(&mut answer.body).await {
                Ok(Some(frame)) => frame,
                Ok(None) if *done == layer.size => return Ok(true),
                Ok(None) | Err(PeerError::Broke(_)) => return Err(PeerError::Cut { got: *done, size: layer.size }),
                Err(error) => return Err(error),
            };
            if frame.is_empty() {
                continue;
            }
            *done += frame.len() as u64;
            if *done > layer.size {
                return Err(PeerError::TooMuch(layer.size));
            }
            if sender.send(Ok(frame)).await.is_err() {
                return Ok(false);
            }
        }
    }

    async fn connect(&self, peer: &Peer) -> Result<TlsStream<TcpStream>, PeerError> {
        let config = tls::client_config(&self.identity.borrow(), &peer.node)?;
        let stream = TcpStream::connect(peer.address).await.map_err(PeerError::Connect)?;
        let _ = stream.set_nodelay(true);
        // Not looked at: certificates of nodes carry no addresses.
        let name = ServerName::from(peer.address.ip());
        TlsConnector::from(config).connect(name, stream).await.map_err(PeerError::Connect)
    }

    async fn get(&self, peer: &Peer, path: &str, from: u64) -> Result<Answer, PeerError> {
        let stream = timeout(self.connect_within, self.connect(peer)).await.map_err(|_| PeerError::Deaf)??;
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut requests, connection) = handshake.map_err(PeerError::Broke)?;
        let driver = Connection(tokio::spawn(async move {
            // The request says it better.
            let _ = connection.await;
        }));
        let mut request = Request::get(format!("/v2/-/{path}")).header(HOST, peer.address.to_string());
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        // All parts are ours and well-formed.
        let request = request.body(Empty::<Bytes>::new()).map_err(|_| PeerError::Unreadable)?;
        let response = timeout(self.idle, requests.send_request(request)).await;
        let response = response.map_err(|_| PeerError::Silent)?.map_err(PeerError::Broke)?;
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => {}
            StatusCode::NOT_FOUND => return Err(PeerError::Missing(path.to_owned())),
            status => return Err(PeerError::Status(status)),
        }
        let range = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        Ok(Answer {
            status: response.status(),
            range: range.unwrap_or_default().to_owned(),
            body: response.into_body(),
            _connection: driver,
        })
    }

    async fn small(&self, mut answer: Answer, limit: u64) -> Result<Vec<u8>, PeerError> {
        let mut bytes = Vec::new();
        while let Some(frame) = self.frame(&mut answer.body).await? {
            if bytes.len() as u64 + frame.len() as u64 > limit {
                return Err(PeerError::TooMuch(limit));
            }
            bytes.extend_from_slice(&frame);
        }
        Ok(bytes)
    }

    /// The next bytes of a body; `None` at its end.
    async fn frame(&self, body: &mut Incoming) -> Result<Option<Bytes>, PeerError> {
        loop {
            match timeout(self.idle, body.frame()).await.map_err(|_| PeerError::Silent)? {
                None => return Ok(None),
                Some(Err(error)) => return Err(PeerError::Broke(error)),
                // Trailers are nothing to us.
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

/// Percent-encoding of one segment of a path.
fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
            byte => format!("%{byte:02X}"),
        })
        .collect()
}
