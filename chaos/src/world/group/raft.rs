//! One member's part of a group, pure: elections, what is committed, and what a leader may answer for. Time is an argument, effects are
//! values; entries are elsewhere, here is where they stand.
//!
//! ```text
//!             silence                 a majority would          a majority does
//! Follower ─────────────► PreCandidate ───────────► Candidate ─────────────────► Leader
//!    ▲   └── TakeOver ──────────────────────────────────▲                          │
//!    └────────────────────────── a greater term ◄──────────────────────────────────┘
//! ```
//! As consensus has it: an entry counts where it is synced; a leader commits entries of its own term; one that hears nobody goes on believing
//! that it leads. It answers reads on the word of a majority, for as long as that keeps the word (`READ_LEASE_MS`), and never again on
//! such a word once it has asked another member to take over. Members are fixed. Alone a member leads at once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::journal::{Journal, Place};
use super::message::Message;
use crate::world::dice::Dice;
use crate::world::disk::Record;

/// As `Pace::within_region` of consensus: a follower stands for election 0.8 to 1.0 s after it last heard a leader.
pub(crate) const HEARTBEAT_MS: u64 = 100;
const ELECTION_MS: (u64, u64) = (800, 960);

/// For so long after it heard a leader a member votes for nobody else …
const KEEPS_WORD_MS: u64 = 480;

/// … and for so long, from when it asked, a leader relies on that.
const READ_LEASE_MS: u64 = 300;

/// Whoever has just started has forgotten that it gave its word.
const SILENCE_MS: u64 = 315;

/// What a member may lack to take over at once, as in consensus.
const LACKING_MAX: u64 = 1024;

/// How long a snapshot is on its way before another one is sent.
const FILLING_MS: u64 = 1_000;

/// Rounds whose beginning is remembered.
const ROUNDS_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Role {
    Follower { leader: Option<usize> },
    PreCandidate { granted: BTreeSet<usize> },
    Candidate { granted: BTreeSet<usize> },
    Leader(Leading),
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct Leading {
    peers: BTreeMap<usize, Peer>,
    /// The entry that begins the term.
    first: u64,
    round: u64,
    /// When rounds began.
    began: VecDeque<(u64, u64)>,
    /// Somebody was asked to take over: whose word still counts nobody knows.
    handed: bool,
}

/// What a leader knows of another member.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
struct Peer {
    next: u64,
    matched: u64,
    round: u64,
    answered_ms: Option<u64>,
    filling_until_ms: u64,
    /// It is yet to be found where its log is this one's: nothing is sent ahead.
    probing: bool,
}

/// What is durable of a member besides its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ballot {
    pub(crate) term: u64,
    pub(crate) voted: Option<usize>,
}

/// What to send to one who is behind: entries or a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shipment {
    pub(crate) to: usize,
    pub(crate) term: u64,
    pub(crate) previous: Place,
    pub(crate) commit: u64,
    pub(crate) round: u64,
    /// The last entry to send.
    pub(crate) until: u64,
    /// It begins before the log does: a snapshot instead.
    pub(crate) fill: bool,
}

/// What to do after a step, in this order.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// The ballot is to be durable before anything is sent.
    pub(crate) persist: bool,
    /// Cut the log behind this position.
    pub(crate) cut: Option<u64>,
    /// Entries to be written behind it.
    pub(crate) write: Vec<Record>,
    pub(crate) send: Vec<(usize, Message)>,
    pub(crate) ship: Vec<Shipment>,
}

/// One member.
#[derive(Debug)]
pub(crate) struct Raft {
    own: usize,
    others: Vec<usize>,
    ballot: Ballot,
    log: Journal,
    commit: u64,
    role: Role,
    /// Up to where the log is known to be that of this term's leader.
    matching: u64,
    /// When to stand for election, or to send heartbeats.
    timer_ms: u64,
    /// When it last heard a leader.
    heard_ms: Option<u64>,
    silent_until_ms: u64,
    dice: Dice,
}

