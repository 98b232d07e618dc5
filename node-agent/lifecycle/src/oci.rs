//! A container as an OCI runtime spec: process, user, capabilities, mounts, masks, limits.

use std::path::PathBuf;

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use crate::env::{NodeFacts, expand};
use crate::pod::{Container, Pod, Qos};

/// What an image says of how it is run; empty = it says nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageConfig {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub command: Vec<String>,
    /// `Env`, `NAME=value`.
    pub env: Vec<String>,
    /// `User`: `name`, `uid`, `name:group`, ...
    pub user: String,
    /// `WorkingDir`.
    pub working_dir: String,
    /// `StopSignal`.
    pub stop_signal: Option<String>,
}

/// Who the process is, found in the image's own files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// More groups.
    pub groups: Vec<u32>,
    /// Home folder: what HOME says when neither the image nor the pod sets it. Empty = not known.
    pub home: String,
}

/// A directory or file of the node in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Absolute path on the node.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub target: String,
    /// Not writable.
    pub read_only: bool,
}

/// Everything that goes into the spec beside pod and container.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    /// What the image says.
    pub image: &'a ImageConfig,
    /// The whole environment, in order.
    pub env: &'a [(String, String)],
    /// Who it is.
    pub user: User,
    /// Volumes and the pod's own files.
    pub binds: Vec<Bind>,
    /// The node.
    pub node: NodeFacts,
}

/// Why a container cannot be described: `CreateContainerConfigError` or `CreateContainerError`.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Neither the pod nor the image names a command.
    #[error("no command specified: neither the container nor its image says what to run")]
    NoCommand,
    /// `runAsNonRoot`, and it would be root.
    #[error(
        "container has runAsNonRoot and would run as root (uid 0)\nhint: set securityContext.runAsUser, or USER in the image"
    )]
    Root,
    /// A path that must be absolute.
    #[error("{field} `{path}` is not an absolute path")]
    Relative {
        /// Which field.
        field: &'static str,
        /// What it says.
        path: String,
    },
    /// A capability nobody knows.
    #[error("`{0}` is not a capability")]
    Capability(String),
    /// The spec does not hold together.
    #[error("the container's specification is not valid")]
    Invalid(#[source] serde_json::Error),
}

/// What every container gets (the same as containerd's and Docker's set).
const CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Every capability of Linux 6.18 (include/uapi/linux/capability.h).
const ALL_CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// Hidden from a container: they tell of the machine or change it.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Readable only.
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Whom to look up in the image: the pod's word over the image's; `None` = root.
#[must_use]
pub fn user_wanted(container: &Container, image: &ImageConfig) -> Option<String> {
    let security = &container.security;
    let user = match security.run_as_user {
        Some(uid) => uid.to_string(),
        None if image.user.is_empty() => security.run_as_group.map(|_| "0".to_owned())?,
        None => image.user.clone(),
    };
    Some(match security.run_as_group {
        Some(gid) => format!("{}:{gid}", user.split(':').next().unwrap_or_default()),
        None => user,
    })
}

/// Whether the container's processes can be root though they must not be.
///
/// # Errors
/// They would be.
pub fn check_user(container: &Container, user: &User) -> Result<(), SpecError> {
    if container.security.run_as_non_root && user.uid == 0 { Err(SpecError::Root) } else { Ok(()) }
}

/// The command line: `command` stands in for the image's entrypoint and command, `args` for its command alone.
///
/// # Errors
/// There is none.
pub fn command_line(container: &Container, launch: &Launch<'_>) -> Result<Vec<String>, SpecError> {
    let lookup = |name: &str| launch.env.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let own = |words: &[String]| words.iter().map(|word| expand(word, &lookup)).collect::<Vec<_>>();
    let mut line = if container.command.is_empty() { launch.image.entrypoint.clone() } else { own(&container.command) };
    if !container.args.is_empty() {
        line.extend(own(&container.args));
    } else if container.command.is_empty() {
        line.extend(launch.image.command.iter().cloned());
    }
    if line.first().is_none_or(String::is_empty) { Err(SpecError::NoCommand) } else { Ok(line) }
}

