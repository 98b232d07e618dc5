//! What has been seen of one pod so far. The shell records facts here; `next` reads them and decides.
//!
//! It is kept in the run directory and read back by the next agent process, so that restarts, backoffs and probe verdicts
//! survive it.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use coracle_base::Millis;
use serde::{Deserialize, Serialize};

use crate::backoff::{self, Backoff};
use crate::pod::{Container, Pod, Role};
use crate::probe::{ProbeKind, ProbeState};

/// Something that did not work, why, and when to try again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failing {
    /// One word, as upstream's: `ErrImagePull`, `CreateContainerConfigError`, `FailedCreatePodSandBox`.
    pub reason: String,
    /// One line for the user.
    pub message: String,
    /// When to try again.
    pub backoff: Backoff,
}

/// What an error means for the next try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// May go away by itself: try again after a wait.
    Retry,
    /// Counts as a run that failed: the restart policy decides.
    Fail,
    /// This pod can never run here: it ends as Failed.
    Reject,
}

/// The namespaces, address and cgroup of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Sandbox {
    /// Not made yet. Left for `Ready` or `Failing`.
    #[default]
    None,
    /// Not made, tried. Left for `Ready`.
    Failing(Failing),
    /// Stands. Left for `None` when it was lost (its monitor died), or `Removed`.
    Ready {
        /// The pod's address.
        ip: Ipv4Addr,
    },
    /// Taken down for good. Never left.
    Removed,
}

/// The directories and files of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Volumes {
    /// Not prepared yet.
    #[default]
    None,
    /// Tried: something is missing.
    Failing(Failing),
    /// There.
    Ready,
}

/// The image of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Image {
    /// Not asked for yet.
    #[default]
    Unknown,
    /// Could not be had.
    Failing(Failing),
    /// On this node.
    Present {
        /// Its digest: `sha256:...`.
        digest: String,
        /// The name it was found by.
        name: String,
        /// Its stop signal, when it names one.
        stop_signal: Option<String>,
    },
}

/// How a run of a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Exit code; 128 + the signal's number when it was killed by one.
    pub code: i32,
    /// The signal.
    pub signal: Option<i32>,
    /// `Completed`, `Error`, `OOMKilled`, `FencedLeaseExpired`, `StartError`, `ContainerCannotRun`, `ContainerStatusUnknown`.
    pub reason: String,
    /// Its last words, or why it did not start.
    pub message: String,
    /// Start of the run.
    pub started_at: Millis,
    /// End of the run.
    pub finished_at: Millis,
    /// Which run: 0 is the first.
    pub attempt: u32,
}

/// Whether a container runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Run {
    /// It was never started. Left for `Running` or `Exited`.
    #[default]
    Never,
    /// It runs. Left for `Exited`.
    Running {
        /// Which run: 0 is the first.
        attempt: u32,
        /// On the node.
        pid: u32,
        /// Since when.
        started_at: Millis,
    },
    /// It ended. Left for `Running` when the restart policy says so.
    Exited(Exit),
}

/// Where the hook after the start of a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PostStart {
    /// Ended, or there is none.
    #[default]
    Done,
    /// Not begun.
    Waiting,
    /// Under way.
    Running,
}

/// Where the hook before the stop signal stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PreStop {
    /// Not begun.
    #[default]
    Waiting,
    /// Under way.
    Running,
    /// Ended, however.
    Done,
}

/// How far the stop of one run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stopping {
    /// The hook.
    pub pre_stop: PreStop,
    /// When the stop signal went out.
    pub term_at: Option<Millis>,
    /// When the kill went out, the last time.
    pub kill_at: Option<Millis>,
}

/// One container has to end though its pod goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condemned {
    /// Since when.
    pub at: Millis,
    /// Until it is killed.
    pub grace_ms: Millis,
    /// Why, for the user.
    pub message: String,
}

