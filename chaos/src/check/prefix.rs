//! ORD-1: what a replica has of another region's history is a prefix of it: no gap, no reorder, no echo. And a region's
//! own history, once applied, is never rewritten: a restart applies the same entries at the same positions again.
//!
//! Every replica is followed position by position, and taken back by [`Fact::Restarted`] to where its state was.

mod replica;

use std::collections::{BTreeMap, HashMap};

use meridian_types::entry::Kind;
use meridian_types::{Bucket, BucketId, Epoch, Hlc, Lane, Lsn, RegionId, RequestId, ShardId};

use self::replica::Progress;
use super::{Evidence, Stats, Violation, broken, show};
use crate::trace::{Entry, Fact, Replica, Verdict};

/// Replicas hold prefixes.
pub(super) fn check(evidence: &Evidence) -> Result<Stats, Violation> {
    let mut stats = Stats::default();
    let mut world = World { evidence, histories: HashMap::new(), replicas: HashMap::new(), given_up: HashMap::new() };
    for record in evidence.records.iter().flatten() {
        let found = match &record.fact {
            Fact::Applied { replica, shard, entry } => {
                stats.checked += 1;
                world.applied(*replica, *shard, entry)
            }
            Fact::FrameApplied { replica, shard, source, lane, previous, last, lsn } => {
                stats.checked += 1;
                let run = Run { source: *source, lane: *lane, previous: *previous, last: *last, lsn: *lsn };
                world.frame(*replica, *shard, (&run, record.at_us))
            }
            Fact::Repaired { replica, shard, bucket, lsn, positions, .. } => {
                world.repaired(*replica, *shard, *bucket, *lsn, positions);
                Ok(())
            }
            Fact::Restarted { replica, shard, applied } => {
                world.progress(*replica, *shard).rewind(*applied);
                Ok(())
            }
            Fact::Installed { replica, shard, from, applied } => {
                let mut theirs = world.progress(*from, *shard).clone();
                theirs.rewind(*applied);
                world.replicas.insert((*replica, *shard), theirs);
                Ok(())
            }
            _ => Ok(()),
        };
        found.map_err(|it| it.showing(format!("seen at {}", show::seconds(record.at_us))))?;
    }
    Ok(stats)
}

/// What makes an entry this entry.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    bucket: BucketId,
    epoch: Epoch,
    hlc: Hlc,
    kind: Kind,
    request: RequestId,
    counts: bool,
}

/// A frame.
struct Run {
    source: RegionId,
    lane: Lane,
    previous: Lsn,
    last: Lsn,
    lsn: Lsn,
}

struct World<'a> {
    evidence: &'a Evidence,
    /// What each region's own log brought, by its position.
    histories: HashMap<(RegionId, ShardId), BTreeMap<Lsn, Identity>>,
    replicas: HashMap<(Replica, ShardId), Progress>,
    /// Stretches of a region's own log, behind the first position and up to the second, that it gave up in a bucket.
    given_up: HashMap<(RegionId, ShardId, BucketId), Vec<(Lsn, Lsn)>>,
}

