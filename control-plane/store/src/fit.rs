//! What a pod asks of its node, and what the pods of a node ask together: the check behind `Op::Bind`.

use coracle_manifests::quantity::Quantity;
use serde_json::Value;

/// Requests of one pod, or of all live pods of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU, in thousandths of a core.
    pub cpu_milli: i128,
    /// Memory, in bytes.
    pub memory_bytes: i128,
    /// Number of pods.
    pub pods: i128,
}

impl Usage {
    /// What a pod asks for: the larger of its containers' sum and its init containers' peak, plus overhead (upstream:
    /// `component-helpers/resource.PodRequests`). Nothing once it has ended.
    #[must_use]
    pub fn of_pod(pod: &Value) -> Self {
        if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
            return Self::default();
        }
        let spec = &pod["spec"];
        let mut running = sum(&spec["containers"], |_| true);
        let mut sidecars = Self::default();
        let mut peak = Self::default();
        for init in spec["initContainers"].as_array().into_iter().flatten() {
            let asked = Self::of_container(init);
            if init["restartPolicy"] == "Always" {
                running = running.plus(asked);
                sidecars = sidecars.plus(asked);
                peak = peak.max(sidecars);
            } else {
                peak = peak.max(sidecars.plus(asked));
            }
        }
        let mut all = running.max(peak).plus(Self::of_list(&spec["overhead"], &Value::Null));
        all.pods = 1;
        all
    }

    fn of_container(container: &Value) -> Self {
        let resources = &container["resources"];
        Self::of_list(&resources["requests"], &resources["limits"])
    }

    // A container that names a limit and no request asks for its limit.
    fn of_list(requests: &Value, limits: &Value) -> Self {
        let amount = |name: &str| {
            let asked = if requests[name].is_null() { &limits[name] } else { &requests[name] };
            Quantity::of_json(asked)
        };
        Self { cpu_milli: amount("cpu").milli().max(0), memory_bytes: amount("memory").value().max(0), pods: 0 }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli + other.cpu_milli,
            memory_bytes: self.memory_bytes + other.memory_bytes,
            pods: self.pods + other.pods,
        }
    }

    pub(crate) fn minus(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli - other.cpu_milli,
            memory_bytes: self.memory_bytes - other.memory_bytes,
            pods: self.pods - other.pods,
        }
    }

    fn max(self, other: Self) -> Self {
        Self {
            cpu_milli: self.cpu_milli.max(other.cpu_milli),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
            pods: self.pods.max(other.pods),
        }
    }

    /// Why a pod asking `more` does not fit beside `self` on a node, in words; `None` when it fits. A resource the node
    /// does not report has no room for a pod that asks for it, but an unreported pod count is no limit.
    #[must_use]
    pub fn lacks(self, more: Self, node: &Value) -> Option<String> {
        let room = &node["status"]["allocatable"];
        let cpu = Quantity::of_json(&room["cpu"]).milli();
        let memory = Quantity::of_json(&room["memory"]).value();
        if more.cpu_milli > 0 && self.cpu_milli + more.cpu_milli > cpu {
            let free = (cpu - self.cpu_milli).max(0);
            return Some(format!("it asks for {}m cpu, {free}m of {cpu}m are free", more.cpu_milli));
        }
        if more.memory_bytes > 0 && self.memory_bytes + more.memory_bytes > memory {
            let free = (memory - self.memory_bytes).max(0);
            return Some(format!("it asks for {} bytes of memory, {free} of {memory} are free", more.memory_bytes));
        }
        if !room["pods"].is_null() {
            let pods = Quantity::of_json(&room["pods"]).value();
            if self.pods + more.pods > pods {
                return Some(format!("the node holds {} pods of at most {pods}", self.pods));
            }
        }
        None
    }
}

fn sum(containers: &Value, wanted: impl Fn(&Value) -> bool) -> Usage {
    containers
        .as_array()
        .into_iter()
        .flatten()
        .filter(|container| wanted(container))
        .fold(Usage::default(), |total, container| total.plus(Usage::of_container(container)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn init_containers_count_by_their_peak_and_sidecars_for_good() {
        let ask = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let pod = json!({"spec": {
            "containers": [{"resources": ask("100m")}, {"resources": {"limits": {"cpu": "50m", "memory": "1Mi"}}}],
            "initContainers": [
                {"restartPolicy": "Always", "resources": ask("20m")},
                {"resources": ask("500m")},
            ],
            "overhead": {"cpu": "1m"},
        }});
        assert_eq!(Usage::of_pod(&pod), Usage { cpu_milli: 521, memory_bytes: 1 << 20, pods: 1 });
    }

    #[test]
    fn a_pod_that_ended_asks_for_nothing() {
        let pod =
            json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "1"}}}]}, "status": {"phase": "Failed"}});
        assert_eq!(Usage::of_pod(&pod), Usage::default());
    }
}
