//! Services, EndpointSlices, pods and nodes as the network and DNS rooms want them: plain values. The only place that knows both
//! Kubernetes' words and theirs.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;

use coracle_dns::{Endpoint, PodRecord, Port, ServiceRecord, Target, ZoneInput};
use coracle_manifests::service::{NO_BALANCER, affinity_s, block_of, is_balanced_here, may_have_node_ports};
use coracle_manifests::view::is_finished;
use coracle_netd::{Cidr, Clients, Desired, Peer, Protocol, ServiceEntry};
use serde_json::Value;

use crate::ledger::State;

/// The label that ties an EndpointSlice to its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
const SLICES: &str = "endpointslices.discovery.k8s.io";

/// This node, as services see it.
#[derive(Debug, Clone, Copy)]
pub struct Here {
    /// Its pods' addresses.
    pub pods: Cidr,
    /// The address others reach it at, where its node ports and load balancers are.
    pub address: Option<Ipv4Addr>,
}

impl Here {
    /// Whether an endpoint is on this node.
    fn has(&self, endpoint: Ipv4Addr) -> bool {
        self.pods.contains(endpoint) || Some(endpoint) == self.address
    }
}

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
    here: &Here,
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
    let (deleted, nodes) = (deleted(state), Nodes::of(state, here));
    for (key, held) in state.list("services") {
        let slices = slices.get(&(key.namespace.as_str(), key.name.as_str())).map_or(&[][..], Vec::as_slice);
        service(
            &mut tables,
            &key.namespace,
            &key.name,
            &held.tree,
            &Behind { slices, deleted: &deleted, here },
            &nodes,
        );
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
    tables.desired.host_ports = host_ports(state, here);
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

/// Ports of this node that are its pods' alone, for as long as they run; also while they end, as nobody else can have them before.
fn host_ports(state: &State, here: &Here) -> Vec<ServiceEntry> {
    let mut found = Vec::new();
    for (_, held) in state.list("pods") {
        let (spec, status) = (&held.tree["spec"], &held.tree["status"]);
        let Ok(pod) = text(&status["podIP"]).parse::<Ipv4Addr>() else { continue };
        if spec["hostNetwork"] == true || is_finished(&held.tree) {
            continue;
        }
        let of = |part: &str| spec[part].as_array().cloned().unwrap_or_default();
        let sidecars = of("initContainers").into_iter().filter(|init| init["restartPolicy"] == "Always");
        for container in of("containers").into_iter().chain(sidecars) {
            for port in container["ports"].as_array().into_iter().flatten() {
                let host = number(&port["hostPort"]).filter(|port| *port != 0).zip(number(&port["containerPort"]));
                let address = match text(&port["hostIP"]).as_str() {
                    "" | "0.0.0.0" => here.address,
                    named => named.parse().ok(),
                };
                let proto = if port["protocol"] == "UDP" { Protocol::Udp } else { Protocol::Tcp };
                let Some(((host, inner), address)) = host.zip(address) else { continue };
                found.push(ServiceEntry::new(address, host, proto, vec![(pod, inner)]));
            }
        }
    }
    found
}

/// What services need to know of the machines.
struct Nodes {
    /// This node's own address, when load balancers may be there.
    balancer: Option<Ipv4Addr>,
    /// Addresses of all other nodes: what comes there is theirs to lead on.
    others: HashSet<Ipv4Addr>,
}

impl Nodes {
    fn of(state: &State, here: &Here) -> Self {
        let (mut balancer, mut others) = (here.address, HashSet::new());
        for (_, held) in state.list("nodes") {
            let addresses = held.tree["status"]["addresses"].as_array().into_iter().flatten();
            let internal = addresses.filter(|address| address["type"] == "InternalIP");
            let internal: Vec<Ipv4Addr> =
                internal.filter_map(|address| address["address"].as_str()?.parse().ok()).collect();
            if here.address.is_some_and(|own| internal.contains(&own)) {
                balancer = balancer.filter(|_| held.tree["metadata"]["labels"].get(NO_BALANCER).is_none());
            } else {
                others.extend(internal);
            }
        }
        Self { balancer, others }
    }

    /// The addresses at which the outside reaches a service's own ports through this node: those it names, and the load balancer's,
    /// which is here when the cluster has given it any node's.
    /// With each the clients that may use it, when not all may.
    fn ways_in(&self, service: &Value) -> BTreeMap<Ipv4Addr, Option<Vec<Cidr>>> {
        let (spec, status) = (&service["spec"], &service["status"]);
        let parsed = |value: &Value| value.as_str()?.parse::<Ipv4Addr>().ok();
        let named = spec["externalIPs"].as_array().into_iter().flatten().filter_map(parsed);
        let mut ways: BTreeMap<Ipv4Addr, Option<Vec<Cidr>>> = named.map(|way| (way, None)).collect();
        if spec["type"] == "LoadBalancer" {
            let given = status["loadBalancer"]["ingress"].as_array().map_or(&[][..], Vec::as_slice);
            // `Proxy`: what comes there has been somewhere else before (upstream: KEP-1860).
            let own = given.iter().filter(|way| way["ipMode"] != "Proxy").filter_map(|way| parsed(&way["ip"]));
            let here = self.balancer.filter(|_| is_balanced_here(spec) && !given.is_empty());
            ways.extend(own.chain(here).map(|way| (way, allowed(spec))));
        }
        ways.retain(|way, _| !self.others.contains(way));
        ways
    }
}

/// The clients that may use a load balancer; `None`: all.
fn allowed(spec: &Value) -> Option<Vec<Cidr>> {
    let blocks = spec["loadBalancerSourceRanges"].as_array().filter(|blocks| !blocks.is_empty())?;
    let mut blocks: Vec<Cidr> = blocks
        .iter()
        .filter_map(|block| block_of(block.as_str()?))
        .filter_map(|(address, prefix)| Cidr::new(address, prefix).ok())
        .collect();
    blocks.sort_unstable();
    blocks.dedup();
    blocks.iter().all(|block| block.prefix() > 0).then_some(blocks)
}

/// Addresses that new connections to Services go to. Ports of the node that are one pod's alone do not count: nobody else has them.
#[must_use]
pub fn serving(desired: &Desired) -> HashSet<Ipv4Addr> {
    desired.services.iter().flat_map(|service| service.backends.iter().map(|(address, _)| *address)).collect()
}

/// Whether any Service asks for a port of the nodes.
#[must_use]
pub fn wants_node_ports(state: &State) -> bool {
    state.list("services").any(|(_, held)| may_have_node_ports(&held.tree["spec"]))
}

/// Addresses of this node's pods that are being deleted. Their slices will say so too, in a while: a busy server must not
/// make us send new connections to a pod that we are about to stop.
fn deleted(state: &State) -> HashSet<Ipv4Addr> {
    let pods = state.list("pods").filter(|(_, held)| !held.tree["metadata"]["deletionTimestamp"].is_null());
    pods.filter_map(|(_, held)| held.tree["status"]["podIP"].as_str()?.parse().ok()).collect()
}

/// What stands behind a service.
struct Behind<'a> {
    slices: &'a [&'a Value],
    deleted: &'a HashSet<Ipv4Addr>,
    here: &'a Here,
}

