use meridian_types::{NodeId, NodeName, Region, RegionId, RegionName};

use super::*;

/// Nodes by what they said that they run, of a cluster of that format; all answer.
fn report(format: u8, versions: &[&str]) -> Report {
    let id = RegionId(1);
    let region = Region { id, name: RegionName::new("us-east").unwrap() };
    let topology = Topology { format, regions: [(id, region)].into(), ..Topology::default() };
    let node = |(nth, version): (usize, &&str)| {
        let name = NodeName::new(&format!("us-east-{nth}")).unwrap();
        let (zone, rpc_address, replication_address) = ("a".to_owned(), "h:1".to_owned(), "h:2".to_owned());
        let version = (*version).to_owned();
        let status = NodeStatus { version: version.clone(), ..NodeStatus::default() };
        (Node { id: NodeId::of(&name), name, region: id, zone, rpc_address, replication_address, version }, Ok(status))
    };
    Report::of(&versions.iter().enumerate().map(node).collect::<Vec<_>>(), &topology)
}

#[test]
fn an_upgrade_is_ready_once_every_node_runs_the_new_release() {
    let under_way = report(FORMAT_UNSAID, &["0.2.0", "0.1.0", ""]);
    let text = under_way.text();
    assert!(!under_way.ready && under_way.known_to_all.is_none());
    assert!(text.contains("2 nodes are left to upgrade, one at a time"), "{text}");
    assert!(text.contains("FAIL: start it with the new release") && text.contains("FAIL: never said what it runs"));
    let ready = report(FORMAT_UNSAID, &["0.2.0", "0.3.0"]);
    assert!(ready.ready && ready.text().contains("to finish: meridian upgrade finalize"), "{}", ready.text());
    let done = report(FORMAT_NEWEST, &["0.2.0"]);
    assert!(done.ready && done.text().ends_with("nothing to do: the upgrade is finalized"), "{}", done.text());
    let told = serde_json::to_value(report(0, &["0.1.0"])).unwrap();
    assert_eq!((told["format"].clone(), told["known_to_all"].clone()), (serde_json::Value::Null, 10.into()));
}
