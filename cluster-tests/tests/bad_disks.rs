//! Disks on bad days: full, damaged, torn. What was acknowledged stays, what is wrong is said, what helps is said with it.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use coracle_cluster_tests::disk::Disk;
use coracle_cluster_tests::machine::Machine;
use coracle_cluster_tests::registry;
use serde_json::Value;

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: NAME, labels: {app: pods}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers: [{name: main, image: \"coracle.local/hello:1\"}]\n---\n";

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: pods}\nspec: {selector: {app: pods}, ports: [{port: 80, targetPort: 8080}]}\n";

/// ConfigMaps of half a megabyte each: what they hold is kept twice, the second time in the annotation of `apply`.
fn bulk(first: usize, count: usize) -> String {
    let text = "x".repeat(250_000);
    let one = |number: usize| {
        format!(
            "{{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{{\"name\":\"bulk{number}\"}},\"data\":{{\"text\":\"{text}\"}}}}"
        )
    };
    let all: Vec<String> = (first..first + count).map(one).collect();
    format!("{{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [{}]}}\n", all.join(","))
}

fn small(name: &str) -> String {
    format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{a: b}}\n")
}

fn is_running(machine: &Machine, pod: &str) -> bool {
    machine.get(&[&format!("pod/{pod}")])["status"]["phase"] == "Running"
}

/// The names in what `apply` said it has created, `kind/name`.
fn created(out: &str) -> Vec<String> {
    out.lines().filter_map(|line| line.strip_suffix(" created")).map(ToOwned::to_owned).collect()
}

#[test]
fn a_full_disk_takes_deletions_and_goes_on_once_it_has_room() {
    let disk = Disk::new(160);
    let mut machine = Machine::new().data_at(&disk.path().join("data")).with(&["--log-segment-mb", "16"]);
    machine.up();
    machine.import_hello();
    machine.apply(&["a", "b"].map(|name| POD.replace("NAME", name)).concat());
    machine.apply(SERVICE);
    let endpoints = |machine: &Machine, count: usize| {
        let slices = machine.get(&["endpointslices", "-l", "kubernetes.io/service-name=pods"]);
        slices["items"][0]["endpoints"].as_array().map_or(0, Vec::len) == count
    };
    machine.wait("the pods to serve", |machine| endpoints(machine, 2));
    disk.fill();
    // The log has room set aside for a while; then it says no, and keeps the last of it for deletions.
    let mut acknowledged = Vec::new();
    let mut refused = None;
    for round in 0..20 {
        let said = machine.try_apply(&bulk(round * 16, 16));
        acknowledged.extend(created(&said.out));
        if said.code != 0 {
            refused = Some(said);
            break;
        }
    }
    let refused = refused.expect("ten times the log's room was taken");
    let full = "the disk of the cluster's log is full\nhint: free space below the data directory, or delete objects";
    assert!(refused.code == 1 && refused.err.contains(full), "{refused:?}");
    assert!(acknowledged.len() > 20, "{} objects went into 16 MB", acknowledged.len());
    let status = machine.try_coracle(&["status"]);
    assert!(status.code == 5 && status.err.contains("the disk of the cluster's log is full"), "{status:?}");
    let _ = machine.coracle(&["delete", "pod/a", "cm/bulk0"]);
    // What runs goes on, and Services know who is gone; only what is new has to wait.
    machine.wait("the Service to know", |machine| endpoints(machine, 1));
    let service = machine.get(&["svc/pods"])["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned();
    for _ in 0..20 {
        assert!(machine.http(&format!("{service}:80"), "/").is_some_and(|answer| answer.contains("hello from")));
    }
    assert_eq!(machine.try_apply(&small("late")).code, 1);

    // A new start changes nothing of it, and is not kept from starting.
    machine.kill();
    machine.up();
    assert!(is_running(&machine, "b"));
    assert_eq!(machine.try_apply(&small("late")).code, 1);
    let _ = machine.coracle(&["delete", "pod/b", "cm/bulk1"]);

    disk.free();
    machine.wait("the log to take writes again", |machine| machine.try_apply(&small("more")).code == 0);
    let there = machine.get(&["cm"]);
    let names: Vec<String> = there["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|item| format!("configmap/{}", item["metadata"]["name"].as_str().unwrap_or_default()))
        .collect();
    for name in &acknowledged {
        let deleted = ["configmap/bulk0", "configmap/bulk1"].contains(&name.as_str());
        assert_eq!(names.contains(name), !deleted, "{name}, acknowledged");
    }
    assert!(names.contains(&"configmap/more".to_owned()) && !names.contains(&"configmap/late".to_owned()));
    machine.apply(&POD.replace("NAME", "c"));
    machine.wait("a new pod to run", |machine| is_running(machine, "c"));
    machine.wait("the machine to be well", |machine| machine.try_coracle(&["status"]).code == 0);
    let log = machine.log();
    for once in ["no snapshot is written until", "the ledger is not written until"] {
        assert!(log.matches(once).count() <= 2, "told more than once a start: {log}");
    }
    // It may have fitted into its file all the time.
    machine.wait("the ledger to be written", |machine| {
        let log = machine.log();
        !log.contains("the ledger is not written") || log.contains("the ledger is written again")
    });
    machine.down();
}

#[test]
fn a_disk_too_small_for_the_log_is_told_at_the_start() {
    let disk = Disk::new(150);
    let mut machine = Machine::new().data_at(&disk.path().join("data"));
    machine.start();
    let code = machine.ended();
    let said = machine.log();
    assert!(code == 1 && said.matches("error: ").count() == 1, "{code}: {said}");
    assert!(said.contains("data/log/log has no room for the cluster's log: 192 MB are set aside for it"), "{said}");
    assert!(said.contains("\nhint: free some, set less aside with --log-segment-mb, or put the data directory on another disk with --data-dir"), "{said}");
    assert_eq!(machine.left_over(), Vec::<String>::new());
}

/// The log's only segment of a small cluster.
fn segment(machine: &Machine) -> PathBuf {
    machine.data().join("log/log/0000000001.wal")
}

/// Where the frames of a segment stand, and how long each is: `control-plane/raft/src/wal/mod.rs` draws it.
fn frames(segment: &Path) -> Vec<(u64, u64)> {
    let file = std::fs::File::open(segment).expect("a segment");
    let (mut frames, mut at) = (Vec::new(), 512);
    loop {
        let mut head = [0; 8];
        if file.read_exact_at(&mut head, at).is_err() {
            return frames;
        }
        let length = 24 + u64::from(u32::from_le_bytes([head[4], head[5], head[6], head[7]]));
        if head[..4] != [0xfe, 0xc0, 0xac, 0xff] {
            return frames;
        }
        frames.push((at, length));
        at = (at + length).next_multiple_of(512);
    }
}

fn change_byte(path: &Path, at: u64) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).expect("a file");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("the file is longer");
    file.write_all_at(&[!byte[0]], at).expect("the file can be written");
}

