//! Lanes whose source no longer has what comes next: found by asking, and moved on once nothing is missing here.
//!
//! A lane that is known to be complete is not asked about; one that carries nothing is, now and then: on the day it
//! carries something it must not be behind.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meridian_region_core::repair::Need;
use meridian_region_core::repair::message::{Ask, Told};
use meridian_region_core::repair::need::{is_ahead, is_overtaken, missed};
use meridian_region_core::repair::survey::Survey;
use meridian_types::frame::{self, Echo, FrameHeader};
use meridian_types::{Hlc, Lane, Refusal, RefusalKind, RegionId, ShardId, Topology};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Place;
use crate::node::{Node, ShardNode};

/// A lane that was complete this long ago, in milliseconds, is not behind the log.
const COMPLETE_WITHIN_MS: u64 = 5_000;

/// How often a lane that is not complete is asked about. Its source notices every few seconds, too.
const ASK_EVERY: Duration = Duration::from_secs(3);

/// How often a lane that carries nothing is asked about.
const ASK_IDLE_EVERY: Duration = Duration::from_secs(60);

/// One incoming lane.
type Key = (ShardId, RegionId, Lane);

/// Since when a lane is not asked about, and for how long.
#[derive(Clone, Copy)]
struct Rest {
    since: Instant,
    pause: Duration,
}

impl Rest {
    /// Whether it may be asked about again. A lane that has begun to carry something meanwhile, because the bucket has another primary now,
    /// rests no longer than one that always did: it may be behind, and nobody would know for a minute (LIVE).
    fn is_over(self, now: Instant, pause_now: Duration) -> bool {
        now >= self.since + self.pause.min(pause_now)
    }
}

/// What is known of the lanes of the shards this node leads.
#[derive(Default)]
pub(crate) struct Lanes {
    /// How long each is not asked about; `None` while it is.
    rests: BTreeMap<Key, Option<Rest>>,
    /// Lanes that are behind, with where their source stood.
    behind: BTreeMap<Key, Survey>,
    asking: JoinSet<(Key, Option<Survey>)>,
}

impl Lanes {
    /// Asks about the lanes that are due. Answers are taken in here, too.
    pub(crate) fn look(&mut self, node: &Arc<Node>, topology: &Topology, now: Instant) {
        while let Some(answered) = self.asking.try_join_next() {
            match answered {
                Ok((key, survey)) => self.take(node, topology, key, survey, now),
                Err(why) if why.is_panic() => std::panic::resume_unwind(why.into_panic()),
                Err(_) => {}
            }
        }
        let led = |shard: &ShardId| node.shard(*shard).is_some_and(|shard| shard.board.leads());
        self.behind.retain(|key, survey| led(&key.0) && !overtaken(node, topology, *key, survey));
        self.rests.retain(|(shard, ..), _| led(shard));
        for shard in node.shards.iter().filter(|shard| shard.board.leads()) {
            for source in topology.regions.keys().filter(|region| **region != node.region()) {
                for lane in Lane::ALL {
                    self.look_at(node, topology, shard, (shard.id, *source, lane), now);
                }
            }
        }
    }

    fn look_at(&mut self, node: &Arc<Node>, topology: &Topology, shard: &ShardNode, key: Key, now: Instant) {
        let (_, source, lane) = key;
        // The first time it is given a moment to become complete by itself.
        let rest = *self.rests.entry(key).or_insert(Some(Rest { since: now, pause: ASK_EVERY }));
        let pause = pause(node, topology, source, lane);
        if rest.is_none_or(|rest| !rest.is_over(now, pause)) || self.behind.contains_key(&key) {
            return;
        }
        if shard.lanes.age_ms(source, lane, node.clock.monotonic_ms()).is_some_and(|age| age < COMPLETE_WITHIN_MS) {
            self.rests.insert(key, Some(Rest { since: now, pause }));
            return;
        }
        self.rests.insert(key, None);
        let node = Arc::clone(node);
        self.asking.spawn(async move { (key, survey_if_behind(&node, key).await) });
    }

    fn take(&mut self, node: &Node, topology: &Topology, key: Key, survey: Option<Survey>, now: Instant) {
        let (shard, source, lane) = key;
        self.rests.insert(key, Some(Rest { since: now, pause: pause(node, topology, source, lane) }));
        if let Some(survey) = survey.filter(|survey| !overtaken(node, topology, key, survey)) {
            tracing::warn!(
                region = %node.region(), %source, %shard, %lane, up_to = %survey.applied,
                "a lane is behind what its source's log still has: what it skips is repaired"
            );
            self.behind.insert(key, survey);
        }
    }

