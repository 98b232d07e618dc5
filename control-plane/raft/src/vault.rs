//! What a server writes to its own disk is sealed: log, snapshots, and the authority's key.
//!
//! Every segment of the log and every snapshot has a data key of its own, made when the file is and never used for another. It
//! stands at the file's beginning, wrapped with a node key; node keys stand in one file of this server (`DATA/pki/storage.key`, mode
//! 0600), which leaves the machine by no way of ours. Servers send each other plain bytes over mutual TLS, and each seals them anew.
//!
//! ```text
//! key file  "coracle storage keys 1\n", a line for each key, the one in use last: name (16 hex digits), space, key (64 hex digits)
//! wrapped   name of the node key u64, nonce (12 bytes), sealed data key (32 bytes and a tag of 16)
//! ```
//!
//! All sealing is AES-256-GCM (NIST SP 800-38D). Nonces are random where a key seals more than one message in no fixed order (at most
//! some 2^18 frames a segment), and block numbers in snapshots, which are written once from the beginning.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use coracle_store::codec::{CodecError, Reader, Writer};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustix::fs::FlockOperation;

/// Bytes of a nonce.
pub const NONCE: usize = 12;
/// Bytes by which a sealed message is longer.
pub const TAG: usize = 16;
const KEY: usize = 32;
const FIRST_LINE: &str = "coracle storage keys 1";
const SEALED_TEXT: &str = "coracle sealed text 1";

/// Why something cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The key that something is sealed with is not there.
    #[error(
        "{what} is sealed with the key {id:016x}, which is not in {file}\nhint: put this server's own key file back where it was; without it what this server stored cannot be read by anybody: restore a backup into an empty data directory, or remove this server from the cluster and join it again"
    )]
    Missing {
        /// What is sealed.
        what: String,
        /// The key's name.
        id: u64,
        /// Where it should be.
        file: String,
    },
    /// The key has the right name, but what was sealed with it does not open.
    #[error(
        "{what} does not open with the key {id:016x} of {file}: one of them was changed\nhint: put this server's own key file back; if it is the right one, what is sealed is damaged: restore a backup into an empty data directory, or remove this server from the cluster and join it again"
    )]
    Wrong {
        /// What is sealed.
        what: String,
        /// The key's name.
        id: u64,
        /// Where it is.
        file: String,
    },
    /// A sealed file, and no key file was named.
    #[error("{0} is sealed, and no key file was given")]
    NoKeys(String),
    /// The key file cannot be used.
    #[error("{file} is not a file of storage keys: {what}\nhint: put this server's own key file back")]
    Malformed {
        /// The file.
        file: PathBuf,
        /// In words.
        what: String,
    },
    /// The system refused.
    #[error("cannot {operation} {file}")]
    Io {
        /// What was to be done.
        operation: &'static str,
        /// To which file.
        file: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// There is no randomness, or a message is longer than the cipher takes.
    #[error("the cipher failed")]
    Cipher,
}

fn io_error(operation: &'static str, file: &Path) -> impl FnOnce(io::Error) -> KeyError {
    let file = file.to_owned();
    move |source| KeyError::Io { operation, file, source }
}

/// Bytes nobody can foresee.
///
/// # Errors
/// The system has none.
pub fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| KeyError::Cipher)?;
    Ok(bytes)
}

/// A key, ready for use.
pub struct DataKey(LessSafeKey);

impl fmt::Debug for DataKey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("DataKey")
    }
}

impl DataKey {
    /// Of 32 bytes.
    ///
    /// # Errors
    /// None in practice: the length is right.
    pub fn new(bytes: &[u8; KEY]) -> Result<Self, KeyError> {
        UnboundKey::new(&AES_256_GCM, bytes).map(|key| Self(LessSafeKey::new(key))).map_err(|_| KeyError::Cipher)
    }

    /// Seals a message where it lies; gives its tag. `also` is not sealed, but must be the same when it is opened. No nonce may be used
    /// twice with a key.
    ///
    /// # Errors
    /// The message is longer than 64 GB.
    pub fn seal(&self, nonce: [u8; NONCE], also: &[u8], message: &mut [u8]) -> Result<[u8; TAG], KeyError> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(also), message).map_err(|_| KeyError::Cipher)?;
        tag.as_ref().try_into().map_err(|_| KeyError::Cipher)
    }

    /// Opens a message that ends with its tag; gives its length without it. `None`: it is not what was sealed.
    pub fn open(&self, nonce: [u8; NONCE], also: &[u8], sealed: &mut [u8]) -> Option<usize> {
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.0.open_in_place(nonce, Aad::from(also), sealed).ok().map(|message| message.len())
    }
}

/// A data key as it stands on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrapped {
    /// The node key that opens it.
    pub id: u64,
    nonce: [u8; NONCE],
    sealed: [u8; KEY + TAG],
}

