//! Pods nobody will ever end: on nodes that are gone, never placed and unwanted, or ended long ago
//! (upstream: `pkg/controller/podgc`).
//!
//! Cost: one walk over all pods.

use std::sync::Arc;

use coracle_base::Millis;
use coracle_manifests::view::{is_deleting, is_finished, list, text};
use coracle_store::{Expect, Object, Op, Transaction, View};

use crate::Ids;
use crate::objects::{millis, remove};

/// So many ended pods may stay for people to look at; then the oldest go. Lower than upstream's 12,500: they are held in
/// memory on every server.
const ENDED: usize = 1_000;

/// What should change now.
#[must_use]
pub fn plan(view: &View, now: Millis, _ids: &mut dyn Ids) -> Vec<Transaction> {
    let mut transactions = Vec::new();
    let mut ended: Vec<&Arc<Object>> = Vec::new();
    for pod in view.list("pods", None) {
        let tree = pod.tree();
        let node = text(&tree["spec"]["nodeName"]);
        let lost = !node.is_empty() && view.find("nodes", "", node).is_none();
        let never_placed = node.is_empty() && is_deleting(tree);
        if lost || never_placed {
            // No agent will confirm its end.
            transactions.extend(forget(pod).map(Transaction::from));
        } else if is_finished(tree) && !is_deleting(tree) {
            ended.push(pod);
        }
    }
    if let Some(surplus) = ended.len().checked_sub(ENDED).filter(|surplus| *surplus > 0) {
        ended.sort_by_key(|pod| (millis(&pod.tree()["metadata"]["creationTimestamp"]), pod.key.clone()));
        transactions.extend(ended[..surplus].iter().filter_map(|pod| remove(pod, now)).map(Transaction::from));
    }
    transactions
}

/// Removes a pod without waiting for a node; finalizers still hold it.
fn forget(pod: &Object) -> Option<Op> {
    if !list(&pod.tree()["metadata"]["finalizers"]).is_empty() {
        return None;
    }
    let expect = Expect { uid: Some(pod.uid.clone()), revision: Some(pod.revision) };
    Some(Op::Delete { key: pod.key.clone(), expect })
}
