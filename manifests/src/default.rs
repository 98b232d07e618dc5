//! What upstream fills in when a user says nothing; the same values, so that a second apply of a file changes nothing.

use serde_json::{Map, Value, json};

use crate::kinds::Kind;
use crate::schema::{self, Type};
use crate::service::{has_cluster_ip, is_external, type_of};
use crate::view::text;

/// Fills in the defaults of an object of `kind`. Nulls are removed first: they mean "not said", but for the values of maps of
/// text, where they mean the empty text. Any tree is taken; what is not of its type is left as it is.
pub fn apply(kind: &Kind, object: &mut Value) {
    normal(&Type::Named(kind.kind.to_owned()), object);
    if !object.is_object() {
        return;
    }
    object["apiVersion"] = json!(kind.api_version());
    object["kind"] = json!(kind.kind);
    match kind.kind {
        "Pod" => pod(object),
        "Deployment" => deployment(object),
        "ReplicaSet" => {
            put(object, "spec", json!({}));
            with(object, "spec", |spec| {
                put(spec, "replicas", json!(1));
                with(spec, "template", template);
            });
        }
        "ReplicationController" => replication_controller(object),
        "StatefulSet" => stateful_set(object),
        "DaemonSet" => daemon_set(object),
        "Service" => {
            put(object, "spec", json!({}));
            with(object, "spec", service);
        }
        "Namespace" => namespace(object),
        "Secret" => {
            put(object, "type", json!("Opaque"));
            fold_string_data(object);
        }
        "EndpointSlice" => {
            put(object, "endpoints", json!([]));
            for port in items(object, "ports") {
                put(port, "name", json!(""));
                put(port, "protocol", json!("TCP"));
            }
        }
        _ => {}
    }
}

/// Adds a field to an object that does not have it.
fn put(object: &mut Value, field: &str, value: Value) {
    if let Some(map) = object.as_object_mut() {
        map.entry(field.to_owned()).or_insert(value);
    }
}

fn set(object: &mut Value, field: &str, value: Value) {
    if let Some(map) = object.as_object_mut() {
        map.insert(field.to_owned(), value);
    }
}

/// Does something to a field that is there and an object.
fn with(object: &mut Value, field: &str, act: impl FnOnce(&mut Value)) {
    if let Some(inner) = object.get_mut(field).filter(|inner| inner.is_object()) {
        act(inner);
    }
}

fn items<'a>(object: &'a mut Value, field: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten().filter(|item| item.is_object())
}

/// Removes nulls, and writes amounts as text: typed clients of other languages read nothing else.
fn normal(typ: &Type, value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Type::Map(inner) = typ {
                if matches!(**inner, Type::Str | Type::Base64) {
                    map.values_mut().filter(|value| value.is_null()).for_each(|value| *value = json!(""));
                }
                map.retain(|_, value| !value.is_null());
                map.values_mut().for_each(|value| normal(inner, value));
                return;
            }
            let type_name = if let Type::Named(name) = typ { Some(name.as_str()) } else { None };
            // An event's time is null as long as nobody uses the newer event fields.
            map.retain(|key, value| !value.is_null() || key == "eventTime");
            for (key, value) in map {
                let field = type_name.and_then(|name| schema::field(name, key));
                normal(field.map_or(&Type::Any, |field| &field.typ), value);
            }
        }
        Value::Array(items) => {
            let inner = if let Type::List(inner) = typ { inner } else { &Type::Any };
            items.iter_mut().for_each(|item| normal(inner, item));
        }
        Value::Number(number) if matches!(typ, Type::Quantity) => *value = Value::String(number.to_string()),
        _ => {}
    }
}

fn namespace(object: &mut Value) {
    put(object, "spec", json!({}));
    with(object, "spec", |spec| put(spec, "finalizers", json!(["kubernetes"])));
    let Some(name) = object["metadata"]["name"].as_str().map(ToOwned::to_owned) else { return };
    with(object, "metadata", |meta| {
        put(meta, "labels", json!({}));
        with(meta, "labels", |labels| set(labels, "kubernetes.io/metadata.name", json!(name)));
    });
}

