//! The log's thread: whatever is queued becomes one frame. No async task ever waits for a disk.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Index, Log, Position, Record, Space, WalError};

/// Called on the log's thread once the records are durable, or are not and never will be.
pub type Durable = Box<dyn FnOnce(Result<(), Arc<WalError>>) + Send>;

/// Frames that wait at most.
const QUEUED: usize = 1024;

/// Records of one frame, in bytes of memory: beyond it a frame is written before more is taken from the queue.
const FRAME_BYTES: usize = 4 << 20;

/// A log without a thread of its own, for simulations: frames are written by a task of the runtime that opened the log, in its
/// time, one after the other.
pub trait Pace: Send + Sync + std::fmt::Debug {
    /// How long the next frame takes before it is written.
    fn frame(&self) -> Duration;
    /// Whether a record is written at all. A log that answers `false` lies: to show that a simulation notices.
    fn keeps(&self, _record: &Record) -> bool {
        true
    }
    /// These records are reported as durable now.
    fn durable(&self, _records: &[Record]) {}
}

/// How long until a full disk is tried again.
const RETRY: Duration = Duration::from_secs(2);

enum Job {
    Commit(Vec<Record>, Durable),
    Stop,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Commit(records, _) => write!(out, "Commit({} records)", records.len()),
            Self::Stop => write!(out, "Stop"),
        }
    }
}

/// The way to whoever writes.
#[derive(Debug)]
enum Jobs {
    Thread(SyncSender<Job>),
    Task(tokio::sync::mpsc::Sender<Job>),
}

impl Jobs {
    /// Gives back what nobody takes any more.
    fn send(&self, job: Job) -> Result<(), Job> {
        match self {
            Self::Thread(jobs) => jobs.send(job).map_err(|refused| refused.0),
            Self::Task(jobs) => jobs.try_send(job).map_err(tokio::sync::mpsc::error::TrySendError::into_inner),
        }
    }
}

#[derive(Debug)]
enum Queue {
    Thread(Receiver<Job>),
    Task(tokio::sync::mpsc::Receiver<Job>),
}

impl Queue {
    fn try_next(&mut self) -> Option<Job> {
        match self {
            Self::Thread(queue) => queue.try_recv().ok(),
            Self::Task(queue) => queue.try_recv().ok(),
        }
    }
}

/// What the thread counts.
#[derive(Debug, Default)]
pub struct WriterStats {
    durations: Mutex<Vec<u32>>,
    frames: AtomicU64,
    bytes: AtomicU64,
    space: AtomicU8,
    failure: OnceLock<String>,
    /// When the frame under way was begun.
    begun: Mutex<Option<Instant>>,
    /// It found no room and is tried again.
    awaits_room: AtomicBool,
}

/// How many of the last frames are remembered.
const REMEMBERED: usize = 1024;

impl WriterStats {
    fn frame_took(&self, took: Duration) {
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let at = self.frames.fetch_add(1, Ordering::Relaxed) as usize;
        let mut durations = self.durations.lock().unwrap_or_else(PoisonError::into_inner);
        if durations.len() < REMEMBERED {
            durations.push(micros);
        } else {
            durations[at % REMEMBERED] = micros;
        }
    }

    /// Frames written since the start.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Bytes in use by the log.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Why nothing is acknowledged any more, when that is so.
    #[must_use]
    pub fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Whether the frame under way found no room on the disk and is tried again until it does.
    #[must_use]
    pub fn awaits_room(&self) -> bool {
        self.awaits_room.load(Ordering::Relaxed)
    }

    /// How long the frame under way has been waited for, waiting for room included; zero when there is none.
    #[must_use]
    pub fn waiting(&self) -> Duration {
        let begun = *self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        begun.map_or(Duration::ZERO, |begun| begun.elapsed())
    }

    fn begins(&self, at: Option<Instant>) {
        *self.begun.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    /// Room on the disk.
    #[must_use]
    pub fn space(&self) -> Space {
        match self.space.load(Ordering::Relaxed) {
            0 => Space::Free,
            1 => Space::Low,
            _ => Space::Out,
        }
    }

    /// How long the given share (0 to 1) of the last frames took at most to become durable.
    #[must_use]
    pub fn durable_after(&self, share: f64) -> Duration {
        let mut durations = self.durations.lock().unwrap_or_else(PoisonError::into_inner).clone();
        durations.sort_unstable();
        let at = ((durations.len() as f64 * share) as usize).min(durations.len().saturating_sub(1));
        Duration::from_micros(durations.get(at).copied().unwrap_or(0).into())
    }
}

/// The handle of the log's thread.
#[derive(Debug)]
pub struct Writer {
    jobs: Jobs,
    thread: Mutex<Option<JoinHandle<()>>>,
    index: Arc<Mutex<Index>>,
    stats: Arc<WriterStats>,
    committed: Arc<Mutex<Option<Position>>>,
    ending: Arc<Ending>,
}

/// Told to a thread that waits for room: it shall not wait any longer.
#[derive(Debug, Default)]
struct Ending {
    told: Mutex<bool>,
    wake: Condvar,
}

impl Ending {
    fn tell(&self) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wake.notify_all();
    }

