//! The agents of the nodes: the real protocol over wires that break, and under them what matters of the real agent and of podmon. A
//! fenced pod runs on a node from when its agent, holding a lease, starts it until podmon, which keeps the deadline by itself, has
//! killed it. Each node's clock is its own, and goes wrong by up to a tenth.

use std::collections::{BTreeMap, BTreeSet};

use coracle_control_plane::inside::Inside;
use coracle_protocol::PROTOCOL;
use coracle_protocol::v1::{
    Beat, Feed, FromAgent, FromServer, Generation, Hello, Lease, PodGone, PodStatus, Report, from_agent, from_server,
};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::invariants::{Held, fenced};
use crate::network::Network;
use crate::wires::Wires;

/// As the agent's `START_MARGIN_MS`: nothing is started under a lease that ends sooner.
const START_MARGIN: u64 = 1000;
/// The longest it takes podmon to kill everything in a pod, by the clock of the world.
const KILL: u64 = 1000;
/// How far a node's clock runs from the servers', in millionths. With a lease of five seconds this and `KILL` together stay below
/// the two seconds that the leader waits beyond it.
const DRIFT_PPM: i64 = 100_000;
/// A wire over which nothing can pass is noticed by the agent, and later by the server, when its keep-alive has failed twice.
const AGENT_NOTICES: u64 = 3000;
const SERVER_NOTICES: u64 = 10_000;
/// Between an end of a session and the next.
const AGAIN: std::ops::Range<u64> = 50..400;

#[derive(Debug, Default)]
struct Pod {
    name: String,
    deleting: bool,
    /// Until when podmon lets it run, on the node's clock.
    deadline: u64,
    runs: bool,
    /// When podmon will have killed it, by the world's clock.
    killed_at: Option<u64>,
    /// What was reported last.
    said: Option<bool>,
    /// Its end was reported.
    gone: bool,
}

#[derive(Debug)]
struct Session {
    wire: u64,
    server: usize,
    /// The life of the server it is with.
    life: u64,
    /// Since when nothing passes.
    dark_since: Option<u64>,
    welcome: bool,
    /// A feed of which the rest has not come.
    parts: Vec<Feed>,
}

struct Agent {
    number: usize,
    server: usize,
    session: Option<Session>,
    dials_at: u64,
    beats_at: u64,
    beat_every: u64,
    /// The node's clock: what it showed when the world began, and by how many millionths it is fast.
    clock: (u64, i64),
    cut_until: u64,
    hangs_until: u64,
    have: Generation,
    lease: (u64, BTreeSet<String>),
    pods: BTreeMap<String, Pod>,
    /// Wires the agent has left, which their servers believe in until then.
    left: Vec<(u64, u64)>,
}

/// How a server looks from outside.
pub struct Reach<'a> {
    /// In which of its lives.
    pub life: u64,
    /// Its inside and its runtime; `None`: nobody listens.
    pub inside: Option<(&'a Inside, &'a Runtime)>,
    /// It says nothing, and its connections stay.
    pub frozen: bool,
}

/// All agents.
pub struct Agents {
    agents: Vec<Agent>,
    wires: Wires,
    rng: StdRng,
    runs_on: Option<usize>,
    /// How often the fenced pod began to run on another node than before.
    pub moves: usize,
}

fn name(number: usize) -> String {
    format!("n{number}")
}

impl Agent {
    fn new(number: usize, servers: usize, rng: &mut StdRng) -> Self {
        Self {
            number,
            server: rng.random_range(0..servers),
            session: None,
            dials_at: 0,
            beats_at: 0,
            beat_every: 1000,
            clock: (rng.random_range(1_000..1_000_000), rng.random_range(-DRIFT_PPM..=DRIFT_PPM)),
            cut_until: 0,
            hangs_until: 0,
            have: Generation::default(),
            lease: (0, BTreeSet::new()),
            pods: BTreeMap::new(),
            left: Vec::new(),
        }
    }

    fn boottime(&self, now: u64) -> u64 {
        let passed = i64::try_from(now).unwrap_or(i64::MAX);
        self.clock.0.saturating_add_signed(passed + passed * self.clock.1 / 1_000_000)
    }

    /// Podmon: it needs nobody to end what has no lease any more.
    fn guard(&mut self, now: u64, rng: &mut StdRng) {
        let boottime = self.boottime(now);
        for pod in self.pods.values_mut().filter(|pod| pod.runs) {
            if pod.deadline < boottime && pod.killed_at.is_none() {
                pod.killed_at = Some(now + rng.random_range(1..KILL));
            }
            if pod.killed_at.is_some_and(|at| at <= now) {
                (pod.runs, pod.killed_at) = (false, None);
            }
        }
    }

