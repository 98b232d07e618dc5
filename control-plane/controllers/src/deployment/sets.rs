//! One Deployment with its ReplicaSets and their pods, as the planner works on them: changes are noted here and become
//! operations at the end.

use std::collections::HashSet;
use std::sync::Arc;

use coracle_base::Millis;
use coracle_manifests::view::{int, is_deleting, list};
use coracle_store::{Key, Object, Op, View};
use serde_json::{Value, json};

use super::revision::annotations;
use crate::objects::{self, Note, create, event, update};
use crate::pods::{Counts, count, is_active, share};
use crate::{Ids, replicaset::controlled};

/// One ReplicaSet. `tree` is changed in place; `stored` is what it was, or nothing for one that is to be made.
pub(super) struct Set<'a> {
    pub stored: Option<&'a Arc<Object>>,
    pub name: Arc<str>,
    pub tree: Value,
    pub pods: Vec<&'a Arc<Object>>,
    pub counts: Counts,
    pub gone: bool,
}

impl Set<'_> {
    /// How many replicas it should have.
    pub fn size(&self) -> i64 {
        int(&self.tree["spec"]["replicas"], 1)
    }

    /// How many of its replicas are available and stay so: those above its size are about to go.
    pub fn available(&self) -> i64 {
        self.counts.available.min(self.size())
    }

    pub fn created(&self) -> (Millis, Arc<str>) {
        // One that is only being made is the youngest.
        (objects::millis(&self.tree["metadata"]["creationTimestamp"]).unwrap_or(Millis::MAX), self.name.clone())
    }

    pub fn annotation(&self, name: &str) -> Option<&str> {
        self.tree["metadata"]["annotations"][name].as_str()
    }
}

/// One Deployment at work.
pub(super) struct Sets<'a> {
    pub view: &'a View,
    pub deployment: &'a Arc<Object>,
    pub now: Millis,
    /// The Deployment's tree, with changed annotations.
    pub tree: Value,
    /// Its next conditions.
    pub conditions: Vec<Value>,
    pub collisions: i64,
    pub all: Vec<Set<'a>>,
    /// Index of the ReplicaSet with the Deployment's template.
    pub current: Option<usize>,
    /// How many replicas it should have.
    pub replicas: i64,
    pub paused: bool,
    pub deleting: bool,
    pub recreate: bool,
    /// The next status, but for its conditions.
    pub status: Option<Value>,
    notes: Vec<(&'static str, String)>,
}

impl<'a> Sets<'a> {
    pub fn new(
        view: &'a View,
        deployment: &'a Arc<Object>,
        owned: &[&'a Arc<Object>],
        now: Millis,
        silent: &HashSet<Arc<str>>,
    ) -> Self {
        let tree = deployment.tree();
        let mut all: Vec<Set<'a>> = owned
            .iter()
            .map(|set| {
                let pods: Vec<_> = controlled(view, set, "pods").collect();
                let active = pods.iter().copied().filter(|pod| is_active(pod.tree()));
                let counts = count(active, set.tree(), now, silent);
                Set {
                    stored: Some(*set),
                    name: set.key.name.clone(),
                    tree: (**set.tree()).clone(),
                    pods,
                    counts,
                    gone: is_deleting(set.tree()),
                }
            })
            .collect();
        all.sort_by_key(Set::created);
        let current = all
            .iter()
            .position(|set| !set.gone && same_template(&set.tree["spec"]["template"], &tree["spec"]["template"]));
        Self {
            view,
            deployment,
            now,
            tree: (**tree).clone(),
            conditions: list(&tree["status"]["conditions"]).to_vec(),
            collisions: int(&tree["status"]["collisionCount"], 0),
            all,
            current,
            replicas: int(&tree["spec"]["replicas"], 1).max(0),
            paused: tree["spec"]["paused"] == true,
            deleting: is_deleting(tree),
            recreate: tree["spec"]["strategy"]["type"] == "Recreate",
            status: None,
            notes: Vec::new(),
        }
    }

    /// Indexes of the ReplicaSets of other templates, oldest first.
    pub fn old(&self) -> Vec<usize> {
        (0..self.all.len()).filter(|index| Some(*index) != self.current && !self.all[*index].gone).collect()
    }

    pub fn current(&self) -> Option<&Set<'a>> {
        self.current.map(|index| &self.all[index])
    }

