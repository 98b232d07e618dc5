//! Real containers on this kernel, with a busybox root. Needs root and a static busybox.
#![allow(clippy::print_stdout)] // SKIP lines

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use coracle_runtime::{
    ContainerLaunch, ContainerState, ExecRequest, Limits, LogSpec, PodHandle, PodSpec, Runtime, RuntimeConfig,
    RuntimeError, rootfs,
};
use oci_spec::runtime::{Process, Spec};
use serde_json::{Value, json};

/// A runtime of its own folder and cgroup name; both go with it.
struct Lab {
    dir: tempfile::TempDir,
    runtime: Runtime,
    layer: PathBuf,
    config: RuntimeConfig,
}

fn busybox() -> Option<PathBuf> {
    let found = ["/bin/busybox", "/usr/bin/busybox"].iter().map(PathBuf::from).find(|path| path.exists());
    if found.is_none() {
        println!("SKIP: busybox is not installed");
    }
    found
}

async fn lab(name: &str) -> Option<Lab> {
    let busybox = busybox()?;
    let dir = tempfile::Builder::new().prefix("coracle-rt").tempdir().unwrap();
    let layer = dir.path().join("layer");
    for folder in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        std::fs::create_dir_all(layer.join(folder)).unwrap();
    }
    std::fs::copy(busybox, layer.join("bin/busybox")).unwrap();
    for tool in [
        "sh", "cat", "sleep", "true", "id", "ls", "echo", "head", "mkdir", "touch", "grep", "ln", "test", "kill",
        "readlink", "mount", "dd", "tail",
    ] {
        std::os::unix::fs::symlink("busybox", layer.join("bin").join(tool)).unwrap();
    }
    let config = RuntimeConfig {
        run_dir: dir.path().join("run"),
        cgroup_name: format!("coracle-test-{}-{name}", std::process::id()),
    };
    let runtime = Runtime::open(config.clone()).await.unwrap();
    Some(Lab { dir, runtime, layer, config })
}

impl Lab {
    async fn pod(&self, id: &str) -> PodHandle {
        self.runtime.create_pod(PodSpec { id: id.into(), hostname: "lab".into(), ..PodSpec::default() }).await.unwrap()
    }

    fn root(&self, name: &str) -> std::os::fd::OwnedFd {
        let base = self.dir.path().join("roots").join(name);
        rootfs::overlay(std::slice::from_ref(&self.layer), &base.join("upper"), &base.join("work")).unwrap()
    }

    async fn try_start(&self, pod: &PodHandle, id: &str, spec: Value, limits: Limits) -> Result<u32, RuntimeError> {
        let log = LogSpec { path: self.log(id), max_bytes: 1 << 20, files: 3 };
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let rootfs = self.root(&format!("{}-{id}", pod.id()));
        pod.start(ContainerLaunch { id: id.into(), attempt: 0, spec, rootfs, log, limits })
            .await
            .map(|started| started.pid)
    }

    async fn start(&self, pod: &PodHandle, id: &str, script: &str) -> u32 {
        self.try_start(pod, id, spec(&["sh", "-c", script]), Limits::default()).await.unwrap()
    }

    fn log(&self, id: &str) -> PathBuf {
        self.dir.path().join("logs").join(format!("{id}.log"))
    }

    /// The log's text without times, tags and streams.
    fn said(&self, id: &str) -> String {
        let text = std::fs::read_to_string(self.log(id)).unwrap_or_default();
        text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n").collect()
    }

    async fn finish(self) {
        self.runtime.cleanup_all().await.unwrap();
        assert!(left_over(&self.config.cgroup_name).is_empty(), "{:?}", left_over(&self.config.cgroup_name));
    }
}

/// Cgroup folders of a name that are still there.
fn left_over(name: &str) -> Vec<PathBuf> {
    let mut mounts = vec![PathBuf::from("/sys/fs/cgroup")];
    mounts.extend(std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path()));
    mounts.into_iter().map(|mount| mount.join(name)).filter(|path| path.exists()).collect()
}

