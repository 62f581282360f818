use bytes::Bytes;
use meridian_types::Lsn;

use super::*;

/// Members whose messages are lost, late and doubled as the dice say, whose syncs take time, who purge, and who lose what was not synced
/// when they crash. A state is the entries that it is made of.
struct World {
    dice: Dice,
    now_ms: u64,
    nodes: Vec<Node>,
    flying: Vec<(u64, usize, usize, Message)>,
    committed: Vec<(u64, Option<Bytes>)>,
}

struct Node {
    raft: Raft,
    log: BTreeMap<u64, Record>,
    purged: Place,
    synced: u64,
    ballot: Ballot,
    /// When the sync under way ends, and up to where it brings the log.
    syncing: Option<(u64, u64)>,
    state: Vec<(u64, Option<Bytes>)>,
    down_until_ms: u64,
}

impl World {
    fn new(seed: u64, members: usize) -> World {
        let dice = Dice::new(seed);
        let node = |own| {
            let others = (0..members).filter(|other| *other != own).collect();
            let start = (Journal::default(), 0);
            let raft = Raft::open((own, others), Ballot::default(), start, (0, dice.fork()), &mut Outbox::default());
            let (log, purged, ballot) = (BTreeMap::new(), Place::default(), Ballot::default());
            Node { raft, log, purged, synced: 0, ballot, syncing: None, state: Vec::new(), down_until_ms: 0 }
        };
        let nodes = (0..members).map(node).collect();
        World { dice, now_ms: 0, nodes, flying: Vec::new(), committed: Vec::new() }
    }

    fn perform(&mut self, at: usize, out: Outbox) {
        let node = &mut self.nodes[at];
        if out.persist {
            node.ballot = node.raft.ballot();
        }
        if let Some(after) = out.cut {
            node.log.retain(|lsn, _| *lsn <= after);
            node.synced = node.synced.min(after);
            node.syncing = None;
        }
        node.log.extend(out.write.into_iter().map(|record| (record.lsn.0, record)));
        let last = node.raft.log.last;
        let mut more = Outbox::default();
        if last > node.synced && node.syncing.is_none() {
            node.syncing = Some((self.now_ms + self.dice.between(1, 30), last));
            node.raft.written(last, self.now_ms, &mut more);
        }
        self.fly(at, out.send, out.ship);
        self.fly(at, more.send, more.ship);
    }

    fn fly(&mut self, from: usize, mut send: Vec<(usize, Message)>, ship: Vec<Shipment>) {
        let node = &self.nodes[from];
        for it in ship {
            let (term, previous, commit, round) = (it.term, it.previous, it.commit, it.round);
            let behind = node.log.range(previous.lsn + 1..).take_while(|(lsn, _)| **lsn <= it.until);
            let records = behind.map(|(_, record)| record.clone()).collect();
            let message = match it.fill {
                true => {
                    let lsn = node.state.len() as u64;
                    let pieces = node.state.iter().map(|(_, payload)| payload.clone().unwrap_or_default()).collect();
                    Message::Snapshot { term, at: Place { term: node.raft.term_at(lsn), lsn }, pieces, life: 0 }
                }
                false => Message::Append { term, previous, records, commit, round },
            };
            send.push((it.to, message));
        }
        for (to, message) in send {
            for _ in 0..if self.dice.chance(0.05) { 2 } else { 1 } {
                if !self.dice.chance(0.1) {
                    let late = if self.dice.chance(0.05) { 400 } else { 20 };
                    self.flying.push((self.now_ms + self.dice.between(1, late), from, to, message.clone()));
                }
            }
        }
    }

    fn step(&mut self, at: usize, change: impl FnOnce(&mut Raft, &mut Outbox)) {
        let mut out = Outbox::default();
        change(&mut self.nodes[at].raft, &mut out);
        self.perform(at, out);
    }

    fn arrive(&mut self, from: usize, to: usize, message: Message) {
        let now_ms = self.now_ms;
        let Message::Snapshot { term, at, .. } = message else {
            return self.step(to, |raft, out| raft.step(from, message, now_ms, out));
        };
        let mut wanted = false;
        self.step(to, |raft, out| wanted = raft.offered(from, term, at, now_ms, out));
        if wanted {
            let node = &mut self.nodes[to];
            node.state = self.committed[..usize::try_from(at.lsn).unwrap()].to_vec();
            let mut out = Outbox::default();
            let goes_on = node.raft.installed(at, &mut out);
            node.log.retain(|lsn, _| goes_on && *lsn > at.lsn);
            node.purged = at;
            node.synced = if goes_on { node.synced.max(at.lsn) } else { at.lsn };
            node.syncing = node.syncing.filter(|_| goes_on);
            self.perform(to, out);
        }
    }

