//! What one direction between two regions does to each packet: pure, so that it can be tested without a network.
//!
//! ```text
//!   packet ─ cut? ─ lost? ─ queue for the bandwidth (bounded) ─ delay + jitter ─ in order within its flow ─> due
//!                                                                    └─ reordered: held back, order not kept
//! ```
//!
//! The bandwidth is a bucket that holds a millisecond of tokens: bursts of that size pass at once, longer ones queue,
//! and what would wait longer than [`QUEUE_MAX`] is dropped, as a router does.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// How long a packet may wait for bandwidth; routers of the internet commonly hold 100 to 500 ms.
const QUEUE_MAX: Duration = Duration::from_millis(250);

/// The queue is never smaller than this, however slow the link: some 40 full packets.
const QUEUE_BYTES_MIN: u64 = 64 << 10;

/// The tokens a link saves up while it is idle.
const BURST: Duration = Duration::from_millis(1);

/// How long a reordered packet is held back at most: longer than a burst, shorter than any timeout.
const HELD_BACK_MAX: Duration = Duration::from_millis(20);

/// Flows whose order is kept apart. Two flows that share a slot only share their order.
const FLOWS: usize = 256;

/// What one direction of a pair of regions does to what passes. Shares are between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Conditions {
    /// One-way delay: half of a round trip.
    pub delay: Duration,
    /// Up to this much more delay, evenly distributed; packets of one flow stay in order.
    pub jitter: Duration,
    /// Share of packets lost.
    pub loss: f64,
    /// Share of packets that arrive twice.
    pub duplicate: f64,
    /// Share of packets that are overtaken by later ones.
    pub reorder: f64,
    /// Share of packets that arrive with a flipped bit, which the receiving kernel's checksums must notice.
    pub corrupt: f64,
    /// Bandwidth in bits per second; `None` means as fast as the machine.
    pub bits_per_second: Option<u64>,
    /// Nothing passes. What is on its way already still arrives.
    pub cut: bool,
}

/// What became of packets so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sent on, duplicates not counted.
    pub forwarded: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Dropped because the link was cut.
    pub cut: u64,
    /// Lost at random.
    pub lost: u64,
    /// Dropped because the queue for the bandwidth was full.
    pub overflowed: u64,
    /// Sent twice.
    pub duplicated: u64,
    /// Held back so that others overtake them.
    pub reordered: u64,
    /// Sent with a flipped bit.
    pub corrupted: u64,
}

/// When a packet arrives, if it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    /// When it arrives; `None`: never.
    pub due: Option<Instant>,
    /// When it arrives once more.
    pub again: Option<Instant>,
    /// The bit to flip, counted from the end of the packet's headers; `None`: it arrives as sent.
    pub flip: Option<u32>,
}

/// One direction between two regions.
#[derive(Debug)]
pub struct Link {
    conditions: Conditions,
    counters: Counters,
    random: StdRng,
    /// When everything that was admitted has left the queue for the bandwidth.
    busy_until: Instant,
    /// Per flow, when its last packet arrives.
    last_due: Box<[Option<Instant>; FLOWS]>,
}

impl Link {
    /// A perfect link; `seed` decides its accidents.
    pub fn new(now: Instant, seed: u64) -> Link {
        Link {
            conditions: Conditions::default(),
            counters: Counters::default(),
            random: StdRng::seed_from_u64(seed),
            busy_until: now,
            last_due: Box::new([None; FLOWS]),
        }
    }

    /// What holds from now on. Packets on their way keep the fate they have.
    pub fn set(&mut self, conditions: Conditions) {
        self.conditions = conditions;
    }

    /// What holds now.
    pub fn conditions(&self) -> Conditions {
        self.conditions
    }

    /// What became of packets so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Decides what becomes of a packet of `bytes` that enters now. `flow` is any hash of its addresses and ports.
    pub fn admit(&mut self, now: Instant, bytes: usize, flow: u64) -> Fate {
        let conditions = self.conditions;
        if conditions.cut {
            self.counters.cut += 1;
            return Fate::default();
        }
        if self.happens(conditions.loss) {
            self.counters.lost += 1;
            return Fate::default();
        }
        let Some(sent) = self.pass_bandwidth(now, bytes) else {
            self.counters.overflowed += 1;
            return Fate::default();
        };
        self.counters.forwarded += 1;
        self.counters.bytes += bytes as u64;
        let due = self.arrival(sent, flow);
        let again = self.happens(conditions.duplicate).then(|| {
            self.counters.duplicated += 1;
            due + self.up_to(Duration::from_millis(2))
        });
        let flip = self.happens(conditions.corrupt).then(|| {
            self.counters.corrupted += 1;
            self.random.random()
        });
        Fate { due: Some(due), again, flip }
    }

