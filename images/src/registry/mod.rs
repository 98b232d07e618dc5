//! The client's side of the OCI distribution specification 1.1, without logins.

/// Why a registry could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {}
