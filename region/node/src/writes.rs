//! A write's way: ordered here by its shard's log, or forwarded to where it is ordered, and never acknowledged with
//! less than was promised (DUR-2, FEN-1).

use meridian_failpoint::failpoint;
use meridian_region_core::{WriteResult, active_active_body};
use meridian_types::entry::{Body, Kind, WriteBody};
use meridian_types::{
    Bucket, BucketId, Durability, Effect, Epoch, Freshness, Lsn, Outcome, Positions, Refusal, RefusalKind, RegionId,
    Request, RequestId, Response, SessionToken, ShardId, Write, WriteAck,
};
use tokio::time::{Duration, Instant, sleep_until, timeout_at};

use crate::node::{Node, ShardNode, Standing};
use crate::proposer;
use crate::router::{Caller, in_repair, late};

/// The durability a write must reach.
struct Required {
    /// Regions, the ordering one counted.
    regions: usize,
    /// How many while DEGRADED is on record: what the request itself asks for (DEG-1).
    degraded: usize,
}

/// A write that its shard has decided.
struct Decided {
    /// Where in this region's log it was asked for: whoever has that has everything it rests on.
    at: Lsn,
    /// The region whose log the result's position is in; not known of an old answer without a version.
    origin: Option<RegionId>,
    result: WriteResult,
}

impl Required {
    fn of(bucket: &Bucket, ack: WriteAck) -> Result<Required, Refusal> {
        let holders = bucket.regions.len();
        let regions = ack.required_regions(bucket.policy.required_regions(holders), holders);
        if regions > holders {
            return Err(Refusal::new(
                RefusalKind::Invalid,
                format!(
                    "`ack = regions({regions})` can't be reached: bucket `{}` is held by {holders} regions: ask for fewer, or add regions to it",
                    bucket.name
                ),
            ));
        }
        Ok(Required { regions, degraded: ack.required_regions(1, holders) })
    }
}

/// A retry of what another primary ordered, of which more copies are asked for than this one can prove.
fn unprovable(standing: &Standing, old: RegionId, required: &Required, result: &WriteResult) -> Refusal {
    let effect = if result.outcome.is_ok() { Effect::Applied } else { Effect::None };
    let message = format!(
        "the write stands: region {} ordered it when it was the primary, and this one has it; that {} regions have it can't be proven to a retry: read it, or write again under a new request id",
        standing.topology.region_label(old),
        required.regions
    );
    Refusal::new(RefusalKind::Unavailable, message).with_effect(effect)
}

/// In an active-active bucket, a write that asks for copies in other regions while this one can't tell who holds the bucket.
fn uncounted(required: usize, result: &WriteResult) -> Refusal {
    let effect = if result.outcome.is_ok() { Effect::Applied } else { Effect::None };
    let message = format!(
        "the write stands in this region, but {required} regions are to have it, and this one has no lease from the metadata plane now, so it can't tell which regions hold the bucket: try again with the same request id, or ask for a copy in this region only"
    );
    Refusal::new(RefusalKind::Unavailable, message).with_effect(effect)
}

impl Node {
    /// Orders a write in this region's own log.
    pub(crate) async fn write_here(
        &self,
        standing: &Standing,
        shard: &ShardNode,
        request: Request,
        deadline: Instant,
    ) -> Result<Response, Refusal> {
        let Request::Write { write, ack, id, lowest_outstanding, begun, session, .. } = request else {
            return Err(Refusal::new(RefusalKind::Internal, "a read was taken for a write"));
        };
        let bucket = &standing.bucket;
        let required = Required::of(bucket, ack)?;
        self.writable()?;
        if bucket.primary.is_some() && !standing.lease {
            return Err(no_lease());
        }
        self.in_force(bucket, shard, deadline).await?;
        if let Some(seen) = session.seen(bucket.id, shard.id) {
            self.check_sight(standing, shard, seen, deadline).await?;
            self.seen_here(bucket, shard, seen, deadline).await?;
        }
        if bucket.primary.is_none()
            && let Some(decided) = self.decided_before(bucket, shard, id, begun)?
        {
            return self.acknowledge(standing, shard, decided, required, deadline).await;
        }
        let entry = self.encode(standing, shard, write, id, lowest_outstanding)?;
        let room = self.room(bucket, shard, entry.len(), deadline).await?;
        let (proposal, stamped) = shard.proposer.propose_stamped(entry)?;
        room.ordered(stamped);
        let applied = timeout_at(deadline, proposal).await.map_err(|_| self.unconfirmed(shard))?;
        let applied = applied.map_err(|why| proposer::refusal(&why))?;
        failpoint("write.applied");
        let result = WriteResult::decode(&applied.result).map_err(undecodable)?;
        // A kept answer may be of another region's log, from when that was the primary.
        let origin = if result.hlc == stamped { Some(self.region()) } else { origin(&result) };
        self.acknowledge(standing, shard, Decided { at: applied.lsn, origin, result }, required, deadline).await
    }

