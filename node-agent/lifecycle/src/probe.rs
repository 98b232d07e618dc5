//! Probes as state machines: when the next try is due, and what the tries so far mean.

use coracle_base::Millis;
use serde::{Deserialize, Serialize};

use crate::pod::{Handler, Probe};

/// Which probe of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    /// Holds back the others.
    Startup,
    /// Edits Services.
    Readiness,
    /// Kills.
    Liveness,
}

impl ProbeKind {
    /// As it stands in an event: `Readiness`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// What a probe has found so far in this run of the container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ProbeState {
    /// A try is under way.
    #[serde(skip)]
    pub trying: bool,
    /// Tries that ended.
    pub tries: u32,
    /// Successes in a row.
    pub successes: u32,
    /// Failures in a row.
    pub failures: u32,
    /// What holds: `None` until a threshold was reached once.
    pub verdict: Option<bool>,
    /// When the last try ended.
    pub last_at: Millis,
}

/// From a container's start to the first liveness try, where the user asked for no delay.
const FIRST_LIVENESS_MS: Millis = 1000;
/// The first wait between early readiness tries.
const EARLY_MS: Millis = 100;

impl ProbeState {
    /// When the next try is due, of a container that started at `started_at` (and whose startup probe, if any, has passed
    /// at `gate_at`).
    #[must_use]
    pub fn due(&self, kind: ProbeKind, probe: &Probe, started_at: Millis, gate_at: Millis) -> Millis {
        if self.tries == 0 {
            // A container that has just begun is not yet worth killing: the first liveness try gives it a moment, where
            // upstream's fails at once and counts.
            let moment = if kind == ProbeKind::Liveness { probe.period_ms.min(FIRST_LIVENESS_MS) } else { 0 };
            return (started_at + probe.initial_delay_ms.max(moment)).max(gate_at);
        }
        self.last_at + self.wait(kind, probe)
    }

    /// Until it is ready for the first time, a container is asked sooner than each period: most need a fraction of a second,
    /// and an early no costs nobody anything. Commands are not run more often than the user asked.
    fn wait(&self, kind: ProbeKind, probe: &Probe) -> Millis {
        let eager = kind == ProbeKind::Readiness
            && self.verdict != Some(true)
            && self.successes == 0
            && !matches!(probe.handler, Handler::Exec(_));
        if !eager {
            return probe.period_ms;
        }
        (EARLY_MS << self.tries.saturating_sub(1).min(16)).min(probe.period_ms)
    }

    /// One try ended at `now`. Returns the verdict when it has just changed.
    pub fn record(&mut self, kind: ProbeKind, probe: &Probe, success: bool, now: Millis) -> Option<bool> {
        self.trying = false;
        self.tries = self.tries.saturating_add(1);
        self.last_at = now;
        let reached = if success {
            self.failures = 0;
            self.successes = self.successes.saturating_add(1);
            // Liveness and startup have a success threshold of 1 by definition.
            let threshold = if kind == ProbeKind::Readiness { probe.success_threshold } else { 1 };
            self.successes >= threshold
        } else {
            self.successes = 0;
            self.failures = self.failures.saturating_add(1);
            self.failures >= probe.failure_threshold
        };
        if reached && self.verdict != Some(success) {
            self.verdict = Some(success);
            return Some(success);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::PortRef;

    fn probe(handler: Handler) -> Probe {
        Probe {
            handler,
            initial_delay_ms: 2000,
            period_ms: 10_000,
            timeout_ms: 1000,
            success_threshold: 2,
            failure_threshold: 3,
            grace_ms: None,
        }
    }

    #[test]
    fn thresholds_count_in_a_row() {
        let probe = probe(Handler::Exec(Vec::new()));
        let run = |kind, tries: &str| {
            let mut state = ProbeState::default();
            tries.chars().map(|char| state.record(kind, &probe, char == '+', 0)).collect::<Vec<_>>()
        };
        use ProbeKind::{Liveness, Readiness};
        assert_eq!(run(Readiness, "+-++"), [None, None, None, Some(true)]);
        assert_eq!(run(Readiness, "++--+---"), [None, Some(true), None, None, None, None, None, Some(false)]);
        assert_eq!(run(Liveness, "--+---"), [None, None, Some(true), None, None, Some(false)]);
    }

    #[test]
    fn when_tries_are_due() {
        let exec = probe(Handler::Exec(Vec::new()));
        let tcp = probe(Handler::Tcp { host: String::new(), port: PortRef::Number(1) });
        let mut state = ProbeState::default();
        assert_eq!(state.due(ProbeKind::Readiness, &exec, 1000, 0), 3000);
        assert_eq!(state.due(ProbeKind::Readiness, &exec, 1000, 9000), 9000);
        state.record(ProbeKind::Readiness, &tcp, false, 3000);
        assert_eq!(state.due(ProbeKind::Readiness, &exec, 1000, 0), 13_000);
        assert_eq!(state.due(ProbeKind::Liveness, &tcp, 1000, 0), 13_000);
        let mut waits = Vec::new();
        for _ in 0..9 {
            waits.push(state.due(ProbeKind::Readiness, &tcp, 1000, 0) - state.last_at);
            state.record(ProbeKind::Readiness, &tcp, false, 3000);
        }
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    }
}
