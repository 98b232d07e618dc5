//! SIGTERM as a wait: the signal is blocked in every thread and fetched by one. A container's first process has no default
//! action for signals, so whoever does not do this is killed the hard way after the grace period.

use nix::sys::signal::{SigSet, Signal};

/// The signals that mean "stop", kept back from now on in this thread and those it starts.
pub struct Stop(SigSet);

impl Stop {
    pub fn block() -> std::io::Result<Self> {
        let set = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
        set.thread_block()?;
        Ok(Self(set))
    }

    /// Sleeps until one of them comes.
    pub fn wait(&self) -> std::io::Result<&'static str> {
        Ok(self.0.wait()?.as_str())
    }
}