impl World<'_> {
    fn progress(&mut self, replica: Replica, shard: ShardId) -> &mut Progress {
        self.replicas.entry((replica, shard)).or_default()
    }

    fn applied(&mut self, replica: Replica, shard: ShardId, entry: &Entry) -> Result<(), Violation> {
        let identity = Identity {
            bucket: entry.bucket,
            epoch: entry.epoch,
            hlc: entry.hlc,
            kind: entry.kind,
            request: entry.request,
            counts: entry.verdict != Verdict::Void,
        };
        let history = self.histories.entry((entry.origin, shard)).or_default();
        if entry.origin == replica.region {
            let first = *history.entry(entry.source_lsn).or_insert(identity);
            if first != identity {
                let sentence = format!(
                    "the history of region {} was rewritten: another entry is at position {}",
                    replica.region, entry.lsn
                );
                return Err(broken("prefix", sentence).showing(described(&first)).showing(described(&identity)));
            }
        } else {
            match history.get(&entry.source_lsn) {
                Some(first) if *first == identity => {}
                first => {
                    let sentence = format!(
                        "region {} applied an entry of region {} at {} that is not in that region's history",
                        replica.region, entry.origin, entry.source_lsn
                    );
                    let there = first.map_or_else(|| "nothing is applied there".to_owned(), described);
                    return Err(broken("prefix", sentence).showing(there).showing(described(&identity)));
                }
            }
        }
        let progress = self.progress(replica, shard);
        match entry.verdict {
            Verdict::Void => return Ok(()),
            Verdict::Parked => {
                progress.park(entry);
                return Ok(());
            }
            Verdict::Took | Verdict::Refused | Verdict::Repeated if !entry.kind.is_shipped() => return Ok(()),
            Verdict::Took | Verdict::Refused | Verdict::Repeated => {}
        }
        if progress.was_brought(entry.bucket, entry.origin, entry.source_lsn) {
            // It comes again in its lane, and is passed over.
            return Ok(());
        }
        let before = progress.position(entry.bucket, entry.origin);
        if before >= entry.source_lsn {
            let sentence = format!(
                "region {} applied position {} of region {} in bucket {} when it was at {before}: twice, or out of order",
                replica.region, entry.source_lsn, entry.origin, entry.bucket
            );
            return Err(broken("prefix", sentence));
        }
        progress.advance(entry);
        Ok(())
    }

    /// A repair brought all up to there; what the region's own log has beyond is no part of the history any more.
    fn repaired(
        &mut self,
        replica: Replica,
        shard: ShardId,
        bucket: BucketId,
        lsn: Lsn,
        positions: &[(RegionId, Lsn)],
    ) {
        // Of a region that is not named nothing is left.
        let own =
            positions.iter().find(|(origin, _)| *origin == replica.region).map_or(Lsn(0), |(_, position)| *position);
        self.given_up.entry((replica.region, shard, bucket)).or_default().push((own, lsn));
        for (origin, position) in positions {
            self.progress(replica, shard).bring(bucket, *origin, *position, lsn);
        }
    }

    fn was_given_up(&self, region: RegionId, shard: ShardId, bucket: BucketId, lsn: Lsn) -> bool {
        let stretches = self.given_up.get(&(region, shard, bucket));
        stretches.is_some_and(|stretches| stretches.iter().any(|(after, to)| *after < lsn && lsn <= *to))
    }

    fn frame(&mut self, replica: Replica, shard: ShardId, (run, at_us): (&Run, u64)) -> Result<(), Violation> {
        if run.source == replica.region {
            let sentence = format!("region {} applied a frame of its own entries: an echo", replica.region);
            return Err(broken("prefix", sentence));
        }
        let watermark = self.progress(replica, shard).watermark(run.source, run.lane);
        if run.previous != watermark || run.last < run.previous {
            let sentence = format!(
                "region {} applied a frame of region {} ({} lane of shard {shard}) from {} to {} when its watermark was {watermark}",
                replica.region, run.source, run.lane, run.previous, run.last
            );
            return Err(broken("prefix", sentence));
        }
        self.gapless(replica, shard, (run, at_us))?;
        self.progress(replica, shard).move_watermark(run.source, run.lane, run.last, run.lsn);
        Ok(())
    }

    /// Everything of the lane up to the frame's end has arrived.
    fn gapless(&mut self, replica: Replica, shard: ShardId, (run, at_us): (&Run, u64)) -> Result<(), Violation> {
        let Some(history) = self.histories.get(&(run.source, shard)) else { return Ok(()) };
        let Some(progress) = self.replicas.get(&(replica, shard)) else { return Ok(()) };
        let due = history.range(Lsn(run.previous.0 + 1)..=run.last);
        for (lsn, identity) in due.filter(|(_, identity)| identity.counts && identity.kind.is_shipped()) {
            let lane = |bucket: &Bucket| self.evidence.policies.lane(bucket, identity.epoch);
            let carries = |bucket| self.evidence.members.carries(bucket, (identity.epoch, at_us), replica.region);
            let travels = |bucket: &&Bucket| lane(bucket) == run.lane && carries(bucket.id);
            let bucket = self.evidence.setup.buckets.iter().find(|it| it.id == identity.bucket);
            let missing = !progress.has(identity.bucket, run.source, *lsn)
                && !self.was_given_up(run.source, shard, identity.bucket, *lsn)
                // A lane that is behind its log goes on behind what is undone before its source has heard of that (seed 20064).
                && !self.evidence.forks.had_lost(identity.bucket, (run.source, shard, *lsn), at_us);
            if bucket.filter(travels).is_some() && missing {
                let sentence = format!(
                    "region {} took a frame of region {} up to {}, but lacks the entry at {lsn}: a gap",
                    replica.region, run.source, run.last
                );
                return Err(broken("prefix", sentence).showing(described(identity)));
            }
        }
        Ok(())
    }
}

fn described(it: &Identity) -> String {
    format!(
        "{:?} of bucket {}, epoch {}, {}, request {} of client {}{}",
        it.kind,
        it.bucket,
        it.epoch,
        it.hlc,
        it.request.sequence,
        it.request.client,
        if it.counts { "" } else { ", void" }
    )
}
