//! The environment of a container: the image's, Services, `envFrom`, `env` with its sources, and `$(VAR)` in values,
//! command and arguments.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use coracle_manifests::quantity::Quantity;
use serde_json::Value;

use crate::pod::{Container, Pod, base64, list, text};

/// Objects a pod's environment and volumes are read from.
pub trait Sources {
    /// A `ConfigMap` of a namespace.
    fn config_map(&self, namespace: &str, name: &str) -> Option<&Value>;
    /// A Secret of a namespace.
    fn secret(&self, namespace: &str, name: &str) -> Option<&Value>;
    /// The Services of a namespace.
    fn services(&self, namespace: &str) -> Vec<&Value>;
}

/// Why a container has no environment yet: `CreateContainerConfigError`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// The object is not there.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// `configmap`, `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    NoKey {
        /// `ConfigMap`, `Secret`.
        kind: &'static str,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A value that cannot be an environment variable.
    #[error("key {key} of {kind} {name} is not text: an environment variable must be")]
    Binary {
        /// `ConfigMap`, `Secret`.
        kind: &'static str,
        /// Its name.
        name: String,
        /// The key.
        key: String,
    },
    /// A field one cannot refer to.
    #[error(
        "the fieldPath `{0}` is not supported: metadata.name, .namespace, .uid, .labels['x'], .annotations['x'], spec.nodeName, spec.serviceAccountName, status.hostIP, status.podIP are"
    )]
    Field(String),
    /// A resource one cannot refer to.
    #[error("the resource `{resource}` of container `{container}` cannot be referred to")]
    Resource {
        /// Which container.
        container: String,
        /// Which resource.
        resource: String,
    },
}

/// What the node knows of a pod when its container is started.
#[derive(Debug, Clone, Copy)]
pub struct NodeFacts {
    /// The pod's address.
    pub pod_ip: Ipv4Addr,
    /// The node's address.
    pub host_ip: Ipv4Addr,
    /// CPU of the node, in thousandths: what a container without a limit may use.
    pub cpu_milli: u64,
    /// Memory of the node, in bytes.
    pub memory_bytes: u64,
}

