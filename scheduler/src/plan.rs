//! The plan: which pending pod goes to which node, and why the others wait.

use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use crate::table::{Group, Table};
use crate::{Explain, NodeState, PodRequest};

/// One pod finds its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// Index into the pods that were given.
    pub pod: usize,
    /// Index into the nodes that were given.
    pub node: usize,
}

/// One pod that no node takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unschedulable {
    /// Index into the pods that were given.
    pub pod: usize,
    /// Why; the same for all pods that ask the same.
    pub explain: Arc<Explain>,
}

/// What to do with the pods that were given: each is in one of the lists.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Pods with a node, in the order in which they were placed.
    pub bindings: Vec<Binding>,
    /// Pods without.
    pub unschedulable: Vec<Unschedulable>,
}

/// Finds nodes for pods. Pods that ask the same are placed together, when the first of them has its turn; each goes to the
/// node that is best for it at that moment. The order of `nodes` does not matter: ties are decided by name.
///
/// Cost: one scan of the nodes for each group of equal pods, then the logarithm of the number of nodes for each pod.
#[must_use]
pub fn plan(nodes: &[NodeState], pods: &[PodRequest]) -> Plan {
    let mut table = Table::new(nodes);
    let mut plan = Plan::default();
    for (request, members) in groups(pods) {
        let mut group = table.group(request);
        let placed = place(&mut table, &mut group, &members, &mut plan.bindings);
        if placed < members.len() {
            let explain = Arc::new(Explain::of(&table, request));
            let waiting = members[placed..].iter();
            plan.unschedulable.extend(waiting.map(|&pod| Unschedulable { pod, explain: explain.clone() }));
        }
    }
    plan
}

/// Pods that ask the same, in the order of the first of each.
fn groups(pods: &[PodRequest]) -> Vec<(&PodRequest, Vec<usize>)> {
    let mut groups: Vec<(&PodRequest, Vec<usize>)> = Vec::new();
    let mut known: HashMap<&PodRequest, usize> = HashMap::new();
    for (index, pod) in pods.iter().enumerate() {
        let at = *known.entry(pod).or_insert_with(|| {
            groups.push((pod, Vec::new()));
            groups.len() - 1
        });
        groups[at].1.push(index);
    }
    groups
}

/// Places as many members as fit; gives their number.
fn place(table: &mut Table<'_>, group: &mut Group<'_>, members: &[usize], bindings: &mut Vec<Binding>) -> usize {
    if let [only] = members {
        let best = (0..table.len()).map(|node| (table.key(group, node), node)).max();
        return match best.filter(|(key, _)| *key > 0) {
            Some((_, node)) => {
                table.place(group, node);
                bindings.push(Binding { pod: *only, node });
                1
            }
            None => 0,
        };
    }
    // A placement changes the key of its own node alone, so that the heap stays right for all others.
    let keys = (0..table.len()).map(|node| (table.key(group, node), node)).filter(|(key, _)| *key > 0);
    let mut heap: BinaryHeap<(u64, usize)> = keys.collect();
    for (placed, &pod) in members.iter().enumerate() {
        let Some((_, node)) = heap.pop() else { return placed };
        table.place(group, node);
        bindings.push(Binding { pod, node });
        let key = table.key(group, node);
        if key > 0 {
            heap.push((key, node));
        }
    }
    members.len()
}
