//! Writing a backup into a bucket, by ordinary writes: whatever policy that bucket has, and whichever cluster it is in.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use futures::stream::{self, TryStreamExt};
use meridian_client::Client;
use meridian_region_core::Contents;
use meridian_region_core::backup::Saved;
use meridian_types::{BackupRow, BucketName, Epoch, Key, Outcome, Request, RequestId, SessionToken, Write, WriteAck};
use serde::Serialize;

use super::chain::Chain;
use super::manifest::ShardEntry;
use super::moment::Pick;
use super::place::Place;
use super::verify::Fault;
use super::writes::{Fate, Manner, fate};

/// How long one write may take, with all its retries.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);

/// What a counter counts as, as in a digest.
const COUNTER_BYTES: u64 = 8;

/// What it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize)]
pub struct Restored {
    /// Keys that were written.
    pub keys: u64,
    /// Of these, keys that will expire.
    pub expiring: u64,
    /// Bytes of them and their values.
    pub bytes: u64,
    /// Keys that were there already, and stay as they are.
    pub present: u64,
    /// Keys that had expired by now.
    pub expired: u64,
    /// Tombstones, which are nothing to write.
    pub removed: u64,
}

impl Restored {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Restored) -> Restored {
        Restored {
            keys: self.keys + other.keys,
            expiring: self.expiring + other.expiring,
            bytes: self.bytes + other.bytes,
            present: self.present + other.present,
            expired: self.expired + other.expired,
            removed: self.removed + other.removed,
        }
    }
}

/// Where rows go.
pub struct Target<'a> {
    /// The cluster; `None`: nowhere, they are only counted.
    pub client: Option<&'a Client>,
    /// The bucket.
    pub bucket: BucketName,
    /// How they are written.
    pub manner: Manner,
    /// Keys under way at a time.
    pub parallel: usize,
    /// As it was then, in milliseconds since 1970, with where that is in each shard; `None`: at its end.
    pub at: Option<(u64, Vec<Pick>)>,
}

impl Target<'_> {
    /// Writes every row of a backup; `done` is told the length of every part that was read. Each part is held against its manifest
    /// before any of its rows is written, and each shard against its digest once all of them are.
    ///
    /// # Errors
    /// When a part is damaged, or a key can't be written: what was written until then stays.
    pub async fn write(&self, place: &Place, chain: &Chain, done: &(dyn Fn(u64) + Sync)) -> anyhow::Result<Restored> {
        let mut restored = Restored::default();
        for entry in &chain.last().shards {
            let end = chain.links().len() - 1;
            let (pick, at_ms) = match &self.at {
                Some((at_ms, picks)) => (picks.get(usize::from(entry.shard)).copied(), *at_ms),
                None => (None, 0),
            };
            let pick = pick.unwrap_or(Pick::Cut(end));
            let said = match pick {
                Pick::Cut(at) => chain.links()[at].shards.get(usize::from(entry.shard)).map(ShardEntry::contents),
                // It is proven by what it came to in the end.
                Pick::Within(_) => None,
            };
            let merge = chain.rows_at(place, (entry.shard, pick, at_ms), done).await?;
            let rows = stream::try_unfold((merge, Contents::default()), move |(mut merge, mut contents)| async move {
                let Some(row) = merge.next().await? else {
                    let what = "its rows do not add up to its digest: see `meridian backup verify`".to_owned();
                    let (backup, shard) = (chain.last().id.clone(), entry.shard);
                    let differs = said.is_some_and(|said| said != Some(contents));
                    return if differs { Err(Fault { backup, shard, part: None, what }.into()) } else { Ok(None) };
                };
                contents.add(&row.key, &row.record)?;
                anyhow::Ok(Some((row, (merge, contents))))
            });
            let written = rows.map_ok(|row| self.row(row)).try_buffer_unordered(self.parallel);
            restored = written.try_fold(restored, async |sum, one| Ok(sum.and(one))).await?;
        }
        Ok(restored)
    }

    async fn row(&self, row: BackupRow) -> anyhow::Result<Restored> {
        let (key, saved) = (Key::new(row.key)?, Saved::of(&row.record)?);
        let bytes = saved.value.as_ref().map_or(COUNTER_BYTES, |it| it.value.len() as u64);
        let expires = saved.value.as_ref().is_some_and(|it| it.expires_at_ms.is_some());
        let writes = match fate(key.clone(), saved, self.manner, now_ms())? {
            Fate::Removed => return Ok(Restored { removed: 1, ..Restored::default() }),
            Fate::Expired => return Ok(Restored { expired: 1, ..Restored::default() }),
            Fate::Written(writes) => writes,
        };
        for write in writes {
            let written = self.ask(write).await;
            let written = written.with_context(|| format!("writing {}", String::from_utf8_lossy(key.as_bytes())))?;
            if matches!(written, Some(Outcome::ConditionFailed { .. })) {
                return Ok(Restored { present: 1, ..Restored::default() });
            }
        }
        let bytes = key.as_bytes().len() as u64 + bytes;
        Ok(Restored { keys: 1, expiring: u64::from(expires), bytes, ..Restored::default() })
    }

    /// One write under one id, however often it is tried (ONE-1).
    async fn ask(&self, write: Write) -> anyhow::Result<Option<Outcome>> {
        let Some(client) = self.client else { return Ok(None) };
        let request = Request::Write {
            bucket: self.bucket.clone(),
            write,
            ack: WriteAck::Policy,
            id: RequestId::default(),
            lowest_outstanding: 0,
            begun: Epoch(0),
            session: SessionToken::default(),
            deadline_ms: u32::try_from(WRITE_DEADLINE.as_millis()).unwrap_or(u32::MAX),
        };
        Ok(Some(client.ask(request).await?.outcome))
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
