//! A pod's record in the run directory: what has been seen of it, so that the next agent process goes on where this one was.
//! It is of this boot only, as the containers are.

use std::path::Path;

use coracle_lifecycle::observed::Observed;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::node::write_whole;

const FORMAT: u32 = 1;

/// What is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    /// The object, for a pod the ledger has lost.
    pub object: Value,
    /// What has been seen.
    pub seen: Observed,
}

impl Record {
    /// A record.
    #[must_use]
    pub fn new(object: Value, seen: Observed) -> Self {
        Self { format: FORMAT, object, seen }
    }

    /// Reads `DIR/record.json`; `None` when there is none, or of another format.
    #[must_use]
    pub fn load(dir: &Path) -> Option<Self> {
        let bytes = std::fs::read(dir.join("record.json")).ok()?;
        let record: Self = serde_json::from_slice(&bytes).ok()?;
        (record.format == FORMAT).then_some(record)
    }

    /// Writes it. No sync: it need not survive a power cut.
    ///
    /// # Errors
    /// The file system's word.
    pub fn save(&self, dir: &Path) -> std::io::Result<()> {
        write_whole(&dir.join("record.json"), &serde_json::to_vec(self)?, 0o600)
    }
}
