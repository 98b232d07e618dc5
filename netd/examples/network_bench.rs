//! Figures for PROMISES.md: how long a pod's network takes, and a service change in a large cluster.
//!
//! `cargo run --release -p coracle-netd --example network_bench [services] [endpoints]`, as root; works in a namespace of its own.
#![allow(clippy::print_stdout, reason = "the figures are the output")]

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use coracle_netd::{Desired, NetConfig, Netd, Protocol, ServiceEntry, VNI, VXLAN_PORT};
use nix::sched::{CloneFlags, unshare};

const PODS: usize = 200;
const CHANGES: usize = 100;

fn main() {
    let argument = |n: usize, default| std::env::args().nth(n).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (services, endpoints) = (argument(1, 10_000), argument(2, 3));
    unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
    let config = NetConfig {
        bridge: "bench0".to_owned(),
        table: "bench".to_owned(),
        node_cidr: "10.42.0.0/22".parse().expect("a block"),
        cluster_cidr: "10.40.0.0/14".parse().expect("a block"),
        service_cidr: "10.96.0.0/12".parse().expect("a block"),
        underlay: None,
        vni: VNI,
        vxlan_port: VXLAN_PORT,
        netns: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let started = Instant::now();
    let netd = Netd::start(config.clone()).expect("start");
    report("start on an empty node", &mut [started.elapsed()]);
    runtime.block_on(pods(&netd));
    runtime.block_on(changes(&netd, services, endpoints));
    drop(netd);
    let started = Instant::now();
    let netd = Netd::start(config).expect("start again");
    report(&format!("start over {services} services"), &mut [started.elapsed()]);
    runtime.block_on(netd.remove_all()).expect("remove");
}

async fn pods(netd: &Netd) {
    let namespaces: Vec<OwnedFd> = (0..PODS).map(|_| namespace()).collect();
    let (mut attach, mut detach) = (Vec::new(), Vec::new());
    for (i, netns) in namespaces.iter().enumerate() {
        let ip = Ipv4Addr::from(0x0a2a_0002 + i as u32);
        let started = Instant::now();
        netd.attach(netns.as_fd(), &format!("pod-{i}"), ip).await.expect("attach");
        attach.push(started.elapsed());
    }
    for i in 0..PODS {
        let started = Instant::now();
        netd.detach(&format!("pod-{i}")).await.expect("detach");
        detach.push(started.elapsed());
    }
    report(&format!("attach a pod ({PODS})"), &mut attach);
    report(&format!("detach a pod ({PODS})"), &mut detach);
}

async fn changes(netd: &Netd, services: usize, endpoints: usize) {
    let service = |i: usize| {
        let backends = (0..endpoints).map(|e| (Ipv4Addr::from(0x0a28_0000 + (i * endpoints + e) as u32), 8080));
        ServiceEntry::new(Ipv4Addr::from(0x0a60_0001 + i as u32), 80, Protocol::Tcp, backends.collect())
    };
    let mut desired = Desired { services: (0..services).map(service).collect(), ..Desired::default() };
    let started = Instant::now();
    netd.apply(desired.clone()).await.expect("load");
    report(&format!("cold load of {services} services x {endpoints}"), &mut [started.elapsed()]);
    let (mut endpoint, mut whole) = (Vec::new(), Vec::new());
    for round in 0..CHANGES {
        let entry = &mut desired.services[round * 7 % services];
        entry.backends.rotate_left(1);
        entry.backends.pop();
        let copy = desired.clone();
        let started = Instant::now();
        netd.apply(copy).await.expect("change");
        endpoint.push(started.elapsed());
        desired.services.push(service(services + round));
        let copy = desired.clone();
        let started = Instant::now();
        netd.apply(copy).await.expect("change");
        whole.push(started.elapsed());
    }
    report(&format!("remove an endpoint at {services} services"), &mut endpoint);
    report(&format!("add a service at {services} services"), &mut whole);
}

fn namespace() -> OwnedFd {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("needs root");
        OwnedFd::from(File::open("/proc/thread-self/ns/net").expect("own namespace"))
    });
    made.join().expect("a namespace")
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    println!("{what:45} p50 {:8.3} ms   p99 {:8.3} ms", at(50), at(99));
}
