//! The compiler: an OCI runtime spec becomes a plan. What the spec asks for and a plan cannot do is refused by name.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxCapabilities, LinuxNamespaceType, LinuxResources, LinuxSeccomp, Mount,
    Process, Spec,
};

use crate::devices::{self, Devices};
use crate::seccomp;
use crate::wire::{Encoder, Op};

const RDONLY: u64 = 1;
const NOSUID: u64 = 2;
const NODEV: u64 = 4;
const NOEXEC: u64 = 8;
const CLONE_NEWNS: u64 = 0x0002_0000;
const CLONE_NEWCGROUP: u64 = 0x0200_0000;
const CLONE_NEWPID: u64 = 0x2000_0000;

/// A plan and what must be opened for it: descriptor 0 is the detached root mount, then one `cgroup.procs` each of
/// `cgroups`, then the binds in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// For podmon.
    pub bytes: Vec<u8>,
    /// Trees of the host to open.
    pub binds: Vec<BindSource>,
    /// What the container's cgroup lets it open.
    pub devices: Devices,
}

/// A part of the host that the container is to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindSource {
    /// Absolute.
    pub path: PathBuf,
    /// With what is mounted below it.
    pub recursive: bool,
}

/// Why a spec has no plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// A field that must be there.
    #[error("the container's spec has no {0}")]
    Missing(&'static str),
    /// A field this runtime does not do.
    #[error("{0} is not supported by this runtime")]
    Unsupported(String),
    /// A value that makes no sense.
    #[error("{field}: `{value}` {reason}")]
    Invalid {
        /// Which field.
        field: &'static str,
        /// What it says.
        value: String,
        /// In words.
        reason: &'static str,
    },
}

/// The capabilities of a container that asks for none: Docker's set without `MKNOD` (a container has no use for it: its root
/// is mounted without devices).
#[must_use]
pub fn default_capabilities() -> Vec<Capability> {
    use Capability as C;
    vec![
        C::Chown,
        C::DacOverride,
        C::Fsetid,
        C::Fowner,
        C::NetRaw,
        C::Setgid,
        C::Setuid,
        C::Setfcap,
        C::Setpcap,
        C::NetBindService,
        C::SysChroot,
        C::Kill,
        C::AuditWrite,
    ]
}

/// A cgroup hierarchy of this machine, as a container is shown it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchy {
    /// The unified one.
    V2,
    /// One of v1, with these controllers.
    V1(Vec<String>),
}

/// Compiles a container's spec. `cgroups` = how many `cgroup.procs` are passed; `stage` = an existing folder of the host to
/// attach the root at, in the child's own mount namespace only; `hierarchies` = what a mount of type `cgroup` shows.
///
/// # Errors
/// What is missing, unsupported or makes no sense, by field.
pub fn compile(spec: &Spec, cgroups: u32, stage: &Path, hierarchies: &[Hierarchy]) -> Result<Plan, CompileError> {
    refuse_unsupported(spec)?;
    let process = spec.process().as_ref().ok_or(CompileError::Missing("process"))?;
    let mut plan = Encoder::new();
    if let Some(score) = process.oom_score_adj() {
        let value = u32::try_from(i64::from(score).clamp(-1000, 1000) + 1000).unwrap_or(1000);
        plan.op(&Op::OomScore { value });
    }
    for fd in 1..=cgroups {
        plan.op(&Op::Cgroup { fd });
    }
    plan.op(&Op::Unshare { flags: CLONE_NEWCGROUP });
    plan.op(&Op::Root { fd: 0, stage: stage.as_os_str().as_encoded_bytes() });
    let mut binds = Vec::new();
    let mut dev = false;
    for mount in spec.mounts().iter().flatten() {
        dev |= mount.destination() == Path::new("/dev");
        match mount.typ().as_deref() {
            Some("cgroup" | "cgroup2") => cgroup_mounts(&mut plan, mount, hierarchies)?,
            _ => one_mount(&mut plan, mount, 1 + cgroups, &mut binds)?,
        }
        // Only into a fresh one: what the user mounts there has its own, and a folder of the machine must not be given any.
        if mount.destination() == Path::new("/dev") && mount.typ().as_deref() == Some("tmpfs") {
            devices(&mut plan);
        }
    }
    if !dev {
        return Err(CompileError::Missing("mount of /dev"));
    }
    let linux = spec.linux().as_ref();
    for path in linux.and_then(|linux| linux.masked_paths().as_ref()).into_iter().flatten() {
        plan.op(&Op::Mask { path: path.as_bytes() });
    }
    for path in linux.and_then(|linux| linux.readonly_paths().as_ref()).into_iter().flatten() {
        plan.op(&Op::Readonly { path: path.as_bytes() });
    }
    if spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false) {
        plan.op(&Op::RootReadonly);
    }
    plan.op(&Op::Pivot);
    let profile = linux.and_then(|linux| linux.seccomp().as_ref());
    self::process(&mut plan, process, profile, true)?;
    let rules = linux.and_then(|linux| linux.resources().as_ref()).and_then(|resources| resources.devices().as_ref());
    let devices = devices::compile(rules.map_or(&[], Vec::as_slice))?;
    Ok(Plan { bytes: plan.finish(), binds, devices })
}

