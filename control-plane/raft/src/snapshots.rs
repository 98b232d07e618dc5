//! Snapshot files: written whole beside the log, checked by chunk and as a whole, the last two kept.
//!
//! On disk they are sealed (`sealed`, format 2); what is in a sealed one, and what goes to other servers, is plain:
//!
//! ```text
//! file   head (4096 bytes: "CORASNAP", format u16, cluster u128, position, membership's position, members, crc32c u32),
//!        { length u32, crc32c u32, chunk }, 0 u32, sha256 of everything before (32 bytes)
//! ```

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_store::codec::{CodecError, Reader, Writer};
use coracle_store::{Frozen, Limits, Restore, SnapshotError, Store};
use sha2::{Digest, Sha256};

use crate::disk::Disk;
use crate::members::Members;
use crate::sealed::{self, Input, Output, Unreadable};
use crate::vault::{KeyError, Vault};
use crate::wal::{Position, WalError};

const MAGIC: &[u8; 8] = b"CORASNAP";
/// Of a plain snapshot, and of what is in a sealed one.
const FORMAT: u16 = 1;
const SEALED: u16 = 2;
const HEAD: usize = 4096;
const CHUNK: usize = 1 << 20;
const TEMPORARY: &str = "snapshot.tmp";
const RECEIVED: &str = "received.tmp";

/// Up to where a snapshot reaches and who belonged to the cluster then.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// The last entry it contains.
    pub last: Position,
    /// The entry that made the members what they are.
    pub members_at: Option<Position>,
    /// The members.
    pub members: Members,
}

/// A snapshot on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// What it covers.
    pub reach: Reach,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Why a snapshot cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotFileError {
    /// The system refused.
    #[error(transparent)]
    Disk(#[from] WalError),
    /// The state cannot be encoded.
    #[error("cannot encode the snapshot")]
    Encode(#[source] CodecError),
    /// The file is not what was written.
    #[error("snapshot {file} is damaged: {what}")]
    Damaged {
        /// The file.
        file: String,
        /// In words.
        what: String,
    },
    /// It is of another cluster.
    #[error("snapshot {0} belongs to another cluster")]
    Foreign(String),
    /// It was written by a newer release.
    #[error(
        "snapshot {file} has format {found}, this release reads up to {SEALED}\nhint: start the release that wrote it, or a newer one"
    )]
    Format {
        /// The file.
        file: String,
        /// What it says.
        found: u16,
    },
    /// The state in it is not ours.
    #[error("snapshot {file} cannot be restored")]
    Restore {
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: SnapshotError,
    },
}

/// The directory of snapshots.
#[derive(Debug, Clone)]
pub struct Snapshots {
    disk: Arc<dyn Disk>,
    cluster: u128,
    inline: bool,
    /// What seals new ones; `None`: they are plain.
    keys: Option<Arc<Vault>>,
    /// The one that another server sends.
    receiving: Arc<Mutex<Option<Output>>>,
}

impl Snapshots {
    /// Over this directory, sealed with these keys.
    #[must_use]
    pub fn new(disk: Arc<dyn Disk>, cluster: u128, keys: Option<Arc<Vault>>) -> Self {
        Self { disk, cluster, inline: false, keys, receiving: Arc::default() }
    }

    /// With `inline` nothing is done on other threads: for simulations.
    pub(crate) fn inline(self, inline: bool) -> Self {
        Self { inline, ..self }
    }

    /// Work that blocks, where it holds nobody up. Fails when the work panicked.
    pub(crate) async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, tokio::task::JoinError> {
        if self.inline {
            return Ok(work(self));
        }
        let snapshots = self.clone();
        tokio::task::spawn_blocking(move || work(&snapshots)).await
    }

    fn begin(&self, name: &'static str) -> Result<Output, WalError> {
        let file = self.disk.create(name).map_err(WalError::io("create", name))?;
        Output::begin(file, name, (*MAGIC, SEALED), self.cluster, self.keys.as_deref())
    }

