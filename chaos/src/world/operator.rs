//! What operators do on a planet: move primaries, give them up for lost, with or without agreeing to a loss, change policies, and have
//! regions hold buckets or hold them no more.
//!
//! An estimate is put together by the code that the product has for it; who is asked, and how long an answer is waited for,
//! is as in `meridian/src/server/estimate.rs`.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use meridian_metadata_core::lose::agreed;
use meridian_metadata_core::plan::{Asked, Heard, estimate};
use meridian_metadata_core::{Action, Reply};
use meridian_types::{
    AutoFailover, AutoMode, Bucket, BucketChange, Consent, FailoverSpec, PlanOutcome, Policy, RefusalKind,
    RegionChange, RegionId, RegionName, Selection, SwitchoverSpec,
};
use tokio::time::{Instant, sleep, timeout};

use super::network::Place;
use super::node::Life;
use super::planet::Planet;

/// How long other nodes may take to say what they have.
const PATIENCE: Duration = Duration::from_millis(700);

/// For how long an operator tries to change a policy, or which regions hold a bucket.
const INSISTS: Duration = Duration::from_secs(6);

/// How long writes of an active-active bucket may be held for another set of regions, in milliseconds: shorter than the product's
/// thirty seconds, for a world lasts no longer.
const CROSSES_MS_MAX: u64 = 6_000;

/// About the size of the question.
const QUESTION_BYTES: usize = 100;

impl Planet {
    /// An operator has a bucket's primary moved to the region of a node, and waits for what comes of it.
    pub(crate) async fn switch_over(&self, bucket: usize, to: usize, lag_ms_max: u64, pause_ms_max: u64) {
        let (Some(spec), Some(to)) = (self.spec(bucket), self.region_name(to)) else { return };
        let action = Action::Switchover(SwitchoverSpec {
            to,
            buckets: Selection::Named(vec![spec.name.clone()]),
            lag_ms_max,
            pause_ms_max,
            reason: String::new(),
        });
        let Some(operator) = self.lives().next() else { return };
        self.operate(&operator, action, ["switchover refused", "switchover done", "switchover given up"]).await;
    }

    /// An operator has a bucket taken from its primary, which need not answer, and waits for what comes of it. `forced`: what an
    /// estimate says may be lost is agreed to.
    pub(crate) async fn fail_over(&self, bucket: usize, to: Option<usize>, forced: bool) {
        let Some(spec) = self.spec(bucket) else { return };
        let to = to.and_then(|to| self.region_name(to));
        let Some(operator) = self.survivor(bucket) else { return };
        let (consent, words) = if forced {
            let consent = self.consent(&operator, bucket, (to.clone(), None)).await;
            (consent, ["forced failover refused", "forced failover done", "forced failover given up"])
        } else {
            (None, ["failover refused", "failover done", "failover given up"])
        };
        let action = Action::Failover(FailoverSpec {
            buckets: Selection::Named(vec![spec.name.clone()]),
            to,
            consent,
            automatic: false,
            reason: String::new(),
        });
        self.operate(&operator, action, words).await;
    }

    /// An operator changes a bucket's policy, and tries again while something else has the bucket, or its lanes are yet to turn. What the
    /// bucket may do by itself goes with it, or it does nothing by itself from then on.
    pub(crate) async fn change_policy(&self, bucket: usize, to: Policy, settings: bool) {
        let Some(spec) = self.spec(bucket) else { return };
        let until = Instant::now() + INSISTS;
        loop {
            let Some(operator) = self.lives().next() else { return };
            let topology = operator.plane.copy.topology();
            let Some(before) = topology.bucket_named(spec.name.as_str()).cloned() else { return };
            let goes = before.auto.validate(to, &before.regions).is_ok();
            let auto = (!goes).then(|| AutoFailover { mode: AutoMode::Manual, ..spec.auto.clone() });
            let name = spec.name.clone();
            let action = match difference(before.policy, to).filter(|_| settings) {
                Some(change) => Action::SetBucket { name, change: BucketChange { auto, ..change } },
                None => Action::SetPolicy { name, policy: to, auto },
            };
            match operator.operate("an operator", action).await {
                Ok(_) if before.policy.lane() != to.lane() => return self.hit("policy turned"),
                Ok(_) => return self.hit("policy changed"),
                Err(refusal) if refusal.kind == RefusalKind::Retry && Instant::now() < until => {}
                Err(_) => return self.hit("change of policy refused"),
            }
            sleep(Duration::from_millis(300)).await;
        }
    }

