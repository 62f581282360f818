//! Between two kinds of writes all regions stand at the same place (docs/adr/2026-11-28-active-active-changes.md; CON-4): what was
//! ordered under the epochs before is in every region when the next one is on record, and nothing of them is ordered from then on, nor
//! anything of the next one before. The same holds where all regions write and others come to (docs/adr/2026-11-28-active-active-region-sets.md).
//!
//! And what needs one order among all regions is not done where there is none: no strong read, no condition, no append, no multi-put.

use std::collections::{BTreeMap, HashMap};

use meridian_types::entry::Kind;
use meridian_types::{BucketId, Epoch, Lsn, ReadLevel, RegionId, Request, ShardId, Write};

use super::{Evidence, Stats, Violation, broken, show};
use crate::history::Operation;
use crate::trace::{Entry, Fact, Record, Verdict};

/// Kinds of writes don't mix, and all regions meet between them.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut checked = orderless(evidence)?;
    let records = evidence.records.as_deref().unwrap_or_default();
    for bucket in &evidence.setup.buckets {
        let meetings = meetings(evidence, bucket.id);
        if !meetings.is_empty() {
            checked += Places::of(evidence, records, bucket.id).hold(evidence, bucket.id, &meetings)?;
        }
    }
    Ok(Stats { checked, undecided: 0 })
}

/// Where every region writes nothing is told, or done, that takes one order among them.
fn orderless(evidence: &Evidence) -> Result<u64, Violation> {
    let mut checked = 0;
    for operation in evidence.operations.iter().filter(|it| needs_order(it)) {
        let Some(bucket) = evidence.bucket_of(operation).filter(|it| evidence.kinds.was_active(it.id)) else {
            continue;
        };
        checked += 1;
        let epoch = evidence.epoch_of(bucket.id, operation).filter(|_| !operation.is_without_effect());
        if let Some(epoch) = epoch.filter(|epoch| evidence.kinds.is_active(bucket.id, *epoch)) {
            let sentence = format!(
                "what needs one order among all regions was done in bucket {} under epoch {epoch}, in which every region writes",
                bucket.name
            );
            return Err(broken("crossed", sentence).showing(operation));
        }
    }
    Ok(checked)
}

/// Whether an operation takes one order among all regions.
pub(super) fn needs_order(operation: &Operation) -> bool {
    match &operation.request {
        Request::Read { level, .. } => *level == ReadLevel::Strong,
        Request::Write { write, .. } => match write {
            Write::CompareAndSet { .. } | Write::PutIfAbsent { .. } | Write::Append { .. } | Write::MultiPut { .. } => {
                true
            }
            Write::Put { .. } | Write::Delete { .. } | Write::Increment { .. } => false,
        },
    }
}

/// An epoch that begins where all regions stand at the same place.
struct Meeting {
    /// The epoch.
    begins: Epoch,
    /// Since when it is on record that somebody may write under it.
    at_us: u64,
}

/// The epochs of a bucket in which another kind of writes begins, or other regions write.
fn meetings(evidence: &Evidence, bucket: BucketId) -> Vec<Meeting> {
    let is_active = |epoch| evidence.kinds.is_active(bucket, epoch);
    let mut begun: Vec<Meeting> = Vec::new();
    for word in evidence.policies.words(bucket) {
        // While it opens the epoch is on record, and has a primary still: nobody writes.
        let counts = word.policy.has_primary() != is_active(word.epoch);
        if counts && begun.last().is_none_or(|last| last.begins < word.epoch) {
            begun.push(Meeting { begins: word.epoch, at_us: word.since_us });
        }
    }
    let met: Vec<bool> = begun.windows(2).map(|it| it.iter().any(|epoch| is_active(epoch.begins))).collect();
    begun.into_iter().skip(1).zip(met).filter_map(|(meeting, met)| met.then_some(meeting)).collect()
}

/// An entry: whose, and where.
type Place = (RegionId, ShardId, Lsn);

/// Every entry of a bucket that counts, and since when each region has it.
struct Places {
    entries: BTreeMap<Place, (Entry, BTreeMap<RegionId, u64>)>,
    /// Up to where repairs brought a region's log, and when.
    brought: HashMap<(RegionId, RegionId, ShardId), Vec<(Lsn, u64)>>,
}

impl Places {
    fn of(evidence: &Evidence, records: &[Record], bucket: BucketId) -> Places {
        let mut places = Places { entries: BTreeMap::new(), brought: HashMap::new() };
        for record in records {
            match &record.fact {
                Fact::Applied { replica, shard, entry } if entry.bucket == bucket && counts(entry) => {
                    if evidence.forks.has_lost(*shard, entry) {
                        continue;
                    }
                    let place = (entry.origin, *shard, entry.source_lsn);
                    let (_, had) = places.entries.entry(place).or_insert_with(|| (*entry, BTreeMap::new()));
                    had.entry(replica.region).or_insert(record.at_us);
                }
                Fact::Repaired { replica, shard, bucket: of, positions, .. } if *of == bucket => {
                    for (origin, lsn) in positions {
                        let known = places.brought.entry((replica.region, *origin, *shard)).or_default();
                        known.push((*lsn, record.at_us));
                    }
                }
                _ => {}
            }
        }
        places
    }

    fn hold(&self, evidence: &Evidence, bucket: BucketId, meetings: &[Meeting]) -> Result<u64, Violation> {
        let mut checked = 0;
        for Meeting { begins, at_us } in meetings {
            let before = evidence.members.at(bucket, at_us.saturating_sub(1)).iter();
            let is_out = |region: &RegionId| evidence.forks.is_out_as_of(bucket, *begins, *region);
            let regions: Vec<RegionId> = before.copied().filter(|region| !is_out(region)).collect();
            for (place, (entry, had)) in &self.entries {
                checked += 1;
                let ordered_us = had.get(&entry.origin).copied();
                let said = |what: &str| {
                    format!(
                        "epoch {begins} of bucket {bucket} was on record at {}; {what}: the write at {} of region {} in shard {}, under epoch {}",
                        show::seconds(*at_us),
                        place.2,
                        place.0,
                        place.1,
                        entry.epoch
                    )
                };
                if entry.epoch == *begins && entry.kind != Kind::Seal && ordered_us.is_some_and(|it| it < *at_us) {
                    return Err(broken("crossed", said("somebody wrote under it before")));
                }
                if entry.epoch >= *begins {
                    continue;
                }
                if ordered_us.is_some_and(|it| it > *at_us) {
                    // Where one region comes to order, its seal is what begins the epoch.
                    if entry.kind == Kind::Seal {
                        continue;
                    }
                    return Err(broken("crossed", said("somebody went on under the one before")));
                }
                if let Some(region) = regions.iter().find(|region| !self.has(**region, place, had, *at_us)) {
                    return Err(broken("crossed", said(&format!("region {region} lacked what was before"))));
                }
            }
        }
        Ok(checked)
    }

    fn has(&self, region: RegionId, place: &Place, had: &BTreeMap<RegionId, u64>, by_us: u64) -> bool {
        let (origin, shard, lsn) = *place;
        let brought = self.brought.get(&(region, origin, shard)).map_or(&[][..], Vec::as_slice);
        had.get(&region).is_some_and(|at_us| *at_us <= by_us)
            || brought.iter().any(|(up_to, at_us)| *up_to >= lsn && *at_us <= by_us)
    }
}

fn counts(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::Write | Kind::Expire | Kind::Seal)
        && matches!(entry.verdict, Verdict::Took | Verdict::Refused | Verdict::Repeated)
}
