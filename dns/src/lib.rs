//! The node's name server: UDP and TCP loops, forwarder, cache.
