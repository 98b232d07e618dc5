//! Clients of a cluster that go on while it suffers: on each machine a writer, a reader and a watcher of the server there, and
//! outside some that turn from server to server. All they were told is kept and can be checked.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

use crate::history::{Ack, Change, Followed, complaints};
use crate::linear::{Entry, Held, History, Op, Told, check};
use crate::site::{Answered, Api, Seen, Site, Where};

/// Objects they work on.
const KEYS: usize = 6;
/// How long a client waits that keeps to its server: as long as the server itself looks for a leader, and less than users do.
const PATIENT: Duration = Duration::from_secs(3);
/// And one that asks another server then.
const HASTY: Duration = Duration::from_millis(700);
/// Between two requests of a client: the machine is shared with those it asks.
const PAUSE: Duration = Duration::from_millis(6);
/// Clients that only stand for what a refusal says of an object have numbers from here on.
const REFUSED: usize = 1000;
/// How long the last change may take to reach every watcher.
const LAST_WITHIN: Duration = Duration::from_secs(20);

/// Machines with servers, and the addresses of their API.
type Routes = Vec<(usize, SocketAddr)>;

/// What all of them share.
struct Shared {
    name: String,
    history: History,
    acks: Mutex<Vec<Ack>>,
    odd: Mutex<BTreeMap<String, usize>>,
    reads: AtomicUsize,
    stop: AtomicBool,
    /// The revision that every watcher must reach; 0 while nobody knows.
    last: AtomicU64,
}

impl Shared {
    fn key(&self, number: usize) -> String {
        format!("{}-k{number}", self.name)
    }

    fn acks(&self) -> MutexGuard<'_, Vec<Ack>> {
        self.acks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an answer that was none.
    fn odd(&self, server: usize, answered: &Answered) {
        let words = match answered {
            Answered::Acknowledged(_) => return,
            Answered::Refused { code: 404 | 409, .. } => return,
            Answered::Refused { code, message } => format!("m{server} refused {code}: {message}"),
            Answered::Unknown(why) => format!("m{server} unknown: {why}"),
        };
        *self.odd.lock().unwrap_or_else(PoisonError::into_inner).entry(words).or_default() += 1;
    }
}

/// Clients at work.
pub struct Crew {
    shared: Arc<Shared>,
    place: fn(usize) -> Where,
    hands: Vec<JoinHandle<()>>,
    watchers: Vec<JoinHandle<Followed>>,
}

/// What a crew has seen in the end.
pub struct Seal {
    /// Every acknowledged write.
    pub acks: Vec<Ack>,
    /// Reads that were answered.
    pub reads: usize,
    /// Changes that watchers saw, and how often they connected, each by name.
    pub watches: Vec<(String, usize, usize)>,
    /// Answers that say nothing of the objects, and how many of each.
    pub odd: BTreeMap<String, usize>,
    /// What must not be; empty when all is well.
    pub complaints: Vec<String>,
    /// Changes that were refused as if their object were not there, and it was: a server looked at what it knew, and was behind.
    pub stale: Vec<String>,
}

impl Crew {
    /// Sends clients to the servers on these machines. Their objects begin with `name`, which nobody has used before.
    ///
    /// # Panics
    /// The first server does not answer.
    #[must_use]
    pub fn start(site: &Site, servers: &[usize], name: &str, seed: u64) -> Self {
        Self::of(site, servers, name, seed, Where::At)
    }

    /// The same, none of them on a machine: they go on asking when it loses its power.
    ///
    /// # Panics
    /// As `start`.
    #[must_use]
    pub fn outside(site: &Site, servers: &[usize], name: &str, seed: u64) -> Self {
        Self::of(site, servers, name, seed, |_| Where::Outside)
    }

