//! Nodes hand images to each other: manifests, configurations and compressed layers, each believed only for its digest.
//!
//! [`BlobServer`] serves what a store has, [`Peers`] asks others, both with certificates of the cluster's authority. The paths:
//!
//! ```text
//! GET /v2/-/manifests/DIGEST     a manifest or an index
//! GET /v2/-/blobs/DIGEST         anything by its digest; `Range: bytes=N-` is honoured
//! GET /v2/-/refs/REFERENCE       what a name (percent-encoded) means there:
//!                                {"digest": "sha256:..", "imported": true, "importedMs": 1764150000000}
//! ```
//! `-` is no part of a repository's name, so none of them can be an address of the distribution specification.

mod client;
mod holders;
mod server;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::reference::Reference;
pub(crate) use holders::{Holders, Meant};
pub use server::{BlobServer, ServeError};
pub use tls::IdentityError;

/// What a node shows to other nodes, and whom it trusts. All PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Certificate chain, leaf first: CN `system:node:NAME`, O `system:nodes`.
    pub cert_pem: String,
    /// Its private key.
    pub key_pem: String,
    /// The cluster's authority.
    pub ca_pem: String,
}

impl std::fmt::Debug for PeerIdentity {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("PeerIdentity").finish_non_exhaustive()
    }
}

/// A node that may have an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name: its certificate must be this node's.
    pub node: String,
    /// Where its blob server listens.
    pub address: SocketAddr,
    /// It says that it has the image. Others may have it since.
    pub listed: bool,
}

/// Knows which nodes to ask.
pub trait Locate: Send + Sync {
    /// Nodes to ask for an image, best first: those that say they have it, then others, each part in random order. The asking
    /// node is not among them. A reference with a digest means its contents, whatever its name.
    fn candidates(&self, wanted: &Reference) -> Vec<Peer>;
}

/// Asks other nodes. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    locate: Arc<dyn Locate>,
    identity: watch::Receiver<PeerIdentity>,
    connect_within: Duration,
    idle: Duration,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Peers").finish_non_exhaustive()
    }
}

impl Peers {
    /// A connection takes at most 2 s, and at most 10 s pass without a byte. A changed identity counts from the next connection.
    #[must_use]
    pub fn new(locate: Arc<dyn Locate>, identity: watch::Receiver<PeerIdentity>) -> Self {
        Self { locate, identity, connect_within: Duration::from_secs(2), idle: Duration::from_secs(10) }
    }

    /// The same with other patience.
    #[must_use]
    pub fn with_timeouts(self, connect_within: Duration, idle: Duration) -> Self {
        Self { connect_within, idle, ..self }
    }
}
