//! Every example decodes strictly and validates.

use std::path::{Path, PathBuf};

use coracle_manifests::{check, decode, default, kinds, validate};

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn every_example_is_accepted() {
    let mut seen = 0;
    for entry in std::fs::read_dir(examples()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for document in decode::yaml(&text).unwrap_or_else(|problems| panic!("{}: {problems:?}", path.display())) {
            let mut value = document.value;
            let kind = kinds::by_name(value["apiVersion"].as_str().unwrap(), value["kind"].as_str().unwrap())
                .unwrap_or_else(|| panic!("{}: {}", path.display(), value["kind"]));
            let problems = check::strict(kind, &value);
            assert!(problems.is_empty(), "{}: {problems:?}", path.display());
            default::apply(kind, &mut value);
            value["metadata"]["namespace"] = "default".into();
            let problems = validate::create(kind, &value);
            assert!(problems.is_empty(), "{}: {problems:?}", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 10, "{seen} objects in the examples");
}
