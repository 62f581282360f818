//! How far a lane is behind, per bucket: counted as entries pass, so that no backlog is ever kept for counting.
//!
//! Memory: one total per bucket, and one small record per bucket and frame that is not acknowledged (RES-1). Entries that wait for a frame
//! are held by the stream anyway; a key is copied out of the first of each bucket only, and no more of it than a report shows.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use bytes::Bytes;
use meridian_types::entry::first_key;
use meridian_types::{BucketId, BucketLag, Hlc, KeyStart, Lsn};

/// Operations and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Count {
    operations: u64,
    bytes: u64,
}

impl Count {
    fn add(&mut self, other: Count) {
        self.operations += other.operations;
        self.bytes += other.bytes;
    }

    fn subtract(&mut self, other: Count) {
        self.operations -= other.operations;
        self.bytes -= other.bytes;
    }
}

/// The source's totals less the lane's. Negative when the source began counting after what the lane has shipped.
#[derive(Clone, Copy, Debug)]
struct Before {
    operations: i64,
    bytes: i64,
}

/// An entry that was read and is in no frame yet.
#[derive(Debug)]
struct Pending {
    lsn: Lsn,
    bucket: BucketId,
    entry: Bytes,
    hlc: Hlc,
}

/// The first of a bucket's entries, in log order.
#[derive(Clone, Debug)]
struct Oldest {
    hlc: Hlc,
    key: Option<KeyStart>,
}

impl Oldest {
    fn of(pending: &Pending) -> Oldest {
        Oldest { hlc: pending.hlc, key: first_key(&pending.entry).and_then(KeyStart::of) }
    }
}

/// A frame's share of one bucket.
#[derive(Debug)]
struct Share {
    count: Count,
    oldest: Oldest,
}

#[derive(Debug)]
struct Shipped {
    last: Lsn,
    shares: BTreeMap<BucketId, Share>,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Read and not framed yet, in log order.
    pending: VecDeque<Pending>,
    /// Framed and not acknowledged.
    shipped: VecDeque<Shipped>,
    /// Framed since the process started, less what was taken back.
    totals: BTreeMap<BucketId, Count>,
    /// The source's totals when this lane was last complete, less `totals` then: what it had before our time.
    before: BTreeMap<BucketId, Before>,
    /// The oldest entry per bucket that was sent and has to be sent again.
    forgotten: BTreeMap<BucketId, Oldest>,
    /// The end of the log when the lane was last complete.
    complete_at: Lsn,
    /// Since when the log has been further than that.
    behind_since: Option<Instant>,
}

impl Ledger {
    pub(super) fn pend(&mut self, lsn: Lsn, bucket: BucketId, entry: Bytes, hlc: Hlc) {
        self.pending.push_back(Pending { lsn, bucket, entry, hlc });
    }

    /// Everything pending up to `last` is in a frame now.
    pub(super) fn ship(&mut self, last: Lsn) {
        let mut shares: BTreeMap<BucketId, Share> = BTreeMap::new();
        while let Some(pending) = self.pending.pop_front_if(|pending| pending.lsn <= last) {
            let (bucket, count) = (pending.bucket, Count { operations: 1, bytes: pending.entry.len() as u64 });
            self.totals.entry(bucket).or_default().add(count);
            self.forgotten.remove(&bucket);
            let first = || Share { count: Count::default(), oldest: Oldest::of(&pending) };
            shares.entry(bucket).or_insert_with(first).count.add(count);
        }
        self.shipped.push_back(Shipped { last, shares });
    }

    pub(super) fn acknowledge(&mut self, lsn: Lsn) {
        while self.shipped.pop_front_if(|frame| frame.last <= lsn).is_some() {}
    }

    /// What was not acknowledged will be read and shipped again.
    pub(super) fn forget_unacknowledged(&mut self) {
        for (bucket, share) in self.shipped.drain(..).flat_map(|frame| frame.shares) {
            self.totals.entry(bucket).or_default().subtract(share.count);
            self.forgotten.entry(bucket).or_insert(share.oldest);
        }
        for pending in self.pending.drain(..) {
            self.forgotten.entry(pending.bucket).or_insert_with(|| Oldest::of(&pending));
        }
    }

