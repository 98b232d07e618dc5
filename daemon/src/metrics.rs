//! The registry that every room hangs its numbers into, printed as OpenMetrics text.

use std::sync::{Arc, Mutex};

use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// Shared by all rooms of one process.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// Registers what a room counts.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    /// Everything, as OpenMetrics text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &registry);
        text
    }
}

/// What the kernel knows of this process: resident bytes, CPU seconds, open files, threads.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ProcessUse {
    /// Resident set in bytes.
    pub rss_bytes: u64,
    /// User and system time in seconds.
    pub cpu_seconds: f64,
    /// Threads.
    pub threads: u64,
    /// Open file descriptors.
    pub open_fds: u64,
}

/// Reads `/proc/self`; what cannot be read is zero.
#[must_use]
pub fn process_use() -> ProcessUse {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is the command in parentheses and may hold spaces.
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or(Vec::new(), |(_, rest)| rest.split(' ').collect());
    let number = |index: usize| fields.get(index).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    // proc(5): utime and stime are fields 14 and 15, threads 20, rss 24, counted from 1 with the pid; clock ticks are 1/100 s
    // and pages 4 KiB on every machine we build for.
    #[allow(clippy::cast_precision_loss)]
    let cpu_seconds = (number(11) + number(12)) as f64 / 100.0;
    ProcessUse {
        rss_bytes: number(21) * 4096,
        cpu_seconds,
        threads: number(17),
        open_fds: std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_memory_threads_and_files() {
        let now = process_use();
        assert!(now.rss_bytes > 100_000 && now.threads >= 1 && now.open_fds >= 3, "{now:?}");
    }
}
