//! What the door counts.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Requests by verb and resource. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ApiMetrics {
    counts: Arc<Mutex<BTreeMap<(String, String, u16), (u64, u64)>>>,
}

impl ApiMetrics {
    pub(crate) fn count(&self, verb: &str, resource: &str, code: u16, took: Duration) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        // Verbs and resources come from our tables, codes from our answers: the map is small and cannot be grown by strangers.
        let entry = counts.entry((verb.to_owned(), resource.to_owned(), code)).or_default();
        entry.0 += 1;
        entry.1 += u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    }

    /// `(verb, resource, code, requests, microseconds in all)`.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(String, String, u16, u64, u64)> {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts
            .iter()
            .map(|((verb, resource, code), (requests, micros))| {
                (verb.clone(), resource.clone(), *code, *requests, *micros)
            })
            .collect()
    }
}
