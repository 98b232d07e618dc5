//! Makes OCI image layouts from files: for examples, tests and `image import`. The same input gives the same digests.

use std::collections::BTreeMap;
//use std::fs::File;
//use std::io::{self, Read, Write};
//use std::os::unix::ffi::OsStrExt;
//use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use coracle_base::Digest;
//use coracle_layers::{Entry, Kind, Limits, Meta, Sink};
//use flate2::Compression;
//use serde_json::{Value, json};

use crate::error::ImageError;

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
}

impl Layout {
    /// Makes an empty layout in `dir`, or opens the one that is there to add to it.
    pub fn create(dir: impl Into<PathBuf>) -> Result<Self, ImageError> {
        Ok(Self { dir: dir.into() })
    }
}
