//! Real applications: Debian's nginx and redis as the examples have them, found by name, changed in place, and rolled
//! under a constant load that loses no request.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use coracle_cluster_tests::machine::{Machine, have, program, workspace};
use serde_json::{Value, json};

/// HTTP requests in Perl, which redis' packages bring along: `get(host, path, headers)` gives the status and the body.
const HTTP: &str = r#"
use strict; use warnings; use IO::Socket::INET;
sub get {
    my ($host, $path, @headers) = @_;
    my $socket = IO::Socket::INET->new(PeerAddr => $host, PeerPort => 80, Timeout => 10) or return ("no connection: $@", "");
    my $request = join("\r\n", "GET $path HTTP/1.0", "Host: web", @headers, "", "");
    print {$socket} $request or return ("no request: $!", "");
    $socket->flush;
    local $/;
    my $answer = <$socket>;
    return ("no answer: $!", "") unless defined $answer && $answer =~ m{^HTTP/1\.. (\d+).*?\r\n\r\n(.*)}s;
    return ($1, $2);
}
"#;

/// The images of the examples as layouts, made once and kept: packages and layers are the same the next time.
/// None where they cannot be made.
fn images() -> Option<[std::path::PathBuf; 2]> {
    static MADE: OnceLock<()> = OnceLock::new();
    if !have("apt-get") || !have("dpkg-deb") {
        return None;
    }
    let cache = workspace().join("target/images-cache");
    let layouts = ["nginx", "redis"].map(|name| cache.join(name));
    MADE.get_or_init(|| {
        let maker = program("example-images");
        let made = |path: &std::path::Path| path.metadata().and_then(|file| file.modified());
        for layout in &layouts {
            let fresh =
                made(&layout.join("index.json")).is_ok_and(|image| made(&maker).is_ok_and(|maker| maker < image));
            if !fresh {
                let _ = std::fs::remove_dir_all(layout);
                let mut command = Command::new(&maker);
                command.arg(layout.file_name().unwrap_or_default()).arg(layout).arg("--cache").arg(&cache);
                let output = command.output().expect("example-images");
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
        }
    });
    Some(layouts)
}

/// A machine with both images.
fn machine(layouts: &[std::path::PathBuf]) -> Machine {
    let mut machine = Machine::new();
    machine.up();
    for layout in layouts {
        let _ = machine.coracle(&["image", "import", &layout.display().to_string()]);
    }
    machine
}

/// Runs a shell script in a pod of its own; what it wrote. Nobody but the pod's own resolver and network is asked.
fn ask(machine: &mut Machine, namespace: &str, name: &str, script: &str) -> String {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace},
        "spec": {"restartPolicy": "Never", "containers": [{
            "name": "client", "image": "coracle.local/redis:1", "imagePullPolicy": "IfNotPresent",
            "command": ["/bin/sh", "-ec", script], "env": [{"name": "HTTP", "value": HTTP}],
        }]},
    });
    machine.apply(&pod.to_string());
    let target = format!("pod/{name}");
    let mut phase = Value::Null;
    machine.wait(&format!("the client {name} to end"), |machine| {
        phase = machine.get(&["-n", namespace, &target])["status"]["phase"].take();
        phase == "Succeeded" || phase == "Failed"
    });
    let said = machine.coracle(&["logs", "-n", namespace, &target]);
    assert_eq!(phase, "Succeeded", "the client {name} said: {said}");
    let _ = machine.coracle(&["delete", "-n", namespace, &target]);
    said
}

fn cluster_ip(machine: &Machine, service: &str) -> String {
    machine.get(&[&format!("svc/{service}")])["spec"]["clusterIP"].as_str().unwrap_or_default().to_owned()
}

fn pods(machine: &Machine, app: &str) -> Vec<String> {
    let pods = machine.get(&["pods", "-l", &format!("app={app}")]);
    let names = pods["items"].as_array().into_iter().flatten().filter_map(|pod| pod["metadata"]["name"].as_str());
    names.map(ToOwned::to_owned).collect()
}

