//! One leader for each leadership. A leadership is a term and the node that was elected in it: the library orders both together,
//! so two nodes may be elected one after the other in one term, and the later deposes the earlier. Within one leadership there
//! is one log: entries at the same place are the same, on whichever disk.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use coracle_raft::wal::{Entry, Payload, Position};

use super::Held;

/// Every entry that ever was durable on some disk.
#[derive(Debug, Default)]
pub struct Leaders {
    entries: BTreeMap<Position, u64>,
}

impl Leaders {
    /// An entry is durable on a server.
    ///
    /// # Errors
    /// Another entry of the same leadership was at its place: two servers, or one that forgot, led in it.
    pub fn wrote(&mut self, server: usize, entry: &Entry) -> Held {
        let mut hasher = DefaultHasher::new();
        match &entry.payload {
            Payload::Blank => 0_u8.hash(&mut hasher),
            Payload::Commands(bytes) => (1_u8, bytes).hash(&mut hasher),
            Payload::Members(bytes) => (2_u8, bytes).hash(&mut hasher),
        }
        let content = hasher.finish();
        match self.entries.insert(entry.at, content) {
            Some(other) if other != content => {
                Err(format!("server {server} has another entry at {:?} than another server had", entry.at))
            }
            _ => Ok(()),
        }
    }
}
