//! Container logs as podmon writes them (CRI lines, rotated by size), read for `kubectl logs`.
//!
//! A line is `TIME stdout|stderr P|F TEXT`; P = the line goes on in the next entry of its stream. The files of run N are
//! `N.log`, then `N.log.1` (older), `N.log.2`, ...

use std::io::SeekFrom;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use coracle_protocol::v1::LogRequest;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::mpsc;

/// How often a file that is followed is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Read at once.
const CHUNK: usize = 64 << 10;
/// A line that never ends is not held beyond this.
const MAX_LINE: usize = 1 << 20;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// No run before the last one.
    #[error("previous terminated container \"{container}\" in pod \"{pod}\" not found")]
    NoPrevious {
        /// Which container.
        container: String,
        /// Which pod.
        pod: String,
    },
    /// It has not run yet.
    #[error("container \"{container}\" in pod \"{pod}\" is waiting to start{}", if .why.is_empty() { String::new() } else { format!(": {}", .why) })]
    Waiting {
        /// Which container.
        container: String,
        /// Which pod.
        pod: String,
        /// `ContainerCreating`, ...
        why: String,
    },
    /// A file could not be read.
    #[error("the log of container \"{container}\" cannot be read")]
    Read {
        /// Which container.
        container: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The directory of one container's logs.
#[must_use]
pub fn dir(root: &Path, namespace: &str, pod: &str, uid: &str, container: &str) -> PathBuf {
    root.join(format!("{namespace}_{pod}_{uid}")).join(container)
}

/// The log of one run.
#[must_use]
pub fn path(dir: &Path, attempt: u32) -> PathBuf {
    dir.join(format!("{attempt}.log"))
}

/// The runs whose logs are there, in order.
fn attempts(dir: &Path) -> Vec<u32> {
    let mut found: Vec<u32> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
        .collect();
    found.sort_unstable();
    found
}

/// Removes logs of runs before the last one: one dead run is kept, as upstream does.
pub fn prune(dir: &Path, attempt: u32) {
    for old in attempts(dir).into_iter().filter(|old| old + 1 < attempt) {
        for file in files(dir, old) {
            let _ = std::fs::remove_file(file);
        }
    }
}

/// The files of a run, oldest first; the one being written last.
fn files(dir: &Path, attempt: u32) -> Vec<PathBuf> {
    let current = path(dir, attempt);
    let mut rotated: Vec<(u32, PathBuf)> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_prefix(&format!("{attempt}.log."))?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    rotated.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
    rotated.into_iter().map(|(_, path)| path).chain([current]).collect()
}

/// One entry of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry<'a> {
    time: &'a str,
    whole: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let _stream = parts.next()?;
    let tag = parts.next()?;
    Some(Entry { time, whole: tag == b"F", text: parts.next().unwrap_or_default() })
}

/// Turns CRI lines into what the user sees.
struct Printer {
    timestamps: bool,
    since_ms: u64,
    /// Bytes that may still go out.
    left: u64,
    /// The last entry did not end its line.
    inside: bool,
    out: Vec<u8>,
}

impl Printer {
    fn new(request: &LogRequest) -> Self {
        let left = if request.limit_bytes == 0 { u64::MAX } else { request.limit_bytes };
        Self { timestamps: request.timestamps, since_ms: request.since_ms, left, inside: false, out: Vec::new() }
    }

    fn line(&mut self, line: &[u8]) {
        let Some(entry) = parse(line) else { return };
        if self.since_ms > 0 {
            match coracle_manifests::time::parse(entry.time) {
                Some(at) if at < self.since_ms => return,
                // Times only grow: no need to look again.
                _ => self.since_ms = 0,
            }
        }
        if self.timestamps && !self.inside {
            self.put(entry.time.as_bytes());
            self.put(b" ");
        }
        self.put(entry.text);
        if entry.whole {
            self.put(b"\n");
        }
        self.inside = !entry.whole;
    }

    fn put(&mut self, bytes: &[u8]) {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        self.out.extend_from_slice(&bytes[..room]);
        self.left -= room as u64;
    }
}

