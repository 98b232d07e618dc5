//! A Pod as the node acts on it: parsed once from the object's tree, with upstream's defaults where a field is absent.

use std::collections::BTreeMap;

use base64::Engine as _;
use coracle_base::Millis;
use coracle_manifests::quantity::Quantity;
use serde_json::Value;

/// Why an object cannot be run as a pod. The door refuses such objects; a node still checks what it is given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PodError {
    /// A field that must be there is not.
    #[error("the pod has no {0}")]
    Missing(&'static str),
    /// A name that would become a path is not a name.
    #[error("{field} `{value}` is not a name")]
    Name {
        /// Which field.
        field: &'static str,
        /// What it says.
        value: String,
    },
    /// Two containers or volumes of one name.
    #[error("{0} `{1}` is there twice")]
    Twice(&'static str, String),
}

/// The annotation of a pod that may run only while its node holds a lease. Anything but `true` is off.
pub const FENCED: &str = "coracle.dev/fenced";

/// When an ended container is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Whatever its exit code.
    Always,
    /// When its exit code is not 0.
    OnFailure,
    /// Never.
    Never,
}

/// Which of the three sorts a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Runs to its end before the next is started.
    Init,
    /// An init container with `restartPolicy: Always`: started in its turn, then kept running.
    Sidecar,
    /// An ordinary container.
    App,
}

/// The limit of what upstream calls a quality-of-service class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qos {
    /// Every container has equal requests and limits for CPU and memory.
    Guaranteed,
    /// Something is asked for.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl Qos {
    /// As in `status.qosClass`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// A port given by number or by the name of a container port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortRef {
    /// A number.
    Number(u16),
    /// A name.
    Name(String),
}

/// What is done to a container from outside: by a probe or a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handler {
    /// `GET`, 200 to 399 is success.
    Http {
        /// Over TLS; any certificate will do.
        tls: bool,
        /// Where; empty = the pod's address.
        host: String,
        /// Which port.
        port: PortRef,
        /// Path and query.
        path: String,
        /// More headers.
        headers: Vec<(String, String)>,
    },
    /// A connection that opens is success.
    Tcp {
        /// Where; empty = the pod's address.
        host: String,
        /// Which port.
        port: PortRef,
    },
    /// gRPC's health service says that it serves (probes only).
    Grpc {
        /// Which port.
        port: u16,
        /// Of which service it is asked; empty = of the server.
        service: String,
    },
    /// A command in the container; exit code 0 is success.
    Exec(Vec<String>),
    /// A pause (hooks only).
    Sleep(Millis),
}

/// One probe of a container. Times in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What is asked.
    pub handler: Handler,
    /// From the container's start to the first try.
    pub initial_delay_ms: Millis,
    /// Between tries.
    pub period_ms: Millis,
    /// For one try.
    pub timeout_ms: Millis,
    /// Successes in a row that count as one.
    pub success_threshold: u32,
    /// Failures in a row that count as one.
    pub failure_threshold: u32,
    /// Grace of the kill a failed probe causes, where it differs from the pod's.
    pub grace_ms: Option<Millis>,
}

/// Amounts of one container, absent = not said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resources {
    /// In thousandths of a core.
    pub cpu_request_milli: Option<u64>,
    /// In thousandths of a core.
    pub cpu_limit_milli: Option<u64>,
    /// In bytes.
    pub memory_request: Option<u64>,
    /// In bytes.
    pub memory_limit: Option<u64>,
}

/// What a container may do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[allow(clippy::struct_excessive_bools)]
pub struct Security {
    /// The user id, over the image's.
    pub run_as_user: Option<u32>,
    /// The group id, over the image's.
    pub run_as_group: Option<u32>,
    /// Refuse to run as uid 0.
    pub run_as_non_root: bool,
    /// Nothing in the image may be written.
    pub read_only_root: bool,
    /// Whether `no_new_privs` stays off.
    pub allow_escalation: bool,
    /// All capabilities, all devices, nothing masked.
    pub privileged: bool,
    /// Every system call: `seccompProfile: {type: Unconfined}`.
    pub seccomp_unconfined: bool,
    /// Capabilities added, without `CAP_`.
    pub add: Vec<String>,
    /// Capabilities dropped, without `CAP_`.
    pub drop: Vec<String>,
}

