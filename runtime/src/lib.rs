//! Containers on this kernel: launch, cgroups, mounts, exec, logs.
//!
//! The agent's half of the runtime: it prepares everything a container needs (cgroups, mounts, the compiled plan) and hands it
//! to the pod's podmon, which is the containers' parent. Nothing here forks.
#![forbid(unsafe_code)]

mod cgroup;
mod podmon;
pub mod rootfs;
mod runtime;

pub use cgroup::{CgroupError, Limits, Mode, Stats};
pub use podmon::{ContainerEvent, ContainerState, PodmonError};
pub use runtime::{
    ContainerLaunch, ExecRequest, ExecResult, LogSpec, PodHandle, PodSpec, Runtime, RuntimeConfig, RuntimeError,
    Started,
};
