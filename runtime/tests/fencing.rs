//! Pods that may run only while a lease lasts: what is left of them when it has run out, whoever else is dead, stopped or busy.

mod lab;

use std::collections::BTreeSet;
use std::io::{IoSlice, IoSliceMut};
use std::path::Path;
use std::time::{Duration, Instant};

use coracle_plan::message::{Packet, answer, request};
use coracle_runtime::{Limits, PodHandle, Runtime, RuntimeError};
use lab::{Lab, ended, exec, lab, left_over, spec, wait};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType,
};
use rustix::process::{Pid, Signal, kill_process};

/// How late the kill may be.
const MARGIN_MS: u64 = 200;

/// CLOCK_BOOTTIME, milliseconds.
fn boot_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u64::try_from(now.tv_sec).unwrap() * 1000 + u64::try_from(now.tv_nsec).unwrap() / 1_000_000
}

/// Every process in the pod's cgroups, wherever they are.
fn members(lab: &Lab, pod: &str) -> BTreeSet<u32> {
    fn below(folder: &Path, found: &mut BTreeSet<u32>) {
        let text = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                below(&entry.path(), found);
            }
        }
    }
    let mut found = BTreeSet::new();
    for folder in left_over(&lab.config.cgroup_name) {
        below(&folder.join("pods").join(pod), &mut found);
    }
    found
}

fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
}

/// Waits until all of them are dead, without leaving the test's thread: nothing of the agent runs meanwhile. When that was.
fn dead_at(pids: &BTreeSet<u32>) -> u64 {
    let limit = Instant::now() + Duration::from_secs(20);
    while pids.iter().any(|pid| alive(*pid)) {
        assert!(Instant::now() < limit, "still there: {pids:?}");
        std::thread::sleep(Duration::from_millis(1)); // poll
    }
    boot_ms()
}

/// Waits for a time in the same way.
fn pass(until_ms: u64) {
    while boot_ms() < until_ms {
        std::thread::sleep(Duration::from_millis(1)); // poll
    }
}

fn on_time(what: &str, died_ms: u64, deadline_ms: u64) {
    assert!(died_ms >= deadline_ms, "{what}: killed {} ms early", deadline_ms - died_ms);
    let late = died_ms - deadline_ms;
    println!("{what}: killed {late} ms after the deadline");
    assert!(late <= MARGIN_MS, "{what}: killed {late} ms late");
}

/// Children of every kind: in the background, with a session of their own, and with a parent that is gone.
const FAMILY: &str = "sleep 1001 & busybox setsid sleep 1002 & \
    busybox setsid sh -c '(busybox setsid sleep 1003 &) ; (trap \"\" TERM HUP; sleep 1004 &) ; true' ; sleep 1005";

async fn family(lab: &Lab, pod: &PodHandle) -> BTreeSet<u32> {
    lab.start(pod, "a", FAMILY).await;
    lab.start(pod, "b", "sleep 1006").await;
    // One that a command left behind in the container.
    exec(pod, "b", &["sh", "-c", "busybox setsid sleep 1007 >/dev/null 2>&1 </dev/null &"], 5000).await.unwrap();
    let mut found = BTreeSet::new();
    wait("the family", || {
        found = members(lab, pod.id());
        found.len() >= 7
    })
    .await;
    found
}

