//! A running server and real packets: cluster names, forwarding on good and bad days, limits, and other people's
//! resolvers.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use coracle_dns::{DnsConfig, DnsServer, Endpoint, Port, ServiceRecord, Target, Upstreams, Zone, ZoneInput};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(10);

fn zone() -> Zone {
    let service = |name: &str, target| ServiceRecord { namespace: "default".to_owned(), name: name.to_owned(), target };
    let ports = vec![Port { name: "http".to_owned(), protocol: "TCP".to_owned(), port: 80 }];
    let endpoint = |i: u32| Endpoint { address: Ipv4Addr::from(0x0a2a_0002 + i), hostname: None, ports: Vec::new() };
    Zone::build(&ZoneInput {
        domain: "cluster.local".to_owned(),
        services: vec![
            service("web", Target::Cluster { address: Ipv4Addr::new(10, 43, 0, 10), ports }),
            service("many", Target::Headless { endpoints: (0..120).map(endpoint).collect() }),
            service("out", Target::External { name: "www.example.org".to_owned() }),
        ],
        ..ZoneInput::default()
    })
    .unwrap()
}

fn config(upstreams: Vec<SocketAddr>, zone: Option<Zone>) -> DnsConfig {
    DnsConfig {
        listen: vec!["127.0.0.1:0".parse().unwrap()],
        upstreams: Upstreams::Fixed(upstreams),
        zone: Arc::new(ArcSwapOption::from_pointee(zone)),
        domain: "cluster.local".to_owned(),
        netns: None,
    }
}

async fn start(upstreams: Vec<SocketAddr>) -> DnsServer {
    DnsServer::start(config(upstreams, Some(zone()))).await.unwrap()
}

fn question(name: &str, kind: RecordType, edns: Option<u16>) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if let Some(size) = edns {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    message
}

async fn ask_udp(server: &DnsServer, message: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&message.to_vec().unwrap(), server.addresses()[0]).await.unwrap();
    let mut buffer = [0; 4096];
    let length = timeout(LIMIT, socket.recv(&mut buffer)).await.unwrap().unwrap();
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(answer.metadata.id, message.metadata.id);
    answer
}

async fn ask(server: &DnsServer, name: &str, kind: RecordType) -> Message {
    ask_udp(server, &question(name, kind, None)).await
}

async fn write_framed(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(&(bytes.len() as u16).to_be_bytes()).await?;
    stream.write_all(bytes).await
}

async fn read_framed(stream: &mut TcpStream) -> io::Result<Message> {
    let length = timeout(LIMIT, stream.read_u16()).await??;
    let mut bytes = vec![0; usize::from(length)];
    timeout(LIMIT, stream.read_exact(&mut bytes)).await??;
    Ok(Message::from_vec(&bytes).unwrap())
}

/// An upstream server whose answers a closure makes; no answer for `None`. Counts what it is asked.
async fn upstream(
    make: impl Fn(Message, usize) -> Option<Vec<Message>> + Send + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let number = counted.fetch_add(1, Ordering::SeqCst);
            for answer in make(asked, number).into_iter().flatten() {
                socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
            }
        }
    });
    (address, count)
}

fn reply(asked: &Message, code: ResponseCode) -> Message {
    let mut answer = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
    answer.metadata.response_code = code;
    answer.add_queries(asked.queries.clone());
    answer
}

fn with_address(asked: &Message, ttl: u32, last: u8) -> Message {
    let mut answer = reply(asked, ResponseCode::NoError);
    let name = asked.queries[0].name().clone();
    answer.add_answer(Record::from_rdata(name, ttl, RData::A(A(Ipv4Addr::new(192, 0, 2, last)))));
    answer
}

