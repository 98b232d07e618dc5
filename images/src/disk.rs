//! Small durable steps on disk: a file is there wholly or not at all, a lock ends with its process.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FlockOperation;

/// Makes a directory only its owner may enter; one that is there is kept.
pub fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Brings a directory's own entries (creations, renames) to the disk.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A name nobody else uses, of this process or another.
pub fn unique() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("{}-{}-{:x}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed), since.as_nanos())
}

/// Writes a file so that a reader, and a machine after a power cut, sees the old contents or the new.
pub fn write_whole(path: &Path, contents: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let temporary = dir.join(format!("{TEMPORARY}{}", unique()));
    let outcome = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        sync_dir(dir)
    })();
    if outcome.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    outcome
}

/// How the names of unfinished files begin.
pub const TEMPORARY: &str = ".new-";

/// A lock file, held until dropped or until the process ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not read")] File);

impl Lock {
    fn file(path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
    }

    /// Waits until nobody holds it exclusively.
    pub fn shared(path: &Path) -> io::Result<Self> {
        let file = Self::file(path)?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockShared))?;
        Ok(Self(file))
    }

    /// Waits until nobody holds it.
    pub fn exclusive(path: &Path) -> io::Result<Self> {
        let file = Self::file(path)?;
        rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::LockExclusive))?;
        Ok(Self(file))
    }

    /// `None` when somebody holds it.
    pub fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        Self::try_file(Self::file(path)?)
    }

    fn try_file(file: File) -> io::Result<Option<Self>> {
        match rustix::io::retry_on_intr(|| rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)) {
            Ok(()) => Ok(Some(Self(file))),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// A directory for something unfinished. Gone when dropped, unless it was renamed; after a crash, [`sweep`] finds its lock free.
#[derive(Debug)]
pub struct Ingest {
    path: PathBuf,
    _lock: Lock,
}

impl Ingest {
    /// A new one in `parent`.
    pub fn new(parent: &Path) -> io::Result<Self> {
        for _ in 0..16 {
            let path = parent.join(unique());
            DirBuilder::new().mode(0o700).create(&path)?;
            // A sweep of another process may see the directory before its lock; then another one is made.
            let Ok(file) = File::open(&path) else { continue };
            if let Some(lock) = Lock::try_file(file)?
                && path.exists()
            {
                return Ok(Self { path, _lock: lock });
            }
        }
        Err(io::Error::other("somebody sweeps the directory all the time"))
    }

    /// Where.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        let _ = crate::tree::remove(&self.path);
    }
}

/// Removes what no living process works on.
pub fn sweep(parent: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(parent)? {
        let path = entry?.path();
        let Ok(file) = File::open(&path) else { continue };
        if Lock::try_file(file)?.is_some() {
            crate::tree::remove(&path)?;
        }
    }
    Ok(())
}
