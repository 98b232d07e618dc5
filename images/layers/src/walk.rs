//! Reads a tar to its end, checks every entry and hands it on.

use std::fmt;
use std::io::{self, Read};

use coracle_base::Digest;

use crate::entry::{Entry, Kind, Meta, Sink, Time};
use crate::hash::Hashing;
use crate::header::{BLOCK, Bad, Header};
use crate::path::{LayerPath, PathError};
use crate::pax::Extended;

/// How much of anything a layer may have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of the unpacked tar.
    pub bytes: u64,
    /// Unpacked bytes per compressed byte, once more than 64 MiB came out.
    pub ratio: u64,
    /// Entries.
    pub entries: u64,
    /// Bytes of a path or of a link's target.
    pub path_bytes: usize,
    /// Components of a path.
    pub path_depth: usize,
    /// Bytes of one extended header.
    pub extended_bytes: usize,
    /// Bytes of one extended attribute (the kernel's own limit is 64 KiB).
    pub xattr_bytes: usize,
    /// Extended attributes of one file.
    pub xattrs: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 100 << 30,
            ratio: 400,
            entries: 4_000_000,
            path_bytes: 4095,
            path_depth: 256,
            extended_bytes: 1 << 20,
            xattr_bytes: 64 << 10,
            xattrs: 64,
        }
    }
}

/// A rule that an entry breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Rule {
    /// A header whose checksum is wrong: not a tar, or a damaged one.
    #[error("its header has a wrong checksum")]
    Checksum,
    /// A number that is none.
    #[error("its {0} is not a number of the allowed range")]
    Number(&'static str),
    /// An owner that does not fit in 32 bits.
    #[error("its owner {0} does not fit in 32 bits")]
    Owner(u64),
    /// A broken extended header.
    #[error("its extended header is malformed")]
    Extended,
    /// An extended header beyond the limit.
    #[error("its extended header has more than {0} bytes")]
    ExtendedSize(usize),
    /// A path rule.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A path rule, broken by a hard link's target.
    #[error("it is a hard link whose target is refused: {0}")]
    Target(PathError),
    /// A hard link to nothing, to the root or to itself.
    #[error("it is a hard link to itself or to nothing")]
    Hardlink,
    /// A symbolic link without target, with NUL or too long.
    #[error("it is a symbolic link with an unusable target")]
    Symlink,
    /// Something that is not a directory where the root is.
    #[error("it would replace the layer's root")]
    Root,
    /// `.wh.` with nothing behind it, or a directory called so.
    #[error("it is a whiteout of nothing")]
    Whiteout,
    /// Device 0:0, which is how overlayfs writes a whiteout.
    #[error("it is the character device 0:0, which would act as a whiteout")]
    Device,
    /// Sparse files, GNU or PAX.
    #[error("it is a sparse file, which layers may not contain")]
    Sparse,
    /// A type flag of nobody we know.
    #[error("its type `{}` is not one of a layer", char::from(*.0).escape_default())]
    Type(u8),
    /// More attributes than the limit.
    #[error("it has more than {0} extended attributes")]
    Xattrs(usize),
    /// A larger attribute than the limit.
    #[error("it has an extended attribute of more than {0} bytes")]
    XattrSize(usize),
    /// More entries than the limit.
    #[error("it is one entry more than {0}")]
    Entries(u64),
}

/// Why a layer was not walked to its end.
#[derive(Debug, thiserror::Error)]
pub enum WalkError<E> {
    /// The archive cannot be read: cut short, damaged, too large.
    #[error("cannot read the layer's archive after {0} entries")]
    Read(u64, #[source] io::Error),
    /// An entry breaks a rule.
    #[error("entry {number} `{entry}` of the layer is refused: {rule}")]
    Refused {
        /// Counting from one.
        number: u64,
        /// Its name, shortened.
        entry: String,
        /// The rule.
        rule: Rule,
    },
    /// The sink failed.
    #[error("cannot store `{entry}`")]
    Sink {
        /// The entry's path.
        entry: String,
        /// Why.
        #[source]
        source: E,
    },
}

/// A layer walked to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walked {
    /// SHA-256 of the whole tar, padding included.
    pub diff_id: Digest,
    /// Its size.
    pub bytes: u64,
    /// Entries handed to the sink.
    pub entries: u64,
}

/// Reads the tar `reader` gives and hands each entry to `sink`; then reads on to the end, which belongs to the digest.
pub fn walk<R: Read, S: Sink>(reader: R, limits: &Limits, sink: &mut S) -> Result<Walked, WalkError<S::Error>> {
    let mut walker = Walker { reader: Hashing::new(reader), limits, seen: 0, given: 0 };
    walker.all(sink)?;
    io::copy(&mut walker.reader, &mut io::sink()).map_err(|error| WalkError::Read(walker.seen, error))?;
    let entries = walker.given;
    let (diff_id, bytes) = walker.reader.finish();
    Ok(Walked { diff_id, bytes, entries })
}

