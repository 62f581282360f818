//! Reads of what a failover undid. Nobody can look into real processes, but the record says up to where the log of a lost primary counts, and
//! an answer says what it rests on.
//!
//! Only weak reads are taken out: a strong read waited for the copies of what it saw, and an acknowledged write has its own, so that no failover
//! which proves that nothing is lost may undo either (DUR-2, CON-1).

use meridian_types::{Plan, ReadLevel, Step};

use crate::history::Operation;

/// Takes them out; says how many they were.
pub(super) fn take_out(plans: &[Plan], operations: &mut Vec<Operation>) -> usize {
    let before = operations.len();
    operations.retain(|operation| !plans.iter().any(|plan| saw_what_is_undone(operation, plan)));
    before - operations.len()
}

fn saw_what_is_undone(operation: &Operation, plan: &Plan) -> bool {
    let Some(answer) = operation.answer() else { return false };
    if operation.level().is_none_or(|level| *level == ReadLevel::Strong) {
        return false;
    }
    plan.moves.iter().filter(|it| it.name == *operation.request.bucket()).any(|it| {
        let Step::FailedOver { epoch, verdict, .. } = &it.step else { return false };
        let beyond = |shard| {
            let seen = answer.session.seen(it.bucket, shard).map(|seen| seen.of(it.from));
            verdict.cut.get(&shard).zip(seen).is_some_and(|(cut, seen)| seen > cut.lsn)
        };
        answer.epoch < *epoch && operation.keys().into_iter().any(|key| beyond(key.shard(it.bucket, plan.shards)))
    })
}

#[cfg(test)]
mod tests {
    use meridian_types::{
        BucketId, BucketName, Epoch, Freshness, Goal, Hlc, Key, Loss, Lsn, Move, OperationId, Outcome, PlanId, Read,
        RegionId, Request, Response, Seal, SessionToken, SetHash, ShardId, StalePolicy, Verdict,
    };

    use super::*;
    use crate::history::Told;

    const LOST: RegionId = RegionId(1);

    fn plan(cut: u64) -> Plan {
        let seal = Seal { lsn: Lsn(cut), hash: SetHash::default(), keys: 0 };
        let verdict =
            Verdict { heard: vec![RegionId(2)], proven: true, lost: Loss::default(), cut: [(ShardId(0), seal)].into() };
        let step = Step::FailedOver { fencing_since_ms: 1, at_ms: 2, epoch: Epoch(2), to: RegionId(2), verdict };
        let name = BucketName::new("orders").unwrap();
        Plan {
            id: PlanId(1),
            operation: OperationId(1),
            goal: Goal::Failover { to: None, automatic: true },
            who: String::new(),
            reason: String::new(),
            created_ms: 0,
            shards: 1,
            moves: vec![Move { bucket: BucketId(7), name, from: LOST, epoch_before: Epoch(1), step }],
            ended_ms: Some(2),
        }
    }

    fn read(level: ReadLevel, epoch: u64, seen: u64) -> Operation {
        let mut session = SessionToken::default();
        session.observe(BucketId(7), ShardId(0), LOST, Lsn(seen));
        let response = Response {
            region: LOST,
            epoch: Epoch(epoch),
            outcome: Outcome::Value(None),
            freshness: Freshness { hlc: Hlc(0), staleness_ms: None },
            durability: None,
            session,
        };
        let request = Request::Read {
            bucket: BucketName::new("orders").unwrap(),
            read: Read::Get { key: Key::new("k").unwrap() },
            level,
            stale: StalePolicy::Wait,
            session: SessionToken::default(),
            deadline_ms: 1,
        };
        Operation { client: 1, region: LOST, request, begun_us: 0, ended_us: 1, told: Told::Done(response) }
    }

    #[test]
    fn only_weak_reads_beyond_the_cut_under_the_lost_epoch_are_taken_out() {
        let left = |operation: Operation| {
            let mut all = vec![operation];
            take_out(&[plan(10)], &mut all);
            all.len()
        };
        assert_eq!(left(read(ReadLevel::Session, 1, 11)), 0);
        assert_eq!(left(read(ReadLevel::Session, 1, 10)), 1, "the last that counts");
        assert_eq!(left(read(ReadLevel::Strong, 1, 11)), 1, "it waited for copies");
        assert_eq!(left(read(ReadLevel::Session, 2, 11)), 1, "the region leads again, and its log goes on");
    }
}
