//! The interpreter: a child carries out the plan's operations one by one, from clone to exec. It never returns; what fails is
//! said through a pipe as errno and the operation's number.

use std::ffi::CStr;
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};

use coracle_plan::wire::{Decoder, Op};

use crate::fence::Permit;
use crate::sys::{self, Sys, check};

/// Runs the plan; writes `errno, operation` to `report` on failure and exits. With `born`, the program is executed by a child of
/// this one, whose number is written there. In a fenced pod the program is only executed while the `permit` holds.
pub(crate) fn run(
    plan: &[u8],
    fds: &[OwnedFd],
    stdio: [RawFd; 3],
    report: RawFd,
    born: Option<RawFd>,
    permit: Option<Permit>,
) -> ! {
    let mut interpreter = Interpreter { fds, root: None, stdio, born, permit };
    let (operation, errno) = match interpreter.all(plan, report) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let mut message = [0_u8; 8];
    message[..4].copy_from_slice(&errno.to_le_bytes());
    message[4..].copy_from_slice(&operation.to_le_bytes());
    // SAFETY: plain writes of our own memory; then the end of this process.
    unsafe {
        libc::write(report, message.as_ptr().cast(), message.len());
        libc::_exit(127);
    }
}

enum Never {}

struct Interpreter<'a> {
    fds: &'a [OwnedFd],
    root: Option<OwnedFd>,
    stdio: [RawFd; 3],
    born: Option<RawFd>,
    permit: Option<Permit>,
}

