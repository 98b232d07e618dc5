//! What a Service is allotted: its address and its ports on the nodes. What it has it keeps through changes that do not say it again;
//! what its type no longer needs goes back. The store's claims make each of them one Service's only, whoever asks at the same time.

use std::collections::{BTreeSet, HashMap};

use coracle_manifests::service::{
    CHOSEN_NODE_PORTS, NODE_PORTS, gets_node_ports, has_cluster_ip, is_external, may_have_node_ports, protocol, type_of,
};
use coracle_manifests::view::list;
use coracle_manifests::{Problem, Reason};
use coracle_store::{Key, View};
use serde_json::{Map, Value, json};

use crate::addresses::{Assigned, ServiceAddresses, invalid};

/// What a Service holds, by the names of its claims.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Allotted {
    /// All that it holds.
    pub claims: Vec<String>,
    /// The fields by which it asked for some of it by name.
    asked: HashMap<String, String>,
}

impl Allotted {
    /// What to answer when another object turns out to hold `claim`. `None`: it was chosen here, and another one is tried.
    pub(crate) fn refusal(&self, claim: &str, holder: &Key) -> Option<Problem> {
        self.asked.get(claim).map(|path| taken(path, claim, holder))
    }

    fn ask(&mut self, claim: String, path: &str) {
        self.asked.insert(claim.clone(), path.to_owned());
        self.claims.push(claim);
    }
}

fn taken(path: &str, claim: &str, holder: &Key) -> Problem {
    let by = format!("taken by the Service {}/{}", holder.namespace, holder.name);
    if path == "spec.clusterIP" {
        return invalid(format!("the address is {by}"));
    }
    let number = claim.rsplit('/').next().unwrap_or_default();
    // Upstream's words.
    Problem::new(path, Reason::Invalid, format!("{number}: provided port is already allocated")).hint(by)
}

fn claim_of(protocol: &str, port: u16) -> String {
    format!("nodeport/{}/{port}", protocol.to_lowercase())
}

/// Gives a Service its address and its node ports, or checks those it names. `seed` says where the search for free ones begins.
pub(crate) fn allot(
    addresses: &ServiceAddresses,
    view: &View,
    key: &Key,
    service: &mut Value,
    seed: u32,
) -> Result<Allotted, Vec<Problem>> {
    let mut allotted = Allotted::default();
    let mut problems = Vec::new();
    if has_cluster_ip(&service["spec"]) {
        match addresses.assign(view, service, seed) {
            Ok(assigned) => {
                let asked = matches!(assigned, Assigned::Asked(_));
                for claim in assigned.claims() {
                    if asked { allotted.ask(claim, "spec.clusterIP") } else { allotted.claims.push(claim) }
                }
            }
            Err(problem) => problems.push(problem),
        }
    } else if let Some(spec) = service["spec"].as_object_mut() {
        spec.remove("clusterIP");
        spec.remove("clusterIPs");
    }
    problems.extend(node_ports(view, key, service, seed, &mut allotted));
    if problems.is_empty() { Ok(allotted) } else { Err(problems) }
}

/// Who holds which port, by protocol; `key` itself left out.
fn held<'a>(view: &'a View, key: &Key) -> HashMap<(String, u16), &'a Key> {
    let others = view.list("services", None).filter(|service| service.key != *key);
    let ports = others.flat_map(|service| {
        let ports: Vec<(String, u16)> = list(&service.tree()["spec"]["ports"]).iter().filter_map(numbered).collect();
        ports.into_iter().map(move |port| (port, &service.key))
    });
    ports.collect()
}

/// A port's protocol and number on the nodes, when it has one.
fn numbered(port: &Value) -> Option<(String, u16)> {
    let number = port["nodePort"].as_u64().filter(|number| *number != 0)?;
    Some((protocol(port).to_owned(), u16::try_from(number).ok()?))
}

