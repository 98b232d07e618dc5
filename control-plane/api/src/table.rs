//! Printer columns: the one place that knows kinds by name, because each has columns of its own. Everything else is generic.

use coracle_manifests::kinds::Kind;
use coracle_manifests::time::age;
use coracle_manifests::view::{controller, int, is_deleting, list, text};
use serde_json::{Value, json};

/// Name, type and priority (1 = wide only) of a column.
type Column = (&'static str, &'static str, u8);

fn columns(kind: &Kind) -> &'static [Column] {
    match kind.kind {
        "Pod" => &[
            ("Name", "string", 0),
            ("Ready", "string", 0),
            ("Status", "string", 0),
            ("Restarts", "string", 0),
            ("Age", "string", 0),
            ("IP", "string", 1),
            ("Node", "string", 1),
            ("Nominated Node", "string", 1),
            ("Readiness Gates", "string", 1),
        ],
        "ControllerRevision" => {
            &[("Name", "string", 0), ("Controller", "string", 0), ("Revision", "integer", 0), ("Age", "string", 0)]
        }
        "Deployment" | "ReplicaSet" | "ReplicationController" | "StatefulSet" | "DaemonSet" => workload_columns(kind),
        "Service" => &[
            ("Name", "string", 0),
            ("Type", "string", 0),
            ("Cluster-IP", "string", 0),
            ("External-IP", "string", 0),
            ("Port(s)", "string", 0),
            ("Age", "string", 0),
            ("Selector", "string", 1),
        ],
        "Node" => &[
            ("Name", "string", 0),
            ("Status", "string", 0),
            ("Roles", "string", 0),
            ("Age", "string", 0),
            ("Version", "string", 0),
            ("Internal-IP", "string", 1),
            ("External-IP", "string", 1),
            ("OS-Image", "string", 1),
            ("Kernel-Version", "string", 1),
            ("Container-Runtime", "string", 1),
        ],
        "Namespace" => &[("Name", "string", 0), ("Status", "string", 0), ("Age", "string", 0)],
        "ConfigMap" => &[("Name", "string", 0), ("Data", "integer", 0), ("Age", "string", 0)],
        "Secret" => &[("Name", "string", 0), ("Type", "string", 0), ("Data", "integer", 0), ("Age", "string", 0)],
        "ServiceAccount" => &[("Name", "string", 0), ("Secrets", "integer", 0), ("Age", "string", 0)],
        "Event" => &[
            ("Last Seen", "string", 0),
            ("Type", "string", 0),
            ("Reason", "string", 0),
            ("Object", "string", 0),
            ("Subobject", "string", 1),
            ("Source", "string", 1),
            ("Message", "string", 0),
            ("First Seen", "string", 1),
            ("Count", "string", 1),
            ("Name", "string", 1),
        ],
        "EndpointSlice" => &[
            ("Name", "string", 0),
            ("AddressType", "string", 0),
            ("Ports", "string", 0),
            ("Endpoints", "string", 0),
            ("Age", "string", 0),
        ],
        _ => &[("Name", "string", 0), ("Age", "string", 0)],
    }
}

/// Of what makes pods of a template.
fn workload_columns(kind: &Kind) -> &'static [Column] {
    match kind.kind {
        "Deployment" => &[
            ("Name", "string", 0),
            ("Ready", "string", 0),
            ("Up-to-date", "integer", 0),
            ("Available", "integer", 0),
            ("Age", "string", 0),
            ("Containers", "string", 1),
            ("Images", "string", 1),
            ("Selector", "string", 1),
        ],
        "StatefulSet" => &[
            ("Name", "string", 0),
            ("Ready", "string", 0),
            ("Age", "string", 0),
            ("Containers", "string", 1),
            ("Images", "string", 1),
        ],
        "DaemonSet" => &[
            ("Name", "string", 0),
            ("Desired", "integer", 0),
            ("Current", "integer", 0),
            ("Ready", "integer", 0),
            ("Up-to-date", "integer", 0),
            ("Available", "integer", 0),
            ("Node Selector", "string", 0),
            ("Age", "string", 0),
            ("Containers", "string", 1),
            ("Images", "string", 1),
            ("Selector", "string", 1),
        ],
        _ => &[
            ("Name", "string", 0),
            ("Desired", "integer", 0),
            ("Current", "integer", 0),
            ("Ready", "integer", 0),
            ("Age", "string", 0),
            ("Containers", "string", 1),
            ("Images", "string", 1),
            ("Selector", "string", 1),
        ],
    }
}

