//! Pods and containers as the rest of the agent uses them.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coracle_plan::message::{MAX_FDS, request};
use coracle_plan::{CompileError, wire};
use oci_spec::runtime::{LinuxSeccomp, Process, Spec};
use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::mount::OpenTreeFlags;
use tokio::io::AsyncReadExt as _;
use tokio::sync::{mpsc, oneshot};

use crate::cgroup::{CgroupError, Cgroups, Limits, Stats};
use crate::features::{self, Features};
use crate::podmon::{Connection, ContainerEvent, ContainerState, LeaseLine, PodmonError, spawn};

/// Where a runtime keeps its state and what its cgroups are called.
#[derive(Debug, Clone)]
pub struct RuntimeConfig {
    /// A folder on a tmpfs: sockets, journals. Its content is of this boot only.
    pub run_dir: PathBuf,
    /// The subtree of every hierarchy, such as `coracle`.
    pub cgroup_name: String,
}

/// What went wrong with a pod or a container.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// A file or folder.
    #[error("cannot {action} {path}")]
    File {
        /// `create`, `open`, ...
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// A cgroup.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The spec.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The monitor.
    #[error(transparent)]
    Podmon(#[from] PodmonError),
    /// An operation of the launch failed.
    #[error("cannot {what}")]
    Launch {
        /// In words.
        what: String,
        /// Whether it was the program itself that could not be executed: not found, no permission.
        exec: bool,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// More mounts than go with one request.
    #[error("the container has {0} mounts; {MAX_FDS} is the most")]
    TooMany(usize),
    /// The pod is fenced and its lease has run out: all in it was killed.
    #[error("the pod's lease has run out: nothing runs in it until this node holds one again")]
    LeaseExpired,
    /// The pod's monitor is of a release that does not know fences.
    #[error(
        "the pod's monitor was started by an older release and cannot kill the pod when its lease runs out\nhint: remove the pod and make it anew"
    )]
    CannotFence,
    /// An id that could leave its folder.
    #[error("`{0}` is not an id: letters, digits, `-`, `_` and `.` only")]
    Id(String),
}

/// A pod to be made.
#[derive(Debug, Clone, Default)]
pub struct PodSpec {
    /// Unique, letters, digits, `-_.`: the pod's uid.
    pub id: String,
    /// Its host name.
    pub hostname: String,
    /// Whether it shares the machine's network.
    pub host_network: bool,
    /// Limits of the pod as a whole.
    pub limits: Limits,
    /// The pod may run only while its node holds a lease, which ends then: CLOCK_BOOTTIME, milliseconds. All of it is killed when
    /// that time comes, unless `extend_lease` has given a later one; in the past (0) = nothing can be started yet. `None` = it is
    /// not fenced.
    pub lease_until: Option<u64>,
}

/// Where a container's output goes.
#[derive(Debug, Clone)]
pub struct LogSpec {
    /// The file.
    pub path: PathBuf,
    /// Rotated when it would grow beyond, bytes.
    pub max_bytes: u64,
    /// How many files are kept, the current one included.
    pub files: u32,
}

/// A container to be started.
#[derive(Debug)]
pub struct ContainerLaunch {
    /// Unique in the pod.
    pub id: String,
    /// Which start of it, from 0.
    pub attempt: u32,
    /// What to run, and how.
    pub spec: Spec,
    /// The detached root mount (`rootfs::overlay`).
    pub rootfs: OwnedFd,
    /// Its log.
    pub log: LogSpec,
    /// Its limits.
    pub limits: Limits,
}

/// A container that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Its first process.
    pub pid: u32,
    /// When, milliseconds since 1970.
    pub at_ms: u64,
}

/// A process to be run in a running container.
#[derive(Debug, Clone)]
pub struct ExecRequest {
    /// Which container.
    pub container: String,
    /// User, words, environment, folder, capabilities.
    pub process: Process,
    /// It is killed when it takes longer.
    pub timeout: Duration,
    /// Output beyond this many bytes is read and dropped.
    pub max_output: usize,
}

/// How an exec ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecResult {
    /// Exit code: of a signal 128 and its number.
    pub exit_code: i32,
    /// Standard output and error, mixed, up to the limit.
    pub output: Vec<u8>,
    /// Whether it was killed for taking too long.
    pub timed_out: bool,
}

/// What this machine can do, found out without making anything.
///
/// # Errors
/// No cgroups.
pub fn probe(cgroup_name: &str) -> Result<Features, RuntimeError> {
    Ok(features::probe(&Cgroups::detect(cgroup_name)?))
}

