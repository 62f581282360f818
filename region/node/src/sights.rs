//! Reads over several shards of which other nodes of the region lead some: their leaders vouch, and this node reads.
//!
//! ```text
//! this node ── Sights ──► leader: lease, barrier ── up to which position its state is everything ──► this node waits until it has that,
//!           reads all shards at one moment ── Settled ──► leader: what was read has its copies ──► answers
//! ```
//! A page or a multi-get is of one moment of one node; no node need lead all of its shards (CON-1, CON-3).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::future::join_all;
use meridian_region_core::repair::message::{Ask, Told};
use meridian_types::{BucketId, Lsn, NodeId, ReadLevel, Refusal, RefusalKind, RegionId, ShardId};
use tokio::time::{Instant, sleep, timeout_at};

use crate::node::{Node, ShardNode, Standing};
use crate::reads::Verdict;
use crate::router::missing_shard;

/// How long a leader tries to vouch: a quorum next door, or copies in other regions.
const PATIENCE: Duration = Duration::from_secs(4);

/// The pause before leaders are asked again that know of too old a state.
const AGAIN_AFTER: Duration = Duration::from_millis(20);

impl Node {
    /// Those of several shards that only another node of the region can answer for, at that level.
    pub(crate) fn beside(&self, level: &ReadLevel, shards: &BTreeSet<ShardId>) -> BTreeSet<ShardId> {
        let asked = shards.len() > 1 && matches!(level, ReadLevel::Strong | ReadLevel::Bounded { .. });
        let led = |shard: &ShardId| self.shard(*shard).is_some_and(|shard| shard.board.leads());
        shards.iter().copied().filter(|shard| asked && !led(shard)).collect()
    }

    /// Waits until this node has what the leaders of `shards` vouch for, which is at most `bound_ms` stale where there is a bound; tells how
    /// stale. `None` when it is staler, and nobody waits for better.
    pub(crate) async fn vouched(
        &self,
        standing: &Standing,
        shards: &BTreeSet<ShardId>,
        level: &ReadLevel,
        patience: Option<Instant>,
        deadline: Instant,
    ) -> Result<Option<u64>, Refusal> {
        let bound_ms = match level {
            ReadLevel::Bounded { staleness_ms_max } => Some(*staleness_ms_max),
            ReadLevel::Strong | ReadLevel::Session | ReadLevel::Eventual => None,
        };
        loop {
            let worst = self.vouched_once(standing, shards, bound_ms.is_none(), deadline).await?;
            if bound_ms.is_none_or(|bound| worst.is_some_and(|worst| worst <= bound)) {
                return Ok(worst);
            }
            if patience.is_none_or(|until| Instant::now() + AGAIN_AFTER >= until) {
                return Ok(None);
            }
            sleep(AGAIN_AFTER).await;
        }
    }

    async fn vouched_once(
        &self,
        standing: &Standing,
        shards: &BTreeSet<ShardId>,
        strong: bool,
        deadline: Instant,
    ) -> Result<Option<u64>, Refusal> {
        let (begun, bucket) = (Instant::now(), standing.bucket.id);
        let asks = self.by_leader(shards.iter().map(|shard| (*shard, ())))?.into_iter().map(|(leader, shards)| {
            let shards = shards.into_iter().map(|(shard, ())| shard).collect();
            (leader, Ask::Sights { bucket, shards, strong })
        });
        let mut worst = Some(0);
        let mut vouched = BTreeSet::new();
        for told in self.ask_leaders(asks, deadline).await? {
            let Told::Sights(sights) = told else { return Err(missing_shard()) };
            for (id, lsn, staleness_ms) in sights {
                let shard = self.shard(id).ok_or_else(missing_shard)?;
                let mut applied = shard.board.watch_applied();
                let has = timeout_at(deadline, applied.wait_for(|applied| *applied >= lsn)).await;
                let late = || {
                    Refusal::new(RefusalKind::Retry, format!("this node is behind the leader of shard {id}: try again"))
                };
                has.map_err(|_| late())?.map_err(|_| late())?;
                vouched.insert(id);
                worst = worst.zip(staleness_ms).map(|(worst, this): (u64, u64)| worst.max(this));
            }
        }
        if vouched != *shards {
            return Err(missing_shard());
        }
        // It was told of a moment after it was asked for.
        let since = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(if strong { Some(0) } else { worst.map(|worst| worst.saturating_add(since)) })
    }

