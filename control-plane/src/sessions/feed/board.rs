//! One look at every change for all agents of a server: which agents it concerns, and what the tables are made of now.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use coracle_api::Memory;
use coracle_base::{Epoch, Generation};
use coracle_protocol::packed;
use coracle_store::{Event, EventKind, Key, Object, View};
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

use super::reduced::reduced;
use super::references;

/// Tables every agent holds whole: services, their endpoints, and the nodes.
const TABLES: [&str; 3] = ["services", "endpointslices.discovery.k8s.io", NODES];
const NODES: &str = "nodes";
/// Removed objects that are remembered: an agent that is further behind is told everything anew.
const REMEMBERED: usize = 10_000;
/// States of the tables whose names are remembered: an agent that comes back with an older one is told everything anew.
const NAMES: usize = 1_000;
/// Rows whose text is shorter than this are not packed.
const PACKED_FROM: usize = 4 << 10;
/// So many changes make a run.
const RUN: u64 = 64;

/// An object as agents get it. Its bytes are shared by all of them.
#[derive(Debug)]
pub(super) struct Shown {
    pub key: Key,
    pub uid: Arc<str>,
    pub revision: u64,
    pub json: Bytes,
}

impl Shown {
    pub(super) fn whole(object: &Object) -> Self {
        let (key, uid, json) = (object.key.clone(), object.uid.clone(), object.json.clone());
        Self { key, uid, revision: object.revision, json }
    }

    /// For an agent that holds it already.
    pub(super) fn without_bytes(&self) -> Self {
        Self { key: self.key.clone(), uid: self.uid.clone(), revision: self.revision, json: Bytes::new() }
    }

    /// As agents of other nodes need it.
    fn of_table(object: &Object) -> Self {
        let whole = Self::whole(object);
        if *object.key.resource == *NODES { Self { json: reduced(&object.peek()), ..whole } } else { whole }
    }
}

/// A name for what the rows of all tables are, the same on every server: the sum of their hashes. Agents hand it back, and nobody
/// else reads it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Name {
    epoch: Epoch,
    sum: [u64; 4],
}

impl Name {
    /// For the wire.
    pub(super) fn bytes(self) -> Vec<u8> {
        [self.epoch, self.sum[0], self.sum[1], self.sum[2], self.sum[3]]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    fn of_row(shown: &Shown) -> [u64; 4] {
        let mut hash = Sha256::new();
        let Key { resource, namespace, name } = &shown.key;
        for part in [resource.as_bytes(), namespace.as_bytes(), name.as_bytes(), shown.uid.as_bytes(), &shown.json] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let bytes = hash.finalize();
        std::array::from_fn(|word| {
            bytes[8 * word..8 * word + 8].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        })
    }

    fn add(&mut self, row: [u64; 4]) {
        self.sum.iter_mut().zip(row).for_each(|(sum, word)| *sum = sum.wrapping_add(word));
    }

    fn take(&mut self, row: [u64; 4]) {
        self.sum.iter_mut().zip(row).for_each(|(sum, word)| *sum = sum.wrapping_sub(word));
    }
}

/// What an agent says it holds.
#[derive(Debug, Clone, Default)]
pub(in crate::sessions) struct Held {
    /// Of its last feed.
    pub have: Generation,
    /// The name that came with it; empty: nothing is held.
    pub tables: Vec<u8>,
    /// Whether it takes rows that are packed.
    pub unpacks: bool,
}

/// A table's row that changed; `None`: it is gone.
pub(super) type Row = (Key, Option<Arc<Shown>>);

/// Rows that changed one after the other, in that order. They are packed once for all agents that are told them.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub rows: Vec<Row>,
    packs: OnceLock<Option<Vec<Bytes>>>,
}

impl Run {
    fn of(rows: Vec<Row>) -> Arc<Self> {
        Arc::new(Self { rows, packs: OnceLock::new() })
    }

    /// The rows that are there, packed; `None` when there are so few that it is not worth it.
    pub(super) fn packs(&self) -> Option<&[Bytes]> {
        self.packs.get_or_init(|| self.packed()).as_deref()
    }

