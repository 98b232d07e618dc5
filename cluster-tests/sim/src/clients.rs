//! Clients of one server: writers, readers and a watcher. They tell the oracle what they asked and what came back.

use std::sync::Arc;
use std::time::Duration;

use coracle_raft::{ProposeError, Raft};
use coracle_store::{Expect, Key, Object, Op, Outcome, Transaction, View};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use crate::Bug;
use crate::invariants::linearizable::Did;
use crate::invariants::revisions;
use crate::oracle::Oracle;

const KEYS: usize = 3;

/// One server's clients.
#[derive(Debug, Clone)]
pub struct Clients {
    /// Which server.
    pub server: usize,
    /// In which of its lives.
    pub life: u64,
    /// It, as long as it lives.
    pub raft: Raft,
    /// Who is told.
    pub oracle: Oracle,
    /// A planted mistake.
    pub bug: Option<Bug>,
}

/// The key of a name.
#[must_use]
pub fn key_of(name: &str) -> Key {
    Key::new("configmaps", "default", name)
}

/// What an object of ours holds.
#[must_use]
pub fn value_of(object: &Object) -> String {
    object.peek()["data"]["value"].as_str().unwrap_or_default().to_owned()
}

/// What a key holds, with the revision that made it so.
#[must_use]
pub fn found(view: &View, name: &str) -> Option<(String, u64)> {
    view.find("configmaps", "default", name).map(|object| (value_of(object), object.revision))
}

/// A transaction that sets a value, if what is there is as it was read.
#[must_use]
pub fn set(name: &str, before: Option<u64>, value: &str) -> Transaction {
    let tree: Arc<Value> = Arc::new(json!({
        "metadata": {"name": name, "namespace": "default", "uid": name},
        "data": {"value": value, "filling": "x".repeat(300)},
    }));
    let key = key_of(name);
    match before {
        None => Op::Create { key, value: tree, claims: Vec::new() }.into(),
        Some(revision) => {
            let expect = Expect { uid: None, revision: Some(revision) };
            Op::Update { key, expect, value: tree, claims: None }.into()
        }
    }
}

impl Clients {
    /// Starts them on the runtime this is called in.
    pub fn start(&self, seed: u64, watched: &Arc<std::sync::Mutex<u64>>) {
        for number in 0..2 {
            let seed = seed.wrapping_add(number);
            drop(tokio::spawn(self.clone().write(seed)));
        }
        self.oracle.known().clients.insert((self.server, self.life), 3);
        drop(tokio::spawn(self.clone().read(seed.wrapping_add(7))));
        drop(tokio::spawn(self.clone().watch(seed.wrapping_add(8), watched.clone())));
    }

    async fn pause(&self, rng: &mut StdRng) -> bool {
        tokio::time::sleep(Duration::from_millis(rng.random_range(5..120))).await; // poll
        let mut known = self.oracle.known();
        if known.ending
            && let Some(running) = known.clients.get_mut(&(self.server, self.life))
        {
            *running -= 1;
        }
        !known.ending
    }

    async fn write(self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut number = 0;
        while self.pause(&mut rng).await {
            let name = format!("k{}", rng.random_range(0..KEYS));
            number += 1;
            let value = format!("{seed:x}/{number}");
            let before = found(&self.raft.view(), &name);
            let change = set(&name, before.as_ref().map(|before| before.1), &value);
            let expected = before.map(|before| before.0);
            let did = |happened| Did::Write { expected: expected.clone(), value: value.clone(), happened };
            let at = self.oracle.known().begin(&name, did(None));
            let answer = self.raft.propose(change).await;
            let mut known = self.oracle.known();
            let ended = known.stamp();
            match answer {
                Ok(outcomes) => {
                    known.operations[at].did = did(Some(true));
                    known.operations[at].ended = Some(ended);
                    if let Some(Outcome::Stored(object)) = outcomes.first() {
                        let held = known.acknowledged.wrote(object.revision, &name, &value);
                        known.judge(held);
                    } else {
                        known.judge(Err(format!("a write of {name} was answered with {outcomes:?}")));
                    }
                }
                Err(ProposeError::Rejected { .. }) => {
                    known.operations[at].did = did(Some(false));
                    known.operations[at].ended = Some(ended);
                }
                // It may have happened.
                Err(ProposeError::Uncertain | ProposeError::Poisoned(_) | ProposeError::Stopped) => {}
                // It did not, so nobody may ever read it: a key of its own that is never looked at.
                Err(_) => known.operations[at].key = format!("never/{value}"),
            }
        }
    }

    async fn read(self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut on_this = revisions::Revisions::default();
        while self.pause(&mut rng).await {
            let name = format!("k{}", rng.random_range(0..KEYS));
            let (begun, acknowledged) = {
                let mut known = self.oracle.known();
                (known.stamp(), known.acknowledged.newest())
            };
            let Ok(view) = self.raft.read_barrier().await else { continue };
            let mut known = self.oracle.known();
            let held = on_this.see(self.server, view.revision());
            known.judge(held);
            known.judge(revisions::read(self.server, acknowledged, view.revision()));
            let at = known.begin(&name, Did::Read(found(&view, &name).map(|found| found.0)));
            let ended = known.stamp();
            known.operations[at].begun = begun;
            known.operations[at].ended = Some(ended);
        }
    }

    // Goes on where it was, on whichever server: `watched` outlives this one's life.
    async fn watch(self, seed: u64, watched: Arc<std::sync::Mutex<u64>>) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut changes = self.raft.revision_changes();
        let at = || watched.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        loop {
            let last = *at();
            match self.raft.events_after(last, None) {
                Ok(mut events) => {
                    if self.bug == Some(Bug::DropWatchEvent) && events.len() > 1 && rng.random_bool(0.05) {
                        events.remove(0);
                    }
                    for event in events {
                        let mut known = self.oracle.known();
                        let (name, value) = (&event.object.key.name, value_of(&event.object));
                        let held = known.watchers.saw(self.server, *at(), event.revision, name, &value);
                        known.judge(held);
                        *at() = event.revision;
                    }
                }
                // Too far behind: it lists, and goes on from there.
                Err(_) => {
                    let listed = self.raft.view().revision();
                    *at() = last.max(listed);
                }
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Writes through one server until it takes it, and says so.
pub async fn heal(server: usize, raft: Raft, oracle: Oracle) {
    let name = format!("healed{server}");
    loop {
        let before = found(&raft.view(), &name).map(|found| found.1);
        if raft.propose(set(&name, before, "healed")).await.is_ok() {
            oracle.known().healed[server] = true;
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await; // poll
    }
}

/// Makes a ReplicaSet of one fenced pod.
pub async fn run_fenced(raft: Raft) {
    let annotations = json!({"coracle.dev/fenced": "true"});
    let labels = json!({"app": "fenced"});
    let value = json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": "fenced", "namespace": "default", "uid": "fenced"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": {
                    "restartPolicy": "Always",
                    "schedulerName": "default-scheduler",
                    "containers": [{"name": "app", "image": "example.com/app:1"}],
                },
            },
        },
    });
    let key = Key::new("replicasets.apps", "default", "fenced");
    let create = Op::Create { key, value: Arc::new(value), claims: Vec::new() };
    while raft.propose(create.clone().into()).await.is_err() {
        tokio::time::sleep(Duration::from_millis(50)).await; // poll
    }
}
