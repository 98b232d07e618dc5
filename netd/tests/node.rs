//! One node with pods in real network namespaces: who reaches whom, and that nothing stays behind. Needs root.

mod support;

use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use coracle_netd::{Desired, NetError, Netd};
use support::{Node, Ns, VIP, ask_udp, config, connect, eventually, tcp_service, udp_service, wait};

#[test]
fn pods_reach_each_other_and_the_gateway() {
    let node = Node::new();
    let (a, a_ip) = node.pod(2);
    let (b, b_ip) = node.pod(3);
    b.serve_tcp(80, "b");
    node.ns.serve_tcp(81, "node");
    assert_eq!(a.tcp(b_ip, 80).unwrap(), format!("b {a_ip}"), "the peer sees the pod's own address");
    assert_eq!(a.tcp(node.netd.gateway(), 81).unwrap(), format!("node {a_ip}"));
    assert_eq!(node.ns.tcp(b_ip, 80).unwrap(), "b 10.42.0.1");
    assert_eq!(b.tcp(Ipv4Addr::LOCALHOST, 80).unwrap(), "b 127.0.0.1", "lo is up");
}

#[test]
fn a_service_is_reached_from_pods_itself_and_the_host() {
    reach_a_service_from_everywhere(&Node::new());
}

#[test]
fn a_service_is_reached_also_with_br_netfilter() {
    reach_a_service_from_everywhere(&Node::with_bridge_filter(true));
}

fn reach_a_service_from_everywhere(node: &Node) {
    let (client, client_ip) = node.pod(2);
    let (server, server_ip) = node.pod(3);
    server.serve_tcp(8080, "s");
    server.serve_udp(5353, "u");
    node.apply(vec![tcp_service(80, &[(server_ip, 8080)]), udp_service(53, &[(server_ip, 5353)])]);
    assert_eq!(client.tcp(VIP, 80).unwrap(), format!("s {client_ip}"), "same node, source kept");
    assert_eq!(server.tcp(VIP, 80).unwrap(), "s 10.42.0.1", "hairpin: the endpoint reaches itself");
    assert_eq!(node.ns.tcp(VIP, 80).unwrap(), "s 10.42.0.1", "from the host");
    for ns in [&client, &server, &node.ns] {
        assert_eq!(ns.udp(VIP, 53).unwrap(), "u");
    }
}

