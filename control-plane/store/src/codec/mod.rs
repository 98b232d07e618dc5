//! Our own binary encoding of commands and objects, for the log, for snapshots and for other servers: no library's type
//! reaches disk or wire. Little-endian, every variable part behind its length, a format number in front; a command this
//! release does not know is an error, never skipped.

mod answers;
mod bytes;
mod transactions;

pub use answers::{read_applied, write_applied};
pub use bytes::{Reader, Writer};
pub use transactions::{Part, decode, decode_parts, encode, encode_part, join};
pub(crate) use transactions::{read_claims, read_key, write_claims, write_key};

/// The newest format this release writes; it reads this one and all before it. What says nothing new is written in the format before,
/// for servers of the release before. 2: the cluster level.
pub const FORMAT: u16 = 2;

/// JSON trees deeper than this are not encoded: the parser stops at 128 levels, and an entry that cannot be read back would
/// stop the log for ever.
pub const MAX_DEPTH: usize = 100;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The bytes end in the middle of a value.
    #[error("the encoding ends early: {what} needs {needed} bytes, {left} are left")]
    Short {
        /// What was read.
        what: &'static str,
        /// How many bytes it needs.
        needed: usize,
        /// How many there are.
        left: usize,
    },
    /// Bytes are left over.
    #[error("{left} bytes follow the end of {what}")]
    Trailing {
        /// What was read.
        what: &'static str,
        /// How many are left.
        left: usize,
    },
    /// Written by a newer release.
    #[error(
        "format {found} is newer than this release can read ({FORMAT})\nhint: start the release that wrote it, or a newer one"
    )]
    Format {
        /// The number found.
        found: u16,
    },
    /// A command this release does not know.
    #[error("command {0} is not known to this release\nhint: a newer release wrote it; start that release")]
    UnknownCommand(u8),
    /// A flag that is neither 0 nor 1, a tag out of range.
    #[error("{what} cannot be {value}")]
    Value {
        /// What was read.
        what: &'static str,
        /// What it was.
        value: u8,
    },
    /// Not UTF-8.
    #[error("{0} is not UTF-8")]
    Utf8(&'static str),
    /// Not JSON.
    #[error("{what} is not JSON: {reason}")]
    Json {
        /// What was read.
        what: &'static str,
        /// The parser's words.
        reason: String,
    },
    /// Too deep to be read back.
    #[error("the object is nested deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// More than 4 GiB.
    #[error("{0} is too long to be encoded")]
    TooLong(&'static str),
}