#[tokio::test]
async fn nothing_of_a_pod_outlives_its_lease() {
    let Some(lab) = lab("fence").await else { return };
    let deadline = boot_ms() + 3000;
    let pod = lab.fenced_pod("p1", deadline).await;
    let other = lab.pod("p2").await;
    lab.start(&other, "c", "sleep 1000").await;
    let mut events = pod.events().unwrap();
    let all = family(&lab, &pod).await;
    on_time("by itself", dead_at(&all), deadline);
    for id in ["a", "b"] {
        let state = ended(&pod, id).await;
        assert_eq!((state.exit_code, state.signal, state.fenced, state.oom_killed), (137, Some(9), true, false));
    }
    assert!(events.recv().await.unwrap().state.fenced);
    let journal = std::fs::read_to_string(lab.config.run_dir.join("pods/p1/exits")).unwrap();
    assert!(journal.lines().count() == 2 && journal.lines().all(|line| line.ends_with(" 1")), "{journal}");
    // Nothing is started in it, until there is a lease again.
    let refused = lab.try_start(&pod, "d", spec(&["true"]), Limits::default()).await.unwrap_err();
    assert!(matches!(refused, RuntimeError::LeaseExpired), "{refused:?}");
    assert!(matches!(lab.runtime.extend_lease("p1", deadline).await, Err(RuntimeError::LeaseExpired)));
    assert!(matches!(lab.runtime.extend_lease("p1", boot_ms()).await, Err(RuntimeError::LeaseExpired)));
    lab.runtime.extend_lease("p1", boot_ms() + 60_000).await.unwrap();
    lab.start(&pod, "d", "exit 4").await;
    let state = ended(&pod, "d").await;
    assert_eq!((state.exit_code, state.fenced), (4, false));
    assert!(other.containers().iter().all(|state| state.running));
    lab.runtime.extend_lease("nobody", 0).await.unwrap();
    lab.finish().await;
}

#[tokio::test]
async fn a_pod_whose_lease_goes_on_runs_on() {
    let Some(lab) = lab("renewed").await else { return };
    let first = boot_ms() + 2000;
    let pod = lab.fenced_pod("p1", first).await;
    lab.start(&pod, "a", "sleep 1000").await;
    let mut last = first;
    while boot_ms() < first + 1500 {
        last = boot_ms() + 2000;
        pod.extend_lease(last).await.unwrap();
        // An earlier one never counts.
        pod.extend_lease(first).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await; // poll
    }
    assert!(pod.containers()[0].running);
    assert_eq!(exec(&pod, "a", &["true"], 5000).await.unwrap().exit_code, 0);
    on_time("renewed, then not", dead_at(&members(&lab, "p1")), last);
    let refused = exec(&pod, "a", &["true"], 5000).await.unwrap_err();
    assert!(matches!(refused, RuntimeError::LeaseExpired), "{refused:?}");
    lab.finish().await;
}

#[tokio::test]
async fn a_command_is_refused_in_a_container_that_waits_for_its_end() {
    let Some(lab) = lab("exec").await else { return };
    let deadline = boot_ms() + 1500;
    let pod = lab.fenced_pod("p1", deadline).await;
    let pid = lab.start(&pod, "a", "sleep 1000").await;
    let monitor = Pid::from_raw(pod.monitor_pid().cast_signed()).unwrap();
    // Stopped until the deadline has passed: its request is the first thing it finds, and the container still runs.
    kill_process(monitor, Signal::STOP).unwrap();
    let command = tokio::spawn({
        let pod = pod.clone();
        async move { exec(&pod, "a", &["sh", "-c", "echo ran"], 5000).await }
    });
    tokio::task::yield_now().await;
    wait("the deadline", || boot_ms() >= deadline + 300).await;
    assert!(alive(pid));
    kill_process(monitor, Signal::CONT).unwrap();
    let continued = boot_ms();
    on_time("continued", dead_at(&BTreeSet::from([pid])), continued);
    match command.await.unwrap() {
        Ok(done) => assert!(done.output.is_empty(), "{done:?}"),
        Err(error) => assert!(matches!(error, RuntimeError::LeaseExpired | RuntimeError::Launch { .. }), "{error:?}"),
    }
    assert!(ended(&pod, "a").await.fenced);
    lab.finish().await;
}