#[test]
fn nginx_and_redis_are_found_by_name_and_ask_for_their_passwords() {
    let Some(layouts) = images() else { return };
    let mut machine = machine(&layouts);
    for file in ["examples/web.yaml", "examples/redis.yaml"] {
        let _ = machine.coracle(&["apply", "-f", file]);
    }
    machine.wait_ready("web", 2);
    machine.wait_ready("redis", 1);
    for file in ["examples/web.yaml", "examples/redis.yaml"] {
        let again = machine.coracle(&["apply", "-f", file]);
        assert_eq!(again.matches("unchanged").count(), 4, "{again}");
    }

    let script = r#"
        for name in web web.default web.default.svc web.default.svc.cluster.local; do
            echo "address of $name: $(getent ahostsv4 $name | sed -n '1s/ .*//p')"
            perl -e "$HTTP"'my ($code, $body) = get($ARGV[0], "/"); print "$ARGV[0]: $code $body"' $name
        done
        perl -e "$HTTP"'print "stranger: ", (get("web", "/private/index.html"))[0], "\n"'
        perl -e "$HTTP"'print "liar: ", (get("web", "/private/index.html", "Authorization: Basic YWRtaW46d3Jvbmc="))[0], "\n"'
        perl -e "$HTTP"'print "admin: ", join(" ", get("web", "/private/index.html", "Authorization: Basic YWRtaW46Y29yYWNsZQ=="))'
        for name in redis redis.default.svc.cluster.local; do
            echo "$name, stranger: $(redis-cli -h $name ping 2>&1)"
            echo "$name, friend: $(redis-cli --no-auth-warning -h $name -a change-me ping 2>&1)"
        done
        redis-cli --no-auth-warning -h redis -a change-me set mark kept
        redis-cli --no-auth-warning -h redis -a change-me config get maxmemory
        getent hosts nobody || echo "nobody: not found"
    "#;
    let said = ask(&mut machine, "default", "client", script);
    let address = cluster_ip(&machine, "web");
    for name in ["web", "web.default", "web.default.svc", "web.default.svc.cluster.local"] {
        assert!(said.contains(&format!("address of {name}: {address}\n")), "{name}: {said}");
        assert!(said.contains(&format!("{name}: 200 <!doctype html>\n<title>Coracle</title>")), "{name}: {said}");
    }
    for line in ["stranger: 401\n", "liar: 401\n", "admin: 200 <!doctype html>", "nobody: not found", "OK\n"] {
        assert!(said.contains(line), "{line}: {said}");
    }
    for name in ["redis", "redis.default.svc.cluster.local"] {
        assert!(said.contains(&format!("{name}, stranger: NOAUTH")), "{said}");
        assert!(said.contains(&format!("{name}, friend: PONG")), "{said}");
    }
    // 64mb, as the ConfigMap has it.
    assert!(said.contains("maxmemory\n67108864\n"), "{said}");
    let access = machine.coracle(&["logs", "deploy/web"]);
    assert!(access.contains("\"GET / HTTP/1.0\" 200") && access.contains("- admin ["), "{access}");

    elsewhere(&mut machine);
    replaced_by_hand(&mut machine);
    machine.down();
}

/// From another namespace the short name means nothing, the longer ones do.
fn elsewhere(machine: &mut Machine) {
    machine.apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: elsewhere}\n");
    let script = r#"
        getent hosts web || echo "web: not found"
        perl -e "$HTTP"'print "web.default: ", (get("web.default", "/"))[0], "\n"'
        echo "redis.default: $(redis-cli --no-auth-warning -h redis.default -a change-me get mark)"
    "#;
    let said = ask(machine, "elsewhere", "client", script);
    assert_eq!(said, "web: not found\nweb.default: 200\nredis.default: kept\n");
}

/// A pod that is deleted by hand is replaced, and the name leads to the new one, whose emptyDir is empty.
fn replaced_by_hand(machine: &mut Machine) {
    let before = pods(machine, "redis");
    assert_eq!(before.len(), 1, "{before:?}");
    let _ = machine.coracle(&["delete", &format!("pod/{}", before[0])]);
    machine.wait("another redis", |machine| {
        let now = pods(machine, "redis");
        now.len() == 1 && now != before
    });
    machine.wait_ready("redis", 1);
    let script = r#"redis-cli --no-auth-warning -h redis -a change-me ping
        echo "mark: $(redis-cli --no-auth-warning -h redis -a change-me get mark)""#;
    // Ready to the Deployment, the endpoint is a moment behind.
    machine.wait("an endpoint for the new redis", |machine| {
        let slices = machine.get(&["endpointslices", "-l", "kubernetes.io/service-name=redis"]);
        let endpoints = slices["items"][0]["endpoints"].as_array().cloned().unwrap_or_default();
        !endpoints.is_empty() && endpoints.iter().all(|endpoint| endpoint["conditions"]["ready"] == true)
    });
    let said = ask(machine, "default", "client", script);
    assert_eq!(said, "PONG\nmark: \n");
}

