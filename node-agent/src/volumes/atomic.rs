//! Directories of keys (ConfigMaps, Secrets) that change all at once: readers see the old set or the new one, never a mix.
//!
//! ```text
//!   key       -> ..data/key          a link per top-level name
//!   ..data    -> ..1764150000000     replaced by rename
//!   ..1764150000000/key              the files
//! ```

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path};

/// A file to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its mode.
    pub mode: u32,
}

/// Whether a path of a key may stand in a volume: relative, no `..`, not one of our own names.
#[must_use]
pub fn is_fit(path: &str) -> bool {
    let path = Path::new(path);
    path.components().next().is_some()
        && path.components().all(|part| matches!(part, Component::Normal(_)))
        && !path.to_string_lossy().starts_with("..")
}

/// Makes `dir` hold exactly `files` (by relative path). `stamp` names the new set and must differ from the last one's;
/// `group` owns the files. Returns whether anything changed.
///
/// # Errors
/// The file system's word.
pub fn write(dir: &Path, files: &BTreeMap<String, Content>, group: Option<u32>, stamp: &str) -> std::io::Result<bool> {
    make_dir(dir, 0o755)?;
    let data = dir.join("..data");
    let before = std::fs::read_link(&data).ok();
    if before.as_ref().is_some_and(|old| same(&dir.join(old), files)) {
        return Ok(false);
    }
    let set = format!("..{stamp}");
    let fresh = dir.join(&set);
    let _ = std::fs::remove_dir_all(&fresh);
    make_dir(&fresh, 0o755)?;
    for (path, content) in files {
        let target = fresh.join(path);
        if let Some(parent) = target.parent().filter(|parent| *parent != fresh) {
            make_dir(parent, 0o755)?;
        }
        let mode = content.mode | if group.is_some() { 0o440 } else { 0 };
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&target)?;
        file.write_all(&content.bytes)?;
        if let Some(group) = group {
            std::os::unix::fs::fchown(&file, None, Some(group))?;
        }
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
    }
    let temp = dir.join("..data_tmp");
    let _ = std::fs::remove_file(&temp);
    std::os::unix::fs::symlink(&set, &temp)?;
    std::fs::rename(&temp, &data)?;
    links(dir, files)?;
    if let Some(old) = before.filter(|old| old.as_os_str() != set.as_str()) {
        let _ = std::fs::remove_dir_all(dir.join(old));
    }
    Ok(true)
}

/// Whether a set holds exactly these files.
fn same(set: &Path, files: &BTreeMap<String, Content>) -> bool {
    count(set) == Some(files.len())
        && files.iter().all(|(path, content)| std::fs::read(set.join(path)).is_ok_and(|bytes| bytes == content.bytes))
}

fn count(dir: &Path) -> Option<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(dir).ok()? {
        let entry = entry.ok()?;
        count += if entry.file_type().ok()?.is_dir() { self::count(&entry.path())? } else { 1 };
    }
    Some(count)
}

/// A link for each top-level name; links of names that are gone go too.
fn links(dir: &Path, files: &BTreeMap<String, Content>) -> std::io::Result<()> {
    let tops: std::collections::BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for top in &tops {
        let link = dir.join(top);
        let target = format!("..data/{top}");
        if std::fs::read_link(&link).is_ok_and(|old| old.as_os_str() == target.as_str()) {
            continue;
        }
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(&target, &link)?;
    }
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name.to_string_lossy().starts_with("..");
        if !ours && !name.to_str().is_some_and(|name| tops.contains(name)) && entry.file_type()?.is_symlink() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

pub(super) fn make_dir(dir: &Path, mode: u32) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(mode).create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> BTreeMap<String, Content> {
        list.iter()
            .map(|(path, text)| ((*path).to_owned(), Content { bytes: text.as_bytes().to_vec(), mode: 0o640 }))
            .collect()
    }

    fn visible(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with(".."))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_change_swaps_the_whole_set() {
        let dir = tempfile::tempdir().unwrap();
        assert!(write(dir.path(), &files(&[("a", "1"), ("sub/b", "2")]), None, "1").unwrap());
        assert_eq!(visible(dir.path()), ["a", "sub"]);
        assert_eq!(std::fs::read_to_string(dir.path().join("sub/b")).unwrap(), "2");
        let mode = std::fs::metadata(dir.path().join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        // What is the same is left alone.
        assert!(!write(dir.path(), &files(&[("a", "1"), ("sub/b", "2")]), None, "2").unwrap());
        assert!(dir.path().join("..1").exists());
        assert!(write(dir.path(), &files(&[("a", "new"), ("c", "3")]), None, "3").unwrap());
        assert_eq!(visible(dir.path()), ["a", "c"]);
        assert_eq!(std::fs::read_to_string(dir.path().join("a")).unwrap(), "new");
        assert!(!dir.path().join("..1").exists());
    }

    #[test]
    fn paths_that_would_leave_the_volume_are_not_fit() {
        for (path, fit) in [
            ("a", true),
            ("a/b.txt", true),
            ("../x", false),
            ("/x", false),
            ("a/../../x", false),
            ("..data", false),
            ("", false),
            (".hidden", true),
        ] {
            assert_eq!(is_fit(path), fit, "{path}");
        }
    }
}
