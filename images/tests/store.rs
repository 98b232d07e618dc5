//! Images made by the builder, taken in by the store, found, shared, removed and collected.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};

use coracle_images::builder::{Attributes, Compress, LayerBuilder, Layout, RunConfig};
use coracle_images::{
    ImageError, ImageStore, Platform, Progress, ProgressEvent, PullOptions, PullPolicy, Quiet, Reference, StoreOptions,
};

/// Owners and device nodes need root.
fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("SKIP: layers have owners, so this test needs root");
    }
    root
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn import(store: &ImageStore, path: &Path) -> Result<Vec<coracle_images::ImageRecord>, ImageError> {
    runtime().block_on(store.import(path, Arc::new(Quiet)))
}

/// A base layer, a layer that takes some of it away, and a configuration.
fn sample(dir: &Path) -> Layout {
    let layout = Layout::create(dir).unwrap();
    let mut base = LayerBuilder::new();
    base.directory("tmp", Attributes::mode(0o1777))
        .directory("home/app", Attributes::mode(0o750).owner(1000, 1000))
        .file("etc/passwd", "root:x:0:0::/root:/bin/sh\n", Attributes::mode(0o644))
        .file("usr/bin/su", "su", Attributes::mode(0o4755))
        .symlink("bin", "usr/bin")
        .hardlink("usr/bin/su2", "usr/bin/su")
        .file("opt/old/a", "a", Attributes::mode(0o600))
        .file("doc/b", "b", Attributes::mode(0o600));
    let mut top = LayerBuilder::new();
    top.whiteout("doc").opaque("opt/old", Attributes::mode(0o755)).file("opt/old/new", "new", Attributes::mode(0o644));
    let layers = [layout.layer(&base, Compress::Gzip).unwrap(), layout.layer(&top, Compress::None).unwrap()];
    let run = RunConfig {
        entrypoint: vec!["/bin/app".into()],
        cmd: vec!["--serve".into()],
        env: vec!["PATH=/bin".into()],
        user: "1000:1000".into(),
        working_dir: "/home/app".into(),
        exposed_ports: vec!["80/tcp".into()],
        stop_signal: Some("SIGQUIT".into()),
        volumes: vec!["/data".into()],
        ..RunConfig::default()
    };
    layout.image("example.com/app:1", &run, &layers).unwrap();
    layout
}

#[test]
fn an_imported_image_is_found_with_its_layers_top_first() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    sample(&dir.path().join("oci"));
    let store = ImageStore::open(dir.path().join("store")).unwrap();
    assert_eq!(std::fs::metadata(store.dir()).unwrap().permissions().mode() & 0o777, 0o700);
    let records = import(&store, &dir.path().join("oci")).unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!((records[0].reference.as_str(), records[0].layers, records[0].imported), ("example.com/app:1", 2, true));
    let image = store.find(&reference("example.com/app:1")).unwrap().unwrap();
    let config = image.config.config().as_ref().unwrap();
    assert_eq!(config.entrypoint().as_ref().unwrap(), &["/bin/app"]);
    assert_eq!(config.user().as_deref(), Some("1000:1000"));
    assert_eq!(config.stop_signal().as_deref(), Some("SIGQUIT"));
    assert_eq!(image.layers.len(), 2);
    let (top, base) = (&image.layers[0], &image.layers[1]);
    let hidden = std::fs::symlink_metadata(top.join("doc")).unwrap();
    assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0, "a whiteout is the device 0:0");
    let mut value = [0u8; 4];
    let length = rustix::fs::getxattr(top.join("opt/old"), "trusted.overlay.opaque", &mut value).unwrap();
    assert_eq!(&value[..length], b"y");
    assert_eq!(std::fs::read(top.join("opt/old/new")).unwrap(), b"new");
    let su = std::fs::metadata(base.join("usr/bin/su")).unwrap();
    assert_eq!((su.mode() & 0o7777, su.nlink()), (0o4755, 2), "setuid is kept, the hard link is one");
    let home = std::fs::metadata(base.join("home/app")).unwrap();
    assert_eq!((home.uid(), home.gid(), home.mode() & 0o7777), (1000, 1000, 0o750));
    assert_eq!(std::fs::metadata(base.join("tmp")).unwrap().mode() & 0o7777, 0o1777);
    assert_eq!(std::fs::read_link(base.join("bin")).unwrap(), Path::new("usr/bin"));
    // By digest, under any name, and with a digest beside the tag.
    let by_digest = reference(&format!("example.com/app@{}", image.digest));
    assert_eq!(store.find(&by_digest).unwrap().unwrap().digest, image.digest);
    assert!(store.find(&reference("example.com/app:2")).unwrap().is_none());
}