impl Wrapped {
    pub(crate) fn write(&self, out: &mut Writer) {
        out.u64(self.id);
        out.raw(&self.nonce);
        out.raw(&self.sealed);
    }

    pub(crate) fn read(input: &mut Reader<'_>) -> Result<Self, CodecError> {
        let mut wrapped = Self { id: input.u64("a key's name")?, nonce: [0; NONCE], sealed: [0; KEY + TAG] };
        wrapped.nonce.copy_from_slice(input.take(NONCE, "a nonce")?);
        wrapped.sealed.copy_from_slice(input.take(KEY + TAG, "a key")?);
        Ok(wrapped)
    }
}

#[derive(Clone, PartialEq, Eq)]
struct NodeKey {
    id: u64,
    bytes: [u8; KEY],
}

impl NodeKey {
    fn new() -> Result<Self, KeyError> {
        Ok(Self { id: u64::from_le_bytes(random()?), bytes: random()? })
    }
}

/// This server's node keys.
pub struct Vault {
    /// `None`: they end with this process.
    file: Option<PathBuf>,
    /// The one in use last.
    keys: Mutex<Vec<NodeKey>>,
    /// What seals a text; such a key is kept.
    held: Mutex<BTreeSet<u64>>,
}

impl fmt::Debug for Vault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Vault").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Vault {
    /// The keys of this file. A file that is not there is made when the first key is needed.
    ///
    /// # Errors
    /// It cannot be read, or is no key file.
    pub fn open(file: &Path) -> Result<Self, KeyError> {
        let keys = read(file)?.unwrap_or_default();
        Ok(Self { file: Some(file.to_owned()), keys: Mutex::new(keys), held: Mutex::default() })
    }

    /// A key that ends with this process: for what lies on a disk for a moment only.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn ephemeral() -> Result<Self, KeyError> {
        Ok(Self { file: None, keys: Mutex::new(vec![NodeKey::new()?]), held: Mutex::default() })
    }

    fn keys(&self) -> MutexGuard<'_, Vec<NodeKey>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self) -> String {
        self.file.as_ref().map_or_else(|| "memory".to_owned(), |file| file.display().to_string())
    }

    /// The key in use; one is made when there is none.
    fn current(&self) -> Result<NodeKey, KeyError> {
        let mut keys = self.keys();
        if let Some(file) = &self.file {
            // `coracle rotate-keys` adds to it while a server runs.
            match read(file) {
                Ok(Some(found)) => *keys = found,
                Ok(None) if keys.is_empty() => {
                    *keys = change(file, |keys| {
                        if keys.is_empty() {
                            keys.push(NodeKey::new()?);
                        }
                        Ok(())
                    })?
                }
                Ok(None) => tracing::error!(
                    file = %file.display(),
                    "the file of storage keys is gone: without it this server's data cannot be read after a restart"
                ),
                Err(error) => {
                    tracing::error!(error = %coracle_base::one_line(&error), "the storage keys cannot be read again");
                }
            }
        }
        keys.last().cloned().ok_or_else(|| KeyError::Malformed {
            file: self.file.clone().unwrap_or_default(),
            what: "there is no key in it".to_owned(),
        })
    }

    fn find(&self, id: u64, what: &str) -> Result<NodeKey, KeyError> {
        let found = self.keys().iter().find(|key| key.id == id).cloned();
        found.ok_or_else(|| KeyError::Missing { what: what.to_owned(), id, file: self.place() })
    }

    /// Makes sure that there is a key.
    ///
    /// # Errors
    /// The key file cannot be written.
    pub fn ready(&self) -> Result<(), KeyError> {
        self.current().map(|_| ())
    }

    /// The name of the key in use; `None` before the first.
    pub fn in_use(&self) -> Option<u64> {
        self.keys().last().map(|key| key.id)
    }

    /// A new data key.
    ///
    /// # Errors
    /// There is no node key and none can be made.
    pub fn data_key(&self) -> Result<(DataKey, Wrapped), KeyError> {
        let node = self.current()?;
        let mut sealed = [0; KEY + TAG];
        let (message, place) = sealed.split_at_mut(KEY);
        let bytes: [u8; KEY] = random()?;
        message.copy_from_slice(&bytes);
        let nonce = random()?;
        let tag = DataKey::new(&node.bytes)?.seal(nonce, b"data key", message)?;
        place.copy_from_slice(&tag);
        Ok((DataKey::new(&bytes)?, Wrapped { id: node.id, nonce, sealed }))
    }

    /// The data key in a wrapping; `what` says for which file.
    ///
    /// # Errors
    /// The node key is missing, or another one has its name.
    pub fn unwrap(&self, wrapped: &Wrapped, what: &str) -> Result<DataKey, KeyError> {
        let node = self.find(wrapped.id, what)?;
        let mut sealed = wrapped.sealed;
        let length = DataKey::new(&node.bytes)?.open(wrapped.nonce, b"data key", &mut sealed);
        let bytes: Option<[u8; KEY]> = length.and_then(|length| sealed[..length].try_into().ok());
        let wrong = || KeyError::Wrong { what: what.to_owned(), id: wrapped.id, file: self.place() };
        DataKey::new(&bytes.ok_or_else(wrong)?)
    }

    /// A short text, sealed with the key in use, as text again.
    ///
    /// # Errors
    /// There is no key and none can be made.
    pub fn seal_text(&self, text: &str) -> Result<String, KeyError> {
        let node = self.current()?;
        let nonce: [u8; NONCE] = random()?;
        let mut message = text.as_bytes().to_vec();
        let tag = DataKey::new(&node.bytes)?.seal(nonce, b"text", &mut message)?;
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(node.id);
        Ok(format!("{SEALED_TEXT}\n{:016x}\n{}{}{}\n", node.id, hex(&nonce), hex(&message), hex(&tag)))
    }

    /// The reverse, with the name of its key; `None` for what is no sealed text.
    ///
    /// # Errors
    /// The key is missing or does not open it.
    pub fn open_text(&self, sealed: &str, what: &str) -> Result<Option<(String, u64)>, KeyError> {
        let mut lines = sealed.lines();
        if lines.next() != Some(SEALED_TEXT) {
            return Ok(None);
        }
        let file = || self.place();
        let id = lines.next().and_then(|line| u64::from_str_radix(line, 16).ok()).unwrap_or(0);
        let wrong = || KeyError::Wrong { what: what.to_owned(), id, file: file() };
        let node = self.find(id, what)?;
        let bytes = lines.next().and_then(unhex).filter(|bytes| bytes.len() >= NONCE + TAG).ok_or_else(wrong)?;
        let (nonce, message) = bytes.split_at(NONCE);
        let mut message = message.to_vec();
        let nonce = nonce.try_into().map_err(|_| KeyError::Cipher)?;
        let length = DataKey::new(&node.bytes)?.open(nonce, b"text", &mut message).ok_or_else(wrong)?;
        message.truncate(length);
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        Ok(Some((String::from_utf8(message).map_err(|_| wrong())?, id)))
    }

    /// No key is dropped: something may be sealed with it that is not known here.
    pub fn hold_all(&self) {
        let ids: Vec<u64> = self.keys().iter().map(|key| key.id).collect();
        self.held.lock().unwrap_or_else(PoisonError::into_inner).extend(ids);
    }

    /// Drops the keys that nothing is sealed with any more: all but these, the one in use, and those that seal a text.
    ///
    /// # Errors
    /// The key file cannot be written.
    pub fn keep(&self, used: &BTreeSet<u64>) -> Result<(), KeyError> {
        let Some(file) = &self.file else { return Ok(()) };
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut keys = self.keys();
        let Some(last) = keys.last().map(|key| key.id) else { return Ok(()) };
        let stays = |id: u64| id == last || used.contains(&id) || held.contains(&id);
        if keys.iter().all(|key| stays(key.id)) {
            return Ok(());
        }
        // One that was added meanwhile is not known here, and stays.
        let known: BTreeSet<u64> = keys.iter().map(|key| key.id).collect();
        *keys = change(file, |keys| {
            keys.retain(|key| !known.contains(&key.id) || stays(key.id));
            Ok(())
        })?;
        tracing::info!(file = %file.display(), left = keys.len(), "storage keys that seal nothing any more are dropped");
        Ok(())
    }
}

