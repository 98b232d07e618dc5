//! The network between the servers: messages wait in one queue, ordered by when they arrive, and by seed some never do.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_raft::{Carried, Message, PeerError, Peers};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::oneshot;

/// Who waits for an answer.
pub type Reply = oneshot::Sender<Result<Message, PeerError>>;

/// Something on its way.
#[derive(Debug)]
pub enum Letter {
    /// From a server, with who waits for the answer; nobody for a copy.
    Question(usize, Message, Option<Reply>),
    /// An answer, or that nobody was there.
    Answer(Result<Message, PeerError>, Reply),
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
    rng: StdRng,
}

impl State {
    fn post(&mut self, to: usize, letter: Letter) {
        let due = self.now + self.rng.random_range(1..=self.slow.max(1));
        self.sent += 1;
        self.queue.insert((due, self.sent), (to, letter));
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

/// Where a server listens.
#[must_use]
pub fn address(server: usize) -> String {
    format!("s{server}:6444")
}

fn server_at(address: &str) -> Option<usize> {
    address.strip_prefix('s')?.split(':').next()?.parse().ok()
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
    pub fn answer(&self, from: usize, to: usize, answer: Result<Message, PeerError>, reply: Reply) {
        let mut state = self.state();
        if state.passes(from, to) {
            state.post(to, Letter::Answer(answer, reply));
        }
    }

    fn ask(&self, from: usize, to: usize, once: bool, question: Message, reply: Reply) {
        let mut state = self.state();
        if !state.passes(from, to) {
            return;
        }
        let twice = state.twice;
        // A transport carries a proposal once or not at all; only what Raft itself repeats comes twice.
        if !once && twice > 0.0 && state.rng.random_bool(twice) {
            state.post(to, Letter::Question(from, question.clone(), None));
        }
        state.post(to, Letter::Question(from, question, Some(reply)));
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

impl Peers for Plug {
    fn ask(&self, address: &str, bulk: bool, question: Message, _within: Duration) -> Carried<'_> {
        let address = address.to_owned();
        Box::pin(async move {
            let Some(to) = server_at(&address) else {
                return Err(PeerError::Unreachable { address, reason: "no such server".to_owned() });
            };
            let (reply, answer) = oneshot::channel();
            self.network.ask(self.from, to, bulk, question, reply);
            match answer.await {
                Ok(answer) => answer,
                // It was lost: the asker's own patience ends this.
                Err(_) => std::future::pending().await,
            }
        })
    }
}
