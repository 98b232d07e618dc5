//! Seeds: `CORACLE_SIM_SEED=n` runs one, `CORACLE_SIM_SEEDS=n` so many.

use coracle_sim::{Settings, run};

/// As many as take well under a minute.
const SEEDS: u64 = 3;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn promises_hold_under_faults_and_all_is_well_after_them() {
    let seeds = match number("CORACLE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("CORACLE_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let mut broken = Vec::new();
    for seed in seeds {
        let began = std::time::Instant::now();
        match run(Settings::of(seed)) {
            Ok(report) => println!("seed {seed}: {:?}, {report:?}", began.elapsed()),
            Err(how) => {
                println!("BROKEN {how}");
                broken.push(how);
            }
        }
    }
    assert!(broken.is_empty(), "{} seeds broke a promise, first: {}", broken.len(), broken[0]);
}
