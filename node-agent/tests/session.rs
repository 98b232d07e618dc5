//! The session with a server that comes and goes: what is told again, what is refused.

mod support;

use std::sync::Arc;
use std::time::Duration;

use coracle_daemon::Drain;
use coracle_node_agent::ledger::Ledger;
use coracle_node_agent::outbox::Outbox;
use coracle_node_agent::session::{LetGo, Session, SessionState};
use coracle_node_agent::tunnels::Tunnels;
use coracle_node_agent::{Identity, ServerEndpoint};
use coracle_protocol::v1::{LetGone, LogRequest, NodeEvent, PodGone, PodStatus, Settle, SliceAt, Slices, from_server};
use serde_json::json;
use support::{NODE, Pki, TestServer, pod, sh};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

struct Rig {
    dir: tempfile::TempDir,
    drain: Drain,
    outbox: Arc<Outbox>,
    ledger: watch::Receiver<coracle_node_agent::ledger::State>,
    state: watch::Receiver<SessionState>,
    /// What the kernel's tables were last made of.
    applied: watch::Sender<coracle_node_agent::ledger::State>,
    let_go: watch::Receiver<LetGo>,
}

fn rig(pki: &Pki, servers: &[&str]) -> Rig {
    let dir = tempfile::tempdir().unwrap();
    let drain = Drain::new();
    let ledger = Ledger::open(&dir.path().join("data"), &dir.path().join("run"), &drain.watch()).unwrap();
    let outbox = Arc::new(Outbox::default());
    let state = watch::Sender::new(SessionState::default());
    let (applied, let_go) = (watch::Sender::default(), watch::Sender::<LetGo>::default());
    let rig = Rig {
        drain,
        outbox: outbox.clone(),
        ledger: ledger.watch(),
        state: state.subscribe(),
        applied,
        let_go: let_go.subscribe(),
        dir,
    };
    let session = Session {
        node: NODE.into(),
        identity: watch::Sender::new(Identity {
            cert_pem: pki.node.0.clone(),
            key_pem: pki.node.1.clone(),
            ca_pem: pki.ca_pem.clone(),
        }),
        pki: rig.dir.path().join("pki"),
        servers: servers.iter().map(|address| ServerEndpoint { address: (*address).into() }).collect(),
        ledger,
        outbox,
        node_object: Arc::new(|| b"{\"kind\":\"Node\"}".to_vec()),
        tunnels: Tunnels::new(rig.dir.path().join("logs"), Arc::new(|_: &LogRequest| Err("ContainerCreating".into()))),
        state,
        lease: watch::Sender::default(),
        let_go,
        applied: rig.applied.subscribe(),
        orphans_until: None,
    };
    rig.drain.watch().spawn(session.run(rig.drain.watch().token()));
    rig
}

fn status(name: &str, phase: &str) -> PodStatus {
    PodStatus {
        namespace: "default".into(),
        name: name.into(),
        uid: format!("uid-{name}"),
        status: serde_json::to_vec(&json!({"phase": phase})).unwrap(),
    }
}

#[tokio::test]
async fn a_server_that_comes_back_hears_all_that_holds() {
    let (pki, server, end) = (Pki::new(), TestServer::new(), CancellationToken::new());
    server.put("pods", pod("a", json!([sh("true")]), json!({})));
    let address = server.serve(&pki, 0, end.clone()).await;
    // The first address answers to nobody: the next is tried.
    let mut rig = rig(&pki, &["127.0.0.1:1", &address.to_string()]);
    rig.state.wait_for(|state| state.connected).await.unwrap();
    rig.ledger.wait_for(|state| state.get("pods", "default", "a").is_some()).await.unwrap();
    assert_eq!(rig.ledger.borrow().settings.as_ref().unwrap().pod_cidr, "10.42.7.0/24");
    for phase in ["Pending", "Running"] {
        rig.outbox.pod(status("a", phase));
    }
    rig.outbox.pod(status("b", "Running"));
    server.until("told", |told| told.statuses.get("a").is_some_and(|status| status["phase"] == "Running")).await;
    server.until("beaten", |told| told.beats > 0).await;
    end.cancel();
    rig.state.wait_for(|state| !state.connected).await.unwrap();
    rig.outbox.pod(status("a", "Succeeded"));
    let gone = PodGone { namespace: "default".into(), name: "b".into(), uid: "uid-b".into() };
    rig.outbox.gone(gone);
    rig.outbox.event(NodeEvent { name: "a".into(), reason: "Said".into(), ..NodeEvent::default() });
    let second = TestServer::new();
    second.put("pods", pod("a", json!([sh("true")]), json!({})));
    second.put("pods", pod("c", json!([sh("true")]), json!({})));
    second.serve(&pki, address.port(), CancellationToken::new()).await;
    second
        .until("told everything", |told| {
            told.statuses.get("a").is_some_and(|status| status["phase"] == "Succeeded")
                && told.gone == ["b"]
                && told.events.len() == 1
        })
        .await;
    second.told(|told| assert!(!told.statuses.contains_key("b")));
    rig.ledger.wait_for(|state| state.get("pods", "default", "c").is_some()).await.unwrap();
    drop(rig.dir);
}

