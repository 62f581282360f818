//! SWI-2: what a failover undid was agreed to, is no more than was known, and is in the lost primary's salvage, key for key;
//! where a failover was proven to lose nothing, nothing acknowledged is undone (DUR-2), and nothing that a strong read has seen
//! (CON-1): it waits until no such failover could undo it. And what is undone stays so. The same of a region that is given up for lost where
//! every region writes.

use std::collections::{BTreeMap, HashSet};

use meridian_types::{BucketId, Key, ReadLevel, RegionId, Request, RequestId, SalvageKey, ShardId, Write};

use super::forks::{Failover, Undone};
use super::{Evidence, Known, Salvaged, Stats, Violation, broken, show};
use crate::history::Operation;

/// Lost is what is in the salvage, and no more than was agreed to.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    for (place, failover) in evidence.forks.failovers.iter().enumerate() {
        let Some(fork) = failover.fork() else { continue };
        stats.checked += 1;
        consented(failover)?;
        let lost = Lost::of(evidence, place);
        if let Some((_, operation)) = lost.acknowledged.first().filter(|_| fork.proven) {
            let sentence = format!("{} was to lose nothing, but an acknowledged write is undone", named(failover));
            return Err(broken("salvaged", sentence).showing(operation));
        }
        if let Some(read) = lost.seen(evidence).filter(|_| fork.proven) {
            let sentence = format!("{} was to lose nothing, but undid what a strong read had seen", named(failover));
            return Err(broken("salvaged", sentence).showing(read));
        }
        let count = lost.acknowledged.len() as u64;
        if !fork.lost.unbounded && count > fork.lost.operations {
            let sentence =
                format!("{} was to lose at most {}, but undid {count} acknowledged writes", named(failover), fork.lost);
            return Err(lost
                .acknowledged
                .iter()
                .fold(broken("salvaged", sentence), |it, (_, write)| it.showing(write)));
        }
        stats.checked += lost.kept(evidence, failover)?;
    }
    stats.checked += gone(evidence)?;
    Ok(stats)
}

fn named(failover: &Failover) -> String {
    format!(
        "the failover of bucket {} from region {}, begun at {},",
        failover.bucket,
        failover.from,
        show::seconds(failover.begun_us)
    )
}

/// A loss was agreed to, by somebody or by the bucket's own bound.
fn consented(failover: &Failover) -> Result<(), Violation> {
    let Some(fork) = failover.fork() else { return Ok(()) };
    let agreed = failover.agreed.is_some_and(|agreed| agreed.covers(fork.lost));
    if fork.proven || failover.automatic || agreed {
        return Ok(());
    }
    let agreed = failover.agreed.map_or_else(|| "nothing".to_owned(), |agreed| agreed.to_string());
    let sentence = format!("{} lost {}; agreed to was {agreed}", named(failover), fork.lost);
    Err(broken("salvaged", sentence))
}

/// What one failover undid.
struct Lost<'a> {
    /// All that took effect, and that no later failover took up again.
    undone: Vec<&'a Undone>,
    /// Writes that clients had been told were done.
    acknowledged: Vec<(&'a Undone, &'a Operation)>,
    /// The last write of each key in the log of each region, told or not: a bundle has what its own region ordered (seed 4852).
    last: BTreeMap<(ShardId, RegionId, &'a Key), (&'a Undone, &'a Operation)>,
}

