//! Moving shards between the nodes of a region: what the record says of who votes, the leader of each group carries out (design 5).
//!
//! ```text
//!   follow (a learner) ──► wait until it has nearly all ──► vote ──► forget learners that are not wanted ──► tell the metadata plane
//!                                                             └─ a leader that is to go hands over before, and the next one goes on
//! ```
//! Every look begins anew from what the group and the record say, so whoever leads next goes on where the last one stopped, and a
//! change that is taken back is carried out like any other. The record is the truth, also when nothing changes: a group that a
//! leader with an old copy of it has moved is moved back. Under a lease, so that such a leader is at most one lease old.
//!
//! One shard at a time is filled per leader; the leaders of a region's shards work side by side. Deliberately not here: what may be asked (`metadata/core`,
//! [`meridian_types::MembersChange`]), and pieces of snapshots (`consensus`).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use meridian_consensus::{ChangeError, Members};
use meridian_failpoint::failpoint;
use meridian_types::{NodeId, ShardId, Topology};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::node::{Node, ShardNode};

/// How often shards are looked at while they move.
const MOVING_LOOK: Duration = Duration::from_millis(200);

/// How often otherwise.
const IDLE_LOOK: Duration = Duration::from_secs(5);

/// How long a leader may take to hand over, or to tell what it has done, before it is tried again.
const PATIENCE: Duration = Duration::from_secs(3);

/// What brings a group nearer to who is to vote in it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    /// Has this node follow.
    Follow(NodeId),
    /// Until who follows has nearly all there is.
    Wait,
    /// Makes these the voters.
    Vote(BTreeSet<NodeId>),
    /// Has one of those who are to vote lead.
    HandOver,
    /// This node follows no more.
    Forget(NodeId),
    /// Who is to vote does, and nobody else is there.
    Done,
}

/// The next step of the group that `me` leads.
fn next(me: NodeId, members: &Members, wanted: &[NodeId]) -> Step {
    let target: BTreeSet<NodeId> = wanted.iter().copied().collect();
    let follows = |node: &NodeId| members.voters.contains(node) || members.learners.contains_key(node);
    if let Some(new) = wanted.iter().find(|node| !follows(node)) {
        return Step::Follow(*new);
    }
    if wanted.iter().any(|node| members.learners.get(node) == Some(&false)) {
        return Step::Wait;
    }
    if !target.contains(&me) {
        // Who hands over must not be the one whose vote the others need: first they vote, too.
        let beside: BTreeSet<NodeId> = target.iter().copied().chain([me]).collect();
        let able = members.settled && !target.is_disjoint(&members.voters);
        return if able { Step::HandOver } else { Step::Vote(beside) };
    }
    if members.voters != target || !members.settled {
        return Step::Vote(target);
    }
    match members.learners.keys().find(|node| !target.contains(node)) {
        Some(stray) => Step::Forget(*stray),
        None => Step::Done,
    }
}

/// Carries out what the record says of who votes.
pub(crate) async fn follow_record(node: Arc<Node>) {
    let mut changes = node.authority.topology_changes();
    let mut ticks = interval(MOVING_LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked = Instant::now();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            changed = changes.changed() => if changed.is_err() { return },
        }
        // Lease first, topology second: what is carried out is at most one lease old.
        let lease = node.authority.lease_holds();
        let topology = node.authority.topology();
        let moving = topology.changes.contains_key(&node.region());
        if lease && (moving || looked.elapsed() >= IDLE_LOOK) {
            looked = Instant::now();
            node.carry_out(&topology).await;
        }
    }
}

impl Node {
    async fn carry_out(&self, topology: &Topology) {
        let mut moved = BTreeSet::new();
        let mut filling = false;
        for shard in self.shards.iter().filter(|shard| shard.board.leads()) {
            let change = topology.changes.get(&self.region()).filter(|change| change.pending.contains(&shard.id));
            let wanted = change.map_or_else(|| topology.voters(self.region(), shard.id), |it| it.target.as_slice());
            if wanted.is_empty() {
                continue;
            }
            match self.advance(shard, wanted, filling).await {
                Some(Step::Done) if change.is_some() => drop(moved.insert(shard.id)),
                Some(Step::Done) | None => {}
                Some(_) => filling = true,
            }
        }
        if let Some(change) = topology.changes.get(&self.region()).filter(|_| !moved.is_empty()) {
            self.tell_moved(moved, change.index).await;
        }
    }

