//! Compressed layers that stay beside the unpacked ones, for other nodes to fetch by the digest their manifest names.
//!
//! They are a gift: a layer whose blob could not be kept runs all the same, and other nodes get the blob elsewhere.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use coracle_base::Digest;
use sha2::{Digest as _, Sha256};

use crate::disk::{Ingest, sync_dir};
use crate::error::ImageError;
use crate::store::ImageStore;

const BUFFER: usize = 256 << 10;
/// Its name while it is unfinished.
const FILE: &str = "blob";

/// Reads on and writes what it reads to a file beside. When the file cannot be written the reading goes on without it.
pub(crate) struct Tee<R> {
    inner: R,
    path: PathBuf,
    file: Option<BufWriter<File>>,
}

impl<R: Read> Tee<R> {
    /// Into a file of `ingest`; `keep: false` writes none.
    pub fn new(inner: R, ingest: &Ingest, keep: bool) -> Self {
        let path = ingest.path().join(FILE);
        let mut tee = Self { inner, file: None, path };
        if keep {
            match File::create_new(&tee.path) {
                Ok(file) => tee.file = Some(BufWriter::with_capacity(BUFFER, file)),
                Err(error) => tee.give_up(&error),
            }
        }
        tee
    }

    fn give_up(&mut self, error: &io::Error) {
        tracing::warn!(path = %self.path.display(), %error, "a compressed layer is not kept: other nodes cannot fetch it from here");
        self.file = None;
        let _ = std::fs::remove_file(&self.path);
    }

    /// The file, on the disk and whole; `None` when there is none.
    pub fn finish(mut self) -> Option<PathBuf> {
        let outcome =
            self.file.take()?.into_inner().map_err(io::IntoInnerError::into_error).and_then(|file| file.sync_all());
        match outcome {
            Ok(()) => Some(self.path),
            Err(error) => {
                self.give_up(&error);
                None
            }
        }
    }
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if let Some(file) = &mut self.file
            && let Err(error) = file.write_all(&buffer[..count])
        {
            self.give_up(&error);
        }
        Ok(count)
    }
}

/// A blob that is here wholly and has been checked, but has no name yet. Gone when dropped.
#[derive(Debug)]
pub(crate) struct Received {
    ingest: Ingest,
    digest: Digest,
}

impl Received {
    fn path(&self) -> PathBuf {
        self.ingest.path().join(FILE)
    }

    /// From its start.
    pub fn open(&self) -> Result<File, ImageError> {
        let path = self.path();
        File::open(&path).map_err(ImageError::disk("read", &path))
    }
}

impl ImageStore {
    /// Reads exactly this blob from `reader` into a file and checks it. Blocking.
    pub(crate) fn receive(&self, digest: &Digest, size: u64, reader: impl Read) -> Result<Received, ImageError> {
        let parent = self.dir().join("ingest");
        let ingest = Ingest::new(&parent).map_err(ImageError::disk("write to", &parent))?;
        let path = ingest.path().join(FILE);
        let fail = || ImageError::disk("write", &path);
        let mut file = File::create_new(&path).map_err(fail())?;
        // One byte more than promised, so that a blob without end is noticed.
        let mut reader = reader.take(size.saturating_add(1));
        let (mut hash, mut got, mut buffer) = (Sha256::new(), 0, vec![0; BUFFER]);
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ImageError::disk("read", Path::new(digest.as_str()))(error)),
            };
            hash.update(&buffer[..count]);
            file.write_all(&buffer[..count]).map_err(fail())?;
            got += count as u64;
        }
        let what = || format!("layer {digest}");
        if got != size {
            return Err(ImageError::Size { what: what(), expected: size, got });
        }
        let found = Digest::from_sha256(&hash.finalize().into());
        if found != *digest {
            return Err(ImageError::Corrupt { what: what(), expected: digest.clone(), got: found });
        }
        Ok(Received { ingest, digest: digest.clone() })
    }

    /// Keeps a received blob for others.
    pub(crate) fn keep(&self, received: &Received) -> Result<(), ImageError> {
        let path = received.path();
        received.open()?.sync_all().map_err(ImageError::disk("write", &path))?;
        self.keep_file(&path, &received.digest)
    }

    /// Gives a whole file on the disk its name among the blobs.
    pub(crate) fn keep_file(&self, from: &Path, digest: &Digest) -> Result<(), ImageError> {
        let target = self.blob_path(digest);
        std::fs::rename(from, &target).map_err(ImageError::disk("write", &target))?;
        let parent = target.parent().unwrap_or(&target);
        sync_dir(parent).map_err(ImageError::disk("write", parent))
    }

    /// Whether a blob (document or compressed layer) is here.
    pub(crate) fn has_blob(&self, digest: &Digest) -> bool {
        self.blob_path(digest).exists()
    }

    /// A blob and its size. `None` when it is not here. Blocking.
    ///
    /// # Errors
    /// The disk.
    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<Option<(File, u64)>, ImageError> {
        // The only algorithm blobs are kept by.
        if digest.algorithm() != "sha256" {
            return Ok(None);
        }
        let path = self.blob_path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ImageError::disk("read", &path)(error)),
        };
        let size = file.metadata().map_err(ImageError::disk("read", &path))?.len();
        Ok(Some((file, size)))
    }

    /// Whether there is room for compressed layers that a registry has as well.
    pub(crate) fn has_room(&self) -> bool {
        let reserve = self.blob_reserve_percent();
        reserve == 0
            || rustix::fs::statvfs(self.dir())
                .is_ok_and(|disk| disk.f_bavail.saturating_mul(100) >= disk.f_blocks.saturating_mul(reserve))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_is_received() {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path()).unwrap();
        let digest = Digest::from_sha256(&Sha256::digest(b"blob").into());
        let try_it = |bytes: &'static [u8]| store.receive(&digest, 4, bytes).map_err(|error| error.to_string());
        assert!(try_it(b"blub").unwrap_err().contains("is corrupt"));
        assert!(try_it(b"blo").unwrap_err().contains("expected 4 bytes, got 3"));
        assert!(try_it(b"blobs and more").unwrap_err().contains("got 5"));
        assert!(!store.has_blob(&digest));
        let received = try_it(b"blob").unwrap();
        store.keep(&received).unwrap();
        drop(received);
        let (mut file, size) = store.open_blob(&digest).unwrap().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), size), ("blob", 4));
        assert_eq!(std::fs::read_dir(dir.path().join("ingest")).unwrap().count(), 0);
    }
}
