//! Requests to one registry: tokens, redirects, repetitions.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, HeaderValue, LOCATION, RANGE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::auth;
use super::error::RegistryError;
use super::resolve::Resolver;
use crate::progress::{Progress, ProgressEvent};
use crate::reference::Reference;
use crate::store::PullOptions;

const REDIRECTS: usize = 10;
/// Longest wait between two attempts, whatever a server asks for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// What is read of an error's or a token's body.
const SMALL_BODY: u64 = 1 << 20;
const AGENT: &str = concat!("coracle/", env!("CARGO_PKG_VERSION"));

/// Talks to the registry of one reference.
pub struct Client {
    http: Http<HttpsConnector<HttpConnector<Resolver>>, Empty<Bytes>>,
    /// `https://host:port/v2/repository`
    base: String,
    scope: String,
    insecure: Vec<String>,
    /// By scope.
    tokens: Mutex<HashMap<String, HeaderValue>>,
    stall: Duration,
    attempts: u32,
    backoff: Duration,
    progress: Arc<dyn Progress>,
}

/// One thing to get.
#[derive(Debug, Clone, Default)]
pub struct Want {
    /// Below the repository: `manifests/latest`.
    pub path: String,
    /// Accept list.
    pub accept: Option<&'static str>,
    /// Start of a range.
    pub from: u64,
}

impl Client {
    /// Finds out whether the registry speaks TLS (asked only where plain HTTP is allowed at all).
    pub async fn connect(
        reference: &Reference,
        options: &PullOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<Self, RegistryError> {
        let host = match reference.registry() {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let mut connector = HttpConnector::new_with_resolver(Resolver);
        connector.enforce_http(false);
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(15)));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls(options)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let mut client = Self {
            // One connection per layer: HTTP/2 would squeeze them all through one window.
            http: Http::builder(TokioExecutor::new()).build(connector),
            base: format!("https://{host}/v2/{}", reference.repository()),
            scope: format!("repository:{}:pull", reference.repository()),
            insecure: options.insecure.clone(),
            tokens: Mutex::new(HashMap::new()),
            stall: Duration::from_millis(options.stall_ms.max(1)),
            attempts: options.attempts.max(1),
            backoff: Duration::from_millis(options.backoff_ms),
            progress,
        };
        let secure: Uri = format!("https://{host}/v2/").parse().map_err(|_| RegistryError::Address(host.into()))?;
        if client.plain_allowed(&secure)
            && matches!(client.once(&Method::GET, &secure, &HeaderMap::new()).await, Err(RegistryError::Connect { .. }))
        {
            client.base = format!("http://{host}/v2/{}", reference.repository());
        }
        Ok(client)
    }

    /// Loopback, or named as insecure.
    fn plain_allowed(&self, url: &Uri) -> bool {
        let Some(authority) = url.authority() else { return false };
        let host = authority.host().trim_matches(['[', ']']);
        let loopback =
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        loopback || self.insecure.iter().any(|name| name == authority.as_str() || name == host)
    }

    /// Gets or heads something, with every repetition that makes sense.
    pub async fn request(&self, method: &Method, want: &Want) -> Result<Response<Incoming>, RegistryError> {
        let mut attempt = 1;
        loop {
            let outcome = self.signed(method, want).await;
            let (error, asked) = match outcome {
                Err((error, asked)) if error.passes() && attempt < self.attempts => (error, asked),
                other => return other.map_err(|(error, _)| error),
            };
            self.wait(&error, attempt, asked).await;
            attempt += 1;
        }
    }

