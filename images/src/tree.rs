//! Trees that somebody else made: removed and measured without recursion and without paths, since a container may nest
//! directories deeper than any stack, any path and any number of open files.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
/// Directories kept open: that many next to the top, and that many next to where the walk is.
const OPEN: usize = 32;

/// Removes a directory and everything in it, or a file; what is not there is removed already. Links are not followed.
///
/// # Errors
/// The file system's word; also when somebody adds to the tree at the same time.
pub fn remove(path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    match remove_at(CWD, &name) {
        Err(Errno::NOENT) => Ok(()),
        other => Ok(other?),
    }
}

/// The same for a name in an open directory, which must be there.
pub(crate) fn remove_at(parent: BorrowedFd<'_>, name: &CStr) -> Result<(), Errno> {
    // POSIX lets a file system say EPERM of a directory.
    let refused = match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(error @ (Errno::ISDIR | Errno::PERM)) => error,
        other => return other,
    };
    let opened = rustix::fs::openat(parent, name, DIRECTORY, Mode::empty());
    let opened = opened.map_err(|error| if error == Errno::NOTDIR { refused } else { error })?;
    let mut walk = Walk::new(opened, Resume::Start)?;
    walk.all(&mut |directory, entry| {
        let Step::Found(name, kind) = entry else {
            let Step::Left(name) = entry else { return Ok(Go::On) };
            return rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR).map(|()| Go::On);
        };
        if kind == FileType::Directory {
            return Ok(Go::In);
        }
        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(Go::On),
            Err(Errno::ISDIR) => Ok(Go::In),
            Err(error) => Err(error),
        }
    })?;
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

/// Bytes that the files of a tree take on disk, as far as they can be seen. Links are not followed. Somebody may work in the
/// tree meanwhile: what moves is counted once, twice or not at all.
#[must_use]
pub fn used_bytes(path: &Path) -> u64 {
    let mut used = 0;
    let opened = rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty());
    let Ok(mut walk) = opened.and_then(|top| Walk::new(top, Resume::Position)) else { return 0 };
    let _ = walk.all(&mut |directory, entry| {
        let Step::Found(name, _) = entry else { return Ok(Go::On) };
        let Ok(meta) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(Go::On) };
        if FileType::from_raw_mode(meta.st_mode) == FileType::Directory {
            return Ok(Go::In);
        }
        used += u64::try_from(meta.st_blocks).unwrap_or_default() * 512;
        Ok(Go::On)
    });
    used
}

/// What the walk meets, always in the directory that is given with it.
enum Step<'a> {
    /// An entry.
    Found(&'a CStr, FileType),
    /// A directory whose entries have all been met.
    Left(&'a CStr),
}

/// Whether to go into what was found.
enum Go {
    On,
    In,
}

/// Where a directory is read on that was closed meanwhile.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Resume {
    /// What was met is gone.
    Start,
    /// After what was met.
    Position,
}

/// One directory on the way from the top.
struct Level {
    /// Its name in the one above.
    name: CString,
    /// Device and inode.
    id: (u64, u64),
    /// Closed when it is in the middle of a long way.
    dir: Option<Dir>,
    position: i64,
}

fn id(meta: &Stat) -> (u64, u64) {
    (meta.st_dev, meta.st_ino)
}

impl Level {
    fn new(name: CString, opened: OwnedFd) -> Result<Self, Errno> {
        let id = id(&rustix::fs::fstat(&opened)?);
        Ok(Self { name, id, dir: Some(Dir::new(opened)?), position: 0 })
    }
}

struct Walk {
    way: Vec<Level>,
    resume: Resume,
}

impl Walk {
    fn new(top: OwnedFd, resume: Resume) -> Result<Self, Errno> {
        Ok(Self { way: vec![Level::new(CString::default(), top)?], resume })
    }

