//! Pods that cannot run, or go wrong while they do: each says why, once, where a person looks; nothing of them is left behind.

use std::path::PathBuf;
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

fn container(machine: &Machine, pod: &str) -> Value {
    machine.get(&[&format!("pod/{pod}")])["status"]["containerStatuses"][0].clone()
}

/// The STATUS that `coracle get pods` shows.
fn shown(machine: &Machine, pod: &str) -> String {
    let table = machine.coracle(&["get", "pods"]);
    let row = table.lines().find(|line| line.starts_with(&format!("{pod} "))).unwrap_or_default().to_owned();
    row.split_whitespace().nth(2).unwrap_or_default().to_owned()
}

/// Waits until `get pods` shows one of these, and then looks for each part of the message in `describe`.
fn tells(machine: &mut Machine, pod: &str, reasons: &[&str], message: &[&str]) -> String {
    let mut status = String::new();
    machine.wait(&format!("pod/{pod} to be {reasons:?}"), |machine| {
        status = shown(machine, pod);
        reasons.contains(&status.as_str())
    });
    let described = machine.coracle(&["describe", &format!("pod/{pod}")]);
    for part in message {
        assert!(described.contains(part), "`{part}` is missing in\n{described}");
    }
    // Its reason is told by exactly one event, which counts.
    let warnings: Vec<&str> = described.lines().filter(|line| line.starts_with("  Warning")).collect();
    assert_eq!(warnings.len(), 1, "one warning was expected:\n{described}");
    // No message runs on as if lines had been glued together.
    assert!(!described.contains("   hint:"), "{described}");
    described
}

/// Deletes all pods, in vain or not; then takes the machine down.
fn clean(machine: &mut Machine) {
    let pods = machine.coracle(&["get", "pods", "-o", "name"]);
    let _ = machine.coracle(&[&["delete"], pods.lines().collect::<Vec<_>>().as_slice()].concat());
    assert_eq!(machine.get(&["pods"])["items"].as_array().map(Vec::len), Some(0));
    machine.down();
}

#[test]
fn an_image_that_cannot_be_had_is_told() {
    let mut machine = Machine::new();
    machine.up();
    let arm = layout(&machine, "arm", "registry.test/arm:1", "linux/arm64");
    let registry = registry::serve(&machine, &arm);
    let ghost = format!("{registry}/ghost:1");
    let mut yaml = pod("ghost", &ghost, "");
    yaml += &pod("closed", "127.0.0.1:1/app:1", "");
    yaml += &pod("never", "coracle.local/other:1", ", imagePullPolicy: Never");
    yaml += &pod("arm", &format!("{registry}/arm:1"), "");
    machine.apply(&yaml);
    let missing = format!("there is no image {ghost} in the registry; hint: check the name and the tag");
    tells(&mut machine, "ghost", &["ErrImagePull"], &[&missing]);
    let refused = "cannot reach the registry 127.0.0.1:1: ";
    tells(&mut machine, "closed", &["ErrImagePull"], &[refused, "onnection refused", "; hint: is the name right"]);
    let never = "is not on this machine and the policy `Never` forbids a pull; hint: `coracle image import FILE`";
    tells(&mut machine, "never", &["ErrImageNeverPull"], &[never]);
    let arm_only = "arm:1 has nothing for linux/amd64; it is there for linux/arm64; hint: take an image";
    tells(&mut machine, "arm", &["ErrImagePull"], &[arm_only]);
    // Once the image is there, the pod starts without anybody touching it.
    let _ = layout(&machine, "arm", "registry.test/ghost:1", "linux/amd64");
    machine.wait("the pod to find its image", |machine| shown(machine, "ghost") == "Running");
    // From the second failure on it is the wait that is shown, with the cause.
    machine.wait("the second failure", |machine| shown(machine, "closed") == "ImagePullBackOff");
    let waiting = container(&machine, "closed")["state"]["waiting"]["message"].as_str().unwrap_or_default().to_owned();
    assert!(waiting.starts_with("Back-off pulling image") && waiting.contains(refused), "{waiting}");
    // An import of what does not fit says so at once.
    let said = machine.try_coracle(&["image", "import", &arm.display().to_string()]);
    assert!(said.code == 1 && said.err.contains("it is there for linux/arm64\nhint: take an image"), "{said:?}");
    clean(&mut machine);
}