/// A volume in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeMount {
    /// Which volume.
    pub volume: String,
    /// Where in the container.
    pub path: String,
    /// Not writable.
    pub read_only: bool,
    /// A path inside the volume, or empty.
    pub sub_path: String,
    /// The same with `$(VAR)` of the container's environment in it; or empty.
    pub sub_path_expr: String,
}

/// A key of a `ConfigMap` or Secret as a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyFile {
    /// The key.
    pub key: String,
    /// The file below the mount.
    pub path: String,
    /// Its mode, where it differs from the volume's.
    pub mode: Option<u32>,
}

/// Where a volume comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeSource {
    /// Files made of objects and of what the pod says of itself: `configMap`, `secret`, `downwardAPI`, `projected`.
    Files {
        /// What they are made of. Of two files at one path the later one counts.
        parts: Vec<Part>,
        /// Mode of the files that have none of their own.
        mode: u32,
        /// Secrets do not touch the disk.
        memory: bool,
    },
    /// An empty directory that lives as long as the pod.
    EmptyDir {
        /// In memory.
        memory: bool,
        /// In bytes.
        size_limit: Option<u64>,
    },
    /// A path of the node.
    HostPath {
        /// Which.
        path: String,
        /// `Directory`, `DirectoryOrCreate`, `File`, ..., or empty = anything.
        kind: String,
    },
}

/// What files of a volume are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Keys of a `ConfigMap`.
    ConfigMap(Keys),
    /// Keys of a Secret.
    Secret(Keys),
    /// Fields of the pod itself.
    Fields(Vec<FieldFile>),
}

/// Keys of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// Its name.
    pub name: String,
    /// Which keys; empty = all.
    pub items: Vec<KeyFile>,
    /// May be missing.
    pub optional: bool,
}

/// A field of the pod as a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldFile {
    /// Where in the volume.
    pub path: String,
    /// Its mode.
    pub mode: Option<u32>,
    /// `fieldRef` or `resourceFieldRef`.
    pub from: Value,
}

/// A volume of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Where it comes from.
    pub source: VolumeSource,
}

/// A named or numbered port of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name, or empty.
    pub name: String,
    /// Its number.
    pub number: u16,
    /// `TCP` or `UDP`.
    pub protocol: String,
}

/// A container of the pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Which sort.
    pub role: Role,
    /// The image's name.
    pub image: String,
    /// `Always`, `IfNotPresent`, `Never`.
    pub pull_policy: String,
    /// Over the image's entrypoint.
    pub command: Vec<String>,
    /// Over the image's command.
    pub args: Vec<String>,
    /// Over the image's, or empty.
    pub working_dir: String,
    /// Ports.
    pub ports: Vec<Port>,
    /// `env`, as written.
    pub env: Vec<Value>,
    /// `envFrom`, as written.
    pub env_from: Vec<Value>,
    /// Amounts.
    pub resources: Resources,
    /// `resources`, as written: for `resourceFieldRef`.
    pub resources_tree: Value,
    /// Volumes.
    pub mounts: Vec<VolumeMount>,
    /// Restarts it when it fails.
    pub liveness: Option<Probe>,
    /// Takes it out of Services when it fails.
    pub readiness: Option<Probe>,
    /// Holds back the other two until it succeeds.
    pub startup: Option<Probe>,
    /// Before the stop signal.
    pub pre_stop: Option<Handler>,
    /// Hook after the start: nothing counts on the container before it has ended.
    pub post_start: Option<Handler>,
    /// Over the image's stop signal.
    pub stop_signal: Option<String>,
    /// What it may do.
    pub security: Security,
    /// Where it may leave its last words.
    pub message_path: String,
    /// Whether the log stands in for last words that are missing after a failure.
    pub message_from_log: bool,
}

impl Container {
    /// The number of a port.
    #[must_use]
    pub fn port(&self, port: &PortRef) -> Option<u16> {
        match port {
            PortRef::Number(number) => Some(*number),
            PortRef::Name(name) => self.ports.iter().find(|port| port.name == *name).map(|port| port.number),
        }
    }
}

/// How the pod is to be ended, when it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deletion {
    /// From the moment the node sees it.
    pub grace_ms: Millis,
}

