//! What a well-formed object must also be: names, required fields, ranges, references within it, what may not change.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::kinds::Kind;
use crate::problem::{Problem, Reason};
use crate::quantity::Quantity;
use crate::selector::Labels;
use crate::view::{list, text};

/// Problems of a new object, after defaults.
#[must_use]
pub fn create(kind: &Kind, object: &Value) -> Vec<Problem> {
    let mut found = Found::default();
    metadata(kind, &object["metadata"], &mut found);
    match kind.kind {
        "Pod" => pod_spec(&object["spec"], "spec", &mut found),
        "Deployment" | "ReplicaSet" => workload(object, &mut found),
        "Service" => service(&object["spec"], &mut found),
        "ConfigMap" => config_keys(object, &["data", "binaryData"], &mut found),
        "Secret" => config_keys(object, &["data"], &mut found),
        _ => {}
    }
    found.problems
}

/// Problems of a change, after defaults: those of the new object, and changes that are not allowed.
#[must_use]
pub fn update(kind: &Kind, old: &Value, new: &Value) -> Vec<Problem> {
    let mut found = Found { problems: create(kind, new) };
    let mut fixed = |path: &str| {
        let get = |object: &Value| path.split('.').fold(object.clone(), |value, part| value[part].clone());
        if get(old) != get(new) {
            found.add(
                path,
                Reason::Forbidden,
                "this field cannot be changed",
                Some("delete the object and create it anew"),
            );
        }
    };
    match kind.kind {
        "Deployment" | "ReplicaSet" => fixed("spec.selector"),
        "Secret" => fixed("type"),
        "Service" if !text(&old["spec"]["clusterIP"]).is_empty() => fixed("spec.clusterIP"),
        _ => {}
    }
    if matches!(kind.kind, "ConfigMap" | "Secret") && old["immutable"] == true {
        for field in ["data", "binaryData", "immutable"] {
            fixed(field);
        }
    }
    if kind.kind == "Pod" {
        let strip = |object: &Value| {
            let mut spec = object["spec"].clone();
            for containers in ["containers", "initContainers"] {
                for container in spec[containers].as_array_mut().into_iter().flatten() {
                    container["image"] = Value::Null;
                }
            }
            for field in ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"] {
                spec[field] = Value::Null;
            }
            spec
        };
        let (before, after) = (strip(old), strip(new));
        if before != after {
            let changed: Vec<&String> = after
                .as_object()
                .into_iter()
                .flatten()
                .filter(|(key, value)| before[key.as_str()] != **value)
                .map(|(key, _)| key)
                .collect();
            let field = changed.first().map_or("spec".to_owned(), |field| format!("spec.{field}"));
            found.add(
                &field,
                Reason::Forbidden,
                "a pod cannot be changed, but for its images, tolerations and deadlines",
                Some("change the Deployment it belongs to"),
            );
        }
    }
    found.problems
}

#[derive(Default)]
struct Found {
    problems: Vec<Problem>,
}

impl Found {
    fn add(&mut self, path: &str, reason: Reason, message: impl Into<String>, hint: Option<&str>) {
        let mut problem = Problem::new(path, reason, message);
        problem.hint = hint.map(ToOwned::to_owned);
        self.problems.push(problem);
    }

    fn required(&mut self, path: &str, value: &Value) -> bool {
        let missing = value.is_null() || value == "" || value.as_array().is_some_and(Vec::is_empty);
        if missing {
            self.add(path, Reason::Required, "this field is required", None);
        }
        !missing
    }

    fn range(&mut self, path: &str, value: &Value, least: i64, most: i64) {
        if let Some(number) = value.as_i64().filter(|number| !(least..=most).contains(number)) {
            self.add(path, Reason::Invalid, format!("{number} is out of range: {least} to {most}"), None);
        }
    }
}

/// RFC 1123 label: lower-case letters, digits, `-`, up to 63.
#[must_use]
pub fn is_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= 63
        && bytes.iter().all(|byte| inner(*byte) || *byte == b'-')
        && inner(bytes[0])
        && inner(bytes[bytes.len() - 1])
}

/// RFC 1123 subdomain: labels joined by dots, up to 253.
#[must_use]
pub fn is_subdomain(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|part| {
            is_label(part)
                || (!part.is_empty()
                    && part.len() > 63
                    && part.len() <= 253
                    && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'))
        })
}