#[test]
fn the_same_input_gives_the_same_digests() {
    let dir = tempfile::tempdir().unwrap();
    let index = |name: &str| {
        sample(&dir.path().join(name));
        std::fs::read(dir.path().join(name).join("index.json")).unwrap()
    };
    assert_eq!(index("a"), index("b"));
}

#[test]
fn layers_are_shared_and_collected_when_nobody_needs_them() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let layout = sample(&dir.path().join("oci"));
    let mut base = LayerBuilder::new();
    base.file("only", "here", Attributes::mode(0o644));
    let shared = layout.layer(&base, Compress::Gzip).unwrap();
    layout.image("example.com/one:1", &RunConfig::default(), std::slice::from_ref(&shared)).unwrap();
    layout.image("example.com/two:1", &RunConfig { cmd: vec!["x".into()], ..RunConfig::default() }, &[shared]).unwrap();
    let store = ImageStore::open(dir.path().join("store")).unwrap();
    import(&store, &dir.path().join("oci")).unwrap();
    let names: Vec<String> = store.list().unwrap().into_iter().map(|record| record.reference).collect();
    assert_eq!(names, ["example.com/app:1", "example.com/one:1", "example.com/two:1"]);
    let layers = || std::fs::read_dir(store.dir().join("layers")).unwrap().count();
    assert_eq!(layers(), 3);
    let one = store.find(&reference("example.com/one:1")).unwrap().unwrap();
    assert!(store.remove(&reference("example.com/one:1")).unwrap());
    assert!(!store.remove(&reference("example.com/one:1")).unwrap());
    let report = store.gc(&HashSet::new()).unwrap();
    assert_eq!((report.layers, report.blobs, layers()), (0, 2, 3), "the other image has the layer too");
    let app = store.find(&reference("example.com/app:1")).unwrap().unwrap();
    store.remove(&reference("example.com/two:1")).unwrap();
    store.remove(&reference("example.com/app:1")).unwrap();
    let report = store.gc(&HashSet::from([app.digest.clone()])).unwrap();
    assert_eq!((report.layers, layers()), (1, 2), "a running pod keeps its image");
    assert!(!one.layers[0].exists() && app.layers[0].exists());
    store.gc(&HashSet::new()).unwrap();
    assert_eq!(layers(), 0);
    assert_eq!(std::fs::read_dir(store.dir().join("blobs/sha256")).unwrap().count(), 0);
}

#[test]
fn a_damaged_layer_names_both_digests_and_leaves_nothing() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let oci = dir.path().join("oci");
    sample(&oci);
    let blobs = std::fs::read_dir(oci.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    let layer = blobs.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let name = layer.file_name().unwrap().to_string_lossy().into_owned();
    let mut bytes = std::fs::read(&layer).unwrap();
    bytes[2000] ^= 1;
    std::fs::write(&layer, &bytes).unwrap();
    let store = ImageStore::open(dir.path().join("store")).unwrap();
    let error = import(&store, &oci).unwrap_err();
    let ImageError::Corrupt { expected, got, .. } = &error else { panic!("{error:?}") };
    assert_eq!(expected.hex(), name);
    assert!(error.to_string().contains(got.as_str()) && expected != got);
    bytes.truncate(1000);
    std::fs::write(&layer, &bytes).unwrap();
    assert!(matches!(import(&store, &oci).unwrap_err(), ImageError::Size { got: 1000, .. }));
    assert!(store.list().unwrap().is_empty());
    assert_eq!(std::fs::read_dir(store.dir().join("ingest")).unwrap().count(), 0);
}

