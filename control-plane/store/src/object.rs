//! One stored object: its canonical JSON bytes and what the store itself needs to know of it.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use coracle_base::Revision;
use serde_json::Value;

use crate::sketch;

/// Where an object lives. `resource` is the plural with its group, as kubectl prints it: `pods`, `deployments.apps`,
/// `endpointslices.discovery.k8s.io`. `namespace` is empty for cluster-scoped kinds.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// Plural and group of the kind.
    pub resource: Arc<str>,
    /// Namespace, or empty.
    pub namespace: Arc<str>,
    /// Name, unique within resource and namespace.
    pub name: Arc<str>,
}

impl Key {
    /// A key from its three parts.
    pub fn new(resource: impl Into<Arc<str>>, namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { resource: resource.into(), namespace: namespace.into(), name: name.into() }
    }
}

impl Ord for Key {
    fn cmp(&self, other: &Self) -> Ordering {
        // Resources and namespaces of stored objects are shared: most comparisons need not look at their letters.
        let words = |one: &Arc<str>, other: &Arc<str>| {
            if Arc::ptr_eq(one, other) { Ordering::Equal } else { one.cmp(other) }
        };
        words(&self.resource, &other.resource)
            .then_with(|| words(&self.namespace, &other.namespace))
            .then_with(|| self.name.cmp(&other.name))
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(out, "{}/{}", self.resource, self.name)
        } else {
            write!(out, "{}/{}/{}", self.resource, self.namespace, self.name)
        }
    }
}

/// A stored object. The bytes are canonical JSON (sorted keys, no spaces) and include `metadata.resourceVersion`; they are
/// encoded once and serve every reader and watcher.
#[derive(Debug)]
pub struct Object {
    /// Where it lives.
    pub key: Key,
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.resourceVersion`: the store-wide revision that wrote it.
    pub revision: Revision,
    /// Canonical JSON.
    pub json: Bytes,
    tree: OnceLock<Arc<Value>>,
}

impl Object {
    /// An object from its parts; `json` must be canonical and carry the same uid and revision.
    #[must_use]
    pub fn new(key: Key, uid: Arc<str>, revision: Revision, json: Bytes) -> Self {
        Self { key, uid, revision, json, tree: OnceLock::new() }
    }

    /// About how many bytes of memory it holds; a parsed tree is about eleven times its text (`tests/memory.rs`).
    #[must_use]
    pub fn weight(&self) -> usize {
        self.bare_weight() + self.tree_weight()
    }

    /// The part of it that is the parsed tree.
    pub(crate) fn tree_weight(&self) -> usize {
        if self.tree.get().is_some() { 11 * self.json.len() } else { 0 }
    }

    /// The same without the tree.
    pub(crate) fn bare_weight(&self) -> usize {
        size_of::<Self>() + 200 + self.json.len()
    }

    /// The same object, sharing its bytes, with no tree kept yet.
    pub(crate) fn bare(&self) -> Self {
        Self::new(self.key.clone(), self.uid.clone(), self.revision, self.json.clone())
    }

    /// An object from its tree, which carries the same uid and revision.
    #[must_use]
    pub fn from_tree(key: Key, uid: Arc<str>, revision: Revision, tree: Value) -> Self {
        // Writing a Value into memory cannot fail; its maps are sorted, so the bytes are canonical.
        let json = Bytes::from(serde_json::to_vec(&tree).unwrap_or_default());
        Self { key, uid, revision, json, tree: OnceLock::from(Arc::new(tree)) }
    }

    /// The parsed tree, made on first use and kept with the object.
    #[must_use]
    pub fn tree(&self) -> &Arc<Value> {
        self.tree.get_or_init(|| Arc::new(serde_json::from_slice(&self.json).unwrap_or(Value::Null)))
    }

    /// The parsed tree without keeping it: for a single look at an object that nobody may ever read again.
    #[must_use]
    pub fn peek(&self) -> Arc<Value> {
        match self.tree.get() {
            Some(tree) => tree.clone(),
            None => Arc::new(serde_json::from_slice(&self.json).unwrap_or(Value::Null)),
        }
    }

    /// What the indexes are made of, in its place: the parsed tree where there is one, and nothing else of it otherwise.
    pub(crate) fn sketch(&self) -> Arc<Value> {
        self.tree.get().map_or_else(|| Arc::new(sketch::of(&self.json)), Arc::clone)
    }
}

/// An object that stands where its key does: in a map of these an entry is one reference, and a copied node of the map is small.
#[derive(Debug, Clone)]
pub(crate) struct Keyed(pub Arc<Object>);

impl Borrow<Key> for Keyed {
    fn borrow(&self) -> &Key {
        &self.0.key
    }
}

impl PartialEq for Keyed {
    fn eq(&self, other: &Self) -> bool {
        self.0.key == other.0.key
    }
}

impl Eq for Keyed {}

impl Ord for Keyed {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.key.cmp(&other.0.key)
    }
}

impl PartialOrd for Keyed {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