    /// Replicas asked for together.
    pub fn total(&self) -> i64 {
        self.all.iter().map(Set::size).sum()
    }

    /// Available replicas together.
    pub fn available(&self) -> i64 {
        self.all.iter().map(Set::available).sum()
    }

    /// How many replicas there may be above the wanted number.
    pub fn surge(&self) -> i64 {
        if self.recreate { 0 } else { self.fences().0 }
    }

    /// How many replicas may be missing.
    pub fn unavailable(&self) -> i64 {
        if self.recreate || self.replicas == 0 { 0 } else { self.fences().1.min(self.replicas) }
    }

    /// `maxSurge` rounded up, `maxUnavailable` rounded down, and not both nothing (upstream: `ResolveFenceposts`).
    fn fences(&self) -> (i64, i64) {
        let rolling = &self.tree["spec"]["strategy"]["rollingUpdate"];
        let surge = share(&rolling["maxSurge"], self.replicas, true);
        let unavailable = share(&rolling["maxUnavailable"], self.replicas, false);
        if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
    }

    /// Asks a ReplicaSet for `size` replicas.
    pub fn scale(&mut self, index: usize, size: i64) {
        let maximum = self.replicas + self.surge();
        let set = &mut self.all[index];
        let old = set.size();
        annotations::remember_size(&mut set.tree, self.replicas, maximum);
        if old != size {
            set.tree["spec"]["replicas"] = json!(size);
            let word = if size > old { "up" } else { "down" };
            let note = format!("Scaled {word} replica set {} from {old} to {size}", set.name);
            self.notes.push(("ScalingReplicaSet", note));
        }
    }

    /// Notes what is told about the Deployment.
    pub fn note(&mut self, reason: &'static str, message: String) {
        self.notes.push((reason, message));
    }

    /// What differs from the store, as operations.
    pub fn into_ops(self, ids: &mut dyn Ids) -> Vec<Op> {
        let mut ops = Vec::new();
        for set in &self.all {
            match set.stored {
                None => {
                    let key = Key::new(objects::REPLICASETS, self.deployment.key.namespace.clone(), set.name.clone());
                    ops.push(create(key, set.tree.clone(), self.now, ids));
                }
                Some(stored) if set.gone && !is_deleting(stored.tree()) => {
                    ops.extend(objects::remove(stored, self.now));
                }
                Some(stored) if set.tree != **stored.tree() => ops.push(update(stored, set.tree.clone())),
                Some(_) => {}
            }
        }
        if self.tree != **self.deployment.tree() {
            ops.push(update(self.deployment, self.tree));
        }
        if let Some(mut status) = self.status {
            if !self.conditions.is_empty() {
                status["conditions"] = Value::Array(self.conditions);
            }
            ops.extend(objects::status(self.deployment, status));
        }
        for (reason, message) in self.notes {
            let note = Note { kind: "Normal", reason, message, component: "deployment-controller" };
            ops.push(event(self.deployment, note, self.now, ids));
        }
        ops
    }
}

/// Whether two templates are the same but for the label that tells ReplicaSets apart.
fn same_template(held: &Value, wanted: &Value) -> bool {
    if held["spec"] != wanted["spec"] {
        return false;
    }
    let bare = |template: &Value| {
        let mut bare = template.clone();
        if let Some(labels) = bare["metadata"]["labels"].as_object_mut() {
            labels.remove(annotations::HASH_LABEL);
        }
        bare
    };
    bare(held) == bare(wanted)
}