    /// When the last bit of a packet has left, or `None` when the queue has no room for it.
    fn pass_bandwidth(&mut self, now: Instant, bytes: usize) -> Option<Instant> {
        let Some(rate) = self.conditions.bits_per_second else { return Some(now) };
        let takes = |bytes: u64| Duration::from_nanos(bytes.saturating_mul(8_000_000_000) / rate.max(1));
        let tokens_since = now.checked_sub(BURST).unwrap_or(now);
        let begins = self.busy_until.max(tokens_since);
        let waits = begins.saturating_duration_since(now);
        if waits > QUEUE_MAX.max(takes(QUEUE_BYTES_MIN)) {
            return None;
        }
        self.busy_until = begins + takes(bytes as u64);
        Some(self.busy_until.max(now))
    }

    fn arrival(&mut self, sent: Instant, flow: u64) -> Instant {
        let conditions = self.conditions;
        let due = sent + conditions.delay + self.up_to(conditions.jitter);
        if self.happens(conditions.reorder) {
            self.counters.reordered += 1;
            return due + Duration::from_millis(1) + self.up_to(HELD_BACK_MAX);
        }
        let slot = usize::try_from(flow % FLOWS as u64).unwrap_or_default();
        // In order within the flow, also when the delay has just become shorter.
        let due = self.last_due[slot].map_or(due, |last| due.max(last));
        self.last_due[slot] = Some(due);
        due
    }

    fn happens(&mut self, share: f64) -> bool {
        share > 0.0 && self.random.random_bool(share.min(1.0))
    }

    fn up_to(&mut self, most: Duration) -> Duration {
        if most.is_zero() { most } else { most.mul_f64(self.random.random::<f64>()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(conditions: Conditions) -> (Link, Instant) {
        let now = Instant::now();
        let mut link = Link::new(now, 7);
        link.set(conditions);
        (link, now)
    }

    #[test]
    fn a_packet_arrives_after_exactly_the_delay() {
        let (mut link, now) = link(Conditions { delay: Duration::from_millis(15), ..Conditions::default() });
        assert_eq!(link.admit(now, 1500, 1).due, Some(now + Duration::from_millis(15)));
    }

    #[test]
    fn jitter_keeps_the_order_of_a_flow_and_not_that_of_different_flows() {
        let (mut link, now) = link(Conditions { jitter: Duration::from_millis(10), ..Conditions::default() });
        let dues = |link: &mut Link, flow: fn(u64) -> u64| -> Vec<Instant> {
            (0..200).filter_map(|at| link.admit(now + Duration::from_micros(at * 10), 100, flow(at)).due).collect()
        };
        let same = dues(&mut link, |_| 3);
        assert!(same.is_sorted() && same.len() == 200);
        assert!(!dues(&mut link, |at| at).is_sorted());
    }

    #[test]
    fn reordered_packets_are_overtaken() {
        let (mut link, now) = link(Conditions { reorder: 0.2, ..Conditions::default() });
        let dues: Vec<_> = (0..200).filter_map(|_| link.admit(now, 100, 3).due).collect();
        assert!(!dues.is_sorted());
        assert!((20..80).contains(&link.counters().reordered));
    }

    #[test]
    fn a_cut_link_lets_nothing_pass_and_a_mended_one_does() {
        let (mut link, now) = link(Conditions { cut: true, ..Conditions::default() });
        assert_eq!(link.admit(now, 100, 1), Fate::default());
        link.set(Conditions::default());
        assert_eq!(link.admit(now, 100, 1).due, Some(now));
        assert_eq!((link.counters().cut, link.counters().forwarded), (1, 1));
    }

    #[test]
    fn loss_and_duplication_happen_about_as_often_as_asked() {
        let (mut link, now) = link(Conditions { loss: 0.3, duplicate: 0.1, ..Conditions::default() });
        let twice = (0..10_000).filter(|_| link.admit(now, 100, 1).again.is_some()).count();
        let counters = link.counters();
        assert!((2_700..3_300).contains(&counters.lost), "{counters:?}");
        assert!((550..850).contains(&twice), "{counters:?}");
    }

    #[test]
    fn a_slow_link_passes_its_bandwidth_and_drops_what_its_queue_has_no_room_for() {
        let (mut link, now) = link(Conditions { bits_per_second: Some(8_000_000), ..Conditions::default() });
        // 2 MB offered at once to 1 MB/s: a quarter of a second's worth is queued.
        let dues: Vec<_> = (0..2_000).filter_map(|_| link.admit(now, 1_000, 1).due).collect();
        assert!((245..=260).contains(&dues.len()), "{}", dues.len());
        let last = dues.last().map(|due| due.duration_since(now)).unwrap_or_default();
        assert!(last > Duration::from_millis(240) && last < Duration::from_millis(260), "{last:?}");
        // Offered no faster than it may go, everything passes.
        let later = now + Duration::from_secs(2);
        let passed = (0..1_000).filter(|at| link.admit(later + Duration::from_millis(*at), 1_000, 1).due.is_some());
        assert_eq!(passed.count(), 1_000);
    }
}
