//! Real kubectl against the door, in the versions that are found: what its users see.
#![allow(clippy::print_stdout, reason = "says which kubectl was used, or that none was found")]

mod support;

use coracle_api::Memory as _;
use coracle_cluster_tests::kubectl::binaries;
use serde_json::{Value, json};
use support::kubectl::Kubectl;
use support::{World, until};

/// Runs a story with each kubectl, each in a world of its own.
async fn with_each<F: AsyncFn(&World, &Kubectl)>(story: F) {
    let found = binaries();
    if found.is_empty() {
        println!("SKIP: no kubectl was found: KUBECTL_DIR is not set and none is on the path");
        return;
    }
    for (name, binary) in chosen(found) {
        println!("with {name}");
        let world = World::open().await;
        let kubectl = Kubectl::new(&world, &name, &binary);
        story(&world, &kubectl).await;
    }
}

/// The oldest, the newest and the one of our own version; `KUBECTL_ALL` takes them all.
fn chosen<T>(mut found: Vec<(String, T)>) -> Vec<(String, T)> {
    let last = found.len() - 1;
    let all = std::env::var_os("KUBECTL_ALL").is_some();
    let mut index = 0;
    found.retain(|(name, _)| {
        let keep = all || index == 0 || index == last || name.ends_with(".1.31");
        index += 1;
        keep
    });
    found
}

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - name: main
        image: example/web:1
        ports: [{containerPort: 8080}]
        env: [{name: COLOR, value: red}]
        resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {memory: 128Mi}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {color: red, size: '3'}
---
apiVersion: v1
kind: Secret
metadata: {name: keys}
stringData: {token: abc}
";

const CONFIG: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}";

