//! All pods of the node: a worker for each the ledger assigns, and the end of each it no longer does.

pub mod board;
mod events;
mod lease;
pub mod node;
mod record;
pub mod steps;
pub mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use coracle_daemon::DrainWatch;
use coracle_lifecycle::pod::{Pod, PodError};
use coracle_lifecycle::status;
use coracle_protocol::v1::{PodGone, PodStatus};
use serde_json::Value;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::ledger::{Held, State};
use board::Board;
use node::Node;
use record::Record;
use worker::{Order, Worker};

/// Commands to the manager: there is one commander.
const COMMANDS: usize = 4;
/// A worker that broke is started again after a moment.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

enum Command {
    /// Ends every pod, and starts no more.
    StopAll { grace_ms: u64, done: oneshot::Sender<()> },
}

/// Handle to the task that has all workers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pods {
    commands: mpsc::Sender<Command>,
}

impl Pods {
    /// Starts the task. It ends with the drain; the containers run on. With `stopping` (milliseconds of grace) it starts nothing
    /// and ends what an earlier agent left.
    #[must_use]
    pub fn start(node: Arc<Node>, board: Arc<Board>, stopping: Option<u64>, drain: &DrainWatch) -> Self {
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let manager = Manager {
            state: node.state.clone(),
            node,
            board,
            workers: BTreeMap::new(),
            tasks: JoinSet::new(),
            gone: BTreeSet::new(),
            rejected: BTreeSet::new(),
            stopping: stopping.map(|grace_ms| (grace_ms, Vec::new())),
            orphans_seen: false,
        };
        drain.spawn(manager.run(receiver, drain.clone()));
        Self { commands }
    }

    /// Ends every pod within `grace_ms` of its own grace; returns when nothing is left of them.
    pub async fn stop_all(&self, grace_ms: u64) {
        let (done, is_done) = oneshot::channel();
        if self.commands.send(Command::StopAll { grace_ms, done }).await.is_ok() {
            let _ = is_done.await;
        }
    }
}

/// Pods of this node in the ledger, by uid.
type Assignments<'a> = BTreeMap<&'a str, &'a Arc<Held>>;

struct Assigned {
    orders: watch::Sender<Order>,
    revision: u64,
}

struct Manager {
    node: Arc<Node>,
    board: Arc<Board>,
    state: watch::Receiver<State>,
    workers: BTreeMap<String, Assigned>,
    tasks: JoinSet<String>,
    /// Pods of which nothing is left though the ledger still has them.
    gone: BTreeSet<String>,
    /// Objects that cannot be run.
    rejected: BTreeSet<String>,
    stopping: Option<(u64, Vec<oneshot::Sender<()>>)>,
    orphans_seen: bool,
}

