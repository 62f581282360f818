//! An operator at work while the planet breaks: primaries are moved on purpose, and buckets that may fail over do so by themselves.

use std::sync::Arc;
use std::time::Duration;

use meridian_client::{Client, OperationId, PlanOutcome, Selection, SwitchoverSpec};
use meridian_types::failover::PER_DAY_MAX;
use meridian_types::{AutoFailover, AutoMode, Bucket, Policy, RegionName};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};
use tokio::time::{sleep, timeout};

/// Between two moves, in seconds.
const PAUSE_S: std::ops::Range<f64> = 4.0..16.0;

/// How long the operator waits for an answer, or looks at one operation.
const PATIENCE: Duration = Duration::from_secs(15);

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Switchovers that the operator asked for.
    pub asked: u32,
    /// Those that the operator saw done. Others were refused (a region that is down is no target), taken back, or not answered.
    pub done: u32,
    /// How often a bucket got another primary, or the same again, by whoever's word.
    pub epochs: u64,
}

impl Moves {
    /// Both together.
    pub fn and(self, other: Moves) -> Moves {
        Moves { asked: self.asked + other.asked, done: self.done + other.done, epochs: self.epochs + other.epochs }
    }
}

/// What a bucket of this policy may do by itself in these rounds.
pub fn auto(policy: Policy) -> AutoFailover<RegionName> {
    let mode = if matches!(policy, Policy::Sync { .. }) { AutoMode::ZeroLoss } else { AutoMode::Manual };
    // Damping has checkers of its own; here it would only mean fewer moves.
    AutoFailover { mode, interval_ms_min: 0, per_day_max: PER_DAY_MAX, ..AutoFailover::default() }
}

/// Moves primaries of `buckets` for so long, as `seed` draws it.
pub async fn work(client: &Client, buckets: &[Arc<Bucket>], length: Duration, seed: u64) -> Moves {
    let mut moves = Moves::default();
    let mut random = StdRng::seed_from_u64(seed);
    // Whatever is under way when time is over goes on without anybody who looks.
    let _ = timeout(length, async {
        loop {
            sleep(Duration::from_secs_f64(random.random_range(PAUSE_S))).await;
            let Some(spec) = draw(client, buckets, &mut random).await else { continue };
            moves.asked += 1;
            moves.done += u32::from(matches!(timeout(PATIENCE, switch(client, &spec)).await, Ok(true)));
        }
    })
    .await;
    moves
}

/// How many epochs came after the first ones, as the record says.
///
/// # Errors
/// When nobody answers.
pub async fn epochs(client: &Client, buckets: &[Arc<Bucket>]) -> anyhow::Result<u64> {
    let topology = client.admin().topology().await?;
    let since = |bucket: &Arc<Bucket>| {
        let now = topology.bucket_named(bucket.name.as_str()).map_or(bucket.epoch, |now| now.epoch);
        now.0.saturating_sub(bucket.epoch.0)
    };
    Ok(buckets.iter().map(since).sum())
}

async fn draw(client: &Client, buckets: &[Arc<Bucket>], random: &mut StdRng) -> Option<SwitchoverSpec> {
    let bucket = buckets.iter().filter(|bucket| bucket.primary.is_some()).choose(random)?;
    let topology = timeout(PATIENCE, client.admin().topology()).await.ok()?.ok()?;
    let primary = topology.bucket_named(bucket.name.as_str())?.primary;
    let to = topology.regions.iter().filter(|(id, _)| Some(**id) != primary).choose(random)?.1;
    Some(SwitchoverSpec {
        to: to.name.clone(),
        buckets: Selection::Named(vec![bucket.name.clone()]),
        lag_ms_max: 10_000,
        pause_ms_max: 10_000,
        reason: "the planet is being broken".to_owned(),
    })
}

/// Whether it was seen done.
async fn switch(client: &Client, spec: &SwitchoverSpec) -> bool {
    let id = OperationId(rand::random());
    let Ok(mut plan) = client.admin().switchover(spec, id, false).await else { return false };
    while plan.outcome() == PlanOutcome::UnderWay {
        sleep(LOOK_EVERY).await;
        if let Ok(now) = client.admin().operation(plan.id).await {
            plan = now;
        }
    }
    plan.outcome() == PlanOutcome::Done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::real::BUCKETS;

    #[test]
    fn what_buckets_may_do_by_themselves_is_what_the_metadata_plane_accepts() {
        for (name, policy) in BUCKETS {
            assert_eq!(auto(policy).validate(policy, &[]), Ok(()), "{name}");
        }
    }
}
