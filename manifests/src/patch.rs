//! The ways to change an object: JSON Patch (RFC 6902), JSON Merge Patch (RFC 7386), strategic merge with the table's merge
//! keys, and the three-way rule of `apply`.

use serde_json::{Map, Value, json};

use crate::decode::MAX_DEPTH;
use crate::kinds::Kind;
use crate::quantity::Quantity;
use crate::schema::{self, Field, Type};

/// The most operations of a JSON Patch.
const MAX_OPERATIONS: usize = 10_000;
/// The most bytes the `copy` operations of a JSON Patch may add.
const MAX_COPIED: usize = 3 << 20;

/// Why a patch does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// Not a patch at all.
    #[error("the patch cannot be read: {0}")]
    Unreadable(String),
    /// A JSON patch whose paths or tests do not fit the object.
    #[error("the patch does not fit the object: {0}")]
    Misfit(String),
    /// A patch that would make the object grow beyond what is kept.
    #[error("the patch makes the object too large: {0}")]
    TooLarge(String),
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
    if operations.0.len() > MAX_OPERATIONS {
        return Err(PatchError::TooLarge(format!("it has more than {MAX_OPERATIONS} operations")));
    }
    let mut document = document.clone();
    let mut copied = 0;
    for operation in operations.0 {
        if let json_patch::PatchOperation::Copy(copy) = &operation {
            // Each copy may double the object, and nest it in itself.
            copied += document.pointer(copy.from.as_str()).map_or(0, |value| size(value, 0));
            if copied > MAX_COPIED {
                return Err(PatchError::TooLarge(format!("its operations copy more than {MAX_COPIED} bytes")));
            }
        }
        let nests = matches!(operation, json_patch::PatchOperation::Copy(_) | json_patch::PatchOperation::Move(_));
        json_patch::patch(&mut document, std::slice::from_ref(&operation))
            .map_err(|error| PatchError::Misfit(error.to_string()))?;
        if nests && !crate::view::is_shallow(&document, MAX_DEPTH) {
            return Err(PatchError::TooLarge(format!("it nests deeper than {MAX_DEPTH} levels")));
        }
    }
    Ok(document)
}

/// About how many bytes a value has as text.
fn size(value: &Value, depth: usize) -> usize {
    if depth > 2 * MAX_DEPTH {
        return MAX_COPIED;
    }
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(|item| size(item, depth + 1) + 1).sum::<usize>() + 2,
        Value::Object(map) => map.iter().map(|(key, value)| key.len() + size(value, depth + 1) + 4).sum::<usize>() + 2,
        _ => 8,
    }
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
    merge_object(Some(&Type::Named(kind.kind.to_owned())), &mut document, patch, "")?;
    Ok(document)
}

/// The field of an object of this type, and the type of its value.
fn child<'a>(typ: Option<&'a Type>, key: &str) -> (Option<&'static Field>, Option<&'a Type>) {
    match typ {
        Some(Type::Named(name)) => {
            let field = schema::field(name, key);
            (field, field.map(|field| &field.typ))
        }
        Some(Type::Map(inner)) => (None, Some(inner)),
        _ => (None, None),
    }
}

/// The type of a list's items.
fn item_type(typ: Option<&Type>) -> Option<&Type> {
    if let Some(Type::List(inner)) = typ { Some(inner) } else { None }
}

fn merge_object(typ: Option<&Type>, target: &mut Value, patch: &Value, path: &str) -> Result<(), PatchError> {
    let Some(changes) = patch.as_object() else {
        *target = patch.clone();
        return Ok(());
    };
    if let Some(unknown) =
        changes.get("$patch").filter(|known| !["replace", "delete", "merge"].iter().any(|name| known == name))
    {
        return Err(PatchError::Unreadable(format!(
            "{path}: `$patch: {unknown}` is neither replace, delete nor merge"
        )));
    }
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
        let at = crate::check::join(path, key);
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
        let (field, inner) = child(typ, key);
        if change.is_object() {
            let slot = object.entry(key.clone()).or_insert_with(|| Value::Object(Map::new()));
            merge_object(inner, slot, change, &at)?;
        } else if let (Some(items), Some(field)) = (change.as_array(), field) {
            let order = changes.get(&format!("$setElementOrder/{key}")).and_then(Value::as_array);
            merge_list(field, item_type(inner), object, (key, &at), items, order.unwrap_or(items))?;
        } else {
            object.insert(key.clone(), change.clone());
        }
    }
    for (key, order) in changes {
        if let (Some(name), Some(order)) = (key.strip_prefix("$setElementOrder/"), order.as_array())
            && changes.get(name).is_none()
            && let Some(items) = object.get_mut(name).and_then(Value::as_array_mut)
        {
            let field = child(typ, name).0;
            let before = items.clone();
            *items = ordered(std::mem::take(items), order, &before, field.and_then(|field| field.merge_key.as_deref()));
        }
    }
    Ok(())
}

