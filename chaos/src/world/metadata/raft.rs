//! A small Raft, for the metadata plane of a simulated planet: pure, with the time as an argument.
//!
//! Only what the plane rests on: elections with a pre-vote, replication, commitment by a majority, and rounds of heartbeats
//! by which a leader proves that it still leads. Members are fixed and the log is never cut; some may follow without a vote.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

/// What a member keeps on its disk, synced before anything that rests on it is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Durable {
    pub(crate) term: u64,
    pub(crate) voted_for: Option<usize>,
    /// From index 1; `None` begins a term.
    pub(crate) log: Vec<(u64, Option<Bytes>)>,
}

/// Milliseconds: elections by chance instead of by priority as in `Pace::between_regions` of consensus, so that they fail more often; heartbeats a
/// little more often, too.
const HEARTBEAT_MS: u64 = 200;
const ELECTION_MS: (u64, u64) = (700, 1200);

/// What members say to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// Would you vote for me? Changes nothing.
    PreVote {
        term: u64,
        last: (u64, u64),
    },
    /// `term`: what was asked for, or if that is not granted, the member's own.
    PreVoted {
        term: u64,
        granted: bool,
    },
    Vote {
        term: u64,
        last: (u64, u64),
    },
    Voted {
        term: u64,
        granted: bool,
    },
    Append {
        term: u64,
        previous: (u64, u64),
        entries: Vec<(u64, Option<Bytes>)>,
        commit: u64,
        round: u64,
    },
    Appended {
        term: u64,
        matched: Option<u64>,
        round: u64,
    },
}

impl Message {
    /// About how long it is.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Message::Append { entries, .. } => {
                64 + entries.iter().map(|(_, payload)| 16 + payload.as_ref().map_or(0, Bytes::len)).sum::<usize>()
            }
            _ => 64,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Role {
    Follower { leader: Option<usize> },
    PreCandidate { granted: BTreeSet<usize> },
    Candidate { granted: BTreeSet<usize> },
    Leader { next: BTreeMap<usize, u64>, matched: BTreeMap<usize, u64>, rounds: BTreeMap<usize, u64>, round: u64 },
}

/// Who is in the group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Members {
    pub(crate) voters: Vec<usize>,
    /// Who follows without a vote.
    pub(crate) learners: Vec<usize>,
}

/// One member.
#[derive(Debug)]
pub(crate) struct Raft {
    id: usize,
    members: Members,
    durable: Durable,
    commit: u64,
    role: Role,
    /// When to campaign, or to send heartbeats.
    timer_ms: u64,
    heard_ms: u64,
    /// Grows with every timeout: what spreads elections.
    spread: super::super::dice::Dice,
}

/// What to do after a step: the durable part first, then the messages.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub(crate) persist: bool,
    pub(crate) send: Vec<(usize, Message)>,
}

impl Raft {
    pub(crate) fn new(
        id: usize,
        members: Members,
        durable: Durable,
        now_ms: u64,
        spread: super::super::dice::Dice,
    ) -> Raft {
        let role = Role::Follower { leader: None };
        let mut raft = Raft { id, members, durable, commit: 0, role, timer_ms: 0, heard_ms: now_ms, spread };
        raft.wait(now_ms);
        raft
    }

    pub(crate) fn durable(&self) -> &Durable {
        &self.durable
    }

    pub(crate) fn term(&self) -> u64 {
        self.durable.term
    }

    pub(crate) fn leads(&self) -> bool {
        matches!(self.role, Role::Leader { .. })
    }

    /// Whether everything ever committed is committed here: this leader's own first entry is.
    pub(crate) fn is_ready(&self) -> bool {
        self.leads() && self.term_at(self.commit) == self.durable.term
    }

    pub(crate) fn leader(&self) -> Option<usize> {
        match &self.role {
            Role::Leader { .. } => Some(self.id),
            Role::Follower { leader } => *leader,
            Role::PreCandidate { .. } | Role::Candidate { .. } => None,
        }
    }

    pub(crate) fn commit(&self) -> u64 {
        self.commit
    }

    pub(crate) fn entry(&self, index: u64) -> Option<&(u64, Option<Bytes>)> {
        self.durable.log.get(usize::try_from(index.checked_sub(1)?).ok()?)
    }

    /// When to call [`Raft::tick`].
    pub(crate) fn timer_ms(&self) -> u64 {
        self.timer_ms
    }

    fn last(&self) -> (u64, u64) {
        (self.durable.log.last().map_or(0, |(term, _)| *term), self.durable.log.len() as u64)
    }

    fn term_at(&self, index: u64) -> u64 {
        self.entry(index).map_or(0, |(term, _)| *term)
    }