    /// An operator has a node's region hold a bucket, or hold it no more, and tries again while something else has the bucket. One that
    /// joins is watched until it counts, or joins no more.
    pub(crate) async fn change_regions(&self, bucket: usize, node: usize, add: bool) {
        let (Some(name), Some(region)) = (self.region_name(node), self.region_of(node)) else { return };
        let until = Instant::now() + INSISTS;
        let before = loop {
            let (Some(operator), Some(before)) = (self.lives().next(), self.bucket(bucket)) else { return };
            match operator.operate("an operator", regroup(&before, &name, add)).await {
                Ok(_) => break before,
                Err(refusal) if refusal.kind == RefusalKind::Retry && Instant::now() < until => {}
                Err(_) => return self.hit("change of regions refused"),
            }
            sleep(Duration::from_millis(300)).await;
        };
        match (add, before.is_in(region), before.reaches(region)) {
            (true, true, _) | (false, _, false) => return self.hit("regions as they were"),
            (false, false, true) => return self.hit("joining given up"),
            (false, true, _) | (true, false, _) => {}
        }
        loop {
            sleep(Duration::from_millis(100)).await;
            let Some(now) = self.bucket(bucket) else { continue };
            match (add, now.is_in(region), now.reaches(region)) {
                (true, true, _) => return self.hit("region joined"),
                (false, false, _) => return self.hit("region removed"),
                _ if now.crossing.is_some() => {}
                (true, false, false) => return self.hit("joining ended"),
                (false, true, _) => return self.hit("region stays"),
                (true, false, true) => self.go_on_joining(bucket).await,
            }
        }
    }

    /// An operator gives a node's region up for lost in a bucket that every region writes, agrees to what an estimate says of that, and
    /// tries again while something else has the bucket, or one of the others does not answer.
    pub(crate) async fn lose_region(&self, bucket: usize, node: usize) {
        let (Some(name), Some(lost)) = (self.region_name(node), self.region_of(node)) else { return };
        let until = Instant::now() + INSISTS;
        loop {
            let operator = self.lives().find(|life| life.replica.region != lost);
            let (Some(operator), Some(before)) = (operator, self.bucket(bucket)) else { return };
            if before.primary.is_some() || !before.is_in(lost) {
                return self.hit("nothing to lose");
            }
            let consent = self.consent(&operator, bucket, (None, Some(lost))).await;
            let agreed = consent.and_then(|consent| agreed(&consent, &before.name, &name).ok());
            if let Some((epoch, accepted)) = agreed {
                let (pause_ms_max, bucket, region) = (CROSSES_MS_MAX, before.name.clone(), name.clone());
                let action = Action::LoseRegion { name: bucket, region, epoch, accepted, pause_ms_max };
                match operator.operate("an operator", action).await {
                    Ok(_) => break,
                    Err(refusal) if matches!(refusal.kind, RefusalKind::Retry | RefusalKind::Consent) => {}
                    Err(_) => return self.hit("loss refused"),
                }
            }
            if Instant::now() > until {
                return self.hit("loss not agreed to");
            }
            sleep(Duration::from_millis(300)).await;
        }
        loop {
            sleep(Duration::from_millis(100)).await;
            let Some(now) = self.bucket(bucket) else { continue };
            match (now.is_in(lost), now.crossing.is_some()) {
                (false, _) => return self.hit("lost region removed"),
                (true, false) => return self.hit("loss given up"),
                (true, true) => {}
            }
        }
    }

    /// Where every region writes, one that is filled and was not met by all in time is told to count once more.
    pub(crate) async fn go_on_joining(&self, bucket: usize) {
        let Some(now) = self.bucket(bucket).filter(|it| it.primary.is_none() && it.crossing.is_none()) else { return };
        let joining = now.joins.joining().and_then(|id| self.regions().iter().position(|region| *region == id));
        let (Some(name), Some(operator)) = (joining.and_then(|node| self.region_name(node)), self.lives().next())
        else {
            return;
        };
        // Of one that is not filled yet it changes nothing; what fails is tried again.
        let _ = operator.operate("an operator", regroup(&now, &name, true)).await;
        sleep(Duration::from_secs(1)).await;
    }

    /// A bucket that the planet began with, as the copy of the metadata that is furthest has it.
    pub(super) fn bucket(&self, bucket: usize) -> Option<Arc<Bucket>> {
        let name = &self.spec(bucket)?.name;
        self.buckets().into_iter().find(|known| known.name == *name)
    }

    fn region_name(&self, node: usize) -> Option<RegionName> {
        self.body(node).map(|body| body.region_name.clone())
    }

    /// The first node of a bucket's primary, as the copy of the metadata that is furthest has it.
    pub(crate) fn primary_of(&self, bucket: usize) -> Option<usize> {
        let primary = self.bucket(bucket)?.primary?;
        self.regions().iter().position(|region| *region == primary)
    }

    /// A node outside of the primary's region; any, if there is none.
    fn survivor(&self, bucket: usize) -> Option<Arc<Life>> {
        let primary = self.primary_of(bucket).and_then(|node| self.region_of(node));
        let elsewhere = self.lives().find(|life| Some(life.replica.region) != primary);
        elsewhere.or_else(|| self.lives().next())
    }

