//! The desired network, the difference to what is there, and nftables message bytes.
