//! The Kubernetes DNS specification 1.1.0, record by record (github.com/kubernetes/dns, docs/specification.md).

use std::net::Ipv4Addr;

use coracle_zone::{Endpoint, PodRecord, Port, ServiceRecord, Target, Zone, ZoneInput};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{LowerName, Name, RecordType};

fn port(name: &str, protocol: &str, port: u16) -> Port {
    Port { name: name.to_owned(), protocol: protocol.to_owned(), port }
}

fn endpoint(last: u8, hostname: Option<&str>, ports: &[Port]) -> Endpoint {
    let address = Ipv4Addr::new(10, 42, 0, last);
    Endpoint { address, hostname: hostname.map(str::to_owned), ports: ports.to_vec() }
}

fn service(name: &str, target: Target) -> ServiceRecord {
    ServiceRecord { namespace: "default".to_owned(), name: name.to_owned(), target }
}

fn zone() -> Zone {
    let web = Target::Cluster {
        address: Ipv4Addr::new(10, 43, 0, 10),
        ports: vec![port("http", "TCP", 80), port("", "TCP", 81), port("dns", "UDP", 53)],
    };
    let db = Target::Headless {
        endpoints: vec![
            endpoint(5, Some("db-0"), &[port("pg", "TCP", 5432)]),
            endpoint(6, Some("db-1"), &[port("pg", "TCP", 5432)]),
            endpoint(7, None, &[port("pg", "TCP", 5433)]),
        ],
    };
    let external = |name: &str| Target::External { name: name.to_owned() };
    Zone::build(&ZoneInput {
        domain: "cluster.local".to_owned(),
        serial: 7,
        nameserver: Some(Ipv4Addr::new(10, 42, 0, 1)),
        reverse_blocks: vec![(Ipv4Addr::new(10, 42, 0, 0), 16), (Ipv4Addr::new(10, 43, 0, 0), 16)],
        services: vec![
            service("web", web),
            service("db", db),
            service("empty", Target::Headless { endpoints: vec![] }),
            service("out", external("www.example.org")),
            service("alias", external("web.default.svc.cluster.local.")),
            service("loop", external("loop.default.svc.cluster.local")),
            service("bad.name", external("x")),
        ],
        pods: vec![PodRecord { namespace: "default".to_owned(), address: Ipv4Addr::new(10, 42, 0, 9) }],
    })
    .unwrap()
}

/// `CODE answer; answer | additional` in the order given.
fn ask(zone: &Zone, name: &str, kind: RecordType) -> String {
    let name = LowerName::new(&Name::from_ascii(name).unwrap());
    let Some(answer) = zone.answer(&name, kind, 0) else { return "not ours".to_owned() };
    let list = |records: &[&hickory_proto::rr::Record]| {
        let texts: Vec<String> = records.iter().map(|r| format!("{} {} {}", r.name, r.record_type(), r.data)).collect();
        texts.join("; ")
    };
    assert!(answer.answers.iter().all(|record| record.ttl == 5), "every TTL is 5");
    let code = match answer.code {
        ResponseCode::NoError => "NOERROR",
        ResponseCode::NXDomain => "NXDOMAIN",
        other => panic!("{other}"),
    };
    let mut text = format!("{code} {}", list(&answer.answers));
    if !answer.additionals.is_empty() {
        text += &format!(" | {}", list(&answer.additionals));
    }
    if let Some(name) = answer.chase {
        text += &format!(" -> {name}");
    }
    assert_eq!(answer.authority.is_some(), answer.answers.is_empty(), "SOA goes with every empty answer: {text}");
    text
}

