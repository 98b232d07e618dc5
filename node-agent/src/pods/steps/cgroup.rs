//! The pod's sandbox: monitor, namespaces, cgroup with the limits of the pod as a whole.

use super::{Job, Made, PodStep, Stage};
use crate::facilities::{Doing, Failure, SandboxSpec};

pub(super) const STEP: PodStep = PodStep { name: "cgroup", stage: Stage::Sandbox, make, undo };

fn make(job: &mut Job) -> Doing<'_, Result<Made, Failure>> {
    Box::pin(async move {
        let pod = &job.pod;
        let all = |limit: fn(&coracle_lifecycle::pod::Container) -> Option<u64>| -> Option<u64> {
            // A pod has a limit when each of its containers has one.
            pod.containers.iter().map(limit).try_fold(0_u64, |sum, limit| Some(sum.saturating_add(limit?)))
        };
        let request = pod.containers.iter().filter_map(|container| container.resources.cpu_request_milli).sum();
        let spec = SandboxSpec {
            pod: pod.uid.clone(),
            hostname: if pod.host_network { job.node.name.clone() } else { pod.hostname.clone() },
            host_network: pod.host_network,
            memory_limit: all(|container| container.resources.memory_limit),
            cpu_limit_milli: all(|container| container.resources.cpu_limit_milli),
            cpu_request_milli: request,
            lease_until: job.fenced.then(|| job.node.lease_until(&pod.uid)),
        };
        job.node.containers.create(spec).await.map(|()| Made::Nothing)
    })
}

fn undo(job: &Job) -> Doing<'_, Result<(), Failure>> {
    job.node.containers.remove(&job.pod.uid)
}