impl Raft {
    /// A member that starts with what is on its disk and in its state. Alone it leads, and `out` has the entry that begins its term.
    pub(crate) fn open(
        (own, others): (usize, Vec<usize>),
        ballot: Ballot,
        (log, applied): (Journal, u64),
        (now_ms, dice): (u64, Dice),
        out: &mut Outbox,
    ) -> Raft {
        let silent_until_ms = now_ms + SILENCE_MS;
        let role = Role::Follower { leader: None };
        let mut raft = Raft {
            own,
            others,
            ballot,
            log,
            commit: applied,
            role,
            matching: 0,
            timer_ms: 0,
            heard_ms: None,
            silent_until_ms,
            dice,
        };
        if raft.others.is_empty() {
            raft.ballot = Ballot { term: raft.ballot.term + 1, voted: Some(own) };
            out.persist = true;
            raft.lead(now_ms, out);
        } else {
            raft.wait(now_ms);
        }
        raft
    }

    pub(crate) fn ballot(&self) -> Ballot {
        self.ballot
    }

    pub(crate) fn term(&self) -> u64 {
        self.ballot.term
    }

    pub(crate) fn is_alone(&self) -> bool {
        self.others.is_empty()
    }

    pub(crate) fn leads(&self) -> bool {
        matches!(self.role, Role::Leader(_))
    }

    pub(crate) fn leader(&self) -> Option<usize> {
        match &self.role {
            Role::Leader(_) => Some(self.own),
            Role::Follower { leader } => *leader,
            Role::PreCandidate { .. } | Role::Candidate { .. } => None,
        }
    }

    /// The entry that begins its term, while this member leads.
    pub(crate) fn first(&self) -> Option<u64> {
        match &self.role {
            Role::Leader(leading) => Some(leading.first),
            Role::Follower { .. } | Role::PreCandidate { .. } | Role::Candidate { .. } => None,
        }
    }

    pub(crate) fn commit(&self) -> u64 {
        self.commit
    }

    /// Up to where entries may be applied: committed, and on this member's disk.
    pub(crate) fn applicable(&self) -> u64 {
        self.commit.min(self.log.synced)
    }

    pub(crate) fn term_at(&self, lsn: u64) -> u64 {
        self.log.term_at(lsn)
    }

    /// When to call [`Raft::tick`].
    pub(crate) fn timer_ms(&self) -> u64 {
        self.timer_ms
    }

    fn majority(&self) -> usize {
        self.others.len().div_ceil(2) + 1
    }

    fn wait(&mut self, now_ms: u64) {
        self.timer_ms = now_ms.max(self.silent_until_ms) + self.dice.between(ELECTION_MS.0, ELECTION_MS.1);
    }

    /// Whether this member has given its word to a leader, or may have before it started.
    fn keeps_word(&self, now_ms: u64) -> bool {
        now_ms < self.silent_until_ms || self.heard_ms.is_some_and(|heard| now_ms < heard + KEEPS_WORD_MS)
    }

    /// The timer has run out.
    pub(crate) fn tick(&mut self, now_ms: u64, out: &mut Outbox) {
        if now_ms < self.timer_ms || self.is_alone() {
            return;
        }
        if self.leads() {
            return self.beat(now_ms, out);
        }
        self.role = Role::PreCandidate { granted: BTreeSet::from([self.own]) };
        self.wait(now_ms);
        let (term, end) = (self.ballot.term + 1, self.log.end());
        self.ask(&Message::PreVote { term, end }, out);
    }

    fn ask(&self, message: &Message, out: &mut Outbox) {
        out.send.extend(self.others.iter().map(|other| (*other, message.clone())));
    }

    /// Enqueues an entry; its position. Only a leader is asked to.
    pub(crate) fn propose(&mut self, payload: Option<bytes::Bytes>, out: &mut Outbox) -> u64 {
        let lsn = self.log.push(self.ballot.term);
        out.write.push(Record::new(meridian_types::Lsn(lsn), self.ballot.term, payload));
        lsn
    }

    /// What was written up to here has left for the disk.
    pub(crate) fn written(&mut self, lsn: u64, now_ms: u64, out: &mut Outbox) {
        self.log.written = self.log.written.max(lsn.min(self.log.last));
        self.ship_all(now_ms, out);
    }

    /// Everything up to here is on this member's disk.
    pub(crate) fn synced(&mut self, lsn: u64, out: &mut Outbox) {
        self.log.synced = self.log.synced.max(lsn.min(self.log.last));
        if self.leads() {
            return self.advance();
        }
        if let Role::Follower { leader: Some(leader) } = self.role {
            self.say_matched(leader, 0, out);
        }
    }