/// Adds a node key to a key file; a server that runs takes it into use with its next segment and its next snapshot. Returns its name and
/// how many there are now.
///
/// # Errors
/// There is no such file, or it cannot be written.
pub fn rotate(file: &Path) -> Result<(u64, usize), KeyError> {
    if read(file)?.is_none() {
        return Err(io_error("read", file)(io::Error::from(io::ErrorKind::NotFound)));
    }
    let key = NodeKey::new()?;
    let id = key.id;
    let keys = change(file, |keys| {
        keys.push(key);
        Ok(())
    })?;
    Ok((id, keys.len()))
}

fn read(file: &Path) -> Result<Option<Vec<NodeKey>>, KeyError> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error("read", file)(error)),
    };
    let bad = |what: &str| KeyError::Malformed { file: file.to_owned(), what: what.to_owned() };
    let mut lines = text.lines();
    if lines.next() != Some(FIRST_LINE) {
        return Err(bad(&format!("its first line is not `{FIRST_LINE}`")));
    }
    let key = |line: &str| {
        let (id, bytes) = line.split_once(' ')?;
        Some(NodeKey { id: u64::from_str_radix(id, 16).ok()?, bytes: unhex(bytes)?.try_into().ok()? })
    };
    let keys: Option<Vec<_>> = lines.map(key).collect();
    match keys {
        Some(keys) if !keys.is_empty() => Ok(Some(keys)),
        Some(_) => Err(bad("there is no key in it")),
        None => Err(bad("a line is no key")),
    }
}