/// A pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Uid: what tells it from an earlier pod of its name.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// The node it is bound to.
    pub node_name: String,
    /// Service account, `default` when not said.
    pub service_account: String,
    /// Host name.
    pub hostname: String,
    /// Subdomain, or empty.
    pub subdomain: String,
    /// What becomes of ended containers.
    pub restart_policy: RestartPolicy,
    /// Between the stop signal and the kill.
    pub grace_ms: Millis,
    /// From its start to its end by force.
    pub active_deadline_ms: Option<Millis>,
    /// It lives in the node's network namespace.
    pub host_network: bool,
    /// `ClusterFirst`, `Default`, `None`, `ClusterFirstWithHostNet`.
    pub dns_policy: String,
    /// `dnsConfig`, as written.
    pub dns_config: Value,
    /// Lines for `/etc/hosts`: address, names.
    pub host_aliases: Vec<(String, Vec<String>)>,
    /// Whether Services become environment variables.
    pub service_links: bool,
    /// More groups of every process.
    pub supplemental_groups: Vec<u32>,
    /// The group that owns the volumes.
    pub fs_group: Option<u32>,
    /// Volumes.
    pub volumes: Vec<Volume>,
    /// Init containers and sidecars in their order, then the others.
    pub containers: Vec<Container>,
    /// Set once somebody deleted it.
    pub deletion: Option<Deletion>,
    /// Its owner wants it to run only while its node holds a lease: annotation `coracle.dev/fenced: "true"`.
    pub fenced: bool,
    /// `status.phase` in the object: an ended pod is not run again.
    pub recorded_phase: String,
    /// `status.containerStatuses[].restartCount` in the object, by container.
    pub recorded_restarts: BTreeMap<String, u32>,
}

impl Pod {
    /// Reads a Pod object.
    ///
    /// # Errors
    /// It cannot be run: it has no name or container, or a name that is none.
    pub fn parse(object: &Value) -> Result<Self, PodError> {
        let meta = &object["metadata"];
        let spec = &object["spec"];
        let name = text(&meta["name"]);
        if name.is_empty() {
            return Err(PodError::Missing("name"));
        }
        if text(&meta["uid"]).is_empty() {
            return Err(PodError::Missing("uid"));
        }
        for (field, value) in [
            ("metadata.name", &name),
            ("metadata.namespace", &text(&meta["namespace"])),
            ("metadata.uid", &text(&meta["uid"])),
        ] {
            check_name(field, value)?;
        }
        let mut containers = Vec::new();
        for tree in list(&spec["initContainers"]) {
            let role = if tree["restartPolicy"] == "Always" { Role::Sidecar } else { Role::Init };
            containers.push(container(tree, role, spec)?);
        }
        let inits = containers.len();
        for tree in list(&spec["containers"]) {
            containers.push(container(tree, Role::App, spec)?);
        }
        if containers.len() == inits {
            return Err(PodError::Missing("container"));
        }
        let mut volumes: Vec<Volume> = list(&spec["volumes"]).iter().map(volume).collect::<Result<_, _>>()?;
        if containers.len() > 1 {
            volumes.extend(share_memory(&mut containers));
        }
        unique("container", containers.iter().map(|container| &container.name))?;
        unique("volume", volumes.iter().map(|volume| &volume.name))?;
        let hostname = text(&spec["hostname"]);
        // A host name has at most 63 characters; upstream cuts the pod's name and then trims what may not stand last.
        let cut = name.get(..63).unwrap_or(&name).trim_end_matches(['-', '.']).to_owned();
        let security = &spec["securityContext"];
        Ok(Self {
            hostname: if hostname.is_empty() { cut } else { hostname },
            namespace: text(&meta["namespace"]),
            uid: text(&meta["uid"]),
            labels: map(&meta["labels"]),
            annotations: map(&meta["annotations"]),
            fenced: meta["annotations"][FENCED] == "true",
            node_name: text(&spec["nodeName"]),
            service_account: or(text(&spec["serviceAccountName"]), "default"),
            subdomain: text(&spec["subdomain"]),
            restart_policy: match spec["restartPolicy"].as_str() {
                Some("Never") => RestartPolicy::Never,
                Some("OnFailure") => RestartPolicy::OnFailure,
                _ => RestartPolicy::Always,
            },
            grace_ms: seconds(&spec["terminationGracePeriodSeconds"]).unwrap_or(30_000),
            active_deadline_ms: seconds(&spec["activeDeadlineSeconds"]),
            host_network: spec["hostNetwork"] == true,
            dns_policy: or(text(&spec["dnsPolicy"]), "ClusterFirst"),
            dns_config: spec["dnsConfig"].clone(),
            host_aliases: list(&spec["hostAliases"])
                .iter()
                .map(|alias| (text(&alias["ip"]), list(&alias["hostnames"]).iter().map(text).collect()))
                .collect(),
            service_links: spec["enableServiceLinks"] != false,
            supplemental_groups: list(&security["supplementalGroups"]).iter().filter_map(id).collect(),
            fs_group: id(&security["fsGroup"]),
            volumes,
            containers,
            deletion: (!meta["deletionTimestamp"].is_null())
                .then(|| Deletion { grace_ms: seconds(&meta["deletionGracePeriodSeconds"]).unwrap_or(30_000) }),
            recorded_phase: text(&object["status"]["phase"]),
            recorded_restarts: list(&object["status"]["containerStatuses"])
                .iter()
                .chain(list(&object["status"]["initContainerStatuses"]))
                .map(|status| {
                    let restarts = status["restartCount"].as_u64().unwrap_or(0);
                    (text(&status["name"]), u32::try_from(restarts).unwrap_or(u32::MAX))
                })
                .collect(),
            name,
        })
    }