/// The environment, in the order of definition: later wins over earlier, as upstream.
///
/// # Errors
/// A source that is missing and not optional.
pub fn environment(
    pod: &Pod,
    container: &Container,
    image_env: &[String],
    sources: &dyn Sources,
    facts: NodeFacts,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut vars = Vars::default();
    for entry in image_env {
        if let Some((name, value)) = entry.split_once('=') {
            vars.set(name, value.to_owned());
        }
    }
    if vars.get("PATH").is_none() {
        vars.set("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    }
    vars.set("HOSTNAME", pod.hostname.clone());
    service_links(pod, sources, &mut vars);
    for entry in &container.env_from {
        from_object(pod, entry, sources, &mut vars)?;
    }
    for entry in &container.env {
        let name = text(&entry["name"]);
        let value = match entry.get("valueFrom").filter(|from| from.is_object()) {
            None => Some(expand(entry["value"].as_str().unwrap_or_default(), &|name| vars.get(name))),
            Some(from) => from_source(pod, container, from, sources, facts)?,
        };
        if let Some(value) = value {
            vars.set(&name, value);
        }
    }
    Ok(vars.into_list())
}

/// Variables in order of first definition.
#[derive(Default)]
struct Vars {
    order: Vec<String>,
    values: BTreeMap<String, String>,
}

impl Vars {
    fn set(&mut self, name: &str, value: String) {
        // NUL ends a string for the kernel, `=` ends a name: neither can be passed on.
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return;
        }
        if self.values.insert(name.to_owned(), value).is_none() {
            self.order.push(name.to_owned());
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    fn into_list(mut self) -> Vec<(String, String)> {
        self.order.iter().filter_map(|name| Some((name.clone(), self.values.remove(name)?))).collect()
    }
}

fn from_object(pod: &Pod, entry: &Value, sources: &dyn Sources, vars: &mut Vars) -> Result<(), EnvError> {
    let prefix = text(&entry["prefix"]);
    let (reference, kind) = if entry["configMapRef"].is_object() {
        (&entry["configMapRef"], "configmap")
    } else {
        (&entry["secretRef"], "secret")
    };
    let name = text(&reference["name"]);
    let object = if kind == "configmap" {
        sources.config_map(&pod.namespace, &name)
    } else {
        sources.secret(&pod.namespace, &name)
    };
    let Some(object) = object else {
        return if reference["optional"] == true { Ok(()) } else { Err(EnvError::NotFound { kind, name }) };
    };
    for (key, value) in object["data"].as_object().into_iter().flatten() {
        let value = if kind == "configmap" {
            text(value)
        } else {
            // Bytes that are no text cannot be a variable; one of many keys must not keep the others away.
            let Some(value) = base64(value).and_then(|bytes| String::from_utf8(bytes).ok()) else { continue };
            value
        };
        vars.set(&format!("{prefix}{key}"), value);
    }
    Ok(())
}

fn from_source(
    pod: &Pod,
    container: &Container,
    from: &Value,
    sources: &dyn Sources,
    facts: NodeFacts,
) -> Result<Option<String>, EnvError> {
    if let Some(reference) = from.get("configMapKeyRef").filter(|reference| reference.is_object()) {
        let object = sources.config_map(&pod.namespace, &text(&reference["name"]));
        return keyed(pod, reference, object, "configmap", "ConfigMap", &|value| Some(text(value)));
    }
    if let Some(reference) = from.get("secretKeyRef").filter(|reference| reference.is_object()) {
        let object = sources.secret(&pod.namespace, &text(&reference["name"]));
        let decode = |value: &Value| base64(value).and_then(|bytes| String::from_utf8(bytes).ok());
        return keyed(pod, reference, object, "secret", "Secret", &decode);
    }
    if let Some(reference) = from.get("fieldRef").filter(|reference| reference.is_object()) {
        return field(pod, &text(&reference["fieldPath"]), facts).map(Some);
    }
    resource(pod, container, &from["resourceFieldRef"], facts).map(Some)
}

fn keyed(
    pod: &Pod,
    reference: &Value,
    object: Option<&Value>,
    kind: &'static str,
    word: &'static str,
    decode: &dyn Fn(&Value) -> Option<String>,
) -> Result<Option<String>, EnvError> {
    let (name, key) = (text(&reference["name"]), text(&reference["key"]));
    let optional = reference["optional"] == true;
    let Some(object) = object else {
        return if optional { Ok(None) } else { Err(EnvError::NotFound { kind, name }) };
    };
    match object["data"].get(&key) {
        Some(value) => decode(value).map(Some).ok_or(EnvError::Binary { kind: word, name, key }),
        None if optional => Ok(None),
        None => Err(EnvError::NoKey { kind: word, namespace: pod.namespace.clone(), name, key }),
    }
}

/// What a file of a volume says of the pod: a `fieldRef`, or a `resourceFieldRef` of a container it names.
///
/// # Errors
/// There is no such field or container.
pub fn of_pod(pod: &Pod, from: &Value, facts: NodeFacts) -> Result<String, EnvError> {
    let Some(reference) = from.get("fieldRef").filter(|reference| reference.is_object()) else {
        let reference = &from["resourceFieldRef"];
        let (container, resource) = (text(&reference["containerName"]), text(&reference["resource"]));
        let own = pod.containers.iter().find(|own| own.name == container);
        return self::resource(pod, own.ok_or(EnvError::Resource { container, resource })?, reference, facts);
    };
    match &*text(&reference["fieldPath"]) {
        "metadata.labels" => Ok(lines(&pod.labels)),
        "metadata.annotations" => Ok(lines(&pod.annotations)),
        path => field(pod, path, facts),
    }
}

/// `key="value"` on a line each, in the order of the keys, the value as Go quotes it (upstream: `fieldpath.FormatMap`).
fn lines(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(key, value)| format!("{key}={}", quoted(value))).collect::<Vec<_>>().join("\n")
}

fn quoted(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    out.push('"');
    for letter in value.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            _ if u32::from(letter) < 0x20 || letter == '\u{7f}' => {
                out.push_str(&format!("\\x{:02x}", u32::from(letter)));
            }
            _ if letter.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(letter))),
            _ => out.push(letter),
        }
    }
    out.push('"');
    out
}

