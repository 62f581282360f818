//! One round: fresh buckets, clients at work, an agenda carried out beside them, everything healed, a last look, and
//! every promise checked.
//!
//! A long run is many rounds on one planet that is never started anew. Each has buckets of its own, so that its
//! history is short enough to be searched, and what is wrong is known soon after it happened.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use meridian_client::Client;
use meridian_types::{AutoFailover, Bucket, BucketName, BucketSpec, RegionId};

use super::agenda::Agenda;
use super::nemesis::{Doing, Nemesis, Tally};
use super::operator::{self, Moves};
use super::outage;
use super::regions::{Meter, Regions};
use super::tools::Tools;
use super::undone;
use crate::check::{self, Evidence, Limits, Setup, Verdict};
use crate::history::{History, Operation};
use crate::real::{BUCKETS, Planet, REGIONS, verdict};
use crate::target::Target;
use crate::workload::{Kind, Options, Plan, Workload};

/// How long regions may take to agree after that. What takes longer than the bound on recovery is a violation
/// already; the rest of the patience shows whether it is late or never.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a round is made of.
#[derive(Clone, Debug)]
pub struct Script {
    /// Its number, part of its buckets' names.
    pub number: u32,
    /// Decides what clients do.
    pub seed: u64,
    /// What is done to the planet.
    pub agenda: Agenda,
    /// Policies whose buckets are used: places in [`BUCKETS`].
    pub policies: Vec<usize>,
    /// Mean pause of a client between two operations.
    pub think: Duration,
    /// How long clients go on after everything is whole again.
    pub afterwards: Duration,
    /// Whether primaries move meanwhile: switchovers by an operator, and failovers of sync buckets by themselves.
    pub primaries_move: bool,
}

impl Script {
    /// How long clients work.
    pub fn length(&self) -> Duration {
        self.agenda.length() + self.afterwards
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// What clients did and were told.
    pub operations: Vec<Operation>,
    /// What was done to the planet.
    pub tally: Tally,
    /// The same, a line for each thing and when.
    pub log: Vec<String>,
    /// How primaries moved.
    pub moves: Moves,
    /// Weak reads that saw what a failover undid, which nobody judges.
    pub undone: usize,
    /// What the checkers found.
    pub verdict: Verdict,
    /// What else is wrong: regions that did not become equal, nodes that ended by themselves.
    pub wrong: Vec<String>,
    /// Per policy that was used, by its place in [`BUCKETS`]: the longest time without any answer to anybody, and to the clients of
    /// some region.
    pub outages: BTreeMap<usize, (Duration, Duration)>,
}

/// The planet and what is around it.
pub struct Stage {
    // First, so that its processes end before their disks and networks go.
    /// Its nodes.
    pub planet: Planet,
    /// What faults are made with.
    pub tools: Arc<Tools>,
    /// A client of the observer.
    pub observer: Client,
    /// When the run began.
    pub began: Instant,
    /// What the nemesis does now.
    pub doing: Doing,
}

impl Outcome {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.verdict.is_clean() && self.wrong.is_empty()
    }
}

/// Plays a round and hands the stage back. `watch` runs beside it, to print progress.
///
/// # Errors
/// When the round could not be played, which says nothing about what was promised.
pub async fn play<W: Future<Output = ()>>(
    stage: Stage,
    script: &Script,
    watch: impl FnOnce(Meter) -> W,
) -> anyhow::Result<(Stage, Outcome)> {
    let buckets = create_buckets(&stage.observer, script).await?;
    let topology = patiently(async || Ok(stage.observer.admin().topology().await?)).await?;
    let ids: Vec<RegionId> = topology.regions.keys().copied().collect();
    let clients = Regions::open(stage.tools.ground(), &stage.planet, &ids, stage.began)?;
    let plan = plan(script, &buckets, ids.clone(), topology.shards);
    let history = History::default();
    let begun_us = clients.now_us();

    let admin = stage.observer.clone();
    let harming = async {
        let (stage, done) = harm(stage, script.agenda.clone()).await?;
        Ok::<_, anyhow::Error>((stage, done, clients.now_us()))
    };
    let moving = async {
        let length = if script.primaries_move { script.agenda.length() } else { Duration::ZERO };
        operator::work(&admin, &buckets, length, script.seed).await
    };
    let working = async {
        let (harmed, (), moves) = tokio::join!(harming, plan.drive(&clients, &history), moving);
        harmed.map(|harmed| (harmed, moves))
    };
    let ((mut stage, (tally, log), healed_us), moves) = beside(working, watch(clients.meter())).await?;
    stage.doing.set("last look");
    let finals = plan.last_look(&clients, &history, PATIENCE).await;
    let mut wrong = tally.surprises.clone();
    let names: Vec<&str> = buckets.iter().map(|bucket| bucket.name.as_str()).collect();
    wrong.extend(verdict::regions_are_equal(&stage.observer, &names, PATIENCE).await.err().unwrap_or_default());
    for (node, region) in REGIONS.into_iter().enumerate() {
        if let Some(status) = stage.planet.ended(node)? {
            wrong.push(format!("the node of {region} ended by itself: {status}; {}", stage.planet.log_tail(node)));
        }
    }

    let moves = Moves { epochs: patiently(async || operator::epochs(&admin, &buckets).await).await?, ..moves };
    stage.doing.set("checking");
    let mut operations = history.operations();
    let plans = patiently(async || Ok(admin.admin().operations().await?)).await?;
    let undone = undone::take_out(&plans, &mut operations);
    let silences = |bucket: &Arc<Bucket>| {
        let longest = |region| outage::longest(&operations, &bucket.name, region, (begun_us, healed_us));
        (longest(None), ids.iter().map(|id| longest(Some(*id))).max().unwrap_or_default())
    };
    let outages = script.policies.iter().copied().zip(buckets.iter().map(silences)).collect();
    let setup = Setup {
        regions: ids,
        buckets: buckets.iter().map(|bucket| bucket.as_ref().clone()).collect(),
        shards: topology.shards,
        disks_lost: Vec::new(),
        violated: BTreeSet::new(),
        limits: Limits::default(),
    };
    let evidence = Evidence::new(setup, operations, None, finals, Some(healed_us));
    let verdict = check::all(&evidence);
    Ok((stage, Outcome { operations: evidence.operations, tally, log, moves, undone, verdict, wrong, outages }))
}

