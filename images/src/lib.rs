//! Image references, import, pull, the local store and its garbage collection.
//!
//! [`ImageStore`] is the one door: images come in by [`ImageStore::import`] (an OCI layout or a `docker save` archive) or by
//! [`ImageStore::pull`] (a registry, or other nodes), and go out as [`Image`]: the configuration and the layer directories, top first, as
//! overlayfs wants them. The rules for what a layer may contain live in `coracle-layers`; nothing here trusts a name, a size
//! or a media type that came from outside.
#![forbid(unsafe_code)]

pub mod builder;
mod disk;
mod error;
mod extract;
mod fixup;
mod frames;
mod import;
mod index;
mod kept;
mod locks;
mod manifest;
pub mod peers;
mod platform;
mod progress;
mod reference;
pub mod registry;
mod store;
pub mod tree;
mod unpack;

pub use error::ImageError;
pub use platform::Platform;
pub use progress::{Progress, ProgressEvent, Quiet};
pub use reference::{Reference, ReferenceError};
pub use store::{GcReport, Image, ImageRecord, ImageStore, PullOptions, PullPolicy, StoreOptions};

/// The image configuration as the OCI image specification has it (`config.md`).
pub use oci_spec::image::ImageConfiguration;
