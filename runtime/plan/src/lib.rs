//! From an OCI runtime spec to a flat launch plan, and the bytes that carry it to podmon.
//!
//! `wire` and `message` have no dependency and are all that podmon takes; `compile` (a feature, on by default) is the agent's
//! half.
#![forbid(unsafe_code)]

#[cfg(feature = "compile")]
mod compile;
#[cfg(feature = "compile")]
mod devices;
pub mod message;
#[cfg(feature = "compile")]
mod seccomp;
pub mod wire;

#[cfg(feature = "compile")]
pub use devices::{DeviceKind, DeviceRule, Devices};

#[cfg(feature = "compile")]
pub use compile::{BindSource, CompileError, Hierarchy, Plan, compile, compile_exec, default_capabilities};
