//! The record of a key: the bytes that are stored, and that the digest hashes. Equal inputs give equal
//! bytes in every region, so there is exactly one encoding of every record. Little-endian:
//!
//! ```text
//! 0        1     2       3       11       13       21
//! | format | tag | flags | hlc   | region | lsn    | …
//! |   1    | u8  |  u8   | u64   |  u16   | u64    |
//!
//! tag 1, bucket with a primary:  stamp | expires at u64 if flag 1 | value …
//! tag 2, active-active:          register, if flag 2:  stamp | expires at u64 if flag 1
//!                                counter, if flag 8:   stamp | actors u16 | actor u16, 4 x u64 …
//!                                value … if flag 4 (else the register is a tombstone)
//!                                flag 16: the value is a number, and the counter counts on from it
//! ```
//!
//! The LSN is the origin's, so it too is the same everywhere. The value stands last and is never copied
//! by decoding. Tombstones and removed counters stay (CON-5) until every region has seen them; dropping
//! them is not here.

use std::borrow::Cow;

use bytes::{Buf, BufMut, Bytes};
use crdts::LWWReg;
use meridian_types::{Hlc, Lsn, RegionId, Version};

use crate::counter::{Counter, Tally};
use crate::error::Damage;

/// The first byte of every record.
pub const RECORD_FORMAT: u8 = 1;

const TAG_PLAIN: u8 = 1;
const TAG_MERGED: u8 = 2;

const HAS_EXPIRY: u8 = 1;
const HAS_REGISTER: u8 = 2;
const IS_LIVE: u8 = 4;
const HAS_COUNTER: u8 = 8;
const COUNTS_ON: u8 = 16;

const HEAD_BYTES: usize = 3;
const STAMP_BYTES: usize = 18;
const TALLY_BYTES: usize = 34;

/// The write that made something. Ordered by version, which no two writes share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Stamp {
    pub(crate) version: Version,
    /// Its position in the log of `version.region`.
    pub(crate) lsn: Lsn,
}

/// A value and its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Content<'a> {
    pub(crate) expires_at_ms: Option<u64>,
    pub(crate) value: &'a [u8],
}

/// A last-writer-wins register; `None` is a tombstone. Its marker is never equal for two writes, which is
/// what crate `crdts` asks for.
pub(crate) type Register<'a> = LWWReg<Option<Content<'a>>, Stamp>;

/// A decoded record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record<'a> {
    /// In a bucket with a primary.
    Plain { stamp: Stamp, content: Content<'a> },
    /// In an active-active bucket: at least one of the two is there.
    Merged(Merged<'a>),
}

/// What regions that all write have made of a key.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Merged<'a> {
    pub(crate) register: Option<Register<'a>>,
    pub(crate) counter: Option<Counter>,
    /// The register is a number of before all regions wrote, without an end, and nobody has set the key since: it counts on. So it is the
    /// same wherever the same writes are, in whatever order they came.
    pub(crate) counts_on: bool,
}

/// What a reader sees of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reading<'a> {
    pub(crate) stamp: Stamp,
    pub(crate) expires_at_ms: Option<u64>,
    pub(crate) value: Cow<'a, [u8]>,
}

impl Content<'_> {
    /// Whether its time has come.
    pub(crate) fn is_expired(&self, now_ms: u64) -> bool {
        self.expires_at_ms.is_some_and(|at| at <= now_ms)
    }
}

/// The bytes of a plain record. The value is given in parts so that an append copies each once.
pub(crate) fn encode_plain(stamp: Stamp, expires_at_ms: Option<u64>, value: &[&[u8]]) -> Bytes {
    let length: usize = value.iter().map(|part| part.len()).sum();
    let mut bytes = Vec::with_capacity(HEAD_BYTES + STAMP_BYTES + 8 + length);
    bytes.extend_from_slice(&[RECORD_FORMAT, TAG_PLAIN, if expires_at_ms.is_some() { HAS_EXPIRY } else { 0 }]);
    put_stamp(&mut bytes, stamp);
    expires_at_ms.into_iter().for_each(|at| bytes.put_u64_le(at));
    value.iter().for_each(|part| bytes.extend_from_slice(part));
    bytes.into()
}