    fn packed(&self) -> Option<Vec<Bytes>> {
        let there = || self.rows.iter().filter_map(|(_, shown)| shown.as_ref());
        if there().map(|shown| shown.json.len()).sum::<usize>() < PACKED_FROM {
            return None;
        }
        let (mut packs, mut items, mut bytes) = (Vec::new(), Vec::new(), 0);
        for shown in there() {
            if bytes > 0 && bytes + shown.json.len() > packed::PACK_BYTES {
                packs.push(packed::pack(std::mem::take(&mut items)));
                bytes = 0;
            }
            bytes += shown.json.len();
            items.push(super::item(shown));
        }
        packs.push(packed::pack(items));
        // Nobody is told only some of them.
        let packs: std::io::Result<Vec<Vec<u8>>> = packs.into_iter().collect();
        match packs {
            Ok(packs) => Some(packs.into_iter().map(Bytes::from).collect()),
            Err(error) => {
                tracing::error!(%error, "rows of the tables could not be packed");
                None
            }
        }
    }
}

/// All rows of the tables in the order of their last change.
#[derive(Debug, Default)]
struct Tables {
    /// Of the last change.
    last: u64,
    /// Whoever has not seen this one cannot be told what has gone since.
    floor: u64,
    rows: BTreeMap<Key, (u64, Option<Arc<Shown>>)>,
    order: BTreeMap<u64, Key>,
    gone: BTreeSet<u64>,
    /// Runs of `RUN` changes that are over, until one of their rows changes again. What no longer stands in one stands in a later one.
    runs: HashMap<u64, Arc<Run>>,
    /// What changed since the last of them, by how much of it was seen, until the next change: most agents have seen the same.
    tails: HashMap<u64, Arc<Run>>,
    name: Name,
    /// Names agents were told, and the last change of each, oldest first.
    names: VecDeque<(Name, u64)>,
}

impl Tables {
    fn of(view: &View, last: u64) -> Self {
        let name = Name { epoch: view.epoch(), ..Name::default() };
        let mut tables = Self { last, floor: last, name, ..Self::default() };
        for object in TABLES.iter().flat_map(|table| view.list(table, None)) {
            tables.set(object.key.clone(), Some(Shown::of_table(object)));
        }
        // Who has seen less than all of this begins anew.
        tables.floor = tables.last;
        tables
    }

    fn set(&mut self, key: Key, shown: Option<Shown>) {
        self.last += 1;
        if let Some((_, Some(before))) = self.rows.get(&key) {
            self.name.take(Name::of_row(before));
        }
        if let Some(shown) = &shown {
            self.name.add(Name::of_row(shown));
        }
        let row = (self.last, shown.map(Arc::new));
        if row.1.is_none() {
            self.gone.insert(self.last);
        }
        if let Some((before, _)) = self.rows.insert(key.clone(), row) {
            self.order.remove(&before);
            self.gone.remove(&before);
            self.runs.remove(&(before / RUN));
        }
        self.order.insert(self.last, key);
        self.tails.clear();
        while self.gone.len() > REMEMBERED
            && let Some(oldest) = self.gone.pop_first()
        {
            self.floor = oldest;
            if let Some(key) = self.order.remove(&oldest) {
                self.rows.remove(&key);
            }
        }
    }

    /// Whether a row would change for agents of other nodes.
    fn differs(&self, shown: &Shown) -> bool {
        let known = self.rows.get(&shown.key).and_then(|(_, known)| known.as_ref());
        known.is_none_or(|known| known.uid != shown.uid || known.json != shown.json)
    }

    /// The name of what is there now, which an agent will be told.
    fn told(&mut self) -> Name {
        if self.names.back().is_none_or(|(_, last)| *last != self.last) {
            self.names.push_back((self.name, self.last));
            if self.names.len() > NAMES {
                self.names.pop_front();
            }
        }
        self.name
    }

    /// The last change that an agent has seen which was told this name.
    fn seen_by(&self, name: &[u8]) -> Option<u64> {
        if name == self.name.bytes() {
            return Some(self.last);
        }
        self.names.iter().rev().find(|(known, _)| name == known.bytes()).map(|(_, last)| *last)
    }

    /// All changes after one, in runs. Some of the changes before it may come again.
    fn since(&mut self, seen: u64) -> Vec<Arc<Run>> {
        let first_open = (self.last + 1) / RUN;
        let (order, rows) = (&self.order, &self.rows);
        let run = |from: u64, to: u64| {
            let changed = order.range(from..to).map(|(_, key)| key);
            Run::of(changed.filter_map(|key| Some((key.clone(), rows.get(key)?.1.clone()))).collect())
        };
        let mut found: Vec<Arc<Run>> = Vec::new();
        for number in (seen + 1) / RUN..first_open {
            let known = self.runs.entry(number).or_insert_with(|| run(number * RUN, (number + 1) * RUN));
            found.push(known.clone());
        }
        let open = (seen + 1).max(first_open * RUN);
        found.push(self.tails.entry(open).or_insert_with(|| run(open, u64::MAX)).clone());
        found.retain(|run| !run.rows.is_empty());
        found
    }