    /// With a place for those that keep to one server.
    fn of(site: &Site, servers: &[usize], name: &str, seed: u64, place: fn(usize) -> Where) -> Self {
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            history: History::new(),
            acks: Mutex::default(),
            odd: Mutex::default(),
            reads: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            last: AtomicU64::new(0),
        });
        let listed = site.api(Where::Outside, servers[0]).list();
        let begin = listed.object().and_then(revision).unwrap_or_else(|| panic!("nobody answers: {listed:?}"));
        let mut crew = Self { shared, place, hands: Vec::new(), watchers: Vec::new() };
        let routes: Routes = servers.iter().map(|server| (*server, site.api_address(*server))).collect();
        let mut rng = StdRng::seed_from_u64(seed);
        crew.send_writers(site, &routes, &mut rng);
        crew.send_readers(site, &routes, &mut rng);
        crew.send_watchers(site, &routes, &mut rng, begin);
        crew
    }

    fn hand(&self, number: usize, api: Api, routes: Routes, rng: &mut StdRng) -> Hand {
        Hand { shared: self.shared.clone(), number, api, routes, at: 0, rng: fork(rng) }
    }

    /// One for each server, and two that turn between two of them.
    fn send_writers(&mut self, site: &Site, routes: &Routes, rng: &mut StdRng) {
        let place = self.place;
        let loyal = routes.iter().map(|route| (place(route.0), PATIENT, vec![*route]));
        let pair = |number: usize| vec![routes[number], routes[(number + 1) % routes.len()]];
        let turning = (0..routes.len().min(2)).map(|number| (Where::Outside, HASTY, pair(number)));
        for (number, (from, within, routes)) in loyal.chain(turning).enumerate() {
            let api = site.api(from, routes[0].0).within(within);
            let keys = (0..KEYS).map(|key| (self.shared.key(key), Known::Unsure)).collect();
            let hand = self.hand(number, api, routes, rng);
            let writer = Writer { hand, keys, next: number as u64 * 1_000_000 };
            self.hands.push(std::thread::spawn(move || writer.run()));
        }
    }

    /// One for each server, and one that compares: what one server has told it, the next must know.
    fn send_readers(&mut self, site: &Site, routes: &Routes, rng: &mut StdRng) {
        for (number, route) in routes.iter().enumerate() {
            let api = site.api((self.place)(route.0), route.0).within(PATIENT);
            let hand = self.hand(100 + number, api, vec![*route], rng);
            self.hands.push(std::thread::spawn(move || hand.read()));
        }
        let outside = |route: &(usize, SocketAddr)| site.api(Where::Outside, route.0).within(HASTY);
        let all = routes.iter().map(|route| self.hand(200, outside(route), vec![*route], rng)).collect();
        self.hands.push(std::thread::spawn(move || read_in_turn(all)));
    }

    /// One for each server, and one that goes from server to server.
    fn send_watchers(&mut self, site: &Site, routes: &Routes, rng: &mut StdRng, last: u64) {
        let place = self.place;
        let loyal = routes.iter().map(|route| (format!("m{}", route.0), place(route.0), vec![*route]));
        for (name, from, routes) in loyal.chain([("all".to_owned(), Where::Outside, routes.clone())]) {
            let api = site.api(from, routes[0].0).within(HASTY);
            let followed = Followed { name: format!("watch of {name}"), ..Followed::default() };
            let watcher = Watcher { shared: self.shared.clone(), api, routes, rng: fork(rng), last, followed };
            self.watchers.push(std::thread::spawn(move || watcher.run()));
        }
    }

    /// Writes acknowledged so far.
    #[must_use]
    pub fn acks(&self) -> Vec<Ack> {
        self.shared.acks().clone()
    }

    /// Whether each of these servers has acknowledged so many writes that were asked for after a moment.
    #[must_use]
    pub fn served(&self, servers: &[usize], since: Instant, count: usize) -> bool {
        let acks = self.shared.acks();
        let served = |server| acks.iter().filter(|ack| ack.server == server && ack.asked >= since).count() >= count;
        servers.iter().all(|server| served(*server))
    }

    /// Ends them, after a last change that all watchers must see, and checks everything. The servers must be well.
    ///
    /// # Panics
    /// A client panicked, or the last change is not taken.
    #[must_use]
    pub fn end(mut self, site: &Site, servers: &[usize]) -> Seal {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.hands.drain(..).for_each(|hand| hand.join().expect("a client"));
        let shared = self.shared.clone();
        let mut lost = Vec::new();
        // What each server reads in the end is part of the history.
        for server in servers {
            let mut api = site.api(Where::Outside, *server);
            for key in (0..KEYS).map(|number| shared.key(number)) {
                let call = shared.history.ask(300 + server, &key, Op::Read);
                let answered = api.get(&key);
                if answered.of_read() == Told::Failed {
                    lost.push(format!("m{server} does not read {key} in the end: {answered:?}"));
                }
                shared.history.tell(call, answered.of_read());
            }
        }
        let last = site.api(Where::Outside, servers[0]).create(&format!("{}-last", shared.name), "0");
        let last = last.object().and_then(revision).unwrap_or_else(|| panic!("the last change is refused: {last:?}"));
        shared.last.store(last, Ordering::Relaxed);
        let followed: Vec<Followed> =
            self.watchers.drain(..).map(|watcher| watcher.join().expect("a watcher")).collect();
        let acks = shared.acks().clone();
        let entries = shared.history.entries();
        let mut complaints = complaints(&followed, &acks, &entries, last);
        complaints.extend(lost);
        let mut stale = Vec::new();
        for (key, all) in &entries {
            let told: Vec<Entry> = all.iter().filter(|entry| entry.client < REFUSED).copied().collect();
            match check(key, &told) {
                Err(violation) => complaints.push(violation.to_string()),
                Ok(()) => stale.extend(check(key, all).err().map(|violation| violation.to_string())),
            }
        }
        Seal {
            acks,
            reads: shared.reads.load(Ordering::Relaxed),
            watches: followed.iter().map(|one| (one.name.clone(), one.changes.len(), one.connections)).collect(),
            odd: shared.odd.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            complaints,
            stale,
        }
    }
}

