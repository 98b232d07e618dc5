//! Images from files: an OCI layout (folder, tar, compressed tar) or what `docker save` writes.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use coracle_base::Digest;
use coracle_layers::Decoder;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::disk::Ingest;
use crate::error::ImageError;
use crate::manifest::{self, DOCUMENT_BYTES, Descriptor, Document, Manifest, OCI_CONFIG, OCI_MANIFEST};
use crate::progress::{Progress, ProgressEvent};
use crate::reference::Reference;
use crate::store::{ImageRecord, ImageStore, Origin, Resolved, Watched, check};
use crate::unpack::Promise;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Files of an archive of images; a layout has a handful per image.
const FILES: usize = 100_000;

/// Imports every image with a name. Blocking.
pub fn import(store: &ImageStore, path: &Path, progress: &dyn Progress) -> Result<Vec<ImageRecord>, ImageError> {
    let _busy = store.busy()?;
    let source = Source::open(store, path)?;
    let not = |why: &str| ImageError::NotAnImage { path: path.to_owned(), why: why.into() };
    let records = if source.has("index.json") {
        layout(store, &source, progress)?
    } else if source.has("manifest.json") {
        docker_archive(store, &source, progress)?
    } else {
        return Err(not("it has neither `index.json` (an OCI layout) nor `manifest.json` (a `docker save` archive)"));
    };
    if records.is_empty() {
        return Err(not(
            "no image in it has a full name: set the annotation org.opencontainers.image.ref.name to one, for example `example.com/app:1`",
        ));
    }
    Ok(records)
}

