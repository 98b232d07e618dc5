//! The last changes, kept for watchers that resume: a ring bounded by bytes, without gaps.

use std::collections::VecDeque;
use std::sync::Arc;

use coracle_base::Revision;

use crate::Event;

/// What history no longer holds: a watcher must list again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("changes after the requested revision are no longer kept; the oldest revision to resume from is {oldest}")]
pub struct Gone {
    /// The oldest revision a watcher can resume from.
    pub oldest: Revision,
}

/// Trees of the newest events are kept as long as they weigh no more than this: most watchers are up to date, and share them.
const WARM_BYTES: usize = 2 << 20;

/// Events of consecutive revisions up to the store's own.
///
/// The newest share their objects, parsed trees included, with the view. Older ones keep the bytes only, which are a tenth of
/// that, so the same limit holds ten times as many.
#[derive(Debug, Default)]
pub(crate) struct History {
    events: VecDeque<Event>,
    bytes: usize,
    /// How many of the newest keep their trees, and what these weigh.
    warm: VecDeque<usize>,
    warm_bytes: usize,
    /// Everything after this revision is held.
    floor: Revision,
}

impl History {
    pub fn starting_at(floor: Revision) -> Self {
        Self { floor, ..Self::default() }
    }

    pub fn push(&mut self, event: Event, limit_bytes: usize) {
        let tree = parsed_weight(&event);
        self.warm.push_back(tree);
        self.warm_bytes += tree;
        self.bytes += cost(&event);
        self.events.push_back(event);
        while self.warm_bytes > WARM_BYTES.min(limit_bytes) {
            self.cool();
        }
        while self.bytes > limit_bytes {
            let Some(dropped) = self.events.pop_front() else { break };
            self.bytes -= cost(&dropped);
            self.floor = dropped.revision;
            if self.warm.len() > self.events.len() {
                self.warm_bytes -= self.warm.pop_front().unwrap_or(0);
            }
        }
    }

    // The oldest event that has its trees lets them go.
    fn cool(&mut self) {
        let at = self.events.len() - self.warm.len();
        self.warm_bytes -= self.warm.pop_front().unwrap_or(0);
        if let Some(event) = self.events.get_mut(at) {
            *event = bare(event);
        }
    }

    pub fn after(&self, revision: Revision, resource: Option<&str>) -> Result<Vec<Event>, Gone> {
        if revision < self.floor {
            return Err(Gone { oldest: self.floor });
        }
        let first = self.events.partition_point(|event| event.revision <= revision);
        let cold = self.events.len() - self.warm.len();
        let wanted = |event: &Event| resource.is_none_or(|resource| &*event.object.key.resource == resource);
        let events = self.events.range(first..).enumerate().filter(|(_, event)| wanted(event));
        // A cold event is copied, so that the trees its reader parses are the reader's own.
        Ok(events.map(|(at, event)| if first + at < cold { bare(event) } else { event.clone() }).collect())
    }

    pub fn oldest(&self) -> Revision {
        self.floor
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

fn bare(event: &Event) -> Event {
    let prior = event.prior.as_ref().map(|prior| Arc::new(prior.bare()));
    Event { revision: event.revision, kind: event.kind, object: Arc::new(event.object.bare()), prior }
}

// What it weighs for good. The prior object's bytes are usually those of an event before; counting them again errs on the
// side of less memory.
fn cost(event: &Event) -> usize {
    let prior = event.prior.as_ref().map_or(0, |prior| prior.bare_weight());
    size_of::<Event>() + event.object.bare_weight() + prior
}

fn parsed_weight(event: &Event) -> usize {
    event.object.weight() + event.prior.as_ref().map_or(0, |prior| prior.weight())
}