    fn majority(&self) -> usize {
        self.members.voters.len() / 2 + 1
    }

    fn others(&self) -> Vec<usize> {
        let all = self.members.voters.iter().chain(&self.members.learners);
        all.copied().filter(|member| *member != self.id).collect()
    }

    fn votes(&self, member: usize) -> bool {
        self.members.voters.contains(&member)
    }

    fn wait(&mut self, now_ms: u64) {
        self.timer_ms = now_ms + self.spread.between(ELECTION_MS.0, ELECTION_MS.1);
    }

    /// The timer has run out.
    pub(crate) fn tick(&mut self, now_ms: u64, out: &mut Outbox) {
        if now_ms < self.timer_ms {
            return;
        }
        match self.role {
            Role::Leader { .. } => self.beat(now_ms, out),
            Role::Follower { .. } if !self.votes(self.id) => self.wait(now_ms),
            Role::Follower { .. } | Role::PreCandidate { .. } | Role::Candidate { .. } => {
                self.role = Role::PreCandidate { granted: BTreeSet::from([self.id]) };
                self.wait(now_ms);
                self.ask(Message::PreVote { term: self.durable.term + 1, last: self.last() }, out);
                self.count(now_ms, out);
            }
        }
    }

    fn ask(&self, message: Message, out: &mut Outbox) {
        let voters = self.others().into_iter().filter(|other| self.votes(*other));
        out.send.extend(voters.map(|other| (other, message.clone())));
    }

    /// Enqueues a command; its index, if this member leads.
    pub(crate) fn propose(&mut self, payload: Bytes, now_ms: u64, out: &mut Outbox) -> Option<u64> {
        if !self.leads() {
            return None;
        }
        self.durable.log.push((self.durable.term, Some(payload)));
        out.persist = true;
        self.beat(now_ms, out);
        self.advance();
        Some(self.last().1)
    }

    /// Begins a round; this member leads for sure once [`Raft::confirmed`] reaches it.
    pub(crate) fn confirm(&mut self, now_ms: u64, out: &mut Outbox) -> Option<u64> {
        if !self.leads() {
            return None;
        }
        self.beat(now_ms, out);
        match &self.role {
            Role::Leader { round, .. } => Some(*round),
            Role::Follower { .. } | Role::PreCandidate { .. } | Role::Candidate { .. } => None,
        }
    }

    /// The last round that a majority answered.
    pub(crate) fn confirmed(&self) -> u64 {
        let Role::Leader { rounds, round, .. } = &self.role else { return 0 };
        self.of_majority(rounds, *round)
    }

    /// What at least a majority has, given what the others and this one have.
    fn of_majority(&self, others: &BTreeMap<usize, u64>, own: u64) -> u64 {
        let voters = others.iter().filter(|(other, _)| self.votes(**other));
        let mut all: Vec<u64> = voters.map(|(_, has)| *has).collect();
        all.push(own);
        all.sort_unstable_by(|a, b| b.cmp(a));
        all.get(self.majority() - 1).copied().unwrap_or_default()
    }

    fn beat(&mut self, now_ms: u64, out: &mut Outbox) {
        self.timer_ms = now_ms + HEARTBEAT_MS;
        let Role::Leader { round, .. } = &mut self.role else { return };
        *round += 1;
        for other in self.others() {
            self.append_to(other, out);
        }
    }

    fn append_to(&self, other: usize, out: &mut Outbox) {
        let Role::Leader { next, round, .. } = &self.role else { return };
        let next = next.get(&other).copied().unwrap_or(1).max(1);
        let begin = usize::try_from(next - 1).unwrap_or(usize::MAX);
        let message = Message::Append {
            term: self.durable.term,
            previous: (self.term_at(next - 1), next - 1),
            entries: self.durable.log.get(begin..).unwrap_or_default().to_vec(),
            commit: self.commit,
            round: *round,
        };
        out.send.push((other, message));
    }

