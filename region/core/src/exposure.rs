//! What a shard has of an async bucket that no other region has yet, and whether one more write may be ordered (design 2;
//! docs/adr/2026-11-27-rpo-ceiling.md).
//!
//! ```text
//!   reserved ──ordered──► under way ──applied──► applied ──another region has it──► gone
//!      │                      (a timestamp)         (a position)
//!      └ given back: it was not ordered
//! ```
//! Whatever is not known to be elsewhere counts, so the figure is never too small. A leader that has just come to be one
//! knows nothing until another region has everything that was there before it: until then nothing fits ([`Exposure::base`]).
//!
//! Deliberately not here: who waits, and for how long (`region/node`).

use std::collections::VecDeque;

use meridian_types::{Hlc, LagBound, Lsn, ShardId};

#[cfg(test)]
mod laws;

/// What a loss of the region would cost a bucket in a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Exposed {
    /// Operations.
    pub operations: u64,
    /// Bytes of their entries.
    pub bytes: u64,
    /// The age of the oldest, in milliseconds.
    pub ms: u64,
}

/// Whether a write fits under the ceiling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// It does.
    Fits,
    /// Not before another region has more.
    Full,
    /// What is elsewhere is not known yet to a leader that has just come to be one.
    Unknown,
}

/// One (bucket, shard), at its leader.
#[derive(Clone, Debug, Default)]
pub struct Exposure {
    /// The newest time seen, in milliseconds.
    now_ms: u64,
    /// Another region has everything up to here.
    elsewhere: Lsn,
    base: Base,
    /// The log has been applied up to this timestamp.
    up_to: Hlc,
    reserved: (u64, u64),
    under_way: VecDeque<UnderWay>,
    applied: VecDeque<AppliedHere>,
    held: (u64, u64),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Base {
    /// Not known what was there before this leader.
    #[default]
    Unknown,
    /// This is what was there.
    Stood(Lsn),
    /// Another region has all of it: what is counted here is everything.
    Counted,
}

#[derive(Clone, Copy, Debug)]
struct UnderWay {
    stamp: Hlc,
    bytes: u64,
    at_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct AppliedHere {
    lsn: Lsn,
    bytes: u64,
    at_ms: u64,
}

impl Exposure {
    /// Whether a write of `bytes` fits under `share`, this shard's part of the ceiling.
    pub fn fits(&self, share: &LagBound, bytes: u64) -> Fit {
        if self.base != Base::Counted {
            return Fit::Unknown;
        }
        let exposed = self.exposed();
        let full = share.operations.is_some_and(|most| exposed.operations + 1 > most)
            || share.bytes.is_some_and(|most| exposed.bytes + bytes > most)
            || share.ms.is_some_and(|most| exposed.ms >= most);
        if full { Fit::Full } else { Fit::Fits }
    }

    /// What there is, whatever may still come of it.
    pub fn exposed(&self) -> Exposed {
        let oldest = [self.applied.front().map(|it| it.at_ms), self.under_way.front().map(|it| it.at_ms)];
        let oldest_ms = oldest.into_iter().flatten().min();
        Exposed {
            operations: self.reserved.0 + self.held.0,
            bytes: self.reserved.1 + self.held.1,
            ms: oldest_ms.map_or(0, |at| self.now_ms.saturating_sub(at)),
        }
    }

    /// Time goes on.
    pub fn tick(&mut self, now_ms: u64) {
        self.now_ms = self.now_ms.max(now_ms);
    }

    /// A write is about to be ordered.
    pub fn reserve(&mut self, bytes: u64) {
        self.reserved = (self.reserved.0 + 1, self.reserved.1 + bytes);
    }

    /// It was not ordered, and will not be.
    pub fn release(&mut self, bytes: u64) {
        self.reserved = (self.reserved.0.saturating_sub(1), self.reserved.1.saturating_sub(bytes));
    }

