//! What one agent should hold: the pods bound to it, what they mount and read, its own Node, and the tables that services, names and
//! the ways to other nodes are made of. One task per server looks at every change (`board`); an agent's own task runs only when
//! something concerns it, and sends the difference to what it sent before.

mod board;
mod reduced;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use coracle_api::Memory;
use coracle_manifests::view::list;
use coracle_protocol::v1::{Feed, FromServer, Generation, Item, Ref, from_server};
use coracle_store::{Key, View};
use serde_json::Value;
use tokio::sync::mpsc;
use tonic::Status;

pub(super) use board::Held;
use board::{Board, Name, News, Shown, reads_of};

/// One part of a feed. Its bytes are copied only when the stream takes it, and the stream keeps room for the largest: thousands of
/// agents that begin at once must need little memory each.
const PART_BYTES: usize = 32 << 10;
/// Parts that wait for one agent's stream.
pub(super) const PARTS: usize = 2;
/// Changes of other nodes are told together: each agent is told of each node, and for every agent that waits for them they may wait
/// so long.
const TOGETHER_PER_AGENT: Duration = Duration::from_micros(400);
const TOGETHER_AT_MOST: Duration = Duration::from_secs(1);

/// All feeds of a server.
pub(super) struct Feeds {
    memory: Arc<dyn Memory>,
    board: Mutex<Board>,
}

/// A part of a feed, before its bytes are copied.
#[derive(Debug)]
pub(super) struct Part {
    generation: Generation,
    full: bool,
    resumed: bool,
    more: bool,
    tables: Name,
    removed: Vec<Key>,
    packed: Bytes,
    items: Vec<Arc<Shown>>,
}

impl Part {
    fn new(generation: Generation, tables: Name) -> Self {
        let (removed, packed, items) = (Vec::new(), Bytes::new(), Vec::new());
        Self { generation, full: false, resumed: false, more: false, tables, removed, packed, items }
    }

    /// For the wire.
    pub(super) fn message(self) -> Result<FromServer, Status> {
        let feed = Feed {
            generation: Some(self.generation),
            full: self.full,
            more: self.more,
            resumed: self.resumed,
            tables: self.tables.bytes(),
            removed: self.removed.iter().map(reference).collect(),
            packed: self.packed.into(),
            items: self.items.iter().map(|shown| item(shown)).collect(),
        };
        Ok(FromServer { message: Some(from_server::Message::Feed(feed)) })
    }
}

impl Feeds {
    pub(super) fn new(memory: Arc<dyn Memory>) -> Arc<Self> {
        Arc::new(Self { memory, board: Mutex::default() })
    }

    fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Feeds one agent, from what it holds, until it goes away.
    pub(super) async fn run(self: Arc<Self>, session: u64, node: String, held: Held, parts: mpsc::Sender<Part>) {
        let wake = {
            let mut board = self.board();
            if !std::mem::replace(&mut board.looked_after, true) {
                tokio::spawn(self.clone().look());
            }
            board.attach(&*self.memory, session, &node, &held)
        };
        let unpacks = held.unpacks;
        let _seat = Leave(&self, session);
        let mut sent: BTreeMap<Key, u64> = BTreeMap::new();
        let mut known = Reads::default();
        loop {
            let Some(news) = self.board().news(session) else { return };
            let mut difference = Difference::new(&news, &node, unpacks);
            if news.own {
                let (own, reads) = own(&news.view, &node, &mut known);
                difference.own(own, &mut sent, news.held);
                self.board().reads(session, reads);
            }
            for part in difference.parts() {
                if parts.send(part).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                // Cancel safe: a wake that is not taken stays.
                () = wake.notified() => {}
                () = parts.closed() => return,
            }
        }
    }

