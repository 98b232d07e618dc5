//! What makes pods of a template: the selector selects the template's pods, and a rolling update can move.

use serde_json::Value;

use super::Found;
use crate::problem::Reason;
use crate::selector::Labels;
use crate::view::{list, text};

const MOST: i64 = i32::MAX as i64;
/// Longest name of a StatefulSet: its pods carry it, `-` and a hash or a number of ten characters in labels of 63.
const LONGEST_NAME: usize = 52;

impl Found {
    pub(super) fn workload(&mut self, object: &Value) {
        let spec = &object["spec"];
        self.range("spec.replicas", &spec["replicas"], 0, 100_000);
        for field in ["minReadySeconds", "revisionHistoryLimit", "progressDeadlineSeconds"] {
            self.range(&format!("spec.{field}"), &spec[field], 0, MOST);
        }
        if let (Some(deadline), Some(ready)) =
            (spec["progressDeadlineSeconds"].as_i64(), spec["minReadySeconds"].as_i64())
            && deadline <= ready
        {
            let message = format!("must be more than minReadySeconds ({ready})");
            self.add("spec.progressDeadlineSeconds", Reason::Invalid, message, None);
        }
        match text(&object["kind"]) {
            "StatefulSet" => self.stateful(object),
            "DaemonSet" => self.daemon(object),
            _ => self.strategy(&spec["strategy"], "spec.strategy"),
        }
        self.fenced(object);
        let selector = self.required("spec.selector", &spec["selector"]);
        if !self.required("spec.template", &spec["template"]) {
            return;
        }
        let template = &spec["template"];
        if selector {
            self.selects(object, &template["metadata"]["labels"]);
        }
        self.labels(&template["metadata"]["labels"], "spec.template.metadata.labels");
        self.annotations(&template["metadata"]["annotations"], "spec.template.metadata.annotations");
        if !matches!(text(&template["spec"]["restartPolicy"]), "" | "Always") {
            let message =
                format!("pods of a {} always restart: only `Always` is supported here", text(&object["kind"]));
            self.add("spec.template.spec.restartPolicy", Reason::NotSupported, message, None);
        }
        if !template["spec"]["activeDeadlineSeconds"].is_null() {
            let message = format!("pods of a {} have no end", text(&object["kind"]));
            self.add("spec.template.spec.activeDeadlineSeconds", Reason::Forbidden, message, None);
        }
        if self.required("spec.template.spec", &template["spec"]) {
            self.pod_spec(&template["spec"], "spec.template.spec");
        }
    }

    /// A pod that must be unique never runs beside its successor.
    fn fenced(&mut self, object: &Value) {
        let spec = &object["spec"];
        let asked = &spec["template"]["metadata"]["annotations"]["coracle.dev/fenced"];
        let path = "spec.template.metadata.annotations[coracle.dev/fenced]";
        match asked.as_str() {
            None | Some("false") => {}
            Some("true") if object["kind"] == "DaemonSet" => {
                let message = "a fenced pod moves when its node is lost; a daemon pod has no other place to go";
                self.add(path, Reason::Invalid, message, Some("remove the annotation"));
            }
            Some("true") if spec["strategy"].is_object() && spec["strategy"]["type"] != "Recreate" => {
                let message =
                    "a fenced pod must end before its successor starts, which a rolling update does not wait for";
                self.add("spec.strategy.type", Reason::Invalid, message, Some("use `type: Recreate`"));
            }
            Some("true") => {}
            Some(_) => self.add(path, Reason::Invalid, "must be \"true\" or \"false\"", None),
        }
    }

    /// A StatefulSet's own rules: a name that fits into labels and host names, and how it rolls.
    fn stateful(&mut self, set: &Value) {
        let (name, spec) = (text(&set["metadata"]["name"]), &set["spec"]);
        if name.len() > LONGEST_NAME {
            let message = format!("{} characters are too many: its pods carry the name in labels", name.len());
            self.add("metadata.name", Reason::TooLong, message, Some("at most 52 characters"));
        } else if name.contains('.') {
            self.label("metadata.name", name, "a name that begins host names");
        }
        self.range("spec.ordinals.start", &spec["ordinals"]["start"], 0, MOST);
        let strategy = &spec["updateStrategy"];
        self.rolls(strategy);
        let rolling = &strategy["rollingUpdate"];
        self.range("spec.updateStrategy.rollingUpdate.partition", &rolling["partition"], 0, MOST);
        let at = "spec.updateStrategy.rollingUpdate.maxUnavailable";
        if let Some(number) = self.amounts(rolling, &["maxUnavailable"], "spec.updateStrategy.rollingUpdate")
            && number == 0
            && !rolling["maxUnavailable"].is_null()
        {
            self.add(at, Reason::Invalid, "cannot be 0: no pod could ever be replaced", None);
        }
        let service = text(&spec["serviceName"]);
        if !service.is_empty() {
            self.service_name("spec.serviceName", service);
        }
    }

