//! A vote that was given is never forgotten: what a server has promised durably only grows, over restarts too.

use std::collections::BTreeMap;

use coracle_raft::wal::Ballot;

use super::Held;

/// The last durable vote of each server.
#[derive(Debug, Default)]
pub struct Votes {
    last: BTreeMap<usize, (u64, u64, bool)>,
}

impl Votes {
    /// A server has reported a vote as durable.
    ///
    /// # Errors
    /// It had promised a later one.
    pub fn gave(&mut self, server: usize, ballot: &Ballot) -> Held {
        let vote = (ballot.term, ballot.node, ballot.committed);
        match self.last.insert(server, vote) {
            // (term, node) is what is promised; that it was elected is added later and may come late.
            Some(before) if (before.0, before.1) > (vote.0, vote.1) => {
                Err(format!("server {server} had voted {before:?} and votes {vote:?}"))
            }
            _ => Ok(()),
        }
    }
}
