//! Real kubectl, every version that is found, against one machine with real pods: the examples, unmodified.
//!
//! Each version has a namespace of its own; what concerns the whole node comes last, one version after the other.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use coracle_cluster_tests::kubectl::binaries;
use coracle_cluster_tests::machine::{Machine, Said, program, workspace};
use serde_json::Value;

/// How long anything may take. All versions run side by side.
const PATIENCE: Duration = Duration::from_secs(90);

/// One kubectl, at home in one namespace.
struct Kubectl {
    name: String,
    /// 31 of 1.31.
    minor: u32,
    namespace: String,
    command: Box<dyn Fn() -> Command + Send + Sync>,
}

impl Kubectl {
    fn new(machine: &Machine, name: &str, binary: &Path) -> Self {
        let namespace = name.replace('.', "-");
        let home = machine.folder().join(&namespace);
        std::fs::create_dir(&home).expect("a home");
        let (commands, binary) = (Mutex::new(machine.commands()), binary.to_owned());
        let command = move || {
            let mut command = commands.lock().expect("a lock")(&binary);
            command.env("HOME", &home).current_dir(workspace());
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        };
        let said = command().args(["version", "--client", "-o", "json"]).output().expect("kubectl");
        let version: Value = serde_json::from_slice(&said.stdout).unwrap_or_default();
        let minor = version["clientVersion"]["minor"].as_str().unwrap_or_default().trim_end_matches('+');
        let minor = minor.parse().unwrap_or_else(|_| panic!("{name} does not say its version: {said:?}"));
        Self { name: name.to_owned(), minor, namespace, command: Box::new(command) }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = (self.command)();
        command.args(["-n", &self.namespace]).args(args);
        command
    }

    /// Runs a command, whatever comes of it.
    fn run(&self, args: &[&str]) -> Said {
        self.finish(&mut self.command(args), args, "")
    }

    fn finish(&self, command: &mut Command, args: &[&str], input: &str) -> Said {
        let mut child = command.stdin(Stdio::piped()).spawn().expect("kubectl");
        let _ = child.stdin.take().expect("piped").write_all(input.as_bytes());
        let (out, err) = (child.stdout.take().expect("piped"), child.stderr.take().expect("piped"));
        let (out, err) = (std::thread::spawn(|| text(out)), std::thread::spawn(|| text(err)));
        let until = Instant::now() + PATIENCE;
        let code = loop {
            if let Some(status) = child.try_wait().expect("kubectl") {
                break status.code().unwrap_or(-1);
            }
            if Instant::now() > until {
                let _ = child.kill();
                panic!("{} {args:?} does not end: {}", self.name, out.join().unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(5)); // poll
        };
        Said { code, out: out.join().expect("read"), err: err.join().expect("read") }
    }

    /// Runs a command that must work; its output.
    fn ok(&self, args: &[&str]) -> String {
        let said = self.run(args);
        assert_eq!(said.code, 0, "{} {args:?}: {}{}", self.name, said.out, said.err);
        said.out
    }

    /// Runs a command with an input that must work; its output.
    fn feed(&self, args: &[&str], input: &str) -> String {
        let said = self.finish(&mut self.command(args), args, input);
        assert_eq!(said.code, 0, "{} {args:?}: {}{}", self.name, said.out, said.err);
        said.out
    }

    /// Runs a command whose output must have all these words in it.
    fn shows(&self, args: &[&str], words: &[&str]) -> String {
        let said = self.ok(args);
        for word in words {
            assert!(said.contains(word), "{} {args:?}: `{word}` is missing in\n{said}", self.name);
        }
        said
    }

    /// Runs a command that must be refused with all these words.
    fn refuses(&self, args: &[&str], words: &[&str]) {
        let said = self.run(args);
        assert_ne!(said.code, 0, "{} {args:?} was not refused: {}{}", self.name, said.out, said.err);
        for word in words {
            assert!(said.err.contains(word), "{} {args:?}: `{word}` is missing in\n{}", self.name, said.err);
        }
    }

    /// Runs a command until it shows what is wanted.
    fn until(&self, args: &[&str], done: impl Fn(&str) -> bool) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let said = self.run(args);
            if said.code == 0 && done(&said.out) {
                return said.out;
            }
            assert!(Instant::now() < until, "{} {args:?} goes on with: {}{}", self.name, said.out, said.err);
            std::thread::sleep(Duration::from_millis(100)); // poll
        }
    }

    /// Starts a command that goes on; its lines come one by one.
    fn start(&self, args: &[&str]) -> Running {
        let mut child = self.command(args).spawn().expect("kubectl");
        // Far more than any story prints.
        let (sender, lines) = sync_channel(10_000);
        let out = child.stdout.take().expect("piped");
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Running { child, lines, name: format!("{} {args:?}", self.name) }
    }

    fn rolled_out(&self, what: &str) {
        self.shows(&["rollout", "status", what, "--timeout=80s"], &["successfully rolled out"]);
    }

    fn field(&self, what: &str, path: &str) -> String {
        self.ok(&["get", what, "-o", &format!("jsonpath={{{path}}}")])
    }
}

