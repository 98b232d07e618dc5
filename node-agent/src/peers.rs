//! Images from other nodes and for them: which nodes to ask, and this node's blob server.
//!
//! Every Node's status says which images it has (`status.images`) and where its blob server listens
//! (`status.daemonEndpoints`); the ledger holds all Nodes, so whom to ask is known with every server gone.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use coracle_daemon::DrainWatch;
use coracle_images::peers::{BlobServer, Locate, Peer, PeerIdentity, Peers, ServeError};
use coracle_images::{ImageStore, Reference};
use rand::seq::SliceRandom as _;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::ledger::State;

/// How often an address that could not be listened on is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// Serves the store to other nodes and has it ask them. Gives the port it is served on, `None` while it is not: an address that
/// is in use is told, and tried again until the drain.
pub async fn start(
    store: &ImageStore,
    node: &str,
    listen: SocketAddr,
    identity: watch::Receiver<PeerIdentity>,
    state: watch::Receiver<State>,
    drain: &DrainWatch,
) -> watch::Receiver<Option<u16>> {
    store.ask_peers(Peers::new(std::sync::Arc::new(Neighbours::new(node, state)), identity.clone()));
    let (port, shown) = watch::channel(None);
    let first = BlobServer::bind(store.clone(), listen, identity.clone()).await;
    tell(&port, &first);
    if let Err(error) = &first {
        tracing::warn!(error = coracle_base::one_line(error), "other nodes cannot fetch images from here");
    }
    drain.spawn(serve(first, store.clone(), listen, identity, port, drain.token()));
    shown
}

fn tell(port: &watch::Sender<Option<u16>>, server: &Result<BlobServer, ServeError>) {
    let address = server.as_ref().ok().and_then(|server| server.address().ok());
    port.send_replace(address.map(|address| address.port()));
}

