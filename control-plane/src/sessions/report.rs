//! What an agent reports, turned into proposals: pod status, pods that are gone, events, node status.

use std::hash::{Hash as _, Hasher as _};
use std::sync::Arc;

use coracle_protocol::v1::{Item, NodeEvent, Report};
use coracle_store::{Expect, Key, Op, Transaction, View};
use serde_json::{Value, json};

use super::register::merge_status;
use crate::now;
use coracle_api::{Memory, ProposeError};

/// Names of one agent's events in one report; more are dropped (the agent coalesces equal ones).
const EVENTS_PER_REPORT: usize = 200;

/// Where a transaction comes from in its report.
#[derive(Clone, Copy)]
enum Said {
    Pod(usize),
    Gone(usize),
    Orphan(usize),
    Node,
    Event,
}

/// A session takes no more than so much before some of it is stored: an agent says little of each of its pods.
pub(super) const MOST_WAITING: usize = 10_000;

/// How much is said.
pub(super) fn len(report: &Report) -> usize {
    report.pods.len() + report.gone.len() + report.orphans.len() + report.events.len()
}

/// Whether nothing is said.
pub(super) fn is_empty(report: &Report) -> bool {
    len(report) == 0 && report.node_status.is_empty()
}

/// An older report with a newer one after it: of each pod, and of the node, the newer word counts.
pub(super) fn merged(mut older: Report, newer: Report) -> Report {
    if is_empty(&older) {
        return newer;
    }
    older.pods.retain(|pod| newer.pods.iter().all(|other| other.uid != pod.uid));
    older.pods.extend(newer.pods);
    older.gone.retain(|gone| newer.gone.iter().all(|other| other.uid != gone.uid));
    older.gone.extend(newer.gone);
    older.events.extend(newer.events);
    older.orphans.retain(|orphan| newer.orphans.iter().all(|other| other.uid != orphan.uid));
    older.orphans.extend(newer.orphans);
    if !newer.node_status.is_empty() {
        older.node_status = newer.node_status;
    }
    older
}

/// Applies one report of `node`; returns what has to be tried again. A node may write only what is bound to it: everything else in
/// the report is ignored and logged.
pub(super) async fn apply(memory: &dyn Memory, node: &str, mut report: Report) -> Report {
    let (transactions, said): (Vec<Transaction>, Vec<Said>) =
        planned(&memory.view(), node, &report).into_iter().unzip();
    let (mut again, mut pods, mut gone, mut of_node) = (None, Vec::new(), Vec::new(), false);
    let mut orphans = Vec::new();
    let outcomes = if transactions.is_empty() { Vec::new() } else { memory.propose_many(transactions).await };
    for (outcome, said) in outcomes.into_iter().zip(said) {
        match (outcome, said) {
            (Ok(_), _) => {}
            // Somebody has changed it meanwhile: what its end means now is worked out anew.
            (Err(ProposeError::Rejected { .. }), Said::Gone(index)) => gone.push(report.gone[index].clone()),
            (Err(ProposeError::Rejected { .. }), _) => {}
            (Err(error), said) => {
                match said {
                    Said::Pod(index) => pods.push(report.pods[index].clone()),
                    Said::Gone(index) => gone.push(report.gone[index].clone()),
                    Said::Orphan(index) => orphans.push(report.orphans[index].clone()),
                    Said::Node => of_node = true,
                    // Events are worth one attempt.
                    Said::Event => continue,
                }
                again = Some(error);
            }
        }
    }
    if let Some(error) = again {
        tracing::warn!(node, error = coracle_base::one_line(&error), "a report could not be stored and is tried again");
    }
    let node_status = if of_node { std::mem::take(&mut report.node_status) } else { Vec::new() };
    Report { pods, gone, orphans, node_status, ..Report::default() }
}

