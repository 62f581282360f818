//! FEN-1: at most one region acknowledges writes for a bucket at any moment, epochs in which every region writes aside ([`super::crossed`]).
//!
//! Seen from outside: no two regions order acknowledged writes under one epoch. Seen from inside, in true time: the
//! intervals in which nodes of different regions may act never overlap; a primary acknowledges only within one of
//! its own; and no node believes in its lease for longer than the metadata leader remembers it.

use std::collections::{BTreeMap, HashMap};

use meridian_types::entry::Kind;
use meridian_types::{BucketId, Epoch, NodeId, RegionId, ShardId};

use super::{Evidence, Stats, Violation, broken, show};
use crate::history::Operation;
use crate::trace::{Entry, Fact, Record, Replica, Verdict};

/// One writer at a time.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let records = evidence.records.as_deref().unwrap_or_default();
    let checked = orders(evidence)? + ordered(evidence, records)? + intervals(evidence, records)? + leases(records)?;
    Ok(Stats { checked, undecided: 0 })
}

/// Under one epoch, one region orders. An operation that began after the epoch was heard of was ordered under it; one
/// that began before may have been ordered under an earlier one, and answered again.
fn orders(evidence: &Evidence) -> Result<u64, Violation> {
    let mut checked = 0;
    let mut heard: HashMap<(BucketId, Epoch), u64> = HashMap::new();
    let acknowledged = || {
        evidence.all_writes().filter_map(|known| {
            let (bucket, epoch) = (evidence.bucket_of(known.operation)?, known.answer?.epoch);
            let one = !evidence.kinds.is_active(bucket.id, epoch);
            one.then_some((bucket, epoch, known.version?, known.operation))
        })
    };
    for (bucket, epoch, _, operation) in acknowledged() {
        let first = heard.entry((bucket.id, epoch)).or_insert(operation.ended_us);
        *first = (*first).min(operation.ended_us);
    }
    let mut primaries: HashMap<(BucketId, Epoch), (RegionId, &Operation)> = HashMap::new();
    for (bucket, epoch, version, operation) in acknowledged() {
        if heard.get(&(bucket.id, epoch)).is_none_or(|first| operation.begun_us <= *first) {
            continue;
        }
        checked += 1;
        let first = *primaries.entry((bucket.id, epoch)).or_insert((version.region, operation));
        if first.0 != version.region {
            let sentence = format!(
                "regions {} and {} both ordered writes of bucket {} under epoch {epoch}",
                first.0, version.region, bucket.name
            );
            return Err(broken("writer", sentence).showing(first.1).showing(operation));
        }
    }
    Ok(checked)
}

/// The same, of everything that took its place in a history, acknowledged or not.
fn ordered(evidence: &Evidence, records: &[Record]) -> Result<u64, Violation> {
    let mut checked = 0;
    let mut primaries: HashMap<(BucketId, Epoch), RegionId> = HashMap::new();
    for record in records {
        let Fact::Applied { entry, .. } = &record.fact else { continue };
        let primary = !evidence.kinds.is_active(entry.bucket, entry.epoch);
        let orders = matches!(entry.kind, Kind::Write | Kind::Expire);
        if !primary || !orders || matches!(entry.verdict, Verdict::Void | Verdict::Parked) {
            continue;
        }
        checked += 1;
        let first = *primaries.entry((entry.bucket, entry.epoch)).or_insert(entry.origin);
        if first != entry.origin {
            let sentence = format!(
                "regions {first} and {} both ordered writes of bucket {} under epoch {} (the second at {})",
                entry.origin,
                entry.bucket,
                entry.epoch,
                show::seconds(record.at_us)
            );
            return Err(broken("writer", sentence));
        }
    }
    Ok(checked)
}

/// A right to act, in true time.
#[derive(Clone, Copy)]
struct Right {
    replica: Replica,
    epoch: Epoch,
    since_us: u64,
    until_us: u64,
    /// Since then its region's logs are in a later epoch: nothing that it orders counts, whatever it believes. What was ordered before may yet
    /// be acknowledged.
    over_us: u64,
}

/// The epochs that the shards of regions have begun.
#[derive(Default)]
struct Begun(HashMap<(RegionId, BucketId), BTreeMap<ShardId, Epoch>>);

impl Begun {
    /// A shard's log has an entry; the epoch that all shards of the region have begun.
    fn note(&mut self, region: RegionId, shard: ShardId, entry: &Entry, shards: u16) -> Epoch {
        let begins = Epoch(entry.epoch.0 + u64::from(entry.kind == Kind::Seal));
        let known = self.0.entry((region, entry.bucket)).or_default();
        let epoch = known.entry(shard).or_default();
        *epoch = begins.max(*epoch);
        self.of(region, entry.bucket, shards)
    }

    fn of(&self, region: RegionId, bucket: BucketId, shards: u16) -> Epoch {
        let Some(known) = self.0.get(&(region, bucket)) else { return Epoch(0) };
        (0..shards).map(|shard| known.get(&ShardId(shard)).copied().unwrap_or_default()).min().unwrap_or_default()
    }
}

