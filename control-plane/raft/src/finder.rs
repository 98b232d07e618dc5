//! Finds servers that are no longer where the log says: who misses one asks at every address it knows of who is there.
//!
//! Questions that go to the wrong server teach both ends something, but not enough. Say three servers have come back with each
//! other's addresses, and the second leads with the vote of the first: where the log has the third is the second itself; where the
//! third looks for the second it finds the first; and the address where the third is now nobody asks any more, because the first,
//! who was there, has been found elsewhere.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::handle::Raft;
use crate::members::Member;
use crate::wire::{Answer, Request};

const LOOK_EVERY: Duration = Duration::from_millis(400);
/// Between looks for the same servers: a dead one costs a knock at each address.
const LOOK_SELDOM: Duration = Duration::from_secs(5);
/// Beats come ten times a second.
const MISSED_AFTER: Duration = Duration::from_secs(1);
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Addresses that others have named, beyond those in the log and the book.
const RUMOURS: usize = 64;

/// Runs until the stop.
pub(crate) async fn run(raft: Raft, mut stop: watch::Receiver<bool>) {
    let mut pause = LOOK_EVERY;
    let mut missed_before = BTreeSet::new();
    let mut rumours = BTreeSet::new();
    loop {
        tokio::select! {
            // Cancel safe both.
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let missed = missed(&raft);
        if missed.is_empty() {
            rumours.clear();
        } else {
            tokio::select! {
                // Cancel safe: what is not heard now is asked for again.
                heard = ask_everywhere(&raft, &rumours) => rumours = heard,
                _ = stop.wait_for(|stop| *stop) => return,
            }
        }
        pause = if missed.is_empty() || missed != missed_before { LOOK_EVERY } else { (2 * pause).min(LOOK_SELDOM) };
        missed_before = missed;
    }
}

/// The servers this one should be in touch with and is not: a leader with all, the others with the leader, and with all when none leads.
fn missed(raft: &Raft) -> BTreeSet<u64> {
    let (own, caller) = (raft.identity().node, &raft.inner().caller);
    let silent = |server: &u64| caller.silent(*server).is_none_or(|silent| silent > MISSED_AFTER);
    let leader = *raft.leader_changes().borrow();
    if leader.is_some_and(|leader| leader != own && !silent(&leader)) {
        return BTreeSet::new();
    }
    raft.members().servers.keys().filter(|server| **server != own && silent(server)).copied().collect()
}

/// Asks at every known address who is there, all at once; the addresses that the answers name.
async fn ask_everywhere(raft: &Raft, rumours: &BTreeSet<String>) -> BTreeSet<String> {
    let caller = &raft.inner().caller;
    let mut addresses: BTreeSet<String> = caller.addresses().into_iter().collect();
    addresses.extend(raft.members().servers.into_values().map(|member| member.address));
    addresses.extend(rumours.iter().take(RUMOURS).cloned());
    addresses.remove(&caller.own().address);
    addresses.remove("");
    let mut asked = JoinSet::new();
    for address in addresses {
        let caller = caller.clone();
        asked.spawn(async move {
            let answer = caller.ask_at(&address, 0, &Request::Hello, ANSWER_WITHIN).await;
            (address, answer)
        });
    }
    let mut named = BTreeSet::new();
    while let Some(answer) = asked.join_next().await {
        match answer {
            Ok((address, Ok((Answer::Hello { server, members, .. }, release)))) => {
                tracing::debug!(server = format!("{server:016x}"), address, "a server is found");
                caller.learn(server, &Member { address, ..Member::default() });
                caller.hear(server, &release);
                named.extend(members.servers.into_values().map(|member| member.address));
            }
            Ok((address, Ok(_))) => tracing::debug!(address, "no server of this cluster is there"),
            Ok((address, Err(error))) => {
                tracing::debug!(address, error = coracle_base::one_line(&error), "no server is found there");
            }
            Err(error) => tracing::error!(%error, "looking for a server panicked"),
        }
    }
    named
}
