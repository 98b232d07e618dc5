//! Several machines in network namespaces: pods reach pods on other machines, directly and through VXLAN. Needs root.

mod support;

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use coracle_netd::{NetError, Netd, Peer, Report};
use support::machines::{ECHO, Machine, Site, TCP, TUNNEL, UPLINK, address, gateway, machine_config, peer, pod_ip};
use support::{Ns, VIP, config, eventually, tcp_service, udp_service, wait};

#[test]
fn pods_on_every_machine_reach_pods_on_every_other() {
    let site = Site::new();
    let machines = site.cluster(&[1, 2, 3, 4]);
    for from in &machines {
        for to in machines.iter().filter(|to| to.n != from.n) {
            from.reaches(to).unwrap();
            for ns in [&from.pod, &from.ns] {
                let error = ns.echo(pod_ip(to.n), 1451).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE), "one byte more is refused here: {error}");
            }
        }
    }
    let routes = machines[0].ns.ip("route show proto 67");
    assert!(routes.contains(&format!("10.42.2.0/24 via 192.168.7.2 dev {UPLINK} src 10.42.1.1 mtu 1450")), "{routes}");
    assert!(routes.contains(&format!("10.42.4.0/24 via 10.42.4.0 dev {TUNNEL} src 10.42.1.1 onlink")), "{routes}");
}

#[test]
fn the_tunnel_is_made_only_when_a_peer_needs_it() {
    let site = Site::new();
    let one = site.machine(1);
    assert_eq!(one.tell(&[1, 2, 3]).unwrap(), Report { added: 2, ..Report::default() });
    assert!(!one.ns.has(TUNNEL));
    assert_eq!(one.pod.mtu("eth0"), 1450, "room for its headers is kept all the same");
    assert_eq!(one.tell(&[1, 2, 3]).unwrap(), Report::default(), "nothing changes, nothing is touched");
    wait(one.netd.detach("pod-1")).unwrap();
    assert_eq!(one.ns.mtu("cor0"), 1450, "also without any port");
    one.tell(&[1, 2, 3, 4]).unwrap();
    assert_eq!(one.ns.mtu(TUNNEL), 1450);
    assert!(one.ns.ip(&format!("link show {TUNNEL}")).contains("0e:58:0a:2a:01:00"));
    one.tell(&[1, 2, 3]).unwrap();
    assert!(!one.ns.has(TUNNEL));
}

#[test]
fn services_have_endpoints_on_other_machines() {
    let site = Site::new();
    let machines = site.cluster(&[1, 2, 4]);
    // The only endpoint is on 2, then on 4, then on both.
    for endpoints in [&[2][..], &[4], &[2, 4]] {
        let backends = |port| endpoints.iter().map(|n| (pod_ip(*n), port)).collect::<Vec<_>>();
        for machine in &machines {
            machine.apply(vec![tcp_service(80, &backends(TCP)), udp_service(7, &backends(ECHO))]);
        }
        for machine in &machines {
            let here = endpoints.contains(&machine.n);
            for _ in 0..4 {
                let (pod, host) = (machine.pod.tcp(VIP, 80).unwrap(), machine.ns.tcp(VIP, 80).unwrap());
                let (name, seen) = pod.split_once(' ').unwrap();
                assert!(endpoints.iter().any(|n| name == format!("pod-{n}")), "{pod}");
                let itself = here && name == format!("pod-{}", machine.n);
                let expected = if itself { gateway(machine.n) } else { pod_ip(machine.n) };
                assert_eq!(seen, expected.to_string(), "{pod} from machine {}", machine.n);
                assert!(host.ends_with(&format!(" {}", gateway(machine.n))), "{host}");
            }
            for ns in [&machine.pod, &machine.ns] {
                ns.echo(VIP, 1450).unwrap();
            }
        }
    }
}

