//! One pod on every node that is eligible (upstream: `pkg/controller/daemon`).
//!
//! A daemon pod is made for its node: it requires the node's name, and the scheduler binds it there when it has room. So it is
//! counted and explained like any other pod.
//!
//! Cost: one walk over the nodes, and over the pods and revisions nobody controls; per DaemonSet a walk over its own pods and a look
//! at each node.

mod rolling;
mod site;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use coracle_base::Millis;
use coracle_base::level::DAEMONS;
use coracle_manifests::selector::Labels;
use coracle_manifests::view::{int, is_deleting, text};
use coracle_scheduler::{Affinity, Effect, Taint, Toleration, tolerated};
use coracle_store::{Key, Object, Op, Transaction, View};
use serde_json::{Value, json};

use crate::Ids;
use crate::history::{self, History, REVISION_LABEL, Style};
use crate::objects::{DAEMONSETS, Note, adopt, create, disown, event, remove, status};
use crate::pods::{
    Orphans, base_name, finish, is_available, is_ready, is_rested, new_name, of_template, orphans, silent_nodes, take,
};
use crate::replicaset::controlled;
use crate::schedule::{affinity, strings, taint, toleration};
use site::Site;

/// At most so many pods of one DaemonSet are made or ended in one plan (upstream: `BurstReplicas`); the next goes on.
const BURST: usize = 250;
/// So many operations are one transaction.
const BATCH: usize = 100;
/// What a daemon pod puts up with beyond what its template says (upstream: `AddOrUpdateDaemonPodTolerations`): nodes that are cordoned,
/// under pressure or not heard of.
const TOLERATED: &[(&str, &str)] = &[
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// And a pod of the node's own network.
const NO_NETWORK: &str = "node.kubernetes.io/network-unavailable";

/// What should change now.
#[must_use]
pub fn plan(view: &View, now: Millis, ids: &mut dyn Ids) -> Vec<Transaction> {
    if view.level() < DAEMONS || view.list(DAEMONSETS, None).next().is_none() {
        return Vec::new();
    }
    let silent = silent_nodes(view);
    let nodes: Vec<Node<'_>> = view.list("nodes", None).map(Node::of).collect();
    let (mut orphans, mut loose) = (orphans(view), history::loose(view));
    let mut transactions = Vec::new();
    for set in view.list(DAEMONSETS, None) {
        let Ok(selector) = Labels::of_pods(set.tree()) else { continue };
        let (pods, mut ops) = members(view, set, &selector, &mut orphans);
        let mut work = Work {
            view,
            set,
            now,
            silent: &silent,
            min_ready_s: set.tree()["spec"]["minReadySeconds"].as_u64().unwrap_or(0),
            ops: Vec::new(),
        };
        if is_deleting(set.tree()) {
            let sites = work.sites(&nodes, pods, "");
            ops.extend(work.counted(&sites, None));
        } else {
            let mut history = History::of(view, set, Style::Hash, &mut loose, now, ids);
            let marks: HashSet<&str> = pods.iter().map(|pod| mark_of(pod)).collect();
            let limit = int(&set.tree()["spec"]["revisionHistoryLimit"], 10);
            history.trim(usize::try_from(limit).unwrap_or(0), &marks);
            let sites = work.sites(&nodes, pods, &history.mark);
            work.one(&sites, &history.mark, ids);
            ops.extend(std::mem::take(&mut history.ops));
            ops.append(&mut work.ops);
            ops.extend(work.counted(&sites, Some(history.collisions)));
        }
        transactions.extend(ops.chunks(BATCH).map(|ops| Transaction { ops: ops.to_vec() }));
    }
    transactions
}

/// Which revision a pod is of.
fn mark_of(pod: &Object) -> &str {
    text(&pod.tree()["metadata"]["labels"][REVISION_LABEL])
}

/// The pods of a set, with those it takes over, and what lets the others go.
fn members<'a>(
    view: &'a View,
    set: &'a Arc<Object>,
    selector: &Labels,
    orphans: &mut Orphans<'a>,
) -> (Vec<&'a Arc<Object>>, Vec<Op>) {
    let matches = |pod: &Object| selector.matches(&pod.tree()["metadata"]["labels"]);
    let going = is_deleting(set.tree());
    let (mut members, strangers): (Vec<_>, Vec<_>) = controlled(view, set, "pods").partition(|pod| matches(pod));
    let mut ops = Vec::new();
    if !going {
        ops.extend(strangers.into_iter().map(|pod| disown(pod, &[&set.uid])));
        for pod in take(orphans, &set.key.namespace, matches) {
            ops.push(adopt(pod, set));
            members.push(pod);
        }
    }
    (members, ops)
}

/// A node as it is judged.
struct Node<'a> {
    name: &'a Arc<str>,
    labels: BTreeMap<String, String>,
    taints: Vec<Taint>,
}

