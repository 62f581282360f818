//! From what a shard did to the facts of it.

use meridian_region_core::{Applied, Shard, WriteResult};
use meridian_types::entry::{HEADER_BYTES, Header, Kind};
use meridian_types::frame::Frame;
use meridian_types::{BucketId, ClientId, Lsn};

use super::Trace;
use super::fact::{Entry, Fact, Replica, Standing, Verdict};

impl Trace {
    /// Records what applying the entry at `lsn` of `replica`'s own log did; `shard` is as it was left, `applied` its answer.
    /// An entry that no decoder takes changed nothing and is no fact.
    pub fn applied(&self, at_us: u64, replica: Replica, shard: &Shard, lsn: Lsn, entry: &[u8], applied: &Applied) {
        let Ok(header) = Header::decode(entry) else { return };
        match header.kind {
            Kind::Frame => self.frame(at_us, replica, shard, lsn, entry, applied),
            Kind::Write | Kind::Expire | Kind::Seal | Kind::Fence | Kind::DropBucket | Kind::ExpireClients => {
                let verdict = own_verdict(&header, lsn, applied);
                let entry = fact(lsn, lsn, &header, verdict);
                self.record(at_us, Fact::Applied { replica, shard: shard.id(), entry });
                if applied.note.is_some() {
                    self.stands(at_us, replica, shard, header.bucket);
                }
            }
        }
    }

    fn frame(&self, at_us: u64, replica: Replica, shard: &Shard, lsn: Lsn, entry: &[u8], applied: &Applied) {
        let Some(done) = &applied.frame else { return };
        let Ok(frame) = Frame::decode(entry.get(HEADER_BYTES..).unwrap_or_default()) else { return };
        let mut answered = applied.answered.iter().peekable();
        let mut touched: Vec<BucketId> = Vec::new();
        for (source_lsn, entry) in &frame.entries {
            let Ok(header) = Header::decode(entry) else { continue };
            // A shard answers every identified write it applies, in order: one that is missing was skipped.
            let verdict = if header.kind == Kind::Write && header.id.client != ClientId(0) {
                match answered.next_if(|(id, _)| *id == header.id) {
                    Some((_, result)) => written_verdict(result, *source_lsn),
                    None => continue,
                }
            } else {
                Verdict::Took
            };
            self.record(
                at_us,
                Fact::Applied { replica, shard: shard.id(), entry: fact(lsn, *source_lsn, &header, verdict) },
            );
            if !touched.contains(&header.bucket) {
                touched.push(header.bucket);
            }
        }
        let (source, lane) = (done.source, done.lane);
        let (previous, last) = (frame.header.previous, done.watermark);
        self.record(at_us, Fact::FrameApplied { replica, shard: shard.id(), source, lane, previous, last, lsn });
        touched.into_iter().for_each(|bucket| self.stands(at_us, replica, shard, bucket));
    }

    /// Records where a bucket stands in a replica's shard.
    pub fn stands(&self, at_us: u64, replica: Replica, shard: &Shard, bucket: BucketId) {
        if let Some(digest) = shard.digest(bucket) {
            let standing = Standing::of(digest);
            self.record(at_us, Fact::Stands { replica, shard: shard.id(), bucket, standing });
        }
    }
}

fn own_verdict(header: &Header, lsn: Lsn, applied: &Applied) -> Verdict {
    match header.kind {
        Kind::Write | Kind::Expire if applied.note.is_none() => Verdict::Void,
        Kind::Write => written_verdict(&applied.result, lsn),
        Kind::Expire | Kind::Seal | Kind::Frame | Kind::Fence | Kind::DropBucket | Kind::ExpireClients => Verdict::Took,
    }
}

/// A result names the position that decided it: another one is a kept result.
fn written_verdict(result: &[u8], lsn: Lsn) -> Verdict {
    match WriteResult::decode(result) {
        Ok(result) if result.lsn == lsn => Verdict::Took,
        _ => Verdict::Repeated,
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