#[test]
fn what_others_take_away_between_machines_is_put_back() {
    let site = Site::new();
    let machines = site.cluster(&[1, 2, 4]);
    let one = &machines[0];
    let all = || machines[1..].iter().try_for_each(|to| one.reaches(to));
    all().unwrap();
    let before = one.traces();
    for damage in [
        format!("link del {TUNNEL}"),
        format!("link set {TUNNEL} down"),
        format!("link set {TUNNEL} address 0e:58:00:00:00:01"),
        format!("link set {TUNNEL} mtu 1200"),
        format!("addr flush dev {TUNNEL}"),
        "route del 10.42.4.0/24".to_owned(),
        "route del 10.42.2.0/24".to_owned(),
        format!("neigh del 10.42.4.0 dev {TUNNEL}"),
        format!("neigh replace 10.42.4.0 lladdr 0e:58:00:00:00:02 dev {TUNNEL} nud permanent"),
        "link del cor0".to_owned(),
        "route replace 10.42.2.0/24 via 192.168.7.254 proto 67".to_owned(),
        // Of ours by its number, and wanted by nobody.
        "route add 10.42.77.0/24 via 192.168.7.254 proto 67".to_owned(),
    ] {
        one.ns.ip(&damage);
        let report = wait(one.netd.repair()).unwrap();
        assert!(report.added + report.removed > 0, "{damage}: nothing noticed");
        assert_eq!(one.traces(), before, "{damage}");
        all().unwrap_or_else(|error| panic!("{damage}: {error}"));
        assert_eq!(wait(one.netd.repair()).unwrap(), Report::default(), "{damage}: repaired for good");
    }
    let fdb = |verb: &[&str]| {
        let mac = ["0e:58:0a:2a:04:00", "dev", TUNNEL, "dst", "192.168.8.4", "self"];
        one.ns.run("bridge", &[&["fdb"], verb, &mac].concat());
    };
    fdb(&["del"]);
    wait(one.netd.repair()).unwrap();
    all().unwrap();
    one.ns.inside(|| std::fs::write(format!("/proc/sys/net/ipv4/conf/{TUNNEL}/rp_filter"), "1").unwrap());
    assert_eq!(wait(one.netd.repair()).unwrap(), Report { added: 1, ..Report::default() });
    one.ns.ip(&format!("link del {TUNNEL}"));
    eventually(|| all().map_err(|error| format!("unasked repair: {error}")));
}

#[test]
fn a_link_that_was_down_comes_back_with_its_routes() {
    let site = Site::new();
    let machines = site.cluster(&[1, 2]);
    machines[0].ns.ip(&format!("link set {UPLINK} down"));
    wait(machines[0].netd.repair()).unwrap();
    machines[0].ns.ip(&format!("link set {UPLINK} up"));
    machines[0].ns.ip("route add default via 192.168.7.254");
    wait(machines[0].netd.repair()).unwrap();
    machines[0].reaches(&machines[1]).unwrap();
    assert!(!machines[0].ns.has(TUNNEL), "a tunnel was made while there was no way, and is gone");
}

#[test]
fn peers_leave_and_move() {
    let site = Site::new();
    let machines = site.cluster(&[1, 2, 3, 4]);
    let one = &machines[0];
    let gone = |n: u8| !one.traces().contains(&format!("10.42.{n}.0"));
    assert_eq!(one.tell(&[1, 3, 4]).unwrap(), Report { removed: 1, ..Report::default() });
    assert!(gone(2) && one.reaches(&machines[3]).is_ok());
    one.tell(&[1, 3]).unwrap();
    assert!(gone(4) && !one.ns.has(TUNNEL));
    // Machine 3 gets another address; then it moves behind the router, under its name and with its block.
    let moved = |address: Ipv4Addr| wait(one.netd.peers(vec![Peer { address, ..peer(3) }])).unwrap();
    machines[2].ns.ip(&format!("addr add 192.168.7.33/24 dev {UPLINK}"));
    moved(Ipv4Addr::new(192, 168, 7, 33));
    one.reaches(&machines[2]).unwrap();
    let report = moved(address(4));
    assert_eq!((report.removed, one.ns.has(TUNNEL)), (0, true), "the route is exchanged, not removed: {report:?}");
    moved(address(3));
    one.reaches(&machines[2]).unwrap();
    one.tell(&[]).unwrap();
    assert_eq!(one.traces(), "");
}

#[test]
fn a_restart_keeps_what_stands_until_it_is_told() {
    let site = Site::new();
    let mut machines = site.cluster(&[1, 2, 4]);
    let before = machines[0].traces();
    machines[0].restart();
    wait(machines[0].netd.repair()).unwrap();
    assert_eq!(machines[0].traces(), before);
    machines[1..].iter().for_each(|to| machines[0].reaches(to).unwrap());
    assert_eq!(machines[0].tell(&[1, 2, 4]).unwrap(), Report::default(), "all was there already");
    machines[0].restart();
    machines[0].tell(&[1, 2]).unwrap();
    assert!(!machines[0].ns.has(TUNNEL) && !machines[0].traces().contains("10.42.4.0"), "left while nobody looked");
    machines[0].reaches(&machines[1]).unwrap();
}