    /// Looks at every change once, for as long as there are agents.
    async fn look(self: Arc<Self>) {
        let mut changes = self.memory.changes();
        let mut nodes_at: Option<tokio::time::Instant> = None;
        loop {
            changes.borrow_and_update();
            {
                let mut board = self.board();
                if board.agents() == 0 {
                    board.looked_after = false;
                    return;
                }
                let agents = u32::try_from(board.agents()).unwrap_or(u32::MAX);
                let pause = TOGETHER_PER_AGENT.saturating_mul(agents).min(TOGETHER_AT_MOST);
                board.advance(&*self.memory);
                if board.nodes_differ() {
                    nodes_at.get_or_insert_with(|| tokio::time::Instant::now() + pause);
                }
                if nodes_at.is_some_and(|at| at <= tokio::time::Instant::now()) {
                    nodes_at = None;
                    board.wake_all();
                }
            }
            tokio::select! {
                // Cancel safe both: a change stays marked as unseen.
                changed = changes.changed() => if changed.is_err() { return },
                () = async {
                    match nodes_at {
                        Some(at) => tokio::time::sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                } => {}
            }
        }
    }
}

/// Gives a session's place up, however its task ends.
struct Leave<'a>(&'a Feeds, u64);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.board().detach(self.1);
    }
}

/// What each pod of a node reads, and the revision in which it does: a pod is read anew only when it has changed.
type Reads = HashMap<Key, (u64, Vec<Key>)>;

/// The objects of a node alone, and the names of what its pods read, whether or not it is there.
fn own(view: &View, node: &str, known: &mut Reads) -> (BTreeMap<Key, Arc<Shown>>, HashSet<Key>) {
    let (mut own, mut reads) = (BTreeMap::new(), HashSet::new());
    let mut add = |object: &coracle_store::Object| own.insert(object.key.clone(), Arc::new(Shown::whole(object)));
    if let Some(itself) = view.find("nodes", "", node) {
        add(itself);
    }
    let mut now = Reads::with_capacity(known.len());
    for pod in view.pods_on(node) {
        add(pod);
        let of_pod = match known.remove(&pod.key) {
            Some((revision, of_pod)) if revision == pod.revision => of_pod,
            _ => reads_of(pod).collect(),
        };
        reads.extend(of_pod.iter().cloned());
        now.insert(pod.key.clone(), (pod.revision, of_pod));
    }
    *known = now;
    for object in reads.iter().filter_map(|key| view.get(key)) {
        add(object);
    }
    (own, reads)
}

/// What turns what an agent holds into what it should hold.
struct Difference {
    generation: Generation,
    full: bool,
    resumed: bool,
    tables: Name,
    removed: Vec<Key>,
    packs: Vec<Bytes>,
    /// What comes in the packs although the agent has a fuller one of it: that one is sent again.
    overwritten: Option<Key>,
    items: Vec<Arc<Shown>>,
}

impl Difference {
    /// What the tables of all agents come to; the agent's own Node is not one of their rows, or is said once more after them.
    fn new(news: &News, node: &str, unpacks: bool) -> Self {
        let itself = Key::new("nodes", "", node);
        let generation = Generation { epoch: news.view.epoch(), revision: news.view.revision() };
        let mut this = Self {
            generation,
            full: news.whole,
            resumed: news.held.is_some(),
            tables: news.name,
            removed: Vec::new(),
            packs: Vec::new(),
            overwritten: None,
            items: Vec::new(),
        };
        if this.resumed && news.view.get(&itself).is_none() {
            this.removed.push(itself.clone());
        }
        for run in &news.rows {
            let packs = run.packs().filter(|_| unpacks);
            this.packs.extend(packs.iter().flat_map(|packs| packs.iter().cloned()));
            for (key, shown) in run.rows.iter().filter(|(key, _)| *key != itself) {
                match shown {
                    Some(_) if packs.is_some() => {}
                    Some(shown) => this.items.push(shown.clone()),
                    // One that begins has nothing of it.
                    None if news.whole => {}
                    None => this.removed.push(key.clone()),
                }
            }
        }
        if !this.packs.is_empty() && news.own_row {
            this.overwritten = Some(itself);
        }
        this
    }

    /// And the agent's own objects beside what was `sent`, or, in the first feed of an agent that goes on, what it `held`.
    fn own(
        &mut self,
        own: BTreeMap<Key, Arc<Shown>>,
        sent: &mut BTreeMap<Key, u64>,
        held: Option<coracle_base::Generation>,
    ) {
        if self.full {
            sent.clear();
        }
        sent.retain(|key, _| {
            let stays = own.contains_key(key);
            if !stays {
                self.removed.push(key.clone());
            }
            stays
        });
        for (key, shown) in own {
            let overwritten = self.overwritten.as_ref() == Some(&key);
            if sent.insert(key, shown.revision) != Some(shown.revision) || overwritten {
                let known = held.is_some_and(|held| shown.revision <= held.revision) && !overwritten;
                self.items.push(if known { Arc::new(shown.without_bytes()) } else { shown });
            }
        }
    }

