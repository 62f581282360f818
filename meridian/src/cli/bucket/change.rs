//! `meridian bucket set`: what changes, which promise holds before, meanwhile and afterwards, and the way back.

use std::time::Duration;

use meridian_client::Client;
use meridian_types::{
    Acks, Bucket, BucketChange, BucketLag, BucketName, CROSSING_MS_DEFAULT, Change, ChangeGoal, Cross, Policy,
    RegionId, RegionName, Topology,
};

use super::cross;
use super::settings::{Settings, policy_of};
use super::view::View;
use super::{Described, existing, one};
use crate::cli::exit::Failure;
use crate::cli::operation::OnRecord;
use crate::output::{Format, bytes, count, millis, note, show};

/// What is asked for.
pub(super) struct Asked {
    pub(super) policy: Option<String>,
    pub(super) primary: Option<RegionName>,
    pub(super) max_pause: Option<Duration>,
    pub(super) acks: Option<Acks>,
    pub(super) settings: Settings,
    pub(super) dry_run: bool,
    pub(super) yes: bool,
}

/// From how far behind on it takes a second word to let writes wait for the other regions, in milliseconds: what an application
/// hardly notices is below it.
pub(super) const BEHIND_MS_MAX: u64 = 5000;

pub(super) async fn set(
    client: &Client,
    name: &BucketName,
    asked: Asked,
    record: &OnRecord,
    format: Format,
) -> anyhow::Result<()> {
    let topology = client.admin().topology().await?;
    let before = existing(&topology, name)?;
    let change = change(before, &asked, &topology)?;
    if change.cross.is_some() {
        return cross::set(client, name, &change, (asked.dry_run, asked.yes), (record, format)).await;
    }
    if change == BucketChange::default() {
        note("nothing changes: it is like that already");
        return one(client, before, format).await;
    }
    let behind = behind(client, before, change.policy, &topology).await?;
    if let Some(behind) = &behind
        && behind.ms > BEHIND_MS_MAX
        && !asked.dry_run
        && !asked.yes
    {
        return Err(Failure::consent(format!(
            "writes would wait until enough other regions have what was written before, and {}: wait until they are closer (`meridian lag`), or repeat it with --yes to consent",
            behind.sentence()
        ))
        .into());
    }
    let bucket = client.admin().set_bucket(name, &record.stamp(change), asked.dry_run).await?;
    note(if asked.dry_run { "this would be the bucket; nothing was changed:" } else { "changed:" });
    if before.crossing.is_some() {
        note("given up: the bucket stays what it was, and writes go on at once; nothing is lost");
    } else if bucket.epoch != before.epoch {
        note(&match (before.policy.lane() == bucket.policy.lane(), behind) {
            (true, _) => more_or_fewer(before, &bucket),
            (false, behind) => turned(before, &bucket, behind.as_ref(), &topology),
        });
    }
    if !asked.dry_run {
        record.tell(client).await?;
    }
    show(format, &Described { buckets: vec![View::of(&bucket, &topology)] })
}

fn change(before: &Bucket, asked: &Asked, topology: &Topology) -> anyhow::Result<BucketChange> {
    let acks = asked.acks.map(|acks| acks.to_string());
    if let Some(policy) = &asked.policy {
        let policy = asked.settings.policy(policy_of(policy, acks.as_deref())?)?;
        let auto = asked.settings.auto_of(before, topology)?;
        let pause_ms_max =
            asked.max_pause.map_or(CROSSING_MS_DEFAULT, |it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX));
        let crosses = before.crossing.is_none() && cross::crosses(before, policy);
        let cross = crosses.then(|| Cross { primary: asked.primary.clone(), pause_ms_max });
        if cross.is_none() && (asked.primary.is_some() || asked.max_pause.is_some()) {
            return Err(Failure::invalid(
                "--primary and --max-pause belong to a change to or from active-active: a primary is moved by `meridian switchover`",
            )
            .into());
        }
        return Ok(BucketChange {
            auto,
            // Of a bucket that crosses its own policy says to give that up.
            policy: Some(policy).filter(|it| *it != before.policy || before.crossing.is_some()),
            cross,
            ..BucketChange::default()
        });
    }
    let acks = asked.acks.filter(|acks| !matches!(before.policy, Policy::Sync { acks: now, .. } if now == *acks));
    Ok(BucketChange { acks, ..asked.settings.change(before, topology)? })
}

/// How far the regions are behind for which writes would have to wait.
struct Behind {
    ms: u64,
    operations: u64,
    bytes: u64,
}

impl Behind {
    fn sentence(&self) -> String {
        match self.operations {
            0 => "they lack nothing now".to_owned(),
            operations => format!(
                "they lack {} operations ({}, the oldest {} old) now",
                count(operations),
                bytes(self.bytes),
                millis(self.ms)
            ),
        }
    }
}

/// Of the regions that the new policy waits for, the last one's lag, where it waits for any and the old one did not.
async fn behind(
    client: &Client,
    before: &Bucket,
    policy: Option<Policy>,
    topology: &Topology,
) -> anyhow::Result<Option<Behind>> {
    let (Some(policy @ Policy::Sync { .. }), Policy::Async { .. }) = (policy, before.policy) else { return Ok(None) };
    let Some(primary) = before.primary.map(|region| topology.region_label(region)) else { return Ok(None) };
    let mut lags = Vec::new();
    for region in client.admin().lag(Some(&before.name)).await? {
        if let Ok(lag) = region.answer
            && region.region.as_str() == primary
        {
            lags.extend(lag.buckets.into_iter().filter(|lag| lag.bucket == before.id));
        }
    }
    Ok(last_needed(lags, policy.required_regions(before.regions.len()).saturating_sub(1)))
}

