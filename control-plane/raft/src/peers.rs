//! The way to other servers: whoever carries bytes to them implements `Peers`; where they are is in the `Book`.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use coracle_base::Release;
use tokio::time::Instant;

use crate::identity::Identity;
use crate::members::Member;
use crate::wire::{Answer, Header, Request};

/// Words of the log on their way, and the release that says them. The release travels beside the words and not in them: servers of
/// level 1 refuse words that are longer than they know, and look at nothing beside them.
#[derive(Debug, Clone)]
pub struct Message {
    /// As `wire` writes them.
    pub words: Bytes,
    /// Who says them.
    pub release: Release,
}

/// A boxed future.
pub type Carried<'a> = Pin<Box<dyn Future<Output = Result<Message, PeerError>> + Send + 'a>>;

/// Why a server did not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PeerError {
    /// Nothing was sent.
    #[error("server {address} cannot be reached: {reason}")]
    Unreachable {
        /// Where.
        address: String,
        /// In words.
        reason: String,
    },
    /// It was sent, perhaps received; no answer came.
    #[error("server {address} did not answer: {reason}")]
    Lost {
        /// Where.
        address: String,
        /// In words.
        reason: String,
    },
}

/// Carries a question to a server and its answer back. Connections are authenticated and private: both ends prove that they are
/// servers of this cluster.
pub trait Peers: Send + Sync + 'static {
    /// One question. `bulk` goes over a connection of its own, so that much data does not delay beats.
    ///
    /// What cannot be answered any more, because the connection is dead, is `Lost` within a few seconds. Nobody else says so: the
    /// asker waits as long as a server may take that is merely slow, half a minute for a part of a snapshot.
    fn ask(&self, address: &str, bulk: bool, question: Message, within: Duration) -> Carried<'_>;
}

/// No way to anybody: a server that stays alone.
#[derive(Debug, Clone, Copy)]
pub struct NoPeers;

impl Peers for NoPeers {
    fn ask(&self, address: &str, _: bool, _: Message, _: Duration) -> Carried<'_> {
        let error = PeerError::Unreachable { address: address.to_owned(), reason: "this server is alone".to_owned() };
        Box::pin(std::future::ready(Err(error)))
    }
}

/// Where servers were last heard from: newer than what the log says of them.
#[derive(Debug, Default)]
struct Book {
    heard: BTreeMap<u64, Member>,
    /// When each last asked this server something, or gave it an answer.
    met: HashMap<u64, Instant>,
    /// What each server runs, and when it said so last.
    releases: HashMap<u64, (Release, Instant)>,
}

/// More servers than a cluster ever has: the book cannot be filled by a stranger that got in.
const BOOK: usize = 64;

/// How this server asks others.
#[derive(Clone)]
pub(crate) struct Caller {
    peers: Arc<dyn Peers>,
    book: Arc<Mutex<Book>>,
    identity: Identity,
    own: Member,
    release: Release,
}

impl std::fmt::Debug for Caller {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Caller").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Caller {
    pub fn new(peers: Arc<dyn Peers>, identity: Identity, own: Member, release: Release) -> Self {
        Self { peers, book: Arc::default(), identity, own, release }
    }

    /// What this server runs.
    pub fn release(&self) -> &Release {
        &self.release
    }

    /// A server said what it runs.
    pub fn hear(&self, server: u64, release: &Release) {
        let releases = &mut self.book().releases;
        if releases.len() < BOOK || releases.contains_key(&server) {
            releases.insert(server, (release.clone(), Instant::now()));
        }
    }

    /// What a server runs, as far as it has said so lately.
    pub fn release_of(&self, server: u64, within: Duration) -> Option<Release> {
        if server == self.identity.node {
            return Some(self.release.clone());
        }
        self.book().releases.get(&server).filter(|(_, at)| at.elapsed() < within).map(|(release, _)| release.clone())
    }