/// Compiles a process for a running container: descriptor 0 is the container, then one `cgroup.procs` each of `cgroups`.
/// It gets the system calls of `profile`, as the container does; `None` is our own profile.
///
/// # Errors
/// As `compile`.
pub fn compile_exec(process: &Process, profile: Option<&LinuxSeccomp>, cgroups: u32) -> Result<Vec<u8>, CompileError> {
    let mut plan = Encoder::new();
    for fd in 1..=cgroups {
        plan.op(&Op::Cgroup { fd });
    }
    plan.op(&Op::Join { fd: 0, flags: CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWPID });
    self::process(&mut plan, process, profile, false)?;
    Ok(plan.finish())
}

fn refuse_unsupported(spec: &Spec) -> Result<(), CompileError> {
    let unsupported = unsupported_of_spec(spec).or_else(|| spec.linux().as_ref().and_then(unsupported_of_linux));
    unsupported.map_or(Ok(()), |what| Err(CompileError::Unsupported(what.to_owned())))
}

/// The first of these that is there.
fn first_of<const N: usize>(fields: [(bool, &'static str); N]) -> Option<&'static str> {
    fields.into_iter().find(|(there, _)| *there).map(|(_, name)| name)
}

fn filled<T>(list: Option<&Vec<T>>) -> bool {
    list.is_some_and(|list| !list.is_empty())
}

fn unsupported_of_spec(spec: &Spec) -> Option<&'static str> {
    let mapped = |mount: &Mount| filled(mount.uid_mappings().as_ref()) || filled(mount.gid_mappings().as_ref());
    first_of([
        (spec.hooks().is_some(), "hooks"),
        (spec.hostname().is_some(), "hostname (it is the pod's)"),
        (spec.domainname().is_some(), "domainname"),
        (spec.solaris().is_some(), "solaris"),
        (spec.windows().is_some(), "windows"),
        (spec.vm().is_some(), "vm"),
        (spec.mounts().iter().flatten().any(mapped), "mounts.uidMappings"),
    ])
}

fn unsupported_of_linux(linux: &Linux) -> Option<&'static str> {
    let private = |kind: &String| kind.is_empty() || kind == "private" || kind == "rprivate";
    let namespaces = || linux.namespaces().iter().flatten();
    let odd = |kind| matches!(kind, LinuxNamespaceType::User | LinuxNamespaceType::Time);
    let resources = linux.resources().as_ref();
    first_of([
        (filled(linux.uid_mappings().as_ref()), "linux.uidMappings"),
        (filled(linux.gid_mappings().as_ref()), "linux.gidMappings"),
        (linux.sysctl().as_ref().is_some_and(|sysctl| !sysctl.is_empty()), "linux.sysctl"),
        (linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()), "linux.netDevices"),
        (filled(linux.devices().as_ref()), "linux.devices"),
        (linux.cgroups_path().is_some(), "linux.cgroupsPath (it is the pod's)"),
        (linux.rootfs_propagation().as_ref().is_some_and(|kind| !private(kind)), "linux.rootfsPropagation"),
        (linux.mount_label().as_ref().is_some_and(|label| !label.is_empty()), "linux.mountLabel"),
        (linux.intel_rdt().is_some(), "linux.intelRdt"),
        (linux.memory_policy().is_some(), "linux.memoryPolicy"),
        (linux.personality().is_some(), "linux.personality"),
        (linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty()), "linux.timeOffsets"),
        (namespaces().any(|namespace| namespace.path().is_some()), "linux.namespaces.path (they are the pod's)"),
        (namespaces().any(|namespace| odd(namespace.typ())), "a namespace of type user or time"),
    ])
    .or_else(|| resources.and_then(unsupported_of_resources))
}