#[derive(Deserialize)]
struct IndexFile {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

fn layout(store: &ImageStore, source: &Source, progress: &dyn Progress) -> Result<Vec<ImageRecord>, ImageError> {
    let bytes = source.document("index.json")?;
    let index: IndexFile =
        serde_json::from_slice(&bytes).map_err(|error| ImageError::document("index.json", error.to_string()))?;
    let mut records = Vec::new();
    for descriptor in &index.manifests {
        let Some(reference) = name_of(descriptor)? else { continue };
        let resolved = resolve(store, source, &reference, descriptor)?;
        let layers = resolved.manifest.layers.iter().zip(&resolved.diff_ids);
        announce(progress, &reference, &resolved);
        for (layer, diff_id) in layers {
            let path = blob_path(&layer.digest);
            let promise = Promise { digest: Some(&layer.digest), size: Some(layer.size), diff_id };
            take_layer(store, source, &path, layer, &promise, progress)?;
        }
        records.push(store.name(&reference, &resolved, Origin::import())?);
    }
    Ok(records)
}

fn announce(progress: &dyn Progress, reference: &Reference, resolved: &Resolved) {
    progress.event(&ProgressEvent::Resolved {
        reference: &reference.to_string(),
        digest: &resolved.manifest_digest,
        layers: resolved.manifest.layers.len(),
        bytes: resolved.manifest.layers.iter().map(|layer| layer.size).fold(0, u64::saturating_add),
    });
}

/// The full name an entry of `index.json` has, if it has one: a bare tag names nothing.
fn name_of(descriptor: &Descriptor) -> Result<Option<Reference>, ImageError> {
    let full = descriptor.annotation(CONTAINERD_NAME);
    let short = descriptor.annotation(REF_NAME).filter(|name| name.contains(['/', ':', '@']));
    full.or(short).map(|name| Ok(name.parse::<Reference>()?)).transpose()
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// Follows a descriptor of `index.json` to a manifest for this machine and reads its configuration.
fn resolve(
    store: &ImageStore,
    source: &Source,
    reference: &Reference,
    descriptor: &Descriptor,
) -> Result<Resolved, ImageError> {
    let read = |descriptor: &Descriptor| {
        let what = format!("manifest {}", descriptor.digest);
        let bytes = source.document(&blob_path(&descriptor.digest))?;
        check(&what, &descriptor.digest, &bytes)?;
        let document = Document::parse(&what, &bytes, Some(&descriptor.media_type))?;
        Ok::<_, ImageError>((document, bytes))
    };
    let name = reference.to_string();
    let mut index = None;
    let mut descriptor = descriptor.clone();
    // An index may hold indexes; deeper than this nobody nests.
    for _ in 0..4 {
        let (document, bytes) = read(&descriptor)?;
        match document {
            Document::Index(manifests) => {
                index.get_or_insert((descriptor.digest.clone(), bytes));
                descriptor = manifest::choose(&name, &manifests, store.platform())?.clone();
            }
            Document::Manifest(manifest) => {
                let config_bytes = source.document(&blob_path(&manifest.config.digest))?;
                check(&format!("configuration {}", manifest.config.digest), &manifest.config.digest, &config_bytes)?;
                let (_, diff_ids) = manifest::config(&name, &manifest, &config_bytes, store.platform())?;
                let manifest_digest = descriptor.digest;
                return Ok(Resolved {
                    index,
                    manifest_digest,
                    manifest_bytes: bytes,
                    manifest,
                    config_bytes,
                    diff_ids,
                });
            }
        }
    }
    Err(ImageError::document(name, "its indexes are nested too deep"))
}

fn take_layer(
    store: &ImageStore,
    source: &Source,
    path: &str,
    layer: &Descriptor,
    promise: &Promise<'_>,
    progress: &dyn Progress,
) -> Result<(), ImageError> {
    let _turn = store.layer_locks().hold_blocking(promise.diff_id.as_str());
    let shared = store.has_layer(promise.diff_id);
    if !shared {
        let reader = source.open_file(path)?;
        store.add_layer(promise, Watched { inner: reader, layer, progress, done: 0, told: 0 }, Some(&layer.digest))?;
    } else if !store.has_blob(&layer.digest) {
        // Unpacked from another blob, or by a release that kept none.
        let kept =
            source.open_file(path).and_then(|file| store.keep(&store.receive(&layer.digest, layer.size, file)?));
        if let Err(error) = kept {
            tracing::warn!(layer = %layer.digest, error = coracle_base::one_line(&error), "a layer that is here is not kept as it came: other nodes cannot fetch it from here");
        }
    }
    progress.event(&ProgressEvent::LayerDone { digest: &layer.digest, shared });
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// `docker save` before OCI: no digests but the configuration's, so a manifest is made from what is there.
fn docker_archive(
    store: &ImageStore,
    source: &Source,
    progress: &dyn Progress,
) -> Result<Vec<ImageRecord>, ImageError> {
    let bad = |error: serde_json::Error| ImageError::document("manifest.json", error.to_string());
    let saved: Vec<Saved> = serde_json::from_slice(&source.document("manifest.json")?).map_err(bad)?;
    let mut records = Vec::new();
    for image in saved {
        let tags = image.repo_tags.unwrap_or_default();
        let Some(first) = tags.first() else { continue };
        let config_bytes = source.document(&image.config)?;
        let digest_of = |bytes: &[u8]| Digest::from_sha256(&Sha256::digest(bytes).into());
        let config = Descriptor {
            media_type: OCI_CONFIG.into(),
            digest: digest_of(&config_bytes),
            size: config_bytes.len() as u64,
            platform: None,
            annotations: None,
        };
        // The archive's layers are the tars themselves, so their digests are the diff ids the configuration names.
        let diff_ids = diff_ids(&config_bytes, image.layers.len())?;
        let layers = diff_ids
            .iter()
            .zip(&image.layers)
            .map(|(digest, path)| {
                let media_type = "application/vnd.oci.image.layer.v1.tar".into();
                Ok(Descriptor {
                    media_type,
                    digest: digest.clone(),
                    size: source.size(path)?,
                    platform: None,
                    annotations: None,
                })
            })
            .collect::<Result<Vec<_>, ImageError>>()?;
        let manifest_bytes = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers})
            .to_string()
            .into_bytes();
        let manifest = Manifest { config, layers };
        manifest::config(first, &manifest, &config_bytes, store.platform())?;
        let manifest_digest = digest_of(&manifest_bytes);
        let resolved = Resolved { index: None, manifest_digest, manifest_bytes, manifest, config_bytes, diff_ids };
        announce(progress, &first.parse()?, &resolved);
        for ((layer, diff_id), path) in resolved.manifest.layers.iter().zip(&resolved.diff_ids).zip(&image.layers) {
            take_layer(store, source, path, layer, &Promise { digest: None, size: None, diff_id }, progress)?;
        }
        for tag in &tags {
            records.push(store.name(&tag.parse()?, &resolved, Origin::import())?);
        }
    }
    Ok(records)
}

fn diff_ids(config: &[u8], expected: usize) -> Result<Vec<Digest>, ImageError> {
    let bad = |why: String| ImageError::document("the image's configuration", why);
    let value: serde_json::Value = serde_json::from_slice(config).map_err(|error| bad(error.to_string()))?;
    let listed = value["rootfs"]["diff_ids"].as_array().cloned().unwrap_or_default();
    if listed.len() != expected {
        return Err(bad(format!("it names {} layers, manifest.json {expected}", listed.len())));
    }
    listed
        .iter()
        .map(|text| text.as_str().unwrap_or_default().parse().map_err(|error| bad(format!("{error}"))))
        .collect()
}

/// A folder, or a tar whose files are found by offset.
enum Source {
    Folder { path: PathBuf, root: OwnedFd },
    Archive { path: PathBuf, file: File, files: BTreeMap<String, Member>, _unpacked: Option<Ingest> },
}

enum Member {
    File {
        offset: u64,
        size: u64,
    },
    /// `docker save` writes a layer once and links to it.
    Link(String),
}

impl Source {
    fn open(store: &ImageStore, path: &Path) -> Result<Self, ImageError> {
        let fail = || ImageError::disk("open", path);
        let found = std::fs::metadata(path).map_err(fail())?;
        if found.is_dir() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(io::Error::from).map_err(fail())?;
            return Ok(Self::Folder { path: path.to_owned(), root });
        }
        if !found.is_file() {
            return Err(ImageError::NotAnImage {
                path: path.to_owned(),
                why: "it is neither a folder nor a file".into(),
            });
        }
        let mut file = File::open(path).map_err(fail())?;
        let mut magic = [0u8; 4];
        let compressed = file.read_exact(&mut magic).is_ok()
            && (magic.starts_with(&[0x1f, 0x8b]) || magic == [0x28, 0xb5, 0x2f, 0xfd]);
        file.rewind().map_err(fail())?;
        let mut unpacked = None;
        if compressed {
            // Members are read in another order than they lie in, which a compressed stream cannot do.
            let parent = store.dir().join("ingest");
            let ingest = Ingest::new(&parent).map_err(ImageError::disk("write to", &parent))?;
            let plain = ingest.path().join("archive.tar");
            let mut target = File::create_new(&plain).map_err(ImageError::disk("write", &plain))?;
            let mut decoder =
                Decoder::new(file, &coracle_layers::Limits::default()).map_err(ImageError::disk("read", path))?;
            io::copy(&mut decoder, &mut target).map_err(ImageError::disk("unpack", path))?;
            file = File::open(&plain).map_err(ImageError::disk("open", &plain))?;
            unpacked = Some(ingest);
        }
        let files = members(path, &file)?;
        Ok(Self::Archive { path: path.to_owned(), file, files, _unpacked: unpacked })
    }

