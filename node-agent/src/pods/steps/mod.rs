//! What starting a pod consists of: a table of steps, each with its undoing, a file each. The order is the table's; a
//! take-down undoes all of them from the end, whatever was done, and collects what failed.

mod cgroup;
mod files;
mod image;
mod network;
mod start;
mod volumes;

use std::net::Ipv4Addr;
use std::sync::Arc;

use coracle_lifecycle::pod::{Container, Pod};

use crate::facilities::{Doing, Failure, FoundImage, Started};
use crate::ledger::State;
use crate::pods::node::Node;

/// One piece of work on one pod.
pub struct Job {
    /// What all pods share.
    pub node: Arc<Node>,
    /// The pod.
    pub pod: Arc<Pod>,
    /// Which container, for `Image` and `Start`.
    pub container: usize,
    /// Which run, for `Start`.
    pub attempt: u32,
    /// The pod may run only while the node holds a lease.
    pub fenced: bool,
    /// The pod's address, once it has one.
    pub ip: Option<Ipv4Addr>,
    /// The image's digest, for `Start`.
    pub digest: Option<String>,
    /// What the servers had told when it was begun.
    pub state: State,
}

impl Job {
    fn container(&self) -> Option<&Container> {
        self.pod.containers.get(self.container)
    }
}

/// What a step has brought about.
#[derive(Debug)]
pub enum Made {
    /// Nothing others must know.
    Nothing,
    /// The pod has an address.
    Address(Ipv4Addr),
    /// The image is here.
    Image {
        /// It.
        image: Box<FoundImage>,
        /// It had to be fetched.
        pulled: bool,
    },
    /// The container runs.
    Started(Started),
}

/// Which of lifecycle's steps a step belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// `Step::Sandbox`
    Sandbox,
    /// `Step::Volumes`
    Volumes,
    /// `Step::Pull`
    Image,
    /// `Step::Start`
    Start,
}

/// A step.
pub struct PodStep {
    /// Its name, as in logs.
    pub name: &'static str,
    /// When it is done.
    pub stage: Stage,
    /// Does it. Done again, it finds its work done.
    pub make: for<'a> fn(&'a mut Job) -> Doing<'a, Result<Made, Failure>>,
    /// Undoes it, also when it was never done.
    pub undo: for<'a> fn(&'a Job) -> Doing<'a, Result<(), Failure>>,
}

/// All steps, in the order in which they are done.
pub const STEPS: [PodStep; 6] = [cgroup::STEP, network::STEP, files::STEP, volumes::STEP, image::STEP, start::STEP];

/// Does the steps of a stage.
///
/// # Errors
/// The first that failed.
pub async fn make(stage: Stage, job: &mut Job) -> Result<Made, Failure> {
    let mut made = Made::Nothing;
    for step in STEPS.iter().filter(|step| step.stage == stage) {
        match (step.make)(job).await? {
            Made::Nothing => {}
            Made::Address(ip) => {
                job.ip = Some(ip);
                made = Made::Address(ip);
            }
            other => made = other,
        }
    }
    Ok(made)
}

/// Undoes everything from the end. What failed is told; the rest is undone all the same.
pub async fn undo(job: &Job) -> Vec<String> {
    undo_some(job, |_| true).await
}

/// Undoes what stands on a sandbox that is lost, so that it can be made anew.
pub async fn undo_sandbox(job: &Job) -> Vec<String> {
    undo_some(job, |step| step.stage == Stage::Sandbox && step.name != "files").await
}

async fn undo_some(job: &Job, which: impl Fn(&PodStep) -> bool) -> Vec<String> {
    let mut failed = Vec::new();
    for step in STEPS.iter().rev().filter(|step| which(step)) {
        if let Err(failure) = (step.undo)(job).await {
            failed.push(format!("{}: {}", step.name, failure.message));
        }
    }
    failed
}

/// Work on files, for a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    reason: &'static str,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(Failure::retry(reason, "the agent is stopping")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_steps() {
        let order: Vec<_> = STEPS.iter().map(|step| (step.name, step.stage)).collect();
        assert_eq!(
            order,
            [
                // The namespaces must be there before a link is put into them, the address before it is written into files,
                // everything before a container starts.
                ("cgroup", Stage::Sandbox),
                ("network", Stage::Sandbox),
                ("files", Stage::Sandbox),
                ("volumes", Stage::Volumes),
                ("image", Stage::Image),
                ("start", Stage::Start),
            ]
        );
    }
}
