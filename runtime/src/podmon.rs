//! The agent's side of a podmon: starting one, and one task that owns the connection to it.

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use coracle_plan::message::{Fields, MAX_PACKET, Packet, Record, answer, lease, request};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

/// Podmon itself, as `build.rs` made it.
static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/podmon.bin"));

/// Requests that wait for the connection's task: each has an answer, so callers wait anyway.
const REQUESTS: usize = 32;
/// Events that nobody has taken yet; `containers()` tells the same.
const EVENTS: usize = 256;

/// A monitor answers from memory, but for a launch: that one gives up after 30 s.
const ANSWER: Duration = Duration::from_secs(60);
/// The keeper of a lease waits for nothing else: one that says nothing is stopped.
const LEASE_ANSWER: Duration = Duration::from_secs(5);
/// The first answer of a monitor that an earlier agent left: it may be busy with a launch, and the machine slow.
const FIRST_ANSWER: Duration = Duration::from_secs(45);

/// What went wrong between agent and podmon.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PodmonError {
    /// It could not be started.
    #[error("cannot start the pod's monitor: {0}")]
    Start(String),
    /// It has died, or was killed: the pod is lost and must be started anew.
    #[error("the pod's monitor is gone")]
    Gone,
    /// It is there and does not answer: stopped, or stuck in a file system.
    #[error("the pod's monitor does not answer")]
    Silent,
    /// It refused a request, or an operation of a plan failed.
    #[error("{}", std::io::Error::from_raw_os_error(*errno))]
    Refused {
        /// The system's number.
        errno: i32,
        /// The plan's operation that failed, from 1; 0 when it was none of them.
        operation: u32,
    },
}

/// A container that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerEvent {
    /// Its state.
    pub state: ContainerState,
}

/// A container as its podmon knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerState {
    /// Its name.
    pub id: String,
    /// Which start of it.
    pub attempt: u32,
    /// Process id.
    pub pid: u32,
    /// Whether it runs.
    pub running: bool,
    /// Exit code: of a signal 128 and its number.
    pub exit_code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the kernel killed something in it for want of memory.
    pub oom_killed: bool,
    /// Start, milliseconds since 1970.
    pub started_ms: u64,
    /// End, milliseconds since 1970; 0 while it runs.
    pub ended_ms: u64,
    /// Log lines lost to a full disk.
    pub dropped_lines: u64,
    /// Whether it was killed because the pod's lease ran out.
    pub fenced: bool,
}

impl From<Record> for ContainerState {
    fn from(record: Record) -> Self {
        // wait(2): the low seven bits are the signal, the next byte the code.
        let signal = (record.ended && record.status & 0x7f != 0).then_some(record.status & 0x7f);
        let exit_code = signal.map_or((record.status >> 8) & 0xff, |signal| 128 + signal);
        Self {
            id: record.name,
            attempt: record.attempt,
            pid: record.pid,
            running: !record.ended,
            exit_code: if record.ended { exit_code } else { 0 },
            signal,
            oom_killed: record.oom,
            started_ms: record.started_ms,
            ended_ms: record.ended_ms,
            dropped_lines: record.dropped_lines,
            fenced: record.fenced,
        }
    }
}

/// Podmon in memory, once for all pods of this agent: they share its pages. `None` where memory cannot be executed.
static SEALED: OnceLock<Option<OwnedFd>> = OnceLock::new();

/// Nobody, not even a container that gets hold of it, can write the program that watches it (CVE-2019-5736).
fn sealed() -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Since 6.3 a machine may ask that memory to be executed says so; before, the word is unknown.
    let memory = match rustix::fs::memfd_create("podmon", flags | MemfdFlags::EXEC) {
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create("podmon", flags),
        other => other,
    }?;
    let mut rest = PROGRAM;
    while !rest.is_empty() {
        let written = rustix::io::write(&memory, rest)?;
        rest = &rest[written..];
    }
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&memory, seals)?;
    Ok(memory)
}

/// Starts a podmon in `dir`; returns when its socket listens.
pub(crate) fn spawn(dir: &Path, hostname: &str, host_network: bool) -> Result<(), PodmonError> {
    let memory = SEALED.get_or_init(|| match sealed() {
        Ok(memory) => Some(memory),
        Err(error) => {
            tracing::info!(%error, "no sealed memory for pods' monitors; each gets a file of its own");
            None
        }
    });
    if let Some(memory) = memory {
        match run(Path::new(&format!("/proc/self/fd/{}", memory.as_raw_fd())), dir, hostname, host_network) {
            // vm.memfd_noexec.
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {}
            other => return outcome(other),
        }
    }
    let file = private_program(dir).map_err(|error| PodmonError::Start(format!("write its program: {error}")))?;
    outcome(run(&file, dir, hostname, host_network))
}