    /// What an operator agrees to: what a node estimates for the next primary `to`, or, where every region writes, of the loss of a
    /// region. `None` when it says that nothing need be lost, or can be done.
    async fn consent(
        &self,
        at: &Arc<Life>,
        bucket: usize,
        (to, lost): (Option<RegionName>, Option<RegionId>),
    ) -> Option<Consent> {
        let topology = at.plane.copy.topology();
        let id = *topology.bucket_ids.get(&self.spec(bucket)?.name)?;
        let to = to.and_then(|to| topology.region_named(to.as_str())).map(|region| region.id);
        let others = (0..self.nodes()).filter(|node| *node != at.number);
        let asked = others.map(|node| {
            let answer = self.wires().call(Place::Node(at.number), node, QUESTION_BYTES, move |life| {
                async move { life.facts(id, lost) }.boxed()
            });
            timeout(PATIENCE, answer)
        });
        let mut heard = Heard::default();
        for answer in join_all(asked).await {
            if let Ok(Ok(Some(facts))) = answer {
                heard.add(facts);
            }
        }
        if let Some(own) = at.facts(id, lost) {
            heard.add(own);
        }
        let buckets = [Arc::clone(topology.buckets.get(&id)?)];
        let plans: Vec<_> = at.plane.copy.read(|state| state.plans().cloned().collect());
        let here = at.replica.region;
        estimate(&Asked { here, to, lost, topology: &topology, buckets: &buckets, plans: &plans }, &heard).consent
    }

    async fn operate(&self, operator: &Life, action: Action, [refused, done, given_up]: [&'static str; 3]) {
        let Ok(Reply::Operation { plan }) = operator.operate("an operator", action).await else {
            return self.hit(refused);
        };
        loop {
            sleep(Duration::from_millis(100)).await;
            // Any copy may be late, or its node gone.
            let known = self.lives().find_map(|life| life.plane.copy.read(|state| state.plan(plan).cloned()));
            let Some(known) = known.filter(|it| it.ended_ms.is_some()) else { continue };
            return self.hit(match known.outcome() {
                PlanOutcome::Done => done,
                PlanOutcome::UnderWay | PlanOutcome::PartlyRestored | PlanOutcome::Restored => given_up,
            });
        }
    }
}

/// What has a region hold a bucket, or hold it no more.
fn regroup(bucket: &Bucket, region: &RegionName, add: bool) -> Action {
    let change = if add { RegionChange::Add(region.clone()) } else { RegionChange::Remove(region.clone()) };
    let name = bucket.name.clone();
    match bucket.primary {
        Some(_) => Action::SetRegions { name, change },
        None => Action::CrossRegions { name, change, pause_ms_max: CROSSES_MS_MAX },
    }
}

/// The settings that make one policy of another; `None` where that takes another policy.
fn difference(before: Policy, to: Policy) -> Option<BucketChange> {
    match (before, to) {
        (Policy::Async { .. }, Policy::Async { max_lag }) => {
            Some(BucketChange { max_lag: Some(max_lag), ..BucketChange::default() })
        }
        (Policy::Sync { .. }, Policy::Sync { acks, on_partition }) => {
            Some(BucketChange { acks: Some(acks), on_partition: Some(on_partition), ..BucketChange::default() })
        }
        (Policy::Async { .. } | Policy::Sync { .. } | Policy::ActiveActive, _) => None,
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::Effect;

    use super::*;
    use crate::world::disk::Keep;
    use crate::world::planet::Setup;

    #[test]
    fn an_operator_does_nothing_through_a_node_that_is_gone() {
        Planet::play(1, Setup::three_regions().unwrap(), async |planet: Planet| {
            planet.start().await.unwrap();
            let leader = planet.metadata_leader().unwrap();
            let life = planet.life(leader).unwrap();
            let action = || {
                Action::Switchover(SwitchoverSpec {
                    to: planet.region_name(leader).unwrap(),
                    buckets: Selection::Named(Vec::new()),
                    lag_ms_max: 1,
                    pause_ms_max: 1,
                    reason: String::new(),
                })
            };
            let others = (0..planet.nodes()).filter(|node| *node != leader);
            others.for_each(|node| planet.crash(node, Keep::All));
            let asked = async { life.operate("an operator", action()).await.unwrap_err() };
            let crash = async {
                sleep(Duration::from_secs(1)).await;
                planet.crash(leader, Keep::All);
                planet.restart(leader);
                let log = planet.body(leader).unwrap().disk.kept(|kept| kept.raft.clone());
                // As long as it would take an attempt to end, and to be repeated.
                sleep(Duration::from_secs(5)).await;
                log
            };
            let (refusal, log) = futures::join!(asked, crash);
            assert_eq!((refusal.kind, refusal.effect), (RefusalKind::Retry, Effect::Unknown));
            assert!(life.operate("an operator", action()).await.is_err());
            assert_eq!(planet.body(leader).unwrap().disk.kept(|kept| kept.raft.log.clone()), log.log);
        });
    }
}