/// A `Table` of objects. `include` is `includeObject` of the query: `None`, `Object` or (by default) `Metadata`.
pub(crate) fn table(kind: &Kind, objects: &[&Value], meta: &Value, include: Option<&str>, now_ms: u64) -> Value {
    let definitions: Vec<Value> = columns(kind)
        .iter()
        .map(|(name, typ, priority)| {
            let format = if *name == "Name" { "name" } else { "" };
            json!({"name": name, "type": typ, "format": format, "description": "", "priority": priority})
        })
        .collect();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let mut row = json!({"cells": cells(kind, object, now_ms)});
            match include {
                Some("None") => {}
                Some("Object") => row["object"] = (*object).clone(),
                _ => row["object"] = partial(object),
            }
            row
        })
        .collect();
    json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": meta, "columnDefinitions": definitions, "rows": rows})
}

/// `PartialObjectMetadata` of an object.
pub(crate) fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

fn cells(kind: &Kind, object: &Value, now: u64) -> Vec<Value> {
    let meta = &object["metadata"];
    let (name, spec, status) = (meta["name"].clone(), &object["spec"], &object["status"]);
    let age = json!(age(text(&meta["creationTimestamp"]), now));
    match kind.kind {
        "Pod" => pod(object, name, age, now),
        "Deployment" | "ReplicaSet" | "ReplicationController" | "StatefulSet" | "DaemonSet" => {
            workload(kind, object, name, age)
        }
        "ControllerRevision" => vec![name, json!(or_none(&owner(object))), json!(int(&object["revision"], 0)), age],
        "Service" => {
            vec![
                name,
                json!(text(&spec["type"])),
                json!(or_none(text(&spec["clusterIP"]))),
                json!(outer_addresses(object)),
                json!(or_none(&service_ports(spec))),
                age,
                json!(labels(&spec["selector"])),
            ]
        }
        "Node" => node(object, name, age),
        "Namespace" => vec![name, json!(text(&status["phase"])), age],
        "ConfigMap" => vec![name, json!(count(&object["data"]) + count(&object["binaryData"])), age],
        "Secret" => vec![name, json!(text(&object["type"])), json!(count(&object["data"])), age],
        "ServiceAccount" => vec![name, json!(list(&object["secrets"]).len()), age],
        "Event" => event(object, name, now),
        "EndpointSlice" => {
            let ports: Vec<String> =
                list(&object["ports"]).iter().map(|port| int(&port["port"], 0).to_string()).collect();
            let addresses: Vec<&str> =
                list(&object["endpoints"]).iter().flat_map(|endpoint| list(&endpoint["addresses"])).map(text).collect();
            let shown = if addresses.len() > 3 {
                format!("{} + {} more...", addresses[..3].join(","), addresses.len() - 3)
            } else {
                addresses.join(",")
            };
            let unset = |text: String| if text.is_empty() { "<unset>".to_owned() } else { text };
            vec![name, json!(text(&object["addressType"])), json!(unset(ports.join(","))), json!(unset(shown)), age]
        }
        _ => vec![name, age],
    }
}

/// PORT(S) of a Service: `80:30080/TCP`.
fn service_ports(spec: &Value) -> String {
    let one = |port: &Value| {
        let (number, protocol) = (int(&port["port"], 0), text(&port["protocol"]));
        match int(&port["nodePort"], 0) {
            0 => format!("{number}/{protocol}"),
            node => format!("{number}:{node}/{protocol}"),
        }
    };
    list(&spec["ports"]).iter().map(one).collect::<Vec<_>>().join(",")
}

