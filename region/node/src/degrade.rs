//! Copies of sync buckets whose primary is here: noticing that they are lacking, and that they are there again (DEG-1).
//!
//! [`Degrading`] decides; this half looks, proves and tells. What a write waits for is in [`Node::copied_or_fewer`]: the full
//! number of copies, or DEGRADED on record under a valid lease.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use meridian_region_core::{CopiesDuty, CopiesSight, Degrading, Proof};
use meridian_types::{
    Bucket, BucketId, Copies, Hlc, Lsn, Policy, Positions, Read, ReadLevel, RegionId, Request, SessionToken, ShardId,
    StalePolicy, Standing, StandingWord,
};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::node::{self, Node, ShardNode};

/// How often copies are looked at: well below the shortest `degrade-after`.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How often it is looked whether there is any bucket to look at, unless the topology says so.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// How long the metadata plane may take to put a word on record: several commits around the planet.
const TELL_PATIENCE: Duration = Duration::from_secs(3);

/// How long a proof may take: a round in the region, and one to each other region.
pub(crate) const PROOF_PATIENCE: Duration = Duration::from_secs(3);

/// How often a waiting write looks at its lease again: running out and coming back is no change of the topology.
const LEASE_EVERY: Duration = Duration::from_millis(20);

/// What a background step of this came to.
enum Done {
    Told,
    Proven(Option<Proof>, BucketId),
}

/// Looks after the copies of sync buckets whose primary is here.
pub(crate) async fn keep_copies(node: Arc<Node>) {
    let mut changes = node.authority.topology_changes();
    let mut degrading = Degrading::default();
    let mut tasks: JoinSet<Done> = JoinSet::new();
    let mut proving: BTreeSet<BucketId> = BTreeSet::new();
    loop {
        let topology = Arc::clone(&changes.borrow_and_update());
        let watched: Vec<Arc<Bucket>> = topology.buckets.values().filter(|it| node.watches(it)).cloned().collect();
        degrading.keep(|id| watched.iter().any(|it| it.id == id));
        // A lease that was granted before a change was seen here ends within its length; an eighth more for clocks that differ.
        let settle_ms = node.authority.lease_ttl_ms().saturating_mul(9) / 8;
        for bucket in &watched {
            let sights = node.copies_sights(bucket);
            let label = |region| topology.region_label(region);
            for duty in degrading.look(node.clock.monotonic_ms(), settle_ms, bucket, &sights, &label) {
                match duty {
                    CopiesDuty::Tell(word) => drop(tasks.spawn(tell(Arc::clone(&node), word))),
                    CopiesDuty::Prove { bucket: id, since, shards } => {
                        if proving.insert(id) {
                            tasks.spawn(prove(Arc::clone(&node), Arc::clone(bucket), since, shards));
                        }
                    }
                }
            }
        }
        let pause = if watched.is_empty() { SWEEP_EVERY } else { LOOK_EVERY };
        tokio::select! {
            biased;
            Some(done) = tasks.join_next() => match done {
                Ok(Done::Told) => {}
                Ok(Done::Proven(proof, bucket)) => {
                    proving.remove(&bucket);
                    proof.into_iter().for_each(|proof| degrading.proven(proof));
                }
                Err(why) => std::panic::resume_unwind(why.into_panic()),
            },
            // The metadata plane is gone: the node is ending.
            changed = changes.changed() => if changed.is_err() { return std::future::pending().await },
            () = sleep(pause) => {}
        }
    }
}

async fn tell(node: Arc<Node>, word: StandingWord) -> Done {
    // Whoever has lost its region's majority hears of no copies either, and must not speak for whoever leads instead.
    if let Copies::Lacking { shards, .. } = &word.copies {
        for shard in shards.iter().filter_map(|shard| node.shard(*shard)) {
            if !matches!(timeout(PROOF_PATIENCE, shard.group.read_barrier().pass()).await, Ok(Ok(_))) {
                return Done::Told;
            }
        }
    }
    node.tell_standing(word).await;
    Done::Told
}

/// Finds out where shards stand, after proving that this node leads them, and which regions have all of earlier primaries.
async fn prove(node: Arc<Node>, bucket: Arc<Bucket>, since: Hlc, shards: BTreeSet<ShardId>) -> Done {
    let mut stood = BTreeMap::new();
    let mut earlier = BTreeMap::new();
    for shard in shards.iter().filter_map(|shard| node.shard(*shard)) {
        // Once it is passed, this node's state has what any leader of the region has acknowledged.
        if !matches!(timeout(PROOF_PATIENCE, shard.group.read_barrier().pass()).await, Ok(Ok(_))) {
            continue;
        }
        let mut positions =
            shard.board.public().digests.get(&bucket.id).map(|digest| digest.positions.clone()).unwrap_or_default();
        stood.insert(shard.id, positions.of(node.region()));
        // Of a bucket whose lane has turned, what a region confirms of this one's may be parked behind its own seal, too.
        if !bucket.is_turning() {
            positions.0.remove(&node.region());
        }
        earlier.insert(shard.id, positions);
    }
    let whole = node.whole(&bucket, &earlier).await;
    Done::Proven(Some(Proof { bucket: bucket.id, since, stood, whole }), bucket.id)
}

impl Node {
    /// Tells the metadata plane how copies stand. Until it is on record nothing is acknowledged with fewer of them (DEG-1); what
    /// fails is said again.
    pub(crate) async fn tell_standing(&self, word: StandingWord) {
        let (region, bucket, epoch) = (self.region(), word.bucket, word.epoch);
        match timeout(TELL_PATIENCE, self.authority.tell_standing(word)).await {
            Ok(Ok(())) => {}
            Ok(Err(why)) => {
                tracing::debug!(%region, %bucket, %epoch, %why, "how copies stand could not be told of yet")
            }
            Err(_) => tracing::debug!(%region, %bucket, %epoch, "the metadata plane does not answer yet"),
        }
    }

