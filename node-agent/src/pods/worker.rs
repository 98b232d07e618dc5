//! One task per pod: asks `lifecycle::next` what to do, does it, records what came of it, reports.
//!
//! Work that takes time runs in tasks of its own and comes back as an `Outcome`, so that a deletion is heard during a pull
//! and a liveness probe during a pre-stop hook. Nothing is decided here.

use std::hash::{Hash as _, Hasher as _};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use coracle_base::Millis;
use coracle_lifecycle::observed::{ErrorClass, Exit, Image, Observed, Run, Sandbox, StopReason, Volumes};
use coracle_lifecycle::pod::{Container, Deletion, Part, Pod, VolumeSource};
use coracle_lifecycle::probe::ProbeKind;
use coracle_lifecycle::{Step, next, oci, status};
use coracle_protocol::v1::{PodGone, PodStatus};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::board::{Board, Glance};
use super::events::Limiter;
use super::node::{Node, remove_tree};
use super::record::Record;
use super::steps::{self, Job, Made, Stage};
use crate::facilities::{Failure, RunState, SandboxEvent};
use crate::ledger::State;
use crate::session::{Leases, LetGo};
use crate::{logs, probes, volumes};

/// Outcomes on their way back: a pod has a handful of probes and one step at a time.
const OUTCOMES: usize = 32;
/// How often volumes with a limit are measured.
const MEASURE_EVERY: Duration = Duration::from_secs(10);
/// How long the runtime may take to pass a signal on.
const SIGNAL_WITHIN: Duration = Duration::from_secs(5);
/// A day: as good as no limit, and a sum with it is still a time.
const POST_START_WITHIN: Duration = Duration::from_secs(24 * 3600);
/// Why a container of a fenced pod ended.
const FENCED: &str = "FencedLeaseExpired";
const FENCED_MESSAGE: &str =
    "killed because the node's lease ran out: the pod is fenced, and another node may run it now";
/// Last words of a container, as upstream.
const MESSAGE_BYTES: usize = 4096;

/// What is wanted of a pod. The manager sends the latest; the worker never misses it.
#[derive(Debug, Clone)]
pub struct Order {
    /// The object as the servers hold it (or held it last).
    pub object: Arc<Value>,
    /// It is wanted no more, though nobody deleted it: the grace it has.
    pub unwanted: Option<Millis>,
}

/// What came of work that ran beside the worker.
enum Outcome {
    Made {
        turn: u64,
        step: Step,
        result: Box<Result<Made, Failure>>,
        took: Duration,
    },
    Probed {
        container: usize,
        kind: ProbeKind,
        attempt: u32,
        result: Result<(), String>,
    },
    PostStarted {
        container: usize,
        attempt: u32,
        result: Result<(), String>,
    },
    PreStopped {
        container: usize,
        attempt: u32,
        result: Result<(), String>,
    },
    /// A volume holds more than it may.
    Overfull(String),
}

/// What woke the worker.
enum Woken {
    Order(bool),
    Outcome(Option<Box<Outcome>>),
    Sandbox(Option<SandboxEvent>),
    State,
    Measure,
    Lease,
    Time,
}

/// A step under way.
struct Busy {
    turn: u64,
    pull: bool,
    work: AbortHandle,
}

pub(super) struct Worker {
    node: Arc<Node>,
    board: Arc<Board>,
    pod: Arc<Pod>,
    object: Arc<Value>,
    orders: watch::Receiver<Order>,
    seen: Observed,
    outcomes: (mpsc::Sender<Outcome>, mpsc::Receiver<Outcome>),
    sandbox: Option<mpsc::Receiver<SandboxEvent>>,
    /// The step under way.
    busy: Option<Busy>,
    turns: u64,
    state: watch::Receiver<State>,
    serving: watch::Receiver<Arc<std::collections::HashSet<Ipv4Addr>>>,
    let_go: watch::Receiver<LetGo>,
    /// The servers were told that it is leaving.
    says_it_leaves: bool,
    lease: watch::Receiver<Leases>,
    /// What renews the lease of a fenced pod.
    keeper: JoinSet<()>,
    /// Revisions of the objects the pod reads, as last written into its volumes.
    read: Vec<Option<u64>>,
    told: Value,
    saved: Option<(Arc<Value>, Observed)>,
    limiter: Limiter,
    /// Volumes are measured when it ticks.
    measure: Option<tokio::time::Interval>,
}

