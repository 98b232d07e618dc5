//! Our table of fields against k8s-openapi: every field of every type a kind reaches is there, spelled right, of its type,
//! required where upstream requires it; and nothing is there that upstream does not know.

use coracle_manifests::kinds::KINDS;
use coracle_manifests::schema::{self, Type};
use k8s_openapi::api::{apps, autoscaling, core, discovery};
use schemars::SchemaGenerator;
use serde_json::Value;
use std::collections::BTreeSet;

/// Fields of later releases than v1.33, in the table so that they are refused as "not supported yet", not as unknown.
const LATER: &[(&str, &str)] = &[
    ("Container", "restartPolicyRules"),
    ("EnvVarSource", "fileKeyRef"),
    ("PodSpec", "hostnameOverride"),
    ("PodSpec", "workloadRef"),
];

fn definitions() -> serde_json::Map<String, Value> {
    let mut generator = SchemaGenerator::default();
    generator.subschema_for::<core::v1::Namespace>();
    generator.subschema_for::<core::v1::Node>();
    generator.subschema_for::<core::v1::Pod>();
    generator.subschema_for::<core::v1::ReplicationController>();
    generator.subschema_for::<core::v1::Service>();
    generator.subschema_for::<core::v1::ConfigMap>();
    generator.subschema_for::<core::v1::Secret>();
    generator.subschema_for::<core::v1::ServiceAccount>();
    generator.subschema_for::<core::v1::Event>();
    generator.subschema_for::<apps::v1::Deployment>();
    generator.subschema_for::<apps::v1::ReplicaSet>();
    generator.subschema_for::<apps::v1::StatefulSet>();
    generator.subschema_for::<apps::v1::DaemonSet>();
    generator.subschema_for::<apps::v1::ControllerRevision>();
    generator.subschema_for::<discovery::v1::EndpointSlice>();
    generator.subschema_for::<autoscaling::v1::Scale>();
    generator.take_definitions(true)
}

/// `io.k8s.api.core.v1.PodSpec` -> `PodSpec`.
fn short(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// The type upstream gives a field.
fn upstream(schema: &Value) -> Type {
    if let Some(reference) = schema["$ref"].as_str() {
        return match short(reference) {
            "Quantity" => Type::Quantity,
            "IntOrString" => Type::IntOrStr,
            "Time" | "MicroTime" => Type::Time,
            "FieldsV1" | "RawExtension" => Type::Any,
            name => Type::Named(name.to_owned()),
        };
    }
    match (schema["type"].as_str().unwrap_or_default(), schema["format"].as_str().unwrap_or_default()) {
        ("array", _) => Type::List(Box::new(upstream(&schema["items"]))),
        ("object", _) => Type::Map(Box::new(upstream(&schema["additionalProperties"]))),
        ("string", "date-time") => Type::Time,
        ("string", "byte") => Type::Base64,
        ("string", _) => Type::Str,
        ("boolean", _) => Type::Bool,
        ("integer", "int32") => Type::Int,
        ("integer", "int64") => Type::Long,
        other => panic!("a schema of {other:?}: {schema}"),
    }
}

#[test]
fn every_field_of_every_type_is_in_the_table() {
    let definitions = definitions();
    let mut problems = Vec::new();
    let (mut types, mut fields) = (BTreeSet::new(), 0);
    for (name, definition) in &definitions {
        let (name, Some(properties)) = (short(name), definition["properties"].as_object()) else { continue };
        types.insert(name.to_owned());
        let required: BTreeSet<&str> =
            definition["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        for (field, property) in properties {
            fields += 1;
            match schema::field(name, field) {
                None => problems.push(format!("{name}.{field} is missing")),
                Some(ours) => {
                    let theirs = upstream(property);
                    if ours.typ != theirs {
                        problems.push(format!("{name}.{field} is {:?}, upstream {theirs:?}", ours.typ));
                    }
                    if ours.required != required.contains(field.as_str()) {
                        problems.push(format!("{name}.{field}: required is {}", ours.required));
                    }
                }
            }
        }
        for ours in schema::fields(name).unwrap_or_default() {
            if !properties.contains_key(&ours.name) && !LATER.contains(&(name, &ours.name)) {
                problems.push(format!("{name}.{} is not known upstream", ours.name));
            }
        }
    }
    for name in schema::types().filter(|name| !types.contains(*name)) {
        problems.push(format!("the type {name} is not known upstream"));
    }
    for kind in KINDS.iter().filter(|kind| !types.contains(kind.kind)) {
        problems.push(format!("no schema for {}", kind.kind));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(fields > 800, "only {fields} fields were compared");
}
