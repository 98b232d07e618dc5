//! From a tar stream to safe layer entries: digests, whiteout and path rules.
