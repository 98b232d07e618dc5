//! What every long-running process needs: logs, orderly shutdown, metrics.
#![forbid(unsafe_code)]

mod drain;
pub mod logs;
pub mod metrics;

pub use drain::{Drain, DrainWatch, Drained};
