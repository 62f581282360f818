//! The replicator at work: everything around the pure Shipper and Receiver that waits.
//!
//! ```text
//! Service ─┬─ lane task per (shard, region, lane) ── Connector ══ QUIC ══▶ connection task ── task per stream
//!          │    LogSource ─▶ Shipper ─▶ frames                              Receiver ─▶ LogSink
//!          └─ takes connections, starts lanes, ends all when one panics
//! ```
//!
//! Mutual TLS; the first words on a connection are held against both certificates, and a peer may speak
//! only for the region in its own (SEC-1). To each node: one connection for the sync lanes, others for the
//! async ones, one bidirectional stream per lane, so that no backlog stands before an entry somebody waits
//! for. Links share nothing but this node's log and sink: a dead one costs the others nothing (ISO-1), and
//! each holds at most its window in memory (RES-1).

mod connector;
mod endpoint;
mod hello;
mod intake;
mod link;
mod metrics;
mod options;
mod seams;
mod service;
mod ship;
mod tls;
mod wire;

pub use options::{Congestion, Options, Transport};
pub use seams::{Addresses, Head, LogSink, LogSource, SinkError, Tail, TailEntry, TailError};
pub use service::{Error, Handle, Parts, Service, StartError};
pub use tls::TlsPem;