/// The bytes of an active-active record.
pub(crate) fn encode_merged(merged: &Merged<'_>) -> Bytes {
    let (register, counter) = (merged.register.as_ref(), merged.counter.as_ref());
    let content = register.and_then(|register| register.val);
    let expires_at_ms = content.and_then(|content| content.expires_at_ms);
    let value = content.map_or(&[][..], |content| content.value);
    let actors = counter.map_or(0, |counter| counter.tallies.len());
    let mut flags = 0;
    for (is, flag) in [
        (expires_at_ms.is_some(), HAS_EXPIRY),
        (register.is_some(), HAS_REGISTER),
        (content.is_some(), IS_LIVE),
        (counter.is_some(), HAS_COUNTER),
        (merged.counts_on, COUNTS_ON),
    ] {
        flags |= if is { flag } else { 0 };
    }
    let mut bytes = Vec::with_capacity(HEAD_BYTES + 2 * STAMP_BYTES + 10 + actors * TALLY_BYTES + value.len());
    bytes.extend_from_slice(&[RECORD_FORMAT, TAG_MERGED, flags]);
    register.into_iter().for_each(|register| put_stamp(&mut bytes, register.marker));
    expires_at_ms.into_iter().for_each(|at| bytes.put_u64_le(at));
    if let Some(counter) = counter {
        put_stamp(&mut bytes, counter.stamp);
        // Actors are region numbers, of which there are no more than a u16 can tell apart.
        bytes.put_u16_le(u16::try_from(actors).unwrap_or(u16::MAX));
        for (actor, tally) in &counter.tallies {
            bytes.put_u16_le(actor.0);
            bytes.put_u64_le(tally.increments);
            bytes.put_u64_le(tally.decrements);
            bytes.put_u64_le(tally.removed_increments);
            bytes.put_u64_le(tally.removed_decrements);
        }
    }
    bytes.extend_from_slice(value);
    bytes.into()
}

impl<'a> Record<'a> {
    /// Reads a record. Accepts exactly what the encoders write.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Record<'a>, Damage> {
        let damage = Damage { what: "record" };
        let Some(([RECORD_FORMAT, tag, flags], mut rest)) = bytes.split_first_chunk() else {
            return Err(damage);
        };
        let record = match *tag {
            TAG_PLAIN => take_plain(*flags, &mut rest),
            TAG_MERGED => take_merged(*flags, &mut rest),
            _ => None,
        };
        record.ok_or(damage)
    }

    /// What a reader sees at a time: the number that counts on, else the value, else the counter as decimal text, else nothing.
    pub(crate) fn read(&self, now_ms: u64) -> Option<Reading<'a>> {
        let live = |stamp: Stamp, content: Content<'a>| {
            (!content.is_expired(now_ms)).then_some(Reading {
                stamp,
                expires_at_ms: content.expires_at_ms,
                value: Cow::Borrowed(content.value),
            })
        };
        match self {
            Record::Plain { stamp, content } => live(*stamp, *content),
            Record::Merged(Merged { register: Some(register), counter: Some(counter), counts_on: true }) => {
                let value = counted_on(register, Some(counter)).to_string().into_bytes();
                let stamp = register.marker.max(counter.stamp);
                Some(Reading { stamp, expires_at_ms: None, value: Cow::Owned(value) })
            }
            Record::Merged(Merged { register, counter, .. }) => register
                .as_ref()
                .and_then(|register| live(register.marker, register.val?))
                .or_else(|| counter.as_ref().filter(|counter| counter.is_live()).map(Reading::of_counter)),
        }
    }

    /// What it adds to a digest's `bytes` besides the key; `None` for a tombstone, which is no key. Time plays
    /// no part: an expired value counts until the log removes it.
    pub(crate) fn live_bytes(&self) -> Option<u64> {
        match self {
            Record::Plain { content, .. } => Some(content.value.len() as u64),
            Record::Merged(merged) => match merged.register.as_ref().and_then(|register| register.val) {
                Some(content) => Some(content.value.len() as u64),
                None => merged.counter.as_ref().is_some_and(Counter::is_live).then_some(8),
            },
        }
    }

    /// When the log is to remove it. Active-active values expire for their readers only: a removal by one
    /// region's clock would not commute with another region's write.
    pub(crate) fn expiry(&self) -> Option<u64> {
        match self {
            Record::Plain { content, .. } => content.expires_at_ms,
            Record::Merged(_) => None,
        }
    }

    /// As an active-active record. A plain one, left from before a change of policy, is a register; if it is a number, one that counts on.
    pub(crate) fn into_merged(self) -> Merged<'a> {
        match self {
            Record::Plain { stamp, content } => Merged {
                register: Some(Register { val: Some(content), marker: stamp }),
                counter: None,
                counts_on: can_count_on(content),
            },
            Record::Merged(merged) => merged,
        }
    }
}

