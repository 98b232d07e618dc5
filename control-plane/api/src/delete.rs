//! Deleting: at once, gracefully, or when the last finalizer is gone.

use std::sync::Arc;

use coracle_manifests::view::{is_deleting, list, text};
use coracle_store::{Expect, Object, Op, Outcome};
use http::StatusCode;
use serde_json::{Value, json};

use crate::answer;
use crate::change;
use crate::list::{Filter, key_of};
use crate::path::Place;
use crate::serve::Door;
use crate::status::{self, Failure};
use crate::verbs::{Answer, Asked};
use crate::write::{is_dry, shown};

/// Longest grace, seconds: later times than this clients cannot read.
const MAX_GRACE: u64 = 1 << 31;

/// What `DeleteOptions` say, from the body or the query.
struct Options {
    dry: bool,
    grace: Option<u64>,
    propagation: String,
    uid: Option<String>,
    version: Option<String>,
}

fn options(asked: &Asked) -> Result<Options, Failure> {
    let body = if asked.body.is_empty() { Value::Null } else { asked.tree()?.0 };
    let query = |name: &str| asked.query.get(name);
    let grace = match (query("gracePeriodSeconds"), &body["gracePeriodSeconds"]) {
        (None, Value::Null) => None,
        (Some(text), _) => Some(text.parse().ok()),
        (None, value) => Some(value.as_u64()),
    };
    let grace = match grace {
        Some(Some(seconds)) => Some(u64::min(seconds, MAX_GRACE)),
        Some(None) => {
            return Err(Failure::bad_request("`gracePeriodSeconds` is not a whole number of seconds, 0 or more"));
        }
        None => None,
    };
    let mut dry = is_dry(asked)?;
    for value in list(&body["dryRun"]) {
        if value != "All" {
            return Err(Failure::bad_request(format!("dryRun {value} is not supported; `All` is")));
        }
        dry = true;
    }
    let mut propagation = query("propagationPolicy").unwrap_or_else(|| text(&body["propagationPolicy"])).to_owned();
    if propagation.is_empty() {
        let orphan = query("orphanDependents") == Some("true") || body["orphanDependents"] == true;
        propagation = if orphan { "Orphan" } else { "Background" }.to_owned();
    }
    if !matches!(propagation.as_str(), "Background" | "Foreground" | "Orphan") {
        return Err(Failure::bad_request(format!(
            "propagationPolicy `{propagation}` is not one of Background, Foreground, Orphan"
        )));
    }
    let own = |value: &Value| value.as_str().map(ToOwned::to_owned);
    Ok(Options {
        dry,
        grace,
        propagation,
        uid: own(&body["preconditions"]["uid"]),
        version: own(&body["preconditions"]["resourceVersion"]),
    })
}

/// What is left of an object after a deletion was asked for.
enum Left {
    Gone(Arc<Object>),
    Going(Arc<Object>),
}

pub(crate) async fn delete(door: &Arc<Door>, place: &Place, asked: &Asked) -> Answer {
    let options = options(asked)?;
    match one(door, place, &options).await? {
        Left::Gone(object) => {
            Ok(answer::json(StatusCode::OK, &status::success(place.kind, &object.key.name, &object.uid)))
        }
        Left::Going(object) => shown(door, place, asked, StatusCode::OK, &object),
    }
}

pub(crate) async fn collection(door: &Arc<Door>, place: &Place, asked: &Asked) -> Answer {
    let options = options(asked)?;
    let filter = Filter::of(place, &asked.query)?;
    if place.kind.namespaced && place.namespace.is_none() {
        return Err(Failure::method());
    }
    change::up_to_date(door, place, "").await?;
    let view = door.cluster.view();
    let mut items = Vec::new();
    for object in view.list(place.kind.resource, place.namespace.as_deref()).filter(|object| filter.matches(object)) {
        let of = Place {
            kind: place.kind,
            namespace: place.namespace.clone(),
            name: Some(object.key.name.to_string()),
            sub: None,
        };
        match one(door, &of, &options).await {
            Ok(Left::Gone(object) | Left::Going(object)) => items.push((**object.tree()).clone()),
            Err(failure) if failure.code == StatusCode::NOT_FOUND => {}
            Err(failure) => return Err(failure),
        }
    }
    let value = json!({
        "kind": format!("{}List", place.kind.kind),
        "apiVersion": place.kind.api_version(),
        "metadata": {"resourceVersion": view.revision().to_string()},
        "items": items,
    });
    Ok(answer::json(StatusCode::OK, &value))
}

