//! What a name server is started with, and its limits.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use coracle_zone::Zone;

/// Where questions for other names go.
#[derive(Debug, Clone)]
pub enum Upstreams {
    /// These servers, the first preferred.
    Fixed(Vec<SocketAddr>),
    /// The `nameserver` lines of a file such as `/etc/resolv.conf`, read again when it changes. Our own addresses in
    /// it are skipped.
    File(PathBuf),
}

/// What a name server is started with.
#[derive(Debug, Clone)]
pub struct DnsConfig {
    /// Addresses to answer on, by UDP and TCP. They need not exist yet. Whoever reaches one may use the forwarder, so
    /// these should be addresses that only pods and the node reach.
    pub listen: Vec<SocketAddr>,
    /// Where questions for other names go.
    pub upstreams: Upstreams,
    /// The table of cluster names; `None` inside means "none yet", and cluster names get SERVFAIL.
    pub zone: Arc<ArcSwapOption<Zone>>,
    /// The cluster's domain (`cluster.local`), needed as long as there is no table.
    pub domain: String,
    /// The network namespace to make sockets in; `None` is the caller's own.
    pub netns: Option<Arc<OwnedFd>>,
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DnsError {
    /// The domain is no domain name.
    #[error("cluster domain `{0}` is not a domain name")]
    Domain(String),
    /// An address cannot be listened on.
    #[error("listening on {address} ({protocol})")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// UDP or TCP.
        protocol: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The thread that makes sockets in another network namespace.
    #[error("entering the name server's network namespace")]
    Namespace(#[source] io::Error),
}

/// Questions being forwarded at one moment; more are answered SERVFAIL at once.
pub(crate) const MAX_FORWARDS: usize = 1_024;
/// Clients waiting for one and the same forwarded question.
pub(crate) const MAX_WAITERS: usize = 256;
/// Answers kept.
pub(crate) const CACHE_ENTRIES: usize = 10_000;
/// Longest time an answer is kept.
pub(crate) const MAX_TTL: Duration = Duration::from_secs(3_600);
/// Longest time "no such name" is kept.
pub(crate) const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(1_800);
/// How long a failure of all upstreams is kept, so that a dead upstream is not asked for each question (RFC 9520).
pub(crate) const FAILURE_TTL: Duration = Duration::from_secs(2);
/// How long an expired answer may still be given while no upstream answers (RFC 8767), and the TTL it then gets.
pub(crate) const MAX_STALE: Duration = Duration::from_secs(3_600);
pub(crate) const STALE_TTL_S: u32 = 5;
/// One try at one upstream. Three tries and an answer by TCP stay under the 5 s after which resolvers give up.
pub(crate) const UPSTREAM_TIMEOUT: Duration = Duration::from_millis(1_300);
/// Tries at upstreams per question.
pub(crate) const UPSTREAM_TRIES: usize = 3;
/// How long an upstream that did not answer is asked last.
pub(crate) const UPSTREAM_REST: Duration = Duration::from_secs(10);
/// Largest UDP answer, whatever the client allows: fits one frame everywhere (DNS flag day 2020).
pub(crate) const MAX_UDP_BYTES: u16 = 1_232;
/// Open TCP connections in all, and from one address.
pub(crate) const MAX_CONNECTIONS: usize = 256;
pub(crate) const MAX_CONNECTIONS_PER_CLIENT: usize = 32;
/// How long a TCP connection may be idle or a client slow.
pub(crate) const TCP_IDLE: Duration = Duration::from_secs(10);
