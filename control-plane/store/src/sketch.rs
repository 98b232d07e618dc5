//! The few fields of an object that the indexes are made of, read from its text without building the rest: a whole tree costs
//! ten times as much, and a server that starts would build one of every object only to drop it.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::view::FENCED;

/// A field that is kept: whole, or only some of what is in it. An array is looked into element by element.
enum Keep {
    Whole,
    Fields(&'static [(&'static str, Keep)]),
}

/// What `indexes`, `marks` and `Usage::of_pod` look at.
const OBJECT: Keep = Keep::Fields(&[
    (
        "metadata",
        Keep::Fields(&[
            ("annotations", Keep::Fields(&[(FENCED, Keep::Whole)])),
            ("deletionTimestamp", Keep::Whole),
            ("ownerReferences", Keep::Fields(&[("uid", Keep::Whole), ("controller", Keep::Whole)])),
        ]),
    ),
    (
        "spec",
        Keep::Fields(&[
            ("nodeName", Keep::Whole),
            ("overhead", Keep::Whole),
            ("containers", CONTAINER),
            ("initContainers", CONTAINER),
        ]),
    ),
    ("status", Keep::Fields(&[("phase", Keep::Whole)])),
]);

const CONTAINER: Keep = Keep::Fields(&[("resources", Keep::Whole), ("restartPolicy", Keep::Whole)]);

/// The tree of an object with nothing in it but what the indexes are made of; null for what is not JSON.
pub(crate) fn of(json: &[u8]) -> Value {
    let mut input = serde_json::Deserializer::from_slice(json);
    Sketch(&OBJECT).deserialize(&mut input).unwrap_or(Value::Null)
}

struct Sketch(&'static Keep);

impl<'de> DeserializeSeed<'de> for Sketch {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Value, D::Error> {
        match self.0 {
            Keep::Whole => serde::Deserialize::deserialize(input),
            Keep::Fields(fields) => input.deserialize_any(Inside(fields)),
        }
    }
}

struct Inside(&'static [(&'static str, Keep)]);

impl<'de> Visitor<'de> for Inside {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut input: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(name) = input.next_key_seed(Name(self.0))? {
            match name {
                Some((name, keep)) => drop(kept.insert((*name).to_owned(), input.next_value_seed(Sketch(keep))?)),
                None => drop(input.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Object(kept))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut input: A) -> Result<Value, A::Error> {
        let mut kept = Vec::new();
        while let Some(element) = input.next_element_seed(InElement(self.0))? {
            kept.push(element);
        }
        Ok(Value::Array(kept))
    }

    // Where an object or a list is expected, nothing else means anything.
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_str<E>(self, _: &str) -> Result<Value, E> {
        Ok(Value::Null)
    }
}

struct InElement(&'static [(&'static str, Keep)]);

impl<'de> DeserializeSeed<'de> for InElement {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Value, D::Error> {
        input.deserialize_any(Inside(self.0))
    }
}

/// A field's name, compared where it stands; `None` for one that is not kept.
struct Name(&'static [(&'static str, Keep)]);

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Option<&'static (&'static str, Keep)>;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Self::Value, D::Error> {
        input.deserialize_str(self)
    }
}

impl Visitor<'_> for Name {
    type Value = Option<&'static (&'static str, Keep)>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a field's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|(kept, _)| *kept == name))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::view::indexes;
    use crate::{Key, Usage};

    /// Anything, made of the words that matter.
    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            prop::sample::select(vec!["true", "Failed", "Running", "Always", "100m", "1Gi", "n1", "u1", ""])
                .prop_map(|word| json!(word)),
            Just(json!(true)),
            Just(Value::Null),
            (-3i64..3).prop_map(|number| json!(number)),
            Just(json!(0.25)),
        ];
        let words = vec![
            "metadata",
            "spec",
            "status",
            "annotations",
            FENCED,
            "deletionTimestamp",
            "ownerReferences",
            "uid",
            "controller",
            "nodeName",
            "overhead",
            "containers",
            "initContainers",
            "resources",
            "restartPolicy",
            "requests",
            "limits",
            "cpu",
            "memory",
            "phase",
            "other",
        ];
        leaf.prop_recursive(6, 64, 6, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                prop::collection::btree_map(prop::sample::select(words.clone()), inner, 0..6).prop_map(|map| {
                    Value::Object(map.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_indexes_are_those_of_the_whole_tree(
            metadata in anything(), spec in anything(), status in anything(), containers in anything(), container in anything(),
        ) {
            let mut object = json!({"metadata": metadata, "spec": spec, "status": status});
            if object["spec"].is_object() {
                object["spec"]["containers"] = json!([containers, {"resources": {"limits": {"memory": "1Mi"}}}]);
                object["spec"]["initContainers"] = json!([{"restartPolicy": "Always", "resources": container}]);
            }
            let small = sketch(&object);
            for resource in ["pods", "nodes"] {
                let key = Key::new(resource, "default", "x");
                prop_assert_eq!(indexes(&key, &small), indexes(&key, &object));
            }
            prop_assert_eq!(Usage::of_pod(&small), Usage::of_pod(&object));
        }
    }

    fn sketch(value: &Value) -> Value {
        of(value.to_string().as_bytes())
    }

    #[test]
    fn only_what_the_indexes_look_at_is_kept() {
        let pod = json!({
            "metadata": {
                "name": "p", "labels": {"uid": "x"}, "annotations": {"other": "x", FENCED: "true"},
                "ownerReferences": [{"uid": "u1", "name": "n", "controller": true}, {"uid": "u2"}],
            },
            "spec": {
                "nodeName": "n1", "overhead": {"cpu": "1m"}, "volumes": [{"name": "v"}],
                "containers": [{"name": "c", "env": [{"name": "x"}], "resources": {"limits": {"cpu": 2}}}],
                "initContainers": [{"restartPolicy": "Always", "image": "x"}],
            },
            "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready"}]},
        });
        assert_eq!(
            sketch(&pod),
            json!({
                "metadata": {
                    "annotations": {FENCED: "true"},
                    "ownerReferences": [{"uid": "u1", "controller": true}, {"uid": "u2"}],
                },
                "spec": {
                    "nodeName": "n1", "overhead": {"cpu": "1m"},
                    "containers": [{"resources": {"limits": {"cpu": 2}}}],
                    "initContainers": [{"restartPolicy": "Always"}],
                },
                "status": {"phase": "Running"},
            })
        );
    }

    #[test]
    fn odd_shapes_are_no_reason_to_stop() {
        let odd = json!({"metadata": 7, "spec": "x", "status": [1, {"phase": "Failed"}, null, true, -1, 0.5, "s"]});
        let found = sketch(&odd);
        assert_eq!(found["metadata"], Value::Null);
        assert_eq!(found["status"]["phase"], Value::Null);
        assert_eq!(sketch(&json!("x")), Value::Null);
        assert_eq!(of(b"{"), Value::Null);
        // Names may be written with escapes.
        assert_eq!(of(br#"{"sp\u0065c": {"nodeN\u0061me": "n"}}"#), json!({"spec": {"nodeName": "n"}}));
    }
}
