//! The world: servers, their disks, the network and what befalls them, a millisecond at a time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coracle_base::Release;
use coracle_control_plane::inside::{Inside, play, play_time};
use coracle_daemon::Drain;
use coracle_protocol::v1::BeatsReport;
use coracle_raft::{Identity, Member, Message, PeerError, Raft, RaftConfig};
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::time::Instant;

use crate::Bug;
use crate::agents::{Agents, Reach};
use crate::clients::{Clients, found, heal, run_fenced};
use crate::disk::SimDisk;
use crate::invariants::linearizable;
use crate::invariants::revisions::Revisions;
use crate::network::{Kind, Letter, Network, Reply};
use crate::oracle::{Oracle, Pace};
use crate::server::{address, start};

const CLUSTER: u128 = 77;
const NODES: usize = 3;
/// The time of day when the world begins: 2026-11-27.
const MORNING: u64 = 1_795_737_600_000;
/// The cluster is formed within this, in milliseconds, before anything bad happens.
const FORMED: u64 = 30_000;
/// Everybody takes writes again so long after the last fault, and is the same so long after.
const HEALED: u64 = 10_000;
const SETTLED: u64 = 30_000;

/// What a run is like.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// What happens.
    pub seed: u64,
    /// How long there are faults, in milliseconds of the world.
    pub faults: u64,
    /// A planted mistake.
    pub bug: Option<Bug>,
}

impl Settings {
    /// The usual run of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        Self { seed, faults: 15_000, bug: None }
    }
}

/// What a good run did.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Servers.
    pub servers: usize,
    /// Writes that were acknowledged.
    pub writes: usize,
    /// Operations that were checked.
    pub operations: usize,
    /// Faults, by kind: cuts, crashes, freezes, and those of nodes.
    pub faults: [usize; 4],
    /// How often the fenced pod moved.
    pub moves: usize,
    /// From the last fault until all took writes, in milliseconds of the world.
    pub healed_ms: u64,
    /// The length of the run, in milliseconds of the world.
    pub lasted_ms: u64,
    /// All that was sent between the servers, and when, as one number.
    pub trace: u64,
}

/// A promise was broken, in words, when.
#[derive(Debug, Clone)]
pub struct Broken {
    /// The seed of the run.
    pub seed: u64,
    /// Milliseconds of the world.
    pub at_ms: u64,
    /// All that was sent between the servers until then, as one number.
    pub trace: u64,
    /// How.
    pub how: String,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seed, at_ms, how, .. } = self;
        write!(out, "seed {seed}, at {at_ms} ms: {how}\nhint: CORACLE_SIM_SEED={seed} runs this seed alone")
    }
}

/// Where a server that has opened is found.
type Slot = Arc<Mutex<Option<Result<Raft, String>>>>;

struct Life {
    runtime: Runtime,
    /// The runtime's time when it began, and the world's.
    began: (Instant, u64),
    /// Up to where the runtime's time has come, in the world's.
    reached: u64,
    slot: Slot,
    /// Once it has opened and belongs to the cluster.
    inside: Option<Inside>,
    drain: Drain,
    revisions: Revisions,
    hashed: u64,
    has_clients: bool,
    heals: bool,
}

impl Life {
    fn raft(&self) -> Option<Result<Raft, String>> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn open(&self) -> Option<Raft> {
        self.raft().and_then(Result::ok)
    }
}

struct Host {
    /// Of the log.
    disk: SimDisk,
    /// Of the snapshots.
    snapshots: SimDisk,
    lives: u64,
    life: Option<Life>,
    starts_at: Option<u64>,
    frozen_until: u64,
    watched: Arc<Mutex<u64>>,
}

struct World {
    settings: Settings,
    now: u64,
    rng: StdRng,
    network: Network,
    oracle: Oracle,
    hosts: Vec<Host>,
    agents: Agents,
    directory: TempDir,
    faults: [usize; 4],
    next_fault: u64,
    next_node_fault: u64,
}

