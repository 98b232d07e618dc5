//! A node and its pods as network namespaces inside the test process: no names, nothing to clean up after a crash.
#![allow(dead_code, reason = "each test file uses its own part")]

pub mod machines;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_netd::{Desired, NetConfig, Netd, Protocol, ServiceEntry, VNI, VXLAN_PORT};
use nix::sched::{CloneFlags, setns, unshare};

pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 10);

/// A network namespace that lives as long as its file descriptor.
#[derive(Clone)]
pub struct Ns {
    pub fd: Arc<OwnedFd>,
}

impl Ns {
    pub fn new() -> Ns {
        let fd = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("the tests need root");
            OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap())
        });
        Ns { fd: Arc::new(fd.join().unwrap()) }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Runs `work` on a thread inside the namespace; sockets made there stay there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(self.fd(), CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// Runs a program inside the namespace and returns what it printed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        self.inside(|| {
            let output = std::process::Command::new(program).args(arguments).output().unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{program} {arguments:?}: {errors}");
            String::from_utf8(output.stdout).unwrap()
        })
    }

    /// Whoever connects is told `name`.
    pub fn serve_tcp(&self, port: u16, name: &str) {
        let listener = self.inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        let name = name.to_owned();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let peer = stream.peer_addr().unwrap();
                drop(write!(stream, "{name} {}", peer.ip()));
            }
        });
    }

    /// Whoever sends a datagram is told `name`.
    pub fn serve_udp(&self, port: u16, name: &str) {
        let socket = self.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
        let name = name.to_owned();
        std::thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                drop(socket.send_to(name.as_bytes(), from));
            }
        });
    }

    /// Connects and returns the answer.
    pub fn tcp(&self, ip: Ipv4Addr, port: u16) -> std::io::Result<String> {
        self.inside(|| connect(ip, port))
    }

    pub fn udp_socket(&self) -> UdpSocket {
        let socket = self.inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket
    }

    pub fn udp(&self, ip: Ipv4Addr, port: u16) -> std::io::Result<String> {
        ask_udp(&self.udp_socket(), ip, port)
    }

    /// Number of links other than lo.
    pub fn links(&self) -> usize {
        let listing = self.run("ip", &["-o", "link"]);
        listing.lines().filter(|line| !line.contains(": lo:")).count()
    }
}

/// One connection from the calling thread's namespace.
pub fn connect(ip: Ipv4Addr, port: u16) -> std::io::Result<String> {
    let address = SocketAddr::V4(SocketAddrV4::new(ip, port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

pub fn ask_udp(socket: &UdpSocket, ip: Ipv4Addr, port: u16) -> std::io::Result<String> {
    socket.send_to(b"?", (ip, port))?;
    let mut buffer = [0; 64];
    let (length, _) = socket.recv_from(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// A node: its namespace and its network.
pub struct Node {
    pub ns: Ns,
    pub netd: Netd,
}

impl Node {
    pub fn new() -> Node {
        Node::with_bridge_filter(false)
    }

    /// With br_netfilter, which a machine has when Docker or Kubernetes ever ran there, bridged packets see our rules
    /// at other moments. A new namespace starts with it on where the kernel has it at all.
    pub fn with_bridge_filter(on: bool) -> Node {
        let ns = Ns::new();
        let path = "/proc/sys/net/bridge/bridge-nf-call-iptables";
        match ns.inside(|| std::fs::write(path, if on { "1" } else { "0" })) {
            Err(error) if on => eprintln!("SKIP: this kernel has no br_netfilter ({error}); testing without"),
            _ => {}
        }
        ns.run("ip", &["link", "set", "lo", "up"]);
        let netd = Netd::start(config(&ns)).unwrap();
        Node { ns, netd }
    }

    /// A pod at 10.42.0.`last`.
    pub fn pod(&self, last: u8) -> (Ns, Ipv4Addr) {
        let (pod, ip) = (Ns::new(), Ipv4Addr::new(10, 42, 0, last));
        wait(self.netd.attach(pod.fd(), &format!("pod-{last}"), ip)).unwrap();
        (pod, ip)
    }

    pub fn apply(&self, services: Vec<ServiceEntry>) {
        wait(self.netd.apply(Desired { services, ..Desired::default() })).unwrap();
    }
}

pub fn config(ns: &Ns) -> NetConfig {
    NetConfig {
        bridge: "cor0".to_owned(),
        table: "coracle".to_owned(),
        node_cidr: "10.42.0.0/24".parse().unwrap(),
        cluster_cidr: "10.42.0.0/16".parse().unwrap(),
        service_cidr: "10.43.0.0/16".parse().unwrap(),
        underlay: None,
        vni: VNI,
        vxlan_port: VXLAN_PORT,
        netns: Some(ns.fd.clone()),
    }
}

pub fn tcp_service(port: u16, backends: &[(Ipv4Addr, u16)]) -> ServiceEntry {
    ServiceEntry::new(VIP, port, Protocol::Tcp, backends.to_vec())
}

pub fn udp_service(port: u16, backends: &[(Ipv4Addr, u16)]) -> ServiceEntry {
    ServiceEntry::new(VIP, port, Protocol::Udp, backends.to_vec())
}

/// Waits for a future on this thread.
pub fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Tries until `attempt` says it is so, at most ten seconds; then fails with what it still misses.
pub fn eventually(mut attempt: impl FnMut() -> Result<(), String>) {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match attempt() {
            Ok(()) => return,
            Err(missing) if Instant::now() > end => panic!("still not so after 10 s: {missing}"),
            Err(_) => std::thread::yield_now(),
        }
    }
}