    /// Whether a row has changed after a change.
    fn has_changed(&self, key: &Key, seen: u64) -> bool {
        self.rows.get(key).is_some_and(|(at, _)| *at > seen)
    }
}

/// One session's place on the board.
#[derive(Debug)]
struct Seat {
    node: String,
    wake: Arc<Notify>,
    /// Something of its own may have changed: its pods, what they read, its Node.
    own: bool,
    /// The last change of a table it was told of; `None`: it has to be told everything.
    seen: Option<u64>,
    /// The ConfigMaps and Secrets its pods name, whether or not they are there.
    reads: HashSet<Key>,
    /// What it held when it came, until it was told something.
    held: Option<Generation>,
}

/// What an agent has to be told.
pub(super) struct News {
    /// As of when.
    pub view: View,
    /// Whether the agent begins: the rows are all there are.
    pub whole: bool,
    /// What changed in the tables.
    pub rows: Vec<Arc<Run>>,
    /// Whether its own Node is among the rows.
    pub own_row: bool,
    /// Whether its own objects have to be looked at.
    pub own: bool,
    /// What the agent holds beside the tables, when this is the first it is told and it need not begin anew.
    pub held: Option<Generation>,
    /// What the tables are called after this.
    pub name: Name,
}

/// All sessions of a server and the state they are told.
#[derive(Debug, Default)]
pub(super) struct Board {
    view: Option<View>,
    tables: Tables,
    seats: BTreeMap<u64, Seat>,
    /// A node that reconnects has two sessions for a moment.
    by_node: HashMap<String, Vec<u64>>,
    nodes_differ: bool,
    /// Whether a task looks at the changes.
    pub looked_after: bool,
}

impl Board {
    /// Takes a session in, at the newest state.
    pub(super) fn attach(&mut self, memory: &dyn Memory, session: u64, node: &str, held: &Held) -> Arc<Notify> {
        self.advance(memory);
        // One that has heard more than this server knows begins anew here, and refuses what is older.
        let now = self.view.as_ref().map(View::generation).unwrap_or_default();
        let goes_on = held.have.epoch == now.epoch && held.have.revision <= now.revision && !held.tables.is_empty();
        let seen = goes_on.then(|| self.tables.seen_by(&held.tables)).flatten();
        let wake = Arc::new(Notify::new());
        let mut reads = HashSet::new();
        for pod in self.view.iter().flat_map(|view| view.pods_on(node)) {
            reads.extend(reads_of(pod));
        }
        let held = seen.map(|_| held.have);
        let seat = Seat { node: node.to_owned(), wake: wake.clone(), own: true, seen, reads, held };
        self.seats.insert(session, seat);
        self.by_node.entry(node.to_owned()).or_default().push(session);
        wake
    }

    /// The session is over.
    pub(super) fn detach(&mut self, session: u64) {
        let Some(seat) = self.seats.remove(&session) else { return };
        if let Some(sessions) = self.by_node.get_mut(&seat.node) {
            sessions.retain(|other| *other != session);
            if sessions.is_empty() {
                self.by_node.remove(&seat.node);
            }
        }
    }

    /// How many agents there are.
    pub(super) fn agents(&self) -> usize {
        self.seats.len()
    }