#[test]
fn an_image_for_another_machine_says_what_it_is_for() {
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::create(dir.path().join("oci")).unwrap();
    let mut base = LayerBuilder::new();
    base.file("x", "x", Attributes::mode(0o644));
    let layer = layout.layer(&base, Compress::Gzip).unwrap();
    let platform =
        |architecture: &str| Platform { os: "linux".into(), architecture: architecture.into(), variant: String::new() };
    let images: Vec<_> =
        ["s390x", "riscv64"].iter().map(|name| (platform(name), RunConfig::default(), vec![layer.clone()])).collect();
    layout.index("example.com/app:1", &images).unwrap();
    let options = StoreOptions {
        pull: PullOptions { platform: platform("amd64"), ..PullOptions::default() },
        ..StoreOptions::default()
    };
    let store = ImageStore::open_with(dir.path().join("store"), options).unwrap();
    let error = import(&store, &dir.path().join("oci")).unwrap_err().to_string();
    assert_eq!(
        error.lines().next(),
        Some("image example.com/app:1 has nothing for linux/amd64; it is there for linux/s390x, linux/riscv64")
    );
}

#[test]
fn archives_of_layouts_and_of_docker_save_are_taken() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let oci = dir.path().join("oci");
    sample(&oci);
    let digest = {
        let store = ImageStore::open(dir.path().join("store-a")).unwrap();
        import(&store, &oci).unwrap();
        store.list().unwrap()[0].digest.clone()
    };
    // The layout as one file, plain and compressed.
    let plain = dir.path().join("image.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&plain).unwrap());
    tar.append_dir_all("", &oci).unwrap();
    tar.finish().unwrap();
    let packed = dir.path().join("image.tar.gz");
    let mut gzip = flate2::write::GzEncoder::new(std::fs::File::create(&packed).unwrap(), flate2::Compression::fast());
    std::io::copy(&mut std::fs::File::open(&plain).unwrap(), &mut gzip).unwrap();
    gzip.finish().unwrap();
    for (name, path) in [("store-b", &plain), ("store-c", &packed)] {
        let store = ImageStore::open(dir.path().join(name)).unwrap();
        assert_eq!(import(&store, path).unwrap()[0].digest, digest);
        assert_eq!(std::fs::read_dir(store.dir().join("ingest")).unwrap().count(), 0);
    }
    // `docker save`: layers are plain tars, one of them behind a link.
    let mut layer = LayerBuilder::new();
    layer.file("etc/x", "x", Attributes::mode(0o644));
    let mut bytes = Vec::new();
    layer.write(&mut bytes).unwrap();
    let diff_id = Layout::create(dir.path().join("other")).unwrap().layer(&layer, Compress::None).unwrap().diff_id;
    let config = serde_json::json!({"architecture": Platform::current().architecture, "os": "linux",
        "config": {"Cmd": ["x"]}, "rootfs": {"type": "layers", "diff_ids": [diff_id.as_str(), diff_id.as_str()]}});
    let saved = serde_json::json!([{"Config": "c.json", "RepoTags": ["app:1", "app:2"], "Layers": ["a/layer.tar", "b/layer.tar"]}]);
    let docker = dir.path().join("docker.tar");
    let mut tar = tar::Builder::new(std::fs::File::create(&docker).unwrap());
    for (name, contents) in
        [("a/layer.tar", bytes), ("c.json", config.to_string().into()), ("manifest.json", saved.to_string().into())]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        tar.append_data(&mut header, name, contents.as_slice()).unwrap();
    }
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    tar.append_link(&mut link, "b/layer.tar", "../a/layer.tar").unwrap();
    tar.finish().unwrap();
    drop(tar);
    let store = ImageStore::open(dir.path().join("store-d")).unwrap();
    assert_eq!(import(&store, &docker).unwrap().len(), 2);
    let image = store.find(&reference("app:2")).unwrap().unwrap();
    assert_eq!(std::fs::read(image.layers[1].join("etc/x")).unwrap(), b"x");
}

