//! Groups of one, three and five nodes, over real files and real TLS sockets, in one process.

#![allow(clippy::unwrap_used)] // helpers of tests: a failure is to stop the test where it happens

#[path = "groups/alone.rs"]
mod alone;
#[path = "groups/churn.rs"]
mod churn;
#[path = "groups/ledger.rs"]
mod ledger;
#[path = "groups/together.rs"]
mod together;
#[path = "groups/world.rs"]
mod world;