    /// It was ordered, under this timestamp. Timestamps rise along the log, but may be told in any order.
    pub fn ordered(&mut self, stamp: Hlc, bytes: u64) {
        self.release(bytes);
        // Applied already: it was counted there.
        if stamp <= self.up_to {
            return;
        }
        let at_ms = self.now_ms;
        let place = self.under_way.partition_point(|it| it.stamp < stamp);
        self.under_way.insert(place, UnderWay { stamp, bytes, at_ms });
        self.held = (self.held.0 + 1, self.held.1 + bytes);
    }

    /// The log brought entries of the bucket, at rising positions, and has been applied up to the timestamp.
    pub fn applied(&mut self, entries: impl IntoIterator<Item = (Lsn, u64)>, up_to: Hlc) {
        let mut at_ms = self.now_ms;
        self.up_to = self.up_to.max(up_to);
        // What was ordered and left no entry that is shipped, a repeated request say, ends here too.
        while let Some(front) = self.under_way.front().copied().filter(|it| it.stamp <= up_to) {
            self.under_way.pop_front();
            self.held = (self.held.0 - 1, self.held.1 - front.bytes);
            at_ms = at_ms.min(front.at_ms);
        }
        for (lsn, bytes) in entries.into_iter().filter(|(lsn, _)| *lsn > self.elsewhere) {
            self.applied.push_back(AppliedHere { lsn, bytes, at_ms });
            self.held = (self.held.0 + 1, self.held.1 + bytes);
        }
    }

    /// Another region has everything up to `lsn`; whether that made room.
    pub fn elsewhere(&mut self, lsn: Lsn) -> bool {
        if lsn <= self.elsewhere {
            return false;
        }
        self.elsewhere = lsn;
        let mut room = self.settle();
        while let Some(front) = self.applied.front().copied().filter(|it| it.lsn <= lsn) {
            self.applied.pop_front();
            self.held = (self.held.0 - 1, self.held.1 - front.bytes);
            room = true;
        }
        room
    }

    /// Whether it is still to be found out where the bucket stood when this node came to lead the shard.
    pub fn needs_base(&self) -> bool {
        self.base == Base::Unknown
    }

    /// The bucket stood at `lsn` after this node proved that it leads the shard, having applied everything of earlier leaders.
    pub fn base(&mut self, lsn: Lsn) -> bool {
        if self.base == Base::Unknown {
            self.base = Base::Stood(lsn);
        }
        self.settle()
    }

    fn settle(&mut self) -> bool {
        match self.base {
            Base::Stood(lsn) if lsn <= self.elsewhere => {
                self.base = Base::Counted;
                true
            }
            Base::Stood(_) | Base::Unknown | Base::Counted => false,
        }
    }
}

/// A shard's part of a ceiling: the parts of all shards come to no more than the whole, whoever leads them.
pub fn share(bound: &LagBound, shard: ShardId, shards: u16) -> LagBound {
    let shards = u64::from(shards.max(1));
    let part = |whole: u64| whole / shards + u64::from(u64::from(shard.0) < whole % shards);
    LagBound { ms: bound.ms, operations: bound.operations.map(part), bytes: bound.bytes.map(part) }
}

/// How near what is exposed is to a bound, in thousandths; 1000 and more: it is reached.
pub fn nearness(exposed: &Exposed, bound: &LagBound) -> u64 {
    let of = |is: u64, most: Option<u64>| most.map_or(0, |most| is.saturating_mul(1000) / most.max(1));
    of(exposed.operations, bound.operations).max(of(exposed.bytes, bound.bytes)).max(of(exposed.ms, bound.ms))
}

/// From how near on writes are slowed down, in thousandths.
const SLOW_FROM: u64 = 500;

/// By how much at the bound, in milliseconds: a client that writes one after another then does some five a second.
const SLOW_MS_MAX: u64 = 200;

/// By how much a write is slowed down, in milliseconds.
pub fn slowed_ms(nearness: u64) -> u64 {
    let over = nearness.saturating_sub(SLOW_FROM).min(1000 - SLOW_FROM);
    // Gently at first: the square of the way that is left.
    SLOW_MS_MAX * over * over / ((1000 - SLOW_FROM) * (1000 - SLOW_FROM))
}
