//! As many pods as a ReplicaSet or ReplicationController asks for: adopt, create, delete, count (upstream:
//! `pkg/controller/replicaset` and `replication`, which is the same code there too).
//!
//! Cost: one walk over the pods nobody controls, and per ReplicaSet a walk over its own.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use coracle_base::Millis;
use coracle_manifests::selector::Labels;
use coracle_manifests::view::{controller_uid, int, is_deleting, is_finished, list, text};
use coracle_store::{Key, Object, Op, Transaction, View};
use serde_json::{Value, json};

use crate::nodehealth::is_fenced;
use crate::objects::{CONTROLLERS, Note, REPLICASETS, adopt, create, disown, event, remove, status};
use crate::pods::{
    base_name, count, finish, is_active, is_ready, new_name, of_template, orphans, ready_since, silent_nodes, take,
};
use crate::{Ids, objects};

/// At most so many pods of one ReplicaSet are made or ended in one plan (upstream: `BurstReplicas`); the next plan goes on.
const BURST: usize = 500;
/// So many pods are made in one transaction: few commands, each well below the size of a log entry.
const BATCH: usize = 50;

/// What should change now for ReplicaSets.
#[must_use]
pub fn plan(view: &View, now: Millis, ids: &mut dyn Ids) -> Vec<Transaction> {
    plan_kind(&Sort { resource: REPLICASETS, component: "replicaset-controller" }, view, now, ids)
}

/// What should change now for ReplicationControllers.
#[must_use]
pub fn plan_controllers(view: &View, now: Millis, ids: &mut dyn Ids) -> Vec<Transaction> {
    plan_kind(&Sort { resource: CONTROLLERS, component: "replication-controller" }, view, now, ids)
}

/// Which of the kinds, and who speaks in its events.
struct Sort {
    resource: &'static str,
    component: &'static str,
}

fn plan_kind(sort: &Sort, view: &View, now: Millis, ids: &mut dyn Ids) -> Vec<Transaction> {
    if view.list(sort.resource, None).next().is_none() {
        return Vec::new();
    }
    let silent = silent_nodes(view);
    let mut orphans = orphans(view);
    let mut transactions = Vec::new();
    // Made last: where one ReplicaSet shrinks and another grows, the old replicas go before the new ones come.
    let mut made = Vec::new();
    for set in view.list(sort.resource, None) {
        let Some(selector) = Labels::of_pods(set.tree()).ok() else { continue };
        let mut replicas = Vec::new();
        for pod in controlled(view, set, "pods") {
            if selector.matches(&pod.tree()["metadata"]["labels"]) {
                replicas.push(pod);
            } else if !is_deleting(set.tree()) {
                transactions.push(disown(pod, &[&set.uid]).into());
            }
        }
        if !is_deleting(set.tree()) {
            let matches = |pod: &Object| selector.matches(&pod.tree()["metadata"]["labels"]);
            for pod in take(&mut orphans, &set.key.namespace, matches) {
                transactions.push(adopt(pod, set).into());
                replicas.push(pod);
            }
        }
        replicas.retain(|pod| is_active(pod.tree()));
        transactions.extend(set_status(set, &replicas, now, &silent).map(Transaction::from));
        if !is_deleting(set.tree()) {
            let scope = Scope { sort, view, now, silent: &silent };
            // A fenced pod that is going may still run: another comes only when it is gone.
            let going = if is_fenced(&set.tree()["spec"]["template"]) {
                controlled(view, set, "pods").filter(|pod| is_deleting(pod.tree()) && !is_finished(pod.tree())).count()
            } else {
                0
            };
            transactions.extend(shrink(&scope, set, &mut replicas, ids));
            made.extend(grow(&scope, set, replicas.len() + going, ids));
        }
    }
    transactions.extend(made);
    transactions
}

struct Scope<'a> {
    sort: &'a Sort,
    view: &'a View,
    now: Millis,
    silent: &'a HashSet<Arc<str>>,
}

/// What an owner controls of a resource.
pub(crate) fn controlled<'a>(
    view: &'a View,
    owner: &'a Object,
    resource: &'a str,
) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
    view.owned_by(&owner.uid)
        .filter(move |object| &*object.key.resource == resource)
        .filter(|object| controller_uid(object.tree()) == Some(&*owner.uid))
}

fn set_status(set: &Object, replicas: &[&Arc<Object>], now: Millis, silent: &HashSet<Arc<str>>) -> Option<Op> {
    let tree = set.tree();
    let counts = count(replicas.iter().copied(), tree, now, silent);
    let mut new = json!({
        "replicas": counts.replicas,
        "observedGeneration": int(&tree["metadata"]["generation"], 0),
    });
    for (field, value) in [
        ("fullyLabeledReplicas", counts.fully_labelled),
        ("readyReplicas", counts.ready),
        ("availableReplicas", counts.available),
    ] {
        if value > 0 {
            new[field] = json!(value);
        }
    }
    if let Some(conditions) = tree["status"].get("conditions") {
        new["conditions"] = conditions.clone();
    }
    status(set, new)
}

