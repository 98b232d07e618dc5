//! Pod specs: containers, volumes, probes, and what of them refers to what.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;

use super::{Found, names::shown};
use crate::problem::Reason;
use crate::quantity::Quantity;
use crate::service::{own_port, protocol};
use crate::view::{list, text};

const MOST: i64 = i32::MAX as i64;
/// What `fieldRef` may name, beside `metadata.labels['KEY']` and `metadata.annotations['KEY']`.
const FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
/// The same for files in volumes.
const FILE_FIELDS: &[&str] =
    &["metadata.name", "metadata.namespace", "metadata.uid", "metadata.labels", "metadata.annotations"];
const RESOURCES: &[&str] = &["cpu", "memory", "ephemeral-storage"];

/// What a container's check needs of its pod.
struct Pod<'a> {
    volumes: BTreeSet<&'a str>,
    host_network: bool,
    grace: i64,
}

impl Found {
    pub(super) fn pod_spec(&mut self, spec: &Value, path: &str) {
        if !self.required(&format!("{path}.containers"), &spec["containers"]) {
            return;
        }
        let pod = Pod {
            volumes: self.volumes(spec, path),
            host_network: spec["hostNetwork"] == true,
            grace: spec["terminationGracePeriodSeconds"].as_i64().unwrap_or(30),
        };
        let mut names = BTreeSet::new();
        for part in ["initContainers", "containers"] {
            for (index, container) in list(&spec[part]).iter().enumerate() {
                let at = format!("{path}.{part}[{index}]");
                let name = text(&container["name"]);
                if self.required(&format!("{at}.name"), &container["name"]) {
                    self.label(&format!("{at}.name"), name, "a name");
                    if !names.insert(name) {
                        let message = format!("two containers are called `{}`", shown(name));
                        self.add(&format!("{at}.name"), Reason::Duplicate, message, None);
                    }
                }
                self.container(container, &at, part == "initContainers", &pod);
            }
        }
        self.host_ports(spec, path);
        self.range(&format!("{path}.terminationGracePeriodSeconds"), &spec["terminationGracePeriodSeconds"], 0, MOST);
        self.range(&format!("{path}.activeDeadlineSeconds"), &spec["activeDeadlineSeconds"], 1, MOST);
        self.labels(&spec["nodeSelector"], &format!("{path}.nodeSelector"));
        for field in ["hostname", "subdomain"] {
            if !text(&spec[field]).is_empty() {
                self.label(&format!("{path}.{field}"), text(&spec[field]), "a DNS label");
            }
        }
        for field in ["nodeName", "serviceAccountName", "priorityClassName"] {
            if !text(&spec[field]).is_empty() {
                self.subdomain(&format!("{path}.{field}"), text(&spec[field]), "a name");
            }
        }
        self.dns(spec, path);
        self.tolerations(list(&spec["tolerations"]), &format!("{path}.tolerations"));
        self.node_affinity(&spec["affinity"]["nodeAffinity"], &format!("{path}.affinity.nodeAffinity"));
        for (index, alias) in list(&spec["hostAliases"]).iter().enumerate() {
            let at = format!("{path}.hostAliases[{index}]");
            self.address(&format!("{at}.ip"), text(&alias["ip"]));
            for (position, name) in list(&alias["hostnames"]).iter().enumerate() {
                self.subdomain(&format!("{at}.hostnames[{position}]"), text(name), "a host name");
            }
        }
        self.ids(&spec["securityContext"], &format!("{path}.securityContext"));
    }

    fn address(&mut self, path: &str, value: &str) {
        if value.parse::<IpAddr>().is_err() {
            self.add(path, Reason::Invalid, format!("`{}` is not an IP address", shown(value)), None);
        }
    }

