//! Filling another store with part of what this one had at a moment: for a drill.

use std::ops::ControlFlow;

use bytes::Bytes;
use meridian_consensus::{Mark, StateError};
use meridian_region_core::{StateView, ViewError};
use meridian_types::ShardId;

use super::engine::Change;
use super::{Frozen, Store, decode_mark, encode_mark, mark_key};

/// Bytes filled in per batch.
const BATCH_BYTES: u64 = 4 << 20;

/// From (inclusive), to (exclusive).
pub(crate) type KeyRange = (Vec<u8>, Vec<u8>);

/// Why a copy ended early.
#[derive(Debug)]
pub(crate) enum CopyError<E> {
    /// What is copied can't be read.
    Source(ViewError),
    /// The copy can't be written.
    Target(StateError),
    /// Whoever watches over it says so.
    Stopped(E),
}

impl Frozen {
    /// The mark a shard had; `None` when nothing was ever applied to it.
    ///
    /// # Errors
    /// When the store fails, or the mark has a format this version doesn't know.
    pub(crate) fn mark(&self, shard: ShardId) -> Result<Option<Mark>, StateError> {
        let mark = self.get(&mark_key(shard)).map_err(|why| StateError::with_source("the state store failed", why))?;
        mark.map(decode_mark).transpose()
    }
}

impl Store {
    /// Copies ranges of state keys into this store; `pace` is told the bytes of every batch, before it is written.
    ///
    /// # Errors
    /// See [`CopyError`]; this store has some of it then.
    pub(crate) fn copy_from<E>(
        &self,
        source: &dyn StateView,
        ranges: &[KeyRange],
        pace: &mut dyn FnMut(u64) -> Result<(), E>,
    ) -> Result<(), CopyError<E>> {
        let (mut batch, mut bytes) = (Vec::new(), 0u64);
        for (from, to) in ranges {
            let mut outcome = Ok(());
            let mut each = |key: &[u8], value: &[u8]| {
                batch.push(Change::Put(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
                bytes += (key.len() + value.len()) as u64;
                if bytes < BATCH_BYTES {
                    return ControlFlow::Continue(());
                }
                outcome = self.take_in(std::mem::take(&mut batch), std::mem::take(&mut bytes), pace);
                if outcome.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            source.scan(from, to, &mut each).map_err(CopyError::Source)?;
            outcome?;
        }
        self.take_in(batch, bytes, pace)
    }

    fn take_in<E>(
        &self,
        batch: Vec<Change>,
        bytes: u64,
        pace: &mut dyn FnMut(u64) -> Result<(), E>,
    ) -> Result<(), CopyError<E>> {
        pace(bytes).map_err(CopyError::Stopped)?;
        self.write(batch).map_err(CopyError::Target)
    }

    /// Says where the copied state of a shard stands, durably.
    ///
    /// # Errors
    /// When the store fails.
    pub(crate) fn set_mark(&self, shard: ShardId, mark: &Mark) -> Result<(), StateError> {
        self.write(vec![Change::Put(mark_key(shard), encode_mark(mark))])?;
        self.persist()
    }
}
