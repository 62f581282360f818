//! `meridian bucket set --add-region | --remove-region`: which promise holds before, meanwhile and afterwards, and the way back. Of
//! active-active buckets: `regroup.rs`.

use std::time::Duration;

use meridian_client::Client;
use meridian_types::{Bucket, BucketChange, BucketName, Policy, RegionChange, RegionName, Topology};

use super::view::View;
use super::{Described, existing, one, regroup};
use crate::cli::exit::Failure;
use crate::cli::operation::OnRecord;
use crate::output::{Format, note, show};

pub(super) async fn set(
    client: &Client,
    name: &BucketName,
    (asked, max_pause): (RegionChange, Option<Duration>),
    (dry_run, yes): (bool, bool),
    (record, format): (&OnRecord, Format),
) -> anyhow::Result<()> {
    let topology = client.admin().topology().await?;
    let before = existing(&topology, name)?;
    if before.primary.is_none() {
        return regroup::set(client, name, (asked, max_pause), (dry_run, yes), (record, format)).await;
    }
    if max_pause.is_some() {
        return Err(Failure::invalid(format!(
            "--max-pause belongs to an active-active bucket: `{name}` is {}, and its writes wait for a seal only",
            before.policy
        ))
        .into());
    }
    let change = BucketChange { regions: Some(asked.clone()), ..BucketChange::default() };
    // Refused before anybody is asked for a second word.
    let rehearsed = client.admin().set_bucket(name, &change, true).await?;
    if rehearsed.epoch == before.epoch {
        note("nothing changes: it is like that already");
        return one(client, before, format).await;
    }
    let told = told(before, &rehearsed, &asked, &topology);
    if matches!(asked, RegionChange::Remove(_)) && !dry_run && !yes {
        return Err(Failure::consent(format!("{told}\nRepeat it with --yes to consent.")).into());
    }
    let bucket =
        if dry_run { rehearsed } else { client.admin().set_bucket(name, &record.stamp(change), false).await? };
    note(if dry_run { "this would be the bucket; nothing was changed:" } else { "changed:" });
    note(&told);
    if !dry_run {
        record.tell(client).await?;
    }
    show(format, &Described { buckets: vec![View::of(&bucket, &topology)] })
}

/// What becomes of the promises.
fn told(before: &Bucket, after: &Bucket, asked: &RegionChange, topology: &Topology) -> String {
    let seal = format!(
        "Epoch {} begins: the primary seals epoch {} in every shard, for which writes wait some milliseconds.",
        after.epoch, before.epoch
    );
    match asked {
        RegionChange::Add(region) => added(before, after, region, &seal),
        RegionChange::Remove(region) => removed(before, after, (region, topology), &seal),
    }
}

fn added(before: &Bucket, after: &Bucket, region: &RegionName, seal: &str) -> String {
    let (now, then) = (before.regions.len(), before.regions.len() + 1);
    let name = &after.name;
    format!(
        "{seal}\n before     {}\n meanwhile  the same: {region} gets what is written from now on and is filled with what was before; it counts for nothing, is not read and can't become primary\n after      {}, once every shard has proven that {region} has everything{}\n progress   meridian bucket show {name}\nThe way back, also to give it up: meridian bucket set {name} --remove-region {region}",
        promise(before.policy, now),
        promise(before.policy, then),
        exposed(before.policy, now, then),
    )
}

fn removed(before: &Bucket, after: &Bucket, (region, topology): (&RegionName, &Topology), seal: &str) -> String {
    let name = &after.name;
    let back = format!("The way back: meridian bucket set {name} --add-region {region} (it is filled anew)");
    let joining = before.joins.joining().map(|id| topology.region_label(id));
    if joining.as_deref() == Some(region.as_str()) {
        return format!(
            "{seal}\n{region} joins no more and drops what it was filled with; nothing that counts changes.\n{back}"
        );
    }
    let (now, then) = (before.regions.len(), after.regions.len());
    let meanwhile = if after.standing.is_sync() {
        "the same: enough of the regions that are left have all that was acknowledged".to_owned()
    } else {
        "RECOVERING: what was acknowledged with the copy that counts no more may lack one; a lost primary is replaced only with consent, and the copy is kept until the bucket is SYNC, though it counts for nothing".to_owned()
    };
    format!(
        "{seal}\n before     {}\n meanwhile  {meanwhile}\n after      {}; {region} drops what it has of {name}\n progress   meridian bucket show {name}\n{back}",
        promise(before.policy, now),
        promise(before.policy, then),
    )
}

/// What a policy promises in so many regions.
fn promise(policy: Policy, regions: usize) -> String {
    match policy {
        Policy::Sync { .. } => {
            let asked = policy.required_regions(regions);
            format!("acknowledged by {asked} of {regions} regions: the loss of {} costs nothing", asked - 1)
        }
        Policy::Async { .. } => format!("{regions} region(s); the loss of the primary costs what was not shipped"),
        Policy::ActiveActive => format!("{regions} regions, each of which writes"),
    }
}

fn exposed(policy: Policy, now: usize, then: usize) -> String {
    if policy.required_regions(now) == policy.required_regions(then) {
        return String::new();
    }
    "; another epoch begins then, and the bucket is RECOVERING until as many regions have what was acknowledged before"
        .to_owned()
}

#[cfg(test)]
mod tests {
    use meridian_types::Acks;

    use super::*;

    #[test]
    fn what_is_promised_follows_from_the_number_of_regions() {
        let majority = Policy::sync(Acks::Majority);
        assert_eq!(promise(majority, 3), "acknowledged by 2 of 3 regions: the loss of 1 costs nothing");
        assert_eq!(promise(majority, 4), "acknowledged by 3 of 4 regions: the loss of 2 costs nothing");
        assert!(exposed(majority, 3, 4).contains("RECOVERING") && exposed(majority, 2, 3).is_empty());
    }
}
