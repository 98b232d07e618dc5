//! `coracle describe`: one object in words: what it is, how it is doing, what happened to it.

use clap::Args;
use coracle_manifests::kinds::{self, Kind};
use coracle_manifests::selector::Labels;
use coracle_manifests::time::age;
use coracle_manifests::view::list;
use serde_json::Value;

use super::get::Scope;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{self, columns, text};
use crate::resource;

/// Say in detail what an object is and what happened to it
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  coracle describe deploy/hello\n  coracle describe pod hello-5d9c-x7k2p\n\nExit codes: 0 shown, 1 failed, 2 wrong usage, 3 not found"
)]
pub struct Describe {
    /// TYPE NAME... or TYPE/NAME...
    #[arg(required = true)]
    what: Vec<String>,
    #[command(flatten)]
    scope: Scope,
    /// `json` or `yaml`: the object and its events instead of words
    #[arg(short, long, value_enum, default_value = "table")]
    output: output::Format,
}

/// Runs the verb.
///
/// # Errors
/// As documented in its help.
pub async fn run(client: &Client, describe: &Describe) -> Result<(), Failure> {
    let namespace = describe.scope.namespace.as_str();
    for target in resource::targets(&describe.what, "describe")? {
        let names = match target.name {
            Some(name) => vec![name.to_owned()],
            None => {
                let all = client.get(&resource::path(target.kind, Some(namespace), None)).await?;
                list(&all["items"])
                    .iter()
                    .filter_map(|item| item["metadata"]["name"].as_str().map(ToOwned::to_owned))
                    .collect()
            }
        };
        for name in names {
            let object = client.get(&resource::path(target.kind, Some(namespace), Some(&name))).await?;
            let events = events(client, namespace, target.kind, &object).await?;
            match describe.output {
                output::Format::Json => {
                    output::line(&output::json(&serde_json::json!({"object": object, "events": events})))
                }
                output::Format::Yaml => {
                    output::line(&output::yaml(&serde_json::json!({"object": object, "events": events})))
                }
                output::Format::Name => output::line(&resource::shown(target.kind, &name)),
                output::Format::Table | output::Format::Wide => {
                    output::raw(words(target.kind, &object, &events, crate::now_ms()).as_bytes());
                }
            }
        }
    }
    Ok(())
}

