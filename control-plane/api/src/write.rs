//! Writing: create, update, patch and the subresources. Every write goes through the same steps: strict decoding, defaults,
//! validation, then a proposal with the preconditions that make it safe to have looked before.

use std::sync::Arc;

use coracle_manifests::view::{is_deleting, list, text};
use coracle_manifests::{Problem, Reason, check, decode, default, patch as patches, validate};
use coracle_store::{Expect, Key, Object, Op, Outcome};
use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::answer;
use crate::list::{Shape, key_of};
use crate::path::Place;
use crate::serve::Door;
use crate::status::Failure;
use crate::table;
use crate::verbs::{Answer, Asked};

/// How often a write that lost a race is tried again, when the client did not say which version it meant.
const TRIES: usize = 10;
/// Largest object that is stored, bytes of JSON.
const MAX_OBJECT: usize = 1_500_000;

/// The body as a tree, checked for duplicates and, unless the client asked otherwise, for unknown fields.
fn body(place: &Place, asked: &mut Asked, type_name: &str) -> Result<Value, Failure> {
    let (value, mut strict) = tree(asked)?;
    let found = check::all(type_name, &value);
    let (unknown, other): (Vec<Problem>, Vec<Problem>) =
        found.problems.into_iter().partition(|problem| problem.reason == Reason::Unknown);
    strict.extend(unknown);
    let mut value = value;
    match asked.query.get("fieldValidation").unwrap_or("Strict") {
        "Strict" if !strict.is_empty() => return Err(Failure::strict(place.kind, &strict)),
        "Strict" => {}
        mode => {
            if mode == "Warn" {
                asked.warnings.extend(strict.iter().map(ToString::to_string));
            }
            check::drop_unknown(type_name, &mut value);
        }
    }
    asked.warnings.extend(found.warnings);
    if other.is_empty() {
        Ok(value)
    } else {
        Err(Failure::invalid(place.kind, text(&value["metadata"]["name"]), &other))
    }
}

/// The body as a tree, and its duplicate keys.
fn tree(asked: &Asked) -> Result<(Value, Vec<Problem>), Failure> {
    let kind = asked.content_type.split(';').next().unwrap_or_default().trim();
    if kind.contains("protobuf") {
        return Err(Failure::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            "protobuf bodies are not supported yet; send application/json",
        ));
    }
    if kind.contains("yaml") && !kind.contains("apply-patch") {
        let text = std::str::from_utf8(&asked.body).map_err(|_| Failure::bad_request("the body is not UTF-8"))?;
        let mut documents = decode::yaml(text).map_err(|problems| Failure::bad_request(problems[0].to_string()))?;
        if documents.len() != 1 {
            return Err(Failure::bad_request("the body must be one document"));
        }
        return Ok((documents.remove(0).value, Vec::new()));
    }
    let decoded = decode::json(&asked.body).map_err(|problem| Failure::bad_request(problem.to_string()))?;
    Ok((decoded.value, decoded.problems))
}

/// The object's type must be the path's.
fn right_type(place: &Place, value: &mut Value) -> Result<(), Failure> {
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
    for value in asked.query.all("dryRun") {
        if value != "All" {
            return Err(Failure::bad_request(format!("dryRun `{value}` is not supported; `All` is")));
        }
        dry = true;
    }
    Ok(dry)
}

