//! From the old ReplicaSets to the new one: rolling update, recreate, and what is kept for `rollout undo`.

use coracle_manifests::view::{int, is_finished};

use super::revision::{annotations, new_size, sync};
use super::sets::{Set, Sets};
use super::status::is_complete;
use crate::Ids;

/// A rolling update (upstream: `rolloutRolling`).
pub(super) fn roll(sets: &mut Sets<'_>, ids: &mut dyn Ids) {
    sync(sets, true, ids);
    if let Some(index) = sets.current {
        let size = sets.all[index].size();
        let wanted = if size > sets.replicas { sets.replicas } else { new_size(sets) };
        sets.scale(index, wanted);
    }
    shrink_old(sets);
    if is_complete(sets) {
        clean_up(sets);
    }
}

/// Takes from the old ReplicaSets what the bounds allow: first replicas that are not available anyway, then others
/// (upstream: `reconcileOldReplicaSets`).
fn shrink_old(sets: &mut Sets<'_>) {
    let old = sets.old();
    if old.iter().all(|index| sets.all[*index].size() == 0) {
        return;
    }
    let least = sets.replicas - sets.unavailable();
    let missing_new = sets.current().map_or(0, |set| set.size() - set.available());
    let mut may_go = sets.total() - least - missing_new;
    for &index in &old {
        let set = &sets.all[index];
        let broken = (set.size() - set.available()).min(may_go);
        if broken > 0 {
            let size = set.size() - broken;
            may_go -= broken;
            sets.scale(index, size);
        }
    }
    let mut spare = sets.available() - least;
    for &index in &old {
        let set = &sets.all[index];
        let going = set.size().min(spare);
        if going > 0 {
            let size = set.size() - going;
            spare -= going;
            sets.scale(index, size);
        }
    }
}

/// All old pods end before the first new one starts (upstream: `rolloutRecreate`).
pub(super) fn recreate(sets: &mut Sets<'_>, ids: &mut dyn Ids) {
    sync(sets, false, ids);
    let old = sets.old();
    let mut waits = false;
    for &index in &old {
        waits |= sets.all[index].size() > 0;
        if sets.all[index].size() > 0 {
            sets.scale(index, 0);
        }
    }
    // A pod that is ending still runs.
    waits |= old.iter().any(|index| sets.all[*index].pods.iter().any(|pod| !is_finished(pod.tree())));
    if waits {
        return;
    }
    sync(sets, true, ids);
    if let Some(index) = sets.current {
        let wanted = sets.replicas;
        sets.scale(index, wanted);
    }
    if is_complete(sets) {
        clean_up(sets);
    }
}

/// Lets go of the oldest empty ReplicaSets beyond `revisionHistoryLimit`.
pub(super) fn clean_up(sets: &mut Sets<'_>) {
    let kept = usize::try_from(int(&sets.tree["spec"]["revisionHistoryLimit"], 10)).unwrap_or(0);
    let mut old = sets.old();
    let Some(surplus) = old.len().checked_sub(kept).filter(|surplus| *surplus > 0) else { return };
    let revision = |set: &Set<'_>| -> u64 {
        set.annotation(annotations::REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    old.sort_by_key(|index| (revision(&sets.all[*index]), sets.all[*index].created()));
    for index in old.into_iter().take(surplus) {
        let set = &mut sets.all[index];
        let seen = int(&set.tree["status"]["observedGeneration"], 0) >= int(&set.tree["metadata"]["generation"], 0);
        set.gone = set.size() == 0 && set.pods.is_empty() && seen;
    }
}
