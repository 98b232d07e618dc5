//! The way to other servers, over mutual TLS: words of the log, beats of agents, logs of nodes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use coracle_api::BoxFuture;
use coracle_base::Release;
use coracle_protocol::MAX_MESSAGE_BYTES;
use coracle_protocol::tls::Wallet;
use coracle_protocol::v1::servers_client::ServersClient;
use coracle_protocol::v1::{BeatsAnswer, BeatsReport, LogRelay, Slices, TunnelDown, Words};
use coracle_raft::{Carried, Message, PeerError, Peers};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::beats::Carrier;

/// A server that does not answer the knock is not there.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// A connection without a word for so long, and again, is dead.
const ALIVE: Duration = Duration::from_secs(1);
/// Connections kept: a cluster has a handful of servers.
const CHANNELS: usize = 128;

/// Connections to other servers, made when needed. Cheap to clone.
#[derive(Clone)]
pub(crate) struct ServerPeers {
    wallet: Wallet,
    channels: Arc<Mutex<HashMap<(String, bool), Channel>>>,
}

impl ServerPeers {
    pub fn new(wallet: Wallet) -> Self {
        Self { wallet, channels: Arc::default() }
    }

    fn channels(&self) -> std::sync::MutexGuard<'_, HashMap<(String, bool), Channel>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn client(&self, address: &str, bulk: bool) -> Result<ServersClient<Channel>, PeerError> {
        let key = (address.to_owned(), bulk);
        let known = self.channels().get(&key).cloned();
        let channel = match known {
            Some(channel) => channel,
            None => {
                let dialled = self.wallet.dial(address, CONNECT_WITHIN, ALIVE).await;
                let channel = dialled.map_err(|error| PeerError::Unreachable {
                    address: address.to_owned(),
                    reason: coracle_base::one_line(&error),
                })?;
                let mut channels = self.channels();
                if channels.len() >= CHANNELS {
                    channels.clear();
                }
                channels.insert(key, channel.clone());
                channel
            }
        };
        Ok(ServersClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// After a failure the next question knocks anew: what the connection thinks of the other end may be wrong.
    fn failed(&self, address: &str, bulk: bool, status: &Status) -> PeerError {
        self.channels().remove(&(address.to_owned(), bulk));
        let (address, reason) = (address.to_owned(), status.message().to_owned());
        // Refused before it was looked at.
        if matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented) {
            return PeerError::Unreachable { address, reason };
        }
        PeerError::Lost { address, reason }
    }

    /// Returns once the agents of that server have taken over what the slices say.
    pub async fn settle(&self, address: &str, slices: Slices) -> Result<(), PeerError> {
        let answer = self.client(address, false).await?.settle(slices).await;
        answer.map(|_| ()).map_err(|status| self.failed(address, false, &status))
    }

    /// A log from a node whose session that server holds; `None` when it holds none.
    pub async fn logs(&self, address: &str, relay: LogRelay) -> Result<Option<Streaming<TunnelDown>>, PeerError> {
        match self.client(address, true).await?.logs(relay).await {
            Ok(stream) => Ok(Some(stream.into_inner())),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.failed(address, true, &status)),
        }
    }
}

/// Words of the log as they travel.
pub(crate) fn to_wire(message: &Message) -> Words {
    let Message { words, release } = message;
    Words { words: words.to_vec(), level: release.level, version: release.version.to_string() }
}

/// The reverse.
pub(crate) fn from_wire(words: Words) -> Message {
    Message { release: Release::stated(words.level, &words.version), words: words.words.into() }
}

impl Carrier for ServerPeers {
    fn beats(&self, address: &str, report: BeatsReport) -> BoxFuture<'_, Result<BeatsAnswer, PeerError>> {
        let address = address.to_owned();
        Box::pin(async move {
            let asked = async {
                let answer = self.client(&address, false).await?.beats(report).await;
                answer.map(tonic::Response::into_inner).map_err(|status| self.failed(&address, false, &status))
            };
            let late = || PeerError::Lost { address: address.clone(), reason: "it does not answer".to_owned() };
            tokio::time::timeout(2 * ALIVE, asked).await.unwrap_or_else(|_| Err(late()))
        })
    }
}

impl Peers for ServerPeers {
    fn ask(&self, address: &str, bulk: bool, question: Message, _within: Duration) -> Carried<'_> {
        let address = address.to_owned();
        Box::pin(async move {
            let mut client = self.client(&address, bulk).await?;
            match client.ask(to_wire(&question)).await {
                Ok(answer) => Ok(from_wire(answer.into_inner())),
                Err(status) => Err(self.failed(&address, bulk, &status)),
            }
        })
    }
}
