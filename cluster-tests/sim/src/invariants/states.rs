//! Servers at the same revision and the same cluster level have the same state: a level is raised without a revision.

use std::collections::BTreeMap;

use super::Held;

/// The hash of the state at each revision and level somebody was seen at.
#[derive(Debug, Default)]
pub struct States {
    hashes: BTreeMap<(u64, u32), u64>,
}

impl States {
    /// A look at a server.
    ///
    /// # Errors
    /// Another one was different at this revision.
    pub fn see(&mut self, server: usize, (revision, level): (u64, u32), hash: u64) -> Held {
        match self.hashes.insert((revision, level), hash) {
            Some(other) if other != hash => {
                Err(format!("server {server} has another state at revision {revision} than another server had"))
            }
            _ => Ok(()),
        }
    }
}
