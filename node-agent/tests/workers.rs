//! Pods on facilities that are only talked about, driven through a real ledger: what the servers are told, step by step.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use coracle_daemon::Drain;
use coracle_lifecycle::observed::ErrorClass;
use coracle_node_agent::AgentClock;
use coracle_node_agent::facilities::{Containers as _, Failure};
use coracle_node_agent::fakes::{FakeContainers, FakeImages, FakeNetwork};
use coracle_node_agent::ledger::Ledger;
use coracle_node_agent::outbox::Outbox;
use coracle_node_agent::pods::Pods;
use coracle_node_agent::pods::board::Board;
use coracle_node_agent::pods::node::{HostResolver, Node, Paths};
use coracle_node_agent::session::{Leases, LetGo};
use coracle_protocol::v1::{Feed, Generation, Item, Ref};
use serde_json::{Value, json};
use tokio::sync::watch;

struct Rig {
    dir: tempfile::TempDir,
    drain: Drain,
    ledger: Ledger,
    containers: Arc<FakeContainers>,
    images: Arc<FakeImages>,
    network: Arc<FakeNetwork>,
    outbox: Arc<Outbox>,
    serving: watch::Sender<Arc<HashSet<Ipv4Addr>>>,
    let_go: watch::Sender<LetGo>,
    lease: watch::Sender<Leases>,
    pods: Pods,
    board: Arc<Board>,
    revision: u64,
    events: Vec<String>,
    statuses: BTreeMap<String, Value>,
    gone: Vec<String>,
    leaving: Vec<String>,
}