struct Walker<'a, R> {
    reader: Hashing<R>,
    limits: &'a Limits,
    seen: u64,
    given: u64,
}

/// What long-name and extended headers said about the entry that follows them.
#[derive(Default)]
struct Ahead {
    extended: Extended,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Read> Walker<'_, R> {
    fn all<S: Sink>(&mut self, sink: &mut S) -> Result<(), WalkError<S::Error>> {
        let mut ahead = Ahead::default();
        let mut block = [0u8; BLOCK];
        while self.block(&mut block).map_err(|error| WalkError::Read(self.seen, error))? {
            if block.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            let name = |ahead: &Ahead, header: Option<&Header<'_>>| {
                let path = ahead.extended.path.as_ref().or(ahead.path.as_ref());
                path.cloned().or_else(|| header.map(Header::path)).unwrap_or_default()
            };
            let refused = |seen: u64, name: &[u8], rule: Rule| WalkError::Refused {
                number: seen + 1,
                entry: name[..name.len().min(200)].escape_ascii().to_string(),
                rule,
            };
            let header = Header::new(&block).map_err(|bad| refused(self.seen, &name(&ahead, None), bad.into()))?;
            if matches!(header.kind(), b'x' | b'g' | b'L' | b'K') {
                let shown = header.path();
                match self.ahead(&header, &mut ahead) {
                    Ok(()) => continue,
                    Err(Stop::Rule(rule)) => return Err(refused(self.seen, &shown, rule)),
                    Err(Stop::Io(error)) => return Err(WalkError::Read(self.seen, error)),
                }
            }
            let ahead = std::mem::take(&mut ahead);
            let shown = name(&ahead, Some(&header));
            if self.seen >= self.limits.entries {
                return Err(refused(self.seen, &shown, Rule::Entries(self.limits.entries)));
            }
            let (entry, size) = entry(&header, ahead, self.limits).map_err(|rule| refused(self.seen, &shown, rule))?;
            self.seen += 1;
            let mut data = Data { reader: &mut self.reader, left: size };
            if let Some(entry) = entry {
                self.given += 1;
                sink.entry(&entry, &mut data)
                    .map_err(|source| WalkError::Sink { entry: entry.path.to_string(), source })?;
            }
            let rest = data.left;
            self.skip(rest, size).map_err(|error| WalkError::Read(self.seen, error))?;
        }
        Ok(())
    }

    /// Fills the block; `false` at a clean end.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> io::Result<bool> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.reader.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(cut()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Skips `rest` bytes of an entry of `size` bytes, and its padding.
    fn skip(&mut self, rest: u64, size: u64) -> io::Result<()> {
        let padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
        let wanted = rest + padding;
        let skipped = io::copy(&mut (&mut self.reader).take(wanted), &mut io::sink())?;
        if skipped < wanted { Err(cut()) } else { Ok(()) }
    }

    /// A header that speaks about the next one. Its own size is its own: nothing said ahead applies to it (CVE-2026-53655).
    fn ahead(&mut self, header: &Header<'_>, ahead: &mut Ahead) -> Result<(), Stop> {
        let size = u64::try_from(header.size().map_err(Rule::from)?).map_err(|_| Rule::Number("size"))?;
        let limit = match header.kind() {
            b'x' | b'g' => self.limits.extended_bytes,
            // The name and its NUL.
            _ => self.limits.path_bytes + 1,
        };
        if size > limit as u64 {
            return Err(match header.kind() {
                b'x' | b'g' => Rule::ExtendedSize(limit),
                _ => Rule::Path(PathError::Long(self.limits.path_bytes)),
            }
            .into());
        }
        let mut data = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        (&mut self.reader).take(size).read_to_end(&mut data)?;
        if (data.len() as u64) < size {
            return Err(cut().into());
        }
        self.skip(0, size)?;
        let text = |data: &[u8]| data.strip_suffix(b"\0").unwrap_or(data).to_vec();
        match header.kind() {
            b'x' => ahead.extended.parse(&data, self.limits)?,
            b'L' => ahead.path = Some(text(&data)),
            b'K' => ahead.link = Some(text(&data)),
            // Global headers: no writer of layers uses them and readers disagree about them.
            _ => {}
        }
        Ok(())
    }
}

enum Stop {
    Rule(Rule),
    Io(io::Error),
}

impl From<Rule> for Stop {
    fn from(rule: Rule) -> Self {
        Self::Rule(rule)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Bad> for Rule {
    fn from(bad: Bad) -> Self {
        match bad {
            Bad::Checksum => Self::Checksum,
            Bad::Number(what) => Self::Number(what),
        }
    }
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends in the middle of an entry")
}

/// A file's contents, and no byte more.
struct Data<'a, R> {
    reader: &'a mut Hashing<R>,
    left: u64,
}

impl<R: Read> Read for Data<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.reader.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(cut());
        }
        self.left -= count as u64;
        Ok(count)
    }
}

