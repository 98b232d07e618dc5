//! The client's side of the OCI distribution specification 1.1, without logins.
//!
//! A pull resolves the name to a manifest, then streams all missing layers at once: network, hashing, inflating and writing
//! overlap. Nothing is believed: bodies are bounded, contents have the digest they were asked for by or are thrown away.

mod auth;
mod client;
mod error;
mod resolve;

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use coracle_base::Digest;
use futures_util::{StreamExt, TryStreamExt, stream};
use http::header::{CONTENT_RANGE, CONTENT_TYPE};
use http::{Method, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::sync::{OnceCell, mpsc};

use crate::error::ImageError;
use crate::frames;
use crate::manifest::{self, DOCUMENT_BYTES, Descriptor, Document, Manifest};
use crate::peers::{Holders, Meant};
use crate::progress::{Progress, ProgressEvent};
use crate::reference::Reference;
use crate::store::{ImageRecord, ImageStore, Origin, PullOptions, Resolved, Watched, blocking, check};
use crate::unpack::Promise;
use client::{Client, Want};
pub use error::RegistryError;

const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
const DIGEST_HEADER: &str = "docker-content-digest";
/// A download that got this far since it last broke may break again.
const PROGRESS: u64 = 1 << 20;

/// Whose word counts for what a name means. Contents are asked for at other nodes first in each case: a digest is a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// The registry's.
    Registry,
    /// That of a node where it was imported, or else the registry's.
    Imported,
    /// That of any node that has it, or else the registry's.
    Peers,
}

/// Fetches what is missing of an image.
pub(crate) async fn pull(
    store: &ImageStore,
    reference: &Reference,
    options: &PullOptions,
    progress: Arc<dyn Progress>,
    word: Word,
) -> Result<ImageRecord, ImageError> {
    let busy = {
        let store = store.clone();
        blocking(move || store.busy()).await?
    };
    let holders = store.peers().map(Holders::new);
    let puller = Puller { store, reference, options, client: OnceCell::new(), holders, progress };
    let outcome = puller.run(word).await;
    drop(busy);
    outcome.map_err(|error| puller.with_peers(error))
}

struct Puller<'a> {
    store: &'a ImageStore,
    reference: &'a Reference,
    options: &'a PullOptions,
    /// Connected when other nodes could not help.
    client: OnceCell<Client>,
    holders: Option<Holders>,
    progress: Arc<dyn Progress>,
}

/// What other nodes say about a name.
enum Meaning {
    /// What is here is it.
    Here(Box<ImageRecord>),
    /// These contents.
    Digest(Digest, Origin),
    /// Nothing.
    Unknown,
}