    fn say_matched(&self, leader: usize, round: u64, out: &mut Outbox) {
        let (term, last) = (self.ballot.term, self.log.last);
        let matched = Some(self.matching.min(self.log.synced));
        out.send.push((leader, Message::Appended { term, matched, last, round }));
    }

    /// Begins a round; this member led when it was asked once [`Raft::confirmed`] reaches it.
    pub(crate) fn confirm(&mut self, now_ms: u64, out: &mut Outbox) -> Option<u64> {
        if !self.leads() {
            return None;
        }
        self.beat(now_ms, out);
        match &self.role {
            Role::Leader(leading) => Some(leading.round),
            Role::Follower { .. } | Role::PreCandidate { .. } | Role::Candidate { .. } => None,
        }
    }

    /// The last round that a majority answered.
    pub(crate) fn confirmed(&self) -> u64 {
        let Role::Leader(leading) = &self.role else { return 0 };
        self.of_majority(leading.peers.values().map(|peer| peer.round), leading.round)
    }

    /// Whether a majority keeps its word to this leader for now.
    pub(crate) fn has_lease(&self, now_ms: u64) -> bool {
        let Role::Leader(leading) = &self.role else { return false };
        let confirmed = self.confirmed();
        let began = leading.began.iter().rev().find(|(round, _)| *round <= confirmed);
        !leading.handed && began.is_some_and(|(_, began_ms)| now_ms < began_ms + READ_LEASE_MS)
    }

    /// What at least a majority has, given what the others and this one have.
    fn of_majority(&self, others: impl Iterator<Item = u64>, own: u64) -> u64 {
        let mut all: Vec<u64> = others.chain([own]).collect();
        all.sort_unstable_by(|a, b| b.cmp(a));
        all.get(self.majority() - 1).copied().unwrap_or_default()
    }

    fn beat(&mut self, now_ms: u64, out: &mut Outbox) {
        self.timer_ms = now_ms + HEARTBEAT_MS;
        let Role::Leader(leading) = &mut self.role else { return };
        leading.round += 1;
        leading.began.push_back((leading.round, now_ms));
        if leading.began.len() > ROUNDS_MAX {
            leading.began.pop_front();
        }
        for other in self.others.clone() {
            self.ship(other, now_ms, out);
        }
    }

    /// What has left for the disk goes to the others, too.
    fn ship_all(&mut self, now_ms: u64, out: &mut Outbox) {
        for other in self.others.clone() {
            let Role::Leader(leading) = &self.role else { return };
            if leading.peers.get(&other).is_some_and(|peer| peer.next <= self.log.written) {
                self.ship(other, now_ms, out);
            }
        }
    }

    fn ship(&mut self, to: usize, now_ms: u64, out: &mut Outbox) {
        let (log, term, commit) = (&self.log, self.ballot.term, self.commit);
        let Role::Leader(leading) = &mut self.role else { return };
        let Some(peer) = leading.peers.get_mut(&to) else { return };
        let behind = peer.next <= log.purged.lsn;
        let fill = behind && peer.filling_until_ms <= now_ms;
        if fill {
            peer.filling_until_ms = now_ms + FILLING_MS;
        }
        let lsn = (peer.next - 1).max(log.purged.lsn);
        let previous = Place { term: log.term_at(lsn), lsn };
        let ahead = !behind && !peer.probing;
        if ahead {
            peer.next = peer.next.max(log.written + 1);
        }
        let until = if ahead { log.written.max(lsn) } else { lsn };
        out.ship.push(Shipment { to, term, previous, commit, round: leading.round, until, fill });
    }

    /// Whether another member could take over at once: it has answered lately, and has nearly everything.
    pub(crate) fn could_take_over(&self, to: usize, now_ms: u64) -> bool {
        let Role::Leader(leading) = &self.role else { return false };
        leading.peers.get(&to).is_some_and(|peer| {
            let answers = peer.answered_ms.is_some_and(|at| now_ms < at + READ_LEASE_MS);
            answers && peer.matched + LACKING_MAX >= self.log.last
        })
    }

    /// Asks another member to take over.
    pub(crate) fn hand_over(&mut self, to: usize, out: &mut Outbox) {
        let (term, end) = (self.ballot.term, self.log.end());
        if let Role::Leader(leading) = &mut self.role {
            leading.handed = true;
            out.send.push((to, Message::TakeOver { term, end }));
        }
    }