    /// Waits so long; true when it was told meanwhile or before.
    fn wait(&self, for_most: Duration) -> bool {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.wake.wait_timeout_while(told, for_most, |told| !*told);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn start(log: Log) -> std::io::Result<Self> {
        // Raft has few appends in flight at a time; a sender that meets a full queue waits for the disk, as it should.
        let (jobs, queue) = sync_channel(QUEUED);
        let (mut writer, worker) = Self::with(log, Jobs::Thread(jobs), Queue::Thread(queue), None);
        let thread = std::thread::Builder::new().name("raft-log".to_owned()).spawn(move || worker.run())?;
        writer.thread = Mutex::new(Some(thread));
        Ok(writer)
    }

    /// Starts a task of this runtime instead: nothing then happens outside it.
    pub fn start_paced(log: Log, pace: Arc<dyn Pace>) -> Self {
        let (jobs, queue) = tokio::sync::mpsc::channel(QUEUED);
        let (writer, worker) = Self::with(log, Jobs::Task(jobs), Queue::Task(queue), Some(pace.clone()));
        drop(tokio::spawn(worker.run_paced(pace)));
        writer
    }

    fn with(log: Log, jobs: Jobs, queue: Queue, pace: Option<Arc<dyn Pace>>) -> (Self, Worker) {
        let index = log.index();
        let stats = Arc::new(WriterStats::default());
        let committed = Arc::new(Mutex::new(None));
        let ending = Arc::new(Ending::default());
        let worker =
            Worker { log, queue, stats: stats.clone(), committed: committed.clone(), ending: ending.clone(), pace };
        worker.publish();
        (Self { jobs, thread: Mutex::new(None), index, stats, committed, ending }, worker)
    }

    /// Queues records; `done` is called when they are durable.
    pub fn commit(&self, records: Vec<Record>, done: Durable) {
        if let Err(refused) = self.jobs.send(Job::Commit(records, done))
            && let Job::Commit(_, done) = refused
        {
            done(Err(Arc::new(WalError::Closed)));
        }
    }

    /// Remembers the committed position: it goes into the next frame and needs none of its own, because a log that knows an
    /// older one is still right.
    pub fn committed(&self, at: Position) {
        *self.committed.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    /// What the log holds.
    #[must_use]
    pub fn index(&self) -> &Arc<Mutex<Index>> {
        &self.index
    }

    /// What the thread counts.
    #[must_use]
    pub fn stats(&self) -> &Arc<WriterStats> {
        &self.stats
    }

    /// What waits for room on a full disk, and what comes to wait for it, fails from now on. Everything else goes on.
    pub fn give_up_waiting(&self) {
        self.ending.tell();
    }

    /// Writes what is queued and finds room, then ends the thread. Blocks.
    pub fn stop(&self) {
        self.give_up_waiting();
        // A closed queue means that it has ended already.
        let _ = self.jobs.send(Job::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the log's thread panicked");
        }
    }
}

struct Worker {
    log: Log,
    queue: Queue,
    stats: Arc<WriterStats>,
    committed: Arc<Mutex<Option<Position>>>,
    ending: Arc<Ending>,
    /// Only without a thread.
    pace: Option<Arc<dyn Pace>>,
}

impl Worker {
    fn run(mut self) {
        loop {
            let Queue::Thread(queue) = &self.queue else { return };
            let job = if self.log.space() == Space::Free {
                queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                queue.recv_timeout(RETRY)
            };
            match job {
                Ok(Job::Commit(records, done)) => {
                    if !self.commit(records, done) {
                        break;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Job::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
            self.prepare();
        }
        self.end();
    }

    async fn run_paced(mut self, pace: Arc<dyn Pace>) {
        loop {
            let Queue::Task(queue) = &mut self.queue else { return };
            let job = if self.log.space() == Space::Free {
                queue.recv().await
            } else {
                match tokio::time::timeout(RETRY, queue.recv()).await {
                    Ok(job) => job,
                    Err(_) => {
                        self.prepare();
                        continue;
                    }
                }
            };
            let Some(Job::Commit(records, done)) = job else { break };
            tokio::time::sleep(pace.frame()).await;
            if !self.commit(records, done) {
                break;
            }
            self.prepare();
        }
        self.end();
    }

    fn end(&mut self) {
        let last = self.take_committed();
        if !last.is_empty()
            && let Err(error) = self.log.commit(&last)
        {
            tracing::warn!(error = %coracle_base::one_line(&error), "the committed index was not written at the end");
        }
    }

    // Everything queued, in one frame; gives false when nothing more may follow: the thread was told to stop, or gave this up.
    fn commit(&mut self, first: Vec<Record>, done: Durable) -> bool {
        let mut waiting = vec![done];
        let mut records = self.take_committed();
        let mut weight = weigh(&first);
        records.extend(first);
        let mut go_on = true;
        while weight < FRAME_BYTES {
            match self.queue.try_next() {
                Some(Job::Commit(more, done)) => {
                    weight += weigh(&more);
                    records.extend(more);
                    waiting.push(done);
                }
                Some(Job::Stop) => {
                    go_on = false;
                    break;
                }
                None => break,
            }
        }
        self.stats.begins(Some(Instant::now()));
        let mut result = self.write(&records);
        self.stats.begins(None);
        // Order is what makes a later record say that the earlier ones are there.
        go_on &= !matches!(result, Err(WalError::Full { .. }));
        if result.is_ok() && records.iter().any(|record| matches!(record, Record::Purge(_))) {
            result = self.log.drop_purged();
        }
        if let Err(error) = &result {
            let reason = coracle_base::one_line(error);
            tracing::error!(error = %reason, "the log failed; nothing more is acknowledged");
            self.stats.failure.get_or_init(|| reason);
        }
        let result = result.map_err(Arc::new);
        for done in waiting {
            done(result.clone());
        }
        go_on
    }

    /// One frame; on a full disk again and again until there is room, or nobody wants to wait any more.
    fn write(&mut self, records: &[Record]) -> Result<(), WalError> {
        loop {
            let begun = Instant::now();
            let result = match &self.pace {
                None => self.log.commit(records),
                Some(pace) => {
                    let kept: Vec<Record> = records.iter().filter(|record| pace.keeps(record)).cloned().collect();
                    let result = if kept.is_empty() { Ok(()) } else { self.log.commit(&kept) };
                    if result.is_ok() {
                        pace.durable(records);
                    }
                    result
                }
            };
            let Err(WalError::Full { .. }) = &result else {
                self.stats.frame_took(begun.elapsed());
                if self.stats.awaits_room.swap(false, Ordering::Relaxed) && result.is_ok() {
                    tracing::info!("the log's disk has room again: it goes on");
                }
                return result;
            };
            if let Err(error) = &result
                && !self.stats.awaits_room.swap(true, Ordering::Relaxed)
            {
                tracing::warn!(error = %coracle_base::one_line(error), "the log waits for room on its disk");
            }
            self.publish();
            // A task of a simulation cannot wait here.
            if self.pace.is_some() || self.ending.wait(RETRY) {
                return result;
            }
        }
    }

    fn take_committed(&self) -> Vec<Record> {
        let at = self.committed.lock().unwrap_or_else(PoisonError::into_inner).take();
        at.map(Record::Committed).into_iter().collect()
    }

    // After the answers: nobody waits for space that is needed later.
    fn prepare(&mut self) {
        let before = self.stats.space();
        match self.log.prepare() {
            Ok(after) if after > before => {
                tracing::warn!(space = ?after, "the log's disk is full: only deletions and status are accepted");
            }
            Ok(Space::Free) if before != Space::Free => tracing::info!("the log's disk has room again"),
            Ok(_) => {}
            Err(error) => tracing::error!(error = %coracle_base::one_line(&error), "cannot set log space aside"),
        }
        self.publish();
    }

    fn publish(&self) {
        self.stats.bytes.store(self.log.bytes(), Ordering::Relaxed);
        let space = if self.stats.awaits_room() { Space::Out } else { self.log.space() };
        self.stats.space.store(space as u8, Ordering::Relaxed);
    }
}

fn weigh(records: &[Record]) -> usize {
    let entry = |record: &Record| match record {
        Record::Entry(entry) => entry.weight(),
        _ => size_of::<Record>(),
    };
    records.iter().map(entry).sum()
}
