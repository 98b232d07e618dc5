//! One node of a DaemonSet, with the set's pods there.

use std::collections::HashSet;
use std::sync::Arc;

use coracle_base::Millis;
use coracle_manifests::view::{is_deleting, is_finished, text};
use coracle_store::Object;

use super::mark_of;
use crate::objects::millis;
use crate::pods::is_ready;

/// One node.
pub(super) struct Site<'a> {
    pub node: Arc<str>,
    /// Whether a pod should be here.
    pub runs: bool,
    /// Whether one that is here stays.
    pub stays: bool,
    /// Pods that neither end nor have ended, oldest first: of the current revision and of others.
    pub new: Vec<&'a Arc<Object>>,
    pub old: Vec<&'a Arc<Object>>,
    /// Pods that have run to their end.
    pub ended: Vec<&'a Arc<Object>>,
    /// The oldest of all.
    oldest: Option<&'a Arc<Object>>,
    mark: String,
}

/// Older first, and of the same age the one that is placed.
fn age(pod: &Object) -> (bool, Millis, Arc<str>) {
    let tree = pod.tree();
    let created = millis(&tree["metadata"]["creationTimestamp"]).unwrap_or(Millis::MAX);
    (text(&tree["spec"]["nodeName"]).is_empty(), created, pod.key.name.clone())
}

impl<'a> Site<'a> {
    pub fn new(node: &Arc<str>, (runs, stays): (bool, bool), mut pods: Vec<&'a Arc<Object>>, mark: &str) -> Self {
        pods.sort_by_cached_key(|pod| age(pod));
        let mut site = Self {
            node: node.clone(),
            runs,
            stays,
            new: Vec::new(),
            old: Vec::new(),
            ended: Vec::new(),
            oldest: pods.first().copied(),
            mark: mark.to_owned(),
        };
        for pod in pods {
            if is_deleting(pod.tree()) {
                // It holds the place until its node says that it has ended.
            } else if is_finished(pod.tree()) {
                site.ended.push(pod);
            } else if site.is_current(pod) {
                site.new.push(pod);
            } else {
                site.old.push(pod);
            }
        }
        site
    }

    pub fn is_current(&self, pod: &Object) -> bool {
        mark_of(pod) == self.mark
    }

    pub fn oldest(&self) -> Option<&'a Arc<Object>> {
        self.oldest
    }

    /// Whether a pod is to be made: there is none, not even one that is ending.
    pub fn lacks(&self) -> bool {
        self.runs && self.oldest.is_none()
    }

    /// Pods that are too many: all where none may be, else all but the oldest; while it surges, an old and a new one may be side by
    /// side until the new one can stand alone.
    pub fn surplus(
        &self,
        surges: bool,
        is_available: &dyn Fn(&Object) -> bool,
        silent: &HashSet<Arc<str>>,
    ) -> Vec<&'a Arc<Object>> {
        let mut all: Vec<&Arc<Object>> = self.new.iter().chain(&self.old).copied().collect();
        if !self.stays {
            return all;
        }
        if !surges {
            all.sort_by_cached_key(|pod| age(pod));
            return all.split_off(all.len().min(1));
        }
        // Of several the one that serves stays; upstream keeps the oldest, whether it serves or not.
        let kept = |pods: &[&'a Arc<Object>]| pods.iter().find(|pod| is_available(pod)).or(pods.first()).copied();
        let (new, old) = (kept(&self.new), kept(&self.old));
        let (new_serves, old_is_ready) =
            (new.is_some_and(|pod| is_available(pod)), old.is_some_and(|pod| is_ready(pod.tree(), silent)));
        let stays = |pod: &Arc<Object>| {
            let is = |kept: Option<&Arc<Object>>| kept.is_some_and(|kept| kept.key == pod.key);
            is(new) || (is(old) && (new.is_none() || (old_is_ready && !new_serves)))
        };
        all.retain(|pod| !stays(pod));
        all
    }
}
