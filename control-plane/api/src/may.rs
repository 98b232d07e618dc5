//! Whether the one who asks may. Roles come later; until then nothing is given away but to a node what it needs to leave.

use http::Method;
use serde_json::Value;

use crate::path::Place;
use crate::status::Failure;
use crate::verbs::Asked;
use crate::who::Who;

/// What a node may do with its own Node and nothing else: delete it, and close it to new pods.
pub(crate) const OF_A_NODE: [&str; 2] = ["delete", "patch"];

/// Whether one may do everything: the administrators.
pub(crate) fn all(who: &Who) -> bool {
    who.groups.iter().any(|group| group == "system:masters")
}

/// The name of the node that asks; `None` for all who are no nodes.
pub(crate) fn node(who: &Who) -> Option<&str> {
    let name = who.user.strip_prefix("system:node:")?;
    (!name.is_empty() && who.groups.iter().any(|group| group == "system:nodes")).then_some(name)
}

/// Whether one may do `verb` on `what`, which is at `place` when it is an object.
///
/// # Errors
/// The refusal to send: 401 to a stranger, 403 to one who is known.
pub(crate) fn check(who: &Who, verb: &str, what: &str, place: Option<&Place>) -> Result<(), Failure> {
    if all(who) {
        return Ok(());
    }
    if !who.is_known() {
        return Err(Failure::unauthorized("a client certificate of this cluster or a bearer token is needed"));
    }
    let own = |place: &Place| {
        let is_node = place.kind.kind == "Node" && place.sub.is_none();
        is_node && node(who).is_some_and(|node| place.name.as_deref() == Some(node))
    };
    if OF_A_NODE.contains(&verb) && place.is_some_and(own) {
        return Ok(());
    }
    Err(Failure::forbidden(format!(
        "{what} is forbidden: User \"{}\" cannot {verb} it: only members of system:masters may",
        who.user
    )))
}

/// Whether one who may patch its own Node patches what it may: `spec.unschedulable` alone. Looked at once the body is there.
///
/// # Errors
/// The refusal to send.
pub(crate) fn check_patch(who: &Who, asked: &Asked) -> Result<(), Failure> {
    if all(who) || asked.method != Method::PATCH {
        return Ok(());
    }
    // In a JSON patch a path says what changes: not worth reading for one field.
    let merges =
        matches!(asked.media_type(), "application/merge-patch+json" | "application/strategic-merge-patch+json");
    if merges && is_cordon(&asked.tree()?.0) {
        return Ok(());
    }
    Err(Failure::forbidden(format!(
        "nodes is forbidden: User \"{}\" may patch spec.unschedulable of its own Node and nothing else",
        who.user
    )))
}

/// Exactly `{"spec": {"unschedulable": true, false or null}}`.
fn is_cordon(patch: &Value) -> bool {
    let only = |value: &Value, field: &str| {
        value.as_object().filter(|fields| fields.len() == 1).and_then(|fields| fields.get(field)).cloned()
    };
    only(patch, "spec")
        .and_then(|spec| only(&spec, "unschedulable"))
        .is_some_and(|value| value.is_boolean() || value.is_null())
}
