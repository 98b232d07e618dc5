//! A client of the API for writers in tests: blocking, one connection, a deadline for every answer, and above all honest
//! about what it knows. An answer that did not come means that a write may have happened, may not, or will.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};

use crate::linear::Told;
use crate::machine::enter;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Answered {
    /// Done; the object or list of the answer.
    Acknowledged(Value),
    /// Surely not done: the server says so (4xx), or nothing was sent (then `code` is 0).
    Refused {
        /// HTTP status, or 0 without a connection.
        code: u16,
        /// In words.
        message: String,
    },
    /// Nobody can tell: no answer in time, a connection that broke, a 5xx.
    Unknown(String),
}

impl Answered {
    /// The object, when it was acknowledged.
    #[must_use]
    pub fn object(&self) -> Option<&Value> {
        match self {
            Self::Acknowledged(object) => Some(object),
            _ => None,
        }
    }

    /// What a history is told of a write.
    #[must_use]
    pub fn of_write(&self) -> Told {
        match self {
            Self::Acknowledged(_) => Told::Done,
            Self::Refused { .. } => Told::Failed,
            Self::Unknown(_) => Told::Unknown,
        }
    }

    /// What a history is told of a read of a ConfigMap whose `data.value` is a number.
    #[must_use]
    pub fn of_read(&self) -> Told {
        match self {
            Self::Acknowledged(object) => {
                Told::Saw(object["data"]["value"].as_str().and_then(|value| value.parse().ok()))
            }
            Self::Refused { code: 404, .. } => Told::Saw(None),
            Self::Refused { .. } | Self::Unknown(_) => Told::Failed,
        }
    }

    /// The HTTP status of a refusal.
    #[must_use]
    pub fn code(&self) -> Option<u16> {
        match self {
            Self::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }
}

/// Who we are to the API: made of a kubeconfig of ours.
#[derive(Clone)]
pub struct Credentials(Arc<rustls::ClientConfig>);

impl Credentials {
    /// Reads the text of a kubeconfig; its address is not used.
    #[must_use]
    pub fn read(kubeconfig: &str) -> Option<Self> {
        let config = coracle_manifests::decode::yaml(kubeconfig).ok()?.into_iter().next()?.value;
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let pem = |value: &Value| base64::engine::general_purpose::STANDARD.decode(value.as_str()?).ok();
        let mut roots = rustls::RootCertStore::empty();
        for authority in CertificateDer::pem_slice_iter(&pem(&cluster["certificate-authority-data"])?) {
            roots.add(authority.ok()?).ok()?;
        }
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(&pem(&user["client-certificate-data"])?).collect();
        let key = PrivateKeyDer::from_pem_slice(&pem(&user["client-key-data"])?).ok()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .ok()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.ok()?, key)
            .ok()?;
        Some(Self(Arc::new(config)))
    }
}

/// A client of one server. Not shared: each thread has its own.
pub struct Api {
    server: SocketAddr,
    namespace: PathBuf,
    credentials: Credentials,
    timeout: Duration,
    wire: Option<Wire>,
}

impl Api {
    /// A client in a network namespace, of the API at an address.
    #[must_use]
    pub fn new(namespace: PathBuf, server: SocketAddr, credentials: Credentials) -> Self {
        Self { server, namespace, credentials, timeout: Duration::from_secs(5), wire: None }
    }