/// The name part of a label key, and a label value: letters, digits, `-_.`, up to 63, alphanumeric at both ends.
fn is_qualified(name: &str) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= 63
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        && bytes[0].is_ascii_alphanumeric()
        && bytes[bytes.len() - 1].is_ascii_alphanumeric()
}

fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_qualified(name),
        None => is_qualified(key),
    }
}

fn metadata(kind: &Kind, meta: &Value, found: &mut Found) {
    let name = text(&meta["name"]);
    if name.is_empty() {
        if text(&meta["generateName"]).is_empty() {
            found.add("metadata.name", Reason::Required, "name or generateName is required", None);
        }
    } else {
        let strict = matches!(kind.kind, "Namespace" | "Service");
        let starts_with_digit = kind.kind == "Service" && name.starts_with(|char: char| char.is_ascii_digit());
        let good = if strict { is_label(name) && !starts_with_digit } else { is_subdomain(name) };
        if !good {
            let rule = if strict {
                "at most 63 lower-case letters, digits and `-`, with a letter or digit at both ends"
            } else {
                "at most 253 lower-case letters, digits, `-` and `.`, with a letter or digit at both ends"
            };
            found.add(
                "metadata.name",
                Reason::Invalid,
                format!("`{}` is not a name: {rule}", name.chars().take(80).collect::<String>()),
                None,
            );
        }
    }
    labels(&meta["labels"], "metadata.labels", found);
    let mut size = 0;
    for (key, value) in meta["annotations"].as_object().into_iter().flatten() {
        size += key.len() + text(value).len();
        if !is_label_key(&key.to_ascii_lowercase()) {
            found.add(
                &format!("metadata.annotations.{key}"),
                Reason::Invalid,
                format!(
                    "`{key}` is not a key: an optional DNS prefix, `/`, and up to 63 letters, digits, `-`, `_`, `.`"
                ),
                None,
            );
        }
    }
    if size > 256 << 10 {
        found.add(
            "metadata.annotations",
            Reason::TooLong,
            format!("the annotations have {size} bytes; at most 262144 are kept"),
            None,
        );
    }
}

fn labels(map: &Value, path: &str, found: &mut Found) {
    for (key, value) in map.as_object().into_iter().flatten() {
        let at = format!("{path}.{key}");
        if !is_label_key(key) {
            found.add(&at, Reason::Invalid, format!("`{key}` is not a label key: an optional DNS prefix, `/`, and up to 63 letters, digits, `-`, `_`, `.`"), None);
        }
        let value = text(value);
        if !value.is_empty() && !is_qualified(value) {
            found.add(&at, Reason::Invalid, format!("`{value}` is not a label value: up to 63 letters, digits, `-`, `_`, `.`, with a letter or digit at both ends"), None);
        }
    }
}

fn workload(object: &Value, found: &mut Found) {
    let spec = &object["spec"];
    found.range("spec.replicas", &spec["replicas"], 0, 100_000);
    found.range("spec.minReadySeconds", &spec["minReadySeconds"], 0, i64::from(i32::MAX));
    if found.required("spec.selector", &spec["selector"]) && found.required("spec.template", &spec["template"]) {
        match Labels::from_object(&spec["selector"]) {
            Err(error) => found.add("spec.selector", Reason::Invalid, error.to_string(), None),
            Ok(selector) if selector.is_everything() => {
                found.add("spec.selector", Reason::Invalid, "an empty selector would select every pod", None);
            }
            Ok(selector) => {
                if !selector.matches(&spec["template"]["metadata"]["labels"]) {
                    let hint = "give the template the labels that the selector asks for";
                    found.add(
                        "spec.template.metadata.labels",
                        Reason::Invalid,
                        format!("the selector `{selector}` does not select the template's pods"),
                        Some(hint),
                    );
                }
            }
        }
        labels(&spec["template"]["metadata"]["labels"], "spec.template.metadata.labels", found);
        let template = &spec["template"]["spec"];
        if template["restartPolicy"] != "Always" && !template["restartPolicy"].is_null() {
            found.add(
                "spec.template.spec.restartPolicy",
                Reason::NotSupported,
                "pods of a Deployment or ReplicaSet always restart: only `Always` is supported here",
                None,
            );
        }
        pod_spec(template, "spec.template.spec", found);
    }
    let rolling = &spec["strategy"]["rollingUpdate"];
    if spec["strategy"]["type"] == "Recreate" && rolling.is_object() {
        found.add(
            "spec.strategy.rollingUpdate",
            Reason::Forbidden,
            "`rollingUpdate` goes with the type RollingUpdate only",
            None,
        );
    }
    let amount = |value: &Value| match value {
        Value::Number(number) => number.as_i64().filter(|number| *number >= 0),
        Value::String(text) => text.strip_suffix('%').and_then(|text| text.parse::<u32>().ok()).map(i64::from),
        _ => Some(0),
    };
    let (mut both, mut given) = (0, 0);
    for field in ["maxUnavailable", "maxSurge"] {
        if rolling[field].is_null() {
            continue;
        }
        given += 1;
        match amount(&rolling[field]) {
            Some(number) => both += number,
            None => found.add(
                &format!("spec.strategy.rollingUpdate.{field}"),
                Reason::Invalid,
                "expected a number or a percentage such as `25%`",
                None,
            ),
        }
    }
    if given == 2 && both == 0 {
        found.add(
            "spec.strategy.rollingUpdate.maxUnavailable",
            Reason::Invalid,
            "cannot be 0 when `maxSurge` is 0: no pod could ever be replaced",
            None,
        );
    }
}

