//! The HTTP side: a handful of fixed answers, a stream of changed fragments, and who may ask.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::middleware::{Next, from_fn};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use coracle_base::Generation;
use coracle_daemon::DrainWatch;
use futures_util::Stream;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::page::{self, Chosen};
use crate::snapshot::Snapshot;

/// So many pages may be open with live updates; one more is told to come back later and reloads instead.
const STREAMS: usize = 64;
/// No more than two updates a second go to a page, however fast things change.
const PAUSE: Duration = Duration::from_millis(500);

/// Where the pages get what they show.
pub trait Source: Send + Sync + 'static {
    /// Everything, as it is now.
    fn snapshot(&self) -> Snapshot;
    /// Woken whenever the snapshot may have changed.
    fn changes(&self) -> watch::Receiver<Generation>;
    /// The metrics, as Prometheus or OpenMetrics text.
    fn metrics(&self) -> String;
    /// What on this machine, and between it and others, stands in the cluster's way: looked for now, which may take seconds.
    fn doctor(&self) -> Pin<Box<dyn Future<Output = Vec<Finding>> + Send + '_>> {
        Box::pin(std::future::ready(Vec::new()))
    }
}

/// Something that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub hint: String,
}

/// Why the pages cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum DashboardError {
    /// The port is taken, or not ours to take.
    #[error(
        "cannot listen at {address} for the status page\nhint: is another `coracle` running? `--status-listen` names another address"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The pages, being served until the drain begins.
#[derive(Debug, Clone, Copy)]
pub struct DashboardHandle {
    /// Where they are: with the port that was given when 0 was asked for.
    pub address: SocketAddr,
}

struct Pages {
    source: Arc<dyn Source>,
    streams: Arc<AtomicUsize>,
    drain: DrainWatch,
}

type Shared = State<Arc<Pages>>;

/// Listens at `address` and serves until the drain begins.
///
/// # Errors
/// The address cannot be listened at.
pub async fn serve(
    address: SocketAddr,
    source: Arc<dyn Source>,
    drain: DrainWatch,
) -> Result<DashboardHandle, DashboardError> {
    let listen = |source| DashboardError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    let stop = drain.clone();
    let pages = router(source, drain.clone());
    drain.spawn(async move {
        let served = axum::serve(listener, pages).with_graceful_shutdown(async move { stop.signaled().await }).await;
        if let Err(error) = served {
            tracing::error!(%address, error = %error, "the status page is no longer served");
        }
    });
    Ok(DashboardHandle { address })
}

/// The pages as a router, for a listener that checks logins itself. The `Host` check is part of it.
pub fn router(source: Arc<dyn Source>, drain: DrainWatch) -> Router {
    let pages = Arc::new(Pages { source, streams: Arc::default(), drain });
    Router::new()
        .route("/", get(index))
        .route("/live", get(live))
        .route("/status.json", get(status))
        .route("/doctor.json", get(doctor))
        .route("/metrics", get(metrics))
        .route("/style.css", get(|| async { fixed("text/css; charset=utf-8", include_str!("style.css")) }))
        .route("/live.js", get(|| async { fixed("text/javascript; charset=utf-8", include_str!("live.js")) }))
        .route("/favicon.svg", get(|| async { fixed("image/svg+xml", page::LOGO) }))
        .fallback(|| async { (StatusCode::NOT_FOUND, "There is no such page. The status page is at /\n") })
        .with_state(pages)
        .layer(from_fn(guard))
}

/// Refuses requests for other hosts (a page elsewhere that had its name resolved to this machine: DNS rebinding), and adds
/// the headers that keep a page from being framed, sniffed or scripted.
async fn guard(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| request.uri().authority().map(http::uri::Authority::as_str));
    let mut answer = if host.is_some_and(is_local) {
        next.run(request).await
    } else {
        let words = "This status page answers to localhost, 127.0.0.1 and [::1] only.\n";
        (StatusCode::MISDIRECTED_REQUEST, words).into_response()
    };
    const SAFE: [(HeaderName, &str); 6] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    for (name, value) in SAFE {
        answer.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    answer.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    answer
}