fn intervals(evidence: &Evidence, records: &[Record]) -> Result<u64, Violation> {
    let mut checked = 0;
    let mut rights: BTreeMap<BucketId, Vec<Right>> = BTreeMap::new();
    let mut primaries: HashMap<(BucketId, Epoch), RegionId> = HashMap::new();
    let (mut begun, shards) = (Begun::default(), evidence.setup.shards);
    for record in records {
        match &record.fact {
            Fact::MayAct { replica, bucket, epoch, until_us } => {
                checked += 1;
                // Said by a node that catches up with what it missed: its lease is over.
                if *until_us <= record.at_us {
                    continue;
                }
                let (since_us, until_us) = (record.at_us, *until_us);
                let is_over = begun.of(replica.region, *bucket, shards) > *epoch;
                let over_us = if is_over { since_us } else { u64::MAX };
                let right = Right { replica: *replica, epoch: *epoch, since_us, until_us, over_us };
                let known = rights.entry(*bucket).or_default();
                let overlaps = |other: &&Right| {
                    other.replica.region != right.replica.region && other.until_us.min(other.over_us) > since_us
                };
                if let Some(other) = known.iter().rev().filter(|_| !is_over).find(overlaps) {
                    let sentence = format!("two regions may act as the primary of bucket {bucket} at the same time");
                    return Err(broken("writer", sentence).showing(said(other)).showing(said(&right)));
                }
                // Renewals are many; only the last of a node under an epoch can matter to what comes later.
                match known.iter_mut().rfind(|it| it.replica == right.replica && it.epoch == right.epoch) {
                    Some(mine) if mine.until_us >= right.since_us => mine.until_us = mine.until_us.max(right.until_us),
                    _ => known.push(right),
                }
            }
            // A node that knows of a later epoch acts under none before, whatever its lease says.
            Fact::BucketKnown { replica, bucket, epoch, primary, .. } => {
                if let Some(primary) = primary {
                    primaries.insert((*bucket, *epoch), *primary);
                }
                for mine in rights.entry(*bucket).or_default().iter_mut().filter(|it| it.replica == *replica) {
                    if mine.epoch < *epoch {
                        mine.until_us = mine.until_us.min(record.at_us);
                    }
                }
            }
            // Of a region of several nodes one may not have heard, and can order nothing any more without the others.
            Fact::Applied { replica, shard, entry } if !matches!(entry.verdict, Verdict::Void | Verdict::Parked) => {
                let epoch = begun.note(replica.region, *shard, entry, shards);
                let known = rights.entry(entry.bucket).or_default().iter_mut();
                for old in known.filter(|it| it.replica.region == replica.region && it.epoch < epoch) {
                    old.over_us = old.over_us.min(record.at_us);
                }
            }
            Fact::Acknowledged { replica, origin, bucket, epoch, .. } if replica.region == *origin => {
                let primary = !evidence.kinds.is_active(*bucket, *epoch);
                // Under an epoch of another region it only hands on, or answers early, what it once decided itself.
                let hands_on = primaries.get(&(*bucket, *epoch)).is_some_and(|it| *it != replica.region);
                let Some(known) = rights.get(bucket).filter(|_| primary && !hands_on) else { continue };
                checked += 1;
                let mine = |it: &&Right| it.replica == *replica && it.epoch == *epoch;
                let covered = known
                    .iter()
                    .rev()
                    .filter(mine)
                    .any(|it| it.since_us <= record.at_us && record.at_us <= it.until_us);
                if !covered {
                    let sentence = format!(
                        "node {} of region {origin} acknowledged a write of bucket {bucket} at {} under epoch {epoch} without the right to",
                        replica.node,
                        show::seconds(record.at_us)
                    );
                    let last = known.iter().rev().find(mine).map(said);
                    return Err(
                        broken("writer", sentence).showing(last.unwrap_or_else(|| "it never had it".to_owned()))
                    );
                }
            }
            _ => {}
        }
    }
    Ok(checked)
}

fn said(right: &Right) -> String {
    format!(
        "node {} of region {} may act under epoch {} from {} to {}",
        right.replica.node,
        right.replica.region,
        right.epoch,
        show::seconds(right.since_us),
        show::seconds(right.until_us)
    )
}

/// The leader of the highest term remembers every lease for at least as long as its holder believes in it.
fn leases(records: &[Record]) -> Result<u64, Violation> {
    let mut checked = 0;
    let mut believed: BTreeMap<NodeId, u64> = BTreeMap::new();
    let mut remembered: BTreeMap<NodeId, u64> = BTreeMap::new();
    let mut leading = (0, NodeId(0));
    for record in records {
        let node = match &record.fact {
            Fact::LeaseBelieved { replica, until_us } => {
                believed.insert(replica.node, *until_us);
                replica.node
            }
            Fact::Crashed { replica, .. } => {
                believed.remove(&replica.node);
                continue;
            }
            Fact::LeaseRemembered { leader, term, node, until_us } if *term >= leading.0 => {
                if (*term, *leader) != leading {
                    leading = (*term, *leader);
                    remembered.clear();
                }
                remembered.insert(*node, *until_us);
                *node
            }
            _ => continue,
        };
        let (Some(believes), Some(remembers)) = (believed.get(&node), remembered.get(&node)) else { continue };
        checked += 1;
        // A lease that has run out harms nobody, whatever is remembered of it.
        if *believes > record.at_us && believes > remembers {
            let sentence = format!(
                "node {node} believes in its lease until {}, but the metadata leader of term {} takes it for expired at {}",
                show::seconds(*believes),
                leading.0,
                show::seconds(*remembers)
            );
            return Err(broken("writer", sentence));
        }
    }
    Ok(checked)
}