    fn restart(&mut self, at: usize) {
        let others = (0..self.nodes.len()).filter(|other| *other != at).collect();
        let node = &mut self.nodes[at];
        // Some of what was not synced may be there all the same.
        let kept = node.synced + self.dice.between(0, node.raft.log.last.saturating_sub(node.synced));
        node.log.retain(|lsn, _| *lsn <= kept);
        let mut journal = Journal::default();
        journal.replace(node.purged);
        for record in node.log.values() {
            journal.push(record.term);
        }
        (journal.written, journal.synced) = (journal.last, journal.last);
        (node.synced, node.syncing) = (journal.last, None);
        // As of some time ago.
        let applied = self.dice.between(node.purged.lsn, node.state.len() as u64);
        node.state.truncate(usize::try_from(applied).unwrap());
        let mut out = Outbox::default();
        node.raft =
            Raft::open((at, others), node.ballot, (journal, applied), (self.now_ms, self.dice.fork()), &mut out);
        node.down_until_ms = self.now_ms + self.dice.between(0, 3_000);
        self.flying.retain(|(_, _, to, _)| *to != at);
        self.perform(at, out);
    }

    fn apply(&mut self, at: usize) {
        let node = &mut self.nodes[at];
        while (node.state.len() as u64) < node.raft.applicable() {
            let record = &node.log[&(node.state.len() as u64 + 1)];
            node.state.push((record.term, record.payload.clone()));
            let place = node.state.len() - 1;
            match self.committed.get(place) {
                Some(known) => assert_eq!(*known, node.state[place], "member {at} applied something else at {place}"),
                None => self.committed.push(node.state[place].clone()),
            }
        }
        if self.dice.chance(0.01) {
            let to = self.dice.between(node.purged.lsn, node.state.len() as u64);
            node.purged = Place { term: node.raft.term_at(to), lsn: to };
            node.log.retain(|lsn, _| *lsn > to);
            node.raft.purged(to);
        }
    }

    fn pass(&mut self) {
        self.now_ms += 5;
        let now_ms = self.now_ms;
        let mut due = Vec::new();
        self.flying.retain(|it| {
            it.0 > now_ms || {
                due.push(it.clone());
                false
            }
        });
        for (_, from, to, message) in due {
            if self.nodes[to].down_until_ms <= now_ms {
                self.arrive(from, to, message);
            }
        }
        for at in 0..self.nodes.len() {
            if self.nodes[at].down_until_ms > now_ms {
                continue;
            }
            self.step(at, |raft, out| raft.tick(now_ms, out));
            if let Some((_, lsn)) = self.nodes[at].syncing.take_if(|(at, _)| *at <= now_ms) {
                self.nodes[at].synced = self.nodes[at].synced.max(lsn);
                self.step(at, |raft, out| raft.synced(lsn, out));
            }
            if self.nodes[at].raft.leads() && self.dice.chance(0.1) {
                let payload = Bytes::from(format!("{at} {now_ms}"));
                self.step(at, |raft, out| {
                    raft.propose(Some(payload), out);
                });
            }
            self.apply(at);
            let others = self.nodes.len();
            let to = self.dice.index(others);
            if self.dice.chance(0.002) && self.nodes[at].raft.could_take_over(to, now_ms) {
                self.step(at, |raft, out| raft.hand_over(to, out));
            }
            if self.dice.chance(0.001) {
                self.restart(at);
            }
        }
    }
}

#[test]
fn members_apply_the_same_whatever_the_network_disks_and_crashes_do() {
    let (mut filled, mut handed) = (0, 0);
    for seed in 0..120 {
        let mut world = World::new(seed, if seed % 4 == 0 { 5 } else { 3 });
        for _ in 0..6_000 {
            world.pass();
            filled += world.flying.iter().filter(|it| matches!(it.3, Message::Snapshot { .. })).count();
            handed += world.flying.iter().filter(|it| matches!(it.3, Message::Vote { asked: true, .. })).count();
        }
        assert!(world.committed.len() > 150, "seed {seed}: {}", world.committed.len());
    }
    assert!(filled > 0 && handed > 0, "{filled} {handed}");
}

/// Who may read on a majority's word has everything that anybody committed (CON-1).
#[test]
fn a_lease_is_held_by_nobody_who_lacks_what_was_committed() {
    let mut held = 0;
    for seed in 1_000..1_120 {
        let mut world = World::new(seed, 3);
        for _ in 0..6_000 {
            world.pass();
            let most = world.nodes.iter().map(|node| node.raft.commit()).max().unwrap();
            for (at, node) in world.nodes.iter().enumerate().filter(|(_, node)| node.down_until_ms <= world.now_ms) {
                if node.raft.has_lease(world.now_ms) && node.raft.first().is_some_and(|it| node.raft.commit() >= it) {
                    held += 1;
                    assert_eq!(node.raft.commit(), most, "seed {seed}: member {at} at {} ms", world.now_ms);
                }
            }
        }
    }
    assert!(held > 1_000);
}

fn lone(log: Journal, applied: u64) -> (Raft, Outbox) {
    let mut out = Outbox::default();
    (Raft::open((0, Vec::new()), Ballot { term: 3, voted: None }, (log, applied), (0, Dice::new(1)), &mut out), out)
}

#[test]
fn alone_a_member_leads_at_once_and_what_is_synced_is_committed() {
    let mut log = Journal::default();
    log.push(3);
    let (mut raft, out) = lone(log, 0);
    assert_eq!((raft.leader(), raft.term(), raft.first()), (Some(0), 4, Some(2)));
    assert_eq!((out.persist, out.write[0].lsn, out.send.len()), (true, Lsn(2), 0));
    assert_eq!(raft.applicable(), 0);
    raft.synced(2, &mut Outbox::default());
    assert_eq!(raft.applicable(), 2);
}
