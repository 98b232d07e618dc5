//! Services from outside: `examples/exposed.yaml` on three nodes, asked by a machine that is none of them.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::time::Duration;

use coracle_cluster_tests::machine::Machine;
use coracle_cluster_tests::site::Site;
use serde_json::Value;

/// The machine that is no node: that of the slice in the example.
const OUTSIDER: usize = 4;

/// Who answers an HTTP request to a machine: `hello from NAME (ADDRESS)`.
fn asks(site: &Site, to: usize, port: u16) -> Option<String> {
    site.at(OUTSIDER).http(&format!("{}:{port}", site.address(to)), "/")
}

/// Nodes of the pods of an application that are ready.
fn nodes_of(site: &Site, app: &str) -> BTreeSet<usize> {
    let pods = site.ready_pods(1);
    let own = pods.iter().filter(|(pod, _)| pod.rsplitn(3, '-').last() == Some(app));
    own.filter_map(|(_, node)| node.strip_prefix('m')?.parse().ok()).collect()
}

/// The answer to a question for a name's addresses: the name it is another name for, and the bytes of the last address.
fn dns(machine: &Machine, server: Ipv4Addr, name: &str) -> Option<(bool, Ipv4Addr)> {
    let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).expect("a label"));
        question.extend_from_slice(label.as_bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    let answer = machine.inside(|| {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        socket.send_to(&question, (server, 53)).ok()?;
        let mut answer = [0; 512];
        let length = socket.recv(&mut answer).ok()?;
        Some(answer[..length].to_vec())
    })?;
    // Two answers: type CNAME (5), class IN, for the question's own name (a pointer to byte 12), and an address.
    let alias = answer.get(question.len()..question.len() + 6) == Some(&[0xc0, 12, 0, 5, 0, 1]);
    let last: [u8; 4] = answer.get(answer.len() - 4..)?.try_into().ok()?;
    (answer[3] & 15 == 0 && answer[7] == 2).then(|| (alias, last.into()))
}

#[test]
fn an_application_is_reached_in_every_way_there_is() {
    let mut site = Site::new(4);
    site.form(1, 2);
    site.at(1).import_hello();
    let file = std::fs::read_to_string(coracle_cluster_tests::machine::workspace().join("examples/exposed.yaml"));
    let file = file.expect("the example");
    let first = site.at(1).apply(&file);
    assert!(first.contains("service/exposed-ports created"), "{first}");
    site.wait("all copies to be ready", |site| site.ready_pods(1).len() == 3);
    let second = site.at(1).apply(&file);
    assert_eq!(second.matches("unchanged").count(), first.lines().count(), "{second}");

    node_ports(&site);
    balancer(&site);
    affinity(&site);
    alias(&site);
    by_hand(&site);
    port_of_one_node(&site);
    datagrams(&site);
    changes_of_type(&site);
}

/// Every node serves the number, whether or not it has a copy.
fn node_ports(site: &Site) {
    for node in 1..=3 {
        site.wait(&format!("m{node} to serve the node port"), |site| {
            asks(site, node, 30_080).is_some_and(|said| said.contains("hello from exposed-"))
        });
        // From a pod of the cluster's too.
        let ask = format!("/ask?host={}&port=30080", site.address(node));
        let said = site.at(OUTSIDER).http(&format!("{}:30080", site.address(1)), &ask);
        assert!(said.as_ref().is_some_and(|said| said.contains("hello from exposed-")), "{said:?}");
    }
    let shown = site.at(1).coracle(&["get", "services"]);
    assert!(shown.contains("80:30080/TCP,80:30080/UDP"), "{shown}");
    let taken = "apiVersion: v1\nkind: Service\nmetadata: {name: late}\nspec: {type: NodePort, ports: [{port: 80, nodePort: 30080}]}\n";
    let refused = site.at(1).try_apply(taken);
    assert!(refused.code != 0 && refused.err.contains("30080: provided port is already allocated"), "{refused:?}");
}

