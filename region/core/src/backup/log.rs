//! What a backup keeps of a shard's log for one bucket: entries that have a place in its history, as they are, and frames with the
//! entries of other buckets taken out.
//!
//! Only of a stretch in which the bucket stays in one epoch and nothing but entries changes its rows: a stretch with a fence, a seal,
//! a repair or the like is not kept, and what changed over it is found by comparing rows.

use std::collections::BTreeSet;

use bytes::Bytes;
use meridian_types::entry::{HEADER_BYTES, Header, Kind};
use meridian_types::frame::{self, Frame};
use meridian_types::{BucketId, Lsn};

use crate::error::Damage;
use crate::salvage::keys_of;

/// What an entry of the own log is to a backup of one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// Nothing.
    Other,
    /// It is kept so, and these keys may be others behind it.
    Kept(Bytes, Vec<Bytes>),
    /// The stretch can't be kept; why.
    Unfit(&'static str),
}

/// Looks at one entry. `is_effective` says of an own entry whether it took its place in the history ([`crate::Shard::is_effective`]).
///
/// # Errors
/// [`Damage`] when it can't be read.
pub fn look(
    (lsn, entry): (Lsn, &Bytes),
    bucket: BucketId,
    is_effective: &dyn Fn(Lsn, &Header) -> bool,
) -> Result<Look, Damage> {
    let header = Header::decode(entry).map_err(|_| damage())?;
    let is_of_it = header.bucket == bucket;
    Ok(match header.kind {
        Kind::Write | Kind::Expire if is_of_it && is_effective(lsn, &header) => {
            Look::Kept(entry.clone(), keys(&header, entry)?)
        }
        Kind::Frame => look_at_frame(&header, entry, bucket)?,
        // Of every bucket: what is remembered of clients.
        Kind::ExpireClients => Look::Kept(entry.clone(), Vec::new()),
        Kind::Seal | Kind::Raise | Kind::Fence | Kind::Stop | Kind::Part if is_of_it => {
            Look::Unfit("its epoch changed since")
        }
        Kind::Repair if is_of_it => Look::Unfit("it was made equal to another region's since"),
        Kind::DropBucket if is_of_it => Look::Unfit("its rows were dropped since"),
        Kind::Write
        | Kind::Expire
        | Kind::Seal
        | Kind::Raise
        | Kind::Fence
        | Kind::Stop
        | Kind::Part
        | Kind::Repair
        | Kind::DropBucket => Look::Other,
    })
}

/// A frame moves its lane on, whatever is in it.
fn look_at_frame(header: &Header, entry: &Bytes, bucket: BucketId) -> Result<Look, Damage> {
    let Ok(frame) = Frame::decode(entry.get(HEADER_BYTES..).unwrap_or_default()) else { return Ok(Look::Other) };
    let (mut entries, mut touched) = (Vec::new(), Vec::new());
    for (lsn, entry) in frame.entries {
        let Ok(inner) = Header::decode(&entry) else { return Ok(Look::Other) };
        if inner.bucket != bucket {
            continue;
        }
        if inner.kind == Kind::Seal {
            return Ok(Look::Unfit("its epoch changed since"));
        }
        // What can't be read made the frame one that changed nothing.
        let Ok(of_it) = keys(&inner, &entry) else { return Ok(Look::Other) };
        touched.extend(of_it);
        entries.push((lsn, entry));
    }
    Ok(Look::Kept(header.encode_frame(&frame::encode(frame.header, &[], &entries)), touched))
}

/// The keys that an entry as it is kept may change.
///
/// # Errors
/// [`Damage`] when it can't be read.
pub fn touched(entry: &Bytes) -> Result<BTreeSet<Bytes>, Damage> {
    let header = Header::decode(entry).map_err(|_| damage())?;
    match header.kind {
        Kind::Write | Kind::Expire => Ok(keys(&header, entry)?.into_iter().collect()),
        Kind::Frame => {
            let frame = Frame::decode(entry.get(HEADER_BYTES..).unwrap_or_default()).map_err(|_| damage())?;
            let mut all = BTreeSet::new();
            for (_, entry) in &frame.entries {
                let inner = Header::decode(entry).map_err(|_| damage())?;
                all.extend(keys(&inner, entry)?);
            }
            Ok(all)
        }
        Kind::ExpireClients => Ok(BTreeSet::new()),
        // No backup keeps such ones.
        Kind::Seal | Kind::Raise | Kind::Fence | Kind::Stop | Kind::Part | Kind::Repair | Kind::DropBucket => {
            Err(damage())
        }
    }
}

fn keys(header: &Header, entry: &[u8]) -> Result<Vec<Bytes>, Damage> {
    Ok(keys_of(header, entry)?.into_iter().map(|(key, _)| key).collect())
}

fn damage() -> Damage {
    Damage { what: "entry of the log" }
}
