//! Salvage: before a primary that was lost is made equal to its successor, what only it has is written down (SWI-2);
//! afterwards it can be looked at, and written back (docs/adr/2026-11-27-salvage.md).
//!
//! ```text
//! <bucket>-<shard>-<epoch>-<cut>-<end>.<n>.part     entries and keys, some at a time
//! <bucket>-<shard>-<epoch>-<cut>-<end>.head         written last: the bundle is whole
//! <bucket>-<shard>-<epoch>-<cut>-<end>.replayed     what was written back
//! <bucket>-<shard>-<epoch>-<cut>-<end>.<n>.counted  what a part adds to counters that all regions count was added
//! ```
//!
//! Each is sealed (`vault.rs`), and durable before the first row is replaced. The names say what is in them, so an attempt
//! that is begun again after a crash writes the same.

mod read;
mod removals;
mod replay;
mod vault;
mod write;

pub use vault::{Files, Memory, Vault};
pub(crate) use vault::{seal, unseal};
pub(crate) use write::Rows;

use std::time::Duration;

use meridian_region_core::salvage::Head;
use meridian_types::{Refusal, RefusalKind, SalvageId};
use tokio::time::{Instant, sleep};

/// Between two attempts at what another node does.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Asks again after a pause, as a client does, as long as the answer may become another one. A region that has just come back
/// is not connected to everybody yet. A write is one under one id however often it is tried (ONE-1).
async fn patiently<T, F>(until: Instant, ask: impl Fn() -> F) -> Result<T, Refusal>
where
    F: Future<Output = Result<T, Refusal>>,
{
    loop {
        let answer = ask().await;
        let passes = |kind| {
            use RefusalKind::{Fenced, Redirect, Retry, Stale, Unavailable};
            matches!(kind, Retry | Redirect | Fenced | Stale | Unavailable)
        };
        match answer {
            Err(refusal) if passes(refusal.kind) && Instant::now() + AGAIN_AFTER < until => sleep(AGAIN_AFTER).await,
            answer => return answer,
        }
    }
}

/// The name of a bundle.
pub(crate) fn id_of(head: &Head) -> SalvageId {
    SalvageId { bucket: head.bucket, shard: head.shard, epoch: head.epoch, cut: head.cut(), end: head.end }
}

fn head_name(id: SalvageId) -> String {
    format!("{id}.head")
}

fn part_name(id: SalvageId, part: u32) -> String {
    format!("{id}.{part}.part")
}

fn counted_name(id: SalvageId, part: u32) -> String {
    format!("{id}.{part}.counted")
}

fn replayed_name(id: SalvageId) -> String {
    format!("{id}.replayed")
}