fn spec(args: &[&str]) -> Value {
    let caps = json!(["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SETUID", "CAP_SETGID"]);
    json!({
        "ociVersion": "1.2.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": args, "env": ["PATH=/bin"], "cwd": "/", "capabilities": {"bounding": caps}},
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware", "/proc/acpi"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"],
        },
    })
}

async fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await; // poll
    }
}

async fn ended(pod: &PodHandle, id: &str) -> ContainerState {
    let find = || pod.containers().into_iter().find(|state| state.id == id && !state.running);
    wait("the container to end", || find().is_some()).await;
    find().unwrap()
}

#[tokio::test]
async fn exit_codes_signals_logs_and_events() {
    let Some(lab) = lab("exit").await else { return };
    let pod = lab.pod("p1").await;
    let mut events = pod.events().unwrap();
    lab.start(&pod, "a", "echo one; echo two >&2; printf three; exit 7").await;
    let state = ended(&pod, "a").await;
    assert_eq!((state.exit_code, state.signal, state.oom_killed), (7, None, false));
    assert!(state.ended_ms >= state.started_ms && state.started_ms > 0);
    assert_eq!(events.recv().await.unwrap().state.exit_code, 7);
    wait("the log", || lab.said("a").contains("three")).await;
    let mut lines: Vec<String> = lab.said("a").lines().map(ToOwned::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["one", "three", "two"]);
    assert!(std::fs::read_to_string(lab.log("a")).unwrap().contains("stderr F two"));
    lab.start(&pod, "b", "sleep 100").await;
    pod.kill("b", 9).await.unwrap();
    let state = ended(&pod, "b").await;
    assert_eq!((state.exit_code, state.signal), (137, Some(9)));
    pod.kill("b", 9).await.unwrap();
    lab.finish().await;
}

#[tokio::test]
async fn failures_are_worded() {
    let Some(lab) = lab("fail").await else { return };
    let pod = lab.pod("p1").await;
    let error = lab.try_start(&pod, "a", spec(&["nothing-here"]), Limits::default()).await.unwrap_err();
    assert!(matches!(&error, RuntimeError::Launch { exec: true, .. }), "{error:?}");
    assert_eq!(coracle_base::one_line(&error), "cannot execute `nothing-here`: No such file or directory (os error 2)");
    // A working folder that would lead out through a descriptor (CVE-2024-21626).
    for number in 3..16 {
        let mut leak = spec(&["true"]);
        leak["process"]["cwd"] = json!(format!("/proc/self/fd/{number}"));
        let outcome = lab.try_start(&pod, "a", leak, Limits::default()).await;
        assert!(outcome.is_err(), "fd {number}");
    }
    let mut unknown = spec(&["true"]);
    unknown["mounts"].as_array_mut().unwrap().push(json!({"destination": "/x", "type": "ext4", "source": "/dev/vda"}));
    let error = lab.try_start(&pod, "a", unknown, Limits::default()).await.unwrap_err();
    assert!(error.to_string().contains("a mount of type `ext4` is not supported"), "{error}");
    assert!(lab.runtime.create_pod(PodSpec { id: "../x".into(), ..PodSpec::default() }).await.is_err());
    lab.finish().await;
}