/// The nodes with a copy are the load balancer, and the copies see who asks.
fn balancer(site: &Site) {
    let copies = nodes_of(site, "exposed");
    assert_eq!(copies.len(), 2, "on two nodes of three");
    let mut ways: Vec<String> = copies.iter().map(|node| site.address(*node).to_string()).collect();
    ways.sort();
    site.wait("the addresses of the nodes with a copy to be told", |site| {
        let service = site.at(1).get(&["svc/exposed"]);
        let given = service["status"]["loadBalancer"]["ingress"].as_array().cloned().unwrap_or_default();
        given.iter().map(|way| way["ip"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>() == ways
    });
    let shown = site.at(1).coracle(&["get", "services"]);
    assert!(shown.contains(&ways.join(",")), "{shown}");
    let own = site.address(OUTSIDER).to_string();
    for node in 1..=3 {
        let client = |site: &Site| site.at(OUTSIDER).http(&format!("{}:8080", site.address(node)), "/client");
        if copies.contains(&node) {
            site.wait(&format!("m{node} to be the load balancer"), |site| client(site).is_some());
            for _ in 0..5 {
                assert_eq!(client(site).as_deref().map(str::trim), Some(own.as_str()), "the client's address is kept");
            }
        } else {
            assert_eq!(client(site), None, "there is no copy on m{node}");
        }
        // With the other policy it is the node's, unless the copy is on that node.
        let seen = site.at(OUTSIDER).http(&format!("{}:30080", site.address(node)), "/client").unwrap_or_default();
        assert!(copies.contains(&node) || seen.trim() != own, "m{node} has no copy, and one elsewhere saw {seen}");
    }
}

/// One client, one copy.
fn affinity(site: &Site) {
    site.wait("the sticky port to be served", |site| asks(site, 1, 30_081).is_some());
    let said: BTreeSet<Option<String>> = (0..20).map(|_| asks(site, 1, 30_081)).collect();
    assert!(said.len() == 1 && !said.contains(&None), "{said:?}");
    let others: BTreeSet<Option<String>> = (0..40).map(|_| asks(site, 1, 30_080)).collect();
    assert_eq!(others.len(), 2, "without affinity both answer");
}

/// The name is answered with the other name and its address, and a pod that asks finds the application.
fn alias(site: &Site) {
    let node = site.at(1).get(&["node/m1"]);
    let block = node["spec"]["podCIDR"].as_str().expect("a block of addresses");
    let server: Ipv4Addr = block.replace(".0/24", ".1").parse().expect("the node's gateway");
    let (is_alias, address) =
        dns(site.at(1), server, "exposed-alias.default.svc.cluster.local").expect("an answer of two records");
    assert!(is_alias, "no CNAME");
    assert_eq!(address.to_string(), site.service_address(1, "exposed-ports"));
    let said =
        site.at(OUTSIDER).http(&format!("{}:30080", site.address(1)), "/ask?host=exposed-alias").unwrap_or_default();
    assert!(said.contains("hello from exposed-"), "{said}");
    let shown = site.at(1).coracle(&["get", "services"]);
    assert!(shown.contains("exposed-ports.default.svc.cluster.local"), "{shown}");
}

/// The machine of the slice answers for the Service.
fn by_hand(site: &Site) {
    let listener = site.at(OUTSIDER).inside(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 9099)).expect("a free port"));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nold and reliable\n");
        }
    });
    let address = site.service_address(1, "legacy");
    for node in 1..=3 {
        site.wait(&format!("m{node} to know the machine"), |site| {
            site.at(node).http(&format!("{address}:80"), "/").as_deref() == Some("old and reliable\n")
        });
    }
    site.wait("a pod to reach it by its name", |site| {
        let said = site.at(OUTSIDER).http(&format!("{}:30080", site.address(1)), "/ask?host=legacy");
        said.is_some_and(|said| said.contains("old and reliable"))
    });
}

