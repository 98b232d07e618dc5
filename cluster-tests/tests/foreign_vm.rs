//! The whole thing in a virtual machine: systemd, cgroup v2 and a Debian kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use coracle_cluster_tests::vm::{self, Vm, image::Disks};

/// Everything that `coracle` makes outside of its folders, a line each. Few programs are started: each takes its time.
const TRACES: &str = r#"
ip -o link | sed 's/^[0-9]*: /link /; s/ qlen.*//'
ip -o -4 addr | sed 's/^[0-9]*: /address /; s/ *valid_lft.*//'
ip -4 route | sed 's/^/route /'
ip rule | sed 's/^/rule /'
nft list tables | sed 's/^/packets /'
find /sys/fs/cgroup -maxdepth 1 -type d -printf 'cgroup %p\n'
sed 's/^/mount /; s/,fd=[0-9]*//; s/,pipe_ino=[0-9]*//; s/,size=[0-9]*k,nr_inodes=[0-9]*//' /proc/self/mounts
find /run/netns -printf 'namespace %p\n'
find /proc/[0-9]*/exe -maxdepth 0 -printf 'process %l\n' | grep -E 'coracle|podmon|hello|memfd'
true"#;

/// What the kernel says of the processes of our containers: number and start time. No program is started for it.
const CONTAINERS: &str = "for stat in /proc/[0-9]*/stat; do read -r line <$stat && [[ $line == *'(hello)'* ]] && \
     { words=($line); echo ${words[0]} ${words[21]}; }; done 2>/dev/null; true";

fn traces(vm: &mut Vm) -> BTreeSet<String> {
    vm.must(TRACES).lines().map(ToOwned::to_owned).collect()
}

/// What the API has of the default namespace, in one answer: a program in this machine takes a second to say anything.
#[derive(Debug, Default, PartialEq)]
struct Seen {
    /// `hello` has three ready replicas of its present template, and no others.
    ready: bool,
    /// Pod -> container's id and restarts.
    containers: BTreeMap<String, (String, u64)>,
    maps: BTreeSet<String>,
}

fn look(vm: &mut Vm) -> Seen {
    let mut seen = Seen::default();
    for object in vm.get("deploy,pods,cm")["items"].as_array().into_iter().flatten() {
        let (name, status) = (object["metadata"]["name"].as_str().unwrap_or_default().to_owned(), &object["status"]);
        match object["kind"].as_str() {
            Some("Deployment") => {
                seen.ready = status["observedGeneration"] == object["metadata"]["generation"]
                    && ["replicas", "updatedReplicas", "readyReplicas"].iter().all(|field| status[field] == 3);
            }
            Some("Pod") => {
                let container = &status["containerStatuses"][0];
                let id = container["containerID"].as_str().unwrap_or_default().to_owned();
                seen.containers.insert(name, (id, container["restartCount"].as_u64().unwrap_or(u64::MAX)));
            }
            _ => {
                seen.maps.insert(name);
            }
        }
    }
    seen
}

#[test]
fn demo_and_kills_under_systemd() {
    if !vm::possible() {
        return;
    }
    let begun = Instant::now();
    let disks = Disks::make();
    println!("disks: {:.1} s", begun.elapsed().as_secs_f64());
    let mut vm = Vm::boot(&disks);
    println!("boot until systemd has all up: {:.1} s ({})", vm.booted().as_secs_f64(), vm.accelerator());
    println!("kernel {}", vm.must("uname -r").trim());
    vm.must("systemctl enable --now nftables");
    let before = traces(&mut vm);

    let service = demo(&mut vm);
    limits_are_in_the_kernel(&mut vm);
    kills(&mut vm, &service);
    memory_is_kept(&mut vm);
    stop_and_start(&mut vm, &service);
    others_change_the_network(&mut vm, &service);
    power_cut(&mut vm, &service);
    assert_eq!(vm.must("systemctl --failed --plain --no-legend"), "");

    let started = Instant::now();
    vm.must("coracle down --timeout 20");
    println!("down: {:.1} s", started.elapsed().as_secs_f64());
    // Longer than the unit waits before it starts a program again that ended.
    let said = vm.must("sleep 2; systemctl is-active coracle || true");
    assert_eq!(said, "inactive\n", "systemd has started it again");
    let after = traces(&mut vm);
    let left: Vec<_> = after.difference(&before).collect();
    let lost: Vec<_> = before.difference(&after).collect();
    assert!(left.is_empty() && lost.is_empty(), "left behind: {left:#?}\nlost: {lost:#?}");
    println!("all: {:.1} s", begun.elapsed().as_secs_f64());
}

