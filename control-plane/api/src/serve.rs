//! The listener: TLS, connections, limits.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use coracle_store::View;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::addresses::ServiceAddresses;
use crate::facility::Cluster;
use crate::guests::{Guests, Standing};
use crate::metrics::ApiMetrics;
use crate::verbs;
use crate::who::of_certificate;

/// Watches at once; more are told to come again.
const MAX_WATCHES: usize = 5000;
/// Lists whose next page may still be asked for.
const HELD_PAGES: usize = 64;
const HELD_TIME: Duration = Duration::from_secs(300);

/// Certificate, key and whom to trust, PEM.
#[derive(Clone)]
pub struct Tls {
    /// Server certificate chain.
    pub cert_pem: String,
    /// Its PKCS #8 key.
    pub key_pem: String,
    /// The authority of client certificates.
    pub client_ca_pem: String,
    /// Shown instead of the certificate, when it may be exchanged while the door is open.
    pub live: Option<Live>,
}

/// A certificate that may be exchanged, and the clock by which others are judged.
#[derive(Clone)]
pub struct Live {
    /// Shows the certificate of the moment.
    pub shown: Arc<dyn ResolvesServerCert>,
    /// Tells the time.
    pub clock: Arc<dyn TimeProvider>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// How to serve.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// Address and port.
    pub listen: SocketAddr,
    /// TLS.
    pub tls: Tls,
    /// Where services get their addresses.
    pub services: ServiceAddresses,
    /// What is counted.
    pub metrics: ApiMetrics,
}

/// How long the door waits for a client.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// A client that does not get through TLS in this time is hung up on.
    pub handshake: Duration,
    /// A request's head must have come in this time; an HTTP/1 connection that asks nothing for so long is closed.
    pub head: Duration,
    /// How long one may stay without saying who one is.
    pub stranger: Duration,
    /// A body that has not come in this time is not waited for.
    pub body: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(30),
            stranger: Duration::from_secs(30),
            body: Duration::from_secs(60),
        }
    }
}

/// Why the door cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Somebody has the port already.
    #[error("cannot listen on {address}\nhint: another program has the port; `--api-listen` takes another one")]
    Listen {
        /// Address and port.
        address: SocketAddr,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// The certificate or key cannot be used.
    #[error("the API's certificate cannot be used: {0}")]
    Tls(String),
}

/// What every request needs.
pub(crate) struct Door {
    pub(crate) config: ApiConfig,
    pub(crate) cluster: Arc<dyn Cluster>,
    pub(crate) drain: CancellationToken,
    pub(crate) watches: Arc<Semaphore>,
    pub(crate) pages: Pages,
    pub(crate) addresses: ServiceAddresses,
    pub(crate) patience: Patience,
}

impl Door {
    pub(crate) fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Views that continue tokens point at. Views share their structure, so a held one costs what has changed since; none is held
/// for longer than a pager needs.
#[derive(Default)]
pub(crate) struct Pages {
    held: Mutex<VecDeque<(Instant, View)>>,
}

impl Pages {
    pub(crate) fn hold(&self, view: View, now: Instant) {
        let mut held = self.lock(now);
        if held.iter().any(|(_, old)| old.revision() == view.revision()) {
            return;
        }
        if held.len() == HELD_PAGES {
            held.pop_front();
        }
        held.push_back((now, view));
    }

    pub(crate) fn get(&self, revision: u64, now: Instant) -> Option<View> {
        self.lock(now).iter().find(|(_, view)| view.revision() == revision).map(|(_, view)| view.clone())
    }

    fn lock(&self, now: Instant) -> MutexGuard<'_, VecDeque<(Instant, View)>> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        while held.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) > HELD_TIME) {
            held.pop_front();
        }
        held
    }
}

/// Opens the door; returns the address it listens on once it does. It closes when `drain` is cancelled.
///
/// # Errors
/// The port is taken, the certificate cannot be used.
pub async fn serve(
    config: ApiConfig,
    cluster: Arc<dyn Cluster>,
    drain: CancellationToken,
) -> Result<SocketAddr, ServeError> {
    serve_with(config, cluster, drain, Patience::default()).await
}

