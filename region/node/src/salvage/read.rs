//! Bundles as operators see them: which there are, what is in them, and what became of their keys at the winner.

use std::io;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use meridian_region_core::propose::refusal;
use meridian_region_core::removed_at;
use meridian_region_core::repair::message::{Ask, Told};
use meridian_region_core::salvage::{Head, Lost, Part, counted, fate};
use meridian_types::{
    Bucket, Key, Lsn, Outcome, Read, ReadLevel, Refusal, RefusalKind, Request, SalvageBundle, SalvageFate, SalvageId,
    SalvageKey, SessionToken, StalePolicy, Version,
};
use tokio::time::Instant;

use super::{counted_name, head_name, part_name, patiently, replayed_name, unseal};
use crate::node::Node;
use crate::router::Caller;

/// Keys looked up at a time: the winner may be an ocean away.
const LOOKUPS_MAX: usize = 64;

/// How long one of them may take, in milliseconds.
const LOOKUP_MS: u32 = 10_000;

/// How long a replica may take to come to where the primary is.
const CATCH_UP: Duration = Duration::from_secs(10);

/// A key of a bundle, and what the winner has of it.
pub(super) struct Judged {
    pub(super) lost: Lost,
    pub(super) fate: SalvageFate,
    /// The version it has there now.
    pub(super) version: Option<Version>,
    /// What the tail added to it, where it is a counter that all regions count.
    pub(super) counted: Option<i64>,
}

impl Node {
    /// The bundles on this node.
    pub(crate) async fn salvages(&self) -> Result<Vec<SalvageBundle>, Refusal> {
        let vault = self.vault.clone();
        let names = self.blocking.run(move || vault.names()).await.map_err(stopping)?.map_err(|why| failed(&why))?;
        let mut bundles = Vec::new();
        for id in names.iter().filter_map(|name| SalvageId::from_str(name.strip_suffix(".head")?).ok()) {
            bundles.push(self.salvage_of(id).await?);
        }
        Ok(bundles)
    }

    /// One of them.
    pub(crate) async fn salvage_of(&self, id: SalvageId) -> Result<SalvageBundle, Refusal> {
        let head = self.salvage_head(id).await?;
        let replayed = self.replayed(id).await?;
        Ok(SalvageBundle {
            id,
            winner: head.winner,
            entries: head.entries,
            keys: head.keys,
            bytes: head.bytes,
            parts: head.parts,
            whole: head.log_from == head.cut(),
            created_ms: head.created_ms,
            replayed_ms: replayed.at_ms,
            restored: replayed.restored,
        })
    }

    /// The keys of one part, and what became of them if that is asked for.
    pub(crate) async fn salvage_keys(
        &self,
        id: SalvageId,
        part: u32,
        judged: bool,
    ) -> Result<Vec<SalvageKey>, Refusal> {
        let shown = |lost: Lost, fate| SalvageKey {
            key: lost.key,
            expires_at_ms: lost.value.as_ref().and_then(|value| value.expires_at_ms),
            value: lost.value.map(|value| value.value),
            fate,
        };
        if judged {
            let judged = self.judge_part(id, part).await?;
            return judged.into_iter().map(|it| it.map(|it| shown(it.lost, Some(it.fate)))).collect();
        }
        let part = self.salvage_part(id, part).await?;
        Ok(part.keys.into_iter().map(|lost| shown(lost, None)).collect())
    }

    /// Forgets a bundle. The name that makes it one goes first: cut short, what is left is no bundle.
    pub(crate) async fn drop_salvage(&self, id: SalvageId) -> Result<(), Refusal> {
        let head = self.salvage_head(id).await?;
        let mut names = vec![head_name(id), replayed_name(id)];
        names.extend((0..head.parts).flat_map(|part| [part_name(id, part), counted_name(id, part)]));
        let vault = self.vault.clone();
        let removed = self.blocking.run(move || names.iter().try_for_each(|name| vault.remove(name)));
        removed.await.map_err(stopping)?.map_err(|why| failed(&why))?;
        let others = self.salvages().await?;
        let others = others.iter().any(|other| (other.id.bucket, other.id.shard) == (id.bucket, id.shard));
        match self.shard(id.shard).filter(|shard| !others && shard.board.core().is_watched(id.bucket)) {
            Some(shard) => {
                let unwatched = self.unwatch(shard, id.bucket).await;
                unwatched
                    .map_err(|why| Refusal::new(RefusalKind::Unavailable, format!("the bundle is gone, but {why}")))
            }
            None => Ok(()),
        }
    }

    pub(super) async fn salvage_head(&self, id: SalvageId) -> Result<Head, Refusal> {
        let body = self.unsealed(head_name(id)).await?.ok_or_else(|| {
            let why =
                format!("there is no salvage bundle {id} on this node: `meridian salvage list` shows where they are");
            Refusal::new(RefusalKind::NotFound, why)
        })?;
        Head::decode(&body).map_err(|_| damaged(&head_name(id)))
    }

    async fn salvage_part(&self, id: SalvageId, part: u32) -> Result<Part, Refusal> {
        let name = part_name(id, part);
        let body = self.unsealed(name.clone()).await?.ok_or_else(|| damaged(&name))?;
        Part::decode(&body).map_err(|_| damaged(&name))
    }