    /// A node of this region asks what this one, their leader, vouches for.
    pub(crate) async fn sights(
        &self,
        by: RegionId,
        bucket: BucketId,
        shards: &[ShardId],
        strong: bool,
    ) -> Result<Told, Refusal> {
        let standing = self.standing_beside(by, bucket)?;
        let deadline = Instant::now() + PATIENCE;
        let sights = shards.iter().map(|shard| self.sight_of(&standing, *shard, strong, deadline));
        Ok(Told::Sights(join_all(sights).await.into_iter().collect::<Result<_, _>>()?))
    }

    async fn sight_of(
        &self,
        standing: &Standing,
        id: ShardId,
        strong: bool,
        deadline: Instant,
    ) -> Result<(ShardId, Lsn, Option<u64>), Refusal> {
        let shard = self.led(id)?;
        if shard.board.is_closed(standing.bucket.id) {
            let why =
                format!("bucket `{}` is being repaired in this region: try again after a pause", standing.bucket.name);
            return Err(Refusal::new(RefusalKind::Retry, why));
        }
        let at_primary = standing.bucket.primary == Some(self.region());
        let staleness_ms = if strong || at_primary {
            match self.judge_primary(standing, shard, deadline).await? {
                Verdict::Fresh(staleness_ms) => staleness_ms,
                Verdict::Leader(_) | Verdict::Stale(_) | Verdict::Closed(_) => {
                    return Err(self.led(id).err().unwrap_or_else(missing_shard));
                }
            }
        } else {
            let orders = standing.bucket.primary.is_none();
            if orders && let Verdict::Leader(_) = self.judge_leader(shard, deadline).await? {
                return Err(self.led(id).err().unwrap_or_else(missing_shard));
            }
            self.staleness_behind_a_barrier(standing, shard)
        };
        // After it: what was applied since is only fresher.
        Ok((id, shard.board.applied(), staleness_ms))
    }

    /// Has the leaders of shards wait until what was read of a sync bucket can't be undone any more.
    pub(crate) async fn settled_beside(
        &self,
        standing: &Standing,
        read: BTreeMap<ShardId, Lsn>,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        let bucket = standing.bucket.id;
        let asks = self.by_leader(read)?.into_iter().map(|(leader, read)| (leader, Ask::Settled { bucket, read }));
        self.ask_leaders(asks, deadline).await.map(|_| ())
    }

    /// A node of this region has read what this one, their leader, is to wait for.
    pub(crate) async fn settle(
        &self,
        by: RegionId,
        bucket: BucketId,
        read: &[(ShardId, Lsn)],
    ) -> Result<Told, Refusal> {
        let standing = self.standing_beside(by, bucket)?;
        let deadline = Instant::now() + PATIENCE;
        let waits = read.iter().map(|(id, lsn)| async {
            let shard = self.led(*id)?;
            self.settled_in(&standing, shard, *lsn, deadline).await
        });
        join_all(waits).await.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(Told::Settled)
    }

    fn standing_beside(&self, by: RegionId, bucket: BucketId) -> Result<Standing, Refusal> {
        if by != self.region() {
            return Err(Refusal::new(RefusalKind::Denied, "only a node of the same region may read beside this one"));
        }
        let lease = self.authority.lease_holds();
        let topology = self.authority.topology();
        let bucket = topology.buckets.get(&bucket).cloned();
        let bucket =
            bucket.ok_or_else(|| Refusal::new(RefusalKind::Retry, "the bucket is not known here yet: try again"))?;
        Ok(Standing { topology, bucket, lease })
    }

    fn by_leader<T>(
        &self,
        of: impl IntoIterator<Item = (ShardId, T)>,
    ) -> Result<BTreeMap<NodeId, Vec<(ShardId, T)>>, Refusal> {
        let mut leaders: BTreeMap<NodeId, Vec<(ShardId, T)>> = BTreeMap::new();
        for (id, what) in of {
            let leader = self.shard(id).and_then(ShardNode::leader).filter(|leader| *leader != self.place.node);
            let nobody = || {
                Refusal::new(
                    RefusalKind::Retry,
                    format!("shard {id} has no leader in this region now: try again after a pause"),
                )
            };
            leaders.entry(leader.ok_or_else(nobody)?).or_default().push((id, what));
        }
        Ok(leaders)
    }

    async fn ask_leaders(
        &self,
        asks: impl Iterator<Item = (NodeId, Ask)>,
        deadline: Instant,
    ) -> Result<Vec<Told>, Refusal> {
        let told = join_all(asks.map(|(leader, ask)| async move { self.peers.ask_repair(leader, &ask).await }));
        let late = |_| {
            Refusal::new(
                RefusalKind::Retry,
                "another node of this region did not answer before the deadline: try again",
            )
        };
        timeout_at(deadline, told).await.map_err(late)?.into_iter().collect()
    }
}
