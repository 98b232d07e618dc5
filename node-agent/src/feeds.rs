//! Services, EndpointSlices, pods and nodes as the network and DNS rooms want them: plain values. The only place that knows both
//! Kubernetes' words and theirs.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;

use coracle_dns::{Endpoint, PodRecord, Port, ServiceRecord, Target, ZoneInput};
use coracle_netd::{Desired, Peer, Protocol, ServiceEntry};
use serde_json::Value;

use crate::ledger::State;

/// The label that ties an EndpointSlice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const SLICES: &str = "endpointslices.discovery.k8s.io";

/// Everything that follows from one state of the ledger.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    /// For the packet filter.
    pub desired: Desired,
    /// For the name server.
    pub zone: ZoneInput,
    /// For the routes to other nodes: all nodes that pods can be reached on, this one included, by name.
    pub peers: Vec<Peer>,
}

/// The tables of a state. `domain` without a dot at the end; `nameserver` is where pods ask.
#[must_use]
pub fn tables(
    state: &State,
    domain: &str,
    nameserver: Option<Ipv4Addr>,
    reverse_blocks: Vec<(Ipv4Addr, u8)>,
) -> Tables {
    let mut slices: BTreeMap<(&str, &str), Vec<&Value>> = BTreeMap::new();
    for (key, held) in state.list(SLICES) {
        if let Some(service) = held.tree["metadata"]["labels"][SERVICE_NAME].as_str() {
            slices.entry((&key.namespace, service)).or_default().push(&held.tree);
        }
    }
    let mut tables = Tables { peers: peers(state), ..Tables::default() };
    let deleted = deleted(state);
    for (key, held) in state.list("services") {
        let slices = slices.get(&(key.namespace.as_str(), key.name.as_str())).map_or(&[][..], Vec::as_slice);
        service(&mut tables, &key.namespace, &key.name, &held.tree, slices, &deleted);
    }
    let mut pods: BTreeMap<Ipv4Addr, String> = BTreeMap::new();
    for slices in slices.values() {
        for slice in slices {
            let namespace = text(&slice["metadata"]["namespace"]);
            for (address, _) in addresses(slice) {
                pods.insert(address, namespace.clone());
            }
        }
    }
    for (key, held) in state.list("pods") {
        if let Ok(address) = text(&held.tree["status"]["podIP"]).parse() {
            pods.insert(address, key.namespace.clone());
        }
    }
    tables.zone = ZoneInput {
        domain: domain.to_owned(),
        serial: u32::try_from(state.generation.revision & 0xffff_ffff).unwrap_or(0),
        nameserver,
        reverse_blocks,
        services: tables.zone.services,
        pods: pods.into_iter().map(|(address, namespace)| PodRecord { namespace, address }).collect(),
    };
    tables
}

/// Nodes with a block of pod addresses and an address of their own. Also those that are not ready: their pods may be.
fn peers(state: &State) -> Vec<Peer> {
    let nodes = state.list("nodes").filter_map(|(key, held)| {
        let pod_cidr = held.tree["spec"]["podCIDR"].as_str()?.parse().ok()?;
        let addresses = held.tree["status"]["addresses"].as_array()?;
        let internal = addresses.iter().filter(|address| address["type"] == "InternalIP");
        let address = internal.filter_map(|address| address["address"].as_str()?.parse().ok()).next()?;
        Some(Peer { node: key.name.clone(), pod_cidr, address })
    });
    nodes.collect()
}

/// Addresses that new connections to Services go to.
#[must_use]
pub fn serving(desired: &Desired) -> HashSet<Ipv4Addr> {
    desired.services.iter().flat_map(|service| service.backends.iter().map(|(address, _)| *address)).collect()
}

/// Addresses of this node's pods that are being deleted. Their slices will say so too, in a while: a busy server must not
/// make us send new connections to a pod that we are about to stop.
fn deleted(state: &State) -> HashSet<Ipv4Addr> {
    let pods = state.list("pods").filter(|(_, held)| !held.tree["metadata"]["deletionTimestamp"].is_null());
    pods.filter_map(|(_, held)| held.tree["status"]["podIP"].as_str()?.parse().ok()).collect()
}

fn service(
    tables: &mut Tables,
    namespace: &str,
    name: &str,
    tree: &Value,
    slices: &[&Value],
    deleted: &HashSet<Ipv4Addr>,
) {
    let spec = &tree["spec"];
    let record = |target| ServiceRecord { namespace: namespace.to_owned(), name: name.to_owned(), target };
    if spec["type"] == "ExternalName" {
        tables.zone.services.push(record(Target::External { name: text(&spec["externalName"]) }));
        return;
    }
    let Ok(vip) = text(&spec["clusterIP"]).parse::<Ipv4Addr>() else {
        tables.zone.services.push(record(Target::Headless { endpoints: headless(spec, slices) }));
        return;
    };
    let ports = spec["ports"].as_array().map_or(&[][..], Vec::as_slice);
    for port in ports {
        let proto = match port["protocol"].as_str() {
            Some("UDP") => Protocol::Udp,
            Some("TCP") | None => Protocol::Tcp,
            Some(_) => continue,
        };
        let Some(number) = number(&port["port"]) else { continue };
        let backends = backends(slices, &text(&port["name"]), proto, deleted);
        tables.desired.services.push(ServiceEntry { vip, port: number, proto, backends });
    }
    let ports = ports.iter().filter_map(dns_port).collect();
    tables.zone.services.push(record(Target::Cluster { address: vip, ports }));
}

