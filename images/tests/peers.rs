//! Nodes that hand images to each other over loopback: honest ones, lying ones, dying ones and strangers.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "the registry's worst habits are for other tests")]
mod support;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coracle_base::one_line;
use coracle_images::builder::{Attributes, Compress, LayerBuilder, Layout, RunConfig};
use coracle_images::peers::{BlobServer, Locate, Peer, PeerIdentity, Peers};
use coracle_images::{
    Image, ImageError, ImageStore, Platform, PullOptions, PullPolicy, Quiet, Reference, StoreOptions,
};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use support::{Body, Hook, Registry, Reply, sample};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

const APP: &str = "example.com/app:1";

/// An authority.
struct Pki {
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test-ca");
        let ca_pem = params.self_signed(&key).unwrap().pem();
        Self { ca_pem, issuer: Issuer::new(params, key) }
    }

    fn identity(&self, user: &str, group: &str) -> PeerIdentity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, user);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        PeerIdentity { cert_pem: cert.pem(), key_pem: key.serialize_pem(), ca_pem: self.ca_pem.clone() }
    }

    fn node(&self, name: &str) -> PeerIdentity {
        self.identity(&format!("system:node:{name}"), "system:nodes")
    }

    fn chain(identity: &PeerIdentity) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes()).map(Result::unwrap).collect();
        (chain, PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).unwrap())
    }

    /// A node whose answers a test writes.
    async fn actor(&self, name: &str, layout: &std::path::Path, hook: Hook) -> (Peer, Registry) {
        let (chain, key) = Self::chain(&self.node(name));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let registry = Registry::start_with(layout, hook, Some(acceptor)).await;
        (peer(name, registry.address), registry)
    }
}

