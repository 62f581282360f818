//! `meridian backup restore`: checks that a bucket may be written into, writes, and counts what is there afterwards.
//!
//! A bucket that is being restored into carries a label with the backup's id until it is done: so a restore that was cut short is
//! known as one, and goes on.

use std::time::{Duration, Instant};

use clap::Args;
use meridian_client::{Client, ReadLevel, RefusalKind};
use meridian_types::{Bucket, BucketName, BucketSpec, Labels, RegionName};
use serde::Serialize;

use super::{chosen, existing};
use crate::backup::BackupId;
use crate::backup::chain::Chain;
use crate::backup::manifest::Manifest;
use crate::backup::moment::{Gap, Pick};
use crate::backup::restore::{Restored, Target};
use crate::backup::writes::Manner;
use crate::cli::bucket::settings::policy_of;
use crate::cli::connect::Connection;
use crate::cli::exit::Failure;
use crate::cli::moment::{moment, parse_past};
use crate::output::{Format, Progress, Show, bytes, count, millis, note, show};

/// The label of a bucket that is being restored into.
const LABEL: &str = "meridian/restore";

/// How long what was acknowledged may take to be counted: a follower may be asked.
const COUNT_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Args)]
pub(in crate::cli) struct RestoreArgs {
    /// A path, file:///PATH, or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "PLACE")]
    from: String,
    /// As `backup list` names it; not needed where there is only one.
    #[arg(long)]
    id: Option<BackupId>,
    /// As the bucket was at this time: in UTC such as 2026-11-20T02:00:30Z, or in milliseconds since 1970. Of each shard everything that
    /// was acknowledged by then, by the clock of the region that was read, and nothing that was begun later. --id names a backup
    /// that was taken afterwards.
    #[arg(long, value_name = "TIME", requires = "id", value_parser = parse_past)]
    at: Option<u64>,
    /// The bucket it is written into; must be empty.
    #[arg(long, value_name = "NAME")]
    to_bucket: BucketName,
    /// Create the bucket, with the policy that the backup's had unless --policy says otherwise.
    #[arg(long)]
    create: bool,
    /// How the new bucket replicates: async, sync, active-active, or a preset.
    #[arg(long, requires = "create")]
    policy: Option<String>,
    /// For sync: how many regions must have a write, the primary counted.
    #[arg(long, requires = "policy")]
    acks: Option<String>,
    /// The regions that hold the new bucket [default: all].
    #[arg(long, value_delimiter = ',', requires = "create")]
    regions: Vec<RegionName>,
    /// The region that accepts writes [default: the first of its regions].
    #[arg(long, requires = "create")]
    primary: Option<RegionName>,
    /// Write into a bucket that holds keys, over those that the backup has too; the others stay.
    #[arg(long, conflicts_with = "create")]
    overwrite: bool,
    /// Keys written at a time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    parallel: u16,
    /// Read the backup and say what would be written; change nothing.
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(args: RestoreArgs, connection: &Connection, format: Format) -> anyhow::Result<()> {
    let place = existing(&args.from)?;
    let manifest = chosen(&place, args.id.clone()).await?;
    let id = &manifest.id;
    let chain = Chain::of(&place, manifest.clone()).await?.whole();
    let chain = chain.map_err(|why| Failure::failed(format!("{id} can't be restored: {why}")))?;
    let picks = args.at.map(|at_ms| Ok::<_, Failure>((at_ms, picked(&chain, at_ms)?))).transpose()?;
    let client = connection.connect().await?;
    let (bucket, found) = target(&args, &manifest, &client).await?;
    let counts = chain.counters() > 0;
    let manner = manner(&args, counts, &bucket, (found, keys_found(&client, &bucket, found).await?))?;
    if !args.dry_run {
        client.admin().set_labels(&bucket.name, labels(&args, &manifest), Vec::new()).await?;
    }
    let begun = Instant::now();
    let words = if args.dry_run { "reading" } else { "restoring" };
    let progress = Progress::of_bytes(&format!("{words} {id}"), chain.length());
    let written = Target {
        client: (!args.dry_run).then_some(&client),
        bucket: bucket.name.clone(),
        manner,
        parallel: usize::from(args.parallel),
        at: picks,
    };
    let restored = written.write(&place, &chain, &|length| progress.advance(length)).await;
    let restored = restored.inspect_err(|_| progress.abandon()).map_err(|why| why.context(what_now(counts, manner)))?;
    progress.finish();
    let mut report = Report::of(&manifest, &bucket, restored, &args);
    if !args.dry_run {
        report.counted = Some(count_keys(&client, &bucket, report.least()).await?);
    }
    report.took_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    show(format, &report)?;
    report.verdict()?;
    if args.dry_run {
        return Ok(());
    }
    client.admin().set_labels(&bucket.name, Labels::new(), vec![LABEL.to_owned()]).await?;
    note(&format!("next: `meridian bucket show {}`", bucket.name));
    Ok(())
}

/// How the bucket was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// It was not there: it is created, or would be.
    New,
    /// This very restore was cut short before.
    CutShort,
    /// Somebody else's.
    There,
}

