//! `meridian backup`: buckets out of the cluster, each shard as it was at one moment, while they serve; and back into a bucket.

use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use meridian_client::Client;
use meridian_types::{Bucket, BucketName, Node, RegionId, RegionName, Topology};

use super::connect::Connection;
use super::exit::Failure;
use super::moment::{moment, now_ms};
use super::resync::nodes_of;
use crate::backup::BackupId;
use crate::backup::chain::{Chain, LINKS_MAX, ends, newest};
use crate::backup::create::{Source, finish};
use crate::backup::delete::{self, obstacle};
use crate::backup::manifest::{Base, BucketEntry, Manifest};
use crate::backup::place::{Place, State};
use crate::backup::verify::verify;
use crate::output::{Format, Progress, note, show};

mod restore;
mod view;

use view::{Created, List, Shown, Verified};

/// How long it may take to know how much there is: no backup waits for a region that is down.
const ETA_WITHIN: Duration = Duration::from_millis(500);

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Back buckets up as they are now, while they serve.
    Create(CreateArgs),
    /// List what is kept at a place.
    List {
        /// A path, file:///PATH, or s3://BUCKET/PREFIX.
        #[arg(long, value_name = "PLACE")]
        from: String,
    },
    /// Show one backup, shard by shard.
    Show(Which),
    /// Read backups and hold them against what was written; exit code 1 when anything is damaged or missing.
    Verify(Which),
    /// Write a backup into a bucket of this cluster, whichever it is of.
    Restore(restore::RestoreArgs),
    /// Remove a backup that no other rests on.
    Delete {
        /// A path, file:///PATH, or s3://BUCKET/PREFIX.
        #[arg(long, value_name = "PLACE")]
        from: String,
        /// As `backup list` names it.
        #[arg(long)]
        id: BackupId,
        /// Only say what would be removed.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// The buckets.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    buckets: Vec<BucketName>,
    /// Every bucket there is, one after the other.
    #[arg(long)]
    all: bool,
    /// Where to: a path, file:///PATH, or s3://BUCKET/PREFIX with what the environment says of it (AWS_ACCESS_KEY_ID,
    /// AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT).
    #[arg(long, value_name = "PLACE")]
    to: String,
    /// Keep only what changed since the newest backup of each bucket there; all of it where there is none.
    #[arg(long)]
    incremental: bool,
    /// Keep only what changed since this backup.
    #[arg(long, value_name = "BACKUP", conflicts_with_all = ["incremental", "all"])]
    since: Option<BackupId>,
    /// The region that is read [default: the primary; of an active-active bucket, the first that holds it].
    #[arg(long = "in", value_name = "REGION")]
    read_in: Option<RegionName>,
    /// Shards read at a time.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=16))]
    parallel: u8,
}

#[derive(Debug, Args)]
pub(super) struct Which {
    /// A path, file:///PATH, or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "PLACE")]
    from: String,
    /// As `backup list` names it; not needed where there is only one.
    #[arg(long)]
    id: Option<BackupId>,
}

pub(super) async fn run(command: Command, connection: &Connection, format: Format) -> anyhow::Result<()> {
    match command {
        Command::Create(args) => create(args, &connection.connect().await?, format).await,
        Command::List { from } => list(&existing(&from)?, format).await,
        Command::Show(which) => {
            let place = existing(&which.from)?;
            show(format, &Shown::of(chosen(&place, which.id).await?))
        }
        Command::Verify(which) => verify_all(which, format).await,
        Command::Restore(args) => restore::run(args, connection, format).await,
        Command::Delete { from, id, dry_run } => remove(&existing(&from)?, &id, dry_run).await,
    }
}

fn existing(place: &str) -> Result<Place, Failure> {
    Place::open(place, false).map_err(|why| Failure::invalid(format!("{why:#}")))
}

async fn create(args: CreateArgs, client: &Client, format: Format) -> anyhow::Result<()> {
    let topology = client.admin().topology().await?;
    let place = Place::open(&args.to, true).map_err(|why| Failure::invalid(format!("{why:#}")))?;
    let named = |name: &BucketName| {
        topology.bucket_named(name.as_str()).ok_or_else(|| {
            Failure::invalid(format!("there is no bucket `{name}`: `meridian bucket list` shows what there is"))
        })
    };
    if let (Some(id), 2..) = (&args.since, args.buckets.len()) {
        return Err(Failure::invalid(format!("{id} is of one bucket: name that one, or use --incremental")).into());
    }
    let buckets: Vec<_> = match args.all {
        true => topology.buckets.values().collect(),
        false => args.buckets.iter().map(named).collect::<Result<_, _>>()?,
    };
    // Nothing but one that rests on another needs to know what there is.
    let all = if args.incremental { place.manifests().await? } else { Vec::new() };
    let mut created = Vec::new();
    for bucket in buckets {
        created.push(back_up(&args, (client, &topology), bucket, (&place, &all)).await?);
    }
    show(format, &Created::of(created))?;
    note(&format!("next: `meridian backup verify --from {place}` reads it back and proves it whole"));
    Ok(())
}

