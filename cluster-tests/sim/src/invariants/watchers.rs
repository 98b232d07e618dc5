//! A watcher sees every revision once, in order, and all watchers see the same.

use std::collections::BTreeMap;

use super::Held;

/// What watchers have seen: at which revision which key got which value.
#[derive(Debug, Default)]
pub struct Watchers {
    history: BTreeMap<u64, (String, String)>,
}

impl Watchers {
    /// A watcher that has seen everything up to `last` gets the next event.
    ///
    /// # Errors
    /// It is not the next, or others saw something else there.
    pub fn saw(&mut self, watcher: usize, last: u64, revision: u64, key: &str, value: &str) -> Held {
        if revision != last + 1 {
            return Err(format!("watcher {watcher} saw revision {revision} after {last}"));
        }
        let event = (key.to_owned(), value.to_owned());
        match self.history.insert(revision, event.clone()) {
            Some(other) if other != event => {
                Err(format!("watcher {watcher} saw {event:?} at revision {revision}, another one {other:?}"))
            }
            _ => Ok(()),
        }
    }

    /// All that was seen.
    #[must_use]
    pub fn history(&self) -> &BTreeMap<u64, (String, String)> {
        &self.history
    }
}
