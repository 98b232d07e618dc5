//! What an agent cannot do without, looked at before anything is made: a machine that lacks something says so at the start,
//! all of it at once, and not pod by pod.

pub use coracle_netd::Finding;

/// Capabilities (capabilities(7): name and bit) and what they are for.
const NEEDED: [(&str, &[(&str, u32)]); 5] = [
    ("namespaces, mounts and root directories", &[("CAP_SYS_ADMIN", 21), ("CAP_SYS_CHROOT", 18)]),
    ("links, routes and the packet filter", &[("CAP_NET_ADMIN", 12)]),
    (
        "the files of images and volumes",
        &[("CAP_CHOWN", 0), ("CAP_DAC_OVERRIDE", 1), ("CAP_FOWNER", 3), ("CAP_MKNOD", 27)],
    ),
    ("the users of containers", &[("CAP_KILL", 5), ("CAP_SETGID", 6), ("CAP_SETUID", 7), ("CAP_SETPCAP", 8)]),
    ("the name server's port", &[("CAP_NET_BIND_SERVICE", 10)]),
];

/// What is missing. Changes nothing.
#[must_use]
pub fn missing(cgroup_name: &str, bridge: &str) -> Vec<Finding> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mut found = capabilities(&status);
    if found.is_empty() {
        // Without its capability the kernel refuses everything; each refusal would be told as a failing of its own.
        found.extend(coracle_netd::missing(bridge));
    }
    if let Err(error) = coracle_runtime::probe(cgroup_name) {
        let words = coracle_base::chain(&error);
        let (problem, hint) = words.split_once("\nhint: ").unwrap_or((&words, "mount cgroup2 at /sys/fs/cgroup"));
        found.push(Finding { problem: problem.to_owned(), hint: hint.to_owned() });
    }
    found
}

fn capabilities(status: &str) -> Vec<Finding> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(have) = line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()) else { return Vec::new() };
    let mut found = Vec::new();
    for (purpose, capabilities) in NEEDED {
        let lacking = capabilities.iter().filter(|(_, bit)| have & (1 << bit) == 0);
        let names: Vec<&str> = lacking.map(|(name, _)| *name).collect();
        if !names.is_empty() {
            found.push(Finding {
                problem: format!("this process is root without {}, which it needs for {purpose}", names.join(", ")),
                hint: "something took it away: a container (run it with --privileged), or CapabilityBoundingSet= of its unit"
                    .to_owned(),
            });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_purpose_is_told_once() {
        let of = |set: u64| capabilities(&format!("Name:\tcoracle\nCapEff:\t{set:016x}\nCapBnd:\t0\n"));
        assert_eq!(of(0x1ff_ffff_ffff), Vec::new());
        let found = of(0x1ff_ffff_ffff & !(1 << 12) & !(1 << 6) & !(1 << 7));
        assert_eq!(found.len(), 2);
        assert!(found[0].problem.contains("CAP_NET_ADMIN") && found[1].problem.contains("CAP_SETGID, CAP_SETUID"));
    }
}