fn service(tables: &mut Tables, namespace: &str, name: &str, tree: &Value, behind: &Behind<'_>, nodes: &Nodes) {
    let spec = &tree["spec"];
    let record = |target| ServiceRecord { namespace: namespace.to_owned(), name: name.to_owned(), target };
    if spec["type"] == "ExternalName" {
        let name = text(&spec["externalName"]);
        let name = name.strip_suffix('.').map_or_else(|| name.clone(), ToOwned::to_owned);
        tables.zone.services.push(record(Target::External { name }));
        return;
    }
    let Ok(vip) = text(&spec["clusterIP"]).parse::<Ipv4Addr>() else {
        tables.zone.services.push(record(Target::Headless { endpoints: headless(spec, behind.slices) }));
        return;
    };
    let ports = spec["ports"].as_array().map_or(&[][..], Vec::as_slice);
    for port in ports {
        let proto = match port["protocol"].as_str() {
            Some("UDP") => Protocol::Udp,
            Some("TCP") | None => Protocol::Tcp,
            Some(_) => continue,
        };
        let Some(own) = number(&port["port"]) else { continue };
        let name = text(&port["name"]);
        let all = behind.backends(&name, proto, false);
        let local = |policy: &str| (spec[policy] == "Local").then(|| behind.backends(&name, proto, true));
        let affinity_s = affinity_s(spec);
        let entry = |vip, port, backends| ServiceEntry { affinity_s, ..ServiceEntry::new(vip, port, proto, backends) };
        let inner = local("internalTrafficPolicy").unwrap_or_else(|| all.clone());
        tables.desired.services.push(entry(vip, own, inner));
        let node_port = number(&port["nodePort"]).filter(|port| *port != 0 && may_have_node_ports(spec));
        let ways = nodes.ways_in(tree).into_iter().map(|(way, allowed)| (way, own, allowed));
        let of_node = behind.here.address.zip(node_port).map(|(address, port)| (address, port, None));
        let near = local("externalTrafficPolicy");
        for (address, port, allowed) in ways.chain(of_node) {
            let outer = entry(address, port, near.as_ref().unwrap_or(&all).clone());
            tables.desired.services.push(ServiceEntry { allowed, ..outer });
            if near.is_some() {
                // Pods have no address to be kept for them: they need not know on which nodes the endpoints are.
                let inside = entry(address, port, all.clone());
                tables.desired.services.push(ServiceEntry { clients: Clients::Inside, ..inside });
            }
        }
    }
    let ports = ports.iter().filter_map(dns_port).collect();
    tables.zone.services.push(record(Target::Cluster { address: vip, ports }));
}

