//! The bytes we send, and what `nft` says a table made by them is.

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use coracle_net_model::nft::Batch;
use coracle_net_model::tables::rebuild;
use coracle_net_model::{Clients, Desired, Layout, Protocol, ServiceEntry, Tables};

fn layout(node: &str, cluster: &str, services: &str) -> Layout {
    Layout {
        table: "coracle".to_owned(),
        bridge: "cor0".to_owned(),
        node_cidr: node.parse().unwrap(),
        cluster_cidr: cluster.parse().unwrap(),
        service_cidr: services.parse().unwrap(),
    }
}

fn desired(backends: &[(u8, u16)]) -> Desired {
    let backends = backends.iter().map(|(last, port)| (Ipv4Addr::new(10, 42, 0, *last), *port)).collect();
    let service = ServiceEntry::new(Ipv4Addr::new(10, 43, 0, 10), 80, Protocol::Tcp, backends);
    // Reached from outside, where the endpoint is another machine's, clients stay, and the inside has another choice.
    let (node, elsewhere) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 7));
    let exposed = ServiceEntry {
        affinity_s: Some(600),
        ..ServiceEntry::new(node, 30_080, Protocol::Tcp, vec![(elsewhere, 8080)])
    };
    let guarded = ServiceEntry {
        allowed: Some(vec!["198.51.100.0/24".parse().unwrap(), "203.0.113.7/32".parse().unwrap()]),
        ..ServiceEntry::new(node, 8443, Protocol::Tcp, vec![(elsewhere, 8443)])
    };
    let inner = ServiceEntry { clients: Clients::Inside, affinity_s: None, ..exposed.clone() };
    let shut = ServiceEntry::new(node, 30_053, Protocol::Udp, Vec::new());
    Desired {
        services: vec![service, exposed, guarded, inner, shut],
        local_vips: vec![Ipv4Addr::new(10, 43, 0, 53)],
        ..Desired::default()
    }
}

fn tables(layout: &Layout, backends: &[(u8, u16)]) -> Tables {
    let mut tables = Tables::default();
    let delta = tables.diff(&desired(backends), layout);
    tables.commit(delta);
    tables
}

/// Sixteen bytes a line, each netlink message from a new line.
fn dump(bytes: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
        for line in rest[..length].chunks(16) {
            for byte in line {
                write!(text, "{byte:02x} ").unwrap();
            }
            text.truncate(text.len() - 1);
            text.push('\n');
        }
        text.push('\n');
        rest = &rest[(length + 3) & !3..];
    }
    text
}

#[test]
fn bytes_of_a_change() {
    let layout = layout("10.42.0.0/24", "10.42.0.0/16", "10.43.0.0/16");
    let before = tables(&layout, &[(5, 8080), (6, 8080)]);
    let delta = before.diff(&desired(&[(6, 8080)]), &layout);
    let mut batch = Batch::new("coracle", Some(0x0102_0304));
    delta.write(&mut batch);
    insta::assert_snapshot!(dump(&batch.finish().0));
}

#[test]
fn bytes_of_a_whole_table() {
    let layout = layout("10.42.0.0/24", "10.42.0.0/16", "10.43.0.0/16");
    insta::assert_snapshot!(dump(&rebuild(&layout, &tables(&layout, &[(5, 8080)]), None).finish().0));
}

