//! What a well-formed object must also be: names, required fields, ranges, references within it, what may not change.

mod change;
mod names;
mod pod;
mod service;
mod workload;

use std::collections::BTreeSet;

use serde_json::Value;

use crate::check;
use crate::kinds::Kind;
use crate::problem::{Problem, Reason, bounded};
use crate::view::{list, text};

pub use change::update;
pub use names::{is_config_key, is_label, is_label_key, is_label_value, is_port_name, is_subdomain, is_variable};

/// Problems of a new object, after defaults. Any tree is taken: what has the wrong type is left to `check::strict`.
#[must_use]
pub fn create(kind: &Kind, object: &Value) -> Vec<Problem> {
    let mut found = Found { problems: check::required(kind, object) };
    metadata(kind, &object["metadata"], &mut found);
    match kind.kind {
        "Pod" => found.pod_spec(&object["spec"], "spec"),
        "Deployment" | "ReplicaSet" | "ReplicationController" | "StatefulSet" | "DaemonSet" => found.workload(object),
        "ControllerRevision" => found.revision(object),
        "Service" => found.service(&object["spec"]),
        "EndpointSlice" => found.endpoint_slice(object),
        "ConfigMap" => found.config_keys(object, &["data", "binaryData"]),
        "Secret" => {
            found.config_keys(object, &["data"]);
            found.secret_type(object);
        }
        "Node" => found.node(&object["spec"]),
        _ => {}
    }
    bounded(found.problems)
}

/// What was found so far.
#[derive(Default)]
struct Found {
    problems: Vec<Problem>,
}

impl Found {
    fn add(&mut self, path: &str, reason: Reason, message: impl Into<String>, hint: Option<&str>) {
        let mut problem = Problem::new(path, reason, message);
        problem.hint = hint.map(ToOwned::to_owned);
        self.problems.push(problem);
    }

    /// Whether a field is there and not empty; says so once if it is not.
    fn required(&mut self, path: &str, value: &Value) -> bool {
        let missing = value.is_null() || value == "" || value.as_array().is_some_and(Vec::is_empty);
        let said = || self.problems.iter().any(|problem| problem.reason == Reason::Required && problem.path == path);
        if missing && !said() {
            self.add(path, Reason::Required, "this field is required", None);
        }
        !missing
    }

    fn range(&mut self, path: &str, value: &Value, least: i64, most: i64) {
        if let Some(number) = value.as_i64().filter(|number| !(least..=most).contains(number)) {
            self.add(path, Reason::Invalid, format!("{number} is out of range: {least} to {most}"), None);
        }
    }

    /// A port by number or by name.
    fn port(&mut self, path: &str, value: &Value) {
        self.range(path, value, 1, 65535);
        if let Some(name) = value.as_str() {
            self.port_name(path, name);
        }
    }

    fn config_keys(&mut self, object: &Value, fields: &[&str]) {
        let (mut keys, mut size) = (BTreeSet::new(), 0);
        for field in fields {
            for (key, value) in object[*field].as_object().into_iter().flatten() {
                size +=
                    if *field == "data" && fields.len() > 1 { text(value).len() } else { text(value).len() / 4 * 3 };
                let path = format!("{field}.{}", names::shown(key));
                self.config_key(&path, key);
                if !keys.insert(key) {
                    let message = format!("`{key}` is in `data` and in `binaryData`");
                    self.add(&path, Reason::Duplicate, message, None);
                }
            }
        }
        if size > 1 << 20 {
            let message = format!("the data has {size} bytes; at most 1048576 are kept");
            self.add(fields[0], Reason::TooLong, message, None);
        }
    }