#[test]
fn what_is_no_image_is_refused_with_words() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path().join("store")).unwrap();
    let file = dir.path().join("x");
    let expect = |path: &Path, words: &str| {
        let error = coracle_base::one_line(&import(&store, path).unwrap_err());
        assert!(error.contains(words), "{error}");
    };
    std::fs::write(&file, "hello").unwrap();
    expect(&file, "cannot be read as a tar");
    expect(&dir.path().join("missing"), "No such file");
    expect(&store.dir().join("layers"), "neither `index.json`");
    let unnamed = dir.path().join("unnamed");
    Layout::create(&unnamed).unwrap();
    expect(&unnamed, "no image in it has a full name");
    // A link out of the folder is not followed, whatever it would lead to.
    std::fs::remove_file(unnamed.join("index.json")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", unnamed.join("index.json")).unwrap();
    expect(&unnamed, "neither `index.json`");
}

#[test]
fn directories_a_layer_made_up_get_their_attributes_from_below() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let layout = Layout::create(dir.path().join("oci")).unwrap();
    let mut base = LayerBuilder::new();
    base.directory("tmp", Attributes::mode(0o1777)).directory("var/gone", Attributes::mode(0o700));
    let mut top = LayerBuilder::new();
    // The builder adds parents; a tar made by hand has none.
    top.file("tmp/x", "x", Attributes::mode(0o644));
    top.file("var/gone/y", "y", Attributes::mode(0o644));
    let bare = |layer: &LayerBuilder, drop: &[&str]| {
        let mut bytes = Vec::new();
        layer.write(&mut bytes).unwrap();
        let mut out = tar::Builder::new(Vec::new());
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().into_owned();
            if !drop.iter().any(|name| Path::new(name) == path) {
                let mut header = entry.header().clone();
                out.append_data(&mut header, path, &mut entry).unwrap();
            }
        }
        out.into_inner().unwrap()
    };
    let bytes = bare(&top, &["tmp", "var", "var/gone"]);
    let diff_id =
        coracle_layers::walk(bytes.as_slice(), &coracle_layers::Limits::default(), &mut Nothing).unwrap().diff_id;
    let blob = dir.path().join("oci/blobs/sha256").join(diff_id.hex());
    std::fs::write(blob, &bytes).unwrap();
    // A whiteout above makes a directory that must not come back.
    let mut last = LayerBuilder::new();
    last.whiteout("var/gone");
    let below = layout.layer(&base, Compress::Gzip).unwrap();
    let above = layout.layer(&last, Compress::Gzip).unwrap();
    let hand = serde_json::json!({"architecture": Platform::current().architecture, "os": "linux", "rootfs": {"type": "layers",
        "diff_ids": [below.diff_id.as_str(), diff_id.as_str(), above.diff_id.as_str()]}});
    write_image(
        &dir.path().join("oci"),
        "example.com/made-up:1",
        &hand,
        &[(&below.digest, below.size), (&diff_id, bytes.len() as u64), (&above.digest, above.size)],
    );
    let store = ImageStore::open(dir.path().join("store")).unwrap();
    import(&store, &dir.path().join("oci")).unwrap();
    let image = store.find(&reference("example.com/made-up:1")).unwrap().unwrap();
    assert_eq!(image.layers.len(), 4, "one layer more, on top");
    assert_eq!(std::fs::metadata(image.layers[0].join("tmp")).unwrap().mode() & 0o7777, 0o1777);
    assert!(!image.layers[0].join("var/gone").exists());
    // The added layer goes with its image.
    store.remove(&reference("example.com/made-up:1")).unwrap();
    store.gc(&HashSet::new()).unwrap();
    assert!(!image.layers[0].exists());
}

struct Nothing;

impl coracle_layers::Sink for Nothing {
    type Error = std::convert::Infallible;
    fn entry(&mut self, _: &coracle_layers::Entry, _: &mut dyn std::io::Read) -> Result<(), Self::Error> {
        Ok(())
    }
}

