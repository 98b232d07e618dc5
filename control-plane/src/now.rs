//! The time of day and chance, for shells that put them into proposals. A simulation plays both.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// What stands in for the system on this thread.
struct Played {
    ms: u64,
    rng: StdRng,
}

thread_local! {
    static PLAYED: RefCell<Option<Played>> = const { RefCell::new(None) };
}

/// From now on this thread draws identifiers from a seed, and its time of day is what `play_time` says.
pub(crate) fn play(seed: u64) {
    PLAYED.with_borrow_mut(|played| *played = Some(Played { ms: 0, rng: StdRng::seed_from_u64(seed) }));
}

/// The time of day where it is played.
pub(crate) fn play_time(ms: u64) {
    PLAYED.with_borrow_mut(|played| {
        if let Some(played) = played {
            played.ms = ms;
        }
    });
}

/// Milliseconds since 1970.
#[must_use]
pub(crate) fn ms() -> u64 {
    let system = || {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    };
    PLAYED.with_borrow(|played| played.as_ref().map_or_else(system, |played| played.ms))
}

/// Now, as Kubernetes writes it: UTC, seconds.
#[must_use]
pub(crate) fn rfc3339() -> String {
    jiff::Timestamp::from_second(i64::try_from(ms() / 1000).unwrap_or(0))
        .map_or_else(|_| String::new(), |at| at.to_string())
}

/// A new identifier.
#[must_use]
pub(crate) fn uuid() -> uuid::Uuid {
    PLAYED.with_borrow_mut(|played| match played {
        None => uuid::Uuid::new_v4(),
        Some(played) => {
            let mut bytes = [0; 16];
            played.rng.fill_bytes(&mut bytes);
            uuid::Builder::from_random_bytes(bytes).into_uuid()
        }
    })
}
