//! Containers on this kernel: launch, cgroups, mounts, exec, logs.
//!
//! The agent's half of the runtime: it prepares everything a container needs (cgroups, mounts, the compiled plan) and hands it
//! to the pod's podmon, which is the containers' parent. Nothing here forks.
//! `unsafe` stands in `sys` alone.

mod cgroup;
mod features;
mod podmon;
pub mod rootfs;
mod runtime;
mod sys;

pub use cgroup::{CgroupError, DeviceControl, Limits, Mode, Stats};
pub use features::Features;
pub use podmon::{ContainerEvent, ContainerState, PodmonError};
pub use runtime::{
    ContainerLaunch, ExecRequest, ExecResult, LogSpec, PodHandle, PodSpec, Runtime, RuntimeConfig, RuntimeError,
    Started, probe,
};
