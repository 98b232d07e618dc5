//! A disk that loses power: of what no sync covered, any subset of 512-byte sectors, sizes and names survives.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use coracle_raft::disk::{Disk, DiskFile};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const SECTOR: usize = 512;
type Sector = [u8; SECTOR];

#[derive(Debug, Clone, Default)]
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

/// What a sync leaves undone: a disk that lies, for showing that the model notices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Lie {
    #[default]
    None,
    Data,
    Names,
}

#[derive(Debug, Clone, Default)]
pub struct State {
    inodes: Vec<Arc<Inode>>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    name_ops: Vec<NameOp>,
    lie: Lie,
    /// No byte fits any more; a write still gets so many bytes down before it notices.
    full: Option<usize>,
}

/// How what is pending is chosen from.
#[derive(Debug, Clone, Copy)]
pub enum Choice {
    Nothing,
    Everything,
    /// Only this one of the pending sectors.
    Only(usize),
    AllBut(usize),
    Random(u64),
}

impl State {
    /// How many sectors are pending.
    pub fn pending(&self) -> usize {
        self.inodes.iter().map(|inode| inode.written.len()).sum()
    }

    pub fn is_pending(&self) -> bool {
        self.pending() > 0 || !self.name_ops.is_empty() || self.inodes.iter().any(|inode| !inode.sizes.is_empty())
    }

    /// The disk as it is when power comes back.
    pub fn after_power_cut(&self, choice: Choice) -> Self {
        let mut rng = StdRng::seed_from_u64(if let Choice::Random(seed) = choice { seed } else { 0 });
        let mut nth = 0;
        let mut inodes = Vec::new();
        for inode in &self.inodes {
            if inode.written.is_empty() && inode.sizes.is_empty() {
                inodes.push(inode.clone());
                continue;
            }
            let size = pick_size(inode, choice, &mut rng);
            let mut bytes = inode.durable.clone();
            bytes.resize(size.max(inode.current.len()).max(bytes.len()), 0);
            for (sector, versions) in &inode.written {
                let version = match choice {
                    Choice::Nothing => None,
                    Choice::Everything => versions.last(),
                    Choice::Only(only) => versions.last().filter(|_| nth == only),
                    Choice::AllBut(but) => versions.last().filter(|_| nth != but),
                    Choice::Random(_) => {
                        let at = rng.random_range(0..=versions.len());
                        at.checked_sub(1).map(|at| &versions[at])
                    }
                };
                nth += 1;
                if let Some(version) = version {
                    let start = sector * SECTOR;
                    let end = (start + SECTOR).min(bytes.len());
                    bytes[start..end].copy_from_slice(&version[..end - start]);
                }
            }
            bytes.resize(size, 0);
            inodes.push(Arc::new(Inode { current: bytes.clone(), durable: bytes, ..Inode::default() }));
        }
        let mut names = self.durable_names.clone();
        for op in &self.name_ops {
            let happens = match choice {
                Choice::Nothing | Choice::Only(_) => false,
                Choice::Everything | Choice::AllBut(_) => true,
                Choice::Random(_) => rng.random_bool(0.5),
            };
            if happens {
                perform(&mut names, op);
            }
        }
        Self { inodes, durable_names: names.clone(), names, name_ops: Vec::new(), lie: self.lie, full: None }
    }

    /// Flips a bit somewhere in a file's first `used` bytes.
    pub fn rot(&mut self, name: &str, bit: usize) {
        let inode = Arc::make_mut(&mut self.inodes[self.names[name]]);
        inode.current[bit / 8] ^= 1 << (bit % 8);
        inode.durable[bit / 8] ^= 1 << (bit % 8);
    }

    pub fn files(&self) -> impl Iterator<Item = (&String, &[u8])> {
        self.names.iter().map(|(name, inode)| (name, &self.inodes[*inode].current[..]))
    }
}

