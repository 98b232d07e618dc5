//! A file that opens with a passphrase: for backups, which leave the machine.
//!
//! ```text
//! file   "coracle sealed backup 1\n", a line of JSON (`Head`), blocks
//! block  up to `block` bytes, sealed with AES-256-GCM, and the tag (16 bytes); every block but the last is full
//! key    PBKDF2-HMAC-SHA256 of the passphrase with the head's salt and iterations
//! nonce  number of the block u64 little-endian, 1 for the last one and 0 for others u8, zeros; the salt makes a new key for each file
//! also   the head's line: it is not sealed, but cannot be changed
//! ```

use std::io::{self, BufRead, Read, Write};
use std::num::NonZeroU32;
use std::path::Path;

use coracle_raft::vault::{DataKey, NONCE, TAG, random};
use ring::pbkdf2;
use serde::{Deserialize, Serialize};

/// The first line.
pub(crate) const MAGIC: &str = "coracle sealed backup 1";
/// As OWASP's password storage cheat sheet has it for PBKDF2-HMAC-SHA256 (2023).
const ITERATIONS: u32 = 600_000;
/// More would keep whoever opens the file waiting for nothing.
const MOST_ITERATIONS: u32 = 20_000_000;
const BLOCK: usize = 64 << 10;
const MOST_BLOCK: usize = 16 << 20;
/// The longest head.
const MAX_HEAD: u64 = 4096;
/// A shorter one is guessed.
const SHORTEST: usize = 8;

/// What is not sealed.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    kdf: String,
    iterations: u32,
    /// Hexadecimal.
    salt: String,
    block: usize,
}

const KDF: &str = "PBKDF2-HMAC-SHA256";

/// What opens a file.
#[derive(Clone)]
pub struct Passphrase(String);

impl std::fmt::Debug for Passphrase {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Passphrase")
    }
}

impl Passphrase {
    /// The first line of a file.
    ///
    /// # Errors
    /// In words: it cannot be read, or is too short.
    pub fn read(file: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(file);
        let text = text.map_err(|error| format!("cannot read the passphrase file {}: {error}", file.display()))?;
        let line = text.lines().next().unwrap_or_default();
        if line.chars().count() < SHORTEST {
            return Err(format!(
                "the passphrase in {} has fewer than {SHORTEST} characters\nhint: make one with `openssl rand -base64 24 > FILE`, and keep it elsewhere than the backups",
                file.display()
            ));
        }
        Ok(Self(line.to_owned()))
    }

    fn key(&self, iterations: u32, salt: &[u8]) -> Option<DataKey> {
        let mut key = [0; 32];
        let iterations = NonZeroU32::new(iterations).filter(|count| count.get() <= MOST_ITERATIONS)?;
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, self.0.as_bytes(), &mut key);
        DataKey::new(&key).ok()
    }
}

fn nonce(block: u64, last: bool) -> [u8; NONCE] {
    let mut nonce = [0; NONCE];
    nonce[..8].copy_from_slice(&block.to_le_bytes());
    nonce[8] = u8::from(last);
    nonce
}

fn failed(what: &str) -> io::Error {
    io::Error::other(what.to_owned())
}

/// Seals what is written to it.
pub struct Sealing<W> {
    out: W,
    key: DataKey,
    head: Vec<u8>,
    number: u64,
    block: Vec<u8>,
}

