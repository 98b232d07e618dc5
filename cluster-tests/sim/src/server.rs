//! The inside of a server in the simulation: what it is given instead of a wire, papers and an honest mandate.

use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use coracle_base::Release;
use coracle_control_plane::inside::{Carrier, Inside, Mandate, Needs};
use coracle_control_plane::pki::Authority;
use coracle_control_plane::sessions::NetworkPlan;
use coracle_daemon::Drain;
use coracle_protocol::v1::{BeatsAnswer, BeatsReport};
use coracle_raft::{Carried, Message, PeerError, Peers, Raft};
use coracle_store::{Expect, Op, Transaction};
use prost::Message as _;

use crate::Bug;
use crate::network::{Kind, Plug};

/// As the real carrier.
const BEATS_WITHIN: Duration = Duration::from_secs(2);

type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl Peers for Plug {
    fn ask(&self, address: &str, bulk: bool, question: Message, _within: Duration) -> Carried<'_> {
        let address = address.to_owned();
        Box::pin(async move {
            let words = self.carry(address, Kind::Log { once: bulk }, question.words).await?;
            Ok(Message { words, release: Release::own() })
        })
    }
}

impl Carrier for Plug {
    fn beats(&self, address: &str, report: BeatsReport) -> BoxFuture<'_, Result<BeatsAnswer, PeerError>> {
        let address = address.to_owned();
        Box::pin(async move {
            let lost = |reason: &str| PeerError::Lost { address: address.clone(), reason: reason.to_owned() };
            let asked = self.carry(address.clone(), Kind::Beats, report.encode_to_vec().into());
            let answer = tokio::time::timeout(BEATS_WITHIN, asked).await;
            let answer = answer.unwrap_or_else(|_| Err(lost("it does not answer")))?;
            BeatsAnswer::decode(answer).map_err(|_| lost("it does not lead"))
        })
    }
}

/// Takes the right to grant leases without asking anybody.
struct Usurper;

impl Mandate for Usurper {
    fn leads(&self) -> bool {
        true
    }

    fn confirmed(&self) -> BoxFuture<'_, bool> {
        Box::pin(std::future::ready(true))
    }
}

fn authority() -> Arc<Authority> {
    // It signs nothing here, and its keys decide nothing.
    static AUTHORITY: OnceLock<Arc<Authority>> = OnceLock::new();
    let make = || {
        let directory = tempfile::tempdir().expect("a directory for keys");
        Arc::new(Authority::open(directory.path(), "simulated").expect("keys"))
    };
    AUTHORITY.get_or_init(make).clone()
}

/// Starts it on the runtime this is called in.
#[must_use]
pub fn start(raft: &Raft, plug: Arc<Plug>, bug: Option<Bug>, drain: &Drain) -> Inside {
    let network = NetworkPlan {
        cluster_cidr: "10.244.0.0/16".parse().expect("a block"),
        service_cidr: "10.96.0.0/16".parse().expect("a block"),
        node_prefix: 24,
        domain: "cluster.local".to_owned(),
    };
    let mandate: Arc<dyn Mandate> = match bug {
        Some(Bug::FollowerGrants) => Arc::new(Usurper),
        _ => Arc::new(raft.clone()),
    };
    if bug == Some(Bug::DoubleGrant) {
        drop(tokio::spawn(hasten(raft.clone())));
    }
    Inside::start(raft, Needs { network, authority: authority(), carrier: plug, mandate }, &drain.watch())
}

/// Moves pods from silent nodes without waiting for their leases.
async fn hasten(raft: Raft) {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await; // poll
        if !raft.is_leader() {
            continue;
        }
        let view = raft.view();
        let silent = |node: &&Arc<coracle_store::Object>| {
            let conditions = node.tree()["status"]["conditions"].as_array();
            conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "Unknown"))
        };
        let gone: Vec<Transaction> = view
            .list("nodes", None)
            .filter(silent)
            .flat_map(|node| view.pods_on(&node.key.name))
            .map(|pod| Op::Delete { key: pod.key.clone(), expect: Expect::default() }.into())
            .collect();
        drop(raft.propose_here(gone).await);
    }
}

/// Where a server listens.
#[must_use]
pub fn address(server: usize) -> String {
    let last = u8::try_from(server + 1).expect("a handful of servers");
    format!("{}:6444", Ipv4Addr::new(10, 0, 0, last))
}

/// The server at an address.
#[must_use]
pub fn server_at(address: &str) -> Option<usize> {
    let (ip, _) = address.split_once(':')?;
    let last = *ip.parse::<Ipv4Addr>().ok()?.octets().last()?;
    usize::from(last).checked_sub(1)
}
