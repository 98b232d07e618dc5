//! docs/reference/unsupported.md: what of Kubernetes' fields is refused or has no effect, from the one table of fields.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// The file this makes.
pub const FILE: &str = "docs/reference/unsupported.md";
/// What it is made from.
pub const TABLE: &str = "manifests/src/schema.txt";

struct Field<'a> {
    name: &'a str,
    /// A type of the table, or one of the table's own words.
    of: &'a str,
    marks: Vec<&'a str>,
}

/// The document for a table of fields.
pub fn document(table: &str) -> String {
    let types = types(table);
    // Kinds have a kind; what they are made of follows, as far as it is not refused or the system's.
    let is_kind =
        |fields: &[Field<'_>]| ["kind", "metadata"].iter().all(|name| fields.iter().any(|one| one.name == *name));
    let mut kinds: Vec<&str> = types.iter().filter(|(_, fields)| is_kind(fields)).map(|(name, _)| *name).collect();
    kinds.sort_unstable();
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut order = Vec::new();
    for kind in kinds {
        visit(kind, &types, &mut seen, &mut order);
    }
    let (mut refused, mut limited, mut idle) = (String::new(), String::new(), String::new());
    for name in order {
        let mut gone = Vec::new();
        for field in &types[name] {
            let valued = |prefix: &str| field.marks.iter().find_map(|mark| mark.strip_prefix(prefix));
            let words = |values: &str| {
                values
                    .split('|')
                    .map(|one| if one.is_empty() { "(empty)".to_owned() } else { format!("`{one}`") })
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            if field.marks.contains(&"no") {
                gone.push(format!("`{}`", field.name));
            } else if field.marks.contains(&"warn") {
                let quiet = valued("quiet=").map(|values| format!(" (but for {})", words(values))).unwrap_or_default();
                let _ = writeln!(idle, "| {name} | `{}`{quiet} |", field.name);
            } else if let Some(values) = valued("only=").filter(|_| !ALL_OF_UPSTREAM.contains(&(name, field.name))) {
                let _ = writeln!(limited, "| {name} | `{}` | {} |", field.name, words(values));
            }
        }
        if !gone.is_empty() {
            let _ = writeln!(refused, "| {name} | {} |", gone.join(", "));
        }
    }
    format!(
        "# What is not supported\n\nWritten by `cargo xtask tidy --bless` from `{TABLE}`. Nothing of it is taken in silence: what is refused is told with the \
         field's\nname, its place in the file and, where there is one, another way. A field that says nothing (`hostPID: false`) is taken.\n\n\
         ## Refused by name\n\n| type | fields |\n|---|---|\n{refused}\n\
         ## Taken with these values only\n\n| type | field | values |\n|---|---|---|\n{limited}\n\
         ## Taken, and said to have no effect\n\n| type | field |\n|---|---|\n{idle}"
    )
}

/// Fields whose listed values are all that upstream has.
const ALL_OF_UPSTREAM: &[(&str, &str)] = &[
    ("LabelSelectorRequirement", "operator"),
    ("PodSpec", "restartPolicy"),
    ("PodSpec", "dnsPolicy"),
    ("Container", "imagePullPolicy"),
    ("Container", "terminationMessagePolicy"),
    ("Toleration", "operator"),
    ("Toleration", "effect"),
    ("HTTPGetAction", "scheme"),
    ("HostPathVolumeSource", "type"),
    ("DeploymentStrategy", "type"),
    ("ServiceSpec", "type"),
    ("ServiceSpec", "internalTrafficPolicy"),
    ("ServiceSpec", "externalTrafficPolicy"),
    ("ServiceSpec", "sessionAffinity"),
    ("StatefulSetSpec", "podManagementPolicy"),
    ("StatefulSetUpdateStrategy", "type"),
    ("DaemonSetUpdateStrategy", "type"),
    ("NodeSelectorRequirement", "operator"),
    ("Taint", "effect"),
];

fn visit<'a>(
    name: &'a str,
    types: &BTreeMap<&'a str, Vec<Field<'a>>>,
    seen: &mut BTreeSet<&'a str>,
    order: &mut Vec<&'a str>,
) {
    let Some(fields) = types.get(name).filter(|_| seen.insert(name)) else { return };
    order.push(name);
    for field in fields.iter().filter(|field| !field.marks.contains(&"no") && !field.marks.contains(&"sys")) {
        visit(field.of, types, seen, order);
    }
}

/// The types of the table. A line at the margin opens one, an indented line is one of its fields.
fn types(table: &str) -> BTreeMap<&str, Vec<Field<'_>>> {
    let mut types: BTreeMap<&str, Vec<Field<'_>>> = BTreeMap::new();
    let mut current = "";
    for line in table.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        let mut words = line.split_whitespace();
        if !line.starts_with(' ') {
            current = words.next().unwrap_or_default();
            types.entry(current).or_default();
            continue;
        }
        let (Some(name), Some(of)) = (words.next(), words.next()) else { continue };
        let of = of.trim_start_matches("map(").trim_matches(['[', ']', '(', ')']);
        types.entry(current).or_default().push(Field { name, of, marks: words.collect() });
    }
    types
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_kind_can_reach_is_told_and_nothing_below_what_is_refused() {
        let table = "# words\nThing\n  apiVersion str\n  kind str\n  metadata Meta req\n  spec Spec\nMeta\n  name str\n\
                     Spec\n  parts [Part] key=name\n  gone Deep no\n  mood str only=|Good\n  later str warn quiet=never\n\
                     Part\n  name str\n  bad int no\nDeep\n  hidden str no\nLoose\n  never str no\n";
        let text = document(table);
        assert!(text.contains("| Spec | `gone` |\n"), "{text}");
        assert!(text.contains("| Part | `bad` |\n"), "{text}");
        assert!(text.contains("| Spec | `mood` | (empty), `Good` |\n"), "{text}");
        assert!(text.contains("| Spec | `later` (but for `never`) |\n"), "{text}");
        assert!(!text.contains("hidden") && !text.contains("Loose"), "{text}");
    }
}