    /// Secrets of upstream's types have the keys those types promise.
    fn secret_type(&mut self, secret: &Value) {
        let (all, keys): (bool, &[&str]) = match text(&secret["type"]) {
            "kubernetes.io/tls" => (true, &["tls.crt", "tls.key"]),
            "kubernetes.io/dockerconfigjson" => (true, &[".dockerconfigjson"]),
            "kubernetes.io/dockercfg" => (true, &[".dockercfg"]),
            "kubernetes.io/ssh-auth" => (true, &["ssh-privatekey"]),
            "kubernetes.io/basic-auth" => (false, &["username", "password"]),
            _ => return,
        };
        let missing: Vec<&str> = keys.iter().filter(|key| secret["data"].get(**key).is_none()).copied().collect();
        if missing.len() == keys.len() || (all && !missing.is_empty()) {
            let message =
                format!("a Secret of type {} has the key `{}`", text(&secret["type"]), missing.join("` or `"));
            self.add("data", Reason::Required, message, None);
        }
    }

    fn node(&mut self, spec: &Value) {
        let mut seen = BTreeSet::new();
        for (index, taint) in list(&spec["taints"]).iter().enumerate() {
            let at = format!("spec.taints[{index}]");
            if self.required(&format!("{at}.key"), &taint["key"]) {
                self.label_key(&format!("{at}.key"), text(&taint["key"]), "a taint's key");
            }
            self.label_value(&format!("{at}.value"), text(&taint["value"]));
            self.required(&format!("{at}.effect"), &taint["effect"]);
            if !seen.insert((text(&taint["key"]), text(&taint["effect"]))) {
                self.add(&at, Reason::Duplicate, "two taints have this key and effect", None);
            }
        }
    }
}

/// Finalizers of upstream that have no prefix.
const FINALIZERS: &[&str] = &["kubernetes", "orphan", "foregroundDeletion"];

fn metadata(kind: &Kind, meta: &Value, found: &mut Found) {
    let (name, prefix) = (text(&meta["name"]), text(&meta["generateName"]));
    // What is generated goes on after the prefix, so that the prefix may end with `-`.
    let (path, name) = match (name, prefix) {
        ("", "") => ("metadata.name", None),
        ("", prefix) => ("metadata.generateName", Some(prefix.strip_suffix('-').unwrap_or(prefix))),
        (name, _) => ("metadata.name", Some(name)),
    };
    match (name, kind.kind) {
        (None, _) => found.add(path, Reason::Required, "name or generateName is required", None),
        (Some(name), "Service") => found.service_name(path, name),
        (Some(name), "Namespace") => found.label(path, name, "a name"),
        (Some(name), _) => found.subdomain(path, name, "a name"),
    }
    let namespace = text(&meta["namespace"]);
    if kind.namespaced && !namespace.is_empty() {
        found.label("metadata.namespace", namespace, "a namespace");
    } else if !namespace.is_empty() {
        let message = format!("a {} belongs to no namespace", kind.kind);
        found.add("metadata.namespace", Reason::Forbidden, message, Some("leave the field out"));
    }
    found.labels(&meta["labels"], "metadata.labels");
    found.annotations(&meta["annotations"], "metadata.annotations");
    for (index, finalizer) in list(&meta["finalizers"]).iter().map(text).enumerate() {
        let path = format!("metadata.finalizers[{index}]");
        found.label_key(&path, finalizer, "a finalizer");
        if is_label_key(finalizer) && !finalizer.contains('/') && !FINALIZERS.contains(&finalizer) {
            found.add(&path, Reason::Invalid, format!("`{finalizer}` has no prefix"), Some("write example.com/NAME"));
        }
    }
    let mut controllers = 0;
    for (index, owner) in list(&meta["ownerReferences"]).iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            found.required(&format!("metadata.ownerReferences[{index}].{field}"), &owner[field]);
        }
        controllers += usize::from(owner["controller"] == true);
    }
    if controllers > 1 {
        let message = format!("{controllers} owners are called the controller; one may be");
        found.add("metadata.ownerReferences", Reason::Invalid, message, None);
    }
}

#[cfg(test)]
mod tests;