impl Interpreter<'_> {
    fn all(&mut self, plan: &[u8], report: RawFd) -> Result<Never, (u32, i32)> {
        reset_signals();
        // SAFETY: no memory is involved in these two. The monitor keeps its files to itself; folders made for mounts and for
        // the working folder are for every user of the container.
        unsafe {
            libc::setsid();
            libc::umask(0o022);
        }
        let mut decoder = Decoder::new(plan).map_err(|_| (0, libc::EINVAL))?;
        let mut index = 0;
        while let Some(op) = decoder.next_op().map_err(|_| (index, libc::EINVAL))? {
            index += 1;
            if let Op::Exec { args, env } = &op {
                if let Some(born) = self.born {
                    be_born_inside(born).map_err(|errno| (index, errno))?;
                }
                if let Some(permit) = self.permit {
                    stay_fenced(permit, report).map_err(|errno| (index, errno))?;
                }
                return Err((index, exec(args, env, self.stdio)));
            }
            self.one(&op).map_err(|errno| (index, errno))?;
            if matches!(op, Op::Pivot | Op::Join { .. }) {
                // Everything that came with the plan is used: no path of the container shall lead to it from here on.
                close_all_but(&[self.stdio[0], self.stdio[1], self.stdio[2], report, self.born.unwrap_or(report)]);
            }
        }
        Err((index, libc::ENOEXEC))
    }

    fn fd(&self, number: u32) -> Sys<RawFd> {
        self.fds.get(number as usize).map(std::os::fd::AsRawFd::as_raw_fd).ok_or(libc::EBADF)
    }

    fn root(&self) -> Sys<RawFd> {
        self.root.as_ref().map(std::os::fd::AsRawFd::as_raw_fd).ok_or(libc::EBADF)
    }

    #[allow(clippy::too_many_lines)]
    fn one(&mut self, op: &Op<'_>) -> Sys<()> {
        match op {
            // SAFETY: a write of one byte of our own.
            Op::Cgroup { fd } => check(unsafe { libc::write(self.fd(*fd)?, c"0".as_ptr().cast(), 1) } as i64).map(drop),
            // SAFETY: no memory is involved in these two.
            Op::Unshare { flags } => check(i64::from(unsafe { libc::unshare(*flags as i32) })).map(drop),
            Op::Join { fd, flags } => check(i64::from(unsafe { libc::setns(self.fd(*fd)?, *flags as i32) })).map(drop),
            Op::Root { fd, stage } => self.attach_root(*fd, c_text(stage)?),
            Op::NewFs { kind, target, attributes, options } => {
                let pairs = options.iter().map(|option| split_option(option)).collect::<Vec<_>>();
                let pairs: Vec<(&CStr, Option<&CStr>)> =
                    pairs.iter().map(|(key, value)| (key.as_c_str(), value.as_deref())).collect();
                let mount = sys::new_fs(c_text(kind)?, &pairs, *attributes)?;
                let target = if kernel_owned(kind, target) {
                    self.real_folder(c_text(target)?)?
                } else {
                    self.place(c_text(target)?, true)?
                };
                sys::move_mount(mount.as_raw_fd(), target.as_raw_fd(), c"")
            }
            Op::Bind { fd, target, attributes } => {
                let mount = self.fd(*fd)?;
                sys::make_private(mount)?;
                if *attributes != 0 {
                    sys::set_mount_attributes(mount, *attributes, true)?;
                }
                let is_dir = sys::stat(mount)?.st_mode & libc::S_IFMT == libc::S_IFDIR;
                let target = self.place(c_text(target)?, is_dir)?;
                sys::move_mount(mount, target.as_raw_fd(), c"")
            }
            Op::Device { path, mode, major, minor } => {
                let (parent, name) = self.parent(c_text(path)?)?;
                // SAFETY: the name ends with NUL. The umask must not take permissions away.
                unsafe {
                    let old = libc::umask(0);
                    let result = libc::mknodat(parent.as_raw_fd(), name.as_ptr(), *mode, libc::makedev(*major, *minor));
                    libc::umask(old);
                    check(i64::from(result)).map(drop)
                }
            }
            Op::Symlink { to, path } => {
                let (parent, name) = self.parent(c_text(path)?)?;
                // SAFETY: both texts end with NUL.
                check(i64::from(unsafe { libc::symlinkat(c_text(to)?.as_ptr(), parent.as_raw_fd(), name.as_ptr()) }))
                    .map(drop)
            }
            Op::Mask { path } => self.mask(c_text(path)?),
            Op::Readonly { path } => self.readonly(c_text(path)?),
            Op::MountReadonly { path } => {
                let mount = sys::open_in_root(self.root()?, c_text(path)?, libc::O_PATH, 0)?;
                sys::set_mount_attributes(mount.as_raw_fd(), 1, false)
            }
            Op::RootReadonly => sys::set_mount_attributes(self.root()?, 1, false),
            Op::Pivot => self.pivot(),
            Op::Rlimit { resource, soft, hard } => {
                let limit = libc::rlimit { rlim_cur: *soft, rlim_max: *hard };
                // SAFETY: the structure outlives the call.
                match check(i64::from(unsafe { libc::setrlimit(*resource as _, &raw const limit) })) {
                    Err(libc::EPERM) => clamp_limit(*resource, *soft),
                    other => other.map(drop),
                }
            }
            Op::Umask { mode } => {
                // SAFETY: no memory is involved.
                unsafe { libc::umask(*mode) };
                Ok(())
            }
            Op::OomScore { value } => {
                let text = format!("{}", i64::from(*value) - 1000);
                match std::fs::write("/proc/self/oom_score_adj", text) {
                    Err(error)
                        if error.raw_os_error() == Some(libc::EACCES) || error.raw_os_error() == Some(libc::EPERM) =>
                    {
                        Ok(())
                    }
                    Err(error) => Err(error.raw_os_error().unwrap_or(libc::EIO)),
                    Ok(()) => Ok(()),
                }
            }
            // SAFETY: no memory is involved.
            Op::NoNewPrivs => check(i64::from(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })).map(drop),
            Op::Seccomp { flags, program } => seccomp(*flags, program),
            Op::Identity { uid, gid, groups, capabilities } => {
                give_pipes_to(*uid, self.stdio);
                identity(*uid, *gid, groups, *capabilities)
            }
            Op::Chdir { path, create } => chdir(c_text(path)?, *create),
            Op::Exec { .. } => Err(libc::ENOEXEC),
        }
    }

    fn attach_root(&mut self, fd: u32, stage: &CStr) -> Sys<()> {
        // Nothing that is mounted from here on may be seen outside.
        // SAFETY: all texts end with NUL.
        check(i64::from(unsafe {
            libc::mount(
                std::ptr::null(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_SLAVE,
                std::ptr::null(),
            )
        }))?;
        let mount = self.fd(fd)?;
        sys::make_private(mount)?;
        sys::move_mount(mount, libc::AT_FDCWD, stage)?;
        // SAFETY: the text ends with NUL.
        let root = sys::owned(i64::from(unsafe {
            libc::open(stage.as_ptr(), libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC)
        }))?;
        self.root = Some(root);
        Ok(())
    }

    /// A folder directly in the root, made where it is missing, and no link: a `/proc` that is one would put the kernel's files
    /// where the image wants them (CVE-2019-19921).
    fn real_folder(&self, path: &CStr) -> Sys<OwnedFd> {
        let root = self.root()?;
        match sys::open_real(root, path, libc::O_PATH | libc::O_DIRECTORY) {
            Err(libc::ENOENT) => drop(self.place(path, true)?),
            other => return other,
        }
        sys::open_real(root, path, libc::O_PATH | libc::O_DIRECTORY)
    }

    /// A place in the root to mount on, made where it is missing: a folder, or an empty file. Where the image has a link to nothing
    /// (as `/etc/resolv.conf` often is), what it points to is made, inside the root.
    fn place(&self, path: &CStr, folder: bool) -> Sys<OwnedFd> {
        let mut path = path.to_owned();
        // As many links as the kernel follows.
        for _ in 0..40 {
            match self.place_once(&path, folder) {
                Err(libc::ELOOP | libc::ENOENT) => path = self.link_target(&path)?,
                other => return other,
            }
        }
        Err(libc::ELOOP)
    }

    /// Where a link points, as a path of the root; an error when it is none.
    fn link_target(&self, path: &CStr) -> Sys<std::ffi::CString> {
        let (parent, name) = self.parent(path)?;
        let mut buffer = [0_u8; 4096];
        // SAFETY: the name ends with NUL; the buffer has the size that is given.
        let length = check(unsafe {
            libc::readlinkat(parent.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) as i64
        });
        let target = buffer.get(..length.map_err(|_| libc::ELOOP)? as usize).ok_or(libc::ENAMETOOLONG)?;
        let mut absolute = Vec::new();
        if !target.starts_with(b"/") {
            let text = path.to_bytes();
            let text = text.strip_suffix(b"/").unwrap_or(text);
            absolute.extend_from_slice(&text[..text.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1)]);
        }
        absolute.extend_from_slice(target);
        std::ffi::CString::new(absolute).map_err(|_| libc::EINVAL)
    }

    fn place_once(&self, path: &CStr, folder: bool) -> Sys<OwnedFd> {
        let root = self.root()?;
        match sys::open_in_root(root, path, libc::O_PATH, 0) {
            Err(libc::ENOENT) => {}
            other => return other,
        }
        let (parent, name) = self.parent(path)?;
        if folder {
            // SAFETY: the name ends with NUL.
            match check(i64::from(unsafe { libc::mkdirat(parent.as_raw_fd(), name.as_ptr(), 0o755) })) {
                Ok(_) | Err(libc::EEXIST) => {}
                Err(errno) => return Err(errno),
            }
        } else {
            let flags = libc::O_CREAT | libc::O_NOFOLLOW | libc::O_WRONLY | libc::O_CLOEXEC;
            // SAFETY: the name ends with NUL.
            sys::owned(i64::from(unsafe { libc::openat(parent.as_raw_fd(), name.as_ptr(), flags, 0o644) }))?;
        }
        sys::open_in_root(root, path, libc::O_PATH, 0)
    }

    /// The open folder a path ends in, with all folders on the way made, and the last name.
    fn parent(&self, path: &CStr) -> Sys<(OwnedFd, std::ffi::CString)> {
        let bytes = path.to_bytes();
        let trimmed = bytes.strip_suffix(b"/").unwrap_or(bytes);
        let cut = trimmed.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        let (folders, name) = trimmed.split_at(cut);
        if name.is_empty() || name == b"." || name == b".." {
            return Err(libc::EINVAL);
        }
        let root = self.root()?;
        let mut so_far = Vec::from(*b"/");
        let mut here = sys::open_in_root(root, c"/", libc::O_PATH | libc::O_DIRECTORY, 0)?;
        for part in folders.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            so_far.extend_from_slice(part);
            let text = std::ffi::CString::new(so_far.clone()).map_err(|_| libc::EINVAL)?;
            here = match sys::open_in_root(root, &text, libc::O_PATH | libc::O_DIRECTORY, 0) {
                Err(libc::ENOENT) => {
                    let part = std::ffi::CString::new(part).map_err(|_| libc::EINVAL)?;
                    // SAFETY: the name ends with NUL.
                    match check(i64::from(unsafe { libc::mkdirat(here.as_raw_fd(), part.as_ptr(), 0o755) })) {
                        Ok(_) | Err(libc::EEXIST) => {
                            sys::open_in_root(root, &text, libc::O_PATH | libc::O_DIRECTORY, 0)?
                        }
                        Err(errno) => return Err(errno),
                    }
                }
                other => other?,
            };
            so_far.push(b'/');
        }
        Ok((here, std::ffi::CString::new(name).map_err(|_| libc::EINVAL)?))
    }

    fn mask(&self, path: &CStr) -> Sys<()> {
        let target = match sys::open_in_root(self.root()?, path, libc::O_PATH, 0) {
            Err(libc::ENOENT | libc::ENOTDIR | libc::EACCES) => return Ok(()),
            other => other?,
        };
        let mount = if sys::stat(target.as_raw_fd())?.st_mode & libc::S_IFMT == libc::S_IFDIR {
            sys::new_fs(c"tmpfs", &[(c"size", Some(c"0")), (c"mode", Some(c"0555"))], 1 | 2 | 4 | 8)?
        } else {
            sys::null_mount()?
        };
        sys::move_mount(mount.as_raw_fd(), target.as_raw_fd(), c"")
    }

    fn readonly(&self, path: &CStr) -> Sys<()> {
        let target = match sys::open_in_root(self.root()?, path, libc::O_PATH, 0) {
            Err(libc::ENOENT | libc::ENOTDIR) => return Ok(()),
            other => other?,
        };
        let mount = sys::clone_tree(target.as_raw_fd(), true)?;
        sys::set_mount_attributes(mount.as_raw_fd(), 1, true)?;
        sys::move_mount(mount.as_raw_fd(), target.as_raw_fd(), c"")
    }

    fn pivot(&mut self) -> Sys<()> {
        let root = self.root()?;
        // SAFETY: all texts end with NUL. pivot_root(".", ".") stacks the old root on the new one, where it is let go of.
        unsafe {
            check(i64::from(libc::fchdir(root)))?;
            check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()))?;
            check(i64::from(libc::umount2(c".".as_ptr(), libc::MNT_DETACH)))?;
            check(i64::from(libc::chdir(c"/".as_ptr())))?;
        }
        self.root = None;
        Ok(())
    }
}