impl Behind<'_> {
    /// Where connections to a service's port go, or those that stay on this node: its ready endpoints; when none is, those that still
    /// serve while they end (upstream: KEP-1669), so that the last replicas of a rollout drop nothing.
    fn backends(&self, port_name: &str, proto: Protocol, near: bool) -> Vec<(Ipv4Addr, u16)> {
        let (mut ready, mut leaving) = (Vec::new(), Vec::new());
        for slice in self.slices {
            let ports = slice["ports"].as_array().into_iter().flatten();
            let wanted = ports.filter(|port| {
                let udp = port["protocol"] == "UDP";
                port["name"].as_str().unwrap_or_default() == port_name && udp == (proto == Protocol::Udp)
            });
            let numbers: Vec<u16> = wanted.filter_map(|port| number(&port["port"])).collect();
            for (address, endpoint) in addresses(slice).filter(|(address, _)| !near || self.here.has(*address)) {
                let conditions = &endpoint["conditions"];
                let list = if conditions["ready"] != false {
                    // One that is published whatever happens is ready and terminating.
                    let told = conditions["terminating"] == true;
                    if self.deleted.contains(&address) && !told { &mut leaving } else { &mut ready }
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

    const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn here() -> Here {
        Here { pods: "10.42.0.0/24".parse().unwrap(), address: Some(OWN) }
    }

    /// The ports of a Service with an endpoint here and one elsewhere, a line each: `ADDRESS:PORT PROTOCOL [LAST OCTETS] EXTRAS`.
    fn exposed(mut service: Value, more: &[(&str, &str, Value)]) -> Vec<String> {
        service["spec"]["clusterIP"] = json!("10.43.0.9");
        let endpoints = json!([
            {"addresses": ["10.42.0.2"], "conditions": {"ready": true}}, {"addresses": ["10.42.1.3"], "conditions": {"ready": true}}]);
        let node = |address: &str| json!({"status": {"addresses": [{"type": "InternalIP", "address": address}]}});
        let mut objects =
            vec![("services", "s", service), (SLICES, "s-1", slice("s", endpoints)), ("nodes", "b", node("192.0.2.2"))];
        objects.push(("nodes", "a", node("192.0.2.1")));
        objects.extend(more.iter().cloned());
        let desired = tables(&state(&objects), &here(), "cluster.local", None, Vec::new()).desired;
        let line = |entry: &ServiceEntry| {
            let last: Vec<u8> = entry.backends.iter().map(|(address, _)| address.octets()[3]).collect();
            let inside = if entry.clients == Clients::Inside { " inside" } else { "" };
            let sticky = entry.affinity_s.map(|seconds| format!(" {seconds}s")).unwrap_or_default();
            let only = entry.allowed.as_ref().map(|blocks| format!(" only {blocks:?}")).unwrap_or_default();
            format!("{}:{} {} {last:?}{inside}{sticky}{only}", entry.vip, entry.port, entry.proto)
        };
        desired.services.iter().chain(&desired.host_ports).map(line).collect()
    }

    #[test]
    fn services_are_reached_from_outside() {
        let ports = json!([{"name": "web", "port": 80, "nodePort": 30_080}, {"name": "dns", "port": 53, "protocol": "UDP", "nodePort": 30_080}]);
        assert_eq!(
            exposed(json!({"spec": {"type": "NodePort", "ports": ports}}), &[]),
            [
                "10.43.0.9:80 tcp [2, 3]",
                "192.0.2.1:30080 tcp [2, 3]",
                "10.43.0.9:53 udp [2, 3]",
                "192.0.2.1:30080 udp [2, 3]"
            ]
        );
        let port = json!([{"name": "web", "port": 80, "nodePort": 30_080}]);
        let balancer = |given: Value| {
            let status = json!({"loadBalancer": {"ingress": given}});
            json!({"spec": {"type": "LoadBalancer", "ports": port}, "status": status})
        };
        let (inner, node) = ("10.43.0.9:80 tcp [2, 3]", "192.0.2.1:30080 tcp [2, 3]");
        assert_eq!(exposed(balancer(json!([])), &[]), [inner, node], "no address is given yet");
        // What was given to the cluster's other node is led on there.
        assert_eq!(
            exposed(balancer(json!([{"ip": "192.0.2.2", "ipMode": "VIP"}])), &[]),
            [inner, "192.0.2.1:80 tcp [2, 3]", node]
        );
        let mut guarded = balancer(json!([{"ip": "192.0.2.1"}]));
        guarded["spec"]["loadBalancerSourceRanges"] = json!(["198.51.100.9/24", " 203.0.113.0/28"]);
        guarded["spec"]["externalIPs"] = json!(["203.0.113.5"]);
        assert_eq!(
            exposed(guarded.clone(), &[]),
            [
                inner,
                "192.0.2.1:80 tcp [2, 3] only [198.51.100.0/24, 203.0.113.0/28]",
                "203.0.113.5:80 tcp [2, 3]",
                node
            ]
        );
        guarded["spec"]["loadBalancerSourceRanges"] = json!(["198.51.100.0/24", "0.0.0.0/0"]);
        assert_eq!(exposed(guarded, &[])[1], "192.0.2.1:80 tcp [2, 3]", "everybody is among them");
        let mut foreign =
            balancer(json!([{"ip": "203.0.113.5"}, {"ip": "203.0.113.6", "ipMode": "Proxy"}, {"hostname": "x"}]));
        foreign["spec"]["loadBalancerClass"] = json!("example.com/lb");
        assert_eq!(exposed(foreign, &[]), [inner, "203.0.113.5:80 tcp [2, 3]", node]);
        let kept_out = json!({
            "metadata": {"labels": {NO_BALANCER: ""}},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
        });
        let given = balancer(json!([{"ip": "192.0.2.2"}]));
        assert_eq!(exposed(given, &[("nodes", "a", kept_out)]), [inner, node]);
        let outer = json!({"spec": {"externalIPs": ["203.0.113.5", "192.0.2.1", "192.0.2.2"], "ports": [{"name": "web", "port": 80}]}});
        assert_eq!(exposed(outer, &[]), [inner, "192.0.2.1:80 tcp [2, 3]", "203.0.113.5:80 tcp [2, 3]"]);
        // A number without the type that has it.
        assert_eq!(exposed(json!({"spec": {"ports": port}}), &[]), [inner]);
    }

    #[test]
    fn policies_and_affinity_choose_endpoints() {
        let spec = |more: Value| {
            let mut spec = json!({"type": "NodePort", "ports": [{"name": "web", "port": 80, "nodePort": 30_080}]});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"spec": spec})
        };
        assert_eq!(
            exposed(spec(json!({"externalTrafficPolicy": "Local"})), &[]),
            ["10.43.0.9:80 tcp [2, 3]", "192.0.2.1:30080 tcp [2]", "192.0.2.1:30080 tcp [2, 3] inside"]
        );
        assert_eq!(
            exposed(spec(json!({"internalTrafficPolicy": "Local"})), &[]),
            ["10.43.0.9:80 tcp [2]", "192.0.2.1:30080 tcp [2, 3]"]
        );
        let sticky =
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}}});
        assert_eq!(exposed(spec(sticky), &[]), ["10.43.0.9:80 tcp [2, 3] 60s", "192.0.2.1:30080 tcp [2, 3] 60s"]);
        // The node's own address is an endpoint of this node: a pod in its network.
        let own = slice("s", json!([{"addresses": ["192.0.2.1"], "conditions": {"ready": true}}]));
        let lines = exposed(spec(json!({"externalTrafficPolicy": "Local"})), &[(SLICES, "s-2", own)]);
        assert_eq!(lines[1], "192.0.2.1:30080 tcp [2, 1]");
        // The last one here serves while it ends, though there are ready ones elsewhere.
        let leaving = slice(
            "s",
            json!([
            {"addresses": ["10.42.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["10.42.1.3"], "conditions": {"ready": true}}]),
        );
        let lines = exposed(spec(json!({"externalTrafficPolicy": "Local"})), &[(SLICES, "s-1", leaving)]);
        assert_eq!(lines[1..], ["192.0.2.1:30080 tcp [2]", "192.0.2.1:30080 tcp [3] inside"]);
    }

    #[test]
    fn pods_have_ports_of_the_node() {
        let pod = |address: &str, phase: &str, host_network: bool, ports: Value| {
            let spec = json!({
                "hostNetwork": host_network,
                "containers": [{"ports": ports}],
                "initContainers": [{"ports": [{"containerPort": 1, "hostPort": 1}]},
                    {"restartPolicy": "Always", "ports": [{"containerPort": 9, "hostPort": 90, "protocol": "UDP"}]}],
            });
            json!({"spec": spec, "status": {"podIP": address, "phase": phase}})
        };
        let both = json!([{"containerPort": 8080, "hostPort": 80}, {"containerPort": 8443, "hostPort": 443, "hostIP": "192.0.2.77"}]);
        let objects = [
            ("pods", "a", pod("10.42.0.5", "Running", false, both.clone())),
            ("pods", "b", pod("10.42.0.6", "Succeeded", false, both.clone())),
            ("pods", "c", pod("192.0.2.1", "Running", true, both)),
            ("pods", "d", pod("", "Pending", false, json!([{"containerPort": 1, "hostPort": 2}]))),
        ];
        let desired = tables(&state(&objects), &here(), "cluster.local", None, Vec::new()).desired;
        let entry = |address, port, proto, inner| ServiceEntry::new(address, port, proto, vec![(ip(5), inner)]);
        assert_eq!(
            desired.host_ports,
            [
                entry(OWN, 80, Protocol::Tcp, 8080),
                entry(Ipv4Addr::new(192, 0, 2, 77), 443, Protocol::Tcp, 8443),
                entry(OWN, 90, Protocol::Udp, 9)
            ]
        );
        assert!(serving(&desired).is_empty(), "nobody waits for them: they end with their pod");
    }

    #[test]
    fn an_alias_is_a_name_without_its_dot() {
        let alias = json!({"spec": {"type": "ExternalName", "externalName": "db.example.com."}});
        let tables = tables(&state(&[("services", "s", alias)]), &here(), "cluster.local", None, Vec::new());
        assert!(tables.desired.services.is_empty());
        assert_eq!(tables.zone.services[0].target, Target::External { name: "db.example.com".to_owned() });
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
        let tables = tables(&state, &here(), "cluster.local", None, Vec::new());
        let vip = Ipv4Addr::new(10, 43, 0, 9);
        let entry = |port, proto, backends: &[(Ipv4Addr, u16)]| ServiceEntry::new(vip, port, proto, backends.to_vec());
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
        assert_eq!(
            tables(&state, &here(), "cluster.local", None, Vec::new()).desired.services[0].backends,
            [(ip(3), 8080)]
        );
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
            let mut desired = tables(&state, &here(), "cluster.local", None, Vec::new()).desired;
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
            let tables = tables(&state, &here(), "cluster.local", None, Vec::new());
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
        let peers = tables(&state, &here(), "cluster.local", None, Vec::new()).peers;
        let (pod_cidr, address) = ("10.42.1.0/24".parse().unwrap(), Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(peers, [Peer { node: "a".to_owned(), pod_cidr, address }]);
    }

    #[test]
    fn the_first_feed_of_nothing_is_a_table_of_nothing() {
        let empty = tables(&State::default(), &here(), "cluster.local", Some(ip(1)), Vec::new());
        assert!(empty.desired.services.is_empty() && empty.zone.services.is_empty());
        assert_eq!((empty.zone.domain.as_str(), empty.zone.nameserver), ("cluster.local", Some(ip(1))));
    }
}
