//! The store: applies transactions in order, gives the same bytes on every server, keeps history for watchers.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use coracle_base::level::DAEMONS;
use coracle_base::{Generation, Revision};
use serde_json::{Value, json};

use crate::history::{Gone, History};
use crate::{Event, EventKind, Expect, Key, Object, Op, Outcome, Rejection, Transaction, Usage, View, hash};

/// Raising the epoch also skips this many revisions, so that a revision handed out before a restore is older than
/// anything the restored store can still serve.
pub const EPOCH_STEP: Revision = 1_000_000;

/// When trees weigh too much, this part of them goes at once.
const WARM_SHARE: usize = 8;

/// Upper bounds of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// What history may weigh, in bytes of memory.
    pub history_bytes: usize,
    /// The largest object, in bytes of JSON (upstream: 1.5 MiB).
    pub object_bytes: usize,
    /// What the parsed trees of the objects written last may weigh, in bytes of memory; older objects keep their text only.
    pub tree_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { history_bytes: 16 << 20, object_bytes: 3 << 19, tree_bytes: 32 << 20 }
    }
}

/// The answer to one transaction: what each operation did, or which one was refused and why.
pub type Applied = Result<Vec<Outcome>, (usize, Rejection)>;

pub(crate) type Names = Arc<[Arc<str>]>;

/// What a rejected transaction must leave untouched, and what a snapshot holds. Cloning is O(1).
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    pub view: View,
    /// Who holds a unique name.
    pub holders: imbl::OrdMap<Arc<str>, Key>,
    /// Which unique names an object holds.
    pub names: imbl::OrdMap<Key, Names>,
    pub sum: u64,
}

/// Objects that were written with their trees, oldest first: key, revision, weight of the tree.
#[derive(Debug, Default)]
struct Warm {
    written: VecDeque<(Key, Revision, usize)>,
    bytes: usize,
}

/// The cluster's memory.
#[derive(Debug, Default)]
pub struct Store {
    state: State,
    history: History,
    limits: Limits,
    warm: Warm,
    /// Resources and namespaces repeat in every key: one copy of each.
    words: Words,
}

/// Words that many keys share.
#[derive(Debug, Default)]
pub(crate) struct Words(BTreeSet<Arc<str>>);

impl Words {
    /// The key with shared resource and namespace; the cap keeps words of strangers from piling up for ever.
    pub fn share(&mut self, key: &Key) -> Key {
        let mut share = |word: &Arc<str>| {
            if let Some(known) = self.0.get(word) {
                return known.clone();
            }
            if self.0.len() < 4096 {
                self.0.insert(word.clone());
            }
            word.clone()
        };
        Key { resource: share(&key.resource), namespace: share(&key.namespace), name: key.name.clone() }
    }
}

impl Store {
    /// An empty store.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    pub(crate) fn from_state(state: State, words: Words, limits: Limits) -> Self {
        let history = History::starting_at(state.view.revision());
        Self { state, history, limits, words, ..Self::default() }
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    /// Applies transactions in order; each happens wholly or not at all.
    pub fn apply(&mut self, transactions: &[Transaction]) -> Vec<Applied> {
        transactions.iter().map(|transaction| self.apply_one(transaction)).collect()
    }

    fn apply_one(&mut self, transaction: &Transaction) -> Applied {
        let epoch = self.state.view.epoch();
        // A single command is refused before it changes anything. A copy would make every change after it copy its part of the state.
        let before = (transaction.ops.len() > 1).then(|| self.state.clone());
        let mut events = Vec::with_capacity(transaction.ops.len());
        let mut outcomes = Vec::with_capacity(transaction.ops.len());
        for (index, op) in transaction.ops.iter().enumerate() {
            match self.apply_op(op, &mut events) {
                Ok(outcome) => outcomes.push(outcome),
                Err(rejection) => {
                    if let Some(before) = before {
                        self.state = before;
                    }
                    return Err((index, rejection));
                }
            }
        }
        // A new epoch starts with an empty history: nobody may resume across it.
        if self.state.view.epoch() != epoch {
            self.history = History::starting_at(self.state.view.revision());
            return Ok(outcomes);
        }
        for event in events {
            if event.kind != EventKind::Deleted {
                self.warm(&event.object);
            }
            self.history.push(event, self.limits.history_bytes);
        }
        Ok(outcomes)
    }

