//! What a pod asks of the node it will run on.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::{Affinity, Effect, Taint};

/// Amounts of the resources a node has and a pod asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Amounts {
    /// Thousandths of a core.
    pub cpu_milli: u64,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of the node's disk.
    pub ephemeral_bytes: u64,
    /// Pods: 1 for a pod.
    pub pods: u64,
}

impl Amounts {
    /// The sum; a sum too large to write is the largest amount there is.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_add(other.cpu_milli),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
            ephemeral_bytes: self.ephemeral_bytes.saturating_add(other.ephemeral_bytes),
            pods: self.pods.saturating_add(other.pods),
        }
    }

    /// What is left; nothing where more was taken than there is.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.saturating_sub(other.cpu_milli),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
            ephemeral_bytes: self.ephemeral_bytes.saturating_sub(other.ephemeral_bytes),
            pods: self.pods.saturating_sub(other.pods),
        }
    }

    /// The larger of each.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.max(other.cpu_milli),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
            ephemeral_bytes: self.ephemeral_bytes.max(other.ephemeral_bytes),
            pods: self.pods.max(other.pods),
        }
    }
}

/// How a toleration compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TolerationOperator {
    /// Key and value must be equal.
    #[default]
    Equal,
    /// The key is enough; an empty key tolerates every taint.
    Exists,
}

/// A taint a pod puts up with (upstream: `core/v1 Toleration.ToleratesTaint`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Toleration {
    /// The taint's key; empty with `Exists` means all.
    pub key: String,
    /// How key and value compare.
    pub operator: TolerationOperator,
    /// The taint's value.
    pub value: String,
    /// Only taints of this effect; `None` means each.
    pub effect: Option<Effect>,
}

impl Toleration {
    /// Whether the pod puts up with `taint`.
    #[must_use]
    pub fn tolerates(&self, taint: &Taint) -> bool {
        if self.effect.is_some_and(|effect| effect != taint.effect) {
            return false;
        }
        match self.operator {
            TolerationOperator::Exists => self.key.is_empty() || self.key == taint.key,
            TolerationOperator::Equal => self.key == taint.key && self.value == taint.value,
        }
    }
}

/// A port of the node that is a pod's alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// The address of the node; `None`: all of them.
    pub address: Option<Arc<str>>,
    /// `TCP` or `UDP`.
    pub protocol: Arc<str>,
    /// The number.
    pub port: u16,
}

impl HostPort {
    /// Whether two pods with these cannot be on one node.
    #[must_use]
    pub fn clashes(&self, other: &Self) -> bool {
        let addresses = self.address.is_none() || other.address.is_none() || self.address == other.address;
        self.port == other.port && self.protocol == other.protocol && addresses
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.port, self.protocol)
    }
}

/// One pod without a node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PodRequest {
    /// What it asks for; `pods` is 1.
    pub amounts: Amounts,
    /// Labels the node must have.
    pub node_selector: BTreeMap<String, String>,
    /// The nodes it may run on, when it says so: one of the terms must hold.
    pub affinity: Option<Affinity>,
    /// Taints it puts up with.
    pub tolerations: Vec<Toleration>,
    /// Ports of the node it wants for itself.
    pub host_ports: Vec<HostPort>,
    /// Whose replica it is: replicas of one owner are spread. Usually the uid of its controller.
    pub owner: Option<Arc<str>>,
}

impl PodRequest {
    /// Whether it puts up with a node that is closed: upstream treats `unschedulable` as this taint.
    pub(crate) fn comes_to_cordoned(&self) -> bool {
        // Most pods tolerate nothing, and are asked once for each scan.
        !self.tolerations.is_empty()
            && tolerated(
                &self.tolerations,
                &Taint { key: UNSCHEDULABLE.to_owned(), value: String::new(), effect: Effect::NoSchedule },
            )
    }
}

/// The taint that stands for a cordoned node.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Whether one of `tolerations` puts up with `taint`.
#[must_use]
pub fn tolerated(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| toleration.tolerates(taint))
}
