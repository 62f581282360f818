//! Which keys of a bucket were removed behind a position: told by what its lanes have brought here, and behind that by each
//! region's own log, as far back as it reaches.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use meridian_consensus::ReadLogError;
use meridian_region_core::repair::message::{Ask, Told};
use meridian_region_core::salvage::{Stray, Touch, is_of_tail, keys_of};
use meridian_types::entry::Header;
use meridian_types::{BucketId, Epoch, Lsn, Positions, Refusal, RefusalKind, RegionId, ShardId};
use tokio::time::Instant;

use super::patiently;
use crate::node::{Node, ShardNode};

/// Bytes of log looked at for one answer.
const LOOK_BYTES: usize = 4 << 20;

/// How long a region may take to be reached: what it doesn't tell now is not known for good.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most removed keys that are remembered at a time (RES-1); beyond them it counts as not known.
const KEYS_MAX: usize = 1 << 20;

impl Node {
    /// Answers from this region's own log.
    pub(crate) async fn removals_here(&self, shard: ShardId, bucket: BucketId, after: Lsn) -> Result<Told, Refusal> {
        // One that was deposed without noticing would take what it has for all there is.
        let shard = self.proven(shard).await?;
        let (own, head) = (shard.board.core().positions(bucket).of(self.region()), shard.board.applied());
        if own <= after {
            return Ok(Told::Removals { keys: Vec::new(), reached: after.max(head), more: false });
        }
        let slice = match shard.group.read_log(after, LOOK_BYTES).await {
            Ok(slice) => slice,
            Err(ReadLogError::Trimmed { .. }) => return Ok(Told::Forgotten),
            Err(why) => return Err(Refusal::new(RefusalKind::Retry, why.to_string())),
        };
        let mut keys = Vec::new();
        let core = shard.board.core();
        for entry in &slice.entries {
            let Ok(header) = Header::decode(&entry.payload) else { continue };
            if is_of_tail(&header, bucket) && core.is_effective(entry.lsn, &header) {
                let damaged = |why| Refusal::new(RefusalKind::Corrupt, format!("{why}"));
                let touched = keys_of(&header, &entry.payload).map_err(damaged)?;
                keys.extend(touched.into_iter().filter(|(_, touch)| *touch == Touch::Removed).map(|(key, _)| key));
            }
        }
        Ok(Told::Removals { keys, reached: slice.reached.max(after), more: slice.reached < own })
    }

    /// Keys that any region removed behind `after`, as far as `now` and from the epoch in force here to `goal`, and up to where
    /// that is known; `None` when nobody has it any more, or can be asked. A region that has written nothing since is not asked.
    pub(crate) async fn removals(
        &self,
        (shard, bucket, goal): (&ShardNode, BucketId, Epoch),
        now: &Positions,
        after: &Positions,
    ) -> Option<(BTreeSet<Bytes>, Positions)> {
        let (mut all, mut known) = (BTreeSet::new(), after.clone());
        for (region, end) in now.0.iter().filter(|(region, lsn)| after.of(**region) < **lsn) {
            let (waiting, mut from) = self.removals_waiting((shard, bucket, goal), *region, after, now).await?;
            all.extend(waiting);
            while from < *end && all.len() <= KEYS_MAX {
                let Told::Removals { keys, reached, more } = self.ask_removals(*region, shard.id, bucket, from).await?
                else {
                    return None;
                };
                all.extend(keys);
                if more && reached <= from {
                    return None;
                }
                from = if more { reached } else { reached.max(*end) };
            }
            if all.len() > KEYS_MAX {
                return None;
            }
            known.raise(*region, from);
        }
        Some((all, known))
    }

    /// Those that entries remove which wait here already.
    async fn removals_waiting(
        &self,
        (shard, bucket, goal): (&ShardNode, BucketId, Epoch),
        origin: RegionId,
        after: &Positions,
        now: &Positions,
    ) -> Option<(Vec<Bytes>, Lsn)> {
        let (topology, store) = (self.authority.topology(), self.store.clone());
        let (id, region, epoch) = (shard.id, self.region(), shard.board.epoch(bucket));
        let (after, now) = (after.clone(), now.clone());
        let read = self.blocking.run(move || {
            let bucket = topology.buckets.get(&bucket)?;
            let stray = Stray { shard: id, bucket, region, epoch, goal };
            stray.removals(&store, origin, &after, &now, KEYS_MAX).ok()
        });
        read.await.ok().flatten()
    }

    async fn ask_removals(&self, region: RegionId, shard: ShardId, bucket: BucketId, after: Lsn) -> Option<Told> {
        if region == self.region() {
            return self.removals_here(shard, bucket, after).await.ok();
        }
        let topology = self.authority.topology();
        let ask = Ask::Removals { shard, bucket, after };
        let until = Instant::now() + PATIENCE;
        let told = patiently(until, || self.peers.ask_about_repair(&topology, (region, shard), &ask)).await;
        told.ok().map(|(_, told)| told)
    }
}
