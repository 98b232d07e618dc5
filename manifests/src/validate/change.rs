//! What may not change once an object is there.

use serde_json::Value;

use super::{Found, create};
use crate::default;
use crate::kinds::Kind;
use crate::problem::{Problem, Reason, bounded};
use crate::service::{has_cluster_ip, type_of};
use crate::view::{is_deleting, list, text};

/// Problems of a change, after defaults: those of the new object, and changes that are not allowed.
#[must_use]
pub fn update(kind: &Kind, old: &Value, new: &Value) -> Vec<Problem> {
    let mut found = Found { problems: create(kind, new) };
    for field in ["name", "namespace", "uid"] {
        if !new["metadata"][field].is_null() {
            found.fixed(&format!("metadata.{field}"), &old["metadata"][field], &new["metadata"][field]);
        }
    }
    let known = list(&old["metadata"]["finalizers"]);
    if is_deleting(old) && list(&new["metadata"]["finalizers"]).iter().any(|finalizer| !known.contains(finalizer)) {
        let message = "no finalizer can be added to an object that is being deleted";
        found.add("metadata.finalizers", Reason::Forbidden, message, None);
    }
    let (before, after) = (&old["spec"], &new["spec"]);
    match kind.kind {
        "Deployment" | "ReplicaSet" | "DaemonSet" => {
            found.fixed("spec.selector", &before["selector"], &after["selector"]);
        }
        "StatefulSet" => {
            for field in ["selector", "serviceName", "podManagementPolicy", "volumeClaimTemplates"] {
                found.fixed(&format!("spec.{field}"), &before[field], &after[field]);
            }
        }
        "ControllerRevision" => found.fixed("data", &old["data"], &new["data"]),
        "Secret" => found.fixed("type", &old["type"], &new["type"]),
        "EndpointSlice" => found.fixed("addressType", &old["addressType"], &new["addressType"]),
        "Service" => found.service_change(before, after),
        "Node" => {
            for field in ["podCIDR", "providerID"] {
                if !text(&before[field]).is_empty() {
                    found.fixed(&format!("spec.{field}"), &before[field], &after[field]);
                }
            }
        }
        "Pod" => {
            // What a controller wrote lacks the defaults that the new object got on its way here.
            let mut old = old.clone();
            default::apply(kind, &mut old);
            found.pod_change(&old["spec"], after);
        }
        _ => {}
    }
    if matches!(kind.kind, "ConfigMap" | "Secret") && old["immutable"] == true {
        for field in ["data", "binaryData", "immutable"] {
            found.fixed(field, &old[field], &new[field]);
        }
    }
    bounded(found.problems)
}

impl Found {
    /// An address stays for as long as the Service has one; as an alias of another name it has none.
    fn service_change(&mut self, before: &Value, after: &Value) {
        if has_cluster_ip(before) && has_cluster_ip(after) && !text(&before["clusterIP"]).is_empty() {
            self.fixed("spec.clusterIP", &before["clusterIP"], &after["clusterIP"]);
        }
        if type_of(before) == "LoadBalancer" && type_of(after) == "LoadBalancer" {
            self.fixed("spec.loadBalancerClass", &before["loadBalancerClass"], &after["loadBalancerClass"]);
        }
    }

    fn fixed(&mut self, path: &str, old: &Value, new: &Value) {
        if old != new {
            let hint = "delete the object and create it anew";
            self.add(path, Reason::Forbidden, "this field cannot be changed", Some(hint));
        }
    }

    /// Images may change, tolerations be added, the deadline set or come nearer. Nothing else.
    fn pod_change(&mut self, old: &Value, new: &Value) {
        const HINT: &str = "change the Deployment it belongs to, or delete the pod and create it anew";
        let none = serde_json::Map::new();
        let (before, after) = (old.as_object().unwrap_or(&none), new.as_object().unwrap_or(&none));
        let mut fields: Vec<&String> =
            before.keys().chain(after.keys().filter(|key| !before.contains_key(*key))).collect();
        fields.sort_unstable();
        for field in fields {
            let (before, after) = (&old[field], &new[field]);
            let allowed = match field.as_str() {
                "containers" | "initContainers" => same_but_images(list(before), list(after)),
                "activeDeadlineSeconds" => match (before.as_i64(), after.as_i64()) {
                    (None, Some(_)) => true,
                    (Some(before), Some(after)) => after <= before,
                    _ => before == after,
                },
                "tolerations" => {
                    list(before).iter().all(|kept| list(after).iter().any(|other| same_toleration(kept, other)))
                }
                "terminationGracePeriodSeconds" => {
                    before == after || (before.as_i64() < Some(0) && after.as_i64() == Some(1))
                }
                _ => before == after,
            };
            if !allowed {
                let message = "a pod cannot be changed, but for its images, more tolerations and a nearer deadline";
                self.add(&format!("spec.{field}"), Reason::Forbidden, message, Some(HINT));
            }
        }
    }
}

fn same_but_images(old: &[Value], new: &[Value]) -> bool {
    old.len() == new.len()
        && old.iter().zip(new).all(|(old, new)| {
            let mut new = new.clone();
            if let (Some(map), Some(image)) = (new.as_object_mut(), old.get("image")) {
                map.insert("image".to_owned(), image.clone());
            }
            *old == new
        })
}

/// The same but for how long it is tolerated.
fn same_toleration(old: &Value, new: &Value) -> bool {
    ["key", "operator", "value", "effect"].iter().all(|field| old[*field] == new[*field])
}