impl Manager {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>, drain: DrainWatch) {
        let (mut broken, mut commanded) = (false, true);
        loop {
            self.reconcile();
            let again =
                async { if broken { tokio::time::sleep(AGAIN_AFTER).await } else { std::future::pending().await } };
            tokio::select! {
                // All cancel safe.
                changed = self.state.changed() => if changed.is_err() { return },
                Some(ended) = self.tasks.join_next_with_id() => broken |= self.ended(ended),
                command = commands.recv(), if commanded => match command {
                    Some(Command::StopAll { grace_ms, done }) => {
                        let waiting = self.stopping.get_or_insert((grace_ms, Vec::new()));
                        waiting.0 = waiting.0.min(grace_ms);
                        waiting.1.push(done);
                    }
                    // Nobody holds the handle any more; the pods are wanted all the same.
                    None => commanded = false,
                },
                () = again => broken = false,
                // Workers are dropped where they stand: records and runtime hold all that matters.
                () = drain.signaled() => return,
            }
        }
    }

    /// A worker is at its end. `true` when it broke and must be started again.
    fn ended(&mut self, ended: Result<(tokio::task::Id, String), tokio::task::JoinError>) -> bool {
        match ended {
            Ok((_, uid)) => {
                self.workers.remove(&uid);
                self.gone.insert(uid);
                false
            }
            Err(error) => {
                tracing::error!(%error, "a pod's worker broke; it is started again");
                self.workers.retain(|_, assigned| !assigned.orders.is_closed());
                true
            }
        }
    }

    /// Looks at the ledger: no argument says what has changed.
    fn reconcile(&mut self) {
        let state = self.state.borrow_and_update().clone();
        let assigned: Assignments<'_> = state
            .list("pods")
            .filter(|(_, held)| held.tree["spec"]["nodeName"] == self.node.name.as_str())
            .map(|(_, held)| (held.uid.as_str(), held))
            .collect();
        if self.stopping.is_none() {
            for (uid, held) in &assigned {
                self.assign(uid, held);
            }
        }
        self.orphans(&state, &assigned);
        let stop = self.stopping.as_ref().map(|(grace_ms, _)| *grace_ms);
        for (uid, worker) in &self.workers {
            let unwanted = if assigned.contains_key(uid.as_str()) { stop } else { Some(stop.unwrap_or(u64::MAX)) };
            if let Some(grace_ms) = unwanted {
                worker.orders.send_if_modified(|order| {
                    let before = order.unwanted;
                    order.unwanted = Some(grace_ms.min(own_grace_ms(&order.object)));
                    order.unwanted != before
                });
            }
        }
        let outbox = &self.node.outbox;
        self.gone.retain(|uid| {
            let still_there = assigned.contains_key(uid.as_str());
            if !still_there {
                outbox.forget(uid);
            }
            still_there
        });
        self.rejected.retain(|uid| assigned.contains_key(uid.as_str()));
        if self.workers.is_empty()
            && self.tasks.is_empty()
            && let Some((_, waiting)) = &mut self.stopping
        {
            for done in waiting.drain(..) {
                let _ = done.send(());
            }
        }
    }

    fn assign(&mut self, uid: &str, held: &Held) {
        if self.gone.contains(uid) {
            return;
        }
        let revision = held.revision;
        if let Some(worker) = self.workers.get_mut(uid) {
            if worker.revision != revision {
                worker.revision = revision;
                let object = Arc::new(held.tree.clone());
                worker.orders.send_modify(|order| {
                    order.object = object;
                    // Assigned again, after a feed without it.
                    order.unwanted = None;
                });
            }
            return;
        }
        match Pod::parse(&held.tree) {
            Ok(pod) => self.employ(pod, revision, Arc::new(held.tree.clone()), None),
            Err(error) => self.reject(uid, &held.tree, &error),
        }
    }

    fn employ(&mut self, pod: Pod, revision: u64, object: Arc<Value>, unwanted: Option<u64>) {
        let uid = pod.uid.clone();
        let (orders, receiver) = watch::channel(Order { object, unwanted });
        let worker = Worker::new(self.node.clone(), self.board.clone(), pod, receiver);
        self.tasks.spawn(worker.run());
        self.workers.insert(uid, Assigned { orders, revision });
    }

    /// An object that cannot be run is told so once, and is gone as soon as somebody deletes it.
    fn reject(&mut self, uid: &str, object: &Value, error: &PodError) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (text(&object["metadata"]["namespace"]), text(&object["metadata"]["name"]));
        if !object["metadata"]["deletionTimestamp"].is_null() {
            self.node.outbox.gone(PodGone { namespace, name, uid: uid.to_owned() });
            self.gone.insert(uid.to_owned());
        } else if self.rejected.insert(uid.to_owned()) {
            let facts = status::Facts { host_ip: self.node.host_ip, now: self.node.clock.now_ms() };
            let status = status::rejected("InvalidPod", &error.to_string(), facts);
            let status = serde_json::to_vec(&status).unwrap_or_default();
            self.node.outbox.pod(PodStatus { namespace, name, uid: uid.to_owned(), status });
        }
    }

    /// Pods that run here though no feed assigns them: an earlier agent's, which the servers have let go of meanwhile. Only a
    /// whole feed can say so.
    fn orphans(&mut self, state: &State, assigned: &Assignments<'_>) {
        if self.orphans_seen || !(state.confirmed || self.stopping.is_some()) {
            return;
        }
        self.orphans_seen = true;
        let limit = self.stopping.as_ref().map_or(u64::MAX, |(grace_ms, _)| *grace_ms);
        let mut found: BTreeSet<String> = self.node.containers.sandboxes().into_iter().collect();
        for entry in std::fs::read_dir(self.node.paths.run.join("agent")).into_iter().flatten().flatten() {
            found.extend(entry.file_name().into_string());
        }
        for uid in found {
            if self.workers.contains_key(&uid) || (self.stopping.is_none() && assigned.contains_key(uid.as_str())) {
                continue;
            }
            tracing::info!(uid, "a pod of an earlier agent is wanted no more");
            match Record::load(&self.node.paths.pod_run(&uid)) {
                Some(record) => match Pod::parse(&record.object) {
                    Ok(pod) => {
                        let grace_ms = limit.min(own_grace_ms(&record.object));
                        self.employ(pod, 0, Arc::new(record.object), Some(grace_ms));
                    }
                    Err(_) => self.sweep(uid),
                },
                None => self.sweep(uid),
            }
        }
    }

    /// Removes a pod of which only the uid is known.
    fn sweep(&mut self, uid: String) {
        let node = self.node.clone();
        self.tasks.spawn(async move {
            let mut problems = Vec::new();
            problems.extend(node.network.detach(&uid).await.err());
            problems.extend(node.containers.remove(&uid).await.err());
            for problem in problems {
                tracing::warn!(uid, reason = problem.message, "something of an unknown pod was not removed");
            }
            let _ = node::remove_tree(&node.paths.pod_data(&uid));
            let _ = node::remove_tree(&node.paths.pod_run(&uid));
            uid
        });
    }
}

/// The time a pod asks for to end, unless it is given less.
fn own_grace_ms(object: &Value) -> u64 {
    object["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30).saturating_mul(1000)
}
