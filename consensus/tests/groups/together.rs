//! Groups of several nodes.

use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_consensus::{ChangeError, ProposeError, ReadError};
use meridian_proto::identity::Identity;
use meridian_proto::v1::ConsensusMessage;
use meridian_proto::v1::consensus_peer_client::ConsensusPeerClient;
use meridian_types::{Lsn, NodeId};
use tonic::transport::Endpoint;

use super::world::{World, eventually, run};

fn lines(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("line {n}")).collect()
}

#[test]
fn three_nodes_elect_a_leader_and_apply_the_same_in_the_same_order() {
    let mut world = World::new(3, 3);
    world.start_all();
    for line in lines(50) {
        world.put(&line);
    }
    world.ids().into_iter().for_each(|node| world.expect(node, &lines(50)));
    let follower = world.ids().into_iter().find(|node| *node != world.leader()).unwrap();
    let refused = world.nodes[&follower].group.propose(Bytes::from_static(b"no"));
    assert!(matches!(refused, Err(ProposeError::NotLeader { leader: Some(leader) }) if leader == world.leader()));
}

#[test]
fn a_lost_leader_is_replaced_and_catches_up_when_it_returns_dur_1() {
    let mut world = World::new(3, 3);
    world.start_all();
    let mut expected = Vec::new();
    for round in 0..3 {
        for n in 0..20 {
            let line = format!("round {round} line {n}");
            world.put(&line);
            expected.push(line);
        }
        let leader = world.leader();
        world.stop(leader);
        world.put(&format!("round {round} without it"));
        expected.push(format!("round {round} without it"));
        world.start(leader);
    }
    world.put("healed");
    expected.push("healed".to_owned());
    world.ids().into_iter().for_each(|node| world.expect(node, &expected));
}

#[test]
fn all_nodes_stop_and_return_with_everything_dur_1() {
    let mut world = World::new(3, 3);
    world.start_all();
    lines(30).iter().for_each(|line| drop(world.put(line)));
    world.ids().into_iter().for_each(|node| world.stop(node));
    world.start_all();
    world.put("healed");
    let mut expected = lines(30);
    expected.push("healed".to_owned());
    world.ids().into_iter().for_each(|node| world.expect(node, &expected));
}

#[test]
fn a_follower_that_the_log_no_longer_reaches_is_caught_up_by_a_snapshot() {
    let mut world = World::new(3, 3);
    world.start_all();
    lines(10).iter().for_each(|line| drop(world.put(line)));
    let lagging = world.ids().into_iter().find(|node| *node != world.leader()).unwrap();
    world.stop(lagging);
    let leader = &world.nodes[&world.leader()];
    let group = &leader.group;
    let proposals: Vec<_> =
        lines(1000)[10..].iter().map(|line| group.propose(Bytes::from(line.clone())).unwrap()).collect();
    let last = run(leader, futures::future::try_join_all(proposals)).unwrap().last().unwrap().lsn;
    for node in world.nodes.values() {
        node.group.allow_purge(last);
    }
    eventually("purged logs", || {
        let trimmed = |node| run(node, node.group.read_log(Lsn(0), 1)).is_err();
        world.nodes.values().all(trimmed).then_some(())
    });
    world.start(lagging);
    world.expect(lagging, &lines(1000));
    world.put("healed");
    let mut expected = lines(1000);
    expected.push("healed".to_owned());
    world.ids().into_iter().for_each(|node| world.expect(node, &expected));
    // What it was given is durable: it comes back with it.
    world.stop(lagging);
    world.start(lagging);
    world.expect(lagging, &expected);
}

/// Whoever leads changes them; on a busy machine it may be another the next moment.
fn change_voters(world: &World, voters: &[NodeId]) {
    eventually("the change of voters", || {
        let node = &world.nodes[&world.leader()];
        run(node, node.group.change_voters(voters)).ok()
    });
}

