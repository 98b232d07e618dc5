//! The agents' connections to servers: each carries what is said in order, late or not at all, and breaks like TCP does.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use coracle_control_plane::inside::Inside;
use coracle_protocol::v1::{FromAgent, FromServer};
use prost::Message as _;
use rand::RngExt as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::network::Network;

/// Messages of an agent that a server has not taken yet, at most.
const QUEUE: usize = 256;

/// One connection.
#[derive(Debug)]
struct Wire {
    up: VecDeque<(u64, FromAgent)>,
    /// `None` at the end: the server has hung up.
    down: VecDeque<(u64, Option<FromServer>)>,
    last: [u64; 2],
    /// Where what comes up goes in; gone with the server, or when the wire is closed.
    server: Option<mpsc::Sender<Result<FromAgent, Status>>>,
}

/// All of them; clones share them.
#[derive(Debug, Clone)]
pub struct Wires {
    network: Network,
    wires: Arc<Mutex<(u64, BTreeMap<u64, Wire>)>>,
}

impl Wires {
    /// None yet, over this network.
    #[must_use]
    pub fn new(network: Network) -> Self {
        Self { network, wires: Arc::default() }
    }

    fn all(&self) -> MutexGuard<'_, (u64, BTreeMap<u64, Wire>)> {
        self.wires.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When something that is said now arrives: mostly soon, now and then much later.
    fn due(&self, said: &[u8]) -> u64 {
        let mut network = self.network.state();
        let late = if network.dice().random_bool(0.02) { 2000 } else { network.slow.max(2) };
        let takes = network.dice().random_range(1..=late);
        network.note(said);
        network.now + takes
    }

    /// A connection of a node to a server, whose end is a task of the runtime that `spawn` spawns on.
    pub fn open(&self, node: String, inside: Inside, runtime: &tokio::runtime::Runtime) -> u64 {
        let (server, up) = mpsc::channel(QUEUE);
        let number = {
            let mut all = self.all();
            all.0 += 1;
            let wire = Wire { up: VecDeque::new(), down: VecDeque::new(), last: [0; 2], server: Some(server) };
            let number = all.0;
            all.1.insert(number, wire);
            number
        };
        let wires = self.clone();
        drop(runtime.spawn(async move {
            use tokio_stream::StreamExt as _;
            if let Ok(mut down) = inside.open(node, ReceiverStream::new(up)).await {
                while let Some(Ok(message)) = down.next().await {
                    wires.say_down(number, Some(message));
                }
            }
            wires.say_down(number, None);
        }));
        number
    }

    /// The agent says something.
    pub fn say_up(&self, number: u64, message: FromAgent) {
        let due = self.due(&message.encode_to_vec());
        if let Some(wire) = self.all().1.get_mut(&number) {
            wire.last[0] = wire.last[0].max(due);
            wire.up.push_back((wire.last[0], message));
        }
    }

    fn say_down(&self, number: u64, message: Option<FromServer>) {
        let due = self.due(&message.as_ref().map(FromServer::encode_to_vec).unwrap_or_default());
        if let Some(wire) = self.all().1.get_mut(&number) {
            wire.last[1] = wire.last[1].max(due);
            wire.down.push_back((wire.last[1], message));
        }
    }

    /// Hands the server what has arrived by now.
    pub fn deliver_up(&self, number: u64, now: u64) {
        let mut all = self.all();
        let Some(wire) = all.1.get_mut(&number) else { return };
        let Some(server) = &wire.server else { return };
        while let Some((_, message)) = wire.up.pop_front_if(|(due, _)| *due <= now) {
            if server.try_send(Ok(message)).is_err() {
                // The session is over: what else is said on this wire is lost.
                wire.server = None;
                return;
            }
        }
    }

    /// Takes what has arrived at the agent by now; `None` at the end when the server has hung up.
    #[must_use]
    pub fn take_down(&self, number: u64, now: u64) -> Vec<Option<FromServer>> {
        let mut all = self.all();
        let Some(wire) = all.1.get_mut(&number) else { return vec![None] };
        let mut taken = Vec::new();
        while let Some((_, message)) = wire.down.pop_front_if(|(due, _)| *due <= now) {
            taken.push(message);
        }
        taken
    }

    /// The wire is no more; its server sees the end of the stream.
    pub fn close(&self, number: u64) {
        let wire = self.all().1.remove(&number);
        drop(wire);
    }
}
