//! What the runtime's tests share: a runtime of its own, a busybox layer, specs, and waiting for conditions.
#![allow(dead_code, clippy::print_stdout)] // Each test program uses its part; SKIP lines.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use coracle_runtime::{
    ContainerLaunch, ContainerState, ExecRequest, ExecResult, Limits, LogSpec, PodHandle, PodSpec, Runtime,
    RuntimeConfig, RuntimeError, rootfs,
};
use oci_spec::runtime::{Process, Spec};
use serde_json::{Value, json};

/// A runtime of its own folder and cgroup name; both go with it.
pub struct Lab {
    pub dir: tempfile::TempDir,
    pub runtime: Runtime,
    pub layer: PathBuf,
    pub config: RuntimeConfig,
}

fn busybox() -> Option<PathBuf> {
    let found = ["/bin/busybox", "/usr/bin/busybox"].iter().map(PathBuf::from).find(|path| path.exists());
    if found.is_none() {
        println!("SKIP: busybox is not installed");
    }
    found
}

/// A lab with a busybox layer; `None` (said) where there is none.
pub async fn lab(name: &str) -> Option<Lab> {
    let busybox = busybox()?;
    let dir = tempfile::Builder::new().prefix("coracle-rt").tempdir().unwrap();
    let layer = dir.path().join("layer");
    for folder in ["bin", "etc", "tmp", "proc", "sys", "dev"] {
        std::fs::create_dir_all(layer.join(folder)).unwrap();
    }
    std::fs::copy(busybox, layer.join("bin/busybox")).unwrap();
    for tool in [
        "sh", "cat", "sleep", "true", "id", "ls", "echo", "head", "mkdir", "touch", "grep", "ln", "test", "kill",
        "readlink", "mount", "dd", "tail", "mknod", "rm", "mv", "seq", "wc",
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
    pub async fn pod(&self, id: &str) -> PodHandle {
        self.runtime.create_pod(PodSpec { id: id.into(), hostname: "lab".into(), ..PodSpec::default() }).await.unwrap()
    }

    /// A pod whose lease ends then.
    pub async fn fenced_pod(&self, id: &str, until_ms: u64) -> PodHandle {
        let spec = PodSpec { id: id.into(), hostname: "lab".into(), lease_until: Some(until_ms), ..PodSpec::default() };
        self.runtime.create_pod(spec).await.unwrap()
    }

    pub fn root(&self, name: &str) -> std::os::fd::OwnedFd {
        let base = self.dir.path().join("roots").join(name);
        rootfs::overlay(std::slice::from_ref(&self.layer), &base.join("upper"), &base.join("work")).unwrap()
    }

    pub async fn try_start(&self, pod: &PodHandle, id: &str, spec: Value, limits: Limits) -> Result<u32, RuntimeError> {
        let log = LogSpec { path: self.log(id), max_bytes: 1 << 20, files: 3 };
        let spec: Spec = serde_json::from_value(spec).unwrap();
        let rootfs = self.root(&format!("{}-{id}", pod.id()));
        pod.start(ContainerLaunch { id: id.into(), attempt: 0, spec, rootfs, log, limits })
            .await
            .map(|started| started.pid)
    }

    pub async fn start(&self, pod: &PodHandle, id: &str, script: &str) -> u32 {
        self.try_start(pod, id, spec(&["sh", "-c", script]), Limits::default()).await.unwrap()
    }

    pub fn log(&self, id: &str) -> PathBuf {
        self.dir.path().join("logs").join(format!("{id}.log"))
    }

    /// The log's text without times, tags and streams.
    pub fn said(&self, id: &str) -> String {
        let text = std::fs::read_to_string(self.log(id)).unwrap_or_default();
        text.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n").collect()
    }

    pub async fn finish(self) {
        self.runtime.cleanup_all().await.unwrap();
        assert!(left_over(&self.config.cgroup_name).is_empty(), "{:?}", left_over(&self.config.cgroup_name));
    }
}

/// Cgroup folders of a name that are still there.
pub fn left_over(name: &str) -> Vec<PathBuf> {
    let mut mounts = vec![PathBuf::from("/sys/fs/cgroup")];
    mounts.extend(std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path()));
    mounts.into_iter().map(|mount| mount.join(name)).filter(|path| path.exists()).collect()
}

pub fn spec(args: &[&str]) -> Value {
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
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware", "/proc/acpi"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"],
        },
    })
}

pub async fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < until, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await; // poll
    }
}

pub async fn ended(pod: &PodHandle, id: &str) -> ContainerState {
    let find = || pod.containers().into_iter().find(|state| state.id == id && !state.running);
    wait("the container to end", || find().is_some()).await;
    find().unwrap()
}

/// Runs a process in a container, as root, and waits for it.
pub async fn exec(
    pod: &PodHandle,
    container: &str,
    args: &[&str],
    timeout_ms: u64,
) -> Result<ExecResult, RuntimeError> {
    let process: Process = serde_json::from_value(spec(args)["process"].clone()).unwrap();
    exec_as(pod, container, process, timeout_ms).await
}

/// The same with a process of any kind.
pub async fn exec_as(
    pod: &PodHandle,
    container: &str,
    process: Process,
    timeout_ms: u64,
) -> Result<ExecResult, RuntimeError> {
    let timeout = Duration::from_millis(timeout_ms);
    pod.exec(ExecRequest { container: container.into(), process, timeout, max_output: 4096 }).await
}
