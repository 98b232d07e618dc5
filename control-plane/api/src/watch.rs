//! Watching: every change after a revision, in order, once; selectors applied to transitions; bookmarks.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_store::{Event, EventKind, Object};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::answer;
use crate::list::{Filter, Shape};
use crate::path::Place;
use crate::serve::Door;
use crate::status::Failure;
use crate::table;
use crate::verbs::{Answer, Asked};

/// Events that a slow reader has not taken; then the watch waits for it and goes on from history.
const PENDING: usize = 64;
const BOOKMARK_EVERY: Duration = Duration::from_secs(45);

/// One watch.
struct Watch {
    door: Arc<Door>,
    kind: &'static coracle_manifests::kinds::Kind,
    namespace: Option<String>,
    filter: Filter,
    shape: Shape,
    include: Option<String>,
    bookmarks: bool,
    sink: mpsc::Sender<Bytes>,
}

pub(crate) async fn watch(door: &Arc<Door>, place: &Place, asked: &Asked) -> Answer {
    let shape = Shape::of(&asked.accept)?;
    let filter = Filter::of(place, &asked.query)?;
    let version = asked.query.get("resourceVersion").unwrap_or("0");
    let from: u64 =
        version.parse().map_err(|_| Failure::bad_request(format!("resourceVersion `{version}` is not one of ours")))?;
    let initial = asked.query.flag("sendInitialEvents");
    let timeout =
        asked.query.get("timeoutSeconds").and_then(|text| text.parse().ok()).unwrap_or(3600_u64).clamp(1, 86_400);
    let permit = door.watches.clone().try_acquire_owned().map_err(|_| {
        let mut failure =
            Failure::new(http::StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", "too many watches are open");
        failure.retry_after = Some(5);
        failure
    })?;
    let (sink, chunks) = mpsc::channel(PENDING);
    let watch = Watch {
        door: door.clone(),
        kind: place.kind,
        namespace: place.namespace.clone(),
        filter,
        shape,
        include: asked.query.get("includeObject").map(ToOwned::to_owned),
        bookmarks: asked.query.flag("allowWatchBookmarks"),
        sink,
    };
    tokio::spawn(async move {
        let _permit = permit;
        let drain = watch.door.drain.clone();
        tokio::select! {
            // Cancel safe: the stream just ends, and the client resumes from the last revision it saw.
            _ = tokio::time::timeout(Duration::from_secs(timeout), watch.run(from, initial)) => {}
            () = drain.cancelled() => {}
        }
    });
    Ok(answer::stream("application/json", chunks))
}

impl Watch {
    async fn run(self, from: u64, initial: bool) -> Option<()> {
        let mut changes = self.door.cluster.changes();
        let mut seen = from;
        if initial || from == 0 {
            let view = self.door.cluster.read_barrier().await.ok()?;
            seen = view.revision();
            for object in view.list(self.kind.resource, self.namespace.as_deref()) {
                if self.filter.matches(object) {
                    self.send("ADDED", object).await?;
                }
            }
            if initial {
                self.bookmark(seen, true).await?;
            }
        }
        let mut tick = tokio::time::interval(BOOKMARK_EVERY);
        tick.tick().await;
        loop {
            let now = changes.borrow_and_update().revision;
            if now > seen {
                let Some(events) = self.door.cluster.events_after(seen, Some(self.kind.resource)) else {
                    let failure = Failure::expired(format!("too old resource version: {seen}"));
                    return self.line(&json!({"type": "ERROR", "object": failure.object()})).await;
                };
                for event in events {
                    seen = seen.max(event.revision);
                    self.event(&event).await?;
                }
                // Revisions of other kinds are behind us too: history need not reach back to them.
                seen = seen.max(now);
            }
            tokio::select! {
                // Cancel safe all: nothing is taken from a watch channel or an interval that is not marked as seen.
                changed = changes.changed() => changed.ok()?,
                _ = tick.tick() => if self.bookmarks { self.bookmark(seen, false).await? },
                () = self.sink.closed() => return None,
            }
        }
    }

    async fn event(&self, event: &Event) -> Option<()> {
        let object = &event.object;
        if self.namespace.as_deref().is_some_and(|namespace| namespace != &*object.key.namespace) {
            return Some(());
        }
        let is = self.filter.matches(object) && event.kind != EventKind::Deleted;
        let was = event.prior.as_ref().is_some_and(|prior| self.filter.matches(prior));
        match (was, is) {
            (false, true) => self.send("ADDED", object).await,
            (true, true) => self.send("MODIFIED", object).await,
            (true, false) => self.send("DELETED", object).await,
            (false, false) => Some(()),
        }
    }

    async fn send(&self, what: &str, object: &Arc<Object>) -> Option<()> {
        match self.shape {
            Shape::Whole => {
                let mut line = Vec::with_capacity(object.json.len() + 40);
                line.extend_from_slice(format!("{{\"type\":\"{what}\",\"object\":").as_bytes());
                line.extend_from_slice(&object.json);
                line.extend_from_slice(b"}\n");
                self.sink.send(line.into()).await.ok()
            }
            Shape::Partial => self.line(&json!({"type": what, "object": table::partial(object.tree())})).await,
            Shape::Table => {
                let meta = json!({"resourceVersion": object.revision.to_string()});
                let rows =
                    table::table(self.kind, &[object.tree()], &meta, self.include.as_deref(), self.door.now_ms());
                self.line(&json!({"type": what, "object": rows})).await
            }
        }
    }

    async fn bookmark(&self, revision: u64, initial_end: bool) -> Option<()> {
        let mut meta = json!({"resourceVersion": revision.to_string(), "creationTimestamp": null});
        if initial_end {
            meta["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let mut object = json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": meta});
        if self.shape == Shape::Table {
            object = table::table(self.kind, &[], &meta, None, 0);
            object["rows"] = json!([{"cells": [], "object": {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": meta}}]);
        }
        self.line(&json!({"type": "BOOKMARK", "object": object})).await
    }

    async fn line(&self, value: &Value) -> Option<()> {
        self.sink.send(format!("{value}\n").into()).await.ok()
    }
}
