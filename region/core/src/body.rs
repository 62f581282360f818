//! The body of an entry, read without copying its keys and values.
//!
//! A mirror of [`meridian_types::entry::Body`] whose keys and values borrow from the entry: a value is
//! copied once, into its record. The mirror reads the very same bytes; a test holds the two together.

use meridian_types::entry::{EntryError, HEADER_BYTES, Header, Kind};
use meridian_types::key::{KEY_BYTES_MAX, MULTI_BYTES_MAX, MULTI_ITEMS_MAX, VALUE_BYTES_MAX};
use meridian_types::{Epoch, Hlc, Lsn, Positions, Refusal, RefusalKind, RegionId, RepairGoal, RepairMode, Version};
use serde::Deserialize;

/// A key of 1 to [`KEY_BYTES_MAX`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "&'a [u8]")]
pub(crate) struct KeyRef<'a>(pub(crate) &'a [u8]);

/// A value of at most [`VALUE_BYTES_MAX`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "&'a [u8]")]
pub(crate) struct ValueRef<'a>(pub(crate) &'a [u8]);

impl<'a> TryFrom<&'a [u8]> for KeyRef<'a> {
    type Error = &'static str;
    fn try_from(bytes: &'a [u8]) -> Result<KeyRef<'a>, &'static str> {
        if bytes.is_empty() || bytes.len() > KEY_BYTES_MAX { Err("a key out of bounds") } else { Ok(KeyRef(bytes)) }
    }
}

