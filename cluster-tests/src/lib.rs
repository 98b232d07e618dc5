//! Tests of whole clusters: machines in namespaces, faults, invariants, benches.
#![forbid(unsafe_code)]

pub mod client;
pub mod disk;
pub mod history;
pub mod kubectl;
pub mod linear;
pub mod machine;
pub mod previous;
pub mod registry;
pub mod site;
pub mod vm;
