//! Members come and go, logs are purged under those who are away, and whoever returns is given a snapshot and killed in the middle
//! of taking it in (rows 15 of the table of bugs: openraft #1808, #1802, etcd #18055, redisraft #49).
//!
//! `MERIDIAN_SEED` chooses who goes, who leads and where it is killed; a failure prints it. Threads and elections are real, so a
//! seed gives the same plan, not the same moments: nothing here rests on how long anything takes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use meridian_consensus::{Group, ProposeError};
use meridian_types::{Lsn, NodeId};

use super::ledger::Stage;
use super::world::{World, eventually, run};

/// Voters after each round: 3 <-> 5 <-> 7.
const SIZES: [usize; 5] = [5, 7, 5, 3, 5];

/// What is written while somebody is away: more than the janitor needs to purge the log.
const BURST: usize = 400;

/// A small generator (xorshift64*): what a seed chooses must not depend on a library's version.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % bound
    }

    fn one_of(&mut self, among: &[NodeId]) -> NodeId {
        among[self.below(among.len())]
    }
}

/// Who runs, for the writer.
type Running = Arc<Mutex<BTreeMap<NodeId, Group>>>;

/// What a client was told.
#[derive(Clone, Debug, Default)]
struct Told {
    acknowledged: BTreeSet<String>,
    /// Their answers were lost: they are there once, or never.
    unknown: BTreeSet<String>,
}

/// Proposes one line after the other, wherever somebody leads.
struct Writer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Writer {
    fn start(round: usize, running: &Running, told: &Arc<Mutex<Told>>) -> Writer {
        let stop = Arc::new(AtomicBool::new(false));
        let (running, told, stopped) = (Arc::clone(running), Arc::clone(told), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            for line in (0..).map(|n| format!("writer {round:02} {n:06}")) {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let leads = |group: &&Group| group.leadership().borrow().leads;
                let leader = running.lock().unwrap().values().find(leads).cloned();
                let Some(leader) = leader else {
                    std::thread::sleep(Duration::from_millis(10));
                    continue;
                };
                let answer = runtime.block_on(propose(&leader, &line));
                note(&mut told.lock().unwrap(), line, answer);
            }
        });
        Writer { stop, thread }
    }

    fn end(self) {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
    }
}

/// Whoever gives up waiting does not know what became of it.
async fn propose(group: &Group, line: &str) -> Result<Lsn, ProposeError> {
    let proposal = group.propose(Bytes::from(line.to_owned()))?;
    let answer = tokio::time::timeout(Duration::from_secs(5), proposal).await;
    answer.unwrap_or(Err(ProposeError::Unknown)).map(|applied| applied.lsn)
}

fn note(told: &mut Told, line: String, answer: Result<Lsn, ProposeError>) -> Option<Lsn> {
    match answer {
        Ok(lsn) => {
            told.acknowledged.insert(line);
            return Some(lsn);
        }
        Err(ProposeError::Unknown) => drop(told.unknown.insert(line)),
        // It did not take effect.
        Err(_) => {}
    }
    None
}

/// The group, and what is known of it.
struct Churn {
    world: World,
    dice: Dice,
    voters: Vec<NodeId>,
    running: Running,
    told: Arc<Mutex<Told>>,
}

impl Churn {
    fn new(seed: u64) -> Churn {
        let mut world = World::new(7, 3);
        world.start_all();
        let voters = world.voters();
        let (running, told) = (Running::default(), Arc::default());
        let churn = Churn { world, dice: Dice(seed | 1), voters, running, told };
        churn.publish();
        churn
    }

    fn publish(&self) {
        let groups = self.world.nodes.iter().map(|(id, node)| (*id, node.group.clone()));
        *self.running.lock().unwrap() = groups.collect();
    }

    fn start(&mut self, node: NodeId) {
        self.world.start(node);
        self.publish();
    }

