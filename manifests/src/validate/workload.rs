//! Deployments and ReplicaSets: the selector selects the template's pods, and a rolling update can move.

use serde_json::Value;

use super::Found;
use crate::problem::Reason;
use crate::selector::Labels;
use crate::view::{list, text};

const MOST: i64 = i32::MAX as i64;

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
        self.strategy(&spec["strategy"]);
        self.fenced(spec);
        let selector = self.required("spec.selector", &spec["selector"]);
        if !self.required("spec.template", &spec["template"]) {
            return;
        }
        let template = &spec["template"];
        if selector {
            self.selects(&spec["selector"], &template["metadata"]["labels"]);
        }
        self.labels(&template["metadata"]["labels"], "spec.template.metadata.labels");
        self.annotations(&template["metadata"]["annotations"], "spec.template.metadata.annotations");
        if !matches!(text(&template["spec"]["restartPolicy"]), "" | "Always") {
            let message = "pods of a Deployment or ReplicaSet always restart: only `Always` is supported here";
            self.add("spec.template.spec.restartPolicy", Reason::NotSupported, message, None);
        }
        if !template["spec"]["activeDeadlineSeconds"].is_null() {
            let message = "pods of a Deployment or ReplicaSet have no end";
            self.add("spec.template.spec.activeDeadlineSeconds", Reason::Forbidden, message, None);
        }
        if self.required("spec.template.spec", &template["spec"]) {
            self.pod_spec(&template["spec"], "spec.template.spec");
        }
    }

    /// A pod that must be unique never runs beside its successor.
    fn fenced(&mut self, spec: &Value) {
        let asked = &spec["template"]["metadata"]["annotations"]["coracle.dev/fenced"];
        let path = "spec.template.metadata.annotations[coracle.dev/fenced]";
        match asked.as_str() {
            None | Some("false") => {}
            Some("true") if spec["strategy"].is_object() && spec["strategy"]["type"] != "Recreate" => {
                let message =
                    "a fenced pod must end before its successor starts, which a rolling update does not wait for";
                self.add("spec.strategy.type", Reason::Invalid, message, Some("use `type: Recreate`"));
            }
            Some("true") => {}
            Some(_) => self.add(path, Reason::Invalid, "must be \"true\" or \"false\"", None),
        }
    }

    fn selects(&mut self, selector: &Value, labels: &Value) {
        self.selector(selector, "spec.selector");
        match Labels::from_object(selector) {
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

    fn strategy(&mut self, strategy: &Value) {
        let rolling = &strategy["rollingUpdate"];
        if strategy["type"] == "Recreate" && rolling.is_object() {
            let message = "`rollingUpdate` goes with the type RollingUpdate only";
            self.add("spec.strategy.rollingUpdate", Reason::Forbidden, message, Some("remove it"));
        }
        let (mut both, mut given) = (0, 0);
        for field in ["maxUnavailable", "maxSurge"] {
            if rolling[field].is_null() {
                continue;
            }
            given += 1;
            let path = format!("spec.strategy.rollingUpdate.{field}");
            match amount(&rolling[field]) {
                Some((number, true)) if number > 100 && field == "maxUnavailable" => {
                    self.add(&path, Reason::Invalid, format!("{number}% is more than there is"), None);
                }
                Some((number, _)) => both += number,
                None => {
                    let message = "expected a whole number from 0 on, or a percentage such as `25%`";
                    self.add(&path, Reason::Invalid, message, None);
                    given = 0;
                }
            }
        }
        if given == 2 && both == 0 {
            let message = "cannot be 0 when `maxSurge` is 0: no pod could ever be replaced";
            self.add("spec.strategy.rollingUpdate.maxUnavailable", Reason::Invalid, message, None);
        }
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
