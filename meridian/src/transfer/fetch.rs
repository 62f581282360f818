//! Reading one file back, whole and checked.

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::stream::{self, StreamExt};

use super::Store;
use super::manifest::{Fingerprint, Fingerprinter, Manifest, part_key};

/// Parts asked for ahead: enough to cover a long round trip, 8 MiB at most in memory.
const PARTS_AHEAD: usize = 8;

/// Reads a file and hands its bytes to `sink` in order; `None` when there is no such key.
///
/// # Errors
/// When a part is missing, or the parts don't come to what the manifest says.
pub async fn fetch<S: Store>(
    store: &S,
    key: &Bytes,
    mut sink: impl FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<Option<Fingerprint>> {
    let Some(value) = store.get(key.clone()).await? else { return Ok(None) };
    let Some(manifest) = Manifest::decode(&value)? else {
        sink(&value)?;
        return Ok(Some(Fingerprint::of(&value)));
    };
    let mut taker = Fingerprinter::default();
    let mut parts = stream::iter(0..manifest.parts)
        .map(|part| {
            let key = part_key(key, part);
            async move { (part, store.get(key).await) }
        })
        .buffered(PARTS_AHEAD);
    while let Some((part, value)) = parts.next().await {
        let value = value?.with_context(|| format!("part {part} of {} is missing", manifest.parts))?;
        taker.update(&value);
        sink(&value)?;
    }
    let (found, expected) = (taker.finish(), manifest.fingerprint()?);
    if found != expected {
        bail!("the parts come to {found:?}, the manifest says {expected:?}");
    }
    Ok(Some(found))
}