fn node_ports(view: &View, key: &Key, service: &mut Value, seed: u32, allotted: &mut Allotted) -> Vec<Problem> {
    let (may, gets) = (may_have_node_ports(&service["spec"]), gets_node_ports(&service["spec"]));
    let Some(ports) = service.pointer_mut("/spec/ports").and_then(Value::as_array_mut) else { return Vec::new() };
    for port in ports.iter_mut().filter_map(Value::as_object_mut) {
        if port.get("nodePort").is_some_and(|number| *number == 0) {
            port.remove("nodePort");
        }
    }
    if !may {
        return Vec::new();
    }
    let held = held(view, key);
    let mut problems = Vec::new();
    let mut own: BTreeSet<(String, u16)> = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}].nodePort");
        let Some(asked) = port["nodePort"].as_i64() else { continue };
        let number = u16::try_from(asked).ok().filter(|number| NODE_PORTS.contains(number));
        let Some(number) = number else {
            let (first, last) = (NODE_PORTS.start(), NODE_PORTS.end());
            let words =
                format!("{asked}: provided port is not in the valid range. The range of valid ports is {first}-{last}");
            problems.push(Problem::new(path, Reason::Invalid, words));
            continue;
        };
        let claim = claim_of(protocol(port), number);
        if let Some(holder) = held.get(&(protocol(port).to_owned(), number)) {
            problems.push(taken(&path, &claim, holder));
        }
        own.insert((protocol(port).to_owned(), number));
        allotted.ask(claim, &path);
    }
    for index in (0..ports.len()).filter(|_| gets) {
        if !ports[index].is_object() || ports[index]["nodePort"].is_number() {
            continue;
        }
        let protocol = protocol(&ports[index]).to_owned();
        let free = |number: &u16| {
            let port = (protocol.clone(), *number);
            !held.contains_key(&port) && !own.contains(&port)
        };
        // One port for TCP and UDP is one number on the nodes too, where it can be.
        let twins = ports.iter().filter(|other| other["port"] == ports[index]["port"]).filter_map(numbered);
        let twin = twins.map(|(_, number)| number).find(|number| free(number));
        let Some(number) = twin.or_else(|| search(seed, free)) else {
            let words = format!("all of {}-{} are taken", NODE_PORTS.start(), NODE_PORTS.end());
            problems.push(Problem::new(format!("spec.ports[{index}].nodePort"), Reason::Invalid, words));
            break;
        };
        allotted.claims.push(claim_of(&protocol, number));
        own.insert((protocol, number));
        ports[index]["nodePort"] = json!(number);
    }
    problems
}

/// The first free number from a place that `seed` chooses on; those that people choose by hand only when there is no other.
fn search(seed: u32, free: impl Fn(&u16) -> bool) -> Option<u16> {
    let (first, last) = (*CHOSEN_NODE_PORTS.start(), *CHOSEN_NODE_PORTS.end());
    let begin = first + u16::try_from(seed % u32::from(last - first + 1)).unwrap_or(0);
    (begin..=last).chain(first..begin).chain(*NODE_PORTS.start()..first).find(free)
}

/// What a Service goes on to have through a change, and what it loses with its type: upstream's `PatchAllocatedValues` and
/// `dropTypeDependentFields`, which let a file that names neither be applied again, and a type be changed alone.
pub(crate) fn carry(old: &Value, new: &mut Value) {
    let before = &old["spec"];
    if new["spec"].is_null() {
        new["spec"] = json!({});
    }
    drop_with_type(before, &mut new["spec"]);
    let after = new["spec"].clone();
    let Some(spec) = new["spec"].as_object_mut() else { return };
    if has_cluster_ip(before) && has_cluster_ip(&after) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if is_unsaid(&after[field]) && !is_unsaid(&before[field]) {
                spec.insert(field.to_owned(), before[field].clone());
            }
        }
    }
    if may_have_node_ports(before) && gets_node_ports(&after) {
        keep_node_ports(before, spec);
    }
}

fn is_unsaid(value: &Value) -> bool {
    value.is_null() || *value == "" || *value == json!([])
}

