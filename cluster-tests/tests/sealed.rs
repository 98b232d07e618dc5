//! What a server keeps lies sealed: a Secret's value and the authority's key are in no file below its data folder, and a backup that is
//! sealed is nobody's without its passphrase.

use std::path::Path;

use coracle_cluster_tests::machine::Machine;

/// What a Secret holds, as base64 text and as the bytes it stands for: both look like nothing else.
const TEXT: &str = "c2VjcmV0LXRoYXQtbXVzdC1ub3QtYmUtZm91bmQt";
const BYTES: &str = "secret-that-must-not-be-found-";
const PRIVATE: &str = "PRIVATE KEY";

fn holding(folder: &Path, wanted: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().expect("a type"));
        if kind.is_dir() {
            found.extend(holding(&path, wanted));
        } else if kind.is_file()
            && std::fs::read(&path).unwrap_or_default().windows(wanted.len()).any(|bytes| bytes == wanted.as_bytes())
        {
            found.push(path.strip_prefix(folder).unwrap_or(&path).display().to_string());
        }
    }
    found
}

fn secret(name: &str, kilobytes: usize) -> String {
    let value = TEXT.repeat(1 + kilobytes * 1024 / TEXT.len());
    format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\ndata: {{password: {value}}}\n")
}

const READER: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: reader}
spec:
  selector: {matchLabels: {app: reader}}
  template:
    metadata: {labels: {app: reader}}
    spec:
      containers:
        - name: hello
          image: example/hello:1
          env: [{name: PASSWORD, valueFrom: {secretKeyRef: {name: small, key: password}}}]
          volumeMounts: [{name: secret, mountPath: /secret}]
      volumes: [{name: secret, secret: {secretName: small}}]
"#;

fn snapshots(machine: &Machine) -> usize {
    let names = std::fs::read_dir(machine.data().join("log/snapshots")).expect("the snapshots' folder");
    names.flatten().filter(|entry| entry.path().extension().is_some_and(|end| end == "snapshot")).count()
}

fn nothing_lies_open(machine: &Machine, when: &str) {
    for wanted in [TEXT, BYTES] {
        assert_eq!(holding(&machine.data(), wanted), Vec::<String>::new(), "{when}");
    }
    let keys = holding(&machine.data().join("pki"), PRIVATE);
    assert!(!keys.iter().any(|file| file.starts_with("ca")), "{when}: {keys:?}");
    // The search finds what is there.
    assert!(keys.contains(&"server.key".to_owned()), "{when}: {keys:?}");
    let elsewhere = holding(&machine.data().join("log"), PRIVATE);
    assert_eq!(elsewhere, Vec::<String>::new(), "{when}");
}

#[test]
fn a_secret_lies_nowhere_on_a_servers_disk() {
    let mut machine = Machine::new();
    machine.up();
    machine.import_hello();
    machine.apply(&secret("small", 1));
    let image = std::fs::read_to_string(coracle_cluster_tests::machine::workspace().join("examples/hello.yaml"))
        .expect("the example")
        .lines()
        .find_map(|line| line.trim().trim_start_matches("- ").strip_prefix("image: ").map(str::to_owned))
        .expect("the example names its image");
    machine.apply(&READER.replace("example/hello:1", &image));
    machine.wait_ready("reader", 1);
    nothing_lies_open(&machine, "with a pod that reads it");
    // More than the log takes without a snapshot.
    let mut batches = 0;
    while snapshots(&machine) == 0 {
        let documents: Vec<String> = (0..40).map(|number| secret(&format!("large{batches}-{number}"), 100)).collect();
        machine.apply(&documents.join("---\n"));
        batches += 1;
        assert!(batches < 20, "no snapshot is taken");
    }
    nothing_lies_open(&machine, "with a snapshot");
    machine.kill();
    machine.up();
    assert!(machine.coracle(&["get", "secret", "large0-39", "-o", "yaml"]).contains(TEXT));
    machine.apply(&secret("later", 1));
    nothing_lies_open(&machine, "after a restart");

    // A new key, taken into use by the server that runs.
    let said = machine.coracle(&["rotate-keys"]);
    assert!(said.contains("2 in"), "{said}");
    machine.apply(&secret("rotated", 1));

    let folder = machine.folder().join("backups");
    std::fs::create_dir(&folder).expect("a folder");
    let (open, sealed, phrase) = (folder.join("open"), folder.join("sealed"), folder.join("passphrase"));
    let path = |path: &Path| path.display().to_string();
    std::fs::write(&phrase, "short\n").expect("a passphrase");
    let refused = machine.try_coracle(&["backup", &path(&sealed), "--passphrase-file", &path(&phrase)]);
    assert!(refused.code == 2 && refused.err.contains("fewer than 8"), "{}", refused.err);
    std::fs::write(&phrase, "correct horse battery\n").expect("a passphrase");
    let said = machine.coracle(&["backup", &path(&sealed), "--passphrase-file", &path(&phrase)]);
    assert!(said.contains("checked"), "{said}");
    let _ = machine.coracle(&["backup", &path(&open)]);
    assert_eq!(holding(&folder, TEXT), ["open"]);
    assert_eq!(holding(&folder, PRIVATE), ["open"]);
    nothing_lies_open(&machine, "after backups");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&open).expect("the backup").permissions());
    assert_eq!(mode & 0o777, 0o600);

    // Without its keys the server refuses, and says what is missing.
    machine.kill();
    let keys = machine.data().join("pki/storage.key");
    let kept = machine.folder().join("kept.key");
    std::fs::rename(&keys, &kept).expect("the keys go");
    machine.start();
    assert_ne!(machine.ended(), 0);
    let log = machine.log();
    assert!(log.contains("storage.key") && log.contains("hint: put this server's own key file back"), "{log}");
    assert!(!keys.exists());
    std::fs::rename(&kept, &keys).expect("the keys come back");

    // Its disk is lost: a sealed backup needs its passphrase.
    std::fs::remove_dir_all(machine.data().join("log")).expect("the log goes");
    let refused = machine.try_coracle(&["restore", &path(&sealed)]);
    assert!(refused.code == 1 && refused.err.contains("--passphrase-file"), "{}", refused.err);
    std::fs::write(folder.join("other"), "correct mule battery\n").expect("a passphrase");
    let refused = machine.try_coracle(&["restore", &path(&sealed), "--passphrase-file", &path(&folder.join("other"))]);
    assert!(refused.code == 1 && refused.err.contains("the passphrase is another one"), "{}", refused.err);
    let said = machine.coracle(&["restore", &path(&sealed), "--passphrase-file", &path(&phrase)]);
    assert!(said.contains("restored"), "{said}");
    nothing_lies_open(&machine, "after the restore");
    machine.up();
    assert!(machine.coracle(&["get", "secret", "rotated", "-o", "yaml"]).contains(TEXT));
    nothing_lies_open(&machine, "with the restored cluster");
    machine.down();
}
