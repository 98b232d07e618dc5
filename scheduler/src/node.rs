//! What a node offers.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::{Amounts, HostPort};

/// What a taint does to pods that do not tolerate it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Effect {
    /// No new pod comes here.
    NoSchedule,
    /// New pods go elsewhere while they can.
    PreferNoSchedule,
    /// No new pod comes here, and those here leave.
    NoExecute,
}

/// A mark that keeps pods away.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value, often empty.
    pub value: String,
    /// What it does.
    pub effect: Effect,
}

impl fmt::Display for Taint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{{{}: {}}}", self.key, self.value)
    }
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeState {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Whether it is cordoned.
    pub unschedulable: bool,
    /// Whether its agent says that it can run pods, and is heard of.
    pub ready: bool,
    /// What it has for pods.
    pub allocatable: Amounts,
    /// What the pods bound to it ask for together.
    pub used: Amounts,
    /// How many replicas of each owner are bound to it.
    pub owners: BTreeMap<Arc<str>, u32>,
    /// Ports of its own that its pods have for themselves.
    pub host_ports: Vec<HostPort>,
}
