//! Seeds: `CORACLE_SIM_SEED=n` runs one, `CORACLE_SIM_SEEDS=n` so many, `CORACLE_SIM_FIRST=n` from there.

use coracle_sim::{Settings, run_many};

/// As many as take well under a minute unoptimised.
const SEEDS: u64 = 4;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn promises_hold_under_faults_and_all_is_well_after_them() {
    let seeds = match number("CORACLE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("CORACLE_SIM_FIRST").unwrap_or(0);
            first..first + number("CORACLE_SIM_SEEDS").unwrap_or(SEEDS)
        }
    };
    let mut broken = Vec::new();
    run_many(seeds, Settings::of, |seed, seconds, result| {
        match result {
            Ok(report) => println!("seed {seed}: {seconds:.2} s, {report:?}"),
            Err(how) => {
                println!("BROKEN {how}");
                broken.push(how.clone());
            }
        }
        true
    });
    assert!(broken.is_empty(), "{} seeds broke a promise, first: {}", broken.len(), broken[0]);
}

// Without the flag tokio throws dice of its own: `cargo xtask sim` sets it.
#[cfg(tokio_unstable)]
#[test]
fn the_same_seed_is_the_same_run() {
    for seed in 1..8 {
        let once = coracle_sim::run(Settings::of(seed)).map(|report| (report.trace, report.lasted_ms));
        let again = coracle_sim::run(Settings::of(seed)).map(|report| (report.trace, report.lasted_ms));
        assert_eq!(once.map_err(|broken| broken.trace), again.map_err(|broken| broken.trace), "seed {seed}");
    }
}
