//! The crash-point model: power is cut after every single operation the log asks of its disk, any subset of the sectors that
//! no sync covered persists, and the log must come back with all it acknowledged and nothing half.
//!
//! `CORACLE_CRASH_SEED=n` replays one seed, `CORACLE_CRASH_SEEDS=n` runs more of them.

mod sim;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use coracle_raft::Vault;
use coracle_raft::wal::{Ballot, Entry, Log, LogConfig, Payload, Position, Record, WalError};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sim::{Choice, Lie, SimDisk, State};

const CONFIG: LogConfig = LogConfig { cluster: 7, node: 1, segment_bytes: 16 << 10, reserve_bytes: 4 << 10 };

/// What a log says, for comparison.
#[derive(Debug, Clone, Default, PartialEq)]
struct Memory {
    entries: BTreeMap<u64, Entry>,
    ballot: Option<Ballot>,
    committed: Option<Position>,
    purged: Option<Position>,
}

impl Memory {
    fn of(log: &Log) -> Result<Self, WalError> {
        let index = log.index();
        let index = index.lock().unwrap();
        let mut memory =
            Self { ballot: index.ballot, committed: index.committed, purged: index.purged, ..Self::default() };
        for number in index.first_index()..index.next_index() {
            let located = index.locate(number).expect("every index between first and next is held");
            let entry = located.read()?.into_iter().find(|entry| entry.at == index.position(number).unwrap());
            memory.entries.insert(number, entry.expect("the frame holds the entry"));
        }
        Ok(memory)
    }

    fn apply(&mut self, records: &[Record]) {
        for record in records {
            match record {
                Record::Entry(entry) => drop(self.entries.insert(entry.at.index, entry.clone())),
                Record::Ballot(ballot) => self.ballot = Some(*ballot),
                Record::Committed(at) => self.committed = Some(*at),
                Record::Truncate(keep) => self.entries.retain(|index, _| keep.is_some_and(|keep| *index <= keep)),
                Record::Purge(upto) => {
                    self.entries.retain(|index, _| *index > upto.index);
                    self.purged = Some(*upto);
                }
            }
        }
    }

    fn next(&self) -> u64 {
        let purged = self.purged.map_or(0, |at| at.index + 1);
        self.entries.keys().next_back().map_or(purged, |last| last + 1)
    }
}

fn entry(rng: &mut StdRng, term: u64, index: u64) -> Record {
    // Bytes that look like anything, frames included, cannot be told apart by luck.
    let length = match rng.random_range(0..10) {
        0 => rng.random_range(2000..5000),
        _ => rng.random_range(0..700),
    };
    let bytes: Vec<u8> = (0..length).map(|_| rng.random()).collect();
    Record::Entry(Entry { at: Position { term, node: 1, index }, payload: Payload::Commands(Bytes::from(bytes)) })
}

fn some_records(rng: &mut StdRng, memory: &Memory) -> Vec<Record> {
    let next = memory.next();
    let term = memory.ballot.map_or(1, |ballot| ballot.term);
    match rng.random_range(0..20) {
        0..=11 => (0..rng.random_range(1..4)).map(|n| entry(rng, term, next + n)).collect(),
        12..=13 => vec![Record::Ballot(Ballot { term: term + 1, node: 1, committed: rng.random() })],
        14..=16 if !memory.entries.is_empty() => {
            let keep = next.saturating_sub(rng.random_range(1..6));
            let keep = (keep > memory.purged.map_or(0, |at| at.index)).then_some(keep);
            let after = keep.map_or(memory.purged.map_or(0, |at| at.index + 1), |keep| keep + 1);
            // Sometimes what replaces the cut entries comes in the same frame.
            let mut records = vec![Record::Truncate(keep)];
            if rng.random() {
                records.push(entry(rng, term + 1, after));
            }
            records
        }
        17..=18 if memory.entries.len() > 4 => {
            let at = memory.entries.values().nth(memory.entries.len() / 2).unwrap().at;
            vec![Record::Committed(at), Record::Purge(at)]
        }
        _ => {
            let last = memory.entries.values().next_back().map(|entry| entry.at);
            last.map(Record::Committed).into_iter().chain([entry(rng, term, next)]).collect()
        }
    }
}