/// Streams a log into `out`. `running` tells whether run `attempt` of the container still goes on, and why the container
/// waits if it never ran. Ends when all is said, the run has ended, or the reader is gone.
///
/// # Errors
/// There is no such log.
pub async fn stream(
    request: &LogRequest,
    dir: &Path,
    running: &(dyn Fn() -> Result<Option<u32>, String> + Send + Sync),
    out: &mpsc::Sender<Bytes>,
) -> Result<(), LogError> {
    let attempts = attempts(dir);
    let named = || (request.container.clone(), request.pod.clone());
    let attempt = if request.previous {
        let (container, pod) = named();
        let last = attempts.len().checked_sub(2).map(|at| attempts[at]);
        last.ok_or(LogError::NoPrevious { container, pod })?
    } else {
        match (attempts.last(), running()) {
            (Some(attempt), _) => *attempt,
            (None, Ok(_)) => return Ok(()),
            (None, Err(why)) => {
                let (container, pod) = named();
                return Err(LogError::Waiting { container, pod, why });
            }
        }
    };
    let bad = |source| LogError::Read { container: request.container.clone(), source };
    let mut printer = Printer::new(request);
    let files = files(dir, attempt);
    let (first, offset) = start_of_tail(&files, request.tail_lines).await.map_err(bad)?;
    let goes_on = || request.follow && matches!(running(), Ok(Some(now)) if now == attempt);
    let mut reader = Reader::default();
    for (index, path) in files.iter().enumerate().skip(first) {
        let mut file = match tokio::fs::File::open(path).await {
            Ok(file) => file,
            // Rotated away between the listing and now.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(bad(error)),
        };
        if index == first {
            file.seek(SeekFrom::Start(offset)).await.map_err(bad)?;
        }
        if !reader.drain(&mut file, &mut printer, out).await.map_err(bad)? {
            return Ok(());
        }
        if index + 1 == files.len() {
            return follow(path, file, &mut reader, &mut printer, out, &goes_on).await.map_err(bad);
        }
    }
    Ok(())
}

/// Goes on reading as the run goes on writing, through rotations.
async fn follow(
    path: &Path,
    mut file: tokio::fs::File,
    reader: &mut Reader,
    printer: &mut Printer,
    out: &mpsc::Sender<Bytes>,
    goes_on: &(dyn Fn() -> bool + Send + Sync),
) -> std::io::Result<()> {
    loop {
        // Asked before the read: what was written until the end is still seen.
        let more = goes_on();
        if !reader.drain(&mut file, printer, out).await? {
            return Ok(());
        }
        let moved = match tokio::fs::metadata(path).await {
            Ok(now) => now.ino() != file.metadata().await?.ino(),
            Err(_) => false,
        };
        if moved {
            // All of the old file was written before the new one was made: one more look, then on.
            if !reader.drain(&mut file, printer, out).await? {
                return Ok(());
            }
            file = tokio::fs::File::open(path).await?;
            continue;
        }
        if !more {
            return Ok(());
        }
        tokio::select! {
            // Cancel safe: nothing is read here.
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = out.closed() => return Ok(()),
        }
    }
}

/// Splits what it reads into lines; an unfinished one waits for its rest.
#[derive(Default)]
struct Reader {
    pending: Vec<u8>,
}

impl Reader {
    /// Reads to the end of the file. `false` when nobody wants more.
    async fn drain(
        &mut self,
        file: &mut tokio::fs::File,
        printer: &mut Printer,
        out: &mpsc::Sender<Bytes>,
    ) -> std::io::Result<bool> {
        let mut chunk = vec![0_u8; CHUNK];
        loop {
            let length = file.read(&mut chunk).await?;
            if length == 0 {
                return Ok(true);
            }
            self.pending.extend_from_slice(&chunk[..length]);
            let Some(end) = self.pending.iter().rposition(|byte| *byte == b'\n') else {
                if self.pending.len() > MAX_LINE {
                    self.pending.clear();
                }
                continue;
            };
            for line in self.pending[..end].split(|byte| *byte == b'\n') {
                printer.line(line);
            }
            self.pending.drain(..=end);
            if !printer.out.is_empty() && out.send(Bytes::from(std::mem::take(&mut printer.out))).await.is_err() {
                return Ok(false);
            }
            if printer.left == 0 {
                return Ok(false);
            }
        }
    }
}

