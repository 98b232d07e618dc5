//! The plan: which pending pod goes to which node, and why the others wait.

use std::sync::Arc;

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

/// What to do with the pods that were given: each is in one of the lists, in the order given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Pods with a node.
    pub bindings: Vec<Binding>,
    /// Pods without.
    pub unschedulable: Vec<Unschedulable>,
}

/// Finds nodes for pods, first come, first served.
#[must_use]
pub fn plan(_nodes: &[NodeState], _pods: &[PodRequest]) -> Plan {
    Plan::default()
}