    /// A message came; a snapshot goes to [`Raft::offered`] instead.
    pub(crate) fn step(&mut self, from: usize, message: Message, now_ms: u64, out: &mut Outbox) {
        match message {
            Message::PreVote { term, end } => {
                let free = !self.keeps_word(now_ms) && !self.leads();
                let granted = free && term > self.ballot.term && end >= self.log.end();
                let term = if granted { term } else { self.ballot.term };
                out.send.push((from, Message::PreVoted { term, granted }));
            }
            Message::PreVoted { term, granted: true } => {
                if let Role::PreCandidate { granted } = &mut self.role
                    && term == self.ballot.term + 1
                {
                    granted.insert(from);
                    self.count(now_ms, out);
                }
            }
            // Else a member with the longer log and the lower term would ask for ever for terms that are over.
            Message::PreVoted { term, granted: false } => self.learn(term, now_ms, out),
            Message::Vote { term, end, asked } => self.on_vote(from, (term, end, asked), now_ms, out),
            Message::Voted { term, granted } => {
                self.learn(term, now_ms, out);
                if let Role::Candidate { granted: all } = &mut self.role
                    && granted
                    && term == self.ballot.term
                {
                    all.insert(from);
                    self.count(now_ms, out);
                }
            }
            Message::Append { term, previous, records, commit, round } => {
                if self.follow(from, term, now_ms, out) {
                    self.take(from, previous, records, (commit, round), out);
                }
            }
            Message::Appended { term, matched, last, round } => {
                self.learn(term, now_ms, out);
                if term == self.ballot.term {
                    self.on_appended(from, (matched, last, round), now_ms, out);
                }
            }
            Message::TakeOver { term, end } => {
                let fits = term == self.ballot.term && self.leader() == Some(from) && end <= self.log.end();
                if fits && now_ms >= self.silent_until_ms {
                    self.stand(true, now_ms, out);
                }
            }
            Message::Snapshot { .. } => {}
        }
    }

    /// A leader offers a state as of `at`; whether it is wanted.
    pub(crate) fn offered(&mut self, from: usize, term: u64, at: Place, now_ms: u64, out: &mut Outbox) -> bool {
        self.follow(from, term, now_ms, out) && at.lsn > self.commit
    }

    /// That state is here. Whether the log goes on behind it.
    pub(crate) fn installed(&mut self, at: Place, out: &mut Outbox) -> bool {
        let goes_on = self.log.replace(at);
        self.commit = self.commit.max(at.lsn);
        self.matching = self.matching.max(at.lsn);
        if let Role::Follower { leader: Some(leader) } = self.role {
            self.say_matched(leader, 0, out);
        }
        goes_on
    }

    /// Entries up to here are gone from the log.
    pub(crate) fn purged(&mut self, to: u64) {
        self.log.purge(to);
    }

    /// A greater term ends whatever this member was.
    fn learn(&mut self, term: u64, now_ms: u64, out: &mut Outbox) {
        if term > self.ballot.term {
            self.ballot = Ballot { term, voted: None };
            out.persist = true;
            self.role = Role::Follower { leader: None };
            self.matching = 0;
            self.wait(now_ms);
        }
    }

    /// A leader of that term spoke; whether it is this member's.
    fn follow(&mut self, from: usize, term: u64, now_ms: u64, out: &mut Outbox) -> bool {
        self.learn(term, now_ms, out);
        if term < self.ballot.term {
            let (term, last) = (self.ballot.term, self.log.last);
            out.send.push((from, Message::Appended { term, matched: None, last, round: 0 }));
            return false;
        }
        assert!(!self.leads(), "two leaders in term {term}");
        self.role = Role::Follower { leader: Some(from) };
        self.heard_ms = Some(now_ms);
        self.wait(now_ms);
        true
    }

    fn on_vote(&mut self, from: usize, (term, end, asked): (u64, Place, bool), now_ms: u64, out: &mut Outbox) {
        let is_bound = !asked && (self.keeps_word(now_ms) || self.has_lease(now_ms));
        if is_bound || now_ms < self.silent_until_ms {
            out.send.push((from, Message::Voted { term: self.ballot.term, granted: false }));
            return;
        }
        self.learn(term, now_ms, out);
        let free = self.ballot.voted.is_none_or(|voted| voted == from);
        let granted = term == self.ballot.term && free && end >= self.log.end() && !self.leads();
        if granted {
            self.ballot.voted = Some(from);
            out.persist = true;
            self.wait(now_ms);
        }
        out.send.push((from, Message::Voted { term: self.ballot.term, granted }));
    }

