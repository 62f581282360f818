//! Writes in an active-active bucket: every region accepts them, so each must merge the same way in any
//! order (CON-4). Deletes leave a tombstone with their version, so that an older write arriving later
//! loses (CON-5).

use bytes::Bytes;
use meridian_types::{Outcome, Refusal, RefusalKind, RegionId};

use super::editor::Editor;
use super::plain::Decision;
use super::watch;
use crate::body::KeyRef;
use crate::error::Damage;
use crate::record::{Content, Merged, Record, Register, Stamp, encode_merged};

/// Sets the register, unless a later write has.
pub(super) fn register(editor: &mut Editor<'_>, key: KeyRef<'_>, content: Content<'_>) -> Decision {
    let slot = editor.slot(key.0)?;
    let merged = slot.decode()?.map(Record::into_merged).unwrap_or_default();
    let record = encode_merged(&set(merged, Some(content), editor.stamp));
    editor.replace(slot, record)?;
    Ok(Ok(Outcome::Written { version: editor.stamp.version }))
}

/// Counts, for the actor that the entry's region is; on from a number of before all regions wrote. Any other value on the key hides the
/// count, but doesn't stop it: the proposer refused what it could see, and what it could not must merge.
pub(super) fn count(editor: &mut Editor<'_>, key: KeyRef<'_>, by: i64) -> Decision {
    let slot = editor.slot(key.0)?;
    let mut merged = slot.decode()?.map(Record::into_merged).unwrap_or_default();
    let counter = merged.counter.get_or_insert_default();
    if counter.add(editor.stamp.version.region, by, editor.stamp).is_err() {
        let message = "this region has counted to the end of 64 bits in that direction on this key: use another key";
        return Ok(Err(Refusal::new(RefusalKind::Conflict, message)));
    }
    let (record, value) = (encode_merged(&merged), merged.count());
    editor.replace(slot, record)?;
    Ok(Ok(Outcome::Count { version: editor.stamp.version, value }))
}

/// Removes the register, unless a later write has set it, and of the counter what the origin had observed.
pub(super) fn remove(editor: &mut Editor<'_>, key: KeyRef<'_>, observed: &[(RegionId, u64, u64)]) -> Decision {
    let slot = editor.slot(key.0)?;
    let record = slot.decode()?;
    let existed = record.as_ref().is_some_and(|record| record.read(editor.now_ms()).is_some());
    let merged = record.map(Record::into_merged).unwrap_or_default();
    let merged = set(merged, None, editor.stamp);
    let mut counter = merged.counter.unwrap_or_default();
    counter.remove(editor.stamp.version.region, observed);
    let counter = Some(counter).filter(|counter| *counter != Default::default());
    let record = encode_merged(&Merged { counter, ..merged });
    editor.replace(slot, record)?;
    editor.removed(editor.stamp.lsn);
    if let (true, Some(at)) = (existed, editor.watch) {
        watch::note(editor.view, editor.out, (editor.shard, editor.bucket), key.0, at)?;
    }
    Ok(Ok(Outcome::Deleted { version: editor.stamp.version, existed }))
}

/// What two replicas have of a key, joined. Where that is what one of them has, its very bytes: equal inputs give equal
/// bytes.
pub(super) fn join(ours: Option<&Bytes>, theirs: &[u8]) -> Result<Bytes, Damage> {
    let (Some(ours), given) = (ours, Record::decode(theirs)?.into_merged()) else {
        return Ok(Bytes::copy_from_slice(theirs));
    };
    let own = Record::decode(ours)?.into_merged();
    let register = match (own.register.clone(), given.register.clone()) {
        (Some(own), Some(given)) => Some(latest(Some(own), given.val, given.marker)),
        (own, given) => own.or(given),
    };
    let counter = match (own.counter.clone(), given.counter.clone()) {
        (Some(own), Some(given)) => Some(own.join(&given)),
        (own, given) => own.or(given),
    };
    // Of whoever has the register that stays.
    let counts_on = [&own, &given].into_iter().any(|side| side.counts_on && side.register == register);
    let joined = Merged { register, counter, counts_on };
    // Left from before the bucket was active-active by one of them, and merged by the other: the merged bytes win.
    if joined == given && joined == own && is_plain(theirs)? || joined == own && joined != given {
        return Ok(ours.clone());
    }
    Ok(if joined == given { Bytes::copy_from_slice(theirs) } else { encode_merged(&joined) })
}

fn is_plain(record: &[u8]) -> Result<bool, Damage> {
    Ok(matches!(Record::decode(record)?, Record::Plain { .. }))
}

/// Sets the register, unless a later write has. A number that is set anew counts on no more.
fn set<'a>(merged: Merged<'a>, val: Option<Content<'a>>, marker: Stamp) -> Merged<'a> {
    let before = merged.register.as_ref().map(|register| register.marker);
    let register = latest(merged.register, val, marker);
    let counts_on = merged.counts_on && before == Some(register.marker);
    Merged { register: Some(register), counter: merged.counter, counts_on }
}

fn latest<'a>(register: Option<Register<'a>>, val: Option<Content<'a>>, marker: Stamp) -> Register<'a> {
    match register {
        None => Register { val, marker },
        Some(mut register) => {
            register.update(val, marker);
            register
        }
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::{Hlc, Lsn, Version};

    use super::*;
    use crate::record::encode_plain;

    fn stamp(hlc: u64, region: u16) -> Stamp {
        Stamp { version: Version { hlc: Hlc(hlc), region: RegionId(region) }, lsn: Lsn(hlc) }
    }

    #[test]
    fn con_4_a_number_that_counts_on_joins_to_the_same_from_either_side() {
        let number = encode_plain(stamp(5, 1), None, &[b"40"]);
        let counted = |region: u16, by| {
            let mut merged = Record::decode(&number).unwrap().into_merged();
            let counter = merged.counter.get_or_insert_default();
            counter.add(RegionId(region), by, stamp(6, region)).unwrap();
            encode_merged(&merged)
        };
        let (one, other) = (counted(1, 1), counted(2, 10));
        let content = Content { expires_at_ms: None, value: b"7" };
        let set_anew = encode_merged(&set(Record::decode(&one).unwrap().into_merged(), Some(content), stamp(7, 3)));
        let joined = |ours: &Bytes, theirs: &Bytes| {
            let both = join(Some(ours), theirs).unwrap();
            assert_eq!(both, join(Some(theirs), ours).unwrap());
            assert_eq!(both, join(Some(&both), theirs).unwrap(), "and to no more than that");
            let value = Record::decode(&both).unwrap().read(0).unwrap().value.into_owned();
            String::from_utf8(value).unwrap()
        };
        assert_eq!(joined(&number, &one), "41");
        assert_eq!(joined(&one, &other), "51");
        assert_eq!(joined(&other, &set_anew), "7", "what was set anew counts on no more");
        assert_eq!(joined(&number, &set_anew), "7");
    }
}