#[test]
fn remove_all_leaves_nothing_between_machines() {
    let site = Site::new();
    let mut machines = site.cluster(&[1, 2, 4]);
    let own = |machine: &Machine| {
        let routes = machine.ns.ip("route");
        (machine.ns.links(), routes.lines().filter(|line| !line.contains(UPLINK)).count())
    };
    // Also by an agent that was told of nobody yet.
    machines[1].restart();
    for machine in &machines[..2] {
        wait(machine.netd.remove_all()).unwrap();
        assert_eq!(own(machine), (1, 0));
        assert_eq!(machine.ns.ip("route show proto 67"), "");
    }
}

#[test]
fn a_change_of_the_underlays_mtu_reaches_everything() {
    let site = Site::new();
    let machines = site.cluster(&[1, 4]);
    let one = &machines[0];
    // A pod is where a process is.
    let sleeper = || one.pod.inside(|| Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().unwrap());
    let mut process = sleeper();
    for mtu in [1400, 1500, 1280] {
        for machine in &machines {
            machine.ns.ip(&format!("link set {UPLINK} mtu {mtu}"));
        }
        wait(one.netd.repair()).unwrap();
        let pods = mtu - 50;
        let actual = [one.ns.mtu("cor0"), one.ns.mtu(TUNNEL), one.pod.mtu("eth0")];
        assert_eq!(actual, [pods; 3], "underlay {mtu}");
        assert!(
            one.ns.ip("-o link").lines().filter(|l| l.contains(": cp")).all(|l| l.contains(&format!("mtu {pods} ")))
        );
        assert_eq!(wait(one.netd.repair()).unwrap(), Report::default());
        // The other machine's pod has nobody in it that looks like a process: attaching it again does the same.
        wait(machines[1].netd.repair()).unwrap();
        wait(machines[1].netd.attach(machines[1].pod.fd(), "pod-4", pod_ip(4))).unwrap();
        assert_eq!(machines[1].pod.mtu("eth0"), pods);
        one.reaches(&machines[1]).unwrap();
        assert_eq!(one.pod.echo(pod_ip(4), pods + 1).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
    }
    process.kill().unwrap();
    process.wait().unwrap();
}

#[test]
fn an_address_that_is_gone_for_a_moment_changes_nothing() {
    let site = Site::new();
    let ns = site.plug(1);
    ns.ip(&format!("link set {UPLINK} mtu 1400"));
    let one = Machine::start(1, ns, |_| {});
    one.tell(&[4]).unwrap();
    let facts = || one.ns.ip(&format!("-d link show {TUNNEL}")) + &one.ns.ip("link show cor0");
    let before = facts();
    one.ns.ip(&format!("addr flush dev {UPLINK}"));
    wait(one.netd.repair()).unwrap();
    assert_eq!(facts(), before, "not even made anew: its number is the same");
    assert!(hint(&one, "own address 192.168.7.1 is on none of its links").contains("--node-ip"));
}

#[test]
fn a_node_alone_gives_its_pods_all_its_link_carries() {
    let site = Site::new();
    let ns = site.plug(1);
    ns.ip(&format!("link set {UPLINK} mtu 1420"));
    let alone = Machine::start(1, ns, |config| config.underlay = None);
    assert_eq!((alone.ns.mtu("cor0"), alone.pod.mtu("eth0")), (1420, 1420));
    // Peers of a node without an address: said, and no error.
    assert_eq!(alone.tell(&[2, 4]).unwrap(), Report::default());
    let problems = alone.problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].problem.contains("node-2") && problems[0].hint.contains("--node-ip"), "{problems:?}");
    let nowhere = Ns::new();
    let netd = Netd::start(config(&nowhere)).unwrap();
    assert_eq!(nowhere.mtu("cor0"), 1500);
    drop(netd);
}

