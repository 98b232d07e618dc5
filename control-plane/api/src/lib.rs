//! The Kubernetes door: discovery, generic verbs, watch, tables, authentication.
