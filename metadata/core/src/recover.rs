//! What becomes of the state when the metadata group begins anew from one node's copy, because its majority is lost.
//!
//! The lost voters may have committed what this copy lacks: a primary that moved, an epoch that rose. So every epoch leaps
//! beyond whatever they can have handed out, and the primaries on record here seal it before they write (FEN-1, FEN-2):
//! of two regions that both believe to be primary, the one with the lower epoch is refused everywhere, and finds
//! itself astray. Operations and crossings under way are given up: nobody knows how far they came.
//!
//! Deliberately not here: the membership of the group, and its log (`consensus`, `metadata/node`).

use std::sync::Arc;

use meridian_types::{BucketName, Epoch, Hlc, OperationId, PlanId};

use crate::apply::Occasion;
use crate::command::AbortScope;
use crate::event::{Event, WHO_BYTES_MAX, shorten};
use crate::state::ClusterState;

/// How far epochs leap: more changes of a primary than a cluster can commit between two answers of one voter.
pub const EPOCHS_LEAP: u64 = 1 << 20;

/// Why it gives up what it gives up.
const WHY: &str = "the metadata plane was recovered from one copy";

/// What a recovery changes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Recovery {
    /// Buckets with a primary: their epoch before and after. Active-active buckets have no one to fence.
    pub raised: Vec<(BucketName, Epoch, Epoch)>,
    /// Operations that were under way.
    pub given_up: Vec<PlanId>,
}

impl ClusterState {
    /// Goes on from this copy at metadata index `index`, whatever the lost majority decided besides.
    ///
    /// # Panics
    /// When `index` does not rise.
    pub fn recover(&mut self, index: u64, at_ms: u64, who: &str) -> Recovery {
        assert!(index > self.index, "metadata index {index} was applied after {}", self.index);
        let mut recovery = Recovery::default();
        if self.formed.is_none() {
            return recovery;
        }
        self.index = index;
        let mut who = who.to_owned();
        shorten(&mut who, WHO_BYTES_MAX);
        let occasion =
            Occasion { index, at: self.clock.next(at_ms), at_ms, operation: OperationId(u128::from(index)), who: &who };
        let under_way: Vec<_> = self.plans.values().filter(|plan| plan.ended_ms.is_none()).map(|it| it.id).collect();
        for plan in under_way {
            if self.abort(occasion, plan, &AbortScope::All, WHY).is_ok() {
                recovery.given_up.push(plan);
            }
        }
        for bucket in self.buckets.values_mut().filter(|bucket| bucket.crossing.is_some()) {
            Arc::make_mut(bucket).crossing = None;
        }
        recovery.given_up.extend(self.recover_changes(occasion, WHY));
        for bucket in self.buckets.values_mut().filter(|bucket| bucket.primary.is_some()) {
            let bucket = Arc::make_mut(bucket);
            let before = bucket.epoch;
            bucket.epoch = Epoch(before.0.saturating_add(EPOCHS_LEAP));
            recovery.raised.push((bucket.name.clone(), before, bucket.epoch));
        }
        self.recover_members(index, at_ms, &who);
        self.note_recovery(index, occasion.at, who.clone(), &recovery);
        recovery
    }

    fn note_recovery(&mut self, index: u64, at: Hlc, who: String, recovery: &Recovery) {
        self.clock = at;
        self.events.push(Event {
            index,
            at,
            who,
            verb: "recover-metadata".to_owned(),
            subject: self.cluster().map(|id| id.to_string()).unwrap_or_default(),
            detail: format!(
                "from one copy, without a majority: {} epochs raised, {} operations given up; what the lost voters had committed besides is gone",
                recovery.raised.len(),
                recovery.given_up.len()
            ),
        });
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::{
        AutoFailover, BucketSpec, ClusterId, Labels, Phase, Policy, RegionName, Selection, SwitchoverSpec,
    };

    use super::*;
    use crate::command::Form;
    use crate::testing::member;
    use crate::{Action, Command};

    fn command(operation: u128, action: Action) -> Command {
        Command { operation: OperationId(operation), who: "operator".to_owned(), at_ms: 1000, action }
    }

    fn state() -> ClusterState {
        let members = ["us-east", "eu-west"].map(member).to_vec();
        let form = Form { cluster: ClusterId(7), shards: 1, lease_ttl_ms: 5000, members };
        let mut state = ClusterState::default();
        state.apply(1, &command(1, Action::FormCluster(form))).unwrap();
        for (at, (name, policy)) in [("orders", Policy::ASYNC), ("carts", Policy::ActiveActive)].into_iter().enumerate()
        {
            let spec = BucketSpec {
                name: BucketName::new(name).unwrap(),
                policy,
                regions: Vec::new(),
                primary: None,
                labels: Labels::new(),
                auto: AutoFailover::default(),
            };
            let at = at as u64;
            state.apply(2 + at, &command(u128::from(2 + at), Action::CreateBucket(spec))).unwrap();
        }
        let spec = SwitchoverSpec {
            to: RegionName::new("eu-west").unwrap(),
            buckets: Selection::Named(vec![BucketName::new("orders").unwrap()]),
            lag_ms_max: 0,
            pause_ms_max: 1000,
            reason: String::new(),
        };
        state.apply(4, &command(4, Action::Switchover(spec))).unwrap();
        state
    }

    #[test]
    fn every_epoch_with_a_primary_leaps_and_operations_are_given_up() {
        let mut state = state();
        let recovery = state.recover(1000, 2000, "eu-west-1");
        state.validate().unwrap();
        let orders = BucketName::new("orders").unwrap();
        assert_eq!(recovery.given_up, [PlanId(4)]);
        assert_eq!(recovery.raised, [(orders.clone(), Epoch(1), Epoch(1 + EPOCHS_LEAP))]);
        let bucket = state.bucket_named(&orders).unwrap();
        assert_eq!((bucket.epoch, bucket.phase), (Epoch(1 + EPOCHS_LEAP), Phase::Steady));
        let carts = state.bucket_named(&BucketName::new("carts").unwrap()).unwrap();
        assert_eq!(carts.epoch, Epoch(1));
        assert_eq!(state.events().next_back().unwrap().verb, "recover-metadata");
        assert_eq!(state.index(), 1000);
        let again = ClusterState::decode(&state.encode()).unwrap();
        assert_eq!(again, state);
    }

    #[test]
    fn a_state_of_no_cluster_stays_empty() {
        let mut state = ClusterState::default();
        assert_eq!(state.recover(9, 0, "x"), Recovery::default());
        assert_eq!(state, ClusterState::default());
    }
}
