//! What was rolled out before: ControllerRevisions of a StatefulSet or DaemonSet, one per template, in the form that
//! `kubectl rollout history` and `undo` read (upstream: `pkg/controller/history`).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use coracle_base::Millis;
use coracle_manifests::selector::Labels;
use coracle_manifests::view::{controller_uid, int, is_deleting, text};
use coracle_store::{Expect, Key, Object, Op, View};
use serde_json::{Value, json};

use crate::Ids;
use crate::objects::{adopt, controller_reference, create, update};
use crate::replicaset::controlled;

pub(crate) const REVISIONS: &str = "controllerrevisions.apps";
/// Which revision a pod was made of.
pub(crate) const REVISION_LABEL: &str = "controller-revision-hash";
/// The hash of a revision of a StatefulSet, whose pods carry the whole name of theirs.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";
/// Too long to be kept with every revision, and of no use there.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// One for each digit.
const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

/// A short stable hash of a template or revision: FNV-1a of its canonical JSON in the letters upstream uses, none of which make
/// words. Kept for ever: another hash would start a rollout of everything.
pub(crate) fn hash(value: &Value, collisions: i64) -> String {
    let mut text = value.to_string();
    if collisions > 0 {
        text.push_str(&collisions.to_string());
    }
    let mut hash: u32 = 0x811c_9dc5;
    for byte in text.bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    hash.to_string().bytes().map(|digit| char::from(LETTERS[usize::from(digit) % LETTERS.len()])).collect()
}

/// What `rollout undo` writes back: the template whole. The time is what typed clients of Go before v1.34 write of a template;
/// they compare the text to see whether there is anything to undo.
fn data_of(template: &Value) -> Value {
    let mut template = template.clone();
    template["$patch"] = json!("replace");
    if !template["metadata"].is_object() {
        template["metadata"] = json!({});
    }
    template["metadata"]["creationTimestamp"] = Value::Null;
    json!({"spec": {"template": template}})
}

/// The template that a revision holds.
pub(crate) fn template_of(revision: &Object) -> Value {
    let mut template = revision.tree()["data"]["spec"]["template"].clone();
    if let Some(map) = template.as_object_mut() {
        map.remove("$patch");
    }
    if let Some(map) = template["metadata"].as_object_mut() {
        map.retain(|key, value| key != "creationTimestamp" || !value.is_null());
    }
    template
}

/// How the kinds differ in what their revisions and pods are labelled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// Pods carry the name of their revision.
    Name,
    /// Pods and revisions carry the hash alone.
    Hash,
}

/// Revisions that nobody controls, by namespace.
pub(crate) type Loose<'a> = HashMap<Arc<str>, Vec<&'a Arc<Object>>>;

/// Looks them up once for all sets.
pub(crate) fn loose(view: &View) -> Loose<'_> {
    let mut loose = Loose::new();
    let free = |revision: &&Arc<Object>| controller_uid(revision.tree()).is_none() && !is_deleting(revision.tree());
    for revision in view.list(REVISIONS, None).filter(free) {
        loose.entry(revision.key.namespace.clone()).or_default().push(revision);
    }
    loose
}

/// The history of one set, and the revision of its template now.
pub(crate) struct History<'a> {
    /// Oldest first.
    pub held: Vec<&'a Arc<Object>>,
    /// The name of the revision of the set's template.
    pub newest: String,
    /// What pods of the newest revision carry.
    pub mark: String,
    /// How often another revision had the name that the hash gives.
    pub collisions: i64,
    /// What makes the history so.
    pub ops: Vec<Op>,
}