/// `stringData` is write-only: it goes into `data`, base64.
pub(crate) fn fold_string_data(secret: &mut Value) {
    use base64::Engine as _;
    if !secret.get("stringData").is_some_and(Value::is_object)
        || secret.get("data").is_some_and(|data| !data.is_object())
    {
        return;
    }
    let plain = secret.as_object_mut().and_then(|map| map.remove("stringData")).unwrap_or_default();
    let mut data: Map<String, Value> = secret["data"].as_object().cloned().unwrap_or_default();
    for (key, value) in plain.as_object().into_iter().flatten() {
        data.insert(key.clone(), json!(base64::engine::general_purpose::STANDARD.encode(text(value))));
    }
    if !data.is_empty() {
        set(secret, "data", Value::Object(data));
    }
}

fn deployment(object: &mut Value) {
    put(object, "spec", json!({}));
    with(object, "spec", |spec| {
        put(spec, "replicas", json!(1));
        put(spec, "revisionHistoryLimit", json!(10));
        put(spec, "progressDeadlineSeconds", json!(600));
        put(spec, "strategy", json!({}));
        with(spec, "strategy", |strategy| {
            put(strategy, "type", json!("RollingUpdate"));
            if strategy["type"] == "RollingUpdate" {
                put(strategy, "rollingUpdate", json!({}));
                with(strategy, "rollingUpdate", |rolling| {
                    put(rolling, "maxUnavailable", json!("25%"));
                    put(rolling, "maxSurge", json!("25%"));
                });
            }
        });
        with(spec, "template", template);
    });
}

/// The labels of its template are also its selector and its own labels, where it says none.
fn replication_controller(object: &mut Value) {
    put(object, "spec", json!({}));
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    let some = |map: &Value| map.as_object().is_some_and(|map| !map.is_empty());
    if some(&labels) {
        put(object, "metadata", json!({}));
        for (part, field) in [("metadata", "labels"), ("spec", "selector")] {
            with(object, part, |part| {
                if part.get(field).is_none_or(|held| *held == json!({})) {
                    set(part, field, labels.clone());
                }
            });
        }
    }
    with(object, "spec", |spec| {
        put(spec, "replicas", json!(1));
        with(spec, "template", template);
    });
}

fn stateful_set(object: &mut Value) {
    put(object, "spec", json!({}));
    with(object, "spec", |spec| {
        put(spec, "replicas", json!(1));
        put(spec, "revisionHistoryLimit", json!(10));
        put(spec, "podManagementPolicy", json!("OrderedReady"));
        rolling(spec, &[("partition", 0)]);
        put(spec, "persistentVolumeClaimRetentionPolicy", json!({}));
        with(spec, "persistentVolumeClaimRetentionPolicy", |policy| {
            put(policy, "whenDeleted", json!("Retain"));
            put(policy, "whenScaled", json!("Retain"));
        });
        with(spec, "template", template);
    });
}

fn daemon_set(object: &mut Value) {
    put(object, "spec", json!({}));
    with(object, "spec", |spec| {
        put(spec, "revisionHistoryLimit", json!(10));
        rolling(spec, &[("maxUnavailable", 1), ("maxSurge", 0)]);
        with(spec, "template", template);
    });
}

/// An `updateStrategy` rolls unless it says otherwise.
fn rolling(spec: &mut Value, numbers: &[(&str, i64)]) {
    put(spec, "updateStrategy", json!({}));
    with(spec, "updateStrategy", |strategy| {
        put(strategy, "type", json!("RollingUpdate"));
        if strategy["type"] == "RollingUpdate" {
            put(strategy, "rollingUpdate", json!({}));
            with(strategy, "rollingUpdate", |rolling| {
                numbers.iter().for_each(|(field, number)| put(rolling, field, json!(number)));
            });
        }
    });
}

fn template(template: &mut Value) {
    put(template, "metadata", json!({}));
    with(template, "spec", pod_spec);
}

/// A pod has a few defaults more than a template.
fn pod(object: &mut Value) {
    with(object, "spec", |spec| {
        pod_spec(spec);
        put(spec, "enableServiceLinks", json!(true));
        let host_network = spec["hostNetwork"] == true;
        for part in ["initContainers", "containers"] {
            for container in items(spec, part) {
                requests_from_limits(container);
                for port in items(container, "ports").filter(|_| host_network) {
                    let number = port["containerPort"].clone();
                    if port.get("hostPort").is_none_or(|host| *host == 0) && !number.is_null() {
                        set(port, "hostPort", number);
                    }
                }
            }
        }
    });
}

