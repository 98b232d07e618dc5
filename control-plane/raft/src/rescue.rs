//! A cluster that begins anew from what is left of it: a backup, or one server's directory after a majority was lost for good.
//!
//! Both make a directory of a server that is alone, with a new identity (who it was before may still be known to others), and
//! raise the epoch, so that nobody takes the older revisions of the new life for those of the old one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use coracle_base::level::LEVEL;
use coracle_store::{Limits, Op, Store, Transaction, codec};

use crate::disk::{Disk, RealDisk};
use crate::handle::{OpenError, Raft, system};
use crate::identity::{Identity, Lock, load_or_make};
use crate::members::{Member, Members};
use crate::snapshots::{Reach, Saved, Snapshots};
use crate::vault::Vault;
use crate::wal::{Ballot, Log, LogConfig, Payload, Position, Record};

/// The log's first segment holds one vote; the next ones are as the server's configuration says.
const FIRST_SEGMENT: u64 = 16 << 20;

/// What a cluster begins anew with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rescued {
    /// The last entry that is in it.
    pub last: Position,
    /// Entries at its end of which this server did not know whether a majority had them: they are kept.
    pub unsure: u64,
    /// Objects.
    pub objects: usize,
    /// The revision it had.
    pub revision: u64,
    /// The epoch it begins with.
    pub epoch: u64,
}

impl Raft {
    /// Writes the state of this moment, whole and checked, as a snapshot into an empty directory, sealed with these keys; returns where it
    /// is. Blocks.
    ///
    /// # Errors
    /// The disk refused, or there is no state yet.
    pub fn save_to(&self, directory: &Path, keys: Option<Arc<Vault>>) -> Result<(Snapshots, Saved), OpenError> {
        let disk = Arc::new(RealDisk::open(directory).map_err(system("open the backup's directory"))?);
        let nothing = || system("take a backup")(std::io::Error::other("there is no state yet"));
        let (reach, frozen) = self.inner().shared.snapshot_now().ok_or_else(nothing)?;
        let snapshots = Snapshots::new(disk, self.identity().cluster, keys);
        let saved = snapshots.write(&reach, &frozen)?;
        Ok((snapshots, saved))
    }
}

/// Where a new life of a cluster is made.
#[derive(Debug, Clone)]
pub struct Place {
    /// The log's directory.
    pub directory: PathBuf,
    /// What seals it.
    pub keys: Option<Arc<Vault>>,
    /// Its server.
    pub member: Member,
    /// What is written beside what there was.
    pub also: Vec<Transaction>,
    /// Bounds of the store.
    pub limits: Limits,
}

/// Makes the directory of a cluster of one from a snapshot that `Raft::save_to` wrote. Blocks.
///
/// # Errors
/// The directory holds a log already; the snapshot is damaged or of another cluster; the disk refused.
pub fn restore(from: &Snapshots, index: u64, cluster: u128, place: Place) -> Result<Rescued, OpenError> {
    let (saved, store) = from.read(index, place.limits)?;
    begin(place, cluster, saved.reach.last, 0, store)
}

/// Makes a directory of a cluster of one from what a server's directory holds: the newest snapshot and every entry of the log,
/// also those of which it is not known whether a majority had them. The old directory is left as it is. Blocks.
///
/// # Errors
/// A server works in the old directory; snapshot or log are damaged; the disk refused.
pub fn recover(old: &Path, place: Place) -> Result<Rescued, OpenError> {
    let limits = place.limits;
    let _lock = Lock::take(old)?;
    if !old.join("identity").exists() {
        return Err(system("read the log")(std::io::Error::other("there is none in this folder")));
    }
    let identity = load_or_make(old, None)?;
    let disk = |name: &str| {
        RealDisk::open(&old.join(name))
            .map(|disk| Arc::new(disk) as Arc<dyn Disk>)
            .map_err(system("open the log's directory"))
    };
    let loaded = Snapshots::new(disk("snapshots")?, identity.cluster, place.keys.clone()).load(limits)?;
    let config =
        LogConfig { cluster: identity.cluster, node: identity.node, segment_bytes: 64 << 20, reserve_bytes: 0 };
    let log =
        Log::open_sealed(disk("log")?, config, place.keys.clone()).map_err(|error| error.below(&old.join("log")))?;
    let (mut last, mut store) = match loaded {
        Some((saved, store)) => (saved.reach.last, store),
        None => (Position::default(), Store::new(limits)),
    };
    let index = log.index();
    let index = index.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(purged) = index.purged.filter(|purged| purged.index > last.index) {
        return Err(OpenError::Hole { log: purged.index, snapshot: last.index });
    }
    let committed = index.committed.map_or(last.index, |committed| committed.index.max(last.index));
    let end = index.last().map_or(last.index, |end| end.index);
    let mut read = BTreeMap::new();
    for number in last.index.max(index.first_index().saturating_sub(1)) + 1..=end {
        if !read.contains_key(&number) {
            let located = index.locate(number).ok_or(crate::wal::WalError::NoEntry(number))?;
            read = located.read()?.into_iter().map(|entry| (entry.at.index, entry)).collect();
        }
        let entry = read.remove(&number).ok_or(crate::wal::WalError::NoEntry(number))?;
        if let Payload::Commands(bytes) = &entry.payload {
            let transactions =
                codec::decode(bytes).map_err(|error| system("read the log")(std::io::Error::other(error)))?;
            store.apply(&transactions);
        }
        last = entry.at;
    }
    drop(index);
    begin(place, identity.cluster, last, end.saturating_sub(committed), store)
}

fn begin(place: Place, cluster: u128, last: Position, unsure: u64, mut store: Store) -> Result<Rescued, OpenError> {
    let Place { directory, keys, member, also, .. } = place;
    let directory = directory.as_path();
    let _lock = Lock::take(directory)?;
    if directory.join("identity").exists() {
        return Err(system("begin anew")(std::io::Error::other(format!(
            "{} holds a log already",
            directory.display()
        ))));
    }
    let found = store.view().level();
    if found > LEVEL {
        return Err(OpenError::Newer { path: directory.to_owned(), found, knows: LEVEL });
    }
    let revision = store.view().revision();
    store.apply(&[Op::RaiseEpoch.into()]);
    store.apply(&also);
    let identity = Identity { node: rand::random(), cluster };
    let members =
        Members { voters: vec![BTreeSet::from([identity.node])], servers: BTreeMap::from([(identity.node, member)]) };
    let reach = Reach { last, members_at: Some(last), members };
    let folder = directory.join("snapshots");
    let disk = Arc::new(RealDisk::open(&folder).map_err(system("make the snapshots' directory"))?);
    Snapshots::new(disk, cluster, keys.clone()).write(&reach, &store.freeze())?;
    // The next term is a newer one: what the last leader wrote is below it.
    let disk = Arc::new(RealDisk::open(&directory.join("log")).map_err(system("make the log's directory"))?);
    let config = LogConfig { cluster, node: identity.node, segment_bytes: FIRST_SEGMENT, reserve_bytes: 0 };
    let mut log = Log::open_sealed(disk, config, keys).map_err(|error| error.below(&directory.join("log")))?;
    log.commit(&[Record::Ballot(Ballot { term: last.term, node: last.node, committed: true })])?;
    drop(log);
    // Last: with it the directory is a server's.
    load_or_make(directory, Some(identity))?;
    let view = store.view();
    Ok(Rescued { last, unsure, objects: view.len(), revision, epoch: view.epoch() })
}
