//! The pages as a browser, a script and an attacker see them.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use coracle_base::Generation;
use coracle_daemon::Drain;
use coracle_dashboard::{DashboardError, Link, Snapshot, Source, Trees, page, router, serve};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::ServiceExt as _;

struct Fixed {
    snapshot: std::sync::Mutex<Snapshot>,
    changes: watch::Sender<Generation>,
}

impl Fixed {
    fn new(snapshot: Snapshot) -> Arc<Self> {
        Arc::new(Self { snapshot: snapshot.into(), changes: watch::Sender::default() })
    }

    fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        change(&mut self.snapshot.lock().unwrap());
        self.changes.send_modify(|generation| generation.revision += 1);
    }
}

impl Source for Fixed {
    fn snapshot(&self) -> Snapshot {
        self.snapshot.lock().unwrap().clone()
    }

    fn changes(&self) -> watch::Receiver<Generation> {
        self.changes.subscribe()
    }

    fn metrics(&self) -> String {
        "coracle_test 1\n".to_owned()
    }
}

const HOSTILE: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;";

fn pod(namespace: &str, name: &str) -> Value {
    json!({
        "metadata": {"namespace": namespace, "name": name, "creationTimestamp": "2026-11-26T12:00:00Z"},
        "spec": {
            "nodeName": "a",
            "containers": [{
                "name": "c", "env": [{"name": "PASSWORD", "value": "hunter2"}],
                "resources": {"requests": {"cpu": "500m"}, "limits": {"memory": "1Gi"}},
            }],
        },
        "status": {
            "phase": "Running", "podIP": "10.42.0.7", "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"ready": true, "restartCount": 3}],
        },
    })
}

fn example() -> Snapshot {
    let node = json!({
        "metadata": {"name": "a"},
        "status": {
            "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
        },
    });
    let pods = [pod("default", "web-1"), pod("shop", "cart-1")];
    let service = json!({
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {"clusterIP": "10.43.0.7", "ports": [{"port": 80, "targetPort": "http"}, {"port": 53, "targetPort": 53, "protocol": "UDP"}]},
    });
    let slice = json!({
        "metadata": {"namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": ["10.42.0.7"], "targetRef": {"name": "web-1"}}, {"addresses": ["10.42.0.8"], "conditions": {"ready": false}}],
    });
    let deployment = json!({
        "kind": "Deployment",
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {"replicas": 2, "template": {"spec": {"containers": [{"image": "web:1"}]}}},
        "status": {"replicas": 2, "updatedReplicas": 2, "readyReplicas": 1, "availableReplicas": 1},
    });
    let daemons = json!({
        "kind": "DaemonSet",
        "metadata": {"namespace": "default", "name": "log"},
        "spec": {"updateStrategy": {"type": "OnDelete"}},
        "status": {"desiredNumberScheduled": 3, "currentNumberScheduled": 3, "numberReady": 2, "numberAvailable": 2, "updatedNumberScheduled": 1},
    });
    let event = |second: u32| {
        json!({
            "metadata": {"namespace": "default"}, "involvedObject": {"kind": "Pod", "name": "web-1"}, "type": "Warning",
            "reason": "BackOff", "message": format!("message {second}"), "lastTimestamp": format!("2026-11-26T12:00:{second:02}Z"),
        })
    };
    let (first, second) = (event(1), event(2));
    Snapshot::default().with(Trees {
        nodes: &[&node],
        workloads: &[&deployment, &daemons],
        pods: &[&pods[0], &pods[1]],
        services: &[&service],
        slices: &[&slice],
        events: &[&first, &second],
    })
}

fn pages(source: &Arc<Fixed>) -> Router {
    // A drain that is dropped has begun; this one never does.
    router(source.clone(), Box::leak(Box::new(Drain::new())).watch())
}

async fn ask(pages: &Router, path: &str, host: &str) -> Response<Body> {
    let request = Request::get(path).header("host", host).body(Body::empty()).unwrap();
    pages.clone().oneshot(request).await.unwrap()
}