    // A tree is about eleven times its text, and most objects are written and then not read for long: those written longest ago
    // let their trees go. Whoever reads one of them again parses it again.
    fn warm(&mut self, object: &Object) {
        let weight = object.tree_weight();
        self.warm.bytes += weight;
        self.warm.written.push_back((object.key.clone(), object.revision, weight));
        if self.warm.bytes <= self.limits.tree_bytes {
            return;
        }
        // Many at once and by key: those that stand side by side in the view are copied once.
        let mut cold = Vec::new();
        while self.warm.bytes > self.limits.tree_bytes - self.limits.tree_bytes / WARM_SHARE {
            let Some((key, revision, weight)) = self.warm.written.pop_front() else { break };
            self.warm.bytes -= weight;
            cold.push((key, revision));
        }
        cold.sort_unstable();
        for (key, revision) in cold {
            self.state.view.cool(&key, revision);
        }
    }

    /// A consistent look at everything: O(1).
    #[must_use]
    pub fn view(&self) -> View {
        self.state.view.clone()
    }

    /// The changes after a revision, of one resource or of all, oldest first.
    ///
    /// # Errors
    /// History no longer reaches back so far.
    pub fn events_after(&self, revision: Revision, resource: Option<&str>) -> Result<Vec<Event>, Gone> {
        self.history.after(revision, resource)
    }

    /// The oldest revision a watcher can resume from.
    #[must_use]
    pub fn oldest_resumable(&self) -> Revision {
        self.history.oldest()
    }

    /// What history weighs, in bytes.
    #[must_use]
    pub fn history_bytes(&self) -> usize {
        self.history.bytes()
    }

    /// Who holds a unique name.
    #[must_use]
    pub fn holder(&self, claim: &str) -> Option<&Key> {
        self.state.holders.get(claim)
    }

    /// Equal on two servers exactly when their states are (but for a chance of 2^-64): O(1).
    #[must_use]
    pub fn state_hash(&self) -> u64 {
        let Generation { epoch, revision } = self.state.view.generation();
        let hash = hash::mix(hash::mix(hash::mix(epoch) ^ revision) ^ self.state.sum);
        // Servers of level 1 know of none, and must come to the same.
        match self.state.view.level() {
            1 => hash,
            level => hash::mix(hash ^ u64::from(level)),
        }
    }

    fn apply_op(&mut self, op: &Op, events: &mut Vec<Event>) -> Result<Outcome, Rejection> {
        match op {
            Op::Create { key, value, claims } => self.create(key, value, claims, events),
            Op::Update { key, expect, value, claims } => self.update(key, expect, value, claims.as_deref(), events),
            Op::Status { key, uid, status } => Ok(self.status(key, uid, status, events)),
            Op::Bind { key, uid, node, at } => self.bind(key, uid, node, at, events),
            Op::Delete { key, expect } => self.delete(key, expect, events),
            Op::RaiseEpoch => {
                let Generation { epoch, revision } = self.state.view.generation();
                self.state.view.set_generation(Generation {
                    epoch: epoch.saturating_add(1),
                    revision: revision.saturating_add(EPOCH_STEP),
                });
                Ok(Outcome::Done)
            }
            Op::RaiseLevel { level } => {
                self.state.view.raise_level(*level);
                Ok(Outcome::Done)
            }
        }
    }

    fn create(
        &mut self,
        key: &Key,
        value: &Value,
        claims: &[String],
        events: &mut Vec<Event>,
    ) -> Result<Outcome, Rejection> {
        if self.state.view.get(key).is_some() {
            return Err(Rejection::Exists(key.clone()));
        }
        let uid: Arc<str> = check_shape(key, value)?.into();
        self.check_claims(key, claims)?;
        let mut tree = value.clone();
        tree["metadata"]["generation"] = json!(1);
        let key = self.words.share(key);
        let object = self.build(key, uid, tree)?;
        let claims = Some(to_names(claims));
        Ok(Outcome::Stored(self.put(object, None, claims, events)))
    }

    fn update(
        &mut self,
        key: &Key,
        expect: &Expect,
        value: &Value,
        claims: Option<&[String]>,
        events: &mut Vec<Event>,
    ) -> Result<Outcome, Rejection> {
        let old = self.expected(key, expect)?;
        let uid = check_shape(key, value)?;
        if *uid != *old.uid {
            let (expected, actual) = (uid.into(), old.uid.clone());
            return Err(Rejection::OtherUid { key: key.clone(), expected, actual });
        }
        if let Some(claims) = claims {
            self.check_claims(key, claims)?;
        }
        let claims = claims.map(to_names);
        let same_claims = claims.as_ref().is_none_or(|claims| **claims == *self.names_of(key));
        let mut tree = value.clone();
        let old_tree = old.tree();
        for field in ["resourceVersion", "generation"] {
            tree["metadata"][field] = old_tree["metadata"][field].clone();
        }
        if same_claims && tree == **old_tree {
            return Ok(Outcome::Unchanged(old));
        }
        if is_new_generation(old_tree, &tree) {
            let generation = old_tree["metadata"]["generation"].as_u64().unwrap_or(0).saturating_add(1);
            tree["metadata"]["generation"] = json!(generation);
        }
        let object = self.build(old.key.clone(), old.uid.clone(), tree)?;
        Ok(Outcome::Stored(self.put(object, Some(old), claims, events)))
    }