#[test]
fn clusters_on_the_same_machines_do_not_clash() {
    let site = Site::new();
    let machines = site.cluster(&[1, 4]);
    let second = |n: usize, vni| {
        let mut config = machine_config(&machines[n].ns, machines[n].n);
        config.bridge = "cor1".to_owned();
        config.table = "second".to_owned();
        config.cluster_cidr = "10.52.0.0/16".parse().unwrap();
        config.service_cidr = "10.53.0.0/16".parse().unwrap();
        config.node_cidr = format!("10.52.{n}.0/24").parse().unwrap();
        config.vni = vni;
        let netd = Netd::start(config).unwrap();
        let to = 1 - n;
        let pod_cidr = format!("10.52.{to}.0/24").parse().unwrap();
        let told = wait(netd.peers(vec![Peer { pod_cidr, ..peer(machines[to].n) }]));
        (netd, told)
    };
    let (netd, told) = second(0, 1);
    let error = coracle_base::one_line(&told.unwrap_err());
    assert!(error.contains(TUNNEL) && error.contains("hint: give one of them another number"), "{error}");
    let problems = wait(netd.doctor()).unwrap();
    assert!(
        problems.iter().any(|p| p.problem.contains("cor1-vx does not stand") && p.hint.contains(TUNNEL)),
        "{problems:?}"
    );
    drop(netd);
    let ((first, told), (other, told_too)) = (second(0, 2), second(1, 2));
    told.and(told_too).unwrap();
    let (a, b) = (Ns::new(), Ns::new());
    wait(first.attach(a.fd(), "a", Ipv4Addr::new(10, 52, 0, 2))).unwrap();
    wait(other.attach(b.fd(), "b", Ipv4Addr::new(10, 52, 1, 2))).unwrap();
    b.serve_tcp(80, "b");
    assert_eq!(a.tcp(Ipv4Addr::new(10, 52, 1, 2), 80).unwrap(), "b 10.52.0.2");
    wait(first.remove_all()).unwrap();
    machines[0].reaches(&machines[1]).unwrap();
    assert_eq!(wait(machines[0].netd.repair()).unwrap(), Report::default(), "the first cluster lost nothing");
}

#[test]
fn a_port_that_is_taken_is_named_and_keeps_nobody_else_out() {
    let site = Site::new();
    let (one, two) = (site.machine(1), site.machine(2));
    two.tell(&[1]).unwrap();
    let holder = one.ns.inside(|| std::net::UdpSocket::bind(("0.0.0.0", 8472)).unwrap());
    let error = coracle_base::one_line(&one.tell(&[2, 4]).unwrap_err());
    assert!(error.contains("UDP port 8472") && error.contains("hint: `ss"), "{error}");
    one.reaches(&two).unwrap();
    let problems = one.problems();
    assert!(problems.iter().any(|p| p.problem.contains(&format!("{TUNNEL} does not stand"))), "{problems:?}");
    drop(holder);
    wait(one.netd.repair()).unwrap();
    assert!(one.ns.has(TUNNEL));
    let error = wait(one.netd.peers(vec![peer(4)])).map(|_| ());
    assert!(error.is_ok());
    one.ns.ip(&format!("link del {TUNNEL}"));
    one.ns.ip(&format!("link add {TUNNEL} type veth peer name x0"));
    assert!(matches!(wait(one.netd.repair()), Err(NetError::NotAVxlan { .. })), "a stranger's link is not touched");
    assert!(one.ns.has(TUNNEL));
}

#[test]
fn a_strangers_route_is_named_and_not_replaced() {
    let site = Site::new();
    let (one, two) = (site.machine(1), site.machine(2));
    two.tell(&[1, 3]).unwrap();
    one.ns.ip("route add 10.42.3.0/24 via 192.168.7.254");
    let error = coracle_base::one_line(&one.tell(&[2, 3]).unwrap_err());
    assert!(error.contains("node-3 (10.42.3.0/24 at 192.168.7.3)") && error.contains("another's route"), "{error}");
    assert!(one.ns.ip("route").contains("10.42.3.0/24 via 192.168.7.254"));
    one.reaches(&two).unwrap();
    one.ns.ip("route del 10.42.3.0/24");
    wait(one.netd.repair()).unwrap();
    assert!(one.traces().contains("10.42.3.0/24 via 192.168.7.3"));
}

/// The problem that contains `what`; its hint.
fn hint(machine: &Machine, what: &str) -> String {
    let problems = machine.problems();
    let found = problems.iter().find(|finding| finding.problem.contains(what));
    found.unwrap_or_else(|| panic!("`{what}` is not in {problems:?}")).hint.clone()
}

#[test]
fn the_doctor_finds_nothing_where_nothing_is_wrong() {
    let site = Site::new();
    for machine in &site.cluster(&[1, 2, 4]) {
        assert_eq!(machine.problems(), []);
    }
}

