//! Root file systems: an overlay of image layers as a detached mount, and the users that a root's own files name.

use std::io::Read as _;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, OpenTreeFlags};

/// What went wrong with a root file system.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// The overlay could not be mounted.
    #[error("cannot mount the container's root: {step}")]
    Mount {
        /// Which step.
        step: String,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// A user or group that the image does not know.
    #[error("the image has no {kind} `{name}`\nhint: use a number, or add it to {file} of the image")]
    Unknown {
        /// `user` or `group`.
        kind: &'static str,
        /// Which.
        name: String,
        /// Where it was looked for.
        file: &'static str,
    },
    /// A number that cannot be one.
    #[error("`{0}` is not a user: expected USER[:GROUP], names or numbers up to 2147483647")]
    Invalid(String),
}

/// Who a container runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, the primary one first.
    pub groups: Vec<u32>,
    /// Home folder, `/` when nobody says.
    pub home: String,
}

/// An overlay of layers (top first) with a writable folder, as a detached mount: no path of the host shows it. Without
/// devices: a device node in an image opens nothing.
///
/// # Errors
/// The kernel's word on the step that failed.
pub fn overlay(layers: &[PathBuf], upper: &Path, work: &Path) -> Result<OwnedFd, RootfsError> {
    let fail = |step: String| move |errno: rustix::io::Errno| RootfsError::Mount { step, source: errno.into() };
    for dir in [upper, work] {
        std::fs::create_dir_all(dir)
            .map_err(|source| RootfsError::Mount { step: format!("create {}", dir.display()), source })?;
    }
    if JOINED.load(Ordering::Relaxed) {
        return overlay_joined(layers, upper, work);
    }
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(fail("open overlayfs".into()))?;
    let fs = fs.as_fd();
    let layered = layers
        .iter()
        .map(|layer| ("lowerdir+", layer.as_path()))
        .chain([("upperdir", upper), ("workdir", work)])
        .try_for_each(|(key, path)| {
            let set = rustix::mount::fsconfig_set_string(fs, key, path);
            set.map_err(|errno| (format!("{key}={}", path.display()), errno))
        })
        .and_then(|()| {
            let _ = rustix::mount::fsconfig_set_string(fs, "source", "coracle");
            rustix::mount::fsconfig_create(fs).map_err(|errno| (format!("overlay of {} layers", layers.len()), errno))
        });
    match layered {
        Ok(()) => {}
        // One option a layer (Linux 6.7) is not known here: 6.1 takes any option and refuses at the end, 6.5 at once.
        Err((_, rustix::io::Errno::INVAL)) => {
            let tree = overlay_joined(layers, upper, work)?;
            JOINED.store(true, Ordering::Relaxed);
            return Ok(tree);
        }
        Err((step, errno)) => return Err(fail(step)(errno)),
    }
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(fail("make the mount".into()))
}

/// Whether this kernel wants the layers in one option: found out once, since it complains in its log each time.
static JOINED: AtomicBool = AtomicBool::new(false);

/// The same for kernels before 6.7: one option of at most a page, mounted for a moment in a mount namespace of its own, where
/// neither systemd nor anybody else sees it. Folders are named by open descriptors: some two hundred fit into the page, and
/// no `:` or `,` of a path ends an option.
fn overlay_joined(layers: &[PathBuf], upper: &Path, work: &Path) -> Result<OwnedFd, RootfsError> {
    // A namespace of this thread alone, which ends with it.
    let mount = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(|errno| RootfsError::Mount {
            step: "leave the mounts of the machine".to_owned(),
            source: errno.into(),
        })?;
        mount_joined(layers, upper, work)
    };
    std::thread::scope(|scope| scope.spawn(mount).join()).unwrap_or_else(|_| {
        let source = std::io::Error::other("the thread that mounts it has panicked");
        Err(RootfsError::Mount { step: "overlay".to_owned(), source })
    })
}

