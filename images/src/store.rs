//! The images of this machine, on its disk.

//!
//! ```text
//! names.json             name -> manifest, exchanged as a whole
//! blobs/sha256/HEX       manifests, indexes, configurations; layers as they came, for other nodes
//! layers/HEX/fs          an unpacked layer, by the digest of its tar; layer.json beside it
//! fixups/HEX/fs          attributes of directories that layers left to the layers below, by manifest
//! ingest/                unfinished layers, each locked by who works on it
//! trash/                 layers on their way out
//! ```
//! Whatever is named is complete: contents reach the disk before their directory gets its name, and a name is written after
//! everything it leads to. So a crash at any moment leaves the old state or the new, and leftovers that the next open sweeps.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use coracle_base::{Digest, Millis};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ImageConfiguration;
use crate::disk::{Ingest, Lock, TEMPORARY, private_dir, sweep, sync_dir, write_whole};
use crate::error::ImageError;
use crate::extract::Extracted;
use crate::fixup;
use crate::import;
use crate::index::{Index, Named};
use crate::kept::Tee;
use crate::locks::Locks;
use crate::manifest::{self, Descriptor, Document, Manifest};
use crate::peers::Peers;
use crate::platform::Platform;
use crate::progress::{Progress, ProgressEvent, Quiet};
use crate::reference::Reference;
use crate::registry::{self, Word};
use crate::unpack::{Promise, unpack};

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
    /// Attempts per request, the first included. A download that makes progress may be resumed more often.
    pub attempts: u32,
    /// Milliseconds before the first repetition; doubled each time, a server's Retry-After counts more. 60 s at most.
    pub backoff_ms: u64,
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
            backoff_ms: 500,
        }
    }
}

/// What a store is opened with.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// For pulls that name no options of their own ([`ImageStore::ensure`]).
    pub pull: PullOptions,
    /// What a layer may have.
    pub limits: coracle_layers::Limits,
    /// Compressed layers that a registry has as well are kept for other nodes while at least this share of the file system,
    /// in hundredths, is free; 0 = always. Those of imported images are always kept: nobody else may have them.
    pub blob_reserve_percent: u64,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { pull: PullOptions::default(), limits: coracle_layers::Limits::default(), blob_reserve_percent: 10 }
    }
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
    /// Whether it came from a file, here or on a node of this cluster (`true`), or from a registry.
    pub imported: bool,
    /// When the file was imported where it was, milliseconds since 1970. `None` for what came from a registry.
    pub imported_ms: Option<u64>,
    /// The node whose word for the name was taken; `None` where it was imported here or a registry said it.
    pub peer: Option<String>,
}

/// How a name came to mean what it means.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origin {
    pub imported: bool,
    pub imported_ms: Option<u64>,
    pub peer: Option<String>,
}

impl Origin {
    /// A file, now.
    pub fn import() -> Self {
        Self { imported: true, imported_ms: Some(now_ms()), peer: None }
    }
}

/// What a collection freed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GcReport {
    /// Layers removed.
    pub layers: usize,
    /// Manifests, configurations and compressed layers removed.
    pub blobs: usize,
    /// Bytes of the removed layers, unpacked and compressed.
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
    options: StoreOptions,
    index: Index,
    /// By diff id: each layer is unpacked once.
    layers: Locks,
    /// By name: each image is pulled once.
    pulls: Locks,
    /// Whom to ask before registries.
    peers: OnceLock<Peers>,
}

/// What is remembered about an unpacked layer, beside it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct LayerFacts {
    /// Bytes of its files.
    pub bytes: u64,
    /// Its entries.
    pub entries: u64,
    /// It hides everything below it.
    #[serde(default)]
    pub opaque_root: bool,
    /// Directories it made up.
    #[serde(default)]
    pub implicit: Vec<String>,
}

/// Everything about an image but its layers' contents; ready to be named.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub index: Option<(Digest, Vec<u8>)>,
    pub manifest_digest: Digest,
    pub manifest_bytes: Vec<u8>,
    pub manifest: Manifest,
    pub config_bytes: Vec<u8>,
    pub diff_ids: Vec<Digest>,
}

/// Names of the files in `blobs`, of the directories in `layers` and of those in `fixups` that a collection keeps.
#[derive(Default)]
struct Needed {
    blobs: HashSet<String>,
    layers: HashSet<String>,
    manifests: HashSet<String>,
}

