//! One table a kind: a change of a good object, and what is said about it.

use super::*;
use crate::kinds::by_word;
use serde_json::json;

fn problems(word: &str, mut object: Value) -> String {
    let kind = by_word(word).unwrap();
    crate::default::apply(kind, &mut object);
    create(kind, &object).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn deployment() -> Value {
    json!({"metadata": {"name": "a"}, "spec": {"selector": {"matchLabels": {"app": "a"}}, "template": {
        "metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}}}})
}

#[test]
fn a_plain_deployment_is_fine() {
    assert_eq!(problems("deploy", deployment()), "");
}

#[test]
fn everything_wrong_is_said_at_once() {
    let mut object = deployment();
    object["metadata"]["name"] = json!("Bad_Name");
    object["spec"]["selector"]["matchLabels"]["app"] = json!("b");
    object["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}});
    object["spec"]["template"]["spec"]["volumes"] = json!([{"name": "data"}]);
    object["spec"]["template"]["spec"]["containers"] = json!([
        {"name": "c", "image": "x", "ports": [{"containerPort": 99999}], "volumeMounts": [{"name": "date", "mountPath": "x"}],
         "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1", "gpu": 1}}, "livenessProbe": {"successThreshold": 2}},
        {"name": "c"}]);
    let text = problems("deploy", object);
    for expected in [
        "metadata.name: `Bad_Name` is not a name",
        "the selector `app=b` does not select",
        "maxUnavailable: cannot be 0",
        "ports[0].containerPort: 99999 is out of range",
        "the pod has no volume `date` (did you mean `data`?)",
        "mountPath: a mount path is absolute",
        "requests.cpu: the request 2 is above the limit 1",
        "limits.gpu: the resource `gpu` is not supported yet",
        "livenessProbe: exactly one of",
        "livenessProbe.successThreshold: must be 1",
        "containers[1].name: two containers are called `c`",
        "containers[1].image: this field is required",
    ] {
        assert!(text.contains(expected), "{expected} is missing in\n{text}");
    }
}

#[test]
fn what_may_not_change() {
    let kind = by_word("deploy").unwrap();
    let (mut old, mut new) = (deployment(), deployment());
    new["spec"]["selector"]["matchLabels"]["b"] = json!("c");
    new["spec"]["template"]["metadata"]["labels"]["b"] = json!("c");
    crate::default::apply(kind, &mut old);
    crate::default::apply(kind, &mut new);
    assert!(update(kind, &old, &new)[0].to_string().starts_with("spec.selector: this field cannot be changed"));
    let kind = by_word("cm").unwrap();
    let old = json!({"metadata": {"name": "a"}, "data": {"x": "1"}, "immutable": true});
    let mut new = old.clone();
    new["data"]["x"] = json!("2");
    assert_eq!(update(kind, &old, &new).len(), 1);
}

fn put(object: &mut Value, path: &str, value: Value) {
    *object.pointer_mut(path).unwrap_or_else(|| panic!("{path} is not there")) = value;
}

/// A pod with one of everything.
fn full_pod() -> Value {
    json!({"metadata": {"name": "p", "labels": {"a": "b"}, "annotations": {}, "finalizers": [], "ownerReferences": []}, "spec": {
        "hostNetwork": false, "hostname": "h", "nodeSelector": {}, "tolerations": [], "hostAliases": [], "dnsPolicy": "ClusterFirst",
        "dnsConfig": {"nameservers": [], "searches": [], "options": []}, "securityContext": {"runAsUser": 1, "supplementalGroups": [1]},
        "terminationGracePeriodSeconds": 30,
        "initContainers": [{"name": "i", "image": "x"}],
        "containers": [{"name": "c", "image": "x", "restartPolicy": null, "ports": [{"containerPort": 80, "name": "web", "hostPort": 0}],
            "env": [{"name": "E", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "envFrom": [{"prefix": "", "configMapRef": {"name": "m"}}],
            "volumeMounts": [{"name": "v", "mountPath": "/v", "subPath": "x"}],
            "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
            "readinessProbe": {"httpGet": {"port": "web", "httpHeaders": []}},
            "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
            "securityContext": {"runAsUser": 1, "allowPrivilegeEscalation": false, "privileged": false, "capabilities": {"add": []}}}],
        "volumes": [{"name": "v", "configMap": {"name": "m", "items": [{"key": "k", "path": "p", "mode": 420}], "defaultMode": 420}}]}})
}

#[test]
fn a_path_in_a_volume_is_said_or_worked_out() {
    let mut pod = full_pod();
    let mount = "/spec/containers/0/volumeMounts/0";
    pod["spec"]["containers"][0]["volumeMounts"][0]["subPathExpr"] = json!("");
    let expression = format!("{mount}/subPathExpr");
    check(
        "pod",
        &pod,
        &[(expression.as_str(), json!("$(E)"), "subPathExpr: subPathExpr and subPath are mutually exclusive")],
    );
    pod["spec"]["containers"][0]["volumeMounts"][0] = json!({"name": "v", "mountPath": "/v", "subPathExpr": "$(E)/x"});
    check(
        "pod",
        &pod,
        &[
            (expression.as_str(), json!("../$(E)"), "subPathExpr: the path is relative"),
            (expression.as_str(), json!("a"), ""),
        ],
    );
}

#[test]
fn files_of_the_pod_itself_and_of_several_sources() {
    let mut pod = full_pod();
    pod["spec"]["volumes"][0] = json!({"name": "v", "projected": {"defaultMode": 420, "sources": [
        {"configMap": {"name": "m", "items": [{"key": "k", "path": "p"}]}, "secret": null},
        {"secret": {"name": "s", "items": [{"key": "k", "path": "q"}]}},
        {"downwardAPI": {"items": [
            {"path": "l", "mode": 420, "fieldRef": {"fieldPath": "metadata.labels"}},
            {"path": "c", "fieldRef": null, "resourceFieldRef": {"containerName": "c", "resource": "limits.cpu"}},
        ]}},
    ]}});
    let at = |field: &str| format!("/spec/volumes/0/projected/sources/{field}");
    let cases: Vec<(String, Value, &str)> = vec![
        (at("0/configMap/name"), json!(""), "sources[0].configMap.name: this field is required"),
        (at("0/secret"), json!({"name": "s"}), "exactly one of `configMap`, `secret`, `downwardAPI`"),
        (at("1/secret/items/0/path"), json!("p"), "conflicting duplicate paths: `p` is given twice"),
        (at("1/secret/items/0/path"), json!("../p"), "items[0].path: the path is relative"),
        (at("2/downwardAPI/items/0/mode"), json!(0o1000), "items[0].mode: 512 is out of range"),
        (at("2/downwardAPI/items/0/fieldRef/fieldPath"), json!("status.podIP"), "`status.podIP` is not a field"),
        (at("2/downwardAPI/items/0/fieldRef/fieldPath"), json!("metadata.annotations['a']"), ""),
        (
            at("2/downwardAPI/items/1/resourceFieldRef/containerName"),
            json!(""),
            "containerName: this field is required",
        ),
        (at("2/downwardAPI/items/1/resourceFieldRef/resource"), json!("limits.x"), "is neither limits nor requests"),
        (at("2/downwardAPI/items/1/fieldRef"), json!({"fieldPath": "metadata.name"}), "exactly one of `fieldRef`"),
        ("/spec/volumes/0/projected/defaultMode".into(), json!(0o1000), "projected.defaultMode: 512 is out of range"),
    ];
    let cases: Vec<(&str, Value, &str)> =
        cases.iter().map(|(path, value, words)| (path.as_str(), value.clone(), *words)).collect();
    check("pod", &pod, &cases);
}

/// Each change of a good object, and what is said about it: `PATH: WORDS`.
fn check(word: &str, good: &Value, cases: &[(&str, Value, &str)]) {
    assert_eq!(problems(word, good.clone()), "");
    for (path, value, expected) in cases {
        let mut object = good.clone();
        put(&mut object, path, value.clone());
        let found = problems(word, object);
        if expected.is_empty() {
            assert_eq!(found, "", "{path} = {value}");
        } else {
            assert!(
                found.lines().any(|line| line.contains(expected)),
                "{path} = {value}: {found:?} lacks {expected:?}"
            );
        }
    }
}

#[test]
#[allow(clippy::too_many_lines)] // one table
fn pods() {
    let container = "/spec/containers/0";
    let at = |field: &str| format!("{container}/{field}");
    let cases: Vec<(String, Value, &str)> = vec![
        ("/metadata/name".into(), json!(""), "metadata.name: name or generateName is required"),
        ("/metadata/name".into(), json!("a.b"), ""),
        ("/metadata/labels".into(), json!({"-x": "y"}), "metadata.labels.-x: `-x` is not a label key"),
        ("/metadata/labels".into(), json!({"x": "a b"}), "metadata.labels.x: `a b` is not a label value"),
        ("/metadata/annotations".into(), json!({"Example.com/x": "y"}), ""),
        ("/metadata/annotations".into(), json!({"x": "y".repeat(300_000)}), "the annotations have 300001 bytes"),
        ("/metadata/finalizers".into(), json!(["x"]), "metadata.finalizers[0]: `x` has no prefix"),
        ("/metadata/finalizers".into(), json!(["a.b/x", "orphan"]), ""),
        (
            "/metadata/ownerReferences".into(),
            json!([{"name": "x", "kind": "y", "uid": "z"}]),
            "ownerReferences[0].apiVersion: this field is required",
        ),
        ("/spec/containers".into(), json!([]), "spec.containers: this field is required"),
        ("/spec/containers".into(), json!([{"image": "x"}]), "spec.containers[0].name: this field is required"),
        ("/spec/hostname".into(), json!("a.b"), "spec.hostname: `a.b` is not a DNS label"),
        ("/spec/dnsPolicy".into(), json!("None"), "spec.dnsConfig.nameservers: with `dnsPolicy: None`"),
        ("/spec/dnsConfig/nameservers".into(), json!(["dns"]), "nameservers[0]: `dns` is not an IP address"),
        ("/spec/tolerations".into(), json!([{"operator": "Exists"}]), ""),
        ("/spec/tolerations".into(), json!([{"value": "x"}]), "spec.tolerations[0].operator: without a key"),
        (
            "/spec/tolerations".into(),
            json!([{"key": "a", "operator": "Exists", "value": "x"}]),
            "`Exists` takes no value",
        ),
        ("/spec/tolerations".into(), json!([{"key": "a", "tolerationSeconds": 5}]), "goes with the effect NoExecute"),
        (
            "/spec/hostAliases".into(),
            json!([{"ip": "x", "hostnames": ["a"]}]),
            "hostAliases[0].ip: `x` is not an IP address",
        ),
        ("/spec/securityContext/runAsUser".into(), json!(-1), "runAsUser: -1 is out of range"),
        ("/spec/securityContext/supplementalGroups".into(), json!([1_i64 << 40]), "supplementalGroups[0]: "),
        ("/spec/terminationGracePeriodSeconds".into(), json!(-1), "out of range"),
        ("/spec/initContainers/0/name".into(), json!("c"), "spec.containers[0].name: two containers are called `c`"),
        (
            "/spec/initContainers/0".into(),
            json!({"name": "i", "image": "x", "readinessProbe": {"exec": {"command": ["a"]}}}),
            "an init container has none",
        ),
        (
            "/spec/initContainers/0".into(),
            json!({"name": "i", "image": "x", "restartPolicy": "Always", "readinessProbe": {"exec": {"command": ["a"]}}}),
            "",
        ),
        (at("restartPolicy"), json!("Always"), "only an init container"),
        (at("image"), json!("a b"), "an image's name has no space"),
        (at("ports/0/name"), json!("a--b"), "`a--b` is not a port name"),
        (at("ports/0/hostPort"), json!(8080), ""),
        (at("ports/0/hostPort"), json!(70_000), "ports[0].hostPort: 70000 is out of range"),
        (at("ports/0/hostPort"), json!(6443), "ports[0].hostPort: 6443 cannot be used: it is the port of the API"),
        (at("ports/0"), json!({"containerPort": 80, "hostPort": 80, "hostIP": "192.0.2.1"}), ""),
        (
            at("ports/0"),
            json!({"containerPort": 80, "hostPort": 80, "hostIP": "127.0.0.1"}),
            "hostIP: addresses of the loopback",
        ),
        (
            at("ports/0"),
            json!({"containerPort": 80, "hostPort": 80, "hostIP": "here"}),
            "hostIP: `here` is not an IPv4 address",
        ),
        (
            at("ports"),
            json!([{"containerPort": 80, "hostPort": 80}, {"containerPort": 81, "hostPort": 80}]),
            "spec.containers[0].ports[1].hostPort: 80 is given twice for this protocol",
        ),
        (
            at("ports"),
            json!([{"containerPort": 80, "hostPort": 80}, {"containerPort": 80, "hostPort": 80, "protocol": "UDP"}]),
            "",
        ),
        (at("env/0/name"), json!("A=B"), "env[0].name: `A=B` is not a variable's name"),
        (at("env/0/valueFrom"), json!({}), "exactly one of `fieldRef`"),
        (
            at("env/0/valueFrom"),
            json!({"fieldRef": {"fieldPath": "spec.color"}}),
            "`spec.color` is not a field to take",
        ),
        (at("env/0/valueFrom"), json!({"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}), ""),
        (
            at("env/0/valueFrom"),
            json!({"resourceFieldRef": {"resource": "limits.gpu"}}),
            "`limits.gpu` is neither limits",
        ),
        (at("env/0/valueFrom"), json!({"resourceFieldRef": {"resource": "limits.cpu"}}), ""),
        (at("env/0/valueFrom"), json!({"secretKeyRef": {"name": "s"}}), "secretKeyRef.key: this field is required"),
        (
            at("env/0"),
            json!({"name": "E", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}),
            "not both",
        ),
        (at("envFrom/0"), json!({"prefix": "X"}), "exactly one of `configMapRef`, `secretRef`"),
        (at("volumeMounts/0/mountPath"), json!("v"), "a mount path is absolute"),
        (at("volumeMounts/0/mountPath"), json!("/"), "is not `/`"),
        (at("volumeMounts/0/subPath"), json!("../x"), "the path is relative, without `..`"),
        (at("volumeMounts/0/subPath"), json!("..x"), "does not begin with `..`"),
        (at("resources/requests/cpu"), json!("1001m"), "the request 1001m is above the limit 1"),
        (at("resources/requests/cpu"), json!("1000m"), ""),
        (at("resources/limits/cpu"), json!("-1"), "an amount is not negative"),
        (at("readinessProbe"), json!({"httpGet": {"port": 0}}), "httpGet.port: 0 is out of range"),
        (at("readinessProbe"), json!({"httpGet": {"port": "Web"}}), "`Web` is not a port name"),
        (at("readinessProbe"), json!({"httpGet": {"port": 1}, "exec": {"command": ["x"]}}), "exactly one of"),
        (
            at("readinessProbe"),
            json!({"httpGet": {"port": 1, "httpHeaders": [{"name": "a b", "value": "x"}]}}),
            "`a b` is not a header's name",
        ),
        (
            at("readinessProbe"),
            json!({"httpGet": {"port": 1, "httpHeaders": [{"name": "a", "value": "x\r\ny"}]}}),
            "is one line",
        ),
        (at("readinessProbe"), json!({"exec": {"command": []}}), "exec.command: this field is required"),
        (
            at("readinessProbe"),
            json!({"tcpSocket": {"port": 1}, "terminationGracePeriodSeconds": 3}),
            "a readiness probe ends nothing",
        ),
        (at("lifecycle/preStop/sleep/seconds"), json!(31), "31 is out of range: 0 to 30"),
        (at("securityContext/privileged"), json!(true), "cannot be false for a container that is privileged"),
        (at("securityContext/capabilities/add"), json!(["CAP_SYS_ADMIN"]), "has SYS_ADMIN"),
        ("/spec/volumes/0/configMap/items/0/path".into(), json!("/x"), "the path is relative"),
        ("/spec/volumes/0/configMap/items/0/mode".into(), json!(644), "644 is out of range"),
        ("/spec/volumes/0".into(), json!({"name": "v", "hostPath": {"path": "x/../y"}}), "a host path is absolute"),
        (
            "/spec/volumes/0".into(),
            json!({"name": "v", "emptyDir": {}, "secret": {"secretName": "s"}}),
            "a volume has one source",
        ),
        ("/spec/volumes/0".into(), json!({"name": "v", "emptyDir": {"sizeLimit": "-1"}}), "a size is not negative"),
        ("/spec/volumes".into(), json!([{"name": "v"}, {"name": "v"}]), "two volumes are called `v`"),
    ];
    let cases: Vec<(&str, Value, &str)> =
        cases.iter().map(|(path, value, said)| (path.as_str(), value.clone(), *said)).collect();
    check("pod", &full_pod(), &cases);
    let mut host = full_pod();
    host["spec"]["hostNetwork"] = json!(true);
    check("pod", &host, &[("/spec/containers/0/ports/0/hostPort", json!(81), "the same as containerPort")]);
}

#[test]
#[allow(clippy::too_many_lines)] // one table
fn services_secrets_nodes_and_the_rest() {
    let service = json!({"metadata": {"name": "s"}, "spec": {"clusterIP": "", "selector": {"a": "b"}, "ports": [{"port": 80, "name": "web", "targetPort": "http"}]}});
    check(
        "svc",
        &service,
        &[
            ("/metadata/name", json!("1s"), "`1s` is not a name"),
            ("/metadata/name", json!("a.b"), "`a.b` is not a name"),
            ("/spec/clusterIP", json!("10.43.0.300"), "neither an IPv4 address nor `None`"),
            ("/spec/clusterIP", json!("None"), ""),
            ("/spec/ports", json!([]), "spec.ports: this field is required"),
            ("/spec/ports", json!([{"port": 1}, {"port": 2, "name": "b"}]), "spec.ports[0].name: with several ports"),
            (
                "/spec/ports",
                json!([{"port": 1, "name": "a"}, {"port": 1, "name": "b"}]),
                "is given twice for this protocol",
            ),
            ("/spec/ports", json!([{"port": 1, "name": "a"}, {"port": 1, "name": "b", "protocol": "UDP"}]), ""),
            ("/spec/ports", json!([{"port": 1, "name": "a"}, {"port": 2, "name": "a"}]), "two ports are called `a`"),
            ("/spec/ports/0/targetPort", json!(70000), "70000 is out of range"),
            ("/spec/ports/0/targetPort", json!("Http"), "`Http` is not a port name"),
            ("/spec/selector", json!({"a": "b c"}), "is not a label value"),
        ],
    );
    exposed_services();
    let secret = json!({"metadata": {"name": "s"}, "type": "Opaque", "stringData": {"tls.crt": "a"}});
    check(
        "secret",
        &secret,
        &[
            ("/type", json!("kubernetes.io/tls"), "has the key `tls.key`"),
            ("/type", json!("kubernetes.io/basic-auth"), "has the key `username` or `password`"),
            ("/type", json!("example.com/own"), ""),
            ("/stringData", json!({"a/b": "x"}), "`a/b` is not a key"),
            ("/stringData", json!({"a": "x".repeat(1_100_000)}), "at most 1048576"),
        ],
    );
    let map = json!({"metadata": {"name": "m"}, "data": {"a": "x"}, "binaryData": {"b": "eA=="}});
    check("cm", &map, &[("/binaryData", json!({"a": "eA=="}), "`a` is in `data` and in `binaryData`")]);
    let node = json!({"metadata": {"name": "n", "namespace": ""}, "spec": {"taints": []}});
    check(
        "node",
        &node,
        &[
            ("/spec/taints", json!([{"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoExecute"}]), ""),
            (
                "/spec/taints",
                json!([{"key": "a", "effect": "NoExecute"}, {"key": "a", "effect": "NoExecute"}]),
                "two taints",
            ),
            ("/spec/taints", json!([{"key": "a"}]), "effect: this field is required"),
            ("/metadata/namespace", json!("x"), "a Node belongs to no namespace"),
        ],
    );
    let slice = json!({"metadata": {"name": "e"}, "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 1}]});
    check(
        "endpointslices",
        &slice,
        &[
            ("/endpoints/0/addresses", json!(["::1"]), "`::1` is not an IPv4 address"),
            ("/ports", json!([{"port": 1}, {"port": 2}]), "two ports are called ``"),
        ],
    );
    let mut deploy = deployment();
    deploy["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}});
    deploy["spec"]["progressDeadlineSeconds"] = json!(600);
    check(
        "deploy",
        &deploy,
        &[
            ("/spec/selector", json!({}), "an empty selector would select every pod"),
            (
                "/spec/selector",
                json!({"matchExpressions": [{"key": "app", "operator": "In"}]}),
                "`In` and `NotIn` need values",
            ),
            ("/spec/selector", json!({"matchExpressions": [{"key": "app", "operator": "Exists"}]}), ""),
            (
                "/spec/strategy/rollingUpdate",
                json!({"maxSurge": "0%", "maxUnavailable": "0%"}),
                "no pod could ever be replaced",
            ),
            ("/spec/strategy/rollingUpdate/maxUnavailable", json!("101%"), "101% is more than there is"),
            ("/spec/strategy/rollingUpdate/maxSurge", json!("some"), "a percentage such as `25%`"),
            ("/spec/strategy", json!({"type": "Recreate", "rollingUpdate": {}}), "goes with the type RollingUpdate"),
            ("/spec/progressDeadlineSeconds", json!(5), ""),
            (
                "/spec/template",
                json!({"metadata": {"labels": {"app": "a"}}, "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}}),
                "always restart",
            ),
            (
                "/spec/template",
                json!({"metadata": {"labels": {"app": "a"}}}),
                "spec.template.spec: this field is required",
            ),
        ],
    );
    assert!(problems("deploy", json!({"metadata": {"name": "a"}})).contains("spec.selector: this field is required"));
}

fn exposed_services() {
    let service = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIP": "", "externalName": "", "externalIPs": [],
        "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}, "internalTrafficPolicy": "Local",
        "externalTrafficPolicy": "Local", "loadBalancerClass": null, "loadBalancerSourceRanges": [], "allocateLoadBalancerNodePorts": null,
        "ports": [{"port": 80, "name": "a", "nodePort": 30080}, {"port": 81, "name": "b", "protocol": "UDP", "nodePort": 30080}]}});
    check(
        "svc",
        &service,
        &[
            ("/spec/clusterIP", json!("None"), "spec.clusterIPs[0]: may not be set to 'None' for NodePort services"),
            ("/spec/type", json!("ClusterIP"), "spec.ports[0].nodePort: may not be used when `type` is 'ClusterIP'"),
            (
                "/spec/type",
                json!("ClusterIP"),
                "externalTrafficPolicy: may only be set for externally-accessible services",
            ),
            ("/spec/type", json!("LoadBalancer"), ""),
            ("/spec/type", json!("ExternalName"), "spec.externalName: this field is required"),
            ("/spec/type", json!("ExternalName"), "spec.sessionAffinity: has no effect on an ExternalName Service"),
            ("/spec/ports/1/protocol", json!("TCP"), "spec.ports[1].nodePort: 30080 is given twice"),
            ("/spec/externalName", json!("a.example"), "externalName: may only be used when `type` is 'ExternalName'"),
            (
                "/spec/loadBalancerClass",
                json!("a/b"),
                "loadBalancerClass: may only be used when `type` is 'LoadBalancer'",
            ),
            ("/spec/allocateLoadBalancerNodePorts", json!(false), "may only be used when `type` is 'LoadBalancer'"),
            (
                "/spec/loadBalancerSourceRanges",
                json!(["192.0.2.0/24"]),
                "loadBalancerSourceRanges: may only be used when",
            ),
            ("/spec/loadBalancerSourceRanges", json!(["192.0.2.0/33"]), "Ranges[0]: `192.0.2.0/33` is not a block"),
            ("/spec/externalIPs", json!(["192.0.2.1"]), ""),
            (
                "/spec/externalIPs",
                json!(["127.0.0.1"]),
                "spec.externalIPs[0]: 127.0.0.1 may not be in the loopback range",
            ),
            ("/spec/externalIPs", json!(["::1"]), "spec.externalIPs[0]: `::1` is not an IPv4 address"),
            (
                "/spec/sessionAffinity",
                json!("None"),
                "sessionAffinityConfig: must not be set when session affinity is None",
            ),
            ("/spec/sessionAffinityConfig/clientIP/timeoutSeconds", json!(86_401), "86401 is out of range: 1 to 86400"),
        ],
    );
    let outer = json!({"metadata": {"name": "s"}, "spec": {"externalIPs": ["192.0.2.1"], "clusterIP": "", "ports": [{"port": 80}]}});
    check(
        "svc",
        &outer,
        &[
            ("/spec/ports/0/port", json!(6443), "6443 cannot be used with `externalIPs`: it is the port of the API"),
            ("/spec/clusterIP", json!("None"), "spec.externalIPs: has no effect on a headless Service"),
        ],
    );
    let alias = json!({"metadata": {"name": "s"}, "spec": {"type": "ExternalName", "externalName": "db.example.com", "clusterIP": ""}});
    check(
        "svc",
        &alias,
        &[
            ("/spec/externalName", json!("db.example.com."), ""),
            ("/spec/externalName", json!("db_1"), "`db_1` is not a DNS name"),
            ("/spec/clusterIP", json!("None"), "spec.clusterIP: may not be set for ExternalName services"),
        ],
    );
}

#[test]
fn a_service_keeps_its_address_and_its_class() {
    let kind = by_word("svc").unwrap();
    let changed = |before: Value, after: Value| {
        let mut objects = [before, after].map(|spec| {
            let mut spec = spec;
            if spec["type"] != "ExternalName" {
                spec["ports"] = json!([{"port": 80}]);
            }
            json!({"metadata": {"name": "s"}, "spec": spec})
        });
        objects.iter_mut().for_each(|object| crate::default::apply(kind, object));
        update(kind, &objects[0], &objects[1]).into_iter().map(|problem| problem.path).collect::<Vec<_>>()
    };
    let (here, none) = (json!({"clusterIP": "10.43.0.9"}), json!({"clusterIP": "None"}));
    let alias = json!({"type": "ExternalName", "externalName": "a.example"});
    assert_eq!(changed(here.clone(), json!({"clusterIP": "10.43.0.8"})), ["spec.clusterIP"]);
    assert_eq!(changed(here.clone(), none.clone()), ["spec.clusterIP"]);
    assert_eq!(changed(here.clone(), json!({"clusterIP": "10.43.0.9", "type": "NodePort"})), Vec::<String>::new());
    assert_eq!(changed(here, alias.clone()), Vec::<String>::new());
    assert_eq!(changed(alias, none), Vec::<String>::new());
    let class = |class: &str| json!({"type": "LoadBalancer", "loadBalancerClass": class});
    assert_eq!(changed(class("a/b"), class("a/c")), ["spec.loadBalancerClass"]);
    assert_eq!(changed(json!({"clusterIP": ""}), class("a/c")), Vec::<String>::new());
}

#[test]
fn sets_have_rules_of_their_own() {
    let rolling = "/spec/updateStrategy/rollingUpdate";
    let mut sts = deployment();
    sts["spec"]["serviceName"] = json!("db");
    sts["spec"]["ordinals"] = json!({"start": 1});
    sts["spec"]["updateStrategy"] = json!({"rollingUpdate": {"partition": 1, "maxUnavailable": 1}});
    sts["spec"]["template"]["metadata"]["annotations"] = json!({"coracle.dev/fenced": "true"});
    check(
        "sts",
        &sts,
        &[
            ("/metadata/name", json!("a".repeat(52)), ""),
            ("/metadata/name", json!("a".repeat(53)), "53 characters are too many"),
            ("/metadata/name", json!("a.b"), "a name that begins host names"),
            ("/spec/serviceName", json!("1s"), "spec.serviceName: `1s` is not a name"),
            ("/spec/ordinals/start", json!(-1), "-1 is out of range"),
            (&format!("{rolling}/partition"), json!(-1), "-1 is out of range"),
            (&format!("{rolling}/maxUnavailable"), json!(0), "no pod could ever be replaced"),
            (&format!("{rolling}/maxUnavailable"), json!("x"), "a percentage such as `25%`"),
            (
                "/spec/updateStrategy",
                json!({"type": "OnDelete", "rollingUpdate": {}}),
                "goes with the type RollingUpdate",
            ),
            ("/spec/selector", json!({"matchLabels": {"app": "b"}}), "does not select the template's pods"),
        ],
    );
    let mut ds = deployment();
    ds["spec"]["updateStrategy"] = json!({"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}});
    ds["spec"]["template"]["metadata"]["annotations"] = json!({});
    check(
        "ds",
        &ds,
        &[
            (rolling, json!({"maxUnavailable": 0}), "cannot be 0 when `maxSurge` is 0"),
            (rolling, json!({"maxSurge": 1}), "may not be set when `maxUnavailable` is not 0"),
            (rolling, json!({"maxUnavailable": "10%"}), ""),
            ("/spec/template/metadata/annotations", json!({"coracle.dev/fenced": "true"}), "has no other place to go"),
        ],
    );
    let rc = json!({"metadata": {"name": "r"}, "spec": {"selector": {"app": "a"}, "template": {
        "metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}}}});
    check(
        "rc",
        &rc,
        &[
            ("/spec/selector", json!({"app": "b"}), "does not select the template's pods"),
            ("/spec/selector", json!({}), ""),
            ("/spec/template/metadata/labels", json!({}), "does not select the template's pods"),
        ],
    );
    let revision = json!({"metadata": {"name": "r"}, "data": {"spec": {}}, "revision": 1});
    check("controllerrevisions", &revision, &[("/data", json!("(protobuf)"), "a revision holds an object")]);
}

#[test]
fn of_a_set_little_may_change() {
    for (word, path, value, field) in [
        ("sts", "/spec/serviceName", json!("other"), Some("spec.serviceName")),
        ("sts", "/spec/podManagementPolicy", json!("Parallel"), Some("spec.podManagementPolicy")),
        ("sts", "/spec/replicas", json!(7), None),
        ("sts", "/spec/updateStrategy/rollingUpdate/partition", json!(7), None),
        ("ds", "/spec/template/metadata/annotations", json!({"a": "b"}), None),
    ] {
        let kind = by_word(word).unwrap();
        let mut old = deployment();
        old["spec"]["template"]["metadata"]["annotations"] = json!({});
        if word == "sts" {
            old["spec"]["serviceName"] = json!("db");
        }
        crate::default::apply(kind, &mut old);
        let mut new = old.clone();
        put(&mut new, path, value);
        let found: Vec<String> = update(kind, &old, &new).into_iter().map(|problem| problem.path).collect();
        assert_eq!(found, field.into_iter().collect::<Vec<_>>(), "{word} {path}");
    }
}

#[test]
fn what_a_pod_requires_of_its_node() {
    let mut pod = full_pod();
    let terms = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let exists = json!([{"matchExpressions": [{"key": "a", "operator": "Exists"}]}]);
    pod["spec"]["affinity"] =
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": exists}}});
    let by_label = |operator: &str, values: Value| json!([{"matchExpressions": [{"key": "a", "operator": operator, "values": values}]}]);
    let by_field =
        |key: &str, values: Value| json!([{"matchFields": [{"key": key, "operator": "In", "values": values}]}]);
    check(
        "pod",
        &pod,
        &[
            (terms, json!([]), "nodeSelectorTerms: this field is required"),
            (terms, by_label("In", json!([])), "`In` and `NotIn` need values"),
            (terms, by_label("In", json!(["b"])), ""),
            (terms, by_label("Exists", json!(["b"])), "take no values"),
            (terms, by_label("Gt", json!(["b"])), "take one whole number"),
            (terms, by_label("Lt", json!(["7"])), ""),
            (terms, by_label("In", json!(["b c"])), "is not a label value"),
            (terms, by_field("metadata.name", json!(["n"])), ""),
            (terms, by_field("metadata.name", json!(["n", "m"])), "with one value"),
            (terms, by_field("metadata.labels", json!(["n"])), "`metadata.labels` is no field of a node"),
        ],
    );
}

fn defaulted(pod: &Value) -> Value {
    let mut pod = pod.clone();
    crate::default::apply(by_word("pod").unwrap(), &mut pod);
    pod
}

#[test]
fn pods_change_little() {
    let kind = by_word("pod").unwrap();
    let mut old = full_pod();
    old["spec"]["tolerations"] = json!([{"key": "a", "operator": "Exists"}]);
    crate::default::apply(kind, &mut old);
    for (path, value, field) in [
        ("/spec/containers/0/image", json!("y"), None),
        ("/spec/tolerations", json!([{"key": "b", "operator": "Exists"}, {"key": "a", "operator": "Exists"}]), None),
        ("/spec/tolerations", json!([]), Some("spec.tolerations")),
        ("/spec/hostname", json!("other"), Some("spec.hostname")),
        ("/spec/containers/0/env/0/name", json!("F"), Some("spec.containers")),
        ("/spec/terminationGracePeriodSeconds", json!(31), Some("spec.terminationGracePeriodSeconds")),
        ("/metadata/name", json!("q"), Some("metadata.name")),
    ] {
        let mut new = old.clone();
        put(&mut new, path, value.clone());
        let found: Vec<String> = update(kind, &old, &new).into_iter().map(|problem| problem.path).collect();
        assert_eq!(found, field.into_iter().collect::<Vec<_>>(), "{path} = {value}");
    }
    let plain = full_pod();
    assert!(update(kind, &plain, &defaulted(&plain)).is_empty(), "defaults are no change");
    let mut new = old.clone();
    new["spec"]["activeDeadlineSeconds"] = json!(10);
    assert!(update(kind, &old, &new).is_empty());
    assert_eq!(update(kind, &new, &old)[0].path, "spec.activeDeadlineSeconds");
    let mut deleting = old.clone();
    deleting["metadata"]["deletionTimestamp"] = json!("2026-11-26T12:00:00Z");
    let mut late = deleting.clone();
    late["metadata"]["finalizers"] = json!(["a.b/c"]);
    assert_eq!(update(kind, &deleting, &late)[0].path, "metadata.finalizers");
}

#[test]
fn an_answer_is_bounded() {
    let mut object = deployment();
    object["spec"]["template"]["spec"]["containers"] = json!(vec![json!({}); 10_000]);
    let found = create(by_word("deploy").unwrap(), &object);
    assert_eq!(found.len(), 101);
    assert!(found[100].message.starts_with("and "), "{}", found[100]);
}
