//! Writes through the front door: our API over TLS, and etcd's JSON gateway without it, by the same client.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_cluster_tests::machine::{Machine, enter, have};
use coracle_cluster_tests::site::Site;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::{Figure, resident, say, spread};

const RUN: Duration = Duration::from_secs(5);
/// Clients of each measurement, and how often ours and theirs take turns.
const CLIENTS: [usize; 2] = [1, 64];
const TURNS: usize = 5;
/// With the most clients we want to be so many times as fast.
const AIM: f64 = 2.0;
/// Writes after which memory is looked at, and the objects they are spread over: the first creates each, the others update.
const WRITES: usize = 200_000;
const OBJECTS: usize = 10_000;

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

/// Where the servers are, seen from a namespace. Clients are spread over them, beginning with another in each turn: who leads, and
/// answers fastest, is not known here.
struct Door {
    namespace: PathBuf,
    servers: Vec<SocketAddr>,
}

/// What one client asks.
struct Ask {
    method: &'static str,
    path: String,
    body: String,
}

/// When a measurement ends.
#[derive(Clone, Copy)]
enum Until {
    Time(Duration),
    /// So many requests of each client.
    Requests(usize),
}

/// Writes a second and latencies of all clients, milliseconds.
struct Measured {
    rate: f64,
    p50: f64,
    p99: f64,
}

