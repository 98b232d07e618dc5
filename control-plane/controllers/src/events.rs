//! Events are for people who look now: older than an hour, or too many, and they go.
//!
//! Cost: one walk over the events.

use std::sync::Arc;

use coracle_base::Millis;
use coracle_store::{Expect, Object, Op, Transaction, View};

use crate::Ids;
use crate::objects::millis;

/// Upstream's default `--event-ttl`.
const LIFE_MS: Millis = 60 * 60 * 1000;
/// They are held in memory on every server: about 1 KB each.
const MOST: usize = 5_000;
/// So many go in one plan; the next goes on.
const BATCH: usize = 500;

/// What should change now.
#[must_use]
pub fn plan(view: &View, now: Millis, _ids: &mut dyn Ids) -> Vec<Transaction> {
    let mut events: Vec<(Millis, &Arc<Object>)> =
        view.list("events", None).map(|event| (last_seen(event), event)).collect();
    let surplus = events.len().saturating_sub(MOST);
    if surplus > 0 {
        events.sort_by(|left, right| (left.0, &left.1.key).cmp(&(right.0, &right.1.key)));
    }
    let ops: Vec<Op> = events
        .iter()
        .enumerate()
        .filter(|(index, (at, _))| *index < surplus || at.saturating_add(LIFE_MS) < now)
        .take(BATCH)
        .map(|(_, (_, event))| Op::Delete {
            key: event.key.clone(),
            expect: Expect { uid: Some(event.uid.clone()), revision: None },
        })
        .collect();
    if ops.is_empty() { Vec::new() } else { vec![Transaction { ops }] }
}

/// When it was last said. One without any time counts as old.
fn last_seen(event: &Object) -> Millis {
    let tree = event.tree();
    let times = [
        &tree["series"]["lastObservedTime"],
        &tree["lastTimestamp"],
        &tree["eventTime"],
        &tree["metadata"]["creationTimestamp"],
    ];
    times.into_iter().filter_map(millis).max().unwrap_or(0)
}
