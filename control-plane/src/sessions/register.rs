//! A node makes itself known: its Node object, and the block of pod addresses the cluster gives it.

use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_base::Generation;
use coracle_store::{EventKind, Expect, Key, Object, Op, Rejection};
use serde_json::{Map, Value, json};

use crate::cidr::Cidr;
use crate::now;
use coracle_api::{Memory, ProposeError};

/// The addresses of the cluster, as every agent is told.
#[derive(Debug, Clone)]
pub struct NetworkPlan {
    /// Pods.
    pub cluster_cidr: Cidr,
    /// Services.
    pub service_cidr: Cidr,
    /// Prefix length of a node's block: 24 holds 250 pods.
    pub node_prefix: u8,
    /// `cluster.local`
    pub domain: String,
}

/// Why a node could not be registered.
#[derive(Debug, thiserror::Error)]
pub(super) enum RegisterError {
    /// What the agent sent is not a Node.
    #[error("the agent of node {0} sent a Node that cannot be read")]
    Unreadable(String),
    /// All blocks are given out.
    #[error("node {node} gets no pod addresses: all blocks of {cluster} are given out")]
    Full {
        /// Which node.
        node: String,
        /// The cluster's block.
        cluster: String,
    },
    /// The memory refused.
    #[error("cannot register node {node}")]
    Propose {
        /// Which node.
        node: String,
        /// Why.
        #[source]
        source: ProposeError,
    },
}

/// How often a registration is tried again when others write the same objects.
const TRIES: u64 = 20;
/// Newcomers of several servers would all ask for the same block; from the second try on each looks among so many more.
const SPREAD: u64 = 64;

/// The blocks that nodes have, kept from one newcomer to the next: thousands that come together would otherwise each read the Nodes
/// of all who came before.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    at: Option<Generation>,
    of_node: HashMap<Arc<str>, u32>,
    taken: BTreeSet<u32>,
    /// Asked for by newcomers of this server whose Nodes are not stored yet.
    asked: BTreeSet<u32>,
}

/// The blocks as the newcomers of a server share them: each holds them only to choose one.
pub(super) type Shared = Mutex<Blocks>;

fn lock(blocks: &Shared) -> MutexGuard<'_, Blocks> {
    blocks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A block that a newcomer asks for, until it has it or not.
struct Asked<'a> {
    blocks: &'a Shared,
    number: u32,
    block: String,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        lock(self.blocks).asked.remove(&self.number);
    }
}

impl Blocks {
    /// Looks at what has changed since the last look.
    fn advance(&mut self, memory: &dyn Memory, view: &coracle_store::View, plan: &NetworkPlan) {
        let now = view.generation();
        let before = self.at.filter(|before| before.epoch == now.epoch && before.revision <= now.revision);
        match before.and_then(|before| memory.events_after(before.revision, Some("nodes"))) {
            Some(events) => {
                for event in events.iter().take_while(|event| event.revision <= now.revision) {
                    let block = block_of(&event.object, plan).filter(|_| event.kind != EventKind::Deleted);
                    self.set(&event.object.key.name, block);
                }
            }
            None => {
                *self = Self { asked: std::mem::take(&mut self.asked), ..Self::default() };
                view.list("nodes", None).for_each(|node| self.set(&node.key.name, block_of(node, plan)));
            }
        }
        self.at = Some(now);
    }

    fn set(&mut self, node: &Arc<str>, block: Option<u32>) {
        let before = match block {
            Some(block) => self.of_node.insert(node.clone(), block),
            None => self.of_node.remove(node),
        };
        if let Some(before) = before {
            self.taken.remove(&before);
        }
        self.taken.extend(block);
    }

    /// The first that no node has or is about to have, after so many others.
    fn free(&self, others: usize) -> u32 {
        let is_free = |number: &u32| !self.taken.contains(number) && !self.asked.contains(number);
        (0..u32::MAX).filter(is_free).nth(others).unwrap_or(u32::MAX)
    }
}

/// The number of a Node's block in the cluster's; `None`: it has none, or one of another plan.
fn block_of(node: &Object, plan: &NetworkPlan) -> Option<u32> {
    let block: Cidr = node.peek()["spec"]["podCIDR"].as_str()?.parse().ok()?;
    plan.cluster_cidr.index_of(block).filter(|_| block.prefix() == plan.node_prefix)
}

