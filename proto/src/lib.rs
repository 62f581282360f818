//! The wire: generated messages and services, and the only conversion between them and `types`.
//!
//! Nothing else in the tree names a protobuf field of a request, response or refusal.

pub mod dial;

/// Generated from `proto/meridian.proto`.
#[allow(missing_docs, clippy::all, unreachable_pub, clippy::unwrap_used)]
pub mod v1 {
    tonic::include_proto!("meridian.v1");
}
