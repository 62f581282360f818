//! Changing how many regions acknowledge a `sync` bucket while it serves (DUR-2).
//!
//! ```text
//!   epoch e: acknowledged by `before`   ──seal──►   epoch e+1: acknowledged by `acks`
//!                                                   more than before: RECOVERING until every shard's targets have everything
//! ```
//! One commit changes the rule and raises the epoch. Leaders that have not heard of it acknowledge by the old rule, under
//! the old epoch, which their region seals before it takes a write of the new one. So all that is acknowledged under
//! `e+1` is so by the new rule; and what was acknowledged before with fewer copies counts as exposed until each
//! shard, under `e+1`, has said that its targets have it. A failover in between needs consent, as in any RECOVERING bucket.
//!
//! Deliberately not here: changes between `async` and `sync` (`turns.rs`).

use std::collections::BTreeSet;

use meridian_types::{Acks, Bucket, Epoch, Hlc, Policy, PolicyError, Refusal, Standing};

use crate::spec::invalid;
use crate::state::ClusterState;

impl ClusterState {
    /// Puts the new rule on a bucket.
    pub(crate) fn change_acks(&self, bucket: &mut Bucket, acks: Acks, at: Hlc) -> Result<(), Refusal> {
        let Policy::Sync { acks: before, on_partition } = bucket.policy else {
            let (acks, policy) = (acks.to_string(), bucket.policy.to_string());
            return Err(invalid(PolicyError::AcksWithoutSync { acks, policy }.to_string()));
        };
        let holders = bucket.regions.len();
        let (least, asked) = (before.required(holders), acks.required(holders));
        bucket.policy = Policy::Sync { acks, on_partition };
        if least == asked {
            return Ok(());
        }
        self.check_fixed(bucket)?;
        bucket.epoch = Epoch(bucket.epoch.0.saturating_add(1));
        bucket.standing = match &bucket.standing {
            // What has been acknowledged may lack copies that are asked for from now on.
            Standing::Sync { .. } if asked > least => {
                Standing::Recovering { since: at, exposed_since: at, ready: BTreeSet::new() }
            }
            other => other.clone().restarted(at),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::{
        BucketChange, Copies, RefusalKind, RegionId, RegionName, Selection, ShardId, StandingWord, SwitchoverSpec,
    };

    use super::*;
    use crate::testing::{act, name, with};
    use crate::{Action, Answer};

    fn set(state: &mut ClusterState, acks: Acks) -> Answer {
        let change = BucketChange { acks: Some(acks), ..BucketChange::default() };
        act(state, Action::SetBucket { name: name(), change })
    }

    fn bucket(state: &ClusterState) -> Bucket {
        state.bucket_named(&name()).unwrap().as_ref().clone()
    }

    fn ready(state: &mut ClusterState, epoch: Epoch) {
        let Bucket { id, standing, .. } = bucket(state);
        let copies = Copies::Ready((0..2).map(ShardId).collect());
        let words = vec![StandingWord { bucket: id, epoch, since: standing.since(), copies }];
        act(state, Action::ReportStanding { region: RegionId(1), words }).unwrap();
    }

    #[test]
    fn more_acks_begin_an_epoch_that_is_exposed_until_every_shard_has_said_otherwise_under_it() {
        let mut state = with(Policy::sync(Acks::Majority));
        set(&mut state, Acks::All).unwrap();
        let changed = bucket(&state);
        assert_eq!((changed.policy, changed.epoch), (Policy::sync(Acks::All), Epoch(2)));
        assert!(matches!(changed.standing, Standing::Recovering { .. }));
        ready(&mut state, Epoch(1));
        assert!(!bucket(&state).standing.is_sync(), "what a leader of the old rule says counts for nothing");
        ready(&mut state, Epoch(2));
        assert!(bucket(&state).standing.is_sync());
    }

    #[test]
    fn fewer_acks_begin_an_epoch_and_nothing_was_ever_exposed() {
        let mut state = with(Policy::sync(Acks::All));
        set(&mut state, Acks::One).unwrap();
        let changed = bucket(&state);
        assert_eq!((changed.epoch, changed.standing.is_sync()), (Epoch(2), true));
    }

    #[test]
    fn the_same_rule_in_other_words_needs_no_epoch() {
        let mut state = with(Policy::sync(Acks::Majority));
        set(&mut state, Acks::Regions(2)).unwrap();
        let changed = bucket(&state);
        assert_eq!((changed.policy, changed.epoch), (Policy::sync(Acks::Regions(2)), Epoch(1)));
    }

    #[test]
    fn what_can_not_be_is_refused_and_so_is_what_another_operation_has() {
        for policy in [Policy::ASYNC, Policy::ActiveActive] {
            let refused = set(&mut with(policy), Acks::All).unwrap_err();
            assert!(refused.kind == RefusalKind::Invalid && refused.message.contains("acks = all"), "{refused}");
        }
        let mut state = with(Policy::sync(Acks::Majority));
        assert_eq!(set(&mut state, Acks::Regions(4)).unwrap_err().kind, RefusalKind::Invalid);
        let spec = SwitchoverSpec {
            to: RegionName::new("eu-west").unwrap(),
            buckets: Selection::Named(vec![name()]),
            lag_ms_max: 0,
            pause_ms_max: 1000,
            reason: String::new(),
        };
        act(&mut state, Action::Switchover(spec)).unwrap();
        assert_eq!(set(&mut state, Acks::All).unwrap_err().kind, RefusalKind::Retry);
        assert_eq!(bucket(&state).epoch, Epoch(1));
    }
}
