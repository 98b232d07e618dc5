//! The client's side of the OCI distribution specification 1.1, without logins.
//!
//! A pull resolves the name to a manifest, then streams all missing layers at once: network, hashing, inflating and writing
//! overlap. Nothing is believed: bodies are bounded, contents have the digest they were asked for by or are thrown away.

mod auth;
mod client;
mod error;
mod resolve;

use std::io::{self, Read};
use std::sync::Arc;

use bytes::Bytes;
use coracle_base::Digest;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::header::{CONTENT_RANGE, CONTENT_TYPE};
use http::{Method, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use crate::error::ImageError;
use crate::manifest::{self, DOCUMENT_BYTES, Descriptor, Document, Manifest};
use crate::progress::{Progress, ProgressEvent};
use crate::reference::Reference;
use crate::store::{ImageRecord, ImageStore, PullOptions, Resolved, Watched, blocking, check};
use crate::unpack::Promise;
use client::{Client, Want};
pub use error::RegistryError;

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
const DIGEST_HEADER: &str = "docker-content-digest";
/// Frames between the network and the unpacking thread; hyper's frames are at most some ten KiB.
const FRAMES: usize = 64;
/// A download that got this far since it last broke may break again.
const PROGRESS: u64 = 1 << 20;

/// Fetches what is missing of an image.
pub(crate) async fn pull(
    store: &ImageStore,
    reference: &Reference,
    options: &PullOptions,
    progress: Arc<dyn Progress>,
) -> Result<ImageRecord, ImageError> {
    let busy = {
        let store = store.clone();
        blocking(move || store.busy()).await?
    };
    let wrap = |source: RegistryError| ImageError::Pull { reference: reference.to_string(), source: Box::new(source) };
    let client = Client::connect(reference, options, progress.clone()).await.map_err(wrap)?;
    let puller = Puller { store, reference, options, client, progress };
    if let Some(record) = puller.unchanged().await? {
        return Ok(record);
    }
    let resolved = puller.resolve().await?;
    puller.layers(&resolved).await?;
    let (store, reference) = (store.clone(), reference.clone());
    let record = blocking(move || store.name(&reference, &resolved, false)).await;
    drop(busy);
    record
}

struct Puller<'a> {
    store: &'a ImageStore,
    reference: &'a Reference,
    options: &'a PullOptions,
    client: Client,
    progress: Arc<dyn Progress>,
}

