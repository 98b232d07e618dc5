//! Control groups, whichever version this machine has: v2, v1, or v1 with an empty v2 beside it (hybrid).
//!
//! Limits go where the controllers are; grouping, atomic kill and being born inside go through v2 wherever it is mounted.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use coracle_plan::{Devices, Hierarchy};
use rustix::fs::{Mode as FileMode, OFlags};

/// Where the controllers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// All in v2.
    V2,
    /// In v1; v2 may be mounted beside it without them.
    V1,
}

/// What keeps containers from the machine's devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceControl {
    /// A BPF program on the container's v2 cgroup.
    Bpf,
    /// The v1 controller.
    V1,
    /// Nothing: only privileged containers can be started.
    Nothing,
}

/// Filters that are loaded, each for all containers of the same rules.
type Filters = Arc<Mutex<HashMap<Devices, Arc<OwnedFd>>>>;
/// Beyond this many different sets of rules they are loaded anew.
const FILTERS: usize = 64;

/// What a cgroup may use; `None` is no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Memory, bytes.
    pub memory_bytes: Option<u64>,
    /// CPU time in each 100 ms, microseconds.
    pub cpu_quota_us: Option<u64>,
    /// Weight against others, in v1 shares (1024 = one core asked for).
    pub cpu_shares: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// What a cgroup has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// CPU time, nanoseconds.
    pub cpu_ns: u64,
    /// Memory without what could be dropped at once, bytes.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u64,
}

/// What went wrong with a cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// No hierarchy with memory and CPU is mounted.
    #[error(
        "this machine has no usable cgroups: neither a v2 hierarchy with the memory controller nor a v1 one can be seen\nhint: `mount -t cgroup2 cgroup2 /sys/fs/cgroup`; in a container, give it the machine's"
    )]
    None,
    /// A file or folder.
    #[error("cannot {action} {path}")]
    File {
        /// `create`, `write`, ...
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// Neither way to keep a container from the machine's devices.
    #[error(
        "containers cannot be kept from this machine's devices\nhint: the kernel needs CONFIG_CGROUP_BPF with a mounted cgroup2, or the v1 controller `devices`"
    )]
    NoDeviceControl,
    /// The kernel refused a device filter.
    #[error("cannot {action} the filter of the container's devices")]
    DeviceFilter {
        /// `load`, `attach`.
        action: &'static str,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// Processes that do not go away.
    #[error("the cgroup {0} does not become empty")]
    Busy(PathBuf),
}

/// The hierarchies of this machine and our subtree's name in them.
#[derive(Debug, Clone)]
pub(crate) struct Cgroups {
    pub(crate) mode: Mode,
    v2: Option<PathBuf>,
    /// v1 hierarchies we use, by mount point: those with cpu, cpuacct, memory or pids.
    v1: Vec<(Vec<String>, PathBuf)>,
    name: String,
    pub(crate) device_control: DeviceControl,
    filters: Filters,
}

impl Cgroups {
    pub(crate) fn detect(name: &str) -> Result<Self, CgroupError> {
        let bpf = Devices::Only(Vec::new()).program().is_some_and(|code| crate::sys::load_device_filter(&code).is_ok());
        Self::detect_with(name, bpf)
    }

