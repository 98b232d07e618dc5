//! A ledger that an agent of the release before has written, kept with the tests of clusters, is read by this one.

use std::path::Path;
use std::process::Command;

use coracle_daemon::Drain;
use coracle_node_agent::ledger::Ledger;

#[tokio::test]
async fn the_ledger_of_the_release_before_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("../cluster-tests/tests/data/previous-release.tar.gz");
    let unpacked = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(folder.path()).status().unwrap();
    assert!(unpacked.success());
    let drain = Drain::new();
    let ledger = Ledger::open(folder.path(), &folder.path().join("run"), &drain.watch()).unwrap();
    let state = ledger.state();
    assert!(state.generation.epoch > 0 && state.generation.revision > 0, "{:?}", state.generation);
    let pods: Vec<String> = state.list("pods").map(|(key, _)| key.name.clone()).collect();
    assert!(matches!(pods.as_slice(), [pod] if pod.starts_with("hello-")), "{pods:?}");
    assert!(state.list("services").any(|(key, _)| key.name == "hello"));
    assert!(state.settings.is_some());
}
