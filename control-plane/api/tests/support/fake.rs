//! The rest of a cluster as the door sees it: the real store without a log below it, and logs out of thin air.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use coracle_api::{BoxFuture, Cluster, LogChunks, LogQuery, Memory, ProposeError, Proposed, Who};
use coracle_base::{Generation, Revision};
use coracle_store::{Event, Expect, Key, Limits, Object, Op, Store, Transaction, View};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

/// The memory, and what was asked of the nodes.
pub struct Fake {
    store: Mutex<Store>,
    changes: watch::Sender<Generation>,
    /// Log requests, as they came.
    pub log_queries: Mutex<Vec<LogQuery>>,
    /// The senders of logs that are followed: dropping one ends its stream.
    pub followed: Mutex<Vec<mpsc::Sender<Result<Bytes, String>>>>,
    /// What the next proposals are refused with, first to last.
    pub refusals: Mutex<Vec<ProposeError>>,
    /// Done before the next proposal is applied: somebody who is faster.
    pub faster: Mutex<Vec<Transaction>>,
}

impl Fake {
    /// A memory that keeps so many bytes of history.
    pub fn new(history_bytes: usize) -> Self {
        let store = Store::new(Limits { history_bytes, ..Limits::default() });
        let fake = Self {
            store: Mutex::new(store),
            changes: watch::Sender::new(Generation::default()),
            log_queries: Mutex::default(),
            followed: Mutex::default(),
            refusals: Mutex::default(),
            faster: Mutex::default(),
        };
        for name in ["default", "kube-system"] {
            fake.put(json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
                "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
            }));
        }
        fake
    }

    /// Stores an object as the system itself would, without the door's checks.
    pub fn put(&self, mut value: Value) -> Arc<Object> {
        let kind =
            coracle_manifests::kinds::by_name(value["apiVersion"].as_str().unwrap(), value["kind"].as_str().unwrap())
                .unwrap();
        let key = Key::new(
            kind.resource,
            value["metadata"]["namespace"].as_str().unwrap_or_default(),
            value["metadata"]["name"].as_str().unwrap(),
        );
        if value["metadata"]["uid"].is_null() {
            value["metadata"]["uid"] = json!(uuid::Uuid::new_v4().to_string());
            value["metadata"]["creationTimestamp"] = json!("2026-11-26T12:00:00Z");
        }
        self.apply(Op::Create { key: key.clone(), value: Arc::new(value), claims: Vec::new() });
        self.view().get(&key).unwrap().clone()
    }

    /// Edits an object as the system itself would.
    pub fn edit(&self, resource: &str, namespace: &str, name: &str, edit: impl FnOnce(&mut Value)) {
        let view = self.view();
        let object = view.find(resource, namespace, name).expect("the object to edit is there");
        let mut value = (**object.tree()).clone();
        edit(&mut value);
        let key = object.key.clone();
        self.apply(Op::Update { key, expect: Expect::default(), value: Arc::new(value), claims: None });
    }

    /// Removes an object for good.
    pub fn remove(&self, resource: &str, namespace: &str, name: &str) {
        self.apply(Op::Delete { key: Key::new(resource, namespace, name), expect: Expect::default() });
    }

    /// One object's tree.
    pub fn tree(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.view().find(resource, namespace, name).map(|object| object.tree().clone())
    }

    fn apply(&self, op: Op) {
        self.commit(&op.into()).expect("the store takes it");
    }

    fn commit(&self, transaction: &Transaction) -> Proposed {
        let mut store = self.store.lock().unwrap();
        let applied = store.apply(std::slice::from_ref(transaction)).remove(0);
        let generation = store.view().generation();
        drop(store);
        self.changes.send_replace(generation);
        applied.map_err(|(index, rejection)| ProposeError::Rejected { index, rejection })
    }
}

impl Memory for Fake {
    fn view(&self) -> View {
        self.store.lock().unwrap().view()
    }

    fn read_barrier(&self) -> BoxFuture<'_, Result<View, ProposeError>> {
        Box::pin(async { Ok(self.view()) })
    }

    fn propose(&self, transaction: Transaction) -> BoxFuture<'_, Proposed> {
        let faster: Vec<Transaction> = self.faster.lock().unwrap().drain(..).collect();
        for transaction in faster {
            self.commit(&transaction).expect("the faster one succeeds");
        }
        let mut refusals = self.refusals.lock().unwrap();
        let refused = (!refusals.is_empty()).then(|| refusals.remove(0));
        drop(refusals);
        let outcome = match refused {
            Some(error) => Err(error),
            None => self.commit(&transaction),
        };
        Box::pin(async { outcome })
    }

    fn propose_many(&self, transactions: Vec<Transaction>) -> BoxFuture<'_, Vec<Proposed>> {
        let outcomes = transactions.iter().map(|transaction| self.commit(transaction)).collect();
        Box::pin(async { outcomes })
    }

    fn changes(&self) -> watch::Receiver<Generation> {
        self.changes.subscribe()
    }

    fn events_after(&self, revision: Revision, resource: Option<&str>) -> Option<Vec<Event>> {
        self.store.lock().unwrap().events_after(revision, resource).ok()
    }
}

impl Cluster for Fake {
    fn logs(&self, query: LogQuery) -> BoxFuture<'_, Result<LogChunks, String>> {
        let (sink, chunks) = mpsc::channel(8);
        if query.container == "broken" {
            return Box::pin(async { Err("node n1 is not connected".to_owned()) });
        }
        for line in ["first\n", "second\n"] {
            sink.try_send(Ok(Bytes::from_static(line.as_bytes()))).unwrap();
        }
        if query.follow {
            self.followed.lock().unwrap().push(sink);
        }
        self.log_queries.lock().unwrap().push(query);
        Box::pin(async { Ok(chunks) })
    }

    fn holder<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Option<Who>> {
        let group = match token {
            "good" => "system:masters",
            "user" => "team",
            _ => return Box::pin(async { None }),
        };
        Box::pin(async { Some(Who { user: "token".into(), groups: vec![group.into()] }) })
    }
}
