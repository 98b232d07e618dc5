//! The network between the machines: a switch in a namespace of its own, a port for each machine, and cuts at the ports.
//!
//! A cut is a `tc` filter at the switch that sends frames into a bridge without ports. Both ends still see their link up,
//! and nobody is told that a frame is lost: what a broken switch or a wrong firewall does. It needs `u32` and `mirred`
//! only, and neither nftables nor netem, which small kernels do not have.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::machine::{enter, hold_namespace};

/// Where frames go that are cut off.
const HOLE: &str = "hole";

/// A network namespace, for as long as this lives.
pub(super) struct Namespace {
    holder: Child,
}

impl Namespace {
    /// A new one with a loopback.
    ///
    /// # Panics
    /// Not root, or no iproute2.
    pub(super) fn new() -> Self {
        Self { holder: hold_namespace() }
    }

    fn inside(&self) -> Inside {
        Inside { pid: self.holder.id() }
    }

    fn batch(&self, program: &str, lines: &str) -> Result<(), String> {
        self.inside().batch(program, lines)
    }

    fn sysctl(&self, key: &str, value: &str) {
        self.inside().sysctl(key, value);
    }
}

/// A namespace by a process in it.
struct Inside {
    pid: u32,
}

impl Inside {
    /// Its file.
    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.pid).into()
    }

    /// A command in it.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program).stdin(Stdio::null());
        command
    }

    /// Lines for `ip` or `tc`; all must work.
    fn batch(&self, program: &str, lines: &str) -> Result<(), String> {
        let mut command = self.command(program);
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("{program}: {error}\nhint: install iproute2"))?;
        if let Some(mut input) = child.stdin.take() {
            let _ = input.write_all(lines.as_bytes());
        }
        let output = child.wait_with_output().map_err(|error| format!("{program}: {error}"))?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("{program} refuses\n{lines}{}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Sets a file below /proc/sys/net of this namespace.
    fn sysctl(&self, key: &str, value: &str) {
        let (namespace, path) = (self.path(), format!("/proc/sys/net/{key}"));
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter(&namespace).expect("root");
                std::fs::write(&path, value).unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
            });
            inside.join().expect("the setting is made");
        });
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Frames that do not arrive. Machines count from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Cut {
    /// All to this machine.
    To(usize),
    /// All from this machine.
    From(usize),
    /// Those of the first that the second should get.
    Between(usize, usize),
}

impl Cut {
    fn concerns(self, machine: usize) -> bool {
        match self {
            Self::To(one) | Self::From(one) => one == machine,
            Self::Between(from, to) => from == machine || to == machine,
        }
    }
}

/// A machine's end of its cable.
#[derive(Debug, Clone, Copy)]
struct Port {
    subnet: u8,
    address: Ipv4Addr,
    plugged: bool,
}

struct State {
    ports: Vec<Port>,
    cuts: BTreeSet<Cut>,
}

/// The switch, which is also the router between the subnets.
pub(super) struct Underlay {
    switch: Namespace,
    state: Mutex<State>,
}

impl Underlay {
    /// A switch with so many machines in each subnet, none of them plugged in.
    ///
    /// # Panics
    /// The switch cannot be made.
    pub(super) fn new(subnets: &[usize]) -> Self {
        let switch = Namespace::new();
        let mut lines = format!("link add {HOLE} type bridge\nlink set {HOLE} up\n");
        let mut ports = Vec::new();
        for (subnet, machines) in (0_u8..).zip(subnets) {
            lines += &format!("link add br{subnet} type bridge\nlink set br{subnet} up\n");
            lines += &format!("addr add {}/24 dev br{subnet}\n", router(subnet));
            for host in 1..=u8::try_from(*machines).expect("a subnet holds 250 machines") {
                ports.push(Port { subnet, address: Ipv4Addr::new(10, 99, subnet, host), plugged: false });
            }
        }
        assert!(ports.len() <= 250, "250 machines are the most");
        switch.batch("ip", &lines).unwrap_or_else(|error| panic!("{error}"));
        switch.sysctl("ipv4/ip_forward", "1");
        Self { switch, state: Mutex::new(State { ports, cuts: BTreeSet::new() }) }
    }

    /// The address of a machine.
    pub(super) fn address(&self, machine: usize) -> Ipv4Addr {
        self.state().ports[machine - 1].address
    }

