//! The kubectl binaries of this machine, for every test that drives real ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Every kubectl there is: in `KUBECTL_DIR`, or beside the one on the path. Versioned ones (`kubectl.1.31`) are taken before a
/// plain one, which may only be a dispatcher.
#[must_use]
pub fn binaries() -> Vec<(String, PathBuf)> {
    let mut dirs: Vec<PathBuf> = Vec::new();
    if let Some(dir) = std::env::var_os("KUBECTL_DIR") {
        dirs.push(dir.into());
    } else {
        for dir in std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()) {
            if let Ok(real) = dir.join("kubectl").canonicalize() {
                dirs.extend(real.parent().map(Path::to_owned));
            }
        }
    }
    let mut found = BTreeMap::new();
    for dir in dirs {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "kubectl" || name.starts_with("kubectl.1.") {
                found.entry(name).or_insert_with(|| entry.path());
            }
        }
    }
    if found.len() > 1 {
        found.remove("kubectl");
    }
    found.into_iter().collect()
}
