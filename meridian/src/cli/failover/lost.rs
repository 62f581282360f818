//! `meridian failover run --lost R`: active-active buckets go on without a region that does not come back
//! (docs/adr/2026-11-28-active-active-lost-regions.md). One bucket after the other: each holds its writes until its regions have met.

use std::time::Duration;

use meridian_client::Client;
use meridian_types::{
    BucketChange, BucketEstimate, CROSSING_MS_DEFAULT, Cross, Estimate, RegionChange, RegionName, Topology,
};

use super::super::bucket::cross;
use super::super::operation::OnRecord;
use super::{EstimateView, RunArgs, buckets, check};
use crate::cli::exit::Failure;
use crate::output::{Format, note, show};

/// Estimates, refuses without consent to that much, and does it.
pub(super) async fn run(args: &RunArgs, lost: &RegionName, client: &Client, format: Format) -> anyhow::Result<()> {
    let estimate = args.which.estimate(client).await?;
    args.which.name_left_out(&estimate);
    let topology = client.admin().topology().await?;
    let view = EstimateView::of(&estimate, &topology, &args.which.words());
    if let Err(why) = check_known(&estimate, &topology).and_then(|()| check(args, &estimate, &topology)) {
        show(format, &view)?;
        return Err(why.into());
    }
    for bucket in &estimate.buckets {
        if record(args, bucket).known(client).await?.is_none() {
            client.admin().set_bucket(&bucket.name, &change(args, lost), true).await?;
        }
    }
    if args.dry_run {
        note("these would go on without it; nothing was changed:");
        return show(format, &view);
    }
    let mut failed = Vec::new();
    for bucket in &estimate.buckets {
        if !lose(args, lost, bucket, client).await? {
            failed.push(bucket.name.to_string());
        }
    }
    if failed.is_empty() {
        note(&format!(
            "what {lost} alone has is written down when it comes back: see `meridian salvage list`; add it again with `meridian bucket set BUCKET --add-region {lost}`"
        ));
        return Ok(());
    }
    Err(Failure::restored(format!(
        "{} of {} stay what they were: {}; `meridian operation list` and `show` say why, and `meridian lag` how far the regions are: estimate again",
        failed.len(),
        buckets(estimate.buckets.len()),
        failed.join(", ")
    ))
    .into())
}

/// Removes it from one bucket; whether it came to that.
async fn lose(args: &RunArgs, lost: &RegionName, bucket: &BucketEstimate, client: &Client) -> anyhow::Result<bool> {
    let name = &bucket.name;
    note(&format!("`{name}` goes on without {lost}: clients hold and retry until the other regions have met"));
    let record = record(args, bucket);
    // Run again under the same word, it is watched and not asked for twice.
    if record.known(client).await?.is_none() {
        client.admin().set_bucket(name, &record.stamp(change(args, lost)), false).await?;
    }
    record.tell(client).await?;
    let after = cross::watch(client, name, pause(args) + cross::WATCHED_LONGER).await?;
    let gone = !after.is_in(bucket.from);
    if gone {
        note(&format!("`{name}` is in epoch {} without {lost}", after.epoch));
    }
    Ok(gone)
}

/// An estimate leaves out what is not written in the lost region.
fn check_known(estimate: &Estimate, topology: &Topology) -> Result<(), Failure> {
    let has_primary = |it: &&BucketEstimate| topology.buckets.get(&it.bucket).is_some_and(|it| it.primary.is_some());
    if let Some(other) = estimate.buckets.iter().find(has_primary) {
        return Err(Failure::not_ready(format!(
            "nothing was started: `{}` has a primary: replace it without --lost, or leave it out",
            other.name
        )));
    }
    if estimate.buckets.is_empty() {
        return Err(Failure::not_ready(
            "nothing was started: none of the buckets is written in that region (any more)".to_owned(),
        ));
    }
    Ok(())
}

/// Each bucket's is an operation of its own.
fn record(args: &RunArgs, bucket: &BucketEstimate) -> OnRecord {
    OnRecord::of_bucket(args.op_id.as_deref(), &args.reason, &bucket.name)
}

fn change(args: &RunArgs, lost: &RegionName) -> BucketChange {
    let pause_ms_max = u64::try_from(pause(args).as_millis()).unwrap_or(u64::MAX);
    BucketChange {
        regions: Some(RegionChange::Remove(lost.clone())),
        cross: Some(Cross { primary: None, pause_ms_max }),
        accept_loss: args.accept_loss.clone(),
        ..BucketChange::default()
    }
}

fn pause(args: &RunArgs) -> Duration {
    args.max_pause.unwrap_or(Duration::from_millis(CROSSING_MS_DEFAULT))
}