fn is_local(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some(("::1", port)) => ("::1", port),
            _ => return false,
        },
        None => host.find(':').map_or((host, ""), |at| host.split_at(at)),
    };
    let port_is_fine = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    port_is_fine && (name.eq_ignore_ascii_case("localhost") || name == "127.0.0.1" || name == "::1")
}

fn fixed(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}

#[derive(Debug, Deserialize)]
struct Asked {
    #[serde(default)]
    namespace: String,
}

async fn index(State(pages): Shared, Query(asked): Query<Asked>) -> Response {
    let html = page::page(&pages.source.snapshot(), &asked.namespace);
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], html).into_response()
}

async fn status(State(pages): Shared) -> Response {
    axum::Json(pages.source.snapshot()).into_response()
}

async fn doctor(State(pages): Shared) -> Response {
    axum::Json(pages.source.doctor().await).into_response()
}

async fn metrics(State(pages): Shared) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], pages.source.metrics()).into_response()
}

/// One open page: counted while it is.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(streams: &Arc<AtomicUsize>) -> Option<Self> {
        let taken =
            streams.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < STREAMS).then_some(open + 1));
        taken.is_ok().then(|| Self(streams.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn live(State(pages): Shared, Query(asked): Query<Asked>) -> Response {
    let Some(place) = Place::take(&pages.streams) else {
        return (StatusCode::SERVICE_UNAVAILABLE, "Too many pages are open.\n").into_response();
    };
    let changes = pages.source.changes();
    let fragments = fragments(pages, place, changes, Chosen { namespace: asked.namespace });
    Sse::new(fragments).keep_alive(KeepAlive::new().interval(Duration::from_secs(15))).into_response()
}

/// Each part of the page when it differs from what this page has seen; the first time all parts, for the page may be older
/// than its stream.
fn fragments(
    pages: Arc<Pages>,
    place: Place,
    changes: watch::Receiver<Generation>,
    chosen: Chosen,
) -> impl Stream<Item = Result<Event, Infallible>> {
    struct Reader {
        pages: Arc<Pages>,
        changes: watch::Receiver<Generation>,
        seen: Vec<(&'static str, String)>,
        waiting: Vec<(&'static str, String)>,
        first: bool,
        _place: Place,
    }
    let reader = Reader { pages, changes, seen: Vec::new(), waiting: Vec::new(), first: true, _place: place };
    futures_util::stream::unfold((reader, chosen), |(mut reader, chosen)| async move {
        loop {
            if let Some((id, html)) = reader.waiting.pop() {
                let data = serde_json::json!({"id": id, "html": html}).to_string();
                return Some((Ok(Event::default().event("part").data(data)), (reader, chosen)));
            }
            if !std::mem::take(&mut reader.first) {
                tokio::select! {
                    // Cancel safe: what was not seen stays so.
                    changed = reader.changes.changed() => changed.ok()?,
                    () = reader.pages.drain.signaled() => return None,
                }
                // What changes together is drawn together.
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = reader.pages.drain.signaled() => return None,
                }
            }
            reader.changes.borrow_and_update();
            let parts = page::parts(&reader.pages.source.snapshot(), &chosen);
            reader.waiting = parts.iter().filter(|part| !reader.seen.contains(part)).rev().cloned().collect();
            reader.seen = parts;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::is_local;

    #[test]
    fn only_this_machine_is_local() {
        for host in ["localhost", "localhost:6480", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:6480", "[::1]", "[::1]:80"] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "",
            ":80",
            "example.com",
            "localhost.example.com",
            "127.0.0.1.example.com:6480",
            "10.0.0.1",
            "[::2]:80",
            "::1",
            "localhost:6480@evil",
            "localhost:",
            "127.0.0.1:99999",
            "[::1]evil",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }
}