/// Where connections to a service's port go: its ready endpoints; when none is, those that still serve while they end
/// (upstream: KEP-1669), so that the last replicas of a rollout drop nothing.
fn backends(slices: &[&Value], port_name: &str, proto: Protocol, deleted: &HashSet<Ipv4Addr>) -> Vec<(Ipv4Addr, u16)> {
    let (mut ready, mut leaving) = (Vec::new(), Vec::new());
    for slice in slices {
        let ports = slice["ports"].as_array().into_iter().flatten();
        let wanted = ports.filter(|port| {
            let udp = port["protocol"] == "UDP";
            port["name"].as_str().unwrap_or_default() == port_name && udp == (proto == Protocol::Udp)
        });
        let numbers: Vec<u16> = wanted.filter_map(|port| number(&port["port"])).collect();
        for (address, endpoint) in addresses(slice) {
            let conditions = &endpoint["conditions"];
            let list = if conditions["ready"] != false {
                // One that is published whatever happens is ready and terminating.
                let told = conditions["terminating"] == true;
                if deleted.contains(&address) && !told { &mut leaving } else { &mut ready }
            } else if conditions["serving"] == true && conditions["terminating"] == true {
                &mut leaving
            } else {
                continue;
            };
            list.extend(numbers.iter().map(|number| (address, *number)));
        }
    }
    let mut backends = if ready.is_empty() { leaving } else { ready };
    backends.sort_unstable();
    backends.dedup();
    backends
}

fn headless(spec: &Value, slices: &[&Value]) -> Vec<Endpoint> {
    let all = spec["publishNotReadyAddresses"] == true;
    let mut found = Vec::new();
    for slice in slices {
        let ports: Vec<Port> = slice["ports"].as_array().into_iter().flatten().filter_map(dns_port).collect();
        for (address, endpoint) in addresses(slice) {
            if all || endpoint["conditions"]["ready"] != false {
                let hostname = endpoint["hostname"].as_str().filter(|name| !name.is_empty()).map(ToOwned::to_owned);
                found.push(Endpoint { address, hostname, ports: ports.clone() });
            }
        }
    }
    found
}

fn addresses(slice: &Value) -> impl Iterator<Item = (Ipv4Addr, &Value)> {
    slice["endpoints"].as_array().into_iter().flatten().flat_map(|endpoint| {
        let addresses = endpoint["addresses"].as_array().into_iter().flatten();
        addresses.filter_map(move |address| Some((address.as_str()?.parse().ok()?, endpoint)))
    })
}

fn dns_port(port: &Value) -> Option<Port> {
    let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
    Some(Port { name: text(&port["name"]), protocol, port: number(&port["port"])? })
}