impl ImageStore {
    /// Opens or makes the store in `dir` (0700) and clears what a crash left. Blocking, short.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, ImageError> {
        Self::open_with(dir, StoreOptions::default())
    }

    /// The same with options.
    pub fn open_with(dir: impl AsRef<Path>, options: StoreOptions) -> Result<Self, ImageError> {
        let dir = dir.as_ref().to_owned();
        for part in ["", "blobs/sha256", "layers", "fixups", "ingest", "trash"] {
            let path = dir.join(part);
            private_dir(&path).map_err(ImageError::disk("make", &path))?;
        }
        for part in ["ingest", "trash"] {
            let path = dir.join(part);
            sweep(&path).map_err(ImageError::disk("sweep", &path))?;
        }
        let inner = Inner {
            index: Index::new(&dir),
            dir,
            options,
            layers: Locks::default(),
            pulls: Locks::default(),
            peers: OnceLock::new(),
        };
        let store = Self { inner: Arc::new(inner) };
        // Early, so that a damaged file is found now and not by the first pod.
        store.inner.index.read()?;
        Ok(store)
    }

    /// From now on what is not here is asked for at other nodes before any registry. The first call counts.
    pub fn ask_peers(&self, peers: Peers) {
        let _ = self.inner.peers.set(peers);
    }

    /// Takes in an OCI layout (a folder, or a tar of one) or a `docker save` archive; every image in it that has a name.
    pub async fn import(&self, path: &Path, progress: Arc<dyn Progress>) -> Result<Vec<ImageRecord>, ImageError> {
        let (store, path) = (self.clone(), path.to_owned());
        blocking(move || import::import(&store, &path, &*progress)).await
    }

    /// Fetches an image from its registry, or only what is missing of it. Other nodes are asked for its contents first, but not
    /// for what the name means.
    pub async fn pull(
        &self,
        reference: &Reference,
        options: &PullOptions,
        progress: Arc<dyn Progress>,
    ) -> Result<ImageRecord, ImageError> {
        registry::pull(self, reference, options, progress, Word::Registry).await
    }

    /// The image of this name, if it is here: no network, a few milliseconds at most.
    pub fn find(&self, reference: &Reference) -> Result<Option<Image>, ImageError> {
        let names = self.inner.index.read()?;
        let Some((_, named)) = names.find(reference) else { return Ok(None) };
        self.load(reference, &named.manifest).map(Some)
    }

    /// The image of this name, pulled if the policy says so. Callers of the same name share one pull.
    pub async fn ensure(&self, reference: &Reference, policy: PullPolicy) -> Result<Image, ImageError> {
        if let Some(image) = self.satisfied(reference, policy).await? {
            return Ok(image);
        }
        if policy == PullPolicy::Never {
            return Err(ImageError::NotHere { reference: reference.to_string() });
        }
        let _turn = self.inner.pulls.hold(&reference.to_string()).await;
        // Whoever held the turn may have brought it.
        if let Some(image) = self.satisfied(reference, policy).await? {
            return Ok(image);
        }
        // An imported name wins over any registry's, wherever it was imported.
        let word = if policy == PullPolicy::Always { Word::Imported } else { Word::Peers };
        let record = registry::pull(self, reference, &self.inner.options.pull, Arc::new(Quiet), word).await?;
        let (store, reference) = (self.clone(), reference.clone());
        blocking(move || store.load(&reference, &record.digest)).await
    }

    /// The local image, where the policy is content with it.
    async fn satisfied(&self, reference: &Reference, policy: PullPolicy) -> Result<Option<Image>, ImageError> {
        let (store, reference) = (self.clone(), reference.clone());
        blocking(move || {
            let names = store.inner.index.read()?;
            let Some((_, named)) = names.find(&reference) else { return Ok(None) };
            // A digest always means the same contents, and a name imported here wins over everybody's.
            let ours = named.imported && (named.peer.is_none() || store.peers().is_none());
            if policy == PullPolicy::Always && reference.digest().is_none() && !ours {
                return Ok(None);
            }
            match store.load(&reference, &named.manifest) {
                // Others have it whole; for an image imported here there is nobody to ask.
                Err(error) if policy != PullPolicy::Never && !ours => {
                    tracing::warn!(image = %reference, error = %coracle_base::one_line(&error), "a local image is damaged and is pulled again");
                    Ok(None)
                }
                other => other.map(Some),
            }
        })
        .await
    }

    /// Every name, sorted.
    pub fn list(&self) -> Result<Vec<ImageRecord>, ImageError> {
        Ok(self.inner.index.read()?.images.iter().map(|(name, named)| record(name, named)).collect())
    }

    /// Forgets a name; `false` when it was not there. Disk space comes back with [`Self::gc`].
    pub fn remove(&self, reference: &Reference) -> Result<bool, ImageError> {
        self.inner.index.change(|names| {
            let Some((name, _)) = names.find(reference) else { return false };
            let name = name.clone();
            names.images.remove(&name).is_some()
        })
    }

    /// Removes what no name and none of the digests `in_use` (manifests of running pods) needs. Blocking.
    pub fn gc(&self, in_use: &HashSet<Digest>) -> Result<GcReport, ImageError> {
        let mut report = GcReport::default();
        let path = self.busy_path();
        let Some(_alone) = Lock::try_exclusive(&path).map_err(ImageError::disk("lock", &path))? else {
            return Ok(GcReport { busy: true, ..report });
        };
        let Needed { blobs, layers, manifests } = self.needed(in_use)?;
        for path in self.children("blobs/sha256")? {
            let name = file_name(&path);
            if !blobs.contains(&name) {
                report.bytes += std::fs::metadata(&path).map_or(0, |found| found.len());
                std::fs::remove_file(&path).map_err(ImageError::disk("remove", &path))?;
                report.blobs += usize::from(!name.starts_with(TEMPORARY));
            }
        }
        for (part, keep) in [("layers", &layers), ("fixups", &manifests)] {
            for path in self.children(part)?.into_iter().filter(|path| !keep.contains(&file_name(path))) {
                report.bytes += self.facts(&path).map_or(0, |facts| facts.bytes);
                // Renamed first: a layer is there wholly or not at all, also while it is being removed.
                let trash = self.inner.dir.join("trash").join(crate::disk::unique());
                std::fs::rename(&path, &trash).map_err(ImageError::disk("remove", &path))?;
                crate::tree::remove(&trash).map_err(ImageError::disk("remove", &trash))?;
                report.layers += usize::from(part == "layers");
            }
        }
        Ok(report)
    }

    /// Where it lives.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }
}

