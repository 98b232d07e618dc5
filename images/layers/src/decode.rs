//! From a blob to tar bytes: the format by its magic, the digest of the blob, bounds on what comes out.

use std::io::{self, BufReader, Chain, Cursor, Read};

use coracle_base::Digest;
use flate2::read::MultiGzDecoder;

use crate::Limits;
use crate::hash::Hashing;

/// How a blob turned out to be compressed; media types lie, the first bytes do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Not at all.
    Tar,
    /// gzip, possibly of several members.
    Gzip,
    /// Zstandard, possibly of several frames, skippable ones among them (`zstd:chunked`).
    Zstd,
}

/// A blob read to its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compressed {
    /// SHA-256 of the blob as it came.
    pub digest: Digest,
    /// Its size.
    pub bytes: u64,
    /// What it was.
    pub format: Format,
}

/// Why a blob cannot be decoded. Arrives inside an [`io::Error`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// xz, bzip2, ...
    #[error("the layer is compressed with {0}, which is not supported: gzip and zstd are")]
    Format(&'static str),
    /// More tar bytes than any layer may have.
    #[error("the layer unpacks to more than {0} bytes")]
    TooLarge(u64),
    /// A decompression bomb.
    #[error("the layer grows more than {0} times when it is unpacked")]
    Ratio(u64),
}

impl From<DecodeError> for io::Error {
    fn from(error: DecodeError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// Below this the expansion ratio is nobody's business: a layer of zeros shrinks a thousandfold and does no harm.
const RATIO_FREE: u64 = 64 << 20;

type Source<R> = Chain<Cursor<Vec<u8>>, Hashing<R>>;

// One decoder a layer: the size of the enum does not matter, a box on every read would.
#[allow(clippy::large_enum_variant)]
enum Stage<R: Read> {
    Tar(Source<R>),
    Gzip(MultiGzDecoder<BufReader<Source<R>>>),
    Zstd(zstd::stream::read::Decoder<'static, BufReader<Source<R>>>),
}

/// Reads a blob, gives tar bytes.
pub struct Decoder<R: Read> {
    stage: Stage<R>,
    out: u64,
    max_bytes: u64,
    max_ratio: u64,
}

impl<R: Read> Decoder<R> {
    /// Looks at the first bytes of `reader` to see what it is.
    pub fn new(reader: R, limits: &Limits) -> io::Result<Self> {
        let mut hashing = Hashing::new(reader);
        let mut head = Vec::with_capacity(6);
        (&mut hashing).take(6).read_to_end(&mut head)?;
        let gzip = head.starts_with(&[0x1f, 0x8b]);
        let zstd = head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
            || (head.len() >= 4 && head[0] & 0xf0 == 0x50 && head[1..4] == [0x2a, 0x4d, 0x18]);
        if head.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
            return Err(DecodeError::Format("xz").into());
        }
        if head.starts_with(b"BZh") {
            return Err(DecodeError::Format("bzip2").into());
        }
        let source = Cursor::new(head).chain(hashing);
        let stage = if gzip {
            Stage::Gzip(MultiGzDecoder::new(BufReader::with_capacity(64 << 10, source)))
        } else if zstd {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(BufReader::with_capacity(128 << 10, source))?;
            // 128 MiB, what `zstd --long` makes and every reader allows: a frame may not ask for more memory.
            decoder.window_log_max(27)?;
            Stage::Zstd(decoder)
        } else {
            Stage::Tar(source)
        };
        Ok(Self { stage, out: 0, max_bytes: limits.bytes, max_ratio: limits.ratio })
    }

    /// What the blob is.
    pub fn format(&self) -> Format {
        match self.stage {
            Stage::Tar(_) => Format::Tar,
            Stage::Gzip(_) => Format::Gzip,
            Stage::Zstd(_) => Format::Zstd,
        }
    }

    fn consumed(&self) -> u64 {
        let source = match &self.stage {
            Stage::Tar(source) => source,
            Stage::Gzip(decoder) => decoder.get_ref().get_ref(),
            Stage::Zstd(decoder) => decoder.get_ref().get_ref(),
        };
        source.get_ref().1.bytes()
    }

    /// Reads whatever is left, of the tar and of the blob behind it, and tells the blob's digest.
    pub fn finish(mut self) -> io::Result<Compressed> {
        io::copy(&mut self, &mut io::sink())?;
        self.into_raw().drain()
    }

    /// Gives up decoding; the blob's digest can still be had.
    pub fn into_raw(self) -> Raw<R> {
        let format = self.format();
        let source = match self.stage {
            Stage::Tar(source) => source,
            Stage::Gzip(decoder) => decoder.into_inner().into_inner(),
            Stage::Zstd(decoder) => decoder.finish().into_inner(),
        };
        Raw { hashing: source.into_inner().1, format }
    }
}

/// What is left of a blob that is not decoded any further.
pub struct Raw<R> {
    hashing: Hashing<R>,
    format: Format,
}

impl<R: Read> Raw<R> {
    /// The reader below.
    pub fn get_mut(&mut self) -> &mut R {
        self.hashing.get_mut()
    }

    /// Reads the blob to its end and tells its digest.
    pub fn drain(mut self) -> io::Result<Compressed> {
        io::copy(&mut self.hashing, &mut io::sink())?;
        let (digest, bytes) = self.hashing.finish();
        Ok(Compressed { digest, bytes, format: self.format })
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.stage {
            Stage::Tar(source) => source.read(buffer),
            Stage::Gzip(decoder) => decoder.read(buffer),
            Stage::Zstd(decoder) => decoder.read(buffer),
        }?;
        self.out += count as u64;
        if self.out > self.max_bytes {
            return Err(DecodeError::TooLarge(self.max_bytes).into());
        }
        if self.out > RATIO_FREE && self.out / self.max_ratio.max(1) > self.consumed() {
            return Err(DecodeError::Ratio(self.max_ratio).into());
        }
        Ok(count)
    }
}
