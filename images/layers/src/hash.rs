//! A reader that hashes and counts what passes.

use std::io::{self, Read};

use coracle_base::Digest;
use sha2::{Digest as _, Sha256};

/// Passes bytes through and keeps their SHA-256 and their number.
#[derive(Debug)]
pub struct Hashing<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
}

impl<R> Hashing<R> {
    /// Around `inner`.
    pub fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    /// How many bytes passed so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The reader below.
    pub fn get_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// The digest of everything that passed, and how much it was.
    pub fn finish(self) -> (Digest, u64) {
        (Digest::from_sha256(&self.hash.finalize().into()), self.bytes)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}