fn pod_spec(spec: &mut Value) {
    put(spec, "restartPolicy", json!("Always"));
    put(spec, "terminationGracePeriodSeconds", json!(30));
    put(spec, "dnsPolicy", json!("ClusterFirst"));
    put(spec, "securityContext", json!({}));
    put(spec, "schedulerName", json!("default-scheduler"));
    let account = ["serviceAccountName", "serviceAccount"].map(|field| text(&spec[field]).to_owned());
    if let Some(name) = account.into_iter().find(|name| !name.is_empty()).map(Value::String) {
        set(spec, "serviceAccountName", name.clone());
        set(spec, "serviceAccount", name);
    }
    for part in ["initContainers", "containers"] {
        items(spec, part).for_each(container);
    }
    for volume in items(spec, "volumes") {
        for source in ["configMap", "secret", "downwardAPI", "projected"] {
            with(volume, source, |source| put(source, "defaultMode", json!(0o644)));
        }
        with(volume, "downwardAPI", fields);
        with(volume, "projected", |source| items(source, "sources").for_each(|part| with(part, "downwardAPI", fields)));
        with(volume, "hostPath", |source| put(source, "type", json!("")));
        // A volume that names no source is an empty directory.
        if volume.as_object().is_some_and(|map| map.keys().all(|key| key == "name")) {
            put(volume, "emptyDir", json!({}));
        }
    }
}

fn container(container: &mut Value) {
    put(container, "terminationMessagePath", json!("/dev/termination-log"));
    put(container, "terminationMessagePolicy", json!("File"));
    put(container, "resources", json!({}));
    let policy = pull_policy(text(&container["image"]));
    put(container, "imagePullPolicy", json!(policy));
    for port in items(container, "ports") {
        put(port, "protocol", json!("TCP"));
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        with(container, probe, |probe| {
            for (field, value) in
                [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
            {
                put(probe, field, json!(value));
            }
            with(probe, "httpGet", http_get);
            with(probe, "grpc", |grpc| put(grpc, "service", json!("")));
        });
    }
    with(container, "lifecycle", |lifecycle| {
        for hook in ["preStop", "postStart"] {
            with(lifecycle, hook, |handler| with(handler, "httpGet", http_get));
        }
    });
    for entry in items(container, "env") {
        with(entry, "valueFrom", field);
    }
}

fn field(from: &mut Value) {
    with(from, "fieldRef", |field| put(field, "apiVersion", json!("v1")));
    with(from, "resourceFieldRef", |field| put(field, "divisor", json!("0")));
}

fn fields(source: &mut Value) {
    items(source, "items").for_each(field);
}

/// `latest`, or neither tag nor digest, is looked up each time.
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let tag = name.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    match (tag, digest) {
        (Some("latest"), _) | (None, None) => "Always",
        _ => "IfNotPresent",
    }
}

/// A limit without a request asks for the limit.
fn requests_from_limits(container: &mut Value) {
    let Some(limits) = container["resources"]["limits"].as_object().cloned() else { return };
    with(container, "resources", |resources| {
        put(resources, "requests", json!({}));
        with(resources, "requests", |requests| {
            limits.into_iter().for_each(|(name, value)| put(requests, &name, value))
        });
    });
}

fn http_get(get: &mut Value) {
    put(get, "path", json!("/"));
    put(get, "scheme", json!("HTTP"));
}

