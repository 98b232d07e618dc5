//! The cluster's names as one immutable table, and what it answers to a question.
//!
//! Knows no Kubernetes kind: whoever feeds it says which addresses and ports stand behind which name. The records are
//! those of the Kubernetes DNS specification 1.1.0.
#![forbid(unsafe_code)]

mod build;
mod input;
mod zone;

pub use input::{Endpoint, PodRecord, Port, ServiceRecord, Target, ZoneInput};
pub use zone::{Answer, Skipped, TTL_S, Zone, ZoneError};
