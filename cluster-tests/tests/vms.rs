//! Three virtual machines, each with systemd, cgroup v2 and a kernel of its own, are one cluster, and have the days that three real
//! machines have. We stand beside them on their bridge, as one more host, and see what such a host sees.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use coracle_cluster_tests::vm::site::{Vms, address};
use coracle_cluster_tests::vm::witness::{Client, HEARTBEATS, Heartbeats, ask};
use coracle_cluster_tests::vm::{self, image::Disks};
use serde_json::Value;

/// A Deployment of examples/hello with so many copies, and a Service of its name.
fn app(name: &str, replicas: usize, template: &str, pod: &str, environment: &str) -> String {
    format!(
        r#"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  strategy: {{type: Recreate}}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}{template}}}
    spec:
      terminationGracePeriodSeconds: 2
      {pod}
      containers:
      - name: hello
        image: coracle.local/hello:1
        imagePullPolicy: IfNotPresent
        env: [{{name: DRAIN_MS, value: "100"}}{environment}]
        readinessProbe: {{httpGet: {{path: /ready, port: 8080}}, periodSeconds: 2, timeoutSeconds: 5}}
---
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{selector: {{app: {name}}}, ports: [{{port: 80, targetPort: 8080}}]}}
---
"#
    )
}

/// Stays where it is when its machine is silent for a while: an emulated one takes its time to start a program.
const PATIENT: &str =
    "tolerations: [{key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 120}]";

/// Only there, and patient.
fn on(node: &str) -> String {
    format!("nodeSelector: {{kubernetes.io/hostname: {node}}}\n      {PATIENT}")
}

/// What a pod is to us.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pod {
    node: usize,
    address: Option<IpAddr>,
    ready: bool,
    /// The container's id and its restarts.
    container: (String, u64),
}

/// The pods of an app by name, as one server sees them; none when it does not answer. Without a name, all.
fn pods(site: &Vms, seen_by: usize, app: &str) -> BTreeMap<String, Pod> {
    let list = site.get(seen_by, "pods");
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let ours = items.iter().filter(|pod| app.is_empty() || pod["metadata"]["labels"]["app"] == app);
    ours.map(|pod| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let status = &pod["status"]["containerStatuses"][0];
        let seen = Pod {
            node: text(&pod["spec"]["nodeName"]).trim_start_matches("vm").parse().unwrap_or(0),
            address: text(&pod["status"]["podIP"]).parse().ok(),
            ready: status["ready"] == true && pod["metadata"]["deletionTimestamp"].is_null(),
            container: (text(&status["containerID"]), status["restartCount"].as_u64().unwrap_or(u64::MAX)),
        };
        (text(&pod["metadata"]["name"]), seen)
    })
    .collect()
}

/// All pods, as one server sees them once it answers: for a moment there may be no leader.
fn all_pods(site: &mut Vms, seen_by: usize) -> BTreeMap<String, Pod> {
    let mut seen = BTreeMap::new();
    site.wait("the pods to be told", |site| {
        seen = pods(site, seen_by, "");
        !seen.is_empty()
    });
    seen
}

/// Whether so many pods of an app are ready, and nothing else is left of it.
fn stands(site: &Vms, seen_by: usize, app: &str, replicas: usize) -> bool {
    let pods = pods(site, seen_by, app);
    pods.len() == replicas && pods.values().all(|pod| pod.ready)
}

fn service(site: &mut Vms, seen_by: usize, name: &str) -> SocketAddr {
    let mut found = None;
    site.wait("a Service to be told", |site| {
        let service = site.get(seen_by, &format!("service/{name}"));
        found = service["spec"]["clusterIP"].as_str().and_then(|address| address.parse().ok());
        found.is_some()
    });
    SocketAddr::new(found.expect("it was told"), 80)
}