    /// How long an answer may take, connecting included; 5 seconds unless told.
    #[must_use]
    pub fn within(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Another server from now on.
    pub fn turn_to(&mut self, server: SocketAddr) {
        self.server = server;
        self.wire = None;
    }

    /// The server.
    #[must_use]
    pub fn server(&self) -> SocketAddr {
        self.server
    }

    /// Creates a ConfigMap whose `data.value` is this.
    pub fn create(&mut self, name: &str, value: &str) -> Answered {
        self.request("POST", MAPS, Some(&map(name, value, None)))
    }

    /// Replaces it: whatever is there, or only this resource version (a 409 otherwise).
    pub fn update(&mut self, name: &str, value: &str, version: Option<&str>) -> Answered {
        self.request("PUT", &format!("{MAPS}/{name}"), Some(&map(name, value, version)))
    }

    /// Deletes it.
    pub fn delete(&mut self, name: &str) -> Answered {
        self.request("DELETE", &format!("{MAPS}/{name}"), None)
    }

    /// Reads it.
    pub fn get(&mut self, name: &str) -> Answered {
        self.request("GET", &format!("{MAPS}/{name}"), None)
    }

    /// Reads all of them.
    pub fn list(&mut self) -> Answered {
        self.request("GET", MAPS, None)
    }

    /// Follows them from after a resource version, on a connection of its own.
    ///
    /// # Errors
    /// No connection, or the server does not want to.
    pub fn watch(&self, version: &str) -> Result<Watch, Answered> {
        self.watch_path(&format!("{MAPS}?watch=true&allowWatchBookmarks=true&resourceVersion={version}"))
    }

    /// Any watch: the path with its query.
    ///
    /// # Errors
    /// As `watch`.
    pub fn watch_path(&self, path: &str) -> Result<Watch, Answered> {
        let until = Instant::now() + self.timeout;
        let refused = |message| Answered::Refused { code: 0, message };
        let mut wire = Wire::open(&self.namespace, self.server, &self.credentials, until).map_err(refused)?;
        let head = wire.send("GET", path, None, until).and_then(|()| wire.head(until)).map_err(Answered::Unknown)?;
        if head.code != 200 {
            return Err(wire.body(&head, until).map_or_else(Answered::Unknown, |body| judge(&head, &body)));
        }
        Ok(Watch { wire, lines: Vec::new(), chunked: head.chunked, left: 0 })
    }

    /// Any request with a JSON body.
    pub fn request(&mut self, method: &str, path: &str, body: Option<&Value>) -> Answered {
        let until = Instant::now() + self.timeout;
        let mut wire = match self.wire.take() {
            Some(wire) => wire,
            None => match Wire::open(&self.namespace, self.server, &self.credentials, until) {
                Ok(wire) => wire,
                Err(message) => return Answered::Refused { code: 0, message },
            },
        };
        let answer = wire.send(method, path, body, until).and_then(|()| {
            let head = wire.head(until)?;
            let body = wire.body(&head, until)?;
            Ok((head, body))
        });
        match answer {
            Ok((head, body)) => {
                if !head.close {
                    self.wire = Some(wire);
                }
                judge(&head, &body)
            }
            Err(why) => Answered::Unknown(why),
        }
    }
}

fn map(name: &str, value: &str, version: Option<&str>) -> Value {
    let mut object =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value}});
    if let Some(version) = version {
        object["metadata"]["resourceVersion"] = version.into();
    }
    object
}

fn judge(head: &Head, body: &[u8]) -> Answered {
    let object: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let message = || object["message"].as_str().unwrap_or_default().to_owned();
    match head.code {
        200..300 => Answered::Acknowledged(object),
        400..500 => Answered::Refused { code: head.code, message: message() },
        code => Answered::Unknown(format!("{code}: {}", message())),
    }
}

/// One event of a watch.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`, and the object.
    Event(String, Value),
    /// Nothing came in time; the watch goes on.
    Nothing,
    /// The watch is over.
    Ended(String),
}

/// A watch.
pub struct Watch {
    wire: Wire,
    lines: Vec<u8>,
    chunked: bool,
    left: usize,
}

impl Watch {
    /// The next event.
    pub fn next(&mut self, timeout: Duration) -> Seen {
        let until = Instant::now() + timeout;
        loop {
            if let Some(end) = self.lines.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.lines.drain(..=end).collect();
                let Ok(mut event) = serde_json::from_slice::<Value>(&line) else {
                    return Seen::Ended(format!("not an event: {}", String::from_utf8_lossy(&line)));
                };
                return Seen::Event(event["type"].as_str().unwrap_or_default().to_owned(), event["object"].take());
            }
            match self.more(until) {
                Ok(true) => {}
                Ok(false) => return Seen::Ended("the server ended it".to_owned()),
                Err(Broken::Late) => return Seen::Nothing,
                Err(Broken::Lost(why)) => return Seen::Ended(why),
            }
        }
    }

    /// Moves bytes into `lines`; false at the end. Keeps its place when it is late.
    fn more(&mut self, until: Instant) -> Result<bool, Broken> {
        if !self.chunked {
            while self.wire.raw.is_empty() {
                self.wire.fill(until)?;
            }
            self.lines.append(&mut self.wire.raw);
            return Ok(true);
        }
        if self.left == 0 {
            match self.wire.chunk(until)? {
                0 => return Ok(false),
                size => self.left = size,
            }
        }
        while self.wire.raw.is_empty() {
            self.wire.fill(until)?;
        }
        let taken = self.left.min(self.wire.raw.len());
        self.lines.extend(self.wire.raw.drain(..taken));
        self.left -= taken;
        Ok(true)
    }
}

struct Head {
    code: u16,
    length: usize,
    chunked: bool,
    close: bool,
}

enum Broken {
    Late,
    Lost(String),
}

impl From<Broken> for String {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Late => "no answer in time".to_owned(),
            Broken::Lost(why) => why,
        }
    }
}