fn pod_spec(spec: &Value, path: &str, found: &mut Found) {
    let containers = format!("{path}.containers");
    if !found.required(&containers, &spec["containers"]) {
        return;
    }
    let volumes = volumes(spec, path, found);
    let mut names = BTreeSet::new();
    for part in ["initContainers", "containers"] {
        for (index, container) in list(&spec[part]).iter().enumerate() {
            let at = format!("{path}.{part}[{index}]");
            let name = text(&container["name"]);
            if found.required(&format!("{at}.name"), &container["name"]) && !is_label(name) {
                found.add(
                    &format!("{at}.name"),
                    Reason::Invalid,
                    format!("`{name}` is not a name: at most 63 lower-case letters, digits and `-`"),
                    None,
                );
            }
            if !names.insert(name.to_owned()) {
                found.add(
                    &format!("{at}.name"),
                    Reason::Duplicate,
                    format!("two containers are called `{name}`"),
                    None,
                );
            }
            self::container(container, &at, part == "initContainers", &volumes, found);
        }
    }
    found.range(
        &format!("{path}.terminationGracePeriodSeconds"),
        &spec["terminationGracePeriodSeconds"],
        0,
        i64::from(i32::MAX),
    );
    if spec["activeDeadlineSeconds"].is_number() {
        found.range(&format!("{path}.activeDeadlineSeconds"), &spec["activeDeadlineSeconds"], 1, i64::from(i32::MAX));
    }
    if spec["dnsPolicy"] == "None" && list(&spec["dnsConfig"]["nameservers"]).is_empty() {
        found.add(
            &format!("{path}.dnsConfig.nameservers"),
            Reason::Required,
            "with `dnsPolicy: None` name at least one server",
            None,
        );
    }
    labels(&spec["nodeSelector"], &format!("{path}.nodeSelector"), found);
    for (field, value) in [("hostname", &spec["hostname"]), ("subdomain", &spec["subdomain"])] {
        if !text(value).is_empty() && !is_label(text(value)) {
            found.add(
                &format!("{path}.{field}"),
                Reason::Invalid,
                format!("`{}` is not a DNS label", text(value)),
                None,
            );
        }
    }
    security(&spec["securityContext"], &format!("{path}.securityContext"), found);
}

fn security(context: &Value, path: &str, found: &mut Found) {
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        found.range(&format!("{path}.{field}"), &context[field], 0, i64::from(i32::MAX));
    }
}