/// Writes the file anew, whole or not at all, with nobody else at it.
fn change(
    file: &Path,
    change: impl FnOnce(&mut Vec<NodeKey>) -> Result<(), KeyError>,
) -> Result<Vec<NodeKey>, KeyError> {
    // It may be a link to another disk, and stays one.
    let file = std::fs::canonicalize(file).unwrap_or_else(|_| file.to_owned());
    let folder = file.parent().unwrap_or(Path::new("."));
    let opened = File::open(folder).map_err(io_error("open", folder))?;
    rustix::fs::flock(&opened, FlockOperation::LockExclusive)
        .map_err(|error| io_error("lock", folder)(error.into()))?;
    let mut keys = read(&file)?.unwrap_or_default();
    change(&mut keys)?;
    let mut text = format!("{FIRST_LINE}\n");
    for key in &keys {
        text.push_str(&format!("{:016x} {}\n", key.id, hex(&key.bytes)));
    }
    let temporary = file.with_extension("key.new");
    let mut options = OpenOptions::new();
    let made = options.write(true).create(true).truncate(true).mode(0o600).open(&temporary);
    let mut out = made.map_err(io_error("create", &temporary))?;
    out.write_all(text.as_bytes()).and_then(|()| out.sync_all()).map_err(io_error("write", &temporary))?;
    std::fs::rename(&temporary, &file).map_err(io_error("rename", &temporary))?;
    opened.sync_all().map_err(io_error("sync", folder))?;
    // A folder that is as new must not be lost while what is sealed is kept.
    if let Some(parent) = folder.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(io_error("sync", parent))?;
    }
    Ok(keys)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.is_ascii() || text.len() % 2 == 1 {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_rotate_and_go_when_nothing_names_them() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("storage.key");
        let vault = Vault::open(&file).unwrap();
        assert!(!file.exists() && vault.in_use().is_none());
        let (key, wrapped) = vault.data_key().unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let mut message = *b"a message and room for its tag..";
        let tag = key.seal([7; NONCE], b"x", &mut message[..16]).unwrap();
        message[16..].copy_from_slice(&tag);

        let (id, count) = rotate(&file).unwrap();
        assert_eq!((count, vault.in_use()), (2, Some(wrapped.id)));
        let (_, newer) = vault.data_key().unwrap();
        assert_eq!((newer.id, vault.in_use()), (id, Some(id)));
        let text = vault.seal_text("a secret").unwrap();
        assert!(!text.contains("a secret"));

        // The old key is there as long as something names it.
        vault.keep(&[wrapped.id].into()).unwrap();
        let again = Vault::open(&file).unwrap();
        let opened = again.unwrap(&wrapped, "a file").unwrap();
        assert_eq!(opened.open([7; NONCE], b"x", &mut message.clone()), Some(16));
        assert_eq!(opened.open([7; NONCE], b"y", &mut message.clone()), None);
        assert_eq!(again.open_text(&text, "a text").unwrap(), Some(("a secret".to_owned(), id)));
        assert_eq!(again.open_text("something else", "a text").unwrap(), None);
        again.keep(&BTreeSet::new()).unwrap();
        let error = Vault::open(&file).unwrap().unwrap(&wrapped, "segment 7").unwrap_err().to_string();
        assert!(error.contains("segment 7") && error.contains("storage.key") && error.contains("hint:"), "{error}");
        assert!(Vault::open(&file).unwrap().unwrap(&newer, "a file").is_ok());

        // Another key of the same name.
        let other = folder.path().join("other.key");
        std::fs::write(&other, format!("{FIRST_LINE}\n{id:016x} {}\n", hex(&[9; KEY]))).unwrap();
        let error = Vault::open(&other).unwrap().unwrap(&newer, "segment 7").unwrap_err();
        assert!(matches!(error, KeyError::Wrong { .. }), "{error}");
        assert!(matches!(Vault::open(&other).unwrap().open_text(&text, "a text"), Err(KeyError::Wrong { .. })));
        std::fs::write(&other, "nonsense").unwrap();
        assert!(matches!(Vault::open(&other), Err(KeyError::Malformed { .. })));
    }

    #[test]
    fn a_key_file_elsewhere_stays_there() {
        let (folder, stick) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (file, link) = (stick.path().join("key"), folder.path().join("storage.key"));
        Vault::open(&file).unwrap().ready().unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        rotate(&link).unwrap();
        assert!(link.is_symlink());
        assert_eq!(std::fs::read_to_string(&file).unwrap().lines().count(), 3);
    }
}
