//! Where a request belongs: here, at this shard's leader, or in another region. Any node takes any request.
//!
//! ```text
//! client -> any node -> a node of the primary's region -> the shard's leader there
//! client -> any node -> the shard's leader beside it -> a node of the primary's region -> the shard's leader there
//! ```
//!
//! The second way is a write's whose second copy is the one in this region: whoever leads the shard sees it first. A request from another
//! region is never sent out of this one again, and one from this region not on to another node here: so no request makes more
//! than four hops, whatever the nodes' copies of the topology say.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use meridian_types::{
    Bucket, BucketId, Effect, Epoch, Key, Read, ReadLevel, Refusal, RefusalKind, RegionId, Request, Response, ShardId,
    Topology, Write,
};
use tokio::time::{Instant, timeout_at};

use crate::node::{Node, ShardNode, Standing};

/// Who sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A client.
    Client,
    /// A node, for a client of its own.
    Peer {
        /// The region it is in.
        region: RegionId,
    },
}

/// How long a name may be unknown here before it counts as unknown everywhere: a bucket that was just created
/// through another node arrives within a metadata heartbeat and a trip around the world.
const UNKNOWN_BUCKET_PATIENCE: Duration = Duration::from_millis(600);

/// Where a request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Here,
    Region(RegionId),
}

/// Where a write of the bucket is ordered, seen from `region`.
pub(crate) fn route_write(bucket: &Bucket, region: RegionId) -> Route {
    match bucket.primary {
        _ if bucket.accepts_writes_in(region) => Route::Here,
        Some(primary) => Route::Region(primary),
        // Active-active, but not held here: the first region that holds it.
        None => bucket.regions.first().map_or(Route::Here, |first| Route::Region(*first)),
    }
}

/// Where a read of the bucket is answered first, seen from `region`.
pub(crate) fn route_read(bucket: &Bucket, region: RegionId, level: &ReadLevel) -> Result<Route, Refusal> {
    match (level, bucket.primary) {
        (ReadLevel::Strong, None) => Err(Refusal::new(
            RefusalKind::Invalid,
            format!(
                "bucket `{}` is active-active: no region orders its writes, so there are no strong reads: use session, bounded or eventual",
                bucket.name
            ),
        )),
        (ReadLevel::Strong, Some(primary)) if primary != region => Ok(Route::Region(primary)),
        _ if bucket.is_in(region) => Ok(Route::Here),
        (_, Some(primary)) => Ok(Route::Region(primary)),
        (_, None) => Ok(bucket.regions.first().map_or(Route::Here, |first| Route::Region(*first))),
    }
}

impl Node {
    /// Carries out a request wherever it belongs.
    ///
    /// # Errors
    /// The typed "no" for its client.
    pub(crate) async fn execute(&self, request: Request, caller: Caller) -> Result<Response, Refusal> {
        let started = std::time::Instant::now();
        let call = self.metrics.call(&request);
        let answer = match self.admission.admit(bytes_of(&request)) {
            Ok(_permit) => self.route(request, caller).await,
            Err(refusal) => Err(refusal),
        };
        self.metrics.record(&call, started.elapsed(), &answer);
        answer
    }

    async fn route(&self, request: Request, caller: Caller) -> Result<Response, Refusal> {
        let deadline = self.deadline(&request);
        let standing = self.standing(&request, deadline).await?;
        match &request {
            Request::Write { write, .. } => {
                write.validate()?;
                let shard = self.shard_of_write(&standing.bucket, write)?;
                match self.route_write(&standing.bucket, shard)? {
                    Route::Here if shard.board.leads() => self.write_here(&standing, shard, request, deadline).await,
                    Route::Here => self.to_leader(shard, &request, caller, deadline).await,
                    Route::Region(region) => {
                        // A write that was sent here by a node beside this one, for the copy here is its second one.
                        let beside = caller == Caller::Peer { region: self.region() } && shard.board.leads();
                        self.check_hops(&standing, region, if beside { Caller::Client } else { caller })?;
                        self.write_there(&standing, (shard, caller), region, &request, deadline).await
                    }
                }
            }
            Request::Read { read, level, .. } => {
                read.validate()?;
                // Whoever asks whether a region that joins has followed asks that region alone.
                let asked = caller != Caller::Client && standing.bucket.joins.joining() == Some(self.region());
                let route = if asked { Route::Here } else { route_read(&standing.bucket, self.region(), level)? };
                match route {
                    Route::Here => self.read_here(&standing, &request, caller, deadline).await,
                    Route::Region(region) => self.read_there(&standing, region, &request, caller, deadline).await,
                }
            }
        }
    }

