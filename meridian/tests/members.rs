//! DUR-1, ONE-1, ORD-1, CON-4 while the nodes of a region change, in real processes: a dead node is replaced by itself, one is drained
//! that leads and votes in the metadata plane, a region grows from one node to three and back; clients go on.

use std::path::Path;
use std::process::ExitStatus;
use std::time::Duration;

use chaos::real::{Launch, Planet, REGIONS, trial};
use meridian_client::Client;
use meridian_types::{Effect, MembersChange, Membership, NodeId, NodeName, RefusalKind, RegionId, RegionName, ShardId};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(90);

/// Seven processes are enough for a small machine: one planet at a time.
static ALONE: Mutex<()> = Mutex::const_new(());

const HOME: RegionId = RegionId(1);

async fn planet(dir: &Path, nodes: [usize; REGIONS.len()], launch: &Launch) -> anyhow::Result<Planet> {
    let mut planet = Planet::of_nodes(Path::new(env!("CARGO_BIN_EXE_meridian")), dir, nodes)?;
    for node in 0..planet.nodes() {
        planet.start_with(node, launch)?;
    }
    planet.ready(PATIENCE).await?;
    planet.create_buckets().await?;
    Ok(planet)
}

fn name(planet: &Planet, node: usize) -> anyhow::Result<NodeName> {
    Ok(NodeName::new(planet.name(node))?)
}

fn id(planet: &Planet, node: usize) -> anyhow::Result<NodeId> {
    Ok(NodeId::of(&name(planet, node)?))
}

/// Adds a node to the first region, and waits until the cluster knows it.
async fn spare(planet: &mut Planet, client: &Client, launch: &Launch) -> anyhow::Result<usize> {
    let node = planet.add(REGIONS[0])?;
    planet.start_with(node, launch)?;
    until(client, "it registers", id(planet, node)?, &[Membership::Spare]).await?;
    Ok(node)
}

async fn until(client: &Client, what: &str, node: NodeId, is: &[Membership]) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let last = client.admin().topology().await.map(|topology| topology.membership(node));
        match last {
            Ok(Some(last)) if is.contains(&last) => return Ok(()),
            _ if Instant::now() < end => sleep(Duration::from_millis(50)).await,
            last => anyhow::bail!("{what}: in vain, {last:?}"),
        }
    }
}

/// Until nothing moves in the first region, and those serve every one of its shards who should.
async fn settled(client: &Client, should: impl Fn(&[NodeId]) -> bool) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        let last = match client.admin().topology().await {
            Ok(topology) if topology.changes.is_empty() => {
                let serving = topology.voters(HOME, ShardId(0)).to_vec();
                let same = |shard| topology.voters(HOME, ShardId(shard)) == serving;
                anyhow::ensure!((0..topology.shards).all(same), "{topology:?}");
                if should(&serving) {
                    return Ok(());
                }
                format!("served by {serving:?}")
            }
            Ok(topology) => format!("still moving: {:?}", topology.changes),
            Err(why) => why.to_string(),
        };
        anyhow::ensure!(Instant::now() < end, "{last}");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Until one node of a region votes in the metadata plane, and no more, as whoever is asked sees it.
async fn one_votes(client: &Client, region: &[NodeId], asked: NodeId) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match client.admin().node_status(asked).await.map(|status| status.metadata_voters) {
            Ok(voters) if region.iter().filter(|node| voters.contains(node)).count() == 1 => return Ok(()),
            last => anyhow::ensure!(Instant::now() < end, "{last:?}"),
        }
        sleep(Duration::from_millis(100)).await;
    }
}

async fn change(client: &Client, change: MembersChange) -> anyhow::Result<()> {
    let region = RegionName::new(REGIONS[0])?;
    client.admin().change_members(&region, &change, true).await?;
    let end = Instant::now() + PATIENCE;
    loop {
        match client.admin().change_members(&region, &change, false).await {
            Ok(_) => return Ok(()),
            // It is made, though whoever was asked had not heard of that in time. A second abort would have nothing to give up.
            Err(why) if why.effect == Effect::Applied => return Ok(()),
            // A node that has just registered has no lease yet.
            Err(why) if why.kind == RefusalKind::Unavailable && Instant::now() < end => {
                sleep(Duration::from_millis(100)).await
            }
            Err(why) => return Err(anyhow::Error::from(why).context(format!("{change}"))),
        }
    }
}

/// Removes a node, once its lease has run out and nobody rests on its vote.
async fn remove(client: &Client, name: &NodeName) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match client.admin().remove_node(name, false).await {
            Ok(()) => return Ok(()),
            Err(why) if why.kind == RefusalKind::Unavailable && Instant::now() < end => {
                sleep(Duration::from_millis(200)).await
            }
            Err(why) => return Err(anyhow::Error::from(why).context(format!("removing {name}"))),
        }
    }
}

async fn ended(planet: &mut Planet, node: usize) -> anyhow::Result<ExitStatus> {
    let end = Instant::now() + PATIENCE;
    loop {
        match planet.ended(node)? {
            Some(status) => return Ok(status),
            None if Instant::now() < end => sleep(Duration::from_millis(50)).await,
            None => anyhow::bail!("{} goes on; {}", planet.name(node), planet.log_tail(node)),
        }
    }
}