impl Rig {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let serving = watch::Sender::new(Arc::default());
        Self::over(dir, Arc::default(), Arc::default(), Arc::default(), serving, 1, None)
    }

    fn over(
        dir: tempfile::TempDir,
        containers: Arc<FakeContainers>,
        images: Arc<FakeImages>,
        network: Arc<FakeNetwork>,
        serving: watch::Sender<Arc<HashSet<Ipv4Addr>>>,
        revision: u64,
        stopping: Option<u64>,
    ) -> Self {
        let drain = Drain::new();
        let (data, run) = (dir.path().join("data"), dir.path().join("run"));
        let ledger = Ledger::open(&data, &run, &drain.watch()).unwrap();
        // An agent that has just begun holds none.
        let lease = watch::Sender::<Leases>::default();
        let let_go = watch::Sender::<LetGo>::default();
        let (outbox, board) = (Arc::new(Outbox::default()), Arc::new(Board::default()));
        let node = Arc::new(Node {
            name: "n1".into(),
            clock: AgentClock::start(),
            paths: Paths { data, run },
            containers: containers.clone(),
            images: images.clone(),
            network: network.clone(),
            state: ledger.watch(),
            serving: serving.subscribe(),
            let_go: let_go.subscribe(),
            lease: lease.subscribe(),
            outbox: outbox.clone(),
            host_ip: Ipv4Addr::new(192, 0, 2, 1),
            cpu_milli: 2000,
            memory_bytes: 4 << 30,
            resolver: HostResolver::default(),
        });
        let pods = Pods::start(node, board.clone(), stopping, &drain.watch());
        Self {
            dir,
            drain,
            ledger,
            containers,
            images,
            network,
            outbox,
            serving,
            let_go,
            lease,
            pods,
            board,
            revision,
            events: Vec::new(),
            statuses: BTreeMap::new(),
            gone: Vec::new(),
            leaving: Vec::new(),
        }
    }

    /// The agent ends and another begins; what runs goes on. `meanwhile` happens while there is none.
    async fn restart(self, meanwhile: impl FnOnce(&FakeContainers, &std::path::Path)) -> Self {
        self.restart_as(None, meanwhile).await
    }

    /// As `restart`; with `stopping` the new agent is one that starts nothing.
    async fn restart_as(
        self,
        stopping: Option<u64>,
        meanwhile: impl FnOnce(&FakeContainers, &std::path::Path),
    ) -> Self {
        let Self { dir, drain, ledger, containers, images, network, outbox, serving, pods, board, revision, .. } = self;
        ledger.flush().await;
        drain.finish(Duration::from_secs(5)).await;
        drop((ledger, pods, outbox, board));
        meanwhile(&containers, dir.path());
        containers.agent_restarts();
        Self::over(dir, containers, images, network, serving, revision, stopping)
    }

    async fn feed(&mut self, full: bool, objects: &[(&str, Value)], removed: &[(&str, &str)]) {
        self.revision += 1;
        let items = objects
            .iter()
            .map(|(resource, tree)| Item {
                resource: (*resource).to_owned(),
                namespace: "default".into(),
                name: tree["metadata"]["name"].as_str().unwrap().into(),
                uid: tree["metadata"]["uid"].as_str().unwrap_or("u").into(),
                revision: self.revision,
                object: serde_json::to_vec(tree).unwrap(),
            })
            .collect();
        let removed = removed
            .iter()
            .map(|(resource, name)| Ref {
                resource: (*resource).into(),
                namespace: "default".into(),
                name: (*name).into(),
            })
            .collect();
        let generation = Some(Generation { epoch: 1, revision: self.revision });
        self.ledger.apply(Feed { generation, full, items, removed, ..Feed::default() }).await.unwrap().unwrap();
    }

    fn collect(&mut self) {
        while let Some(report) = self.outbox.take() {
            self.events.extend(
                report.events.iter().map(|event| format!("{} {}: {}", event.r#type, event.reason, event.message)),
            );
            for pod in report.pods {
                self.statuses.insert(pod.name, serde_json::from_slice(&pod.status).unwrap());
            }
            self.leaving.extend(report.leaving.into_iter().map(|pod| pod.name));
            self.gone.extend(report.gone.into_iter().map(|gone| gone.name));
        }
    }

    /// The leader grants `a` and `b` a lease that ends after so long. When that is.
    fn grant(&self, ms: u64) -> u64 {
        self.grant_to(&["uid-a", "uid-b"], ms)
    }

    fn grant_to(&self, pods: &[&str], ms: u64) -> u64 {
        let until_boottime_ms = self.containers.boottime_ms() + ms;
        let pods = pods.iter().map(|uid| (*uid).to_owned()).collect();
        self.lease.send_replace(Leases { until_boottime_ms, pods });
        until_boottime_ms
    }

    fn starts(&self) -> usize {
        self.containers.log().iter().filter(|call| call.starts_with("start")).count()
    }

    /// Nobody renews the lease, and the pod's monitor does what it is there for.
    async fn run_out(&mut self, pod: &str) {
        self.until("without a lease", |rig| rig.containers.fence(&format!("uid-{pod}"))).await;
        self.until("waiting", |rig| rig.waiting(pod) == "WaitingForLease").await;
    }

    /// Waits until the status of a pod fits.
    async fn until(&mut self, what: &str, fits: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(600);
        loop {
            self.collect();
            if fits(self) {
                return;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "still not {what}\nstatuses: {:#?}\nevents: {:#?}\ncalls: {:#?}\ngone: {:?}",
                self.statuses,
                self.events,
                self.containers.log(),
                self.gone
            );
            tokio::time::sleep(Duration::from_millis(20)).await; // poll
        }
    }

    fn waiting(&self, pod: &str) -> &str {
        self.statuses
            .get(pod)
            .map_or("", |status| status["containerStatuses"][0]["state"]["waiting"]["reason"].as_str().unwrap_or(""))
    }

    fn ready(&self, pod: &str) -> bool {
        self.statuses.get(pod).is_some_and(|status| {
            status["conditions"]
                .as_array()
                .unwrap()
                .iter()
                .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        })
    }
}

fn pod(name: &str, extra: Value) -> (&'static str, Value) {
    let mut spec =
        json!({"nodeName": "n1", "terminationGracePeriodSeconds": 5, "containers": [{"name": "c", "image": "img"}]});
    for (field, value) in extra.as_object().unwrap() {
        spec[field] = value.clone();
    }
    ("pods", json!({"metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}")}, "spec": spec}))
}

fn fenced(name: &str, extra: Value) -> (&'static str, Value) {
    let (resource, mut tree) = pod(name, extra);
    tree["metadata"]["annotations"] = json!({"coracle.dev/fenced": "true"});
    (resource, tree)
}