/// What has been seen of one container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ContainerSeen {
    /// Its image.
    pub image: Image,
    /// Whether it runs.
    pub run: Run,
    /// The end of the run before this one.
    pub previous: Option<Exit>,
    /// Times it was started again.
    pub restarts: u32,
    /// The number of the next run.
    pub next_attempt: u32,
    /// When an ended one is started again.
    pub backoff: Backoff,
    /// What keeps it from being made.
    pub setup: Option<Failing>,
    /// The startup probe has passed, or there is none, in this run.
    pub started: bool,
    /// When that was.
    pub started_gate_at: Millis,
    /// It was `started` in some run: what waits for it need not wait again.
    pub ever_started: bool,
    /// It was started in the sandbox that stands now.
    pub began: bool,
    /// Startup probe.
    pub startup: ProbeState,
    /// Readiness probe.
    pub readiness: ProbeState,
    /// Liveness probe.
    pub liveness: ProbeState,
    /// It has to end.
    pub condemned: Option<Condemned>,
    /// How far its stop has come.
    pub stopping: Stopping,
    /// The hook after the start.
    #[serde(default)]
    pub post_start: PostStart,
}

/// Why a whole pod is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// Its containers have ended and none is started again.
    Finished,
    /// It ran longer than it may.
    DeadlineExceeded,
    /// It can never run here.
    Rejected,
    /// It took more of the node than it may.
    Evicted,
    /// Somebody deleted it, or the node no longer has it.
    Deleted,
}

/// The stop of a whole pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStop {
    /// Why. Only ever replaced by `Deleted`.
    pub why: StopReason,
    /// For the user.
    pub message: String,
    /// Since when.
    pub at: Millis,
    /// Until the kill.
    pub grace_ms: Millis,
    /// No Service of this node sends it new connections any more.
    pub released: bool,
}

/// What has been seen of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Observed {
    /// When the node first saw it.
    pub accepted_at: Millis,
    /// Namespaces, address, cgroup.
    pub sandbox: Sandbox,
    /// Directories and files.
    pub volumes: Volumes,
    /// Its containers, in the order of `Pod::containers`.
    pub containers: Vec<ContainerSeen>,
    /// It is being stopped.
    pub stop: Option<PodStop>,
    /// A step that makes something is under way: no second one is begun.
    #[serde(skip)]
    pub busy: bool,
    /// It may run only while the node holds a lease. A sandbox that was fenced stays so: its monitor keeps the deadline.
    #[serde(default)]
    pub fenced: bool,
    /// The node holds a lease that lasts long enough to start something under it. The shell knows, of this moment only.
    #[serde(skip)]
    pub leased: bool,
    /// A take-down failed: when to try again.
    pub teardown: Backoff,
    /// Nothing of it is left on the node but logs and this record.
    pub torn_down: bool,
}

impl Observed {
    /// Of a pod that is new to the node. Restarts that the object records are carried on (the machine was rebooted).
    #[must_use]
    pub fn new(pod: &Pod, now: Millis) -> Self {
        let containers = pod
            .containers
            .iter()
            .map(|container| {
                let recorded = pod.recorded_restarts.get(&container.name).copied();
                ContainerSeen { restarts: recorded.unwrap_or(0), ..ContainerSeen::default() }
            })
            .collect();
        Self { accepted_at: now, containers, fenced: pod.fenced, ..Self::default() }
    }

    /// What stands in for a pod read back whose record does not fit it: `None` when it does.
    #[must_use]
    pub fn fits(&self, pod: &Pod) -> bool {
        self.containers.len() == pod.containers.len()
    }

    /// The address, while there is one.
    #[must_use]
    pub fn ip(&self) -> Option<Ipv4Addr> {
        match self.sandbox {
            Sandbox::Ready { ip } => Some(ip),
            _ => None,
        }
    }

    /// Whether any container runs.
    #[must_use]
    pub fn any_running(&self) -> bool {
        self.containers.iter().any(|seen| matches!(seen.run, Run::Running { .. }))
    }

    /// Whether nothing may be started for want of a lease.
    #[must_use]
    pub fn lacks_lease(&self) -> bool {
        self.fenced && !self.leased
    }

    /// Whether the node holds a lease now that lasts long enough. One that has come makes up for the tries that failed without.
    pub fn lease(&mut self, leased: bool, now: Millis) {
        if leased && !self.leased {
            self.hurry(now);
        }
        self.leased = leased;
    }