fn merge_list(
    field: &Field,
    typ: Option<&Type>,
    object: &mut Map<String, Value>,
    (key, path): (&str, &str),
    changes: &[Value],
    order: &[Value],
) -> Result<(), PatchError> {
    let replace = changes.iter().any(|item| item["$patch"] == "replace");
    let merge_key = field.merge_key.as_deref();
    if replace || (merge_key.is_none() && !field.set) {
        let plain = changes.iter().filter(|item| item.get("$patch").is_none()).cloned().collect();
        object.insert(key.to_owned(), plain);
        return Ok(());
    }
    let slot = object.entry(key.to_owned()).or_insert_with(|| json!([]));
    if !slot.is_array() {
        *slot = json!([]);
    }
    let Some(items) = slot.as_array_mut() else { return Ok(()) };
    let before = items.clone();
    for change in changes {
        let Some(merge_key) = merge_key else {
            if !items.contains(change) {
                items.push(change.clone());
            }
            continue;
        };
        let Some(id) = change.get(merge_key) else {
            return Err(PatchError::NoKey { path: path.to_owned(), key: merge_key.to_owned() });
        };
        let position = items.iter().position(|item| item.get(merge_key) == Some(id) && same_port(item, change));
        if change["$patch"] == "delete" {
            items.retain(|item| !(item.get(merge_key) == Some(id) && same_port(item, change)));
        } else if let Some(position) = position {
            merge_object(typ, &mut items[position], change, &format!("{path}[{position}]"))?;
        } else {
            let mut fresh = Value::Object(Map::new());
            merge_object(typ, &mut fresh, change, path)?;
            items.push(fresh);
        }
    }
    *items = ordered(std::mem::take(items), order, &before, merge_key);
    Ok(())
}

/// Two ports of one number are different ports when their protocols differ; upstream's key leaves that out and mixes them.
fn same_port(item: &Value, change: &Value) -> bool {
    let protocol = |value: &Value| value["protocol"].as_str().map_or("TCP".to_owned(), ToOwned::to_owned);
    change.get("protocol").is_none() || protocol(item) == protocol(change)
}

/// The items in the order upstream gives them: those that `order` names in its order; the others as they were (`before`),
/// each in front of the first named item that it used to stand in front of.
fn ordered(items: Vec<Value>, order: &[Value], before: &[Value], merge_key: Option<&str>) -> Vec<Value> {
    let place = |list: &[Value], item: &Value| {
        list.iter().position(|other| match merge_key {
            Some(key) => other.get(key) == item.get(key) && same_port(other, item),
            None => other == item,
        })
    };
    let (mut named, mut others) = (Vec::new(), Vec::new());
    for item in items {
        let old = place(before, &item);
        match place(order, &item) {
            Some(rank) => named.push((rank, old, item)),
            None => others.push((old, item)),
        }
    }
    named.sort_by_key(|(rank, ..)| *rank);
    others.sort_by_key(|(old, _)| *old);
    let mut others = others.into_iter().peekable();
    let mut all = Vec::new();
    for (_, old, item) in named {
        while let Some((_, other)) =
            others.next_if(|(other, _)| matches!((other, old), (Some(other), Some(old)) if *other < old))
        {
            all.push(other);
        }
        all.push(item);
    }
    all.extend(others.map(|(_, item)| item));
    all
}

