//! Objects of the store, as planners make and change them.

use std::sync::Arc;

use coracle_base::Millis;
use coracle_manifests::time;
use coracle_manifests::view::{is_deleting, list, text};
use coracle_store::{Expect, Key, Object, Op};
use serde_json::{Value, json};

use crate::Ids;

pub(crate) const DEPLOYMENTS: &str = "deployments.apps";
pub(crate) const REPLICASETS: &str = "replicasets.apps";
pub(crate) const CONTROLLERS: &str = "replicationcontrollers";
pub(crate) const STATEFULSETS: &str = "statefulsets.apps";
pub(crate) const DAEMONSETS: &str = "daemonsets.apps";
pub(crate) const SLICES: &str = "endpointslices.discovery.k8s.io";

/// A new tree in the object's place, if the object is still as it was seen.
pub(crate) fn update(object: &Object, value: Value) -> Op {
    let expect = Expect { uid: Some(object.uid.clone()), revision: Some(object.revision) };
    Op::Update { key: object.key.clone(), expect, value: Arc::new(value), claims: None }
}

/// A new status, unless it is the one stored.
pub(crate) fn status(object: &Object, status: Value) -> Option<Op> {
    (object.tree()["status"] != status).then(|| Op::Status {
        key: object.key.clone(),
        uid: object.uid.clone(),
        status: Arc::new(status),
    })
}

/// A new object: `value` without its uid and creation time.
pub(crate) fn create(key: Key, mut value: Value, now: Millis, ids: &mut dyn Ids) -> Op {
    value["metadata"]["name"] = json!(&*key.name);
    if !key.namespace.is_empty() {
        value["metadata"]["namespace"] = json!(&*key.namespace);
    }
    value["metadata"]["uid"] = json!(ids.uid());
    value["metadata"]["creationTimestamp"] = json!(time::rfc3339(now));
    Op::Create { key, value: Arc::new(value), claims: Vec::new() }
}

