//! The upstream servers in a resolver's configuration file.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Where systemd-resolved keeps the real servers; `/etc/resolv.conf` then names only its stub.
const RESOLVED_FILE: &str = "/run/systemd/resolve/resolv.conf";
const RESOLVED_STUB: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53));
/// More servers than any resolver uses.
const MAX_SERVERS: usize = 8;

/// The servers of the `nameserver` lines of `text`, without those in `own`: a server that forwards to itself is a loop.
pub fn nameservers(text: &str, own: &[IpAddr]) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        // An IPv6 scope (`fe80::1%eth0`) is for links we do not speak to.
        let Some(ip) = words.next().and_then(|word| word.parse::<IpAddr>().ok()) else { continue };
        let server = SocketAddr::new(ip, 53);
        if !own.contains(&ip) && !ip.is_unspecified() && !servers.contains(&server) && servers.len() < MAX_SERVERS {
            servers.push(server);
        }
    }
    servers
}

/// A configuration file that is read again when it changes.
#[derive(Debug)]
pub(crate) struct ResolvFile {
    path: PathBuf,
    own: Vec<IpAddr>,
    read_at: Option<SystemTime>,
    servers: Vec<SocketAddr>,
}

impl ResolvFile {
    pub(crate) fn new(path: PathBuf, own: Vec<IpAddr>) -> ResolvFile {
        ResolvFile { path, own, read_at: None, servers: Vec::new() }
    }

    /// The servers now. A file that cannot be read leaves the last known ones.
    pub(crate) fn servers(&mut self) -> Vec<SocketAddr> {
        let modified = std::fs::metadata(&self.path).and_then(|data| data.modified()).ok();
        if modified.is_some() && modified == self.read_at {
            return self.servers.clone();
        }
        match std::fs::read_to_string(&self.path) {
            Ok(text) => {
                self.servers = self.behind_stub(nameservers(&text, &self.own));
                self.read_at = modified;
            }
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "reading upstream name servers"),
        }
        self.servers.clone()
    }

    /// The servers behind systemd-resolved's stub: one hop less, and no loop if the stub is told to ask us.
    fn behind_stub(&self, servers: Vec<SocketAddr>) -> Vec<SocketAddr> {
        if servers.iter().all(|server| server.ip() != RESOLVED_STUB) {
            return servers;
        }
        let real = std::fs::read_to_string(Path::new(RESOLVED_FILE)).unwrap_or_default();
        let real = nameservers(&real, &self.own);
        if real.is_empty() { servers } else { real }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_nameserver_lines() {
        let text = "# comment\nsearch a b\nnameserver 192.0.2.1\nnameserver\t2001:db8::1 # x\nnameserver 192.0.2.1\n\
                    nameserver 10.42.0.1\nnameserver fe80::1%eth0\nnameserver nonsense\nnameserver\noptions ndots:5\n";
        let own = ["10.42.0.1".parse().unwrap()];
        let expected: Vec<SocketAddr> = vec!["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()];
        assert_eq!(nameservers(text, &own), expected);
        assert!(nameservers("", &own).is_empty());
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "nameserver 192.0.2.1\n").unwrap();
        let mut resolv = ResolvFile::new(file.path().to_owned(), Vec::new());
        assert_eq!(resolv.servers(), ["192.0.2.1:53".parse().unwrap()]);
        std::fs::write(file.path(), "nameserver 192.0.2.2\n").unwrap();
        let later = SystemTime::now() + std::time::Duration::from_secs(2);
        std::fs::File::options().write(true).open(file.path()).unwrap().set_modified(later).unwrap();
        assert_eq!(resolv.servers(), ["192.0.2.2:53".parse().unwrap()]);
        drop(file);
        assert_eq!(resolv.servers(), ["192.0.2.2:53".parse().unwrap()], "a vanished file leaves the last known");
    }
}
