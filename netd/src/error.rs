//! What can fail when the node's network is changed: a variant per operation, with its nouns.

use std::io;
use std::net::Ipv4Addr;

use coracle_net_model::Cidr;

/// A failed network operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// A name or block in the configuration cannot be used.
    #[error("network configuration: {0}")]
    Config(String),
    /// The owner thread is gone (it was stopped, or it panicked).
    #[error("the network thread has stopped")]
    Stopped,
    /// The owner thread's queue is full.
    #[error("the network thread is busy: its queue is full")]
    Busy,
    /// Entering a network namespace.
    #[error("entering the network namespace of {what}")]
    Namespace {
        /// Whose namespace.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Opening or using a netlink socket.
    #[error("netlink {operation}")]
    Netlink {
        /// What was asked of the kernel.
        operation: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Writing a kernel setting under /proc/sys.
    #[error("writing {value} to {path}")]
    Setting {
        /// The file.
        path: String,
        /// The value.
        value: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The pod's link.
    #[error("network link of pod {pod} ({ip}): {operation}")]
    Pod {
        /// The pod.
        pod: String,
        /// Its address.
        ip: Ipv4Addr,
        /// The step that failed.
        operation: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A link with our bridge's name exists but is not a bridge.
    #[error("link {name} exists and is a {kind}, not a bridge (hint: rename it, or choose another bridge name)")]
    NotABridge {
        /// The link's name.
        name: String,
        /// What it is.
        kind: String,
    },
    /// A link with our VXLAN device's name exists but is none.
    #[error("link {name} exists and is a {kind}, not a VXLAN device (hint: rename it, or choose another bridge name)")]
    NotAVxlan {
        /// The link's name.
        name: String,
        /// What it is.
        kind: String,
    },
    /// The VXLAN device.
    #[error("VXLAN device {name} (number {vni}, UDP port {port}): {operation}")]
    Vxlan {
        /// The device.
        name: String,
        /// Its network's number.
        vni: u32,
        /// Its UDP port.
        port: u16,
        /// The step that failed, with what helps.
        operation: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// What stands for one other node.
    #[error("pods of node {node} ({block} at {address}): {operation}")]
    Peer {
        /// The node.
        node: String,
        /// Its pods' addresses.
        block: Cidr,
        /// Its own address.
        address: Ipv4Addr,
        /// The step that failed, with what helps.
        operation: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An nftables transaction.
    #[error("nftables table {table}: {operation}")]
    Tables {
        /// Our table.
        table: String,
        /// What was attempted.
        operation: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Starting a thread.
    #[error("starting the network thread")]
    Thread(#[source] io::Error),
}
