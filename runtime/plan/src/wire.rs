//! The launch plan's bytes: a list of operations that a child of podmon carries out one by one, from clone to exec.
//!
//! Numbers are little-endian; text is length-prefixed and ends with a NUL that is not counted, so that the interpreter can hand
//! it to the kernel as it lies. A decoder never trusts a length.

/// The version of this format.
pub const VERSION: u32 = 1;
/// A plan is never longer.
pub const MAX_PLAN: usize = 1 << 20;

/// One operation. `fd` numbers count the file descriptors that came with the plan, from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op<'a> {
    /// Write `0` into an open `cgroup.procs`: the child enters the cgroup.
    Cgroup {
        /// Which descriptor.
        fd: u32,
    },
    /// unshare(2).
    Unshare {
        /// `CLONE_NEW*`.
        flags: u64,
    },
    /// setns(2) through a pidfd.
    Join {
        /// Which descriptor.
        fd: u32,
        /// `CLONE_NEW*`.
        flags: u64,
    },
    /// Attach the detached root mount at a staging folder and make it the place all later paths are resolved in.
    Root {
        /// Which descriptor.
        fd: u32,
        /// A folder of the host.
        stage: &'a [u8],
    },
    /// A new file system at a path in the root.
    NewFs {
        /// `proc`, `tmpfs`, ...
        kind: &'a [u8],
        /// Where, in the root.
        target: &'a [u8],
        /// `MOUNT_ATTR_*`.
        attributes: u64,
        /// `key=value` or `key`.
        options: Vec<&'a [u8]>,
    },
    /// A detached mount (volume, file) at a path in the root.
    Bind {
        /// Which descriptor.
        fd: u32,
        /// Where, in the root.
        target: &'a [u8],
        /// `MOUNT_ATTR_*` to set.
        attributes: u64,
    },
    /// A device node below `/dev`.
    Device {
        /// Path in the root.
        path: &'a [u8],
        /// Type and permissions.
        mode: u32,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A symbolic link.
    Symlink {
        /// What it says.
        to: &'a [u8],
        /// Path in the root.
        path: &'a [u8],
    },
    /// Hide a file or folder, if it is there.
    Mask {
        /// Path in the root.
        path: &'a [u8],
    },
    /// Make a path read-only, if it is there.
    Readonly {
        /// Path in the root.
        path: &'a [u8],
    },
    /// Make what is mounted at a path read-only, not what is mounted in it.
    MountReadonly {
        /// Path in the root.
        path: &'a [u8],
    },
    /// Make the root read-only (not what is mounted in it).
    RootReadonly,
    /// pivot_root(2) into the root and let go of the host's mounts.
    Pivot,
    /// setrlimit(2); a limit that may not be raised stays as it is.
    Rlimit {
        /// `RLIMIT_*`.
        resource: u32,
        /// Soft limit.
        soft: u64,
        /// Hard limit.
        hard: u64,
    },
    /// umask(2).
    Umask {
        /// The mask.
        mode: u32,
    },
    /// The OOM killer's adjustment; one that may not be lowered stays as it is.
    OomScore {
        /// -1000 to 1000, offset by 1000.
        value: u32,
    },
    /// `PR_SET_NO_NEW_PRIVS`.
    NoNewPrivs,
    /// seccomp(2) with a filter.
    Seccomp {
        /// `SECCOMP_FILTER_FLAG_*`.
        flags: u32,
        /// `struct sock_filter`, one after the other.
        program: &'a [u8],
    },
    /// Groups, group and user, in this order, after the bounding set is cut to `capabilities`.
    Identity {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
        /// Supplementary groups: exactly these.
        groups: Vec<u32>,
        /// Bit mask of capabilities kept: bounding, and for root permitted and effective. Inheritable and ambient are empty.
        capabilities: u64,
    },
    /// chdir(2), and proof that the folder is inside the root.
    Chdir {
        /// Path.
        path: &'a [u8],
        /// Make it when it is missing.
        create: bool,
    },
    /// execve(2), the first word looked up in the environment's PATH.
    Exec {
        /// The words.
        args: Vec<&'a [u8]>,
        /// `KEY=value`.
        env: Vec<&'a [u8]>,
    },
}

