//! The server: one loop per address and protocol, cluster names answered in place, others handed to the forwarder.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use coracle_zone::Zone;
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{LowerName, Name, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::cache::{Answer, Key};
use crate::config::{DnsConfig, DnsError, MAX_CONNECTIONS, MAX_CONNECTIONS_PER_CLIENT, MAX_FORWARDS, TCP_IDLE};
use crate::forward::Forwarder;
use crate::message::{Question, Received, Sections, Transport, encode, receive};
use crate::metrics::{Metrics, MetricsSnapshot};
use crate::sockets::{Sockets, Wish};
use crate::upstream::Upstream;

/// A running name server. Dropping it stops it.
pub struct DnsServer {
    loops: JoinSet<()>,
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
}

struct Shared {
    zone: Arc<ArcSwapOption<Zone>>,
    domain: LowerName,
    forwarder: Forwarder,
    forwards: Arc<Semaphore>,
    connections: Mutex<HashMap<IpAddr, usize>>,
    rotation: AtomicUsize,
    metrics: Arc<Metrics>,
}

impl DnsServer {
    /// Binds all addresses and starts answering. Port 0 picks one, the same for UDP and TCP; see [`Self::addresses`].
    pub async fn start(config: DnsConfig) -> Result<DnsServer, DnsError> {
        let bad_domain = || DnsError::Domain(config.domain.clone());
        let mut domain = Name::from_ascii(&config.domain).map_err(|_| bad_domain())?;
        if domain.num_labels() == 0 {
            return Err(bad_domain());
        }
        domain.set_fqdn(true);
        let sockets = Sockets::new(config.netns).map_err(DnsError::Namespace)?;
        let mut bound = Vec::new();
        for address in config.listen {
            let listen = |protocol| move |source| DnsError::Listen { address, protocol, source };
            let udp = sockets.udp(Wish::Udp(address)).await.map_err(listen("UDP"))?;
            let address = udp.local_addr().map_err(listen("UDP"))?;
            let tcp = sockets.listener(address).await.map_err(listen("TCP"))?;
            bound.push((address, udp, tcp));
        }
        let addresses: Vec<SocketAddr> = bound.iter().map(|(address, _, _)| *address).collect();
        let metrics = Arc::new(Metrics::default());
        let upstream = Upstream::new(config.upstreams, &addresses, sockets);
        let shared = Arc::new(Shared {
            zone: config.zone,
            domain: LowerName::new(&domain),
            forwarder: Forwarder::new(upstream, metrics.clone()),
            forwards: Arc::new(Semaphore::new(MAX_FORWARDS)),
            connections: Mutex::new(HashMap::new()),
            rotation: AtomicUsize::new(0),
            metrics,
        });
        let mut loops = JoinSet::new();
        for (_, udp, tcp) in bound {
            loops.spawn(serve_udp(Arc::new(udp), shared.clone()));
            loops.spawn(serve_tcp(tcp, shared.clone()));
        }
        Ok(DnsServer { loops, shared, addresses })
    }

    /// The addresses as bound.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// What was counted so far.
    pub fn metrics(&self) -> MetricsSnapshot {
        self.shared.metrics.snapshot()
    }

    /// Stops listening and waits until the sockets are closed.
    pub async fn shutdown(mut self) {
        self.loops.shutdown().await;
    }
}

/// Rest after an error of the socket itself, such as no file descriptors left.
const ERROR_PAUSE: Duration = Duration::from_millis(50);

/// What to send at once, or what to go and ask.
enum Reply {
    Now(Vec<u8>),
    Later(Box<Question>, Key, Vec<Record>),
    Nothing,
}

impl Shared {
    /// A packet that makes the reader panic must not end the loop that all clients share.
    fn handle_or_drop(&self, packet: &[u8]) -> Reply {
        catch_unwind(AssertUnwindSafe(|| self.handle(packet, Transport::Udp))).unwrap_or_else(|_| {
            tracing::error!(length = packet.len(), "a DNS packet could not be handled");
            self.metrics.dropped.add();
            Reply::Nothing
        })
    }

    fn handle(&self, packet: &[u8], transport: Transport) -> Reply {
        match receive(packet, transport) {
            Received::Ignore => {
                self.metrics.dropped.add();
                Reply::Nothing
            }
            Received::Refuse(head, query, code) => {
                self.metrics.code(code.into());
                Reply::Now(encode(&head, query.as_ref(), code, &Sections::default()))
            }
            Received::Question(question) => self.answer(question),
        }
    }

    fn answer(&self, question: Box<Question>) -> Reply {
        let zone = self.zone.load();
        let kind = question.query.query_type();
        let Some(zone) = zone.as_deref() else {
            // Not yet told what exists: "no such name" would be a lie that resolvers believe.
            return match self.is_clusters(&question.name) {
                true => self.failure(&question),
                false => self.forward(question, None, Vec::new()),
            };
        };
        let rotation = self.rotation.fetch_add(1, Ordering::Relaxed);
        let Some(answer) = zone.answer(&question.name, kind, rotation) else {
            return self.forward(question, None, Vec::new());
        };
        if let Some(target) = answer.chase {
            let aliases = answer.answers.into_iter().cloned().collect();
            return self.forward(question, Some(LowerName::new(target)), aliases);
        }
        let sections = Sections {
            answers: answer.answers,
            authorities: answer.authority.into_iter().collect(),
            additionals: answer.additionals,
            authoritative: true,
            authentic: false,
        };
        self.metrics.code(answer.code.into());
        Reply::Now(encode(&question.head, Some(&question.query), answer.code, &sections))
    }

    /// Whether a name can only be the cluster's; reverse names may be, and are not asked of strangers meanwhile.
    fn is_clusters(&self, name: &LowerName) -> bool {
        let reverse = Name::from(name).iter().next_back() == Some(b"arpa".as_slice());
        self.domain.zone_of(name) || reverse
    }

    fn failure(&self, question: &Question) -> Reply {
        self.metrics.code(ResponseCode::ServFail.into());
        Reply::Now(encode(&question.head, Some(&question.query), ResponseCode::ServFail, &Sections::default()))
    }

    fn forward(&self, question: Box<Question>, instead: Option<LowerName>, aliases: Vec<Record>) -> Reply {
        let key = Key {
            name: instead.unwrap_or_else(|| question.name.clone()),
            kind: question.query.query_type(),
            dnssec_ok: question.head.dnssec_ok,
            checking_disabled: question.head.checking_disabled,
        };
        match self.forwarder.cached(&key) {
            Some(answer) => Reply::Now(self.forwarded(&question, &aliases, &answer)),
            None => Reply::Later(question, key, aliases),
        }
    }

    /// Asks upstream, unless too many are being asked for already.
    async fn resolve(&self, question: &Question, key: Key, aliases: &[Record]) -> Vec<u8> {
        let answer = match self.forwards.try_acquire() {
            Ok(_permit) => self.forwarder.resolve(key).await,
            Err(_) => Arc::new(Answer::failure()),
        };
        self.forwarded(question, aliases, &answer)
    }

    fn forwarded(&self, question: &Question, aliases: &[Record], answer: &Answer) -> Vec<u8> {
        let sections = Sections {
            answers: aliases.iter().chain(&answer.answers).collect(),
            authorities: answer.authorities.iter().collect(),
            additionals: answer.additionals.iter().collect(),
            authoritative: false,
            authentic: answer.authentic,
        };
        self.metrics.code(answer.code.into());
        encode(&question.head, Some(&question.query), answer.code, &sections)
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = vec![0; 65_535];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error of an earlier answer: the client has gone.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => {
                tracing::warn!(%error, "receiving DNS questions");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        shared.metrics.udp.add();
        match shared.handle_or_drop(&buffer[..length]) {
            Reply::Nothing => {}
            Reply::Now(bytes) => send(&socket, &bytes, client).await,
            // Bounded: `resolve` gives up at once when all permits are taken, so such a task ends at once too.
            Reply::Later(question, key, aliases) => {
                let (socket, shared) = (socket.clone(), shared.clone());
                tokio::spawn(async move {
                    let bytes = shared.resolve(&question, key, &aliases).await;
                    send(&socket, &bytes, client).await;
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, bytes: &[u8], client: SocketAddr) {
    if let Err(error) = socket.send_to(bytes, client).await {
        tracing::debug!(%client, %error, "sending a DNS answer");
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    // Owned here, so that stopping the loop also ends its connections.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a DNS connection");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        if let Some(slot) = Slot::take(&shared, client.ip()) {
            connections.spawn(async move {
                if let Err(error) = converse(stream, &slot.shared).await {
                    tracing::debug!(%client, %error, "DNS connection ended");
                }
            });
        }
    }
}

/// A client's right to one connection; given back when dropped.
struct Slot {
    shared: Arc<Shared>,
    client: IpAddr,
}

impl Slot {
    fn take(shared: &Arc<Shared>, client: IpAddr) -> Option<Slot> {
        let mut connections = shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let total: usize = connections.values().sum();
        let own = connections.get(&client).copied().unwrap_or(0);
        if total >= MAX_CONNECTIONS || own >= MAX_CONNECTIONS_PER_CLIENT {
            return None;
        }
        connections.insert(client, own + 1);
        Some(Slot { shared: shared.clone(), client })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut connections = self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let left = connections.get(&self.client).map_or(0, |count| count - 1);
        match left {
            0 => connections.remove(&self.client),
            left => connections.insert(self.client, left),
        };
    }
}

/// Answers one question after the other until the client goes or is silent for too long.
async fn converse(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let mut length = [0; 2];
        match timeout(TCP_IDLE, stream.read_exact(&mut length)).await? {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let mut packet = vec![0; usize::from(u16::from_be_bytes(length))];
        timeout(TCP_IDLE, stream.read_exact(&mut packet)).await??;
        shared.metrics.tcp.add();
        let bytes = match shared.handle(&packet, Transport::Tcp) {
            // Whoever sends what is no question is not worth a connection.
            Reply::Nothing => return Ok(()),
            Reply::Now(bytes) => bytes,
            Reply::Later(question, key, aliases) => shared.resolve(&question, key, &aliases).await,
        };
        let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
        framed.extend_from_slice(&bytes);
        timeout(TCP_IDLE, stream.write_all(&framed)).await??;
    }
}