fn pod(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
        "spec": {
            "nodeName": node, "restartPolicy": "Always", "terminationGracePeriodSeconds": 30,
            "containers": [{"name": "main", "image": "example/web:1", "imagePullPolicy": "IfNotPresent", "resources": {}}],
        },
        "status": {
            "phase": "Running", "podIP": "10.42.0.7", "podIPs": [{"ip": "10.42.0.7"}], "hostIP": "192.0.2.1", "startTime": "2026-11-26T12:00:00Z",
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{
                "name": "main", "ready": true, "started": true, "restartCount": 2, "image": "example/web:1", "imageID": "",
                "state": {"running": {"startedAt": "2026-11-26T12:00:00Z"}}, "lastState": {},
            }],
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn applying_a_file_twice_changes_nothing_and_a_change_is_patched() {
    with_each(async |world, kubectl| {
        let said = kubectl.ok_with(&["apply", "-f", "-"], WEB).await;
        for line in
            ["deployment.apps/web created", "service/web created", "configmap/settings created", "secret/keys created"]
        {
            assert!(said.contains(line), "{line} is missing in {said}");
        }
        let revision = world.cluster.tree("deployments.apps", "default", "web").unwrap()["metadata"].clone();
        let said = kubectl.ok_with(&["apply", "-f", "-"], WEB).await;
        for line in ["deployment.apps/web unchanged", "service/web unchanged", "configmap/settings unchanged"] {
            assert!(said.contains(line), "{line} is missing in {said}");
        }
        // Of a Secret kubectl compares what it sent: `stringData` is never stored, so it patches each time, to no effect.
        assert_eq!(world.cluster.tree("deployments.apps", "default", "web").unwrap()["metadata"], revision);

        let changed = WEB.replace("web:1", "web:2").replace("replicas: 2", "replicas: 5").replace("color: red, ", "");
        let said = kubectl.ok_with(&["apply", "-f", "-"], &changed).await;
        for line in ["deployment.apps/web configured", "service/web unchanged", "configmap/settings configured"] {
            assert!(said.contains(line), "{line} is missing in {said}");
        }
        let web = world.cluster.tree("deployments.apps", "default", "web").unwrap();
        assert_eq!(web["spec"]["replicas"], 5);
        assert_eq!(web["spec"]["template"]["spec"]["containers"][0]["image"], "example/web:2");
        assert_eq!(web["metadata"]["generation"], 2);
        assert_eq!(world.cluster.tree("configmaps", "default", "settings").unwrap()["data"], json!({"size": "3"}));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dry_runs_and_diffs_change_nothing() {
    with_each(async |world, kubectl| {
        let said = kubectl.ok_with(&["apply", "--dry-run=server", "-f", "-"], WEB).await;
        assert!(said.contains("deployment.apps/web created (server dry run)"), "{said}");
        assert!(world.cluster.tree("deployments.apps", "default", "web").is_none());
        kubectl.ok_with(&["apply", "-f", "-"], WEB).await;
        let before = world.cluster.tree("deployments.apps", "default", "web").unwrap();

        let same = kubectl.feed(&["diff", "-f", "-"], &WEB[..WEB.rfind("---").unwrap()]).await;
        assert!(same.ok && same.out.is_empty(), "a file just applied shows a difference: {}", same.all());
        let changed = WEB.replace("web:1", "web:2");
        let differs = kubectl.feed(&["diff", "-f", "-"], &changed[..changed.rfind("---").unwrap()]).await;
        assert!(!differs.ok && differs.out.contains("+        image: example/web:2"), "{}", differs.all());
        kubectl.ok_with(&["apply", "--dry-run=server", "-f", "-"], &changed).await;
        kubectl.ok(&["delete", "deploy", "web", "--dry-run=server"]).await;
        kubectl.ok(&["scale", "deploy/web", "--replicas=9", "--dry-run=server"]).await;
        assert_eq!(world.cluster.tree("deployments.apps", "default", "web").unwrap(), before);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_named_with_a_hint() {
    with_each(async |world, kubectl| {
        let typos = WEB.replace("replicas: 2", "replcias: 2").replace("containerPort", "containerport");
        let said = kubectl.feed(&["apply", "-f", "-"], &typos).await;
        assert!(!said.ok);
        for words in ["spec.replcias", "did you mean `replicas`?", "containerport", "did you mean `containerPort`?"] {
            assert!(said.err.contains(words), "{words} is missing in {}", said.err);
        }
        let said = kubectl
            .feed(&["apply", "-f", "-"], &WEB.replace("matchLabels: {app: web}", "matchLabels: {app: wab}"))
            .await;
        assert!(!said.ok && said.err.contains("is invalid"), "{}", said.err);
        // Older ones know `--validate` as a yes or no.
        if kubectl.minor < 25 {
            kubectl.ok_with(&["apply", "-f", "-"], WEB).await;
        } else {
            let said = kubectl
                .feed(&["apply", "--validate=ignore", "-f", "-"], &typos.replace("containerport", "containerPort"))
                .await;
            assert!(said.ok, "{}", said.err);
            let web = world.cluster.tree("deployments.apps", "default", "web").unwrap();
            assert!(web["spec"].get("replcias").is_none() && web["spec"]["replicas"] == 1);
            let said = kubectl
                .feed(&["apply", "--validate=warn", "-f", "-"], &WEB.replace("replicas: 2", "replcias: 3"))
                .await;
            assert!(said.ok && said.err.contains("Warning:") && said.err.contains("spec.replcias"), "{}", said.all());
        }
        let said = kubectl.run(&["get", "deploy", "none"]).await;
        assert!(said.err.contains("Error from server (NotFound): deployments.apps \"none\" not found"), "{}", said.err);
        let said = kubectl.feed(&["create", "-n", "nowhere", "-f", "-"], CONFIG).await;
        assert!(said.err.contains("namespaces \"nowhere\" not found"), "{}", said.err);
        let said = kubectl
            .feed(
                &["create", "-f", "-"],
                "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {ports: [{port: 1}]}",
            )
            .await;
        assert!(
            said.err.contains("(AlreadyExists): ") && said.err.contains("services \"web\" already exists"),
            "{}",
            said.err
        );
        let said = kubectl.feed(&["apply", "--server-side", "-f", "-"], CONFIG).await;
        assert!(!said.ok && said.err.contains("server-side apply is not supported yet"), "{}", said.err);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_listed_in_columns() {
    with_each(async |world, kubectl| {
        kubectl.ok_with(&["apply", "-f", "-"], WEB).await;
        world.cluster.put(pod("web-1", "n1"));
        world.cluster.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "192.0.2.1"}],
                "nodeInfo": {"kubeletVersion": "v1.31.0", "osImage": "Linux", "kernelVersion": "6.1", "containerRuntimeVersion": "coracle://1"},
            },
        }));
        world.cluster.put(json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "web-1.1", "namespace": "default"},
            "involvedObject": {"kind": "Pod", "name": "web-1", "namespace": "default"},
            "type": "Normal", "reason": "Started", "message": "Started container main", "count": 1,
            "source": {"component": "kubelet"}, "firstTimestamp": "2026-11-26T12:00:00Z", "lastTimestamp": "2026-11-26T12:00:00Z",
        }));
        for (what, words) in [
            ("pods", &["NAME", "READY", "STATUS", "RESTARTS", "AGE", "web-1", "1/1", "Running"][..]),
            ("deploy", &["UP-TO-DATE", "AVAILABLE", "0/2"]),
            ("svc", &["CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "80/TCP", "10.43."]),
            ("nodes", &["STATUS", "ROLES", "VERSION", "Ready", "v1.31.0"]),
            ("cm", &["DATA", "settings", "2"]),
            ("secrets", &["TYPE", "Opaque", "1"]),
            ("events", &["LAST SEEN", "REASON", "Started", "pod/web-1", "Started container main"]),
            ("ns", &["default", "Active"]),
            ("sa", &[]),
            ("rs", &[]),
            ("endpointslices", &[]),
            ("all", &["pod/web-1", "service/web", "deployment.apps/web"]),
        ] {
            let said = kubectl.ok(&["get", what]).await;
            for word in words {
                assert!(said.contains(word), "{}: get {what}: {word} is missing in\n{said}", kubectl.name);
            }
        }
        let wide = kubectl.ok(&["get", "pods", "-o", "wide"]).await;
        assert!(["10.42.0.7", "n1", "NOMINATED NODE", "READINESS GATES"].iter().all(|word| wide.contains(word)), "{wide}");
        let wide = kubectl.ok(&["get", "deploy", "-o", "wide"]).await;
        assert!(["CONTAINERS", "IMAGES", "example/web:1", "app=web"].iter().all(|word| wide.contains(word)), "{wide}");
        let yaml = kubectl.ok(&["get", "deploy", "web", "-o", "yaml"]).await;
        assert!(yaml.contains("image: example/web:1") && yaml.contains("kind: Deployment"), "{yaml}");
        assert_eq!(kubectl.ok(&["get", "pods", "-A", "-o", "name"]).await, "pod/web-1\n");
        assert_eq!(kubectl.ok(&["get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}"]).await, "n1");
        assert_eq!(kubectl.ok(&["get", "pods", "-o", "custom-columns=N:.metadata.name", "--no-headers"]).await, "web-1\n");
        assert_eq!(kubectl.ok(&["get", "pods", "-l", "app=web,!x", "-o", "name"]).await, "pod/web-1\n");
        assert_eq!(kubectl.ok(&["get", "pods", "-l", "app in (other)", "-o", "name"]).await, "");
        assert_eq!(kubectl.ok(&["get", "pods", "--field-selector", "spec.nodeName=n1,status.phase!=Failed", "-o", "name"]).await, "pod/web-1\n");
        assert!(kubectl.ok(&["get", "pods", "--show-labels"]).await.contains("app=web"));
        assert!(kubectl.ok(&["get", "pods", "--sort-by=.metadata.name"]).await.contains("web-1"));
        assert_eq!(kubectl.ok(&["get", "pods", "--chunk-size=1", "-A", "-o", "name"]).await, "pod/web-1\n");
        let said = kubectl.ok(&["api-resources"]).await;
        assert!(said.contains("deployments") && said.contains("apps/v1") && said.contains("endpointslices"), "{said}");
        assert!(kubectl.ok(&["api-versions"]).await.contains("apps/v1"));
        assert!(kubectl.ok(&["version"]).await.contains("v1.31"));
        // Older ones explain from version 2 of OpenAPI, where we have no schemas.
        if kubectl.minor >= 27 {
        let said = kubectl.ok(&["explain", "deployment.spec"]).await;
        assert!(said.contains("replicas") && said.contains("integer") && said.contains("template"), "{said}");
        assert!(kubectl.ok(&["explain", "pods.spec.containers", "--recursive"]).await.contains("configMapKeyRef"));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn describing_shows_events() {
    with_each(async |world, kubectl| {
        kubectl.ok_with(&["apply", "-f", "-"], WEB).await;
        let stored = world.cluster.put(pod("web-1", "n1"));
        for (name, uid, message) in [("a", &*stored.uid, "Started container main"), ("b", "other", "of another life")] {
            world.cluster.put(json!({
                "apiVersion": "v1", "kind": "Event", "metadata": {"name": name, "namespace": "default"},
                "involvedObject": {"kind": "Pod", "name": "web-1", "namespace": "default", "uid": uid},
                "type": "Normal", "reason": "Started", "message": message, "count": 1,
                "source": {"component": "kubelet"}, "lastTimestamp": "2026-11-26T12:00:00Z",
            }));
        }
        let said = kubectl.ok(&["describe", "pod", "web-1"]).await;
        for words in ["example/web:1", "Started container main", "Restart Count:  2", "Node:"] {
            assert!(said.contains(words), "{words} is missing in\n{said}");
        }
        assert!(!said.contains("of another life"));
        let said = kubectl.ok(&["describe", "deploy", "web"]).await;
        assert!(said.contains("StrategyType:") && said.contains("COLOR:"), "{said}");
        for what in ["svc/web", "cm/settings", "secret/keys", "ns/default"] {
            assert!(kubectl.ok(&["describe", what]).await.contains("Name:"), "{what}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_edited_in_place() {
    with_each(async |world, kubectl| {
        kubectl.ok_with(&["apply", "-f", "-"], WEB).await;
        let web = || world.cluster.tree("deployments.apps", "default", "web").unwrap();
        assert!(kubectl.ok(&["scale", "deploy/web", "--replicas=4"]).await.contains("scaled"));
        assert_eq!(web()["spec"]["replicas"], 4);
        assert!(!kubectl.run(&["scale", "deploy/web", "--current-replicas=3", "--replicas=9"]).await.ok);
        kubectl.ok(&["label", "deploy/web", "tier=front"]).await;
        kubectl.ok(&["label", "deploy/web", "app-"]).await;
        kubectl.ok(&["annotate", "deploy/web", "note=hello"]).await;
        assert_eq!(web()["metadata"]["labels"], json!({"tier": "front"}));
        assert_eq!(web()["metadata"]["annotations"]["note"], "hello");
        kubectl.ok(&["set", "image", "deploy/web", "main=example/web:7"]).await;
        kubectl.ok(&["set", "env", "deploy/web", "SIZE=3"]).await;
        kubectl.ok(&["set", "resources", "deploy/web", "--limits=memory=256Mi"]).await;
        let container = &web()["spec"]["template"]["spec"]["containers"][0];
        assert_eq!((&container["image"], container["env"].as_array().unwrap().len()), (&json!("example/web:7"), 2));
        assert_eq!(container["resources"]["limits"]["memory"], "256Mi");
        for (style, patch) in [
            ("merge", r#"{"spec":{"minReadySeconds":1}}"#),
            ("json", r#"[{"op":"replace","path":"/spec/minReadySeconds","value":2}]"#),
            ("strategic", r#"{"spec":{"template":{"spec":{"containers":[{"name":"main","env":[{"name":"SIZE","value":"9"}]}]}}}}"#),
        ] {
            assert!(kubectl.ok(&["patch", "deploy", "web", "--type", style, "-p", patch]).await.contains("patched"), "{style}");
        }
        assert_eq!(web()["spec"]["minReadySeconds"], 2);
        assert_eq!(web()["spec"]["template"]["spec"]["containers"][0]["env"], json!([{"name": "COLOR", "value": "red"}, {"name": "SIZE", "value": "9"}]));
        kubectl.ok(&["rollout", "restart", "deploy/web"]).await;
        assert!(!web()["spec"]["template"]["metadata"]["annotations"].is_null());
        // What `kubectl edit` does: the whole object comes back with its version, and a late one is refused.
        let old = kubectl.ok(&["get", "deploy", "web", "-o", "json"]).await;
        kubectl.ok_with(&["replace", "-f", "-"], &old.replace("\"tier\": \"front\"", "\"tier\": \"back\"")).await;
        assert_eq!(web()["metadata"]["labels"]["tier"], "back");
        let late = kubectl.feed(&["replace", "-f", "-"], &old).await;
        assert!(late.err.contains("the object has been modified"), "{}", late.err);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rollouts_are_followed() {
    with_each(async |world, kubectl| {
        kubectl.ok_with(&["apply", "-f", "-"], WEB).await;
        let mut status = kubectl.start(&["rollout", "status", "deploy/web"]);
        status.line_with(&["Waiting for deployment"]).await;
        for ready in [1, 2] {
            world.cluster.edit("deployments.apps", "default", "web", |web| {
                web["status"] = json!({
                    "observedGeneration": web["metadata"]["generation"], "replicas": 2, "updatedReplicas": 2,
                    "readyReplicas": ready, "availableReplicas": ready,
                });
            });
            if ready == 1 {
                status.line_with(&["1 of 2 updated replicas are available"]).await;
            }
        }
        status.line_with(&["successfully rolled out"]).await;
        assert!(status.end().await);
        let mut waiting = kubectl.start(&["wait", "deploy/web", "--for=condition=Available", "--timeout=30s"]);
        world.cluster.edit("deployments.apps", "default", "web", |web| {
            web["status"]["conditions"] = json!([{"type": "Available", "status": "True"}]);
        });
        waiting.line_with(&["condition met"]).await;
        assert!(waiting.end().await);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watching_prints_changes_as_they_come() {
    with_each(async |world, kubectl| {
        let mut watching = kubectl.start(&["get", "pods", "-o", "wide", "-w"]);
        world.cluster.put(pod("web-1", ""));
        watching.line_with(&["web-1", "<none>"]).await;
        world.cluster.edit("pods", "default", "web-1", |pod| pod["spec"]["nodeName"] = json!("n7"));
        watching.line_with(&["web-1", "n7"]).await;
        let mut one = kubectl.start(&["get", "pod", "web-1", "-w", "-o", "name"]);
        one.line_with(&["pod/web-1"]).await;
        world.cluster.put(pod("web-2", "n8"));
        watching.line_with(&["web-2", "n8"]).await;
        // kubectl takes the first event of a single object's watch for what it has printed already: one that comes before its
        // watch is lost on it.
        let mut tick = tokio::time::interval(std::time::Duration::from_millis(100));
        let mut line = std::pin::pin!(one.line_with(&["pod/web-1"]));
        loop {
            tokio::select! {
                _ = &mut line => break,
                tick = tick.tick() => world.cluster.edit("pods", "default", "web-1", |pod| {
                    pod["metadata"]["annotations"] = json!({"at": format!("{tick:?}")});
                }),
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_wait_for_the_last_word() {
    with_each(async |world, kubectl| {
        kubectl.ok_with(&["apply", "-f", "-"], WEB).await;
        assert!(kubectl.ok_with(&["delete", "-f", "-"], WEB).await.contains("deployment.apps \"web\" deleted"));
        assert!(world.cluster.tree("secrets", "default", "keys").is_none());
        let gone = kubectl.run(&["delete", "deploy", "web"]).await;
        assert!(gone.err.contains("NotFound"), "{}", gone.err);
        kubectl.ok(&["delete", "deploy", "web", "--ignore-not-found"]).await;

        // A pod on a node goes when the node says so.
        world.cluster.put(pod("web-1", "n1"));
        let deleting = kubectl.start(&["delete", "pod", "web-1"]);
        until("the pod is on its way out", || {
            let pod = world.cluster.tree("pods", "default", "web-1").unwrap();
            pod["metadata"]["deletionGracePeriodSeconds"] == 30 && !pod["metadata"]["deletionTimestamp"].is_null()
        })
        .await;
        assert!(kubectl.ok(&["get", "pod", "web-1"]).await.contains("Terminating"));
        world.cluster.remove("pods", "default", "web-1");
        assert!(deleting.end().await);
        world.cluster.put(pod("web-2", "n1"));
        kubectl.ok(&["delete", "pod", "web-2", "--grace-period=0", "--force"]).await;
        assert!(world.cluster.tree("pods", "default", "web-2").is_none());
        // One that no node has goes at once.
        world.cluster.put(pod("web-3", ""));
        kubectl.ok(&["delete", "pod", "web-3"]).await;
        assert!(world.cluster.tree("pods", "default", "web-3").is_none());

        let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: team}";
        kubectl.ok_with(&["create", "-f", "-"], namespace).await;
        let deleting = kubectl.start(&["delete", "ns", "team"]);
        until("the namespace is terminating", || {
            world.cluster.tree("namespaces", "", "team").unwrap()["status"]["phase"] == "Terminating"
        })
        .await;

        let late = kubectl.feed(&["create", "-n", "team", "-f", "-"], CONFIG).await;
        assert!(late.err.contains("because it is being terminated"), "{}", late.err);
        world.cluster.remove("namespaces", "", "team");
        assert!(deleting.end().await);
        assert!(kubectl.run(&["delete", "ns", "default"]).await.err.contains("may not be deleted"));
        // A finalizer holds an object until it is taken away.
        kubectl
            .ok_with(
                &["create", "-f", "-"],
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: held, finalizers: [a.b/c]}",
            )
            .await;
        kubectl.ok(&["delete", "cm", "held", "--wait=false"]).await;
        assert!(world.cluster.tree("configmaps", "default", "held").is_some());
        kubectl.ok(&["patch", "cm", "held", "--type=merge", "-p", r#"{"metadata":{"finalizers":null}}"#]).await;
        assert!(world.cluster.tree("configmaps", "default", "held").is_none());
        for name in ["a", "b"] {
            kubectl
                .ok_with(
                    &["create", "-f", "-"],
                    &format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, labels: {{group: some}}}}"),
                )
                .await;
        }
        kubectl.ok(&["delete", "cm", "-l", "group=some"]).await;
        kubectl.ok_with(&["create", "-f", "-"], CONFIG).await;
        kubectl.ok(&["delete", "cm", "--all"]).await;
        assert!(world.cluster.view().list("configmaps", None).next().is_none());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_read_and_followed() {
    with_each(async |world, kubectl| {
        world.cluster.put(pod("web-1", "n1"));
        assert_eq!(kubectl.ok(&["logs", "web-1"]).await, "first\nsecond\n");
        kubectl
            .ok(&["logs", "web-1", "-c", "main", "--tail=5", "--since=60s", "--timestamps", "--limit-bytes=9", "-p"])
            .await;
        let query = world.cluster.log_queries.lock().unwrap().pop().unwrap();
        assert_eq!((query.node.as_str(), query.container.as_str(), query.tail_lines), ("n1", "main", Some(5)));
        assert!(query.previous && query.timestamps && query.since_ms.is_some() && query.limit_bytes == Some(9));
        let mut following = kubectl.start(&["logs", "-f", "web-1"]);
        following.line_with(&["second"]).await;
        let sink = world.cluster.followed.lock().unwrap().pop().unwrap();
        sink.send(Ok("third\n".into())).await.unwrap();
        following.line_with(&["third"]).await;
        drop(sink);
        assert!(following.end().await);
        assert!(kubectl.ok(&["logs", "-l", "app=web"]).await.contains("first"));
        let said = kubectl.run(&["logs", "web-1", "-c", "nope"]).await;
        assert!(said.err.contains("container nope is not valid for pod web-1"), "{}", said.err);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_cordoned_and_drained() {
    with_each(async |world, kubectl| {
        world.cluster.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {}, "status": {},
        }));
        kubectl.ok(&["cordon", "n1"]).await;
        assert!(kubectl.ok(&["get", "nodes"]).await.contains("SchedulingDisabled"));
        kubectl.ok(&["uncordon", "n1"]).await;
        kubectl.ok(&["taint", "node", "n1", "a=b:NoSchedule"]).await;
        assert_eq!(world.cluster.tree("nodes", "", "n1").unwrap()["spec"]["taints"][0]["effect"], "NoSchedule");
        assert_eq!(kubectl.ok(&["auth", "can-i", "create", "pods"]).await.trim(), "yes");
        assert!(kubectl.ok(&["auth", "can-i", "--list"]).await.contains("*.*"));
        // 1.27 asks for a version that was an alpha then.
        if kubectl.minor > 27 {
            assert!(kubectl.ok(&["auth", "whoami"]).await.contains("kubernetes-admin"));
        }
        let refused = kubectl.run(&["get", "pods", "--as=somebody"]).await;
        assert!(
            refused.err.contains("(Forbidden): pods is forbidden: User \"somebody\" cannot list it"),
            "{}",
            refused.err
        );
        kubectl.ok(&["cluster-info"]).await;
    })
    .await;
}

/// From 1.32 on these have protobuf bodies; the objects must be the same as those of the older ones, which send JSON.
#[tokio::test(flavor = "multi_thread")]
async fn typed_requests_give_the_same_objects_in_every_version() {
    let seen = std::sync::Mutex::new(Vec::<(String, Value)>::new());
    with_each(async |world, kubectl| {
        kubectl.ok(&["create", "namespace", "team"]).await;
        kubectl.ok(&["config", "set-context", "--current", "--namespace=team"]).await;
        for args in [
            &["create", "configmap", "settings", "--from-literal=a=b", "--from-literal=empty="][..],
            &["create", "secret", "generic", "keys", "--from-literal=token=\u{e4}bc"],
            &[
                "create",
                "secret",
                "docker-registry",
                "pull",
                "--docker-server=r.example",
                "--docker-username=u",
                "--docker-password=p",
            ],
            &["create", "serviceaccount", "robot"],
            &["create", "deployment", "web", "--image=example/web:1", "--replicas=0", "--port=8080"],
            &["create", "service", "clusterip", "front", "--tcp=80:8080"],
            &["expose", "deployment", "web", "--port=81", "--target-port=http"],
            &[
                "run",
                "one",
                "--image=example/web:1",
                "--env=A=b",
                "--labels=x=y",
                "--restart=Never",
                "--",
                "sleep",
                "9",
            ],
            &["set", "serviceaccount", "deploy", "web", "robot"],
        ] {
            kubectl.ok(args).await;
        }
        let view = world.cluster.view();
        let mut objects: Vec<Value> = view
            .all()
            .filter(|object| &*object.key.namespace == "team")
            .map(|object| (**object.tree()).clone())
            .collect();
        assert_eq!(objects.len(), 8);
        for object in &mut objects {
            for field in ["uid", "creationTimestamp", "resourceVersion"] {
                object["metadata"][field] = Value::Null;
            }
            if object["spec"]["clusterIP"].is_string() {
                object["spec"]["clusterIP"] = Value::Null;
                object["spec"]["clusterIPs"] = Value::Null;
            }
        }
        let web = world.cluster.tree("deployments.apps", "team", "web").unwrap();
        assert_eq!(
            (&web["spec"]["replicas"], &web["spec"]["template"]["spec"]["serviceAccountName"]),
            (&json!(0), &json!("robot"))
        );
        seen.lock().unwrap().push((kubectl.name.clone(), Value::Array(objects)));
        let said = kubectl.run(&["create", "job", "j", "--image=x"]).await;
        assert!(!said.ok && !said.err.is_empty());
        // A drain deletes, where evictions are not offered.
        world
            .cluster
            .put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "spec": {}, "status": {}}));
        let mut pod = pod("web-1", "n1");
        pod["metadata"]["ownerReferences"] = json!([
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": true}
        ]);
        world.cluster.put(pod);
        let draining = kubectl.start(&["drain", "n1", "--force", "--ignore-daemonsets"]);
        until("the pod is on its way out", || {
            !world.cluster.tree("pods", "default", "web-1").unwrap()["metadata"]["deletionTimestamp"].is_null()
        })
        .await;
        world.cluster.remove("pods", "default", "web-1");
        assert!(draining.end().await);
    })
    .await;
    let seen = seen.into_inner().unwrap();
    for (name, objects) in &seen {
        for (ours, first) in objects.as_array().unwrap().iter().zip(seen[0].1.as_array().unwrap()) {
            assert_eq!(ours, first, "{name} and {}", seen[0].0);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_yet_is_said() {
    with_each(async |world, kubectl| {
        world.cluster.put(pod("web-1", "n1"));
        for (args, words) in [
            (&["exec", "web-1", "--", "ls"][..], "pods/exec is not supported yet"),
            (&["attach", "web-1"], "pods/attach is not supported yet"),
            (&["port-forward", "web-1", "0:80"], "pods/portforward is not supported yet"),
            (&["create", "job", "j", "--image=x"], ""),
            (&["get", "ingresses"], "the server doesn't have a resource type"),
            (&["top", "pods"], "Metrics API not available"),
        ] {
            let said = kubectl.run(args).await;
            assert!(!said.ok && said.err.contains(words), "{} {args:?}: {}", kubectl.name, said.all());
        }
    })
    .await;
}
