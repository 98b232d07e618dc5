//! Backup, restore and recovery: the whole state in one file, and a cluster that begins anew from it or from one server's folder.
//!
//! ```text
//! file   "coracle backup 1\n", a line of JSON (`Head`), the snapshot's bytes
//! ```
//!
//! It holds every Secret and the authority's key. With a passphrase all of it lies in a sealed file (`passphrase`).

use std::io::{BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use coracle_base::level::{LEVEL, Level};
use coracle_raft::disk::RealDisk;
use coracle_raft::rescue::{self, Place, Rescued};
use coracle_raft::snapshots::{SnapshotFileError, Snapshots};
use coracle_raft::{KeyError, Member, OpenError, Raft, Vault};
use coracle_store::{Key, Limits, Op, Transaction};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::now;
use crate::passphrase::{self, Opening, Passphrase};
use crate::pki::{self, Authority, PkiError};

const MAGIC: &str = "coracle backup 1";
const PART: usize = 256 << 10;
/// The longest head.
const MAX_HEAD: u64 = 1 << 20;

/// The object that tells the first leader of a new life to let the nodes speak before it makes or ends anything.
pub const NAMESPACE: &str = "kube-system";
/// Its name.
pub const MARKER: &str = "coracle-begins-anew";

/// What a backup says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Head {
    /// Names the cluster, hexadecimal.
    pub cluster: String,
    /// When it was made: RFC 3339.
    pub created: String,
    /// The release that made it.
    pub version: String,
    /// The cluster's level; the first release did not state it.
    #[serde(default)]
    pub level: Level,
    /// The revision of the state.
    pub revision: u64,
    /// Objects in it.
    pub objects: usize,
    /// The name of the snapshot's file.
    pub snapshot: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Its SHA-256, hexadecimal.
    pub sha256: String,
    /// The authority's certificate, PEM.
    pub ca: String,
    /// The authority's key, PEM.
    pub ca_key: String,
}

/// Why there is no backup, or nothing can be made of one.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The system refused.
    #[error("cannot {action} {path}")]
    File {
        /// `read`, `write`, `create`.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// Not what a backup looks like, or not all of it.
    #[error("{path} is no whole backup: {what}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// In words.
        what: String,
    },
    /// A newer cluster's.
    #[error(
        "{path} is of a cluster of level {found} (release {version}), this release knows levels up to {LEVEL}\nhint: restore it with that release, or a newer one"
    )]
    Newer {
        /// Which file.
        path: PathBuf,
        /// The cluster's level.
        found: Level,
        /// The release that made it.
        version: String,
    },
    /// It is sealed, and nobody said with what.
    #[error(
        "{0} is sealed with a passphrase\nhint: give the file that holds it with --passphrase-file; without it nobody can read the backup"
    )]
    Sealed(PathBuf),
    /// What is in it cannot be written down.
    #[error(transparent)]
    Snapshot(#[from] SnapshotFileError),
    /// Nothing can be sealed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The folder is in use, or holds a cluster.
    #[error(
        "{0} holds a cluster already\nhint: stop it with `coracle down` and move the folder's `log` and `pki` away, or name another --data-dir"
    )]
    NotEmpty(PathBuf),
    /// The log or the snapshot.
    #[error(transparent)]
    Log(#[from] OpenError),
    /// Keys and certificates.
    #[error(transparent)]
    Pki(#[from] PkiError),
}

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::File { action, path, source }
}

/// A backup on its way out. Its file goes when this does.
pub(crate) struct Ready {
    head: Vec<u8>,
    snapshot: Option<Part>,
    folder: PathBuf,
}

/// The snapshot of a backup, on this disk for a moment: sealed with a key that ends with this process.
struct Part {
    snapshots: Snapshots,
    index: u64,
    bytes: u64,
}

