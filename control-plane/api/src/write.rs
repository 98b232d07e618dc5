//! Creating. Every write goes through the same steps: strict decoding, defaults, validation, then a proposal with the
//! preconditions that make it safe to have looked before.

use std::sync::Arc;

use coracle_manifests::quantity::Quantity;
use coracle_manifests::view::{is_deleting, list, text};
use coracle_manifests::{Problem, Reason, check, default, kinds, validate};
use coracle_store::{Key, Object, Op, Outcome, Rejection, View};
use http::StatusCode;
use serde_json::{Value, json};

use crate::allot::{Allotted, allot};
use crate::answer;
use crate::facility::ProposeError;
use crate::list::Shape;
use crate::path::Place;
use crate::serve::Door;
use crate::status::Failure;
use crate::table;
use crate::verbs::{Answer, Asked};

/// How often a write that lost a race is tried again, when the client did not say which version it meant.
pub(crate) const TRIES: usize = 10;
/// Largest object that is stored, bytes of JSON.
const MAX_OBJECT: usize = 1_500_000;
/// Longest base of a generated name, so that the whole is a name.
const MAX_BASE: usize = 58;

/// Applies the client's wish for strictness to an object of the place's kind. `duplicates` are the keys the body gives twice.
pub(crate) fn strictly(
    place: &Place,
    asked: &Asked,
    duplicates: Vec<Problem>,
    value: &mut Value,
    warnings: &mut Vec<String>,
) -> Result<(), Failure> {
    let found = check::all(place.kind.kind, value);
    let (unknown, other): (Vec<Problem>, Vec<Problem>) =
        found.problems.into_iter().partition(|problem| problem.reason == Reason::Unknown);
    let loose = duplicates.into_iter().chain(unknown).collect::<Vec<_>>();
    match asked.query.get("fieldValidation").unwrap_or("Strict") {
        "" | "Strict" if !loose.is_empty() => return Err(Failure::strict(place.kind, &loose)),
        "" | "Strict" => {}
        "Warn" => {
            warnings.extend(loose.iter().map(ToString::to_string));
            check::drop_unknown(place.kind.kind, value);
        }
        "Ignore" => {
            check::drop_unknown(place.kind.kind, value);
        }
        mode => {
            return Err(Failure::bad_request(format!("fieldValidation `{mode}` is not one of Strict, Warn, Ignore")));
        }
    }
    if !other.is_empty() {
        return Err(Failure::invalid(place.kind, text(&value["metadata"]["name"]), &other));
    }
    warnings.extend(found.warnings);
    Ok(())
}

/// The object's type must be the path's.
pub(crate) fn right_type(place: &Place, value: &mut Value) -> Result<(), Failure> {
    if !value.is_object() {
        return Err(Failure::bad_request("the body is not an object"));
    }
    let (api_version, kind) = (text(&value["apiVersion"]).to_owned(), text(&value["kind"]).to_owned());
    if (!kind.is_empty() && kind != place.kind.kind)
        || (!api_version.is_empty() && api_version != place.kind.api_version())
    {
        return Err(Failure::bad_request(format!(
            "the body is a {api_version} {kind}, the path is of {} {}",
            place.kind.api_version(),
            place.kind.kind
        )));
    }
    value["apiVersion"] = json!(place.kind.api_version());
    value["kind"] = json!(place.kind.kind);
    Ok(())
}

/// The body's namespace, where it has one, must be the path's.
pub(crate) fn right_namespace(place: &Place, value: &Value) -> Result<(), Failure> {
    let (said, meant) = (text(&value["metadata"]["namespace"]), place.namespace.as_deref().unwrap_or_default());
    if said.is_empty() || said == meant {
        return Ok(());
    }
    Err(Failure::bad_request(format!(
        "the namespace of the provided object does not match the namespace sent on the request: `{said}`, `{meant}`"
    )))
}

/// The object in the form that was asked for.
pub(crate) fn shown(door: &Door, place: &Place, asked: &Asked, code: StatusCode, object: &Object) -> Answer {
    Ok(match Shape::of(&asked.accept)? {
        Shape::Whole => answer::bytes(code, "application/json", object.json.clone()),
        Shape::Partial => answer::json(code, &table::partial(object.tree())),
        Shape::Table => {
            let meta = json!({"resourceVersion": object.revision.to_string()});
            answer::json(
                code,
                &table::table(place.kind, &[object.tree()], &meta, asked.query.get("includeObject"), door.now_ms()),
            )
        }
    })
}

