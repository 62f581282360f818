//! A read's way: how fresh the answer must be, whether this replica may give it, and how fresh it was (CON-1, CON-2, CON-3).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meridian_consensus::ReadError as BarrierError;
use meridian_types::{
    Bucket, Freshness, Hlc, Lsn, Policy, Positions, Read, ReadLevel, Refusal, RefusalKind, RegionId, Request, Response,
    SessionToken, ShardId, StalePolicy, Topology,
};
use tokio::time::{Instant, timeout_at};

use crate::gather::{self, Gathered};
use crate::node::{Node, ShardNode, Standing};
use crate::router::{Caller, missing_shard};
use crate::writes::no_lease;

/// Multi-gets of more keys than this are read off the runtime's workers.
const INLINE_KEYS_MAX: usize = 32;

/// Whether this replica may answer.
pub(crate) enum Verdict {
    /// It may; so far behind it is at most, if that is known.
    Fresh(Option<u64>),
    /// The shard's leader in this region knows.
    Leader(ShardId),
    /// It is too stale; another region that certainly is not, if there is one.
    Stale(Option<RegionId>),
    /// It is being repaired; another region that holds the bucket, if there is one.
    Closed(Option<RegionId>),
}

impl Node {
    /// Answers a read from this region's replica, or finds out who can.
    pub(crate) async fn read_here(
        &self,
        standing: &Standing,
        request: &Request,
        caller: Caller,
        deadline: Instant,
    ) -> Result<Response, Refusal> {
        let Request::Read { read, level, stale, session, .. } = request else {
            return Err(Refusal::new(RefusalKind::Internal, "a write was taken for a read"));
        };
        let shards = self.shards_of(&standing.bucket, read);
        let patience = (*stale == StalePolicy::Wait).then_some(deadline);
        let before = self.generation(&shards);
        let verdict = self.judge(standing, level, session, &shards, patience, deadline).await?;
        match verdict {
            Verdict::Fresh(staleness_ms) => {
                let answer = self.answer(standing, read, level, staleness_ms, deadline).await;
                // Of what is judged by its positions nothing may be read while a snapshot takes the place of the state (CON-2).
                if before.is_some() && self.generation(&shards) == before { answer } else { Err(replaced()) }
            }
            Verdict::Leader(shard) => {
                let shard = self.shard(shard).ok_or_else(missing_shard)?;
                self.to_leader(shard, request, caller, deadline).await
            }
            Verdict::Stale(Some(region)) if *stale == StalePolicy::Redirect => {
                self.read_there(standing, region, request, caller, deadline).await
            }
            Verdict::Closed(Some(region)) => {
                // The shard's leader sends it on for the node that asked it, too: it can't be answered in this region.
                let from_here = caller == Caller::Peer { region: self.region() };
                let caller = if from_here { Caller::Client } else { caller };
                self.read_there(standing, region, request, caller, deadline).await
            }
            Verdict::Closed(None) => Err(closed(&standing.bucket)),
            Verdict::Stale(elsewhere) => Err(self.too_stale(standing, level, elsewhere)),
        }
    }

    /// Which states the shards are in, all together: each only rises. `None` while a snapshot is taken in by one.
    fn generation(&self, shards: &BTreeSet<ShardId>) -> Option<u64> {
        shards.iter().try_fold(0, |sum, shard| Some(sum + self.shard(*shard)?.board.generation()?))
    }

    fn shards_of(&self, bucket: &Bucket, read: &Read) -> BTreeSet<ShardId> {
        match read {
            Read::Get { key } => BTreeSet::from([key.shard(bucket.id, self.place.shards)]),
            Read::MultiGet { keys } => keys.iter().map(|key| key.shard(bucket.id, self.place.shards)).collect(),
            Read::Scan { .. } => (0..self.place.shards).map(ShardId).collect(),
        }
    }