impl Part {
    /// Calls with each part of it, until it is told to stop.
    fn each(&self, mut take: impl FnMut(&[u8]) -> bool) -> Result<(), SnapshotFileError> {
        let mut offset = 0;
        while offset < self.bytes {
            let part = self.snapshots.part(self.index, offset, (self.bytes - offset).min(PART as u64))?;
            if !take(&part) {
                break;
            }
            offset += part.len() as u64;
        }
        Ok(())
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Makes a backup ready in a folder of its own below `scratch`. Blocks.
pub(crate) fn begin(raft: &Raft, authority: &Authority, scratch: &Path) -> Result<Ready, BackupError> {
    let folder = scratch.join(uuid::Uuid::new_v4().to_string());
    std::fs::create_dir_all(&folder).map_err(file_error("create", &folder))?;
    let mut ready = Ready { head: Vec::new(), snapshot: None, folder };
    let view = raft.view();
    let (snapshots, saved) = raft.save_to(&ready.folder, Some(Arc::new(Vault::ephemeral()?)))?;
    let part = Part { snapshots, index: saved.reach.last.index, bytes: saved.bytes };
    let mut sha = Sha256::new();
    part.each(|bytes| {
        sha.update(bytes);
        true
    })?;
    let head = Head {
        cluster: format!("{:032x}", raft.identity().cluster),
        created: now::rfc3339(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        level: view.level(),
        revision: view.revision(),
        objects: view.len(),
        snapshot: Snapshots::name(part.index),
        bytes: saved.bytes,
        sha256: hex(&sha.finalize()),
        ca: authority.cert_pem().to_owned(),
        ca_key: authority.key_pem().to_owned(),
    };
    ready.head = format!("{MAGIC}\n{}\n", serde_json::to_string(&head).unwrap_or_default()).into_bytes();
    ready.snapshot = Some(part);
    Ok(ready)
}

impl Ready {
    /// Sends all of it. Blocks; ends early when nobody listens.
    pub(crate) fn send(self, sender: &mpsc::Sender<Result<Bytes, String>>) {
        let part = |bytes: &[u8]| sender.blocking_send(Ok(Bytes::copy_from_slice(bytes))).is_ok();
        if !part(&self.head) {
            return;
        }
        if let Some(snapshot) = &self.snapshot
            && let Err(error) = snapshot.each(part)
        {
            let _ = sender.blocking_send(Err(coracle_base::one_line(&error)));
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a backup's head and checks that all of it is there and as it was written; a sealed one opens with its passphrase. Blocks.
///
/// # Errors
/// It is not whole, is sealed, or cannot be read.
pub fn check(path: &Path, passphrase: Option<&Passphrase>) -> Result<Head, BackupError> {
    read(path, passphrase, |_, _, _| Ok(()))
}

/// The same; each part of the snapshot is given with its offset.
fn read(
    path: &Path,
    passphrase: Option<&Passphrase>,
    mut take: impl FnMut(&Head, u64, &[u8]) -> Result<(), BackupError>,
) -> Result<Head, BackupError> {
    let damaged = |what: &str| BackupError::Damaged { path: path.to_owned(), what: what.to_owned() };
    let file = std::fs::File::open(path).map_err(file_error("read", path))?;
    let mut input: Box<dyn BufRead> = Box::new(BufReader::new(file));
    let mut first = line(&mut input, 64, path)?;
    if first.trim_end() == passphrase::MAGIC {
        let passphrase = passphrase.ok_or_else(|| BackupError::Sealed(path.to_owned()))?;
        let opening = Opening::begin(input, passphrase).map_err(|error| damaged(&error.to_string()))?;
        input = Box::new(BufReader::with_capacity(PART, opening));
        first = line(&mut input, 64, path)?;
    }
    if first.trim_end() != MAGIC {
        return Err(damaged("it does not begin like one"));
    }
    let text = line(&mut input, MAX_HEAD, path)?;
    let head: Head = serde_json::from_str(&text).map_err(|_| damaged("its head cannot be read"))?;
    if head.level > LEVEL {
        return Err(BackupError::Newer { path: path.to_owned(), found: head.level, version: head.version });
    }
    let (mut sha, mut bytes, mut buffer) = (Sha256::new(), 0_u64, vec![0; PART]);
    loop {
        let count = input.read(&mut buffer).map_err(|error| unread(error, path))?;
        if count == 0 {
            break;
        }
        sha.update(&buffer[..count]);
        take(&head, bytes, &buffer[..count])?;
        bytes += count as u64;
    }
    if bytes != head.bytes {
        return Err(damaged(&format!("{bytes} of {} bytes are there", head.bytes)));
    }
    if hex(&sha.finalize()) != head.sha256 {
        return Err(damaged("its checksum does not match"));
    }
    Ok(head)
}

fn line(input: &mut dyn BufRead, limit: u64, path: &Path) -> Result<String, BackupError> {
    let mut text = Vec::new();
    input.take(limit).read_until(b'\n', &mut text).map_err(|error| unread(error, path))?;
    String::from_utf8(text)
        .map_err(|_| BackupError::Damaged { path: path.to_owned(), what: "it does not begin like one".to_owned() })
}

/// What a sealed file says of itself comes through its reader.
fn unread(source: std::io::Error, path: &Path) -> BackupError {
    match source.kind() {
        std::io::ErrorKind::Other => BackupError::Damaged { path: path.to_owned(), what: source.to_string() },
        _ => file_error("read", path)(source),
    }
}

/// What the state of a new life holds beside that of the old one.
fn marker() -> Vec<Transaction> {
    let key = Key::new("configmaps", NAMESPACE, MARKER);
    let value = serde_json::json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": MARKER,
            "namespace": NAMESPACE,
            "uid": uuid::Uuid::new_v4().to_string(),
            "creationTimestamp": now::rfc3339(),
        },
    });
    let update = Op::Delete { key: key.clone(), expect: coracle_store::Expect::default() };
    // One of an earlier new life may be left.
    vec![update.into(), Op::Create { key, value: Arc::new(value), claims: Vec::new() }.into()]
}

/// Makes a data folder from a backup: a cluster of one, of the same name and authority. Blocks.
///
/// # Errors
/// The folder holds a cluster; the backup is not whole, or sealed; the disk refused.
pub fn restore(
    file: &Path,
    passphrase: Option<&Passphrase>,
    data_dir: &Path,
    member: Member,
) -> Result<(Head, Rescued), BackupError> {
    if data_dir.join("log").join("identity").exists() {
        return Err(BackupError::NotEmpty(data_dir.to_owned()));
    }
    let scratch = data_dir.join("restore.tmp");
    let _ = std::fs::remove_dir_all(&scratch);
    let restored = unpack_and_restore(file, passphrase, data_dir, &scratch, member);
    let _ = std::fs::remove_dir_all(&scratch);
    restored
}

fn unpack_and_restore(
    file: &Path,
    passphrase: Option<&Passphrase>,
    data_dir: &Path,
    scratch: &Path,
    member: Member,
) -> Result<(Head, Rescued), BackupError> {
    let damaged = |what: &str| BackupError::Damaged { path: file.to_owned(), what: what.to_owned() };
    let number =
        |head: &Head| u128::from_str_radix(&head.cluster, 16).map_err(|_| damaged("the cluster's name is no number"));
    std::fs::create_dir_all(scratch).map_err(file_error("create", scratch))?;
    let disk = Arc::new(RealDisk::open(scratch).map_err(file_error("open", scratch))?);
    let once = Arc::new(Vault::ephemeral()?);
    let mut unpacked: Option<Snapshots> = None;
    let head = read(file, passphrase, |head, offset, bytes| {
        let cluster = number(head)?;
        let made = || Snapshots::new(disk.clone(), cluster, Some(once.clone()));
        let received = unpacked.get_or_insert_with(made).receive(offset, bytes);
        received.map_err(|error| BackupError::Snapshot(error.into()))
    })?;
    let index = head.snapshot.strip_suffix(".snapshot").and_then(|name| name.parse().ok());
    let (Some(index), Some(unpacked)) = (index, unpacked) else {
        return Err(damaged("its head names no snapshot"));
    };
    unpacked.received(index, Limits::default())?;
    pki::adopt(&data_dir.join("pki"), &head.ca, &head.ca_key)?;
    let place = place(data_dir, data_dir.join("log"), member)?;
    let rescued = rescue::restore(&unpacked, index, number(&head)?, place)?;
    Ok((head, rescued))
}

fn place(data_dir: &Path, directory: PathBuf, member: Member) -> Result<Place, BackupError> {
    let keys = Some(pki::storage_keys(&data_dir.join("pki"))?);
    Ok(Place { directory, keys, member, also: marker(), limits: Limits::default() })
}

/// The name of a log folder that was before a recovery begins with this.
const KEPT: &str = "log.before-recovery-";

/// Whether one is kept beside the log in use.
pub(crate) fn is_kept_beside(log: &Path) -> bool {
    let found = log.parent().and_then(|data_dir| std::fs::read_dir(data_dir).ok());
    found.is_some_and(|mut found| {
        found.any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with(KEPT)))
    })
}

/// Makes a server's log folder that of a cluster of one, when the other servers are lost for good. The old folder is kept beside it;
/// returns its path. Blocks.
///
/// # Errors
/// A server works in the folder; snapshot or log are damaged; the disk refused.
pub fn recover(data_dir: &Path, member: Member) -> Result<(PathBuf, Rescued), BackupError> {
    let (log, new) = (data_dir.join("log"), data_dir.join("log.new"));
    let _ = std::fs::remove_dir_all(&new);
    let rescued = rescue::recover(&log, place(data_dir, new.clone(), member)?)?;
    let kept = data_dir.join(format!("{KEPT}{}", now::ms()));
    std::fs::rename(&log, &kept).map_err(file_error("rename", &log))?;
    std::fs::rename(&new, &log).map_err(file_error("rename", &new))?;
    let folder = std::fs::File::open(data_dir).and_then(|folder| folder.sync_all());
    folder.map_err(file_error("write", data_dir))?;
    Ok((kept, rescued))
}
