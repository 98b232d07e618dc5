//! The pod's volumes.

use std::net::Ipv4Addr;

use super::{Job, Made, PodStep, Stage, blocking};
use crate::facilities::{Doing, Failure};

pub(super) const STEP: PodStep = PodStep { name: "volumes", stage: Stage::Volumes, make, undo };

const REASON: &str = "FailedMount";

fn make(job: &mut Job) -> Doing<'_, Result<Made, Failure>> {
    Box::pin(async move {
        let (pod, state) = (job.pod.clone(), job.state.clone());
        let dirs = job.node.paths.volumes(&pod.uid);
        let (facts, stamp) = (job.node.facts(Ipv4Addr::UNSPECIFIED), job.node.clock.now_ms().to_string());
        let work = move || {
            // Addresses are not among what a file may say.
            crate::volumes::prepare(&pod, &dirs, &state, facts, &stamp)
                .map(|()| Made::Nothing)
                .map_err(|error| Failure::retry(REASON, coracle_base::one_line(&error)))
        };
        blocking(work, REASON).await
    })
}

fn undo(job: &Job) -> Doing<'_, Result<(), Failure>> {
    Box::pin(async move {
        let pod = job.pod.clone();
        let dirs = job.node.paths.volumes(&pod.uid);
        let work = move || {
            crate::volumes::remove(&pod, &dirs).map_err(|error| Failure::retry(REASON, coracle_base::one_line(&error)))
        };
        blocking(work, REASON).await
    })
}