pub(crate) async fn create(door: &Arc<Door>, place: &Place, asked: &mut Asked) -> Answer {
    let mut value = body(place, asked, place.kind.kind)?;
    right_type(place, &mut value)?;
    let dry = is_dry(asked)?;
    let view = door.cluster.view();
    let namespace = place.namespace.clone().unwrap_or_default();
    if place.kind.namespaced {
        if namespace.is_empty() {
            return Err(Failure::method());
        }
        let said = text(&value["metadata"]["namespace"]);
        if !said.is_empty() && said != namespace {
            return Err(Failure::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request: `{said}`, `{namespace}`"
            )));
        }
        value["metadata"]["namespace"] = json!(namespace);
        let home = view.find("namespaces", "", &namespace).ok_or_else(|| {
            let kind = coracle_manifests::kinds::by_word("namespaces");
            kind.map_or_else(Failure::no_such_path, |kind| Failure::not_found(kind, &namespace))
        })?;
        // Events tell of the end itself.
        if is_deleting(home.tree()) && place.kind.kind != "Event" {
            return Err(Failure::forbidden(format!(
                "{} cannot be created: namespace {namespace} is being deleted",
                place.kind.resource
            )));
        }
    }
    let generated = text(&value["metadata"]["name"]).is_empty() && !text(&value["metadata"]["generateName"]).is_empty();
    for _ in 0..TRIES {
        let mut value = value.clone();
        if generated {
            let base: String = text(&value["metadata"]["generateName"]).chars().take(58).collect();
            value["metadata"]["name"] = json!(format!("{base}{}", suffix()));
        }
        fresh_metadata(door, &mut value);
        default::apply(place.kind, &mut value);
        first_status(place, &mut value);
        let name = text(&value["metadata"]["name"]).to_owned();
        let problems = validate::create(place.kind, &value);
        if !problems.is_empty() {
            return Err(Failure::invalid(place.kind, &name, &problems));
        }
        let claims = if place.kind.kind == "Service" { door.addresses.assign(&view, &mut value)? } else { Vec::new() };
        too_large(place, &value)?;
        let key = Key::new(place.kind.resource, namespace.as_str(), name.as_str());
        if dry {
            if view.get(&key).is_some() {
                let error = crate::facility::ProposeError::Rejected {
                    index: 0,
                    rejection: coracle_store::Rejection::Exists(key),
                };
                return Err(Failure::proposal(place.kind, &name, error));
            }
            let object = Object::new(key, text(&value["metadata"]["uid"]).into(), 0, value.to_string().into());
            return shown(door, place, asked, StatusCode::CREATED, &object);
        }
        let random_address = place.kind.kind == "Service" && !claims.is_empty();
        match door.cluster.propose(Op::Create { key, value: Arc::new(value), claims }.into()).await {
            Ok(outcomes) => {
                return match outcomes.into_iter().next() {
                    Some(Outcome::Stored(object)) => shown(door, place, asked, StatusCode::CREATED, &object),
                    _ => Err(Failure::new(
                        StatusCode::INTERNAL_SERVER_ERROR,
                        "InternalError",
                        "the store gave no object",
                    )),
                };
            }
            Err(crate::facility::ProposeError::Rejected {
                rejection: coracle_store::Rejection::Claimed { .. },
                ..
            }) if random_address => {}
            Err(crate::facility::ProposeError::Rejected { rejection: coracle_store::Rejection::Exists(_), .. })
                if generated => {}
            Err(error) => return Err(Failure::proposal(place.kind, &name, error)),
        }
    }
    Err(Failure::new(StatusCode::CONFLICT, "Conflict", "no free name or address was found"))
}

