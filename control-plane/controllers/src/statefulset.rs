//! Pods that are told apart: each ordinal has one name, and none is made before its predecessor is well nor replaced before it
//! is known to have ended (upstream: `pkg/controller/statefulset`).
//!
//! A name is what makes a pod unique: a pod whose node is lost keeps its name until its node confirms the end, its node's object is
//! removed, or, where its owner asked for fencing, its lease has run out (`nodehealth`). So this planner never has to know.
//!
//! Cost: one walk over the pods and revisions nobody controls, and per StatefulSet a walk over its own.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use coracle_base::Millis;
use coracle_manifests::selector::Labels;
use coracle_manifests::view::{int, is_deleting, is_finished, list, text};
use coracle_store::{Key, Object, Op, Transaction, View};
use serde_json::{Value, json};

use crate::Ids;
use crate::history::{self, History, REVISION_LABEL, Style, template_of};
use crate::objects::{
    Condition, Note, STATEFULSETS, adopt, create, disown, event, remove, set_condition, status, update,
};
use crate::pods::{
    Orphans, finish, is_available, is_ready, is_rested, of_template, orphans, share, silent_nodes, take,
};
use crate::replicaset::controlled;

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
/// At most so many pods of one StatefulSet are made in one plan; the next goes on.
const BURST: usize = 500;
/// So many operations are one transaction.
const BATCH: usize = 100;

/// What should change now.
#[must_use]
pub fn plan(view: &View, now: Millis, ids: &mut dyn Ids) -> Vec<Transaction> {
    if view.list(STATEFULSETS, None).next().is_none() {
        return Vec::new();
    }
    let silent = silent_nodes(view);
    let (mut orphans, mut loose) = (orphans(view), history::loose(view));
    let mut transactions = Vec::new();
    for set in view.list(STATEFULSETS, None) {
        let Ok(selector) = Labels::of_pods(set.tree()) else { continue };
        let (members, mut ops) = members(view, set, &selector, &mut orphans);
        let mut work = Work { view, set, now, silent: &silent, spec: Spec::of(set), members, ops: Vec::new() };
        if is_deleting(set.tree()) {
            ops.extend(work.counts(text(&set.tree()["status"]["updateRevision"])).and_then(|new| status(set, new)));
        } else {
            let mut history = History::of(view, set, Style::Name, &mut loose, now, ids);
            work.one(&history, ids);
            let live: HashSet<&str> = work.members.values().map(|pod| revision_of(pod)).collect();
            let current = text(&set.tree()["status"]["currentRevision"]);
            history.trim(work.spec.history, &live.into_iter().chain([current]).collect());
            // Revisions first: pods name them.
            ops.extend(history.ops);
            ops.extend(work.ops);
        }
        transactions.extend(ops.chunks(BATCH).map(|ops| Transaction { ops: ops.to_vec() }));
    }
    transactions
}

/// The pods of a set by their ordinals, with those it takes over, and what lets the others go.
fn members<'a>(
    view: &'a View,
    set: &'a Arc<Object>,
    selector: &Labels,
    orphans: &mut Orphans<'a>,
) -> (BTreeMap<i64, &'a Arc<Object>>, Vec<Op>) {
    let (mut members, mut ops) = (BTreeMap::new(), Vec::new());
    let fits = |pod: &Object| {
        ordinal(&set.key.name, &pod.key.name).filter(|_| selector.matches(&pod.tree()["metadata"]["labels"]))
    };
    for pod in controlled(view, set, "pods") {
        match fits(pod) {
            Some(ordinal) => drop(members.insert(ordinal, pod)),
            None if !is_deleting(set.tree()) => ops.push(disown(pod, &[&set.uid])),
            None => {}
        }
    }
    if !is_deleting(set.tree()) {
        for pod in take(orphans, &set.key.namespace, |pod| fits(pod).is_some()) {
            ops.push(adopt(pod, set));
            members.extend(fits(pod).map(|ordinal| (ordinal, pod)));
        }
    }
    (members, ops)
}

/// The number at the end of a pod's name, when the name is one that the set gives.
fn ordinal(set: &str, pod: &str) -> Option<i64> {
    let digits = pod.strip_prefix(set)?.strip_prefix('-')?;
    let ordinal: i64 = digits.parse().ok().filter(|ordinal| *ordinal >= 0)?;
    (ordinal.to_string() == digits).then_some(ordinal)
}

fn revision_of(pod: &Object) -> &str {
    text(&pod.tree()["metadata"]["labels"][REVISION_LABEL])
}