    /// Its class, from requests and limits of every container (upstream: `pkg/apis/core/v1/helper/qos`).
    #[must_use]
    pub fn qos(&self) -> Qos {
        let asks = |container: &Container| {
            let resources = container.resources;
            [resources.cpu_request_milli, resources.cpu_limit_milli, resources.memory_request, resources.memory_limit]
                .iter()
                .any(|amount| amount.is_some_and(|amount| amount > 0))
        };
        let equal = |container: &Container| {
            let resources = container.resources;
            let both = |request: Option<u64>, limit: Option<u64>| {
                limit.is_some_and(|limit| limit > 0 && request.is_none_or(|request| request == limit))
            };
            both(resources.cpu_request_milli, resources.cpu_limit_milli)
                && both(resources.memory_request, resources.memory_limit)
        };
        if !self.containers.iter().any(asks) {
            Qos::BestEffort
        } else if self.containers.iter().all(equal) {
            Qos::Guaranteed
        } else {
            Qos::Burstable
        }
    }
}

fn container(tree: &Value, role: Role, spec: &Value) -> Result<Container, PodError> {
    let name = text(&tree["name"]);
    check_name("containers[].name", &name)?;
    let lifecycle = &tree["lifecycle"];
    Ok(Container {
        role,
        image: text(&tree["image"]),
        pull_policy: or(text(&tree["imagePullPolicy"]), "IfNotPresent"),
        command: list(&tree["command"]).iter().map(text).collect(),
        args: list(&tree["args"]).iter().map(text).collect(),
        working_dir: text(&tree["workingDir"]),
        ports: list(&tree["ports"])
            .iter()
            .filter_map(|port| {
                Some(Port {
                    name: text(&port["name"]),
                    number: u16::try_from(port["containerPort"].as_u64()?).ok()?,
                    protocol: or(text(&port["protocol"]), "TCP"),
                })
            })
            .collect(),
        env: list(&tree["env"]).to_vec(),
        env_from: list(&tree["envFrom"]).to_vec(),
        resources: resources(&tree["resources"]),
        resources_tree: tree["resources"].clone(),
        mounts: list(&tree["volumeMounts"])
            .iter()
            .map(|mount| VolumeMount {
                volume: text(&mount["name"]),
                path: text(&mount["mountPath"]),
                read_only: mount["readOnly"] == true,
                sub_path: text(&mount["subPath"]),
                sub_path_expr: text(&mount["subPathExpr"]),
            })
            .collect(),
        liveness: probe(&tree["livenessProbe"]),
        readiness: probe(&tree["readinessProbe"]),
        startup: probe(&tree["startupProbe"]),
        pre_stop: handler(&lifecycle["preStop"]),
        post_start: handler(&lifecycle["postStart"]),
        stop_signal: lifecycle["stopSignal"].as_str().map(ToOwned::to_owned),
        security: security(&tree["securityContext"], &spec["securityContext"]),
        message_path: or(text(&tree["terminationMessagePath"]), "/dev/termination-log"),
        message_from_log: tree["terminationMessagePolicy"] == "FallbackToLogsOnError",
        name,
    })
}