fn volumes<'a>(spec: &'a Value, path: &str, found: &mut Found) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for (index, volume) in list(&spec["volumes"]).iter().enumerate() {
        let at = format!("{path}.volumes[{index}]");
        let name = text(&volume["name"]);
        if found.required(&format!("{at}.name"), &volume["name"]) && !is_label(name) {
            found.add(
                &format!("{at}.name"),
                Reason::Invalid,
                format!("`{name}` is not a name: at most 63 lower-case letters, digits and `-`"),
                None,
            );
        }
        if !names.insert(name) {
            found.add(&format!("{at}.name"), Reason::Duplicate, format!("two volumes are called `{name}`"), None);
        }
        let sources = volume.as_object().map_or(0, |map| map.len().saturating_sub(1));
        if sources > 1 {
            found.add(&at, Reason::Forbidden, "a volume has one source", None);
        }
        if volume["configMap"].is_object() {
            found.required(&format!("{at}.configMap.name"), &volume["configMap"]["name"]);
        }
        if volume["secret"].is_object() {
            found.required(&format!("{at}.secret.secretName"), &volume["secret"]["secretName"]);
        }
        if volume["hostPath"].is_object() && found.required(&format!("{at}.hostPath.path"), &volume["hostPath"]["path"])
        {
            let host = text(&volume["hostPath"]["path"]);
            if !host.starts_with('/') || host.split('/').any(|part| part == "..") {
                found.add(
                    &format!("{at}.hostPath.path"),
                    Reason::Invalid,
                    "a host path is absolute and has no `..`",
                    None,
                );
            }
            let known =
                ["", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"];
            if !known.contains(&text(&volume["hostPath"]["type"])) {
                found.add(
                    &format!("{at}.hostPath.type"),
                    Reason::NotSupported,
                    format!("supported: {}", known[1..].join(", ")),
                    None,
                );
            }
        }
        for source in ["configMap", "secret"] {
            found.range(&format!("{at}.{source}.defaultMode"), &volume[source]["defaultMode"], 0, 0o777);
            for (item, entry) in list(&volume[source]["items"]).iter().enumerate() {
                let relative = text(&entry["path"]);
                if relative.is_empty() || relative.starts_with('/') || relative.split('/').any(|part| part == "..") {
                    found.add(
                        &format!("{at}.{source}.items[{item}].path"),
                        Reason::Invalid,
                        "the path is relative, without `..`",
                        None,
                    );
                }
            }
        }
    }
    names
}

fn container(container: &Value, at: &str, init: bool, volumes: &BTreeSet<&str>, found: &mut Found) {
    found.required(&format!("{at}.image"), &container["image"]);
    if text(&container["image"]).trim() != text(&container["image"]) {
        found.add(&format!("{at}.image"), Reason::Invalid, "the image's name has space around it", None);
    }
    if !init && container["restartPolicy"].is_string() {
        found.add(
            &format!("{at}.restartPolicy"),
            Reason::Forbidden,
            "only an init container may have a restart policy of its own",
            None,
        );
    }
    ports(&container["ports"], &format!("{at}.ports"), found);
    for (index, entry) in list(&container["env"]).iter().enumerate() {
        let here = format!("{at}.env[{index}]");
        let name = text(&entry["name"]);
        if found.required(&format!("{here}.name"), &entry["name"]) && (name.contains('=') || name.contains('\0')) {
            found.add(&format!("{here}.name"), Reason::Invalid, "a variable's name has no `=`", None);
        }
        let sources = entry["valueFrom"].as_object().map_or(0, serde_json::Map::len);
        if entry["valueFrom"].is_object() && sources != 1 {
            found.add(&format!("{here}.valueFrom"), Reason::Invalid, "name exactly one source", None);
        }
        if entry["valueFrom"].is_object() && !text(&entry["value"]).is_empty() {
            found.add(&format!("{here}.valueFrom"), Reason::Invalid, "give `value` or `valueFrom`, not both", None);
        }
    }
    let mut paths = BTreeSet::new();
    for (index, mount) in list(&container["volumeMounts"]).iter().enumerate() {
        let here = format!("{at}.volumeMounts[{index}]");
        let name = text(&mount["name"]);
        if !volumes.contains(name) {
            let near = coracle_base::nearest(name, volumes.iter().copied());
            let hint = near.map_or_else(|| "add it to `volumes`".to_owned(), |near| format!("did you mean `{near}`?"));
            found.add(&format!("{here}.name"), Reason::Invalid, format!("the pod has no volume `{name}`"), Some(&hint));
        }
        let target = text(&mount["mountPath"]);
        if found.required(&format!("{here}.mountPath"), &mount["mountPath"]) {
            if target.contains(':') || !target.starts_with('/') {
                found.add(
                    &format!("{here}.mountPath"),
                    Reason::Invalid,
                    "a mount path is absolute and has no `:`",
                    None,
                );
            }
            if !paths.insert(target) {
                found.add(
                    &format!("{here}.mountPath"),
                    Reason::Duplicate,
                    format!("two volumes are mounted at {target}"),
                    None,
                );
            }
        }
        let sub = text(&mount["subPath"]);
        if sub.starts_with('/') || sub.split('/').any(|part| part == "..") {
            found.add(&format!("{here}.subPath"), Reason::Invalid, "a sub path is relative, without `..`", None);
        }
    }
    resources(&container["resources"], &format!("{at}.resources"), found);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if container[probe].is_object() {
            self::probe(&container[probe], probe, &format!("{at}.{probe}"), found);
        }
    }
    security(&container["securityContext"], &format!("{at}.securityContext"), found);
}

