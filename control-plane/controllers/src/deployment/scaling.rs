//! A change of `spec.replicas`: the one active ReplicaSet follows, or during a rollout all of them in proportion.

use std::cmp::Reverse;

use super::revision::annotations::{DESIRED, MAXIMUM};
use super::sets::{Set, Sets};

/// Whether the Deployment's size changed since its ReplicaSets were last scaled.
pub(super) fn is_asked(sets: &Sets<'_>) -> bool {
    sets.all.iter().filter(|set| !set.gone && set.size() > 0).any(|set| {
        set.annotation(DESIRED)
            .and_then(|text| text.parse::<i64>().ok())
            .is_some_and(|desired| desired != sets.replicas)
    })
}

/// Scales what there is (upstream: `scale`).
pub(super) fn scale(sets: &mut Sets<'_>) {
    if let Some(index) = active_or_latest(sets) {
        let wanted = sets.replicas;
        sets.scale(index, wanted);
        return;
    }
    if is_saturated(sets) {
        for index in sets.old() {
            if sets.all[index].size() > 0 {
                sets.scale(index, 0);
            }
        }
        return;
    }
    if sets.recreate {
        // Nothing is scaled while old and new would run together; but the number asked for is noted, or the rollout would wait for ever.
        for index in 0..sets.all.len() {
            let size = sets.all[index].size();
            if !sets.all[index].gone && size > 0 {
                sets.scale(index, size);
            }
        }
        return;
    }
    in_proportion(sets);
}

/// The only active ReplicaSet; without any, the current or the newest. `None` when several are active.
fn active_or_latest(sets: &Sets<'_>) -> Option<usize> {
    let mut active = (0..sets.all.len()).filter(|index| !sets.all[*index].gone && sets.all[*index].size() > 0);
    match (active.next(), active.next()) {
        (None, _) => sets.current.or_else(|| sets.old().pop()),
        (Some(only), None) => Some(only),
        (Some(_), Some(_)) => None,
    }
}

fn is_saturated(sets: &Sets<'_>) -> bool {
    sets.current().is_some_and(|set| {
        set.size() == sets.replicas
            && set.annotation(DESIRED).and_then(|text| text.parse().ok()) == Some(sets.replicas)
            && set.counts.available == sets.replicas
    })
}

fn in_proportion(sets: &mut Sets<'_>) {
    let mut active: Vec<usize> =
        (0..sets.all.len()).filter(|index| !sets.all[*index].gone && sets.all[*index].size() > 0).collect();
    let allowed = if sets.replicas > 0 { sets.replicas + sets.surge() } else { 0 };
    let to_add = allowed - active.iter().map(|index| sets.all[*index].size()).sum::<i64>();
    // The largest first, so that what rounding leaves goes where it matters least; of equal ones the newer grows, the
    // older shrinks.
    if to_add > 0 {
        active.sort_by_key(|index| (Reverse(sets.all[*index].size()), Reverse(sets.all[*index].created())));
    } else {
        active.sort_by_key(|index| (Reverse(sets.all[*index].size()), sets.all[*index].created()));
    }
    let mut added = 0;
    let mut sizes = Vec::with_capacity(active.len());
    for &index in &active {
        let set = &sets.all[index];
        let share = proportion(set, sets, to_add, added);
        added += share;
        sizes.push(set.size() + share);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    for (index, size) in active.into_iter().zip(sizes) {
        sets.scale(index, size);
    }
}

/// How much of what is added or taken falls to one ReplicaSet (upstream: `GetReplicaSetProportion`).
fn proportion(set: &Set<'_>, sets: &Sets<'_>, to_add: i64, added: i64) -> i64 {
    let left = to_add - added;
    if set.size() == 0 || left == 0 {
        return 0;
    }
    let fraction = if sets.replicas == 0 {
        -set.size()
    } else {
        let before = set.annotation(MAXIMUM).and_then(|text| text.parse::<i64>().ok()).filter(|maximum| *maximum > 0);
        let before = before.unwrap_or_else(|| sets.total().max(1));
        let now = sets.replicas + sets.surge();
        // Rounded to the nearest, halves up; sizes are never negative.
        (set.size() * now * 2 + before) / (before * 2) - set.size()
    };
    if to_add > 0 { fraction.clamp(0, left) } else { fraction.clamp(left, 0) }
}
