//! `Pod.status` of what has been seen: phase, conditions, container states, as upstream's kubelet words them.

use std::net::Ipv4Addr;

use coracle_base::Millis;
use coracle_manifests::time::rfc3339;
use serde_json::{Map, Value, json};

use crate::observed::{ContainerSeen, Exit, Failing, Image, Observed, Run, Sandbox, StopReason, Volumes};
use crate::pod::{Container, Pod, RestartPolicy, Role};

/// What the node adds to a pod's status.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    /// The node's address.
    pub host_ip: Ipv4Addr,
    /// The time.
    pub now: Millis,
}

/// The status. `previous` is the one reported before (or null): a condition that did not change keeps its time.
#[must_use]
pub fn pod_status(pod: &Pod, seen: &Observed, facts: Facts, previous: &Value) -> Value {
    let phase = phase(pod, seen);
    let mut status = json!({
        "phase": phase,
        "conditions": conditions(pod, seen, phase, facts.now, previous),
        "hostIP": facts.host_ip.to_string(),
        "hostIPs": [{"ip": facts.host_ip.to_string()}],
        "startTime": rfc3339(seen.accepted_at),
        "qosClass": pod.qos().as_str(),
        "containerStatuses": statuses(pod, seen, phase, |role| role == Role::App),
    });
    if pod.containers.iter().any(|container| container.role != Role::App) {
        status["initContainerStatuses"] = statuses(pod, seen, phase, |role| role != Role::App);
    }
    // An ended pod keeps the address it had, as upstream's does.
    let known = seen.ip().map(|ip| ip.to_string());
    if let Some(ip) = known.or_else(|| previous["podIP"].as_str().map(ToOwned::to_owned)) {
        status["podIP"] = json!(ip);
        status["podIPs"] = json!([{"ip": ip}]);
    }
    if let Some(stop) = &seen.stop {
        let reason = match stop.why {
            StopReason::DeadlineExceeded => "DeadlineExceeded",
            StopReason::Rejected => "Rejected",
            StopReason::Evicted => "Evicted",
            StopReason::Finished | StopReason::Deleted => "",
        };
        if !reason.is_empty() {
            status["reason"] = json!(reason);
            status["message"] = json!(stop.message);
        }
    }
    status
}

/// The status of an object that cannot be run as a pod at all.
#[must_use]
pub fn rejected(reason: &str, message: &str, facts: Facts) -> Value {
    json!({
        "phase": "Failed",
        "reason": reason,
        "message": message,
        "startTime": rfc3339(facts.now),
        "hostIP": facts.host_ip.to_string(),
    })
}

/// `Pending`, `Running`, `Succeeded`, `Failed` (upstream: kubelet's `getPhase`).
#[must_use]
pub fn phase(pod: &Pod, seen: &Observed) -> &'static str {
    if seen.stop.as_ref().is_some_and(|stop| {
        matches!(stop.why, StopReason::DeadlineExceeded | StopReason::Rejected | StopReason::Evicted)
    }) {
        return "Failed";
    }
    let pairs = || pod.containers.iter().zip(&seen.containers);
    let apps_began = pairs().any(|(container, state)| container.role == Role::App && state.run != Run::Never);
    for (_, state) in pairs().filter(|(container, _)| container.role == Role::Init) {
        match &state.run {
            Run::Exited(exit) if exit.code == 0 => {}
            Run::Exited(_) if pod.restart_policy == RestartPolicy::Never => return "Failed",
            _ if apps_began => {}
            _ => return "Pending",
        }
    }
    if pairs().any(|(container, state)| container.role == Role::Sidecar && !state.ever_started) && !apps_began {
        return "Pending";
    }
    let apps: Vec<&ContainerSeen> =
        pairs().filter(|(container, _)| container.role == Role::App).map(|(_, state)| state).collect();
    if apps.iter().any(|state| state.run == Run::Never && state.previous.is_none()) {
        return "Pending";
    }
    if apps.iter().any(|state| !matches!(state.run, Run::Exited(_))) {
        return "Running";
    }
    let all_zero = apps.iter().all(|state| matches!(&state.run, Run::Exited(exit) if exit.code == 0));
    match pod.restart_policy {
        RestartPolicy::Always => "Running",
        // Its sidecars may still be ending: the pod has ended when they have.
        _ if seen.any_running() => "Running",
        RestartPolicy::Never if !all_zero => "Failed",
        RestartPolicy::OnFailure if !all_zero => "Running",
        _ => "Succeeded",
    }
}

/// Whether the Ready condition holds.
#[must_use]
pub fn is_ready(pod: &Pod, seen: &Observed) -> bool {
    pod.containers.iter().zip(&seen.containers).all(|(container, state)| state.is_ready(container))
}