    /// Servers that belong to the cluster no more are forgotten.
    pub fn keep_releases(&self, known: impl Fn(u64) -> bool) {
        self.book().releases.retain(|server, _| known(*server));
    }

    pub fn own(&self) -> &Member {
        &self.own
    }

    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A server said where it is, or, with its address alone, answered there.
    pub fn learn(&self, server: u64, member: &Member) {
        if member.address.is_empty() {
            return;
        }
        let mut book = self.book();
        // Whoever was thought to be there is somewhere else.
        book.heard.retain(|other, known| *other == server || known.address != member.address);
        if server == self.identity.node || (book.heard.len() >= BOOK && !book.heard.contains_key(&server)) {
            return;
        }
        book.met.insert(server, Instant::now());
        let known = book.heard.entry(server).or_default();
        if member.name.is_empty() {
            known.address.clone_from(&member.address);
        } else {
            known.clone_from(member);
        }
    }

    /// What a server last said of itself; its address alone when it only answered.
    pub fn known(&self, server: u64) -> Option<Member> {
        self.book().heard.get(&server).cloned()
    }

    /// Since a server was last heard of; `None`: never.
    pub fn silent(&self, server: u64) -> Option<Duration> {
        self.book().met.get(&server).map(Instant::elapsed)
    }

    /// Every address in the book.
    pub fn addresses(&self) -> Vec<String> {
        self.book().heard.values().map(|known| known.address.clone()).collect()
    }

    fn address(&self, server: u64, member: &Member) -> String {
        self.known(server).map_or_else(|| member.address.clone(), |known| known.address)
    }

    /// Asks a server whose identity is known.
    pub async fn ask(
        &self,
        server: u64,
        member: &Member,
        request: &Request,
        within: Duration,
    ) -> Result<Answer, PeerError> {
        let address = self.address(server, member);
        let (answer, release) = self.ask_at(&address, server, request, within).await?;
        match answer {
            Answer::Wrong { server: found } => {
                // Whoever was thought to be there is not: the next try goes where the log says. What was learnt of it meanwhile stays.
                self.learn(found, &Member { address: address.clone(), ..Member::default() });
                let reason = format!("server {found:016x} is there, not {server:016x}");
                Err(PeerError::Unreachable { address, reason })
            }
            Answer::WrongCluster => {
                Err(PeerError::Unreachable { address, reason: "it belongs to another cluster".to_owned() })
            }
            answer => {
                self.book().met.insert(server, Instant::now());
                self.hear(server, &release);
                Ok(answer)
            }
        }
    }

    /// Asks whoever is at an address; 0 for a server that is not known yet. Gives what it runs, too.
    pub async fn ask_at(
        &self,
        address: &str,
        server: u64,
        request: &Request,
        within: Duration,
    ) -> Result<(Answer, Release), PeerError> {
        let unsayable = |error: &dyn std::fmt::Display| PeerError::Unreachable {
            address: address.to_owned(),
            reason: format!("the question cannot be written: {error}"),
        };
        let header = Header::of(self.identity, self.own.clone(), server);
        let question = request.encode(&header).map_err(|error| unsayable(&error))?;
        let bulk = matches!(request, Request::Snapshot { .. } | Request::Propose { .. });
        let question = Message { words: question.into(), release: self.release.clone() };
        let answer = self.peers.ask(address, bulk, question, within);
        let Message { words, release } = match tokio::time::timeout(within, answer).await {
            Ok(answer) => answer?,
            Err(_) => {
                let reason = format!("nothing came within {within:?}");
                return Err(PeerError::Lost { address: address.to_owned(), reason });
            }
        };
        if let Some(reason) = self.release.refuses(&release) {
            return Err(PeerError::Unreachable { address: address.to_owned(), reason });
        }
        let answer = Answer::decode(&words).map_err(|error| PeerError::Lost {
            address: address.to_owned(),
            reason: format!("its answer cannot be read: {error}"),
        })?;
        Ok((answer, release))
    }
}