#[test]
fn a_group_grows_from_one_to_five_and_shrinks_to_three_while_it_works() {
    let mut world = World::new(5, 1);
    world.ids().into_iter().for_each(|node| world.start(node));
    let ids = world.ids();
    let first = world.voters()[0];
    let mut order = vec![first];
    order.extend(ids.iter().copied().filter(|id| *id != first));
    world.put("line 0");
    for (n, size) in [(1, 3), (2, 5)] {
        change_voters(&world, &order[..size]);
        world.put(&format!("line {n}"));
        order[..size].iter().for_each(|node| world.expect(*node, &lines(n + 1)));
    }
    let keep: Vec<NodeId> = order[2..].to_vec();
    eventually("a leader that stays", || {
        let leader = world.leader();
        if !keep.contains(&leader) {
            let node = &world.nodes[&leader];
            drop(run(node, node.group.transfer_leadership(keep[0])));
            return None;
        }
        Some(())
    });
    change_voters(&world, &keep);
    order[..2].iter().for_each(|gone| world.stop(*gone));
    world.put("line 3");
    keep.iter().for_each(|node| world.expect(*node, &lines(4)));
}

#[test]
fn leadership_is_handed_over_on_request() {
    let mut world = World::new(3, 3);
    world.start_all();
    world.put("line 0");
    let old = world.leader();
    let new = world.ids().into_iter().find(|node| *node != old).unwrap();
    let node = &world.nodes[&old];
    run(node, node.group.transfer_leadership(new)).unwrap();
    world.put("line 1");
    assert_eq!(world.leader(), new);
}

