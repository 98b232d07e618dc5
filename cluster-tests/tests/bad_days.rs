//! Bad input and bad days of pods and starts: each gives one clear message where a person looks, and nothing is lost or left.

use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_cluster_tests::machine::{Machine, program};
use coracle_cluster_tests::registry;
use serde_json::Value;

const HELLO: &str = "coracle.local/hello:1";

/// An image of the demo server for `platform`, in a layout below the machine's folder.
fn layout(machine: &Machine, folder: &str, name: &str, platform: &str) -> PathBuf {
    let layout = machine.folder().join(folder);
    let mut command = Command::new(program("example-images"));
    command.arg("hello").arg(&layout).args(["--name", name, "--platform", platform]);
    let built = command.output().expect("example-images");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    layout
}

/// A pod of one container; `more` is the rest of the container, in flow style.
fn pod(name: &str, image: &str, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - {{name: main, image: \"{image}\"{more}}}\n---\n"
    )
}

/// The state of a pod's container: its kind, its reason, and the whole of it.
fn state(machine: &Machine, pod: &str) -> (String, String, Value) {
    let pod = machine.get(&[&format!("pod/{pod}")]);
    let state = &pod["status"]["containerStatuses"][0]["state"];
    let kind = ["waiting", "running", "terminated"].into_iter().find(|kind| state[*kind].is_object()).unwrap_or("none");
    (kind.to_owned(), state[kind]["reason"].as_str().unwrap_or_default().to_owned(), state[kind].clone())
}

/// The STATUS that `coracle get pods` shows.
fn shown(machine: &Machine, pod: &str) -> String {
    let table = machine.coracle(&["get", "pods"]);
    let row = table.lines().find(|line| line.starts_with(&format!("{pod} "))).unwrap_or_default().to_owned();
    row.split_whitespace().nth(2).unwrap_or_default().to_owned()
}

#[test]
fn pods_that_cannot_run_say_why() {
    let mut machine = Machine::new();
    machine.up();
    machine.import_hello();
    let arm = layout(&machine, "arm", "registry.test/arm:1", "linux/arm64");
    let registry = registry::serve(&machine, &arm);
    let mut yaml = String::new();
    yaml += &pod("ghost", &format!("{registry}/ghost:1"), "");
    yaml += &pod("closed", "127.0.0.1:1/app:1", "");
    yaml += &pod("never", "coracle.local/other:1", ", imagePullPolicy: Never");
    yaml += &pod("arm", &format!("{registry}/arm:1"), "");
    yaml += &pod("nothing", HELLO, ", command: [/nothing, at, all]");
    yaml += &pod("data", HELLO, ", command: [/etc/passwd]");
    yaml += &pod("crash", HELLO, ", env: [{name: PORT, value: none}]");
    yaml += &pod("eater", HELLO, ", resources: {limits: {memory: 24Mi}}");
    machine.apply(&yaml);
    std::thread::sleep(std::time::Duration::from_secs(6));
    let ip = machine.get(&["pod/eater"])["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    println!("{:?}", machine.http(&format!("{ip}:8080"), "/eat?mb=100"));
    std::thread::sleep(std::time::Duration::from_secs(2));
    println!("{}", machine.coracle(&["get", "pods", "-o", "wide"]));
    println!("{}", machine.coracle(&["describe", "pods"]));
    println!("{}", machine.coracle(&["logs", "crash"]));
    println!("{:?}", machine.try_coracle(&["image", "import", &arm.display().to_string()]));
    let _ = (state(&machine, "ghost"), shown(&machine, "ghost"), Path::new("/"));
    machine.down();
    panic!("look");
}
