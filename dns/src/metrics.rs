//! What the server counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Response codes counted by number; higher ones (EDNS) share the last place.
const CODES: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) udp: Counter,
    pub(crate) tcp: Counter,
    pub(crate) dropped: Counter,
    pub(crate) cache_hits: Counter,
    pub(crate) cache_misses: Counter,
    pub(crate) coalesced: Counter,
    pub(crate) stale: Counter,
    pub(crate) forward_failures: Counter,
    codes: [Counter; CODES],
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// All counts at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MetricsSnapshot {
    /// Questions that came by UDP.
    pub udp: u64,
    /// Questions that came by TCP.
    pub tcp: u64,
    /// Packets that deserved no answer: not DNS, or answers themselves.
    pub dropped: u64,
    /// Forwarded questions answered from the cache.
    pub cache_hits: u64,
    /// Forwarded questions that had to be asked upstream.
    pub cache_misses: u64,
    /// Forwarded questions that joined an equal one already being asked.
    pub coalesced: u64,
    /// Expired answers given because no upstream answered.
    pub stale: u64,
    /// Forwarded questions no upstream answered.
    pub forward_failures: u64,
    /// Answers by response code (0 NOERROR, 2 SERVFAIL, 3 NXDOMAIN, ...); 15 counts all higher ones.
    pub codes: [u64; CODES],
}

impl Metrics {
    pub(crate) fn code(&self, code: u16) {
        self.codes[usize::from(code).min(CODES - 1)].add();
    }

    pub(crate) fn snapshot(&self) -> MetricsSnapshot {
        MetricsSnapshot {
            udp: self.udp.get(),
            tcp: self.tcp.get(),
            dropped: self.dropped.get(),
            cache_hits: self.cache_hits.get(),
            cache_misses: self.cache_misses.get(),
            coalesced: self.coalesced.get(),
            stale: self.stale.get(),
            forward_failures: self.forward_failures.get(),
            codes: std::array::from_fn(|code| self.codes[code].get()),
        }
    }
}
