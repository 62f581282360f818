//! Laws of leases: two clocks of different speed, delays, lost answers, elections and slow appliers.

mod inheritance;

use std::collections::BTreeMap;

use meridian_types::NodeId;
use proptest::prelude::*;

use super::*;
use std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "tests need some instant to count from; which one does not matter")]
fn origin() -> Instant {
    Instant::now()
}

/// A clock that runs at `ppm` parts per million of true time.
#[derive(Clone, Copy, Debug)]
struct Clock {
    origin: Instant,
    ppm: u64,
}

impl Clock {
    fn at(self, truth_us: u64) -> Instant {
        self.origin + Duration::from_nanos(truth_us * 1000 * self.ppm / 1_000_000)
    }
}

const TTL: Duration = Duration::from_secs(5);
const HOLDER: NodeId = NodeId(7);

#[derive(Clone, Debug)]
enum Happening {
    /// A renewal: true microseconds from send to receipt, then to the answer's arrival; `None` when the answer is lost.
    Renew { there_us: u64, barrier_us: u64, back_us: Option<u64> },
    /// The old leader is confirmed, then stalls; another is elected; only then the old one grants, and the answer arrives.
    RenewAcrossElection { there_us: u64, elected_us: u64, stalled_us: u64, back_us: u64 },
    /// The leader commits something.
    Commit,
    /// The holder applies everything committed.
    Apply,
    /// Another leader is elected.
    Elect,
    /// Nothing.
    Wait { us: u64 },
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        6 => (1u64..2_000_000, 0u64..500_000, prop::option::weighted(0.8, 1u64..3_000_000))
            .prop_map(|(there_us, barrier_us, back_us)| Happening::Renew { there_us, barrier_us, back_us }),
        2 => (1u64..2_000_000, 1u64..2_000_000, 1u64..6_000_000, 1u64..2_000_000).prop_map(
            |(there_us, elected_us, stalled_us, back_us)| Happening::RenewAcrossElection { there_us, elected_us, stalled_us, back_us }
        ),
        2 => Just(Happening::Commit),
        2 => Just(Happening::Apply),
        1 => Just(Happening::Elect),
        3 => (1u64..7_000_000).prop_map(|us| Happening::Wait { us }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// FEN-1: at every moment, on every clock within the bound, the holder's belief ends no later than the leader remembers; and CON-3: a
    /// belief that is said to be unbroken began after the last moment in which the leader remembered nothing.
    #[test]
    fn a_holder_never_believes_beyond_what_the_grantor_remembers(
        happenings in prop::collection::vec(happening(), 1..40),
        drift_ppm in 0u32..100_000,
        speed in 900_000u64..1_100_000,
        slowness in 0u64..=100,
    ) {
        let origin = origin();
        let grantor_clock = Clock { origin, ppm: speed };
        // Anything between as fast as the grantor's and as slow as the bound allows.
        let slow_ppm = u64::from(drift_ppm) * slowness / 100;
        let holder_clock = Clock { origin, ppm: (speed * (1_000_000 - slow_ppm)).div_ceil(1_000_000) };
        let mut now_us = 0u64;
        let (mut committed, mut applied) = (0u64, 0u64);
        let mut forgotten_us = 0;
        let mut table = LeaseTable::elected(grantor_clock.at(now_us), 1, TTL);
        let mut holder = LeaseHolder::new(Drift::from_ppm(drift_ppm));
        for happening in happenings {
            match happening {
                Happening::Renew { there_us, barrier_us, back_us } => {
                    let sent = holder_clock.at(now_us);
                    now_us += there_us + barrier_us;
                    if table.expires(HOLDER) <= grantor_clock.at(now_us) {
                        forgotten_us = now_us;
                    }
                    let grant = table.grant(grantor_clock.at(now_us), HOLDER, 1, committed).unwrap();
                    if let Some(back_us) = back_us {
                        now_us += back_us;
                        holder.granted(sent, holder_clock.at(now_us), grant);
                    }
                }
                Happening::RenewAcrossElection { there_us, elected_us, stalled_us, back_us } => {
                    let sent = holder_clock.at(now_us);
                    let mut old = table.clone();
                    now_us += there_us + elected_us;
                    table = LeaseTable::elected(grantor_clock.at(now_us), old.term() + 1, TTL);
                    now_us += stalled_us;
                    let grant = old.grant(grantor_clock.at(now_us), HOLDER, 1, committed).unwrap();
                    now_us += back_us;
                    holder.granted(sent, holder_clock.at(now_us), grant);
                }
                Happening::Commit => committed += 1,
                Happening::Apply => applied = committed,
                Happening::Elect => table = LeaseTable::elected(grantor_clock.at(now_us), table.term() + 1, TTL),
                Happening::Wait { us } => now_us += us,
            }
            // Find the true moment at which the grantor's memory ends; the holder must not believe then.
            let remembered = table.expires(HOLDER).duration_since(origin);
            let end_us = u64::try_from(remembered.as_nanos() * 1_000_000 / u128::from(speed) / 1000).unwrap() + 2;
            if let Some(until) = holder.until(applied) {
                prop_assert!(until <= holder_clock.at(end_us), "the holder believes {:?} too long", until - holder_clock.at(end_us));
            }
            if let Some(since) = holder.since(applied, holder_clock.at(now_us)) {
                prop_assert!(since >= holder_clock.at(forgotten_us), "it was forgotten in between");
            }
        }
    }

    /// The index half: after a change at index `j` is committed and the leases remembered at that moment have run out,
    /// a holder that believes has applied `j`.
    #[test]
    fn whoever_still_believes_after_the_wait_knows_of_the_change(
        before in prop::collection::vec((1u64..2_000_000, any::<bool>()), 0..10),
        after in prop::collection::vec((1u64..2_000_000, any::<bool>()), 0..20),
        applies_at in 0usize..40,
    ) {
        let origin = origin();
        let clock = Clock { origin, ppm: 1_000_000 };
        let mut table = LeaseTable::elected(origin, 1, TTL);
        let mut holder = LeaseHolder::new(Drift::ONE_PERCENT);
        let mut now_us = 0;
        for (pause_us, delivered) in before {
            let sent = clock.at(now_us);
            now_us += pause_us;
            let grant = table.grant(clock.at(now_us), HOLDER, 1, 4).unwrap();
            if delivered { holder.granted(sent, sent, grant); }
        }
        let quiet = table.expires(HOLDER);
        for (step, (pause_us, delivered)) in after.into_iter().enumerate() {
            let sent = clock.at(now_us);
            now_us += pause_us;
            let grant = table.grant(clock.at(now_us), HOLDER, 1, 5).unwrap();
            if delivered { holder.granted(sent, sent, grant); }
            let applied = if step >= applies_at { 5 } else { 4 };
            let believes = holder.until(applied).is_some_and(|until| until > clock.at(now_us));
            if clock.at(now_us) >= quiet && believes {
                prop_assert_eq!(applied, 5);
            }
        }
    }

    /// Grants in any order of arrival make the same belief, up to the bound on how many are kept.
    #[test]
    fn late_and_reordered_answers_are_harmless(grants in prop::collection::vec((0u64..4000, 0u64..6), 1..GRANTS_HELD_MAX), applied in 0u64..6) {
        let origin = origin();
        let mut holder = LeaseHolder::new(Drift::ONE_PERCENT);
        let mut best: BTreeMap<u64, Instant> = BTreeMap::new();
        for (sent_ms, index) in grants {
            let sent = origin + Duration::from_millis(sent_ms);
            holder.granted(sent, sent, Grant { ttl: TTL, index, term: 1 });
            let until = sent + Drift::ONE_PERCENT.shrink(TTL);
            best.entry(index).and_modify(|u| *u = until.max(*u)).or_insert(until);
        }
        let expected = best.range(..=applied).map(|(_, until)| *until).max();
        prop_assert_eq!(holder.until(applied), expected);
    }
}

#[test]
fn a_new_leader_remembers_every_node_as_renewed_at_its_election() {
    let now = origin();
    let table = LeaseTable::elected(now, 3, TTL);
    assert_eq!(table.expires(NodeId(99)), now + TTL);
    assert_eq!(table.live(now), 0);
}

#[test]
fn a_grant_counts_only_once_its_index_is_applied() {
    let now = origin();
    let mut holder = LeaseHolder::new(Drift::ONE_PERCENT);
    holder.granted(now, now, Grant { ttl: TTL, index: 8, term: 1 });
    assert_eq!(holder.until(7), None);
    assert_eq!(holder.until(8), Some(now + Duration::from_millis(4950)));
}

#[test]
fn an_older_grant_stands_until_a_newer_one_may_be_used() {
    let now = origin();
    let second = Duration::from_secs(1);
    let mut holder = LeaseHolder::new(Drift::ONE_PERCENT);
    holder.granted(now, now, Grant { ttl: TTL, index: 7, term: 1 });
    holder.granted(now + second, now + second, Grant { ttl: TTL, index: 8, term: 1 });
    assert_eq!(holder.until(7), Some(now + Duration::from_millis(4950)));
    assert_eq!(holder.until(8), Some(now + Duration::from_millis(5950)));
}

#[test]
fn a_node_that_applies_nothing_holds_a_bounded_number_of_grants() {
    let now = origin();
    let mut holder = LeaseHolder::new(Drift::ONE_PERCENT);
    for step in 0u64..1000 {
        let at = now + Duration::from_millis(step);
        holder.granted(at, at, Grant { ttl: TTL, index: step + 1, term: 1 });
    }
    assert_eq!(holder.until(0), None);
    assert!(holder.until(1000).is_some());
    // Once the old ones have ended, new ones are taken again.
    let later = now + Duration::from_secs(60);
    holder.granted(later, later, Grant { ttl: TTL, index: 2000, term: 1 });
    assert_eq!(holder.until(2000), Some(later + Duration::from_millis(4950)));
}

#[test]
fn the_margin_is_taken_off_and_rounded_down() {
    assert_eq!(Drift::ONE_PERCENT.shrink(Duration::from_secs(5)), Duration::from_millis(4950));
    assert_eq!(Drift::from_ppm(0).shrink(TTL), TTL);
    assert_eq!(Drift::from_ppm(1).shrink(Duration::from_nanos(1)), Duration::ZERO);
}

#[test]
fn of_two_processes_with_one_name_the_later_keeps_the_lease() {
    let now = origin();
    let mut table = LeaseTable::elected(now, 1, TTL);
    assert!(table.grant(now, HOLDER, 1, 0).is_ok());
    assert!(table.grant(now, HOLDER, 2, 0).is_ok(), "a restarted node does not wait");
    let (second, remembered) = (Duration::from_secs(1), table.expires(HOLDER));
    assert_eq!(table.grant(now + second, HOLDER, 1, 0), Err(Superseded));
    assert_eq!(table.expires(HOLDER), remembered);
    assert!(table.grant(now + second, HOLDER, 2, 0).is_ok());
    assert_eq!(table.grant(now + TTL, HOLDER, 1, 0), Err(Superseded));
    assert!(table.grant(now + second + TTL, HOLDER, 1, 0).is_ok(), "once the other is gone");
}
