//! Facilities that keep everything in memory: pod workers and whole agents are tested, and simulated by the thousand, with
//! them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use coracle_base::Millis;
use coracle_lifecycle::oci::{ImageConfig, User};
use oci_spec::runtime::Process;
use tokio::sync::mpsc;

use crate::facilities::{
    Containers, Doing, Ended, ExecOutcome, Failure, FoundImage, Images, Launch, Network, Root, RunState, SandboxEvent,
    SandboxSpec, Started, WAITING_FOR_LEASE,
};

fn done<T: Send + 'static>(value: T) -> Doing<'static, T> {
    Box::pin(std::future::ready(value))
}

/// Events nobody has taken yet.
const EVENTS: usize = 64;

#[derive(Debug)]
struct FakeSandbox {
    runs: Vec<RunState>,
    events: mpsc::Sender<SandboxEvent>,
    taken: Option<mpsc::Receiver<SandboxEvent>>,
    /// The deadline its monitor keeps, when it is fenced.
    lease_until: Option<Millis>,
    /// Its monitor is of a release that knows no leases.
    old: bool,
}

#[derive(Debug, Default)]
struct FakeState {
    sandboxes: HashMap<String, FakeSandbox>,
    next_pid: u32,
    log: Vec<String>,
    failures: HashMap<String, Failure>,
    deaf: BTreeSet<String>,
    exec_codes: HashMap<String, i32>,
    /// Every deadline a pod was told.
    leases: HashMap<String, Vec<Millis>>,
}

/// Sandboxes and containers that are only talked about.
#[derive(Debug, Default)]
pub struct FakeContainers {
    state: Mutex<FakeState>,
    /// The machine's own CLOCK_BOOTTIME when it was first asked, carried on by tokio's clock, so that a paused one moves it.
    boot: OnceLock<(tokio::time::Instant, Millis)>,
}

impl FakeContainers {
    fn lock(&self) -> MutexGuard<'_, FakeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything asked of it so far, a line each.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.lock().log.clone()
    }

    /// The next call of this name (`create`, `start c`, `remove`) fails.
    pub fn fail_once(&self, call: &str, failure: Failure) {
        self.lock().failures.insert(call.to_owned(), failure);
    }

    /// A container that only dies of SIGKILL.
    pub fn deafen(&self, container: &str) {
        self.lock().deaf.insert(container.to_owned());
    }

    /// The exit code of commands in a container from now on.
    pub fn exec_code(&self, container: &str, code: i32) {
        self.lock().exec_codes.insert(container.to_owned(), code);
    }

    /// Whether a container runs.
    #[must_use]
    pub fn is_running(&self, pod: &str, container: &str) -> bool {
        self.lock()
            .sandboxes
            .get(pod)
            .is_some_and(|sandbox| sandbox.runs.iter().any(|run| run.container == container && run.ended.is_none()))
    }

    /// A container ends by itself.
    pub fn end(&self, pod: &str, container: &str, code: i32, oom: bool) {
        let mut state = self.lock();
        let Some(sandbox) = state.sandboxes.get_mut(pod) else { return };
        let running = sandbox.runs.iter_mut().find(|run| run.container == container && run.ended.is_none());
        if let Some(run) = running {
            let signal = (code > 128).then_some(code - 128);
            run.ended = Some(Ended { code, signal, oom, fenced: false, at: run.started_at + 1 });
            let _ = sandbox.events.try_send(SandboxEvent::Ended(run.clone()));
        }
    }

    /// The monitor of a fenced pod kills everything in it, if its deadline has passed. Whether it has.
    pub fn fence(&self, pod: &str) -> bool {
        let now = self.boottime_ms();
        let mut state = self.lock();
        let Some(sandbox) = state.sandboxes.get_mut(pod) else { return false };
        if sandbox.lease_until.is_none_or(|until| now < until) {
            return false;
        }
        for run in sandbox.runs.iter_mut().filter(|run| run.ended.is_none()) {
            let at = run.started_at + 1;
            run.ended = Some(Ended { code: 137, signal: Some(9), oom: false, fenced: true, at });
            let _ = sandbox.events.try_send(SandboxEvent::Ended(run.clone()));
        }
        true
    }

    /// The monitor of a pod is of a release that knows no leases.
    pub fn age(&self, pod: &str) {
        if let Some(sandbox) = self.lock().sandboxes.get_mut(pod) {
            (sandbox.old, sandbox.lease_until) = (true, None);
        }
    }

    /// Every deadline a pod was told, at its birth and since.
    #[must_use]
    pub fn leases(&self, pod: &str) -> Vec<Millis> {
        self.lock().leases.get(pod).cloned().unwrap_or_default()
    }

    /// The monitor of a pod dies, and everything with it.
    pub fn lose(&self, pod: &str) {
        if let Some(sandbox) = self.lock().sandboxes.remove(pod) {
            let _ = sandbox.events.try_send(SandboxEvent::Lost);
        }
    }

    /// An agent starts anew over what runs: events can be taken again.
    pub fn agent_restarts(&self) {
        for sandbox in self.lock().sandboxes.values_mut() {
            let (events, taken) = mpsc::channel(EVENTS);
            (sandbox.events, sandbox.taken) = (events, Some(taken));
        }
    }

    fn call(&self, call: &str, detail: &str) -> Result<(), Failure> {
        let mut state = self.lock();
        state.log.push(format!("{call} {detail}").trim_end().to_owned());
        state.failures.remove(call).map_or(Ok(()), Err)
    }
}

