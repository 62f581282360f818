//! Sessions: a client goes from region to region with its token, writes here and reads there.

use meridian_types::{Read, ReadLevel, StalePolicy, Write};
use rand::Rng;

use super::client::Client;
use crate::target::Target;

/// One operation, perhaps in another region than the last one.
pub(super) async fn step<T: Target>(client: &mut Client<T>) {
    if client.chance(40) {
        client.roam();
    }
    let key = client.any_key();
    if client.chance(client.options.reads_percent) {
        // Mostly at the level that this is about; other levels teach the session, too.
        let (level, stale) = if client.chance(70) {
            let stale = [StalePolicy::Wait, StalePolicy::Redirect, StalePolicy::Fail][client.rng.random_range(0..3)];
            (ReadLevel::Session, stale)
        } else {
            client.any_level()
        };
        client.read(Read::Get { key }, level, stale).await;
        return;
    }
    let write = if client.chance(10) {
        Write::Delete { key }
    } else {
        Write::Put { key, value: client.unique_value(), ttl_ms: None }
    };
    client.write(write).await;
}
