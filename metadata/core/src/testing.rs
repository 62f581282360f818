//! What the tests of this crate share: a small cluster, and commands that are applied one after the other.

#![allow(clippy::unwrap_used, reason = "tests")]

use meridian_types::{
    AutoFailover, BucketName, BucketSpec, ClusterId, Labels, NodeName, OperationId, Policy, RegionName,
};

use crate::command::{Form, NodeSpec};
use crate::{Action, Answer, ClusterState, Command};

/// The one node of a region.
pub(crate) fn member(region: &str) -> NodeSpec {
    NodeSpec {
        name: NodeName::new(&format!("{region}-1")).unwrap(),
        region: RegionName::new(region).unwrap(),
        zone: "a".to_owned(),
        rpc_address: "h:1".to_owned(),
        replication_address: "h:2".to_owned(),
        version: String::new(),
    }
}

/// Applies an action under the next index, which is its operation, too; the state stays sound.
pub(crate) fn act(state: &mut ClusterState, action: Action) -> Answer {
    let index = state.index() + 1;
    let operation = OperationId(u128::from(index));
    let answer = state.apply(index, &Command { operation, who: "operator".to_owned(), at_ms: 1000 + index, action });
    state.validate().unwrap();
    answer
}

/// The bucket of [`with`].
pub(crate) fn name() -> BucketName {
    BucketName::new("orders").unwrap()
}

/// Three regions, two shards, and a bucket whose primary is the first.
pub(crate) fn with(policy: Policy) -> ClusterState {
    let members = ["us-east", "eu-west", "ap-south"].map(member).to_vec();
    let mut state = ClusterState::default();
    let form = Form { cluster: ClusterId(7), shards: 2, lease_ttl_ms: 5000, members };
    act(&mut state, Action::FormCluster(form)).unwrap();
    let (regions, labels, auto) = (Vec::new(), Labels::new(), AutoFailover::default());
    let spec = BucketSpec { name: name(), policy, regions, primary: None, labels, auto };
    act(&mut state, Action::CreateBucket(spec)).unwrap();
    state
}
