//! A small client of the API: reads a kubeconfig, speaks TLS with its certificate, turns `Status` answers into errors.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

/// No answer of ours is larger; a list is read in pages.
const LARGEST_ANSWER: usize = 64 << 20;

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no kubeconfig at all.
    #[error(
        "no kubeconfig at {0}\nhint: is `coracle up` running? Name another one with --kubeconfig, or its folder with --data-dir"
    )]
    NoConfig(PathBuf),
    /// It is another user's.
    #[error(
        "the kubeconfig {0} may not be read by this user\nhint: try with sudo; root can give you a copy: `sudo coracle kubeconfig --raw > FILE`, then --kubeconfig FILE"
    )]
    Forbidden(PathBuf),
    /// The kubeconfig is there but unusable.
    #[error("the kubeconfig {path} cannot be used: {reason}")]
    BadConfig {
        /// Which file.
        path: PathBuf,
        /// In words.
        reason: String,
    },
    /// Nobody listens, or TLS failed.
    #[error("cannot reach the API at {server}\nhint: is `coracle up` running there?")]
    Unreachable {
        /// The address.
        server: String,
        /// The transport's word.
        #[source]
        source: hyper_util::client::legacy::Error,
    },
    /// The server answered with an error.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        code: u16,
        /// `NotFound`, `Invalid`, ...
        reason: String,
        /// For people.
        message: String,
        /// The whole `Status`.
        status: Value,
    },
    /// An answer that is not what was asked for.
    #[error("the API's answer to {path} cannot be read: {reason}")]
    Garbled {
        /// The request.
        path: String,
        /// In words.
        reason: String,
    },
}

impl ClientError {
    /// Whether the object is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { code: 404, .. })
    }
}

/// A connection to one API server.
#[derive(Clone)]
pub struct Client {
    server: String,
    http: HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

/// What a request asks for.
pub const JSON: &str = "application/json";
/// A `Table`, as kubectl asks for it.
pub const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

impl Client {
    /// A client from a kubeconfig.
    ///
    /// # Errors
    /// No file, or one that is not a kubeconfig with certificates in it.
    pub fn open(path: &Path) -> Result<Self, ClientError> {
        let (config, context, cluster) = read_config(path)?;
        let bad = |reason: String| ClientError::BadConfig { path: path.to_owned(), reason };
        let user = named(&config["users"], context["context"]["user"].as_str())
            .ok_or_else(|| bad("the user of its context is not in it".into()))?;
        let server = cluster["cluster"]["server"].as_str().ok_or_else(|| bad("its cluster has no server".into()))?;
        let pem = |value: &Value, name: &str| -> Result<Vec<u8>, ClientError> {
            let text = value[name].as_str().ok_or_else(|| bad(format!("it has no {name}")))?;
            base64::engine::general_purpose::STANDARD.decode(text).map_err(|_| bad(format!("its {name} is not base64")))
        };
        let authority = pem(&cluster["cluster"], "certificate-authority-data")?;
        let cert = pem(&user["user"], "client-certificate-data")?;
        let key = pem(&user["user"], "client-key-data")?;
        let tls = tls(&authority, &cert, &key).map_err(bad)?;
        Ok(Self::over(server, tls))
    }

    /// One that has no certificate and believes whoever answers: only for what is checked by other means.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn stranger(server: &str) -> Result<Self, ClientError> {
        let bad = |reason| ClientError::Garbled { path: server.to_owned(), reason };
        Ok(Self::over(server, trusting().map_err(bad)?))
    }

    /// One that has no certificate and trusts this authority, PEM.
    ///
    /// # Errors
    /// The authority cannot be used.
    pub fn guest(server: &str, authority: &str) -> Result<Self, ClientError> {
        let bad = |reason| ClientError::Garbled { path: server.to_owned(), reason };
        Ok(Self::over(server, pinned(authority).map_err(bad)?))
    }

    fn over(server: &str, tls: rustls::ClientConfig) -> Self {
        // Without this the body waits until the other side acknowledges the head, which it puts off for 40 ms.
        let mut plain = HttpConnector::new();
        plain.enforce_http(false);
        plain.set_nodelay(true);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .enable_http2()
            .wrap_connector(plain);
        let http =
            HyperClient::builder(TokioExecutor::new()).pool_idle_timeout(Duration::from_secs(30)).build(connector);
        Self { server: server.trim_end_matches('/').to_owned(), http }
    }

    /// The whole of an answer that is text.
    ///
    /// # Errors
    /// As `stream`, and an answer that is not UTF-8.
    pub async fn text(&self, path: &str) -> Result<String, ClientError> {
        let answer = self.stream(Method::GET, path, "text/plain", None).await?;
        let bytes = read(path, answer).await?;
        String::from_utf8(bytes.to_vec())
            .map_err(|error| ClientError::Garbled { path: path.to_owned(), reason: error.to_string() })
    }