/// A field of the pod (downward API).
fn field(pod: &Pod, path: &str, facts: NodeFacts) -> Result<String, EnvError> {
    let subscript = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
    if let Some(key) = subscript("metadata.labels") {
        return Ok(pod.labels.get(key).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript("metadata.annotations") {
        return Ok(pod.annotations.get(key).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => pod.name.clone(),
        "metadata.namespace" => pod.namespace.clone(),
        "metadata.uid" => pod.uid.clone(),
        "spec.nodeName" => pod.node_name.clone(),
        "spec.serviceAccountName" => pod.service_account.clone(),
        "status.hostIP" | "status.hostIPs" => facts.host_ip.to_string(),
        "status.podIP" | "status.podIPs" => facts.pod_ip.to_string(),
        other => return Err(EnvError::Field(other.to_owned())),
    })
}

/// An amount of a container, in units of the divisor, rounded up; without a limit it is what the node has.
fn resource(pod: &Pod, own: &Container, reference: &Value, facts: NodeFacts) -> Result<String, EnvError> {
    let (name, path) = (text(&reference["containerName"]), text(&reference["resource"]));
    let bad = || EnvError::Resource { container: name.clone(), resource: path.clone() };
    let container = if name.is_empty() {
        own
    } else {
        pod.containers.iter().find(|container| container.name == name).ok_or_else(bad)?
    };
    let (group, resource) = path.split_once('.').ok_or_else(bad)?;
    if !matches!(group, "limits" | "requests") {
        return Err(bad());
    }
    let amount = &container.resources_tree[group][resource];
    let milli = match (amount.is_null(), resource, group) {
        (false, _, _) => Quantity::of_json(amount).milli(),
        (true, "cpu", "limits") => i128::from(facts.cpu_milli),
        (true, "memory", "limits") => i128::from(facts.memory_bytes) * 1000,
        (true, "cpu" | "memory" | "ephemeral-storage", _) => 0,
        _ => return Err(bad()),
    };
    let divisor = match Quantity::of_json(&reference["divisor"]).milli() {
        0 => 1000,
        divisor => divisor,
    };
    Ok((milli.div_euclid(divisor) + i128::from(milli.rem_euclid(divisor) != 0)).to_string())
}

/// Services as variables, docker-links style. Those of the pod's namespace where it wants them; the API's own always.
fn service_links(pod: &Pod, sources: &dyn Sources, vars: &mut Vars) {
    let api = sources.services("default").into_iter().find(|service| service["metadata"]["name"] == "kubernetes");
    let own = if pod.service_links { sources.services(&pod.namespace) } else { Vec::new() };
    for service in api.into_iter().chain(own) {
        let address = text(&service["spec"]["clusterIP"]);
        let ports = list(&service["spec"]["ports"]);
        // Headless Services have no address to tell of.
        let (Ok(_), Some(first)) = (address.parse::<Ipv4Addr>(), ports.first()) else { continue };
        let name = text(&service["metadata"]["name"]).to_ascii_uppercase().replace(['-', '.'], "_");
        let number = |port: &Value| port["port"].as_u64().unwrap_or(0);
        vars.set(&format!("{name}_SERVICE_HOST"), address.clone());
        vars.set(&format!("{name}_SERVICE_PORT"), number(first).to_string());
        let protocol = |port: &Value| port["protocol"].as_str().unwrap_or("TCP").to_ascii_lowercase();
        vars.set(&format!("{name}_PORT"), format!("{}://{address}:{}", protocol(first), number(first)));
        for port in ports {
            if let Some(port_name) = port["name"].as_str().filter(|name| !name.is_empty()) {
                let port_name = port_name.to_ascii_uppercase().replace('-', "_");
                vars.set(&format!("{name}_SERVICE_PORT_{port_name}"), number(port).to_string());
            }
            let (number, protocol) = (number(port), protocol(port));
            let stem = format!("{name}_PORT_{number}_{}", protocol.to_ascii_uppercase());
            vars.set(&stem, format!("{protocol}://{address}:{number}"));
            vars.set(&format!("{stem}_PROTO"), protocol);
            vars.set(&format!("{stem}_PORT"), number.to_string());
            vars.set(&format!("{stem}_ADDR"), address.clone());
        }
    }
}

/// `$(NAME)` becomes the variable's value, `$$` a dollar; a name that is not known stays as it is written
/// (upstream: `third_party/forked/golang/expansion`).
#[must_use]
pub fn expand<'a>(text: &str, lookup: &dyn Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.as_bytes().first() {
            Some(b'$') => {
                out.push('$');
                rest = &rest[1..];
            }
            Some(b'(') => match rest.find(')') {
                Some(end) => {
                    let name = &rest[1..end];
                    match lookup(name) {
                        Some(value) => out.push_str(value),
                        None => {
                            out.push_str("$(");
                            out.push_str(name);
                            out.push(')');
                        }
                    }
                    rest = &rest[end + 1..];
                }
                None => {
                    out.push_str("$(");
                    rest = &rest[1..];
                }
            },
            _ => out.push('$'),
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[derive(Default)]
    struct Fixed(BTreeMap<String, Value>);

    impl Sources for Fixed {
        fn config_map(&self, _: &str, name: &str) -> Option<&Value> {
            self.0.get(&format!("cm/{name}"))
        }
        fn secret(&self, _: &str, name: &str) -> Option<&Value> {
            self.0.get(&format!("secret/{name}"))
        }
        fn services(&self, namespace: &str) -> Vec<&Value> {
            self.0
                .iter()
                .filter(|(key, _)| key.starts_with(&format!("svc/{namespace}/")))
                .map(|(_, value)| value)
                .collect()
        }
    }

    const FACTS: NodeFacts = NodeFacts {
        pod_ip: Ipv4Addr::new(10, 42, 0, 7),
        host_ip: Ipv4Addr::new(192, 0, 2, 1),
        cpu_milli: 4000,
        memory_bytes: 8 << 30,
    };

    fn vars(container: Value, sources: &Fixed) -> Result<Vec<String>, EnvError> {
        let pod = Pod::parse(&json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"app.kubernetes.io/name": "x"}},
            "spec": {"nodeName": "node1", "containers": [container]},
        }))
        .unwrap();
        let vars = environment(&pod, &pod.containers[0], &["PATH=/bin".into(), "A=image".into()], sources, FACTS)?;
        Ok(vars
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .filter(|var| !var.starts_with("PATH=") && !var.starts_with("HOSTNAME="))
            .collect())
    }

    #[test]
    fn later_wins_and_values_refer_to_earlier_ones() {
        let env = json!([{"name": "A", "value": "own"}, {"name": "B", "value": "$(A)-$(C)-$$(A)"}, {"name": "C", "value": "late"}]);
        assert_eq!(
            vars(json!({"name": "c", "env": env}), &Fixed::default()).unwrap(),
            ["A=own", "B=own-$(C)-$(A)", "C=late"]
        );
    }

    #[test]
    fn sources() {
        let mut fixed = Fixed::default();
        fixed.0.insert("cm/conf".into(), json!({"data": {"k": "v", "other": "w"}}));
        fixed.0.insert("secret/key".into(), json!({"data": {"pw": "aGk=", "bin": "/w=="}}));
        let env = json!([
            {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "k"}}},
            {"name": "P", "valueFrom": {"secretKeyRef": {"name": "key", "key": "pw"}}},
            {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "pw", "optional": true}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app.kubernetes.io/name']"}}},
            {"name": "M", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1m"}}},
        ]);
        let container = json!({"name": "c", "env": env, "envFrom": [{"prefix": "X_", "configMapRef": {"name": "conf"}}, {"secretRef": {"name": "key"}}],
            "resources": {"requests": {"cpu": "250m"}}});
        assert_eq!(
            vars(container, &fixed).unwrap(),
            ["A=image", "X_k=v", "X_other=w", "pw=hi", "K=v", "P=hi", "IP=10.42.0.7", "L=x", "M=8192", "CPU=250"]
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let mut fixed = Fixed::default();
        fixed.0.insert("cm/conf".into(), json!({"data": {}}));
        let error = |from: Value| {
            vars(json!({"name": "c", "env": [{"name": "X", "valueFrom": from}]}), &fixed).unwrap_err().to_string()
        };
        assert_eq!(error(json!({"configMapKeyRef": {"name": "nope", "key": "k"}})), "configmap \"nope\" not found");
        assert_eq!(
            error(json!({"configMapKeyRef": {"name": "conf", "key": "k"}})),
            "couldn't find key k in ConfigMap n/conf"
        );
        assert_eq!(error(json!({"secretKeyRef": {"name": "nope", "key": "k"}})), "secret \"nope\" not found");
        assert!(error(json!({"fieldRef": {"fieldPath": "spec.nope"}})).contains("spec.nope"));
    }

    #[test]
    fn services_become_variables() {
        let mut fixed = Fixed::default();
        let ports =
            json!([{"name": "web", "port": 80, "protocol": "TCP"}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
        fixed.0.insert(
            "svc/n/my-app".into(),
            json!({"metadata": {"name": "my-app"}, "spec": {"clusterIP": "10.43.0.9", "ports": ports}}),
        );
        fixed.0.insert(
            "svc/n/headless".into(),
            json!({"metadata": {"name": "headless"}, "spec": {"clusterIP": "None", "ports": ports}}),
        );
        let found = vars(json!({"name": "c"}), &fixed).unwrap();
        for wanted in [
            "MY_APP_SERVICE_HOST=10.43.0.9",
            "MY_APP_SERVICE_PORT=80",
            "MY_APP_SERVICE_PORT_DNS=53",
            "MY_APP_PORT=tcp://10.43.0.9:80",
            "MY_APP_PORT_53_UDP=udp://10.43.0.9:53",
            "MY_APP_PORT_53_UDP_PROTO=udp",
            "MY_APP_PORT_80_TCP_ADDR=10.43.0.9",
        ] {
            assert!(found.iter().any(|var| var == wanted), "{wanted} in {found:?}");
        }
        assert!(!found.iter().any(|var| var.starts_with("HEADLESS")), "{found:?}");
    }

    #[test]
    fn expansion_as_upstream() {
        let lookup = |name: &str| match name {
            "A" => Some("1"),
            "" => Some("empty"),
            _ => None,
        };
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y", "x1y"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(B)", "$(B)"),
            ("$(A", "$(A"),
            ("$A", "$A"),
            ("$", "$"),
            ("$$", "$"),
            ("$(A)$(A)", "11"),
            ("é$(A)é", "é1é"),
            ("$()", "empty"),
        ] {
            assert_eq!(expand(text, &lookup), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_expansion(text in "[$()A-Cé ]{0,30}") {
            let _ = expand(&text, &|_| Some("v"));
            if !text.contains('$') {
                prop_assert_eq!(expand(&text, &|_| None), text);
            }
        }
    }
}
