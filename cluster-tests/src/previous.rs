//! The release before this one: its program, which `cargo xtask previous` builds from the history of this repository, and data that it
//! has written, which is kept with the tests.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::machine::{Machine, workspace};

/// Kept data stays below this, packed.
const KEPT_AT_MOST: u64 = 200_000;

/// Which commit it is, in full.
///
/// # Panics
/// The file that says it is gone.
#[must_use]
pub fn revision() -> String {
    let file = workspace().join("tools/previous-release.txt");
    let text = std::fs::read_to_string(&file).expect("tools/previous-release.txt names the release before");
    let line = text.lines().find(|line| !line.is_empty() && !line.starts_with('#'));
    line.expect("a commit").split_whitespace().next().unwrap_or_default().to_owned()
}

/// The program; `None`, and word that the test is skipped, when this clone does not hold the commit.
///
/// # Panics
/// The commit is there, and the program has not been built.
#[must_use]
pub fn previous() -> Option<PathBuf> {
    let revision = revision();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    let program = target.join("previous").join(&revision).join("coracle");
    if program.exists() {
        return Some(program);
    }
    let known = Command::new("git")
        .args(["cat-file", "-e", &format!("{revision}^{{commit}}")])
        .current_dir(workspace())
        .status()
        .is_ok_and(|status| status.success());
    assert!(!known, "{} is missing: run `cargo xtask previous` first", program.display());
    println!("SKIP: the history of the release before is not here (a shallow clone)");
    None
}

/// Where its data is kept: log, snapshot and the agent's ledger, no keys.
fn kept() -> PathBuf {
    workspace().join("cluster-tests/tests/data/previous-release.tar.gz")
}

/// Has a program write data: a snapshot, a log behind it, and a ledger with a pod. It is stopped at the end, its pod runs.
///
/// # Panics
/// It does not come to that.
pub fn write_data(machine: &mut Machine) {
    machine.up();
    machine.import_hello();
    machine.apply(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: in-snapshot}\ndata: {value: one}\n---\napiVersion: v1\nkind: Secret\nmetadata: {name: word}\nstringData: {word: open}\n",
    );
    let hello = std::fs::read_to_string(workspace().join("examples/hello.yaml")).expect("the example");
    machine.apply(&hello.replace("replicas: 3", "replicas: 1"));
    machine.wait_ready("hello", 1);
    // The log becomes a snapshot.
    let file = machine.folder().join("data.backup").display().to_string();
    let _ = machine.coracle(&["backup", &file]);
    machine.stop();
    std::fs::remove_dir_all(machine.data().join("log")).expect("the log goes");
    let _ = machine.coracle(&["restore", &file]);
    machine.up();
    machine.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: in-log}\ndata: {value: two}\n");
    machine.wait_ready("hello", 1);
    machine.stop();
}

/// Keeps the data of a machine for the tests of the releases to come.
///
/// # Panics
/// They cannot be packed, or are too large.
pub fn keep_data(machine: &Machine) {
    let archive = kept();
    std::fs::create_dir_all(archive.parent().expect("a folder")).expect("a folder");
    let mut tar = Command::new("tar");
    tar.args(["--sparse", "--owner=0", "--group=0", "-czf"]).arg(&archive).arg("-C").arg(machine.data());
    assert!(tar.args(["log", "ledger.redb"]).status().expect("tar").success());
    let bytes = std::fs::metadata(&archive).expect("the archive").len();
    assert!(bytes < KEPT_AT_MOST, "{} has {bytes} bytes", archive.display());
    println!("{}: {bytes} bytes", archive.display());
}

/// Unpacks what was kept into a data folder that is not there yet.
///
/// # Panics
/// It cannot be unpacked.
pub fn unpack_data(data: &Path) {
    std::fs::create_dir_all(data).expect("a folder");
    let unpacked = Command::new("tar").arg("-xzf").arg(kept()).arg("-C").arg(data).status().expect("tar");
    assert!(unpacked.success(), "{} cannot be unpacked", kept().display());
}

/// Starts this release with such data, and looks whether everything is there and goes on.
///
/// # Panics
/// Something is not.
pub fn expect_data(machine: &mut Machine) {
    let identity = machine.data().join("log/identity");
    let text = || std::fs::read_to_string(&identity).expect("an identity");
    assert!(text().starts_with("format 1\n"), "{}", text());
    machine.runs(None).up();
    for (name, value) in [("in-snapshot", "one"), ("in-log", "two")] {
        assert_eq!(machine.get(&[&format!("configmap/{name}")])["data"]["value"], value);
    }
    // "open"
    assert_eq!(machine.get(&["secret/word"])["data"]["word"], "b3Blbg==");
    machine.import_hello();
    machine.wait_ready("hello", 1);
    machine.wait("the level to rise", |_| text().starts_with("format 2\n") && text().ends_with("level 2\n"));
    machine.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: new}\n");
    machine.kill();
    machine.up();
    for name in ["in-snapshot", "in-log", "new"] {
        assert_eq!(machine.get(&[&format!("configmap/{name}")])["metadata"]["name"], name);
    }
}