#[test]
fn each_way_to_another_node_is_told_and_how_long_an_answer_takes() {
    let site = Site::new();
    // 2 is a neighbour, 4 is behind a router.
    let machines = site.cluster(&[1, 2, 4]);
    let links = || wait(machines[0].netd.node_links()).unwrap();
    let ways: Vec<(String, bool, bool)> =
        links().into_iter().map(|link| (link.node, link.direct, link.answered.is_some())).collect();
    assert_eq!(ways, [("node-2".to_owned(), true, true), ("node-4".to_owned(), false, true)]);
    site.switch.ip("link set m2 down");
    let silent = links().into_iter().find(|link| link.node == "node-2").unwrap();
    assert_eq!((silent.answered, silent.refused), (None, None));
}

#[test]
fn the_doctor_names_what_is_between_machines() {
    let site = Site::new();
    let mut machines = site.cluster(&[1, 2, 3, 4]);
    // 2 is unplugged, 3 has a link that carries less, 4 listens at another port.
    site.switch.ip("link set m2 down");
    site.switch.ip("link set m3 mtu 1300");
    let four = machines.pop().unwrap();
    wait(four.netd.remove_all()).unwrap();
    let four = Machine::start(4, four.ns, |config| config.vxlan_port = 4789);
    four.tell(&[1]).unwrap();
    let one = &machines[0];
    let down = hint(one, "node node-2 does not answer at 192.168.7.2");
    assert!(down.contains("the machine is down"), "{down}");
    let small = hint(one, "packets of 1450 bytes to pods of node node-3");
    assert!(small.contains("same MTU"), "{small}");
    let port = hint(one, "node node-4 answers at 192.168.8.4, its pods (10.42.4.0/24) cannot be reached");
    assert!(port.contains("open UDP port 8472"), "{port}");
    assert_eq!(one.problems().len(), 3);
}

#[test]
fn the_doctor_names_routes_that_hide_a_peer() {
    let site = Site::new();
    let machines = site.cluster(&[1, 2]);
    machines[0].ns.ip("route add 10.42.2.0/25 via 192.168.7.254");
    hint(
        &machines[0],
        "route 10.42.2.0/25 on link up0 overlaps the block of pods, 10.42.0.0/16 and hides pods of node node-2",
    );
    machines[0].ns.ip("route del 10.42.2.0/25");
    machines[0].ns.ip("rule add to 10.42.2.0/24 table 100");
    machines[0].ns.ip("route add default dev cor0 table 100");
    let rule = hint(&machines[0], "packets for pods of node node-2 (10.42.2.0/24) go to link cor0, not to link up0");
    assert!(rule.contains("ip rule"), "{rule}");
}

/// One node finds the other on its link, the other does not: its packets come another way than answers go.
#[test]
fn nodes_that_disagree_about_the_way_reach_each_other_unless_sources_are_checked() {
    let site = Site::new();
    let one = site.machine(1);
    let ns = site.plug(2);
    ns.ip(&format!("addr flush dev {UPLINK}"));
    ns.ip(&format!("addr add 192.168.7.2/32 dev {UPLINK}"));
    ns.ip(&format!("route add default via 192.168.7.254 dev {UPLINK} onlink"));
    let two = Machine::start(2, ns, |_| {});
    one.tell(&[2]).unwrap();
    two.tell(&[1]).unwrap();
    assert!(two.ns.has(TUNNEL) && !one.ns.has(TUNNEL));
    // The tunnel's packets need a device on both ends.
    let told = wait(one.netd.peers(vec![peer(2), peer(4)])).unwrap();
    assert!(told.added > 0 && one.ns.has(TUNNEL));
    one.reaches(&two).unwrap();
    two.reaches(&one).unwrap();
    two.ns.inside(|| std::fs::write(format!("/proc/sys/net/ipv4/conf/{UPLINK}/rp_filter"), "1").unwrap());
    let strict = hint(&two, "node node-1 answers at 192.168.7.1, its pods (10.42.1.0/24) cannot be reached");
    assert!(strict.contains("conf/up0/rp_filter"), "{strict}");
}

#[test]
fn the_doctor_names_a_firewall_that_drops_between_machines() {
    if Command::new("nft").arg("--version").output().is_err() {
        println!("SKIP: no nft to make a firewall with");
        return;
    }
    let site = Site::new();
    let machines = site.cluster(&[1, 4]);
    machines[0].ns.run("nft", &["add", "table", "ip", "filter"]);
    let chain = "{ type filter hook forward priority 0; policy drop; }";
    machines[0].ns.run("nft", &["add", "chain", "ip", "filter", "FORWARD", chain]);
    let drop = hint(&machines[0], "filter/FORWARD drops forwarded packets");
    assert!(drop.contains(TUNNEL) && drop.contains("DOCKER-USER"), "{drop}");
}
