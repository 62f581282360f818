//! Operations that move primaries, as everybody sees them: what was asked, bucket by bucket how far it is, and the proof.
//!
//! ```text
//!                        every shard close              every shard ready
//!   asked ──► CatchingUp ───────────────► Draining ───────────────────────► Promoted
//!                 │        epoch e+1         │        primary = to, e+1
//!                 └── abort ─► Restored ◄────┴── abort: primary as before, e+2
//!
//!                              what is left suffices,
//!   lost ───► Fencing ──────── and its leases are out ──────────────────► FailedOver
//!            epoch e+1 └─► Pulling ───── has what the others have ──────► primary = to, e+1
//!               └─────────────┴── abort, or not without consent ─► Restored: primary as before, e+2
//! ```
//!
//! A plan never changes what it is about; only its steps advance. Times are wall clocks of the metadata leaders that put them
//! on record, in milliseconds since 1970.
//!
//! Deliberately not here: when a step is taken (`metadata/core`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use crate::id::{BucketId, BucketName, RegionId, RegionName, ShardId};
use crate::loss::{MORE_THAN_AGREED, Muster, NOT_PROVEN, Verdict};
use crate::plan::{PlanId, Seal};
use crate::position::Epoch;

/// Names one attempt to change something, chosen at random by whoever asks first, or by the operator: a command retried
/// under the same id takes effect once and gets the first answer (ONE-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OperationId(pub u128);

impl OperationId {
    /// The id that a word of the operator stands for: the same word, the same id.
    pub fn of(word: &str) -> OperationId {
        OperationId(xxh3_128(word.as_bytes()))
    }
}

impl fmt::Display for OperationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Which buckets an operation is about. Resolved when it is planned, so that nothing changes in between.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selection {
    /// These.
    Named(Vec<BucketName>),
    /// Those with a primary that carry a label.
    Labelled {
        /// The label's key.
        key: String,
        /// Its value.
        value: String,
    },
    /// Those whose primary is in a region.
    AllFrom(RegionName),
}

impl fmt::Display for Selection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selection::Named(names) => {
                f.write_str(&names.iter().map(BucketName::as_str).collect::<Vec<_>>().join(", "))
            }
            Selection::Labelled { key, value } => write!(f, "label {key}={value}"),
            Selection::AllFrom(region) => write!(f, "all from {region}"),
        }
    }
}

/// What is asked for when primaries are to move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchoverSpec {
    /// The next primary.
    pub to: RegionName,
    /// Of which buckets.
    pub buckets: Selection,
    /// How far behind it may be, in milliseconds, when writes stop.
    pub lag_ms_max: u64,
    /// For how long writes may stop, in milliseconds, before the old primary is restored.
    pub pause_ms_max: u64,
    /// Why, for whoever reads the history.
    pub reason: String,
}

/// What an operation is to bring about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Goal {
    /// Primaries move to a region; nothing is lost, whether it completes or not (SWI-1).
    Switchover {
        /// The next primary.
        to: RegionId,
        /// How far behind it may be, in milliseconds, when writes stop.
        lag_ms_max: u64,
        /// For how long writes may stop, in milliseconds.
        pause_ms_max: u64,
    },
    /// Primaries that are lost are replaced. What is lost with them is known, and agreed to (SWI-2).
    Failover {
        /// The next primary that was asked for; `None` for the region that has most.
        to: Option<RegionId>,
        /// Whether nobody asked: the cluster found out by itself.
        automatic: bool,
    },
}

/// An operation: what it is about, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Its name.
    pub id: PlanId,
    /// What it was asked under: whoever asks again under it gets this plan.
    pub operation: OperationId,
    /// What it is to bring about.
    pub goal: Goal,
    /// Who asked.
    pub who: String,
    /// Why.
    pub reason: String,
    /// When it was planned: from then on its buckets catch up.
    pub created_ms: u64,
    /// How many shards each bucket has.
    pub shards: u16,
    /// Its buckets, ascending.
    pub moves: Vec<Move>,
    /// When its last bucket arrived or was restored; `None` while it is under way.
    pub ended_ms: Option<u64>,
}

/// One bucket's way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// The bucket.
    pub bucket: BucketId,
    /// Its name when it was planned.
    pub name: BucketName,
    /// Its primary then.
    pub from: RegionId,
    /// Its epoch then.
    pub epoch_before: Epoch,
    /// How far it is.
    pub step: Step,
}

