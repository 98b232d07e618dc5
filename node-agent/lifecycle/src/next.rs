//! What a pod does next: one step per call, from what was asked and what has been seen.
//!
//! ```text
//!   sandbox -> volumes -> (image -> start) of each container in turn -> probes, restarts ...
//!      ... -> Stop (deleted | finished | deadline | rejected)
//!          -> pre-stop hooks -> stop signals -> kills -> TearDown -> Gone (deleted) | Wait (an ended pod is kept)
//! ```
//! A pod that is being stopped never starts anything again, and one that was torn down stays so. A fenced pod is made ready for
//! its start whether the node holds a lease or not; containers are started only with one.

use coracle_base::Millis;

use crate::observed::{ContainerSeen, Image, Observed, PodStop, PostStart, PreStop, Run, Sandbox, StopReason, Volumes};
use crate::pod::{Container, Pod, Probe, RestartPolicy, Role};
use crate::probe::ProbeKind;

/// The next thing to do. `container` is an index into `Pod::containers`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make the sandbox: address, namespaces, cgroup. Record with `sandbox_ready` or `sandbox_failed`.
    Sandbox,
    /// Make the volumes. Record with `volumes_ready` or `volumes_failed`.
    Volumes,
    /// Get a container's image. Record with `image_present` or `image_failed`.
    Pull {
        /// Whose.
        container: usize,
    },
    /// Start a container. Record with `running`, `setup_failed` or `exited`.
    Start {
        /// Which.
        container: usize,
        /// Number of the run.
        attempt: u32,
    },
    /// Try a probe, in the background. Record with `probe_begun` and `probed`.
    Probe {
        /// Whose.
        container: usize,
        /// Which of its probes.
        kind: ProbeKind,
        /// Of which run.
        attempt: u32,
    },
    /// Run the hook after the start, in the background. Record with `post_start_begun` and `post_start_done`.
    PostStart {
        /// Whose.
        container: usize,
        /// Of which run.
        attempt: u32,
    },
    /// Run the hook before the stop signal, in the background. Record with `pre_stop_begun` and `pre_stop_done`.
    PreStop {
        /// Whose.
        container: usize,
        /// Of which run.
        attempt: u32,
        /// When it has to end.
        until: Millis,
    },
    /// Send the stop signal. Record with `signalled`.
    Signal {
        /// To whom.
        container: usize,
    },
    /// Send SIGKILL. Record with `killed`.
    Kill {
        /// To whom.
        container: usize,
    },
    /// Stop the whole pod. Record with `Observed::stop`.
    Stop {
        /// Why.
        why: StopReason,
        /// For the user.
        message: String,
        /// Until the kill.
        grace_ms: Millis,
    },
    /// Take everything down. Record with `torn_down` or `teardown_failed`.
    TearDown,
    /// Nothing is left and nobody wants it: tell the server.
    Gone,
    /// Nothing to do before something happens, or before this time.
    Wait {
        /// Look again then.
        until: Option<Millis>,
    },
}

/// How long a pod that is deleted may go on serving until no node sends it new connections: at most this, and at most a
/// quarter of its grace.
const RELEASE_MS: Millis = 10_000;
/// Between the stop signal and the kill, however short the grace has become.
const LAST_GRACE_MS: Millis = 2000;
/// A kill that had no effect is sent again.
const KILL_AGAIN_MS: Millis = 10_000;

/// The earliest of the times at which something has to be looked at again.
#[derive(Default)]
struct Wake(Option<Millis>);

impl Wake {
    fn at(&mut self, when: Millis) {
        self.0 = Some(self.0.map_or(when, |until| until.min(when)));
    }

    fn wait(&self) -> Step {
        Step::Wait { until: self.0 }
    }
}

