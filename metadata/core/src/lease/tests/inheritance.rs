//! What a new leader may conclude from when its voters last heard an earlier one: elections, restarts and confirmations by any majority.

use std::collections::BTreeMap;

use meridian_types::NodeId;
use proptest::prelude::*;

use super::{Clock, HOLDER, TTL, origin};
use crate::lease::{Drift, Electorate, LeaseHolder, LeaseTable};

/// A voter, as far as contacts go: what consensus keeps ([`meridian_consensus::Contact`], which this crate must not know).
#[derive(Clone, Copy, Debug)]
struct Voter {
    clock: Clock,
    /// The term it has entered.
    term: u64,
    heard: (u64, u64),
    before_us: u64,
}

impl Voter {
    fn hear(&mut self, term: u64, now_us: u64) {
        if term > self.heard.0 {
            (self.before_us, self.heard) = (self.before_us.max(self.heard.1), (term, now_us));
        } else if term == self.heard.0 {
            self.heard.1 = now_us;
        }
        self.term = self.term.max(term);
    }

    fn before(&self, term: u64) -> Option<u64> {
        match self.heard.0.cmp(&term) {
            std::cmp::Ordering::Less => Some(self.before_us.max(self.heard.1)),
            std::cmp::Ordering::Equal => Some(self.before_us),
            std::cmp::Ordering::Greater => None,
        }
    }
}

#[derive(Clone, Debug)]
enum Happening {
    /// Some leader, of the present or of an earlier term, is asked for a lease, tries to confirm by those voters, and if it has a
    /// majority of them, answers; maybe the answer comes long after.
    Renew {
        leader: usize,
        asked: Vec<bool>,
        takes_us: u64,
        stalls_us: u64,
    },
    /// A majority elects one of them, or fails to.
    Elect {
        who: usize,
        voters: Vec<bool>,
    },
    /// A voter tells the leader of the present term when it last heard an earlier one.
    Tell {
        voter: usize,
        takes_us: u64,
    },
    /// A voter's process starts anew.
    Restart {
        voter: usize,
    },
    Wait {
        us: u64,
    },
}

fn happening(voters: usize) -> impl Strategy<Value = Happening> {
    let some = move || prop::collection::vec(prop::bool::weighted(0.7), voters);
    prop_oneof![
        5 => (0usize..8, some(), 1u64..500_000, prop_oneof![3 => Just(0u64), 1 => 0u64..6_000_000])
            .prop_map(|(leader, asked, takes_us, stalls_us)| Happening::Renew { leader, asked, takes_us, stalls_us }),
        2 => (0..voters, some()).prop_map(|(who, voters)| Happening::Elect { who, voters }),
        5 => (0..voters, 1u64..500_000).prop_map(|(voter, takes_us)| Happening::Tell { voter, takes_us }),
        1 => (0..voters).prop_map(|voter| Happening::Restart { voter }),
        3 => (1u64..4_000_000).prop_map(|us| Happening::Wait { us }),
    ]
}