    fn status(&mut self, key: &Key, uid: &str, status: &Value, events: &mut Vec<Event>) -> Outcome {
        let Some(old) = self.state.view.get(key).filter(|old| &*old.uid == uid).cloned() else {
            return Outcome::Skipped;
        };
        if old.tree()["status"] == *status {
            return Outcome::Unchanged(old);
        }
        let mut tree = (**old.tree()).clone();
        tree["status"] = status.clone();
        // A report must not fail a batch of reports: one that would make the object too large is left out.
        match self.build(old.key.clone(), old.uid.clone(), tree) {
            Ok(object) => Outcome::Stored(self.put(object, Some(old), None, events)),
            Err(_) => Outcome::Skipped,
        }
    }

    fn bind(
        &mut self,
        key: &Key,
        uid: &Arc<str>,
        node: &Arc<str>,
        at: &str,
        events: &mut Vec<Event>,
    ) -> Result<Outcome, Rejection> {
        let old = self.expected(key, &Expect { uid: Some(uid.clone()), revision: None })?;
        if let Some(reason) = self.unbindable(&old, node) {
            return Err(Rejection::Unbindable { pod: key.clone(), node: node.clone(), reason });
        }
        let mut tree = (**old.tree()).clone();
        if !tree["spec"].is_object() {
            return Err(Rejection::Malformed { key: key.clone(), reason: "it has no spec".to_owned() });
        }
        tree["spec"]["nodeName"] = json!(&**node);
        mark_scheduled(&mut tree, at);
        let object = self.build(old.key.clone(), old.uid.clone(), tree)?;
        Ok(Outcome::Stored(self.put(object, Some(old), None, events)))
    }

    fn unbindable(&self, pod: &Object, node: &str) -> Option<String> {
        let tree = pod.tree();
        if let Some(bound) = tree["spec"]["nodeName"].as_str().filter(|bound| !bound.is_empty()) {
            return Some(format!("it is bound to {bound}"));
        }
        if !tree["metadata"]["deletionTimestamp"].is_null() {
            return Some("it is being deleted".to_owned());
        }
        let Some(target) = self.state.view.find("nodes", "", node) else {
            return Some("there is no such node".to_owned());
        };
        let target = target.tree();
        let comes_all_the_same = || self.state.view.level() >= DAEMONS && tolerates_cordons(tree);
        if target["spec"]["unschedulable"] == true && !comes_all_the_same() {
            return Some("the node is cordoned".to_owned());
        }
        if !target["metadata"]["deletionTimestamp"].is_null() {
            return Some("the node is being deleted".to_owned());
        }
        self.state.view.usage_on(node).lacks(Usage::of_pod(tree), target)
    }

    fn delete(&mut self, key: &Key, expect: &Expect, events: &mut Vec<Event>) -> Result<Outcome, Rejection> {
        let old = self.expected(key, expect)?;
        let revision = self.next_revision();
        self.state.sum = self.state.sum.wrapping_sub(hash::of_object(&old, &self.names_of(key)));
        self.release(key);
        self.state.view.remove(key);
        let mut tree = (**old.tree()).clone();
        tree["metadata"]["resourceVersion"] = json!(revision.to_string());
        let last = Arc::new(Object::from_tree(old.key.clone(), old.uid.clone(), revision, tree));
        events.push(Event { revision, kind: EventKind::Deleted, object: last, prior: Some(old.clone()) });
        self.advance(revision);
        Ok(Outcome::Deleted(old))
    }

    fn expected(&self, key: &Key, expect: &Expect) -> Result<Arc<Object>, Rejection> {
        let Some(old) = self.state.view.get(key) else { return Err(Rejection::Missing(key.clone())) };
        if let Some(uid) = expect.uid.as_ref().filter(|uid| **uid != old.uid) {
            return Err(Rejection::OtherUid { key: key.clone(), expected: uid.clone(), actual: old.uid.clone() });
        }
        if let Some(expected) = expect.revision.filter(|expected| *expected != old.revision) {
            return Err(Rejection::Conflict { key: key.clone(), expected, actual: old.revision });
        }
        Ok(old.clone())
    }

    fn check_claims(&self, key: &Key, claims: &[String]) -> Result<(), Rejection> {
        for claim in claims {
            if let Some(holder) = self.state.holders.get(claim.as_str()).filter(|holder| *holder != key) {
                return Err(Rejection::Claimed { claim: claim.clone(), holder: holder.clone() });
            }
        }
        Ok(())
    }

