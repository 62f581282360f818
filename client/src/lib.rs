//! The Rust SDK of Meridian, a geo-replicated store.
//!
//! ```no_run
//! use std::time::Duration;
//! use meridian_client::{Client, WriteAck};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder()
//!     .endpoints(["https://127.0.0.1:7100", "https://127.0.0.1:7200"]) // the nearest first
//!     .tls_files("ca.pem", "client.pem", "client-key.pem")
//!     .connect()
//!     .await?;
//!
//! let orders = client.bucket("orders")?;
//! let written = orders.put("order/17", "paid").ttl(Duration::from_secs(3600)).ack(WriteAck::Majority).await?;
//! println!("in {} regions, answered by {}", written.meta.regions_durable(), written.meta.region);
//!
//! let got = orders.get("order/17").eventual().await?;
//! println!("{:?}, at most {:?} stale", got.value(), got.meta.staleness);
//! # Ok(())
//! # }
//! ```
//!
//! # What it does for you
//! - **Exactly once** (ONE-1): every write has a request id that stays the same through all of its retries, so a counter
//!   counts once however often the network drops its answer.
//! - **Failover**: endpoints are tried in the order given, then the nodes the cluster itself names; a node that fails is
//!   left alone for a while.
//! - **Sessions** (CON-2): a [`Session`] carries what you have seen from region to region; its token is plain bytes.
//! - **No silent downgrade**: every answer has a [`Meta`] that tells which region answered, how stale it may be, and how
//!   durable a write was. A level that can't be met is an [`Error`], whose kind says what to do.
//!
//! # Consistency
//! | read level | what it gives |
//! |---|---|
//! | [`strong`](ReadCall::strong) (default) | linearizable, answered by the bucket's primary |
//! | [`session`](ReadCall::session) | not behind anything the session has seen |
//! | [`bounded`](ReadCall::bounded) | at most that stale |
//! | [`eventual`](ReadCall::eventual) | whatever the nearest replica has |

mod admin;
mod answer;
mod bucket;
mod builder;
mod call;
mod check;
mod client;
mod cluster;
mod endpoint;
mod error;
mod failovers;
mod input;
mod members;
mod operations;
mod recovery;
mod retry;
mod scan;
mod session;
mod window;

pub use admin::{Admin, Lag, RegionAnswer};
pub use answer::{Condition, Conditional, Count, Deleted, Got, GotMany, Item, Length, Meta, Page, Written};
pub use bucket::Bucket;
pub use builder::Builder;
pub use call::{Expiring, Lasting, ReadCall, WriteCall};
pub use check::{Check, Finding, Verdict};
pub use client::Client;
pub use error::{ConnectError, Error};
pub use input::IntoBytes;
pub use recovery::{ShardPage, ShardRows};
pub use retry::RetryPolicy;
pub use scan::Scan;
pub use session::Session;

pub use meridian_proto::tls::{TlsError, TlsFiles, TlsMaterial};
pub use meridian_types::request::Found;
pub use meridian_types::{
    Acks, AutoFailover, AutoMode, Breach, BucketChange, BucketName, BucketSpec, ClientId, Durability, Effect, Epoch,
    Event, EventPage, EventQuery, Hlc, LagBound, MaxLag, NodeId, NodeStatus, OnPartition, OperationId, Plan, PlanId,
    PlanOutcome, Policy, ReadLevel, RefusalKind, RegionId, RegionName, Selection, ShardDigest, StalePolicy, Standing,
    SwitchoverSpec, Topology, Version, WriteAck,
};