fn wanted(set: &Object) -> usize {
    usize::try_from(int(&set.tree()["spec"]["replicas"], 1)).unwrap_or(0)
}

fn shrink(scope: &Scope<'_>, set: &Arc<Object>, replicas: &mut [&Arc<Object>], ids: &mut dyn Ids) -> Vec<Transaction> {
    let Some(surplus) = replicas.len().checked_sub(wanted(set)).filter(|surplus| *surplus > 0) else {
        return Vec::new();
    };
    let crowding = crowding(scope.view, set);
    replicas.sort_by_cached_key(|pod| Preference::of(pod, &crowding, scope.silent));
    let going = replicas[..surplus.min(BURST)].iter();
    let mut transactions = Vec::new();
    for pod in going {
        if let Some(removal) = remove(pod, scope.now) {
            let told = tell(scope, set, "SuccessfulDelete", format!("Deleted pod: {}", pod.key.name), ids);
            transactions.push(Transaction { ops: vec![removal, told] });
        }
    }
    transactions
}

/// An event about a set, in the words of upstream.
fn tell(scope: &Scope<'_>, set: &Object, reason: &str, message: String, ids: &mut dyn Ids) -> Op {
    event(set, Note { kind: "Normal", reason, message, component: scope.sort.component }, scope.now, ids)
}

fn grow(scope: &Scope<'_>, set: &Arc<Object>, replicas: usize, ids: &mut dyn Ids) -> Vec<Transaction> {
    let missing = wanted(set).saturating_sub(replicas).min(BURST);
    let mut taken = HashSet::new();
    let mut ops = Vec::with_capacity(2 * missing);
    for _ in 0..missing {
        let name = new_name(scope.view, set, &mut taken, ids);
        let told = format!("Created pod: {name}");
        ops.push(new_pod(scope, set, name, ids));
        ops.push(tell(scope, set, "SuccessfulCreate", told, ids));
    }
    ops.chunks(2 * BATCH).map(|ops| Transaction { ops: ops.to_vec() }).collect()
}

fn new_pod(scope: &Scope<'_>, set: &Arc<Object>, name: String, ids: &mut dyn Ids) -> Op {
    let mut value = of_template(set, &set.tree()["spec"]["template"]);
    value["metadata"]["generateName"] = json!(base_name(set));
    create(Key::new("pods", set.key.namespace.clone(), name), finish(value), scope.now, ids)
}

/// How many active pods of the same application each node has: those of every ReplicaSet with the same owner.
fn crowding(view: &View, set: &Object) -> HashMap<String, usize> {
    let mut nodes = HashMap::new();
    let mut see = |set: &Object| {
        for pod in controlled(view, set, "pods").filter(|pod| is_active(pod.tree())) {
            *nodes.entry(text(&pod.tree()["spec"]["nodeName"]).to_owned()).or_default() += 1;
        }
    };
    let owner = controller_uid(set.tree()).map(str::to_owned);
    match owner {
        Some(owner) => view.owned_by(&owner).filter(|other| &*other.key.resource == REPLICASETS).for_each(|o| see(o)),
        None => see(set),
    }
    nodes
}

/// Which pod goes first when there are too many: the smallest. The order of the fields is upstream's
/// (`ActivePodsWithRanks`): without a node, not running, not ready, cheap to lose, on a crowded node, ready for a shorter
/// time, restarted more often, younger.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Preference {
    on_node: bool,
    phase: u8,
    ready: bool,
    deletion_cost: i64,
    crowding: Reverse<usize>,
    ready_since: Reverse<Millis>,
    restarts: Reverse<u64>,
    created: Reverse<Millis>,
    name: Arc<str>,
}

impl Preference {
    fn of(pod: &Object, crowding: &HashMap<String, usize>, silent: &HashSet<Arc<str>>) -> Self {
        let tree = pod.tree();
        let node = text(&tree["spec"]["nodeName"]);
        let restarts = list(&tree["status"]["containerStatuses"]).iter();
        Self {
            on_node: !node.is_empty(),
            phase: match text(&tree["status"]["phase"]) {
                "Running" => 2,
                "Unknown" => 1,
                _ => 0,
            },
            ready: is_ready(tree, silent),
            deletion_cost: deletion_cost(tree),
            crowding: Reverse(if node.is_empty() { 0 } else { crowding.get(node).copied().unwrap_or(0) }),
            ready_since: Reverse(ready_since(tree).unwrap_or(Millis::MAX)),
            restarts: Reverse(restarts.filter_map(|status| status["restartCount"].as_u64()).max().unwrap_or(0)),
            created: Reverse(objects::millis(&tree["metadata"]["creationTimestamp"]).unwrap_or(Millis::MAX)),
            name: pod.key.name.clone(),
        }
    }
}

fn deletion_cost(pod: &Value) -> i64 {
    let asked = &pod["metadata"]["annotations"]["controller.kubernetes.io/pod-deletion-cost"];
    text(asked).parse().unwrap_or(0)
}