/// The runtime of one agent. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    inner: Arc<Inner>,
}

struct Inner {
    config: RuntimeConfig,
    cgroups: Cgroups,
    features: Features,
    pods: Mutex<HashMap<String, PodHandle>>,
}

impl Runtime {
    /// Opens the runtime and finds the pods that an earlier agent left running.
    ///
    /// # Errors
    /// No cgroups, a run folder that cannot be used.
    pub async fn open(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        let cgroups = Cgroups::detect(&config.cgroup_name)?;
        for folder in ["pods", "stage"] {
            private_folder(&config.run_dir.join(folder))?;
        }
        let features = features::probe(&cgroups);
        for missing in &features.missing {
            tracing::warn!(missing, "this machine cannot do everything that pods may ask for");
        }
        let runtime = Self { inner: Arc::new(Inner { config, cgroups, features, pods: Mutex::default() }) };
        runtime.adopt().await?;
        Ok(runtime)
    }

    /// What this machine can do.
    #[must_use]
    pub fn features(&self) -> &Features {
        &self.inner.features
    }

    /// Every pod, those of an earlier agent included.
    #[must_use]
    pub fn pods(&self) -> Vec<PodHandle> {
        self.lock().values().cloned().collect()
    }

    /// One pod.
    #[must_use]
    pub fn pod(&self, id: &str) -> Option<PodHandle> {
        self.lock().get(id).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, PodHandle>> {
        self.inner.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn adopt(&self) -> Result<(), RuntimeError> {
        let folder = self.inner.config.run_dir.join("pods");
        let entries = std::fs::read_dir(&folder).map_err(|source| RuntimeError::File {
            action: "read",
            path: folder.clone(),
            source,
        })?;
        for entry in entries.flatten() {
            let Ok(id) = entry.file_name().into_string() else { continue };
            match Connection::open(&entry.path()).await {
                Ok(connection) => {
                    self.lock().insert(id.clone(), self.handle(&id, connection));
                }
                Err(error) => {
                    // Nobody would ever tell how its containers end.
                    tracing::warn!(pod = id, %error, "a pod whose monitor is lost is removed");
                    // One that cannot be swept (a process that hangs in the kernel) must not keep all others unattended: its worker
                    // makes it anew, or is told why not.
                    if let Err(error) = self.sweep(&id).await {
                        tracing::error!(pod = id, error = coracle_base::one_line(&error), "it could not be removed");
                    }
                }
            }
        }
        Ok(())
    }

    fn handle(&self, id: &str, connection: Connection) -> PodHandle {
        PodHandle { id: id.into(), runtime: self.clone(), connection, lease: Arc::default() }
    }

    fn dir(&self, id: &str) -> PathBuf {
        self.inner.config.run_dir.join("pods").join(id)
    }

    /// Makes a pod: its namespaces, its cgroup, its monitor.
    ///
    /// # Errors
    /// A bad id, cgroups, the monitor.
    pub async fn create_pod(&self, spec: PodSpec) -> Result<PodHandle, RuntimeError> {
        check_id(&spec.id)?;
        let (runtime, made) = (self.clone(), spec.clone());
        // Files, cgroups and a short-lived process: for a thread that may block.
        blocking(move || {
            let dir = runtime.dir(&made.id);
            private_folder(&dir)?;
            runtime.inner.cgroups.create("podmon", &Limits::default())?;
            runtime.inner.cgroups.create(&format!("pods/{}", made.id), &made.limits)?;
            spawn(&dir, &made.hostname, made.host_network)?;
            let pid =
                std::fs::read_to_string(dir.join("pid")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
            // Outside the pod's limit: what watches a pod must not die of its memory.
            if pid != 0 {
                runtime.inner.cgroups.enter("podmon", pid)?;
            }
            Ok(())
        })
        .await?;
        let connection = Connection::open(&self.dir(&spec.id)).await?;
        let handle = self.handle(&spec.id, connection);
        if let Some(until_ms) = spec.lease_until {
            match handle.extend_lease(until_ms).await {
                Ok(()) | Err(RuntimeError::LeaseExpired) => {}
                Err(error) => {
                    // Nothing runs in it yet.
                    let _ = handle.remove().await;
                    return Err(error);
                }
            }
        }
        self.lock().insert(spec.id, handle.clone());
        Ok(handle)
    }

    /// `PodHandle::extend_lease` of a pod; one that is not there has nothing to be extended.
    ///
    /// # Errors
    /// As `PodHandle::extend_lease`.
    pub async fn extend_lease(&self, pod: &str, until_ms: u64) -> Result<(), RuntimeError> {
        match self.pod(pod) {
            Some(pod) => pod.extend_lease(until_ms).await,
            None => Ok(()),
        }
    }

    /// Kills what is left of a pod whose monitor is gone, and removes its folder.
    async fn sweep(&self, id: &str) -> Result<(), RuntimeError> {
        let (runtime, id) = (self.clone(), id.to_owned());
        blocking(move || {
            let dir = runtime.dir(&id);
            kill_monitor(&dir);
            runtime.inner.cgroups.destroy(&format!("pods/{id}"))?;
            match std::fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(RuntimeError::File { action: "remove", path: dir, source: error })
                }
                _ => Ok(()),
            }
        })
        .await
    }

    /// Ends every pod and removes every cgroup of ours: `coracle down`.
    ///
    /// # Errors
    /// Processes that do not die.
    pub async fn cleanup_all(&self) -> Result<(), RuntimeError> {
        for pod in self.pods() {
            pod.remove().await?;
        }
        let runtime = self.clone();
        blocking(move || Ok(runtime.inner.cgroups.destroy("")?)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(RuntimeError::Podmon(PodmonError::Start("the agent is stopping".into()))),
    }
}

fn private_folder(path: &Path) -> Result<(), RuntimeError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| RuntimeError::File { action: "create", path: path.to_owned(), source })
}

