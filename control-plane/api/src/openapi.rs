//! The OpenAPI documents that clients read before they apply: which operations take `dryRun` and `fieldValidation`, and schemas
//! of our own field table, so that `kubectl explain` shows what is supported and nothing else.
//!
//! Version 2 holds no definitions: clients then leave validation to the server. The patch operations of version 3 do not name
//! strategic merge, so that kubectl computes such patches from the types it knows itself.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::LazyLock;

use bytes::Bytes;
use coracle_manifests::kinds::{KINDS, Kind};
use coracle_manifests::schema::{self, Support, Type};
use serde_json::{Map, Value, json};

/// Query parameters of every write.
const PARAMETERS: [&str; 4] = ["dryRun", "fieldManager", "fieldValidation", "force"];

/// `/api/v1`, `/apis/apps/v1`.
fn prefix(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

/// Where one object of a kind is.
fn object_path(kind: &Kind) -> String {
    let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    format!("{}{scope}/{}/{{name}}", prefix(kind.group, kind.version), kind.plural)
}

/// `/openapi/v2` as JSON.
pub(crate) fn v2() -> Value {
    let mut paths = Map::new();
    for kind in KINDS {
        let parameters: Vec<Value> = PARAMETERS
            .iter()
            .map(|name| json!({"name": name, "in": "query", "type": "string", "uniqueItems": true}))
            .collect();
        let operation = json!({
            "parameters": parameters,
            "responses": {"200": {"description": "OK"}},
            "x-kubernetes-action": "patch",
            "x-kubernetes-group-version-kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        });
        paths.insert(object_path(kind), json!({"patch": operation}));
    }
    json!({"swagger": "2.0", "info": {"title": "coracle", "version": "v1.31.0"}, "paths": paths, "definitions": {}})
}

/// `/openapi/v2` in the protobuf form that kubectl asks for (gnostic's `openapi.v2.Document`).
pub(crate) fn v2_protobuf() -> Bytes {
    static DOCUMENT: LazyLock<Bytes> = LazyLock::new(|| {
        let message = |number: u8, content: &[u8]| field(number, content);
        let parameters: Vec<u8> = PARAMETERS
            .iter()
            .flat_map(|name| {
                // QueryParameterSubSchema{in = 2, name = 4, type = 6} in NonBodyParameter.query = 3 in
                // Parameter.non_body_parameter = 2 in ParametersItem.parameter = 1 in Operation.parameters = 8
                let query = [message(2, b"query"), message(4, name.as_bytes()), message(6, b"string")].concat();
                message(8, &message(1, &message(2, &message(3, &query))))
            })
            .collect();
        let mut paths = Vec::new();
        for kind in KINDS {
            let gvk = format!("group: {:?}\nkind: {}\nversion: {}\n", kind.group, kind.kind, kind.version);
            // NamedAny{name = 1, value = 2 Any{yaml = 2}} in Operation.vendor_extension = 13
            let named =
                [message(1, b"x-kubernetes-group-version-kind"), message(2, &message(2, gvk.as_bytes()))].concat();
            let operation = [parameters.clone(), message(13, &named)].concat();
            // NamedPathItem{name = 1, value = 2 PathItem{patch = 8}} in Paths.path = 2
            let item = [message(1, object_path(kind).as_bytes()), message(2, &message(8, &operation))].concat();
            paths.extend(message(2, &item));
        }
        // Document{swagger = 1, info = 2 Info{title = 1, version = 2}, paths = 8}
        let info = [message(1, b"coracle"), message(2, b"v1.31.0")].concat();
        [message(1, b"2.0"), message(2, &info), message(8, &paths)].concat().into()
    });
    DOCUMENT.clone()
}

/// A length-delimited protobuf field.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = content.len();
    while length >= 0x80 {
        bytes.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap_or(0));
    bytes.extend_from_slice(content);
    bytes
}

/// The documents of version 3 by group and version. They never change while a server runs.
static V3: LazyLock<HashMap<(&'static str, &'static str), Bytes>> = LazyLock::new(|| {
    crate::discovery::groups()
        .into_iter()
        .map(|(group, version)| ((group, version), Bytes::from(v3_document(group, version).to_string())))
        .collect()
});

/// `/openapi/v3`: where the documents are, each with a hash of its text, for which clients keep it.
pub(crate) fn v3_index() -> Value {
    let paths: BTreeMap<String, Value> = V3
        .iter()
        .map(|((group, version), text)| {
            let mut hasher = DefaultHasher::new();
            text.hash(&mut hasher);
            let path = prefix(group, version)[1..].to_owned();
            let url = format!("/openapi/v3/{path}?hash={:016X}", hasher.finish());
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// The document of one group version.
pub(crate) fn v3(group: &str, version: &str) -> Option<Bytes> {
    V3.get(&(group, version)).cloned()
}

fn v3_document(group: &str, version: &str) -> Value {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for kind in KINDS.iter().filter(|kind| kind.group == group && kind.version == version) {
        let parameters: Vec<Value> = PARAMETERS
            .iter()
            .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}}))
            .collect();
        let gvk = json!({"group": group, "version": version, "kind": kind.kind});
        let own = json!({"$ref": format!("#/components/schemas/{}", schema_name(kind.kind))});
        let operation = |action: &str, body: &str| {
            let mut operation = json!({
                "parameters": parameters,
                "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": own}}}},
                "x-kubernetes-action": action,
                "x-kubernetes-group-version-kind": gvk,
            });
            if !body.is_empty() {
                let schema = if action == "patch" { json!({"type": "object"}) } else { own.clone() };
                operation["requestBody"] = json!({"content": {body: {"schema": schema}}});
            }
            operation
        };
        let object = object_path(kind);
        let collection = object.trim_end_matches("/{name}").to_owned();
        paths.insert(collection, json!({"get": operation("list", ""), "post": operation("post", "application/json")}));
        paths.insert(
            object,
            json!({
                "get": operation("get", ""),
                "put": operation("put", "application/json"),
                "patch": operation("patch", "application/json-patch+json"),
                "delete": operation("delete", ""),
            }),
        );
        let mut schema = object_schema(kind.kind, &mut schemas);
        schema["x-kubernetes-group-version-kind"] = json!([gvk]);
        schemas.insert(schema_name(kind.kind), schema);
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "coracle", "version": "v1.31.0"},
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

