//! A shard as it was at any moment: at a link's cut, or on the way there, by the log that the link keeps.
//!
//! ```text
//!        cut k                          cut k+1, by the log
//!  ────────┤─ entry ── entry ──┊── entry ──┤──►
//!                          the moment: all entries that were ordered by then, and none behind
//! ```
//!
//! A moment is one of the clock of the leader that ordered a shard's log in the region that was read: each shard has a prefix of that
//! log, with everything that was acknowledged by then and nothing that was begun later.

use std::collections::BTreeSet;

use bytes::Bytes;
use meridian_region_core::ReadError;
use meridian_region_core::backup::log::touched;
use meridian_region_core::backup::replay::Replay;
use meridian_types::entry::Header;
use meridian_types::{BackupRow, BucketId, Hlc, Lsn, RegionId, ShardId};

use super::chain::Chain;
use super::manifest::{Kind, ShardEntry, Way};
use super::merge::{Input, Merge};
use super::place::{Place, part_name};
use super::verify::{Fault, rows_of};

/// Where a moment is in a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// At the cut of a link.
    Cut(usize),
    /// Behind the cut of the link before this one, and before its own.
    Within(usize),
}

/// Why a moment can't be had of a shard; times in milliseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    /// It is before all of them.
    #[error("before the oldest backup of its chain")]
    Before,
    /// It is behind all of them.
    #[error("after the last backup of its chain")]
    After,
    /// Between two of which the later one has no log.
    #[error("between two backups, and the later one does not keep the log of a shard")]
    Between,
}

/// The first timestamp that is behind a moment.
pub fn limit(at_ms: u64) -> Hlc {
    Hlc::from_millis(at_ms.saturating_add(1))
}

/// Finds a moment among what links have of a shard, oldest first.
///
/// # Errors
/// [`Gap`].
pub fn pick(links: &[&ShardEntry], at_ms: u64) -> Result<Pick, Gap> {
    let is_before = |entry: &&ShardEntry| entry.mark.as_ref().is_some_and(|mark| mark.is_before(limit(at_ms)));
    let at = links.iter().rposition(is_before).ok_or(Gap::Before)?;
    let known_to_ms = links[at].mark.as_ref().map_or(0, |mark| mark.at_ms);
    match links.get(at + 1) {
        Some(next) if next.way == Way::Log && next.log.is_empty() => Ok(Pick::Cut(at)),
        Some(next) if next.way == Way::Log => Ok(Pick::Within(at + 1)),
        _ if at_ms <= known_to_ms => Ok(Pick::Cut(at)),
        Some(_) => Err(Gap::Between),
        None => Err(Gap::After),
    }
}

impl Chain {
    /// Finds a moment of every shard.
    ///
    /// # Errors
    /// A shard that has none, and why.
    pub fn picks(&self, at_ms: u64) -> Result<Vec<Pick>, (u16, Gap)> {
        let of = |shard: &ShardEntry| {
            let place = usize::from(shard.shard);
            let links: Vec<&ShardEntry> = self.links().iter().filter_map(|link| link.shards.get(place)).collect();
            pick(&links, at_ms).map_err(|gap| (shard.shard, gap))
        };
        self.last().shards.iter().map(of).collect()
    }

    /// The rows of a shard at a moment. What the log says is held against the digest that the shard came to in the end.
    ///
    /// # Errors
    /// [`Fault`] when that can't be read.
    pub async fn rows_at<'a>(
        &'a self,
        place: &'a Place,
        (shard, pick, at_ms): (u16, Pick, u64),
        done: &'a (dyn Fn(u64) + Sync),
    ) -> Result<Merge<'a>, Fault> {
        Ok(match pick {
            Pick::Cut(at) => Merge::new(self.inputs(place, (shard, at), done)),
            Pick::Within(at) => {
                let rows = told(place, self, (shard, at), Some(limit(at_ms))).await?;
                let mut inputs = self.inputs(place, (shard, at - 1), done);
                let pages = futures::stream::iter([Ok(rows)]);
                inputs.push(Input::new((self.links()[at].id.clone(), shard), Box::pin(pages)));
                Merge::new(inputs)
            }
        })
    }
}

