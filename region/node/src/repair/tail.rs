//! A region that was given up for lost where every region writes gives up what nobody else has of its log
//! (docs/adr/2026-11-28-active-active-lost-regions.md).
//!
//! It gets no rows for that: it is no region of the bucket any more, and nobody tells it anything of it (SEC-1). The bucket is closed, its tail is
//! written down (SWI-2), and the repair ends with the rows that are there, as of the positions that count: own entries behind them are void
//! from then on, and travel nowhere. The rows go with the drop that follows, for nobody reads them.

use meridian_region_core::ControlResult;
use meridian_region_core::repair::Terms;
use meridian_region_core::repair::message::{Digests, Pinned};
use meridian_region_core::repair::source::{Opening, Source};
use meridian_region_core::repair::survey::{Claim, Sighting};
use meridian_types::{BucketDigest, BucketId, RegionId, RepairGoal, RepairMode, RepairStep};

use super::WAITS_FOR_CONSENT;
use super::attempt::{propose, release};
use crate::node::{Node, ShardNode};

impl Node {
    /// Gives up what this shard has of its own log beyond what `source` has, which has begun an epoch of the bucket without this region.
    pub(crate) async fn give_up_tail(
        &self,
        shard: &ShardNode,
        bucket: BucketId,
        (source, seen): (RegionId, &Sighting),
    ) -> Result<(), String> {
        if !self.may_reinstate(bucket) {
            return Err(WAITS_FOR_CONSENT.to_owned());
        }
        let (begun, closed) = propose(self, shard, bucket, RepairStep::Begin { source }).await?;
        taken(closed)?;
        let digest = BucketDigest { positions: seen.positions.clone(), ..BucketDigest::default() };
        let counts = RepairGoal { epoch: seen.epoch, digest, ..RepairGoal::default() };
        let pinned = Pinned { goal: counts, rows: 0, salt: 0, digests: Digests::default() };
        let terms = Terms { shard: shard.id, bucket, source, claim: Claim::Replica };
        self.salvage(shard, &terms, &pinned).await?;
        let (view, id) = (self.store.freeze(), shard.id);
        let summed = self.blocking.run(move || Source::open(&view, id, bucket, 0)).await;
        let summed = summed.map_err(|_| "the node is stopping".to_owned())?.map_err(|why| why.to_string())?;
        let Opening::Open(_, Pinned { mut goal, .. }) = summed else {
            return Err("it is being repaired otherwise".to_owned());
        };
        goal.epoch = seen.epoch;
        goal.digest.positions.0.insert(self.region(), seen.positions.of(self.region()));
        let end = RepairStep::End { begun, mode: RepairMode::Replace, goal };
        if taken(propose(self, shard, bucket, end).await?.1)?.more {
            release(self, shard, bucket).await?;
        }
        shard.mended.send_modify(|count| *count += 1);
        Ok(())
    }
}

fn taken(result: ControlResult) -> Result<ControlResult, String> {
    match &result.refused {
        Some(refusal) => Err(refusal.message.clone()),
        None => Ok(result),
    }
}
