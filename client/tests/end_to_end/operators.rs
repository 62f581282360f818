//! What operators ask, from any node and from all of them.

use meridian_client::{
    BucketName, BucketSpec, EventQuery, OperationId, PlanId, PlanOutcome, Policy, RefusalKind, RegionName, Selection,
    SwitchoverSpec,
};
use meridian_types::{Acks, LaneState, Lsn, Operation};

use crate::world::{World, labels};

fn spec(name: &str) -> anyhow::Result<BucketSpec> {
    Ok(BucketSpec {
        name: BucketName::new(name)?,
        policy: Policy::sync(Acks::Regions(2)),
        regions: Vec::new(),
        primary: None,
        labels: labels(&[("team", "shop")]),
        auto: Default::default(),
    })
}

#[tokio::test]
async fn a_bucket_is_created_labelled_and_deleted_and_who_did_it_is_passed_on() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let client = world.client().await?;
    let admin = client.admin();
    let planned = admin.create_bucket(&spec("stock")?, true).await?;
    assert_eq!(planned.policy, Policy::sync(Acks::Regions(2)));
    assert!(admin.topology().await?.bucket_named("stock").is_none(), "a dry run creates nothing");

    let created = admin.create_bucket(&spec("stock")?, false).await?;
    assert_eq!(admin.topology().await?.bucket_named("stock").map(|bucket| bucket.as_ref().clone()), Some(created));
    let twice = admin.create_bucket(&spec("stock")?, false).await.unwrap_err();
    assert_eq!(twice.kind, RefusalKind::Exists);

    let stock = BucketName::new("stock")?;
    let labelled = admin.set_labels(&stock, labels(&[("tier", "gold")]), vec!["team".to_owned()]).await?;
    assert_eq!(labelled.labels, labels(&[("tier", "gold")]));
    let long = admin.set_labels(&stock, labels(&[("x", &"y".repeat(300))]), Vec::new()).await.unwrap_err();
    assert_eq!(long.kind, RefusalKind::Invalid);

    admin.delete_bucket(&stock, true).await?;
    assert!(admin.topology().await?.bucket_named("stock").is_some());
    admin.delete_bucket(&stock, false).await?;
    assert!(admin.topology().await?.bucket_named("stock").is_none());
    assert_eq!(admin.delete_bucket(&stock, false).await.unwrap_err().kind, RefusalKind::NotFound);

    let done = world.servers[0].control.done.lock().unwrap();
    assert!(done.iter().all(|(_, caller)| caller.identity.uri() == "meridian://client/alice"));
    Ok(())
}

#[tokio::test]
async fn an_operator_plans_watches_and_gives_up_a_move() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let client = world.client().await?;
    let admin = client.admin();
    let spec = SwitchoverSpec {
        to: RegionName::new("eu-west")?,
        buckets: Selection::Named(vec![BucketName::new("orders")?]),
        lag_ms_max: 100,
        pause_ms_max: 5000,
        reason: "maintenance".to_owned(),
    };
    let dry = admin.switchover(&spec, OperationId::of("dry"), true).await?;
    assert_eq!((dry.moves.len(), admin.operations().await?.len()), (1, 0));
    let plan = admin.switchover(&spec, OperationId::of("real"), false).await?;
    assert_eq!((plan.operation, plan.reason.as_str()), (OperationId::of("real"), "maintenance"));
    assert_eq!(plan.who, "meridian://client/alice");
    assert_eq!(admin.operation(plan.id).await?, plan);
    assert_eq!(admin.operations().await?.first(), Some(&plan));

    let indices = async |query: EventQuery| {
        let page = admin.events(&query).await?;
        anyhow::Ok(page.events.into_iter().map(|event| (event.index, event.at)).collect::<Vec<_>>())
    };
    let last = indices(EventQuery { limit: 2, ..EventQuery::default() }).await?;
    assert_eq!(last.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [8, 9]);
    assert_eq!(indices(EventQuery { after: last[1].1, ..EventQuery::default() }).await?, [], "nothing is told twice");
    assert_eq!(indices(EventQuery { index_min: 4, ..EventQuery::default() }).await?.len(), 6);
    let given_up = admin.abort_operation(plan.id, "enough").await?;
    let Operation::Moves(given_up) = given_up else { anyhow::bail!("{given_up:?}") };
    assert_eq!(given_up.outcome(), PlanOutcome::Restored);
    assert_eq!(admin.operation(PlanId(7)).await.unwrap_err().kind, RefusalKind::NotFound);
    let gone = SwitchoverSpec { buckets: Selection::Named(vec![BucketName::new("gone")?]), ..spec };
    assert_eq!(admin.switchover(&gone, OperationId::of("x"), false).await.unwrap_err().kind, RefusalKind::NotFound);
    Ok(())
}

