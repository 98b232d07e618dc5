//! A small histogram that stands in for the one openraft brings (`[patch.crates-io]`): the same names, as far as openraft uses
//! them. The original fills tables for every precision it knows at the first use, 26 MB and 20 ms of each start, for figures
//! that nobody reads here.
#![forbid(unsafe_code)]

use std::fmt;
use std::marker::PhantomData;

/// Values below this have a bucket each; above, every power of two has as many.
const GROUP: u64 = 4;
const BUCKETS: usize = (GROUP * 63) as usize;

/// Counts of values in buckets a quarter of a power of two wide. `T` is the original's, for slots, which nobody uses here.
#[derive(Clone, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: Vec<u64>,
    slots: PhantomData<T>,
}

fn bucket(value: u64) -> usize {
    if value < GROUP {
        return usize::try_from(value).unwrap_or(0);
    }
    let shift = u64::from(value.ilog2()) - 2;
    // The two bits behind the first one say which quarter of its power of two it is in.
    usize::try_from(GROUP + shift * GROUP + ((value >> shift) & (GROUP - 1))).unwrap_or(BUCKETS - 1)
}

/// The least value of a bucket.
fn least(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < GROUP {
        return bucket;
    }
    let (shift, quarter) = ((bucket - GROUP) / GROUP, (bucket - GROUP) % GROUP);
    (GROUP + quarter) << shift
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> fmt::Debug for Histogram<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Histogram({})", self.percentile_stats())
    }
}

impl<T> Histogram<T> {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self { counts: vec![0; BUCKETS], slots: PhantomData }
    }

    /// Counts a value.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts a value several times.
    pub fn record_n(&mut self, value: u64, count: u64) {
        if let Some(counter) = self.counts.get_mut(bucket(value)) {
            *counter = counter.saturating_add(count);
        }
    }

    /// How many values were counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum: u64, count| sum.saturating_add(*count))
    }

    /// The least value of the bucket in which a share (0 to 1) of all values is reached; 0 without values.
    #[must_use]
    #[allow(clippy::cast_precision_loss)]
    pub fn percentile(&self, share: f64) -> u64 {
        let wanted = (self.total() as f64 * share).max(1.0);
        let mut sum = 0.0;
        let reached = self.counts.iter().position(|count| {
            sum += *count as f64;
            sum >= wanted
        });
        reached.map_or(0, least)
    }

    /// The usual percentiles at once.
    #[must_use]
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total(),
            p0_1: self.percentile(0.001),
            p1: self.percentile(0.01),
            p5: self.percentile(0.05),
            p10: self.percentile(0.1),
            p50: self.percentile(0.5),
            p90: self.percentile(0.9),
            p99: self.percentile(0.99),
            p99_9: self.percentile(0.999),
        }
    }
}

/// Percentiles of a histogram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct PercentileStats {
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { samples, p50, p90, p99, p99_9, .. } = self;
        write!(out, "n={samples} p50={p50} p90={p90} p99={p99} p99.9={p99_9}")
    }
}

/// Several histograms under each other, a line each.
#[derive(Debug, Clone, Default)]
pub struct AsciiChart {
    lines: Vec<String>,
}

impl AsciiChart {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// One more line.
    #[must_use]
    #[allow(clippy::needless_pass_by_value, reason = "the original's signature")]
    pub fn add(mut self, name: &str, histogram: Histogram) -> Self {
        self.lines.push(format!("{name}: {}", histogram.percentile_stats()));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lines.iter().try_for_each(|line| writeln!(out, "{line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_in_the_bucket_that_begins_at_or_below_it() {
        for value in (0..10_000).chain([u64::MAX / 3, u64::MAX - 1, u64::MAX]) {
            let bucket = bucket(value);
            assert!(bucket < BUCKETS && least(bucket) <= value, "{value} in {bucket}");
            assert!(bucket + 1 == BUCKETS || least(bucket + 1) > value, "{value} in {bucket}");
        }
    }

    #[test]
    fn percentiles_are_those_of_the_values() {
        let mut histogram = Histogram::<()>::new();
        (1..=1000).for_each(|value| histogram.record(value));
        let stats = histogram.percentile_stats();
        assert_eq!((stats.samples, stats.p50, stats.p99), (1000, 448, 896));
        assert_eq!(Histogram::<()>::new().percentile(0.5), 0);
    }
}
