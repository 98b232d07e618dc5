//! What upstream fills in when a user says nothing; the same values, so that a second apply of a file changes nothing.

use serde_json::{Map, Value, json};

use crate::kinds::Kind;

/// Fills in the defaults of an object of `kind`. Nulls are removed first: they mean "not said".
pub fn apply(kind: &Kind, object: &mut Value) {
    drop_nulls(object);
    if !object.is_object() {
        return;
    }
    object["apiVersion"] = json!(kind.api_version());
    object["kind"] = json!(kind.kind);
    match kind.kind {
        "Pod" => pod_spec(&mut object["spec"]),
        "Deployment" => deployment(&mut object["spec"]),
        "ReplicaSet" => {
            let spec = &mut object["spec"];
            put(spec, "replicas", json!(1));
            template(&mut spec["template"]);
        }
        "Service" => service(&mut object["spec"]),
        "Namespace" => {
            if object["spec"]["finalizers"].is_null() {
                object["spec"]["finalizers"] = json!(["kubernetes"]);
            }
            if let Some(name) = object["metadata"]["name"].as_str().map(ToOwned::to_owned) {
                object["metadata"]["labels"]["kubernetes.io/metadata.name"] = json!(name);
            }
        }
        "Secret" => {
            put(object, "type", json!("Opaque"));
            fold_string_data(object);
        }
        _ => {}
    }
}

fn put(object: &mut Value, field: &str, value: Value) {
    if object.is_null() {
        *object = json!({});
    }
    if let Some(map) = object.as_object_mut() {
        map.entry(field.to_owned()).or_insert(value);
    }
}

fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|key, value| !value.is_null() || key == "creationTimestamp" || key == "eventTime");
            map.remove("creationTimestamp")
                .filter(|value| !value.is_null())
                .map(|value| map.insert("creationTimestamp".to_owned(), value));
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// `stringData` is write-only: it goes into `data`, base64.
fn fold_string_data(secret: &mut Value) {
    use base64::Engine as _;
    let Some(plain) = secret.as_object_mut().and_then(|map| map.remove("stringData")) else { return };
    let mut data: Map<String, Value> = secret["data"].as_object().cloned().unwrap_or_default();
    for (key, value) in plain.as_object().into_iter().flatten() {
        data.insert(
            key.clone(),
            json!(base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or_default())),
        );
    }
    secret["data"] = Value::Object(data);
}

fn deployment(spec: &mut Value) {
    put(spec, "replicas", json!(1));
    put(spec, "revisionHistoryLimit", json!(10));
    put(spec, "progressDeadlineSeconds", json!(600));
    put(spec, "strategy", json!({}));
    put(&mut spec["strategy"], "type", json!("RollingUpdate"));
    if spec["strategy"]["type"] == "RollingUpdate" {
        put(&mut spec["strategy"], "rollingUpdate", json!({}));
        put(&mut spec["strategy"]["rollingUpdate"], "maxUnavailable", json!("25%"));
        put(&mut spec["strategy"]["rollingUpdate"], "maxSurge", json!("25%"));
    }
    template(&mut spec["template"]);
}

fn template(template: &mut Value) {
    if template.is_object() {
        pod_spec(&mut template["spec"]);
    }
}

fn pod_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    put(spec, "restartPolicy", json!("Always"));
    put(spec, "terminationGracePeriodSeconds", json!(30));
    put(spec, "dnsPolicy", json!("ClusterFirst"));
    put(spec, "securityContext", json!({}));
    put(spec, "schedulerName", json!("default-scheduler"));
    if let Some(name) = spec.get("serviceAccountName").or_else(|| spec.get("serviceAccount")).cloned() {
        spec["serviceAccountName"] = name.clone();
        spec["serviceAccount"] = name;
    }
    let host_network = spec["hostNetwork"] == true;
    for list in ["initContainers", "containers"] {
        for item in spec[list].as_array_mut().into_iter().flatten() {
            container(item, host_network);
        }
    }
    if spec.get("initContainers").is_some_and(Value::is_null) {
        spec.as_object_mut().map(|map| map.remove("initContainers"));
    }
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        for source in ["configMap", "secret"] {
            if volume.get(source).is_some_and(Value::is_object) {
                put(&mut volume[source], "defaultMode", json!(420));
            }
        }
        if volume.get("hostPath").is_some_and(Value::is_object) {
            put(&mut volume["hostPath"], "type", json!(""));
        }
        // A volume that names no source is an empty directory.
        if volume.as_object().is_some_and(|map| map.len() == 1 && map.contains_key("name")) {
            volume["emptyDir"] = json!({});
        }
    }
}