#[test]
fn ports_are_told_apart_and_endpoints_share_the_load() {
    let node = Node::new();
    let (client, _) = node.pod(2);
    let (one, one_ip) = node.pod(3);
    let (two, two_ip) = node.pod(4);
    for (pod, name) in [(&one, "one"), (&two, "two")] {
        pod.serve_tcp(8080, name);
        pod.serve_tcp(9090, &format!("{name}-metrics"));
    }
    node.apply(vec![
        tcp_service(80, &[(one_ip, 8080), (two_ip, 8080)]),
        tcp_service(90, &[(one_ip, 9090), (two_ip, 9090)]),
    ]);
    for (port, suffix) in [(80, ""), (90, "-metrics")] {
        let mut counts = [0; 2];
        for _ in 0..60 {
            let answer = client.tcp(VIP, port).unwrap();
            let name = answer.split(' ').next().unwrap();
            let index = ["one", "two"].iter().position(|n| name == format!("{n}{suffix}")).expect(name);
            counts[index] += 1;
        }
        assert!(counts.iter().all(|count| *count > 5), "both endpoints get a share: {counts:?}");
    }
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    let node = Node::new();
    let (client, _) = node.pod(2);
    node.apply(vec![tcp_service(80, &[]), udp_service(53, &[])]);
    for ns in [&client, &node.ns] {
        // More often than the kernel's rate limit for ICMP errors would let through.
        for _ in 0..20 {
            assert_eq!(ns.tcp(VIP, 80).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        assert_eq!(ns.tcp(VIP, 81).unwrap_err().kind(), ErrorKind::ConnectionRefused, "a port the service has not");
    }
    let socket = client.udp_socket();
    socket.connect((VIP, 53)).unwrap();
    socket.send(b"?").unwrap();
    assert_eq!(socket.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn an_address_no_service_has_is_silent() {
    let node = Node::new();
    let (client, _) = node.pod(2);
    node.apply(vec![tcp_service(80, &[])]);
    let error = client.inside(|| {
        let address = std::net::SocketAddr::from((Ipv4Addr::new(10, 43, 9, 9), 80));
        std::net::TcpStream::connect_timeout(&address, std::time::Duration::from_millis(300)).unwrap_err()
    });
    assert_eq!(error.kind(), ErrorKind::TimedOut, "a client that retries gets through once the service is known");
}

#[test]
fn swapping_endpoints_under_load_loses_no_connection() {
    let node = Node::with_bridge_filter(true);
    let (client, _) = node.pod(2);
    let backends: Vec<_> = (3..8)
        .map(|last| {
            let (pod, ip) = node.pod(last);
            pod.serve_tcp(8080, "x");
            (ip, 8080)
        })
        .collect();
    node.apply(vec![tcp_service(80, &backends[..1])]);
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let connecting = scope.spawn(|| {
            client.inside(|| {
                let mut errors = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    errors.extend(connect(VIP, 80).err());
                    done.fetch_add(1, Ordering::Relaxed);
                }
                errors
            })
        });
        for round in 0..60 {
            let from = done.load(Ordering::Relaxed);
            let set: Vec<_> = backends.iter().copied().cycle().skip(round).take(1 + round % 4).collect();
            node.apply(vec![tcp_service(80, &set)]);
            eventually(|| match done.load(Ordering::Relaxed) >= from + 5 {
                true => Ok(()),
                false => Err("five connections".to_owned()),
            });
        }
        stop.store(true, Ordering::Relaxed);
        let errors = connecting.join().unwrap();
        assert!(errors.is_empty(), "{} of {}: {errors:?}", errors.len(), done.load(Ordering::Relaxed));
    });
}

#[test]
fn a_udp_client_moves_to_the_new_endpoint() {
    let node = Node::new();
    let (client, _) = node.pod(2);
    let (old, old_ip) = node.pod(3);
    let (new, new_ip) = node.pod(4);
    old.serve_udp(5353, "old");
    new.serve_udp(5353, "new");
    node.apply(vec![udp_service(53, &[(old_ip, 5353)])]);
    let socket = client.udp_socket();
    assert_eq!(ask_udp(&socket, VIP, 53).unwrap(), "old");
    node.apply(vec![udp_service(53, &[(new_ip, 5353)])]);
    // The client keeps its source port, so only deleting the tracked flow moves it.
    eventually(|| match ask_udp(&socket, VIP, 53) {
        Ok(answer) if answer == "new" => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn traffic_that_leaves_the_cluster_is_masqueraded() {
    let node = Node::new();
    let outside = Ns::new();
    node.ns.inside(|| {
        let ip = |arguments: &str| {
            let status = std::process::Command::new("ip").args(arguments.split(' ')).status().unwrap();
            assert!(status.success(), "ip {arguments}");
        };
        ip("link add out0 type veth peer name out1");
        ip("addr add 192.0.2.1/24 dev out0");
        ip("link set out0 up");
    });
    use std::os::fd::AsRawFd;
    let path = format!("/proc/{}/fd/{}", std::process::id(), outside.fd.as_raw_fd());
    node.ns.run("ip", &["link", "set", "out1", "netns", &path]);
    outside.run("ip", &["addr", "add", "192.0.2.2/24", "dev", "out1"]);
    outside.run("ip", &["link", "set", "out1", "up"]);
    outside.serve_tcp(80, "outside");
    let (pod, _) = node.pod(2);
    assert_eq!(pod.tcp(Ipv4Addr::new(192, 0, 2, 2), 80).unwrap(), "outside 192.0.2.1");
}

#[test]
fn attaching_again_keeps_a_finished_link_and_replaces_a_broken_one() {
    let node = Node::new();
    let (pod, ip) = node.pod(2);
    // Index and name of each link; its carrier may come and go.
    let index = || -> Vec<String> {
        let links = node.ns.run("ip", &["-o", "link"]);
        links.lines().map(|line| line.split(": ").take(2).collect::<Vec<_>>().join(" ")).collect()
    };
    let before = index();
    wait(node.netd.attach(pod.fd(), "pod-2", ip)).unwrap();
    assert_eq!(index(), before, "the same link");
    pod.run("ip", &["addr", "flush", "dev", "eth0"]);
    wait(node.netd.attach(pod.fd(), "pod-2", ip)).unwrap();
    pod.serve_tcp(80, "again");
    assert!(node.ns.tcp(ip, 80).is_ok());
    let moved = Ipv4Addr::new(10, 42, 0, 77);
    wait(node.netd.attach(pod.fd(), "pod-2", moved)).unwrap();
    assert!(node.ns.tcp(moved, 80).is_ok());
    assert_eq!(wait(node.netd.list()).unwrap().len(), 1);
    wait(node.netd.detach("pod-2")).unwrap();
    wait(node.netd.detach("pod-2")).unwrap();
}

#[test]
fn a_restart_finds_links_and_services_untouched() {
    let node = Node::new();
    let (client, _) = node.pod(2);
    let (server, ip) = node.pod(3);
    server.serve_tcp(8080, "s");
    let services = vec![tcp_service(80, &[(ip, 8080)])];
    node.apply(services.clone());
    let Node { ns, netd } = node;
    drop(netd);
    assert!(client.tcp(VIP, 80).is_ok(), "the data plane outlives its owner");
    let netd = Netd::start(config(&ns)).unwrap();
    assert!(client.tcp(VIP, 80).is_ok());
    let mut pods = wait(netd.list()).unwrap();
    pods.sort_by_key(|pod| pod.ip);
    assert_eq!(pods.iter().map(|p| (p.pod.as_str(), p.ip)).collect::<Vec<_>>()[1], ("pod-3", ip));
    let report = wait(netd.apply(Desired { services, ..Desired::default() })).unwrap();
    assert_eq!((report.added, report.removed, report.rebuilt), (0, 0, false), "what was there is what is wanted");
}

#[test]
fn what_others_take_away_is_put_back() {
    let node = Node::new();
    let (client, _) = node.pod(2);
    let (server, ip) = node.pod(3);
    server.serve_tcp(8080, "s");
    node.apply(vec![tcp_service(80, &[(ip, 8080)])]);
    let repaired = |what: &str| {
        let report = wait(node.netd.repair()).unwrap();
        assert!(report.rebuilt || report.added > 0, "{what}: nothing noticed");
        assert!(client.tcp(VIP, 80).is_ok(), "{what}: from a pod");
        assert!(node.ns.tcp(VIP, 80).is_ok(), "{what}: from the host");
        let again = wait(node.netd.repair()).unwrap();
        assert!(!again.rebuilt && again.added == 0, "{what}: repaired for good");
    };
    if std::process::Command::new("nft").arg("--version").output().is_ok() {
        node.ns.run("nft", &["delete", "table", "ip", "coracle"]);
        repaired("table");
        node.ns.run("nft", &["flush", "chain", "ip", "coracle", "pre"]);
        repaired("chain flushed");
        node.ns.run("nft", &["flush", "map", "ip", "coracle", "ep"]);
        repaired("endpoints flushed");
    } else {
        println!("SKIP: no nft to delete the table with");
    }
    node.ns.run("ip", &["link", "del", "cor0"]);
    repaired("bridge");
    node.ns.run("ip", &["route", "del", "10.43.0.0/16"]);
    repaired("route");
    node.ns.run("ip", &["addr", "flush", "dev", "cor0"]);
    repaired("address");
    node.ns.run("ip", &["link", "set", "cor0", "down"]);
    repaired("bridge down");
    node.ns.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap());
    repaired("forwarding");
}

#[test]
fn remove_all_leaves_nothing() {
    let node = Node::new();
    let (_pod, ip) = node.pod(2);
    node.apply(vec![tcp_service(80, &[(ip, 8080)])]);
    wait(node.netd.remove_all()).unwrap();
    assert_eq!(node.ns.links(), 0);
    assert_eq!(node.ns.run("ip", &["route"]), "");
    if std::process::Command::new("nft").arg("--version").output().is_ok() {
        assert_eq!(node.ns.run("nft", &["list", "ruleset"]), "");
    }
    eventually(|| match wait(node.netd.list()) {
        Err(NetError::Stopped) => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

#[test]
fn two_clusters_share_a_machine() {
    let node = Node::new();
    let mut other = config(&node.ns);
    other.bridge = "cor1".to_owned();
    other.table = "coracle-b".to_owned();
    other.node_cidr = "10.52.0.0/24".parse().unwrap();
    other.cluster_cidr = "10.52.0.0/16".parse().unwrap();
    other.service_cidr = "10.53.0.0/16".parse().unwrap();
    let second = Netd::start(other).unwrap();
    let (_pod, _) = node.pod(2);
    let pod = Ns::new();
    wait(second.attach(pod.fd(), "pod-2", Ipv4Addr::new(10, 52, 0, 2))).unwrap();
    assert_eq!(wait(second.list()).unwrap().len(), 1);
    wait(second.remove_all()).unwrap();
    assert_eq!(wait(node.netd.list()).unwrap().len(), 1, "the first cluster's pod is still there");
    assert!(!wait(node.netd.repair()).unwrap().rebuilt);
}

#[test]
fn a_local_service_address_is_answered_by_the_node() {
    let node = Node::new();
    let (client, _) = node.pod(2);
    let dns = Ipv4Addr::new(10, 43, 0, 53);
    let services = vec![tcp_service(80, &[])];
    wait(node.netd.apply(Desired { services, local_vips: vec![dns], ..Desired::default() })).unwrap();
    node.ns.serve_tcp(53, "dns");
    assert!(client.tcp(dns, 53).unwrap().starts_with("dns"));
    assert!(node.ns.tcp(dns, 53).unwrap().starts_with("dns"));
    wait(node.netd.apply(Desired::default())).unwrap();
    assert!(!node.ns.run("ip", &["addr"]).contains("10.43.0.53"));
}

#[test]
fn a_link_of_another_kind_is_not_taken() {
    let ns = Ns::new();
    ns.run("ip", &["link", "add", "cor0", "type", "veth", "peer", "name", "x0"]);
    let Err(error) = Netd::start(config(&ns)) else { panic!("a veth is no bridge") };
    assert!(error.to_string().contains("is a veth, not a bridge"), "{error}");
    let mut bad = config(&ns);
    bad.service_cidr = "10.42.128.0/17".parse().unwrap();
    assert!(matches!(Netd::start(bad), Err(NetError::Config(_))));
}

#[test]
fn the_doctor_names_what_is_in_the_way() {
    let node = Node::new();
    assert_eq!(wait(node.netd.doctor()).unwrap(), []);
    node.ns.inside(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap());
    node.ns.run("ip", &["link", "add", "d0", "type", "veth", "peer", "name", "d1"]);
    node.ns.run("ip", &["link", "set", "d0", "up"]);
    node.ns.run("ip", &["addr", "add", "10.42.7.1/24", "dev", "d0"]);
    let problems: Vec<String> = wait(node.netd.doctor()).unwrap().into_iter().map(|f| f.problem).collect();
    assert!(problems.iter().any(|p| p.contains("ip_forward is 0")), "{problems:?}");
    assert!(problems.iter().any(|p| p.contains("10.42.7.0/24 on link d0 overlaps")), "{problems:?}");
}
