//! The write-ahead log: segment files of frames, one frame a group commit, one fdatasync a frame.
//!
//! A frame is written only after the one before is durable. So what a power cut leaves torn is the last frame (it is cut
//! off: nobody was told of it), and a valid frame behind a bad one proves that the disk lost something it had promised: such a
//! log is refused, because a server that forgot must not vote.
//!
//! Everything Raft must remember is a record of this one log: entries, the vote, the committed index, truncations and
//! purges. Truncation is a record too: cutting the file could not keep a frame's first half, nor the votes behind the cut.
//!
//! ```text
//! segment  header (512 bytes), frames at multiples of 512 bytes, zeros
//! header   "CORACLOG", format u16, cluster u128, node u64, sequence u64, first frame u64, crc of the frame before u32, crc32c u32,
//!          and in format 2: the wrapped data key (76 bytes), crc32c of all before u32
//! frame    magic u32, payload length u32, number u64, crc of the frame before u32, crc32c of all but this field u32, payload
//! payload  records; in format 2: nonce (12 bytes), sealed records, tag (16 bytes)
//! record   kind u8, length u32, body
//! ```
//!
//! Format 2 is sealed (`vault`). The checksums are over what lies on the disk, so that what is torn and what is lost is told apart
//! without a key; a frame that is whole and does not open was changed by somebody.

mod frame;
mod index;
mod log;
pub(crate) mod record;
mod recover;
mod segment;
mod writer;

use std::io;
use std::path::Path;

use crate::vault::KeyError;

pub use index::Index;
pub use log::{Log, LogConfig, Space};
pub use record::{Ballot, Entry, Payload, Position, Record};
pub use writer::{Durable, Pace, Writer, WriterStats};

/// Sectors are the unit a disk writes whole.
pub const SECTOR: u64 = 512;

/// The format of sealed segments, and the newest this release reads.
pub const FORMAT: u16 = 2;
/// The format of plain segments.
const PLAIN: u16 = 1;

/// What went wrong with the log.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// The system refused.
    #[error("cannot {operation} {file}")]
    Io {
        /// What was to be done.
        operation: &'static str,
        /// To which file.
        file: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no room. Nothing of the frame is in the log: the same records can be tried again, and nothing else before them.
    #[error("the log's disk is full: cannot {operation} {file}")]
    Full {
        /// What was to be done.
        operation: &'static str,
        /// To which file.
        file: String,
        /// The system's word.
        #[source]
        source: io::Error,
    },
    /// The disk gave back something else than was written.
    #[error(
        "the log is corrupt: {file} at byte {offset}: {what}\nhint: this server must not vote with it; restore a backup into an empty data directory, or remove this server from the cluster and join it again"
    )]
    Corrupt {
        /// The segment.
        file: String,
        /// Where in it.
        offset: u64,
        /// In words.
        what: String,
    },
    /// A segment of another server or cluster.
    #[error(
        "{file} belongs to {what}\nhint: do not copy data directories between servers; a new server joins with an empty one"
    )]
    Foreign {
        /// The segment.
        file: String,
        /// Whose it is.
        what: String,
    },
    /// Written by a newer release.
    #[error(
        "{file} has format {found}, this release reads up to {FORMAT}\nhint: start the release that wrote it, or a newer one"
    )]
    Format {
        /// The segment.
        file: String,
        /// What it says.
        found: u16,
    },
    /// What is sealed does not open, or nothing can be sealed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Entries out of order: the caller's mistake, nothing was written.
    #[error("the log takes entries in order: {0}")]
    Order(String),
    /// A write or a sync failed before; nothing is accepted since.
    #[error("the log stopped after a failed write: {0}")]
    Poisoned(String),
    /// An entry that is not in the log was asked for.
    #[error("entry {0} is not in the log")]
    NoEntry(u64),
    /// The log's thread is gone.
    #[error("the log is closed")]
    Closed,
}

impl WalError {
    /// The same with the whole path of the file it names.
    pub(crate) fn below(mut self, directory: &Path) -> Self {
        if let Self::Io { file, .. }
        | Self::Full { file, .. }
        | Self::Corrupt { file, .. }
        | Self::Foreign { file, .. }
        | Self::Format { file, .. } = &mut self
        {
            *file = directory.join(&*file).display().to_string();
        }
        self
    }

    pub(crate) fn io(operation: &'static str, file: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| Self::Io { operation, file, source }
    }

    /// The same where a full disk leaves nothing behind that counts.
    fn room(operation: &'static str, file: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let file = file.into();
        move |source| {
            if log::is_full(&source) {
                Self::Full { operation, file, source }
            } else {
                Self::Io { operation, file, source }
            }
        }
    }
}