async fn text(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[test]
fn objects_become_what_is_shown() {
    let snapshot = example();
    let node = &snapshot.nodes[0];
    assert_eq!((node.cpu.as_str(), node.memory.as_str(), node.pods), ("1/2", "2.0Gi/4.0Gi", 2));
    let pod = &snapshot.pods[0];
    assert_eq!((pod.ready.as_str(), pod.restarts, pod.healthy), ("1/1", 3, true));
    let service = &snapshot.services[0];
    assert_eq!((service.ports.as_str(), service.endpoints, service.backends.len()), ("80->http/TCP, 53/UDP", 1, 2));
    assert_eq!(snapshot.workloads[0].ready, 1);
    let daemons = &snapshot.workloads[1];
    assert_eq!((daemons.desired, daemons.ready, daemons.updated, daemons.to_update), (3, 2, 1, 1));
    assert_eq!(snapshot.events[0].message, "message 2", "the youngest first");
}

#[test]
fn the_way_to_each_node_is_shown_and_one_that_does_not_answer_named() {
    let with = |link: Link| {
        let snapshot = example().with_links(HashMap::from([("a".to_owned(), link)]));
        page(&snapshot, "")
    };
    let well = with(Link { way: "tunnel".into(), answered_ms: Some(0.26), problem: String::new() });
    assert!(well.contains("link tunnel, 0.3 ms") && !well.contains("link to a"), "{well}");
    let silent = with(Link { way: "direct".into(), answered_ms: None, problem: String::new() });
    assert!(silent.contains("link direct, no answer") && silent.contains("link to a"), "{silent}");
    let refused = with(Link { way: "none".into(), answered_ms: None, problem: "its block is <taken>".into() });
    assert!(refused.contains("no way") && refused.contains("its block is &lt;taken&gt;"), "{refused}");
    assert!(!page(&example(), "").contains("link to a"), "before the first look nothing is said");
}

#[test]
fn why_a_pod_does_not_run_is_told() {
    let of = |status: Value| {
        let mut tree = pod("default", "web");
        tree["status"] = status;
        let snapshot = Snapshot::default().with(Trees { pods: &[&tree], ..Trees::default() });
        let html = page(&snapshot, "");
        (snapshot.pods[0].reason.clone(), html.contains("Needs attention"))
    };
    let waiting = |reason: &str| json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": reason, "message": "m"}}}]});
    assert_eq!(of(waiting("ImagePullBackOff")), ("ImagePullBackOff".into(), true));
    assert_eq!(of(waiting("ContainerCreating")), ("ContainerCreating".into(), false));
    let unplaced = json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1"}]});
    assert_eq!(of(unplaced), ("Unschedulable".into(), true));
    assert_eq!(of(json!({"phase": "Failed", "reason": "Evicted"})), ("Evicted".into(), true));
    assert_eq!(of(json!({"phase": "Succeeded"})), (String::new(), false));
}

#[test]
fn hostile_text_stays_text() {
    let mut snapshot = example();
    snapshot.cluster.name = HOSTILE.into();
    snapshot.cluster.api = HOSTILE.into();
    for node in &mut snapshot.nodes {
        node.ready = false;
        (node.name, node.kernel, node.taints) = (HOSTILE.into(), HOSTILE.into(), vec![HOSTILE.into()]);
        node.conditions[0].message = HOSTILE.into();
    }
    for one in &mut snapshot.workloads {
        (one.name, one.namespace, one.images, one.problem) =
            (HOSTILE.into(), HOSTILE.into(), vec![HOSTILE.into()], HOSTILE.into());
        one.kind = HOSTILE.into();
    }
    for pod in &mut snapshot.pods {
        pod.healthy = false;
        (pod.name, pod.namespace, pod.reason, pod.message) =
            (HOSTILE.into(), HOSTILE.into(), HOSTILE.into(), HOSTILE.into());
        (pod.ip, pod.node, pod.created, pod.ready) = (HOSTILE.into(), HOSTILE.into(), HOSTILE.into(), HOSTILE.into());
    }
    for one in &mut snapshot.services {
        (one.name, one.namespace, one.cluster_ip, one.ports) =
            (HOSTILE.into(), HOSTILE.into(), HOSTILE.into(), HOSTILE.into());
        one.backends[0].address = HOSTILE.into();
        one.backends[0].pod = HOSTILE.into();
    }
    for event in &mut snapshot.events {
        (event.object, event.reason, event.message, event.last_seen) =
            (HOSTILE.into(), HOSTILE.into(), HOSTILE.into(), HOSTILE.into());
        event.namespace = HOSTILE.into();
    }
    for namespace in ["", HOSTILE] {
        let html = page(&snapshot, namespace);
        assert!(html.contains("&lt;script&gt;alert(1)"), "it is shown");
        assert!(!html.contains("<script>alert") && !html.contains("<img"), "and only shown");
        // Every quote of the text is escaped, so no attribute can be left: with the escaped text gone nothing of it is left.
        let rest = html.replace(
            "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;&gt;&lt;img src=x onerror=alert(2)&gt;&amp;amp;",
            "",
        );
        assert!(!rest.contains("onerror="), "{rest}");
    }
}

#[tokio::test]
async fn only_this_machine_is_answered() {
    let pages = pages(&Fixed::new(example()));
    for host in ["localhost:6480", "127.0.0.1:6480", "[::1]:6480"] {
        assert_eq!(ask(&pages, "/", host).await.status(), StatusCode::OK, "{host}");
    }
    for path in ["/", "/status.json", "/metrics", "/live", "/style.css", "/elsewhere"] {
        let answer = ask(&pages, path, "rebound.example.com:6480").await;
        assert_eq!(answer.status(), StatusCode::MISDIRECTED_REQUEST, "{path}");
        assert!(!text(answer).await.contains("web-1"));
    }
    let request = Request::get("/").body(Body::empty()).unwrap();
    assert_eq!(pages.oneshot(request).await.unwrap().status(), StatusCode::MISDIRECTED_REQUEST, "no host at all");
}

#[tokio::test]
async fn every_answer_has_the_headers_that_keep_it_safe() {
    let pages = pages(&Fixed::new(example()));
    for path in ["/", "/status.json", "/metrics", "/style.css", "/live.js", "/favicon.svg", "/elsewhere"] {
        let answer = ask(&pages, path, "localhost").await;
        let header =
            |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
        assert!(header("content-security-policy").starts_with("default-src 'none'"), "{path}");
        assert!(!header("content-security-policy").contains("unsafe"), "{path}");
        assert_eq!(
            (header("x-content-type-options").as_str(), header("x-frame-options").as_str()),
            ("nosniff", "DENY"),
            "{path}"
        );
        assert!(header("cache-control").starts_with("no-"), "{path}");
    }
    // What the policy forbids is not there: styles and scripts inside the page, and anything from elsewhere.
    let html = text(ask(&pages, "/", "localhost").await).await;
    assert!(!html.contains("style=\"") && !html.contains("<style") && !html.contains("javascript:"));
    assert!(!html.replace("http://www.w3.org/2000/svg", "").contains("http://"), "nothing is loaded from elsewhere");
    assert_eq!(html.matches("<script").count(), 1);
}

#[tokio::test]
async fn json_has_everything_but_secrets() {
    let pages = pages(&Fixed::new(example()));
    let answer = text(ask(&pages, "/status.json", "localhost").await).await;
    let value: Value = serde_json::from_str(&answer).unwrap();
    for field in ["cluster", "servers", "nodes", "workloads", "pods", "services", "events", "volumes"] {
        assert!(!value[field].is_null(), "{field}");
    }
    assert_eq!(value["pods"][1]["namespace"], "shop");
    let html = text(ask(&pages, "/", "localhost").await).await;
    for text in [answer, html] {
        assert!(!text.contains("hunter2") && !text.contains("PASSWORD"));
    }
    assert_eq!(text(ask(&pages, "/metrics", "localhost").await).await, "coracle_test 1\n");
}

#[tokio::test]
async fn a_namespace_can_be_chosen() {
    let pages = pages(&Fixed::new(example()));
    let html = text(ask(&pages, "/?namespace=shop", "localhost").await).await;
    assert!(html.contains("cart-1") && !html.contains("web-1"));
    assert!(html.contains("<a href=\"/?namespace=shop\" aria-current=\"page\">shop</a>"));
    let html = text(ask(&pages, "/", "localhost").await).await;
    assert!(html.contains("cart-1") && html.contains("web-1"));
}

/// Reads parts from a stream until `enough` says so; the ids that came.
async fn parts(body: &mut Body, mut enough: impl FnMut(&[String]) -> bool) -> Vec<String> {
    let (mut ids, mut text) = (Vec::new(), String::new());
    while !enough(&ids) {
        let frame = body.frame().await.expect("the stream goes on").unwrap();
        text.push_str(std::str::from_utf8(&frame.into_data().unwrap_or_default()).unwrap());
        while let Some(end) = text.find("\n\n") {
            let event: String = text.drain(..end + 2).collect();
            if let Some(data) = event.lines().find_map(|line| line.strip_prefix("data: ")) {
                let part: Value = serde_json::from_str(data).unwrap();
                ids.push(part["id"].as_str().unwrap().to_owned());
            }
        }
    }
    ids
}

#[tokio::test(start_paused = true)]
async fn an_open_page_gets_what_changed_and_nothing_else() {
    let source = Fixed::new(example());
    let pages = pages(&source);
    let mut body = ask(&pages, "/live?namespace=default", "localhost").await.into_body();
    let first = parts(&mut body, |ids| ids.len() == 8).await;
    assert_eq!(first[0], "summary");
    source.change(|snapshot| snapshot.pods[0].restarts = 4);
    assert_eq!(parts(&mut body, |ids| !ids.is_empty()).await, ["pods"]);
    // A change in a namespace that is not shown is no change; the next one that is comes alone.
    source.change(|snapshot| snapshot.pods[1].restarts = 9);
    source.change(|snapshot| snapshot.nodes[0].kernel = "6.18".into());
    assert_eq!(parts(&mut body, |ids| !ids.is_empty()).await, ["nodes"]);
}

#[tokio::test]
async fn too_many_open_pages_are_turned_away_until_one_closes() {
    let pages = pages(&Fixed::new(example()));
    let mut open = Vec::new();
    loop {
        let answer = ask(&pages, "/live", "localhost").await;
        if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
            break;
        }
        open.push(answer);
        assert!(open.len() <= 1000);
    }
    assert!(open.len() >= 16);
    open.pop();
    assert_eq!(ask(&pages, "/live", "localhost").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn it_serves_until_the_drain_and_says_when_the_port_is_taken() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let drain = Drain::new();
    let source = Fixed::new(example());
    let handle = serve("127.0.0.1:0".parse().unwrap(), source.clone(), drain.watch()).await.unwrap();
    let taken = serve(handle.address, source, drain.watch()).await.unwrap_err();
    assert!(matches!(taken, DashboardError::Listen { .. }) && taken.to_string().contains("--status-listen"), "{taken}");
    // A page with live updates is open when the drain begins.
    let mut stream = tokio::net::TcpStream::connect(handle.address).await.unwrap();
    let request = format!("GET /live HTTP/1.1\r\nhost: {}\r\n\r\n", handle.address);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 64];
    stream.read_exact(&mut first).await.unwrap();
    assert!(first.starts_with(b"HTTP/1.1 200"));
    let drained = drain.finish(std::time::Duration::from_secs(20)).await;
    assert!(matches!(drained, coracle_daemon::Drained::Clean), "{drained:?}");
    assert!(tokio::net::TcpStream::connect(handle.address).await.is_err());
}