/// What `nft` reads back from the kernel of our bytes is what `nft` makes of the same table written as text: rule by
/// rule and expression by expression.
#[test]
fn nft_agrees() {
    if Command::new("nft").arg("--version").output().is_err() {
        println!("SKIP: no nft");
        return;
    }
    for (node, cluster, services) in [
        ("10.42.0.0/24", "10.42.0.0/16", "10.43.0.0/16"),
        ("10.42.4.0/22", "10.40.0.0/14", "10.96.0.0/12"),
        ("172.16.5.128/25", "172.16.0.0/16", "192.168.0.0/20"),
    ] {
        let layout = layout(node, cluster, services);
        let (bytes, last) = rebuild(&layout, &tables(&layout, &[(5, 8080), (6, 9090)]), None).finish();
        let text = include_str!("reference.nft")
            .replace("NODE", node)
            .replace("CLUSTER", cluster)
            .replace("SERVICES", services)
            .replace(
                "HAIRPIN",
                if node == "10.42.0.0/24" { "elements = { 10.42.0.5 . 10.42.0.5, 10.42.0.6 . 10.42.0.6 }" } else { "" },
            );
        // What is a pod or a service address depends on the blocks.
        let elements = |list: &str| format!("elements = {{ {list} }}");
        let (svc, exposed) = ("10.43.0.10", "192.0.2.1 . udp . 30053");
        let known =
            if layout.service_cidr.contains(Ipv4Addr::new(10, 43, 0, 10)) { elements(svc) } else { String::new() };
        let pods = layout.cluster_cidr.contains(Ipv4Addr::new(10, 42, 0, 5));
        let outside = if pods { "198.51.100.7" } else { "10.42.0.5, 10.42.0.6, 198.51.100.7" };
        let text =
            text.replace("VIPS", &known).replace("SHUT", &elements(exposed)).replace("OUTSIDE", &elements(outside));
        let (ours, ours_listing) = in_own_namespace(move || {
            send(&bytes, last);
            (nft(&["--debug=netlink", "list", "ruleset"], ""), nft(&["list", "ruleset"], ""))
        });
        let (theirs, theirs_listing) = in_own_namespace(move || {
            nft(&["-f", "-"], &text);
            (nft(&["--debug=netlink", "list", "ruleset"], ""), nft(&["list", "ruleset"], ""))
        });
        assert_eq!(rules(&ours), rules(&theirs), "expressions for {node}");
        assert_eq!(plain(&ours_listing), plain(&theirs_listing), "listing for {node}");
    }
}

/// Chain names and expressions, without handles.
fn rules(debug: &str) -> Vec<String> {
    let chain = |line: &str| line.split(' ').take(3).collect::<Vec<_>>().join(" ");
    let lines = debug.lines().filter(|line| line.starts_with("ip coracle ") || line.trim_start().starts_with('['));
    // `nft` turns one byte around before it looks for a range, which changes nothing.
    let lines = lines.filter(|line| !line.contains("byteorder reg 9 = hton(reg 9, 2, 1)"));
    lines.map(|line| if line.starts_with("ip") { chain(line) } else { line.trim().to_owned() }).collect()
}

/// The listing piece by piece, without our stamp, elements in no particular order, and without the notation of slots:
/// we call their type a mark, `nft` has no word for it.
fn plain(listing: &str) -> Vec<String> {
    let mut pieces: Vec<String> =
        listing.split(['\n', ',', '{', '}']).map(|piece| piece.trim().to_owned()).filter(|p| !p.is_empty()).collect();
    pieces.retain(|piece| !piece.starts_with("comment") && !piece.contains("80 . 0") && !piece.contains("80 . 1"));
    pieces.retain(|piece| {
        !piece.starts_with("typeof")
            && !piece.contains(". mark")
            && !piece.contains("30080 . 0")
            && !piece.contains("30080 . 2")
            && !piece.contains("8443 . 0")
    });
    pieces.sort();
    pieces
}

fn in_own_namespace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("the tests need root");
            work()
        });
        thread.join().unwrap()
    })
}

fn nft(arguments: &[&str], input: &str) -> String {
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Sends a transaction and insists on its acknowledgement.
fn send(bytes: &[u8], last: u32) {
    use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
    use std::os::fd::AsRawFd;
    let protocol = SockProtocol::NetlinkNetFilter;
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).unwrap();
    send(socket.as_raw_fd(), bytes, MsgFlags::empty()).unwrap();
    let mut buffer = [0; 8192];
    let length = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).unwrap();
    let frame = coracle_net_model::nft::frames(&buffer[..length]).next().unwrap();
    assert_eq!(coracle_net_model::nft::reply(&frame), coracle_net_model::nft::Reply::Ack);
    assert_eq!(frame.sequence, last);
}
