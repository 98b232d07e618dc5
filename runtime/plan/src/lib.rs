//! From an OCI runtime spec to a flat launch plan, and the bytes that carry it to podmon.
//!
//! `wire` and `message` have no dependency and are all that podmon takes; `compile` (a feature, on by default) is the agent's
//! half.
#![forbid(unsafe_code)]

#[cfg(feature = "compile")]
mod compile;
pub mod message;
pub mod wire;

#[cfg(feature = "compile")]
pub use compile::{BindSource, CompileError, Plan, compile, compile_exec, default_capabilities};
