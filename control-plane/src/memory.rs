//! scratch: in-memory until the log lands.
use std::path::Path;
use std::sync::{Arc, Mutex};

use coracle_api::{BoxFuture, Memory, ProposeError, Proposed};
use coracle_base::{Generation, Revision};
use coracle_store::{Event, Store, Transaction, View};
use tokio::sync::watch;

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error("the first objects of the cluster cannot be stored")]
    FirstObjects(#[source] ProposeError),
}

#[derive(Clone)]
pub struct LogHandle;
impl LogHandle {
    pub fn metrics(&self) -> Vec<(&'static str, f64)> {
        Vec::new()
    }
    pub fn cluster_id(&self) -> String {
        "scratch".into()
    }
    pub async fn close(&self) {}
}

struct Scratch {
    store: Mutex<Store>,
    changes: watch::Sender<Generation>,
}

pub async fn open(_dir: &Path) -> Result<(Arc<dyn Memory>, LogHandle), MemoryError> {
    let store = Store::new(coracle_store::Limits::default());
    let (changes, _) = watch::channel(store.view().generation());
    Ok((Arc::new(Scratch { store: Mutex::new(store), changes }), LogHandle))
}

impl Memory for Scratch {
    fn view(&self) -> View {
        self.store.lock().unwrap().view()
    }
    fn read_barrier(&self) -> BoxFuture<'_, Result<View, ProposeError>> {
        let view = self.view();
        Box::pin(async { Ok(view) })
    }
    fn propose(&self, transaction: Transaction) -> BoxFuture<'_, Proposed> {
        Box::pin(async { self.propose_many(vec![transaction]).await.remove(0) })
    }
    fn propose_many(&self, transactions: Vec<Transaction>) -> BoxFuture<'_, Vec<Proposed>> {
        let mut store = self.store.lock().unwrap();
        let out = store
            .apply(&transactions)
            .into_iter()
            .map(|r| r.map_err(|(index, rejection)| ProposeError::Rejected { index, rejection }))
            .collect();
        let generation = store.view().generation();
        drop(store);
        self.changes.send_if_modified(|old| {
            let new = *old != generation;
            *old = generation;
            new
        });
        Box::pin(async { out })
    }
    fn changes(&self) -> watch::Receiver<Generation> {
        self.changes.subscribe()
    }
    fn events_after(&self, revision: Revision, resource: Option<&str>) -> Option<Vec<Event>> {
        self.store.lock().unwrap().events_after(revision, resource).ok()
    }
}
