//! What clients of a cluster were told while it suffered, and whether that is whole: how long nobody could write, whether every
//! acknowledged write is in every watch, and whether every watch tells the same changes, each once and in order.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::linear::{Entry, Held, Op, Told};

/// An acknowledged write.
#[derive(Debug, Clone)]
pub struct Ack {
    /// The object's name.
    pub key: String,
    /// What is there now; none after a deletion.
    pub value: Held,
    /// Its resource version; the answer to a deletion has none.
    pub revision: Option<u64>,
    /// The number of the machine whose server was asked.
    pub server: usize,
    /// When it was asked for.
    pub asked: Instant,
    /// When the answer came.
    pub told: Instant,
}

/// One event of a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The object's resource version.
    pub revision: u64,
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub what: String,
    /// The object's name.
    pub key: String,
    /// What is there; none after a deletion.
    pub value: Held,
}

/// All that one watcher saw, over all its connections.
#[derive(Debug, Clone, Default)]
pub struct Followed {
    /// Which watcher.
    pub name: String,
    /// In the order in which it came.
    pub changes: Vec<Change>,
    /// How often it began again.
    pub connections: usize,
    /// What must not happen to a watcher, in words: history that is gone, a line that is no event.
    pub complaints: Vec<String>,
}

/// How long writes were not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// From the fault to the first acknowledgement of a write that was asked for after it.
    pub first: Duration,
    /// The longest time without any acknowledgement.
    pub longest: Duration,
    /// When that began, since the fault.
    pub longest_from: Duration,
}

/// Measures an outage through some servers, from the moment when a fault began (`since`) and was there (`struck`) until a later
/// moment. None when nothing was acknowledged.
#[must_use]
pub fn outage(acks: &[Ack], through: &[usize], since: Instant, struck: Instant, until: Instant) -> Option<Outage> {
    let mut told: Vec<Instant> = acks
        .iter()
        .filter(|ack| through.contains(&ack.server) && ack.asked >= struck && ack.told <= until)
        .map(|ack| ack.told)
        .collect();
    told.sort_unstable();
    let first = told.first()?.duration_since(since);
    let ends = told.iter().copied().chain([until]);
    let begins = std::iter::once(since).chain(told.iter().copied());
    let gaps = begins.zip(ends).map(|(begin, end)| (end.duration_since(begin), begin.duration_since(since)));
    let (longest, longest_from) = gaps.max().unwrap_or_default();
    Some(Outage { first, longest, longest_from })
}

/// What is wrong with watches, in words; up to and with a revision that all of them have reached.
#[must_use]
pub fn complaints(
    followed: &[Followed],
    acks: &[Ack],
    asked: &BTreeMap<String, Vec<Entry>>,
    until: u64,
) -> Vec<String> {
    let mut found = Vec::new();
    for one in followed {
        found.extend(one.complaints.iter().map(|complaint| format!("{}: {complaint}", one.name)));
        for pair in one.changes.windows(2).filter(|pair| pair[0].revision >= pair[1].revision) {
            found.push(format!("{}: {:?} came after {:?}", one.name, pair[1], pair[0]));
        }
    }
    let Some(longest) = followed.iter().max_by_key(|one| one.changes.len()) else { return found };
    let all: BTreeMap<u64, &Change> =
        followed.iter().flat_map(|one| &one.changes).map(|change| (change.revision, change)).collect();
    for one in followed {
        let seen: BTreeSet<u64> = one.changes.iter().map(|change| change.revision).collect();
        let missed = all.range(..=until).filter(|(revision, _)| !seen.contains(*revision));
        found.extend(missed.map(|(_, change)| format!("{}: missed {change:?}", one.name)));
        let other = one.changes.iter().filter(|change| all.get(&change.revision).is_some_and(|known| known != change));
        found.extend(other.map(|change| format!("{}: {change:?}, and another watch says otherwise", one.name)));
    }
    found.extend(impossible(longest, asked));
    for ack in acks {
        // The answer to a deletion has no version; the history of reads says whether it was done.
        let Some(revision) = ack.revision.filter(|revision| *revision <= until) else { continue };
        if !all.get(&revision).is_some_and(|change| change.key == ack.key && change.value == ack.value) {
            found.push(format!("{ack:?} was acknowledged; watches have {:?} there", all.get(&revision)));
        }
    }
    found
}