/// Runs `watch` for as long as `work` takes.
async fn beside<T>(work: impl Future<Output = T>, watch: impl Future<Output = ()>) -> T {
    tokio::pin!(work, watch);
    tokio::select! {
        done = &mut work => done,
        () = watch => work.await,
    }
}

/// Carries out the agenda in a thread of its own: what it does blocks, and must not hold up the clients.
async fn harm(stage: Stage, agenda: Agenda) -> anyhow::Result<(Stage, (Tally, Vec<String>))> {
    let harmed = tokio::task::spawn_blocking(move || {
        let Stage { planet, tools, observer, began, doing } = stage;
        let (planet, done) = Nemesis::new(planet, Arc::clone(&tools), doing.clone()).carry_out(&agenda);
        done.map(|done| (Stage { planet, tools, observer, began, doing }, done))
    });
    harmed.await.context("the nemesis panicked")?
}

/// This round's bucket of each policy.
async fn create_buckets(observer: &Client, script: &Script) -> anyhow::Result<Vec<Arc<Bucket>>> {
    let mut buckets = Vec::new();
    for place in &script.policies {
        let (name, policy) = BUCKETS[*place];
        let auto = if script.primaries_move { operator::auto(policy) } else { AutoFailover::default() };
        let name = BucketName::new(&format!("{name}-{}", script.number))?;
        let spec = BucketSpec { name, policy, regions: Vec::new(), primary: None, labels: BTreeMap::default(), auto };
        let create = async || match observer.admin().create_bucket(&spec, false).await {
            Ok(bucket) => Ok(Arc::new(bucket)),
            // It may have been, by an attempt whose answer was lost.
            Err(why) => {
                let topology = observer.admin().topology().await?;
                topology.bucket_named(spec.name.as_str()).cloned().ok_or_else(|| why.into())
            }
        };
        buckets.push(patiently(create).await?);
    }
    Ok(buckets)
}

/// Tries again: the metadata plane of a planet that was just made whole may be electing.
async fn patiently<T>(ask: impl AsyncFn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let began = Instant::now();
    loop {
        match ask().await {
            Err(_) if began.elapsed() < PATIENCE => tokio::time::sleep(Duration::from_secs(1)).await,
            done => return done,
        }
    }
}

/// Every workload that a bucket can serve, with a few clients each.
fn plan(script: &Script, buckets: &[Arc<Bucket>], regions: Vec<RegionId>, shards: u16) -> Plan {
    let options = Options { clients: 3, keys: 3, think: script.think, duration: script.length(), ..Options::default() };
    let workloads = buckets.iter().flat_map(|bucket| {
        let kinds: &[Kind] = if bucket.primary.is_some() { &Kind::WITH_PRIMARY } else { &Kind::ACTIVE_ACTIVE };
        // As many clients for every policy.
        let clients = options.clients * 6 / u32::try_from(kinds.len()).unwrap_or(1);
        let options = Options { clients, keys: clients, ..options };
        kinds.iter().map(move |kind| Workload { kind: *kind, bucket: Arc::clone(bucket), options })
    });
    Plan { workloads: workloads.collect(), regions, shards, seed: script.seed }
}
