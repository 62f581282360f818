//! Writing back what was lost, key by key, as ordinary writes of a client: acknowledged as the bucket's policy says.
//!
//! A key that is to be as it was is written on condition that it still is. Removing one has no condition to offer: it is
//! looked at right before, and so is a key that every region writes, which no region orders. What was added to a counter that all regions
//! count is added again, once. A run of one part is one client, so that it costs others none of their kept answers (ONE-1).

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use meridian_region_core::salvage::LostValue;
use meridian_types::{
    BucketName, ClientId, Epoch, Key, Outcome, Refusal, RefusalKind, ReplayPolicy, ReplayReport, Request, RequestId,
    SalvageFate, SalvageId, SessionToken, SetHash, Value, Write, WriteAck,
};
use tokio::time::Instant;

use super::read::Judged;
use super::{counted_name, patiently, replayed_name};
use crate::node::Node;
use crate::router::Caller;

/// Writes under way at a time.
const WRITES_MAX: usize = 64;

/// How long one of them may take, in milliseconds.
const WRITE_MS: u32 = 10_000;

/// What was written back of a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Replayed {
    pub(crate) at_ms: u64,
    pub(crate) restored: u64,
}

/// What happens to a key.
enum Deed {
    /// It is written back; so it would be.
    Restored,
    Left(SalvageFate),
    Expired,
    Failed,
}

/// A part being written back.
struct Run {
    bucket: BucketName,
    client: ClientId,
    policy: ReplayPolicy,
    dry_run: bool,
    /// Whether every region writes the bucket.
    merged: bool,
    /// Whether what the part adds to counters was not added before.
    adds: bool,
}

impl Node {
    /// Writes one part of a bundle back, or with `dry_run` only says what would become of it.
    pub(crate) async fn replay(
        &self,
        id: SalvageId,
        part: u32,
        policy: ReplayPolicy,
        dry_run: bool,
    ) -> Result<ReplayReport, Refusal> {
        let topology = self.authority.topology();
        let judged = self.judge_part(id, part).await?;
        let name = topology.buckets.get(&id.bucket).map(|bucket| bucket.name.clone());
        let name = name.ok_or_else(|| Refusal::new(RefusalKind::NotFound, "the bucket was deleted"))?;
        let merged = topology.buckets.get(&id.bucket).is_some_and(|bucket| bucket.primary.is_none());
        let counts = merged && judged.iter().flatten().any(|it| it.counted.is_some());
        let adds = counts && policy != ReplayPolicy::Skip && self.adds_for_the_first_time(id, part, dry_run).await?;
        let client = client(id, part, self.clock.wall_ms());
        let run = Run { bucket: name, client, policy, dry_run, merged, adds };
        let run = &run;
        let deeds = stream::iter((1..).zip(judged)).map(|(sequence, judged)| async move {
            match judged {
                Ok(judged) => self.restore(run, sequence, judged).await,
                Err(_) => Deed::Failed,
            }
        });
        // In order: so none is older than the oldest that may still be under way.
        let report = deeds.buffered(WRITES_MAX).fold(ReplayReport::default(), async |mut report, deed| {
            count(&mut report, &deed);
            report
        });
        let report = report.await;
        if !dry_run && report.restored > 0 {
            self.note_replay(id, report.restored).await?;
        }
        Ok(report)
    }

    /// Whether nobody has begun to add to counters what this part did; noted before anything is, so that nothing is added twice.
    async fn adds_for_the_first_time(&self, id: SalvageId, part: u32, dry_run: bool) -> Result<bool, Refusal> {
        let first = self.unsealed(counted_name(id, part)).await?.is_none();
        if first && !dry_run {
            let noted = self.keep(counted_name(id, part), Bytes::new()).await;
            noted.map_err(|why| Refusal::new(RefusalKind::Unavailable, why))?;
        }
        Ok(first)
    }