    /// Sends a request and returns the answer as it streams.
    ///
    /// # Errors
    /// The server cannot be reached, or answers with an error.
    pub async fn stream(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, Bytes)>,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request =
            Request::builder().method(method).uri(format!("{}{path}", self.server)).header(header::ACCEPT, accept);
        let bytes = match body {
            Some((content_type, bytes)) => {
                request = request.header(header::CONTENT_TYPE, content_type);
                bytes
            }
            None => Bytes::new(),
        };
        let request = request
            .body(Full::new(bytes))
            .map_err(|error| ClientError::Garbled { path: path.to_owned(), reason: error.to_string() })?;
        let answer = self
            .http
            .request(request)
            .await
            .map_err(|source| ClientError::Unreachable { server: self.server.clone(), source })?;
        for warning in answer.headers().get_all(header::WARNING).iter().filter_map(warning_text) {
            crate::output::warn(&warning);
        }
        if answer.status().is_success() {
            return Ok(answer);
        }
        let code = answer.status();
        let bytes = read(path, answer).await?;
        Err(refused(code, &bytes))
    }

    /// Sends a request and returns the whole JSON answer.
    ///
    /// # Errors
    /// As `stream`, and an answer that is not JSON.
    pub async fn json(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        body: Option<(&str, &Value)>,
    ) -> Result<Value, ClientError> {
        let body = body.map(|(content_type, value)| (content_type, Bytes::from(value.to_string())));
        let answer = self.stream(method, path, accept, body).await?;
        let bytes = read(path, answer).await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| ClientError::Garbled { path: path.to_owned(), reason: error.to_string() })
    }

    /// GET of one path.
    ///
    /// # Errors
    /// As `json`.
    pub async fn get(&self, path: &str) -> Result<Value, ClientError> {
        self.json(Method::GET, path, JSON, None).await
    }
}

/// The authority a kubeconfig trusts, PEM.
///
/// # Errors
/// No file, or one that is not a kubeconfig with an authority in it.
pub fn authority(path: &Path) -> Result<String, ClientError> {
    let (_, _, cluster) = read_config(path)?;
    let bad = |reason: &str| ClientError::BadConfig { path: path.to_owned(), reason: reason.to_owned() };
    let text = cluster["cluster"]["certificate-authority-data"].as_str().ok_or_else(|| bad("it has no authority"))?;
    let pem = base64::engine::general_purpose::STANDARD.decode(text).map_err(|_| bad("its authority is not base64"))?;
    String::from_utf8(pem).map_err(|_| bad("its authority is not PEM"))
}

/// A kubeconfig, its current context and that context's cluster.
fn read_config(path: &Path) -> Result<(Value, Value, Value), ClientError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(ClientError::NoConfig(path.to_owned()));
        }
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(ClientError::Forbidden(path.to_owned()));
        }
        Err(error) => return Err(ClientError::BadConfig { path: path.to_owned(), reason: error.to_string() }),
    };
    let bad = |reason: String| ClientError::BadConfig { path: path.to_owned(), reason };
    let documents = coracle_manifests::decode::yaml(&text).map_err(|problems| bad(problems[0].to_string()))?;
    let config = documents.into_iter().next().map(|document| document.value).unwrap_or_default();
    let context = named(&config["contexts"], config["current-context"].as_str())
        .ok_or_else(|| bad("its current-context is not in it".into()))?;
    let cluster = named(&config["clusters"], context["context"]["cluster"].as_str())
        .ok_or_else(|| bad("the cluster of its context is not in it".into()))?;
    let (context, cluster) = (context.clone(), cluster.clone());
    Ok((config, context, cluster))
}

/// A client configuration that trusts whoever answers: for the one question whose answer is checked by other means.
fn trusting() -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(Anybody(provider.clone()));
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth())
}

#[derive(Debug)]
struct Anybody(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Trusts this authority, whatever name the server was dialled by, and the clock only from the authority's birth on.
fn pinned(authority: &str) -> Result<rustls::ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(authority.as_bytes()) {
        roots.add(cert.map_err(|error| error.to_string())?).map_err(|error| error.to_string())?;
    }
    let clock = coracle_protocol::tls::clock(authority).map_err(|error| error.to_string())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(rustls::ClientConfig::builder_with_details(provider, clock)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn tls(authority: &[u8], cert: &[u8], key: &[u8]) -> Result<rustls::ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(authority) {
        let cert = cert.map_err(|error| format!("its authority cannot be read: {error}"))?;
        roots.add(cert).map_err(|error| format!("its authority cannot be used: {error}"))?;
    }
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(cert)
        .collect::<Result<_, _>>()
        .map_err(|error| format!("its client certificate cannot be read: {error}"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| format!("its client key cannot be read: {error}"))?;
    // Also on a machine that has woken in 1970.
    let authority = std::str::from_utf8(authority).map_err(|_| "its authority is not text".to_owned())?;
    let clock =
        coracle_protocol::tls::clock(authority).map_err(|error| format!("its authority cannot be used: {error}"))?;
    rustls::ClientConfig::builder_with_details(Arc::new(rustls::crypto::ring::default_provider()), clock)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| format!("its client certificate and key cannot be used: {error}"))
}

fn named<'a>(entries: &'a Value, name: Option<&str>) -> Option<&'a Value> {
    entries.as_array()?.iter().find(|entry| entry["name"].as_str() == name)
}

/// The text of a `Warning: 299 - "..."` header.
fn warning_text(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?;
    let (_, quoted) = text.split_once('"')?;
    Some(quoted.strip_suffix('"').unwrap_or(quoted).replace("\\\"", "\""))
}

async fn read(path: &str, answer: Response<Incoming>) -> Result<Bytes, ClientError> {
    let limited = http_body_util::Limited::new(answer.into_body(), LARGEST_ANSWER);
    limited
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .map_err(|error| ClientError::Garbled { path: path.to_owned(), reason: error.to_string() })
}

fn refused(code: StatusCode, bytes: &[u8]) -> ClientError {
    let status: Value = serde_json::from_slice(bytes).unwrap_or(Value::Null);
    let message = status["message"].as_str().map_or_else(
        || format!("the API answered {code}: {}", String::from_utf8_lossy(&bytes[..bytes.len().min(300)]).trim()),
        ToOwned::to_owned,
    );
    let reason = status["reason"].as_str().unwrap_or_default().to_owned();
    ClientError::Refused { code: code.as_u16(), reason, message, status }
}
