//! Pods come and go; alone in its process, so that every file descriptor counts.

mod support;

use std::net::Ipv4Addr;

use coracle_netd::NetError;
use support::{Node, Ns, eventually, wait};

#[test]
fn two_hundred_pods_come_and_go_and_leave_nothing() {
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let at_first = descriptors();
    let node = Node::new();
    let links = node.ns.links();
    let pod = Ns::new();
    let before = descriptors();
    for round in 0..200 {
        let ip = Ipv4Addr::new(10, 42, 0, 2 + (round % 250) as u8);
        let id = format!("p{round}");
        wait(node.netd.attach(pod.fd(), &id, ip)).unwrap();
        assert_eq!(wait(node.netd.list()).unwrap().len(), 1);
        wait(node.netd.detach(&id)).unwrap();
    }
    assert_eq!((node.ns.links(), pod.links()), (links, 0));
    assert_eq!(descriptors(), before);
    assert!(wait(node.netd.list()).unwrap().is_empty());
    assert_eq!(node.ns.run("ip", &["-4", "neigh", "show", "nud", "permanent"]), "");
    wait(node.netd.remove_all()).unwrap();
    eventually(|| match wait(node.netd.list()) {
        Err(NetError::Stopped) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    drop((node, pod));
    // The threads close their sockets as they end.
    eventually(|| match descriptors() {
        now if now <= at_first => Ok(()),
        now => Err(format!("{now} descriptors, {at_first} at first")),
    });
}
