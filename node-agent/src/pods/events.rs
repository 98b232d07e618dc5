//! How many events one pod may send: a burst, then one a minute, so that a crash loop does not fill the cluster's memory.

use coracle_base::Millis;

/// At once.
const BURST: u32 = 40;
/// For one more.
const REFILL_MS: Millis = 60_000;

/// A token bucket.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    used: u32,
    since: Millis,
}

impl Limiter {
    /// Whether one more may go out now.
    pub(super) fn allows(&mut self, now: Millis) -> bool {
        let regained = u32::try_from(now.saturating_sub(self.since) / REFILL_MS).unwrap_or(u32::MAX);
        if regained > 0 {
            self.used = self.used.saturating_sub(regained);
            self.since = now;
        }
        if self.used >= BURST {
            return false;
        }
        self.used += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_a_minute() {
        let mut limiter = Limiter::default();
        let start = 10 * REFILL_MS;
        assert_eq!((0..100).filter(|_| limiter.allows(start)).count() as u32, BURST);
        assert_eq!((0..600).filter(|second| limiter.allows(start + second * 1000)).count(), 9);
    }
}