/// Runs a seed: the cluster forms, suffers, is healed and must then be whole.
///
/// # Errors
/// A promise was broken.
pub fn run(settings: Settings) -> Result<Report, Broken> {
    let mut world = World::new(settings);
    let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| world.live()));
    let result = lived.unwrap_or_else(|_| Err("something panicked".to_owned()));
    let trace = world.network.state().trace();
    let broken = |how| Broken { seed: settings.seed, at_ms: world.now, trace, how };
    let healed_ms = result.map_err(broken)?;
    let known = world.oracle.known();
    Ok(Report {
        servers: world.hosts.len(),
        writes: known.acknowledged.count(),
        operations: known.operations.len(),
        faults: world.faults,
        moves: world.agents.moves,
        healed_ms,
        lasted_ms: world.now,
        trace,
    })
}

fn directory() -> TempDir {
    // The identity and its lock lie on a real disk: in memory, where there is one.
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory for identities")
}

/// One server's executor. Its seed decides what tokio leaves to chance: whom of several it wakes first, and which branch of a
/// `select!` it tries first.
fn runtime(seed: u64) -> Runtime {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    #[cfg(tokio_unstable)]
    builder
        .rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()))
        // No task of a server may panic, whoever notices.
        .unhandled_panic(tokio::runtime::UnhandledPanic::ShutdownRuntime);
    #[cfg(not(tokio_unstable))]
    let _ = seed;
    builder.build().expect("a runtime")
}

impl World {
    fn new(settings: Settings) -> Self {
        let mut rng = StdRng::seed_from_u64(settings.seed);
        coracle_raft::seed_elections(rng.random());
        play(rng.random());
        let servers = if settings.seed % 4 == 3 { 5 } else { 3 };
        let host = |_| Host {
            disk: SimDisk::new(settings.bug == Some(Bug::SkipFsync)),
            snapshots: SimDisk::new(false),
            lives: 0,
            life: None,
            starts_at: None,
            frozen_until: 0,
            watched: Arc::default(),
        };
        let network = Network::new(rng.random());
        Self {
            settings,
            now: 0,
            agents: Agents::new(NODES, servers, network.clone(), rng.random()),
            network,
            oracle: Oracle::default(),
            hosts: (0..servers).map(host).collect(),
            directory: directory(),
            rng,
            faults: [0; 4],
            next_fault: 0,
            next_node_fault: 0,
        }
    }

    fn config(&self, server: usize, pace: Pace) -> RaftConfig {
        let name = format!("s{server}");
        RaftConfig {
            identity: Some(Identity { node: server as u64 + 1, cluster: CLUSTER }),
            member: Member { address: address(server), name: name.clone(), api_port: 6443 },
            // An empty log does not make a cluster of its own, but for the very first.
            join: (server > 0 || self.hosts[server].lives > 1).then(|| vec![address(0)]),
            segment_bytes: 256 << 10,
            reserve_bytes: 64 << 10,
            // Some runs take snapshots all the time.
            snapshot_bytes: if self.settings.seed.is_multiple_of(2) { 16 << 10 } else { 32 << 20 },
            log_disk: Some(Arc::new(self.hosts[server].disk.clone())),
            snapshot_disk: Some(Arc::new(self.hosts[server].snapshots.clone())),
            pace: Some(Arc::new(pace)),
            ..RaftConfig::new(self.directory.path().join(name))
        }
    }

    fn start(&mut self, server: usize) {
        self.hosts[server].lives += 1;
        self.hosts[server].starts_at = None;
        let pace = Pace::new(server, self.rng.random(), self.settings.bug, self.oracle.clone());
        let config = self.config(server, pace);
        let runtime = runtime(self.rng.random());
        let slot: Slot = Arc::default();
        let (opened, plug) = (slot.clone(), Arc::new(self.network.plug(server)));
        let joins = server > 0 && self.hosts[server].lives == 1;
        drop(runtime.spawn(async move {
            let raft = Raft::open_among(config, plug).await.map_err(|error| error.to_string());
            *opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(raft.clone());
            if let (true, Ok(raft)) = (joins, raft)
                && let Err(reason) = raft.join(&[address(0)], Duration::from_secs(20)).await
            {
                *opened.lock().unwrap_or_else(PoisonError::into_inner) = Some(Err(reason));
            }
        }));
        let began = (runtime.block_on(async { Instant::now() }), self.now);
        let revisions = Revisions::default();
        let life = Life {
            runtime,
            began,
            reached: self.now,
            slot,
            inside: None,
            drain: Drain::new(),
            revisions,
            hashed: 0,
            has_clients: false,
            heals: false,
        };
        self.hosts[server].life = Some(life);
    }