async fn back_up(
    args: &CreateArgs,
    (client, topology): (&Client, &Topology),
    bucket: &Bucket,
    (place, all): (&Place, &[Manifest]),
) -> anyhow::Result<Manifest> {
    let cluster = topology.cluster.map(|it| it.to_string()).unwrap_or_default();
    let base = base_of(args, (&cluster, topology.shards), bucket, (place, all)).await?;
    let (region, nodes) = read_from(args, topology, bucket)?;
    let begun_ms = now_ms();
    let id = new_id(&bucket.name, begun_ms)?;
    let expected = live_bytes(client, &bucket.name).await;
    let progress = Progress::of_bytes(&format!("backing up {}", bucket.name), expected);
    let source = Source { client, bucket: &bucket.name, nodes: &nodes, place, id: &id, base: base.as_ref() };
    let shards = source.shards(topology.shards, usize::from(args.parallel), |bytes| progress.advance(bytes)).await;
    let shards = shards.inspect_err(|_| progress.abandon())?;
    progress.finish();
    let label = |id: &RegionId| RegionName::new(&topology.region_label(*id));
    let manifest = Manifest {
        id,
        cluster,
        tool: env!("CARGO_PKG_VERSION").to_owned(),
        begun_ms,
        ended_ms: now_ms(),
        region,
        bucket: BucketEntry {
            name: bucket.name.clone(),
            policy: bucket.policy,
            regions: bucket.regions.iter().map(label).collect::<Result<_, _>>()?,
            primary: bucket.primary.as_ref().map(label).transpose()?,
            labels: bucket.labels.clone(),
        },
        base: base.map(|base| Base { id: base.last().id.clone(), seal: base.last().seal() }),
        shards,
    };
    finish(place, &manifest).await?;
    tell_why(&manifest);
    Ok(manifest)
}

/// What a backup of a bucket is to rest on.
async fn base_of(
    args: &CreateArgs,
    (cluster, shards): (&str, u16),
    bucket: &Bucket,
    (place, all): (&Place, &[Manifest]),
) -> anyhow::Result<Option<Chain>> {
    let name = &bucket.name;
    let base = match &args.since {
        Some(id) => chosen(place, Some(id.clone())).await?,
        None if !args.incremental => return Ok(None),
        None => match newest(all, cluster, name) {
            Some(base) => base.clone(),
            None => {
                note(&format!("{place} has no backup of `{name}` of this cluster: this one is whole"));
                return Ok(None);
            }
        },
    };
    let id = base.id.clone();
    if base.cluster != cluster || base.bucket.name != *name || base.shards.len() != usize::from(shards) {
        let of = &base.bucket.name;
        return Err(Failure::invalid(format!(
            "{id} is of bucket `{of}` of cluster {}: what changed in `{name}` since can't be told from it",
            base.cluster
        ))
        .into());
    }
    let chain = Chain::of(place, base).await?;
    if chain.links().len() >= LINKS_MAX {
        note(&format!("{id} rests on {} others, which is as many as may: this one is whole", LINKS_MAX - 1));
        return Ok(None);
    }
    match chain.whole() {
        Ok(chain) => Ok(Some(chain)),
        Err(why) if args.since.is_some() => Err(Failure::failed(format!("nothing can rest on {id}: {why}")).into()),
        Err(why) => {
            note(&format!("nothing can rest on {id}: {why}; this one is whole"));
            Ok(None)
        }
    }
}

/// Says why more of a shard was read or kept than what changed, each reason once.
fn tell_why(manifest: &Manifest) {
    let mut told: std::collections::BTreeMap<&str, Vec<String>> = std::collections::BTreeMap::new();
    for shard in &manifest.shards {
        shard.why.iter().for_each(|why| told.entry(why).or_default().push(shard.shard.to_string()));
    }
    for (why, shards) in told {
        let which = if shards.len() == manifest.shards.len() { "every shard".to_owned() } else { shards.join(", ") };
        note(&format!("{}, shards {which}: {why}", manifest.id));
    }
}

/// Removes a backup, unless others would be nothing without it.
async fn remove(place: &Place, id: &BackupId, dry_run: bool) -> anyhow::Result<()> {
    let obstacle = if dry_run { obstacle(place, id).await? } else { delete::remove(place, id).await? };
    if let Some(why) = obstacle {
        return Err(Failure::invalid(format!(
            "{id} is not removed: {why}; `meridian backup list --from {place}` shows what there is"
        ))
        .into());
    }
    note(&format!("{id} {} removed from {place}", if dry_run { "would be" } else { "is" }));
    Ok(())
}