    /// What was decided, under an earlier epoch, of a request that is to be ordered in an active-active bucket: each region has all
    /// of those epochs, unless it is being repaired. A request that was begun under one and was not decided never is by another attempt of then, for all
    /// regions refuse it, and two of them must not both order it: its client begins it again (ONE-1).
    fn decided_before(
        &self,
        bucket: &Bucket,
        shard: &ShardNode,
        id: RequestId,
        begun: Epoch,
    ) -> Result<Option<Decided>, Refusal> {
        let core = shard.board.core();
        // A moment ago it may have been open.
        if core.is_closed(bucket.id) || core.astray(bucket.id).is_some() {
            return Err(in_repair(bucket));
        }
        // One that was always active-active has no earlier epoch.
        if bucket.epoch == Epoch(1) {
            return Ok(None);
        }
        // What is decided this very moment is in the store a moment later.
        let kept = core.answered(&self.store, bucket.id, id).map_err(|why| {
            let message = format!("the request is being decided, or its kept answer can't be read ({why}): try again");
            Refusal::new(RefusalKind::Retry, message).with_effect(Effect::Unknown)
        })?;
        if let Some(kept) = kept {
            let result = WriteResult::decode(&kept).map_err(undecodable)?;
            return Ok(Some(Decided { at: core.applied(), origin: origin(&result), result }));
        }
        if begun == Epoch(0) || begun >= bucket.epoch {
            return Ok(None);
        }
        Err(Refusal::new(
            RefusalKind::Fenced,
            format!(
                "the write was begun under epoch {begun} of bucket `{}`, and every region writes it since epoch {}: nothing was changed, and no attempt of then will change anything; begin it again",
                bucket.name, bucket.epoch
            ),
        ))
    }

    /// Waits until the bucket's epoch has begun in the shard: its predecessor's seal is a moment away, or this node's
    /// copy of the metadata is (FEN-2).
    pub(crate) async fn in_force(&self, bucket: &Bucket, shard: &ShardNode, deadline: Instant) -> Result<(), Refusal> {
        let mut applied = None;
        loop {
            let epoch = shard.board.epoch(bucket.id);
            if epoch == bucket.epoch {
                return Ok(());
            }
            let Some(applied) = &mut applied else {
                applied = Some(shard.board.watch_applied());
                continue;
            };
            let late = epoch > bucket.epoch || !matches!(timeout_at(deadline, applied.changed()).await, Ok(Ok(())));
            if late {
                return Err(Refusal::new(
                    RefusalKind::Retry,
                    format!(
                        "bucket `{}` is in epoch {} on record and in epoch {epoch} in shard {}: nothing was changed; try again",
                        bucket.name, bucket.epoch, shard.id
                    ),
                ));
            }
        }
    }

    /// Waits until everything the session has seen is applied here: the write must come after it (CON-2). What this
    /// region ordered itself is before it in any case.
    async fn seen_here(
        &self,
        bucket: &Bucket,
        shard: &ShardNode,
        seen: &Positions,
        deadline: Instant,
    ) -> Result<(), Refusal> {
        let mut foreign = seen.clone();
        foreign.0.remove(&self.region());
        if foreign.0.is_empty() || self.covers(shard, bucket, &foreign, Some(deadline)).await {
            return Ok(());
        }
        Err(Refusal::new(
            RefusalKind::Stale,
            "this region has not yet received what the session has seen, so the write can't be ordered after it: try again, or write where the session wrote last",
        ))
    }