/// Writes as fast as it is answered, each client on one connection to one of the servers.
fn drive<C, B>(door: &Door, clients: usize, until: Until, connect: &Arc<C>, request: &Arc<B>) -> Option<Measured>
where
    C: Fn(SocketAddr) -> Option<Box<dyn Stream>> + Send + Sync + 'static,
    B: Fn(usize, usize) -> Ask + Send + Sync + 'static,
{
    let begun = Instant::now();
    let threads: Vec<_> = (0..clients)
        .map(|client| {
            let (connect, request, namespace) = (connect.clone(), request.clone(), door.namespace.clone());
            let server = door.servers[client % door.servers.len()];
            std::thread::spawn(move || -> Option<Vec<f64>> {
                enter(&namespace).ok()?;
                let mut stream = BufReader::new(connect(server)?);
                let mut times = Vec::new();
                for number in 0.. {
                    match until {
                        Until::Time(time) if begun.elapsed() > time => break,
                        Until::Requests(requests) if number >= requests => break,
                        _ => {}
                    }
                    let sent = Instant::now();
                    let Ask { method, path, body } = request(client, number);
                    let head = format!(
                        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    stream.get_mut().write_all(head.as_bytes()).ok()?;
                    stream.get_mut().flush().ok()?;
                    answer(&mut stream)?;
                    times.push(sent.elapsed().as_secs_f64() * 1e3);
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

/// The TLS client that a kubeconfig of ours is made for.
fn client(machine: &Machine) -> Option<Arc<rustls::ClientConfig>> {
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
    Some(Arc::new(config))
}

/// Connects as the holder of that kubeconfig, over TLS.
fn over_tls(
    config: Arc<rustls::ClientConfig>,
) -> Arc<impl Fn(SocketAddr) -> Option<Box<dyn Stream>> + Send + Sync + 'static> {
    Arc::new(move |address| -> Option<Box<dyn Stream>> {
        let socket = TcpStream::connect(address).ok()?;
        socket.set_nodelay(true).ok()?;
        let name = ServerName::try_from("localhost").ok()?;
        let session = rustls::ClientConnection::new(config.clone(), name).ok()?;
        Some(Box::new(rustls::StreamOwned::new(session, socket)))
    })
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn config_map(name: &str) -> String {
    let data = serde_json::json!({"value": "v".repeat(256)});
    serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}).to_string()
}

/// Creates ConfigMaps of 256 bytes.
fn ours(door: &Door, config: &Arc<rustls::ClientConfig>, clients: usize, turn: usize) -> Option<Measured> {
    let request = move |client: usize, number: usize| {
        let body = config_map(&format!("b{turn}-{clients}-{client}-{number}"));
        Ask { method: "POST", path: MAPS.to_owned(), body }
    };
    drive(door, clients, Until::Time(RUN), &over_tls(config.clone()), &Arc::new(request))
}

/// Stops with the bench.
struct Etcd(Child);

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// etcd on each of the machines, one cluster; `None` when it is not installed or does not come up.
fn etcd(machines: &[(&Machine, SocketAddr)], dir: &Path) -> Option<Vec<Etcd>> {
    if !have("etcd") {
        return None;
    }
    let peer = |number: usize| format!("http://{}:2380", machines[number].1.ip());
    let cluster: Vec<String> = (0..machines.len()).map(|number| format!("n{number}={}", peer(number))).collect();
    let mut members = Vec::new();
    for (number, (machine, client)) in machines.iter().enumerate() {
        let client = format!("http://{client}");
        let mut command = machine.command("etcd");
        command.args(["--name", &format!("n{number}"), "--data-dir"]).arg(dir.join(format!("n{number}")));
        command.args(["--listen-peer-urls", &peer(number), "--initial-advertise-peer-urls", &peer(number)]);
        command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        command.args(["--initial-cluster", &cluster.join(","), "--initial-cluster-state", "new"]);
        command.args(["--log-level", "error"]).stdout(Stdio::null()).stderr(Stdio::null());
        members.push(Etcd(command.spawn().ok()?));
    }
    let until = Instant::now() + Duration::from_secs(20);
    while machines.iter().any(|(machine, client)| machine.http(&client.to_string(), "/health").is_none()) {
        if Instant::now() > until {
            return None;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Some(members)
}

/// The same through etcd's JSON gateway.
fn theirs(door: &Door, clients: usize, turn: usize) -> Option<Measured> {
    use base64::Engine as _;
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let connect = |address: SocketAddr| -> Option<Box<dyn Stream>> {
        let socket = TcpStream::connect(address).ok()?;
        socket.set_nodelay(true).ok()?;
        Some(Box::new(socket))
    };
    let request = move |client: usize, number: usize| {
        let key = encode(&format!("b{turn}-{clients}-{client}-{number}"));
        let body = serde_json::json!({"key": key, "value": encode(&"v".repeat(256))}).to_string();
        Ask { method: "POST", path: "/v3/kv/put".to_owned(), body }
    };
    drive(door, clients, Until::Time(RUN), &Arc::new(connect), &Arc::new(request))
}

/// Objects of 256 bytes, created by 1 and by 64 clients; ours and theirs in turn, on one server and on three.
pub fn writes() -> Vec<Figure> {
    let mut machine = Machine::new();
    machine.up();
    let here = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let mut figures = turns(
        &[(&machine, here(6443), here(2379))],
        ["API: objects created a second, 1 client", "API: objects created a second, 64 clients"],
    );
    machine.down();
    let mut site = Site::new(3);
    site.form(3, 0);
    let machines: Vec<_> = (1..=3)
        .map(|number| {
            let at = |port: u16| SocketAddr::from((site.address(number), port));
            (site.at(number), at(6443), at(2379))
        })
        .collect();
    figures.extend(turns(
        &machines,
        ["three servers: objects created a second, 1 client", "three servers: objects created a second, 64 clients"],
    ));
    figures
}

/// The turns on these machines: each with the address of our API and of etcd.
fn turns(machines: &[(&Machine, SocketAddr, SocketAddr)], whats: [&'static str; 2]) -> Vec<Figure> {
    let namespace = machines[0].0.namespace();
    let mut mine = Door { namespace: namespace.clone(), servers: machines.iter().map(|(_, ours, _)| *ours).collect() };
    let mut peer = Door { namespace, servers: machines.iter().map(|(_, _, etcd)| *etcd).collect() };
    let config = client(machines[0].0);
    let dir = tempfile::tempdir().ok();
    let at: Vec<_> = machines.iter().map(|(machine, _, etcd)| (*machine, *etcd)).collect();
    let members = dir.as_ref().and_then(|dir| etcd(&at, dir.path()));
    let mut figures = Vec::new();
    for (clients, what) in CLIENTS.into_iter().zip(whats) {
        let mut pairs = Vec::new();
        for turn in 0..TURNS {
            let ours = config.as_ref().and_then(|config| ours(&mine, config, clients, turn));
            let theirs = members.as_ref().and_then(|_| theirs(&peer, clients, turn));
            pairs.push((ours, theirs));
            mine.servers.rotate_left(1);
            peer.servers.rotate_left(1);
        }
        figures.push(figure(what, &pairs, (clients > 1).then_some(AIM)));
    }
    figures
}

/// Memory of a server after many writes to a bounded set of objects.
pub fn memory() -> Figure {
    const WHAT: &str = "resident after 200,000 writes to 10,000 objects of 256 bytes (each created, then updated)";
    let mut machine = Machine::new();
    machine.up();
    let door = Door { namespace: machine.namespace(), servers: vec![SocketAddr::from(([127, 0, 0, 1], 6443))] };
    let clients = CLIENTS[1];
    let (each, objects) = (WRITES / clients, OBJECTS / clients);
    let request = move |client: usize, number: usize| {
        let name = format!("w{client}-{}", number % objects);
        let body = config_map(&name).replace("vvvv", &format!("{:04}", number % 10_000));
        match number < objects {
            true => Ask { method: "POST", path: MAPS.to_owned(), body },
            false => Ask { method: "PUT", path: format!("{MAPS}/{name}"), body },
        }
    };
    let before = resident(machine.pid());
    let config = client(&machine);
    let measured =
        config.and_then(|config| drive(&door, clients, Until::Requests(each), &over_tls(config), &Arc::new(request)));
    let after = resident(machine.pid());
    machine.down();
    let rate = measured.map(|measured| measured.rate);
    say(Figure {
        what: WHAT,
        promise: "< 100 MB",
        peer: "-".to_owned(),
        ours: match rate {
            Some(rate) => format!("{after:.0} MB (before them {before:.0}; {rate:.0} writes a second)"),
            None => "?".to_owned(),
        },
        kept: rate.map(|_| after < 100.0),
    })
}

fn figure(what: &'static str, pairs: &[(Option<Measured>, Option<Measured>)], aim: Option<f64>) -> Figure {
    let ratios = pairs.iter().filter_map(|(ours, theirs)| Some(ours.as_ref()?.rate / theirs.as_ref()?.rate));
    let mut ratios: Vec<f64> = ratios.collect();
    let (least, ratio, most) = spread(&mut ratios);
    let shown = |measured: Vec<&Measured>| {
        let mut rates: Vec<f64> = measured.iter().map(|one| one.rate).collect();
        let (least, median, most) = spread(&mut rates);
        let middle = measured.iter().find(|one| one.rate.total_cmp(&median).is_eq())?;
        Some(format!("{median:.0} ({least:.0} to {most:.0}), p50 {:.2} p99 {:.2} ms", middle.p50, middle.p99))
    };
    let ours = shown(pairs.iter().filter_map(|(ours, _)| ours.as_ref()).collect());
    let theirs = shown(pairs.iter().filter_map(|(_, theirs)| theirs.as_ref()).collect());
    let of = |text: String| format!("etcd, no TLS: {text}; ours are {ratio:.2}x ({least:.2} to {most:.2})");
    say(Figure {
        what,
        promise: if aim.is_some() { ">= 2x etcd" } else { "-" },
        peer: theirs.map_or("etcd not installed".to_owned(), of),
        ours: ours.unwrap_or_else(|| "?".to_owned()),
        kept: aim.filter(|_| !ratios.is_empty()).map(|aim| ratio >= aim),
    })
}
