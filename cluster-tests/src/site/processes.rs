//! What a machine consists of besides its folders: every process in its network or its cgroups. Found by looking at the
//! kernel, so that nothing survives which the program under test has forgotten.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::machine::Machine;

/// How to recognise a machine's processes.
pub(super) struct Body {
    namespace: PathBuf,
    holder: u32,
    cgroup: String,
}

impl Body {
    pub(super) fn of(machine: &Machine) -> Self {
        Self { namespace: machine.namespace(), holder: machine.holder(), cgroup: machine.cgroup() }
    }

    /// Its processes now, zombies and the holder of the namespace not counted.
    pub(super) fn processes(&self) -> Vec<u32> {
        let network = std::fs::read_link(&self.namespace).ok();
        let (inside, at) = (format!("/{}/", self.cgroup), format!("/{}", self.cgroup));
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if pid == self.holder || matches!(state(pid), None | Some('Z' | 'X')) {
                continue;
            }
            let theirs = std::fs::read_link(entry.path().join("ns/net")).ok();
            let cgroups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            if theirs.is_some() && theirs == network
                || cgroups.lines().any(|line| line.contains(&inside) || line.ends_with(&at))
            {
                found.push(pid);
            }
        }
        found
    }

    /// A signal to all that are there now.
    pub(super) fn send(&self, signal: Signal) {
        for pid in self.processes() {
            send(pid, signal);
        }
    }

    /// SIGKILL to all, until there is none.
    ///
    /// # Errors
    /// Some do not die: their pids.
    pub(super) fn kill(&self) -> Result<(), Vec<u32>> {
        self.repeat(|processes| {
            processes.iter().for_each(|pid| send(*pid, Signal::KILL));
            processes.is_empty()
        })
    }

    /// SIGSTOP to all, until none runs.
    ///
    /// # Errors
    /// Some do not stop: their pids.
    pub(super) fn stop(&self) -> Result<(), Vec<u32>> {
        self.repeat(|processes| {
            let running: Vec<u32> = processes.iter().copied().filter(|pid| state(*pid) != Some('T')).collect();
            running.iter().for_each(|pid| send(*pid, Signal::STOP));
            running.is_empty()
        })
    }

    /// Looks again and again, as processes may have been born meanwhile.
    fn repeat(&self, mut done: impl FnMut(&[u32]) -> bool) -> Result<(), Vec<u32>> {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let processes = self.processes();
            if done(&processes) {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(processes);
            }
            std::thread::sleep(Duration::from_millis(2)); // poll
        }
    }

    /// Its cgroups in all hierarchies.
    pub(super) fn cgroups(&self) -> Vec<PathBuf> {
        let top = Path::new("/sys/fs/cgroup");
        let mut folders = vec![top.to_path_buf()];
        folders.extend(std::fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path()));
        folders.into_iter().map(|folder| folder.join(&self.cgroup)).filter(|path| path.is_dir()).collect()
    }

    /// Removes its cgroups; its processes have been killed.
    ///
    /// # Errors
    /// Those that stay.
    pub(super) fn remove_cgroups(&self) -> Result<(), Vec<PathBuf>> {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let there = self.cgroups();
            there.iter().for_each(|folder| remove_tree(folder));
            if there.is_empty() {
                return Ok(());
            }
            // A killed process leaves its cgroup a moment later.
            if Instant::now() > until {
                return Err(there);
            }
            std::thread::sleep(Duration::from_millis(2)); // poll
        }
    }
}

/// Folders only, from the leaves: the files of a cgroup cannot be removed.
fn remove_tree(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = std::fs::remove_dir(folder);
}

/// A signal to a process that may be gone.
fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// The state letter of a process as in proc(5); none when it is gone.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}