/// A node whose shards are held by others ends by itself, as one that was asked to.
async fn ends_by_itself(planet: &mut Planet, node: usize) -> anyhow::Result<()> {
    let status = ended(planet, node).await?;
    anyhow::ensure!(status.success(), "{status}; {}", planet.log_tail(node));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_is_replaced_by_itself_and_a_leading_one_is_drained_while_clients_go_on() -> anyhow::Result<()> {
    let _alone = ALONE.lock().await;
    let dir = tempfile::Builder::new().prefix("meridian-members").tempdir()?;
    let environment = vec![("MERIDIAN_LIMITS__REPAIR_AFTER_MS".to_owned(), "1000".to_owned())];
    let launch = Launch { environment, ..Launch::default() };
    let mut planet = planet(dir.path(), [3, 1, 1], &launch).await?;
    let stop = CancellationToken::new();
    let writers = trial::start_writers(&planet, &stop).await?;
    let client = planet.client(planet.nodes_of(REGIONS[1])[0]).await?;
    let [first, second, third] = planet.nodes_of(REGIONS[0])[..] else { anyhow::bail!("three nodes") };

    // One dies with its disk. A spare takes its place, though another member is killed meanwhile.
    let fourth = spare(&mut planet, &client, &launch).await?;
    planet.kill(second)?;
    planet.lose_disk(second)?;
    let taking = [Membership::Joining, Membership::Member];
    until(&client, "a spare takes its place", id(&planet, fourth)?, &taking).await?;
    planet.kill(third)?;
    sleep(Duration::from_millis(500)).await;
    planet.start_with(third, &launch)?;
    let repaired = [id(&planet, first)?, id(&planet, fourth)?, id(&planet, third)?];
    settled(&client, |serving| serving == repaired).await?;
    remove(&client, &name(&planet, second)?).await?;

    // Its machine is back, with an empty disk and the old name: it is nobody.
    planet.start_with(second, &launch)?;
    let status = ended(&mut planet, second).await?;
    anyhow::ensure!(!status.success() && planet.log(second).contains("was removed from the cluster"), "{status}");
    anyhow::ensure!(client.admin().topology().await?.membership(id(&planet, second)?).is_none(), "it is back");

    // The one that votes for its region in the metadata plane is drained, and leads a third of the shards.
    let fifth = spare(&mut planet, &client, &launch).await?;
    change(&client, MembersChange::Drain(vec![name(&planet, first)?])).await?;
    let here = [id(&planet, fifth)?, id(&planet, fourth)?, id(&planet, third)?];
    settled(&client, |serving| serving == here).await?;
    ends_by_itself(&mut planet, first).await?;
    remove(&client, &name(&planet, first)?).await?;
    one_votes(&client, &here, here[1]).await?;

    stop.cancel();
    let ledgers = writers.join_all().await;
    planet.ready(PATIENCE).await?;
    trial::judge(&planet, &ledgers, PATIENCE).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_grows_from_one_node_to_three_outlives_the_first_and_shrinks_again() -> anyhow::Result<()> {
    let _alone = ALONE.lock().await;
    let dir = tempfile::Builder::new().prefix("meridian-members-grow").tempdir()?;
    let launch = Launch::default();
    let mut planet = planet(dir.path(), [1, 1, 1], &launch).await?;
    let stop = CancellationToken::new();
    let writers = trial::start_writers(&planet, &stop).await?;
    let client = planet.client(planet.nodes_of(REGIONS[1])[0]).await?;
    let first = planet.nodes_of(REGIONS[0])[0];
    let (second, third) = (spare(&mut planet, &client, &launch).await?, spare(&mut planet, &client, &launch).await?);
    change(&client, MembersChange::Join(vec![name(&planet, second)?, name(&planet, third)?])).await?;
    settled(&client, |serving| serving.len() == 3).await?;
    planet.ready(PATIENCE).await?;

    // What was there before there were three outlives the one that had it.
    planet.kill(first)?;
    let beside = planet.client(second).await?;
    for (bucket, _) in chaos::real::BUCKETS {
        beside.bucket(bucket)?.put("without", "the first").deadline(PATIENCE).await?;
    }
    planet.start_with(first, &launch)?;
    planet.ready(PATIENCE).await?;

    // What is taken back half way leaves nothing behind; then to the third alone.
    let leaving = MembersChange::Drain(vec![name(&planet, first)?, name(&planet, second)?]);
    change(&client, leaving.clone()).await?;
    change(&client, MembersChange::Abort).await?;
    settled(&client, |serving| serving.len() == 3).await?;
    change(&client, leaving).await?;
    let alone = [id(&planet, third)?];
    settled(&client, |serving| serving == alone).await?;
    for gone in [first, second] {
        ends_by_itself(&mut planet, gone).await?;
    }
    remove(&client, &name(&planet, second)?).await?;

    stop.cancel();
    let ledgers = writers.join_all().await;
    planet.ready(PATIENCE).await?;
    trial::judge(&planet, &ledgers, PATIENCE).await
}