    /// Steps until something has to be waited for; the step that it came to. While another shard is being filled nobody new is brought in.
    async fn advance(&self, shard: &ShardNode, wanted: &[NodeId], filling: bool) -> Option<Step> {
        let group = shard.group.membership()?;
        loop {
            let step = next(self.place.node, &group.members()?, wanted);
            if step == Step::Done || step == Step::Wait || (filling && matches!(step, Step::Follow(_))) {
                return Some(step);
            }
            failpoint("members.step.before");
            let done = match &step {
                Step::Follow(node) => group.begin_to_follow(*node).await,
                Step::Vote(voters) => group.change_voters(&voters.iter().copied().collect::<Vec<_>>()).await,
                Step::Forget(node) => group.forget(*node).await,
                Step::HandOver => self.hand_to_one_of(shard, wanted).await,
                Step::Wait | Step::Done => Ok(()),
            };
            failpoint("members.step.after");
            if let Err(why) = done {
                tracing::info!(region = %self.region(), shard = %shard.id, ?step, %why, "the shard does not move yet");
                return Some(step);
            }
            tracing::info!(region = %self.region(), shard = %shard.id, ?step, "the shard moves");
            if step == Step::HandOver {
                return Some(step);
            }
        }
    }

    async fn hand_to_one_of(&self, shard: &ShardNode, wanted: &[NodeId]) -> Result<(), ChangeError> {
        let able = |node: &&NodeId| **node != self.place.node && shard.group.could_take_over(**node);
        let heir = wanted.iter().find(able).ok_or(ChangeError::Unknown)?;
        timeout(PATIENCE, shard.group.hand_over(*heir)).await.unwrap_or(Err(ChangeError::Unknown))
    }

