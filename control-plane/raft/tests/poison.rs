//! A disk that fails: after one failed sync nothing is acknowledged any more, and a restart has all that was.

mod common;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{create, key, small};
use coracle_raft::disk::{Disk, DiskFile, RealDisk};
use coracle_raft::{ProposeError, Raft, RaftConfig};

#[derive(Debug, Clone)]
struct Failing {
    disk: Arc<RealDisk>,
    fails: Arc<AtomicBool>,
}

#[derive(Debug)]
struct FailingFile {
    file: Arc<dyn DiskFile>,
    fails: Arc<AtomicBool>,
}

impl Failing {
    fn wrap(&self, file: io::Result<Arc<dyn DiskFile>>) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(FailingFile { file: file?, fails: self.fails.clone() }))
    }
}

impl Disk for Failing {
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

impl DiskFile for FailingFile {
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
        // Once only: the next sync would say that all is well, as the kernel's does.
        if self.fails.swap(false, Ordering::SeqCst) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.file.sync()
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<u64>> {
        self.file.next_data(offset)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_one_failed_sync_nothing_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let fails = Arc::new(AtomicBool::new(false));
    let disk = Failing { disk: Arc::new(RealDisk::open(&dir.path().join("log")).unwrap()), fails: fails.clone() };
    let config = RaftConfig { log_disk: Some(Arc::new(disk)), ..small(dir.path()) };
    let raft = Raft::open(config).await.unwrap();
    raft.propose(create("kept", 10)).await.unwrap();

    fails.store(true, Ordering::SeqCst);
    let refused = raft.propose(create("doubtful", 10)).await.unwrap_err();
    assert!(matches!(&refused, ProposeError::Poisoned(reason) if reason.contains("cannot sync")), "{refused}");
    assert!(!fails.load(Ordering::SeqCst));
    for name in ["a", "b"] {
        assert!(matches!(raft.propose(create(name, 10)).await, Err(ProposeError::Poisoned(_))));
    }
    assert!(matches!(raft.read_barrier().await, Err(ProposeError::Poisoned(_))));
    assert!(raft.metrics().failure.is_some());
    assert!(raft.view().get(&key("doubtful")).is_none(), "what is not durable is not shown");
    raft.shutdown().await;

    let raft = Raft::open(small(dir.path())).await.unwrap();
    assert!(raft.view().get(&key("kept")).is_some());
    for name in ["a", "b"] {
        assert!(raft.view().get(&key(name)).is_none());
    }
    raft.propose(create("again", 10)).await.unwrap();
    raft.shutdown().await;
}
