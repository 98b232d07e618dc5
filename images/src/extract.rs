//! Puts a layer's entries into a directory, never leaving it: every operation is relative to a descriptor of the layer's root
//! and the kernel resolves names under it (`openat2` with `RESOLVE_IN_ROOT`), so that a link inside the layer, absolute or
//! not, stays inside. Whiteouts become what overlayfs reads: a character device 0:0, and `trusted.overlay.opaque`.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use coracle_layers::{Entry, Kind, LayerPath, Meta, Sink, Time};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// Why an entry cannot be stored.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// The disk refused.
    #[error("cannot {action}")]
    Disk {
        /// Doing what.
        action: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A parent is a file, or a link to nothing.
    #[error("its parent `{0}` is not a directory in this layer")]
    Parent(String),
    /// A hard link to what this layer does not have.
    #[error("it is a hard link to {0}, which is no file of this layer")]
    Hardlink(String),
    /// More files and directories than the limit.
    #[error("with the directories that it needs and no entry describes, the layer has more than {0} entries")]
    Entries(u64),
    /// More bytes of directory names than are kept in memory.
    #[error("the paths of the layer's directories take more than {0} bytes")]
    Paths(usize),
}

fn disk(action: &'static str) -> impl Fn(Errno) -> ExtractError {
    move |source| ExtractError::Disk { action, source: source.into() }
}

/// What was put on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Extracted {
    /// Bytes of files.
    pub bytes: u64,
    /// Directories that some entry needed and none described: their attributes must come from the layers below.
    pub implicit: BTreeSet<LayerPath>,
    /// The layer hides everything below it.
    pub opaque_root: bool,
    /// Device nodes left out: a container has its own `/dev`, and a node elsewhere would be a door to the host's disks.
    pub devices: u64,
    /// Extended attributes the file system does not take.
    pub xattrs: u64,
}

const BUFFER: usize = 128 << 10;
/// Bytes of directory paths kept until the end: a path of a few bytes in the archive can stand for hundreds of directories,
/// each with a path of its own. The largest images have some 10 MiB of them.
const PATHS: usize = 64 << 20;
const OPAQUE: &str = "trusted.overlay.opaque";

/// The sink that writes to disk.
pub struct Extractor {
    root: Arc<OwnedFd>,
    /// The directory of the entry before, most likely also of the next.
    parent: Option<(Vec<u8>, Arc<OwnedFd>)>,
    /// Set last: whatever is put into a directory changes its time.
    times: HashMap<LayerPath, Time>,
    found: Extracted,
    /// How many entries and directories there may still be, and how many there may be at all.
    left: u64,
    entries: u64,
    /// Bytes of paths in `times` and `found.implicit`.
    remembered: usize,
    paths: usize,
    buffer: Vec<u8>,
}

impl Extractor {
    /// Into the empty directory `dir`, at most `entries` entries and directories.
    pub fn new(dir: &Path, entries: u64) -> io::Result<Self> {
        let root = rustix::fs::openat(CWD, dir, DIRECTORY, Mode::empty())?;
        Ok(Self {
            root: Arc::new(root),
            parent: None,
            times: HashMap::new(),
            found: Extracted::default(),
            left: entries,
            entries,
            remembered: 0,
            paths: PATHS,
            buffer: vec![0; BUFFER],
        })
    }