#[test]
fn a_log_that_a_disk_has_damaged_is_refused_and_left_as_it_is() {
    let mut machine = Machine::new();
    machine.up();
    machine.import_hello();
    machine.apply(&POD.replace("NAME", "a"));
    machine.wait("the pod to run", |machine| is_running(machine, "a"));
    for number in 0..5 {
        machine.apply(&small(&format!("kept{number}")));
    }
    let pod = machine.container_ids();
    machine.kill();
    let segment = segment(&machine);
    let frames = frames(&segment);
    let (at, length) = frames[frames.len() / 2];
    change_byte(&segment, at + length / 2);
    let damaged = std::fs::read(&segment).expect("a segment");
    for _ in 0..2 {
        let before = machine.log().len();
        machine.start();
        let code = machine.ended();
        let said = machine.log()[before..].to_owned();
        let where_it_is = format!("the log is corrupt: {} at byte {at}: frame ", segment.display());
        assert!(code == 1 && said.matches("error: ").count() == 1, "{code}: {said}");
        assert!(said.contains(&where_it_is) && said.contains(" is damaged, and a later frame stands whole"), "{said}");
        assert!(said.contains("\nhint: ") && said.contains("restore a backup"), "{said}");
        assert!(std::fs::read(&segment).expect("a segment") == damaged, "the refused log was changed");
    }
    // A disk that gives the byte back after all has its server back.
    change_byte(&segment, at + length / 2);
    machine.up();
    for number in 0..5 {
        assert_ne!(machine.get(&[&format!("cm/kept{number}")]), Value::Null, "an acknowledged write is gone");
    }
    assert_eq!(machine.container_ids(), pod, "the pod did not run on");
    // Also without its log a machine can be taken down.
    machine.kill();
    change_byte(&segment, at + length / 2);
    machine.down();
}

