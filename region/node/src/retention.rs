//! How far a shard's log may be purged: below what every other region has, within a budget of bytes (design 2, ISO-1).
//!
//! Some of it may be kept although they have it, for backups that rest on earlier ones.
//!
//! Pure. Positions are remembered a stride of bytes apart, so that "the oldest gigabyte" can be turned into a position.

use std::collections::VecDeque;

use meridian_types::Lsn;

/// The most bytes of entries between two remembered positions: the grain of the budget.
const STRIDE_BYTES_MAX: u64 = 4 << 20;

/// Strides of a small budget: a stride is given up as a whole, and no more of what still fits may go with it.
const STRIDES_MIN: u64 = 16;

/// Strides of what is kept in any case: so much of it again may be kept for the grain's sake.
const KEPT_STRIDES: u64 = 4;

/// The least bytes of such a stride.
const KEPT_STRIDE_BYTES_MIN: u64 = 16 << 10;

/// What one shard's log holds, as far as this process has seen it grow.
#[derive(Debug)]
pub(crate) struct Retained {
    /// Bytes of entries between two remembered positions.
    stride_bytes: u64,
    /// Of what all have, so much is kept.
    kept_bytes: u64,
    /// (position, bytes of entries up to it since the start), rising.
    strides: VecDeque<(Lsn, u64)>,
    /// Everything up to here may be purged already, and the bytes up to there.
    floor: (Lsn, u64),
    head: (Lsn, u64),
}

impl Retained {
    /// Of a log that shares a budget of so many bytes with others, and of which so many are kept within it.
    pub(crate) fn new(budget_bytes: u64, kept_bytes: u64) -> Retained {
        let stride_bytes = (budget_bytes / STRIDES_MIN).min(STRIDE_BYTES_MAX);
        let stride_bytes = match kept_bytes {
            0 => stride_bytes,
            kept => stride_bytes.min((kept / KEPT_STRIDES).max(KEPT_STRIDE_BYTES_MIN)),
        };
        Retained { stride_bytes, kept_bytes, strides: VecDeque::new(), floor: (Lsn(0), 0), head: (Lsn(0), 0) }
    }

    /// The log grew by `bytes`, up to `head`.
    pub(crate) fn grew(&mut self, head: Lsn, bytes: u64) {
        self.head = (head, self.head.1 + bytes);
        let last = self.strides.back().map_or(self.floor.1, |(_, at)| *at);
        if self.head.1 - last >= self.stride_bytes {
            self.strides.push_back(self.head);
        }
    }

    /// Bytes above the floor.
    pub(crate) fn bytes(&self) -> u64 {
        self.head.1 - self.floor.1
    }

    /// Every other region has everything up to here: raises the floor, as far as not more than is kept is above it, and returns it.
    pub(crate) fn all_have(&mut self, lsn: Lsn) -> Lsn {
        if self.kept_bytes > 0 {
            let (head_bytes, kept_bytes) = (self.head.1, self.kept_bytes);
            let spare = |(at, bytes): &mut (Lsn, u64)| *at <= lsn && head_bytes - *bytes >= kept_bytes;
            while let Some((at, bytes)) = self.strides.pop_front_if(spare) {
                self.floor = (self.floor.0.max(at), bytes);
            }
            return self.floor.0;
        }
        if lsn > self.floor.0 {
            while let Some((at, bytes)) = self.strides.front().copied()
                && at <= lsn
            {
                self.floor.1 = bytes;
                self.strides.pop_front();
            }
            self.floor.0 = lsn;
        }
        self.floor.0
    }

    /// Gives up the oldest stride; `false` when there is none to give.
    fn give_up_oldest(&mut self) -> bool {
        match self.strides.pop_front() {
            Some((lsn, bytes)) => {
                self.floor = (self.floor.0.max(lsn), bytes);
                true
            }
            None => false,
        }
    }
}

/// Raises the floors of the shards that hold most until all together fit the budget; tells whether any was raised.
pub(crate) fn fit<'a>(shards: impl Iterator<Item = &'a mut Retained>, budget_bytes: u64) -> bool {
    let mut shards: Vec<&mut Retained> = shards.collect();
    let mut total: u64 = shards.iter().map(|shard| shard.bytes()).sum();
    let mut raised = false;
    while total > budget_bytes {
        let Some(largest) = shards.iter_mut().max_by_key(|shard| shard.bytes()) else { break };
        let before = largest.bytes();
        if !largest.give_up_oldest() {
            break;
        }
        total -= before - largest.bytes();
        raised = true;
    }
    raised
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRIDE_BYTES: u64 = STRIDE_BYTES_MAX;

    fn grown(strides: u64) -> Retained {
        let mut shard = Retained::new(1 << 30, 0);
        (1..=strides).for_each(|stride| shard.grew(Lsn(stride * 10), STRIDE_BYTES));
        shard
    }

    #[test]
    fn the_floor_follows_the_slowest_region_and_never_falls() {
        let mut shard = grown(10);
        assert_eq!(shard.all_have(Lsn(35)), Lsn(35));
        assert_eq!(shard.bytes(), 7 * STRIDE_BYTES);
        assert_eq!(shard.all_have(Lsn(20)), Lsn(35));
    }

    #[test]
    fn a_dead_region_costs_at_most_the_budget_and_the_largest_shard_pays() {
        let (mut large, mut small) = (grown(10), grown(2));
        assert!(fit([&mut large, &mut small].into_iter(), 6 * STRIDE_BYTES));
        assert_eq!((large.bytes(), small.bytes()), (4 * STRIDE_BYTES, 2 * STRIDE_BYTES));
        assert_eq!(large.all_have(Lsn(0)), Lsn(60));
        assert!(!fit([&mut large, &mut small].into_iter(), 6 * STRIDE_BYTES), "it fits now");
    }

    #[test]
    fn what_is_kept_in_any_case_is_kept_though_all_have_it_and_goes_where_there_is_no_room() {
        let mut shard = Retained::new(1 << 30, 64 << 10);
        (1..=100).for_each(|lsn| shard.grew(Lsn(lsn), 4 << 10));
        let floor = shard.all_have(Lsn(100));
        assert!(shard.bytes() >= 64 << 10 && shard.bytes() < 80 << 10, "{} bytes above {floor}", shard.bytes());
        assert_eq!(shard.all_have(Lsn(0)), floor, "it never falls");
        assert_eq!(
            Retained::new(1 << 30, 64 << 10).all_have(Lsn(9)),
            Lsn(0),
            "of a log whose length is not known all is"
        );
        assert!(fit([&mut shard].into_iter(), 32 << 10));
        assert!(shard.bytes() <= 32 << 10);
    }

    #[test]
    fn a_budget_smaller_than_a_stride_keeps_most_of_what_it_is_for() {
        let mut shard = Retained::new(16 << 10, 0);
        (1..=100).for_each(|lsn| shard.grew(Lsn(lsn), 512));
        assert!(fit([&mut shard].into_iter(), 16 << 10));
        assert_eq!(shard.bytes(), 16 << 10);
        assert_eq!(shard.all_have(Lsn(0)), Lsn(100 - 32));
    }
}
