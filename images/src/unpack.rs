//! One layer from its blob to its directory: inflating and hashing on one thread, checking and writing on another.

use std::io::{self, Read};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use coracle_base::Digest;
use coracle_layers::{Compressed, Decoder, Limits, WalkError, Walked, walk};

use crate::error::ImageError;
use crate::extract::{ExtractError, Extracted, Extractor};

/// Bytes handed over at once.
const CHUNK: usize = 256 << 10;
/// Chunks under way: enough that neither side waits for the other's small stalls, and no more than 2 MiB a layer.
const DEPTH: usize = 8;
/// How much of a refused layer is read on to tell a damaged blob from a forbidden one.
const POST_MORTEM: u64 = 256 << 20;

/// What a layer's descriptor and its image's configuration promise.
#[derive(Debug, Clone)]
pub struct Promise<'a> {
    /// The compressed blob's digest; `None` where the source names none (`docker save` archives).
    pub digest: Option<&'a Digest>,
    /// The compressed blob's size, if known.
    pub size: Option<u64>,
    /// The digest of the tar inside.
    pub diff_id: &'a Digest,
}

/// Unpacks the blob `reader` gives into the empty directory `dir` and checks every promise. When it returns, the contents are
/// on the disk; after an error, whatever is in `dir` is rubbish. Gives what the blob was, too.
pub fn unpack(
    reader: impl Read + Send,
    promise: &Promise<'_>,
    dir: &Path,
    limits: &Limits,
) -> Result<(Compressed, Walked, Extracted), ImageError> {
    let shown = promise.digest.unwrap_or(promise.diff_id);
    let mut sink = Extractor::new(dir, limits.entries).map_err(ImageError::disk("open", dir))?;
    // One byte more than promised is read, so that a blob without end is noticed and not swallowed.
    let reader = reader.take(promise.size.map_or(u64::MAX, |size| size.saturating_add(1)));
    let (compressed, walked) = std::thread::scope(|scope| {
        let (full, arriving) = sync_channel(DEPTH);
        let (spent, empty) = sync_channel(DEPTH);
        let inflate = scope.spawn(move || inflate(reader, limits, &full, &empty));
        let walked = walk(Pipe { arriving, spent, chunk: Vec::new(), at: 0, ended: false }, limits, &mut sink);
        // The walk has dropped its end of the channel by now, so the other thread ends.
        let compressed = inflate.join().unwrap_or_else(|_| Err(io::Error::other("the decoder ended early")));
        (compressed, walked)
    });
    let what = || format!("layer {shown}");
    let refused =
        |source: Box<dyn std::error::Error + Send + Sync>| ImageError::Layer { digest: shown.clone(), source };
    let compressed = match compressed {
        Ok(compressed) => compressed,
        Err(error) => return Err(refused(walked.err().map_or_else(|| Box::from(error), wrap))),
    };
    if let Some(compressed) = &compressed {
        if let Some(size) = promise.size.filter(|size| *size != compressed.bytes) {
            return Err(ImageError::Size { what: what(), expected: size, got: compressed.bytes });
        }
        if let Some(digest) = promise.digest.filter(|digest| **digest != compressed.digest) {
            return Err(ImageError::Corrupt { what: what(), expected: digest.clone(), got: compressed.digest.clone() });
        }
    }
    let walked = walked.map_err(|error| refused(wrap(error)))?;
    let Some(compressed) = compressed else {
        return Err(refused(Box::from("its digest could not be computed")));
    };
    if walked.diff_id != *promise.diff_id {
        return Err(ImageError::Corrupt {
            what: format!("the unpacked layer {shown}"),
            expected: promise.diff_id.clone(),
            got: walked.diff_id,
        });
    }
    let extracted = sink.finish().map_err(ImageError::disk("write", dir))?;
    Ok((compressed, walked, extracted))
}

fn wrap(error: WalkError<ExtractError>) -> Box<dyn std::error::Error + Send + Sync> {
    Box::new(error)
}

type Chunk = io::Result<Vec<u8>>;

/// Decodes until the end or until nobody listens. `None` when the blob was not read far enough to know its digest.
fn inflate(
    reader: impl Read,
    limits: &Limits,
    full: &SyncSender<Chunk>,
    empty: &Receiver<Vec<u8>>,
) -> io::Result<Option<Compressed>> {
    let mut reader = PostMortem { inner: reader, left: None };
    let mut decoder = match Decoder::new(&mut reader, limits) {
        Ok(decoder) => decoder,
        Err(error) => {
            let _ = full.send(Err(error));
            return Ok(None);
        }
    };
    loop {
        let mut chunk = empty.try_recv().unwrap_or_default();
        chunk.resize(CHUNK, 0);
        match fill(&mut decoder, &mut chunk) {
            Ok(0) => {
                // An empty chunk is the end; its absence would be an abort.
                let _ = full.send(Ok(Vec::new()));
                break;
            }
            Ok(count) => {
                chunk.truncate(count);
                if full.send(Ok(chunk)).is_err() {
                    break;
                }
            }
            Err(error) => {
                let _ = full.send(Err(error));
                break;
            }
        }
    }
    let mut raw = decoder.into_raw();
    raw.get_mut().left = Some(POST_MORTEM);
    match raw.drain() {
        Ok(compressed) if reader.left != Some(0) => Ok(Some(compressed)),
        Ok(_) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads until the buffer is full or the end.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Stops after `left` bytes, once that is set.
struct PostMortem<R> {
    inner: R,
    left: Option<u64>,
}

impl<R: Read> Read for PostMortem<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(left) = &mut self.left else { return self.inner.read(buffer) };
        let most = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.inner.read(&mut buffer[..most])?;
        *left -= count as u64;
        Ok(count)
    }
}

/// The reading end of the channel.
struct Pipe {
    arriving: Receiver<Chunk>,
    spent: SyncSender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.chunk.len() && !self.ended {
            // A full return channel only means that enough buffers are around.
            let _ = self.spent.try_send(std::mem::take(&mut self.chunk));
            self.chunk = self.arriving.recv().map_err(|_| io::Error::other("the decoder ended early"))??;
            self.at = 0;
            self.ended = self.chunk.is_empty();
        }
        let count = buffer.len().min(self.chunk.len() - self.at);
        buffer[..count].copy_from_slice(&self.chunk[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