impl<'a> Lost<'a> {
    fn of(evidence: &'a Evidence, place: usize) -> Lost<'a> {
        let known = requests(evidence);
        let told: BTreeMap<(BucketId, RequestId), &Operation> =
            evidence.undone.iter().filter_map(|it| Some(((evidence.bucket_of(it)?.id, request(it)?), it))).collect();
        let mut lost = Lost { undone: Vec::new(), acknowledged: Vec::new(), last: BTreeMap::new() };
        let ended_us = evidence.forks.failovers[place].end.as_ref().map_or(u64::MAX, |(at_us, _)| *at_us);
        // What a later failover took up again may be told from then on (seed 911148).
        let by_then = |undone: &Undone, it: &Operation| !undone.again || it.ended_us <= ended_us;
        for undone in evidence.forks.undone.iter().filter(|it| it.failover == place) {
            let id = (undone.entry.bucket, undone.entry.request);
            if undone.entry.verdict != crate::trace::Verdict::Took {
                continue;
            }
            if !undone.again {
                lost.undone.push(undone);
            }
            let told = told.get(&id).filter(|it| it.written() == Some(undone.version()) && by_then(undone, it));
            if let Some(operation) = told {
                lost.acknowledged.push((undone, operation));
            }
            let Some(operation) = known.get(&id) else { continue };
            let Request::Write { write, .. } = &operation.request else { continue };
            for key in write.keys() {
                lost.last.insert((undone.shard, undone.entry.origin, key), (undone, operation));
            }
        }
        lost
    }

    /// A strong read that found some of it.
    fn seen(&self, evidence: &'a Evidence) -> Option<&'a Operation> {
        let versions: HashSet<_> = self.undone.iter().map(|it| (it.entry.bucket, it.version())).collect();
        let mut strong = evidence.undone.iter().filter(|it| it.level() == Some(&ReadLevel::Strong));
        strong.find(|read| {
            let Some(bucket) = evidence.bucket_of(read) else { return false };
            read.found().iter().filter_map(|(_, found)| *found).any(|it| versions.contains(&(bucket.id, it.version)))
        })
    }

    /// Every key of a write that was told is in a bundle of the region that had ordered it, as it was left there; and nothing else is.
    fn kept(&self, evidence: &Evidence, failover: &Failover) -> Result<u64, Violation> {
        // Who looked for nothing, or never saw the region again, can't tell.
        let Some(salvage) = evidence.salvage.as_deref() else { return Ok(0) };
        let looked_at = |region: RegionId| {
            let finals = evidence.finals_of(failover.bucket).any(|it| it.region == region);
            finals || evidence.remnants.iter().any(|it| (it.region, it.bucket) == (region, failover.bucket))
        };
        let mut checked = 0;
        let gone_for_good = |undone: &Undone| !undone.again && looked_at(undone.entry.origin);
        for (undone, operation) in self.acknowledged.iter().copied().filter(|(undone, _)| gone_for_good(undone)) {
            let Request::Write { write, .. } = &operation.request else { continue };
            let is_told = |key: &&Key| !failover.active || !is_replaced(evidence, failover, undone, key);
            let is_gone = bundles(salvage, undone).any(|it| !it.bundle.whole);
            let is_told = |key: &&Key| is_told(key) && !(is_gone && is_added_to(evidence, failover, key));
            for key in write.keys().filter(is_told) {
                checked += 1;
                let kept = find(salvage, undone, key);
                let place = (undone.shard, undone.entry.origin, key);
                let (_, last) = self.last.get(&place).copied().unwrap_or((undone, operation));
                let as_left = kept.is_some_and(|(bundle, kept)| is_as_left(bundle, kept, key, last));
                if !as_left {
                    let what = if kept.is_some() { "is in no salvage as it was" } else { "is in no salvage" };
                    let sentence =
                        format!("{} undid an acknowledged write of {} that {what}", named(failover), show::key(key));
                    let salvages = salvage
                        .iter()
                        .map(|it| format!("region {} kept {} with {} keys", it.region, it.bundle.id, it.keys.len()));
                    let violation = broken("salvaged", sentence).showing(operation).showing(last);
                    return Err(salvages.fold(violation, |it, line| it.showing(line)));
                }
            }
        }
        Ok(checked)
    }
}

/// Whether another region gave the key something newer, which may have been there when the tail was written down: then nothing is lost
/// where every region writes.
fn is_replaced(evidence: &Evidence, failover: &Failover, undone: &Undone, key: &Key) -> bool {
    let newer = |known: Known<'_>| {
        let by_another = known.version.is_none_or(|it| it.region != failover.from && it > undone.version());
        by_another && !matches!(known.write, Write::Increment { .. })
    };
    evidence.writes(failover.bucket, key).any(newer)
}

/// Whether another region has added to a counter where every region writes: its record tells what each has added, and not when, so only the log tells
/// what of that is lost.
fn is_added_to(evidence: &Evidence, failover: &Failover, key: &Key) -> bool {
    let by_another = |known: Known<'_>| {
        known.version.is_none_or(|it| it.region != failover.from) && matches!(known.write, Write::Increment { .. })
    };
    failover.active && evidence.writes(failover.bucket, key).any(by_another)
}

/// The bundles that an undone write belongs to.
fn bundles<'a>(salvage: &'a [Salvaged], undone: &Undone) -> impl Iterator<Item = &'a Salvaged> {
    let (entry, shard) = (undone.entry, undone.shard);
    salvage.iter().filter(move |it| {
        let id = it.bundle.id;
        (it.region, id.bucket, id.shard) == (entry.origin, entry.bucket, shard)
            && id.cut < entry.source_lsn
            && entry.source_lsn <= id.end
    })
}

/// The bundle that an undone write belongs to, and what it has of a key.
fn find<'a>(salvage: &'a [Salvaged], undone: &Undone, key: &Key) -> Option<(&'a Salvaged, &'a SalvageKey)> {
    bundles(salvage, undone).find_map(|it| {
        let kept = it.keys.iter().find(|kept| kept.key == *key.as_bytes())?;
        Some((it, kept))
    })
}

/// Where a value can be told by its last write: counters and lists are made of many.
fn is_as_left(bundle: &Salvaged, kept: &SalvageKey, key: &Key, last: &Operation) -> bool {
    let Request::Write { write, .. } = &last.request else { return true };
    let value = match write {
        Write::Put { value, .. } | Write::CompareAndSet { value, .. } | Write::PutIfAbsent { value, .. } => {
            Some(value.as_bytes())
        }
        Write::MultiPut { items } => items.iter().find(|(it, _)| it == key).map(|(_, value)| value.as_bytes()),
        // Without its log a removal leaves no trace.
        Write::Delete { .. } => return kept.value.is_none() || !bundle.bundle.whole,
        Write::Append { .. } | Write::Increment { .. } => return kept.value.is_some(),
    };
    kept.value.as_ref() == value
}

/// What is undone is nowhere in the end.
fn gone(evidence: &Evidence) -> Result<u64, Violation> {
    let mut checked = 0;
    for last in evidence.finals.iter().filter(|_| !evidence.forks.undone.is_empty()) {
        for (key, found) in &last.contents {
            checked += 1;
            if evidence.forks.stays_undone(last.bucket, found.version) {
                let sentence = format!(
                    "in the end region {} holds a value of {} that a failover undid: {}",
                    last.region,
                    show::key(key),
                    show::found(Some(found))
                );
                return Err(broken("salvaged", sentence));
            }
        }
    }
    Ok(checked)
}

/// Every write by its request.
fn requests(evidence: &Evidence) -> BTreeMap<(BucketId, RequestId), &Operation> {
    let of = |it| Some(((evidence.bucket_of(it)?.id, request(it)?), it));
    evidence.operations.iter().filter_map(of).collect()
}

fn request(operation: &Operation) -> Option<RequestId> {
    match &operation.request {
        Request::Write { id, .. } => Some(*id),
        Request::Read { .. } => None,
    }
}
