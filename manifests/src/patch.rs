//! The ways to change an object: JSON Patch (RFC 6902), JSON Merge Patch (RFC 7386), strategic merge with the table's merge
//! keys, and the three-way rule of `apply`.

use serde_json::{Map, Value, json};

use crate::kinds::Kind;
use crate::schema::{self, Field, Type};

/// Why a patch does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// Not a patch at all.
    #[error("the patch cannot be read: {0}")]
    Unreadable(String),
    /// A JSON patch whose paths or tests do not fit the object.
    #[error("the patch does not fit the object: {0}")]
    Misfit(String),
    /// A list item without its merge key.
    #[error("{path}: an item has no `{key}`, by which items of this list are told apart")]
    NoKey {
        /// The list.
        path: String,
        /// The key.
        key: String,
    },
}

/// Applies a JSON Patch.
///
/// # Errors
/// Not a JSON Patch, or it does not fit.
pub fn json(document: &Value, patch: &Value) -> Result<Value, PatchError> {
    let operations: json_patch::Patch =
        serde_json::from_value(patch.clone()).map_err(|error| PatchError::Unreadable(error.to_string()))?;
    if operations.0.len() > 10_000 {
        return Err(PatchError::Unreadable("more than 10000 operations".into()));
    }
    let mut document = document.clone();
    json_patch::patch(&mut document, &operations).map_err(|error| PatchError::Misfit(error.to_string()))?;
    Ok(document)
}

/// Applies a JSON Merge Patch.
#[must_use]
pub fn merge(document: &Value, patch: &Value) -> Value {
    let mut document = document.clone();
    json_patch::merge(&mut document, patch);
    document
}

/// Applies a strategic merge patch to an object of `kind`.
///
/// # Errors
/// Items of a keyed list without their key.
pub fn strategic(kind: &Kind, document: &Value, patch: &Value) -> Result<Value, PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Unreadable("a strategic merge patch is an object".into()));
    }
    let mut document = document.clone();
    merge_object(Some(kind.kind), &mut document, patch, "")?;
    Ok(document)
}

fn field_of(type_name: Option<&str>, key: &str) -> Option<&'static Field> {
    schema::field(type_name?, key)
}

/// The named type inside a field's type: of the object, or of the items of the list or map.
fn inner_type(typ: &Type) -> Option<&str> {
    match typ {
        Type::Named(name) => Some(name),
        Type::List(inner) => inner_type(inner),
        _ => None,
    }
}