/// The second birth of a command that is executed in a running container. A process is seen by the container from its birth in
/// the container's pid namespace on, and whoever may trace there could take from it what it still has: so it is born there when it
/// has left the machine's files, descriptors and capabilities behind. Returns in the child; podmon is its parent.
fn be_born_inside(born: RawFd) -> Sys<()> {
    // clone3 is not among the calls of every filter, and this one is loaded already.
    let flags = i64::from(libc::CLONE_PARENT | libc::SIGCHLD);
    // SAFETY: without CLONE_VM this is a fork of a process with one thread; no memory is involved.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone, flags, 0_u64, 0_u64, 0_u64, 0_u64) })?;
    if pid == 0 {
        // SAFETY: no memory is involved. A session of its own, so that its group can be ended with it.
        unsafe { libc::setsid() };
        return Ok(());
    }
    let number = (pid as i32).to_le_bytes();
    // SAFETY: a plain write of our own memory; then the end of this process.
    unsafe {
        libc::write(born, number.as_ptr().cast(), number.len());
        libc::_exit(0);
    }
}

/// The last look before the program of a fenced pod is executed. Without podmon nobody would keep its deadline: the program dies
/// with it (a program that gets privileges by being executed does not, nor one that asks not to).
fn stay_fenced(permit: Permit, report: RawFd) -> Sys<()> {
    let mut reader = libc::pollfd { fd: report, events: 0, revents: 0 };
    // SAFETY: no memory is involved but the one entry, which outlives its call.
    unsafe {
        check(i64::from(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0)))?;
        libc::poll(&raw mut reader, 1, 0);
    }
    // It may have died before: then nobody reads what is reported.
    if reader.revents & libc::POLLERR != 0 {
        return Err(libc::EPIPE);
    }
    if permit.holds() { Ok(()) } else { Err(libc::EKEYEXPIRED) }
}