    /// The sandbox stands.
    pub fn sandbox_ready(&mut self, ip: Ipv4Addr) {
        self.sandbox = Sandbox::Ready { ip };
    }

    /// The sandbox could not be made.
    pub fn sandbox_failed(&mut self, message: String, now: Millis) {
        let before = if let Sandbox::Failing(failing) = &self.sandbox { failing.backoff } else { Backoff::default() };
        let backoff = before.failed(backoff::SETUP, 0, now);
        self.sandbox = Sandbox::Failing(Failing { reason: "FailedCreatePodSandBox".to_owned(), message, backoff });
    }

    /// The sandbox is gone though nobody asked for it: what ran in it has ended with it, and init containers run again in the
    /// next one.
    pub fn sandbox_lost(&mut self, pod: &Pod, now: Millis) {
        self.sandbox = Sandbox::None;
        self.volumes = Volumes::None;
        self.fenced = pod.fenced;
        for (seen, container) in self.containers.iter_mut().zip(&pod.containers) {
            if let Run::Running { attempt, started_at, .. } = seen.run {
                let exit = Exit {
                    code: 137,
                    signal: Some(9),
                    reason: "ContainerStatusUnknown".to_owned(),
                    message: "the pod's monitor ended, and the container with it".to_owned(),
                    started_at,
                    finished_at: now,
                    attempt,
                };
                seen.exited(exit, now);
            }
            if container.role == Role::Init && matches!(seen.run, Run::Exited(_)) {
                seen.forget_run();
            }
            (seen.ever_started, seen.began) = (false, false);
        }
    }

    /// The volumes are there.
    pub fn volumes_ready(&mut self) {
        self.volumes = Volumes::Ready;
    }

    /// The volumes could not be prepared.
    pub fn volumes_failed(&mut self, message: String, now: Millis) {
        let before = if let Volumes::Failing(failing) = &self.volumes { failing.backoff } else { Backoff::default() };
        let backoff = before.failed(backoff::SETUP, 0, now);
        self.volumes = Volumes::Failing(Failing { reason: "FailedMount".to_owned(), message, backoff });
    }

    /// The pod is to stop. A later call may give another reason and a shorter grace; nothing makes it run again.
    pub fn stop(&mut self, why: StopReason, message: String, grace_ms: Millis, now: Millis) {
        match &mut self.stop {
            Some(stop) => {
                if why == StopReason::Deleted && stop.why != StopReason::Deleted {
                    (stop.why, stop.message) = (why, message);
                }
                stop.grace_ms = stop.grace_ms.min(grace_ms);
            }
            None => self.stop = Some(PodStop { why, message, at: now, grace_ms, released: false }),
        }
    }

    /// No Service sends it new connections any more.
    pub fn released(&mut self) {
        if let Some(stop) = &mut self.stop {
            stop.released = true;
        }
    }

    /// Something the pod reads has changed: what waited for it is tried at once.
    pub fn hurry(&mut self, now: Millis) {
        if let Volumes::Failing(failing) = &mut self.volumes {
            failing.backoff.retry_at = failing.backoff.retry_at.min(now);
        }
        for failing in self.containers.iter_mut().filter_map(|seen| seen.setup.as_mut()) {
            failing.backoff.retry_at = failing.backoff.retry_at.min(now);
        }
    }

    /// Everything was taken down.
    pub fn torn_down(&mut self) {
        self.sandbox = Sandbox::Removed;
        self.torn_down = true;
    }

    /// The take-down left something behind.
    pub fn teardown_failed(&mut self, now: Millis) {
        self.teardown = self.teardown.failed(backoff::SETUP, 0, now);
    }

