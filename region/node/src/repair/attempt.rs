//! One attempt to make one bucket in one shard equal to the source's: carries what [`Target`] says between the own log
//! and the source.

use std::sync::PoisonError;
use std::time::Duration;

use meridian_failpoint::failpoint;
use meridian_region_core::ControlResult;
use meridian_region_core::repair::message::{Ask, Told};
use meridian_region_core::repair::survey::{Claim, Sighting, Survey};
use meridian_region_core::repair::{Action, Input, Need, Progress, Target, Terms};
use meridian_types::entry::{Body, Kind};
use meridian_types::{Bucket, BucketId, Epoch, Lane, Lsn, NodeId, RepairReason, RepairStep};
use tokio::time::{Instant, sleep};

use super::{Place, WAITS_FOR_CONSENT};
use crate::node::{Node, ShardNode};
use crate::salvage::Rows;

/// Lanes that don't move for so long bring nothing: what they lack is moved.
const LANES_STILL: Duration = Duration::from_secs(3);

/// However much they bring, no longer than this: under more load than a lane carries it is never complete.
const LANES_PATIENCE: Duration = Duration::from_secs(60);

/// How long the end of a session is told again: then it has ended by itself.
const UNCLOSED_MAX: Duration = Duration::from_mins(1);

/// How often they are looked at.
const LANES_EVERY: Duration = Duration::from_millis(50);

/// Takes in what waited for a bucket whose rows are what they should be.
pub(crate) async fn release(node: &Node, shard: &ShardNode, bucket: BucketId) -> Result<(), String> {
    while propose(node, shard, bucket, RepairStep::Unpark).await?.1.more {}
    Ok(())
}

/// Makes the bucket equal to the source's, or says why not now.
pub(crate) async fn repair(node: &Node, shard: &ShardNode, need: Need) -> Result<(), String> {
    let topology = node.authority.topology();
    let Some(bucket) = topology.buckets.get(&need.bucket) else { return Ok(()) };
    let asked = node.peers.ask_about_repair(&topology, (need.source, shard.id), &Ask::Survey { shard: shard.id }).await;
    let (peer, Told::Survey(survey)) = asked.map_err(|why| why.to_string())? else {
        return Err("the source answered what it was not asked".to_owned());
    };
    check(node, shard, bucket, &need, survey)?;
    let lanes = match need.reason {
        // What they bring need not be moved as rows.
        RepairReason::Astray | RepairReason::Interrupted => {
            Lane::ALL.into_iter().filter(|lane| bucket.travels_in(*lane)).collect()
        }
        // Its lane is what it can't wait for.
        RepairReason::BehindLog
        | RepairReason::Diverged
        | RepairReason::Stuck
        | RepairReason::Asked
        | RepairReason::Joining
        | RepairReason::Leaving => Vec::new(),
    };
    let terms = Terms { shard: shard.id, bucket: need.bucket, source: need.source, claim: need.claim };
    let mut attempt = Attempt { node, shard, terms, lanes, peer, session: None };
    let outcome = attempt.run().await;
    if let Some(session) = attempt.session {
        close(node, Unclosed { peer: attempt.peer, session, until: Instant::now() + UNCLOSED_MAX }).await;
    }
    outcome
}

/// Ends a session, or sees to it that it is tried again: as long as it lasts this region's copies count for nothing at the source (LIVE).
pub(crate) async fn close(node: &Node, unclosed: Unclosed) {
    failpoint("repair.close.before");
    let closed = node.peers.ask_repair(unclosed.peer, &Ask::Close { session: unclosed.session }).await;
    failpoint("repair.close.after");
    if closed.is_err() && Instant::now() < unclosed.until {
        node.repairs.unclosed.lock().unwrap_or_else(PoisonError::into_inner).push(unclosed);
    }
}

/// Refuses what must wait, before anything is closed for it.
fn check(node: &Node, shard: &ShardNode, bucket: &Bucket, need: &Need, mut survey: Survey) -> Result<(), String> {
    // What was never written to is not in the survey.
    let seen = survey.buckets.remove(&bucket.id).unwrap_or(Sighting { epoch: Epoch(1), ..Sighting::default() });
    let core = shard.board.core();
    let region = core.region();
    // Known before anything is closed for it; what is written down then is decided by what the source had when it was pinned.
    let tail = core.positions(bucket.id).of(region) > seen.positions.of(region);
    if need.claim != Claim::ActiveActive && tail && !node.may_reinstate(bucket.id) {
        return Err(WAITS_FOR_CONSENT.to_owned());
    }
    need.objection(&core, bucket, &seen).map_or(Ok(()), Err)
}

