//! What follows from the type of a Service: whether it has an address, ports on the nodes, and ways in from outside. The API, the
//! controllers and the nodes ask the same questions and must answer them alike.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

use serde_json::Value;

use crate::view::{list, text};

/// Ports of the nodes that Services get (upstream's default `--service-node-port-range`).
pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// Those below this one are left to whoever names a port, as long as there are others (upstream: KEP-3668).
pub const CHOSEN_NODE_PORTS: RangeInclusive<u16> = 30_086..=32_767;
/// A node with this label carries no load balancer's ports (upstream: `LabelNodeExcludeBalancers`).
pub const NO_BALANCER: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// The type of a Service's spec, before or after defaults.
#[must_use]
pub fn type_of(spec: &Value) -> &str {
    match text(&spec["type"]) {
        "" => "ClusterIP",
        other => other,
    }
}

/// Whether it is given an address of the cluster, or is headless: all but ExternalName.
#[must_use]
pub fn has_cluster_ip(spec: &Value) -> bool {
    type_of(spec) != "ExternalName"
}

/// Whether it is headless: its name stands for its endpoints.
#[must_use]
pub fn is_headless(spec: &Value) -> bool {
    has_cluster_ip(spec) && spec["clusterIP"] == "None"
}

/// Whether its ports may have a number on every node.
#[must_use]
pub fn may_have_node_ports(spec: &Value) -> bool {
    matches!(type_of(spec), "NodePort" | "LoadBalancer")
}

/// Whether each of its ports gets such a number unasked.
#[must_use]
pub fn gets_node_ports(spec: &Value) -> bool {
    may_have_node_ports(spec) && !(type_of(spec) == "LoadBalancer" && spec["allocateLoadBalancerNodePorts"] == false)
}

/// Whether anybody outside of the cluster may reach it.
#[must_use]
pub fn is_external(spec: &Value) -> bool {
    may_have_node_ports(spec) || (type_of(spec) == "ClusterIP" && !list(&spec["externalIPs"]).is_empty())
}

/// Whether it is this cluster that gives the load balancer its addresses, and nobody else.
#[must_use]
pub fn is_balanced_here(spec: &Value) -> bool {
    type_of(spec) == "LoadBalancer" && text(&spec["loadBalancerClass"]).is_empty()
}

/// Seconds for which a client stays with its endpoint; `None`: every connection goes anywhere.
#[must_use]
pub fn affinity_s(spec: &Value) -> Option<u32> {
    let timeout = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].as_u64();
    (spec["sessionAffinity"] == "ClientIP").then(|| timeout.and_then(|s| u32::try_from(s).ok()).unwrap_or(10_800))
}

/// A block of addresses as upstream takes it: spaces around it and bits behind its prefix do not matter. The first address and the
/// prefix length.
#[must_use]
pub fn block_of(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (address, prefix) = text.trim().split_once('/')?;
    let prefix = prefix.parse::<u8>().ok().filter(|prefix| *prefix <= 32)?;
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
    Some(((u32::from(address.parse::<Ipv4Addr>().ok()?) & mask).into(), prefix))
}

/// A port's protocol.
#[must_use]
pub fn protocol(port: &Value) -> &str {
    match text(&port["protocol"]) {
        "" => "TCP",
        other => other,
    }
}

/// What listens on a port of the nodes themselves and would be cut off, were the port given to a pod.
#[must_use]
pub fn own_port(protocol: &str, port: i64) -> Option<&'static str> {
    match (protocol, port) {
        ("TCP", 22) => Some("the node's SSH server"),
        ("TCP", 6443) => Some("the API"),
        ("TCP", 6444) => Some("agents and servers"),
        ("TCP", 6445) => Some("the nodes' images"),
        ("UDP", 8472) => Some("the network between nodes"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_follows_from_the_type() {
        let ask = |spec: Value| {
            [has_cluster_ip(&spec), may_have_node_ports(&spec), gets_node_ports(&spec), is_external(&spec)]
        };
        assert_eq!(ask(json!({})), [true, false, false, false]);
        assert_eq!(ask(json!({"type": "ClusterIP", "externalIPs": ["192.0.2.1"]})), [true, false, false, true]);
        assert_eq!(ask(json!({"type": "NodePort", "allocateLoadBalancerNodePorts": false})), [true, true, true, true]);
        assert_eq!(ask(json!({"type": "LoadBalancer"})), [true, true, true, true]);
        assert_eq!(
            ask(json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false})),
            [true, true, false, true]
        );
        assert_eq!(ask(json!({"type": "ExternalName", "externalIPs": ["192.0.2.1"]})), [false, false, false, false]);
        assert!(is_headless(&json!({"clusterIP": "None"})) && !is_headless(&json!({"clusterIP": "10.43.0.9"})));
        assert!(!is_balanced_here(&json!({"type": "LoadBalancer", "loadBalancerClass": "a/b"})));
        assert_eq!(affinity_s(&json!({"sessionAffinity": "ClientIP"})), Some(10_800));
        assert_eq!(affinity_s(&json!({"sessionAffinity": "None"})), None);
        let named =
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}});
        assert_eq!(affinity_s(&named), Some(5));
        let block = |text| block_of(text).map(|(address, prefix)| format!("{address}/{prefix}"));
        assert_eq!(block(" 192.0.2.77/24 ").as_deref(), Some("192.0.2.0/24"));
        assert_eq!(block("192.0.2.77/0").as_deref(), Some("0.0.0.0/0"));
        assert_eq!([block("192.0.2.77"), block("192.0.2.77/33"), block("::/0")], [None, None, None]);
        assert!(own_port("TCP", 6443).is_some() && own_port("UDP", 6443).is_none());
    }
}