/// The strategic merge patch that makes `live` what `wanted` says: what `last` said and `wanted` no longer says is removed,
/// what neither said stays. Empty when nothing is to be done.
#[must_use]
pub fn three_way(kind: &Kind, last: &Value, wanted: &Value, live: &Value) -> Value {
    // `stringData` is never read back: what it says is compared where it goes.
    let folded = |object: &Value| {
        let mut object = object.clone();
        if kind.kind == "Secret" {
            crate::default::fold_string_data(&mut object);
        }
        object
    };
    let typ = Type::Named(kind.kind.to_owned());
    let mut patch = diff_object(Some(&typ), &folded(last), &folded(wanted), live);
    if let Some(map) = patch.as_object_mut() {
        // The type of an object is not a change.
        map.remove("apiVersion");
        map.remove("kind");
        map.remove("status");
    }
    patch
}

fn diff_object(typ: Option<&Type>, last: &Value, wanted: &Value, live: &Value) -> Value {
    let mut patch = Map::new();
    for (key, wanted) in wanted.as_object().into_iter().flatten() {
        let (last, live) = (&last[key], &live[key]);
        if wanted == live {
            continue;
        }
        if wanted.is_null() {
            // `resources:` with nothing is what the default says.
            if !live.is_null() && *live != json!({}) {
                patch.insert(key.clone(), Value::Null);
            }
            continue;
        }
        let (field, inner) = child(typ, key);
        if wanted.is_object() && live.is_object() {
            let changes = diff_object(inner, last, wanted, live);
            if changes != json!({}) {
                patch.insert(key.clone(), changes);
            }
        } else if let (Some(field), Some(wanted), Some(live_items)) = (field, wanted.as_array(), live.as_array()) {
            if let Some(merge_key) = &field.merge_key {
                let (items, order) = diff_list(item_type(inner), merge_key, last, wanted, live_items);
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
        } else if !same_amount(inner, wanted, live) {
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
fn same_amount(typ: Option<&Type>, wanted: &Value, live: &Value) -> bool {
    matches!(typ, Some(Type::Quantity)) && Quantity::of_json(wanted) == Quantity::of_json(live)
}

fn diff_list(
    typ: Option<&Type>,
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
        let mut inner = diff_object(typ, &of(last.as_array().map_or(&[], Vec::as_slice)), item, &there);
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
    use proptest::prelude::*;

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

    #[test]
    fn a_patch_cannot_blow_an_object_up() {
        let operations = |operation: Value, times: usize| Value::Array(vec![operation; times]);
        let doubled = operations(json!({"op": "copy", "from": "", "path": "/x"}), 200);
        assert!(matches!(json(&deployment(), &doubled), Err(PatchError::TooLarge(_))));
        let many = operations(json!({"op": "test", "path": "/spec/replicas", "value": 1}), 10_001);
        assert!(matches!(json(&deployment(), &many), Err(PatchError::TooLarge(_))));
        let unknown = json!({"metadata": {"labels": {"$patch": "explode"}}});
        assert!(matches!(
            strategic(by_word("deploy").unwrap(), &deployment(), &unknown),
            Err(PatchError::Unreadable(_))
        ));
    }

    #[test]
    fn what_kubectl_sends() {
        let kind = by_word("deploy").unwrap();
        let restart = json!({"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "2026-11-26T12:00:00Z"}}}}});
        let changed = strategic(kind, &deployment(), &restart).unwrap();
        assert_eq!(changed["spec"]["template"]["metadata"]["annotations"].as_object().unwrap().len(), 1);
        assert_eq!(changed["spec"]["template"]["spec"], deployment()["spec"]["template"]["spec"]);
        let label = merge(&deployment(), &json!({"metadata": {"labels": {"x": null, "new": "1"}}}));
        assert_eq!(label["metadata"]["labels"], json!({"new": "1"}));
        let env = json!({"spec": {"template": {"spec": {"containers": [{"name": "one", "env": [{"name": "B", "value": "2"}, {"$patch": "delete", "name": "A"}]}]}}}});
        let changed = strategic(kind, &deployment(), &env).unwrap();
        assert_eq!(changed["spec"]["template"]["spec"]["containers"][0]["env"], json!([{"name": "B", "value": "2"}]));
        let conditions = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let node = json!({"status": {"conditions": [{"type": "Disk", "status": "False"}, {"type": "Ready", "status": "False", "reason": "x"}]}});
        let changed = strategic(by_word("node").unwrap(), &node, &conditions).unwrap();
        assert_eq!(changed["status"]["conditions"][1], json!({"type": "Ready", "status": "True", "reason": "x"}));
        let taints =
            json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoExecute"}]}});
        assert_eq!(strategic(by_word("node").unwrap(), &node, &taints).unwrap()["spec"], taints["spec"]);
    }

    #[test]
    fn amounts_written_differently_are_no_change() {
        let kind = by_word("deploy").unwrap();
        let with = |cpu: Value| json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": cpu}}}]}}}});
        assert_eq!(three_way(kind, &with(json!(1)), &with(json!(1)), &with(json!("1"))), json!({}));
        assert_eq!(three_way(kind, &with(json!("1000m")), &with(json!("1000m")), &with(json!("1"))), json!({}));
        assert_ne!(three_way(kind, &with(json!("1")), &with(json!("2")), &with(json!("1"))), json!({}));
    }

    #[test]
    fn a_secret_applied_twice_is_unchanged() {
        let kind = by_word("secret").unwrap();
        let secret = |keys: Value| json!({"metadata": {"name": "s"}, "stringData": keys});
        let (two, one) = (secret(json!({"a": "x", "b": "y"})), secret(json!({"a": "x"})));
        let mut live = two.clone();
        crate::default::apply(kind, &mut live);
        assert_eq!(three_way(kind, &two, &two, &live), json!({}));
        assert_eq!(three_way(kind, &two, &one, &live), json!({"data": {"b": null}}));
    }

    fn container(name: usize) -> impl Strategy<Value = Value> {
        let env = prop::sample::subsequence(vec!["A", "B", "C"], 0..=3);
        let ports = prop::sample::subsequence(vec![80, 81, 82], 0..=3);
        (prop::sample::select(vec!["a:1", "b:2"]), env, ports, any::<bool>()).prop_map(
            move |(image, env, ports, args)| {
                let env: Vec<Value> = env.iter().map(|name| json!({"name": name, "value": image})).collect();
                let ports: Vec<Value> =
                    ports.iter().map(|port| json!({"containerPort": port, "protocol": "TCP"})).collect();
                let mut container = json!({"name": format!("c{name}"), "image": image, "env": env, "ports": ports});
                if args {
                    container["args"] = json!([image]);
                }
                container
            },
        )
    }

    fn any_deployment() -> impl Strategy<Value = Value> {
        let containers = (container(0), container(1), container(2)).prop_map(|(a, b, c)| vec![a, b, c]).prop_shuffle();
        let labels = prop::collection::btree_map("[a-c]", "[x-z]", 0..3);
        (containers, 1..=3_usize, labels, 0..5).prop_map(|(mut containers, keep, labels, replicas)| {
            containers.truncate(keep);
            json!({"metadata": {"name": "d", "labels": labels}, "spec": {"replicas": replicas, "template": {"spec": {"containers": containers}}}})
        })
    }

    /// Lists of containers compared by name: where an apply leaves live items, their order is upstream's business.
    fn by_names(value: &Value) -> Value {
        let mut value = value.clone();
        if let Some(items) = value["spec"]["template"]["spec"]["containers"].as_array_mut() {
            items.sort_by_key(|item| item["name"].to_string());
            for item in items {
                for list in ["env", "ports"] {
                    if let Some(items) = item[list].as_array_mut() {
                        items.sort_by_key(Value::to_string);
                    }
                }
            }
        }
        value
    }

    proptest! {
        #[test]
        fn a_patch_of_the_object_itself_changes_nothing(object in any_deployment()) {
            let kind = by_word("deploy").unwrap();
            prop_assert_eq!(&strategic(kind, &object, &object).unwrap(), &object);
            prop_assert_eq!(&strategic(kind, &object, &json!({})).unwrap(), &object);
            prop_assert_eq!(merge(&object, &object), object);
        }

        #[test]
        fn apply_gives_what_is_wanted_and_then_nothing(last in any_deployment(), wanted in any_deployment()) {
            let kind = by_word("deploy").unwrap();
            let patch = three_way(kind, &last, &wanted, &last);
            let live = strategic(kind, &last, &patch).unwrap();
            prop_assert_eq!(by_names(&live), by_names(&wanted));
            prop_assert_eq!(three_way(kind, &wanted, &wanted, &live), json!({}));
        }

        #[test]
        fn no_patch_panics(document in crate::any_tree(), patch in crate::any_tree()) {
            for kind in crate::kinds::KINDS {
                let _ = strategic(kind, &document, &patch);
                let _ = three_way(kind, &document, &patch, &document);
            }
            let _ = json(&document, &patch);
        }
    }
}
