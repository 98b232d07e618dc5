//! Sandboxes and containers on the runtime.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use coracle_base::Millis;
use coracle_lifecycle::oci::User;
use coracle_runtime::{
    ContainerLaunch, ContainerState, ExecRequest, Limits, LogSpec, PodHandle, PodSpec, Runtime, RuntimeError, rootfs,
};
use oci_spec::runtime::{Process, Spec};
use tokio::sync::mpsc;

use crate::facilities::{
    Containers, Doing, Ended, ExecOutcome, Failure, Launch, Root, RunState, SandboxEvent, SandboxSpec, Started,
    WAITING_FOR_LEASE, boottime_ms,
};

/// As upstream: a log file is rotated at 10 MiB, five are kept.
const LOG_BYTES: u64 = 10 << 20;
const LOG_FILES: u32 = 5;
/// What is kept of a command's output.
const EXEC_OUTPUT: usize = 10 << 10;
/// Events between runtime and worker; the worker takes them at once.
const EVENTS: usize = 16;
const SANDBOX: &str = "FailedCreatePodSandBox";
const CREATE: &str = "CreateContainerError";

/// The runtime as a facility.
#[derive(Clone)]
pub struct RuntimeContainers {
    runtime: Runtime,
}

impl RuntimeContainers {
    /// Over an open runtime.
    #[must_use]
    pub fn new(runtime: Runtime) -> Self {
        Self { runtime }
    }

    fn pod(&self, pod: &str) -> Result<PodHandle, Failure> {
        self.runtime.pod(pod).ok_or_else(|| Failure::retry(CREATE, "the pod's sandbox is gone"))
    }
}

fn words(error: &RuntimeError) -> String {
    coracle_base::one_line(error)
}

fn state(state: ContainerState) -> RunState {
    let ended = (!state.running).then_some(Ended {
        code: state.exit_code,
        signal: state.signal,
        oom: state.oom_killed,
        fenced: state.fenced,
        at: state.ended_ms,
    });
    RunState { container: state.id, attempt: state.attempt, pid: state.pid, started_at: state.started_ms, ended }
}

/// The limits of a container's cgroup, as its specification says.
fn limits(spec: &Spec) -> Limits {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let Some(resources) = resources else { return Limits::default() };
    let memory = resources.memory().as_ref().and_then(|memory| memory.limit());
    let cpu = resources.cpu().as_ref();
    let quota = cpu.and_then(|cpu| cpu.quota()).filter(|quota| *quota > 0);
    let period = cpu.and_then(|cpu| cpu.period()).filter(|period| *period > 0).unwrap_or(100_000);
    Limits {
        memory_bytes: memory.and_then(|limit| u64::try_from(limit).ok()),
        // The runtime counts in periods of 100 ms.
        cpu_quota_us: quota.and_then(|quota| u64::try_from(quota).ok()).map(|quota| quota * 100_000 / period),
        cpu_shares: cpu.and_then(|cpu| cpu.shares()),
        pids: resources.pids().as_ref().and_then(|pids| u64::try_from(pids.limit()).ok()),
    }
}