#[tokio::test]
async fn reports_come_from_every_region_and_a_dead_one_does_not_hide_the_others() -> anyhow::Result<()> {
    let mut world = World::new(2).await?;
    let client = world.client().await?;
    let admin = client.admin();
    let orders = BucketName::new("orders")?;

    let digests = admin.digests(Some(&orders)).await?;
    let regions: Vec<_> = digests.iter().map(|region| region.region.as_str()).collect();
    assert_eq!(regions, ["us-east", "eu-west"]);
    let rows: Vec<_> = digests.iter().map(|region| region.answer.as_ref().unwrap()).collect();
    assert_eq!(rows[0][0].digest.agrees_with(&rows[1][0].digest), Some(true));

    let lag = admin.lag(None).await?;
    let lag = lag[0].answer.as_ref().unwrap();
    assert_eq!(lag.buckets[0].lag_ms, 40);
    assert_eq!(lag.lanes[0].state, LaneState::BehindLog { watermark: Lsn(1), oldest: Lsn(3) });

    let statuses = admin.node_statuses().await?;
    assert_eq!(statuses.len(), 2);
    for (node, status) in &statuses {
        assert_eq!(status.as_ref().unwrap().node, node.id);
    }

    let unknown = admin.digests(Some(&BucketName::new("unknown")?)).await?;
    assert!(unknown.iter().all(|region| region.answer.as_ref().unwrap_err().kind == RefusalKind::NotFound));

    let dead = world.servers.remove(1);
    world.topology.lock().unwrap().nodes.get_mut(&dead.control.node).unwrap().rpc_address = "127.0.0.1:1".to_owned();
    world.topology.lock().unwrap().index += 1;
    let client = world.client().await?;
    let digests = client.admin().digests(None).await?;
    assert!(digests[0].answer.is_ok());
    assert!(digests[1].answer.is_err());
    Ok(())
}

#[tokio::test]
async fn addresses_of_the_cluster_are_translated_to_reachable_ones() -> anyhow::Result<()> {
    let world = World::new(2).await?;
    let real: Vec<(String, String)> = {
        let mut topology = world.topology.lock().unwrap();
        let nodes = topology.nodes.values_mut().enumerate();
        nodes
            .map(|(number, node)| {
                let inside = format!("inside-{number}:1");
                (inside.clone(), std::mem::replace(&mut node.rpc_address, inside))
            })
            .collect()
    };
    let translate = move |inside: &str| {
        real.iter().find(|(name, _)| name == inside).map_or_else(|| inside.to_owned(), |(_, real)| real.clone())
    };
    let client = world.builder(&[0])?.translate(translate).connect().await?;
    for (node, status) in client.admin().node_statuses().await? {
        assert_eq!(status?.node, node.id);
    }
    Ok(())
}

/// A switchover check says how many will notice.
#[tokio::test]
async fn a_node_tells_how_many_clients_are_connected() -> anyhow::Result<()> {
    let world = World::new(1).await?;
    let operator = world.client().await?;
    let clients = async || anyhow::Ok(operator.admin().node_statuses().await?.pop().unwrap().1?.clients);
    assert_eq!(clients().await?, 0, "who only asks about the cluster is no client of its data");
    let (first, second) = (world.client().await?, world.client().await?);
    for client in [&first, &second] {
        client.bucket("orders")?.put("k", "v").await?;
    }
    assert_eq!(clients().await?, 2);
    drop(second);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while clients().await? > 1 {
        anyhow::ensure!(std::time::Instant::now() < until, "who went away is still counted");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    Ok(())
}

#[test]
fn every_call_may_be_made_from_a_spawned_task() {
    fn is_send<T: Send>(_: T) {}
    #[allow(dead_code)] // compiled, never run
    fn calls(client: meridian_client::Client, name: BucketName, spec: BucketSpec, node: meridian_client::NodeId) {
        let admin = client.admin();
        is_send(admin.topology());
        is_send(admin.create_bucket(&spec, true));
        is_send(admin.delete_bucket(&name, true));
        is_send(admin.digests(None));
        is_send(admin.lag(None));
        is_send(admin.node_status(node));
        is_send(admin.node_statuses());
        is_send(admin.operations());
        is_send(admin.events(&EventQuery::default()));
        is_send(admin.abort_operation(PlanId(1), ""));
        is_send(meridian_client::Client::builder().connect());
    }
}
