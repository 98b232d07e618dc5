//! One pod: its namespaces, its socket, its containers and execs, and the loop that waits for all of them.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::FileExt as _;

use coracle_plan::message::{Fields, MAX_FDS, MAX_PACKET, Packet, Record, answer, request};
use coracle_plan::wire::MAX_PLAN;

use crate::child;
use crate::fence::{self, Fence, Permit};
use crate::log::{Log, Pending};
use crate::sys::{self, Sys, check};

const MAX_CONTAINERS: usize = 128;
const MAX_CLIENTS: usize = 4;
const MAX_EXECS: usize = 64;
/// A launch that takes longer hangs in somebody's file system: it must not take the pod's log and exits with it.
const LAUNCH_LIMIT_MS: i32 = 30_000;

struct Container {
    record: Record,
    log: Log,
    outputs: [Option<(OwnedFd, Pending)>; 2],
    pidfd: Option<OwnedFd>,
    oom_counter: Option<File>,
    oom_before: u64,
    cgroup: Option<OwnedFd>,
    /// How often the pod had been killed for its lease when it was started.
    kills_before: u32,
}

struct Exec {
    id: u32,
    pid: i32,
    /// Who asked for it and is told of its end; its ids are its own. -1 when it has hung up.
    client: RawFd,
}

/// The pod's process.
pub(crate) struct Pod {
    listener: OwnedFd,
    clients: Vec<OwnedFd>,
    signals: OwnedFd,
    journal: File,
    containers: Vec<Container>,
    execs: Vec<Exec>,
    /// Of a pod that may run only while its node holds a lease.
    fence: Option<Fence>,
    /// For packets and output alike, one for the life of the pod: what is not allocated again and again does not grow the heap.
    buffer: Vec<u8>,
    ending: bool,
}

/// Enters fresh namespaces, listens, and leaves the agent's process group. `None` in the parent, once the socket listens.
pub(crate) fn start(
    dir: &str,
    hostname: &str,
    host_network: bool,
) -> Result<Option<Pod>, (&'static str, std::io::Error)> {
    let fail = |what| move |errno| (what, std::io::Error::from_raw_os_error(errno));
    let mut flags = libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    if !host_network {
        flags |= libc::CLONE_NEWNET;
    }
    // SAFETY: no memory is involved but the name's, which outlives its call.
    unsafe {
        check(i64::from(libc::unshare(flags))).map_err(fail("make namespaces"))?;
        check(i64::from(libc::sethostname(hostname.as_ptr().cast(), hostname.len())))
            .map_err(fail("set the host name"))?;
        libc::umask(0o077);
    }
    let listener = listen(&format!("{dir}/podmon.sock")).map_err(fail("listen"))?;
    let journal = File::options()
        .create(true)
        .append(true)
        .open(format!("{dir}/exits"))
        .map_err(|error| ("open the journal", error))?;
    // SAFETY: this process has one thread; the parent only returns.
    let child = check(i64::from(unsafe { libc::fork() })).map_err(fail("fork"))?;
    if child != 0 {
        // Here, not in the child: whoever sees this process end finds the number.
        std::fs::write(format!("{dir}/pid"), child.to_string()).map_err(|error| ("note the process id", error))?;
        return Ok(None);
    }
    let null = File::options().read(true).write(true).open("/dev/null").map_err(|error| ("open /dev/null", error))?;
    // SAFETY: descriptors and calls of our own process.
    let signals = unsafe {
        libc::setsid();
        for number in 0..3 {
            libc::dup2(null.as_raw_fd(), number);
        }
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        // What watches a pod is the last to be killed for want of memory. Lowering may be forbidden.
        let _ = std::fs::write("/proc/self/oom_score_adj", "-999");
        libc::chdir(c"/".as_ptr());
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_IGN);
        for ignored in [libc::SIGHUP, libc::SIGINT, libc::SIGTERM] {
            libc::signal(ignored, libc::SIG_IGN);
        }
        sys::owned(i64::from(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)))
    }
    .map_err(fail("watch for signals"))?;
    Ok(Some(Pod {
        listener,
        clients: Vec::new(),
        signals,
        journal,
        containers: Vec::new(),
        execs: Vec::new(),
        fence: None,
        buffer: vec![0; MAX_PACKET],
        ending: false,
    }))
}