    /// `bpf` = device filters can be loaded.
    fn detect_with(name: &str, bpf: bool) -> Result<Self, CgroupError> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").map_err(|source| CgroupError::File {
            action: "read",
            path: "/proc/self/mountinfo".into(),
            source,
        })?;
        let (mut v2, mut v1, mut devices) = (None, Vec::new(), None);
        for line in table.lines() {
            let Some((head, tail)) = line.split_once(" - ") else { continue };
            let Some(mount) = head.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut tail = tail.split(' ');
            let kind = tail.next().filter(|kind| matches!(*kind, "cgroup" | "cgroup2"));
            // Something else may be mounted over it. Other kinds are not looked into: that would start automounts, and wait
            // for servers that are gone.
            if kind.is_none() || !mount.join("cgroup.procs").exists() {
                continue;
            }
            match kind {
                Some("cgroup2") => v2 = v2.or(Some(mount)),
                Some("cgroup") => {
                    let options: Vec<String> =
                        tail.nth(1).unwrap_or_default().split(',').map(ToOwned::to_owned).collect();
                    if options.iter().any(|option| matches!(option.as_str(), "cpu" | "cpuacct" | "memory" | "pids")) {
                        v1.push((options, mount));
                    } else if options.iter().any(|option| option == "devices") {
                        devices = Some((options, mount));
                    }
                }
                _ => {}
            }
        }
        let full = v2.as_ref().is_some_and(|mount| {
            std::fs::read_to_string(mount.join("cgroup.controllers"))
                .is_ok_and(|text| text.split_whitespace().any(|name| name == "memory"))
        });
        let mode = if full { Mode::V2 } else { Mode::V1 };
        if mode == Mode::V2 {
            v1.clear();
        } else if !v1.iter().any(|(options, _)| options.iter().any(|option| option == "memory")) {
            return Err(CgroupError::None);
        }
        let device_control = if bpf && v2.is_some() {
            DeviceControl::Bpf
        } else if let Some(devices) = devices {
            v1.push(devices);
            DeviceControl::V1
        } else {
            DeviceControl::Nothing
        };
        Ok(Self { mode, v2, v1, name: name.to_owned(), device_control, filters: Filters::default() })
    }

    /// Whether v2 is mounted, with controllers or without.
    pub(crate) fn has_unified(&self) -> bool {
        self.v2.is_some()
    }

    /// What a container is shown of them.
    pub(crate) fn hierarchies(&self) -> Vec<Hierarchy> {
        // The options of a v1 mount are its controllers and a few words of another kind.
        let no_controller = |word: &str| matches!(word, "rw" | "ro" | "xattr" | "clone_children" | "noprefix");
        let v1 = self.v1.iter().map(|(options, _)| {
            let controllers = options.iter().filter(|word| !no_controller(word) && !word.contains('='));
            Hierarchy::V1(controllers.cloned().collect())
        });
        self.v2.iter().map(|_| Hierarchy::V2).chain(v1).collect()
    }

    /// Controllers whose limits cannot be kept here.
    pub(crate) fn missing_controllers(&self) -> Vec<String> {
        let v2 = self
            .v2
            .as_ref()
            .filter(|_| self.mode == Mode::V2)
            .map(|mount| std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default());
        let has = |name: &str| match &v2 {
            Some(list) => list.split_whitespace().any(|known| known == name),
            None => self.v1_with(name, "").is_some(),
        };
        [("cpu", "CPU"), ("memory", "memory"), ("pids", "process")]
            .iter()
            .filter(|(name, _)| !has(name))
            .map(|(name, limit)| format!("no cgroup controller `{name}`: {limit} limits cannot be kept"))
            .collect()
    }

    /// Our folder `below` in every hierarchy.
    fn folders(&self, below: &str) -> Vec<PathBuf> {
        let mounts = self.v2.iter().chain(self.v1.iter().map(|(_, mount)| mount));
        mounts.map(|mount| mount.join(&self.name).join(below)).collect()
    }

    fn v1_with(&self, controller: &str, below: &str) -> Option<PathBuf> {
        let (_, mount) = self.v1.iter().find(|(options, _)| options.iter().any(|option| option == controller))?;
        Some(mount.join(&self.name).join(below))
    }

    fn v2_folder(&self, below: &str) -> Option<PathBuf> {
        Some(self.v2.as_ref()?.join(&self.name).join(below))
    }

    /// Makes the cgroup `below` (and its parents) everywhere and sets its limits.
    pub(crate) fn create(&self, below: &str, limits: &Limits) -> Result<(), CgroupError> {
        if self.mode == Mode::V2 {
            self.delegate(below)?;
        }
        for folder in self.folders(below) {
            std::fs::create_dir_all(&folder).map_err(|source| CgroupError::File {
                action: "create",
                path: folder.clone(),
                source,
            })?;
        }
        self.limit(below, limits)
    }

    /// Lets the cgroup of an earlier run go, with the filter on it and its counts, where nothing is in it.
    pub(crate) fn renew(&self, below: &str) {
        if let Some(folder) = self.v2_folder(below) {
            let _ = std::fs::remove_dir(folder);
        }
    }

    /// Which devices the processes in `below` may open. `folder` = its open v2 folder, as of `birth`.
    pub(crate) fn allow_devices(
        &self,
        below: &str,
        folder: Option<BorrowedFd<'_>>,
        devices: &Devices,
    ) -> Result<(), CgroupError> {
        match (self.device_control, devices) {
            (DeviceControl::Bpf | DeviceControl::Nothing, Devices::All) => Ok(()),
            (DeviceControl::Nothing, Devices::Only(_)) => Err(CgroupError::NoDeviceControl),
            (DeviceControl::Bpf, Devices::Only(_)) => {
                let folder = folder.ok_or(CgroupError::NoDeviceControl)?;
                let filter = self.filter(devices)?;
                crate::sys::attach_device_filter(folder, filter.as_fd())
                    .map_err(|source| CgroupError::DeviceFilter { action: "attach", source })
            }
            (DeviceControl::V1, _) => {
                let folder = self.v1_with("devices", below).ok_or(CgroupError::NoDeviceControl)?;
                let write = |file: &str, text: &str| {
                    let path = folder.join(file);
                    std::fs::write(&path, text).map_err(|source| CgroupError::File { action: "write", path, source })
                };
                match devices {
                    Devices::All => write("devices.allow", "a"),
                    Devices::Only(rules) => {
                        write("devices.deny", "a")?;
                        rules.iter().try_for_each(|rule| write("devices.allow", &rule.to_string()))
                    }
                }
            }
        }
    }

    fn filter(&self, devices: &Devices) -> Result<Arc<OwnedFd>, CgroupError> {
        let mut filters = self.filters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(filter) = filters.get(devices) {
            return Ok(filter.clone());
        }
        let program = devices.program().unwrap_or_default();
        let filter = crate::sys::load_device_filter(&program)
            .map_err(|source| CgroupError::DeviceFilter { action: "load", source })?;
        if filters.len() >= FILTERS {
            filters.clear();
        }
        let filter = Arc::new(filter);
        filters.insert(devices.clone(), filter.clone());
        Ok(filter)
    }

    /// v2 hands controllers down level by level.
    fn delegate(&self, below: &str) -> Result<(), CgroupError> {
        let Some(mount) = &self.v2 else { return Ok(()) };
        let mut folder = mount.clone();
        let parts: Vec<&str> = self.name.split('/').chain(below.split('/')).filter(|part| !part.is_empty()).collect();
        for part in parts {
            for controller in ["+cpu", "+memory", "+pids"] {
                // A level that has processes of its own refuses; then the limits below it fail by name.
                let _ = std::fs::write(folder.join("cgroup.subtree_control"), controller);
            }
            folder.push(part);
            if !folder.exists() {
                std::fs::create_dir(&folder).map_err(|source| CgroupError::File {
                    action: "create",
                    path: folder.clone(),
                    source,
                })?;
            }
        }
        Ok(())
    }

    fn limit(&self, below: &str, limits: &Limits) -> Result<(), CgroupError> {
        let write = |folder: Option<PathBuf>, file: &str, text: String| -> Result<(), CgroupError> {
            let Some(path) = folder.map(|folder| folder.join(file)) else { return Ok(()) };
            std::fs::write(&path, text).map_err(|source| CgroupError::File { action: "write", path, source })
        };
        if self.mode == Mode::V2 {
            let folder = || self.v2_folder(below);
            if let Some(bytes) = limits.memory_bytes {
                write(folder(), "memory.max", bytes.to_string())?;
                // The whole container goes, not one process of it; and what it may not have it may not swap.
                let _ = write(folder(), "memory.oom.group", "1".to_owned());
                let _ = write(folder(), "memory.swap.max", "0".to_owned());
            }
            if let Some(quota) = limits.cpu_quota_us {
                write(folder(), "cpu.max", format!("{} 100000", quota.max(1000)))?;
            }
            if let Some(shares) = limits.cpu_shares {
                // The mapping of the kubelet: 2..262144 shares to 1..10000 weight.
                let weight = 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142;
                write(folder(), "cpu.weight", weight.to_string())?;
            }
            if let Some(pids) = limits.pids {
                write(folder(), "pids.max", pids.to_string())?;
            }
            return Ok(());
        }
        if let Some(bytes) = limits.memory_bytes {
            write(self.v1_with("memory", below), "memory.limit_in_bytes", bytes.to_string())?;
            // Only where the kernel accounts for swap.
            let _ = write(self.v1_with("memory", below), "memory.memsw.limit_in_bytes", bytes.to_string());
        }
        if let Some(quota) = limits.cpu_quota_us {
            write(self.v1_with("cpu", below), "cpu.cfs_period_us", "100000".to_owned())?;
            write(self.v1_with("cpu", below), "cpu.cfs_quota_us", quota.max(1000).to_string())?;
        }
        if let Some(shares) = limits.cpu_shares {
            write(self.v1_with("cpu", below), "cpu.shares", shares.max(2).to_string())?;
        }
        if let Some(pids) = limits.pids {
            write(self.v1_with("pids", below), "pids.max", pids.to_string())?;
        }
        Ok(())
    }

    /// The `cgroup.procs` a child writes itself into: of v1 hierarchies, and of v2 only when it cannot be born there.
    pub(crate) fn procs(&self, below: &str) -> Result<Vec<OwnedFd>, CgroupError> {
        self.v1
            .iter()
            .map(|(_, mount)| {
                let path = mount.join(&self.name).join(below).join("cgroup.procs");
                let open = File::options().write(true).open(&path);
                open.map(OwnedFd::from).map_err(|source| CgroupError::File { action: "open", path, source })
            })
            .collect()
    }

    /// The v2 folder to be born in.
    pub(crate) fn birth(&self, below: &str) -> Result<Option<OwnedFd>, CgroupError> {
        let Some(path) = self.v2_folder(below) else { return Ok(None) };
        rustix::fs::open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, FileMode::empty())
            .map(Some)
            .map_err(|errno| CgroupError::File { action: "open", path, source: errno.into() })
    }

    /// The file that counts OOM kills.
    pub(crate) fn oom_counter(&self, below: &str) -> Option<OwnedFd> {
        let path = match self.mode {
            Mode::V2 => self.v2_folder(below)?.join("memory.events"),
            Mode::V1 => self.v1_with("memory", below)?.join("memory.oom_control"),
        };
        File::open(path).ok().map(OwnedFd::from)
    }

    /// The file that kills all that is in `below` and under it with one write; `None` without v2.
    pub(crate) fn kill_file(&self, below: &str) -> Result<Option<OwnedFd>, CgroupError> {
        let Some(path) = self.v2_folder(below).map(|folder| folder.join("cgroup.kill")) else { return Ok(None) };
        let open = File::options().write(true).open(&path);
        open.map(|file| Some(file.into())).map_err(|source| CgroupError::File { action: "open", path, source })
    }

    /// Puts a process into the cgroup `below`.
    pub(crate) fn enter(&self, below: &str, pid: u32) -> Result<(), CgroupError> {
        for folder in self.folders(below) {
            let path = folder.join("cgroup.procs");
            let mut file = File::options().write(true).open(&path).map_err(|source| CgroupError::File {
                action: "open",
                path: path.clone(),
                source,
            })?;
            file.write_all(pid.to_string().as_bytes()).map_err(|source| CgroupError::File {
                action: "write",
                path,
                source,
            })?;
        }
        Ok(())
    }

    /// Kills everything in `below` and what is under it, waits until it is gone, and removes the folders.
    pub(crate) fn destroy(&self, below: &str) -> Result<(), CgroupError> {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let mut alive = false;
            for folder in self.folders(below) {
                if !folder.exists() {
                    continue;
                }
                let _ = std::fs::write(folder.join("cgroup.kill"), "1");
                alive |= !sweep(&folder);
            }
            if !alive {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(CgroupError::Busy(below.into()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What `below` has used.
    pub(crate) fn stats(&self, below: &str) -> Stats {
        let read = |folder: Option<PathBuf>, file: &str| {
            folder.and_then(|folder| std::fs::read_to_string(folder.join(file)).ok()).unwrap_or_default()
        };
        let number = |text: String| text.trim().parse::<u64>().unwrap_or(0);
        let field = |text: &str, name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse::<u64>().ok())
                .unwrap_or(0)
        };
        if self.mode == Mode::V2 {
            let folder = || self.v2_folder(below);
            let used = number(read(folder(), "memory.current"));
            let inactive = field(&read(folder(), "memory.stat"), "inactive_file");
            return Stats {
                cpu_ns: field(&read(folder(), "cpu.stat"), "usage_usec") * 1000,
                memory_bytes: used.saturating_sub(inactive),
                pids: number(read(folder(), "pids.current")),
            };
        }
        let used = number(read(self.v1_with("memory", below), "memory.usage_in_bytes"));
        let inactive = field(&read(self.v1_with("memory", below), "memory.stat"), "total_inactive_file");
        Stats {
            cpu_ns: number(read(self.v1_with("cpuacct", below), "cpuacct.usage")),
            memory_bytes: used.saturating_sub(inactive),
            pids: number(read(self.v1_with("pids", below), "pids.current")),
        }
    }
}

/// Kills what is in a folder and below; removes what is empty. `true` when the folder is gone.
fn sweep(folder: &Path) -> bool {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            sweep(&entry.path());
        }
    }
    for pid in std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default().lines() {
        if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let _ = std::fs::remove_dir(folder);
    !folder.exists()
}