fn number(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Held, Key};
    use serde_json::json;
    use std::sync::Arc;

    fn state(objects: &[(&str, &str, Value)]) -> State {
        let mut state = State::default();
        for (resource, name, tree) in objects {
            let held = Held { uid: String::new(), revision: 1, tree: tree.clone() };
            state.objects.insert(Key::new(resource, "n", name), Arc::new(held));
        }
        state
    }

    fn slice(service: &str, endpoints: Value) -> Value {
        json!({
            "metadata": {"namespace": "n", "labels": {SERVICE_NAME: service}},
            "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}, {"name": "dns", "port": 5353, "protocol": "UDP"}],
            "endpoints": endpoints,
        })
    }

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, 0, last)
    }

    #[test]
    fn ports_by_name_and_ready_endpoints_only() {
        let ports = json!([
            {"name": "web", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "none", "port": 1}]);
        let state = state(&[
            ("services", "s", json!({"spec": {"clusterIP": "10.43.0.9", "ports": ports}})),
            (
                SLICES,
                "s-1",
                slice(
                    "s",
                    json!([
                        {"addresses": ["10.42.0.2"], "conditions": {"ready": true}},
                        {"addresses": ["10.42.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                    ]),
                ),
            ),
            (SLICES, "s-2", slice("s", json!([{"addresses": ["10.42.0.4"], "conditions": {}}]))),
            (SLICES, "other", slice("t", json!([{"addresses": ["10.42.0.5"], "conditions": {"ready": true}}]))),
        ]);
        let tables = tables(&state, "cluster.local", None, Vec::new());
        let vip = Ipv4Addr::new(10, 43, 0, 9);
        let entry =
            |port, proto, backends: &[(Ipv4Addr, u16)]| ServiceEntry { vip, port, proto, backends: backends.to_vec() };
        assert_eq!(
            tables.desired.services,
            [
                entry(80, Protocol::Tcp, &[(ip(2), 8080), (ip(4), 8080)]),
                entry(53, Protocol::Udp, &[(ip(2), 5353), (ip(4), 5353)]),
                entry(1, Protocol::Tcp, &[]),
            ]
        );
        assert_eq!(serving(&tables.desired), HashSet::from([ip(2), ip(4)]));
        let Target::Cluster { address, ports } = &tables.zone.services[0].target else {
            panic!("not a cluster service")
        };
        assert_eq!((*address, ports.len()), (vip, 3));
        assert_eq!(tables.zone.pods.len(), 4);
    }

    #[test]
    fn the_last_endpoints_serve_while_they_end() {
        let leaving = json!([
            {"addresses": ["10.42.0.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.42.0.4"], "conditions": {"ready": false, "serving": false, "terminating": true}},
        ]);
        let state = state(&[
            ("services", "s", json!({"spec": {"clusterIP": "10.43.0.9", "ports": [{"name": "web", "port": 80}]}})),
            (SLICES, "s-1", slice("s", leaving)),
        ]);
        assert_eq!(tables(&state, "cluster.local", None, Vec::new()).desired.services[0].backends, [(ip(3), 8080)]);
    }

    #[test]
    fn a_deleted_pod_leaves_before_its_slice_says_so() {
        let endpoints = |terminating: bool| {
            json!([
                {"addresses": ["10.42.0.3"], "conditions": {"ready": true, "terminating": terminating}},
                {"addresses": ["10.42.0.4"], "conditions": {"ready": true}},
            ])
        };
        let pod = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"podIP": "10.42.0.3"}});
        let service = json!({"spec": {"clusterIP": "10.43.0.9", "ports": [{"name": "web", "port": 80}]}});
        let backends = |endpoints: Value| {
            let slice = slice("s", endpoints);
            let state =
                state(&[("services", "s", service.clone()), (SLICES, "s-1", slice), ("pods", "p", pod.clone())]);
            let mut desired = tables(&state, "cluster.local", None, Vec::new()).desired;
            desired.services.remove(0).backends
        };
        assert_eq!(backends(endpoints(false)), [(ip(4), 8080)]);
        // Published while it is not ready, by the Service's wish.
        assert_eq!(backends(endpoints(true)), [(ip(3), 8080), (ip(4), 8080)]);
        // The last one serves on.
        let last = json!([{"addresses": ["10.42.0.3"], "conditions": {"ready": true}}]);
        assert_eq!(backends(last), [(ip(3), 8080)]);
    }

    #[test]
    fn headless_services_are_their_endpoints() {
        let endpoints = json!([
            {"addresses": ["10.42.0.2"], "hostname": "db-0", "conditions": {"ready": true}},
            {"addresses": ["10.42.0.3"], "conditions": {"ready": false}},
        ]);
        let count = |spec: Value| {
            let state =
                state(&[("services", "s", json!({"spec": spec})), (SLICES, "s-1", slice("s", endpoints.clone()))]);
            let tables = tables(&state, "cluster.local", None, Vec::new());
            assert!(tables.desired.services.is_empty());
            match &tables.zone.services[0].target {
                Target::Headless { endpoints } => {
                    endpoints.iter().map(|found| found.hostname.clone()).collect::<Vec<_>>()
                }
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(count(json!({"clusterIP": "None"})), [Some("db-0".to_owned())]);
        assert_eq!(
            count(json!({"clusterIP": "None", "publishNotReadyAddresses": true})),
            [Some("db-0".to_owned()), None]
        );
    }

    #[test]
    fn nodes_with_block_and_address_are_peers() {
        let node =
            |block: Value, addresses: Value| json!({"spec": {"podCIDR": block}, "status": {"addresses": addresses}});
        let state = state(&[
            (
                "nodes",
                "a",
                node(
                    json!("10.42.1.0/24"),
                    json!([
                        {"type": "Hostname", "address": "a"},
                        {"type": "InternalIP", "address": "2001:db8::1"},
                        {"type": "InternalIP", "address": "192.0.2.1"},
                        {"type": "InternalIP", "address": "192.0.2.9"},
                    ]),
                ),
            ),
            ("nodes", "b", node(json!("10.42.2.0/24"), json!([{"type": "ExternalIP", "address": "192.0.2.2"}]))),
            ("nodes", "c", node(Value::Null, json!([{"type": "InternalIP", "address": "192.0.2.3"}]))),
            ("nodes", "d", node(json!("2001:db8:1::/64"), json!([{"type": "InternalIP", "address": "192.0.2.4"}]))),
            ("nodes", "e", json!({"spec": {"podCIDR": "10.42.5.0/24"}})),
        ]);
        let peers = tables(&state, "cluster.local", None, Vec::new()).peers;
        let (pod_cidr, address) = ("10.42.1.0/24".parse().unwrap(), Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(peers, [Peer { node: "a".to_owned(), pod_cidr, address }]);
    }

    #[test]
    fn the_first_feed_of_nothing_is_a_table_of_nothing() {
        let empty = tables(&State::default(), "cluster.local", Some(ip(1)), Vec::new());
        assert!(empty.desired.services.is_empty() && empty.zone.services.is_empty());
        assert_eq!((empty.zone.domain.as_str(), empty.zone.nameserver), ("cluster.local", Some(ip(1))));
    }
}
