//! Degrading and returning (DEG-1, docs/adr/2026-11-27-degrade.md), in every order in which it can happen.
//!
//! ```text
//! metadata:  SYNC ── Degrade ──► DEGRADED ── Recover ──► RECOVERING ── Return ──► SYNC        Fail: the primary is lost
//! node:      Learn, Renew, Lead                              │ Prove, once settled
//!            Order ─ Acknowledge (the target has it, or DEGRADED is known under a lease)
//! target:    Ship
//! ```
//! One bucket, one shard, two nodes in the primary's region, one target that counts: acknowledging with fewer means that
//! the primary's region alone has a write. If the metadata plane fails over while SYNC is on record it takes that for a proof
//! that nothing is lost; so whatever was or will yet be acknowledged has to be at the target.
//!
//! Deliberately not here: epochs and fencing in detail, which the larger model has.

use stateright::{Checker, HasDiscoveries, Model, Property};

/// A rule left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// None.
    None,
    /// Fewer copies are acknowledged before DEGRADED is on record.
    FewerBeforeTheRecord,
    /// The record counts without a lease.
    RecordWithoutLease,
    /// Fewer copies are acknowledged while RECOVERING.
    FewerWhileRecovering,
    /// A shard says where it stands before everybody in the region knows of RECOVERING.
    ProveBeforeSettled,
    /// A node that no longer leads says where the shard stands.
    ProveWithoutLeading,
    /// SYNC is on record before the target has everything.
    ReturnBeforeTheTargetHasAll,
    /// A word of an earlier stretch counts in a later one.
    WordOfAnotherStretch,
    /// DEGRADED is put on record after the primary was given up for lost.
    DegradeWhileFencing,
}

impl Flaw {
    /// All of them.
    pub const ALL: [Flaw; 8] = [
        Flaw::FewerBeforeTheRecord,
        Flaw::RecordWithoutLease,
        Flaw::FewerWhileRecovering,
        Flaw::ProveBeforeSettled,
        Flaw::ProveWithoutLeading,
        Flaw::ReturnBeforeTheTargetHasAll,
        Flaw::WordOfAnotherStretch,
        Flaw::DegradeWhileFencing,
    ];
}

/// How much is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Degrading {
    /// The rule left out.
    pub flaw: Flaw,
    /// Writes.
    pub writes: u8,
    /// Changes of the record.
    pub stretches: u8,
    /// Ticks that a lease lasts.
    pub ttl: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Copies {
    Sync,
    Degraded,
    Recovering,
}

/// What is on record: the stretch, rising, names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Record {
    stretch: u8,
    copies: Copies,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Node {
    known: Record,
    /// Ticks since it learned that, up to a lease and one more.
    known_for: u8,
    /// Ticks left of its lease.
    lease: u8,
    /// How much of the log it has seen committed.
    seen: u8,
}

/// What a node said: where the shard stood in a stretch of RECOVERING.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Word {
    stretch: u8,
    stood: u8,
}

/// Where everything stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    record: Record,
    /// The primary was given up for lost while this was on record; nothing is shipped any more.
    lost: Option<Copies>,
    nodes: [Node; 2],
    leader: usize,
    /// How many writes the shard's log has, and who ordered each.
    ordered: Vec<usize>,
    /// How many the target has.
    target: u8,
    acknowledged: u8,
    word: Option<Word>,
}

/// What can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Time passes.
    Tick,
    /// A node's copy of the metadata catches up.
    Learn(usize),
    /// A node's lease is renewed, for what is on record now.
    Renew(usize),
    /// A node comes to lead the shard.
    Lead(usize),
    /// A write is ordered.
    Order(usize),
    /// The node that ordered a write acknowledges it.
    Acknowledge(usize, u8),
    /// The target gets the next write.
    Ship,
    /// The metadata plane hears that copies are lacking.
    Degrade,
    /// That they come again.
    Recover,
    /// A node says where the shard stands.
    Prove(usize),
    /// The metadata plane hears that nothing is lacking.
    Return,
    /// The metadata plane gives the primary's region up for lost, and the target refuses what it may still send.
    Fail,
}

impl Degrading {
    /// The rules, whole or with one left out.
    pub fn with(flaw: Flaw) -> Degrading {
        Degrading { flaw, writes: 2, stretches: 5, ttl: 1 }
    }

    /// Looks at every state; the promise that was broken, with the steps that led there, and how many states there are.
    pub fn explore(self) -> (Option<Vec<Step>>, usize, Vec<&'static str>) {
        let stop = if self.flaw == Flaw::None { HasDiscoveries::All } else { HasDiscoveries::AnyFailures };
        let checker = self.checker().threads(1).finish_when(stop).spawn_bfs().join();
        let found = checker.discoveries();
        let broken = found.get(PROMISE).map(|path| path.clone().into_actions());
        let never = [RETURNED, EXPOSED].into_iter().filter(|name| !found.contains_key(name)).collect();
        (broken, checker.unique_state_count(), never)
    }

    fn makes(&self, flaw: Flaw) -> bool {
        self.flaw == flaw
    }

    fn may_ack(&self, state: &State, node: usize, write: u8) -> bool {
        let it = &state.nodes[node];
        let fewer = match it.known.copies {
            Copies::Degraded => true,
            Copies::Recovering => self.makes(Flaw::FewerWhileRecovering),
            Copies::Sync => self.makes(Flaw::FewerBeforeTheRecord),
        };
        let lease = it.lease > 0 || (self.makes(Flaw::RecordWithoutLease) && fewer);
        lease && (fewer || state.target > write)
    }

    fn turn(&self, state: &mut State, copies: Copies) -> bool {
        state.record = Record { stretch: state.record.stretch + 1, copies };
        state.record.stretch <= self.stretches
    }

