//! Makes OCI image layouts from files: for examples, tests and `image import`. The same input gives the same digests.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use coracle_base::Digest;
use coracle_layers::{Entry, Kind, LayerPath, Limits, Sink, walk};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::error::ImageError;
use crate::manifest::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use crate::platform::Platform;
use crate::reference::Reference;

/// Owner, mode, time and extended attributes of a file in a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// Permission bits with setuid, setgid and sticky: `0o755`.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Seconds since 1970; fixed by default, so that layers are reproducible.
    pub mtime: u64,
    /// Extended attributes: `security.capability`, `user.*`.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

impl Attributes {
    /// Root's, with this mode.
    #[must_use]
    pub fn mode(mode: u32) -> Self {
        Self { mode, uid: 0, gid: 0, mtime: 0, xattrs: Vec::new() }
    }

    /// The same for another owner.
    #[must_use]
    pub fn owner(self, uid: u32, gid: u32) -> Self {
        Self { uid, gid, ..self }
    }
}

#[derive(Debug, Clone)]
enum Node {
    Directory(Attributes),
    Bytes(Vec<u8>, Attributes),
    Host(PathBuf, Attributes),
    Symlink(PathBuf, Attributes),
    Hardlink(PathBuf),
    Whiteout,
    Opaque,
}

/// The contents of one layer, built up in memory; large files stay where they are until the layer is written.
#[derive(Debug, Clone, Default)]
pub struct LayerBuilder {
    nodes: BTreeMap<PathBuf, Node>,
}

/// A layer in a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The digest of the compressed blob.
    pub digest: Digest,
    /// The digest of the tar.
    pub diff_id: Digest,
    /// Compressed bytes.
    pub size: u64,
    media_type: &'static str,
}

/// How a layer's blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compress {
    /// A plain tar.
    None,
    /// gzip, level 6.
    #[default]
    Gzip,
}

/// The part of an image's configuration that says how to run it (image-spec `config.md`).
#[derive(Debug, Clone, Default)]
pub struct RunConfig {
    /// The program and its fixed arguments.
    pub entrypoint: Vec<String>,
    /// Default arguments.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// `user`, `uid`, `uid:gid`.
    pub user: String,
    /// Where it starts.
    pub working_dir: String,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// `SIGQUIT`.
    pub stop_signal: Option<String>,
    /// Paths that want a volume.
    pub volumes: Vec<String>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
}

/// An OCI image layout on disk: a folder with `oci-layout`, `index.json` and `blobs/`.
#[derive(Debug)]
pub struct Layout {
    dir: PathBuf,
}