fn service(spec: &mut Value) {
    put(spec, "type", json!("ClusterIP"));
    put(spec, "sessionAffinity", json!("None"));
    if spec["sessionAffinity"] == "ClientIP" {
        put(spec, "sessionAffinityConfig", json!({}));
        with(spec, "sessionAffinityConfig", |config| {
            put(config, "clientIP", json!({}));
            with(config, "clientIP", |client| put(client, "timeoutSeconds", json!(10_800)));
        });
    }
    if has_cluster_ip(spec) {
        put(spec, "internalTrafficPolicy", json!("Cluster"));
        put(spec, "ipFamilies", json!(["IPv4"]));
        put(spec, "ipFamilyPolicy", json!("SingleStack"));
    }
    if is_external(spec) {
        put(spec, "externalTrafficPolicy", json!("Cluster"));
    }
    if type_of(spec) == "LoadBalancer" {
        put(spec, "allocateLoadBalancerNodePorts", json!(true));
    }
    for port in items(spec, "ports") {
        put(port, "protocol", json!("TCP"));
        let number = port["port"].clone();
        let unsaid = port.get("targetPort").is_none_or(|target| *target == 0 || *target == "");
        if unsaid && !number.is_null() {
            set(port, "targetPort", number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::by_word;
    use proptest::prelude::*;

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
        // A template keeps its limits as they are; the pods made of it get the requests.
        assert_eq!(spec["containers"][0]["resources"], json!({"limits": {"memory": "1Gi"}}));
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
    fn sets_roll_unless_they_say_otherwise() {
        let spec = |word: &str, spec: Value| {
            let mut object = json!({"metadata": {"name": "a"}, "spec": spec});
            apply(by_word(word).unwrap(), &mut object);
            object["spec"].clone()
        };
        assert_eq!(
            spec("sts", json!({})),
            json!({
                "replicas": 1, "revisionHistoryLimit": 10, "podManagementPolicy": "OrderedReady",
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
                "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
            })
        );
        let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}});
        let surging = json!({"updateStrategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}});
        assert_eq!(spec("ds", surging), json!({"revisionHistoryLimit": 10, "updateStrategy": rolling}));
        for word in ["sts", "ds"] {
            let by_hand = json!({"type": "OnDelete"});
            assert_eq!(spec(word, json!({"updateStrategy": by_hand}))["updateStrategy"], by_hand);
        }
    }

    #[test]
    fn a_replication_controller_takes_the_labels_of_its_template() {
        let labelled = |labels: Value, selector: Value| {
            let mut object = json!({"metadata": {"name": "a", "labels": labels}, "spec": {"selector": selector, "template": {"metadata": {"labels": {"app": "x"}}}}});
            apply(by_word("rc").unwrap(), &mut object);
            (object["metadata"]["labels"].clone(), object["spec"]["selector"].clone())
        };
        assert_eq!(labelled(Value::Null, Value::Null), (json!({"app": "x"}), json!({"app": "x"})));
        let (own, other) = (json!({"a": "b"}), json!({"c": "d"}));
        assert_eq!(labelled(own.clone(), other.clone()), (own, other));
    }

    #[test]
    fn secrets_fold_their_plain_text() {
        let mut secret = json!({"metadata": {"name": "s"}, "data": {"a": "eA=="}, "stringData": {"b": "hi"}});
        apply(by_word("secret").unwrap(), &mut secret);
        assert_eq!(secret["data"], json!({"a": "eA==", "b": "aGk="}));
        assert!(secret.get("stringData").is_none());
        assert_eq!(secret["type"], "Opaque");
    }

    fn defaulted(word: &str, mut object: Value) -> Value {
        apply(by_word(word).unwrap(), &mut object);
        object
    }

    #[test]
    fn pods_get_what_templates_do_not() {
        let pod = defaulted(
            "pod",
            json!({"metadata": {"name": "p"}, "spec": {"hostNetwork": true, "serviceAccount": "x", "containers": [
            {"name": "c", "image": "i", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": 2, "memory": "1Gi"}, "requests": {"cpu": "1"}}}]}}),
        );
        let spec = &pod["spec"];
        assert_eq!((&spec["enableServiceLinks"], &spec["serviceAccountName"]), (&json!(true), &json!("x")));
        let container = &spec["containers"][0];
        assert_eq!(container["ports"][0], json!({"containerPort": 80, "hostPort": 80, "protocol": "TCP"}));
        assert_eq!(
            container["resources"],
            json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}})
        );
    }

    #[test]
    fn nothing_said_and_null_are_the_same_but_in_maps_of_text() {
        let map = defaulted(
            "cm",
            json!({"metadata": {"name": "a", "creationTimestamp": null, "labels": {"x": null}}, "data": {"k": null}, "binaryData": null}),
        );
        assert_eq!(map["data"], json!({"k": ""}));
        assert_eq!(map["metadata"], json!({"name": "a", "labels": {"x": ""}}));
        assert!(map.get("binaryData").is_none());
        let service = defaulted(
            "svc",
            json!({"spec": {"ports": [{"port": 80, "targetPort": ""}, {"port": 81, "targetPort": "web"}]}}),
        );
        assert_eq!(
            (&service["spec"]["ports"][0]["targetPort"], &service["spec"]["ports"][1]["targetPort"]),
            (&json!(80), &json!("web"))
        );
        let space = defaulted("ns", json!({"metadata": {"name": "n"}}));
        assert_eq!(space["metadata"]["labels"]["kubernetes.io/metadata.name"], "n");
        assert_eq!(space["spec"]["finalizers"], json!(["kubernetes"]));
    }

    #[test]
    fn services_get_what_goes_with_their_type() {
        let fields = |spec: Value| {
            let spec = defaulted("svc", json!({"metadata": {"name": "s"}, "spec": spec}))["spec"].clone();
            let of = |name: &str| spec[name].clone();
            [of("internalTrafficPolicy"), of("externalTrafficPolicy"), of("allocateLoadBalancerNodePorts")]
        };
        assert_eq!(fields(json!({})), [json!("Cluster"), Value::Null, Value::Null]);
        assert_eq!(fields(json!({"externalIPs": ["192.0.2.1"]})), [json!("Cluster"), json!("Cluster"), Value::Null]);
        assert_eq!(fields(json!({"type": "NodePort"})), [json!("Cluster"), json!("Cluster"), Value::Null]);
        let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local"});
        assert_eq!(fields(local), [json!("Cluster"), json!("Local"), json!(true)]);
        assert_eq!(fields(json!({"type": "ExternalName"})), [Value::Null, Value::Null, Value::Null]);
        let sticky = defaulted("svc", json!({"spec": {"sessionAffinity": "ClientIP"}}));
        assert_eq!(sticky["spec"]["sessionAffinityConfig"], json!({"clientIP": {"timeoutSeconds": 10_800}}));
    }

    /// What is filled in comes back with the next change of the object: it must draw neither refusal nor warning.
    #[test]
    fn defaults_pass_the_strict_check() {
        let pod = json!({"hostNetwork": true, "initContainers": [{"name": "i", "image": "x"}], "containers": [{"name": "c", "image": "i",
            "ports": [{"containerPort": 80}], "livenessProbe": {"httpGet": {"port": 80}}, "lifecycle": {"preStop": {"httpGet": {"port": 80}}},
            "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}, {"name": "B", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}],
            "resources": {"limits": {"cpu": 1}}}],
            "volumes": [{"name": "a"}, {"name": "b", "configMap": {"name": "x"}}, {"name": "c", "secret": {"secretName": "x"}}, {"name": "d", "hostPath": {"path": "/x"}}]});
        let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": pod});
        let workload =
            json!({"metadata": {"name": "x"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
        for (word, object) in [
            ("pod", json!({"metadata": {"name": "x"}, "spec": pod})),
            ("deploy", workload.clone()),
            ("rs", workload.clone()),
            ("sts", workload.clone()),
            ("ds", workload),
            ("rc", json!({"metadata": {"name": "x"}, "spec": {"template": template}})),
            ("controllerrevisions", json!({"metadata": {"name": "x"}, "data": {}, "revision": 1})),
            ("svc", json!({"metadata": {"name": "x"}, "spec": {"ports": [{"port": 1}]}})),
            (
                "svc",
                json!({"metadata": {"name": "x"}, "spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP", "ports": [{"port": 1}]}}),
            ),
            ("svc", json!({"metadata": {"name": "x"}, "spec": {"type": "ExternalName", "externalName": "a.example"}})),
            ("ns", json!({"metadata": {"name": "x"}})),
            ("secret", json!({"metadata": {"name": "x"}, "stringData": {"a": "b"}})),
            ("endpointslices", json!({"metadata": {"name": "x"}, "addressType": "IPv4", "ports": [{"port": 1}]})),
        ] {
            let object = defaulted(word, object);
            let kind = by_word(word).unwrap();
            let found = crate::check::all(kind.kind, &object);
            assert!(found.problems.is_empty() && found.warnings.is_empty(), "{word}: {found:?}");
            assert!(crate::validate::create(kind, &object).is_empty(), "{word}");
            assert!(crate::validate::update(kind, &object, &object).is_empty(), "{word}");
        }
    }

    #[test]
    fn pull_policies() {
        for (image, policy) in [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("a:1", "IfNotPresent"),
            ("h:5000/a", "Always"),
            ("h:5000/a:1", "IfNotPresent"),
            ("a@sha256:0", "IfNotPresent"),
            ("a:1@sha256:0", "IfNotPresent"),
            ("a:latest@sha256:0", "Always"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        #[test]
        fn no_tree_panics_and_twice_is_once(tree in crate::any_tree()) {
            for kind in crate::kinds::KINDS {
                let mut object = tree.clone();
                apply(kind, &mut object);
                let once = object.clone();
                apply(kind, &mut object);
                prop_assert_eq!(&object, &once);
                let _ = crate::check::strict(kind, &tree);
                let _ = crate::check::status(kind, &tree);
                let _ = crate::validate::create(kind, &tree);
                let _ = crate::validate::update(kind, &tree, &object);
                let _ = crate::check::drop_unknown(kind.kind, &mut object);
            }
        }
    }
}