impl<'a> Node<'a> {
    fn of(node: &'a Arc<Object>) -> Self {
        let tree = node.tree();
        let taints = coracle_manifests::view::list(&tree["spec"]["taints"]);
        Self {
            name: &node.key.name,
            labels: strings(&tree["metadata"]["labels"]),
            taints: taints.iter().filter_map(taint).collect(),
        }
    }
}

/// What a set's template asks of a node.
struct Eligible {
    node: String,
    selector: BTreeMap<String, String>,
    affinity: Option<Affinity>,
    tolerations: Vec<Toleration>,
}

impl Eligible {
    fn of(template: &Value) -> Self {
        let spec = &template["spec"];
        Self {
            node: text(&spec["nodeName"]).to_owned(),
            selector: strings(&spec["nodeSelector"]),
            affinity: affinity(spec),
            tolerations: tolerations(spec).iter().map(toleration).collect(),
        }
    }

    /// Whether a pod should be made on a node, and whether one that is there stays (upstream: `NodeShouldRunDaemonPod`).
    fn judge(&self, node: &Node<'_>) -> (bool, bool) {
        let named = self.node.is_empty() || self.node == **node.name;
        let labelled = self.selector.iter().all(|(key, value)| node.labels.get(key) == Some(value));
        let selected = self.affinity.as_ref().is_none_or(|affinity| affinity.selects(node.name, &node.labels));
        if !(named && labelled && selected) {
            return (false, false);
        }
        let free_of = |effects: &[Effect]| {
            node.taints.iter().all(|taint| !effects.contains(&taint.effect) || tolerated(&self.tolerations, taint))
        };
        (free_of(&[Effect::NoSchedule, Effect::NoExecute]), free_of(&[Effect::NoExecute]))
    }
}

/// The tolerations of a daemon pod of this spec: its own and upstream's.
fn tolerations(spec: &Value) -> Vec<Value> {
    let mut all = coracle_manifests::view::list(&spec["tolerations"]).to_vec();
    let network = (spec["hostNetwork"] == true).then_some((NO_NETWORK, "NoSchedule"));
    for (key, effect) in TOLERATED.iter().copied().chain(network) {
        let added = json!({"key": key, "operator": "Exists", "effect": effect});
        // One of the same key and effect gives way, as upstream has it.
        all.retain(|held| held["key"] != key || held["effect"] != effect);
        all.push(added);
    }
    all
}

/// One DaemonSet at work.
struct Work<'a> {
    view: &'a View,
    set: &'a Arc<Object>,
    now: Millis,
    silent: &'a HashSet<Arc<str>>,
    min_ready_s: u64,
    ops: Vec<Op>,
}

impl<'a> Work<'a> {
    /// Every node that has a pod of the set or should have one, by name.
    fn sites(&self, nodes: &[Node<'_>], pods: Vec<&'a Arc<Object>>, mark: &str) -> Vec<Site<'a>> {
        let eligible = Eligible::of(&self.set.tree()["spec"]["template"]);
        let mut by_node: HashMap<String, Vec<&'a Arc<Object>>> = HashMap::new();
        for pod in pods {
            by_node.entry(node_of(pod.tree())).or_default().push(pod);
        }
        let mut sites = Vec::new();
        for node in nodes {
            let (runs, stays) = eligible.judge(node);
            let pods = by_node.remove(&**node.name).unwrap_or_default();
            if runs || !pods.is_empty() {
                sites.push(Site::new(node.name, (runs, stays), pods, mark));
            }
        }
        // Pods of nodes that are gone, but for those without any: they were taken over, and wait for the scheduler.
        let gone = by_node.into_iter().filter(|(name, _)| !name.is_empty());
        sites.extend(gone.map(|(name, pods)| Site::new(&name.into(), (false, false), pods, mark)));
        sites.sort_by(|left, right| left.node.cmp(&right.node));
        sites
    }

    fn is_available(&self, pod: &Object) -> bool {
        is_available(pod.tree(), self.min_ready_s, self.now, self.silent)
    }

