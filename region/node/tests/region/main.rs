//! A region's node end to end: real store, real consensus of one voter, real files; the metadata plane, the clock and
//! the disk gauge are stand-ins, and frames are carried by hand from one region to the other.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, unreachable_pub, reason = "tests")]

mod backup;
mod ceiling;
mod crossing;
mod degrade;
mod drill;
mod durability;
mod freshness;
mod handover;
mod housekeeping;
mod joining;
mod operations;
mod regroup;
mod repair;
mod replication;
mod restarts;
mod salvage;
mod three;
mod throughput;
mod turns;
mod world;