/// The next step of `pod`, given what has been seen, at `now`. Never the same step twice without a record in between.
#[must_use]
pub fn next(pod: &Pod, seen: &Observed, now: Millis) -> Step {
    let mut wake = Wake::default();
    if let Some(step) = begin_stop(pod, seen, now, &mut wake) {
        return step;
    }
    if seen.torn_down {
        let deleted = seen.stop.as_ref().is_some_and(|stop| stop.why == StopReason::Deleted);
        return if deleted { Step::Gone } else { wake.wait() };
    }
    if let Some(stop) = &seen.stop {
        return stopping(pod, seen, stop, now, &mut wake);
    }
    if let Some(step) = condemned(pod, seen, now, &mut wake) {
        return step;
    }
    if let Some(step) = post_start(pod, seen) {
        return step;
    }
    if let Some(step) = probes(pod, seen, now, &mut wake) {
        return step;
    }
    if seen.busy {
        return wake.wait();
    }
    setup(pod, seen, now, &mut wake)
}

fn begin_stop(pod: &Pod, seen: &Observed, now: Millis, wake: &mut Wake) -> Option<Step> {
    if let Some(deletion) = pod.deletion {
        let already = seen.stop.as_ref().filter(|stop| stop.why == StopReason::Deleted);
        if already.is_none_or(|stop| deletion.grace_ms < stop.grace_ms) {
            let message = "the pod was deleted".to_owned();
            return Some(Step::Stop { why: StopReason::Deleted, message, grace_ms: deletion.grace_ms });
        }
    }
    if seen.stop.is_some() {
        return None;
    }
    // Ended before the node was rebooted: it is not run again.
    if matches!(pod.recorded_phase.as_str(), "Succeeded" | "Failed") && seen.sandbox == Sandbox::None {
        return Some(Step::Stop { why: StopReason::Finished, message: String::new(), grace_ms: 0 });
    }
    let deadline = seen.accepted_at + pod.active_deadline_ms?;
    if now < deadline {
        wake.at(deadline);
        return None;
    }
    let message = "Pod was active on the node longer than the specified deadline".to_owned();
    Some(Step::Stop { why: StopReason::DeadlineExceeded, message, grace_ms: pod.grace_ms })
}

/// Single containers that have to end while their pod goes on.
fn condemned(pod: &Pod, seen: &Observed, now: Millis, wake: &mut Wake) -> Option<Step> {
    each(pod, seen).find_map(|(index, container, state)| {
        let condemned = state.condemned.as_ref()?;
        let order = Order { at: condemned.at, grace_ms: condemned.grace_ms, hold_until: 0, turn: true };
        end_container(index, container, state, &order, now, wake)
    })
}

fn each<'a>(
    pod: &'a Pod,
    seen: &'a Observed,
) -> impl DoubleEndedIterator<Item = (usize, &'a Container, &'a ContainerSeen)> + Clone {
    pod.containers.iter().zip(&seen.containers).enumerate().map(|(index, (container, state))| (index, container, state))
}

/// The hook of a container that has just been started.
fn post_start(pod: &Pod, seen: &Observed) -> Option<Step> {
    each(pod, seen).find_map(|(container, _, state)| match state.run {
        Run::Running { attempt, .. } if state.post_start == PostStart::Waiting && state.condemned.is_none() => {
            Some(Step::PostStart { container, attempt })
        }
        _ => None,
    })
}

/// How one container is to end.
struct Order {
    at: Millis,
    grace_ms: Millis,
    /// The stop signal waits until then for Services to let go of it.
    hold_until: Millis,
    /// Sidecars wait for the others.
    turn: bool,
}

/// One step of the end of one container; `None` when it has ended or only time can help.
fn end_container(
    index: usize,
    container: &Container,
    state: &ContainerSeen,
    order: &Order,
    now: Millis,
    wake: &mut Wake,
) -> Option<Step> {
    let Run::Running { attempt, .. } = state.run else { return None };
    let stopping = state.stopping;
    if let Some(killed) = stopping.kill_at {
        wake.at(killed + KILL_AGAIN_MS);
        return (now >= killed + KILL_AGAIN_MS).then_some(Step::Kill { container: index });
    }
    if order.grace_ms == 0 {
        return Some(Step::Kill { container: index });
    }
    let deadline = order.at + order.grace_ms;
    if let Some(term_at) = stopping.term_at {
        let kill_at = deadline.max(term_at + LAST_GRACE_MS);
        wake.at(kill_at);
        return (now >= kill_at).then_some(Step::Kill { container: index });
    }
    let over = now >= deadline;
    if !over {
        wake.at(deadline);
        // A hook begins at once: its time is the container's grace.
        if container.pre_stop.is_some() && stopping.pre_stop == PreStop::Waiting {
            return Some(Step::PreStop { container: index, attempt, until: deadline });
        }
        if stopping.pre_stop == PreStop::Running || !order.turn {
            return None;
        }
        if now < order.hold_until {
            wake.at(order.hold_until);
            return None;
        }
    }
    Some(Step::Signal { container: index })
}

