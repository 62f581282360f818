//! Keys with a time to live. Nobody reads them, or remembers what became of the writes; but what removes them goes through
//! primaries' logs beside everything else, and is held to the same promises there (FEN-1, ORD-1, CON-4).

use std::time::Duration;

use meridian_types::{
    BucketName, ClientId, Epoch, Key, RegionId, Request, RequestId, SessionToken, Value, Write, WriteAck,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;

use crate::target::Target;

/// The mean pause between two of them, in milliseconds.
const PAUSE_MS: u64 = 150;

/// How long one may live, in milliseconds: some outlast a change of primary.
const LIVES_MS: [u64; 3] = [200, 1_000, 4_000];

/// How many names they have, so that some are set anew before their time has come.
const NAMES: u32 = 12;

/// Writes such keys through every region for as long as it lasts.
pub(crate) async fn brief<T: Target>(
    target: &T,
    bucket: &BucketName,
    regions: &[RegionId],
    seed: u64,
    lasts: Duration,
) {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x6272_6965);
    let client = ClientId(u128::from(rng.random::<u64>()) << 32 | 0x6272_6965);
    let until_us = target.now_us().saturating_add(u64::try_from(lasts.as_micros()).unwrap_or(u64::MAX));
    for sequence in 1.. {
        sleep(Duration::from_millis(rng.random_range(0..=2 * PAUSE_MS))).await;
        if target.now_us() >= until_us {
            return;
        }
        let name = format!("brief/{}", rng.random_range(0..NAMES));
        let (Ok(key), Ok(value)) = (Key::new(name), Value::new(sequence.to_string())) else { return };
        let ttl_ms = Some(LIVES_MS[rng.random_range(0..LIVES_MS.len())]);
        let request = Request::Write {
            bucket: bucket.clone(),
            write: Write::Put { key, value, ttl_ms },
            ack: WriteAck::Policy,
            id: RequestId { client, sequence },
            lowest_outstanding: sequence,
            begun: Epoch(0),
            session: SessionToken::default(),
            deadline_ms: 1_000,
        };
        // Whatever comes of it.
        let _ = target.ask(regions[rng.random_range(0..regions.len())], request).await;
    }
}
