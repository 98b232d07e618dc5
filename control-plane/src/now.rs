//! The time of day, for shells that put it into proposals.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970.
#[must_use]
pub(crate) fn ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Now, as Kubernetes writes it: UTC, seconds.
#[must_use]
pub(crate) fn rfc3339() -> String {
    jiff::Timestamp::from_second(i64::try_from(ms() / 1000).unwrap_or(0))
        .map_or_else(|_| String::new(), |at| at.to_string())
}