/// Fields that the new type has not, where the change left them as they were.
fn drop_with_type(before: &Value, after: &mut Value) {
    let mut gone: Vec<&str> = Vec::new();
    if has_cluster_ip(before) && !has_cluster_ip(after) {
        gone.extend(["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"]);
    }
    if !has_cluster_ip(before) && has_cluster_ip(after) {
        gone.push("externalName");
    }
    if type_of(before) == "LoadBalancer" && type_of(after) != "LoadBalancer" {
        gone.extend(["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    }
    if is_external(before) && !is_external(after) {
        gone.push("externalTrafficPolicy");
    }
    let bare = may_have_node_ports(before) && !may_have_node_ports(after);
    let Some(spec) = after.as_object_mut() else { return };
    spec.retain(|field, value| !gone.contains(&field.as_str()) || *value != before[field.as_str()]);
    if bare && let Some(ports) = spec.get_mut("ports").and_then(Value::as_array_mut) {
        let had: Vec<&Value> = list(&before["ports"]).iter().map(|port| &port["nodePort"]).collect();
        for port in ports.iter_mut().filter_map(Value::as_object_mut) {
            if port.get("nodePort").is_some_and(|number| had.contains(&number)) {
                port.remove("nodePort");
            }
        }
    }
}

/// A port that is still there keeps its number, unless another one took it in this change.
fn keep_node_ports(before: &Value, spec: &mut Map<String, Value>) {
    let Some(ports) = spec.get_mut("ports").and_then(Value::as_array_mut) else { return };
    let mut used: BTreeSet<(String, u16)> = ports.iter().filter_map(numbered).collect();
    for port in ports.iter_mut().filter(|port| port.is_object()) {
        if port["nodePort"].as_i64().unwrap_or(0) != 0 {
            continue;
        }
        let same = |old: &&Value| old["port"] == port["port"] && protocol(old) == protocol(port);
        let kept = list(&before["ports"]).iter().find(same).and_then(numbered);
        if let Some(kept) = kept.filter(|kept| used.insert(kept.clone())) {
            port["nodePort"] = json!(kept.1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use super::*;
    use coracle_manifests::view::text;
    use coracle_manifests::{default, kinds};
    use coracle_store::{Limits, Op, Store};

    const BLOCK: ServiceAddresses = ServiceAddresses { base: Ipv4Addr::new(10, 43, 0, 0), prefix: 16 };

    fn tree(name: &str, spec: Value) -> Value {
        let mut value = json!({"metadata": {"name": name, "namespace": "x", "uid": name}, "spec": spec});
        default::apply(kinds::by_word("svc").unwrap(), &mut value);
        value
    }

    fn key(name: &str) -> Key {
        Key::new("services", "x", name)
    }

    /// Allots and stores.
    fn make(store: &mut Store, name: &str, spec: Value, seed: u32) -> Result<Value, Vec<String>> {
        let mut value = tree(name, spec);
        let words = |problems: Vec<Problem>| problems.iter().map(ToString::to_string).collect::<Vec<_>>();
        let allotted = allot(&BLOCK, &store.view(), &key(name), &mut value, seed).map_err(words)?;
        let op = Op::Create { key: key(name), value: Arc::new(value.clone()), claims: allotted.claims };
        assert!(store.apply(&[op.into()])[0].is_ok());
        Ok(value)
    }

    fn numbers(value: &Value) -> Vec<i64> {
        list(&value["spec"]["ports"]).iter().map(|port| port["nodePort"].as_i64().unwrap_or(0)).collect()
    }

    #[test]
    fn node_ports_are_chosen_named_and_one_service_s_only() {
        let mut store = Store::new(Limits::default());
        let node_port = |ports: Value| json!({"type": "NodePort", "ports": ports});
        let chosen = make(&mut store, "a", node_port(json!([{"port": 80}])), 7).unwrap();
        assert_eq!(numbers(&chosen), [30_093], "from the band that nobody chooses by hand");
        let next = make(&mut store, "b", node_port(json!([{"port": 80}, {"port": 81, "name": "b"}])), 7).unwrap();
        assert_eq!(numbers(&next), [30_094, 30_095]);
        let named = make(&mut store, "c", node_port(json!([{"port": 80, "nodePort": 30_000}])), 7).unwrap();
        assert_eq!(numbers(&named), [30_000]);
        let refused = make(&mut store, "d", node_port(json!([{"port": 80, "nodePort": 30_000}])), 7).unwrap_err();
        assert_eq!(
            refused,
            ["spec.ports[0].nodePort: 30000: provided port is already allocated (taken by the Service x/c)"]
        );
        // The other protocol has numbers of its own.
        make(&mut store, "e", node_port(json!([{"port": 80, "nodePort": 30_000, "protocol": "UDP"}])), 7).unwrap();
        for number in [80, 29_999, 32_768, 70_000] {
            let refused = make(&mut store, "f", node_port(json!([{"port": 80, "nodePort": number}])), 7).unwrap_err();
            assert_eq!(
                refused,
                [format!(
                    "spec.ports[0].nodePort: {number}: provided port is not in the valid range. The range of valid ports is 30000-32767"
                )]
            );
        }
        // DNS and its like: one number for both protocols.
        let both = json!([{"port": 53, "name": "u", "protocol": "UDP"}, {"port": 53, "name": "t", "protocol": "TCP"}]);
        assert_eq!(numbers(&make(&mut store, "g", node_port(both), 500).unwrap()), [30_586, 30_586]);
    }

    #[test]
    fn a_race_is_lost_with_a_name_and_won_with_another_number() {
        let view = Store::new(Limits::default()).view();
        let mut value =
            tree("a", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30_001}, {"port": 81}]}));
        let allotted = allot(&BLOCK, &view, &key("a"), &mut value, 0).unwrap();
        assert_eq!(allotted.claims, ["clusterip/10.43.0.10", "nodeport/tcp/30001", "nodeport/tcp/30086"]);
        let lost = allotted.refusal("nodeport/tcp/30001", &key("z")).unwrap();
        assert!(lost.to_string().contains("30001: provided port is already allocated"), "{lost}");
        assert_eq!(allotted.refusal("nodeport/tcp/30086", &key("z")), None);
        assert_eq!(allotted.refusal("clusterip/10.43.0.10", &key("z")), None);
    }

    #[test]
    fn a_full_range_is_said() {
        let mut store = Store::new(Limits::default());
        let ports = |range: std::ops::RangeInclusive<u16>| -> Value {
            range.map(|number| json!({"port": number, "name": format!("p{number}"), "nodePort": number})).collect()
        };
        make(&mut store, "a", json!({"type": "NodePort", "ports": ports(30_001..=32_767)}), 0).unwrap();
        let one = json!({"type": "NodePort", "ports": [{"port": 80}]});
        assert_eq!(numbers(&make(&mut store, "b", one.clone(), 9).unwrap()), [30_000], "the last resort");
        assert_eq!(
            make(&mut store, "c", one, 9).unwrap_err(),
            ["spec.ports[0].nodePort: all of 30000-32767 are taken"]
        );
    }

    #[test]
    fn balancers_may_do_without_node_ports() {
        let mut store = Store::new(Limits::default());
        let spec =
            |ports: Value| json!({"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": ports});
        assert_eq!(numbers(&make(&mut store, "a", spec(json!([{"port": 80}])), 0).unwrap()), [0]);
        let named = make(&mut store, "b", spec(json!([{"port": 80, "nodePort": 30_080}])), 0).unwrap();
        assert_eq!(numbers(&named), [30_080]);
        let plain = json!({"type": "LoadBalancer", "ports": [{"port": 80}]});
        assert_eq!(numbers(&make(&mut store, "c", plain, 0).unwrap()), [30_086]);
    }

    /// What a change to `after` of a stored `before` comes to.
    fn changed(before: Value, after: Value) -> (Value, Vec<String>) {
        let mut store = Store::new(Limits::default());
        let old = make(&mut store, "a", before, 3).unwrap();
        let mut new = json!({"metadata": old["metadata"], "spec": after});
        carry(&old, &mut new);
        default::apply(kinds::by_word("svc").unwrap(), &mut new);
        let problems = coracle_manifests::validate::update(kinds::by_word("svc").unwrap(), &old, &new);
        assert!(problems.is_empty(), "{problems:?}");
        let allotted = allot(&BLOCK, &store.view(), &key("a"), &mut new, 99).unwrap();
        (new["spec"].clone(), allotted.claims)
    }

    #[test]
    fn a_type_changes_and_takes_its_allotments_with_it() {
        let ports = json!([{"port": 80}]);
        let plain = json!({"ports": ports});
        let node = json!({"type": "NodePort", "ports": ports});
        let balancer = json!({"type": "LoadBalancer", "ports": ports});
        let alias = json!({"type": "ExternalName", "externalName": "a.example"});
        let address = "clusterip/10.43.0.10";
        let (first, kept, fresh) = (address, "nodeport/tcp/30089", "nodeport/tcp/30185");
        for (before, after, claims) in [
            (&plain, &plain, vec![first]),
            (&plain, &node, vec![first, fresh]),
            (&node, &node, vec![first, kept]),
            (&node, &balancer, vec![first, kept]),
            (&balancer, &node, vec![first, kept]),
            (&node, &plain, vec![first]),
            (&balancer, &plain, vec![first]),
            (&node, &alias, vec![]),
        ] {
            assert_eq!(changed(before.clone(), after.clone()).1, claims, "{before} to {after}");
        }
        let (spec, claims) = changed(alias.clone(), node.clone());
        assert_eq!((claims.len(), &spec["externalName"]), (2, &Value::Null));
        let (spec, claims) = changed(alias, json!({"clusterIP": "None"}));
        assert_eq!((claims.len(), &spec["clusterIPs"]), (0, &json!(["None"])));
    }

    #[test]
    fn the_type_alone_can_be_changed() {
        // As a patch of one field does it: everything else of the old object comes along.
        let store = &mut Store::new(Limits::default());
        let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "loadBalancerClass": "a/b", "ports": [{"port": 80}]});
        let old = make(store, "a", spec, 3).unwrap();
        for (kind, fields) in [("NodePort", 1), ("ClusterIP", 0), ("ExternalName", 0)] {
            let mut new = old.clone();
            new["spec"]["type"] = json!(kind);
            if kind == "ExternalName" {
                new["spec"]["externalName"] = json!("a.example");
            }
            carry(&old, &mut new);
            default::apply(kinds::by_word("svc").unwrap(), &mut new);
            let problems = coracle_manifests::validate::update(kinds::by_word("svc").unwrap(), &old, &new);
            assert!(problems.is_empty(), "{kind}: {problems:?}");
            let left = ["externalTrafficPolicy", "loadBalancerClass", "allocateLoadBalancerNodePorts"];
            assert_eq!(left.iter().filter(|field| !new["spec"][**field].is_null()).count(), fields, "{kind}");
        }
    }

    #[test]
    fn ports_keep_their_numbers_one_by_one() {
        let two = json!([{"port": 80, "name": "a", "nodePort": 30_001}, {"port": 81, "name": "b", "nodePort": 30_002}]);
        let before = json!({"type": "NodePort", "ports": two});
        let numbers_of = |ports: Value| {
            let (spec, _) = changed(before.clone(), json!({"type": "NodePort", "ports": ports}));
            numbers(&json!({"spec": spec}))
        };
        assert_eq!(numbers_of(json!([{"port": 81, "name": "x"}, {"port": 80, "name": "y"}])), [30_002, 30_001]);
        assert_eq!(numbers_of(json!([{"port": 82, "name": "c"}])), [30_185], "another port is another number");
        let swapped = json!([{"port": 80, "name": "a"}, {"port": 81, "name": "b", "nodePort": 30_001}]);
        assert_eq!(numbers_of(swapped), [30_185, 30_001], "one that another took is not kept");
        let other = json!([{"port": 80, "protocol": "UDP"}]);
        assert_eq!(numbers_of(other), [30_185], "nor one of another protocol");
    }

    #[test]
    fn no_tree_panics() {
        for bad in [json!({}), json!({"ports": {}}), json!({"type": "NodePort", "ports": [1, null, {"nodePort": "x"}]})]
        {
            let mut value = json!({"spec": bad.clone()});
            carry(&json!({"spec": bad}), &mut value);
            let _ = allot(&BLOCK, &View::default(), &key("a"), &mut value, 1);
        }
        let mut odd = json!({"spec": 5});
        carry(&json!({"spec": {"clusterIP": "10.43.0.1"}}), &mut odd);
        assert_eq!(text(&odd["spec"]), "");
    }
}