    /// A message came.
    pub(crate) fn step(&mut self, from: usize, message: Message, now_ms: u64, out: &mut Outbox) {
        match message {
            Message::PreVote { term, last } => {
                // Whoever hears a leader wants no other.
                let quiet = now_ms >= self.heard_ms + ELECTION_MS.0 && !self.leads();
                let granted = quiet && term > self.durable.term && last >= self.last();
                let term = if granted { term } else { self.durable.term };
                out.send.push((from, Message::PreVoted { term, granted }));
            }
            Message::PreVoted { term, granted } => {
                let wanted = term == self.durable.term + 1;
                if let Role::PreCandidate { granted: all } = &mut self.role
                    && granted
                    && wanted
                {
                    all.insert(from);
                }
                if !granted {
                    // Else a member with the longer log and the lower term would ask for ever for terms that are over.
                    self.learn(term, now_ms, out);
                }
                self.count(now_ms, out);
            }
            Message::Vote { term, last } => self.on_vote(from, term, last, now_ms, out),
            Message::Voted { term, granted } => {
                self.learn(term, now_ms, out);
                if let Role::Candidate { granted: all } = &mut self.role
                    && granted
                    && term == self.durable.term
                {
                    all.insert(from);
                }
                self.count(now_ms, out);
            }
            Message::Append { term, previous, entries, commit, round } => {
                self.learn(term, now_ms, out);
                let matched = if term < self.durable.term {
                    None
                } else {
                    self.follow(from, now_ms);
                    self.take(previous, entries, commit, out)
                };
                out.send.push((from, Message::Appended { term: self.durable.term, matched, round }));
            }
            Message::Appended { term, matched, round } => self.on_appended(from, term, matched, round, now_ms, out),
        }
    }

    /// A greater term ends whatever this member was.
    fn learn(&mut self, term: u64, now_ms: u64, out: &mut Outbox) {
        if term > self.durable.term {
            self.durable.term = term;
            self.durable.voted_for = None;
            out.persist = true;
            self.role = Role::Follower { leader: None };
            self.wait(now_ms);
        }
    }

    fn follow(&mut self, leader: usize, now_ms: u64) {
        assert!(!self.leads(), "two leaders in term {}", self.durable.term);
        self.role = Role::Follower { leader: Some(leader) };
        self.heard_ms = now_ms;
        self.wait(now_ms);
    }

    fn on_vote(&mut self, from: usize, term: u64, last: (u64, u64), now_ms: u64, out: &mut Outbox) {
        self.learn(term, now_ms, out);
        let free = self.durable.voted_for.is_none_or(|voted| voted == from);
        let granted = term == self.durable.term && free && last >= self.last() && !self.leads();
        if granted {
            self.durable.voted_for = Some(from);
            out.persist = true;
            self.wait(now_ms);
        }
        out.send.push((from, Message::Voted { term: self.durable.term, granted }));
    }

    fn count(&mut self, now_ms: u64, out: &mut Outbox) {
        match &self.role {
            Role::PreCandidate { granted } if granted.len() >= self.majority() => {
                self.durable.term += 1;
                self.durable.voted_for = Some(self.id);
                out.persist = true;
                self.role = Role::Candidate { granted: BTreeSet::from([self.id]) };
                self.wait(now_ms);
                self.ask(Message::Vote { term: self.durable.term, last: self.last() }, out);
                self.count(now_ms, out);
            }
            Role::Candidate { granted } if granted.len() >= self.majority() => {
                self.durable.log.push((self.durable.term, None));
                out.persist = true;
                let next = self.others().into_iter().map(|other| (other, self.last().1)).collect();
                let none: BTreeMap<_, _> = self.others().into_iter().map(|other| (other, 0)).collect();
                self.role = Role::Leader { next, matched: none.clone(), rounds: none, round: 0 };
                self.beat(now_ms, out);
                self.advance();
            }
            Role::PreCandidate { .. } | Role::Candidate { .. } | Role::Follower { .. } | Role::Leader { .. } => {}
        }
    }

    /// Takes what a leader sent; up to where this log is now the leader's.
    fn take(
        &mut self,
        previous: (u64, u64),
        entries: Vec<(u64, Option<Bytes>)>,
        commit: u64,
        out: &mut Outbox,
    ) -> Option<u64> {
        if previous.1 > self.last().1 || self.term_at(previous.1) != previous.0 {
            return None;
        }
        let mut index = previous.1;
        for entry in entries {
            index += 1;
            if self.term_at(index) == entry.0 {
                continue;
            }
            assert!(index > self.commit, "a committed entry was to be replaced");
            self.durable.log.truncate(usize::try_from(index - 1).unwrap_or(usize::MAX));
            self.durable.log.push(entry);
            out.persist = true;
        }
        self.commit = self.commit.max(commit.min(index));
        Some(index)
    }

    fn on_appended(&mut self, from: usize, term: u64, ok: Option<u64>, seen: u64, now_ms: u64, out: &mut Outbox) {
        self.learn(term, now_ms, out);
        let last = self.last().1;
        let Role::Leader { next, matched, rounds, .. } = &mut self.role else { return };
        if term != self.durable.term {
            return;
        }
        let round = rounds.entry(from).or_default();
        *round = (*round).max(seen);
        let next = next.entry(from).or_insert(1);
        match ok {
            Some(index) => {
                let matched = matched.entry(from).or_default();
                *matched = (*matched).max(index);
                *next = (*next).max(index + 1);
                if *next <= last {
                    self.append_to(from, out);
                }
            }
            None => {
                *next = next.saturating_sub(1).max(1);
                self.append_to(from, out);
            }
        }
        self.advance();
    }

