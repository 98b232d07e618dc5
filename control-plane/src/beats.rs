//! Beats on their way to the leader, and what comes back; on every server, twice a second.

use std::time::{Duration, Instant};

use coracle_daemon::DrainWatch;
use coracle_raft::Raft;

use crate::peers::ServerPeers;
use crate::sessions::Sessions;

const EVERY: Duration = Duration::from_millis(500);
/// A server that has not heard of a leader for so long sends its agents away.
const LOST_AFTER: Duration = Duration::from_secs(3);

/// Runs until the drain.
pub(crate) async fn run(raft: Raft, peers: ServerPeers, sessions: Sessions, drain: DrainWatch) {
    let own = raft.identity().node;
    let mut heard_leader = Instant::now();
    loop {
        tokio::select! {
            // Cancel safe both.
            () = tokio::time::sleep(EVERY) => {}
            () = drain.signaled() => return,
        }
        let members = raft.members();
        let mut servers: Vec<String> = members
            .servers
            .values()
            .map(|member| member.address.clone())
            .filter(|address| !address.is_empty())
            .collect();
        servers.sort();
        sessions.servers_are(servers);
        if raft.is_alone() {
            heard_leader = Instant::now();
        }
        let leader = *raft.leader_changes().borrow();
        let leases = match leader {
            Some(leader) if leader == own => {
                let report = sessions.report(own);
                let nodes: Vec<(String, u64)> = report
                    .beats
                    .into_iter()
                    .filter(|beat| beat.connected)
                    .map(|beat| (beat.node, beat.sent_boottime_ms))
                    .collect();
                // As for the beats that others bring: a majority confirms after they came.
                if raft.confirm_leading().await {
                    heard_leader = Instant::now();
                    sessions.grant(&nodes)
                } else {
                    Vec::new()
                }
            }
            Some(leader) => {
                let address = raft.address_of(leader).unwrap_or_default();
                match peers.beats(&address, sessions.report(own)).await {
                    Ok(answer) => {
                        heard_leader = Instant::now();
                        answer.leases
                    }
                    Err(error) => {
                        tracing::debug!(error = coracle_base::one_line(&error), "the leader did not take the beats");
                        Vec::new()
                    }
                }
            }
            None => Vec::new(),
        };
        sessions.pass_on(leases);
        sessions.is_useful(heard_leader.elapsed() < LOST_AFTER);
    }
}
