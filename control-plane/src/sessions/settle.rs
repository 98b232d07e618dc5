//! A pod that is to end keeps serving until no node sends it anything new. Its agent says that it is leaving; here its endpoints are
//! waited for, then every agent of every server is asked for the moment its kernel has them, and the pod's agent is told.
//!
//! Nobody waits for long: an agent that does not answer counts as dead soon, and the pod's own agent ends it after a quarter of its grace, at most ten seconds, in any case.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use coracle_daemon::DrainWatch;
use coracle_manifests::view::{list, text};
use coracle_protocol::v1::{FromServer, LetGone, PodGone, Settle, SliceAt, Slices, from_server};
use coracle_raft::Raft;
use coracle_store::{Object, View};
use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Sessions, lock};
use crate::peers::ServerPeers;

const SLICES: &str = "endpointslices.discovery.k8s.io";
/// How long a pod's endpoints may take to say that it takes nothing new. Its agent waits no longer.
const WITHIN: Duration = Duration::from_secs(10);
/// How long agents may take to have it in their kernels.
const SETTLED_WITHIN: Duration = Duration::from_secs(3);
/// Pods on their way to the round, and pods that wait for it.
const LEAVING: usize = 4096;

/// A pod that its agent is about to end.
#[derive(Debug)]
pub(crate) struct Leaving {
    node: String,
    pod: PodGone,
    until: Instant,
}

/// Agents that were asked and have not answered, by ticket.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    last: AtomicU64,
    open: Mutex<HashMap<u64, Round>>,
}

/// Nodes that are left, and who waits for them.
type Round = (HashSet<String>, oneshot::Sender<()>);

impl Rounds {
    fn begin(&self, nodes: HashSet<String>) -> (u64, oneshot::Receiver<()>) {
        let ticket = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (done, waiting) = oneshot::channel();
        if nodes.is_empty() {
            // Whoever waits is there still.
            let _ = done.send(());
        } else {
            lock(&self.open).insert(ticket, (nodes, done));
        }
        (ticket, waiting)
    }

    /// An agent has it.
    pub(super) fn settled(&self, ticket: u64, node: &str) {
        let mut open = lock(&self.open);
        let Some((left, _)) = open.get_mut(&ticket) else { return };
        left.remove(node);
        if left.is_empty()
            && let Some((_, done)) = open.remove(&ticket)
        {
            // Who asked may have waited long enough.
            let _ = done.send(());
        }
    }

    /// An agent's session is over: at the next one it is told everything anew, before anything else.
    pub(super) fn gone(&self, node: &str) {
        let tickets: Vec<u64> = lock(&self.open).keys().copied().collect();
        tickets.into_iter().for_each(|ticket| self.settled(ticket, node));
    }

    fn end(&self, ticket: u64) {
        lock(&self.open).remove(&ticket);
    }
}

impl Sessions {
    /// Returns once every agent of this server has in its kernel what these slices say, or when those that have not are late.
    pub(crate) async fn settle(&self, slices: &Slices) {
        let connected: Vec<_> = self
            .agents()
            .iter()
            .filter(|(_, entry)| entry.connected && entry.settles)
            .map(|(node, entry)| (node.clone(), entry.down.clone()))
            .collect();
        let (ticket, settled) = self.inner.rounds.begin(connected.iter().map(|(node, _)| node.clone()).collect());
        for (node, down) in connected {
            let ask = Settle { ticket, slices: Some(slices.clone()) };
            if down.try_send(Ok(FromServer { message: Some(from_server::Message::Settle(ask)) })).is_err() {
                // It is on its way out, or takes nothing any more: nobody waits for it.
                self.inner.rounds.settled(ticket, &node);
            }
        }
        if tokio::time::timeout(SETTLED_WITHIN, settled).await.is_err() {
            tracing::debug!(ticket, "some agents do not say that they have new endpoints");
        }
        self.inner.rounds.end(ticket);
    }

    /// Pods of a node that are about to be ended. Too many are dropped: their agent ends them after its own time.
    pub(super) fn leave(&self, node: &str, pods: Vec<PodGone>) {
        let Some(leaving) = lock(&self.inner.leaving).clone() else { return };
        let until = Instant::now() + WITHIN;
        for pod in pods {
            let _ = leaving.try_send(Leaving { node: node.to_owned(), pod, until });
        }
    }

    fn tell_let_gone(&self, node: &str, pods: Vec<String>) {
        let down = self.agents().get(node).filter(|entry| entry.connected).map(|entry| entry.down.clone());
        if let Some(down) = down {
            let message = from_server::Message::LetGone(LetGone { pods });
            // One whose queue is full ends the pod after its own time.
            let _ = down.try_send(Ok(FromServer { message: Some(message) }));
        }
    }
}

