//! Replicas of one shard in several regions: each with its log, its state and its state machine, and frames between them.

use bytes::Bytes;
use meridian_region_core::read::{self, Located};
use meridian_region_core::{
    Applied, Contents, ControlResult, FrameResult, MemoryState, Mutations, Shard, WriteResult, active_active_body,
    recompute_digest,
};
use meridian_types::entry::{Body, Header, Kind, WriteBody};
use meridian_types::frame::{self, DigestNote, Echo, FrameHeader};
use meridian_types::{
    BucketId, ClientId, Epoch, Hlc, Key, Lane, Lsn, Positions, Refusal, RegionId, RequestId, ShardId, Value, Write,
};

pub(crate) const SHARD: ShardId = ShardId(3);
/// A bucket whose primary is region 1.
pub(crate) const PLAIN: BucketId = BucketId(1);
/// An active-active bucket.
pub(crate) const MERGED: BucketId = BucketId(2);

pub(crate) fn key(text: &str) -> Key {
    Key::new(text.to_owned()).unwrap()
}

pub(crate) fn value(text: &str) -> Value {
    Value::new(text.to_owned()).unwrap()
}

pub(crate) fn put(k: &str, v: &str) -> Write {
    Write::Put { key: key(k), value: value(v), ttl_ms: None }
}

pub(crate) fn id(client: u128, sequence: u64) -> RequestId {
    RequestId { client: ClientId(client), sequence }
}

/// One region's replica.
#[derive(Clone)]
pub(crate) struct Replica {
    pub(crate) region: RegionId,
    pub(crate) state: MemoryState,
    pub(crate) shard: Shard,
    /// The own log with the note of each entry.
    pub(crate) log: Vec<(Lsn, Bytes, Option<DigestNote>)>,
    pub(crate) wall_ms: u64,
    pub(crate) epoch: Epoch,
    clock: Hlc,
}

impl Replica {
    pub(crate) fn new(region: u16) -> Replica {
        let (region, state) = (RegionId(region), MemoryState::default());
        let shard = Shard::load(&state, region, SHARD).unwrap();
        Replica { region, state, shard, log: Vec::new(), wall_ms: 1, epoch: Epoch(1), clock: Hlc(0) }
    }

    /// The header of the next entry, stamped as a leader does.
    pub(crate) fn header(&mut self, kind: Kind, bucket: BucketId) -> Header {
        self.clock = self.clock.max(self.shard.last_hlc()).next(self.wall_ms);
        Header {
            kind,
            origin: self.region,
            bucket,
            epoch: self.epoch,
            hlc: self.clock,
            id: RequestId::default(),
            lowest_outstanding: 0,
        }
    }

    /// The position of the next entry. Some are left out, as a group's own blank entries are.
    pub(crate) fn next_lsn(&self) -> Lsn {
        let last = self.log.last().map_or(0, |(lsn, _, _)| lsn.0);
        Lsn(last + 1 + u64::from(last % 5 == 4))
    }

    /// Commits an entry by itself.
    pub(crate) fn commit(&mut self, entry: Bytes) -> Applied {
        self.commit_batch(vec![entry]).remove(0)
    }

    /// Commits entries as one batch.
    pub(crate) fn commit_batch(&mut self, entries: Vec<Bytes>) -> Vec<Applied> {
        let mut out = Mutations::new();
        let mut applied = Vec::new();
        for entry in entries {
            let lsn = self.next_lsn();
            let one = self.shard.apply(&self.state, lsn, &entry, &mut out).unwrap();
            self.shard.validate();
            let effective = self.shard.is_effective(lsn, &Header::decode(&entry).unwrap());
            let shipped = Header::decode(&entry).unwrap().kind.is_shipped();
            assert_eq!(one.note.is_some(), shipped && effective, "exactly the effective entries carry a note");
            self.log.push((lsn, entry, one.note.clone()));
            applied.push(one);
        }
        self.shard.checkpoint(&mut out);
        self.state.commit(out);
        applied
    }

    /// Forgets everything in memory, as a crash does.
    pub(crate) fn restart(&mut self) {
        self.shard = Shard::load(&self.state, self.region, SHARD).unwrap();
        self.shard.validate();
    }

    pub(crate) fn encode_write(&mut self, bucket: BucketId, id: RequestId, lowest: u64, body: WriteBody) -> Bytes {
        let header = Header { id, lowest_outstanding: lowest, ..self.header(Kind::Write, bucket) };
        header.encode(&Body::Write(body))
    }

    /// A write to the bucket with a primary.
    pub(crate) fn write(&mut self, id: RequestId, write: Write) -> WriteResult {
        let entry = self.encode_write(PLAIN, id, 0, WriteBody::Plain(write));
        WriteResult::decode(&self.commit(entry).result).unwrap()
    }

    /// A write to the active-active bucket.
    pub(crate) fn merge(&mut self, id: RequestId, write: &Write) -> Result<WriteResult, Refusal> {
        let body = active_active_body(&self.state, SHARD, MERGED, write, self.wall_ms, self.region)?;
        let entry = self.encode_write(MERGED, id, 0, body);
        Ok(WriteResult::decode(&self.commit(entry).result).unwrap())
    }

