//! What the door counts: requests and how long they took, by verb, resource and answer.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the classes of time, microseconds; the last class has none.
pub const TIME_BOUNDS_MICROS: [u64; 8] = [500, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000];

/// Requests of one verb on one resource with one answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requests {
    /// `get`, `list`, `watch`, `create`, ...
    pub verb: &'static str,
    /// `pods`, `deployments.apps`; `meta` for discovery and the like.
    pub resource: &'static str,
    /// HTTP status.
    pub code: u16,
    /// How many.
    pub count: u64,
    /// How long they took in all, microseconds. Of a watch only its beginning counts.
    pub micros: u64,
    /// How many took at most the bound of each class, and more than all bounds.
    pub classes: [u64; TIME_BOUNDS_MICROS.len() + 1],
}

type Counts = BTreeMap<(&'static str, &'static str, u16), Requests>;

/// Requests by verb and resource. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct ApiMetrics {
    // Verbs and resources come from our tables, codes from our answers: the map is small and cannot be grown by strangers.
    counts: Arc<Mutex<Counts>>,
}

impl ApiMetrics {
    pub(crate) fn count(&self, verb: &'static str, resource: &'static str, code: u16, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let class = TIME_BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = counts.entry((verb, resource, code)).or_insert_with(|| Requests {
            verb,
            resource,
            code,
            count: 0,
            micros: 0,
            classes: [0; TIME_BOUNDS_MICROS.len() + 1],
        });
        entry.count += 1;
        entry.micros = entry.micros.saturating_add(micros);
        entry.classes[class] += 1;
    }

    /// All that was counted, by verb, resource and code.
    #[must_use]
    pub fn requests(&self) -> Vec<Requests> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// `(verb, resource, code, requests, microseconds in all)`.
    #[must_use]
    pub fn snapshot(&self) -> Vec<(String, String, u16, u64, u64)> {
        self.requests()
            .into_iter()
            .map(|of| (of.verb.to_owned(), of.resource.to_owned(), of.code, of.count, of.micros))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_fall_into_classes() {
        let metrics = ApiMetrics::default();
        for micros in [1, 500, 501, 2_000_000] {
            metrics.count("get", "pods", 200, Duration::from_micros(micros));
        }
        metrics.count("get", "pods", 404, Duration::ZERO);
        let requests = metrics.requests();
        assert_eq!((requests.len(), requests[0].count, requests[0].micros), (2, 4, 2_001_002));
        assert_eq!(requests[0].classes, [2, 1, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(metrics.snapshot()[1], ("get".to_owned(), "pods".to_owned(), 404, 1, 0));
    }
}