    /// Meets everything, contents before their directory. Errors of `meet` end the walk.
    fn all(&mut self, meet: &mut dyn FnMut(BorrowedFd<'_>, Step<'_>) -> Result<Go, Errno>) -> Result<(), Errno> {
        while let Some(level) = self.way.last_mut() {
            // Always open: `leave` sees to that.
            let Some(dir) = &mut level.dir else { return Err(Errno::STALE) };
            let Some(entry) = dir.read().transpose()? else {
                self.leave(meet)?;
                continue;
            };
            let name = entry.file_name();
            level.position = entry.offset();
            if name == c"." || name == c".." {
                continue;
            }
            if let Go::In = meet(dir.fd()?, Step::Found(name, entry.file_type()))? {
                match rustix::fs::openat(dir.fd()?, name, DIRECTORY, Mode::empty()) {
                    Ok(opened) => self.enter(Level::new(name.to_owned(), opened)?),
                    // Gone, or something else by now.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(_) if self.resume == Resume::Position => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn enter(&mut self, level: Level) {
        self.way.push(level);
        let Some(middle) = self.way.len().checked_sub(OPEN + 1).filter(|middle| *middle >= OPEN) else { return };
        self.way[middle].dir = None;
    }

    /// Back to the directory above, opened again by `..` if need be: only if it still is the one that the way led through,
    /// since whoever moves directories meanwhile must not lead the walk out of the tree.
    fn leave(&mut self, meet: &mut dyn FnMut(BorrowedFd<'_>, Step<'_>) -> Result<Go, Errno>) -> Result<(), Errno> {
        let Some(Level { name, dir: Some(below), .. }) = self.way.pop() else { return Ok(()) };
        let Some(above) = self.way.last_mut() else { return Ok(()) };
        if above.dir.is_none() {
            let opened = rustix::fs::openat(below.fd()?, c"..", DIRECTORY, Mode::empty())?;
            if id(&rustix::fs::fstat(&opened)?) == above.id {
                let mut dir = Dir::new(opened)?;
                if self.resume == Resume::Position {
                    dir.seek(above.position)?;
                }
                above.dir = Some(dir);
            } else if self.resume == Resume::Start {
                return Err(Errno::STALE);
            } else {
                // Goes on from the next directory above that is still open; the top always is.
                while self.way.last().is_some_and(|level| level.dir.is_none()) {
                    self.way.pop();
                }
                return Ok(());
            }
        }
        match &above.dir {
            Some(dir) => meet(dir.fd()?, Step::Left(&name)).map(drop),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Far beyond `PATH_MAX`, the stack of a thread for recursion, and the number of open files.
    const DEEP: usize = 25_000;

    /// Directories in each other, with a file of some bytes in every thousandth, beside the next directory.
    fn nest(top: &Path) {
        std::fs::create_dir(top).unwrap();
        let mut at = rustix::fs::openat(CWD, top, DIRECTORY, Mode::empty()).unwrap();
        for level in 0..DEEP {
            if level % 1000 == 0 {
                let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&at, "file", flags, Mode::RWXU).unwrap();
                rustix::io::write(&file, &[1; 5000]).unwrap();
                rustix::fs::symlinkat("/", &at, "link").unwrap();
            }
            rustix::fs::mkdirat(&at, "deep", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "deep", DIRECTORY, Mode::empty()).unwrap();
        }
    }

    #[test]
    fn trees_of_any_depth_are_measured_and_removed() {
        // In memory where possible: disks take minutes for that many directories.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let (tree, beside) = (dir.path().join("tree"), dir.path().join("beside"));
        std::fs::write(&beside, "stays").unwrap();
        nest(&tree);
        std::os::unix::fs::symlink(&beside, tree.join("out")).unwrap();
        // As little stack as there may be: what recursed a thousand times would end the process here.
        let small = |work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().stack_size(64 << 10).spawn(work).unwrap().join().unwrap();
        };
        let measured = tree.clone();
        small(Box::new(move || assert_eq!(used_bytes(&measured), 25 * 8192)));
        let removed = tree.clone();
        small(Box::new(move || remove(&removed).unwrap()));
        assert!(!tree.exists());
        assert_eq!(std::fs::read_to_string(&beside).unwrap(), "stays");
        remove(&tree).unwrap();
        assert!(remove(&beside.join("below")).is_err(), "a file is no directory");
    }

    #[test]
    fn a_directory_is_read_on_where_it_was_left() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        // Wide where it is deep enough to be closed: each branch is longer than what stays open.
        let path = tree.join("a/".repeat(OPEN + 3));
        for branch in 0..200 {
            let branch = path.join(format!("branch-{branch}"));
            std::fs::create_dir_all(branch.join("b/".repeat(OPEN + 3))).unwrap();
            std::fs::write(branch.join("file"), [1; 100]).unwrap();
        }
        assert_eq!(used_bytes(&tree), 200 * 4096);
        remove(&tree).unwrap();
        assert!(!tree.exists());
    }
}
