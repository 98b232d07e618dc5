//! Who has a port: for the message to somebody who wants it too.

use std::collections::HashSet;

/// A protocol with ports, as the kernel's tables call it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Listening sockets.
    Tcp,
    /// Bound sockets.
    Udp,
}

/// `process 812 (nginx)`: who listens on this port of this network namespace on any address. `None` when nobody does, or it is
/// somebody we may not look at.
#[must_use]
pub fn holder(transport: Transport, port: u16) -> Option<String> {
    let (tables, state) = match transport {
        Transport::Tcp => (["tcp", "tcp6"], "0A"),
        Transport::Udp => (["udp", "udp6"], "07"),
    };
    let mut sockets = HashSet::new();
    for table in tables {
        let text = std::fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
        sockets.extend(text.lines().filter_map(|line| socket(line, state, port)));
    }
    if sockets.is_empty() {
        return None;
    }
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    processes.map(|entry| entry.path()).find_map(|process| {
        let pid: u32 = process.file_name()?.to_str()?.parse().ok()?;
        let fds = std::fs::read_dir(process.join("fd")).ok()?.flatten();
        let mut links = fds.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        links.find(|link| sockets.contains(&*link.to_string_lossy()))?;
        let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
        Some(format!("process {pid} ({})", name.trim()))
    })
}

/// The socket of a line of /proc/net/tcp and its like, as /proc/PID/fd names it, if it has this state and local port.
fn socket(line: &str, state: &str, port: u16) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (_, local) = words.get(1)?.rsplit_once(':')?;
    let ours = u16::from_str_radix(local, 16).ok()? == port && *words.get(3)? == state;
    ours.then(|| format!("socket:[{}]", words.get(9).unwrap_or(&"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_and_a_free_port_has_none() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let (tcp_port, udp_port) = (tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port());
        let us = format!("process {} (", std::process::id());
        assert!(holder(Transport::Tcp, tcp_port).unwrap().starts_with(&us));
        assert!(holder(Transport::Udp, udp_port).unwrap().starts_with(&us));
        drop(tcp);
        assert_eq!(holder(Transport::Tcp, tcp_port), None);
    }
}
