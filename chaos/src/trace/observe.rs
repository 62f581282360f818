//! From what a shard did to the facts of it.

use std::collections::VecDeque;

use meridian_region_core::{Answered, Applied, Shard, WriteResult};
use meridian_types::entry::{Body, HEADER_BYTES, Header, Kind};
use meridian_types::frame::Frame;
use meridian_types::{BucketId, ClientId, Epoch, Hlc, Lsn, Outcome, RegionId, RepairMode, RepairStep, ShardId};

use super::fact::{Entry, Fact, Replica, Standing, Verdict};
use super::{Parked, Trace};

impl Trace {
    /// Records what applying the entry at `lsn` of `replica`'s own log did; `shard` is as it was left, `applied` its answer.
    /// An entry that no decoder takes changed nothing and is no fact.
    pub fn applied(&self, at_us: u64, replica: Replica, shard: &Shard, lsn: Lsn, entry: &[u8], applied: &Applied) {
        let Ok(header) = Header::decode(entry) else { return };
        match header.kind {
            Kind::Frame => self.frame(at_us, replica, shard, lsn, entry, applied),
            Kind::Write
            | Kind::Expire
            | Kind::Seal
            | Kind::Fence
            | Kind::DropBucket
            | Kind::ExpireClients
            | Kind::Repair
            | Kind::Stop
            | Kind::Raise
            | Kind::Part => {
                let merged = matches!(
                    header.decode_body(entry),
                    Ok(Body::Repair(RepairStep::End { mode: RepairMode::Join, .. }))
                );
                let verdict = own_verdict(&header, applied);
                let entry = fact(lsn, lsn, &header, verdict);
                self.record(at_us, Fact::Applied { replica, shard: shard.id(), entry });
                self.reach(replica, shard, header.bucket, lsn);
                // What waited for an epoch that begins without a seal is taken in, as behind a repair.
                let takes_in = matches!(header.kind, Kind::Repair | Kind::Raise | Kind::Stop | Kind::Part);
                if takes_in {
                    self.repaired(at_us, replica, shard, (header.bucket, lsn), merged);
                }
                if applied.note.is_some() || takes_in {
                    self.stands(at_us, replica, shard, header.bucket);
                }
            }
        }
    }

    fn frame(&self, at_us: u64, replica: Replica, shard: &Shard, lsn: Lsn, entry: &[u8], applied: &Applied) {
        let Some(done) = &applied.frame else { return };
        let Ok(frame) = Frame::decode(entry.get(HEADER_BYTES..).unwrap_or_default()) else { return };
        let place = (replica, shard.id());
        let record = |entry| self.record(at_us, Fact::Applied { replica, shard: shard.id(), entry });
        let mut answered: VecDeque<_> = applied.answered.iter().collect();
        let mut touched: Vec<BucketId> = Vec::new();
        for (source_lsn, entry) in &frame.entries {
            let Ok(header) = Header::decode(entry) else { continue };
            if !touched.contains(&header.bucket) {
                touched.push(header.bucket);
            }
            // A repair has brought it, and maybe a retry of it is what the next answer is about.
            if self.has_reached(place, header.bucket, header.origin) >= *source_lsn {
                continue;
            }
            let identified = header.kind == Kind::Write && header.id.client != ClientId(0);
            let begins = match header.decode_body(entry) {
                Ok(Body::Seal { next, .. }) => Some(next),
                _ => None,
            };
            let position = shard.digest(header.bucket).map(|digest| digest.positions.of(header.origin));
            // A shard answers every identified write that it applies, in order. One that is missing was parked if the
            // shard is not behind it yet, and had been applied before if it is.
            let verdict = match answered.front() {
                Some(answer) if identified && (answer.bucket, answer.id) == (header.bucket, header.id) => {
                    let verdict = written_verdict(&answer.result, header.hlc);
                    answered.pop_front();
                    verdict
                }
                _ if position.is_none_or(|position| position < *source_lsn) => Verdict::Parked,
                _ if identified => continue,
                _ => Verdict::Took,
            };
            let entry = fact(lsn, *source_lsn, &header, verdict);
            record(entry);
            match verdict {
                Verdict::Parked => self.park(place, Parked { entry, begins, freed: None }),
                Verdict::Took | Verdict::Refused | Verdict::Repeated | Verdict::Void => {
                    if let Some(begun) = begins {
                        let free = self.unpark(place, shard, (header.bucket, begun), lsn, &mut answered);
                        free.into_iter().for_each(record);
                    }
                }
            }
        }
        let (source, lane) = (done.source, done.lane);
        let (previous, last) = (frame.header.previous, done.watermark);
        self.record(at_us, Fact::FrameApplied { replica, shard: shard.id(), source, lane, previous, last, lsn });
        for bucket in touched {
            self.reach(replica, shard, bucket, lsn);
            self.stands(at_us, replica, shard, bucket);
        }
    }

    /// Remembers how far a bucket has come, for what its next frame brings a second time.
    fn reach(&self, replica: Replica, shard: &Shard, bucket: BucketId, lsn: Lsn) {
        let reached = (lsn, bucket, shard.positions(bucket));
        self.book().reached.entry((replica, shard.id())).or_default().push(reached);
    }