#[tokio::test]
async fn a_container_sees_only_its_own() {
    let Some(lab) = lab("inside").await else { return };
    let pod = lab.pod("p1").await;
    let script = "echo pid $$; cat /proc/self/status | grep Cap; ls /proc/self/fd; readlink /proc/self/cwd; \
                  cat /proc/sys/kernel/hostname; touch /proc/sys/kernel/x 2>&1; head -c1 /proc/kcore | wc -c; \
                  test -c /dev/null && echo null; ls /; echo x > /tmp/y && echo wrote";
    lab.start(&pod, "a", script).await;
    ended(&pod, "a").await;
    wait("the log", || lab.said("a").contains("wrote")).await;
    let said = lab.said("a");
    for expected in [
        "pid 1\n",
        "CapInh:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "CapEff:\t00000000000000eb",
        "\n/\n",
        "\nlab\n",
        "null\n",
        "wrote",
    ] {
        assert!(said.contains(expected), "{expected:?} is missing in {said}");
    }
    // 0, 1, 2 and the folder that ls itself has open.
    assert!(said.contains("\n0\n1\n2\n3\n/\n"), "{said}");
    let mut readonly = spec(&["sh", "-c", "touch /x 2>&1; id; echo done"]);
    readonly["root"]["readonly"] = json!(true);
    readonly["process"]["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [1001, 2000]});
    readonly["process"]["noNewPrivileges"] = json!(true);
    lab.try_start(&pod, "b", readonly, Limits::default()).await.unwrap();
    ended(&pod, "b").await;
    wait("the log", || lab.said("b").contains("done")).await;
    assert!(
        lab.said("b").contains("Read-only file system") || lab.said("b").contains("Permission denied"),
        "{}",
        lab.said("b")
    );
    assert!(lab.said("b").contains("uid=1000 gid=1001 groups=1001,2000"), "{}", lab.said("b"));
    lab.finish().await;
}

#[tokio::test]
async fn volumes_and_hostile_targets_stay_inside() {
    let Some(lab) = lab("volumes").await else { return };
    let outside = lab.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    // Links in the image that point out of the root, absolutely and through parents; /proc itself a link.
    std::os::unix::fs::symlink(&outside, lab.layer.join("evil")).unwrap();
    std::os::unix::fs::symlink("../../../../../../../../tmp", lab.layer.join("up")).unwrap();
    let volume = lab.dir.path().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("f"), "from the host").unwrap();
    let pod = lab.pod("p1").await;
    let mut bad = spec(&["true"]);
    let source = volume.display().to_string();
    bad["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/evil/in", "type": "bind", "source": source, "options": ["rbind"]}));
    let error = lab.try_start(&pod, "bad", bad, Limits::default()).await.unwrap_err();
    assert_eq!(error.to_string(), "cannot mount a volume at /evil/in");
    let mut spec = spec(&["sh", "-c", "cat /up/in/f /data/f /one; echo; touch /data/x 2>&1; echo done"]);
    let mounts = spec["mounts"].as_array_mut().unwrap();
    mounts.push(json!({"destination": "/up/in", "type": "bind", "source": source, "options": ["rbind", "ro"]}));
    mounts
        .push(json!({"destination": "/data", "type": "bind", "source": source, "options": ["rbind", "ro", "nosuid"]}));
    mounts.push(
        json!({"destination": "/one", "type": "bind", "source": format!("{source}/f"), "options": ["bind", "ro"]}),
    );
    lab.try_start(&pod, "a", spec, Limits::default()).await.unwrap();
    ended(&pod, "a").await;
    wait("the log", || lab.said("a").contains("done")).await;
    assert!(lab.said("a").contains("from the hostfrom the hostfrom the host"), "{}", lab.said("a"));
    assert!(lab.said("a").contains("Read-only file system"), "{}", lab.said("a"));
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "something was made outside of the root");
    lab.finish().await;
}

#[tokio::test]
async fn memory_is_limited_and_the_kill_is_told() {
    let Some(lab) = lab("oom").await else { return };
    let pod = lab.pod("p1").await;
    let limits =
        Limits { memory_bytes: Some(16 << 20), pids: Some(50), cpu_quota_us: Some(50_000), cpu_shares: Some(102) };
    // tail keeps what it cannot print yet: endless zeros without a line end.
    let hungry = spec(&["sh", "-c", "tail /dev/zero"]);
    lab.try_start(&pod, "a", hungry, limits).await.unwrap();
    let state = ended(&pod, "a").await;
    assert!(state.oom_killed, "{state:?}");
    assert_eq!(state.exit_code, 137);
    lab.finish().await;
}