impl Containers for FakeContainers {
    fn create(&self, spec: SandboxSpec) -> Doing<'_, Result<(), Failure>> {
        let outcome = self.call("create", &spec.pod).map(|()| {
            let (events, taken) = mpsc::channel(EVENTS);
            let lease_until = spec.lease_until;
            let fresh = || FakeSandbox { runs: Vec::new(), events, taken: Some(taken), lease_until, old: false };
            let mut state = self.lock();
            if let Some(until) = lease_until {
                state.leases.entry(spec.pod.clone()).or_default().push(until);
            }
            state.sandboxes.entry(spec.pod).or_insert_with(fresh);
        });
        done(outcome)
    }

    fn root(&self, _: Vec<PathBuf>, _: PathBuf) -> Doing<'_, Result<Root, Failure>> {
        done(Ok(Root::Fake))
    }

    fn user(&self, _: &Root, text: &str) -> Result<User, Failure> {
        let uid = if text.is_empty() { 0 } else { text.split(':').next().unwrap_or_default().parse().unwrap_or(1000) };
        Ok(User { uid, gid: uid, ..User::default() })
    }

    fn start(&self, launch: Launch) -> Doing<'_, Result<Started, Failure>> {
        let call = format!("start {}", launch.container);
        if let Err(failure) = self.call(&call, &format!("#{}", launch.attempt)) {
            return done(Err(failure));
        }
        let now = self.boottime_ms();
        let mut state = self.lock();
        state.next_pid += 1;
        let (pid, at) = (1000 + state.next_pid, 1_764_150_000_000 + u64::from(state.next_pid));
        let Some(sandbox) = state.sandboxes.get_mut(&launch.pod) else {
            return done(Err(Failure::retry("CreateContainerError", "no sandbox")));
        };
        if sandbox.lease_until.is_some_and(|until| until <= now) {
            return done(Err(Failure::retry(WAITING_FOR_LEASE, "the pod's lease has run out")));
        }
        let run = RunState { container: launch.container, attempt: launch.attempt, pid, started_at: at, ended: None };
        sandbox.runs.push(run);
        done(Ok(Started { pid, at }))
    }

    fn exec(&self, pod: &str, container: &str, _: Process, _: Duration) -> Doing<'_, Result<ExecOutcome, Failure>> {
        let outcome = self.call(&format!("exec {container}"), pod).map(|()| ExecOutcome {
            code: self.lock().exec_codes.get(container).copied().unwrap_or(0),
            output: String::new(),
            timed_out: false,
        });
        done(outcome)
    }

    fn boottime_ms(&self) -> Millis {
        let (then, ms) = *self.boot.get_or_init(|| (tokio::time::Instant::now(), crate::facilities::boottime_ms()));
        ms + u64::try_from(then.elapsed().as_millis()).unwrap_or(0)
    }

    fn lease(&self, pod: &str, until: Millis) -> Doing<'_, Result<(), Failure>> {
        // What has passed is acted upon first.
        self.fence(pod);
        let now = self.boottime_ms();
        let old = {
            let mut state = self.lock();
            state.leases.entry(pod.to_owned()).or_default().push(until);
            let Some(sandbox) = state.sandboxes.get_mut(pod) else { return done(Ok(())) };
            let kept = sandbox.lease_until.unwrap_or(0).max(until);
            if !sandbox.old {
                sandbox.lease_until = Some(kept);
                if now < kept {
                    return done(Ok(()));
                }
            }
            sandbox.old
        };
        if old {
            self.lose(pod);
        } else {
            self.fence(pod);
        }
        done(Err(Failure::retry(WAITING_FOR_LEASE, "the pod's lease has run out")))
    }

    fn kill(&self, pod: &str, container: &str, signal: i32) -> Doing<'_, Result<(), Failure>> {
        let outcome = self.call(&format!("kill {container}"), &signal.to_string());
        if signal == 9 || !self.lock().deaf.contains(container) {
            self.end(pod, container, 128 + signal, false);
        }
        done(outcome)
    }

    fn forget(&self, pod: &str, container: &str) -> Doing<'_, Result<(), Failure>> {
        if let Some(sandbox) = self.lock().sandboxes.get_mut(pod) {
            sandbox.runs.retain(|run| run.container != container || run.ended.is_none());
        }
        done(Ok(()))
    }

    fn states(&self, pod: &str) -> Option<Vec<RunState>> {
        self.lock().sandboxes.get(pod).map(|sandbox| sandbox.runs.clone())
    }

    fn events(&self, pod: &str) -> Option<mpsc::Receiver<SandboxEvent>> {
        self.lock().sandboxes.get_mut(pod)?.taken.take()
    }

    fn netns(&self, _: &str) -> Result<Option<OwnedFd>, Failure> {
        Ok(None)
    }

    fn remove(&self, pod: &str) -> Doing<'_, Result<(), Failure>> {
        let outcome = self.call("remove", pod);
        if outcome.is_ok() {
            self.lock().sandboxes.remove(pod);
        }
        done(outcome)
    }

    fn sandboxes(&self) -> Vec<String> {
        self.lock().sandboxes.keys().cloned().collect()
    }
}

