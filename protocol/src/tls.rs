//! TLS between servers and agents: both ends show a certificate of the cluster's authority, which may be renewed while
//! connections stand.
//!
//! Every certificate of a cluster is valid from the birth of its authority, and no clock is believed that is before it: a machine
//! that wakes in 1970 finds its cluster again.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tonic::transport::{Channel, Endpoint};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The name in every server's certificate.
pub const SERVER_NAME: &str = "coracle-server";

/// How long certificates are made for. Their beginning says nothing: it is that of their authority.
const LEAF_SECONDS: i64 = 365 * 24 * 3600;

/// A certificate with less of its life left is exchanged.
pub const RENEW_BELOW: f64 = 1.0 / 3.0;

/// Who we are and whom we trust, PEM.
#[derive(Clone)]
pub struct Papers {
    /// Certificate chain, leaf first.
    pub cert_pem: String,
    /// PKCS #8 private key.
    pub key_pem: String,
    /// The cluster's authority.
    pub ca_pem: String,
}

impl std::fmt::Debug for Papers {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Papers").finish_non_exhaustive()
    }
}

/// Why certificates cannot be used.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the certificates cannot be used: {0}")]
pub struct TlsError(String);

fn unusable(error: impl std::fmt::Display) -> TlsError {
    TlsError(error.to_string())
}

/// Papers that can be exchanged while they are in use. Cheap to clone.
#[derive(Clone)]
pub struct Wallet {
    key: Arc<ArcSwap<CertifiedKey>>,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl std::fmt::Debug for Wallet {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Wallet").finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Shown(Arc<ArcSwap<CertifiedKey>>);

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// The system's clock, but never before the authority.
#[derive(Debug)]
struct NotBefore(UnixTime);

impl TimeProvider for NotBefore {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::now().max(self.0))
    }
}

/// A clock for whoever checks certificates of this authority: the system's, but never before the authority was made.
///
/// # Errors
/// It is no certificate.
pub fn clock(ca_pem: &str) -> Result<Arc<dyn TimeProvider>, TlsError> {
    let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(unusable)?;
    let (_, parsed) = X509Certificate::from_der(&ca).map_err(unusable)?;
    let birth = u64::try_from(parsed.validity().not_before.timestamp()).unwrap_or(0);
    Ok(Arc::new(NotBefore(UnixTime::since_unix_epoch(Duration::from_secs(birth + 1)))))
}

/// How much of a certificate's life is left, from 0 to 1; as much as there is when the clock is before its beginning.
///
/// # Errors
/// It is no certificate.
pub fn life_left(cert_pem: &str) -> Result<f64, TlsError> {
    let cert = CertificateDer::from_pem_slice(cert_pem.as_bytes()).map_err(unusable)?;
    let (_, parsed) = X509Certificate::from_der(&cert).map_err(unusable)?;
    let (from, until) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    let now = i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX).max(from);
    #[allow(clippy::cast_precision_loss)]
    Ok(((until - now) as f64 / LEAF_SECONDS.min((until - from).max(1)) as f64).clamp(0.0, 1.0))
}

fn certified(papers: &Papers) -> Result<CertifiedKey, TlsError> {
    let chain = CertificateDer::pem_slice_iter(papers.cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let key = PrivateKeyDer::from_pem_slice(papers.key_pem.as_bytes()).map_err(unusable)?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(unusable)?;
    Ok(CertifiedKey::new(chain.map_err(unusable)?, key))
}

impl Wallet {
    /// From these papers.
    ///
    /// # Errors
    /// They are not PEM, or do not fit each other.
    pub fn new(papers: &Papers) -> Result<Self, TlsError> {
        let key = Arc::new(ArcSwap::from_pointee(certified(papers)?));
        let mut roots = RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(papers.ca_pem.as_bytes()) {
            roots.add(cert.map_err(unusable)?).map_err(unusable)?;
        }
        let roots = Arc::new(roots);
        let clock = clock(&papers.ca_pem)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut client = ClientConfig::builder_with_details(provider.clone(), clock.clone())
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_root_certificates(roots.clone())
            .with_client_cert_resolver(Arc::new(Shown(key.clone())));
        client.alpn_protocols = vec![b"h2".to_vec()];
        let verifier =
            WebPkiClientVerifier::builder_with_provider(roots, provider.clone()).build().map_err(unusable)?;
        let mut server = ServerConfig::builder_with_details(provider, clock)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(Shown(key.clone())));
        server.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { key, client: Arc::new(client), server: Arc::new(server) })
    }

    /// New papers of the same authority, for every handshake from now on.
    ///
    /// # Errors
    /// They are not PEM, or do not fit each other; the old ones stay.
    pub fn renew(&self, papers: &Papers) -> Result<(), TlsError> {
        self.key.store(Arc::new(certified(papers)?));
        Ok(())
    }

    /// For a port of ours.
    #[must_use]
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.server.clone())
    }

    /// What answers handshakes with the papers of the moment, for a port with rules of its own.
    #[must_use]
    pub fn shown(&self) -> Arc<dyn ResolvesServerCert> {
        Arc::new(Shown(self.key.clone()))
    }

    /// A connection to a server at `host:port`, made within `within`; it counts as dead when after `alive` without a word nothing has
    /// come for as long again.
    ///
    /// # Errors
    /// The address cannot be dialled, or whoever is there is no server of this cluster.
    pub async fn dial(
        &self,
        address: &str,
        within: Duration,
        alive: Duration,
    ) -> Result<Channel, tonic::transport::Error> {
        // TLS is ours, so the library is told of a plain connection.
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?
            .connect_timeout(within)
            .http2_keep_alive_interval(alive)
            .keep_alive_timeout(alive)
            .keep_alive_while_idle(true);
        let (connector, target) = (TlsConnector::from(self.client.clone()), address.to_owned());
        let dialled = tower::service_fn(move |_: http::Uri| {
            let (connector, target) = (connector.clone(), target.clone());
            async move {
                let connecting = async {
                    let stream = TcpStream::connect(target).await?;
                    stream.set_nodelay(true)?;
                    let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
                    connector.connect(name, stream).await
                };
                let stream = tokio::time::timeout(within, connecting).await;
                let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
                Ok::<_, io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        });
        endpoint.connect_with_connector(dialled).await
    }
}
