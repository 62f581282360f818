//! Laws of changing members: what is asked is checked, shards move one by one, and who serves stays until all have.

use meridian_types::{ClusterId, NodeId, NodeName, RegionName};
use proptest::prelude::*;

use super::*;
use crate::command::{Form, NodeSpec};
use crate::testing::{act, member};
use crate::{Action, Answer};

const HOME: RegionId = RegionId(1);
const SHARDS: u16 = 3;

fn name(name: &str) -> NodeName {
    NodeName::new(name).unwrap()
}

fn id(name: &str) -> NodeId {
    NodeId::of(&NodeName::new(name).unwrap())
}

fn ids(names: &[&str]) -> Vec<NodeId> {
    names.iter().map(|name| id(name)).collect()
}

fn spec(name: &str, zone: &str) -> NodeSpec {
    NodeSpec { name: NodeName::new(name).unwrap(), zone: zone.to_owned(), ..member("us-east") }
}

/// us-east-1, 2 and 3 serve us-east, in zones a, b and c; us-east-4 and 5 are spares in a and d; eu-west has one node.
pub(crate) fn region_of_three() -> ClusterState {
    let members = vec![spec("us-east-1", "a"), spec("us-east-2", "b"), spec("us-east-3", "c"), member("eu-west")];
    let mut state = ClusterState::default();
    let form = Form { cluster: ClusterId(7), shards: SHARDS, lease_ttl_ms: 5000, members };
    act(&mut state, Action::FormCluster(form)).unwrap();
    for (name, zone) in [("us-east-4", "a"), ("us-east-5", "d")] {
        act(&mut state, Action::RegisterNode(spec(name, zone))).unwrap();
    }
    state
}

fn change(state: &mut ClusterState, change: MembersChange) -> Answer {
    act(state, Action::ChangeMembers { region: RegionName::new("us-east").unwrap(), change })
}

fn moved(state: &mut ClusterState, shard: u16, index: u64) {
    let shards = [ShardId(shard)].into();
    act(state, Action::ShardsMoved { region: HOME, shards, change: index }).unwrap();
}

/// Who serves once nothing changes any more.
fn target(state: &ClusterState) -> Vec<NodeId> {
    let change = state.member_changes().get(&HOME);
    change.map_or_else(|| state.voters(HOME, ShardId(0)).to_vec(), |change| change.target.clone())
}

fn index(state: &ClusterState) -> u64 {
    state.member_changes()[&HOME].index
}

fn replace(state: &mut ClusterState, old: &str, new: &str) -> Answer {
    change(state, MembersChange::Replace(name(old), name(new)))
}

fn says(answer: Answer, kind: RefusalKind, part: &str) {
    let refused = answer.unwrap_err();
    assert!(refused.kind == kind && refused.message.contains(part), "{refused}");
}

#[test]
fn a_spare_takes_a_place_shard_by_shard_and_everybody_serves_until_the_last() {
    let mut state = region_of_three();
    replace(&mut state, "us-east-2", "us-east-5").unwrap();
    let now = index(&state);
    assert!(state.serves(id("us-east-2")) && state.serves(id("us-east-5")) && !state.serves(id("us-east-4")));
    for shard in [2, 0] {
        moved(&mut state, shard, now);
        moved(&mut state, shard, now);
    }
    moved(&mut state, 1, now + 1);
    assert_eq!(state.voters(HOME, ShardId(0)), ids(&["us-east-1", "us-east-5", "us-east-3"]));
    assert_eq!(state.voters(HOME, ShardId(1)), ids(&["us-east-1", "us-east-2", "us-east-3"]));
    assert!(state.founders(HOME, ShardId(0)).is_empty() && !state.founders(HOME, ShardId(1)).is_empty());
    assert!(state.serves(id("us-east-2")), "its vote may be needed to let it go");
    moved(&mut state, 1, now);
    assert!(state.member_changes().is_empty() && !state.serves(id("us-east-2")));
    assert!(state.events().any(|event| event.verb == "members-changed"));
    assert_eq!(ClusterState::decode(&state.encode()), Ok(state));
}