    /// Brings a record that was read back in line with what runs: `running` and `exited` by container name. A run the monitor
    /// knows nothing of has been lost with the monitor.
    pub fn adopt(
        &mut self,
        pod: &Pod,
        running: &BTreeMap<String, (u32, u32, Millis)>,
        exited: &[(String, Exit)],
        now: Millis,
    ) {
        for (seen, container) in self.containers.iter_mut().zip(&pod.containers) {
            if let Some(&(attempt, pid, started_at)) = running.get(&container.name) {
                let known = matches!(seen.run, Run::Running { attempt: known, .. } if known == attempt);
                if !known {
                    seen.running(container, attempt, pid, started_at);
                }
            } else if let Run::Running { attempt, .. } = seen.run {
                let exit = exited.iter().find(|(name, exit)| *name == container.name && exit.attempt == attempt);
                if let Some((_, exit)) = exit {
                    seen.exited(exit.clone(), now);
                }
            } else {
                // It began and ended without its start being noted.
                let unseen =
                    exited.iter().filter(|(name, exit)| *name == container.name && exit.attempt >= seen.next_attempt);
                if let Some((_, exit)) = unseen.max_by_key(|(_, exit)| exit.attempt) {
                    seen.exited(exit.clone(), now);
                }
            }
            // Only the process that began a hook could have told of its end.
            if let (Run::Running { attempt, .. }, PostStart::Running) = (&seen.run, seen.post_start) {
                let attempt = *attempt;
                seen.post_start_done(container, attempt, &Ok(()), 0, now);
            }
            if seen.stopping.pre_stop == PreStop::Running {
                seen.stopping.pre_stop = PreStop::Done;
            }
        }
    }
}

impl ContainerSeen {
    /// The image is on the node.
    pub fn image_present(&mut self, digest: String, name: String, stop_signal: Option<String>) {
        self.image = Image::Present { digest, name, stop_signal };
    }

    /// The image could not be had.
    pub fn image_failed(&mut self, reason: &str, message: String, now: Millis) {
        let before = if let Image::Failing(failing) = &self.image { failing.backoff } else { Backoff::default() };
        let backoff = before.failed(backoff::PULL, 0, now);
        self.image = Image::Failing(Failing { reason: reason.to_owned(), message, backoff });
    }

    /// It could not be made for something that may come: a missing `ConfigMap`, a user that must not be root.
    pub fn setup_failed(&mut self, reason: &str, message: String, now: Millis) {
        let before = self.setup.as_ref().map_or_else(Backoff::default, |failing| failing.backoff);
        let backoff = before.failed(backoff::SETUP, 0, now);
        self.setup = Some(Failing { reason: reason.to_owned(), message, backoff });
    }

    /// It runs.
    pub fn running(&mut self, container: &Container, attempt: u32, pid: u32, started_at: Millis) {
        if let Run::Exited(exit) = std::mem::take(&mut self.run) {
            self.previous = Some(exit);
        }
        if attempt > 0 && attempt >= self.next_attempt {
            self.restarts = self.restarts.saturating_add(1);
        }
        self.next_attempt = self.next_attempt.max(attempt.saturating_add(1));
        self.run = Run::Running { attempt, pid, started_at };
        self.began = true;
        self.setup = None;
        self.condemned = None;
        self.stopping = Stopping::default();
        (self.startup, self.readiness, self.liveness) = Default::default();
        self.post_start = if container.post_start.is_some() { PostStart::Waiting } else { PostStart::Done };
        self.started = container.startup.is_none() && self.post_start == PostStart::Done;
        self.started_gate_at = started_at;
        self.ever_started |= self.started;
    }

    /// It ended, or did not even start.
    pub fn exited(&mut self, exit: Exit, now: Millis) {
        if let Run::Exited(before) = &self.run {
            if before.attempt == exit.attempt {
                return;
            }
            self.previous = Some(before.clone());
        }
        if exit.attempt > 0 && exit.attempt >= self.next_attempt {
            self.restarts = self.restarts.saturating_add(1);
        }
        self.next_attempt = self.next_attempt.max(exit.attempt.saturating_add(1));
        let healthy_ms = exit.finished_at.saturating_sub(exit.started_at);
        self.backoff = self.backoff.failed(backoff::RESTART, healthy_ms, now);
        self.run = Run::Exited(exit);
        self.began = true;
        self.setup = None;
        self.started = false;
        self.condemned = None;
        self.stopping = Stopping::default();
    }

    /// Its last run counts for nothing any more.
    fn forget_run(&mut self) {
        if let Run::Exited(exit) = std::mem::take(&mut self.run) {
            self.previous = Some(exit);
        }
    }