impl Merged<'_> {
    /// What an increment adds to.
    pub(crate) fn count(&self) -> i64 {
        match &self.register {
            Some(register) if self.counts_on => counted_on(register, self.counter.as_ref()),
            _ => self.counter.as_ref().map(Counter::value).unwrap_or_default(),
        }
    }
}

/// A number that counts on, with what was counted; beyond an i64 it stands at the i64's end, as a counter does.
fn counted_on(register: &Register<'_>, counter: Option<&Counter>) -> i64 {
    let number = register.val.and_then(|content| integer(content.value)).unwrap_or_default();
    number.saturating_add(counter.map(Counter::value).unwrap_or_default())
}

/// Whether what was written before may be counted on from: what is to end at a time would have to end with all that was counted.
fn can_count_on(content: Content<'_>) -> bool {
    content.expires_at_ms.is_none() && integer(content.value).is_some()
}

/// An i64 in its one canonical decimal form, as Redis takes it: no sign but `-`, no leading zeros or spaces.
pub(crate) fn integer(text: &[u8]) -> Option<i64> {
    let value: i64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (value.to_string().as_bytes() == text).then_some(value)
}

impl Reading<'_> {
    fn of_counter<'a>(counter: &Counter) -> Reading<'a> {
        let text = counter.value().to_string().into_bytes();
        Reading { stamp: counter.stamp, expires_at_ms: None, value: Cow::Owned(text) }
    }
}

fn put_stamp(bytes: &mut Vec<u8>, stamp: Stamp) {
    bytes.put_u64_le(stamp.version.hlc.0);
    bytes.put_u16_le(stamp.version.region.0);
    bytes.put_u64_le(stamp.lsn.0);
}

fn take_stamp(rest: &mut &[u8]) -> Option<Stamp> {
    let version = Version { hlc: Hlc(rest.try_get_u64_le().ok()?), region: RegionId(rest.try_get_u16_le().ok()?) };
    Some(Stamp { version, lsn: Lsn(rest.try_get_u64_le().ok()?) })
}

fn take_expiry(flags: u8, rest: &mut &[u8]) -> Option<Option<u64>> {
    if flags & HAS_EXPIRY == 0 { Some(None) } else { Some(Some(rest.try_get_u64_le().ok()?)) }
}

fn take_plain<'a>(flags: u8, rest: &mut &'a [u8]) -> Option<Record<'a>> {
    if flags & !HAS_EXPIRY != 0 {
        return None;
    }
    let stamp = take_stamp(rest)?;
    let expires_at_ms = take_expiry(flags, rest)?;
    Some(Record::Plain { stamp, content: Content { expires_at_ms, value: rest } })
}

fn take_merged<'a>(flags: u8, rest: &mut &'a [u8]) -> Option<Record<'a>> {
    let has = |flag: u8| flags & flag != 0;
    let known = flags & !(HAS_EXPIRY | HAS_REGISTER | IS_LIVE | HAS_COUNTER | COUNTS_ON) == 0;
    let sensible = (has(HAS_REGISTER) || has(HAS_COUNTER))
        && (has(HAS_REGISTER) || !has(IS_LIVE))
        && (has(IS_LIVE) || !has(HAS_EXPIRY));
    if !known || !sensible {
        return None;
    }
    let marker = if has(HAS_REGISTER) { Some(take_stamp(rest)?) } else { None };
    let expires_at_ms = take_expiry(flags, rest)?;
    let counter = if has(HAS_COUNTER) { Some(take_counter(rest)?) } else { None };
    if !has(IS_LIVE) && !rest.is_empty() {
        return None;
    }
    let val = has(IS_LIVE).then_some(Content { expires_at_ms, value: rest });
    let counts_on = has(COUNTS_ON);
    if counts_on && !val.is_some_and(can_count_on) {
        return None;
    }
    Some(Record::Merged(Merged { register: marker.map(|marker| Register { val, marker }), counter, counts_on }))
}