impl<'a> History<'a> {
    /// Finds or makes the revision of the set's template: an older one of the same template becomes the newest again.
    pub fn of(
        view: &'a View,
        set: &'a Arc<Object>,
        style: Style,
        loose: &mut Loose<'a>,
        now: Millis,
        ids: &mut dyn Ids,
    ) -> Self {
        let tree = set.tree();
        let mut ops = Vec::new();
        let mut held: Vec<&Arc<Object>> =
            controlled(view, set, REVISIONS).filter(|own| !is_deleting(own.tree())).collect();
        let wanted = data_of(&tree["spec"]["template"]);
        let mut same_among_adopted = false;
        for revision in adopted(set, loose) {
            ops.push(adopt(revision, set));
            same_among_adopted |= revision.tree()["data"] == wanted;
            held.push(revision);
        }
        held.sort_by_key(|revision| (number(revision), revision.key.name.clone()));
        let mut collisions = int(&tree["status"]["collisionCount"], 0);
        let next = held.last().map_or(1, |last| number(last) + 1);
        if let Some(found) = held.iter().rev().find(|revision| revision.tree()["data"] == wanted) {
            let (newest, mark) = (found.key.name.to_string(), mark(found, style));
            // One that is being adopted is numbered in the next plan.
            if number(found) + 1 < next && !same_among_adopted {
                let mut value = (**found.tree()).clone();
                value["revision"] = json!(next);
                ops.push(update(found, value));
            }
            return Self { held, newest, mark, collisions, ops };
        }
        let (name, hash) = loop {
            let hash = hash(&wanted, collisions);
            let name = format!("{}-{hash}", set.key.name);
            if view.find(REVISIONS, &set.key.namespace, &name).is_none() {
                break (name, hash);
            }
            collisions += 1;
        };
        let mark = if style == Style::Name { name.clone() } else { hash.clone() };
        let key = Key::new(REVISIONS, set.key.namespace.clone(), name.as_str());
        ops.push(create(key, revision(set, style, wanted, &hash, next), now, ids));
        Self { held, newest: name, mark, collisions, ops }
    }

    /// Lets go of the oldest revisions beyond `limit` that no pod is of any more. `live` are the names or hashes in use.
    pub fn trim(&mut self, limit: usize, live: &HashSet<&str>) {
        let used = |revision: &Object| {
            let hash = text(&revision.tree()["metadata"]["labels"][REVISION_LABEL]);
            *revision.key.name == *self.newest
                || live.contains(&*revision.key.name)
                || (!hash.is_empty() && live.contains(hash))
        };
        let old: Vec<&Arc<Object>> = self.held.iter().copied().filter(|revision| !used(revision)).collect();
        for revision in &old[..old.len().saturating_sub(limit)] {
            let expect = Expect { uid: Some(revision.uid.clone()), revision: Some(revision.revision) };
            self.ops.push(Op::Delete { key: revision.key.clone(), expect });
        }
    }

    /// A revision by its name.
    pub fn find(&self, name: &str) -> Option<&'a Arc<Object>> {
        self.held.iter().copied().find(|revision| *revision.key.name == *name)
    }
}

fn number(revision: &Object) -> i64 {
    int(&revision.tree()["revision"], 0)
}

fn mark(revision: &Object, style: Style) -> String {
    match style {
        Style::Name => revision.key.name.to_string(),
        Style::Hash => text(&revision.tree()["metadata"]["labels"][REVISION_LABEL]).to_owned(),
    }
}

/// Revisions that a set of the same selector has left.
fn adopted<'a>(set: &Object, loose: &mut Loose<'a>) -> Vec<&'a Arc<Object>> {
    let Some(free) = loose.get_mut(&set.key.namespace).filter(|_| !is_deleting(set.tree())) else { return Vec::new() };
    let Ok(selector) = Labels::of_pods(set.tree()) else { return Vec::new() };
    let (taken, left) = free.drain(..).partition(|revision| selector.matches(&revision.tree()["metadata"]["labels"]));
    *free = left;
    taken
}

fn revision(set: &Object, style: Style, data: Value, hash: &str, number: i64) -> Value {
    let tree = set.tree();
    let mut labels = tree["spec"]["template"]["metadata"]["labels"].clone();
    labels[if style == Style::Name { HASH_LABEL } else { REVISION_LABEL }] = json!(hash);
    let mut metadata = json!({"labels": labels, "ownerReferences": [controller_reference(set)]});
    if let Some(mut annotations) = tree["metadata"]["annotations"].as_object().cloned() {
        annotations.remove(LAST_APPLIED);
        if !annotations.is_empty() {
            metadata["annotations"] = Value::Object(annotations);
        }
    }
    json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": metadata, "data": data, "revision": number})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_a_template_never_changes() {
        let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "web"}]}});
        assert_eq!(hash(&template, 0), "75cc4dddb4");
        assert_ne!(hash(&template, 0), hash(&template, 1));
    }

    #[test]
    fn a_revision_holds_its_template_whole() {
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": []}});
        let data = data_of(&template);
        assert_eq!(
            data.to_string(),
            r#"{"spec":{"template":{"$patch":"replace","metadata":{"creationTimestamp":null,"labels":{"a":"b"}},"spec":{"containers":[]}}}}"#
        );
        let key = Key::new(REVISIONS, "a", "b");
        let held = Object::from_tree(key, "u".into(), 1, json!({"data": data}));
        assert_eq!(template_of(&held), template);
    }
}
