//! HTTP/1.1, as much of it as the demo needs: GET, keep-alive, a thread per connection.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::resolver::Config;
use crate::stop::Stop;

/// Connections served at the same time; one more is answered with 503.
const CONNECTIONS: usize = 512;
/// How long a silent connection is kept.
const IDLE: Duration = Duration::from_secs(30);
/// A request's head may have this much.
const HEAD: u64 = 8 << 10;
/// How long open requests may take once the server stops.
const FINISH: Duration = Duration::from_secs(20);

struct Shared {
    name: String,
    address: IpAddr,
    draining: AtomicBool,
    stopped: AtomicBool,
    /// Open connections, and how many of them are in the middle of a request.
    open: Mutex<usize>,
    less: Condvar,
    busy: AtomicUsize,
}

/// Serves until SIGTERM: then goes on for DRAIN_MS (1,000), not ready, so that nobody who still has our address is
/// turned away; then takes nobody new, finishes what is under way and returns.
pub fn run(address: SocketAddr) -> io::Result<()> {
    let stop = Stop::block()?;
    let listener = TcpListener::bind(address)?;
    let shared = Arc::new(Shared {
        name: host_name(),
        address: own_address(),
        draining: AtomicBool::new(false),
        stopped: AtomicBool::new(false),
        open: Mutex::new(0),
        less: Condvar::new(),
        busy: AtomicUsize::new(0),
    });
    let here = listener.local_addr()?;
    crate::datagrams::begin(here.port(), format!("hello from {} ({})", shared.name, shared.address))?;
    println!("{} ({}) listens on port {}", shared.name, shared.address, here.port());
    let watcher = shared.clone();
    std::thread::Builder::new().name("stop".into()).spawn(move || watch(&stop, &watcher, here.port()))?;
    for stream in listener.incoming() {
        if shared.stopped.load(Ordering::Acquire) {
            break;
        }
        // A client that is gone before it was accepted, or a moment without descriptors: neither is a reason to stop.
        let Ok(stream) = stream else { continue };
        accept(&shared, stream);
    }
    drop(listener);
    finish(&shared);
    println!("{} is done", shared.name);
    Ok(())
}

fn watch(stop: &Stop, shared: &Shared, port: u16) {
    let Ok(signal) = stop.wait() else { return };
    let drain = std::env::var("DRAIN_MS").ok().and_then(|text| text.parse().ok()).unwrap_or(1000);
    println!("{signal}: not ready from now on, {drain} ms until the door closes");
    shared.draining.store(true, Ordering::Release);
    std::thread::sleep(Duration::from_millis(drain));
    shared.stopped.store(true, Ordering::Release);
    // The listener waits for a connection; here is one.
    let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
}

fn accept(shared: &Arc<Shared>, mut stream: TcpStream) {
    let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
    if *open >= CONNECTIONS {
        let _ = stream.write_all(b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        return;
    }
    *open += 1;
    drop(open);
    let serving = Leave(shared.clone());
    // When there is no thread to be had, the guard leaves again and the client sees a closed connection.
    let _ = std::thread::Builder::new().name("connection".into()).stack_size(256 << 10).spawn(move || {
        let _ = serve(&serving.0, &stream);
    });
}

/// Counts a connection out when it ends, however it ends.
struct Leave(Arc<Shared>);

impl Drop for Leave {
    fn drop(&mut self) {
        *self.0.open.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.less.notify_all();
    }
}

/// Waits for open requests; connections that only idle are not waited for.
fn finish(shared: &Shared) {
    let until = Instant::now() + FINISH;
    let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
    while *open > 0 && Instant::now() < until {
        if shared.busy.load(Ordering::Acquire) == 0 {
            // Whoever sent a request in this instant is still heard.
            let (guard, _) =
                shared.less.wait_timeout(open, Duration::from_millis(50)).unwrap_or_else(PoisonError::into_inner);
            open = guard;
            if shared.busy.load(Ordering::Acquire) == 0 {
                return;
            }
            continue;
        }
        open = shared.less.wait_timeout(open, Duration::from_millis(20)).unwrap_or_else(PoisonError::into_inner).0;
    }
}

struct Request {
    path: String,
    query: String,
    close: bool,
}

fn serve(shared: &Shared, stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE))?;
    stream.set_write_timeout(Some(IDLE))?;
    stream.set_nodelay(true)?;
    let peer = stream.peer_addr()?;
    let mut reader = BufReader::new(stream);
    loop {
        // Nothing of the next request has come yet: such a connection may be closed at any time.
        if reader.fill_buf()?.is_empty() {
            return Ok(());
        }
        shared.busy.fetch_add(1, Ordering::AcqRel);
        let outcome = one(shared, stream, &mut reader, peer);
        shared.busy.fetch_sub(1, Ordering::AcqRel);
        shared.less.notify_all();
        if outcome? {
            return Ok(());
        }
    }
}

