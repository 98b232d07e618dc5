//! Time and chance as facilities that are handed in, so that pure rooms and simulations stay repeatable.

/// Milliseconds since 1970-01-01 UTC.
pub type Millis = u64;

/// The time of day and a clock that never steps back.
pub trait Clock: Send + Sync {
    /// Wall-clock time: for what users read.
    fn now_ms(&self) -> Millis;
    /// Milliseconds since some fixed start, counting while the machine sleeps: for deadlines.
    fn monotonic_ms(&self) -> Millis;
}

/// A source of random 64-bit numbers.
pub trait Rng: Send {
    /// The next number.
    fn next_u64(&mut self) -> u64;
}