fn text(mut from: impl std::io::Read) -> String {
    let mut bytes = Vec::new();
    let _ = from.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A command that goes on; it is killed when this is dropped.
struct Running {
    child: Child,
    lines: Receiver<String>,
    name: String,
}

impl Running {
    /// Reads lines up to one that holds all of `words`.
    fn line_with(&self, words: &[&str]) -> String {
        let until = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) if words.iter().all(|word| line.contains(word)) => return line,
                Ok(line) => seen.push(line),
                Err(why) => panic!("{}: no line with {words:?} ({why}); seen: {seen:#?}", self.name),
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_kubectl_works_with_the_examples_and_real_pods() {
    let found = binaries();
    if found.is_empty() {
        println!("SKIP: no kubectl was found: KUBECTL_DIR is not set and none is on the path");
        return;
    }
    let mut machine = Machine::new();
    machine.up();
    import(&machine);
    let all: Vec<Kubectl> = found.iter().map(|(name, binary)| Kubectl::new(&machine, name, binary)).collect();
    std::thread::scope(|scope| {
        let tell = |kubectl: &Kubectl| {
            let start = Instant::now();
            story(kubectl);
            println!("{}: {:.1} s", kubectl.name, start.elapsed().as_secs_f64());
        };
        let stories: Vec<_> = all.iter().map(|kubectl| scope.spawn(move || tell(kubectl))).collect();
        let failed = stories.into_iter().filter_map(|story| story.join().err()).count();
        assert_eq!(failed, 0, "versions whose story failed: see above");
    });
    for kubectl in &all {
        on_the_node(kubectl);
    }
    machine.down();
}

/// The demo image under two names.
fn import(machine: &Machine) {
    for name in ["coracle.local/hello:1", "coracle.local/hello:2"] {
        let layout = machine.folder().join(name.replace(['/', ':'], "-"));
        let mut command = Command::new(program("example-images"));
        let made = command.arg("hello").arg(&layout).args(["--name", name]).output().expect("example-images");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let _ = machine.coracle(&["image", "import", &layout.display().to_string()]);
    }
    if let Some(nginx) = nginx() {
        let _ = machine.coracle(&["image", "import", &nginx.display().to_string()]);
    }
}

/// The image of examples/web.yaml, when the suite of the applications has made it.
fn nginx() -> Option<PathBuf> {
    Some(workspace().join("target/images-cache/nginx")).filter(|layout| layout.join("index.json").exists())
}

fn story(kubectl: &Kubectl) {
    kubectl.shows(&["create", "namespace", &kubectl.namespace], &["created"]);
    from_a_file_to_pods(kubectl);
    what_containers_write(kubectl);
    rollouts(kubectl);
    sets(kubectl);
    changes(kubectl);
    made_by_command(kubectl);
    exposed_by_command(kubectl);
    if nginx().is_some() {
        with_files_from_config_maps(kubectl);
    }
    refusals_and_questions(kubectl);
    away_again(kubectl);
}

const HELLO: &str = "examples/hello.yaml";

fn from_a_file_to_pods(kubectl: &Kubectl) {
    let (watching, everywhere) = (kubectl.start(&["get", "pods", "-w"]), kubectl.start(&["get", "pods", "-A", "-w"]));
    kubectl.shows(&["apply", "-f", HELLO], &["deployment.apps/hello created", "service/hello created"]);
    watching.line_with(&["hello-", "1/1", "Running"]);
    everywhere.line_with(&[&kubectl.namespace, "hello-", "1/1", "Running"]);
    kubectl.rolled_out("deploy/hello");
    kubectl.shows(&["apply", "-f", HELLO], &["deployment.apps/hello unchanged", "service/hello unchanged"]);
    assert_eq!(kubectl.ok(&["diff", "-f", HELLO]), "");
    kubectl.shows(&["wait", "deploy/hello", "--for=condition=Available", "--timeout=60s"], &["condition met"]);
    kubectl.shows(&["wait", "pod", "-l", "app=hello", "--for=condition=Ready", "--timeout=60s"], &["condition met"]);

    kubectl.shows(&["get", "deploy", "hello"], &["3/3"]);
    let wide = kubectl.shows(&["get", "pods", "-o", "wide"], &["node1", "10.42.", "NOMINATED NODE"]);
    assert_eq!(wide.matches("1/1").count(), 3, "{wide}");
    kubectl.shows(&["get", "all"], &["pod/hello-", "service/hello", "deployment.apps/hello", "replicaset.apps/hello-"]);
    kubectl.shows(&["get", "nodes", "-o", "wide"], &["node1", "Ready", "v1.31"]);
    kubectl.shows(&["get", "endpointslices"], &["hello-", "8080"]);
    assert_eq!(kubectl.ok(&["get", "pods", "-l", "app=other", "-o", "name"]), "");
    kubectl.shows(&["get", "pods", "-A", "--field-selector", "status.phase=Running"], &[&kubectl.namespace]);

    kubectl.shows(
        &["describe", "deploy", "hello"],
        &["3 desired", "3 available", "RollingUpdate", "Scaled up replica set"],
    );
    let pod =
        ["coracle.local/hello:1", "Readiness:", "http-get http://:http/ready", "Scheduled", "Started container hello"];
    kubectl.shows(&["describe", "pod", "-l", "app=hello"], &pod);
    // Before 1.31 it is asked for `Endpoints`, the older kind, which is not there: `<none>`.
    let endpoints = if kubectl.minor >= 31 { ":8080" } else { "Endpoints:" };
    kubectl.shows(&["describe", "svc", "hello"], &["ClusterIP", "10.43.", endpoints]);
    kubectl
        .shows(&["describe", "node", "node1"], &["Allocatable:", "Non-terminated Pods:", "hello-", "MemoryPressure"]);
    kubectl.shows(&["get", "events"], &["Started container hello", "ScalingReplicaSet", "Scheduled"]);
    kubectl.shows(&["get", "events", "--field-selector", "reason=Scheduled"], &["Successfully assigned"]);
    kubectl.shows(&["events", "--types=Normal"], &["Started container hello"]);
}

const CRASHING: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: crashing}
spec:
  containers:
  - name: hello
    image: coracle.local/hello:1
    imagePullPolicy: IfNotPresent
    env: [{name: PORT, value: none}]
"#;

fn what_containers_write(kubectl: &Kubectl) {
    kubectl.feed(&["apply", "-f", "-"], CRASHING);
    kubectl.shows(&["logs", "deploy/hello"], &["listens on port 8080"]);
    let pod = kubectl.field("pods", ".items[?(@.metadata.labels.app=='hello')].metadata.name");
    let pod = pod.split_whitespace().next().expect("a pod");
    // The probe asks once a second, and each answer is a line.
    let following = kubectl.start(&["logs", "-f", pod, "--tail=1"]);
    for _ in 0..2 {
        following.line_with(&["/ready"]);
    }
    kubectl.shows(&["logs", pod, "-c", "hello", "--since=1h"], &["listens on port 8080"]);
    assert_eq!(kubectl.ok(&["logs", pod, "--tail=2"]).lines().count(), 2);
    let since = kubectl.ok(&["logs", pod, "--since=2s"]);
    assert!(!since.contains("listens on port") && since.lines().count() <= 6, "{since}");
    let stamped = kubectl.ok(&["logs", pod, "--timestamps", "--tail=1"]);
    assert!(
        stamped.starts_with("20") && stamped.split(' ').next().is_some_and(|time| time.ends_with('Z')),
        "{stamped}"
    );
    kubectl.shows(&["logs", "-l", "app=hello", "--prefix", "--tail=1"], &["[pod/hello-", "/hello]"]);
    kubectl.refuses(&["logs", pod, "-p"], &["previous terminated container \"hello\" in pod"]);

    kubectl.until(&["get", "pod", "crashing"], |said| said.contains("CrashLoopBackOff"));
    kubectl.shows(&["logs", "-p", "crashing"], &["PORT must be a number"]);
    let described = ["Reason:       CrashLoopBackOff", "Exit Code:    2", "BackOff", "Restart Count:"];
    // Between two pauses it runs for a moment.
    kubectl.until(&["describe", "pod", "crashing"], |said| described.iter().all(|word| said.contains(word)));
    kubectl.shows(&["delete", "pod", "crashing"], &["deleted"]);
}

fn rollouts(kubectl: &Kubectl) {
    let image = "..spec.template.spec.containers[0].image".strip_prefix('.').unwrap_or_default();
    kubectl.shows(&["scale", "deploy/hello", "--replicas=2"], &["scaled"]);
    kubectl.until(&["get", "deploy", "hello"], |said| said.contains("2/2"));
    let following = kubectl.start(&["rollout", "status", "deploy/hello", "-w"]);
    following.line_with(&["successfully rolled out"]);

    let watching = kubectl.start(&["get", "deploy", "hello", "-w"]);
    kubectl.shows(&["set", "image", "deploy/hello", "hello=coracle.local/hello:2"], &["image updated"]);
    kubectl.rolled_out("deploy/hello");
    watching.line_with(&["hello", "2/2"]);
    let images = kubectl.field("pods", ".items[?(@.status.phase=='Running')].spec.containers[0].image");
    assert!(images.contains("hello:2"), "{images}");
    kubectl.ok(&["annotate", "deploy/hello", "kubernetes.io/change-cause=the second image"]);
    let history = kubectl.shows(&["rollout", "history", "deploy/hello"], &["REVISION", "CHANGE-CAUSE"]);
    assert_eq!(history.lines().filter(|line| line.starts_with(['1', '2'])).count(), 2, "{history}");
    kubectl.shows(&["rollout", "history", "deploy/hello", "--revision=1"], &["coracle.local/hello:1"]);

    kubectl.shows(&["rollout", "undo", "deploy/hello"], &["rolled back"]);
    kubectl.rolled_out("deploy/hello");
    assert_eq!(kubectl.field("deploy/hello", image), "coracle.local/hello:1");
    kubectl.shows(&["rollout", "undo", "deploy/hello", "--to-revision=2"], &["rolled back"]);
    assert_eq!(kubectl.field("deploy/hello", image), "coracle.local/hello:2");
    kubectl
        .refuses(&["rollout", "undo", "deploy/hello", "--to-revision=77"], &["unable to find specified revision 77"]);

    kubectl.shows(&["rollout", "pause", "deploy/hello"], &["paused"]);
    kubectl.refuses(&["rollout", "restart", "deploy/hello"], &["can't restart paused deployment"]);
    kubectl.refuses(&["rollout", "undo", "deploy/hello"], &["paused"]);
    kubectl.shows(&["rollout", "resume", "deploy/hello"], &["resumed"]);
    kubectl.rolled_out("deploy/hello");
    let before = kubectl.field("deploy/hello", ".metadata.generation");
    kubectl.shows(&["rollout", "restart", "deploy/hello"], &["restarted"]);
    assert_ne!(kubectl.field("deploy/hello", ".metadata.generation"), before);
    kubectl.rolled_out("deploy/hello");
}

const PEERS: &str = "examples/peers.yaml";
const EVERYWHERE: &str = "examples/everywhere.yaml";
const OLD: &str = r#"
apiVersion: v1
kind: ReplicationController
metadata: {name: old}
spec:
  template:
    metadata: {labels: {app: old}}
    spec:
      containers: [{name: hello, image: "coracle.local/hello:1", imagePullPolicy: IfNotPresent}]
"#;

/// The kinds whose pods are told apart, and the oldest.
fn sets(kubectl: &Kubectl) {
    kubectl.shows(&["apply", "-f", PEERS], &["service/peers created", "statefulset.apps/peers created"]);
    kubectl.shows(&["apply", "-f", EVERYWHERE], &["daemonset.apps/everywhere created"]);
    kubectl.feed(&["apply", "-f", "-"], OLD);
    for (what, file) in [("sts/peers", PEERS), ("ds/everywhere", EVERYWHERE)] {
        let done = if what == "sts/peers" { "partitioned roll out complete" } else { "successfully rolled out" };
        let rolled_out = || kubectl.shows(&["rollout", "status", what, "--timeout=80s"], &[done]);
        rolled_out();
        kubectl.shows(&["apply", "-f", file], &["unchanged"]);
        assert_eq!(kubectl.ok(&["diff", "-f", file]), "");
        kubectl.shows(&["set", "image", what, "hello=coracle.local/hello:2"], &["image updated"]);
        rolled_out();
        kubectl.shows(&["rollout", "history", what], &["REVISION", "1 ", "2 "]);
        kubectl.shows(&["rollout", "history", what, "--revision=1"], &["coracle.local/hello:1"]);
        kubectl.shows(&["rollout", "undo", what], &["rolled back"]);
        rolled_out();
        let image = ".spec.template.spec.containers[0].image";
        assert_eq!(kubectl.field(what, image), "coracle.local/hello:1");
        // The revision of the template that came back has a new number.
        kubectl.shows(&["rollout", "history", what], &["2 ", "3 "]);
        kubectl.shows(&["rollout", "undo", what, "--to-revision=3"], &["skipped rollback"]);
        kubectl.refuses(&["rollout", "undo", what, "--to-revision=77"], &["unable to find specified revision"]);
        kubectl.shows(&["rollout", "restart", what], &["restarted"]);
        rolled_out();
        // Back to the file's own template, which has no time of a restart.
        kubectl.shows(&["rollout", "undo", what], &["rolled back"]);
        rolled_out();
    }
    kubectl.shows(&["get", "sts", "peers"], &["READY", "3/3"]);
    kubectl.shows(&["get", "ds", "everywhere"], &["DESIRED", "CURRENT", "UP-TO-DATE", "NODE SELECTOR", "<none>"]);
    kubectl.shows(&["get", "controllerrevisions"], &["statefulset.apps/peers", "daemonset.apps/everywhere"]);
    let all = ["pod/peers-0", "statefulset.apps/peers", "daemonset.apps/everywhere", "replicationcontroller/old"];
    kubectl.shows(&["get", "all"], &all);
    kubectl.shows(&["describe", "sts", "peers"], &["3 desired", "3 Running", "Partition:", "SuccessfulCreate"]);
    kubectl.shows(&["describe", "ds", "everywhere"], &["Desired Number of Nodes Scheduled: 1", "SuccessfulCreate"]);
    kubectl.shows(&["describe", "rc", "old"], &["Selector:     app=old", "1 desired"]);
    kubectl.shows(&["explain", "sts.spec.updateStrategy"], &["rollingUpdate"]);
    kubectl.shows(&["explain", "ds.spec"], &["minReadySeconds"]);
    kubectl.shows(&["label", "pod", "-l", "app=everywhere", "seen=yes"], &["labeled"]);

    kubectl.shows(&["scale", "sts/peers", "--replicas=1"], &["scaled"]);
    kubectl.until(&["get", "pods", "-l", "app=peers", "-o", "name"], |said| said.trim() == "pod/peers-0");
    kubectl.shows(&["scale", "rc/old", "--replicas=2"], &["scaled"]);
    kubectl.until(&["get", "rc", "old", "-o", "jsonpath={.status.readyReplicas}"], |said| said == "2");
    kubectl.refuses(&["scale", "ds/everywhere", "--replicas=2"], &["could not find the requested resource"]);

    // What is orphaned is taken over by the next of its name.
    kubectl.shows(&["delete", "sts", "peers", "--cascade=orphan"], &["deleted"]);
    let before = kubectl.field("pod/peers-0", ".metadata.uid");
    kubectl.shows(&["apply", "-f", PEERS], &["statefulset.apps/peers created"]);
    kubectl.until(&["get", "sts", "peers"], |said| said.contains("3/3"));
    assert_eq!(kubectl.field("pod/peers-0", ".metadata.uid"), before);
    let gone = ["statefulset.apps \"peers\" deleted", "daemonset.apps \"everywhere\" deleted"];
    kubectl.shows(&["delete", "-f", PEERS, "-f", EVERYWHERE], &gone);
    kubectl.shows(&["delete", "rc", "old"], &["deleted"]);
    kubectl.until(
        &["get", "controllerrevisions,pods", "-l", "app in (peers,everywhere,old)", "-o", "name"],
        str::is_empty,
    );
}

fn changes(kubectl: &Kubectl) {
    let template = ".spec.template.metadata";
    for (kind, patch) in [
        ("merge", r#"{"spec":{"minReadySeconds":1}}"#),
        ("json", r#"[{"op":"replace","path":"/spec/minReadySeconds","value":0}]"#),
        ("strategic", r#"{"spec":{"template":{"metadata":{"annotations":{"by":"patch"}}}}}"#),
    ] {
        kubectl.shows(&["patch", "deploy", "hello", "--type", kind, "-p", patch], &["patched"]);
    }
    assert_eq!(kubectl.field("deploy/hello", &format!("{template}.annotations.by")), "patch");
    kubectl.rolled_out("deploy/hello");
    kubectl.shows(&["label", "deploy/hello", "tier=front"], &["labeled"]);
    kubectl.refuses(&["label", "deploy/hello", "tier=back"], &["already has a value"]);
    kubectl.shows(&["label", "deploy/hello", "tier=back", "--overwrite"], &["labeled"]);
    kubectl.shows(&["get", "deploy", "-l", "tier=back"], &["hello"]);
    kubectl.shows(&["label", "deploy/hello", "tier-"], &["unlabeled"]);
    kubectl.shows(&["annotate", "deploy/hello", "note=seen"], &["annotate"]);
    assert_eq!(kubectl.field("deploy/hello", ".metadata.annotations.note"), "seen");
    let mut edit = kubectl.command(&["edit", "deploy/hello"]);
    edit.env("KUBE_EDITOR", "sed -i -e s/replicas:.2/replicas:\\ 3/");
    let said = kubectl.finish(&mut edit, &["edit"], "");
    assert!(said.code == 0 && said.out.contains("deployment.apps/hello edited"), "{}: {said:?}", kubectl.name);
    kubectl.until(&["get", "deploy", "hello"], |said| said.contains("3/3"));
    kubectl.shows(&["set", "env", "deploy/hello", "DRAIN_MS=100"], &["env updated"]);
    kubectl.shows(&["set", "resources", "deploy/hello", "--limits=memory=48Mi"], &["resource requirements updated"]);
    kubectl.rolled_out("deploy/hello");
    // Back to the file: only what the file says and others have changed.
    let differs = kubectl.run(&["diff", "-f", HELLO]);
    assert!(differs.code == 1 && differs.out.contains("+        image: coracle.local/hello:1"), "{differs:?}");
    kubectl.shows(&["apply", "-f", HELLO], &["deployment.apps/hello configured", "service/hello unchanged"]);
    kubectl.rolled_out("deploy/hello");
}

fn made_by_command(kubectl: &Kubectl) {
    let image = "--image=coracle.local/hello:1";
    kubectl.shows(&["create", "configmap", "settings", "--from-literal=color=red"], &["created"]);
    kubectl.shows(&["create", "secret", "generic", "keys", "--from-literal=pw=hidden"], &["created"]);
    let described = kubectl.shows(&["describe", "secret", "keys"], &["pw:", "6 bytes"]);
    assert!(!described.contains("hidden"), "{described}");
    kubectl.shows(&["create", "deployment", "made", image, "--replicas=1", "--port=8080"], &["created"]);
    kubectl.shows(&["expose", "deployment", "made", "--port=80", "--target-port=8080"], &["exposed"]);
    kubectl.shows(&["run", "alone", image, "--env=PORT=8081", "--labels=by=run"], &["created"]);
    kubectl.shows(&["set", "env", "deploy/made", "--from=configmap/settings"], &["env updated"]);
    kubectl.rolled_out("deploy/made");
    kubectl.shows(&["wait", "pod/alone", "--for=condition=Ready", "--timeout=60s"], &["condition met"]);
    kubectl.shows(&["logs", "alone"], &["listens on port 8081"]);
    kubectl.shows(&["get", "pod", "alone", "-o", "yaml"], &["image: coracle.local/hello:1", "phase: Running"]);
    kubectl.until(&["get", "endpointslices", "-l", "kubernetes.io/service-name=made"], |said| said.contains("10.42."));
    let waiting = kubectl.start(&["wait", "pod/alone", "--for=delete", "--timeout=60s"]);
    kubectl.shows(&["delete", "pod", "alone", "--grace-period=1"], &["deleted"]);
    waiting.line_with(&["pod/alone condition met"]);
    kubectl.shows(&["delete", "deploy,svc", "made"], &["deployment.apps \"made\" deleted", "service \"made\" deleted"]);
    kubectl.shows(&["delete", "configmap/settings", "secret/keys"], &["deleted"]);
}

/// A Service of each type, made and changed by command, and what the columns say of it.
fn exposed_by_command(kubectl: &Kubectl) {
    let expose = ["expose", "deployment", "hello", "--name=out", "--type=NodePort", "--port=80", "--target-port=8080"];
    kubectl.shows(&expose, &["exposed"]);
    let number = kubectl.field("svc/out", ".spec.ports[0].nodePort");
    let ports = format!("80:{number}/TCP");
    kubectl.shows(&["get", "svc", "out"], &["NodePort", "10.43.", "<none>", &ports]);
    kubectl.shows(&["describe", "svc", "out"], &["NodePort:", &number, "External Traffic Policy:", "Cluster"]);
    let to = |kind: &str| format!(r#"{{"spec":{{"type":"{kind}"}}}}"#);
    kubectl.shows(&["patch", "svc", "out", "-p", &to("ClusterIP")], &["patched"]);
    assert_eq!(kubectl.field("svc/out", ".spec.ports[0].nodePort"), "");
    kubectl.shows(&["delete", "svc", "out"], &["deleted"]);
    kubectl.shows(&["create", "service", "externalname", "alias", "--external-name=db.example.com"], &["created"]);
    kubectl.shows(&["get", "svc", "alias"], &["ExternalName", "<none>", "db.example.com"]);
    kubectl.shows(&["delete", "svc", "alias"], &["deleted"]);
    // Of one class of its own, so that nobody waits for the port: all versions use one cluster.
    let balancer = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"lb"},
        "spec":{"type":"LoadBalancer","loadBalancerClass":"example.com/none","ports":[{"port":80}]}}"#;
    kubectl.feed(&["apply", "-f", "-"], balancer);
    assert!(kubectl.feed(&["apply", "-f", "-"], balancer).contains("service/lb unchanged"));
    kubectl.shows(&["get", "svc", "lb"], &["LoadBalancer", "<pending>", "80:3"]);
    kubectl.shows(&["delete", "svc", "lb"], &["deleted"]);
}

fn with_files_from_config_maps(kubectl: &Kubectl) {
    let web = "examples/web.yaml";
    kubectl
        .shows(&["apply", "-f", web], &["configmap/web created", "secret/web created", "deployment.apps/web created"]);
    kubectl.rolled_out("deploy/web");
    // Of a Secret kubectl compares what it sent, and `stringData` is never stored: it is patched each time, to no effect.
    let same = ["configmap/web unchanged", "deployment.apps/web unchanged", "service/web unchanged"];
    kubectl.shows(&["apply", "-f", web], &same);
    kubectl.shows(&["describe", "deploy", "web"], &["Type:      ConfigMap", "Startup:", "/srv/www from page"]);
    kubectl.shows(&["rollout", "restart", "deploy/web"], &["restarted"]);
    kubectl.rolled_out("deploy/web");
    kubectl.shows(&["delete", "-f", web], &["configmap \"web\" deleted", "deployment.apps \"web\" deleted"]);
}

fn refusals_and_questions(kubectl: &Kubectl) {
    let pod = kubectl.field("pods", ".items[0].metadata.name");
    kubectl.refuses(&["exec", &pod, "--", "true"], &["exec is not supported yet"]);
    kubectl.refuses(&["attach", &pod], &["attach is not supported yet"]);
    kubectl.refuses(&["port-forward", &pod, "18080:8080"], &["portforward is not supported yet"]);
    kubectl.refuses(&["cp", "README.md", &format!("{pod}:/tmp/x")], &["exec is not supported yet"]);
    kubectl.refuses(&["top", "pods"], &["Metrics API not available"]);
    kubectl.refuses(&["top", "nodes"], &["Metrics API not available"]);
    kubectl.refuses(&["apply", "--server-side", "-f", HELLO], &["server-side apply is not supported yet"]);
    kubectl.refuses(&["get", "deploy", "none"], &["Error from server (NotFound): deployments.apps \"none\" not found"]);
    kubectl.refuses(&["get", "nonsense"], &["doesn't have a resource type \"nonsense\""]);
    kubectl.shows(&["auth", "can-i", "create", "pods"], &["yes"]);
    assert_eq!(kubectl.ok(&["get", "--raw", "/healthz"]), "ok");
    kubectl.shows(&["get", "--raw", "/readyz?verbose"], &["ok"]);
    kubectl.shows(&["api-resources"], &["deployments", "apps/v1", "endpointslices"]);
    kubectl.shows(&["api-versions"], &["apps/v1", "discovery.k8s.io/v1"]);
    kubectl.shows(&["version"], &["Server Version", "v1.31"]);
    kubectl.shows(&["cluster-info"], &["is running at"]);
    kubectl.shows(&["explain", "deployment.spec.strategy"], &["rollingUpdate", "type"]);
    kubectl.shows(&["explain", "pods.spec.containers", "--recursive"], &["configMapKeyRef"]);
}

fn away_again(kubectl: &Kubectl) {
    let watching = kubectl.start(&["get", "pods", "-w", "--output-watch-events"]);
    watching.line_with(&["ADDED", "hello-"]);
    kubectl.shows(&["delete", "-f", HELLO], &["deployment.apps \"hello\" deleted", "service \"hello\" deleted"]);
    watching.line_with(&["DELETED", "hello-"]);
    kubectl.until(&["get", "pods", "-o", "name"], str::is_empty);
    kubectl.refuses(&["delete", "-f", HELLO], &["NotFound"]);
    kubectl.ok(&["delete", "-f", HELLO, "--ignore-not-found"]);
    assert_eq!(kubectl.ok(&["get", "rs,endpointslices", "-o", "name"]), "");
}

/// A node is closed, emptied and opened again.
fn on_the_node(kubectl: &Kubectl) {
    kubectl.shows(&["create", "deployment", "moved", "--image=coracle.local/hello:1"], &["created"]);
    kubectl.rolled_out("deploy/moved");
    kubectl.shows(&["apply", "-f", EVERYWHERE], &["created"]);
    kubectl.rolled_out("ds/everywhere");
    kubectl.shows(&["cordon", "node1"], &["cordoned"]);
    kubectl.shows(&["get", "node", "node1"], &["Ready,SchedulingDisabled"]);
    let drain = ["drain", "node1", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s"];
    kubectl.shows(&drain, &["drained"]);
    kubectl.until(&["get", "pods"], |said| said.contains("Pending"));
    // The daemon's pod stays, and one that is deleted comes back to the closed node.
    kubectl.shows(&["delete", "pod", "-l", "app=everywhere"], &["deleted"]);
    kubectl.rolled_out("ds/everywhere");
    kubectl.until(&["describe", "pods"], |said| said.contains("FailedScheduling"));
    kubectl.shows(&["uncordon", "node1"], &["uncordoned"]);
    kubectl.rolled_out("deploy/moved");
    kubectl.shows(&["delete", "namespace", &kubectl.namespace], &["deleted"]);
}
