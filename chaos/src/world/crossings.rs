//! What operators do about who writes a bucket: have all of its regions write it, have one of them order its writes again, give that up
//! (docs/adr/2026-11-28-active-active-changes.md).

use std::time::Duration;

use meridian_metadata_core::Action;
use meridian_types::{AutoFailover, AutoMode, Bucket, Cross, Policy, RefusalKind};
use tokio::time::{Instant, sleep};

use super::planet::Planet;

/// For how long an operator tries: something else may have the bucket, or its lanes are yet to turn.
const INSISTS: Duration = Duration::from_secs(8);

/// For how long an operator who wants a crossing no more watches for it.
const WATCHES: Duration = Duration::from_secs(3);

impl Planet {
    /// An operator sends a bucket on its way, and tries again while something else has it, and waits for what comes of it.
    pub(crate) async fn cross(&self, bucket: usize, (to, primary): (Policy, Option<usize>), pause_ms_max: u64) {
        let primary = primary.and_then(|node| self.body(node)).map(|body| body.region_name.clone());
        let until = Instant::now() + INSISTS;
        loop {
            let (Some(operator), Some(before)) = (self.lives().next(), self.bucket(bucket)) else { return };
            if before.policy.has_primary() == to.has_primary() {
                return self.hit("crossing not needed");
            }
            // Where all regions write there is nothing to fail over.
            let off = (before.auto.mode != AutoMode::Manual).then(|| manual(&before));
            let cross = Cross { primary: primary.clone().filter(|_| to.has_primary()), pause_ms_max };
            let action = Action::Cross { name: before.name.clone(), policy: to, auto: off, cross };
            match operator.operate("an operator", action).await {
                Ok(_) => break,
                Err(refusal) if refusal.kind == RefusalKind::Retry && Instant::now() < until => {}
                Err(_) => return self.hit("crossing refused"),
            }
            sleep(Duration::from_millis(300)).await;
        }
        loop {
            sleep(Duration::from_millis(50)).await;
            let Some(now) = self.bucket(bucket).filter(|it| it.crossing.is_none()) else { continue };
            return self.hit(match (now.policy.has_primary() == to.has_primary(), to.has_primary()) {
                (true, false) => "bucket opened",
                (true, true) => "bucket closed",
                (false, false) => "opening given up",
                (false, true) => "closing given up",
            });
        }
    }

    /// An operator sets the policy that a bucket has, while it crosses: it stays what it is.
    pub(crate) async fn turn_back(&self, bucket: usize) {
        let until = Instant::now() + WATCHES;
        while Instant::now() < until {
            let crossing = self.bucket(bucket).filter(|it| it.crossing.is_some());
            if let (Some(now), Some(operator)) = (crossing, self.lives().next()) {
                let action = Action::SetPolicy { name: now.name.clone(), policy: now.policy, auto: None };
                let done = operator.operate("an operator", action).await.is_ok();
                return self.hit(if done { "crossing turned back" } else { "turning back refused" });
            }
            sleep(Duration::from_millis(20)).await;
        }
        self.hit("nothing to turn back");
    }
}

fn manual(bucket: &Bucket) -> AutoFailover<meridian_types::RegionName> {
    let AutoFailover { interval_ms_min, per_day_max, .. } = bucket.auto;
    AutoFailover { mode: AutoMode::Manual, interval_ms_min, per_day_max, ..AutoFailover::default() }
}