impl LayerBuilder {
    /// An empty layer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn put(&mut self, path: impl AsRef<Path>, node: Node) -> &mut Self {
        let path = path.as_ref();
        let path = path.strip_prefix("/").unwrap_or(path);
        // Parents that nobody names would be made up by whoever unpacks the layer.
        let mut parent = path.parent();
        while let Some(dir) = parent.filter(|dir| !dir.as_os_str().is_empty()) {
            self.nodes.entry(dir.to_owned()).or_insert_with(|| Node::Directory(Attributes::mode(0o755)));
            parent = dir.parent();
        }
        self.nodes.insert(path.to_owned(), node);
        self
    }

    /// A directory.
    pub fn directory(&mut self, path: impl AsRef<Path>, attributes: Attributes) -> &mut Self {
        self.put(path, Node::Directory(attributes))
    }

    /// A file with these contents. Missing parents are added as root's, 0755.
    pub fn file(&mut self, path: impl AsRef<Path>, contents: impl Into<Vec<u8>>, attributes: Attributes) -> &mut Self {
        self.put(path, Node::Bytes(contents.into(), attributes))
    }

    /// A file whose contents are read from `host` when the layer is written.
    pub fn file_from(&mut self, path: impl AsRef<Path>, host: impl Into<PathBuf>, attributes: Attributes) -> &mut Self {
        self.put(path, Node::Host(host.into(), attributes))
    }

    /// A symbolic link.
    pub fn symlink(&mut self, path: impl AsRef<Path>, target: impl Into<PathBuf>) -> &mut Self {
        self.put(path, Node::Symlink(target.into(), Attributes::mode(0o777)))
    }

    /// Another name for a file of this layer.
    pub fn hardlink(&mut self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> &mut Self {
        let target = target.as_ref();
        self.put(path, Node::Hardlink(target.strip_prefix("/").unwrap_or(target).to_owned()))
    }

    /// Hides `path` of the layers below.
    pub fn whiteout(&mut self, path: impl AsRef<Path>) -> &mut Self {
        self.put(path, Node::Whiteout)
    }

    /// Hides everything the layers below have in the directory `path`, which is made.
    pub fn opaque(&mut self, path: impl AsRef<Path>, attributes: Attributes) -> &mut Self {
        let path = path.as_ref();
        self.put(path, Node::Directory(attributes));
        self.put(path.join(".wh..wh..opq"), Node::Opaque)
    }

    /// Everything in the folder `host`, put under `path`: files, directories and links with their modes; owners become
    /// root unless `owners` is set. Times are not taken over. Sockets and devices are left out.
    pub fn tree(&mut self, path: impl AsRef<Path>, host: &Path, owners: bool) -> Result<&mut Self, ImageError> {
        let path = path.as_ref();
        let fail = |path: &Path| ImageError::disk("read", path);
        let mut names = std::fs::read_dir(host)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>())
            .map_err(fail(host))?;
        names.sort();
        for name in names {
            let (from, to) = (host.join(&name), path.join(&name));
            let found = std::fs::symlink_metadata(&from).map_err(fail(&from))?;
            let mut attributes = Attributes::mode(found.mode() & 0o7777);
            if owners {
                attributes = attributes.owner(found.uid(), found.gid());
            }
            let kind = found.file_type();
            if kind.is_dir() {
                self.directory(&to, attributes);
                self.tree(&to, &from, owners)?;
            } else if kind.is_symlink() {
                let target = std::fs::read_link(&from).map_err(fail(&from))?;
                self.put(&to, Node::Symlink(target, Attributes { mode: 0o777, ..attributes }));
            } else if kind.is_file() {
                self.file_from(&to, &from, attributes);
            } else if kind.is_fifo() {
                tracing::debug!(path = %from.display(), "named pipes are not packed");
            }
        }
        Ok(self)
    }

    /// Everything in a tar, owners and modes kept, times not. With `merged` each leading directory that is named there is
    /// taken for a link to its value (`lib` to `usr/lib`), as in a system whose `/lib` is such a link.
    pub fn tar(&mut self, reader: impl Read, merged: &[(&str, &str)]) -> Result<&mut Self, ImageError> {
        let mut sink = Collect { layer: self, merged };
        walk(reader, &Limits::default(), &mut sink)
            .map_err(|error| ImageError::document("tar", coracle_base::one_line(&error)))?;
        Ok(self)
    }

    /// Takes a path out again, with everything below it.
    pub fn forget(&mut self, path: impl AsRef<Path>) -> &mut Self {
        let path = path.as_ref();
        let path = path.strip_prefix("/").unwrap_or(path).to_owned();
        self.nodes.retain(|known, _| !known.starts_with(&path));
        self
    }

    /// Whether the layer has something at `path`.
    #[must_use]
    pub fn has(&self, path: impl AsRef<Path>) -> bool {
        let path = path.as_ref();
        self.nodes.contains_key(path.strip_prefix("/").unwrap_or(path))
    }

    /// The contents of a file that was given with its contents (not with [`Self::file_from`]).
    #[must_use]
    pub fn contents(&self, path: impl AsRef<Path>) -> Option<&[u8]> {
        let path = path.as_ref();
        match self.nodes.get(path.strip_prefix("/").unwrap_or(path)) {
            Some(Node::Bytes(contents, _)) => Some(contents),
            _ => None,
        }
    }

    /// Writes the layer as a tar. Paths are sorted, so parents come before what is in them; hard links come last.
    pub fn write(&self, out: impl Write) -> io::Result<()> {
        let mut tar = tar::Builder::new(out);
        let links = |node: &Node| matches!(node, Node::Hardlink(_));
        for (path, node) in self.nodes.iter().filter(|(_, node)| !links(node)) {
            append(&mut tar, path, node)?;
        }
        for (path, node) in self.nodes.iter().filter(|(_, node)| links(node)) {
            append(&mut tar, path, node)?;
        }
        tar.into_inner()?.flush()
    }
}

