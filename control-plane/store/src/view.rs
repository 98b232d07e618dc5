//! A consistent look at the whole memory at one revision: O(1) to take, immutable, cheap to keep.

use std::sync::Arc;

use coracle_base::{Epoch, Generation, Level, Revision};
use coracle_manifests::view::{controller_uid, is_deleting, is_finished, list, text};
use serde_json::Value;

use crate::object::Keyed;
use crate::{Key, Object, Usage};

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

/// What the owner of a pod that must be unique writes to have it moved when its node falls silent.
pub const FENCED: &str = "coracle.dev/fenced";

/// What somebody looks for among all objects, again and again: so that nobody has to read them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// An object with a `metadata.deletionTimestamp`.
    Going,
    /// A pod that is to run and has no node.
    Waiting,
    /// A pod whose phase says that it has ended.
    Ended,
    /// A pod that has not ended and that no controller has.
    Loose,
    /// A pod that runs only while its node holds a lease.
    Fenced,
}

/// A consistent, immutable view.
#[derive(Debug, Clone, Default)]
pub struct View {
    pub(crate) generation: Generation,
    /// 0 counts as 1.
    level: Level,
    objects: imbl::OrdMap<Keyed, ()>,
    /// Pods by the node they are bound to.
    by_node: imbl::OrdMap<(Arc<str>, Key), Arc<Object>>,
    /// Objects by the uids of their owners.
    by_owner: imbl::OrdMap<(Arc<str>, Key), Arc<Object>>,
    marked: imbl::OrdMap<(Mark, Key), Arc<Object>>,
    /// What the pods of each node ask for together.
    usage: imbl::OrdMap<Arc<str>, Usage>,
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

    /// The cluster level: what may be proposed.
    #[must_use]
    pub fn level(&self) -> Level {
        self.level.max(1)
    }

