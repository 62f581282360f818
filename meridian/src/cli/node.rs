//! `meridian node`: which nodes there are, and who of them serves its region.

use std::time::{Duration, Instant};

use clap::Subcommand;
use meridian_client::Client;
use meridian_types::{
    MemberChange, MembersChange, Membership, Node, NodeName, RefusalKind, RegionId, RegionName, Topology,
};

use super::connect::Connection;
use super::exit::Failure;
use crate::output::{Format, Progress, note, show};

mod view;
use view::{Change, Detail, List};

/// How often it is looked how far a change is.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// For how long what passes by itself is waited for.
const REST_MAX: Duration = Duration::from_secs(20);

/// For how long no node may tell before the watching is given up; the change goes on.
const SILENCE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the nodes: what each is to its region, and how it is.
    List,
    /// Show one.
    Show {
        /// Which.
        node: NodeName,
    },
    /// Let spares hold the shards of their region, besides the nodes that do: from one node to three, from three to five.
    Join {
        /// Which.
        #[arg(required = true)]
        nodes: Vec<NodeName>,
        #[command(flatten)]
        how: How,
    },
    /// Take the shards of nodes away; spares of their region take their places.
    Drain {
        /// Which.
        #[arg(required = true)]
        nodes: Vec<NodeName>,
        /// Even if one has bundles of what lost primaries kept, which are on its disk alone.
        #[arg(long)]
        leave_bundles: bool,
        #[command(flatten)]
        how: How,
    },
    /// Let a spare take the place of a node, which may be gone.
    Replace {
        /// Who leaves.
        old: NodeName,
        /// Who comes.
        new: NodeName,
        /// Even if the old one has bundles of what lost primaries kept, which are on its disk alone.
        #[arg(long)]
        leave_bundles: bool,
        #[command(flatten)]
        how: How,
    },
    /// Take back the change that is under way in a region.
    Abort {
        /// Which region.
        #[arg(value_name = "REGION")]
        of: RegionName,
        #[command(flatten)]
        how: How,
    },
    /// Take a node that holds nothing, and is stopped, out of the cluster for good.
    Remove {
        /// Which.
        node: NodeName,
        /// Only check that it could be.
        #[arg(long)]
        dry_run: bool,
    },
}

/// How a change is carried out.
#[derive(Debug, clap::Args)]
pub(super) struct How {
    /// Only say what would change.
    #[arg(long)]
    dry_run: bool,
    /// Don't wait for the end.
    #[arg(long)]
    no_wait: bool,
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> anyhow::Result<()> {
    let client = connection.connect().await?;
    match command {
        Command::List => {
            let statuses = client.admin().node_statuses().await?;
            show(format, &List::of(&statuses, &client.known_topology()))
        }
        Command::Show { node } => {
            let topology = client.admin().topology().await?;
            let known = known(&topology, &node)?;
            let status = client.admin().node_status(known.id).await;
            show(format, &Detail::of(known, &status, &topology))
        }
        Command::Join { nodes, how } => change(&client, &nodes, MembersChange::Join(nodes.clone()), &how, format).await,
        Command::Drain { nodes, leave_bundles, how } => {
            check_bundles(&client, &nodes, leave_bundles).await?;
            change(&client, &nodes, MembersChange::Drain(nodes.clone()), &how, format).await
        }
        Command::Replace { old, new, leave_bundles, how } => {
            check_bundles(&client, std::slice::from_ref(&old), leave_bundles).await?;
            let asked = MembersChange::Replace(old.clone(), new);
            change(&client, &[old], asked, &how, format).await
        }
        Command::Abort { of, how } => begin(&client, &of, MembersChange::Abort, &how, format).await,
        Command::Remove { node, dry_run } => remove(&client, &node, dry_run).await,
    }
}

fn known<'a>(topology: &'a Topology, name: &NodeName) -> anyhow::Result<&'a Node> {
    topology.nodes.values().find(|node| node.name == *name).ok_or_else(|| {
        Failure::invalid(format!(
            "there is no node `{name}`: `meridian node list` shows all; a node registers once it is started"
        ))
        .into()
    })
}

/// The change concerns the region that all these nodes are in.
async fn change(
    client: &Client,
    nodes: &[NodeName],
    asked: MembersChange,
    how: &How,
    format: Format,
) -> anyhow::Result<()> {
    let topology = client.admin().topology().await?;
    let mut regions = Vec::new();
    for node in nodes {
        regions.push(known(&topology, node)?.region);
    }
    regions.dedup();
    let [region] = regions.as_slice() else {
        return Err(Failure::invalid("these nodes are in different regions: change one region at a time").into());
    };
    let name = topology.regions.get(region).map(|region| region.name.clone());
    let name = name.ok_or_else(|| Failure::not_ready("the region is not known yet: try again"))?;
    begin(client, &name, asked, how, format).await
}

