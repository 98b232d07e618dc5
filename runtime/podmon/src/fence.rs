//! The fence of a pod that may run only while its node holds a lease: at the deadline everything in it is killed, whoever else is
//! dead, stopped or cut off.
//!
//! A thread of its own, the *keeper*, waits for the deadline and hears of new ones: the pod's own thread may be held up by a
//! launch or by a disk, and neither may delay the kill nor cost a pod whose lease goes on its life. Time is CLOCK_BOOTTIME,
//! which goes on while the machine sleeps.
//!
//! The kill needs no memory, no path and no other process: `cgroup.kill` is open (one write kills what is in the pod and what is
//! being born there), and each container's first process is held by a pidfd (with it the kernel ends its whole pid namespace,
//! which no child leaves; that is all there is where no v2 hierarchy is mounted).
//!
//! A deadline that has passed is acted upon before a later one is taken: what ran on without a lease may have been replaced
//! elsewhere. While podmon itself is stopped (SIGSTOP, a frozen cgroup) nothing is killed: the kill comes first of all when it is
//! continued.
//!
//! A virtual machine that is paused does not lose that time on the kernel's clocks where the hypervisor hides the pause: all of a
//! guest's clocks but one stop with QEMU's `stop`. The one is the clock of the board (RTC), so four times a second the keeper
//! compares it with the kernel's. When it has run ahead the machine stood still, and whatever lease is known is worth nothing: the
//! pod is killed, and a lease that may have been granted before the pause is not taken. The board's clock counts whole seconds,
//! so a pause of less than two is not seen.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_plan::message::lease;

use crate::sys::{self, Sys, check};

/// How often the board's clock is looked at.
const LOOK_MS: u64 = 250;
/// How far the board's clock must run ahead of the kernel's for the machine to have stood still: a second for it counts whole ones,
/// and what a time service may bend the kernel's clock by during a lease.
const STOOD_STILL_MS: i64 = 1_250;
/// Where the board's clock is read without a name of its own being opened by one process at a time.
const BOARD_CLOCK: &str = "/sys/class/rtc/rtc0/since_epoch";

/// What children that are being launched look at: a page that they share with podmon, and do not copy.
pub(crate) struct Page {
    until_ms: AtomicU64,
    kills: AtomicU32,
}

/// What a child was told to start under.
#[derive(Clone, Copy)]
pub(crate) struct Permit {
    page: &'static Page,
    /// How often the pod had been killed when it was given.
    pub(crate) kills: u32,
}

impl Permit {
    /// Whether the pod still has the lease that the launch began under. Asked by a child before it executes its program: born
    /// before the kill, it dies of it; born after, it ends here.
    pub(crate) fn holds(self) -> bool {
        self.page.kills.load(Ordering::SeqCst) == self.kills && boot_ms() < self.page.until_ms.load(Ordering::SeqCst)
    }
}

struct State {
    page: &'static Page,
    /// The pod was killed for the deadline that stands.
    killed: bool,
    cgroup_kill: Option<OwnedFd>,
    /// The first processes of running containers.
    firsts: Vec<(i32, OwnedFd)>,
    /// A line that the keeper has not taken yet.
    line: Option<OwnedFd>,
    board: Board,
    /// The longest lease there was, milliseconds.
    longest_ms: u64,
    /// Deadlines up to here are of leases from before a pause of the machine.
    void_ms: u64,
}

/// The board's clock, which goes on while a virtual machine is paused.
struct Board {
    file: Option<OwnedFd>,
    /// By how much it was ahead of the kernel's when the present lease was taken.
    ahead_ms: Option<i64>,
}

impl Board {
    fn open(path: &str) -> Self {
        Self { file: std::fs::File::open(path).ok().map(OwnedFd::from), ahead_ms: None }
    }

