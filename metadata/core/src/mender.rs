//! When a member of a region that has fallen silent is replaced by a spare, by itself (design 5: `repair-after`).
//!
//! Its copies are rebuilt on the spare while a majority of the others serves; so is a node that dies before it has joined. Only while that majority
//! is there: without it nothing can be moved, and a lost region is a matter of failover ([`crate::detect`]). A node that comes back later
//! is a spare.
//!
//! Soft state of a leader, forgotten with the term: a new one measures anew, and may replace later than its predecessor would have, never earlier.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use meridian_types::{MembersChange, Node, NodeId, RegionId, ShardId};

use crate::command::Action;
use crate::lease::LeaseTable;
use crate::state::ClusterState;

/// The leader's memory of who is silent.
#[derive(Debug, Default)]
pub struct Mender {
    term: u64,
    silent: BTreeMap<NodeId, Instant>,
}

impl Mender {
    /// Who is to be replaced now, if anybody: a member without a lease for longer than `after`.
    pub fn look(&mut self, now: Instant, after: Duration, table: &LeaseTable, state: &ClusterState) -> Option<Action> {
        if self.term != table.term() {
            *self = Mender { term: table.term(), ..Mender::default() };
        }
        let is_silent = |node: &NodeId| table.expires(*node) <= now;
        self.silent.retain(|node, _| is_silent(node) && state.serves(*node));
        for node in state.nodes().map(|node| node.id).filter(|node| is_silent(node) && state.serves(*node)) {
            self.silent.entry(node).or_insert(now);
        }
        let due = self.silent.iter().filter(|(_, since)| now.saturating_duration_since(**since) >= after);
        let due = due.filter_map(|(node, _)| state.node(*node));
        let (lost, action) = due.filter_map(|node| Some((node.id, replace(now, node, table, state)?))).next()?;
        // Should somebody take it back, it is not asked for again at once.
        self.silent.insert(lost, now);
        Some(action)
    }
}

fn replace(now: Instant, lost: &Node, table: &LeaseTable, state: &ClusterState) -> Option<Action> {
    let region = lost.region;
    let members = state.voters(region, ShardId(0));
    let live = members.iter().filter(|node| table.is_live(now, **node)).count();
    // One that is to leave anyway is waited for by nobody.
    let stays = state.member_changes().get(&region).is_none_or(|change| change.target.contains(&lost.id));
    if !stays || live <= members.len() / 2 {
        return None;
    }
    let spare = spare_for(now, lost, region, table, state)?;
    let change = MembersChange::Replace(lost.name.clone(), spare.name.clone());
    Some(Action::ChangeMembers { region: state.regions.get(&region)?.name.clone(), change })
}

/// A spare that is up; one in a zone without another member, if there is one.
fn spare_for<'a>(
    now: Instant,
    lost: &Node,
    region: RegionId,
    table: &LeaseTable,
    state: &'a ClusterState,
) -> Option<&'a Node> {
    let change = state.member_changes().get(&region);
    let members = change.map_or_else(|| state.voters(region, ShardId(0)), |change| change.target.as_slice());
    let others = members.iter().filter(|node| **node != lost.id);
    let zones: Vec<&str> = others.filter_map(|node| state.node(*node)).map(|node| node.zone.as_str()).collect();
    let live: Vec<&Node> = state.spares(region).filter(|node| table.is_live(now, node.id)).collect();
    let apart = live.iter().find(|node| !zones.contains(&node.zone.as_str()));
    apart.or(live.first()).copied()
}

#[cfg(test)]
mod tests {
    use meridian_types::{NodeName, RegionName};

    use super::*;
    use crate::members::tests::region_of_three;
    use crate::testing::act;

    const AFTER: Duration = Duration::from_secs(600);
    const TTL: Duration = Duration::from_secs(5);

    #[expect(clippy::disallowed_methods, reason = "tests need some instant to count from; which one does not matter")]
    fn some_instant() -> Instant {
        Instant::now()
    }

    struct World {
        state: ClusterState,
        table: LeaseTable,
        mender: Mender,
        now: Instant,
    }

    impl World {
        fn new() -> World {
            let now = some_instant();
            let table = LeaseTable::elected(now, 1, TTL);
            World { state: region_of_three(), table, mender: Mender::default(), now }
        }

        /// A second passes, in which these renew their leases.
        fn second(&mut self, live: &[&str]) -> Option<Action> {
            self.now += Duration::from_secs(1);
            for name in live {
                let node = NodeId::of(&NodeName::new(name).unwrap());
                self.table.grant(self.now, node, 1, self.state.index()).unwrap();
            }
            self.mender.look(self.now, AFTER, &self.table, &self.state)
        }

        fn seconds(&mut self, count: usize, live: &[&str]) -> Option<(usize, Action)> {
            (0..count).find_map(|second| Some((second, self.second(live)?)))
        }
    }

    fn replacing(old: &str, new: &str) -> Action {
        let name = |name: &str| NodeName::new(name).unwrap();
        let change = MembersChange::Replace(name(old), name(new));
        Action::ChangeMembers { region: RegionName::new("us-east").unwrap(), change }
    }

    #[test]
    fn a_member_that_is_silent_for_long_is_replaced_by_a_spare_in_a_zone_of_its_own() {
        let mut world = World::new();
        let all = ["us-east-1", "us-east-2", "us-east-3", "us-east-4", "us-east-5"];
        assert_eq!(world.seconds(700, &all), None);
        let rest = ["us-east-1", "us-east-3", "us-east-4", "us-east-5"];
        let (second, action) = world.seconds(700, &rest).unwrap();
        // Its lease first, and then as long as was asked for. us-east-4 is in the zone of us-east-1.
        assert!((604..=606).contains(&second), "{second}");
        assert_eq!(action, replacing("us-east-2", "us-east-5"));
        act(&mut world.state, action).unwrap();
        let without_the_spare = ["us-east-1", "us-east-3", "us-east-4"];
        let (_, again) = world.seconds(1300, &without_the_spare).unwrap();
        assert_eq!(again, replacing("us-east-5", "us-east-4"), "one that dies before it has joined is replaced, too");
    }

    #[test]
    fn nobody_is_replaced_without_a_majority_or_a_spare_that_is_up_or_in_the_first_moments_of_a_term() {
        let mut world = World::new();
        assert_eq!(world.seconds(700, &["us-east-1", "us-east-4"]), None, "a majority is needed to move anything");
        let mut world = World::new();
        assert_eq!(world.seconds(700, &["us-east-1", "us-east-3"]), None, "no spare is up");
        assert!(world.second(&["us-east-1", "us-east-3", "us-east-4"]).is_some());
        world.table = LeaseTable::elected(world.now, 2, TTL);
        let live = ["us-east-1", "us-east-3", "us-east-4"];
        let (second, _) = world.seconds(700, &live).unwrap();
        assert!(second >= 604, "a new leader measures anew: {second}");
    }

    #[test]
    fn a_member_that_comes_back_in_time_stays_one() {
        let mut world = World::new();
        let rest = ["us-east-1", "us-east-3", "us-east-4"];
        assert_eq!(world.seconds(590, &rest), None);
        assert_eq!(world.second(&["us-east-1", "us-east-2", "us-east-3", "us-east-4"]), None);
        assert_eq!(world.seconds(590, &rest), None);
    }
}