    /// Gives a machine its cable: `eth0`, with an address, the default route and the cuts of before.
    pub(super) fn plug(&self, machine: usize, holder: u32) {
        let inside = Inside { pid: holder };
        let mut state = self.state();
        let port = state.ports[machine - 1];
        let lines = format!(
            "link add p{machine} type veth peer name eth0 address {} netns {}\nlink set p{machine} master br{} up\n",
            mac(machine),
            holder,
            port.subnet
        );
        self.switch.batch("ip", &lines).unwrap_or_else(|error| panic!("{error}"));
        // Others hear at once who has an address now.
        inside.sysctl("ipv4/conf/eth0/arp_notify", "1");
        configure(&inside, port);
        state.ports[machine - 1].plugged = true;
        let mut lines = format!("qdisc add dev p{machine} clsact\n");
        for cut in &state.cuts {
            if place(*cut).0 == machine {
                lines += &filter("add", *cut, &state.ports);
            }
        }
        self.switch.batch("tc", &lines).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Takes the cable away, both ends of it.
    pub(super) fn unplug(&self, machine: usize) {
        let mut state = self.state();
        if std::mem::take(&mut state.ports[machine - 1].plugged) {
            self.switch.batch("ip", &format!("link del p{machine}\n")).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    /// The file of the namespace of the switch: everybody is reached from there.
    pub(super) fn switch(&self) -> PathBuf {
        self.switch.inside().path()
    }

    /// Another address in the same subnet.
    pub(super) fn readdress(&self, machine: usize, address: Ipv4Addr, holder: u32) {
        let mut state = self.state();
        let port = &mut state.ports[machine - 1];
        let subnet = router(port.subnet).octets();
        assert_eq!(subnet[..3], address.octets()[..3], "{address} is not in the subnet of m{machine}");
        port.address = address;
        let port = *port;
        if port.plugged {
            configure(&Inside { pid: holder }, port);
        }
        for cut in state.cuts.iter().filter(|cut| matches!(cut, Cut::Between(from, _) if *from == machine)) {
            self.apply("del", *cut, &state.ports);
            self.apply("add", *cut, &state.ports);
        }
    }

    /// Drops what goes to a machine.
    pub(super) fn cut_to(&self, machine: usize) {
        self.cut(Cut::To(machine));
    }

    /// Drops what comes from a machine.
    pub(super) fn cut_from(&self, machine: usize) {
        self.cut(Cut::From(machine));
    }

    /// Drops what one sends to the other.
    pub(super) fn cut_between(&self, from: usize, to: usize) {
        self.cut(Cut::Between(from, to));
    }

    /// Ends every cut that concerns this machine.
    pub(super) fn heal(&self, machine: usize) {
        self.end(|cut| cut.concerns(machine));
    }

    /// Ends the cuts between two machines.
    pub(super) fn heal_between(&self, one: usize, other: usize) {
        self.end(|cut| cut == Cut::Between(one, other) || cut == Cut::Between(other, one));
    }

    /// Ends every cut.
    pub(super) fn heal_all(&self) {
        self.end(|_| true);
    }

    fn cut(&self, cut: Cut) {
        let mut state = self.state();
        if state.cuts.insert(cut) {
            self.apply("add", cut, &state.ports);
        }
    }

    fn end(&self, ends: impl Fn(Cut) -> bool) {
        let mut state = self.state();
        for cut in state.cuts.clone().into_iter().filter(|cut| ends(*cut)) {
            state.cuts.remove(&cut);
            self.apply("del", cut, &state.ports);
        }
    }

    fn apply(&self, verb: &str, cut: Cut, ports: &[Port]) {
        if ports[place(cut).0 - 1].plugged {
            self.switch.batch("tc", &filter(verb, cut, ports)).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Addresses and routes of a machine, from nothing.
fn configure(namespace: &Inside, port: Port) {
    let lines = format!(
        "addr flush dev eth0\naddr add {}/24 brd + dev eth0\nlink set eth0 up\nroute replace default via {}\n",
        port.address,
        router(port.subnet)
    );
    namespace.batch("ip", &lines).unwrap_or_else(|error| panic!("{error}"));
}

/// The router's address in a subnet.
pub(super) fn router(subnet: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 99, subnet, 254)
}

fn mac(machine: usize) -> String {
    format!("02:63:6f:72:00:{machine:02x}")
}

/// The port where a cut is made, the direction seen from the switch, and its number there.
fn place(cut: Cut) -> (usize, &'static str, usize) {
    match cut {
        Cut::To(machine) => (machine, "egress", 1),
        Cut::From(machine) => (machine, "ingress", 1),
        Cut::Between(from, to) => (to, "egress", 100 + from),
    }
}

fn filter(verb: &str, cut: Cut, ports: &[Port]) -> String {
    let (machine, direction, pref) = place(cut);
    if verb == "del" {
        return format!("filter del dev p{machine} {direction} pref {pref}\n");
    }
    let matched = match cut {
        Cut::To(_) | Cut::From(_) => "protocol all u32 match u32 0 0".to_owned(),
        // The router puts its own hardware address where the sender's was.
        Cut::Between(from, to) if ports[from - 1].subnet != ports[to - 1].subnet => {
            format!("protocol ip u32 match ip src {}/32", ports[from - 1].address)
        }
        // By hardware address: what pods send through the other's node is cut too, and ARP.
        Cut::Between(from, _) => format!("protocol all u32 match ether src {}", mac(from)),
    };
    format!("filter {verb} dev p{machine} {direction} pref {pref} {matched} action mirred egress redirect dev {HOLE}\n")
}