/// Tells the log that a link keeps of a shard again, and gives the rows that it touched as they were before `limit`; an empty record
/// where there was none.
///
/// # Errors
/// [`Fault`] when it can't be read, or does not come to the digest at the link's cut.
pub async fn told(
    place: &Place,
    chain: &Chain,
    (shard, at): (u16, usize),
    limit: Option<Hlc>,
) -> Result<Vec<BackupRow>, Fault> {
    let link = &chain.links()[at];
    let fault = |what: String| Fault { backup: link.id.clone(), shard, part: None, what };
    let of = |at: usize| chain.links().get(at).and_then(|link| Some((link, link.shards.get(usize::from(shard))?)));
    let below = at.checked_sub(1).and_then(of);
    let (Some((below, before)), Some((_, entry))) = (below, of(at)) else {
        return Err(fault("its log follows on nothing".to_owned()));
    };
    let (log, names) = read_log(place, chain, (entry, at)).await?;
    let mut context = Vec::new();
    for part in &before.context {
        context.extend(rows_of(place, below, before, (Kind::Context, part)).await?);
    }
    let (mut merge, mut rows) = (Merge::new(chain.inputs(place, (shard, at - 1), &|_| ())), Vec::new());
    while let Some(row) = merge.next().await? {
        if names.contains(&row.key) {
            rows.push(row);
        }
    }
    let Some(mark) = &before.mark else { return Err(fault("its log follows on a place that is not known".to_owned())) };
    let shards = u16::try_from(link.shards.len()).unwrap_or(u16::MAX);
    let of = (RegionId(mark.region), ShardId(shard), Some(shards));
    let mut replay = Replay::new(of, BucketId(mark.bucket), &context, &rows).map_err(|why| fault(why.to_string()))?;
    let mut then = None;
    for (lsn, entry) in &log {
        let header = Header::decode(entry).map_err(|why| fault(why.to_string()))?;
        if then.is_none() && limit.is_some_and(|limit| header.hlc >= limit) {
            then = Some(now(&replay, &names).map_err(|why| fault(why.to_string()))?);
        }
        replay.apply(*lsn, entry).map_err(|why| fault(why.to_string()))?;
    }
    if entry.contents() != Some(replay.contents()) {
        return Err(fault("its log, told again, does not add up to its digest".to_owned()));
    }
    match then {
        Some(then) => Ok(then),
        None => now(&replay, &names).map_err(|why| fault(why.to_string())),
    }
}

/// What it has of some keys now.
fn now(replay: &Replay, names: &BTreeSet<Bytes>) -> Result<Vec<BackupRow>, ReadError> {
    let mut rows = Vec::new();
    for key in names {
        rows.push(BackupRow { key: key.clone(), record: replay.record(key)?.unwrap_or_default() });
    }
    Ok(rows)
}

/// The entries that a link keeps of a shard, and the keys that they touch.
async fn read_log(
    place: &Place,
    chain: &Chain,
    (entry, at): (&ShardEntry, usize),
) -> Result<(Vec<(Lsn, Bytes)>, BTreeSet<Bytes>), Fault> {
    let link = &chain.links()[at];
    let (mut log, mut names): (Vec<(Lsn, Bytes)>, _) = (Vec::new(), BTreeSet::new());
    for part in &entry.log {
        for row in rows_of(place, link, entry, (Kind::Log, part)).await? {
            let fault = |what: &str| {
                let part = Some(part_name((Kind::Log, entry.id(), part.number)));
                Fault { backup: link.id.clone(), shard: entry.shard, part, what: what.to_owned() }
            };
            let lsn = <[u8; 8]>::try_from(row.key.as_ref()).map_err(|_| fault("a position of its log is none"))?;
            let lsn = Lsn(u64::from_be_bytes(lsn));
            if log.last().is_some_and(|(last, _)| *last >= lsn) {
                return Err(fault("its log is not in the order of its positions"));
            }
            names.extend(touched(&row.record).map_err(|why| fault(&why.to_string()))?);
            log.push((lsn, row.record));
        }
    }
    Ok((log, names))
}