impl Containers for RuntimeContainers {
    fn create(&self, spec: SandboxSpec) -> Doing<'_, Result<(), Failure>> {
        Box::pin(async move {
            if let Some(pod) = self.runtime.pod(&spec.pod) {
                let kept = match spec.lease_until {
                    _ if pod.is_lost() => false,
                    None => true,
                    Some(until) => match pod.extend_lease(until).await {
                        Ok(()) | Err(RuntimeError::LeaseExpired) => true,
                        Err(RuntimeError::CannotFence) => false,
                        Err(error) => return Err(Failure::retry(SANDBOX, words(&error))),
                    },
                };
                if kept {
                    return Ok(());
                }
                pod.remove().await.map_err(|error| Failure::retry(SANDBOX, words(&error)))?;
            }
            let limits = Limits {
                memory_bytes: spec.memory_limit,
                cpu_quota_us: spec.cpu_limit_milli.map(|milli| (milli * 100).max(1000)),
                cpu_shares: Some((spec.cpu_request_milli * 1024 / 1000).clamp(2, 262_144)),
                pids: None,
            };
            let (id, hostname, lease_until) = (spec.pod, spec.hostname, spec.lease_until);
            let pod = PodSpec { id, hostname, host_network: spec.host_network, limits, lease_until };
            let made = self.runtime.create_pod(pod).await;
            made.map(drop).map_err(|error| Failure::retry(SANDBOX, words(&error)))
        })
    }

    fn root(&self, layers: Vec<PathBuf>, writable: PathBuf) -> Doing<'_, Result<Root, Failure>> {
        Box::pin(async move {
            let work = move || {
                let (upper, work) = (writable.join("upper"), writable.join("work"));
                rootfs::overlay(&layers, &upper, &work)
                    .map(Root::Mount)
                    .map_err(|error| Failure::retry(CREATE, coracle_base::one_line(&error)))
            };
            let done = tokio::task::spawn_blocking(work).await;
            done.unwrap_or_else(|_| Err(Failure::retry(CREATE, "the agent is stopping")))
        })
    }

    fn user(&self, root: &Root, text: &str) -> Result<User, Failure> {
        let Root::Mount(root) = root else { return Ok(User::default()) };
        let user = rootfs::user(root.as_fd(), text)
            .map_err(|error| Failure::retry("CreateContainerConfigError", coracle_base::one_line(&error)))?;
        Ok(User { uid: user.uid, gid: user.gid, groups: user.groups, home: user.home })
    }

    fn start(&self, launch: Launch) -> Doing<'_, Result<Started, Failure>> {
        Box::pin(async move {
            let pod = self.pod(&launch.pod)?;
            let Root::Mount(rootfs) = launch.root else {
                return Err(Failure::retry(CREATE, "the container has no root"));
            };
            let program = launch.spec.process().as_ref().and_then(|process| process.args().clone()).unwrap_or_default();
            let limits = limits(&launch.spec);
            let launch = ContainerLaunch {
                id: launch.container,
                attempt: launch.attempt,
                spec: launch.spec,
                rootfs,
                log: LogSpec { path: launch.log, max_bytes: LOG_BYTES, files: LOG_FILES },
                limits,
            };
            match pod.start(launch).await {
                Ok(started) => Ok(Started { pid: started.pid, at: started.at_ms }),
                Err(error) => Err(start_failure(&error, program.first().map_or("", String::as_str))),
            }
        })
    }

    fn exec(
        &self,
        pod: &str,
        container: &str,
        process: Process,
        within: Duration,
    ) -> Doing<'_, Result<ExecOutcome, Failure>> {
        let (pod, container) = (self.pod(pod), container.to_owned());
        Box::pin(async move {
            let request = ExecRequest { container, process, timeout: within, max_output: EXEC_OUTPUT };
            let done = pod?.exec(request).await.map_err(|error| Failure::retry("Unhealthy", words(&error)))?;
            Ok(ExecOutcome {
                code: done.exit_code,
                output: String::from_utf8_lossy(&done.output).into_owned(),
                timed_out: done.timed_out,
            })
        })
    }

    fn boottime_ms(&self) -> Millis {
        boottime_ms()
    }

    fn lease(&self, pod: &str, until: Millis) -> Doing<'_, Result<(), Failure>> {
        let pod = self.runtime.pod(pod);
        Box::pin(async move {
            let Some(pod) = pod else { return Ok(()) };
            let error = match pod.extend_lease(until).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let failure = Failure::retry(WAITING_FOR_LEASE, words(&error));
            if matches!(error, RuntimeError::CannotFence) {
                tracing::warn!(
                    pod = pod.id(),
                    "a fenced pod runs under a monitor of an older release; it is made anew"
                );
                pod.remove().await.map_err(|error| Failure::retry("FailedKillPod", words(&error)))?;
            }
            Err(failure)
        })
    }

    fn kill(&self, pod: &str, container: &str, signal: i32) -> Doing<'_, Result<(), Failure>> {
        let (pod, container) = (self.runtime.pod(pod), container.to_owned());
        Box::pin(async move {
            match pod {
                Some(pod) => {
                    pod.kill(&container, signal).await.map_err(|error| Failure::retry("FailedKillPod", words(&error)))
                }
                None => Ok(()),
            }
        })
    }

    fn forget(&self, pod: &str, container: &str) -> Doing<'_, Result<(), Failure>> {
        let (pod, container) = (self.runtime.pod(pod), container.to_owned());
        Box::pin(async move {
            match pod {
                Some(pod) => pod.forget(&container).await.map_err(|error| Failure::retry(CREATE, words(&error))),
                None => Ok(()),
            }
        })
    }

    fn states(&self, pod: &str) -> Option<Vec<RunState>> {
        let pod = self.runtime.pod(pod).filter(|pod| !pod.is_lost())?;
        Some(pod.containers().into_iter().map(state).collect())
    }

    fn events(&self, pod: &str) -> Option<mpsc::Receiver<SandboxEvent>> {
        let mut from = self.runtime.pod(pod)?.events()?;
        let (to, receiver) = mpsc::channel(EVENTS);
        tokio::spawn(async move {
            while let Some(event) = from.recv().await {
                if to.send(SandboxEvent::Ended(state(event.state))).await.is_err() {
                    return;
                }
            }
            let _ = to.send(SandboxEvent::Lost).await;
        });
        Some(receiver)
    }

    fn netns(&self, pod: &str) -> Result<Option<OwnedFd>, Failure> {
        self.pod(pod)?.netns().map(Some).map_err(|error| Failure::retry(SANDBOX, words(&error)))
    }

    fn remove(&self, pod: &str) -> Doing<'_, Result<(), Failure>> {
        let pod = self.runtime.pod(pod);
        Box::pin(async move {
            match pod {
                Some(pod) => pod.remove().await.map_err(|error| Failure::retry("FailedKillPod", words(&error))),
                None => Ok(()),
            }
        })
    }

    fn sandboxes(&self) -> Vec<String> {
        self.runtime.pods().iter().map(|pod| pod.id().to_owned()).collect()
    }
}