fn merge_object(type_name: Option<&str>, target: &mut Value, patch: &Value, path: &str) -> Result<(), PatchError> {
    let Some(changes) = patch.as_object() else {
        *target = patch.clone();
        return Ok(());
    };
    if changes.get("$patch").is_some_and(|directive| directive == "replace") {
        let mut whole = changes.clone();
        whole.remove("$patch");
        *target = Value::Object(whole);
        return Ok(());
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(object) = target.as_object_mut() else { return Ok(()) };
    if changes.get("$patch").is_some_and(|directive| directive == "delete") {
        object.clear();
        return Ok(());
    }
    if let Some(keys) = changes.get("$retainKeys").and_then(Value::as_array) {
        object.retain(|key, _| keys.iter().any(|kept| kept == key));
    }
    for (key, change) in changes {
        if key == "$retainKeys" || key == "$patch" {
            continue;
        }
        let child = crate::check::join(path, key);
        if let Some(name) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(items), Some(gone)) = (object.get_mut(name).and_then(Value::as_array_mut), change.as_array()) {
                items.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if key.starts_with("$setElementOrder/") {
            continue;
        }
        if change.is_null() {
            object.remove(key);
            continue;
        }
        let field = field_of(type_name, key);
        let named = field.and_then(|field| inner_type(&field.typ));
        if change.is_object() {
            let slot = object.entry(key.clone()).or_insert_with(|| Value::Object(Map::new()));
            merge_object(named, slot, change, &child)?;
        } else if let (Some(items), Some(field)) = (change.as_array(), field) {
            merge_list(field, named, object, key, items, &child)?;
        } else {
            object.insert(key.clone(), change.clone());
        }
    }
    for (key, order) in changes {
        if let (Some(name), Some(order)) = (key.strip_prefix("$setElementOrder/"), order.as_array())
            && let Some(items) = object.get_mut(name).and_then(Value::as_array_mut)
        {
            let merge_key = field_of(type_name, name).and_then(|field| field.merge_key.as_deref());
            reorder(items, order, merge_key);
        }
    }
    Ok(())
}

fn merge_list(
    field: &Field,
    named: Option<&str>,
    object: &mut Map<String, Value>,
    key: &str,
    changes: &[Value],
    path: &str,
) -> Result<(), PatchError> {
    let replace = changes.iter().any(|item| item["$patch"] == "replace");
    let plain =
        |items: &[Value]| -> Vec<Value> { items.iter().filter(|item| item.get("$patch").is_none()).cloned().collect() };
    if field.set && !replace {
        let slot = object.entry(key.to_owned()).or_insert_with(|| json!([]));
        if let Some(items) = slot.as_array_mut() {
            for change in changes {
                if !items.contains(change) {
                    items.push(change.clone());
                }
            }
        }
        return Ok(());
    }
    let Some(merge_key) = field.merge_key.as_deref().filter(|_| !replace) else {
        object.insert(key.to_owned(), Value::Array(plain(changes)));
        return Ok(());
    };
    let slot = object.entry(key.to_owned()).or_insert_with(|| json!([]));
    if !slot.is_array() {
        *slot = json!([]);
    }
    let Some(items) = slot.as_array_mut() else { return Ok(()) };
    for change in changes {
        let Some(id) = change.get(merge_key) else {
            return Err(PatchError::NoKey { path: path.to_owned(), key: merge_key.to_owned() });
        };
        let position = items.iter().position(|item| item.get(merge_key) == Some(id) && same_port(item, change));
        if change["$patch"] == "delete" {
            items.retain(|item| !(item.get(merge_key) == Some(id) && same_port(item, change)));
        } else if let Some(position) = position {
            merge_object(named, &mut items[position], change, &format!("{path}[{position}]"))?;
        } else {
            let mut fresh = Value::Object(Map::new());
            merge_object(named, &mut fresh, change, path)?;
            items.push(fresh);
        }
    }
    Ok(())
}

/// Two ports of one number are different ports when their protocols differ; upstream's key leaves that out and mixes them.
fn same_port(item: &Value, change: &Value) -> bool {
    let protocol = |value: &Value| value["protocol"].as_str().map_or("TCP".to_owned(), ToOwned::to_owned);
    change.get("protocol").is_none() || protocol(item) == protocol(change)
}

/// Items named in `order` first, in that order; the others keep theirs after the one they followed.
fn reorder(items: &mut [Value], order: &[Value], merge_key: Option<&str>) {
    let rank = |item: &Value| {
        order.iter().position(|wanted| match merge_key {
            Some(key) => wanted.get(key) == item.get(key),
            None => wanted == item,
        })
    };
    let mut last = 0;
    let mut ranked: Vec<(usize, usize)> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        last = rank(item).unwrap_or(last);
        ranked.push((last, index));
    }
    ranked.sort_by_key(|(rank, index)| (*rank, *index));
    let sorted: Vec<Value> = ranked.into_iter().map(|(_, index)| items[index].clone()).collect();
    items.clone_from_slice(&sorted);
}

/// The strategic merge patch that makes `live` what `wanted` says: what `last` said and `wanted` no longer says is removed,
/// what neither said stays. Empty when nothing is to be done.
#[must_use]
pub fn three_way(kind: &Kind, last: &Value, wanted: &Value, live: &Value) -> Value {
    let mut patch = diff_object(Some(kind.kind), last, wanted, live);
    if let Some(map) = patch.as_object_mut() {
        // The type of an object is not a change.
        map.remove("apiVersion");
        map.remove("kind");
        map.remove("status");
    }
    patch
}