async fn begin(
    client: &Client,
    region: &RegionName,
    asked: MembersChange,
    how: &How,
    format: Format,
) -> anyhow::Result<()> {
    let begun = patiently(async || client.admin().change_members(region, &asked, how.dry_run).await).await;
    let (id, begun) = begun?;
    let topology = client.admin().topology().await?;
    let size = if how.dry_run { state_bytes(client, &begun).await } else { 0 };
    show(format, &Change::of(id, &begun, &topology, how.dry_run).with_bytes(size))?;
    if how.dry_run || how.no_wait { Ok(()) } else { follow(client, region, id, &begun).await }
}

/// What one of those that serve the region has on disk: as much is sent to whoever joins.
async fn state_bytes(client: &Client, begun: &MemberChange) -> u64 {
    let mut bytes = 0;
    for node in &begun.before {
        // One that does not answer has no less than the others.
        bytes = bytes.max(client.admin().node_status(*node).await.map_or(0, |status| status.state_bytes));
    }
    bytes
}

/// Watches until every shard has moved.
async fn follow(client: &Client, name: &RegionName, region: RegionId, begun: &MemberChange) -> anyhow::Result<()> {
    let shards = client.known_topology().shards;
    let progress = Progress::of_steps(&format!("{name}: moving"), u64::from(shards), "shards");
    let (mut moved, mut heard) = (0, Instant::now());
    loop {
        match client.admin().topology().await {
            Ok(topology) if topology.index >= begun.index => {
                heard = Instant::now();
                let now = topology.changes.get(&region);
                let left = now.filter(|now| now.index == begun.index).map_or(0, |now| now.pending.len() as u64);
                let done = u64::from(shards).saturating_sub(left);
                progress.advance(done.saturating_sub(moved));
                moved = done;
                match now {
                    None => break,
                    Some(now) if now.index != begun.index => {
                        progress.abandon();
                        let why =
                            format!("another change of {name} has begun, by {}: see `meridian node list`", now.who);
                        return Err(Failure::not_ready(why).into());
                    }
                    Some(_) => {}
                }
            }
            Ok(_) => {}
            Err(why) if heard.elapsed() > SILENCE_MAX => {
                progress.abandon();
                return Err(anyhow::Error::from(why).context("the change goes on, but no node tells how far it is"));
            }
            Err(_) => {}
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    progress.finish();
    let topology = client.known_topology();
    let serving = begun.target.iter().filter_map(|node| topology.nodes.get(node)).map(|node| node.name.as_str());
    note(&format!("{name} is served by {}", serving.collect::<Vec<_>>().join(", ")));
    let gone = begun.before.iter().filter(|node| !begun.target.contains(node));
    for node in gone.filter_map(|node| topology.nodes.get(node)) {
        note(&format!(
            "{0} holds nothing any more and ends by itself: `meridian node remove {0}` takes it out",
            node.name
        ));
    }
    Ok(())
}

/// What a lost primary kept is on one node's disk. Whoever lets that node go should know.
async fn check_bundles(client: &Client, nodes: &[NodeName], leave: bool) -> anyhow::Result<()> {
    if leave {
        return Ok(());
    }
    for (node, answer) in client.admin().salvages().await? {
        if !nodes.contains(&node.name) {
            continue;
        }
        let why = match answer {
            Ok(bundles) if bundles.is_empty() => continue,
            Ok(bundles) => format!("{} has {} bundles", node.name, bundles.len()),
            Err(_) => format!("{} does not answer, so that nobody knows whether it has bundles", node.name),
        };
        return Err(Failure::consent(format!(
            "{why} of what lost primaries kept, on its disk alone: write them back or export them (`meridian salvage list`), or say --leave-bundles"
        ))
        .into());
    }
    Ok(())
}

async fn remove(client: &Client, name: &NodeName, dry_run: bool) -> anyhow::Result<()> {
    patiently(async || client.admin().remove_node(name, dry_run).await).await?;
    note(&match dry_run {
        true => format!("{name} holds nothing; it could be removed once it is stopped"),
        false => format!("{name} is removed: its name and its certificate are not used again"),
    });
    Ok(())
}

/// What passes by itself is waited for: a lease that runs out, a vote that goes to another node, a node that has just started.
async fn patiently<T>(ask: impl AsyncFn() -> Result<T, meridian_client::Error>) -> Result<T, meridian_client::Error> {
    let begun = Instant::now();
    let mut said = false;
    loop {
        match ask().await {
            Err(why) if why.kind == RefusalKind::Unavailable && begun.elapsed() < REST_MAX => {
                if !std::mem::replace(&mut said, true) {
                    note(&format!("waiting for up to {} s: {}", REST_MAX.as_secs(), why.message));
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
            answer => return answer,
        }
    }
}

/// What a node is to its region, in a word.
fn is(topology: &Topology, node: &Node) -> &'static str {
    match topology.membership(node.id) {
        Some(Membership::Member) => "member",
        Some(Membership::Joining) => "joining",
        Some(Membership::Leaving) => "leaving",
        Some(Membership::Spare) => "spare",
        Some(Membership::Witness) => "witness",
        None => "unknown",
    }
}
