//! Nodes as rows of numbers: what a scan reads stands together, and what many pods ask of labels and taints is worked out once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use crate::request::tolerated;
use crate::{Amounts, Effect, HostPort, NodeState, PodRequest, Taint};

/// Bits of the packed key for a node's place by name: more nodes than this are not told apart in ties.
const PLACE_BITS: u32 = 20;
/// Bits for the score.
const SCORE_BITS: u32 = 12;
/// Bits for the number of replicas.
const REPLICA_BITS: u32 = 24;

/// One set of taints that some nodes have.
struct TaintClass {
    taints: Vec<Taint>,
}

/// What stays free of a node, in thousandths of it, and how many thousandths a unit is. The arithmetic of floating point is
/// the same on every machine (IEEE 754), so plans are too.
#[derive(Debug, Clone, Copy)]
struct Shares {
    cpu_free: f64,
    memory_free: f64,
    pods_free: f64,
    cpu_unit: f64,
    memory_unit: f64,
    pods_unit: f64,
}

impl Shares {
    fn of(room: Amounts, used: Amounts) -> Self {
        let unit = |whole: u64| if whole == 0 { 0.0 } else { 1000.0 / whole as f64 };
        // A node that sets no limit is judged as one of a thousand pods.
        let pods = if room.pods == u64::MAX { 1000 } else { room.pods };
        let (cpu_unit, memory_unit, pods_unit) = (unit(room.cpu_milli), unit(room.memory_bytes), unit(pods));
        Self {
            cpu_free: room.cpu_milli.saturating_sub(used.cpu_milli) as f64 * cpu_unit,
            memory_free: room.memory_bytes.saturating_sub(used.memory_bytes) as f64 * memory_unit,
            pods_free: pods.saturating_sub(used.pods) as f64 * pods_unit,
            cpu_unit,
            memory_unit,
            pods_unit,
        }
    }
}

/// What one group of pods thinks of each class of taints.
#[derive(Debug, Clone, Copy)]
struct Opinion {
    blocked: bool,
    /// How many taints would rather have the pod elsewhere.
    avoided: u64,
}

/// What a scan reads of one node.
#[derive(Debug, Clone, Copy)]
struct Row {
    free: Amounts,
    /// For the score the same in thousandths of the node; a multiplication is several times cheaper than a division.
    shares: Shares,
    /// A node's place in the order of names, counted from the end: the larger wins a tie.
    place: u64,
    class: u32,
    /// Nodes that are not ready are closed to all.
    open: bool,
    /// Cordoned nodes to all but those that say they come all the same.
    cordoned: bool,
}

/// The rows. An index is a node's index in the list it was made from.
pub(crate) struct Table<'a> {
    nodes: &'a [NodeState],
    rows: Vec<Row>,
    classes: Vec<TaintClass>,
    /// Which nodes have a label.
    labels: HashMap<(String, String), Arc<Vec<bool>>>,
    /// Replicas of owners on nodes, those of this plan included.
    owners: HashMap<Arc<str>, HashMap<usize, u32>>,
    /// Ports of nodes that pods of this plan have, beside those the nodes came with.
    host_ports: HashMap<usize, Vec<HostPort>>,
}

/// Amounts as the score reads them.
struct Asked {
    cpu: f64,
    memory: f64,
    pods: f64,
}

/// One group of pods that ask the same, against all nodes.
pub(crate) struct Group<'a> {
    request: &'a PodRequest,
    asked: Asked,
    comes_to_cordoned: bool,
    opinions: Vec<Opinion>,
    matching: Vec<Arc<Vec<bool>>>,
    replicas: HashMap<usize, u32>,
    /// Nodes whose ports of their own are not free for the group; empty when it wants none.
    taken: Vec<bool>,
}

impl<'a> Table<'a> {
    pub fn new(nodes: &'a [NodeState]) -> Self {
        let mut by_name: Vec<usize> = (0..nodes.len()).collect();
        by_name.sort_by(|left, right| nodes[*left].name.cmp(&nodes[*right].name));
        let mut place = vec![0; nodes.len()];
        for (rank, &index) in by_name.iter().enumerate() {
            place[index] = ((1_u64 << PLACE_BITS) - 1).saturating_sub(rank as u64);
        }
        let mut known: BTreeMap<&[Taint], u32> = BTreeMap::new();
        let mut classes = Vec::new();
        let rows = nodes.iter().zip(place).map(|(node, place)| Row {
            free: node.allocatable.minus(node.used),
            shares: Shares::of(node.allocatable, node.used),
            place,
            class: *known.entry(&node.taints).or_insert_with(|| {
                classes.push(TaintClass { taints: node.taints.clone() });
                u32::try_from(classes.len() - 1).unwrap_or(u32::MAX)
            }),
            open: node.ready,
            cordoned: node.unschedulable,
        });
        let rows = rows.collect();
        let mut owners: HashMap<Arc<str>, HashMap<usize, u32>> = HashMap::new();
        for (index, node) in nodes.iter().enumerate() {
            for (owner, count) in &node.owners {
                owners.entry(owner.clone()).or_default().insert(index, *count);
            }
        }
        Self { nodes, rows, classes, labels: HashMap::new(), owners, host_ports: HashMap::new() }
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn node(&self, index: usize) -> &'a NodeState {
        &self.nodes[index]
    }

    pub fn free(&self, index: usize) -> Amounts {
        self.rows[index].free
    }