    /// Commits what a majority has, if it is of this term.
    fn advance(&mut self) {
        let Role::Leader { matched, .. } = &self.role else { return };
        let index = self.of_majority(matched, self.last().1);
        if index > self.commit && self.term_at(index) == self.durable.term {
            self.commit = index;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::dice::Dice;
    use super::*;

    /// Of four, so many of whom vote.
    fn members(voters: usize) -> Members {
        Members { voters: (0..voters).collect(), learners: (voters..4).collect() }
    }

    /// Two members, one of which began terms that nobody else heard of while the other has more in its log.
    #[test]
    fn whoever_has_the_longer_log_leads_though_another_has_a_greater_term() {
        let of = |term, entries: u64| Durable { term, voted_for: None, log: (0..entries).map(|_| (1, None)).collect() };
        let dice = Dice::new(1);
        let start =
            |id, durable| Raft::new(id, Members { voters: vec![0, 1], learners: Vec::new() }, durable, 0, dice.fork());
        let mut rafts = [start(0, of(2, 5)), start(1, of(9, 3))];
        let mut flying: Vec<(usize, usize, Message)> = Vec::new();
        for now in (0..10_000).step_by(10) {
            let due = std::mem::take(&mut flying);
            for (from, to, message) in due {
                let mut out = Outbox::default();
                rafts[to].step(from, message, now, &mut out);
                flying.extend(out.send.into_iter().map(|(other, message)| (to, other, message)));
            }
            for raft in &mut rafts {
                let mut out = Outbox::default();
                raft.tick(now, &mut out);
                flying.extend(out.send.into_iter().map(|(other, message)| (raft.id, other, message)));
            }
        }
        assert!(rafts[0].is_ready());
        assert_eq!(rafts[1].leader(), Some(0));
    }

    /// Members whose messages are lost, late and doubled as the dice say; restarts keep what is durable.
    #[test]
    fn members_agree_on_what_is_committed_whatever_the_network_and_restarts_do() {
        for seed in 0..200 {
            let dice = Dice::new(seed);
            // One of them follows without a vote in every second world.
            let voters = if seed % 2 == 0 { 4 } else { 3 };
            let start = |id: usize, durable, now| Raft::new(id, members(voters), durable, now, dice.fork());
            let mut rafts: Vec<Raft> = (0..4).map(|id| start(id, Durable::default(), 0)).collect();
            let mut flying: Vec<(u64, usize, usize, Message)> = Vec::new();
            let mut committed: Vec<(u64, Option<Bytes>)> = Vec::new();
            for now in (0..20_000).step_by(10) {
                let mut due: Vec<_> = Vec::new();
                flying.retain(|it| {
                    if it.0 <= now {
                        due.push(it.clone());
                        false
                    } else {
                        true
                    }
                });
                let mut outs = Vec::new();
                for (_, from, to, message) in due {
                    let mut out = Outbox::default();
                    rafts[to].step(from, message, now, &mut out);
                    outs.push((to, out));
                }
                for raft in &mut rafts {
                    let mut out = Outbox::default();
                    raft.tick(now, &mut out);
                    if dice.chance(0.01) {
                        raft.propose(Bytes::from(now.to_string()), now, &mut out);
                    }
                    outs.push((raft.id, out));
                }
                for (from, out) in outs {
                    for (to, message) in out.send {
                        for _ in 0..if dice.chance(0.05) { 2 } else { 1 } {
                            if !dice.chance(0.2) {
                                flying.push((now + dice.between(5, 300), from, to, message.clone()));
                            }
                        }
                    }
                }
                if dice.chance(0.002) {
                    let id = dice.index(4);
                    rafts[id] = start(id, rafts[id].durable.clone(), now);
                }
                for raft in &rafts {
                    for index in 1..=raft.commit {
                        let entry = raft.entry(index).unwrap().clone();
                        match committed.get(index as usize - 1) {
                            Some(known) => assert_eq!(*known, entry, "seed {seed}"),
                            None => committed.push(entry),
                        }
                    }
                }
            }
            assert!(committed.len() > 3, "seed {seed}: {}", committed.len());
            assert!(voters == 4 || !rafts[3].leads(), "seed {seed}");
            // What is committed it may just have forgotten, for it may just have started.
            assert!(voters == 4 || rafts[3].durable.log.len() > 3, "seed {seed}: who does not vote follows");
        }
    }
}
