//! Which servers vote: one, three or five, chosen by themselves; the rest learn and stand by.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::ChangeMembers;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::handle::Raft;
use crate::members::{Member, Members};

const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A server that has acknowledged something this long ago lives.
const LIVE_WITHIN: Duration = Duration::from_secs(2);
/// A voter that has been silent so long is replaced by a learner, when there is one.
const REPLACE_AFTER: Duration = Duration::from_secs(30);
/// A leader with a bad disk that leads again soon had good reason: the others are no better.
const GIVE_WAY_AGAIN: Duration = Duration::from_secs(30);
/// A learner that is no further behind has caught up.
const CAUGHT_UP: u64 = 256;

/// How a server looks to the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    /// Since it acknowledged something; `None`: never since this server leads.
    pub silent: Option<Duration>,
    /// The last entry it is known to have.
    pub matched: u64,
}

/// How many of so many servers vote.
fn target(servers: usize) -> usize {
    match servers {
        0..=2 => 1,
        3 | 4 => 3,
        _ => 5,
    }
}

/// The voters there should be; `None` when they are right as they are or nothing better is at hand. The leader stays one.
fn plan(members: &Members, leader: u64, health: &BTreeMap<u64, Health>, last: u64) -> Option<BTreeSet<u64>> {
    let [voters] = members.voters.as_slice() else { return None };
    let silent = |server: &u64| health.get(server).and_then(|health| health.silent);
    let fit = |server: &u64| {
        let caught_up = health.get(server).is_some_and(|health| health.matched + CAUGHT_UP >= last);
        caught_up && silent(server).is_some_and(|silent| silent < LIVE_WITHIN)
    };
    let wanted = target(members.servers.len());
    let mut spare = members.servers.keys().filter(|server| !voters.contains(server) && fit(server)).copied();
    let mut planned: BTreeSet<u64> = voters.clone();
    for voter in voters {
        let gone = *voter != leader && silent(voter).is_none_or(|silent| silent > REPLACE_AFTER);
        if gone && let Some(other) = spare.next() {
            planned.remove(voter);
            planned.insert(other);
        }
    }
    while planned.len() < wanted {
        let Some(other) = spare.next() else { break };
        planned.insert(other);
    }
    while planned.len() > wanted {
        let Some(other) = planned.iter().rev().find(|voter| **voter != leader).copied() else { break };
        planned.remove(&other);
    }
    // An even number of voters survives no more than the odd one below it.
    (planned != *voters && (planned.len() % 2 == 1 || planned.len() < voters.len())).then_some(planned)
}

