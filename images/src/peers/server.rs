//! Serves a store's images to the nodes of the cluster: read-only, by digest, within bounds.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use coracle_base::Digest;
use futures_util::stream;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncSeekExt, SeekFrom};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::{IdentityError, PeerIdentity, tls};
use crate::error::ImageError;
use crate::manifest::DOCUMENT_BYTES;
use crate::reference::Reference;
use crate::store::{ImageStore, blocking};

/// Connections at the same time; more wait to be accepted.
const CONNECTIONS: usize = 64;
/// From the connection to the end of its handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A connection on which nothing moves for so long is closed.
const IDLE: Duration = Duration::from_secs(30);
/// After an accept that failed (out of descriptors): the reason does not go away at once.
const BREATHE: Duration = Duration::from_millis(100);
/// Bytes of a blob read at once.
const CHUNK: usize = 256 << 10;
/// The longest encoded reference: each of its characters may take three.
const REFERENCE: usize = 3 * 1024;

type Body = UnsyncBoxBody<Bytes, io::Error>;

/// A listening blob server; nobody is served before [`Self::run`].
#[derive(Debug)]
pub struct BlobServer {
    store: ImageStore,
    listener: TcpListener,
    identity: watch::Receiver<PeerIdentity>,
    acceptor: Arc<rustls::ServerConfig>,
}

/// Why there is no blob server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error(
        "images cannot be served to other nodes on {address}\n  hint: does another program, or another cluster on this machine, listen there? The address can be set"
    )]
    Listen {
        /// Which.
        address: SocketAddr,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// The certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

impl BlobServer {
    /// Listens. A changed identity counts from the next connection.
    ///
    /// # Errors
    /// An address that is in use, an identity that is none.
    pub async fn bind(
        store: ImageStore,
        address: SocketAddr,
        mut identity: watch::Receiver<PeerIdentity>,
    ) -> Result<Self, ServeError> {
        let acceptor = tls::server_config(&identity.borrow_and_update())?;
        let listener = TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
        Ok(Self { store, listener, identity, acceptor })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system does not say.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until dropped; the connections end with it.
    pub async fn run(mut self) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        // Closed only by its drop.
        while let Ok(place) = room.clone().acquire_owned().await {
            while connections.try_join_next().is_some() {}
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection of another node was not accepted");
                    tokio::time::sleep(BREATHE).await;
                    continue;
                }
            };
            self.renew();
            let (store, acceptor) = (self.store.clone(), TlsAcceptor::from(self.acceptor.clone()));
            connections.spawn(async move {
                let _place = place;
                serve(store, acceptor, stream).await;
            });
        }
    }

    fn renew(&mut self) {
        if !self.identity.has_changed().unwrap_or(false) {
            return;
        }
        match tls::server_config(&self.identity.borrow_and_update()) {
            Ok(acceptor) => self.acceptor = acceptor,
            Err(error) => {
                tracing::error!(error = coracle_base::one_line(&error), "images are served with the old certificate");
            }
        }
    }
}