fn last_needed(mut lags: Vec<BucketLag>, needed: usize) -> Option<Behind> {
    lags.sort_unstable_by_key(|lag| (lag.lag_ms, lag.unshipped_operations + lag.unapplied_operations));
    lags.get(needed.checked_sub(1)?).map(|lag| Behind {
        ms: lag.lag_ms,
        operations: lag.unshipped_operations + lag.unapplied_operations,
        bytes: lag.unshipped_bytes + lag.unapplied_bytes,
    })
}

/// Which promise holds while the number of acknowledging regions changes, and the way back.
fn more_or_fewer(before: &Bucket, after: &Bucket) -> String {
    let holders = after.regions.len();
    let (least, asked) = (before.policy.required_regions(holders), after.policy.required_regions(holders));
    let promise = if asked > least {
        format!(
            "Until the bucket is SYNC again, writes acknowledged before have {least} regions only, and a lost primary is replaced only with consent; `meridian bucket show {}` tells.",
            after.name
        )
    } else {
        format!(
            "What was acknowledged before has more regions than is asked now: nothing is exposed. From now on the loss of {asked} regions at once may cost a write."
        )
    };
    format!(
        "Epoch {} begins: the primary seals epoch {} in every shard, for which writes wait some milliseconds; from then on each write is acknowledged by {asked} of {holders} regions.\n{promise}\nThe way back: {}",
        after.epoch,
        before.epoch,
        way_back(before)
    )
}

/// Which promise holds before, while and after a bucket changes between `async` and `sync`, and the way back.
fn turned(before: &Bucket, after: &Bucket, behind: Option<&Behind>, topology: &Topology) -> String {
    let holders = after.regions.len();
    let primary = topology.region_label(before.primary.unwrap_or(RegionId(0)));
    let seal = format!(
        "Epoch {} begins, in the {} lane: the primary seals epoch {} in every shard, for which writes wait some milliseconds.",
        after.epoch,
        after.policy.lane(),
        before.epoch
    );
    let alone = format!("acknowledged once durable in {primary}; losing it costs what was not shipped");
    let back = way_back(before);
    match after.policy {
        Policy::Sync { .. } => {
            let asked = after.policy.required_regions(holders);
            let now = behind.map_or(String::new(), |behind| format!(" ({})", behind.sentence()));
            format!(
                "{seal}\n before     epoch {}: {alone}\n meanwhile  RECOVERING: new writes are acknowledged by {asked} of {holders} regions, and wait until that many have what was written before{now}; a lost primary is replaced only with consent, as with async\n after      SYNC, once every shard has proven that enough regions have everything: the loss of {} regions costs nothing\n progress   meridian bucket show {}\nThe way back: {back}",
                before.epoch,
                asked - 1,
                after.name
            )
        }
        Policy::Async { .. } | Policy::ActiveActive => {
            let asked = before.policy.required_regions(holders);
            format!(
                "{seal}\n before     epoch {}: acknowledged by {asked} of {holders} regions, and they keep what they have\n from now   {alone}; a lost primary is replaced only with consent, or within the bound of auto = bounded\nThe way back: {back}",
                before.epoch
            )
        }
    }
}

pub(super) fn way_back(before: &Bucket) -> String {
    policy_again(&before.name, before.policy)
}

/// The command that makes a bucket what it was before a change.
pub(in crate::cli) fn way_back_of(change: &Change, topology: &Topology) -> String {
    let (name, before) = (&change.name, &change.before);
    match change.goal {
        ChangeGoal::Policy { .. } | ChangeGoal::Acks { .. } => policy_again(name, before.policy),
        ChangeGoal::Cross { .. } => {
            let primary = before.primary.map(|it| format!(" --primary {}", topology.region_label(it)));
            format!("{}{}", policy_again(name, before.policy), primary.unwrap_or_default())
        }
        ChangeGoal::Add { region, .. } => {
            format!("meridian bucket set {name} --remove-region {}", topology.region_label(region))
        }
        ChangeGoal::Remove { region, .. } | ChangeGoal::Lose { region, .. } => {
            format!("meridian bucket set {name} --add-region {} (it is filled anew)", topology.region_label(region))
        }
    }
}

fn policy_again(name: &BucketName, policy: Policy) -> String {
    match policy {
        Policy::Async { .. } => format!("meridian bucket set {name} --policy async"),
        Policy::Sync { acks, .. } => {
            let degrades = match policy.degrade_after_ms() {
                Some(after_ms) => format!(" --on-partition degrade --degrade-after {after_ms}ms"),
                None => String::new(),
            };
            format!("meridian bucket set {name} --policy sync --acks {acks}{degrades}")
        }
        Policy::ActiveActive => format!("meridian bucket set {name} --policy active-active"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_wait_for_the_last_region_that_is_needed() {
        let lag = |lag_ms, unshipped_operations| BucketLag { lag_ms, unshipped_operations, ..BucketLag::default() };
        let lags = vec![lag(9000, 70), lag(20, 3)];
        assert_eq!(last_needed(lags.clone(), 1).map(|it| (it.ms, it.operations)), Some((20, 3)));
        assert_eq!(last_needed(lags.clone(), 2).map(|it| it.ms), Some(9000));
        assert!(last_needed(lags, 0).is_none());
    }
}