    fn stop(&mut self, node: NodeId) {
        self.running.lock().unwrap().remove(&node);
        self.world.stop(node);
    }

    /// One round: somebody is away while much is written, the log is purged and the members change; then it returns.
    /// Whether it was by a snapshot.
    fn round(&mut self, round: usize, size: usize) -> bool {
        let writer = Writer::start(round, &self.running, &self.told);
        let leader = self.world.leader();
        // Now and then it is the leader.
        let others: Vec<_> = self.voters.iter().copied().filter(|node| *node != leader).collect();
        let away = if self.dice.below(3) == 0 { leader } else { self.dice.one_of(&others) };
        let away_at = *self.world.nodes[&away].group.applied().borrow();
        self.stop(away);
        let last = self.burst(round);
        self.change(size, away);
        self.purge(last, away_at);
        // One whose log was purged before has nothing to begin with once its state is gone, and refuses to start.
        let stages = if round == 0 { [Stage::Torn; 2] } else { [Stage::Before, Stage::After] };
        let stage = stages[self.dice.below(2)];
        let by_snapshot = self.return_by_snapshot(away, last, stage);
        writer.end();
        self.world.put(&format!("healed {round}"));
        self.check();
        let told = self.told.lock().unwrap();
        let way = if by_snapshot { format!("a snapshot, killed {stage:?}") } else { "the log".to_owned() };
        eprintln!(
            "round {round}: {size} voters, {} acknowledged, {} unknown, back by {way}",
            told.acknowledged.len(),
            told.unknown.len()
        );
        by_snapshot
    }

    /// Writes much at once; returns the last position.
    fn burst(&self, round: usize) -> Lsn {
        let lines: Vec<_> = (0..BURST).map(|n| format!("burst {round:02} {n:06}")).collect();
        let mut last = None;
        for line in lines {
            let answer = eventually("a leader that takes it", || {
                let leader = self.world.leader();
                let node = &self.world.nodes[&leader];
                match run(node, propose(&node.group, &line)) {
                    Err(ProposeError::NotLeader { .. } | ProposeError::Full) => None,
                    answer => Some(answer),
                }
            });
            last = note(&mut self.told.lock().unwrap(), line, answer).or(last);
        }
        last.unwrap()
    }

    /// Makes `size` nodes the voters, by chance; `away` stays one of them.
    fn change(&mut self, size: usize, away: NodeId) {
        let mut wanted = vec![away];
        let mut rest: Vec<_> = self.world.ids().into_iter().filter(|node| *node != away).collect();
        while wanted.len() < size {
            wanted.push(rest.swap_remove(self.dice.below(rest.len())));
        }
        for node in wanted
            .iter()
            .filter(|node| **node != away && !self.world.nodes.contains_key(node))
            .copied()
            .collect::<Vec<_>>()
        {
            self.start(node);
        }
        eventually("the change of members", || {
            let leader = self.world.leader();
            let node = &self.world.nodes[&leader];
            match run(node, node.group.change_voters(&wanted)) {
                Ok(()) => Some(()),
                Err(why) => {
                    eprintln!("not changed yet: {why}");
                    None
                }
            }
        });
        // A leader that is no voter any more leads until it has seen the change through.
        let gone: Vec<_> = self.world.nodes.keys().copied().filter(|node| !wanted.contains(node)).collect();
        gone.into_iter().for_each(|node| self.stop(node));
        self.voters = wanted;
    }

    /// Has everybody purge the log, so that whoever leads can't send it to the node that is away and was at `away_at`.
    fn purge(&self, last: Lsn, away_at: Lsn) {
        for node in self.world.nodes.values() {
            node.group.allow_purge(last);
        }
        // What it may have had and not applied.
        let reaches = Lsn(away_at.0 + 8);
        let trimmed = |node: &NodeId| {
            let node = &self.world.nodes[node];
            run(node, node.group.read_log(reaches, 1)).is_err()
        };
        eventually("a leader that has purged", || {
            let leader = self.world.leader();
            if trimmed(&leader) {
                return Some(());
            }
            // A leader keeps what it may still send to a voter that is down; its followers don't.
            let to = self.voters.iter().find(|node| self.world.nodes.contains_key(node) && trimmed(node));
            if let Some(to) = to {
                let node = &self.world.nodes[&leader];
                drop(run(node, node.group.transfer_leadership(*to)));
            }
            None
        });
    }