fn unsupported_of_resources(resources: &LinuxResources) -> Option<&'static str> {
    let cpu = resources.cpu().as_ref();
    let text = |text: Option<&String>| text.is_some_and(|text| !text.is_empty());
    first_of([
        (resources.block_io().is_some(), "linux.resources.blockIO"),
        (filled(resources.hugepage_limits().as_ref()), "linux.resources.hugepageLimits"),
        (resources.network().is_some(), "linux.resources.network"),
        (resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty()), "linux.resources.rdma"),
        (resources.unified().as_ref().is_some_and(|unified| !unified.is_empty()), "linux.resources.unified"),
        (text(cpu.and_then(|cpu| cpu.cpus().as_ref())), "linux.resources.cpu.cpus"),
        (text(cpu.and_then(|cpu| cpu.mems().as_ref())), "linux.resources.cpu.mems"),
        (cpu.is_some_and(|cpu| cpu.realtime_runtime().is_some()), "linux.resources.cpu.realtimeRuntime"),
    ])
}

fn unsupported_of_process(process: &Process) -> Option<&'static str> {
    let text = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let capabilities = process.capabilities().as_ref();
    let has = |set: Option<&Capabilities>| set.is_some_and(|set| !set.is_empty());
    // What root gets is the bounding set, whole; another user gets nothing.
    let differs = |set: Option<&Capabilities>| {
        set.is_some_and(|set| Some(set) != capabilities.and_then(|sets| sets.bounding().as_ref()))
    };
    first_of([
        (process.terminal().unwrap_or(false), "process.terminal"),
        (text(process.selinux_label()), "process.selinuxLabel"),
        (text(process.apparmor_profile()), "process.apparmorProfile"),
        (process.io_priority().is_some(), "process.ioPriority"),
        (process.scheduler().is_some(), "process.scheduler"),
        (process.exec_cpu_affinity().is_some(), "process.execCPUAffinity"),
        (has(capabilities.and_then(|sets| sets.ambient().as_ref())), "process.capabilities.ambient"),
        (has(capabilities.and_then(|sets| sets.inheritable().as_ref())), "process.capabilities.inheritable"),
        (
            differs(capabilities.and_then(|sets| sets.effective().as_ref())),
            "process.capabilities.effective other than bounding",
        ),
        (
            differs(capabilities.and_then(|sets| sets.permitted().as_ref())),
            "process.capabilities.permitted other than bounding",
        ),
    ])
}

/// What the options of a mount say: attributes, and what is for the file system itself.
fn split_options(options: &[String]) -> (u64, bool, bool, Vec<&str>) {
    let (mut attributes, mut bind, mut recursive, mut own) = (0, false, false, Vec::new());
    for option in options {
        match option.as_str() {
            "ro" => attributes |= RDONLY,
            "nosuid" => attributes |= NOSUID,
            "nodev" => attributes |= NODEV,
            "noexec" => attributes |= NOEXEC,
            "noatime" => attributes |= 0x10,
            "strictatime" => attributes |= 0x20,
            "bind" => bind = true,
            "rbind" => (bind, recursive) = (true, true),
            "rw" | "suid" | "dev" | "exec" | "relatime" | "private" | "rprivate" | "slave" | "rslave" => {}
            other => own.push(other),
        }
    }
    (attributes, bind, recursive, own)
}

fn one_mount(
    plan: &mut Encoder,
    mount: &Mount,
    first_bind: u32,
    binds: &mut Vec<BindSource>,
) -> Result<(), CompileError> {
    let options = mount.options().clone().unwrap_or_default();
    let (attributes, bind, recursive, own) = split_options(&options);
    let target = mount.destination();
    if !target.is_absolute() {
        let value = target.display().to_string();
        return Err(CompileError::Invalid { field: "mounts.destination", value, reason: "is not absolute" });
    }
    let target = target.as_os_str().as_encoded_bytes();
    let kind = mount.typ().clone().unwrap_or_default();
    if bind || kind == "bind" {
        let source = mount.source().clone().ok_or(CompileError::Missing("source of a bind mount"))?;
        if !source.is_absolute() {
            let value = source.display().to_string();
            return Err(CompileError::Invalid { field: "mounts.source", value, reason: "is not absolute" });
        }
        if let Some(unknown) = own.first() {
            return Err(CompileError::Unsupported(format!("mount option `{unknown}`")));
        }
        let fd = first_bind + u32::try_from(binds.len()).unwrap_or(u32::MAX - first_bind);
        binds.push(BindSource { path: source, recursive });
        plan.op(&Op::Bind { fd, target, attributes });
        return Ok(());
    }
    if !matches!(kind.as_str(), "proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue") {
        return Err(CompileError::Unsupported(format!("a mount of type `{kind}`")));
    }
    let options: Vec<&[u8]> = own.iter().map(|option| option.as_bytes()).collect();
    plan.op(&Op::NewFs { kind: kind.as_bytes(), target, attributes, options });
    Ok(())
}