    /// Where a write is ordered. An active-active bucket that is being repaired here takes none, and none is passed on: a retry that
    /// comes after the repair would find no trace here of what another region had ordered (ONE-1).
    fn route_write(&self, bucket: &Bucket, shard: &ShardNode) -> Result<Route, Refusal> {
        match route_write(bucket, self.region()) {
            Route::Here if bucket.primary.is_none() && shard.board.is_closed(bucket.id) => Err(in_repair(bucket)),
            route => Ok(route),
        }
    }

    /// Looks the bucket up, waiting a moment for one that may just have been created elsewhere, and for the new primary
    /// of one that has none right now: a client sees a pause, not an error.
    async fn standing(&self, request: &Request, deadline: Instant) -> Result<Standing, Refusal> {
        let mut patience = None;
        let mut moves = None;
        loop {
            let lease = self.authority.lease_holds();
            let topology = self.authority.topology();
            let id = topology.bucket_ids.get(request.bucket());
            if let Some(bucket) = id.and_then(|id| topology.buckets.get(id)).cloned() {
                let between = bucket.is_between_primaries() && needs_primary(request, &bucket, self.region());
                // Passed on to whom this node takes for the primary, it could be ordered there when every region writes, and here, too (ONE-1).
                let unheard = begun(request) > bucket.epoch;
                if !between && !unheard {
                    return Ok(Standing { topology, bucket, lease });
                }
                // Subscribed first, looked at again second: no change is missed in between.
                let moves = match &mut moves {
                    Some(moves) => moves,
                    None => {
                        moves = Some(self.authority.topology_changes());
                        continue;
                    }
                };
                if !matches!(timeout_at(deadline, moves.changed()).await, Ok(Ok(()))) {
                    return Err(if unheard { unheard_of(&bucket, request) } else { handing_over(&bucket) });
                }
                continue;
            }
            let (until, changes) = patience.get_or_insert_with(|| {
                let until = (Instant::now() + UNKNOWN_BUCKET_PATIENCE).min(deadline);
                (until, self.authority.topology_changes())
            });
            if !matches!(timeout_at(*until, changes.changed()).await, Ok(Ok(()))) {
                return Err(self.unknown(request, lease, &topology));
            }
        }
    }

    /// Why a bucket is not found in `topology`. Only what is known under a lease is known to be all there is: a node that has just started may
    /// know less than the cluster does.
    fn unknown(&self, request: &Request, lease: bool, topology: &Topology) -> Refusal {
        let (name, index) = (request.bucket(), topology.index);
        if !lease {
            let message = format!(
                "`{name}` is not known here, but this node may not have heard of it yet (metadata index {index}, no lease)"
            );
            return Refusal::new(RefusalKind::Retry, message);
        }
        let remedy = format!("check the name, or create it with `meridian bucket create {name}`");
        Refusal::new(RefusalKind::NotFound, format!("there is no bucket `{name}` (metadata index {index}): {remedy}"))
    }

    /// The shard of a key.
    pub(crate) fn shard_of(&self, bucket: &Bucket, key: &Key) -> Result<&ShardNode, Refusal> {
        self.shard(key.shard(bucket.id, self.place.shards)).ok_or_else(missing_shard)
    }

    fn shard_of_write(&self, bucket: &Bucket, write: &Write) -> Result<&ShardNode, Refusal> {
        let Write::MultiPut { items } = write else {
            let mut keys = write.keys();
            let key = keys.next().ok_or_else(missing_shard)?;
            return self.shard_of(bucket, key);
        };
        let shards: BTreeSet<ShardId> = items.iter().map(|(key, _)| key.shard(bucket.id, self.place.shards)).collect();
        match (shards.len(), shards.first()) {
            (1, Some(shard)) => self.shard(*shard).ok_or_else(missing_shard),
            (count, _) => Err(Refusal::new(
                RefusalKind::Invalid,
                format!(
                    "the {} keys of this multi-put lie in {count} shards, and it is atomic within one only: put them one by one, or use one key for what must change together",
                    items.len()
                ),
            )),
        }
    }

    /// Refuses to send a request of another node on to a third region.
    fn check_hops(&self, standing: &Standing, target: RegionId, caller: Caller) -> Result<(), Refusal> {
        match caller {
            Caller::Client => Ok(()),
            Caller::Peer { .. } => Err(Refusal::new(
                RefusalKind::Redirect,
                format!(
                    "bucket `{}` belongs to region {} as of metadata index {}: refresh the topology and try again",
                    standing.bucket.name,
                    standing.topology.region_label(target),
                    standing.topology.index
                ),
            )),
        }
    }

