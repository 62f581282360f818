//! Load: closed- and open-loop, measured honestly, with the machine's own costs beside it.
//!
//! *Closed loop*: each client sends its next request when the last is answered. *Open loop* (`rate`): requests
//! are due at fixed times whether or not earlier ones were answered, and latency counts from when a request
//! was due, so a stall is not hidden by the requests that weren't sent meanwhile (coordinated omission).
//! Latencies go into HDR histograms, one per client, merged at the end. Beside the result stand what this
//! machine charges anyway: one fdatasync and one round trip.

use std::time::Duration;

use meridian_client::ReadLevel;
use meridian_types::{BucketName, WriteAck};

mod keys;
mod load;
mod machine;
mod report;

pub use keys::Distribution;
pub use load::run;
pub use machine::{CpuClock, fdatasync, round_trip};
pub use report::{Figures, Latency, Report};

/// What to measure.
#[derive(Clone, Debug)]
pub struct Load {
    /// The bucket; must exist.
    pub bucket: BucketName,
    /// Requests in flight at most: one per client.
    pub clients: usize,
    /// How long to measure.
    pub duration: Duration,
    /// How long to load before that, unmeasured.
    pub warm_up: Duration,
    /// Bytes per value.
    pub value_bytes: usize,
    /// How many keys there are.
    pub keys: u64,
    /// Which of them are asked for.
    pub distribution: Distribution,
    /// Share of reads, 0 to 1.
    pub read_share: f64,
    /// How fresh reads are.
    pub level: ReadLevel,
    /// How durable writes are.
    pub ack: WriteAck,
    /// Open loop: requests per second over all clients. `None`: closed loop.
    pub rate: Option<f64>,
    /// How long one request may take.
    pub deadline: Duration,
    /// Seeds keys and values: equal seeds, equal requests.
    pub seed: u64,
}