    fn open(&self, name: &str) -> Result<Input, SnapshotFileError> {
        let file = self.disk.open(name).map_err(WalError::io("open", name))?;
        let size = file.size().map_err(WalError::io("measure", name))?;
        let Some(head) = self.sealed_head(name)? else { return Ok(Input::plain(file, name.to_owned(), size)) };
        if head.cluster != self.cluster {
            return Err(SnapshotFileError::Foreign(name.to_owned()));
        }
        let what = format!("snapshot {name}");
        let key = match &self.keys {
            Some(keys) => keys.unwrap(&head.key, &what).map_err(WalError::from)?,
            None => return Err(WalError::from(KeyError::NoKeys(what)).into()),
        };
        let early = || SnapshotFileError::Damaged { file: name.to_owned(), what: "it ends early".to_owned() };
        Input::sealed(file, name.to_owned(), size, &head, key).ok_or_else(early)
    }

    /// The head of a sealed one; `None` for what is plain, or no snapshot at all.
    fn sealed_head(&self, name: &str) -> Result<Option<sealed::Head>, SnapshotFileError> {
        let file = self.disk.open(name).map_err(WalError::io("open", name))?;
        let size = file.size().map_err(WalError::io("measure", name))?;
        let mut bytes = vec![0; size.min(sealed::HEAD as u64) as usize];
        file.read_at(&mut bytes, 0).map_err(WalError::io("read", name))?;
        let format = bytes.strip_prefix(MAGIC).and_then(|rest| rest.first_chunk());
        if format != Some(&SEALED.to_le_bytes()) {
            return Ok(None);
        }
        let damaged = |what: &str| SnapshotFileError::Damaged { file: name.to_owned(), what: what.to_owned() };
        let head = sealed::Head::read(&bytes).map_err(|_| damaged("its head ends early"))?;
        head.map(Some).ok_or_else(|| damaged("its head's checksum does not match"))
    }

