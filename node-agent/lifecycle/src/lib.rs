//! What a pod does next, and how it is described: to the kernel (OCI spec), to its processes (environment), to the cluster
//! (status). Everything here is a function of values.
#![forbid(unsafe_code)]

pub mod backoff;
pub mod env;
mod next;
pub mod observed;
pub mod oci;
pub mod pod;
pub mod probe;
pub mod status;

pub use next::{Step, next};
