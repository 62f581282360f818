//! Counters: increments, few of them negative, and reads.

use meridian_types::Write;
use rand::Rng;

use super::client::Client;
use crate::target::Target;

/// One operation.
pub(super) async fn step<T: Target>(client: &mut Client<T>) {
    let key = client.any_key();
    if client.chance(client.options.reads_percent) {
        client.read_any(key).await;
        return;
    }
    // Different powers of two would tell which increments are missing; small primes tell nearly as much and stay small.
    let by = [1, 1, 2, 3, 5, 7, 11, -1, -2, 13][client.rng.random_range(0..10)];
    client.write(Write::Increment { key, by }).await;
}