    pub(super) fn note_progress(&mut self, now: Instant, complete: bool, head: Lsn) {
        if complete {
            self.complete_at = head;
            self.behind_since = None;
            self.forgotten.clear();
        } else if head > self.complete_at {
            self.behind_since = self.behind_since.or(Some(now));
        }
    }

    /// The lag of `bucket`, but for its name and target.
    pub(super) fn lag(
        &mut self,
        bucket: BucketId,
        (operations, bytes): (u64, u64),
        complete: bool,
        behind_lsns: u64,
        now: Instant,
        wall_ms: u64,
    ) -> BucketLag {
        let totals = self.totals.get(&bucket).copied().unwrap_or_default();
        if complete {
            let before = Before {
                operations: difference(operations, totals.operations),
                bytes: difference(bytes, totals.bytes),
            };
            self.before.insert(bucket, before);
        }
        let unshipped = match self.before.get(&bucket) {
            Some(before) => Count {
                operations: rest(difference(operations, totals.operations), before.operations),
                bytes: rest(difference(bytes, totals.bytes), before.bytes),
            },
            None => bounded_by_positions(operations, bytes, behind_lsns),
        };
        let mut unapplied = Count::default();
        let mut oldest = None;
        for share in self.shipped.iter().filter_map(|frame| frame.shares.get(&bucket)) {
            unapplied.add(share.count);
            oldest = oldest.or(Some(&share.oldest));
        }
        let waits = || self.pending.iter().find(|pending| pending.bucket == bucket).map(Oldest::of);
        let oldest = oldest.cloned().or_else(waits).or_else(|| self.forgotten.get(&bucket).cloned());
        let waiting_ms = self
            .behind_since
            .filter(|_| unshipped.operations > 0)
            .map_or(0, |since| u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX));
        BucketLag {
            unshipped_operations: unshipped.operations,
            unshipped_bytes: unshipped.bytes,
            unapplied_operations: unapplied.operations,
            unapplied_bytes: unapplied.bytes,
            lag_ms: oldest.as_ref().map_or(0, |it| wall_ms.saturating_sub(it.hlc.millis())).max(waiting_ms),
            oldest_key: oldest.and_then(|it| it.key),
            ..BucketLag::default()
        }
    }
}

/// Totals are far from 2^63, and a difference of them is exact in two's complement.
fn difference(source: u64, lane: u64) -> i64 {
    source.wrapping_sub(lane).cast_signed()
}

fn rest(now: i64, before: i64) -> u64 {
    u64::try_from(now.wrapping_sub(before)).unwrap_or_default()
}

/// Never complete since the start, so what the target had before is not known: at most one operation per log
/// position, of the average size of those the source has counted.
fn bounded_by_positions(operations: u64, bytes: u64, behind_lsns: u64) -> Count {
    Count { operations: behind_lsns, bytes: (bytes / operations.max(1)).saturating_mul(behind_lsns) }
}

#[cfg(test)]
mod tests {
    use meridian_types::entry::{Body, Header, Kind, WriteBody};
    use meridian_types::key::KEY_START_BYTES_MAX;
    use meridian_types::{ClientId, Epoch, Key, Positions, RegionId, RequestId, Value, Write};

    use super::*;

    const A: BucketId = BucketId(1);
    const B: BucketId = BucketId(2);

    fn pend(ledger: &mut Ledger, lsn: u64, bucket: BucketId, kind: Kind, body: &Body) {
        let id = RequestId { client: ClientId(0), sequence: 0 };
        let hlc = Hlc::from_millis(lsn);
        let header = Header { kind, origin: RegionId(1), bucket, epoch: Epoch(1), hlc, id, lowest_outstanding: 0 };
        ledger.pend(Lsn(lsn), bucket, header.encode(body), hlc);
    }

    fn put(ledger: &mut Ledger, lsn: u64, bucket: BucketId, key: &str) {
        let key = Key::new(key.to_owned()).unwrap();
        let write = Write::Put { key, value: Value::default(), ttl_ms: None };
        pend(ledger, lsn, bucket, Kind::Write, &Body::Write(WriteBody::Plain(write)));
    }