    /// What the agent wants done with its pods, and what it has to say of them.
    fn work(&mut self, now: u64, rng: &mut StdRng) -> Report {
        let boottime = self.boottime(now);
        let (until, leased) = &self.lease;
        let mut report = Report::default();
        for (uid, pod) in &mut self.pods {
            if leased.contains(uid) {
                pod.deadline = pod.deadline.max(*until);
            }
            if pod.deleting {
                if pod.runs && pod.killed_at.is_none() {
                    pod.killed_at = Some(now + rng.random_range(1..KILL));
                }
            } else if !pod.runs && leased.contains(uid) && *until >= boottime + START_MARGIN {
                pod.runs = true;
            }
            let (namespace, name, uid) = ("default".to_owned(), pod.name.clone(), uid.clone());
            if pod.deleting && !pod.runs {
                pod.gone = true;
                report.gone.push(PodGone { namespace, name, uid });
            } else if pod.said.replace(pod.runs) != Some(pod.runs) {
                let status = status(pod.runs, self.number).to_string().into_bytes();
                report.pods.push(PodStatus { namespace, name, uid, status });
            }
        }
        report
    }

    fn hear(&mut self, message: FromServer) {
        match message.message {
            Some(from_server::Message::Welcome(welcome)) => {
                if let Some(session) = &mut self.session {
                    session.welcome = true;
                }
                self.beat_every = welcome.settings.map_or(1000, |settings| settings.beat_interval_ms.max(100).into());
            }
            Some(from_server::Message::Settings(settings)) => {
                self.beat_every = settings.beat_interval_ms.max(100).into();
            }
            Some(from_server::Message::Lease(Lease { sent_boottime_ms, ttl_ms, pods, .. })) => {
                self.lease = (sent_boottime_ms.saturating_add(ttl_ms), pods.into_iter().collect());
            }
            Some(from_server::Message::Feed(mut feed)) => {
                if coracle_protocol::packed::unpack(&mut feed).is_err() {
                    self.session = None;
                    return;
                }
                let Some(session) = &mut self.session else { return };
                let more = feed.more;
                session.parts.push(feed);
                if !more {
                    let parts = std::mem::take(&mut session.parts);
                    self.take(parts);
                }
            }
            _ => {}
        }
    }

    fn take(&mut self, parts: Vec<Feed>) {
        let full = parts.iter().any(|part| part.full);
        let mut named = BTreeSet::new();
        for part in &parts {
            self.have = part.generation.unwrap_or_default();
            for item in part.items.iter().filter(|item| item.resource == "pods") {
                named.insert(item.uid.clone());
                let tree: Value = serde_json::from_slice(&item.object).unwrap_or_default();
                let pod = self.pods.entry(item.uid.clone()).or_default();
                pod.name.clone_from(&item.name);
                pod.deleting |= !tree["metadata"]["deletionTimestamp"].is_null();
            }
        }
        let removed: BTreeSet<&str> = parts
            .iter()
            .flat_map(|part| &part.removed)
            .filter(|reference| reference.resource == "pods")
            .map(|reference| reference.name.as_str())
            .collect();
        for (uid, pod) in &mut self.pods {
            if (full && !named.contains(uid)) || (!named.contains(uid) && removed.contains(pod.name.as_str())) {
                pod.deleting = true;
            }
        }
    }
}

impl Agents {
    /// So many, each at some server.
    #[must_use]
    pub fn new(count: usize, servers: usize, network: Network, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let agents = (0..count).map(|number| Agent::new(number, servers, &mut rng)).collect();
        Self { agents, wires: Wires::new(network), rng, runs_on: None, moves: 0 }
    }

    /// Nothing passes between a node and the servers until then.
    pub fn cut(&mut self, node: usize, until: u64) {
        self.agents[node].cut_until = until;
    }

    /// A node's agent does nothing until then; podmon goes on.
    pub fn hang(&mut self, node: usize, until: u64) {
        self.agents[node].hangs_until = until;
    }

    /// No more faults.
    pub fn heal(&mut self) {
        for agent in &mut self.agents {
            (agent.cut_until, agent.hangs_until) = (0, 0);
        }
    }

    /// Where the fenced pod runs.
    #[must_use]
    pub fn running(&self) -> Vec<usize> {
        let runs = |agent: &&Agent| agent.pods.values().any(|pod| pod.runs);
        self.agents.iter().filter(runs).map(|agent| agent.number).collect()
    }