/// Where a moment is in every shard.
fn picked(chain: &Chain, at_ms: u64) -> Result<Vec<Pick>, Failure> {
    chain.picks(at_ms).map_err(|(shard, gap)| {
        let id = &chain.last().id;
        let why = match gap {
            Gap::Before => "restore an earlier chain, if there is one",
            Gap::After => "name one that was taken afterwards",
            Gap::Between => "see `meridian backup show`; restore what there is at either one's end",
        };
        Failure::invalid(format!("{} is {gap} up to {id} (shard {shard}): {why}", moment(at_ms)))
    })
}

/// What a bucket carries while this restore is under way. One that overwrites, or is of a moment, is another one than one that is not.
fn labels(args: &RestoreArgs, manifest: &Manifest) -> Labels {
    let how = if args.overwrite { " overwrite" } else { "" };
    let at = args.at.map(|at_ms| format!(" at {at_ms}")).unwrap_or_default();
    Labels::from([(LABEL.to_owned(), format!("{}{at}{how}", manifest.id))])
}

/// The bucket, which is created if that is asked for and it is not there from an earlier attempt.
async fn target(args: &RestoreArgs, manifest: &Manifest, client: &Client) -> anyhow::Result<(Bucket, Found)> {
    let topology = client.admin().topology().await?;
    let (name, labels) = (&args.to_bucket, labels(args, manifest));
    if let Some(bucket) = topology.bucket_named(name.as_str()) {
        let cut_short = bucket.labels.get(LABEL) == labels.get(LABEL);
        if cut_short || !args.create {
            return Ok((bucket.as_ref().clone(), if cut_short { Found::CutShort } else { Found::There }));
        }
    }
    if !args.create {
        return Err(
            Failure::invalid(format!("there is no bucket `{name}`: repeat it with --create to create it")).into()
        );
    }
    let policy = match &args.policy {
        Some(policy) => policy_of(policy, args.acks.as_deref())?,
        None => manifest.bucket.policy,
    };
    let (regions, primary) = (args.regions.clone(), args.primary.clone());
    let spec = BucketSpec { name: name.clone(), policy, regions, primary, labels, auto: Default::default() };
    match client.admin().create_bucket(&spec, args.dry_run).await {
        Err(why) if why.kind == RefusalKind::Exists => Err(Failure::invalid(format!(
            "there is a bucket `{name}` already: leave --create out to restore into it, or choose another name"
        ))
        .into()),
        created => Ok((created?, Found::New)),
    }
}

/// Keys that are in the bucket; 0 says that it is empty, by a strong read where there are any.
async fn keys_found(client: &Client, bucket: &Bucket, found: Found) -> anyhow::Result<u64> {
    if found == Found::New {
        return Ok(0);
    }
    let level = if bucket.policy.has_primary() { ReadLevel::Strong } else { ReadLevel::Eventual };
    let scan = client.bucket(bucket.name.as_str())?.reading(level).scan("");
    let first = scan.keys_only().page_size(1).next_page().await?;
    let holds_some = first.is_some_and(|page| !page.items.is_empty());
    Ok(keys_in(client, bucket).await?.max(u64::from(holds_some)))
}

/// How it may be written into a bucket that was found so, with so many keys.
fn manner(
    args: &RestoreArgs,
    has_counters: bool,
    bucket: &Bucket,
    (found, keys): (Found, u64),
) -> Result<Manner, Failure> {
    let (name, holds, everywhere) = (&bucket.name, count(keys), !bucket.policy.has_primary());
    let counts = everywhere && has_counters;
    match found {
        // What it wrote may not have come to where it is looked at.
        Found::CutShort if counts => {
            return Err(Failure::invalid(format!(
                "this restore was cut short, and what it counted in `{name}` would count twice: delete it with `meridian bucket delete {name}` and restore anew"
            )));
        }
        Found::There if keys > 0 && counts => {
            return Err(Failure::invalid(format!(
                "bucket `{name}` holds {holds} keys and every region counts in it: restore into a new one, for counters would be added up"
            )));
        }
        Found::There if keys > 0 && !args.overwrite => {
            return Err(Failure::invalid(format!(
                "bucket `{name}` holds {holds} keys: restore into a new one, or repeat it with --overwrite to write over them"
            )));
        }
        Found::CutShort => note(&format!("this restore was cut short before: it goes on, {holds} keys are there")),
        Found::New | Found::There => {}
    }
    Ok(match everywhere {
        true => Manner::Everywhere,
        false if args.overwrite => Manner::Over,
        false => Manner::IfAbsent,
    })
}