pub(crate) fn is_dry(asked: &Asked) -> Result<bool, Failure> {
    let mut dry = false;
    for value in asked.query.all("dryRun").filter(|value| !value.is_empty()) {
        if value != "All" {
            return Err(Failure::bad_request(format!("dryRun `{value}` is not supported; `All` is")));
        }
        dry = true;
    }
    Ok(dry)
}

pub(crate) async fn create(door: &Arc<Door>, place: &Place, asked: &mut Asked) -> Answer {
    let (mut value, duplicates) = asked.tree()?;
    right_type(place, &mut value)?;
    let mut warnings = Vec::new();
    strictly(place, asked, duplicates, &mut value, &mut warnings)?;
    asked.warnings.extend(warnings);
    let dry = is_dry(asked)?;
    let mut view = door.cluster.view();
    if at_home(place, &view, &mut value).is_err() {
        // Its namespace may have been made on another server a moment ago.
        crate::change::up_to_date(door, place, place.namespace.as_deref().unwrap_or_default()).await?;
        view = door.cluster.view();
        at_home(place, &view, &mut value)?;
    }
    let generated = text(&value["metadata"]["name"]).is_empty() && !text(&value["metadata"]["generateName"]).is_empty();
    for _ in 0..TRIES {
        let mut value = value.clone();
        if generated {
            let base: String = text(&value["metadata"]["generateName"]).chars().take(MAX_BASE).collect();
            value["metadata"]["name"] = json!(format!("{base}{}", suffix()));
        }
        let (value, allotted) = complete(door, place, &view, value)?;
        let name = text(&value["metadata"]["name"]).to_owned();
        let key = Key::new(place.kind.resource, place.namespace.as_deref().unwrap_or_default(), name.as_str());
        if dry {
            if view.get(&key).is_some() {
                return Err(Failure::exists(place.kind, &name));
            }
            let object = Object::new(key, text(&value["metadata"]["uid"]).into(), 0, value.to_string().into());
            return shown(door, place, asked, StatusCode::CREATED, &object);
        }
        match door
            .cluster
            .propose(Op::Create { key, value: Arc::new(value), claims: allotted.claims.clone() }.into())
            .await
        {
            Ok(outcomes) => {
                return match outcomes.into_iter().next() {
                    Some(Outcome::Stored(object)) => shown(door, place, asked, StatusCode::CREATED, &object),
                    _ => Err(Failure::internal("the store gave no object")),
                };
            }
            Err(ProposeError::Rejected { rejection: Rejection::Claimed { claim, holder }, .. }) => {
                if let Some(problem) = allotted.refusal(&claim, &holder) {
                    return Err(Failure::invalid(place.kind, &name, &[problem]));
                }
                view = door.cluster.view();
            }
            Err(ProposeError::Rejected { rejection: Rejection::Exists(_), .. }) if generated => {}
            Err(error) => return Err(Failure::proposal(place.kind, &name, error)),
        }
    }
    Err(Failure::conflict(place.kind, "", "no free name or address was found; try again"))
}

/// The namespace must be there and stay. Takes over the namespace of the path.
fn at_home(place: &Place, view: &View, value: &mut Value) -> Result<(), Failure> {
    if !place.kind.namespaced {
        if let Some(meta) = value["metadata"].as_object_mut() {
            meta.remove("namespace");
        }
        return Ok(());
    }
    let Some(namespace) = place.namespace.as_deref() else { return Err(Failure::method()) };
    right_namespace(place, value)?;
    value["metadata"]["namespace"] = json!(namespace);
    let home = view.find("namespaces", "", namespace).ok_or_else(|| {
        kinds::by_word("namespaces").map_or_else(Failure::no_such_path, |kind| Failure::not_found(kind, namespace))
    })?;
    // Events tell of the end itself.
    if is_deleting(home.tree()) && place.kind.kind != "Event" {
        return Err(Failure::terminating(place.kind, text(&value["metadata"]["name"]), namespace));
    }
    Ok(())
}