    /// A DaemonSet's own rules: how it rolls.
    fn daemon(&mut self, set: &Value) {
        let (path, strategy) = ("spec.updateStrategy.rollingUpdate", &set["spec"]["updateStrategy"]);
        self.rolls(strategy);
        let rolling = &strategy["rollingUpdate"];
        let unavailable = self.amounts(rolling, &["maxUnavailable"], path);
        let surge = self.amounts(rolling, &["maxSurge"], path);
        if let (true, Some(unavailable), Some(surge)) = (rolling.is_object(), unavailable, surge) {
            let (field, message) = match (unavailable, surge) {
                (0, 0) => ("maxUnavailable", "cannot be 0 when `maxSurge` is 0: no pod could ever be replaced"),
                (1.., 1..) => ("maxSurge", "may not be set when `maxUnavailable` is not 0"),
                _ => return,
            };
            self.add(&format!("{path}.{field}"), Reason::Invalid, message, None);
        }
    }

    /// `rollingUpdate` goes with its type.
    fn rolls(&mut self, strategy: &Value) {
        if strategy["type"] == "OnDelete" && strategy["rollingUpdate"].is_object() {
            let message = "`rollingUpdate` goes with the type RollingUpdate only";
            self.add("spec.updateStrategy.rollingUpdate", Reason::Forbidden, message, Some("remove it"));
        }
    }

    /// What a revision holds is what `rollout undo` writes back.
    pub(super) fn revision(&mut self, revision: &Value) {
        self.range("revision", &revision["revision"], 0, i64::MAX);
        if !revision["data"].is_object() {
            self.add("data", Reason::Required, "a revision holds an object", None);
        }
    }

    fn selects(&mut self, object: &Value, labels: &Value) {
        let selector = &object["spec"]["selector"];
        if object["kind"] == "ReplicationController" {
            self.labels(selector, "spec.selector");
        } else {
            self.selector(selector, "spec.selector");
        }
        match Labels::of_pods(object) {
            // The table names an unknown operator.
            Err(_) => {}
            Ok(selector) if selector.is_everything() || selector == Labels::from_map(&Value::Null) => {
                self.add("spec.selector", Reason::Invalid, "an empty selector would select every pod", None);
            }
            Ok(selector) if !selector.matches(labels) => {
                let message = format!("the selector `{selector}` does not select the template's pods");
                let hint = "give the template the labels that the selector asks for";
                self.add("spec.template.metadata.labels", Reason::Invalid, message, Some(hint));
            }
            Ok(_) => {}
        }
    }

    fn selector(&mut self, selector: &Value, path: &str) {
        self.labels(&selector["matchLabels"], &format!("{path}.matchLabels"));
        for (index, expression) in list(&selector["matchExpressions"]).iter().enumerate() {
            let at = format!("{path}.matchExpressions[{index}]");
            if self.required(&format!("{at}.key"), &expression["key"]) {
                self.label_key(&format!("{at}.key"), text(&expression["key"]), "a label key");
            }
            let values = list(&expression["values"]);
            match text(&expression["operator"]) {
                "In" | "NotIn" if values.is_empty() => {
                    self.add(&format!("{at}.values"), Reason::Required, "`In` and `NotIn` need values", None);
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    let message = "`Exists` and `DoesNotExist` take no values";
                    self.add(&format!("{at}.values"), Reason::Forbidden, message, None);
                }
                _ => {}
            }
            for (position, value) in values.iter().enumerate() {
                self.label_value(&format!("{at}.values[{position}]"), text(value));
            }
        }
    }

    fn strategy(&mut self, strategy: &Value, path: &str) {
        let rolling = &strategy["rollingUpdate"];
        let rolling_path = format!("{path}.rollingUpdate");
        if strategy["type"] == "Recreate" && rolling.is_object() {
            let message = "`rollingUpdate` goes with the type RollingUpdate only";
            self.add(&rolling_path, Reason::Forbidden, message, Some("remove it"));
        }
        let fields = ["maxUnavailable", "maxSurge"];
        let both = self.amounts(rolling, &fields, &rolling_path);
        if both == Some(0) && fields.iter().all(|field| !rolling[*field].is_null()) {
            let message = "cannot be 0 when `maxSurge` is 0: no pod could ever be replaced";
            self.add(&format!("{rolling_path}.maxUnavailable"), Reason::Invalid, message, None);
        }
    }

    /// The sum of amounts, each a number or a percentage; `None` where one makes no sense, which is said.
    fn amounts(&mut self, rolling: &Value, fields: &[&str], path: &str) -> Option<i64> {
        let mut sum = Some(0_i64);
        for field in fields.iter().filter(|field| !rolling[**field].is_null()) {
            let path = format!("{path}.{field}");
            match amount(&rolling[*field]) {
                Some((number, true)) if number > 100 && *field == "maxUnavailable" => {
                    self.add(&path, Reason::Invalid, format!("{number}% is more than there is"), None);
                    sum = None;
                }
                Some((number, _)) => sum = sum.map(|sum| sum.saturating_add(number)),
                None => {
                    let message = "expected a whole number from 0 on, or a percentage such as `25%`";
                    self.add(&path, Reason::Invalid, message, None);
                    sum = None;
                }
            }
        }
        sum
    }
}

/// A number, and whether it is a percentage.
fn amount(value: &Value) -> Option<(i64, bool)> {
    match value {
        Value::Number(number) => number.as_i64().filter(|number| *number >= 0).map(|number| (number, false)),
        Value::String(text) => {
            let digits = text.strip_suffix('%').filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))?;
            digits.parse::<u32>().ok().map(|number| (i64::from(number), true))
        }
        _ => None,
    }
}
