//! A Node as the agents of other nodes need it: where its pods and its blobs are, whether it is ready, its images, and the little a
//! status page shows. What else is said of a node changes often, or is long, and would reach every agent of the cluster.

use bytes::Bytes;
use coracle_manifests::view::list;
use serde_json::{Value, json};

const FIELDS: [(&str, &str); 8] = [
    ("metadata", "name"),
    ("metadata", "uid"),
    ("metadata", "creationTimestamp"),
    ("spec", "podCIDR"),
    ("spec", "unschedulable"),
    ("status", "daemonEndpoints"),
    ("status", "images"),
    ("status", "allocatable"),
];

/// The same bytes for as long as nothing of this changes.
pub(super) fn reduced(node: &Value) -> Bytes {
    let status = &node["status"];
    let of_type = |field: &str, kind: &str| -> Vec<Value> {
        list(&status[field]).iter().filter(|one| one["type"] == kind).cloned().collect()
    };
    let ready: Vec<Value> = of_type("conditions", "Ready")
        .iter()
        .map(|ready| json!({"type": "Ready", "status": ready["status"]}))
        .collect();
    let mut value = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {},
        "spec": {},
        "status": {"addresses": of_type("addresses", "InternalIP"), "conditions": ready},
    });
    // What is absent stays absent.
    for (part, field) in FIELDS {
        if let Some(found) = node[part].get(field) {
            value[part][field] = found.clone();
        }
    }
    for field in ["kubeletVersion", "operatingSystem", "architecture", "kernelVersion"] {
        if let Some(found) = status["nodeInfo"].get(field) {
            value["status"]["nodeInfo"][field] = found.clone();
        }
    }
    Bytes::from(value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(heartbeat: &str, ready: &str) -> Value {
        json!({
            "metadata": {"name": "a", "uid": "u", "resourceVersion": heartbeat, "labels": {"x": heartbeat}},
            "spec": {"podCIDR": "10.42.1.0/24", "taints": [{"key": heartbeat}]},
            "status": {
                "addresses": [{"type": "Hostname", "address": "a"}, {"type": "InternalIP", "address": "192.0.2.1"}],
                "conditions": [
                    {"type": "Ready", "status": ready, "lastHeartbeatTime": heartbeat},
                    {"type": "DiskPressure", "status": heartbeat},
                ],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": 6445}},
                "images": [{"names": ["x:1"]}],
                "capacity": {"cpu": heartbeat},
            },
        })
    }

    #[test]
    fn only_what_others_need_and_the_same_bytes_while_it_is_the_same() {
        assert_eq!(reduced(&node("1", "True")), reduced(&node("2", "True")));
        assert_ne!(reduced(&node("1", "True")), reduced(&node("1", "Unknown")));
        let small: Value = serde_json::from_slice(&reduced(&node("1", "True"))).unwrap();
        assert_eq!(small["spec"], json!({"podCIDR": "10.42.1.0/24"}));
        assert_eq!(small["status"]["addresses"], json!([{"type": "InternalIP", "address": "192.0.2.1"}]));
        assert_eq!(small["status"]["conditions"], json!([{"type": "Ready", "status": "True"}]));
        assert_eq!(small["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], 6445);
        assert_eq!(small["status"]["images"][0]["names"][0], "x:1");
        let bare: Value = serde_json::from_slice(&reduced(&json!({"metadata": {"name": "b", "uid": "v"}}))).unwrap();
        assert_eq!(bare["spec"], json!({}));
    }
}