#[test]
fn the_last_frame_torn_by_a_power_cut_is_dropped_and_nothing_before_it() {
    let mut machine = Machine::new();
    machine.up();
    for (round, cut) in ["zeros", "end", "noise"].into_iter().enumerate() {
        machine.apply(&small(&format!("kept{round}")));
        let text =
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: torn}}\ndata: {{a: {}}}\n", "x".repeat(20_000));
        // Nothing else is written by then, so that the last frame is this one; else once more.
        let (at, length) = loop {
            machine.apply(&text);
            machine.kill();
            let last = *frames(&segment(&machine)).last().expect("frames");
            if last.1 > 20_000 {
                break last;
            }
            machine.up();
            let _ = machine.coracle(&["delete", "cm/torn"]);
        };
        // As if it had not been acknowledged: the cut came while it was being written.
        let file = std::fs::OpenOptions::new().write(true).open(segment(&machine)).expect("a segment");
        let middle = (at + length / 2).next_multiple_of(512);
        let rest = usize::try_from(at + length - middle).expect("a small frame");
        match cut {
            "zeros" => file.write_all_at(&vec![0; rest], middle).expect("written"),
            "end" => file.set_len(middle).expect("cut"),
            _ => file.write_all_at(&vec![0xa5; rest], middle).expect("written"),
        }
        machine.up();
        for earlier in 0..=round {
            assert_ne!(
                machine.get(&[&format!("cm/kept{earlier}")]),
                Value::Null,
                "{cut}: an acknowledged write is gone"
            );
        }
        assert_eq!(machine.get(&["cm/torn"]), Value::Null, "{cut}");
        machine.apply(&small("after"));
        let _ = machine.coracle(&["delete", "cm/after"]);
    }
    // One that was cut off clean leaves nothing to clear away.
    assert_eq!(machine.log().matches("the log's last frame was torn and is dropped").count(), 3);
    machine.down();
}

/// Where a layout or a store keeps what has this digest.
fn blob(folder: &Path, digest: &Value) -> PathBuf {
    folder.join("blobs").join(digest.as_str().unwrap_or_default().replace(':', "/"))
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).expect("a file")).expect("JSON")
}

/// Waits until the pod cannot have its image; what `describe` says of it.
fn no_image(machine: &mut Machine, pod: &str) -> String {
    let mut described = String::new();
    machine.wait("the image to be refused", |machine| {
        described = machine.coracle(&["describe", &format!("pod/{pod}")]);
        described.contains("waiting: ErrImagePull")
    });
    assert_eq!(described.matches("  Warning ").count(), 1, "{described}");
    described
}

#[test]
fn a_corrupt_layer_is_refused_wherever_it_comes_from() {
    let mut machine = Machine::new();
    machine.up();
    let layout = machine.folder().join("hello.image");
    machine.build_hello(&layout);
    let index = json(&layout.join("index.json"));
    let layer = json(&blob(&layout, &index["manifests"][0]["digest"]))["layers"][0]["digest"].clone();
    change_byte(&blob(&layout, &layer), 100_000);

    let path = layout.display().to_string();
    let corrupt =
        format!("layer {} is corrupt: its contents have the digest sha256:", layer.as_str().unwrap_or_default());
    let said = machine.try_coracle(&["image", "import", &path]);
    assert!(said.code == 1 && said.err.contains(&corrupt) && said.err.contains("\nhint: it was damaged"), "{said:?}");
    assert_eq!(machine.coracle(&["image", "ls", "-o", "name"]), "");

    let registry = registry::serve(&machine, &layout);
    machine.apply(&POD.replace("NAME", "a").replace("coracle.local", &registry));
    let described = no_image(&mut machine, "a");
    assert!(described.contains(&corrupt) && described.contains("; hint: it was damaged"), "{described}");
    let layers = std::fs::read_dir(machine.data().join("images/layers")).expect("a store");
    assert_eq!(layers.count(), 0, "a corrupt layer was kept");

    // Both are well again as soon as what they are given is.
    change_byte(&blob(&layout, &layer), 100_000);
    let _ = machine.coracle(&["image", "import", &path]);
    machine.wait("the pod to run", |machine| is_running(machine, "a"));
    machine.down();
}

#[test]
fn an_image_that_is_damaged_in_the_store_is_told_and_mended_by_an_import() {
    let mut machine = Machine::new();
    machine.up();
    machine.import_hello();
    let layout = machine.folder().join("hello.image");
    let manifest = json(&layout.join("index.json"))["manifests"][0]["digest"].clone();
    change_byte(&blob(&machine.data().join("images"), &manifest), 20);
    machine.apply(&POD.replace("NAME", "a"));
    let described = no_image(&mut machine, "a");
    let corrupt = format!("manifest {} is corrupt: its contents have", manifest.as_str().unwrap_or_default());
    assert!(described.contains(&corrupt) && described.contains("; hint: it was damaged"), "{described}");
    let _ = machine.coracle(&["image", "import", &layout.display().to_string()]);
    machine.wait("the pod to run", |machine| is_running(machine, "a"));
    machine.down();
}