fn too_large(place: &Place, value: &Value) -> Result<(), Failure> {
    let size = value.to_string().len();
    if size <= MAX_OBJECT {
        return Ok(());
    }
    Err(Failure::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "RequestEntityTooLarge",
        format!("the {} has {size} bytes; at most {MAX_OBJECT} are stored", place.kind.kind),
    ))
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
        "ReplicaSet" => json!({"replicas": 0}),
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
pub(crate) fn qos(spec: &Value) -> &'static str {
    let (mut any, mut all) = (false, true);
    for container in list(&spec["containers"]).iter().chain(list(&spec["initContainers"])) {
        let resources = &container["resources"];
        for resource in ["cpu", "memory"] {
            let (request, limit) = (&resources["requests"][resource], &resources["limits"][resource]);
            any |= !request.is_null() || !limit.is_null();
            all &= !limit.is_null() && (request.is_null() || request == limit);
        }
    }
    if !any {
        "BestEffort"
    } else if all {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

fn stored(door: &Door, place: &Place) -> Result<Arc<Object>, Failure> {
    let key = key_of(place);
    door.cluster.view().get(&key).cloned().ok_or_else(|| Failure::not_found(place.kind, &key.name))
}

/// The new state of an object with what a client may not change taken from the old one.
fn keep_system_fields(place: &Place, old: &Value, new: &mut Value, keep_status: bool) {
    let meta_of = |field: &str| old["metadata"][field].clone();
    if !new["metadata"].is_object() {
        new["metadata"] = Value::Object(Map::new());
    }
    if let Some(meta) = new["metadata"].as_object_mut() {
        for field in [
            "name",
            "namespace",
            "uid",
            "creationTimestamp",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
            "generateName",
        ] {
            let value = meta_of(field);
            if value.is_null() {
                meta.remove(field);
            } else {
                meta.insert(field.to_owned(), value);
            }
        }
        meta.remove("managedFields");
        meta.remove("selfLink");
    }
    let has_status = place.kind.subresources.contains(&coracle_manifests::kinds::Subresource::Status);
    if keep_status && has_status {
        if old["status"].is_null() {
            if let Some(map) = new.as_object_mut() {
                map.remove("status");
            }
        } else {
            new["status"] = old["status"].clone();
        }
    }
    if place.kind.kind == "Service" {
        for field in ["clusterIP", "clusterIPs"] {
            if new["spec"][field].is_null() && !old["spec"][field].is_null() {
                new["spec"][field] = old["spec"][field].clone();
            }
        }
    }
}

pub(crate) async fn update(door: &Arc<Door>, place: &Place, asked: &mut Asked) -> Answer {
    let mut value = body(place, asked, place.kind.kind)?;
    right_type(place, &mut value)?;
    let said = text(&value["metadata"]["name"]).to_owned();
    let name = place.name.as_deref().unwrap_or_default();
    if said != name {
        return Err(Failure::bad_request(format!(
            "the name of the object ({said}) does not match the name on the URL ({name})"
        )));
    }
    let version = text(&value["metadata"]["resourceVersion"]).to_owned();
    change(door, place, asked, version, true, |_| Ok(value.clone())).await
}

pub(crate) async fn patch(door: &Arc<Door>, place: &Place, asked: &mut Asked) -> Answer {
    let (patch, problems) = tree(asked)?;
    if !problems.is_empty() {
        return Err(Failure::strict(place.kind, &problems));
    }
    let style = patch_style(asked)?;
    let version = text(&patch["metadata"]["resourceVersion"]).to_owned();
    change(door, place, asked, version, true, |old| apply_patch(place, style, old, &patch)).await
}

#[derive(Clone, Copy)]
enum Style {
    Json,
    Merge,
    Strategic,
}

fn patch_style(asked: &Asked) -> Result<Style, Failure> {
    match asked.content_type.split(';').next().unwrap_or_default().trim() {
        "application/json-patch+json" => Ok(Style::Json),
        "application/merge-patch+json" => Ok(Style::Merge),
        "application/strategic-merge-patch+json" => Ok(Style::Strategic),
        other => {
            let what = if other.contains("apply-patch") {
                "server-side apply is not supported yet"
            } else {
                "the patch's content type is not supported"
            };
            Err(Failure::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "UnsupportedMediaType",
                format!(
                    "{what} (`{other}`); supported: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json"
                ),
            ))
        }
    }
}

fn apply_patch(place: &Place, style: Style, old: &Value, patch: &Value) -> Result<Value, Failure> {
    let patched = match style {
        Style::Json => patches::json(old, patch),
        Style::Merge => Ok(patches::merge(old, patch)),
        Style::Strategic => patches::strategic(place.kind, old, patch),
    };
    patched.map_err(|error| match error {
        patches::PatchError::Unreadable(_) => Failure::bad_request(error.to_string()),
        _ => Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", error.to_string()),
    })
}