/// Whether a mount is one that everything else relies on to be what its path says.
fn kernel_owned(kind: &[u8], target: &[u8]) -> bool {
    matches!(kind, b"proc\0" | b"sysfs\0" | b"devpts\0" | b"mqueue\0") || target == b"/dev\0"
}

/// Raising a hard limit may be forbidden: then as much as there is.
fn clamp_limit(resource: u32, soft: u64) -> Sys<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure outlives the calls.
    unsafe {
        check(i64::from(libc::getrlimit(resource as _, &raw mut limit)))?;
        limit.rlim_cur = soft.min(limit.rlim_max);
        check(i64::from(libc::setrlimit(resource as _, &raw const limit))).map(drop)
    }
}

/// A user that is not root could not open /dev/stdout again (as web servers do for their logs) if the pipe were root's.
fn give_pipes_to(uid: u32, stdio: [RawFd; 3]) {
    for fd in stdio {
        if sys::stat(fd).is_ok_and(|found| found.st_mode & libc::S_IFMT == libc::S_IFIFO) {
            // SAFETY: no memory is involved. Where it is refused, writing works still.
            unsafe { libc::fchown(fd, uid, libc::gid_t::MAX) };
        }
    }
}

/// Closes every descriptor but these. The child's list of descriptors is not used after this, nor dropped: it ends in exec.
fn close_all_but(kept: &[RawFd]) {
    let mut kept: Vec<u32> = kept.iter().map(|fd| *fd as u32).collect();
    kept.sort_unstable();
    let mut from = 0;
    for fd in kept.into_iter().chain([u32::MAX]) {
        if fd > from {
            // SAFETY: the numbers between are of no further use.
            unsafe { libc::syscall(libc::SYS_close_range, from, fd - 1, 0_u32) };
        }
        from = fd.saturating_add(1);
    }
}

