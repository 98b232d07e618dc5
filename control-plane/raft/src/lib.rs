//! The replicated log: segmented write-ahead log, consensus adapter, batching of proposals, snapshots.
#![forbid(unsafe_code)]

pub mod disk;
pub mod wal;