fn listen(path: &str) -> Sys<OwnedFd> {
    let _ = std::fs::remove_file(path);
    // SAFETY: the address is initialised, and its path is checked to fit.
    unsafe {
        let socket = sys::owned(i64::from(libc::socket(
            libc::AF_UNIX,
            libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            0,
        )))?;
        let mut address: libc::sockaddr_un = std::mem::zeroed();
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        if path.len() >= address.sun_path.len() {
            return Err(libc::ENAMETOOLONG);
        }
        for (slot, byte) in address.sun_path.iter_mut().zip(path.bytes()) {
            *slot = byte as libc::c_char;
        }
        check(i64::from(libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_un>() as u32,
        )))?;
        check(i64::from(libc::listen(socket.as_raw_fd(), 8)))?;
        Ok(socket)
    }
}

impl Pod {
    /// Serves until it is told to end.
    pub(crate) fn run(mut self) {
        while !self.ending {
            let mut waits = vec![poll(&self.listener), poll(&self.signals)];
            waits.extend(self.clients.iter().map(poll));
            let clients = self.clients.len();
            let mut streams = Vec::new();
            for (index, container) in self.containers.iter().enumerate() {
                for (stream, output) in container.outputs.iter().enumerate() {
                    if let Some((fd, _)) = output {
                        waits.push(poll(fd));
                        streams.push((index, stream));
                    }
                }
            }
            // SAFETY: the list has the length that is given.
            unsafe { libc::poll(waits.as_mut_ptr(), waits.len() as u64, -1) };
            for (wait, (container, stream)) in waits[2 + clients..].iter().zip(&streams) {
                if wait.revents != 0 {
                    self.read_output(*container, *stream);
                }
            }
            if waits[1].revents != 0 {
                self.reap();
            }
            let ready: Vec<RawFd> =
                waits[2..2 + clients].iter().filter(|wait| wait.revents != 0).map(|wait| wait.fd).collect();
            for fd in ready {
                self.serve(fd);
            }
            if waits[0].revents != 0 {
                self.accept();
            }
        }
    }