#[tokio::test]
async fn a_lease_that_comes_late_does_not_save_what_ran_without_one() {
    let Some(lab) = lab("late").await else { return };
    let deadline = boot_ms() + 1500;
    let pod = lab.fenced_pod("p1", deadline).await;
    let pid = lab.start(&pod, "a", "sleep 1000").await;
    let monitor = Pid::from_raw(pod.monitor_pid().cast_signed()).unwrap();
    kill_process(monitor, Signal::STOP).unwrap();
    wait("the deadline", || boot_ms() >= deadline + 100).await;
    let late = tokio::spawn({
        let pod = pod.clone();
        async move { pod.extend_lease(boot_ms() + 60_000).await }
    });
    tokio::task::yield_now().await;
    kill_process(monitor, Signal::CONT).unwrap();
    assert!(ended(&pod, "a").await.fenced && !alive(pid));
    late.await.unwrap().unwrap();
    lab.start(&pod, "b", "sleep 1000").await;
    lab.finish().await;
}

#[tokio::test]
async fn a_monitor_that_is_held_up_kills_and_hears_all_the_same() {
    let Some(lab) = lab("heldup").await else { return };
    let first = boot_ms() + 2000;
    let pod = lab.fenced_pod("p1", first).await;
    lab.start(&pod, "a", "sleep 1000").await;
    // A log that nobody reads: whoever opens it waits.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        lab.log("b"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let stuck = lab.try_start(&pod, "b", spec(&["sleep", "1000"]), Limits::default());
    let stuck = async { tokio::time::timeout(Duration::from_millis(500), stuck).await };
    assert!(stuck.await.is_err(), "the monitor is not held up");
    let deadline = boot_ms() + 2500;
    pod.extend_lease(deadline).await.unwrap();
    pass(first + 300);
    let all = members(&lab, "p1");
    assert!(!all.is_empty() && all.iter().all(|pid| alive(*pid)));
    on_time("held up", dead_at(&all), deadline);
    // What it was held up with is not started either.
    let _reader = std::fs::File::options().read(true).write(true).open(lab.log("b")).unwrap();
    assert!(ended(&pod, "a").await.fenced);
    wait("nothing to run", || members(&lab, "p1").iter().all(|pid| !alive(*pid))).await;
    lab.finish().await;
}

#[tokio::test]
async fn the_next_agent_finds_the_deadline_kept() {
    let Some(lab) = lab("adopt").await else { return };
    let first = boot_ms() + 2500;
    let pod = lab.fenced_pod("p1", first).await;
    lab.start(&pod, "a", "sleep 1000").await;
    let kept = lab.fenced_pod("p2", first).await;
    lab.start(&kept, "a", "sleep 1000").await;
    drop((pod, kept));
    let second = Runtime::open(lab.config.clone()).await.unwrap();
    second.extend_lease("p2", first + 60_000).await.unwrap();
    on_time("adopted", dead_at(&members(&lab, "p1")), first);
    assert!(ended(&second.pod("p1").unwrap(), "a").await.fenced);
    assert!(second.pod("p2").unwrap().containers()[0].running);
    // An agent without a lease changes nothing of one that lasts.
    second.extend_lease("p2", 0).await.unwrap();
    assert!(matches!(second.extend_lease("p1", 0).await, Err(RuntimeError::LeaseExpired)));
    second.cleanup_all().await.unwrap();
    assert!(left_over(&lab.config.cgroup_name).is_empty());
}

#[tokio::test]
async fn a_running_pod_is_fenced_by_its_first_lease() {
    let Some(lab) = lab("later").await else { return };
    let pod = lab.pod("p1").await;
    lab.start(&pod, "a", "sleep 1000").await;
    let deadline = boot_ms() + 500;
    pod.extend_lease(deadline).await.unwrap();
    on_time("fenced later", dead_at(&members(&lab, "p1")), deadline);
    assert!(ended(&pod, "a").await.fenced);
    let unfenced = lab.pod("p2").await;
    lab.start(&unfenced, "b", "sleep 1000").await;
    assert!(matches!(unfenced.extend_lease(0).await, Err(RuntimeError::LeaseExpired)));
    assert!(ended(&unfenced, "b").await.fenced);
    lab.finish().await;
}