/// We send what is for Services by this machine, and what is for pods by theirs.
fn route_by(site: &mut Vms, machine: usize) {
    site.inside("ip", &["route", "replace", "10.43.0.0/16", "via", &address(machine).to_string()]);
    let mut nodes = Vec::new();
    site.wait("the nodes to be told", |site| {
        nodes = site.get(machine, "nodes")["items"].as_array().cloned().unwrap_or_default();
        nodes.len() == 3
    });
    for node in &nodes {
        let number: usize = node["metadata"]["name"].as_str().unwrap_or("vm0")[2..].parse().expect("a number");
        let block = node["spec"]["podCIDR"].as_str().expect("a block of addresses");
        site.inside("ip", &["route", "replace", block, "via", &address(number).to_string()]);
    }
}

/// One question, asked from where we stand.
fn asked(site: &Vms, to: SocketAddr, path: &str) -> Option<String> {
    let path = path.to_owned();
    site.beside(move || ask(to, &path)).join().expect("no panic")
}

#[test]
fn three_machines_are_one_cluster() {
    if !vm::possible() {
        return;
    }
    let begun = Instant::now();
    let disks = Disks::make();
    println!("disks: {:.1} s", begun.elapsed().as_secs_f64());
    let mut site = Vms::boot(3, disks);
    for number in 1..=3 {
        let vm = site.at(number);
        println!("vm{number}: up after {:.1} s ({})", vm.booted().as_secs_f64(), vm.accelerator());
    }
    let started = Instant::now();
    site.form();
    println!("three servers and nodes: {:.1} s", started.elapsed().as_secs_f64());
    started_apps(&mut site);
    reach_each_other(&mut site);
    others_at_work(&mut site);
    a_paused_machine(&mut site);
    a_lost_machine(&mut site);
    println!("all: {:.1} s", begun.elapsed().as_secs_f64());
}

/// The image comes to one machine and is found by the others.
fn started_apps(site: &mut Vms) {
    let started = Instant::now();
    site.wait("the image to be imported", |site| {
        site.at(1).sh("coracle image import /usr/local/share/hello.image").code == 0
    });
    let yaml =
        app("web", 3, "", PATIENT, "") + &app("near", 1, "", &on("vm1"), "") + &app("far", 1, "", &on("vm2"), "");
    site.apply(1, &yaml);
    site.wait("all pods to be ready", |site| {
        let all = pods(site, 2, "");
        all.len() == 5 && all.values().all(|pod| pod.ready)
    });
    println!("apply -> five pods ready: {:.1} s", started.elapsed().as_secs_f64());
    route_by(site, 1);
}

/// Every pod of `web` reaches those of other machines by address, and all by the Service's address and name.
fn reach_each_other(site: &mut Vms) {
    let all = all_pods(site, 1);
    let vip = service(site, 1, "web");
    let mut asked_pods = 0;
    for from in all.values() {
        let own = SocketAddr::new(from.address.expect("ready"), 8080);
        for to in all.values().filter(|to| to.node != from.node) {
            let path = format!("/ask?host={}&port=8080", to.address.expect("ready"));
            site.wait(&format!("{path} from {own}"), |site| asked(site, own, &path).is_some());
            asked_pods += 1;
        }
        for path in [format!("/ask?host={}", vip.ip()), "/ask?host=web".to_owned()] {
            site.wait(&format!("{path} from {own}"), |site| asked(site, own, &path).is_some());
        }
    }
    let machines: std::collections::BTreeSet<_> = all.values().map(|pod| pod.node).collect();
    assert_eq!(machines.len(), 3, "pods on every machine: {all:?}");
    println!(
        "{asked_pods} pairs of pods on different machines reach each other; all reach the Service by address and name"
    );
}

/// Since when the first machine's node is what it is.
fn ready_since(site: &Vms) -> Value {
    let node = site.get(2, "node/vm1");
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    conditions.filter(|one| one["type"] == "Ready").map(|one| one["lastTransitionTime"].clone()).collect()
}

