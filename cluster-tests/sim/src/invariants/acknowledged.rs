//! What was acknowledged is there at the end, in everybody's state and history.

use std::collections::BTreeMap;

use super::Held;

/// The last acknowledged write of each key: revision and value.
#[derive(Debug, Default)]
pub struct Acknowledged {
    writes: BTreeMap<u64, (String, String)>,
}

impl Acknowledged {
    /// A write was acknowledged at this revision.
    ///
    /// # Errors
    /// Another write was, too.
    pub fn wrote(&mut self, revision: u64, key: &str, value: &str) -> Held {
        let write = (key.to_owned(), value.to_owned());
        match self.writes.insert(revision, write.clone()) {
            Some(other) if other != write => {
                Err(format!("revision {revision} was acknowledged for {other:?} and for {write:?}"))
            }
            _ => Ok(()),
        }
    }

    /// The newest revision that was acknowledged.
    #[must_use]
    pub fn newest(&self) -> u64 {
        self.writes.last_key_value().map_or(0, |(revision, _)| *revision)
    }

    /// How many writes were.
    #[must_use]
    pub fn count(&self) -> usize {
        self.writes.len()
    }

    /// Compares with the history that watchers agree on, and with a state in which `revision_of` says when a key last changed.
    ///
    /// # Errors
    /// A write is in neither or another one stands where it should.
    pub fn survive(
        &self,
        history: &BTreeMap<u64, (String, String)>,
        revision_of: impl Fn(&str) -> Option<u64>,
    ) -> Held {
        for (revision, write) in &self.writes {
            // Revisions that every watcher got in a relist only are not in the history.
            if let Some(seen) = history.get(revision)
                && seen != write
            {
                return Err(format!("acknowledged {write:?} at revision {revision}, where watchers saw {seen:?}"));
            }
            match revision_of(&write.0) {
                Some(now) if now >= *revision => {}
                now => return Err(format!("acknowledged {write:?} at revision {revision}; the key is at {now:?} now")),
            }
        }
        Ok(())
    }
}
