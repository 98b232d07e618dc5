//! This node's links, routes and nftables tables: observe, apply, doctor.