/// What others do to the first machine, and what a host beside it sees of the Service whose only pod is there.
fn others_at_work(site: &mut Vms) {
    let near = service(site, 1, "near");
    let known = all_pods(site, 2);
    let mut ready = ready_since(site);
    let plain = Client::of(site, near, "/");
    // In through this machine's rules, from its pod to its name server, and out again to a pod elsewhere.
    let through = Client::of(site, near, "/ask?host=far");
    site.wait("answers", |_| plain.answered() > 20 && through.answered() > 5);
    let (base, base_through) = (plain.take(), through.take());
    println!("undisturbed: longest silence {:?}, by name to another machine {:?}", base.longest, base_through.longest);
    // What README.md says of machines with a firewall, as `firewall-cmd --permanent` writes it.
    let zone = r#"<zone><service name="ssh"/><port port="6443-6445" protocol="tcp"/><port port="8472" protocol="udp"/><forward/></zone>"#;
    site.at(1).must(&format!("echo '{zone}' >/etc/firewalld/zones/public.xml"));
    let events = [
        "systemctl restart coracle",
        "systemctl start docker",
        "systemctl restart docker",
        "systemctl stop docker docker.socket containerd",
        "systemctl start firewalld",
        "firewall-cmd --reload",
        "systemctl stop firewalld",
    ];
    for event in events {
        let _ = plain.take();
        let _ = through.take();
        let started = Instant::now();
        site.at(1).must(event);
        let took = started.elapsed();
        site.wait(&format!("{event}: answers"), |_| plain.answered() > 5);
        site.wait(&format!("{event}: answers by name"), |_| through.answered() > 2);
        site.wait(&format!("{event}: the program to answer"), |site| pods(site, 1, "").len() == known.len());
        let (seen, seen_through) = (plain.take(), through.take());
        println!(
            "{event}: {:.1} s; longest silence {:?} ({} failures of {}), by name to another machine {:?} ({} failures of {})",
            took.as_secs_f64(),
            seen.longest,
            seen.failures,
            seen.answers + seen.failures,
            seen_through.longest,
            seen_through.failures,
            seen_through.answers + seen_through.failures
        );
        let now = all_pods(site, 1);
        let containers = |pods: &BTreeMap<String, Pod>| -> Vec<_> {
            pods.iter().map(|(name, pod)| (name.clone(), pod.container.clone())).collect()
        };
        assert_eq!(containers(&now), containers(&known), "{event}: containers were restarted or replaced");
        // A second, or on a machine on which a second is nothing the same in its own measure. While firewalld is at work it drops
        // every new connection, whoever's: that long is its own. Pods of a node that is silent for 4 s, as an emulated one that is
        // busy with others may be, are out of their Services until it is heard.
        let mut limit = Duration::from_secs(1).max(10 * base.longest);
        if event.contains("firewall") {
            limit += took;
        }
        let since = ready_since(site);
        if since != ready {
            println!("(meanwhile the machine was taken for lost)");
            limit += Duration::from_secs(20);
            ready = since;
        }
        assert!(seen.longest < limit, "{event}: the Service was silent for {:?}, more than {limit:?}", seen.longest);
    }
}

/// A machine stands still for longer than a lease and goes on: its fenced pod has moved, and the one left behind must end.
fn a_paused_machine(site: &mut Vms) {
    let heartbeat = format!(", {{name: HEARTBEAT, value: \"{HEARTBEATS}\"}}");
    site.apply(1, &app("only", 1, ", annotations: {coracle.dev/fenced: \"true\"}", "", &heartbeat));
    let heard = Heartbeats::of(site);
    let mut old = (String::new(), 0);
    site.wait("a fenced pod that is heard", |site| {
        let ready = pods(site, 1, "only").into_iter().find(|(_, pod)| pod.ready);
        old = ready.map_or((String::new(), 0), |(name, pod)| (name, pod.node));
        stands(site, 1, "only", 1) && heard.last(&old.0).is_some_and(|last| last.elapsed() < Duration::from_secs(1))
    });
    let (old, node) = old;
    let seen_by = 1 + node % 3;
    let began = Instant::now();
    site.at(node).pause();
    let mut new = String::new();
    site.wait("the fenced pod to run elsewhere", |site| {
        new = pods(site, seen_by, "only").into_keys().find(|name| *name != old).unwrap_or_default();
        heard.first(&new).is_some()
    });
    let moved = heard.first(&new).expect("heard").duration_since(began);
    println!("vm{node} paused -> its fenced pod runs elsewhere: {moved:?}");
    assert_eq!(heard.since(&old, began + Duration::from_secs(2)), 0, "a machine that stands still says nothing");
    let resumed = Instant::now();
    site.at(node).resume();
    site.wait("the machine's node to be ready again", |site| site.ready_nodes(seen_by).len() == 3);
    println!("resumed -> its node is ready: {:?}", resumed.elapsed());
    site.wait("one copy to be left", |site| stands(site, seen_by, "only", 1));
    let late = heard.last(&old).filter(|last| *last > resumed).map_or(Duration::ZERO, |last| last - resumed);
    println!("resumed -> the pod left behind was last heard: {late:?} ({} heartbeats)", heard.since(&old, resumed));
    // Without a look at the board's clock it has what was left of its lease: more than three seconds.
    assert!(late < Duration::from_millis(2_500), "the pod left behind went on for {late:?}");
    let quiet = Instant::now();
    site.wait("a hundred heartbeats of the new one", |_| heard.since(&new, quiet) > 100);
    assert_eq!(heard.since(&old, quiet), 0, "the pod left behind still runs");
}

