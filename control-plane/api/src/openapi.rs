//! The OpenAPI documents that clients need before they apply: which operations take `dryRun` and `fieldValidation`. Schemas of
//! our own field table, so that `kubectl explain` shows what is supported.

use coracle_manifests::kinds::{KINDS, Kind};
use coracle_manifests::schema::{self, Support, Type};
use serde_json::{Map, Value, json};

/// The smallest OpenAPI v2 document (gnostic's protobuf form): swagger 2.0 and an info block. Clients then skip validation of
/// their own and leave it to the server.
pub(crate) const V2_PROTOBUF: &[u8] = b"\x0a\x032.0\x12\x0c\x0a\x07coracle\x12\x01v";

/// The same as JSON.
pub(crate) fn v2() -> Value {
    json!({"swagger": "2.0", "info": {"title": "coracle", "version": "v1.31.0"}, "paths": {}, "definitions": {}})
}

/// `/openapi/v3`: where the documents are.
pub(crate) fn v3_index() -> Value {
    let mut paths = Map::new();
    for (group, version) in crate::discovery::groups() {
        let path = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
        let hash = env!("CARGO_PKG_VERSION").replace('.', "");
        paths.insert(path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}));
    }
    json!({"paths": paths})
}

/// The document of one group version.
pub(crate) fn v3(group: &str, version: &str) -> Option<Value> {
    let kinds: Vec<&Kind> = KINDS.iter().filter(|kind| kind.group == group && kind.version == version).collect();
    if kinds.is_empty() {
        return None;
    }
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for kind in kinds {
        let prefix = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
        let parameters: Vec<Value> = ["dryRun", "fieldManager", "fieldValidation"]
            .iter()
            .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}}))
            .collect();
        let gvk = json!({"group": group, "version": version, "kind": kind.kind});
        let operation = |action: &str, body: &str| {
            json!({
                "parameters": parameters,
                "requestBody": {"content": {body: {"schema": {"type": "object"}}}},
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-action": action,
                "x-kubernetes-group-version-kind": gvk,
            })
        };
        paths
            .insert(format!("{prefix}{scope}/{}", kind.plural), json!({"post": operation("post", "application/json")}));
        paths.insert(
            format!("{prefix}{scope}/{}/{{name}}", kind.plural),
            json!({
                "put": operation("put", "application/json"),
                "patch": operation("patch", "application/json-patch+json"),
                "delete": operation("delete", "application/json"),
            }),
        );
        let mut schema = object_schema(kind.kind, &mut schemas);
        schema["x-kubernetes-group-version-kind"] = json!([gvk]);
        schemas.insert(schema_name(kind.kind), schema);
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "coracle", "version": "v1.31.0"},
        "paths": paths,
        "components": {"schemas": schemas},
    }))
}

fn schema_name(name: &str) -> String {
    format!("io.coracle.{name}")
}

fn object_schema(name: &str, schemas: &mut Map<String, Value>) -> Value {
    let mut properties = Map::new();
    for field in schema::fields(name).unwrap_or_default().iter().filter(|field| field.support != Support::No) {
        let mut property = type_schema(&field.typ, schemas);
        if field.support == Support::Warn {
            property = json!({"description": "Accepted; has no effect yet.", "allOf": [property]});
        }
        if !field.only.is_empty() {
            property["description"] = json!(format!("Supported: {}.", field.only.join(", ")));
        }
        properties.insert(field.name.clone(), property);
    }
    json!({"type": "object", "properties": properties})
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
        Type::Str | Type::Time | Type::Base64 | Type::Quantity => json!({"type": "string"}),
        _ => json!({"type": "integer"}),
    }
}