fn schema_name(name: &str) -> String {
    format!("io.coracle.{name}")
}

fn object_schema(name: &str, schemas: &mut Map<String, Value>) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in schema::fields(name).unwrap_or_default().iter().filter(|field| field.support != Support::No) {
        let mut notes = Vec::new();
        if field.support == Support::Warn {
            notes.push("Accepted; has no effect yet.".to_owned());
        }
        let values: Vec<&str> = field.only.iter().map(String::as_str).filter(|value| !value.is_empty()).collect();
        if !values.is_empty() {
            notes.push(format!("Supported: {}.", values.join(", ")));
        }
        let mut property = type_schema(&field.typ, schemas);
        if !notes.is_empty() {
            // Beside a reference nothing else is read.
            if property.get("$ref").is_some() {
                property = json!({"allOf": [property]});
            }
            property["description"] = json!(notes.join(" "));
        }
        if field.required {
            required.push(field.name.as_str());
        }
        properties.insert(field.name.clone(), property);
    }
    let mut schema = json!({"type": "object", "properties": properties});
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn type_schema(typ: &Type, schemas: &mut Map<String, Value>) -> Value {
    match typ {
        Type::Named(name) => {
            let full = schema_name(name);
            if !schemas.contains_key(&full) {
                // Named first: a type may hold itself.
                schemas.insert(full.clone(), Value::Null);
                let schema = object_schema(name, schemas);
                schemas.insert(full.clone(), schema);
            }
            json!({"$ref": format!("#/components/schemas/{full}")})
        }
        Type::List(inner) => json!({"type": "array", "items": type_schema(inner, schemas)}),
        Type::Map(inner) => json!({"type": "object", "additionalProperties": type_schema(inner, schemas)}),
        Type::Bool => json!({"type": "boolean"}),
        Type::IntOrStr => {
            json!({"x-kubernetes-int-or-string": true, "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        Type::Any => json!({"type": "object"}),
        Type::Time => json!({"type": "string", "format": "date-time"}),
        Type::Base64 => json!({"type": "string", "format": "byte"}),
        Type::Str | Type::Quantity => json!({"type": "string"}),
        Type::Int => json!({"type": "integer", "format": "int32"}),
        Type::Long => json!({"type": "integer", "format": "int64"}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_to_a_schema() {
        fn walk(value: &Value, found: &mut Vec<String>) {
            match value {
                Value::Object(map) => {
                    found.extend(map.get("$ref").and_then(Value::as_str).map(ToOwned::to_owned));
                    map.values().for_each(|value| walk(value, found));
                }
                Value::Array(items) => items.iter().for_each(|value| walk(value, found)),
                _ => {}
            }
        }
        for (group, version) in crate::discovery::groups() {
            let document: Value = serde_json::from_slice(&v3(group, version).unwrap()).unwrap();
            let mut found = Vec::new();
            walk(&document, &mut found);
            assert!(!found.is_empty());
            for reference in found {
                let pointer = reference.trim_start_matches('#');
                assert!(document.pointer(pointer).is_some_and(Value::is_object), "{reference}");
            }
        }
        assert_eq!(v3_index()["paths"].as_object().unwrap().len(), crate::discovery::groups().len());
        assert!(v3("apps", "v9").is_none());
    }

    /// Splits a message into its length-delimited fields.
    fn fields(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
        let mut found = Vec::new();
        while let [tag, rest @ ..] = bytes {
            let (mut length, mut shift, mut rest) = (0, 0, rest);
            loop {
                let (byte, after) = rest.split_first().unwrap();
                length |= usize::from(byte & 0x7f) << shift;
                shift += 7;
                rest = after;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            assert_eq!(tag & 7, 2);
            found.push((tag >> 3, &rest[..length]));
            bytes = &rest[length..];
        }
        found
    }

    #[test]
    fn both_forms_of_version_2_say_the_same() {
        let bytes = v2_protobuf();
        let document = fields(&bytes);
        assert_eq!(document[0], (1, &b"2.0"[..]));
        let (number, paths) = document[2];
        assert_eq!(number, 8);
        let expected = v2();
        let mut names = Vec::new();
        for (_, item) in fields(paths) {
            let item = fields(item);
            names.push(String::from_utf8(item[0].1.to_vec()).unwrap());
            let (number, operation) = fields(item[1].1)[0];
            assert_eq!(number, 8, "patch");
            let parameters: Vec<&[u8]> = fields(operation)
                .iter()
                .filter(|(number, _)| *number == 8)
                .map(|(_, parameter)| fields(fields(fields(fields(parameter)[0].1)[0].1)[0].1)[1].1)
                .collect();
            assert_eq!(parameters, PARAMETERS.map(str::as_bytes));
        }
        names.sort();
        let mut keys: Vec<&String> = expected["paths"].as_object().unwrap().keys().collect();
        keys.sort();
        assert_eq!(names.iter().collect::<Vec<_>>(), keys);
    }
}