impl Worker {
    /// A worker for a pod that may have run under an earlier agent.
    pub(super) fn new(node: Arc<Node>, board: Arc<Board>, pod: Pod, orders: watch::Receiver<Order>) -> Self {
        let object = orders.borrow().object.clone();
        let now = node.clock.now_ms();
        let record = Record::load(&node.paths.pod_run(&pod.uid)).filter(|record| record.seen.fits(&pod));
        let seen = record.map_or_else(|| Observed::new(&pod, now), |record| record.seen);
        let mut worker = Self {
            told: object["status"].clone(),
            state: node.state.clone(),
            serving: node.serving.clone(),
            let_go: node.let_go.clone(),
            says_it_leaves: false,
            lease: node.lease.clone(),
            keeper: JoinSet::new(),
            outcomes: mpsc::channel(OUTCOMES),
            sandbox: None,
            busy: None,
            turns: 0,
            read: Vec::new(),
            saved: None,
            limiter: Limiter::default(),
            measure: volumes::has_limits(&pod).then(|| {
                let mut ticks = tokio::time::interval(MEASURE_EVERY);
                ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                ticks
            }),
            pod: Arc::new(pod),
            node,
            board,
            object,
            orders,
            seen,
        };
        worker.adopt(now);
        worker
    }

    /// Brings the record in line with what runs.
    fn adopt(&mut self, now: Millis) {
        let uid = self.pod.uid.clone();
        let Some(states) = self.node.containers.states(&uid) else {
            if matches!(self.seen.sandbox, Sandbox::Ready { .. }) {
                let pod = self.pod.clone();
                self.seen.sandbox_lost(&pod, now);
            }
            return;
        };
        if !matches!(self.seen.sandbox, Sandbox::Ready { .. }) {
            // The agent ended between making it and noting it: the step finds it made.
            return;
        }
        let running = states
            .iter()
            .filter(|run| run.ended.is_none())
            .map(|run| (run.container.clone(), (run.attempt, run.pid, run.started_at)))
            .collect();
        let exited: Vec<(String, Exit)> =
            states.iter().filter_map(|run| Some((run.container.clone(), self.exit_of(run)?))).collect();
        let pod = self.pod.clone();
        self.seen.adopt(&pod, &running, &exited, now);
        self.sandbox = self.node.containers.events(&uid);
        self.read = self.revisions();
    }

    /// Runs until nothing of the pod is left, or the worker is dropped with the agent.
    pub(super) async fn run(mut self) -> String {
        self.hear();
        loop {
            let now = self.node.clock.now_ms();
            if self.seen.fenced {
                self.lease.mark_unchanged();
                self.seen.lease(self.node.leased(&self.pod.uid), now);
            }
            let step = next(&self.pod, &self.seen, now);
            match step {
                Step::Gone => break,
                Step::Wait { until } => {
                    self.publish();
                    let woken = self.wait(until).await;
                    self.woken(woken).await;
                }
                step => self.take(step, now).await,
            }
        }
        self.bury();
        self.pod.uid.clone()
    }