    /// All of it: first the right number on each node, then the right revision.
    fn one(&mut self, sites: &[Site<'a>], mark: &str, ids: &mut dyn Ids) {
        let bounds = rolling::Bounds::of(self.set.tree(), sites);
        let (mut making, mut ending) = (Vec::new(), Vec::new());
        for site in sites {
            if site.lacks() {
                making.push(&site.node);
            }
            for pod in site.surplus(bounds.surge > 0, &|pod| self.is_available(pod), self.silent) {
                ending.push(pod);
            }
            self.clear(site, ids);
        }
        if self.set.tree()["spec"]["updateStrategy"]["type"] != "OnDelete" {
            let (made, ended) = rolling::plan(sites, &bounds, &|pod| self.is_available(pod));
            making.extend(made);
            ending.extend(ended);
        }
        ending.sort_by(|left, right| left.key.cmp(&right.key));
        ending.dedup_by(|left, right| left.key == right.key);
        for pod in ending.into_iter().take(BURST) {
            self.end(pod, ids);
        }
        let mut taken = HashSet::new();
        for node in making.into_iter().take(BURST) {
            self.make(node, mark, &mut taken, ids);
        }
    }

    /// Pods that have run to their end make room for others.
    fn clear(&mut self, site: &Site<'a>, ids: &mut dyn Ids) {
        for pod in &site.ended {
            if site.stays && !is_rested(pod.tree(), self.now) {
                continue;
            }
            let Some(removal) = remove(pod, self.now) else { continue };
            let failed = pod.tree()["status"]["phase"] == "Failed";
            let (kind, reason, how) = if failed {
                ("Warning", "FailedDaemonPod", "failed")
            } else {
                ("Normal", "SucceededDaemonPod", "succeeded")
            };
            let verb = if failed { "kill" } else { "delete" };
            self.ops.push(removal);
            let pod = format!("{}/{}", pod.key.namespace, pod.key.name);
            self.tell(
                kind,
                reason,
                format!("Found {how} daemon pod {pod} on node {}, will try to {verb} it", site.node),
                ids,
            );
        }
    }

    fn make(&mut self, node: &str, mark: &str, taken: &mut HashSet<String>, ids: &mut dyn Ids) {
        let mut pod = of_template(self.set, &self.set.tree()["spec"]["template"]);
        pod["metadata"]["generateName"] = json!(base_name(self.set));
        pod["metadata"]["labels"][REVISION_LABEL] = json!(mark);
        pod["spec"]["tolerations"] = Value::Array(tolerations(&pod["spec"]));
        // In place of what the template requires: the node meets that.
        pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"] = json!({
            "nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]}],
        });
        let name = new_name(self.view, self.set, taken, ids);
        let told = format!("Created pod: {name}");
        let key = Key::new("pods", self.set.key.namespace.clone(), name);
        self.ops.push(create(key, finish(pod), self.now, ids));
        self.tell("Normal", "SuccessfulCreate", told, ids);
    }

    fn end(&mut self, pod: &Object, ids: &mut dyn Ids) {
        if let Some(removal) = remove(pod, self.now) {
            self.ops.push(removal);
            self.tell("Normal", "SuccessfulDelete", format!("Deleted pod: {}", pod.key.name), ids);
        }
    }

    fn tell(&mut self, kind: &str, reason: &str, message: String, ids: &mut dyn Ids) {
        let note = Note { kind, reason, message, component: "daemonset-controller" };
        self.ops.push(event(self.set, note, self.now, ids));
    }

    /// The next status (upstream: `updateDaemonSetStatus`): of each node the oldest pod counts.
    fn counted(&self, sites: &[Site<'a>], collisions: Option<i64>) -> Option<Op> {
        let tree = self.set.tree();
        let (mut desired, mut scheduled, mut misplaced, mut ready, mut available, mut updated) = (0, 0, 0, 0, 0, 0);
        for site in sites {
            let Some(oldest) = site.oldest() else {
                desired += i64::from(site.runs);
                continue;
            };
            if !site.runs {
                misplaced += 1;
                continue;
            }
            desired += 1;
            scheduled += 1;
            let lives = !is_deleting(oldest.tree());
            ready += i64::from(lives && is_ready(oldest.tree(), self.silent));
            available += i64::from(lives && self.is_available(oldest));
            updated += i64::from(site.is_current(oldest));
        }
        let mut new = json!({
            "observedGeneration": int(&tree["metadata"]["generation"], 0),
            "currentNumberScheduled": scheduled,
            "desiredNumberScheduled": desired,
            "numberMisscheduled": misplaced,
            "numberReady": ready,
        });
        let collisions = collisions.unwrap_or_else(|| int(&tree["status"]["collisionCount"], 0));
        for (field, value) in [
            ("numberAvailable", available),
            ("numberUnavailable", desired - available),
            ("updatedNumberScheduled", updated),
            ("collisionCount", collisions),
        ] {
            if value != 0 {
                new[field] = json!(value);
            }
        }
        if let Some(conditions) = tree["status"].get("conditions") {
            new["conditions"] = conditions.clone();
        }
        status(self.set, new)
    }
}

/// The node a pod is on or made for; empty when it has none.
fn node_of(pod: &Value) -> String {
    match text(&pod["spec"]["nodeName"]) {
        "" => {
            affinity(&pod["spec"]).and_then(|affinity| affinity.only_node().map(ToOwned::to_owned)).unwrap_or_default()
        }
        node => node.to_owned(),
    }
}