    #[expect(clippy::disallowed_methods, reason = "an origin for test time; its value never matters")]
    fn lag(ledger: &mut Ledger, bucket: BucketId) -> BucketLag {
        ledger.lag(bucket, (0, 0), false, 0, Instant::now(), 100)
    }

    /// The age of the oldest, and its key.
    fn oldest(ledger: &mut Ledger, bucket: BucketId) -> (u64, String) {
        let lag = lag(ledger, bucket);
        let key = lag.oldest_key.map_or_else(|| "-".to_owned(), |key| String::from_utf8_lossy(key.as_bytes()).into());
        (lag.lag_ms, key)
    }

    #[test]
    fn the_oldest_key_of_a_bucket_is_that_of_its_first_entry_until_that_is_acknowledged() {
        let mut ledger = Ledger::default();
        assert_eq!(oldest(&mut ledger, A), (0, "-".to_owned()));
        for (lsn, bucket, key) in [(10, A, "a10"), (20, B, "b20"), (30, A, "a30"), (40, A, "a40"), (50, B, "b50")] {
            put(&mut ledger, lsn, bucket, key);
        }
        assert_eq!(oldest(&mut ledger, A), (90, "a10".to_owned()), "read, and in no frame yet");
        ledger.ship(Lsn(30));
        assert_eq!(oldest(&mut ledger, A), (90, "a10".to_owned()), "shipped is not yet there");
        assert_eq!(oldest(&mut ledger, B), (80, "b20".to_owned()));
        ledger.ship(Lsn(40));
        ledger.acknowledge(Lsn(30));
        assert_eq!(oldest(&mut ledger, A), (60, "a40".to_owned()));
        assert_eq!(oldest(&mut ledger, B), (50, "b50".to_owned()), "it waits for a frame");
        ledger.acknowledge(Lsn(40));
        assert_eq!(oldest(&mut ledger, A), (0, "-".to_owned()));
    }

    #[test]
    fn what_has_to_be_sent_again_is_the_oldest_until_it_is_sent_again() {
        let mut ledger = Ledger::default();
        put(&mut ledger, 10, A, "a10");
        ledger.ship(Lsn(10));
        put(&mut ledger, 20, A, "a20");
        put(&mut ledger, 30, B, "b30");
        ledger.forget_unacknowledged();
        assert_eq!(oldest(&mut ledger, A), (90, "a10".to_owned()));
        assert_eq!(oldest(&mut ledger, B), (70, "b30".to_owned()), "it was read");
        ledger.forget_unacknowledged();
        assert_eq!(oldest(&mut ledger, A), (90, "a10".to_owned()), "an attempt that came to nothing changes nothing");
        // The target had the first, and only its answer was lost.
        put(&mut ledger, 20, A, "a20");
        ledger.ship(Lsn(20));
        assert_eq!(oldest(&mut ledger, A), (80, "a20".to_owned()));
        assert_eq!(oldest(&mut ledger, B), (70, "b30".to_owned()));
        #[expect(clippy::disallowed_methods, reason = "an origin for test time; its value never matters")]
        ledger.note_progress(Instant::now(), true, Lsn(30));
        assert_eq!(oldest(&mut ledger, B), (0, "-".to_owned()));
    }

    #[test]
    fn a_key_that_is_kept_is_short_and_holds_no_entry() {
        let mut ledger = Ledger::default();
        put(&mut ledger, 10, A, &"k".repeat(2000));
        let seal = Body::Seal { next: Epoch(2), after: Positions::default() };
        pend(&mut ledger, 20, B, Kind::Seal, &seal);
        ledger.ship(Lsn(20));
        let key = lag(&mut ledger, A).oldest_key.unwrap();
        assert_eq!((key.as_bytes().len(), key.is_cut()), (KEY_START_BYTES_MAX, true));
        assert_eq!(oldest(&mut ledger, B), (80, "-".to_owned()), "an end of an epoch has no key");
        assert!(ledger.pending.is_empty());
    }
}