/// The pod's node leads the port to it, and no other pod with the port comes there.
fn port_of_one_node(site: &Site) {
    let nodes = nodes_of(site, "exposed-host");
    let node = *nodes.first().expect("it runs");
    site.wait("the node's port to lead to the pod", |site| {
        asks(site, node, 8081).is_some_and(|said| said.contains("hello from exposed-host-"))
    });
    for other in (1..=3).filter(|other| *other != node) {
        assert_eq!(asks(site, other, 8081), None, "m{other} has no such pod");
    }
    let second = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: second}}\nspec:\n  nodeSelector: {{kubernetes.io/hostname: m{node}}}\n  \
         containers: [{{name: main, image: \"coracle.local/hello:1\", ports: [{{containerPort: 8080, hostPort: 8081}}]}}]\n"
    );
    site.at(1).apply(&second);
    site.wait("the second one to say why it waits", |site| {
        let pod = site.at(1).get(&["pod/second"]);
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|one| one["message"].as_str().is_some_and(|said| said.contains("didn't have free ports")))
    });
    let _ = site.at(1).coracle(&["delete", "pod/second"]);
}

/// A client by UDP keeps its port and is answered by the copy that replaces its own.
fn datagrams(site: &Site) {
    let socket = site.at(OUTSIDER).inside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a socket"));
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a socket");
    let ask = || {
        socket.send_to(b"?", (site.address(1), 30_080)).ok()?;
        let mut answer = [0; 256];
        let length = socket.recv(&mut answer).ok()?;
        Some(String::from_utf8_lossy(&answer[..length]).into_owned())
    };
    let mut first = None;
    site.wait("an answer by UDP", |_| {
        first = ask();
        first.is_some()
    });
    let first = first.unwrap_or_default();
    let name = first.split(' ').nth(2).expect("hello from NAME").to_owned();
    let _ = site.at(1).coracle(&["delete", &format!("pod/{name}")]);
    site.wait("another copy to answer the same socket", |_| {
        ask().is_some_and(|said| said.starts_with("hello from exposed-") && !said.contains(&name))
    });
    site.wait("all copies to be ready again", |site| site.ready_pods(1).len() == 3);
}

/// What a type brought goes with it, and comes back with it.
fn changes_of_type(site: &Site) {
    let apply = |kind: &str| {
        let spec = format!("type: {kind}, selector: {{app: exposed}}, ports: [{{port: 8088, targetPort: 8080}}]");
        let _ =
            site.at(1).apply(&format!("apiVersion: v1\nkind: Service\nmetadata: {{name: moving}}\nspec: {{{spec}}}\n"));
        site.at(1).get(&["svc/moving"])
    };
    let number =
        |service: &Value| service["spec"]["ports"][0]["nodePort"].as_u64().and_then(|port| u16::try_from(port).ok());
    let plain = apply("ClusterIP");
    assert_eq!(number(&plain), None);
    let balanced = apply("LoadBalancer");
    let port = number(&balanced).expect("a number on every node");
    assert_eq!(balanced["spec"]["clusterIP"], plain["spec"]["clusterIP"]);
    for node in 1..=3 {
        site.wait(&format!("m{node} to serve both ports"), |site| {
            asks(site, node, port).is_some() && asks(site, node, 8088).is_some()
        });
    }
    let numbered = apply("NodePort");
    assert_eq!(number(&numbered), Some(port), "the number is kept");
    site.wait("the load balancer to be gone", |site| asks(site, 1, 8088).is_none());
    assert!(asks(site, 1, port).is_some());
    let again = apply("ClusterIP");
    assert_eq!((number(&again), &again["spec"]["clusterIP"]), (None, &plain["spec"]["clusterIP"]));
    site.wait("the node port to be gone", |site| asks(site, 1, port).is_none());
    site.wait("the status to tell of no load balancer", |site| {
        site.at(1).get(&["svc/moving"])["status"]["loadBalancer"]["ingress"].is_null()
    });
}
