//! The replicator at work: everything around the pure Shipper and Receiver that waits.
//!
//! One QUIC connection per ordered pair of nodes and lane kind, mutual TLS, one bidirectional stream
//! per (shard, lane). A peer may speak only for the region in its certificate (SEC-1). Links share
//! nothing but this node's log and sink: a dead one costs the others nothing (ISO-1), and each holds
//! at most its window in memory (RES-1).

mod options;
mod seams;
mod service;

pub use options::{Congestion, Options, Transport};
pub use seams::{Addresses, Head, LogSink, LogSource, SinkError, Tail, TailEntry, TailError};
pub use service::{Error, Handle, Parts, Service, StartError, TlsPem};