#[test]
fn who_leaves_is_replaced_by_a_spare_in_a_zone_of_its_own() {
    let mut state = region_of_three();
    change(&mut state, MembersChange::Drain(vec![name("us-east-3")])).unwrap();
    assert_eq!(target(&state), ids(&["us-east-1", "us-east-2", "us-east-5"]));
    change(&mut state, MembersChange::Abort).unwrap();
    assert_eq!(target(&state), ids(&["us-east-1", "us-east-2", "us-east-3"]));
    let now = index(&state);
    (0..SHARDS).for_each(|shard| moved(&mut state, shard, now));
    // The zone of the one that leaves is free.
    change(&mut state, MembersChange::Drain(vec![name("us-east-1"), name("us-east-2")])).unwrap();
    let members = target(&state);
    assert!(ids(&["us-east-4", "us-east-5"]).iter().all(|node| members[..2].contains(node)), "{members:?}");
    assert_eq!(members[2], id("us-east-3"), "the turns of the others as leaders stay");
}

#[test]
fn a_region_has_one_three_or_five_members_and_only_its_own_nodes() {
    let mut state = region_of_three();
    let join = |names: &[&str]| MembersChange::Join(names.iter().map(|it| name(it)).collect());
    says(change(&mut state, join(&["us-east-4"])), RefusalKind::Invalid, "would have 4 nodes");
    says(change(&mut state, join(&["us-east-4", "us-east-4"])), RefusalKind::Invalid, "twice");
    says(change(&mut state, join(&["us-east-4", "us-east-1"])), RefusalKind::Exists, "already");
    says(change(&mut state, join(&["us-east-4", "eu-west-1"])), RefusalKind::Invalid, "`eu-west`");
    says(change(&mut state, join(&["us-east-4", "us-east-9"])), RefusalKind::NotFound, "registers by itself");
    says(replace(&mut state, "us-east-4", "us-east-5"), RefusalKind::Invalid, "holds no shards");
    says(change(&mut state, MembersChange::Abort), RefusalKind::Invalid, "nothing is under way");
    let all = ["us-east-1", "us-east-2", "us-east-3"].map(name).to_vec();
    says(change(&mut state, MembersChange::Drain(all)), RefusalKind::Invalid, "would have 2 nodes");
    change(&mut state, join(&["us-east-4", "us-east-5"])).unwrap();
    assert_eq!(target(&state).len(), 5);
    let now = index(&state);
    (0..SHARDS).for_each(|shard| moved(&mut state, shard, now));
    let four = ["us-east-1", "us-east-2", "us-east-3", "us-east-5"].map(name).to_vec();
    change(&mut state, MembersChange::Drain(four)).unwrap();
    assert_eq!(target(&state), ids(&["us-east-4"]));
}

#[test]
fn a_node_is_removed_once_it_holds_nothing_and_its_name_is_gone_for_good() {
    let mut state = region_of_three();
    let remove = |state: &mut ClusterState, it: &str| act(state, Action::RemoveNode { name: name(it) });
    says(remove(&mut state, "us-east-1"), RefusalKind::Conflict, "drain us-east-1");
    replace(&mut state, "us-east-1", "us-east-4").unwrap();
    says(remove(&mut state, "us-east-4"), RefusalKind::Conflict, "is joining");
    says(remove(&mut state, "us-east-1"), RefusalKind::Conflict, "is leaving");
    let now = index(&state);
    (0..SHARDS).for_each(|shard| moved(&mut state, shard, now));
    remove(&mut state, "us-east-1").unwrap();
    says(remove(&mut state, "us-east-1"), RefusalKind::NotFound, "no node");
    let back = act(&mut state, Action::RegisterNode(spec("us-east-1", "a")));
    says(back, RefusalKind::Denied, "was removed");
    assert_eq!(ClusterState::decode(&state.encode()), Ok(state));
}

