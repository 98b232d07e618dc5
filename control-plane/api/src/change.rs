//! Changing what is there: whole (`PUT`), in part (`PATCH`), or one side of it (`/status`, `/scale`, `/finalize`).

use std::sync::Arc;

use coracle_manifests::view::{is_deleting, list, text};
use coracle_manifests::{Problem, Reason, check, default, patch as patches, validate};
use coracle_store::{Expect, Object, Op, Outcome, Rejection};
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use crate::allot::{self, Allotted};
use crate::answer;
use crate::facility::ProposeError;
use crate::list::key_of;
use crate::path::Place;
use crate::serve::Door;
use crate::status::Failure;
use crate::verbs::{Answer, Asked};
use crate::write::{TRIES, is_dry, random, right_namespace, right_type, shown, strictly, too_large};

const CHANGED: &str = "the object has been modified; please apply your changes to the latest version and try again";

fn stored(door: &Door, place: &Place) -> Result<Arc<Object>, Failure> {
    let key = key_of(place);
    door.cluster.view().get(&key).cloned().ok_or_else(|| Failure::not_found(place.kind, &key.name))
}

/// What a request means to change.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Everything but the status.
    Main,
    /// The status alone.
    Status,
    /// A namespace's finalizers.
    Finalize,
}

/// Under which conditions on the stored object a change is meant.
#[derive(Default)]
struct Meant {
    version: String,
    uid: String,
}

impl Meant {
    fn of(value: &Value) -> Self {
        let own = |field: &str| text(&value["metadata"][field]).to_owned();
        Self { version: own("resourceVersion"), uid: own("uid") }
    }

    fn check(&self, place: &Place, current: &Object) -> Result<(), Failure> {
        if !self.uid.is_empty() && self.uid != *current.uid {
            let why =
                format!("Precondition failed: UID in precondition: {}, UID in object meta: {}", self.uid, current.uid);
            return Err(Failure::conflict(place.kind, &current.key.name, &why));
        }
        if !self.version.is_empty() && self.version != current.revision.to_string() {
            return Err(Failure::conflict(place.kind, &current.key.name, CHANGED));
        }
        Ok(())
    }
}

/// Waits until this server knows all that was acknowledged anywhere.
pub(crate) async fn up_to_date(door: &Door, place: &Place, name: &str) -> Result<(), Failure> {
    let known = door.cluster.read_barrier().await;
    known.map(drop).map_err(|error| Failure::proposal(place.kind, name, error))
}

pub(crate) async fn update(door: &Arc<Door>, place: &Place, asked: &mut Asked) -> Answer {
    let (mut value, duplicates) = asked.tree()?;
    right_type(place, &mut value)?;
    let mut warnings = Vec::new();
    strictly(place, asked, duplicates, &mut value, &mut warnings)?;
    let said = text(&value["metadata"]["name"]).to_owned();
    let name = place.name.as_deref().unwrap_or_default();
    if said != name {
        return Err(Failure::bad_request(format!(
            "the name of the object ({said}) does not match the name on the URL ({name})"
        )));
    }
    right_namespace(place, &value)?;
    let meant = Meant::of(&value);
    let object = change(door, place, asked, &meant, Side::Main, |_| Ok(value.clone())).await?;
    shown(door, place, asked, StatusCode::OK, &object)
}

pub(crate) async fn patch(door: &Arc<Door>, place: &Place, asked: &mut Asked) -> Answer {
    let style = style(asked)?;
    let (patch, duplicates) = asked.tree()?;
    if !duplicates.is_empty() {
        return Err(Failure::strict(place.kind, &duplicates));
    }
    let meant = Meant::of(&patch);
    let object = change(door, place, asked, &meant, Side::Main, |old| apply_patch(place, style, old, &patch)).await?;
    shown(door, place, asked, StatusCode::OK, &object)
}

#[derive(Clone, Copy)]
enum Style {
    Json,
    Merge,
    Strategic,
}

