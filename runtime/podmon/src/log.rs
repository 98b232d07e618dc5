//! Container output as CRI log lines: `2026-11-26T12:00:00.000000000Z stdout F text`, with exact rotation.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use crate::sys;

/// A longer line is written in parts marked `P`.
const LINE_MAX: usize = 16 << 10;

/// One container's log file.
pub(crate) struct Log {
    path: String,
    file: Option<File>,
    size: u64,
    max: u64,
    files: u32,
    /// Lines that go to the file with one write.
    batch: Vec<u8>,
    pub(crate) dropped: u64,
}

/// Bytes of one stream that do not end a line yet.
#[derive(Default)]
pub(crate) struct Pending {
    bytes: Vec<u8>,
}

impl Log {
    pub(crate) fn open(path: &str, max: u64, files: u32) -> Self {
        let mut log = Self {
            path: path.to_owned(),
            file: None,
            size: 0,
            max,
            files: files.max(1),
            batch: Vec::new(),
            dropped: 0,
        };
        log.reopen();
        log
    }

    fn reopen(&mut self) {
        let file = OpenOptions::new().create(true).append(true).mode(0o640).open(&self.path).ok();
        self.size = file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |meta| meta.len());
        self.file = file;
    }

    /// Takes what a container wrote.
    pub(crate) fn take(&mut self, stream: &str, pending: &mut Pending, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = LINE_MAX - pending.bytes.len();
            let part = &bytes[..bytes.len().min(room)];
            if let Some(end) = part.iter().position(|byte| *byte == b'\n') {
                pending.bytes.extend_from_slice(&part[..end]);
                self.line(stream, 'F', &pending.bytes);
                pending.bytes.clear();
                bytes = &bytes[end + 1..];
            } else {
                pending.bytes.extend_from_slice(part);
                bytes = &bytes[part.len()..];
                if pending.bytes.len() == LINE_MAX {
                    self.line(stream, 'P', &pending.bytes);
                    pending.bytes.clear();
                }
            }
        }
        self.flush();
        if pending.bytes.is_empty() && pending.bytes.capacity() > 4096 {
            pending.bytes = Vec::new();
        }
    }

    /// The stream has ended: what is left is a last line without its end.
    pub(crate) fn end(&mut self, stream: &str, pending: &mut Pending) {
        if !pending.bytes.is_empty() {
            self.line(stream, 'F', &pending.bytes);
            pending.bytes = Vec::new();
            self.flush();
        }
    }

    fn line(&mut self, stream: &str, tag: char, text: &[u8]) {
        let (seconds, nanos) = sys::now();
        let mut head = [0_u8; 64];
        let room = head.len();
        let mut rest = &mut head[..];
        let _ = write!(rest, "{}.{nanos:09}Z {stream} {tag} ", date(seconds));
        let used = room - rest.len();
        let length = (used + text.len() + 1) as u64;
        if self.size + (self.batch.len() as u64) + length > self.max && self.size + self.batch.len() as u64 > 0 {
            self.flush();
            self.rotate();
        }
        self.batch.extend_from_slice(&head[..used]);
        self.batch.extend_from_slice(text);
        self.batch.push(b'\n');
    }

    /// A full disk must cost log lines, not the container: they are dropped, and counted.
    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        if self.file.is_none() {
            self.reopen();
        }
        let written = self.file.as_mut().map_or(0, |file| file.write(&self.batch).unwrap_or(0));
        let whole = match self.batch[..written].iter().rposition(|byte| *byte == b'\n') {
            Some(end) => end + 1,
            None => 0,
        };
        if whole < written {
            // Half a line would run into the next one.
            let _ = self.file.as_ref().map(|file| file.set_len(self.size + whole as u64));
        }
        self.size += whole as u64;
        self.dropped += self.batch[whole..].iter().filter(|byte| **byte == b'\n').count() as u64;
        self.batch.clear();
        if self.batch.capacity() > 4096 {
            self.batch = Vec::new();
        }
    }

    fn rotate(&mut self) {
        self.file = None;
        if self.files <= 1 {
            let _ = std::fs::remove_file(&self.path);
        }
        for number in (1..self.files).rev() {
            let from = if number == 1 { self.path.clone() } else { format!("{}.{}", self.path, number - 1) };
            let _ = std::fs::rename(from, format!("{}.{number}", self.path));
        }
        self.reopen();
    }
}

/// `2026-11-26T12:00:00` of seconds since 1970 (civil-from-days, Howard Hinnant's algorithm).
fn date(seconds: u64) -> String {
    let days = seconds / 86_400;
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let rest = seconds % 86_400;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}", rest / 3600, rest % 3600 / 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(date(0), "1970-01-01T00:00:00");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00");
        assert_eq!(date(1_795_694_400), "2026-11-26T12:00:00");
    }

    #[test]
    fn a_full_disk_costs_whole_lines() {
        // Every write to it fails with ENOSPC.
        let mut log = Log::open("/dev/full", 40_000, 1);
        let mut pending = Pending::default();
        log.take("stdout", &mut pending, b"one\ntwo\nthree");
        assert_eq!((log.dropped, log.size), (2, 0));
        log.end("stdout", &mut pending);
        assert_eq!(log.dropped, 3);
    }

    #[test]
    fn lines_parts_and_rotation() {
        let dir = std::env::temp_dir().join(format!("podmon-log-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("0.log").display().to_string();
        let mut log = Log::open(&path, 40_000, 2);
        let mut pending = Pending::default();
        log.take("stdout", &mut pending, b"one\ntw");
        log.take("stdout", &mut pending, b"o\nlast");
        log.end("stdout", &mut pending);
        let text = std::fs::read_to_string(&path).unwrap();
        let tails: Vec<&str> = text.lines().map(|line| line.split_once(' ').unwrap().1).collect();
        assert_eq!(tails, ["stdout F one", "stdout F two", "stdout F last"]);
        log.take("stderr", &mut pending, &[b'x'; LINE_MAX * 3]);
        log.take("stderr", &mut pending, b"\n");
        assert!(std::fs::metadata(&path).unwrap().len() <= 40_000);
        assert!(std::fs::metadata(format!("{path}.1")).unwrap().len() <= 40_000);
        assert!(!std::path::Path::new(&format!("{path}.2")).exists());
        std::fs::remove_dir_all(dir).unwrap();
    }
}
