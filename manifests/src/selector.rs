//! Label and field selectors, as text in a query and as objects in a spec.

use std::fmt;

use serde_json::Value;

use crate::kinds::Kind;
use crate::validate::{is_label_key, is_label_value};

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

/// A label selector: all of its requirements must hold. Without any it selects everything.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Labels {
    requirements: Vec<(String, Test)>,
    nothing: bool,
}

/// Why a selector makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the selector `{selector}` cannot be read: {reason}")]
pub struct SelectorError {
    selector: String,
    reason: String,
}

impl Labels {
    /// Of a query: `a=b,c!=d,e in (f,g),h notin (i),j,!k`.
    ///
    /// # Errors
    /// Anything else.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let bad =
            |reason: &str| SelectorError { selector: text.chars().take(200).collect(), reason: reason.to_owned() };
        let mut requirements = Vec::new();
        for part in split_outside_parentheses(text) {
            let part = part.trim();
            if part.is_empty() {
                continue;
            }
            let (key, test) = if let Some((key, list)) = part.split_once('(') {
                let list = list.strip_suffix(')').ok_or_else(|| bad("a list of values ends with `)`"))?;
                let values = list.split(',').map(|value| value.trim().to_owned()).collect();
                let mut words = key.split_whitespace();
                let key = words.next().ok_or_else(|| bad("a key is missing"))?;
                match words.next() {
                    Some("in") => (key, Test::In(values)),
                    Some("notin") => (key, Test::NotIn(values)),
                    _ => return Err(bad("before `(` stands `in` or `notin`")),
                }
            } else if let Some((key, value)) = part.split_once("!=") {
                (key, Test::NotIn(vec![value.trim().to_owned()]))
            } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (key, Test::In(vec![value.trim().to_owned()]))
            } else if let Some(key) = part.strip_prefix('!') {
                (key, Test::Absent)
            } else {
                (part, Test::Exists)
            };
            let key = key.trim();
            if !is_label_key(key) {
                return Err(bad(&format!("`{}` is not a label key", key.chars().take(80).collect::<String>())));
            }
            if let Test::In(values) | Test::NotIn(values) = &test
                && let Some(value) = values.iter().find(|value| !is_label_value(value))
            {
                return Err(bad(&format!("`{}` is not a label value", value.chars().take(80).collect::<String>())));
            }
            requirements.push((key.to_owned(), test));
        }
        Ok(Self { requirements, nothing: false })
    }

    /// Of a `LabelSelector` object (`matchLabels`, `matchExpressions`). Null selects nothing, `{}` everything.
    ///
    /// # Errors
    /// An unknown operator.
    pub fn from_object(value: &Value) -> Result<Self, SelectorError> {
        if value.is_null() {
            return Ok(Self { requirements: Vec::new(), nothing: true });
        }
        let mut labels = Self { nothing: false, ..Self::from_map(&value["matchLabels"]) };
        for expression in value["matchExpressions"].as_array().into_iter().flatten() {
            let key = expression["key"].as_str().unwrap_or_default().to_owned();
            let values: Vec<String> = expression["values"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|value| value.as_str().map(ToOwned::to_owned))
                .collect();
            let test = match expression["operator"].as_str().unwrap_or_default() {
                "In" => Test::In(values),
                "NotIn" => Test::NotIn(values),
                "Exists" => Test::Exists,
                "DoesNotExist" => Test::Absent,
                other => {
                    return Err(SelectorError {
                        selector: expression.to_string(),
                        reason: format!("`{other}` is not an operator"),
                    });
                }
            };
            labels.requirements.push((key, test));
        }
        Ok(labels)
    }

    /// Of a plain map, as a Service has it. Null and empty select nothing.
    #[must_use]
    pub fn from_map(value: &Value) -> Self {
        let requirements: Vec<(String, Test)> = value
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, value)| (key.clone(), Test::In(vec![value.as_str().unwrap_or_default().to_owned()])))
            .collect();
        Self { nothing: requirements.is_empty(), requirements }
    }

    /// Which pods an object's `spec.selector` means: a plain map in kinds of before `apps/v1`, a `LabelSelector` in others.
    ///
    /// # Errors
    /// An unknown operator.
    pub fn of_pods(object: &Value) -> Result<Self, SelectorError> {
        let selector = &object["spec"]["selector"];
        match object["kind"].as_str() {
            Some("ReplicationController" | "Service") => Ok(Self::from_map(selector)),
            _ => Self::from_object(selector),
        }
    }

    /// Whether it selects everything.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Whether an object with these labels (an object or null) is selected.
    #[must_use]
    pub fn matches(&self, labels: &Value) -> bool {
        !self.nothing
            && self.requirements.iter().all(|(key, test)| {
                let value = labels.get(key).and_then(Value::as_str);
                match test {
                    Test::In(values) => value.is_some_and(|value| values.iter().any(|wanted| wanted == value)),
                    Test::NotIn(values) => value.is_none_or(|value| values.iter().all(|unwanted| unwanted != value)),
                    Test::Exists => value.is_some(),
                    Test::Absent => value.is_none(),
                }
            })
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (key, test)) in self.requirements.iter().enumerate() {
            if index > 0 {
                out.write_str(",")?;
            }
            match test {
                Test::In(values) if values.len() == 1 => write!(out, "{key}={}", values[0])?,
                Test::In(values) => write!(out, "{key} in ({})", values.join(","))?,
                Test::NotIn(values) => write!(out, "{key} notin ({})", values.join(","))?,
                Test::Exists => write!(out, "{key}")?,
                Test::Absent => write!(out, "!{key}")?,
            }
        }
        Ok(())
    }
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0_i32, 0);
    for (at, char) in text.char_indices() {
        match char {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// A field selector: `metadata.name=a,status.phase!=Running`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fields {
    requirements: Vec<(String, bool, String)>,
}

/// The fields one may select by, beside `metadata.name` and `metadata.namespace`.
fn selectable(kind: &Kind) -> &'static [&'static str] {
    match kind.kind {
        "Pod" => &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.nominatedNodeName",
        ],
        "Event" => &[
            "involvedObject.kind",
            "involvedObject.namespace",
            "involvedObject.name",
            "involvedObject.uid",
            "involvedObject.apiVersion",
            "involvedObject.resourceVersion",
            "involvedObject.fieldPath",
            "reason",
            "reportingComponent",
            "source",
            "type",
        ],
        "Node" => &["spec.unschedulable"],
        "Namespace" => &["status.phase"],
        "Secret" => &["type"],
        "Service" => &["spec.clusterIP", "spec.type"],
        "ReplicaSet" => &["status.replicas"],
        _ => &[],
    }
}

