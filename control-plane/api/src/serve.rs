//! The listener: TLS, connections, limits.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coracle_manifests::view::text;
use coracle_store::View;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::facility::Cluster;
use crate::metrics::ApiMetrics;
use crate::status::Failure;
use crate::verbs;
use crate::who::of_certificate;

/// Connections and watches at once; more wait, or are told to come again.
const MAX_CONNECTIONS: usize = 2000;
const MAX_WATCHES: usize = 5000;
/// A client that does not get through TLS and its first header in this time is hung up on.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Lists whose next page may still be asked for.
const HELD_PAGES: usize = 64;

/// Certificate, key and whom to trust, PEM.
#[derive(Clone)]
pub struct Tls {
    /// Server certificate chain.
    pub cert_pem: String,
    /// Its PKCS #8 key.
    pub key_pem: String,
    /// The authority of client certificates.
    pub client_ca_pem: String,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Tls").finish_non_exhaustive()
    }
}

/// The block that service addresses come from.
#[derive(Debug, Clone, Copy)]
pub struct ServiceAddresses {
    /// First address of the block.
    pub base: Ipv4Addr,
    /// Prefix length.
    pub prefix: u8,
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
}

impl Door {
    pub(crate) fn now_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// Views that continue tokens point at. Views share their structure, so a held one costs what has changed since.
#[derive(Default)]
pub(crate) struct Pages {
    held: Mutex<VecDeque<View>>,
}

impl Pages {
    pub(crate) fn hold(&self, view: View) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.iter().any(|old| old.revision() == view.revision()) {
            return;
        }
        if held.len() == HELD_PAGES {
            held.pop_front();
        }
        held.push_back(view);
    }

    pub(crate) fn get(&self, revision: u64) -> Option<View> {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .find(|view| view.revision() == revision)
            .cloned()
    }
}

impl ServiceAddresses {
    /// Gives a Service its address, or checks the one it asks for; returns the claims that make it its own.
    pub(crate) fn assign(&self, view: &View, service: &mut Value) -> Result<Vec<String>, Failure> {
        let spec = &mut service["spec"];
        let asked = text(&spec["clusterIP"]).to_owned();
        if asked == "None" {
            spec["clusterIPs"] = json!(["None"]);
            return Ok(Vec::new());
        }
        let size = 1_u32 << (32 - u32::from(self.prefix)).min(31);
        let base = u32::from(self.base);
        let address = if asked.is_empty() {
            let taken: std::collections::HashSet<String> = view
                .list("services", None)
                .map(|service| text(&service.tree()["spec"]["clusterIP"]).to_owned())
                .collect();
            // A place that a new service does not share with one that has just gone; the first address is the API's own.
            let start = u32::from_le_bytes(uuid::Uuid::new_v4().as_bytes()[..4].try_into().unwrap_or_default());
            (0..size)
                .map(|step| start.wrapping_add(step) % size)
                .filter(|offset| *offset > 9 && *offset < size - 1)
                .map(|offset| Ipv4Addr::from(base + offset))
                .find(|address| !taken.contains(&address.to_string()))
                .ok_or_else(|| {
                    Failure::new(
                        http::StatusCode::INTERNAL_SERVER_ERROR,
                        "InternalError",
                        "all service addresses are taken",
                    )
                })?
        } else {
            let address: Ipv4Addr =
                asked.parse().map_err(|_| Failure::bad_request(format!("clusterIP `{asked}` is not an address")))?;
            let offset = u32::from(address).wrapping_sub(base);
            if offset == 0 || offset >= size - 1 {
                let problem = coracle_manifests::Problem::new(
                    "spec.clusterIP",
                    coracle_manifests::Reason::Invalid,
                    format!("{asked} is not in the service block {}/{}", self.base, self.prefix),
                );
                let name = text(&service["metadata"]["name"]).to_owned();
                return Err(coracle_manifests::kinds::by_word("services")
                    .map_or_else(Failure::no_such_path, |kind| Failure::invalid(kind, &name, &[problem])));
            }
            address
        };
        spec["clusterIP"] = json!(address.to_string());
        spec["clusterIPs"] = json!([address.to_string()]);
        Ok(vec![format!("clusterip/{address}")])
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
    });
    tokio::spawn(accept(door, listener, acceptor));
    Ok(bound)
}

async fn accept(door: Arc<Door>, listener: TcpListener, acceptor: TlsAcceptor) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let permit = tokio::select! {
            // Cancel safe: a permit or a connection is taken whole or not at all.
            permit = connections.clone().acquire_owned() => permit,
            () = door.drain.cancelled() => return,
        };
        let Ok(permit) = permit else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: others must finish first.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = door.drain.cancelled() => return,
        };
        let (door, acceptor) = (door.clone(), acceptor.clone());
        tokio::spawn(async move {
            let _permit = permit;
            connection(door, stream, acceptor).await;
        });
    }
}

async fn connection(door: Arc<Door>, stream: tokio::net::TcpStream, acceptor: TlsAcceptor) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await else { return };
    let who = Arc::new(of_certificate(stream.get_ref().1.peer_certificates()));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE).max_buf_size(64 << 10);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(250)
        .max_header_list_size(32 << 10);
    let drain = door.drain.clone();
    let service = service_fn(move |request| {
        let (door, who) = (door.clone(), who.clone());
        async move { Ok::<_, std::convert::Infallible>(verbs::handle(door, who, request).await) }
    });
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut served = std::pin::pin!(served);
    tokio::select! {
        // Cancel safe: on drain the connection is asked to finish what it does.
        outcome = &mut served => if let Err(error) = outcome { tracing::debug!(%error, "a connection broke") },
        () = drain.cancelled() => {
            served.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(Duration::from_secs(5), served).await;
        }
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
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