/// A program that cannot be executed is the user's affair and counts as a run; what the node could not do is tried again.
fn start_failure(error: &RuntimeError, program: &str) -> Failure {
    match error {
        RuntimeError::Launch { exec: true, source, .. } => {
            let what = match source.kind() {
                std::io::ErrorKind::NotFound => format!(
                    "exec: \"{program}\": executable file not found in the image; hint: no shell reads `command`; a script also needs the interpreter it names"
                ),
                std::io::ErrorKind::PermissionDenied => format!(
                    "exec: \"{program}\": permission denied; hint: it must be a file that the container's user may execute"
                ),
                _ if source.raw_os_error() == Some(8) => {
                    format!(
                        "exec: \"{program}\": exec format error (an image for another architecture, or a script without `#!`)"
                    )
                }
                _ => format!("exec: \"{program}\": {source}"),
            };
            Failure::run("ContainerCannotRun", what)
        }
        RuntimeError::LeaseExpired => Failure::retry(WAITING_FOR_LEASE, words(error)),
        RuntimeError::Launch { .. } | RuntimeError::Compile(_) => Failure::run("StartError", words(error)),
        _ => Failure::retry(CREATE, words(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_executed_is_said_plainly() {
        let launch = |errno| RuntimeError::Launch {
            what: "execute /x".into(),
            exec: true,
            source: std::io::Error::from_raw_os_error(errno),
        };
        let failure = start_failure(&launch(2), "/x");
        assert_eq!(failure.reason, "ContainerCannotRun");
        assert!(failure.message.starts_with("exec: \"/x\": executable file not found in the image; hint: "));
        assert!(start_failure(&launch(8), "/x").message.contains("architecture"));
        let other = RuntimeError::TooMany(99);
        assert_eq!(start_failure(&other, "/x").class, coracle_lifecycle::observed::ErrorClass::Retry);
    }
}
