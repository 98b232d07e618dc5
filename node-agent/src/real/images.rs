//! Images in the node's store.

use coracle_images::{Image, ImageError, ImageStore, PullPolicy, Reference};
use coracle_lifecycle::observed::ErrorClass;
use coracle_lifecycle::oci::ImageConfig;

use crate::facilities::{Doing, Failure, FoundImage, Images};

/// The store as a facility.
#[derive(Debug, Clone)]
pub struct StoreImages {
    store: ImageStore,
}

impl StoreImages {
    /// Over an open store.
    #[must_use]
    pub fn new(store: ImageStore) -> Self {
        Self { store }
    }
}

fn failure(error: &ImageError) -> Failure {
    Failure { reason: error.reason(), message: coracle_base::one_line(error), class: ErrorClass::Retry }
}

fn found(image: &Image) -> FoundImage {
    let config = image.config.config().as_ref();
    let list = |words: Option<&Option<Vec<String>>>| words.and_then(Clone::clone).unwrap_or_default();
    FoundImage {
        digest: image.digest.as_str().to_owned(),
        name: image.reference.to_string(),
        config: ImageConfig {
            entrypoint: list(config.map(|config| config.entrypoint())),
            command: list(config.map(|config| config.cmd())),
            env: list(config.map(|config| config.env())),
            user: config.and_then(|config| config.user().clone()).unwrap_or_default(),
            working_dir: config.and_then(|config| config.working_dir().clone()).unwrap_or_default(),
            stop_signal: config.and_then(|config| config.stop_signal().clone()),
        },
        layers: image.layers.clone(),
    }
}

impl Images for StoreImages {
    fn ensure(&self, name: &str, policy: &str) -> Doing<'_, Result<FoundImage, Failure>> {
        let policy = match policy {
            "Always" => PullPolicy::Always,
            "Never" => PullPolicy::Never,
            _ => PullPolicy::IfNotPresent,
        };
        let reference = name.parse::<Reference>().map_err(|error| Failure {
            reason: "InvalidImageName",
            message: coracle_base::one_line(&error),
            class: ErrorClass::Retry,
        });
        Box::pin(async move {
            let image = self.store.ensure(&reference?, policy).await.map_err(|error| failure(&error))?;
            Ok(found(&image))
        })
    }

    fn find(&self, reference: &str) -> Doing<'_, Option<FoundImage>> {
        let reference = reference.parse::<Reference>().ok();
        let store = self.store.clone();
        Box::pin(async move {
            let image = tokio::task::spawn_blocking(move || store.find(&reference?).ok().flatten()).await;
            image.ok().flatten().map(|image| found(&image))
        })
    }
}
