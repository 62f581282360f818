//! Reading every file back from the regions that did not write it, and comparing contents.

use std::sync::Mutex;

use anyhow::Context;
use futures::stream::{self, StreamExt};
use tokio::sync::Semaphore;

use super::report::{Checked, Report};
use super::stage::{Level, Stage};
use crate::output::Progress;
use crate::transfer::{Imported, fetch};

/// What was stored of one file.
pub(super) type Stored = Imported;

/// Files read at a time, per bucket and region.
const IN_FLIGHT_MAX: usize = 48;

/// Content on its way at a time, in units of 64 KiB: 64 MiB. A file counts with at most what `fetch` reads ahead.
const UNIT_BYTES: u64 = 64 << 10;
const UNITS_MAX: usize = 1024;
const UNITS_PER_FILE_MAX: u64 = 128;

/// Up to here every file is read at every level; larger trees rotate through the levels, file by file.
const EVERY_LEVEL_FILES_MAX: usize = 1500;
const EVERY_LEVEL_BYTES_MAX: u64 = 32 << 20;

/// One read to make.
struct Reading<'a> {
    shelf: usize,
    reader: usize,
    writer: usize,
    level: Level,
    stored: &'a Stored,
}

/// Reads at the levels that `wanted` says; per bucket every file from every region but the one that wrote it.
pub(super) async fn check(
    stage: &Stage,
    stored: &[Vec<Vec<Stored>>],
    wanted: impl Fn(Level) -> bool,
    report: &mut Report,
) -> anyhow::Result<()> {
    let every_level = report.files as usize <= EVERY_LEVEL_FILES_MAX && report.bytes <= EVERY_LEVEL_BYTES_MAX;
    let mut lanes: Vec<Vec<Reading<'_>>> = Vec::new();
    for (shelf, writers) in stored.iter().enumerate() {
        let levels: Vec<Level> = stage.levels(shelf).iter().copied().filter(|level| wanted(*level)).collect();
        for reader in 0..stage.actors.len() {
            let others = writers.iter().enumerate().filter(|(writer, _)| *writer != reader);
            let files =
                others.flat_map(|(writer, files)| files.iter().enumerate().map(move |(n, file)| (writer, n, file)));
            let mut lane = Vec::new();
            for (writer, n, stored) in files {
                let rotating = levels[(n + reader) % levels.len()];
                let chosen = levels.iter().filter(|level| every_level || **level == rotating);
                lane.extend(chosen.map(|level| Reading { shelf, reader, writer, level: *level, stored }));
            }
            lanes.push(lane);
        }
    }
    let total = lanes.iter().flatten().map(|reading| reading.stored.fingerprint.size).sum();
    let names: Vec<&str> = Level::ALL.into_iter().filter(|level| wanted(*level)).map(Level::name).collect();
    let progress = Progress::of_bytes(&format!("reading {}", names.join(" and ")), total);
    let room = Semaphore::new(UNITS_MAX);
    let checked = Mutex::new(Checked::default());
    let reads = lanes.iter().map(|lane| {
        stream::iter(lane).for_each_concurrent(IN_FLIGHT_MAX, |reading| {
            let (room, checked, progress) = (&room, &checked, &progress);
            async move {
                let finding = reading.check(stage, room).await;
                progress.advance(reading.stored.fingerprint.size);
                if let Ok(mut checked) = checked.lock() {
                    checked.count(reading.level.name(), reading.stored.fingerprint.size, finding);
                }
            }
        })
    });
    futures::future::join_all(reads).await;
    progress.finish();
    report.add_checked(checked.into_inner().map_err(|_| anyhow::anyhow!("a check panicked"))?);
    Ok(())
}

impl Reading<'_> {
    /// What is wrong with it, if anything.
    async fn check(&self, stage: &Stage, room: &Semaphore) -> Option<String> {
        let found = self.read(stage, room).await;
        let expected = self.stored.fingerprint;
        let what = match found {
            Ok(Some(found)) if found == expected => return None,
            Ok(Some(found)) => format!("has {} bytes, or other ones, instead of {}", found.size, expected.size),
            Ok(None) => "is absent".to_owned(),
            Err(error) => format!("can't be read: {error:#}"),
        };
        Some(format!(
            "{} in {}, read {} from {} (written in {}): {what}",
            String::from_utf8_lossy(&self.stored.key),
            stage.shelves[self.shelf].name,
            self.level.name(),
            stage.actors[self.reader].region,
            stage.actors[self.writer].region,
        ))
    }

    async fn read(&self, stage: &Stage, room: &Semaphore) -> anyhow::Result<Option<crate::transfer::Fingerprint>> {
        let units = (self.stored.fingerprint.size / UNIT_BYTES).clamp(1, UNITS_PER_FILE_MAX);
        let _room = room.acquire_many(u32::try_from(units)?).await.context("the demo is ending")?;
        let view = stage.view(self.shelf, self.reader, self.writer, self.level)?;
        fetch(&view, &self.stored.key, |_| Ok(())).await
    }
}
