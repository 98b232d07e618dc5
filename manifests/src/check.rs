//! Strictness: every field must be known, of its type and supported; all problems in one answer.

use base64::Engine as _;
use coracle_base::nearest;
use serde_json::{Map, Value};

use crate::kinds::Kind;
use crate::problem::{Problem, Reason, bounded};
use crate::quantity::Quantity;
use crate::schema::{self, Field, Support, Type};

/// What a check found.
#[derive(Debug, Default)]
pub struct Found {
    /// Refused.
    pub problems: Vec<Problem>,
    /// Accepted without effect.
    pub warnings: Vec<String>,
    /// The objects around the one that is looked at: their types and paths.
    above: Vec<(String, String)>,
}

/// Problems of an object of `kind`.
#[must_use]
pub fn strict(kind: &Kind, value: &Value) -> Vec<Problem> {
    all(kind.kind, value).problems
}

/// Problems and warnings of an object of the named type.
#[must_use]
pub fn all(type_name: &str, value: &Value) -> Found {
    let mut found = Found::default();
    named(type_name, value, "", &mut found);
    found.problems = bounded(found.problems);
    found
}

/// Problems of the status that a `/status` request brings: unknown fields and wrong types.
#[must_use]
pub fn status(kind: &Kind, object: &Value) -> Vec<Problem> {
    let mut found = Found::default();
    if let Some(field) = schema::field(kind.kind, "status")
        && !object["status"].is_null()
    {
        typed(&field.typ, &object["status"], "status", &mut found);
    }
    bounded(found.problems)
}

/// Fields that upstream requires and that are not there, after defaults.
#[must_use]
pub fn required(kind: &Kind, value: &Value) -> Vec<Problem> {
    let mut problems = Vec::new();
    required_in(&Type::Named(kind.kind.to_owned()), value, "", &mut problems);
    problems
}

fn required_in(typ: &Type, value: &Value, path: &str, problems: &mut Vec<Problem>) {
    match (typ, value) {
        (Type::Named(name), Value::Object(map)) => {
            for field in schema::fields(name).unwrap_or_default() {
                if matches!(field.support, Support::System | Support::No) {
                    continue;
                }
                match map.get(&field.name).filter(|value| !value.is_null()) {
                    Some(value) => required_in(&field.typ, value, &join(path, &field.name), problems),
                    None if field.required => {
                        let path = join(path, &field.name);
                        problems.push(Problem::new(path, Reason::Required, "this field is required"));
                    }
                    None => {}
                }
            }
        }
        (Type::List(inner), Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                required_in(inner, item, &format!("{path}[{index}]"), problems);
            }
        }
        _ => {}
    }
}

/// Removes every field the table does not know, for clients that asked to ignore them; returns what was removed.
pub fn drop_unknown(type_name: &str, value: &mut Value) -> Vec<String> {
    let mut dropped = Vec::new();
    drop_in(&Type::Named(type_name.to_owned()), value, "", &mut dropped);
    dropped
}

fn drop_in(typ: &Type, value: &mut Value, path: &str, dropped: &mut Vec<String>) {
    match (typ, value) {
        (Type::Named(name), Value::Object(map)) => {
            map.retain(|key, _| {
                let known = schema::field(name, key).is_some();
                if !known {
                    dropped.push(join(path, key));
                }
                known
            });
            for (key, value) in map.iter_mut() {
                if let Some(field) = schema::field(name, key) {
                    drop_in(&field.typ, value, &join(path, key), dropped);
                }
            }
        }
        (Type::List(inner), Value::Array(items)) => {
            for (index, item) in items.iter_mut().enumerate() {
                drop_in(inner, item, &format!("{path}[{index}]"), dropped);
            }
        }
        (Type::Map(inner), Value::Object(map)) => {
            for (key, value) in map.iter_mut() {
                drop_in(inner, value, &join(path, key), dropped);
            }
        }
        _ => {}
    }
}

pub(crate) fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

