//! Storing files: many at a time, bounded in number and bytes.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use futures::stream::{self, FuturesUnordered, StreamExt, TryStreamExt};
use tokio::io::AsyncReadExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Store;
use super::listing::SourceFile;
use super::manifest::{Fingerprint, Fingerprinter, Manifest, PART_BYTES, looks_like_manifest, part_key};

/// Permits are counted in units of this many bytes.
const UNIT_BYTES: usize = 4 << 10;

/// What one file became.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// Its key.
    pub key: Bytes,
    /// What was stored.
    pub fingerprint: Fingerprint,
    /// Keys written: 1, or the parts and the manifest.
    pub keys: u32,
}

/// Bounds what is on its way, over any number of files and buckets at once (RES-1). Cheap to clone.
#[derive(Clone, Debug)]
pub struct Importer {
    in_flight_max: usize,
    bytes: Arc<Semaphore>,
}

impl Importer {
    /// At most `in_flight_max` keys per call of [`Importer::run`], and `bytes_max` bytes over all of them.
    pub fn new(in_flight_max: usize, bytes_max: usize) -> Importer {
        let units = (bytes_max / UNIT_BYTES).max(units(PART_BYTES) as usize);
        Importer { in_flight_max, bytes: Arc::new(Semaphore::new(units)) }
    }

    /// Stores every file; calls `done` with each as it is acknowledged. Ends at the first failure.
    ///
    /// # Errors
    /// When a file can't be read or a key can't be written; names the file.
    pub async fn run<'a, S: Store>(
        &self,
        store: &S,
        files: impl IntoIterator<Item = &'a SourceFile>,
        done: impl Fn(&SourceFile, &Imported),
    ) -> anyhow::Result<Vec<Imported>> {
        let slots = Semaphore::new(self.in_flight_max);
        let (slots, done) = (&slots, &done);
        let storing = stream::iter(files.into_iter().map(Ok::<_, anyhow::Error>)).map_ok(|file| async move {
            let imported =
                self.store(store, file, slots).await.with_context(|| format!("importing {}", file.path.display()))?;
            done(file, &imported);
            Ok(imported)
        });
        storing.try_buffer_unordered(self.in_flight_max).try_collect().await
    }

    async fn store<S: Store>(&self, store: &S, file: &SourceFile, slots: &Semaphore) -> anyhow::Result<Imported> {
        if file.size <= PART_BYTES as u64 {
            // The permit covers what is about to be read.
            let permit = self.room(usize::try_from(file.size)?).await?;
            let content = Bytes::from(read_small(&file.path).await?);
            // It may have grown since it was listed.
            if content.len() <= PART_BYTES && !looks_like_manifest(&content) {
                let fingerprint = Fingerprint::of(&content);
                let _slot = slots.acquire().await?;
                store.put(file.key.clone(), content).await?;
                return Ok(Imported { key: file.key.clone(), fingerprint, keys: 1 });
            }
            drop(permit);
        }
        self.store_in_parts(store, file, slots).await
    }

    async fn store_in_parts<S: Store>(
        &self,
        store: &S,
        file: &SourceFile,
        slots: &Semaphore,
    ) -> anyhow::Result<Imported> {
        let mut reader = tokio::fs::File::open(&file.path).await?;
        let mut taker = Fingerprinter::default();
        let mut parts = 0;
        let mut puts = FuturesUnordered::new();
        loop {
            let permit = loop {
                // Parts of this very file may hold the room it waits for: let them finish meanwhile.
                tokio::select! {
                    permit = self.room(PART_BYTES) => break permit?,
                    Some(put) = puts.next() => put?,
                }
            };
            let part = read_part(&mut reader).await?;
            if part.is_empty() {
                break;
            }
            taker.update(&part);
            puts.push(put_part(store, part_key(&file.key, parts), part.into(), permit, slots));
            parts += 1;
        }
        puts.try_collect::<()>().await?;
        let fingerprint = taker.finish();
        // Last: whoever sees the manifest finds every part.
        store.put(file.key.clone(), Manifest::new(fingerprint, parts).encode()).await?;
        Ok(Imported { key: file.key.clone(), fingerprint, keys: parts + 1 })
    }

    async fn room(&self, bytes: usize) -> anyhow::Result<OwnedSemaphorePermit> {
        Ok(self.bytes.clone().acquire_many_owned(units(bytes)).await?)
    }
}

async fn put_part<S: Store>(
    store: &S,
    key: Bytes,
    part: Bytes,
    _room: OwnedSemaphorePermit,
    slots: &Semaphore,
) -> anyhow::Result<()> {
    let _slot = slots.acquire().await?;
    store.put(key, part).await
}

/// At most one byte more than fits into one key, to see that it doesn't.
async fn read_small(path: &Path) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    tokio::fs::File::open(path).await?.take(PART_BYTES as u64 + 1).read_to_end(&mut content).await?;
    Ok(content)
}

async fn read_part(reader: &mut tokio::fs::File) -> anyhow::Result<Vec<u8>> {
    let mut part = Vec::with_capacity(PART_BYTES);
    reader.take(PART_BYTES as u64).read_to_end(&mut part).await?;
    Ok(part)
}

fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX).max(1)
}
