//! A region that was removed from a bucket drops what it has of it (docs/adr/2026-11-28-region-sets.md): what nobody reads, ships or keeps right
//! must not stay on its disk for ever (RES-1), nor come back with it (CON-5).

use meridian_types::{BucketId, RegionId};

use super::{Evidence, Stats, Violation, broken};

/// What a region has in the end of a bucket that it does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remnant {
    /// The region.
    pub region: RegionId,
    /// The bucket.
    pub bucket: BucketId,
    /// Its live keys.
    pub keys: u64,
}

/// In the end nothing is left where a bucket is not held.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    for Remnant { region, bucket, keys } in &evidence.remnants {
        stats.checked += 1;
        if *keys > 0 {
            let sentence = format!("region {region} was removed from bucket {bucket} and has {keys} keys of it still");
            return Err(broken("dropped", sentence));
        }
    }
    Ok(stats)
}