fn style(asked: &Asked) -> Result<Style, Failure> {
    match asked.media_type() {
        "application/json-patch+json" => Ok(Style::Json),
        "application/merge-patch+json" => Ok(Style::Merge),
        "application/strategic-merge-patch+json" => Ok(Style::Strategic),
        other => {
            let what = if other.contains("apply-patch") {
                "server-side apply is not supported yet"
            } else {
                "the patch's content type is not supported"
            };
            Err(Failure::media_type(format!(
                "{what} (`{other}`); supported: application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json"
            )))
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
    meant: &Meant,
    side: Side,
    make: impl Fn(&Value) -> Result<Value, Failure>,
) -> Result<Arc<Object>, Failure> {
    let dry = is_dry(asked)?;
    let name = place.name.clone().unwrap_or_default();
    let mut last = Failure::conflict(place.kind, &name, CHANGED);
    let mut sure = false;
    for _ in 0..TRIES {
        let found = stored(door, place).and_then(|current| meant.check(place, &current).map(|()| current));
        let current = match found {
            Ok(current) => current,
            Err(failure) if sure => return Err(failure),
            Err(_) => {
                // Another server may have acknowledged a moment ago what this one has not heard of yet.
                up_to_date(door, place, &name).await?;
                sure = true;
                continue;
            }
        };
        let old = current.tree();
        let mut new = make(old)?;
        right_type(place, &mut new)?;
        keep_system_fields(place, old, &mut new, side);
        let mut warnings = Vec::new();
        checked(place, asked, side, old, &mut new, &mut warnings)?;
        let allotted = allotted(door, place, side, &current, &mut new)?;
        if dry {
            asked.warnings.extend(warnings);
            new["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
            new["metadata"]["generation"] = old["metadata"]["generation"].clone();
            let (key, uid) = (current.key.clone(), current.uid.clone());
            return Ok(Arc::new(Object::from_tree(key, uid, current.revision, new)));
        }
        let expect = Expect { uid: Some(current.uid.clone()), revision: Some(current.revision) };
        let op = if is_let_go(place, old, &new) {
            Op::Delete { key: current.key.clone(), expect }
        } else {
            let claims = allotted.as_ref().map(|allotted| allotted.claims.clone());
            Op::Update { key: current.key.clone(), expect, value: Arc::new(new), claims }
        };
        match door.cluster.propose(op.into()).await {
            Ok(outcomes) => {
                asked.warnings.extend(warnings);
                return Ok(match outcomes.into_iter().next() {
                    Some(Outcome::Stored(object) | Outcome::Unchanged(object) | Outcome::Deleted(object)) => object,
                    _ => current,
                });
            }
            Err(ProposeError::Rejected { rejection: Rejection::Claimed { claim, holder }, .. }) => {
                let refusal = allotted.as_ref().and_then(|allotted| allotted.refusal(&claim, &holder));
                if let Some(problem) = refusal {
                    return Err(Failure::invalid(place.kind, &name, &[problem]));
                }
            }
            Err(error) => {
                let raced = matches!(&error, ProposeError::Rejected { rejection: Rejection::Conflict { .. }, .. });
                last = Failure::proposal(place.kind, &name, error);
                if !raced || !meant.version.is_empty() {
                    return Err(last);
                }
            }
        }
    }
    Err(last)
}

/// What a Service holds after a change; nothing changes hands with any other kind, or with a status.
fn allotted(
    door: &Door,
    place: &Place,
    side: Side,
    current: &Object,
    new: &mut Value,
) -> Result<Option<Allotted>, Failure> {
    if place.kind.kind != "Service" || side != Side::Main || !new["spec"].is_object() {
        return Ok(None);
    }
    let found = allot::allot(&door.addresses, &door.cluster.view(), &current.key, new, random());
    found.map(Some).map_err(|problems| Failure::invalid(place.kind, &current.key.name, &problems))
}

/// The new state of an object with what a client may not change taken from the old one.
fn keep_system_fields(place: &Place, old: &Value, new: &mut Value, side: Side) {
    if side != Side::Main {
        let field = if side == Side::Status { "status" } else { "spec" };
        let value = new[field].take();
        new.clone_from(old);
        new[field] = value;
        return;
    }
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
            let value = old["metadata"][field].clone();
            if value.is_null() {
                meta.remove(field);
            } else {
                meta.insert(field.to_owned(), value);
            }
        }
        meta.remove("managedFields");
        meta.remove("selfLink");
    }
    if place.kind.subresources.contains(&coracle_manifests::kinds::Subresource::Status) {
        if old["status"].is_null() {
            if let Some(map) = new.as_object_mut() {
                map.remove("status");
            }
        } else {
            new["status"] = old["status"].clone();
        }
    }
    carry(place, old, new);
}

/// What the system allotted and a whole new object does not say: address and ports of a Service, the pod network of a node.
fn carry(place: &Place, old: &Value, new: &mut Value) {
    let fields: &[&str] = match place.kind.kind {
        "Service" => return allot::carry(old, new),
        "Node" => &["podCIDR", "podCIDRs"],
        _ => return,
    };
    if new["spec"].is_null() {
        new["spec"] = json!({});
    }
    let Some(spec) = new["spec"].as_object_mut() else { return };
    for field in fields {
        let unsaid = spec.get(*field).is_none_or(|value| value.is_null() || *value == "" || *value == json!([]));
        if unsaid && !old["spec"][*field].is_null() {
            spec.insert((*field).to_owned(), old["spec"][*field].clone());
        }
    }
}

fn checked(
    place: &Place,
    asked: &Asked,
    side: Side,
    old: &Value,
    new: &mut Value,
    warnings: &mut Vec<String>,
) -> Result<(), Failure> {
    let name = text(&old["metadata"]["name"]);
    if side == Side::Status {
        // The rest is as it was, and was checked when it was written.
        let (unknown, other): (Vec<Problem>, Vec<Problem>) =
            check::status(place.kind, new).into_iter().partition(|problem| problem.reason == Reason::Unknown);
        if !unknown.is_empty() {
            return Err(Failure::strict(place.kind, &unknown));
        }
        if !other.is_empty() {
            return Err(Failure::invalid(place.kind, name, &other));
        }
        return too_large(place, new);
    }
    strictly(place, asked, Vec::new(), new, warnings)?;
    default::apply(place.kind, new);
    let mut problems = validate::update(place.kind, old, new);
    if is_deleting(old) {
        let held = list(&old["metadata"]["finalizers"]);
        let added = list(&new["metadata"]["finalizers"]).iter().filter(|finalizer| !held.contains(finalizer));
        problems.extend(added.map(|finalizer| {
            Problem::new(
                "metadata.finalizers",
                Reason::Forbidden,
                format!("{finalizer} cannot be added: the object is being deleted"),
            )
        }));
    }
    if !problems.is_empty() {
        return Err(Failure::invalid(place.kind, name, &problems));
    }
    too_large(place, new)
}

/// Whether the change takes away the last thing that held an object which is being deleted: a pod also waits for its node, a
/// namespace for its content.
fn is_let_go(place: &Place, old: &Value, new: &Value) -> bool {
    let holds = |object: &Value| {
        let meta = !list(&object["metadata"]["finalizers"]).is_empty();
        let spec = place.kind.kind == "Namespace" && !list(&object["spec"]["finalizers"]).is_empty();
        let node = place.kind.kind == "Pod"
            && !text(&object["spec"]["nodeName"]).is_empty()
            && object["metadata"]["deletionGracePeriodSeconds"] != 0;
        meta || spec || node
    };
    is_deleting(new) && holds(old) && !holds(new)
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
    let style = match asked.method {
        Method::GET => {
            let object = stored(door, place)?;
            return if sub == "scale" {
                Ok(answer::json(StatusCode::OK, &scale_of(&object)))
            } else {
                shown(door, place, asked, StatusCode::OK, &object)
            };
        }
        Method::PATCH => Some(style(asked)?),
        Method::PUT => None,
        _ => return Err(Failure::method()),
    };
    let (value, duplicates) = asked.tree()?;
    if !duplicates.is_empty() {
        return Err(Failure::strict(place.kind, &duplicates));
    }
    if !value.is_object() && !value.is_array() {
        return Err(Failure::bad_request("the body is not an object"));
    }
    let meant = Meant::of(&value);
    let applied = |old: &Value| match style {
        Some(style) => apply_patch(place, style, old, &value),
        None => Ok(value.clone()),
    };
    if sub == "scale" {
        let object = change(door, place, asked, &meant, Side::Main, |old| {
            let scale = applied(&scale_of_tree(old))?;
            let mut new = old.clone();
            new["spec"]["replicas"] = json!(replicas_of(place, &scale)?);
            Ok(new)
        })
        .await?;
        return Ok(answer::json(StatusCode::OK, &scale_of(&object)));
    }
    let side = if sub == "status" { Side::Status } else { Side::Finalize };
    let object = change(door, place, asked, &meant, side, applied).await?;
    shown(door, place, asked, StatusCode::OK, &object)
}

/// The wish of a Scale. Saying nothing means none, as upstream has it.
fn replicas_of(place: &Place, scale: &Value) -> Result<i32, Failure> {
    let value = &scale["spec"]["replicas"];
    let words = match value.as_i64().map(i32::try_from) {
        None if value.is_null() => return Ok(0),
        Some(Ok(replicas)) if replicas >= 0 => return Ok(replicas),
        Some(Ok(_)) => "must not be negative".to_owned(),
        _ => format!("{value} is not a whole number of 32 bits"),
    };
    let problem = Problem::new("spec.replicas", Reason::Invalid, words);
    Err(Failure::invalid(place.kind, place.name.as_deref().unwrap_or_default(), &[problem]))
}

fn scale_of(object: &Object) -> Value {
    scale_of_tree(object.tree())
}

/// The autoscaling/v1 Scale of an object.
fn scale_of_tree(tree: &Value) -> Value {
    let selector = coracle_manifests::selector::Labels::of_pods(tree).map(|labels| labels.to_string());
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
    let (value, _) = asked.tree()?;
    let dry = is_dry(asked)?;
    let object = stored(door, place)?;
    let node = text(&value["target"]["name"]);
    if node.is_empty() {
        return Err(Failure::bad_request("`target.name` names no node"));
    }
    let target = text(&value["target"]["kind"]);
    if !target.is_empty() && target != "Node" {
        return Err(Failure::bad_request(format!("a pod is bound to a Node, not to a {target}")));
    }
    Meant::of(&value).check(place, &object)?;
    let at = coracle_manifests::time::rfc3339(door.now_ms());
    let op = Op::Bind { key: object.key.clone(), uid: object.uid.clone(), node: node.into(), at: at.into() };
    if !dry {
        door.cluster
            .propose(op.into())
            .await
            .map_err(|error| Failure::proposal(place.kind, &object.key.name, error))?;
    }
    Ok(answer::json(
        StatusCode::CREATED,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}
