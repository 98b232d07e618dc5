//! Why no node takes a pod, in upstream's words, and what would help.

use std::collections::BTreeMap;
use std::fmt;

use coracle_base::nearest;

use crate::affinity::wanted;
use crate::request::tolerated;
use crate::table::Table;
use crate::{Affinity, Amounts, Effect, PodRequest, Taint};

const OTHER_NODES: &str = "node(s) didn't match Pod's node affinity/selector";

/// Why no node takes a pod: each node is counted under the first thing that speaks against it, and under each resource it
/// has too little of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Explain {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many nodes have each reason, by its words.
    pub reasons: BTreeMap<String, usize>,
    /// What would help, when something is known.
    pub hint: Option<String>,
}

impl Explain {
    /// The reasons alone: what stays the same while amounts change.
    #[must_use]
    pub fn summary(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods.".to_owned();
        }
        let mut reasons: Vec<String> = self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        reasons.sort();
        let colon = if reasons.is_empty() { "" } else { ": " };
        format!("0/{} nodes are available{colon}{}.", self.nodes, reasons.join(", "))
    }

    pub(crate) fn of(table: &Table<'_>, request: &PodRequest) -> Self {
        let mut explain = Self { nodes: table.len(), ..Self::default() };
        let mut seen = Seen::default();
        // For a pod of one node, what the others are like says nothing.
        let only = request.affinity.as_ref().and_then(Affinity::only_node);
        let mut others = 0;
        for index in 0..table.len() {
            if only.is_some_and(|only| only != table.node(index).name) {
                others += 1;
                continue;
            }
            for reason in against(table, request, index, &mut seen) {
                *explain.reasons.entry(reason).or_default() += 1;
            }
        }
        if others > 0 {
            *explain.reasons.entry(OTHER_NODES.to_owned()).or_default() += others;
        }
        explain.hint = hint(table, request, &seen);
        explain
    }
}

