//! The steps of a switchover (SWI-1): catching up, draining, promoted; or restored.

use meridian_types::{Epoch, Fact, Move, Proof, RegionId, ShardId, Step};

use super::Next;

/// Takes note of one fact, if it is about the step the bucket is at and comes from the region that knows. What was heard
/// first stays: a fact does not change.
pub(super) fn note(it: &mut Move, to: RegionId, region: RegionId, seen: Epoch, shard: ShardId, fact: Fact) {
    let (from, before) = (it.from, it.epoch_before);
    match (&mut it.step, fact) {
        (Step::CatchingUp { caught_up }, Fact::CaughtUp) if region == from && seen == before => {
            caught_up.insert(shard);
        }
        // Also after the promotion: the proof is completed by whoever comes late.
        (Step::Draining { epoch, proof, .. } | Step::Promoted { epoch, proof, .. }, Fact::Sealed(seal))
            if region == from && seen == *epoch =>
        {
            proof.sealed.entry(shard).or_insert(seal);
        }
        (Step::Draining { epoch, proof, .. }, Fact::Ready(seal)) if region == to && seen == *epoch => {
            proof.ready.entry(shard).or_insert(seal);
        }
        // Too early, too late, or none of that region's business.
        (_, Fact::CaughtUp | Fact::Sealed(_) | Fact::Ready(_) | Fact::Fenced(_)) => {}
    }
}

/// The step that a bucket can take.
pub(super) fn next(step: &Step, shards: u16) -> Option<Next> {
    let shards = usize::from(shards);
    match step {
        Step::CatchingUp { caught_up } => (caught_up.len() == shards).then_some(Next::Drain),
        // Before anybody writes where something is missing, the old primary goes on (SWI-1).
        Step::Draining { proof, .. } => match difference(proof) {
            Some(why) => Some(Next::Restore { why }),
            None => (proof.ready.len() == shards).then_some(Next::Promote),
        },
        Step::Unneeded
        | Step::Promoted { .. }
        | Step::Restored { .. }
        | Step::Fencing { .. }
        | Step::Pulling { .. }
        | Step::FailedOver { .. } => None,
    }
}

/// What the two regions disagree on.
pub(super) fn difference(proof: &Proof) -> Option<String> {
    let shards: Vec<String> = proof.differing().map(|shard| shard.to_string()).collect();
    let first = proof.differing().next()?;
    let (sealed, ready) = (proof.sealed.get(&first)?, proof.ready.get(&first)?);
    Some(format!(
        "the regions differ at the seal of shard {}: {} keys at {} with digest {}, against {} keys at {} with digest {}",
        shards.join(", "),
        sealed.keys,
        sealed.lsn,
        sealed.hash,
        ready.keys,
        ready.lsn,
        ready.hash
    ))
}

/// Whether a bucket that had arrived turns out to lack something.
pub(super) fn differs_now(before: &Move, after: &Move) -> bool {
    match (&before.step, &after.step) {
        (Step::Promoted { proof: known, .. }, Step::Promoted { proof, .. }) => {
            proof.differing().count() > known.differing().count()
        }
        _ => false,
    }
}