fn take_counter(rest: &mut &[u8]) -> Option<Counter> {
    let mut counter = Counter { stamp: take_stamp(rest)?, ..Counter::default() };
    for _ in 0..rest.try_get_u16_le().ok()? {
        let actor = RegionId(rest.try_get_u16_le().ok()?);
        let tally = Tally {
            increments: rest.try_get_u64_le().ok()?,
            decrements: rest.try_get_u64_le().ok()?,
            removed_increments: rest.try_get_u64_le().ok()?,
            removed_decrements: rest.try_get_u64_le().ok()?,
        };
        let rising = counter.tallies.last_key_value().is_none_or(|(last, _)| *last < actor);
        if !rising || tally == Tally::default() {
            return None;
        }
        counter.tallies.insert(actor, tally);
    }
    Some(counter)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stamp(hlc: u64, region: u16, lsn: u64) -> Stamp {
        Stamp { version: Version { hlc: Hlc(hlc), region: RegionId(region) }, lsn: Lsn(lsn) }
    }

    fn counter() -> Counter {
        let mut counter = Counter::default();
        counter.add(RegionId(1), 5, stamp(9, 1, 4)).unwrap();
        counter.add(RegionId(3), -2, stamp(8, 3, 6)).unwrap();
        counter.remove(RegionId(2), &[(RegionId(1), 4, 0)]);
        counter
    }

    #[test]
    fn the_bytes_of_records_are_the_disk_format() {
        let plain = encode_plain(stamp(0x0102, 3, 4), Some(5), &[b"va", b"lue"]);
        assert_eq!(
            plain,
            b"\x01\x01\x01\x02\x01\0\0\0\0\0\0\x03\0\x04\0\0\0\0\0\0\0\x05\0\0\0\0\0\0\0value".as_slice()
        );
        let plain = encode_plain(stamp(0x0102, 3, 4), None, &[b""]);
        assert_eq!(plain, b"\x01\x01\x00\x02\x01\0\0\0\0\0\0\x03\0\x04\0\0\0\0\0\0\0".as_slice());
        let tombstone = Register { val: None, marker: stamp(7, 1, 2) };
        let merged = encode_merged(&merged(Some(tombstone), Some(counter())));
        let expected = [
            b"\x01\x02\x0a\x07\0\0\0\0\0\0\0\x01\0\x02\0\0\0\0\0\0\0".as_slice(),
            b"\x09\0\0\0\0\0\0\0\x01\0\x04\0\0\0\0\0\0\0\x02\0",
            b"\x01\0\x05\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            b"\x03\0\0\0\0\0\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
        ];
        assert_eq!(merged, expected.concat());
        let number = Register { val: Some(Content { expires_at_ms: None, value: b"41" }), marker: stamp(7, 1, 2) };
        let mut once = Counter::default();
        once.add(RegionId(1), 1, stamp(9, 1, 4)).unwrap();
        let on = Merged { register: Some(number), counter: Some(once), counts_on: true };
        let expected = [
            b"\x01\x02\x1e\x07\0\0\0\0\0\0\0\x01\0\x02\0\0\0\0\0\0\0".as_slice(),
            b"\x09\0\0\0\0\0\0\0\x01\0\x04\0\0\0\0\0\0\0\x01\0",
            b"\x01\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            b"41",
        ];
        assert_eq!(encode_merged(&on), expected.concat());
    }

    fn merged<'a>(register: Option<Register<'a>>, counter: Option<Counter>) -> Merged<'a> {
        Merged { register, counter, counts_on: false }
    }

    #[test]
    fn a_reader_sees_the_register_then_the_counter_then_nothing() {
        let live = Register { val: Some(Content { expires_at_ms: Some(100), value: b"v" }), marker: stamp(7, 1, 2) };
        let record = Record::Merged(merged(Some(live), Some(counter())));
        assert_eq!(record.read(99).map(|reading| reading.value.into_owned()), Some(b"v".to_vec()));
        assert_eq!(record.read(100).map(|reading| reading.value.into_owned()), Some(b"-1".to_vec()));
        let tombstone = Register { val: None, marker: stamp(7, 1, 2) };
        let gone = Record::Merged(merged(Some(tombstone), None));
        assert_eq!((gone.read(0), gone.live_bytes()), (None, None));
    }

    #[test]
    fn a_number_of_before_counts_on_and_nothing_else_does() {
        let counts_on = |expires_at_ms, value: &'static [u8]| {
            let content = Content { expires_at_ms, value };
            Record::Plain { stamp: stamp(7, 1, 2), content }.into_merged().counts_on
        };
        assert!(counts_on(None, b"-7") && counts_on(None, b"0"));
        assert!(!counts_on(None, b"v") && !counts_on(None, b"07") && !counts_on(Some(100), b"7"));
        let number = |value| Register { val: Some(Content { expires_at_ms: None, value }), marker: stamp(7, 1, 2) };
        let on = |value| Merged { register: Some(number(value)), counter: Some(counter()), counts_on: true };
        let reading = |merged: Merged<'static>| {
            let reading = Record::Merged(merged).read(u64::MAX).unwrap();
            (reading.stamp, String::from_utf8(reading.value.into_owned()).unwrap())
        };
        assert_eq!(reading(on(b"41")), (stamp(9, 1, 4), "40".to_owned()), "as old as what was counted last");
        assert_eq!(on(b"-9223372036854775808").count(), i64::MIN, "it stands at the end of 64 bits");
        assert_eq!(reading(Merged { counts_on: false, ..on(b"41") }), (stamp(7, 1, 2), "41".to_owned()));
        let end = Content { expires_at_ms: Some(1), value: b"41" };
        let ends = Merged { register: Some(Register { val: Some(end), marker: stamp(7, 1, 2) }), ..on(b"41") };
        assert!(Record::decode(&encode_merged(&ends)).is_err(), "nothing that is to end counts on");
        assert!(Record::decode(&encode_merged(&on(b"v"))).is_err());
    }

    #[test]
    fn only_canonical_decimal_text_is_an_integer() {
        assert_eq!(integer(b"-9223372036854775808"), Some(i64::MIN));
        assert_eq!(integer(b"0"), Some(0));
        for bad in ["", "+1", "01", "-0", " 1", "1 ", "1.0", "9223372036854775808", "x"] {
            assert_eq!(integer(bad.as_bytes()), None, "{bad}");
        }
    }

    fn any_record() -> impl Strategy<Value = Bytes> {
        let content = prop::option::of((any::<Option<u64>>(), prop::collection::vec(any::<u8>(), 0..20)));
        let tallies = prop::collection::btree_map(any::<u16>(), any::<[u64; 4]>(), 1..4);
        let number = prop::option::of(any::<i64>());
        let merged = (prop::option::of((any::<(u64, u16, u64)>(), content)), prop::option::of(tallies), any::<u64>());
        let merged =
            merged.prop_filter("one of both", |(register, counter, _)| register.is_some() || counter.is_some());
        let merged = (merged, number).prop_map(|((register, counter, at), number)| {
            let counter = counter.map(|tallies| Counter {
                stamp: stamp(at, 1, at),
                tallies: tallies
                    .into_iter()
                    .map(|(actor, [a, b, c, d])| {
                        let (increments, decrements) = (a.max(1), b);
                        (
                            RegionId(actor),
                            Tally { increments, decrements, removed_increments: c, removed_decrements: d },
                        )
                    })
                    .collect(),
            });
            let register = register.as_ref().map(|((hlc, region, lsn), content)| Register {
                val: content.as_ref().map(|(expires_at_ms, value)| Content { expires_at_ms: *expires_at_ms, value }),
                marker: stamp(*hlc, *region, *lsn),
            });
            let number = number.map(|number| number.to_string().into_bytes());
            let on = number.as_deref().map(|value| Content { expires_at_ms: None, value });
            match (register, on) {
                (Some(register), Some(on)) => {
                    let register = Some(Register { val: Some(on), ..register });
                    encode_merged(&Merged { register, counter, counts_on: true })
                }
                (register, _) => encode_merged(&Merged { register, counter, counts_on: false }),
            }
        });
        let value = prop::collection::vec(any::<u8>(), 0..20);
        let plain = (any::<(u64, u16, u64)>(), any::<Option<u64>>(), value);
        let plain = plain.prop_map(|((h, r, l), at, value)| encode_plain(stamp(h, r, l), at, &[&value]));
        prop_oneof![merged, plain]
    }

    fn encode_again(record: Record<'_>) -> Bytes {
        match record {
            Record::Plain { stamp, content } => encode_plain(stamp, content.expires_at_ms, &[content.value]),
            Record::Merged(merged) => encode_merged(&merged),
        }
    }

    proptest! {
        #[test]
        fn a_record_has_exactly_one_encoding_even_after_a_mutation(
            bytes in any_record(), at in any::<usize>(), to in any::<u8>(), cut in any::<usize>()
        ) {
            prop_assert_eq!(&encode_again(Record::decode(&bytes).unwrap()), &bytes);
            let mut mutated = bytes.to_vec();
            let at = at % mutated.len();
            mutated[at] = to;
            for mutated in [&mutated[..], &mutated[..cut % mutated.len()]] {
                if let Ok(record) = Record::decode(mutated) {
                    let _ = (record.read(5), record.live_bytes(), record.expiry());
                    prop_assert_eq!(&encode_again(record)[..], mutated);
                }
            }
        }
    }
}