fn container(container: &mut Value, _host_network: bool) {
    if !container.is_object() {
        return;
    }
    put(container, "terminationMessagePath", json!("/dev/termination-log"));
    put(container, "terminationMessagePolicy", json!("File"));
    put(container, "resources", json!({}));
    let image = container["image"].as_str().unwrap_or_default();
    let tag = image.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    let latest = !image.contains('@') && tag.is_none_or(|tag| tag == "latest");
    put(container, "imagePullPolicy", json!(if latest { "Always" } else { "IfNotPresent" }));
    for port in container.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        put(port, "protocol", json!("TCP"));
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(probe).filter(|probe| probe.is_object()) {
            for (field, value) in
                [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
            {
                put(probe, field, json!(value));
            }
            http_get(probe);
        }
    }
    if let Some(handler) = container.get_mut("lifecycle").and_then(|lifecycle| lifecycle.get_mut("preStop")) {
        http_get(handler);
    }
    for entry in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(field) = entry.get_mut("valueFrom").and_then(|from| from.get_mut("fieldRef")) {
            put(field, "apiVersion", json!("v1"));
        }
        if let Some(field) = entry.get_mut("valueFrom").and_then(|from| from.get_mut("resourceFieldRef")) {
            put(field, "divisor", json!("0"));
        }
    }
    // A limit without a request asks for the limit.
    if let Some(limits) = container["resources"].get("limits").and_then(Value::as_object).cloned() {
        for (name, value) in limits {
            put(&mut container["resources"], "requests", json!({}));
            put(&mut container["resources"]["requests"], &name, value);
        }
    }
}

fn http_get(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet").filter(|get| get.is_object()) {
        put(get, "path", json!("/"));
        put(get, "scheme", json!("HTTP"));
    }
}

fn service(spec: &mut Value) {
    put(spec, "type", json!("ClusterIP"));
    put(spec, "sessionAffinity", json!("None"));
    put(spec, "internalTrafficPolicy", json!("Cluster"));
    put(spec, "ipFamilies", json!(["IPv4"]));
    put(spec, "ipFamilyPolicy", json!("SingleStack"));
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        put(port, "protocol", json!("TCP"));
        let number = port["port"].clone();
        put(port, "targetPort", number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::by_word;

    #[test]
    fn defaults_are_stable_and_as_upstream() {
        let kind = by_word("deploy").unwrap();
        let mut object = json!({"metadata": {"name": "a"}, "spec": {"replicas": null, "template": {"spec": {
            "containers": [{"name": "c", "image": "host:5000/x", "ports": [{"containerPort": 80}], "readinessProbe": {"httpGet": {"port": 80}},
                            "resources": {"limits": {"memory": "1Gi"}}}],
            "volumes": [{"name": "v"}, {"name": "w", "configMap": {"name": "x"}}]}}}});
        apply(kind, &mut object);
        let once = object.clone();
        apply(kind, &mut object);
        assert_eq!(object, once);
        let spec = &object["spec"]["template"]["spec"];
        assert_eq!(
            (&object["spec"]["replicas"], &object["spec"]["strategy"]["rollingUpdate"]["maxSurge"]),
            (&json!(1), &json!("25%"))
        );
        assert_eq!(spec["containers"][0]["imagePullPolicy"], "Always");
        assert_eq!(spec["containers"][0]["resources"]["requests"]["memory"], "1Gi");
        assert_eq!(
            spec["containers"][0]["readinessProbe"]["httpGet"],
            json!({"port": 80, "path": "/", "scheme": "HTTP"})
        );
        assert_eq!(
            (&spec["volumes"][0]["emptyDir"], &spec["volumes"][1]["configMap"]["defaultMode"]),
            (&json!({}), &json!(420))
        );
        assert!(spec.get("initContainers").is_none());
    }

    #[test]
    fn secrets_fold_their_plain_text() {
        let mut secret = json!({"metadata": {"name": "s"}, "data": {"a": "eA=="}, "stringData": {"b": "hi"}});
        apply(by_word("secret").unwrap(), &mut secret);
        assert_eq!(secret["data"], json!({"a": "eA==", "b": "aGk="}));
        assert!(secret.get("stringData").is_none());
        assert_eq!(secret["type"], "Opaque");
    }
}
