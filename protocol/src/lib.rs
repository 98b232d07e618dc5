//! The messages between servers and agents, and their gRPC stubs.
#![forbid(unsafe_code)]

/// Version 1 of the wire format, generated from `proto/coracle.proto`.
#[allow(missing_docs, clippy::all, clippy::too_many_lines, unused_qualifications)]
pub mod v1 {
    tonic::include_proto!("coracle.v1");
}

/// How containers are asked whether they are well, generated from `proto/health.proto`.
#[allow(missing_docs, clippy::all, unused_qualifications)]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

pub mod packed;
pub mod tls;

/// The protocol number both ends of a session state.
pub const PROTOCOL: u32 = 1;

/// The largest message either end accepts, in bytes: a full feed is split to stay below it.
pub const MAX_MESSAGE_BYTES: usize = 16 << 20;
