//! What nobody owns any more goes; owners that wait for what they own (or let it go) are released
//! (upstream: `pkg/controller/garbagecollector`).
//!
//! Cost: one walk over the objects with owners and those on their way out, both of which the store indexes.

use std::collections::BTreeMap;
use std::sync::Arc;

use coracle_base::Millis;
use coracle_manifests::kinds;
use coracle_manifests::view::{is_deleting, list, text};
use coracle_store::{Key, Object, Transaction, View};
use serde_json::Value;

use crate::Ids;
use crate::objects::{disown, drop_finalizer, remove};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What should change now.
#[must_use]
pub fn plan(view: &View, now: Millis, _ids: &mut dyn Ids) -> Vec<Transaction> {
    let mut transactions = Vec::new();
    for object in view.going() {
        transactions.extend(release(view, object));
    }
    // An object with two owners stands there twice.
    let mut owned: BTreeMap<&Key, &Arc<Object>> = BTreeMap::new();
    let mut last: Option<(&Arc<str>, bool)> = None;
    for (uid, object) in view.owned() {
        // All objects of one owner stand together: it is looked up once.
        let lives = match last {
            Some((known, lives)) if known == uid => lives,
            _ => reference(object, uid).is_some_and(|reference| lives(view, object, reference)),
        };
        last = Some((uid, lives));
        if !lives {
            owned.insert(&object.key, object);
        }
    }
    for object in owned.into_values() {
        transactions.extend(judge(view, object, now));
    }
    transactions
}

fn reference<'a>(object: &'a Object, uid: &str) -> Option<&'a Value> {
    list(&object.tree()["metadata"]["ownerReferences"]).iter().find(|owner| text(&owner["uid"]) == uid)
}

/// How an owner stands to what it owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// It is there (or of a kind that is not known here: then nothing is touched).
    There,
    /// It waits for what it owns to go first.
    Waiting,
    /// It is gone, or another object has its name.
    Gone,
}

fn owner(view: &View, object: &Object, reference: &Value) -> Owner {
    let Some(kind) = kinds::by_name(text(&reference["apiVersion"]), text(&reference["kind"])) else {
        return Owner::There;
    };
    // A namespaced owner of an object of the whole cluster cannot be looked up: which namespace would it be in? Nothing is ended for that.
    if kind.namespaced && object.key.namespace.is_empty() {
        return Owner::There;
    }
    // A namespaced owner is in the object's own namespace: an owner elsewhere is no owner.
    let namespace = if kind.namespaced { &*object.key.namespace } else { "" };
    match view.find(kind.resource, namespace, text(&reference["name"])) {
        Some(owner) if *owner.uid == *text(&reference["uid"]) => {
            if is_deleting(owner.tree()) && has_finalizer(owner, FOREGROUND) { Owner::Waiting } else { Owner::There }
        }
        _ => Owner::Gone,
    }
}

fn lives(view: &View, object: &Object, reference: &Value) -> bool {
    owner(view, object, reference) == Owner::There
}

fn has_finalizer(object: &Object, finalizer: &str) -> bool {
    list(&object.tree()["metadata"]["finalizers"]).iter().any(|held| held == finalizer)
}

/// An object one of whose owners is gone or waits for it.
fn judge(view: &View, object: &Object, now: Millis) -> Option<Transaction> {
    let owners: Vec<(&Value, Owner)> = list(&object.tree()["metadata"]["ownerReferences"])
        .iter()
        .map(|reference| (reference, owner(view, object, reference)))
        .collect();
    if owners.iter().any(|(_, owner)| *owner == Owner::There) {
        let gone: Vec<&str> = owners
            .iter()
            .filter(|(_, owner)| *owner != Owner::There)
            .map(|(reference, _)| text(&reference["uid"]))
            .collect();
        return Some(disown(object, &gone).into());
    }
    // What waits for its own in turn is removed the same way: it waits for what blocks it.
    let waiting = owners.iter().any(|(_, owner)| *owner == Owner::Waiting);
    if waiting && !is_deleting(object.tree()) && view.owned_by(&object.uid).next().is_some() {
        return Some(crate::objects::remove_in_foreground(object, FOREGROUND, now).into());
    }
    remove(object, now).map(Transaction::from)
}

/// An object on its way out that lets its own go, or waits for them.
fn release(view: &View, object: &Object) -> Option<Transaction> {
    if has_finalizer(object, ORPHAN) {
        let mut ops: Vec<_> = view.owned_by(&object.uid).map(|own| disown(own, &[&object.uid])).collect();
        ops.push(drop_finalizer(object, ORPHAN));
        return Some(Transaction { ops });
    }
    if has_finalizer(object, FOREGROUND) {
        let blocked = view
            .owned_by(&object.uid)
            .any(|own| reference(own, &object.uid).is_some_and(|reference| reference["blockOwnerDeletion"] == true));
        return (!blocked).then(|| drop_finalizer(object, FOREGROUND).into());
    }
    None
}
