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
        return match table.keys(group).max() {
            Some((_, node)) => {
                table.place(group, node);
                bindings.push(Binding { pod: *only, node });
                1
            }
            None => 0,
        };
    }
    // A placement makes its own node worse and no other better: as many pods find their nodes among as many of the best ones.
    let mut best = best(table.keys(group), members.len());
    for (placed, &pod) in members.iter().enumerate() {
        let Some((_, node)) = best.pop() else { return placed };
        table.place(group, node);
        bindings.push(Binding { pod, node });
        let key = table.key(group, node);
        if key > 0 {
            best.push((key, node));
        }
    }
    members.len()
}

/// The best `count` of the keys.
fn best(keys: impl Iterator<Item = (u64, usize)>, count: usize) -> BinaryHeap<(u64, usize)> {
    let mut kept: Vec<(u64, usize)> = Vec::new();
    let mut bar = 0;
    for entry in keys {
        if entry.0 < bar {
            continue;
        }
        kept.push(entry);
        // Full: the worse three quarters go, and what is worse than the rest need not come in any more.
        if kept.len() == 4 * count {
            kept.select_nth_unstable_by(count - 1, |left, right| right.cmp(left));
            kept.truncate(count);
            bar = kept.iter().map(|entry| entry.0).min().unwrap_or(0);
        }
    }
    if kept.len() > count {
        kept.select_nth_unstable_by(count - 1, |left, right| right.cmp(left));
        kept.truncate(count);
    }
    kept.into()
}
