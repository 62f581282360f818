//! The ceiling holds, whatever happens: against a log that knows everything.

use proptest::prelude::*;

use super::*;

const SHARE: LagBound = LagBound { ms: Some(300), operations: Some(5), bytes: Some(100) };

/// The shard's log, and what another region has of it.
#[derive(Default)]
struct World {
    exposure: Exposure,
    now_ms: u64,
    clock: u64,
    /// Ordered and not applied: timestamp, bytes, whether it leaves an entry.
    queue: VecDeque<(Hlc, u64, bool)>,
    /// Applied: position, bytes, when it was ordered.
    log: Vec<(Lsn, u64, u64)>,
    ordered_ms: VecDeque<u64>,
    applied_up_to: Hlc,
    elsewhere: Lsn,
}

#[derive(Clone, Debug)]
enum Happens {
    Write { bytes: u64, repeated: bool, fails: bool },
    Apply(usize),
    Ship(usize),
    Wait(u64),
    NewLeader,
    Based,
}

impl World {
    fn head(&self) -> Lsn {
        self.log.last().map_or(Lsn(0), |(lsn, ..)| *lsn)
    }

    fn step(&mut self, what: Happens) {
        match what {
            Happens::Write { bytes, repeated, fails } => self.write(bytes, repeated, fails),
            Happens::Apply(count) => {
                let mut entries = Vec::new();
                for _ in 0..count {
                    let Some((stamp, bytes, stands)) = self.queue.pop_front() else { break };
                    let at_ms = self.ordered_ms.pop_front().unwrap();
                    self.applied_up_to = stamp;
                    if stands {
                        let lsn = Lsn(self.head().0 + 2);
                        self.log.push((lsn, bytes, at_ms));
                        entries.push((lsn, bytes));
                    }
                }
                self.exposure.applied(entries, self.applied_up_to);
            }
            Happens::Ship(count) => {
                let next = self.log.iter().filter(|(lsn, ..)| *lsn > self.elsewhere).take(count).last();
                if let Some((lsn, ..)) = next {
                    self.elsewhere = *lsn;
                }
                self.exposure.elsewhere(self.elsewhere);
            }
            Happens::Wait(ms) => {
                self.now_ms += ms;
                self.exposure.tick(self.now_ms);
            }
            // It has committed what was ordered before it, and knows nothing.
            Happens::NewLeader => {
                self.step(Happens::Apply(usize::MAX));
                self.exposure = Exposure::default();
                self.exposure.tick(self.now_ms);
                self.exposure.elsewhere(self.elsewhere);
            }
            Happens::Based => drop(self.exposure.base(self.head())),
        }
    }

    fn write(&mut self, bytes: u64, repeated: bool, fails: bool) {
        if self.exposure.fits(&SHARE, bytes) != Fit::Fits {
            return;
        }
        self.exposure.reserve(bytes);
        if fails {
            return self.exposure.release(bytes);
        }
        self.clock += 1;
        let stamp = Hlc(self.clock);
        self.queue.push_back((stamp, bytes, !repeated));
        self.ordered_ms.push_back(self.now_ms);
        self.exposure.ordered(stamp, bytes);
    }

    /// What a loss of the region would cost now, were everything applied that is ordered.
    fn check(&self) {
        let lost = self.log.iter().filter(|(lsn, ..)| *lsn > self.elsewhere);
        let coming = self.queue.iter().filter(|(.., stands)| *stands);
        let operations = lost.clone().count() as u64 + coming.clone().count() as u64;
        let bytes =
            lost.clone().map(|(_, bytes, _)| bytes).sum::<u64>() + coming.map(|(_, bytes, _)| bytes).sum::<u64>();
        assert!(operations <= SHARE.operations.unwrap(), "{operations} operations");
        assert!(bytes <= SHARE.bytes.unwrap(), "{bytes} bytes");
        let times: Vec<u64> = lost.map(|(.., at)| *at).collect();
        let span = times.last().copied().unwrap_or_default() - times.first().copied().unwrap_or_default();
        assert!(span <= SHARE.ms.unwrap(), "{span} ms of writes");
    }
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        8 => (1u64..60, any::<bool>(), prop::bool::weighted(0.1)).prop_map(|(bytes, repeated, fails)| Happens::Write { bytes, repeated, fails }),
        4 => (1usize..4).prop_map(Happens::Apply),
        3 => (1usize..4).prop_map(Happens::Ship),
        3 => (1u64..200).prop_map(Happens::Wait),
        1 => Just(Happens::NewLeader),
        2 => Just(Happens::Based),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_other_region_lacks_more_than_the_ceiling(history in prop::collection::vec(happens(), 1..120)) {
        let mut world = World::default();
        for what in history {
            world.step(what);
            world.check();
        }
        // Heal, then demand progress.
        world.step(Happens::Apply(usize::MAX));
        world.step(Happens::Based);
        world.step(Happens::Ship(usize::MAX));
        assert_eq!(world.exposure.exposed(), Exposed::default());
        assert_eq!(world.exposure.fits(&SHARE, 100), Fit::Fits);
    }

    #[test]
    fn the_shares_of_all_shards_come_to_the_whole(operations in 0u64..1000, bytes in 0u64..100_000, shards in 1u16..40) {
        let bound = LagBound { ms: Some(7), operations: Some(operations), bytes: Some(bytes) };
        let parts: Vec<_> = (0..shards).map(|shard| share(&bound, ShardId(shard), shards)).collect();
        prop_assert_eq!(parts.iter().filter_map(|part| part.operations).sum::<u64>(), operations);
        prop_assert_eq!(parts.iter().filter_map(|part| part.bytes).sum::<u64>(), bytes);
        prop_assert!(parts.iter().all(|part| part.ms == Some(7)));
    }
}

#[test]
fn a_leader_that_knows_nothing_lets_nothing_through() {
    let mut exposure = Exposure::default();
    assert_eq!(exposure.fits(&SHARE, 1), Fit::Unknown);
    assert!(!exposure.base(Lsn(7)), "nobody else is known to have 7");
    assert_eq!(exposure.fits(&SHARE, 1), Fit::Unknown);
    assert!(exposure.elsewhere(Lsn(7)));
    assert_eq!(exposure.fits(&SHARE, 1), Fit::Fits);
}

#[test]
fn writes_are_slowed_down_the_nearer_the_bound_is() {
    let at = |operations| slowed_ms(nearness(&Exposed { operations, ..Exposed::default() }, &SHARE));
    assert_eq!([at(0), at(2), at(3), at(4), at(5), at(50)], [0, 0, 8, 72, 200, 200]);
}
