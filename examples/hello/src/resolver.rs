//! A DNS client of the smallest useful size: A records over UDP (TCP when the answer is cut), search list and `ndots`
//! (RFC 1035, resolv.conf(5)).

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// What `/etc/resolv.conf` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    pub servers: Vec<SocketAddr>,
    pub search: Vec<String>,
    pub ndots: usize,
    pub timeout: Duration,
    pub attempts: usize,
}

/// How one question ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Addresses(Vec<Ipv4Addr>),
    /// The name does not exist, or has no A record: the next name of the search list may.
    Nothing,
    /// The server cannot say: another one may.
    Failed(String),
}

impl Config {
    pub fn parse(text: &str) -> Self {
        let mut config =
            Self { servers: Vec::new(), search: Vec::new(), ndots: 1, timeout: Duration::from_secs(2), attempts: 2 };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // No more than three are used, as in every resolver.
                    if let Some(Ok(address)) = words.next().map(str::parse::<IpAddr>)
                        && config.servers.len() < 3
                    {
                        config.servers.push(SocketAddr::new(address, 53));
                    }
                }
                Some("search" | "domain") => {
                    config.search = words.map(|word| word.trim_end_matches('.').to_owned()).collect()
                }
                Some("options") => words.for_each(|word| config.option(word)),
                _ => {}
            }
        }
        if config.servers.is_empty() {
            config.servers.push(SocketAddr::from((Ipv4Addr::LOCALHOST, 53)));
        }
        config
    }

    fn option(&mut self, word: &str) {
        let Some((name, value)) = word.split_once(':') else { return };
        let Ok(value) = value.parse::<usize>() else { return };
        match name {
            "ndots" => self.ndots = value.min(15),
            "timeout" => self.timeout = Duration::from_secs(value.clamp(1, 30) as u64),
            "attempts" => self.attempts = value.clamp(1, 5),
            _ => {}
        }
    }

    /// The names to ask for, in order: a name with enough dots is asked as it is first, another one last.
    fn names(&self, name: &str) -> Vec<String> {
        if let Some(absolute) = name.strip_suffix('.') {
            return vec![absolute.to_owned()];
        }
        let mut names: Vec<String> = self.search.iter().map(|domain| format!("{name}.{domain}")).collect();
        let at = if name.matches('.').count() >= self.ndots { 0 } else { names.len() };
        names.insert(at, name.to_owned());
        names
    }

    /// The IPv4 addresses of a name.
    pub fn resolve(&self, name: &str) -> Result<Vec<Ipv4Addr>, String> {
        if let Ok(address) = name.parse() {
            return Ok(vec![address]);
        }
        let mut failure = None;
        for full in self.names(name) {
            let Some(question) = question(&full) else { return Err(format!("`{name}` is not a host name")) };
            match self.ask(&question) {
                Answer::Addresses(addresses) => return Ok(addresses),
                Answer::Nothing => {}
                Answer::Failed(why) => failure = Some(why),
            }
        }
        Err(failure.unwrap_or_else(|| format!("nobody is called `{name}` (asked {})", self.names(name).join(", "))))
    }

    fn ask(&self, question: &[u8]) -> Answer {
        let mut failure = String::new();
        for _ in 0..self.attempts {
            for server in &self.servers {
                match exchange(*server, question, self.timeout) {
                    Ok(Answer::Failed(why)) => failure = format!("{server}: {why}"),
                    Ok(answer) => return answer,
                    Err(error) => failure = format!("{server}: {error}"),
                }
            }
        }
        Answer::Failed(failure)
    }
}

/// A query for the A records of `name`, without its id. `None` when it is no name.
fn question(name: &str) -> Option<Vec<u8>> {
    // Recursion desired, one question.
    let mut message = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        message.push(length);
        message.extend_from_slice(label.as_bytes());
    }
    message.extend_from_slice(&[0, 0, 1, 0, 1]);
    (message.len() <= 12 + 255 + 4).then_some(message)
}

/// One question to one server.
fn exchange(server: SocketAddr, question: &[u8], timeout: Duration) -> io::Result<Answer> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    // Connected, so that only this server's packets come in.
    socket.connect(server)?;
    socket.set_read_timeout(Some(timeout))?;
    let mut message = question.to_vec();
    message[..2].copy_from_slice(&random().to_be_bytes());
    socket.send(&message)?;
    let mut buffer = [0u8; 4096];
    // Late answers to someone else's question are skipped, but not for ever.
    for _ in 0..8 {
        let count = socket.recv(&mut buffer)?;
        let Some(reply) = reply_to(&message, &buffer[..count]) else { continue };
        if reply[2] & 2 == 0 {
            return Ok(read(&message, reply));
        }
        let mut stream = TcpStream::connect_timeout(&server, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.write_all(&u16::try_from(message.len()).unwrap_or_default().to_be_bytes())?;
        stream.write_all(&message)?;
        let mut length = [0u8; 2];
        stream.read_exact(&mut length)?;
        let mut whole = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut whole)?;
        return Ok(reply_to(&message, &whole)
            .map_or_else(|| Answer::Failed("a strange answer over TCP".into()), |reply| read(&message, reply)));
    }
    Err(io::Error::other("only strange answers"))
}