/// Leaders of all terms so far: who, and what each remembers.
struct Reign {
    who: usize,
    table: LeaseTable,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// FEN-1: however elections go, the present leader remembers a lease for at least as long as its holder believes in it.
    #[test]
    fn what_is_inherited_is_never_remembered_for_too_short(
        (happenings, speeds) in prop_oneof![Just(3usize), Just(5)].prop_flat_map(|voters| (
            prop::collection::vec(happening(voters), 1..60),
            // Within 1 % of each other.
            prop::collection::vec(995_000u64..1_004_900, voters + 1),
        )),
    ) {
        let origin = origin();
        let (holder_speed, speeds) = speeds.split_last().unwrap();
        let ids: Vec<_> = (0..speeds.len()).map(|it| NodeId(it as u64 + 100)).collect();
        let majority = speeds.len() / 2 + 1;
        let clock = |ppm: &u64| Clock { origin, ppm: *ppm };
        let fresh = |ppm| Voter { clock: clock(ppm), term: 0, heard: (0, 0), before_us: 0 };
        let mut voters: Vec<Voter> = speeds.iter().map(fresh).collect();
        let holder_clock = clock(holder_speed);
        let mut holder = LeaseHolder::new(Drift::ONE_PERCENT);
        let mut reigns: BTreeMap<u64, Reign> = BTreeMap::new();
        let (mut now_us, mut elected) = (0u64, 0);
        for happening in happenings {
            match happening {
                Happening::Wait { us } => now_us += us,
                Happening::Restart { voter } => {
                    let it = &mut voters[voter];
                    // A leader that starts anew leads no longer.
                    reigns.retain(|_, reign| reign.who != voter);
                    (it.heard, it.before_us) = ((0, now_us), now_us);
                }
                Happening::Elect { who, voters: asked } => {
                    let term = voters.iter().map(|it| it.term).max().unwrap() + 1;
                    let votes: Vec<_> = (0..voters.len()).filter(|it| *it == who || asked[*it]).collect();
                    votes.iter().for_each(|it| voters[*it].term = term);
                    if votes.len() >= majority {
                        let now = voters[who].clock.at(now_us);
                        elected = term;
                        reigns.insert(term, Reign { who, table: LeaseTable::elected(now, term, TTL) });
                    }
                }
                Happening::Renew { leader, asked, takes_us, stalls_us } => {
                    let Some(term) = reigns.keys().rev().nth(leader % reigns.len().max(1)).copied() else { continue };
                    let who = reigns[&term].who;
                    let sent = holder_clock.at(now_us);
                    now_us += takes_us;
                    if voters[who].term == term { voters[who].hear(term, now_us); }
                    let mut confirmed = usize::from(voters[who].term == term);
                    for it in (0..voters.len()).filter(|it| *it != who && asked[*it]) {
                        if voters[it].term <= term {
                            voters[it].hear(term, now_us + takes_us);
                            confirmed += 1;
                        }
                    }
                    now_us += takes_us + stalls_us;
                    if confirmed >= majority {
                        let now = voters[who].clock.at(now_us);
                        let grant = reigns.get_mut(&term).unwrap().table.grant(now, HOLDER, 1, 0).unwrap();
                        holder.granted(sent, holder_clock.at(now_us), grant);
                    }
                }
                Happening::Tell { voter, takes_us } => {
                    let Some(reign) = reigns.get_mut(&elected) else { continue };
                    let it = voters[voter];
                    let Some(before_us) = (it.term == elected).then(|| it.before(elected)).flatten() else { continue };
                    let age = it.clock.at(now_us) - it.clock.at(before_us);
                    now_us += takes_us;
                    let received = voters[reign.who].clock.at(now_us);
                    if let Some(by) = received.checked_sub(Drift::ONE_PERCENT.shrink(age)) {
                        reign.table.heard_earlier(ids[voter], by, Electorate { voters: &ids, since: origin });
                    }
                }
            }
            // Earlier ones commit nothing any more.
            let Some(reign) = reigns.get(&elected) else { continue };
            let speed = voters[reign.who].clock.ppm;
            let remembered = reign.table.expires(HOLDER).duration_since(origin);
            let end_us = u64::try_from(remembered.as_nanos() * 1_000_000 / u128::from(speed) / 1000).unwrap() + 2;
            if let Some(until) = holder.until(0) {
                prop_assert!(until <= holder_clock.at(end_us), "believed {:?} too long", until - holder_clock.at(end_us));
            }
        }
    }
}

#[test]
fn a_majority_that_heard_nobody_for_long_ends_what_is_inherited() {
    let now = origin() + 10 * TTL;
    let ago = |seconds| now - std::time::Duration::from_secs(seconds);
    let ids = [NodeId(1), NodeId(2), NodeId(3)];
    let electorate = Electorate { voters: &ids, since: origin() };
    let mut table = LeaseTable::elected(now, 3, TTL);
    table.heard_earlier(NodeId(1), ago(4), electorate);
    assert_eq!(table.expires(HOLDER), now + TTL, "one of three says nothing");
    table.heard_earlier(NodeId(9), ago(4), electorate);
    assert_eq!(table.expires(HOLDER), now + TTL, "nor does who has no vote");
    table.heard_earlier(NodeId(2), ago(3), electorate);
    assert_eq!(table.expires(HOLDER), ago(3) + TTL, "a lease after the later of two of three");
    table.heard_earlier(NodeId(3), ago(1), electorate);
    assert_eq!(table.expires(HOLDER), ago(3) + TTL, "any majority will do");
    table.heard_earlier(NodeId(3), ago(6), electorate);
    assert_eq!(table.expires(HOLDER), ago(4) + TTL);
}

#[test]
fn voters_that_were_changed_lately_are_not_counted_on_for_what_was_granted_before() {
    let now = origin() + 10 * TTL;
    let second = std::time::Duration::from_secs(1);
    let ids = [NodeId(1)];
    let mut table = LeaseTable::elected(now, 3, TTL);
    table.heard_earlier(NodeId(1), now - 4 * second, Electorate { voters: &ids, since: now - second });
    assert_eq!(table.expires(HOLDER), now - second + TTL);
}
