//! Orderly shutdown: say it, give everybody the same deadline, then go on without the late ones.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The side that ends things. Dropping it signals too, so that an early return shuts down what was started.
#[derive(Debug, Default)]
pub struct Drain {
    token: CancellationToken,
    tracker: TaskTracker,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every task finished by itself.
    Clean,
    /// The deadline passed with this many tasks left.
    Late(usize),
}

/// The side that is told. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DrainWatch {
    token: CancellationToken,
    tracker: TaskTracker,
}

impl Drain {
    /// A fresh drain that nobody has signalled.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// For a task or a part of the program that must end with the rest.
    #[must_use]
    pub fn watch(&self) -> DrainWatch {
        DrainWatch { token: self.token.clone(), tracker: self.tracker.clone() }
    }

    /// Signals and waits for the tracked tasks, at most `deadline`.
    pub async fn finish(self, deadline: Duration) -> Drained {
        self.token.cancel();
        self.tracker.close();
        if tokio::time::timeout(deadline, self.tracker.wait()).await.is_ok() {
            Drained::Clean
        } else {
            Drained::Late(self.tracker.len())
        }
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.token.cancel();
    }
}

impl DrainWatch {
    /// Resolves when the drain begins. Cancel safe.
    pub async fn signaled(&self) {
        self.token.cancelled().await;
    }

    /// Whether it has begun.
    #[must_use]
    pub fn is_signaled(&self) -> bool {
        self.token.is_cancelled()
    }

    /// The token itself, for rooms that know nothing of this crate.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Runs a task that the drain waits for. It must watch `signaled` itself.
    pub fn spawn<F>(&self, task: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(task)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_waits_for_tasks_that_listen() {
        let drain = Drain::new();
        let watch = drain.watch();
        let inner = watch.clone();
        watch.spawn(async move { inner.signaled().await });
        assert_eq!(drain.finish(Duration::from_secs(5)).await, Drained::Clean);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deaf_task_is_counted_and_left() {
        let drain = Drain::new();
        drain.watch().spawn(std::future::pending::<()>());
        assert_eq!(drain.finish(Duration::from_secs(5)).await, Drained::Late(1));
    }
}
