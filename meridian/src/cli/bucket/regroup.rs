//! `meridian bucket set --add-region | --remove-region` of an active-active bucket: which promise holds before, meanwhile and afterwards, how
//! far it is, and the way back. It is watched to its end, and the same command goes on with what was interrupted.

use std::time::Duration;

use meridian_client::Client;
use meridian_types::{
    Bucket, BucketChange, BucketName, CROSSING_MS_DEFAULT, Cross, RegionChange, RegionId, RegionName, Regroup,
    Topology, Way,
};
use tokio::time::sleep;

use super::cross::{self, Behind};
use super::view::View;
use super::{Described, existing, one};
use crate::cli::exit::Failure;
use crate::cli::operation::OnRecord;
use crate::output::{Format, millis, note, show};

/// How often there is a look at a region that is being filled.
const LOOK_EVERY: Duration = Duration::from_millis(500);

pub(super) async fn set(
    client: &Client,
    name: &BucketName,
    (asked, max_pause): (RegionChange, Option<Duration>),
    (dry_run, yes): (bool, bool),
    (record, format): (&OnRecord, Format),
) -> anyhow::Result<()> {
    let topology = client.admin().topology().await?;
    let before = existing(&topology, name)?;
    let pause_ms_max = max_pause.map_or(CROSSING_MS_DEFAULT, |it| u64::try_from(it.as_millis()).unwrap_or(u64::MAX));
    let cross = Some(Cross { primary: None, pause_ms_max });
    let change = BucketChange { regions: Some(asked.clone()), cross, ..BucketChange::default() };
    let stage = Stage::of(before, &asked, &topology);
    if !stage.is_under_way() {
        // Refused before anybody is asked for a second word.
        client.admin().set_bucket(name, &change, true).await?;
    }
    if stage == Stage::Nothing {
        note("nothing changes: it is like that already");
        return one(client, before, format).await;
    }
    let behind = cross::behind(client, before, &topology).await?;
    let told = told(before, &asked, stage, pause_ms_max, &behind);
    note(&told);
    if dry_run {
        note("nothing was changed: this is the bucket");
        return show(format, &Described { buckets: vec![View::of(before, &topology)] });
    }
    if !yes && stage.holds_writes() && behind.is_far() {
        return Err(Failure::consent(
            "writes would be held until every region has everything: wait until they are closer (`meridian lag`), bring back those that do not answer, or repeat it with --yes to consent",
        )
        .into());
    }
    if !yes && matches!(stage, Stage::Leave | Stage::GiveUp) {
        return Err(Failure::consent("the region would drop its copy: repeat it with --yes to consent").into());
    }
    if !stage.is_under_way() {
        client.admin().set_bucket(name, &record.stamp(change), false).await?;
        record.tell(client).await?;
    }
    let after = watch(client, name, stage, pause_ms_max).await?;
    let topology = client.admin().topology().await?;
    show(format, &Described { buckets: vec![View::of(&after, &topology)] })?;
    outcome(&after, &asked, &topology)
}

/// What there is to do for what is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Nothing,
    /// Every region meets for it already.
    Meeting,
    /// Every region meets, and one more is filled from then on.
    Join,
    /// It is being filled.
    Filling,
    /// It is filled; every region meets.
    Count,
    /// Every region meets, and one goes.
    Leave,
    /// One that joins is given up.
    GiveUp,
}