#[test]
fn a_changed_config_map_changes_the_mounted_file_without_a_restart() {
    let Some(layouts) = images() else { return };
    let mut machine = machine(&layouts[..1]);
    let _ = machine.coracle(&["apply", "-f", "examples/web.yaml"]);
    machine.wait_ready("web", 2);
    let address = format!("{}:80", cluster_ip(&machine, "web"));
    machine
        .wait("the page", |machine| machine.http(&address, "/").is_some_and(|page| page.contains("from a ConfigMap")));
    let before = machine.container_ids();

    let yaml = std::fs::read_to_string(workspace().join("examples/web.yaml")).expect("the example");
    let changed = yaml.replacen("This page comes from a ConfigMap.", "This page has been changed.", 1);
    assert_ne!(changed, yaml, "the example has changed: this test must too");
    let said = machine.apply(&changed);
    assert!(said.contains("configmap/web configured") && said.contains("deployment.apps/web unchanged"), "{said}");
    let since = Instant::now();
    // Two pods take turns to answer: so many in a row are not from one of them.
    machine.wait("the changed page from both pods", |machine| {
        (0..12).all(|_| machine.http(&address, "/").is_some_and(|page| page.contains("has been changed")))
    });
    println!("a changed ConfigMap is in the files of both pods after {:.1} s", since.elapsed().as_secs_f64());
    assert_eq!(machine.container_ids(), before, "containers were restarted or replaced");
    machine.down();
}

/// Clients side by side that ask the Service over and over.
struct Load {
    answers: Arc<AtomicU64>,
    lost: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// From the machine itself, each request on a connection of its own.
    fn start(machine: &Machine, address: &str, path: &'static str, clients: usize) -> Self {
        let address = SocketAddr::from((address.parse::<Ipv4Addr>().expect("an address"), 80));
        let mut load =
            Self { answers: Arc::default(), lost: Arc::default(), stop: Arc::default(), clients: Vec::new() };
        for _ in 0..clients {
            let namespace = std::fs::File::open(machine.namespace()).expect("a namespace");
            let (answers, lost, stop) = (load.answers.clone(), load.lost.clone(), load.stop.clone());
            load.clients.push(std::thread::spawn(move || {
                let network = Some(rustix::thread::LinkNameSpaceType::Network);
                rustix::thread::move_into_link_name_space(namespace.as_fd(), network).expect("root");
                let start = Instant::now();
                while !stop.load(Ordering::SeqCst) {
                    match request(address, path) {
                        Ok(()) => _ = answers.fetch_add(1, Ordering::SeqCst),
                        Err(why) => lost.lock().expect("a lock").push(format!("{:?}: {why}", start.elapsed())),
                    }
                }
            }));
        }
        load
    }

    fn answers(&self) -> u64 {
        self.answers.load(Ordering::SeqCst)
    }

    /// Ends it; how many answers came.
    fn end(self) -> u64 {
        self.stop.store(true, Ordering::SeqCst);
        for client in self.clients {
            client.join().expect("a client");
        }
        let lost = self.lost.lock().expect("a lock").clone();
        assert_eq!(lost, Vec::<String>::new(), "requests were lost");
        self.answers.load(Ordering::SeqCst)
    }
}

/// One request; why it was lost otherwise. An answer is whole only with its last byte.
fn request(address: SocketAddr, path: &str) -> Result<(), String> {
    let limit = Duration::from_secs(20);
    let mut stream = TcpStream::connect_timeout(&address, limit).map_err(|error| format!("connect: {error}"))?;
    stream.set_read_timeout(Some(limit)).map_err(|error| error.to_string())?;
    let words = format!("GET {path} HTTP/1.0\r\nHost: web\r\n\r\n");
    stream.write_all(words.as_bytes()).map_err(|error| format!("write: {error}"))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(|error| format!("read after {} bytes: {error}", answer.len()))?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| format!("half an answer: {text:?}"))?;
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let whole = length.and_then(|length| length.parse().ok()) == Some(body.len());
    (head.starts_with("HTTP/1.1 200") && whole).then_some(()).ok_or_else(|| format!("a bad answer: {head}"))
}

