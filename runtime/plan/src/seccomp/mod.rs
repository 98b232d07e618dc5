//! Which system calls a container may use: its spec's rules, or our own where it has none, as a BPF program for the kernel.

mod filter;
mod profile;

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};

use self::filter::{Compare, Condition, Machine, Rule};
use crate::CompileError;

/// `name x86_64 aarch64`, a line each.
const SYSCALLS: &str = include_str!("syscalls.txt");

#[cfg(target_arch = "aarch64")]
const MACHINE: (usize, Machine) = (1, Machine { audit: 0xc000_00b7, foreign_from: None });
#[cfg(not(target_arch = "aarch64"))]
const MACHINE: (usize, Machine) = (0, Machine { audit: 0xc000_003e, foreign_from: Some(0x4000_0000) });

/// A program and the flags it is loaded with (seccomp(2)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) flags: u32,
    pub(crate) program: Vec<u8>,
}

/// Every call of this machine with its number.
fn table() -> impl Iterator<Item = (&'static str, u32)> {
    SYSCALLS.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let mut fields = line.split(' ');
        Some((fields.next()?, fields.nth(MACHINE.0)?.parse().ok()?))
    })
}

/// The filter of a spec; `None` = everything is allowed. A spec that says nothing gets our profile: who wants none says so
/// (`{"defaultAction": "SCMP_ACT_ALLOW"}`).
pub(crate) fn compile(seccomp: Option<&LinuxSeccomp>, capabilities: u64) -> Result<Option<Filter>, CompileError> {
    let names: std::collections::HashMap<&str, u32> = table().collect();
    let last = names.values().copied().max().unwrap_or(0);
    let number = |name: &str| names.get(name).copied();
    let (default, flags, rules) = match seccomp {
        None => (profile::DEFAULT, 0, profile::rules(capabilities, number)),
        Some(seccomp) => {
            let default = action(seccomp.default_action(), seccomp.default_errno_ret())?;
            (default, flags(seccomp)?, own_rules(seccomp, default, number)?)
        }
    };
    if default == filter::ALLOW && rules.iter().all(|rule| rule.action == filter::ALLOW) {
        return Ok(None);
    }
    let program = filter::program(&MACHINE.1, default, &rules, last).ok_or_else(|| CompileError::Invalid {
        field: "linux.seccomp",
        value: format!("{} rules", rules.len()),
        reason: "are more than the kernel takes",
    })?;
    Ok(Some(Filter { flags, program }))
}