#[test]
fn records_of_the_specification() {
    use RecordType::{A, AAAA, ANY, CNAME, MX, NS, PTR, SRV, TXT};
    let zone = zone();
    let cases = [
        // 2.2 version
        ("dns-version.cluster.local.", TXT, "NOERROR dns-version.cluster.local. TXT 1.1.0"),
        // 2.3 services with a cluster address
        ("web.default.svc.cluster.local.", A, "NOERROR web.default.svc.cluster.local. A 10.43.0.10"),
        ("WEB.Default.SVC.cluster.LOCAL.", A, "NOERROR web.default.svc.cluster.local. A 10.43.0.10"),
        ("web.default.svc.cluster.local.", AAAA, "NOERROR "),
        ("web.default.svc.cluster.local.", MX, "NOERROR "),
        (
            "_http._tcp.web.default.svc.cluster.local.",
            SRV,
            "NOERROR _http._tcp.web.default.svc.cluster.local. SRV 0 100 80 web.default.svc.cluster.local. | \
             web.default.svc.cluster.local. A 10.43.0.10",
        ),
        (
            "_dns._udp.web.default.svc.cluster.local.",
            SRV,
            "NOERROR _dns._udp.web.default.svc.cluster.local. SRV 0 100 53 web.default.svc.cluster.local. | \
             web.default.svc.cluster.local. A 10.43.0.10",
        ),
        ("_http._udp.web.default.svc.cluster.local.", SRV, "NXDOMAIN "),
        ("10.0.43.10.in-addr.arpa.", PTR, "NOERROR 10.0.43.10.in-addr.arpa. PTR web.default.svc.cluster.local."),
        // 2.4 headless services
        (
            "db.default.svc.cluster.local.",
            A,
            "NOERROR db.default.svc.cluster.local. A 10.42.0.5; db.default.svc.cluster.local. A 10.42.0.6; \
             db.default.svc.cluster.local. A 10.42.0.7",
        ),
        ("db-1.db.default.svc.cluster.local.", A, "NOERROR db-1.db.default.svc.cluster.local. A 10.42.0.6"),
        ("10-42-0-7.db.default.svc.cluster.local.", A, "NOERROR 10-42-0-7.db.default.svc.cluster.local. A 10.42.0.7"),
        (
            "_pg._tcp.db.default.svc.cluster.local.",
            SRV,
            "NOERROR _pg._tcp.db.default.svc.cluster.local. SRV 0 33 5432 db-0.db.default.svc.cluster.local.; \
             _pg._tcp.db.default.svc.cluster.local. SRV 0 33 5432 db-1.db.default.svc.cluster.local.; \
             _pg._tcp.db.default.svc.cluster.local. SRV 0 33 5433 10-42-0-7.db.default.svc.cluster.local. | \
             db-0.db.default.svc.cluster.local. A 10.42.0.5; db-1.db.default.svc.cluster.local. A 10.42.0.6; \
             10-42-0-7.db.default.svc.cluster.local. A 10.42.0.7",
        ),
        ("6.0.42.10.in-addr.arpa.", PTR, "NOERROR 6.0.42.10.in-addr.arpa. PTR db-1.db.default.svc.cluster.local."),
        ("empty.default.svc.cluster.local.", A, "NXDOMAIN "),
        // 2.5 external names
        (
            "out.default.svc.cluster.local.",
            A,
            "NOERROR out.default.svc.cluster.local. CNAME www.example.org. -> www.example.org.",
        ),
        ("out.default.svc.cluster.local.", CNAME, "NOERROR out.default.svc.cluster.local. CNAME www.example.org."),
        (
            "alias.default.svc.cluster.local.",
            A,
            "NOERROR alias.default.svc.cluster.local. CNAME web.default.svc.cluster.local.; \
             web.default.svc.cluster.local. A 10.43.0.10",
        ),
        // pods (not in the specification; as CoreDNS has them, for pods that exist)
        ("10-42-0-9.default.pod.cluster.local.", A, "NOERROR 10-42-0-9.default.pod.cluster.local. A 10.42.0.9"),
        ("10-42-0-8.default.pod.cluster.local.", A, "NXDOMAIN "),
        // names between
        ("svc.cluster.local.", A, "NOERROR "),
        ("default.svc.cluster.local.", A, "NOERROR "),
        ("_tcp.web.default.svc.cluster.local.", A, "NOERROR "),
        ("pod.cluster.local.", A, "NOERROR "),
        ("nope.svc.cluster.local.", A, "NXDOMAIN "),
        ("web.nope.svc.cluster.local.", A, "NXDOMAIN "),
        ("web.cluster.local.", A, "NXDOMAIN "),
        // apex
        ("cluster.local.", NS, "NOERROR cluster.local. NS ns.dns.cluster.local."),
        ("ns.dns.cluster.local.", A, "NOERROR ns.dns.cluster.local. A 10.42.0.1"),
        ("web.default.svc.cluster.local.", ANY, "NOERROR web.default.svc.cluster.local. A 10.43.0.10"),
        // others'
        ("example.org.", A, "not ours"),
        ("local.", A, "not ours"),
        ("notcluster.local.", A, "not ours"),
        ("99.0.42.10.in-addr.arpa.", PTR, "NXDOMAIN "),
        ("1.1.168.192.in-addr.arpa.", PTR, "not ours"),
        ("x.0.42.10.in-addr.arpa.", PTR, "not ours"),
    ];
    for (name, kind, expected) in cases {
        assert_eq!(ask(&zone, name, kind), expected, "{name} {kind}");
    }
}

#[test]
fn an_alias_of_itself_ends() {
    let zone = zone();
    let answer = ask(&zone, "loop.default.svc.cluster.local.", RecordType::A);
    assert_eq!(answer.matches("CNAME").count(), 8, "{answer}");
}

#[test]
fn a_name_that_cannot_stand_in_dns_is_left_out_alone() {
    let zone = zone();
    assert_eq!(zone.skipped().len(), 1);
    assert_eq!(zone.skipped()[0].name, "default/bad.name");
    for domain in ["", ".", "a..b", &"x".repeat(64)] {
        assert!(Zone::build(&ZoneInput { domain: domain.to_owned(), ..ZoneInput::default() }).is_err(), "{domain}");
    }
}

#[test]
fn addresses_rotate() {
    let zone = zone();
    let name = LowerName::new(&Name::from_ascii("db.default.svc.cluster.local.").unwrap());
    let first = |rotation| zone.answer(&name, RecordType::A, rotation).unwrap().answers[0].data.to_string();
    assert_eq!([first(0), first(1), first(2), first(3)], ["10.42.0.5", "10.42.0.6", "10.42.0.7", "10.42.0.5"]);
}