/// Clients in pods, which find the Service by its name each time; they write a line for each second and for each request lost.
const LOAD_PODS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: load}
spec:
  replicas: 2
  selector: {matchLabels: {app: load}}
  template:
    metadata: {labels: {app: load}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: client
        image: coracle.local/redis:1
        imagePullPolicy: IfNotPresent
        command: [perl, -e]
        args: [SCRIPT]
"#;

const LOAD_SCRIPT: &str = r#"
$| = 1;
my ($answers, $said) = (0, time);
while (1) {
    my ($code, $body) = get("web", "/");
    if ($code eq "200" && $body =~ /Coracle/) { $answers++ } else { print "LOST ", scalar(localtime), ": $code\n" }
    if (time != $said) { $said = time; print "answers: $answers\n" }
}
"#;

/// What the clients in pods have got so far.
fn answers_in_pods(machine: &Machine) -> u64 {
    let said = machine.coracle(&["logs", "deploy/load"]);
    let mut last = std::collections::BTreeMap::new();
    for line in said.lines() {
        let (pod, words) = line.split_once(" | ").unwrap_or(("", line));
        assert!(!words.contains("LOST"), "requests were lost in pods: {said}");
        if let Some(count) = words.trim().strip_prefix("answers: ").and_then(|count| count.parse::<u64>().ok()) {
            last.insert(pod.to_owned(), count);
        }
    }
    last.values().sum()
}

#[test]
fn a_rolling_update_of_nginx_loses_no_request() {
    let Some(layouts) = images() else { return };
    let mut machine = machine(&layouts);
    let yaml = std::fs::read_to_string(workspace().join("examples/web.yaml")).expect("the example");
    // An answer that takes a while: a pod that is stopped has to finish it.
    let healthz = "        location = /healthz {";
    let long = format!("        location = /long {{ limit_rate 100; try_files /index.html =404; }}\n{healthz}");
    let yaml = yaml.replacen(healthz, &long, 1);
    assert!(yaml.contains("/long"), "the example has changed: this test must too");
    machine.apply(&yaml);
    machine.wait_ready("web", 2);
    let address = cluster_ip(&machine, "web");
    machine.wait("the page", |machine| machine.http(&format!("{address}:80"), "/").is_some());
    machine.apply(&LOAD_PODS.replace("SCRIPT", &json!(format!("{HTTP}{LOAD_SCRIPT}")).to_string()));
    machine.wait_ready("load", 2);
    let load = Load::start(&machine, &address, "/", 4);
    let long = Load::start(&machine, &address, "/long", 2);

    for round in 0..4 {
        let before = (load.answers(), answers_in_pods(&machine));
        let template = "    metadata:\n      labels:\n";
        let rolled = format!("    metadata:\n      annotations: {{round: r{round}}}\n      labels:\n");
        let changed = yaml.replacen(template, &rolled, 1);
        assert_ne!(changed, yaml, "the example has changed: this test must too");
        let old = pods(&machine, "web");
        let said = machine.apply(&changed);
        assert!(said.contains("deployment.apps/web configured"), "{said}");
        machine.wait_ready("web", 2);
        gone(&mut machine, &old);
        machine.wait("the load to go on", |machine| load.answers() > before.0 && answers_in_pods(machine) > before.1);
    }
    for replicas in [4, 1, 3, 2] {
        let old = pods(&machine, "web");
        let _ = machine.coracle(&["scale", "deploy/web", "--replicas", &replicas.to_string()]);
        machine.wait_ready("web", replicas);
        machine.wait("the surplus to be gone", |machine| pods(machine, "web").len() as u64 == replicas);
        assert!(old.len() as u64 <= replicas || pods(&machine, "web").iter().all(|pod| old.contains(pod)));
    }
    let in_pods = answers_in_pods(&machine);
    let (short, long) = (load.end(), long.end());
    assert!(long > 3, "too few long answers: {long}");
    println!("answers: {short} to the machine itself, {long} long ones, {in_pods} to pods; none lost");
    machine.down();
}

fn gone(machine: &mut Machine, old: &[String]) {
    machine.wait("the old pods to be gone", |machine| pods(machine, "web").iter().all(|pod| !old.contains(pod)));
}
