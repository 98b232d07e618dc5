//! Figure for PROMISES.md: answers per CPU-second of the server, a client on loopback asking as fast as it is answered.
//!
//! `cargo run --release -p coracle-dns --example dns_bench [seconds]`. The mix is a cluster's: 70 % services, 10 % names of
//! the search walk that do not exist, 10 % SRV, 10 % forwarded names (from the cache).
#![allow(clippy::print_stdout, reason = "the figures are the output")]

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use coracle_dns::{DnsConfig, DnsServer, Port, ServiceRecord, Target, Upstreams, Zone, ZoneInput};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};

const SERVICES: u32 = 5_000;
/// Questions under way at once.
const WINDOW: usize = 32;

fn main() {
    let seconds = std::env::args().nth(1).and_then(|a| a.parse().ok()).unwrap_or(5);
    let started = Instant::now();
    let zone = zone();
    println!("zone of {SERVICES} services built in {:.1} ms", started.elapsed().as_secs_f64() * 1e3);
    let upstream = upstream();
    let server = std::thread::spawn(move || serve(zone, upstream));
    let (address, clock, stop) = server.join().expect("server started");
    let answered = ask(address, Duration::from_secs(seconds));
    let cpu = clock();
    println!(
        "{answered} answers in {seconds} s; server CPU {cpu:.2} s; {:.0} answers per CPU-second",
        answered as f64 / cpu
    );
    drop(stop);
}

type Clock = Box<dyn Fn() -> f64 + Send>;

/// Runs the server on one thread of its own, whose CPU time the clock reads.
fn serve(zone: Zone, upstream: std::net::SocketAddr) -> (std::net::SocketAddr, Clock, std::sync::mpsc::SyncSender<()>) {
    let (ready, started) = std::sync::mpsc::sync_channel(1);
    let (stop, stopped) = std::sync::mpsc::sync_channel::<()>(1);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let tid = std::fs::read_link("/proc/thread-self").expect("own thread");
        runtime.block_on(async move {
            let server = DnsServer::start(DnsConfig {
                listen: vec!["127.0.0.1:0".parse().expect("an address")],
                upstreams: Upstreams::Fixed(vec![upstream]),
                zone: Arc::new(ArcSwapOption::from_pointee(zone)),
                domain: "cluster.local".to_owned(),
                netns: None,
            })
            .await
            .expect("start");
            ready.send((server.addresses()[0], tid)).expect("told");
            drop(tokio::task::spawn_blocking(move || stopped.recv()).await);
        });
    });
    let (address, tid) = started.recv().expect("server started");
    let file = std::path::Path::new("/proc").join(tid).join("schedstat");
    let read = move || {
        let text = std::fs::read_to_string(&file).expect("schedstat");
        text.split(' ').next().and_then(|n| n.parse::<f64>().ok()).expect("nanoseconds") / 1e9
    };
    let before = read();
    (address, Box::new(move || read() - before), stop)
}

fn ask(server: std::net::SocketAddr, time: Duration) -> u64 {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(server).expect("connected");
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a timeout");
    let packets = questions();
    let (mut sent, mut answered, end) = (0, 0, Instant::now() + time);
    let mut buffer = [0; 2048];
    while Instant::now() < end {
        while sent - (answered as usize) < WINDOW {
            socket.send(&packets[sent % packets.len()]).expect("sent");
            sent += 1;
        }
        match socket.recv(&mut buffer) {
            Ok(_) => answered += 1,
            Err(_) => sent = answered as usize, // lost on loopback: only when the receive buffer is full
        }
    }
    answered
}

fn questions() -> Vec<Vec<u8>> {
    let question = |name: String, kind| {
        let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
        message.to_vec().expect("bytes")
    };
    let one = |i: u32| match i % 10 {
        7 => question(format!("www{i}.example.org.default.svc.cluster.local."), RecordType::A),
        8 => question(format!("_http._tcp.svc{}.default.svc.cluster.local.", i % SERVICES), RecordType::SRV),
        9 => question(format!("www{}.example.org.", i % 50), RecordType::A),
        _ => question(format!("svc{}.default.svc.cluster.local.", i % SERVICES), RecordType::A),
    };
    (0..4_000).map(one).collect()
}

fn zone() -> Zone {
    let service = |i: u32| ServiceRecord {
        namespace: "default".to_owned(),
        name: format!("svc{i}"),
        target: Target::Cluster {
            address: Ipv4Addr::from(0x0a2b_0001 + i),
            ports: vec![Port { name: "http".to_owned(), protocol: "TCP".to_owned(), port: 80 }],
        },
    };
    let services = (0..SERVICES).map(service).collect();
    Zone::build(&ZoneInput { domain: "cluster.local".to_owned(), services, ..ZoneInput::default() }).expect("a zone")
}

fn upstream() -> std::net::SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let address = socket.local_addr().expect("an address");
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let asked = Message::from_vec(&buffer[..length]).expect("a question");
            let mut answer = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
            let name = asked.queries[0].name().clone();
            answer.add_queries(asked.queries);
            answer.add_answer(Record::from_rdata(name, 300, RData::A(A(Ipv4Addr::new(192, 0, 2, 1)))));
            socket.send_to(&answer.to_vec().expect("bytes"), from).expect("sent");
        }
    });
    address
}
