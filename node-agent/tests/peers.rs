//! Two agents and what they say of their images: one imports, the other one's status and ledger know where to find it.

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use coracle_daemon::Drain;
use coracle_images::peers::PeerIdentity;
use coracle_images::{ImageStore, PullPolicy};
use coracle_node_agent::ledger::{Held, Key, State};
use coracle_node_agent::node_status::{NodeFacts, Reporter};
use coracle_node_agent::outbox::Outbox;
use coracle_node_agent::peers;
use serde_json::{Value, json};
use support::{Pki, busybox, import_busybox};
use tokio::sync::watch;

const NAME: &str = "test/busybox:1";

/// A node without pods: its store, served and reported.
struct Node {
    store: ImageStore,
    outbox: Arc<Outbox>,
    state: watch::Sender<State>,
}

async fn node(name: &str, dir: &std::path::Path, pki: &Pki, drain: &Drain) -> Node {
    let data_dir = dir.join(name);
    let store = ImageStore::open(data_dir.join("images")).unwrap();
    let (cert_pem, key_pem) = pki.leaf(&format!("system:node:{name}"), "system:nodes", false);
    let identity = watch::channel(PeerIdentity { cert_pem, key_pem, ca_pem: pki.ca_pem.clone() }).1;
    let state = watch::Sender::new(State::default());
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let blob_port = peers::start(&store, name, listen, identity, state.subscribe(), &drain.watch()).await;
    let facts = NodeFacts {
        name: name.into(),
        ip: Ipv4Addr::LOCALHOST,
        cpu_milli: 1000,
        memory_bytes: 1 << 30,
        max_pods: 10,
        labels: std::collections::BTreeMap::new(),
    };
    let outbox = Arc::new(Outbox::default());
    let reporter = Reporter { facts, data_dir, store: store.clone(), blob_port };
    drain.watch().spawn(reporter.run(outbox.clone(), drain.watch().token()));
    Node { store, outbox, state }
}

impl Node {
    /// The next status that is told.
    async fn told(&self) -> Value {
        let told = async {
            loop {
                self.outbox.ready().await;
                let report = self.outbox.take().unwrap();
                if !report.node_status.is_empty() {
                    return serde_json::from_slice(&report.node_status).unwrap();
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), told).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_is_told_at_once_and_found_by_the_other_node() {
    if !rustix::process::geteuid().is_root() || busybox().is_none() {
        println!("SKIP: needs root and a static busybox");
        return;
    }
    let (dir, pki, drain) = (tempfile::tempdir().unwrap(), Pki::new(), Drain::new());
    let (a, b) = (node("a", dir.path(), &pki, &drain).await, node("b", dir.path(), &pki, &drain).await);
    // By another program, as `coracle image import` is one.
    import_busybox(&ImageStore::open(a.store.dir()).unwrap(), dir.path()).await;
    let imported = Instant::now();
    let mut status = a.told().await;
    while status["images"][0]["names"][1] != format!("docker.io/{NAME}") {
        status = a.told().await;
    }
    assert!(imported.elapsed() < Duration::from_secs(2), "{:?}", imported.elapsed());
    let images = status["images"].clone();
    // As the servers tell it: with the conditions, to everybody.
    let reference = NAME.parse().unwrap();
    let error = b.store.ensure(&reference, PullPolicy::Never).await.unwrap_err();
    assert_eq!(error.reason(), "ErrImageNeverPull");
    b.state.send_modify(|state| {
        let held = Held { uid: "u".into(), revision: 2, tree: json!({"status": status}) };
        state.objects.insert(Key::new("nodes", "", "a"), Arc::new(held));
    });
    let image = b.store.ensure(&reference, PullPolicy::Always).await.unwrap();
    assert_eq!(image.digest, a.store.find(&reference).unwrap().unwrap().digest);
    assert_eq!(b.told().await["images"], images, "the same image is told in the same words");
    drain.finish(Duration::from_secs(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_in_use_is_taken_when_it_is_free() {
    let (dir, pki, drain) = (tempfile::tempdir().unwrap(), Pki::new(), Drain::new());
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    let (cert_pem, key_pem) = pki.node.clone();
    let identity = watch::channel(PeerIdentity { cert_pem, key_pem, ca_pem: pki.ca_pem.clone() }).1;
    let state = watch::channel(State::default()).1;
    let mut port = peers::start(&store, support::NODE, address, identity, state, &drain.watch()).await;
    assert_eq!(*port.borrow_and_update(), None);
    drop(taken);
    let free = port.wait_for(Option::is_some);
    let free = *tokio::time::timeout(Duration::from_secs(30), free).await.unwrap().unwrap();
    assert_eq!(free, Some(address.port()));
    drain.finish(Duration::from_secs(5)).await;
}