/// The same, with another patience.
///
/// # Errors
/// The port is taken, the certificate cannot be used.
pub async fn serve_with(
    config: ApiConfig,
    cluster: Arc<dyn Cluster>,
    drain: CancellationToken,
    patience: Patience,
) -> Result<SocketAddr, ServeError> {
    let tls = tls_config(&config.tls).map_err(ServeError::Tls)?;
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let address = config.listen;
    let listener = TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })?;
    let bound = listener.local_addr().map_err(|source| ServeError::Listen { address, source })?;
    let addresses = config.services;
    let door = Arc::new(Door {
        config,
        cluster,
        drain,
        watches: Arc::new(Semaphore::new(MAX_WATCHES)),
        pages: Pages::default(),
        addresses,
        patience,
    });
    tokio::spawn(accept(door, listener, acceptor));
    Ok(bound)
}

async fn accept(door: Arc<Door>, listener: TcpListener, acceptor: TlsAcceptor) {
    let guests = Guests::default();
    loop {
        let (stream, peer) = tokio::select! {
            // Cancel safe: a connection is taken whole or not at all.
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of descriptors, most likely: others must finish first.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = door.drain.cancelled() => return,
        };
        // Too many strangers: this one is hung up on, so that the next, who may be none, is heard.
        let Some(standing) = guests.enter(peer.ip()) else { continue };
        tokio::spawn(connection(door.clone(), standing, stream, acceptor.clone()));
    }
}

async fn connection(door: Arc<Door>, standing: Arc<Standing>, stream: TcpStream, acceptor: TlsAcceptor) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(door.patience.handshake, acceptor.accept(stream)).await else { return };
    let session = stream.get_ref().1;
    let who = Arc::new(of_certificate(session.peer_certificates()));
    if who.is_known() && !standing.promote() {
        return;
    }
    // ALPN has said which it is: nothing is guessed from the first bytes, for which a silent client could be waited for ever.
    let builder = auto::Builder::new(TokioExecutor::new());
    let http2 = session.alpn_protocol() == Some(b"h2");
    let mut builder = if http2 { builder.http2_only() } else { builder.http1_only() };
    builder.http1().timer(TokioTimer::new()).header_read_timeout(door.patience.head).max_buf_size(64 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(250)
        .max_header_list_size(32 << 10);
    let (drain, patience) = (door.drain.clone(), door.patience);
    let of_requests = standing.clone();
    let service = service_fn(move |request| {
        let (door, who, standing) = (door.clone(), who.clone(), of_requests.clone());
        async move { Ok::<_, std::convert::Infallible>(verbs::handle(door, who, standing, request).await) }
    });
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    tokio::select! {
        // Cancel safe: on drain, and when a stranger's time is over, the connection is asked to finish what it does.
        outcome = &mut served => if let Err(error) = outcome { tracing::debug!(%error, "a connection broke") },
        () = is_over(&standing, patience.stranger, &drain) => {
            served.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(Duration::from_secs(5), served).await;
        }
    }
}

/// Resolves on drain, and when one has stayed too long without saying who one is.
async fn is_over(standing: &Standing, time: Duration, drain: &CancellationToken) {
    tokio::select! {
        () = drain.cancelled() => {}
        () = tokio::time::sleep(time) => if standing.is_member() { drain.cancelled().await },
    }
}

fn tls_config(tls: &Tls) -> Result<ServerConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(tls.client_ca_pem.as_bytes()) {
        roots.add(cert.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    }
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(tls.cert_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::from_pem_slice(tls.key_pem.as_bytes()).map_err(|error| error.to_string())?;
    // Without a certificate one may ask for the version and the health, nothing else.
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| error.to_string())?;
    let config = match &tls.live {
        Some(live) => ServerConfig::builder_with_details(provider, live.clock.clone()),
        None => ServerConfig::builder_with_provider(provider),
    };
    let config = config
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(verifier);
    let mut config = match &tls.live {
        Some(live) => config.with_cert_resolver(live.shown.clone()),
        None => config.with_single_cert(chain, key).map_err(|error| error.to_string())?,
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