    async fn judge(
        &self,
        standing: &Standing,
        level: &ReadLevel,
        session: &SessionToken,
        shards: &BTreeSet<ShardId>,
        patience: Option<Instant>,
        deadline: Instant,
    ) -> Result<Verdict, Refusal> {
        // What is not on record as held here may be empty, or frozen: it is nobody's copy.
        if let Some(shard) = shards.iter().find(|shard| !self.holds(&standing.topology, **shard)) {
            return Ok(Verdict::Leader(*shard));
        }
        let beside = self.beside(level, shards);
        let mut worst = Some(0);
        if !beside.is_empty() {
            worst = self.vouched(standing, &beside, level, patience, deadline).await?;
            if worst.is_none() {
                return Ok(Verdict::Stale(standing.bucket.primary));
            }
        }
        for shard in shards.difference(&beside) {
            let shard = self.shard(*shard).ok_or_else(missing_shard)?;
            if shard.board.generation().is_none() {
                return Ok(Verdict::Leader(shard.id));
            }
            if shard.board.is_closed(standing.bucket.id) {
                return Ok(Verdict::Closed(self.open_elsewhere(&standing.bucket)));
            }
            let verdict = match level {
                ReadLevel::Strong => self.judge_primary(standing, shard, deadline).await?,
                ReadLevel::Session => self.judge_session(standing, shard, session, patience).await?,
                ReadLevel::Bounded { staleness_ms_max } => {
                    self.judge_bounded(standing, shard, *staleness_ms_max, patience, deadline).await?
                }
                ReadLevel::Eventual => Verdict::Fresh(self.staleness(standing, shard)),
            };
            match verdict {
                Verdict::Fresh(staleness) => worst = worst.zip(staleness).map(|(worst, this)| worst.max(this)),
                other => return Ok(other),
            }
        }
        Ok(Verdict::Fresh(worst))
    }

    /// Whether this node's copy of a shard is one, as far as is on record; one that leads it has everything.
    fn holds(&self, topology: &Topology, shard: ShardId) -> bool {
        let voters = topology.voters(self.region(), shard);
        let leads = self.shard(shard).is_some_and(|shard| shard.board.leads());
        leads || voters.is_empty() || voters.contains(&self.place.node)
    }

    /// Who answers for a bucket that is being repaired here: its primary, or another region that holds it.
    pub(crate) fn open_elsewhere(&self, bucket: &Bucket) -> Option<RegionId> {
        let primary = bucket.primary.filter(|primary| *primary != self.region());
        primary.or_else(|| bucket.targets(self.region()).next())
    }

    /// The primary's leader has everything that was ever acknowledged: under its lease, behind a barrier (CON-1).
    pub(crate) async fn judge_primary(
        &self,
        standing: &Standing,
        shard: &ShardNode,
        deadline: Instant,
    ) -> Result<Verdict, Refusal> {
        if !shard.board.leads() {
            return Ok(Verdict::Leader(shard.id));
        }
        if !standing.lease {
            return Err(no_lease());
        }
        self.in_force(&standing.bucket, shard, deadline).await?;
        self.judge_leader(shard, deadline).await
    }

    /// Whether this node leads the shard, and so has everything that its region ordered.
    pub(crate) async fn judge_leader(&self, shard: &ShardNode, deadline: Instant) -> Result<Verdict, Refusal> {
        match timeout_at(deadline, shard.group.read_barrier().pass()).await {
            Ok(Ok(_)) => Ok(Verdict::Fresh(Some(0))),
            Ok(Err(BarrierError::NotLeader { .. })) => Ok(Verdict::Leader(shard.id)),
            Ok(Err(why)) => Err(Refusal::new(RefusalKind::Retry, format!("{why}: try again after a pause"))),
            Err(_) => Err(Refusal::new(
                RefusalKind::Retry,
                format!("shard {} did not confirm its leadership before the deadline: try again", shard.id),
            )),
        }
    }

    /// A replica may answer a session once its own positions cover what the session has seen (CON-2).
    async fn judge_session(
        &self,
        standing: &Standing,
        shard: &ShardNode,
        session: &SessionToken,
        patience: Option<Instant>,
    ) -> Result<Verdict, Refusal> {
        let Some(seen) = session.seen(standing.bucket.id, shard.id) else {
            return Ok(Verdict::Fresh(self.staleness(standing, shard)));
        };
        self.check_sight(standing, shard, seen, patience.unwrap_or_else(Instant::now)).await?;
        if self.covers(shard, &standing.bucket, seen, patience).await {
            return Ok(Verdict::Fresh(self.staleness(standing, shard)));
        }
        let has = positions(shard, &standing.bucket);
        let ahead = seen.0.iter().find(|(region, lsn)| has.of(**region) < **lsn).map(|(region, _)| *region);
        Ok(Verdict::Stale(standing.bucket.primary.or(ahead).filter(|region| *region != self.region())))
    }