impl Fields {
    /// Reads a selector for objects of `kind`.
    ///
    /// # Errors
    /// A field that cannot be selected by; the words name those that can.
    pub fn parse(kind: &Kind, text: &str) -> Result<Self, SelectorError> {
        let bad = |reason: String| SelectorError { selector: text.chars().take(200).collect(), reason };
        let mut requirements = Vec::new();
        for part in text.split(',').filter(|part| !part.trim().is_empty()) {
            let (field, equal, value) = if let Some((field, value)) = part.split_once("!=") {
                (field, false, value)
            } else if let Some((field, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (field, true, value)
            } else {
                return Err(bad(format!("`{part}` is neither FIELD=VALUE nor FIELD!=VALUE")));
            };
            let field = field.trim();
            if !["metadata.name", "metadata.namespace"].contains(&field) && !selectable(kind).contains(&field) {
                let mut known = vec!["metadata.name", "metadata.namespace"];
                known.extend(selectable(kind));
                return Err(bad(format!(
                    "`{field}` is not a selectable field of {}; there are {}",
                    kind.kind,
                    known.join(", ")
                )));
            }
            requirements.push((field.to_owned(), equal, value.trim().to_owned()));
        }
        Ok(Self { requirements })
    }

    /// Whether an object is selected.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        self.requirements.iter().all(|(field, equal, wanted)| {
            let mut value = object;
            for part in field.split('.') {
                value = &value[part];
            }
            if field == "source" {
                value = &object["source"]["component"];
            }
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Null if field == "spec.unschedulable" || field == "spec.hostNetwork" => "false".to_owned(),
                Value::Null => String::new(),
                other => other.to_string(),
            };
            (text == *wanted) == *equal
        })
    }

    /// The one name it asks for, if it does.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.requirements
            .iter()
            .find(|(field, equal, _)| field == "metadata.name" && *equal)
            .map(|(_, _, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn label_queries() {
        let labels = json!({"app": "web", "tier": "front"});
        for (query, expected) in [
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app in (db, web)", true),
            ("app notin (web)", false),
            ("tier", true),
            ("!tier", false),
            ("missing!=x", true),
            ("missing", false),
            ("", true),
            ("app=web,tier in (a,b)", false),
        ] {
            assert_eq!(Labels::parse(query).unwrap().matches(&labels), expected, "{query}");
        }
        for bad in ["a in b)", "a like (b)", "a in (b", "a=b c", "a b", "=x", "a>1", "a in (b))", "-a=b", "!", "a=b=c"]
        {
            assert!(Labels::parse(bad).is_err(), "{bad}");
        }
        assert!(Labels::parse("a in (x, ),b notin ()").unwrap().matches(&json!({"a": "", "b": "c"})));
        let shown = "a=b,c in (d,e),f notin (g),h,!i";
        assert_eq!(Labels::parse(shown).unwrap().to_string(), shown);
    }

    proptest! {
        #[test]
        fn no_query_panics_and_what_is_shown_reads_back(text in "[a-c!=,() nioty/.]{0,30}") {
            if let Ok(labels) = Labels::parse(&text) {
                prop_assert_eq!(Labels::parse(&labels.to_string()).unwrap(), labels);
            }
        }
    }

    #[test]
    fn objects_and_maps() {
        let object = json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "Exists"}]});
        let labels = Labels::from_object(&object).unwrap();
        assert!(labels.matches(&json!({"a": "b", "c": ""})) && !labels.matches(&json!({"a": "b"})));
        assert!(!Labels::from_object(&Value::Null).unwrap().matches(&json!({})));
        assert!(Labels::from_object(&json!({})).unwrap().matches(&json!({})));
        assert!(!Labels::from_map(&json!({})).matches(&json!({"a": "b"})));
    }

    #[test]
    fn field_queries() {
        let kind = crate::kinds::by_word("pods").unwrap();
        let pod = json!({"metadata": {"name": "a"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}});
        assert!(Fields::parse(kind, "spec.nodeName=n,status.phase!=Failed").unwrap().matches(&pod));
        assert!(!Fields::parse(kind, "metadata.name=b").unwrap().matches(&pod));
        assert!(Fields::parse(kind, "spec.color=red").unwrap_err().to_string().contains("there are metadata.name"));
    }
}