fn planned(view: &View, node: &str, report: &Report) -> Vec<(Transaction, Said)> {
    let mine = |namespace: &str, name: &str, uid: &str| {
        let Some(pod) = view.find("pods", namespace, name).filter(|pod| *pod.uid == *uid) else { return false };
        let bound = view.is_on(node, &pod.key);
        if !bound {
            tracing::warn!(node, namespace, pod = name, "a node reported a pod that is not bound to it");
        }
        bound
    };
    let mut planned: Vec<(Transaction, Said)> = Vec::new();
    for (index, orphan) in report.orphans.iter().enumerate() {
        planned.extend(adopted(view, node, orphan).map(|op| (op.into(), Said::Orphan(index))));
    }
    for (index, pod) in report.pods.iter().enumerate() {
        if !mine(&pod.namespace, &pod.name, &pod.uid) {
            continue;
        }
        match serde_json::from_slice::<Value>(&pod.status) {
            Ok(status) if status.is_object() => {
                let key = Key::new("pods", pod.namespace.as_str(), pod.name.as_str());
                let op = Op::Status { key, uid: pod.uid.as_str().into(), status: Arc::new(status) };
                planned.push((op.into(), Said::Pod(index)));
            }
            _ => tracing::warn!(node, pod = pod.name, "a node reported a status that is not an object"),
        }
    }
    for event in report.events.iter().take(EVENTS_PER_REPORT) {
        planned.extend(event_op(view, node, event).map(|op| (op.into(), Said::Event)));
    }
    if !report.node_status.is_empty() {
        planned.extend(node_status_op(view, node, &report.node_status).map(|op| (op.into(), Said::Node)));
    }
    for (index, gone) in report.gone.iter().enumerate() {
        if mine(&gone.namespace, &gone.name, &gone.uid) {
            planned.extend(gone_op(view, &gone.namespace, &gone.name).map(|op| (op.into(), Said::Gone(index))));
        }
    }
    planned
}

/// Removes a pod whose node confirmed its end; only one that is being deleted, or whose node says so of a pod no longer
/// wanted. Finalizers keep the object: then only the confirmation is noted, by removing the grace period.
fn gone_op(view: &View, namespace: &str, name: &str) -> Option<Op> {
    let pod = view.find("pods", namespace, name)?;
    let tree = pod.peek();
    let meta = &tree["metadata"];
    if meta["deletionTimestamp"].is_null() {
        return None;
    }
    let expect = Expect { uid: Some(pod.uid.clone()), revision: None };
    if meta["finalizers"].as_array().is_some_and(|finalizers| !finalizers.is_empty()) {
        let mut value = (*tree).clone();
        value["metadata"]["deletionGracePeriodSeconds"] = json!(0);
        let expect = Expect { revision: Some(pod.revision), ..expect };
        return Some(Op::Update { key: pod.key.clone(), expect, value: Arc::new(value), claims: None });
    }
    Some(Op::Delete { key: pod.key.clone(), expect })
}

/// A pod that runs on a node and that this state, which began anew from a backup, does not know: it is taken over when what it belongs
/// to is there.
fn adopted(view: &View, node: &str, orphan: &Item) -> Option<Op> {
    if orphan.resource != "pods" || view.find("pods", &orphan.namespace, &orphan.name).is_some() {
        return None;
    }
    view.find("namespaces", "", &orphan.namespace)?;
    let mut value: Value = serde_json::from_slice(&orphan.object).ok()?;
    let meta = &value["metadata"];
    let itself = meta["name"] == orphan.name.as_str()
        && meta["namespace"] == orphan.namespace.as_str()
        && meta["uid"] == orphan.uid.as_str();
    // A node says only what it runs itself, and nothing that was about to go.
    if !itself || value["spec"]["nodeName"] != node || !meta["deletionTimestamp"].is_null() {
        return None;
    }
    if let Some(owner) = coracle_manifests::view::controller(&value) {
        let text = |field: &str| owner[field].as_str().unwrap_or_default();
        let kind = coracle_manifests::kinds::by_name(text("apiVersion"), text("kind"))?;
        let stored = view.find(kind.resource, &orphan.namespace, text("name"))?;
        if *stored.uid != *text("uid") {
            return None;
        }
    }
    value["metadata"].as_object_mut()?.remove("resourceVersion");
    tracing::info!(node, namespace = orphan.namespace, pod = orphan.name, "a pod that ran before is taken over");
    let key = Key::new("pods", orphan.namespace.as_str(), orphan.name.as_str());
    Some(Op::Create { key, value: Arc::new(value), claims: Vec::new() })
}