    /// What must be repaired before the lanes that are behind go on.
    pub(crate) fn needs(&self, node: &Node, topology: &Topology) -> Vec<(Place, Need)> {
        let mut needs = Vec::new();
        for ((id, source, lane), survey) in &self.behind {
            let Some(shard) = node.shard(*id) else { continue };
            let core = shard.board.core();
            let bucket = |bucket| topology.buckets.get(&bucket).map(|bucket| &**bucket);
            needs.extend(missed(&core, *source, *lane, survey, bucket).map(|need| ((*id, need.bucket), need)));
        }
        needs
    }

    /// Lets the lanes go on that lack nothing any more, as far as is known: a node that starts has not heard of all buckets, nor a lost
    /// primary that is back of who replaced it (ORD-1).
    pub(crate) async fn go_on(&mut self, node: &Node, topology: &Topology, needs: &[(Place, Need)]) {
        let waits = |shard: ShardId| needs.iter().any(|((of, _), _)| *of == shard);
        let has_heard = |(id, source, _): &Key, survey: &Survey| {
            node.shard(*id).is_some_and(|shard| !is_ahead(&shard.board.core(), *source, survey, topology))
        };
        let is_ready = |key: &Key, survey: &Survey| !waits(key.0) && has_heard(key, survey);
        let ready: Vec<Key> =
            self.behind.iter().filter(|(key, survey)| is_ready(key, survey)).map(|(key, _)| *key).collect();
        for key in ready {
            let Some(survey) = self.behind.remove(&key) else { continue };
            match go_on_behind(node, key, &survey).await {
                Ok(()) => {
                    let (shard, source, lane) = key;
                    tracing::info!(region = %node.region(), %source, %shard, %lane, at = %survey.applied, "a lane goes on");
                }
                // The next look surveys again.
                Err(why) => tracing::debug!(region = %node.region(), ?key, %why, "a lane does not go on yet"),
            }
        }
    }
}

/// Whether what the source of a lane had is nothing to wait for: it is asked again.
fn overtaken(node: &Node, topology: &Topology, (id, source, lane): Key, survey: &Survey) -> bool {
    let bucket = |bucket| topology.buckets.get(&bucket).map(|bucket| &**bucket);
    node.shard(id).is_some_and(|shard| is_overtaken(&shard.board.core(), (source, lane), survey, bucket))
}

/// How soon a lane is asked about again.
fn pause(node: &Node, topology: &Topology, source: RegionId, lane: Lane) -> Duration {
    let region = node.region();
    let carries = topology
        .buckets
        .values()
        .any(|bucket| bucket.travels_in(lane) && bucket.reaches(region) && bucket.accepts_writes_in(source));
    if carries { ASK_EVERY } else { ASK_IDLE_EVERY }
}

/// Where the source stands, if its log no longer reaches back to the lane's watermark.
async fn survey_if_behind(node: &Node, (id, source, lane): Key) -> Option<Survey> {
    let shard = node.shard(id)?;
    let topology = node.authority.topology();
    let after = shard.board.watermark(source, lane);
    let asked = node.peers.ask_about_repair(&topology, (source, id), &Ask::Reach { shard: id, after }).await;
    let (peer, Told::Reach { trimmed_to: Some(_) }) = asked.ok()? else { return None };
    match node.peers.ask_repair(peer, &Ask::Survey { shard: id }).await.ok()? {
        Told::Survey(survey) if survey.applied > after => Some(survey),
        _ => None,
    }
}

/// Moves the lane's watermark to the survey: everything up to it is here.
async fn go_on_behind(node: &Node, (id, source, lane): Key, survey: &Survey) -> Result<(), Refusal> {
    let Some(shard) = node.shard(id) else { return Ok(()) };
    let previous = shard.board.watermark(source, lane);
    if previous >= survey.applied {
        return Ok(());
    }
    let header = FrameHeader {
        source,
        shard: id,
        lane,
        previous,
        last: survey.applied,
        closed: Hlc(0),
        echo: Echo::default(),
        raw_length: 0,
    };
    let applied = node.apply_frame(&frame::encode(header, &[], &[])).await;
    applied.map(|_| ()).map_err(|why| Refusal::new(RefusalKind::Retry, why.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_that_begins_to_carry_something_rests_no_longer_than_one_that_always_did() {
        let since = Instant::now();
        let idle = Rest { since, pause: ASK_IDLE_EVERY };
        assert!(!idle.is_over(since + ASK_EVERY, ASK_IDLE_EVERY), "it carries nothing still");
        assert!(!idle.is_over(since, ASK_EVERY) && idle.is_over(since + ASK_EVERY, ASK_EVERY));
        let busy = Rest { since, pause: ASK_EVERY };
        assert!(busy.is_over(since + ASK_EVERY, ASK_IDLE_EVERY), "it was to be asked about by then");
    }
}
