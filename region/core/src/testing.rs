//! What the tests of this crate share: strategies for words of `types`.

use meridian_types::{Hlc, Key, RegionId, Value, Version, Write};
use proptest::prelude::*;

/// Any write on keys of the given kind.
pub(crate) fn any_write(key: BoxedStrategy<Key>) -> BoxedStrategy<Write> {
    let value = || prop::collection::vec(any::<u8>(), 0..12).prop_map(|value| Value::new(value).unwrap());
    let ttl = || prop::option::of(0u64..50);
    let version = any::<(u64, u16)>().prop_map(|(hlc, region)| Version { hlc: Hlc(hlc), region: RegionId(region) });
    prop_oneof![
        (key.clone(), value(), ttl()).prop_map(|(key, value, ttl_ms)| Write::Put { key, value, ttl_ms }),
        key.clone().prop_map(|key| Write::Delete { key }),
        (key.clone(), value()).prop_map(|(key, suffix)| Write::Append { key, suffix }),
        (key.clone(), any::<i64>()).prop_map(|(key, by)| Write::Increment { key, by }),
        (key.clone(), prop::option::of(version), value(), ttl())
            .prop_map(|(key, expected, value, ttl_ms)| Write::CompareAndSet { key, expected, value, ttl_ms }),
        (key.clone(), value(), ttl()).prop_map(|(key, value, ttl_ms)| Write::PutIfAbsent { key, value, ttl_ms }),
        prop::collection::vec((key, value()), 0..4).prop_map(|items| Write::MultiPut { items }),
    ]
    .boxed()
}