    // The object as the next revision; nothing is stored yet.
    fn build(&self, key: Key, uid: Arc<str>, mut tree: Value) -> Result<Object, Rejection> {
        let revision = self.next_revision();
        tree["metadata"]["resourceVersion"] = json!(revision.to_string());
        let object = Object::from_tree(key, uid, revision, tree);
        if object.json.len() > self.limits.object_bytes {
            let reason = format!("it has {} bytes, at most {} are stored", object.json.len(), self.limits.object_bytes);
            return Err(Rejection::Malformed { key: object.key, reason });
        }
        Ok(object)
    }

    fn put(
        &mut self,
        object: Object,
        prior: Option<Arc<Object>>,
        claims: Option<Names>,
        events: &mut Vec<Event>,
    ) -> Arc<Object> {
        let object = Arc::new(object);
        let held = self.names_of(&object.key);
        if let Some(prior) = &prior {
            self.state.sum = self.state.sum.wrapping_sub(hash::of_object(prior, &held));
        }
        let held = match claims {
            Some(claims) => {
                self.release(&object.key);
                self.hold(&object.key, claims.clone());
                claims
            }
            None => held,
        };
        self.state.sum = self.state.sum.wrapping_add(hash::of_object(&object, &held));
        self.state.view.insert(&object);
        let kind = if prior.is_some() { EventKind::Modified } else { EventKind::Added };
        events.push(Event { revision: object.revision, kind, object: object.clone(), prior });
        self.advance(object.revision);
        object
    }

    fn names_of(&self, key: &Key) -> Names {
        self.state.names.get(key).cloned().unwrap_or_default()
    }

    fn hold(&mut self, key: &Key, claims: Names) {
        if claims.is_empty() {
            return;
        }
        for claim in claims.iter() {
            self.state.holders.insert(claim.clone(), key.clone());
        }
        self.state.names.insert(key.clone(), claims);
    }

    fn release(&mut self, key: &Key) {
        for claim in self.state.names.remove(key).iter().flat_map(|names| names.iter()) {
            self.state.holders.remove(claim);
        }
    }

    fn next_revision(&self) -> Revision {
        self.state.view.revision().saturating_add(1)
    }

    fn advance(&mut self, revision: Revision) {
        let epoch = self.state.view.epoch();
        self.state.view.set_generation(Generation { epoch, revision });
    }
}

pub(crate) fn to_names(claims: &[String]) -> Names {
    let sorted: BTreeSet<&str> = claims.iter().map(String::as_str).collect();
    sorted.into_iter().map(Arc::from).collect()
}

// The value is an object of its key; gives its uid.
fn check_shape<'a>(key: &Key, value: &'a Value) -> Result<&'a str, Rejection> {
    let malformed = |reason: String| Rejection::Malformed { key: key.clone(), reason };
    if !value["metadata"].is_object() {
        return Err(malformed("it has no metadata".to_owned()));
    }
    let metadata = &value["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    let namespace = metadata["namespace"].as_str().unwrap_or_default();
    if name != &*key.name || namespace != &*key.namespace {
        return Err(malformed(format!("its metadata names {namespace:?} {name:?}")));
    }
    match metadata["uid"].as_str() {
        Some(uid) if !uid.is_empty() => Ok(uid),
        _ => Err(malformed("it has no metadata.uid".to_owned())),
    }
}

/// Whether a pod comes also to cordoned nodes: upstream treats `unschedulable` as a taint.
fn tolerates_cordons(pod: &Value) -> bool {
    const TAINT: &str = "node.kubernetes.io/unschedulable";
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    pod["spec"]["tolerations"].as_array().into_iter().flatten().any(|toleration| {
        let (key, effect) = (text(&toleration["key"]), text(&toleration["effect"]));
        let is_it = if toleration["operator"] == "Exists" {
            key.is_empty() || key == TAINT
        } else {
            key == TAINT && text(&toleration["value"]).is_empty()
        };
        is_it && (effect.is_empty() || effect == "NoSchedule")
    })
}

fn is_new_generation(old: &Value, new: &Value) -> bool {
    let rest = |tree: &Value| {
        let mut rest = tree.as_object().cloned().unwrap_or_default();
        rest.remove("metadata");
        rest.remove("status");
        rest
    };
    let deleting = |tree: &Value| !tree["metadata"]["deletionTimestamp"].is_null();
    rest(old) != rest(new) || (!deleting(old) && deleting(new))
}

fn mark_scheduled(pod: &mut Value, at: &str) {
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": at});
    if !pod["status"].is_object() {
        pod["status"] = json!({});
    }
    let conditions = &mut pod["status"]["conditions"];
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    if let Some(list) = conditions.as_array_mut() {
        list.retain(|held| held["type"] != "PodScheduled");
        list.push(condition);
    }
}
