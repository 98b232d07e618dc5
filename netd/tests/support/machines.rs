//! Machines with an underlay between them: some on one Ethernet, one behind a router.
//!
//! ```text
//!   1        2        3
//!   |.1      |.2      |.3    192.168.7.0/24
//!  [ ------- switch ------- ]
//!               |.254
//!            router
//!               |.254        192.168.8.0/24
//!               4 .4
//! ```

use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::Duration;

use coracle_netd::{Desired, NetConfig, Netd, Peer, Report, ServiceEntry};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};

use super::{Ns, config, wait};

/// Name of a machine's own link.
pub const UPLINK: &str = "up0";
/// Name of a machine's VXLAN device.
pub const TUNNEL: &str = "cor0-vx";

/// The network between machines.
pub struct Site {
    pub switch: Ns,
    pub router: Ns,
}

/// A machine with one pod.
pub struct Machine {
    pub n: u8,
    pub ns: Ns,
    pub netd: Netd,
    pub pod: Ns,
}

impl Ns {
    /// `ip` with the words of `line`.
    pub fn ip(&self, line: &str) -> String {
        self.run("ip", &line.split_whitespace().collect::<Vec<_>>())
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.fd.as_raw_fd())
    }

    /// A cable: `name` here, `other` there, both up.
    fn cable(&self, name: &str, to: &Ns, other: &str) {
        self.ip(&format!("link add {name} type veth peer name {other}"));
        self.run("ip", &["link", "set", other, "netns", &to.path()]);
        self.ip(&format!("link set {name} up"));
        to.ip(&format!("link set {other} up"));
    }

    /// The MTU of a link.
    pub fn mtu(&self, link: &str) -> u32 {
        let listing = self.ip(&format!("-o link show {link}"));
        let words: Vec<&str> = listing.split_whitespace().collect();
        words[words.iter().position(|word| *word == "mtu").unwrap() + 1].parse().unwrap()
    }

    pub fn has(&self, link: &str) -> bool {
        self.ip("-o link").contains(&format!(": {link}"))
    }

    /// Answers each datagram with itself.
    pub fn serve_echo(&self, port: u16) {
        let socket = self.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        std::thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                drop(socket.send_to(&buffer[..length], from));
            }
        });
    }

    /// Sends a datagram that makes a packet of `size` bytes which nobody may cut up, and wants it back.
    pub fn echo(&self, ip: Ipv4Addr, size: u32) -> std::io::Result<()> {
        let socket = self.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::DO)?;
        socket.set_read_timeout(Some(Duration::from_secs(3)))?;
        let payload: Vec<u8> = (0..size - 28).map(|i| i as u8).collect();
        socket.send_to(&payload, (ip, ECHO))?;
        let mut buffer = vec![0; 65_536];
        let (length, _) = socket.recv_from(&mut buffer)?;
        assert!(buffer[..length] == payload, "another datagram came back");
        Ok(())
    }
}

/// Every pod answers here: TCP with its name, UDP with what it got.
pub const TCP: u16 = 8080;
pub const ECHO: u16 = 7;

pub fn address(n: u8) -> Ipv4Addr {
    if n < 4 { Ipv4Addr::new(192, 168, 7, n) } else { Ipv4Addr::new(192, 168, 8, n) }
}

pub fn pod_ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 42, n, 2)
}

pub fn gateway(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 42, n, 1)
}

pub fn peer(n: u8) -> Peer {
    Peer { node: format!("node-{n}"), pod_cidr: format!("10.42.{n}.0/24").parse().unwrap(), address: address(n) }
}

pub fn machine_config(ns: &Ns, n: u8) -> NetConfig {
    NetConfig { node_cidr: peer(n).pod_cidr, underlay: Some(address(n)), ..config(ns) }
}

impl Site {
    pub fn new() -> Site {
        let (switch, router) = (Ns::new(), Ns::new());
        switch.ip("link add sw0 type bridge");
        switch.ip("link set sw0 up");
        switch.cable("r", &router, "r0");
        switch.ip("link set r master sw0");
        router.ip("addr add 192.168.7.254/24 dev r0");
        router.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
        Site { switch, router }
    }