/// The region that is read, and its nodes.
fn read_from(args: &CreateArgs, topology: &Topology, bucket: &Bucket) -> anyhow::Result<(RegionName, Vec<Node>)> {
    let own = || bucket.primary.or_else(|| bucket.regions.first().copied()).and_then(|id| topology.regions.get(&id));
    let region = args.read_in.clone().or_else(|| own().map(|region| region.name.clone()));
    let region = region.ok_or_else(|| Failure::not_ready(format!("no region holds bucket `{}` now", bucket.name)))?;
    let nodes: Vec<Node> = nodes_of(topology, &region)?.into_iter().filter(|node| !node.is_witness()).collect();
    if nodes.is_empty() {
        return Err(Failure::invalid(format!("region {region} has no node that holds data")).into());
    }
    Ok((region, nodes))
}

/// `orders-20261128T234501Z-3fa2`.
fn new_id(bucket: &BucketName, begun_ms: u64) -> anyhow::Result<BackupId> {
    let at: String = moment(begun_ms).replace(' ', "T").chars().filter(char::is_ascii_alphanumeric).collect();
    format!("{bucket}-{at}-{:04x}", rand::random::<u16>()).parse().map_err(anyhow::Error::msg)
}

/// About how much there is to read, for the ETA; 0 when not every region says so at once.
async fn live_bytes(client: &Client, bucket: &BucketName) -> u64 {
    let asked = tokio::time::timeout(ETA_WITHIN, client.admin().digests(Some(bucket))).await;
    let Ok(Ok(regions)) = asked else { return 0 };
    let known = regions.iter().filter_map(|region| region.answer.as_ref().ok());
    known.map(|shards| shards.iter().map(|shard| shard.digest.bytes).sum()).max().unwrap_or_default()
}

async fn list(place: &Place, format: Format) -> anyhow::Result<()> {
    let mut states = Vec::new();
    for id in place.ids().await? {
        let state = place.state(&id).await?;
        states.push((id, state));
    }
    show(format, &List::of(states))
}

/// The backup that was asked for, or the only one there is.
async fn chosen(place: &Place, id: Option<BackupId>) -> anyhow::Result<Manifest> {
    let id = match id {
        Some(id) => id,
        None => only(place).await?,
    };
    match place.state(&id).await? {
        State::Whole(manifest) => Ok(*manifest),
        State::Unfinished => Err(Failure::invalid(format!(
            "{id} is no backup: it has no manifest; it is still being made, or was cut short, or is not at {place}"
        ))
        .into()),
        State::Damaged(why) => Err(Failure::failed(format!("the manifest of {id} can't be used: {why}")).into()),
    }
}

async fn only(place: &Place) -> anyhow::Result<BackupId> {
    let mut whole = Vec::new();
    for id in place.ids().await? {
        if place.state(&id).await? != State::Unfinished {
            whole.push(id);
        }
    }
    match <[BackupId; 1]>::try_from(whole) {
        Ok([id]) => Ok(id),
        Err(all) if all.is_empty() => Err(Failure::invalid(format!("there is no backup at {place}")).into()),
        Err(all) => Err(Failure::invalid(format!(
            "there are {} backups at {place}: say which with --id; `meridian backup list --from {place}` shows them",
            all.len()
        ))
        .into()),
    }
}

async fn verify_all(which: Which, format: Format) -> anyhow::Result<()> {
    let place = existing(&which.from)?;
    let (mut verified, mut all) = (Verified::default(), Vec::new());
    match which.id {
        Some(id) => all.push(chosen(&place, Some(id)).await?),
        None => {
            for id in place.ids().await? {
                match place.state(&id).await.with_context(|| format!("verifying {id}"))? {
                    State::Unfinished => note(&format!("{id} is no backup: it has no manifest")),
                    State::Damaged(why) => verified.unreadable(&id, &why),
                    State::Whole(manifest) => all.push(*manifest),
                }
            }
        }
    }
    // Whoever reads those that none rests on has read all of them.
    for manifest in ends(&all) {
        let chain = Chain::of(&place, manifest.clone()).await?;
        let length = chain.links().iter().map(Manifest::length).sum();
        let progress = Progress::of_bytes(&format!("verifying {}", manifest.bucket.name), length);
        let faults = verify(&place, &chain, &|bytes| progress.advance(bytes)).await;
        progress.finish();
        verified.add(&chain, faults);
    }
    if verified.is_empty() {
        return Err(Failure::invalid(format!("there is no backup at {place}")).into());
    }
    show(format, &verified)?;
    match verified.damaged() {
        0 => Ok(()),
        damaged => Err(Failure::failed(format!(
            "{damaged} backups at {place} are DAMAGED: what is damaged can't be restored, nor what rests on it; make new ones"
        ))
        .into()),
    }
}