    /// Sets the directories' times and brings everything to the disk.
    pub fn finish(mut self) -> io::Result<Extracted> {
        for (path, time) in std::mem::take(&mut self.times) {
            let opened = match path.split() {
                Some((above, name)) => self.resolve(above).and_then(|parent| open_here(parent, name)),
                None => self.resolve(b""),
            };
            match opened {
                Ok(directory) => rustix::fs::futimens(&directory, &times(time))?,
                // Replaced by a later entry: by nothing, a file, a link.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // One call for the whole layer: it waits for the file system, not for each of its files.
        rustix::fs::syncfs(&self.root)?;
        Ok(self.found)
    }

    /// One entry or directory more.
    fn count(&mut self) -> Result<(), ExtractError> {
        self.left = self.left.checked_sub(1).ok_or(ExtractError::Entries(self.entries))?;
        Ok(())
    }

    /// One path more in memory.
    fn remember(&mut self, path: &LayerPath) -> Result<(), ExtractError> {
        self.remembered += path.as_bytes().len();
        if self.remembered > self.paths { Err(ExtractError::Paths(self.paths)) } else { Ok(()) }
    }

    /// Opens a directory of the layer; links on the way are followed inside the layer.
    fn resolve(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let flags = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        // The kernel asks for a repetition when something moved meanwhile anywhere on the machine.
        for _ in 0..128 {
            match rustix::fs::openat2(&self.root, path, DIRECTORY, Mode::empty(), flags) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// The directory an entry goes into, made if it is not there.
    fn directory(&mut self, path: &[u8]) -> Result<Arc<OwnedFd>, ExtractError> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        if let Some((known, directory)) = &self.parent
            && known == path
        {
            return Ok(directory.clone());
        }
        let directory = match self.resolve(path) {
            Ok(directory) => Arc::new(directory),
            Err(Errno::NOENT | Errno::NOTDIR) => self.make(path)?,
            Err(error) => return Err(disk("open its directory")(error)),
        };
        self.parent = Some((path.to_vec(), directory.clone()));
        Ok(directory)
    }

    /// Makes what is missing of a directory path.
    fn make(&mut self, path: &[u8]) -> Result<Arc<OwnedFd>, ExtractError> {
        let mut above = self.root.clone();
        let mut end = 0;
        for part in path.split(|byte| *byte == b'/') {
            end += part.len() + usize::from(end > 0);
            let so_far = &path[..end];
            let opened = match self.resolve(so_far) {
                Ok(directory) => directory,
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    self.count()?;
                    let hidden = is_whiteout(&above, part);
                    if hidden {
                        rustix::fs::unlinkat(&above, part, AtFlags::empty()).map_err(disk("replace a whiteout"))?;
                    }
                    match rustix::fs::mkdirat(&above, part, Mode::from_raw_mode(0o755)) {
                        // A file, or a link that leads nowhere.
                        Err(Errno::EXIST) => return Err(ExtractError::Parent(so_far.escape_ascii().to_string())),
                        other => other.map_err(disk("make its directory"))?,
                    }
                    let directory = open_here(&above, part).map_err(disk("open its directory"))?;
                    // Neither this process' mask nor a set-group-id parent may decide.
                    rustix::fs::fchown(&directory, Some(Uid::ROOT), Some(Gid::ROOT)).map_err(disk("set an owner"))?;
                    rustix::fs::fchmod(&directory, Mode::from_raw_mode(0o755)).map_err(disk("set a mode"))?;
                    if hidden {
                        set_opaque(&directory)?;
                    }
                    if let Ok(implicit) = LayerPath::parse(so_far, usize::MAX, usize::MAX) {
                        self.remember(&implicit)?;
                        if !self.found.implicit.insert(implicit) {
                            self.remembered -= so_far.len();
                        }
                    }
                    directory
                }
                Err(error) => return Err(disk("open its directory")(error)),
            };
            above = Arc::new(opened);
        }
        Ok(above)
    }

    /// Runs `create`; when something has the name already, removes it and tries once more.
    fn replace<T>(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        action: &'static str,
        create: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, ExtractError> {
        match create() {
            Err(Errno::EXIST) => {}
            other => return other.map_err(disk(action)),
        }
        // What was known by path may be gone after this.
        self.parent = None;
        std::ffi::CString::new(name)
            .map_err(|_| Errno::INVAL)
            .and_then(|name| crate::tree::remove_at(parent.as_fd(), &name))
            .map_err(disk("replace an earlier entry of the same name"))?;
        create().map_err(disk(action))
    }

    fn put_directory(&mut self, entry: &Entry) -> Result<(), ExtractError> {
        let length = entry.path.as_bytes().len();
        if self.found.implicit.remove(&entry.path) {
            self.remembered -= length;
        }
        self.remember(&entry.path)?;
        if self.times.insert(entry.path.clone(), entry.meta.mtime).is_some() {
            self.remembered -= length;
        }
        let Some((above, name)) = entry.path.split() else {
            let root = self.root.clone();
            return self.attributes(&root, &entry.meta);
        };
        let parent = self.directory(above)?;
        let mut hidden = false;
        let made = rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700));
        match made {
            Ok(()) => {}
            Err(Errno::EXIST) if is_directory(&parent, name) => {}
            Err(Errno::EXIST) => {
                hidden = is_whiteout(&parent, name);
                self.replace(&parent, name, "make a directory", || {
                    rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700))
                })?;
            }
            Err(error) => return Err(disk("make a directory")(error)),
        }
        let directory = open_here(&parent, name).map_err(disk("open a directory"))?;
        self.attributes(&directory, &entry.meta)?;
        if hidden {
            set_opaque(&directory)?;
        }
        self.parent = Some((entry.path.as_bytes().to_vec(), Arc::new(directory)));
        Ok(())
    }

    fn put_file(
        &mut self,
        entry: &Entry,
        parent: &OwnedFd,
        name: &[u8],
        data: &mut dyn Read,
    ) -> Result<(), ExtractError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.replace(parent, name, "make a file", || {
            rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
        })?;
        let mut file = std::fs::File::from(file);
        let fail = |action| move |source| ExtractError::Disk { action, source };
        loop {
            let count = match data.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(fail("read its contents")(error)),
            };
            file.write_all(&self.buffer[..count]).map_err(fail("write its contents"))?;
            self.found.bytes += count as u64;
        }
        let file = OwnedFd::from(file);
        self.attributes(&file, &entry.meta)?;
        rustix::fs::futimens(&file, &times(entry.meta.mtime)).map_err(disk("set its time"))
    }

    fn put_hardlink(&mut self, parent: &OwnedFd, name: &[u8], target: &LayerPath) -> Result<(), ExtractError> {
        let missing = || ExtractError::Hardlink(target.to_string());
        let (above, last) = target.split().ok_or_else(missing)?;
        let from = match self.resolve(above) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(missing()),
            Err(error) => return Err(disk("open its target's directory")(error)),
        };
        if is_directory(&from, last) || is_whiteout(&from, last) {
            return Err(missing());
        }
        // Without AT_SYMLINK_FOLLOW a link to a symbolic link is one more name of the link itself (CVE-2021-32760).
        let made = self.replace(parent, name, "make a hard link", || {
            rustix::fs::linkat(&from, last, parent, name, AtFlags::empty())
        });
        match made {
            Err(ExtractError::Disk { source, .. }) if source.kind() == io::ErrorKind::NotFound => Err(missing()),
            other => other,
        }
    }

    /// A layer's own files are not hidden by its own whiteouts, in whichever order they come.
    fn put_whiteout(&mut self, parent: &OwnedFd, name: &[u8]) -> Result<(), ExtractError> {
        match rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0) {
            Err(Errno::EXIST) => {}
            other => return other.map_err(disk("make a whiteout")),
        }
        if is_directory(parent, name) {
            let directory = open_here(parent, name).map_err(disk("open a directory"))?;
            set_opaque(&directory)?;
        }
        Ok(())
    }

    /// Owner before mode, since a change of owner clears setuid; attributes between, since it clears capabilities too.
    fn attributes(&mut self, file: &OwnedFd, meta: &Meta) -> Result<(), ExtractError> {
        rustix::fs::fchown(file, Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)))
            .map_err(disk("set its owner"))?;
        for (name, value) in &meta.xattrs {
            match rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
                Err(Errno::NOTSUP | Errno::INVAL | Errno::PERM) => self.found.xattrs += 1,
                other => other.map_err(disk("set an extended attribute"))?,
            }
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(meta.mode)).map_err(disk("set its mode"))
    }
}

