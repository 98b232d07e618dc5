//! Whether what clients saw could have happened one after the other: linearizability of registers, each key by itself.
//!
//! The search is that of Wing and Gong with Lowe's memory of (what is done, state) pairs ("Testing for linearizability",
//! 2016). Linearizability is local (Herlihy and Wing, 1990): a history is linearizable if it is for every key.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A value of a register; none when the key is absent. Writes should be unique, or stale reads pass unnoticed.
pub type Held = Option<u64>;

/// What a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Whatever was there before, now it is this; none deletes.
    Write(Held),
    /// From exactly this to that; a create is from none.
    Swap {
        /// What must be there.
        from: Held,
        /// What is there then.
        to: Held,
    },
    /// What is there.
    Read,
}

/// What the client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// A write or swap was done.
    Done,
    /// A read saw this.
    Saw(Held),
    /// Surely not done; says nothing more.
    Failed,
    /// Nobody knows: it may have been done, or be done at any time later.
    Unknown,
}

/// One operation.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Which client.
    pub client: usize,
    /// What it asked for.
    pub op: Op,
    /// What it was told; none while it waits.
    pub told: Option<Told>,
    /// When it asked, since the history began.
    pub asked: Duration,
    /// When it was told.
    pub returned: Duration,
}

/// An operation that has begun.
#[derive(Debug)]
#[must_use = "an operation that is not finished counts as unknown"]
pub struct Call {
    key: String,
    index: usize,
}

/// Collects what clients do; threads share it.
#[derive(Debug)]
pub struct History {
    begun: Instant,
    keys: Mutex<BTreeMap<String, Vec<Entry>>>,
}

impl Default for History {
    fn default() -> Self {
        Self::new()
    }
}

impl History {
    /// Empty; every key is absent at first.
    #[must_use]
    pub fn new() -> Self {
        Self { begun: Instant::now(), keys: Mutex::default() }
    }

    /// Right before a request is sent.
    pub fn ask(&self, client: usize, key: &str, op: Op) -> Call {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = keys.entry(key.to_owned()).or_default();
        // The time is taken under the lock: never later than the request.
        let asked = self.begun.elapsed();
        entries.push(Entry { client, op, told: None, asked, returned: Duration::MAX });
        Call { key: key.to_owned(), index: entries.len() - 1 }
    }

    /// Right after its answer came.
    pub fn tell(&self, call: Call, told: Told) {
        let returned = self.begun.elapsed();
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = keys.get_mut(&call.key).and_then(|entries| entries.get_mut(call.index)) {
            entry.told = Some(told);
            entry.returned = returned;
        }
    }

    /// A copy of what is there.
    #[must_use]
    pub fn entries(&self) -> BTreeMap<String, Vec<Entry>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many operations were told each of: done or seen, failed, unknown (those that still wait included).
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let mut counts = (0, 0, 0);
        for entry in keys.values().flatten() {
            match entry.told {
                Some(Told::Done | Told::Saw(_)) => counts.0 += 1,
                Some(Told::Failed) => counts.1 += 1,
                Some(Told::Unknown) | None => counts.2 += 1,
            }
        }
        counts
    }

    /// Checks every key.
    ///
    /// # Errors
    /// The first key that no order explains, or whose search took too long.
    pub fn check(&self) -> Result<(), Violation> {
        self.entries().iter().try_for_each(|(key, entries)| check(key, entries))
    }
}

/// A key whose history cannot be explained.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The key.
    pub key: String,
    /// Whether the search only gave up.
    pub gave_up: bool,
    /// What had been explained before, then the operations of which none can come next, with times.
    pub story: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.gave_up { "took too long to check" } else { "is not linearizable" };
        write!(f, "the history of {} {what}\n{}", self.key, self.story)
    }
}

impl std::error::Error for Violation {}

/// Steps of the search before it gives up: some seconds.
const STEPS: u64 = 20_000_000;

/// Words of memory the search may take before it gives up: 256 MB.
const WORDS: usize = 32 << 20;

/// Checks the history of one key; it is absent at first.
///
/// # Errors
/// No order explains it, or the search took too long.
pub fn check(key: &str, entries: &[Entry]) -> Result<(), Violation> {
    let entries = relevant(entries);
    Search::new(&entries).run().map_err(|(gave_up, story)| Violation { key: key.to_owned(), gave_up, story })
}

