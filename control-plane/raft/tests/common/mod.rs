//! Small objects to write, small disks to write them to.
#![allow(dead_code, missing_docs)] // each test binary uses its part

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use coracle_raft::disk::{Disk, DiskFile, RealDisk};
use coracle_raft::{Raft, RaftConfig, Vault};
use coracle_store::{Expect, Key, Op, Transaction};
use serde_json::json;

pub fn key(name: &str) -> Key {
    Key::new("configmaps", "default", name)
}

pub fn create(name: &str, bytes: usize) -> Transaction {
    let value = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")},
        "data": {"filler": "x".repeat(bytes)},
    });
    Op::Create { key: key(name), value: Arc::new(value), claims: Vec::new() }.into()
}

pub fn delete(name: &str) -> Transaction {
    Op::Delete { key: key(name), expect: Expect::default() }.into()
}

pub fn small(dir: &Path) -> RaftConfig {
    RaftConfig {
        segment_bytes: 1 << 20,
        reserve_bytes: 1 << 20,
        snapshot_bytes: 1 << 19,
        keys: Some(keys(dir)),
        ..RaftConfig::new(dir)
    }
}

/// What seals a server's log.
pub fn keys(dir: &Path) -> Arc<Vault> {
    std::fs::create_dir_all(dir).unwrap();
    Arc::new(Vault::open(&dir.join("storage.key")).unwrap())
}

/// Waits until something holds; panics with what it still misses.
pub async fn until(raft: &Raft, what: &str, holds: impl Fn(&Raft) -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    let mut changes = tokio::time::interval(Duration::from_millis(5));
    while !holds(raft) {
        assert!(std::time::Instant::now() < deadline, "{what} did not come about: {:?}", raft.metrics());
        changes.tick().await;
    }
}

/// A small file system.
pub struct Tiny(PathBuf);

impl Tiny {
    pub fn mount(at: &Path, size: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: a small file system needs root");
            return None;
        }
        let options = format!("size={size}");
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "coracle-test"]).arg(at).status().unwrap();
        assert!(done.success());
        Some(Self(at.to_owned()))
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        let flag = if std::thread::panicking() { "-l" } else { "-n" };
        let done = Command::new("umount").arg(flag).arg(&self.0).status();
        if !done.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.0.display());
        }
    }
}

/// Takes all that is left.
pub fn fill(at: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(at).unwrap();
    let block = vec![1; 1 << 16];
    while file.write_all(&block).is_ok() {}
}

type Hook = Arc<dyn Fn() -> io::Result<()> + Send + Sync>;

/// A directory that calls before every sync of a file.
#[derive(Clone)]
pub struct Hooked {
    disk: Arc<RealDisk>,
    sync: Hook,
}

struct HookedFile {
    file: Arc<dyn DiskFile>,
    sync: Hook,
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.disk.fmt(out)
    }
}

impl std::fmt::Debug for HookedFile {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.file.fmt(out)
    }
}

impl Hooked {
    pub fn open(path: &Path, sync: impl Fn() -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self { disk: Arc::new(RealDisk::open(path).unwrap()), sync: Arc::new(sync) }
    }

    fn wrap(&self, file: io::Result<Arc<dyn DiskFile>>) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(HookedFile { file: file?, sync: self.sync.clone() }))
    }
}

impl Disk for Hooked {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.wrap(self.disk.create(name))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        self.wrap(self.disk.open(name))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn sync_names(&self) -> io::Result<()> {
        self.disk.sync_names()
    }
    fn path(&self) -> PathBuf {
        self.disk.path()
    }
}

impl DiskFile for HookedFile {
    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buffer, offset)
    }
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(bytes, offset)
    }
    fn set_size(&self, size: u64) -> io::Result<()> {
        self.file.set_size(size)
    }
    fn allocate(&self, size: u64) -> io::Result<()> {
        self.file.allocate(size)
    }
    fn sync(&self) -> io::Result<()> {
        (self.sync)()?;
        self.file.sync()
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.file.next_data(offset)
    }
}
