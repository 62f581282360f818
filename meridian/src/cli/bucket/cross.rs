//! `meridian bucket set --policy` to `active-active` and back: which promise holds before, meanwhile and afterwards, how far it is, and
//! the way back.

use std::time::{Duration, Instant};

use meridian_client::Client;
use meridian_types::{Bucket, BucketChange, BucketLag, BucketName, Crossing, Policy, Regroup, Topology, Way};
use tokio::time::sleep;

use super::change::{BEHIND_MS_MAX, way_back};
use super::view::View;
use super::{Described, existing};
use crate::cli::exit::Failure;
use crate::cli::operation::OnRecord;
use crate::output::{Format, count, millis, note, show};

/// How often there is a look.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How much longer than it may last it is watched: what gives it up has to hear of it, too.
pub(in crate::cli) const WATCHED_LONGER: Duration = Duration::from_secs(30);

/// Whether a change of policy is one between one writing region and all of them.
pub(super) fn crosses(before: &Bucket, policy: Policy) -> bool {
    before.policy.has_primary() != policy.has_primary()
}

/// Rehearses the change, makes it, and watches it to its end.
pub(super) async fn set(
    client: &Client,
    name: &BucketName,
    change: &BucketChange,
    (dry_run, yes): (bool, bool),
    (record, format): (&OnRecord, Format),
) -> anyhow::Result<()> {
    let topology = client.admin().topology().await?;
    let before = existing(&topology, name)?;
    // Refused before anybody is asked for a second word.
    client.admin().set_bucket(name, change, true).await?;
    let behind = behind(client, before, &topology).await?;
    note(&told(before, change, &behind));
    if dry_run {
        note("nothing was changed: this is the bucket");
        return show(format, &Described { buckets: vec![View::of(before, &topology)] });
    }
    if behind.is_far() && !yes {
        return Err(Failure::consent(
            "writes would be held until every region has everything: wait until they are closer (`meridian lag`), or repeat it with --yes to consent",
        )
        .into());
    }
    client.admin().set_bucket(name, &record.stamp(change.clone()), false).await?;
    record.tell(client).await?;
    let pause = change.cross.as_ref().map_or(0, |cross| cross.pause_ms_max);
    let after = watch(client, name, Duration::from_millis(pause) + WATCHED_LONGER).await?;
    let topology = client.admin().topology().await?;
    show(format, &Described { buckets: vec![View::of(&after, &topology)] })?;
    if after.policy.has_primary() == before.policy.has_primary() {
        return Err(Failure::restored(format!(
            "`{name}` is what it was, and nothing is lost: not every region was there in time, or two of them differ; `meridian operation list` and `show` say which, and `meridian lag` how far they are"
        ))
        .into());
    }
    Ok(())
}

/// Waits until the bucket is on one side or the other.
pub(in crate::cli) async fn watch(client: &Client, name: &BucketName, at_most: Duration) -> anyhow::Result<Bucket> {
    let began = Instant::now();
    let mut said = String::new();
    loop {
        let topology = client.admin().topology().await?;
        let bucket = existing(&topology, name)?;
        let Some(crossing) = &bucket.crossing else { return Ok(bucket.clone()) };
        let progress = progress(bucket, crossing, &topology);
        if progress != said {
            note(&progress);
            said = progress;
        }
        if began.elapsed() > at_most {
            return Err(Failure::not_ready(format!(
                "`{name}` is {} still: `meridian bucket show {name}` tells how far it is; give it up with {}",
                crossing.way,
                way_back(bucket)
            ))
            .into());
        }
        sleep(LOOK_EVERY).await;
    }
}