fn c_text(bytes: &[u8]) -> Sys<&CStr> {
    CStr::from_bytes_with_nul(bytes).map_err(|_| libc::EINVAL)
}

/// `key=value` or `key`, both with NUL.
fn split_option(option: &[u8]) -> (std::ffi::CString, Option<std::ffi::CString>) {
    let text = option.strip_suffix(&[0]).unwrap_or(option);
    let own = |bytes: &[u8]| std::ffi::CString::new(bytes).unwrap_or_default();
    match text.iter().position(|byte| *byte == b'=') {
        Some(at) => (own(&text[..at]), Some(own(&text[at + 1..]))),
        None => (own(text), None),
    }
}

/// A program starts with default dispositions and nothing blocked, whatever podmon itself uses.
fn reset_signals() {
    // SAFETY: the set is initialised before use; the calls touch only this process.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

fn identity(uid: u32, gid: u32, groups: &[u32], capabilities: u64) -> Sys<()> {
    // SAFETY: no call takes memory but setgroups and capset, whose arguments outlive them.
    unsafe {
        for capability in 0..=40_u64 {
            if capabilities & (1 << capability) == 0 {
                match check(i64::from(libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0))) {
                    // Older kernels know fewer capabilities.
                    Ok(_) | Err(libc::EINVAL) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        check(i64::from(libc::setgroups(groups.len(), groups.as_ptr())))?;
        check(i64::from(libc::setresgid(gid, gid, gid)))?;
        check(i64::from(libc::setresuid(uid, uid, uid)))?;
        let kept = if uid == 0 { capabilities } else { 0 };
        let header = CapHeader { version: 0x2008_0522, pid: 0 };
        let mut data = [CapData::default(); 2];
        for (index, half) in data.iter_mut().enumerate() {
            let bits = (kept >> (32 * index)) as u32;
            half.effective = bits;
            half.permitted = bits;
        }
        check(libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()))?;
    }
    Ok(())
}

/// Loads a filter of system calls; what is done after it must be allowed by it.
fn seccomp(flags: u32, program: &[u8]) -> Sys<()> {
    // The plan's bytes may lie at any address; the kernel wants instructions where they belong.
    let instructions: Vec<libc::sock_filter> = program
        .chunks_exact(8)
        .map(|one| libc::sock_filter {
            code: u16::from_le_bytes([one[0], one[1]]),
            jt: one[2],
            jf: one[3],
            k: u32::from_le_bytes([one[4], one[5], one[6], one[7]]),
        })
        .collect();
    let length = u16::try_from(instructions.len()).map_err(|_| libc::EINVAL)?;
    let filter = libc::sock_fprog { len: length, filter: instructions.as_ptr().cast_mut() };
    // SAFETY: the instructions outlive the call and are as many as it says.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) })
        .map(drop)
}

/// Changes the folder and proves that it is inside the root: a path through a leaked descriptor would be "unreachable"
/// (CVE-2024-21626).
fn chdir(path: &CStr, create: bool) -> Sys<()> {
    // SAFETY: the text ends with NUL.
    let mut result = check(i64::from(unsafe { libc::chdir(path.as_ptr()) }));
    if result == Err(libc::ENOENT) && create {
        let text = path.to_bytes();
        for (at, _) in text.iter().enumerate().filter(|(at, byte)| **byte == b'/' && *at > 0).chain([(text.len(), &0)])
        {
            let part = std::ffi::CString::new(&text[..at]).map_err(|_| libc::EINVAL)?;
            // SAFETY: the text ends with NUL. That it is there already is no error; that it is no folder shows at once.
            unsafe { libc::mkdir(part.as_ptr(), 0o755) };
        }
        // SAFETY: the text ends with NUL.
        result = check(i64::from(unsafe { libc::chdir(path.as_ptr()) }));
    }
    result?;
    let mut buffer = [0_u8; 4096];
    // SAFETY: the buffer has the size that is given. The system call itself is asked: libc would hide an unreachable folder.
    check(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) })?;
    if buffer[0] == b'/' { Ok(()) } else { Err(libc::EXDEV) }
}