    fn accept(&mut self) {
        // SAFETY: a descriptor of our own; no address is asked for.
        let client = sys::owned(i64::from(unsafe {
            libc::accept4(self.listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
        }));
        let Ok(client) = client else { return };
        // SAFETY: the structure has the size that is given.
        let peer = unsafe {
            let mut peer: libc::ucred = std::mem::zeroed();
            let mut size = size_of::<libc::ucred>() as u32;
            check(i64::from(libc::getsockopt(
                client.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERCRED,
                (&raw mut peer).cast(),
                &raw mut size,
            )))
            .map(|_| peer)
        };
        if peer.is_ok_and(|peer| peer.uid == 0) {
            if self.clients.len() >= MAX_CLIENTS {
                self.hang_up(self.clients[0].as_raw_fd());
            }
            self.clients.push(client);
        }
    }

    /// A client is gone, and with it everybody who waits for its commands: they end.
    fn hang_up(&mut self, client: RawFd) {
        for exec in self.execs.iter_mut().filter(|exec| exec.client == client) {
            exec.client = -1;
            // SAFETY: no memory is involved; the process has not been waited for, so the number is its own.
            unsafe { libc::kill(-exec.pid, libc::SIGKILL) };
        }
        self.clients.retain(|other| other.as_raw_fd() != client);
    }

    /// Reads and answers one request.
    fn serve(&mut self, client: RawFd) {
        let (length, fds) = match receive(client, &mut self.buffer) {
            Ok((0, _)) => return self.hang_up(client),
            Ok(received) => received,
            Err(libc::EAGAIN | libc::EINTR) => return,
            Err(_) => return self.hang_up(client),
        };
        let request = self.buffer[..length].to_vec();
        let mut fields = Fields::new(&request);
        let (Some(code), Some(sequence)) = (fields.u32(), fields.u32()) else { return };
        let done = match code {
            request::START => self.start_container(&mut fields, fds),
            request::EXEC => self.exec(&mut fields, fds, client),
            request::KILL => self.kill(&mut fields, client).map_err(|errno| (0, errno)),
            request::LIST => {
                for container in &self.containers {
                    let mut packet = Packet::new(answer::STATE, sequence);
                    packet.record(&container.current());
                    send(client, packet.bytes());
                }
                Ok(0)
            }
            request::FORGET => {
                let name = fields.text().unwrap_or_default();
                self.containers.retain(|container| container.record.name != name || !container.record.ended);
                Ok(0)
            }
            request::END => {
                self.end();
                Ok(0)
            }
            request::LEASE => self.lease(&mut fields, fds).map_err(|errno| (0, errno)),
            _ => Err((0, libc::ENOSYS)),
        };
        let mut packet;
        match done {
            Ok(value) => {
                packet = Packet::new(answer::OK, sequence);
                packet.u32(value);
            }
            Err((operation, errno)) => {
                packet = Packet::new(answer::ERROR, sequence);
                packet.u32(errno.cast_unsigned()).u32(operation);
            }
        }
        send(client, packet.bytes());
        drop(request);
        give_back();
    }

    fn broadcast(&mut self, packet: &Packet) {
        for client in &self.clients {
            send(client.as_raw_fd(), packet.bytes());
        }
    }

    fn lease(&mut self, fields: &mut Fields<'_>, fds: Vec<OwnedFd>) -> Sys<u32> {
        let (until_ms, flags) = (fields.u64().ok_or(libc::EINVAL)?, fields.u32().ok_or(libc::EINVAL)?);
        let mut fds = fds.into_iter();
        let cgroup_kill = if flags & request::LEASE_KILL != 0 { Some(fds.next().ok_or(libc::EINVAL)?) } else { None };
        let line = if flags & request::LEASE_LINE != 0 { Some(fds.next().ok_or(libc::EINVAL)?) } else { None };
        let fence = match self.fence.take() {
            Some(fence) => fence,
            None => {
                let running = self.containers.iter().filter(|container| !container.record.ended);
                let firsts = running
                    .map(|container| {
                        let first = container.pidfd.as_ref().ok_or(libc::ESRCH)?;
                        Ok((container.record.pid.cast_signed(), fence::twin(first)?))
                    })
                    .collect::<Sys<Vec<_>>>()?;
                Fence::begin(until_ms, cgroup_kill, firsts)?
            }
        };
        let fence = self.fence.insert(fence);
        if let Some(line) = line {
            fence.set_line(line);
        }
        if fence.extend(until_ms) { Ok(0) } else { Err(libc::EKEYEXPIRED) }
    }

    /// Leave to start something: none is needed in a pod that is not fenced.
    fn permit(&self) -> Result<Option<Permit>, (u32, i32)> {
        match &self.fence {
            None => Ok(None),
            Some(fence) => fence.permit().map(Some).ok_or((0, libc::EKEYEXPIRED)),
        }
    }

    fn start_container(&mut self, fields: &mut Fields<'_>, fds: Vec<OwnedFd>) -> Result<u32, (u32, i32)> {
        let invalid = (0, libc::EINVAL);
        let name = fields.text().ok_or(invalid)?.to_owned();
        let attempt = fields.u32().ok_or(invalid)?;
        let path = fields.text().ok_or(invalid)?.to_owned();
        let (max, files) = (fields.u64().ok_or(invalid)?, fields.u32().ok_or(invalid)?);
        // Bit 0: the OOM counter's descriptor follows the plan's. Bit 1: then that of the cgroup to be born in.
        let flags = fields.u32().ok_or(invalid)?;
        if self.containers.iter().any(|container| container.record.name == name && !container.record.ended) {
            return Err((0, libc::EEXIST));
        }
        let permit = self.permit()?;
        self.containers.retain(|container| container.record.name != name);
        if self.containers.len() >= MAX_CONTAINERS {
            return Err((0, libc::ENOSPC));
        }
        let mut fds = fds.into_iter();
        let plan = read_plan(fds.next().ok_or(invalid)?).map_err(|errno| (0, errno))?;
        let oom_counter = if flags & 1 != 0 { fds.next().map(File::from) } else { None };
        let cgroup = if flags & 2 != 0 { fds.next() } else { None };
        let fds: Vec<OwnedFd> = fds.collect();
        let (out_read, out_write) = pipe().map_err(|errno| (0, errno))?;
        let (err_read, err_write) = pipe().map_err(|errno| (0, errno))?;
        let null = sys::null_input().map_err(|errno| (0, errno))?;
        let oom_before = oom_counter.as_ref().map_or(0, oom_kills);
        let log = Log::open(&path, max.max(4096), files);
        let stdio = [null.as_raw_fd(), out_write.as_raw_fd(), err_write.as_raw_fd()];
        let birth = Birth {
            namespaces: (libc::CLONE_NEWPID | libc::CLONE_NEWNS) as u64,
            cgroup: cgroup.as_ref().map(std::os::fd::AsRawFd::as_raw_fd),
            oom_score: "0".to_owned(),
            inside: false,
            permit,
        };
        let kills_before = permit.map_or(0, |permit| permit.kills);
        let pid = launch(&birth, &plan, &fds, stdio)?;
        let (seconds, nanos) = sys::now();
        // SAFETY: no memory is involved; the child has not been waited for, so the number is its own.
        let pidfd = sys::owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).ok();
        if let (Some(fence), Some(permit)) = (&self.fence, permit) {
            match pidfd.as_ref().map(fence::twin) {
                Some(Ok(first)) => fence.add(pid, first, permit),
                // What cannot be killed in time must not run.
                // SAFETY: as above.
                _ => unsafe {
                    libc::kill(pid, libc::SIGKILL);
                },
            }
        }
        let record = Record {
            name,
            attempt,
            pid: pid.cast_unsigned(),
            started_ms: seconds * 1000 + u64::from(nanos / 1_000_000),
            ..Record::default()
        };
        let outputs = [out_read, err_read].map(|fd| Some((fd, Pending::default())));
        self.containers.push(Container { record, log, outputs, pidfd, oom_counter, oom_before, cgroup, kills_before });
        Ok(pid.cast_unsigned())
    }