/// The machine of the leader loses its power, and has it again.
fn a_lost_machine(site: &mut Vms) {
    let mut lost = 0;
    site.wait("a leader", |site| {
        let status = site.at(1).sh("coracle status --servers -o json").out;
        let servers: Value = serde_json::from_str(&status).unwrap_or_default();
        let leader = servers.as_array().into_iter().flatten().find(|server| server["leader"] == true);
        let name = leader.and_then(|server| server["name"].as_str()).unwrap_or_default();
        lost = name.trim_start_matches("vm").parse().unwrap_or(0);
        lost > 0
    });
    let seen_by = 1 + lost % 3;
    route_by(site, seen_by);
    let known = all_pods(site, seen_by);
    // Those that are replaced as soon as their machine is lost.
    site.apply(seen_by, &app("web", 3, ", annotations: {patient: \"no\"}", "", ""));
    site.wait("new copies", |site| {
        let web = pods(site, seen_by, "web");
        stands(site, seen_by, "web", 3) && web.keys().all(|name| !known.contains_key(name))
    });
    let web = service(site, seen_by, "web");
    let client = Client::of(site, web, "/");
    site.wait("answers", |_| client.answered() > 20);
    let undisturbed = client.take();
    let before = all_pods(site, seen_by);
    let began = Instant::now();
    site.at(lost).kill();
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: after}\ndata: {a: b}\n";
    site.wait("a write to be taken", |site| site.try_apply(seen_by, map));
    println!("vm{lost}, the leader's machine, is gone -> a write is taken: {:?}", began.elapsed());
    site.wait("replacements to run", |site| {
        let web = pods(site, seen_by, "web");
        web.values().filter(|pod| pod.ready && pod.node != lost).count() == 3
    });
    println!("-> three replicas on two machines: {:?}", began.elapsed());
    let seen = client.take();
    println!(
        "meanwhile the Service was silent for {:?} at most ({:?} before; {} answers, {} failures)",
        seen.longest, undisturbed.longest, seen.answers, seen.failures
    );
    assert!(seen.longest < Duration::from_secs(10), "the Service did not go on");
    let kept = all_pods(site, seen_by);
    let began = Instant::now();
    site.power_on(lost);
    println!("power on -> systemd has all up: {:?}", began.elapsed());
    site.wait("three ready nodes", |site| site.ready_nodes(seen_by).len() == 3);
    site.wait("its server to answer with what was written meanwhile", |site| {
        site.get(lost, "cm/after")["data"]["a"] == "b"
    });
    site.wait("every app to stand", |site| {
        [("web", 3), ("near", 1), ("far", 1), ("only", 1)].iter().all(|(app, count)| stands(site, seen_by, app, *count))
    });
    println!("power on -> all stands: {:?}", began.elapsed());
    let now = all_pods(site, seen_by);
    for (name, pod) in before.iter().chain(&kept).filter(|(_, pod)| pod.node != lost && pod.ready) {
        let still = now.get(name).map(|pod| &pod.container);
        assert_eq!(still, Some(&pod.container), "{name} was right and was restarted or replaced");
    }
}
