//! What an outsider sees: the heartbeats of pods that must run only once, and how long a Service was silent.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::site::{Vms, WITNESS};

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hears heartbeats.
pub struct Heartbeats {
    stop: Arc<AtomicBool>,
    heard: Arc<Mutex<Vec<(Instant, String)>>>,
    thread: Option<JoinHandle<()>>,
}

/// Where pods send theirs.
pub const HEARTBEATS: SocketAddrV4 = SocketAddrV4::new(WITNESS, 9000);

impl Heartbeats {
    /// Hears all from now on.
    ///
    /// # Panics
    /// There is no socket to be had.
    #[must_use]
    pub fn of(site: &Vms) -> Self {
        let (stop, heard) = (Arc::new(AtomicBool::new(false)), Arc::<Mutex<Vec<_>>>::default());
        let (ends, hears) = (stop.clone(), heard.clone());
        let thread = site.beside(move || {
            let socket = UdpSocket::bind(HEARTBEATS).expect("a socket");
            socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
            let mut packet = [0; 256];
            while !ends.load(Ordering::SeqCst) {
                let Ok(length) = socket.recv(&mut packet) else { continue };
                let text = String::from_utf8_lossy(&packet[..length]).into_owned();
                let name = text.split(' ').next().unwrap_or_default().to_owned();
                locked(&hears).push((Instant::now(), name));
            }
        });
        Self { stop, heard, thread: Some(thread) }
    }

    /// When somebody was last heard.
    #[must_use]
    pub fn last(&self, name: &str) -> Option<Instant> {
        locked(&self.heard).iter().rev().find(|(_, who)| who == name).map(|(when, _)| *when)
    }

    /// When somebody was first heard.
    #[must_use]
    pub fn first(&self, name: &str) -> Option<Instant> {
        locked(&self.heard).iter().find(|(_, who)| who == name).map(|(when, _)| *when)
    }

    /// How many heartbeats of somebody came after a moment.
    #[must_use]
    pub fn since(&self, name: &str, from: Instant) -> usize {
        locked(&self.heard).iter().filter(|(when, who)| who == name && *when > from).count()
    }
}

impl Drop for Heartbeats {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Asks a web server ten times a second, each time on a new connection, however long earlier ones take.
pub struct Client {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

/// What came of it.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Answers with a 200.
    pub answers: usize,
    /// What was asked and not answered well.
    pub failures: usize,
    /// The longest time without an answer.
    pub longest: Duration,
    last: Instant,
}

impl Client {
    /// Asks from now on: `address`, and the path there.
    #[must_use]
    pub fn of(site: &Vms, address: SocketAddr, path: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let new = Seen { answers: 0, failures: 0, longest: Duration::ZERO, last: Instant::now() };
        let seen = Arc::new(Mutex::new(new));
        let (ends, sees, path) = (stop.clone(), seen.clone(), path.to_owned());
        let thread = site.beside(move || {
            while !ends.load(Ordering::SeqCst) {
                let (sees, path) = (sees.clone(), path.clone());
                // The thread begins in the namespace that this one is in.
                std::thread::spawn(move || {
                    let answered = ask(address, &path).is_some();
                    let mut seen = locked(&sees);
                    if answered {
                        let now = Instant::now();
                        let silent = now.duration_since(seen.last);
                        *seen =
                            Seen { answers: seen.answers + 1, longest: seen.longest.max(silent), last: now, ..*seen };
                    } else {
                        seen.failures += 1;
                    }
                });
                std::thread::sleep(Duration::from_millis(100)); // poll
            }
        });
        Self { stop, seen, thread: Some(thread) }
    }

    /// What came since the last time this was asked.
    #[must_use]
    pub fn take(&self) -> Seen {
        let mut seen = locked(&self.seen);
        let now = Instant::now();
        let whole = Seen { longest: seen.longest.max(now.duration_since(seen.last)), ..*seen };
        *seen = Seen { answers: 0, failures: 0, longest: Duration::ZERO, last: now };
        whole
    }

    /// Whether it has had an answer since the last time.
    #[must_use]
    pub fn answered(&self) -> usize {
        locked(&self.seen).answers
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The body of an answer with a 200, from the namespace of this thread.
#[must_use]
pub fn ask(address: SocketAddr, path: &str) -> Option<String> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
}