    fn encode(
        &self,
        standing: &Standing,
        shard: &ShardNode,
        write: Write,
        id: RequestId,
        lowest_outstanding: u64,
    ) -> Result<bytes::Bytes, Refusal> {
        let bucket = &standing.bucket;
        let body = match bucket.primary {
            Some(_) => WriteBody::Plain(write),
            None => active_active_body(&self.store, shard.id, bucket.id, &write, self.clock.wall_ms(), self.region())?,
        };
        let mut header = self.header(Kind::Write, bucket.id, bucket.epoch);
        header.id = id;
        header.lowest_outstanding = lowest_outstanding;
        Ok(header.encode(&Body::Write(body)))
    }

    fn unconfirmed(&self, shard: &ShardNode) -> Refusal {
        let hangs = |age: Duration| format!(", whose disk has not answered for {:.1} s,", age.as_secs_f64());
        let why = self.log.stalled().map(hangs).unwrap_or_default();
        let message = format!(
            "shard {}{why} did not confirm the write before the deadline; it may still happen: try again with the same request id",
            shard.id
        );
        Refusal::new(RefusalKind::Retry, message).with_effect(Effect::Unknown)
    }

    /// Answers an applied write: once enough regions have it, and only while this region is still the primary.
    async fn acknowledge(
        &self,
        standing: &Standing,
        shard: &ShardNode,
        decided: Decided,
        required: Required,
        deadline: Instant,
    ) -> Result<Response, Refusal> {
        let Decided { at, origin, result } = decided;
        let bucket = &standing.bucket;
        // These say nothing about the data; everything else may rest on writes that a failover could still undo.
        if let Err(refusal) = &result.outcome
            && refusal.kind != RefusalKind::Conflict
        {
            return Err(refusal.clone());
        }
        let mut regions = 1;
        let others = self.counted(standing, shard, required.regions - 1, deadline).await;
        if let Some(old) = origin.filter(|origin| *origin != self.region()) {
            // Both primaries have what the old one sealed, but one that was removed since holds no copy that counts (DUR-2). Of the
            // other regions only their own lanes from it could tell.
            let holders: Vec<RegionId> = Some(old).filter(|old| bucket.is_in(*old)).into_iter().collect();
            regions += holders.len();
            if required.regions > regions {
                return Err(unprovable(standing, old, &required, &result));
            }
        } else if required.regions > 1 {
            let lane = bucket.policy.lane();
            let needed = (required.regions - 1, required.degraded - 1);
            let enough = self.copied_or_fewer(standing, shard, at, &others, needed, deadline).await;
            failpoint("write.copied");
            if !enough && !shard.board.leads() {
                return Err(deposed(shard));
            }
            // Where every region writes, the others may have gone on without this one, and a copy of what it orders be none: who holds a lease
            // has heard of that. Lease first, topology second.
            if bucket.primary.is_none() && !self.authority.lease_holds() {
                return Err(uncounted(required.regions, &result));
            }
            // Who began to be repaired meanwhile holds no copy now, nor who was removed: it drops what it has.
            let mut now = self.others(bucket, shard.id);
            let known = self.authority.topology().buckets.get(&bucket.id).cloned();
            now.retain(|region| known.as_ref().is_some_and(|known| known.is_in(*region)));
            let holders = shard.holders(lane, at, &now);
            let all = holders.len() + 1 >= required.regions;
            let fewer = enough && holders.len() + 1 >= required.degraded && self.may_take_fewer(standing);
            if !all && !fewer {
                return Err(self.too_few(standing, &others, &holders, &required, &result));
            }
            regions += holders.len();
        }
        let still = if bucket.primary.is_some() { self.still_primary(standing) } else { self.still_writes(bucket.id) };
        if !still {
            return Err(Refusal::new(
                RefusalKind::Retry,
                "this region's right to acknowledge ran out while the write was under way; whether it stands is unknown: try again with the same request id",
            )
            .with_effect(Effect::Unknown));
        }
        let nodes = self
            .quorum(&standing.topology, self.region(), shard.id)
            .saturating_mul(u16::try_from(regions).unwrap_or(u16::MAX));
        let durability = Durability { regions: u16::try_from(regions).unwrap_or(u16::MAX), nodes };
        failpoint("write.acknowledge.before");
        respond(standing, shard, self.region(), origin, result, durability)
    }