fn deleted((resource, mut tree): (&'static str, Value), grace: u64) -> (&'static str, Value) {
    tree["metadata"]["deletionTimestamp"] = json!("2026-11-26T12:00:00Z");
    tree["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
    (resource, tree)
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_and_is_deleted_and_nothing_is_left() {
    let mut rig = Rig::new();
    rig.feed(true, &[pod("a", json!({}))], &[]).await;
    rig.until("ready", |rig| rig.ready("a")).await;
    let status = &rig.statuses["a"];
    assert_eq!(
        (&status["phase"], &status["podIP"], &status["hostIP"]),
        (&json!("Running"), &json!("10.42.0.2"), &json!("192.0.2.1"))
    );
    assert_eq!(status["containerStatuses"][0]["containerID"], "coracle://uid-a/c/0");
    assert!(rig.events.iter().any(|event| event == "Normal Started: Started container c"), "{:?}", rig.events);
    rig.feed(false, &[deleted(pod("a", json!({})), 5)], &[]).await;
    rig.until("gone", |rig| rig.gone == ["a"]).await;
    assert!(rig.network.pods().is_empty());
    assert_eq!(rig.containers.log(), ["create uid-a", "start c #0", "kill c 15", "remove uid-a"]);
    for dir in ["data/pods", "run/agent", "data/logs"] {
        let left: Vec<_> = std::fs::read_dir(rig.dir.path().join(dir)).into_iter().flatten().collect();
        assert!(left.is_empty(), "{dir}: {left:?}");
    }
    rig.feed(false, &[], &[("pods", "a")]).await;
    rig.until("forgotten", |rig| rig.board.all().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_keeps_serving_until_services_let_go_of_it() {
    let mut rig = Rig::new();
    rig.serving.send_replace(Arc::new(HashSet::from([Ipv4Addr::new(10, 42, 0, 2)])));
    rig.feed(true, &[pod("a", json!({"terminationGracePeriodSeconds": 600}))], &[]).await;
    rig.until("ready", |rig| rig.ready("a")).await;
    rig.feed(false, &[deleted(pod("a", json!({})), 600)], &[]).await;
    rig.until("told to stop", |rig| rig.events.iter().any(|event| event.contains("Killing"))).await;
    assert!(rig.containers.is_running("uid-a", "c"));
    let began = tokio::time::Instant::now();
    rig.serving.send_replace(Arc::default());
    rig.until("gone", |rig| rig.gone == ["a"]).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_pod_keeps_serving_until_every_node_has_let_go_of_it_or_too_much_time_has_passed() {
    let mut rig = Rig::new();
    // A server that answers for the other nodes.
    rig.let_go.send_modify(|let_go| let_go.heard = true);
    let grace = json!({"terminationGracePeriodSeconds": 600});
    rig.feed(true, &[pod("a", grace.clone()), pod("b", grace)], &[]).await;
    rig.until("ready", |rig| rig.ready("a") && rig.ready("b")).await;
    let began = tokio::time::Instant::now();
    rig.feed(false, &[deleted(pod("a", json!({})), 600), deleted(pod("b", json!({})), 600)], &[]).await;
    rig.until("told to stop", |rig| rig.events.iter().filter(|event| event.contains("Killing")).count() == 2).await;
    assert_eq!(rig.leaving, ["a", "b"], "the servers hear of both");
    rig.let_go.send_modify(|let_go| let_go.pods = Arc::new(HashSet::from(["uid-a".to_owned()])));
    rig.until("gone", |rig| rig.gone == ["a"]).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(rig.containers.is_running("uid-b", "c"), "nobody has let go of it");
    rig.until("gone too", |rig| rig.gone == ["a", "b"]).await;
    assert!(began.elapsed() >= Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_told_and_the_container_restarted() {
    let mut rig = Rig::new();
    rig.feed(true, &[pod("a", json!({}))], &[]).await;
    rig.until("ready", |rig| rig.ready("a")).await;
    rig.containers.end("uid-a", "c", 3, false);
    rig.until("restarted", |rig| rig.ready("a") && rig.statuses["a"]["containerStatuses"][0]["restartCount"] == 1)
        .await;
    assert_eq!(rig.statuses["a"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 3);
    rig.containers.end("uid-a", "c", 137, true);
    rig.until("waiting", |rig| rig.waiting("a") == "CrashLoopBackOff").await;
    assert_eq!(rig.statuses["a"]["containerStatuses"][0]["lastState"]["terminated"]["reason"], "OOMKilled");
    assert!(rig.events.iter().any(|event| event.starts_with("Warning OOMKilling:")), "{:?}", rig.events);
    assert!(rig.events.iter().any(|event| event.starts_with("Warning BackOff:")), "{:?}", rig.events);
    rig.until("restarted", |rig| rig.ready("a")).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_waited_for_and_found_at_once_when_it_comes() {
    let mut rig = Rig::new();
    let volumes = json!([{"name": "v", "configMap": {"name": "conf"}}]);
    rig.feed(true, &[pod("a", json!({"volumes": volumes}))], &[]).await;
    rig.until("told", |rig| rig.events.iter().any(|event| event.contains("configmap \"conf\" not found"))).await;
    assert_eq!(rig.waiting("a"), "ContainerCreating");
    rig.feed(false, &[("configmaps", json!({"metadata": {"name": "conf"}, "data": {"k": "1"}}))], &[]).await;
    rig.until("ready", |rig| rig.ready("a")).await;
    let file = rig.dir.path().join("data/pods/uid-a/volumes/v/k");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "1");
    rig.feed(false, &[("configmaps", json!({"metadata": {"name": "conf"}, "data": {"k": "2"}}))], &[]).await;
    rig.until("updated", |_| std::fs::read_to_string(&file).is_ok_and(|text| text == "2")).await;
    // The environment of a container that has not started yet.
    let container = json!([{"name": "c", "image": "img", "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "key", "key": "x"}}}]}]);
    rig.feed(false, &[pod("b", json!({"containers": container}))], &[]).await;
    rig.until("told", |rig| rig.waiting("b") == "CreateContainerConfigError").await;
    assert_eq!(rig.statuses["b"]["containerStatuses"][0]["state"]["waiting"]["message"], "secret \"key\" not found");
    rig.feed(false, &[("secrets", json!({"metadata": {"name": "key"}, "data": {"x": "eA=="}}))], &[]).await;
    rig.until("ready", |rig| rig.ready("b")).await;
}

#[tokio::test(start_paused = true)]
async fn images_that_are_not_there() {
    let mut rig = Rig::new();
    rig.images.lack("img");
    rig.feed(true, &[pod("a", json!({}))], &[]).await;
    rig.until("failing", |rig| rig.waiting("a") == "ErrImagePull").await;
    rig.until("backing off", |rig| rig.waiting("a") == "ImagePullBackOff").await;
    rig.images.restore("img");
    rig.until("ready", |rig| rig.ready("a")).await;
    // A deletion is heard during a pull that never ends.
    rig.images.hang("stuck");
    let stuck = pod("b", json!({"containers": [{"name": "c", "image": "stuck"}]}));
    rig.feed(false, std::slice::from_ref(&stuck), &[]).await;
    rig.until("waiting", |rig| rig.waiting("b") == "ContainerCreating").await;
    rig.feed(false, &[deleted(stuck, 5)], &[]).await;
    rig.until("gone", |rig| rig.gone == ["b"]).await;
}

#[tokio::test(start_paused = true)]
async fn failures_of_the_node_are_tried_again_and_failures_of_the_program_count() {
    let mut rig = Rig::new();
    rig.containers.fail_once("create", Failure::retry("FailedCreatePodSandBox", "no cgroup"));
    let cannot =
        Failure { reason: "ContainerCannotRun", message: "exec: \"/x\": not found".into(), class: ErrorClass::Fail };
    rig.containers.fail_once("start c", cannot);
    rig.feed(true, &[pod("a", json!({"restartPolicy": "Never"}))], &[]).await;
    rig.until("failed", |rig| rig.statuses.get("a").is_some_and(|status| status["phase"] == "Failed")).await;
    let terminated = rig.statuses["a"]["containerStatuses"][0]["state"]["terminated"].clone();
    assert_eq!((&terminated["exitCode"], &terminated["message"]), (&json!(127), &json!("exec: \"/x\": not found")));
    assert!(rig.events.iter().any(|event| event.contains("no cgroup")));
    // An ended pod keeps nothing but its record and logs.
    rig.until("taken down", |rig| rig.network.pods().is_empty()).await;
    rig.feed(false, &[deleted(pod("a", json!({})), 0)], &[]).await;
    rig.until("gone", |rig| rig.gone == ["a"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_liveness_command_restarts_the_container() {
    let mut rig = Rig::new();
    let container =
        json!([{"name": "c", "image": "img", "livenessProbe": {"exec": {"command": ["check"]}, "periodSeconds": 1}}]);
    rig.feed(true, &[pod("a", json!({"containers": container}))], &[]).await;
    rig.until("ready", |rig| rig.ready("a")).await;
    rig.containers.exec_code("c", 1);
    rig.until("condemned", |rig| {
        rig.events.iter().any(|event| event.contains("failed liveness probe, will be restarted"))
    })
    .await;
    rig.containers.exec_code("c", 0);
    rig.until("restarted", |rig| rig.ready("a") && rig.statuses["a"]["containerStatuses"][0]["restartCount"] == 1)
        .await;
    assert!(
        rig.events.iter().any(|event| event == "Warning Unhealthy: Liveness probe failed: command exited with 1"),
        "{:?}",
        rig.events
    );
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_adopts_what_runs_and_hears_what_ended_meanwhile() {
    let mut rig = Rig::new();
    rig.feed(true, &[pod("a", json!({})), pod("b", json!({})), pod("c", json!({}))], &[]).await;
    rig.until("ready", |rig| ["a", "b", "c"].iter().all(|pod| rig.ready(pod))).await;
    let calls = rig.containers.log().len();
    let mut rig = rig.restart(|containers, _| containers.end("uid-b", "c", 7, false)).await;
    // No server has spoken yet: everything goes on from the ledger.
    rig.until("restarted", |rig| rig.ready("b")).await;
    assert_eq!(rig.statuses["b"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"], 7);
    assert_eq!(rig.containers.log()[calls..], ["start c #1"]);
    assert_eq!(rig.board.get("uid-a").unwrap().restarts, 0);
    assert!(rig.containers.is_running("uid-c", "c"));
    // The first whole feed no longer has `c`.
    rig.feed(true, &[pod("a", json!({})), pod("b", json!({}))], &[]).await;
    rig.until("ended", |rig| !rig.containers.is_running("uid-c", "c") && rig.network.pods().len() == 2).await;
    assert!(rig.containers.is_running("uid-a", "c"));
}

#[tokio::test(start_paused = true)]
async fn pods_the_ledger_has_lost_are_ended_by_a_whole_feed_only() {
    let mut rig = Rig::new();
    rig.feed(true, &[pod("a", json!({}))], &[]).await;
    rig.until("ready", |rig| rig.ready("a")).await;
    let mut rig = rig.restart(|_, dir| std::fs::remove_file(dir.join("data/ledger.redb")).unwrap()).await;
    tokio::time::timeout(Duration::from_secs(60), std::future::pending::<()>()).await.unwrap_err();
    assert!(rig.containers.is_running("uid-a", "c"));
    rig.feed(true, &[], &[]).await;
    rig.until("ended", |rig| !rig.containers.is_running("uid-a", "c") && rig.network.pods().is_empty()).await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_monitor_is_replaced() {
    let mut rig = Rig::new();
    rig.feed(true, &[pod("a", json!({}))], &[]).await;
    rig.until("ready", |rig| rig.ready("a")).await;
    rig.containers.lose("uid-a");
    rig.until("restarted", |rig| rig.ready("a") && rig.statuses["a"]["containerStatuses"][0]["restartCount"] == 1)
        .await;
    assert!(rig.events.iter().any(|event| event.starts_with("Warning SandboxChanged:")));
    assert_eq!(rig.network.pods().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_take_down_that_fails_is_told_and_tried_again() {
    let mut rig = Rig::new();
    rig.feed(true, &[pod("a", json!({}))], &[]).await;
    rig.until("ready", |rig| rig.ready("a")).await;
    rig.containers.fail_once("remove", Failure::retry("FailedKillPod", "busy"));
    rig.feed(false, &[deleted(pod("a", json!({})), 5)], &[]).await;
    rig.until("told", |rig| rig.events.iter().any(|event| event.contains("FailedKillPod"))).await;
    assert!(rig.gone.is_empty());
    rig.until("gone", |rig| rig.gone == ["a"]).await;
}

#[tokio::test(start_paused = true)]
async fn everything_can_be_stopped_at_once() {
    let mut rig = Rig::new();
    let pods: Vec<_> = (0..20).map(|index| pod(&format!("p{index}"), json!({}))).collect();
    rig.feed(true, &pods, &[]).await;
    rig.until("ready", |rig| (0..20).all(|index| rig.ready(&format!("p{index}")))).await;
    rig.containers.deafen("c");
    rig.pods.stop_all(1000).await;
    assert!(rig.network.pods().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_takes_down_starts_nothing() {
    let mut rig = Rig::new();
    let (runs, crashes) = (pod("a", json!({})), pod("b", json!({})));
    rig.feed(true, &[runs, crashes], &[]).await;
    rig.until("ready", |rig| rig.ready("a") && rig.ready("b")).await;
    // One ends while no agent is there: an agent that only adopts would start it again.
    let rig = rig.restart_as(Some(1000), |containers, _| containers.end("uid-b", "c", 1, false)).await;
    let started = rig.containers.log().iter().filter(|call| call.starts_with("start")).count();
    rig.pods.stop_all(1000).await;
    let after = rig.containers.log().iter().filter(|call| call.starts_with("start")).count();
    assert_eq!((started, after), (2, 2), "{:?}", rig.containers.log());
    assert!(rig.network.pods().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_no_pod_is_told_so() {
    let mut rig = Rig::new();
    let bad = (
        "pods",
        json!({"metadata": {"name": "a", "namespace": "default", "uid": "uid-a"}, "spec": {"nodeName": "n1", "containers": [{"name": "../x"}]}}),
    );
    rig.feed(true, std::slice::from_ref(&bad), &[]).await;
    rig.until("failed", |rig| rig.statuses.get("a").is_some_and(|status| status["phase"] == "Failed")).await;
    rig.feed(false, &[deleted(bad, 0)], &[]).await;
    rig.until("gone", |rig| rig.gone == ["a"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_fenced_pod_waits_for_a_lease_with_something_left_of_it() {
    let mut rig = Rig::new();
    rig.feed(true, &[fenced("a", json!({})), pod("b", json!({}))], &[]).await;
    rig.until("waiting", |rig| rig.waiting("a") == "WaitingForLease" && rig.ready("b")).await;
    let status = rig.statuses["a"].clone();
    assert_eq!(status["phase"], "Pending");
    let message = status["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap();
    assert!(message.contains("coracle.dev/fenced") && message.contains("hint: "), "{message}");
    assert_eq!(rig.board.get("uid-a").unwrap().step, "WaitingForLease");
    rig.until("the image", |rig| rig.events.iter().filter(|event| event.contains("Pulled")).count() == 2).await;
    let short = rig.grant(900);
    rig.until("told", |rig| rig.containers.leases("uid-a").contains(&short)).await;
    assert!(!rig.containers.is_running("uid-a", "c"));
    let long = rig.grant(4000);
    rig.until("ready", |rig| rig.ready("a")).await;
    // It was born without a lease, and a pod that is not fenced is told nothing.
    let told = rig.containers.leases("uid-a");
    assert_eq!((told[0], *told.last().unwrap()), (0, long));
    assert!(rig.containers.leases("uid-b").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_renewal_is_one_message_and_its_end_is_told() {
    let mut rig = Rig::new();
    rig.grant(4000);
    rig.feed(true, &[fenced("a", json!({}))], &[]).await;
    rig.until("ready", |rig| rig.ready("a")).await;
    let before = rig.containers.leases("uid-a").len();
    for number in 1..=5 {
        let until = rig.grant(4000);
        rig.until("renewed", |rig| rig.containers.leases("uid-a").last() == Some(&until)).await;
        assert_eq!(rig.containers.leases("uid-a").len(), before + number);
    }
    assert_eq!(rig.starts(), 1);
    rig.run_out("a").await;
    let last = rig.statuses["a"]["containerStatuses"][0]["lastState"]["terminated"].clone();
    assert_eq!((&last["reason"], &last["exitCode"]), (&json!("FencedLeaseExpired"), &json!(137)));
    assert!(last["message"].as_str().unwrap().contains("the node's lease ran out"), "{last}");
    assert!(rig.events.iter().any(|event| event.starts_with("Warning FencedLeaseExpired:")), "{:?}", rig.events);
    // Nothing but a lease makes it run again.
    tokio::time::timeout(Duration::from_secs(300), std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(rig.starts(), 1);
    rig.grant(4000);
    rig.until("restarted", |rig| rig.ready("a") && rig.statuses["a"]["containerStatuses"][0]["restartCount"] == 1)
        .await;
    // One that was moved away is not started by a lease that comes before the feed that says so.
    rig.run_out("a").await;
    rig.grant_to(&["uid-b"], 4000);
    tokio::time::timeout(Duration::from_secs(3), std::future::pending::<()>()).await.unwrap_err();
    assert_eq!((rig.starts(), rig.waiting("a")), (2, "WaitingForLease"));
    rig.feed(false, &[deleted(fenced("a", json!({})), 5)], &[]).await;
    rig.until("gone", |rig| rig.gone == ["a"]).await;
    assert_eq!(rig.starts(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_never_restarts_has_failed_when_its_lease_has_run_out() {
    let mut rig = Rig::new();
    rig.grant(4000);
    rig.feed(true, &[fenced("a", json!({"restartPolicy": "Never"}))], &[]).await;
    rig.until("ready", |rig| rig.ready("a")).await;
    rig.until("without a lease", |rig| rig.containers.fence("uid-a")).await;
    rig.until("failed", |rig| rig.statuses["a"]["phase"] == "Failed").await;
    assert_eq!(rig.statuses["a"]["containerStatuses"][0]["state"]["terminated"]["reason"], "FencedLeaseExpired");
}

#[tokio::test(start_paused = true)]
async fn the_next_agent_leaves_a_deadline_as_it_is_until_it_has_a_lease() {
    let mut rig = Rig::new();
    let until = rig.grant(60_000);
    rig.feed(true, &[fenced("a", json!({})), fenced("b", json!({}))], &[]).await;
    rig.until("ready", |rig| rig.ready("a") && rig.ready("b")).await;
    let mut rig = rig.restart(|containers, _| containers.end("uid-b", "c", 1, false)).await;
    rig.until("waiting", |rig| rig.waiting("b") == "WaitingForLease").await;
    assert!(rig.containers.is_running("uid-a", "c") && rig.containers.boottime_ms() < until);
    assert_eq!(rig.starts(), 2);
    let next = rig.grant(120_000);
    rig.until("restarted", |rig| rig.ready("b")).await;
    assert_eq!(rig.containers.leases("uid-a").last(), Some(&next));
    assert!(rig.containers.is_running("uid-a", "c"));
    // No agent, no lease: what ran is found killed, and waits again.
    let mut rig = rig.restart(|_, _| {}).await;
    rig.run_out("a").await;
    assert_eq!(rig.statuses["a"]["containerStatuses"][0]["lastState"]["terminated"]["reason"], "FencedLeaseExpired");
}

#[tokio::test(start_paused = true)]
async fn a_monitor_of_an_older_release_is_replaced_before_a_fenced_pod_runs_on() {
    let mut rig = Rig::new();
    rig.grant(4000);
    rig.feed(true, &[fenced("a", json!({}))], &[]).await;
    rig.until("ready", |rig| rig.ready("a")).await;
    let mut rig = rig.restart(|containers, _| containers.age("uid-a")).await;
    rig.until("waiting", |rig| rig.waiting("a") == "WaitingForLease").await;
    assert!(rig.events.iter().any(|event| event.starts_with("Warning SandboxChanged:")), "{:?}", rig.events);
    rig.grant(4000);
    rig.until("restarted", |rig| rig.ready("a")).await;
    let creates = rig.containers.log().iter().filter(|call| *call == "create uid-a").count();
    assert_eq!((creates, rig.starts()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_fenced_when_its_owner_says_so_and_stays_so() {
    let mut rig = Rig::new();
    rig.feed(true, &[pod("a", json!({}))], &[]).await;
    rig.until("ready", |rig| rig.ready("a")).await;
    rig.grant(4000);
    rig.feed(false, &[fenced("a", json!({}))], &[]).await;
    rig.until("told", |rig| !rig.containers.leases("uid-a").is_empty()).await;
    assert!(rig.containers.is_running("uid-a", "c"));
    // Its monitor keeps the deadline it was given: without renewals it would be killed for nothing.
    rig.feed(false, &[pod("a", json!({}))], &[]).await;
    let until = rig.grant(8000);
    rig.until("renewed", |rig| rig.containers.leases("uid-a").last() == Some(&until)).await;
    let rig = rig.restart(|_, _| {}).await;
    let until = rig.grant(8000);
    let mut rig = rig;
    rig.until("renewed", |rig| rig.containers.leases("uid-a").last() == Some(&until)).await;
    assert_eq!(rig.starts(), 1);
}