/// Bytes that are no plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Writes a plan.
#[derive(Debug, Default)]
pub struct Encoder {
    bytes: Vec<u8>,
}

impl Encoder {
    /// An empty plan.
    #[must_use]
    pub fn new() -> Self {
        let mut encoder = Self::default();
        encoder.u32(VERSION);
        encoder
    }

    /// The bytes.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }

    fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    fn text(&mut self, text: &[u8]) {
        self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        self.bytes.extend_from_slice(text);
        self.bytes.push(0);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.bytes.extend_from_slice(bytes);
    }

    fn texts(&mut self, texts: &[&[u8]]) {
        self.u32(u32::try_from(texts.len()).unwrap_or(u32::MAX));
        for text in texts {
            self.text(text);
        }
    }

    /// Appends an operation.
    pub fn op(&mut self, op: &Op<'_>) {
        self.bytes.push(code(op));
        match op {
            Op::Cgroup { fd } => self.u32(*fd),
            Op::Unshare { flags } => self.u64(*flags),
            Op::Join { fd, flags } => {
                self.u32(*fd);
                self.u64(*flags);
            }
            Op::Root { fd, stage } => {
                self.u32(*fd);
                self.text(stage);
            }
            Op::NewFs { kind, target, attributes, options } => {
                self.text(kind);
                self.text(target);
                self.u64(*attributes);
                self.texts(options);
            }
            Op::Bind { fd, target, attributes } => {
                self.u32(*fd);
                self.text(target);
                self.u64(*attributes);
            }
            Op::Device { path, mode, major, minor } => {
                self.text(path);
                self.u32(*mode);
                self.u32(*major);
                self.u32(*minor);
            }
            Op::Symlink { to, path } => {
                self.text(to);
                self.text(path);
            }
            Op::Mask { path } | Op::Readonly { path } | Op::MountReadonly { path } => self.text(path),
            Op::RootReadonly | Op::Pivot | Op::NoNewPrivs => {}
            Op::Rlimit { resource, soft, hard } => {
                self.u32(*resource);
                self.u64(*soft);
                self.u64(*hard);
            }
            Op::Umask { mode } => self.u32(*mode),
            Op::OomScore { value } => self.u32(*value),
            Op::Seccomp { flags, program } => {
                self.u32(*flags);
                self.bytes(program);
            }
            Op::Identity { uid, gid, groups, capabilities } => {
                self.u32(*uid);
                self.u32(*gid);
                self.u32(u32::try_from(groups.len()).unwrap_or(u32::MAX));
                for group in groups {
                    self.u32(*group);
                }
                self.u64(*capabilities);
            }
            Op::Chdir { path, create } => {
                self.text(path);
                self.u32(u32::from(*create));
            }
            Op::Exec { args, env } => {
                self.texts(args);
                self.texts(env);
            }
        }
    }
}

fn code(op: &Op<'_>) -> u8 {
    match op {
        Op::Cgroup { .. } => 1,
        Op::Unshare { .. } => 2,
        Op::Join { .. } => 3,
        Op::Root { .. } => 4,
        Op::NewFs { .. } => 5,
        Op::Bind { .. } => 6,
        Op::Device { .. } => 7,
        Op::Symlink { .. } => 8,
        Op::Mask { .. } => 9,
        Op::Readonly { .. } => 10,
        Op::RootReadonly => 11,
        Op::Pivot => 12,
        Op::Rlimit { .. } => 13,
        Op::Umask { .. } => 14,
        Op::OomScore { .. } => 15,
        Op::NoNewPrivs => 16,
        Op::Identity { .. } => 17,
        Op::Chdir { .. } => 18,
        Op::Exec { .. } => 19,
        Op::Seccomp { .. } => 20,
        Op::MountReadonly { .. } => 21,
    }
}