    /// How far a bucket had come before, in the log of a region.
    fn has_reached(&self, place: (Replica, ShardId), bucket: BucketId, origin: RegionId) -> Lsn {
        let book = self.book();
        let known = book.reached.get(&place).and_then(|reached| reached.iter().rev().find(|(_, of, _)| *of == bucket));
        known.map(|(.., positions)| positions.of(origin)).unwrap_or_default()
    }

    fn park(&self, place: (Replica, ShardId), parked: Parked) {
        let Parked { entry, begins, .. } = parked;
        let waiting = (entry.bucket, entry.epoch, begins.is_some(), entry.origin, entry.source_lsn);
        self.book().parked.entry(place).or_default().insert(waiting, parked);
    }

    /// The entries that the beginning of an epoch set free, in their order, and those of the epochs that they began in turn. What
    /// waited for an epoch that was passed over waits no more. `shard` is where all of the frame has left it: another seal in it
    /// may have begun a later epoch, and freed what waited for that.
    fn unpark(
        &self,
        place: (Replica, ShardId),
        shard: &Shard,
        (bucket, mut begun): (BucketId, Epoch),
        lsn: Lsn,
        answered: &mut VecDeque<&Answered>,
    ) -> Vec<Entry> {
        let mut book = self.book();
        let parked = book.parked.entry(place).or_default();
        let positions = shard.positions(bucket);
        let mut free = Vec::new();
        let waiting = parked.iter_mut().filter(|(of, it)| of.0 == bucket && it.freed.is_none());
        for Parked { entry, begins, freed } in waiting.map(|(_, it)| it) {
            let entry = *entry;
            if entry.epoch >= begun && (entry.epoch > begun || positions.of(entry.origin) < entry.source_lsn) {
                break;
            }
            *freed = Some(lsn);
            if entry.epoch < begun {
                continue;
            }
            begun = begins.unwrap_or(begun);
            let identified = entry.kind == Kind::Write && entry.request.client != ClientId(0);
            match answered.front() {
                Some(answer) if identified && (answer.bucket, answer.id) == (entry.bucket, entry.request) => {
                    free.push(Entry { lsn, verdict: written_verdict(&answer.result, entry.hlc), ..entry });
                    answered.pop_front();
                }
                // A repair had brought it before.
                _ if identified => {}
                _ => free.push(Entry { lsn, verdict: Verdict::Took, ..entry }),
            }
        }
        free
    }

    /// Records what a bucket has after a step of its repair, once its rows are those of its positions again; or what counts of it,
    /// where its region was removed from it with more.
    fn repaired(&self, at_us: u64, replica: Replica, shard: &Shard, (bucket, lsn): (BucketId, Lsn), merged: bool) {
        let given_up = shard.given_up(bucket);
        if given_up.is_none() && shard.closed().any(|(closed, source)| closed == bucket && source.is_some()) {
            return;
        }
        self.reach(replica, shard, bucket, lsn);
        let mut positions = shard.positions(bucket);
        if let Some(cut) = given_up {
            positions.0.insert(replica.region, cut);
        }
        // What waited for a seal and came with the repair does not wait any more.
        if let Some(parked) = self.book().parked.get_mut(&(replica, shard.id())) {
            for ((of, _, _, origin, at), it) in parked.iter_mut() {
                if *of == bucket && *at <= positions.of(*origin) {
                    it.freed = it.freed.or(Some(lsn));
                }
            }
        }
        let positions = positions.0.into_iter().collect();
        self.record(at_us, Fact::Repaired { replica, shard: shard.id(), bucket, lsn, positions, merged });
    }

    /// Records where a bucket stands in a replica's shard. One whose rows are being exchanged stands nowhere.
    pub fn stands(&self, at_us: u64, replica: Replica, shard: &Shard, bucket: BucketId) {
        if shard.is_closed(bucket) {
            return;
        }
        if let Some(digest) = shard.digest(bucket) {
            let standing = Standing::of(digest);
            self.record(at_us, Fact::Stands { replica, shard: shard.id(), bucket, standing });
        }
    }
}

fn own_verdict(header: &Header, applied: &Applied) -> Verdict {
    match header.kind {
        Kind::Write | Kind::Expire | Kind::Seal if applied.note.is_none() => Verdict::Void,
        Kind::Write => written_verdict(&applied.result, header.hlc),
        Kind::Expire
        | Kind::Seal
        | Kind::Frame
        | Kind::Fence
        | Kind::DropBucket
        | Kind::ExpireClients
        | Kind::Repair
        | Kind::Stop
        | Kind::Raise
        | Kind::Part => Verdict::Took,
    }
}

/// A result names the timestamp of what decided it: another one is a kept result.
fn written_verdict(result: &[u8], stamped: Hlc) -> Verdict {
    match WriteResult::decode(result) {
        Ok(WriteResult { hlc, outcome, .. }) if hlc == stamped => match outcome {
            Ok(Outcome::ConditionFailed { .. }) | Err(_) => Verdict::Refused,
            Ok(_) => Verdict::Took,
        },
        Ok(_) | Err(_) => Verdict::Repeated,
    }
}

fn fact(lsn: Lsn, source_lsn: Lsn, header: &Header, verdict: Verdict) -> Entry {
    Entry {
        lsn,
        origin: header.origin,
        source_lsn,
        bucket: header.bucket,
        epoch: header.epoch,
        hlc: header.hlc,
        kind: header.kind,
        request: header.id,
        verdict,
    }
}