async fn serve(store: ImageStore, acceptor: TlsAcceptor, stream: TcpStream) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a connection without a good certificate was refused"),
        Err(_) => return,
    };
    let Some(asker) = tls::may_ask(stream.get_ref().1.peer_certificates()) else {
        return tracing::warn!("somebody who is no node of this cluster asked for images and was refused");
    };
    let pulse = Pulse::default();
    let service = hyper::service::service_fn({
        let pulse = pulse.clone();
        move |request| {
            pulse.beat();
            let (store, pulse) = (store.clone(), pulse.clone());
            async move { Ok::<_, Infallible>(answer(&store, &request, pulse).await) }
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(IDLE)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // Cancel safe: whoever loses is dropped for good.
        outcome = connection => if let Err(error) = outcome {
            tracing::debug!(asker, %error, "a connection of another node broke");
        },
        () = pulse.stopped() => tracing::debug!(asker, "another node takes nothing of what it asked for; the connection is closed"),
    }
}

/// When something last moved on a connection.
#[derive(Debug, Clone, Default)]
struct Pulse(Arc<AtomicU64>);

impl Pulse {
    fn now() -> u64 {
        static START: OnceLock<Instant> = OnceLock::new();
        u64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn beat(&self) {
        self.0.store(Self::now(), Ordering::Relaxed);
    }

    /// Returns when nothing has moved for too long.
    async fn stopped(&self) {
        self.beat();
        loop {
            let since = Duration::from_millis(Self::now().saturating_sub(self.0.load(Ordering::Relaxed)));
            if since >= IDLE {
                return;
            }
            tokio::time::sleep(IDLE - since).await;
        }
    }
}

async fn answer(store: &ImageStore, request: &Request<Incoming>, pulse: Pulse) -> Response<Body> {
    if request.method() != Method::GET {
        let mut response = words(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    let path = request.uri().path();
    let Some((kind, rest)) = path.strip_prefix("/v2/-/").and_then(|rest| rest.split_once('/')) else {
        return missing();
    };
    let outcome = match (kind, rest.parse::<Digest>()) {
        ("manifests", Ok(digest)) => manifest(store, digest).await,
        ("blobs", Ok(digest)) => blob(store, digest, start_of(request), pulse).await,
        ("refs", _) => name(store, rest).await,
        ("manifests" | "blobs", Err(_)) => Ok(words(StatusCode::BAD_REQUEST, "that is not a digest")),
        _ => Ok(missing()),
    };
    outcome.unwrap_or_else(|error| {
        tracing::warn!(error = coracle_base::one_line(&error), "an image cannot be handed to another node");
        words(StatusCode::INTERNAL_SERVER_ERROR, "it cannot be read here")
    })
}

async fn manifest(store: &ImageStore, digest: Digest) -> Result<Response<Body>, ImageError> {
    let store = store.clone();
    let found = blocking(move || match store.open_blob(&digest)? {
        Some((_, size)) if size <= DOCUMENT_BYTES => store.blob(&format!("manifest {digest}"), &digest).map(Some),
        _ => Ok(None),
    });
    let Some(bytes) = found.await? else { return Ok(missing()) };
    Ok(whole(StatusCode::OK, "application/octet-stream", bytes))
}

async fn name(store: &ImageStore, encoded: &str) -> Result<Response<Body>, ImageError> {
    let Some(reference) = decode(encoded).and_then(|text| text.parse::<Reference>().ok()) else {
        return Ok(words(StatusCode::BAD_REQUEST, "that is not the name of an image"));
    };
    let store = store.clone();
    let Some(record) = blocking(move || store.known(&reference)).await? else { return Ok(missing()) };
    let digest = record.index.as_ref().unwrap_or(&record.digest).as_str();
    let meaning = json!({"digest": digest, "imported": record.imported, "importedMs": record.imported_ms});
    Ok(whole(StatusCode::OK, "application/json", meaning.to_string().into_bytes()))
}

/// N of `Range: bytes=N-`; other ranges are ignored, as they may be.
fn start_of(request: &Request<Incoming>) -> Option<u64> {
    request.headers().get(RANGE)?.to_str().ok()?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}

async fn blob(
    store: &ImageStore,
    digest: Digest,
    start: Option<u64>,
    pulse: Pulse,
) -> Result<Response<Body>, ImageError> {
    let (files, shown) = (store.clone(), digest.clone());
    let Some((file, size)) = blocking(move || files.open_blob(&digest)).await? else { return Ok(missing()) };
    let from = start.unwrap_or(0);
    if from > size || (from == size && size > 0) {
        let mut response = words(StatusCode::RANGE_NOT_SATISFIABLE, "it is not that long");
        header(&mut response, CONTENT_RANGE, &format!("bytes */{size}"));
        return Ok(response);
    }
    let body = send(file, from, size - from, pulse).await;
    let body = body.map_err(ImageError::disk("read", std::path::Path::new(shown.as_str())))?;
    let mut response = Response::new(body);
    if from > 0 {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        header(&mut response, CONTENT_RANGE, &format!("bytes {from}-{}/{size}", size - 1));
    }
    header(&mut response, CONTENT_TYPE, "application/octet-stream");
    header(&mut response, CONTENT_LENGTH, &(size - from).to_string());
    Ok(response)
}

/// `length` bytes of a file from `from` on. A file that ends early breaks the connection.
async fn send(file: File, from: u64, length: u64, pulse: Pulse) -> io::Result<Body> {
    let mut file = tokio::fs::File::from_std(file);
    file.set_max_buf_size(CHUNK);
    if from > 0 {
        file.seek(SeekFrom::Start(from)).await?;
    }
    let file = file.take(length);
    let frames = stream::try_unfold((file, pulse), |(mut file, pulse)| async move {
        pulse.beat();
        if file.limit() == 0 {
            return Ok(None);
        }
        let mut chunk = BytesMut::with_capacity(CHUNK);
        if file.read_buf(&mut chunk).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some((Frame::data(chunk.freeze()), (file, pulse))))
    });
    Ok(StreamBody::new(frames).boxed_unsync())
}

fn missing() -> Response<Body> {
    words(StatusCode::NOT_FOUND, "it is not here")
}

fn words(status: StatusCode, text: &'static str) -> Response<Body> {
    whole(status, "text/plain", text.as_bytes().to_vec())
}

fn whole(status: StatusCode, kind: &'static str, bytes: Vec<u8>) -> Response<Body> {
    let body = Full::new(Bytes::from(bytes)).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn header(response: &mut Response<Body>, name: http::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// Percent-decoding.
fn decode(text: &str) -> Option<String> {
    if text.len() > REFERENCE {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        if *first != b'%' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let (code, after) = after.split_at_checked(2)?;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        bytes.push(u8::try_from(digit(code[0])? * 16 + digit(code[1])?).ok()?);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_decoded_or_refused() {
        assert_eq!(decode("example.com%2fapp%3A1").as_deref(), Some("example.com/app:1"));
        for bad in ["%", "%2", "%zz", "%ff", "%+1"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
        assert_eq!(decode(&"a".repeat(REFERENCE + 1)), None);
    }
}
