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
use meridian_types::{NodeId, ShardId};
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

/// The next step of the group that `me` leads; `able` tells whether one of those who are to vote could take over from it at once.
fn next(me: NodeId, members: &Members, wanted: &[NodeId], able: bool) -> Step {
    let target: BTreeSet<NodeId> = wanted.iter().copied().collect();
    let follows = |node: &NodeId| members.voters.contains(node) || members.learners.contains_key(node);
    if let Some(new) = wanted.iter().find(|node| !follows(node)) {
        return Step::Follow(*new);
    }
    if wanted.iter().any(|node| members.learners.get(node) == Some(&false)) {
        return Step::Wait;
    }
    if !target.contains(&me) {
        if able && members.settled {
            return Step::HandOver;
        }
        // Nobody can take over yet who is to stay: first all of them vote, too.
        let beside: BTreeSet<NodeId> = target.iter().copied().chain([me]).collect();
        return if members.voters == beside && members.settled { Step::Wait } else { Step::Vote(beside) };
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
        let moving = node.authority.topology().changes.contains_key(&node.region());
        if moving || looked.elapsed() >= IDLE_LOOK {
            looked = Instant::now();
            node.carry_out().await;
        }
    }
}

/// What the record says of a shard.
struct Wanted {
    voters: Vec<NodeId>,
    /// The change that asks for it; `None` when nothing changes.
    change: Option<u64>,
}

impl Node {
    async fn carry_out(&self) {
        let mut filling = false;
        for shard in self.shards.iter().filter(|shard| shard.board.leads()) {
            match self.advance(shard, filling).await {
                Some((Step::Done, Some(change))) => self.tell_moved(shard.id, change).await,
                Some((Step::Done, None)) | None => {}
                Some(_) => filling = true,
            }
        }
    }

    /// What is on record, at most one lease old: lease first, topology second.
    fn wanted(&self, shard: ShardId) -> Option<Wanted> {
        let lease = self.authority.lease_holds();
        let topology = self.authority.topology();
        let change = topology.changes.get(&self.region()).filter(|change| change.pending.contains(&shard));
        let voters = change.map_or_else(|| topology.voters(self.region(), shard), |it| it.target.as_slice());
        let wanted = Wanted { voters: voters.to_vec(), change: change.map(|change| change.index) };
        (lease && !voters.is_empty()).then_some(wanted)
    }

    /// Steps until something has to be waited for; the step that it came to, and for which change. While another shard is being filled
    /// nobody new is brought in.
    async fn advance(&self, shard: &ShardNode, filling: bool) -> Option<(Step, Option<u64>)> {
        let group = shard.group.membership()?;
        loop {
            let Wanted { voters: wanted, change } = self.wanted(shard.id)?;
            let heir = self.heir(shard, &wanted);
            let step = next(self.place.node, &group.members()?, &wanted, heir.is_some());
            if step == Step::Done || step == Step::Wait || (filling && matches!(step, Step::Follow(_))) {
                return Some((step, change));
            }
            let done = match &step {
                Step::Follow(node) => group.begin_to_follow(*node).await,
                Step::Vote(voters) => group.change_voters(&voters.iter().copied().collect::<Vec<_>>()).await,
                Step::Forget(node) => group.forget(*node).await,
                Step::HandOver => self.hand_to(shard, heir).await,
                Step::Wait | Step::Done => Ok(()),
            };
            if let Err(why) = done {
                tracing::info!(region = %self.region(), shard = %shard.id, ?step, %why, "the shard does not move yet");
                return Some((step, change));
            }
            tracing::info!(region = %self.region(), shard = %shard.id, ?step, "the shard moves");
            if step == Step::HandOver {
                return Some((step, change));
            }
        }
    }

    /// One of those who are to vote that could take over at once.
    fn heir(&self, shard: &ShardNode, wanted: &[NodeId]) -> Option<NodeId> {
        let able = |node: &&NodeId| **node != self.place.node && shard.group.could_take_over(**node);
        wanted.iter().find(able).copied()
    }

