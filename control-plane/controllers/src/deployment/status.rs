//! What `kubectl rollout status`, `describe` and `wait` read: counts and conditions.

use coracle_manifests::view::{int, text};
use serde_json::{Value, json};

use super::sets::{Set, Sets};
use crate::objects::{Condition, millis, set_condition};

const PROGRESSING: &str = "Progressing";
const DONE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
/// Upstream's way to say "no deadline".
const NO_DEADLINE: i64 = i32::MAX as i64;

/// Counts of one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    replicas: i64,
    updated: i64,
    ready: i64,
    available: i64,
    unavailable: i64,
}

impl Counts {
    fn of(sets: &Sets<'_>) -> Self {
        let sum = |count: fn(&Set<'_>) -> i64| sets.all.iter().map(count).sum::<i64>();
        let available = sum(|set| set.counts.available);
        Self {
            replicas: sum(|set| set.counts.replicas),
            updated: sets.current().map_or(0, |set| set.counts.replicas),
            ready: sum(|set| set.counts.ready),
            available,
            unavailable: (sets.total() - available).max(0),
        }
    }

    fn stored(status: &Value) -> Self {
        let field = |name: &str| int(&status[name], 0);
        Self {
            replicas: field("replicas"),
            updated: field("updatedReplicas"),
            ready: field("readyReplicas"),
            available: field("availableReplicas"),
            unavailable: field("unavailableReplicas"),
        }
    }
}

/// Whether all replicas are of the current template and available.
pub(super) fn is_complete(sets: &Sets<'_>) -> bool {
    let counts = Counts::of(sets);
    counts.updated == sets.replicas && counts.replicas == sets.replicas && counts.available == sets.replicas
}

fn deadline(sets: &Sets<'_>) -> Option<u64> {
    let seconds = sets.tree["spec"]["progressDeadlineSeconds"].as_i64().filter(|seconds| *seconds != NO_DEADLINE)?;
    u64::try_from(seconds).ok()
}

fn progressing<'a>(sets: &'a Sets<'_>) -> Option<&'a Value> {
    sets.conditions.iter().find(|condition| condition["type"] == PROGRESSING)
}

fn set(sets: &mut Sets<'_>, kind: &str, status: &str, reason: &str, message: &str) {
    let now = sets.now;
    set_condition(&mut sets.conditions, &Condition { kind, status, reason, message }, "lastUpdateTime", now);
}

/// The ReplicaSet of the template is there already.
pub(super) fn found(sets: &mut Sets<'_>, name: &str) {
    if deadline(sets).is_some() && progressing(sets).is_none() {
        set(sets, PROGRESSING, "True", "FoundNewReplicaSet", &format!("Found new replica set \"{name}\""));
    }
}

/// The ReplicaSet of the template is being made: the deadline starts anew.
pub(super) fn made(sets: &mut Sets<'_>, name: &str) {
    if deadline(sets).is_some() {
        set(sets, PROGRESSING, "True", "NewReplicaSetCreated", &format!("Created new replica set \"{name}\""));
    }
}

/// Paused and resumed: time spent so does not count against the deadline.
pub(super) fn mark_paused(sets: &mut Sets<'_>) {
    if deadline(sets).is_none() {
        return;
    }
    let reason = progressing(sets).map(|condition| text(&condition["reason"]).to_owned()).unwrap_or_default();
    if reason == TIMED_OUT {
        return;
    }
    if sets.paused && reason != "DeploymentPaused" {
        set(sets, PROGRESSING, "Unknown", "DeploymentPaused", "Deployment is paused");
    } else if !sets.paused && reason == "DeploymentPaused" {
        set(sets, PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed");
    }
}

/// Counts and the Available condition, for a Deployment that does not roll.
pub(super) fn counts_only(sets: &mut Sets<'_>) {
    let counts = Counts::of(sets);
    write(sets, counts);
}

/// Counts and all conditions (upstream: `syncRolloutStatus`).
pub(super) fn rollout(sets: &mut Sets<'_>) {
    let counts = Counts::of(sets);
    let before = Counts::stored(&sets.deployment.tree()["status"]);
    let (status, reason) = progressing(sets)
        .map(|condition| (text(&condition["status"]).to_owned(), text(&condition["reason"]).to_owned()))
        .unwrap_or_default();
    let Some(deadline) = deadline(sets) else {
        sets.conditions.retain(|condition| condition["type"] != PROGRESSING);
        write(sets, counts);
        return;
    };
    let was_done = counts.replicas == counts.updated && reason == DONE;
    if !was_done {
        let name = match sets.current() {
            Some(set) => format!("ReplicaSet \"{}\"", set.name),
            None => format!("Deployment \"{}\"", sets.deployment.key.name),
        };
        if is_complete(sets) {
            set(sets, PROGRESSING, "True", DONE, &format!("{name} has successfully progressed."));
        } else if is_progress(before, counts) {
            // Each step forward moves `lastUpdateTime`, from which the deadline counts.
            if status == "True" {
                touch(sets);
            }
            set(sets, PROGRESSING, "True", "ReplicaSetUpdated", &format!("{name} is progressing."));
        } else if is_late(sets, &reason, deadline) {
            set(sets, PROGRESSING, "False", TIMED_OUT, &format!("{name} has timed out progressing."));
        }
    }
    write(sets, counts);
}

fn is_progress(before: Counts, after: Counts) -> bool {
    after.updated > before.updated
        || after.replicas - after.updated < before.replicas - before.updated
        || after.ready > before.ready
        || after.available > before.available
}

fn touch(sets: &mut Sets<'_>) {
    let at = json!(coracle_manifests::time::rfc3339(sets.now));
    for condition in &mut sets.conditions {
        if condition["type"] == PROGRESSING {
            condition["lastUpdateTime"] = at.clone();
        }
    }
}

fn is_late(sets: &Sets<'_>, reason: &str, deadline_s: u64) -> bool {
    if reason == DONE || reason == TIMED_OUT {
        return reason == TIMED_OUT;
    }
    progressing(sets)
        .and_then(|condition| millis(&condition["lastUpdateTime"]))
        .is_some_and(|since| since + deadline_s * 1000 < sets.now)
}

fn write(sets: &mut Sets<'_>, counts: Counts) {
    if !sets.deleting {
        let enough = counts.available >= sets.replicas - sets.unavailable();
        let (status, reason, message) = if enough {
            ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
        } else {
            ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
        };
        set(sets, "Available", status, reason, message);
    }
    let mut new = json!({"observedGeneration": int(&sets.deployment.tree()["metadata"]["generation"], 0)});
    for (field, value) in [
        ("replicas", counts.replicas),
        ("updatedReplicas", counts.updated),
        ("readyReplicas", counts.ready),
        ("availableReplicas", counts.available),
        ("unavailableReplicas", counts.unavailable),
        ("collisionCount", sets.collisions),
    ] {
        if value != 0 {
            new[field] = json!(value);
        }
    }
    sets.status = Some(new);
}