fn mount_joined(layers: &[PathBuf], upper: &Path, work: &Path) -> Result<OwnedFd, RootfsError> {
    let fail = |step: String, source: std::io::Error| RootfsError::Mount { step, source };
    let open = |path: &Path| {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| fail(format!("open {}", path.display()), errno.into()))
    };
    let name = |folder: &OwnedFd| format!("/proc/self/fd/{}", folder.as_raw_fd());
    let lower = layers.iter().map(|layer| open(layer)).collect::<Result<Vec<_>, _>>()?;
    let (writable, scratch) = (open(upper)?, open(work)?);
    let joined = lower.iter().map(name).collect::<Vec<_>>().join(":");
    let options = format!("lowerdir={joined},upperdir={},workdir={}", name(&writable), name(&scratch));
    let step = || format!("overlay of {} layers in one option", layers.len());
    if options.len() > 4095 {
        return Err(fail(step(), std::io::ErrorKind::ArgumentListTooLong.into()));
    }
    let options = std::ffi::CString::new(options).map_err(|error| fail(step(), error.into()))?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .and_then(|()| rustix::mount::mount("coracle", upper, "overlay", MountFlags::NODEV, options.as_c_str()))
        .and_then(|()| {
            let how = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            rustix::mount::open_tree(rustix::fs::CWD, upper, how)
        })
        .map_err(|errno| fail(step(), errno.into()))
}

/// Reads `USER[:GROUP]` with the root's own `/etc/passwd` and `/etc/group`. Empty is root.
///
/// # Errors
/// A name the root does not know, a number out of range.
pub fn user(root: BorrowedFd<'_>, text: &str) -> Result<User, RootfsError> {
    let passwd = read(root, "etc/passwd");
    let group_file = read(root, "etc/group");
    let invalid = || RootfsError::Invalid(text.chars().take(60).collect());
    let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
    let name = if name.is_empty() { "0" } else { name };
    let entries = || passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 6);
    let number = id(name).map_err(|()| invalid())?;
    let entry = entries().find(|fields| match number {
        Some(uid) => fields[2].parse() == Ok(uid),
        None => fields[0] == name,
    });
    let uid = match (number, &entry) {
        (Some(uid), _) => uid,
        (None, Some(fields)) => id(fields[2]).ok().flatten().ok_or_else(invalid)?,
        (None, None) => return Err(RootfsError::Unknown { kind: "user", name: name.to_owned(), file: "/etc/passwd" }),
    };
    let groups =
        || group_file.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 3);
    let gid = match group {
        Some(group) => match id(group).map_err(|()| invalid())? {
            Some(gid) => gid,
            None => groups()
                .find(|fields| fields[0] == group)
                .and_then(|fields| id(fields[2]).ok().flatten())
                .ok_or_else(|| RootfsError::Unknown { kind: "group", name: group.to_owned(), file: "/etc/group" })?,
        },
        None => entry.as_ref().and_then(|fields| id(fields[3]).ok().flatten()).unwrap_or(0),
    };
    let mut all = vec![gid];
    if let (None, Some(fields)) = (group, &entry) {
        for found in groups().filter(|group| group.len() >= 4 && group[3].split(',').any(|member| member == fields[0]))
        {
            if let Some(extra) = id(found[2]).ok().flatten()
                && !all.contains(&extra)
            {
                all.push(extra);
            }
        }
    }
    let home = entry.as_ref().map_or("/", |fields| fields[5]);
    // A line break in a home folder would become a line of a file we write (CVE-2026-15809).
    let home = if home.starts_with('/') && !home.chars().any(char::is_control) { home } else { "/" };
    Ok(User { uid, gid, groups: all, home: home.to_owned() })
}

/// A number up to 2^31 - 1; `None` for a name; an error for a number beyond (CVE-2024-40635).
fn id(text: &str) -> Result<Option<u32>, ()> {
    if text.is_empty() || text.starts_with(['-', '+']) {
        return Err(());
    }
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    text.parse::<u32>().ok().filter(|id| *id <= i32::MAX as u32).map(Some).ok_or(())
}