    fn exec(&mut self, fields: &mut Fields<'_>, fds: Vec<OwnedFd>, client: RawFd) -> Result<u32, (u32, i32)> {
        let name = fields.text().ok_or((0, libc::EINVAL))?;
        let id = fields.u32().ok_or((0, libc::EINVAL))?;
        let permit = self.permit()?;
        let container = self
            .containers
            .iter()
            .find(|container| container.record.name == name && !container.record.ended)
            .ok_or((0, libc::ESRCH))?;
        let pidfd = container.pidfd.as_ref().ok_or((0, libc::ESRCH))?;
        if self.execs.len() >= MAX_EXECS {
            return Err((0, libc::EAGAIN));
        }
        let mut fds = fds.into_iter();
        let plan = read_plan(fds.next().ok_or((0, libc::EINVAL))?).map_err(|errno| (0, errno))?;
        let mut stdio: Vec<OwnedFd> = fds.by_ref().take(3).collect();
        if let Some(stdin) = stdio.first_mut().filter(|stdin| sys::is_null(stdin.as_raw_fd())) {
            *stdin = sys::null_input().map_err(|errno| (0, errno))?;
        }
        let [stdin, stdout, stderr] = stdio.as_slice() else { return Err((0, libc::EINVAL)) };
        // The plan's descriptor 0 is the container itself, for Join.
        let own = pidfd.try_clone().map_err(|error| (0, error.raw_os_error().unwrap_or(libc::EIO)))?;
        let fds: Vec<OwnedFd> = std::iter::once(own).chain(fds).collect();
        let stdio = [stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()];
        let birth = Birth {
            namespaces: 0,
            cgroup: container.cgroup.as_ref().map(std::os::fd::AsRawFd::as_raw_fd),
            oom_score: std::fs::read_to_string(format!("/proc/{}/oom_score_adj", container.record.pid))
                .map_or_else(|_| "0".to_owned(), |text| text.trim().to_owned()),
            inside: true,
            permit,
        };
        let pid = launch(&birth, &plan, &fds, stdio)?;
        self.execs.push(Exec { id, pid, client });
        Ok(pid.cast_unsigned())
    }

