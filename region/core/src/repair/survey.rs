//! Where a source's shard stands: what decides which buckets need a repair, and whether it may give one.

use std::collections::BTreeMap;

use meridian_types::{BucketId, Epoch, Lsn, Positions, RegionId};
use serde::{Deserialize, Serialize};

use crate::shard::Shard;

/// One shard at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Survey {
    /// The source's own log, applied up to here: what its buckets say below is everything up to it.
    pub applied: Lsn,
    /// Every bucket anything was ever written to.
    pub buckets: BTreeMap<BucketId, Sighting>,
}

/// One bucket of it.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sighting {
    /// What it has.
    pub positions: Positions,
    /// The epoch in force.
    pub epoch: Epoch,
    /// Whether it differs from another region at equal positions.
    pub diverged: bool,
    /// Why nobody can be made equal to it now; empty when one can.
    pub unfit: String,
}

/// Who may be made equal to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// The source is the bucket's primary: what it lacks is no part of the history.
    Primary,
    /// The source is another replica of a bucket with a primary: only if it lacks nothing of the epoch in force, or is in a
    /// later one.
    Replica,
    /// The bucket is active-active: what each lacks is merged.
    ActiveActive,
}

impl Survey {
    /// Of a shard as it is now.
    pub fn of(shard: &Shard) -> Survey {
        let sighting = |bucket| Sighting {
            positions: shard.positions(bucket),
            epoch: shard.epoch(bucket),
            diverged: shard.divergence(bucket).is_some(),
            unfit: shard.unfit_as_source(bucket).unwrap_or_default().to_owned(),
        };
        let buckets = shard.buckets().map(|bucket| (bucket, sighting(bucket))).collect();
        Survey { applied: shard.applied(), buckets }
    }

    /// The buckets whose entries of `source`, whose survey this is, are not all in `own`: what a lane skipped if it went on at
    /// [`Survey::applied`].
    pub fn missed_by<'a>(&'a self, source: RegionId, own: &'a Shard) -> impl Iterator<Item = BucketId> + 'a {
        let missed = move |(bucket, seen): &(&BucketId, &Sighting)| {
            seen.positions.of(source) > own.positions(**bucket).of(source)
        };
        self.buckets.iter().filter(missed).map(|(bucket, _)| *bucket)
    }
}

impl Sighting {
    /// Why `own` can't be made equal to it, if it can't: known before anything is closed for it.
    pub fn objection(&self, own: &Shard, bucket: BucketId, claim: Claim) -> Option<String> {
        if !self.unfit.is_empty() {
            return Some(format!("the source {}", self.unfit));
        }
        if self.diverged && claim == Claim::Replica {
            return Some("the source has diverged itself".to_owned());
        }
        if self.epoch < own.epoch(bucket) {
            return Some(format!(
                "the source is in epoch {}, this replica already in {}",
                self.epoch,
                own.epoch(bucket)
            ));
        }
        // In a later epoch it has all that counts of the earlier ones: what it lacks of them is a lost primary's tail.
        let tail = self.epoch > own.epoch(bucket);
        let lacks = claim == Claim::Replica && !tail && !self.positions.covers(&own.positions(bucket));
        lacks.then(|| "the source is no primary, and lacks something that this replica has".to_owned())
    }
}