/// Opens what is left after a power cut and compares; gives how many images were tried.
fn check(points: &[State], allowed: &[&Memory], keys: Option<&Arc<Vault>>, rng: &mut StdRng) -> Result<usize, String> {
    let mut tried = 0;
    for point in points {
        let mut choices = vec![Choice::Everything];
        if point.is_pending() {
            choices.push(Choice::Nothing);
            let pending = point.pending();
            // A large frame has many sectors: a sample of them, the first and the last always.
            let step = (pending / 12).max(1);
            let nths = (0..pending).filter(|nth| nth % step == 0 || nth + 1 == pending);
            choices.extend(nths.flat_map(|nth| [Choice::Only(nth), Choice::AllBut(nth)]));
            choices.extend((0..6).map(|_| Choice::Random(rng.random())));
        }
        for choice in choices {
            tried += 1;
            let disk = SimDisk::new(point.after_power_cut(choice));
            let log = Log::open_sealed(Arc::new(disk), CONFIG, keys.cloned())
                .map_err(|error| format!("{choice:?}: an honest log is refused: {error}"))?;
            let found = Memory::of(&log).map_err(|error| format!("{choice:?}: {error}"))?;
            if !allowed.contains(&&found) {
                return Err(format!(
                    "{choice:?}: found {}\nallowed {}",
                    brief(&found),
                    allowed.iter().map(|memory| brief(memory)).collect::<Vec<_>>().join("\n     or ")
                ));
            }
        }
    }
    Ok(tried)
}

fn brief(memory: &Memory) -> String {
    let indexes: Vec<_> = memory.entries.values().map(|entry| (entry.at.index, entry.at.term)).collect();
    format!("{indexes:?} ballot {:?} committed {:?} purged {:?}", memory.ballot, memory.committed, memory.purged)
}

