//! Ids, generations, digests, injected clock and randomness, and the error-chain printer: what every room may use.
#![forbid(unsafe_code)]

mod digest;
mod errors;
mod generation;
pub mod level;
mod nearest;
mod time;

pub use digest::{Digest, DigestError};
pub use errors::{chain, one_line};
pub use generation::{Epoch, Generation, Revision};
pub use level::{Level, Release};
pub use nearest::nearest;
pub use time::{Clock, Millis, Rng};