    /// Whether this region is still one of those that write an active-active bucket. What it had ordered when the others went on without it is void
    /// once it has written it down, and then travels to nobody, whoever confirms what comes behind it.
    fn still_writes(&self, bucket: BucketId) -> bool {
        self.authority.topology().buckets.get(&bucket).is_some_and(|bucket| bucket.is_in(self.region()))
    }

    /// The other regions whose copies count: not one that is being repaired, which is on no history until it is over, nor one that
    /// has not followed into the bucket's lane, whose copies may be of no use without this region (DUR-2).
    pub(crate) fn others(&self, bucket: &Bucket, shard: ShardId) -> Vec<RegionId> {
        let whole = |region: &RegionId| !self.repairs.sources.serves(shard, bucket.id, *region);
        bucket.targets(self.region()).filter(whole).filter(|region| self.has_followed(bucket, shard, *region)).collect()
    }

    fn too_few(
        &self,
        standing: &Standing,
        others: &[RegionId],
        holders: &[RegionId],
        required: &Required,
        result: &WriteResult,
    ) -> Refusal {
        let missing: Vec<String> = others
            .iter()
            .filter(|region| !holders.contains(region))
            .map(|region| standing.topology.region_label(*region))
            .collect();
        let effect = if result.outcome.is_ok() { Effect::Applied } else { Effect::None };
        Refusal::new(
            RefusalKind::Unavailable,
            format!(
                "{} of {} required regions have the write: {} did not confirm it in time. It stands in this region and is still being shipped; a retry with the same request id waits for it again",
                holders.len() + 1,
                required.regions,
                missing.join(", ")
            ),
        )
        .with_effect(effect)
    }

