//! Services from outside of the cluster: addresses of nodes, and whose address the endpoint sees. Needs root.

mod support;

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::Ipv4Addr;

use coracle_netd::{Clients, Desired, Protocol, ServiceEntry};
use support::machines::{Machine, Site, TCP, address, pod_ip};
use support::{Ns, VIP, ask_udp, connect, eventually, tcp_service, wait};

const NODE_PORT: u16 = 30_080;
/// An address that the outside leads to machine 1, and that is nobody's.
const OUTER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);

/// Machines 1 and 2 on one Ethernet and 4 behind a router are a cluster; the outsider is on the Ethernet.
fn site() -> (Site, Vec<Machine>, Ns) {
    let site = Site::new();
    let machines = site.cluster(&[1, 2, 4]);
    let outsider = site.plug(3);
    outsider.ip(&format!("route add {OUTER} via {}", address(1)));
    (site, machines, outsider)
}

fn entry(vip: Ipv4Addr, port: u16, endpoints: &[u8]) -> ServiceEntry {
    ServiceEntry::new(vip, port, Protocol::Tcp, endpoints.iter().map(|n| (pod_ip(*n), TCP)).collect())
}

/// Which pod answers, and whom it sees.
fn asks(ns: &Ns, vip: Ipv4Addr, port: u16) -> String {
    ns.tcp(vip, port).unwrap_or_else(|error| panic!("{vip}:{port}: {error}"))
}

#[test]
fn a_node_port_is_served_by_every_node_wherever_the_endpoint_is() {
    let (_site, machines, outsider) = site();
    for endpoint in [1, 2, 4] {
        for machine in &machines {
            machine.apply(vec![entry(address(machine.n), NODE_PORT, &[endpoint]), entry(VIP, 80, &[endpoint])]);
        }
        for machine in &machines {
            let said = asks(&outsider, address(machine.n), NODE_PORT);
            let (pod, seen) = said.split_once(' ').unwrap();
            assert_eq!(pod, format!("pod-{endpoint}"), "through {}", machine.n);
            assert_eq!(
                seen == address(3).to_string(),
                machine.n == endpoint,
                "on its own node its own address: {said}"
            );
            // From a pod of each node and from the node itself, to its own node and to the others.
            for other in &machines {
                for ns in [&machine.pod, &machine.ns] {
                    assert!(asks(ns, address(other.n), NODE_PORT).starts_with(&format!("pod-{endpoint} ")));
                }
            }
        }
        // The outsider's route for service addresses leads through a node that has no endpoint.
        outsider.ip(&format!("route replace {VIP} via {}", address(1)));
        assert!(asks(&outsider, VIP, 80).starts_with(&format!("pod-{endpoint} ")));
    }
}