    fn dns(&mut self, spec: &Value, path: &str) {
        let (config, path) = (&spec["dnsConfig"], format!("{path}.dnsConfig"));
        let servers = list(&config["nameservers"]);
        if spec["dnsPolicy"] == "None" && servers.is_empty() {
            let message = "with `dnsPolicy: None` name at least one server";
            self.add(&format!("{path}.nameservers"), Reason::Required, message, None);
        }
        if servers.len() > 3 {
            self.add(&format!("{path}.nameservers"), Reason::TooLong, "at most 3 servers", None);
        }
        for (index, server) in servers.iter().enumerate() {
            self.address(&format!("{path}.nameservers[{index}]"), text(server));
        }
        let searches = list(&config["searches"]);
        if searches.len() > 32 || searches.iter().map(|search| text(search).len() + 1).sum::<usize>() > 2049 {
            let message = "at most 32 domains of 2048 characters in all";
            self.add(&format!("{path}.searches"), Reason::TooLong, message, None);
        }
        for (index, search) in searches.iter().enumerate() {
            let domain = text(search).strip_suffix('.').unwrap_or(text(search)).replace('_', "-");
            if text(search) != "." {
                self.subdomain(&format!("{path}.searches[{index}]"), &domain, "a domain");
            }
        }
        for (index, option) in list(&config["options"]).iter().enumerate() {
            self.required(&format!("{path}.options[{index}].name"), &option["name"]);
        }
    }

    fn node_affinity(&mut self, affinity: &Value, path: &str) {
        let required = &affinity["requiredDuringSchedulingIgnoredDuringExecution"];
        if !required.is_object() {
            return;
        }
        let path = format!("{path}.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms");
        self.required(&path, &required["nodeSelectorTerms"]);
        for (index, term) in list(&required["nodeSelectorTerms"]).iter().enumerate() {
            for part in ["matchExpressions", "matchFields"] {
                for (position, asked) in list(&term[part]).iter().enumerate() {
                    self.node_requirement(asked, &format!("{path}[{index}].{part}[{position}]"), part == "matchFields");
                }
            }
        }
    }

    /// What one line of a term asks of a node: of its labels, or of its fields, of which there is one.
    fn node_requirement(&mut self, asked: &Value, path: &str, of_fields: bool) {
        let (key, operator, values) = (text(&asked["key"]), text(&asked["operator"]), list(&asked["values"]));
        let at = format!("{path}.values");
        if of_fields {
            if key != "metadata.name" {
                let message = format!("`{}` is no field of a node; supported: `metadata.name`", shown(key));
                self.add(&format!("{path}.key"), Reason::NotSupported, message, None);
            }
            if !matches!(operator, "In" | "NotIn") || values.len() != 1 {
                let message = "a field is compared by `In` or `NotIn`, with one value";
                self.add(&at, Reason::Invalid, message, None);
            }
            return;
        }
        if self.required(&format!("{path}.key"), &asked["key"]) {
            self.label_key(&format!("{path}.key"), key, "a label key");
        }
        match operator {
            "In" | "NotIn" if values.is_empty() => {
                self.add(&at, Reason::Required, "`In` and `NotIn` need values", None);
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                self.add(&at, Reason::Forbidden, "`Exists` and `DoesNotExist` take no values", None);
            }
            "Gt" | "Lt" if values.len() != 1 || text(&values[0]).parse::<i64>().is_err() => {
                self.add(&at, Reason::Invalid, "`Gt` and `Lt` take one whole number, in quotes", None);
            }
            _ => {}
        }
        for (position, value) in values.iter().enumerate() {
            self.label_value(&format!("{at}[{position}]"), text(value));
        }
    }

    fn tolerations(&mut self, tolerations: &[Value], path: &str) {
        for (index, toleration) in tolerations.iter().enumerate() {
            let at = format!("{path}[{index}]");
            let (key, exists) = (text(&toleration["key"]), toleration["operator"] == "Exists");
            if !key.is_empty() {
                self.label_key(&format!("{at}.key"), key, "a taint's key");
            } else if !exists {
                let message = "without a key the operator is `Exists`: every taint is tolerated";
                self.add(&format!("{at}.operator"), Reason::Invalid, message, None);
            }
            if exists && !text(&toleration["value"]).is_empty() {
                self.add(&format!("{at}.value"), Reason::Invalid, "`Exists` takes no value", None);
            } else {
                self.label_value(&format!("{at}.value"), text(&toleration["value"]));
            }
            if !toleration["tolerationSeconds"].is_null() && toleration["effect"] != "NoExecute" {
                let message = "goes with the effect NoExecute only";
                self.add(&format!("{at}.tolerationSeconds"), Reason::Invalid, message, None);
            }
        }
    }