    /// Looks at everything that changed since the last look, once for all agents. Wakes those it concerns; when
    /// other nodes look different to all, the caller decides when they are woken.
    pub(super) fn advance(&mut self, memory: &dyn Memory) {
        let view = memory.view();
        let Some(before) = self.view.as_ref().map(View::generation) else {
            self.begin_anew(view);
            return;
        };
        if before == view.generation() {
            return;
        }
        let events = (before.epoch == view.epoch()).then(|| memory.events_after(before.revision, None)).flatten();
        let Some(events) = events else {
            self.begin_anew(view);
            return;
        };
        // History may be ahead of the view: what is newer comes again with the next one.
        let (mut nodes, mut tables, mut read) = (false, false, HashSet::new());
        for event in events.iter().take_while(|event| event.revision <= view.revision()) {
            match &*event.object.key.resource {
                "pods" => self.pod(event),
                "configmaps" | "secrets" => {
                    read.insert(&event.object.key);
                }
                NODES => nodes |= self.row(event),
                resource if TABLES.contains(&resource) => tables |= self.row(event),
                _ => {}
            }
        }
        for seat in self.seats.values_mut() {
            let concerned = !read.is_empty() && read.iter().any(|key| seat.reads.contains(*key));
            seat.own |= concerned;
            if tables || concerned {
                seat.wake.notify_one();
            }
        }
        self.view = Some(view);
        self.nodes_differ |= nodes;
    }

    /// Everybody is told everything: the history does not reach back, or there is a new one.
    fn begin_anew(&mut self, view: View) {
        self.tables = Tables::of(&view, self.tables.last);
        for seat in self.seats.values_mut() {
            seat.own = true;
            seat.seen = None;
            seat.reads = view.pods_on(&seat.node).flat_map(|pod| reads_of(pod)).collect();
            seat.wake.notify_one();
        }
        self.view = Some(view);
    }

    /// Whether nodes look different since everybody was last woken.
    pub(super) fn nodes_differ(&self) -> bool {
        self.nodes_differ
    }

    /// Wakes everybody.
    pub(super) fn wake_all(&mut self) {
        self.nodes_differ = false;
        for seat in self.seats.values() {
            seat.wake.notify_one();
        }
    }

    fn pod(&mut self, event: &Event) {
        let there = event.kind != EventKind::Deleted;
        for (pod, is_now) in [(Some(&event.object), there), (event.prior.as_ref(), false)] {
            let Some(pod) = pod else { continue };
            let tree = pod.peek();
            let Some(node) = tree["spec"]["nodeName"].as_str() else { continue };
            for session in self.by_node.get(node).into_iter().flatten() {
                let Some(seat) = self.seats.get_mut(session) else { continue };
                seat.own = true;
                if is_now {
                    seat.reads.extend(reads_of(pod));
                }
                seat.wake.notify_one();
            }
        }
    }

    /// A row of a table; whether it looks different now.
    fn row(&mut self, event: &Event) -> bool {
        let key = &event.object.key;
        if *key.resource == *NODES {
            for session in self.by_node.get(&*key.name).into_iter().flatten() {
                let Some(seat) = self.seats.get_mut(session) else { continue };
                seat.own = true;
                seat.wake.notify_one();
            }
        }
        if event.kind == EventKind::Deleted {
            self.tables.set(key.clone(), None);
            return true;
        }
        let shown = Shown::of_table(&event.object);
        let differs = self.tables.differs(&shown);
        if differs {
            self.tables.set(key.clone(), Some(shown));
        }
        differs
    }

    /// What a session has to be told now; `None` when it is not one of ours any more.
    pub(super) fn news(&mut self, session: u64) -> Option<News> {
        let seat = self.seats.get_mut(&session)?;
        let view = self.view.clone()?;
        let seen = seat.seen.filter(|seen| *seen >= self.tables.floor);
        let held = seat.held.take().filter(|_| seen.is_some());
        seat.seen = Some(self.tables.last);
        let (whole, from) = (seen.is_none(), seen.unwrap_or(0));
        // All of a run comes again when it is over.
        let own_row = self.tables.has_changed(&Key::new(NODES, "", seat.node.as_str()), from / RUN * RUN);
        let own = std::mem::take(&mut seat.own) || whole || own_row;
        let rows = self.tables.since(from);
        Some(News { view, whole, rows, own_row, own, held, name: self.tables.told() })
    }

    /// What a session's pods read, as it was worked out from its last news; newer changes stand above that.
    pub(super) fn reads(&mut self, session: u64, reads: HashSet<Key>) {
        if let Some(seat) = self.seats.get_mut(&session).filter(|seat| !seat.own) {
            seat.reads = reads;
        }
    }
}

/// The ConfigMaps and Secrets a pod names. Its tree is not kept for this: a server would keep one for every pod of its agents.
pub(super) fn reads_of(pod: &Object) -> impl Iterator<Item = Key> {
    let namespace = pod.key.namespace.clone();
    references(&pod.peek()).into_iter().map(move |(resource, name)| Key::new(resource, namespace.clone(), name))
}
