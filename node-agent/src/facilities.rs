//! What a pod worker needs from the rest of the node, as small traits named by need: the real ones stand on the runtime,
//! images and network rooms, the fakes on memory, so that workers and sessions are tested and simulated without root.

use std::future::Future;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use coracle_base::Millis;
use coracle_lifecycle::observed::ErrorClass;
use coracle_lifecycle::oci::{ImageConfig, User};
use oci_spec::runtime::{Process, Spec};
use tokio::sync::mpsc;

/// A boxed future: the price of traits that can be faked.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Something a facility could not do: one line for the user, and what it means for the next try.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// One word, as upstream's: `ErrImagePull`, `StartError`, `FailedCreatePodSandBox`.
    pub reason: &'static str,
    /// One line.
    pub message: String,
    /// What it means for the next try.
    pub class: ErrorClass,
}

impl Failure {
    /// Something that may go away by itself.
    pub fn retry(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), class: ErrorClass::Retry }
    }

    /// A run that failed before it began.
    pub fn run(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), class: ErrorClass::Fail }
    }

    /// What can never work here.
    pub fn reject(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), class: ErrorClass::Reject }
    }
}

/// Why nothing is started in a fenced pod.
pub const WAITING_FOR_LEASE: &str = "WaitingForLease";

/// CLOCK_BOOTTIME of this machine, milliseconds.
#[must_use]
pub fn boottime_ms() -> Millis {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let part = |number: i64| u64::try_from(number).unwrap_or(0);
    part(now.tv_sec) * 1000 + part(now.tv_nsec) / 1_000_000
}

/// A container as the runtime knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunState {
    /// Its name in the pod.
    pub container: String,
    /// Which run.
    pub attempt: u32,
    /// Process id on the node.
    pub pid: u32,
    /// Since when.
    pub started_at: Millis,
    /// How it ended, when it has.
    pub ended: Option<Ended>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// 128 + signal when killed by one.
    pub code: i32,
    /// The signal.
    pub signal: Option<i32>,
    /// The kernel killed it for its memory limit.
    pub oom: bool,
    /// It was killed because the node's lease ran out.
    pub fenced: bool,
    /// When.
    pub at: Millis,
}

/// What happens in a sandbox without being asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SandboxEvent {
    /// A run ended.
    Ended(RunState),
    /// The sandbox's monitor is gone, and its containers with it.
    Lost,
}

/// A sandbox to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxSpec {
    /// The pod's uid.
    pub pod: String,
    /// Its host name.
    pub hostname: String,
    /// In the node's network namespace.
    pub host_network: bool,
    /// The most memory all its containers may use together, in bytes.
    pub memory_limit: Option<u64>,
    /// The most CPU, in thousandths of a core.
    pub cpu_limit_milli: Option<u64>,
    /// What its CPU share is measured by, in thousandths of a core.
    pub cpu_request_milli: u64,
    /// It may run only while the node holds a lease, which ends then (as `Containers::boottime_ms`); `None` = it is not fenced.
    pub lease_until: Option<Millis>,
}

/// The root of a container that is about to start.
#[derive(Debug)]
pub enum Root {
    /// A detached mount.
    Mount(OwnedFd),
    /// None: fakes.
    Fake,
}

/// A container to be started.
#[derive(Debug)]
pub struct Launch {
    /// The pod's uid.
    pub pod: String,
    /// The container's name.
    pub container: String,
    /// Which run.
    pub attempt: u32,
    /// What to run, and how.
    pub spec: Spec,
    /// Its root.
    pub root: Root,
    /// Where its output goes.
    pub log: PathBuf,
}

/// A container that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// On the node.
    pub pid: u32,
    /// Since when.
    pub at: Millis,
}

/// How a command in a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutcome {
    /// Exit code.
    pub code: i32,
    /// The start of its output.
    pub output: String,
    /// It took too long and was killed.
    pub timed_out: bool,
}

/// Sandboxes and containers.
pub trait Containers: Send + Sync {
    /// Makes a sandbox. One that is there is kept.
    fn create(&self, spec: SandboxSpec) -> Doing<'_, Result<(), Failure>>;
    /// Makes the root of a container from its layers (top first) and a writable directory.
    fn root(&self, layers: Vec<PathBuf>, writable: PathBuf) -> Doing<'_, Result<Root, Failure>>;
    /// Looks a user up in the root's own files.
    fn user(&self, root: &Root, text: &str) -> Result<User, Failure>;
    /// Starts a container.
    fn start(&self, launch: Launch) -> Doing<'_, Result<Started, Failure>>;
    /// Runs a command in a running container.
    fn exec(
        &self,
        pod: &str,
        container: &str,
        process: Process,
        within: Duration,
    ) -> Doing<'_, Result<ExecOutcome, Failure>>;
    /// The clock that leases are counted on: CLOCK_BOOTTIME, milliseconds. It goes on while the machine sleeps.
    fn boottime_ms(&self) -> Millis;
    /// Tells a pod's monitor that the node's lease lasts until then (as `boottime_ms`). The first one fences the sandbox for good;
    /// one that is earlier than one before changes nothing; a pod without a sandbox has nothing to be told. A sandbox whose
    /// monitor cannot keep a deadline is removed, with all that runs in it.
    fn lease(&self, pod: &str, until: Millis) -> Doing<'_, Result<(), Failure>>;
    /// Sends a signal.
    fn kill(&self, pod: &str, container: &str, signal: i32) -> Doing<'_, Result<(), Failure>>;
    /// Lets go of an ended run, so that the container can be started again.
    fn forget(&self, pod: &str, container: &str) -> Doing<'_, Result<(), Failure>>;
    /// The runs of a pod's containers, ended ones included. `None` when there is no such sandbox (or its monitor is gone).
    fn states(&self, pod: &str) -> Option<Vec<RunState>>;
    /// Takes the events of a sandbox, once.
    fn events(&self, pod: &str) -> Option<mpsc::Receiver<SandboxEvent>>;
    /// The network namespace of a sandbox; `None` in fakes.
    fn netns(&self, pod: &str) -> Result<Option<OwnedFd>, Failure>;
    /// Kills what is left of a pod and removes its sandbox. None is no error.
    fn remove(&self, pod: &str) -> Doing<'_, Result<(), Failure>>;
    /// The uids of all sandboxes.
    fn sandboxes(&self) -> Vec<String>;
}

/// An image on this node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FoundImage {
    /// `sha256:...`
    pub digest: String,
    /// The name it was found by, in full.
    pub name: String,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// Its layers' directories, top first.
    pub layers: Vec<PathBuf>,
}

/// Images by name.
pub trait Images: Send + Sync {
    /// The image of a name, fetched when the policy (`Always`, `IfNotPresent`, `Never`) says so. The reason of a failure is
    /// `ErrImagePull`, `ErrImageNeverPull` or `InvalidImageName`.
    fn ensure(&self, name: &str, policy: &str) -> Doing<'_, Result<FoundImage, Failure>>;
    /// An image that is here, by name or digest.
    fn find(&self, reference: &str) -> Doing<'_, Option<FoundImage>>;
}

/// Links and addresses of pods.
pub trait Network: Send + Sync {
    /// Gives a pod its address and link. A pod that has one keeps it.
    fn attach(&self, pod: &str, netns: Option<OwnedFd>) -> Doing<'_, Result<Ipv4Addr, Failure>>;
    /// Takes link and address away. None is no error.
    fn detach(&self, pod: &str) -> Doing<'_, Result<(), Failure>>;
    /// Where pods ask for names; `None` while there is no network.
    fn nameserver(&self) -> Option<Ipv4Addr>;
}