    /// None when nothing differs.
    fn parts(self) -> Vec<Part> {
        let is_empty = self.removed.is_empty() && self.packs.is_empty() && self.items.is_empty();
        if !self.full && !self.resumed && is_empty {
            return Vec::new();
        }
        let (full, resumed, removed) = (self.full, self.resumed, self.removed);
        let mut parts = vec![Part { full, resumed, removed, ..Part::new(self.generation, self.tables) }];
        for packed in self.packs {
            parts.push(Part { packed, ..Part::new(self.generation, self.tables) });
        }
        let mut bytes = 0;
        for shown in self.items {
            if bytes > 0 && bytes + shown.json.len() > PART_BYTES {
                bytes = 0;
                parts.push(Part::new(self.generation, self.tables));
            }
            bytes += shown.json.len();
            if let Some(part) = parts.last_mut() {
                part.items.push(shown);
            }
        }
        let last = parts.len() - 1;
        for part in &mut parts[..last] {
            part.more = true;
        }
        parts
    }
}

/// The ConfigMaps and Secrets a pod names, in volumes and environment.
fn references(pod: &Value) -> BTreeSet<(&'static str, String)> {
    let mut found = BTreeSet::new();
    let mut add = |resource, name: &Value| {
        if let Some(name) = name.as_str() {
            found.insert((resource, name.to_owned()));
        }
    };
    let spec = &pod["spec"];
    for volume in list(&spec["volumes"]) {
        add("configmaps", &volume["configMap"]["name"]);
        add("secrets", &volume["secret"]["secretName"]);
        for source in list(&volume["projected"]["sources"]) {
            add("configmaps", &source["configMap"]["name"]);
            add("secrets", &source["secret"]["name"]);
        }
    }
    for container in list(&spec["initContainers"]).iter().chain(list(&spec["containers"])) {
        for entry in list(&container["envFrom"]) {
            add("configmaps", &entry["configMapRef"]["name"]);
            add("secrets", &entry["secretRef"]["name"]);
        }
        for entry in list(&container["env"]) {
            add("configmaps", &entry["valueFrom"]["configMapKeyRef"]["name"]);
            add("secrets", &entry["valueFrom"]["secretKeyRef"]["name"]);
        }
    }
    found
}

fn reference(key: &Key) -> Ref {
    Ref { resource: key.resource.to_string(), namespace: key.namespace.to_string(), name: key.name.to_string() }
}

