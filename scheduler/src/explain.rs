//! Why no node takes a pod, in upstream's words, and what would help.

use std::collections::BTreeMap;
use std::fmt;

/// Why no node takes a pod: each node is counted under its reasons.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Explain {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many nodes have each reason, by its words.
    pub reasons: BTreeMap<String, usize>,
    /// What would help, when something is known.
    pub hint: Option<String>,
}

impl fmt::Display for Explain {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "0/{} nodes are available", self.nodes)?;
        for (index, (reason, count)) in self.reasons.iter().enumerate() {
            out.write_str(if index == 0 { ": " } else { ", " })?;
            write!(out, "{count} {reason}")?;
        }
        out.write_str(".")?;
        match &self.hint {
            Some(hint) => write!(out, " hint: {hint}"),
            None => Ok(()),
        }
    }
}