impl Stage {
    fn of(bucket: &Bucket, asked: &RegionChange, topology: &Topology) -> Stage {
        let (RegionChange::Add(name) | RegionChange::Remove(name)) = asked;
        let region = topology.region_named(name.as_str()).map_or(RegionId(0), |region| region.id);
        let joins = bucket.joins.joining() == Some(region);
        let meets = bucket.crossing.as_ref().is_some_and(|it| match &it.way {
            Way::Regrouping { region: of, change, .. } => {
                *of == region && (*change == Regroup::Leave) == matches!(asked, RegionChange::Remove(_))
            }
            Way::Opening | Way::Closing { .. } | Way::Losing { .. } => false,
        });
        match asked {
            _ if meets => Stage::Meeting,
            RegionChange::Add(_) if bucket.is_in(region) => Stage::Nothing,
            RegionChange::Add(_) if joins && is_filled(bucket, topology) => Stage::Count,
            RegionChange::Add(_) if joins => Stage::Filling,
            RegionChange::Add(_) => Stage::Join,
            RegionChange::Remove(_) if joins => Stage::GiveUp,
            RegionChange::Remove(_) if bucket.is_in(region) => Stage::Leave,
            RegionChange::Remove(_) => Stage::Nothing,
        }
    }

    /// Whether there is nothing to do but to watch.
    fn is_under_way(self) -> bool {
        matches!(self, Stage::Meeting | Stage::Filling)
    }

    fn holds_writes(self) -> bool {
        matches!(self, Stage::Join | Stage::Count | Stage::Leave)
    }
}

fn is_filled(bucket: &Bucket, topology: &Topology) -> bool {
    bucket.joins.now.as_ref().is_some_and(|joining| joining.filled.len() >= usize::from(topology.shards))
}