/// Changes one object: reads it, makes the new state, checks it, proposes it on condition that nobody was faster. Tried again
/// when somebody was, unless the client named the version it meant.
async fn change(
    door: &Arc<Door>,
    place: &Place,
    asked: &mut Asked,
    version: String,
    keep_status: bool,
    make: impl Fn(&Value) -> Result<Value, Failure>,
) -> Answer {
    let dry = is_dry(asked)?;
    let name = place.name.clone().unwrap_or_default();
    let mut last = Failure::method();
    for _ in 0..TRIES {
        let current = stored(door, place)?;
        if !version.is_empty() && version != current.revision.to_string() {
            return Err(Failure::conflict(
                place.kind,
                &name,
                "the object has been modified; please apply your changes to the latest version and try again",
            ));
        }
        let old = current.tree();
        let mut new = make(old)?;
        right_type(place, &mut new)?;
        keep_system_fields(place, old, &mut new, keep_status);
        let mut warnings = Vec::new();
        checked(place, asked, old, &mut new, &mut warnings)?;
        let object = if dry {
            let mut preview = new;
            preview["metadata"]["resourceVersion"] = json!(current.revision.to_string());
            Arc::new(Object::new(
                current.key.clone(),
                current.uid.clone(),
                current.revision,
                preview.to_string().into(),
            ))
        } else {
            let gone = is_deleting(&new)
                && list(&new["metadata"]["finalizers"]).is_empty()
                && !list(&old["metadata"]["finalizers"]).is_empty();
            let expect = Expect { uid: Some(current.uid.clone()), revision: Some(current.revision) };
            let op = if gone && removable(place, &new) {
                Op::Delete { key: current.key.clone(), expect }
            } else {
                Op::Update { key: current.key.clone(), expect, value: Arc::new(new), claims: None }
            };
            match door.cluster.propose(op.into()).await {
                Ok(outcomes) => match outcomes.into_iter().next() {
                    Some(Outcome::Stored(object) | Outcome::Unchanged(object) | Outcome::Deleted(object)) => object,
                    _ => current,
                },
                Err(error) => {
                    let raced = matches!(
                        &error,
                        crate::facility::ProposeError::Rejected {
                            rejection: coracle_store::Rejection::Conflict { .. },
                            ..
                        }
                    );
                    last = Failure::proposal(place.kind, &name, error);
                    if raced && version.is_empty() {
                        continue;
                    }
                    return Err(last);
                }
            }
        };
        asked.warnings.extend(warnings);
        return shown(door, place, asked, StatusCode::OK, &object);
    }
    Err(last)
}

/// Whether the last finalizer was all that held the object: a pod also waits for its node, a namespace for its content.
fn removable(place: &Place, object: &Value) -> bool {
    match place.kind.kind {
        "Pod" => text(&object["spec"]["nodeName"]).is_empty() || object["metadata"]["deletionGracePeriodSeconds"] == 0,
        "Namespace" => list(&object["spec"]["finalizers"]).is_empty(),
        _ => true,
    }
}

fn checked(
    place: &Place,
    asked: &Asked,
    old: &Value,
    new: &mut Value,
    warnings: &mut Vec<String>,
) -> Result<(), Failure> {
    let found = check::all(place.kind.kind, new);
    let name = text(&new["metadata"]["name"]).to_owned();
    let (unknown, other): (Vec<Problem>, Vec<Problem>) =
        found.problems.into_iter().partition(|problem| problem.reason == Reason::Unknown);
    match asked.query.get("fieldValidation").unwrap_or("Strict") {
        "Strict" if !unknown.is_empty() => return Err(Failure::strict(place.kind, &unknown)),
        "Strict" => {}
        mode => {
            if mode == "Warn" {
                warnings.extend(unknown.iter().map(ToString::to_string));
            }
            check::drop_unknown(place.kind.kind, new);
        }
    }
    if !other.is_empty() {
        return Err(Failure::invalid(place.kind, &name, &other));
    }
    warnings.extend(found.warnings);
    default::apply(place.kind, new);
    let problems = validate::update(place.kind, old, new);
    if !problems.is_empty() {
        return Err(Failure::invalid(place.kind, &name, &problems));
    }
    too_large(place, new)
}