async fn one(door: &Arc<Door>, place: &Place, options: &Options) -> Result<Left, Failure> {
    let key = key_of(place);
    let name = key.name.to_string();
    if place.kind.kind == "Namespace" && ["default", "kube-system"].contains(&name.as_str()) {
        return Err(Failure::forbidden(format!(
            "namespaces \"{name}\" is forbidden: this namespace may not be deleted"
        )));
    }
    let mut sure = false;
    for _ in 0..10 {
        let current = match meant(door, place, options) {
            Ok(current) => current,
            Err(failure) if sure => return Err(failure),
            Err(_) => {
                change::up_to_date(door, place, &name).await?;
                sure = true;
                continue;
            }
        };
        let next = decide(door, place, options, &current);
        if options.dry {
            return Ok(if next.is_some() { Left::Going(current) } else { Left::Gone(current) });
        }
        let expect = Expect { uid: Some(current.uid.clone()), revision: Some(current.revision) };
        let op = match next {
            None => Op::Delete { key: key.clone(), expect },
            Some(value) => Op::Update { key: key.clone(), expect, value: Arc::new(value), claims: None },
        };
        match door.cluster.propose(op.into()).await {
            Ok(outcomes) => {
                return Ok(match outcomes.into_iter().next() {
                    Some(Outcome::Deleted(object)) => Left::Gone(object),
                    Some(Outcome::Stored(object) | Outcome::Unchanged(object)) => Left::Going(object),
                    _ => Left::Gone(current),
                });
            }
            Err(crate::facility::ProposeError::Rejected {
                rejection: coracle_store::Rejection::Conflict { .. },
                ..
            }) => {}
            Err(error) => return Err(Failure::proposal(place.kind, &name, error)),
        }
    }
    Err(Failure::conflict(place.kind, &name, "the object keeps changing"))
}

/// The object, as it must be for the deletion to go ahead.
fn meant(door: &Door, place: &Place, options: &Options) -> Result<Arc<Object>, Failure> {
    let key = key_of(place);
    let current = door.cluster.view().get(&key).cloned().ok_or_else(|| Failure::not_found(place.kind, &key.name))?;
    let other = options.uid.as_deref().is_some_and(|uid| uid != &*current.uid);
    let newer = options.version.as_deref().is_some_and(|version| version != current.revision.to_string());
    if other || newer {
        return Err(Failure::conflict(place.kind, &key.name, "the preconditions of the deletion do not hold"));
    }
    Ok(current)
}

/// The object on its way out, or `None` when it can go at once.
fn decide(door: &Door, place: &Place, options: &Options, current: &Object) -> Option<Value> {
    let mut value = (**current.tree()).clone();
    let mut finalizers: Vec<String> =
        list(&value["metadata"]["finalizers"]).iter().map(|finalizer| text(finalizer).to_owned()).collect();
    let wanted = match options.propagation.as_str() {
        "Foreground" => Some("foregroundDeletion"),
        "Orphan" => Some("orphan"),
        _ => None,
    };
    if let Some(wanted) = wanted.filter(|_| !is_deleting(&value))
        && !finalizers.iter().any(|finalizer| finalizer == wanted)
    {
        finalizers.push(wanted.to_owned());
    }
    let grace = match place.kind.kind {
        "Pod" => {
            if text(&value["spec"]["nodeName"]).is_empty() {
                // No node has it: nobody need be waited for.
                0
            } else {
                options.grace.unwrap_or_else(|| value["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30))
            }
        }
        _ => 0,
    };
    // A forced end does not wait for the node's word; everything else does.
    let waits = grace > 0 || place.kind.kind == "Namespace" || !finalizers.is_empty();
    if !waits {
        return None;
    }
    let at = coracle_manifests::time::rfc3339(door.now_ms() + grace * 1000);
    if is_deleting(&value) {
        let earlier = value["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or(0);
        if place.kind.kind == "Pod" && grace < earlier {
            value["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
            value["metadata"]["deletionTimestamp"] = json!(at);
        }
        return Some(value);
    }
    if !finalizers.is_empty() {
        value["metadata"]["finalizers"] = json!(finalizers);
    }
    value["metadata"]["deletionTimestamp"] = json!(at);
    value["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
    if place.kind.kind == "Namespace" {
        value["status"]["phase"] = json!("Terminating");
    }
    Some(value)
}
