//! What everybody in the world has seen, and the first promise that was found broken.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use coracle_raft::wal::Record;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::Bug;
use crate::invariants::Held;
use crate::invariants::acknowledged::Acknowledged;
use crate::invariants::leaders::Leaders;
use crate::invariants::linearizable::{Did, Operation};
use crate::invariants::states::States;
use crate::invariants::votes::Votes;
use crate::invariants::watchers::Watchers;

/// All that is known.
#[derive(Debug, Default)]
pub struct Known {
    stamp: u64,
    /// What clients did.
    pub operations: Vec<Operation>,
    /// What was acknowledged to them.
    pub acknowledged: Acknowledged,
    /// What watchers saw.
    pub watchers: Watchers,
    /// States by revision.
    pub states: States,
    /// Entries by place.
    pub leaders: Leaders,
    /// Votes by server.
    pub votes: Votes,
    /// The first broken promise.
    pub broken: Option<String>,
    /// Clients begin nothing more.
    pub ending: bool,
    /// Servers that took a write since faults ended.
    pub healed: Vec<bool>,
    /// Clients that run, by the life of the server they belong to.
    pub clients: BTreeMap<(usize, u64), usize>,
}

impl Known {
    /// The next moment: all that happens is in this order.
    pub fn stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    /// Remembers the first broken promise.
    pub fn judge(&mut self, held: Held) {
        if let Err(how) = held {
            self.broken.get_or_insert(how);
        }
    }

    /// An operation begins; its number.
    pub fn begin(&mut self, key: &str, did: Did) -> usize {
        let begun = self.stamp();
        self.operations.push(Operation { key: key.to_owned(), begun, ended: None, did });
        self.operations.len() - 1
    }
}

/// Shared by everybody in one world.
#[derive(Debug, Clone, Default)]
pub struct Oracle {
    known: Arc<Mutex<Known>>,
}

impl Oracle {
    /// To look or to add.
    pub fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pace of one server's log, which tells the oracle what is durable.
#[derive(Debug)]
pub struct Pace {
    server: usize,
    bug: Option<Bug>,
    oracle: Oracle,
    rng: Mutex<StdRng>,
}

impl Pace {
    /// For one life of a server.
    #[must_use]
    pub fn new(server: usize, seed: u64, bug: Option<Bug>, oracle: Oracle) -> Self {
        Self { server, bug, oracle, rng: Mutex::new(StdRng::seed_from_u64(seed)) }
    }
}

impl coracle_raft::wal::Pace for Pace {
    fn frame(&self) -> Duration {
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        // Mostly a good disk, now and then one that is busy with something else.
        Duration::from_millis(if rng.random_bool(0.02) { rng.random_range(20..200) } else { rng.random_range(1..4) })
    }

    fn keeps(&self, record: &Record) -> bool {
        !(self.bug == Some(Bug::SkipVotePersist) && matches!(record, Record::Ballot(_)))
    }

    fn durable(&self, records: &[Record]) {
        let mut known = self.oracle.known();
        for record in records {
            let held = match record {
                Record::Entry(entry) => known.leaders.wrote(self.server, entry),
                Record::Ballot(ballot) => known.votes.gave(self.server, ballot),
                _ => Ok(()),
            };
            known.judge(held);
        }
    }
}