    /// Refuses for good a session that has seen what a failover gave up, or the removal of a lost region where every region writes: no
    /// replica will ever have it, and to wait for it would be to wait for ever (CON-2). Only some can tell: a primary has all that counts
    /// of every earlier epoch, and while its lease holds nobody else adds to it (the lease was looked at after the session came); where
    /// every region writes, one in which the epoch has begun has all that counts of a region that is out.
    pub(crate) async fn check_sight(
        &self,
        standing: &Standing,
        shard: &ShardNode,
        seen: &Positions,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        let bucket = &standing.bucket;
        let decides = match bucket.primary {
            Some(primary) => primary == self.region() && standing.lease && !bucket.is_between_primaries(),
            None => bucket.is_in(self.region()),
        };
        if !decides || !shard.board.leads() || shard.board.epoch(bucket.id) != bucket.epoch {
            return Ok(());
        }
        if self.given_up(shard, bucket, seen).is_none() {
            return Ok(());
        }
        // One that was deposed without noticing may only not have heard of what others have ordered since.
        let proven = timeout_at(deadline, shard.group.read_barrier().pass()).await;
        match self.given_up(shard, bucket, seen).filter(|_| matches!(proven, Ok(Ok(_)))) {
            Some(region) => {
                let by = if bucket.primary.is_some() { "a failover" } else { "its removal" };
                Err(Refusal::new(
                    RefusalKind::Invalid,
                    format!(
                        "the session has seen writes of region {} to bucket `{}` that {by} gave up: begin a new session, and see `meridian salvage list` for what was kept of them",
                        standing.topology.region_label(region),
                        bucket.name
                    ),
                ))
            }
            None => Ok(()),
        }
    }

    /// A region of which more was seen than is here, or will be.
    fn given_up(&self, shard: &ShardNode, bucket: &Bucket, seen: &Positions) -> Option<RegionId> {
        // Before the positions: of its own log it may only have to apply more.
        let applied = shard.board.applied();
        let has = positions(shard, bucket);
        let is_out =
            |region: RegionId| !bucket.reaches(region) && bucket.joins.was.iter().any(|it| it.region == region);
        let is_gone = |region: RegionId, lsn: Lsn| match bucket.primary {
            _ if has.of(region) >= lsn => false,
            _ if region == self.region() => applied >= lsn,
            Some(_) => true,
            // Of the others more may be on its way.
            None => is_out(region),
        };
        seen.0.iter().find(|(region, lsn)| is_gone(**region, **lsn)).map(|(region, _)| *region)
    }

    /// A replica may answer within the bound it can prove by its own clock (CON-3).
    async fn judge_bounded(
        &self,
        standing: &Standing,
        shard: &ShardNode,
        bound_ms: u64,
        patience: Option<Instant>,
        deadline: Instant,
    ) -> Result<Verdict, Refusal> {
        if standing.bucket.primary == Some(self.region()) {
            return self.judge_primary(standing, shard, deadline).await;
        }
        if !shard.board.leads() {
            return Ok(Verdict::Leader(shard.id));
        }
        let mut changes = shard.lanes.watch();
        loop {
            changes.mark_unchanged();
            // Where every region writes, nobody else says what this one has ordered: another node of it may have, unnoticed.
            if standing.bucket.primary.is_none()
                && let Verdict::Leader(shard) = self.judge_leader(shard, deadline).await?
            {
                return Ok(Verdict::Leader(shard));
            }
            let staleness = self.staleness_behind_a_barrier(standing, shard);
            if staleness.is_some_and(|staleness| staleness <= bound_ms) {
                return Ok(Verdict::Fresh(staleness));
            }
            let waited = match patience {
                Some(until) => matches!(timeout_at(until, changes.changed()).await, Ok(Ok(()))),
                None => false,
            };
            if !waited {
                return Ok(Verdict::Stale(standing.bucket.primary));
            }
        }
    }

    /// How far the shard's replica here may be behind, if that is known.
    pub(crate) fn staleness(&self, standing: &Standing, shard: &ShardNode) -> Option<u64> {
        // Of what its own region orders, with several voters only a barrier could tell; alone, what is applied is all there is.
        let orders = standing.bucket.primary.is_none_or(|primary| primary == self.region());
        let holders = standing.topology.holders(self.region(), shard.id);
        let alone = holders.iter().all(|node| *node == self.place.node);
        if orders && !alone { None } else { self.staleness_behind_a_barrier(standing, shard) }
    }

