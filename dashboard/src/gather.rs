//! From object trees to what is shown.

use std::collections::HashMap;

use coracle_manifests::quantity::Quantity;
use coracle_manifests::view::{condition, int, is_deleting, is_finished, is_true, list, text};
use serde_json::Value;

use crate::snapshot::{
    Condition, Endpoint, Event, Link, Node, Pod, Service, Snapshot, Workload, format_bytes, format_cpu,
};

/// So many events are shown; the youngest.
const EVENTS: usize = 100;

/// The trees of the objects a page is made of, each kind by namespace and name.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trees<'a> {
    /// Node objects.
    pub nodes: &'a [&'a Value],
    /// Deployments, StatefulSets, DaemonSets and ReplicationControllers.
    pub workloads: &'a [&'a Value],
    /// Pod objects.
    pub pods: &'a [&'a Value],
    /// Service objects.
    pub services: &'a [&'a Value],
    /// EndpointSlice objects.
    pub slices: &'a [&'a Value],
    /// Event objects.
    pub events: &'a [&'a Value],
}

impl Snapshot {
    /// Fills in all that objects tell; the cluster and its servers stay as they are.
    #[must_use]
    pub fn with(mut self, trees: Trees<'_>) -> Self {
        self.pods = trees.pods.iter().map(|tree| pod(tree)).collect();
        let mut asked: HashMap<&str, (u64, u64, u64)> = HashMap::new();
        for tree in trees.pods.iter().filter(|pod| !is_finished(pod)) {
            let sums = asked.entry(text(&tree["spec"]["nodeName"])).or_default();
            let (cpu, memory) = requests(tree);
            *sums = (sums.0.saturating_add(cpu), sums.1.saturating_add(memory), sums.2 + 1);
        }
        self.nodes = trees
            .nodes
            .iter()
            .map(|tree| node(tree, asked.get(text(&tree["metadata"]["name"])).copied().unwrap_or_default()))
            .collect();
        self.workloads = trees.workloads.iter().map(|tree| workload(tree)).collect();
        let mut backends: HashMap<(&str, &str), Vec<Endpoint>> = HashMap::new();
        for slice in trees.slices {
            let service = text(&slice["metadata"]["labels"]["kubernetes.io/service-name"]);
            let key = (text(&slice["metadata"]["namespace"]), service);
            backends.entry(key).or_default().extend(list(&slice["endpoints"]).iter().map(endpoint));
        }
        self.services = trees
            .services
            .iter()
            .map(|tree| {
                let key = (text(&tree["metadata"]["namespace"]), text(&tree["metadata"]["name"]));
                service(tree, backends.remove(&key).unwrap_or_default())
            })
            .collect();
        self.events = trees.events.iter().map(|tree| event(tree)).collect();
        self.events.sort_by(|left, right| (&right.last_seen, &left.object).cmp(&(&left.last_seen, &right.object)));
        self.events.truncate(EVENTS);
        self
    }
}

impl Snapshot {
    /// Adds how the node of this page reaches others, by their names.
    #[must_use]
    pub fn with_links(mut self, mut links: HashMap<String, Link>) -> Self {
        for node in &mut self.nodes {
            node.link = links.remove(&node.name);
        }
        self
    }
}

fn owned(value: &Value) -> String {
    text(value).to_owned()
}

fn count(value: &Value) -> u64 {
    u64::try_from(int(value, 0)).unwrap_or(0)
}

fn amount(amount: i128) -> u64 {
    u64::try_from(amount.max(0)).unwrap_or(u64::MAX)
}

/// What a pod's containers ask for together: thousandths of a core, bytes.
fn requests(pod: &Value) -> (u64, u64) {
    let of = |container: &Value, name: &str| {
        let resources = &container["resources"];
        let asked = &resources["requests"][name];
        Quantity::of_json(if asked.is_null() { &resources["limits"][name] } else { asked })
    };
    let containers = list(&pod["spec"]["containers"]);
    let cpu: i128 = containers.iter().map(|container| of(container, "cpu").milli()).sum();
    let memory: i128 = containers.iter().map(|container| of(container, "memory").value()).sum();
    (amount(cpu), amount(memory))
}

