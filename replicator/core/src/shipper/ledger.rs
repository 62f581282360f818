//! How far a lane is behind, per bucket: counted as entries pass, so that no backlog is ever kept for counting.
//!
//! Memory: one total per bucket, and one small record per bucket and frame that is not acknowledged (RES-1).

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use meridian_types::{BucketId, BucketLag, Hlc, Lsn};

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

/// A frame's share of one bucket.
#[derive(Debug)]
struct Share {
    count: Count,
    oldest: Hlc,
}

#[derive(Debug)]
struct Shipped {
    last: Lsn,
    shares: BTreeMap<BucketId, Share>,
}

#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// Read and not framed yet, in log order.
    pending: VecDeque<(Lsn, BucketId, Count, Hlc)>,
    /// Framed and not acknowledged.
    shipped: VecDeque<Shipped>,
    /// Framed since the process started, less what was taken back.
    totals: BTreeMap<BucketId, Count>,
    /// The source's totals when this lane was last complete, less `totals` then: what it had before our time.
    before: BTreeMap<BucketId, Before>,
    /// The oldest entry per bucket that was sent and has to be sent again.
    forgotten: BTreeMap<BucketId, Hlc>,
    /// The end of the log when the lane was last complete.
    complete_at: Lsn,
    /// Since when the log has been further than that.
    behind_since: Option<Instant>,
}

impl Ledger {
    pub(super) fn pend(&mut self, lsn: Lsn, bucket: BucketId, bytes: usize, hlc: Hlc) {
        self.pending.push_back((lsn, bucket, Count { operations: 1, bytes: bytes as u64 }, hlc));
    }

    /// Everything pending up to `last` is in a frame now.
    pub(super) fn ship(&mut self, last: Lsn) {
        let mut shares: BTreeMap<BucketId, Share> = BTreeMap::new();
        while let Some((_, bucket, count, hlc)) = self.pending.pop_front_if(|(lsn, ..)| *lsn <= last) {
            self.totals.entry(bucket).or_default().add(count);
            self.forgotten.remove(&bucket);
            shares.entry(bucket).or_insert(Share { count: Count::default(), oldest: hlc }).count.add(count);
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
        for (_, bucket, _, hlc) in self.pending.drain(..) {
            self.forgotten.entry(bucket).or_insert(hlc);
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
            oldest = oldest.or(Some(share.oldest));
        }
        let oldest = oldest.or_else(|| self.pending.iter().find(|(_, of, ..)| *of == bucket).map(|(.., hlc)| *hlc));
        let oldest = oldest.or_else(|| self.forgotten.get(&bucket).copied());
        let waiting_ms = self
            .behind_since
            .filter(|_| unshipped.operations > 0)
            .map_or(0, |since| u64::try_from(now.saturating_duration_since(since).as_millis()).unwrap_or(u64::MAX));
        BucketLag {
            unshipped_operations: unshipped.operations,
            unshipped_bytes: unshipped.bytes,
            unapplied_operations: unapplied.operations,
            unapplied_bytes: unapplied.bytes,
            lag_ms: oldest.map_or(0, |hlc| wall_ms.saturating_sub(hlc.millis())).max(waiting_ms),
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