    /// Whether another pod on the node has a port of it that this one wants.
    pub fn lacks_ports(&self, request: &PodRequest, index: usize) -> bool {
        let held = self.nodes[index].host_ports.iter().chain(self.host_ports.get(&index).into_iter().flatten());
        request.host_ports.iter().any(|wanted| held.clone().any(|held| held.clashes(wanted)))
    }

    /// Works out what a group thinks of labels, taints and ports.
    pub fn group<'b>(&mut self, request: &'b PodRequest) -> Group<'b> {
        let opinions = self.classes.iter().map(|class| opinion(&class.taints, request)).collect();
        let mut matching: Vec<Arc<Vec<bool>>> = request
            .node_selector
            .iter()
            .map(|(key, value)| {
                let nodes = self.nodes;
                self.labels
                    .entry((key.clone(), value.clone()))
                    .or_insert_with(|| Arc::new(nodes.iter().map(|node| node.labels.get(key) == Some(value)).collect()))
                    .clone()
            })
            .collect();
        if let Some(affinity) = &request.affinity {
            let selected = self.nodes.iter().map(|node| affinity.selects(&node.name, &node.labels));
            matching.push(Arc::new(selected.collect()));
        }
        let comes_to_cordoned = request.comes_to_cordoned();
        let replicas = request.owner.as_ref().and_then(|owner| self.owners.get(owner)).cloned().unwrap_or_default();
        let asked = &request.amounts;
        let asked = Asked { cpu: asked.cpu_milli as f64, memory: asked.memory_bytes as f64, pods: asked.pods as f64 };
        let taken = match request.host_ports.is_empty() {
            true => Vec::new(),
            false => (0..self.nodes.len()).map(|index| self.lacks_ports(request, index)).collect(),
        };
        Group { request, asked, comes_to_cordoned, opinions, matching, replicas, taken }
    }

    /// How good each node is for a pod of the group: (key, index) of those it fits on.
    pub fn keys<'g>(&'g self, group: &'g Group<'_>) -> impl Iterator<Item = (u64, usize)> + 'g {
        let rows = self.rows.iter().enumerate();
        rows.map(|(index, row)| (key(row, group, index), index)).filter(|(key, _)| *key > 0)
    }

    /// How good a node is for a pod of the group; larger is better, 0 means it does not fit.
    pub fn key(&self, group: &Group<'_>, index: usize) -> u64 {
        key(&self.rows[index], group, index)
    }

    /// Puts a pod of the group on a node.
    pub fn place(&mut self, group: &mut Group<'_>, index: usize) {
        let asked = &group.request.amounts;
        let row = &mut self.rows[index];
        row.free = row.free.minus(*asked);
        // From whole numbers, so that rounding does not add up.
        let room = self.nodes[index].allocatable;
        row.shares = Shares::of(room, room.minus(row.free));
        if let Some(taken) = group.taken.get_mut(index) {
            // The next of the group wants the same ones.
            *taken = true;
            self.host_ports.entry(index).or_default().extend(group.request.host_ports.iter().cloned());
        }
        if let Some(owner) = &group.request.owner {
            *group.replicas.entry(index).or_default() += 1;
            *self.owners.entry(owner.clone()).or_default().entry(index).or_default() += 1;
        }
    }
}

/// From the highest bits: few taints that would rather not, few replicas of the same owner, free and balanced resources, the
/// name.
#[inline]
fn key(row: &Row, group: &Group<'_>, index: usize) -> u64 {
    let (asked, free) = (&group.request.amounts, &row.free);
    let opinion = group.opinions[row.class as usize];
    let fits = row.open
        & (!row.cordoned | group.comes_to_cordoned)
        & !opinion.blocked
        & (asked.cpu_milli <= free.cpu_milli)
        & (asked.memory_bytes <= free.memory_bytes)
        & (asked.ephemeral_bytes <= free.ephemeral_bytes)
        & (asked.pods <= free.pods);
    if !fits || !group.matching.iter().all(|has| has[index]) || group.taken.get(index) == Some(&true) {
        return 0;
    }
    let replicas = if group.replicas.is_empty() { 0 } else { group.replicas.get(&index).copied().unwrap_or(0) };
    let most = (1_u64 << REPLICA_BITS) - 1;
    // 254, not 255: a node that fits never has the key 0.
    let avoided = 255 - opinion.avoided.min(254);
    (avoided << (REPLICA_BITS + SCORE_BITS + PLACE_BITS))
        | ((most - u64::from(replicas).min(most)) << (SCORE_BITS + PLACE_BITS))
        | (score(&row.shares, &group.asked) << PLACE_BITS)
        | row.place
}

/// 0 to 4,000: thousandths of cpu, memory and pods that stay free, and how evenly cpu and memory are used.
#[inline]
fn score(shares: &Shares, asked: &Asked) -> u64 {
    let cpu = shares.cpu_free - asked.cpu * shares.cpu_unit;
    let memory = shares.memory_free - asked.memory * shares.memory_unit;
    let pods = shares.pods_free - asked.pods * shares.pods_unit;
    let score = cpu + memory + pods + 1000.0 - (cpu - memory).abs();
    // Through i32, which is one instruction; the bounds hold whatever rounding does.
    (score as i32).clamp(0, 4_095) as u64
}

fn opinion(taints: &[Taint], request: &PodRequest) -> Opinion {
    let untolerated = || taints.iter().filter(|taint| !tolerated(&request.tolerations, taint));
    Opinion {
        blocked: untolerated().any(|taint| taint.effect != Effect::PreferNoSchedule),
        avoided: untolerated().filter(|taint| taint.effect == Effect::PreferNoSchedule).count() as u64,
    }
}