/// The service by its unit, the image, the manifest, an answer by name; the address of the Service.
fn demo(vm: &mut Vm) -> String {
    let started = Instant::now();
    vm.must("systemctl enable --now coracle");
    vm.wait("a ready node", |vm| vm.sh("coracle get nodes").out.contains(" Ready"));
    println!("systemctl start -> node Ready: {:.1} s", started.elapsed().as_secs_f64());
    vm.must("coracle image import /usr/local/share/hello.image");
    let started = Instant::now();
    vm.must("coracle apply -f /usr/local/share/hello.yaml");
    vm.wait("three ready replicas", |vm| look(vm).ready);
    println!("apply -> 3 ready replicas: {:.1} s", started.elapsed().as_secs_f64());
    let object = vm.get("svc/hello");
    let host = object["spec"]["clusterIP"].as_str().unwrap_or_default();
    let service = format!("{host}:{}", object["spec"]["ports"][0]["port"]);
    println!("Service -> answer by name: {:.1} s", vm.asked(&service));
    service
}

/// Every container is in a v2 cgroup with what its manifest says: 64 MiB, 10m.
fn limits_are_in_the_kernel(vm: &mut Vm) {
    let script = "for stat in /proc/[0-9]*/stat; do read -r line <$stat && [[ $line == *'(hello)'* ]] || continue; \
         read -r group <${stat%stat}cgroup; cd /sys/fs/cgroup/${group#0::} && \
         echo $group $(cat memory.max memory.swap.max memory.oom.group cpu.weight pids.max; wc -l <cgroup.procs); done 2>/dev/null";
    let said = vm.must(script);
    assert_eq!(said.lines().count(), 3, "{said}");
    for line in said.lines() {
        let (group, limits) = line.split_once(' ').unwrap_or_default();
        assert!(group.starts_with("0::/coracle/pods/"), "{line}");
        assert_eq!(limits.trim(), "67108864 0 1 1 max 1", "{line}");
    }
    // What systemd keeps for itself stays its own: the unit holds the program and nothing of the pods.
    let unit = vm.must("cat /sys/fs/cgroup/system.slice/coracle.service/cgroup.procs");
    let main = vm.must("systemctl show --property MainPID --value coracle");
    assert_eq!(unit, main, "the unit has other processes than its program");
}

/// `kill -9`, rounds of it: no acknowledged write is lost, no container notices.
fn kills(vm: &mut Vm, service: &str) {
    let (known, kernel) = (look(vm), vm.must(CONTAINERS));
    assert_eq!(kernel.lines().count(), 3, "{kernel}");
    for round in 0..2 {
        let kill = "kill -9 $(systemctl show --property MainPID --value coracle)";
        let map = format!("apiVersion: v1\\nkind: ConfigMap\\nmetadata:\\n  name: c{round}\\ndata: {{a: b}}\\n");
        vm.must(&format!("printf '{map}' | coracle apply -f - && {kill}"));
        let started = Instant::now();
        assert!(vm.http(service, "/").is_some(), "the Service must answer without `coracle`");
        survived(vm, round, &known, &kernel);
        println!("kill {round} -> all answers: {:.1} s, {:.1} s", started.elapsed().as_secs_f64(), vm.asked(service));
    }
    // One after the other as fast as systemd starts it: most hit a start.
    let storm = "for kill in 1 2 3 4 5 6; do for try in $(seq 100); do \
         pid=$(systemctl show --property MainPID --value coracle); [ $pid != 0 ] && break; sleep 0.1; done; \
         kill -9 $pid; while [ -d /proc/$pid ]; do sleep 0.1; done; done; systemctl show --property NRestarts --value coracle";
    let started = Instant::now();
    let restarts = vm.must(storm);
    survived(vm, 1, &known, &kernel);
    println!(
        "six kills in a row -> all answers: {:.1} s, restarts {}",
        started.elapsed().as_secs_f64(),
        restarts.trim()
    );
}

