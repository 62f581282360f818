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

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use meridian_region_core::ReadError;
use meridian_region_core::backup::log::touched;
use meridian_region_core::backup::replay::Replay;
use meridian_types::entry::Header;
use meridian_types::{BackupRow, BucketId, Hlc, Lsn, RegionId, ShardId};

use super::chain::{Chain, input};
use super::manifest::{Kind, Manifest, ShardEntry, Way};
use super::merge::{Input, Merge};
use super::place::{Place, part_name};
use super::verify::{Fault, rows_of};

/// Names of keys held at a time, in bytes, unless one stretch alone has more: as many as a node tells of one.
const NAMES_BYTES: usize = 16 << 20;

/// What a link has of a shard.
pub type Link<'a> = (&'a Manifest, &'a ShardEntry);

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
async fn told(
    place: &Place,
    chain: &Chain,
    (shard, at): (u16, usize),
    limit: Option<Hlc>,
) -> Result<Vec<BackupRow>, Fault> {
    let of = |at: usize| chain.links().get(at).and_then(|link| Some((link, link.shards.get(usize::from(shard))?)));
    let (Some(below), Some(link)) = (at.checked_sub(1).and_then(of), of(at)) else {
        let what = "its log follows on nothing".to_owned();
        return Err(Fault { backup: chain.last().id.clone(), shard, part: None, what });
    };
    let stretch = Stretch::read(place, link).await?;
    let mut rows = Vec::new();
    let mut merge = Merge::new(chain.inputs(place, (shard, at - 1), &|_| ()));
    while let Some(row) = merge.next().await? {
        if stretch.names.contains(&row.key) {
            rows.push(row);
        }
    }
    stretch.tell(place, (below, link), &rows, limit).await
}

/// Tells every log again that links keep of a shard, of which the first has all rows. What is below is read once for as many as name
/// no more keys than a single one may (RES-1).
pub async fn retold(place: &Place, links: &[Link<'_>]) -> Vec<Fault> {
    let (mut faults, mut begin) = (Vec::new(), 1);
    while begin < links.len() {
        match retold_some(place, links, begin).await {
            Ok((end, found)) => {
                faults.extend(found);
                begin = end;
            }
            Err(fault) => {
                faults.push(fault);
                break;
            }
        }
    }
    faults
}

/// Tells some of them again, from one on; up to which, and what was found.
async fn retold_some(place: &Place, links: &[Link<'_>], begin: usize) -> Result<(usize, Vec<Fault>), Fault> {
    let (mut names, mut bytes, mut end) = (BTreeSet::new(), 0, begin);
    while end < links.len() && bytes < NAMES_BYTES {
        let stretch = Stretch::read(place, links[end]).await?;
        bytes += stretch.names.iter().map(Bytes::len).sum::<usize>();
        names.extend(stretch.names);
        end += 1;
    }
    let (mut faults, mut now) = (Vec::new(), BTreeMap::new());
    if names.is_empty() {
        return Ok((end, faults));
    }
    let mut below = Merge::new(inputs(place, &links[..begin]));
    while let Some(row) = below.next().await? {
        if names.contains(&row.key) {
            now.insert(row.key, row.record);
        }
    }
    for at in begin..end {
        let stretch = Stretch::read(place, links[at]).await?;
        let touched = stretch.names.iter().filter_map(|name| now.get_key_value(name));
        let row = |(key, record): (&Bytes, &Bytes)| BackupRow { key: key.clone(), record: record.clone() };
        let rows: Vec<BackupRow> = touched.map(row).collect();
        if !stretch.log.is_empty() {
            faults.extend(stretch.tell(place, (links[at - 1], links[at]), &rows, None).await.err());
        }
        let mut changed = Merge::new(inputs(place, &links[at..=at]));
        while let Some((key, records)) = changed.next_of_each().await? {
            match records.into_iter().flatten().next() {
                Some(record) if !record.is_empty() && names.contains(&key) => drop(now.insert(key, record)),
                Some(_) | None => drop(now.remove(&key)),
            }
        }
    }
    Ok((end, faults))
}

/// What is read for their rows.
fn inputs<'a>(place: &'a Place, links: &[Link<'a>]) -> Vec<Input<'a>> {
    links.iter().map(|link| input(place, *link, &|_| ())).collect()
}

/// The log that a link keeps of a shard, and the keys that it touches.
struct Stretch {
    log: Vec<(Lsn, Bytes)>,
    names: BTreeSet<Bytes>,
}

impl Stretch {
    async fn read(place: &Place, (link, entry): Link<'_>) -> Result<Stretch, Fault> {
        let mut stretch = Stretch { log: Vec::new(), names: BTreeSet::new() };
        for part in &entry.log {
            for row in rows_of(place, link, entry, (Kind::Log, part)).await? {
                let fault = |what: &str| {
                    let part = Some(part_name((Kind::Log, entry.id(), part.number)));
                    Fault { backup: link.id.clone(), shard: entry.shard, part, what: what.to_owned() }
                };
                let lsn = <[u8; 8]>::try_from(row.key.as_ref()).map_err(|_| fault("a position of its log is none"))?;
                let lsn = Lsn(u64::from_be_bytes(lsn));
                if stretch.log.last().is_some_and(|(last, _)| *last >= lsn) {
                    return Err(fault("its log is not in the order of its positions"));
                }
                stretch.names.extend(touched(&row.record).map_err(|why| fault(&why.to_string()))?);
                stretch.log.push((lsn, row.record));
            }
        }
        Ok(stretch)
    }

    /// Applies it to the rows that it touches, as the link below has them, and gives them as they were before `limit`.
    async fn tell(
        &self,
        place: &Place,
        ((below, before), (link, entry)): (Link<'_>, Link<'_>),
        rows: &[BackupRow],
        limit: Option<Hlc>,
    ) -> Result<Vec<BackupRow>, Fault> {
        let shard = entry.shard;
        let fault = |what: String| Fault { backup: link.id.clone(), shard, part: None, what };
        let mut context = Vec::new();
        for part in &before.context {
            context.extend(rows_of(place, below, before, (Kind::Context, part)).await?);
        }
        let Some(mark) = &before.mark else {
            return Err(fault("its log follows on a place that is not known".to_owned()));
        };
        let shards = u16::try_from(link.shards.len()).unwrap_or(u16::MAX);
        let of = (RegionId(mark.region), ShardId(shard), Some(shards));
        let replay = Replay::new(of, BucketId(mark.bucket), &context, rows);
        let mut replay = replay.map_err(|why| fault(why.to_string()))?;
        let mut then = None;
        for (lsn, entry) in &self.log {
            let header = Header::decode(entry).map_err(|why| fault(why.to_string()))?;
            if then.is_none() && limit.is_some_and(|limit| header.hlc >= limit) {
                then = Some(now(&replay, &self.names).map_err(|why| fault(why.to_string()))?);
            }
            replay.apply(*lsn, entry).map_err(|why| fault(why.to_string()))?;
        }
        if entry.contents() != Some(replay.contents()) {
            return Err(fault("its log, told again, does not add up to its digest".to_owned()));
        }
        match then {
            Some(then) => Ok(then),
            None => now(&replay, &self.names).map_err(|why| fault(why.to_string())),
        }
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