/// Replaces this process; returns only with an errno.
fn exec(args: &[&[u8]], env: &[&[u8]], stdio: [RawFd; 3]) -> i32 {
    let Some(first) = args.first().filter(|word| word.len() > 1) else { return libc::ENOENT };
    let pointers = |texts: &[&[u8]]| -> Vec<*const libc::c_char> {
        texts.iter().map(|text| text.as_ptr().cast()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (pointers(args), pointers(env));
    // SAFETY: every text ends with NUL (the decoder has checked it) and the lists end with null.
    unsafe {
        for (number, fd) in stdio.iter().enumerate() {
            if check(i64::from(libc::dup2(*fd, number as i32))).is_err() {
                return errno();
            }
        }
        // Whatever is open beyond these three is ours, not the container's. The report pipe is among it: exec closes it.
        libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, 4_u32);
        if first.contains(&b'/') {
            libc::execve(first.as_ptr().cast(), argv.as_ptr(), envp.as_ptr());
            return errno();
        }
        let path = env
            .iter()
            .find_map(|entry| entry.strip_prefix(b"PATH="))
            .map_or(&b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"[..], |path| {
                &path[..path.len() - 1]
            });
        let mut worst = libc::ENOENT;
        for folder in path.split(|byte| *byte == b':').filter(|folder| !folder.is_empty()) {
            let full = [folder, b"/", first].concat();
            libc::execve(full.as_ptr().cast(), argv.as_ptr(), envp.as_ptr());
            match errno() {
                libc::ENOENT | libc::ENOTDIR => {}
                other => worst = other,
            }
        }
        worst
    }
}

fn errno() -> i32 {
    sys::errno()
}