/// What imports and pulls do with a store.
impl ImageStore {
    pub(crate) fn platform(&self) -> &Platform {
        &self.inner.options.pull.platform
    }

    /// What a name leads to, if it is here.
    pub(crate) fn known(&self, reference: &Reference) -> Result<Option<ImageRecord>, ImageError> {
        Ok(self.inner.index.read()?.find(reference).map(|(name, named)| record(name, named)))
    }

    /// While this is held nothing is collected.
    pub(crate) fn busy(&self) -> Result<Lock, ImageError> {
        let path = self.busy_path();
        Lock::shared(&path).map_err(ImageError::disk("lock", &path))
    }

    pub(crate) fn peers(&self) -> Option<&Peers> {
        self.inner.peers.get()
    }

    pub(crate) fn blob_reserve_percent(&self) -> u64 {
        self.inner.options.blob_reserve_percent
    }

    pub(crate) fn layer_locks(&self) -> &Locks {
        &self.inner.layers
    }

    pub(crate) fn has_layer(&self, diff_id: &Digest) -> bool {
        self.layer_dir(diff_id).exists()
    }

    /// Unpacks a layer and gives it its name; keeps the blob it came in where `keep` gives that one's digest. The caller holds
    /// the layer's lock.
    pub(crate) fn add_layer(
        &self,
        promise: &Promise<'_>,
        reader: impl Read + Send,
        keep: Option<&Digest>,
    ) -> Result<(), ImageError> {
        let parent = self.inner.dir.join("ingest");
        let ingest = Ingest::new(&parent).map_err(ImageError::disk("write to", &parent))?;
        let contents = ingest.path().join("fs");
        std::fs::create_dir(&contents).map_err(ImageError::disk("make", &contents))?;
        let mut tee = Tee::new(reader, &ingest, keep.is_some_and(|digest| !self.has_blob(digest)));
        let (blob, walked, extracted) = unpack(&mut tee, promise, &contents, &self.inner.options.limits)?;
        warn_of(promise.diff_id, &extracted);
        if let (Some(digest), Some(file)) = (keep, tee.finish()) {
            if blob.digest == *digest {
                self.keep_file(&file, digest)?;
            } else {
                // An archive that compresses what its manifest calls a plain tar.
                tracing::warn!(layer = %digest, "a layer is not kept as it came: other nodes cannot fetch it from here");
                std::fs::remove_file(&file).map_err(ImageError::disk("remove", &file))?;
            }
        }
        let facts = LayerFacts {
            bytes: extracted.bytes,
            entries: walked.entries,
            opaque_root: extracted.opaque_root,
            implicit: extracted
                .implicit
                .iter()
                .filter_map(|path| String::from_utf8(path.as_bytes().to_vec()).ok())
                .collect(),
        };
        self.publish(&ingest, &facts, &self.layer_dir(promise.diff_id))
    }