fn diff_object(type_name: Option<&str>, last: &Value, wanted: &Value, live: &Value) -> Value {
    let mut patch = Map::new();
    for (key, wanted) in wanted.as_object().into_iter().flatten() {
        let (last, live) = (&last[key], &live[key]);
        if wanted == live {
            continue;
        }
        if wanted.is_null() {
            if !live.is_null() {
                patch.insert(key.clone(), Value::Null);
            }
            continue;
        }
        let field = field_of(type_name, key);
        let named = field.and_then(|field| inner_type(&field.typ));
        if wanted.is_object() && live.is_object() {
            let inner = diff_object(named, last, wanted, live);
            if inner != json!({}) {
                patch.insert(key.clone(), inner);
            }
        } else if let (Some(field), Some(wanted), Some(live_items)) = (field, wanted.as_array(), live.as_array()) {
            if let Some(merge_key) = &field.merge_key {
                let (items, order) = diff_list(named, merge_key, last, wanted, live_items);
                if !items.is_empty() {
                    patch.insert(key.clone(), Value::Array(items));
                    patch.insert(format!("$setElementOrder/{key}"), Value::Array(order));
                }
            } else if field.set {
                let gone: Vec<Value> = last
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter(|item| !wanted.contains(item) && live_items.contains(item))
                    .cloned()
                    .collect();
                let added: Vec<Value> = wanted.iter().filter(|item| !live_items.contains(item)).cloned().collect();
                if !gone.is_empty() {
                    patch.insert(format!("$deleteFromPrimitiveList/{key}"), Value::Array(gone));
                }
                if !added.is_empty() {
                    patch.insert(key.clone(), Value::Array(added));
                }
            } else {
                patch.insert(key.clone(), Value::Array(wanted.clone()));
            }
        } else if !same_amount(field, wanted, live) {
            patch.insert(key.clone(), wanted.clone());
        }
    }
    for (key, _) in last.as_object().into_iter().flatten() {
        if wanted.get(key).is_none() && live.get(key).is_some() {
            patch.insert(key.clone(), Value::Null);
        }
    }
    Value::Object(patch)
}

/// Quantities that are written differently and mean the same.
fn same_amount(field: Option<&Field>, wanted: &Value, live: &Value) -> bool {
    use crate::quantity::Quantity;
    field.is_some_and(|field| matches!(field.typ, Type::Quantity))
        && Quantity::of_json(wanted) == Quantity::of_json(live)
}