/// EXTERNAL-IP of a Service: where it is reached from outside, as upstream derives it.
fn outer_addresses(service: &Value) -> String {
    let spec = &service["spec"];
    let named = list(&spec["externalIPs"]).iter().map(text);
    match text(&spec["type"]) {
        "ExternalName" => text(&spec["externalName"]).to_owned(),
        "LoadBalancer" => {
            let given = list(&service["status"]["loadBalancer"]["ingress"]).iter();
            let given = given.map(|way| if way["ip"].is_string() { text(&way["ip"]) } else { text(&way["hostname"]) });
            let all: Vec<&str> = given.chain(named).filter(|address| !address.is_empty()).collect();
            if all.is_empty() { "<pending>".to_owned() } else { all.join(",") }
        }
        _ => or_none(&named.collect::<Vec<_>>().join(",")),
    }
}

/// What makes pods of a template: its counts, then the template's containers and, but for a StatefulSet, the selector.
fn workload(kind: &Kind, object: &Value, name: Value, age: Value) -> Vec<Value> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let number = |field: &str| json!(int(&status[field], 0));
    let ready = || json!(format!("{}/{}", int(&status["readyReplicas"], 0), int(&spec["replicas"], 1)));
    let mut cells = vec![name];
    match kind.kind {
        "Deployment" => cells.extend([ready(), number("updatedReplicas"), number("availableReplicas")]),
        "StatefulSet" => cells.push(ready()),
        "DaemonSet" => {
            cells.extend(
                [
                    "desiredNumberScheduled",
                    "currentNumberScheduled",
                    "numberReady",
                    "updatedNumberScheduled",
                    "numberAvailable",
                ]
                .map(number),
            );
            cells.push(json!(labels(&spec["template"]["spec"]["nodeSelector"])));
        }
        _ => cells.extend([json!(int(&spec["replicas"], 1)), number("replicas"), number("readyReplicas")]),
    }
    let containers = &spec["template"]["spec"]["containers"];
    cells.extend([age, json!(join(containers, "name")), json!(join(containers, "image"))]);
    if kind.kind != "StatefulSet" {
        cells.push(json!(selector(object)));
    }
    cells
}

/// `statefulset.apps/web`, of the owner that controls an object.
fn owner(object: &Value) -> String {
    let Some(owner) = controller(object) else { return String::new() };
    let group = text(&owner["apiVersion"]).split_once('/').map(|(group, _)| format!(".{group}")).unwrap_or_default();
    format!("{}{group}/{}", text(&owner["kind"]).to_lowercase(), text(&owner["name"]))
}

fn pod(pod: &Value, name: Value, age: Value, now: u64) -> Vec<Value> {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let statuses = list(&status["containerStatuses"]);
    let ready = statuses.iter().filter(|container| container["ready"] == true).count();
    let restarts: i64 = statuses.iter().map(|container| int(&container["restartCount"], 0)).sum();
    let last =
        statuses.iter().filter_map(|container| container["lastState"]["terminated"]["finishedAt"].as_str()).max();
    let restarts = match last {
        Some(at) if restarts > 0 => format!("{restarts} ({} ago)", self::age(at, now)),
        _ => restarts.to_string(),
    };
    vec![
        name,
        json!(format!("{ready}/{}", list(&spec["containers"]).len())),
        json!(pod_status(pod)),
        json!(restarts),
        age,
        json!(or_none(text(&status["podIP"]))),
        json!(or_none(text(&spec["nodeName"]))),
        json!("<none>"),
        json!("<none>"),
    ]
}