/// Images that are all there, but for those that are not.
#[derive(Debug, Default)]
pub struct FakeImages {
    missing: Mutex<BTreeSet<String>>,
    stuck: Mutex<BTreeSet<String>>,
}

impl FakeImages {
    fn of(name: &str) -> FoundImage {
        let config = ImageConfig { entrypoint: vec!["/app".to_owned()], ..ImageConfig::default() };
        FoundImage { digest: format!("sha256:{:0>64x}", name.len()), name: name.to_owned(), config, layers: Vec::new() }
    }

    /// An image that cannot be had until `restore`.
    pub fn lack(&self, name: &str) {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
    }

    /// It can be had.
    pub fn restore(&self, name: &str) {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// A pull that never ends.
    pub fn hang(&self, name: &str) {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
    }
}

impl Images for FakeImages {
    fn ensure(&self, name: &str, _: &str) -> Doing<'_, Result<FoundImage, Failure>> {
        if self.stuck.lock().unwrap_or_else(PoisonError::into_inner).contains(name) {
            return Box::pin(std::future::pending());
        }
        if self.missing.lock().unwrap_or_else(PoisonError::into_inner).contains(name) {
            return done(Err(Failure::retry("ErrImagePull", format!("image \"{name}\" not found"))));
        }
        done(Ok(Self::of(name)))
    }

    fn find(&self, reference: &str) -> Doing<'_, Option<FoundImage>> {
        done(Some(Self::of(reference)))
    }
}

/// Addresses without links.
#[derive(Debug, Default)]
pub struct FakeNetwork {
    pods: Mutex<BTreeMap<String, Ipv4Addr>>,
}

impl FakeNetwork {
    /// Who has an address.
    #[must_use]
    pub fn pods(&self) -> BTreeMap<String, Ipv4Addr> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Network for FakeNetwork {
    fn attach(&self, pod: &str, _: Option<OwnedFd>) -> Doing<'_, Result<Ipv4Addr, Failure>> {
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let free =
            (2..=250_u8).map(|last| Ipv4Addr::new(10, 42, 0, last)).find(|ip| !pods.values().any(|taken| taken == ip));
        let known = pods.get(pod).copied().or(free);
        let outcome = known.ok_or_else(|| Failure::retry("FailedCreatePodSandBox", "no free address"));
        if let Ok(ip) = &outcome {
            pods.insert(pod.to_owned(), *ip);
        }
        done(outcome)
    }

    fn detach(&self, pod: &str) -> Doing<'_, Result<(), Failure>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(pod);
        done(Ok(()))
    }

    fn nameserver(&self) -> Option<Ipv4Addr> {
        Some(Ipv4Addr::new(10, 42, 0, 1))
    }
}
