//! What can go wrong with an image, in words a user can act on.

use std::io;
use std::path::{Path, PathBuf};

use coracle_base::Digest;

use crate::reference::ReferenceError;

/// An operation on images that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The name does not parse.
    #[error(transparent)]
    Name(#[from] ReferenceError),
    /// The policy forbids a pull and nothing local has the name.
    #[error(
        "image {reference} is not on this machine and the policy `Never` forbids a pull\n  hint: `coracle image import FILE`, or imagePullPolicy IfNotPresent"
    )]
    NotHere {
        /// The image.
        reference: String,
    },
    /// The registry does not know it.
    #[error(
        "there is no image {reference} in the registry\n  hint: check the name and the tag; a private image needs a login, which is not supported yet"
    )]
    NoSuchImage {
        /// The image.
        reference: String,
    },
    /// No manifest for this machine.
    #[error(
        "image {reference} has nothing for {wanted}; it is there for {}\n  hint: take an image that was built for {wanted}, or a node of such an architecture",
        .available.join(", ")
    )]
    Architecture {
        /// The image.
        reference: String,
        /// This machine.
        wanted: String,
        /// What the image was built for.
        available: Vec<String>,
    },
    /// Content that does not have the digest it was asked for by.
    #[error(
        "{what} is corrupt: {}its contents have the digest {got}\n  hint: it was damaged on its way or on a disk; build, save or fetch the image again and `coracle image import` it, or wait for the next pull",
        promised(.what, .expected)
    )]
    Corrupt {
        /// `layer sha256:..`, `manifest of ..`
        what: String,
        /// What the descriptor says.
        expected: Digest,
        /// What came.
        got: Digest,
    },
    /// More or fewer bytes than the descriptor says.
    #[error("{what} has not the size its descriptor says: expected {expected} bytes, got {got}")]
    Size {
        /// What it is.
        what: String,
        /// What the descriptor says.
        expected: u64,
        /// What came (so far).
        got: u64,
    },
    /// A document that is not what it should be.
    #[error("{what} is not usable: {why}")]
    Document {
        /// `manifest sha256:..`, `index.json`
        what: String,
        /// What is wrong.
        why: String,
    },
    /// A layer that breaks a rule.
    #[error("cannot unpack layer {digest}")]
    Layer {
        /// Its compressed digest.
        digest: Digest,
        /// Which rule, at which entry.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file or folder of the store, or of what is imported.
    #[error("cannot {action} {}", .path.display())]
    Disk {
        /// `read`, `write`, ...
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The thing to import holds no image we can name.
    #[error("{} is no image: {why}", .path.display())]
    NotAnImage {
        /// What was given.
        path: PathBuf,
        /// What is missing.
        why: String,
    },
    /// The registry refused, or could not be reached.
    #[error("cannot pull {reference}")]
    Pull {
        /// The image.
        reference: String,
        /// Why.
        #[source]
        source: Box<crate::registry::RegistryError>,
    },
    /// Other nodes were asked first, and could not give it.
    #[error("no other node could hand over image {reference} ({said}), and it cannot be pulled either")]
    Peers {
        /// The image.
        reference: String,
        /// Each node and why.
        said: String,
        /// Why not from the registry.
        #[source]
        source: Box<ImageError>,
    },
    /// A background thread ended early: the program is going down.
    #[error("the operation was cut short by the end of the program")]
    Cancelled,
}

/// What it should be, unless its name says that already.
fn promised(what: &str, expected: &Digest) -> String {
    if what.contains(expected.as_str()) { String::new() } else { format!("{expected} was promised, ") }
}

impl ImageError {
    /// The reason the Kubernetes API uses for a waiting container.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Name(_) => "InvalidImageName",
            Self::NotHere { .. } => "ErrImageNeverPull",
            _ => "ErrImagePull",
        }
    }

    pub(crate) fn disk(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Disk { action, path, source }
    }

    pub(crate) fn document(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Document { what: what.into(), why: why.into() }
    }
}
