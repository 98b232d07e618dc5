//! Which names lead to which manifests: one small file, exchanged as a whole.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use coracle_base::Digest;
use serde::{Deserialize, Serialize};

use crate::disk::{Lock, write_whole};
use crate::error::ImageError;
use crate::reference::Reference;

/// What a name leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The manifest.
    #[serde(with = "text")]
    pub manifest: Digest,
    /// The index it was chosen from.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "maybe")]
    pub index: Option<Digest>,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// From a file, not from a registry.
    pub imported: bool,
    /// When that file was imported where it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported_ms: Option<u64>,
    /// The node whose word was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Bytes of the layers, unpacked.
    pub size: u64,
    /// How many layers.
    pub layers: usize,
}

/// The file's contents.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Names {
    version: u32,
    /// Normalised name to manifest.
    pub images: BTreeMap<String, Named>,
}

const VERSION: u32 = 1;

impl Names {
    /// What a reference means here. A digest means its contents, under whatever name they came.
    pub fn find(&self, reference: &Reference) -> Option<(&String, &Named)> {
        let Some(digest) = reference.digest() else {
            return self.images.get_key_value(&reference.to_string());
        };
        let same = |named: &Named| named.manifest == *digest || named.index.as_ref() == Some(digest);
        self.images.iter().find(|(_, named)| same(named))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

/// The file, with the last contents in memory; other processes may exchange it.
#[derive(Debug)]
pub struct Index {
    path: PathBuf,
    lock: PathBuf,
    known: Mutex<Option<(Seen, Arc<Names>)>>,
}

impl Index {
    pub fn new(dir: &Path) -> Self {
        Self { path: dir.join("names.json"), lock: dir.join("names.lock"), known: Mutex::new(None) }
    }

    /// The names as they are now.
    pub fn read(&self) -> Result<Arc<Names>, ImageError> {
        let fail = || ImageError::disk("read", &self.path);
        let seen = match std::fs::metadata(&self.path) {
            Ok(found) => Seen { inode: found.ino(), size: found.size(), changed: (found.ctime(), found.ctime_nsec()) },
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Arc::default()),
            Err(error) => return Err(fail()(error)),
        };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((before, names)) = &*known
            && *before == seen
        {
            return Ok(names.clone());
        }
        let bytes = std::fs::read(&self.path).map_err(fail())?;
        let what = || self.path.display().to_string();
        let names: Names =
            serde_json::from_slice(&bytes).map_err(|error| ImageError::document(what(), error.to_string()))?;
        if names.version > VERSION {
            return Err(ImageError::document(what(), "a newer version of this program wrote it"));
        }
        let names = Arc::new(names);
        *known = Some((seen, names.clone()));
        Ok(names)
    }

    /// Changes the names; nothing is written when `change` says `false`.
    pub fn change(&self, change: impl FnOnce(&mut Names) -> bool) -> Result<bool, ImageError> {
        let _lock = Lock::exclusive(&self.lock).map_err(ImageError::disk("lock", &self.lock))?;
        let mut names = Names::clone(&*self.read()?);
        if !change(&mut names) {
            return Ok(false);
        }
        names.version = VERSION;
        let bytes =
            serde_json::to_vec_pretty(&names).map_err(|error| ImageError::document("names.json", error.to_string()))?;
        write_whole(&self.path, &bytes).map_err(ImageError::disk("write", &self.path))?;
        Ok(true)
    }
}

mod text {
    use coracle_base::Digest;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(digest.as_str())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

mod maybe {
    use coracle_base::Digest;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(digest: &Option<Digest>, serializer: S) -> Result<S::Ok, S::Error> {
        match digest {
            Some(digest) => serializer.serialize_some(digest.as_str()),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Digest>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}
