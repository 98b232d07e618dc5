//! A registry in this process: an honest one over a layout's blobs, with a hook that may lie. HTTP by hand, since a well-made
//! server would not let us break off, go on for ever or contradict ourselves.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use coracle_images::builder::{Attributes, Compress, Layer, LayerBuilder, Layout, RunConfig};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

/// A request's head.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub headers: HashMap<String, String>,
}

#[derive(Debug, Clone)]
pub enum Body {
    Whole(Vec<u8>),
    /// Breaks off after these; the length header says the second.
    Cut(Vec<u8>, usize),
    /// The same bytes without end, in chunks.
    Endless(Vec<u8>),
    /// Headers, and then silence.
    Silence,
}

#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Body,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: Body::Whole(body.into()) }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: Body) -> Self {
        self.body = body;
        self
    }
}

/// May answer instead of the honest registry; the number counts the requests for the same path.
pub type Hook = Box<dyn Fn(&Asked, usize) -> Option<Reply> + Send + Sync>;

pub struct Registry {
    pub address: SocketAddr,
    pub asked: Arc<Mutex<Vec<Asked>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Shop {
    layout: PathBuf,
    hook: Hook,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Registry {
    /// Serves the blobs of a layout; tags are the names in its index.
    pub async fn start(layout: &Path, hook: Hook) -> Self {
        Self::start_with(layout, hook, None).await
    }

    /// The same behind TLS.
    pub async fn start_with(layout: &Path, hook: Hook, tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let shop = Arc::new(Shop { layout: layout.to_owned(), hook, asked: asked.clone() });
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (shop, tls) = (shop.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                let _ = serve(&shop, stream).await;
                            }
                        }
                        None => drop(serve(&shop, stream).await),
                    }
                });
            }
        });
        Self { address, asked, task }
    }

    /// How often something with this in its path was asked for.
    pub fn count(&self, method: &str, part: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| asked.method == method && asked.path.contains(part)).count()
    }

    pub fn name(&self, rest: &str) -> coracle_images::Reference {
        format!("{}/{rest}", self.address).parse().unwrap()
    }
}

/// One connection, one request.
async fn serve(shop: &Shop, stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let mut words = line.split_whitespace();
    // Not HTTP: somebody tries TLS on a plain port.
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(()) };
    let mut asked = Asked { method: method.into(), path: path.into(), headers: HashMap::new() };
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        asked.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let before = {
        let mut list = shop.asked.lock().unwrap();
        list.push(asked.clone());
        list.iter().filter(|old| old.path == asked.path && old.method == asked.method).count() - 1
    };
    let reply = (shop.hook)(&asked, before).unwrap_or_else(|| honest(&shop.layout, &asked));
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    match &reply.body {
        Body::Whole(bytes) => head += &format!("content-length: {}\r\n", bytes.len()),
        Body::Cut(_, length) => head += &format!("content-length: {length}\r\n"),
        Body::Endless(_) => head += "transfer-encoding: chunked\r\n",
        Body::Silence => head += "content-length: 1000\r\n",
    }
    stream.write_all((head + "\r\n").as_bytes()).await?;
    if asked.method == "HEAD" {
        return stream.flush().await;
    }
    match reply.body {
        Body::Whole(bytes) | Body::Cut(bytes, _) => stream.write_all(&bytes).await?,
        Body::Endless(bytes) => loop {
            stream.write_all(format!("{:x}\r\n", bytes.len()).as_bytes()).await?;
            stream.write_all(&bytes).await?;
            stream.write_all(b"\r\n").await?;
            stream.flush().await?;
        },
        Body::Silence => {
            stream.flush().await?;
            std::future::pending::<()>().await;
        }
    }
    stream.flush().await?;
    stream.shutdown().await
}

fn honest(layout: &Path, asked: &Asked) -> Reply {
    if asked.path == "/v2/" {
        return Reply::new(200, "{}");
    }
    let read =
        |digest: &str| std::fs::read(layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))).ok();
    let missing = || Reply::new(404, r#"{"errors":[{"code":"NOT_FOUND","message":"no"}]}"#);
    if let Some((_, name)) = asked.path.split_once("/manifests/") {
        let index: serde_json::Value =
            serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
        let tagged = index["manifests"].as_array().unwrap().iter().find(|entry| {
            entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap().ends_with(&format!(":{name}"))
        });
        let digest = tagged.map_or(name, |entry| entry["digest"].as_str().unwrap()).to_owned();
        let Some(bytes) = read(&digest) else { return missing() };
        let kind: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let media_type = kind["mediaType"].as_str().unwrap_or("application/octet-stream").to_owned();
        return Reply::new(200, bytes).header("docker-content-digest", digest).header("content-type", media_type);
    }
    let Some(bytes) = asked.path.split_once("/blobs/").and_then(|(_, digest)| read(digest)) else { return missing() };
    match asked
        .headers
        .get("range")
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok())
    {
        Some(from) => Reply::new(206, &bytes[from..])
            .header("content-range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
        None => Reply::new(200, bytes),
    }
}

/// A layout with `app:1`: a small layer and one of about a megabyte that does not compress.
pub fn sample(dir: &Path) -> (Layout, Layer, Layer) {
    let layout = Layout::create(dir).unwrap();
    let mut noise = Vec::with_capacity(1 << 20);
    let mut state = 88_172_645_463_325_252u64;
    while noise.len() < 1 << 20 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    let mut small = LayerBuilder::new();
    small.file("etc/app", "app", Attributes::mode(0o644));
    let mut large = LayerBuilder::new();
    large.file("data/noise", noise, Attributes::mode(0o644));
    let small = layout.layer(&small, Compress::Gzip).unwrap();
    let large = layout.layer(&large, Compress::Gzip).unwrap();
    layout
        .image(
            "example.com/app:1",
            &RunConfig { cmd: vec!["/app".into()], ..RunConfig::default() },
            &[small.clone(), large.clone()],
        )
        .unwrap();
    (layout, small, large)
}