fn node_status_op(view: &View, node: &str, status: &[u8]) -> Option<Op> {
    let stored = view.find("nodes", "", node)?;
    let offered: Value = serde_json::from_slice(status).ok()?;
    let status = merge_status(&stored.peek()["status"], &offered);
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
    // The last words of a pod may come after its namespace has gone.
    view.find("namespaces", "", namespace)?;
    let key = Key::new("events", namespace, name.as_str());
    let at = jiff::Timestamp::from_second(i64::try_from(event.at_ms / 1000).ok()?).ok()?.to_string();
    if let Some(stored) = view.get(&key) {
        let mut value = (*stored.peek()).clone();
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
            "uid": now::uuid().to_string(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_protocol::v1::{PodGone, PodStatus};
    use coracle_store::{Limits, Store};
    use std::sync::Mutex;

    /// A memory that refuses a number of calls, and one in which somebody writes between the look and the proposal.
    struct Shaky {
        store: Mutex<Store>,
        busy: Mutex<usize>,
        meanwhile: Mutex<Option<Transaction>>,
    }

    impl Shaky {
        fn with(pod: &Value) -> Self {
            let memory = Self {
                store: Mutex::new(Store::new(Limits::default())),
                busy: Mutex::new(0),
                meanwhile: Mutex::new(None),
            };
            let key = Key::new("pods", "default", "p");
            let create = Op::Create { key, value: Arc::new(pod.clone()), claims: Vec::new() };
            assert!(memory.store.lock().unwrap().apply(&[create.into()])[0].is_ok());
            memory
        }

        fn pod(&self) -> Option<Value> {
            self.view().find("pods", "default", "p").map(|pod| (**pod.tree()).clone())
        }
    }

    impl Memory for Shaky {
        fn view(&self) -> View {
            self.store.lock().unwrap().view()
        }

        fn propose_many(
            &self,
            transactions: Vec<Transaction>,
        ) -> coracle_api::BoxFuture<'_, Vec<coracle_api::Proposed>> {
            let mut busy = self.busy.lock().unwrap();
            if *busy > 0 {
                *busy -= 1;
                let refused = transactions.iter().map(|_| Err(ProposeError::Busy)).collect();
                return Box::pin(std::future::ready(refused));
            }
            let mut store = self.store.lock().unwrap();
            if let Some(theirs) = self.meanwhile.lock().unwrap().take() {
                assert!(store.apply(&[theirs])[0].is_ok());
            }
            let outcomes = store
                .apply(&transactions)
                .into_iter()
                .map(|applied| applied.map_err(|(index, rejection)| ProposeError::Rejected { index, rejection }));
            Box::pin(std::future::ready(outcomes.collect()))
        }

        fn read_barrier(&self) -> coracle_api::BoxFuture<'_, Result<View, ProposeError>> {
            unreachable!("a report reads what is there")
        }

        fn propose(&self, _: Transaction) -> coracle_api::BoxFuture<'_, coracle_api::Proposed> {
            unreachable!("a report is proposed as a whole")
        }

        fn changes(&self) -> tokio::sync::watch::Receiver<coracle_base::Generation> {
            unreachable!("a report waits for nothing")
        }

        fn events_after(&self, _: u64, _: Option<&str>) -> Option<Vec<coracle_store::Event>> {
            unreachable!("a report reads no history")
        }
    }

    fn pod(finalizers: &Value) -> Value {
        json!({
            "metadata": {
                "name": "p", "namespace": "default", "uid": "u", "finalizers": finalizers,
                "deletionTimestamp": "2026-11-26T12:00:00Z", "deletionGracePeriodSeconds": 30,
            },
            "spec": {"nodeName": "n"},
        })
    }

    fn status(phase: &str) -> PodStatus {
        let status = serde_json::to_vec(&json!({"phase": phase})).unwrap();
        PodStatus { namespace: "default".into(), name: "p".into(), uid: "u".into(), status }
    }

    fn gone() -> Report {
        let gone = PodGone { namespace: "default".into(), name: "p".into(), uid: "u".into() };
        Report { gone: vec![gone], ..Report::default() }
    }

    #[tokio::test]
    async fn what_cannot_be_stored_now_is_kept_and_newer_words_take_its_place() {
        let memory = Shaky::with(&pod(&json!([])));
        *memory.busy.lock().unwrap() = 1;
        let report = Report { pods: vec![status("Pending")], ..gone() };
        let left = apply(&memory, "n", report).await;
        assert_eq!((left.pods.len(), left.gone.len()), (1, 1));
        let newer = Report { pods: vec![status("Failed")], ..Report::default() };
        let left = apply(&memory, "n", merged(left, newer)).await;
        assert!(is_empty(&left), "{left:?}");
        assert!(memory.pod().is_none(), "the pod's end was said once and is not forgotten");
    }

    #[tokio::test]
    async fn an_end_that_met_another_change_is_worked_out_anew() {
        let memory = Shaky::with(&pod(&json!(["example.com/hold"])));
        // Its finalizer is taken off at the same moment.
        let key = Key::new("pods", "default", "p");
        let op = Op::Update { key, expect: Expect::default(), value: Arc::new(pod(&json!([]))), claims: None };
        *memory.meanwhile.lock().unwrap() = Some(op.into());
        let left = apply(&memory, "n", gone()).await;
        assert_eq!(left.gone.len(), 1, "it was refused and must be tried again");
        assert!(is_empty(&apply(&memory, "n", left).await));
        assert!(memory.pod().is_none());
    }

    #[tokio::test]
    async fn a_stranger_changes_nothing() {
        let memory = Shaky::with(&pod(&json!([])));
        let left = apply(&memory, "other", Report { pods: vec![status("Failed")], ..gone() }).await;
        assert!(is_empty(&left) && memory.pod().is_some_and(|pod| pod["status"].is_null()));
    }
}
