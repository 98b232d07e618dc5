//! A cluster in memory: a real store, the planners, a clock that only the test moves, and agents that do what they are told.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_base::level::LEVEL;
use coracle_controllers::nodehealth::{self, Beat};
use coracle_controllers::{Ids, all};
use coracle_manifests::view::{is_deleting, is_finished, is_true, list, text};
use coracle_manifests::{default, kinds, time};
use coracle_store::{Expect, Key, Limits, Object, Op, Outcome, Store, Transaction, View};
use serde_json::{Value, json};

pub const START: u64 = 1_795_694_400_000;
pub const DEAD_AFTER_MS: u64 = 4_000;

/// Ids that repeat from run to run.
#[derive(Default)]
pub struct Counted(u64);

impl Ids for Counted {
    fn uid(&mut self) -> String {
        self.0 += 1;
        format!("{:08x}-0000-4000-8000-{:012x}", self.0, self.0)
    }

    fn suffix(&mut self) -> String {
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        self.0 += 1;
        let mut rest = self.0;
        let mut letters = [b'b'; 5];
        for letter in letters.iter_mut().rev() {
            *letter = LETTERS[(rest % 27) as usize];
            rest /= 27;
        }
        String::from_utf8_lossy(&letters).into_owned()
    }
}

pub struct World {
    pub store: Store,
    pub now: u64,
    pub ids: Counted,
    pub beats: BTreeMap<String, Beat>,
    addresses: u64,
}

