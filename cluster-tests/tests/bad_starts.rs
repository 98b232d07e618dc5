//! Starts that cannot be, or are cut short: each says at once what is in the way and what to do, and leaves nothing behind.

use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use coracle_cluster_tests::machine::{Machine, Said, program};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rustix::process::{Pid, Signal, kill_process};

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers: [{name: main, image: \"coracle.local/hello:1\"}]\n";
const NOBODY: [&str; 4] = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

/// Runs an `up` that must not come up: all it said. It leaves nothing behind, in its folders neither.
fn refused(machine: &mut Machine) -> String {
    let before = machine.log().len();
    machine.start();
    let code = machine.ended();
    let said = machine.log()[before..].to_owned();
    assert_eq!((code, said.matches("error: ").count()), (1, 1), "one error was expected: {said}");
    assert!(!machine.data().exists() && !machine.run().exists(), "something was made: {said}");
    assert_eq!(machine.left_over(), Vec::<String>::new());
    said
}

#[test]
fn taken_ports_are_all_told_at_once_with_who_has_them() {
    let mut machine = Machine::new();
    let ports = ["0.0.0.0:6443", "127.0.0.1:6444", "127.0.0.1:6480"];
    let held = machine.inside(|| ports.map(|at| TcpListener::bind(at).expect("a free port")));
    let us = format!("process {} (", std::process::id());
    let said = refused(&mut machine);
    for (port, flag) in [(6443, "--api-listen"), (6444, "--peer-listen"), (6480, "--status-listen")] {
        assert!(said.contains(&format!("port {port} is taken by {us}")) && said.contains(flag), "{said}");
    }
    drop(held);
    machine.up();
    machine.down();
}

#[test]
fn a_taken_name_server_port_is_told_by_the_pods_and_left_behind_by_none() {
    let mut machine = Machine::new();
    let held = machine.inside(|| UdpSocket::bind("0.0.0.0:53").expect("a free port"));
    machine.up();
    machine.import_hello();
    machine.apply(POD);
    let told = format!("port 53 of 10.42.0.1: process {} (", std::process::id());
    machine.wait("the pod to say why", |machine| {
        let described = machine.coracle(&["describe", "pod/a"]);
        // In the container's state and in the event.
        described.matches(&told).count() == 2 && described.contains("; hint: make that program listen on its own")
    });
    assert_eq!(machine.log().matches("the node's network is not as it should be").count(), 1, "{}", machine.log());
    // With the port still taken everything goes all the same.
    machine.down();
    machine.up();
    drop(held);
    machine.wait("the pod to run", |machine| machine.get(&["pod/a"])["status"]["phase"] == "Running");
    machine.down();
}

fn as_nobody(machine: &Machine, verb: &[&str]) -> Said {
    let output =
        machine.command(NOBODY[0]).args(&NOBODY[1..]).arg(program("coracle")).args(verb).output().expect("setpriv");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}

#[test]
fn who_is_not_root_is_told_so() {
    let mut machine = Machine::new();
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(machine.folder(), open).expect("a mode");
    machine.under(&NOBODY);
    let said = refused(&mut machine);
    assert!(said.contains("coracle needs root") && said.contains("hint: sudo coracle up"), "{said}");
    machine.under(&[]);
    machine.up();
    // The data folder is root's: that is what is said, not that nothing runs.
    for (verb, expected) in [
        (&["down"][..], "hint: the data folder is root's: try with sudo"),
        (&["status"], "hint: the data folder is root's: try with sudo"),
        (&["get", "pods"], "hint: try with sudo"),
        (&["image", "ls"], "ermission denied"),
    ] {
        let said = as_nobody(&machine, verb);
        assert!(said.code == 1 && said.err.contains(expected), "{verb:?}: {said:?}");
    }
    machine.down();
}

#[test]
fn what_the_kernel_keeps_back_is_told_before_anything_is_made() {
    let mut machine = Machine::new();
    let container = "hint: something took it away: a container (run it with --privileged)";
    let mut told = |wrapper: &[&str], expected: &[&str]| {
        machine.under(wrapper);
        let said = refused(&mut machine);
        for expected in expected {
            assert!(said.contains(expected), "{wrapper:?}: {expected} is missing in {said}");
        }
        said
    };
    let said =
        told(&["setpriv", "--bounding-set=-net_admin"], &["without CAP_NET_ADMIN, ", "packet filter", container]);
    assert_eq!(said.matches("hint: ").count(), 1, "{said}");
    let said = told(
        &["setpriv", "--bounding-set=-net_admin,-sys_admin,-setuid,-setgid"],
        &["error: this machine cannot run pods:", "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SETGID, CAP_SETUID"],
    );
    assert_eq!(said.matches("hint: ").count(), 3, "{said}");
    let hidden = "mount -t tmpfs none /sys/fs/cgroup && exec \"$0\" \"$@\"";
    told(&["unshare", "--mount", "sh", "-c", hidden], &["no usable cgroups", "hint: `mount -t cgroup2"]);
    let locked = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$0\" \"$@\"";
    told(
        &["unshare", "--mount", "sh", "-c", locked],
        &["/proc/sys/net/ipv4/", "Read-only file system", "hint: make /proc/sys writable"],
    );
}

#[test]
fn a_start_that_is_interrupted_ends_at_once_and_leaves_nothing_wrong() {
    let seed: u64 = std::env::var("CORACLE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("CORACLE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut machine = Machine::new();
    let began = Instant::now();
    machine.up();
    // Moments a bit beyond the end of the start too: that is when the network is being made.
    let span = began.elapsed() * 5 / 4;
    machine.import_hello();
    machine.apply(POD);
    machine.wait("the pod to run", |machine| machine.get(&["pod/a"])["status"]["phase"] == "Running");
    let pod = machine.container_ids();
    machine.kill();
    for round in 0..16 {
        let signal = if round % 2 == 0 { Signal::INT } else { Signal::TERM };
        let moment = span.mul_f64(random.random());
        machine.start();
        std::thread::sleep(moment); // random moment
        let pid = Pid::from_raw(i32::try_from(machine.pid()).expect("a pid")).expect("a pid");
        let began = Instant::now();
        // Too early for the program to have said what it does with signals: then the signal itself ends it.
        kill_process(pid, signal).expect("it runs");
        let code = machine.ended();
        let took = began.elapsed();
        println!("{signal:?} after {moment:?}: exit code {code} after {took:?}");
        assert!(code == 0 || code == -1 && moment < Duration::from_millis(100), "{code} after {moment:?}");
        assert!(took < Duration::from_secs(6), "{signal:?} after {moment:?} took {took:?}");
        // Every other time on a machine where nothing is left, so that all is made anew.
        if round % 4 == 3 {
            machine.down();
        }
    }
    machine.up();
    machine.wait("the pod to run", |machine| machine.get(&["pod/a"])["status"]["phase"] == "Running");
    assert_eq!(machine.container_ids().len(), pod.len());
    assert!(!machine.log().contains("ERROR"), "{}", machine.log());
    machine.down();
}

#[test]
fn a_first_start_that_is_cut_short_is_finished_by_the_next() {
    let seed: u64 = std::env::var("CORACLE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("CORACLE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..9 {
        let mut machine = Machine::new();
        let signal = [Signal::INT, Signal::TERM, Signal::KILL][round % 3];
        let moment = Duration::from_millis(random.random_range(0..800));
        println!("{signal:?} after {moment:?}");
        machine.start();
        std::thread::sleep(moment); // random moment
        let pid = Pid::from_raw(i32::try_from(machine.pid()).expect("a pid")).expect("a pid");
        kill_process(pid, signal).expect("it runs");
        machine.ended();
        // What it left is taken over, or taken down.
        if round % 2 == 0 {
            machine.up();
            machine.wait("the node to be ready", |machine| {
                machine
                    .coracle(&["get", "nodes"])
                    .lines()
                    .any(|line| line.starts_with("node1 ") && line.contains(" Ready "))
            });
        }
        machine.down();
    }
}

#[test]
fn a_second_up_names_the_first_and_not_its_ports() {
    let mut machine = Machine::new();
    machine.up();
    let run = machine.run().display().to_string();
    let settings = std::fs::read(machine.data().join("up.json")).expect("up.json");
    let said = machine.try_coracle(&["up", "--run-dir", &run]);
    let expected = format!("is in use by process {}\nhint: that server is running already", machine.pid());
    assert!(said.code == 1 && said.err.contains(&expected) && !said.err.contains("port"), "{said:?}");
    // The first does not notice.
    assert_eq!(std::fs::read(machine.data().join("up.json")).expect("up.json"), settings);
    let _ = machine.coracle(&["get", "nodes"]);
    machine.down();
}
