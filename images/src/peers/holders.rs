//! The nodes one pull asks: at most three, in turn; who gives wrong bytes is out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use coracle_base::Digest;
use futures_util::future::join_all;
use tokio::sync::mpsc;

use super::client::{NameThere, PeerError};
use super::{Peer, Peers};
use crate::error::ImageError;
use crate::frames::{self, Sender};
use crate::kept::Received;
use crate::manifest::{DOCUMENT_BYTES, Descriptor};
use crate::progress::Progress;
use crate::reference::Reference;
use crate::store::{ImageStore, Watched, blocking};

/// Nodes asked for one image.
const ASKED: usize = 3;

/// What a name means in the cluster.
#[derive(Debug, Clone)]
pub(crate) struct Meant {
    /// Of an index or a manifest.
    pub digest: Digest,
    /// It came from a file on some node.
    pub imported: bool,
    /// When.
    pub imported_ms: Option<u64>,
    /// Who says so.
    pub node: String,
}

/// Whom a pull asks, and what came of it.
#[derive(Debug)]
pub(crate) struct Holders {
    peers: Peers,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    list: Vec<Peer>,
    /// Who did not give what it was asked for, and why: once each.
    said: Vec<(String, String)>,
}

/// How the bytes of a blob came.
enum Poured {
    /// All of them, from these; the last one ended it.
    Whole(Vec<String>),
    /// The writer gave up.
    NobodyListens,
    /// No node has it whole.
    NobodyHasIt,
}

impl Holders {
    /// Nobody yet.
    pub fn new(peers: &Peers) -> Self {
        Self { peers: peers.clone(), inner: Mutex::default() }
    }

    /// From now on those are asked that may have `wanted`; with `listed`, only those that say so.
    pub fn seek(&self, wanted: &Reference, listed: bool) {
        let mut list = self.peers.locate.candidates(wanted);
        list.retain(|peer| peer.listed || !listed);
        list.truncate(ASKED);
        self.lock().list = list;
    }

    /// What a name means: the latest import of it, or else (with `pulled`) what some node once pulled under it. Asks three nodes
    /// at once, and those that agree are asked for the contents.
    pub async fn meaning(&self, reference: &Reference, pulled: bool) -> Option<Meant> {
        self.seek(reference, false);
        let asked = self.list();
        let answers = join_all(asked.iter().map(|peer| self.peers.name(peer, reference))).await;
        let mut known: Vec<(Peer, NameThere)> = Vec::new();
        for (peer, answer) in asked.into_iter().zip(answers) {
            match answer {
                Ok(Some(there)) if there.imported || pulled => known.push((peer, there)),
                Ok(_) => {}
                Err(error) => self.failed(&peer, &error),
            }
        }
        let (best, there) = known.iter().max_by_key(|(_, there)| (there.imported, there.imported_ms))?;
        let digest = there.digest()?;
        let meant = Meant {
            digest: digest.clone(),
            imported: there.imported,
            imported_ms: there.imported_ms,
            node: best.node.clone(),
        };
        // An older meaning's holders may share its layers, but these surely have it.
        self.lock().list = known
            .iter()
            .filter(|(_, there)| there.digest().as_ref() == Some(&digest))
            .map(|(peer, _)| peer.clone())
            .collect();
        Some(meant)
    }

    /// A manifest, an index (`manifests`) or a configuration (`blobs`), from the first that has it.
    pub async fn document(&self, kind: &str, digest: &Digest) -> Option<Vec<u8>> {
        for peer in self.list() {
            match self.peers.document(&peer, kind, digest, DOCUMENT_BYTES).await {
                Ok(bytes) => return Some(bytes),
                Err(error) => {
                    self.failed(&peer, &error);
                    // Without the manifest it hardly has the rest, and each layer would be asked for in vain.
                    if kind == "manifests" && matches!(error, PeerError::Missing(_)) {
                        self.lock().list.retain(|known| known.node != peer.node);
                    }
                }
            }
        }
        None
    }

