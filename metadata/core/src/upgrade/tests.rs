use meridian_types::{BucketName, ClusterId};

use super::*;
use crate::command::NodeSpec;
use crate::testing::{act, member};

const REGIONS: [&str; 3] = ["us-east", "eu-west", "ap-south"];

/// Formed by a release of that format, and no node has said anything yet.
fn formed_at(format: u8) -> ClusterState {
    let form = Form { cluster: ClusterId(7), shards: 2, lease_ttl_ms: 5000, members: REGIONS.map(member).to_vec() };
    let mut state = ClusterState::default();
    act(&mut state, Action::FormClusterAt { form, format }).unwrap();
    state
}

fn register(state: &mut ClusterState, region: &str, version: &str) {
    let node = NodeSpec { version: version.to_owned(), ..member(region) };
    act(state, Action::RegisterNode(node)).unwrap();
}

/// Whether it may be proposed and what it comes to agree, as for whoever only asks.
fn finalize(state: &mut ClusterState, format: u8) -> Result<(), String> {
    let action = Action::Finalize { format };
    let admitted = state.admits(&action).map_err(|it| it.message);
    let done = act(state, action).map(drop).map_err(|it| it.message);
    assert_eq!(admitted, done);
    done
}

#[test]
fn an_upgrade_is_finalized_once_every_node_said_that_it_runs_the_new_release_upg_1() {
    let mut state = formed_at(FORMAT_UNSAID);
    REGIONS.iter().for_each(|region| register(&mut state, region, "0.1.0"));
    let refused = |state: &mut ClusterState| finalize(state, FORMAT_NEWEST).unwrap_err();
    assert!(refused(&mut state).contains("3 nodes, `"), "{}", refused(&mut state));
    register(&mut state, "us-east", "0.2.0");
    register(&mut state, "eu-west", "0.3.1");
    assert!(refused(&mut state).contains("`ap-south-1` runs 0.1.0: start it with the new release"));
    register(&mut state, "ap-south", "");
    assert!(refused(&mut state).contains("`ap-south-1` never said what it runs"));
    assert_eq!(state.format(), FORMAT_UNSAID);
    register(&mut state, "ap-south", "0.2.0");
    assert_eq!(finalize(&mut state, FORMAT_NEWEST), Ok(()));
    assert_eq!((state.format(), state.topology().format), (FORMAT_NEWEST, FORMAT_NEWEST));
    let event = state.events().next_back().unwrap().clone();
    assert_eq!((event.verb.as_str(), event.subject.as_str()), ("finalize-upgrade", "format 11"));
    assert_eq!(event.detail, "instead of 10");
    // Somebody went back nevertheless: what is on record is on record.
    register(&mut state, "ap-south", "0.1.0");
    assert_eq!(finalize(&mut state, FORMAT_NEWEST), Ok(()));
    assert_eq!(finalize(&mut state, FORMAT_UNSAID), Ok(()), "and never gets older");
    assert_eq!(state.format(), FORMAT_NEWEST);
    assert!(refused_format(&mut state, FORMAT_NEWEST + 1) && refused_format(&mut state, 0));
}

fn refused_format(state: &mut ClusterState, format: u8) -> bool {
    finalize(state, format).is_err_and(|why| why.contains("that this release knows"))
}

#[test]
fn what_a_node_of_the_release_before_could_not_read_is_not_proposed_upg_1() {
    let mut state = formed_at(9);
    let name = BucketName::new("orders").unwrap();
    let newer = Action::SetDetection { name: name.clone(), detect_ms: 15_000 };
    let refusal = state.admits(&newer).unwrap_err();
    assert_eq!(refusal.kind, RefusalKind::Conflict);
    assert!(refusal.message.contains("`meridian upgrade finalize`"), "{refusal}");
    let as_next = crate::Command {
        operation: crate::OperationId(99),
        who: "operator".to_owned(),
        at_ms: 1,
        action: newer.clone(),
    };
    assert_eq!(state.clone().try_apply(&as_next).unwrap_err(), refusal, "a dry run says the same");
    assert_eq!(state.admits(&Action::DeleteBucket { name }), Ok(()));
    REGIONS.iter().for_each(|region| register(&mut state, region, "0.2.0"));
    assert!(state.admits(&newer).is_err(), "nobody has said yet that there is no way back");
    finalize(&mut state, FORMAT_NEWEST).unwrap();
    assert_eq!(state.admits(&newer), Ok(()));
}

#[test]
fn a_cluster_has_the_format_of_the_release_that_formed_it() {
    assert_eq!(formed_at(FORMAT_NEWEST).format(), FORMAT_NEWEST);
    let mut earlier = ClusterState::default();
    let form = Form { cluster: ClusterId(7), shards: 2, lease_ttl_ms: 5000, members: REGIONS.map(member).to_vec() };
    act(&mut earlier, Action::FormCluster(form.clone())).unwrap();
    assert_eq!(earlier.format(), FORMAT_UNSAID);
    let again = Action::FormClusterAt { form, format: FORMAT_NEWEST };
    assert!(ClusterState::default().admits(&again).is_ok() && earlier.admits(&again).is_err());
    act(&mut earlier, again).unwrap();
    assert_eq!(earlier.format(), FORMAT_UNSAID, "it was formed before: nodes of an older release may be there");
}