    fn has(&self, name: &str) -> bool {
        self.member(name).is_ok()
    }

    fn size(&self, name: &str) -> Result<u64, ImageError> {
        Ok(self.member(name)?.limit())
    }

    /// A whole small file.
    fn document(&self, name: &str) -> Result<Vec<u8>, ImageError> {
        let member = self.member(name)?;
        if member.limit() > DOCUMENT_BYTES {
            return Err(ImageError::Size { what: name.to_owned(), expected: DOCUMENT_BYTES, got: member.limit() });
        }
        let mut bytes = Vec::new();
        { member }.read_to_end(&mut bytes).map_err(ImageError::disk("read", &self.path().join(name)))?;
        Ok(bytes)
    }

    fn open_file(&self, name: &str) -> Result<impl Read + Send + use<>, ImageError> {
        self.member(name)
    }

    fn path(&self) -> &Path {
        match self {
            Self::Folder { path, .. } | Self::Archive { path, .. } => path,
        }
    }

    fn member(&self, name: &str) -> Result<io::Take<File>, ImageError> {
        let fail = || ImageError::disk("open", &self.path().join(name));
        match self {
            Self::Folder { root, .. } => {
                // A foreign folder: no way out of it, and nothing that blocks when opened.
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
                let file = rustix::fs::openat2(root, name, flags, Mode::empty(), resolve)
                    .map_err(io::Error::from)
                    .map_err(fail())?;
                let file = File::from(file);
                let found = file.metadata().map_err(fail())?;
                if !found.is_file() {
                    return Err(fail()(io::Error::other("it is not a file")));
                }
                Ok(file.take(found.len()))
            }
            Self::Archive { file, files, .. } => {
                let mut name = clean(name, "");
                for _ in 0..4 {
                    match files.get(&name) {
                        Some(Member::Link(target)) => name.clone_from(target),
                        Some(Member::File { offset, size }) => {
                            // A second description of the same file would share its position: open anew through /proc.
                            let mut file =
                                File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)))
                                    .map_err(fail())?;
                            file.seek(SeekFrom::Start(*offset)).map_err(fail())?;
                            return Ok(file.take(*size));
                        }
                        None => break,
                    }
                }
                Err(fail()(io::ErrorKind::NotFound.into()))
            }
        }
    }
}

/// The files of a tar and where they lie.
fn members(path: &Path, file: &File) -> Result<BTreeMap<String, Member>, ImageError> {
    let fail = |error: io::Error| ImageError::NotAnImage {
        path: path.to_owned(),
        why: format!("it cannot be read as a tar: {error}"),
    };
    let mut archive = tar::Archive::new(file);
    let mut files = BTreeMap::new();
    for entry in archive.entries_with_seek().map_err(fail)? {
        let entry = entry.map_err(fail)?;
        let name = clean(&String::from_utf8_lossy(&entry.path_bytes()), "");
        let kind = entry.header().entry_type();
        if kind.is_file() {
            files.insert(name, Member::File { offset: entry.raw_file_position(), size: entry.size() });
        } else if kind.is_symlink() || kind.is_hard_link() {
            let target = entry.link_name_bytes().unwrap_or_default().into_owned();
            let base = name.rsplit_once('/').map_or("", |(base, _)| base).to_owned();
            let base = if kind.is_symlink() { base.as_str() } else { "" };
            files.insert(name, Member::Link(clean(&String::from_utf8_lossy(&target), base)));
        }
        if files.len() > FILES {
            return Err(fail(io::Error::other(format!("it has more than {FILES} files"))));
        }
    }
    Ok(files)
}

/// A member's name in one spelling, relative to `base`.
fn clean(name: &str, base: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}