async fn events(client: &Client, namespace: &str, kind: &Kind, object: &Value) -> Result<Vec<Value>, Failure> {
    let Some(event_kind) = kinds::by_word("events") else { return Ok(Vec::new()) };
    let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
    let selector = resource::encode(&format!("involvedObject.uid={uid}"));
    let namespace = kind.namespaced.then_some(namespace);
    let answer =
        client.get(&format!("{}?fieldSelector={selector}", resource::path(event_kind, namespace, None))).await?;
    let mut events = answer["items"].as_array().cloned().unwrap_or_default();
    // Times are whole seconds; within one, as they were written.
    let written =
        |event: &Value| event["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse::<u64>().ok());
    events.sort_by_cached_key(|event| (text(&event["lastTimestamp"]), written(event)));
    Ok(events)
}

/// The words of one object.
fn words(kind: &Kind, object: &Value, events: &[Value], now: u64) -> String {
    let mut out = Words::default();
    let meta = &object["metadata"];
    out.pair("Name", &text(&meta["name"]));
    if kind.namespaced {
        out.pair("Namespace", &text(&meta["namespace"]));
    }
    out.pair("Kind", &format!("{} ({})", kind.kind, kind.api_version()));
    out.pair(
        "Created",
        &format!("{} ({} ago)", text(&meta["creationTimestamp"]), age(&text(&meta["creationTimestamp"]), now)),
    );
    if let Some(since) = meta["deletionTimestamp"].as_str() {
        out.pair("Deleting", &format!("since {since}"));
    }
    out.map("Labels", &meta["labels"]);
    out.map("Annotations", &without_bulky(&meta["annotations"]));
    for owner in list(&meta["ownerReferences"]) {
        out.pair("Owned by", &format!("{}/{}", text(&owner["kind"]), text(&owner["name"])));
    }
    match kind.kind {
        "Pod" => pod(&mut out, object, now),
        "Deployment" | "ReplicaSet" | "ReplicationController" | "StatefulSet" | "DaemonSet" => {
            workload(&mut out, object)
        }
        "Service" => service(&mut out, object),
        "Node" => node(&mut out, object),
        "ConfigMap" => out.map("Data", &object["data"]),
        "Secret" => {
            out.pair("Type", &text(&object["type"]));
            for (name, value) in object["data"].as_object().into_iter().flatten() {
                // Three of four base64 characters are bytes: a size is no secret, the value is.
                out.pair(&format!("  {name}"), &format!("{} bytes", text(value).trim_end_matches('=').len() * 3 / 4));
            }
        }
        _ => {}
    }
    conditions(&mut out, &object["status"]["conditions"], now);
    if events.is_empty() {
        out.pair("Events", "<none>");
    } else {
        out.head("Events");
        let header = ["TYPE", "REASON", "AGE", "COUNT", "MESSAGE"].map(ToOwned::to_owned);
        let rows: Vec<Vec<String>> = events
            .iter()
            .map(|event| {
                vec![
                    text(&event["type"]),
                    text(&event["reason"]),
                    age(&text(&event["lastTimestamp"]), now),
                    event["count"].as_u64().unwrap_or(1).to_string(),
                    text(&event["message"]),
                ]
            })
            .collect();
        out.block(&columns(&header, &rows));
    }
    out.text
}

fn pod(out: &mut Words, pod: &Value, now: u64) {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    out.pair("Node", &or(&text(&spec["nodeName"]), "<not placed yet>"));
    out.pair("Phase", &or(&text(&status["phase"]), "Pending"));
    if !status["reason"].is_null() {
        out.pair("Reason", &text(&status["reason"]));
    }
    if !status["message"].is_null() {
        out.pair("Message", &text(&status["message"]));
    }
    out.pair("IP", &or(&text(&status["podIP"]), "<none>"));
    out.pair("QoS class", &or(&text(&status["qosClass"]), "<none>"));
    for (title, containers, statuses) in [
        ("Init containers", "initContainers", "initContainerStatuses"),
        ("Containers", "containers", "containerStatuses"),
    ] {
        if list(&spec[containers]).is_empty() {
            continue;
        }
        out.head(title);
        for container in list(&spec[containers]) {
            let found = list(&status[statuses]).iter().find(|status| status["name"] == container["name"]);
            self::container(out, container, found.unwrap_or(&Value::Null), now);
            if found.is_some_and(|status| status["state"]["waiting"]["reason"] == "CrashLoopBackOff") {
                let (pod, name) = (text(&pod["metadata"]["name"]), text(&container["name"]));
                out.pair("    Hint", &format!("`coracle logs {pod} -c {name}` shows its last words"));
            }
        }
    }
    if !list(&spec["volumes"]).is_empty() {
        out.head("Volumes");
        for volume in list(&spec["volumes"]) {
            let what = volume.as_object().into_iter().flatten().find(|(key, _)| *key != "name");
            let what = what.map_or(String::new(), |(key, value)| {
                let name = ["name", "secretName", "path", "medium"]
                    .iter()
                    .map(|field| text(&value[*field]))
                    .find(|text| !text.is_empty());
                format!("{key} {}", name.unwrap_or_default())
            });
            out.pair(&format!("  {}", text(&volume["name"])), what.trim());
        }
    }
}

fn container(out: &mut Words, container: &Value, status: &Value, now: u64) {
    out.line(&format!("  {}:", text(&container["name"])));
    out.pair("    Image", &text(&container["image"]));
    for list_field in ["command", "args"] {
        if !list(&container[list_field]).is_empty() {
            let words: Vec<String> = list(&container[list_field]).iter().map(text).collect();
            out.pair(&format!("    {list_field}"), &words.join(" "));
        }
    }
    let ports: Vec<String> = list(&container["ports"])
        .iter()
        .map(|port| format!("{}/{}", port["containerPort"], or(&text(&port["protocol"]), "TCP")))
        .collect();
    if !ports.is_empty() {
        out.pair("    Ports", &ports.join(", "));
    }
    out.pair("    State", &state(&status["state"], now));
    if status["lastState"].as_object().is_some_and(|last| !last.is_empty()) {
        out.pair("    Last state", &state(&status["lastState"], now));
    }
    out.pair("    Ready", if status["ready"] == true { "yes" } else { "no" });
    out.pair("    Restarts", &status["restartCount"].as_u64().unwrap_or(0).to_string());
    for bound in ["requests", "limits"] {
        let values: Vec<String> = container["resources"][bound]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, value)| format!("{name} {}", text(value)))
            .collect();
        if !values.is_empty() {
            out.pair(&format!("    {bound}"), &values.join(", "));
        }
    }
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        if container[probe].is_object() {
            out.pair(&format!("    {probe}"), &container[probe].to_string());
        }
    }
    for mount in list(&container["volumeMounts"]) {
        let how = if mount["readOnly"] == true { " (read only)" } else { "" };
        out.pair("    Mount", &format!("{} from {}{how}", text(&mount["mountPath"]), text(&mount["name"])));
    }
}

