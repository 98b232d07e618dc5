//! The image of one container. Undoing leaves it on the node: other pods may use it, and its collector knows which do.

use super::{Job, Made, PodStep, Stage};
use crate::facilities::{Doing, Failure};

pub(super) const STEP: PodStep = PodStep { name: "image", stage: Stage::Image, make, undo };

fn make(job: &mut Job) -> Doing<'_, Result<Made, Failure>> {
    Box::pin(async move {
        let container = job.container().ok_or_else(|| Failure::retry("ErrImagePull", "no such container"))?;
        let before = job.node.images.find(&container.image).await.map(|image| image.digest);
        if before.is_none() && container.pull_policy != "Never" {
            job.node.event(&job.pod, false, "Pulling", format!("Pulling image \"{}\"", container.image));
        }
        let image = job.node.images.ensure(&container.image, &container.pull_policy).await?;
        let pulled = before.as_ref() != Some(&image.digest);
        Ok(Made::Image { image: Box::new(image), pulled })
    })
}

fn undo(_: &Job) -> Doing<'_, Result<(), Failure>> {
    Box::pin(std::future::ready(Ok(())))
}