#[test]
fn a_change_may_be_given_another_goal_and_taken_back_however_often_it_is_said() {
    let mut state = region_of_three();
    replace(&mut state, "us-east-2", "us-east-5").unwrap();
    let first = index(&state);
    moved(&mut state, 0, first);
    // The one that was to join dies.
    replace(&mut state, "us-east-5", "us-east-4").unwrap();
    assert_eq!(target(&state), ids(&["us-east-1", "us-east-4", "us-east-3"]));
    let now = state.member_changes()[&HOME].clone();
    assert_eq!((now.pending.len(), now.strays), (usize::from(SHARDS), [id("us-east-5")].into()));
    assert!(state.serves(id("us-east-5")), "it may vote in the shard that had moved");
    moved(&mut state, 1, first);
    assert_eq!(index(&state), now.index, "what was said of the first goal means nothing");
    for _ in 0..2 {
        change(&mut state, MembersChange::Abort).unwrap();
        assert_eq!(target(&state), ids(&["us-east-1", "us-east-2", "us-east-3"]));
    }
    let back = index(&state);
    (0..SHARDS).for_each(|shard| moved(&mut state, shard, back));
    assert!(state.member_changes().is_empty() && !state.serves(id("us-east-5")) && !state.serves(id("us-east-4")));
}

/// The copy that a recovery goes on from may be older than what the groups have come to.
#[test]
fn after_a_recovery_everybody_serves_until_the_groups_are_what_is_on_record() {
    let mut state = region_of_three();
    state.recover(state.index() + 5, 9, "operator");
    state.validate().unwrap();
    assert!(state.serves(id("us-east-4")) && state.serves(id("us-east-5")));
    assert_eq!(target(&state), ids(&["us-east-1", "us-east-2", "us-east-3"]));
    let now = index(&state);
    (0..SHARDS).for_each(|shard| moved(&mut state, shard, now));
    assert!(!state.serves(id("us-east-4")) && !state.member_changes().contains_key(&HOME));
    assert!(state.member_changes().is_empty(), "where there is nobody else nothing is to be brought about");
}

#[derive(Clone, Debug)]
enum Deed {
    Ask(MembersChange),
    Move { shard: u16, late: bool },
    Remove(NodeName),
    Register(NodeName),
}

fn any_name() -> impl Strategy<Value = NodeName> {
    (1u8..=5).prop_map(|nth| name(&format!("us-east-{nth}")))
}

fn any_deed() -> impl Strategy<Value = Deed> {
    let names = || prop::collection::vec(any_name(), 1..3);
    prop_oneof![
        2 => names().prop_map(|nodes| Deed::Ask(MembersChange::Join(nodes))),
        2 => names().prop_map(|nodes| Deed::Ask(MembersChange::Drain(nodes))),
        2 => (any_name(), any_name()).prop_map(|(old, new)| Deed::Ask(MembersChange::Replace(old, new))),
        1 => Just(Deed::Ask(MembersChange::Abort)),
        8 => (0..=SHARDS, prop::bool::weighted(0.1)).prop_map(|(shard, late)| Deed::Move { shard, late }),
        1 => any_name().prop_map(Deed::Remove),
        1 => any_name().prop_map(Deed::Register),
    ]
}

proptest! {
    /// Whatever is asked in whichever order: the state stays sound (an odd number of members, all of the region), bytes tell all of it,
    /// and whoever votes in some shard serves.
    #[test]
    fn the_state_stays_sound_and_who_votes_serves(deeds in prop::collection::vec(any_deed(), 0..60)) {
        let mut state = region_of_three();
        for deed in deeds {
            match deed {
                Deed::Ask(it) => drop(change(&mut state, it)),
                Deed::Move { shard, late } => {
                    let now = state.member_changes().get(&HOME).map_or(1, |it| it.index);
                    moved(&mut state, shard, if late { now.saturating_sub(1) } else { now });
                }
                Deed::Remove(node) => drop(act(&mut state, Action::RemoveNode { name: node })),
                Deed::Register(node) => drop(act(&mut state, Action::RegisterNode(NodeSpec { name: node, ..member("us-east") }))),
            }
            for shard in (0..SHARDS).map(ShardId) {
                prop_assert!(state.voters(HOME, shard).iter().all(|node| state.serves(*node)));
            }
            prop_assert_eq!(&ClusterState::decode(&state.encode()).unwrap(), &state);
        }
    }
}