/// The program as a file of the pod's own folder.
fn private_program(dir: &Path) -> std::io::Result<PathBuf> {
    let path = dir.join("podmon");
    std::fs::write(&path, PROGRAM)?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o500))?;
    Ok(path)
}

fn run(program: &Path, dir: &Path, hostname: &str, host_network: bool) -> std::io::Result<std::process::Output> {
    let mut command = std::process::Command::new(program);
    command.arg(dir).arg(hostname).args(host_network.then_some("host-network")).env_clear();
    command.stdin(std::process::Stdio::null()).output()
}

fn outcome(ran: std::io::Result<std::process::Output>) -> Result<(), PodmonError> {
    match ran {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(PodmonError::Start(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        Err(error) => Err(PodmonError::Start(format!("execute its program: {error}"))),
    }
}

enum Command {
    Request {
        packet: Packet,
        sequence: u32,
        fds: Vec<OwnedFd>,
        reply: oneshot::Sender<Result<u32, PodmonError>>,
    },
    Exec {
        packet: Packet,
        sequence: u32,
        fds: Vec<OwnedFd>,
        id: u32,
        reply: oneshot::Sender<Result<u32, PodmonError>>,
        exit: oneshot::Sender<i32>,
    },
}

/// A connection to a podmon. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Connection {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
}

struct Shared {
    states: Mutex<HashMap<String, ContainerState>>,
    events: Mutex<Option<mpsc::Receiver<ContainerEvent>>>,
    next: std::sync::atomic::AtomicU32,
    pid: u32,
}

impl Connection {
    /// Connects and learns the state of every container.
    pub(crate) async fn open(dir: &Path) -> Result<Self, PodmonError> {
        Self::open_within(dir, FIRST_ANSWER).await
    }

    async fn open_within(dir: &Path, patience: Duration) -> Result<Self, PodmonError> {
        let socket = connect(&dir.join("podmon.sock")).map_err(|_| PodmonError::Gone)?;
        let pid = std::fs::read_to_string(dir.join("pid")).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        // A packet socket in a stream's clothes: only its readiness and descriptor are used.
        let socket =
            UnixStream::from_std(std::os::unix::net::UnixStream::from(socket)).map_err(|_| PodmonError::Gone)?;
        let (commands, inbox) = mpsc::channel(REQUESTS);
        let (event_sender, events) = mpsc::channel(EVENTS);
        let shared = Arc::new(Shared {
            states: Mutex::default(),
            events: Mutex::new(Some(events)),
            next: std::sync::atomic::AtomicU32::new(1),
            pid,
        });
        let task = Task {
            socket,
            inbox,
            shared: shared.clone(),
            events: event_sender,
            waiting: HashMap::new(),
            execs: HashMap::new(),
        };
        tokio::spawn(task.run());
        let connection = Self { commands, shared };
        let list = connection.request(request::LIST, Vec::new(), |_| {});
        tokio::time::timeout(patience, list).await.unwrap_or(Err(PodmonError::Silent))?;
        Ok(connection)
    }

    /// The podmon's process id.
    pub(crate) fn pid(&self) -> u32 {
        self.shared.pid
    }

    pub(crate) fn states(&self) -> Vec<ContainerState> {
        let mut states: Vec<_> = lock(&self.shared.states).values().cloned().collect();
        states.sort_by(|a, b| a.id.cmp(&b.id));
        states
    }

    pub(crate) fn note_started(&self, state: ContainerState) {
        // An exit may have been heard before the answer was: it knows more.
        let mut states = lock(&self.shared.states);
        let newer = states.get(&state.id).is_some_and(|known| known.attempt >= state.attempt && known.pid == state.pid);
        if !newer {
            states.insert(state.id.clone(), state);
        }
    }

    pub(crate) fn forget(&self, id: &str) {
        lock(&self.shared.states).remove(id);
    }

    pub(crate) fn take_events(&self) -> Option<mpsc::Receiver<ContainerEvent>> {
        lock(&self.shared.events).take()
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.commands.is_closed()
    }

    fn sequence(&self) -> u32 {
        self.shared.next.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }

    pub(crate) async fn request(
        &self,
        code: u32,
        fds: Vec<OwnedFd>,
        fill: impl FnOnce(&mut Packet),
    ) -> Result<u32, PodmonError> {
        let sequence = self.sequence();
        let mut packet = Packet::new(code, sequence);
        fill(&mut packet);
        let (reply, answered) = oneshot::channel();
        self.commands.send(Command::Request { packet, sequence, fds, reply }).await.map_err(|_| PodmonError::Gone)?;
        answer_to(answered).await
    }

    /// Kills an exec without waiting for the answer: its caller has gone.
    pub(crate) fn abandon_exec(&self, id: u32) {
        let sequence = self.sequence();
        let mut packet = Packet::new(request::KILL, sequence);
        packet.text(&format!("exec:{id}")).u32(9);
        let (reply, _) = oneshot::channel();
        // A full queue loses the kill; the process then ends with its container.
        let _ = self.commands.try_send(Command::Request { packet, sequence, fds: Vec::new(), reply });
    }

    /// Runs a process in a container; the receiver gets its wait status.
    pub(crate) async fn exec(
        &self,
        container: &str,
        fds: Vec<OwnedFd>,
    ) -> Result<(u32, oneshot::Receiver<i32>), PodmonError> {
        let sequence = self.sequence();
        let mut packet = Packet::new(request::EXEC, sequence);
        packet.text(container).u32(sequence);
        let (reply, answered) = oneshot::channel();
        let (exit, exited) = oneshot::channel();
        self.commands
            .send(Command::Exec { packet, sequence, fds, id: sequence, reply, exit })
            .await
            .map_err(|_| PodmonError::Gone)?;
        answer_to(answered).await?;
        Ok((sequence, exited))
    }
}

async fn answer_to(answered: oneshot::Receiver<Result<u32, PodmonError>>) -> Result<u32, PodmonError> {
    match tokio::time::timeout(ANSWER, answered).await {
        Ok(answer) => answer.map_err(|_| PodmonError::Gone)?,
        Err(_) => Err(PodmonError::Silent),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn connect(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Owns the socket: sends requests, hears answers and events, and ends when podmon does.
struct Task {
    socket: UnixStream,
    inbox: mpsc::Receiver<Command>,
    shared: Arc<Shared>,
    events: mpsc::Sender<ContainerEvent>,
    waiting: HashMap<u32, oneshot::Sender<Result<u32, PodmonError>>>,
    execs: HashMap<u32, oneshot::Sender<i32>>,
}

impl Task {
    async fn run(mut self) {
        let mut buffer = vec![0_u8; MAX_PACKET];
        loop {
            tokio::select! {
                // Cancel safe both: a command is taken whole, readiness is only a hint.
                command = self.inbox.recv() => match command {
                    Some(command) => if self.send(command).await.is_err() { return },
                    None => return,
                },
                ready = self.socket.readable() => {
                    if ready.is_err() {
                        return;
                    }
                    let received = self.socket.try_io(Interest::READABLE, || receive(self.socket.as_fd(), &mut buffer).map_err(std::io::Error::from));
                    match received {
                        Ok(0) => return,
                        Ok(length) => self.hear(&buffer[..length]),
                        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                        Err(_) => return,
                    }
                }
            }
        }
    }

    async fn send(&mut self, command: Command) -> Result<(), ()> {
        let (packet, fds) = match command {
            Command::Request { packet, sequence, fds, reply } => {
                self.waiting.insert(sequence, reply);
                (packet, fds)
            }
            Command::Exec { packet, sequence, fds, id, reply, exit } => {
                self.waiting.insert(sequence, reply);
                self.execs.insert(id, exit);
                (packet, fds)
            }
        };
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(std::os::fd::AsFd::as_fd).collect();
        let sent = self
            .socket
            .async_io(Interest::WRITABLE, || {
                let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(200))];
                let mut control = SendAncillaryBuffer::new(&mut space);
                if !borrowed.is_empty() {
                    control.push(SendAncillaryMessage::ScmRights(&borrowed));
                }
                rustix::net::sendmsg(
                    self.socket.as_fd(),
                    &[IoSlice::new(packet.bytes())],
                    &mut control,
                    SendFlags::NOSIGNAL,
                )
                .map_err(std::io::Error::from)
            })
            .await;
        sent.map(drop).map_err(|_| ())
    }

    fn hear(&mut self, bytes: &[u8]) {
        let mut fields = Fields::new(bytes);
        let (Some(code), Some(sequence)) = (fields.u32(), fields.u32()) else { return };
        match code {
            answer::OK => {
                if let Some(reply) = self.waiting.remove(&sequence) {
                    let _ = reply.send(Ok(fields.u32().unwrap_or(0)));
                }
            }
            answer::ERROR => {
                let (errno, operation) = (fields.u32().unwrap_or(0).cast_signed(), fields.u32().unwrap_or(0));
                self.execs.remove(&sequence);
                if let Some(reply) = self.waiting.remove(&sequence) {
                    let _ = reply.send(Err(PodmonError::Refused { errno, operation }));
                }
            }
            answer::STATE | answer::EXIT => {
                let Some(state) = fields.record().map(ContainerState::from) else { return };
                lock(&self.shared.states).insert(state.id.clone(), state.clone());
                if code == answer::EXIT && self.events.try_send(ContainerEvent { state }).is_err() {
                    tracing::warn!("nobody takes a pod's events; its state is told by `containers`");
                }
            }
            answer::EXEC_EXIT => {
                let (Some(id), Some(status)) = (fields.u32(), fields.u32()) else { return };
                if let Some(exit) = self.execs.remove(&id) {
                    let _ = exit.send(status.cast_signed());
                }
            }
            _ => {}
        }
    }
}

/// The line on which a fenced pod's keeper hears of deadlines, whatever its podmon is busy with.
pub(crate) struct LeaseLine {
    socket: UnixStream,
}

impl LeaseLine {
    /// A line and its other end, for podmon.
    pub(crate) fn pair() -> std::io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        // As in `Connection`: only its readiness and descriptor are used.
        let socket = UnixStream::from_std(std::os::unix::net::UnixStream::from(ours))?;
        Ok((Self { socket }, theirs))
    }

    /// Sends a deadline; whether it is to come, as the keeper sees it. Cancelled, it may have been sent.
    pub(crate) async fn extend(&self, until_ms: u64) -> Result<bool, PodmonError> {
        match tokio::time::timeout(LEASE_ANSWER, self.ask(until_ms)).await {
            Ok(answer) => answer.map_err(|_| PodmonError::Gone),
            Err(_) => Err(PodmonError::Silent),
        }
    }

    async fn ask(&self, until_ms: u64) -> std::io::Result<bool> {
        let packet = lease::ask(until_ms);
        let send = || Ok(rustix::net::send(self.socket.as_fd(), &packet, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?);
        self.socket.async_io(Interest::WRITABLE, send).await?;
        loop {
            let mut buffer = [0_u8; 64];
            let read = || Ok(rustix::net::recv(self.socket.as_fd(), &mut buffer, RecvFlags::DONTWAIT)?);
            let (length, _) = self.socket.async_io(Interest::READABLE, read).await?;
            if length == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            // An answer to an earlier question, whose asker has gone, says less.
            match lease::answered(&buffer[..length]) {
                Some((kept_ms, in_force)) if kept_ms >= until_ms => return Ok(in_force),
                _ => {}
            }
        }
    }
}

fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    let mut control = RecvAncillaryBuffer::default();
    let message = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::DONTWAIT)?;
    Ok(message.bytes)
}

#[cfg(test)]
#[allow(clippy::print_stdout)] // SKIP lines
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_monitor_runs_from_sealed_memory_or_from_a_file() {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: not root");
            return;
        }
        for from_file in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            if from_file {
                let program = private_program(dir.path()).unwrap();
                outcome(run(&program, dir.path(), "lab", true)).unwrap();
            } else {
                spawn(dir.path(), "lab", true).unwrap();
            }
            let connection = Connection::open(dir.path()).await.unwrap();
            assert!(connection.pid() > 1);
            let program = std::fs::File::open(format!("/proc/{}/exe", connection.pid())).unwrap();
            if !from_file {
                let seals = rustix::fs::fcntl_get_seals(&program).unwrap();
                assert!(seals.contains(SealFlags::SEAL | SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK));
            }
            connection.request(request::END, Vec::new(), |_| {}).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_monitor_that_says_nothing_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(dir.path().join("podmon.sock")).unwrap()).unwrap();
        let open = || Connection::open_within(dir.path(), Duration::from_millis(50));
        assert!(matches!(open().await, Err(PodmonError::Gone)));
        rustix::net::listen(&socket, 1).unwrap();
        assert!(matches!(open().await, Err(PodmonError::Silent)));
    }
}
