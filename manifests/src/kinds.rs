//! The table of kinds: everything generic code needs to know of each.

/// A subresource a kind serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subresource {
    /// `/status`
    Status,
    /// `/scale` (autoscaling/v1 Scale)
    Scale,
    /// `/log`
    Log,
    /// `/binding`
    Binding,
}

/// One kind of object.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// API group, empty for the core group.
    pub group: &'static str,
    /// API version, such as `v1`.
    pub version: &'static str,
    /// `Deployment`
    pub kind: &'static str,
    /// `deployments`
    pub plural: &'static str,
    /// `deployment`
    pub singular: &'static str,
    /// `deploy`
    pub short_names: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// `all`, where `kubectl get all` shows it.
    pub categories: &'static [&'static str],
    /// What it serves beside the object itself.
    pub subresources: &'static [Subresource],
    /// The store's name of it: plural and group (`pods`, `deployments.apps`).
    pub resource: &'static str,
}

const ALL: &[&str] = &["all"];

/// Every kind, core first.
pub static KINDS: &[Kind] = &[
    Kind {
        group: "",
        version: "v1",
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        namespaced: false,
        categories: &[],
        subresources: &[Subresource::Status],
        resource: "namespaces",
    },
    Kind {
        group: "",
        version: "v1",
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        namespaced: false,
        categories: &[],
        subresources: &[Subresource::Status],
        resource: "nodes",
    },
    Kind {
        group: "",
        version: "v1",
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        namespaced: true,
        categories: ALL,
        subresources: &[Subresource::Status, Subresource::Log, Subresource::Binding],
        resource: "pods",
    },
    Kind {
        group: "",
        version: "v1",
        kind: "ReplicationController",
        plural: "replicationcontrollers",
        singular: "replicationcontroller",
        short_names: &["rc"],
        namespaced: true,
        categories: ALL,
        subresources: &[Subresource::Status, Subresource::Scale],
        resource: "replicationcontrollers",
    },
    Kind {
        group: "",
        version: "v1",
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        namespaced: true,
        categories: ALL,
        subresources: &[Subresource::Status],
        resource: "services",
    },
    Kind {
        group: "",
        version: "v1",
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        namespaced: true,
        categories: &[],
        subresources: &[],
        resource: "configmaps",
    },
    Kind {
        group: "",
        version: "v1",
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        short_names: &[],
        namespaced: true,
        categories: &[],
        subresources: &[],
        resource: "secrets",
    },
    Kind {
        group: "",
        version: "v1",
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        namespaced: true,
        categories: &[],
        subresources: &[],
        resource: "serviceaccounts",
    },
    Kind {
        group: "",
        version: "v1",
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        namespaced: true,
        categories: &[],
        subresources: &[],
        resource: "events",
    },
    Kind {
        group: "apps",
        version: "v1",
        kind: "Deployment",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        namespaced: true,
        categories: ALL,
        subresources: &[Subresource::Status, Subresource::Scale],
        resource: "deployments.apps",
    },
    Kind {
        group: "apps",
        version: "v1",
        kind: "ReplicaSet",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        namespaced: true,
        categories: ALL,
        subresources: &[Subresource::Status, Subresource::Scale],
        resource: "replicasets.apps",
    },
    Kind {
        group: "apps",
        version: "v1",
        kind: "StatefulSet",
        plural: "statefulsets",
        singular: "statefulset",
        short_names: &["sts"],
        namespaced: true,
        categories: ALL,
        subresources: &[Subresource::Status, Subresource::Scale],
        resource: "statefulsets.apps",
    },
    Kind {
        group: "apps",
        version: "v1",
        kind: "DaemonSet",
        plural: "daemonsets",
        singular: "daemonset",
        short_names: &["ds"],
        namespaced: true,
        categories: ALL,
        subresources: &[Subresource::Status],
        resource: "daemonsets.apps",
    },
    Kind {
        group: "apps",
        version: "v1",
        kind: "ControllerRevision",
        plural: "controllerrevisions",
        singular: "controllerrevision",
        short_names: &[],
        namespaced: true,
        categories: &[],
        subresources: &[],
        resource: "controllerrevisions.apps",
    },
    Kind {
        group: "discovery.k8s.io",
        version: "v1",
        kind: "EndpointSlice",
        plural: "endpointslices",
        singular: "endpointslice",
        short_names: &[],
        namespaced: true,
        categories: &[],
        subresources: &[],
        resource: "endpointslices.discovery.k8s.io",
    },
];

impl Kind {
    /// `v1`, `apps/v1`.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }
}

/// The kind served at a path: `/apis/GROUP/VERSION/.../PLURAL`.
#[must_use]
pub fn by_path(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.group == group && kind.version == version && kind.plural == plural)
}

/// The kind a document names by `apiVersion` and `kind`.
#[must_use]
pub fn by_name(api_version: &str, kind: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|entry| entry.kind == kind && entry.api_version() == api_version)
}

/// The kind the store calls `resource` (`pods`, `deployments.apps`).
#[must_use]
pub fn by_resource(resource: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.resource == resource)
}

/// The kind a person means: plural, singular, short name or kind, any case, with or without `.group`.
#[must_use]
pub fn by_word(word: &str) -> Option<&'static Kind> {
    let word = word.to_ascii_lowercase();
    let (name, group) = word.split_once('.').map_or((word.as_str(), None), |(name, group)| (name, Some(group)));
    KINDS.iter().find(|kind| {
        group.is_none_or(|group| kind.group == group)
            && (kind.plural == name || kind.singular == name || kind.short_names.contains(&name))
    })
}