    /// The state of a probe.
    #[must_use]
    pub fn probe(&self, kind: ProbeKind) -> &ProbeState {
        match kind {
            ProbeKind::Startup => &self.startup,
            ProbeKind::Readiness => &self.readiness,
            ProbeKind::Liveness => &self.liveness,
        }
    }

    fn probe_mut(&mut self, kind: ProbeKind) -> &mut ProbeState {
        match kind {
            ProbeKind::Startup => &mut self.startup,
            ProbeKind::Readiness => &mut self.readiness,
            ProbeKind::Liveness => &mut self.liveness,
        }
    }

    /// A try of a probe has begun.
    pub fn probe_begun(&mut self, kind: ProbeKind) {
        self.probe_mut(kind).trying = true;
    }

    /// A try of a probe of run `attempt` has ended. Returns the verdict when it has just changed.
    pub fn probed(
        &mut self,
        container: &Container,
        kind: ProbeKind,
        attempt: u32,
        outcome: &Result<(), String>,
        pod_grace_ms: Millis,
        now: Millis,
    ) -> Option<bool> {
        let current = matches!(self.run, Run::Running { attempt: running, .. } if running == attempt);
        let probe = match kind {
            ProbeKind::Startup => container.startup.as_ref(),
            ProbeKind::Readiness => container.readiness.as_ref(),
            ProbeKind::Liveness => container.liveness.as_ref(),
        };
        let (true, Some(probe)) = (current, probe) else {
            self.probe_mut(kind).trying = false;
            return None;
        };
        let changed = self.probe_mut(kind).record(kind, probe, outcome.is_ok(), now)?;
        match (kind, changed) {
            (ProbeKind::Startup, true) => {
                self.started = true;
                self.ever_started = true;
                self.started_gate_at = now;
            }
            (ProbeKind::Startup | ProbeKind::Liveness, false) if self.condemned.is_none() => {
                let which = kind.as_str().to_lowercase();
                self.condemned = Some(Condemned {
                    at: now,
                    grace_ms: probe.grace_ms.unwrap_or(pod_grace_ms),
                    message: format!("Container {} failed {which} probe, will be restarted", container.name),
                });
            }
            _ => {}
        }
        Some(changed)
    }

    /// Whether it counts as ready.
    #[must_use]
    pub fn is_ready(&self, container: &Container) -> bool {
        match self.run {
            Run::Running { .. } => {
                self.started && (container.readiness.is_none() || self.readiness.verdict == Some(true))
            }
            // An init container that has done its work is what upstream calls ready.
            Run::Exited(ref exit) => container.role == Role::Init && exit.code == 0,
            Run::Never => false,
        }
    }

    /// The hook after the start has begun.
    pub fn post_start_begun(&mut self) {
        self.post_start = PostStart::Running;
    }

    /// The hook after the start of run `attempt` has ended. One that failed ends the container, as upstream has it.
    pub fn post_start_done(
        &mut self,
        container: &Container,
        attempt: u32,
        outcome: &Result<(), String>,
        pod_grace_ms: Millis,
        now: Millis,
    ) {
        if !matches!(self.run, Run::Running { attempt: running, .. } if running == attempt) {
            return;
        }
        self.post_start = PostStart::Done;
        if outcome.is_err() {
            let message = format!("Container {} failed its PostStartHook, will be killed", container.name);
            self.condemned.get_or_insert(Condemned { at: now, grace_ms: pod_grace_ms, message });
        } else if container.startup.is_none() {
            (self.started, self.ever_started, self.started_gate_at) = (true, true, now);
        }
    }

    /// The hook before the stop signal has begun.
    pub fn pre_stop_begun(&mut self) {
        self.stopping.pre_stop = PreStop::Running;
    }

    /// The hook before the stop signal of run `attempt` has ended.
    pub fn pre_stop_done(&mut self, attempt: u32) {
        if matches!(self.run, Run::Running { attempt: running, .. } if running == attempt) {
            self.stopping.pre_stop = PreStop::Done;
        }
    }

    /// The stop signal went out.
    pub fn signalled(&mut self, now: Millis) {
        self.stopping.term_at = Some(now);
    }

    /// The kill went out.
    pub fn killed(&mut self, now: Millis) {
        self.stopping.kill_at = Some(now);
    }
}