impl Drop for Crew {
    /// A test that failed does not leave them behind.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.last.store(1, Ordering::Relaxed);
        for hand in self.hands.drain(..) {
            let _ = hand.join();
        }
        for watcher in self.watchers.drain(..) {
            let _ = watcher.join();
        }
    }
}

fn fork(rng: &mut StdRng) -> StdRng {
    StdRng::seed_from_u64(rng.random())
}

fn revision(object: &Value) -> Option<u64> {
    object["metadata"]["resourceVersion"].as_str()?.parse().ok()
}

/// One client that asks and waits for the answer.
struct Hand {
    shared: Arc<Shared>,
    number: usize,
    api: Api,
    /// Whom it asks: machines with their addresses, and who is next.
    routes: Routes,
    at: usize,
    rng: StdRng,
}

impl Hand {
    fn server(&self) -> usize {
        self.routes[self.at].0
    }

    /// Asks another from now on, when it knows one.
    fn turn(&mut self) {
        if self.routes.len() > 1 {
            self.at = (self.at + 1) % self.routes.len();
            self.api.turn_to(self.routes[self.at].1);
        }
    }

    fn goes_on(&self) -> bool {
        std::thread::sleep(PAUSE); // poll
        !self.shared.stop.load(Ordering::Relaxed)
    }

    fn get(&mut self, key: &str) -> Answered {
        let call = self.shared.history.ask(self.number, key, Op::Read);
        let answered = self.api.get(key);
        self.shared.history.tell(call, answered.of_read());
        self.count(&answered);
        answered
    }

    /// All at once; each counts as a read.
    fn list(&mut self) {
        let keys: Vec<String> = (0..KEYS).map(|number| self.shared.key(number)).collect();
        let calls: Vec<_> = keys.iter().map(|key| self.shared.history.ask(self.number, key, Op::Read)).collect();
        let answered = self.api.list();
        self.count(&answered);
        for (key, call) in keys.iter().zip(calls) {
            let told = answered.object().map_or(Told::Failed, |list| {
                let items = list["items"].as_array();
                let item = items.into_iter().flatten().find(|item| item["metadata"]["name"] == **key);
                Told::Saw(item.and_then(held))
            });
            self.shared.history.tell(call, told);
        }
    }

