//! Ready or not: what the beats of the agents say about their nodes, as condition and taint.

use std::collections::BTreeMap;

use coracle_base::Millis;
use coracle_store::{Transaction, View};

/// How a node's last beat looks to the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// Since the last beat, or since this server began to lead when there was none.
    pub age_ms: Millis,
}

/// What should change now. A node that `beats` does not name is left as it is.
#[must_use]
pub fn plan(_view: &View, _now: Millis, _beats: &BTreeMap<String, Beat>) -> Vec<Transaction> {
    Vec::new()
}
