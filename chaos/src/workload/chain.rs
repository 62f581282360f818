//! Chains: read a version, replace just that one. Contended, so that some fail; a lost update would show as two
//! successes on one version.

use meridian_types::{Read, ReadLevel, StalePolicy, Write};

use super::client::{Client, value_found};
use crate::history::Told;
use crate::target::Target;

/// One read, and mostly one replacement.
pub(super) async fn step<T: Target>(client: &mut Client<T>) {
    let key = client.any_key();
    // A version read from a stale replica is as good a guess: the condition protects.
    let (level, stale) = if client.chance(70) { (ReadLevel::Strong, StalePolicy::Wait) } else { client.any_level() };
    let seen = client.read(Read::Get { key: key.clone() }, level, stale).await;
    if !matches!(seen, Told::Done(_)) || client.chance(client.options.reads_percent / 2) {
        return;
    }
    let expected = value_found(&seen).map(|found| found.version);
    let value = client.unique_value();
    client.write(Write::CompareAndSet { key, expected, value, ttl_ms: None }).await;
}
