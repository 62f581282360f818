//! How often the cluster may replace a bucket's primary by itself: a link that flaps must not move it to and fro.
//!
//! Counted from the operations on record, so it holds across leaders; those that count are the last to be forgotten. What an operator
//! asks for is never damped.

use meridian_types::{Bucket, BucketId, Epoch, Goal, Plan, Refusal, RefusalKind, Step};

use crate::apply::{Done, StepTaken};
use crate::reply::Reply;
use crate::state::ClusterState;

/// How long after an automatic failover was given up it is tried again, in milliseconds: what it lacked may be back by then.
const AGAIN_AFTER_MS: u64 = 30_000;

const DAY_MS: u64 = 24 * 3_600_000;

impl ClusterState {
    /// Checks that the bucket may fail over by itself now.
    ///
    /// # Errors
    /// Retry says why not yet.
    pub fn check_damping(&self, bucket: &Bucket, now_ms: u64) -> Result<(), Refusal> {
        let wait = |why: String| {
            Err(Refusal::new(RefusalKind::Retry, format!("`{}` does not fail over by itself now: {why}", bucket.name)))
        };
        let mut count = 0;
        let automatic = self.plans.values().filter(|plan| is_counted(plan, now_ms));
        for it in automatic.filter_map(|plan| plan.move_of(bucket.id)) {
            match &it.step {
                Step::FailedOver { at_ms, .. } => {
                    count += 1;
                    if at_ms.saturating_add(bucket.auto.interval_ms_min) > now_ms {
                        return wait(format!("it did less than {} s ago", bucket.auto.interval_ms_min / 1000));
                    }
                }
                Step::Restored { at_ms, .. } if at_ms.saturating_add(AGAIN_AFTER_MS) > now_ms => {
                    return wait(format!("that was given up less than {} s ago", AGAIN_AFTER_MS / 1000));
                }
                Step::Unneeded
                | Step::CatchingUp { .. }
                | Step::Draining { .. }
                | Step::Promoted { .. }
                | Step::Restored { .. }
                | Step::Fencing { .. }
                | Step::Pulling { .. } => {}
            }
        }
        if count >= bucket.auto.per_day_max {
            return wait(format!("it did {count} times within a day, as often as it may"));
        }
        Ok(())
    }

    /// Remembers what would have been done, for a bucket that only observes.
    pub(crate) fn observe(&mut self, id: BucketId, epoch: Epoch, what: &str) -> Done {
        let bucket = self.buckets.get(&id).filter(|bucket| bucket.epoch == epoch);
        let step = bucket.map(|bucket| StepTaken {
            verb: "observe",
            subject: bucket.name.to_string(),
            detail: format!("its primary would have been replaced: {what}"),
        });
        Done { reply: Reply::Reported, change: None, steps: step.into_iter().collect() }
    }
}

/// Whether an operation says how often buckets have failed over by themselves lately.
pub(in crate::plan) fn is_counted(plan: &Plan, now_ms: u64) -> bool {
    matches!(plan.goal, Goal::Failover { automatic: true, .. }) && plan.created_ms.saturating_add(DAY_MS) > now_ms
}

#[cfg(test)]
mod tests;
