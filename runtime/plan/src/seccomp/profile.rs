//! The system calls of a container that names no profile of its own.
//!
//! An allow-list in the tradition of Docker's, RuntimeDefault to Kubernetes (state of mid-2026): what administers the machine
//! comes only with the capability for it; new namespaces, kernel keys, io_uring, BPF and the socket families that reach past the
//! network namespace or into rarely used kernel code (AF_ALG, AF_VSOCK) do not come at all.

use super::filter::{ALLOW, Compare, Condition, Rule, errno};

/// Always.
const ALWAYS: &str = "\
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown clock_adjtime clock_getres \
    clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3 epoll_create \
    epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 execve execveat exit exit_group \
    faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchownat fcntl \
    fdatasync fgetxattr file_getattr file_setattr flistxattr flock fork fremovexattr fsetxattr fstat fstatfs fsync \
    ftruncate futex futex_requeue futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu \
    getcwd getdents getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid \
    getpriority getrandom getresgid getresuid getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday \
    getuid getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel io_destroy \
    io_getevents io_pgetevents io_setup io_submit ioctl ioprio_get ioprio_set kill landlock_add_rule \
    landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listmount listxattr listxattrat \
    llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier memfd_create memfd_secret mincore \
    mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open mq_timedreceive \
    mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at \
    nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free \
    pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv process_vm_writev \
    pselect6 ptrace pwrite64 pwritev pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg \
    remap_file_pages removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction \
    rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo \
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler \
    sched_rr_get_interval sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select \
    semctl semget semop semtimedop sendfile sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address \
    setfsgid setfsuid setgid setgroups setitimer setpgid setpriority setregid setresgid setresuid setreuid setrlimit \
    setsid setsockopt setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 \
    socketpair splice stat statfs statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time \
    timer_create timer_delete timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime \
    timerfd_settime times tkill truncate umask uname unlink unlinkat uretprobe utime utimensat utimes vfork vmsplice \
    wait4 waitid write writev";

/// With a capability (capabilities(7), by number).
const WITH: &[(u32, &str)] = &[
    // DAC_READ_SEARCH
    (2, "open_by_handle_at"),
    // SYS_MODULE
    (16, "delete_module init_module finit_module"),
    // SYS_RAWIO
    (17, "iopl ioperm"),
    // SYS_CHROOT
    (18, "chroot"),
    // SYS_PTRACE
    (19, "kcmp pidfd_getfd process_madvise"),
    // SYS_PACCT
    (20, "acct"),
    // SYS_ADMIN
    (
        SYS_ADMIN,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lsm_get_self_attr lsm_list_modules \
         lsm_set_self_attr mount mount_setattr move_mount open_tree open_tree_attr perf_event_open quotactl quotactl_fd \
         setdomainname sethostname setns syslog umount2 unshare",
    ),
    // SYS_BOOT
    (22, "reboot"),
    // SYS_NICE
    (23, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    // SYS_TIME
    (25, "settimeofday clock_settime"),
    // SYS_TTY_CONFIG
    (26, "vhangup"),
    // SYSLOG
    (34, "syslog"),
    // PERFMON
    (38, "perf_event_open"),
    // BPF
    (39, "bpf"),
];

const SYS_ADMIN: u32 = 21;
/// CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}.
const NEW_NAMESPACES: u64 = 0x7e02_0000;
const INT: u64 = 0xffff_ffff;
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;
/// personality(2): Linux, Linux with 32-bit addresses or its name, and the question which one it is.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// What happens to every other call.
pub(super) const DEFAULT: u32 = errno(EPERM);

/// The rules for a container with these capabilities. `number` finds a call's number on this machine.
pub(super) fn rules(capabilities: u64, number: impl Fn(&str) -> Option<u32>) -> Vec<Rule> {
    let has = |capability: u32| capabilities & (1 << capability) != 0;
    let mut rules = Vec::new();
    let mut add = |name: &str, action: u32, conditions: Vec<Condition>| {
        rules.extend(number(name).map(|number| Rule { number, action, conditions }));
    };
    for name in ALWAYS.split_whitespace() {
        add(name, ALLOW, Vec::new());
    }
    for (_, names) in WITH.iter().filter(|(capability, _)| has(*capability)) {
        for name in names.split_whitespace() {
            add(name, ALLOW, Vec::new());
        }
    }
    let first = |mask: u64, compare: Compare, value: u64| vec![Condition { argument: 0, mask, compare, value }];
    // The kernel takes an int: with all 64 bits compared, a number beyond 32 bits would pass as another family.
    add("socket", ALLOW, first(INT, Compare::Less, AF_ALG));
    add("socket", ALLOW, first(INT, Compare::Equal, AF_ALG + 1));
    add("socket", ALLOW, first(INT, Compare::Greater, AF_VSOCK));
    for value in PERSONALITIES {
        add("personality", ALLOW, first(INT, Compare::Equal, value));
    }
    if !has(SYS_ADMIN) {
        add("clone", ALLOW, first(NEW_NAMESPACES, Compare::Equal, 0));
        // Its flags are in memory, out of a filter's sight: libc falls back to clone.
        add("clone3", errno(ENOSYS), Vec::new());
    }
    // Machines whose threads need them.
    for name in ["arch_prctl", "modify_ldt"] {
        add(name, ALLOW, Vec::new());
    }
    rules
}