/// Where the last `lines` lines begin: which file, which offset. All of it when `lines` is negative.
async fn start_of_tail(files: &[PathBuf], lines: i64) -> std::io::Result<(usize, u64)> {
    let Ok(mut wanted) = usize::try_from(lines) else { return Ok((0, 0)) };
    for (index, path) in files.iter().enumerate().rev() {
        // A file is at most as large as the rotation allows.
        let bytes = match tokio::fs::read(path).await {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        let mut end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        if wanted == 0 {
            return Ok((index, end as u64));
        }
        while end > 0 {
            let start = bytes[..end - 1].iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            // Only the last entry of a split line counts it.
            if parse(&bytes[start..end - 1]).is_none_or(|entry| entry.whole) {
                if wanted == 0 {
                    return Ok((index, end as u64));
                }
                wanted -= 1;
            }
            end = start;
        }
    }
    Ok((0, 0))
}

/// The last lines of a run, at most `max_lines` and `max_bytes`: for the message of one that failed.
#[must_use]
pub fn last_words(dir: &Path, attempt: u32, max_lines: usize, max_bytes: usize) -> String {
    let bytes = std::fs::read(path(dir, attempt)).unwrap_or_default();
    let mut printer = Printer::new(&LogRequest::default());
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    for line in &lines[lines.len().saturating_sub(max_lines)..] {
        printer.line(line);
    }
    let text = String::from_utf8_lossy(&printer.out).into_owned();
    let mut from = text.len().saturating_sub(max_bytes);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    text[from..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write as _;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn lines(range: std::ops::Range<u32>) -> String {
        range.fold(String::new(), |mut text, number| {
            let _ = writeln!(text, "2026-11-26T12:00:{number:02}.5Z stdout F line {number}");
            text
        })
    }

    fn request() -> LogRequest {
        LogRequest { pod: "p".into(), container: "c".into(), tail_lines: -1, ..LogRequest::default() }
    }

    async fn read(request: &LogRequest, dir: &Path) -> Result<String, LogError> {
        let (out, mut chunks) = mpsc::channel(64);
        stream(request, dir, &|| Err("ContainerCreating".to_owned()), &out).await?;
        drop(out);
        let mut all = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            all.extend_from_slice(&chunk);
        }
        Ok(String::from_utf8(all).unwrap())
    }

    #[tokio::test]
    async fn rotated_files_are_one_log() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("0.log.2"), lines(0..3)).unwrap();
        std::fs::write(dir.path().join("0.log.1"), lines(3..6)).unwrap();
        std::fs::write(dir.path().join("0.log"), lines(6..8)).unwrap();
        let all = read(&request(), dir.path()).await.unwrap();
        assert_eq!(all, (0..8).map(|number| format!("line {number}\n")).collect::<String>());
        for (tail, first) in [(0, 8), (1, 7), (2, 6), (4, 4), (100, 0)] {
            let text = read(&LogRequest { tail_lines: tail, ..request() }, dir.path()).await.unwrap();
            assert_eq!(text, (first..8).map(|number| format!("line {number}\n")).collect::<String>(), "tail {tail}");
        }
        let since = coracle_manifests::time::parse("2026-11-26T12:00:06Z").unwrap();
        assert_eq!(read(&LogRequest { since_ms: since, ..request() }, dir.path()).await.unwrap(), "line 6\nline 7\n");
        assert_eq!(read(&LogRequest { limit_bytes: 9, ..request() }, dir.path()).await.unwrap(), "line 0\nli");
        let timed = read(&LogRequest { timestamps: true, tail_lines: 1, ..request() }, dir.path()).await.unwrap();
        assert_eq!(timed, "2026-11-26T12:00:07.5Z line 7\n");
    }

    #[tokio::test]
    async fn split_lines_are_joined() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("0.log"), "T stdout F a\nT stdout P long \nT stdout P line\nT stdout F !\n")
            .unwrap();
        assert_eq!(read(&request(), dir.path()).await.unwrap(), "a\nlong line!\n");
        assert_eq!(read(&LogRequest { tail_lines: 1, ..request() }, dir.path()).await.unwrap(), "long line!\n");
    }

    #[tokio::test]
    async fn runs_before_the_last_one() {
        let dir = tempfile::tempdir().unwrap();
        let words = read(&request(), dir.path()).await.unwrap_err().to_string();
        assert_eq!(words, "container \"c\" in pod \"p\" is waiting to start: ContainerCreating");
        std::fs::write(dir.path().join("3.log"), lines(3..4)).unwrap();
        let previous = LogRequest { previous: true, ..request() };
        let words = read(&previous, dir.path()).await.unwrap_err().to_string();
        assert_eq!(words, "previous terminated container \"c\" in pod \"p\" not found");
        std::fs::write(dir.path().join("4.log"), lines(4..5)).unwrap();
        std::fs::write(dir.path().join("4.log.1"), lines(1..2)).unwrap();
        assert_eq!(read(&previous, dir.path()).await.unwrap(), "line 3\n");
        prune(dir.path(), 5);
        assert_eq!(attempts(dir.path()), [4]);
    }

    #[tokio::test]
    async fn following_goes_through_a_rotation_and_ends_with_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, lines(0..1)).unwrap();
        let alive = Arc::new(AtomicBool::new(true));
        let (out, mut chunks) = mpsc::channel(64);
        let task = tokio::spawn({
            let (dir, alive) = (dir.path().to_owned(), alive.clone());
            async move {
                let running = move || Ok(alive.load(Ordering::SeqCst).then_some(0));
                stream(&LogRequest { follow: true, ..request() }, &dir, &running, &out).await
            }
        });
        assert_eq!(chunks.recv().await.unwrap(), "line 0\n");
        let append = |text: &str| {
            use std::io::Write as _;
            std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(text.as_bytes()).unwrap();
        };
        append("2026-11-26T12:00:01.5Z stdout F li");
        append("ne 1\n");
        assert_eq!(chunks.recv().await.unwrap(), "line 1\n");
        append(&lines(2..3));
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        std::fs::write(&path, lines(3..4)).unwrap();
        let mut text = String::new();
        while !text.ends_with("line 3\n") {
            text.push_str(std::str::from_utf8(&chunks.recv().await.unwrap()).unwrap());
        }
        assert_eq!(text, "line 2\nline 3\n");
        append(&lines(4..5));
        alive.store(false, Ordering::SeqCst);
        assert_eq!(chunks.recv().await.unwrap(), "line 4\n");
        assert!(chunks.recv().await.is_none());
        task.await.unwrap().unwrap();
    }
}