/// In how many shards each region is where all of them meet.
pub(super) fn progress(bucket: &Bucket, crossing: &Crossing, topology: &Topology) -> String {
    let of = |region: &meridian_types::RegionId| {
        let stopped = crossing.way.stopped().map_or_else(String::new, |stopped| {
            format!("stopped in {}, ", stopped.get(region).map_or(0, std::collections::BTreeMap::len))
        });
        let label = topology.region_label(*region);
        format!("{label} {stopped}there in {} of {} shards", crossing.arrived_in(*region), topology.shards)
    };
    let regions: Vec<String> = bucket.meeting().iter().map(of).collect();
    let what = match &crossing.way {
        Way::Opening | Way::Closing { .. } => String::new(),
        Way::Regrouping { region, change, .. } => {
            let becomes = match change {
                Regroup::Join => "is to join",
                Regroup::Count => "is to write",
                Regroup::Leave => "is to leave",
            };
            format!(" ({} {becomes})", topology.region_label(*region))
        }
        Way::Losing { region, .. } => format!(" ({})", topology.region_label(*region)),
    };
    format!("{}{what}: {}", crossing.way, regions.join("; "))
}

/// How far regions are behind that writes will have to wait for.
pub(super) struct Behind {
    ms: u64,
    operations: u64,
    /// Regions of the bucket that say nothing.
    silent: Vec<String>,
}

impl Behind {
    pub(super) fn is_far(&self) -> bool {
        self.ms > BEHIND_MS_MAX || !self.silent.is_empty()
    }

    pub(super) fn sentence(&self) -> String {
        match (self.silent.is_empty(), self.operations) {
            (false, _) => format!("{} does not answer now, and without it nothing comes of it", self.silent.join(", ")),
            (true, 0) => "they lack nothing now".to_owned(),
            (true, operations) => {
                format!("they lack up to {} operations, the oldest {} old, now", count(operations), millis(self.ms))
            }
        }
    }
}

pub(super) async fn behind(client: &Client, bucket: &Bucket, topology: &Topology) -> anyhow::Result<Behind> {
    let mut behind = Behind { ms: 0, operations: 0, silent: Vec::new() };
    let of_bucket = |lag: &&BucketLag| lag.bucket == bucket.id;
    for region in client.admin().lag(Some(&bucket.name)).await? {
        let holds = bucket.meeting().iter().any(|it| topology.region_label(*it) == region.region.as_str());
        match region.answer {
            _ if !holds => {}
            Err(_) => behind.silent.push(region.region.to_string()),
            Ok(lag) => {
                for lag in lag.buckets.iter().filter(of_bucket) {
                    behind.ms = behind.ms.max(lag.lag_ms);
                    behind.operations = behind.operations.max(lag.unshipped_operations + lag.unapplied_operations);
                }
            }
        }
    }
    Ok(behind)
}

/// Which promise holds when, how far the regions are, and the way back.
fn told(before: &Bucket, change: &BucketChange, behind: &Behind) -> String {
    let name = &before.name;
    let pause = change.cross.as_ref().map_or(0, |cross| cross.pause_ms_max);
    let until = format!("at most {}, then it is given up by itself", millis(pause));
    let back = way_back(before);
    let (now, meanwhile, after, further) = match change.policy {
        Some(policy) if policy.has_primary() => (
            "every region writes; a write stands in the region that took it",
            format!("every region stops, and waits for what the others had: clients hold and retry, {until}"),
            format!("{policy}: one region orders all writes; counters have become numbers, and values are their winners"),
            format!("meridian bucket set {name} --policy active-active"),
        ),
        _ => (
            "one region orders all writes",
            format!("the primary seals the epoch, and every region applies all of it: clients hold and retry, {until}"),
            "active-active: every region writes, the last writer wins; no strong reads, no compare-and-set, append or multi-put; a value that is a number is no counter until it was deleted".to_owned(),
            back.clone(),
        ),
    };
    format!(
        "`{name}` changes who writes it.\n before     {now}\n meanwhile  {meanwhile}; {}\n after      {after}\n progress   meridian bucket show {name}\nGiving it up meanwhile: {back}\nThe way back afterwards: {further}",
        behind.sentence()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_answer_takes_a_second_word_and_so_does_who_is_far_behind() {
        let behind = |ms, silent: &[&str]| Behind {
            ms,
            operations: 7,
            silent: silent.iter().map(|it| (*it).to_owned()).collect(),
        };
        assert!(!behind(BEHIND_MS_MAX, &[]).is_far() && behind(BEHIND_MS_MAX + 1, &[]).is_far());
        assert!(behind(0, &["eu-west"]).is_far() && behind(0, &["eu-west"]).sentence().contains("eu-west"));
    }
}