    pub(crate) fn control(&mut self, kind: Kind, bucket: BucketId, epoch: Epoch, body: &Body) -> ControlResult {
        let entry = Header { epoch, ..self.header(kind, bucket) }.encode(body);
        ControlResult::decode(&self.commit(entry).result).unwrap()
    }

    pub(crate) fn fence(&mut self, bucket: BucketId, epoch: u64) {
        self.control(Kind::Fence, bucket, Epoch(epoch), &Body::Fence);
    }

    /// Ends the epoch in force of a bucket.
    pub(crate) fn seal(&mut self, bucket: BucketId, next: u64) -> ControlResult {
        let epoch = self.shard.epoch(bucket);
        let body = Body::Seal { next: Epoch(next), after: Positions::default() };
        self.control(Kind::Seal, bucket, epoch, &body)
    }

    /// Ends the epoch of a primary that is gone, as it stands here.
    pub(crate) fn take_over(&mut self, bucket: BucketId, next: u64) -> ControlResult {
        let epoch = self.shard.epoch(bucket);
        let after = self.shard.digest(bucket).map(|digest| digest.positions.clone()).unwrap_or_default();
        self.control(Kind::Seal, bucket, epoch, &Body::Seal { next: Epoch(next), after })
    }

    /// Lets the leader look for keys that are due, and removes them; tells how many.
    pub(crate) fn expire(&mut self) -> u64 {
        let due = self.shard.due(&self.state, self.wall_ms, 100, &|_| true).unwrap();
        due.into_iter().fold(0, |removed, due| {
            let body = Body::Expire { due: due.keys };
            removed + self.control(Kind::Expire, due.bucket, self.epoch, &body).removed
        })
    }

    pub(crate) fn get(&self, bucket: BucketId, key: &Key) -> Option<Located> {
        read::get(&self.state, SHARD, bucket, key, self.wall_ms).unwrap()
    }

    pub(crate) fn text(&self, bucket: BucketId, k: &str) -> Option<String> {
        self.get(bucket, &key(k)).map(|located| String::from_utf8(located.found.value.to_vec()).unwrap())
    }

    /// The frame that continues at `previous` for another region, with at most `entries_max` entries; `None` when
    /// there is nothing behind it.
    pub(crate) fn frame_after(&self, previous: Lsn, lane: Lane, entries_max: usize) -> Option<Bytes> {
        let bucket = match lane {
            Lane::Sync => PLAIN,
            Lane::Async => MERGED,
        };
        self.frame_of(previous, lane, entries_max, &|header| header.bucket == bucket)
    }

    /// As [`Replica::frame_after`], of the entries that travel in the lane.
    pub(crate) fn frame_of(
        &self,
        previous: Lsn,
        lane: Lane,
        entries_max: usize,
        travels: &dyn Fn(&Header) -> bool,
    ) -> Option<Bytes> {
        let mut notes: Option<DigestNote> = None;
        let mut entries = Vec::new();
        let mut last = previous;
        for (lsn, entry, note) in self.log.iter().filter(|(lsn, _, _)| *lsn > previous) {
            if entries.len() == entries_max {
                break;
            }
            last = *lsn;
            let header = Header::decode(entry).unwrap();
            if header.kind.is_shipped() && travels(&header) && self.shard.is_effective(*lsn, &header) {
                entries.push((*lsn, entry.clone()));
                notes = note.clone();
            }
        }
        let notes: Vec<_> = notes.into_iter().collect();
        (last > previous).then(|| frame::encode(self.frame_header(lane, previous, last), &notes, &entries))
    }

    pub(crate) fn frame_header(&self, lane: Lane, previous: Lsn, last: Lsn) -> FrameHeader {
        let up_to = self.log.iter().take_while(|(lsn, ..)| *lsn <= last);
        let closed = up_to.filter_map(|(_, entry, _)| Some(Header::decode(entry).ok()?.hlc)).max().unwrap_or_default();
        FrameHeader {
            source: self.region,
            shard: SHARD,
            lane,
            previous,
            last,
            closed,
            echo: Echo::default(),
            raw_length: 0,
        }
    }

    /// Commits a frame of another region.
    pub(crate) fn receive(&mut self, frame: &[u8]) -> (FrameResult, Applied) {
        let entry = self.header(Kind::Frame, BucketId(0)).encode_frame(frame);
        let applied = self.commit(entry);
        (FrameResult::decode(&applied.result).unwrap(), applied)
    }

    /// Takes everything that `source` has in a lane, in frames of at most `entries_max` entries.
    pub(crate) fn follow(&mut self, source: &Replica, lane: Lane, entries_max: usize) {
        while let Some(frame) = source.frame_after(self.shard.watermark(source.region, lane), lane, entries_max) {
            let (result, _) = self.receive(&frame);
            assert!(matches!(&result, FrameResult::Applied { diverged, .. } if diverged.is_empty()), "{result:?}");
        }
    }

    /// Demands that what is kept up incrementally is what the records say.
    pub(crate) fn check_digests(&self) {
        for (bucket, digest) in self.shard.digests() {
            assert_eq!(Contents::of(digest), recompute_digest(&self.state, SHARD, bucket).unwrap(), "bucket {bucket}");
        }
    }
}