/// Creates or renews the Node of an agent; returns its block of pod addresses. A newcomer brings what is known of `blocks`.
pub(super) async fn register(
    memory: &dyn Memory,
    plan: &NetworkPlan,
    node: &str,
    offered: &[u8],
    blocks: &Shared,
) -> Result<String, RegisterError> {
    let offered: Value = serde_json::from_slice(offered).map_err(|_| RegisterError::Unreadable(node.to_owned()))?;
    if !offered.is_object() {
        return Err(RegisterError::Unreadable(node.to_owned()));
    }
    let mut last = None;
    for attempt in 0..TRIES {
        let view = memory.view();
        let ask = || ask(blocks, memory, &view, plan, node, attempt);
        // The block is asked for until the answer is there.
        let asked;
        let op = match view.find("nodes", "", node) {
            Some(stored) => {
                let cidr = stored.tree()["spec"]["podCIDR"].as_str().unwrap_or_default().to_owned();
                if !cidr.is_empty() {
                    let Some(renewed) = renew(stored, &offered) else { return Ok(cidr) };
                    return match memory.propose(renewed.into()).await {
                        Ok(_) => Ok(cidr),
                        Err(ProposeError::Rejected { .. }) => continue,
                        // It is known, and without it no pod could be deleted; labels and taints wait for the next session.
                        Err(ProposeError::DiskFull) => {
                            let _ = memory.propose(status_only(stored, &offered).into()).await;
                            Ok(cidr)
                        }
                        Err(source) => Err(RegisterError::Propose { node: node.to_owned(), source }),
                    };
                }
                // Somebody made the Node by hand: it gets its block now.
                asked = ask()?;
                let block = &asked.block;
                let mut value = (**stored.tree()).clone();
                value["spec"]["podCIDR"] = json!(block);
                value["spec"]["podCIDRs"] = json!([block]);
                Op::Update {
                    key: stored.key.clone(),
                    expect: Expect { uid: Some(stored.uid.clone()), revision: Some(stored.revision) },
                    value: Arc::new(value),
                    claims: Some(vec![format!("podcidr/{block}")]),
                }
            }
            None => {
                asked = ask()?;
                create(&asked.block, node, &offered)
            }
        };
        match memory.propose(op.into()).await {
            Ok(_) => {}
            Err(ProposeError::Rejected { rejection, .. }) => last = Some(rejection),
            Err(source) => return Err(RegisterError::Propose { node: node.to_owned(), source }),
        }
    }
    let rejection = last.unwrap_or(Rejection::Missing(Key::new("nodes", "", node)));
    Err(RegisterError::Propose { node: node.to_owned(), source: ProposeError::Rejected { index: 0, rejection } })
}

/// The first block no node has; after others were quicker, one of the next.
fn ask<'a>(
    blocks: &'a Shared,
    memory: &dyn Memory,
    view: &coracle_store::View,
    plan: &NetworkPlan,
    node: &str,
    attempt: u64,
) -> Result<Asked<'a>, RegisterError> {
    let mut held = lock(blocks);
    held.advance(memory, view, plan);
    // Fixed keys: every run of the simulator chooses the same.
    let mut hasher = std::hash::DefaultHasher::new();
    (node, attempt).hash(&mut hasher);
    let others = usize::try_from(hasher.finish() % (SPREAD * attempt).max(1)).unwrap_or(0);
    let found = [others, 0].into_iter().find_map(|others| {
        let number = held.free(others);
        Some((number, plan.cluster_cidr.block(number, plan.node_prefix)?.to_string()))
    });
    let full = || RegisterError::Full { node: node.to_owned(), cluster: plan.cluster_cidr.to_string() };
    let (number, block) = found.ok_or_else(full)?;
    held.asked.insert(number);
    Ok(Asked { blocks, number, block })
}

fn create(block: &str, node: &str, offered: &Value) -> Op {
    let mut labels = offered["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    labels.entry("kubernetes.io/hostname").or_insert_with(|| json!(node));
    let value = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node,
            "uid": now::uuid().to_string(),
            "creationTimestamp": now::rfc3339(),
            "labels": labels,
            "annotations": offered["metadata"]["annotations"].as_object().cloned().unwrap_or_default(),
        },
        "spec": {"podCIDR": block, "podCIDRs": [block]},
        "status": merge_status(&Value::Null, &offered["status"]),
    });
    Op::Create { key: Key::new("nodes", "", node), value: Arc::new(value), claims: vec![format!("podcidr/{block}")] }
}