fn node(tree: &Value, (cpu, memory, pods): (u64, u64, u64)) -> Node {
    let room = &tree["status"]["allocatable"];
    let info = &tree["status"]["nodeInfo"];
    let cpu_room = amount(Quantity::of_json(&room["cpu"]).milli());
    let memory_room = amount(Quantity::of_json(&room["memory"]).value());
    let address = list(&tree["status"]["addresses"]).iter().find(|address| address["type"] == "InternalIP");
    let taint = |taint: &Value| {
        let (key, value, effect) = (text(&taint["key"]), text(&taint["value"]), text(&taint["effect"]));
        if value.is_empty() { format!("{key}:{effect}") } else { format!("{key}={value}:{effect}") }
    };
    Node {
        name: owned(&tree["metadata"]["name"]),
        ready: is_true(tree, "Ready"),
        cordoned: tree["spec"]["unschedulable"] == true,
        address: address.map(|address| owned(&address["address"])).unwrap_or_default(),
        version: owned(&info["kubeletVersion"]),
        platform: [text(&info["operatingSystem"]), text(&info["architecture"])].join("/").trim_matches('/').to_owned(),
        kernel: owned(&info["kernelVersion"]),
        pods,
        pods_max: amount(Quantity::of_json(&room["pods"]).value()),
        cpu: format!("{}/{}", format_cpu(cpu), format_cpu(cpu_room)),
        cpu_requested_milli: cpu,
        cpu_allocatable_milli: cpu_room,
        memory: format!("{}/{}", format_bytes(memory), format_bytes(memory_room)),
        memory_requested_bytes: memory,
        memory_allocatable_bytes: memory_room,
        link: None,
        conditions: list(&tree["status"]["conditions"])
            .iter()
            .map(|condition| Condition {
                kind: owned(&condition["type"]),
                status: owned(&condition["status"]),
                reason: owned(&condition["reason"]),
                message: owned(&condition["message"]),
            })
            .collect(),
        taints: list(&tree["spec"]["taints"]).iter().map(taint).collect(),
        created: owned(&tree["metadata"]["creationTimestamp"]),
    }
}

fn workload(tree: &Value) -> Workload {
    let (spec, status) = (&tree["spec"], &tree["status"]);
    let stuck = condition(tree, "Progressing").filter(|progressing| progressing["status"] == "False");
    let stuck = stuck.or_else(|| condition(tree, "ReplicaFailure").filter(|failure| failure["status"] == "True"));
    let kind = owned(&tree["kind"]);
    // A DaemonSet counts nodes.
    let of_nodes = kind == "DaemonSet";
    let number = |of_pods: &str, nodes: &str| count(&status[if of_nodes { nodes } else { of_pods }]);
    let desired = if of_nodes {
        count(&status["desiredNumberScheduled"])
    } else {
        u64::try_from(int(&spec["replicas"], 1)).unwrap_or(0)
    };
    let updated = number("updatedReplicas", "updatedNumberScheduled");
    let strategy = &spec["updateStrategy"];
    let to_update = match kind.as_str() {
        // Nobody moves them to another template.
        "ReplicationController" => updated,
        _ if strategy["type"] == "OnDelete" => updated,
        _ => desired.saturating_sub(count(&strategy["rollingUpdate"]["partition"])),
    };
    Workload {
        kind,
        namespace: owned(&tree["metadata"]["namespace"]),
        name: owned(&tree["metadata"]["name"]),
        desired,
        replicas: number("replicas", "currentNumberScheduled"),
        ready: number("readyReplicas", "numberReady"),
        updated,
        to_update,
        available: number("availableReplicas", "numberAvailable"),
        paused: spec["paused"] == true,
        images: list(&spec["template"]["spec"]["containers"]).iter().map(|one| owned(&one["image"])).collect(),
        problem: stuck.map(|condition| owned(&condition["message"])).unwrap_or_default(),
        created: owned(&tree["metadata"]["creationTimestamp"]),
    }
}