impl World {
    /// The namespace `default` and nothing else.
    pub fn new() -> Self {
        let mut world = Self {
            store: Store::new(Limits::default()),
            now: START,
            ids: Counted::default(),
            beats: BTreeMap::new(),
            addresses: 0,
        };
        world.apply(Op::RaiseLevel { level: LEVEL }).expect("this release's level");
        world.create(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}, "status": {"phase": "Active"}}));
        world
    }

    /// With nodes of 4 cores and 8 Gi.
    pub fn with_nodes(names: &[&str]) -> Self {
        let mut world = Self::new();
        for name in names {
            world.node(name, "4", "8Gi");
        }
        world
    }

    pub fn node(&mut self, name: &str, cpu: &str, memory: &str) {
        self.create(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": {},
            "status": {
                "allocatable": {"cpu": cpu, "memory": memory, "pods": "110"},
                "conditions": [{"type": "Ready", "status": "True", "reason": "AgentReady"}],
            },
        }));
        self.beats.insert(name.to_owned(), Beat { age_ms: 0, granted_ms: 0 });
    }

    pub fn view(&self) -> View {
        self.store.view()
    }

    pub fn apply(&mut self, transaction: impl Into<Transaction>) -> Result<Vec<Outcome>, String> {
        let answer = self.store.apply(&[transaction.into()]).pop().expect("one answer");
        answer.map_err(|(index, rejection)| format!("operation {index}: {rejection}"))
    }

    /// Creates an object, with upstream's defaults.
    pub fn create(&mut self, mut value: Value) -> Arc<Object> {
        let kind = kinds::by_name(text(&value["apiVersion"]), text(&value["kind"])).expect("a known kind");
        if kind.namespaced && value["metadata"]["namespace"].is_null() {
            value["metadata"]["namespace"] = json!("default");
        }
        default::apply(kind, &mut value);
        value["metadata"]["uid"] = json!(self.ids.uid());
        value["metadata"]["creationTimestamp"] = json!(time::rfc3339(self.now));
        let name = text(&value["metadata"]["name"]).to_owned();
        let namespace = text(&value["metadata"]["namespace"]).to_owned();
        let key = Key::new(kind.resource, namespace, name);
        self.apply(Op::Create { key: key.clone(), value: Arc::new(value), claims: vec![] }).expect("created");
        self.view().get(&key).expect("it is there").clone()
    }

    pub fn get(&self, resource: &str, name: &str) -> Option<Arc<Object>> {
        let namespace = if ["nodes", "namespaces"].contains(&resource) { "" } else { "default" };
        self.view().find(resource, namespace, name).cloned()
    }

    pub fn tree(&self, resource: &str, name: &str) -> Value {
        self.get(resource, name).map_or(Value::Null, |object| (**object.tree()).clone())
    }

    pub fn list(&self, resource: &str) -> Vec<Arc<Object>> {
        self.view().list(resource, None).cloned().collect()
    }

    /// Changes an object as a user would.
    pub fn edit(&mut self, resource: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let object = self.get(resource, name).expect("it is there");
        let mut value = (**object.tree()).clone();
        change(&mut value);
        let op =
            Op::Update { key: object.key.clone(), expect: Expect::default(), value: Arc::new(value), claims: None };
        self.apply(op).expect("edited");
    }

    /// Removes an object as `DELETE` with background propagation would.
    pub fn delete(&mut self, resource: &str, name: &str) {
        let object = self.get(resource, name).expect("it is there");
        if resource == "namespaces" {
            self.edit(resource, name, |value| value["metadata"]["deletionTimestamp"] = json!(time::rfc3339(START)));
            return;
        }
        self.apply(Op::Delete { key: object.key.clone(), expect: Expect::default() }).expect("deleted");
    }

    /// One planner on the present view; its plan is applied. Gives the plan as lines, one per operation.
    pub fn run(&mut self, name: &str) -> Vec<String> {
        let view = self.view();
        let transactions = if name == "nodehealth" {
            nodehealth::plan(&view, self.now, &self.beats, DEAD_AFTER_MS)
        } else {
            let controller = all().iter().find(|controller| controller.name == name).expect("a known controller");
            (controller.plan)(&view, self.now, &mut self.ids)
        };
        let lines = transactions.iter().flat_map(|transaction| &transaction.ops).map(|op| told(&view, op)).collect();
        for transaction in transactions {
            // A plan from a view that changed meanwhile is made again; a test of one planner sees no such change.
            let _ = self.apply(transaction);
        }
        lines
    }

    /// Every planner once, in order; gives what was planned.
    pub fn round(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for controller in all() {
            lines.extend(self.run(controller.name));
        }
        lines.extend(self.run("nodehealth"));
        lines
    }

    /// Rounds until nothing is planned any more.
    pub fn settle(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for _ in 0..200 {
            let planned = self.round();
            if planned.is_empty() {
                return lines;
            }
            lines.extend(planned);
        }
        panic!("the planners do not come to rest; the last round:\n{}", self.round().join("\n"));
    }

    pub fn status(&mut self, object: &Object, status: Value) {
        let op = Op::Status { key: object.key.clone(), uid: object.uid.clone(), status: Arc::new(status) };
        self.apply(op).expect("a status");
    }

    /// A pod is running, ready or not.
    pub fn report(&mut self, pod: &Object, ready: bool) {
        let stored = self.view().get(&pod.key).cloned().expect("the pod is there");
        let mut status = stored.tree()["status"].clone();
        if text(&status["podIP"]).is_empty() {
            self.addresses += 1;
            status["podIP"] = json!(format!("10.42.{}.{}", self.addresses / 250, self.addresses % 250 + 2));
        }
        status["phase"] = json!("Running");
        let mut conditions = list(&status["conditions"]).to_vec();
        if is_true(stored.tree(), "Ready") != ready || conditions.iter().all(|condition| condition["type"] != "Ready") {
            conditions.retain(|condition| condition["type"] != "Ready");
            let word = if ready { "True" } else { "False" };
            conditions.push(json!({"type": "Ready", "status": word, "lastTransitionTime": time::rfc3339(self.now)}));
        }
        status["conditions"] = json!(conditions);
        self.status(&stored, status);
    }

    /// What agents do: end the pods that are to end, start the others, all ready.
    pub fn agents(&mut self) {
        for pod in self.list("pods") {
            if text(&pod.tree()["spec"]["nodeName"]).is_empty() {
                continue;
            }
            if is_deleting(pod.tree()) {
                self.apply(Op::Delete { key: pod.key.clone(), expect: Expect::default() }).expect("ended");
            } else if !is_true(pod.tree(), "Ready") && !is_finished(pod.tree()) {
                self.report(&pod, true);
            }
        }
    }

    /// Planners and agents by turns until nothing is planned any more.
    pub fn run_to_rest(&mut self) {
        for _ in 0..200 {
            let before = self.view().revision();
            self.round();
            self.agents();
            if self.view().revision() == before {
                return;
            }
        }
        panic!("no rest; the last round:\n{}", self.round().join("\n"));
    }
}