    async fn restore(&self, run: &Run, sequence: u64, judged: Judged) -> Deed {
        let Judged { lost, fate, version, counted } = judged;
        let counted = counted.filter(|_| run.merged);
        match run.policy {
            ReplayPolicy::Skip => return Deed::Left(fate),
            // What is added does not depend on what is there; but what was added once is not added again.
            ReplayPolicy::IfUnchanged | ReplayPolicy::Overwrite if counted.is_some() => {
                if !run.adds {
                    return Deed::Left(SalvageFate::Changed);
                }
            }
            ReplayPolicy::IfUnchanged if fate != SalvageFate::Untouched => return Deed::Left(fate),
            ReplayPolicy::IfUnchanged | ReplayPolicy::Overwrite => {}
        }
        let (Ok(key), now_ms) = (Key::new(lost.key.clone()), self.clock.wall_ms()) else { return Deed::Failed };
        let expires = lost.value.as_ref().and_then(|value| value.expires_at_ms);
        if expires.is_some_and(|at| at <= now_ms) {
            return Deed::Expired;
        }
        let ttl_ms = expires.map(|at| at - now_ms);
        // Where every region writes there are no conditions: it was looked at right before.
        let policy = if run.merged { ReplayPolicy::Overwrite } else { run.policy };
        let write = match counted {
            Some(by) => Ok(Write::Increment { key, by }),
            None => write_of(key, lost.value.as_ref(), version, policy, ttl_ms),
        };
        let Ok(write) = write else { return Deed::Failed };
        if run.dry_run {
            return Deed::Restored;
        }
        let request = Request::Write {
            bucket: run.bucket.clone(),
            write,
            ack: WriteAck::Policy,
            id: RequestId { client: run.client, sequence },
            lowest_outstanding: sequence.saturating_sub(WRITES_MAX as u64).max(1),
            begun: Epoch(0),
            session: SessionToken::default(),
            deadline_ms: WRITE_MS,
        };
        let until = Instant::now() + Duration::from_millis(WRITE_MS.into());
        let written = patiently(until, || self.execute(request.clone(), Caller::Client)).await;
        match written.map(|response| response.outcome) {
            Ok(Outcome::ConditionFailed { .. }) => Deed::Left(SalvageFate::Changed),
            Ok(_) => Deed::Restored,
            Err(_) => Deed::Failed,
        }
    }

    pub(super) async fn replayed(&self, id: SalvageId) -> Result<Replayed, Refusal> {
        let Some(body) = self.unsealed(replayed_name(id)).await? else { return Ok(Replayed::default()) };
        Ok(decode_replayed(&body).unwrap_or_default())
    }

    async fn note_replay(&self, id: SalvageId, restored: u64) -> Result<(), Refusal> {
        let before = self.replayed(id).await?;
        let now = Replayed { at_ms: self.clock.wall_ms(), restored: before.restored + restored };
        let kept = self.keep(replayed_name(id), encode_replayed(now).into()).await;
        kept.map_err(|why| Refusal::new(RefusalKind::Unavailable, why))
    }
}

/// The version of a replay's note, then when and how many, little-endian.
const REPLAYED_FORMAT: u8 = 1;

pub(crate) fn encode_replayed(replayed: Replayed) -> Vec<u8> {
    [&[REPLAYED_FORMAT], &replayed.at_ms.to_le_bytes()[..], &replayed.restored.to_le_bytes()].concat()
}

pub(crate) fn decode_replayed(body: &[u8]) -> Option<Replayed> {
    let (&REPLAYED_FORMAT, rest) = body.split_first()? else { return None };
    let (at_ms, rest) = rest.split_first_chunk()?;
    let restored: &[u8; 8] = rest.try_into().ok()?;
    Some(Replayed { at_ms: u64::from_le_bytes(*at_ms), restored: u64::from_le_bytes(*restored) })
}

fn write_of(
    key: Key,
    lost: Option<&LostValue>,
    version: Option<meridian_types::Version>,
    policy: ReplayPolicy,
    ttl_ms: Option<u64>,
) -> Result<Write, ()> {
    let Some(lost) = lost else { return Ok(Write::Delete { key }) };
    let value = Value::new(lost.value.clone()).map_err(|_| ())?;
    Ok(match (policy, version) {
        (ReplayPolicy::IfUnchanged, Some(_)) => Write::CompareAndSet { key, expected: version, value, ttl_ms },
        (ReplayPolicy::IfUnchanged, None) => Write::PutIfAbsent { key, value, ttl_ms },
        (ReplayPolicy::Overwrite | ReplayPolicy::Skip, _) => Write::Put { key, value, ttl_ms },
    })
}

/// One for each run: what an earlier run wrote is found by its conditions.
fn client(id: SalvageId, part: u32, now_ms: u64) -> ClientId {
    ClientId(SetHash::of(format!("{id}.{part}").as_bytes(), &now_ms.to_le_bytes()).0.max(1))
}

fn count(report: &mut ReplayReport, deed: &Deed) {
    let place = match deed {
        Deed::Restored => &mut report.restored,
        Deed::Left(SalvageFate::Changed | SalvageFate::Untouched) => &mut report.changed,
        Deed::Left(SalvageFate::Deleted) => &mut report.deleted,
        Deed::Left(SalvageFate::Unknown) => &mut report.unknown,
        Deed::Expired => &mut report.expired,
        Deed::Failed => &mut report.failed,
    };
    *place += 1;
}