fn named(type_name: &str, value: &Value, path: &str, found: &mut Found) {
    let Some(map) = value.as_object() else {
        found.problems.push(wrong_type(path, "an object", value));
        return;
    };
    found.above.push((type_name.to_owned(), path.to_owned()));
    fields(type_name, map, path, found);
    found.above.pop();
}

fn fields(type_name: &str, map: &Map<String, Value>, path: &str, found: &mut Found) {
    for (key, value) in map {
        let path = join(path, key);
        let Some(field) = schema::field(type_name, key) else {
            let mut problem = Problem::new(path, Reason::Unknown, format!("unknown field `{}`", shown(key)));
            if let Some(near) = meant(type_name, key, found) {
                problem = problem.hint(format!("did you mean `{near}`?"));
            }
            found.problems.push(problem);
            continue;
        };
        if !value.is_null() {
            one(field, value, &path, found);
        }
    }
}

fn one(field: &Field, value: &Value, path: &str, found: &mut Found) {
    match field.support {
        Support::System => return,
        Support::No => {
            if !is_empty(value) {
                found.problems.push(Problem::new(
                    path,
                    Reason::Unsupported,
                    format!("`{}` is not supported yet", field.name),
                ));
            }
            return;
        }
        Support::Warn => {
            let quiet = is_empty(value) && field.quiet.is_empty()
                || scalar(value).is_some_and(|text| field.quiet.contains(&text));
            if !quiet {
                found.warnings.push(format!("{path} has no effect yet"));
            }
        }
        Support::Yes => {}
    }
    typed(&field.typ, value, path, found);
    if let (false, Some(text)) = (field.only.is_empty(), scalar(value))
        && !field.only.contains(&text)
        && (value.is_string() == matches!(field.typ, Type::Str))
    {
        let list = field
            .only
            .iter()
            .filter(|only| !only.is_empty())
            .map(|only| format!("`{only}`"))
            .collect::<Vec<_>>()
            .join(", ");
        let shown: String = text.chars().take(80).collect();
        let mut problem =
            Problem::new(path, Reason::NotSupported, format!("`{shown}` is not supported; supported: {list}"));
        if let Some(near) = nearest(&text, field.only.iter().map(String::as_str).filter(|only| !only.is_empty())) {
            problem = problem.hint(format!("did you mean `{near}`?"));
        }
        found.problems.push(problem);
    }
}

/// A scalar as text.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        _ => None,
    }
}

/// What an unknown field may have been meant to be: a field of this object with a like name, or one of that name in an object
/// below or above it, where wrong indentation would have put it.
fn meant(type_name: &str, key: &str, found: &Found) -> Option<String> {
    let names = schema::fields(type_name).unwrap_or_default().iter().map(|field| field.name.as_str());
    if let Some(near) = nearest(key, names) {
        return Some(near.to_owned());
    }
    let below = below(type_name, key, 3);
    below.or_else(|| {
        let (_, path) = found.above.iter().rev().find(|(above, _)| schema::field(above, key).is_some())?;
        Some(join(path, key))
    })
}

fn below(type_name: &str, key: &str, levels: usize) -> Option<String> {
    let inner = |field: &'static Field| match &field.typ {
        Type::Named(name) => Some((name, format!("{}.", field.name))),
        Type::List(item) => match &**item {
            Type::Named(name) => Some((name, format!("{}[].", field.name))),
            _ => None,
        },
        _ => None,
    };
    let children = || {
        let fields = schema::fields(type_name).unwrap_or_default();
        fields.iter().filter(|field| field.support == Support::Yes).filter_map(inner)
    };
    if levels == 0 {
        return None;
    }
    let here = children().find(|(name, _)| schema::field(name, key).is_some_and(|field| field.support == Support::Yes));
    here.map(|(_, path)| format!("{path}{key}"))
        .or_else(|| children().find_map(|(name, path)| Some(format!("{path}{}", below(name, key, levels - 1)?))))
}

/// A key a stranger chose, cut to what a line holds.
fn shown(key: &str) -> String {
    key.chars().take(80).collect()
}

/// Whether an unsupported field says nothing: absent, false, zero, empty, or an object of such.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.values().all(is_empty),
    }
}