    /// Writes the facts beside the contents and gives the whole its name.
    fn publish(&self, ingest: &Ingest, facts: &LayerFacts, target: &Path) -> Result<(), ImageError> {
        let path = ingest.path().join("layer.json");
        let bytes = serde_json::to_vec(facts).map_err(|error| ImageError::document("layer.json", error.to_string()))?;
        write_whole(&path, &bytes).map_err(ImageError::disk("write", &path))?;
        match std::fs::rename(ingest.path(), target) {
            // Another process was faster; its layer is as good.
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {}
            other => other.map_err(ImageError::disk("write", target))?,
        }
        let parent = target.parent().unwrap_or(target);
        sync_dir(parent).map_err(ImageError::disk("write", parent))
    }

    /// Gives an image whose layers are all here its name.
    pub(crate) fn name(
        &self,
        reference: &Reference,
        resolved: &Resolved,
        origin: Origin,
    ) -> Result<ImageRecord, ImageError> {
        let mut size = 0;
        let mut stack = Vec::new();
        for diff_id in resolved.diff_ids.iter().rev() {
            let facts = self.facts(&self.layer_dir(diff_id))?;
            size += facts.bytes;
            stack.push((self.layer_dir(diff_id).join("fs"), facts));
        }
        self.add_fixup(&resolved.manifest_digest, &stack)?;
        self.add_blob(&resolved.manifest.config.digest, &resolved.config_bytes)?;
        self.add_blob(&resolved.manifest_digest, &resolved.manifest_bytes)?;
        if let Some((digest, bytes)) = &resolved.index {
            self.add_blob(digest, bytes)?;
        }
        let named = Named {
            manifest: resolved.manifest_digest.clone(),
            index: resolved.index.as_ref().map(|(digest, _)| digest.clone()),
            created_ms: now_ms(),
            imported: origin.imported,
            imported_ms: origin.imported_ms,
            peer: origin.peer,
            size,
            layers: resolved.diff_ids.len(),
        };
        let name = reference.to_string();
        self.inner.index.change(|names| {
            names.images.insert(name.clone(), named.clone());
            true
        })?;
        Ok(record(&name, &named))
    }

    fn add_fixup(&self, manifest: &Digest, stack: &[(PathBuf, LayerFacts)]) -> Result<(), ImageError> {
        let target = self.fixup_dir(manifest);
        let directories = fixup::plan(stack).map_err(ImageError::disk("read", &self.inner.dir))?;
        if directories.is_empty() || target.exists() {
            return Ok(());
        }
        let parent = self.inner.dir.join("ingest");
        let ingest = Ingest::new(&parent).map_err(ImageError::disk("write to", &parent))?;
        let contents = ingest.path().join("fs");
        std::fs::create_dir(&contents).map_err(ImageError::disk("make", &contents))?;
        fixup::make(&contents, &directories).map_err(ImageError::disk("write", &contents))?;
        self.publish(&ingest, &LayerFacts::default(), &target)
    }

    /// Writes a document unless it is there and whole.
    fn add_blob(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
        let path = self.blob_path(digest);
        // Compared, not only looked for: a disk that has damaged it once gets it again.
        if std::fs::read(&path).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        write_whole(&path, bytes).map_err(ImageError::disk("write", &path))
    }

    /// A document that is here, its digest checked again: disks decay.
    pub(crate) fn blob(&self, what: &str, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let path = self.blob_path(digest);
        let bytes = std::fs::read(&path).map_err(ImageError::disk("read", &path))?;
        check(what, digest, &bytes)?;
        Ok(bytes)
    }

    fn load(&self, reference: &Reference, digest: &Digest) -> Result<Image, ImageError> {
        let what = format!("manifest {digest}");
        let Document::Manifest(manifest) = Document::parse(&what, &self.blob(&what, digest)?, None)? else {
            return Err(ImageError::document(what, "it is an index"));
        };
        let bytes = self.blob(&format!("configuration {}", manifest.config.digest), &manifest.config.digest)?;
        let (config, diff_ids) = manifest::config(&reference.to_string(), &manifest, &bytes, self.platform())?;
        let mut layers = Vec::with_capacity(diff_ids.len() + 1);
        let fixup = self.fixup_dir(digest);
        if fixup.exists() {
            layers.push(fixup.join("fs"));
        }
        for diff_id in diff_ids.iter().rev() {
            let dir = self.layer_dir(diff_id);
            let facts = self.facts(&dir)?;
            layers.push(dir.join("fs"));
            if facts.opaque_root {
                break;
            }
        }
        Ok(Image { reference: reference.clone(), digest: digest.clone(), config, layers })
    }