fn security(own: &Value, pod: &Value) -> Security {
    let either = |field: &str| if own[field].is_null() { &pod[field] } else { &own[field] };
    let names = |list_of: &Value| -> Vec<String> {
        list(list_of)
            .iter()
            .map(|name| {
                let upper = text(name).to_ascii_uppercase();
                upper.strip_prefix("CAP_").map(ToOwned::to_owned).unwrap_or(upper)
            })
            .collect()
    };
    let privileged = own["privileged"] == true;
    Security {
        run_as_user: id(either("runAsUser")),
        run_as_group: id(either("runAsGroup")),
        run_as_non_root: *either("runAsNonRoot") == true,
        read_only_root: own["readOnlyRootFilesystem"] == true,
        allow_escalation: privileged || own["allowPrivilegeEscalation"] != false,
        privileged,
        seccomp_unconfined: either("seccompProfile")["type"] == "Unconfined",
        add: names(&own["capabilities"]["add"]),
        drop: names(&own["capabilities"]["drop"]),
    }
}

fn resources(tree: &Value) -> Resources {
    let amount = |group: &str, name: &str, milli: bool| {
        let value = &tree[group][name];
        if value.is_null() {
            return None;
        }
        let quantity = Quantity::of_json(value);
        u64::try_from(if milli { quantity.milli() } else { quantity.value() }).ok()
    };
    let (cpu_limit_milli, memory_limit) = (amount("limits", "cpu", true), amount("limits", "memory", false));
    Resources {
        cpu_request_milli: amount("requests", "cpu", true).or(cpu_limit_milli),
        cpu_limit_milli,
        memory_request: amount("requests", "memory", false).or(memory_limit),
        memory_limit,
    }
}

fn probe(tree: &Value) -> Option<Probe> {
    let number = |field: &str, default: u64| tree[field].as_u64().unwrap_or(default);
    let threshold = |field: &str, default: u64| u32::try_from(number(field, default)).unwrap_or(u32::MAX).max(1);
    Some(Probe {
        handler: handler(tree)?,
        initial_delay_ms: number("initialDelaySeconds", 0) * 1000,
        period_ms: number("periodSeconds", 10).max(1) * 1000,
        timeout_ms: number("timeoutSeconds", 1).max(1) * 1000,
        success_threshold: threshold("successThreshold", 1),
        failure_threshold: threshold("failureThreshold", 3),
        grace_ms: seconds(&tree["terminationGracePeriodSeconds"]),
    })
}

fn handler(tree: &Value) -> Option<Handler> {
    let port = |value: &Value| match value.as_u64() {
        Some(number) => u16::try_from(number).ok().map(PortRef::Number),
        None => {
            value.as_str().map(|name| name.parse().map_or_else(|_| PortRef::Name(name.to_owned()), PortRef::Number))
        }
    };
    if tree["exec"].is_object() {
        return Some(Handler::Exec(list(&tree["exec"]["command"]).iter().map(text).collect()));
    }
    if let Some(get) = tree.get("httpGet").filter(|get| get.is_object()) {
        return Some(Handler::Http {
            tls: get["scheme"] == "HTTPS",
            host: text(&get["host"]),
            port: port(&get["port"])?,
            path: or(text(&get["path"]), "/"),
            headers: list(&get["httpHeaders"])
                .iter()
                .map(|header| (text(&header["name"]), text(&header["value"])))
                .collect(),
        });
    }
    if let Some(socket) = tree.get("tcpSocket").filter(|socket| socket.is_object()) {
        return Some(Handler::Tcp { host: text(&socket["host"]), port: port(&socket["port"])? });
    }
    if tree["grpc"].is_object() {
        let port = tree["grpc"]["port"].as_u64().and_then(|port| u16::try_from(port).ok())?;
        return Some(Handler::Grpc { port, service: text(&tree["grpc"]["service"]) });
    }
    if tree["sleep"].is_object() {
        return Some(Handler::Sleep(seconds(&tree["sleep"]["seconds"]).unwrap_or(0)));
    }
    None
}