/// An operation of unknown fate whose value nobody saw may be left out: where it was done, nobody noticed before the next.
fn relevant(entries: &[Entry]) -> Vec<Entry> {
    let mut seen = BTreeSet::new();
    for entry in entries {
        match (entry.told, entry.op) {
            (Some(Told::Saw(value)), _) => _ = seen.insert(value),
            // It may have been done, and then it needed this.
            (Some(Told::Done | Told::Unknown) | None, Op::Swap { from, .. }) => _ = seen.insert(from),
            _ => {}
        }
    }
    let mut kept: Vec<Entry> = entries
        .iter()
        .filter(|entry| match (entry.told, entry.op) {
            (Some(Told::Failed), _) => false,
            (Some(Told::Done | Told::Saw(_)), _) => true,
            (Some(Told::Unknown) | None, Op::Read) => false,
            (Some(Told::Unknown) | None, Op::Write(value) | Op::Swap { to: value, .. }) => seen.contains(&value),
        })
        .copied()
        .collect();
    kept.sort_by_key(|entry| entry.asked);
    kept
}

fn settled(entry: &Entry) -> bool {
    matches!(entry.told, Some(Told::Done | Told::Saw(_)))
}

/// The state after an operation; none where it cannot be done.
fn step(state: Held, entry: &Entry) -> Option<Held> {
    match (entry.op, entry.told) {
        (Op::Write(value), _) => Some(value),
        (Op::Swap { from, to }, _) => (state == from).then_some(to),
        (Op::Read, Some(Told::Saw(value))) => (state == value).then_some(state),
        (Op::Read, _) => Some(state),
    }
}

/// A place in the list of times: an operation begins or returns there.
#[derive(Clone, Copy)]
struct Node {
    entry: usize,
    returns: bool,
    before: usize,
    after: usize,
}

/// The head of the list; the nodes follow.
const HEAD: usize = 0;

struct Search<'a> {
    entries: &'a [Entry],
    nodes: Vec<Node>,
    /// Entry -> its node of return; 0 for those without.
    returns: Vec<usize>,
    done: Vec<u64>,
    known: HashSet<(Vec<u64>, Held)>,
}

impl<'a> Search<'a> {
    fn new(entries: &'a [Entry]) -> Self {
        let mut times = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            times.push((entry.asked, false, index));
            if settled(entry) {
                times.push((entry.returned, true, index));
            }
        }
        // What begins at the moment another returns counts as beside it.
        times.sort_unstable();
        let mut nodes = vec![Node { entry: usize::MAX, returns: false, before: 0, after: 0 }];
        let mut returns = vec![0; entries.len()];
        for (_, is_return, entry) in times {
            let place = nodes.len();
            nodes[place - 1].after = place;
            nodes.push(Node { entry, returns: is_return, before: place - 1, after: 0 });
            if is_return {
                returns[entry] = place;
            }
        }
        let done = vec![0; entries.len().div_ceil(64)];
        Self { entries, nodes, returns, done, known: HashSet::new() }
    }

    fn run(mut self) -> Result<(), (bool, String)> {
        let mut left = self.returns.iter().filter(|place| **place != 0).count();
        let mut state: Held = None;
        // Nodes of operations in the order in which they were done, with the state before each.
        let mut order: Vec<(usize, Held)> = Vec::new();
        let mut best: Vec<usize> = Vec::new();
        let mut stuck = HEAD;
        let mut at = self.nodes[HEAD].after;
        for _ in 0..STEPS {
            if left == 0 {
                return Ok(());
            }
            if self.known.len() * self.done.len() > WORDS {
                break;
            }
            let node = self.nodes[at];
            if at != HEAD && !node.returns {
                let next = step(state, &self.entries[node.entry]);
                if let Some(next) = next.filter(|next| self.is_new(node.entry, *next)) {
                    order.push((at, state));
                    state = next;
                    self.take(at);
                    left -= usize::from(self.returns[node.entry] != 0);
                    at = self.nodes[HEAD].after;
                } else {
                    at = node.after;
                }
                continue;
            }
            // Somebody has been told before anything else could be done: another order, if there is one.
            if order.len() >= best.len() {
                best = order.iter().map(|(place, _)| self.nodes[*place].entry).collect();
                stuck = at;
            }
            let Some((place, before)) = order.pop() else {
                return Err((false, self.story(&best, stuck)));
            };
            let entry = self.nodes[place].entry;
            self.put_back(place);
            left += usize::from(self.returns[entry] != 0);
            state = before;
            at = self.nodes[place].after;
        }
        Err((true, self.story(&best, stuck)))
    }

    /// Whether this entry, done now, leads where the search has not been.
    fn is_new(&mut self, entry: usize, state: Held) -> bool {
        let mut done = self.done.clone();
        done[entry / 64] |= 1 << (entry % 64);
        self.known.insert((done, state))
    }

    fn take(&mut self, place: usize) {
        let entry = self.nodes[place].entry;
        self.done[entry / 64] |= 1 << (entry % 64);
        self.unlink(place);
        if self.returns[entry] != 0 {
            self.unlink(self.returns[entry]);
        }
    }

    fn put_back(&mut self, place: usize) {
        let entry = self.nodes[place].entry;
        self.done[entry / 64] &= !(1 << (entry % 64));
        // In the opposite order of `take`: then every neighbour is in its place again.
        if self.returns[entry] != 0 {
            self.link(self.returns[entry]);
        }
        self.link(place);
    }

    fn unlink(&mut self, place: usize) {
        let Node { before, after, .. } = self.nodes[place];
        self.nodes[before].after = after;
        self.nodes[after].before = before;
    }

    fn link(&mut self, place: usize) {
        let Node { before, after, .. } = self.nodes[place];
        self.nodes[before].after = place;
        self.nodes[after].before = place;
    }

    /// The last that could be explained, and what begins before the return that cannot.
    fn story(&self, best: &[usize], stuck: usize) -> String {
        let mut lines = Vec::new();
        for entry in &best[best.len().saturating_sub(5)..] {
            lines.push(format!("  then {}", line(&self.entries[*entry])));
        }
        let blocked = self.nodes[stuck].entry;
        let until = self.entries.get(blocked).map_or(Duration::MAX, |entry| entry.returned);
        let explained: BTreeSet<usize> = best.iter().copied().collect();
        for (index, entry) in self.entries.iter().enumerate() {
            if entry.asked <= until && !explained.contains(&index) {
                lines.push(format!("  none fits: {}", line(entry)));
            }
        }
        lines.join("\n")
    }
}