/// The end of the whole pod: hooks of all at once, then signals to init and app containers, then sidecars one at a time in
/// reverse order (KEP-753), then the take-down.
fn stopping(pod: &Pod, seen: &Observed, stop: &PodStop, now: Millis, wake: &mut Wake) -> Step {
    let hold = if stop.released || stop.why != StopReason::Deleted { 0 } else { RELEASE_MS.min(stop.grace_ms / 4) };
    let mut others_run = false;
    for (index, container, state) in each(pod, seen).filter(|(_, container, _)| container.role != Role::Sidecar) {
        let order = Order { at: stop.at, grace_ms: stop.grace_ms, hold_until: stop.at + hold, turn: true };
        if let Some(step) = end_container(index, container, state, &order, now, wake) {
            return step;
        }
        others_run |= matches!(state.run, Run::Running { .. });
    }
    let mut turn = !others_run;
    for (index, container, state) in each(pod, seen).rev().filter(|(_, container, _)| container.role == Role::Sidecar) {
        let order = Order { at: stop.at, grace_ms: stop.grace_ms, hold_until: 0, turn };
        if let Some(step) = end_container(index, container, state, &order, now, wake) {
            return step;
        }
        turn &= !matches!(state.run, Run::Running { .. });
    }
    if let Some(step) = readiness_while_stopping(pod, seen, now, wake) {
        return step;
    }
    if seen.any_running() || seen.busy {
        return wake.wait();
    }
    if now < seen.teardown.retry_at {
        wake.at(seen.teardown.retry_at);
        return wake.wait();
    }
    Step::TearDown
}

/// A pod that is being stopped still serves what it has: only readiness is asked.
fn readiness_while_stopping(pod: &Pod, seen: &Observed, now: Millis, wake: &mut Wake) -> Option<Step> {
    each(pod, seen).filter(|(_, _, state)| state.stopping.term_at.is_none()).find_map(|(index, container, state)| {
        try_probe(index, state, ProbeKind::Readiness, container.readiness.as_ref(), now, wake)
    })
}

fn probes(pod: &Pod, seen: &Observed, now: Millis, wake: &mut Wake) -> Option<Step> {
    let asked = |state: &ContainerSeen| state.condemned.is_none() && state.post_start == PostStart::Done;
    for (index, container, state) in each(pod, seen).filter(|(_, _, state)| asked(state)) {
        let due = [
            (ProbeKind::Startup, &container.startup),
            (ProbeKind::Liveness, &container.liveness),
            (ProbeKind::Readiness, &container.readiness),
        ];
        for (kind, probe) in due {
            let step = try_probe(index, state, kind, probe.as_ref(), now, wake);
            if step.is_some() {
                return step;
            }
        }
    }
    None
}

fn try_probe(
    index: usize,
    state: &ContainerSeen,
    kind: ProbeKind,
    probe: Option<&Probe>,
    now: Millis,
    wake: &mut Wake,
) -> Option<Step> {
    let (Run::Running { attempt, started_at, .. }, Some(probe)) = (&state.run, probe) else { return None };
    // The startup probe runs until it has passed, the other two from then on.
    if (kind == ProbeKind::Startup) == state.started || state.probe(kind).trying {
        return None;
    }
    let due = state.probe(kind).due(kind, probe, *started_at, state.started_gate_at);
    if now < due {
        wake.at(due);
        return None;
    }
    Some(Step::Probe { container: index, kind, attempt: *attempt })
}

