//! Pods nobody will ever end: on nodes that are gone, never placed and unwanted, or ended long ago
//! (upstream: `pkg/controller/podgc`).
//!
//! Cost: a look at each node that has pods, and one walk over the pods that have ended or are on their way out.

use std::sync::Arc;

use coracle_base::Millis;
use coracle_manifests::view::{is_deleting, list, text};
use coracle_store::{Expect, Mark, Object, Op, Transaction, View};

use crate::Ids;
use crate::objects::{millis, remove};

/// So many ended pods may stay for people to look at; then the oldest go. Lower than upstream's 12,500: they are held in
/// memory on every server.
const ENDED: usize = 1_000;

/// What should change now.
#[must_use]
pub fn plan(view: &View, now: Millis, _ids: &mut dyn Ids) -> Vec<Transaction> {
    let there = |node: &str| view.find("nodes", "", node).is_some();
    let lost = view.nodes_with_pods().filter(|node| !there(node)).flat_map(|node| view.pods_on(node));
    let node = |pod: &Object| text(&pod.tree()["spec"]["nodeName"]).to_owned();
    let never_placed = view.going().filter(|pod| &*pod.key.resource == "pods" && node(pod).is_empty());
    // No agent will confirm their end.
    let mut transactions: Vec<Transaction> =
        lost.chain(never_placed).filter_map(|pod| forget(pod)).map(Transaction::from).collect();
    let looked_at = |pod: &&Arc<Object>| {
        let node = node(pod);
        !is_deleting(pod.tree()) && (node.is_empty() || there(&node))
    };
    let mut ended: Vec<&Arc<Object>> = view.marked(Mark::Ended).filter(looked_at).collect();
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
