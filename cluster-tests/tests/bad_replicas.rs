//! A server whose log is damaged does not vote with it and says so; one whose log is gone comes back as another server; one with the
//! log of another is refused. On whole machines, each the way the messages tell.

use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use coracle_cluster_tests::site::{Answered, Site, Where};
use serde_json::{Value, json};

/// The names of the servers, in order, and how many of them vote.
fn servers(site: &Site, seen_by: usize) -> (Vec<String>, usize) {
    let status = site.at(seen_by).try_coracle(&["status", "--servers", "-o", "json"]);
    let servers: Value = serde_json::from_str(&status.out).unwrap_or_default();
    let servers = servers.as_array().cloned().unwrap_or_default();
    let mut names: Vec<String> =
        servers.iter().map(|server| server["name"].as_str().unwrap_or_default().to_owned()).collect();
    names.sort();
    (names, servers.iter().filter(|server| server["voter"] == true).count())
}

fn three_vote(site: &Site, seen_by: usize) -> bool {
    servers(site, seen_by) == (vec!["m1".to_owned(), "m2".to_owned(), "m3".to_owned()], 3)
}

/// The number of a machine's server.
fn id(site: &Site, number: usize) -> String {
    let text = std::fs::read_to_string(site.at(number).data().join("log/identity")).expect("an identity");
    text.lines().find_map(|line| line.strip_prefix("server ")).expect("a server").to_owned()
}

/// Enough for several segments of the log.
fn write_much(site: &Site, through: usize) {
    let mut api = site.api(Where::Outside, through);
    let text = "x".repeat(700_000);
    for number in 0..60 {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("bulk{number}")}, "data": {"text": text}});
        let answered = api.request("POST", "/api/v1/namespaces/default/configmaps", Some(&map));
        assert!(matches!(answered, Answered::Acknowledged(_)), "{answered:?}");
    }
}

/// The log's segments, oldest first.
fn segments(site: &Site, number: usize) -> Vec<PathBuf> {
    let folder = site.at(number).data().join("log/log");
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    files.retain(|file| file.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".wal")));
    files.sort();
    files
}

/// Flips a byte in the middle of what is written of a file.
fn damage(path: &std::path::Path) {
    let bytes = std::fs::read(path).expect("a segment");
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("something is written");
    let file = std::fs::File::options().write(true).open(path).expect("a segment");
    let at = end / 2;
    file.write_all_at(&[bytes[at] ^ 0x20], at as u64).expect("a byte");
}

/// Starts a machine that must refuse to go on; what it says then.
fn refused(site: &mut Site, number: usize) -> String {
    let before = site.at(number).log().len();
    site.at_mut(number).start();
    assert_eq!(site.at_mut(number).ended(), 1);
    site.at(number).log()[before..].to_owned()
}

#[test]
fn damaged_lost_and_copied_logs() {
    let mut site = Site::new(4);
    site.form(3, 0);
    write_much(&site, 2);
    let first = id(&site, 3);
    site.at_mut(3).kill();
    let segments = segments(&site, 3);
    assert!(segments.len() >= 3, "{segments:?}");
    damage(&segments[segments.len() / 2]);
    let said = refused(&mut site, 3);
    assert!(said.contains("the log is corrupt") && said.contains("must not vote"), "{said}");
    // The others go on without it, and what they take now it must come to know.
    site.at(1).apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: later}\n");

    // As its message says: out of the cluster, and in again with an empty folder.
    site.wait("m3 to be silent, and out", |site| site.at(1).try_coracle(&["leave", "--server", "m3"]).code == 0);
    assert_eq!(servers(&site, 1).0, ["m1", "m2"]);
    assert_eq!(site.at(3).try_coracle(&["down", "--timeout", "5"]).code, 0);
    std::fs::remove_dir_all(site.at(3).data()).expect("its folder goes");
    let token = site.at(1).coracle(&["token", "create", "--server"]).trim().to_owned();
    let url = format!("https://{}:6443", site.address(1));
    let before = site.at(3).readies();
    site.at_mut(3).starts_with(&["join", &url, "--token", &token, "--server"]).start().await_ready(before);
    site.wait("three to vote again", |site| three_vote(site, 1));
    let second = id(&site, 3);
    assert_ne!(second, first, "it is another server now");
    assert!(!site.at(3).get(&["configmap", "later"])["metadata"]["uid"].is_null());

    // Its log alone is lost: with no word from anybody it comes back as a new one, and the old one is forgotten.
    site.at_mut(3).kill();
    std::fs::remove_dir_all(site.at(3).data().join("log")).expect("its log goes");
    let before = site.at(3).readies();
    site.at_mut(3).starts_with(&["up"]).start().await_ready(before);
    site.wait("three to vote once more", |site| three_vote(site, 1));
    assert_ne!(id(&site, 3), second, "it is another server once more");
    site.await_same(&[1, 2, 3]);

    // A copy of a server's folder on another machine.
    let copied = site.at(4).sh(&format!("cp -a {} {}", site.at(3).data().display(), site.at(4).data().display()));
    assert_eq!(copied.code, 0, "{}", copied.err);
    site.at_mut(4).starts_with(&["up"]);
    let said = refused(&mut site, 4);
    assert!(said.contains("the directory has been copied"), "{said}");
    assert!(three_vote(&site, 1));
}
