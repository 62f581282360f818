//! Breaks real Meridian processes, and doubts their answers.
//!
//! A [`Planet`] is three regions of one `meridian server` process each, on loopback. A [`load`] writes to it
//! and remembers what was acknowledged; [`verdict`] compares memory and planet after everything has healed.
//! A write whose answer was lost is *unknown*: it may be there once, never twice.

pub mod load;
mod planet;
pub mod verdict;

pub use planet::{BUCKETS, Planet, REGIONS};