/// One request and its answer; tells whether the connection ends.
fn one(
    shared: &Shared,
    mut stream: &TcpStream,
    reader: &mut BufReader<&TcpStream>,
    peer: SocketAddr,
) -> io::Result<bool> {
    let began = Instant::now();
    let (status, body, close, shown) = match read_request(reader)? {
        Ok(request) => {
            let (status, body) = answer(shared, &request, peer);
            (status, body, request.close, request.path)
        }
        Err(status) => (status, String::new(), true, "-".into()),
    };
    let close = close || shared.draining.load(Ordering::Acquire);
    let connection = if close { "close" } else { "keep-alive" };
    let reply = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: {connection}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(reply.as_bytes())?;
    println!(
        "{} {} {} {:.1} ms",
        peer.ip(),
        shown,
        status.split(' ').next().unwrap_or_default(),
        began.elapsed().as_secs_f64() * 1000.0
    );
    Ok(close)
}

/// The request, or the status that refuses it.
fn read_request(reader: &mut BufReader<&TcpStream>) -> io::Result<Result<Request, &'static str>> {
    let mut head = reader.take(HEAD);
    let mut line = String::new();
    head.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, target, version) = (words.next(), words.next().unwrap_or_default().to_owned(), words.next());
    let (get, old) = (method == Some("GET"), version == Some("HTTP/1.0"));
    let mut close = old;
    loop {
        line.clear();
        if head.read_line(&mut line)? == 0 {
            return Ok(Err("431 Request Header Fields Too Large"));
        }
        let field = line.trim_end().to_ascii_lowercase();
        match field.split_once(':') {
            None if field.is_empty() => break,
            Some(("connection", value)) => close = value.contains("close") || old && !value.contains("keep-alive"),
            // A body would be taken for the next request.
            Some(("content-length" | "transfer-encoding", value)) if value.trim() != "0" => {
                return Ok(Err("413 Content Too Large"));
            }
            _ => {}
        }
    }
    if !get {
        return Ok(Err("405 Method Not Allowed"));
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    // What is logged must stay on its line.
    let path = path.chars().filter(|letter| !letter.is_control()).take(200).collect();
    Ok(Ok(Request { path, query: query.to_owned(), close }))
}

fn answer(shared: &Shared, request: &Request, peer: SocketAddr) -> (&'static str, String) {
    let me = format!("{} ({})", shared.name, shared.address);
    match request.path.as_str() {
        "/" => ("200 OK", format!("hello from {me}\n")),
        "/healthz" => ("200 OK", "ok\n".into()),
        "/ready" if shared.draining.load(Ordering::Acquire) => ("503 Service Unavailable", "draining\n".into()),
        "/ready" => ("200 OK", "ready\n".into()),
        "/client" => ("200 OK", format!("{}\n", peer.ip())),
        "/env" => ("200 OK", environment()),
        "/eat" => ("200 OK", eat(&request.query)),
        "/file" => match file(request.query.strip_prefix("path=").unwrap_or("/")) {
            Ok(text) => ("200 OK", text),
            Err(error) => ("404 Not Found", format!("{error}\n")),
        },
        "/ask" => match ask(&request.query) {
            Ok(text) => ("200 OK", format!("{me} asked {text}\n")),
            Err(error) => ("502 Bad Gateway", format!("{me} cannot ask: {error}\n")),
        },
        _ => (
            "404 Not Found",
            "there are /, /ask?host=NAME&port=80&path=/, /client, /eat?mb=100, /file?path=/etc/hosts, /ready, /healthz and /env\n".into(),
        ),
    }
}

