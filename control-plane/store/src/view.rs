//! A consistent look at the whole memory at one revision: O(1) to take, immutable, cheap to keep.

use std::sync::Arc;

use coracle_base::{Epoch, Generation, Revision};

use crate::{Key, Object};

/// What happened to an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It came to be.
    Added,
    /// It changed.
    Modified,
    /// It went.
    Deleted,
}

/// One change, as watchers see it. For `Deleted`, `object` is the last state with the revision of the deletion set in
/// `metadata.resourceVersion`.
#[derive(Debug, Clone)]
pub struct Event {
    /// The revision of the change.
    pub revision: Revision,
    /// What happened.
    pub kind: EventKind,
    /// The object after the change (before it, for `Deleted`).
    pub object: Arc<Object>,
    /// The object before the change: a selector watch needs it to see transitions.
    pub prior: Option<Arc<Object>>,
}

/// A consistent, immutable view.
#[derive(Debug, Clone, Default)]
pub struct View {
    generation: Generation,
    objects: imbl::OrdMap<Key, Arc<Object>>,
}

impl View {
    /// The revision of the last change it holds.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.generation.revision
    }

    /// The cluster's epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.generation.epoch
    }

    /// Epoch and revision.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// One object.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// One object by its parts; `namespace` is empty for cluster-scoped kinds.
    #[must_use]
    pub fn find(&self, resource: &str, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.objects.get(&Key::new(resource, namespace, name))
    }

    /// All objects of a resource, of one namespace or of all, by namespace and name.
    pub fn list<'a>(
        &'a self,
        resource: &'a str,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
        let start = Key::new(resource, namespace.unwrap_or(""), "");
        self.objects
            .range(start..)
            .map(|(_, object)| object)
            .take_while(move |object| {
                &*object.key.resource == resource && namespace.is_none_or(|wanted| &*object.key.namespace == wanted)
            })
    }

    /// The pods bound to a node.
    pub fn pods_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
        self.list("pods", None).filter(move |pod| pod.tree()["spec"]["nodeName"] == node)
    }

    /// The objects whose `metadata.ownerReferences` name this uid.
    pub fn owned_by<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
        self.objects.iter().map(|(_, object)| object).filter(move |object| {
            object.tree()["metadata"]["ownerReferences"]
                .as_array()
                .is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == uid))
        })
    }

    /// Every object, in key order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.iter().map(|(_, object)| object)
    }
}