/// How far a bucket is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Its primary was there already.
    Unneeded,
    /// The primary accepts writes until every shard of the next one is close behind.
    CatchingUp {
        /// Those that are.
        caught_up: BTreeSet<ShardId>,
    },
    /// Nobody accepts writes.
    Draining {
        /// Since when.
        since_ms: u64,
        /// The epoch that is being prepared.
        epoch: Epoch,
        /// What has been heard from the shards.
        proof: Proof,
    },
    /// The next primary accepts writes.
    Promoted {
        /// When writes stopped.
        draining_since_ms: u64,
        /// When they went on.
        at_ms: u64,
        /// Under which epoch.
        epoch: Epoch,
        /// That nothing is missing.
        proof: Proof,
    },
    /// It was given up: the old primary accepts writes, nothing is lost.
    Restored {
        /// When writes stopped, if they did.
        draining_since_ms: Option<u64>,
        /// When it was given up.
        at_ms: u64,
        /// Under which epoch writes go on.
        epoch: Epoch,
        /// Why.
        why: String,
    },
    /// Its primary is lost: nobody accepts writes, and the regions that are left say what they have.
    Fencing {
        /// Since when.
        since_ms: u64,
        /// The epoch that is being prepared.
        epoch: Epoch,
        /// The next primary, as far as it is known yet.
        to: RegionId,
        /// What has been heard.
        muster: Muster,
    },
    /// The next primary fetches what it lacks from the other regions that are left.
    Pulling {
        /// Since when nobody accepts writes.
        since_ms: u64,
        /// The epoch that is being prepared.
        epoch: Epoch,
        /// The next primary.
        to: RegionId,
        /// What has been heard.
        muster: Muster,
    },
    /// Another primary accepts writes.
    FailedOver {
        /// Since when nobody accepted writes by order of the metadata plane; for clients it began with the loss.
        fencing_since_ms: u64,
        /// When they went on.
        at_ms: u64,
        /// Under which epoch.
        epoch: Epoch,
        /// The primary.
        to: RegionId,
        /// What it rests on, and what it cost.
        verdict: Verdict,
    },
}

/// What both regions hold at the end of the old primary's epoch, shard by shard. Equal: nothing is missing (SWI-1).
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Proof {
    /// What the old primary had at its seal.
    pub sealed: BTreeMap<ShardId, Seal>,
    /// What the next one had there.
    pub ready: BTreeMap<ShardId, Seal>,
}

impl Proof {
    /// In how many shards both are known and equal.
    pub fn equal(&self) -> usize {
        self.sealed.iter().filter(|(shard, seal)| self.ready.get(shard) == Some(seal)).count()
    }

    /// Shards in which both are known and differ.
    pub fn differing(&self) -> impl Iterator<Item = ShardId> + '_ {
        let differs = |(shard, seal): &(&ShardId, &Seal)| self.ready.get(shard).is_some_and(|ready| ready != *seal);
        self.sealed.iter().filter(differs).map(|(shard, _)| *shard)
    }
}

impl Step {
    /// Whether the bucket won't go further.
    pub fn is_final(&self) -> bool {
        match self {
            Step::Unneeded | Step::Promoted { .. } | Step::Restored { .. } | Step::FailedOver { .. } => true,
            Step::CatchingUp { .. } | Step::Draining { .. } | Step::Fencing { .. } | Step::Pulling { .. } => false,
        }
    }

    /// Whether it was given up because nobody had agreed to what it would have cost: then a consent to more is what it takes. Told by
    /// the reason on record, so that whoever looks later finds what whoever watched found.
    pub fn wants_consent(&self) -> bool {
        match self {
            Step::Restored { why, .. } => why.starts_with(MORE_THAN_AGREED) || why.starts_with(NOT_PROVEN),
            Step::Unneeded
            | Step::CatchingUp { .. }
            | Step::Draining { .. }
            | Step::Promoted { .. }
            | Step::Fencing { .. }
            | Step::Pulling { .. }
            | Step::FailedOver { .. } => false,
        }
    }

    /// For how long nobody accepted writes, once that is over.
    pub fn pause_ms(&self) -> Option<u64> {
        match self {
            Step::Promoted { draining_since_ms, at_ms, .. }
            | Step::Restored { draining_since_ms: Some(draining_since_ms), at_ms, .. } => {
                Some(at_ms.saturating_sub(*draining_since_ms))
            }
            Step::FailedOver { fencing_since_ms, at_ms, .. } => Some(at_ms.saturating_sub(*fencing_since_ms)),
            Step::Unneeded
            | Step::CatchingUp { .. }
            | Step::Draining { .. }
            | Step::Restored { .. }
            | Step::Fencing { .. }
            | Step::Pulling { .. } => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Step::Unneeded => "unneeded",
            Step::CatchingUp { .. } => "catching-up",
            Step::Draining { .. } => "draining",
            Step::Promoted { .. } => "promoted",
            Step::Restored { .. } => "restored",
            Step::Fencing { .. } => "fencing",
            Step::Pulling { .. } => "pulling",
            Step::FailedOver { .. } => "failed-over",
        })
    }
}