/// What a set asks for.
struct Spec {
    /// The first ordinal, and the one behind the last.
    start: i64,
    end: i64,
    /// One after the other.
    ordered: bool,
    /// Whether pods of an older template are replaced by the planner.
    rolls: bool,
    /// Pods below it keep the revision they have.
    partition: i64,
    /// How many may be missing while it rolls.
    unavailable: i64,
    min_ready_s: u64,
    /// How many revisions that no pod is of are kept.
    history: usize,
}

impl Spec {
    fn of(set: &Object) -> Self {
        let spec = &set.tree()["spec"];
        let start = int(&spec["ordinals"]["start"], 0).max(0);
        let replicas = int(&spec["replicas"], 1).max(0);
        let strategy = &spec["updateStrategy"];
        let rolls = strategy["type"] != "OnDelete";
        let rolling = &strategy["rollingUpdate"];
        let partition = if rolls { int(&rolling["partition"], 0).max(0) } else { 0 };
        let unavailable = &rolling["maxUnavailable"];
        Self {
            start,
            end: start + replicas,
            ordered: spec["podManagementPolicy"] != "Parallel",
            rolls,
            partition: start + partition,
            unavailable: if unavailable.is_null() { 1 } else { share(unavailable, replicas, false).max(1) },
            min_ready_s: spec["minReadySeconds"].as_u64().unwrap_or(0),
            history: usize::try_from(int(&spec["revisionHistoryLimit"], 10)).unwrap_or(0),
        }
    }

    fn replicas(&self) -> i64 {
        self.end - self.start
    }
}

/// One StatefulSet at work.
struct Work<'a> {
    view: &'a View,
    set: &'a Arc<Object>,
    now: Millis,
    silent: &'a HashSet<Arc<str>>,
    spec: Spec,
    members: BTreeMap<i64, &'a Arc<Object>>,
    ops: Vec<Op>,
}

impl<'a> Work<'a> {
    /// All of it (upstream: `updateStatefulSet`).
    fn one(&mut self, history: &History<'a>, ids: &mut dyn Ids) {
        let current = self.current(history);
        let blocked = self.blocked();
        if self.fill(history, &current, blocked.is_some(), ids) && self.shrink(ids) && self.spec.rolls {
            self.replace(&history.newest, ids);
        }
        let Some(mut new) = self.counts(&history.newest) else { return };
        new["collisionCount"] = json!(history.collisions);
        self.conditions(&mut new, blocked, ids);
        self.ops.extend(status(self.set, new));
    }

    /// The revision that pods below the partition are of.
    fn current(&self, history: &History<'_>) -> String {
        let held = text(&self.set.tree()["status"]["currentRevision"]);
        if history.find(held).is_some() { held.to_owned() } else { history.newest.clone() }
    }

    fn is_well(&self, pod: &Object) -> bool {
        let tree = pod.tree();
        !is_deleting(tree) && !is_finished(tree) && is_available(tree, self.spec.min_ready_s, self.now, self.silent)
    }

    /// A pod of somebody else that has the name of one to be made.
    fn blocked(&self) -> Option<String> {
        let free = (self.spec.start..self.spec.end).filter(|ordinal| !self.members.contains_key(ordinal));
        // An ordered set makes one at a time.
        let looked_at = if self.spec.ordered { 1 } else { BURST };
        free.take(looked_at)
            .map(|ordinal| self.name(ordinal))
            .find(|name| self.view.find("pods", &self.set.key.namespace, name).is_some())
    }

    fn name(&self, ordinal: i64) -> String {
        format!("{}-{ordinal}", self.set.key.name)
    }

    /// Makes the pods that are missing, from the lowest ordinal up. Gives whether to go on.
    fn fill(&mut self, history: &History<'a>, current: &str, blocked: bool, ids: &mut dyn Ids) -> bool {
        let mut made = 0;
        for ordinal in self.spec.start..self.spec.end {
            let Some(pod) = self.members.get(&ordinal).copied() else {
                let name = self.name(ordinal);
                let is_free = !blocked || self.view.find("pods", &self.set.key.namespace, &name).is_none();
                if is_free && made < BURST {
                    made += 1;
                    self.make(ordinal, history, current, ids);
                }
                if self.spec.ordered {
                    return false;
                }
                continue;
            };
            let tree = pod.tree();
            if is_finished(tree) {
                if !is_deleting(tree) && is_rested(tree, self.now) {
                    self.recreate(pod, ids);
                }
            } else if !is_deleting(tree) {
                self.identify(ordinal, pod);
            }
            if self.spec.ordered && !self.is_well(pod) {
                return false;
            }
        }
        true
    }