    /// Sends a request on to the node of this region that leads the shard.
    pub(crate) async fn to_leader(
        &self,
        shard: &ShardNode,
        request: &Request,
        caller: Caller,
        deadline: Instant,
    ) -> Result<Response, Refusal> {
        let from_here = caller == Caller::Peer { region: self.region() };
        match shard.leader() {
            Some(leader) if leader != self.place.node && !from_here => {
                let answer = timeout_at(deadline, self.peers.ask(leader, request)).await;
                answer.map_err(|_| late(request))?.map_err(Refusal::from)
            }
            _ => Err(Refusal::new(
                RefusalKind::Retry,
                format!("shard {} has no leader in this region that is ready yet: try again after a pause", shard.id),
            )),
        }
    }

    /// Lets another region answer a read.
    pub(crate) async fn read_there(
        &self,
        standing: &Standing,
        region: RegionId,
        request: &Request,
        caller: Caller,
        deadline: Instant,
    ) -> Result<Response, Refusal> {
        self.check_hops(standing, region, caller)?;
        let Request::Read { read, .. } = request else { return Err(missing_shard()) };
        let shard = match read {
            Read::Get { key } => key.shard(standing.bucket.id, self.place.shards),
            Read::MultiGet { keys } => {
                keys.first().map_or(ShardId(0), |key| key.shard(standing.bucket.id, self.place.shards))
            }
            Read::Scan { .. } => ShardId(0),
        };
        self.ask_region(&standing.topology, region, shard, request, deadline).await
    }

    /// Asks another region, until the deadline, or until another one is the bucket's primary: then whoever was asked is gone,
    /// or answers nobody any more, and the request is better tried again under its id (ONE-1).
    pub(crate) async fn ask_region(
        &self,
        topology: &Topology,
        region: RegionId,
        shard: ShardId,
        request: &Request,
        deadline: Instant,
    ) -> Result<Response, Refusal> {
        let answer = timeout_at(deadline, self.peers.ask_region(topology, region, shard, request));
        let asked = topology.bucket_named(request.bucket().as_str()).filter(|bucket| bucket.primary == Some(region));
        let Some(asked) = asked else { return answer.await.map_err(|_| late(request))? };
        tokio::select! {
            biased;
            answer = answer => answer.map_err(|_| late(request))?,
            () = self.replaced(asked.id, region) => Err(replaced(request)),
        }
    }

    /// Waits until a bucket has another primary than `region`.
    pub(crate) async fn replaced(&self, bucket: BucketId, region: RegionId) {
        let has_another = |topology: &Arc<Topology>| {
            topology.buckets.get(&bucket).is_some_and(|bucket| bucket.primary.is_some_and(|primary| primary != region))
        };
        if self.authority.topology_changes().wait_for(has_another).await.is_err() {
            // The metadata plane is gone: the node is ending.
            std::future::pending().await
        }
    }
}

/// Whether only the bucket's primary can carry it out, seen from `region`. The primary knows no bound on its own
/// staleness but its right to act.
fn needs_primary(request: &Request, bucket: &Bucket, region: RegionId) -> bool {
    match request {
        Request::Write { .. } | Request::Read { level: ReadLevel::Strong, .. } => true,
        Request::Read { level: ReadLevel::Bounded { .. }, .. } => bucket.primary == Some(region),
        Request::Read { level: ReadLevel::Session | ReadLevel::Eventual, .. } => false,
    }
}

/// Under which epoch the request was begun; 0 where that is nothing to it.
fn begun(request: &Request) -> Epoch {
    match request {
        Request::Write { begun, .. } => *begun,
        Request::Read { .. } => Epoch(0),
    }
}

fn unheard_of(bucket: &Bucket, request: &Request) -> Refusal {
    Refusal::new(
        RefusalKind::Retry,
        format!(
            "the write was begun under epoch {} of bucket `{}`, and this node has heard of epoch {} only: nothing was changed; try again, or another region",
            begun(request),
            bucket.name,
            bucket.epoch
        ),
    )
}

fn handing_over(bucket: &Bucket) -> Refusal {
    Refusal::new(
        RefusalKind::Retry,
        format!(
            "bucket `{}` is being handed over to another region, and the deadline passed before that was done: nothing was changed; try again",
            bucket.name
        ),
    )
}