    /// `name, signal`: of a container, or of an exec as `exec:ID`.
    fn kill(&mut self, fields: &mut Fields<'_>, client: RawFd) -> Sys<u32> {
        let (name, signal) = (fields.text().ok_or(libc::EINVAL)?, fields.u32().ok_or(libc::EINVAL)?);
        if let Some(id) = name.strip_prefix("exec:") {
            let mut own = self.execs.iter().filter(|exec| exec.client == client);
            let exec = own.find(|exec| exec.id.to_string() == id).ok_or(libc::ESRCH)?;
            // Its whole group (it has a session of its own): a probe's children shall not outlive the probe.
            // SAFETY: no memory is involved; the process has not been waited for, so the number is its own.
            return check(i64::from(unsafe { libc::kill(-exec.pid, signal.cast_signed()) })).map(|_| 0);
        }
        let container = self
            .containers
            .iter()
            .find(|container| container.record.name == name && !container.record.ended)
            .ok_or(libc::ESRCH)?;
        // SAFETY: as above.
        check(i64::from(unsafe { libc::kill(container.record.pid.cast_signed(), signal.cast_signed()) })).map(|_| 0)
    }

    fn end(&mut self) {
        for container in self.containers.iter().filter(|container| !container.record.ended) {
            // SAFETY: as in `kill`.
            unsafe { libc::kill(container.record.pid.cast_signed(), libc::SIGKILL) };
        }
        while self.containers.iter().any(|container| !container.record.ended) {
            if self.reap_one(true).is_none() {
                break;
            }
        }
        self.ending = true;
    }