/// One operation in a line.
fn told(view: &View, op: &Op) -> String {
    let before = |key: &Key| view.get(key).map_or(Value::Null, |object| (**object.tree()).clone());
    match op {
        Op::Create { key, value, .. } if &*key.resource == "events" => {
            format!("event {}: {}", text(&value["reason"]), text(&value["message"]))
        }
        Op::Create { key, value, .. } => {
            let replicas = &value["spec"]["replicas"];
            if replicas.is_null() { format!("create {key}") } else { format!("create {key} replicas={replicas}") }
        }
        Op::Update { key, value, .. } => {
            let mut parts = Vec::new();
            differences(&before(key), value, String::new(), &mut parts);
            format!("update {key} {}", parts.join(" "))
        }
        Op::Status { key, status, .. } => {
            let mut parts = Vec::new();
            differences(&before(key)["status"], status, String::new(), &mut parts);
            format!("status {key} {}", parts.join(" "))
        }
        Op::Bind { key, node, .. } => format!("bind {key} to {node}"),
        Op::Delete { key, .. } => format!("delete {key}"),
        Op::RaiseEpoch => "raise epoch".to_owned(),
        Op::RaiseLevel { level } => format!("raise the level to {level}"),
    }
}

fn differences(old: &Value, new: &Value, path: String, parts: &mut Vec<String>) {
    match (old, new) {
        _ if old == new => {}
        (Value::Object(left), Value::Object(right)) => {
            let keys: std::collections::BTreeSet<&String> = left.keys().chain(right.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                differences(&old[key.as_str()], &new[key.as_str()], path, parts);
            }
        }
        (_, Value::Array(items)) if path == "conditions" => {
            for item in items.iter().filter(|item| !list(old).contains(item)) {
                parts.push(format!("{}={}/{}", text(&item["type"]), text(&item["status"]), text(&item["reason"])));
            }
        }
        _ => parts.push(format!("{path}={new}")),
    }
}

/// A Deployment of one container.
pub fn deployment(name: &str, replicas: i64) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "generation": 1},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": "example/web:1", "ports": [{"name": "http", "containerPort": 8080}]}]},
            },
        },
    })
}

/// A StatefulSet or DaemonSet of one container; `spec` is added to what every one has.
pub fn set(kind: &str, name: &str, spec: Value) -> Value {
    let mut value = deployment(name, 0);
    value["kind"] = json!(kind);
    let common = value["spec"].as_object_mut().expect("an object");
    common.remove("replicas");
    common.extend(spec.as_object().cloned().unwrap_or_default());
    value
}

/// A StatefulSet with a service.
pub fn stateful(name: &str, replicas: i64, spec: Value) -> Value {
    let mut value = set("StatefulSet", name, spec);
    value["spec"]["replicas"] = json!(replicas);
    value["spec"]["serviceName"] = json!("db");
    value
}

/// Another image: a new template.
pub fn image(tag: &str) -> impl FnOnce(&mut Value) {
    let tag = format!("example/web:{tag}");
    move |value| value["spec"]["template"]["spec"]["containers"][0]["image"] = json!(tag)
}
