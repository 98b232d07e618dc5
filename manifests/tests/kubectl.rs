//! What kubectl's own code makes of patches: `data/strategic.json` was written with `kubectl patch --local --type strategic`
//! (1.32) on random documents and patches; our merge must give the same objects.

use coracle_manifests::{kinds, patch};
use serde_json::Value;

/// kubectl writes empty lists, objects and nulls where nothing is left; they say nothing.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), plain(value)))
            .filter(|(_, value)| {
                !value.is_null() && *value != Value::Array(Vec::new()) && *value != serde_json::json!({})
            })
            .collect(),
        Value::Array(items) => items.iter().map(plain).collect(),
        other => other.clone(),
    }
}

#[test]
fn strategic_patches_give_what_kubectl_gives() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("data/strategic.json")).unwrap();
    assert!(cases.len() >= 20);
    let kind = kinds::by_word("deploy").unwrap();
    for case in cases {
        let ours = patch::strategic(kind, &case["document"], &case["patch"]).unwrap();
        assert_eq!(plain(&ours), plain(&case["result"]), "the patch {}", case["patch"]);
    }
}
