//! What each pod does, for whoever wants to look: the status page, log streams.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Mutex, PoisonError};

use tokio::sync::watch;

/// One pod at a glance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glance {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Phase.
    pub phase: String,
    /// The Ready condition.
    pub ready: bool,
    /// Address.
    pub ip: Option<Ipv4Addr>,
    /// Restarts of all containers.
    pub restarts: u32,
    /// What it does or waits for.
    pub step: String,
    /// Running containers and their runs.
    pub running: BTreeMap<String, u32>,
    /// Digests of images in use.
    pub images: Vec<String>,
}

/// All pods at a glance.
#[derive(Debug, Default)]
pub struct Board {
    pods: Mutex<BTreeMap<String, Glance>>,
    version: watch::Sender<u64>,
}

impl Board {
    fn pods(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Glance>> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod has changed.
    pub fn set(&self, uid: &str, glance: Glance) {
        {
            let mut pods = self.pods();
            if pods.get(uid) == Some(&glance) {
                return;
            }
            pods.insert(uid.to_owned(), glance);
        }
        self.version.send_modify(|version| *version += 1);
    }

    /// A pod is gone.
    pub fn remove(&self, uid: &str) {
        self.pods().remove(uid);
        self.version.send_modify(|version| *version += 1);
    }

    /// One pod.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<Glance> {
        self.pods().get(uid).cloned()
    }

    /// All pods by uid.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, Glance> {
        self.pods().clone()
    }

    /// Word of every change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }
}
