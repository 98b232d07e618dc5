//! How long to wait before the next try. No retry without a wait that grows and a limit to it.

use coracle_base::Millis;
use serde::{Deserialize, Serialize};

/// Waits of one sort of retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Whether the first retry comes at once.
    pub first_at_once: bool,
    /// The first wait.
    pub base_ms: Millis,
    /// The longest.
    pub cap_ms: Millis,
    /// Healthy for so long: all is forgotten. 0 = only a success forgets.
    pub forget_after_ms: Millis,
}

/// A container that ended: at once, then 1 s doubling to 60 s (KEP-4603); forgotten after ten minutes of running.
pub const RESTART: Policy = Policy { first_at_once: true, base_ms: 1000, cap_ms: 60_000, forget_after_ms: 600_000 };

/// An image that could not be had: 10 s doubling to 300 s, as upstream.
pub const PULL: Policy = Policy { first_at_once: false, base_ms: 10_000, cap_ms: 300_000, forget_after_ms: 0 };

/// Sandbox, volumes, container configuration: what may be missing now and there soon (a `ConfigMap`, an address).
pub const SETUP: Policy = Policy { first_at_once: false, base_ms: 500, cap_ms: 30_000, forget_after_ms: 0 };

/// Failures so far and when to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Backoff {
    /// Failures in a row.
    pub failures: u32,
    /// Not before this time.
    pub retry_at: Millis,
}

impl Backoff {
    /// One more failure at `now`, of something that had been well for `healthy_ms` before.
    #[must_use]
    pub fn failed(self, policy: Policy, healthy_ms: Millis, now: Millis) -> Self {
        let forgotten = policy.forget_after_ms > 0 && healthy_ms >= policy.forget_after_ms;
        let failures = if forgotten { 1 } else { self.failures.saturating_add(1) };
        Self { failures, retry_at: now + wait_ms(policy, failures) }
    }
}

/// The wait after that many failures in a row.
#[must_use]
pub fn wait_ms(policy: Policy, failures: u32) -> Millis {
    let doublings = match (failures, policy.first_at_once) {
        (0, _) | (1, true) => return 0,
        (failures, true) => failures - 2,
        (failures, false) => failures - 1,
    };
    policy.base_ms.saturating_mul(1 << doublings.min(30)).min(policy.cap_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_waits() {
        let waits =
            |policy, count: u32| (1..=count).map(|failures| wait_ms(policy, failures) / 1000).collect::<Vec<_>>();
        assert_eq!(waits(RESTART, 9), [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(waits(PULL, 7), [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(wait_ms(RESTART, u32::MAX), 60_000);
    }

    #[test]
    fn ten_healthy_minutes_forget() {
        let many = Backoff { failures: 7, retry_at: 0 };
        assert_eq!(many.failed(RESTART, 599_999, 5).retry_at, 60_005);
        assert_eq!(many.failed(RESTART, 600_000, 5), Backoff { failures: 1, retry_at: 5 });
    }
}