/// Waits until nothing is under way any more; as long as it takes to fill a region.
async fn watch(client: &Client, name: &BucketName, stage: Stage, pause_ms_max: u64) -> anyhow::Result<Bucket> {
    let mut said = String::new();
    loop {
        let bucket = cross::watch(client, name, Duration::from_millis(pause_ms_max) + cross::WATCHED_LONGER).await?;
        let topology = client.admin().topology().await?;
        let Some(joining) = &bucket.joins.now else { return Ok(bucket) };
        if stage == Stage::GiveUp || (is_filled(&bucket, &topology) && bucket.crossing.is_none()) {
            return Ok(bucket);
        }
        let region = topology.region_label(joining.region);
        let progress = format!("{region} has everything in {} of {} shards", joining.filled.len(), topology.shards);
        if progress != said {
            note(&progress);
            said = progress;
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Whether it came to what was asked.
fn outcome(after: &Bucket, asked: &RegionChange, topology: &Topology) -> anyhow::Result<()> {
    let (RegionChange::Add(region) | RegionChange::Remove(region)) = asked;
    let name = &after.name;
    match Stage::of(after, asked, topology) {
        Stage::Nothing => Ok(()),
        Stage::Count => Err(Failure::restored(format!(
            "{region} has everything and goes on to get what is written, but does not write yet, for not every region was there in time: repeat the command when they are (`meridian lag` says how far they are)"
        ))
        .into()),
        Stage::Meeting | Stage::Join | Stage::Filling | Stage::Leave | Stage::GiveUp => Err(Failure::restored(format!(
            "`{name}` is what it was, and nothing is lost: it was given up, not every region was there in time, or two of them differ; the log of the metadata leader says which, and `meridian lag` how far they are"
        ))
        .into()),
    }
}

/// Which promise holds when, how far the regions are, and the way back.
fn told(before: &Bucket, asked: &RegionChange, stage: Stage, pause_ms_max: u64, behind: &Behind) -> String {
    let (RegionChange::Add(region) | RegionChange::Remove(region)) = asked;
    let name = &before.name;
    let (now, more, less) = (before.regions.len(), before.regions.len() + 1, before.regions.len().saturating_sub(1));
    let pause = format!(
        "every region stops and waits for what the others had: clients hold and retry, at most {}, then it is given up by itself",
        millis(pause_ms_max)
    );
    let back = back(name, region, asked);
    let sentence = behind.sentence();
    match (stage, asked) {
        (Stage::Leave, _) | (Stage::Meeting, RegionChange::Remove(_)) => format!(
            "{now} regions write `{name}`, and {less} will.\n before     each of {now} regions writes\n meanwhile  {pause}; {sentence}\n after      each of {less} regions writes, and they have all that {region} ordered; {region} drops what it has of {name}\n progress   meridian bucket show {name}\nGiving it up meanwhile: meridian bucket set {name} --policy active-active\nThe way back afterwards: {back}"
        ),
        (Stage::GiveUp, _) => format!(
            "{region} joins `{name}` no more and drops what it was filled with; nothing that counts changes, and no write waits.\nThe way back: {back}"
        ),
        (Stage::Meeting | Stage::Join | Stage::Filling | Stage::Count | Stage::Nothing, _) => format!(
            "{now} regions write `{name}`, and {more} will.\n before     each of {now} regions writes\n at first   {pause}; {sentence}\n meanwhile  the same as before: {region} gets what is written from then on and is filled with what was before; it counts for nothing, is not read and does not write\n at last    the same pause once more, with {region}\n after      each of {more} regions writes\n progress   meridian bucket show {name}; this command watches it, and goes on with it when it is repeated\nGiving up a pause: meridian bucket set {name} --policy active-active\nThe way back, also to give it up: {back}"
        ),
    }
}

fn back(name: &BucketName, region: &RegionName, asked: &RegionChange) -> String {
    match asked {
        RegionChange::Add(_) => format!("meridian bucket set {name} --remove-region {region}"),
        RegionChange::Remove(_) => format!("meridian bucket set {name} --add-region {region} (it is filled anew)"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use meridian_types::{Crossing, Epoch, Hlc, Joining, Phase, Policy, Region, ShardId};

    use super::*;

    fn bucket(regions: &[u16]) -> Bucket {
        Bucket {
            id: meridian_types::BucketId(1),
            name: BucketName::new("carts").unwrap(),
            policy: Policy::ActiveActive,
            epoch: Epoch(3),
            phase: Phase::Steady,
            primary: None,
            regions: regions.iter().map(|it| RegionId(*it)).collect(),
            labels: BTreeMap::new(),
            created: Hlc(0),
            standing: Default::default(),
            auto: Default::default(),
            turns: Default::default(),
            joins: Default::default(),
            crossing: None,
        }
    }

    #[test]
    fn the_same_command_goes_on_with_what_was_interrupted() {
        let name = RegionName::new("ap-south").unwrap();
        let third = Region { id: RegionId(3), name: name.clone() };
        let topology = Topology { shards: 2, regions: [(third.id, third)].into(), ..Topology::default() };
        let (add, remove) = (RegionChange::Add(name.clone()), RegionChange::Remove(name));
        let mut pair = bucket(&[1, 2]);
        let stages = |it: &Bucket| [&add, &remove].map(|asked| Stage::of(it, asked, &topology));
        assert_eq!(stages(&pair), [Stage::Join, Stage::Nothing]);
        assert_eq!(stages(&bucket(&[1, 2, 3])), [Stage::Nothing, Stage::Leave]);
        let (under, filled) = (Epoch(3), [ShardId(0)].into());
        pair.joins.now = Some(Joining { region: RegionId(3), at: Hlc(0), under, filled, pause_ms_max: 9 });
        assert_eq!(stages(&pair), [Stage::Filling, Stage::GiveUp]);
        if let Some(joining) = &mut pair.joins.now {
            joining.filled.insert(ShardId(1));
        }
        assert_eq!(stages(&pair), [Stage::Count, Stage::GiveUp]);
        let (stopped, arrived) = (BTreeMap::new(), BTreeMap::new());
        let way = Way::Regrouping { region: RegionId(3), change: Regroup::Count, stopped };
        pair.crossing = Some(Crossing { index: 7, at: Hlc(0), pause_ms_max: 9, way, arrived });
        assert_eq!(stages(&pair), [Stage::Meeting, Stage::GiveUp], "the second one is refused: one thing at a time");
        pair.crossing = None;
        assert!(outcome(&pair, &add, &topology).is_err() && outcome(&bucket(&[3]), &add, &topology).is_ok());
    }
}