/// The container's own part of the cgroup hierarchies, where programs look for their limits: the unified one alone, or a folder
/// with one for each.
fn cgroup_mounts(plan: &mut Encoder, mount: &Mount, hierarchies: &[Hierarchy]) -> Result<(), CompileError> {
    let options = mount.options().clone().unwrap_or_default();
    let (attributes, bind, _, own) = split_options(&options);
    if let Some(unknown) = own.first() {
        return Err(CompileError::Unsupported(format!("mount option `{unknown}` of cgroup")));
    }
    if bind {
        return Err(CompileError::Unsupported("a bind mount of type `cgroup`".to_owned()));
    }
    let target = mount.destination();
    if !target.is_absolute() {
        let value = target.display().to_string();
        return Err(CompileError::Invalid { field: "mounts.destination", value, reason: "is not absolute" });
    }
    let text = target.as_os_str().as_encoded_bytes();
    if hierarchies == [Hierarchy::V2] {
        plan.op(&Op::NewFs { kind: b"cgroup2", target: text, attributes, options: Vec::new() });
        return Ok(());
    }
    let folder = attributes & !RDONLY;
    plan.op(&Op::NewFs { kind: b"tmpfs", target: text, attributes: folder, options: vec![b"mode=755", b"size=64k"] });
    for hierarchy in hierarchies {
        let (kind, name, options): (&[u8], String, Vec<&[u8]>) = match hierarchy {
            Hierarchy::V2 => (b"cgroup2", "unified".to_owned(), Vec::new()),
            Hierarchy::V1(controllers) => {
                (b"cgroup", controllers.join(","), controllers.iter().map(String::as_bytes).collect())
            }
        };
        let place = target.join(name);
        plan.op(&Op::NewFs { kind, target: place.as_os_str().as_encoded_bytes(), attributes, options });
    }
    if attributes & RDONLY != 0 {
        plan.op(&Op::MountReadonly { path: text });
    }
    Ok(())
}

fn devices(plan: &mut Encoder) {
    const CHARACTER: u32 = 0o020_000;
    for (name, major, minor) in
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)]
    {
        plan.op(&Op::Device { path: format!("/dev/{name}").as_bytes(), mode: CHARACTER | 0o666, major, minor });
    }
    for (to, name) in [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
        ("pts/ptmx", "ptmx"),
    ] {
        plan.op(&Op::Symlink { to: to.as_bytes(), path: format!("/dev/{name}").as_bytes() });
    }
}

fn process(
    plan: &mut Encoder,
    process: &Process,
    profile: Option<&LinuxSeccomp>,
    create_cwd: bool,
) -> Result<(), CompileError> {
    if let Some(what) = unsupported_of_process(process) {
        return Err(CompileError::Unsupported(what.to_owned()));
    }
    for limit in process.rlimits().iter().flatten() {
        plan.op(&Op::Rlimit { resource: limit.typ() as u32, soft: limit.soft(), hard: limit.hard() });
    }
    let cwd = process.cwd();
    if !cwd.is_absolute() {
        let value = cwd.display().to_string();
        return Err(CompileError::Invalid { field: "process.cwd", value, reason: "is not absolute" });
    }
    plan.op(&Op::Chdir { path: cwd.as_os_str().as_encoded_bytes(), create: create_cwd });
    let user = process.user();
    plan.op(&Op::Umask { mode: user.umask().unwrap_or(0o022) });
    if process.no_new_privileges().unwrap_or(false) {
        plan.op(&Op::NoNewPrivs);
    }
    let capabilities = process.capabilities().as_ref().map_or(0, mask);
    // Before the capability that loading it needs is gone.
    if let Some(filter) = seccomp::compile(profile, capabilities)? {
        plan.op(&Op::Seccomp { flags: filter.flags, program: &filter.program });
    }
    let groups = user.additional_gids().clone().unwrap_or_default();
    plan.op(&Op::Identity { uid: user.uid(), gid: user.gid(), groups, capabilities });
    let args = process.args().clone().unwrap_or_default();
    if args.first().is_none_or(String::is_empty) {
        return Err(CompileError::Missing("command (neither the pod nor the image names one)"));
    }
    let env = process.env().clone().unwrap_or_default();
    for text in args.iter().chain(&env) {
        if text.contains('\0') {
            let value = text.replace('\0', "\\0");
            return Err(CompileError::Invalid { field: "process", value, reason: "holds a NUL" });
        }
    }
    let bytes = |texts: &[String]| -> Vec<Vec<u8>> { texts.iter().map(|text| text.as_bytes().to_vec()).collect() };
    let (args, env) = (bytes(&args), bytes(&env));
    plan.op(&Op::Exec { args: args.iter().map(Vec::as_slice).collect(), env: env.iter().map(Vec::as_slice).collect() });
    Ok(())
}