async fn serve(
    mut server: Result<BlobServer, ServeError>,
    store: ImageStore,
    listen: SocketAddr,
    identity: watch::Receiver<PeerIdentity>,
    port: watch::Sender<Option<u16>>,
    end: CancellationToken,
) {
    loop {
        let trying = async {
            match server {
                Ok(server) => server.run().await,
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        };
        tokio::select! {
            // Cancel safe: the server is dropped for good.
            () = trying => {}
            () = end.cancelled() => return,
        }
        server = BlobServer::bind(store.clone(), listen, identity.clone()).await;
        tell(&port, &server);
        if server.is_ok() {
            tracing::info!("other nodes can fetch images from here");
        }
    }
}

/// The other nodes, as the ledger has them.
#[derive(Debug)]
pub struct Neighbours {
    own: String,
    state: watch::Receiver<State>,
}

impl Neighbours {
    /// All but the node `own`.
    #[must_use]
    pub fn new(own: &str, state: watch::Receiver<State>) -> Self {
        Self { own: own.to_owned(), state }
    }
}

impl Locate for Neighbours {
    fn candidates(&self, wanted: &Reference) -> Vec<Peer> {
        let state = self.state.borrow().clone();
        let (mut listed, mut others) = (Vec::new(), Vec::new());
        for (key, held) in state.list("nodes") {
            let status = &held.tree["status"];
            let Some(address) = address(status).filter(|_| key.name != self.own && is_ready(status)) else { continue };
            let found = find(status, wanted);
            let peer = Peer { node: key.name.clone(), address, listed: found.is_some() };
            match found {
                Some(digest) => listed.push((digest, peer)),
                None => others.push(peer),
            }
        }
        listed.shuffle(&mut rand::rng());
        others.shuffle(&mut rand::rng());
        // Only the first few are asked: where nodes have different contents under one name, each kind is heard.
        let mut heard = HashSet::new();
        let (first, rest): (Vec<_>, Vec<_>) = listed.into_iter().partition(|(digest, _)| heard.insert(*digest));
        first.into_iter().chain(rest).map(|(_, peer)| peer).chain(others).collect()
    }
}

/// Where a node's blob server listens.
fn address(status: &Value) -> Option<SocketAddr> {
    let port = status["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64()?;
    let port = u16::try_from(port).ok().filter(|port| *port != 0)?;
    let addresses = status["addresses"].as_array()?;
    let own = addresses.iter().find(|address| address["type"] == "InternalIP")?;
    Some(SocketAddr::new(own["address"].as_str()?.parse::<IpAddr>().ok()?, port))
}

fn is_ready(status: &Value) -> bool {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.clone().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// The digest a node has a wanted image by; its name does not matter where the contents are wanted.
fn find<'a>(status: &'a Value, wanted: &Reference) -> Option<&'a str> {
    let name = wanted.to_string();
    let digest_of = |name: &'a str| name.split_once('@').map(|(_, digest)| digest);
    status["images"].as_array()?.iter().find_map(|image| {
        let names = || image["names"].as_array().into_iter().flatten().filter_map(Value::as_str);
        match wanted.digest() {
            Some(digest) => names().filter_map(digest_of).find(|found| *found == digest.as_str()),
            None => names().any(|found| found == name).then(|| names().find_map(digest_of).unwrap_or_default()),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::{Held, Key};
    use serde_json::json;
    use std::sync::Arc;

    fn digest(byte: &str) -> String {
        format!("sha256:{}", byte.repeat(32))
    }

    fn node(address: &str, port: u64, ready: &str, images: &[Value]) -> Value {
        json!({"status": {
            "addresses": [{"type": "Hostname", "address": "x"}, {"type": "InternalIP", "address": address}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
            "conditions": [{"type": "Ready", "status": ready}],
            "images": images,
        }})
    }

    fn image(byte: &str, name: &str) -> Value {
        let (repository, _) = name.rsplit_once(':').unwrap();
        json!({"names": [format!("{repository}@{}", digest(byte)), name], "sizeBytes": 1})
    }

    fn neighbours(nodes: &[(&str, Value)]) -> Neighbours {
        let mut state = State::default();
        for (name, tree) in nodes {
            let held = Held { uid: String::new(), revision: 1, tree: tree.clone() };
            state.objects.insert(Key::new("nodes", "", name), Arc::new(held));
        }
        Neighbours::new("me", watch::channel(state).1)
    }

    fn asked(neighbours: &Neighbours, wanted: &str) -> Vec<(String, bool)> {
        let peers = neighbours.candidates(&wanted.parse().unwrap());
        peers.into_iter().map(|peer| (peer.node, peer.listed)).collect()
    }

    #[test]
    fn nodes_that_list_an_image_come_before_those_that_do_not() {
        let app = [image("ab", "example.com/app:1")];
        let nodes = neighbours(&[
            ("me", node("10.0.0.1", 6445, "True", &app)),
            ("has", node("10.0.0.2", 7000, "True", &app)),
            ("dead", node("10.0.0.3", 6445, "Unknown", &app)),
            ("mute", node("10.0.0.4", 0, "True", &app)),
            ("old", json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}})),
            ("none", node("10.0.0.5", 6445, "True", &[])),
        ]);
        let both = [("has".to_owned(), true), ("none".to_owned(), false)];
        assert_eq!(asked(&nodes, "example.com/app:1"), both);
        assert_eq!(asked(&nodes, &format!("example.com/app@{}", digest("ab"))), both);
        assert_eq!(asked(&nodes, &format!("another.name/of-it@{}", digest("ab"))), both);
        for other in ["example.com/app:2".to_owned(), format!("example.com/app@{}", digest("cd"))] {
            assert!(asked(&nodes, &other).iter().all(|(_, listed)| !listed), "{other}");
        }
        let peer = nodes.candidates(&"example.com/app:1".parse().unwrap()).remove(0);
        assert_eq!(peer.address.to_string(), "10.0.0.2:7000");
    }

    #[test]
    fn a_name_of_two_meanings_is_heard_in_both() {
        let same = || node("10.0.0.2", 6445, "True", &[image("ab", "example.com/app:1")]);
        let new = node("10.0.0.9", 6445, "True", &[image("cd", "example.com/app:1")]);
        let nodes = neighbours(&[("a", same()), ("b", same()), ("c", same()), ("d", same()), ("new", new)]);
        for _ in 0..20 {
            let first: Vec<String> =
                asked(&nodes, "example.com/app:1").into_iter().map(|(node, _)| node).take(2).collect();
            assert!(first.contains(&"new".to_owned()), "{first:?}");
        }
    }
}