fn append(tar: &mut tar::Builder<impl Write>, path: &Path, node: &Node) -> io::Result<()> {
    let plain = Attributes::mode(0o644);
    let (kind, attributes) = match node {
        Node::Directory(attributes) => (tar::EntryType::Directory, attributes),
        Node::Bytes(_, attributes) | Node::Host(_, attributes) => (tar::EntryType::Regular, attributes),
        Node::Symlink(_, attributes) => (tar::EntryType::Symlink, attributes),
        Node::Hardlink(_) => (tar::EntryType::Link, &plain),
        Node::Whiteout | Node::Opaque => (tar::EntryType::Regular, &plain),
    };
    let names: Vec<String> = attributes.xattrs.iter().map(|(name, _)| format!("SCHILY.xattr.{name}")).collect();
    let values = attributes.xattrs.iter().map(|(_, value)| value.as_slice());
    if !names.is_empty() {
        tar.append_pax_extensions(names.iter().map(String::as_str).zip(values))?;
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(attributes.mode);
    header.set_uid(attributes.uid.into());
    header.set_gid(attributes.gid.into());
    header.set_mtime(attributes.mtime);
    header.set_size(0);
    match node {
        Node::Bytes(contents, _) => {
            header.set_size(contents.len() as u64);
            tar.append_data(&mut header, path, contents.as_slice())
        }
        Node::Host(host, _) => {
            let file = File::open(host)
                .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", host.display())))?;
            let size = file.metadata()?.len();
            header.set_size(size);
            tar.append_data(&mut header, path, file.take(size))
        }
        Node::Symlink(target, _) | Node::Hardlink(target) => tar.append_link(&mut header, path, target),
        Node::Directory(_) => tar.append_data(&mut header, path.join(""), io::empty()),
        Node::Opaque => tar.append_data(&mut header, path, io::empty()),
        Node::Whiteout => {
            let hidden = [b".wh.", path.file_name().unwrap_or_default().as_bytes()].concat();
            tar.append_data(&mut header, path.with_file_name(OsStr::from_bytes(&hidden)), io::empty())
        }
    }
}

/// Takes a tar's entries into a layer.
struct Collect<'a> {
    layer: &'a mut LayerBuilder,
    merged: &'a [(&'a str, &'a str)],
}

impl Collect<'_> {
    fn path(&self, path: &LayerPath) -> PathBuf {
        let path = PathBuf::from(OsStr::from_bytes(path.as_bytes()));
        for (from, to) in self.merged {
            if let Ok(rest) = path.strip_prefix(from) {
                // Joining nothing would leave a trailing slash.
                return if rest.as_os_str().is_empty() { PathBuf::from(to) } else { Path::new(to).join(rest) };
            }
        }
        path
    }
}

impl Sink for Collect<'_> {
    type Error = io::Error;

    fn entry(&mut self, entry: &Entry, data: &mut dyn Read) -> io::Result<()> {
        if entry.path.is_root() {
            return Ok(());
        }
        let path = self.path(&entry.path);
        let xattrs = entry
            .meta
            .xattrs
            .iter()
            .filter_map(|(name, value)| Some((String::from_utf8(name.clone()).ok()?, value.clone())));
        let attributes = Attributes {
            xattrs: xattrs.collect(),
            ..Attributes::mode(entry.meta.mode).owner(entry.meta.uid, entry.meta.gid)
        };
        match &entry.kind {
            Kind::Directory => self.layer.directory(path, attributes),
            Kind::File { .. } => {
                let mut contents = Vec::new();
                data.read_to_end(&mut contents)?;
                self.layer.file(path, contents, attributes)
            }
            Kind::Symlink { target } => {
                self.layer.put(path, Node::Symlink(OsStr::from_bytes(target).into(), attributes))
            }
            Kind::Hardlink { target } => {
                let target = self.path(target);
                self.layer.hardlink(path, target)
            }
            Kind::Whiteout => self.layer.whiteout(path),
            Kind::Opaque => self.layer.put(path.join(".wh..wh..opq"), Node::Opaque),
            Kind::Character { .. } | Kind::Block { .. } | Kind::Fifo => self.layer,
        };
        Ok(())
    }
}