    /// A compressed layer. `None` when nobody has it whole.
    ///
    /// # Errors
    /// This node's disk.
    pub async fn layer(
        &self,
        store: &ImageStore,
        layer: &Descriptor,
        progress: &Arc<dyn Progress>,
        working: &mpsc::Sender<()>,
    ) -> Result<Option<Received>, ImageError> {
        while !self.list().is_empty() {
            let (sender, frames) = frames::channel();
            let (store, descriptor, progress, working) =
                (store.clone(), layer.clone(), progress.clone(), working.clone());
            let writing = blocking(move || {
                let _working = working;
                let reader = Watched { inner: frames, layer: &descriptor, progress: &*progress, done: 0, told: 0 };
                store.receive(&descriptor.digest, descriptor.size, reader)
            });
            let (poured, received) = tokio::join!(self.pour(layer, sender), writing);
            match (poured, received) {
                (Poured::NobodyHasIt, _) => return Ok(None),
                (_, Ok(received)) => return Ok(Some(received)),
                (Poured::Whole(nodes), Err(error @ (ImageError::Corrupt { .. } | ImageError::Size { .. }))) => {
                    // Whose bytes were wrong cannot be told apart; those that broke off go first, the last is asked for all of it.
                    let blamed = nodes.len().saturating_sub(1).max(1).min(nodes.len());
                    self.refuse(&nodes[..blamed], &error);
                }
                (_, Err(error)) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Sends on a blob, from the next node where one breaks off.
    async fn pour(&self, layer: &Descriptor, sender: Sender) -> Poured {
        let (mut done, mut nodes) = (0, Vec::new());
        for peer in self.list() {
            let before = done;
            let outcome = self.peers.blob(&peer, layer, &mut done, &sender).await;
            if done > before || outcome.is_ok() {
                nodes.push(peer.node.clone());
            }
            match outcome {
                Ok(true) => {
                    let _ = sender.send(Ok(Bytes::new())).await;
                    return Poured::Whole(nodes);
                }
                Ok(false) => return Poured::NobodyListens,
                Err(error) => self.failed(&peer, &error),
            }
        }
        Poured::NobodyHasIt
    }

    /// Why nodes did not help, in words; `None` where none was asked in vain.
    pub fn said(&self) -> Option<String> {
        let inner = self.lock();
        let words = inner.said.iter().map(|(node, why)| format!("{node}: {why}"));
        (!inner.said.is_empty()).then(|| words.collect::<Vec<_>>().join("; "))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn list(&self) -> Vec<Peer> {
        self.lock().list.clone()
    }

    fn failed(&self, peer: &Peer, error: &PeerError) {
        let words = coracle_base::one_line(error);
        match error {
            PeerError::Corrupt { .. } | PeerError::TooMuch(_) => {
                tracing::warn!(
                    node = peer.node,
                    error = words,
                    "a node gives contents that are not what they should be, and is not asked again"
                );
            }
            _ => tracing::debug!(node = peer.node, error = words, "a node does not give what it was asked for"),
        }
        // That somebody else does not have it is what one expects.
        if peer.listed || !matches!(error, PeerError::Missing(_)) {
            self.say(&peer.node, words);
        }
        if error.is_lasting() {
            self.lock().list.retain(|known| known.node != peer.node);
        }
    }

    fn refuse(&self, nodes: &[String], error: &ImageError) {
        let words = coracle_base::one_line(error);
        for node in nodes {
            tracing::warn!(
                node,
                error = words,
                "a node gives contents that are not what they should be, and is not asked again"
            );
            self.say(node, words.clone());
        }
        self.lock().list.retain(|known| !nodes.contains(&known.node));
    }

    fn say(&self, node: &str, words: String) {
        let mut inner = self.lock();
        if !inner.said.iter().any(|(known, _)| known == node) {
            inner.said.push((node.to_owned(), words));
        }
    }
}
