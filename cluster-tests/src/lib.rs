//! Tests of whole clusters: machines in namespaces, faults, invariants, benches.
#![forbid(unsafe_code)]

pub mod disk;
pub mod kubectl;
pub mod machine;
pub mod registry;
pub mod site;
pub mod vm;