/// A TLS connection and what was read too much of it.
struct Wire {
    stream: rustls::StreamOwned<rustls::ClientConnection, TcpStream>,
    raw: Vec<u8>,
}

impl Wire {
    fn open(
        namespace: &std::path::Path,
        server: SocketAddr,
        credentials: &Credentials,
        until: Instant,
    ) -> Result<Self, String> {
        // A socket stays in the namespace it was made in, whichever thread uses it then.
        let connected = std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter(namespace)?;
                TcpStream::connect_timeout(&server, left(until))
            });
            inside.join().unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into()))
        });
        let fine = |error: std::io::Error| format!("cannot connect to {server}: {error}");
        let mut socket = connected.map_err(fine)?;
        socket.set_nodelay(true).map_err(fine)?;
        // The name that every server's certificate holds, also after its address has changed.
        let name = ServerName::try_from("localhost").map_err(|error| error.to_string())?;
        let mut session =
            rustls::ClientConnection::new(credentials.0.clone(), name).map_err(|error| error.to_string())?;
        while session.is_handshaking() {
            socket.set_read_timeout(Some(left(until))).map_err(fine)?;
            socket.set_write_timeout(Some(left(until))).map_err(fine)?;
            session.complete_io(&mut socket).map_err(|error| format!("no TLS with {server}: {error}"))?;
            if Instant::now() > until {
                return Err(format!("no TLS with {server} in time"));
            }
        }
        Ok(Self { stream: rustls::StreamOwned::new(session, socket), raw: Vec::new() })
    }

    fn send(&mut self, method: &str, path: &str, body: Option<&Value>, until: Instant) -> Result<(), String> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let _ = self.stream.sock.set_write_timeout(Some(left(until)));
        let sent = self.stream.write_all(text.as_bytes()).and_then(|()| self.stream.flush());
        sent.map_err(|error| format!("the request was cut off: {error}"))
    }

    /// At least one byte more.
    fn fill(&mut self, until: Instant) -> Result<(), Broken> {
        if Instant::now() >= until {
            return Err(Broken::Late);
        }
        let _ = self.stream.sock.set_read_timeout(Some(left(until)));
        let mut buffer = [0; 16 << 10];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(Broken::Lost("the connection was closed".to_owned())),
            Ok(read) => {
                self.raw.extend_from_slice(&buffer[..read]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                Err(Broken::Late)
            }
            Err(error) => Err(Broken::Lost(format!("the connection is broken: {error}"))),
        }
    }

    /// Takes everything up to and with a mark.
    fn take_to(&mut self, mark: &[u8], until: Instant) -> Result<Vec<u8>, Broken> {
        loop {
            if let Some(at) = self.raw.windows(mark.len()).position(|window| window == mark) {
                return Ok(self.raw.drain(..at + mark.len()).collect());
            }
            self.fill(until)?;
        }
    }

    fn head(&mut self, until: Instant) -> Result<Head, String> {
        let bytes = self.take_to(b"\r\n\r\n", until)?;
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        let code = text.split(' ').nth(1).and_then(|word| word.parse().ok());
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.split_once(':').filter(|(key, _)| *key == name).map(|(_, rest)| rest.trim()))
        };
        Ok(Head {
            code: code.ok_or_else(|| format!("not HTTP: {text}"))?,
            length: field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0),
            chunked: field("transfer-encoding").is_some_and(|coding| coding.contains("chunked")),
            close: field("connection").is_some_and(|word| word.contains("close")),
        })
    }

    fn body(&mut self, head: &Head, until: Instant) -> Result<Vec<u8>, String> {
        if !head.chunked {
            return self.exactly(head.length, until);
        }
        let mut body = Vec::new();
        loop {
            match self.chunk(until)? {
                0 => {
                    self.take_to(b"\r\n", until)?;
                    return Ok(body);
                }
                size => body.extend(self.exactly(size, until)?),
            }
        }
    }

    fn exactly(&mut self, length: usize, until: Instant) -> Result<Vec<u8>, String> {
        while self.raw.len() < length {
            self.fill(until)?;
        }
        Ok(self.raw.drain(..length).collect())
    }

    /// The size of the next chunk; the line end of the one before is skipped.
    fn chunk(&mut self, until: Instant) -> Result<usize, Broken> {
        loop {
            let line = self.take_to(b"\r\n", until)?;
            let text = String::from_utf8_lossy(&line);
            let size = text.split(';').next().unwrap_or_default().trim();
            if !size.is_empty() {
                return usize::from_str_radix(size, 16).map_err(|_| Broken::Lost(format!("not a chunk: {text}")));
            }
        }
    }
}

/// Time left, never zero: a socket takes that for none at all.
fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}