    fn facts(&self, layer: &Path) -> Result<LayerFacts, ImageError> {
        let path = layer.join("layer.json");
        let bytes = std::fs::read(&path).map_err(ImageError::disk("read", &path))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| ImageError::document(path.display().to_string(), error.to_string()))
    }

    /// What names and running pods need.
    fn needed(&self, in_use: &HashSet<Digest>) -> Result<Needed, ImageError> {
        let names = self.inner.index.read()?;
        let Needed { mut blobs, mut layers, mut manifests } = Needed::default();
        let room = self.has_room();
        let imported: HashSet<&Digest> =
            names.images.values().filter(|named| named.imported).map(|named| &named.manifest).collect();
        for named in names.images.values() {
            blobs.extend(named.index.iter().map(|digest| digest.hex().to_owned()));
        }
        for digest in names.images.values().map(|named| &named.manifest).chain(in_use) {
            // A digest in use that never was here needs nothing.
            if !self.blob_path(digest).exists() {
                continue;
            }
            let what = format!("manifest {digest}");
            let Document::Manifest(manifest) = Document::parse(&what, &self.blob(&what, digest)?, None)? else {
                continue;
            };
            let config = &manifest.config.digest;
            let bytes = self.blob(&format!("configuration {config}"), config)?;
            let (_, diff_ids) = manifest::config(digest.as_str(), &manifest, &bytes, self.platform())?;
            blobs.extend([digest.hex().to_owned(), config.hex().to_owned()]);
            if room || imported.contains(digest) {
                blobs.extend(manifest.layers.iter().map(|layer| layer.digest.hex().to_owned()));
            }
            layers.extend(diff_ids.iter().map(|diff_id| diff_id.hex().to_owned()));
            manifests.insert(digest.hex().to_owned());
        }
        Ok(Needed { blobs, layers, manifests })
    }

    fn children(&self, part: &str) -> Result<Vec<PathBuf>, ImageError> {
        let path = self.inner.dir.join(part);
        let fail = || ImageError::disk("read", &path);
        std::fs::read_dir(&path).map_err(fail())?.map(|entry| Ok(entry.map_err(fail())?.path())).collect()
    }

    fn busy_path(&self) -> PathBuf {
        self.inner.dir.join("busy.lock")
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.inner.dir.join("blobs").join("sha256").join(digest.hex())
    }

    fn layer_dir(&self, diff_id: &Digest) -> PathBuf {
        self.inner.dir.join("layers").join(diff_id.hex())
    }

    fn fixup_dir(&self, manifest: &Digest) -> PathBuf {
        self.inner.dir.join("fixups").join(manifest.hex())
    }
}

fn warn_of(diff_id: &Digest, extracted: &Extracted) {
    if extracted.devices > 0 {
        tracing::warn!(layer = %diff_id, count = extracted.devices, "device nodes of a layer were left out: a container has its own /dev");
    }
    if extracted.xattrs > 0 {
        tracing::warn!(layer = %diff_id, count = extracted.xattrs, "the file system does not take some extended attributes of a layer");
    }
}

fn record(name: &str, named: &Named) -> ImageRecord {
    ImageRecord {
        reference: name.to_owned(),
        digest: named.manifest.clone(),
        index: named.index.clone(),
        size: named.size,
        layers: named.layers,
        created_ms: named.created_ms,
        imported: named.imported,
        imported_ms: named.imported_ms.or(named.imported.then_some(named.created_ms)),
        peer: named.peer.clone(),
    }
}

/// Whether the bytes are what the digest says.
pub(crate) fn check(what: &str, digest: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
    let got = Digest::from_sha256(&Sha256::digest(bytes).into());
    if got == *digest {
        return Ok(());
    }
    Err(ImageError::Corrupt { what: what.to_owned(), expected: digest.clone(), got })
}

/// Reads bytes and tells the watcher about them.
pub(crate) struct Watched<'a, R> {
    pub inner: R,
    pub layer: &'a Descriptor,
    pub progress: &'a dyn Progress,
    pub done: u64,
    pub told: u64,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.done += count as u64;
        if self.done - self.told >= 256 << 10 {
            self.told = self.done;
            let event = ProgressEvent::Layer { digest: &self.layer.digest, done: self.done, total: self.layer.size };
            self.progress.event(&event);
        }
        Ok(count)
    }
}

/// Runs `work` where blocking is allowed.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(ImageError::Cancelled))
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn now_ms() -> Millis {
    std::time::UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
