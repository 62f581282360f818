//! Registers: every kind of write on the same few keys, read at every level.

use meridian_types::{Read, ReadLevel, StalePolicy, Write};
use rand::Rng;

use super::client::{Client, value_found};
use crate::target::Target;

/// One operation.
pub(super) async fn step<T: Target>(client: &mut Client<T>) {
    let key = client.any_key();
    if client.chance(client.options.reads_percent) {
        client.read_any(key).await;
        return;
    }
    let value = client.unique_value();
    let write = match client.rng.random_range(0..10) {
        0..=4 => Write::Put { key, value, ttl_ms: None },
        5 => Write::Delete { key },
        6 => Write::PutIfAbsent { key, value, ttl_ms: None },
        7 => Write::CompareAndSet { key, expected: None, value, ttl_ms: None },
        _ => {
            let read = Read::Get { key: key.clone() };
            let seen = client.read(read, ReadLevel::Strong, StalePolicy::Wait).await;
            let expected = value_found(&seen).map(|found| found.version);
            Write::CompareAndSet { key, expected, value, ttl_ms: None }
        }
    };
    client.write(write).await;
}