fn peer(node: &str, address: SocketAddr) -> Peer {
    Peer { node: node.into(), address, listed: true }
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

/// Whom a node is told to ask; counts the questions.
#[derive(Clone, Default)]
struct Known(Arc<Mutex<(Vec<Peer>, usize)>>);

impl Known {
    fn set(&self, peers: &[Peer]) {
        self.0.lock().unwrap().0 = peers.to_vec();
    }

    fn asked(&self) -> usize {
        self.0.lock().unwrap().1
    }
}

impl Locate for Known {
    fn candidates(&self, _: &Reference) -> Vec<Peer> {
        let mut known = self.0.lock().unwrap();
        known.1 += 1;
        known.0.clone()
    }
}

/// A node: a store that is served and that asks others.
struct Machine {
    name: &'static str,
    store: ImageStore,
    known: Known,
    address: SocketAddr,
    identity: watch::Sender<PeerIdentity>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Machine {
    fn peer(&self) -> Peer {
        peer(self.name, self.address)
    }

    async fn import(&self, path: impl Into<PathBuf>) -> Image {
        self.store.import(&path.into(), Arc::new(Quiet)).await.unwrap();
        self.store.find(&reference(APP)).unwrap().unwrap()
    }

    async fn ensure(&self, name: &str, policy: PullPolicy) -> Result<Image, ImageError> {
        tokio::time::timeout(Duration::from_secs(60), self.store.ensure(&reference(name), policy)).await.unwrap()
    }

    fn has_blob(&self, digest: &coracle_base::Digest) -> bool {
        self.store.dir().join("blobs/sha256").join(digest.hex()).exists()
    }
}

struct Lab {
    dir: tempfile::TempDir,
    pki: Pki,
}

impl Lab {
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            println!("SKIP: layers have owners, so this test needs root");
            return None;
        }
        let lab = Self { dir: tempfile::tempdir().unwrap(), pki: Pki::new() };
        sample(&lab.oci());
        Some(lab)
    }

    fn oci(&self) -> PathBuf {
        self.dir.path().join("oci")
    }

    async fn machine(&self, name: &'static str) -> Machine {
        self.machine_as(name, self.pki.node(name)).await
    }

    async fn machine_as(&self, name: &'static str, identity: PeerIdentity) -> Machine {
        let pull = PullOptions { backoff_ms: 5, attempts: 2, stall_ms: 5_000, ..PullOptions::default() };
        let options = StoreOptions { pull, blob_reserve_percent: 0, ..StoreOptions::default() };
        let store = ImageStore::open_with(self.dir.path().join(name), options).unwrap();
        let (identity, shown) = watch::channel(identity);
        let server = BlobServer::bind(store.clone(), "127.0.0.1:0".parse().unwrap(), shown.clone()).await.unwrap();
        let address = server.address().unwrap();
        let known = Known::default();
        let patience = (Duration::from_secs(2), Duration::from_millis(500));
        store.ask_peers(Peers::new(Arc::new(known.clone()), shown).with_timeouts(patience.0, patience.1));
        Machine { name, store, known, address, identity, task: tokio::spawn(server.run()) }
    }

    /// The large layer and its bytes.
    fn large(&self) -> (coracle_base::Digest, Vec<u8>) {
        let (_, _, large) = sample(&self.oci());
        let bytes = std::fs::read(self.oci().join("blobs/sha256").join(large.digest.hex())).unwrap();
        (large.digest, bytes)
    }

    /// What an actor must say about the name before anything else is asked of it.
    fn meaning(&self) -> String {
        let index: serde_json::Value =
            serde_json::from_slice(&std::fs::read(self.oci().join("index.json")).unwrap()).unwrap();
        serde_json::json!({"digest": index["manifests"][0]["digest"], "imported": true, "importedMs": 1}).to_string()
    }

    fn refs(&self) -> impl Fn(&support::Asked) -> Option<Reply> + Send + Sync + 'static {
        let meaning = self.meaning();
        move |asked| asked.path.contains("/refs/").then(|| Reply::new(200, meaning.clone()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_imported_on_one_node_runs_on_the_others() {
    let Some(lab) = Lab::new() else { return };
    let (a, b, c) = (lab.machine("a").await, lab.machine("b").await, lab.machine("c").await);
    let imported = a.import(lab.oci()).await;
    b.known.set(&[a.peer()]);
    let image = b.ensure(APP, PullPolicy::IfNotPresent).await.unwrap();
    assert_eq!(image.digest, imported.digest);
    assert_eq!(std::fs::metadata(image.layers[0].join("data/noise")).unwrap().len(), 1 << 20);
    assert_eq!(std::fs::read(image.layers[1].join("etc/app")).unwrap(), b"app");
    let record = b.store.list().unwrap().remove(0);
    assert_eq!((record.imported, record.peer.as_deref()), (true, Some("a")));
    // The name's owner is gone; who got it from there hands it on.
    drop(a);
    c.known.set(&[b.peer()]);
    let by_digest = format!("example.com/other@{}", imported.digest);
    assert_eq!(c.ensure(&by_digest, PullPolicy::Always).await.unwrap().digest, imported.digest);
    for machine in [&b, &c] {
        assert_eq!(std::fs::read_dir(machine.store.dir().join("ingest")).unwrap().count(), 0);
    }
    // Compressed layers go with their image.
    let (large, _) = lab.large();
    assert!(b.has_blob(&large));
    b.store.remove(&reference(APP)).unwrap();
    b.store.gc(&HashSet::from([imported.digest])).unwrap();
    assert!(b.has_blob(&large), "a pod runs of it");
    b.store.gc(&HashSet::new()).unwrap();
    assert_eq!(std::fs::read_dir(b.store.dir().join("blobs/sha256")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_docker_saved_travels_as_it_is() {
    let Some(lab) = Lab::new() else { return };
    let mut layer = LayerBuilder::new();
    layer.file("etc/x", "x", Attributes::mode(0o644));
    let mut bytes = Vec::new();
    layer.write(&mut bytes).unwrap();
    let diff_id = Layout::create(lab.dir.path().join("o")).unwrap().layer(&layer, Compress::None).unwrap().diff_id;
    let config = serde_json::json!({"architecture": Platform::current().architecture, "os": "linux",
        "config": {"Cmd": ["x"]}, "rootfs": {"type": "layers", "diff_ids": [diff_id.as_str()]}});
    let saved = serde_json::json!([{"Config": "c.json", "RepoTags": [APP], "Layers": ["layer.tar"]}]);
    let path = lab.dir.path().join("docker.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
    for (name, contents) in
        [("layer.tar", bytes), ("c.json", config.to_string().into()), ("manifest.json", saved.to_string().into())]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        tar.append_data(&mut header, name, contents.as_slice()).unwrap();
    }
    tar.finish().unwrap();
    let (a, b) = (lab.machine("a").await, lab.machine("b").await);
    a.import(&path).await;
    b.known.set(&[a.peer()]);
    let image = b.ensure(APP, PullPolicy::IfNotPresent).await.unwrap();
    assert_eq!(std::fs::read(image.layers[0].join("etc/x")).unwrap(), b"x");
    // A store whose layers were unpacked before blobs were kept gets them with the next import.
    std::fs::remove_file(a.store.dir().join("blobs/sha256").join(diff_id.hex())).unwrap();
    a.import(&path).await;
    assert!(a.has_blob(&diff_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_refused_and_the_next_node_is_asked() {
    let Some(lab) = Lab::new() else { return };
    let (digest, mut bytes) = lab.large();
    bytes[5000] ^= 1;
    let refs = lab.refs();
    let lie = move |asked: &support::Asked, _: usize| {
        let wrong = || asked.path.ends_with(digest.as_str()).then(|| Reply::new(200, bytes.clone()));
        refs(asked).or_else(wrong)
    };
    let (liar, seen) = lab.pki.actor("liar", &lab.oci(), Box::new(lie)).await;
    let (a, b, c) = (lab.machine("a").await, lab.machine("b").await, lab.machine("c").await);
    a.import(lab.oci()).await;
    b.known.set(&[liar.clone(), a.peer()]);
    let image = b.ensure(APP, PullPolicy::IfNotPresent).await.unwrap();
    assert_eq!(std::fs::metadata(image.layers[0].join("data/noise")).unwrap().len(), 1 << 20);
    assert_eq!(seen.count("GET", &lab.large().0.to_string()), 1, "once is enough");
    // Alone, it gets nobody anything; the reason names it.
    c.known.set(&[liar]);
    let error = one_line(&c.ensure(APP, PullPolicy::IfNotPresent).await.unwrap_err());
    assert!(error.contains("liar: layer sha256:") && error.contains("is corrupt"), "{error}");
    assert!(c.store.list().unwrap().is_empty());
    // A layer that was under way beside the corrupt one is dropped by a thread of its own.
    let left = || std::fs::read_dir(c.store.dir().join("ingest")).unwrap().count();
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while left() > 0 {
        assert!(std::time::Instant::now() < end, "{} files are left", left());
        tokio::time::sleep(Duration::from_millis(5)).await; // poll
    }
    // The same for a manifest.
    let meaning = lab.meaning();
    let lie = move |asked: &support::Asked, _: usize| {
        let body = if asked.path.contains("/refs/") { meaning.clone() } else { "{}".to_owned() };
        Some(Reply::new(200, body))
    };
    let (liar, seen) = lab.pki.actor("liar", &lab.oci(), Box::new(lie)).await;
    c.known.set(&[liar, a.peer()]);
    c.ensure(APP, PullPolicy::IfNotPresent).await.unwrap();
    assert_eq!(seen.count("GET", ""), 2, "its name's meaning and the manifest");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_dies_in_the_middle_is_followed_by_the_next() {
    let Some(lab) = Lab::new() else { return };
    let (digest, bytes) = lab.large();
    let (refs, cut_at) = (lab.refs(), 300_000);
    let die = move |asked: &support::Asked, _: usize| {
        let cut = || Reply::new(200, "").body(Body::Cut(bytes[..cut_at].to_vec(), bytes.len()));
        refs(asked).or_else(|| asked.path.ends_with(digest.as_str()).then(cut))
    };
    let (dying, _runs) = lab.pki.actor("dying", &lab.oci(), Box::new(die)).await;
    let refs = lab.refs();
    let (good, seen) = lab.pki.actor("good", &lab.oci(), Box::new(move |asked, _| refs(asked))).await;
    let (b, c) = (lab.machine("b").await, lab.machine("c").await);
    b.known.set(&[dying, good.clone()]);
    let image = b.ensure(APP, PullPolicy::IfNotPresent).await.unwrap();
    assert_eq!(std::fs::metadata(image.layers[0].join("data/noise")).unwrap().len(), 1 << 20);
    let ranges: Vec<String> =
        seen.asked.lock().unwrap().iter().filter_map(|asked| asked.headers.get("range").cloned()).collect();
    assert_eq!(ranges, [format!("bytes={cut_at}-")], "what came is not fetched again");
    // One that breaks off what was wrong already does not drag the next one down with it.
    let (digest, bytes) = lab.large();
    let refs = lab.refs();
    let spoil = move |asked: &support::Asked, _: usize| {
        let cut = || Reply::new(200, "").body(Body::Cut(vec![7; cut_at], bytes.len()));
        refs(asked).or_else(|| asked.path.ends_with(digest.as_str()).then(cut))
    };
    let (spoiler, _still_runs) = lab.pki.actor("spoiler", &lab.oci(), Box::new(spoil)).await;
    let d = lab.machine("d").await;
    d.known.set(&[spoiler, good.clone()]);
    d.ensure(APP, PullPolicy::IfNotPresent).await.unwrap();
    // One that says nothing at all, and one that is not there.
    let refs = lab.refs();
    let silent =
        move |asked: &support::Asked, _: usize| refs(asked).or_else(|| Some(Reply::new(200, "").body(Body::Silence)));
    let (silent, _runs_too) = lab.pki.actor("silent", &lab.oci(), Box::new(silent)).await;
    let nobody = peer("nobody", "127.0.0.1:1".parse().unwrap());
    c.known.set(&[silent, nobody, good]);
    c.ensure(APP, PullPolicy::IfNotPresent).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_refused() {
    let Some(lab) = Lab::new() else { return };
    let a = lab.machine("a").await;
    let digest = a.import(lab.oci()).await.digest;
    let path = format!("/v2/-/manifests/{digest}");
    assert_eq!(get(&a, Some(&lab.pki.node("z")), "GET", &path).await, 200);
    assert_eq!(get(&a, Some(&lab.pki.identity("coracle-server", "")), "GET", &path).await, 200);
    let elsewhere = Pki::new();
    for (who, identity) in [
        ("no certificate", None),
        ("another authority", Some(elsewhere.node("z"))),
        ("an administrator", Some(lab.pki.identity("admin", "system:masters"))),
        ("a user with a node's name", Some(lab.pki.identity("system:node:z", ""))),
        ("a nameless node", Some(lab.pki.identity("system:node:", "system:nodes"))),
    ] {
        assert_eq!(get(&a, identity.as_ref(), "GET", &path).await, 0, "{who}");
    }
    // The other way round: nothing is taken from who is not the node that was meant.
    let b = lab.machine("b").await;
    b.known.set(&[peer("c", a.address)]);
    let error = one_line(&b.ensure(APP, PullPolicy::IfNotPresent).await.unwrap_err());
    assert!(error.contains("c: no connection") && error.contains("system:node:a, not system:node:c"), "{error}");
    let false_node = Lab { dir: tempfile::tempdir().unwrap(), pki: elsewhere };
    let false_node = false_node.machine("a").await;
    b.known.set(&[false_node.peer()]);
    let error = one_line(&b.ensure(APP, PullPolicy::IfNotPresent).await.unwrap_err());
    assert!(error.contains("a: no connection: invalid peer certificate"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_counts_without_a_restart() {
    let Some(lab) = Lab::new() else { return };
    let old = Pki::new();
    let (a, b) = (lab.machine_as("a", old.node("a")).await, lab.machine_as("b", old.node("b")).await);
    a.import(lab.oci()).await;
    a.identity.send_replace(lab.pki.node("a"));
    b.known.set(&[a.peer()]);
    assert!(b.ensure(APP, PullPolicy::IfNotPresent).await.is_err());
    b.identity.send_replace(lab.pki.node("b"));
    b.ensure(APP, PullPolicy::IfNotPresent).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_paths_lead_nowhere() {
    let Some(lab) = Lab::new() else { return };
    let a = lab.machine("a").await;
    let digest = a.import(lab.oci()).await.digest;
    let asker = lab.pki.node("z");
    let unknown = format!("sha256:{}", "0".repeat(64));
    let long = "a".repeat(5000);
    for (path, status) in [
        (format!("/v2/-/blobs/{unknown}"), 404),
        (format!("/v2/-/manifests/{unknown}"), 404),
        (format!("/v2/-/blobs/sha512:{}", "0".repeat(128)), 404),
        ("/v2/-/refs/example.com%2Fnone%3A1".into(), 404),
        ("/v2/-/refs/example.com%2Fapp%3A1".into(), 200),
        (format!("/v2/-/blobs/{digest}"), 200),
        (format!("/v2/-/blobs/{digest}/../../../names.json"), 400),
        ("/v2/-/blobs/../../names.json".into(), 400),
        ("/v2/-/blobs/sha256:../../../../../../../../etc/passwd".into(), 400),
        ("/v2/-/blobs/%2e%2e%2f%2e%2e%2fnames.json".into(), 400),
        (format!("/v2/-/blobs/{}", digest.as_str().to_uppercase()), 400),
        ("/v2/-/blobs/".into(), 400),
        ("/v2/-/refs/..%2f..%2fnames.json".into(), 400),
        ("/v2/-/refs/%00".into(), 400),
        ("/v2/-/refs/%ff%fe".into(), 400),
        (format!("/v2/-/refs/{long}"), 400),
        ("/../names.json".into(), 404),
        ("/v2/".into(), 404),
        ("/v2/-/layers/x".into(), 404),
        (format!("/v2/example.com/app/blobs/{digest}"), 404),
    ] {
        assert_eq!(get(&a, Some(&asker), "GET", &path).await, status, "{path}");
    }
    for method in ["PUT", "POST", "DELETE", "HEAD", "PATCH"] {
        assert_eq!(get(&a, Some(&asker), method, &format!("/v2/-/blobs/{digest}")).await, 405, "{method}");
    }
    assert_eq!(a.store.list().unwrap().len(), 1);
}

/// The status of an answer; 0 when there is none.
async fn get(machine: &Machine, identity: Option<&PeerIdentity>, method: &str, path: &str) -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let config = match identity.map(Pki::chain) {
        Some((chain, key)) => config.with_client_auth_cert(chain, key).unwrap(),
        None => config.with_no_client_auth(),
    };
    let stream = tokio::net::TcpStream::connect(machine.address).await.unwrap();
    let name = rustls::pki_types::ServerName::from(machine.address.ip());
    let Ok(mut stream) = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await else {
        return 0;
    };
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut answer = Vec::new();
    let talk = async {
        stream.write_all(request.as_bytes()).await?;
        stream.read_to_end(&mut answer).await
    };
    // A refusal may come in the middle of anything.
    let _ = tokio::time::timeout(Duration::from_secs(20), talk).await.unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    answer.split(' ').nth(1).map_or(0, |status| status.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_mean_what_they_mean_elsewhere() {
    let Some(lab) = Lab::new() else { return };
    let registry = Registry::start(&lab.oci(), Box::new(|_, _| None)).await;
    let name = registry.name("app:1").to_string();
    let (a, b, c, d) = (lab.machine("a").await, lab.machine("b").await, lab.machine("c").await, lab.machine("d").await);
    a.ensure(&name, PullPolicy::IfNotPresent).await.unwrap();
    let blobs = registry.count("GET", "/blobs/");
    let manifests = registry.count("GET", "/manifests/");
    // Never asks nobody.
    b.known.set(&[a.peer()]);
    let error = b.ensure(&name, PullPolicy::Never).await.unwrap_err();
    assert_eq!((error.reason(), b.known.asked()), ("ErrImageNeverPull", 0));
    // IfNotPresent asks other nodes first, and whoever has it asks nobody.
    b.ensure(&name, PullPolicy::IfNotPresent).await.unwrap();
    assert_eq!((registry.count("GET", "/blobs/"), registry.count("GET", "/manifests/")), (blobs, manifests));
    let asked = b.known.asked();
    b.ensure(&name, PullPolicy::IfNotPresent).await.unwrap();
    assert_eq!(b.known.asked(), asked);
    // Always asks the registry what a pulled name means, and other nodes for the contents.
    c.known.set(&[a.peer()]);
    let record = {
        c.ensure(&name, PullPolicy::Always).await.unwrap();
        c.store.list().unwrap().remove(0)
    };
    assert_eq!((record.imported, record.peer), (false, None));
    assert_eq!((registry.count("GET", "/blobs/"), registry.count("GET", "/manifests/")), (blobs, manifests + 1));
    // And fails with the registry, although another node has it.
    drop(registry);
    d.known.set(&[a.peer()]);
    assert!(d.ensure(&name, PullPolicy::Always).await.is_err());
    d.ensure(&name, PullPolicy::IfNotPresent).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_name_wins_wherever_it_was_imported_and_the_latest_import_counts() {
    let Some(lab) = Lab::new() else { return };
    let (a, b) = (lab.machine("a").await, lab.machine("b").await);
    let first = a.import(lab.oci()).await.digest;
    b.known.set(&[a.peer()]);
    assert_eq!(b.ensure(APP, PullPolicy::Always).await.unwrap().digest, first);
    // Built and imported again.
    let oci = lab.dir.path().join("again");
    let layout = Layout::create(&oci).unwrap();
    let mut layer = LayerBuilder::new();
    layer.file("etc/app", "new", Attributes::mode(0o644));
    let layer = layout.layer(&layer, Compress::Gzip).unwrap();
    layout.image(APP, &RunConfig { cmd: vec!["/app".into()], ..RunConfig::default() }, &[layer]).unwrap();
    let second = a.import(&oci).await.digest;
    assert_ne!(first, second);
    assert_eq!(b.ensure(APP, PullPolicy::IfNotPresent).await.unwrap().digest, first);
    assert_eq!(b.ensure(APP, PullPolicy::Always).await.unwrap().digest, second);
    // b is the one who knows it better than an older import.
    let c = lab.machine("c").await;
    c.import(lab.oci()).await;
    c.known.set(&[b.peer()]);
    assert_eq!(c.ensure(APP, PullPolicy::Always).await.unwrap().digest, first, "what was imported here wins");
    // With nobody to ask, what is here is good enough.
    drop(a);
    b.known.set(&[]);
    assert_eq!(b.ensure(APP, PullPolicy::Always).await.unwrap().digest, second);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pods_of_one_node_fetch_once() {
    let Some(lab) = Lab::new() else { return };
    let refs = lab.refs();
    let (good, seen) = lab.pki.actor("good", &lab.oci(), Box::new(move |asked, _| refs(asked))).await;
    let b = lab.machine("b").await;
    b.known.set(&[good]);
    let pods: Vec<_> = (0..8)
        .map(|_| {
            let store = b.store.clone();
            tokio::spawn(async move { store.ensure(&reference(APP), PullPolicy::IfNotPresent).await })
        })
        .collect();
    for pod in pods {
        pod.await.unwrap().unwrap();
    }
    assert_eq!(seen.count("GET", &lab.large().0.to_string()), 1);
}

/// Believes every server; for tests of what a server believes.
#[derive(Debug)]
struct Anybody;

impl rustls::client::danger::ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &rustls::pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