/// Reads a plan.
#[derive(Debug, Clone)]
pub struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// A reader over a whole plan.
    ///
    /// # Errors
    /// Too long, or of another version.
    pub fn new(bytes: &'a [u8]) -> Result<Self, Malformed> {
        if bytes.len() > MAX_PLAN {
            return Err(Malformed);
        }
        let mut decoder = Self { rest: bytes };
        if decoder.u32()? == VERSION { Ok(decoder) } else { Err(Malformed) }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        if self.rest.len() < length {
            return Err(Malformed);
        }
        let (bytes, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from(self.u32()?) | u64::from(self.u32()?) << 32)
    }

    /// Text with its NUL: what comes back ends with the NUL and has no other.
    fn text(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()? as usize;
        let bytes = self.take(length.checked_add(1).ok_or(Malformed)?)?;
        let (text, end) = bytes.split_at(length);
        if end == [0] && !text.contains(&0) { Ok(bytes) } else { Err(Malformed) }
    }

    /// Whole instructions of eight bytes, at least one.
    fn program(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()? as usize;
        if length == 0 || !length.is_multiple_of(8) {
            return Err(Malformed);
        }
        self.take(length)
    }

    fn texts(&mut self) -> Result<Vec<&'a [u8]>, Malformed> {
        let count = self.u32()? as usize;
        // Each takes at least five bytes: a hostile count ends here, not in the allocator.
        if count > self.rest.len() / 5 {
            return Err(Malformed);
        }
        (0..count).map(|_| self.text()).collect()
    }

    /// The next operation; texts keep their final NUL.
    ///
    /// # Errors
    /// Bytes that are no operation.
    pub fn next_op(&mut self) -> Result<Option<Op<'a>>, Malformed> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        Ok(Some(match self.take(1)?[0] {
            1 => Op::Cgroup { fd: self.u32()? },
            2 => Op::Unshare { flags: self.u64()? },
            3 => Op::Join { fd: self.u32()?, flags: self.u64()? },
            4 => Op::Root { fd: self.u32()?, stage: self.text()? },
            5 => {
                Op::NewFs { kind: self.text()?, target: self.text()?, attributes: self.u64()?, options: self.texts()? }
            }
            6 => Op::Bind { fd: self.u32()?, target: self.text()?, attributes: self.u64()? },
            7 => Op::Device { path: self.text()?, mode: self.u32()?, major: self.u32()?, minor: self.u32()? },
            8 => Op::Symlink { to: self.text()?, path: self.text()? },
            9 => Op::Mask { path: self.text()? },
            10 => Op::Readonly { path: self.text()? },
            11 => Op::RootReadonly,
            12 => Op::Pivot,
            13 => Op::Rlimit { resource: self.u32()?, soft: self.u64()?, hard: self.u64()? },
            14 => Op::Umask { mode: self.u32()? },
            15 => Op::OomScore { value: self.u32()? },
            16 => Op::NoNewPrivs,
            17 => {
                let (uid, gid, count) = (self.u32()?, self.u32()?, self.u32()? as usize);
                if count > self.rest.len() / 4 {
                    return Err(Malformed);
                }
                let groups = (0..count).map(|_| self.u32()).collect::<Result<_, _>>()?;
                Op::Identity { uid, gid, groups, capabilities: self.u64()? }
            }
            18 => Op::Chdir { path: self.text()?, create: self.u32()? != 0 },
            19 => Op::Exec { args: self.texts()?, env: self.texts()? },
            20 => Op::Seccomp { flags: self.u32()?, program: self.program()? },
            21 => Op::MountReadonly { path: self.text()? },
            _ => return Err(Malformed),
        }))
    }
}

