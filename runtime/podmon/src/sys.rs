//! The system calls that libc has no function for, and the few habits every caller shares.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

/// The result of a system call.
pub(crate) type Sys<T> = Result<T, i32>;

/// errno of the last call.
pub(crate) fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// -1 is an error.
pub(crate) fn check(result: i64) -> Sys<i64> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

/// A new descriptor from a call that returns one.
pub(crate) fn owned(result: i64) -> Sys<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// fork with flags, born in a cgroup where one is given. Returns 0 in the child.
pub(crate) fn clone3(flags: u64, cgroup: Option<RawFd>) -> Sys<i32> {
    let mut args = CloneArgs { flags, exit_signal: libc::SIGCHLD as u64, ..CloneArgs::default() };
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd as u64;
    }
    // SAFETY: without CLONE_VM this is a fork of a process with one thread; the arguments outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    check(result).map(|pid| pid as i32)
}

/// move_mount(2) of a detached mount onto a path or an open place.
pub(crate) fn move_mount(mount: RawFd, to: RawFd, path: &CStr) -> Sys<()> {
    const F_EMPTY_PATH: u32 = 4;
    const T_EMPTY_PATH: u32 = 0x40;
    let flags = F_EMPTY_PATH | if path.is_empty() { T_EMPTY_PATH } else { 0 };
    // SAFETY: both texts end with NUL.
    check(unsafe { libc::syscall(libc::SYS_move_mount, mount, c"".as_ptr(), to, path.as_ptr(), flags) }).map(drop)
}

/// open_tree(2) with OPEN_TREE_CLONE of an open place.
pub(crate) fn clone_tree(at: RawFd, recursive: bool) -> Sys<OwnedFd> {
    let flags = 1 | libc::O_CLOEXEC | libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the text ends with NUL.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, at, c"".as_ptr(), flags) })
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// mount_setattr(2) of an open mount.
pub(crate) fn set_mount_attributes(mount: RawFd, set: u64, recursive: bool) -> Sys<()> {
    change_mount(mount, &MountAttr { set, clear: 0, propagation: 0, userns: 0 }, recursive)
}

/// Ends all sharing of a detached mount and what is below it: systemd shares every mount of the machine, and a copy of a
/// shared one shows its mounts to the others and theirs to itself. No root can be changed into it either.
pub(crate) fn make_private(mount: RawFd) -> Sys<()> {
    change_mount(mount, &MountAttr { set: 0, clear: 0, propagation: libc::MS_PRIVATE, userns: 0 }, true)
}

fn change_mount(mount: RawFd, attributes: &MountAttr, recursive: bool) -> Sys<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the structure has the size that is given and outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount,
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    };
    check(result).map(drop)
}

/// A new file system, configured and detached.
pub(crate) fn new_fs(kind: &CStr, options: &[(&CStr, Option<&CStr>)], attributes: u64) -> Sys<OwnedFd> {
    // SAFETY: all texts end with NUL and outlive their calls.
    unsafe {
        let context = owned(libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 1))?;
        let fd = context.as_raw_fd();
        for (key, value) in options {
            let result = match value {
                Some(value) => libc::syscall(libc::SYS_fsconfig, fd, 1, key.as_ptr(), value.as_ptr(), 0),
                None => libc::syscall(libc::SYS_fsconfig, fd, 0, key.as_ptr(), std::ptr::null::<u8>(), 0),
            };
            check(result)?;
        }
        check(libc::syscall(libc::SYS_fsconfig, fd, 6, std::ptr::null::<u8>(), std::ptr::null::<u8>(), 0))?;
        owned(libc::syscall(libc::SYS_fsmount, fd, 1, attributes))
    }
}

#[repr(C)]
struct OpenHow {
    flags: u64,
    mode: u64,
    resolve: u64,
}

/// openat2(2) below a root that no link leads out of; links of /proc are refused. Busy systems may answer EAGAIN: then again.
pub(crate) fn open_in_root(root: RawFd, path: &CStr, flags: i32, mode: u32) -> Sys<OwnedFd> {
    open_at(root, path, OpenHow { flags: (flags | libc::O_CLOEXEC) as u64, mode: u64::from(mode), resolve: IN_ROOT })
}

/// The same, and no part of the path may be a link.
pub(crate) fn open_real(root: RawFd, path: &CStr, flags: i32) -> Sys<OwnedFd> {
    const NO_SYMLINKS: u64 = 4;
    open_at(root, path, OpenHow { flags: (flags | libc::O_CLOEXEC) as u64, mode: 0, resolve: IN_ROOT | NO_SYMLINKS })
}

/// RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS.
const IN_ROOT: u64 = 0x10 | 2;

fn open_at(root: RawFd, path: &CStr, how: OpenHow) -> Sys<OwnedFd> {
    for _ in 0..100 {
        // SAFETY: the text ends with NUL, the structure has the size that is given.
        match owned(unsafe {
            libc::syscall(libc::SYS_openat2, root, path.as_ptr(), &raw const how, size_of::<OpenHow>())
        }) {
            Err(libc::EAGAIN | libc::EINTR) => {}
            other => return other,
        }
    }
    Err(libc::EAGAIN)
}

/// The machine's own /dev/null, and nothing that only bears its name (CVE-2025-31133), as a detached mount that cannot be written
/// to: who is root in a container owns that inode, and could change its mode for the whole machine. Devices are written to all
/// the same.
pub(crate) fn null_mount() -> Sys<OwnedFd> {
    // SAFETY: the text ends with NUL.
    let null = owned(i64::from(unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_PATH | libc::O_CLOEXEC) }))?;
    if !is_null(null.as_raw_fd()) {
        return Err(libc::ENODEV);
    }
    let mount = clone_tree(null.as_raw_fd(), false)?;
    set_mount_attributes(mount.as_raw_fd(), 1, false)?;
    Ok(mount)
}

/// `null_mount`, open for reading: what a container without an input gets.
pub(crate) fn null_input() -> Sys<OwnedFd> {
    let mount = null_mount()?;
    let path = std::ffi::CString::new(format!("/proc/self/fd/{}", mount.as_raw_fd())).map_err(|_| libc::EINVAL)?;
    // SAFETY: the text ends with NUL.
    owned(i64::from(unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) }))
}

/// Whether an open descriptor is the null device.
pub(crate) fn is_null(fd: RawFd) -> bool {
    stat(fd).is_ok_and(|found| found.st_mode & libc::S_IFMT == libc::S_IFCHR && found.st_rdev == libc::makedev(1, 3))
}

/// A file's type and device number, of an open descriptor.
pub(crate) fn stat(fd: RawFd) -> Sys<libc::stat> {
    // SAFETY: an all-zero stat is a valid value to be overwritten.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the structure outlives the call.
    check(i64::from(unsafe { libc::fstat(fd, &raw mut found) }))?;
    Ok(found)
}

/// Milliseconds since 1970, and the nanoseconds beyond.
pub(crate) fn now() -> (u64, u32) {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    (since.as_secs(), since.subsec_nanos())
}