/// Waits until the API answers again; then everything must be as it was.
fn survived(vm: &mut Vm, round: u32, known: &Seen, kernel: &str) {
    let mut seen = Seen::default();
    vm.wait("the program to be back", |vm| {
        seen = look(vm);
        seen.ready
    });
    for earlier in 0..=round {
        assert!(seen.maps.contains(&format!("c{earlier}")), "an acknowledged write is gone: {seen:?}");
    }
    assert_eq!(seen.containers, known.containers, "containers were restarted or replaced");
    assert_eq!(vm.must(CONTAINERS), kernel, "processes were replaced");
}

/// A container that wants more than its limit is killed by the kernel, said to be, and started again.
fn memory_is_kept(vm: &mut Vm) {
    let pod = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "eater"}, "spec": {"containers": [
        {"name": "eater", "image": "coracle.local/hello:1", "resources": {"limits": {"memory": "32Mi"}}}]}}"#;
    vm.must(&format!("echo '{pod}' | coracle apply -f -"));
    let mut address = String::new();
    vm.wait("the eater to run", |vm| {
        let status = vm.get("pod/eater")["status"].clone();
        address = format!("{}:8080", status["podIP"].as_str().unwrap_or_default());
        status["containerStatuses"][0]["ready"] == true
    });
    assert!(vm.http(&address, "/eat?mb=8").is_some(), "8 MB are within the limit");
    assert_eq!(vm.http(&address, "/eat?mb=100"), None, "100 MB are not");
    vm.wait("the eater to be killed and to run again", |vm| {
        let status = vm.get("pod/eater")["status"]["containerStatuses"][0].clone();
        let last = &status["lastState"]["terminated"];
        status["restartCount"] == 1
            && status["ready"] == true
            && last["reason"] == "OOMKilled"
            && last["exitCode"] == 137
    });
    assert!(look(vm).ready, "others are not touched");
    vm.must("coracle delete pod/eater");
    vm.wait("the eater to be gone", |vm| vm.sh("coracle get pod/eater").code == 3);
}

/// Stopping the unit stops no pod; the next start takes them over.
fn stop_and_start(vm: &mut Vm, service: &str) {
    let (known, kernel) = (look(vm), vm.must(CONTAINERS));
    let started = Instant::now();
    vm.must("systemctl stop coracle");
    println!("systemctl stop: {:.1} s", started.elapsed().as_secs_f64());
    assert_eq!(vm.must(CONTAINERS), kernel, "pods were stopped");
    assert!(vm.http(service, "/").is_some(), "the Service must answer without `coracle`");
    vm.must("systemctl start coracle");
    survived(vm, 1, &known, &kernel);
    vm.asked(service);
}

/// Debian's own rules begin with taking all others away, and networkd looks over every link when it starts.
fn others_change_the_network(vm: &mut Vm, service: &str) {
    vm.must("systemctl restart nftables systemd-networkd");
    println!("rules flushed -> answer by name: {:.1} s", vm.asked(service));
}

/// The machine goes dark and comes back: the unit starts by itself, and the same pods run in new containers.
fn power_cut(vm: &mut Vm, service: &str) {
    let known = look(vm);
    let started = Instant::now();
    vm.cut_power();
    println!("power cut -> systemd has all up: {:.1} s", started.elapsed().as_secs_f64());
    vm.wait("three containers", |vm| vm.must(CONTAINERS).lines().count() == 3);
    vm.asked(service);
    let mut seen = Seen::default();
    vm.wait("three ready replicas", |vm| {
        seen = look(vm);
        seen.ready
    });
    assert!(known.containers.keys().eq(seen.containers.keys()), "pods were replaced: {seen:?}");
    assert!(known.maps.is_subset(&seen.maps), "an acknowledged write is gone: {seen:?}");
    println!("power cut -> all answers: {:.1} s", started.elapsed().as_secs_f64());
}