#[cfg(test)]
#[allow(clippy::print_stdout)] // SKIP lines
mod tests {
    use super::*;
    use std::process::Command;

    /// Whether a shell in the cgroup can read a byte of each device: null, zero, kmsg.
    fn readable(cgroups: &Cgroups, below: &str) -> [bool; 3] {
        ["/dev/null", "/dev/zero", "/dev/kmsg"].map(|device| {
            let procs = cgroups.folders(below).into_iter().map(|folder| folder.join("cgroup.procs"));
            let enter: String = procs.map(|path| format!("echo $$ > {} && ", path.display())).collect();
            let script = format!("{enter} exec 3< {device}");
            Command::new("sh").args(["-c", &script]).stderr(std::process::Stdio::null()).status().unwrap().success()
        })
    }

    #[test]
    fn devices_are_kept_away_by_either_control() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: not root");
            return;
        }
        let rule = |minor| coracle_plan::DeviceRule {
            kind: coracle_plan::DeviceKind::Character,
            major: Some(1),
            minor: Some(minor),
            make: false,
            read: true,
            write: true,
        };
        let only = Devices::Only(vec![rule(3), rule(5)]);
        for bpf in [true, false] {
            let name = format!("coracle-devices-{}-{bpf}", std::process::id());
            let cgroups = Cgroups::detect_with(&name, bpf).unwrap();
            if cgroups.device_control == DeviceControl::Nothing {
                println!("SKIP: no v1 controller `devices` on this machine");
                continue;
            }
            for (below, devices, kmsg) in [("some", &only, false), ("all", &Devices::All, true)] {
                cgroups.create(below, &Limits::default()).unwrap();
                let folder = cgroups.birth(below).unwrap();
                cgroups.allow_devices(below, folder.as_ref().map(OwnedFd::as_fd), devices).unwrap();
                assert_eq!(readable(&cgroups, below), [true, true, kmsg], "{:?} {below}", cgroups.device_control);
            }
            cgroups.destroy("").unwrap();
        }
    }
}
