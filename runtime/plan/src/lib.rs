//! From an OCI runtime spec to a flat launch plan, and the bytes that carry it to podmon.