/// What asks all nodes about pods that are leaving.
pub(crate) struct LettingGo {
    pub raft: Raft,
    pub peers: ServerPeers,
    pub sessions: Sessions,
}

impl LettingGo {
    /// Runs until the drain. One round is under way at a time, and takes all that came meanwhile into the next.
    pub(crate) async fn run(self, drain: DrainWatch) {
        let (sender, mut leaving) = mpsc::channel(LEAVING);
        *lock(&self.sessions.inner.leaving) = Some(sender);
        let mut changes = self.sessions.inner.memory.changes();
        let mut waiting: Vec<Leaving> = Vec::new();
        let mut round: Option<JoinHandle<Vec<Leaving>>> = None;
        loop {
            changes.borrow_and_update();
            if round.is_none() && !waiting.is_empty() {
                let (free, ready, rest) = sort(&self.sessions.inner.memory.view(), std::mem::take(&mut waiting));
                waiting = rest;
                self.tell(free);
                if !ready.is_empty() {
                    round = Some(self.begin(ready));
                }
            }
            tokio::select! {
                // Cancel safe all: a handle that is polled again goes on, a change stays marked as unseen.
                came = leaving.recv() => if waiting.len() < LEAVING { waiting.extend(came) },
                done = async {
                    match &mut round {
                        Some(round) => round.await,
                        None => std::future::pending().await,
                    }
                } => {
                    round = None;
                    self.tell(done.unwrap_or_default());
                }
                changed = changes.changed(), if !waiting.is_empty() && round.is_none() => if changed.is_err() { return },
                () = drain.signaled() => return,
            }
        }
    }

    /// Asks the agents of all servers at once.
    fn begin(&self, ready: Vec<(Leaving, Vec<SliceAt>)>) -> JoinHandle<Vec<Leaving>> {
        let own = self.raft.identity().node;
        let others = self.raft.members().servers.into_iter().filter(|(server, _)| *server != own);
        let addresses: Vec<String> = others
            .map(|(server, member)| self.raft.address_of(server).unwrap_or(member.address))
            .filter(|address| !address.is_empty())
            .collect();
        let mut known = BTreeSet::new();
        let (mut pods, mut slices) = (Vec::new(), Vec::new());
        for (pod, of_pod) in ready {
            pods.push(pod);
            slices.extend(of_pod.into_iter().filter(|at| known.insert((at.namespace.clone(), at.name.clone()))));
        }
        let slices = Slices { slices };
        let (sessions, peers) = (self.sessions.clone(), self.peers.clone());
        tokio::spawn(async move {
            let elsewhere = addresses.iter().map(|address| {
                let asked = peers.settle(address, slices.clone());
                async move {
                    // A server that is dead has no agents; one that is frozen loses them to others.
                    if let Ok(Err(error)) = tokio::time::timeout(SETTLED_WITHIN, asked).await {
                        tracing::debug!(error = coracle_base::one_line(&error), "a server's agents");
                    }
                }
            });
            tokio::join!(sessions.settle(&slices), join_all(elsewhere));
            pods
        })
    }

    fn tell(&self, pods: Vec<Leaving>) {
        let mut by_node: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for leaving in pods {
            by_node.entry(leaving.node).or_default().push(leaving.pod.uid);
        }
        by_node.into_iter().for_each(|(node, pods)| self.sessions.tell_let_gone(&node, pods));
    }
}

type Ready = (Leaving, Vec<SliceAt>);

/// Pods that no Service knows, pods whose endpoints say that they take nothing new, and pods that are still to be waited for. What
/// is not being deleted on the node that speaks of it is left out.
fn sort(view: &View, waiting: Vec<Leaving>) -> (Vec<Leaving>, Vec<Ready>, Vec<Leaving>) {
    let (mut free, mut ready, mut rest) = (Vec::new(), Vec::new(), Vec::new());
    let now = Instant::now();
    for leaving in waiting {
        let found =
            view.find("pods", &leaving.pod.namespace, &leaving.pod.name).filter(|pod| *pod.uid == *leaving.pod.uid);
        let Some(pod) = found else { continue };
        let tree = pod.tree();
        if leaving.until <= now
            || tree["spec"]["nodeName"] != *leaving.node
            || tree["metadata"]["deletionTimestamp"].is_null()
        {
            continue;
        }
        let address = text(&tree["status"]["podIP"]);
        let holds = |slice: &&std::sync::Arc<Object>| !address.is_empty() && endpoint(slice, address).is_some();
        let slices: Vec<_> = view.list(SLICES, Some(&*pod.key.namespace)).filter(holds).collect();
        if slices.is_empty() {
            free.push(leaving);
        } else if slices.iter().any(|slice| endpoint(slice, address) == Some(true)) {
            rest.push(leaving);
        } else {
            let at = |slice: &std::sync::Arc<Object>| SliceAt {
                namespace: slice.key.namespace.to_string(),
                name: slice.key.name.to_string(),
                epoch: view.epoch(),
                revision: slice.revision,
            };
            ready.push((leaving, slices.into_iter().map(at).collect()));
        }
    }
    (free, ready, rest)
}

