//! Mistakes made on purpose are noticed, each within a hundred seeds.

use coracle_sim::{Bug, Settings, run};

const WITHIN: u64 = 100;

fn caught(bug: Bug, by: &[&str]) {
    for seed in 0..WITHIN {
        if let Err(broken) = run(Settings { bug: Some(bug), ..Settings::of(seed) }) {
            println!("{bug:?} is noticed: {broken}");
            assert!(
                by.iter().any(|words| broken.how.contains(words)),
                "{bug:?} is noticed as something else: {broken}"
            );
            return;
        }
    }
    panic!("{bug:?} is not noticed within {WITHIN} seeds");
}

#[test]
fn a_watch_event_that_is_dropped() {
    caught(Bug::DropWatchEvent, &["watcher"]);
}

#[test]
fn a_vote_that_is_not_written() {
    caught(Bug::SkipVotePersist, &["had voted", "another entry", "acknowledged"]);
}

#[test]
fn a_log_that_is_not_synced() {
    caught(
        Bug::SkipFsync,
        &["does not start", "had voted", "another entry", "acknowledged", "another state", "take no writes"],
    );
}

#[test]
fn a_lease_that_is_granted_twice() {
    caught(Bug::DoubleGrant, &["the fenced pod runs"]);
}

#[test]
fn a_lease_that_a_follower_grants() {
    caught(Bug::FollowerGrants, &["the fenced pod runs"]);
}
