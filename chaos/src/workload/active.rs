//! Active-active writers: registers that the last writer wins, deletes among them, and counters. Each client writes in its
//! own region and seldom in another.

use meridian_types::Write;
use rand::Rng;

use super::client::Client;
use crate::target::Target;

/// One operation.
pub(super) async fn step<T: Target>(client: &mut Client<T>) {
    if client.chance(5) {
        client.roam();
    }
    let key = client.any_key();
    if client.chance(client.options.reads_percent) {
        client.read_any(key).await;
        return;
    }
    let write = if key.as_bytes().starts_with(b"pn/") {
        // Not by 0: a counter that nobody moved does not exist.
        Write::Increment { key, by: [1, 2, 3, 5, 7, 9, -1, -2][client.rng.random_range(0..8)] }
    } else if client.chance(25) {
        Write::Delete { key }
    } else {
        Write::Put { key, value: client.unique_value(), ttl_ms: None }
    };
    client.write(write).await;
}
