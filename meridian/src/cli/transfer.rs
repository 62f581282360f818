//! `meridian import` and `meridian export`: files in and out of a bucket.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::stream::{self, TryStreamExt};
use meridian_client::{Client, ReadLevel, Session};
use meridian_types::{BucketName, WriteAck};
use serde::Serialize;

use super::connect::Connection;
use super::exit::Failure;
use super::words::{parse_ack, parse_duration};
use crate::output::{Format, Progress, Show, bytes, count, duration, note, show};
use crate::transfer::{BucketStore, Imported, Importer, Listing, export as write_back, fetch};

/// Bytes of file content on their way at a time.
const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// The bucket.
    bucket: BucketName,
    /// A directory, or one file. Passes over .git, .meridian, target*, and symbolic links.
    path: PathBuf,
    /// Keys written at a time.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    parallel: u16,
    /// How durable: policy, local, majority, all, or a number of regions.
    #[arg(long, value_name = "ACK", value_parser = parse_ack, default_value = "policy")]
    ack: WriteAck,
    /// Read everything back and compare.
    #[arg(long)]
    verify: bool,
    /// Give up on a key after this long.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "60s")]
    deadline: Duration,
}

#[derive(Debug, clap::Args)]
pub(super) struct ExportArgs {
    /// The bucket.
    bucket: BucketName,
    /// Where to; created where it is missing. Files of the same name are replaced.
    dir: PathBuf,
    /// Give up on a key after this long.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "60s")]
    deadline: Duration,
}

pub(super) async fn import(args: ImportArgs, connection: &Connection, format: Format) -> anyhow::Result<()> {
    let listing = Listing::of(&args.path)?;
    listing.skipped.iter().for_each(|skipped| note(&format!("skipped {skipped}")));
    let client = connection.connect().await?;
    let store = open(&client, &args.bucket, args.ack, args.deadline).await?;
    let started = Instant::now();
    let progress = Progress::of_bytes(&format!("importing {} files", count(listing.files.len() as u64)), listing.bytes);
    let importer = Importer::new(usize::from(args.parallel), IN_FLIGHT_BYTES_MAX);
    let imported = importer.run(&store, &listing.files, |file, _| progress.advance(file.size)).await;
    let imported = imported.inspect_err(|_| progress.abandon())?;
    progress.finish();
    if args.verify {
        verify(&store, &imported).await?;
    }
    show(format, &Summary::of("imported", &imported, started.elapsed(), listing.skipped, args.verify))
}

pub(super) async fn export(args: ExportArgs, connection: &Connection, format: Format) -> anyhow::Result<()> {
    let client = connection.connect().await?;
    let store = open(&client, &args.bucket, WriteAck::Policy, args.deadline).await?;
    std::fs::create_dir_all(&args.dir).with_context(|| format!("cannot create {}", args.dir.display()))?;
    let started = Instant::now();
    let progress = Progress::of_bytes("exporting", live_bytes(&client, &args.bucket).await);
    let exported = write_back(&store, &args.dir, |size| progress.advance(size)).await;
    let exported = exported.inspect_err(|_| progress.abandon())?;
    progress.finish();
    exported.skipped.iter().for_each(|skipped| note(&format!("skipped {skipped}")));
    let skipped = exported.skipped.len();
    show(
        format,
        &Summary {
            what: "exported",
            files: exported.files,
            keys: exported.files,
            bytes: exported.bytes,
            seconds: started.elapsed().as_secs_f64(),
            verified: true,
            skipped: exported.skipped,
        },
    )?;
    if skipped > 0 {
        return Err(Failure::failed(format!("{skipped} keys can't be files and were not exported")).into());
    }
    Ok(())
}

/// About how much there is to export, for the ETA; 0 when nobody says.
async fn live_bytes(client: &Client, bucket: &BucketName) -> u64 {
    let Ok(regions) = client.admin().digests(Some(bucket)).await else { return 0 };
    let known = regions.iter().filter_map(|region| region.answer.as_ref().ok());
    known.map(|shards| shards.iter().map(|shard| shard.digest.bytes).sum()).max().unwrap_or_default()
}

async fn verify(store: &BucketStore, imported: &[Imported]) -> anyhow::Result<()> {
    let progress = Progress::of_bytes("reading back", imported.iter().map(|file| file.fingerprint.size).sum());
    let checks = stream::iter(imported.iter().map(Ok::<_, anyhow::Error>)).try_for_each_concurrent(16, |file| {
        let progress = &progress;
        async move {
            let name = String::from_utf8_lossy(&file.key);
            match fetch(store, &file.key, |_| Ok(())).await.with_context(|| format!("reading {name} back"))? {
                Some(found) if found == file.fingerprint => progress.advance(file.fingerprint.size),
                Some(_) => return Err(Failure::failed(format!("{name} reads back differently")).into()),
                None => return Err(Failure::failed(format!("{name} was acknowledged and is absent")).into()),
            }
            Ok(())
        }
    });
    checks.await.inspect_err(|_| progress.abandon())?;
    progress.finish();
    Ok(())
}

/// Reads are strong; where there are no strong reads (active-active), within the session of the writes.
async fn open(client: &Client, bucket: &BucketName, ack: WriteAck, deadline: Duration) -> anyhow::Result<BucketStore> {
    let topology = client.admin().topology().await?;
    let has_primary = topology.bucket_named(bucket.as_str()).is_none_or(|bucket| bucket.policy.has_primary());
    Ok(BucketStore {
        bucket: client.bucket(bucket.as_str())?,
        ack,
        level: if has_primary { ReadLevel::Strong } else { ReadLevel::Session },
        session: Session::new(),
        deadline,
    })
}

#[derive(Debug, Serialize)]
struct Summary {
    what: &'static str,
    files: u64,
    keys: u64,
    bytes: u64,
    seconds: f64,
    verified: bool,
    skipped: Vec<String>,
}

impl Summary {
    fn of(what: &'static str, imported: &[Imported], took: Duration, skipped: Vec<String>, verified: bool) -> Summary {
        Summary {
            what,
            files: imported.len() as u64,
            keys: imported.iter().map(|file| u64::from(file.keys)).sum(),
            bytes: imported.iter().map(|file| file.fingerprint.size).sum(),
            seconds: took.as_secs_f64(),
            verified,
            skipped,
        }
    }
}

impl Show for Summary {
    fn text(&self) -> String {
        format!(
            "{} {} files ({} keys, {}) in {}{}{}",
            self.what,
            count(self.files),
            count(self.keys),
            bytes(self.bytes),
            duration(Duration::from_secs_f64(self.seconds)),
            if self.verified { ", read back and equal" } else { "" },
            if self.skipped.is_empty() { String::new() } else { format!(", {} skipped", self.skipped.len()) },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_tells_files_bytes_and_whether_they_were_checked() {
        let summary = Summary {
            what: "imported",
            files: 1200,
            keys: 1300,
            bytes: 2 << 20,
            seconds: 2.0,
            verified: true,
            skipped: vec![],
        };
        assert_eq!(summary.text(), "imported 1,200 files (1,300 keys, 2.0 MiB) in 2.00 s, read back and equal");
    }
}
