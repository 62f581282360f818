//! A trial of a planet with one bucket per policy: a writer per bucket and region while something is done to it, and the verdict after.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::load::{self, Ledger};
use super::planet::{BUCKETS, Planet, REGIONS};
use super::verdict;

/// One writer per bucket and region, each beginning at its region's first node.
///
/// # Errors
/// When no node answers.
pub async fn start_writers(planet: &Planet, stop: &CancellationToken) -> anyhow::Result<JoinSet<Ledger>> {
    let mut writers = JoinSet::new();
    for (at, region) in REGIONS.iter().enumerate() {
        let client = planet.client(planet.nodes_of(region)[0]).await?;
        for (bucket, (name, policy)) in BUCKETS.into_iter().enumerate() {
            writers.spawn(load::write(client.bucket(name)?, policy, at * BUCKETS.len() + bucket, stop.clone()));
        }
    }
    Ok(writers)
}

/// Heals first, then demands progress, equality, and every acknowledged write in every region.
///
/// # Errors
/// What is violated, in a sentence each; or that nothing was acknowledged.
pub async fn judge(planet: &Planet, ledgers: &[Ledger], patience: Duration) -> anyhow::Result<()> {
    let buckets: Vec<&str> = BUCKETS.iter().map(|(name, _)| *name).collect();
    let mut violations = Vec::new();
    for region in REGIONS {
        let client = planet.client(planet.nodes_of(region)[0]).await?;
        for bucket in &buckets {
            client.bucket(bucket)?.put("after", "healing").deadline(patience).await?;
        }
        violations.extend(verdict::regions_are_equal(&client, &buckets, patience).await.err().unwrap_or_default());
        for ledger in ledgers {
            let bucket = client.bucket(&ledger.bucket)?;
            violations.extend(verdict::ledger_is_kept(&bucket, ledger).await.err().unwrap_or_default());
        }
    }
    let acknowledged: i64 = ledgers.iter().map(Ledger::acknowledged).sum();
    let refused: u64 = ledgers.iter().map(|ledger| ledger.refused).sum();
    eprintln!("{acknowledged} writes acknowledged, {refused} refused, {} violations", violations.len());
    anyhow::ensure!(violations.is_empty(), "{}", violations.join("\n"));
    anyhow::ensure!(acknowledged > 0, "nothing was acknowledged: the load did not run");
    Ok(())
}