/// The STATUS column, as upstream derives it: the reason of the first container that is not well, else the phase.
fn pod_status(pod: &Value) -> String {
    let status = &pod["status"];
    let mut reason = text(&status["reason"]).to_owned();
    if reason.is_empty() {
        text(&status["phase"]).clone_into(&mut reason);
    }
    let inits = list(&status["initContainerStatuses"]);
    let mut initializing = false;
    for (index, container) in inits.iter().enumerate() {
        let sidecar = list(&pod["spec"]["initContainers"])
            .iter()
            .any(|spec| spec["name"] == container["name"] && spec["restartPolicy"] == "Always");
        let state = &container["state"];
        if state["terminated"].is_object() && int(&state["terminated"]["exitCode"], 0) == 0 {
            continue;
        }
        if sidecar && container["started"] == true {
            continue;
        }
        reason = if state["terminated"].is_object() {
            let why = text(&state["terminated"]["reason"]);
            format!("Init:{}", if why.is_empty() { "Error" } else { why })
        } else {
            match text(&state["waiting"]["reason"]) {
                "" | "PodInitializing" => format!("Init:{index}/{}", inits.len()),
                why => format!("Init:{why}"),
            }
        };
        initializing = true;
        break;
    }
    if !initializing {
        let mut running = false;
        for container in list(&status["containerStatuses"]).iter().rev() {
            let state = &container["state"];
            if !text(&state["waiting"]["reason"]).is_empty() {
                text(&state["waiting"]["reason"]).clone_into(&mut reason);
            } else if !text(&state["terminated"]["reason"]).is_empty() {
                text(&state["terminated"]["reason"]).clone_into(&mut reason);
            } else if state["terminated"].is_object() {
                reason = format!("ExitCode:{}", int(&state["terminated"]["exitCode"], 0));
            } else if container["ready"] == true && state["running"].is_object() {
                running = true;
            }
        }
        if reason == "Completed" && running {
            "Running".clone_into(&mut reason);
        }
    }
    if is_deleting(pod) {
        return if text(&status["reason"]) == "NodeLost" { "Unknown".into() } else { "Terminating".into() };
    }
    or_none(&reason)
}

fn node(node: &Value, name: Value, age: Value) -> Vec<Value> {
    let ready = list(&node["status"]["conditions"]).iter().find(|condition| condition["type"] == "Ready");
    let mut status = match ready.map(|condition| text(&condition["status"])) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node["spec"]["unschedulable"] == true {
        status.push_str(",SchedulingDisabled");
    }
    let roles: Vec<&str> = node["metadata"]["labels"]
        .as_object()
        .into_iter()
        .flatten()
        .filter_map(|(key, _)| key.strip_prefix("node-role.kubernetes.io/"))
        .collect();
    let address = |kind: &str| {
        let found = list(&node["status"]["addresses"]).iter().find(|address| address["type"] == kind);
        json!(or_none(found.map_or("", |address| text(&address["address"]))))
    };
    let info = &node["status"]["nodeInfo"];
    vec![
        name,
        json!(status),
        json!(or_none(&roles.join(","))),
        age,
        json!(text(&info["kubeletVersion"])),
        address("InternalIP"),
        address("ExternalIP"),
        json!(text(&info["osImage"])),
        json!(text(&info["kernelVersion"])),
        json!(text(&info["containerRuntimeVersion"])),
    ]
}

fn event(event: &Value, name: Value, now: u64) -> Vec<Value> {
    let involved = &event["involvedObject"];
    let seen = |field: &str| {
        let at = text(&event[field]);
        json!(age(if at.is_empty() { text(&event["metadata"]["creationTimestamp"]) } else { at }, now))
    };
    vec![
        seen("lastTimestamp"),
        json!(text(&event["type"])),
        json!(text(&event["reason"])),
        json!(format!("{}/{}", text(&involved["kind"]).to_lowercase(), text(&involved["name"]))),
        json!(text(&involved["fieldPath"])),
        json!(text(&event["source"]["component"])),
        json!(text(&event["message"]).trim()),
        seen("firstTimestamp"),
        json!(int(&event["count"], 1).to_string()),
        name,
    ]
}

fn count(map: &Value) -> usize {
    map.as_object().map_or(0, serde_json::Map::len)
}

fn join(items: &Value, field: &str) -> String {
    list(items).iter().map(|item| text(&item[field])).collect::<Vec<_>>().join(",")
}

fn labels(map: &Value) -> String {
    let pairs: Vec<String> =
        map.as_object().into_iter().flatten().map(|(key, value)| format!("{key}={}", text(value))).collect();
    or_none(&pairs.join(","))
}

fn selector(object: &Value) -> String {
    coracle_manifests::selector::Labels::of_pods(object)
        .map_or_else(|_| "<invalid>".to_owned(), |labels| or_none(&labels.to_string()))
}