/// `/status`, `/scale` and a namespace's `/finalize`.
pub(crate) async fn subresource(door: &Arc<Door>, place: &Place, asked: &mut Asked, sub: &str) -> Answer {
    use coracle_manifests::kinds::Subresource;
    let served = match sub {
        "status" => place.kind.subresources.contains(&Subresource::Status),
        "scale" => place.kind.subresources.contains(&Subresource::Scale),
        _ => place.kind.kind == "Namespace",
    };
    if !served {
        return Err(Failure::no_such_path());
    }
    if asked.method == http::Method::GET {
        let object = stored(door, place)?;
        return if sub == "scale" {
            Ok(answer::json(StatusCode::OK, &scale_of(&object)))
        } else {
            shown(door, place, asked, StatusCode::OK, &object)
        };
    }
    let patching = asked.method == http::Method::PATCH;
    if !patching && asked.method != http::Method::PUT {
        return Err(Failure::method());
    }
    let (value, _) = tree(asked)?;
    let style = if patching { Some(patch_style(asked)?) } else { None };
    let version = text(&value["metadata"]["resourceVersion"]).to_owned();
    let applied = |old: &Value| match style {
        Some(style) => apply_patch(place, style, old, &value),
        None => Ok(value.clone()),
    };
    if sub == "scale" {
        let current = stored(door, place)?;
        let new = applied(&scale_of(&current))?;
        let replicas = new["spec"]["replicas"].as_u64().unwrap_or(0);
        if new["spec"]["replicas"].as_i64().is_some_and(|replicas| replicas < 0) {
            let problem = Problem::new("spec.replicas", Reason::Invalid, "must not be negative");
            return Err(Failure::invalid(place.kind, &current.key.name, &[problem]));
        }
        let version = if patching { String::new() } else { version };
        let response = change(door, place, asked, version, true, |old| {
            let mut new = old.clone();
            new["spec"]["replicas"] = json!(replicas);
            Ok(new)
        })
        .await?;
        drop(response);
        return Ok(answer::json(StatusCode::OK, &scale_of(&*stored(door, place)?)));
    }
    let field = if sub == "status" { "status" } else { "spec" };
    change(door, place, asked, version, false, |old| {
        let mut new = old.clone();
        new[field] = applied(old)?[field].clone();
        Ok(new)
    })
    .await
}

/// The autoscaling/v1 Scale of an object.
fn scale_of(object: &Object) -> Value {
    let tree = object.tree();
    let selector =
        coracle_manifests::selector::Labels::from_object(&tree["spec"]["selector"]).map(|labels| labels.to_string());
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": tree["metadata"]["name"],
            "namespace": tree["metadata"]["namespace"],
            "uid": tree["metadata"]["uid"],
            "resourceVersion": tree["metadata"]["resourceVersion"],
            "creationTimestamp": tree["metadata"]["creationTimestamp"],
        },
        "spec": {"replicas": tree["spec"]["replicas"].as_u64().unwrap_or(0)},
        "status": {"replicas": tree["status"]["replicas"].as_u64().unwrap_or(0), "selector": selector.unwrap_or_default()},
    })
}

/// `pods/binding`: a scheduler of the user's own.
pub(crate) async fn bind(door: &Arc<Door>, place: &Place, asked: &mut Asked) -> Answer {
    let (value, _) = tree(asked)?;
    let object = stored(door, place)?;
    let node = text(&value["target"]["name"]);
    if node.is_empty() {
        return Err(Failure::bad_request("`target.name` names no node"));
    }
    let at = coracle_manifests::time::rfc3339(door.now_ms());
    let op = Op::Bind { key: object.key.clone(), uid: object.uid.clone(), node: node.into(), at: at.into() };
    door.cluster.propose(op.into()).await.map_err(|error| Failure::proposal(place.kind, &object.key.name, error))?;
    Ok(answer::json(
        StatusCode::CREATED,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}
