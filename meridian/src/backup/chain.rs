//! Backups that rest on one another: what is read of which, oldest first.
//!
//! ```text
//! A (whole) ◄── B ◄── C     C is what B was, and what changed since
//!       ▲────── D           two may rest on one
//! ```
//!
//! Of a shard all is read from the last link on that has all of its rows.

use std::collections::BTreeSet;

use futures::stream::{self, StreamExt};

use super::BackupId;
use super::manifest::{Damage, Kind, Manifest, ShardEntry, Way};
use super::merge::{Input, Merge};
use super::place::{Place, State};
use super::verify::rows_of;

/// The most links: each is read at a time with the others, a part or two in memory (RES-1).
pub const LINKS_MAX: usize = 32;

/// Parts read ahead of the one whose rows are taken.
const AHEAD: usize = 1;

/// A backup and what it rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Oldest first; never empty.
    links: Vec<Manifest>,
    /// What the oldest rests on, if that can't be had.
    broken: Option<Broken>,
}

/// Why a backup can't be had that another one rests on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It is not there.
    #[error("it rests on {0}, which is not there")]
    Missing(BackupId),
    /// It can't be read.
    #[error("it rests on {0}, whose manifest can't be used: {1}")]
    Damaged(BackupId, Damage),
    /// It is not what it was.
    #[error("it rests on {0}, and what is there under that name is another one")]
    Another(BackupId),
    /// No program makes such a chain.
    #[error("it rests on {0} through more than {LINKS_MAX} others")]
    Endless(BackupId),
}

impl Chain {
    /// Finds what a backup rests on.
    ///
    /// # Errors
    /// When the place can't be read. What is missing is no error yet: see [`Chain::whole`].
    pub async fn of(place: &Place, manifest: Manifest) -> anyhow::Result<Chain> {
        let (mut links, mut broken) = (vec![manifest], None);
        while let Some(base) = links.last().and_then(|link| link.base.clone()) {
            let id = base.id.clone();
            if links.len() >= LINKS_MAX {
                broken = Some(Broken::Endless(id));
                break;
            }
            match place.state(&id).await? {
                State::Whole(found) if found.seal() == base.seal && fits(&found, links.last()) => links.push(*found),
                State::Whole(_) => broken = Some(Broken::Another(id)),
                State::Unfinished => broken = Some(Broken::Missing(id)),
                State::Damaged(why) => broken = Some(Broken::Damaged(id, why)),
            }
            if broken.is_some() {
                break;
            }
        }
        links.reverse();
        Ok(Chain { links, broken })
    }

    /// All of it, if all of it is there.
    ///
    /// # Errors
    /// What is not.
    pub fn whole(self) -> Result<Chain, Broken> {
        match self.broken {
            None => Ok(self),
            Some(broken) => Err(broken),
        }
    }

    /// What the oldest link rests on, if that can't be had.
    pub fn broken(&self) -> Option<&Broken> {
        self.broken.as_ref()
    }

    /// Every link, oldest first.
    pub fn links(&self) -> &[Manifest] {
        &self.links
    }

    /// The backup itself.
    pub fn last(&self) -> &Manifest {
        &self.links[self.links.len() - 1]
    }

    /// Links up to that one with what they have of a shard, oldest first, from the last on that has all of its rows; all of them where
    /// none has.
    pub fn of_shard(&self, shard: u16, up_to: usize) -> Vec<(&Manifest, &ShardEntry)> {
        let of = |link| entry(link, shard).map(|entry| (link, entry));
        let mut links: Vec<_> = self.links.iter().take(up_to + 1).filter_map(of).collect();
        let begin = links.iter().rposition(|(_, entry)| entry.way == Way::Whole).unwrap_or_default();
        links.drain(..begin);
        links
    }

    /// Bytes of every part that is read to have all of it.
    pub fn length(&self) -> u64 {
        let end = self.links.len() - 1;
        let shards = self.last().shards.iter().flat_map(|shard| self.of_shard(shard.shard, end));
        shards.flat_map(|(_, entry)| &entry.parts).map(|part| part.length).sum()
    }

    /// Rows that were counted: at least as many as come of it.
    pub fn counters(&self) -> u64 {
        self.links.iter().map(Manifest::counters).sum()
    }

    /// The rows of a shard; `done` is told the length of every part that was read.
    pub fn merge<'a>(&'a self, place: &'a Place, shard: u16, done: &'a (dyn Fn(u64) + Sync)) -> Merge<'a> {
        Merge::new(self.inputs(place, (shard, self.links.len() - 1), done))
    }

    /// What is read for the rows that a shard had at a link's cut.
    pub fn inputs<'a>(
        &'a self,
        place: &'a Place,
        (shard, up_to): (u16, usize),
        done: &'a (dyn Fn(u64) + Sync),
    ) -> Vec<Input<'a>> {
        self.of_shard(shard, up_to).into_iter().map(|link| input(place, link, done)).collect()
    }
}

/// What a link has of a shard, part by part.
pub fn input<'a>(
    place: &'a Place,
    (manifest, entry): (&'a Manifest, &'a ShardEntry),
    done: &'a (dyn Fn(u64) + Sync),
) -> Input<'a> {
    let reading = stream::iter(&entry.parts).map(move |part| rows_of(place, manifest, entry, (Kind::Rows, part)));
    let told = move |(rows, length)| {
        done(length);
        rows
    };
    let lengths = stream::iter(entry.parts.iter().map(|part| part.length));
    Input::new((manifest.id.clone(), entry.shard), reading.buffered(AHEAD).zip(lengths).map(told).boxed())
}

fn entry(manifest: &Manifest, shard: u16) -> Option<&ShardEntry> {
    manifest.shards.get(usize::from(shard))
}

/// Whether one can rest on the other.
fn fits(base: &Manifest, above: Option<&Manifest>) -> bool {
    above.is_some_and(|above| above.bucket.name == base.bucket.name && above.shards.len() == base.shards.len())
}

/// The backups that rest on one of them, of all that there are.
pub fn resting_on<'a>(all: &'a [Manifest], id: &BackupId) -> Vec<&'a BackupId> {
    let rests = |it: &&Manifest| it.base.as_ref().is_some_and(|base| base.id == *id);
    all.iter().filter(rests).map(|it| &it.id).collect()
}

/// Backups that none rests on, and those under whose name another one was rested on: whoever reads their chains has read all there is.
pub fn ends(all: &[Manifest]) -> Vec<&Manifest> {
    let bases = all.iter().filter_map(|it| it.base.as_ref()).map(|base| (&base.id, base.seal));
    let bases: BTreeSet<(&BackupId, u32)> = bases.collect();
    all.iter().filter(|it| !bases.contains(&(&it.id, it.seal()))).collect()
}

/// The newest backup of a bucket of this cluster, to rest another one on.
pub fn newest<'a>(all: &'a [Manifest], cluster: &str, bucket: &meridian_types::BucketName) -> Option<&'a Manifest> {
    let same = all.iter().filter(|it| it.cluster == cluster && it.bucket.name == *bucket);
    same.max_by_key(|it| (it.begun_ms, &it.id))
}