/// Keeps voters and addresses as they should be, for as long as this server leads.
pub(crate) async fn keep(raft: Raft, mut stop: watch::Receiver<bool>) {
    let mut complained = String::new();
    let mut leads_since: Option<Instant> = None;
    let mut gave_way: Option<Instant> = None;
    loop {
        tokio::select! {
            // Cancel safe both.
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        if !raft.is_leader() {
            leads_since = None;
            continue;
        }
        let since = *leads_since.get_or_insert_with(Instant::now);
        // A leader whose own disk takes no more, or hangs, keeps everybody waiting: another one leads.
        if raft.is_hindered() && gave_way.is_none_or(|at| at.elapsed() > GIVE_WAY_AGAIN) {
            gave_way = Some(Instant::now());
            match raft.hand_over().await {
                Ok(()) => tracing::warn!("this server's disk hinders it: another one leads now"),
                Err(reason) => tracing::warn!(reason, "this server's disk hinders it, and no other can lead"),
            }
            continue;
        }
        let members = raft.members();
        raft.raise_level(&members).await;
        let change = match moved(&raft, &members) {
            Some(moved) => Some(ChangeMembers::SetNodes(moved)),
            None => {
                let mut health = raft.health();
                // What a new leader has not heard of yet has been silent for as long as it leads.
                for health in health.values_mut() {
                    health.silent = health.silent.or(Some(since.elapsed()));
                }
                let last = raft.metrics().last_index;
                plan(&members, raft.identity().node, &health, last).map(ChangeMembers::ReplaceAllVoters)
            }
        };
        let Some(change) = change else { continue };
        tracing::info!(?change, "the cluster's servers change");
        if let Err(reason) = raft.change(change).await
            && complained != reason
        {
            tracing::warn!(reason, "the cluster's servers could not be changed");
            complained = reason;
        }
    }
}

/// Servers that are not where the log says.
fn moved(raft: &Raft, members: &Members) -> Option<BTreeMap<u64, Member>> {
    let own = raft.inner().caller.own();
    let moved: BTreeMap<u64, Member> = members
        .servers
        .iter()
        .filter_map(|(server, recorded)| {
            let now = if *server == raft.identity().node {
                own.clone()
            } else {
                let mut known = raft.inner().caller.known(*server)?;
                // Known by its address only.
                if known.name.is_empty() {
                    known = Member { address: known.address, ..recorded.clone() };
                }
                known
            };
            (!now.address.is_empty() && now != *recorded).then_some((*server, now))
        })
        .collect();
    (!moved.is_empty()).then_some(moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(voters: &[u64], all: &[u64]) -> Members {
        Members {
            voters: vec![voters.iter().copied().collect()],
            servers: all.iter().map(|server| (*server, Member::default())).collect(),
        }
    }

    fn health(silent: &[(u64, u64)]) -> BTreeMap<u64, Health> {
        let of = |seconds: u64| Health { silent: Some(Duration::from_secs(seconds)), matched: 1000 };
        silent.iter().map(|(server, seconds)| (*server, of(*seconds))).collect()
    }

    fn set(servers: &[u64]) -> Option<BTreeSet<u64>> {
        Some(servers.iter().copied().collect())
    }

    #[test]
    fn one_three_or_five_vote() {
        let alive = health(&[(1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0)]);
        assert_eq!(plan(&members(&[1], &[1, 2]), 1, &alive, 1000), None);
        assert_eq!(plan(&members(&[1], &[1, 2, 3]), 1, &alive, 1000), set(&[1, 2, 3]));
        assert_eq!(plan(&members(&[1, 2, 3], &[1, 2, 3, 4]), 1, &alive, 1000), None);
        assert_eq!(plan(&members(&[1, 2, 3], &[1, 2, 3, 4, 5]), 1, &alive, 1000), set(&[1, 2, 3, 4, 5]));
        assert_eq!(plan(&members(&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5, 6]), 1, &alive, 1000), None);
        // One has left for good.
        assert_eq!(plan(&members(&[2, 3], &[2, 3]), 3, &alive, 1000), set(&[3]));
    }

    #[test]
    fn who_is_behind_or_silent_does_not_begin_to_vote() {
        let mut some = health(&[(1, 0), (2, 0), (3, 5)]);
        assert_eq!(plan(&members(&[1], &[1, 2, 3]), 1, &some, 1000), None);
        some = health(&[(1, 0), (2, 0), (3, 0)]);
        assert_eq!(plan(&members(&[1], &[1, 2, 3]), 1, &some, 9000), None);
    }

    #[test]
    fn a_dead_voter_is_replaced_only_when_there_is_another() {
        let some = health(&[(1, 0), (2, 0), (3, 60), (4, 0)]);
        assert_eq!(plan(&members(&[1, 2, 3], &[1, 2, 3]), 1, &some, 1000), None);
        assert_eq!(plan(&members(&[1, 2, 3], &[1, 2, 3, 4]), 1, &some, 1000), set(&[1, 2, 4]));
        let brief = health(&[(1, 0), (2, 0), (3, 10), (4, 0)]);
        assert_eq!(plan(&members(&[1, 2, 3], &[1, 2, 3, 4]), 1, &brief, 1000), None);
    }
}