    /// By how much it is ahead of the kernel's clock, as far as whole seconds tell: up to one too little. Asks for no memory.
    fn ahead_ms(&self) -> Option<i64> {
        let mut text = [0_u8; 32];
        // SAFETY: the buffer has the size that is given.
        let read = unsafe { libc::pread(self.file.as_ref()?.as_raw_fd(), text.as_mut_ptr().cast(), text.len(), 0) };
        let digits = text.get(..usize::try_from(read).ok()?)?;
        let seconds: i64 = std::str::from_utf8(digits).ok()?.trim_end().parse().ok()?;
        // Read after the board's: what passes in between makes the board's look late, never ahead.
        seconds.checked_mul(1000)?.checked_sub(boot_ms().cast_signed())
    }

    /// Whether the machine stood still since the present lease was taken.
    fn stood_still(&mut self) -> bool {
        let Some(now) = self.ahead_ms() else { return false };
        now - *self.ahead_ms.get_or_insert(now) > STOOD_STILL_MS
    }
}

struct Shared {
    state: Mutex<State>,
    /// Tells the keeper to look at the state.
    wake: OwnedFd,
}

/// A pod's fence.
pub(crate) struct Fence {
    shared: Arc<Shared>,
    page: &'static Page,
}

impl Fence {
    /// Fences the pod. `cgroup_kill` is the file that kills its cgroup, where there is one; `firsts` are the containers that run
    /// already.
    pub(crate) fn begin(until_ms: u64, cgroup_kill: Option<OwnedFd>, firsts: Vec<(i32, OwnedFd)>) -> Sys<Self> {
        let page = shared_page()?;
        page.until_ms.store(until_ms, Ordering::SeqCst);
        // SAFETY: no memory is involved in these.
        let (wake, ready, timer) = unsafe {
            (
                sys::owned(i64::from(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)))?,
                sys::owned(i64::from(libc::eventfd(0, libc::EFD_CLOEXEC)))?,
                sys::owned(i64::from(libc::timerfd_create(
                    libc::CLOCK_BOOTTIME,
                    libc::TFD_CLOEXEC | libc::TFD_NONBLOCK,
                )))?,
            )
        };
        let board = Board::open(BOARD_CLOCK);
        let longest_ms = until_ms.saturating_sub(boot_ms());
        let state = State { page, killed: false, cgroup_kill, firsts, line: None, board, longest_ms, void_ms: 0 };
        let shared = Arc::new(Shared { state: Mutex::new(state), wake });
        let (kept, started) = (shared.clone(), ready.try_clone().map_err(|_| libc::EMFILE)?);
        std::thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(move || {
                ring(started.as_raw_fd());
                drop(started);
                keep(&kept, &timer)
            })
            .map_err(|error| error.raw_os_error().unwrap_or(libc::EAGAIN))?;
        // From here on the keeper asks for no memory: a child that is forked never finds the allocator locked by it.
        let mut count = [0_u8; 8];
        // SAFETY: the buffer has the size that is given.
        unsafe { libc::read(ready.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        Ok(Self { shared, page })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hears deadlines on this socket from now on.
    pub(crate) fn set_line(&self, line: OwnedFd) {
        self.lock().line = Some(line);
        ring(self.shared.wake.as_raw_fd());
    }

    /// A deadline; one that is earlier changes nothing. Whether it is to come.
    pub(crate) fn extend(&self, until_ms: u64) -> bool {
        let in_force = self.lock().extend(until_ms);
        ring(self.shared.wake.as_raw_fd());
        in_force
    }

    /// Leave to start something, while there is a lease.
    pub(crate) fn permit(&self) -> Option<Permit> {
        let mut state = self.lock();
        state.check();
        (!state.killed).then(|| Permit { page: self.page, kills: state.page.kills.load(Ordering::SeqCst) })
    }

    /// A container runs. One that was begun under a lease that has run out since is killed.
    pub(crate) fn add(&self, pid: i32, first: OwnedFd, permit: Permit) {
        let mut state = self.lock();
        if state.page.kills.load(Ordering::SeqCst) != permit.kills {
            kill(first.as_raw_fd());
        }
        state.firsts.push((pid, first));
    }

    /// A container has ended.
    pub(crate) fn remove(&self, pid: i32) {
        self.lock().firsts.retain(|(first, _)| *first != pid);
    }

    /// How often the pod was killed.
    pub(crate) fn kills(&self) -> u32 {
        self.page.kills.load(Ordering::SeqCst)
    }
}

impl State {
    fn until_ms(&self) -> u64 {
        self.page.until_ms.load(Ordering::SeqCst)
    }

    /// Kills the pod when its deadline has passed or the machine stood still, once.
    fn check(&mut self) {
        if self.killed {
            return;
        }
        if self.board.stood_still() {
            self.board.ahead_ms = None;
            let now = boot_ms();
            // A lease that was on its way here begins before now and is no longer than others. A second more: no lease is as long
            // when it comes as it was when it was asked for.
            self.void_ms = now.saturating_add(self.longest_ms).saturating_add(1_000);
            self.page.until_ms.store(now, Ordering::SeqCst);
        }
        if boot_ms() < self.until_ms() {
            return;
        }
        self.killed = true;
        // First: what is being launched sees it, and what has ended by the kill is told from what has not.
        self.page.kills.fetch_add(1, Ordering::SeqCst);
        if let Some(file) = &self.cgroup_kill {
            // SAFETY: one byte of our own.
            unsafe { libc::write(file.as_raw_fd(), c"1".as_ptr().cast(), 1) };
        }
        for (_, first) in &self.firsts {
            kill(first.as_raw_fd());
        }
    }

    fn extend(&mut self, until_ms: u64) -> bool {
        self.check();
        let now = boot_ms();
        if until_ms > self.void_ms {
            self.page.until_ms.fetch_max(until_ms, Ordering::SeqCst);
            self.longest_ms = self.longest_ms.max(until_ms.saturating_sub(now));
            self.board.ahead_ms = self.board.ahead_ms();
        }
        if now < self.until_ms() {
            self.killed = false;
        }
        !self.killed
    }
}

/// The keeper: waits for the deadline, for new ones and for a new line, for the life of the pod.
fn keep(shared: &Shared, timer: &OwnedFd) {
    let lock = || shared.state.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: no memory is involved. Where it is refused, the kill comes when it is this thread's turn.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    let mut line: Option<OwnedFd> = None;
    loop {
        {
            let mut state = lock();
            state.check();
            line = state.line.take().or(line);
            let look_ms = if state.board.file.is_some() { boot_ms().saturating_add(LOOK_MS) } else { u64::MAX };
            arm(timer, if state.killed { None } else { Some(state.until_ms().min(look_ms)) });
        }
        let entry = |fd: RawFd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        // An entry of -1 is passed over.
        let mut waits = [
            entry(timer.as_raw_fd()),
            entry(shared.wake.as_raw_fd()),
            entry(line.as_ref().map_or(-1, OwnedFd::as_raw_fd)),
        ];
        let mut count = [0_u8; 8];
        // SAFETY: the list has the length that is given, the buffer the size.
        unsafe {
            libc::poll(waits.as_mut_ptr(), waits.len() as u64, -1);
            libc::read(shared.wake.as_raw_fd(), count.as_mut_ptr().cast(), count.len());
        }
        if waits[2].revents != 0
            && let Some(open) = &line
            && hear(open.as_raw_fd(), |until_ms| {
                let mut state = lock();
                let in_force = state.extend(until_ms);
                lease::answer(state.until_ms(), in_force)
            })
            .is_err()
        {
            line = None;
        }
    }
}

/// Reads one deadline and answers it. An error when the agent has hung up.
fn hear(line: RawFd, extend: impl FnOnce(u64) -> [u8; 12]) -> Sys<()> {
    let mut packet = [0_u8; 64];
    // SAFETY: the buffer has the size that is given.
    let read = unsafe { libc::recv(line, packet.as_mut_ptr().cast(), packet.len(), libc::MSG_DONTWAIT) };
    let length = match check(read as i64) {
        Ok(0) => return Err(libc::EPIPE),
        Ok(length) => length as usize,
        Err(libc::EAGAIN | libc::EINTR) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let Some(until_ms) = lease::asked(&packet[..length]) else { return Ok(()) };
    let answer = extend(until_ms);
    // SAFETY: the buffer has the size that is given. An answer that does not fit is not waited for.
    unsafe { libc::send(line, answer.as_ptr().cast(), answer.len(), libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
    Ok(())
}

/// Sets the timer to an absolute time, or stops it.
fn arm(timer: &OwnedFd, until_ms: Option<u64>) {
    let until_ms = until_ms.unwrap_or(0);
    // SAFETY: an all-zero value is a timer that does not run; the structure outlives the call.
    unsafe {
        let mut value: libc::itimerspec = std::mem::zeroed();
        value.it_value.tv_sec = libc::time_t::try_from(until_ms / 1000).unwrap_or(libc::time_t::MAX);
        value.it_value.tv_nsec = (until_ms % 1000) as libc::c_long * 1_000_000;
        libc::timerfd_settime(timer.as_raw_fd(), libc::TFD_TIMER_ABSTIME, &raw const value, std::ptr::null_mut());
    }
}

fn kill(pidfd: RawFd) {
    // SAFETY: no memory is involved; the descriptor names one process, whatever became of its number.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd, libc::SIGKILL, std::ptr::null::<u8>(), 0) };
}

fn ring(event: RawFd) {
    let one = 1_u64.to_ne_bytes();
    // SAFETY: the buffer has the size that is given.
    unsafe { libc::write(event, one.as_ptr().cast(), one.len()) };
}

fn shared_page() -> Sys<&'static Page> {
    // SAFETY: fresh zeroed memory of a page, aligned to it, that is never unmapped; all-zero atomics are valid.
    unsafe {
        let memory = libc::mmap(
            std::ptr::null_mut(),
            size_of::<Page>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        if memory == libc::MAP_FAILED { Err(sys::errno()) } else { Ok(&*memory.cast::<Page>()) }
    }
}

/// CLOCK_BOOTTIME, milliseconds.
fn boot_ms() -> u64 {
    // SAFETY: an all-zero time is a valid value to be overwritten; it outlives the call.
    unsafe {
        let mut now: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now);
        now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
    }
}

/// A second descriptor of the same process.
pub(crate) fn twin(pidfd: &OwnedFd) -> Sys<OwnedFd> {
    // SAFETY: the kernel gives a new descriptor that is owned from here on.
    unsafe {
        let fd = check(i64::from(libc::fcntl(pidfd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3)))?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(file: &std::path::Path, until_ms: u64) -> State {
        let page = shared_page().expect("a page");
        page.until_ms.store(until_ms, Ordering::SeqCst);
        let board = Board::open(file.to_str().expect("a path"));
        let longest_ms = until_ms - boot_ms();
        State { page, killed: false, cgroup_kill: None, firsts: Vec::new(), line: None, board, longest_ms, void_ms: 0 }
    }

    #[test]
    fn a_machine_that_stood_still_has_no_lease_and_takes_none_from_before() {
        let file = std::env::temp_dir().join(format!("board-clock-{}", std::process::id()));
        let set = |seconds: u64| std::fs::write(&file, format!("{seconds}\n")).expect("a file");
        let base = 1_000_000 + boot_ms() / 1000;
        set(base);
        let until = boot_ms() + 60_000;
        let mut state = state(&file, until);
        assert!(state.extend(until));
        set(base + 1);
        state.check();
        assert!(!state.killed, "a second passes between two looks at a clock of seconds");
        set(base + 3);
        state.check();
        assert!(state.killed, "three seconds went by that the kernel does not know of");
        assert_eq!(state.page.kills.load(Ordering::SeqCst), 1);
        assert!(!state.extend(until + 500), "that was granted before the pause");
        assert!(state.extend(boot_ms() + 62_000), "that one was granted after it");
        state.check();
        assert!(!state.killed);
        std::fs::remove_file(&file).expect("ours");
        assert!(Board::open("/nowhere").ahead_ms().is_none(), "not every machine has one");
    }
}
