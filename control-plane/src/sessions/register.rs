//! A node makes itself known: its Node object, and the block of pod addresses the cluster gives it.

use std::collections::HashSet;
use std::sync::Arc;

use coracle_store::{Expect, Key, Object, Op, Rejection};
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
const TRIES: usize = 20;

/// Creates or renews the Node of an agent; returns its block of pod addresses.
pub(super) async fn register(
    memory: &dyn Memory,
    plan: &NetworkPlan,
    node: &str,
    offered: &[u8],
) -> Result<String, RegisterError> {
    let offered: Value = serde_json::from_slice(offered).map_err(|_| RegisterError::Unreadable(node.to_owned()))?;
    if !offered.is_object() {
        return Err(RegisterError::Unreadable(node.to_owned()));
    }
    let mut last = None;
    for _ in 0..TRIES {
        let view = memory.view();
        let op = match view.find("nodes", "", node) {
            Some(stored) => {
                let cidr = stored.tree()["spec"]["podCIDR"].as_str().unwrap_or_default().to_owned();
                if !cidr.is_empty() {
                    let renewed = renew(stored, &offered);
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
                let block = free_block(&view, plan, node)?;
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
            None => create(&view, plan, node, &offered)?,
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

/// The first block no node has.
fn free_block(view: &coracle_store::View, plan: &NetworkPlan, node: &str) -> Result<String, RegisterError> {
    let taken: HashSet<&str> =
        view.list("nodes", None).filter_map(|node| node.tree()["spec"]["podCIDR"].as_str()).collect();
    (0..)
        .map_while(|index| plan.cluster_cidr.block(index, plan.node_prefix))
        .map(|block| block.to_string())
        .find(|block| !taken.contains(block.as_str()))
        .ok_or_else(|| RegisterError::Full { node: node.to_owned(), cluster: plan.cluster_cidr.to_string() })
}

fn create(view: &coracle_store::View, plan: &NetworkPlan, node: &str, offered: &Value) -> Result<Op, RegisterError> {
    let block = free_block(view, plan, node)?;
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
    Ok(Op::Create {
        key: Key::new("nodes", "", node),
        value: Arc::new(value),
        claims: vec![format!("podcidr/{block}")],
    })
}

/// The stored Node with the agent's labels and status; what others put there (labels, taints, cordon) stays. A taint that
/// says the node is away goes with the node's return.
fn renew(stored: &Object, offered: &Value) -> Op {
    let mut value = (**stored.tree()).clone();
    let mut labels = value["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    labels.extend(offered["metadata"]["labels"].as_object().cloned().unwrap_or_default());
    value["metadata"]["labels"] = Value::Object(labels);
    value["status"] = merge_status(&stored.tree()["status"], &offered["status"]);
    Op::Update {
        key: stored.key.clone(),
        expect: Expect { uid: Some(stored.uid.clone()), revision: Some(stored.revision) },
        value: Arc::new(value),
        claims: None,
    }
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
