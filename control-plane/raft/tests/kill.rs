//! `kill -9` of a writing process at random moments: what it was told is there, whatever it did last.

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{create, key, small};
use coracle_raft::Raft;
use rand::RngExt;

const DIRECTORY: &str = "CORACLE_KILL_DIR";

/// Not a test but the process that is killed.
#[test]
fn writer_process() {
    let Ok(dir) = std::env::var(DIRECTORY) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let raft = Raft::open(small(Path::new(&dir))).await.unwrap();
        let mut next = raft.view().len();
        loop {
            // Several at once, so that frames hold more than one.
            let batch = (next..next + 5).map(|number| create(&number.to_string(), 300)).collect();
            for answer in raft.propose_many(batch).await {
                answer.unwrap();
                next += 1;
            }
            tell(next);
        }
    });
}

#[allow(clippy::print_stdout)] // its standard output is what the test reads
fn tell(count: usize) {
    println!("acknowledged {count}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_kill_loses_what_was_acknowledged() {
    if std::env::var(DIRECTORY).is_ok() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut known = 0;
    for round in 0..15 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "writer_process", "--nocapture"])
            .env(DIRECTORY, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut left = rand::rng().random_range(1..40);
        let mut line = String::new();
        while left > 0 {
            line.clear();
            assert!(lines.read_line(&mut line).unwrap() > 0, "the writer ended by itself in round {round}");
            if let Some(count) = line.strip_prefix("acknowledged ") {
                known = count.trim().parse().unwrap();
                left -= 1;
            }
        }
        child.kill().unwrap();
        // What it said before it died counts too.
        let mut rest = String::new();
        lines.read_to_string(&mut rest).unwrap();
        for count in rest.lines().filter_map(|line| line.strip_prefix("acknowledged ")?.parse().ok()) {
            known = count;
        }
        child.wait().unwrap();

        let raft = Raft::open(small(dir.path())).await.unwrap();
        let view = raft.view();
        assert!(view.len() >= known, "round {round}: {known} acknowledged, {} there", view.len());
        for number in 0..view.len() {
            assert!(
                view.get(&key(&number.to_string())).is_some(),
                "round {round}: {number} is missing of {}",
                view.len()
            );
        }
        raft.shutdown().await;
    }
    assert!(known > 15);
}
