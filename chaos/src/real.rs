//! Real processes: regions of one `meridian server` or several, writers that remember, and a verdict.
//!
//! A [`Planet`] is three such regions. A [`load`] writes to it and remembers what was acknowledged; [`verdict`]
//! compares memory and planet after everything has healed.

pub mod changes;
pub mod load;
mod place;
mod planet;
pub mod trial;
pub mod verdict;

pub use place::{Launch, Place};
pub use planet::{BUCKETS, Dial, ONE_EACH, Planet, REGIONS, create_bucket};