    async fn wait(&mut self, until: Option<Millis>) -> Woken {
        let clock = self.node.clock;
        let time = async {
            match until {
                Some(until) => tokio::time::sleep_until(clock.instant(until)).await,
                None => std::future::pending().await,
            }
        };
        let sandbox = async {
            match &mut self.sandbox {
                Some(events) => events.recv().await,
                None => std::future::pending().await,
            }
        };
        let measure = async {
            match &mut self.measure {
                Some(ticks) => ticks.tick().await,
                None => std::future::pending().await,
            }
        };
        let waits_to_leave = self.seen.stop.as_ref().is_some_and(|stop| !stop.released);
        let let_go = async {
            // Without a sender nobody says it.
            if !waits_to_leave || self.let_go.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let waits_for_lease = self.seen.lacks_lease() && self.seen.stop.is_none();
        let lease = async {
            // Without a sender there will be none.
            if !waits_for_lease || self.lease.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            // All of them are cancel safe: watches keep their mark, channels their items.
            changed = self.orders.changed() => Woken::Order(changed.is_ok()),
            outcome = self.outcomes.1.recv() => Woken::Outcome(outcome.map(Box::new)),
            event = sandbox => Woken::Sandbox(event),
            changed = self.state.changed() => if changed.is_ok() { Woken::State } else { Woken::Time },
            changed = self.serving.changed() => if changed.is_ok() { Woken::State } else { Woken::Time },
            () = let_go => Woken::State,
            _ = measure => Woken::Measure,
            () = lease => Woken::Lease,
            () = time => Woken::Time,
        }
    }

    async fn woken(&mut self, woken: Woken) {
        match woken {
            Woken::Order(true) => {
                self.hear();
                // Files may say its labels.
                self.state_changed().await;
            }
            // The manager is gone: so is the agent.
            Woken::Order(false) => std::future::pending().await,
            Woken::Outcome(Some(outcome)) => self.outcome(*outcome),
            Woken::Sandbox(Some(SandboxEvent::Ended(run))) => self.ended(run),
            Woken::Sandbox(Some(SandboxEvent::Lost) | None) => self.lost().await,
            Woken::State => self.state_changed().await,
            Woken::Measure => self.measure(),
            Woken::Outcome(None) | Woken::Lease | Woken::Time => {}
        }
    }

    /// Takes the latest order.
    fn hear(&mut self) {
        let order = self.orders.borrow_and_update().clone();
        if let Ok(pod) = Pod::parse(&order.object)
            && pod.uid == self.pod.uid
            && self.seen.fits(&pod)
        {
            self.pod = Arc::new(pod);
            self.object = order.object;
        }
        // Once fenced, its sandbox stays so, whatever becomes of the annotation.
        self.seen.fenced |= self.pod.fenced;
        if self.seen.fenced && self.keeper.is_empty() {
            self.keeper.spawn(super::lease::keep(self.node.clone(), self.pod.uid.clone()));
        }
        if let Some(grace_ms) = order.unwanted {
            let mut pod = (*self.pod).clone();
            let grace_ms = pod.deletion.map_or(grace_ms, |deletion| deletion.grace_ms.min(grace_ms));
            pod.deletion = Some(Deletion { grace_ms });
            self.pod = Arc::new(pod);
        }
    }

    async fn take(&mut self, step: Step, now: Millis) {
        match step {
            Step::Sandbox => self.begin(step, Stage::Sandbox, 0, 0),
            Step::Volumes => self.begin(step, Stage::Volumes, 0, 0),
            Step::Pull { container } => {
                let image = &self.pod.containers[container].image;
                tracing::debug!(pod = self.pod.name, namespace = self.pod.namespace, image, "wants an image");
                self.begin(step, Stage::Image, container, 0);
            }
            Step::Start { container, attempt } => {
                self.forget_run(container).await;
                self.begin(step, Stage::Start, container, attempt);
            }
            Step::Probe { container, kind, attempt } => self.probe(container, kind, attempt),
            Step::PostStart { container, attempt } => self.post_start(container, attempt),
            Step::PreStop { container, attempt, until } => self.pre_stop(container, attempt, until, now),
            Step::Signal { container } => {
                let signal = self.stop_signal(container);
                self.kill(container, signal).await;
                self.seen.containers[container].signalled(self.node.clock.now_ms());
            }
            Step::Kill { container } => {
                self.kill(container, 9).await;
                self.seen.containers[container].killed(self.node.clock.now_ms());
            }
            Step::Stop { why, message, grace_ms } => self.stop(why, message, grace_ms, now),
            Step::TearDown => self.tear_down().await,
            Step::Gone | Step::Wait { .. } => {}
        }
    }

    fn job(&self, container: usize, attempt: u32) -> Job {
        let digest = self.seen.containers.get(container).and_then(|seen| match &seen.image {
            Image::Present { digest, .. } => Some(digest.clone()),
            _ => None,
        });
        Job {
            node: self.node.clone(),
            pod: self.pod.clone(),
            container,
            attempt,
            fenced: self.seen.fenced,
            ip: self.seen.ip(),
            digest,
            state: self.state.borrow().clone(),
        }
    }

    /// Begins work that makes something.
    fn begin(&mut self, step: Step, stage: Stage, container: usize, attempt: u32) {
        self.turns += 1;
        let (turn, mut job, back) = (self.turns, self.job(container, attempt), self.outcomes.0.clone());
        if stage == Stage::Volumes {
            self.read = self.revisions();
        }
        let work = tokio::spawn(async move {
            let began = tokio::time::Instant::now();
            let result = Box::new(steps::make(stage, &mut job).await);
            let _ = back.send(Outcome::Made { turn, step, result, took: began.elapsed() }).await;
        });
        self.busy = Some(Busy { turn, pull: stage == Stage::Image, work: work.abort_handle() });
        self.seen.busy = true;
    }

    fn stop(&mut self, why: StopReason, message: String, grace_ms: Millis, now: Millis) {
        self.seen.stop(why, message.clone(), grace_ms, now);
        // A pull can be left at any point; the other steps are short and leave what an undo has to find.
        if self.busy.as_ref().is_some_and(|busy| busy.pull) {
            self.leave_work();
        }
        if why == StopReason::DeadlineExceeded {
            self.say(true, "DeadlineExceeded", message);
        }
        let running: Vec<String> = self.running().map(|container| container.name.clone()).collect();
        for name in running {
            self.say(false, "Killing", format!("Stopping container {name}"));
        }
        self.release();
    }

    fn leave_work(&mut self) {
        if let Some(busy) = self.busy.take() {
            busy.work.abort();
            self.seen.busy = false;
        }
    }

    fn running(&self) -> impl Iterator<Item = &Container> {
        let pairs = self.pod.containers.iter().zip(&self.seen.containers);
        pairs.filter(|(_, seen)| matches!(seen.run, Run::Running { .. })).map(|(container, _)| container)
    }

    fn stop_signal(&self, container: usize) -> i32 {
        let image = match &self.seen.containers[container].image {
            Image::Present { stop_signal, .. } => stop_signal.as_deref(),
            _ => None,
        };
        oci::stop_signal(&self.pod.containers[container], image)
    }

    async fn kill(&mut self, container: usize, signal: i32) {
        let name = self.pod.containers[container].name.clone();
        tracing::debug!(pod = self.pod.name, namespace = self.pod.namespace, container = name, signal, "signals");
        let sent = tokio::time::timeout(SIGNAL_WITHIN, self.node.containers.kill(&self.pod.uid, &name, signal)).await;
        // A monitor that does not answer must not keep the pod's other clocks from running; a kill is sent again.
        let reason = match sent {
            Ok(Ok(())) => return,
            Ok(Err(failure)) => failure.message,
            Err(_) => "the pod's monitor does not answer".to_owned(),
        };
        tracing::warn!(
            pod = self.pod.name,
            namespace = self.pod.namespace,
            container = name,
            reason,
            "a signal was not sent"
        );
    }

    /// What the runtime still knows of the container's last run would stand in the way of the next.
    async fn forget_run(&mut self, container: usize) {
        if matches!(self.seen.containers[container].run, Run::Exited(_)) {
            let name = &self.pod.containers[container].name;
            if let Err(failure) = self.node.containers.forget(&self.pod.uid, name).await {
                tracing::debug!(
                    pod = self.pod.name,
                    container = name,
                    reason = failure.message,
                    "an ended run was not forgotten"
                );
            }
        }
    }

    fn target(&self) -> probes::Target {
        probes::Target {
            pod: self.pod.uid.clone(),
            ip: self.seen.ip().unwrap_or(Ipv4Addr::UNSPECIFIED),
            containers: self.node.containers.clone(),
            paths: self.node.paths.clone(),
        }
    }

    fn probe(&mut self, container: usize, kind: ProbeKind, attempt: u32) {
        self.seen.containers[container].probe_begun(kind);
        let spec = &self.pod.containers[container];
        let probe = match kind {
            ProbeKind::Startup => &spec.startup,
            ProbeKind::Readiness => &spec.readiness,
            ProbeKind::Liveness => &spec.liveness,
        };
        let Some(probe) = probe.clone() else { return };
        let (target, pod, back) = (self.target(), self.pod.clone(), self.outcomes.0.clone());
        tokio::spawn(async move {
            let within = Duration::from_millis(probe.timeout_ms);
            let result = probes::run(&target, &pod.containers[container], &probe.handler, within).await;
            let _ = back.send(Outcome::Probed { container, kind, attempt, result }).await;
        });
    }

    /// Nothing but its end bounds this hook, as upstream: a container that waits for it is not ready.
    fn post_start(&mut self, container: usize, attempt: u32) {
        self.seen.containers[container].post_start_begun();
        let Some(handler) = self.pod.containers[container].post_start.clone() else { return };
        let (target, pod, back) = (self.target(), self.pod.clone(), self.outcomes.0.clone());
        tokio::spawn(async move {
            let result = probes::run(&target, &pod.containers[container], &handler, POST_START_WITHIN).await;
            let _ = back.send(Outcome::PostStarted { container, attempt, result }).await;
        });
    }

    fn pre_stop(&mut self, container: usize, attempt: u32, until: Millis, now: Millis) {
        self.seen.containers[container].pre_stop_begun();
        let Some(handler) = self.pod.containers[container].pre_stop.clone() else { return };
        let (target, pod, back) = (self.target(), self.pod.clone(), self.outcomes.0.clone());
        let within = Duration::from_millis(until.saturating_sub(now));
        tokio::spawn(async move {
            let result = probes::run(&target, &pod.containers[container], &handler, within).await;
            let _ = back.send(Outcome::PreStopped { container, attempt, result }).await;
        });
    }

    fn measure(&self) {
        if self.seen.stop.is_some() || self.seen.volumes != Volumes::Ready {
            return;
        }
        let (pod, back) = (self.pod.clone(), self.outcomes.0.clone());
        let dirs = self.node.paths.volumes(&pod.uid);
        tokio::task::spawn_blocking(move || {
            if let Some(words) = volumes::over_limit(&pod, &dirs) {
                let _ = back.blocking_send(Outcome::Overfull(words));
            }
        });
    }

    fn outcome(&mut self, outcome: Outcome) {
        let now = self.node.clock.now_ms();
        match outcome {
            Outcome::Made { turn, step, result, took } => {
                if self.busy.as_ref().is_none_or(|busy| busy.turn != turn) {
                    return;
                }
                self.busy = None;
                self.seen.busy = false;
                self.made(&step, *result, took, now);
            }
            Outcome::Overfull(message) => {
                if self.seen.stop.is_none() {
                    self.say(true, "Evicted", message.clone());
                    self.stop(StopReason::Evicted, message, self.pod.grace_ms, now);
                }
            }
            Outcome::Probed { container, kind, attempt, result } => {
                self.probed(container, kind, attempt, &result, now);
            }
            Outcome::PostStarted { container, attempt, result } => {
                let spec = &self.pod.containers[container];
                let seen = &mut self.seen.containers[container];
                seen.post_start_done(spec, attempt, &result, self.pod.grace_ms, now);
                let message = seen.condemned.as_ref().map(|condemned| condemned.message.clone());
                if let Err(reason) = result {
                    let name = spec.name.clone();
                    self.say(
                        true,
                        "FailedPostStartHook",
                        format!("PostStartHook of container {name} failed: {reason}"),
                    );
                    if let Some(message) = message {
                        self.say(false, "Killing", message);
                    }
                }
            }
            Outcome::PreStopped { container, attempt, result } => {
                self.seen.containers[container].pre_stop_done(attempt);
                if let Err(reason) = result {
                    let name = self.pod.containers[container].name.clone();
                    self.say(true, "FailedPreStopHook", format!("PreStopHook of container {name} failed: {reason}"));
                }
            }
        }
    }

    fn made(&mut self, step: &Step, result: Result<Made, Failure>, took: Duration, now: Millis) {
        match (step, result) {
            (Step::Sandbox, Ok(Made::Address(ip))) => {
                self.seen.sandbox_ready(ip);
                self.sandbox = self.node.containers.events(&self.pod.uid);
            }
            (Step::Volumes, Ok(_)) => self.seen.volumes_ready(),
            (Step::Pull { container }, Ok(Made::Image { image, pulled })) => {
                let name = self.pod.containers[*container].image.clone();
                let words = if pulled {
                    format!("Successfully pulled image \"{name}\" in {}ms", took.as_millis())
                } else {
                    format!("Container image \"{name}\" is present on this machine")
                };
                self.say(false, "Pulled", words);
                let image = *image;
                self.seen.containers[*container].image_present(image.digest, image.name, image.config.stop_signal);
            }
            (Step::Start { container, attempt }, Ok(Made::Started(started))) => {
                self.started(*container, *attempt, started.pid, started.at);
            }
            (step, Ok(made)) => tracing::error!(?step, ?made, "a step made something else"),
            (step, Err(failure)) => self.failed(step, failure, now),
        }
    }

    fn started(&mut self, container: usize, attempt: u32, pid: u32, at: Millis) {
        let pod = self.pod.clone();
        let spec = &pod.containers[container];
        self.seen.containers[container].running(spec, attempt, pid, at);
        self.say(false, "Started", format!("Started container {}", spec.name));
        // A short life may be over before its start was recorded: its end was told to nobody then.
        let states = self.node.containers.states(&pod.uid).unwrap_or_default();
        for run in
            states.into_iter().filter(|run| run.container == spec.name && run.attempt == attempt && run.ended.is_some())
        {
            self.ended(run);
        }
    }

    fn failed(&mut self, step: &Step, failure: Failure, now: Millis) {
        tracing::info!(
            pod = self.pod.name,
            namespace = self.pod.namespace,
            ?step,
            reason = failure.reason,
            message = failure.message,
            "a step failed"
        );
        let Failure { reason, message, class } = failure;
        if class == ErrorClass::Reject {
            self.say(true, reason, message.clone());
            self.seen.stop(StopReason::Rejected, message, 0, now);
            return;
        }
        match *step {
            Step::Sandbox => {
                self.say(true, "FailedCreatePodSandBox", format!("Failed to create pod sandbox: {message}"));
                self.seen.sandbox_failed(message, now);
            }
            Step::Volumes => {
                self.say(true, "FailedMount", message.clone());
                self.seen.volumes_failed(message, now);
            }
            Step::Pull { container } => {
                let image = self.pod.containers[container].image.clone();
                self.say(true, "Failed", format!("Failed to pull image \"{image}\": {message}"));
                let words = format!("Back-off pulling image \"{image}\": {message}");
                let again = matches!(self.seen.containers[container].image, Image::Failing(_));
                let told = if again && reason == "ErrImagePull" { words } else { message };
                self.seen.containers[container].image_failed(reason, told, now);
            }
            Step::Start { container, attempt } => {
                self.say(true, "Failed", format!("Error: {message}"));
                if class == ErrorClass::Retry {
                    self.seen.containers[container].setup_failed(reason, message, now);
                    return;
                }
                // Upstream's codes: what could not be executed 127, what could not be made 128.
                let code = if reason == "ContainerCannotRun" { 127 } else { 128 };
                let exit = Exit {
                    code,
                    signal: None,
                    reason: reason.to_owned(),
                    message,
                    started_at: now,
                    finished_at: now,
                    attempt,
                };
                self.seen.containers[container].exited(exit, now);
            }
            _ => {}
        }
    }

    fn probed(&mut self, container: usize, kind: ProbeKind, attempt: u32, result: &Result<(), String>, now: Millis) {
        let pod = self.pod.clone();
        let spec = &pod.containers[container];
        let seen = &mut self.seen.containers[container];
        let condemned = seen.condemned.is_some();
        seen.probed(spec, kind, attempt, result, pod.grace_ms, now);
        let early = kind == ProbeKind::Readiness && seen.readiness.verdict.is_none();
        let now_condemned = seen.condemned.clone().filter(|_| !condemned);
        if let Err(reason) = result
            && !early
            && self.seen.stop.is_none()
        {
            self.say(true, "Unhealthy", format!("{} probe failed: {reason}", kind.as_str()));
        }
        if let Some(condemned) = now_condemned {
            self.say(false, "Killing", condemned.message);
        }
    }

    /// A run ended by itself.
    fn ended(&mut self, run: RunState) {
        let Some(container) = self.pod.containers.iter().position(|container| container.name == run.container) else {
            return;
        };
        let current =
            matches!(self.seen.containers[container].run, Run::Running { attempt, .. } if attempt == run.attempt);
        if !current {
            // Recorded already, or its start is still on its way back and looks for its end itself.
            return;
        }
        let Some(exit) = self.exit_of(&run) else { return };
        tracing::info!(
            pod = self.pod.name,
            namespace = self.pod.namespace,
            container = run.container,
            code = exit.code,
            reason = exit.reason,
            "a container ended"
        );
        let (oom, fenced, now) = (exit.reason == "OOMKilled", exit.reason == FENCED, self.node.clock.now_ms());
        self.seen.containers[container].exited(exit, now);
        let spec = &self.pod.containers[container];
        if oom {
            let limit = spec.resources_tree["limits"]["memory"].as_str().unwrap_or("of the node").to_owned();
            let words = format!("Container {} was killed: it used more memory than its limit {limit}", spec.name);
            self.say(true, "OOMKilling", words);
        }
        if fenced {
            self.say(true, FENCED, format!("Container {}: {FENCED_MESSAGE}", run.container));
        }
        if self.seen.stop.is_none() && self.seen.containers[container].backoff.retry_at > now {
            let words = format!(
                "Back-off restarting failed container {} in pod {}_{}({})",
                self.pod.containers[container].name, self.pod.name, self.pod.namespace, self.pod.uid
            );
            self.say(true, "BackOff", words);
        }
    }

    /// How a run ended, with its last words.
    fn exit_of(&self, run: &RunState) -> Option<Exit> {
        let ended = run.ended?;
        let container = self.pod.containers.iter().find(|container| container.name == run.container)?;
        let reason = match (ended.fenced, ended.oom, ended.code) {
            (true, ..) => FENCED,
            (_, true, _) => "OOMKilled",
            (_, _, 0) => "Completed",
            _ => "Error",
        };
        let path = self.node.paths.message(&self.pod.uid, &container.name, run.attempt);
        let mut message = read_start(&path, MESSAGE_BYTES);
        if ended.fenced {
            FENCED_MESSAGE.clone_into(&mut message);
        }
        if message.is_empty() && container.message_from_log && ended.code != 0 {
            let pod = &self.pod;
            let dir = logs::dir(&self.node.paths.logs(), &pod.namespace, &pod.name, &pod.uid, &container.name);
            message = logs::last_words(&dir, run.attempt, 80, 2048);
        }
        Some(Exit {
            code: ended.code,
            signal: ended.signal,
            reason: reason.to_owned(),
            message,
            started_at: run.started_at,
            finished_at: ended.at,
            attempt: run.attempt,
        })
    }

    /// The sandbox is gone though nobody asked for it.
    async fn lost(&mut self) {
        self.sandbox = None;
        if self.seen.torn_down {
            return;
        }
        self.say(true, "SandboxChanged", "The pod's monitor is gone; the pod will be started anew".to_owned());
        self.leave_work();
        for problem in steps::undo_sandbox(&self.job(0, 0)).await {
            tracing::warn!(
                pod = self.pod.name,
                namespace = self.pod.namespace,
                problem,
                "a lost sandbox left something behind"
            );
        }
        let pod = self.pod.clone();
        self.seen.sandbox_lost(&pod, self.node.clock.now_ms());
        if !self.seen.fenced {
            self.keeper.shutdown().await;
        }
    }

    /// Revisions of the objects the pod reads; where files say its own labels, of those.
    fn revisions(&self) -> Vec<Option<u64>> {
        let state = self.state.borrow();
        let revision =
            |resource: &str, name: &str| state.get(resource, &self.pod.namespace, name).map(|held| held.revision);
        let mut all: Vec<_> = referenced(&self.pod).iter().map(|(resource, name)| revision(resource, name)).collect();
        if parts(&self.pod).any(|part| matches!(part, Part::Fields(_))) {
            let mut hasher = std::hash::DefaultHasher::new();
            (&self.pod.labels, &self.pod.annotations).hash(&mut hasher);
            all.push(Some(hasher.finish()));
        }
        all
    }

    async fn state_changed(&mut self) {
        self.release();
        let revisions = self.revisions();
        if revisions == self.read || self.seen.stop.is_some() {
            return;
        }
        self.read = revisions;
        self.seen.hurry(self.node.clock.now_ms());
        if self.seen.volumes != Volumes::Ready {
            return;
        }
        let (pod, state) = (self.pod.clone(), self.state.borrow().clone());
        let dirs = self.node.paths.volumes(&pod.uid);
        let (facts, stamp) = (self.node.facts(Ipv4Addr::UNSPECIFIED), self.node.clock.now_ms().to_string());
        let problems = tokio::task::spawn_blocking(move || volumes::refresh(&pod, &dirs, &state, facts, &stamp)).await;
        for problem in problems.unwrap_or_default() {
            self.say(true, "FailedMount", coracle_base::one_line(&problem));
        }
    }

    /// Notes when no Service sends new connections to a pod that is being stopped.
    fn release(&mut self) {
        let Some(stop) = &self.seen.stop else { return };
        if stop.released {
            return;
        }
        if self.pod.host_network {
            return self.seen.released();
        }
        if stop.why == StopReason::Deleted && !std::mem::replace(&mut self.says_it_leaves, true) {
            let pod = PodGone {
                namespace: self.pod.namespace.clone(),
                name: self.pod.name.clone(),
                uid: self.pod.uid.clone(),
            };
            self.node.outbox.leaving(pod);
        }
        let serving = self.seen.ip().is_some_and(|ip| self.serving.borrow_and_update().contains(&ip));
        let elsewhere = {
            let let_go = self.let_go.borrow_and_update();
            let_go.heard && self.seen.ip().is_some() && !let_go.pods.contains(&self.pod.uid)
        };
        if !(serving || elsewhere) {
            self.seen.released();
        }
    }

    async fn tear_down(&mut self) {
        let problems = steps::undo(&self.job(0, 0)).await;
        self.sandbox = None;
        if problems.is_empty() {
            self.seen.torn_down();
            return;
        }
        let words = problems.join("; ");
        self.say(true, "FailedKillPod", format!("error taking the pod down, will be tried again: {words}"));
        self.seen.teardown_failed(self.node.clock.now_ms());
    }

    /// Tells what has changed and notes it.
    fn publish(&mut self) {
        let facts = status::Facts { host_ip: self.node.host_ip, now: self.node.clock.now_ms() };
        // An object that says the pod had ended before a reboot says more than we know.
        let over = matches!(self.pod.recorded_phase.as_str(), "Succeeded" | "Failed")
            && self.seen.containers.iter().all(|seen| seen.run == Run::Never);
        if !over {
            let status = status::pod_status(&self.pod, &self.seen, facts, &self.told);
            if status != self.told {
                self.node.outbox.pod(PodStatus {
                    namespace: self.pod.namespace.clone(),
                    name: self.pod.name.clone(),
                    uid: self.pod.uid.clone(),
                    status: serde_json::to_vec(&status).unwrap_or_default(),
                });
                self.told = status;
            }
        }
        self.board.set(&self.pod.uid, self.glance());
        let unchanged =
            self.saved.as_ref().is_some_and(|(object, seen)| Arc::ptr_eq(object, &self.object) && *seen == self.seen);
        if unchanged {
            return;
        }
        if let Err(error) = Record::save(&self.node.paths.pod_run(&self.pod.uid), &self.object, &self.seen) {
            tracing::warn!(pod = self.pod.name, %error, "the pod's record was not written");
            return;
        }
        self.saved = Some((self.object.clone(), self.seen.clone()));
    }

    fn glance(&self) -> Glance {
        let pairs = || self.pod.containers.iter().zip(&self.seen.containers);
        Glance {
            namespace: self.pod.namespace.clone(),
            name: self.pod.name.clone(),
            phase: status::phase(&self.pod, &self.seen).to_owned(),
            ready: status::is_ready(&self.pod, &self.seen),
            ip: self.seen.ip(),
            restarts: self.seen.containers.iter().map(|seen| seen.restarts).sum(),
            step: status::summary(&self.pod, &self.seen),
            running: pairs()
                .filter_map(|(container, seen)| match seen.run {
                    Run::Running { attempt, .. } => Some((container.name.clone(), attempt)),
                    _ => None,
                })
                .collect(),
            images: pairs()
                .filter_map(|(_, seen)| match &seen.image {
                    Image::Present { digest, .. } => Some(digest.clone()),
                    _ => None,
                })
                .collect(),
        }
    }

    /// The last of a pod: its logs and its record, and the word to the servers.
    fn bury(&mut self) {
        let pod = &self.pod;
        let logs = self.node.paths.logs().join(format!("{}_{}_{}", pod.namespace, pod.name, pod.uid));
        for dir in [logs, self.node.paths.pod_run(&pod.uid)] {
            if let Err(error) = remove_tree(&dir) {
                tracing::warn!(pod = pod.name, dir = %dir.display(), %error, "something of a pod was not removed");
            }
        }
        self.board.remove(&pod.uid);
        self.node.outbox.gone(PodGone {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
        });
    }

    fn say(&mut self, warning: bool, reason: &str, message: String) {
        if self.limiter.allows(self.node.clock.now_ms()) {
            self.node.event(&self.pod, warning, reason, message);
        }
    }
}

/// What the files of a pod's volumes are made of.
fn parts(pod: &Pod) -> impl Iterator<Item = &Part> {
    pod.volumes.iter().flat_map(|volume| match &volume.source {
        VolumeSource::Files { parts, .. } => parts.as_slice(),
        _ => &[],
    })
}

/// The objects a pod reads, in a fixed order.
fn referenced(pod: &Pod) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    for part in parts(pod) {
        match part {
            Part::ConfigMap(keys) => found.push(("configmaps", keys.name.clone())),
            Part::Secret(keys) => found.push(("secrets", keys.name.clone())),
            Part::Fields(_) => {}
        }
    }
    let mut add = |resource, reference: &Value| {
        if let Some(name) = reference["name"].as_str() {
            found.push((resource, name.to_owned()));
        }
    };
    for container in &pod.containers {
        for entry in &container.env_from {
            add("configmaps", &entry["configMapRef"]);
            add("secrets", &entry["secretRef"]);
        }
        for entry in &container.env {
            add("configmaps", &entry["valueFrom"]["configMapKeyRef"]);
            add("secrets", &entry["valueFrom"]["secretKeyRef"]);
        }
    }
    found
}

fn read_start(path: &std::path::Path, limit: usize) -> String {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        let _ = file.take(limit as u64).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).trim_end().to_owned()
}