    fn reap(&mut self) {
        let mut buffer = [0_u8; 512];
        // SAFETY: the buffer has the size that is given; its content does not matter, only that the signal is taken.
        unsafe { libc::read(self.signals.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        while self.reap_one(false).is_some() {}
        give_back();
    }

    /// Takes one dead child, if there is one.
    fn reap_one(&mut self, wait: bool) -> Option<()> {
        let mut status = 0;
        let flags = libc::__WALL | if wait { 0 } else { libc::WNOHANG };
        // SAFETY: the number outlives the call.
        let pid = check(i64::from(unsafe { libc::waitpid(-1, &raw mut status, flags) })).ok().filter(|pid| *pid > 0)?;
        if let Some(at) = self.execs.iter().position(|exec| i64::from(exec.pid) == pid) {
            let exec = self.execs.swap_remove(at);
            let mut packet = Packet::new(answer::EXEC_EXIT, 0);
            packet.u32(exec.id).u32(status.cast_unsigned());
            if exec.client >= 0 {
                send(exec.client, packet.bytes());
            }
            return Some(());
        }
        let Some(index) = self
            .containers
            .iter()
            .position(|container| i64::from(container.record.pid) == pid && !container.record.ended)
        else {
            return Some(());
        };
        // What it wrote before it died is in the pipes still: the last lines are the ones that matter.
        for stream in 0..2 {
            self.drain(index, stream);
        }
        let container = &mut self.containers[index];
        if let Some(fence) = &self.fence {
            fence.remove(pid as i32);
            container.record.fenced =
                libc::WTERMSIG(status) == libc::SIGKILL && fence.kills() != container.kills_before;
        }
        let (seconds, nanos) = sys::now();
        container.record.ended = true;
        container.record.status = status;
        container.record.ended_ms = seconds * 1000 + u64::from(nanos / 1_000_000);
        container.record.oom = container.oom_counter.as_ref().map_or(0, oom_kills) > container.oom_before;
        container.pidfd = None;
        container.oom_counter = None;
        container.cgroup = None;
        let record = container.current();
        self.note(&record);
        let mut packet = Packet::new(answer::EXIT, 0);
        packet.record(&record);
        self.broadcast(&packet);
        Some(())
    }

    /// A fixed-size line in the journal, before anybody is told.
    fn note(&mut self, record: &Record) {
        let name: String = record.name.chars().take(63).collect();
        let line = format!(
            "{name:<63} {:>10} {:>10} {:>10} {} {:>14} {:>14} {}\n",
            record.attempt,
            record.pid,
            record.status,
            u8::from(record.oom),
            record.started_ms,
            record.ended_ms,
            u8::from(record.fenced)
        );
        let _ = self.journal.write_all(line.as_bytes());
    }

    fn read_output(&mut self, index: usize, stream: usize) {
        let Some(container) = self.containers.get_mut(index) else { return };
        let Some((fd, pending)) = container.outputs[stream].as_mut() else { return };
        // SAFETY: the buffer has the size that is given.
        let read = unsafe { libc::read(fd.as_raw_fd(), self.buffer.as_mut_ptr().cast(), self.buffer.len()) };
        let name = if stream == 0 { "stdout" } else { "stderr" };
        match read {
            1.. => container.log.take(name, pending, &self.buffer[..read as usize]),
            0 => {
                container.log.end(name, pending);
                container.outputs[stream] = None;
            }
            _ => {}
        }
    }

    /// Reads what is there without waiting; the pipe may stay open in a process that outlived its container's first.
    fn drain(&mut self, index: usize, stream: usize) {
        for _ in 0..64 {
            let Some((fd, _)) = self.containers[index].outputs[stream].as_ref() else { return };
            let mut wait = [poll(fd)];
            // SAFETY: one entry.
            unsafe { libc::poll(wait.as_mut_ptr(), 1, 0) };
            if wait[0].revents == 0 {
                return;
            }
            self.read_output(index, stream);
        }
    }
}

impl Container {
    fn current(&self) -> Record {
        Record { dropped_lines: self.log.dropped, ..self.record.clone() }
    }
}

/// What a child is born with.
struct Birth {
    namespaces: u64,
    cgroup: Option<RawFd>,
    /// Not podmon's own: that of its container, or none. A plan may say otherwise.
    oom_score: String,
    /// The program runs in a child of the child, which the plan puts into the namespaces of a running container.
    inside: bool,
    /// In a fenced pod: the lease it is started under.
    permit: Option<Permit>,
}

/// Clones a child that runs the plan; waits until it has executed its program or failed. The number of the process that runs
/// the program.
fn launch(birth: &Birth, plan: &[u8], fds: &[OwnedFd], stdio: [RawFd; 3]) -> Result<i32, (u32, i32)> {
    let pipes = || pipe_blocking().map_err(|errno| (0, errno));
    let (read, write) = pipes()?;
    let born = if birth.inside { Some(pipes()?) } else { None };
    let first = sys::clone3(birth.namespaces, birth.cgroup).map_err(|errno| (0, errno))?;
    if first == 0 {
        let _ = std::fs::write("/proc/self/oom_score_adj", &birth.oom_score);
        let born = born.as_ref().map(|(_, write)| write.as_raw_fd());
        child::run(plan, fds, stdio, write.as_raw_fd(), born, birth.permit);
    }
    drop(write);
    let born = born.map(|(read, _)| File::from(read));
    let mut wait = [poll(&read)];
    // SAFETY: one entry; and a child that is ours, to be reaped with the others.
    unsafe {
        if libc::poll(wait.as_mut_ptr(), 1, LAUNCH_LIMIT_MS) == 0 {
            libc::kill(first, libc::SIGKILL);
            if let Some(second) = born.and_then(second_child) {
                libc::kill(second, libc::SIGKILL);
            }
            return Err((0, libc::ETIMEDOUT));
        }
    }
    let mut message = [0_u8; 8];
    // Without a message exec has closed the pipe: the program runs.
    let failed = File::from(read).read_exact(&mut message).is_ok();
    let reap = |pid: i32| {
        // SAFETY: the child is ours and at its end.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) };
    };
    // It has said all it says when it has ended, which it does at once.
    let last = match born {
        Some(born) => {
            reap(first);
            second_child(born)
        }
        None => Some(first),
    };
    if let (false, Some(pid)) = (failed, last) {
        return Ok(pid);
    }
    if let Some(pid) = last {
        reap(pid);
    }
    let number = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    match number(&message[..4]).cast_signed() {
        // It was killed before it could say anything.
        0 => Err((0, libc::ECHILD)),
        errno => Err((number(&message[4..]), errno)),
    }
}

/// The number of the child's child, if the child has said it; not waited for, as the child may hang in somebody's file system.
fn second_child(mut born: File) -> Option<i32> {
    let mut wait = [libc::pollfd { fd: born.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
    // SAFETY: one entry.
    unsafe { libc::poll(wait.as_mut_ptr(), 1, 0) };
    if wait[0].revents & libc::POLLIN == 0 {
        return None;
    }
    let mut number = [0_u8; 4];
    born.read_exact(&mut number).ok()?;
    Some(i32::from_le_bytes(number))
}

fn read_plan(fd: OwnedFd) -> Sys<Vec<u8>> {
    let file = File::from(fd);
    let errno = |error: std::io::Error| error.raw_os_error().unwrap_or(libc::EIO);
    let length = usize::try_from(file.metadata().map_err(errno)?.len()).unwrap_or(usize::MAX);
    if length > MAX_PLAN {
        return Err(libc::E2BIG);
    }
    let mut plan = vec![0; length];
    file.read_exact_at(&mut plan, 0).map_err(errno)?;
    Ok(plan)
}

/// What the allocator keeps for later goes back to the kernel: later may be in a month.
fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it only touches memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The `oom_kill N` of `memory.events` (v2) or `memory.oom_control` (v1).
fn oom_kills(file: &File) -> u64 {
    let mut buffer = [0_u8; 512];
    let read = file.read_at(&mut buffer, 0).unwrap_or(0);
    let text = std::str::from_utf8(&buffer[..read]).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.strip_prefix("oom_kill "))
        .filter_map(|number| number.trim().parse().ok())
        .next()
        .unwrap_or(0)
}

fn pipe() -> Sys<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_blocking()?;
    // Only our end: the container's must block, as every program expects.
    // SAFETY: a descriptor of our own.
    check(i64::from(unsafe { libc::fcntl(read.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }))?;
    Ok((read, write))
}

fn pipe_blocking() -> Sys<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two new descriptors that are owned from here on.
    unsafe {
        check(i64::from(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC)))?;
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

fn poll(fd: &OwnedFd) -> libc::pollfd {
    libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }
}

/// A client that does not read is hung up on by its own full socket: a packet that does not fit is dropped, and LIST tells all.
fn send(client: RawFd, bytes: &[u8]) {
    // SAFETY: the buffer has the size that is given.
    unsafe { libc::send(client, bytes.as_ptr().cast(), bytes.len(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
}

/// One packet with its descriptors.
fn receive(socket: RawFd, buffer: &mut [u8]) -> Sys<(usize, Vec<OwnedFd>)> {
    // Room for the header and MAX_FDS descriptors, aligned as the header needs it.
    let mut control = vec![0_u64; (24 + MAX_FDS * 4).div_ceil(8) + 4];
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: the message points at buffers that outlive the call; every descriptor that comes is taken into ownership once.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut vector;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = control.len() * 8;
        let length =
            check(libc::recvmsg(socket, &raw mut message, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) as i64)?;
        let mut fds = Vec::new();
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let data: *const RawFd = libc::CMSG_DATA(header).cast();
                let count = ((*header).cmsg_len - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                for index in 0..count {
                    fds.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
        if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
            return Err(libc::EMSGSIZE);
        }
        Ok((length as usize, fds))
    }
}