fn pod(tree: &Value) -> Pod {
    let status = &tree["status"];
    let statuses = list(&status["containerStatuses"]);
    let all = list(&tree["spec"]["containers"]).len();
    let ready = statuses.iter().filter(|container| container["ready"] == true).count();
    let restarts = statuses.iter().map(|container| count(&container["restartCount"])).sum();
    let phase = if is_deleting(tree) { "Terminating" } else { status["phase"].as_str().unwrap_or("Pending") };
    let (reason, message) = reason(tree);
    let healthy = match phase {
        "Running" => is_true(tree, "Ready"),
        "Succeeded" | "Terminating" => true,
        _ => false,
    };
    Pod {
        namespace: owned(&tree["metadata"]["namespace"]),
        name: owned(&tree["metadata"]["name"]),
        node: owned(&tree["spec"]["nodeName"]),
        ip: owned(&status["podIP"]),
        phase: phase.to_owned(),
        ready: format!("{ready}/{all}"),
        healthy,
        restarts,
        reason,
        message,
        created: owned(&tree["metadata"]["creationTimestamp"]),
    }
}

/// Why a pod is not what it should be: its own words, then its containers', then the scheduler's.
fn reason(tree: &Value) -> (String, String) {
    let status = &tree["status"];
    if !text(&status["reason"]).is_empty() {
        return (owned(&status["reason"]), owned(&status["message"]));
    }
    let containers = list(&status["initContainerStatuses"]).iter().chain(list(&status["containerStatuses"]));
    for container in containers {
        for state in ["waiting", "terminated"] {
            let state = &container["state"][state];
            let reason = text(&state["reason"]);
            if !reason.is_empty() && reason != "Completed" {
                return (reason.to_owned(), owned(&state["message"]));
            }
        }
    }
    let unplaced = condition(tree, "PodScheduled").filter(|scheduled| scheduled["status"] == "False");
    unplaced.map(|scheduled| (owned(&scheduled["reason"]), owned(&scheduled["message"]))).unwrap_or_default()
}

fn endpoint(endpoint: &Value) -> Endpoint {
    Endpoint {
        address: list(&endpoint["addresses"]).first().map(owned).unwrap_or_default(),
        pod: owned(&endpoint["targetRef"]["name"]),
        // Unsaid means ready (the API's words).
        ready: endpoint["conditions"]["ready"] != false,
    }
}

fn service(tree: &Value, backends: Vec<Endpoint>) -> Service {
    let spec = &tree["spec"];
    let port = |port: &Value| {
        let (number, protocol) = (&port["port"], port["protocol"].as_str().unwrap_or("TCP"));
        let shown = match port["nodePort"].as_u64() {
            Some(node) => format!("{number}:{node}"),
            None => number.to_string(),
        };
        match &port["targetPort"] {
            Value::String(name) => format!("{shown}->{name}/{protocol}"),
            target if target.is_null() || target == number => format!("{shown}/{protocol}"),
            target => format!("{shown}->{target}/{protocol}"),
        }
    };
    Service {
        namespace: owned(&tree["metadata"]["namespace"]),
        name: owned(&tree["metadata"]["name"]),
        kind: spec["type"].as_str().unwrap_or("ClusterIP").to_owned(),
        cluster_ip: owned(&spec["clusterIP"]),
        ports: list(&spec["ports"]).iter().map(port).collect::<Vec<_>>().join(", "),
        endpoints: backends.iter().filter(|endpoint| endpoint.ready).count() as u64,
        backends,
        created: owned(&tree["metadata"]["creationTimestamp"]),
    }
}

fn event(tree: &Value) -> Event {
    let about = &tree["involvedObject"];
    let last = [&tree["series"]["lastObservedTime"], &tree["lastTimestamp"], &tree["eventTime"]];
    let last = last.into_iter().map(text).find(|at| !at.is_empty());
    Event {
        namespace: owned(&tree["metadata"]["namespace"]),
        object: format!("{}/{}", text(&about["kind"]).to_lowercase(), text(&about["name"])),
        kind: tree["type"].as_str().unwrap_or("Normal").to_owned(),
        reason: owned(&tree["reason"]),
        message: owned(&tree["message"]),
        count: count(&tree["count"]).max(1),
        last_seen: last.unwrap_or(text(&tree["metadata"]["creationTimestamp"])).to_owned(),
    }
}