    async fn hand_to(&self, shard: &ShardNode, heir: Option<NodeId>) -> Result<(), ChangeError> {
        let heir = heir.ok_or(ChangeError::Unknown)?;
        timeout(PATIENCE, shard.group.hand_over(heir)).await.unwrap_or(Err(ChangeError::Unknown))
    }

    async fn tell_moved(&self, shard: ShardId, change: u64) {
        match timeout(PATIENCE, self.authority.tell_moved([shard].into(), change)).await {
            Ok(Ok(())) => tracing::info!(region = %self.region(), %shard, "the shard has moved"),
            // The next look tells it again.
            Ok(Err(why)) => {
                tracing::debug!(region = %self.region(), %shard, %why, "that it has moved is not on record yet")
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
        assert_eq!(next(me, &members(&[1, 2, 3], &[]), &to, true), Step::Follow(NodeId(4)));
        assert_eq!(next(me, &members(&[1, 2, 3], &[(4, false)]), &to, true), Step::Wait);
        assert_eq!(next(me, &members(&[1, 2, 3], &[(4, true)]), &to, true), Step::Vote(ids([1, 2, 4])));
        assert_eq!(next(me, &members(&[1, 2, 4], &[]), &to, true), Step::Done);
    }

    #[test]
    fn a_leader_that_is_to_go_hands_over_and_alone_it_has_the_other_vote_first() {
        let me = NodeId(3);
        assert_eq!(next(me, &members(&[1, 2, 3], &[(4, true)]), &wanted(&[1, 2, 4]), true), Step::HandOver);
        assert_eq!(next(me, &members(&[3], &[(4, true)]), &wanted(&[4]), false), Step::Vote(ids([3, 4])));
        assert_eq!(next(me, &members(&[3, 4], &[]), &wanted(&[4]), true), Step::HandOver);
        assert_eq!(next(NodeId(4), &members(&[3, 4], &[]), &wanted(&[4]), false), Step::Vote(ids([4])));
    }

    /// Of those who are to stay the only one that votes is away.
    #[test]
    fn where_nobody_can_take_over_who_is_to_stay_those_who_come_vote_first() {
        let me = NodeId(2);
        let caught_up = members(&[1, 2, 3], &[(4, true), (5, true)]);
        let to = wanted(&[1, 4, 5]);
        assert_eq!(next(me, &caught_up, &to, false), Step::Vote(ids([1, 2, 4, 5])));
        assert_eq!(next(me, &members(&[1, 2, 4, 5], &[]), &to, false), Step::Wait);
        assert_eq!(next(me, &members(&[1, 2, 4, 5], &[]), &to, true), Step::HandOver);
    }

    #[test]
    fn what_a_change_that_was_taken_back_left_behind_goes() {
        let back = wanted(&[1, 2, 3]);
        assert_eq!(next(NodeId(1), &members(&[1, 2, 3], &[(4, false)]), &back, false), Step::Forget(NodeId(4)));
        let half_way = Members { settled: false, ..members(&[1, 2, 3], &[]) };
        assert_eq!(next(NodeId(1), &half_way, &back, false), Step::Vote(ids([1, 2, 3])));
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

        /// Who is to stay, votes, and is there.
        fn heir(&self, goal: &[NodeId]) -> Option<NodeId> {
            let able = |node: &&NodeId| self.members.voters.contains(node) && !self.gone.contains(node);
            goal.iter().find(able).copied()
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
                let heir = group.heir(&goal);
                let step = next(group.leader, &group.members, &goal, heir.is_some());
                if step == Step::Done {
                    break;
                }
                if step == Step::HandOver {
                    prop_assert!(heir.is_some(), "there is somebody to hand over to");
                    group.leader = heir.unwrap_or_default();
                }
                group.perform(&step);
            }
            prop_assert_eq!(next(group.leader, &group.members, &goal, true), Step::Done);
            prop_assert_eq!(group.members.voters, goal.into_iter().collect::<BTreeSet<_>>());
        }
    }
}
