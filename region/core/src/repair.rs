//! Making a replica equal to another region's by moving what differs (docs/adr/2026-11-20-resync.md).
//!
//! ```text
//! Target (here)                                  Source (there), on a view that stands still
//! Ask::Open ───────────────────────────────────► goal, digests of partitions of its rows
//! Ask::Hashes, of the partitions that differ ──► a hash per row, some at a time, in key order
//! Ask::Rows, whose hash the target lacks ──────► those rows
//! ```
//!
//! Pure: [`Target`] says what to ask and what to put into the own log, [`source`] answers; the node carries both.
//! A row is known by its *row key*: the kind of row and the rest of its state key behind the bucket.
//!
//! Deliberately not here: what the log's steps do to the state (`shard/repair.rs`).

pub mod message;
pub mod need;
mod rows;
pub mod source;
pub mod survey;
mod target;

pub use need::{Need, Want};
pub(crate) use rows::{hash_of_results, state_key};
pub use target::{Action, Input, Progress, Target, Terms};

/// Rows per partition, about: what one differing row costs in hashes.
pub const PARTITION_ROWS: u64 = 64;

/// The most partitions: 4 MiB of digests, for 16 million rows.
pub const PARTITIONS_MAX: u32 = 1 << 18;

/// The most hashes of one answer: 256 KiB.
pub const HASHES_MAX: usize = 1 << 15;

/// The most rows one answer looks at, so that it comes in time even where little differs.
pub const LOOKED_AT_MAX: usize = 1 << 20;

/// The most rows one entry of the log removes: a few milliseconds of work.
pub const SURPLUS_MAX: usize = 4096;

/// Bytes of rows of one answer, and so of one entry of the log; the last row may exceed it.
pub const ROWS_BYTES: usize = 1 << 20;