fn addresses(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test]
async fn cluster_names_are_answered_here() {
    let server = start(Vec::new()).await;
    let answer = ask(&server, "web.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(addresses(&answer), ["10.43.0.10"]);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    let answer = ask(&server, "web.default.svc.cluster.local.", RecordType::AAAA).await;
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
    assert_eq!(answer.authorities[0].record_type(), RecordType::SOA, "NODATA carries the SOA");
    let answer = ask(&server, "nope.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    let metrics = server.metrics();
    assert_eq!((metrics.udp, metrics.codes[0], metrics.codes[3]), (3, 2, 1));
    server.shutdown().await;
}

#[tokio::test]
async fn without_a_table_cluster_names_fail_and_others_work() {
    let (up, _) = upstream(|asked, _| Some(vec![with_address(&asked, 60, 1)])).await;
    let config = config(vec![up], None);
    let table = config.zone.clone();
    let server = DnsServer::start(config).await.unwrap();
    let name = "web.default.svc.cluster.local.";
    for question in [name, "10.0.43.10.in-addr.arpa."] {
        assert_eq!(ask(&server, question, RecordType::A).await.metadata.response_code, ResponseCode::ServFail);
    }
    assert_eq!(addresses(&ask(&server, "example.org.", RecordType::A).await), ["192.0.2.1"]);
    table.store(Some(Arc::new(zone())));
    assert_eq!(addresses(&ask(&server, name, RecordType::A).await), ["10.43.0.10"]);
}

#[tokio::test]
async fn long_answers_come_by_tcp() {
    let server = start(Vec::new()).await;
    let name = "many.default.svc.cluster.local.";
    for edns in [None, Some(4096)] {
        let answer = ask_udp(&server, &question(name, RecordType::A, edns)).await;
        assert!(answer.metadata.truncation && answer.answers.is_empty());
    }
    let mut stream = TcpStream::connect(server.addresses()[0]).await.unwrap();
    let mut orders = HashSet::new();
    for _ in 0..3 {
        write_framed(&mut stream, &question(name, RecordType::A, None).to_vec().unwrap()).await.unwrap();
        let answer = read_framed(&mut stream).await.unwrap();
        assert_eq!(answer.answers.len(), 120);
        orders.insert(addresses(&answer)[0].clone());
    }
    assert_eq!(orders.len(), 3, "each answer starts with another endpoint");
}

#[tokio::test]
async fn other_names_are_forwarded_and_kept() {
    let (up, asked) = upstream(|asked, _| {
        let mut answer = reply(&asked, ResponseCode::NXDomain);
        match asked.queries[0].name().to_ascii().to_lowercase().as_str() {
            "no.example.org." => {
                let zone = Name::from_ascii("example.org.").unwrap();
                let soa = SOA::new(zone.clone(), zone.clone(), 1, 1, 1, 1, 60);
                answer.add_authority(Record::from_rdata(zone, 60, RData::SOA(soa)));
                Some(vec![answer])
            }
            _ => Some(vec![with_address(&asked, 60, 7)]),
        }
    })
    .await;
    let server = start(vec![up]).await;
    for name in ["www.example.org.", "WWW.example.org.", "www.EXAMPLE.org."] {
        let answer = ask(&server, name, RecordType::A).await;
        assert_eq!(addresses(&answer), ["192.0.2.7"]);
        assert!(!answer.metadata.authoritative);
        assert_eq!(answer.queries[0].name().to_ascii(), name, "the question comes back as it was asked");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1, "asked once, then kept");
    for _ in 0..2 {
        let answer = ask(&server, "no.example.org.", RecordType::A).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2, "\"no such name\" is kept too");
    let answer = ask(&server, "out.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(addresses(&answer), ["www.example.org.", "192.0.2.7"], "an alias is followed out of the zone");
    assert_eq!(server.metrics().cache_hits, 4);
}

#[tokio::test]
async fn equal_questions_are_asked_once() {
    let (release, held) = tokio::sync::watch::channel(false);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let up = socket.local_addr().unwrap();
    let upstream = tokio::spawn(async move {
        let mut buffer = [0; 4096];
        let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
        let asked = Message::from_vec(&buffer[..length]).unwrap();
        held.clone().wait_for(|go| *go).await.unwrap();
        socket.send_to(&with_address(&asked, 60, 9).to_vec().unwrap(), from).await.unwrap();
        socket.try_recv_from(&mut buffer).is_ok()
    });
    let server = Arc::new(start(vec![up]).await);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let server = server.clone();
        asking.spawn(async move { addresses(&ask(&server, "slow.example.org.", RecordType::A).await) });
    }
    timeout(LIMIT, async {
        while server.metrics().coalesced < 19 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    release.send(true).unwrap();
    while let Some(answer) = asking.join_next().await {
        assert_eq!(answer.unwrap(), ["192.0.2.9"]);
    }
    assert!(!upstream.await.unwrap(), "no second question");
}

#[tokio::test]
async fn a_silent_or_failing_server_is_passed_over() {
    let (silent, asked_silent) = upstream(|_, _| None).await;
    let (failing, _) = upstream(|asked, _| Some(vec![reply(&asked, ResponseCode::ServFail)])).await;
    let (good, _) = upstream(|asked, _| Some(vec![with_address(&asked, 60, 3)])).await;
    let server = start(vec![silent, failing, good]).await;
    assert_eq!(addresses(&ask(&server, "a.example.org.", RecordType::A).await), ["192.0.2.3"]);
    assert_eq!(addresses(&ask(&server, "b.example.org.", RecordType::A).await), ["192.0.2.3"]);
    assert_eq!(asked_silent.load(Ordering::SeqCst), 1, "the silent one is asked last for a while");
}

#[tokio::test]
async fn an_expired_answer_is_better_than_none() {
    let (up, _) = upstream(|asked, number| (number == 0).then(|| vec![with_address(&asked, 1, 4)])).await;
    let server = start(vec![up]).await;
    assert_eq!(addresses(&ask(&server, "a.example.org.", RecordType::A).await), ["192.0.2.4"]);
    timeout(LIMIT, async {
        while server.metrics().stale == 0 {
            let answer = ask(&server, "a.example.org.", RecordType::A).await;
            assert_eq!(addresses(&answer), ["192.0.2.4"], "first from the cache, then stale; never a failure");
        }
    })
    .await
    .unwrap();
    let answer = ask(&server, "b.example.org.", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(server.metrics().forward_failures >= 2);
}

#[tokio::test]
async fn guessed_answers_are_not_believed() {
    let (up, _) = upstream(|asked, _| {
        let mut wrong_id = with_address(&asked, 60, 66);
        wrong_id.metadata.id ^= 1;
        let mut wrong_name = with_address(&asked, 60, 67);
        wrong_name.queries[0].set_name(Name::from_ascii("evil.example.").unwrap());
        let mut no_answer = with_address(&asked, 60, 68);
        no_answer.metadata.message_type = MessageType::Query;
        Some(vec![wrong_id, wrong_name, no_answer, with_address(&asked, 60, 5)])
    })
    .await;
    let server = start(vec![up]).await;
    assert_eq!(addresses(&ask(&server, "a.example.org.", RecordType::A).await), ["192.0.2.5"]);
}

#[tokio::test]
async fn a_truncated_upstream_answer_is_fetched_by_tcp() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let udp = UdpSocket::bind(address).await.unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        let (length, from) = udp.recv_from(&mut buffer).await.unwrap();
        let mut short = reply(&Message::from_vec(&buffer[..length]).unwrap(), ResponseCode::NoError);
        short.metadata.truncation = true;
        udp.send_to(&short.to_vec().unwrap(), from).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let asked = read_framed(&mut stream).await.unwrap();
        write_framed(&mut stream, &with_address(&asked, 60, 8).to_vec().unwrap()).await.unwrap();
    });
    let server = start(vec![address]).await;
    assert_eq!(addresses(&ask(&server, "long.example.org.", RecordType::A).await), ["192.0.2.8"]);
}

#[tokio::test]
async fn noise_is_dropped_and_the_server_goes_on() {
    let server = start(Vec::new()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for length in [0, 1, 11, 12, 13, 511, 4096, 60_000] {
        let noise: Vec<u8> = (0..length).map(|i| (i * 31 + 128) as u8).collect();
        socket.send_to(&noise, server.addresses()[0]).await.unwrap();
    }
    assert_eq!(addresses(&ask(&server, "web.default.svc.cluster.local.", RecordType::A).await), ["10.43.0.10"]);
    let mut stream = TcpStream::connect(server.addresses()[0]).await.unwrap();
    write_framed(&mut stream, &[0x80; 40]).await.unwrap();
    assert!(read_framed(&mut stream).await.is_err(), "an answer sent to us ends the connection");
    assert_eq!(ask(&server, "example.org.", RecordType::A).await.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn one_client_cannot_have_all_connections() {
    let server = start(Vec::new()).await;
    let packet = question("web.default.svc.cluster.local.", RecordType::A, None).to_vec().unwrap();
    let mut open = Vec::new();
    for _ in 0..32 {
        let mut stream = TcpStream::connect(server.addresses()[0]).await.unwrap();
        write_framed(&mut stream, &packet).await.unwrap();
        read_framed(&mut stream).await.unwrap();
        open.push(stream);
    }
    let mut refused = TcpStream::connect(server.addresses()[0]).await.unwrap();
    assert!(timeout(LIMIT, refused.read_u8()).await.unwrap().is_err(), "closed at once");
    drop(open.pop());
    timeout(LIMIT, async {
        loop {
            let mut stream = TcpStream::connect(server.addresses()[0]).await.unwrap();
            drop(write_framed(&mut stream, &packet).await);
            if read_framed(&mut stream).await.is_ok() {
                return;
            }
        }
    })
    .await
    .expect("a closed connection makes room");
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let server = start(Vec::new()).await;
    let mut second = config(Vec::new(), None);
    second.listen = server.addresses().to_vec();
    let Err(error) = DnsServer::start(second).await else { panic!("two servers at one address") };
    assert!(error.to_string().starts_with("listening on 127.0.0.1:"), "{error}");
    let mut bad = config(Vec::new(), None);
    bad.domain = String::new();
    assert!(DnsServer::start(bad).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn dig_agrees() {
    if Command::new("dig").arg("-v").output().is_err() {
        println!("SKIP: no dig");
        return;
    }
    let server = start(Vec::new()).await;
    let port = server.addresses()[0].port().to_string();
    let dig = |arguments: &[&str]| {
        let output = Command::new("dig").args(["@127.0.0.1", "-p", &port]).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(dig(&["+short", "web.default.svc.cluster.local"]), "10.43.0.10\n");
    assert_eq!(
        dig(&["+short", "SRV", "_http._tcp.web.default.svc.cluster.local"]),
        "0 100 80 web.default.svc.cluster.local.\n"
    );
    assert_eq!(dig(&["+short", "-x", "10.43.0.10"]), "web.default.svc.cluster.local.\n");
    assert_eq!(dig(&["+short", "many.default.svc.cluster.local"]).lines().count(), 120, "dig goes on by TCP");
    let nodata = dig(&["AAAA", "web.default.svc.cluster.local"]);
    assert!(nodata.contains("status: NOERROR") && nodata.contains("SOA"), "{nodata}");
    assert!(dig(&["x.y.svc.cluster.local"]).contains("status: NXDOMAIN"));
    assert!(dig(&["AXFR", "cluster.local"]).contains("Transfer failed"));
    assert!(dig(&["+edns=1", "+noednsneg", "web.default.svc.cluster.local"]).contains("BADVERS"));
}

/// The system's own resolver with a pod's resolv.conf, in namespaces of its own: the search list leads to the service.
#[tokio::test(flavor = "multi_thread")]
async fn the_c_library_walks_the_search_list() {
    let netns = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("the tests need root");
        // The C library asks for no IPv4 addresses where there is none but loopback.
        for arguments in ["link set lo up", "addr add 10.42.0.2/32 dev lo"] {
            assert!(Command::new("ip").args(arguments.split(' ')).status().unwrap().success());
        }
        std::os::fd::OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap())
    });
    let netns = Arc::new(netns.join().unwrap());
    let mut config = config(Vec::new(), Some(zone()));
    config.listen = vec!["127.0.0.1:53".parse().unwrap()];
    config.netns = Some(netns.clone());
    let _server = DnsServer::start(config).await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let text =
        "nameserver 127.0.0.1\nsearch default.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n";
    std::fs::write(file.path(), text).unwrap();
    let getent = |name: &str| {
        let script = format!("mount --bind {} /etc/resolv.conf && exec getent ahostsv4 {name}", file.path().display());
        let netns = netns.clone();
        let thread = std::thread::spawn(move || {
            nix::sched::setns(&*netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap()
        });
        let output = thread.join().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        (String::from_utf8(output.stdout).unwrap(), errors)
    };
    for name in ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local"] {
        let (found, errors) = getent(name);
        if errors.contains("mount") || errors.contains("unshare") {
            println!("SKIP: cannot mount a resolv.conf: {errors}");
            return;
        }
        assert!(found.starts_with("10.43.0.10"), "{name}: {found} {errors}");
    }
    assert_eq!(getent("nope").0, "");
}