/// Ids become file and cgroup names.
fn check_id(id: &str) -> Result<(), RuntimeError> {
    let good = !id.is_empty()
        && id.len() <= 100
        && !id.starts_with('.')
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if good { Ok(()) } else { Err(RuntimeError::Id(id.chars().take(120).collect())) }
}

/// A running pod. Cheap to clone.
#[derive(Clone)]
pub struct PodHandle {
    id: Arc<str>,
    runtime: Runtime,
    connection: Connection,
    /// To the keeper of the pod's deadline, once there is one.
    lease: Arc<tokio::sync::Mutex<Option<LeaseLine>>>,
}

impl PodHandle {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Whether its monitor has died: then it must be removed and made anew.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.connection.is_gone()
    }

    /// The process id of its monitor.
    #[must_use]
    pub fn monitor_pid(&self) -> u32 {
        self.connection.pid()
    }

    /// Its network namespace.
    ///
    /// # Errors
    /// The monitor is gone.
    pub fn netns(&self) -> Result<OwnedFd, RuntimeError> {
        let path = PathBuf::from(format!("/proc/{}/ns/net", self.connection.pid()));
        let open = rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        open.map_err(|errno| RuntimeError::File { action: "open", path, source: errno.into() })
    }

    /// Its containers, running and ended.
    #[must_use]
    pub fn containers(&self) -> Vec<ContainerState> {
        self.connection.states()
    }

    /// Exits as they happen, to one taker; `containers` tells the same at any time. `None` when they are taken already.
    #[must_use]
    pub fn events(&self) -> Option<mpsc::Receiver<ContainerEvent>> {
        self.connection.take_events()
    }

    /// What the pod has used.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.runtime.inner.cgroups.stats(&format!("pods/{}", self.id))
    }

    /// What a container has used.
    #[must_use]
    pub fn container_stats(&self, container: &str) -> Stats {
        self.runtime.inner.cgroups.stats(&format!("pods/{}/{container}", self.id))
    }

    /// Tells the pod's monitor how long the node's lease lasts: CLOCK_BOOTTIME, milliseconds. The first call fences the pod for
    /// good, whatever runs in it; a time earlier than one that was given before changes nothing. When it comes, every process of
    /// the pod is killed, and nothing can be started until a later one is given.
    ///
    /// # Errors
    /// `LeaseExpired` when that time has passed (and the pod was killed); `CannotFence`; the monitor is gone or stopped.
    pub async fn extend_lease(&self, until_ms: u64) -> Result<(), RuntimeError> {
        let mut line = self.lease.lock().await;
        if let Some(open) = line.as_ref() {
            return if open.extend(until_ms).await? { Ok(()) } else { Err(RuntimeError::LeaseExpired) };
        }
        let kill_file = self.runtime.inner.cgroups.kill_file(&format!("pods/{}", self.id))?;
        let (ours, theirs) = LeaseLine::pair().map_err(|source| RuntimeError::File {
            action: "open",
            path: "a socket pair".into(),
            source,
        })?;
        let flags = request::LEASE_LINE | if kill_file.is_some() { request::LEASE_KILL } else { 0 };
        let fds = kill_file.into_iter().chain([theirs]).collect();
        let answer = self.connection.request(request::LEASE, fds, |packet| {
            packet.u64(until_ms).u32(flags);
        });
        match answer.await {
            Ok(_) => {
                *line = Some(ours);
                Ok(())
            }
            Err(PodmonError::Refused { errno: libc::EKEYEXPIRED, .. }) => {
                *line = Some(ours);
                Err(RuntimeError::LeaseExpired)
            }
            Err(PodmonError::Refused { errno: libc::ENOSYS, .. }) => Err(RuntimeError::CannotFence),
            Err(error) => Err(error.into()),
        }
    }

    fn cgroup(&self, container: &str) -> String {
        format!("pods/{}/{container}", self.id)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// What could not be done, in words; `RuntimeError::Launch` with `exec` when it was the program itself; `LeaseExpired` in a
    /// fenced pod.
    pub async fn start(&self, launch: ContainerLaunch) -> Result<Started, RuntimeError> {
        check_id(&launch.id)?;
        let (this, id, attempt) = (self.clone(), launch.id.clone(), launch.attempt);
        let log = launch.log.clone();
        let (fds, flags, plan) = blocking(move || this.prepare(launch)).await?;
        let answer = self
            .connection
            .request(request::START, fds, |packet| {
                packet
                    .text(&id)
                    .u32(attempt)
                    .text(&log.path.display().to_string())
                    .u64(log.max_bytes)
                    .u32(log.files)
                    .u32(flags);
            })
            .await;
        match answer {
            Ok(pid) => {
                let at_ms = now_ms();
                self.connection.note_started(ContainerState {
                    id: id.clone(),
                    attempt,
                    pid,
                    running: true,
                    exit_code: 0,
                    signal: None,
                    oom_killed: false,
                    started_ms: at_ms,
                    ended_ms: 0,
                    dropped_lines: 0,
                    fenced: false,
                });
                Ok(Started { pid, at_ms })
            }
            Err(PodmonError::Refused { errno: libc::EKEYEXPIRED, .. }) => Err(RuntimeError::LeaseExpired),
            Err(PodmonError::Refused { errno, operation }) => Err(explain(&plan, operation, errno)),
            Err(error) => Err(error.into()),
        }
    }

    /// Everything a launch needs, opened.
    fn prepare(&self, launch: ContainerLaunch) -> Result<(Vec<OwnedFd>, u32, Vec<u8>), RuntimeError> {
        let cgroups = &self.runtime.inner.cgroups;
        let below = self.cgroup(&launch.id);
        cgroups.renew(&below);
        cgroups.create(&below, &launch.limits)?;
        let procs = cgroups.procs(&below)?;
        let stage = self.runtime.inner.config.run_dir.join("stage");
        let count = u32::try_from(procs.len()).unwrap_or(0);
        let plan = coracle_plan::compile(&launch.spec, count, &stage, &cgroups.hierarchies())?;
        if let Some(folder) = launch.log.path.parent() {
            std::fs::create_dir_all(folder).map_err(|source| RuntimeError::File {
                action: "create",
                path: folder.to_owned(),
                source,
            })?;
        }
        let mut fds = vec![plan_file(&plan.bytes)?];
        let mut flags = 0;
        if let Some(counter) = cgroups.oom_counter(&below) {
            flags |= 1;
            fds.push(counter);
        }
        let birth = cgroups.birth(&below)?;
        cgroups.allow_devices(&below, birth.as_ref().map(OwnedFd::as_fd), &plan.devices)?;
        if let Some(birth) = birth {
            flags |= 2;
            fds.push(birth);
        }
        self.keep_profile(&launch)?;
        fds.push(launch.rootfs);
        fds.extend(procs);
        for bind in &plan.binds {
            let mut how = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            if bind.recursive {
                how |= OpenTreeFlags::AT_RECURSIVE;
            }
            let tree = rustix::mount::open_tree(rustix::fs::CWD, &bind.path, how);
            fds.push(tree.map_err(|errno| RuntimeError::File {
                action: "open",
                path: bind.path.clone(),
                source: errno.into(),
            })?);
        }
        if fds.len() > MAX_FDS {
            return Err(RuntimeError::TooMany(plan.binds.len()));
        }
        Ok((fds, flags, plan.bytes))
    }

    /// A process that is run in a container later, perhaps by the next agent, is held to the same system calls.
    fn keep_profile(&self, launch: &ContainerLaunch) -> Result<(), RuntimeError> {
        let path = self.profile_path(&launch.id);
        let profile = launch.spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        let kept = match profile.map(serde_json::to_vec) {
            Some(Ok(text)) => std::fs::write(&path, text),
            Some(Err(error)) => Err(error.into()),
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        };
        kept.map_err(|source| RuntimeError::File { action: "write", path, source })
    }

    fn kept_profile(&self, container: &str) -> Result<Option<LinuxSeccomp>, RuntimeError> {
        let path = self.profile_path(container);
        let read = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.and_then(|text| serde_json::from_slice(&text).map_err(std::io::Error::from)),
        };
        read.map(Some).map_err(|source| RuntimeError::File { action: "read", path, source })
    }

    fn profile_path(&self, container: &str) -> PathBuf {
        self.runtime.dir(&self.id).join(format!("seccomp-{container}.json"))
    }

    /// Runs a process in a container and gathers its output.
    ///
    /// # Errors
    /// The container does not run, the process cannot be executed.
    pub async fn exec(&self, exec: ExecRequest) -> Result<ExecResult, RuntimeError> {
        check_id(&exec.container)?;
        let below = self.cgroup(&exec.container);
        let procs = self.runtime.inner.cgroups.procs(&below)?;
        let profile = self.kept_profile(&exec.container)?;
        let count = u32::try_from(procs.len()).unwrap_or(0);
        let plan = coracle_plan::compile_exec(&exec.process, profile.as_ref(), count)?;
        let null = std::fs::File::open("/dev/null").map_err(|source| RuntimeError::File {
            action: "open",
            path: "/dev/null".into(),
            source,
        })?;
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|errno| RuntimeError::File { action: "open", path: "a pipe".into(), source: errno.into() })?;
        let twin =
            write.try_clone().map_err(|source| RuntimeError::File { action: "open", path: "a pipe".into(), source })?;
        let pipe = tokio::net::unix::pipe::Receiver::from_owned_fd(read).map_err(|source| RuntimeError::File {
            action: "read",
            path: "a pipe".into(),
            source,
        })?;
        let mut fds = vec![plan_file(&plan)?, null.into(), write, twin];
        fds.extend(procs);
        let (id, exited) = match self.connection.exec(&exec.container, fds).await {
            Ok(started) => started,
            Err(PodmonError::Refused { errno: libc::EKEYEXPIRED, .. }) => return Err(RuntimeError::LeaseExpired),
            Err(PodmonError::Refused { errno, operation }) => return Err(explain(&plan, operation, errno)),
            Err(error) => return Err(error.into()),
        };
        let mut output = Output { pipe: Some(pipe), kept: Vec::new(), limit: exec.max_output };
        let mut exited = exited;
        let mut guard = Abandoned { connection: self.connection.clone(), id: Some(id) };
        let first = tokio::select! {
            // Cancel safe: what was read is in `output`, and the exit's channel is only polled.
            status = output.read_beside(&mut exited) => Some(status),
            () = tokio::time::sleep(exec.timeout) => None,
        };
        let timed_out = first.is_none();
        let status = match first {
            Some(status) => status,
            None => {
                let _ = self
                    .connection
                    .request(request::KILL, Vec::new(), |packet| {
                        packet.text(&format!("exec:{id}")).u32(9);
                    })
                    .await;
                tokio::time::timeout(DEATH, output.read_beside(&mut exited)).await.unwrap_or(Ok(9))
            }
        };
        guard.id = None;
        let status = status.map_err(|_| RuntimeError::Podmon(PodmonError::Gone))?;
        // A process it left behind may hold the pipe open: its output is not waited for.
        let _ = tokio::time::timeout(LAST_WORDS, output.read_all()).await;
        let output = output.kept;
        let signal = status & 0x7f;
        let exit_code = if signal == 0 { (status >> 8) & 0xff } else { 128 + signal };
        Ok(ExecResult { exit_code, output, timed_out })
    }

    /// Sends a signal to a container's first process. One that has ended already is no error.
    ///
    /// # Errors
    /// The monitor is gone.
    pub async fn kill(&self, container: &str, signal: i32) -> Result<(), RuntimeError> {
        let sent = self
            .connection
            .request(request::KILL, Vec::new(), |packet| {
                packet.text(container).u32(signal.cast_unsigned());
            })
            .await;
        match sent {
            Ok(_) | Err(PodmonError::Refused { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes what is left of a container that has ended: its cgroup and podmon's memory of it.
    ///
    /// # Errors
    /// The monitor is gone, processes that do not die.
    pub async fn forget(&self, container: &str) -> Result<(), RuntimeError> {
        self.connection
            .request(request::FORGET, Vec::new(), |packet| {
                packet.text(container);
            })
            .await?;
        self.connection.forget(container);
        let (cgroups, below) = (self.runtime.inner.cgroups.clone(), self.cgroup(container));
        blocking(move || Ok(cgroups.destroy(&below)?)).await
    }

    /// Kills everything, ends the monitor and removes every trace of the pod.
    ///
    /// # Errors
    /// Processes that do not die.
    pub async fn remove(&self) -> Result<(), RuntimeError> {
        // Descendants that left their container's process group die with the cgroup, before the monitor waits for the rest.
        let (cgroups, below) = (self.runtime.inner.cgroups.clone(), format!("pods/{}", self.id));
        let _ = self.connection.request(request::END, Vec::new(), |_| {}).await;
        blocking(move || Ok(cgroups.destroy(&below)?)).await?;
        self.runtime.sweep(&self.id).await?;
        self.runtime.lock().remove(&*self.id);
        Ok(())
    }
}

/// Kills what is left of a monitor: one that is stopped or stuck would hold the pod's namespaces.
fn kill_monitor(dir: &Path) {
    let pid = std::fs::read_to_string(dir.join("pid")).ok().and_then(|text| text.trim().parse::<i32>().ok());
    let Some(pid) = pid.filter(|pid| *pid > 1).and_then(rustix::process::Pid::from_raw) else { return };
    // The number may be another process's by now.
    let words = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    if words.split(|byte| *byte == 0).nth(1) == Some(dir.as_os_str().as_encoded_bytes()) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

/// A killed process that does not die hangs in the kernel: its probe shall not.
const DEATH: Duration = Duration::from_secs(10);

/// An exec whose caller goes away is killed.
struct Abandoned {
    connection: Connection,
    id: Option<u32>,
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.connection.abandon_exec(id);
        }
    }
}

/// How long output is waited for that was written before the process ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The output of an exec: read to its end, kept up to the limit.
struct Output {
    pipe: Option<tokio::net::unix::pipe::Receiver>,
    kept: Vec<u8>,
    limit: usize,
}

impl Output {
    /// Reads until every writer has closed the pipe.
    async fn read_all(&mut self) {
        let mut chunk = [0_u8; 8192];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut chunk).await {
                Ok(length @ 1..) => {
                    let room = self.limit.saturating_sub(self.kept.len());
                    self.kept.extend_from_slice(&chunk[..length.min(room)]);
                }
                _ => self.pipe = None,
            }
        }
    }

    /// Reads while the process runs, so that it never waits for a full pipe.
    async fn read_beside(&mut self, exited: &mut oneshot::Receiver<i32>) -> Result<i32, oneshot::error::RecvError> {
        tokio::select! {
            // Cancel safe both.
            status = &mut *exited => return status,
            () = self.read_all() => {}
        }
        exited.await
    }
}

fn plan_file(bytes: &[u8]) -> Result<OwnedFd, RuntimeError> {
    let bad = |errno: rustix::io::Errno| RuntimeError::File {
        action: "write",
        path: "the launch plan".into(),
        source: errno.into(),
    };
    let file = rustix::fs::memfd_create("plan", MemfdFlags::CLOEXEC).map_err(bad)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = rustix::io::write(file.as_fd(), rest).map_err(bad)?;
        rest = &rest[written..];
    }
    Ok(file)
}

/// The words for a failed operation.
fn explain(plan: &[u8], operation: u32, errno: i32) -> RuntimeError {
    let source = std::io::Error::from_raw_os_error(errno);
    let mut what = "start the container".to_owned();
    let mut exec = false;
    if let Ok(mut decoder) = wire::Decoder::new(plan) {
        for _ in 0..operation {
            let Ok(Some(op)) = decoder.next_op() else { break };
            exec = matches!(op, wire::Op::Exec { .. });
            what = wire::describe(&op);
        }
    }
    RuntimeError::Launch { what, exec, source }
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
