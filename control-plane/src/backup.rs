//! Backup, restore and recovery: the whole state in one file, and a cluster that begins anew from it or from one server's folder.
//!
//! ```text
//! file   "coracle backup 1\n", a line of JSON (`Head`), the snapshot's bytes
//! ```

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use coracle_base::level::{LEVEL, Level};
use coracle_raft::rescue::{self, Rescued};
use coracle_raft::{Member, OpenError, Raft};
use coracle_store::{Key, Limits, Op, Transaction};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::now;
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
    file: PathBuf,
    folder: PathBuf,
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
    let mut ready = Ready { head: Vec::new(), file: PathBuf::new(), folder };
    let view = raft.view();
    let (file, saved) = raft.save_to(&ready.folder)?;
    let sha256 = hash(&file)?;
    let head = Head {
        cluster: format!("{:032x}", raft.identity().cluster),
        created: now::rfc3339(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        level: view.level(),
        revision: view.revision(),
        objects: view.len(),
        snapshot: file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        bytes: saved.bytes,
        sha256,
        ca: authority.cert_pem().to_owned(),
        ca_key: authority.key_pem()?,
    };
    ready.head = format!("{MAGIC}\n{}\n", serde_json::to_string(&head).unwrap_or_default()).into_bytes();
    ready.file = file;
    Ok(ready)
}

impl Ready {
    /// Sends all of it. Blocks; ends early when nobody listens.
    pub(crate) fn send(self, sender: &mpsc::Sender<Result<Bytes, String>>) {
        let part = |bytes: &[u8]| sender.blocking_send(Ok(Bytes::copy_from_slice(bytes))).is_ok();
        if !part(&self.head) {
            return;
        }
        let sent = std::fs::File::open(&self.file).and_then(|mut file| {
            let mut buffer = vec![0; PART];
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(()),
                    count if !part(&buffer[..count]) => return Ok(()),
                    _ => {}
                }
            }
        });
        if let Err(error) = sent {
            let _ = sender.blocking_send(Err(error.to_string()));
        }
    }
}

fn hash(path: &Path) -> Result<String, BackupError> {
    let mut file = std::fs::File::open(path).map_err(file_error("read", path))?;
    let (mut sha, mut buffer) = (Sha256::new(), vec![0; PART]);
    loop {
        match file.read(&mut buffer).map_err(file_error("read", path))? {
            0 => return Ok(sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            count => sha.update(&buffer[..count]),
        }
    }
}

/// Reads a backup's head and checks that all of it is there and as it was written; where a folder is given, the snapshot is put
/// there. Blocks.
///
/// # Errors
/// It is not whole, or a file cannot be read or written.
pub fn check(path: &Path, unpack: Option<&Path>) -> Result<Head, BackupError> {
    let damaged = |what: &str| BackupError::Damaged { path: path.to_owned(), what: what.to_owned() };
    let mut input = BufReader::new(std::fs::File::open(path).map_err(file_error("read", path))?);
    let mut line = |limit: u64| {
        let mut text = String::new();
        (&mut input).take(limit).read_line(&mut text).map_err(file_error("read", path))?;
        Ok::<_, BackupError>(text)
    };
    if line(64)?.trim_end() != MAGIC {
        return Err(damaged("it does not begin like one"));
    }
    let head: Head = serde_json::from_str(&line(MAX_HEAD)?).map_err(|_| damaged("its head cannot be read"))?;
    if head.level > LEVEL {
        return Err(BackupError::Newer { path: path.to_owned(), found: head.level, version: head.version });
    }
    let plain =
        head.snapshot.strip_suffix(".snapshot").is_some_and(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    if !plain {
        return Err(damaged("its head names no snapshot"));
    }
    let mut out = match unpack {
        Some(folder) => {
            let target = folder.join(&head.snapshot);
            let mut options = std::fs::OpenOptions::new();
            let file = options.write(true).create_new(true).mode(0o600).open(&target);
            Some((file.map_err(file_error("create", &target))?, target))
        }
        None => None,
    };
    let (mut sha, mut bytes, mut buffer) = (Sha256::new(), 0_u64, vec![0; PART]);
    loop {
        let count = input.read(&mut buffer).map_err(file_error("read", path))?;
        if count == 0 {
            break;
        }
        sha.update(&buffer[..count]);
        bytes += count as u64;
        if let Some((file, target)) = &mut out {
            file.write_all(&buffer[..count]).map_err(file_error("write", target))?;
        }
    }
    if bytes != head.bytes {
        return Err(damaged(&format!("{bytes} of {} bytes are there", head.bytes)));
    }
    let found: String = sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found != head.sha256 {
        return Err(damaged("its checksum does not match"));
    }
    if let Some((file, target)) = &out {
        file.sync_all().map_err(file_error("write", target))?;
    }
    Ok(head)
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
/// The folder holds a cluster; the backup is not whole; the disk refused.
pub fn restore(file: &Path, data_dir: &Path, member: Member) -> Result<(Head, Rescued), BackupError> {
    if data_dir.join("log").join("identity").exists() {
        return Err(BackupError::NotEmpty(data_dir.to_owned()));
    }
    let scratch = data_dir.join("restore.tmp");
    let _ = std::fs::remove_dir_all(&scratch);
    std::fs::create_dir_all(&scratch).map_err(file_error("create", &scratch))?;
    let head = check(file, Some(&scratch))?;
    let damaged = |what: &str| BackupError::Damaged { path: file.to_owned(), what: what.to_owned() };
    let cluster = u128::from_str_radix(&head.cluster, 16).map_err(|_| damaged("the cluster's name is no number"))?;
    pki::adopt(&data_dir.join("pki"), &head.ca, &head.ca_key)?;
    let snapshot = scratch.join(&head.snapshot);
    let log = data_dir.join("log");
    let rescued = rescue::restore(&snapshot, cluster, &log, member, marker(), Limits::default())?;
    let _ = std::fs::remove_dir_all(&scratch);
    Ok((head, rescued))
}

/// Makes a server's log folder that of a cluster of one, when the other servers are lost for good. The old folder is kept beside it;
/// returns its path. Blocks.
///
/// # Errors
/// A server works in the folder; snapshot or log are damaged; the disk refused.
pub fn recover(data_dir: &Path, member: Member) -> Result<(PathBuf, Rescued), BackupError> {
    let (log, new) = (data_dir.join("log"), data_dir.join("log.new"));
    let _ = std::fs::remove_dir_all(&new);
    let rescued = rescue::recover(&log, &new, member, marker(), Limits::default())?;
    let kept = data_dir.join(format!("log.before-recovery-{}", now::ms()));
    std::fs::rename(&log, &kept).map_err(file_error("rename", &log))?;
    std::fs::rename(&new, &log).map_err(file_error("rename", &new))?;
    let folder = std::fs::File::open(data_dir).and_then(|folder| folder.sync_all());
    folder.map_err(file_error("write", data_dir))?;
    Ok((kept, rescued))
}