    /// The body of a file, if it is there.
    pub(super) async fn unsealed(&self, name: String) -> Result<Option<Bytes>, Refusal> {
        let (vault, file) = (self.vault.clone(), name.clone());
        let bytes = match self.blocking.run(move || vault.read(&file)).await.map_err(stopping)? {
            Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|why| failed(&why))?,
        };
        let body = unseal(&bytes).ok_or_else(|| damaged(&name))?;
        Ok(Some(Bytes::copy_from_slice(body)))
    }

    /// Every key of a part, with what the bucket's primary has of it now; an error where that can't be had.
    pub(super) async fn judge_part(&self, id: SalvageId, part: u32) -> Result<Vec<Result<Judged, Refusal>>, Refusal> {
        let (head, at, part) = (self.salvage_head(id).await?, part, self.salvage_part(id, part).await?);
        let topology = self.authority.topology();
        let bucket = topology.buckets.get(&id.bucket).ok_or_else(|| {
            Refusal::new(
                RefusalKind::NotFound,
                format!("bucket {} was deleted: the bundle can only be exported or dropped", id.bucket),
            )
        })?;
        let entries = Part { keys: Vec::new(), entries: part.entries };
        let looked_up: Vec<_> = stream::iter(part.keys)
            .map(|lost| async move {
                let now = self.now_at_the_winner(bucket, id, &lost.key).await;
                (lost, now)
            })
            .buffered(LOOKUPS_MAX)
            .collect()
            .await;
        // What this region remembers of removals is complete once it has what the primary had when it was asked.
        let absent = looked_up.iter().any(|(lost, now)| matches!(now, Ok(None)) && !lost.removed);
        let complete = absent && self.has_what_the_primary_has(bucket, id).await;
        let judge = |(lost, now): (Lost, Result<Option<Found>, Refusal>)| {
            let now = now?;
            let removed = match now {
                None if complete => {
                    removed_at(&self.store, id.shard, id.bucket, &lost.key).map_err(|why| refusal(&why))?
                }
                _ => None,
            };
            let fate = fate(&head, &lost, now.map(|found| (found.version.region, found.lsn)), removed);
            let counted = counted(&entries, &lost.key).map_err(|_| damaged(&part_name(id, at)))?;
            Ok(Judged { lost, fate, version: now.map(|found| found.version), counted })
        };
        Ok(looked_up.into_iter().map(judge).collect())
    }

    /// Waits for it, not for long: a replica that is far behind can't tell, and a region that was removed never can.
    async fn has_what_the_primary_has(&self, bucket: &Bucket, id: SalvageId) -> bool {
        let Some(shard) = self.shard(id.shard).filter(|_| bucket.reaches(self.region())) else { return false };
        let Some(primary) = bucket.primary.filter(|primary| *primary != self.region()) else {
            return bucket.primary.is_some();
        };
        let ask = Ask::Survey { shard: id.shard };
        let topology = self.authority.topology();
        let until = Instant::now() + CATCH_UP;
        let asked = patiently(until, || self.peers.ask_about_repair(&topology, (primary, id.shard), &ask)).await;
        let Ok((_, Told::Survey(mut survey))) = asked else { return false };
        let there = survey.buckets.remove(&bucket.id).unwrap_or_default().positions;
        self.covers(shard, bucket, &there, Some(until)).await
    }

    async fn now_at_the_winner(&self, bucket: &Bucket, id: SalvageId, key: &Bytes) -> Result<Option<Found>, Refusal> {
        let key = Key::new(key.clone()).map_err(|why| Refusal::new(RefusalKind::Corrupt, why.to_string()))?;
        let request = Request::Read {
            bucket: bucket.name.clone(),
            read: Read::Get { key },
            // Where every region writes there is no stronger one.
            level: if bucket.primary.is_some() { ReadLevel::Strong } else { ReadLevel::Eventual },
            stale: StalePolicy::Wait,
            session: SessionToken::default(),
            deadline_ms: LOOKUP_MS,
        };
        let until = Instant::now() + Duration::from_millis(LOOKUP_MS.into());
        let response = patiently(until, || self.execute(request.clone(), Caller::Client)).await?;
        let Outcome::Value(found) = response.outcome else { return Ok(None) };
        let seen = response.session.seen(id.bucket, id.shard).cloned().unwrap_or_default();
        Ok(found.map(|found| Found { version: found.version, lsn: seen.of(found.version.region) }))
    }
}

/// What there is of a key.
#[derive(Clone, Copy)]
struct Found {
    version: Version,
    lsn: Lsn,
}

pub(super) fn stopping(_: tokio::task::JoinError) -> Refusal {
    Refusal::new(RefusalKind::Unavailable, "the node is stopping: try again once it is up")
}

fn failed(why: &io::Error) -> Refusal {
    Refusal::new(RefusalKind::Unavailable, format!("the salvage can't be read: {why}"))
}

fn damaged(name: &str) -> Refusal {
    let why = format!(
        "the salvage file {name} is damaged or missing; it is not used: restore it from a backup of the data directory"
    );
    Refusal::new(RefusalKind::Corrupt, why)
}