    fn count(&mut self, now_ms: u64, out: &mut Outbox) {
        match &self.role {
            Role::PreCandidate { granted } if granted.len() >= self.majority() => self.stand(false, now_ms, out),
            Role::Candidate { granted } if granted.len() >= self.majority() => self.lead(now_ms, out),
            Role::PreCandidate { .. } | Role::Candidate { .. } | Role::Follower { .. } | Role::Leader(_) => {}
        }
    }

    fn stand(&mut self, asked: bool, now_ms: u64, out: &mut Outbox) {
        self.ballot = Ballot { term: self.ballot.term + 1, voted: Some(self.own) };
        out.persist = true;
        self.role = Role::Candidate { granted: BTreeSet::from([self.own]) };
        self.wait(now_ms);
        let (term, end) = (self.ballot.term, self.log.end());
        self.ask(&Message::Vote { term, end, asked }, out);
    }

    fn lead(&mut self, now_ms: u64, out: &mut Outbox) {
        let next = self.log.last + 1;
        let first = self.propose(None, out);
        let peers = self.others.iter().map(|other| (*other, Peer { next, ..Peer::default() })).collect();
        self.role = Role::Leader(Leading { peers, first, ..Leading::default() });
        self.beat(now_ms, out);
    }

    /// Takes what a leader sent, as far as it continues the log.
    fn take(
        &mut self,
        from: usize,
        previous: Place,
        records: Vec<Record>,
        (commit, round): (u64, u64),
        out: &mut Outbox,
    ) {
        let purged = self.log.purged.lsn;
        let continues =
            previous.lsn < purged || (previous.lsn <= self.log.last && self.log.term_at(previous.lsn) == previous.term);
        if !continues {
            let (term, last) = (self.ballot.term, self.log.last);
            out.send.push((from, Message::Appended { term, matched: None, last, round }));
            return;
        }
        let end = previous.lsn + records.len() as u64;
        let mut news = false;
        for record in records.into_iter().filter(|record| record.lsn.0 > purged) {
            let lsn = record.lsn.0;
            if lsn <= self.log.last {
                if self.log.term_at(lsn) == record.term {
                    continue;
                }
                assert!(lsn > self.commit, "a committed entry was to be replaced");
                self.log.cut(lsn - 1);
                out.cut = Some(lsn - 1);
            }
            self.log.push(record.term);
            out.write.push(record);
            news = true;
        }
        self.matching = self.matching.max(end);
        self.commit = self.commit.max(commit.min(self.matching));
        // What is new is spoken of once it is synced.
        if !news {
            self.say_matched(from, round, out);
        }
    }

    fn on_appended(
        &mut self,
        from: usize,
        (matched, last, round): (Option<u64>, u64, u64),
        now_ms: u64,
        out: &mut Outbox,
    ) {
        let Role::Leader(leading) = &mut self.role else { return };
        let Some(peer) = leading.peers.get_mut(&from) else { return };
        peer.answered_ms = Some(now_ms);
        peer.round = peer.round.max(round);
        match matched {
            Some(lsn) => {
                peer.matched = peer.matched.max(lsn);
                if std::mem::take(&mut peer.probing) {
                    peer.next = peer.matched + 1;
                    self.ship(from, now_ms, out);
                } else {
                    peer.next = peer.next.max(lsn + 1);
                }
            }
            None => {
                peer.probing = true;
                peer.next = (peer.next - 1).min(last + 1).max(peer.matched + 1);
                // While a snapshot is on its way, heartbeats are enough.
                if peer.next > self.log.purged.lsn || peer.filling_until_ms <= now_ms {
                    self.ship(from, now_ms, out);
                }
            }
        }
        self.advance();
    }

    /// Commits what a majority has on its disks, if it is of this term.
    fn advance(&mut self) {
        let Role::Leader(leading) = &self.role else { return };
        let lsn = self.of_majority(leading.peers.values().map(|peer| peer.matched), self.log.synced);
        if lsn > self.commit && self.log.term_at(lsn) == self.ballot.term {
            self.commit = lsn;
        }
    }
}

#[cfg(test)]
mod tests;