fn own_rules(
    seccomp: &LinuxSeccomp,
    default: u32,
    number: impl Fn(&str) -> Option<u32>,
) -> Result<Vec<Rule>, CompileError> {
    let mut rules = Vec::new();
    for entry in seccomp.syscalls().iter().flatten() {
        let action = action(entry.action(), entry.errno_ret())?;
        let conditions = entry.args().iter().flatten().map(condition).collect::<Result<Vec<_>, _>>()?;
        // The same argument twice means one or the other (as with libseccomp), different ones mean all of them.
        let twice = (0..6).any(|index| conditions.iter().filter(|one| one.argument == index).count() > 1);
        let sets: Vec<Vec<Condition>> =
            if twice { conditions.iter().map(|one| vec![*one]).collect() } else { vec![conditions] };
        for name in entry.names() {
            match number(name) {
                Some(number) => {
                    rules.extend(sets.iter().map(|conditions| Rule { number, action, conditions: conditions.clone() }));
                }
                // Profiles name calls of every machine. One that is refused anyway is no loss; one that would slip through is.
                None if default != filter::ALLOW || action == filter::ALLOW => {}
                None => {
                    return Err(CompileError::Invalid {
                        field: "linux.seccomp.syscalls.names",
                        value: name.clone(),
                        reason: "is no system call of this machine",
                    });
                }
            }
        }
    }
    Ok(rules)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<u32, CompileError> {
    use LinuxSeccompAction as A;
    Ok(match action {
        A::ScmpActKill | A::ScmpActKillThread => 0,
        A::ScmpActKillProcess => 0x8000_0000,
        A::ScmpActTrap => 0x0003_0000,
        A::ScmpActErrno => filter::errno(errno.unwrap_or(1)),
        A::ScmpActTrace => 0x7ff0_0000 | (errno.unwrap_or(1) & 0xffff),
        A::ScmpActLog => 0x7ffc_0000,
        A::ScmpActAllow => filter::ALLOW,
        A::ScmpActNotify => return Err(CompileError::Unsupported("linux.seccomp action SCMP_ACT_NOTIFY".to_owned())),
    })
}

fn flags(seccomp: &LinuxSeccomp) -> Result<u32, CompileError> {
    use LinuxSeccompFilterFlag as F;
    if seccomp.listener_path().is_some() {
        return Err(CompileError::Unsupported("linux.seccomp.listenerPath".to_owned()));
    }
    let mut bits = 0;
    for flag in seccomp.flags().iter().flatten() {
        bits |= match flag {
            F::SeccompFilterFlagLog => 2,
            F::SeccompFilterFlagSpecAllow => 4,
            // It synchronises threads, and there is one.
            F::SeccompFilterFlagTsync => 0,
            F::SeccompFilterFlagWaitKillableRecv => {
                let what = "linux.seccomp.flags SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV";
                return Err(CompileError::Unsupported(what.to_owned()));
            }
        };
    }
    Ok(bits)
}

fn condition(arg: &LinuxSeccompArg) -> Result<Condition, CompileError> {
    use LinuxSeccompOperator as O;
    let argument = u32::try_from(arg.index()).ok().filter(|index| *index < 6).ok_or_else(|| CompileError::Invalid {
        field: "linux.seccomp.syscalls.args.index",
        value: arg.index().to_string(),
        reason: "is not 0 to 5",
    })?;
    let (compare, mask, value) = match arg.op() {
        O::ScmpCmpNe => (Compare::NotEqual, u64::MAX, arg.value()),
        O::ScmpCmpLt => (Compare::Less, u64::MAX, arg.value()),
        O::ScmpCmpLe => (Compare::LessOrEqual, u64::MAX, arg.value()),
        O::ScmpCmpEq => (Compare::Equal, u64::MAX, arg.value()),
        O::ScmpCmpGe => (Compare::GreaterOrEqual, u64::MAX, arg.value()),
        O::ScmpCmpGt => (Compare::Greater, u64::MAX, arg.value()),
        O::ScmpCmpMaskedEq => (Compare::Equal, arg.value(), arg.value_two().unwrap_or(0)),
    };
    Ok(Condition { argument, mask, compare, value })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const DOCKER: u64 = 0xa804_25fb;

    /// What becomes of a call.
    fn fate(filter: &Filter, name: &str, arguments: [u64; 6]) -> u32 {
        let number = table().find(|(known, _)| *known == name).map(|(_, number)| number).unwrap();
        filter::tests::run(&filter.program, MACHINE.1.audit, number, arguments)
    }

    fn own(value: Value) -> Result<Option<Filter>, CompileError> {
        compile(Some(&serde_json::from_value(value).unwrap()), DOCKER)
    }

    #[test]
    fn the_table_has_every_name_once() {
        let mut names: Vec<&str> = table().map(|(name, _)| name).collect();
        let mut numbers: Vec<u32> = table().map(|(_, number)| number).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!((names.len(), numbers.len()), (count, count));
        assert!(count > 300);
    }

    #[test]
    fn the_default_profile() {
        let filter = compile(None, DOCKER).unwrap().unwrap();
        let plain = |name: &str| fate(&filter, name, [0; 6]);
        for allowed in
            ["read", "write", "openat", "execve", "futex", "clone", "socket", "chroot", "capset", "setgroups"]
        {
            assert_eq!(plain(allowed), filter::ALLOW, "{allowed}");
        }
        for refused in [
            "mount",
            "umount2",
            "bpf",
            "unshare",
            "setns",
            "keyctl",
            "add_key",
            "request_key",
            "io_uring_setup",
            "kexec_load",
            "init_module",
            "reboot",
            "pivot_root",
            "swapon",
            "open_by_handle_at",
            "userfaultfd",
            "perf_event_open",
        ] {
            assert_eq!(plain(refused), filter::errno(1), "{refused}");
        }
        assert_eq!(plain("clone3"), filter::errno(38));
        for namespace in [0x2_0000_u64, 0x1000_0000, 0x4000_0000, 0x2000_0000, 0x0200_0000, 0x0400_0000, 0x0800_0000] {
            assert_eq!(fate(&filter, "clone", [namespace | 17, 0, 0, 0, 0, 0]), filter::errno(1), "{namespace:#x}");
        }
        assert_eq!(fate(&filter, "socket", [38, 0, 0, 0, 0, 0]), filter::errno(1), "AF_ALG");
        assert_eq!(fate(&filter, "socket", [40, 0, 0, 0, 0, 0]), filter::errno(1), "AF_VSOCK");
        assert_eq!(fate(&filter, "socket", [1 << 32 | 38, 0, 0, 0, 0, 0]), filter::errno(1), "AF_ALG in disguise");
        assert_eq!(fate(&filter, "socket", [2, 0, 0, 0, 0, 0]), filter::ALLOW, "AF_INET");
        assert_eq!(fate(&filter, "socket", [16, 0, 0, 0, 0, 0]), filter::ALLOW, "AF_NETLINK");
        let admin = compile(None, DOCKER | 1 << 21).unwrap().unwrap();
        assert_eq!(fate(&admin, "mount", [0; 6]), filter::ALLOW);
        assert_eq!(fate(&admin, "clone3", [0; 6]), filter::ALLOW);
        assert_eq!(fate(&admin, "init_module", [0; 6]), filter::errno(1));
    }

    #[test]
    fn every_name_of_the_profile_is_known() {
        let missing = std::cell::RefCell::new(Vec::new());
        profile::rules(u64::MAX, |name| {
            if !SYSCALLS.lines().any(|line| line.split(' ').next() == Some(name)) {
                missing.borrow_mut().push(name.to_owned());
            }
            None
        });
        assert!(missing.borrow().is_empty(), "{missing:?}");
    }

    #[test]
    fn rules_of_a_spec() {
        assert_eq!(own(json!({"defaultAction": "SCMP_ACT_ALLOW"})), Ok(None));
        let filter = own(json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
                {"names": ["kill"], "action": "SCMP_ACT_KILL_PROCESS", "args": [{"index": 1, "value": 9, "op": "SCMP_CMP_EQ"}]},
                {"names": ["dup"], "action": "SCMP_ACT_ERRNO",
                 "args": [{"index": 0, "value": 3, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}]},
            ],
        }))
        .unwrap()
        .unwrap();
        assert_eq!(filter.flags, 2);
        assert_eq!(fate(&filter, "mkdirat", [0; 6]), filter::errno(5));
        assert_eq!(fate(&filter, "kill", [1, 9, 0, 0, 0, 0]), 0x8000_0000);
        assert_eq!(fate(&filter, "kill", [1, 15, 0, 0, 0, 0]), filter::ALLOW);
        assert_eq!(fate(&filter, "dup", [5, 0, 0, 0, 0, 0]), filter::errno(1));
        assert_eq!(fate(&filter, "dup", [4, 0, 0, 0, 0, 0]), filter::ALLOW);
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        let bad = |value: Value| own(value).unwrap_err().to_string();
        assert!(bad(json!({"defaultAction": "SCMP_ACT_NOTIFY"})).contains("SCMP_ACT_NOTIFY is not supported"));
        let unknown =
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdri"], "action": "SCMP_ACT_ERRNO"}]});
        assert_eq!(bad(unknown), "linux.seccomp.syscalls.names: `mkdri` is no system call of this machine");
        let strict = json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["socketcall", "read"], "action": "SCMP_ACT_ALLOW"}]});
        assert!(own(strict).unwrap().is_some());
    }
}