fn typed(typ: &Type, value: &Value, path: &str, found: &mut Found) {
    let bad = |expected: &str| wrong_type(path, expected, value);
    match typ {
        Type::Any => {}
        Type::Str => {
            if !value.is_string() {
                found.problems.push(bad("text").hint_quote(value));
            }
        }
        Type::Time => {
            if !value.is_null() && value.as_str().is_none_or(|text| crate::time::parse(text).is_none()) {
                found.problems.push(bad("a time such as `2026-11-26T12:00:00Z`"));
            }
        }
        Type::Int | Type::Long => {
            let fits = |value: i64| matches!(typ, Type::Long) || i32::try_from(value).is_ok();
            match value.as_i64() {
                None => found.problems.push(bad("a whole number")),
                Some(number) if !fits(number) => found.problems.push(bad("a whole number of 32 bits")),
                Some(_) => {}
            }
        }
        Type::Bool => {
            if !value.is_boolean() {
                found.problems.push(bad("true or false"));
            }
        }
        Type::IntOrStr => {
            if value.as_i64().is_none() && !value.is_string() {
                found.problems.push(bad("a whole number or text"));
            }
        }
        Type::Quantity => {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Number(number) => number.to_string(),
                _ => {
                    found.problems.push(bad("a quantity such as `500m` or `128Mi`"));
                    return;
                }
            };
            if let Err(error) = Quantity::parse(&text) {
                found.problems.push(Problem::new(path, Reason::Invalid, error.to_string()));
            }
        }
        Type::Base64 => {
            let decoded = value.as_str().map(|text| {
                let clean: String = text.chars().filter(|char| !char.is_ascii_whitespace()).collect();
                base64::engine::general_purpose::STANDARD.decode(clean).is_ok()
            });
            if decoded != Some(true) {
                found.problems.push(
                    Problem::new(path, Reason::Invalid, "the value is not base64")
                        .hint("plain text goes into `stringData`"),
                );
            }
        }
        Type::Map(inner) => match value.as_object() {
            None => found.problems.push(bad("a map")),
            Some(map) => {
                // `key:` with nothing is the empty text upstream.
                for (key, value) in map.iter().filter(|(_, value)| !value.is_null()) {
                    typed(inner, value, &join(path, key), found);
                }
            }
        },
        Type::List(inner) => match value.as_array() {
            None => found.problems.push(bad("a list")),
            Some(items) => {
                for (index, item) in items.iter().enumerate() {
                    typed(inner, item, &format!("{path}[{index}]"), found);
                }
            }
        },
        Type::Named(name) => named(name, value, path, found),
    }
}