impl Layout {
    /// Makes an empty layout in `dir`, or opens the one that is there to add to it.
    pub fn create(dir: impl Into<PathBuf>) -> Result<Self, ImageError> {
        let dir = dir.into();
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(ImageError::disk("make", &blobs))?;
        let layout = Self { dir };
        layout.put("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        if !layout.dir.join("index.json").exists() {
            layout.write_index(&[])?;
        }
        Ok(layout)
    }

    /// Writes a layer's blob. Layers can be shared by images of one layout.
    pub fn layer(&self, layer: &LayerBuilder, compress: Compress) -> Result<Layer, ImageError> {
        let temporary = self.dir.join("blobs").join(format!(".new-{}", crate::disk::unique()));
        let fail = |path: &Path| ImageError::disk("write", path);
        let file = io::BufWriter::new(File::create(&temporary).map_err(fail(&temporary))?);
        let mut blob = HashWriter { inner: file, hash: Sha256::new(), bytes: 0 };
        let written = match compress {
            Compress::None => {
                let mut tar = HashWriter { inner: &mut blob, hash: Sha256::new(), bytes: 0 };
                layer.write(&mut tar).map(|()| tar.digest())
            }
            // Neither name nor time go into the header, so the same tar gives the same blob.
            Compress::Gzip => {
                let mut tar =
                    HashWriter { inner: GzEncoder::new(&mut blob, Compression::new(6)), hash: Sha256::new(), bytes: 0 };
                layer.write(&mut tar).and_then(|()| {
                    let digest = tar.hash.clone();
                    tar.inner.finish()?;
                    Ok(Digest::from_sha256(&digest.finalize().into()))
                })
            }
        };
        let outcome = written.and_then(|diff_id| blob.flush().map(|()| diff_id));
        let diff_id = outcome.inspect_err(|_| drop(std::fs::remove_file(&temporary))).map_err(fail(&temporary))?;
        let (size, digest) = (blob.bytes, blob.digest());
        let target = self.blob_path(&digest);
        std::fs::rename(&temporary, &target).map_err(fail(&target))?;
        let media_type = match compress {
            Compress::None => "application/vnd.oci.image.layer.v1.tar",
            Compress::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        };
        Ok(Layer { digest, diff_id, size, media_type })
    }

    /// Adds an image for this machine's platform, bottom layer first, under a full name (`example.com/app:1`); an image of the
    /// same name is replaced. Gives the manifest's digest.
    pub fn image(&self, name: &str, run: &RunConfig, layers: &[Layer]) -> Result<Digest, ImageError> {
        self.image_for(name, &Platform::current(), run, layers)
    }

    /// The same for a named platform.
    pub fn image_for(
        &self,
        name: &str,
        platform: &Platform,
        run: &RunConfig,
        layers: &[Layer],
    ) -> Result<Digest, ImageError> {
        let manifest = self.manifest(platform, run, layers)?;
        self.name(name, &manifest, OCI_MANIFEST)?;
        Ok(manifest)
    }

