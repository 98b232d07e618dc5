//! A disk that fails: after one failed sync nothing is acknowledged any more, and a restart has all that was.

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{Hooked, create, key, small};
use coracle_raft::{ProposeError, Raft, RaftConfig};

#[tokio::test(flavor = "multi_thread")]
async fn after_one_failed_sync_nothing_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let fails = Arc::new(AtomicBool::new(false));
    let failing = fails.clone();
    // Once only: the next sync would say that all is well, as the kernel's does.
    let sync = move || match failing.swap(false, Ordering::SeqCst) {
        true => Err(io::Error::from_raw_os_error(5)),
        false => Ok(()),
    };
    let disk = Hooked::open(&dir.path().join("log"), sync);
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