    fn make(&mut self, ordinal: i64, history: &History<'a>, current: &str, ids: &mut dyn Ids) {
        let old = (self.spec.rolls && ordinal < self.spec.partition && current != history.newest)
            .then(|| history.find(current))
            .flatten();
        let (template, revision) = match old {
            Some(old) => (template_of(old), current),
            None => (self.set.tree()["spec"]["template"].clone(), &*history.newest),
        };
        let name = self.name(ordinal);
        let mut pod = of_template(self.set, &template);
        pod["metadata"]["labels"][REVISION_LABEL] = json!(revision);
        identity(&mut pod, ordinal, &name);
        pod["spec"]["hostname"] = json!(name);
        if let Some(service) = self.set.tree()["spec"]["serviceName"].as_str().filter(|name| !name.is_empty()) {
            pod["spec"]["subdomain"] = json!(service);
        }
        // Claims of `volumeClaimTemplates` are made here, before the pod that mounts them.
        let told = format!("create Pod {name} in StatefulSet {} successful", self.set.key.name);
        let key = Key::new("pods", self.set.key.namespace.clone(), name);
        self.ops.push(create(key, finish(pod), self.now, ids));
        self.tell("Normal", "SuccessfulCreate", told, ids);
    }

    /// The labels by which a pod is known, should somebody have changed them.
    fn identify(&mut self, ordinal: i64, pod: &Object) {
        let labels = &pod.tree()["metadata"]["labels"];
        if labels[POD_NAME] == *pod.key.name && labels[POD_INDEX] == *ordinal.to_string() {
            return;
        }
        // One that is being adopted is looked at in the next plan.
        let owned = coracle_manifests::view::controller_uid(pod.tree()) == Some(&*self.set.uid);
        if owned {
            let mut value = (**pod.tree()).clone();
            identity(&mut value, ordinal, &pod.key.name);
            self.ops.push(update(pod, value));
        }
    }

    /// A pod that has run to its end makes room for another of its name.
    fn recreate(&mut self, pod: &Object, ids: &mut dyn Ids) {
        let set = format!("StatefulSet {}/{}", self.set.key.namespace, self.set.key.name);
        let (kind, reason, how) = if pod.tree()["status"]["phase"] == "Failed" {
            ("Warning", "RecreatingFailedPod", "failed")
        } else {
            ("Normal", "RecreatingTerminatedPod", "terminated")
        };
        if let Some(removal) = remove(pod, self.now) {
            self.ops.push(removal);
            self.tell(kind, reason, format!("{set} is recreating {how} Pod {}", pod.key.name), ids);
        }
    }

    fn end(&mut self, pod: &Object, ids: &mut dyn Ids) {
        if let Some(removal) = remove(pod, self.now) {
            self.ops.push(removal);
            let told = format!("delete Pod {} in StatefulSet {} successful", pod.key.name, self.set.key.name);
            self.tell("Normal", "SuccessfulDelete", told, ids);
        }
    }

    /// Ends the pods beyond the wanted ones, from the highest ordinal down. Gives whether to go on.
    fn shrink(&mut self, ids: &mut dyn Ids) -> bool {
        let range = self.spec.start..self.spec.end;
        let condemned: Vec<&Arc<Object>> =
            self.members.iter().rev().filter(|(ordinal, _)| !range.contains(*ordinal)).map(|(_, pod)| *pod).collect();
        // The lowest that is not well may go though it is not: nobody waits for it.
        let first_unwell = condemned.iter().rev().find(|pod| !self.is_well(pod)).map(|pod| pod.uid.clone());
        for pod in &condemned {
            let waits = is_deleting(pod.tree()) || (!self.is_well(pod) && first_unwell.as_ref() != Some(&pod.uid));
            if self.spec.ordered && waits {
                return false;
            }
            self.end(pod, ids);
            if self.spec.ordered {
                return false;
            }
        }
        true
    }

