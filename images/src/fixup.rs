//! Directories that a layer needed and did not describe get their attributes from the layers below.
//!
//! Layers are unpacked without knowing what lies under them (so that they are unpacked once, in any order, for every image).
//! A layer that has `/tmp/x` but no entry for `/tmp` therefore has a `/tmp` of mode 0755, and in an overlay the topmost directory
//! decides. Where a layer below says otherwise, a small layer on top of the image puts it right.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid};
use rustix::io::Errno;

use crate::store::LayerFacts;

/// Attributes of one directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: (i64, i64),
}

/// What a layer that nobody described gets.
fn made_up(found: &Attributes) -> bool {
    found.mode == 0o755 && found.uid == 0 && found.gid == 0
}

/// What one layer has at a path.
enum Found {
    /// Nothing; the layers below show through.
    Nothing,
    /// Nothing, and what is below is hidden.
    Hidden,
    /// A directory; the flag tells whether what is below it is hidden.
    Directory(Attributes, bool),
}

/// The directories a top layer must have, parents first; empty when all is well. `stack` is top first.
pub fn plan(stack: &[(PathBuf, LayerFacts)]) -> io::Result<BTreeMap<String, Attributes>> {
    let mut wanted = BTreeMap::new();
    let implicit: BTreeSet<&str> =
        stack.iter().flat_map(|(_, facts)| facts.implicit.iter().map(String::as_str)).collect();
    if implicit.is_empty() || stack.len() < 2 {
        return Ok(wanted);
    }
    let layers = stack
        .iter()
        .map(|(dir, facts)| {
            let root = rustix::fs::openat(CWD, dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            Ok((root, facts.implicit.iter().map(String::as_str).collect::<BTreeSet<_>>(), facts.opaque_root))
        })
        .collect::<io::Result<Vec<_>>>()?;
    for path in implicit {
        let Some((attributes, described_on_top)) = effective(&layers, path)? else { continue };
        if described_on_top || made_up(&attributes) {
            continue;
        }
        // The parents appear in the new layer too and must say what they said before.
        for (at, _) in path.match_indices('/') {
            if let Some((attributes, _)) = effective(&layers, &path[..at])? {
                wanted.insert(path[..at].to_owned(), attributes);
            }
        }
        wanted.insert(path.to_owned(), attributes);
    }
    Ok(wanted)
}

type Layer<'a> = (OwnedFd, BTreeSet<&'a str>, bool);

/// The attributes the image means for a directory, and whether the topmost layer that has it also describes it. `None`: the
/// image has no such directory, or no layer describes it.
fn effective(layers: &[Layer<'_>], path: &str) -> io::Result<Option<(Attributes, bool)>> {
    let mut on_top = true;
    for (root, implicit, opaque_root) in layers {
        match look(root, path)? {
            Found::Hidden => return Ok(None),
            Found::Nothing => {}
            Found::Directory(attributes, _) if !implicit.contains(path) => return Ok(Some((attributes, on_top))),
            Found::Directory(_, true) => return Ok(None),
            Found::Directory(..) => on_top = false,
        }
        if *opaque_root {
            break;
        }
    }
    Ok(None)
}

fn look(root: &OwnedFd, path: &str) -> io::Result<Found> {
    let mut at = root.try_clone()?;
    let mut opaque = false;
    let mut last: Option<Stat> = None;
    for part in path.split('/') {
        let found = match rustix::fs::statat(&at, part, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(if opaque { Found::Hidden } else { Found::Nothing }),
            Err(error) => return Err(error.into()),
        };
        // A whiteout, a file, a link: whatever it is, no directory of a layer below shows through.
        if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
            return Ok(Found::Hidden);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        at = rustix::fs::openat(&at, part, flags, Mode::empty())?;
        let mut value = [0u8; 1];
        opaque |= rustix::fs::fgetxattr(&at, "trusted.overlay.opaque", &mut value).is_ok_and(|_| value == *b"y");
        last = Some(found);
    }
    let Some(found) = last else { return Ok(Found::Nothing) };
    let attributes = Attributes {
        mode: found.st_mode & 0o7777,
        uid: found.st_uid,
        gid: found.st_gid,
        mtime: (found.st_mtime, i64::try_from(found.st_mtime_nsec).unwrap_or_default()),
    };
    Ok(Found::Directory(attributes, opaque))
}

/// Makes the planned directories in the empty directory `dir`. The paths were made by an unpacker that allows no `..` in them,
/// and every one of them is created here, so nothing can lead away.
pub fn make(dir: &Path, directories: &BTreeMap<String, Attributes>) -> io::Result<()> {
    let root = rustix::fs::openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for path in directories.keys() {
        rustix::fs::mkdirat(&root, path.as_str(), Mode::from_raw_mode(0o700))?;
    }
    for (path, attributes) in directories.iter().rev() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(&root, path.as_str(), flags, Mode::empty())?;
        rustix::fs::fchown(&directory, Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)))?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(attributes.mode))?;
        let time = Timespec { tv_sec: attributes.mtime.0, tv_nsec: attributes.mtime.1 };
        rustix::fs::futimens(&directory, &Timestamps { last_access: time, last_modification: time })?;
    }
    rustix::fs::syncfs(&root)?;
    Ok(())
}
