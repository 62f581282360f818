//! When every region has seen the same writes, and whether they are then equal (ORD-1, CON-4).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use meridian_types::{BucketDigest, BucketId, ShardId};
use tokio::task::JoinHandle;

use super::report::{LagPeak, Report, Shipped};
use super::stage::Stage;

/// How long replication may take to catch up once nobody writes any more.
const WITHIN: Duration = Duration::from_secs(120);

/// How often is asked.
const EVERY: Duration = Duration::from_millis(100);

/// How often lag is sampled while files are imported.
const LAG_EVERY: Duration = Duration::from_millis(250);

/// Region -> (bucket, shard) -> digest.
type Digests = BTreeMap<String, BTreeMap<(BucketId, ShardId), BucketDigest>>;

/// Waits until the positions of every bucket and shard are the same in every region; says how long that took.
pub(super) async fn wait_until_equal(stage: &Stage) -> anyhow::Result<Duration> {
    let started = Instant::now();
    loop {
        let behind = match digests(stage).await {
            Ok(digests) => match behind(&digests) {
                None => return Ok(started.elapsed()),
                Some(behind) => behind,
            },
            // Asked again below: a region may be slow to answer while it catches up.
            Err(error) => format!("{error:#}"),
        };
        if started.elapsed() > WITHIN {
            bail!("the regions have not seen the same writes {} s after the last one: {behind}", WITHIN.as_secs());
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Compares every bucket and shard of every region; differences become findings.
pub(super) async fn compare(stage: &Stage, report: &mut Report) -> anyhow::Result<()> {
    let digests = digests(stage).await?;
    let names: BTreeMap<BucketId, String> =
        stage.actors[0].client.admin().topology().await?.buckets.values().map(|b| (b.id, b.name.to_string())).collect();
    for (shard, by_region) in by_shard(&digests) {
        let name = names.get(&shard.0).cloned().unwrap_or_else(|| format!("bucket-{}", shard.0));
        let entry = report.equal.entry(name.clone()).or_insert(true);
        let (first_region, first) = by_region[0];
        for (region, digest) in &by_region[1..] {
            let agrees = match (first, digest) {
                (Some(first), Some(digest)) => first.agrees_with(digest) == Some(true),
                // A shard that nobody wrote to has no digest anywhere.
                (None, None) => true,
                _ => false,
            };
            if !agrees {
                *entry = false;
                report.findings.push(format!("{name}, shard {}: {first_region} and {region} differ", shard.1));
            }
        }
        report.add_keys(&name, first.map_or(0, |digest| digest.keys));
    }
    report.shipped = shipped(stage).await?;
    Ok(())
}

async fn digests(stage: &Stage) -> anyhow::Result<Digests> {
    let mut digests = Digests::new();
    for region in stage.actors[0].client.admin().digests(None).await? {
        let shards = region.answer?;
        if let Some(diverged) = shards.iter().find(|shard| shard.diverged) {
            bail!(
                "{}: bucket {}, shard {} has diverged from its source",
                region.region,
                diverged.bucket,
                diverged.shard
            );
        }
        let by_shard = shards.into_iter().map(|shard| ((shard.bucket, shard.shard), shard.digest)).collect();
        digests.insert(region.region.to_string(), by_shard);
    }
    if digests.len() < stage.actors.len() {
        bail!("only {} of {} regions are known", digests.len(), stage.actors.len());
    }
    Ok(digests)
}

type ByRegion<'a> = Vec<(&'a str, Option<&'a BucketDigest>)>;

fn by_shard(digests: &Digests) -> BTreeMap<(BucketId, ShardId), ByRegion<'_>> {
    let shards = digests.values().flat_map(|shards| shards.keys());
    let one = |shard| digests.iter().map(|(region, shards)| (region.as_str(), shards.get(shard))).collect();
    shards.map(|shard| (*shard, one(shard))).collect()
}

/// The first shard whose positions differ between regions.
fn behind(digests: &Digests) -> Option<String> {
    by_shard(digests).into_iter().find_map(|((bucket, shard), regions)| {
        let positions =
            |digest: &Option<&BucketDigest>| digest.map(|digest| digest.positions.clone()).unwrap_or_default();
        let first = positions(&regions[0].1);
        let other = regions.iter().find(|(_, digest)| positions(digest) != first)?;
        Some(format!(
            "bucket {bucket}, shard {shard}: {} is at {:?}, {} at {:?}",
            regions[0].0,
            first.0,
            other.0,
            positions(&other.1).0
        ))
    })
}

/// What the lanes of all regions have carried, by lane.
async fn shipped(stage: &Stage) -> anyhow::Result<BTreeMap<String, Shipped>> {
    let mut shipped: BTreeMap<String, Shipped> = BTreeMap::new();
    for region in stage.actors[0].client.admin().lag(None).await? {
        for lane in region.answer?.lanes {
            let sum = shipped.entry(lane.lane.to_string()).or_default();
            sum.raw_bytes += lane.raw_bytes;
            sum.wire_bytes += lane.wire_bytes;
            sum.frames += lane.frames;
            sum.entries += lane.entries;
        }
    }
    Ok(shipped)
}

/// Samples the lag in the background.
pub(super) struct LagWatch {
    stop: tokio::sync::oneshot::Sender<()>,
    task: JoinHandle<BTreeMap<String, LagPeak>>,
}

impl LagWatch {
    pub(super) fn start(stage: &Stage) -> LagWatch {
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let client = stage.actors[0].client.clone();
        // Ends with `stop`, or when this watch is dropped.
        let task = tokio::spawn(async move {
            let mut peaks: BTreeMap<String, LagPeak> = BTreeMap::new();
            loop {
                tokio::select! {
                    _ = &mut stopped => return peaks,
                    () = tokio::time::sleep(LAG_EVERY) => {}
                }
                let Ok(regions) = client.admin().lag(None).await else { continue };
                let topology = client.known_topology();
                for row in regions.into_iter().filter_map(|region| region.answer.ok()).flat_map(|lag| lag.buckets) {
                    let Some(bucket) = topology.buckets.get(&row.bucket) else { continue };
                    peaks.entry(bucket.name.to_string()).or_default().raise(&row);
                }
            }
        });
        LagWatch { stop, task }
    }

    pub(super) async fn stop(self) -> BTreeMap<String, LagPeak> {
        // Without a receiver the task has ended already.
        let _ = self.stop.send(());
        self.task.await.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::{Lsn, RegionId};

    use super::*;

    fn digest(lsn: u64) -> BucketDigest {
        let mut digest = BucketDigest::default();
        digest.positions.raise(RegionId(1), Lsn(lsn));
        digest
    }

    #[test]
    fn a_region_is_behind_until_its_positions_are_the_others() {
        let shard = (BucketId(1), ShardId(3));
        let mut digests: Digests =
            [("a", 7), ("b", 7)].map(|(name, lsn)| (name.to_owned(), BTreeMap::from([(shard, digest(lsn))]))).into();
        assert_eq!(behind(&digests), None);
        digests.insert("c".to_owned(), BTreeMap::new());
        let text = behind(&digests).unwrap();
        assert!(text.contains("shard 3") && text.contains("c is at") || text.contains("c at"), "{text}");
        digests.insert("c".to_owned(), BTreeMap::from([(shard, digest(6))]));
        assert!(behind(&digests).is_some());
    }
}