/// What `DELETE` would do: the object goes at once, or is marked and waits for its node or its finalizers. `None` when it
/// is marked already and still waits.
pub(crate) fn remove(object: &Object, now: Millis) -> Option<Op> {
    let tree = object.tree();
    let grace = grace_seconds(object);
    let finalized = !list(&tree["metadata"]["finalizers"]).is_empty();
    if grace == 0 && !finalized {
        let expect = Expect { uid: Some(object.uid.clone()), revision: Some(object.revision) };
        return Some(Op::Delete { key: object.key.clone(), expect });
    }
    if is_deleting(tree) {
        return None;
    }
    let mut value = (**tree).clone();
    value["metadata"]["deletionTimestamp"] = json!(time::rfc3339(now.saturating_add(grace.saturating_mul(1000))));
    value["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
    Some(update(object, value))
}

/// Marks an object as going, with a finalizer by which it waits for what it owns.
pub(crate) fn remove_in_foreground(object: &Object, finalizer: &str, now: Millis) -> Op {
    let mut value = (**object.tree()).clone();
    let mut finalizers = list(&value["metadata"]["finalizers"]).to_vec();
    finalizers.push(json!(finalizer));
    let grace = grace_seconds(object);
    value["metadata"]["finalizers"] = Value::Array(finalizers);
    value["metadata"]["deletionTimestamp"] = json!(time::rfc3339(now.saturating_add(grace.saturating_mul(1000))));
    value["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
    update(object, value)
}

/// How long a pod's node may take to end it; only a pod on a node needs any time.
fn grace_seconds(object: &Object) -> u64 {
    let tree = object.tree();
    let on_node = &*object.key.resource == "pods" && !text(&tree["spec"]["nodeName"]).is_empty();
    if !on_node || coracle_manifests::view::is_finished(tree) {
        return 0;
    }
    let asked = &tree["metadata"]["deletionGracePeriodSeconds"];
    asked.as_u64().or_else(|| tree["spec"]["terminationGracePeriodSeconds"].as_u64()).unwrap_or(30)
}

/// The object without one of its finalizers; it goes when it was the last one it waited for.
pub(crate) fn drop_finalizer(object: &Object, finalizer: &str) -> Op {
    let mut value = (**object.tree()).clone();
    let mut rest = list(&value["metadata"]["finalizers"]).to_vec();
    rest.retain(|held| held != finalizer);
    if rest.is_empty() && is_deleting(&value) && grace_seconds(object) == 0 {
        let expect = Expect { uid: Some(object.uid.clone()), revision: Some(object.revision) };
        return Op::Delete { key: object.key.clone(), expect };
    }
    if let Some(metadata) = value["metadata"].as_object_mut() {
        if rest.is_empty() {
            metadata.remove("finalizers");
        } else {
            metadata.insert("finalizers".to_owned(), Value::Array(rest));
        }
    }
    update(object, value)
}

/// The reference by which an owner controls what it makes.
pub(crate) fn controller_reference(owner: &Object) -> Value {
    let tree = owner.tree();
    json!({
        "apiVersion": tree["apiVersion"],
        "kind": tree["kind"],
        "name": &*owner.key.name,
        "uid": &*owner.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

/// The object with one more owner.
pub(crate) fn adopt(object: &Object, owner: &Object) -> Op {
    let mut value = (**object.tree()).clone();
    let mut owners = list(&value["metadata"]["ownerReferences"]).to_vec();
    owners.push(controller_reference(owner));
    value["metadata"]["ownerReferences"] = Value::Array(owners);
    update(object, value)
}

/// The object without the owners of these uids.
pub(crate) fn disown(object: &Object, uids: &[&str]) -> Op {
    let mut value = (**object.tree()).clone();
    let mut owners = list(&value["metadata"]["ownerReferences"]).to_vec();
    owners.retain(|owner| !uids.contains(&text(&owner["uid"])));
    if let Some(metadata) = value["metadata"].as_object_mut() {
        if owners.is_empty() {
            metadata.remove("ownerReferences");
        } else {
            metadata.insert("ownerReferences".to_owned(), Value::Array(owners));
        }
    }
    update(object, value)
}

/// A time in a tree, in milliseconds.
pub(crate) fn millis(value: &Value) -> Option<Millis> {
    time::parse(value.as_str()?)
}

/// What happened to an object, for `kubectl describe`.
pub(crate) struct Note<'a> {
    pub kind: &'a str,
    pub reason: &'a str,
    pub message: String,
    pub component: &'a str,
}

/// An Event object.
pub(crate) fn event(about: &Object, note: Note<'_>, now: Millis, ids: &mut dyn Ids) -> Op {
    let tree = about.tree();
    // An Event about an object without a namespace lives in `default`, as upstream's do.
    let namespace = if about.key.namespace.is_empty() { "default" } else { &*about.key.namespace };
    let unique: String = ids.uid().chars().filter(char::is_ascii_hexdigit).take(16).collect();
    let at = time::rfc3339(now);
    let mut involved = json!({
        "apiVersion": tree["apiVersion"],
        "kind": tree["kind"],
        "name": &*about.key.name,
        "uid": &*about.uid,
        "resourceVersion": about.revision.to_string(),
    });
    if !about.key.namespace.is_empty() {
        involved["namespace"] = json!(&*about.key.namespace);
    }
    let value = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {},
        "involvedObject": involved,
        "reason": note.reason,
        "message": note.message,
        "source": {"component": note.component},
        "reportingComponent": note.component,
        "reportingInstance": "",
        "firstTimestamp": at,
        "lastTimestamp": at,
        "eventTime": null,
        "count": 1,
        "type": note.kind,
    });
    create(Key::new("events", namespace, format!("{}.{unique}", about.key.name)), value, now, ids)
}

/// What `set_condition` writes.
pub(crate) struct Condition<'a> {
    pub kind: &'a str,
    pub status: &'a str,
    pub reason: &'a str,
    pub message: &'a str,
}

/// Sets a condition in a list of conditions. Its `lastTransitionTime` moves only with its status. The rest of it is
/// replaced, and `stamp` (a field such as `lastUpdateTime`) is set to now, when anything differs.
pub(crate) fn set_condition(conditions: &mut Vec<Value>, new: &Condition<'_>, stamp: &str, now: Millis) {
    let old = conditions.iter().position(|held| held["type"] == new.kind);
    if let Some(held) = old.map(|index| &conditions[index])
        && held["status"] == new.status
        && held["reason"] == new.reason
        && held["message"] == new.message
    {
        return;
    }
    let at = json!(time::rfc3339(now));
    let since = old
        .map(|index| &conditions[index])
        .filter(|held| held["status"] == new.status)
        .map_or_else(|| at.clone(), |held| held["lastTransitionTime"].clone());
    let value = json!({
        "type": new.kind,
        "status": new.status,
        "reason": new.reason,
        "message": new.message,
        "lastTransitionTime": since,
        stamp: at,
    });
    match old {
        Some(index) => conditions[index] = value,
        None => conditions.push(value),
    }
}