/// Sandbox, volumes, then each container that has to run and does not.
fn setup(pod: &Pod, seen: &Observed, now: Millis, wake: &mut Wake) -> Step {
    if finished(pod, seen) {
        return Step::Stop { why: StopReason::Finished, message: String::new(), grace_ms: pod.grace_ms };
    }
    match &seen.sandbox {
        Sandbox::None => return Step::Sandbox,
        Sandbox::Failing(failing) => {
            wake.at(failing.backoff.retry_at);
            return if now >= failing.backoff.retry_at { Step::Sandbox } else { wake.wait() };
        }
        Sandbox::Ready { .. } => {}
        Sandbox::Removed => return wake.wait(),
    }
    match &seen.volumes {
        Volumes::None => return Step::Volumes,
        Volumes::Failing(failing) => {
            wake.at(failing.backoff.retry_at);
            return if now >= failing.backoff.retry_at { Step::Volumes } else { wake.wait() };
        }
        Volumes::Ready => {}
    }
    let apps_began = each(pod, seen).any(|(_, container, state)| container.role == Role::App && state.began);
    for (index, container, state) in each(pod, seen) {
        if let Some(step) = begin_container(pod, seen, index, now, wake) {
            return step;
        }
        let gate_open = match container.role {
            Role::Init => matches!(&state.run, Run::Exited(exit) if exit.code == 0),
            Role::Sidecar => state.ever_started,
            Role::App => true,
        };
        // As upstream: what comes after a container waits for its hook.
        let hooked = matches!(state.run, Run::Running { .. }) && state.post_start != PostStart::Done;
        if hooked || (!gate_open && !apps_began) {
            break;
        }
    }
    wake.wait()
}

/// Pull or start of a container that has to run; `None` when it runs, need not, or has to wait.
fn begin_container(pod: &Pod, seen: &Observed, index: usize, now: Millis, wake: &mut Wake) -> Option<Step> {
    let (container, state) = (&pod.containers[index], &seen.containers[index]);
    if !wanted(pod, container, state) {
        return None;
    }
    if matches!(state.run, Run::Exited(_)) && now < state.backoff.retry_at {
        wake.at(state.backoff.retry_at);
        return None;
    }
    match &state.image {
        Image::Unknown => return Some(Step::Pull { container: index }),
        Image::Failing(failing) => {
            wake.at(failing.backoff.retry_at);
            return (now >= failing.backoff.retry_at).then_some(Step::Pull { container: index });
        }
        Image::Present { .. } => {}
    }
    // No time brings a lease: the shell looks again when there is one.
    if seen.lacks_lease() {
        return None;
    }
    if let Some(failing) = &state.setup
        && now < failing.backoff.retry_at
    {
        wake.at(failing.backoff.retry_at);
        return None;
    }
    Some(Step::Start { container: index, attempt: state.next_attempt })
}

/// Whether a container that does not run has to be started.
fn wanted(pod: &Pod, container: &Container, state: &ContainerSeen) -> bool {
    match &state.run {
        Run::Never => true,
        Run::Running { .. } => false,
        Run::Exited(exit) => restarts(pod, container, exit.code),
    }
}

fn restarts(pod: &Pod, container: &Container, code: i32) -> bool {
    match (container.role, pod.restart_policy) {
        (Role::Sidecar, _) => true,
        (Role::Init, RestartPolicy::Never) => false,
        (Role::Init, _) | (Role::App, RestartPolicy::OnFailure) => code != 0,
        (Role::App, RestartPolicy::Always) => true,
        (Role::App, RestartPolicy::Never) => false,
    }
}

/// Whether nothing of the pod will be started again: its apps have ended for good, or an init container has failed for good.
fn finished(pod: &Pod, seen: &Observed) -> bool {
    let ended = |container: &Container, state: &ContainerSeen| matches!(&state.run, Run::Exited(exit) if !restarts(pod, container, exit.code));
    let init_failed = each(pod, seen).any(|(_, container, state)| {
        container.role == Role::Init
            && ended(container, state)
            && !matches!(&state.run, Run::Exited(exit) if exit.code == 0)
    });
    init_failed
        || each(pod, seen)
            .filter(|(_, container, _)| container.role == Role::App)
            .all(|(_, container, state)| ended(container, state))
}