impl Puller<'_> {
    fn wrap(&self, source: RegistryError) -> ImageError {
        match source {
            RegistryError::Missing { .. } => ImageError::NoSuchImage { reference: self.reference.to_string() },
            source => ImageError::Pull { reference: self.reference.to_string(), source: Box::new(source) },
        }
    }

    /// The local image, if the registry says that its tag still means the same. Heads are not counted as pulls.
    async fn unchanged(&self) -> Result<Option<ImageRecord>, ImageError> {
        let (Some(tag), None) = (self.reference.tag(), self.reference.digest()) else { return Ok(None) };
        let Some(record) = self.store.known(self.reference)?.filter(|record| !record.imported) else { return Ok(None) };
        let want = Want { path: format!("manifests/{tag}"), accept: Some(ACCEPT), from: 0 };
        // Registries that do not head well are asked properly instead.
        let Ok(response) = self.client.request(&Method::HEAD, &want).await else { return Ok(None) };
        let digest =
            response.headers().get(DIGEST_HEADER).and_then(|value| value.to_str().ok()?.parse::<Digest>().ok());
        let same = digest.is_some_and(|digest| record.index.as_ref().unwrap_or(&record.digest) == &digest);
        // The same name for contents that are damaged here is no reason to be content.
        let whole = same && self.store.find(self.reference).is_ok_and(|image| image.is_some());
        Ok(whole.then_some(record))
    }

    /// From the name to a manifest for this platform and its configuration.
    async fn resolve(&self) -> Result<Resolved, ImageError> {
        let name = self.reference.to_string();
        let (mut digest, mut bytes, mut document) =
            self.document(self.reference.digest(), self.reference.tag()).await?;
        let mut index = None;
        for _ in 0..4 {
            match document {
                Document::Index(manifests) => {
                    let chosen = manifest::choose(&name, &manifests, &self.options.platform)?.digest.clone();
                    index.get_or_insert((digest, bytes));
                    (digest, bytes, document) = self.document(Some(&chosen), None).await?;
                }
                Document::Manifest(manifest) => return self.manifest(index, digest, bytes, manifest).await,
            }
        }
        Err(ImageError::document(name, "its indexes are nested too deep"))
    }

    async fn manifest(
        &self,
        index: Option<(Digest, Vec<u8>)>,
        manifest_digest: Digest,
        manifest_bytes: Vec<u8>,
        manifest: Manifest,
    ) -> Result<Resolved, ImageError> {
        let what = format!("configuration {}", manifest.config.digest);
        if manifest.config.size > DOCUMENT_BYTES {
            return Err(ImageError::document(what, format!("it has {} bytes", manifest.config.size)));
        }
        let want = Want { path: format!("blobs/{}", manifest.config.digest), ..Want::default() };
        let config_bytes = self.small(&want, DOCUMENT_BYTES).await?.0;
        check(&what, &manifest.config.digest, &config_bytes)?;
        let (_, diff_ids) =
            manifest::config(&self.reference.to_string(), &manifest, &config_bytes, &self.options.platform)?;
        Ok(Resolved { index, manifest_digest, manifest_bytes, manifest, config_bytes, diff_ids })
    }

    /// A manifest or an index, by digest or by tag.
    async fn document(
        &self,
        digest: Option<&Digest>,
        tag: Option<&str>,
    ) -> Result<(Digest, Vec<u8>, Document), ImageError> {
        let name = digest.map(Digest::as_str).or(tag).unwrap_or("latest");
        let want = Want { path: format!("manifests/{name}"), accept: Some(ACCEPT), from: 0 };
        let (bytes, headers) = self.small(&want, DOCUMENT_BYTES).await?;
        let what = format!("manifest {name}");
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let got = Digest::from_sha256(&Sha256::digest(&bytes).into());
        match digest {
            Some(digest) => check(&what, digest, &bytes)?,
            None => {
                // What the registry says it sent: a damaged transfer would show.
                if let Some(Ok(claimed)) = header(DIGEST_HEADER).map(str::parse::<Digest>)
                    && claimed.algorithm() == "sha256"
                {
                    check(&what, &claimed, &bytes)?;
                }
            }
        }
        let document = Document::parse(&what, &bytes, header(CONTENT_TYPE.as_str()))?;
        Ok((got, bytes, document))
    }

    /// A whole small body and its headers; a body that breaks off is asked for again.
    async fn small(&self, want: &Want, limit: u64) -> Result<(Vec<u8>, http::HeaderMap), ImageError> {
        let mut attempt = 1;
        loop {
            let response = self.client.request(&Method::GET, want).await.map_err(|error| self.wrap(error))?;
            let headers = response.headers().clone();
            let url = self.client.url(&want.path).parse().unwrap_or_default();
            match self.client.body(&url, response, limit).await {
                Ok(bytes) => return Ok((bytes, headers)),
                Err(error) if error.passes() && attempt < self.client.attempts() => {
                    self.client.wait(&error, attempt, None).await
                }
                Err(error) => return Err(self.wrap(error)),
            }
            attempt += 1;
        }
    }

    /// All layers, some at the same time, the largest first: it decides when the pull ends.
    async fn layers(&self, resolved: &Resolved) -> Result<(), ImageError> {
        // Owned: a stream of futures that borrow their own arguments cannot be proven to be `Send`.
        let mut layers: Vec<(Descriptor, Digest)> =
            resolved.manifest.layers.iter().cloned().zip(resolved.diff_ids.iter().cloned()).collect();
        self.progress.event(&ProgressEvent::Resolved {
            reference: &self.reference.to_string(),
            digest: &resolved.manifest_digest,
            layers: layers.len(),
            bytes: layers.iter().map(|(layer, _)| layer.size).fold(0, u64::saturating_add),
        });
        layers.sort_by_key(|(layer, _)| std::cmp::Reverse(layer.size));
        // An error drops the other downloads; their unpackers see a broken pipe and clean up, which is waited for: each holds
        // an end of a channel that nothing is sent on.
        let (working, mut all_gone) = mpsc::channel::<()>(1);
        let outcome =
            stream::iter(layers.into_iter().map(|(layer, diff_id)| self.layer(layer, diff_id, working.clone())))
                .buffer_unordered(self.options.parallel.max(1))
                .try_collect::<()>()
                .await;
        drop(working);
        let _ = all_gone.recv().await;
        outcome
    }

    async fn layer(&self, layer: Descriptor, diff_id: Digest, working: mpsc::Sender<()>) -> Result<(), ImageError> {
        let _turn = self.store.layer_locks().hold(diff_id.as_str()).await;
        let shared = self.store.has_layer(&diff_id);
        if !shared {
            let (sender, receiver) = mpsc::channel(FRAMES);
            let (store, diff_id, progress) = (self.store.clone(), diff_id.clone(), self.progress.clone());
            let descriptor = layer.clone();
            let layer = layer.clone();
            let unpacking = blocking(move || {
                let _working = working;
                let reader = Frames { receiver, frame: Bytes::new(), ended: false };
                let promise = Promise { digest: Some(&layer.digest), size: Some(layer.size), diff_id: &diff_id };
                store.add_layer(
                    &promise,
                    Watched { inner: reader, layer: &layer, progress: &*progress, done: 0, told: 0 },
                )
            });
            let (fetched, unpacked) = tokio::join!(self.fetch(&descriptor, sender), unpacking);
            // Whatever the unpacker says about a stream that broke is a consequence.
            fetched.map_err(|error| self.wrap(error))?;
            unpacked?;
        }
        self.progress.event(&ProgressEvent::LayerDone { digest: &layer.digest, shared });
        Ok(())
    }

    /// Sends a blob's bytes, going on where it broke off. Ends quietly when nobody listens any more.
    async fn fetch(&self, layer: &Descriptor, sender: mpsc::Sender<io::Result<Bytes>>) -> Result<(), RegistryError> {
        let mut done = 0;
        let (mut attempt, mut counted_from) = (1, 0);
        loop {
            let outcome = self.stretch(layer, &mut done, &sender).await;
            let error = match outcome {
                Ok(true) => {
                    // The end is said: a channel that merely closes would be a break.
                    let _ = sender.send(Ok(Bytes::new())).await;
                    return Ok(());
                }
                Ok(false) => return Ok(()),
                Err(error) => error,
            };
            if done - counted_from >= PROGRESS {
                (attempt, counted_from) = (1, done);
            }
            if !error.passes() || attempt >= self.client.attempts() {
                let _ = sender.send(Err(io::Error::other("the download broke off"))).await;
                return Err(error);
            }
            self.client.wait(&error, attempt, None).await;
            attempt += 1;
        }
    }

    /// One response's worth of a blob. `false`: nobody listens.
    async fn stretch(
        &self,
        layer: &Descriptor,
        done: &mut u64,
        sender: &mpsc::Sender<io::Result<Bytes>>,
    ) -> Result<bool, RegistryError> {
        // Always from the registry: an address it redirected to may have expired.
        let want = Want { path: format!("blobs/{}", layer.digest), accept: None, from: *done };
        let url = self.client.url(&want.path);
        let response = self.client.request(&Method::GET, &want).await?;
        let mut skip = 0;
        if *done > 0 {
            if response.status() == StatusCode::PARTIAL_CONTENT {
                let range =
                    response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
                if !range.starts_with(&format!("bytes {done}-")) {
                    return Err(RegistryError::Range { url, wanted: *done });
                }
            } else {
                // It knows no ranges and begins again.
                skip = *done;
            }
        }
        let mut body = response.into_body();
        let cut = |got: u64, source| RegistryError::Cut { url: url.clone(), got, expected: layer.size, source };
        loop {
            let mut frame = match self.client.frame(&url, &mut body).await {
                Ok(Some(frame)) => frame,
                Ok(None) if *done == layer.size => return Ok(true),
                Ok(None) => return Err(cut(*done, None)),
                Err(RegistryError::Cut { source, .. }) => return Err(cut(*done, source)),
                Err(error) => return Err(error),
            };
            let skipped = skip.min(frame.len() as u64);
            skip -= skipped;
            // The cast is safe: at most the frame's length.
            let _ = frame.split_to(usize::try_from(skipped).unwrap_or_default());
            if frame.is_empty() {
                continue;
            }
            *done += frame.len() as u64;
            if *done > layer.size {
                return Err(RegistryError::TooMuch { url, limit: layer.size });
            }
            if sender.send(Ok(frame)).await.is_err() {
                return Ok(false);
            }
        }
    }
}

/// The unpacker's end of the channel.
struct Frames {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    frame: Bytes,
    ended: bool,
}

impl Read for Frames {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.frame.is_empty() && !self.ended {
            self.frame =
                self.receiver.blocking_recv().unwrap_or_else(|| Err(io::Error::other("the download was given up")))?;
            self.ended = self.frame.is_empty();
        }
        let count = buffer.len().min(self.frame.len());
        buffer[..count].copy_from_slice(&self.frame.split_to(count));
        Ok(count)
    }
}