/// Whether a slice has an address, and it is not about to end: who publishes addresses that are not ready sends it new things to the end.
fn endpoint(slice: &Object, address: &str) -> Option<bool> {
    let endpoints = list(&slice.tree()["endpoints"]);
    let found = endpoints.iter().find(|endpoint| list(&endpoint["addresses"]).iter().any(|own| own == address))?;
    Some(found["conditions"]["ready"] != false && found["conditions"]["terminating"] != true)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use coracle_store::{Key, Limits, Op, Store, Transaction};
    use serde_json::{Value, json};

    use super::*;

    fn put(store: &mut Store, resource: &str, name: &str, mut value: Value) {
        value["metadata"]["name"] = json!(name);
        value["metadata"]["namespace"] = json!("default");
        value["metadata"]["uid"] = json!(format!("uid-{name}"));
        let op = Op::Create { key: Key::new(resource, "default", name), value: Arc::new(value), claims: Vec::new() };
        let transaction: Transaction = op.into();
        assert!(store.apply(&[transaction])[0].is_ok());
    }

    fn leaving(node: &str, name: &str) -> Leaving {
        let pod = PodGone { namespace: "default".into(), name: name.into(), uid: format!("uid-{name}") };
        Leaving { node: node.into(), pod, until: Instant::now() + WITHIN }
    }

    fn pod(node: &str, address: &str, deleted: bool) -> Value {
        let deleted = if deleted { json!("2026-11-27T06:00:00Z") } else { Value::Null };
        json!({"metadata": {"deletionTimestamp": deleted}, "spec": {"nodeName": node}, "status": {"podIP": address}})
    }

    #[tokio::test]
    async fn a_pod_is_waited_for_until_no_endpoint_of_it_takes_anything_new() {
        let mut store = Store::new(Limits::default());
        put(&mut store, "pods", "alone", pod("a", "10.42.0.2", true));
        put(&mut store, "pods", "ends", pod("a", "10.42.0.3", true));
        put(&mut store, "pods", "serves", pod("a", "10.42.0.4", true));
        put(&mut store, "pods", "stays", pod("a", "10.42.0.5", false));
        put(&mut store, "pods", "other", pod("b", "10.42.1.2", true));
        let endpoint = |address: &str, ready: bool| json!({"addresses": [address], "conditions": {"ready": ready, "terminating": !ready}});
        let slice = json!({"endpoints": [endpoint("10.42.0.3", false), endpoint("10.42.0.4", true), endpoint("10.42.0.5", true)]});
        put(&mut store, SLICES, "web-1", slice);
        put(&mut store, SLICES, "web-2", json!({"endpoints": [endpoint("10.42.0.3", false)]}));
        let all = ["alone", "ends", "serves", "stays", "other", "unknown"].map(|name| leaving("a", name));
        let (free, ready, rest) = sort(&store.view(), all.into());
        let names = |pods: &[Leaving]| pods.iter().map(|leaving| leaving.pod.name.clone()).collect::<Vec<_>>();
        assert_eq!((names(&free), names(&rest)), (vec!["alone".to_owned()], vec!["serves".to_owned()]));
        let slices: Vec<_> = ready[0].1.iter().map(|at| (at.name.as_str(), at.revision)).collect();
        assert_eq!((ready.len(), ready[0].0.pod.name.as_str(), slices), (1, "ends", vec![("web-1", 6), ("web-2", 7)]));
    }

    #[tokio::test]
    async fn a_round_ends_with_the_last_answer_or_session() {
        let rounds = Rounds::default();
        let (nobody, done) = rounds.begin(HashSet::new());
        done.await.unwrap();
        let (ticket, mut done) = rounds.begin(["a", "b", "c"].map(str::to_owned).into());
        assert_ne!(ticket, nobody);
        rounds.settled(ticket, "a");
        rounds.settled(ticket, "a");
        rounds.settled(ticket + 1, "b");
        rounds.settled(ticket, "b");
        assert!(done.try_recv().is_err(), "one is left");
        rounds.gone("c");
        done.await.unwrap();
        assert!(lock(&rounds.open).is_empty());
    }
}
