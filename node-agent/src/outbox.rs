//! What waits to be told to a server: the latest status of each pod, pods that are gone, events, the node's own status.
//!
//! A status is replaced by a newer one of its pod, so the outbox cannot grow beyond the node's pods; events are bounded and
//! the oldest give way. Everything but events is said again in a new session.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coracle_protocol::v1::{Item, NodeEvent, PodGone, PodStatus, Report};
use tokio::sync::Notify;

/// Events that wait at most: beyond that nobody reads them anyway.
const EVENTS: usize = 1000;
/// Pods in one report: it stays far below the largest message.
const PODS_PER_REPORT: usize = 500;
/// Events in one report.
const EVENTS_PER_REPORT: usize = 200;

/// The outbox. Shared by all pods of the agent.
#[derive(Debug, Default)]
pub struct Outbox {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    statuses: BTreeMap<String, PodStatus>,
    dirty: BTreeSet<String>,
    gone: BTreeMap<String, PodGone>,
    gone_dirty: BTreeSet<String>,
    leaving: BTreeMap<String, PodGone>,
    leaving_dirty: BTreeSet<String>,
    events: VecDeque<NodeEvent>,
    orphans: Vec<Item>,
    node_status: Vec<u8>,
    node_dirty: bool,
}

impl Inner {
    fn is_empty(&self) -> bool {
        let pods = self.dirty.is_empty() && self.gone_dirty.is_empty() && self.leaving_dirty.is_empty();
        pods && self.orphans.is_empty() && self.events.is_empty() && !self.node_dirty
    }
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The latest status of a pod.
    pub fn pod(&self, status: PodStatus) {
        {
            let mut inner = self.lock();
            inner.dirty.insert(status.uid.clone());
            inner.statuses.insert(status.uid.clone(), status);
        }
        self.changed.notify_one();
    }

    /// A pod is about to be ended: the servers say when nobody sends it anything new. Said again in a new session until it is gone.
    pub fn leaving(&self, pod: PodGone) {
        {
            let mut inner = self.lock();
            inner.leaving_dirty.insert(pod.uid.clone());
            inner.leaving.insert(pod.uid.clone(), pod);
        }
        self.changed.notify_one();
    }

    /// Nothing is left of a pod.
    pub fn gone(&self, gone: PodGone) {
        {
            let mut inner = self.lock();
            inner.leaving.remove(&gone.uid);
            inner.leaving_dirty.remove(&gone.uid);
            inner.statuses.remove(&gone.uid);
            inner.dirty.remove(&gone.uid);
            inner.gone_dirty.insert(gone.uid.clone());
            inner.gone.insert(gone.uid.clone(), gone);
        }
        self.changed.notify_one();
    }

    /// Pods that run here and that the cluster, begun anew, does not know.
    pub fn orphans(&self, orphans: Vec<Item>) {
        self.lock().orphans = orphans;
        self.changed.notify_one();
    }

    /// The servers have let go of a pod: nothing more is said about it.
    pub fn forget(&self, uid: &str) {
        let mut inner = self.lock();
        inner.gone.remove(uid);
        inner.gone_dirty.remove(uid);
        inner.leaving.remove(uid);
        inner.leaving_dirty.remove(uid);
        inner.statuses.remove(uid);
        inner.dirty.remove(uid);
    }

    /// Something worth an Event.
    pub fn event(&self, event: NodeEvent) {
        {
            let mut inner = self.lock();
            if inner.events.len() >= EVENTS {
                inner.events.pop_front();
            }
            inner.events.push_back(event);
        }
        self.changed.notify_one();
    }

    /// The node's status; the same as before says nothing.
    pub fn node_status(&self, status: Vec<u8>) {
        {
            let mut inner = self.lock();
            if inner.node_status == status {
                return;
            }
            inner.node_status = status;
            inner.node_dirty = true;
        }
        self.changed.notify_one();
    }

    /// A new session begins: all that holds is to be said (the node's status goes with the hello).
    pub fn begin_session(&self) {
        {
            let mut inner = self.lock();
            inner.dirty = inner.statuses.keys().cloned().collect();
            inner.gone_dirty = inner.gone.keys().cloned().collect();
            inner.leaving_dirty = inner.leaving.keys().cloned().collect();
            inner.node_dirty = false;
        }
        self.changed.notify_one();
    }