/// The spec of one run of `container`.
///
/// # Errors
/// What the pod asks for makes no sense on any node.
pub fn spec(pod: &Pod, container: &Container, launch: &Launch<'_>) -> Result<Spec, SpecError> {
    check_user(container, &launch.user)?;
    let security = &container.security;
    let cwd = [&container.working_dir, &launch.image.working_dir].into_iter().find(|dir| !dir.is_empty());
    let cwd = cwd.map_or("/", String::as_str);
    if !cwd.starts_with('/') {
        return Err(SpecError::Relative { field: "workingDir", path: cwd.to_owned() });
    }
    let mut groups = launch.user.groups.clone();
    groups.extend(&pod.supplemental_groups);
    groups.extend(pod.fs_group);
    groups.sort_unstable();
    groups.dedup();
    let capabilities = capabilities(container)?;
    let mut env: Vec<String> = launch.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if !launch.user.home.is_empty() && launch.env.iter().all(|(name, _)| name != "HOME") {
        env.push(format!("HOME={}", launch.user.home));
    }
    let hidden = |paths: &[&str]| if security.privileged { json!([]) } else { json!(paths) };
    let mut value = json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs", "readonly": security.read_only_root},
        "process": {
            "user": {"uid": launch.user.uid, "gid": launch.user.gid, "additionalGids": groups},
            "args": command_line(container, launch)?,
            "env": env,
            "cwd": cwd,
            "noNewPrivileges": !security.allow_escalation,
            "oomScoreAdj": oom_score_adj(pod, container, launch.node.memory_bytes),
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
        },
        "mounts": mounts(container, &launch.binds)?,
        "linux": {
            "namespaces": namespaces(pod),
            "resources": resources(container),
            "maskedPaths": hidden(&MASKED),
            "readonlyPaths": hidden(&READ_ONLY),
        },
    });
    // A spec without a profile gets the runtime's own.
    if security.privileged || security.seccomp_unconfined {
        value["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW"});
    }
    serde_json::from_value(value).map_err(SpecError::Invalid)
}

/// Network, IPC and UTS belong to the pod; the rest to each container.
fn namespaces(pod: &Pod) -> Value {
    let mut namespaces = vec![
        json!({"type": "pid"}),
        json!({"type": "ipc"}),
        json!({"type": "uts"}),
        json!({"type": "mount"}),
        json!({"type": "cgroup"}),
    ];
    if !pod.host_network {
        namespaces.push(json!({"type": "network"}));
    }
    Value::Array(namespaces)
}

fn capabilities(container: &Container) -> Result<Vec<String>, SpecError> {
    let security = &container.security;
    for name in security.add.iter().chain(&security.drop) {
        if name != "ALL" && !ALL_CAPABILITIES.contains(&name.as_str()) {
            return Err(SpecError::Capability(name.clone()));
        }
    }
    let all = |names: &[String]| names.iter().any(|name| name == "ALL");
    if security.privileged || (all(&security.add) && security.drop.is_empty()) {
        return Ok(ALL_CAPABILITIES.iter().map(|name| format!("CAP_{name}")).collect());
    }
    let mut set: Vec<&str> = if all(&security.add) {
        ALL_CAPABILITIES.to_vec()
    } else if all(&security.drop) {
        Vec::new()
    } else {
        CAPABILITIES.to_vec()
    };
    set.retain(|name| !security.drop.iter().any(|dropped| dropped == name));
    set.extend(security.add.iter().map(String::as_str).filter(|name| *name != "ALL"));
    set.sort_unstable();
    set.dedup();
    Ok(set.iter().map(|name| format!("CAP_{name}")).collect())
}

fn mounts(container: &Container, binds: &[Bind]) -> Result<Value, SpecError> {
    let privileged = container.security.privileged;
    let sysfs =
        if privileged { json!(["nosuid", "noexec", "nodev"]) } else { json!(["nosuid", "noexec", "nodev", "ro"]) };
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts",
               "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": sysfs}),
        // Where programs look for the limits they run under.
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": sysfs}),
    ];
    // A mount below another comes after it, whatever order the pod names them in.
    let mut binds: Vec<&Bind> = binds.iter().collect();
    binds.sort_by_key(|bind| bind.target.split('/').filter(|part| !part.is_empty()).count());
    for bind in binds {
        if !bind.target.starts_with('/') {
            return Err(SpecError::Relative { field: "mountPath", path: bind.target.clone() });
        }
        let access = if bind.read_only { "ro" } else { "rw" };
        let mount = json!({"destination": bind.target, "type": "bind", "source": bind.source, "options": ["rbind", "rprivate", access]});
        // What the user mounts over one of ours stands in its place (a larger /dev/shm, say; or all of /dev, below the rest).
        match mounts.iter_mut().find(|mount| mount["destination"] == bind.target.as_str()) {
            Some(ours) => *ours = mount,
            None => mounts.push(mount),
        }
    }
    Ok(Value::Array(mounts))
}