    /// The same of a replica that has everything its region ordered, where that orders.
    pub(crate) fn staleness_behind_a_barrier(&self, standing: &Standing, shard: &ShardNode) -> Option<u64> {
        let bucket = &standing.bucket;
        // Another epoch here than on record, or a primary that hands over: there may be writes this replica can't know
        // of. A lane says how far it is complete, not that its source is still the one that counts.
        if shard.board.epoch(bucket.id) != bucket.epoch || bucket.is_between_primaries() {
            return None;
        }
        if bucket.primary == Some(self.region()) {
            return (standing.lease && shard.board.leads()).then_some(0);
        }
        let now_ms = self.clock.monotonic_ms();
        let staleness = shard.board.leads().then(|| shard.lanes.staleness_ms(bucket, self.region(), now_ms)).flatten();
        // The lane was complete at a time that is past by now; asked only then.
        staleness.filter(|_| self.still_follows(bucket))
    }

    /// Whether the primary is the one that this node takes for it, as far as its lease goes: it was granted with all that was decided
    /// by then (CON-3). Lease first, topology second. Where every region writes, whether the others have not gone on without this one, as
    /// far as was heard before the lane was taken for complete; the request may have waited long since it looked.
    fn still_follows(&self, bucket: &Bucket) -> bool {
        let lease = bucket.primary.is_none() || self.authority.lease_holds();
        let topology = self.authority.topology();
        let same = |now: &Arc<Bucket>| now.epoch == bucket.epoch && !now.is_between_primaries();
        lease && topology.buckets.get(&bucket.id).is_some_and(same)
    }

    /// Whether this replica has everything in `seen`; waits for it until `patience`, if there is some.
    pub(crate) async fn covers(
        &self,
        shard: &ShardNode,
        bucket: &Bucket,
        seen: &Positions,
        patience: Option<Instant>,
    ) -> bool {
        let mut applied = None;
        loop {
            if shard.board.public().digests.get(&bucket.id).is_some_and(|digest| digest.positions.covers(seen)) {
                return true;
            }
            let Some(until) = patience else { return false };
            let Some(applied) = &mut applied else {
                // Subscribed first, looked at again second: nothing is missed in between.
                applied = Some(shard.board.watch_applied());
                continue;
            };
            if !matches!(timeout_at(until, applied.changed()).await, Ok(Ok(()))) {
                return false;
            }
        }
    }

    async fn answer(
        &self,
        standing: &Standing,
        read: &Read,
        level: &ReadLevel,
        staleness_ms: Option<u64>,
        deadline: Instant,
    ) -> Result<Response, Refusal> {
        let gathered = self.gather(standing, read, deadline).await?;
        let at_primary = standing.bucket.primary == Some(self.region());
        let proven = matches!(level, ReadLevel::Strong | ReadLevel::Bounded { .. });
        if *level == ReadLevel::Strong {
            self.settled(standing, &gathered, deadline).await?;
        }
        // What was read is only the truth if nobody else was primary by then.
        if at_primary && proven && !self.still_primary(standing) {
            return Err(no_lease());
        }
        Ok(Response {
            region: self.region(),
            epoch: standing.bucket.epoch,
            outcome: gathered.outcome,
            freshness: Freshness { hlc: gathered.hlc, staleness_ms },
            durability: None,
            session: token(&standing.bucket, gathered.seen),
        })
    }

    async fn gather(&self, standing: &Standing, read: &Read, deadline: Instant) -> Result<Gathered, Refusal> {
        let now_ms = self.clock.wall_ms();
        let bucket = &standing.bucket;
        match read {
            Read::Get { key } => gather::one(self, bucket, key, now_ms),
            Read::MultiGet { keys } if keys.len() <= INLINE_KEYS_MAX => gather::many(&self.scene(bucket, now_ms), keys),
            Read::MultiGet { keys } => {
                let (scene, keys) = (self.scene(bucket, now_ms), keys.clone());
                self.off_the_workers(deadline, move || gather::many(&scene, &keys)).await
            }
            Read::Scan { prefix, after, limit, values } => {
                let (scene, prefix, after) = (self.scene(bucket, now_ms), prefix.clone(), after.clone());
                let (limit, values) = (*limit, *values);
                self.off_the_workers(deadline, move || gather::page(&scene, &prefix, &after, limit, values)).await
            }
        }
    }