/// An active-active bucket is being repaired here. Its client goes elsewhere, if no attempt can have had an effect here
/// (docs/adr/2026-11-20-active-active-retries.md).
pub(crate) fn in_repair(bucket: &Bucket) -> Refusal {
    Refusal::new(
        RefusalKind::Redirect,
        format!(
            "bucket `{}` is being repaired in this region, which orders none of its writes meanwhile: nothing was changed; write in another region, but what may have been ordered here already is to be tried again here",
            bucket.name
        ),
    )
}

/// What a request holds in memory while it is under way, about.
fn bytes_of(request: &Request) -> usize {
    match request {
        Request::Read { .. } => 0,
        Request::Write { write, .. } => match write {
            Write::Put { key, value, .. }
            | Write::CompareAndSet { key, value, .. }
            | Write::PutIfAbsent { key, value, .. }
            | Write::Append { key, suffix: value } => key.as_bytes().len() + value.as_bytes().len(),
            Write::Delete { key } | Write::Increment { key, .. } => key.as_bytes().len(),
            Write::MultiPut { items } => {
                items.iter().map(|(key, value)| key.as_bytes().len() + value.as_bytes().len()).sum()
            }
        },
    }
}

/// The deadline passed while another node was asked.
pub(crate) fn late(request: &Request) -> Refusal {
    let refusal = Refusal::new(RefusalKind::Retry, "the deadline passed before the request was answered: try again");
    match request {
        Request::Read { .. } => refusal,
        Request::Write { .. } => refusal.with_effect(Effect::Unknown),
    }
}

/// Another region became the primary while the old one was asked.
fn replaced(request: &Request) -> Refusal {
    let refusal = Refusal::new(RefusalKind::Retry, "the bucket's primary was replaced while it was asked: try again");
    match request {
        Request::Read { .. } => refusal,
        Request::Write { .. } => refusal.with_effect(Effect::Unknown),
    }
}

/// Topology and node disagree on how many shards there are.
pub(crate) fn missing_shard() -> Refusal {
    Refusal::new(
        RefusalKind::Internal,
        "the key's shard is not on this node: is the number of shards the same on every node?",
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use meridian_types::{BucketId, BucketName, Epoch, Hlc, Phase, Policy};

    use super::*;

    const A: RegionId = RegionId(1);
    const B: RegionId = RegionId(2);
    const ELSEWHERE: RegionId = RegionId(9);

    fn bucket(primary: Option<RegionId>) -> Bucket {
        Bucket {
            id: BucketId(1),
            name: BucketName::new("b").unwrap(),
            policy: if primary.is_some() { Policy::ASYNC } else { Policy::ActiveActive },
            epoch: Epoch(1),
            phase: Phase::Steady,
            primary,
            regions: vec![A, B],
            labels: BTreeMap::new(),
            created: Hlc(0),
            standing: Default::default(),
            auto: Default::default(),
            turns: Default::default(),
            joins: Default::default(),
            crossing: None,
        }
    }

    #[test]
    fn writes_go_to_the_primary_and_anywhere_in_active_active() {
        assert_eq!(route_write(&bucket(Some(A)), A), Route::Here);
        assert_eq!(route_write(&bucket(Some(A)), B), Route::Region(A));
        assert_eq!(route_write(&bucket(None), B), Route::Here);
        assert_eq!(route_write(&bucket(None), ELSEWHERE), Route::Region(A));
    }

    #[test]
    fn reads_stay_local_unless_they_are_strong_or_the_bucket_is_elsewhere() {
        let eventual = ReadLevel::Eventual;
        assert_eq!(route_read(&bucket(Some(A)), B, &eventual), Ok(Route::Here));
        assert_eq!(route_read(&bucket(Some(A)), B, &ReadLevel::Strong), Ok(Route::Region(A)));
        assert_eq!(route_read(&bucket(Some(A)), A, &ReadLevel::Strong), Ok(Route::Here));
        assert_eq!(route_read(&bucket(Some(A)), ELSEWHERE, &eventual), Ok(Route::Region(A)));
        assert_eq!(route_read(&bucket(None), ELSEWHERE, &eventual), Ok(Route::Region(A)));
        let refusal = route_read(&bucket(None), A, &ReadLevel::Strong).unwrap_err();
        assert_eq!(refusal.kind, RefusalKind::Invalid);
        assert!(refusal.message.contains("session"), "it names what to use: {}", refusal.message);
    }
}