    /// Waits until there is something to say. Cancel safe.
    pub async fn ready(&self) {
        loop {
            // Taken before the look, so that a change in between is not slept through.
            let changed = self.changed.notified();
            if !self.lock().is_empty() {
                return;
            }
            changed.await;
        }
    }

    /// The next report; `None` when there is nothing to say. What does not fit stays for the one after it.
    pub fn take(&self) -> Option<Report> {
        let mut inner = self.lock();
        if inner.is_empty() {
            return None;
        }
        let mut report = Report { orphans: std::mem::take(&mut inner.orphans), ..Report::default() };
        while report.pods.len() < PODS_PER_REPORT
            && let Some(uid) = inner.dirty.pop_first()
        {
            report.pods.extend(inner.statuses.get(&uid).cloned());
        }
        while report.gone.len() < PODS_PER_REPORT
            && let Some(uid) = inner.gone_dirty.pop_first()
        {
            report.gone.extend(inner.gone.get(&uid).cloned());
        }
        while report.leaving.len() < PODS_PER_REPORT
            && let Some(uid) = inner.leaving_dirty.pop_first()
        {
            report.leaving.extend(inner.leaving.get(&uid).cloned());
        }
        let events = inner.events.len().min(EVENTS_PER_REPORT);
        report.events = inner.events.drain(..events).collect();
        if std::mem::take(&mut inner.node_dirty) {
            report.node_status = inner.node_status.clone();
        }
        Some(report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(uid: &str, text: &str) -> PodStatus {
        PodStatus { uid: uid.into(), status: text.into(), ..PodStatus::default() }
    }

    fn gone(uid: &str) -> PodGone {
        PodGone { uid: uid.into(), ..PodGone::default() }
    }

    #[test]
    fn the_latest_word_of_each_pod_wins_and_is_said_again_in_a_new_session() {
        let outbox = Outbox::default();
        outbox.pod(status("a", "1"));
        outbox.pod(status("b", "1"));
        outbox.pod(status("a", "2"));
        let said = |report: Report| {
            report
                .pods
                .iter()
                .map(|pod| format!("{}{}", pod.uid, String::from_utf8_lossy(&pod.status)))
                .collect::<Vec<_>>()
        };
        assert_eq!(said(outbox.take().unwrap()), ["a2", "b1"]);
        assert_eq!(outbox.take(), None);
        outbox.leaving(gone("b"));
        assert_eq!(outbox.take().unwrap().leaving, [gone("b")]);
        outbox.begin_session();
        assert_eq!(outbox.take().unwrap().leaving, [gone("b")], "the server that heard it may be dead");
        outbox.gone(gone("b"));
        outbox.begin_session();
        let report = outbox.take().unwrap();
        assert_eq!((report.gone, report.leaving), (vec![gone("b")], Vec::new()));
        outbox.begin_session();
        let report = outbox.take().unwrap();
        assert_eq!(said(report), ["a2"]);
        outbox.forget("b");
        outbox.begin_session();
        assert!(outbox.take().unwrap().gone.is_empty());
    }

    #[test]
    fn events_are_bounded() {
        let outbox = Outbox::default();
        for at_ms in 0..2 * EVENTS as u64 {
            outbox.event(NodeEvent { at_ms, ..NodeEvent::default() });
        }
        let mut seen = Vec::new();
        while let Some(report) = outbox.take() {
            assert!(report.events.len() <= EVENTS_PER_REPORT);
            seen.extend(report.events.iter().map(|event| event.at_ms));
        }
        assert_eq!(seen, (EVENTS as u64..2 * EVENTS as u64).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_change_wakes_whoever_waits() {
        let outbox = std::sync::Arc::new(Outbox::default());
        let waiting = tokio::spawn({
            let outbox = outbox.clone();
            async move { outbox.ready().await }
        });
        tokio::task::yield_now().await;
        outbox.node_status(b"{}".to_vec());
        waiting.await.unwrap();
        assert_eq!(outbox.take().unwrap().node_status, b"{}");
        outbox.node_status(b"{}".to_vec());
        assert_eq!(outbox.take(), None);
    }
}