    /// Whether a bucket's copies are this node's business now: it may degrade, or has.
    fn watches(&self, bucket: &Bucket) -> bool {
        let sync = matches!(bucket.policy, Policy::Sync { .. });
        let open = bucket.policy.degrade_after_ms().is_some() || !bucket.standing.is_sync();
        sync && open && bucket.primary == Some(self.region())
    }

    fn copies_sights(&self, bucket: &Bucket) -> Vec<CopiesSight> {
        let lane = bucket.policy.lane();
        let in_force = |shard: &&ShardNode| shard.board.leads() && shard.board.epoch(bucket.id) == bucket.epoch;
        let sight = |shard: &ShardNode| {
            // Who has not followed into the lane holds no copy of use.
            let has =
                |target| if self.has_followed(bucket, shard.id, target) { shard.acked(lane, target) } else { Lsn(0) };
            let acked = bucket.targets(self.region()).map(|target| (target, has(target))).collect();
            let digest = shard.board.public().digests.get(&bucket.id).map(|digest| digest.positions.of(self.region()));
            CopiesSight { shard: shard.id, lsn: digest.unwrap_or_default(), acked }
        };
        self.shards.iter().filter(in_force).map(sight).collect()
    }

    /// The other regions that have applied everything of earlier primaries, and of earlier lanes. What they confirm of this one's may still be
    /// parked behind it (docs/adr/2026-11-20-seals.md).
    async fn whole(&self, bucket: &Bucket, earlier: &BTreeMap<ShardId, Positions>) -> BTreeSet<RegionId> {
        let mut session = SessionToken::default();
        for (shard, positions) in earlier {
            for (region, lsn) in positions.0.iter().filter(|(_, lsn)| **lsn > Lsn(0)) {
                session.observe(bucket.id, *shard, *region, *lsn);
            }
        }
        let others: Vec<RegionId> = bucket.targets(self.region()).collect();
        if session == SessionToken::default() {
            return others.into_iter().collect();
        }
        let first = earlier.keys().next().copied().unwrap_or_default();
        let asked = others.iter().map(|region| self.has_seen(bucket, *region, first, session.clone()));
        let seen = join_all(asked).await;
        others.iter().zip(seen).filter(|(_, seen)| *seen).map(|(region, _)| *region).collect()
    }

    /// A read that is answered only by who has applied what the session has seen.
    pub(crate) fn looks_for(&self, bucket: &Bucket, session: SessionToken) -> Request {
        let read = Read::Scan { prefix: Bytes::new(), after: Bytes::new(), limit: 1, values: false };
        let deadline_ms = u32::try_from(PROOF_PATIENCE.as_millis()).unwrap_or(u32::MAX);
        let (bucket, level, stale) = (bucket.name.clone(), ReadLevel::Session, StalePolicy::Wait);
        Request::Read { bucket, read, level, stale, session, deadline_ms }
    }

    /// Waits until `needed` of the regions `among` have `lsn`, or until fewer may do because DEGRADED is on record. Whether
    /// either came to be; the caller looks at what there is.
    pub(crate) async fn copied_or_fewer(
        &self,
        standing: &node::Standing,
        shard: &ShardNode,
        lsn: Lsn,
        among: &[RegionId],
        needed: (usize, usize),
        deadline: Instant,
    ) -> bool {
        let lane = standing.bucket.policy.lane();
        let (all, fewer) = needed;
        if fewer >= all || standing.bucket.policy.degrade_after_ms().is_none() {
            return shard.copied(lane, lsn, among, all, deadline).await;
        }
        tokio::select! {
            biased;
            enough = shard.copied(lane, lsn, among, all, deadline) => enough,
            () = self.until_fewer(standing) => shard.copied(lane, lsn, among, fewer, deadline).await,
        }
    }

    /// Whether writes may be acknowledged with fewer copies now: DEGRADED is on record, in what this node has applied under
    /// a valid lease (DEG-1). Lease first, topology second.
    pub(crate) fn may_take_fewer(&self, standing: &node::Standing) -> bool {
        let lease = self.authority.lease_holds();
        let topology = self.authority.topology();
        let now = topology.buckets.get(&standing.bucket.id);
        lease && now.is_some_and(|now| now.epoch == standing.bucket.epoch && now.standing.is_degraded())
    }

    /// Buckets whose primary is here and whose copies are lacking, in a sentence each.
    pub(crate) fn standings(&self) -> Vec<String> {
        let topology = self.authority.topology();
        let here = topology.buckets.values().filter(|bucket| bucket.primary == Some(self.region()));
        here.filter_map(|bucket| sentence(bucket)).collect()
    }

    async fn until_fewer(&self, standing: &node::Standing) {
        let mut changes = self.authority.topology_changes();
        while !self.may_take_fewer(standing) {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return std::future::pending().await },
                () = sleep(LEASE_EVERY) => {}
            }
        }
    }
}

/// What it means that a bucket is not SYNC.
fn sentence(bucket: &Bucket) -> Option<String> {
    match &bucket.standing {
        Standing::Sync { .. } => None,
        Standing::Degraded { reason, .. } => Some(format!(
            "bucket {} is DEGRADED ({reason}): its writes may lack copies, so losing this region may lose them; bring the others back, or forbid it with `meridian bucket set {} --on-partition block`",
            bucket.name, bucket.name
        )),
        Standing::Recovering { .. } => Some(format!(
            "bucket {} is RECOVERING: new writes have their copies, older ones may not yet; it becomes SYNC by itself",
            bucket.name
        )),
    }
}
