//! The last changes, kept for watchers that resume: a ring bounded by bytes, without gaps.

use std::collections::VecDeque;

use coracle_base::Revision;

use crate::Event;

/// What history no longer holds: a watcher must list again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("changes after the requested revision are no longer kept; the oldest revision to resume from is {oldest}")]
pub struct Gone {
    /// The oldest revision a watcher can resume from.
    pub oldest: Revision,
}

/// Events of consecutive revisions up to the store's own.
#[derive(Debug, Default)]
pub(crate) struct History {
    events: VecDeque<Event>,
    bytes: usize,
    /// Everything after this revision is held.
    floor: Revision,
}

impl History {
    pub fn starting_at(floor: Revision) -> Self {
        Self { floor, ..Self::default() }
    }

    pub fn push(&mut self, event: Event, limit_bytes: usize) {
        self.bytes += cost(&event);
        self.events.push_back(event);
        while self.bytes > limit_bytes {
            let Some(dropped) = self.events.pop_front() else { break };
            self.bytes -= cost(&dropped);
            self.floor = dropped.revision;
        }
    }

    pub fn after(&self, revision: Revision, resource: Option<&str>) -> Result<Vec<Event>, Gone> {
        if revision < self.floor {
            return Err(Gone { oldest: self.floor });
        }
        let first = self.events.partition_point(|event| event.revision <= revision);
        let wanted = |event: &&Event| resource.is_none_or(|resource| &*event.object.key.resource == resource);
        Ok(self.events.range(first..).filter(wanted).cloned().collect())
    }

    pub fn oldest(&self) -> Revision {
        self.floor
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

// The prior object is usually held by the event before; counting it again errs on the side of less memory. Parsed trees
// weigh several times their text.
fn cost(event: &Event) -> usize {
    let prior = event.prior.as_ref().map_or(0, |prior| prior.weight());
    size_of::<Event>() + event.object.weight() + prior
}
