//! Two and three replicators on one machine: real sockets, real TLS, logs and sinks in memory.
#![allow(clippy::unwrap_used, clippy::expect_used)] // tests

mod shipping;
mod trust;
mod wan;
mod world;