    /// The node returns, is killed while it takes a snapshot in, and returns again; then it restarts once more, with what it was given.
    /// False if the log reached it after all: others may have come to lead.
    fn return_by_snapshot(&mut self, away: NodeId, last: Lsn, stage: Stage) -> bool {
        let gate = self.world.gate(away);
        gate.close_at(stage);
        self.start(away);
        let applied = |world: &World| *world.nodes[&away].group.applied().borrow();
        let by_snapshot = eventually("a snapshot", || match gate.is_reached() {
            true => Some(true),
            false => (applied(&self.world) >= last).then_some(false),
        });
        if by_snapshot {
            self.running.lock().unwrap().remove(&away);
            self.world.kill_at(away, &gate);
        } else {
            gate.open();
            self.stop(away);
        }
        self.start(away);
        eventually("what was written meanwhile", || (applied(&self.world) >= last).then_some(()));
        self.stop(away);
        self.start(away);
        by_snapshot
    }

    /// Nothing acknowledged is lost, nothing is there twice, in the writer's order; all have applied the same, and know the same members.
    fn check(&self) {
        let expected: BTreeSet<_> = self.voters.iter().copied().collect();
        let members = |node: &NodeId| self.world.nodes[node].group.voters().into_iter().collect::<BTreeSet<_>>();
        eventually("the same members everywhere", || {
            let other = self.voters.iter().find(|node| members(node) != expected);
            if let Some(node) = other {
                std::thread::sleep(Duration::from_millis(200));
                eprintln!("node {node} knows {:?}, not {expected:?}", members(node));
            }
            other.is_none().then_some(())
        });
        let books = eventually("equal books", || {
            let book = |node: &NodeId| self.world.nodes[node].book.lock().unwrap().lines.clone();
            let books: Vec<_> = self.voters.iter().map(book).collect();
            books.windows(2).all(|pair| pair[0] == pair[1]).then_some(books)
        });
        let lines: Vec<String> = books[0].iter().map(|(_, line)| String::from_utf8(line.to_vec()).unwrap()).collect();
        let told = self.told.lock().unwrap();
        // What heals is proposed until it is answered.
        let lines: Vec<String> = lines.into_iter().filter(|line| !line.starts_with("healed")).collect();
        let there: BTreeSet<_> = lines.iter().cloned().collect();
        assert_eq!(there.len(), lines.len(), "something is there twice");
        let lost: Vec<_> = told.acknowledged.difference(&there).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        let stray = |line: &&String| !told.acknowledged.contains(*line) && !told.unknown.contains(*line);
        let strays: Vec<_> = lines.iter().filter(stray).collect();
        assert!(strays.is_empty(), "refused, and there all the same: {strays:?}");
        let written: Vec<_> = lines.iter().filter(|line| line.starts_with("writer")).collect();
        assert!(written.is_sorted(), "out of the writer's order");
    }
}

#[test]
fn members_come_and_go_while_logs_are_purged_and_snapshots_are_cut_short_and_nothing_acknowledged_is_lost() {
    let seed = std::env::var("MERIDIAN_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(15);
    eprintln!("reproduce: MERIDIAN_SEED={seed} cargo test -p meridian-consensus --test groups churn");
    let mut churn = Churn::new(seed);
    let by_snapshot = SIZES.into_iter().enumerate().filter(|(round, size)| churn.round(*round, *size)).count();
    assert!(by_snapshot > 0, "nobody came back by a snapshot");
}