fn run(seed: u64, steps: usize, lie: Lie) -> Result<usize, String> {
    let mut rng = StdRng::seed_from_u64(seed);
    // Every other log is sealed; of these, every other one was begun plain by an older release.
    let keys = seed.is_multiple_of(2).then(|| Arc::new(Vault::ephemeral().unwrap()));
    let begun = keys.clone().filter(|_| seed.is_multiple_of(4));
    let open = |disk: SimDisk| Log::open_sealed(Arc::new(disk), CONFIG, keys.clone());
    let mut disk = SimDisk::lying(lie);
    drop(Log::open_sealed(Arc::new(disk.clone()), CONFIG, begun).map_err(|error| error.to_string())?);
    let mut log = open(disk.clone()).map_err(|error| error.to_string())?;
    let check = |points: &[State], allowed: &[&Memory], rng: &mut StdRng| check(points, allowed, keys.as_ref(), rng);
    let mut memory = Memory::default();
    let mut tried = check(&disk.take_points(), &[&memory], &mut rng)?;
    for step in 0..steps {
        let records = some_records(&mut rng, &memory);
        let mut after = memory.clone();
        after.apply(&records);
        // Sometimes the disk is full for a while, and the frame gets down in part, or not at all.
        if rng.random_range(0..4) == 0 {
            disk.fill(Some(rng.random_range(0..3000)));
            let result = log.commit(&records);
            let points = disk.take_points();
            // What it got down may be the whole frame but for the zeros at its end.
            tried += check(&points, &[&memory, &after], &mut rng)
                .map_err(|error| format!("step {step}, full, {records:?}: {error}"))?;
            let now = match result {
                Ok(()) => &after,
                Err(WalError::Full { .. }) => &memory,
                Err(error) => return Err(format!("step {step}, full: {error}")),
            };
            tried += check(&[disk.state()], &[now], &mut rng)
                .map_err(|error| format!("step {step}, after a full disk, {records:?}: {error}"))?;
            disk.fill(None);
            if now == &after {
                memory = after;
                continue;
            }
        }
        log.commit(&records).map_err(|error| format!("step {step}: {error}"))?;
        let points = disk.take_points();
        tried += check(&points, &[&memory, &after], &mut rng)
            .map_err(|error| format!("step {step}, {records:?}: {error}"))?;
        memory = after;
        if records.iter().any(|record| matches!(record, Record::Purge(_))) {
            log.drop_purged().map_err(|error| error.to_string())?;
        }
        log.prepare().map_err(|error| error.to_string())?;
        // Acknowledged: from here on exactly this.
        let mut points = disk.take_points();
        points.push(disk.state());
        tried += check(&points, &[&memory], &mut rng).map_err(|error| format!("after step {step}: {error}"))?;

        match rng.random_range(0..12) {
            // The process dies and comes back; the machine, and what it has not written, lives on.
            0 => log = open(disk.clone()).map_err(|error| error.to_string())?,
            // Power is cut in the middle of a commit, and again in the middle of the recovery.
            1 => {
                let torn = [entry(&mut rng, 99, memory.next())];
                log.commit(&torn).map_err(|error| error.to_string())?;
                let points = disk.take_points();
                let point = &points[rng.random_range(0..points.len())];
                disk = SimDisk::new(point.after_power_cut(Choice::Random(rng.random())));
                log = open(disk.clone()).map_err(|error| error.to_string())?;
                memory = Memory::of(&log).map_err(|error| error.to_string())?;
            }
            _ => continue,
        }
        tried += check(&disk.take_points(), &[&memory], &mut rng)
            .map_err(|error| format!("recovery after step {step}: {error}"))?;
    }
    Ok(tried)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn nothing_acknowledged_is_lost_and_no_honest_log_is_refused() {
    let first: u64 = rand::random_range(0..1 << 32);
    let seeds = match number("CORACLE_CRASH_SEED") {
        Some(seed) => seed..seed + 1,
        None => first..first + number("CORACLE_CRASH_SEEDS").unwrap_or(4),
    };
    let mut tried = 0;
    for seed in seeds.clone() {
        println!("seed {seed}");
        tried += run(seed, 60, Lie::None).unwrap_or_else(|error| panic!("CORACLE_CRASH_SEED={seed}: {error}"));
    }
    println!("{tried} disks after a power cut, seeds {seeds:?}");
    assert!(tried > 1000);
}

#[test]
fn the_model_notices_a_disk_that_does_not_sync() {
    for lie in [Lie::Data, Lie::Names] {
        let noticed = (0..5).any(|seed| run(seed, 60, lie).is_err());
        assert!(noticed, "a disk that lies about {lie:?} passed");
    }
}

#[test]
fn a_flipped_bit_is_refused_or_costs_the_last_frame_at_most() {
    let seed = number("CORACLE_CRASH_SEED").unwrap_or_else(|| rand::random_range(0..1 << 32));
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let disk = SimDisk::lying(Lie::None);
    let keys = seed.is_multiple_of(2).then(|| Arc::new(Vault::ephemeral().unwrap()));
    let mut log = Log::open_sealed(Arc::new(disk.clone()), CONFIG, keys.clone()).unwrap();
    let (mut memory, mut before) = (Memory::default(), Memory::default());
    for _ in 0..40 {
        before = memory.clone();
        let records = some_records(&mut rng, &memory);
        log.commit(&records).unwrap();
        memory.apply(&records);
        log.prepare().unwrap();
    }
    let state = disk.state();
    let mut refused = 0;
    for (name, bytes) in state.files().filter(|(name, _)| name.ends_with(".wal") && *name != "next.wal") {
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        for _ in 0..150 {
            let mut rotten = state.clone();
            rotten.rot(name, rng.random_range(0..used * 8));
            match Log::open_sealed(Arc::new(SimDisk::new(rotten)), CONFIG, keys.clone()) {
                Err(WalError::Corrupt { file, .. }) => {
                    assert!(&file == name || file > *name, "{file} is blamed, {name} is rotten");
                    refused += 1;
                }
                Err(WalError::Format { .. } | WalError::Foreign { .. }) => panic!("the header's checksum comes first"),
                Err(other) => panic!("{other}"),
                Ok(log) => {
                    let found = Memory::of(&log).unwrap();
                    assert!(found == memory || found == before, "{}", brief(&found));
                }
            }
        }
    }
    assert!(refused > 100, "{refused} refused");
}
