//! Time of day that never steps back while the agent runs: deadlines and reported times come from one source.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coracle_base::Millis;
use tokio::time::Instant;

/// The time of day at the agent's start, carried on by the monotonic clock. (In tests tokio's paused clock moves it.)
#[derive(Debug, Clone, Copy)]
pub struct AgentClock {
    started: Instant,
    wall_ms: Millis,
}

impl AgentClock {
    /// Reads the machine's clock once.
    #[must_use]
    pub fn start() -> Self {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), wall_ms: u64::try_from(wall.as_millis()).unwrap_or(u64::MAX) }
    }

    /// Milliseconds since 1970.
    #[must_use]
    pub fn now_ms(&self) -> Millis {
        self.wall_ms + u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The moment a time of `now_ms` comes.
    #[must_use]
    pub fn instant(&self, at: Millis) -> Instant {
        self.started + Duration::from_millis(at.saturating_sub(self.wall_ms))
    }
}
