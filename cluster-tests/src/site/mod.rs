//! Several machines on one network, each with the real program, and what can go wrong between them.

mod api;
mod apps;
mod faults;
mod processes;
mod storage;
mod underlay;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

pub use api::{Answered, Api, Credentials, Seen, Watch};
pub use apps::{Load, hello};
pub use faults::Where;
pub use storage::Slow;

use crate::machine::Machine;
use storage::Storage;
use underlay::Underlay;

/// Machines `m1`, `m2`, ... on one subnet, or several behind a router. They count from 1.
pub struct Site {
    // Taken down before their disks and their network.
    machines: Vec<Machine>,
    disks: Vec<Option<Storage>>,
    /// Those without power.
    off: BTreeSet<usize>,
    underlay: Underlay,
}

impl Site {
    /// So many machines, on and joined, with nothing running on them.
    ///
    /// # Panics
    /// Namespaces cannot be made: not root.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self::routed(&[count])
    }

    /// The same with so many machines in each subnet, 10.99.0.0/24 first, and a router between them.
    ///
    /// # Panics
    /// Namespaces cannot be made: not root.
    #[must_use]
    pub fn routed(subnets: &[usize]) -> Self {
        let count = subnets.iter().sum();
        let underlay = Underlay::new(subnets);
        let machines = (1..=count)
            .map(|number| {
                let mut machine = Machine::new().named(&format!("m{number}"));
                underlay.plug(number, machine.holder());
                machine.set_flag("--node-ip", &underlay.address(number).to_string()).set_flag("--log-segment-mb", "16");
                machine
            })
            .collect();
        Self { machines, disks: (0..count).map(|_| None).collect(), off: BTreeSet::new(), underlay }
    }

    /// A machine.
    #[must_use]
    pub fn at(&self, number: usize) -> &Machine {
        &self.machines[number - 1]
    }

    /// A machine, to start and stop.
    pub fn at_mut(&mut self, number: usize) -> &mut Machine {
        &mut self.machines[number - 1]
    }

    /// All machines.
    pub fn all(&self) -> impl Iterator<Item = &Machine> {
        self.machines.iter()
    }

    /// The address of a machine.
    #[must_use]
    pub fn address(&self, number: usize) -> Ipv4Addr {
        self.underlay.address(number)
    }

    /// Another address for a machine, on its next start in its program too.
    pub fn readdress(&mut self, number: usize, address: Ipv4Addr) {
        let holder = self.at(number).holder();
        self.underlay.readdress(number, address, holder);
        self.at_mut(number).set_flag("--node-ip", &address.to_string());
    }

    /// Makes a cluster of the first machines: so many servers, and nodes after them. Returns when all nodes are ready and, with
    /// three servers or more, three of them vote.
    ///
    /// # Panics
    /// It does not come to be.
    pub fn form(&mut self, servers: usize, nodes: usize) {
        self.at_mut(1).up();
        let url = format!("https://{}:6443", self.address(1));
        let token = self.at(1).coracle(&["token", "create", "--server"]);
        let token = token.trim();
        for number in 2..=servers + nodes {
            let mut words = vec!["join", url.as_str(), "--token", token];
            if number <= servers {
                words.push("--server");
            }
            self.at_mut(number).starts_with(&words).start();
        }
        for number in 2..=servers + nodes {
            self.at_mut(number).await_ready(0);
        }
        self.await_ready_nodes(1, servers + nodes);
        if servers >= 3 {
            self.wait("three servers to vote", |site| {
                let status = site.at(1).try_coracle(&["status", "--servers", "-o", "json"]);
                let servers: serde_json::Value = serde_json::from_str(&status.out).unwrap_or_default();
                let servers = servers.as_array().cloned().unwrap_or_default();
                servers.iter().filter(|server| server["voter"] == true).count() >= 3
            });
        }
    }

    /// Waits until so many nodes are ready, as one machine sees it.
    ///
    /// # Panics
    /// They do not become so.
    pub fn await_ready_nodes(&self, seen_by: usize, count: usize) {
        self.wait(&format!("{count} nodes to be ready"), |site| site.ready_nodes(seen_by).len() == count);
    }

    /// The nodes that are ready, as one machine sees it.
    #[must_use]
    pub fn ready_nodes(&self, seen_by: usize) -> Vec<String> {
        let nodes = self.at(seen_by).get(&["nodes"]);
        let ready = |node: &&serde_json::Value| {
            let conditions = node["status"]["conditions"].as_array();
            conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True")
        };
        let items = nodes["items"].as_array().cloned().unwrap_or_default();
        items
            .iter()
            .filter(ready)
            .map(|node| node["metadata"]["name"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// The number of the machine whose server leads, as one machine sees it.
    #[must_use]
    pub fn leader(&self, seen_by: usize) -> Option<usize> {
        let status = self.at(seen_by).try_coracle(&["status", "--servers", "-o", "json"]);
        let servers: serde_json::Value = serde_json::from_str(&status.out).unwrap_or_default();
        let leader = servers.as_array()?.iter().find(|server| server["leader"] == true)?;
        leader["name"].as_str()?.strip_prefix('m')?.parse().ok()
    }

    /// Cuts a machine off from all others, both ways.
    pub fn cut(&self, number: usize) {
        self.underlay.cut_to(number);
        self.underlay.cut_from(number);
    }

    /// Nothing reaches a machine; what it sends arrives.
    pub fn cut_to(&self, number: usize) {
        self.underlay.cut_to(number);
    }

    /// Nothing that a machine sends arrives; it hears the others.
    pub fn cut_from(&self, number: usize) {
        self.underlay.cut_from(number);
    }

    /// Nothing of the first reaches the second.
    pub fn cut_between(&self, from: usize, to: usize) {
        self.underlay.cut_between(from, to);
    }

    /// Ends every cut of a machine.
    pub fn heal(&self, number: usize) {
        self.underlay.heal(number);
    }

    /// Ends the cuts between two machines.
    pub fn heal_between(&self, one: usize, other: usize) {
        self.underlay.heal_between(one, other);
    }

    /// Ends every cut.
    pub fn heal_all(&self) {
        self.underlay.heal_all();
    }

    /// Waits for a condition.
    ///
    /// # Panics
    /// It does not come within 60 s.
    pub fn wait(&self, what: &str, look: impl FnMut(&Self) -> bool) {
        self.wait_within(Duration::from_secs(60), what, look);
    }

    /// The same with another limit.
    ///
    /// # Panics
    /// It does not come in time.
    pub fn wait_within(&self, limit: Duration, what: &str, mut look: impl FnMut(&Self) -> bool) {
        let until = Instant::now() + limit;
        while !look(self) {
            assert!(Instant::now() < until, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(20)); // poll
        }
    }
}
