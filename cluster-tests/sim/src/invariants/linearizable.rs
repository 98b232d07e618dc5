//! Each key behaves like one register: a search after Wing and Gong, with the memory of Lowe, over one key's operations.

use std::collections::{BTreeMap, HashSet};

use super::Held;

/// What an operation did, as far as its client knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Did {
    /// Read this value.
    Read(Option<String>),
    /// Set the value if it was as expected (`None`: if there was none).
    Write {
        /// What had to be there.
        expected: Option<String>,
        /// What is there afterwards.
        value: String,
        /// Whether it happened; `None` when nobody knows.
        happened: Option<bool>,
    },
}

/// One operation: from when to when it was under way, by the order of the world. Without an end its effect may come at any time.
#[derive(Debug, Clone)]
pub struct Operation {
    /// The key.
    pub key: String,
    /// When it began.
    pub begun: u64,
    /// When it was answered.
    pub ended: Option<u64>,
    /// What it did.
    pub did: Did,
}

/// The most steps the search for one key takes; a history this tangled proves nothing.
const STEPS: usize = 2_000_000;

/// Looks for an order that explains all operations of every key.
///
/// # Errors
/// There is none for some key, or the search was given up.
pub fn check(operations: &[Operation]) -> Held {
    let mut keys: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        keys.entry(&operation.key).or_default().push(operation);
    }
    for (key, mut operations) in keys {
        operations.sort_by_key(|operation| operation.begun);
        explain(key, &operations)?;
    }
    Ok(())
}

type State<'a> = Option<&'a str>;

/// The state after an operation; `None` when it cannot happen in this state.
fn step<'a>(state: State<'a>, did: &'a Did) -> Option<State<'a>> {
    match did {
        Did::Read(value) => (value.as_deref() == state).then_some(state),
        Did::Write { expected, value, happened } => match (expected.as_deref() == state, happened) {
            (true, Some(true) | None) => Some(Some(value)),
            (false, Some(false)) => Some(state),
            (true, Some(false)) | (false, Some(true) | None) => None,
        },
    }
}

fn explain(key: &str, operations: &[&Operation]) -> Held {
    let count = operations.len();
    let mut done = vec![0_u64; count.div_ceil(64)];
    let mut seen: HashSet<(Vec<u64>, State<'_>)> = HashSet::new();
    let mut state: State<'_> = None;
    // What was taken, the state before it, and from where to go on should it have been wrong.
    let mut taken: Vec<(usize, State<'_>)> = Vec::new();
    let mut from = 0;
    let (mut steps, mut best) = (0, 0);
    let has = |done: &[u64], at: usize| done[at / 64] >> (at % 64) & 1 == 1;
    loop {
        steps += 1;
        if steps > STEPS {
            return Err(format!("key {key}: no order found in {STEPS} steps"));
        }
        let open = |at: &usize| !has(&done, *at);
        let must: Vec<usize> = (0..count).filter(open).collect();
        let Some(first_end) = must.iter().filter_map(|at| operations[*at].ended).min() else { return Ok(()) };
        let mut next = None;
        for at in must.iter().copied().filter(|at| *at >= from && operations[*at].begun < first_end) {
            if let Some(after) = step(state, &operations[at].did) {
                let mut with = done.clone();
                with[at / 64] |= 1 << (at % 64);
                if seen.insert((with.clone(), after)) {
                    next = Some((at, after, with));
                    break;
                }
            }
        }
        if let Some((at, after, with)) = next {
            taken.push((at, state));
            (state, done, from) = (after, with, 0);
            best = best.max(taken.len());
            continue;
        }
        let Some((at, before)) = taken.pop() else {
            return Err(format!("key {key}: no order explains its {count} operations, {best} at most"));
        };
        done[at / 64] &= !(1 << (at % 64));
        (state, from) = (before, at + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(begun: u64, ended: u64, value: Option<&str>) -> Operation {
        Operation { key: "k".to_owned(), begun, ended: Some(ended), did: Did::Read(value.map(str::to_owned)) }
    }

    fn write(begun: u64, ended: Option<u64>, expected: Option<&str>, value: &str, happened: Option<bool>) -> Operation {
        let did = Did::Write { expected: expected.map(str::to_owned), value: value.to_owned(), happened };
        Operation { key: "k".to_owned(), begun, ended, did }
    }

    #[test]
    fn orders_that_exist_are_found() {
        check(&[write(1, Some(4), None, "a", Some(true)), read(2, 3, None), read(5, 6, Some("a"))]).unwrap();
        // Nobody knows whether it happened: later it shows.
        check(&[write(1, None, None, "a", None), read(2, 3, None), read(5, 6, Some("a"))]).unwrap();
        check(&[write(1, None, None, "a", None), read(2, 3, None)]).unwrap();
        check(&[write(1, Some(2), None, "a", Some(true)), write(3, Some(4), None, "b", Some(false))]).unwrap();
    }

    #[test]
    fn a_stale_read_a_lost_write_and_a_wrong_refusal_are_found() {
        assert!(check(&[write(1, Some(2), None, "a", Some(true)), read(3, 4, None)]).is_err());
        assert!(check(&[write(1, None, None, "a", None), read(2, 3, Some("a")), read(4, 5, None)]).is_err());
        assert!(check(&[write(1, Some(2), None, "a", Some(false))]).is_err());
        assert!(check(&[read(1, 2, Some("never"))]).is_err());
    }
}
