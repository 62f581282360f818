//! The wire: generated messages and services, the only conversion between them and `types`, and what
//! both ends of a connection share: who is at the other end, how TLS is set up, how requests are multiplexed.
//!
//! Nothing else in the tree names a protobuf field of a request, response or refusal.

pub mod bounded;
pub mod convert;
pub mod dial;
pub mod exchange;
pub mod identity;
pub mod limits;
pub mod tls;

/// Generated from `proto/meridian.proto`.
#[allow(missing_docs, clippy::all, unreachable_pub, clippy::unwrap_used)] // generated, not ours to polish
pub mod v1 {
    tonic::include_proto!("meridian.v1");
    pub use crate::bounded::{MultiGet, MultiPut, Page, RequestBatch, ResponseBatch, Values};
}