/// CPU period of a limit, in microseconds.
const PERIOD_US: u64 = 100_000;

fn resources(container: &Container) -> Value {
    let amounts = container.resources;
    let devices = json!([{"allow": container.security.privileged, "access": "rwm"}]);
    // Upstream: MilliCPUToShares, MilliCPUToQuota.
    let shares = (amounts.cpu_request_milli.unwrap_or(0) * 1024 / 1000).clamp(2, 262_144);
    let mut cpu = json!({"shares": shares});
    if let Some(limit) = amounts.cpu_limit_milli.filter(|limit| *limit > 0) {
        cpu["period"] = json!(PERIOD_US);
        cpu["quota"] = json!((limit * PERIOD_US / 1000).max(1000));
    }
    let mut resources = json!({"devices": devices, "cpu": cpu});
    if let Some(limit) = amounts.memory_limit.filter(|limit| *limit > 0) {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        // No swap beyond the limit: memory that is not there must not turn into a slow disk.
        resources["memory"] = json!({"limit": limit, "swap": limit});
    }
    resources
}

/// How willingly the kernel kills it first when memory runs out (upstream: `pkg/kubelet/qos`).
#[must_use]
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory: u64) -> i32 {
    match pod.qos() {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let request = container.resources.memory_request.unwrap_or(0);
            let share = u128::from(request) * 1000 / u128::from(node_memory.max(1));
            let score = 1000 - i32::try_from(share.min(1000)).unwrap_or(1000);
            score.clamp(3, 999)
        }
    }
}

/// The number of a signal name: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`. `None` when nobody knows it.
#[must_use]
pub fn signal_number(name: &str) -> Option<i32> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
        "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF",
        "WINCH", "IO", "PWR", "SYS",
    ];
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(above) = short.strip_prefix("RTMIN") {
        let above = if above.is_empty() { 0 } else { above.strip_prefix('+')?.parse::<i32>().ok()? };
        return (0..=30).contains(&above).then_some(34 + above);
    }
    NAMES.iter().position(|known| *known == short).and_then(|at| i32::try_from(at + 1).ok())
}

