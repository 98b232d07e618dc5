//! Pulls from honest registries and from hostile ones.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle_base::one_line;
use coracle_images::builder::{Attributes, Compress, LayerBuilder, Layout, RunConfig};
use coracle_images::{ImageError, ImageStore, Platform, PullOptions, PullPolicy, Quiet, Reference, StoreOptions};
use support::{Body, Hook, Registry, Reply, sample};

/// A scratch directory with a layout and a store.
struct Lab {
    dir: tempfile::TempDir,
    store: ImageStore,
    options: PullOptions,
}

impl Lab {
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: layers have owners, so this test needs root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let options = PullOptions { backoff_ms: 5, stall_ms: 5_000, ..PullOptions::default() };
        let store = ImageStore::open_with(
            dir.path().join("store"),
            StoreOptions { pull: options.clone(), ..StoreOptions::default() },
        )
        .unwrap();
        sample(&dir.path().join("oci"));
        Some(Self { dir, store, options })
    }

    fn oci(&self) -> std::path::PathBuf {
        self.dir.path().join("oci")
    }

    async fn registry(
        &self,
        hook: impl Fn(&support::Asked, usize) -> Option<Reply> + Send + Sync + 'static,
    ) -> Registry {
        let hook: Hook = Box::new(hook);
        Registry::start(&self.oci(), hook).await
    }

    async fn pull(&self, reference: &Reference) -> Result<coracle_images::ImageRecord, ImageError> {
        self.store.pull(reference, &self.options, Arc::new(Quiet)).await
    }

    /// The error of a pull from a registry with this hook, in one line; and that it left nothing.
    async fn refused(&self, hook: impl Fn(&support::Asked, usize) -> Option<Reply> + Send + Sync + 'static) -> String {
        let registry = self.registry(hook).await;
        let outcome = tokio::time::timeout(Duration::from_secs(20), self.pull(&registry.name("app:1"))).await;
        let error = one_line(&outcome.expect("a hostile registry cannot hold us").unwrap_err());
        assert!(self.store.list().unwrap().is_empty());
        assert_eq!(std::fs::read_dir(self.store.dir().join("ingest")).unwrap().count(), 0);
        error
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_pulled_and_asked_about_only_when_it_must_be() {
    let Some(lab) = Lab::new() else { return };
    let registry = lab.registry(|_, _| None).await;
    let name = registry.name("app:1");
    let image = lab.store.ensure(&name, PullPolicy::IfNotPresent).await.unwrap();
    assert_eq!(image.layers.len(), 2);
    assert_eq!(std::fs::read(image.layers[1].join("etc/app")).unwrap(), b"app");
    assert_eq!(std::fs::read(image.layers[0].join("data/noise")).unwrap().len(), 1 << 20);
    let (gets, blobs) = (registry.count("GET", "/manifests/"), registry.count("GET", "/blobs/"));
    assert_eq!((gets, blobs), (1, 3));
    lab.store.ensure(&name, PullPolicy::IfNotPresent).await.unwrap();
    let by_digest = name.with_digest(image.digest.clone());
    lab.store.ensure(&by_digest, PullPolicy::Always).await.unwrap();
    assert_eq!(registry.count("HEAD", ""), 0, "a digest that is here is not asked about");
    lab.store.ensure(&name, PullPolicy::Always).await.unwrap();
    assert_eq!(registry.count("HEAD", "/manifests/1"), 1);
    assert_eq!((registry.count("GET", "/manifests/"), registry.count("GET", "/blobs/")), (gets, blobs));
    assert!(!lab.store.list().unwrap()[0].imported);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_local_image_is_pulled_again() {
    let Some(lab) = Lab::new() else { return };
    let registry = lab.registry(|_, _| None).await;
    let name = registry.name("app:1");
    let image = lab.store.ensure(&name, PullPolicy::IfNotPresent).await.unwrap();
    let manifest = lab.store.dir().join("blobs/sha256").join(image.digest.hex());
    std::fs::write(&manifest, "{").unwrap();
    assert!(matches!(lab.store.find(&name).unwrap_err(), ImageError::Corrupt { .. }));
    std::fs::remove_dir_all(image.layers[0].parent().unwrap()).unwrap();
    let image = lab.store.ensure(&name, PullPolicy::IfNotPresent).await.unwrap();
    assert!(image.layers[0].join("data/noise").exists());
    assert_eq!(lab.store.find(&name).unwrap().unwrap().digest, image.digest);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pods_share_one_pull() {
    let Some(lab) = Lab::new() else { return };
    let registry = lab.registry(|_, _| None).await;
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (store, name) = (lab.store.clone(), registry.name("app:1"));
            tokio::spawn(
                async move { store.ensure(&name, PullPolicy::IfNotPresent).await.map(|image| image.layers.len()) },
            )
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap().unwrap(), 2);
    }
    assert_eq!(registry.count("GET", "/blobs/"), 3, "a configuration and two layers, once each");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_right_manifest_of_an_index_is_pulled() {
    let Some(lab) = Lab::new() else { return };
    let layout = Layout::create(lab.oci()).unwrap();
    let images: Vec<_> = ["arm64", "amd64"]
        .iter()
        .map(|architecture| {
            let mut layer = LayerBuilder::new();
            layer.file("arch", *architecture, Attributes::mode(0o644));
            let platform =
                Platform { os: "linux".into(), architecture: (*architecture).into(), variant: String::new() };
            (platform, RunConfig::default(), vec![layout.layer(&layer, Compress::Gzip).unwrap()])
        })
        .collect();
    let digest = layout.index("example.com/multi:2", &images).unwrap();
    let registry = lab.registry(|_, _| None).await;
    let arm = PullOptions { platform: images[0].0.clone(), ..lab.options.clone() };
    let store =
        ImageStore::open_with(lab.dir.path().join("arm"), StoreOptions { pull: arm, ..StoreOptions::default() })
            .unwrap();
    let image = store.ensure(&registry.name("multi:2"), PullPolicy::IfNotPresent).await.unwrap();
    assert_eq!(std::fs::read(image.layers[0].join("arch")).unwrap(), b"arm64");
    assert_eq!(store.list().unwrap()[0].index.as_ref(), Some(&digest));
    // The index' digest is a name for the image too.
    assert!(store.find(&registry.name("multi").with_digest(digest)).unwrap().is_some());
    let other = PullOptions {
        platform: Platform { os: "linux".into(), architecture: "s390x".into(), variant: String::new() },
        ..lab.options.clone()
    };
    let error = lab.store.pull(&registry.name("multi:2"), &other, Arc::new(Quiet)).await.unwrap_err().to_string();
    assert!(error.contains("has nothing for linux/s390x; it is there for linux/arm64, linux/amd64\n"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_fetched_when_the_registry_asks_for_one() {
    let Some(lab) = Lab::new() else { return };
    // The realm needs the address, which is known only after the start.
    let realm = Arc::new(Mutex::new(String::new()));
    let shared = realm.clone();
    let registry = lab
        .registry(move |asked, _| {
            if asked.path.starts_with("/token?") {
                assert!(
                    asked.path.contains("service=lab") && asked.path.contains("scope=repository:app:pull"),
                    "{}",
                    asked.path
                );
                assert!(!asked.headers.contains_key("authorization"), "there is no password to send");
                return Some(Reply::new(200, r#"{"access_token":"t0k3n","expires_in":60}"#));
            }
            if asked.path == "/v2/" || asked.headers.get("authorization").map(String::as_str) == Some("Bearer t0k3n") {
                return None;
            }
            let challenge =
                format!(r#"Bearer realm="{}",service="lab",scope="repository:app:pull""#, shared.lock().unwrap());
            Some(Reply::new(401, "{}").header("www-authenticate", challenge))
        })
        .await;
    *realm.lock().unwrap() = format!("http://{}/token", registry.address);
    lab.pull(&registry.name("app:1")).await.unwrap();
    assert_eq!(registry.count("GET", "/token"), 1, "one token serves all requests");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_service_that_may_not_be_asked_is_not() {
    let Some(lab) = Lab::new() else { return };
    let challenge = |realm: &str| format!(r#"Bearer realm="{realm}""#);
    for (realm, words) in [
        ("http://198.51.100.7/token", "does not use TLS"),
        ("file:///etc/passwd", "no address"),
        ("ftp://a.b/token", "no https address"),
    ] {
        let challenge = challenge(realm);
        let error = lab
            .refused(move |asked, _| {
                (asked.path != "/v2/").then(|| Reply::new(401, "{}").header("www-authenticate", challenge.clone()))
            })
            .await;
        assert!(error.contains(words), "{error}");
    }
    let error = lab
        .refused(|asked, _| {
            (asked.path != "/v2/").then(|| Reply::new(401, r#"{"errors":[{"message":"who are you?"}]}"#))
        })
        .await;
    assert!(error.contains("who are you?") && error.contains("login"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn authorization_stays_with_its_host() {
    let Some(lab) = Lab::new() else { return };
    let depot = lab.registry(|_, _| None).await;
    let (realm, elsewhere) = (Arc::new(Mutex::new(String::new())), depot.address);
    let shared = realm.clone();
    let registry = lab
        .registry(move |asked, _| {
            if asked.path == "/v2/" {
                return None;
            }
            if asked.path.starts_with("/token") {
                return Some(Reply::new(200, r#"{"token":"secret"}"#));
            }
            if !asked.headers.contains_key("authorization") {
                let challenge = format!(r#"Bearer realm="{}""#, shared.lock().unwrap());
                return Some(Reply::new(401, "").header("www-authenticate", challenge));
            }
            // Blobs lie elsewhere, behind a relative and an absolute redirect.
            if asked.path.contains("/blobs/") && !asked.path.starts_with("/moved") {
                return Some(Reply::new(307, "").header("location", format!("/moved{}", asked.path)));
            }
            let path = asked.path.strip_prefix("/moved")?;
            Some(Reply::new(302, "").header("location", format!("http://{elsewhere}{path}")))
        })
        .await;
    *realm.lock().unwrap() = format!("http://{}/token", registry.address);
    lab.pull(&registry.name("app:1")).await.unwrap();
    assert_eq!(depot.count("GET", "/blobs/"), 3);
    assert!(depot.asked.lock().unwrap().iter().all(|asked| !asked.headers.contains_key("authorization")));
    let moved = |asked: &support::Asked| asked.path.starts_with("/moved");
    assert!(
        registry
            .asked
            .lock()
            .unwrap()
            .iter()
            .filter(|asked| moved(asked))
            .all(|asked| asked.headers.contains_key("authorization"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_end() {
    let Some(lab) = Lab::new() else { return };
    let error = lab
        .refused(|asked, _| {
            asked.path.contains("manifests").then(|| Reply::new(302, "").header("location", asked.path.clone()))
        })
        .await;
    assert!(error.contains("ten redirects"), "{error}");
    for target in ["http://198.51.100.7/x", "ftp://a.b/x", "", "file:///etc/passwd"] {
        let error = lab
            .refused(move |asked, _| {
                asked.path.contains("manifests").then(|| Reply::new(302, "").header("location", target))
            })
            .await;
        assert!(error.contains("which is not followed"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_that_are_not_what_was_asked_for_are_thrown_away() {
    let Some(lab) = Lab::new() else { return };
    let (_, small, _) = sample(&lab.oci());
    // The right size, one byte wrong; the right digest is of another blob.
    let mut wrong = std::fs::read(lab.oci().join("blobs/sha256").join(small.digest.hex())).unwrap();
    *wrong.last_mut().unwrap() ^= 1;
    let digest = small.digest.clone();
    let error = lab
        .refused(move |asked, _| asked.path.ends_with(digest.as_str()).then(|| Reply::new(200, wrong.clone())))
        .await;
    assert!(error.contains("is corrupt") && error.contains(small.digest.as_str()), "{error}");
    let error = lab
        .refused(|asked, _| {
            asked.path.contains("/manifests/").then(|| {
                Reply::new(200, r#"{"schemaVersion":2}"#)
                    .header("docker-content-digest", format!("sha256:{}", "00".repeat(32)))
            })
        })
        .await;
    assert!(error.contains("manifest 1 is corrupt"), "{error}");
    let both = r#"{"manifests":[],"layers":[],"config":{}}"#;
    let error = lab.refused(move |asked, _| asked.path.contains("/manifests/").then(|| Reply::new(200, both))).await;
    assert!(error.contains("two ways"), "{error}");
    let error = lab
        .refused(|asked, _| asked.path.contains("/blobs/").then(|| Reply::new(200, vec![b' '; (4 << 20) + 1])))
        .await;
    assert!(error.contains("gives more than 4194304 bytes") || error.contains("corrupt"), "{error}");
    let error = lab
        .refused(|asked, _| asked.path.contains("/manifests/").then(|| Reply::new(200, vec![b' '; (4 << 20) + 1])))
        .await;
    assert!(error.contains("gives more than 4194304 bytes"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_without_end_are_cut() {
    let Some(lab) = Lab::new() else { return };
    let endless = |part: &'static str| {
        move |asked: &support::Asked, _: usize| {
            asked.path.contains(part).then(|| Reply::new(200, "").body(Body::Endless(vec![0x1f; 64 << 10])))
        }
    };
    assert!(lab.refused(endless("/manifests/")).await.contains("gives more than"));
    let (_, _, large) = sample(&lab.oci());
    let path = Box::leak(large.digest.to_string().into_boxed_str());
    let error = lab.refused(endless(path)).await;
    assert!(error.contains(&format!("gives more than {} bytes", large.size)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_is_resumed() {
    let Some(lab) = Lab::new() else { return };
    let (_, _, large) = sample(&lab.oci());
    let bytes = std::fs::read(lab.oci().join("blobs/sha256").join(large.digest.hex())).unwrap();
    for (at, ranges) in [true, false].into_iter().enumerate() {
        let (bytes, digest) = (bytes.clone(), large.digest.clone());
        let registry = lab
            .registry(move |asked, before| {
                if !asked.path.ends_with(digest.as_str()) {
                    return None;
                }
                let from: usize = asked
                    .headers
                    .get("range")
                    .map_or(0, |range| range["bytes=".len()..].trim_end_matches('-').parse().unwrap());
                let start = if ranges { from } else { 0 };
                if before >= 3 {
                    // A registry that knows ranges goes on; another one begins anew.
                    return if ranges { None } else { Some(Reply::new(200, bytes.clone())) };
                }
                // 0.2 MB, then up to 0.6 MB, then up to 1 MB: the last byte is never sent before the fourth time.
                let part = bytes[start..(bytes.len() - 1).min(start + 200_000 * (before + 1))].to_vec();
                let reply = Reply::new(if start > 0 { 206 } else { 200 }, "");
                let reply = reply.header("content-range", format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len()));
                Some(reply.body(Body::Cut(part, bytes.len() - start)))
            })
            .await;
        let store = ImageStore::open(lab.dir.path().join(format!("resume-{at}"))).unwrap();
        store.pull(&registry.name("app:1"), &lab.options, Arc::new(Quiet)).await.unwrap();
        assert_eq!(registry.count("GET", large.digest.as_str()), 4);
        let image = store.find(&registry.name("app:1")).unwrap().unwrap();
        assert_eq!(std::fs::metadata(image.layers[0].join("data/noise")).unwrap().len(), 1 << 20);
    }
    // A range that is not the one asked for would put bytes at the wrong place.
    let (bytes, digest) = (bytes, large.digest.clone());
    let error = lab
        .refused(move |asked, before| {
            let reply = || match before {
                0 => Reply::new(200, "").body(Body::Cut(bytes[..1000].to_vec(), bytes.len())),
                _ => Reply::new(206, &bytes[..10]).header("content-range", "bytes 0-9/10"),
            };
            asked.path.ends_with(digest.as_str()).then(reply)
        })
        .await;
    assert!(error.contains("another range than bytes 1000-"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_busy_is_asked_again_and_not_for_ever() {
    let Some(lab) = Lab::new() else { return };
    let registry = lab
        .registry(|asked, before| match (asked.path.contains("/manifests/"), before) {
            (true, 0) => Some(Reply::new(429, "").header("retry-after", "0")),
            (true, 1) => Some(Reply::new(503, "")),
            _ => None,
        })
        .await;
    lab.pull(&registry.name("app:1")).await.unwrap();
    assert_eq!(registry.count("GET", "/manifests/"), 3);
    let Some(lab) = Lab::new() else { return };
    let registry = lab
        .registry(|asked, _| {
            asked.path.contains("/manifests/").then(|| Reply::new(500, r#"{"errors":[{"message":"fire"}]}"#))
        })
        .await;
    let error = one_line(&lab.pull(&registry.name("app:1")).await.unwrap_err());
    assert!(error.contains("answers 500: fire"), "{error}");
    assert_eq!(registry.count("GET", "/manifests/"), 6);
    // Told no, nobody asks again.
    let registry = lab.registry(|_, _| None).await;
    let error = lab.pull(&registry.name("other:7")).await.unwrap_err();
    assert!(matches!(error, ImageError::NoSuchImage { .. }), "{error}");
    assert_eq!(registry.count("GET", "/manifests/"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_not_waited_for() {
    let Some(mut lab) = Lab::new() else { return };
    lab.options = PullOptions { stall_ms: 150, attempts: 2, ..lab.options };
    let error = lab
        .refused(|asked, _| asked.path.contains("/manifests/").then(|| Reply::new(200, "").body(Body::Silence)))
        .await;
    assert!(error.contains("was silent for 150 ms"), "{error}");
    let error =
        lab.refused(|asked, _| asked.path.contains("/blobs/").then(|| Reply::new(200, "").body(Body::Silence))).await;
    assert!(error.contains("was silent for 150 ms"), "{error}");
}

/// A registry behind TLS, and the certificate to trust.
async fn tls(lab: &Lab, hook: Hook) -> (Registry, String) {
    let signed = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(signed.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![signed.cert.der().clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    (Registry::start_with(&lab.oci(), hook, Some(acceptor)).await, signed.cert.pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_leads_to_nothing_without() {
    let Some(lab) = Lab::new() else { return };
    let depot = lab.registry(|_, _| None).await;
    let elsewhere = depot.address;
    let hook = move |asked: &support::Asked, _| {
        let moved = || Reply::new(307, "").header("location", format!("http://{elsewhere}{}", asked.path));
        asked.path.contains("/blobs/").then(moved)
    };
    let (registry, pem) = tls(&lab, Box::new(hook)).await;
    let options = PullOptions { extra_ca_pem: vec![pem], ..lab.options.clone() };
    let outcome = lab.store.pull(&registry.name("app:1"), &options, Arc::new(Quiet)).await;
    let error = one_line(&outcome.unwrap_err());
    assert!(error.contains("which is not followed: it does not use TLS"), "{error}");
    assert_eq!(depot.count("GET", ""), 0, "nobody may have us ask what listens on the loopback");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_needs_a_known_authority() {
    let Some(lab) = Lab::new() else { return };
    let (registry, pem) = tls(&lab, Box::new(|_, _| None)).await;
    let name = registry.name("app:1");
    assert!(lab.pull(&name).await.is_err(), "nobody vouches for it");
    let options = PullOptions { extra_ca_pem: vec![pem], ..lab.options.clone() };
    lab.store.pull(&name, &options, Arc::new(Quiet)).await.unwrap();
    let options = PullOptions {
        extra_ca_pem: vec!["-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n".into()],
        ..lab.options.clone()
    };
    let error = one_line(&lab.store.pull(&name, &options, Arc::new(Quiet)).await.unwrap_err());
    assert!(error.contains("certificate authority"), "{error}");
}