fn diff_list(
    named: Option<&str>,
    merge_key: &str,
    last: &Value,
    wanted: &[Value],
    live: &[Value],
) -> (Vec<Value>, Vec<Value>) {
    let mut items = Vec::new();
    let mut order = Vec::new();
    for item in wanted {
        let id = item[merge_key].clone();
        order.push(json!({merge_key: id}));
        let of = |list: &[Value]| {
            list.iter().find(|other| other[merge_key] == id && same_port(other, item)).cloned().unwrap_or(Value::Null)
        };
        let there = of(live);
        if there.is_null() {
            items.push(item.clone());
            continue;
        }
        let mut inner = diff_object(named, &of(last.as_array().map_or(&[], Vec::as_slice)), item, &there);
        if inner != json!({}) {
            inner[merge_key] = id;
            items.push(inner);
        }
    }
    for gone in last.as_array().into_iter().flatten() {
        let same = |other: &&Value| other[merge_key] == gone[merge_key] && same_port(other, gone);
        if !wanted.iter().any(|other| same(&other)) && live.iter().any(|other| same(&other)) {
            items.push(json!({"$patch": "delete", merge_key: gone[merge_key]}));
        }
    }
    (items, order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::by_word;

    fn deployment() -> Value {
        json!({"metadata": {"name": "a", "labels": {"x": "1"}}, "spec": {"replicas": 1, "template": {"spec": {"containers": [
            {"name": "one", "image": "a:1", "env": [{"name": "A", "value": "1"}], "ports": [{"containerPort": 80, "protocol": "TCP"}]},
            {"name": "two", "image": "b:1"}]}}}})
    }

    #[test]
    fn set_image_changes_one_container() {
        let patch = json!({"spec": {"template": {"spec": {"$setElementOrder/containers": [{"name": "one"}, {"name": "two"}], "containers": [{"name": "two", "image": "b:2"}]}}}});
        let changed = strategic(by_word("deploy").unwrap(), &deployment(), &patch).unwrap();
        let containers = &changed["spec"]["template"]["spec"]["containers"];
        assert_eq!((&containers[0]["image"], &containers[1]["image"]), (&json!("a:1"), &json!("b:2")));
    }

    #[test]
    fn directives() {
        let kind = by_word("deploy").unwrap();
        let patch = json!({"metadata": {"labels": {"x": null, "y": "2"}}, "spec": {"template": {"spec": {"containers": [
            {"name": "one", "$patch": "delete"}, {"name": "three", "image": "c"}], "$setElementOrder/containers": [{"name": "three"}, {"name": "two"}]}}}});
        let changed = strategic(kind, &deployment(), &patch).unwrap();
        assert_eq!(changed["metadata"]["labels"], json!({"y": "2"}));
        let names: Vec<_> = changed["spec"]["template"]["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|container| container["name"].clone())
            .collect();
        assert_eq!(names, ["three", "two"]);
        let whole = json!({"spec": {"template": {"spec": {"containers": [{"$patch": "replace"}, {"name": "only", "image": "x"}]}}}});
        let changed = strategic(kind, &deployment(), &whole).unwrap();
        assert_eq!(changed["spec"]["template"]["spec"]["containers"], json!([{"name": "only", "image": "x"}]));
        let keyless = json!({"spec": {"template": {"spec": {"containers": [{"image": "x"}]}}}});
        assert!(matches!(strategic(kind, &deployment(), &keyless), Err(PatchError::NoKey { .. })));
        let strategy = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
        let mut rolling = deployment();
        rolling["spec"]["strategy"] = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}});
        assert_eq!(strategic(kind, &rolling, &strategy).unwrap()["spec"]["strategy"], json!({"type": "Recreate"}));
    }

    #[test]
    fn a_second_apply_changes_nothing_and_removal_is_seen() {
        let kind = by_word("deploy").unwrap();
        let last = deployment();
        let mut live = deployment();
        live["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = json!("IfNotPresent");
        live["spec"]["strategy"] = json!({"type": "RollingUpdate"});
        live["status"] = json!({"replicas": 1});
        assert_eq!(three_way(kind, &last, &last, &live), json!({}));
        let mut wanted = deployment();
        wanted["spec"]["template"]["spec"]["containers"].as_array_mut().unwrap().remove(1);
        wanted["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{"name": "B", "value": "2"}]);
        wanted["metadata"]["labels"] = json!({});
        let patch = three_way(kind, &last, &wanted, &live);
        let changed = strategic(kind, &live, &patch).unwrap();
        let containers = changed["spec"]["template"]["spec"]["containers"].as_array().unwrap();
        assert_eq!(containers.len(), 1);
        assert_eq!(containers[0]["env"], json!([{"name": "B", "value": "2"}]));
        assert_eq!(containers[0]["imagePullPolicy"], "IfNotPresent");
        assert_eq!(changed["metadata"]["labels"], json!({}));
        assert_eq!(changed["spec"]["strategy"]["type"], "RollingUpdate");
        assert_eq!(three_way(kind, &wanted, &wanted, &changed), json!({}));
    }

    #[test]
    fn json_patch_and_merge_patch() {
        let changed = json(&deployment(), &json!([{"op": "replace", "path": "/spec/replicas", "value": 3}])).unwrap();
        assert_eq!(changed["spec"]["replicas"], 3);
        assert!(matches!(
            json(&deployment(), &json!([{"op": "remove", "path": "/nothing"}])),
            Err(PatchError::Misfit(_))
        ));
        assert!(matches!(json(&deployment(), &json!({})), Err(PatchError::Unreadable(_))));
        assert_eq!(merge(&deployment(), &json!({"spec": {"replicas": null}}))["spec"].get("replicas"), None);
    }
}
