//! What an agent reports, turned into proposals: pod status, pods that are gone, events, node status.

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use coracle_protocol::v1::{NodeEvent, Report};
use coracle_store::{Expect, Key, Op, Transaction, View};
use serde_json::{Value, json};

use super::register::merge_status;
use crate::now;
use coracle_api::{Memory, ProposeError};

/// Names of one agent's events in one report; more are dropped (the agent coalesces equal ones).
const EVENTS_PER_REPORT: usize = 200;

/// Applies one report of `node`. A node may write only what is bound to it: everything else in the report is ignored and
/// logged.
pub(super) async fn apply(memory: &dyn Memory, node: &str, report: Report) {
    let view = memory.view();
    let mine = |namespace: &str, name: &str, uid: &str| {
        let bound = view
            .find("pods", namespace, name)
            .is_some_and(|pod| *pod.uid == *uid && pod.tree()["spec"]["nodeName"] == node);
        if !bound && view.find("pods", namespace, name).is_some_and(|pod| *pod.uid == *uid) {
            tracing::warn!(node, namespace, pod = name, "a node reported a pod that is not bound to it");
        }
        bound
    };
    let mut transactions: Vec<Transaction> = Vec::new();
    for pod in &report.pods {
        if !mine(&pod.namespace, &pod.name, &pod.uid) {
            continue;
        }
        match serde_json::from_slice::<Value>(&pod.status) {
            Ok(status) if status.is_object() => transactions.push(
                Op::Status {
                    key: Key::new("pods", pod.namespace.as_str(), pod.name.as_str()),
                    uid: pod.uid.as_str().into(),
                    status: Arc::new(status),
                }
                .into(),
            ),
            _ => tracing::warn!(node, pod = pod.name, "a node reported a status that is not an object"),
        }
    }
    for event in report.events.iter().take(EVENTS_PER_REPORT) {
        transactions.extend(event_op(&view, node, event).map(Transaction::from));
    }
    if !report.node_status.is_empty() {
        transactions.extend(node_status_op(&view, node, &report.node_status).map(Transaction::from));
    }
    for gone in &report.gone {
        if mine(&gone.namespace, &gone.name, &gone.uid) {
            transactions.extend(gone_op(&view, &gone.namespace, &gone.name).map(Transaction::from));
        }
    }
    if transactions.is_empty() {
        return;
    }
    for outcome in memory.propose_many(transactions).await {
        match outcome {
            Ok(_) | Err(ProposeError::Rejected { .. }) => {}
            // The agent keeps its latest word and says it again with the next change or session.
            Err(error) => tracing::warn!(node, error = coracle_base::one_line(&error), "a report could not be stored"),
        }
    }
}

/// Removes a pod whose node confirmed its end; only one that is being deleted, or whose node says so of a pod no longer
/// wanted. Finalizers keep the object: then only the confirmation is noted, by removing the grace period.
fn gone_op(view: &View, namespace: &str, name: &str) -> Option<Op> {
    let pod = view.find("pods", namespace, name)?;
    let meta = &pod.tree()["metadata"];
    if meta["deletionTimestamp"].is_null() {
        return None;
    }
    let expect = Expect { uid: Some(pod.uid.clone()), revision: None };
    if meta["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty()) {
        let mut value = (**pod.tree()).clone();
        value["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        let expect = Expect { revision: Some(pod.revision), ..expect };
        return Some(Op::Update { key: pod.key.clone(), expect, value: Arc::new(value), claims: None });
    }
    Some(Op::Delete { key: pod.key.clone(), expect })
}

fn node_status_op(view: &View, node: &str, status: &[u8]) -> Option<Op> {
    let stored = view.find("nodes", "", node)?;
    let offered: Value = serde_json::from_slice(status).ok()?;
    let status = merge_status(&stored.tree()["status"], &offered);
    Some(Op::Status { key: stored.key.clone(), uid: stored.uid.clone(), status: Arc::new(status) })
}

/// An Event object, or one more count on the one that says the same. Its name is a hash of what it says, so that no search
/// is needed.
fn event_op(view: &View, node: &str, event: &NodeEvent) -> Option<Op> {
    // Fixed keys: the name is looked up by whoever writes it, and only within an hour of events.
    let mut hasher = std::hash::DefaultHasher::new();
    (&event.uid, &event.kind, &event.reason, &event.message, &event.r#type, node).hash(&mut hasher);
    let name = format!("{}.{:016x}", event.name, hasher.finish());
    let namespace = if event.namespace.is_empty() { "default" } else { &event.namespace };
    let key = Key::new("events", namespace, name.as_str());
    let at = jiff::Timestamp::from_second(i64::try_from(event.at_ms / 1000).ok()?).ok()?.to_string();
    if let Some(stored) = view.get(&key) {
        let mut value = (**stored.tree()).clone();
        value["count"] = json!(value["count"].as_u64().unwrap_or(1) + 1);
        value["lastTimestamp"] = json!(at);
        return Some(Op::Update {
            key,
            expect: Expect { uid: Some(stored.uid.clone()), revision: Some(stored.revision) },
            value: Arc::new(value),
            claims: None,
        });
    }
    let mut involved = json!({"apiVersion": "v1", "kind": event.kind, "name": event.name, "uid": event.uid});
    if !event.namespace.is_empty() {
        involved["namespace"] = json!(event.namespace);
    }
    let value = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": now::rfc3339(),
        },
        "involvedObject": involved,
        "reason": event.reason,
        "message": event.message,
        "source": {"component": "agent", "host": node},
        "reportingComponent": "agent",
        "reportingInstance": node,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
        "type": event.r#type,
        "eventTime": null,
    });
    Some(Op::Create { key, value: Arc::new(value), claims: Vec::new() })
}
