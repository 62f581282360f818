//! Speaks to clients: key-values, requests that other nodes forward for theirs, and the cluster's own affairs, over gRPC.
//!
//! Decides nothing about data: it reads certificates (SEC-1), checks bounds and deadlines (RES-1), converts messages to
//! the words and back, and drives what [`Store`] and [`Control`] answer.
//!
//! Deliberately not here: listening, TLS and the ports, which belong to the composition root.

mod cluster;
mod exchange;
mod metrics;
mod options;
mod recovery;
mod seams;
mod service;

pub use cluster::ClusterService;
pub use options::Options;
pub use recovery::{BackupStream, DrillStream, Recoveries, RecoveryService};
pub use seams::{Caller, Control, Digests, Lags, Store, Via};
pub use service::{Fatal, Gateway, KeyValueService, Late, PeerService};