    /// One millisecond of all nodes.
    ///
    /// # Errors
    /// The fenced pod runs twice.
    pub fn tick(&mut self, now: u64, servers: &[Reach<'_>]) -> Held {
        let Self { agents, wires, rng, .. } = self;
        for agent in agents.iter_mut() {
            agent.guard(now, rng);
            wires_of(agent, now, servers, wires, rng);
            if agent.hangs_until <= now {
                live(agent, now, servers, wires, rng);
            }
            // Forgotten once its end is said; should the word be lost, the next session's feed brings it again.
            agent.pods.retain(|_, pod| !pod.gone);
        }
        let running = self.running();
        if let [node] = running.as_slice() {
            self.moves += usize::from(self.runs_on.is_some_and(|before| before != *node));
            self.runs_on = Some(*node);
        }
        let pods = self.agents.iter().map(|agent| agent.pods.values().filter(|pod| pod.runs).count());
        fenced::runs_once(now, &pods.collect::<Vec<_>>())
    }
}

/// Whether anything passes between an agent and a server.
fn passes(agent: &Agent, now: u64, server: &Reach<'_>) -> bool {
    agent.cut_until <= now && !server.frozen && server.inside.is_some()
}

/// What the transport does without the agent's doing.
fn wires_of(agent: &mut Agent, now: u64, servers: &[Reach<'_>], wires: &Wires, rng: &mut StdRng) {
    agent.left.retain(|(wire, until)| {
        let goes_on = *until > now;
        if !goes_on {
            wires.close(*wire);
        }
        goes_on
    });
    let Some(session) = &agent.session else { return };
    let server = &servers[session.server];
    let (alive, passing) = (server.life == session.life, passes(agent, now, server));
    if let Some(session) = &mut agent.session {
        if alive && passing {
            session.dark_since = None;
            wires.deliver_up(session.wire, now);
            return;
        }
        let since = *session.dark_since.get_or_insert(now);
        // A server that is gone answers at once that it knows no such connection, when anything passes.
        let reset = !alive && agent.cut_until <= now && !server.frozen;
        if reset || now > since + AGENT_NOTICES {
            hang_up(agent, now, !reset, rng);
        }
    }
}

/// The agent leaves its session. What it cannot tell its server, that notices late.
fn hang_up(agent: &mut Agent, now: u64, unseen: bool, rng: &mut StdRng) {
    if let Some(session) = agent.session.take() {
        agent.left.push((session.wire, if unseen { now + SERVER_NOTICES } else { now }));
        agent.server = session.server;
    }
    agent.dials_at = now + rng.random_range(AGAIN);
    agent.server += 1;
}

/// What the agent itself does.
fn live(agent: &mut Agent, now: u64, servers: &[Reach<'_>], wires: &Wires, rng: &mut StdRng) {
    agent.server %= servers.len();
    if agent.session.is_none() {
        if agent.dials_at > now {
            return;
        }
        let server = &servers[agent.server];
        let Some((inside, runtime)) = server.inside.filter(|_| passes(agent, now, server)) else {
            agent.dials_at = now + rng.random_range(AGAIN);
            agent.server += 1;
            return;
        };
        let wire = wires.open(name(agent.number), inside.clone(), runtime);
        let (server, life) = (agent.server, server.life);
        agent.session = Some(Session { wire, server, life, dark_since: None, welcome: false, parts: Vec::new() });
        agent.beats_at = now;
        let hello = Hello {
            protocol: PROTOCOL,
            version: "simulated".to_owned(),
            node: name(agent.number),
            have: Some(agent.have),
            node_object: node_object(agent.number).to_string().into_bytes(),
            // It has no kernel that new endpoints come into.
            level: 1,
            tables: Vec::new(),
            // Agents of both kinds.
            unpacks: agent.number.is_multiple_of(2),
        };
        say(wires, wire, from_agent::Message::Hello(hello));
        for pod in agent.pods.values_mut() {
            pod.said = None;
        }
    }
    let Some(session) = &agent.session else { return };
    let (wire, dark) = (session.wire, session.dark_since.is_some());
    if !dark {
        for message in wires.take_down(wire, now) {
            match message {
                Some(message) => agent.hear(message),
                None => return hang_up(agent, now, false, rng),
            }
        }
    }
    if !agent.session.as_ref().is_some_and(|session| session.welcome) {
        return;
    }
    if agent.beats_at <= now {
        agent.beats_at = now + agent.beat_every;
        say(wires, wire, from_agent::Message::Beat(Beat { sent_boottime_ms: agent.boottime(now) }));
    }
    let report = agent.work(now, rng);
    if !report.pods.is_empty() || !report.gone.is_empty() {
        say(wires, wire, from_agent::Message::Report(report));
    }
}

fn say(wires: &Wires, wire: u64, message: from_agent::Message) {
    wires.say_up(wire, FromAgent { message: Some(message) });
}

fn condition(kind: &str, holds: bool) -> Value {
    json!({"type": kind, "status": if holds { "True" } else { "False" }, "reason": "Agent", "message": "simulated"})
}

fn status(runs: bool, node: usize) -> Value {
    json!({
        "phase": if runs { "Running" } else { "Pending" },
        "podIP": format!("10.244.{node}.2"),
        "conditions": [condition("PodScheduled", true), condition("Ready", runs)],
    })
}

fn node_object(number: usize) -> Value {
    let room = json!({"cpu": "8", "memory": "16Gi", "pods": "110", "ephemeral-storage": "100Gi"});
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name(number), "labels": {"kubernetes.io/hostname": name(number)}},
        "status": {
            "capacity": room,
            "allocatable": room,
            "addresses": [{"type": "InternalIP", "address": format!("172.20.0.{}", number + 1)}],
            "conditions": [condition("Ready", true)],
        },
    })
}