#[test]
fn a_container_that_does_not_live_is_told() {
    let mut machine = Machine::new();
    machine.up();
    machine.import_hello();
    let mut yaml = pod("nothing", HELLO, ", command: [/nothing, at, all]");
    yaml += &pod("data", HELLO, ", command: [/etc/passwd]");
    yaml += &pod("crash", HELLO, ", env: [{name: PORT, value: none}]");
    machine.apply(&yaml);
    let no_file = "exec: \"/nothing\": executable file not found in the image; hint: no shell reads `command`";
    tells(&mut machine, "nothing", &["RunContainerError"], &[no_file, "exit code 127"]);
    let no_program = "exec: \"/etc/passwd\": permission denied; hint: it must be a file that";
    tells(&mut machine, "data", &["RunContainerError"], &[no_program, "exit code 127"]);
    // Ends by itself with 2: the first restart comes at once, then each a time later.
    let hint = "`coracle logs crash -c main` shows its last words";
    tells(&mut machine, "crash", &["CrashLoopBackOff"], &["restarting failed container", "exit code 2", hint]);
    let logs = machine.coracle(&["logs", "crash"]);
    assert_eq!(logs.trim_end(), "PORT must be a number from 1 to 65535");
    machine.wait("restarts to be counted", |machine| {
        container(machine, "crash")["restartCount"].as_u64().is_some_and(|restarts| restarts >= 3)
            && shown(machine, "crash") == "CrashLoopBackOff"
    });
    let told = container(&machine, "crash");
    let message = told["state"]["waiting"]["message"].as_str().unwrap_or_default();
    let seconds = message.strip_prefix("back-off ").and_then(|rest| rest.split_once("s ")).map(|(number, _)| number);
    assert!(seconds.and_then(|text| text.parse::<u64>().ok()).is_some_and(|seconds| seconds >= 2), "{message}");
    assert_eq!((&told["lastState"]["terminated"]["exitCode"], &told["ready"]), (&Value::from(2), &Value::from(false)));
    clean(&mut machine);
}

#[test]
fn a_container_that_eats_more_than_its_limit_is_told() {
    let mut machine = Machine::new();
    machine.up();
    machine.import_hello();
    machine.apply(&pod("eater", HELLO, ", resources: {limits: {memory: 24Mi}}"));
    let mut ip = String::new();
    machine.wait("the pod to answer", |machine| {
        ip = machine.get(&["pod/eater"])["status"]["podIP"].as_str().unwrap_or_default().to_owned();
        machine.http(&format!("{ip}:8080"), "/ready").is_some()
    });
    let meal = machine.http(&format!("{ip}:8080"), "/eat?mb=4");
    assert_eq!(meal.as_deref(), Some("ate 4 MB\n"));
    assert_eq!(machine.http(&format!("{ip}:8080"), "/eat?mb=200"), None);
    machine.wait("the container to be back", |machine| {
        let container = container(machine, "eater");
        container["restartCount"] == 1 && container["state"]["running"].is_object()
    });
    let told = container(&machine, "eater");
    assert_eq!(told["lastState"]["terminated"]["reason"], "OOMKilled");
    assert_eq!(told["lastState"]["terminated"]["exitCode"], 137);
    let words = "Container main was killed: it used more memory than its limit 24Mi";
    let described = tells(&mut machine, "eater", &["Running"], &["ended: OOMKilled, exit code 137", words]);
    assert!(described.contains("OOMKilling"), "{described}");
    machine.wait("the pod to answer again", |machine| machine.http(&format!("{ip}:8080"), "/ready").is_some());
    clean(&mut machine);
}