/// The stored Node with the agent's labels and status; what others put there (labels, taints, cordon) stays. A taint that
/// says the node is away goes with the node's return. `None`: nothing would change, and thousands of agents that come back at once
/// propose nothing.
fn renew(stored: &Object, offered: &Value) -> Option<Op> {
    let mut value = (**stored.tree()).clone();
    let mut labels = value["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    labels.extend(offered["metadata"]["labels"].as_object().cloned().unwrap_or_default());
    value["metadata"]["labels"] = Value::Object(labels);
    value["status"] = merge_status(&stored.tree()["status"], &offered["status"]);
    if value == **stored.tree() {
        return None;
    }
    let expect = Expect { uid: Some(stored.uid.clone()), revision: Some(stored.revision) };
    Some(Op::Update { key: stored.key.clone(), expect, value: Arc::new(value), claims: None })
}

/// The part that a full disk still takes.
fn status_only(stored: &Object, offered: &Value) -> Op {
    let status = merge_status(&stored.tree()["status"], &offered["status"]);
    Op::Status { key: stored.key.clone(), uid: stored.uid.clone(), status: Arc::new(status) }
}

/// The agent's status over the stored one. A condition whose status did not change keeps its `lastTransitionTime`, so that
/// an unchanged report is an unchanged object.
pub(super) fn merge_status(stored: &Value, offered: &Value) -> Value {
    let mut status: Map<String, Value> = stored.as_object().cloned().unwrap_or_default();
    for (field, value) in offered.as_object().into_iter().flatten() {
        if field != "conditions" {
            status.insert(field.clone(), value.clone());
        }
    }
    let now = now::rfc3339();
    let old: Vec<Value> = stored["conditions"].as_array().cloned().unwrap_or_default();
    let mut conditions: Vec<Value> = Vec::new();
    for offered in offered["conditions"].as_array().into_iter().flatten() {
        let prior = old.iter().find(|prior| prior["type"] == offered["type"]);
        let mut condition = offered.clone();
        let same = prior.filter(|prior| prior["status"] == offered["status"]);
        condition["lastTransitionTime"] = same.map_or_else(|| json!(now), |prior| prior["lastTransitionTime"].clone());
        condition["lastHeartbeatTime"] = condition["lastTransitionTime"].clone();
        conditions.push(condition);
    }
    for prior in old {
        if !conditions.iter().any(|condition| condition["type"] == prior["type"]) {
            conditions.push(prior);
        }
    }
    status.insert("conditions".to_owned(), Value::Array(conditions));
    Value::Object(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_gets_the_first_block_that_is_free() {
        let mut blocks = Blocks::default();
        assert_eq!(blocks.free(0), 0);
        for (node, block) in [("a", 0), ("b", 1), ("d", 3)] {
            blocks.set(&node.into(), Some(block));
        }
        assert_eq!([0, 1, 2].map(|others| blocks.free(others)), [2, 4, 5]);
        blocks.asked.insert(4);
        assert_eq!(blocks.free(1), 5, "somebody is about to have it");
        blocks.asked.clear();
        blocks.set(&"c".into(), Some(2));
        assert_eq!(blocks.free(0), 4);
        blocks.set(&"b".into(), None);
        assert_eq!(blocks.free(0), 1, "what a node had that is gone is free again");
        blocks.set(&"a".into(), Some(1));
        assert_eq!(blocks.free(0), 0);
    }

    #[test]
    fn an_unchanged_report_is_an_unchanged_status() {
        let offered = json!({"capacity": {"cpu": "2"}, "conditions": [{"type": "Ready", "status": "True"}]});
        let first = merge_status(&Value::Null, &offered);
        assert_eq!(merge_status(&first, &offered), first);
        let down = json!({"conditions": [{"type": "Ready", "status": "False"}]});
        let mut older = first.clone();
        older["conditions"][0]["lastTransitionTime"] = json!("2001-01-01T00:00:00Z");
        assert_eq!(merge_status(&older, &offered)["conditions"][0]["lastTransitionTime"], "2001-01-01T00:00:00Z");
        assert_ne!(merge_status(&older, &down)["conditions"][0]["lastTransitionTime"], "2001-01-01T00:00:00Z");
        assert_eq!(merge_status(&older, &down)["capacity"]["cpu"], "2");
    }
}