    fn crash(&mut self, server: usize) {
        let Some(life) = self.hosts[server].life.take() else { return };
        // Its clients die with it, in whatever they were doing.
        self.oracle.known().clients.remove(&(server, self.hosts[server].lives));
        drop(life.slot.lock().unwrap_or_else(PoisonError::into_inner).take());
        life.runtime.shutdown_background();
        self.hosts[server].disk.power_cut(self.rng.random());
        self.hosts[server].snapshots.power_cut(self.rng.random());
        self.hosts[server].frozen_until = 0;
        self.hosts[server].starts_at = Some(self.now + self.rng.random_range(30..1500));
    }

    /// One millisecond for everybody.
    fn tick(&mut self) -> Result<(), String> {
        self.now += 1;
        self.network.state().now = self.now;
        play_time(MORNING + self.now);
        for server in 0..self.hosts.len() {
            if self.hosts[server].starts_at.is_some_and(|at| at <= self.now) {
                self.start(server);
            }
            if self.hosts[server].frozen_until <= self.now {
                self.step(server)?;
            }
            if self.hosts[server].disk.is_dead() {
                self.crash(server);
            }
        }
        let servers: Vec<Reach<'_>> = self
            .hosts
            .iter()
            .map(|host| Reach {
                life: host.lives,
                inside: host.life.as_ref().and_then(|life| Some((life.inside.as_ref()?, &life.runtime))),
                frozen: host.frozen_until > self.now,
            })
            .collect();
        self.agents.tick(self.now, &servers)?;
        match self.oracle.known().broken.take() {
            Some(how) => Err(how),
            None => Ok(()),
        }
    }

