//! What the API offers: legacy discovery (one document a group version) and aggregated discovery (all in one).

use coracle_manifests::kinds::{KINDS, Kind, Subresource};
use serde_json::{Value, json};

use crate::reviews::REVIEWS;

/// Verbs of a kind's collection and objects.
const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// Group and version of every group that has objects, in table order.
pub(crate) fn groups() -> Vec<(&'static str, &'static str)> {
    let mut groups = Vec::new();
    for kind in KINDS {
        if !groups.contains(&(kind.group, kind.version)) {
            groups.push((kind.group, kind.version));
        }
    }
    groups
}

/// The same, and the groups of reviews.
fn all_groups() -> Vec<(&'static str, &'static str)> {
    let mut groups = groups();
    for (group, ..) in REVIEWS {
        if !groups.iter().any(|(of, _)| *of == group) {
            groups.push((group, "v1"));
        }
    }
    groups
}

fn reviews(group: &str, version: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let own = version == "v1";
    let of = REVIEWS.iter().filter(move |(review_group, ..)| own && *review_group == group);
    let names: Vec<_> = of.map(|(_, plural, kind, _)| (*plural, *kind)).collect();
    names.into_iter()
}

fn kinds(group: &str, version: &str) -> impl Iterator<Item = &'static Kind> {
    KINDS.iter().filter(move |kind| kind.group == group && kind.version == version)
}

/// `/version`. The release we speak like; newer clients would send protobuf bodies.
pub(crate) fn version() -> Value {
    json!({
        "major": "1",
        "minor": "31",
        "gitVersion": format!("v1.31.0+coracle.{}", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "x86_64") { "amd64" } else { std::env::consts::ARCH }),
    })
}

/// `/api`
pub(crate) fn core() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

fn group_object(group: &str, version: &str) -> Value {
    let version = json!({"groupVersion": format!("{group}/{version}"), "version": version});
    json!({"name": group, "versions": [version], "preferredVersion": version})
}

/// `/apis`
pub(crate) fn group_list() -> Value {
    let groups: Vec<Value> = all_groups()
        .into_iter()
        .filter(|(group, _)| !group.is_empty())
        .map(|(group, version)| group_object(group, version))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `/apis/GROUP`
pub(crate) fn group(name: &str) -> Option<Value> {
    let (group, version) = all_groups().into_iter().find(|(group, _)| *group == name)?;
    let mut object = group_object(group, version);
    object["kind"] = json!("APIGroup");
    object["apiVersion"] = json!("v1");
    Some(object)
}

/// Name, group, version and kind of a subresource's objects, and its verbs.
fn subresource(
    kind: &Kind,
    sub: Subresource,
) -> (&'static str, &'static str, &'static str, String, &'static [&'static str]) {
    match sub {
        Subresource::Status => ("status", "", "", kind.kind.to_owned(), &["get", "patch", "update"]),
        Subresource::Scale => ("scale", "autoscaling", "v1", "Scale".to_owned(), &["get", "patch", "update"]),
        Subresource::Log => ("log", "", "", kind.kind.to_owned(), &["get"]),
        Subresource::Binding => ("binding", "", "", "Binding".to_owned(), &["create"]),
    }
}

/// `/api/v1`, `/apis/GROUP/VERSION`
pub(crate) fn resources(group: &str, version: &str) -> Option<Value> {
    let mut list = Vec::new();
    for kind in kinds(group, version) {
        let mut entry = json!({
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced,
            "kind": kind.kind,
            "verbs": VERBS,
        });
        if !kind.short_names.is_empty() {
            entry["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            entry["categories"] = json!(kind.categories);
        }
        list.push(entry);
        for sub in kind.subresources {
            let (name, group, version, of, verbs) = subresource(kind, *sub);
            let mut entry = json!({
                "name": format!("{}/{name}", kind.plural),
                "singularName": "",
                "namespaced": kind.namespaced,
                "kind": of,
                "verbs": verbs,
            });
            if !group.is_empty() {
                entry["group"] = json!(group);
                entry["version"] = json!(version);
            }
            list.push(entry);
        }
    }
    for (plural, kind) in reviews(group, version) {
        list.push(json!({
            "name": plural, "singularName": kind.to_lowercase(), "namespaced": false, "kind": kind, "verbs": ["create"],
        }));
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    (!list.is_empty()).then(
        || json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list}),
    )
}

/// Aggregated discovery of the core group (`/api`) or of all others (`/apis`), as `v2` or `v2beta1`.
pub(crate) fn aggregated(core: bool, version: &str) -> Value {
    let items: Vec<Value> = all_groups()
        .into_iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, of)| {
            let mut resources: Vec<Value> = kinds(group, of).map(aggregated_resource).collect();
            resources.extend(reviews(group, of).map(|(plural, kind)| {
                json!({
                    "resource": plural,
                    "responseKind": {"group": group, "version": of, "kind": kind},
                    "scope": "Cluster",
                    "singularResource": kind.to_lowercase(),
                    "verbs": ["create"],
                })
            }));
            json!({
                "metadata": if group.is_empty() { json!({}) } else { json!({"name": group}) },
                "versions": [{"version": of, "resources": resources, "freshness": "Current"}],
            })
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {}, "items": items})
}

fn aggregated_resource(kind: &'static Kind) -> Value {
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|sub| {
            let (name, group, version, of, verbs) = subresource(kind, *sub);
            json!({"subresource": name, "responseKind": {"group": group, "version": version, "kind": of}, "verbs": verbs})
        })
        .collect();
    let mut entry = json!({
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": VERBS,
    });
    if !kind.short_names.is_empty() {
        entry["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        entry["categories"] = json!(kind.categories);
    }
    if !subresources.is_empty() {
        entry["subresources"] = json!(subresources);
    }
    entry
}

/// Which aggregated version an `Accept` header asks for first, if any.
pub(crate) fn wants_aggregated(accept: &str) -> Option<&'static str> {
    accept.split(',').find_map(|part| {
        if !part.contains("as=APIGroupDiscoveryList") {
            return None;
        }
        if part.contains("v=v2beta1") { Some("v2beta1") } else { part.contains("v=v2").then_some("v2") }
    })
}