/// A regular file of the root, at most 1 MiB of it: an image is hostile, its passwd may be a pipe, a device or endless.
fn read(root: BorrowedFd<'_>, path: &str) -> String {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let Ok(fd) = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) else { return String::new() };
    let file = std::fs::File::from(fd);
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return String::new();
    }
    let mut bytes = Vec::new();
    let _ = file.take(1 << 20).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(passwd: &str, group: &str) -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(dir.path().join("etc/group"), group).unwrap();
        let fd = rustix::fs::open(dir.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        (dir, fd)
    }

    #[test]
    fn users_are_read_from_the_root() {
        let (_dir, fd) =
            root("root:x:0:0::/root:/bin/sh\nweb:x:33:34::/var/www:/bin/false\n", "www:x:34:\nextra:x:50:web,other\n");
        let found = |text: &str| user(fd.as_fd(), text).map(|user| (user.uid, user.gid, user.groups, user.home));
        assert_eq!(found("").unwrap(), (0, 0, vec![0], "/root".to_owned()));
        assert_eq!(found("web").unwrap(), (33, 34, vec![34, 50], "/var/www".to_owned()));
        assert_eq!(found("33").unwrap(), (33, 34, vec![34, 50], "/var/www".to_owned()));
        assert_eq!(found("33:50").unwrap(), (33, 50, vec![50], "/var/www".to_owned()));
        assert_eq!(found("web:extra").unwrap().1, 50);
        assert_eq!(found("1000").unwrap(), (1000, 0, vec![0], "/".to_owned()));
        for bad in ["nobody", "-1", "4294967296", "2147483648", "1:", "web:none", "+1"] {
            assert!(found(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn layers_lie_on_each_other_on_every_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for (layer, text) in [("top", "top"), ("bottom", "bottom")] {
            std::fs::create_dir(path(layer)).unwrap();
            std::fs::write(path(layer).join("both"), text).unwrap();
            std::fs::write(path(layer).join(layer), text).unwrap();
        }
        let layers = [path("top"), path("bottom")];
        let own = dir.path().display().to_string();
        for (way, name) in [(overlay as fn(&[PathBuf], &Path, &Path) -> _, "new"), (overlay_joined, "old")] {
            let (upper, work) = (path(&format!("{name}-upper")), path(&format!("{name}-work")));
            for folder in [&upper, &work] {
                std::fs::create_dir(folder).unwrap();
            }
            let root = way(&layers, &upper, &work).unwrap();
            let read = |file: &str| read(root.as_fd(), file);
            assert_eq!(
                (read("both"), read("top"), read("bottom")),
                ("top".into(), "top".into(), "bottom".into()),
                "{name}"
            );
        }
        let many: Vec<PathBuf> = (0..120).map(|number| path(&format!("a:b,{number}-{}", "x".repeat(100)))).collect();
        for layer in &many {
            std::fs::create_dir(layer).unwrap();
        }
        std::fs::write(many[119].join("lowest"), "lowest").unwrap();
        let root = overlay_joined(&many, &path("old-upper"), &path("old-work")).unwrap();
        assert_eq!(read(root.as_fd(), "lowest"), "lowest");
        assert!(!std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&own), "a mount stays behind");
    }

    #[test]
    fn hostile_files_are_not_followed_or_waited_for() {
        let (dir, fd) = root("", "");
        std::fs::remove_file(dir.path().join("etc/passwd")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.path().join("etc/passwd")).unwrap();
        assert_eq!(user(fd.as_fd(), "5").unwrap().uid, 5);
        std::fs::remove_file(dir.path().join("etc/passwd")).unwrap();
        nix::unistd::mkfifo(&dir.path().join("etc/passwd"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(user(fd.as_fd(), "5").unwrap().uid, 5);
    }
}