    /// Waits before the next attempt: what the server asked for, or twice as long as the last time.
    pub async fn wait(&self, error: &RegistryError, attempt: u32, asked: Option<Duration>) {
        let doubled = self.backoff.saturating_mul(1 << (attempt - 1).min(10));
        let pause = asked.unwrap_or(doubled).min(LONGEST_WAIT);
        let reason = coracle_base::one_line(error);
        self.progress.event(&ProgressEvent::Retry {
            reason: &reason,
            after_ms: u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
        });
        tokio::time::sleep(pause).await;
    }

    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// One attempt: with the token we have, and once more with a new one where the registry asks for it.
    async fn signed(
        &self,
        method: &Method,
        want: &Want,
    ) -> Result<Response<Incoming>, (RegistryError, Option<Duration>)> {
        let plain = |error| (error, None);
        let url: Uri = format!("{}/{}", self.base, want.path)
            .parse()
            .map_err(|_| plain(RegistryError::Address(want.path.clone())))?;
        let mut headers = HeaderMap::new();
        if let Some(accept) = want.accept {
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
        }
        // A proxy on the way must not compress what we hash.
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if want.from > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={}-", want.from))
        {
            headers.insert(RANGE, range);
        }
        let token = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(&self.scope).cloned();
        let had_token = token.is_some();
        if let Some(token) = token {
            headers.insert(AUTHORIZATION, token);
        }
        let mut response = self.follow(method, &url, headers.clone()).await.map_err(plain)?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let challenge = match auth::challenge(response.headers()) {
                Some(challenge) => Some(challenge),
                // One big registry challenges only here.
                None if !had_token => self.ping().await.map_err(plain)?,
                None => None,
            };
            if let Some(challenge) = challenge {
                let token = self.token(&challenge).await?;
                headers.insert(AUTHORIZATION, token);
                response = self.follow(method, &url, headers).await.map_err(plain)?;
            }
        }
        self.judge(&url, response).await
    }

    async fn ping(&self) -> Result<Option<auth::Challenge>, RegistryError> {
        let root = self.base.split_once("/v2/").map_or(self.base.as_str(), |(root, _)| root);
        let url: Uri = format!("{root}/v2/").parse().map_err(|_| RegistryError::Address(root.into()))?;
        let response = self.once(&Method::GET, &url, &HeaderMap::new()).await?;
        Ok(auth::challenge(response.headers()))
    }

    /// An anonymous token for our scope.
    async fn token(&self, challenge: &auth::Challenge) -> Result<HeaderValue, (RegistryError, Option<Duration>)> {
        let plain = |error| (error, None);
        let registry_is_plain = self.base.starts_with("http://");
        let url = challenge.url(&self.scope, |realm| registry_is_plain && self.plain_allowed(realm)).map_err(plain)?;
        let response = self.follow(&Method::GET, &url, HeaderMap::new()).await.map_err(plain)?;
        let response = self.judge(&url, response).await?;
        let bytes = self.body(&url, response, SMALL_BODY).await.map_err(plain)?;
        let answer: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let text = answer["token"].as_str().or(answer["access_token"].as_str()).filter(|token| !token.is_empty());
        let mut token = text
            .and_then(|token| HeaderValue::from_str(&format!("Bearer {token}")).ok())
            .ok_or_else(|| plain(RegistryError::Token { realm: shown(&url) }))?;
        token.set_sensitive(true);
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).insert(self.scope.clone(), token.clone());
        Ok(token)
    }

    /// A request and the redirects it leads through. What was meant for one host does not go to another.
    async fn follow(
        &self,
        method: &Method,
        url: &Uri,
        mut headers: HeaderMap,
    ) -> Result<Response<Incoming>, RegistryError> {
        // A registry beyond TLS must not send us to what listens on this machine, or to where anybody can answer.
        let registry_is_plain = self.base.starts_with("http://");
        let mut at = url.clone();
        for _ in 0..=REDIRECTS {
            let response = self.once(method, &at, &headers).await?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(response);
            }
            let target = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let refuse = |why| RegistryError::Redirect {
                url: shown(&at),
                target: target.split('?').next().unwrap_or_default().chars().take(200).collect(),
                why,
            };
            let next = join(&at, target).ok_or_else(|| refuse("it is no address"))?;
            match next.scheme_str() {
                Some("https") => {}
                Some("http") if registry_is_plain && self.plain_allowed(&next) => {}
                _ => return Err(refuse("it does not use TLS")),
            }
            if next.scheme() != at.scheme() || next.authority() != at.authority() {
                headers.remove(AUTHORIZATION);
            }
            at = next;
        }
        Err(RegistryError::Redirect { url: shown(url), target: shown(&at), why: "there were ten redirects before it" })
    }

    async fn once(&self, method: &Method, url: &Uri, headers: &HeaderMap) -> Result<Response<Incoming>, RegistryError> {
        let host = || url.authority().map(ToString::to_string).unwrap_or_default();
        let mut request = Request::new(Empty::new());
        *request.method_mut() = method.clone();
        *request.uri_mut() = url.clone();
        *request.headers_mut() = headers.clone();
        request.headers_mut().insert(USER_AGENT, HeaderValue::from_static(AGENT));
        match tokio::time::timeout(self.stall, self.http.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(RegistryError::connect(host(), &error)),
            Err(_) => Err(RegistryError::Silent { url: shown(url), ms: self.stall_ms() }),
        }
    }

    /// The response if it is a success; otherwise what the registry says, and how long it wants us to wait.
    async fn judge(
        &self,
        url: &Uri,
        response: Response<Incoming>,
    ) -> Result<Response<Incoming>, (RegistryError, Option<Duration>)> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let after =
            response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok());
        let url_shown = shown(url);
        if status == StatusCode::NOT_FOUND {
            return Err((RegistryError::Missing { url: url_shown }, None));
        }
        let body = self.body(url, response, SMALL_BODY).await.unwrap_or_default();
        let said = words(&body).unwrap_or_else(|| status.canonical_reason().unwrap_or("no reason").to_owned());
        let code = status.as_u16();
        let error = match code {
            401 | 403 => RegistryError::Denied { url: url_shown, status: code, said },
            _ => RegistryError::Status { url: url_shown, status: code, said },
        };
        Err((error, after.map(Duration::from_secs)))
    }

    /// A whole small body.
    pub async fn body(&self, url: &Uri, response: Response<Incoming>, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let mut body = response.into_body();
        let mut bytes = Vec::new();
        while let Some(frame) = self.frame(&shown(url), &mut body).await? {
            if bytes.len() as u64 + frame.len() as u64 > limit {
                return Err(RegistryError::TooMuch { url: shown(url), limit });
            }
            bytes.extend_from_slice(&frame);
        }
        Ok(bytes)
    }

    /// The next bytes of a body; `None` at its end.
    pub async fn frame(&self, url: &str, body: &mut Incoming) -> Result<Option<Bytes>, RegistryError> {
        loop {
            match tokio::time::timeout(self.stall, body.frame()).await {
                Err(_) => return Err(RegistryError::Silent { url: url.to_owned(), ms: self.stall_ms() }),
                Ok(None) => return Ok(None),
                Ok(Some(Err(source))) => {
                    return Err(RegistryError::Cut {
                        url: url.to_owned(),
                        got: 0,
                        expected: 0,
                        source: Some(source.into()),
                    });
                }
                // Trailers are nothing to us.
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The address of something, for messages.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.base)
    }

    fn stall_ms(&self) -> u64 {
        u64::try_from(self.stall.as_millis()).unwrap_or(u64::MAX)
    }
}