#[tokio::test]
async fn what_a_server_waits_for_is_said_once_the_kernel_has_it() {
    let (pki, server) = (Pki::new(), TestServer::new());
    server.put("pods", pod("a", json!([sh("true")]), json!({})));
    let slice = || json!({"metadata": {"name": "web-1", "namespace": "default"}, "endpoints": []});
    server.put("endpointslices.discovery.k8s.io", slice());
    let address = server.serve(&pki, 0, CancellationToken::new()).await;
    let mut rig = rig(&pki, &[&address.to_string()]);
    let held = |state: &coracle_node_agent::ledger::State| {
        state.get("endpointslices.discovery.k8s.io", "default", "web-1").map(|held| held.revision)
    };
    let first = rig.ledger.wait_for(|state| held(state).is_some()).await.unwrap().clone();
    let now = held(&first).unwrap();
    rig.applied.send_replace(first);
    let at = |name: &str, revision| SliceAt { namespace: "default".into(), name: name.into(), epoch: 1, revision };
    let ask = |ticket, slices| from_server::Message::Settle(Settle { ticket, slices: Some(Slices { slices }) });
    server.say(ask(1, vec![at("web-1", now + 1), at("gone-1", now + 1)])).await;
    server.say(ask(2, vec![at("web-1", now)])).await;
    server.until("settled for the older", |told| told.settled == [2]).await;
    // The ledger has the newer one; the kernel does not yet.
    server.put("endpointslices.discovery.k8s.io", slice());
    let second = rig.ledger.wait_for(|state| held(state) == Some(now + 1)).await.unwrap().clone();
    server.say(ask(3, Vec::new())).await;
    server.until("settled for nothing", |told| told.settled == [2, 3]).await;
    rig.applied.send_replace(second);
    server.until("settled for the newer", |told| told.settled == [2, 3, 1]).await;
    // Who is let go of is remembered for as long as it is here.
    server.say(from_server::Message::LetGone(LetGone { pods: vec!["uid-a".into(), "uid-b".into()] })).await;
    let let_go = rig.let_go.wait_for(|let_go| !let_go.pods.is_empty()).await.unwrap().clone();
    assert_eq!(let_go.pods.iter().collect::<Vec<_>>(), ["uid-a"]);
}

#[tokio::test]
async fn a_server_that_is_behind_is_refused_in_words() {
    let (pki, server, end) = (Pki::new(), TestServer::new(), CancellationToken::new());
    for _ in 0..5 {
        server.put("pods", pod("a", json!([sh("true")]), json!({})));
    }
    let address = server.serve(&pki, 0, end.clone()).await;
    let mut rig = rig(&pki, &[&address.to_string()]);
    rig.ledger.wait_for(|state| state.get("pods", "default", "a").is_some()).await.unwrap();
    end.cancel();
    TestServer::new().serve(&pki, address.port(), CancellationToken::new()).await;
    let state = rig
        .state
        .wait_for(|state| state.because.as_ref().is_some_and(|why| why.contains("behind")))
        .await
        .unwrap()
        .clone();
    assert!(state.because.unwrap().contains("is older than the ledger's"));
    assert!(rig.ledger.borrow().get("pods", "default", "a").is_some());
}

#[tokio::test]
async fn a_stranger_is_not_believed() {
    let (pki, server) = (Pki::new(), TestServer::new());
    let address = server.serve(&Pki::new(), 0, CancellationToken::new()).await;
    let mut rig = rig(&pki, &[&address.to_string()]);
    rig.state.wait_for(|state| state.because.is_some()).await.unwrap();
    server.told(|told| assert_eq!(told.hellos, 0));
    drop(rig.drain);
}

#[tokio::test]
async fn log_streams_carry_the_words_of_a_failure() {
    let (pki, server) = (Pki::new(), TestServer::new());
    let address = server.serve(&pki, 0, CancellationToken::new()).await;
    let mut rig = rig(&pki, &[&address.to_string()]);
    rig.state.wait_for(|state| state.connected).await.unwrap();
    let words = server.log_text("a", "c").await.unwrap_err();
    assert_eq!(words, "container \"c\" in pod \"a\" is waiting to start: ContainerCreating");
    assert!(server.log_text("../../etc", "c").await.is_err());
    let dir = rig.dir.path().join("logs/default_a_uid-a/c");
    std::fs::create_dir_all(&dir).unwrap();
    let lines: String = (0..20_000).map(|number| format!("2026-11-26T12:00:00Z stdout F line {number}\n")).collect();
    std::fs::write(dir.join("0.log"), lines).unwrap();
    let text = tokio::time::timeout(Duration::from_secs(20), server.log_text("a", "c")).await.unwrap().unwrap();
    assert_eq!(text.lines().count(), 20_000);
}

#[tokio::test]
async fn a_certificate_that_ends_soon_is_exchanged_while_the_session_stands() {
    let (mut pki, server, end) = (Pki::new(), TestServer::new(), CancellationToken::new());
    pki.node = pki.node_ending_in(20);
    server.sign_with(&pki);
    let address = server.serve(&pki, 0, end.clone()).await;
    let mut rig = rig(&pki, &[&address.to_string()]);
    rig.state.wait_for(|state| state.connected).await.unwrap();
    let file = rig.dir.path().join("pki/node.crt");
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while !file.exists() {
        assert!(std::time::Instant::now() < until, "nothing was renewed");
        tokio::time::sleep(Duration::from_millis(10)).await; // poll
    }
    let renewed = std::fs::read_to_string(&file).unwrap();
    assert_ne!(renewed, pki.node.0);
    assert!(coracle_protocol::tls::life_left(&renewed).unwrap() > 0.9);
    // The next session is opened with it, and its key fits.
    end.cancel();
    rig.state.wait_for(|state| !state.connected).await.unwrap();
    let second = TestServer::new();
    let again = CancellationToken::new();
    second.serve(&pki, address.port(), again.clone()).await;
    rig.state.wait_for(|state| state.connected).await.unwrap();
    again.cancel();
}
