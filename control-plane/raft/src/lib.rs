//! The replicated log: segmented write-ahead log, consensus adapter, batching of proposals, snapshots.