/// Sorted; what looks like a secret is named and not told.
fn environment() -> String {
    let mut variables: Vec<(String, String)> = std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .collect();
    variables.sort();
    let mut text = String::new();
    for (name, value) in variables {
        let secret = ["SECRET", "PASSWORD", "TOKEN", "KEY"].iter().any(|word| name.to_ascii_uppercase().contains(word));
        let _ = writeln!(text, "{name}={}", if secret { "***" } else { &value });
    }
    text
}

/// The first 64 KiB of a file, or the names in a directory.
fn file(path: &str) -> io::Result<String> {
    if !std::fs::metadata(path)?.is_dir() {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(64 << 10).read_to_end(&mut bytes)?;
        return Ok(String::from_utf8_lossy(&bytes).into_owned());
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        names.push(entry?.file_name().to_string_lossy().into_owned() + "\n");
    }
    names.sort();
    Ok(names.concat())
}

/// Takes `mb` megabytes and gives them back: more than the limit, and one sees what then happens to a container.
fn eat(query: &str) -> String {
    let megabytes = query.strip_prefix("mb=").and_then(|text| text.parse().ok()).unwrap_or(1).min(1 << 14);
    let meal: Vec<Vec<u8>> = (0..megabytes).map(|_| vec![1; 1 << 20]).collect();
    format!("ate {} MB\n", meal.len())
}

/// Calls a sibling by its name: `host=hello&port=80&path=/`.
fn ask(query: &str) -> Result<String, String> {
    let parameter = |name: &str| {
        query.split('&').find_map(|part| part.split_once('=').filter(|(key, _)| *key == name)).map(|(_, value)| value)
    };
    let host = parameter("host").filter(|host| !host.is_empty()).ok_or("the query names no `host`")?;
    let port: u16 = parameter("port").unwrap_or("80").parse().map_err(|_| "`port` is not a port")?;
    let path = parameter("path").unwrap_or("/");
    if !path.starts_with('/') || path.contains(|letter: char| letter.is_control() || letter == ' ') {
        return Err("`path` must begin with a slash".into());
    }
    let file = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let addresses = Config::parse(&file).resolve(host)?;
    let mut failure = String::new();
    for address in addresses {
        match fetch(SocketAddr::from((address, port)), host, path) {
            Ok(body) => return Ok(format!("{host} at {address}: {}", body.trim_end())),
            Err(error) => failure = format!("{address}:{port}: {error}"),
        }
    }
    Err(failure)
}

fn fetch(address: SocketAddr, host: &str, path: &str) -> Result<String, String> {
    let words = |error: io::Error| error.to_string();
    let patience = Duration::from_secs(3);
    let mut stream = TcpStream::connect_timeout(&address, patience).map_err(words)?;
    stream.set_read_timeout(Some(patience)).map_err(words)?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n").map_err(words)?;
    let mut text = String::new();
    stream.take(64 << 10).read_to_string(&mut text).map_err(words)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or("it sent no answer")?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status == "200" { Ok(body.to_owned()) } else { Err(format!("it answered {status}")) }
}

pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { std::env::var("HOSTNAME").unwrap_or_else(|_| "somebody".into()) } else { name.to_owned() }
}

/// POD_IP, or the address this machine would use towards its name server (nothing is sent).
fn own_address() -> IpAddr {
    if let Some(address) = std::env::var("POD_IP").ok().and_then(|text| text.parse().ok()) {
        return address;
    }
    let servers = Config::parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()).servers;
    servers
        .iter()
        .find_map(|server| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
            socket.connect(server).ok()?;
            Some(socket.local_addr().ok()?.ip())
        })
        .unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}
