//! The demo from beginning to end.

use std::time::Instant;

use anyhow::Context;
use futures::future::try_join_all;

use super::concurrent;
use super::converge::{self, LagWatch};
use super::latency;
use super::read_back::{self, Stored};
use super::report::Report;
use super::stage::{Level, Stage};
use crate::dev::Plan;
use crate::output::{Progress, bytes, count, note};
use crate::transfer::{Importer, Listing, SourceFile};

/// Keys on their way per bucket and region, and bytes over all of them: a few per bucket, since what the sync bucket
/// is waiting for travels beside what the others have already been told is done.
const IN_FLIGHT_MAX: usize = 64;
const IN_FLIGHT_BYTES_MAX: usize = 24 << 20;

/// Imports, checks, measures, compares.
pub(super) async fn tour(plan: &Plan, listing: &Listing) -> anyhow::Result<Report> {
    let started = Instant::now();
    let stage = Stage::set(plan).await.context("cannot set the stage")?;
    let mut report = Report::new(&stage, listing);
    note(&format!(
        "importing {} files ({}) into {} buckets, a third from each region",
        count(listing.files.len() as u64),
        bytes(listing.bytes),
        stage.shelves.len()
    ));
    let watch = LagWatch::start(&stage);
    let stored = import(&stage, listing).await?;
    note("reading back from the other regions, while replication is still under way");
    read_back::check(&stage, &stored, Level::sees_at_once, &mut report).await?;
    report.converged_after = converge::wait_until_equal(&stage).await?;
    report.lag = watch.stop().await;
    note("every region has seen every write: reading back what the nearest replica has");
    read_back::check(&stage, &stored, |level| !level.sees_at_once(), &mut report).await?;
    concurrent::write_everywhere(&stage, &mut report).await?;
    note("measuring latencies, one request at a time from each region");
    report.latencies = latency::measure(&stage).await?;
    converge::wait_until_equal(&stage).await?;
    concurrent::check(&stage, &mut report).await?;
    converge::compare(&stage, &mut report).await?;
    report.took = started.elapsed();
    Ok(report)
}

/// Every file into every bucket; file `n` through the region `n mod 3`.
async fn import(stage: &Stage, listing: &Listing) -> anyhow::Result<Vec<Vec<Vec<Stored>>>> {
    let importer = Importer::new(IN_FLIGHT_MAX, IN_FLIGHT_BYTES_MAX);
    let regions = stage.actors.len();
    let shelves = stage.shelves.iter().enumerate().map(|(shelf, description)| {
        let progress = Progress::of_bytes(description.name.as_str(), listing.bytes);
        let importer = &importer;
        async move {
            let writers = (0..regions).map(|writer| {
                let files: Vec<&SourceFile> = listing.files.iter().skip(writer).step_by(regions).collect();
                let progress = &progress;
                async move {
                    let view = stage.view(shelf, writer, writer, Level::Session)?;
                    importer.run(&view, files, |file, _| progress.advance(file.size)).await
                }
            });
            let stored = try_join_all(writers).await.inspect_err(|_| progress.abandon());
            let stored = stored.with_context(|| format!("importing into {}", description.name))?;
            progress.finish();
            anyhow::Ok(stored)
        }
    });
    try_join_all(shelves).await
}
