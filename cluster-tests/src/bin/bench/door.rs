//! Writes through the front door: our API over TLS, and etcd's JSON gateway without it, by the same client.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_cluster_tests::machine::{Machine, enter, have};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::{Figure, say, spread};

const RUN: Duration = Duration::from_secs(5);

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// Writes a second and latencies of `clients` side by side, milliseconds.
struct Measured {
    rate: f64,
    p50: f64,
    p99: f64,
}

/// Puts small objects as fast as they are answered, each client on one connection in the machine's namespace.
fn drive<C, B>(machine: &Machine, clients: usize, connect: &Arc<C>, request: &Arc<B>) -> Option<Measured>
where
    C: Fn() -> Option<Box<dyn Stream>> + Send + Sync + 'static,
    B: Fn(usize, usize) -> (&'static str, String) + Send + Sync + 'static,
{
    let begun = Instant::now();
    let threads: Vec<_> = (0..clients)
        .map(|client| {
            let (connect, request, namespace) = (connect.clone(), request.clone(), machine.namespace());
            std::thread::spawn(move || -> Option<Vec<f64>> {
                enter(&namespace).ok()?;
                let mut stream = BufReader::new(connect()?);
                let mut times = Vec::new();
                for number in 0.. {
                    let sent = Instant::now();
                    let (path, body) = request(client, number);
                    let head = format!(
                        "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    stream.get_mut().write_all(head.as_bytes()).ok()?;
                    stream.get_mut().flush().ok()?;
                    answer(&mut stream)?;
                    times.push(sent.elapsed().as_secs_f64() * 1e3);
                    if begun.elapsed() > RUN {
                        break;
                    }
                }
                Some(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for thread in threads {
        times.extend(thread.join().ok()??);
    }
    #[allow(clippy::cast_precision_loss)]
    let rate = times.len() as f64 / begun.elapsed().as_secs_f64();
    let (_, p50, p99) = spread(&mut times);
    Some(Measured { rate, p50, p99 })
}

/// Reads one answer to its end; none unless it is a success.
fn answer(stream: &mut BufReader<Box<dyn Stream>>) -> Option<()> {
    let (mut line, mut length) = (String::new(), 0);
    stream.read_line(&mut line).ok()?;
    let fine = line.starts_with("HTTP/1.1 20");
    loop {
        line.clear();
        stream.read_line(&mut line).ok()?;
        if line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().ok()?;
        }
    }
    std::io::copy(&mut stream.take(length), &mut std::io::sink()).ok()?;
    fine.then_some(())
}

/// What a kubeconfig of ours holds: address, and the TLS client made of its certificates.
fn client(machine: &Machine) -> Option<(String, Arc<rustls::ClientConfig>)> {
    let text = std::fs::read_to_string(machine.data().join("admin.kubeconfig")).ok()?;
    let config = coracle_manifests::decode::yaml(&text).ok()?.into_iter().next()?.value;
    let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
    let pem = |value: &serde_json::Value| {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.decode(value.as_str()?).ok()
    };
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem(&cluster["certificate-authority-data"])?).ok()?).ok()?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem(&user["client-certificate-data"])?).collect();
    let key = PrivateKeyDer::from_pem_slice(&pem(&user["client-key-data"])?).ok()?;
    let config =
        rustls::ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(chain.ok()?, key).ok()?;
    Some((cluster["server"].as_str()?.trim_start_matches("https://").to_owned(), Arc::new(config)))
}

fn ours(machine: &Machine, clients: usize, turn: usize) -> Option<Measured> {
    let (address, config) = client(machine)?;
    let connect = move || -> Option<Box<dyn Stream>> {
        let socket = TcpStream::connect(&address).ok()?;
        socket.set_nodelay(true).ok()?;
        let name = ServerName::try_from("localhost").ok()?;
        let session = rustls::ClientConnection::new(config.clone(), name).ok()?;
        Some(Box::new(rustls::StreamOwned::new(session, socket)))
    };
    let request = move |client: usize, number: usize| {
        let body = serde_json::json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("b{turn}-{clients}-{client}-{number}")},
            "data": {"value": "v".repeat(256)},
        });
        ("/api/v1/namespaces/default/configmaps", body.to_string())
    };
    drive(machine, clients, &Arc::new(connect), &Arc::new(request))
}

/// Stops with the bench.
struct Etcd(Child);

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn etcd(machine: &Machine, dir: &Path) -> Option<Etcd> {
    let mut command = machine.command("etcd");
    command.arg("--data-dir").arg(dir).args(["--log-level", "error"]).stdout(Stdio::null()).stderr(Stdio::null());
    let child = Etcd(command.spawn().ok()?);
    let until = Instant::now() + Duration::from_secs(20);
    while machine.http("127.0.0.1:2379", "/health").is_none() {
        if Instant::now() > until {
            return None;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Some(child)
}

fn theirs(machine: &Machine, clients: usize) -> Option<Measured> {
    use base64::Engine as _;
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let connect = || -> Option<Box<dyn Stream>> {
        let socket = TcpStream::connect("127.0.0.1:2379").ok()?;
        socket.set_nodelay(true).ok()?;
        Some(Box::new(socket))
    };
    let request = move |client: usize, number: usize| {
        let key = encode(&format!("b{clients}-{client}-{number}"));
        ("/v3/kv/put", serde_json::json!({"key": key, "value": encode(&"v".repeat(256))}).to_string())
    };
    drive(machine, clients, &Arc::new(connect), &Arc::new(request))
}

/// Objects of 256 bytes, created by 1 and by 64 clients; three turns, ours and theirs in turn.
pub fn writes() -> Vec<Figure> {
    let mut machine = Machine::new();
    machine.up();
    let dir = tempfile::tempdir().ok();
    let peer = dir.as_ref().filter(|_| have("etcd")).and_then(|dir| etcd(&machine, dir.path()));
    let figures = [(1, "API: objects created a second, 1 client"), (64, "API: objects created a second, 64 clients")]
        .into_iter()
        .map(|(clients, what)| {
            let (mut mine, mut peers) = (Vec::new(), Vec::new());
            for turn in 0..3 {
                mine.extend(ours(&machine, clients, turn));
                if peer.is_some() {
                    peers.extend(theirs(&machine, clients));
                }
            }
            figure(what, mine, peers)
        })
        .collect();
    machine.down();
    figures
}

fn figure(what: &'static str, mine: Vec<Measured>, peers: Vec<Measured>) -> Figure {
    let shown = |measured: &[Measured]| {
        let mut rates: Vec<f64> = measured.iter().map(|one| one.rate).collect();
        let (least, median, most) = spread(&mut rates);
        let middle = measured.iter().find(|one| one.rate.total_cmp(&median).is_eq())?;
        let text = format!("{median:.0} ({least:.0} to {most:.0}), p50 {:.2} p99 {:.2} ms", middle.p50, middle.p99);
        Some((median, text))
    };
    let (ours, theirs) = (shown(&mine), shown(&peers));
    let ratio = ours.as_ref().zip(theirs.as_ref()).map_or(f64::NAN, |(ours, theirs)| ours.0 / theirs.0);
    say(Figure {
        what,
        promise: "-",
        peer: theirs.map_or("etcd not installed".to_owned(), |(_, text)| format!("etcd, no TLS: {text} ({ratio:.2}x)")),
        ours: ours.map_or("?".to_owned(), |(_, text)| text),
        kept: None,
    })
}
