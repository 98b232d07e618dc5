//! Many seeds, on as many threads as there are processors: each run is on one thread from its beginning to its end.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;

use crate::{Broken, Report, Settings, run};

/// Runs seeds in any order. `told` hears of each as it ends, with its seed and the seconds it took, and says whether to go on:
/// with `false` no more are begun.
///
/// # Panics
/// When a run does.
pub fn run_many(
    seeds: Range<u64>,
    settings: impl Fn(u64) -> Settings + Sync,
    told: impl FnMut(u64, f64, &Result<Report, Broken>) -> bool + Send,
) {
    let next = AtomicU64::new(seeds.start);
    let told = Mutex::new(told);
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let began = std::time::Instant::now();
            let result = run(settings(seed));
            let goes_on = told.lock().expect("no run panicked")(seed, began.elapsed().as_secs_f64(), &result);
            if !goes_on {
                next.store(seeds.end, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
}