    fn step(&mut self, server: usize) -> Result<(), String> {
        self.deliver(server);
        let now = self.now;
        let seed: u64 = self.rng.random();
        let (oracle, bug) = (self.oracle.clone(), self.settings.bug);
        let plug = self.network.plug(server);
        let host = &mut self.hosts[server];
        let Some(life) = &mut host.life else { return Ok(()) };
        let until = life.began.0 + Duration::from_millis(now - life.began.1);
        let was_frozen = now > life.reached + 1;
        life.reached = now;
        life.runtime.block_on(async {
            if was_frozen {
                // Its clock went on: everything that is due happens at once.
                tokio::time::advance(until.saturating_duration_since(Instant::now())).await;
            }
            tokio::time::sleep_until(until).await;
        });
        match life.raft() {
            Some(Err(reason)) if !host.disk.is_dead() => {
                return Err(format!("server {server} does not start: {reason}"));
            }
            Some(Ok(raft)) => {
                let revision = raft.view().revision();
                let mut known = oracle.known();
                let held = life.revisions.see(server, revision);
                known.judge(held);
                // The hash is worth a look only when something has changed.
                if life.hashed != revision {
                    life.hashed = revision;
                    let held = known.states.see(server, (revision, raft.view().level()), raft.metrics().state_hash);
                    known.judge(held);
                }
                let begins = !life.has_clients && !known.healed.is_empty();
                drop(known);
                let _inside = life.runtime.enter();
                if life.inside.is_none() && raft.is_member() {
                    life.inside = Some(start(&raft, Arc::new(plug), bug, &life.drain));
                }
                if begins {
                    life.has_clients = true;
                    let clients = Clients { server, life: host.lives, raft: raft.clone(), oracle: oracle.clone(), bug };
                    clients.start(seed, &host.watched);
                }
                if oracle.known().ending && !life.heals {
                    life.heals = true;
                    drop(life.runtime.spawn(heal(server, raft, oracle.clone())));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn deliver(&mut self, server: usize) {
        for letter in self.network.arrived(server) {
            let life = self.hosts[server].life.as_ref();
            match letter {
                // Whoever waited may be gone.
                Letter::Answer(answer, reply) => drop(reply.send(answer)),
                Letter::Question(from, kind, question, reply) => {
                    let considered = match life {
                        Some(life) => self.consider(life, (server, from), kind, question, reply),
                        None => Err(reply),
                    };
                    if let Err(Some(reply)) = considered {
                        let reason = "nobody listens".to_owned();
                        let refused = PeerError::Unreachable { address: address(server), reason };
                        self.network.answer(server, from, Err(refused), reply);
                    }
                }
            }
        }
    }

    /// A server looks at a question; gives back who waits when it does not listen yet.
    fn consider(
        &self,
        life: &Life,
        (server, from): (usize, usize),
        kind: Kind,
        question: bytes::Bytes,
        reply: Option<Reply>,
    ) -> Result<(), Option<Reply>> {
        let network = self.network.clone();
        let respond = move |answer: Result<bytes::Bytes, PeerError>, reply: Option<Reply>| {
            if let Some(reply) = reply {
                network.answer(server, from, answer, reply);
            }
        };
        match kind {
            Kind::Log { .. } => {
                let Some(raft) = life.open() else { return Err(reply) };
                let question = Message { words: question, release: Release::own() };
                drop(life.runtime.spawn(async move { respond(Ok(raft.answer(&question).await.words), reply) }));
            }
            Kind::Beats => {
                let Some(inside) = life.inside.clone() else { return Err(reply) };
                drop(life.runtime.spawn(async move {
                    let report = BeatsReport::decode(question).expect("a report");
                    let lost = || PeerError::Lost { address: address(server), reason: "it does not lead".to_owned() };
                    let answer = inside.hear(report).await.ok_or_else(lost);
                    respond(answer.map(|answer| answer.encode_to_vec().into()), reply);
                }));
            }
        }
        Ok(())
    }

    fn rafts(&self) -> Vec<Raft> {
        self.hosts.iter().filter_map(|host| host.life.as_ref()?.open()).collect()
    }

    fn is_formed(&self) -> bool {
        let rafts = self.rafts();
        let voters = |raft: &Raft| raft.members().voters.first().map_or(0, |voters| voters.len());
        rafts.len() == self.hosts.len()
            && rafts.iter().all(|raft| raft.members().voters.len() == 1 && voters(raft) == self.hosts.len())
    }

    fn is_settled(&self) -> bool {
        let known = self.oracle.known();
        let rafts = self.rafts();
        let same = |raft: &Raft| (raft.view().revision(), raft.metrics().last_index);
        known.clients.values().all(|running| *running == 0)
            && known.healed.iter().all(|healed| *healed)
            && rafts.len() == self.hosts.len()
            && self.agents.running().len() == 1
            && rafts.windows(2).all(|pair| same(&pair[0]) == same(&pair[1]))
    }

    fn live(&mut self) -> Result<u64, String> {
        for server in 0..self.hosts.len() {
            self.start(server);
            while self.rafts().len() <= server {
                self.tick()?;
                if self.now > FORMED {
                    return Err("the cluster is not formed in time".to_owned());
                }
            }
        }
        while !self.is_formed() {
            self.tick()?;
            if self.now > FORMED {
                return Err("the cluster is not formed in time".to_owned());
            }
        }
        let raft = self.rafts().remove(0);
        if let Some(life) = &self.hosts[0].life {
            drop(life.runtime.spawn(run_fenced(raft)));
        }
        while self.agents.running().is_empty() {
            self.tick()?;
            if self.now > FORMED {
                return Err("the fenced pod does not run in time".to_owned());
            }
        }
        self.oracle.known().healed = vec![false; self.hosts.len()];
        let end = self.now + self.settings.faults;
        self.next_fault = self.now + 500;
        self.next_node_fault = self.now + self.rng.random_range(200..5000);
        while self.now < end {
            self.tick()?;
            if self.now >= self.next_fault {
                self.befall();
                // In every third run the servers have more peace, so that one leads long enough to give a node up.
                let pause = if self.settings.seed % 3 == 1 { 1500..8000 } else { 100..900 };
                self.next_fault = self.now + self.rng.random_range(pause);
            }
            if self.now >= self.next_node_fault {
                self.befall_node();
                self.next_node_fault = self.now + self.rng.random_range(500..10_000);
            }
        }
        self.end_faults();
        let healed_ms = self.settle(end)?;
        self.judge_the_end()?;
        Ok(healed_ms)
    }

    fn befall(&mut self) {
        let servers = self.hosts.len();
        let one = self.rng.random_range(0..servers);
        let other = (one + self.rng.random_range(1..servers)) % servers;
        match self.rng.random_range(0..100) {
            0..15 => {
                self.network.state().cut.insert((one, other));
                self.faults[0] += 1;
            }
            15..27 => {
                let mut network = self.network.state();
                for other in (0..servers).filter(|other| *other != one) {
                    network.cut.extend([(one, other), (other, one)]);
                }
                self.faults[0] += 1;
            }
            27..50 => self.network.state().cut.clear(),
            50..62 => {
                self.faults[1] += 1;
                self.crash(one);
            }
            62..72 => {
                self.faults[1] += 1;
                let operations = self.rng.random_range(1..12);
                if self.hosts[one].life.is_some() {
                    self.hosts[one].disk.fail_after(operations);
                }
            }
            72..76 => {
                self.faults[1] += servers;
                (0..servers).for_each(|server| self.crash(server));
            }
            76..86 => {
                self.faults[2] += 1;
                self.hosts[one].frozen_until = self.now + self.rng.random_range(100..3500);
            }
            _ => {
                let (loss, twice, slow) =
                    (self.rng.random_range(0.0..0.2), self.rng.random_range(0.0..0.1), self.rng.random_range(2..60));
                let mut network = self.network.state();
                (network.loss, network.twice, network.slow) = (loss, twice, slow);
            }
        }
    }

    /// Mostly the node that runs the fenced pod is cut off, or its agent hangs; long enough, mostly, that the pod should move.
    fn befall_node(&mut self) {
        let running = self.agents.running();
        let any = self.rng.random_range(0..NODES);
        let node = running.first().copied().filter(|_| self.rng.random_bool(0.8)).unwrap_or(any);
        let until = self.now + self.rng.random_range(500..14_000);
        if self.rng.random_bool(0.7) {
            self.agents.cut(node, until);
        } else {
            self.agents.hang(node, until);
        }
        self.faults[3] += 1;
    }

    fn end_faults(&mut self) {
        {
            let mut network = self.network.state();
            network.cut.clear();
            (network.loss, network.twice, network.slow) = (0.0, 0.0, 3);
        }
        self.agents.heal();
        for host in &mut self.hosts {
            host.frozen_until = 0;
            if host.starts_at.is_some() {
                host.starts_at = Some(self.now);
            }
        }
        self.oracle.known().ending = true;
    }

    fn settle(&mut self, end: u64) -> Result<u64, String> {
        let mut healed = None;
        while !self.is_settled() {
            self.tick()?;
            let waiting: Vec<usize> = {
                let known = self.oracle.known();
                (0..self.hosts.len()).filter(|server| !known.healed[*server]).collect()
            };
            if waiting.is_empty() {
                healed.get_or_insert(self.now - end);
            } else if self.now > end + HEALED {
                return Err(format!("servers {waiting:?} take no writes {HEALED} ms after the last fault"));
            }
            if self.now > end + SETTLED {
                let at: Vec<_> = self.rafts().iter().map(|raft| raft.view().revision()).collect();
                let clients: usize = self.oracle.known().clients.values().sum();
                return Err(format!(
                    "after {SETTLED} ms without faults servers are at revisions {at:?}, {clients} clients wait"
                ));
            }
        }
        Ok(healed.unwrap_or(0))
    }

    fn judge_the_end(&self) -> Result<(), String> {
        let known = self.oracle.known();
        for raft in self.rafts() {
            let view = raft.view();
            known.acknowledged.survive(known.watchers.history(), |key| found(&view, key).map(|found| found.1))?;
        }
        linearizable::check(&known.operations)
    }
}