fn ports(value: &Value, at: &str, found: &mut Found) {
    let mut names = BTreeSet::new();
    for (index, port) in list(value).iter().enumerate() {
        let here = format!("{at}[{index}]");
        if found.required(&format!("{here}.containerPort"), &port["containerPort"]) {
            found.range(&format!("{here}.containerPort"), &port["containerPort"], 1, 65535);
        }
        let name = text(&port["name"]);
        if !name.is_empty()
            && (name.len() > 15 || !is_label(name) || !name.bytes().any(|byte| byte.is_ascii_lowercase()))
        {
            found.add(
                &format!("{here}.name"),
                Reason::Invalid,
                format!("`{name}` is not a port name: at most 15 lower-case letters, digits and `-`, with a letter"),
                None,
            );
        }
        if !name.is_empty() && !names.insert(name) {
            found.add(&format!("{here}.name"), Reason::Duplicate, format!("two ports are called `{name}`"), None);
        }
    }
}

fn resources(resources: &Value, at: &str, found: &mut Found) {
    for bound in ["limits", "requests"] {
        for (name, value) in resources[bound].as_object().into_iter().flatten() {
            if !matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") {
                found.add(
                    &format!("{at}.{bound}.{name}"),
                    Reason::Unsupported,
                    format!("the resource `{name}` is not supported yet"),
                    Some("supported: cpu, memory, ephemeral-storage"),
                );
            }
            if Quantity::of_json(value).milli() < 0 {
                found.add(&format!("{at}.{bound}.{name}"), Reason::Invalid, "an amount is not negative", None);
            }
        }
    }
    for (name, request) in resources["requests"].as_object().into_iter().flatten() {
        let limit = &resources["limits"][name];
        if !limit.is_null() && Quantity::of_json(request) > Quantity::of_json(limit) {
            found.add(
                &format!("{at}.requests.{name}"),
                Reason::Invalid,
                format!("the request {} is above the limit {}", text(request), text(limit)),
                None,
            );
        }
    }
}

fn probe(probe: &Value, kind: &str, at: &str, found: &mut Found) {
    let handlers = ["httpGet", "tcpSocket", "exec"].iter().filter(|handler| probe[**handler].is_object()).count();
    if handlers != 1 {
        found.add(at, Reason::Required, "a probe has exactly one of `httpGet`, `tcpSocket`, `exec`", None);
    }
    for handler in ["httpGet", "tcpSocket"] {
        if probe[handler].is_object() && found.required(&format!("{at}.{handler}.port"), &probe[handler]["port"]) {
            found.range(&format!("{at}.{handler}.port"), &probe[handler]["port"], 1, 65535);
        }
    }
    if probe["exec"].is_object() {
        found.required(&format!("{at}.exec.command"), &probe["exec"]["command"]);
    }
    found.range(&format!("{at}.initialDelaySeconds"), &probe["initialDelaySeconds"], 0, i64::from(i32::MAX));
    for field in ["periodSeconds", "timeoutSeconds", "successThreshold", "failureThreshold"] {
        found.range(&format!("{at}.{field}"), &probe[field], 1, i64::from(i32::MAX));
    }
    if kind != "readinessProbe" && probe["successThreshold"].as_i64().is_some_and(|threshold| threshold != 1) {
        found.add(&format!("{at}.successThreshold"), Reason::Invalid, "must be 1 for this probe", None);
    }
}

fn service(spec: &Value, found: &mut Found) {
    let headless = spec["clusterIP"] == "None";
    if !headless {
        found.required("spec.ports", &spec["ports"]);
    }
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    let many = list(&spec["ports"]).len() > 1;
    for (index, port) in list(&spec["ports"]).iter().enumerate() {
        let at = format!("spec.ports[{index}]");
        if found.required(&format!("{at}.port"), &port["port"]) {
            found.range(&format!("{at}.port"), &port["port"], 1, 65535);
        }
        found.range(&format!("{at}.targetPort"), &port["targetPort"], 1, 65535);
        let name = text(&port["name"]);
        if many && name.is_empty() {
            found.add(&format!("{at}.name"), Reason::Required, "with several ports each has a name", None);
        }
        if !name.is_empty() && (!is_label(name) || !names.insert(name)) {
            found.add(
                &format!("{at}.name"),
                Reason::Invalid,
                format!("`{name}` is not a DNS label, or given twice"),
                None,
            );
        }
        if !numbers.insert((port["port"].to_string(), text(&port["protocol"]))) {
            found.add(&at, Reason::Duplicate, format!("port {} is given twice", port["port"]), None);
        }
    }
    let address = text(&spec["clusterIP"]);
    if !address.is_empty() && !headless && address.parse::<std::net::Ipv4Addr>().is_err() {
        found.add(
            "spec.clusterIP",
            Reason::Invalid,
            format!("`{address}` is neither an IPv4 address nor `None`"),
            None,
        );
    }
}