/// A container state in words.
fn state(state: &Value, now: u64) -> String {
    if let Some(since) = state["running"]["startedAt"].as_str() {
        return format!("running since {since} ({})", age(since, now));
    }
    let say = |kind: &str, part: &Value| {
        let mut words = format!("{kind}: {}", or(&text(&part["reason"]), "?"));
        if let Some(code) = part["exitCode"].as_i64() {
            words.push_str(&format!(", exit code {code}"));
        }
        if let Some(message) = part["message"].as_str().filter(|message| !message.is_empty()) {
            words.push_str(&format!(" ({message})"));
        }
        words
    };
    if state["terminated"].is_object() {
        return say("ended", &state["terminated"]);
    }
    if state["waiting"].is_object() {
        return say("waiting", &state["waiting"]);
    }
    "waiting".to_owned()
}

fn workload(out: &mut Words, object: &Value) {
    let (spec, status) = (&object["spec"], &object["status"]);
    let number = |field: &str| status[field].as_u64().unwrap_or(0);
    let selector = Labels::of_pods(object).map_or_else(|error| error.to_string(), |labels| labels.to_string());
    out.pair("Selector", &or(&selector, "<none>"));
    if object["kind"] == "DaemonSet" {
        let words = format!(
            "{} eligible, {} with a pod, {} updated, {} ready, {} available, {} with a pod that should have none",
            number("desiredNumberScheduled"),
            number("currentNumberScheduled"),
            number("updatedNumberScheduled"),
            number("numberReady"),
            number("numberAvailable"),
            number("numberMisscheduled")
        );
        out.pair("Nodes", &words);
    } else {
        let words = format!(
            "{} wanted, {} there, {} updated, {} ready, {} available",
            spec["replicas"].as_u64().unwrap_or(1),
            number("replicas"),
            number("updatedReplicas"),
            number("readyReplicas"),
            number("availableReplicas")
        );
        out.pair("Replicas", &words);
    }
    for field in ["serviceName", "podManagementPolicy"] {
        if let Some(value) = spec[field].as_str() {
            out.pair(if field == "serviceName" { "Service" } else { "Pods are made" }, value);
        }
    }
    let strategy = if spec["strategy"].is_object() { &spec["strategy"] } else { &spec["updateStrategy"] };
    if let Some(kind) = strategy["type"].as_str() {
        let rolling = &strategy["rollingUpdate"];
        let mut how = vec![kind.to_owned()];
        for (field, before, after) in [
            ("maxUnavailable", "at most ", " unavailable"),
            ("maxSurge", "", " more"),
            ("partition", "from ordinal ", " on"),
        ] {
            if !rolling[field].is_null() && rolling[field] != 0 {
                how.push(format!("{before}{}{after}", text(&rolling[field])));
            }
        }
        out.pair("Strategy", &how.join(", "));
    }
    out.head("Containers");
    for container in list(&spec["template"]["spec"]["containers"]) {
        out.pair(&format!("  {}", text(&container["name"])), &text(&container["image"]));
    }
}

