//! Beats on their way to the leader, and what comes back; on every server, twice a second.

use std::sync::Arc;
use std::time::Duration;

use coracle_api::BoxFuture;
use coracle_daemon::DrainWatch;
use coracle_protocol::v1::{BeatsAnswer, BeatsReport};
use coracle_raft::{PeerError, Raft};
use tokio::time::Instant;

use crate::sessions::Sessions;

const EVERY: Duration = Duration::from_millis(500);
/// A server that has not heard of a leader for so long sends its agents away.
const LOST_AFTER: Duration = Duration::from_secs(3);

/// The way of beats to the leader.
pub trait Carrier: Send + Sync {
    /// Tells the server at an address, which leads, what another one knows of its agents.
    fn beats(&self, address: &str, report: BeatsReport) -> BoxFuture<'_, Result<BeatsAnswer, PeerError>>;
}

/// The right to grant leases. The leader's log has it; a simulation shows what happens when somebody else takes it.
pub trait Mandate: Send + Sync {
    /// Whether this server leads, as far as it knows.
    fn leads(&self) -> bool;
    /// Whether a majority confirms it, in a round begun after this call.
    fn confirmed(&self) -> BoxFuture<'_, bool>;
}

impl Mandate for Raft {
    fn leads(&self) -> bool {
        self.is_leader()
    }

    fn confirmed(&self) -> BoxFuture<'_, bool> {
        Box::pin(self.confirm_leading())
    }
}

/// Another server brings the beats of its agents: what it gets for them. `None`: this one does not lead.
pub(crate) async fn hear(mandate: &dyn Mandate, sessions: &Sessions, report: BeatsReport) -> Option<BeatsAnswer> {
    if !mandate.leads() {
        return None;
    }
    let nodes: Vec<(String, u64)> =
        report.beats.iter().map(|beat| (beat.node.clone(), beat.sent_boottime_ms)).collect();
    sessions.hear_of(report);
    // The round is begun after the beats have come: nobody else can have led meanwhile.
    let leases = if mandate.confirmed().await { sessions.grant(&nodes) } else { Vec::new() };
    Some(BeatsAnswer { leases })
}

/// Runs until the drain.
pub(crate) async fn run(
    raft: Raft,
    carrier: Arc<dyn Carrier>,
    mandate: Arc<dyn Mandate>,
    sessions: Sessions,
    drain: DrainWatch,
) {
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
            _ if mandate.leads() => {
                let report = sessions.report(own);
                let nodes: Vec<(String, u64)> = report
                    .beats
                    .into_iter()
                    .filter(|beat| beat.connected)
                    .map(|beat| (beat.node, beat.sent_boottime_ms))
                    .collect();
                // As for the beats that others bring: a majority confirms after they came.
                if mandate.confirmed().await {
                    heard_leader = Instant::now();
                    sessions.grant(&nodes)
                } else {
                    Vec::new()
                }
            }
            Some(leader) => {
                let address = raft.address_of(leader).unwrap_or_default();
                match carrier.beats(&address, sessions.report(own)).await {
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