fn volume(tree: &Value) -> Result<Volume, PodError> {
    let name = text(&tree["name"]);
    check_name("volumes[].name", &name)?;
    let files = |source: &Value, parts: Vec<Part>| VolumeSource::Files {
        memory: parts.iter().any(|part| matches!(part, Part::Secret(_))),
        mode: mode(&source["defaultMode"]).unwrap_or(0o644),
        parts,
    };
    let source = if let Some(source) = tree.get("configMap").filter(|source| source.is_object()) {
        files(source, vec![Part::ConfigMap(keys(source, "name"))])
    } else if let Some(source) = tree.get("secret").filter(|source| source.is_object()) {
        files(source, vec![Part::Secret(keys(source, "secretName"))])
    } else if let Some(source) = tree.get("downwardAPI").filter(|source| source.is_object()) {
        files(source, vec![fields(source)])
    } else if let Some(source) = tree.get("projected").filter(|source| source.is_object()) {
        files(source, list(&source["sources"]).iter().filter_map(part).collect())
    } else if tree["hostPath"].is_object() {
        VolumeSource::HostPath { path: text(&tree["hostPath"]["path"]), kind: text(&tree["hostPath"]["type"]) }
    } else {
        let limit = &tree["emptyDir"]["sizeLimit"];
        VolumeSource::EmptyDir {
            memory: tree["emptyDir"]["medium"] == "Memory",
            size_limit: (!limit.is_null()).then(|| u64::try_from(Quantity::of_json(limit).value()).unwrap_or(0)),
        }
    };
    Ok(Volume { name, source })
}

fn keys(source: &Value, name: &str) -> Keys {
    let item = |item: &Value| KeyFile { key: text(&item["key"]), path: text(&item["path"]), mode: mode(&item["mode"]) };
    Keys {
        name: text(&source[name]),
        items: list(&source["items"]).iter().map(item).collect(),
        optional: source["optional"] == true,
    }
}

fn fields(source: &Value) -> Part {
    let item = |item: &Value| FieldFile { path: text(&item["path"]), mode: mode(&item["mode"]), from: item.clone() };
    Part::Fields(list(&source["items"]).iter().map(item).collect())
}

/// One source of a projected volume.
fn part(tree: &Value) -> Option<Part> {
    if tree["configMap"].is_object() {
        return Some(Part::ConfigMap(keys(&tree["configMap"], "name")));
    }
    if tree["secret"].is_object() {
        return Some(Part::Secret(keys(&tree["secret"], "name")));
    }
    tree["downwardAPI"].is_object().then(|| fields(&tree["downwardAPI"]))
}

/// The size of `/dev/shm` (as everywhere).
const SHARED_MEMORY_BYTES: u64 = 64 << 20;

/// Containers of one pod share `/dev/shm`, as they share their IPC namespace: POSIX shared memory is files there. A pod of one
/// container needs no volume for that, and a container that mounts its own has asked for it.
fn share_memory(containers: &mut [Container]) -> Option<Volume> {
    // No name of a user's begins with a dot.
    let name = ".shm";
    let mut sharing = 0;
    for container in containers {
        if container.mounts.iter().all(|mount| mount.path.trim_end_matches('/') != "/dev/shm") {
            container.mounts.push(VolumeMount {
                volume: name.to_owned(),
                path: "/dev/shm".to_owned(),
                read_only: false,
                sub_path: String::new(),
                sub_path_expr: String::new(),
            });
            sharing += 1;
        }
    }
    let source = VolumeSource::EmptyDir { memory: true, size_limit: Some(SHARED_MEMORY_BYTES) };
    (sharing > 0).then(|| Volume { name: name.to_owned(), source })
}

/// Names become parts of paths on the node: nothing but letters, digits, `-`, `.` and `_`, and no dot first.
fn check_name(field: &'static str, value: &str) -> Result<(), PodError> {
    let fine = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
        && !value.starts_with('.')
        && value.len() <= 253
        && !value.is_empty();
    if fine { Ok(()) } else { Err(PodError::Name { field, value: value.chars().take(80).collect() }) }
}

fn unique<'a>(what: &'static str, names: impl Iterator<Item = &'a String>) -> Result<(), PodError> {
    let mut seen = std::collections::BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(PodError::Twice(what, name.clone()));
        }
    }
    Ok(())
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn or(text: String, default: &str) -> String {
    if text.is_empty() { default.to_owned() } else { text }
}

fn seconds(value: &Value) -> Option<Millis> {
    value.as_i64().map(|seconds| u64::try_from(seconds).unwrap_or(0).saturating_mul(1000))
}

