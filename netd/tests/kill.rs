//! `kill -9` in the middle of the work, then a new start: it converges, and removing everything leaves nothing.

mod support;

use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use coracle_netd::{Desired, NetConfig, Netd, Peer, Report};
use support::{Ns, config, tcp_service, udp_service, wait};

const VICTIM: &str = "CORACLE_NETD_VICTIM";

fn services(round: usize) -> Desired {
    let backends: Vec<_> =
        (0..1 + round % 7).map(|i| (Ipv4Addr::new(10, 42, 0, 10 + (round + i) as u8 % 100), 80)).collect();
    let services = (0..3).map(|port| tcp_service(80 + port, &backends)).chain([udp_service(53, &backends)]).collect();
    Desired { services, local_vips: vec![Ipv4Addr::new(10, 43, 0, 100 + round as u8 % 2)], ..Desired::default() }
}

/// Other nodes that come and go, all of them behind the tunnel: there is no other link.
fn peers(round: usize) -> Vec<Peer> {
    let peer = |n: u8| Peer {
        node: format!("n{n}"),
        pod_cidr: format!("10.42.{n}.0/24").parse().unwrap(),
        address: Ipv4Addr::new(198, 51, 100, n),
    };
    (0..round % 4).map(|i| peer(1 + (round + i) as u8 % 50)).collect()
}

fn node(ns: &Ns) -> NetConfig {
    NetConfig { underlay: Some(Ipv4Addr::new(192, 0, 2, 1)), ..config(ns) }
}

/// Not a test by itself: the process that gets killed. It works as fast as it can and says so after each step.
#[test]
#[allow(clippy::print_stdout, reason = "the killer reads it")]
fn victim() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let own = Ns { fd: std::sync::Arc::new(std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()) };
    let netd = Netd::start(NetConfig { netns: None, ..node(&own) }).unwrap();
    let pods: Vec<Ns> = (0..4).map(|_| Ns::new()).collect();
    for round in 0.. {
        let pod = &pods[round % pods.len()];
        let id = format!("p{}", round % pods.len());
        wait(netd.attach(pod.fd(), &id, Ipv4Addr::new(10, 42, 0, 2 + (round % 200) as u8))).unwrap();
        wait(netd.apply(services(round))).unwrap();
        wait(netd.peers(peers(round))).unwrap();
        if round % 3 == 0 {
            wait(netd.detach(&id)).unwrap();
        }
        println!("step {round}");
    }
}

#[test]
fn a_killed_agent_is_taken_over_by_the_next() {
    let ns = Ns::new();
    for round in 0..25 {
        let mut victim = ns.inside(|| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "victim", "--nocapture", "--test-threads=1"])
                .env(VICTIM, "1")
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap()
        });
        // Kill it after a different number of steps and a different bit of the next one.
        let mut lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        let mut steps = 0;
        while steps < round % 9 {
            let line = lines.next().expect("the victim works until it is killed").unwrap();
            steps += usize::from(line.contains("step "));
        }
        for _ in 0..round * 2_000 {
            std::hint::spin_loop();
        }
        victim.kill().unwrap();
        victim.wait().unwrap();
        if round % 5 == 4 {
            continue; // the next victim finds what this one left
        }
        let netd = Netd::start(node(&ns)).unwrap();
        for pod in wait(netd.list()).unwrap() {
            wait(netd.detach(&pod.pod)).unwrap();
        }
        wait(netd.apply(services(round))).unwrap();
        wait(netd.peers(peers(round))).unwrap();
        let report = wait(netd.repair()).unwrap();
        assert_eq!(report, Report::default(), "round {round}: nothing is left to repair");
        let routes = ns.run("ip", &["route", "show", "proto", "67", "root", "10.42.0.0/16"]);
        assert_eq!(routes.lines().count(), peers(round).len(), "round {round}: {routes}");
        assert!(wait(netd.apply(services(round))).unwrap().added == 0);
        let pod = Ns::new();
        wait(netd.attach(pod.fd(), "new", Ipv4Addr::new(10, 42, 0, 250))).unwrap();
        assert_eq!(wait(netd.list()).unwrap().len(), 1, "only the new pod");
        if round % 2 == 0 {
            wait(netd.remove_all()).unwrap();
            assert_eq!(ns.links(), 0, "round {round}");
        }
    }
}