fn conditions(pod: &Pod, seen: &Observed, phase: &str, now: Millis, previous: &Value) -> Value {
    let names = |which: &dyn Fn(&Container, &ContainerSeen) -> bool| -> Vec<&str> {
        pod.containers
            .iter()
            .zip(&seen.containers)
            .filter(|(container, state)| which(container, state))
            .map(|(container, _)| container.name.as_str())
            .collect()
    };
    let incomplete = names(&|container, state| match container.role {
        Role::Init => !state.is_ready(container),
        Role::Sidecar => !state.ever_started,
        Role::App => false,
    });
    let unready = names(&|container, state| container.role != Role::Init && !state.is_ready(container));
    let ended = match phase {
        "Succeeded" => Some("PodCompleted"),
        "Failed" => Some("PodFailed"),
        _ => None,
    };
    let not_ready = match ended {
        Some(reason) => Some((reason, String::new())),
        None if unready.is_empty() && incomplete.is_empty() => None,
        None => Some(("ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" ")))),
    };
    let not_initialized = match ended {
        Some("PodCompleted") => None,
        _ if incomplete.is_empty() => None,
        _ => {
            Some(("ContainersNotInitialized", format!("containers with incomplete status: [{}]", incomplete.join(" "))))
        }
    };
    let sandbox = if matches!(seen.sandbox, Sandbox::Ready { .. }) { None } else { Some(("", String::new())) };
    let before = previous["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let condition = |kind: &str, missing: Option<(&str, String)>| {
        let status = if missing.is_none() { "True" } else { "False" };
        let same = before.iter().find(|old| old["type"] == kind && old["status"] == status);
        let since = same.map_or_else(|| json!(rfc3339(now)), |old| old["lastTransitionTime"].clone());
        let mut condition = json!({"type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": since});
        if let Some((reason, message)) = missing {
            for (field, text) in [("reason", reason.to_owned()), ("message", message)] {
                if !text.is_empty() {
                    condition[field] = json!(text);
                }
            }
        }
        condition
    };
    let mut conditions = vec![
        condition("PodReadyToStartContainers", sandbox),
        condition("Initialized", not_initialized),
        condition("Ready", not_ready.clone()),
        condition("ContainersReady", not_ready),
        condition("PodScheduled", None),
    ];
    // What others have put there stays.
    let ours = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    conditions.extend(before.iter().filter(|old| !ours.iter().any(|kind| old["type"] == *kind)).cloned());
    Value::Array(conditions)
}

fn statuses(pod: &Pod, seen: &Observed, phase: &str, which: impl Fn(Role) -> bool) -> Value {
    let statuses: Vec<Value> = pod
        .containers
        .iter()
        .zip(&seen.containers)
        .enumerate()
        .filter(|(_, (container, _))| which(container.role))
        .map(|(index, (container, state))| container_status(pod, seen, phase, index, container, state))
        .collect();
    Value::Array(statuses)
}

fn container_status(
    pod: &Pod,
    seen: &Observed,
    phase: &str,
    index: usize,
    container: &Container,
    state: &ContainerSeen,
) -> Value {
    let terminated = |exit: &Exit| json!({"terminated": terminated(pod, container, exit)});
    let (now, last) = match &state.run {
        Run::Running { started_at, .. } => {
            (json!({"running": {"startedAt": rfc3339(*started_at)}}), state.previous.as_ref().map(terminated))
        }
        Run::Never => (waiting(pod, seen, index, state), state.previous.as_ref().map(terminated)),
        Run::Exited(exit) => match crash_loop(pod, seen, phase, container, state, exit) {
            Some(waiting) => (waiting, Some(terminated(exit))),
            None => (terminated(exit), state.previous.as_ref().map(terminated)),
        },
    };
    let running = matches!(state.run, Run::Running { .. });
    let mut status = json!({
        "name": container.name,
        "state": now,
        "lastState": last.unwrap_or_else(|| json!({})),
        "ready": state.is_ready(container),
        "restartCount": state.restarts,
        "image": container.image,
        "imageID": "",
        "started": running && state.started,
    });
    if let Image::Present { digest, name, .. } = &state.image {
        status["image"] = json!(name);
        status["imageID"] = json!(digest);
    }
    let attempt = match &state.run {
        Run::Running { attempt, .. } => Some(*attempt),
        Run::Exited(exit) => Some(exit.attempt),
        Run::Never => state.previous.as_ref().map(|exit| exit.attempt),
    };
    if let Some(attempt) = attempt {
        status["containerID"] = json!(container_id(pod, container, attempt));
    }
    status
}

/// `coracle://UID/NAME/RUN`.
#[must_use]
pub fn container_id(pod: &Pod, container: &Container, attempt: u32) -> String {
    format!("coracle://{}/{}/{attempt}", pod.uid, container.name)
}

fn terminated(pod: &Pod, container: &Container, exit: &Exit) -> Value {
    let mut value = Map::new();
    value.insert("exitCode".to_owned(), json!(exit.code));
    if let Some(signal) = exit.signal {
        value.insert("signal".to_owned(), json!(signal));
    }
    value.insert("reason".to_owned(), json!(exit.reason));
    if !exit.message.is_empty() {
        value.insert("message".to_owned(), json!(exit.message));
    }
    value.insert("startedAt".to_owned(), json!(rfc3339(exit.started_at)));
    value.insert("finishedAt".to_owned(), json!(rfc3339(exit.finished_at)));
    value.insert("containerID".to_owned(), json!(container_id(pod, container, exit.attempt)));
    Value::Object(value)
}

fn wait_for(reason: &str, message: &str) -> Value {
    if message.is_empty() {
        json!({"waiting": {"reason": reason}})
    } else {
        json!({"waiting": {"reason": reason, "message": message}})
    }
}

/// What a fenced pod says while its node holds no lease.
fn no_lease() -> Value {
    let message = "the pod is fenced (annotation coracle.dev/fenced): it is started when this node holds a lease from the \
                   cluster's leader; hint: `coracle status` says whether this node reaches the servers";
    wait_for("WaitingForLease", message)
}

/// Why a container that never ran does not run yet, the nearest cause first.
fn waiting(pod: &Pod, seen: &Observed, index: usize, state: &ContainerSeen) -> Value {
    if let Some(failing) = &state.setup
        && !seen.lacks_lease()
    {
        return wait_for(&failing.reason, &failing.message);
    }
    if let Image::Failing(failing) = &state.image {
        return wait_for(pull_reason(failing), &failing.message);
    }
    let held_by_init =
        pod.containers[..index].iter().zip(&seen.containers).any(|(container, before)| match container.role {
            Role::Init => !before.is_ready(container),
            Role::Sidecar => !before.ever_started,
            Role::App => false,
        });
    let message = match (&seen.sandbox, &seen.volumes) {
        (Sandbox::Failing(failing), _) | (_, Volumes::Failing(failing)) => failing.message.as_str(),
        _ => "",
    };
    if seen.lacks_lease() && seen.stop.is_none() && !held_by_init && message.is_empty() {
        return no_lease();
    }
    wait_for(if held_by_init { "PodInitializing" } else { "ContainerCreating" }, message)
}

/// The first failure is told as it is; from the second on the wait is what matters.
fn pull_reason(failing: &Failing) -> &str {
    if failing.reason == "ErrImagePull" && failing.backoff.failures > 1 { "ImagePullBackOff" } else { &failing.reason }
}

/// An ended container that will be started again after a wait.
fn crash_loop(
    pod: &Pod,
    seen: &Observed,
    phase: &str,
    container: &Container,
    state: &ContainerSeen,
    exit: &Exit,
) -> Option<Value> {
    let again = match (container.role, pod.restart_policy) {
        (Role::Sidecar, _) | (Role::App, RestartPolicy::Always) => true,
        (_, RestartPolicy::Never) => false,
        (_, _) => exit.code != 0,
    };
    if !again || seen.stop.is_some() || matches!(phase, "Succeeded" | "Failed") {
        return None;
    }
    if seen.lacks_lease() {
        return Some(no_lease());
    }
    if let Some(failing) = &state.setup {
        return Some(wait_for(&failing.reason, &failing.message));
    }
    // What never began to run says why, not that it will be tried again.
    if matches!(exit.reason.as_str(), "StartError" | "ContainerCannotRun") {
        return Some(wait_for("RunContainerError", &exit.message));
    }
    let wait_ms = state.backoff.retry_at.saturating_sub(exit.finished_at);
    if wait_ms < 1000 {
        return None;
    }
    let message = format!(
        "back-off {}s restarting failed container={} pod={}_{}({})",
        wait_ms / 1000,
        container.name,
        pod.name,
        pod.namespace,
        pod.uid
    );
    Some(wait_for("CrashLoopBackOff", &message))
}

/// One line on what the pod does or waits for: for the status page.
#[must_use]
pub fn summary(pod: &Pod, seen: &Observed) -> String {
    if let Some(stop) = &seen.stop {
        return match (stop.why, seen.torn_down) {
            (StopReason::Deleted, _) => "Terminating".to_owned(),
            (StopReason::DeadlineExceeded, _) => "DeadlineExceeded".to_owned(),
            (StopReason::Rejected, _) => "Rejected".to_owned(),
            (StopReason::Evicted, _) => "Evicted".to_owned(),
            (StopReason::Finished, true) => phase(pod, seen).to_owned(),
            (StopReason::Finished, false) => "Completing".to_owned(),
        };
    }
    let phase = phase(pod, seen);
    for (index, (container, state)) in pod.containers.iter().zip(&seen.containers).enumerate() {
        let status = container_status(pod, seen, phase, index, container, state);
        if let Some(reason) = status["state"]["waiting"]["reason"].as_str() {
            return reason.to_owned();
        }
    }
    phase.to_owned()
}
