//! DUR-2, honest durability: an acknowledgement that claims k regions is given no earlier than k regions have the write,
//! and never claims less than the request asks for, and the bucket's policy in the epoch that is told.
//!
//! A copy that waits for the seal of an earlier epoch is none yet: without its source nobody could apply it. Nor is one in a region that
//! is being filled, or that holds the bucket no more.

use std::collections::{BTreeSet, HashMap};

use meridian_types::{BucketId, Epoch, Lsn, RegionId, Request, RequestId, ShardId};

use super::{Evidence, Stats, Violation, broken, show};
use crate::trace::{Entry, Fact, Record, Replica, Verdict};

/// What was acknowledged had been done.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    let copies = evidence.records.as_deref().map(|records| Copies::of(evidence, records));
    for known in evidence.all_writes() {
        let (Some(answer), Some(bucket)) = (known.answer, evidence.bucket_of(known.operation)) else { continue };
        let Request::Write { ack, id, .. } = &known.operation.request else { continue };
        let holders = evidence.members.holders(bucket.id, answer.epoch);
        let required = ack.required_regions(evidence.required(bucket.id, answer.epoch), holders);
        let claimed = answer.durability.map_or(0, |it| usize::from(it.regions));
        stats.checked += 1;
        // Whether fewer may be acknowledged, and when, is DEG-1 ([`super::fewer`]).
        if claimed < required && !evidence.policies.may_degrade(bucket.id, answer.epoch) {
            let sentence = format!("a write that needs {required} regions was acknowledged with {claimed}");
            return Err(broken("durable", sentence).showing(known.operation));
        }
        let Some(copies) = &copies else { continue };
        let Some(key) = known.write.keys().next() else { continue };
        let shard = evidence.shard_of(bucket, key);
        for (origin, lsn) in answer.session.seen(bucket.id, shard).iter().flat_map(|seen| &seen.0) {
            let place = (bucket.id, *origin, shard, *lsn);
            let counts = |region| evidence.members.counts(bucket.id, answer.epoch, region);
            let held = copies.hold(place, *id, claimed, (known.operation.ended_us, &counts));
            held.map_err(|it| it.showing(known.operation))?;
        }
    }
    stats.checked += acknowledged(evidence, copies.as_ref())?;
    if let Some(copies) = &copies {
        stats.checked += on_record(evidence, copies)?;
    }
    Ok(stats)
}

/// When a bucket becomes SYNC, or stays so without one of its regions, whatever was acknowledged before, under whichever policy, has the copies that its policy asks for now.
fn on_record(evidence: &Evidence, copies: &Copies) -> Result<u64, Violation> {
    let mut checked = 0;
    for known in evidence.all_writes() {
        let (Some(answer), Some(bucket)) = (known.answer, evidence.bucket_of(known.operation)) else { continue };
        let Request::Write { id, .. } = &known.operation.request else { continue };
        let Some(key) = known.write.keys().next() else { continue };
        let shard = evidence.shard_of(bucket, key);
        for now in evidence.policies.becomes_sync(bucket.id, &evidence.members) {
            let since_us = now.since_us;
            if known.operation.ended_us > since_us {
                continue;
            }
            checked += 1;
            let holders = evidence.members.at(bucket.id, since_us);
            let (needed, counts) = (now.policy.required_regions(holders.len()), |region| holders.contains(&region));
            for (origin, lsn) in answer.session.seen(bucket.id, shard).iter().flat_map(|seen| &seen.0) {
                let held = copies.hold((bucket.id, *origin, shard, *lsn), *id, needed, (since_us, &counts));
                held.map_err(|it| it.showing("SYNC was on record by then").showing(known.operation))?;
            }
        }
    }
    Ok(checked)
}

/// The same for what nodes told each other, at the very moment they did.
fn acknowledged(evidence: &Evidence, copies: Option<&Copies>) -> Result<u64, Violation> {
    let mut checked = 0;
    for record in evidence.records.iter().flatten() {
        let Fact::Acknowledged { origin, bucket, shard, epoch, lsn, regions, request, .. } = &record.fact else {
            continue;
        };
        checked += 1;
        if let Some(copies) = copies {
            let counts = |region| evidence.members.counts(*bucket, *epoch, region);
            let claimed = usize::from(*regions);
            copies.hold((*bucket, *origin, *shard, *lsn), *request, claimed, (record.at_us, &counts))?;
        }
    }
    Ok(checked)
}

/// A write: its bucket, and its place in its origin's log.
type Place = (BucketId, RegionId, ShardId, Lsn);

/// Which region has everything up to where, and since when.
type Brought = Vec<(RegionId, Lsn, u64)>;

/// Whose an entry was, and when each region first applied it.
struct Copies {
    first: HashMap<Place, (RequestId, Vec<(RegionId, u64)>)>,
    /// What repairs brought of an origin's log.
    brought: HashMap<(BucketId, RegionId, ShardId), Brought>,
}

