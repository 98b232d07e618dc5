//! From a tar stream to safe layer entries: digests, whiteout and path rules.
//!
//! [`Decoder`] turns a blob into tar bytes (hash of the compressed bytes, format by magic, bounds on size and expansion);
//! [`walk`] turns tar bytes into [`Entry`] values (hash of the tar, every path checked) and hands each to a [`Sink`]. Both work
//! over `Read` and touch nothing else, so that hostile archives can be tried in memory.
#![forbid(unsafe_code)]

mod decode;
mod entry;
mod hash;
mod header;
mod path;
mod pax;
mod walk;

pub use decode::{Compressed, DecodeError, Decoder, Format, Raw};
pub use entry::{Entry, Kind, Meta, Sink, Time};
pub use hash::Hashing;
pub use path::{LayerPath, PathError};
pub use walk::{Limits, Rule, WalkError, Walked, walk};
