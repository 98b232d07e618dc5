//! What a layer says about one path, after every check.

use std::io::Read;

use crate::path::LayerPath;

/// Seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    /// Seconds; may be before 1970.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// Owner, mode, time, extended attributes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// The twelve permission bits: setuid, setgid and sticky are kept.
    pub mode: u32,
    /// Owner; never `u32::MAX`, which chown(2) takes for "leave it".
    pub uid: u32,
    /// Group; never `u32::MAX`.
    pub gid: u32,
    /// Last change of the contents.
    pub mtime: Time,
    /// `user.*` and `security.capability`; everything else has been dropped (a layer could forge `trusted.overlay.*`).
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What the path is, or becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory; a second entry for the same one changes its attributes.
    Directory,
    /// A file of this many bytes.
    File {
        /// Its size.
        size: u64,
    },
    /// A symbolic link. The target is free text that only the kernel may resolve, and only under the right root.
    Symlink {
        /// Where it points.
        target: Vec<u8>,
    },
    /// Another name of a file of this layer.
    Hardlink {
        /// The file.
        target: LayerPath,
    },
    /// A character device.
    Character {
        /// Driver.
        major: u32,
        /// Unit.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Driver.
        major: u32,
        /// Unit.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// The path of the layers below is gone (the entry was `.wh.NAME`).
    Whiteout,
    /// What the layers below have in this directory is gone (the entry was `.wh..wh..opq` in it).
    Opaque,
}

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where; the root only for [`Kind::Directory`] and [`Kind::Opaque`].
    pub path: LayerPath,
    /// What.
    pub kind: Kind,
    /// With which attributes; empty for whiteouts.
    pub meta: Meta,
}

/// Receives the entries of a layer in the order of the archive.
pub trait Sink {
    /// What can go wrong there.
    type Error;

    /// One entry. `data` gives a file's contents; what the sink leaves unread is skipped.
    fn entry(&mut self, entry: &Entry, data: &mut dyn Read) -> Result<(), Self::Error>;
}