    /// One object.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<&Arc<Object>> {
        self.objects.get_key_value(key).map(|(object, ())| &object.0)
    }

    /// One object by its parts; `namespace` is empty for cluster-scoped kinds.
    #[must_use]
    pub fn find(&self, resource: &str, namespace: &str, name: &str) -> Option<&Arc<Object>> {
        self.get(&Key::new(resource, namespace, name))
    }

    /// All objects of a resource, of one namespace or of all, by namespace and name.
    pub fn list<'a>(
        &'a self,
        resource: &'a str,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
        let start = Key::new(resource, namespace.unwrap_or(""), "");
        self.objects.range(start..).map(|(object, ())| &object.0).take_while(move |object| {
            &*object.key.resource == resource && namespace.is_none_or(|wanted| &*object.key.namespace == wanted)
        })
    }

    /// The pods bound to a node.
    pub fn pods_on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
        indexed(&self.by_node, node)
    }

    /// Whether a pod is bound to a node.
    #[must_use]
    pub fn is_on(&self, node: &str, pod: &Key) -> bool {
        self.by_node.contains_key(&(Arc::from(node), pod.clone()))
    }

    /// The objects whose `metadata.ownerReferences` name this uid.
    pub fn owned_by<'a>(&'a self, uid: &'a str) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
        indexed(&self.by_owner, uid)
    }

    /// Every object that has owners, with the uid of one of them; by uid, so that an owner's objects stand together.
    pub fn owned(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Object>)> {
        self.by_owner.iter().map(|((uid, _), object)| (uid, object))
    }

    /// Every object with a mark, in key order.
    pub fn marked(&self, mark: Mark) -> impl Iterator<Item = &Arc<Object>> {
        let start = (mark, Key::new("", "", ""));
        self.marked.range(start..).take_while(move |((at, _), _)| *at == mark).map(|(_, object)| object)
    }

    /// Every object that is on its way out.
    pub fn going(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.marked(Mark::Going)
    }

    /// The nodes that pods are bound to, whether or not they are there.
    pub fn nodes_with_pods(&self) -> impl Iterator<Item = &Arc<str>> {
        let first = self.by_node.iter().next().map(|((node, _), _)| node);
        std::iter::successors(first, |node| {
            // Directly behind every pod of this one.
            let behind: Arc<str> = format!("{node}\0").into();
            self.by_node.range((behind, Key::new("", "", ""))..).next().map(|((node, _), _)| node)
        })
    }

    /// Every object, in key order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.objects.keys().map(|object| &object.0)
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// What the live pods of a node ask for together.
    #[must_use]
    pub fn usage_on(&self, node: &str) -> Usage {
        self.usage.get(node).copied().unwrap_or_default()
    }

    pub(crate) fn set_generation(&mut self, generation: Generation) {
        self.generation = generation;
    }

    pub(crate) fn raise_level(&mut self, level: Level) {
        self.level = self.level.max(level);
    }

    pub(crate) fn insert(&mut self, object: &Arc<Object>) {
        self.remove(&object.key);
        let tree = object.sketch();
        for (index, at) in indexes(&object.key, &tree) {
            if matches!(index, Index::Node) {
                let usage = self.usage_on(&at).plus(Usage::of_pod(&tree));
                self.usage.insert(at.clone(), usage);
            }
            self.enter(index, at, object);
        }
        self.objects.insert(Keyed(object.clone()), ());
    }

    pub(crate) fn remove(&mut self, key: &Key) -> Option<Arc<Object>> {
        let (Keyed(old), ()) = self.objects.remove_with_key(key)?;
        let tree = old.sketch();
        for (index, at) in indexes(key, &tree) {
            match index {
                Index::Node => self.by_node.remove(&(at.clone(), key.clone())),
                Index::Owner => self.by_owner.remove(&(at.clone(), key.clone())),
                Index::Mark(mark) => self.marked.remove(&(mark, key.clone())),
            };
            if matches!(index, Index::Node) {
                let usage = self.usage_on(&at).minus(Usage::of_pod(&tree));
                if usage == Usage::default() {
                    self.usage.remove(&at)
                } else {
                    self.usage.insert(at, usage)
                };
            }
        }
        Some(old)
    }

    /// Lets go of an object's tree, if it is still the one of this revision.
    pub(crate) fn cool(&mut self, key: &Key, revision: Revision) {
        let Some(object) = self.get(key).filter(|object| object.revision == revision) else { return };
        let (tree, bare) = (object.sketch(), Arc::new(object.bare()));
        for (index, at) in indexes(key, &tree) {
            self.enter(index, at, &bare);
        }
        self.objects.insert(Keyed(bare), ());
    }

    fn enter(&mut self, index: Index, at: Arc<str>, object: &Arc<Object>) {
        let (key, object) = (object.key.clone(), object.clone());
        match index {
            Index::Node => self.by_node.insert((at, key), object),
            Index::Owner => self.by_owner.insert((at, key), object),
            Index::Mark(mark) => self.marked.insert((mark, key), object),
        };
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Index {
    Node,
    Owner,
    Mark(Mark),
}

/// Under which words of which index an object stands; marks have none.
pub(crate) fn indexes(key: &Key, tree: &Value) -> Vec<(Index, Arc<str>)> {
    let mut found: Vec<(Index, Arc<str>)> = list(&tree["metadata"]["ownerReferences"])
        .iter()
        .filter_map(|owner| owner["uid"].as_str())
        .map(|uid| (Index::Owner, Arc::from(uid)))
        .collect();
    if &*key.resource == "pods" && !text(&tree["spec"]["nodeName"]).is_empty() {
        found.push((Index::Node, Arc::from(text(&tree["spec"]["nodeName"]))));
    }
    found.extend(marks(key, tree).map(|mark| (Index::Mark(mark), Arc::default())));
    found
}

fn marks(key: &Key, tree: &Value) -> impl Iterator<Item = Mark> {
    let going = is_deleting(tree);
    let is_pod = &*key.resource == "pods";
    let ended = is_finished(tree);
    [
        (Mark::Going, going),
        (Mark::Waiting, is_pod && !going && !ended && text(&tree["spec"]["nodeName"]).is_empty()),
        (Mark::Ended, is_pod && ended),
        (Mark::Loose, is_pod && !going && !ended && controller_uid(tree).is_none()),
        (Mark::Fenced, is_pod && tree["metadata"]["annotations"][FENCED] == "true"),
    ]
    .into_iter()
    .filter_map(|(mark, stands)| stands.then_some(mark))
}

fn indexed<'a>(
    index: &'a imbl::OrdMap<(Arc<str>, Key), Arc<Object>>,
    word: &'a str,
) -> impl Iterator<Item = &'a Arc<Object>> + 'a {
    let start = (Arc::from(word), Key::new("", "", ""));
    index.range(start..).take_while(move |((at, _), _)| &**at == word).map(|(_, object)| object)
}