impl fmt::Display for Explain {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.summary())?;
        match &self.hint {
            Some(hint) => write!(out, " hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// What the walk over the nodes met, for the hint.
#[derive(Default)]
struct Seen {
    /// Nodes where only resources are missing.
    full: Vec<usize>,
    tainted: Option<(usize, Taint)>,
    cordoned: Option<usize>,
    away: Option<usize>,
    occupied: Option<usize>,
    /// Whether some node has all the labels asked for.
    labelled: bool,
}

fn against(table: &Table<'_>, request: &PodRequest, index: usize, seen: &mut Seen) -> Vec<String> {
    let node = table.node(index);
    let labelled = wanted(node, &request.node_selector, request.affinity.as_ref());
    seen.labelled |= labelled;
    if !node.ready {
        seen.away.get_or_insert(index);
        return vec!["node(s) were not ready".to_owned()];
    }
    if node.unschedulable && !request.comes_to_cordoned() {
        seen.cordoned.get_or_insert(index);
        return vec!["node(s) were unschedulable".to_owned()];
    }
    let untolerated = node
        .taints
        .iter()
        .find(|taint| taint.effect != Effect::PreferNoSchedule && !tolerated(&request.tolerations, taint));
    if let Some(taint) = untolerated {
        seen.tainted.get_or_insert((index, taint.clone()));
        return vec![format!("node(s) had untolerated taint {taint}")];
    }
    if !labelled {
        return vec![OTHER_NODES.to_owned()];
    }
    if table.lacks_ports(request, index) {
        seen.occupied.get_or_insert(index);
        return vec!["node(s) didn't have free ports for the requested pod ports".to_owned()];
    }
    seen.full.push(index);
    let (asked, free) = (&request.amounts, table.free(index));
    [
        (asked.pods > free.pods, "Too many pods"),
        (asked.cpu_milli > free.cpu_milli, "Insufficient cpu"),
        (asked.memory_bytes > free.memory_bytes, "Insufficient memory"),
        (asked.ephemeral_bytes > free.ephemeral_bytes, "Insufficient ephemeral-storage"),
    ]
    .into_iter()
    .filter(|(lacks, _)| *lacks)
    .map(|(_, words)| words.to_owned())
    .collect()
}

fn hint(table: &Table<'_>, request: &PodRequest, seen: &Seen) -> Option<String> {
    if table.len() == 0 {
        return Some("no node has joined the cluster yet".to_owned());
    }
    if !seen.labelled {
        return label_hint(table, request);
    }
    if !seen.full.is_empty() {
        return room_hint(table, &request.amounts, &seen.full);
    }
    if let Some(index) = seen.occupied {
        let ports: Vec<String> = request.host_ports.iter().map(ToString::to_string).collect();
        let (name, ports) = (&table.node(index).name, ports.join(" or "));
        return Some(format!(
            "node {name} would take it, but another pod there has its hostPort {ports}; a Service needs none"
        ));
    }
    if let Some((index, taint)) = &seen.tainted {
        let name = &table.node(*index).name;
        return Some(format!("node {name} would take it if it tolerated the taint {}", taint.key));
    }
    if let Some(index) = seen.cordoned {
        return Some(format!("node {0} is cordoned; `kubectl uncordon {0}` opens it", table.node(index).name));
    }
    let index = seen.away?;
    Some(format!("node {} is not ready: look at its conditions", table.node(index).name))
}

/// Which node comes nearest to what is asked of the scarcest resource.
fn room_hint(table: &Table<'_>, asked: &Amounts, full: &[usize]) -> Option<String> {
    let most = |of: fn(&Amounts) -> u64| {
        // The first by name of those that have the most.
        full.iter()
            .map(|&index| (of(&table.free(index)), std::cmp::Reverse(&table.node(index).name)))
            .max()
            .map(|(free, name)| (free, name.0))
    };
    let (cpu, memory) = (|amounts: &Amounts| amounts.cpu_milli, |amounts: &Amounts| amounts.memory_bytes);
    let ephemeral = |amounts: &Amounts| amounts.ephemeral_bytes;
    let words = |what: &str, asked: String, free: String, node: &str| {
        Some(format!("it asks for {asked} {what}, the most that is free is {free} on node {node}"))
    };
    match (most(cpu)?, most(memory)?, most(ephemeral)?) {
        ((free, node), _, _) if free < asked.cpu_milli => words("cpu", cores(asked.cpu_milli), cores(free), node),
        (_, (free, node), _) if free < asked.memory_bytes => {
            words("memory", bytes(asked.memory_bytes), bytes(free), node)
        }
        (_, _, (free, node)) if free < asked.ephemeral_bytes => {
            words("ephemeral-storage", bytes(asked.ephemeral_bytes), bytes(free), node)
        }
        _ if full.iter().all(|&index| table.free(index).pods == 0) => {
            Some("every node holds as many pods as it may".to_owned())
        }
        ((cpu, node), _, _) => {
            let index = full.iter().find(|index| table.node(**index).name == *node)?;
            Some(format!(
                "no node has enough of everything at once: node {node} has the most cpu free ({}), and {} memory",
                cores(cpu),
                bytes(table.free(*index).memory_bytes)
            ))
        }
    }
}

/// Which label was meant.
fn label_hint(table: &Table<'_>, request: &PodRequest) -> Option<String> {
    let nodes = || (0..table.len()).map(|index| table.node(index));
    for (key, value) in &request.node_selector {
        if nodes().any(|node| node.labels.get(key) == Some(value)) {
            continue;
        }
        let values: Vec<&str> = nodes().filter_map(|node| node.labels.get(key)).map(String::as_str).collect();
        if values.is_empty() {
            let keys: Vec<&str> = nodes().flat_map(|node| node.labels.keys()).map(String::as_str).collect();
            return Some(match nearest(key, keys.iter().copied()) {
                Some(near) => format!("no node has the label {key}; did you mean {near}?"),
                None => format!("no node has the label {key}; `kubectl label node NAME {key}={value}` gives it one"),
            });
        }
        let meant = nearest(value, values.iter().copied()).or_else(|| values.iter().min().copied())?;
        let node = nodes().filter(|node| node.labels.get(key).is_some_and(|held| held == meant)).map(|node| &node.name);
        return Some(format!("no node has {key}={value}; node {} has {key}={meant}", node.min()?));
    }
    if let Some(affinity) = &request.affinity {
        return Some(match affinity.only_node() {
            Some(name) => format!("it is for the node {name}, which is not there or lacks a label it asks for"),
            None => "no node is one that its node affinity asks for; compare it with `kubectl get nodes --show-labels`"
                .to_owned(),
        });
    }
    Some("no node has all the labels of the nodeSelector at once".to_owned())
}

fn cores(milli: u64) -> String {
    if milli.is_multiple_of(1000) { (milli / 1000).to_string() } else { format!("{milli}m") }
}

fn bytes(bytes: u64) -> String {
    match bytes {
        0..1024 => bytes.to_string(),
        1024..1_048_576 => format!("{}Ki", bytes / 1024),
        1_048_576..1_073_741_824 => format!("{}Mi", bytes / 1_048_576),
        _ => format!("{}.{}Gi", bytes / 1_073_741_824, bytes % 1_073_741_824 * 10 / 1_073_741_824),
    }
}