impl Plan {
    /// The way of a bucket.
    pub fn move_of(&self, bucket: BucketId) -> Option<&Move> {
        self.moves.get(self.moves.binary_search_by_key(&bucket, |it| it.bucket).ok()?)
    }

    /// Where the primaries go, if that was asked for.
    pub fn to(&self) -> Option<RegionId> {
        match self.goal {
            Goal::Switchover { to, .. } => Some(to),
            Goal::Failover { to, .. } => to,
        }
    }

    /// Where a bucket of it goes, as far as it is known; `None` for one whose failover was given up before that.
    pub fn successor(&self, it: &Move) -> Option<RegionId> {
        match &it.step {
            Step::Fencing { to, .. } | Step::Pulling { to, .. } | Step::FailedOver { to, .. } => Some(*to),
            Step::Unneeded
            | Step::CatchingUp { .. }
            | Step::Draining { .. }
            | Step::Promoted { .. }
            | Step::Restored { .. } => self.to(),
        }
    }

    /// How it stands.
    pub fn outcome(&self) -> PlanOutcome {
        let restored = self.moves.iter().filter(|it| matches!(it.step, Step::Restored { .. })).count();
        match (self.ended_ms, restored) {
            (None, _) => PlanOutcome::UnderWay,
            (Some(_), 0) => PlanOutcome::Done,
            (Some(_), some) if some < self.moves.len() => PlanOutcome::PartlyRestored,
            (Some(_), _) => PlanOutcome::Restored,
        }
    }
}

/// How an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlanOutcome {
    /// It goes on.
    UnderWay,
    /// Every bucket has arrived.
    Done,
    /// Some buckets have arrived, others were restored.
    PartlyRestored,
    /// Every bucket is where it was.
    Restored,
}

impl fmt::Display for PlanOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            PlanOutcome::UnderWay => "under way",
            PlanOutcome::Done => "done",
            PlanOutcome::PartlyRestored => "partly restored",
            PlanOutcome::Restored => "restored",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::SetHash;
    use crate::position::Lsn;

    fn seal(keys: u64) -> Seal {
        Seal { lsn: Lsn(9), hash: SetHash(u128::from(keys)), keys }
    }

    #[test]
    fn a_proof_counts_what_is_equal_and_names_what_differs() {
        let sealed = [(ShardId(0), seal(1)), (ShardId(1), seal(2)), (ShardId(2), seal(3))].into();
        let ready = [(ShardId(0), seal(1)), (ShardId(1), seal(7))].into();
        let proof = Proof { sealed, ready };
        assert_eq!((proof.equal(), proof.differing().collect::<Vec<_>>()), (1, vec![ShardId(1)]));
    }

    #[test]
    fn the_same_word_names_the_same_operation() {
        assert_eq!(OperationId::of("maintenance-7"), OperationId::of("maintenance-7"));
        assert_ne!(OperationId::of("maintenance-7"), OperationId::of("maintenance-8"));
    }

    #[test]
    fn a_pause_is_known_once_it_is_over() {
        let promoted = Step::Promoted { draining_since_ms: 100, at_ms: 340, epoch: Epoch(2), proof: Proof::default() };
        assert_eq!(promoted.pause_ms(), Some(240));
        let restored =
            Step::Restored { draining_since_ms: None, at_ms: 340, epoch: Epoch(1), why: "an operator".to_owned() };
        assert_eq!(restored.pause_ms(), None);
    }

    #[test]
    fn only_what_was_given_up_for_what_it_would_have_cost_wants_a_consent() {
        let restored = |why: String| Step::Restored { draining_since_ms: None, at_ms: 340, epoch: Epoch(1), why };
        assert!(restored(format!("{NOT_PROVEN}: it takes 2 regions")).wants_consent());
        assert!(restored(format!("{MORE_THAN_AGREED}: 6 operations")).wants_consent());
        assert!(!restored("an operator".to_owned()).wants_consent() && !Step::Unneeded.wants_consent());
    }
}