fn pick_size(inode: &Inode, choice: Choice, rng: &mut StdRng) -> usize {
    let last = inode.sizes.last().copied().unwrap_or(inode.durable.len());
    match choice {
        Choice::Nothing | Choice::Only(_) => inode.durable.len(),
        Choice::Everything | Choice::AllBut(_) => last,
        Choice::Random(_) => {
            let at = rng.random_range(0..=inode.sizes.len());
            at.checked_sub(1).map_or(inode.durable.len(), |at| inode.sizes[at])
        }
    }
}

fn perform(names: &mut BTreeMap<String, usize>, op: &NameOp) {
    match op {
        NameOp::Create(name, inode) => drop(names.insert(name.clone(), *inode)),
        NameOp::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        NameOp::Remove(name) => drop(names.remove(name)),
    }
}

/// The disk, and the states it was in after each operation since they were last taken.
#[derive(Debug, Clone)]
pub struct SimDisk {
    shared: Arc<Mutex<(State, Vec<State>)>>,
}

impl SimDisk {
    pub fn new(state: State) -> Self {
        Self { shared: Arc::new(Mutex::new((state, Vec::new()))) }
    }

    pub fn lying(lie: Lie) -> Self {
        Self::new(State { lie, ..State::default() })
    }

    pub fn state(&self) -> State {
        self.locked().0.clone()
    }

    /// Takes all room there is but for the first bytes of a write; `None`: there is room again.
    pub fn fill(&self, all_but: Option<usize>) {
        self.locked().0.full = all_but;
    }

    pub fn take_points(&self) -> Vec<State> {
        std::mem::take(&mut self.locked().1)
    }

    fn locked(&self) -> MutexGuard<'_, (State, Vec<State>)> {
        self.shared.lock().unwrap()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut locked = self.locked();
        let result = change(&mut locked.0);
        let state = locked.0.clone();
        locked.1.push(state);
        result
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
        Ok(self.locked().0.names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let inode = self.change(|state| {
            state.inodes.push(Arc::default());
            let op = NameOp::Create(name.to_owned(), state.inodes.len() - 1);
            perform(&mut state.names, &op);
            state.name_ops.push(op);
            state.inodes.len() - 1
        });
        Ok(self.file(inode))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let inode = *self.locked().0.names.get(name).ok_or_else(missing)?;
        Ok(self.file(inode))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.change(|state| {
            let op = NameOp::Rename(from.to_owned(), to.to_owned());
            perform(&mut state.names, &op);
            state.name_ops.push(op);
        });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        if !self.locked().0.names.contains_key(name) {
            return Err(missing());
        }
        self.change(|state| {
            let op = NameOp::Remove(name.to_owned());
            perform(&mut state.names, &op);
            state.name_ops.push(op);
        });
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        self.change(|state| {
            if state.lie != Lie::Names {
                state.durable_names = state.names.clone();
                state.name_ops.clear();
            }
        });
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
        look(&self.disk.locked().0.inodes[self.inode])
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
        self.disk.change(|state| {
            let inode = Arc::make_mut(&mut state.inodes[self.inode]);
            match state.full {
                Some(most) if most < bytes.len() => {
                    write(inode, &bytes[..most], offset as usize);
                    Err(io::Error::from(io::ErrorKind::StorageFull))
                }
                _ => {
                    write(inode, bytes, offset as usize);
                    Ok(())
                }
            }
        })
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.disk.change(|state| set_size(Arc::make_mut(&mut state.inodes[self.inode]), size as usize));
        Ok(())
    }

    fn allocate(&self, size: u64) -> io::Result<()> {
        self.disk.change(|state| {
            let inode = Arc::make_mut(&mut state.inodes[self.inode]);
            let size = (size as usize).max(inode.current.len());
            if size > inode.current.len() && state.full.is_some() {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
            set_size(inode, size);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.change(|state| {
            if state.lie == Lie::Data {
                return;
            }
            let inode = Arc::make_mut(&mut state.inodes[self.inode]);
            inode.durable = inode.current.clone();
            inode.written.clear();
            inode.sizes.clear();
        });
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        Ok(self.look(|inode| {
            let from = inode.current.get(offset as usize..)?;
            Some(offset + from.iter().position(|byte| *byte != 0)? as u64)
        }))
    }
}
