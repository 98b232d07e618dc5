//! A process that is killed in the middle of an import, again and again: the store is always the old one or the new one.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "the registry is for other tests")]
mod support;

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use coracle_images::{ImageStore, Quiet};

const STORE: &str = "CORACLE_TEST_CRASH_STORE";
const LAYOUT: &str = "CORACLE_TEST_CRASH_LAYOUT";

/// What the child does; does nothing when it is run as a test.
#[test]
fn child() {
    let (Some(store), Some(layout)) = (std::env::var_os(STORE), std::env::var_os(LAYOUT)) else { return };
    let store = ImageStore::open(PathBuf::from(store)).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(store.import(&PathBuf::from(layout), Arc::new(Quiet))).unwrap();
}

#[test]
fn a_killed_import_leaves_the_old_state_or_the_new() {
    if !rustix::process::geteuid().is_root() {
        println!("SKIP: layers have owners, so this test needs root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (layout, store) = (dir.path().join("oci"), dir.path().join("store"));
    support::sample(&layout);
    let name = "example.com/app:1".parse().unwrap();
    let start = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["child", "--exact", "--quiet"])
            .env(STORE, &store)
            .env(LAYOUT, &layout)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let (mut before, mut after) = (0, 0);
    // How long it takes undisturbed; the kills are spread over a little more than that.
    let began = Instant::now();
    assert!(start().wait().unwrap().success());
    let whole = began.elapsed();
    for step in 0..60 {
        let opened = ImageStore::open(&store).unwrap();
        opened.remove(&name).unwrap();
        opened.gc(&HashSet::new()).unwrap();
        let mut child = start();
        // Not a wait for something to happen: the moment of the kill is what is varied.
        std::thread::park_timeout(whole * step / 45);
        let _ = child.kill();
        child.wait().unwrap();
        let opened = ImageStore::open(&store).unwrap();
        match opened.find(&name).unwrap() {
            None => before += 1,
            Some(image) => {
                after += 1;
                assert_eq!(std::fs::metadata(image.layers[0].join("data/noise")).unwrap().len(), 1 << 20);
                assert_eq!(std::fs::read(image.layers[1].join("etc/app")).unwrap(), b"app");
            }
        }
        for part in ["ingest", "trash"] {
            assert_eq!(std::fs::read_dir(store.join(part)).unwrap().count(), 0, "{part} is swept");
        }
        opened.remove(&name).unwrap();
        let report = opened.gc(&HashSet::new()).unwrap();
        assert!(!report.busy, "the lock ends with its process");
        assert_eq!(std::fs::read_dir(store.join("layers")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(store.join("blobs/sha256")).unwrap().count(), 0);
    }
    println!("{before} kills left the old state, {after} the new one");
    assert!(before > 0, "at least the first kill comes too early");
}