/// Adds an image to a layout without the builder's help.
fn write_image(dir: &Path, name: &str, config: &serde_json::Value, layers: &[(&coracle_base::Digest, u64)]) {
    use sha2::Digest as _;
    let blob = |value: &serde_json::Value| {
        let bytes = value.to_string().into_bytes();
        let digest = coracle_base::Digest::from_sha256(&sha2::Sha256::digest(&bytes).into());
        std::fs::write(dir.join("blobs/sha256").join(digest.hex()), &bytes).unwrap();
        serde_json::json!({"mediaType": "", "digest": digest.as_str(), "size": bytes.len()})
    };
    let layers: Vec<_> = layers
        .iter()
        .map(|(digest, size)| serde_json::json!({"mediaType": "lies", "digest": digest.as_str(), "size": size}))
        .collect();
    let mut entry = blob(&serde_json::json!({"schemaVersion": 2, "config": blob(config), "layers": layers}));
    entry["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": name});
    std::fs::write(dir.join("index.json"), serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string())
        .unwrap();
}

#[test]
fn what_a_crash_leaves_is_swept_and_unfinished_work_of_others_is_not() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    drop(ImageStore::open(&path).unwrap());
    // A dead process' half layer, a half-removed layer, and a living process' layer.
    std::fs::create_dir_all(path.join("ingest/dead/fs/a")).unwrap();
    std::fs::create_dir_all(path.join("trash/dead/fs")).unwrap();
    std::fs::create_dir_all(path.join("ingest/alive")).unwrap();
    let alive = std::fs::File::open(path.join("ingest/alive")).unwrap();
    rustix::fs::flock(&alive, rustix::fs::FlockOperation::LockExclusive).unwrap();
    // Written and never renamed.
    std::fs::write(path.join("names.json.new"), "{").unwrap();
    std::fs::write(path.join(".new-1"), "{").unwrap();
    let store = ImageStore::open(&path).unwrap();
    let left: Vec<_> =
        std::fs::read_dir(path.join("ingest")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["alive"]);
    assert_eq!(std::fs::read_dir(path.join("trash")).unwrap().count(), 0);
    assert!(store.list().unwrap().is_empty());
    // A layer and documents without a name are what a crash between the steps leaves: collected, never found.
    sample(&dir.path().join("oci"));
    import(&store, &dir.path().join("oci")).unwrap();
    std::fs::remove_file(path.join("names.json")).unwrap();
    let store = ImageStore::open(&path).unwrap();
    assert!(store.find(&reference("example.com/app:1")).unwrap().is_none());
    assert_eq!(store.gc(&HashSet::new()).unwrap().layers, 2);
}

#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl Progress for Log {
    fn event(&self, event: &ProgressEvent<'_>) {
        let line = match event {
            ProgressEvent::Resolved { layers, .. } => format!("resolved {layers}"),
            ProgressEvent::LayerDone { shared, .. } => format!("done {shared}"),
            _ => return,
        };
        self.0.lock().unwrap().push(line);
    }
}

#[test]
fn two_processes_and_many_tasks_share_a_store() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let oci = dir.path().join("oci");
    sample(&oci);
    // Two handles opened apart share nothing in memory, like two processes.
    let (one, two) = (ImageStore::open(dir.path().join("s")).unwrap(), ImageStore::open(dir.path().join("s")).unwrap());
    assert!(one.list().unwrap().is_empty());
    let log = Arc::new(Log::default());
    runtime().block_on(async {
        let tasks: Vec<_> = (0..8)
            .map(|at| {
                let (store, oci, log) = (if at % 2 == 0 { one.clone() } else { two.clone() }, oci.clone(), log.clone());
                tokio::spawn(async move { store.import(&oci, log).await.map(|records| records.len()) })
            })
            .collect();
        for task in tasks {
            assert_eq!(task.await.unwrap().unwrap(), 1);
        }
        let image = two.ensure(&reference("example.com/app:1"), PullPolicy::Always).await.unwrap();
        assert_eq!(image.layers.len(), 2, "an imported name is not asked for in a registry");
        let error = one.ensure(&reference("example.com/none:1"), PullPolicy::Never).await.unwrap_err();
        assert_eq!(error.reason(), "ErrImageNeverPull");
    });
    assert_eq!(one.list().unwrap(), two.list().unwrap());
    let unpacked = log.0.lock().unwrap().iter().filter(|line| *line == "done false").count();
    assert!((2..=4).contains(&unpacked), "each handle unpacks each layer at most once: {unpacked}");
    assert_eq!(std::fs::read_dir(one.dir().join("ingest")).unwrap().count(), 0);
}
