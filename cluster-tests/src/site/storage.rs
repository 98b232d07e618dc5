//! The disk of a machine: one that loses its cache when the power goes, can be full, and can be slow.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::disk::Disk;

/// How slow a disk is: by turns it takes no write at all, and works.
///
/// While it takes none, `write` and `fsync` hang, and a SIGKILL of whoever is in them waits too. Reads go on. It is
/// `fsfreeze` by turns: it needs no device mapper and no cgroup, and works on every kernel. But each stall begins with a sync:
/// what a power cut could lose is on the disk then.
#[derive(Debug, Clone, Copy)]
pub struct Slow {
    /// How long it takes none.
    pub stalled: Duration,
    /// How long it works in between.
    pub working: Duration,
}

impl Slow {
    /// A dying disk: each fifth of a second a few writes get through.
    #[must_use]
    pub fn dying() -> Self {
        Self { stalled: Duration::from_millis(200), working: Duration::from_millis(1) }
    }

    /// A disk that hangs until it is told to work.
    #[must_use]
    pub fn hung() -> Self {
        Self { stalled: Duration::MAX, working: Duration::ZERO }
    }
}

/// A loop disk with an ext4 on it.
pub(super) struct Storage {
    // Before the disk: a stalled file system cannot be unmounted.
    slowed: Option<Slowed>,
    disk: Disk,
    full: bool,
}

/// The thread that makes a disk slow; the disk works again when it goes.
struct Slowed {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Storage {
    pub(super) fn new(megabytes: u64) -> Self {
        Self { slowed: None, disk: Disk::new(megabytes), full: false }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.disk.path()
    }

    /// Takes all free space.
    pub(super) fn fill(&mut self) {
        self.disk.fill();
        self.full = true;
    }

    /// Gives it back; nothing when it was not taken.
    pub(super) fn free(&mut self) {
        if std::mem::take(&mut self.full) {
            self.disk.free();
        }
    }

    /// Slow from when this returns on.
    pub(super) fn slow(&mut self, how: Slow) {
        self.fast();
        self.slowed = Some(Slowed::start(self.disk.path(), how));
    }

    /// As fast as it was.
    pub(super) fn fast(&mut self) {
        self.slowed = None;
    }

    /// Cuts its power: from now on nothing reaches it, and what was only in the page cache is lost.
    ///
    /// The file system is shut down as xfstests does it (`FS_IOC_SHUTDOWN` without flushing the log): at one moment for all
    /// of it, which a copy of the image under a running file system is not.
    pub(super) fn cut_power(&self) {
        // _IOR('X', 125, __u32); 2 is NOLOGFLUSH. By Perl, as there is no `unsafe` here and every distribution has Perl.
        let script =
            "open(my $f, '<', $ARGV[0]) or die $!; my $how = pack('L', 2); ioctl($f, 0x8004587d, $how) or die $!";
        run(Command::new("perl").args(["-e", script]).arg(self.disk.path()), "the file system cannot be shut down");
    }

    /// Takes it out after a cut; whoever had it open is dead.
    ///
    /// # Panics
    /// Somebody still has it open.
    pub(super) fn take_out(&self) {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let done = Command::new("umount").arg(self.disk.path()).output().expect("umount");
            if done.status.success() {
                return;
            }
            // Mount namespaces of killed containers go a moment after them.
            let why = String::from_utf8_lossy(&done.stderr).into_owned();
            assert!(Instant::now() < until, "the disk of a machine without power is still in use: {why}");
            std::thread::sleep(Duration::from_millis(5)); // poll
        }
    }

    /// Puts it in again: its journal is replayed.
    pub(super) fn put_in(&mut self) {
        let image = self.disk.path().with_file_name("image");
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(self.disk.path()), "the disk cannot be mounted");
        // Taking the space may have been lost with the cache.
        self.full = self.disk.path().join("filler").exists();
    }
}

impl Slowed {
    fn start(path: PathBuf, how: Slow) -> Self {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        stall(&path, true);
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let (flag, bell) = &*told;
            let mut stalled = true;
            loop {
                let guard = flag.lock().unwrap_or_else(PoisonError::into_inner);
                let pause = if stalled { how.stalled } else { how.working };
                let waited = bell.wait_timeout_while(guard, pause, |stop| !*stop);
                let last = *waited.unwrap_or_else(PoisonError::into_inner).0;
                if stalled || !last {
                    stalled = !stalled;
                    stall(&path, stalled);
                }
                if last {
                    return;
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Slowed {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Stalls or releases a file system.
fn stall(path: &Path, stall: bool) {
    let word = if stall { "--freeze" } else { "--unfreeze" };
    let _ = Command::new("fsfreeze").arg(word).arg(path).stderr(Stdio::null()).status();
}

fn run(command: &mut Command, what: &str) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{what}: {command:?}: {error}"));
    assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
}
