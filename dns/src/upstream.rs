//! Asking upstream servers: one question, several servers, UDP first and TCP for long answers.

use std::io;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::time::Instant;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{LowerName, Name};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::cache::{Answer, Key};
use crate::config::{MAX_UDP_BYTES, UPSTREAM_REST, UPSTREAM_TIMEOUT, UPSTREAM_TRIES, Upstreams};
use crate::resolv::ResolvFile;
use crate::sockets::{Sockets, Wish};

/// The upstream servers and how they did of late.
pub(crate) struct Upstream {
    sockets: Sockets,
    source: Mutex<Source>,
}

struct Source {
    servers: Servers,
    /// Servers that did not answer, and when they may be asked first again.
    resting: Vec<(SocketAddr, Instant)>,
}

enum Servers {
    Fixed(Vec<SocketAddr>),
    File(ResolvFile),
}

impl Upstream {
    /// `own` are addresses we listen on: never asked.
    pub(crate) fn new(upstreams: Upstreams, own: &[SocketAddr], sockets: Sockets) -> Upstream {
        let servers = match upstreams {
            Upstreams::Fixed(servers) => Servers::Fixed(servers.into_iter().filter(|s| !own.contains(s)).collect()),
            Upstreams::File(path) => Servers::File(ResolvFile::new(path, own.iter().map(SocketAddr::ip).collect())),
        };
        Upstream { sockets, source: Mutex::new(Source { servers, resting: Vec::new() }) }
    }

    /// The answer of the first server that gives a usable one. `None`: none did.
    pub(crate) async fn ask(&self, key: &Key) -> Option<Answer> {
        let servers = self.servers();
        let mut last = None;
        for server in servers.iter().cycle().take(UPSTREAM_TRIES) {
            match self.ask_one(*server, key).await {
                Ok(answer) if matches!(answer.code, ResponseCode::NoError | ResponseCode::NXDomain) => {
                    return Some(answer);
                }
                // Another server may know better.
                Ok(answer) => last = Some(answer),
                Err(error) => {
                    tracing::debug!(%server, name = %key.name, %error, "upstream did not answer");
                    self.rest(*server);
                }
            }
        }
        last
    }

    /// The servers in the order to ask them: those that failed lately come last.
    fn servers(&self) -> Vec<SocketAddr> {
        let mut source = self.source.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = Instant::now();
        source.resting.retain(|(_, until)| *until > now);
        let servers = match &mut source.servers {
            Servers::Fixed(servers) => servers.clone(),
            Servers::File(file) => file.servers(),
        };
        let resting = |server: &SocketAddr| source.resting.iter().any(|(rests, _)| rests == server);
        let (last, mut first): (Vec<_>, Vec<_>) = servers.into_iter().partition(resting);
        first.extend(last);
        first
    }

    fn rest(&self, server: SocketAddr) {
        let mut source = self.source.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        source.resting.retain(|(rests, _)| *rests != server);
        source.resting.push((server, Instant::now() + UPSTREAM_REST));
    }

    async fn ask_one(&self, server: SocketAddr, key: &Key) -> io::Result<Answer> {
        let id = rand::random();
        let question = question(id, key);
        let by_udp = timeout(UPSTREAM_TIMEOUT, self.by_udp(server, &question, id, key)).await??;
        let message = match by_udp.metadata.truncation {
            true => timeout(UPSTREAM_TIMEOUT, self.by_tcp(server, &question, id, key)).await??,
            false => by_udp,
        };
        Ok(Answer {
            code: message.metadata.response_code,
            authentic: message.metadata.authentic_data,
            answers: message.answers,
            authorities: message.authorities,
            additionals: message.additionals,
        })
    }

    /// A socket for each question: its port is random, and the kernel drops what other addresses send to it.
    async fn by_udp(&self, server: SocketAddr, question: &[u8], id: u16, key: &Key) -> io::Result<Message> {
        let socket = self.sockets.udp(Wish::To(server)).await?;
        socket.send(question).await?;
        let mut buffer = vec![0; 4096];
        loop {
            let length = socket.recv(&mut buffer).await?;
            // What does not fit the question is somebody's guess: the true answer may still come.
            if let Some(message) = matching(&buffer[..length], id, key) {
                return Ok(message);
            }
        }
    }

    async fn by_tcp(&self, server: SocketAddr, question: &[u8], id: u16, key: &Key) -> io::Result<Message> {
        let mut stream = self.sockets.connect(server).await?;
        let mut framed = (question.len() as u16).to_be_bytes().to_vec();
        framed.extend_from_slice(question);
        stream.write_all(&framed).await?;
        let length = stream.read_u16().await?;
        let mut buffer = vec![0; usize::from(length)];
        stream.read_exact(&mut buffer).await?;
        matching(&buffer, id, key).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not the answer asked for"))
    }
}

fn question(id: u16, key: &Key) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = key.checking_disabled;
    message.add_query(Query::query(Name::from(&key.name), key.kind));
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_UDP_BYTES).set_dnssec_ok(key.dnssec_ok);
    message.set_edns(edns);
    message.to_vec().unwrap_or_default()
}

/// The message, if it answers exactly what was asked.
fn matching(bytes: &[u8], id: u16, key: &Key) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    let right = message.metadata.id == id && message.metadata.message_type == MessageType::Response;
    let [query] = message.queries.as_slice() else { return None };
    let same = LowerName::new(query.name()) == key.name && query.query_type() == key.kind;
    (right && same).then_some(message)
}