    /// User and group ids of a security context.
    fn ids(&mut self, context: &Value, path: &str) {
        for field in ["runAsUser", "runAsGroup", "fsGroup"] {
            self.range(&format!("{path}.{field}"), &context[field], 0, MOST);
        }
        for (index, group) in list(&context["supplementalGroups"]).iter().enumerate() {
            self.range(&format!("{path}.supplementalGroups[{index}]"), group, 0, MOST);
        }
    }

    fn volumes<'a>(&mut self, spec: &'a Value, path: &str) -> BTreeSet<&'a str> {
        let mut names = BTreeSet::new();
        for (index, volume) in list(&spec["volumes"]).iter().enumerate() {
            let at = format!("{path}.volumes[{index}]");
            let name = text(&volume["name"]);
            if self.required(&format!("{at}.name"), &volume["name"]) {
                self.label(&format!("{at}.name"), name, "a name");
                if !names.insert(name) {
                    let message = format!("two volumes are called `{}`", shown(name));
                    self.add(&format!("{at}.name"), Reason::Duplicate, message, None);
                }
            }
            if volume.as_object().is_some_and(|map| map.len() > 2) {
                self.add(&at, Reason::Forbidden, "a volume has one source", None);
            }
            self.volume(volume, &at);
        }
        names
    }

    fn volume(&mut self, volume: &Value, at: &str) {
        for source in ["configMap", "secret", "downwardAPI", "projected"] {
            self.range(&format!("{at}.{source}.defaultMode"), &volume[source]["defaultMode"], 0, 0o777);
        }
        self.files(&volume["configMap"], "name", &format!("{at}.configMap"), &mut BTreeSet::new());
        self.files(&volume["secret"], "secretName", &format!("{at}.secret"), &mut BTreeSet::new());
        self.fields(&volume["downwardAPI"], &format!("{at}.downwardAPI"), &mut BTreeSet::new());
        let mut taken = BTreeSet::new();
        for (index, part) in list(&volume["projected"]["sources"]).iter().enumerate() {
            let at = format!("{at}.projected.sources[{index}]");
            self.one_of(part, &["configMap", "secret", "downwardAPI"], &at);
            for source in ["configMap", "secret"] {
                self.files(&part[source], "name", &format!("{at}.{source}"), &mut taken);
            }
            self.fields(&part["downwardAPI"], &format!("{at}.downwardAPI"), &mut taken);
        }
        let limit = &volume["emptyDir"]["sizeLimit"];
        if Quantity::of_json(limit).milli() < 0 {
            self.add(&format!("{at}.emptyDir.sizeLimit"), Reason::Invalid, "a size is not negative", None);
        }
        if volume["hostPath"].is_object() && self.required(&format!("{at}.hostPath.path"), &volume["hostPath"]["path"])
        {
            let host = text(&volume["hostPath"]["path"]);
            if !host.starts_with('/') || host.split('/').any(|part| part == "..") || host.contains('\0') {
                let message = "a host path is absolute and has no `..`";
                self.add(&format!("{at}.hostPath.path"), Reason::Invalid, message, None);
            }
        }
    }

    /// Files made of the keys of an object. `taken`: paths that others in the volume have.
    fn files<'a>(&mut self, tree: &'a Value, name: &str, at: &str, taken: &mut BTreeSet<&'a str>) {
        if !tree.is_object() {
            return;
        }
        if self.required(&format!("{at}.{name}"), &tree[name]) {
            self.subdomain(&format!("{at}.{name}"), text(&tree[name]), "a name");
        }
        for (index, item) in list(&tree["items"]).iter().enumerate() {
            let at = format!("{at}.items[{index}]");
            self.required(&format!("{at}.key"), &item["key"]);
            self.file(item, &at, taken);
        }
    }

    /// Files made of what the pod says of itself.
    fn fields<'a>(&mut self, tree: &'a Value, at: &str, taken: &mut BTreeSet<&'a str>) {
        for (index, item) in list(&tree["items"]).iter().enumerate() {
            let at = format!("{at}.items[{index}]");
            self.file(item, &at, taken);
            self.one_of(item, &["fieldRef", "resourceFieldRef"], &at);
            self.field_ref(item, &at, FILE_FIELDS);
            let amount = &item["resourceFieldRef"];
            if amount.is_object() {
                self.required(&format!("{at}.resourceFieldRef.containerName"), &amount["containerName"]);
            }
        }
    }

    /// Where a file is in its volume, and who may read it.
    fn file<'a>(&mut self, item: &'a Value, at: &str, taken: &mut BTreeSet<&'a str>) {
        if self.required(&format!("{at}.path"), &item["path"]) {
            let path = text(&item["path"]);
            self.inside(&format!("{at}.path"), path);
            if !taken.insert(path) {
                // Upstream's words.
                let message = format!("conflicting duplicate paths: `{}` is given twice", shown(path));
                self.add(&format!("{at}.path"), Reason::Invalid, message, None);
            }
        }
        self.range(&format!("{at}.mode"), &item["mode"], 0, 0o777);
    }

    /// A path that stays inside its volume.
    fn inside(&mut self, path: &str, value: &str) {
        if value.starts_with('/') || value.split('/').any(|part| part == "..") || value.contains('\0') {
            self.add(path, Reason::Invalid, "the path is relative, without `..`", None);
        } else if value.starts_with("..") {
            self.add(path, Reason::Invalid, "the path does not begin with `..`", None);
        }
    }

    fn container(&mut self, container: &Value, at: &str, init: bool, pod: &Pod) {
        let image = text(&container["image"]);
        if self.required(&format!("{at}.image"), &container["image"]) && image.contains(char::is_whitespace) {
            self.add(&format!("{at}.image"), Reason::Invalid, "an image's name has no space in it", None);
        }
        let sidecar = init && !container["restartPolicy"].is_null();
        if !init && !container["restartPolicy"].is_null() {
            let message = "only an init container may have a restart policy of its own";
            self.add(&format!("{at}.restartPolicy"), Reason::Forbidden, message, None);
        }
        self.ports(&container["ports"], &format!("{at}.ports"), pod.host_network);
        for (index, entry) in list(&container["env"]).iter().enumerate() {
            self.variable_entry(entry, &format!("{at}.env[{index}]"));
        }
        for (index, entry) in list(&container["envFrom"]).iter().enumerate() {
            let here = format!("{at}.envFrom[{index}]");
            if !text(&entry["prefix"]).is_empty() {
                self.variable(&format!("{here}.prefix"), text(&entry["prefix"]));
            }
            self.one_of(entry, &["configMapRef", "secretRef"], &here);
            for source in ["configMapRef", "secretRef"] {
                if entry[source].is_object() && self.required(&format!("{here}.{source}.name"), &entry[source]["name"])
                {
                    self.subdomain(&format!("{here}.{source}.name"), text(&entry[source]["name"]), "a name");
                }
            }
        }
        self.mounts(list(&container["volumeMounts"]), &format!("{at}.volumeMounts"), &pod.volumes);
        self.resources(&container["resources"], &format!("{at}.resources"));
        for probe in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
            let here = format!("{at}.{probe}");
            if container[probe].is_null() {
                continue;
            }
            if init && !sidecar {
                let message = "an init container has none: it runs to its end";
                self.add(&here, Reason::Forbidden, message, Some("`restartPolicy: Always` makes it a sidecar"));
            } else if probe == "lifecycle" {
                self.hooks(&container[probe], &here, pod.grace);
            } else {
                self.probe(&container[probe], probe, &here);
            }
        }
        self.security(&container["securityContext"], &format!("{at}.securityContext"));
    }

    /// Exactly one of some fields.
    fn one_of(&mut self, value: &Value, fields: &[&str], at: &str) {
        let given = fields.iter().filter(|field| !value[**field].is_null()).count();
        if given != 1 {
            let reason = if given == 0 { Reason::Required } else { Reason::Forbidden };
            self.add(at, reason, format!("exactly one of `{}` belongs here", fields.join("`, `")), None);
        }
    }

    fn variable_entry(&mut self, entry: &Value, here: &str) {
        if self.required(&format!("{here}.name"), &entry["name"]) {
            self.variable(&format!("{here}.name"), text(&entry["name"]));
        }
        let (from, at) = (&entry["valueFrom"], format!("{here}.valueFrom"));
        if from.is_null() {
            return;
        }
        if !text(&entry["value"]).is_empty() {
            self.add(&at, Reason::Invalid, "give `value` or `valueFrom`, not both", None);
        }
        self.one_of(from, &["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef"], &at);
        for source in ["configMapKeyRef", "secretKeyRef"] {
            let (tree, at) = (&from[source], format!("{at}.{source}"));
            if tree.is_null() {
                continue;
            }
            if self.required(&format!("{at}.name"), &tree["name"]) {
                self.subdomain(&format!("{at}.name"), text(&tree["name"]), "a name");
            }
            if self.required(&format!("{at}.key"), &tree["key"]) {
                self.config_key(&format!("{at}.key"), text(&tree["key"]));
            }
        }
        self.field_ref(from, &at, FIELDS);
    }

    /// A field of the pod, or an amount of a container.
    fn field_ref(&mut self, from: &Value, at: &str, fields: &[&str]) {
        let path = text(&from["fieldRef"]["fieldPath"]);
        if from["fieldRef"].is_object()
            && self.required(&format!("{at}.fieldRef.fieldPath"), &from["fieldRef"]["fieldPath"])
        {
            let key = ["metadata.labels", "metadata.annotations"].iter().find_map(|map| path.strip_prefix(map));
            let subscript = key.is_some_and(|key| key.len() > 4 && key.starts_with("['") && key.ends_with("']"));
            if !subscript && !fields.contains(&path) {
                let message = format!(
                    "`{}` is not a field to take; there are {}, metadata.labels['KEY'], metadata.annotations['KEY']",
                    shown(path),
                    fields.join(", ")
                );
                self.add(&format!("{at}.fieldRef.fieldPath"), Reason::NotSupported, message, None);
            }
        }
        if from["resourceFieldRef"].is_object() {
            let (here, resource) =
                (format!("{at}.resourceFieldRef.resource"), text(&from["resourceFieldRef"]["resource"]));
            let known = resource
                .split_once('.')
                .is_some_and(|(bound, name)| ["limits", "requests"].contains(&bound) && RESOURCES.contains(&name));
            if self.required(&here, &from["resourceFieldRef"]["resource"]) && !known {
                let message =
                    format!("`{}` is neither limits nor requests of {}", shown(resource), RESOURCES.join(", "));
                self.add(&here, Reason::NotSupported, message, Some("such as `limits.cpu`"));
            }
        }
    }

    fn mounts(&mut self, mounts: &[Value], at: &str, volumes: &BTreeSet<&str>) {
        let mut paths = BTreeSet::new();
        for (index, mount) in mounts.iter().enumerate() {
            let here = format!("{at}[{index}]");
            let name = text(&mount["name"]);
            if self.required(&format!("{here}.name"), &mount["name"]) && !volumes.contains(name) {
                let near = coracle_base::nearest(name, volumes.iter().copied());
                let hint =
                    near.map_or_else(|| "add it to `volumes`".to_owned(), |near| format!("did you mean `{near}`?"));
                let message = format!("the pod has no volume `{}`", shown(name));
                self.add(&format!("{here}.name"), Reason::Invalid, message, Some(&hint));
            }
            let (target, path) = (text(&mount["mountPath"]), format!("{here}.mountPath"));
            if self.required(&path, &mount["mountPath"]) {
                if target.contains([':', '\0']) || !target.starts_with('/') || target.trim_matches('/').is_empty() {
                    self.add(&path, Reason::Invalid, "a mount path is absolute, is not `/`, and has no `:`", None);
                }
                if !paths.insert(target.trim_end_matches('/')) {
                    let message = format!("two volumes are mounted at {}", shown(target));
                    self.add(&path, Reason::Duplicate, message, None);
                }
            }
            self.inside(&format!("{here}.subPath"), text(&mount["subPath"]));
            self.inside(&format!("{here}.subPathExpr"), text(&mount["subPathExpr"]));
            if !text(&mount["subPath"]).is_empty() && !text(&mount["subPathExpr"]).is_empty() {
                let message = "subPathExpr and subPath are mutually exclusive";
                self.add(&format!("{here}.subPathExpr"), Reason::Invalid, message, None);
            }
        }
    }

    fn ports(&mut self, value: &Value, at: &str, host_network: bool) {
        let mut names = BTreeSet::new();
        for (index, port) in list(value).iter().enumerate() {
            let here = format!("{at}[{index}]");
            self.host_port(port, &here, host_network);
            if self.required(&format!("{here}.containerPort"), &port["containerPort"]) {
                self.range(&format!("{here}.containerPort"), &port["containerPort"], 1, 65535);
            }
            let name = text(&port["name"]);
            if !name.is_empty() {
                self.port_name(&format!("{here}.name"), name);
                if !names.insert(name) {
                    let message = format!("two ports are called `{}`", shown(name));
                    self.add(&format!("{here}.name"), Reason::Duplicate, message, None);
                }
            }
        }
    }

    /// A port of the node that leads to the container.
    fn host_port(&mut self, port: &Value, here: &str, host_network: bool) {
        let (at, host) = (format!("{here}.hostPort"), port["hostPort"].as_i64().unwrap_or(0));
        self.range(&at, &port["hostPort"], 0, 65535);
        if host != 0 && host_network && port["containerPort"].as_i64() != Some(host) {
            let message = "with `hostNetwork: true` it is the same as containerPort";
            self.add(&at, Reason::Invalid, message, None);
        }
        if !host_network && let Some(own) = own_port(protocol(port), host) {
            self.add(&at, Reason::Unsupported, format!("{host} cannot be used: it is the port of {own}"), None);
        }
        let address = text(&port["hostIP"]);
        if address.is_empty() {
            return;
        }
        let path = format!("{here}.hostIP");
        match address.parse::<Ipv4Addr>() {
            Err(_) => {
                let message = format!("`{}` is not an IPv4 address", shown(address));
                self.add(&path, Reason::Invalid, message, None);
            }
            Ok(parsed) if parsed.is_loopback() && !host_network => {
                let hint = "name an address of the node, or leave the field out";
                self.add(&path, Reason::Unsupported, "addresses of the loopback are not supported yet", Some(hint));
            }
            Ok(_) => {}
        }
    }

    /// No two containers have one port of the node (upstream: `checkHostPortConflicts`).
    fn host_ports(&mut self, spec: &Value, at: &str) {
        let mut taken = BTreeSet::new();
        for part in ["initContainers", "containers"] {
            for (number, container) in list(&spec[part]).iter().enumerate() {
                for (index, port) in list(&container["ports"]).iter().enumerate() {
                    let host = port["hostPort"].as_i64().unwrap_or(0);
                    // Init containers run one after the other.
                    let alone = part == "initContainers" && container["restartPolicy"] != "Always";
                    if host == 0 || alone || taken.insert((text(&port["hostIP"]), protocol(port), host)) {
                        continue;
                    }
                    let path = format!("{at}.{part}[{number}].ports[{index}].hostPort");
                    self.add(&path, Reason::Duplicate, format!("{host} is given twice for this protocol"), None);
                }
            }
        }
    }

    fn resources(&mut self, resources: &Value, at: &str) {
        for bound in ["limits", "requests"] {
            for (name, value) in resources[bound].as_object().into_iter().flatten() {
                let here = format!("{at}.{bound}.{}", shown(name));
                if !RESOURCES.contains(&name.as_str()) {
                    let message = format!("the resource `{}` is not supported yet", shown(name));
                    self.add(&here, Reason::Unsupported, message, Some("supported: cpu, memory, ephemeral-storage"));
                }
                if Quantity::of_json(value).milli() < 0 {
                    self.add(&here, Reason::Invalid, "an amount is not negative", None);
                }
            }
        }
        for (name, request) in resources["requests"].as_object().into_iter().flatten() {
            let limit = &resources["limits"][name];
            if !limit.is_null() && Quantity::of_json(request) > Quantity::of_json(limit) {
                let (request, limit) = (shown(text(request)), shown(text(limit)));
                let message = format!("the request {request} is above the limit {limit}");
                self.add(&format!("{at}.requests.{}", shown(name)), Reason::Invalid, message, None);
            }
        }
    }

    fn probe(&mut self, probe: &Value, kind: &str, at: &str) {
        self.handler(probe, &["httpGet", "tcpSocket", "exec", "grpc"], at);
        self.range(&format!("{at}.initialDelaySeconds"), &probe["initialDelaySeconds"], 0, MOST);
        for field in
            ["periodSeconds", "timeoutSeconds", "successThreshold", "failureThreshold", "terminationGracePeriodSeconds"]
        {
            self.range(&format!("{at}.{field}"), &probe[field], 1, MOST);
        }
        if kind != "readinessProbe" && probe["successThreshold"].as_i64().is_some_and(|threshold| threshold != 1) {
            self.add(&format!("{at}.successThreshold"), Reason::Invalid, "must be 1 for this probe", None);
        }
        if kind == "readinessProbe" && !probe["terminationGracePeriodSeconds"].is_null() {
            let message = "a readiness probe ends nothing";
            self.add(&format!("{at}.terminationGracePeriodSeconds"), Reason::Forbidden, message, None);
        }
    }

    fn hooks(&mut self, lifecycle: &Value, at: &str, grace: i64) {
        for hook in ["preStop", "postStart"] {
            let (handler, at) = (&lifecycle[hook], format!("{at}.{hook}"));
            if handler.is_null() {
                continue;
            }
            self.handler(handler, &["httpGet", "exec", "sleep", "tcpSocket"], &at);
            self.range(&format!("{at}.sleep.seconds"), &handler["sleep"]["seconds"], 0, grace.max(1));
        }
    }

    /// What a probe or a hook does: one thing, completely told.
    fn handler(&mut self, handler: &Value, kinds: &[&str], at: &str) {
        self.one_of(handler, kinds, at);
        for kind in ["httpGet", "tcpSocket"] {
            if handler[kind].is_object() && self.required(&format!("{at}.{kind}.port"), &handler[kind]["port"]) {
                self.port(&format!("{at}.{kind}.port"), &handler[kind]["port"]);
            }
        }
        for (index, header) in list(&handler["httpGet"]["httpHeaders"]).iter().enumerate() {
            let (here, name) = (format!("{at}.httpGet.httpHeaders[{index}]"), text(&header["name"]));
            let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            if self.required(&format!("{here}.name"), &header["name"]) && !name.bytes().all(token) {
                let message = format!("`{}` is not a header's name", shown(name));
                self.add(&format!("{here}.name"), Reason::Invalid, message, None);
            }
            if text(&header["value"]).contains(['\r', '\n', '\0']) {
                self.add(&format!("{here}.value"), Reason::Invalid, "a header's value is one line", None);
            }
        }
        if handler["grpc"].is_object() && self.required(&format!("{at}.grpc.port"), &handler["grpc"]["port"]) {
            self.range(&format!("{at}.grpc.port"), &handler["grpc"]["port"], 1, 65535);
        }
        if handler["exec"].is_object() {
            self.required(&format!("{at}.exec.command"), &handler["exec"]["command"]);
        }
    }

    fn security(&mut self, context: &Value, at: &str) {
        self.ids(context, at);
        let admin = |name: &Value| matches!(text(name).to_ascii_uppercase().as_str(), "SYS_ADMIN" | "CAP_SYS_ADMIN");
        let admin = list(&context["capabilities"]["add"]).iter().any(admin);
        if context["allowPrivilegeEscalation"] == false && (context["privileged"] == true || admin) {
            let message = "cannot be false for a container that is privileged or has SYS_ADMIN";
            self.add(&format!("{at}.allowPrivilegeEscalation"), Reason::Invalid, message, None);
        }
    }
}