/// What no order of writes brings about: a value that nobody wrote or whose write was refused, one that comes twice, the beginning
/// of what was there already.
fn impossible(one: &Followed, asked: &BTreeMap<String, Vec<Entry>>) -> Vec<String> {
    let mut found = Vec::new();
    let mut there: BTreeMap<&str, u64> = BTreeMap::new();
    let mut begun: BTreeSet<(&str, u64)> = BTreeSet::new();
    for change in &one.changes {
        let before = match change.value {
            Some(value) => there.insert(&change.key, value),
            None => there.remove(change.key.as_str()),
        };
        let fits = match change.what.as_str() {
            "ADDED" => before.is_none() && change.value.is_some(),
            "MODIFIED" => before.is_some() && change.value.is_some(),
            "DELETED" => before.is_some() && change.value.is_none(),
            _ => false,
        };
        if !fits {
            found.push(format!("{}: {change:?} where {before:?} was", one.name));
        }
        let Some(value) = change.value else { continue };
        if !begun.insert((&change.key, value)) {
            found.push(format!("{}: {change:?} has been written twice", one.name));
        }
        let writes = asked.get(&change.key).into_iter().flatten().find(|entry| match entry.op {
            Op::Write(to) | Op::Swap { to, .. } => to == Some(value),
            Op::Read => false,
        });
        match writes {
            Some(entry) if entry.told != Some(Told::Failed) => {}
            other => found.push(format!("{}: {change:?}, but it was {other:?}", one.name)),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(revision: u64, what: &str, value: Held) -> Change {
        Change { revision, what: what.into(), key: "k".into(), value }
    }

    fn asked(told: &[(u64, Told)]) -> BTreeMap<String, Vec<Entry>> {
        let entry = |(value, told): &(u64, Told)| Entry {
            client: 0,
            op: Op::Write(Some(*value)),
            told: Some(*told),
            asked: Duration::ZERO,
            returned: Duration::ZERO,
        };
        BTreeMap::from([("k".to_owned(), told.iter().map(entry).collect())])
    }

    fn followed(changes: &[Change]) -> Followed {
        Followed { name: "w".into(), changes: changes.to_vec(), ..Followed::default() }
    }

    fn ack(revision: u64, value: u64) -> Ack {
        let now = Instant::now();
        Ack { key: "k".into(), value: Some(value), revision: Some(revision), server: 1, asked: now, told: now }
    }

    #[test]
    fn watches_that_tell_all_once_are_fine() {
        let all = [
            change(3, "ADDED", Some(1)),
            change(5, "MODIFIED", Some(2)),
            change(6, "DELETED", None),
            change(9, "ADDED", Some(3)),
        ];
        let asked = asked(&[(1, Told::Done), (2, Told::Unknown), (3, Told::Done)]);
        // The second has not come so far yet, and need not.
        let both = [followed(&all), followed(&all[..3])];
        assert_eq!(complaints(&both, &[ack(3, 1), ack(9, 3)], &asked, 8), Vec::<String>::new());
    }

    #[test]
    fn what_is_missed_repeated_reordered_or_made_up_is_told() {
        let all = [change(3, "ADDED", Some(1)), change(5, "MODIFIED", Some(2)), change(6, "DELETED", None)];
        let done = asked(&[(1, Told::Done), (2, Told::Done)]);
        let told = |changes: &[Change], acks: &[Ack], asked: &BTreeMap<String, Vec<Entry>>| {
            complaints(&[followed(&all), followed(changes)], acks, asked, 6).join("\n")
        };
        assert_eq!(told(&all, &[], &done), "");
        assert!(told(&all[..2], &[], &done).contains("missed Change { revision: 6"));
        assert!(told(&[all[0].clone(), all[0].clone()], &[], &done).contains("came after"));
        assert!(told(&[all[1].clone(), all[0].clone(), all[2].clone()], &[], &done).contains("came after"));
        let other = [all[0].clone(), change(5, "MODIFIED", Some(7)), all[2].clone()];
        assert!(told(&other, &[], &done).contains("another watch says otherwise"));
        // An acknowledged write that nobody was shown, and one that was refused and shown.
        assert!(told(&all, &[ack(4, 9)], &done).contains("was acknowledged; watches have None there"));
        let refused = asked(&[(1, Told::Done), (2, Told::Failed)]);
        assert!(told(&all, &[], &refused).contains("but it was Some"));
        let unasked = asked(&[(1, Told::Done)]);
        assert!(told(&all, &[], &unasked).contains("but it was None"));
        let twice = [change(3, "ADDED", Some(1)), change(5, "MODIFIED", Some(1))];
        assert!(complaints(&[followed(&twice)], &[], &done, 6).join("\n").contains("has been written twice"));
        let again = [change(3, "ADDED", Some(1)), change(5, "ADDED", Some(2))];
        assert!(complaints(&[followed(&again)], &[], &done, 6).join("\n").contains("where Some(1) was"));
    }

    #[test]
    fn outages_are_measured_through_those_who_are_left() {
        let since = Instant::now();
        let at = |ms: u64| since + Duration::from_millis(ms);
        let ack = |server, asked, told| Ack { server, asked: at(asked), told: at(told), ..ack(1, 1) };
        // Asked for before, through the dead one, and then two.
        let acks = [ack(2, 0, 15), ack(1, 30, 40), ack(2, 700, 900), ack(3, 20, 1000), ack(2, 1000, 2500)];
        let ms = Duration::from_millis;
        let found = outage(&acks, &[2, 3], since, at(10), at(3000));
        assert_eq!(found, Some(Outage { first: ms(900), longest: ms(1500), longest_from: ms(1000) }));
        assert_eq!(outage(&acks, &[4], since, at(10), at(3000)), None);
    }
}