fn tls(options: &PullOptions) -> Result<ClientConfig, RegistryError> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    let bad = |error: String| RegistryError::Authority(error);
    for pem in &options.extra_ca_pem {
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| bad(error.to_string()))?;
            roots.add(certificate).map_err(|error| bad(error.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    Ok(config.map_err(|error| bad(error.to_string()))?.with_root_certificates(roots).with_no_client_auth())
}

/// Where a Location leads, seen from `base`.
fn join(base: &Uri, target: &str) -> Option<Uri> {
    if target.contains("://") {
        return target.parse().ok().filter(|uri: &Uri| uri.authority().is_some());
    }
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    if target.starts_with("//") {
        return format!("{scheme}:{target}").parse().ok();
    }
    if target.starts_with('/') {
        return format!("{scheme}://{authority}{target}").parse().ok();
    }
    None
}

/// An address without its query.
pub fn shown(url: &Uri) -> String {
    let text = url.to_string();
    text.split('?').next().unwrap_or_default().to_owned()
}

/// The words of the specification's error envelope, on one line and not too long.
fn words(body: &[u8]) -> Option<String> {
    let answer: serde_json::Value = serde_json::from_slice(body).ok()?;
    let error = answer["errors"].get(0)?;
    let text = error["message"].as_str().filter(|text| !text.is_empty()).or(error["code"].as_str())?;
    Some(text.chars().filter(|letter| !letter.is_control()).take(300).collect())
}
