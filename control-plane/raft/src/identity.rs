//! Whose data directory it is, which level its cluster has, and that only one process works in it.
//!
//! ```text
//! identity   "format 1\n", "server " 16 hexadecimal digits, "cluster " 32 of them, a line each; "format 2" adds "level " number
//! ```
//! Format 2 is written when the cluster's level has risen above 1: a release of level 1 then refuses the directory at its start, before it
//! meets a command that it does not know.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use coracle_base::Level;
use rustix::fs::FlockOperation;

/// The name of this server and of its cluster, for good: a wiped disk is another server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Random, never used twice.
    pub node: u64,
    /// Random, made by the cluster's first server.
    pub cluster: u128,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another process has it.
    #[error(
        "the data directory {path} is in use by process {pid}\nhint: that server is running already; stop it, or name another --data-dir"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// As the other process wrote it.
        pid: String,
    },
    /// The system refused.
    #[error("cannot {operation} {path}")]
    Io {
        /// What was to be done.
        operation: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The file says something else.
    #[error("{path} is not a server's identity: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// In words.
        reason: String,
    },
    /// It is another server's directory.
    #[error("{path} belongs to server {found:016x}, not to {wanted:016x}")]
    Other {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        found: u64,
        /// Who asks.
        wanted: u64,
    },
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io { operation, path, source }
}

/// Held as long as the directory is used; the kernel releases it with the process.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the directory for this process.
    ///
    /// # Errors
    /// Another process has it; the directory cannot be made.
    pub fn take(directory: &Path) -> Result<Self, IdentityError> {
        std::fs::create_dir_all(directory).map_err(io_error("make the directory", directory))?;
        let path = directory.join("lock");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(io_error("open", &path))?;
        if let Err(error) = rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(io_error("lock", &path)(error.into()));
            }
            let mut pid = String::new();
            // The holder may not have written it yet; the message then says so by its absence.
            let read = Read::by_ref(&mut file).take(20).read_to_string(&mut pid);
            let pid = pid.trim();
            let pid = if read.is_ok() && !pid.is_empty() { pid.to_owned() } else { "unknown".to_owned() };
            return Err(IdentityError::InUse { path: directory.to_owned(), pid });
        }
        // In place and always as long: a full disk has no room for a new block, and must not keep a server from starting.
        let written = file.rewind().and_then(|()| writeln!(file, "{:<10}", std::process::id()));
        written.map_err(io_error("write", &path))?;
        Ok(Self { _file: file })
    }
}

/// Reads the identity, or makes one.
///
/// # Errors
/// The directory cannot be read or written, or is another server's.
pub fn load_or_make(directory: &Path, wanted: Option<Identity>) -> Result<Identity, IdentityError> {
    let path = directory.join("identity");
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let (found, _) = parse(&text).map_err(|reason| IdentityError::Malformed { path: path.clone(), reason })?;
            match wanted.filter(|wanted| *wanted != found) {
                None => Ok(found),
                Some(wanted) => Err(IdentityError::Other { path, found: found.node, wanted: wanted.node }),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = wanted.unwrap_or_else(|| Identity { node: rand::random(), cluster: rand::random() });
            write(directory, &path, made, 1)?;
            Ok(made)
        }
        Err(error) => Err(io_error("read", &path)(error)),
    }
}

/// The level that the cluster of a directory is known to have; 1 when nothing is known.
///
/// # Errors
/// The identity cannot be read.
pub fn level(directory: &Path) -> Result<Level, IdentityError> {
    let path = directory.join("identity");
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(&text).map(|(_, level)| level).map_err(|reason| IdentityError::Malformed { path, reason }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(1),
        Err(error) => Err(io_error("read", &path)(error)),
    }
}

/// Notes a level beside the identity.
///
/// # Errors
/// The directory cannot be written.
pub fn note_level(directory: &Path, identity: Identity, level: Level) -> Result<(), IdentityError> {
    write(directory, &directory.join("identity"), identity, level)
}

fn write(directory: &Path, path: &Path, identity: Identity, level: Level) -> Result<(), IdentityError> {
    let temporary = directory.join("identity.tmp");
    let names = format!("server {:016x}\ncluster {:032x}\n", identity.node, identity.cluster);
    let text = if level > 1 { format!("format 2\n{names}level {level}\n") } else { format!("format 1\n{names}") };
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .map_err(io_error("make", &temporary))?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(io_error("write", &temporary))?;
    std::fs::rename(&temporary, path).map_err(io_error("rename", &temporary))?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(io_error("sync", directory))
}

fn parse(text: &str) -> Result<(Identity, Level), String> {
    let mut words = text.split_ascii_whitespace();
    let mut value = |name: &str| match (words.next(), words.next()) {
        (Some(word), Some(value)) if word == name => Ok(value.to_owned()),
        (word, _) => Err(format!("`{name}` expected, `{}` found", word.unwrap_or("the end"))),
    };
    let format = value("format")?;
    if format != "1" && format != "2" {
        return Err(format!("format {format} is newer than this release"));
    }
    let number =
        |text: String| u128::from_str_radix(&text, 16).map_err(|_| format!("`{text}` is no hexadecimal number"));
    let node = number(value("server")?)?;
    let cluster = number(value("cluster")?)?;
    let node = u64::try_from(node).map_err(|_| "the server's number is too long".to_owned())?;
    let level = match format.as_str() {
        "1" => 1,
        _ => {
            let text = value("level")?;
            text.parse().map_err(|_| format!("`{text}` is no level"))?
        }
    };
    Ok((Identity { node, cluster }, level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_the_lock_names_its_holder() {
        let directory = tempfile::tempdir().unwrap();
        let made = load_or_make(directory.path(), None).unwrap();
        assert_eq!(load_or_make(directory.path(), None).unwrap(), made);
        let other = Identity { node: made.node ^ 1, ..made };
        assert!(matches!(load_or_make(directory.path(), Some(other)), Err(IdentityError::Other { .. })));

        let _held = Lock::take(directory.path()).unwrap();
        let refused = Lock::take(directory.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("in use by process {}", std::process::id())), "{refused}");
        assert!(refused.contains(directory.path().to_str().unwrap()), "{refused}");
    }

    #[test]
    fn a_level_is_noted_beside_the_identity() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(level(directory.path()).unwrap(), 1);
        let made = load_or_make(directory.path(), None).unwrap();
        let text = || std::fs::read_to_string(directory.path().join("identity")).unwrap();
        assert!(text().starts_with("format 1\n"), "the release before reads it");
        note_level(directory.path(), made, 3).unwrap();
        assert!(text().starts_with("format 2\n"), "and not any more");
        assert_eq!((load_or_make(directory.path(), None).unwrap(), level(directory.path()).unwrap()), (made, 3));
    }
}