impl<R> fmt::Debug for Data<'_, R> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Data({} bytes)", self.left)
    }
}

const WHITEOUT: &[u8] = b".wh.";

/// The entry a header makes with what was said ahead of it, and how many bytes of data follow. `None` is aufs' own
/// bookkeeping (`.wh..wh.plnk` and the like), which no layer means.
fn entry(header: &Header<'_>, ahead: Ahead, limits: &Limits) -> Result<(Option<Entry>, u64), Rule> {
    let mut extended = ahead.extended;
    let raw = extended.path.take().or(ahead.path).unwrap_or_else(|| header.path());
    let link = extended.link.take().or(ahead.link).unwrap_or_else(|| header.link().to_vec());
    let path = LayerPath::parse(&raw, limits.path_bytes, limits.path_depth)?;
    let mut flag = header.kind();
    // Before POSIX a directory was a file whose name ends in a slash.
    if flag == 0 || flag == b'0' || flag == b'7' {
        flag = if raw.ends_with(b"/") { b'5' } else { b'0' };
    }
    // Only files have data, whatever the size field of the others says: that is how Go reads what Go wrote.
    let size = if flag == b'0' {
        match extended.size {
            Some(size) => size,
            None => u64::try_from(header.size()?).map_err(|_| Rule::Number("size"))?,
        }
    } else {
        0
    };
    if size > limits.bytes {
        return Err(Rule::Number("size"));
    }
    let kind = match flag {
        b'0' => Kind::File { size },
        b'1' => {
            let target = LayerPath::parse(&link, limits.path_bytes, limits.path_depth).map_err(Rule::Target)?;
            if target.is_root() || target == path {
                return Err(Rule::Hardlink);
            }
            Kind::Hardlink { target }
        }
        b'2' if link.is_empty() || link.contains(&0) || link.len() > limits.path_bytes => return Err(Rule::Symlink),
        b'2' => Kind::Symlink { target: link },
        b'3' | b'4' => device(header, flag)?,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'S' => return Err(Rule::Sparse),
        other => return Err(Rule::Type(other)),
    };
    let hidden = |part: &[u8]| part.starts_with(WHITEOUT);
    let Some((parent, name)) = path.split() else {
        return match kind {
            Kind::Directory => Ok((Some(Entry { path, kind, meta: meta(header, extended)? }), size)),
            _ => Err(Rule::Root),
        };
    };
    if parent.split(|byte| *byte == b'/').any(hidden) {
        return Err(Rule::Whiteout);
    }
    if let Some(hides) = name.strip_prefix(WHITEOUT) {
        let gone = |path, kind| Ok((Some(Entry { path, kind, meta: Meta::default() }), size));
        return match hides {
            b"" | b"." | b".." => Err(Rule::Whiteout),
            b".wh..opq" => gone(path.parent(), Kind::Opaque),
            hides if hides.starts_with(WHITEOUT) => Ok((None, size)),
            hides => gone(path.sibling(hides), Kind::Whiteout),
        };
    }
    let meta = meta(header, extended)?;
    Ok((Some(Entry { path, kind, meta }), size))
}

fn device(header: &Header<'_>, flag: u8) -> Result<Kind, Rule> {
    let (major, minor) = header.device()?;
    let part = |number: i64| u32::try_from(number).map_err(|_| Rule::Number("device"));
    let (major, minor) = (part(major)?, part(minor)?);
    match (flag, major, minor) {
        (b'3', 0, 0) => Err(Rule::Device),
        (b'3', ..) => Ok(Kind::Character { major, minor }),
        _ => Ok(Kind::Block { major, minor }),
    }
}

fn meta(header: &Header<'_>, extended: Extended) -> Result<Meta, Rule> {
    let id = |given: Option<u64>, block: Result<i64, Bad>, what| {
        let id = match given {
            Some(id) => id,
            None => u64::try_from(block?).map_err(|_| Rule::Number(what))?,
        };
        // The last number means "unchanged" to chown(2), so that the file would keep root for its owner.
        u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or(Rule::Owner(id))
    };
    let mode = u32::try_from(header.mode()? & 0o7777).map_err(|_| Rule::Number("mode"))?;
    let mtime = match extended.mtime {
        Some(time) => time,
        None => Time { seconds: header.mtime()?, nanoseconds: 0 },
    };
    Ok(Meta {
        mode,
        uid: id(extended.uid, header.uid(), "uid")?,
        gid: id(extended.gid, header.gid(), "gid")?,
        mtime,
        xattrs: extended.xattrs,
    })
}
