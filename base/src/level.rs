//! Levels: what a release can say and understand. Servers and agents state theirs; what is newer than the lowest of all servers is
//! not said yet, so that one machine after the other can be given a new release.

use std::fmt;
use std::sync::Arc;

/// A number that rises by one with each release that brings new commands, messages or formats.
pub type Level = u32;

/// What each level brought, the first one first. A release that changes nothing of the kind adds no line.
pub const LEVELS: &[&str] = &[
    // Says nothing of levels on the wire: whoever states none has this one.
    "the first one: commands 1 to 6, the log's words in format 1, sessions of protocol 1",
    "servers and agents state their level; the replicated cluster level, raised by command 7; pods that leave are let go of by every node; \
     pods that tolerate it are bound to cordoned nodes, and daemon pods are made",
];

/// The level of this release.
#[allow(clippy::cast_possible_truncation)]
pub const LEVEL: Level = LEVELS.len() as Level;

/// From this level on servers say when no node sends a pod anything new, and agents when their kernel has what they are asked for.
pub const LETS_GO: Level = 2;

/// From this level on every server binds to a cordoned node what comes there all the same, and to no other node what names its own:
/// before it no daemon pod is made.
pub const DAEMONS: Level = 2;

/// A program that speaks: its level, and how people call it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Release {
    /// What it can say and understand.
    pub level: Level,
    /// `0.2.0`; empty when it did not say.
    pub version: Arc<str>,
}

impl Release {
    /// What another one said of itself; one that says nothing is of the first level.
    #[must_use]
    pub fn stated(level: Level, version: &str) -> Self {
        Self { level: level.max(1), version: version.into() }
    }

    /// This one.
    #[must_use]
    pub fn own() -> Self {
        Self::stated(LEVEL, env!("CARGO_PKG_VERSION"))
    }

    /// The lowest level that a release of this level works with.
    #[must_use]
    pub fn oldest(&self) -> Level {
        self.level.saturating_sub(1).max(1)
    }

    /// Why this one and another cannot work together, in words with a hint; `None` when they can. Levels next to each other can, and the
    /// newer one says so: the older one was built before there was the other.
    #[must_use]
    pub fn refuses(&self, other: &Self) -> Option<String> {
        (other.level < self.oldest()).then(|| {
            format!(
                "it has {other}, too old for {self}, which works with level {} and newer\nhint: upgrade by one release at a time: first every server, then every agent",
                self.oldest()
            )
        })
    }
}

impl fmt::Display for Release {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.version.is_empty() {
            return write!(out, "a release of level {}", self.level);
        }
        write!(out, "release {} of level {}", self.version, self.level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_work_together_and_others_are_told_why_not() {
        let at = |level| Release::stated(level, "");
        assert_eq!(Release::own().refuses(&Release::stated(0, "")), None, "the release before says nothing of itself");
        assert_eq!(at(4).refuses(&at(3)), None);
        assert_eq!(at(4).refuses(&at(5)), None, "the newer one decides");
        let words = at(4).refuses(&at(2)).unwrap();
        assert!(
            words.contains("level 2") && words.contains("level 3 and newer") && words.contains("hint: "),
            "{words}"
        );
    }
}
