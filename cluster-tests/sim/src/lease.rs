//! A fenced pod and two nodes that could run it. The leader grants leases and moves the pod, by the rules of the control plane's
//! sessions and node health; podmon is a deadline: the pod runs on a node as long as it has not passed on that node's clock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_raft::Raft;
use tokio::time::Instant;

use crate::Bug;
use crate::clients::{found, set};
use crate::invariants::{Held, fenced};
use crate::network::Network;
use crate::oracle::Oracle;

/// The object that says where the pod is bound.
pub const POD: &str = "fenced";
const NODES: usize = 2;
const BEAT: u64 = 200;
const DEAD: Duration = Duration::from_millis(1000);
const LEASE: u64 = 2000;
const MARGIN: Duration = Duration::from_millis(400);
/// A node without an answer for so long goes to another server.
const MOVE_ON: u64 = 800;

#[derive(Debug, Clone, Default)]
struct Node {
    server: usize,
    next_beat: u64,
    heard: u64,
    /// Until when the pod runs here, on this node's clock.
    deadline: u64,
    cut_until: u64,
}

/// The nodes; they outlive servers. Clones share them.
#[derive(Debug, Clone)]
pub struct Nodes {
    nodes: Arc<Mutex<Vec<Node>>>,
}

/// What one server, in one life, knows of leases.
#[derive(Debug, Default)]
struct Grants {
    leads_since: Option<Instant>,
    beat: [Option<Instant>; NODES],
    granted: [Option<Instant>; NODES],
    silent: [bool; NODES],
}

/// One life of a server's lease logic.
#[derive(Debug, Clone)]
pub struct Granter {
    raft: Raft,
    bug: Option<Bug>,
    grants: Arc<Mutex<Grants>>,
}

fn name(node: usize) -> String {
    format!("n{node}")
}

impl Granter {
    /// Starts the controller on the runtime this is called in.
    #[must_use]
    pub fn start(raft: Raft, bug: Option<Bug>, oracle: Oracle) -> Self {
        let granter = Self { raft, bug, grants: Arc::default() };
        drop(tokio::spawn(granter.clone().control(oracle)));
        granter
    }

    fn grants(&self) -> MutexGuard<'_, Grants> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A beat has come; whether it is answered with a lease.
    async fn beat(&self, node: usize) -> bool {
        if !self.raft.is_leader() {
            return false;
        }
        self.grants().beat[node] = Some(Instant::now());
        // A majority confirms after the beat came.
        if !self.raft.confirm_leading().await {
            return false;
        }
        let bound = found(&self.raft.view(), POD).is_some_and(|(bound, _)| bound == name(node));
        let mut grants = self.grants();
        if !bound || grants.silent[node] {
            return false;
        }
        grants.granted[node] = Some(Instant::now());
        true
    }

    async fn control(self, oracle: Oracle) {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await; // poll
            if !self.raft.is_leader() {
                *self.grants() = Grants::default();
                continue;
            }
            let bound = found(&self.raft.view(), POD);
            let Some((bound, revision)) = bound else {
                // Somebody else may have been quicker.
                drop(self.raft.propose(set(POD, None, &name(0))).await);
                continue;
            };
            let Some(node) = (0..NODES).find(|node| name(*node) == bound) else { continue };
            let to = {
                let mut grants = self.grants();
                let since = *grants.leads_since.get_or_insert_with(Instant::now);
                let age = |at: Option<Instant>| at.unwrap_or(since).elapsed();
                let silent = [age(grants.beat[0]) > DEAD, age(grants.beat[1]) > DEAD];
                grants.silent = silent;
                let over = age(grants.granted[node]) > Duration::from_millis(LEASE) + MARGIN;
                let over = over || self.bug == Some(Bug::DoubleGrant);
                (silent[node] && over).then(|| (0..NODES).find(|other| !silent[*other])).flatten()
            };
            let Some(to) = to else { continue };
            // As a leader's own tasks do: what it decides is for its own log, and comes to nothing when it leads no more.
            let moved = self.raft.propose_here(vec![set(POD, Some(revision), &name(to))]).await;
            if moved.iter().all(Result::is_ok) {
                oracle.known().moves += 1;
            }
        }
    }
}

impl Nodes {
    /// Two, at two servers.
    #[must_use]
    pub fn new() -> Self {
        let node = |server| Node { server, ..Node::default() };
        Self { nodes: Arc::new(Mutex::new((0..NODES).map(node).collect())) }
    }

    fn all(&self) -> MutexGuard<'_, Vec<Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        NODES
    }

    /// Nothing passes between a node and the servers until then.
    pub fn cut(&self, node: usize, until: u64) {
        self.all()[node].cut_until = until;
    }

    /// One millisecond: looks who runs the pod; gives the beats that are due, as node and server.
    ///
    /// # Errors
    /// Two run it.
    pub fn tick(&self, now: u64, servers: usize) -> Result<Vec<(usize, usize)>, String> {
        let mut nodes = self.all();
        let running: Vec<bool> = nodes.iter().map(|node| node.deadline > now).collect();
        let held: Held = fenced::runs_once(now, &running);
        held?;
        let mut beats = Vec::new();
        for (number, node) in nodes.iter_mut().enumerate() {
            if now < node.next_beat {
                continue;
            }
            node.next_beat = now + BEAT;
            if now > node.heard + MOVE_ON {
                node.heard = now;
                node.server = (node.server + 1) % servers;
            }
            if now >= node.cut_until {
                beats.push((number, node.server));
            }
        }
        Ok(beats)
    }

    /// A node's beat is at a server; the lease, if there is one, counts from when the beat was sent.
    pub async fn beat(self, node: usize, sent: u64, granter: Granter, network: Network) {
        let granted = granter.beat(node).await;
        let leads = granter.raft.is_leader();
        let now = network.state().now;
        let mut nodes = self.all();
        let node = &mut nodes[node];
        if now < node.cut_until {
            return;
        }
        if granted || leads {
            node.heard = now;
        }
        if granted {
            node.deadline = node.deadline.max(sent + LEASE);
        }
    }
}

impl Default for Nodes {
    fn default() -> Self {
        Self::new()
    }
}
