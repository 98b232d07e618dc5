//! What an import or a pull tells whoever watches it.

use coracle_base::Digest;

/// One step of an import or a pull.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ProgressEvent<'a> {
    /// The manifest is known: what will be fetched.
    Resolved {
        /// The image, normalised.
        reference: &'a str,
        /// The digest of its manifest.
        digest: &'a Digest,
        /// How many layers it has.
        layers: usize,
        /// Compressed bytes of all layers.
        bytes: u64,
    },
    /// Bytes of a layer went through; told at most every 256 KiB.
    Layer {
        /// The layer's compressed digest.
        digest: &'a Digest,
        /// Compressed bytes so far.
        done: u64,
        /// Compressed bytes in all.
        total: u64,
    },
    /// A layer is on disk.
    LayerDone {
        /// The layer's compressed digest.
        digest: &'a Digest,
        /// It was there already.
        shared: bool,
    },
    /// A request is repeated.
    Retry {
        /// What failed.
        reason: &'a str,
        /// Milliseconds until the next attempt.
        after_ms: u64,
    },
}

/// Watches an import or a pull. Called from several threads, so it must be quick.
pub trait Progress: Send + Sync {
    /// Something happened.
    fn event(&self, event: &ProgressEvent<'_>);
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn event(&self, _: &ProgressEvent<'_>) {}
}
