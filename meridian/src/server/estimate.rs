//! `failover estimate` on the node that is asked (SWI-2): what every node that answers has, put together.
//!
//! What is decided from it is decided by the code that decides the failover itself ([`plan::assess`]). Nobody is waited for
//! longer than [`PATIENCE`], least of all the region that may be lost (SWI-3).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use meridian_metadata_core::plan;
use meridian_proto::convert::facts_from_proto;
use meridian_proto::dial::Dial;
use meridian_proto::v1;
use meridian_proto::v1::cluster_client::ClusterClient;
use meridian_types::{
    Bucket, BucketEstimate, BucketId, Consent, Estimate, Loss, Muster, NodeId, RegionId, Remains, ShardFacts, ShardId,
    Topology,
};
use tokio::time::timeout;

/// How long other nodes may take to say what they have: two round trips around the planet. The answer is wanted in a second.
const PATIENCE: Duration = Duration::from_millis(700);

/// The largest answer taken from a node, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What is asked.
pub(crate) struct Asked<'a> {
    pub(crate) here: RegionId,
    /// The next primary that was named.
    pub(crate) to: Option<RegionId>,
    pub(crate) topology: &'a Topology,
    pub(crate) buckets: &'a [Arc<Bucket>],
}

/// What was heard.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    /// The regions of which a node answered.
    regions: BTreeSet<RegionId>,
    facts: BTreeMap<(BucketId, RegionId, ShardId), ShardFacts>,
}

impl Heard {
    fn add(&mut self, (region, facts): (RegionId, Vec<ShardFacts>)) {
        self.regions.insert(region);
        for fact in facts {
            let known = self.facts.entry((fact.bucket, region, fact.shard)).or_insert(fact);
            // Two nodes that both believe to lead a shard: the one that has more is right.
            if fact.remains.rank() > known.remains.rank() {
                *known = fact;
            }
        }
    }

    fn of(&self, bucket: BucketId) -> impl Iterator<Item = (RegionId, &ShardFacts)> {
        let range = (bucket, RegionId(0), ShardId(0))..=(bucket, RegionId(u16::MAX), ShardId(u16::MAX));
        self.facts.range(range).map(|((_, region, _), fact)| (*region, fact))
    }
}

/// Asks every other node at once what it has of the buckets.
pub(crate) async fn gather(
    topology: &Topology,
    own: NodeId,
    peers: &dyn Dial,
    buckets: &[Arc<Bucket>],
    own_facts: (RegionId, Vec<ShardFacts>),
) -> Heard {
    let request = v1::FailoverFactsRequest { buckets: buckets.iter().map(|bucket| bucket.id.0).collect() };
    let others = topology.nodes.keys().filter(|node| **node != own);
    let answers = join_all(others.map(|node| ask(peers, *node, request.clone()))).await;
    let mut heard = Heard::default();
    if own_facts.0 != RegionId::default() {
        heard.add(own_facts);
    }
    answers.into_iter().flatten().for_each(|answer| heard.add(answer));
    heard
}

async fn ask(peers: &dyn Dial, node: NodeId, request: v1::FailoverFactsRequest) -> Option<(RegionId, Vec<ShardFacts>)> {
    let mut stub = ClusterClient::new(peers.channel(node)?).max_decoding_message_size(ANSWER_BYTES_MAX);
    match timeout(PATIENCE, stub.failover_facts(request)).await {
        Ok(Ok(answer)) => facts_from_proto(answer.into_inner()).ok(),
        Ok(Err(status)) => {
            tracing::debug!(%node, %status, "a node does not say what it has");
            None
        }
        Err(_) => None,
    }
}

/// Puts together what was heard.
pub(crate) fn estimate(asked: &Asked<'_>, heard: &Heard) -> Estimate {
    let buckets: Vec<BucketEstimate> =
        asked.buckets.iter().filter_map(|bucket| estimate_bucket(asked, bucket, heard)).collect();
    let to = asked.to.and_then(|to| asked.topology.regions.get(&to)).map(|region| region.name.clone());
    let risky = buckets.iter().filter(|it| it.to.is_some() && !it.proven);
    let agreed: BTreeMap<_, _> = risky.map(|it| (it.name.clone(), (it.epoch, it.lost))).collect();
    let consent = (!agreed.is_empty()).then_some(Consent { to, buckets: agreed });
    Estimate { region: asked.here, heard: heard.regions.iter().copied().collect(), took_ms: 0, buckets, consent }
}

fn estimate_bucket(asked: &Asked<'_>, bucket: &Bucket, heard: &Heard) -> Option<BucketEstimate> {
    let from = bucket.primary?;
    let mut muster = Muster::default();
    for (region, fact) in heard.of(bucket.id).filter(|(region, _)| *region != from && bucket.is_in(*region)) {
        muster.remains.entry(region).or_default().insert(fact.shard, fact.remains);
    }
    let assessment = plan::assess(bucket, asked.topology.shards, &muster, asked.to);
    let (oldest_ms, said_ms) = words(bucket, from, heard);
    let estimate = BucketEstimate {
        bucket: bucket.id,
        name: bucket.name.clone(),
        epoch: bucket.epoch,
        from,
        primary_answers: heard.regions.contains(&from),
        to: None,
        pulls: false,
        proven: false,
        needed: plan::regions_needed(bucket),
        heard: Vec::new(),
        lost: Loss::default(),
        oldest_ms,
        said_ms,
        obstacle: String::new(),
    };
    Some(match assessment {
        Some(it) => BucketEstimate {
            to: Some(it.to),
            pulls: it.pulls,
            proven: it.verdict.proven,
            heard: it.verdict.heard,
            lost: it.verdict.lost,
            ..estimate
        },
        None => BucketEstimate { obstacle: obstacle(asked, bucket, from, &muster.remains), ..estimate },
    })
}

/// The age of the oldest write that was known to be missing, and of the oldest of the last words about any shard.
fn words(bucket: &Bucket, from: RegionId, heard: &Heard) -> (u64, Option<u64>) {
    let mut newest: BTreeMap<ShardId, (u64, u64)> = BTreeMap::new();
    for (_, fact) in heard.of(bucket.id).filter(|(region, _)| *region != from) {
        let (Some(said_ms), Some(exposure)) = (fact.said_ms, fact.exposure()) else { continue };
        let known = newest.entry(fact.shard).or_insert((said_ms, exposure.oldest_ms));
        *known = (known.0.min(said_ms), known.1.min(exposure.oldest_ms));
    }
    let oldest_ms = newest.values().map(|(_, oldest)| *oldest).max().unwrap_or_default();
    (oldest_ms, newest.values().map(|(said, _)| *said).max())
}

fn obstacle(
    asked: &Asked<'_>,
    bucket: &Bucket,
    from: RegionId,
    remains: &BTreeMap<RegionId, BTreeMap<ShardId, Remains>>,
) -> String {
    let label = |region: RegionId| asked.topology.region_label(region);
    let others: Vec<String> = bucket.targets(from).map(label).collect();
    match asked.to {
        _ if others.is_empty() => format!("it has no copy outside {}", label(from)),
        Some(to) if to == from => format!("{} is its primary already", label(to)),
        Some(to) if !bucket.is_in(to) => format!("{} has no copy of it: it is in {}", label(to), others.join(", ")),
        Some(to) if !remains.contains_key(&to) => format!("{} does not answer", label(to)),
        Some(to) => format!("{} has no leader for some shard, or is being repaired: try again", label(to)),
        None if remains.is_empty() => format!("none of {} answers", others.join(", ")),
        None => format!("no region of {} has a whole copy now: see `meridian status`", others.join(", ")),
    }
}
