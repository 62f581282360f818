//! Real processes: regions of one `meridian server` each on loopback, writers that remember, and a verdict.
//!
//! A [`Planet`] is three such regions. A [`load`] writes to it and remembers what was acknowledged; [`verdict`]
//! compares memory and planet after everything has healed.

pub mod load;
mod planet;
pub mod verdict;

pub use planet::{BUCKETS, Planet, REGIONS};
