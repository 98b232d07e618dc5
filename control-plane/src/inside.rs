//! The inside of a server, without doors: what it does for its nodes over a log that is open. A server adds its doors and the wire;
//! a simulation drives this in virtual time.

use std::sync::Arc;

use coracle_daemon::DrainWatch;
use coracle_protocol::v1::{BeatsAnswer, BeatsReport, FromAgent};
use coracle_raft::Raft;
use tokio_stream::Stream;
use tonic::Status;

pub use crate::beats::{Carrier, Mandate};
use crate::leader::{self, Duties, Work};
use crate::pki::Authority;
pub use crate::sessions::Down;
use crate::sessions::{NetworkPlan, Sessions};
use crate::{beats, memory, now};

/// Begins what a server does by itself: it leads when its log does, and brings beats to whoever leads.
pub(crate) fn begin(duties: Duties, carrier: Arc<dyn Carrier>, mandate: Arc<dyn Mandate>, drain: &DrainWatch) {
    let (raft, sessions) = (duties.log.raft().clone(), duties.sessions.clone());
    drain.spawn(leader::run(duties, drain.clone()));
    drain.spawn(beats::run(raft, carrier, mandate, sessions, drain.clone()));
}

/// What it needs beside its log.
pub struct Needs {
    /// The addresses of the cluster.
    pub network: NetworkPlan,
    /// What signs the agents' certificates.
    pub authority: Arc<Authority>,
    /// The way to the leader.
    pub carrier: Arc<dyn Carrier>,
    /// The right to grant leases: the log's own, but for lies that are told on purpose.
    pub mandate: Arc<dyn Mandate>,
}

/// One server's inside. Cheap to clone.
#[derive(Clone)]
pub struct Inside {
    sessions: Sessions,
    mandate: Arc<dyn Mandate>,
}

impl Inside {
    /// Begins on the runtime this is called in, over a log that is open; ends with the drain.
    pub fn start(raft: &Raft, needs: Needs, drain: &DrainWatch) -> Self {
        let (memory, log) = memory::over(raft.clone());
        let Needs { network, authority, carrier, mandate } = needs;
        let services = network.service_cidr;
        let sessions = Sessions::new(memory, log.cluster_id(), network, authority);
        let duties =
            Duties { log, sessions: sessions.clone(), work: Arc::new(Work::default()), services, api_port: 6443 };
        begin(duties, carrier, mandate.clone(), drain);
        Self { sessions, mandate }
    }

    /// Opens the session of an agent that has shown which node it is; what comes back goes down to it.
    ///
    /// # Errors
    /// As the agent is told.
    pub async fn open(
        &self,
        node: String,
        up: impl Stream<Item = Result<FromAgent, Status>> + Unpin + Send + 'static,
    ) -> Result<Down, Status> {
        self.sessions.open(node, up).await
    }

    /// What another server gets for the beats of its agents; `None`: this one does not lead.
    pub async fn hear(&self, report: BeatsReport) -> Option<BeatsAnswer> {
        beats::hear(&*self.mandate, &self.sessions, report).await
    }
}

/// From now on everything inside that is driven by this thread draws identifiers from a seed, and has the time of day of `play_time`.
pub fn play(seed: u64) {
    now::play(seed);
}

/// The time of day of this thread, in milliseconds since 1970.
pub fn play_time(ms: u64) {
    now::play_time(ms);
}