#[tokio::test]
async fn nobody_outlives_the_monitor_that_keeps_the_deadline() {
    let Some(lab) = lab("death").await else { return };
    let pod = lab.fenced_pod("p1", boot_ms() + 60_000).await;
    lab.start(&pod, "a", FAMILY).await;
    wait("the family", || members(&lab, "p1").len() >= 5).await;
    let all = members(&lab, "p1");
    kill_process(Pid::from_raw(pod.monitor_pid().cast_signed()).unwrap(), Signal::KILL).unwrap();
    dead_at(&all);
    pod.remove().await.unwrap();
    lab.finish().await;
}

/// Where no v2 hierarchy is mounted: in a mount namespace of the test's thread, which the agent's threads and the monitor are born
/// in.
#[tokio::test]
async fn without_cgroup_v2_as_well() {
    let unified = Path::new("/sys/fs/cgroup/unified");
    if !rustix::process::geteuid().is_root() || !unified.join("cgroup.procs").exists() {
        println!("SKIP: not root, or no hybrid cgroups");
        return;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    nix::mount::umount2(unified, nix::mount::MntFlags::MNT_DETACH).unwrap();
    let Some(lab) = lab("v1").await else { return };
    let deadline = boot_ms() + 3000;
    let pod = lab.fenced_pod("p1", deadline).await;
    let all = family(&lab, &pod).await;
    on_time("v1", dead_at(&all), deadline);
    assert!(ended(&pod, "a").await.fenced && ended(&pod, "b").await.fenced);
    lab.finish().await;
}

/// A monitor of an older release: it lists its containers, and knows no lease.
fn old_monitor(socket: &std::os::fd::OwnedFd) {
    let client = rustix::net::accept(socket).unwrap();
    let mut buffer = [0_u8; 4096];
    loop {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let message =
            rustix::net::recvmsg(&client, &mut [IoSliceMut::new(&mut buffer)], &mut control, RecvFlags::empty());
        let Ok(message) = message else { return };
        if message.bytes < 8 {
            return;
        }
        let number = |at: usize| u32::from_le_bytes(buffer[at..at + 4].try_into().unwrap());
        let mut packet;
        if number(0) == request::LIST {
            packet = Packet::new(answer::OK, number(4));
            packet.u32(0);
        } else {
            packet = Packet::new(answer::ERROR, number(4));
            packet.u32(libc::ENOSYS.cast_unsigned()).u32(0);
        }
        let none = &mut SendAncillaryBuffer::default();
        rustix::net::sendmsg(&client, &[IoSlice::new(packet.bytes())], none, SendFlags::NOSIGNAL).unwrap();
    }
}

#[tokio::test]
async fn a_monitor_of_an_older_release_is_noticed() {
    let Some(lab) = lab("old").await else { return };
    let dir = lab.config.run_dir.join("pods/p1");
    std::fs::create_dir_all(&dir).unwrap();
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(dir.join("podmon.sock")).unwrap()).unwrap();
    rustix::net::listen(&socket, 1).unwrap();
    let monitor = std::thread::spawn(move || old_monitor(&socket));
    // The lab's own runtime makes no cgroup for it.
    let runtime = Runtime::open(lab.config.clone()).await.unwrap();
    let folders = left_over(&lab.config.cgroup_name);
    assert!(folders.is_empty(), "{folders:?}");
    let made = lab.pod("p0").await;
    for folder in left_over(&lab.config.cgroup_name) {
        std::fs::create_dir_all(folder.join("pods/p1")).unwrap();
    }
    assert!(matches!(runtime.extend_lease("p1", boot_ms() + 60_000).await, Err(RuntimeError::CannotFence)));
    assert!(matches!(runtime.extend_lease("p1", 0).await, Err(RuntimeError::CannotFence)));
    runtime.pod("p1").unwrap().remove().await.unwrap();
    drop(runtime);
    made.remove().await.unwrap();
    lab.finish().await;
    monitor.join().unwrap();
}
