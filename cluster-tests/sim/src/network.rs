//! The network between the servers: messages wait in one queue, ordered by when they arrive, and by seed some never do.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use coracle_raft::PeerError;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::oneshot;

use crate::server::server_at;

/// As the real wire: a connection says something every second, and is dead when nothing came back in another. Whoever
/// waits for an answer on it hears of that, however long it is ready to wait for a server that is slow.
const SILENT: Duration = Duration::from_secs(2);

/// Who waits for an answer.
pub type Reply = oneshot::Sender<Result<Bytes, PeerError>>;

/// What a question is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The log. What is asked once never comes twice.
    Log {
        /// A transport carries a proposal once or not at all; only what Raft itself repeats comes twice.
        once: bool,
    },
    /// The beats of a server's agents.
    Beats,
}

/// Something on its way.
#[derive(Debug)]
pub enum Letter {
    /// From a server, with who waits for the answer; nobody for a copy.
    Question(usize, Kind, Bytes, Option<Reply>),
    /// An answer, or that nobody was there.
    Answer(Result<Bytes, PeerError>, Reply),
}

/// What the network does at the moment.
#[derive(Debug)]
pub struct State {
    /// Milliseconds of the world.
    pub now: u64,
    /// From whom to whom nothing passes.
    pub cut: BTreeSet<(usize, usize)>,
    /// The share of messages that is lost.
    pub loss: f64,
    /// The share of messages that arrives twice.
    pub twice: f64,
    /// The longest a message takes, in milliseconds.
    pub slow: u64,
    queue: BTreeMap<(u64, u64), (usize, Letter)>,
    sent: u64,
    trace: DefaultHasher,
    rng: StdRng,
}

impl State {
    fn post(&mut self, to: usize, letter: Letter) {
        let due = self.now + self.rng.random_range(1..=self.slow.max(1));
        self.sent += 1;
        (self.now, due, to).hash(&mut self.trace);
        match &letter {
            Letter::Question(from, kind, bytes, reply) => (from, kind, bytes, reply.is_some()).hash(&mut self.trace),
            Letter::Answer(Ok(bytes), _) => bytes.hash(&mut self.trace),
            Letter::Answer(Err(_), _) => 0_u8.hash(&mut self.trace),
        }
        self.queue.insert((due, self.sent), (to, letter));
    }

    /// What was sent so far, to whom and when, in one number: two runs that have the same did the same.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.trace.finish()
    }

    /// Puts something else that was sent into the trace.
    pub fn note(&mut self, sent: &[u8]) {
        (self.now, sent).hash(&mut self.trace);
    }

    /// The network's chance.
    pub fn dice(&mut self) -> &mut StdRng {
        &mut self.rng
    }

    fn passes(&mut self, from: usize, to: usize) -> bool {
        !self.cut.contains(&(from, to)) && !self.rng.random_bool(self.loss)
    }
}

/// The network; clones share it.
#[derive(Debug, Clone)]
pub struct Network {
    state: Arc<Mutex<State>>,
}

impl Network {
    /// A network without faults.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State {
            now: 0,
            cut: BTreeSet::new(),
            loss: 0.0,
            twice: 0.0,
            slow: 2,
            queue: BTreeMap::new(),
            sent: 0,
            trace: DefaultHasher::new(),
            rng: StdRng::seed_from_u64(seed),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Its state, to look at or to change.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has arrived at a server by now, in order.
    #[must_use]
    pub fn arrived(&self, at: usize) -> Vec<Letter> {
        let mut state = self.state();
        let until = (state.now, u64::MAX);
        let due: Vec<_> = state.queue.range(..=until).filter(|(_, (to, _))| *to == at).map(|(key, _)| *key).collect();
        due.iter().filter_map(|key| state.queue.remove(key)).map(|(_, letter)| letter).collect()
    }

    /// Sends an answer back.
    pub fn answer(&self, from: usize, to: usize, answer: Result<Bytes, PeerError>, reply: Reply) {
        let mut state = self.state();
        if state.passes(from, to) {
            state.post(to, Letter::Answer(answer, reply));
        }
    }

    fn ask(&self, from: usize, to: usize, kind: Kind, question: Bytes, reply: Reply) {
        let mut state = self.state();
        if !state.passes(from, to) {
            return;
        }
        let twice = state.twice;
        if kind != (Kind::Log { once: true }) && twice > 0.0 && state.rng.random_bool(twice) {
            state.post(to, Letter::Question(from, kind, question.clone(), None));
        }
        state.post(to, Letter::Question(from, kind, question, Some(reply)));
    }

    /// The end of it that a server holds.
    #[must_use]
    pub fn plug(&self, from: usize) -> Plug {
        Plug { from, network: self.clone() }
    }
}

/// One server's way to the others.
#[derive(Debug)]
pub struct Plug {
    from: usize,
    network: Network,
}

impl Plug {
    /// Asks whoever is at an address.
    ///
    /// # Errors
    /// Nobody listens there; or question or answer was lost, which is noticed as late as on the real wire.
    pub async fn carry(&self, address: String, kind: Kind, question: Bytes) -> Result<Bytes, PeerError> {
        let Some(to) = server_at(&address) else {
            return Err(PeerError::Unreachable { address, reason: "no such server".to_owned() });
        };
        let (reply, answer) = oneshot::channel();
        self.network.ask(self.from, to, kind, question, reply);
        match answer.await {
            Ok(answer) => answer,
            Err(_) => {
                tokio::time::sleep(SILENT).await;
                Err(PeerError::Lost { address, reason: "the connection is dead".to_owned() })
            }
        }
    }
}
