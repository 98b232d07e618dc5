//! What every long-running process needs: logs, orderly shutdown, metrics, who has a port.
#![forbid(unsafe_code)]

mod drain;
pub mod logs;
pub mod metrics;
pub mod ports;

pub use drain::{Drain, DrainWatch, Drained};