/// What the system adds to a new object, and the checks of the whole.
fn complete(door: &Door, place: &Place, view: &View, mut value: Value) -> Result<(Value, Allotted), Failure> {
    fresh_metadata(door, &mut value);
    default::apply(place.kind, &mut value);
    first_status(place, &mut value);
    let name = text(&value["metadata"]["name"]).to_owned();
    let mut problems = validate::create(place.kind, &value);
    let mut allotted = Allotted::default();
    if place.kind.kind == "Service" && value["spec"].is_object() {
        let key = Key::new(place.kind.resource, place.namespace.as_deref().unwrap_or_default(), name.as_str());
        match allot(&door.addresses, view, &key, &mut value, random()) {
            Ok(found) => allotted = found,
            // What is wrong with the form of a field is said once.
            Err(found) => {
                let said: Vec<String> = problems.iter().map(|problem| problem.path.clone()).collect();
                problems.extend(found.into_iter().filter(|problem| !said.contains(&problem.path)));
            }
        }
    }
    if !problems.is_empty() {
        return Err(Failure::invalid(place.kind, &name, &problems));
    }
    too_large(place, &value)?;
    Ok((value, allotted))
}

/// Counts what is written to it.
struct Size(usize);

impl std::io::Write for Size {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(crate) fn too_large(place: &Place, value: &Value) -> Result<(), Failure> {
    let mut size = Size(0);
    // Counting cannot fail.
    let _ = serde_json::to_writer(&mut size, value);
    let Size(size) = size;
    if size <= MAX_OBJECT {
        return Ok(());
    }
    Err(Failure::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "RequestEntityTooLarge",
        format!("the {} has {size} bytes; at most {MAX_OBJECT} are stored", place.kind.kind),
    ))
}

pub(crate) fn random() -> u32 {
    u32::from_le_bytes(uuid::Uuid::new_v4().as_bytes()[..4].try_into().unwrap_or_default())
}

/// Five letters and digits that spell nothing.
fn suffix() -> String {
    let letters = b"bcdfghjklmnpqrstvwxz2456789";
    uuid::Uuid::new_v4().as_bytes()[..5]
        .iter()
        .map(|byte| char::from(letters[usize::from(*byte) % letters.len()]))
        .collect()
}

/// What the system sets on a new object, and nothing a client could forge.
fn fresh_metadata(door: &Door, value: &mut Value) {
    let now = coracle_manifests::time::rfc3339(door.now_ms());
    if !value["metadata"].is_object() {
        value["metadata"] = json!({});
    }
    if let Some(meta) = value["metadata"].as_object_mut() {
        for field in [
            "managedFields",
            "selfLink",
            "resourceVersion",
            "generation",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ] {
            meta.remove(field);
        }
        meta.insert("uid".into(), json!(uuid::Uuid::new_v4().to_string()));
        meta.insert("creationTimestamp".into(), json!(now));
    }
}

/// A new object has the status the system gives it.
fn first_status(place: &Place, value: &mut Value) {
    let status = match place.kind.kind {
        "Pod" => json!({"phase": "Pending", "qosClass": qos(&value["spec"])}),
        "Namespace" => json!({"phase": "Active"}),
        "Service" => json!({"loadBalancer": {}}),
        "ReplicaSet" | "ReplicationController" => json!({"replicas": 0}),
        "StatefulSet" => json!({"replicas": 0, "availableReplicas": 0}),
        "DaemonSet" => json!({
            "currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
        }),
        "Deployment" => json!({}),
        // Whoever makes a node knows its state.
        "Node" => return,
        _ => {
            if let Some(map) = value.as_object_mut() {
                map.remove("status");
            }
            return;
        }
    };
    value["status"] = status;
}

/// Quality of service: Guaranteed when every container's requests are its limits, BestEffort when there are none.
fn qos(spec: &Value) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    for container in list(&spec["initContainers"]).iter().chain(list(&spec["containers"])) {
        for name in ["cpu", "memory"] {
            let amount = |bound: &str| Quantity::of_json(&container["resources"][bound][name]);
            let (limit, request) = (amount("limits"), amount("requests"));
            any |= limit.milli() > 0 || request.milli() > 0;
            guaranteed &= limit.milli() > 0 && (request.milli() == 0 || request == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_of_service() {
        let of = |resources: Value| qos(&json!({"containers": [{"resources": resources}]}));
        assert_eq!(of(json!({})), "BestEffort");
        assert_eq!(of(json!({"requests": {"cpu": "0"}})), "BestEffort");
        assert_eq!(of(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m"}})), "Guaranteed");
        assert_eq!(of(json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}})), "Burstable");
        assert_eq!(of(json!({"requests": {"memory": "1Mi"}})), "Burstable");
    }

    #[test]
    fn suffixes_are_names() {
        for _ in 0..100 {
            assert!(suffix().bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
        }
    }
}