impl<W: Write> Sealing<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// Of `out`; or there is no randomness.
    pub fn begin(out: W, passphrase: &Passphrase) -> io::Result<Self> {
        Self::with(out, passphrase, ITERATIONS, BLOCK)
    }

    fn with(mut out: W, passphrase: &Passphrase, iterations: u32, block: usize) -> io::Result<Self> {
        let salt: [u8; 32] = random().map_err(io::Error::other)?;
        let key = passphrase.key(iterations, &salt).ok_or_else(|| failed("no key can be made of the passphrase"))?;
        let salt = salt.iter().map(|byte| format!("{byte:02x}")).collect();
        let head = serde_json::to_vec(&Head { kdf: KDF.to_owned(), iterations, salt, block })?;
        writeln!(out, "{MAGIC}")?;
        out.write_all(&head)?;
        out.write_all(b"\n")?;
        Ok(Self { out, key, head, number: 0, block: Vec::with_capacity(block + TAG) })
    }

    fn seal(&mut self, last: bool) -> io::Result<()> {
        let tag = self.key.seal(nonce(self.number, last), &self.head, &mut self.block).map_err(io::Error::other)?;
        self.block.extend_from_slice(&tag);
        self.out.write_all(&self.block)?;
        self.number += 1;
        self.block.clear();
        Ok(())
    }

    /// That was all; gives the file back.
    ///
    /// # Errors
    /// Of `out`.
    pub fn finish(mut self) -> io::Result<W> {
        self.seal(true)?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = self.block.capacity() - TAG - self.block.len();
        if room == 0 && !bytes.is_empty() {
            // More follows: it is not the last one.
            self.seal(false)?;
            return self.write(bytes);
        }
        let count = bytes.len().min(room);
        self.block.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Opens what is read from it.
pub(crate) struct Opening<R> {
    input: R,
    key: DataKey,
    head: Vec<u8>,
    size: usize,
    number: u64,
    block: Vec<u8>,
    /// How much of the block has been given out.
    given: usize,
    ended: bool,
}

impl<R: BufRead> Opening<R> {
    /// Behind the first line.
    pub fn begin(mut input: R, passphrase: &Passphrase) -> io::Result<Self> {
        let mut line = Vec::new();
        (&mut input).take(MAX_HEAD).read_until(b'\n', &mut line)?;
        let head = line.strip_suffix(b"\n").ok_or_else(|| failed("its head ends early"))?.to_vec();
        let said: Head = serde_json::from_slice(&head).map_err(|_| failed("its head cannot be read"))?;
        let salt: Option<Vec<u8>> = (0..said.salt.len() / 2)
            .map(|at| u8::from_str_radix(said.salt.get(2 * at..2 * at + 2)?, 16).ok())
            .collect();
        let salt = salt.filter(|_| said.kdf == KDF && (1..=MOST_BLOCK).contains(&said.block));
        let key = salt.and_then(|salt| passphrase.key(said.iterations, &salt));
        let key = key.ok_or_else(|| failed("it is sealed in a way that this release does not know"))?;
        Ok(Self { input, key, head, size: said.block, number: 0, block: Vec::new(), given: 0, ended: false })
    }

    fn open(&mut self) -> io::Result<()> {
        self.block.clear();
        (&mut self.input).take((self.size + TAG) as u64).read_to_end(&mut self.block)?;
        self.ended = self.input.fill_buf()?.is_empty();
        let opened = self.key.open(nonce(self.number, self.ended), &self.head, &mut self.block);
        let length = opened.ok_or_else(|| {
            failed(if self.number == 0 {
                "it does not open: the passphrase is another one, or the file was changed"
            } else {
                "a part of it was changed, or its end is missing"
            })
        })?;
        self.block.truncate(length);
        self.number += 1;
        self.given = 0;
        Ok(())
    }
}

impl<R: BufRead> Read for Opening<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.given == self.block.len() && !self.ended {
            self.open()?;
        }
        let count = buffer.len().min(self.block.len() - self.given);
        buffer[..count].copy_from_slice(&self.block[self.given..self.given + count]);
        self.given += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(bytes: &[u8], passphrase: &str) -> Vec<u8> {
        let mut out = Sealing::with(Vec::new(), &Passphrase(passphrase.to_owned()), 10, 100).unwrap();
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    fn opened(file: &[u8], passphrase: &str) -> io::Result<Vec<u8>> {
        let rest = file.strip_prefix(format!("{MAGIC}\n").as_bytes()).unwrap();
        let mut bytes = Vec::new();
        Opening::begin(rest, &Passphrase(passphrase.to_owned()))?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn it_opens_with_its_passphrase_only_and_as_a_whole_only() {
        for length in [0, 1, 99, 100, 101, 200, 1234] {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let file = sealed(&bytes, "correct horse");
            assert_eq!(opened(&file, "correct horse").unwrap(), bytes);
            let refused = opened(&file, "correct mule").unwrap_err().to_string();
            assert!(refused.contains("passphrase is another one"), "{refused}");
            // The first line is the caller's to read.
            let head = MAGIC.len() + 1;
            for at in head..file.len() {
                let mut changed = file.clone();
                changed[at] ^= 1;
                assert!(opened(&changed, "correct horse").is_err(), "byte {at} of {length}");
                assert!(opened(&file[..at], "correct horse").is_err(), "cut at {at} of {length}");
            }
        }
    }
}
