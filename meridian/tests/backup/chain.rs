//! Backups that rest on one another, taken while writing goes on: each comes back as the bucket was then, deletes and counters
//! included; what others rest on is not removed; what is missing below is named.

use anyhow::{Context, ensure};
use meridian_client::ReadLevel;
use tokio_util::sync::CancellationToken;

use super::*;

/// Links of the chain.
const LINKS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chain_of_backups_comes_back_as_it_was_at_each_of_its_links() -> anyhow::Result<()> {
    let rig = Rig::start().await?;
    let place = rig.place("chain").display().to_string();
    fill(&rig).await?;
    let (written, stop) = (Written::default(), CancellationToken::new());
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write(rig.client.clone(), writer, written.clone(), stop.clone())))
        .collect();
    let mut bounds = Vec::new();
    for nth in 0..LINKS {
        one_more_each(&rig, &written, nth).await?;
        let before: BTreeMap<String, u64> = written.now().into_iter().map(|(key, (acked, _))| (key, acked)).collect();
        let told = rig.run(0, &format!("backup create sync active-active --to {place} --incremental")).await?;
        ensure!(told.contains("this one is whole") == (nth == 0), "{told}");
        let after = written.now().into_iter().map(|(key, (_, sent))| (key, sent)).collect();
        bounds.push((before, after));
    }
    stop.cancel();
    for writer in writers {
        writer.await??;
    }
    let told = rig.run(0, &format!("backup verify --from {place}")).await?;
    ensure!(told.matches("adds up to its digest").count() == 2 * LINKS, "{told}");
    let chain = ids_of(&rig, &place, "sync").await?;
    for (nth, (before, after)) in bounds.iter().enumerate() {
        let (id, bucket) = (&chain[nth], format!("again-{nth}"));
        rig.run(0, &format!("backup restore --from {place} --id {id} --to-bucket {bucket} --create")).await?;
        let mut found = rig.contents(&bucket).await?;
        // One of those that stayed is gone with each link.
        for gone in 0..=nth {
            ensure!(!found.contains_key(&format!("still-{gone}")), "still-{gone} was deleted before link {nth}");
            found.insert(format!("still-{gone}"), "7".to_owned());
        }
        compare(found, before, after)?;
    }
    let everywhere = ids_of(&rig, &place, "active-active").await?;
    for (nth, id) in everywhere.iter().enumerate() {
        let bucket = format!("counted-{nth}");
        rig.run(0, &format!("backup restore --from {place} --id {id} --to-bucket {bucket} --create")).await?;
        let counted = rig.client.bucket(&bucket)?.reading(ReadLevel::Eventual).get("visits").await?.into_value();
        let expected = 3 + 10 * (nth as i64 + 1);
        ensure!(counted.as_deref() == Some(expected.to_string().as_bytes()), "link {nth}: {counted:?}, not {expected}");
    }
    what_rests_on_another_needs_it(&rig, &place, &chain).await
}

/// A key less, and ten more counted.
async fn one_more_each(rig: &Rig, written: &Written, nth: usize) -> anyhow::Result<()> {
    let (seen, all) = (written.now(), WRITERS * KEYS as usize);
    until("every key was written anew", async || {
        let now = written.now();
        Ok(now.len() == all
            && now.iter().all(|(key, (acked, _))| *acked > seen.get(key).map_or(0, |(acked, _)| *acked)))
    })
    .await?;
    rig.client.bucket("sync")?.delete(format!("still-{nth}")).deadline(PATIENCE).await?;
    rig.client.bucket("active-active")?.increment("visits", 10).deadline(PATIENCE).await?;
    Ok(())
}

/// Backups of a bucket, oldest first.
pub(super) async fn ids_of(rig: &Rig, place: &str, bucket: &str) -> anyhow::Result<Vec<String>> {
    let list = rig.json(&format!("backup list --from {place}")).await?;
    let rows = list["backups"].as_array().context("a list")?;
    let mut of: Vec<_> = rows.iter().filter(|row| row["bucket"] == bucket).collect();
    of.sort_by_key(|row| row["begun_ms"].as_u64());
    for pair in of.windows(2) {
        ensure!(pair[0]["id"] == pair[1]["base"], "each rests on the one before: {list}");
    }
    Ok(of.into_iter().filter_map(|row| row["id"].as_str().map(str::to_owned)).collect())
}

async fn what_rests_on_another_needs_it(rig: &Rig, place: &str, chain: &[String]) -> anyhow::Result<()> {
    let (first, middle, last) = (&chain[0], &chain[1], &chain[2]);
    let told = rig.run(5, &format!("backup delete --from {place} --id {first}")).await?;
    ensure!(told.contains(middle.as_str()), "{told}");
    rig.run(0, &format!("backup delete --from {place} --id {last} --dry-run")).await?;
    std::fs::rename(Path::new(place).join(middle), rig.place("elsewhere"))?;
    let told = rig.run(1, &format!("backup restore --from {place} --id {last} --to-bucket never --create")).await?;
    ensure!(told.contains(&format!("rests on {middle}, which is not there")), "{told}");
    let told = rig.run(1, &format!("backup verify --from {place}")).await?;
    ensure!(told.contains(&format!("{last}, manifest: it rests on {middle}, which is not there")), "{told}");
    ensure!(rig.client.admin().topology().await?.bucket_named("never").is_none(), "nothing was created");
    let told = rig.run(0, &format!("backup create sync --to {place} --incremental")).await?;
    ensure!(told.contains(&format!("nothing can rest on {last}")), "{told}");
    rig.run(1, &format!("backup create sync --to {place} --since {last}")).await?;
    rig.run(0, &format!("backup delete --from {place} --id {last}")).await?;
    rig.run(0, &format!("backup verify --from {place}")).await?;
    Ok(())
}