impl Copies {
    fn of(evidence: &Evidence, records: &[Record]) -> Copies {
        let mut first: HashMap<Place, (RequestId, Vec<(RegionId, u64)>)> = HashMap::new();
        let mut brought: HashMap<_, Brought> = HashMap::new();
        let mut begun: HashMap<(Replica, ShardId, BucketId), Epoch> = HashMap::new();
        let mut asked: HashMap<(BucketId, RegionId, ShardId, RequestId), Lsn> = HashMap::new();
        for record in records {
            if let Fact::Repaired { replica, shard, bucket, positions, .. } = &record.fact {
                for (origin, lsn) in positions.iter().filter(|(origin, _)| *origin != replica.region) {
                    let known = brought.entry((*bucket, *origin, *shard)).or_default();
                    known.push((replica.region, *lsn, record.at_us));
                }
            }
            let Fact::Applied { replica, shard, entry } = &record.fact else { continue };
            let begun = begun.entry((*replica, *shard, entry.bucket)).or_default();
            match entry.verdict {
                Verdict::Void => continue,
                Verdict::Parked if !waits_for_itself(evidence, entry, *begun) => continue,
                Verdict::Parked => {}
                Verdict::Took | Verdict::Refused | Verdict::Repeated => *begun = (*begun).max(entry.epoch),
            }
            let place = (entry.bucket, entry.origin, *shard, entry.source_lsn);
            // What was decided before rests on another entry: of a kept failure nobody knows on which. Nor does an attempt decide anything that
            // came when its client was already further and is refused for that (seed 712207).
            let asked_first =
                *asked.entry((entry.bucket, entry.origin, *shard, entry.request)).or_insert(entry.source_lsn);
            let decides = match entry.verdict {
                Verdict::Repeated => false,
                Verdict::Refused => entry.source_lsn == asked_first,
                Verdict::Took | Verdict::Parked | Verdict::Void => true,
            };
            let by = if decides { entry.request } else { RequestId::default() };
            let (_, copies) = first.entry(place).or_insert_with(|| (by, Vec::new()));
            if copies.iter().all(|(region, _)| *region != replica.region) {
                copies.push((replica.region, record.at_us));
            }
        }
        Copies { first, brought }
    }

    /// The regions that had a write by that time.
    fn regions(&self, (bucket, origin, shard, lsn): Place, by_us: u64) -> BTreeSet<RegionId> {
        let applied = self.first.get(&(bucket, origin, shard, lsn)).map_or(&[][..], |(_, copies)| copies.as_slice());
        let applied = applied.iter().filter(|(_, at_us)| *at_us <= by_us).map(|(region, _)| *region);
        let brought = self.brought.get(&(bucket, origin, shard)).map_or(&[][..], Vec::as_slice).iter();
        let brought = brought.filter(|(_, up_to, at_us)| *up_to >= lsn && *at_us <= by_us).map(|(region, ..)| *region);
        applied.chain(brought).collect()
    }

    /// So many regions whose copies count had the write by that time. A session may also have seen what others wrote: that is held to
    /// nothing here.
    fn hold(
        &self,
        place: Place,
        by: RequestId,
        claimed: usize,
        (by_us, counts): (u64, &dyn Fn(RegionId) -> bool),
    ) -> Result<(), Violation> {
        let known = self.first.get(&place);
        if known.is_some_and(|(request, _)| *request != by) {
            return Ok(());
        }
        let copies = known.map_or(&[][..], |(_, copies)| copies.as_slice());
        let had = self.regions(place, by_us).into_iter().filter(|region| counts(*region)).count();
        if had >= claimed {
            return Ok(());
        }
        let (bucket, origin, shard, lsn) = place;
        let sentence = format!(
            "a write of bucket {bucket} (position {lsn} of shard {shard} in region {origin}) was acknowledged at {} as held by {claimed} regions; {had} had it",
            show::seconds(by_us)
        );
        let seen =
            copies.iter().map(|(region, at_us)| format!("region {region} applied it at {}", show::seconds(*at_us)));
        Err(seen.fold(broken("durable", sentence), |it, line| it.showing(line)))
    }
}

/// Where every region writes, a later epoch begins in each of them by its own word, and all have what was before: what waits for that needs
/// nobody else. Nor does what waits for the end of a repair, in an epoch that has begun there (seed 734); the first one has everywhere.
fn waits_for_itself(evidence: &Evidence, entry: &Entry, begun: Epoch) -> bool {
    let active = |epoch: u64| evidence.kinds.is_active(entry.bucket, Epoch(epoch));
    let has_begun = entry.epoch == Epoch(1) || begun >= entry.epoch;
    active(entry.epoch.0) && (has_begun || active(entry.epoch.0 - 1))
}
