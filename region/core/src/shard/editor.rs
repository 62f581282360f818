//! One entry changing one bucket: every change of a record goes through here, so that the record, the
//! digest, the expiry index and the counts can't come apart.

use bytes::Bytes;
use meridian_types::{BucketId, Lsn, ShardId};

use super::watch;
use crate::error::{Damage, ReadError};
use crate::keys;
use crate::meta::BucketMeta;
use crate::record::{Record, Stamp};
use crate::view::{Mutations, StateView};

/// What one entry may touch.
pub(super) struct Editor<'a> {
    pub(super) shard: ShardId,
    pub(super) bucket: BucketId,
    pub(super) meta: &'a mut BucketMeta,
    pub(super) view: &'a dyn StateView,
    pub(super) out: &'a mut Mutations,
    /// The entry's version and its position in its origin's log.
    pub(super) stamp: Stamp,
    /// Where in the own log a removal is noted, in a bucket of which some keys are watched.
    pub(super) watch: Option<Lsn>,
}

/// A key with the record it had.
pub(super) struct Slot {
    state_key: Vec<u8>,
    record: Option<Bytes>,
}

impl Slot {
    /// The record, decoded.
    pub(super) fn decode(&self) -> Result<Option<Record<'_>>, Damage> {
        self.record.as_deref().map(Record::decode).transpose()
    }

    /// The record, as it is stored.
    pub(super) fn record(&self) -> Option<&Bytes> {
        self.record.as_ref()
    }

    fn key(&self) -> &[u8] {
        &self.state_key[keys::DATA_PREFIX_BYTES..]
    }
}

impl Editor<'_> {
    /// The entry's own time: what counts as expired for it, on every replica.
    pub(super) fn now_ms(&self) -> u64 {
        self.stamp.version.hlc.millis()
    }

    /// When something with this time to live ends.
    pub(super) fn expires_at(&self, ttl_ms: Option<u64>) -> Option<u64> {
        ttl_ms.map(|ttl| self.now_ms().saturating_add(ttl))
    }

    /// Reads a key: the one point read of a blind write.
    pub(super) fn slot(&self, key: &[u8]) -> Result<Slot, ReadError> {
        let state_key = keys::data(self.shard, self.bucket, key);
        let record = self.out.over(self.view).get(&state_key)?;
        Ok(Slot { state_key, record })
    }

    /// Gives a key a new record. Counts saturate: a damaged one must be found by a scrub, not by a panic.
    pub(super) fn replace(&mut self, slot: Slot, record: Bytes) -> Result<(), Damage> {
        self.take_out(&slot)?;
        let new = Record::decode(&record)?;
        let key = slot.key();
        self.meta.digest.hash.add(key, &record);
        if let Some(bytes) = new.live_bytes() {
            self.meta.digest.keys = self.meta.digest.keys.saturating_add(1);
            self.meta.digest.bytes = self.meta.digest.bytes.saturating_add(key.len() as u64 + bytes);
        }
        if let Some(at) = new.expiry() {
            self.meta.expiring = self.meta.expiring.saturating_add(1);
            self.out.put(keys::expiry(self.shard, self.bucket, at, key), Bytes::new());
        }
        self.out.put(slot.state_key, record);
        Ok(())
    }

    /// Removes a key; tells whether there was a record.
    pub(super) fn remove(&mut self, slot: Slot) -> Result<bool, ReadError> {
        let existed = slot.record.is_some();
        if existed {
            self.take_out(&slot)?;
            self.removed(self.stamp.lsn);
            if let Some(at) = self.watch {
                watch::note(self.view, self.out, (self.shard, self.bucket), slot.key(), at)?;
            }
            self.out.delete(slot.state_key);
        }
        Ok(existed)
    }

    /// Notes that something was removed.
    pub(super) fn removed(&mut self, at: Lsn) {
        self.meta.digest.last_removal = self.meta.digest.last_removal.max(at);
    }

    /// Takes the old record out of everything that counts records.
    fn take_out(&mut self, slot: &Slot) -> Result<(), Damage> {
        let (Some(bytes), Some(old)) = (&slot.record, slot.decode()?) else { return Ok(()) };
        let key = slot.key();
        self.meta.digest.hash.remove(key, bytes);
        if let Some(bytes) = old.live_bytes() {
            self.meta.digest.keys = self.meta.digest.keys.saturating_sub(1);
            self.meta.digest.bytes = self.meta.digest.bytes.saturating_sub(key.len() as u64 + bytes);
        }
        if let Some(at) = old.expiry() {
            self.meta.expiring = self.meta.expiring.saturating_sub(1);
            self.out.delete(keys::expiry(self.shard, self.bucket, at, key));
        }
        Ok(())
    }
}