impl<'a> TryFrom<&'a [u8]> for ValueRef<'a> {
    type Error = &'static str;
    fn try_from(bytes: &'a [u8]) -> Result<ValueRef<'a>, &'static str> {
        if bytes.len() > VALUE_BYTES_MAX { Err("a value out of bounds") } else { Ok(ValueRef(bytes)) }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum BodyRef<'a> {
    #[serde(borrow)]
    Write(WriteBodyRef<'a>),
    Expire {
        #[serde(borrow)]
        due: Vec<(KeyRef<'a>, u64)>,
    },
    Fence,
    DropBucket,
    ExpireClients {
        before: Hlc,
    },
    Seal {
        next: Epoch,
        after: Positions,
    },
    Repair(#[serde(borrow)] RepairStepRef<'a>),
    Stop {
        index: u64,
        stops: bool,
    },
    Raise {
        index: u64,
        next: Epoch,
        after: Positions,
    },
    Part {
        index: u64,
        from: RegionId,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum RepairStepRef<'a> {
    Begin {
        source: RegionId,
    },
    Rows {
        begun: Lsn,
        mode: RepairMode,
        #[serde(borrow)]
        puts: Vec<RowRef<'a>>,
        deletes: Vec<&'a [u8]>,
    },
    End {
        begun: Lsn,
        mode: RepairMode,
        goal: RepairGoal,
    },
    Unpark,
    Watch {
        #[serde(borrow)]
        keys: Vec<&'a [u8]>,
    },
    PassedOver {
        #[serde(borrow)]
        removed: Vec<&'a [u8]>,
    },
    Unwatch,
    Advance {
        begun: Lsn,
        up_to: Positions,
    },
    GiveUp {
        begun: Lsn,
        cut: Lsn,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct RowRef<'a> {
    #[serde(borrow)]
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum WriteBodyRef<'a> {
    #[serde(borrow)]
    Plain(WriteRef<'a>),
    Register {
        key: KeyRef<'a>,
        value: ValueRef<'a>,
        expires_at_ms: Option<u64>,
    },
    Counter {
        key: KeyRef<'a>,
        by: i64,
    },
    Remove {
        key: KeyRef<'a>,
        counter: Vec<(RegionId, u64, u64)>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum WriteRef<'a> {
    Put {
        #[serde(borrow)]
        key: KeyRef<'a>,
        value: ValueRef<'a>,
        ttl_ms: Option<u64>,
    },
    Delete {
        key: KeyRef<'a>,
    },
    Append {
        key: KeyRef<'a>,
        suffix: ValueRef<'a>,
    },
    Increment {
        key: KeyRef<'a>,
        by: i64,
    },
    CompareAndSet {
        key: KeyRef<'a>,
        expected: Option<Version>,
        value: ValueRef<'a>,
        ttl_ms: Option<u64>,
    },
    PutIfAbsent {
        key: KeyRef<'a>,
        value: ValueRef<'a>,
        ttl_ms: Option<u64>,
    },
    MultiPut {
        items: Vec<(KeyRef<'a>, ValueRef<'a>)>,
    },
}

/// Reads the body of an entry that is not a frame.
///
/// # Errors
/// [`EntryError::DamagedBody`] when it doesn't decode as the header's kind.
pub(crate) fn decode<'a>(header: &Header, entry: &'a [u8]) -> Result<BodyRef<'a>, EntryError> {
    let damaged = || EntryError::DamagedBody(header.kind);
    let body = postcard::from_bytes(entry.get(HEADER_BYTES..).unwrap_or_default()).map_err(|_| damaged())?;
    let kind = match &body {
        BodyRef::Write(_) => Kind::Write,
        BodyRef::Expire { .. } => Kind::Expire,
        BodyRef::Fence => Kind::Fence,
        BodyRef::DropBucket => Kind::DropBucket,
        BodyRef::ExpireClients { .. } => Kind::ExpireClients,
        BodyRef::Seal { .. } => Kind::Seal,
        BodyRef::Repair(_) => Kind::Repair,
        BodyRef::Stop { .. } => Kind::Stop,
        BodyRef::Raise { .. } => Kind::Raise,
        BodyRef::Part { .. } => Kind::Part,
    };
    if kind == header.kind { Ok(body) } else { Err(damaged()) }
}

impl<'a> WriteBodyRef<'a> {
    /// The keys it touches.
    pub(crate) fn keys(&self) -> impl Iterator<Item = KeyRef<'a>> {
        let (one, several) = match self {
            WriteBodyRef::Plain(WriteRef::MultiPut { items }) => (None, items.as_slice()),
            WriteBodyRef::Plain(
                WriteRef::Put { key, .. }
                | WriteRef::Delete { key }
                | WriteRef::Append { key, .. }
                | WriteRef::Increment { key, .. }
                | WriteRef::CompareAndSet { key, .. }
                | WriteRef::PutIfAbsent { key, .. },
            )
            | WriteBodyRef::Register { key, .. }
            | WriteBodyRef::Counter { key, .. }
            | WriteBodyRef::Remove { key, .. } => (Some(*key), [].as_slice()),
        };
        one.into_iter().chain(several.iter().map(|(key, _)| *key))
    }

    /// Checks the bounds that one key or value alone can't.
    pub(crate) fn validate(&self) -> Result<(), Refusal> {
        let WriteBodyRef::Plain(WriteRef::MultiPut { items }) = self else { return Ok(()) };
        let bytes: usize = items.iter().map(|(key, value)| key.0.len() + value.0.len()).sum();
        if items.is_empty() || items.len() > MULTI_ITEMS_MAX || bytes > MULTI_BYTES_MAX {
            let bounds = format!(
                "a multi-put carries 1 to {MULTI_ITEMS_MAX} keys and at most {MULTI_BYTES_MAX} bytes; this one has {} keys and {bytes} bytes: split it",
                items.len()
            );
            return Err(Refusal::new(RefusalKind::Invalid, bounds));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::entry::{Body, WriteBody};
    use meridian_types::{BucketId, Key, RepairStep, RequestId, Row, SetHash, Value, Write};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::any_write;

    fn header(kind: Kind) -> Header {
        Header {
            kind,
            origin: RegionId(1),
            bucket: BucketId(1),
            epoch: Epoch(1),
            hlc: Hlc(1),
            id: RequestId::default(),
            lowest_outstanding: 0,
        }
    }

    fn own_key(key: KeyRef<'_>) -> Key {
        Key::new(key.0.to_vec()).unwrap()
    }

    fn own_value(value: ValueRef<'_>) -> Value {
        Value::new(value.0.to_vec()).unwrap()
    }

    fn own_write(write: WriteRef<'_>) -> Write {
        match write {
            WriteRef::Put { key, value, ttl_ms } => Write::Put { key: own_key(key), value: own_value(value), ttl_ms },
            WriteRef::Delete { key } => Write::Delete { key: own_key(key) },
            WriteRef::Append { key, suffix } => Write::Append { key: own_key(key), suffix: own_value(suffix) },
            WriteRef::Increment { key, by } => Write::Increment { key: own_key(key), by },
            WriteRef::CompareAndSet { key, expected, value, ttl_ms } => {
                Write::CompareAndSet { key: own_key(key), expected, value: own_value(value), ttl_ms }
            }
            WriteRef::PutIfAbsent { key, value, ttl_ms } => {
                Write::PutIfAbsent { key: own_key(key), value: own_value(value), ttl_ms }
            }
            WriteRef::MultiPut { items } => {
                Write::MultiPut { items: items.into_iter().map(|(k, v)| (own_key(k), own_value(v))).collect() }
            }
        }
    }

    fn own_step(step: RepairStepRef<'_>) -> RepairStep {
        let own = |keys: &[&[u8]]| keys.iter().map(|key| key.to_vec().into()).collect();
        match step {
            RepairStepRef::Begin { source } => RepairStep::Begin { source },
            RepairStepRef::Rows { begun, mode, puts, deletes } => {
                let row = |row: RowRef<'_>| Row { key: row.key.to_vec().into(), value: row.value.to_vec().into() };
                let puts = puts.into_iter().map(row).collect();
                RepairStep::Rows { begun, mode, puts, deletes: own(&deletes) }
            }
            RepairStepRef::End { begun, mode, goal } => RepairStep::End { begun, mode, goal },
            RepairStepRef::Unpark => RepairStep::Unpark,
            RepairStepRef::Watch { keys } => RepairStep::Watch { keys: own(&keys) },
            RepairStepRef::PassedOver { removed } => RepairStep::PassedOver { removed: own(&removed) },
            RepairStepRef::Unwatch => RepairStep::Unwatch,
            RepairStepRef::Advance { begun, up_to } => RepairStep::Advance { begun, up_to },
            RepairStepRef::GiveUp { begun, cut } => RepairStep::GiveUp { begun, cut },
        }
    }

    fn any_step() -> impl Strategy<Value = RepairStep> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..9).prop_map(bytes::Bytes::from);
        let mode = prop_oneof![Just(RepairMode::Replace), Just(RepairMode::Join)];
        let rows =
            (any::<u64>(), mode, prop::collection::vec((bytes(), bytes()), 0..4), prop::collection::vec(bytes(), 0..4));
        prop_oneof![
            any::<u16>().prop_map(|source| RepairStep::Begin { source: RegionId(source) }),
            rows.prop_map(|(begun, mode, puts, deletes)| RepairStep::Rows {
                begun: Lsn(begun),
                mode,
                puts: puts.into_iter().map(|(key, value)| Row { key, value }).collect(),
                deletes,
            }),
            (any::<u64>(), any::<u128>()).prop_map(|(begun, hash)| RepairStep::End {
                begun: Lsn(begun),
                mode: RepairMode::Join,
                goal: RepairGoal { results: SetHash(hash), ..RepairGoal::default() },
            }),
            Just(RepairStep::Unpark),
            prop::collection::vec(bytes(), 0..4).prop_map(|keys| RepairStep::Watch { keys }),
            prop::collection::vec(bytes(), 0..4).prop_map(|removed| RepairStep::PassedOver { removed }),
            Just(RepairStep::Unwatch),
            (any::<u64>(), any::<u16>(), any::<u64>()).prop_map(|(begun, origin, lsn)| {
                let mut up_to = Positions::default();
                up_to.raise(RegionId(origin), Lsn(lsn));
                RepairStep::Advance { begun: Lsn(begun), up_to }
            }),
            any::<(u64, u64)>().prop_map(|(begun, cut)| RepairStep::GiveUp { begun: Lsn(begun), cut: Lsn(cut) }),
        ]
    }

    fn own(body: BodyRef<'_>) -> Body {
        match body {
            BodyRef::Write(WriteBodyRef::Plain(write)) => Body::Write(WriteBody::Plain(own_write(write))),
            BodyRef::Write(WriteBodyRef::Register { key, value, expires_at_ms }) => {
                Body::Write(WriteBody::Register { key: own_key(key), value: own_value(value), expires_at_ms })
            }
            BodyRef::Write(WriteBodyRef::Counter { key, by }) => {
                Body::Write(WriteBody::Counter { key: own_key(key), by })
            }
            BodyRef::Write(WriteBodyRef::Remove { key, counter }) => {
                Body::Write(WriteBody::Remove { key: own_key(key), counter })
            }
            BodyRef::Expire { due } => {
                Body::Expire { due: due.into_iter().map(|(key, at)| (own_key(key), at)).collect() }
            }
            BodyRef::Fence => Body::Fence,
            BodyRef::DropBucket => Body::DropBucket,
            BodyRef::ExpireClients { before } => Body::ExpireClients { before },
            BodyRef::Seal { next, after } => Body::Seal { next, after },
            BodyRef::Repair(step) => Body::Repair(own_step(step)),
            BodyRef::Stop { index, stops } => Body::Stop { index, stops },
            BodyRef::Raise { index, next, after } => Body::Raise { index, next, after },
            BodyRef::Part { index, from } => Body::Part { index, from },
        }
    }

    fn any_body() -> impl Strategy<Value = (Kind, Body)> {
        let key = || prop::collection::vec(any::<u8>(), 1..9).prop_map(|key| Key::new(key).unwrap());
        let value = prop::collection::vec(any::<u8>(), 0..9).prop_map(|value| Value::new(value).unwrap());
        let observed = prop::collection::vec(any::<(u16, u64, u64)>(), 0..4);
        let write = prop_oneof![
            any_write(key().boxed()).prop_map(WriteBody::Plain),
            (key(), value, any::<Option<u64>>()).prop_map(|(key, value, expires_at_ms)| WriteBody::Register {
                key,
                value,
                expires_at_ms
            }),
            (key(), any::<i64>()).prop_map(|(key, by)| WriteBody::Counter { key, by }),
            (key(), observed).prop_map(|(key, counter)| {
                WriteBody::Remove { key, counter: counter.into_iter().map(|(r, p, n)| (RegionId(r), p, n)).collect() }
            }),
        ];
        prop_oneof![
            8 => write.prop_map(|write| (Kind::Write, Body::Write(write))),
            2 => prop::collection::vec((key(), any::<u64>()), 0..4).prop_map(|due| (Kind::Expire, Body::Expire { due })),
            1 => Just((Kind::Fence, Body::Fence)),
            1 => Just((Kind::DropBucket, Body::DropBucket)),
            1 => any::<u64>().prop_map(|at| (Kind::ExpireClients, Body::ExpireClients { before: Hlc(at) })),
            1 => any::<(u64, u16, u64)>().prop_map(|(next, region, lsn)| {
                let after = Positions([(RegionId(region), meridian_types::Lsn(lsn))].into());
                (Kind::Seal, Body::Seal { next: Epoch(next), after })
            }),
            2 => any_step().prop_map(|step| (Kind::Repair, Body::Repair(step))),
            1 => any::<(u64, bool)>().prop_map(|(index, stops)| (Kind::Stop, Body::Stop { index, stops })),
            1 => any::<(u64, u16)>().prop_map(|(index, from)| (Kind::Part, Body::Part { index, from: RegionId(from) })),
            1 => any::<(u64, u64, u16, u64)>().prop_map(|(index, next, region, lsn)| {
                let after = Positions([(RegionId(region), meridian_types::Lsn(lsn))].into());
                (Kind::Raise, Body::Raise { index, next: Epoch(next), after })
            }),
        ]
    }

    proptest! {
        #[test]
        fn the_mirror_reads_what_the_original_wrote((kind, body) in any_body()) {
            let header = header(kind);
            let entry = header.encode(&body);
            prop_assert_eq!(own(decode(&header, &entry).unwrap()), body);
        }

        #[test]
        fn the_mirror_accepts_exactly_what_the_original_accepts((kind, body) in any_body(), at in any::<usize>(), to in any::<u8>()) {
            let header = header(kind);
            let mut entry = header.encode(&body).to_vec();
            let at = HEADER_BYTES + at % (entry.len() - HEADER_BYTES);
            entry[at] = to;
            let mirrored = decode(&header, &entry).map(own);
            prop_assert_eq!(mirrored, header.decode_body(&entry));
        }
    }

    #[test]
    fn keys_and_values_out_of_bounds_are_damage() {
        assert!(KeyRef::try_from([].as_slice()).is_err());
        assert!(KeyRef::try_from(vec![0; KEY_BYTES_MAX + 1].as_slice()).is_err());
        assert!(ValueRef::try_from(vec![0; VALUE_BYTES_MAX + 1].as_slice()).is_err());
    }
}