/// A session of an attempt that is over, whose source has not heard of that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unclosed {
    peer: NodeId,
    session: u64,
    until: Instant,
}

struct Attempt<'a> {
    node: &'a Node,
    shard: &'a ShardNode,
    terms: Terms,
    /// Lanes that are to bring what they can before rows are compared.
    lanes: Vec<Lane>,
    /// The source's node that holds the session.
    peer: NodeId,
    session: Option<u64>,
}

impl Attempt<'_> {
    async fn run(&mut self) -> Result<(), String> {
        let mut target = Target::new(self.terms);
        let mut input = Input::Start;
        loop {
            let (stepped, action) = self.step(target, input).await?;
            target = stepped;
            self.note(target.progress(), 0);
            input = match action {
                Action::Ask(ask) => Input::Told(self.ask(&ask, target.progress()).await?),
                Action::Propose(step) => {
                    let (lsn, result) = propose(self.node, self.shard, self.terms.bucket, step).await?;
                    Input::Applied(lsn, result)
                }
                Action::Done => return Ok(()),
                Action::Again { reason } => return Err(reason),
            };
        }
    }

    /// Reads rows of the store: off the runtime's workers.
    async fn step(&self, mut target: Target, input: Input) -> Result<(Target, Action), String> {
        let store = self.node.store.clone();
        let stepped = self.node.blocking.run(move || {
            let action = target.step(&store, input);
            (target, action)
        });
        let (target, action) = stepped.await.map_err(|_| "the node is stopping".to_owned())?;
        Ok((target, action.map_err(|why| why.to_string())?))
    }

    async fn ask(&mut self, ask: &Ask, progress: Progress) -> Result<Told, String> {
        if matches!(ask, Ask::Open { .. }) {
            self.follow_lanes().await;
        }
        failpoint("repair.ask.before");
        let told = self.node.peers.ask_repair(self.peer, ask).await.map_err(|why| why.to_string())?;
        failpoint("repair.ask.after");
        let bytes = told.encode().len();
        self.note(progress, bytes as u64);
        self.node.repairs.pace.pay(bytes).await;
        if let Told::Opened { session, pinned } = &told {
            self.session = Some(*session);
            if self.terms.claim != Claim::ActiveActive {
                self.node.salvage(self.shard, &self.terms, pinned, Rows::OfTheTail).await?;
            }
        }
        Ok(told)
    }

    /// Waits until the lanes have brought what there was when the bucket was closed, as long as they get on.
    async fn follow_lanes(&self) {
        let (began_ms, began) = (self.node.clock.monotonic_ms(), Instant::now());
        let (mut reached, mut moved) = (Vec::new(), began);
        loop {
            let (source, now_ms) = (self.terms.source, self.node.clock.monotonic_ms());
            let complete = |lane: &Lane| {
                let age_ms = self.shard.lanes.age_ms(source, *lane, now_ms);
                age_ms.is_some_and(|age_ms| age_ms <= now_ms.saturating_sub(began_ms))
            };
            let now: Vec<Lsn> = self.lanes.iter().map(|lane| self.shard.board.watermark(source, *lane)).collect();
            if now != reached {
                (reached, moved) = (now, Instant::now());
            }
            if self.lanes.iter().all(complete) || moved.elapsed() > LANES_STILL || began.elapsed() > LANES_PATIENCE {
                return;
            }
            sleep(LANES_EVERY).await;
        }
    }

    fn note(&self, progress: Progress, bytes: u64) {
        let place: Place = (self.terms.shard, self.terms.bucket);
        self.node.repairs.table.note(place, progress, bytes);
    }
}

/// Puts a step into the own log.
pub(crate) async fn propose(
    node: &Node,
    shard: &ShardNode,
    bucket: BucketId,
    step: RepairStep,
) -> Result<(Lsn, ControlResult), String> {
    node.disk.writable().map_err(|why| why.to_string())?;
    let header = node.header(Kind::Repair, bucket, shard.board.epoch(bucket));
    failpoint("repair.propose.before");
    let proposal = shard.proposer.propose(header.encode(&Body::Repair(step))).map_err(|why| why.to_string())?;
    let applied = proposal.await.map_err(|why| why.to_string())?;
    failpoint("repair.propose.after");
    let result = ControlResult::decode(&applied.result).map_err(|why| why.to_string())?;
    Ok((applied.lsn, result))
}
