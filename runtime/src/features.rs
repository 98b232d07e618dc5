//! What this kernel can do for containers, found out once; what is missing is said in one line each, before the first pod.

use crate::cgroup::{Cgroups, DeviceControl, Mode};

/// The oldest kernel whose calls we rely on: Debian 12's.
const FLOOR: (u32, u32) = (6, 1);

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// `6.18.0-...`, as the kernel says it.
    pub kernel: String,
    /// Where the cgroup controllers are.
    pub cgroups: Mode,
    /// Whether a v2 hierarchy is mounted: containers are born into their cgroup and killed as one.
    pub unified: bool,
    /// What keeps containers from the machine's devices.
    pub devices: DeviceControl,
    /// What does not work here, a sentence each; empty on a machine that has everything.
    pub missing: Vec<String>,
}

pub(crate) fn probe(cgroups: &Cgroups) -> Features {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut missing = Vec::new();
    if version(&kernel).is_some_and(|found| found < FLOOR) {
        let (major, minor) = FLOOR;
        missing.push(format!("Linux {kernel} is older than {major}.{minor}: containers may fail to start"));
    }
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    for (name, loss) in [("overlay", "no image can be run"), ("mqueue", "pods have no /dev/mqueue and do not start")] {
        // A module that is not loaded yet is loaded by its first mount; only a kernel that lists nothing like it is told of.
        let there = filesystems.lines().any(|line| line.split_whitespace().last() == Some(name));
        if !there && !modules_have(&kernel, name) {
            missing.push(format!("the kernel has no {name}: {loss}"));
        }
    }
    for namespace in ["net", "ipc", "uts", "pid", "mnt", "cgroup"] {
        if !std::path::Path::new("/proc/self/ns").join(namespace).exists() {
            missing.push(format!("the kernel has no {namespace} namespaces: no pod can be started"));
        }
    }
    let seccomp = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if !seccomp.lines().any(|line| line.starts_with("Seccomp:")) {
        missing.push("the kernel has no seccomp: only unconfined containers start".to_owned());
    }
    if cgroups.device_control == DeviceControl::Nothing {
        missing.push(
            "neither BPF device filters nor the v1 controller `devices`: only privileged containers start".into(),
        );
    }
    missing.extend(cgroups.missing_controllers());
    Features { kernel, cgroups: cgroups.mode, unified: cgroups.has_unified(), devices: cgroups.device_control, missing }
}

fn modules_have(kernel: &str, name: &str) -> bool {
    let list = |file: &str| std::fs::read_to_string(format!("/lib/modules/{kernel}/{file}")).unwrap_or_default();
    ["modules.dep", "modules.builtin"].iter().any(|file| list(file).contains(&format!("/{name}.ko")))
}

/// `6.1.0-18-amd64` -> (6, 1).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|letter: char| !letter.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.15.167.4-microsoft-standard-WSL2"), Some((5, 15)));
        assert_eq!(version("6.18-rc1"), Some((6, 18)));
        assert_eq!(version("strange"), None);
        assert!(version("5.15.0").unwrap() < FLOOR && version("6.10.1").unwrap() > FLOOR);
    }
}