/// The signal that asks a container to end: the pod's word, the image's, SIGTERM.
#[must_use]
pub fn stop_signal(container: &Container, image: Option<&str>) -> i32 {
    [container.stop_signal.as_deref(), image].into_iter().flatten().find_map(signal_number).unwrap_or(15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::net::Ipv4Addr;

    const NODE: NodeFacts =
        NodeFacts { pod_ip: Ipv4Addr::LOCALHOST, host_ip: Ipv4Addr::LOCALHOST, cpu_milli: 4000, memory_bytes: 1 << 30 };

    fn pod(container: Value) -> Pod {
        Pod::parse(&json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [container], "securityContext": {"fsGroup": 2000, "supplementalGroups": [3000]}},
        }))
        .unwrap()
    }

    fn launch<'a>(image: &'a ImageConfig, env: &'a [(String, String)]) -> Launch<'a> {
        Launch { image, env, user: User::default(), binds: Vec::new(), node: NODE }
    }

    #[test]
    fn the_whole_spec() {
        let pod = pod(json!({
            "name": "c", "args": ["--port", "$(PORT)"], "workingDir": "/srv",
            "resources": {"limits": {"memory": "64Mi", "cpu": "500m"}, "requests": {"cpu": "100m", "memory": "32Mi"}},
            "securityContext": {"capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}, "allowPrivilegeEscalation": false,
                                "readOnlyRootFilesystem": true},
        }));
        let image =
            ImageConfig { entrypoint: vec!["/app".into()], command: vec!["unused".into()], ..ImageConfig::default() };
        let env = [("PORT".to_owned(), "80".to_owned())];
        let mut launch = launch(&image, &env);
        launch.user = User { uid: 101, gid: 102, groups: vec![103], home: "/srv/app".into() };
        launch.binds = vec![
            Bind { source: "/v/b".into(), target: "/data/deep".into(), read_only: true },
            Bind { source: "/v/a".into(), target: "/data".into(), read_only: false },
        ];
        let spec = spec(&pod, &pod.containers[0], &launch).unwrap();
        insta::assert_snapshot!(serde_json::to_string_pretty(&serde_json::to_value(&spec).unwrap()).unwrap());
    }

    #[test]
    fn command_lines() {
        let image = ImageConfig { entrypoint: vec!["e".into()], command: vec!["c".into()], ..ImageConfig::default() };
        let line = |container: Value, image: &ImageConfig| {
            let pod = pod(container);
            command_line(&pod.containers[0], &launch(image, &[])).ok()
        };
        let words = |line: &str| Some(line.split(' ').map(ToOwned::to_owned).collect::<Vec<_>>());
        assert_eq!(line(json!({"name": "c"}), &image), words("e c"));
        assert_eq!(line(json!({"name": "c", "args": ["x"]}), &image), words("e x"));
        assert_eq!(line(json!({"name": "c", "command": ["x"]}), &image), words("x"));
        assert_eq!(line(json!({"name": "c", "command": ["x"], "args": ["y"]}), &image), words("x y"));
        assert_eq!(line(json!({"name": "c"}), &ImageConfig::default()), None);
    }

    #[test]
    fn users() {
        let wanted = |security: Value, user: &str| {
            let pod = pod(json!({"name": "c", "securityContext": security}));
            user_wanted(&pod.containers[0], &ImageConfig { user: user.into(), ..ImageConfig::default() })
        };
        assert_eq!(wanted(json!({}), ""), None);
        assert_eq!(wanted(json!({}), "nginx:www"), Some("nginx:www".into()));
        assert_eq!(wanted(json!({"runAsUser": 5}), "nginx:www"), Some("5".into()));
        assert_eq!(wanted(json!({"runAsUser": 5, "runAsGroup": 6}), ""), Some("5:6".into()));
        assert_eq!(wanted(json!({"runAsGroup": 6}), "nginx:www"), Some("nginx:6".into()));
        let pod = pod(json!({"name": "c", "securityContext": {"runAsNonRoot": true}}));
        assert!(matches!(check_user(&pod.containers[0], &User::default()), Err(SpecError::Root)));
        assert!(check_user(&pod.containers[0], &User { uid: 1, ..User::default() }).is_ok());
    }

    #[test]
    fn capability_sets() {
        let of = |security: Value| capabilities(&pod(json!({"name": "c", "securityContext": security})).containers[0]);
        assert_eq!(of(json!({})).unwrap().len(), CAPABILITIES.len());
        assert_eq!(of(json!({"privileged": true})).unwrap().len(), ALL_CAPABILITIES.len());
        assert_eq!(of(json!({"capabilities": {"drop": ["ALL"], "add": ["CAP_net_raw"]}})).unwrap(), ["CAP_NET_RAW"]);
        assert!(!of(json!({"capabilities": {"drop": ["NET_RAW"]}})).unwrap().contains(&"CAP_NET_RAW".to_owned()));
        assert!(
            matches!(of(json!({"capabilities": {"add": ["FLY"]}})), Err(SpecError::Capability(name)) if name == "FLY")
        );
    }

    #[test]
    fn system_calls_are_unlimited_only_where_asked() {
        let profile = |own: Value| {
            let pod = pod(json!({"name": "c", "command": ["x"], "securityContext": own}));
            let image = ImageConfig::default();
            let spec = spec(&pod, &pod.containers[0], &launch(&image, &[])).unwrap();
            serde_json::to_value(&spec).unwrap()["linux"]["seccomp"].clone()
        };
        assert_eq!(profile(json!({})), Value::Null);
        assert_eq!(profile(json!({"seccompProfile": {"type": "RuntimeDefault"}})), Value::Null);
        for own in [json!({"privileged": true}), json!({"seccompProfile": {"type": "Unconfined"}})] {
            assert_eq!(profile(own)["defaultAction"], "SCMP_ACT_ALLOW");
        }
    }

    #[test]
    fn a_pod_that_asks_for_more_is_killed_later() {
        let score = |resources: Value| {
            let pod = pod(json!({"name": "c", "resources": resources}));
            oom_score_adj(&pod, &pod.containers[0], 1 << 30)
        };
        assert_eq!(score(json!({})), 1000);
        assert_eq!(score(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), -997);
        assert_eq!(score(json!({"requests": {"memory": "512Mi"}})), 500);
        assert_eq!(score(json!({"requests": {"memory": "1Gi"}})), 3);
        assert_eq!(score(json!({"requests": {"cpu": "1m"}})), 999);
    }

    #[test]
    fn signals() {
        for (name, number) in [
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("SIGNOPE", None),
            ("0", None),
            ("RTMIN-1", None),
        ] {
            assert_eq!(signal_number(name), number, "{name}");
        }
        let pod = pod(json!({"name": "c", "lifecycle": {"stopSignal": "SIGUSR1"}}));
        assert_eq!(stop_signal(&pod.containers[0], Some("SIGQUIT")), 10);
    }
}
