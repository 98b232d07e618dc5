//! A pod's record in the run directory: what has been seen of it, so that the next agent process goes on where this one was.
//! It is of this boot only, as the containers are.

use std::path::Path;

use coracle_lifecycle::observed::Observed;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::node::write_whole;

const FORMAT: u32 = 1;

/// What is kept.
#[derive(Debug, Clone, Deserialize)]
pub struct Record {
    format: u32,
    /// The object, for a pod the ledger has lost.
    pub object: Value,
    /// What has been seen.
    pub seen: Observed,
}

impl Record {
    /// Reads `DIR/record.json`; `None` when there is none, or of another format.
    #[must_use]
    pub fn load(dir: &Path) -> Option<Self> {
        let bytes = std::fs::read(dir.join("record.json")).ok()?;
        let record: Self = serde_json::from_slice(&bytes).ok()?;
        (record.format == FORMAT).then_some(record)
    }

    /// Writes one. No sync: it need not survive a power cut.
    ///
    /// # Errors
    /// The file system's word.
    pub fn save(dir: &Path, object: &Value, seen: &Observed) -> std::io::Result<()> {
        /// The same fields, borrowed: a record is written at every change.
        #[derive(Serialize)]
        struct Borrowed<'a> {
            format: u32,
            object: &'a Value,
            seen: &'a Observed,
        }
        let bytes = serde_json::to_vec(&Borrowed { format: FORMAT, object, seen })?;
        write_whole(&dir.join("record.json"), &bytes, 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_and_another_format_is_none() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Record::load(dir.path()).is_none());
        let (object, seen) = (serde_json::json!({"kind": "Pod"}), Observed { accepted_at: 7, ..Observed::default() });
        Record::save(dir.path(), &object, &seen).unwrap();
        let read = Record::load(dir.path()).unwrap();
        assert_eq!((read.object, read.seen), (object, seen));
        let path = dir.path().join("record.json");
        let text = std::fs::read_to_string(&path).unwrap().replacen("\"format\":1", "\"format\":2", 1);
        std::fs::write(&path, text).unwrap();
        assert!(Record::load(dir.path()).is_none());
    }
}
