//! The pod's link and address.

use super::{Job, Made, PodStep, Stage};
use crate::facilities::{Doing, Failure};

pub(super) const STEP: PodStep = PodStep { name: "network", stage: Stage::Sandbox, make, undo };

fn make(job: &mut Job) -> Doing<'_, Result<Made, Failure>> {
    Box::pin(async move {
        if job.pod.host_network {
            return Ok(Made::Address(job.node.host_ip));
        }
        let netns = job.node.containers.netns(&job.pod.uid)?;
        job.node.network.attach(&job.pod.uid, netns).await.map(Made::Address)
    })
}

fn undo(job: &Job) -> Doing<'_, Result<(), Failure>> {
    if job.pod.host_network {
        return Box::pin(std::future::ready(Ok(())));
    }
    job.node.network.detach(&job.pod.uid)
}