    fn prove(&self, state: &mut State, node: usize) -> bool {
        let it = &mut state.nodes[node];
        // Whoever leads has seen all that any leader before it committed.
        let leads = state.leader == node;
        if leads {
            it.seen = u8::try_from(state.ordered.len()).unwrap_or(u8::MAX);
        }
        let settled = it.known_for > self.ttl || self.makes(Flaw::ProveBeforeSettled);
        let word = Word { stretch: it.known.stretch, stood: it.seen };
        let is_news = state.word != Some(word);
        state.word = Some(word);
        it.known.copies == Copies::Recovering && settled && is_news && (leads || self.makes(Flaw::ProveWithoutLeading))
    }

    fn step(&self, state: &mut State, step: Step) -> bool {
        match step {
            Step::Tick => {
                for node in &mut state.nodes {
                    node.lease = node.lease.saturating_sub(1);
                    node.known_for = (node.known_for + 1).min(self.ttl + 1);
                }
                true
            }
            Step::Learn(node) => {
                let it = &mut state.nodes[node];
                let is_news = it.known != state.record;
                (it.known, it.known_for) = (state.record, 0);
                is_news
            }
            // A grant names what is on record; it counts once that is known, which is when it arrives here.
            Step::Renew(node) => {
                let it = &mut state.nodes[node];
                it.lease = self.ttl;
                it.known == state.record && state.lost.is_none()
            }
            Step::Lead(node) => {
                state.leader = node;
                true
            }
            Step::Order(node) => {
                state.ordered.push(node);
                let it = &mut state.nodes[node];
                it.seen = u8::try_from(state.ordered.len()).unwrap_or(u8::MAX);
                let blind = self.makes(Flaw::RecordWithoutLease) && it.known.copies == Copies::Degraded;
                state.leader == node && (it.lease > 0 || blind) && state.ordered.len() <= usize::from(self.writes)
            }
            Step::Acknowledge(node, write) => {
                let may = self.may_ack(state, node, write) && state.ordered.get(usize::from(write)) == Some(&node);
                state.acknowledged |= 1 << write;
                may
            }
            Step::Ship => {
                state.target += 1;
                usize::from(state.target) <= state.ordered.len() && state.lost.is_none()
            }
            Step::Degrade => {
                let open = state.record.copies != Copies::Degraded;
                let steady = state.lost.is_none() || self.makes(Flaw::DegradeWhileFencing);
                self.turn(state, Copies::Degraded) && open && steady
            }
            Step::Recover => {
                let open = state.record.copies == Copies::Degraded && state.lost.is_none();
                self.turn(state, Copies::Recovering) && open
            }
            Step::Prove(node) => self.prove(state, node),
            Step::Return => {
                let Some(word) = state.word else { return false };
                let same = word.stretch == state.record.stretch || self.makes(Flaw::WordOfAnotherStretch);
                let all = state.target >= word.stood || self.makes(Flaw::ReturnBeforeTheTargetHasAll);
                let open = state.record.copies == Copies::Recovering && state.lost.is_none();
                self.turn(state, Copies::Sync) && open && same && all
            }
            Step::Fail => {
                let is_news = state.lost.is_none();
                state.lost = Some(state.record.copies);
                is_news
            }
        }
    }
}

const PROMISE: &str = "DEG-1, DUR-2: what fails over while SYNC is on record loses nothing acknowledged";
const RETURNED: &str = "a bucket degrades, acknowledges with fewer, and returns";
const EXPOSED: &str = "a write is acknowledged that the target lacks";

fn lacks(state: &State) -> bool {
    state.acknowledged >> state.target != 0
}

impl Model for Degrading {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        let record = Record { stretch: 0, copies: Copies::Sync };
        let node = Node { known: record, known_for: 0, lease: 0, seen: 0 };
        vec![State {
            record,
            lost: None,
            nodes: [node; 2],
            leader: 0,
            ordered: Vec::new(),
            target: 0,
            acknowledged: 0,
            word: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Step>) {
        actions.extend([Step::Tick, Step::Ship, Step::Degrade, Step::Recover, Step::Return, Step::Fail]);
        for node in 0..state.nodes.len() {
            actions.extend([Step::Learn, Step::Renew, Step::Lead, Step::Order, Step::Prove].map(|step| step(node)));
            let writes = u8::try_from(state.ordered.len()).unwrap_or(u8::MAX);
            actions.extend((0..writes).map(|write| Step::Acknowledge(node, write)));
        }
    }

    fn next_state(&self, last: &State, action: Step) -> Option<State> {
        let mut state = last.clone();
        (self.step(&mut state, action) && state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Degrading>> {
        vec![
            Property::always(PROMISE, |_, state: &State| state.lost != Some(Copies::Sync) || !lacks(state)),
            Property::sometimes(RETURNED, |_, state: &State| {
                state.record.stretch >= 3 && state.record.copies == Copies::Sync && state.acknowledged != 0
            }),
            Property::sometimes(EXPOSED, |_, state: &State| lacks(state)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A smaller world; the larger ones take minutes (docs/testing.md).
    #[test]
    fn the_rules_lose_nothing_in_any_order() {
        let (broken, states, never) = Degrading { stretches: 3, ..Degrading::with(Flaw::None) }.explore();
        assert_eq!(broken, None);
        assert!(never.is_empty(), "{never:?}");
        assert!(states > 10_000, "{states}");
    }

    #[test]
    fn every_rule_is_needed() {
        for flaw in Flaw::ALL {
            let (broken, states, _) = Degrading::with(flaw).explore();
            assert!(broken.is_some(), "{flaw:?} was not found in {states} states");
        }
    }
}