impl Sink for Extractor {
    type Error = ExtractError;

    fn entry(&mut self, entry: &Entry, data: &mut dyn Read) -> Result<(), ExtractError> {
        self.count()?;
        match &entry.kind {
            Kind::Directory => return self.put_directory(entry),
            Kind::Opaque if entry.path.is_root() => {
                // overlayfs asks no root for this; the image leaves out the layers below instead.
                self.found.opaque_root = true;
                return Ok(());
            }
            Kind::Opaque => {
                let directory = self.directory(entry.path.as_bytes())?;
                return set_opaque(&directory);
            }
            _ => {}
        }
        let Some((above, name)) = entry.path.split() else {
            return Err(ExtractError::Parent(String::new()));
        };
        let parent = self.directory(above)?;
        match &entry.kind {
            Kind::File { .. } => self.put_file(entry, &parent, name, data),
            Kind::Symlink { target } => {
                self.replace(&parent, name, "make a symbolic link", || {
                    rustix::fs::symlinkat(target.as_slice(), &parent, name)
                })?;
                own(&parent, name, &entry.meta)?;
                rustix::fs::utimensat(&parent, name, &times(entry.meta.mtime), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(disk("set its time"))
            }
            Kind::Hardlink { target } => self.put_hardlink(&parent, name, target),
            Kind::Fifo => {
                self.replace(&parent, name, "make a named pipe", || {
                    rustix::fs::mknodat(&parent, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                })?;
                own(&parent, name, &entry.meta)?;
                rustix::fs::chmodat(&parent, name, Mode::from_raw_mode(entry.meta.mode), AtFlags::empty())
                    .map_err(disk("set its mode"))
            }
            Kind::Whiteout => self.put_whiteout(&parent, name),
            Kind::Character { .. } | Kind::Block { .. } => {
                self.found.devices += 1;
                Ok(())
            }
            Kind::Directory | Kind::Opaque => Ok(()),
        }
    }
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn open_here(parent: impl AsFd, name: &[u8]) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
}

fn own(parent: &OwnedFd, name: &[u8], meta: &Meta) -> Result<(), ExtractError> {
    let (uid, gid) = (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)));
    rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map_err(disk("set its owner"))
}