fn or_none(text: &str) -> String {
    if text.is_empty() { "<none>".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_fit_their_columns() {
        for kind in coracle_manifests::kinds::KINDS {
            assert_eq!(columns(kind).len(), cells(kind, &json!({"metadata": {"name": "x"}}), 0).len(), "{}", kind.kind);
        }
    }

    #[test]
    fn services_show_where_they_are_reached() {
        let kind = coracle_manifests::kinds::by_word("svc").unwrap();
        let row = |spec: Value, status: Value| {
            let cells = cells(kind, &json!({"metadata": {"name": "x"}, "spec": spec, "status": status}), 0);
            cells[1..5].iter().map(|cell| text(cell).to_owned()).collect::<Vec<_>>().join(" ")
        };
        let port = json!([{"port": 80, "nodePort": 30_080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]);
        let ip = "10.43.0.9";
        assert_eq!(
            row(json!({"type": "NodePort", "clusterIP": ip, "ports": port}), json!({})),
            "NodePort 10.43.0.9 <none> 80:30080/TCP,53/UDP"
        );
        let balancer = json!({"type": "LoadBalancer", "clusterIP": ip, "ports": port});
        assert_eq!(row(balancer.clone(), json!({})), "LoadBalancer 10.43.0.9 <pending> 80:30080/TCP,53/UDP");
        let given = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "a.example"}]}});
        assert_eq!(row(balancer, given), "LoadBalancer 10.43.0.9 192.0.2.1,a.example 80:30080/TCP,53/UDP");
        assert_eq!(
            row(json!({"type": "ExternalName", "externalName": "a.example"}), json!({})),
            "ExternalName <none> a.example <none>"
        );
        let named = json!({"type": "ClusterIP", "clusterIP": "None", "externalIPs": ["192.0.2.1", "192.0.2.2"]});
        assert_eq!(row(named, json!({})), "ClusterIP None 192.0.2.1,192.0.2.2 <none>");
    }

    #[test]
    fn sets_are_shown_as_upstream_shows_them() {
        let shown = |word: &str, object: Value| {
            let kind = coracle_manifests::kinds::by_word(word).unwrap();
            cells(kind, &object, 0).iter().map(|cell| cell.to_string().replace('"', "")).collect::<Vec<_>>().join(" ")
        };
        let template = json!({"spec": {"nodeSelector": {"a": "b"}, "containers": [{"name": "c", "image": "x"}]}});
        let object = |spec: Value, status: Value| {
            let mut object = json!({"metadata": {"name": "n"}, "spec": spec, "status": status});
            object["spec"]["template"] = template.clone();
            object
        };
        assert_eq!(shown("sts", object(json!({"replicas": 3}), json!({"readyReplicas": 2}))), "n 2/3 <unknown> c x");
        let status = json!({
            "desiredNumberScheduled": 5, "currentNumberScheduled": 4, "numberReady": 3, "updatedNumberScheduled": 2, "numberAvailable": 1,
        });
        let selector = json!({"selector": {"matchLabels": {"k": "v"}}});
        assert_eq!(shown("ds", object(selector, status)), "n 5 4 3 2 1 a=b <unknown> c x k=v");
        let mut controller = object(json!({"replicas": 2, "selector": {"k": "v"}}), json!({"replicas": 1}));
        controller["kind"] = json!("ReplicationController");
        assert_eq!(shown("rc", controller), "n 2 1 0 <unknown> c x k=v");
        let owner = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "controller": true});
        let revision = json!({"metadata": {"name": "n", "ownerReferences": [owner]}, "revision": 7});
        assert_eq!(shown("controllerrevisions", revision), "n statefulset.apps/web 7 <unknown>");
    }

    #[test]
    fn the_status_of_a_pod() {
        let pod = |status: Value| pod_status(&json!({"metadata": {}, "status": status}));
        assert_eq!(pod(json!({"phase": "Pending"})), "Pending");
        assert_eq!(
            pod(
                json!({"phase": "Running", "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]})
            ),
            "CrashLoopBackOff"
        );
        assert_eq!(
            pod(
                json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}]})
            ),
            "OOMKilled"
        );
        assert_eq!(pod(json!({"phase": "Pending", "initContainerStatuses": [{"state": {"running": {}}}]})), "Init:0/1");
        assert_eq!(
            pod_status(&json!({"metadata": {"deletionTimestamp": "x"}, "status": {"phase": "Running"}})),
            "Terminating"
        );
    }
}