fn config_keys(object: &Value, fields: &[&str], found: &mut Found) {
    let (mut keys, mut size) = (BTreeSet::new(), 0);
    for field in fields {
        for (key, value) in object[*field].as_object().into_iter().flatten() {
            size += text(value).len();
            let good = !key.is_empty()
                && key.len() <= 253
                && key != "."
                && key != ".."
                && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            if !good {
                found.add(
                    &format!("{field}.{key}"),
                    Reason::Invalid,
                    format!("`{key}` is not a key: letters, digits, `-`, `_`, `.`"),
                    None,
                );
            }
            if !keys.insert(key) {
                found.add(
                    &format!("{field}.{key}"),
                    Reason::Duplicate,
                    format!("`{key}` is in `data` and in `binaryData`"),
                    None,
                );
            }
        }
    }
    if size > 1 << 20 {
        found.add(fields[0], Reason::TooLong, format!("the data has {size} bytes; at most 1048576 are kept"), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::by_word;
    use serde_json::json;

    fn problems(word: &str, mut object: Value) -> String {
        let kind = by_word(word).unwrap();
        crate::default::apply(kind, &mut object);
        create(kind, &object).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    fn deployment() -> Value {
        json!({"metadata": {"name": "a"}, "spec": {"selector": {"matchLabels": {"app": "a"}}, "template": {
            "metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "x:1"}]}}}})
    }

    #[test]
    fn a_plain_deployment_is_fine() {
        assert_eq!(problems("deploy", deployment()), "");
    }

    #[test]
    fn everything_wrong_is_said_at_once() {
        let mut object = deployment();
        object["metadata"]["name"] = json!("Bad_Name");
        object["spec"]["selector"]["matchLabels"]["app"] = json!("b");
        object["spec"]["strategy"] = json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}});
        object["spec"]["template"]["spec"]["volumes"] = json!([{"name": "data"}]);
        object["spec"]["template"]["spec"]["containers"] = json!([
            {"name": "c", "image": "x", "ports": [{"containerPort": 99999}], "volumeMounts": [{"name": "date", "mountPath": "x"}],
             "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1", "gpu": 1}}, "livenessProbe": {"successThreshold": 2}},
            {"name": "c"}]);
        let text = problems("deploy", object);
        for expected in [
            "metadata.name: `Bad_Name` is not a name",
            "the selector `app=b` does not select",
            "maxUnavailable: cannot be 0",
            "ports[0].containerPort: 99999 is out of range",
            "the pod has no volume `date` (did you mean `data`?)",
            "mountPath: a mount path is absolute",
            "requests.cpu: the request 2 is above the limit 1",
            "limits.gpu: the resource `gpu` is not supported yet",
            "livenessProbe: a probe has exactly one",
            "livenessProbe.successThreshold: must be 1",
            "containers[1].name: two containers are called `c`",
            "containers[1].image: this field is required",
        ] {
            assert!(text.contains(expected), "{expected} is missing in\n{text}");
        }
    }

    #[test]
    fn what_may_not_change() {
        let kind = by_word("deploy").unwrap();
        let (mut old, mut new) = (deployment(), deployment());
        new["spec"]["selector"]["matchLabels"]["b"] = json!("c");
        new["spec"]["template"]["metadata"]["labels"]["b"] = json!("c");
        crate::default::apply(kind, &mut old);
        crate::default::apply(kind, &mut new);
        assert!(update(kind, &old, &new)[0].to_string().starts_with("spec.selector: this field cannot be changed"));
        let kind = by_word("cm").unwrap();
        let old = json!({"metadata": {"name": "a"}, "data": {"x": "1"}, "immutable": true});
        let mut new = old.clone();
        new["data"]["x"] = json!("2");
        assert_eq!(update(kind, &old, &new).len(), 1);
    }

    #[test]
    fn names() {
        assert!(is_label("a-1") && !is_label("-a") && !is_label("A") && !is_label(&"a".repeat(64)));
        assert!(is_subdomain("a.b-c.d") && !is_subdomain("a..b") && !is_subdomain(""));
    }
}