fn service(out: &mut Words, service: &Value) {
    let spec = &service["spec"];
    out.pair("Type", &text(&spec["type"]));
    let join = |values: &Value| list(values).iter().map(text).collect::<Vec<_>>().join(", ");
    let given: Vec<String> = list(&service["status"]["loadBalancer"]["ingress"])
        .iter()
        .map(|way| or(&text(&way["ip"]), &text(&way["hostname"])))
        .collect();
    let affinity = match text(&spec["sessionAffinity"]).as_str() {
        "ClientIP" => format!("ClientIP, {} s", text(&spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"])),
        _ => String::new(),
    };
    for (name, value) in [
        ("External name", text(&spec["externalName"])),
        ("Cluster IP", text(&spec["clusterIP"])),
        ("External IPs", join(&spec["externalIPs"])),
        ("Load balancer", given.join(", ")),
        ("External traffic", text(&spec["externalTrafficPolicy"])),
        ("Session affinity", affinity),
    ] {
        if !value.is_empty() {
            out.pair(name, &value);
        }
    }
    out.pair("Selector", &labels(&spec["selector"]));
    for port in list(&spec["ports"]) {
        let name = or(&text(&port["name"]), "<unnamed>");
        let mut words =
            format!("{name} {}/{} -> {}", text(&port["port"]), text(&port["protocol"]), text(&port["targetPort"]));
        if port["nodePort"].is_number() {
            words.push_str(&format!(", on every node {}", text(&port["nodePort"])));
        }
        out.pair("Port", &words);
    }
}

fn node(out: &mut Words, node: &Value) {
    let (spec, status) = (&node["spec"], &node["status"]);
    out.pair("Pod addresses", &text(&spec["podCIDR"]));
    out.pair("Schedulable", if spec["unschedulable"] == true { "no (cordoned)" } else { "yes" });
    for taint in list(&spec["taints"]) {
        out.pair("Taint", &format!("{}={}:{}", text(&taint["key"]), text(&taint["value"]), text(&taint["effect"])));
    }
    for address in list(&status["addresses"]) {
        out.pair(&text(&address["type"]), &text(&address["address"]));
    }
    out.map("Capacity", &status["capacity"]);
    out.map("Allocatable", &status["allocatable"]);
    out.map("System", &status["nodeInfo"]);
}

fn conditions(out: &mut Words, conditions: &Value, now: u64) {
    if list(conditions).is_empty() {
        return;
    }
    out.head("Conditions");
    let header = ["TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"].map(ToOwned::to_owned);
    let rows: Vec<Vec<String>> = list(conditions)
        .iter()
        .map(|condition| {
            vec![
                text(&condition["type"]),
                text(&condition["status"]),
                age(&text(&condition["lastTransitionTime"]), now),
                text(&condition["reason"]),
                text(&condition["message"]),
            ]
        })
        .collect();
    out.block(&columns(&header, &rows));
}

/// Text being put together, with aligned pairs.
#[derive(Default)]
struct Words {
    text: String,
}

impl Words {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn head(&mut self, title: &str) {
        self.line(&format!("{title}:"));
    }

    fn pair(&mut self, name: &str, value: &str) {
        self.line(format!("{:<20} {value}", format!("{name}:")).trim_end());
    }

    fn map(&mut self, name: &str, map: &Value) {
        for (index, (key, value)) in map.as_object().into_iter().flatten().enumerate() {
            let name = if index == 0 { format!("{name}:") } else { String::new() };
            self.line(&format!("{name:<20} {key}={}", text(value)));
        }
    }

    fn block(&mut self, block: &str) {
        for line in block.lines() {
            self.line(&format!("  {line}"));
        }
    }
}

/// Annotations without the one that repeats the whole object.
fn without_bulky(annotations: &Value) -> Value {
    let mut annotations = annotations.clone();
    if let Some(map) = annotations.as_object_mut() {
        map.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    annotations
}

fn labels(map: &Value) -> String {
    let pairs: Vec<String> =
        map.as_object().into_iter().flatten().map(|(key, value)| format!("{key}={}", text(value))).collect();
    or(&pairs.join(","), "<none>")
}

fn or(text: &str, otherwise: &str) -> String {
    if text.is_empty() { otherwise.to_owned() } else { text.to_owned() }
}