/// Live keys where the bucket is written: at its primary, or the most that any region has.
async fn keys_in(client: &Client, bucket: &Bucket) -> anyhow::Result<u64> {
    let topology = client.admin().topology().await?;
    let mut most = 0;
    for region in client.admin().digests(Some(&bucket.name)).await? {
        let id = topology.region_named(region.region.as_str()).map(|region| region.id);
        if !id.is_some_and(|id| bucket.accepts_writes_in(id)) {
            continue;
        }
        let shards = region.answer?;
        most = most.max(shards.iter().map(|shard| shard.digest.keys).sum());
    }
    Ok(most)
}

/// How many keys are there, once it is as many as there must be, or after a while.
async fn count_keys(client: &Client, bucket: &Bucket, least: u64) -> anyhow::Result<u64> {
    let until = Instant::now() + COUNT_PATIENCE;
    loop {
        let keys = keys_in(client, bucket).await?;
        if keys >= least || Instant::now() > until {
            return Ok(keys);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn what_now(has_counters: bool, manner: Manner) -> &'static str {
    if manner == Manner::Everywhere && has_counters {
        return "the restore was cut short: counters of what was written would count twice, so delete the bucket and restore anew";
    }
    "the restore was cut short: what was written stays; run it again to go on"
}

/// What it came to.
#[derive(Debug, Serialize)]
struct Report {
    backup: String,
    /// Of which moment it is, if not of its end.
    at_ms: Option<u64>,
    bucket: String,
    dry_run: bool,
    #[serde(flatten)]
    restored: Restored,
    /// Keys in the bucket afterwards.
    counted: Option<u64>,
    took_ms: u64,
}

impl Report {
    fn of(manifest: &Manifest, bucket: &Bucket, restored: Restored, args: &RestoreArgs) -> Report {
        let (backup, bucket) = (manifest.id.to_string(), bucket.name.to_string());
        Report { backup, at_ms: args.at, bucket, dry_run: args.dry_run, restored, counted: None, took_ms: 0 }
    }

    /// Keys that must be there: those that expire may have done so by now.
    fn least(&self) -> u64 {
        let Restored { keys, expiring, present, .. } = self.restored;
        keys - expiring + present
    }

    fn verdict(&self) -> Result<(), Failure> {
        match self.counted {
            Some(counted) if counted < self.least() => Err(Failure::failed(format!(
                "{} keys were written to `{}` and {} are there: is somebody deleting them? run it again",
                count(self.least()),
                self.bucket,
                count(counted)
            ))),
            Some(_) | None => Ok(()),
        }
    }
}

impl Show for Report {
    fn text(&self) -> String {
        let it = &self.restored;
        let mut text = format!(
            "{} {}{} into `{}`: {} keys ({}) in {}",
            if self.dry_run { "would restore" } else { "restored" },
            self.backup,
            self.at_ms.map(|at_ms| format!(" as of {}", moment(at_ms))).unwrap_or_default(),
            self.bucket,
            count(it.keys),
            bytes(it.bytes),
            millis(self.took_ms),
        );
        for (number, what) in [
            (it.expiring, "of them expire"),
            (it.present, "were there already and stay as they are"),
            (it.expired, "had expired and were left out"),
        ] {
            if number > 0 {
                text.push_str(&format!(", {} {what}", count(number)));
            }
        }
        if let Some(counted) = self.counted {
            text.push_str(&format!("; counted in the bucket: {} keys", count(counted)));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(keys: u64, expiring: u64, present: u64, counted: u64) -> Report {
        Report {
            backup: "b".to_owned(),
            at_ms: None,
            bucket: "orders".to_owned(),
            dry_run: false,
            restored: Restored { keys, expiring, present, bytes: 2048, ..Restored::default() },
            counted: Some(counted),
            took_ms: 1500,
        }
    }

    #[test]
    fn what_was_written_must_be_there_unless_it_expires() {
        assert!(report(10, 3, 5, 12).verdict().is_ok());
        assert!(report(10, 3, 5, 11).verdict().is_err());
        let text = report(1200, 3, 0, 1200).text();
        assert_eq!(
            text,
            "restored b into `orders`: 1,200 keys (2.0 KiB) in 1.50 s, 3 of them expire; counted in the bucket: 1,200 keys"
        );
    }
}