/// The packet, if it answers this question: same id, a response, the question repeated.
fn reply_to<'a>(message: &[u8], packet: &'a [u8]) -> Option<&'a [u8]> {
    let fits = packet.len() >= message.len()
        && packet[..2] == message[..2]
        && packet[2] & 0x80 != 0
        && packet[4..6] == [0, 1]
        && packet[12..message.len()].eq_ignore_ascii_case(&message[12..]);
    fits.then_some(packet)
}

/// The A records of a reply; aliases are followed by the server, which puts the whole chain in.
fn read(message: &[u8], reply: &[u8]) -> Answer {
    match reply[3] & 15 {
        0 => {}
        3 => return Answer::Nothing,
        code => return Answer::Failed(format!("the name server answers with error {code}")),
    }
    let count = u16::from_be_bytes([reply[6], reply[7]]);
    let mut at = message.len();
    let mut addresses = Vec::new();
    for _ in 0..count {
        let Some((kind, data, next)) = record(reply, at) else { break };
        if kind == 1
            && let Ok(address) = <[u8; 4]>::try_from(data)
        {
            addresses.push(Ipv4Addr::from(address));
        }
        at = next;
    }
    if addresses.is_empty() { Answer::Nothing } else { Answer::Addresses(addresses) }
}

/// Type and data of the record at `at`, and where the next one begins.
fn record(reply: &[u8], mut at: usize) -> Option<(u16, &[u8], usize)> {
    // The owner's name: labels up to a zero, or a pointer, which ends it.
    loop {
        match *reply.get(at)? {
            0 => {
                at += 1;
                break;
            }
            byte if byte & 0xc0 == 0xc0 => {
                at += 2;
                break;
            }
            length => at += 1 + usize::from(length),
        }
    }
    let fixed = reply.get(at..at + 10)?;
    let kind = u16::from_be_bytes([fixed[0], fixed[1]]);
    let length = usize::from(u16::from_be_bytes([fixed[8], fixed[9]]));
    let data = reply.get(at + 10..at + 10 + length)?;
    Some((kind, data, at + 10 + length))
}

/// A number nobody guesses: the standard library seeds its hash maps with one.
fn random() -> u16 {
    use std::hash::{BuildHasher, Hasher};
    let hash = std::collections::hash_map::RandomState::new().build_hasher().finish();
    u16::try_from(hash & 0xffff).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_read_as_everywhere() {
        let config = Config::parse(
            "# comment\nnameserver 10.42.0.1\nnameserver fd00::1\nsearch default.svc.cluster.local svc.cluster.local. cluster.local\noptions ndots:5 timeout:1 edns0\n",
        );
        assert_eq!(config.servers, ["10.42.0.1:53".parse().unwrap(), "[fd00::1]:53".parse::<SocketAddr>().unwrap()]);
        assert_eq!((config.ndots, config.timeout.as_secs()), (5, 1));
        assert_eq!(
            config.names("hello"),
            ["hello.default.svc.cluster.local", "hello.svc.cluster.local", "hello.cluster.local", "hello"]
        );
        assert_eq!(config.names("a.b.c.d.e.f")[0], "a.b.c.d.e.f");
        assert_eq!(config.names("example.com."), ["example.com"]);
        assert_eq!(Config::parse("").servers, ["127.0.0.1:53".parse::<SocketAddr>().unwrap()]);
    }

    /// A name server that knows one name and answers `wrong` first.
    fn server(known: &'static str, address: [u8; 4], noise: bool) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let here = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0u8; 512];
            while let Ok((count, from)) = socket.recv_from(&mut buffer) {
                let asked = &buffer[..count];
                let mut reply = asked.to_vec();
                reply[2] |= 0x80;
                if noise {
                    let mut other = reply.clone();
                    other[0] ^= 0xff;
                    socket.send_to(&other, from).unwrap();
                }
                if asked[12..] == question(known).unwrap()[12..] {
                    reply[7] = 2;
                    // An alias first, then its address, both with compressed names.
                    reply.extend_from_slice(&[0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 5, 0, 2, 0xc0, 12]);
                    reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
                    reply.extend_from_slice(&address);
                } else {
                    reply[3] |= 3;
                }
                socket.send_to(&reply, from).unwrap();
            }
        });
        here
    }

    #[test]
    fn the_search_list_is_walked_and_strange_packets_are_skipped() {
        let mut config = Config::parse("search default.svc.cluster.local svc.cluster.local\noptions ndots:5\n");
        config.servers = vec![server("hello.svc.cluster.local", [10, 43, 0, 9], true)];
        assert_eq!(config.resolve("hello").unwrap(), [Ipv4Addr::new(10, 43, 0, 9)]);
        assert_eq!(config.resolve("10.1.2.3").unwrap(), [Ipv4Addr::new(10, 1, 2, 3)]);
        let error = config.resolve("other").unwrap_err();
        assert!(error.contains("nobody is called `other`"), "{error}");
        assert!(config.resolve("a..b").unwrap_err().contains("not a host name"));
    }

    #[test]
    fn cut_replies_do_not_panic() {
        let message = question("a.b").unwrap();
        let mut reply = message.clone();
        reply[2] |= 0x80;
        reply[7] = 3;
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 1, 2, 3, 4]);
        for end in 0..reply.len() {
            if let Some(reply) = reply_to(&message, &reply[..end]) {
                assert_eq!(read(&message, reply), Answer::Nothing);
            }
        }
        assert_eq!(read(&message, &reply), Answer::Addresses(vec![Ipv4Addr::new(1, 2, 3, 4)]));
    }
}