    /// The names of the node keys that snapshots are sealed with.
    ///
    /// # Errors
    /// The disk fails.
    pub fn node_keys(&self) -> Result<BTreeSet<u64>, SnapshotFileError> {
        let mut ids = BTreeSet::new();
        for index in self.indexes()? {
            match self.sealed_head(&name(index)) {
                Ok(head) => ids.extend(head.map(|head| head.key.id)),
                Err(SnapshotFileError::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(ids)
    }

    fn receiving(&self) -> MutexGuard<'_, Option<Output>> {
        self.receiving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a snapshot and drops all but the last two. Blocks.
    ///
    /// # Errors
    /// The disk refused or is full; what was there before is untouched.
    pub fn write(&self, reach: &Reach, state: &Frozen) -> Result<Saved, SnapshotFileError> {
        let written = self.write_temporary(reach, state);
        let bytes = match written {
            Ok(bytes) => bytes,
            Err(error) => {
                if let Err(left) = self.disk.remove(TEMPORARY) {
                    tracing::warn!(error = %left, "the unfinished snapshot stays behind");
                }
                return Err(error);
            }
        };
        let name = name(reach.last.index);
        self.disk.rename(TEMPORARY, &name).map_err(WalError::io("rename", TEMPORARY))?;
        self.disk.sync_names().map_err(WalError::io("sync the directory of", &name))?;
        self.drop_old()?;
        Ok(Saved { reach: reach.clone(), bytes })
    }

    fn write_temporary(&self, reach: &Reach, state: &Frozen) -> Result<u64, SnapshotFileError> {
        let mut out = Out { file: self.begin(TEMPORARY)?, hash: Sha256::new() };
        out.write(&self.head(reach).map_err(SnapshotFileError::Encode)?)?;
        for chunk in state.chunks(CHUNK) {
            let chunk = chunk.map_err(SnapshotFileError::Encode)?;
            let mut head = Writer::new();
            head.count(chunk.len(), "a chunk").map_err(SnapshotFileError::Encode)?;
            head.u32(crc32c::crc32c(&chunk));
            out.write(&head.into_bytes())?;
            out.write(&chunk)?;
        }
        out.write(&0_u32.to_le_bytes())?;
        let hash = out.hash.clone().finalize();
        out.write(&hash)?;
        Ok(out.file.finish()?)
    }

    fn head(&self, reach: &Reach) -> Result<Vec<u8>, CodecError> {
        let mut out = Writer::new();
        for byte in MAGIC {
            out.u8(*byte);
        }
        out.u16(FORMAT);
        out.u64(self.cluster as u64);
        out.u64((self.cluster >> 64) as u64);
        let position = |out: &mut Writer, at: Position| {
            out.u64(at.term);
            out.u64(at.node);
            out.u64(at.index);
        };
        position(&mut out, reach.last);
        out.option(reach.members_at, |out, at| {
            position(out, at);
            Ok(())
        })?;
        out.blob(&reach.members.encode()?, "the members")?;
        let mut bytes = out.into_bytes();
        if bytes.len() + 4 > HEAD {
            return Err(CodecError::TooLong("the list of servers"));
        }
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.resize(HEAD, 0);
        Ok(bytes)
    }

    fn drop_old(&self) -> Result<(), WalError> {
        let indexes = self.indexes()?;
        for index in indexes.iter().rev().skip(2) {
            let name = name(*index);
            self.disk.remove(&name).map_err(WalError::io("remove", &name))?;
        }
        if indexes.len() > 2 {
            self.disk.sync_names().map_err(WalError::io("sync", "the snapshots' directory"))
        } else {
            Ok(())
        }
    }

    /// The name of a snapshot's file.
    #[must_use]
    pub fn name(index: u64) -> String {
        format!("{index:020}.snapshot")
    }

    /// The size of a snapshot, in plain bytes.
    ///
    /// # Errors
    /// There is none of this index, or the disk fails.
    pub fn size(&self, index: u64) -> Result<u64, SnapshotFileError> {
        Ok(self.open(&name(index))?.size)
    }

    /// A part of a snapshot, plain. Blocks.
    ///
    /// # Errors
    /// There is none of this index, it is shorter, damaged, or the disk fails.
    pub fn part(&self, index: u64, offset: u64, length: u64) -> Result<Vec<u8>, SnapshotFileError> {
        let name = name(index);
        let file = self.open(&name)?;
        let mut input = In { file, name: &name, at: offset, hash: Sha256::new() };
        input.read(usize::try_from(length).unwrap_or(0))
    }

    /// Takes in a part of a snapshot that another server sends, in order from the beginning. Blocks.
    ///
    /// # Errors
    /// The disk fails, or the part is not the next one.
    pub fn receive(&self, offset: u64, bytes: &[u8]) -> Result<(), WalError> {
        let mut receiving = self.receiving();
        if offset == 0 {
            *receiving = Some(self.begin(RECEIVED)?);
        }
        let missed = || WalError::io("go on with", RECEIVED)(std::io::Error::other("a part is missing"));
        receiving.as_mut().filter(|out| out.at == offset).ok_or_else(missed)?.write(bytes)
    }

    /// What has been received is a whole snapshot of this cluster: it is checked, and becomes the one of its index. Blocks.
    ///
    /// # Errors
    /// It is damaged, of another cluster or another index, or the disk fails.
    pub fn received(&self, index: u64, limits: Limits) -> Result<Saved, SnapshotFileError> {
        if let Some(out) = self.receiving().take() {
            out.finish()?;
        }
        let (saved, _) = self.read_file(RECEIVED, limits)?;
        if saved.reach.last.index != index {
            let what = format!("it reaches to entry {}, not to {index}", saved.reach.last.index);
            return Err(SnapshotFileError::Damaged { file: RECEIVED.to_owned(), what });
        }
        let name = name(index);
        self.disk.rename(RECEIVED, &name).map_err(WalError::io("rename", RECEIVED))?;
        self.disk.sync_names().map_err(WalError::io("sync the directory of", &name))?;
        Ok(saved)
    }

    /// The indexes of the snapshots there are, oldest first.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn indexes(&self) -> Result<Vec<u64>, WalError> {
        let names = self.disk.list().map_err(WalError::io("list", self.disk.path().display().to_string()))?;
        let mut indexes: Vec<u64> =
            names.iter().filter_map(|name| name.strip_suffix(".snapshot")?.parse().ok()).collect();
        indexes.sort_unstable();
        Ok(indexes)
    }

    /// The newest snapshot that is whole, and its state. A damaged one is passed over with a warning: the one before it and the
    /// log since then say the same.
    ///
    /// # Errors
    /// The disk fails; a snapshot is foreign or of a newer release.
    pub fn load(&self, limits: Limits) -> Result<Option<(Saved, Store)>, SnapshotFileError> {
        for index in self.indexes()?.into_iter().rev() {
            match self.read(index, limits) {
                Ok(loaded) => return Ok(Some(loaded)),
                Err(error @ (SnapshotFileError::Damaged { .. } | SnapshotFileError::Restore { .. })) => {
                    tracing::warn!(error = %coracle_base::one_line(&error), "a snapshot is passed over");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Reads one snapshot. Blocks.
    ///
    /// # Errors
    /// The disk fails, or the file is not what was written.
    pub fn read(&self, index: u64, limits: Limits) -> Result<(Saved, Store), SnapshotFileError> {
        self.read_file(&name(index), limits)
    }

    fn read_file(&self, file_name: &str, limits: Limits) -> Result<(Saved, Store), SnapshotFileError> {
        let file = self.open(file_name)?;
        let bytes = file.size;
        let mut input = In { file, name: file_name, at: 0, hash: Sha256::new() };
        let reach = self.read_head(&input.read(HEAD)?, file_name)?;
        let mut restore = Restore::new();
        let refused = |source| SnapshotFileError::Restore { file: file_name.to_owned(), source };
        loop {
            let length = u32::from_le_bytes(input.array()?) as usize;
            if length == 0 {
                break;
            }
            let crc = u32::from_le_bytes(input.array()?);
            let chunk = input.read(length)?;
            if crc32c::crc32c(&chunk) != crc {
                return Err(input.damaged("a chunk's checksum does not match"));
            }
            restore.chunk(&chunk).map_err(refused)?;
        }
        let hash: [u8; 32] = input.hash.clone().finalize().into();
        if input.array::<32>()? != hash {
            return Err(input.damaged("the hash of the whole does not match"));
        }
        let store = restore.finish(limits).map_err(refused)?;
        Ok((Saved { reach, bytes }, store))
    }

    fn read_head(&self, bytes: &[u8], file: &str) -> Result<Reach, SnapshotFileError> {
        let damaged = |what: &str| SnapshotFileError::Damaged { file: file.to_owned(), what: what.to_owned() };
        let early = |_| damaged("its head ends early");
        let mut input = Reader::new(bytes);
        if input.take(MAGIC.len(), "a magic").map_err(early)? != MAGIC {
            return Err(damaged("it does not begin like a snapshot"));
        }
        let found = input.u16("a format").map_err(early)?;
        if found == 0 || found > FORMAT {
            return Err(SnapshotFileError::Format { file: file.to_owned(), found });
        }
        let cluster = u128::from(input.u64("a cluster").map_err(early)?);
        let cluster = cluster | u128::from(input.u64("a cluster").map_err(early)?) << 64;
        let position = |input: &mut Reader<'_>| {
            Ok::<_, CodecError>(Position {
                term: input.u64("a term")?,
                node: input.u64("a server")?,
                index: input.u64("an index")?,
            })
        };
        let last = position(&mut input).map_err(early)?;
        let members_at = input.option("whether a position follows", position).map_err(early)?;
        let members = input.blob("the members").map_err(early)?;
        let covered = bytes.len() - input.left();
        if input.u32("a crc").map_err(early)? != crc32c::crc32c(&bytes[..covered]) {
            return Err(damaged("its head's checksum does not match"));
        }
        if cluster != self.cluster {
            return Err(SnapshotFileError::Foreign(file.to_owned()));
        }
        let members = Members::decode(members).map_err(|error| damaged(&error.to_string()))?;
        Ok(Reach { last, members_at, members })
    }
}

fn name(index: u64) -> String {
    Snapshots::name(index)
}

struct Out {
    file: Output,
    hash: Sha256,
}

impl Out {
    fn write(&mut self, bytes: &[u8]) -> Result<(), WalError> {
        self.hash.update(bytes);
        self.file.write(bytes)
    }
}

struct In<'a> {
    file: Input,
    name: &'a str,
    at: u64,
    hash: Sha256,
}

impl In<'_> {
    fn read(&mut self, length: usize) -> Result<Vec<u8>, SnapshotFileError> {
        if length as u64 > self.file.size.saturating_sub(self.at) {
            return Err(self.damaged("it ends early"));
        }
        let mut bytes = vec![0; length];
        self.file.read_at(&mut bytes, self.at).map_err(|error| match error {
            Unreadable::Disk(error) => error.into(),
            Unreadable::Damaged => self.damaged("a block does not open with the file's key: it was changed"),
        })?;
        self.hash.update(&bytes);
        self.at += length as u64;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotFileError> {
        let bytes = self.read(N)?;
        let mut array = [0; N];
        array.copy_from_slice(&bytes);
        Ok(array)
    }

    fn damaged(&self, what: &str) -> SnapshotFileError {
        SnapshotFileError::Damaged { file: self.name.to_owned(), what: what.to_owned() }
    }
}