    /// Ends pods of older revisions, from the highest ordinal down to the partition, as far as the bound of missing ones allows.
    fn replace(&mut self, newest: &str, ids: &mut dyn Ids) {
        let wanted = self.spec.start..self.spec.end;
        let well =
            wanted.clone().filter(|ordinal| self.members.get(ordinal).is_some_and(|pod| self.is_well(pod))).count();
        let mut missing = self.spec.replicas() - i64::try_from(well).unwrap_or(i64::MAX);
        let from = self.spec.partition.max(wanted.start).min(wanted.end);
        let old: Vec<&Arc<Object>> = self
            .members
            .range(from..wanted.end)
            .rev()
            .map(|(_, pod)| *pod)
            .filter(|pod| revision_of(pod) != newest && !is_deleting(pod.tree()) && !is_finished(pod.tree()))
            .collect();
        for pod in old {
            // One that is not well is missing already: a newer template may be what mends it.
            if self.is_well(pod) {
                if missing >= self.spec.unavailable {
                    continue;
                }
                missing += 1;
            }
            self.end(pod, ids);
        }
    }

    /// The next status but for its conditions and collisions; `None` where there is nothing to say.
    fn counts(&self, newest: &str) -> Option<Value> {
        let tree = self.set.tree();
        let held = text(&tree["status"]["currentRevision"]);
        let mut current = if held.is_empty() { newest } else { held };
        let of = |revision: &str| {
            let is = |pod: &&&Arc<Object>| revision_of(pod) == revision && !is_deleting(pod.tree());
            i64::try_from(self.members.values().filter(is).count()).unwrap_or(i64::MAX)
        };
        let active = || self.members.values().filter(|pod| !is_deleting(pod.tree()) && !is_finished(pod.tree()));
        let all = i64::try_from(self.members.len()).unwrap_or(i64::MAX);
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let ready = count(active().filter(|pod| is_ready(pod.tree(), self.silent)).count());
        let available = count(active().filter(|pod| self.is_well(pod)).count());
        let updated = of(newest);
        let wanted = self.spec.replicas();
        if self.spec.rolls && updated == wanted && ready == wanted && all == wanted {
            current = newest;
        }
        let mut new = json!({
            "observedGeneration": int(&tree["metadata"]["generation"], 0),
            "replicas": all,
            "availableReplicas": available,
            "collisionCount": int(&tree["status"]["collisionCount"], 0),
            "currentRevision": current,
            "updateRevision": newest,
        });
        for (field, value) in [("readyReplicas", ready), ("currentReplicas", of(current)), ("updatedReplicas", updated)]
        {
            if value > 0 {
                new[field] = json!(value);
            }
        }
        if let Some(conditions) = tree["status"].get("conditions") {
            new["conditions"] = conditions.clone();
        }
        (!newest.is_empty()).then_some(new)
    }

    /// Says why no pod is made, when its name is taken; upstream tries for ever and tells it in events alone.
    fn conditions(&mut self, new: &mut Value, blocked: Option<String>, ids: &mut dyn Ids) {
        let mut conditions = list(&new["conditions"]).to_vec();
        match blocked {
            Some(name) => {
                let message = format!("pods \"{name}\" already exists and belongs to somebody else");
                let failure =
                    Condition { kind: "ReplicaFailure", status: "True", reason: "FailedCreate", message: &message };
                let before = conditions.len();
                set_condition(&mut conditions, &failure, "lastTransitionTime", self.now);
                if conditions.len() > before {
                    let set = &self.set.key.name;
                    let told = format!("create Pod {name} in StatefulSet {set} failed error: {message}");
                    self.tell("Warning", "FailedCreate", told, ids);
                }
            }
            None => conditions.retain(|condition| condition["type"] != "ReplicaFailure"),
        }
        if !conditions.is_empty() {
            new["conditions"] = Value::Array(conditions);
        } else if let Some(map) = new.as_object_mut() {
            map.remove("conditions");
        }
    }

    fn tell(&mut self, kind: &str, reason: &str, message: String, ids: &mut dyn Ids) {
        let note = Note { kind, reason, message, component: "statefulset-controller" };
        self.ops.push(event(self.set, note, self.now, ids));
    }
}

/// The labels by which a pod is known.
fn identity(pod: &mut Value, ordinal: i64, name: &str) {
    pod["metadata"]["labels"][POD_NAME] = json!(name);
    pod["metadata"]["labels"][POD_INDEX] = json!(ordinal.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinals_of_names() {
        for (pod, expected) in [
            ("web-0", Some(0)),
            ("web-12", Some(12)),
            ("web-012", None),
            ("web-+1", None),
            ("web--1", None),
            ("web-", None),
            ("web", None),
            ("other-0", None),
            ("web-a-0", None),
            ("web-99999999999999999999", None),
        ] {
            assert_eq!(ordinal("web", pod), expected, "{pod}");
        }
    }
}
