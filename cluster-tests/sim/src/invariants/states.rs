//! Servers at the same revision have the same state.

use std::collections::BTreeMap;

use super::Held;

/// The hash of the state at each revision somebody was seen at.
#[derive(Debug, Default)]
pub struct States {
    hashes: BTreeMap<u64, u64>,
}

impl States {
    /// A look at a server.
    ///
    /// # Errors
    /// Another one was different at this revision.
    pub fn see(&mut self, server: usize, revision: u64, hash: u64) -> Held {
        match self.hashes.insert(revision, hash) {
            Some(other) if other != hash => {
                Err(format!("server {server} has another state at revision {revision} than another server had"))
            }
            _ => Ok(()),
        }
    }
}
