//! A small disk of its own for a test: ext4 in a file, mounted; unmounted and gone with the test.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate};

/// A mounted file system.
pub struct Disk {
    // Beside a machine's folder, which must be free of mounts in the end.
    dir: tempfile::TempDir,
}

impl Disk {
    /// One of this size.
    ///
    /// # Panics
    /// It cannot be made or mounted: root and e2fsprogs are needed.
    #[must_use]
    pub fn new(megabytes: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("disk-").tempdir().expect("a temporary folder");
        let file = dir.path().join("image");
        std::fs::File::create(&file).and_then(|image| image.set_len(megabytes << 20)).expect("a sparse file");
        let mount = dir.path().join("mount");
        std::fs::create_dir(&mount).expect("a mount point");
        // Nothing is kept back for root: we are root, and full must be full.
        let made = Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&file).status();
        assert!(made.is_ok_and(|status| status.success()), "mkfs.ext4 is needed: it is in e2fsprogs");
        let mounted = Command::new("mount").args(["-o", "loop"]).arg(&file).arg(&mount).status();
        assert!(mounted.is_ok_and(|status| status.success()), "a loop device cannot be mounted: root is needed");
        Self { dir }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    /// Takes all space that is left.
    ///
    /// # Panics
    /// The file system does something else than being full.
    pub fn fill(&self) {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(self.filler()).expect("a file");
        let mut step: u64 = 64 << 20;
        while step >= 4096 {
            let end = file.metadata().expect("a file").len();
            match fallocate(&file, FallocateFlags::empty(), end, step) {
                Ok(()) => {}
                Err(rustix::io::Errno::NOSPC) => step /= 2,
                Err(error) => panic!("cannot fill the disk: {error}"),
            }
        }
    }

    /// Gives it back.
    ///
    /// # Panics
    /// It was not taken.
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).expect("the filler is there");
    }

    fn filler(&self) -> PathBuf {
        self.path().join("filler")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.path());
    }
}

fn unmount(path: &Path) {
    // Lazily: a test that failed may have left somebody in it.
    let _ = Command::new("umount").arg("--lazy").arg(path).status();
}