    async fn tell_moved(&self, shards: BTreeSet<ShardId>, change: u64) {
        failpoint("members.tell.before");
        let count = shards.len();
        match timeout(PATIENCE, self.authority.tell_moved(shards, change)).await {
            Ok(Ok(())) => tracing::info!(region = %self.region(), count, "shards have moved"),
            // The next look tells it again.
            Ok(Err(why)) => {
                tracing::debug!(region = %self.region(), %why, "that shards have moved is not on record yet")
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn ids(ids: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
        ids.into_iter().map(NodeId).collect()
    }

    fn members(voters: &[u64], learners: &[(u64, bool)]) -> Members {
        let learners = learners.iter().map(|(node, has)| (NodeId(*node), *has)).collect();
        Members { voters: ids(voters.iter().copied()), settled: true, learners }
    }

    fn wanted(nodes: &[u64]) -> Vec<NodeId> {
        nodes.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn who_is_new_follows_first_and_votes_once_it_has_nearly_all() {
        let me = NodeId(1);
        let to = wanted(&[1, 2, 4]);
        assert_eq!(next(me, &members(&[1, 2, 3], &[]), &to), Step::Follow(NodeId(4)));
        assert_eq!(next(me, &members(&[1, 2, 3], &[(4, false)]), &to), Step::Wait);
        assert_eq!(next(me, &members(&[1, 2, 3], &[(4, true)]), &to), Step::Vote(ids([1, 2, 4])));
        assert_eq!(next(me, &members(&[1, 2, 4], &[]), &to), Step::Done);
    }

    #[test]
    fn a_leader_that_is_to_go_hands_over_and_alone_it_has_the_other_vote_first() {
        let me = NodeId(3);
        assert_eq!(next(me, &members(&[1, 2, 3], &[(4, true)]), &wanted(&[1, 2, 4])), Step::HandOver);
        assert_eq!(next(me, &members(&[3], &[(4, true)]), &wanted(&[4])), Step::Vote(ids([3, 4])));
        assert_eq!(next(me, &members(&[3, 4], &[]), &wanted(&[4])), Step::HandOver);
        assert_eq!(next(NodeId(4), &members(&[3, 4], &[]), &wanted(&[4])), Step::Vote(ids([4])));
    }

    #[test]
    fn what_a_change_that_was_taken_back_left_behind_goes() {
        let back = wanted(&[1, 2, 3]);
        assert_eq!(next(NodeId(1), &members(&[1, 2, 3], &[(4, false)]), &back), Step::Forget(NodeId(4)));
        let half_way = Members { settled: false, ..members(&[1, 2, 3], &[]) };
        assert_eq!(next(NodeId(1), &half_way, &back), Step::Vote(ids([1, 2, 3])));
    }

    /// A group as Raft would have it: a change of voters needs a majority of those there were and of those there will be.
    struct Model {
        members: Members,
        leader: NodeId,
        gone: BTreeSet<NodeId>,
    }

    impl Model {
        fn perform(&mut self, step: &Step) {
            match step {
                Step::Follow(node) => drop(self.members.learners.insert(*node, false)),
                Step::Wait => self.members.learners.values_mut().for_each(|has| *has = true),
                Step::Vote(voters) => {
                    assert!(voters.contains(&self.leader), "who leads counts the votes");
                    let joins = |node: &NodeId| self.members.learners.get(node) == Some(&true);
                    assert!(voters.iter().all(|node| self.members.voters.contains(node) || joins(node)));
                    assert!(self.has_majority(&self.members.voters) && self.has_majority(voters));
                    self.members = Members { voters: voters.clone(), settled: true, learners: self.rest(voters) };
                }
                Step::HandOver | Step::Done => {}
                Step::Forget(node) => drop(self.members.learners.remove(node)),
            }
        }

        fn rest(&self, voters: &BTreeSet<NodeId>) -> BTreeMap<NodeId, bool> {
            let stays = |(node, _): &(NodeId, bool)| !voters.contains(node);
            self.members.learners.clone().into_iter().filter(stays).collect()
        }

        fn has_majority(&self, of: &BTreeSet<NodeId>) -> bool {
            of.difference(&self.gone).count() > of.len() / 2
        }
    }

    proptest! {
        /// From wherever a group is, whoever of it leads, and with one node of three gone: it comes to vote as is wanted within a few
        /// steps, and nobody is made to vote who lacks much.
        #[test]
        fn a_group_comes_to_vote_as_is_wanted_whoever_leads(
            voters in prop::sample::subsequence(vec![1u64, 2, 3, 4, 5], 1..=5),
            followers in prop::collection::btree_map(1u64..7, any::<bool>(), 0..3),
            goal in prop::sample::subsequence(vec![1u64, 2, 3, 4, 5, 6], 1..=5),
            seed in any::<prop::sample::Index>(),
        ) {
            let voters = ids(voters);
            let learners = followers.into_iter().map(|(node, has)| (NodeId(node), has));
            let learners = learners.filter(|(node, _)| !voters.contains(node)).collect();
            let leader = *seed.get(&voters.iter().copied().collect::<Vec<_>>());
            // One that is to go anyway is gone already, where the others are a majority without it.
            let leaves = voters.iter().find(|node| !goal.contains(&node.0) && **node != leader && voters.len() > 2);
            let gone = leaves.into_iter().copied().collect();
            let mut group = Model { members: Members { voters, settled: true, learners }, leader, gone };
            let goal = wanted(&goal);
            for _ in 0..40 {
                let step = next(group.leader, &group.members, &goal);
                if step == Step::Done {
                    break;
                }
                if step == Step::HandOver {
                    let heir = goal.iter().find(|node| group.members.voters.contains(node));
                    prop_assert!(heir.is_some(), "there is somebody to hand over to");
                    group.leader = heir.copied().unwrap_or_default();
                }
                group.perform(&step);
            }
            prop_assert_eq!(next(group.leader, &group.members, &goal), Step::Done);
            prop_assert_eq!(group.members.voters, goal.into_iter().collect::<BTreeSet<_>>());
        }
    }
}