fn line(entry: &Entry) -> String {
    let ms = |time: Duration| {
        if time == Duration::MAX { "never".to_owned() } else { format!("{:.3} ms", time.as_secs_f64() * 1e3) }
    };
    format!(
        "client {} asked {:?} at {}, told {:?} at {}",
        entry.client,
        entry.op,
        ms(entry.asked),
        entry.told,
        ms(entry.returned)
    )
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn at(asked: u64, returned: u64, op: Op, told: Told) -> Entry {
        let (asked, returned) = (Duration::from_millis(asked), Duration::from_millis(returned));
        Entry { client: 0, op, told: Some(told), asked, returned }
    }

    fn wrote(asked: u64, returned: u64, value: u64) -> Entry {
        at(asked, returned, Op::Write(Some(value)), Told::Done)
    }

    fn maybe(asked: u64, value: u64) -> Entry {
        Entry { returned: Duration::MAX, ..at(asked, 0, Op::Write(Some(value)), Told::Unknown) }
    }

    fn saw(asked: u64, returned: u64, value: Held) -> Entry {
        at(asked, returned, Op::Read, Told::Saw(value))
    }

    fn swapped(asked: u64, returned: u64, from: Held, to: Held) -> Entry {
        at(asked, returned, Op::Swap { from, to }, Told::Done)
    }

    fn fine(entries: &[Entry]) -> bool {
        check("k", entries).is_ok()
    }

    #[test]
    fn histories_that_could_have_been() {
        assert!(fine(&[]));
        assert!(fine(&[saw(0, 1, None), wrote(2, 3, 1), saw(4, 5, Some(1))]));
        // While a write goes on, its readers may see either; then all see the new.
        assert!(fine(&[wrote(0, 1, 1), wrote(2, 9, 2), saw(3, 4, Some(1)), saw(5, 6, Some(2)), saw(10, 11, Some(2))]));
        // Two writes at once, in the order in which nobody asked for them.
        assert!(fine(&[wrote(0, 9, 1), wrote(1, 8, 2), saw(10, 11, Some(1))]));
        // Deleted and created again.
        let deleted = at(2, 3, Op::Write(None), Told::Done);
        assert!(fine(&[wrote(0, 1, 1), deleted, saw(4, 5, None), swapped(6, 7, None, Some(2)), saw(8, 9, Some(2))]));
        // A swap that failed is nobody's business.
        let failed = at(2, 3, Op::Swap { from: Some(7), to: Some(8) }, Told::Failed);
        assert!(fine(&[wrote(0, 1, 1), failed, saw(4, 5, Some(1))]));
    }

    #[test]
    fn stale_reads_lost_writes_and_double_swaps_are_found() {
        // Stale: the write has been acknowledged.
        assert!(!fine(&[wrote(0, 1, 1), wrote(2, 3, 2), saw(4, 5, Some(1))]));
        // Lost.
        assert!(!fine(&[wrote(0, 1, 1), saw(2, 3, None)]));
        // Back in time: one reader has seen the new, a later one sees the old, while the write still goes on.
        assert!(!fine(&[wrote(0, 1, 1), wrote(2, 9, 2), saw(3, 4, Some(2)), saw(5, 6, Some(1))]));
        // Nobody has ever written it.
        assert!(!fine(&[wrote(0, 1, 1), saw(2, 3, Some(5))]));
        // A failed write that was done.
        assert!(!fine(&[at(0, 1, Op::Write(Some(1)), Told::Failed), saw(2, 3, Some(1))]));
        // Two creates, both acknowledged.
        assert!(!fine(&[swapped(0, 5, None, Some(1)), swapped(1, 4, None, Some(2))]));
        // Two lease holders from the same state.
        assert!(!fine(&[wrote(0, 1, 1), swapped(2, 5, Some(1), Some(2)), swapped(3, 6, Some(1), Some(3))]));
    }

    #[test]
    fn what_nobody_knows_may_be_done_at_any_time_or_never() {
        assert!(fine(&[wrote(0, 1, 1), maybe(2, 2), saw(3, 4, Some(1)), saw(5, 6, Some(1))]));
        assert!(fine(&[wrote(0, 1, 1), maybe(2, 2), saw(3, 4, Some(1)), saw(5, 6, Some(2)), saw(7, 8, Some(2))]));
        // Even long after.
        assert!(fine(&[maybe(0, 2), wrote(1, 2, 1), saw(3, 4, Some(1)), saw(1000, 1001, Some(2))]));
        // But not undone, not twice, and not before it was asked for.
        assert!(!fine(&[wrote(0, 1, 1), maybe(2, 2), saw(3, 4, Some(2)), saw(5, 6, Some(1))]));
        assert!(!fine(&[wrote(0, 1, 1), maybe(2, 2), saw(3, 4, Some(2)), wrote(5, 6, 3), saw(7, 8, Some(2))]));
        assert!(!fine(&[wrote(0, 1, 1), saw(2, 3, Some(2)), maybe(4, 2)]));
        // A swap of unknown fate, in a chain that needs it.
        let maybe = Entry { told: None, returned: Duration::MAX, ..swapped(2, 0, Some(1), Some(2)) };
        assert!(fine(&[wrote(0, 1, 1), maybe, swapped(3, 4, Some(2), Some(3)), saw(5, 6, Some(3))]));
        assert!(!fine(&[wrote(0, 1, 9), maybe, swapped(3, 4, Some(2), Some(3))]));
    }

    #[test]
    fn a_violation_tells_what_does_not_fit() {
        let told = check("pods/a", &[wrote(0, 1, 1), wrote(2, 3, 2), saw(4, 5, Some(1))]).unwrap_err().to_string();
        assert!(told.contains("history of pods/a is not linearizable"), "{told}");
        assert!(
            told.contains("none fits: client 0 asked Read at 4.000 ms, told Some(Saw(Some(1))) at 5.000 ms"),
            "{told}"
        );
    }

    /// Every order of every choice of the unknown ones, for small histories.
    fn by_force(entries: &[Entry], done: u32, state: Held) -> bool {
        let open = |index: &usize| done & (1 << index) == 0;
        let mut left = (0..entries.len()).filter(open).filter(|index| settled(&entries[*index])).peekable();
        if left.peek().is_none() {
            return true;
        }
        let first_return = left.map(|index| entries[index].returned).min().unwrap_or(Duration::MAX);
        (0..entries.len()).filter(open).filter(|index| entries[*index].asked <= first_return).any(|index| {
            let failed = entries[index].told == Some(Told::Failed);
            !failed && step(state, &entries[index]).is_some_and(|next| by_force(entries, done | 1 << index, next))
        })
    }

    #[test]
    fn agrees_with_trying_every_order() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut verdicts = [0; 2];
        for _ in 0..20_000 {
            let entries: Vec<Entry> = (0..rng.random_range(1..8))
                .map(|_| {
                    let asked = rng.random_range(0..12);
                    let returned = asked + rng.random_range(1..6);
                    let value = [None, Some(1), Some(2), Some(3)][rng.random_range(0..4)];
                    let other = [None, Some(1), Some(2), Some(3)][rng.random_range(0..4)];
                    let told = [Told::Done, Told::Done, Told::Failed, Told::Unknown][rng.random_range(0..4)];
                    match rng.random_range(0..5) {
                        0..3 => saw(asked, returned, value),
                        3 => at(asked, returned, Op::Write(value), told),
                        _ => at(asked, returned, Op::Swap { from: other, to: value }, told),
                    }
                })
                .collect();
            let expected = by_force(&entries, 0, None);
            assert_eq!(fine(&entries), expected, "{entries:#?}");
            verdicts[usize::from(expected)] += 1;
        }
        assert!(verdicts.iter().all(|count| *count > 1000), "one-sided: {verdicts:?}");
    }

    /// A register that answers at a random moment between question and answer, for so many clients side by side.
    fn simulated(rng: &mut StdRng, clients: usize, operations: u64) -> Vec<Entry> {
        let mut effects: Vec<(u64, Entry)> = Vec::new();
        for client in 0..clients {
            let mut now = 0;
            for number in 0..operations {
                let asked = now + rng.random_range(1..50);
                let effect = asked + rng.random_range(1..50);
                let returned = effect + rng.random_range(1..50);
                let value = number * clients as u64 + client as u64;
                let entry = match rng.random_range(0..10) {
                    0..5 => saw(asked, returned, None),
                    5..9 => wrote(asked, returned, value),
                    _ => Entry { returned: Duration::MAX, ..at(asked, 0, Op::Write(Some(value)), Told::Unknown) },
                };
                effects.push((effect, Entry { client, ..entry }));
                now = returned;
            }
        }
        effects.sort_by_key(|(effect, _)| *effect);
        let mut state = None;
        for (_, entry) in &mut effects {
            match (entry.op, entry.told) {
                (Op::Read, _) => entry.told = Some(Told::Saw(state)),
                (_, Some(Told::Unknown)) if rng.random() => {}
                (Op::Write(value), _) => state = value,
                _ => {}
            }
        }
        effects.into_iter().map(|(_, entry)| entry).collect()
    }

    #[test]
    fn long_histories_are_quick_and_one_stale_read_in_them_is_found() {
        let mut rng = StdRng::seed_from_u64(2);
        let begun = Instant::now();
        for _ in 0..5 {
            let mut entries = simulated(&mut rng, 8, 250);
            check("k", &entries).unwrap_or_else(|error| panic!("{error}"));
            let old = entries.iter().find_map(|entry| match (entry.op, entry.told) {
                (Op::Write(value), Some(Told::Done)) => Some(value),
                _ => None,
            });
            let late = entries.iter_mut().rev().find(|entry| entry.op == Op::Read).expect("a read");
            late.told = Some(Told::Saw(old.expect("a write")));
            let error = check("k", &entries).expect_err("a stale read");
            assert!(!error.gave_up, "{error}");
        }
        println!("5 x 2 histories of 2,000 operations of 8 clients: {:?}", begun.elapsed());
    }

    #[test]
    fn threads_share_a_history() {
        let (history, register) = (History::new(), Mutex::new(None));
        std::thread::scope(|scope| {
            for client in 0..4 {
                let (history, register) = (&history, &register);
                scope.spawn(move || {
                    for number in 0..100 {
                        let value = Some(number * 4 + client as u64);
                        let call = history.ask(client, "k", Op::Write(value));
                        *register.lock().unwrap() = value;
                        history.tell(call, Told::Done);
                        let call = history.ask(client, "k", Op::Read);
                        let value = *register.lock().unwrap();
                        history.tell(call, Told::Saw(value));
                    }
                });
            }
        });
        let _forgotten = history.ask(0, "other", Op::Write(Some(1)));
        assert_eq!(history.counts(), (800, 0, 1));
        history.check().unwrap();
    }
}
