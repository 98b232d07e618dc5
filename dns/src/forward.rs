//! Questions for names that are not ours: cache, then an equal question already on its way, then upstream.
//!
//! Joining equal questions also damps loops: a question that comes back to us through some other server waits for
//! itself and times out, instead of going round.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

use crate::cache::{Answer, Cache, Key};
use crate::config::MAX_WAITERS;
use crate::metrics::Metrics;
use crate::upstream::Upstream;

/// The forwarder. One for all loops of a server.
pub(crate) struct Forwarder {
    upstream: Upstream,
    state: Mutex<State>,
    metrics: Arc<Metrics>,
}

struct State {
    cache: Cache,
    /// Questions on their way, and who waits for the answer.
    asked: HashMap<Key, Vec<oneshot::Sender<Arc<Answer>>>>,
}

/// What there is without asking upstream.
enum Found {
    Fresh(Arc<Answer>),
    OnItsWay(oneshot::Receiver<Arc<Answer>>),
    MustAsk,
    TooMany,
}

impl Forwarder {
    pub(crate) fn new(upstream: Upstream, metrics: Arc<Metrics>) -> Forwarder {
        Forwarder { upstream, state: Mutex::new(State { cache: Cache::new(), asked: HashMap::new() }), metrics }
    }

    /// An answer that needs no waiting.
    pub(crate) fn cached(&self, key: &Key) -> Option<Answer> {
        let answer = self.state().cache.fresh(key, Instant::now())?;
        self.metrics.cache_hits.add();
        Some(answer)
    }

    /// The answer; SERVFAIL when nobody has one. Dropping the future is safe: whoever joined is told SERVFAIL.
    pub(crate) async fn resolve(&self, key: Key) -> Arc<Answer> {
        match self.find(&key) {
            Found::Fresh(answer) => answer,
            Found::OnItsWay(answer) => {
                self.metrics.coalesced.add();
                answer.await.unwrap_or_else(|_| Arc::new(Answer::failure()))
            }
            Found::MustAsk => {
                self.metrics.cache_misses.add();
                let asking = Asking { forwarder: self, key: &key };
                let answer = self.ask(&key).await;
                asking.answered(&answer);
                answer
            }
            Found::TooMany => Arc::new(Answer::failure()),
        }
    }

    fn find(&self, key: &Key) -> Found {
        let mut state = self.state();
        if let Some(answer) = state.cache.fresh(key, Instant::now()) {
            self.metrics.cache_hits.add();
            return Found::Fresh(Arc::new(answer));
        }
        match state.asked.get_mut(key) {
            Some(waiters) if waiters.len() >= MAX_WAITERS => Found::TooMany,
            Some(waiters) => {
                let (sender, receiver) = oneshot::channel();
                waiters.push(sender);
                Found::OnItsWay(receiver)
            }
            None => {
                state.asked.insert(key.clone(), Vec::new());
                Found::MustAsk
            }
        }
    }

    async fn ask(&self, key: &Key) -> Arc<Answer> {
        let answer = self.upstream.ask(key).await;
        let now = Instant::now();
        let mut state = self.state();
        let usable = answer.map(Arc::new);
        if usable.as_ref().is_none_or(|answer| answer.code == hickory_proto::op::ResponseCode::ServFail) {
            self.metrics.forward_failures.add();
            if let Some(stale) = state.cache.stale(key, now) {
                self.metrics.stale.add();
                return Arc::new(stale);
            }
        }
        let answer = usable.unwrap_or_else(|| Arc::new(Answer::failure()));
        state.cache.store(key.clone(), answer.clone(), now);
        answer
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question on its way. Dropped early (the task was cancelled or panicked), it frees those who joined.
struct Asking<'a> {
    forwarder: &'a Forwarder,
    key: &'a Key,
}

impl Asking<'_> {
    fn answered(self, answer: &Arc<Answer>) {
        let waiters = self.forwarder.state().asked.remove(self.key).unwrap_or_default();
        for waiter in waiters {
            // A waiter that gave up needs no answer.
            drop(waiter.send(answer.clone()));
        }
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.forwarder.state().asked.remove(self.key);
    }
}
