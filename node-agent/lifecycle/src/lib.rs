//! What a pod does next: one step per call from what was asked and what is seen; restart policy, probes, OCI spec.