/// Its lease may be valid, or it may have answered a moment ago: it is gone all the same.
#[test]
fn where_nobody_takes_over_what_is_handed_over_somebody_is_elected_though_proofs_are_asked_for() {
    let mut world = World::new(3, 3);
    world.start_all();
    world.put("line 0");
    let heir = world.ids().into_iter().find(|node| *node != world.leader()).unwrap();
    world.stop(heir);
    world.put("line 1");
    let old = &world.nodes[&world.leader()];
    // As whoever holds a lease does.
    let asks = async {
        loop {
            drop(old.group.confirm_leadership().await);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let handed = run(old, async {
        tokio::select! {
            handed = old.group.transfer_leadership(heir) => handed,
            () = asks => Ok(()),
        }
    });
    assert!(matches!(handed, Err(ChangeError::NotLeader { leader: Some(leader) }) if leader != heir), "{handed:?}");
    world.put("line 2");
}

#[test]
fn voters_say_when_they_last_heard_the_leader_that_is_gone_fen_1() {
    assert!((0..10).any(|_| is_heard_until_it_is_gone()), "somebody may have led in between each time");
}

/// False if it proves nothing: somebody may have led before the new leader, and was heard later.
fn is_heard_until_it_is_gone() -> bool {
    let mut world = World::new(3, 3);
    world.start_all();
    world.put("line 0");
    let old = world.leader();
    let node = &world.nodes[&old];
    let began = Instant::now();
    eventually("a confirmation", || run(node, node.group.confirm_leadership()).ok());
    let lost = node.group.leadership().borrow().term;
    let said = node.group.contact_before(lost + 1);
    assert_eq!(said, None, "it still leads in the term before");
    world.stop(old);
    let gone = Instant::now();
    world.put("line 1");
    let new = world.leader();
    let term = lost + 1;
    // Two of three: the confirmation was heard by one of them, and nothing once the leader was gone.
    let others: Vec<_> = world.ids().into_iter().filter(|node| *node != old).collect();
    let contact = |node: &NodeId| {
        let group = &world.nodes[node].group;
        eventually("the term", || {
            let is_over = group.leadership().borrow().term > term;
            group.contact_before(term).map(Some).or(is_over.then_some(None))
        })
    };
    let heard: Option<Vec<_>> = others.iter().map(contact).collect();
    let Some(latest) = heard.and_then(|heard| heard.into_iter().max()) else { return false };
    assert!(began <= latest && latest <= gone, "{:?} after the confirmation began", latest - began);
    let electorate = world.nodes[&new].group.electorate().unwrap();
    assert_eq!(electorate.voters.len(), 3);
    assert!(electorate.since <= began, "the voters are the same as ever");
    true
}

/// Heartbeats are counted as lost that take longer than the interval at which they are sent. Whoever leads does so all the same.
#[test]
fn a_leader_proves_that_it_leads_however_late_the_answers_come_fen_1() {
    // There and back, 160 ms; a heartbeat every 100.
    let mut world = World::apart(Duration::from_millis(80), 3, 3);
    world.start_all();
    world.put("line 0");
    for _ in 0..5 {
        let proof = || {
            let node = &world.nodes[&world.leader()];
            run(node, node.group.confirm_leadership()).ok()
        };
        eventually("a proof", proof);
    }
}

/// Nobody elects another one meanwhile, for all hear it well: were late answers not counted, there would be none who takes writes.
#[test]
fn a_leader_takes_writes_however_late_the_answers_come_live() {
    let mut world = World::apart(Duration::from_millis(80), 3, 3);
    world.start_all();
    world.put("line 0");
    for line in 1..4 {
        // Longer than what any write's own answers prove.
        std::thread::sleep(Duration::from_millis(1500));
        let leader = world.leader();
        let group = &world.nodes[&leader].group;
        let written =
            run(&world.nodes[&leader], async { group.propose(Bytes::from(format!("line {line}"))).unwrap().await });
        assert!(written.is_ok(), "{written:?}");
    }
}

#[test]
fn a_leader_that_is_cut_off_serves_no_linearizable_read_con_1() {
    let mut world = World::new(3, 3);
    world.start_all();
    world.put("line 0");
    let old = world.leader();
    let cut = &world.nodes[&old];
    assert!(run(cut, cut.group.read_barrier()).is_ok());
    // Its peers are gone, without a word to it.
    let others: Vec<_> = world.ids().into_iter().filter(|node| *node != old).collect();
    others.iter().for_each(|node| world.stop(*node));
    std::thread::sleep(Duration::from_millis(1200));
    let cut = &world.nodes[&old];
    let refused = run(cut, cut.group.read_barrier());
    assert!(matches!(refused, Err(ReadError::NoQuorum | ReadError::NotLeader { .. })), "{refused:?}");
    others.iter().for_each(|node| world.start(*node));
    world.put("healed");
    let leader = &world.nodes[&world.leader()];
    eventually("a barrier", || run(leader, leader.group.read_barrier()).ok());
}

#[test]
fn a_deposed_leader_that_can_reach_nobody_refuses_reads_while_the_new_one_serves_con_1() {
    let mut world = World::new(3, 3);
    world.start_all();
    world.put("line 0");
    let old = world.leader();
    world.cut(old);
    // Streams that are open are ended by restarting the followers one after another; new ones are refused.
    let others: Vec<_> = world.ids().into_iter().filter(|node| *node != old).collect();
    for node in &others {
        world.stop(*node);
        world.start(*node);
    }
    world.put_among(&others, "line 1");
    let deposed = &world.nodes[&old];
    let refused = run(deposed, deposed.group.read_barrier());
    assert!(refused.is_err(), "a deposed leader served {refused:?}");
    world.heal();
    world.put("healed");
    world.expect(old, &["line 0".to_owned(), "line 1".to_owned(), "healed".to_owned()]);
}

#[test]
fn a_client_certificate_may_not_speak_raft_and_a_node_only_for_itself_sec_1() {
    let mut world = World::new(2, 1);
    world.start_all();
    let server = world.voters()[0];
    let stranger = world.authority.issue(&Identity::client("app").unwrap());
    let endpoint = Endpoint::from_shared(format!("https://{}", world.address(server))).unwrap();
    let node = &world.nodes[&server];
    run(node, async {
        let channel = endpoint.tls_config(stranger.client_config()).unwrap().connect().await.unwrap();
        let mut client = ConsensusPeerClient::new(channel);
        let refused = client.exchange(tokio_stream::pending::<ConsensusMessage>()).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    });
}