fn wrong_type(path: &str, expected: &str, value: &Value) -> Problem {
    let is = match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(value) => format!("`{value}`"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the text `{}`", text.chars().take(40).collect::<String>()),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    };
    Problem::new(path, Reason::Type, format!("expected {expected}, this is {is}"))
}

trait HintQuote {
    fn hint_quote(self, value: &Value) -> Self;
}

impl HintQuote for Problem {
    /// Numbers and booleans where text belongs are YAML's most common trap.
    fn hint_quote(self, value: &Value) -> Self {
        if value.is_number() || value.is_boolean() {
            self.hint(format!("write it in quotes: \"{value}\""))
        } else {
            self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn all_problems_come_in_one_answer() {
        let value = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x", "lables": {}},
            "spec": {"replcias": 3, "template": {"spec": {
                "hostPID": true,
                "hostIPC": false,
                "containers": [{"name": 5, "image": "a", "env": [{"name": "A", "value": 1}], "tty": true,
                                "resources": {"limits": {"memory": "12Qi"}}}],
                "restartPolicy": "Sometimes",
            }}},
        });
        let found: Vec<String> =
            strict(crate::kinds::by_word("deploy").unwrap(), &value).iter().map(ToString::to_string).collect();
        let text = found.join("\n");
        assert_eq!(found.len(), 8, "{text}");
        for expected in [
            "metadata.lables: unknown field `lables` (did you mean `labels`?)",
            "spec.replcias: unknown field `replcias` (did you mean `replicas`?)",
            "spec.template.spec.hostPID: `hostPID` is not supported yet",
            "spec.template.spec.containers[0].name: expected text, this is the number 5 (write it in quotes: \"5\")",
            "spec.template.spec.containers[0].env[0].value: expected text",
            "spec.template.spec.containers[0].tty: `tty` is not supported yet",
            "spec.template.spec.containers[0].resources.limits.memory: ",
            "spec.template.spec.restartPolicy: `Sometimes` is not supported",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
    }

    fn pod(spec: &str) -> Found {
        let spec: Value = serde_json::from_str(spec).unwrap();
        all("Pod", &json!({"spec": spec}))
    }

    #[test]
    fn an_unknown_field_may_belong_elsewhere() {
        let hint = |spec: Value| {
            let found = all("Deployment", &json!({"spec": spec}));
            found.problems[0].hint.clone().unwrap_or_default()
        };
        let pod = |spec: Value| json!({"template": {"spec": spec}});
        assert_eq!(hint(pod(json!({"env": []}))), "did you mean `containers[].env`?");
        assert_eq!(hint(json!({"containers": []})), "did you mean `template.spec.containers`?");
        assert_eq!(hint(pod(json!({"containers": [{"volumes": []}]}))), "did you mean `spec.template.spec.volumes`?");
        assert_eq!(hint(pod(json!({"containers": [{"livenesProbe": {}}]}))), "did you mean `livenessProbe`?");
        assert_eq!(hint(json!({"serviceName": "x"})), "");
    }

    /// What is said about a field of a pod: `-` nothing, `!` refused, `~` a warning.
    #[test]
    fn what_is_not_done_yet_is_refused_unless_it_says_nothing() {
        for (spec, expected) in [
            (r#"{"affinity": {}}"#, "-"),
            (
                r#"{"affinity": {"nodeAffinity": null, "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}}}"#,
                "-",
            ),
            (
                r#"{"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "x"}]}}}"#,
                "!",
            ),
            (
                r#"{"affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": {"topologyKey": "x"}}]}}}"#,
                "~",
            ),
            (
                r#"{"topologySpreadConstraints": [{"whenUnsatisfiable": "ScheduleAnyway", "maxSkew": 1, "topologyKey": "x"}]}"#,
                "~",
            ),
            (
                r#"{"topologySpreadConstraints": [{"whenUnsatisfiable": "DoNotSchedule", "maxSkew": 1, "topologyKey": "x"}]}"#,
                "~!",
            ),
            (r#"{"topologySpreadConstraints": []}"#, "-"),
            (r#"{"automountServiceAccountToken": true}"#, "~"),
            (r#"{"automountServiceAccountToken": false}"#, "-"),
            (r#"{"hostUsers": true}"#, "-"),
            (r#"{"hostUsers": false}"#, "!"),
            (r#"{"hostPID": false}"#, "-"),
            (r#"{"hostPID": true}"#, "!"),
            (r#"{"os": {"name": "linux"}}"#, "-"),
            (r#"{"os": {"name": "windows"}}"#, "!"),
            (r#"{"preemptionPolicy": "PreemptLowerPriority"}"#, "-"),
            (r#"{"preemptionPolicy": "Never"}"#, "~"),
            (r#"{"schedulerName": "mine"}"#, "!"),
            (r#"{"imagePullSecrets": [{"name": "x"}]}"#, "!"),
            (r#"{"securityContext": {"seccompProfile": {"type": "RuntimeDefault"}}}"#, "-"),
            (r#"{"securityContext": {"seccompProfile": {"type": "Unconfined"}}}"#, "-"),
            (r#"{"securityContext": {"seLinuxOptions": {"level": "s0"}}}"#, "!"),
            (r#"{"securityContext": {"supplementalGroupsPolicy": "Merge", "fsGroupChangePolicy": "Always"}}"#, "-"),
            (r#"{"securityContext": {"sysctls": [{"name": "a", "value": "b"}]}}"#, "!"),
            (r#"{"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "x"}}]}"#, "!"),
            (r#"{"volumes": [{"name": "v", "emptyDir": null}]}"#, "-"),
            (r#"{"volumes": [{"name": "v", "emptyDir": {"medium": "HugePages"}}]}"#, "!"),
            (r#"{"containers": [{"tty": true}]}"#, "!"),
            (r#"{"containers": [{"tty": "yes"}]}"#, "!"),
            (r#"{"containers": [{"securityContext": {"procMount": "Unmasked"}}]}"#, "!"),
            (r#"{"containers": [{"livenessProbe": {"grpc": {"port": 1}}}]}"#, "-"),
            (r#"{"containers": [{"livenessProbe": {"httpGet": {"port": 1, "scheme": "HTTPS"}}}]}"#, "-"),
            (r#"{"containers": [{"livenessProbe": {"httpGet": {"port": 1, "scheme": "FTP"}}}]}"#, "!"),
            (
                r#"{"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}"#,
                "!",
            ),
            (r#"{"volumes": [{"name": "v", "downwardAPI": {"items": []}}]}"#, "-"),
            (r#"{"terminationGracePeriodSeconds": 5000000000}"#, "-"),
            (r#"{"priority": 5000000000}"#, "~!"),
            (r#"{"nodeSelector": {"a": null}}"#, "-"),
            (r#"{"nodeSelector": {"a": true}}"#, "!"),
            (r#"{"restartPolicy": "always"}"#, "!"),
        ] {
            let found = pod(spec);
            let mut marks = String::new();
            marks.push_str(if found.warnings.is_empty() { "" } else { "~" });
            marks.push_str(if found.problems.is_empty() { "" } else { "!" });
            let marks = if marks.is_empty() { "-" } else { &marks };
            assert_eq!(marks, expected, "{spec}: {:?} {:?}", found.problems, found.warnings);
        }
        assert!(pod(r#"{"restartPolicy": "always"}"#).problems[0].to_string().ends_with("(did you mean `Always`?)"));
    }

    #[test]
    fn claims_of_a_stateful_set_are_refused_by_name() {
        let refused = |spec: Value| -> Vec<String> {
            let found = all("StatefulSet", &json!({"spec": spec}));
            assert!(found.warnings.is_empty(), "{found:?}");
            found.problems.iter().map(ToString::to_string).collect()
        };
        let claims = json!({"volumeClaimTemplates": [{"metadata": {"name": "data"}}]});
        assert_eq!(refused(claims), ["spec.volumeClaimTemplates: `volumeClaimTemplates` is not supported yet"]);
        let policy = |when: &str| json!({"persistentVolumeClaimRetentionPolicy": {"whenScaled": when}});
        assert!(refused(policy("Delete"))[0].contains("`Delete` is not supported; supported: `Retain`"));
        assert!(refused(policy("Retain")).is_empty(), "what upstream fills in comes back with every change");
        assert!(refused(json!({"volumeClaimTemplates": []})).is_empty());
    }

    #[test]
    fn a_status_is_checked_where_it_is_brought() {
        let kind = crate::kinds::by_word("node").unwrap();
        let node = json!({"status": {"conditions": [{"type": "Ready", "status": true}], "adresses": []}});
        assert!(strict(kind, &node).is_empty());
        let found: Vec<String> = status(kind, &node).iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().any(|line| line.contains("did you mean `addresses`?")), "{found:?}");
        let mut node = node;
        assert_eq!(drop_unknown("Node", &mut node), ["status.adresses"]);
    }

    #[test]
    fn what_upstream_requires() {
        let kind = crate::kinds::by_word("deploy").unwrap();
        let paths =
            |value: Value| -> Vec<String> { required(kind, &value).into_iter().map(|problem| problem.path).collect() };
        assert_eq!(
            paths(json!({"metadata": {}, "spec": {"template": {"spec": {"containers": [{"env": [{}]}]}}}})),
            ["spec.selector", "spec.template.spec.containers[0].name", "spec.template.spec.containers[0].env[0].name"]
        );
        assert_eq!(paths(json!({})), ["metadata"]);
    }
}