fn item(shown: &Shown) -> Item {
    Item {
        resource: shown.key.resource.to_string(),
        namespace: shown.key.namespace.to_string(),
        name: shown.key.name.to_string(),
        uid: shown.uid.to_string(),
        revision: shown.revision,
        object: shown.json.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coracle_store::{Limits, Op, Store, Transaction};
    use serde_json::json;

    #[test]
    fn a_pod_brings_what_it_reads_and_nothing_else() {
        let pod = json!({"spec": {
            "volumes": [{"name": "a", "configMap": {"name": "conf"}}, {"name": "b", "secret": {"secretName": "key"}}],
            "initContainers": [{"envFrom": [{"secretRef": {"name": "boot"}}]}],
            "containers": [{"env": [{"name": "X", "value": "1"}, {"name": "Y", "valueFrom": {"configMapKeyRef": {"name": "env", "key": "y"}}}]}],
        }});
        let expected = [("configmaps", "conf"), ("configmaps", "env"), ("secrets", "boot"), ("secrets", "key")];
        assert_eq!(references(&pod).into_iter().collect::<Vec<_>>(), expected.map(|(a, b)| (a, b.to_owned())));
    }

    #[test]
    fn a_large_feed_goes_out_in_parts_and_only_the_last_has_no_more() {
        let shown = |index: u64| {
            let key = Key::new("services", "default", format!("s{index}"));
            Arc::new(Shown { key, uid: "u".into(), revision: index, json: vec![b' '; PART_BYTES / 2].into() })
        };
        let difference = |full, items| Difference {
            generation: Generation::default(),
            full,
            resumed: false,
            tables: Name::default(),
            removed: Vec::new(),
            packs: Vec::new(),
            overwritten: None,
            items,
        };
        let parts = difference(true, (0..5).map(shown).collect()).parts();
        assert_eq!(
            parts.iter().map(|part| (part.full, part.more, part.items.len())).collect::<Vec<_>>(),
            [(true, true, 2), (false, true, 2), (false, false, 1)]
        );
        assert!(difference(false, Vec::new()).parts().is_empty());
        assert_eq!(difference(true, Vec::new()).parts().len(), 1, "an empty whole is said");
    }

    /// A memory of its own.
    struct Ram {
        store: Mutex<Store>,
        changed: tokio::sync::watch::Sender<coracle_base::Generation>,
    }

    impl Ram {
        fn new() -> Arc<Self> {
            let changed = tokio::sync::watch::Sender::new(coracle_base::Generation::default());
            Arc::new(Self { store: Mutex::new(Store::new(Limits::default())), changed })
        }

        fn apply(&self, op: Op) {
            let mut store = self.store.lock().unwrap();
            let transaction: Transaction = op.into();
            assert!(store.apply(&[transaction])[0].is_ok());
            self.changed.send_replace(store.view().generation());
        }

        fn put(&self, resource: &str, name: &str, mut value: Value) {
            let namespace = if resource == "nodes" { "" } else { "default" };
            let key = Key::new(resource, namespace, name);
            let known = self.view().get(&key).map(|object| object.uid.to_string());
            let meta = json!({"name": name, "namespace": namespace, "uid": known.clone().unwrap_or_else(|| format!("uid-{name}"))});
            value["metadata"] = meta;
            let value = Arc::new(value);
            self.apply(match known {
                Some(_) => Op::Update { key, expect: coracle_store::Expect::default(), value, claims: None },
                None => Op::Create { key, value, claims: Vec::new() },
            });
        }

        fn delete(&self, resource: &str, name: &str) {
            let key = Key::new(resource, "default", name);
            self.apply(Op::Delete { key, expect: coracle_store::Expect::default() });
        }
    }

    impl Memory for Ram {
        fn view(&self) -> View {
            self.store.lock().unwrap().view()
        }

        fn events_after(&self, revision: u64, resource: Option<&str>) -> Option<Vec<coracle_store::Event>> {
            self.store.lock().unwrap().events_after(revision, resource).ok()
        }

        fn changes(&self) -> tokio::sync::watch::Receiver<coracle_base::Generation> {
            self.changed.subscribe()
        }

        fn propose_many(&self, _: Vec<Transaction>) -> coracle_api::BoxFuture<'_, Vec<coracle_api::Proposed>> {
            unreachable!("a feed writes nothing")
        }

        fn read_barrier(&self) -> coracle_api::BoxFuture<'_, Result<View, coracle_api::ProposeError>> {
            unreachable!("a feed takes what is there")
        }

        fn propose(&self, _: Transaction) -> coracle_api::BoxFuture<'_, coracle_api::Proposed> {
            unreachable!("a feed writes nothing")
        }
    }

    fn agent(feeds: &Arc<Feeds>, session: u64, node: &str) -> mpsc::Receiver<Part> {
        returning(feeds, session, node, Held::default())
    }

    fn returning(feeds: &Arc<Feeds>, session: u64, node: &str, held: Held) -> mpsc::Receiver<Part> {
        let (sender, parts) = mpsc::channel(PARTS);
        tokio::spawn(feeds.clone().run(session, node.to_owned(), held, sender));
        parts
    }

    async fn part(parts: &mut mpsc::Receiver<Part>) -> Part {
        tokio::time::timeout(Duration::from_secs(10), parts.recv()).await.expect("a part").expect("a feed")
    }

    /// What an agent holds that has taken this part.
    fn held(part: &Part) -> Held {
        let have = coracle_base::Generation { epoch: part.generation.epoch, revision: part.generation.revision };
        Held { have, tables: part.tables.bytes(), unpacks: false }
    }

    /// Names of the items, and whether their bytes came.
    fn items(part: &Part) -> Vec<(String, bool)> {
        part.items.iter().map(|shown| (shown.key.name.to_string(), !shown.json.is_empty())).collect()
    }

    #[tokio::test]
    async fn an_agent_that_returns_is_told_only_what_it_does_not_hold() {
        let memory = Ram::new();
        for node in ["a", "b"] {
            memory.put("nodes", node, json!({"spec": {"podCIDR": "10.42.0.0/24"}}));
        }
        memory.put("services", "s", json!({}));
        memory.put("pods", "p", pod("a", "key"));
        memory.put("secrets", "key", json!({}));
        let first = part(&mut agent(&Feeds::new(memory.clone()), 1, "a")).await;
        assert!(first.full && !first.resumed);
        // Of another server, or of the same one after it was killed: nothing has changed, and nothing comes but names.
        let before = held(&first);
        let second = part(&mut returning(&Feeds::new(memory.clone()), 1, "a", before.clone())).await;
        assert!(second.resumed && !second.full);
        assert_eq!(items(&second), [("a", false), ("p", false), ("key", false)].map(|(a, b)| (a.to_owned(), b)));
        // What changed of its own comes; what is not named has gone.
        memory.put("pods", "q", pod("a", "key"));
        memory.delete("pods", "p");
        let feeds = Feeds::new(memory.clone());
        let third = part(&mut returning(&feeds, 1, "a", before.clone())).await;
        assert!(third.resumed);
        assert_eq!(items(&third), [("a", false), ("q", true), ("key", false)].map(|(a, b)| (a.to_owned(), b)));
        // A table changed while this server was there: it tells the rows. One that was not there tells all.
        memory.put("services", "t", json!({}));
        memory.delete("services", "s");
        let fourth = part(&mut returning(&feeds, 2, "a", held(&third))).await;
        assert!(fourth.resumed);
        assert!(items(&fourth).contains(&("t".to_owned(), true)));
        assert_eq!(fourth.removed.iter().map(|key| key.name.to_string()).collect::<Vec<_>>(), names(&["s"]));
        assert!(part(&mut returning(&Feeds::new(memory.clone()), 1, "a", held(&third))).await.full);
        // Neither does one go on that has heard more than this server knows.
        let mut ahead = held(&fourth);
        ahead.have.revision += 1;
        assert!(part(&mut returning(&feeds, 3, "a", ahead)).await.full);
    }

    /// The names in the next part: what came, what went.
    async fn next(parts: &mut mpsc::Receiver<Part>) -> (Vec<String>, Vec<String>) {
        let part = tokio::time::timeout(Duration::from_secs(10), parts.recv()).await.expect("a part").expect("a feed");
        let came = part.items.iter().map(|shown| shown.key.name.to_string()).collect();
        (came, part.removed.iter().map(|key| key.name.to_string()).collect())
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn pod(node: &str, secret: &str) -> Value {
        json!({"spec": {"nodeName": node, "volumes": [{"name": "v", "secret": {"secretName": secret}}]}})
    }

    /// A whole feed as an agent takes it: what it says of each object, how much came in packs, and what it holds then.
    async fn whole(parts: &mut mpsc::Receiver<Part>, objects: &mut BTreeMap<(String, String), Value>) -> (usize, Held) {
        let mut packed_bytes = 0;
        loop {
            let next = part(parts).await;
            let held = Held { unpacks: true, ..held(&next) };
            let Some(from_server::Message::Feed(mut feed)) = next.message().unwrap().message else { panic!("a feed") };
            packed_bytes += feed.packed.len();
            coracle_protocol::packed::unpack(&mut feed).unwrap();
            if feed.full {
                objects.clear();
            }
            for gone in feed.removed {
                objects.remove(&(gone.resource, gone.name));
            }
            for item in feed.items.into_iter().filter(|item| !item.object.is_empty()) {
                objects.insert((item.resource, item.name), serde_json::from_slice(&item.object).unwrap());
            }
            if !feed.more {
                return (packed_bytes, held);
            }
        }
    }

    #[tokio::test]
    async fn many_rows_come_packed_and_an_agents_own_node_stays_whole() {
        let memory = Ram::new();
        let node = |beat: u64| {
            let spec = json!({"podCIDR": format!("10.42.{beat}.0/24")});
            json!({"spec": spec, "status": {"beat": beat, "images": [{"names": ["x:1"]}]}})
        };
        let all =
            |memory: &Ram, beat| (0..100).for_each(|number| memory.put("nodes", &format!("n{number}"), node(beat)));
        all(&memory, 1);
        memory.put("services", "s", json!({}));
        memory.put("services", "t", json!({}));
        let feeds = Feeds::new(memory.clone());
        let unpacks = Held { unpacks: true, ..Held::default() };
        let (mut new, mut old) = (returning(&feeds, 1, "n7", unpacks), agent(&feeds, 2, "n7"));
        let (mut of_new, mut of_old) = (BTreeMap::new(), BTreeMap::new());
        let (packed_bytes, held) = whole(&mut new, &mut of_new).await;
        assert!((1..6000).contains(&packed_bytes), "{packed_bytes}");
        assert_eq!(whole(&mut old, &mut of_old).await.0, 0, "one that does not know packs gets none");
        assert_eq!((of_new.len(), &of_new), (102, &of_old));
        let beat = |objects: &BTreeMap<(String, String), Value>, node: &str| {
            objects[&("nodes".to_owned(), node.to_owned())]["status"]["beat"].clone()
        };
        assert_eq!((beat(&of_new, "n7"), beat(&of_new, "n8")), (json!(1), Value::Null));

        // It was away while all of it changed, its own Node too; this server knows what it had.
        drop((new, old));
        while feeds.board().agents() > 0 {
            tokio::task::yield_now().await;
        }
        all(&memory, 2);
        memory.delete("services", "s");
        let mut new = returning(&feeds, 3, "n7", held);
        let first = whole(&mut new, &mut of_new).await.0;
        assert!((1..6000).contains(&first), "{first}");
        assert_eq!((of_new.len(), beat(&of_new, "n7"), beat(&of_new, "n8")), (101, json!(2), Value::Null));
        let block = &of_new[&("nodes".to_owned(), "n8".to_owned())]["spec"]["podCIDR"];
        assert_eq!(block, "10.42.2.0/24");
    }

    #[tokio::test]
    async fn each_agent_hears_what_concerns_it_and_nothing_else() {
        let memory = Ram::new();
        for node in ["a", "b"] {
            memory.put("nodes", node, json!({"spec": {"podCIDR": "10.42.0.0/24"}, "status": {"beat": 1}}));
        }
        memory.put("secrets", "other", json!({}));
        let feeds = Feeds::new(memory.clone());
        let (mut a, mut b) = (agent(&feeds, 1, "a"), agent(&feeds, 2, "b"));
        assert_eq!(next(&mut a).await.0, names(&["b", "a"]), "the other's Node is a row, its own is its own");
        assert_eq!(next(&mut b).await.0, names(&["a", "b"]));
        // A pod of one, which reads what is not there yet.
        memory.put("pods", "p", pod("a", "key"));
        assert_eq!(next(&mut a).await.0, names(&["p"]));
        memory.put("secrets", "other", json!({"data": {"x": "y"}}));
        memory.put("secrets", "key", json!({}));
        assert_eq!(next(&mut a).await.0, names(&["key"]));
        // What others need of a node did not change.
        memory.put("nodes", "b", json!({"spec": {"podCIDR": "10.42.0.0/24"}, "status": {"beat": 2}}));
        assert_eq!(next(&mut b).await.0, names(&["b"]));
        memory.put("services", "s", json!({}));
        assert_eq!(next(&mut a).await.0, names(&["s"]));
        assert_eq!(next(&mut b).await.0, names(&["s"]), "and nothing of the pod before");
        memory.delete("services", "s");
        assert_eq!(next(&mut b).await.1, names(&["s"]));
        assert_eq!(next(&mut a).await.1, names(&["s"]));
        memory.delete("pods", "p");
        let mut gone = next(&mut a).await.1;
        gone.sort();
        assert_eq!(gone, names(&["key", "p"]), "with the pod goes what only it read");
        memory.put("nodes", "b", json!({"spec": {"podCIDR": "10.42.9.0/24"}}));
        assert_eq!(next(&mut a).await.0, names(&["b"]));
        // Who goes away leaves nothing behind, and whoever comes next is told everything.
        drop((a, b));
        while feeds.board().agents() > 0 {
            tokio::task::yield_now().await;
        }
        memory.put("services", "t", json!({}));
        let mut again = agent(&feeds, 3, "a");
        assert_eq!(next(&mut again).await.0, names(&["b", "t", "a"]));
    }
}
