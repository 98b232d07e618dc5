//! Host names of registries to addresses, by the name servers of `/etc/resolv.conf`. Not by the C library: a static one would
//! load the name services of the machine it happens to run on.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use hyper_util::client::legacy::connect::dns;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

/// How long one name server may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// The resolver of the HTTP client.
#[derive(Debug, Clone, Copy)]
pub struct Resolver;

impl tower::Service<dns::Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: dns::Name) -> Self::Future {
        Box::pin(async move { Ok(resolve(name.as_str()).await?.into_iter()) })
    }
}

async fn resolve(name: &str) -> io::Result<Vec<SocketAddr>> {
    let ports = |addresses: Vec<IpAddr>| addresses.into_iter().map(|address| SocketAddr::new(address, 0)).collect();
    if name == "localhost" || name.ends_with(".localhost") {
        return Ok(ports(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]));
    }
    let hosts = tokio::fs::read_to_string("/etc/hosts").await.unwrap_or_default();
    let known = in_hosts(&hosts, name);
    if !known.is_empty() {
        return Ok(ports(known));
    }
    let conf = tokio::fs::read_to_string("/etc/resolv.conf").await.unwrap_or_default();
    let (servers, search) = read_conf(&conf);
    let mut failure =
        io::Error::new(io::ErrorKind::NotFound, format!("no name server of /etc/resolv.conf knows `{name}`"));
    for full in names(name, &search) {
        for server in &servers {
            match tokio::join!(ask(*server, &full, RecordType::A), ask(*server, &full, RecordType::AAAA)) {
                (Err(error), Err(_)) => failure = error,
                (four, six) => {
                    let found: Vec<IpAddr> = [four.unwrap_or_default(), six.unwrap_or_default()].concat();
                    if !found.is_empty() {
                        return Ok(ports(found));
                    }
                    break;
                }
            }
        }
    }
    Err(failure)
}

fn in_hosts(text: &str, name: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
        })
        .collect()
}

fn read_conf(text: &str) -> (Vec<SocketAddr>, Vec<String>) {
    let (mut servers, mut search) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                servers.extend(
                    words
                        .next()
                        .and_then(|word| word.parse::<IpAddr>().ok())
                        .map(|address| SocketAddr::new(address, 53)),
                );
            }
            Some("search" | "domain") => search = words.take(6).map(str::to_owned).collect(),
            _ => {}
        }
    }
    servers.truncate(3);
    if servers.is_empty() {
        servers.push(SocketAddr::from((Ipv4Addr::LOCALHOST, 53)));
    }
    (servers, search)
}

/// A registry's name has dots, so it is asked as it stands first.
fn names(name: &str, search: &[String]) -> Vec<String> {
    let mut names: Vec<String> =
        search.iter().map(|domain| format!("{name}.{}.", domain.trim_end_matches('.'))).collect();
    let at = if name.contains('.') { 0 } else { names.len() };
    names.insert(at, format!("{}.", name.trim_end_matches('.')));
    names
}

/// One question to one server; an empty list when the name has no such record.
async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> io::Result<Vec<IpAddr>> {
    let name = Name::from_utf8(name).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
    let mut query = Message::new(random(), MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name, kind));
    let bytes = query.to_vec().map_err(|error| io::Error::other(error.to_string()))?;
    let exchange = async {
        let reply = udp(server, &bytes, &query).await?;
        if reply.metadata.truncation { tcp(server, &bytes, &query).await } else { Ok(reply) }
    };
    let reply = tokio::time::timeout(PATIENCE, exchange)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("the name server {server} does not answer")))??;
    match reply.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        code => return Err(io::Error::other(format!("the name server {server} answers {code}"))),
    }
    let addresses = reply.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    });
    Ok(addresses.collect())
}

fn answers(query: &Message, bytes: &[u8]) -> Option<Message> {
    let reply = Message::from_vec(bytes).ok()?;
    let ours = reply.metadata.id == query.metadata.id
        && reply.metadata.message_type == MessageType::Response
        && reply.queries == query.queries;
    ours.then_some(reply)
}

async fn udp(server: SocketAddr, bytes: &[u8], query: &Message) -> io::Result<Message> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let count = socket.recv(&mut buffer).await?;
        if let Some(reply) = answers(query, &buffer[..count]) {
            return Ok(reply);
        }
    }
}

async fn tcp(server: SocketAddr, bytes: &[u8], query: &Message) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    stream.write_u16(u16::try_from(bytes.len()).unwrap_or_default()).await?;
    stream.write_all(bytes).await?;
    let mut buffer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut buffer).await?;
    answers(query, &buffer).ok_or_else(|| io::Error::other("a strange answer over TCP"))
}

/// The standard library seeds its hash maps with unguessable numbers.
fn random() -> u16 {
    use std::hash::{BuildHasher, Hasher};
    let hash = std::collections::hash_map::RandomState::new().build_hasher().finish();
    u16::try_from(hash & 0xffff).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_everywhere() {
        assert_eq!(
            in_hosts("127.0.0.1 localhost # x\n10.0.0.1\tReg.local other\n::1 reg.local\n", "reg.local").len(),
            2
        );
        let (servers, search) = read_conf("nameserver 10.0.0.2\nsearch a.b c.d.\nnameserver bad\n");
        assert_eq!((servers.len(), search.len()), (1, 2));
        assert_eq!(names("registry", &search), ["registry.a.b.", "registry.c.d.", "registry."]);
        assert_eq!(names("r.example.com", &search)[0], "r.example.com.");
    }
}