fn id(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

fn mode(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok().map(|mode| mode & 0o777)
}

fn map(value: &Value) -> BTreeMap<String, String> {
    value.as_object().into_iter().flatten().map(|(key, value)| (key.clone(), text(value))).collect()
}

/// A key of a Secret, or of a `ConfigMap`'s `binaryData`, as bytes; `None` where it is not base64.
pub(crate) fn base64(value: &Value) -> Option<Vec<u8>> {
    base64::engine::general_purpose::STANDARD.decode(value.as_str()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: Value) -> Pod {
        Pod::parse(&json!({"metadata": {"name": "a", "namespace": "n", "uid": "u"}, "spec": spec})).unwrap()
    }

    #[test]
    fn defaults_are_upstreams() {
        let pod =
            pod(json!({"containers": [{"name": "c", "image": "i", "readinessProbe": {"tcpSocket": {"port": "web"}}}]}));
        assert_eq!((pod.restart_policy, pod.grace_ms, pod.service_links), (RestartPolicy::Always, 30_000, true));
        let probe = pod.containers[0].readiness.as_ref().unwrap();
        assert_eq!(
            (probe.period_ms, probe.timeout_ms, probe.success_threshold, probe.failure_threshold),
            (10_000, 1000, 1, 3)
        );
        assert_eq!(probe.handler, Handler::Tcp { host: String::new(), port: PortRef::Name("web".into()) });
        assert!(pod.containers[0].security.allow_escalation);
    }

    #[test]
    fn only_true_is_fenced() {
        let fenced = |annotations: Value| {
            let meta = json!({"name": "a", "namespace": "n", "uid": "u", "annotations": annotations});
            Pod::parse(&json!({"metadata": meta, "spec": {"containers": [{"name": "c"}]}})).unwrap().fenced
        };
        assert!(fenced(json!({"coracle.dev/fenced": "true"})));
        for other in [json!(null), json!({}), json!({FENCED: "false"}), json!({FENCED: "True"}), json!({FENCED: true})]
        {
            assert!(!fenced(other.clone()), "{other}");
        }
    }

    #[test]
    fn containers_of_one_pod_share_their_shared_memory() {
        let alone = pod(json!({"containers": [{"name": "c"}]}));
        assert!(alone.volumes.is_empty() && alone.containers[0].mounts.is_empty());
        let own = json!([{"name": "m", "mountPath": "/dev/shm/"}]);
        let three = pod(json!({
            "initContainers": [{"name": "i"}], "containers": [{"name": "a"}, {"name": "b", "volumeMounts": own}],
            "volumes": [{"name": "m", "emptyDir": {"medium": "Memory"}}],
        }));
        let mounts = |index: usize| three.containers[index].mounts.iter().map(|mount| mount.volume.as_str());
        assert!(mounts(0).eq([".shm"]) && mounts(1).eq([".shm"]) && mounts(2).eq(["m"]));
        assert_eq!(three.volumes.len(), 2);
    }

    #[test]
    fn classes() {
        let class = |resources: Value| pod(json!({"containers": [{"name": "c", "resources": resources}]})).qos();
        assert_eq!(class(json!({})), Qos::BestEffort);
        assert_eq!(class(json!({"requests": {"cpu": "1"}})), Qos::Burstable);
        assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), Qos::Guaranteed);
        assert_eq!(
            class(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})),
            Qos::Burstable
        );
    }

    #[test]
    fn names_that_would_leave_their_directory_are_refused() {
        for name in ["../x", "a/b", "", ".hidden"] {
            let object = json!({"metadata": {"name": "a", "namespace": "n", "uid": "u"}, "spec": {"containers": [{"name": name}]}});
            assert!(Pod::parse(&object).is_err(), "{name}");
            let object = json!({"metadata": {"name": "a", "namespace": "n", "uid": name}, "spec": {"containers": [{"name": "c"}]}});
            assert!(Pod::parse(&object).is_err(), "{name}");
        }
        let twice = json!({"metadata": {"name": "a", "namespace": "n", "uid": "u"}, "spec": {"containers": [{"name": "c"}, {"name": "c"}]}});
        assert_eq!(Pod::parse(&twice), Err(PodError::Twice("container", "c".into())));
    }
}
