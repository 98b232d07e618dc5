//! The images of this machine, on its disk.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_base::Digest;

use crate::ImageConfiguration;
use crate::error::ImageError;
use crate::platform::Platform;
use crate::progress::Progress;
use crate::reference::Reference;

/// Whether an image that is here already is asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPolicy {
    /// Ask the registry each time; a name that was imported here is not asked for, it wins over any registry's.
    Always,
    /// Ask only when it is not here.
    #[default]
    IfNotPresent,
    /// Never ask.
    Never,
}

/// How to talk to registries.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// Which manifest of an index.
    pub platform: Platform,
    /// `host[:port]` of registries spoken to without TLS. Loopback needs no entry: https is tried first, then http.
    pub insecure: Vec<String>,
    /// PEM certificates trusted beside the public ones.
    pub extra_ca_pem: Vec<String>,
    /// Layers fetched at the same time.
    pub parallel: usize,
    /// Milliseconds a request may be without any progress.
    pub stall_ms: u64,
    /// Attempts per request, the first included.
    pub attempts: u32,
}

impl Default for PullOptions {
    fn default() -> Self {
        Self {
            platform: Platform::current(),
            insecure: Vec::new(),
            extra_ca_pem: Vec::new(),
            parallel: 4,
            stall_ms: 30_000,
            attempts: 6,
        }
    }
}

/// What a store is opened with.
#[derive(Debug, Clone, Default)]
pub struct StoreOptions {
    /// For pulls that name no options of their own ([`ImageStore::ensure`]).
    pub pull: PullOptions,
    /// What a layer may have.
    pub limits: coracle_layers::Limits,
}

/// An image ready to run.
#[derive(Debug, Clone)]
pub struct Image {
    /// The name it was found by, normalised.
    pub reference: Reference,
    /// The digest of its manifest: what `status.containerStatuses[].imageID` shows.
    pub digest: Digest,
    /// How to run it.
    pub config: ImageConfiguration,
    /// Directories to stack, top first (overlayfs' lowerdir order). They live as long as the image is not removed and collected.
    pub layers: Vec<PathBuf>,
}

/// A line of `image ls`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    /// The name, normalised.
    pub reference: String,
    /// The digest of its manifest.
    pub digest: Digest,
    /// The digest of the index it was chosen from, where there was one.
    pub index: Option<Digest>,
    /// Bytes of its layers on this disk; layers that images share count for each.
    pub size: u64,
    /// Layers.
    pub layers: usize,
    /// When it came here, milliseconds since 1970.
    pub created_ms: u64,
    /// Whether it came from a file here (`true`) or from a registry.
    pub imported: bool,
}

/// What a collection freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GcReport {
    /// Layers removed.
    pub layers: usize,
    /// Manifests and configurations removed.
    pub blobs: usize,
    /// Bytes of the removed layers.
    pub bytes: u64,
    /// Another import or pull was under way, so nothing was done.
    pub busy: bool,
}

/// The images of this machine. Clones share one store; several processes may open the same directory.
#[derive(Debug, Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
}

impl ImageStore {
    /// Opens or makes the store in `dir` (0700) and clears what a crash left. Blocking, short.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, ImageError> {
        Self::open_with(dir, StoreOptions::default())
    }

    /// The same with options.
    pub fn open_with(dir: impl AsRef<Path>, _options: StoreOptions) -> Result<Self, ImageError> {
        Ok(Self { inner: Arc::new(Inner { dir: dir.as_ref().to_owned() }) })
    }

    /// Takes in an OCI layout (a folder, or a tar of one) or a `docker save` archive; every image in it that has a name.
    pub async fn import(&self, path: &Path, _progress: Arc<dyn Progress>) -> Result<Vec<ImageRecord>, ImageError> {
        Err(ImageError::NotAnImage { path: path.to_owned(), why: "not written yet".into() })
    }

    /// Fetches an image from its registry, or only what is missing of it.
    pub async fn pull(
        &self,
        reference: &Reference,
        _options: &PullOptions,
        _progress: Arc<dyn Progress>,
    ) -> Result<ImageRecord, ImageError> {
        Err(ImageError::NoSuchImage { reference: reference.to_string() })
    }

    /// The image of this name, if it is here: no network, a few milliseconds at most.
    pub fn find(&self, _reference: &Reference) -> Result<Option<Image>, ImageError> {
        Ok(None)
    }

    /// The image of this name, pulled if the policy says so. Callers of the same name share one pull.
    pub async fn ensure(&self, reference: &Reference, _policy: PullPolicy) -> Result<Image, ImageError> {
        Err(ImageError::NotHere { reference: reference.to_string() })
    }

    /// Every name, sorted.
    pub fn list(&self) -> Result<Vec<ImageRecord>, ImageError> {
        Ok(Vec::new())
    }

    /// Forgets a name; `false` when it was not there. Disk space comes back with [`Self::gc`].
    pub fn remove(&self, _reference: &Reference) -> Result<bool, ImageError> {
        Ok(false)
    }

    /// Removes what no name and none of the digests `in_use` (manifests of running pods) needs.
    pub fn gc(&self, _in_use: &HashSet<Digest>) -> Result<GcReport, ImageError> {
        Ok(GcReport::default())
    }

    /// Where it lives.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }
}