fn set_opaque(directory: &OwnedFd) -> Result<(), ExtractError> {
    rustix::fs::fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty()).map_err(disk("mark a directory opaque"))
}

fn kind_of(parent: &OwnedFd, name: &[u8]) -> Option<(FileType, u64)> {
    let found = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some((FileType::from_raw_mode(found.st_mode), found.st_rdev))
}

fn is_directory(parent: &OwnedFd, name: &[u8]) -> bool {
    matches!(kind_of(parent, name), Some((FileType::Directory, _)))
}

fn is_whiteout(parent: &OwnedFd, name: &[u8]) -> bool {
    matches!(kind_of(parent, name), Some((FileType::CharacterDevice, 0)))
}

fn times(time: Time) -> Timestamps {
    // Numbers no file system has are cut by the kernel; these would be refused before that.
    let time = Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds.min(999_999_999)) };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    fn path(text: &str) -> LayerPath {
        LayerPath::parse(text.as_bytes(), 4096, 64).unwrap()
    }

    fn entry(at: &str, kind: Kind) -> Entry {
        Entry { path: path(at), kind, meta: Meta { mode: 0o755, ..Meta::default() } }
    }

    fn file(at: &str) -> Entry {
        entry(at, Kind::File { size: 1 })
    }

    fn symlink(at: &str, target: &str) -> Entry {
        entry(at, Kind::Symlink { target: target.into() })
    }

    fn hardlink(at: &str, target: &str) -> Entry {
        entry(at, Kind::Hardlink { target: path(target) })
    }

    /// A layer's directory inside another one, which must stay as it is.
    struct Lab {
        outside: tempfile::TempDir,
        root: std::path::PathBuf,
    }

    impl Lab {
        fn new() -> Option<Self> {
            if !rustix::process::geteuid().is_root() {
                println!("SKIP: layers have owners, so this test needs root");
                return None;
            }
            let outside = tempfile::tempdir().unwrap();
            std::fs::write(outside.path().join("canary"), "alive").unwrap();
            let root = outside.path().join("layer");
            std::fs::create_dir(&root).unwrap();
            Some(Self { outside, root })
        }

        fn put(&self, entries: &[Entry]) -> Result<Extracted, ExtractError> {
            let mut extractor = Extractor::new(&self.root, 1000).unwrap();
            for entry in entries {
                extractor.entry(entry, &mut &b"x"[..])?;
            }
            Ok(extractor.finish().unwrap())
        }

        fn unharmed(&self) {
            let canary = std::fs::symlink_metadata(self.outside.path().join("canary")).unwrap();
            assert_eq!((canary.len(), canary.nlink(), canary.mode() & 0o7777), (5, 1, 0o644));
            assert_eq!(std::fs::read_dir(self.outside.path()).unwrap().count(), 2);
        }
    }

    #[test]
    fn links_are_followed_inside_the_layer_only() {
        let Some(lab) = Lab::new() else { return };
        let up = lab.outside.path().display().to_string();
        lab.put(&[
            entry("run", Kind::Directory),
            symlink("var/run", "/run"),
            file("var/run/pid"),
            symlink("out", "../../../../../.."),
            file("out/new"),
            symlink("abs", &up),
            entry("etc", Kind::Directory),
        ])
        .unwrap();
        assert!(lab.root.join("run/pid").exists(), "an absolute link means from the layer's root");
        assert!(lab.root.join("new").exists());
        // The host's folder of that name is not the layer's: the link leads nowhere, and nothing is made behind it.
        assert!(matches!(lab.put(&[file("abs/canary")]), Err(ExtractError::Parent(_))));
        assert!(matches!(lab.put(&[hardlink("stolen", "abs/canary")]), Err(ExtractError::Hardlink(_))));
        lab.unharmed();
    }

    #[test]
    fn the_last_component_is_never_followed() {
        let Some(lab) = Lab::new() else { return };
        let canary = lab.outside.path().join("canary").display().to_string();
        lab.put(&[symlink("a", &canary), file("a")]).unwrap();
        assert!(lab.root.join("a").symlink_metadata().unwrap().is_file(), "the file replaced the link");
        lab.put(&[
            symlink("b", "../canary"),
            hardlink("c", "b"),
            entry("b", Kind::Directory),
            symlink("d", &canary),
            entry("d", Kind::Fifo),
        ])
        .unwrap();
        assert!(
            lab.root.join("c").symlink_metadata().unwrap().is_symlink(),
            "one more name of the link itself (CVE-2021-32760)"
        );
        assert!(lab.root.join("b").symlink_metadata().unwrap().is_dir());
        assert!(lab.root.join("d").symlink_metadata().unwrap().file_type().is_fifo());
        lab.unharmed();
    }

    #[test]
    fn what_comes_later_replaces_what_came_before() {
        let Some(lab) = Lab::new() else { return };
        lab.put(&[
            file("d/e/f"),
            entry("d", Kind::Directory),
            file("x"),
            entry("x", Kind::Directory),
            file("x/y"),
            file("d"),
        ])
        .unwrap();
        assert!(lab.root.join("d").is_file() && lab.root.join("x/y").is_file());
        assert!(matches!(lab.put(&[file("d/below")]), Err(ExtractError::Parent(_))));
        lab.put(&[entry("x", Kind::Directory)]).unwrap();
        assert!(lab.root.join("x/y").exists(), "two descriptions of a directory are one directory");
    }

    #[test]
    fn whiteouts_hide_the_layers_below_and_not_their_own() {
        let Some(lab) = Lab::new() else { return };
        let found = lab
            .put(&[
                entry("gone", Kind::Whiteout),
                file("own"),
                entry("own", Kind::Whiteout),
                entry("back", Kind::Whiteout),
                file("back"),
                entry("dir", Kind::Whiteout),
                file("dir/new"),
                entry("late/a", Kind::File { size: 1 }),
                entry("late", Kind::Opaque),
                entry("late", Kind::Whiteout),
                entry("", Kind::Opaque),
            ])
            .unwrap();
        let is_file = |name: &str| lab.root.join(name).is_file();
        assert!(is_file("own") && is_file("back") && is_file("dir/new") && is_file("late/a"));
        let gone = lab.root.join("gone").symlink_metadata().unwrap();
        assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
        let opaque = |name: &str| {
            let mut value = [0u8; 2];
            rustix::fs::getxattr(lab.root.join(name), OPAQUE, &mut value).is_ok_and(|length| &value[..length] == b"y")
        };
        assert!(opaque("dir") && opaque("late") && !opaque("."));
        assert!(found.opaque_root, "overlayfs asks no root, so the image must know");
        assert_eq!(found.implicit.iter().map(ToString::to_string).collect::<Vec<_>>(), ["/dir", "/late"]);
        assert!(matches!(lab.put(&[hardlink("h", "gone")]), Err(ExtractError::Hardlink(_))), "a whiteout is no file");
    }

    #[test]
    fn directories_that_nobody_describes_count() {
        let Some(lab) = Lab::new() else { return };
        let put = |entries: u64, depth: usize, count: usize, last: Kind| {
            let mut extractor = Extractor::new(&lab.root, entries).unwrap();
            extractor.paths = 100 << 10;
            let outcome = (0..count).try_for_each(|number| {
                let at = format!("{number}-{depth}{}", format!("/{}", "d".repeat(15)).repeat(depth));
                let path = LayerPath::parse(at.as_bytes(), 4095, 256).unwrap();
                let entry = Entry { path, kind: last.clone(), meta: Meta { mode: 0o755, ..Meta::default() } };
                extractor.entry(&entry, &mut &b"x"[..])
            });
            outcome.map(|()| extractor.finish().unwrap())
        };
        // Ten entries, each with ten directories above it.
        assert_eq!(put(110, 10, 10, Kind::Fifo).unwrap().implicit.len(), 100);
        assert!(matches!(put(109, 11, 10, Kind::Fifo), Err(ExtractError::Entries(109))));
        // Some 80 KiB of paths an entry; the same for directories that are described.
        assert_eq!(put(1000, 100, 1, Kind::Fifo).unwrap().implicit.len(), 100);
        assert!(matches!(put(1000, 101, 2, Kind::Fifo), Err(ExtractError::Paths(_))));
        assert!(matches!(put(1000, 102, 2, Kind::Directory), Err(ExtractError::Paths(_))));
        let mut extractor = Extractor::new(&lab.root, u64::MAX).unwrap();
        for _ in 0..10 {
            extractor.entry(&entry("again", Kind::Directory), &mut &b""[..]).unwrap();
        }
        assert_eq!(extractor.remembered, 5);
    }

    #[test]
    fn attributes_survive_in_the_right_order() {
        let Some(lab) = Lab::new() else { return };
        let time = Time { seconds: 1_000_000, nanoseconds: 5 };
        let meta =
            Meta { mode: 0o6755, uid: 12, gid: 34, mtime: time, xattrs: vec![(b"user.a".to_vec(), b"b".to_vec())] };
        let with = |at: &str, kind| Entry { path: path(at), kind, meta: meta.clone() };
        let mut capability = with("cap", Kind::File { size: 1 });
        // cap_net_bind_service=ep, revision 2.
        let value = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        capability.meta.xattrs = vec![(b"security.capability".to_vec(), value.to_vec())];
        let device = with("dev/null", Kind::Character { major: 1, minor: 3 });
        let found = lab
            .put(&[
                with("dir", Kind::Directory),
                with("dir/file", Kind::File { size: 1 }),
                with("link", Kind::Symlink { target: b"x".into() }),
                capability,
                device,
            ])
            .unwrap();
        assert_eq!(found.devices, 1);
        assert!(!lab.root.join("dev/null").exists());
        for name in ["dir", "dir/file"] {
            let found = lab.root.join(name).metadata().unwrap();
            assert_eq!(
                (found.mode() & 0o7777, found.uid(), found.gid(), found.mtime(), found.mtime_nsec()),
                (0o6755, 12, 34, 1_000_000, 5),
                "{name}"
            );
        }
        let link = lab.root.join("link").symlink_metadata().unwrap();
        assert_eq!((link.uid(), link.mtime()), (12, 1_000_000));
        let mut value = [0u8; 32];
        assert_eq!(
            rustix::fs::getxattr(lab.root.join("cap"), "security.capability", &mut value).unwrap(),
            20,
            "not cleared by chown"
        );
    }

    fn any_entry() -> impl Strategy<Value = Entry> {
        let name = prop::sample::select(vec!["a", "b", "a/b", "b/a", "a/b/c", "b/c", "c", "c/a", "canary", "a/canary"]);
        let target = prop::sample::select(vec![
            "/",
            "..",
            "../..",
            "a",
            "/a/b",
            "../canary",
            "../../canary",
            "b/../..",
            "/proc/self/root",
            "canary",
        ]);
        let kind = prop_oneof![
            Just(Kind::Directory),
            Just(Kind::File { size: 1 }),
            Just(Kind::Fifo),
            Just(Kind::Whiteout),
            Just(Kind::Opaque),
            target.prop_map(|target| Kind::Symlink { target: target.into() }),
            name.clone().prop_map(|name| Kind::Hardlink { target: path(name) }),
        ];
        (name, kind).prop_map(|(name, kind)| entry(name, kind))
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn nothing_a_layer_says_reaches_outside(entries in prop::collection::vec(any_entry(), 1..25)) {
            let Some(lab) = Lab::new() else { return Ok(()) };
            let mut extractor = Extractor::new(&lab.root, 1000).unwrap();
            for entry in &entries {
                // Refusals are fine; later entries go on regardless.
                let _ = extractor.entry(entry, &mut &b"x"[..]);
            }
            extractor.finish().unwrap();
            lab.unharmed();
        }
    }
}