    /// An index of one image per platform under one name. Gives the index' digest.
    pub fn index(&self, name: &str, images: &[(Platform, RunConfig, Vec<Layer>)]) -> Result<Digest, ImageError> {
        let mut manifests = Vec::new();
        for (platform, run, layers) in images {
            let digest = self.manifest(platform, run, layers)?;
            let mut entry = self.descriptor(&digest, OCI_MANIFEST)?;
            entry["platform"] = json!({"os": platform.os, "architecture": platform.architecture});
            if !platform.variant.is_empty() {
                entry["platform"]["variant"] = json!(platform.variant);
            }
            manifests.push(entry);
        }
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests});
        let digest = self.blob(index.to_string().as_bytes())?;
        self.name(name, &digest, OCI_INDEX)?;
        Ok(digest)
    }

    fn manifest(&self, platform: &Platform, run: &RunConfig, layers: &[Layer]) -> Result<Digest, ImageError> {
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let mut config = json!({
            "architecture": platform.architecture,
            "os": platform.os,
            "config": run.json(),
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        if !platform.variant.is_empty() {
            config["variant"] = json!(platform.variant);
        }
        let config = self.blob(config.to_string().as_bytes())?;
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| json!({"mediaType": layer.media_type, "digest": layer.digest.as_str(), "size": layer.size}))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.descriptor(&config, OCI_CONFIG)?,
            "layers": layers,
        });
        self.blob(manifest.to_string().as_bytes())
    }

    fn name(&self, name: &str, digest: &Digest, media_type: &str) -> Result<(), ImageError> {
        // Normalised, so that a bare tag cannot be taken for a name or the other way round.
        let name = name.parse::<Reference>()?.to_string();
        let mut entry = self.descriptor(digest, media_type)?;
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        let path = self.dir.join("index.json");
        let bytes = std::fs::read(&path).map_err(ImageError::disk("read", &path))?;
        let index: Value =
            serde_json::from_slice(&bytes).map_err(|error| ImageError::document("index.json", error.to_string()))?;
        let mut manifests = index["manifests"].as_array().cloned().unwrap_or_default();
        manifests.retain(|old| old["annotations"]["org.opencontainers.image.ref.name"] != name.as_str());
        manifests.push(entry);
        self.write_index(&manifests)
    }

    fn write_index(&self, manifests: &[Value]) -> Result<(), ImageError> {
        self.put("index.json", json!({"schemaVersion": 2, "manifests": manifests}).to_string().as_bytes())
    }

    fn descriptor(&self, digest: &Digest, media_type: &str) -> Result<Value, ImageError> {
        let path = self.blob_path(digest);
        let size = std::fs::metadata(&path).map_err(ImageError::disk("read", &path))?.len();
        Ok(json!({"mediaType": media_type, "digest": digest.as_str(), "size": size}))
    }

    fn blob(&self, bytes: &[u8]) -> Result<Digest, ImageError> {
        let digest = Digest::from_sha256(&Sha256::digest(bytes).into());
        self.put(&format!("blobs/sha256/{}", digest.hex()), bytes)?;
        Ok(digest)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    fn put(&self, name: &str, bytes: &[u8]) -> Result<(), ImageError> {
        let path = self.dir.join(name);
        let temporary = path.with_extension(crate::disk::unique());
        std::fs::write(&temporary, bytes)
            .and_then(|()| std::fs::rename(&temporary, &path))
            .map_err(ImageError::disk("write", &path))
    }
}

impl RunConfig {
    /// As the configuration file has it; what is empty is left out.
    fn json(&self) -> Value {
        let mut config = serde_json::Map::new();
        let mut put = |name: &str, value: Value| {
            let empty = match &value {
                Value::Array(list) => list.is_empty(),
                Value::Object(map) => map.is_empty(),
                Value::String(text) => text.is_empty(),
                other => other.is_null(),
            };
            if !empty {
                config.insert(name.into(), value);
            }
        };
        let set = |list: &[String]| Value::Object(list.iter().map(|name| (name.clone(), json!({}))).collect());
        put("Entrypoint", json!(self.entrypoint));
        put("Cmd", json!(self.cmd));
        put("Env", json!(self.env));
        put("User", json!(self.user));
        put("WorkingDir", json!(self.working_dir));
        put("ExposedPorts", set(&self.exposed_ports));
        put("StopSignal", json!(self.stop_signal));
        put("Volumes", set(&self.volumes));
        put("Labels", json!(self.labels));
        Value::Object(config)
    }
}

/// Hashes and counts what is written.
struct HashWriter<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W> HashWriter<W> {
    fn digest(&self) -> Digest {
        Digest::from_sha256(&self.hash.clone().finalize().into())
    }
}

impl<W: Write> Write for HashWriter<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.hash.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
