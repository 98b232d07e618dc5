//! What a user may write: kinds, fields, strict decoding, defaults, validation, patches, selectors, quantities.
#![forbid(unsafe_code)]

pub mod check;
pub mod decode;
pub mod default;
pub mod kinds;
pub mod patch;
mod problem;
pub mod quantity;
pub mod schema;
pub mod selector;
pub mod service;
pub mod time;
pub mod validate;
pub mod view;

pub use problem::{Position, Problem, Reason};

/// Trees that look a little like objects, with every type in every place: nothing may panic on them.
#[cfg(test)]
fn any_tree() -> impl proptest::strategy::Strategy<Value = serde_json::Value> {
    use proptest::prelude::*;
    use serde_json::Value;
    let words = || {
        prop::sample::select(vec![
            "metadata",
            "name",
            "labels",
            "annotations",
            "spec",
            "template",
            "containers",
            "initContainers",
            "selector",
            "matchLabels",
            "ports",
            "port",
            "containerPort",
            "env",
            "valueFrom",
            "fieldRef",
            "volumes",
            "configMap",
            "secret",
            "volumeMounts",
            "resources",
            "limits",
            "requests",
            "cpu",
            "strategy",
            "rollingUpdate",
            "maxSurge",
            "livenessProbe",
            "httpGet",
            "lifecycle",
            "preStop",
            "data",
            "stringData",
            "binaryData",
            "type",
            "clusterIP",
            "securityContext",
            "tolerations",
            "ownerReferences",
            "finalizers",
            "$patch",
            "$retainKeys",
            "$setElementOrder/containers",
            "$deleteFromPrimitiveList/finalizers",
            "op",
            "path",
            "status",
            "endpoints",
            "addresses",
            "replace",
            "delete",
            "RollingUpdate",
            "Always",
            "None",
        ])
    };
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2_i64..70_000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        words().prop_map(Value::from),
        "[ -~]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(7, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(words().prop_map(ToOwned::to_owned), inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}