#[test]
fn local_endpoints_see_the_client_and_the_inside_still_reaches_all() {
    let (_site, machines, outsider) = site();
    for machine in &machines {
        let near: &[u8] = if machine.n == 2 { &[2] } else { &[] };
        let outer = entry(address(machine.n), NODE_PORT, near);
        let inside = ServiceEntry { clients: Clients::Inside, ..entry(address(machine.n), NODE_PORT, &[2]) };
        machine.apply(vec![outer, inside]);
    }
    assert_eq!(asks(&outsider, address(2), NODE_PORT), format!("pod-2 {}", address(3)));
    for machine in machines.iter().filter(|machine| machine.n != 2) {
        // More often than the kernel's rate limit for ICMP errors would let through.
        for _ in 0..20 {
            let refused = outsider.tcp(address(machine.n), NODE_PORT).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        }
        for ns in [&machine.pod, &machine.ns] {
            assert!(asks(ns, address(machine.n), NODE_PORT).starts_with("pod-2 "), "from the inside of {}", machine.n);
        }
    }
    // The last one leaves: nobody is there for anybody.
    machines[1].apply(vec![entry(address(2), NODE_PORT, &[])]);
    assert_eq!(outsider.tcp(address(2), NODE_PORT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    assert_eq!(machines[1].ns.tcp(address(2), NODE_PORT).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn an_address_that_is_nobody_s_and_an_endpoint_that_is_no_pod() {
    let (_site, machines, outsider) = site();
    outsider.serve_tcp(9090, "legacy");
    machines[0].apply(vec![
        entry(OUTER, 80, &[2]),
        ServiceEntry::new(address(1), NODE_PORT, Protocol::Tcp, vec![(address(3), 9090)]),
    ]);
    assert!(asks(&outsider, OUTER, 80).starts_with("pod-2 "));
    assert_eq!(asks(&outsider, address(1), NODE_PORT), format!("legacy {}", address(1)));
    assert_eq!(asks(&machines[0].pod, address(1), NODE_PORT), format!("legacy {}", address(1)));
    machines[0].apply(vec![entry(OUTER, 80, &[])]);
    assert_eq!(outsider.tcp(OUTER, 80).unwrap_err().kind(), ErrorKind::ConnectionRefused);
    // What others translate is not ours: the outsider's own address stays on it.
    machines[0].ns.serve_tcp(8081, "own");
    assert_eq!(asks(&outsider, address(1), 8081), format!("own {}", address(3)));
}

#[test]
fn only_some_clients_may_come() {
    let (_site, machines, outsider) = site();
    let only =
        |block: &str| ServiceEntry { allowed: Some(vec![block.parse().unwrap()]), ..entry(address(1), 80, &[2]) };
    let refused = |ns: &Ns| {
        let to = std::net::SocketAddr::from((address(1), 80));
        let patience = std::time::Duration::from_millis(300);
        ns.inside(|| std::net::TcpStream::connect_timeout(&to, patience)).unwrap_err().kind() == ErrorKind::TimedOut
    };
    machines[0].apply(vec![only("192.168.7.0/24"), entry(address(1), NODE_PORT, &[2])]);
    assert!(asks(&outsider, address(1), 80).starts_with("pod-2 "));
    // A smaller block in the place of the larger, at once.
    machines[0].apply(vec![only("192.168.7.0/25"), entry(address(1), NODE_PORT, &[2])]);
    assert!(asks(&outsider, address(1), 80).starts_with("pod-2 "));
    machines[0].apply(vec![only("192.168.8.0/24"), entry(address(1), NODE_PORT, &[2])]);
    assert!(refused(&outsider));
    assert!(asks(&outsider, address(1), NODE_PORT).starts_with("pod-2 "), "other ports are open to all");
    assert!(asks(&machines[2].ns, address(1), 80).starts_with("pod-2 "), "from the other network");
    assert!(refused(&machines[0].pod), "pods are clients like others");
    assert!(asks(&machines[0].ns, address(1), 80).starts_with("pod-2 "), "the node itself is not asked");
}

#[test]
fn a_client_stays_with_its_endpoint_until_that_is_gone() {
    let (_site, machines, outsider) = site();
    let node = &machines[0];
    let sticky = |endpoints: &[u8]| ServiceEntry { affinity_s: Some(60), ..entry(address(1), NODE_PORT, endpoints) };
    node.apply(vec![sticky(&[1, 2, 4]), tcp_service(80, &[(pod_ip(1), TCP), (pod_ip(2), TCP), (pod_ip(4), TCP)])]);
    let pods = |ns: &Ns, vip: Ipv4Addr, port: u16| -> BTreeSet<String> {
        let said = ns.inside(|| (0..30).map(|_| connect(vip, port).unwrap()).collect::<Vec<_>>());
        said.iter().map(|said| said.split(' ').next().unwrap().to_owned()).collect()
    };
    let mut chosen = BTreeSet::new();
    for client in 0..12_u8 {
        // Each with an address of its own.
        let own = Ipv4Addr::new(192, 168, 7, 100 + client);
        outsider.ip(&format!("addr add {own}/24 dev up0"));
        outsider.ip(&format!("route replace {} dev up0 src {own}", address(1)));
        let one = pods(&outsider, address(1), NODE_PORT);
        assert_eq!(one.len(), 1, "{own} is sent here and there: {one:?}");
        chosen.extend(one);
    }
    assert!(chosen.len() > 1, "twelve clients on one of three endpoints");
    assert!(
        pods(&outsider, address(1), NODE_PORT).len() == 1 && pods(&node.pod, VIP, 80).len() == 3,
        "others are not held"
    );
    // It loses its endpoint and gets another one, which it then keeps also when the first comes back.
    let before = pods(&outsider, address(1), NODE_PORT).pop_first().unwrap();
    let rest: Vec<u8> = [1, 2, 4].into_iter().filter(|n| before != format!("pod-{n}")).collect();
    node.apply(vec![sticky(&rest)]);
    let after = pods(&outsider, address(1), NODE_PORT);
    assert!(after.len() == 1 && !after.contains(&before), "{after:?} after {before}");
    node.apply(vec![sticky(&[1, 2, 4])]);
    assert_eq!(pods(&outsider, address(1), NODE_PORT), after);
}

#[test]
fn a_client_is_forgotten_when_its_time_is_over() {
    let (_site, machines, outsider) = site();
    let sticky = ServiceEntry { affinity_s: Some(1), ..entry(address(1), NODE_PORT, &[1, 2, 4]) };
    machines[0].apply(vec![sticky]);
    asks(&outsider, address(1), NODE_PORT);
    if std::process::Command::new("nft").arg("--version").output().is_err() {
        println!("SKIP: no nft to look into the map with");
        return;
    }
    let known = || machines[0].ns.run("nft", &["list", "map", "ip", "coracle", "sticky"]);
    assert!(known().contains(&address(3).to_string()), "{}", known());
    eventually(|| if known().contains(&address(3).to_string()) { Err(known()) } else { Ok(()) });
}

#[test]
fn udp_clients_of_a_node_port_move_with_its_endpoint() {
    let (_site, machines, outsider) = site();
    for machine in &machines {
        machine.pod.serve_udp(5353, &format!("pod-{}", machine.n));
    }
    let entry = |endpoints: &[u8]| {
        let backends = endpoints.iter().map(|n| (pod_ip(*n), 5353)).collect();
        ServiceEntry::new(address(1), NODE_PORT, Protocol::Udp, backends)
    };
    let node = &machines[0];
    // The client keeps its port throughout, and asks also while there is nobody.
    let socket = outsider.udp_socket();
    node.apply(vec![entry(&[])]);
    ask_udp(&socket, address(1), NODE_PORT).unwrap_err();
    for (endpoints, answer) in [(&[2][..], "pod-2"), (&[4], "pod-4"), (&[1], "pod-1"), (&[2], "pod-2")] {
        node.apply(vec![entry(endpoints)]);
        eventually(|| match ask_udp(&socket, address(1), NODE_PORT) {
            Ok(said) if said == answer => Ok(()),
            other => Err(format!("{other:?} instead of {answer}")),
        });
    }
    // The Service goes: its flows end with it.
    node.apply(Vec::new());
    eventually(|| match ask_udp(&socket, address(1), NODE_PORT) {
        Err(_) => Ok(()),
        Ok(said) => Err(format!("{said} still answers")),
    });
}

#[test]
fn a_port_of_the_node_is_a_pod_s_and_comes_before_services() {
    let (_site, machines, outsider) = site();
    let host = entry(address(1), 80, &[1]);
    let desired = Desired { services: vec![entry(address(1), 80, &[2])], host_ports: vec![host], ..Desired::default() };
    wait(machines[0].netd.apply(desired)).unwrap();
    assert_eq!(asks(&outsider, address(1), 80), format!("pod-1 {}", address(3)));
    assert_eq!(asks(&machines[0].pod, address(1), 80), "pod-1 10.42.1.1", "also to the pod itself");
    machines[0].apply(vec![entry(address(1), 80, &[2])]);
    assert!(asks(&outsider, address(1), 80).starts_with("pod-2 "));
}