    fn scene(&self, bucket: &Arc<Bucket>, now_ms: u64) -> gather::Scene {
        gather::Scene {
            view: self.store.freeze(),
            bucket: Arc::clone(bucket),
            boards: self.shards.iter().map(|shard| Arc::clone(&shard.board)).collect(),
            now_ms,
        }
    }

    /// Reads that may take many blocks from disk run on a thread of their own, a few at a time.
    async fn off_the_workers(
        &self,
        deadline: Instant,
        read: impl FnOnce() -> Result<Gathered, Refusal> + Send + 'static,
    ) -> Result<Gathered, Refusal> {
        let busy = || {
            Refusal::new(RefusalKind::Retry, "too many large reads are under way on this node: try again after a pause")
        };
        let _place = timeout_at(deadline, self.scans.acquire()).await.map_err(|_| busy())?.map_err(|_| busy())?;
        let failed = |_| Refusal::new(RefusalKind::Internal, "the read ended unexpectedly; the node's log says why");
        self.blocking.run(read).await.map_err(failed)?
    }

    /// In a sync bucket, waits until what was read can't be undone by a failover any more (design 5).
    async fn settled(&self, standing: &Standing, gathered: &Gathered, deadline: Instant) -> Result<(), Refusal> {
        let Policy::Sync { .. } = standing.bucket.policy else { return Ok(()) };
        let read = gathered.seen.iter().map(|(shard, positions)| (*shard, positions.of(self.region())));
        let mut beside = BTreeMap::new();
        for (id, lsn) in read.filter(|(_, lsn)| *lsn > Lsn(0)) {
            let shard = self.shard(id).ok_or_else(missing_shard)?;
            if shard.board.leads() {
                self.settled_in(standing, shard, lsn, deadline).await?;
            } else {
                beside.insert(id, lsn);
            }
        }
        self.settled_beside(standing, beside, deadline).await
    }

    /// The same for one shard, which this node leads.
    pub(crate) async fn settled_in(
        &self,
        standing: &Standing,
        shard: &ShardNode,
        lsn: Lsn,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        let bucket = &standing.bucket;
        let needed = bucket.policy.required_regions(bucket.regions.len()) - 1;
        let others = self.counted(standing, shard, needed, deadline).await;
        // While DEGRADED is on record one copy is what writes are acknowledged with, and so what can be read (DEG-1).
        if self.copied_or_fewer(standing, shard, lsn, &others, (needed, 0), deadline).await {
            return Ok(());
        }
        Err(Refusal::new(
            RefusalKind::Unavailable,
            "what was read is not yet in as many regions as the bucket requires, so a failover could still undo it: try again, or read with session or eventual",
        ))
    }

    fn too_stale(&self, standing: &Standing, level: &ReadLevel, elsewhere: Option<RegionId>) -> Refusal {
        let behind = match level {
            ReadLevel::Bounded { staleness_ms_max } => {
                format!("is not known to be at most {staleness_ms_max} ms stale")
            }
            _ => "has not yet received what the session has seen".to_owned(),
        };
        let advice = match elsewhere {
            Some(region) => format!("ask region {}, let the read redirect", standing.topology.region_label(region)),
            None => "try again, let the read wait".to_owned(),
        };
        Refusal::new(
            RefusalKind::Stale,
            format!("region {} {behind}: {advice}, or ask for less", standing.topology.region_label(self.region())),
        )
    }
}

fn replaced() -> Refusal {
    Refusal::new(RefusalKind::Retry, "this node is being filled by a snapshot: try again, another one answers")
}

fn closed(bucket: &Bucket) -> Refusal {
    Refusal::new(
        RefusalKind::Retry,
        format!(
            "bucket `{}` is being repaired in this region, the only one that holds it: try again after a pause",
            bucket.name
        ),
    )
}

fn positions(shard: &ShardNode, bucket: &Bucket) -> Positions {
    shard.board.public().digests.get(&bucket.id).map(|digest| digest.positions.clone()).unwrap_or_default()
}

fn token(bucket: &Bucket, seen: BTreeMap<ShardId, Positions>) -> SessionToken {
    let mut token = SessionToken::default();
    for (shard, positions) in seen {
        for (region, lsn) in positions.0 {
            token.observe(bucket.id, shard, region, lsn);
        }
    }
    token
}

/// The greatest timestamp applied in a bucket.
pub(crate) fn bucket_hlc(board: &crate::board::Board, bucket: &Bucket) -> Hlc {
    board.public().digests.get(&bucket.id).map(|digest| digest.hlc).unwrap_or_default()
}
