//! A Deployment becomes ReplicaSets, one per template, and moves replicas from the old to the new ones
//! (upstream: `pkg/controller/deployment`; the words of conditions and annotations are what kubectl reads).
//!
//! All that changes for one Deployment is one transaction, made for the ReplicaSets as they were seen: a plan from an old
//! snapshot is refused whole, so that the bounds of a rolling update hold.
//!
//! Cost: one walk over all ReplicaSets; per Deployment a walk over its ReplicaSets and their pods.

mod revision;
mod rolling;
mod scaling;
mod sets;
mod status;

use std::collections::HashMap;
use std::sync::Arc;

use coracle_base::Millis;
use coracle_manifests::selector::Labels;
use coracle_manifests::view::{controller_uid, is_deleting};
use coracle_store::{Object, Op, Transaction, View};

use crate::Ids;
use crate::objects::{DEPLOYMENTS, REPLICASETS, adopt};
use crate::pods::silent_nodes;
use crate::replicaset::controlled;
use sets::Sets;

/// What should change now.
#[must_use]
pub fn plan(view: &View, now: Millis, ids: &mut dyn Ids) -> Vec<Transaction> {
    let silent = silent_nodes(view);
    let mut orphans: HashMap<Arc<str>, Vec<&Arc<Object>>> = HashMap::new();
    for set in view.list(REPLICASETS, None) {
        if controller_uid(set.tree()).is_none() && !is_deleting(set.tree()) {
            orphans.entry(set.key.namespace.clone()).or_default().push(set);
        }
    }
    let mut transactions = Vec::new();
    for deployment in view.list(DEPLOYMENTS, None) {
        let adopted = adoptions(deployment, &mut orphans);
        if !adopted.is_empty() {
            // What it now owns is looked at in the next plan.
            transactions.push(Transaction { ops: adopted });
            continue;
        }
        let owned: Vec<&Arc<Object>> = controlled(view, deployment, REPLICASETS).collect();
        let mut sets = Sets::new(view, deployment, &owned, now, &silent);
        one(&mut sets, ids);
        let ops = sets.into_ops(ids);
        if !ops.is_empty() {
            transactions.push(Transaction { ops });
        }
    }
    transactions
}

/// Takes the ReplicaSets that match the selector and have no controller.
fn adoptions(deployment: &Object, orphans: &mut HashMap<Arc<str>, Vec<&Arc<Object>>>) -> Vec<Op> {
    let Some(sets) = orphans.get_mut(&deployment.key.namespace).filter(|_| !is_deleting(deployment.tree())) else {
        return Vec::new();
    };
    let Ok(selector) = Labels::from_object(&deployment.tree()["spec"]["selector"]) else { return Vec::new() };
    let mut ops = Vec::new();
    sets.retain(|set| {
        let matches = selector.matches(&set.tree()["metadata"]["labels"]);
        if matches {
            ops.push(adopt(set, deployment));
        }
        !matches
    });
    ops
}

/// One Deployment (upstream: `syncDeployment`).
fn one(sets: &mut Sets<'_>, ids: &mut dyn Ids) {
    if sets.deleting {
        status::counts_only(sets);
        return;
    }
    status::mark_paused(sets);
    if sets.paused || scaling::is_asked(sets) {
        revision::sync(sets, false, ids);
        scaling::scale(sets);
        if sets.paused {
            rolling::clean_up(sets);
        }
        status::counts_only(sets);
        return;
    }
    if sets.recreate {
        rolling::recreate(sets, ids);
    } else {
        rolling::roll(sets, ids);
    }
    status::rollout(sets);
}
