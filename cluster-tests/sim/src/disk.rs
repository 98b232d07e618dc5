//! A disk that loses power: of what no sync covered, any subset of 512-byte sectors, sizes and names survives.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_raft::disk::{Disk, DiskFile};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SECTOR: usize = 512;
type Sector = [u8; SECTOR];

#[derive(Debug, Default)]
struct Inode {
    current: Vec<u8>,
    durable: Vec<u8>,
    /// Every version written to a sector since the last sync, oldest first.
    written: BTreeMap<usize, Vec<Sector>>,
    sizes: Vec<usize>,
}

#[derive(Debug, Clone)]
enum NameOp {
    Create(String, usize),
    Rename(String, String),
    Remove(String),
}

#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    name_ops: Vec<NameOp>,
    /// Syncs of files are forgotten.
    lies: bool,
    /// Power goes after so many more operations.
    power_for: Option<u32>,
}

impl State {
    fn power_cut(&mut self, rng: &mut StdRng) {
        for inode in &mut self.inodes {
            let at = rng.random_range(0..=inode.sizes.len());
            let size = at.checked_sub(1).map_or(inode.durable.len(), |at| inode.sizes[at]);
            let mut bytes = std::mem::take(&mut inode.durable);
            bytes.resize(size.max(inode.current.len()).max(bytes.len()), 0);
            for (sector, versions) in &inode.written {
                let at = rng.random_range(0..=versions.len());
                if let Some(version) = at.checked_sub(1).map(|at| &versions[at]) {
                    let start = sector * SECTOR;
                    let end = (start + SECTOR).min(bytes.len());
                    bytes[start..end].copy_from_slice(&version[..end - start]);
                }
            }
            bytes.resize(size, 0);
            *inode = Inode { current: bytes.clone(), durable: bytes, ..Inode::default() };
        }
        let mut names = self.durable_names.clone();
        for op in std::mem::take(&mut self.name_ops) {
            if rng.random_bool(0.5) {
                perform(&mut names, op);
            }
        }
        self.durable_names = names.clone();
        self.names = names;
        self.power_for = None;
    }

    fn name(&mut self, op: NameOp) {
        perform(&mut self.names, op.clone());
        self.name_ops.push(op);
    }

    fn spend(&mut self) -> io::Result<()> {
        match &mut self.power_for {
            Some(0) => Err(io::Error::other("the power is gone")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn perform(names: &mut BTreeMap<String, usize>, op: NameOp) {
    match op {
        NameOp::Create(name, inode) => drop(names.insert(name, inode)),
        NameOp::Rename(from, to) => {
            if let Some(inode) = names.remove(&from) {
                names.insert(to, inode);
            }
        }
        NameOp::Remove(name) => drop(names.remove(&name)),
    }
}

/// One server's disk; it outlives the server. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

impl SimDisk {
    /// An empty one. When it lies, no sync makes a file's contents durable.
    #[must_use]
    pub fn new(lies: bool) -> Self {
        Self { state: Arc::new(Mutex::new(State { lies, ..State::default() })) }
    }

    /// Power goes after so many more writes and syncs, all of which fail from then on.
    pub fn fail_after(&self, operations: u32) {
        self.locked().power_for = Some(operations);
    }

    /// Whether power is gone.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.locked().power_for == Some(0)
    }

    /// Power goes, if it has not already, and comes back: of what was not synced an arbitrary part is there.
    pub fn power_cut(&self, seed: u64) {
        self.locked().power_cut(&mut StdRng::seed_from_u64(seed));
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, inode: usize) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { disk: self.clone(), inode })
    }
}

fn missing() -> io::Error {
    io::Error::from(io::ErrorKind::NotFound)
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.locked().names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.locked();
        state.spend()?;
        state.inodes.push(Inode::default());
        let inode = state.inodes.len() - 1;
        state.name(NameOp::Create(name.to_owned(), inode));
        Ok(self.file(inode))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let inode = *self.locked().names.get(name).ok_or_else(missing)?;
        Ok(self.file(inode))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.locked();
        state.spend()?;
        state.name(NameOp::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.locked();
        state.spend()?;
        if !state.names.contains_key(name) {
            return Err(missing());
        }
        state.name(NameOp::Remove(name.to_owned()));
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.locked();
        state.spend()?;
        state.durable_names = state.names.clone();
        state.name_ops.clear();
        Ok(())
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/simulated")
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    inode: usize,
}

impl SimFile {
    fn look<T>(&self, look: impl FnOnce(&Inode) -> T) -> T {
        look(&self.disk.locked().inodes[self.inode])
    }

    fn change(&self, change: impl FnOnce(&mut Inode)) -> io::Result<()> {
        let mut state = self.disk.locked();
        state.spend()?;
        change(&mut state.inodes[self.inode]);
        Ok(())
    }
}

fn write(inode: &mut Inode, bytes: &[u8], offset: usize) {
    let end = offset + bytes.len();
    if end > inode.current.len() {
        inode.current.resize(end, 0);
        inode.sizes.push(end);
    }
    inode.current[offset..end].copy_from_slice(bytes);
    for sector in offset / SECTOR..end.div_ceil(SECTOR) {
        note(inode, sector);
    }
}

fn note(inode: &mut Inode, sector: usize) {
    let start = sector * SECTOR;
    let end = (start + SECTOR).min(inode.current.len());
    let mut content = [0; SECTOR];
    content[..end - start].copy_from_slice(&inode.current[start..end]);
    inode.written.entry(sector).or_default().push(content);
}

fn set_size(inode: &mut Inode, size: usize) {
    let before = inode.current.len();
    if size < before {
        // What is cut off reads as zeros should the file grow again.
        for sector in size / SECTOR..before.div_ceil(SECTOR) {
            let range = (sector * SECTOR).max(size)..((sector + 1) * SECTOR).min(before);
            if inode.current[range.clone()].iter().any(|byte| *byte != 0) {
                inode.current[range].fill(0);
                note(inode, sector);
            }
        }
    }
    if size != before {
        inode.current.resize(size, 0);
        inode.sizes.push(size);
    }
}

// Only what changed, and zeros beyond: segments are long and mostly empty.
fn sync(inode: &mut Inode) {
    inode.durable.resize(inode.current.len(), 0);
    for sector in inode.written.keys() {
        let start = (sector * SECTOR).min(inode.current.len());
        let end = (start + SECTOR).min(inode.current.len());
        inode.durable[start..end].copy_from_slice(&inode.current[start..end]);
    }
    inode.written.clear();
    inode.sizes.clear();
}

impl DiskFile for SimFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.look(|inode| inode.current.len()) as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.look(|inode| {
            let from = inode.current.get(offset as usize..).unwrap_or_default();
            if from.len() < buffer.len() {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            buffer.copy_from_slice(&from[..buffer.len()]);
            Ok(())
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.change(|inode| write(inode, bytes, offset as usize))
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.change(|inode| set_size(inode, size as usize))
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        self.change(|inode| set_size(inode, (size as usize).max(inode.current.len())))
    }

    fn sync(&self) -> io::Result<()> {
        let lies = self.disk.locked().lies;
        self.change(|inode| {
            if !lies {
                sync(inode);
            }
        })
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(self.look(|inode| {
            let from = inode.current.get(offset as usize..)?;
            Some(offset + from.iter().position(|byte| *byte != 0)? as u64)
        }))
    }
}
