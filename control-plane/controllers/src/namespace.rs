//! A namespace that goes takes everything in it along; a new one gets its `default` ServiceAccount.
//!
//! Cost: one walk over the namespaces, and over the content of those that are going.

use coracle_base::Millis;
use coracle_manifests::kinds::KINDS;
use coracle_manifests::view::{is_deleting, list};
use coracle_store::{Expect, Key, Object, Op, Transaction, View};
use serde_json::json;

use crate::Ids;
use crate::objects::{create, remove, status, update};

/// What should change now.
#[must_use]
pub fn plan(view: &View, now: Millis, ids: &mut dyn Ids) -> Vec<Transaction> {
    let mut transactions = Vec::new();
    for namespace in view.list("namespaces", None) {
        if is_deleting(namespace.tree()) {
            transactions.extend(empty(view, namespace, now));
        } else if view.find("serviceaccounts", &namespace.key.name, "default").is_none() {
            let key = Key::new("serviceaccounts", namespace.key.name.clone(), "default");
            let value = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {}});
            transactions.push(create(key, value, now, ids).into());
        }
    }
    transactions
}

/// Removes what is in a namespace, then the namespace.
fn empty(view: &View, namespace: &Object, now: Millis) -> Vec<Transaction> {
    let mut going = namespace.tree()["status"].clone();
    going["phase"] = json!("Terminating");
    let mut transactions: Vec<Transaction> = status(namespace, going).map(Transaction::from).into_iter().collect();
    let mut left = 0_usize;
    for kind in KINDS.iter().filter(|kind| kind.namespaced) {
        for object in view.list(kind.resource, Some(&namespace.key.name)) {
            left += 1;
            transactions.extend(remove(object, now).map(Transaction::from));
        }
    }
    if left == 0 {
        transactions.push(finish(namespace).into());
    }
    transactions
}

/// An empty namespace goes, unless a finalizer of somebody else holds it.
fn finish(namespace: &Object) -> Op {
    let mut value = (**namespace.tree()).clone();
    let mut held = list(&value["spec"]["finalizers"]).to_vec();
    held.retain(|finalizer| finalizer != "kubernetes");
    if held.is_empty() && list(&value["metadata"]["finalizers"]).is_empty() {
        let expect = Expect { uid: Some(namespace.uid.clone()), revision: None };
        return Op::Delete { key: namespace.key.clone(), expect };
    }
    value["spec"]["finalizers"] = json!(held);
    update(namespace, value)
}