impl Puller<'_> {
    async fn run(&self, word: Word) -> Result<ImageRecord, ImageError> {
        let (resolved, origin) = match self.meaning(word).await? {
            Meaning::Here(record) => return Ok(*record),
            Meaning::Digest(digest, origin) => (self.resolve(Some(&digest)).await?, origin),
            Meaning::Unknown => {
                if let Some(record) = self.unchanged().await? {
                    return Ok(record);
                }
                if let (Some(holders), Some(_)) = (&self.holders, self.reference.digest()) {
                    holders.seek(self.reference, false);
                }
                (self.resolve(self.reference.digest()).await?, Origin::default())
            }
        };
        self.layers(&resolved, &origin).await?;
        let (store, reference) = (self.store.clone(), self.reference.clone());
        blocking(move || store.name(&reference, &resolved, origin)).await
    }

    /// What other nodes say the name means.
    async fn meaning(&self, word: Word) -> Result<Meaning, ImageError> {
        let Some(holders) = self.holders.as_ref().filter(|_| word != Word::Registry) else {
            return Ok(Meaning::Unknown);
        };
        if self.reference.digest().is_some() {
            return Ok(Meaning::Unknown);
        }
        // Imported somewhere else, and brought here before.
        let ours = self.store.known(self.reference)?.filter(|record| record.imported);
        let said = holders.meaning(self.reference, word == Word::Peers).await;
        match (ours, said) {
            (Some(ours), said) if !said.as_ref().is_some_and(|said| is_newer(said, &ours)) => {
                if self.store.find(self.reference).is_ok_and(|image| image.is_some()) {
                    return Ok(Meaning::Here(Box::new(ours)));
                }
                let digest = ours.index.unwrap_or(ours.digest);
                holders.seek(&self.reference.with_digest(digest.clone()), false);
                let origin = Origin { imported: true, imported_ms: ours.imported_ms, peer: ours.peer };
                Ok(Meaning::Digest(digest, origin))
            }
            (_, Some(Meant { digest, imported, imported_ms, node })) => {
                Ok(Meaning::Digest(digest, Origin { imported, imported_ms, peer: Some(node) }))
            }
            (_, None) => Ok(Meaning::Unknown),
        }
    }

    /// The registry's client.
    async fn client(&self) -> Result<&Client, ImageError> {
        let connect = || Client::connect(self.reference, self.options, self.progress.clone());
        self.client.get_or_try_init(connect).await.map_err(|error| self.wrap(error))
    }

    /// An error of the registry, with what other nodes said before it.
    fn with_peers(&self, error: ImageError) -> ImageError {
        let said = self.holders.as_ref().and_then(Holders::said);
        match (error, said) {
            (error @ (ImageError::Pull { .. } | ImageError::NoSuchImage { .. }), Some(said)) => {
                ImageError::Peers { reference: self.reference.to_string(), said, source: Box::new(error) }
            }
            (error, _) => error,
        }
    }

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
        let Ok(response) = self.client().await?.request(&Method::HEAD, &want).await else { return Ok(None) };
        let digest =
            response.headers().get(DIGEST_HEADER).and_then(|value| value.to_str().ok()?.parse::<Digest>().ok());
        let same = digest.is_some_and(|digest| record.index.as_ref().unwrap_or(&record.digest) == &digest);
        // The same name for contents that are damaged here is no reason to be content.
        let whole = same && self.store.find(self.reference).is_ok_and(|image| image.is_some());
        Ok(whole.then_some(record))
    }

    /// From the name, or what it is known to mean, to a manifest for this platform and its configuration.
    async fn resolve(&self, meant: Option<&Digest>) -> Result<Resolved, ImageError> {
        let name = self.reference.to_string();
        let (mut digest, mut bytes, mut document) = self.document(meant, self.reference.tag()).await?;
        if let (Some(holders), None) = (&self.holders, meant) {
            // What the tag means is known now, and others may have it.
            holders.seek(&self.reference.with_digest(digest.clone()), true);
        }
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
        let config_bytes = match self.of_holders("blobs", &manifest.config.digest).await {
            Some(bytes) => bytes,
            None => {
                let want = Want { path: format!("blobs/{}", manifest.config.digest), ..Want::default() };
                self.small(&want, DOCUMENT_BYTES).await?.0
            }
        };
        check(&what, &manifest.config.digest, &config_bytes)?;
        let (_, diff_ids) =
            manifest::config(&self.reference.to_string(), &manifest, &config_bytes, &self.options.platform)?;
        Ok(Resolved { index, manifest_digest, manifest_bytes, manifest, config_bytes, diff_ids })
    }

    async fn of_holders(&self, kind: &str, digest: &Digest) -> Option<Vec<u8>> {
        self.holders.as_ref()?.document(kind, digest).await
    }

    /// A manifest or an index, by digest or by tag.
    async fn document(
        &self,
        digest: Option<&Digest>,
        tag: Option<&str>,
    ) -> Result<(Digest, Vec<u8>, Document), ImageError> {
        if let Some(digest) = digest
            && let Some(bytes) = self.of_holders("manifests", digest).await
        {
            let document = Document::parse(&format!("manifest {digest}"), &bytes, None)?;
            return Ok((digest.clone(), bytes, document));
        }
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
        let client = self.client().await?;
        let mut attempt = 1;
        loop {
            let response = client.request(&Method::GET, want).await.map_err(|error| self.wrap(error))?;
            let headers = response.headers().clone();
            let url = client.url(&want.path).parse().unwrap_or_default();
            match client.body(&url, response, limit).await {
                Ok(bytes) => return Ok((bytes, headers)),
                Err(error) if error.passes() && attempt < client.attempts() => client.wait(&error, attempt, None).await,
                Err(error) => return Err(self.wrap(error)),
            }
            attempt += 1;
        }
    }

    /// All layers, some at the same time, the largest first: it decides when the pull ends.
    async fn layers(&self, resolved: &Resolved, origin: &Origin) -> Result<(), ImageError> {
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
        let outcome = stream::iter(
            layers.into_iter().map(|(layer, diff_id)| self.layer(layer, diff_id, origin.imported, working.clone())),
        )
        .buffer_unordered(self.options.parallel.max(1))
        .try_collect::<()>()
        .await;
        drop(working);
        let _ = all_gone.recv().await;
        outcome
    }

    /// One layer: from here, from another node, from the registry. `always` keeps it as it came, however little room there is.
    async fn layer(
        &self,
        layer: Descriptor,
        diff_id: Digest,
        always: bool,
        working: mpsc::Sender<()>,
    ) -> Result<(), ImageError> {
        let _turn = self.store.layer_locks().hold(diff_id.as_str()).await;
        let shared = self.store.has_layer(&diff_id);
        if !shared {
            let keep = always || self.store.has_room();
            if !self.layer_from_holders(&layer, &diff_id, keep, &working).await? {
                self.layer_from_registry(&layer, &diff_id, keep, working).await?;
            }
        }
        self.progress.event(&ProgressEvent::LayerDone { digest: &layer.digest, shared });
        Ok(())
    }

    /// `false` when no other node has it. It is checked as a whole before any of it is unpacked: a node that lies costs a
    /// transfer, and the next one is asked.
    async fn layer_from_holders(
        &self,
        layer: &Descriptor,
        diff_id: &Digest,
        keep: bool,
        working: &mpsc::Sender<()>,
    ) -> Result<bool, ImageError> {
        let Some(holders) = &self.holders else { return Ok(false) };
        let Some(received) = holders.layer(self.store, layer, &self.progress, working).await? else {
            return Ok(false);
        };
        let (store, layer, diff_id, working) = (self.store.clone(), layer.clone(), diff_id.clone(), working.clone());
        let unpacked = blocking(move || {
            let _working = working;
            let promise = Promise { digest: Some(&layer.digest), size: Some(layer.size), diff_id: &diff_id };
            store.add_layer(&promise, received.open()?, None)?;
            if keep { store.keep(&received) } else { Ok(()) }
        });
        unpacked.await.map(|()| true)
    }

    async fn layer_from_registry(
        &self,
        layer: &Descriptor,
        diff_id: &Digest,
        keep: bool,
        working: mpsc::Sender<()>,
    ) -> Result<(), ImageError> {
        let client = self.client().await?;
        let (sender, frames) = frames::channel();
        let (store, diff_id, progress) = (self.store.clone(), diff_id.clone(), self.progress.clone());
        let promised = layer.clone();
        let unpacking = blocking(move || {
            let _working = working;
            let promise = Promise { digest: Some(&promised.digest), size: Some(promised.size), diff_id: &diff_id };
            let reader = Watched { inner: frames, layer: &promised, progress: &*progress, done: 0, told: 0 };
            store.add_layer(&promise, reader, keep.then_some(&promised.digest))
        });
        let (fetched, unpacked) = tokio::join!(self.fetch(client, layer, sender), unpacking);
        // Whatever the unpacker says about a stream that broke is a consequence.
        fetched.map_err(|error| self.wrap(error))?;
        unpacked
    }

    /// Sends a blob's bytes, going on where it broke off. Ends quietly when nobody listens any more.
    async fn fetch(&self, client: &Client, layer: &Descriptor, sender: frames::Sender) -> Result<(), RegistryError> {
        let mut done = 0;
        let (mut attempt, mut counted_from) = (1, 0);
        loop {
            let outcome = self.stretch(client, layer, &mut done, &sender).await;
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
            if !error.passes() || attempt >= client.attempts() {
                let _ = sender.send(Err(io::Error::other("the download broke off"))).await;
                return Err(error);
            }
            client.wait(&error, attempt, None).await;
            attempt += 1;
        }
    }

    /// One response's worth of a blob. `false`: nobody listens.
    async fn stretch(
        &self,
        client: &Client,
        layer: &Descriptor,
        done: &mut u64,
        sender: &frames::Sender,
    ) -> Result<bool, RegistryError> {
        // Always from the registry: an address it redirected to may have expired.
        let want = Want { path: format!("blobs/{}", layer.digest), accept: None, from: *done };
        let url = client.url(&want.path);
        let response = client.request(&Method::GET, &want).await?;
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
            let mut frame = match client.frame(&url, &mut body).await {
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

/// Whether another node's import came after the one we have; its clock against that of the node ours is from.
fn is_newer(said: &Meant, ours: &ImageRecord) -> bool {
    said.imported && said.imported_ms > ours.imported_ms
}
