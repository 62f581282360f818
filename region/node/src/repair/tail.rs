//! A region that was removed from a bucket gives up what it alone has of its own log (docs/adr/2026-11-28-active-active-lost-regions.md):
//! it was given up for lost where every region writes, or was a primary that was lost and then removed.
//!
//! It gets no rows for that: it is no region of the bucket any more, and nobody tells it anything of it (SEC-1). The bucket is closed, its tail is
//! written down (SWI-2), and what it ordered behind the place that counts is void from then on and travels nowhere, so that lanes which
//! carry other buckets, too, go on (ISO-1). It stays closed until its rows are dropped, or the region joins again and is filled.

use meridian_region_core::ControlResult;
use meridian_region_core::repair::message::{Digests, Pinned};
use meridian_region_core::repair::survey::{Claim, Sighting};
use meridian_region_core::repair::{Need, Terms};
use meridian_types::{BucketDigest, BucketId, Epoch, RegionId, RepairGoal, RepairReason, RepairStep};
use tokio::time::Instant;

use super::WAITS_FOR_CONSENT;
use super::attempt::propose;
use crate::node::{Node, ShardNode};
use crate::salvage::Rows;

impl Node {
    /// Gives up what this shard has of its own log beyond what `source` has, which has begun `out_since`, an epoch of the bucket without this
    /// region; or waits until an operator lets it, or for an earlier attempt.
    pub(crate) async fn give_up_tail(
        &self,
        shard: &ShardNode,
        (bucket, out_since): (BucketId, Epoch),
        (source, seen): (RegionId, &Sighting),
    ) {
        let (place, region) = ((shard.id, bucket), self.region());
        let need = Need { bucket, source, claim: Claim::Replica, reason: RepairReason::Leaving };
        if !self.repairs.table.begin(place, &need, Instant::now()) {
            return;
        }
        let outcome = self.write_down_and_void(shard, (bucket, out_since), (source, seen)).await;
        match &outcome {
            Ok(()) => tracing::warn!(
                %region, shard = %shard.id, %bucket, %source,
                "this region was removed from a bucket: what nobody else had of it is written down, and what is here goes: see `meridian salvage list`"
            ),
            Err(why) => {
                tracing::info!(%region, shard = %shard.id, %bucket, %source, %why, "what only this region has of a bucket that it was removed from is kept for now")
            }
        }
        self.repairs.table.end(place, outcome, Instant::now());
    }

    /// Whom the bucket is closed after: of one that this region had parted from itself, and has not heard of since, nothing is taken in, not even that
    /// it is the one. No rows come of it, so another one will do.
    fn closed_after(&self, shard: &ShardNode, bucket: BucketId, source: RegionId) -> RegionId {
        let parted = shard.board.core().parted(bucket);
        let topology = self.authority.topology();
        let regions = topology.buckets.get(&bucket).map_or(&[][..], |bucket| &bucket.regions);
        let other = regions.iter().copied().find(|region| Some(*region) != parted);
        if parted == Some(source) { other.unwrap_or(source) } else { source }
    }

    async fn write_down_and_void(
        &self,
        shard: &ShardNode,
        (bucket, out_since): (BucketId, Epoch),
        (source, seen): (RegionId, &Sighting),
    ) -> Result<(), String> {
        if !self.may_reinstate(bucket) {
            return Err(WAITS_FOR_CONSENT.to_owned());
        }
        // A node may hear late: where an epoch has begun that the region is in again, nothing is a tail.
        let is_out = || match shard.board.core().epoch(bucket) < out_since {
            true => Ok(()),
            false => Err("the region takes part in the bucket again, which this node has not heard of yet".to_owned()),
        };
        is_out()?;
        let after = self.closed_after(shard, bucket, source);
        let (begun, closed) = propose(self, shard, bucket, RepairStep::Begin { source: after }).await?;
        taken(closed)?;
        // While it is closed by this none begins.
        is_out()?;
        let digest = BucketDigest { positions: seen.positions.clone(), ..BucketDigest::default() };
        let counts = RepairGoal { epoch: seen.epoch, digest, ..RepairGoal::default() };
        let pinned = Pinned { goal: counts, rows: 0, salt: 0, digests: Digests::default() };
        let terms = Terms { shard: shard.id, bucket, source, claim: Claim::Replica };
        self.salvage(shard, &terms, &pinned, Rows::AsTheyAre).await?;
        let cut = seen.positions.of(self.region());
        taken(propose(self, shard, bucket, RepairStep::GiveUp { begun, cut }).await?.1)?;
        shard.mended.send_modify(|count| *count += 1);
        Ok(())
    }
}

fn taken(result: ControlResult) -> Result<(), String> {
    result.refused.map_or(Ok(()), |refusal| Err(refusal.message))
}