/// The bit mask of the bounding set.
fn mask(capabilities: &LinuxCapabilities) -> u64 {
    capabilities.bounding().iter().flatten().fold(0, |mask, capability| mask | 1 << number(*capability))
}

/// capabilities(7), in the kernel's order.
fn number(capability: Capability) -> u32 {
    use Capability as C;
    match capability {
        C::Chown => 0,
        C::DacOverride => 1,
        C::DacReadSearch => 2,
        C::Fowner => 3,
        C::Fsetid => 4,
        C::Kill => 5,
        C::Setgid => 6,
        C::Setuid => 7,
        C::Setpcap => 8,
        C::LinuxImmutable => 9,
        C::NetBindService => 10,
        C::NetBroadcast => 11,
        C::NetAdmin => 12,
        C::NetRaw => 13,
        C::IpcLock => 14,
        C::IpcOwner => 15,
        C::SysModule => 16,
        C::SysRawio => 17,
        C::SysChroot => 18,
        C::SysPtrace => 19,
        C::SysPacct => 20,
        C::SysAdmin => 21,
        C::SysBoot => 22,
        C::SysNice => 23,
        C::SysResource => 24,
        C::SysTime => 25,
        C::SysTtyConfig => 26,
        C::Mknod => 27,
        C::Lease => 28,
        C::AuditWrite => 29,
        C::AuditControl => 30,
        C::Setfcap => 31,
        C::MacOverride => 32,
        C::MacAdmin => 33,
        C::Syslog => 34,
        C::WakeAlarm => 35,
        C::BlockSuspend => 36,
        C::AuditRead => 37,
        C::Perfmon => 38,
        C::Bpf => 39,
        C::CheckpointRestore => 40,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Decoder;
    use serde_json::{Value, json};

    fn minimal() -> Value {
        json!({
            "ociVersion": "1.2.0",
            "process": {
                "user": {"uid": 7, "gid": 8, "additionalGids": [9]}, "args": ["/app", "x"], "env": ["A=b"], "cwd": "/srv",
                "capabilities": {"bounding": ["CAP_CHOWN", "CAP_SYS_CHROOT"]}, "oomScoreAdj": -5,
            },
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/a", "type": "bind", "source": "/host/a", "options": ["rbind", "ro"]},
            ],
            "linux": {"maskedPaths": ["/proc/kcore"]},
        })
    }

    /// The spec with a value at a path (`process.cwd`, `mounts.1.options`).
    fn with(path: &str, value: Value) -> Result<Plan, CompileError> {
        let mut spec = minimal();
        let mut place = &mut spec;
        for part in path.split('.') {
            place = match part.parse::<usize>() {
                Ok(index) => &mut place[index],
                Err(_) => &mut place[part],
            };
        }
        *place = value;
        compile(&serde_json::from_value(spec).unwrap(), 2, Path::new("/run/stage"), &[Hierarchy::V2])
    }

    #[test]
    fn a_plan_in_order() {
        let plan = with("ociVersion", json!("1.2.0")).unwrap();
        let mut decoder = Decoder::new(&plan.bytes).unwrap();
        let mut told = Vec::new();
        while let Some(op) = decoder.next_op().unwrap() {
            told.push(crate::wire::describe(&op));
        }
        assert_eq!(plan.binds, [BindSource { path: "/host/a".into(), recursive: true }]);
        told.retain(|word| !word.starts_with("make the "));
        assert_eq!(
            told,
            [
                "set its OOM score",
                "enter its cgroup",
                "enter its cgroup",
                "enter its namespaces",
                "attach its root file system",
                "mount tmpfs at /dev",
                "mount a volume at /a",
                "hide /proc/kcore",
                "make its root read-only",
                "change into its root",
                "change into the folder /srv",
                "set its umask",
                "limit its system calls (seccomp)",
                "become user 7, group 8",
                "execute `/app`",
            ]
        );
    }

    #[test]
    fn cgroups_are_shown_as_the_machine_has_them() {
        let mount =
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]});
        let mut spec = minimal();
        spec["mounts"].as_array_mut().unwrap().push(mount);
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let shown = |hierarchies: &[Hierarchy]| {
            let plan = compile(&spec, 0, Path::new("/run/stage"), hierarchies).unwrap();
            let mut decoder = Decoder::new(&plan.bytes).unwrap();
            let mut told = Vec::new();
            while let Some(op) = decoder.next_op().unwrap() {
                told.extend(Some(crate::wire::describe(&op)).filter(|words| words.contains("cgroup")));
            }
            told
        };
        assert_eq!(shown(&[Hierarchy::V2]), ["mount cgroup2 at /sys/fs/cgroup"]);
        let v1 = |names: &[&str]| Hierarchy::V1(names.iter().map(ToString::to_string).collect());
        assert_eq!(
            shown(&[Hierarchy::V2, v1(&["cpu", "cpuacct"]), v1(&["memory"])]),
            [
                "mount tmpfs at /sys/fs/cgroup",
                "mount cgroup2 at /sys/fs/cgroup/unified",
                "mount cgroup at /sys/fs/cgroup/cpu,cpuacct",
                "mount cgroup at /sys/fs/cgroup/memory",
                "make /sys/fs/cgroup read-only",
            ]
        );
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        for (path, value, name) in [
            ("hooks", json!({}), "hooks"),
            ("hostname", json!("x"), "hostname"),
            ("process.terminal", json!(true), "process.terminal"),
            ("process.apparmorProfile", json!("x"), "process.apparmorProfile"),
            ("process.capabilities.ambient", json!(["CAP_CHOWN"]), "process.capabilities.ambient"),
            ("process.capabilities.effective", json!(["CAP_CHOWN"]), "process.capabilities.effective"),
            ("process.ioPriority", json!({"class": "IOPRIO_CLASS_IDLE", "priority": 1}), "process.ioPriority"),
            ("linux.sysctl", json!({"net.ipv4.ip_forward": "1"}), "linux.sysctl"),
            ("linux.cgroupsPath", json!("/x"), "linux.cgroupsPath"),
            ("linux.namespaces", json!([{"type": "network", "path": "/run/x"}]), "linux.namespaces.path"),
            ("linux.namespaces", json!([{"type": "user"}]), "user"),
            ("linux.rootfsPropagation", json!("shared"), "linux.rootfsPropagation"),
            ("linux.resources", json!({"unified": {"memory.high": "1"}}), "linux.resources.unified"),
            ("linux.resources", json!({"cpu": {"cpus": "0-1"}}), "linux.resources.cpu.cpus"),
            ("mounts.1.options", json!(["rbind", "rshared"]), "rshared"),
            ("mounts.1.type", json!("cgroup"), "a bind mount of type `cgroup`"),
            ("mounts.1.type", json!("ext4"), ""),
        ] {
            match with(path, value) {
                Err(CompileError::Unsupported(what)) => assert!(what.contains(name), "{path}: {what}"),
                other => assert!(name.is_empty(), "{path}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        for (path, value, message) in [
            ("process.cwd", json!("srv"), "process.cwd: `srv` is not absolute"),
            (
                "process.args",
                json!([]),
                "the container's spec has no command (neither the pod nor the image names one)",
            ),
            ("process.env", json!(["A=\u{0}"]), "process: `A=\\0` holds a NUL"),
            ("mounts.1.destination", json!("a"), "mounts.destination: `a` is not absolute"),
            ("mounts.1.source", json!("a"), "mounts.source: `a` is not absolute"),
            ("mounts.0.destination", json!("/tmp"), "the container's spec has no mount of /dev"),
        ] {
            assert_eq!(with(path, value).unwrap_err().to_string(), message, "{path}");
        }
    }
}