/// What an operation was about, in words, for an error message.
#[must_use]
pub fn describe(op: &Op<'_>) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned();
    match op {
        Op::Cgroup { .. } => "enter its cgroup".to_owned(),
        Op::Unshare { .. } | Op::Join { .. } => "enter its namespaces".to_owned(),
        Op::Root { .. } => "attach its root file system".to_owned(),
        Op::NewFs { kind, target, .. } => format!("mount {} at {}", text(kind), text(target)),
        Op::Bind { target, .. } => format!("mount a volume at {}", text(target)),
        Op::Device { path, .. } => format!("make the device {}", text(path)),
        Op::Symlink { path, .. } => format!("make the link {}", text(path)),
        Op::Mask { path } => format!("hide {}", text(path)),
        Op::Readonly { path } | Op::MountReadonly { path } => format!("make {} read-only", text(path)),
        Op::RootReadonly => "make its root read-only".to_owned(),
        Op::Pivot => "change into its root".to_owned(),
        Op::Rlimit { .. } => "set a resource limit".to_owned(),
        Op::Umask { .. } => "set its umask".to_owned(),
        Op::OomScore { .. } => "set its OOM score".to_owned(),
        Op::NoNewPrivs => "give up new privileges".to_owned(),
        Op::Seccomp { .. } => "limit its system calls (seccomp)".to_owned(),
        Op::Identity { uid, gid, .. } => format!("become user {uid}, group {gid}"),
        Op::Chdir { path, .. } => format!("change into the folder {}", text(path)),
        Op::Exec { args, .. } => format!("execute `{}`", args.first().map(|word| text(word)).unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads everything that can be read.
    fn drain(bytes: &[u8]) -> Result<usize, Malformed> {
        let mut decoder = Decoder::new(bytes)?;
        let mut count = 0;
        while let Some(op) = decoder.next_op()? {
            let _ = describe(&op);
            count += 1;
        }
        Ok(count)
    }

    fn sample() -> Vec<u8> {
        let mut encoder = Encoder::new();
        encoder.op(&Op::Cgroup { fd: 1 });
        encoder.op(&Op::Root { fd: 0, stage: b"/run/stage" });
        encoder.op(&Op::NewFs {
            kind: b"tmpfs",
            target: b"/dev",
            attributes: 6,
            options: vec![b"mode=755", b"size=1k"],
        });
        encoder.op(&Op::Bind { fd: 2, target: b"/data", attributes: 1 });
        encoder.op(&Op::Device { path: b"/dev/null", mode: 0o666, major: 1, minor: 3 });
        encoder.op(&Op::Pivot);
        encoder.op(&Op::Seccomp { flags: 0, program: &[6, 0, 0, 0, 0, 0, 0xff, 0x7f] });
        encoder.op(&Op::Identity { uid: 1, gid: 2, groups: vec![3, 4], capabilities: 5 });
        encoder.op(&Op::Exec { args: vec![b"sh", b"-c", b"true"], env: vec![b"A=b"] });
        encoder.finish()
    }

    #[test]
    fn what_is_written_is_read() {
        let bytes = sample();
        let mut decoder = Decoder::new(&bytes).unwrap();
        let mut ops = Vec::new();
        while let Some(op) = decoder.next_op().unwrap() {
            ops.push(op);
        }
        assert_eq!(ops.len(), 9);
        assert_eq!(ops[3], Op::Bind { fd: 2, target: b"/data\0", attributes: 1 });
        assert_eq!(ops[6], Op::Seccomp { flags: 0, program: &[6, 0, 0, 0, 0, 0, 0xff, 0x7f] });
        assert_eq!(ops[8], Op::Exec { args: vec![b"sh\0", b"-c\0", b"true\0"], env: vec![b"A=b\0"] });
    }

    #[test]
    fn a_plan_cut_anywhere_is_malformed_or_shorter() {
        let bytes = sample();
        let all = drain(&bytes).unwrap();
        for length in 0..bytes.len() {
            assert!(drain(&bytes[..length]).is_err() || drain(&bytes[..length]).unwrap() < all, "{length}");
        }
        assert_eq!(drain(&[9, 0, 0, 0]), Err(Malformed));
        assert_eq!(Decoder::new(&vec![0; MAX_PLAN + 1]).map(drop), Err(Malformed));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut plan = VERSION.to_le_bytes().to_vec();
            plan.extend(&bytes);
            let _ = drain(&plan);
            let mut fields = crate::message::Fields::new(&bytes);
            while fields.record().is_some() {}
            let mut fields = crate::message::Fields::new(&bytes);
            while fields.text().is_some() {}
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0_usize..200, value in any::<u8>()) {
            let mut bytes = sample();
            let at = at % bytes.len();
            bytes[at] = value;
            let _ = drain(&bytes);
        }
    }
}