    fn count(&self, answered: &Answered) {
        self.shared.odd(self.server(), answered);
        if answered.of_read() != Told::Failed {
            self.shared.reads.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn read_once(&mut self) {
        if self.rng.random_ratio(1, 10) {
            self.list();
        } else {
            let key = self.shared.key(self.rng.random_range(0..KEYS));
            let _ = self.get(&key);
        }
    }

    fn read(mut self) {
        while self.goes_on() {
            self.read_once();
        }
    }
}

fn read_in_turn(mut hands: Vec<Hand>) {
    loop {
        for hand in &mut hands {
            if !hand.goes_on() {
                return;
            }
            hand.read_once();
        }
    }
}

fn held(object: &Value) -> Held {
    object["data"]["value"].as_str().and_then(|value| value.parse().ok())
}

/// What a writer knows of an object.
#[derive(Debug, Clone, Copy)]
enum Known {
    Unsure,
    Absent,
    Is { revision: u64, value: u64 },
}

/// A client that writes.
struct Writer {
    hand: Hand,
    keys: BTreeMap<String, Known>,
    /// No value is written twice.
    next: u64,
}

impl Writer {
    fn run(mut self) {
        while self.hand.goes_on() {
            let key = self.hand.shared.key(self.hand.rng.random_range(0..KEYS));
            let known = self.keys.get(&key).copied().unwrap_or(Known::Unsure);
            let (answered, now) = match known {
                Known::Unsure => {
                    let answered = self.hand.get(&key);
                    let now = known_of(&answered);
                    (answered, now)
                }
                known => self.write(&key, known),
            };
            let failed = !matches!(answered, Answered::Acknowledged(_) | Answered::Refused { code: 404 | 409, .. });
            self.keys.insert(key, now);
            if failed || self.hand.rng.random_ratio(1, 20) {
                self.hand.turn();
            }
        }
    }

    fn write(&mut self, key: &str, known: Known) -> (Answered, Known) {
        self.next += 1;
        let (value, text) = (Some(self.next), self.next.to_string());
        let chance = self.hand.rng.random_range(0..100);
        let (op, version) = match known {
            Known::Unsure | Known::Absent => (Op::Swap { from: None, to: value }, None),
            Known::Is { .. } if chance < 6 => (Op::Write(None), None),
            Known::Is { .. } if chance < 18 => (Op::Write(value), None),
            Known::Is { revision, value: from } => {
                (Op::Swap { from: Some(from), to: value }, Some(revision.to_string()))
            }
        };
        let hand = &mut self.hand;
        // Who says that an object is not there has read it.
        let reading = hand.shared.history.ask(REFUSED + hand.number, key, Op::Read);
        let call = hand.shared.history.ask(hand.number, key, op);
        let asked = Instant::now();
        let answered = match op {
            Op::Swap { from: None, .. } => hand.api.create(key, &text),
            Op::Write(None) => hand.api.delete(key),
            _ => hand.api.update(key, &text, version.as_deref()),
        };
        let told = Instant::now();
        let absent = answered.code() == Some(404);
        hand.shared.history.tell(reading, if absent { Told::Saw(None) } else { Told::Failed });
        hand.shared.history.tell(call, answered.of_write());
        hand.shared.odd(hand.server(), &answered);
        let Some(object) = answered.object() else {
            return (answered, if absent { Known::Absent } else { Known::Unsure });
        };
        let deleted = op == Op::Write(None);
        let revision = revision(object).filter(|_| !deleted);
        let value = value.filter(|_| !deleted);
        hand.shared.acks().push(Ack { key: key.to_owned(), value, revision, server: hand.server(), asked, told });
        let now = match (revision, value) {
            (Some(revision), Some(value)) => Known::Is { revision, value },
            _ => Known::Absent,
        };
        (answered, now)
    }
}

fn known_of(answered: &Answered) -> Known {
    match (answered.of_read(), answered.object().and_then(revision)) {
        (Told::Saw(Some(value)), Some(revision)) => Known::Is { revision, value },
        (Told::Saw(None), _) => Known::Absent,
        _ => Known::Unsure,
    }
}

/// A client that watches, and begins again after the last it saw.
struct Watcher {
    shared: Arc<Shared>,
    api: Api,
    routes: Routes,
    rng: StdRng,
    last: u64,
    followed: Followed,
}

impl Watcher {
    fn run(mut self) -> Followed {
        let mut deadline: Option<Instant> = None;
        let mut turns = 0;
        loop {
            let place = turns % self.routes.len();
            turns += 1;
            self.api.turn_to(self.routes[place].1);
            let Ok(mut watch) = self.api.watch(&self.last.to_string()) else {
                if self.is_over(&mut deadline) {
                    return self.followed;
                }
                std::thread::sleep(PAUSE); // poll
                continue;
            };
            self.followed.connections += 1;
            // Who follows one server begins again now and then, who follows all moves on.
            let stay = Duration::from_millis(if self.routes.len() > 1 { 400 } else { 2500 });
            let until = Instant::now() + stay.mul_f64(self.rng.random_range(0.5..1.5));
            while Instant::now() < until {
                match watch.next(Duration::from_millis(50)) {
                    Seen::Event(what, object) => self.take(what, &object),
                    Seen::Nothing => {}
                    Seen::Ended(_) => break,
                }
                if self.is_over(&mut deadline) {
                    return self.followed;
                }
            }
        }
    }

    /// Whether all has been seen, or the time for it is over: then what is missing is told by who compares.
    fn is_over(&self, deadline: &mut Option<Instant>) -> bool {
        match self.shared.last.load(Ordering::Relaxed) {
            0 => false,
            last if self.last >= last => true,
            _ => Instant::now() > *deadline.get_or_insert_with(|| Instant::now() + LAST_WITHIN),
        }
    }

    fn take(&mut self, what: String, object: &Value) {
        let Some(revision) = revision(object).filter(|_| what != "ERROR") else {
            let complaint = format!("after {}: {what} {object}", self.last);
            if self.followed.complaints.last() != Some(&complaint) {
                self.followed.complaints.push(complaint);
            }
            return;
        };
        self.last = revision;
        let key = object["metadata"]["name"].as_str().unwrap_or_default();
        let ours = (0..KEYS).any(|number| self.shared.key(number) == key);
        if what == "BOOKMARK" || !ours {
            return;
        }
        let value = held(object).filter(|_| what != "DELETED");
        self.followed.changes.push(Change { revision, what, key: key.to_owned(), value });
    }
}
