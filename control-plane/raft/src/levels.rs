//! The cluster level: what every server understands, as the log has it. The leader raises it when the last server has the new
//! release; it never falls, and a server that is below it belongs to the cluster no more.

use std::time::Duration;

use coracle_base::{Level, Release};
use coracle_store::Op;
use tokio::time::Instant;

use crate::batch::ProposeError;
use crate::handle::Raft;
use crate::identity;
use crate::members::Members;
use crate::wire::Request;

/// What a server said of itself so long ago may still be so.
const FRESH: Duration = Duration::from_secs(2);
/// And is shown for so long.
const SHOWN: Duration = Duration::from_secs(15);
/// Servers that have said nothing for so long are asked.
const ASK_AFTER: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_secs(1);
const HELLO_WITHIN: Duration = Duration::from_secs(1);
/// A level that could not be noted is noted later: the log says it all the same.
const NOTE_AGAIN: Duration = Duration::from_secs(5);

impl Raft {
    /// What a server runs, as far as it has said so in the last seconds.
    #[must_use]
    pub fn release_of(&self, server: u64) -> Option<Release> {
        self.inner().caller.release_of(server, SHOWN)
    }

    /// Why a question of a server of another release is not considered; `None` when it is.
    pub(crate) fn refuses(&self, release: &Release, request: &Request) -> Option<String> {
        let own = self.inner().caller.release();
        if let Some(reason) = own.refuses(release) {
            return Some(reason);
        }
        // One that cannot apply what was written must not lead. It may well be told what to write down: it does not look into it.
        let level = self.view().level();
        let leads = matches!(request, Request::Vote { .. });
        (leads && release.level < level).then(|| below(release, level, own))
    }

    /// Whether a server of a release may join a cluster that this server leads. Nobody raises the level meanwhile.
    ///
    /// # Errors
    /// It may not, in words; or this server does not lead any more.
    pub(crate) async fn check_level(&self, release: &Release) -> Result<(), String> {
        // A leader before this one may have raised it a moment ago.
        if !self.confirm_leading().await {
            return Err("the cluster has no leader at the moment".to_owned());
        }
        let level = self.view().level();
        if release.level >= level { Ok(()) } else { Err(below(release, level, self.inner().caller.release())) }
    }

    /// Raises the level when all servers are beyond it. A server that is away keeps it where it is: it may come back as it was.
    pub(crate) async fn raise_level(&self, members: &Members) {
        let Some(term) = self.led_term() else { return };
        let _levelling = self.inner().levelling.lock().await;
        // Who was let in a moment ago counts.
        if self.members() != *members {
            return;
        }
        let now = self.view().level();
        let caller = &self.inner().caller;
        let lowest = members.servers.keys().map(|server| caller.release_of(*server, FRESH)).min_by_key(level_of);
        let Some(Some(lowest)) = lowest else { return };
        if lowest.level <= now {
            return;
        }
        let raised = match self.queue(Some(term), Op::RaiseLevel { level: lowest.level }.into(), None) {
            Ok(waiting) => waiting.await.unwrap_or(Err(ProposeError::Stopped)),
            Err(error) => Err(error),
        };
        match raised {
            Ok(_) => tracing::info!(
                from = now,
                to = lowest.level,
                "every server has the new release: the cluster's level rises"
            ),
            Err(error) => tracing::debug!(%error, "the cluster's level stays for now"),
        }
    }
}

fn level_of(release: &Option<Release>) -> Level {
    release.as_ref().map_or(0, |release| release.level)
}

fn below(release: &Release, level: Level, own: &Release) -> String {
    format!(
        "it has {release}, and the cluster is at level {level}: every server must know that level\nhint: give it {own}, which this server runs; a cluster's level never falls"
    )
}

/// Asks servers that have not been heard of for a while what they run: followers hear of each other by nobody else. For as long as
/// this server runs.
pub(crate) async fn ask_around(raft: Raft) {
    let caller = raft.inner().caller.clone();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let members = raft.members();
        caller.keep_releases(|server| members.servers.contains_key(&server));
        for (server, member) in &members.servers {
            if member.address.is_empty() || caller.release_of(*server, ASK_AFTER).is_some() {
                continue;
            }
            // Nobody there: it is asked again.
            let _ = caller.ask(*server, member, &Request::Hello, HELLO_WITHIN).await;
        }
    }
}

/// Notes the level beside the identity whenever it has risen, so that an older release refuses the directory at its start. For as
/// long as this server runs.
pub(crate) async fn note(raft: Raft) {
    let mut applied = raft.inner().shared.applied_changes();
    let dir = raft.inner().dir.clone();
    let mut noted = identity::level(&dir).unwrap_or(1);
    let mut again: Option<Instant> = None;
    loop {
        applied.borrow_and_update();
        let level = raft.view().level();
        if level > noted && again.is_none_or(|again| Instant::now() >= again) {
            match identity::note_level(&dir, raft.identity(), level) {
                Ok(()) => noted = level,
                Err(error) => {
                    tracing::warn!(
                        error = coracle_base::one_line(&error),
                        "the cluster's level is not noted beside the log yet"
                    );
                    again = Some(Instant::now() + NOTE_AGAIN);
                }
            }
        }
        if applied.changed().await.is_err() {
            return;
        }
    }
}