    /// Has another region order a write. When this region's own copy is the second of two required, its own apply
    /// answers as soon as it happens: one round trip (design 6). Whichever valid answer is first is given. The leader's apply is the
    /// first to be known of, so it is the leader that asks.
    pub(crate) async fn write_there(
        &self,
        standing: &Standing,
        (shard, caller): (&ShardNode, Caller),
        primary: RegionId,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, Refusal> {
        let Request::Write { ack, id, .. } = request else {
            return Err(Refusal::new(RefusalKind::Internal, "a read was taken for a write"));
        };
        let bucket = &standing.bucket;
        let required = Required::of(bucket, *ack)?;
        let second_copy = required.regions == 2 && bucket.is_in(self.region());
        if second_copy
            && caller == Caller::Client
            && let Some(answer) = self.by_leader_beside(shard, request, deadline).await
        {
            return answer;
        }
        let second_copy = second_copy && shard.board.leads();
        // Registered before the request leaves, so that no apply is missed.
        let waiter = if second_copy { shard.board.waiters.register((bucket.id, *id)) } else { None };
        let answer = self.ask_region(&standing.topology, primary, shard.id, request, deadline);
        let Some(mut waiter) = waiter else { return answer.await };
        tokio::pin!(answer);
        let refusal = tokio::select! {
            biased;
            result = waiter.result() => return match rules_known(standing, shard) {
                true => self.answer_early(standing, shard, primary, &result),
                false => (&mut answer).await,
            },
            answer = &mut answer => match answer {
                Ok(response) => return Ok(response),
                Err(refusal) if refusal.effect == Effect::Unknown => refusal,
                Err(refusal) => return Err(refusal),
            },
        };
        // The primary's answer got lost, but the write may still arrive, until another region is the primary.
        tokio::select! {
            biased;
            result = waiter.result() => match rules_known(standing, shard) {
                true => self.answer_early(standing, shard, primary, &result),
                false => Err(refusal),
            },
            () = self.replaced(bucket.id, primary) => Err(refusal),
            () = sleep_until(deadline) => Err(refusal),
        }
    }

    /// What the node beside this one says that leads the shard; `None` where that is this one, or nobody, or one that is not reached.
    async fn by_leader_beside(
        &self,
        shard: &ShardNode,
        request: &Request,
        deadline: Instant,
    ) -> Option<Result<Response, Refusal>> {
        let leader = shard.leader().filter(|leader| *leader != self.place.node)?;
        match timeout_at(deadline, self.peers.ask(leader, request)).await {
            Ok(Ok(response)) => Some(Ok(response)),
            Ok(Err(failure)) => {
                let refusal = Refusal::from(failure);
                let elsewhere =
                    matches!(refusal.kind, RefusalKind::Retry | RefusalKind::Redirect | RefusalKind::Unavailable);
                (!elsewhere || refusal.effect != Effect::None).then_some(Err(refusal))
            }
            Err(_) => Some(Err(late(request))),
        }
    }

    fn answer_early(
        &self,
        standing: &Standing,
        shard: &ShardNode,
        primary: RegionId,
        result: &[u8],
    ) -> Result<Response, Refusal> {
        let result = WriteResult::decode(result).map_err(undecodable)?;
        let nodes = self.quorum(&standing.topology, primary, shard.id).saturating_add(self.quorum(
            &standing.topology,
            self.region(),
            shard.id,
        ));
        let origin = origin(&result);
        failpoint("write.answer-early.before");
        respond(standing, shard, self.region(), origin, result, Durability { regions: 2, nodes })
    }
}

/// Whether the epoch in force in the shard is the one this gateway has heard of: what an early answer says, and how many copies it
/// takes, are rules of the epoch that the write was ordered under. Who hears of it too late leaves the answer to the
/// primary (FEN-1, DUR-2).
fn rules_known(standing: &Standing, shard: &ShardNode) -> bool {
    shard.board.epoch(standing.bucket.id) == standing.bucket.epoch
}

/// The region whose log a result's position is in, as far as the result says it.
fn origin(result: &WriteResult) -> Option<RegionId> {
    match result.outcome.as_ref().ok()? {
        Outcome::Written { version }
        | Outcome::Deleted { version, .. }
        | Outcome::Count { version, .. }
        | Outcome::Length { version, .. } => Some(version.region),
        Outcome::ConditionFailed { .. } | Outcome::Value(_) | Outcome::Values(_) | Outcome::Page { .. } => None,
    }
}

fn respond(
    standing: &Standing,
    shard: &ShardNode,
    answering: RegionId,
    origin: Option<RegionId>,
    result: WriteResult,
    durability: Durability,
) -> Result<Response, Refusal> {
    let outcome = result.outcome?;
    let mut session = SessionToken::default();
    match origin {
        Some(origin) => session.observe(standing.bucket.id, shard.id, origin, result.lsn.max(Lsn(1))),
        // Of a kept failure nobody knows whose log its position is in; whatever it rests on is here, though (CON-2).
        None => {
            let here = shard.board.public().digests.get(&standing.bucket.id).cloned().unwrap_or_default();
            here.positions.0.iter().for_each(|(of, lsn)| session.observe(standing.bucket.id, shard.id, *of, *lsn));
        }
    }
    Ok(Response {
        region: answering,
        epoch: standing.bucket.epoch,
        outcome,
        freshness: Freshness { hlc: result.hlc, staleness_ms: None },
        durability: Some(durability),
        session,
    })
}

/// This region's primary right is not confirmed now.
pub(crate) fn no_lease() -> Refusal {
    Refusal::new(
        RefusalKind::Unavailable,
        "this node has no lease from the metadata plane now, so it may not act as the primary: try again; if it lasts, check that a majority of the metadata plane is up and reachable",
    )
}

/// Another node leads the shard by now, and hears of the copies.
fn deposed(shard: &ShardNode) -> Refusal {
    let message = format!(
        "another node leads shard {} now, and this one does not hear who has the write: try again with the same request id",
        shard.id
    );
    Refusal::new(RefusalKind::Retry, message).with_effect(Effect::Unknown)
}

fn undecodable(why: meridian_region_core::ResultError) -> Refusal {
    Refusal::new(RefusalKind::Internal, format!("the write was applied but its result can't be read: {why}"))
        .with_effect(Effect::Unknown)
}