    /// The namespace of machine `n`, plugged in.
    pub fn plug(&self, n: u8) -> Ns {
        let ns = Ns::new();
        ns.ip("link set lo up");
        if n < 4 {
            self.switch.cable(&format!("m{n}"), &ns, UPLINK);
            self.switch.ip(&format!("link set m{n} master sw0"));
            ns.ip(&format!("addr add {}/24 dev {UPLINK}", address(n)));
            ns.ip("route add default via 192.168.7.254");
        } else {
            self.router.cable(&format!("m{n}"), &ns, UPLINK);
            self.router.ip(&format!("addr add 192.168.8.254/24 dev m{n}"));
            ns.ip(&format!("addr add {}/24 dev {UPLINK}", address(n)));
            ns.ip("route add default via 192.168.8.254");
        }
        ns
    }

    /// Machine `n` with its network and a pod.
    pub fn machine(&self, n: u8) -> Machine {
        Machine::start(n, self.plug(n), |_| {})
    }

    /// These machines, each told of all others.
    pub fn cluster(&self, numbers: &[u8]) -> Vec<Machine> {
        let machines: Vec<Machine> = numbers.iter().map(|n| self.machine(*n)).collect();
        for machine in &machines {
            machine.tell(numbers).unwrap();
        }
        machines
    }
}

impl Machine {
    pub fn start(n: u8, ns: Ns, change: impl FnOnce(&mut NetConfig)) -> Machine {
        let mut config = machine_config(&ns, n);
        change(&mut config);
        let netd = Netd::start(config).unwrap();
        let pod = Ns::new();
        wait(netd.attach(pod.fd(), &format!("pod-{n}"), pod_ip(n))).unwrap();
        pod.serve_tcp(TCP, &format!("pod-{n}"));
        pod.serve_echo(ECHO);
        Machine { n, ns, netd, pod }
    }

    /// The other nodes are exactly these, this one left out.
    pub fn tell(&self, numbers: &[u8]) -> Result<Report, coracle_netd::NetError> {
        let others = numbers.iter().filter(|n| **n != self.n).map(|n| peer(*n)).collect();
        wait(self.netd.peers(others))
    }

    pub fn apply(&self, services: Vec<ServiceEntry>) {
        wait(self.netd.apply(Desired { services, ..Desired::default() })).unwrap();
    }

    /// The agent ends and another takes over.
    pub fn restart(&mut self) {
        self.netd = Netd::start(machine_config(&self.ns, self.n)).unwrap();
    }

    /// From this machine's pod and from itself to the other's pod, small and of full size.
    pub fn reaches(&self, other: &Machine) -> Result<(), String> {
        for (what, ns, seen) in [("pod", &self.pod, pod_ip(self.n)), ("host", &self.ns, gateway(self.n))] {
            let failed = |error: std::io::Error| format!("{what} of {} to pod of {}: {error}", self.n, other.n);
            let answer = ns.tcp(pod_ip(other.n), TCP).map_err(failed)?;
            assert_eq!(answer, format!("pod-{} {seen}", other.n), "seen with its own address");
            ns.echo(pod_ip(other.n), self.pod.mtu("eth0")).map_err(failed)?;
        }
        Ok(())
    }

    /// Routes, neighbours and forwarding entries to other nodes.
    pub fn traces(&self) -> String {
        let routes = self.ns.ip("route show proto 67 root 10.42.0.0/16");
        if !self.ns.has(TUNNEL) {
            return routes;
        }
        let neighbours = self.ns.ip(&format!("neigh show dev {TUNNEL} nud permanent"));
        routes + &neighbours + &self.ns.run("bridge", &["fdb", "show", "dev", TUNNEL])
    }

    pub fn problems(&self) -> Vec<coracle_netd::Finding> {
        wait(self.netd.doctor()).unwrap()
    }
}