#[tokio::test]
async fn exec_output_codes_and_timeouts() {
    let Some(lab) = lab("exec").await else { return };
    let pod = lab.pod("p1").await;
    lab.start(&pod, "a", "echo up > /tmp/mark; sleep 1000").await;
    let exec = |args: &[&str], timeout: u64| {
        let process: Process = serde_json::from_value(spec(args)["process"].clone()).unwrap();
        pod.exec(ExecRequest {
            container: "a".into(),
            process,
            timeout: Duration::from_millis(timeout),
            max_output: 100,
        })
    };
    wait("the container's file", || true).await;
    let mut result = exec(&["cat", "/tmp/mark"], 5000).await.unwrap();
    for _ in 0..100 {
        if result.exit_code == 0 {
            break;
        }
        result = exec(&["cat", "/tmp/mark"], 5000).await.unwrap();
    }
    assert_eq!((result.exit_code, result.output.as_slice(), result.timed_out), (0, b"up\n".as_slice(), false));
    assert_eq!(exec(&["sh", "-c", "exit 5"], 5000).await.unwrap().exit_code, 5);
    assert_eq!(exec(&["sh", "-c", "ls /proc | grep -c '^[0-9]'"], 5000).await.unwrap().exit_code, 0);
    let flood = exec(&["sh", "-c", "while true; do echo 0123456789; done"], 300).await.unwrap();
    assert!(flood.timed_out && flood.exit_code == 137 && flood.output.len() == 100, "{flood:?}");
    let error = exec(&["nothing"], 1000).await.unwrap_err();
    assert!(coracle_base::one_line(&error).starts_with("cannot execute `nothing`"), "{error}");
    lab.finish().await;
}

#[tokio::test]
async fn an_agent_that_comes_back_finds_its_pods() {
    let Some(lab) = lab("adopt").await else { return };
    let pod = lab.pod("p1").await;
    let pid = lab.start(&pod, "long", "sleep 1000").await;
    lab.start(&pod, "short", "cat /tmp/go; exit 3").await;
    drop(pod);
    let second = Runtime::open(lab.config.clone()).await.unwrap();
    let adopted = second.pod("p1").unwrap();
    let long = adopted.containers().into_iter().find(|state| state.id == "long").unwrap();
    assert_eq!((long.pid, long.running), (pid, true));
    assert_eq!(ended(&adopted, "short").await.exit_code, 3);
    let result = std::fs::read_to_string(lab.config.run_dir.join("pods/p1/exits")).unwrap();
    assert!(result.starts_with("short"), "{result}");
    // The monitor dies: the pod is lost, and nothing of it stays.
    let monitor = adopted.monitor_pid();
    assert!(monitor > 0);
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(monitor.cast_signed()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    wait("the loss to be seen", || adopted.is_lost()).await;
    let third = Runtime::open(lab.config.clone()).await.unwrap();
    assert!(third.pod("p1").is_none());
    assert!(
        !Path::new(&format!("/proc/{pid}")).exists()
            || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
    );
    third.cleanup_all().await.unwrap();
    assert!(left_over(&lab.config.cgroup_name).is_empty());
}

#[tokio::test]
async fn many_pods_leave_nothing_behind() {
    let Some(lab) = lab("cycles").await else { return };
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mounts = || std::fs::read_to_string("/proc/self/mounts").unwrap().lines().count();
    let mut before = None;
    for round in 0..60 {
        let id = format!("p{round}");
        let pod = lab.pod(&id).await;
        lab.start(&pod, "a", "exit 0").await;
        ended(&pod, "a").await;
        pod.remove().await.unwrap();
        drop(pod);
        if round == 5 {
            before = Some((fds(), mounts()));
        }
    }
    let before = before.unwrap();
    // Other tests of this process run beside: their descriptors may come and go.
    wait("the count of mounts to be as before", || mounts() <= before.1).await;
    assert!(fds() < before.0 + 40, "{} descriptors, {} before", fds(), before.0);
    assert_eq!(std::fs::read_dir(lab.config.run_dir.join("pods")).unwrap().count(), 0);
    lab.finish().await;
}
